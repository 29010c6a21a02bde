"""Allows one writer at a time in a folder, or several that share the work.

The kernel keeps the lock and releases it when its process ends or dies.
"""

import contextlib
import errno
import json
import os
import socket
import time
import warnings
import weakref
from pathlib import Path

from paths_clipfsar import check_local

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # mypy's way to say that a module may be missing

LOCK_NAME = ".lock"
SECONDS_BETWEEN_TRIES = 0.2
# Errors of file systems that do not support locks.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_held: weakref.WeakSet = weakref.WeakSet()


class FolderInUseError(ValueError):
    """Raised if another process writes to a folder. The message names the process and the remedy."""


class FolderLock:
    """Holds the lock of a folder in a `with` block. Others who ask for the same lock have to wait.

    The lock is `flock` on the file `.lock` in the folder; the file is removed at the end. A killed process leaves the
    file behind, but not the lock. The lock works across machines if the network file system supports that. If `flock`
    is not supported at all, a warning says so and nothing is locked. You can enter the same object again.

    Args:
        folder: The folder; it is created if it does not exist.
        doing: What the holder does, for the error message of other processes: "trains", "encodes videos".
        remedy: What other processes can do, for their error message.
        wait_seconds: How long to wait for another holder; None waits without a limit.
        is_shared: Whether other shared locks of the folder may be held at the same time, but no lock of one holder.

    Raises:
        ValueError: If the folder is an address, such as s3://BUCKET/FOLDER.
    """

    def __init__(
        self, folder: str | Path, doing: str, remedy: str, wait_seconds: float | None = 0, is_shared: bool = False
    ):
        check_local(folder)
        self.folder, self.doing, self.remedy, self.wait_seconds = Path(folder), doing, remedy, wait_seconds
        self.is_shared = is_shared
        self._depth, self._made_folder = 0, False
        self._descriptor: int | None = None

    def __enter__(self) -> "FolderLock":
        """Raises `FolderInUseError` if another holder keeps the lock longer than `wait_seconds`."""
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
            self._warn_not_locked("this system has no flock")
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
        """Tries to take the lock. Returns True if it is held now, or if this file system has no locks."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if self.is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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
                self._warn_not_locked(error.strerror or str(error))
                return True
            os.close(descriptor)  # the last holder removed this file: lock the new one
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
            if self._is_last_holder(self._descriptor):
                self._path.unlink(missing_ok=True)  # before unlocking: then it could be the file of the next holder
            os.close(self._descriptor)
            self._descriptor = None
        if self._made_folder:
            with contextlib.suppress(OSError):  # it is not empty: something was written
                self.folder.rmdir()

    def _is_last_holder(self, descriptor: int) -> bool:
        """Whether nobody else holds this lock. While others share it, the file must stay."""
        if not self.is_shared:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return _is_at(descriptor, self._path)

    def _holder(self) -> str:
        try:
            holder = json.loads(self._path.read_text())
            return "process {pid} on {host} {doing} there since {since}".format(**holder)
        except (OSError, ValueError, KeyError, TypeError):  # it is being written, or another machine hides it
            return "another process writes there"

    def _warn_not_locked(self, reason: str):
        warnings.warn(
            f"{self.folder} cannot be locked ({reason}): make sure that only one process writes there.",
            stacklevel=5,
        )

    def _forget(self):
        """Drops the lock in a forked child, which would otherwise keep it after its parent is killed."""
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
