"""One writer at a time in a folder: a lock that the kernel keeps and that ends with its process, however that ends."""

import contextlib
import errno
import json
import os
import socket
import time
import warnings
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = ".lock"
SECONDS_BETWEEN_TRIES = 0.2
# How a file system says that it has no such locks.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_held: weakref.WeakSet = weakref.WeakSet()


class FolderInUseError(ValueError):
    """Another process writes to a folder; the message says which, and what can be done."""


class FolderLock:
    """`with FolderLock(...):` nobody else who asks for the lock of this folder writes there.

    The lock is `flock` on the file `.lock` in the folder, which is removed at the end. A process that is killed leaves
    the file behind, but not the lock. It holds across machines where the network file system passes `flock` on; where
    it is not supported at all, a warning says so and nothing is locked. The same object can be entered again.

    Args:
        folder: Made if need be.
        doing: What the holder does, for the message of the other: "trains", "encodes videos".
        remedy: What the other one can do, for the message.
        wait_seconds: How long to wait for another holder; None waits as long as it takes.
    """

    def __init__(self, folder: str | Path, doing: str, remedy: str, wait_seconds: float | None = 0):
        self.folder, self.doing, self.remedy, self.wait_seconds = Path(folder), doing, remedy, wait_seconds
        self._depth, self._made_folder = 0, False
        self._descriptor: int | None = None

    def __enter__(self) -> "FolderLock":
        """Raises `FolderInUseError` when another one holds the lock, after `wait_seconds`."""
        if not self._depth:
            self._acquire()
        self._depth += 1
        return self

    def __exit__(self, *_):
        self._depth -= 1
        if not self._depth:
            self._release()

    @property
    def _path(self) -> Path:
        return self.folder / LOCK_NAME

    def _acquire(self):
        self._made_folder = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            self._warn_that_nothing_is_locked("this system has no flock")
            return
        start, is_waiting = time.monotonic(), False
        while not self._try():
            if self.wait_seconds is not None and time.monotonic() - start >= self.wait_seconds:
                raise FolderInUseError(f"{self.folder} is in use: {self._holder()}. {self.remedy}.")
            if not is_waiting:
                warnings.warn(f"Waiting for {self.folder}: {self._holder()}.", stacklevel=4)
            is_waiting = True
            time.sleep(SECONDS_BETWEEN_TRIES)

    def _try(self) -> bool:
        """Whether the lock is held now, or cannot be had on this file system."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, self._path):
                    break
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError as error:
                os.close(descriptor)
                if error.errno not in _UNSUPPORTED:
                    raise
                self._path.unlink(missing_ok=True)
                self._warn_that_nothing_is_locked(error.strerror)
                return True
            os.close(descriptor)  # the holder before removed this file: the next one is the lock
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "doing": self.doing,
            "since": time.strftime("%F %T"),
        }
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
        self._descriptor = descriptor
        _held.add(self)
        return True

    def _release(self):
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)  # before the lock goes, or it would be another one's file
            os.close(self._descriptor)
            self._descriptor = None
        if self._made_folder:
            with contextlib.suppress(OSError):  # something was written
                self.folder.rmdir()

    def _holder(self) -> str:
        try:
            holder = json.loads(self._path.read_text())
            return "process {pid} on {host} {doing} there since {since}".format(**holder)
        except (OSError, ValueError, KeyError, TypeError):  # it is just being written, or another system hides it
            return "another process writes there"

    def _warn_that_nothing_is_locked(self, reason: str):
        warnings.warn(
            f"{self.folder} cannot be locked ({reason}): see to it yourself that one process at a time writes there.",
            stacklevel=5,
        )

    def _forget(self):
        """In a forked child, which would keep the lock when its parent is killed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._depth, self._descriptor = 0, None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _forget_all():
    for lock in list(_held):
        lock._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

__all__ = ["LOCK_NAME", "FolderInUseError", "FolderLock"]
