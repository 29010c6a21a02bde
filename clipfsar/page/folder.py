"""The folder of the page's files. Needs neither gradio nor a browser.

The kernel ends a process that takes too much memory, and such a process deletes nothing. Its folder is deleted when the
next page starts.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from clipfsar.locks import LOCK_NAME, FolderInUseError, FolderLock

PREFIX = "clipfsar_page_"
SECONDS_TO_LOCK = 10  # between the file of a lock and the lock itself


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder, which is deleted at the end. Before, those of pages that were killed are deleted."""
    remove_abandoned(Path(tempfile.gettempdir()))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX)))
        with warnings.catch_warnings():  # where there are no locks, nothing is taken for abandoned
            warnings.simplefilter("ignore")
            stack.enter_context(_lock(folder))
        yield folder


def remove_abandoned(parent: Path):
    """Deletes folders of pages in `parent` whose process has gone: nobody holds their lock."""
    for folder in parent.glob(f"{PREFIX}*"):
        if _may_be_abandoned(folder):
            with contextlib.suppress(FolderInUseError, OSError), _lock(folder):  # in use; another page deletes it
                shutil.rmtree(folder)


def _may_be_abandoned(folder: Path) -> bool:
    """Whether this is a real folder of this user, with the file of a lock. Others may write to the parent, too."""
    try:
        status, lock = folder.lstat(), (folder / LOCK_NAME).lstat()
    except OSError:  # without locks (Windows) there is no such file
        return False
    is_own = stat.S_ISDIR(status.st_mode) and stat.S_ISREG(lock.st_mode) and status.st_uid == os.geteuid()
    return is_own and lock.st_mtime < time.time() - SECONDS_TO_LOCK


def _lock(folder: Path) -> FolderLock:
    return FolderLock(folder, "serves the page", "It is deleted when that process ends")


__all__ = ["remove_abandoned", "temporary_folder"]
