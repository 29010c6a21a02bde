"""One writer at a time: refused or waiting in one sentence, and free again however the holder ends."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from clipfsar import locks
from clipfsar.locks import LOCK_NAME, FolderInUseError, FolderLock

ROOT = Path(__file__).resolve().parents[1]
# A child that imports nothing but the lock itself.
HOLDER = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("locks", sys.argv[1])
locks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locks)
lock = locks.FolderLock(sys.argv[2], "trains", "Wait").__enter__()
print("locked", flush=True)
sys.stdin.readline()
lock.__exit__()
"""


def lock(folder, wait_seconds=0) -> FolderLock:
    return FolderLock(folder, "trains", "Wait until it has ended", wait_seconds)


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds the lock of a folder until it gets a line."""
    children = []

    def start(folder):
        arguments = [sys.executable, "-c", HOLDER, str(ROOT / "clipfsar" / "locks.py"), str(folder)]
        child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(child)
        assert child.stdout.readline() == "locked\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_the_second_is_refused_with_host_process_folder_and_remedy(hold, tmp_path):
    child = hold(tmp_path / "run")
    expected = (
        rf"run is in use: process {child.pid} on {socket.gethostname()} trains there since \d{{4}}-.*\. Wait until it "
        r"has ended\.$"
    )
    with pytest.raises(FolderInUseError, match=expected), lock(tmp_path / "run"):
        pass
    child.communicate("\n")
    with lock(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_NAME).is_file()


def test_a_killed_holder_blocks_nobody(hold, tmp_path):
    child = hold(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (tmp_path / LOCK_NAME).is_file()  # it is left, but nobody holds it
    with lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_NAME).read_text()
    assert list(tmp_path.iterdir()) == []


def test_whoever_waits_goes_on_when_the_holder_has_ended(hold, tmp_path, monkeypatch):
    child = hold(tmp_path)
    monkeypatch.setattr(locks, "SECONDS_BETWEEN_TRIES", 0.01)
    sleep = time.sleep

    def let_go(seconds):
        if child.stdin and not child.stdin.closed:
            child.communicate("\n")
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", let_go)
    with pytest.warns(UserWarning, match=rf"Waiting for .*: process {child.pid} on "), lock(tmp_path, None):
        assert (tmp_path / LOCK_NAME).is_file()


def test_waiting_ends_where_it_is_limited(hold, tmp_path, monkeypatch):
    hold(tmp_path)
    monkeypatch.setattr(locks, "SECONDS_BETWEEN_TRIES", 0.01)
    with pytest.warns(UserWarning, match="Waiting"), pytest.raises(FolderInUseError), lock(tmp_path, 0.05):
        pass


def test_two_in_one_process_are_two_and_one_object_can_be_entered_again(tmp_path):
    first, second = lock(tmp_path / "new"), lock(tmp_path / "new")
    with first, first, pytest.raises(FolderInUseError, match=f"process {os.getpid()}"), second:
        pass
    assert not (tmp_path / "new").exists()  # nothing was written, so nothing is left
    with second:
        (tmp_path / "new" / "file").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_the_file_of_a_holder_that_just_ended_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """Who opened it before it was removed gets a lock on a file that no one else will ever see."""
    flock, first = fcntl.flock, lock(tmp_path)
    first.__enter__()

    def end_of_the_first(descriptor, operation):
        if first._depth:
            first.__exit__()
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", end_of_the_first)
    with lock(tmp_path), pytest.raises(FolderInUseError), lock(tmp_path):
        pass


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path):
    held = lock(tmp_path).__enter__()
    reader, writer = os.pipe()
    from_child, to_parent = os.pipe()
    child = os.fork()
    if not child:  # as a worker that outlives its parent
        os.close(writer)
        os.write(to_parent, b"!")
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    os.read(from_child, 1)  # it runs
    os.close(held._descriptor)  # as the kernel does for a killed process: the file stays
    held._descriptor = None
    try:
        with lock(tmp_path):
            pass
    finally:
        os.close(writer)
        os.waitpid(child, 0)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_and_written_to(code, tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    expected = "cannot be locked .*: make sure that only one process"
    with pytest.warns(UserWarning, match=expected) as notices, lock(tmp_path):
        assert list(tmp_path.iterdir()) == []
    assert len(notices) == 1


def test_a_disk_that_fails_is_no_missing_support(tmp_path, monkeypatch):
    def fails(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(OSError, match="Input/output"), lock(tmp_path):
        pass


def test_without_flock_there_is_a_notice(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.warns(UserWarning, match="cannot be locked"), lock(tmp_path):
        pass


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path):
    with warnings.catch_warnings(), lock(tmp_path) as held:
        held._path.write_bytes(b"\xff{")
        with pytest.raises(FolderInUseError, match="in use: another process writes there"), lock(tmp_path):
            pass


def test_shared_locks_go_together_and_with_no_lock_of_one_holder(tmp_path):
    folder = tmp_path / "run"
    first, second = (FolderLock(folder, "reads a shard", "Wait", is_shared=True) for _ in range(2))
    with first:
        with second, pytest.raises(FolderInUseError, match="reads a shard there since"), lock(folder):
            pass
        assert (folder / LOCK_NAME).exists()  # the first one still holds it
        with pytest.raises(FolderInUseError), lock(folder):
            pass
    assert not folder.exists()
    with lock(folder), pytest.raises(FolderInUseError, match="trains there since"), first:
        pass
