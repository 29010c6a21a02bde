"""Choosing frames of a video (pure index arithmetic), and reading them from files, folders of images and arrays."""

import contextlib
import importlib
import inspect
import math
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

try:
    from .choices_clipfsar import (
        DECODERS,
        FRAME_SAMPLINGS,
        IMAGE_SUFFIXES,
        VIDEO_SUFFIXES,
        check_choice,
        check_positive_integer,
    )
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import (
        DECODERS,
        FRAME_SAMPLINGS,
        IMAGE_SUFFIXES,
        VIDEO_SUFFIXES,
        check_choice,
        check_positive_integer,
    )

try:
    from .container_clipfsar import ZIP_MAGIC, VideoTimes, check_container, one_line
except ImportError:
    if __package__:
        raise
    from container_clipfsar import ZIP_MAGIC, VideoTimes, check_container, one_line

try:
    from .decoding_clipfsar import RecountError, installed_decoder, open_reader, reason_of
except ImportError:
    if __package__:
        raise
    from decoding_clipfsar import RecountError, installed_decoder, open_reader, reason_of

try:
    from .download_clipfsar import download
except ImportError:
    if __package__:
        raise
    from download_clipfsar import download

try:
    from .frame_archive_clipfsar import FrameArchive
except ImportError:
    if __package__:
        raise
    from frame_archive_clipfsar import FrameArchive

try:
    from .limits_clipfsar import (
        UnreadableError,
        check_clip_size,
        check_frame_size,
        check_limit,
        check_regular_file,
        limit,
        read_file,
    )
    from .paths_clipfsar import has_protocol
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import (
        UnreadableError,
        check_clip_size,
        check_frame_size,
        check_limit,
        check_regular_file,
        limit,
        read_file,
    )
    from paths_clipfsar import has_protocol

try:
    from .reader_process_clipfsar import RemoteReader, can_start_processes
except ImportError:
    if __package__:
        raise
    from reader_process_clipfsar import RemoteReader, can_start_processes

try:
    from .spans_clipfsar import Span, split_span, wrong_times
except ImportError:
    if __package__:
        raise
    from spans_clipfsar import Span, split_span, wrong_times

