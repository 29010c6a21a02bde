"""Which visitor uses which upload. Needs neither gradio nor a browser."""

import contextlib
import stat
import threading
import time
from pathlib import Path

from clipfsar.page.guard import remove_unclaimed

SECONDS_TO_CLAIM = 10


class Uploads:
    """Records which visitor uses which upload. Files are deleted when used, replaced, or when their visitor leaves.

    Equal files of two visitors are one file. It is deleted when neither uses it. That is decided a few seconds after
    its last use: between an upload and `keep` nobody knows who needs the file.

    Args:
        seconds_to_claim: The time between the last use of a file and its end.
    """

    def __init__(self, seconds_to_claim: float = SECONDS_TO_CLAIM):
        self.paths: dict[str, dict[str, tuple]] = {}  # by visitor: files, and which upload of them
        self._seconds_to_claim = seconds_to_claim
        self._lock = threading.Lock()

    def keep(self, visitor_id: str, *paths: str):
        with self._lock:
            uploads = {path: upload for path in paths if (upload := which_upload(path))}
            if uploads:
                self.paths.setdefault(visitor_id, {}).update(uploads)

    def release(self, visitor_id: str, *paths: str):
        """Releases files of a visitor. Those that nobody else uses are deleted soon."""
        with self._lock:
            held = self.paths.get(visitor_id, {})
            released = {path: held.pop(path) for path in paths if path in held}
            if not held:
                self.paths.pop(visitor_id, None)
        if released and self._seconds_to_claim:
            timer = threading.Timer(self._seconds_to_claim, self._delete_unused, [released])
            timer.daemon = True
            timer.start()
        elif released:
            self._delete_unused(released)

    def _delete_unused(self, released: dict[str, tuple]):
        """Deletes files, except those that somebody uses or has uploaded again."""
        with self._lock:
            for path, upload in released.items():
                if which_upload(path) == upload and not any(path in held for held in self.paths.values()):
                    with contextlib.suppress(OSError):  # `remove_unclaimed` tries again; the other files go now
                        Path(path).unlink(missing_ok=True)

    def forget(self, visitor_id: str):
        """Releases all files of a visitor."""
        self.release(visitor_id, *self.paths.get(visitor_id, ()))

    def remove_unclaimed(self, folder: Path):
        """Deletes files that were uploaded minutes ago and that nobody uses."""
        with self._lock:
            remove_unclaimed(folder, set().union(*self.paths.values()))

    def watch(self, folder: Path, seconds: float = 60):
        """Starts a thread that calls `remove_unclaimed` regularly."""

        def look():
            while True:
                time.sleep(seconds)
                self.remove_unclaimed(folder)

        threading.Thread(target=look, daemon=True).start()


def which_upload(path: str) -> tuple | None:
    """Tells uploads of equal files apart, of which the last one replaces the others.

    None without a file. A folder is no upload: it belongs to all visitors with files in it.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # a name with a null byte
        return None
    return (status.st_ino, status.st_ctime_ns) if stat.S_ISREG(status.st_mode) else None


__all__ = ["Uploads", "which_upload"]
