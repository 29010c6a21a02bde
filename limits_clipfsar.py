"""Limits on reading files: a file of a few kilobytes may announce any number of pixels, frames or bytes.

Each limit has a default here. An environment variable changes it, for example `CLIPFSAR_MAX_FRAME_PIXELS` for
`frame_pixels`. The processes that read videos follow it as well. This module imports only the standard library.
"""

import os
import stat

LIMITS = {
    "frame_pixels": 2**26,  # pixels of a frame or an image; 8K has half as many
    "clip_bytes": 2**32,  # bytes of the chosen frames of a video, or of frames resized for a store
    "frames": 5_000_000,  # frames of a video: 46 hours at 30 frames per second
    "edited_samples": 20_000_000,  # entries of an edit list times frames; FFmpeg allocates 24 bytes for each
    "file_bytes": 2**32,  # bytes of a file read into memory: a download, a frame archive
    "json_bytes": 2**24,  # bytes of a JSON file, which takes up to thirty times its size in memory
    "xml_bytes": 2**26,  # bytes of an XML file of labels, which takes about ten times its size in memory
    "download_seconds": 600,  # from the request to the last byte
    "reader_bytes": 2**33,  # memory of a process that reads videos
}


class UnreadableError(Exception):
    """A reason why a video cannot be read, found by this library and not by a decoder. Does not name the file."""


def variable_of(name: str) -> str:
    """The environment variable that sets a limit."""
    return f"CLIPFSAR_MAX_{name.upper()}"


def limit(name: str) -> int:
    """The value of a limit.

    Raises:
        ValueError: If its environment variable is not a whole number from 1 to 10**18.
    """
    text = os.environ.get(variable_of(name))
    if text is None:
        return LIMITS[name]
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) < 1:
        raise ValueError(f"{variable_of(name)}={text!r} must be a whole number from 1 to 10**18: correct or unset it.")
    return int(text)


def set_limits() -> dict[str, str]:
    """The environment variables of limits that are set, to pass to a process that already runs."""
    return {variable_of(name): os.environ[variable_of(name)] for name in LIMITS if variable_of(name) in os.environ}


def take_limits(variables: dict[str, str]) -> None:
    """Sets the environment variables of limits to those of another process (from its `set_limits`)."""
    for name in LIMITS:
        os.environ.pop(variable_of(name), None)
    os.environ.update(variables)


def check_limit(name: str, value: int, words: str) -> None:
    """Raises `UnreadableError` if a value is above a limit. The message is `words`, then the limit and the remedy."""
    if value > limit(name):
        raise UnreadableError(f"{words}, more than the limit of {limit(name)} (set {variable_of(name)} to change it)")


def check_frame_size(width: int, height: int) -> None:
    """Raises `UnreadableError` for a frame or image without pixels, or with more pixels than the limit."""
    if width < 1 or height < 1:
        raise UnreadableError(f"its frames are {width} x {height} pixels, but at least 1 x 1 is needed")
    num_pixels = width * height
    check_limit("frame_pixels", num_pixels, f"its frames of {width} x {height} have {num_pixels} pixels")


def check_clip_size(num_frames: int, width: int, height: int) -> None:
    """Raises `UnreadableError` if RGB frames of this size take more bytes than the limit."""
    num_bytes = 3 * num_frames * width * height
    check_limit("clip_bytes", num_bytes, f"{num_frames} frames of {width} x {height} pixels take {num_bytes} bytes")


def check_regular_file(path: str | os.PathLike) -> int:
    """The size of a regular file in bytes. The file is not opened.

    Raises:
        UnreadableError: For folders, and for pipes, devices and sockets, which may block or never end.
        OSError: If the path does not exist.
        ValueError: For a path that no file can have.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("it is not a regular file")
    return status.st_size


def read_file(path: str | os.PathLike, name: str = "file_bytes") -> bytes:
    """All bytes of a regular file. Raises the errors of `check_regular_file` and `check_limit`."""
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