# Formats accepted for image files. Pillow knows 40 more; one of them starts a program.
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_EXIF_ORIENTATION = 0x0112


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
    """Returns the indices of `num_frames` frames of a video that has `num_video_frames`, in rising order.

    - `"segment_center"`: the middle frame of each of `num_frames` equal segments; deterministic.
    - `"segment_random"`: one uniformly random frame from each segment of `num_video_frames // num_frames` frames,
      drawn from `generator` (official for SSv2, HMDB51 and UCF101, in training and testing).
    - `"interval"`: evenly spaced frames of a clip of `num_frames * sampling_rate` frames at `target_fps` (official for
      Kinetics-100). With a `generator` the clip starts at random (training); without one it is centred (testing).
      `fps`, the video's frames per second, is required.
    - `"linspace"`: evenly spaced frames from the second to the last but one, or from the first to the last of a video
      with fewer than `num_frames + 3` frames. With a `generator` both ends are drawn, up to 5 frames from those of the
      video (training). From TRX (Perrett et al., CVPR 2021) and CLIP-MEI, `video_reader.py`.

    If the video has fewer frames than `num_frames`, all are returned and some repeat. If it has exactly `num_frames`,
    each is returned once. (The official program breaks on shorter videos.)

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
    if sampling == "linspace":
        return _linspace_indices(num_video_frames, num_frames, generator)

    return _interval_indices(num_video_frames, num_frames, fps, sampling_rate, target_fps, generator)


def _linspace_indices(num_video_frames: int, num_frames: int, generator: torch.Generator | None) -> list[int]:
    last = num_video_frames - 1
    if generator is None:
        start, end = 1, last - 1
    else:
        most = min(5, (num_video_frames - num_frames) // 2)
        before, after = torch.randint(most + 1, (2,), generator=generator).tolist()
        start, end = before, last - after
    if end - start < num_frames:
        start, end = 0, last
    return np.linspace(start, end, num_frames).astype(int).tolist()


def _interval_indices(
    num_video_frames: int,
    num_frames: int,
    fps: float | None,
    sampling_rate: float,
    target_fps: float,
    generator: torch.Generator | None,
) -> list[int]:
    if fps is None or not math.isfinite(fps) or fps <= 0:
        raise ValueError(
            f"sampling='interval' needs the video's frames per second, got fps={fps}: pass fps=, or choose "
            "'segment_center' or 'segment_random', which do not need it."
        )
    if sampling_rate <= 0 or target_fps <= 0:
        raise ValueError(f"sampling_rate={sampling_rate} and target_fps={target_fps} must be greater than 0.")
    clip_length = num_frames * sampling_rate * fps / target_fps
    if clip_length > num_video_frames:
        clip_length = num_video_frames // num_frames * num_frames
    latest_start = num_video_frames - clip_length
    # float64: float32 could round a start that lies just below the next whole frame up to it
    position = 0.5 if generator is None else torch.rand((), generator=generator, dtype=torch.float64).item()
    start = position * latest_start
    # As in the official program, for exact parity: sampling_rate is not scaled by the frame rate here.
    end = start + clip_length - sampling_rate
    if end < start:
        # Deviation: for clips shorter than sampling_rate the official program runs backwards; we do not.
        end = start + clip_length - 1
    step = (end - start) / max(num_frames - 1, 1)
    indices = [math.floor(start + i * step + 0.5) for i in range(num_frames)]
    return [min(max(index, 0), num_video_frames - 1) for index in indices]


class VideoReadError(ValueError):
    """Raised for a video that cannot be read. `path` names it (None for videos given as bytes or frames)."""

    def __init__(self, message: str, path: str | None = None):
        # One required argument: DataLoader workers rebuild an exception from its message alone.
        super().__init__(message)
        self.path = path


# A reader opens one video. It has `times` (`VideoTimes`) and `read`, which takes rising frame numbers and yields uint8
# frames (H, W, 3).


class _OpenDecoderReader:
    """A torchcodec decoder that is already open, as in the rows of a `datasets.Video()` column."""

    def __init__(self, decoder):
        self._decoder = decoder
        self.times = VideoTimes.at_rate(decoder.metadata.num_frames or 0, decoder.metadata.average_fps)

    def read(self, frames: list[int]) -> Iterator[np.ndarray]:
        images = self._decoder.get_frames_at(indices=frames).data
        yield from (images if images.shape[-1] == 3 else images.permute(0, 2, 3, 1)).numpy()


class _FrameFiles:
    """A folder of frames: image files in natural order (frame_2 before frame_10)."""

    def __init__(self, folder: str):
        names = [name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
        names.sort(key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)])
        self._paths = [os.path.join(folder, name) for name in names]
        self.times = VideoTimes(len(names))

    def has_turned_images(self) -> bool:
        for path in self._paths:
            with _open_image(path) as image:
                if _is_turned(image):
                    return True
        return False

    def read(self, frames: list[int]) -> Iterator[np.ndarray]:
        for number in frames:
            try:
                with _open_image(self._paths[number]) as image:
                    pixels = _upright(image)
            except Exception as error:
                name = os.path.basename(self._paths[number])
                reason = str(error) if isinstance(error, UnreadableError) else one_line(error)
                raise UnreadableError(f"frame file {name!r}: {reason}") from error
            yield pixels


class _FramesInMemory:
    """Frames as one array (T, H, W, 3) or (T, 3, H, W), or as a list of PIL images or (H, W, 3) arrays."""

    def __init__(self, frames):
        self._frames = frames
        self.times = VideoTimes(len(frames))
        if isinstance(frames, (np.ndarray, torch.Tensor)):
            if not str(frames.dtype).endswith("uint8"):
                raise UnreadableError(f"its frames are {frames.dtype}, but uint8 from 0 to 255 is needed")
            if frames.ndim != 4 or (frames.shape[-1] != 3 and frames.shape[1] != 3) or 0 in frames.shape[1:]:
                raise UnreadableError(f"its frames have shape {tuple(frames.shape)}, but (T, H, W, 3) is needed")

    @property
    def is_array(self) -> bool:
        return isinstance(self._frames, (np.ndarray, torch.Tensor))

    def read_array(self, frames: list[int]) -> torch.Tensor:
        # Index first, then make a tensor: the array may be read-only or have negative strides, its copy is neither.
        chosen = self._frames[frames]
        chosen = torch.from_numpy(chosen) if isinstance(chosen, np.ndarray) else chosen  # a CUDA tensor stays there
        return chosen if chosen.shape[-1] == 3 else chosen.permute(0, 2, 3, 1)

    def read(self, frames: list[int]) -> Iterator[np.ndarray]:
        if self.is_array:
            yield from (self.read_array([number])[0].cpu().numpy() for number in frames)
            return
        for number in frames:
            image = self._frames[number]
            yield _upright(image) if isinstance(image, Image.Image) else np.asarray(image)


def _open_image(path: str) -> Image.Image:
    check_regular_file(path)
    return Image.open(path, formats=_IMAGE_FORMATS)


def _is_turned(image: Image.Image) -> bool:
    with contextlib.suppress(Exception):
        return image.getexif().get(_EXIF_ORIENTATION, 1) != 1
    return False


def _upright(image: Image.Image) -> np.ndarray:
    """RGB pixels of an image, turned as its EXIF data say. EXIF data that make no sense are ignored."""
    check_frame_size(*image.size)  # before it is decoded
    is_png = image.format == "PNG"
    with contextlib.suppress(Exception):
        if _is_turned(image):
            image = ImageOps.exif_transpose(image)
    return np.asarray(_in_8_bits(image, is_png).convert("RGB"))


def _in_8_bits(image: Image.Image, is_png: bool) -> Image.Image:
    """A grey image of 16 bits (thermal, depth) by its upper 8, as FFmpeg does. Pillow would make it all white."""
    is_16_bit = image.mode.startswith("I;16") or (is_png and image.mode == "I")  # of earlier versions of Pillow
    if not is_16_bit and image.mode in ("I", "F"):
        raise UnreadableError(f"its pixels are numbers of 32 bits (mode {image.mode!r}), but 8 or 16 bits are needed")
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if is_16_bit else image


class _ArchiveReader:
    def __init__(self, source: str | bytes):
        source = read_file(source) if isinstance(source, str) else source
        try:
            self.archive = FrameArchive(source)
        except ValueError as error:
            raise UnreadableError(str(error)) from error
        self.times = self.archive.times

    def read(self, frames: list[int]) -> Iterator[np.ndarray]:
        yield from self.archive.read(frames).numpy()


class _PartReader:
    """A part of a video, from another reader. Frame 0 is the first one of the part."""

    def __init__(self, reader, span: Span):
        self._reader, self._span = reader, span
        self._find()

    def _find(self):
        span = self._span
        self._first, self.times = self._reader.times.part(span.start_seconds, span.end_seconds)

    def read(self, frames: list[int]) -> Iterator[np.ndarray]:
        yield from self._shifted(self._reader.read, frames)

    def stream(self, frames: list[int]) -> Iterator[np.ndarray]:
        yield from self._shifted(getattr(self._reader, "stream", self._reader.read), frames)

    def _shifted(self, read: Callable, frames: list[int]) -> Iterator[np.ndarray]:
        try:
            yield from read([self._first + number for number in frames])
        except RecountError:
            self._find()
            raise


def read_video_frames(
    video: Any,
    select_indices: Callable[..., Sequence[int]] | Sequence[int],
    decoder: str = "auto",
    num_threads: int = 1,
    check_archive: Callable[[FrameArchive], None] | None = None,
    seconds_per_video: float | None = None,
) -> torch.Tensor:
    """Reads the chosen frames of one video. Other frames are decoded only where the format requires it.

    Args:
        video: A path or URL, the bytes of a file, a file object, uint8 frames (numpy or torch, (T, H, W, 3) or
            (T, 3, H, W)), a list of PIL images, a folder of image files, a frame archive (`frame_archive_clipfsar`;
            it returns the nearest stored frame for one that it left out), or a value of a `datasets` video column (a
            `{"path", "bytes"}` dict or a torchcodec decoder). A path or URL may name a part, `long.mp4#t=12.5,15`
            (`spans_clipfsar`).
        select_indices: The frame indices, or a function that computes them from `(num_video_frames, fps)`. `fps` is
            the mean rate, None if unknown. If the function has a parameter `times`, it also gets the `VideoTimes`.
        decoder: `"auto"` is PyAV, which is correct for every file and as fast as the others. `"decord"` and
            `"torchcodec"` refuse a file if their frames might differ from those a player shows.
        num_threads: Threads of the decoder (0: the decoder decides).
        check_archive: Called with a frame archive before it is read. It raises an error to refuse the archive.
        seconds_per_video: Time limit for a file. Another process reads the file and is killed when the time is up.
            None reads in this process, without a limit.

    Returns:
        uint8 RGB frames, (number of indices, H, W, 3), in the order of the indices. They are turned and mirrored as
        the file or the images' EXIF data say.

    Raises:
        VideoReadError: With the path, for anything unreadable: a file that is missing, empty, cut off or not a video,
            one without a video stream or frames, a wanted frame that cannot be decoded (another never replaces it) or
            that is made from a damaged one, or the end of the time limit. A file shorter than its own header states is
            refused whole: its true number of frames is unknown, so frames cannot be chosen correctly.
        ImportError: When the decoder is not installed.
    """
    check_choice("decoder", decoder, ("auto", *DECODERS))
    path, source, span = _locate(video)
    with _open_video(path, source, span, decoder, num_threads, seconds_per_video) as reader:
        if check_archive is not None and isinstance(reader, _ArchiveReader):
            check_archive(reader.archive)
        # Outside the blocks that catch errors: a wrong choice of frames is not the file's fault.
        indices = _choose(select_indices, reader.times, path)
        with _naming(path, "a wanted frame cannot be decoded"):
            try:
                return _read_in_order(reader, indices)
            except RecountError:
                pass
        # Codecs that pack or hide frames announce more frames than they decode to. Choose among the decoded ones.
        indices = _choose(select_indices, reader.times, path)
        with _naming(path, "a wanted frame cannot be decoded"):
            return _read_in_order(reader, indices)


def stream_video_frames(
    video: Any,
    select_indices: Callable[..., Sequence[int]],
    num_threads: int = 1,
    seconds_per_video: float | None = None,
) -> Iterator[torch.Tensor]:
    """Yields the chosen frames of a video one by one, uint8 (H, W, 3). Memory use does not grow with the video.

    Like `read_video_frames`, with three differences: the indices must rise, PyAV reads all files, and
    `seconds_per_video` limits opening the video and each single frame.

    Raises `VideoReadError`, possibly after some frames, and `ImportError` without PyAV.
    """
    path, source, span = _locate(video)
    with _open_video(path, source, span, "av", num_threads, seconds_per_video) as reader:
        read = getattr(reader, "stream", reader.read)
        indices, num_done = _choose(select_indices, reader.times, path), 0
        with _naming(path, "a wanted frame cannot be decoded"):
            try:
                for image in read(indices):
                    yield torch.from_numpy(np.array(image))
                    num_done += 1
                return
            except RecountError:
                if num_done:
                    raise
        indices = _choose(select_indices, reader.times, path)
        with _naming(path, "a wanted frame cannot be decoded"):
            for image in read(indices):
                yield torch.from_numpy(np.array(image))


@contextlib.contextmanager
def _naming(path: str | None, what_failed: str) -> Iterator[None]:
    """Turns any error in the block into a `VideoReadError` that names the file."""
    try:
        yield
    except (VideoReadError, ImportError):
        raise
    except Exception as error:
        raise VideoReadError(f"Cannot read video {_quoted(path)}: {reason_of(error, what_failed)}.", path) from error


@contextlib.contextmanager
def _open_video(
    path: str | None, source: Any, span: Span | None, decoder: str, num_threads: int, seconds: float | None
) -> Iterator:
    is_file = isinstance(source, bytes) or (isinstance(source, str) and not os.path.isdir(source))
    reader: Any
    with contextlib.ExitStack() as stack:
        with _naming(path, f"{'av' if decoder == 'auto' else decoder} cannot open it"):
            if isinstance(source, bytes) and source.startswith(ZIP_MAGIC):
                reader = _ArchiveReader(source)
            elif is_file and seconds and can_start_processes():
                reader = stack.enter_context(RemoteReader(source, decoder, num_threads, seconds))
                reader = _ArchiveReader(source) if reader.is_archive else reader
            elif is_file:
                reader = _open_here(source, decoder, num_threads)
            elif isinstance(source, str):
                reader = _FrameFiles(source)
            else:
                reader = (_OpenDecoderReader if hasattr(source, "get_frames_at") else _FramesInMemory)(source)
            if not reader.times.num_frames:
                expected = f" ({', '.join(IMAGE_SUFFIXES)})" if isinstance(reader, _FrameFiles) else ""
                if expected and any(name.lower().endswith(VIDEO_SUFFIXES) for name in os.listdir(source)):
                    expected += "; a folder is one clip of image files, so give its videos, not the folder"
                raise UnreadableError(f"it holds no frames{expected}")
            if span is not None:
                reader = _PartReader(reader, span)
        yield reader


def _open_here(source: str | bytes, decoder: str, num_threads: int):
    container = check_container(source)
    if container == "frame archive":
        return _ArchiveReader(source)
    installed_decoder(decoder)
    return open_reader(source, decoder, num_threads, container)


def frames_differ_from_0_1(video: Any, sampling: str = "segment_center") -> str | None:
    """Why version 0.1 of this library read other frames of a video than this version, judged by its packets.

    Returns None if both read the same frames, or if that is unknown: for a video that is missing or cannot be read, and
    for a web address, which is not downloaded for this. The check takes a few milliseconds. `sampling`: with
    `"interval"`, version 0.1 assumed a constant frame rate.
    """
    if is_address(video):
        return None
    try:
        _, source, _ = _locate(video)
        if isinstance(source, str) and os.path.isdir(source):
            reader = _FrameFiles(source)
            return "its images are turned by their EXIF data" if reader.has_turned_images() else None
        if not isinstance(source, (str, bytes)) or check_container(source) == "frame archive":
            return None
        reader = open_reader(source, "av", 1, "")
        return _oddity_for_0_1(reader, check_container(source), sampling)
    except (VideoReadError, UnreadableError, RecountError, OSError, importlib.import_module("av").FFmpegError):
        return None


def _oddity_for_0_1(reader, container: str, sampling: str) -> str | None:
    oddities = reader.oddities()
    oddities.pop("only decoding tells how many frames it shows")
    if container not in ("mp4", "matroska"):  # version 0.1 read the others from the beginning
        oddities.pop("its groups of pictures are open")
    if min((time for time in reader.packets.pts if time is not None), default=0) < 0:
        oddities.pop("its edit list hides frames")  # at the beginning: version 0.1 noticed these
    oddities["it is a transport stream, whose first frames were missed"] = reader.is_transport_stream
    oddities["it is a matroska file with B-frames"] = container == "matroska" and reader.is_reordered
    if sampling == "interval":
        oddities["its frame rate varies"] = not reader.times.is_constant
    return next((reason for reason, holds in oddities.items() if holds), None)


def _choose(select_indices, times: VideoTimes, path: str | None) -> list[int]:
    indices = select_indices
    if callable(select_indices):
        takes_times = "times" in inspect.signature(select_indices).parameters
        indices = select_indices(times.num_frames, times.fps, **({"times": times} if takes_times else {}))
    indices = [int(index) for index in indices]
    if not indices:
        raise ValueError(f"No frames of video {_quoted(path)} were requested: give at least one index.")
    for index in indices:
        if not 0 <= index < times.num_frames:
            raise ValueError(
                f"Frame {index} of video {_quoted(path)} was requested, but it has {times.num_frames} frames "
                f"(0 to {times.num_frames - 1})."
            )
    return indices


def _read_in_order(reader, indices: list[int]) -> torch.Tensor:
    """Frames in the order of the indices. Each frame is decoded once, in rising order, then placed and repeated."""
    if isinstance(reader, _FramesInMemory) and reader.is_array:
        return reader.read_array(indices)
    rising = sorted(set(indices))
    frames, num_read = None, 0
    for image in reader.read(rising):
        if frames is None:
            frames = _empty_frames(len(rising), image)
        if image.shape != frames.shape[1:]:
            raise UnreadableError(f"its frames differ in size: {sorted({image.shape, frames.shape[1:]})}")
        frames[num_read] = image
        num_read += 1
    if num_read != len(rising):
        raise UnreadableError(f"the decoder returned {num_read} of {len(rising)} frames")
    frames = torch.from_numpy(frames)
    if rising == indices:
        return frames
    position = {index: i for i, index in enumerate(rising)}
    return frames[[position[index] for index in indices]]


def _empty_frames(num_frames: int, image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UnreadableError(f"its frames are {image.dtype} of shape {image.shape}; uint8 (H, W, 3) is needed")
    height, width = image.shape[:2]
    check_frame_size(width, height)
    check_clip_size(num_frames, width, height)
    return np.empty((num_frames, *image.shape), np.uint8)


def video_times(video: Any, seconds_per_video: float | None = None) -> VideoTimes:
    """Frame count and rate of a video, and when its frames are shown. Decodes nothing, except where only that tells.

    For the arguments and errors see `read_video_frames`.
    """
    path, source, span = _locate(video)
    with _open_video(path, source, span, "av", 1, seconds_per_video) as reader:
        return reader.times


def _locate(video: Any) -> tuple[str | None, Any, Span | None]:
    """The name of a video for messages (None if it has none); what to read: a local path, bytes, or an object; and the
    part to read, None for all of it."""
    path = None
    if isinstance(video, Mapping):
        path = video.get("path")
        video = path if video.get("bytes") is None else video["bytes"]
        if video is None:
            raise VideoReadError("Cannot read video: the dict has neither 'path' nor 'bytes'.")
    if isinstance(video, (str, os.PathLike)):
        path = os.fsdecode(video)
        with _naming(path, "it is not a path"):
            reason = wrong_times(path)
            if reason is not None:
                raise UnreadableError(reason)
            whole, span = split_span(path)
            return path, _source_of(whole), span
    path = path if isinstance(path, str) else None
    if isinstance(video, (bytes, bytearray, memoryview)):
        return path, bytes(video), None
    if hasattr(video, "get_frames_at") or isinstance(video, (np.ndarray, torch.Tensor)):
        return path, video, None
    if hasattr(video, "read"):
        name = getattr(video, "name", None)
        path = name if isinstance(name, str) else None
        with _naming(path, "reading the file object failed"):
            return path, _content_of(video), None
    if isinstance(video, (list, tuple)):
        return path, video, None
    raise VideoReadError(
        f"Cannot read a video from a value of type {type(video).__name__}: give a path, URL, bytes, file object, uint8 "
        "frames (T, H, W, 3), a list of PIL images, a folder of frames, or a value of a datasets video column."
    )


def _source_of(path: str) -> str | bytes:
    """A local path, or the bytes behind an address."""
    if path.startswith("file://"):
        return urllib.request.url2pathname(urllib.parse.urlparse(path).path)
    if not is_address(path):
        return os.path.expanduser(path)
    try:
        return download(path)
    except Exception as error:  # fsspec's file systems raise anything
        reason = str(error) if isinstance(error, UnreadableError) else one_line(error)
        raise UnreadableError(f"the download failed ({reason})") from error


def _content_of(file: Any) -> bytes:
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)  # the same file object may be read a second time
    content = file.read(limit("file_bytes") + 1)
    if not isinstance(content, bytes):
        raise UnreadableError(f"it gives {type(content).__name__}, but bytes are needed: open it with mode 'rb'")
    check_limit("file_bytes", len(content), f"it has {len(content)} bytes or more")
    return content


def _quoted(path: str | None) -> str:
    return repr(path) if path is not None else "given as bytes or frames"


def is_address(video: Any) -> bool:
    """Whether a video is only an address (http://, hf://, s3://, ...), without bytes on this machine."""
    if isinstance(video, Mapping):
        video = None if video.get("bytes") is not None else video.get("path")
    return isinstance(video, str) and not video.startswith("file://") and has_protocol(video)


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
    column: Any = videos
    feature: Any = getattr(videos, "features", None)
    if type(feature).__name__ == "Video" and feature.decode:  # lazy column of `datasets`: iterating would decode all
        undecoded = column.source.cast_column(column.column_name, type(feature)(decode=False))
        videos = undecoded[column.column_name]
    return list(videos)


__all__ = [
    "VideoReadError",
    "VideoTimes",
    "as_video_list",
    "frames_differ_from_0_1",
    "is_address",
    "is_one_video",
    "read_video_frames",
    "sample_frame_indices",
    "stream_video_frames",
    "video_times",
]
