"""Limits on what is read: a file of a few kilobytes may announce any number of pixels, frames or bytes.

Each limit has a default here and an environment variable that sets another, `CLIPFSAR_MAX_FRAME_PIXELS` for
`frame_pixels`. The processes that read videos go by it too. Imports nothing but Python.
"""

import os
import stat

LIMITS = {
    "frame_pixels": 2**26,  # of a frame or an image; 8K is half of that
    "clip_bytes": 2**32,  # of the chosen frames of a video, or of frames resized for a store
    "frames": 5_000_000,  # of a video: 46 hours at 30 frames per second
    "edited_samples": 20_000_000,  # entries of an edit list times frames; FFmpeg keeps 24 bytes for each
    "file_bytes": 2**32,  # of a file read into memory: a download, a frame archive
    "json_bytes": 2**24,  # of a description: JSON takes up to thirty times its size in memory
    "download_seconds": 600,  # from the first byte asked for to the last one that came
    "reader_bytes": 2**33,  # memory of a process that reads videos
}


class UnreadableError(Exception):
    """A reason of our own why a video cannot be read, as opposed to a decoder's. Names no file."""


def variable_of(name: str) -> str:
    """The environment variable that sets a limit."""
    return f"CLIPFSAR_MAX_{name.upper()}"


def limit(name: str) -> int:
    """The value of a limit.

    Raises:
        ValueError: When its environment variable holds anything but a whole number of at least 1.
    """
    text = os.environ.get(variable_of(name))
    if text is None:
        return LIMITS[name]
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) < 1:
        raise ValueError(f"{variable_of(name)}={text!r} must be a whole number from 1 to 10**18: correct or unset it.")
    return int(text)


def set_limits() -> dict[str, str]:
    """The variables of limits that are set, to hand on to a process that runs already."""
    return {variable_of(name): os.environ[variable_of(name)] for name in LIMITS if variable_of(name) in os.environ}


def take_limits(variables: dict[str, str]) -> None:
    """Sets the variables of limits as they are in another process (`set_limits`)."""
    for name in LIMITS:
        os.environ.pop(variable_of(name), None)
    os.environ.update(variables)


def check_limit(name: str, value: int, words: str) -> None:
    """Raises `UnreadableError` for a value above a limit: `words`, which name the value, then limit and remedy."""
    if value > limit(name):
        raise UnreadableError(f"{words}, more than the limit of {limit(name)} ({variable_of(name)} sets another)")


def check_frame_size(width: int, height: int) -> None:
    """Raises `UnreadableError` for frames or images without pixels, or with more than the limit."""
    if width < 1 or height < 1:
        raise UnreadableError(f"its frames are {width} x {height} pixels, but at least 1 x 1 is needed")
    num_pixels = width * height
    check_limit("frame_pixels", num_pixels, f"its frames of {width} x {height} have {num_pixels} pixels")


def check_clip_size(num_frames: int, width: int, height: int) -> None:
    """Raises `UnreadableError` when RGB frames of a size take more bytes than the limit."""
    num_bytes = 3 * num_frames * width * height
    check_limit("clip_bytes", num_bytes, f"{num_frames} frames of {width} x {height} pixels take {num_bytes} bytes")


def check_regular_file(path: str | os.PathLike) -> int:
    """The size of a regular file in bytes; nothing is opened.

    Raises:
        UnreadableError: For pipes, devices and sockets, which may block for ever or never end, and for folders.
        OSError: For what is not there.
        ValueError: For a path that no file can have.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("it is no regular file")
    return status.st_size


def read_file(path: str | os.PathLike, name: str = "file_bytes") -> bytes:
    """All bytes of a regular file within a limit; raises as `check_regular_file` and `check_limit` do."""
    num_bytes = check_regular_file(path)
    check_limit(name, num_bytes, f"the file has {num_bytes} bytes")
    with open(path, "rb") as file:
        return file.read()


__all__ = [
    "LIMITS",
    "UnreadableError",
    "check_clip_size",
    "check_frame_size",
    "check_limit",
    "check_regular_file",
    "limit",
    "read_file",
    "set_limits",
    "take_limits",
    "variable_of",
]
