"""The folder of a run: its log, and folders that are complete at every moment."""

import json
import shutil
from pathlib import Path


class TrainingLog:
    """`training_log.jsonl`: a line per logging step, validation and test; cut back to the checkpoint on resume."""

    def __init__(self, path: Path, episodes_done: int, is_main_process: bool):
        self.path, self.is_main_process, self.records = path, is_main_process, []
        if path.is_file():
            lines = path.read_text().splitlines()
            # A line that was being written when the process died is not complete JSON; it lies after the checkpoint.
            self.records = [record for line in lines if (record := _json_or_none(line))]
            self.records = [record for record in self.records if record["episode"] <= episodes_done]
        if is_main_process:
            new = path.with_name(path.name + ".new")
            new.write_text("".join(json.dumps(record) + "\n" for record in self.records))
            new.replace(path)  # at once, so that a death here loses nothing

    def write(self, episode: int, kind: str, **values):
        record = {"episode": episode, "kind": kind, **values}
        self.records.append(record)
        if self.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def _json_or_none(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def restore_folder(folder: Path):
    """Brings back the predecessor of `folder` if the process died between the two renames of `replace_folder`."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def replace_folder(new: Path, folder: Path):
    """Puts `new` in the place of `folder`; at every moment a complete one lies at `folder` or beside it as `.old`."""
    restore_folder(folder)  # or the next line would remove the only complete one
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def complete_folder(folder: Path) -> Path | None:
    """`folder`, or its predecessor if the process died between the two renames of `replace_folder`."""
    old = folder.with_name(folder.name + ".old")
    return next((candidate for candidate in (folder, old) if (candidate / "progress.json").is_file()), None)


__all__ = ["TrainingLog", "complete_folder", "replace_folder", "restore_folder"]
