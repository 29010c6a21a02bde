"""Refuses data sets of version 0.1 whose kept frames differ from those that a player shows."""

import json
from pathlib import Path

from clipfsar.checked_files import DamagedFileError
from clipfsar.data.arguments import PrepareArguments
from clipfsar.data.sources import listed_clips
from clipfsar.json_files import read_json
from container_clipfsar import READER_VERSION
from paths_clipfsar import replace_file
from video_clipfsar import frames_differ_from_0_1

REPORT = "preparation.json"


def check_kept_frames(folder: Path):
    """Checks a prepared data set for frames that version 0.1 read wrongly, if its source files still exist.

    A data set that passes the check gets a note in its report and is not checked again.

    Raises:
        ValueError: If it keeps frames of files that version 0.1 read wrongly; the message names them.
    """
    path = folder / REPORT
    if not path.is_file():
        return
    remedy = "prepare the data again, or delete this file if you made the data set in another way"
    report = read_json(path, remedy)
    if not isinstance(report.get("settings"), dict):
        raise DamagedFileError(f"{path} is damaged (it has no settings): {remedy}.")
    if "reader" in report or report["settings"].get("frame_store", "none") == "none":
        return
    different = [f"{file} ({reason})" for file in _files_of(report) if (reason := frames_differ_from_0_1(file))]
    if different:
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise ValueError(
            f"{folder} keeps frames of {len(different)} files that version 0.1 read wrongly: "
            f"{', '.join(different[:5])}{more}. Prepare the data again with clipfsar prepare."
        )
    try:
        with replace_file(path) as partial:
            partial.write_text(json.dumps(report | {"reader": READER_VERSION}, indent=2) + "\n")
    except OSError:
        pass  # a read-only folder is checked each time


def _files_of(report: dict) -> list[str]:
    """The files that a data set was prepared from. Empty if its lists or folders no longer exist."""
    try:
        splits = listed_clips(PrepareArguments(**report["settings"]))
    except (OSError, ValueError):
        return []
    return [clip.path for clips in (splits or {}).values() for clip in clips]


__all__ = ["REPORT", "check_kept_frames"]
