"""Videos and class names to the inputs of a CLIP-FSAR model: frame sampling, video reading, preprocessing, prompts.

Read from top to bottom: which frames (pure index arithmetic), reading them (decord, torchcodec, PyAV, folders, arrays),
turning them into pixel values, and `CLIPFSARProcessor`, which ties these together for one episode. Letters in shapes:
V videos, S support videos, Q query videos, T frames per video, N classes, L tokens, C = 3 channels, H and W pixels.
"""

import functools
import http.client
import importlib
import io
import math
import numbers
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoProcessor, PretrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

try:
    from .frame_archive_clipfsar import ZIP_MAGIC, FrameArchive
except ImportError:
    if __package__:
        raise
    from frame_archive_clipfsar import ZIP_MAGIC, FrameArchive

FRAME_SAMPLINGS = ("segment_center", "segment_random", "interval")
PREPROCESSINGS = ("clip", "official")
QUERY_AUGMENTATIONS = ("none", "kinetics")
DECODERS = ("decord", "torchcodec", "av")  # the order in which decoder="auto" tries them
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DOWNLOAD_TIMEOUT_SECONDS = 60
KEPT_PACKET_BYTES = 2**25  # of a video that PyAV has looked through, until its frames are read


# --- which frames -----------------------------------------------------------------------------------------------------


def sample_frame_indices(
    num_video_frames: int,
    num_frames: int,
    sampling: str = "segment_center",
    *,
    fps: float | None = None,
    sampling_rate: float = 35,
    target_fps: float = 12,
    generator: torch.Generator | None = None,
) -> list[int]:
    """The `num_frames` frames to take out of a video of `num_video_frames`, in rising order.

    - `"segment_center"`: the middle frame of each of `num_frames` equal segments; deterministic.
    - `"segment_random"`: one uniformly random frame out of each segment of `num_video_frames // num_frames` frames,
      drawn from `generator` (official for SSv2, HMDB51 and UCF101, in training and in test).
    - `"interval"`: evenly spaced frames of a clip of `num_frames * sampling_rate` frames at `target_fps` (official for
      Kinetics-100). With a `generator` the clip starts at random (training), without one it is centred (test). `fps`,
      the video's frames per second, is needed.

    A video of fewer frames than `num_frames` gives all of them, some repeated, in order; one of exactly `num_frames`
    gives each once. (The official program breaks on shorter ones.)

    Raises `ValueError` for counts or rates below their limits, for an unknown `sampling`, and for `"interval"` without
    `fps`.
    """
    _check_choice("sampling", sampling, FRAME_SAMPLINGS)
    _check_positive_integer("num_frames", num_frames)
    if num_video_frames < 1:
        raise ValueError(f"num_video_frames={num_video_frames}, but at least 1 frame is needed to sample from.")

    if sampling == "segment_center" or num_video_frames <= num_frames:
        # floor((i + 1/2) * num_video_frames / num_frames) in whole numbers
        return [(2 * i + 1) * num_video_frames // (2 * num_frames) for i in range(num_frames)]
    if sampling == "segment_random":
        segment_length = num_video_frames // num_frames
        offsets = torch.randint(segment_length, (num_frames,), generator=generator).tolist()
        return [i * segment_length + offset for i, offset in enumerate(offsets)]

    if fps is None or not math.isfinite(fps) or fps <= 0:
        raise ValueError(
            f"sampling='interval' needs the video's frames per second, got fps={fps}: pass fps=, or choose "
            "'segment_center' or 'segment_random', which do not depend on it."
        )
    if sampling_rate <= 0 or target_fps <= 0:
        raise ValueError(f"sampling_rate={sampling_rate} and target_fps={target_fps} must be greater than 0.")
    clip_length = num_frames * sampling_rate * fps / target_fps
    if clip_length > num_video_frames:
        clip_length = num_video_frames // num_frames * num_frames
    latest_start = num_video_frames - clip_length
    # float64: in float32 a start within half a rounding step of the next whole frame could tip over
    position = 0.5 if generator is None else torch.rand((), generator=generator, dtype=torch.float64).item()
    start = position * latest_start
    # The official program takes off sampling_rate unscaled by the frame rate, and so do we: parity is exact.
    end = start + clip_length - sampling_rate
    if end < start:
        # Deviation: for clips shorter than sampling_rate the official program runs backwards. Spread over the clip.
        end = start + clip_length - 1
    step = (end - start) / max(num_frames - 1, 1)
    indices = [math.floor(start + i * step + 0.5) for i in range(num_frames)]
    return [min(max(index, 0), num_video_frames - 1) for index in indices]


# --- reading videos ---------------------------------------------------------------------------------------------------


class VideoReadError(ValueError):
    """A video that cannot be read, whatever the reason; `path` says which (None for one given as bytes or frames)."""

    def __init__(self, message: str, path: str | None = None):
        # One required argument: DataLoader workers rebuild an exception from its message alone.
        super().__init__(message)
        self.path = path


class _Unreadable(Exception):
    """A reason of our own, as opposed to a decoder's."""


class _EndsEarly(_Unreadable):
    """The decoder delivered fewer frames than the container announced."""

    def __init__(self, num_decoded: int):
        super().__init__(f"decoding ended after {num_decoded} frames")
        self.num_decoded = num_decoded


@functools.cache
def _load_decoder(name: str):
    """The decoder's module and None, or None and why it does not import (a broken installation raises anything)."""
    try:
        module = importlib.import_module({"torchcodec": "torchcodec.decoders"}.get(name, name))
    except Exception as error:
        return None, _one_line(error)
    if name == "decord":
        module.logging.set_level(module.logging.QUIET)  # its FFmpeg otherwise writes to stderr on every damaged file
    return module, None


# A reader opens one video, says num_frames and fps, and reads rising indices. `can_seek`: whether the container states
# every frame's time, as mp4 and matroska do. In avi and MPEG streams both decord and torchcodec jump to wrong frames.


class _DecordReader:
    def __init__(self, source, num_threads: int, can_seek: bool = True):
        decord, _ = _load_decoder("decord")
        source = io.BytesIO(source) if isinstance(source, bytes) else source
        # Without fault_tol, decord replaces frames it cannot decode by their neighbours and says nothing.
        self._reader = decord.VideoReader(source, num_threads=num_threads, fault_tol=1e-9)
        self.num_frames = len(self._reader)
        self.fps = float(self._reader.get_avg_fps())
        if self.num_frames and -1e9 < self._reader.get_frame_timestamp(0)[0] < 0:  # (avi states none: -3.7e17)
            # Typical of clips cut without re-encoding: decord counts the hidden frames and returns shifted ones.
            raise _Unreadable("decord cannot follow its edit list (frames before time 0 are hidden)")
        self._can_seek = can_seek

    def read(self, indices: list[int]) -> torch.Tensor:
        # asnumpy, because decord's torch bridge is a setting of the whole process
        if self._can_seek:
            return torch.from_numpy(self._reader.get_batch(indices).asnumpy())
        frames = []
        for index in range(indices[-1] + 1):  # one after the other it never seeks
            frame = self._reader.get_batch([index]).asnumpy()
            if index == indices[len(frames)]:
                frames.append(frame[0])
        return torch.from_numpy(np.stack(frames))


class _TorchcodecReader:
    """Also wraps a decoder that is already open, as in the rows of a `datasets.Video()` column."""

    def __init__(self, source, num_threads: int, can_seek: bool = True):
        if not hasattr(source, "get_frames_at"):
            decoders, _ = _load_decoder("torchcodec")
            # exact: approximate mode returns wrong frames where the frame rate varies
            source = decoders.VideoDecoder(source, seek_mode="exact", num_ffmpeg_threads=num_threads)
            if not can_seek:
                raise _Unreadable("torchcodec finds frames reliably only in mp4 and matroska (use av or decord)")
        self._decoder = source
        self.num_frames = source.metadata.num_frames or 0
        self.fps = source.metadata.average_fps

    def read(self, indices: list[int]) -> torch.Tensor:
        frames = self._decoder.get_frames_at(indices=indices).data
        return frames if frames.shape[-1] == 3 else frames.permute(0, 2, 3, 1)


class _PyAVReader:
    def __init__(self, source, num_threads: int, can_seek: bool = True):
        self._source = source
        self._num_threads = num_threads
        container = self._open()
        stream = self._video_stream(container)
        self.fps = float(stream.average_rate) if stream.average_rate else None
        # stream.frames is 0 for webm and fragmented mp4, and counts frames that an edit list hides: count packets.
        # A clip's are kept to be decoded, which saves opening it a second time.
        self.num_frames, self._kept, num_bytes = 0, [], 0
        for packet in container.demux(stream):
            self.num_frames += packet.size > 0 and not packet.is_discard
            num_bytes += packet.size
            if num_bytes <= KEPT_PACKET_BYTES:
                self._kept.append(packet)
        self._container = container
        if num_bytes > KEPT_PACKET_BYTES:
            self._kept, self._container = None, None

    def _open(self):
        av, _ = _load_decoder("av")
        return av.open(io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source)

    def _video_stream(self, container):
        streams = [stream for stream in container.streams.video if not _is_cover_art(stream)]
        if not streams:
            raise _Unreadable("it has no video stream")
        streams[0].codec_context.thread_count = self._num_threads
        return streams[0]

    def read(self, indices: list[int]) -> torch.Tensor:
        return torch.from_numpy(np.stack(list(self.stream(indices))))

    def stream(self, indices: list[int]) -> Iterator[np.ndarray]:
        # Sequentially up to the last wanted frame: seeking returned wrong frames. Only wanted ones become RGB.
        num_wanted, num_decoded, size = 0, 0, {}
        packets, container = self._kept, self._container
        self._kept = self._container = None  # a decoder that has seen the end decodes nothing more
        if packets is None:
            container = self._open()
            packets = container.demux(self._video_stream(container))
        with container:
            for frame in (frame for packet in packets for frame in packet.decode()):
                if num_decoded == indices[num_wanted]:
                    if frame.is_corrupt:
                        raise _Unreadable(f"frame {num_decoded} is damaged")
                    size = size or {"width": frame.width, "height": frame.height}  # it may change within a stream
                    image = frame.to_ndarray(format="rgb24", **size)
                    # degrees counter-clockwise in which the file asks to be shown; PyAV tells since 14.1
                    yield np.rot90(image, k=round(getattr(frame, "rotation", 0) / 90))
                    num_wanted += 1
                    if num_wanted == len(indices):
                        return
                num_decoded += 1
        raise _EndsEarly(num_decoded)


def _is_cover_art(stream) -> bool:
    """Whether a PyAV stream is the picture in a music file, which counts as a video of one frame."""
    flags = getattr(stream, "disposition", 0)  # since PyAV 14.1; a Flag there, an IntFlag later
    return bool(getattr(flags, "value", flags) & 0x400)  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC


_READERS = {"decord": _DecordReader, "torchcodec": _TorchcodecReader, "av": _PyAVReader}


class _FrameFiles:
    """A folder of frames: image files in natural order (frame_2 before frame_10)."""

    fps = None

    def __init__(self, folder: str):
        names = [name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
        names.sort(key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)])
        self._paths = [os.path.join(folder, name) for name in names]
        self.num_frames = len(names)

    def read(self, indices: list[int]) -> torch.Tensor:
        frames = []
        for index in indices:
            try:
                with Image.open(self._paths[index]) as image:
                    frames.append(np.asarray(image.convert("RGB")))
            except Exception as error:
                name = os.path.basename(self._paths[index])
                raise _Unreadable(f"frame file {name!r}: {_one_line(error)}") from error
        return _stack_frames(frames)


