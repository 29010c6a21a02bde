"""Which visitor uses which upload. Needs neither gradio nor a browser."""

import os
import time
from pathlib import Path

import pytest

from clipfsar.page.guard import remove_unclaimed
from clipfsar.page.uploads import Uploads


def upload(path, content=b"clip"):
    """As gradio does it: equal files get one path, and the last upload replaces the others."""
    new = path.with_name("upload")
    new.write_bytes(content)
    new.rename(path)
    return str(path)


def test_uploads_go_with_the_last_visitor_who_holds_them(tmp_path):
    shared, own = upload(tmp_path / "shared.mp4"), upload(tmp_path / "own.mp4")
    uploads = Uploads(seconds_to_claim=0)
    uploads.keep("one", shared, own)
    uploads.keep("two", shared)
    uploads.release("one")  # nothing named, nothing deleted
    assert (tmp_path / "own.mp4").exists()
    uploads.forget("one")
    assert [path.name for path in tmp_path.iterdir()] == ["shared.mp4"]
    uploads.release("two", shared)
    assert list(tmp_path.iterdir()) == []
    assert uploads.paths == {}


def test_a_file_that_somebody_uploads_again_stays_for_that_visitor(tmp_path):
    uploads = Uploads(seconds_to_claim=0)
    path = upload(tmp_path / "clip.mp4")
    uploads.keep("one", path)
    upload(tmp_path / "clip.mp4")  # by another visitor, whose `keep` comes later
    uploads.release("one", path)
    assert (tmp_path / "clip.mp4").exists()
    uploads.keep("two", path)
    uploads.release("two", path)
    assert not (tmp_path / "clip.mp4").exists()


def test_a_visitor_whose_keep_comes_after_the_release_of_another_gets_the_file(tmp_path):
    uploads = Uploads(seconds_to_claim=0.3)
    path = upload(tmp_path / "clip.mp4")
    uploads.keep("one", path)
    uploads.release("one", path)
    uploads.keep("two", path)
    time.sleep(0.6)
    assert (tmp_path / "clip.mp4").exists()
    uploads.forget("two")
    for _ in range(50):
        if not (tmp_path / "clip.mp4").exists():
            break
        time.sleep(0.1)
    assert not (tmp_path / "clip.mp4").exists()


def test_nobody_deletes_a_file_without_holding_it(tmp_path):
    path = upload(tmp_path / "clip.mp4")
    Uploads(seconds_to_claim=0).release("one", path)
    assert (tmp_path / "clip.mp4").exists()


def test_a_missing_file_is_not_held(tmp_path):
    uploads = Uploads()
    uploads.keep("one", str(tmp_path / "clip.mp4"))
    assert uploads.paths == {}


def test_a_folder_is_no_upload_and_what_cannot_be_deleted_does_not_keep_the_others(tmp_path, monkeypatch):
    first, second = upload(tmp_path / "1.mp4"), upload(tmp_path / "2.mp4")
    uploads = Uploads(seconds_to_claim=0)
    uploads.keep("one", str(tmp_path), first, second)
    assert list(uploads.paths["one"]) == [first, second]
    unlink = Path.unlink

    def fail_once(path, missing_ok=False):
        monkeypatch.setattr(Path, "unlink", unlink)
        raise PermissionError(13, "in use")

    monkeypatch.setattr(Path, "unlink", fail_once)
    uploads.forget("one")
    assert [path.name for path in tmp_path.iterdir()] == ["1.mp4"]


def test_a_file_that_cannot_be_deleted_now_does_not_end_the_watch(tmp_path, monkeypatch):
    (tmp_path / "old.mp4").touch()
    with monkeypatch.context() as now:
        now.setattr("clipfsar.page.guard.time.time", lambda: (tmp_path / "old.mp4").stat().st_mtime + 3600)
        now.setattr(Path, "unlink", lambda path, missing_ok=False: os.rmdir(path))  # an OSError
        assert remove_unclaimed(tmp_path, ()) == []
        now.undo()
    assert (tmp_path / "old.mp4").exists()


def test_uploads_that_nobody_holds_go_after_minutes(tmp_path):
    old, held, new = (tmp_path / name for name in ("old.mp4", "held.mp4", "new.mp4"))
    for path in (old, held, new):
        path.touch()
    uploads = Uploads()
    uploads.keep("one", str(held))
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr("clipfsar.page.guard.time.time", lambda: new.stat().st_mtime + 3600)
        uploads.remove_unclaimed(tmp_path)
    new.touch()
    uploads.remove_unclaimed(tmp_path)
    assert (old.exists(), held.exists(), new.exists()) == (False, True, True)
