"""A video's frames in one file, resized already: what training reads instead of decoding the video again and again.

A frame archive is a zip with a member per kept frame, named by its number in the video (`000012.jpg`, or `.npy` for
uncompressed ones), and `frames.json`, which says of what video they are and what they were resized for. Any zip program
opens it. As the `bytes` of a `datasets` video column it is read wherever a video is.
"""

import io
import json
import zipfile
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

try:
    from .container_clipfsar import READER_VERSION, VideoTimes
except ImportError:
    if __package__:
        raise
    from container_clipfsar import READER_VERSION, VideoTimes

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
    """The archive of a video.

    Args:
        frames: The frames to keep, uint8 (M, H, W, 3).
        indices: Their numbers in the video, rising, (M).
        num_video_frames: Frames of the video, kept or not.
        fps: Frames per second of the video, if known.
        resized_for: What the frames were resized for, of `resize_settings`.
        frame_format: `"jpeg"`, or `"raw"`, which loses nothing and takes about 14 times the space.
        jpeg_quality: 1 to 95.
        times: When the frames of the video are shown, if `num_video_frames` and `fps` do not say it all.
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
    if times is not None and not times.is_constant:
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
    """Reads an archive of `pack_frames`.

    Raises:
        ValueError: For bytes that are no such archive.

    Attributes:
        num_frames: Frames of the *video*. Frames are asked for by their numbers in the video.
        fps: Its frames per second, or None.
        indices: The frames that were kept; the nearest of them stands for one that was not.
        resized_for: What they were resized for.
        times: When the frames of the video are shown.
        reader: Version of the reader that the frames come from; version 0.1 of the library had reader 1.
    """

    def __init__(self, data: bytes):
        try:
            self._file = zipfile.ZipFile(io.BytesIO(data))
            manifest = json.loads(self._file.read("frames.json"))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ValueError(f"it is a zip file, but no frame archive ({error})") from error
        if manifest.get("format") != _FORMAT:
            raise ValueError(f"it is a frame archive of another format, {manifest.get('format')!r}, not {_FORMAT!r}")
        self.num_frames = manifest["num_video_frames"]
        self.fps = manifest["fps"]
        self.reader = manifest.get("reader", 1)
        self.times = VideoTimes.at_rate(self.num_frames, self.fps)
        if "seconds" in manifest:
            seconds = np.array(manifest["seconds"])
            self.times = VideoTimes(self.num_frames, self.fps, seconds, manifest["duration"])
        self.indices = manifest["indices"]
        self.resized_for = manifest["resized_for"]
        self._frame_format = manifest["frame_format"]

    @property
    def is_complete(self) -> bool:
        """Whether every frame of the video was kept."""
        return len(self.indices) == self.num_frames

    def read(self, indices: Sequence[int]) -> torch.Tensor:
        """Frames of the video by their numbers, uint8 (len(indices), H, W, 3)."""
        return torch.from_numpy(np.stack([self._read_frame(self._nearest(index)) for index in indices]))

    def _nearest(self, index: int) -> int:
        position = bisect_left(self.indices, index)
        return min(self.indices[max(position - 1, 0) : position + 1], key=lambda kept: abs(kept - index))

    def _read_frame(self, index: int) -> np.ndarray:
        member = io.BytesIO(self._file.read(_member_name(index, self._frame_format)))
        if self._frame_format == "raw":
            return np.load(member, allow_pickle=False)
        with Image.open(member) as image:
            return np.asarray(image.convert("RGB"))


def _member_name(index: int, frame_format: str) -> str:
    return f"{index:06d}.{'jpg' if frame_format == 'jpeg' else 'npy'}"


def _write(file: zipfile.ZipFile, name: str, data: bytes):
    file.writestr(zipfile.ZipInfo(name), data)  # a fixed date, so that equal frames make equal archives


__all__ = ["FRAME_FORMATS", "FrameArchive", "pack_frames"]
