"""Resized frames of a video in one file. Training reads it instead of decoding the video again and again.

A frame archive is a zip file. It has a member per kept frame, named by the frame number (`000012.jpg`, or `.npy` for
uncompressed frames), and `frames.json`, which describes the video and the resizing. Any zip program opens it. You can
use it as the `bytes` of a `datasets` video column wherever a video is read.
"""

import io
import itertools
import json
import math
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

try:
    from .container_clipfsar import READER_VERSION, VideoTimes, one_line
except ImportError:
    if __package__:
        raise
    from container_clipfsar import READER_VERSION, VideoTimes, one_line

try:
    from .limits_clipfsar import UnreadableError, check_clip_size, check_frame_size, check_limit
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import UnreadableError, check_clip_size, check_frame_size, check_limit

FRAME_FORMATS = ("jpeg", "raw")
_FORMAT = "clipfsar frames 1"


def pack_frames(
    frames: torch.Tensor,
    indices: Sequence[int],
    num_video_frames: int,
    fps: float | None,
    resized_for: dict,
    frame_format: str = "jpeg",
    jpeg_quality: int = 90,
    times: VideoTimes | None = None,
) -> bytes:
    """Returns the bytes of a frame archive.

    Args:
        frames: The frames to keep, uint8 (M, H, W, 3).
        indices: Their numbers in the video, rising, (M).
        num_video_frames: Number of frames in the video, kept or not.
        fps: Frames per second of the video, if known.
        resized_for: The settings that the frames were resized with, from `resize_settings`.
        frame_format: `"jpeg"`, or `"raw"`, which loses nothing and takes about 14 times the space.
        jpeg_quality: 1 to 95.
        times: When the frames of the video are shown. Needed only if the frame rate varies.
    """
    manifest = {
        "format": _FORMAT,
        "num_video_frames": num_video_frames,
        "fps": fps,
        "reader": READER_VERSION,
        "indices": list(indices),
        "frame_format": frame_format,
        "resized_for": resized_for,
    }
    if times is not None and times.seconds is not None:
        manifest |= {"seconds": [round(float(second), 6) for second in times.seconds], "duration": times.duration}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        _write(file, "frames.json", json.dumps(manifest).encode())
        for index, frame in zip(indices, frames.numpy(), strict=True):
            member = io.BytesIO()
            if frame_format == "jpeg":
                Image.fromarray(frame).save(member, "jpeg", quality=jpeg_quality)
            else:
                np.save(member, frame, allow_pickle=False)
            _write(file, _member_name(index, frame_format), member.getvalue())
    return archive.getvalue()


class FrameArchive:
    """Reads an archive written by `pack_frames`. Its content is not trusted: sizes are checked before data are read.

    Raises:
        ValueError: If the bytes are not a frame archive, or a damaged one.
        UnreadableError: If the archive exceeds a limit.

    Attributes:
        num_frames: Number of frames in the *video*. `read` takes frame numbers of the video.
        fps: Its frames per second, or None.
        indices: Numbers of the kept frames. `read` returns the nearest kept frame for one that was not kept.
        resized_for: The settings that the frames were resized with.
        times: When the frames of the video are shown.
        reader: Version of the reader that read the frames. Version 0.1 of the library had reader 1.
    """

    def __init__(self, data: bytes):
        try:
            self._file = zipfile.ZipFile(io.BytesIO(data))
            self._members = {member.filename: member for member in self._file.infolist()}
            manifest = json.loads(self._content("frames.json"))
        except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"it is a zip file, but not a frame archive ({one_line(error)})") from error
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
            raise ValueError(f"it is a frame archive of another format, {found!r}, not {_FORMAT!r}")
        _check_manifest(manifest)
        self.num_frames = manifest["num_video_frames"]
        self.fps = manifest["fps"]
        self.reader = manifest.get("reader", 1)
        self.times = VideoTimes.at_rate(self.num_frames, self.fps)
        if "seconds" in manifest:
            seconds = np.array(manifest["seconds"], float)
            self.times = VideoTimes(self.num_frames, self.fps, seconds, manifest["duration"])
        self.indices = manifest["indices"]
        self.resized_for = manifest["resized_for"]
        self._frame_format = manifest["frame_format"]

    @property
    def is_complete(self) -> bool:
        """Whether every frame of the video was kept."""
        return len(self.indices) == self.num_frames

    def read(self, indices: Sequence[int]) -> torch.Tensor:
        """The frames with these numbers in the video, uint8 (len(indices), H, W, 3)."""
        wanted = [self._nearest(index) for index in indices]
        rows = {index: row for row, index in enumerate(dict.fromkeys(wanted))}
        frames = None
        for index, row in rows.items():
            height, width, pixels = self._open_frame(index)
            if frames is None:  # check the size of all frames before decoding any
                check_clip_size(len(wanted), width, height)
                frames = np.empty((len(rows), height, width, 3), np.uint8)
            if frames.shape[1:3] != (height, width):
                sizes = f"{frames.shape[2]} x {frames.shape[1]} and {width} x {height}"
                raise UnreadableError(f"its frames differ in size: {sizes}")
            frames[row] = pixels()
        frames = torch.from_numpy(frames)
        return frames if len(rows) == len(wanted) else frames[[rows[index] for index in wanted]]

    def _nearest(self, index: int) -> int:
        position = bisect_left(self.indices, index)
        return min(self.indices[max(position - 1, 0) : position + 1], key=lambda kept: abs(kept - index))

    def _content(self, name: str) -> bytes:
        """A member's bytes. Compressed members are refused, so that no member grows when it is read."""
        member = self._members[name]
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UnreadableError(f"its member {name!r} is compressed; frame archives store members uncompressed")
        if name == "frames.json":
            check_limit("json_bytes", member.file_size, f"its frames.json has {member.file_size} bytes")
        return self._file.read(member)

    def _open_frame(self, index: int) -> tuple[int, int, Callable[[], np.ndarray]]:
        """Height and width of a frame, checked, and a function that decodes it."""
        name = _member_name(index, self._frame_format)
        if name not in self._members:
            raise UnreadableError(f"its member {name!r} is missing")
        content = io.BytesIO(self._content(name))
        if self._frame_format == "raw":
            height, width = _size_of_array(content, name)
        else:
            image = Image.open(content, formats=("JPEG",))
            width, height = image.size
        check_frame_size(width, height)
        self._check_announced(height, width, name)
        if self._frame_format == "raw":
            return height, width, lambda: np.frombuffer(content.read(), np.uint8).reshape(height, width, 3)
        return height, width, lambda: np.asarray(image.convert("RGB"))

    def _check_announced(self, height: int, width: int, name: str):
        """Checks that a frame has the size that the archive announces."""
        size = self.resized_for.get("size") or {}
        edge = size.get("shortest_edge")
        expected = (size.get("height", height), size.get("width", width)) if edge is None else edge
        if (min(height, width) if edge is not None else (height, width)) != expected:
            raise UnreadableError(f"its member {name!r} has {width} x {height} pixels, but {size} is announced")


