"""Prepared data sets of version 0.1: whose kept frames are compared with their files, once."""

import json
from pathlib import Path

import pytest

from clipfsar.checked_files import DamagedFileError
from clipfsar.data import older_reader
from clipfsar.data.arguments import PrepareArguments
from clipfsar.data.older_reader import check_kept_frames
from container_clipfsar import READER_VERSION


@pytest.fixture
def compared(monkeypatch) -> list[str]:
    """Names of the files that are compared; those that begin with "m" are mirrored."""
    names: list[str] = []

    def differ(file: str) -> str | None:
        names.append(Path(file).name)
        return "it is mirrored" if Path(file).name.startswith("m") else None

    monkeypatch.setattr(older_reader, "frames_differ_from_0_1", differ)
    return names


def report_of(folder: Path, *names: str, **report) -> Path:
    """The report of a data set prepared from these files, as version 0.1 wrote it."""
    for name in names:
        (folder / "videos" / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "videos" / "run" / name).touch()
    arguments = PrepareArguments(
        source=str(folder / "videos"), output_dir=str(folder), frame_store="raw", frame_size=16
    )
    settings = {name: value for name, value in vars(arguments).items() if name != "task"}
    settings |= report.pop("settings", {})
    (folder / "preparation.json").write_text(json.dumps({"settings": settings, "bad_videos": [], **report}))
    return folder


def test_files_that_were_read_rightly_are_compared_once_and_the_report_stays(compared, tmp_path):
    folder = report_of(tmp_path, "a.mp4", "b.mp4")
    for _ in range(2):
        check_kept_frames(folder)
    assert compared == ["a.mp4", "b.mp4"]
    report = json.loads((folder / "preparation.json").read_text())
    assert (report["reader"], report["bad_videos"]) == (READER_VERSION, [])
    assert (report["settings"]["frame_store"], report["settings"]["frame_size"]) == ("raw", 16)


@pytest.mark.parametrize(
    ("number", "listed"),
    [
        (1, r"m0\.mp4 \(it is mirrored\)\. Prepare"),
        (5, r"m0.mp4 \(it is mirrored\), .*, [^,]*m4\.mp4 \(it is mirrored\)\. Prepare"),
        (6, r"m0.mp4 .*m4\.mp4 \(it is mirrored\) and 1 more\. Prepare"),
        (7, r"m0.mp4 \(it is mirrored\), .*, [^,]*m4\.mp4 \(it is mirrored\) and 2 more\. Prepare"),
    ],
)
def test_files_that_were_read_wrongly_are_named_up_to_five(compared, tmp_path, number, listed):
    folder = report_of(tmp_path, "a.mp4", *(f"m{place}.mp4" for place in range(number)))
    message = rf"keeps frames of {number} files that version 0\.1 read wrongly: .*{listed} the data again with clipfsar"
    with pytest.raises(ValueError, match=message):
        check_kept_frames(folder)
    assert len(compared) == number + 1
    assert "reader" not in json.loads((folder / "preparation.json").read_text())


def test_what_keeps_no_frames_of_that_reader_is_not_compared(compared, tmp_path):
    check_kept_frames(tmp_path)
    check_kept_frames(report_of(tmp_path / "paths", "m.mp4", settings={"frame_store": "none"}))
    check_kept_frames(report_of(tmp_path / "newer", "m.mp4", reader=READER_VERSION))
    (tmp_path / "gone").mkdir()
    check_kept_frames(report_of(tmp_path / "gone"))  # its source is no longer there
    check_kept_frames(report_of(tmp_path / "hub", "m.mp4", settings={"source": "owner/name"}))
    assert compared == []


def test_a_report_that_cannot_be_written_is_compared_each_time(compared, tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(older_reader, "replace_file", refused)
    folder = report_of(tmp_path, "a.mp4")
    for _ in range(2):
        check_kept_frames(folder)
    assert compared == ["a.mp4", "a.mp4"]


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"settings": []}'])
def test_a_damaged_report_says_what_to_do(text, tmp_path):
    (tmp_path / "preparation.json").write_text(text)
    with pytest.raises(
        DamagedFileError, match=r"preparation\.json is damaged .*: prepare the data again, or delete this"
    ):
        check_kept_frames(tmp_path)