class _FramesInMemory:
    """Frames as one array (T, H, W, 3) or (T, 3, H, W), or as a list of PIL images or (H, W, 3) arrays."""

    fps = None

    def __init__(self, frames):
        self._frames = frames
        self.num_frames = len(frames)
        if isinstance(frames, (np.ndarray, torch.Tensor)):
            if not str(frames.dtype).endswith("uint8"):
                raise _Unreadable(f"its frames are {frames.dtype}, but uint8 from 0 to 255 is needed")
            if frames.ndim != 4 or (frames.shape[-1] != 3 and frames.shape[1] != 3):
                raise _Unreadable(f"its frames have shape {tuple(frames.shape)}, but (T, H, W, 3) is needed")

    def read(self, indices: list[int]) -> torch.Tensor:
        if isinstance(self._frames, (np.ndarray, torch.Tensor)):
            # Indexed before it becomes a tensor: the copy is writable and has positive strides, the array may not.
            frames = self._frames[indices]
            frames = torch.from_numpy(frames) if isinstance(frames, np.ndarray) else frames  # a CUDA tensor stays there
            return frames if frames.shape[-1] == 3 else frames.permute(0, 2, 3, 1)
        images = [self._frames[index] for index in indices]
        return _stack_frames(
            [np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image) for image in images]
        )


def _stack_frames(frames: list[np.ndarray]) -> torch.Tensor:
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise _Unreadable(f"its frames differ in size: {sorted(shapes)}")
    frames = torch.from_numpy(np.stack(frames))
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise _Unreadable(
            f"its frames are {frames.dtype} of shape {tuple(frames.shape[1:])}; uint8 (H, W, 3) is needed"
        )
    return frames