def _check_manifest(manifest: dict):
    """Raises `ValueError` if `pack_frames` would not write this manifest; the message names the wrong entry."""
    entries: list[Any] = [manifest.get(name) for name in ("num_video_frames", "indices", "seconds")]
    num_frames, indices, seconds = entries
    checks = {
        "num_video_frames": lambda: _is_count(num_frames) and num_frames > 0,
        "fps": lambda: manifest["fps"] is None or (_is_finite(manifest["fps"]) and manifest["fps"] > 0),
        "reader": lambda: _is_count(manifest.get("reader", 1)),
        "indices": lambda: (
            isinstance(indices, list)
            and bool(indices)
            and all(map(_is_count, indices))
            and indices[-1] < num_frames
            and all(a < b for a, b in itertools.pairwise(indices))
        ),
        "frame_format": lambda: manifest["frame_format"] in FRAME_FORMATS,
        "resized_for": lambda: _is_resize_settings(manifest["resized_for"]),
        "seconds": lambda: (
            "seconds" not in manifest
            or (
                isinstance(seconds, list)
                and len(seconds) == num_frames
                and all(map(_is_finite, seconds))
                and all(a < b for a, b in itertools.pairwise(seconds))
                and _is_finite(manifest["fps"])
            )
        ),
        "duration": lambda: seconds is None or (_is_finite(manifest.get("duration")) and manifest["duration"] > 0),
    }
    for name, is_sound in checks.items():
        if name not in manifest and name in _NEEDED:
            raise ValueError(f"it is a damaged frame archive: {name!r} is missing in frames.json")
        if not is_sound():
            found = repr(manifest.get(name))
            raise ValueError(f"it is a damaged frame archive: {name!r} is {found[:60]} in frames.json")
    check_limit("frames", num_frames, f"it holds {num_frames} frames")


_NEEDED = {"num_video_frames", "fps", "indices", "frame_format", "resized_for"}


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_finite(value) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 1e18  # False for NaN, and for integers too large for a float


def _is_resize_settings(value) -> bool:
    """Whether a value has the form of `resize_settings`; `{}` announces no size."""
    if not isinstance(value, dict):
        return False
    size = value.get("size")
    return size is None or (isinstance(size, dict) and all(map(_is_count, size.values())))


def _size_of_array(content: io.BytesIO, name: str) -> tuple[int, int]:
    """Height and width of a frame in NumPy's format. `content` is then at its first pixel; no array is created."""
    try:
        version = np.lib.format.read_magic(content)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(content)
    except Exception as error:  # NumPy's parser raises anything
        raise UnreadableError(f"its member {name!r} is not a NumPy array: {one_line(error)}") from error
    num_left = len(content.getbuffer()) - content.tell()
    if dtype != np.uint8 or is_fortran or len(shape) != 3 or shape[-1] != 3 or math.prod(shape) != num_left:
        found = f"{dtype} of shape {shape} in {num_left} bytes"
        raise UnreadableError(f"its member {name!r} is {found}; uint8 (H, W, 3) is needed")
    return shape[:2]


def _member_name(index: int, frame_format: str) -> str:
    return f"{index:06d}.{'jpg' if frame_format == 'jpeg' else 'npy'}"


def _write(file: zipfile.ZipFile, name: str, data: bytes):
    file.writestr(zipfile.ZipInfo(name), data)  # ZipInfo has a fixed date, so equal frames give equal archives


__all__ = ["FRAME_FORMATS", "FrameArchive", "pack_frames"]
