"""Which frames of a video (pure index arithmetic), and reading them: decord, torchcodec, PyAV, folders, arrays."""

import functools
import http.client
import importlib
import io
import math
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

try:
    from .choices_clipfsar import DECODERS, FRAME_SAMPLINGS, IMAGE_SUFFIXES, check_choice, check_positive_integer
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import DECODERS, FRAME_SAMPLINGS, IMAGE_SUFFIXES, check_choice, check_positive_integer

try:
    from .frame_archive_clipfsar import ZIP_MAGIC, FrameArchive
except ImportError:
    if __package__:
        raise
    from frame_archive_clipfsar import ZIP_MAGIC, FrameArchive

DOWNLOAD_TIMEOUT_SECONDS = 60
KEPT_PACKET_BYTES = 2**25  # of a video that PyAV has looked through, until its frames are read


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
    check_choice("sampling", sampling, FRAME_SAMPLINGS)
    check_positive_integer("num_frames", num_frames)
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
    check_choice("decoder", decoder, ("auto", *DECODERS))
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
    feature = getattr(videos, "features", None)
    if type(feature).__name__ == "Video" and feature.decode:  # a lazy column of `datasets`, which would decode it all
        undecoded = videos.source.cast_column(videos.column_name, type(feature)(decode=False))
        videos = undecoded[videos.column_name]
    return list(videos)


__all__ = [
    "VideoReadError",
    "as_video_list",
    "is_one_video",
    "read_video_frames",
    "sample_frame_indices",
    "stream_video_frames",
]