def read_video_frames(
    video: Any,
    select_indices: Callable[[int, float | None], Sequence[int]] | Sequence[int],
    decoder: str = "auto",
    num_threads: int = 1,
    check_archive: Callable[[FrameArchive], None] | None = None,
) -> torch.Tensor:
    """Reads the chosen frames of one video, and decodes no others where the format allows it.

    `video` is a path or URL, the bytes of a file, a file object, uint8 frames (numpy or torch, (T, H, W, 3) or
    (T, 3, H, W)), a list of PIL images, a folder of image files, a frame archive (`frame_archive_clipfsar`; where that
    left frames out, the nearest kept one stands for a wanted one), or a value of a `datasets` video column (a
    `{"path", "bytes"}` dict or a torchcodec decoder). `select_indices` is the list of frame indices, or a function that
    makes it from `(num_video_frames, fps)`; `fps` is None where nothing says it. `decoder="auto"` takes the first of
    decord, torchcodec and PyAV that is installed and can read these frames; a decoder asked for by name is the only
    one tried. `num_threads` is the decoder's (0: as many as it likes). `check_archive` is called with a frame archive
    before it is read, and raises to refuse it.

    Returns uint8 RGB frames, (number of indices, H, W, 3), in the order of the indices, turned upright.

    Raises `VideoReadError`, which carries the path, for anything unreadable: missing, empty, cut off, not a video,
    without a video stream, without frames, or with a wanted frame that cannot be decoded (never replaced by another).
    A file that ends before the length its own header states is refused whole, since its true number of frames, and so
    the choice among them, is unknown. Raises `ImportError` when the decoder asked for, or any, is not installed.
    """
    _check_choice("decoder", decoder, ("auto", *DECODERS))
    path, source = _locate(video)
    if isinstance(source, (str, bytes)) and not (isinstance(source, str) and os.path.isdir(source)):
        container = _check_container(path, source)
        if container == "frame archive":
            candidates = [("frame archive", functools.partial(_open_archive, source))]
        else:
            names = _installed_decoders(decoder)
            if container == "unknown" and len(names) > 1:
                names = [name for name in names if name != "decord"]  # it writes to stderr about files it cannot open
            can_seek = container in ("mp4", "matroska")
            candidates = [(name, functools.partial(_READERS[name], source, num_threads, can_seek)) for name in names]
    elif isinstance(source, str):
        candidates = [("image files", functools.partial(_FrameFiles, source))]
    elif hasattr(source, "get_frames_at"):
        candidates = [("torchcodec", functools.partial(_TorchcodecReader, source, num_threads))]
    else:
        candidates = [("frames in memory", functools.partial(_FramesInMemory, source))]

    for name, open_reader in candidates:
        try:
            reader = open_reader()
            if not reader.num_frames:
                expected = f" ({', '.join(IMAGE_SUFFIXES)})" if name == "image files" else ""
                raise _Unreadable(f"it holds no frames{expected}")
        except Exception as error:
            reason = _reason(error, f"{name} cannot open it")
            continue
        # Outside the try blocks: what is wrong with the choice of frames is not the file's fault.
        if check_archive is not None and isinstance(reader, FrameArchive):
            check_archive(reader)
        indices = _choose(select_indices, reader.num_frames, reader.fps, path)
        try:
            return _read_in_order(reader, indices)
        except _EndsEarly as error:
            # Codecs that pack or hide frames announce a few packets more than frames; then the true count is sampled.
            reason = f"{error}, {reader.num_frames} were announced"
            missing = reader.num_frames - error.num_decoded
            if not error.num_decoded or missing > max(2, reader.num_frames // 50):
                continue
            indices = _choose(select_indices, error.num_decoded, reader.fps, path)
            try:
                return _read_in_order(reader, indices)
            except Exception as second_error:
                reason = _reason(second_error, "a wanted frame cannot be decoded")
        except Exception as error:
            reason = _reason(error, "a wanted frame cannot be decoded")
    # The last decoder's reason: PyAV's are the clearest.
    tried = f" (tried {', '.join(name for name, _ in candidates)})" if path is not None else ""
    raise VideoReadError(f"Cannot read video {_quoted(path)}: {reason}{tried}.", path)


def _open_archive(source: str | bytes) -> FrameArchive:
    if isinstance(source, str):
        with open(source, "rb") as file:
            source = file.read()
    try:
        return FrameArchive(source)
    except ValueError as error:
        raise _Unreadable(str(error)) from error


def stream_video_frames(
    video: Any, select_indices: Callable[[int, float | None], Sequence[int]], num_threads: int = 1
) -> Iterator[torch.Tensor]:
    """The chosen frames of a video of any length one by one, uint8 (H, W, 3), each decoded once, none kept.

    As `read_video_frames`, but the indices must rise, and PyAV reads all files: it passes through them once.

    Raises `VideoReadError`, also after some frames, and `ImportError` without PyAV.
    """
    path, source = _locate(video)
    try:
        if isinstance(source, (str, bytes)) and not (isinstance(source, str) and os.path.isdir(source)):
            _check_container(path, source)
            _installed_decoders("av")
            reader = _PyAVReader(source, num_threads)
        else:
            reader = _FrameFiles(source) if isinstance(source, str) else _FramesInMemory(source)
        if not reader.num_frames:
            raise _Unreadable("it holds no frames")
    except (VideoReadError, ImportError):
        raise
    except Exception as error:
        raise VideoReadError(
            f"Cannot read video {_quoted(path)}: {_reason(error, 'it does not open')}.", path
        ) from error
    indices = _choose(select_indices, reader.num_frames, reader.fps, path)
    frame, num_done = None, 0
    try:
        if isinstance(reader, _PyAVReader):
            frames = (torch.from_numpy(np.ascontiguousarray(image)) for image in reader.stream(indices))
        else:
            frames = (reader.read([index])[0] for index in indices)
        for frame in frames:
            yield frame
            num_done += 1
    except _EndsEarly as error:
        # Codecs that pack or hide frames announce a few packets more than frames: the last frame stands for these.
        missing = reader.num_frames - error.num_decoded
        if frame is None or missing > max(2, reader.num_frames // 50):
            reason = f"{error}, {reader.num_frames} were announced"
            raise VideoReadError(f"Cannot read video {_quoted(path)}: {reason}.", path) from error
        yield from [frame] * (len(indices) - num_done)
    except Exception as error:
        reason = _reason(error, "a wanted frame cannot be decoded")
        raise VideoReadError(f"Cannot read video {_quoted(path)}: {reason}.", path) from error


def _choose(select_indices, num_video_frames: int, fps: float | None, path: str | None) -> list[int]:
    indices = select_indices(num_video_frames, fps) if callable(select_indices) else select_indices
    indices = [int(index) for index in indices]
    if not indices:
        raise ValueError(f"No frames of video {_quoted(path)} were asked for: give at least one index.")
    for index in indices:
        if not 0 <= index < num_video_frames:
            raise ValueError(
                f"Frame {index} of video {_quoted(path)} was asked for, but it has {num_video_frames} frames "
                f"(0 to {num_video_frames - 1})."
            )
    return indices


def _read_in_order(reader, indices: list[int]) -> torch.Tensor:
    """Each frame is decoded once, in rising order, and then put where, and as often as, it was asked for."""
    rising = sorted(set(indices))
    frames = reader.read(rising)
    if len(frames) != len(rising):
        raise _Unreadable(f"the decoder returned {len(frames)} of {len(rising)} frames")
    if rising == indices:
        return frames
    position = {index: i for i, index in enumerate(rising)}
    return frames[[position[index] for index in indices]]


def _locate(video: Any) -> tuple[str | None, Any]:
    """The name of a video for messages (None if it has none) and what to read: a local path, bytes, or an object."""
    path = None
    if isinstance(video, Mapping):
        path = video.get("path")
        video = path if video.get("bytes") is None else video["bytes"]
        if video is None:
            raise VideoReadError("Cannot read video: the dict has neither 'path' nor 'bytes'.")
    if isinstance(video, (str, os.PathLike)):
        path = os.fspath(video)
        if path.startswith("file://"):
            return path, urllib.request.url2pathname(urllib.parse.urlparse(path).path)
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", path):
            return path, _download(path)
        return path, os.path.expanduser(path)
    if isinstance(video, (bytes, bytearray, memoryview)):
        return path, bytes(video)
    if hasattr(video, "get_frames_at") or isinstance(video, (np.ndarray, torch.Tensor)):
        return path, video
    if hasattr(video, "read"):
        if hasattr(video, "seekable") and video.seekable():
            video.seek(0)  # the same file object may be read a second time
        name = getattr(video, "name", None)
        return name if isinstance(name, str) else None, video.read()
    if isinstance(video, (list, tuple)):
        return path, video
    raise VideoReadError(
        f"Cannot read a video from a value of type {type(video).__name__}: give a path, URL, bytes, file object, uint8 "
        "frames (T, H, W, 3), a list of PIL images, a folder of frames, or a value of a datasets video column."
    )


def _download(url: str) -> bytes:
    try:
        if not url.startswith(("http://", "https://")):
            # hf://, s3://, zip://...::: whatever the user's fsspec knows; datasets rows may hold such addresses
            with importlib.import_module("fsspec").open(url, "rb") as file:
                return file.read()
        request = urllib.request.Request(url, headers={"User-Agent": "clipfsar"})  # some hosts refuse urllib's own
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            return response.read()
    except (OSError, ValueError, ImportError, http.client.HTTPException) as error:
        raise VideoReadError(f"Cannot read video {url!r}: the download failed ({_one_line(error)}).", url) from error


def _installed_decoders(decoder: str) -> list[str]:
    names = DECODERS if decoder == "auto" else (decoder,)
    failures = {name: _load_decoder(name)[1] for name in names}
    installed = [name for name in names if failures[name] is None]
    if not installed and decoder == "auto":
        raise ImportError(f"No video decoder can be imported, install one of them: `pip install av`. {failures}")
    if not installed:
        raise ImportError(
            f"decoder={decoder!r} cannot be imported ({failures[decoder]}): `pip install {decoder}`, or use "
            "decoder='auto'."
        )
    return installed


def _check_container(path: str | None, source: str | bytes) -> str:
    """The kind of container by its first bytes. Raises `VideoReadError` for no file, an empty one, or one that ends
    before its own header says: decoders silently take what is left of a cut-off webm or avi for all of it."""
    try:
        num_bytes = len(source) if isinstance(source, bytes) else os.stat(source).st_size
        if not num_bytes:
            raise VideoReadError(f"Cannot read video {_quoted(path)}: the file is empty (0 bytes).", path)
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            head = file.read(16)
            kind, end = "unknown", 0
            if head[4:8] in _MP4_BOXES:
                kind, end = "mp4", _mp4_end(file, num_bytes)
            elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
                size = int.from_bytes(head[4:8], "little")
                kind, end = "avi", size + 8 if size < 0xFFFFFFF0 else 0  # streamed files hold 0 or -1 here
            elif head[:4] == b"\x1a\x45\xdf\xa3":
                kind, end = "matroska", _matroska_end(file)
            elif head.startswith(ZIP_MAGIC):
                kind = "frame archive"  # a zip ends with its table of contents, so a cut-off one does not open
            elif head.startswith((b"\x00\x00\x01\xba", b"\x47", b"FLV", b"\x30\x26\xb2\x75", b"OggS")):
                kind = "stream"  # MPEG program and transport streams, Flash, Windows Media, Ogg: they state no length
    except OSError as error:
        raise VideoReadError(f"Cannot read video {_quoted(path)}: {error.strerror or error}.", path) from error
    if end > num_bytes:
        raise VideoReadError(
            f"Cannot read video {_quoted(path)}: the file is cut off, {num_bytes} bytes of at least {end} are there.",
            path,
        )
    return kind


_MP4_BOXES = tuple(b"ftyp moov mdat moof free skip wide udta meta sidx mfra uuid".split())


def _mp4_end(file, num_bytes: int) -> int:
    """Where the last top-level box of an mp4 or mov ends (ISO/IEC 14496-12, 4.2)."""
    position = 0
    while position + 8 <= num_bytes:
        file.seek(position)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if header[4:8] not in _MP4_BOXES or size < 8:  # 0: up to the end of the file; else bytes behind the last box
            break
        position += size
    return position


def _matroska_end(file) -> int:
    """Where the segment of a webm or mkv ends, 0 if it does not say (RFC 8794, sections 4 to 6)."""

    def read_size():
        first = file.read(1)
        length = 9 - first[0].bit_length() if first and first[0] else 1
        data = int.from_bytes(first + file.read(length - 1), "big") & ((1 << 7 * length) - 1)
        return None if data == (1 << 7 * length) - 1 else data  # all ones: unknown, as when streamed

    file.seek(4)
    header_size = read_size()
    if header_size is None:
        return 0
    file.seek(header_size, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    segment_size = read_size()
    return 0 if segment_size is None else file.tell() + segment_size


def _reason(error: Exception, what_failed: str) -> str:
    if isinstance(error, _Unreadable):
        return str(error)
    text = _one_line(error)
    # decord and torchcodec, in many more words
    return "it has no video stream that can be decoded" if "video stream" in text else f"{what_failed}: {text}"


def _one_line(error: Exception) -> str:
    """A decoder's complaint without its stack trace, source positions and issue-tracker links."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    lines = [line.strip() for line in text.strip().splitlines()] or [type(error).__name__]
    line = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: |^\w+, \S+\.cpp:\d+, ", "", lines[0])
    return line.rstrip(". ")[:200]


def _quoted(path: str | None) -> str:
    return repr(path) if path is not None else "given as bytes or frames"


# --- pixel values -----------------------------------------------------------------------------------------------------


def _resize_uint8(frames: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """Antialiased resize of uint8 frames (T, 3, H, W) as PIL does it, all frames at once."""
    if frames.device.type == "cpu":
        return F.interpolate(frames, size=(height, width), mode=mode, antialias=True)
    return _resize_through_float(frames, height, width, mode)


def _resize_through_float(frames: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """The same, up to a grey level, where bytes cannot be resized, as on GPUs: rows, then columns, bytes in between."""
    frames = frames.float()
    for size in ((frames.shape[-2], width), (height, width)):
        # bicubic overshoots 0 and 255; halves go up
        frames = F.interpolate(frames, size=size, mode=mode, antialias=True).add_(0.5).floor_().clamp_(0, 255)
    return frames.to(torch.uint8)


def _crop(frames: torch.Tensor, height: int, width: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """The same crop of all frames (T, 3, H, W): random, x and y drawn apart, or central without `generator`."""
    missing_height, missing_width = max(height - frames.shape[-2], 0), max(width - frames.shape[-1], 0)
    if missing_height or missing_width:
        # as transformers' center_crop: zeros around frames that are too small
        top, left = (missing_height + 1) // 2, (missing_width + 1) // 2
        frames = F.pad(frames, (left, missing_width - left, top, missing_height - top))
    slack_height, slack_width = frames.shape[-2] - height, frames.shape[-1] - width
    if generator is None:
        top, left = slack_height // 2, slack_width // 2
    else:
        top = int(torch.randint(slack_height + 1, (), generator=generator))
        left = int(torch.randint(slack_width + 1, (), generator=generator))
    return frames[..., top : top + height, left : left + width]


def _gray(pixels: torch.Tensor) -> torch.Tensor:
    """Luma (ITU-R BT.601) of pixels (T, 3, H, W), (T, 1, H, W)."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
    return (pixels * weights).sum(dim=-3, keepdim=True)


def _shift_hue(pixels: torch.Tensor, turns: float) -> torch.Tensor:
    """Turns the hue of pixels (T, 3, H, W) in [0, 1] around the colour circle; value and saturation stay."""
    value, chroma = pixels.amax(dim=-3), pixels.amax(dim=-3) - pixels.amin(dim=-3)
    red, green, blue = pixels.unbind(dim=-3)
    divisor = chroma.clamp_min(1e-12)  # gray has no hue, and its chroma of 0 undoes whatever comes out here
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )  # (T, H, W), in sixths of a turn
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
    sector = (offsets + (hue + 6 * turns).unsqueeze(-3)) % 6  # (T, 3, H, W)
    return value.unsqueeze(-3) - chroma.unsqueeze(-3) * torch.minimum(sector, 4 - sector).clamp(0, 1)


def augment_like_kinetics(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What the official program does to Kinetics-100's query videos in training.

    Horizontal flip (p = 0.5); colour jitter in random order: brightness, contrast and saturation times a factor from
    [0.5, 1.5], hue turned by up to a quarter circle either way; grayscale (p = 0.3). One draw serves all frames.
    `pixels`: float (T, 3, H, W) in [0, 1], and so is the result. The order of the draws is ours.
    """
    brightness, contrast, saturation = torch.empty(3).uniform_(0.5, 1.5, generator=generator).tolist()
    turns = torch.empty(()).uniform_(-0.25, 0.25, generator=generator).item()
    flip, to_gray = (torch.rand(2, generator=generator) < torch.tensor([0.5, 0.3])).tolist()

    def towards(anchor, factor):
        return lambda pixels: torch.lerp(anchor(pixels), pixels, factor)

    steps = (
        lambda pixels: pixels * brightness,
        towards(lambda pixels: _gray(pixels).mean(dim=(-3, -2, -1), keepdim=True).expand_as(pixels), contrast),
        towards(lambda pixels: _gray(pixels).expand_as(pixels), saturation),
        lambda pixels: _shift_hue(pixels, turns),
    )
    if flip:
        pixels = pixels.flip(-1)
    for step in torch.randperm(len(steps), generator=generator).tolist():
        pixels = steps[step](pixels).clamp(0, 1)
    return _gray(pixels).expand_as(pixels) if to_gray else pixels


class SampledVideos:
    """Videos whose frames were chosen and read, but not yet resized, cropped and normalised.

    What a data loader hands over where a GPU is to do the rest, `CLIPFSARProcessor.make_pixel_values`: bytes instead of
    floats cross over to it. Moves as a tensor does.

    Args:
        frames: Of each video, uint8 (T, H, W, 3); sizes may differ.
        seeds: Of each video, for its crop and augmentation; None where nothing is random.
        augmentation: As the processor's `query_augmentation`.
    """

    def __init__(self, frames: list[torch.Tensor], seeds: list[int | None], augmentation: str = "none"):
        self.frames, self.seeds, self.augmentation = frames, seeds, augmentation

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device, non_blocking: bool = False) -> "SampledVideos":
        frames = [video.to(device, non_blocking=non_blocking) for video in self.frames]
        return SampledVideos(frames, self.seeds, self.augmentation)

    def pin_memory(self) -> "SampledVideos":
        return SampledVideos([video.pin_memory() for video in self.frames], self.seeds, self.augmentation)


def _mean_and_std(image_processor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the channels, each (3, 1, 1) on a device."""
    return _per_channel(tuple(image_processor.image_mean), device), _per_channel(
        tuple(image_processor.image_std), device
    )


@functools.lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # kept, because copying it to a GPU each time would make the program wait
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


# --- the processor ----------------------------------------------------------------------------------------------------


class CLIPFSARProcessor(ProcessorMixin):
    """CLIP's image processor and tokenizer, plus everything that makes an episode out of videos and class names.

    - `num_frames`: T, frames per video.
    - `prompt_template`: the sentence around a class name, with `{}` for the name. Underscores in names become spaces.
    - `frame_sampling`, `sampling_rate`, `target_fps`: see `sample_frame_indices`.
    - `preprocessing`: `"clip"` follows the settings of `image_processor` (shortest side, antialiased bicubic, crop);
      `"official"` is what the published numbers were made with: squash to 8/7 of the crop size (256 for 224), aspect
      ratio not kept, bilinear without antialiasing, crop. In training both crop at random, once per video.
    - `decoder`, `num_threads`: see `read_video_frames`.
    - `prompt_length`: tokens of every prompt, cut or padded; `None` pads to the longest of a call. SigLIP's texts must
      have the length that they had in its training, 64.
    - `query_augmentation`: `"kinetics"` applies `augment_like_kinetics` to query videos in training (left and right are
      swapped half of the time: not for data such as Something-Something, where they matter).

    `from_pretrained` also takes a plain CLIP, SigLIP, SigLIP 2 or MetaCLIP 2 checkpoint; settings can be given there as
    keyword arguments.
    """

    # What this processor raises. The files of a saved folder are loaded as packages of their own, so a neighbour's
    # `VideoReadError` may be another class of the same name.
    unreadable_error = VideoReadError

    def __init__(
        self,
        image_processor,
        tokenizer,
        num_frames=8,
        prompt_template="a photo of {}",
        frame_sampling="segment_center",
        sampling_rate=35,
        target_fps=12,
        preprocessing="clip",
        decoder="auto",
        num_threads=1,
        query_augmentation="none",
        prompt_length=None,
    ):
        _check_positive_integer("num_frames", num_frames)
        if prompt_length is not None:
            _check_positive_integer("prompt_length", prompt_length)
        _check_choice("frame_sampling", frame_sampling, FRAME_SAMPLINGS)
        _check_choice("preprocessing", preprocessing, PREPROCESSINGS)
        _check_choice("decoder", decoder, ("auto", *DECODERS))
        _check_choice("query_augmentation", query_augmentation, QUERY_AUGMENTATIONS)
        if sampling_rate <= 0 or target_fps <= 0:
            raise ValueError(f"sampling_rate={sampling_rate} and target_fps={target_fps} must be greater than 0.")
        if not isinstance(prompt_template, str) or "{}" not in prompt_template:
            raise ValueError(f"prompt_template={prompt_template!r} has no place for the class name: write {{}} there.")
        self.num_frames = num_frames
        self.prompt_template = prompt_template
        self.frame_sampling = frame_sampling
        self.sampling_rate = sampling_rate
        self.target_fps = target_fps
        self.preprocessing = preprocessing
        self.decoder = decoder
        self.num_threads = num_threads
        self.query_augmentation = query_augmentation
        self.prompt_length = prompt_length
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers. A plain CLIP checkpoint gives its parts, with our default settings.

        Our settings among the keyword arguments (`num_frames=16`) override the saved ones.
        """
        # Taken out first: the mixin hands keyword arguments to the tokenizer too, which would save them as its own.
        settings = {name: kwargs.pop(name) for name in _SETTINGS if name in kwargs}
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        settings = _fit_to_plain_checkpoint(processor, pretrained_model_name_or_path, kwargs) | settings
        if not settings:
            return processor
        saved = {name: getattr(processor, name) for name in _SETTINGS}
        return cls(processor.image_processor, processor.tokenizer, **{**saved, **settings})

    @property
    def model_input_names(self):
        return [
            "support_pixel_values",
            "support_labels",
            "query_pixel_values",
            "class_input_ids",
            "class_attention_mask",
        ]

    def __call__(
        self,
        support_videos: Mapping[str, Any] | Sequence | None = None,
        query_videos: Sequence | None = None,
        support_labels: Sequence[int] | Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        query_labels: Sequence[int] | Sequence[str] | None = None,
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
        frame_sampling: str | None = None,
        fps: float | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Model inputs of one episode. Each part is made only if what it needs was given.

        Support videos come as `{"boxing": [video, ...], ...}`, the order of the dict being that of the classes, or as a
        flat list with `support_labels`: ints into `class_names`, or the names themselves (then `class_names`, if not
        given, are in order of first appearance). Classes may have unequal numbers of videos. `class_names` alone with
        `query_videos` is zero-shot. A single video where a list of videos is expected is a list of one. What counts as
        a video: `read_video_frames`; `training`, `generator`, `frame_sampling`, `fps`: `process_videos`.

        Returns a `BatchFeature`, every tensor with a leading batch dimension of 1: `support_pixel_values` (1, S, T, C,
        H, W), `support_labels` (1, S), `query_pixel_values` (1, Q, T, C, H, W), `class_input_ids` (1, N, L),
        `class_attention_mask` (1, N, L), and with `query_labels` also `labels` (1, Q).

        Raises `ValueError` for an inconsistent episode, `VideoReadError` (one, too) for an unreadable video.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors={return_tensors!r} is not supported: use 'pt' (the default) or 'np'.")
        if class_names is not None:
            class_names = _check_class_names(class_names)
        if isinstance(support_videos, Mapping) and not is_one_video(support_videos):
            if support_labels is not None:
                raise ValueError("support_videos is a dict of classes, so support_labels must be left out.")
            support_videos, support_labels, class_names = _flatten_classes(support_videos, class_names)
        if support_videos is not None:
            support_videos = as_video_list(support_videos)
        if query_videos is not None:
            if isinstance(query_videos, Mapping) and not is_one_video(query_videos):
                raise ValueError("query_videos must be a list of videos, not a dict: pass the classes as query_labels.")
            query_videos = as_video_list(query_videos)
        support_labels, class_names = _check_support(support_videos, support_labels, class_names)
        if query_labels is not None:
            query_labels = _label_indices("query_labels", query_labels, class_names, "query_videos", query_videos)
        if support_videos is None and query_videos is None and class_names is None:
            raise ValueError("Nothing to process: give support_videos, query_videos or class_names.")

        options = {"training": training, "generator": generator, "frame_sampling": frame_sampling, "fps": fps}
        data = {}
        if support_videos is not None:
            data["support_pixel_values"] = self.process_videos(support_videos, **options)
            data["support_labels"] = torch.tensor(support_labels)
        if query_videos is not None:
            data["query_pixel_values"] = self.process_videos(query_videos, role="query", **options)
        if class_names is not None:
            for name, tokens in self.tokenize_classes(class_names).items():
                data[f"class_{name}"] = tokens
        if query_labels is not None:
            data["labels"] = torch.tensor(query_labels)
        data = {name: value.unsqueeze(0) for name, value in data.items()}
        if return_tensors == "np":
            data = {name: value.numpy() for name, value in data.items()}
        return BatchFeature(data)

    def process_videos(
        self,
        videos: Sequence,
        *,
        training: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        frame_sampling: str | None = None,
        role: str = "support",
        fps: float | None = None,
    ) -> torch.Tensor:
        """Pixel values of videos, float32 (V, T, C, H, W).

        `training` draws random frames (`"segment_random"` for both segment samplings, a random start for `"interval"`)
        and a random crop; otherwise only `"segment_random"` draws. All draws come from `generator` (or from a list, one
        per video), torch's global one if None, and each video takes the same number of draws from it however long it
        is and whichever decoder reads it. `role="query"` in training applies the processor's `query_augmentation`.
        `frame_sampling` overrides the processor's. `fps`: frames per second of videos that do not say (frames in
        memory or in folders), needed for `"interval"` only.
        """
        videos = as_video_list(videos)
        sampled = self._read_videos(videos, training, generator, frame_sampling, fps)
        return self._finish_videos(sampled, len(videos), self._augmentation(role, training))

    def read_videos(
        self,
        videos: Sequence,
        *,
        training: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        frame_sampling: str | None = None,
        role: str = "support",
        fps: float | None = None,
    ) -> SampledVideos:
        """The first half of `process_videos`, for the same arguments: chooses frames and reads them."""
        frames, seeds = zip(
            *self._read_videos(as_video_list(videos), training, generator, frame_sampling, fps), strict=True
        )
        return SampledVideos(list(frames), list(seeds), self._augmentation(role, training))

    def make_pixel_values(self, sampled: SampledVideos) -> torch.Tensor:
        """The second half of `process_videos`: resizes, crops and normalises on the device where the frames lie.

        Returns float32 (V, T, C, H, W). On a GPU one resized pixel in a hundred may differ by a grey level from the
        CPU's, which resizes bytes; frames that have their size already (of a frame store) come out the same.
        """
        return self._finish_videos(zip(sampled.frames, sampled.seeds, strict=True), len(sampled), sampled.augmentation)

    def _augmentation(self, role: str, training: bool) -> str:
        _check_choice("role", role, ("support", "query"))
        return self.query_augmentation if training and role == "query" else "none"

    def _read_videos(
        self, videos: list, training: bool, generator, frame_sampling: str | None, fps: float | None
    ) -> Iterator[tuple[torch.Tensor, int | None]]:
        """Sampled frames (T, H, W, 3) of one video after the other, and the seed of its crop, None for the centre."""
        sampling = self.frame_sampling if frame_sampling is None else frame_sampling
        _check_choice("frame_sampling", sampling, FRAME_SAMPLINGS)
        if training and sampling == "segment_center":
            sampling = "segment_random"
        if not videos:
            raise ValueError("There are no videos to process: give a list of at least one.")
        is_random = training or sampling == "segment_random"
        generators = generator if isinstance(generator, Sequence) else [generator] * len(videos)
        for video, generator in zip(videos, generators, strict=True):
            frame_seed, pixel_seed = _draw_seeds(generator) if is_random else (None, None)
            frames = self._read_sampled_frames(video, sampling, training, frame_seed, fps)
            yield frames, pixel_seed if training else None

    def _finish_videos(
        self, sampled: Iterable[tuple[torch.Tensor, int | None]], num_videos: int, augmentation: str
    ) -> torch.Tensor:
        pixel_values = None  # one tensor, filled in place: stacking videos cost as much as resizing them
        for i, (frames, seed) in enumerate(sampled):
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            frames = self._resize_and_crop(frames, generator)  # (T, C, H, W)
            if pixel_values is None:
                pixel_values = torch.empty(num_videos, *frames.shape, device=frames.device)
            if frames.shape != pixel_values.shape[1:]:
                raise ValueError(
                    f"The videos come out in different sizes, {tuple(pixel_values.shape[-2:])} and "
                    f"{tuple(frames.shape[-2:])}: the image processor needs do_center_crop, or a size with height and "
                    "width."
                )
            pixel_values[i] = frames
            self._normalize_(pixel_values[i], augmentation, generator)
        return pixel_values

    def process_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Pixel values (T, C, H, W) of frames already chosen, uint8 (T, H, W, 3)."""
        pixels = self._resize_and_crop(frames, None).float()
        self._normalize_(pixels, "none", None)
        return pixels

    def to_frames(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The frames as the model sees them, resized and cropped: pixel values (..., C, H, W), uint8 (..., H, W, C)."""
        settings, is_official = self.image_processor, self.preprocessing == "official"
        pixels = pixel_values.float()
        if is_official or settings.do_normalize:
            mean, std = (
                _per_channel(tuple(value), pixels.device) for value in (settings.image_mean, settings.image_std)
            )
            pixels = pixels * std + mean
        if is_official or settings.do_rescale:
            pixels = pixels / (1 / 255 if is_official else settings.rescale_factor)
        return pixels.clamp(0, 255).round().to(torch.uint8).movedim(-3, -1)

    def tokenize_classes(self, class_names: Sequence[str]) -> dict[str, torch.Tensor]:
        """`{"input_ids": (N, L), "attention_mask": (N, L)}`, int64, of the prompts of class names.

        Underscores become spaces ("brush_hair" -> "a photo of brush hair"). Padded to the longest prompt and cut at the
        tokenizer's `model_max_length`, or all of `prompt_length` tokens. A name may stand there twice: classes of
        several episodes can go in one call.
        """
        names = _check_class_names(class_names, unique=False)
        prompts = [self.prompt_template.replace("{}", name.replace("_", " ")) for name in names]
        # a tokenizer that knows no limit holds 1e30 there and warns when asked to truncate
        has_limit = self.prompt_length is not None or self.tokenizer.model_max_length < 1_000_000
        tokens = self.tokenizer(
            prompts,
            padding=True if self.prompt_length is None else "max_length",
            truncation=has_limit,
            max_length=self.prompt_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    def post_process_video_classification(
        self, outputs: Any, class_names: Sequence[str], top_k: int | None = None
    ) -> list[list[dict[str, Any]]]:
        """For each query video of one episode its classes, most probable first: `[{"label", "score"}, ...]`.

        `outputs` is the model's output, or its logits, (1, Q, N) or (Q, N); the scores are their softmax. `top_k` keeps
        the best so many. Raises `ValueError` if the classes do not fit, or if there are several episodes.
        """
        class_names = _check_class_names(class_names)
        logits = outputs["logits"] if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
        logits = torch.as_tensor(logits)
        if logits.ndim == 3 and len(logits) == 1:
            logits = logits[0]
        if logits.ndim != 2:
            raise ValueError(
                f"The logits have shape {tuple(logits.shape)}; those of one episode, (1, Q, N) or (Q, N), are needed: "
                "pass logits[i] of several."
            )
        if logits.shape[-1] != len(class_names):
            raise ValueError(f"The logits have {logits.shape[-1]} classes, but class_names has {len(class_names)}.")
        top_k = len(class_names) if top_k is None else top_k
        _check_positive_integer("top_k", top_k)
        scores, classes = logits.float().softmax(dim=-1).topk(min(top_k, len(class_names)), dim=-1)
        return [
            [{"label": class_names[index], "score": score} for index, score in zip(*row, strict=True)]
            for row in zip(classes.tolist(), scores.tolist(), strict=True)
        ]

    def _read_sampled_frames(self, video, sampling: str, training: bool, seed: int | None, fps: float | None):
        draws = sampling == "segment_random" or training

        def select_indices(num_video_frames, video_fps):
            # A fresh generator each time: the draw must not depend on how many decoders have tried before.
            return sample_frame_indices(
                num_video_frames,
                self.num_frames,
                sampling,
                fps=video_fps or fps,
                sampling_rate=self.sampling_rate,
                target_fps=self.target_fps,
                generator=torch.Generator().manual_seed(seed) if draws else None,
            )

        check_archive = functools.partial(self._check_archive, draws=draws)
        return read_video_frames(video, select_indices, self.decoder, self.num_threads, check_archive)

    def _resize_and_crop(self, frames: torch.Tensor, crop_generator: torch.Generator | None) -> torch.Tensor:
        """uint8 (T, H, W, 3) -> (T, 3, crop height, crop width), from 0 to 255, cropped at random with a generator."""
        frames = frames.permute(0, 3, 1, 2)  # (T, 3, H, W), channels last in memory: twice as fast to resize on CPU
        height, width = self._crop_size(frames.shape[-2:])
        frames = _resize(frames, self.image_processor, self.preprocessing)
        # contiguous here, because permuting bytes is cheaper than permuting the floats they become
        return _crop(frames, height, width, crop_generator).contiguous()

    def _normalize_(self, pixels: torch.Tensor, augmentation: str, generator: torch.Generator | None) -> None:
        """0 to 255 -> what the model wants, in place, by way of the augmentation on [0, 1]."""
        settings = self.image_processor
        is_official = self.preprocessing == "official"
        if augmentation == "kinetics":
            pixels.copy_(augment_like_kinetics(pixels / 255, generator)).mul_(255)
        if is_official or settings.do_rescale:
            pixels.mul_(1 / 255 if is_official else settings.rescale_factor)
        if is_official or settings.do_normalize:
            mean, std = (
                _per_channel(tuple(value), pixels.device) for value in (settings.image_mean, settings.image_std)
            )
            pixels.sub_(mean).div_(std)

    def _crop_size(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the pixel values, from the image processor's settings; `frame_size` if these fix none."""
        settings = self.image_processor
        if self.preprocessing == "official":
            return _official_crop_size(settings)
        size = settings.crop_size if getattr(settings, "do_center_crop", False) else settings.size
        if size is settings.size and not settings.do_resize:
            return frame_size
        if size.get("shortest_edge"):
            return _shortest_edge_size(frame_size, size.get("shortest_edge"))
        return size.get("height"), size.get("width")

    def _check_archive(self, archive: FrameArchive, draws: bool) -> None:
        """Raises `ValueError` for a frame archive that was made for something else than this processor does."""
        wanted = resize_settings(self.image_processor, self.preprocessing)
        if archive.resized_for != wanted:
            raise ValueError(
                f"The frame store was made for {_in_words(archive.resized_for)}, but {_in_words(wanted)} is wanted: "
                "prepare the data again with the --preprocessing and --frame_size of this model, or choose what the "
                "store was made for."
            )
        least = (3 if draws else 1) * self.num_frames
        if not archive.is_complete and len(archive.indices) < least:
            purpose = f"{'draw' if draws else 'choose'} {self.num_frames} frames"
            raise ValueError(
                f"The frame store keeps {len(archive.indices)} of a video's {archive.num_frames} frames, but to "
                f"{purpose} it must keep {least} or all: prepare the data again with --frames_per_video {least} or "
                "more, or lower num_frames."
            )


_SETTINGS = (
    "num_frames",
    "prompt_template",
    "frame_sampling",
    "sampling_rate",
    "target_fps",
    "preprocessing",
    "decoder",
    "num_threads",
    "query_augmentation",
    "prompt_length",
)


def resize_settings(image_processor, preprocessing: str) -> dict:
    """What `resize_frames` does, as plain values: frames resized for equal settings can stand for each other."""
    if preprocessing == "official":
        height, width = _official_size(image_processor)
        return {"preprocessing": "official", "size": {"height": height, "width": width}}
    if not image_processor.do_resize:
        return {"preprocessing": "clip", "size": None}
    size = {name: int(value) for name, value in dict(image_processor.size).items() if value}
    return {"preprocessing": "clip", "size": size, "resample": int(image_processor.resample)}


def resize_frames(frames: torch.Tensor, image_processor, preprocessing: str = "clip") -> torch.Tensor:
    """The resizing alone that `process_videos` does before it crops: uint8 (T, H, W, 3) -> uint8 (T, H', W', 3).

    For `"official"` the result is rounded, which `process_videos` does not do.
    """
    resized = _resize(frames.permute(0, 3, 1, 2), image_processor, preprocessing)
    if resized.dtype != torch.uint8:
        resized = resized.round().to(torch.uint8)
    return resized.permute(0, 2, 3, 1).contiguous()


def _resize(frames: torch.Tensor, image_processor, preprocessing: str) -> torch.Tensor:
    """uint8 (T, 3, H, W) to the size that is cropped from; float for the official preprocessing, from 0 to 255."""
    if preprocessing == "official":
        size = _official_size(image_processor)
        if tuple(frames.shape[-2:]) == size:
            return frames.float()
        return F.interpolate(frames.float(), size=size, mode="bilinear", align_corners=False)
    if not image_processor.do_resize:
        return frames
    mode = {2: "bilinear", 3: "bicubic"}.get(int(image_processor.resample))
    if mode is None:
        raise ValueError(f"The image processor's resample={image_processor.resample!r} is not supported: use 2 or 3.")
    size = image_processor.size
    if size.get("shortest_edge"):
        target = _shortest_edge_size(frames.shape[-2:], size.get("shortest_edge"))
    else:
        target = size.get("height"), size.get("width")
    if None in target or size.get("longest_edge"):
        raise ValueError(f"The image processor's size={size} is not supported: use shortest_edge, or height and width.")
    return frames if tuple(frames.shape[-2:]) == target else _resize_uint8(frames, *target, mode)


def _official_crop_size(image_processor) -> tuple[int, int]:
    size = getattr(image_processor, "crop_size", None) or image_processor.size
    if size.get("shortest_edge"):
        return size.get("shortest_edge"), size.get("shortest_edge")
    return size.get("height"), size.get("width")


def _official_size(image_processor) -> tuple[int, int]:
    """Officially frames are squashed to 256 x 256 for a crop of 224 x 224."""
    height, width = _official_crop_size(image_processor)
    return round(height * 8 / 7), round(width * 8 / 7)


def _in_words(settings: dict) -> str:
    size = settings["size"]
    if size is None:
        return "frames of any size"
    sizes = " x ".join(str(value) for value in size.values())
    return f"{settings['preprocessing']!r} preprocessing at {'shortest side ' if len(size) == 1 else ''}{sizes}"


def _fit_to_plain_checkpoint(processor, name_or_path, loading: dict) -> dict:
    """Settings that a plain checkpoint needs and does not name: none for CLIP and for what we saved ourselves.

    MetaCLIP 2's tokenizer allows more tokens than its text tower has positions. SigLIP's texts are padded to the length
    of its training. SigLIP 2's image processor cuts images of any shape into patches, and has no size: frames become
    squares of as many.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(name_or_path, **loading)
    except OSError:
        return {}
    model_type, text_config = config.get("model_type"), config.get("text_config") or {}
    if model_type == "metaclip_2":
        limit = text_config.get("max_position_embeddings", 77)
        processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, limit)
    if model_type not in ("siglip", "siglip2"):
        return {}
    settings = processor.image_processor
    if model_type == "siglip2" and getattr(settings, "max_num_patches", None):
        from transformers import CLIPImageProcessor  # says without torchvision that it does without, so not at the top

        edge = int(settings.max_num_patches**0.5) * settings.patch_size
        processor.image_processor = CLIPImageProcessor(
            size={"height": edge, "width": edge},
            resample=settings.resample,
            do_center_crop=False,
            image_mean=settings.image_mean,
            image_std=settings.image_std,
        )
    return {"prompt_length": text_config.get("max_position_embeddings", 64)}


def _shortest_edge_size(frame_size: tuple[int, int], edge: int) -> tuple[int, int]:
    height, width = frame_size
    shortest = min(height, width)
    return edge * height // shortest, edge * width // shortest  # rounded down, as transformers does


def _draw_seeds(generator: torch.Generator | None) -> tuple[int, int]:
    """One seed for the choice of frames and one for crop and augmentation."""
    device = "cpu" if generator is None else generator.device
    return tuple(torch.randint(2**62, (2,), generator=generator, device=device).tolist())


def _check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(map(repr, choices))}.")


def _check_positive_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")


def is_one_video(value: Any) -> bool:
    """Whether `value` is one video, rather than a list of videos (or a dict of classes)."""
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= {"path", "bytes"}
    if isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview)):
        return True
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 4
    if isinstance(value, (list, tuple)):
        first = value[0] if value else None
        return isinstance(first, Image.Image) or (isinstance(first, (np.ndarray, torch.Tensor)) and first.ndim == 3)
    return hasattr(value, "read") or hasattr(value, "get_frames_at")


def as_video_list(videos: Any) -> list:
    if is_one_video(videos):
        return [videos]
    if not isinstance(videos, Iterable):
        raise ValueError(f"A list of videos is needed, got {type(videos).__name__}.")
    return list(videos)


def _check_class_names(class_names: Sequence[str], unique: bool = True) -> list[str]:
    if isinstance(class_names, str):
        raise ValueError(f"class_names must be a list of names, got the string {class_names!r}: put it in a list.")
    class_names = list(class_names)
    if not class_names:
        raise ValueError("class_names is empty: give at least one name.")
    seen = set()
    for name in class_names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"class_names holds {name!r}: names must be strings that are not blank.")
        if unique and name in seen:
            raise ValueError(f"Class name {name!r} appears twice in class_names: names must be unique.")
        seen.add(name)
    return class_names


def _flatten_classes(support_videos: Mapping[str, Any], class_names: list[str] | None):
    """`{name: videos}` to a flat list of videos, their labels, and the class names in order."""
    names = _check_class_names(support_videos)
    if class_names is not None:
        if set(class_names) != set(names):
            raise ValueError(
                f"class_names {class_names} are not the classes of support_videos {names}: leave class_names out, or "
                "use it only to put the same classes in another order."
            )
        names = class_names
    videos, labels = [], []
    for label, name in enumerate(names):
        videos_of_class = as_video_list(support_videos[name])
        videos.extend(videos_of_class)
        labels.extend([label] * len(videos_of_class))
    return videos, labels, names


def _check_support(support_videos, support_labels, class_names):
    """Support labels as ints, and the class names, checked against each other."""
    if support_videos is None:
        if support_labels is not None:
            raise ValueError("support_labels are given without support_videos: give both, or neither.")
        return None, class_names
    if support_labels is None:
        raise ValueError(
            "support_videos is a list, so support_labels are needed to say which video is of which class (or pass a "
            "dict of class name to videos)."
        )
    support_labels = _flat_labels(support_labels)
    if class_names is None and any(isinstance(label, str) for label in support_labels):
        class_names = _check_class_names(dict.fromkeys(support_labels))
    labels = _label_indices("support_labels", support_labels, class_names, "support_videos", support_videos)
    n_way = len(class_names) if class_names is not None else max(labels, default=-1) + 1
    for label in range(n_way):
        if label not in labels:
            name = repr(class_names[label]) if class_names is not None else label
            raise ValueError(f"Class {name} has no support videos: give it at least one or leave the class out.")
    if not labels:
        raise ValueError("support_videos is empty: give at least one video per class, or leave it out.")
    return labels, class_names


def _flat_labels(labels) -> list:
    return labels.tolist() if isinstance(labels, (np.ndarray, torch.Tensor)) else list(labels)


def _label_indices(name: str, labels, class_names: list[str] | None, videos_name: str, videos: list | None):
    """Labels given as ints or names to ints from 0 to N - 1."""
    labels = _flat_labels([labels] if isinstance(labels, str) else labels)
    num_videos = 0 if videos is None else len(videos)
    if len(labels) != num_videos:
        raise ValueError(
            f"{name} has {len(labels)} entries, but {videos_name} has {num_videos}: one label per video is needed."
        )
    indices = []
    for label in labels:
        if isinstance(label, str):
            if class_names is None or label not in class_names:
                raise ValueError(f"{name} holds {label!r}, which is not among class_names {class_names}.")
            indices.append(class_names.index(label))
            continue
        if isinstance(label, bool) or not isinstance(label, numbers.Integral):
            raise ValueError(f"{name} holds {label!r}: labels are whole numbers or class names.")
        if label < 0 or (class_names is not None and label >= len(class_names)):
            limit = f"0 to {len(class_names) - 1}" if class_names is not None else "0 upwards"
            raise ValueError(f"{name} holds {label}, but labels go from {limit}.")
        indices.append(int(label))
    return indices


CLIPFSARProcessor.register_for_auto_class()

if not __package__:
    # In a checkout or an installation, so that AutoProcessor finds the class without trust_remote_code. Code that came
    # with a checkpoint leaves the registry alone: there, the auto_map in its files leads to it.
    try:
        from configuration_clipfsar import CLIPFSARConfig
    except ImportError:
        pass  # this file alone, without its neighbours, still works
    else:
        AutoProcessor.register(CLIPFSARConfig, CLIPFSARProcessor, exist_ok=True)

__all__ = [
    "CLIPFSARProcessor",
    "SampledVideos",
    "VideoReadError",
    "augment_like_kinetics",
    "read_video_frames",
    "resize_frames",
    "resize_settings",
    "sample_frame_indices",
    "stream_video_frames",
]
