"""What a page leaves behind when it is killed. Needs neither gradio nor a browser."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from clipfsar.page.folder import temporary_folder

fcntl = pytest.importorskip("fcntl", reason="without locks, nothing is taken for abandoned")
PAGE = (
    "import time; from clipfsar.page.folder import temporary_folder\n"
    "with temporary_folder() as folder:\n"
    "    (folder / 'uploads').mkdir(); (folder / 'uploads' / 'clip.mp4').touch(); print(folder, flush=True)\n"
    "    time.sleep(60)"
)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a process that has a folder of a page in `tmp_path`, as this process will."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    pages = []

    def start() -> tuple[subprocess.Popen, Path]:
        pages.append(subprocess.Popen([sys.executable, "-c", PAGE], env=environment, stdout=subprocess.PIPE, text=True))
        return pages[-1], Path(pages[-1].stdout.readline().rstrip("\n"))

    yield start
    for page in pages:
        page.kill()
        page.communicate()


def make_older(folder):
    os.utime(folder / ".lock", (0, 0))


def test_the_clips_of_a_killed_page_go_when_the_next_one_starts_and_those_of_a_running_one_stay(start, tmp_path):
    killed, left = start()
    _, kept = start()
    make_older(left)
    make_older(kept)
    killed.kill()
    killed.wait()
    assert (left / "uploads" / "clip.mp4").exists()
    with temporary_folder() as own:
        assert {path.name for path in tmp_path.iterdir()} == {own.name, kept.name}
        assert (kept / "uploads" / "clip.mp4").exists()
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


@pytest.mark.parametrize("kind", ["without a lock", "a link", "of somebody else", "new"])
def test_a_folder_that_no_page_of_this_user_left_stays(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / ("mine" if kind == "a link" else "clipfsar_page_1")
    folder.mkdir()
    (folder / "clip.mp4").touch()
    if kind == "a link":
        (tmp_path / "clipfsar_page_1").symlink_to(folder)
    if kind != "without a lock":
        (folder / ".lock").touch()
    if kind in ("a link", "of somebody else"):
        make_older(folder)
    if kind == "of somebody else":
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with temporary_folder():
        assert (folder / "clip.mp4").exists()
    assert (folder / "clip.mp4").exists()


def test_a_folder_without_locks_is_used_without_a_word(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("clipfsar.locks.fcntl", None)
    with temporary_folder() as folder:
        assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
    assert list(recwarn) == []
