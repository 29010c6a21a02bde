"""Readers of video files: PyAV by default; decord and torchcodec for files where they give the same frames.

A reader has `times` (`VideoTimes`) and `read(frames)`, which takes rising frame numbers and yields uint8 frames
(H, W, 3). This module does not need torch.
"""

import functools
import importlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

try:
    from .container_clipfsar import (
        FrameOrder,
        UnreadableError,
        exact_seconds,
        list_packets,
        one_line,
        order_of_packets,
        times_of,
        turn,
        turns_of_matrix,
        unsettled_start,
    )
except ImportError:
    if __package__:
        raise
    from container_clipfsar import (
        FrameOrder,
        UnreadableError,
        exact_seconds,
        list_packets,
        one_line,
        order_of_packets,
        times_of,
        turn,
        turns_of_matrix,
        unsettled_start,
    )

try:
    from .limits_clipfsar import check_frame_size, limit
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import check_frame_size, limit

KEPT_PACKET_BYTES = 2**25  # packets kept in memory after listing them, until the frames are read
# Codecs whose decoders can start and stop skipping unreferenced frames at any packet. (AV1's decoder decides once.)
CODECS_THAT_SKIP = {"h264", "hevc", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4"}
KEPT_FRAME_BYTES = 2**26  # frames kept in memory if counting them required decoding


class RecountError(UnreadableError):
    """Raised if decoding gives other frames than the packets announced. `reader.times` then counts the decoded ones."""


@functools.cache
def load_decoder(name: str):
    """The decoder's module and None, or None and the reason why the import fails (of whatever exception type)."""
    try:
        module = importlib.import_module({"torchcodec": "torchcodec.decoders"}.get(name, name))
    except Exception as error:
        return None, one_line(error)
    if name == "decord":
        module.logging.set_level(module.logging.QUIET)  # otherwise its FFmpeg writes to stderr for every damaged file
    return module, None


# --- PyAV -------------------------------------------------------------------------------------------------------------


class PyAVReader:
    """Decodes from the key frame before a wanted frame. Each frame is identified by the packet it is decoded from."""

    def __init__(self, source: str | bytes, num_threads: int = 1):
        self._source, self._num_threads = source, num_threads
        self._skips: tuple | None = None
        self._container, self._stream = self._open()
        self.codec = self._stream.codec_context.codec.canonical_name
        width, height = self._stream.codec_context.width, self._stream.codec_context.height
        if width or height:  # some headers leave both 0; the first frame then says them
            check_frame_size(width, height)
        self.packets, self._kept = list_packets(self._container, self._stream, KEPT_PACKET_BYTES)
        self._decoded: list | None = None  # the frames, if counting them required decoding
        self.is_counted_by_decoding = self._is_damaged = (
            False  # whether decoding determined the order, and whether it met damaged packets
        )
        order = order_of_packets(self.packets, self.codec)
        if order is None:
            self._order_by_decoding()
        else:
            self.order = order
            if (first_key := unsettled_start(order, self.packets)) is not None:
                self._settle_start(first_key)
        self._set_times()

    def _set_times(self):
        self.times = times_of(self.order, self.packets, self._container, self._stream)

    @property
    def seconds(self) -> np.ndarray:
        """When each frame is shown, (num_frames)."""
        seconds = exact_seconds(self.order, self.packets, self._container, self._stream)
        return np.arange(self.times.num_frames) / (self.times.fps or 1) if seconds is None else seconds

    @property
    def sample_aspect_ratio(self) -> float:
        """Width of a pixel divided by its height, 1 if unknown. `read` does not correct for it."""
        ratio = self._stream.sample_aspect_ratio
        return float(ratio) if ratio else 1.0

    @property
    def num_streams(self) -> int:
        return len(self._container.streams.video)

    @property
    def is_reordered(self) -> bool:
        """Whether frames are decoded in another order than shown (B-frames)."""
        return self.order.packets != sorted(self.order.packets)

    @property
    def is_transport_stream(self) -> bool:
        return "mpegts" in self._container.format.name

    def turns(self) -> tuple[bool, bool, bool]:
        """How the first frame is turned (see `turns_of_matrix`). Decodes that frame."""
        frame = next(self._wanted([0]))
        return turns_of_matrix(_matrix_of(frame))

    def oddities(self) -> dict[str, bool]:
        """Reasons why other readers may return wrong frames, each with whether it applies to this file."""
        is_transposed, flips_columns, flips_rows = self.turns()
        return {
            "its edit list hides frames": self.packets.is_cut,
            "it has hidden frames": any(count != 1 for count in self.packets.num_shown) and not self.packets.is_cut,
            "it is mirrored": is_transposed == (flips_columns == flips_rows),
            "its groups of pictures are open": self.order.has_leading_pictures or not self.packets.is_key[0],
            "only decoding tells how many frames it shows": self.is_counted_by_decoding,
        }

    def close(self):
        self._kept = self._decoded = None
        self._container.close()

    def read(self, frames: list[int]) -> Iterator[np.ndarray]:
        """Yields frames. Raises `UnreadableError` if one cannot be decoded; `RecountError` even after some frames."""
        convert = _Converter()
        for frame in self._wanted(frames):
            yield convert(frame)

    # Opening

    def _open(self):
        av, _ = load_decoder("av")
        # "file:" in front, or FFmpeg would read a colon in the name as the end of a protocol
        file = f"file:{os.path.abspath(self._source)}" if isinstance(self._source, str) else io.BytesIO(self._source)
        container = av.open(file, metadata_errors="replace")
        stream = container.streams.best("video")
        if stream is not None and _is_cover_art(stream):
            stream = next((other for other in container.streams.video if not _is_cover_art(other)), None)
        if stream is None or stream.codec_context is None:
            raise UnreadableError("it has no video stream")
        stream.codec_context.thread_count = self._num_threads
        stream.codec_context.options = {"max_pixels": str(limit("frame_pixels"))}
        return container, stream

    # Packets in decoding order; each carries its number instead of its time

    def _packets_from(self, entry: int) -> Iterator:
        if self._kept is not None:
            return iter(self._kept[entry:])
        return self._packets_again(entry)

    def _packets_again(self, entry: int) -> Iterator:
        """Packets of a large file, demuxed again: from where a seek leads if it is known there, else from the start."""
        if entry and self.packets.has_times and self.packets.pts[entry] is not None:
            self._container.seek(self.packets.pts[entry], stream=self._stream)
            number, is_there = None, False
            for packet in self._container.demux(self._stream):
                if not packet.size:
                    continue
                identity = packet.pts, packet.dts, packet.size
                number = self._numbers.get(identity, entry + 1) if number is None else number + 1
                if number > entry and not is_there:
                    break  # the seek led too far, or to an unknown place
                if self._identities[number] != identity:
                    raise UnreadableError("its packets come in another order after a seek")
                is_there = number >= entry
                if is_there:
                    packet.pts = number
                    yield packet
            else:
                return
        self._container.close()
        self._container, self._stream = self._open()
        packets = (packet for packet in self._container.demux(self._stream) if packet.size)
        for number, packet in enumerate(packets):
            if number >= entry:
                packet.pts = number
                yield packet

    @functools.cached_property
    def _identities(self) -> list[tuple]:
        return list(zip(self.packets.pts, self.packets.dts, self.packets.size, strict=True))

    @functools.cached_property
    def _numbers(self) -> dict[tuple, int]:
        return {identity: number for number, identity in enumerate(self._identities)}

    # Decoding

    def _wanted(self, frames: list[int]) -> Iterator:
        """Decoded frames; `frames` are their numbers, rising."""
        num_done = 0
        if not self.is_counted_by_decoding:
            try:
                for frame in self._wanted_by_identity(frames):
                    yield frame
                    num_done += 1
                return
            except Exception as error:
                # Decode from the beginning then: the frames that decode are those that the file shows.
                before, reason = self.order.packets, error
            self._order_by_decoding()
            if self.order.packets != before:
                num_frames = len(self.order.packets)
                self._set_times()
                message = f"frames cannot be decoded: {len(before)} are announced, {num_frames} decode"
                raise (RecountError if num_frames else UnreadableError)(message) from reason
        yield from self._wanted_in_turn(frames[num_done:])

    def _wanted_by_identity(self, frames: list[int]) -> Iterator:
        packet_of, entries = self.order.packets, [self.order.entry_of(frame) for frame in frames]
        start = 0
        while start < len(frames):
            # Group frames: a frame joins the group if decoding the earlier frames already passes its entry.
            end, last = start + 1, packet_of[frames[start]]
            while end < len(frames) and entries[end] <= last:
                last = max(last, packet_of[frames[end]])
                end += 1
            group = frames[start:end]
            yield from self._decode_group(min(entries[start:end]), last, [packet_of[frame] for frame in group])
            start = end

    def _decode_group(self, entry: int, last: int, wanted: list[int]) -> Iterator:
        """The frames of the packets `wanted`, in the order shown. Decodes from packet `entry` to packet `last`."""
        pending, is_wanted, before = iter(wanted), set(wanted), float("-inf")
        expected: int | None = next(pending)
        damage = _Damage()
        for frame in self._decode(entry, last, is_wanted):
            is_damaged = damage.reaches(frame)
            rank = self.order.ranks[frame.pts]
            if rank is None or rank < before:
                raise UnreadableError("frames come in another order")
            before = rank
            if frame.pts not in is_wanted:
                continue
            if frame.pts != expected or is_damaged:
                raise UnreadableError("a frame is damaged" if is_damaged else "frames come in another order")
            yield frame
            expected = next(pending, None)
        if expected is not None:
            raise UnreadableError("a frame is missing")

    def _decode(self, entry: int, last: int, is_wanted: set[int]) -> Iterator:
        """Frames of the packets from `entry` to `last`. Some unwanted frames are skipped."""
        self._flush()
        for packet in self._packets_from(entry):
            number = packet.pts
            self._skip("DEFAULT" if number in is_wanted or self.codec not in CODECS_THAT_SKIP else "NONREF")
            yield from self._stream.codec_context.decode(packet)
            if number == last:
                break
        self._skip("DEFAULT")
        yield from self._stream.codec_context.decode(None)

    def _flush(self):
        if self._stream.codec_context.is_open:
            self._stream.codec_context.flush_buffers()
        self._skip("DEFAULT")

    def _skip(self, frames: str):
        if self._skips != (self._stream, frames):  # setting it costs some microseconds
            self._stream.codec_context.skip_frame = frames
            self._skips = self._stream, frames

    def _settle_start(self, first_key: int):
        """Removes frames that are announced before the first key frame but do not decode."""
        order, start, came = self.order, first_key, set()
        for frame in self._decode_all():
            if frame is not None and frame.pts is not None:
                came.add(frame.pts)
                if order.ranks[first_key] is None or order.follows(frame.pts, first_key):
                    start = frame.pts
                    break
        order.packets = [n for n in order.packets if n in came or order.follows(n, start)]

    def _order_by_decoding(self):
        """Decodes all frames from the beginning and sets the order in which they come out."""
        announced, num_damaged, num_bytes = sum(map(bool, self.packets.num_shown)), 0, 0
        came: list = []
        kept: list | None = []
        for frame in self._decode_all():
            if frame is None:
                num_damaged += 1
                continue
            came.append(frame.pts)
            if kept is not None:
                kept.append(frame)
                num_bytes += sum(plane.buffer_size for plane in frame.planes)
                kept = kept if num_bytes <= KEPT_FRAME_BYTES else None
        if num_damaged and announced - len(came) > max(2, announced // 50):
            raise UnreadableError(f"frames cannot be decoded: {announced} are announced, {len(came)} decode")
        # Frames are then counted from the beginning: nothing else identifies them reliably.
        self.order = FrameOrder(came, [0], list(range(len(self.packets.pts))))
        self._decoded, self.is_counted_by_decoding, self._is_damaged = kept, True, bool(num_damaged)

    def _decode_all(self) -> Iterator:
        """All frames from the beginning, with None in place of a packet that cannot be decoded."""
        av, _ = load_decoder("av")
        self._flush()
        for packet in self._packets_from(0):
            try:
                yield from self._stream.codec_context.decode(packet)
            except av.FFmpegError:
                yield None
        try:
            yield from self._stream.codec_context.decode(None)
        except av.FFmpegError:
            yield None

    def _wanted_in_turn(self, frames: list[int]) -> Iterator:
        """Decoded frames, counted from the beginning."""
        decoded = self._decode_all() if self._decoded is None or self._is_damaged else self._decoded
        wanted, number = iter(frames), 0
        expected, damage = next(wanted, None), _Damage()
        for frame in decoded:
            if expected is None:
                return
            if frame is None or (damage.reaches(frame) and number == expected):
                raise UnreadableError(f"frame {number} cannot be decoded: its data are damaged")
            if number == expected:
                yield frame
                expected = next(wanted, None)
            number += 1
        if expected is not None:
            raise UnreadableError(f"decoding ended after {number} frames")


class _Damage:
    """Follows damage from frame to frame. FFmpeg guesses what a damaged frame shows, and makes later frames from it.

    It marks only the damaged frame itself. The damage ends at the next key frame. After a start in the middle of a
    stream, frames are marked as well until the picture is whole: this ends by itself.
    """

    def __init__(self):
        self._is_whole = self._spreads = False

    def reaches(self, frame) -> bool:
        """Whether a frame, given in the order of decoding, shows something guessed."""
        if frame.key_frame:
            self._is_whole, self._spreads = True, frame.is_corrupt
        elif not frame.is_corrupt:
            self._is_whole = True
        elif self._is_whole:
            self._spreads = True
        return self._spreads or frame.is_corrupt


class _Converter:
    """Converts decoded frames to RGB, turned as they are shown. All get the first one's size: it may change midway."""

    def __init__(self):
        self._reformatter = importlib.import_module("av.video.reformatter").VideoReformatter()
        self._size = None

    def __call__(self, frame) -> np.ndarray:
        self._size = self._size or (frame.width, frame.height)
        image = self._reformatter.reformat(frame, *self._size, format="rgb24").to_ndarray()
        return turn(image, turns_of_matrix(_matrix_of(frame)))


def _matrix_of(frame) -> bytes | None:
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else bytes(data)


def _is_cover_art(stream) -> bool:
    """Whether a PyAV stream is the cover picture of a music file, which FFmpeg treats as a video of one frame."""
    flags = getattr(stream, "disposition", 0)  # exists since PyAV 14.1, as Flag; later versions have IntFlag
    return bool(getattr(flags, "value", flags) & 0x400)  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC


# --- decord and torchcodec --------------------------------------------------------------------------------------------


class _ForeignReader:
    """Common part of decord and torchcodec. PyAV tells what the file shows and whether they read it correctly."""

    name = ""
    _reader: Any  # the decoder's own reader; None once closed
    _open: Callable[[str | bytes, int], int]  # opens the file, returns the number of frames counted

    def __init__(self, source: str | bytes, num_threads: int, container: str):
        truth = PyAVReader(source, num_threads)
        self.times, self._seconds = truth.times, truth.seconds
        reason = self._refusal(truth, container in ("mp4", "matroska"))
        truth.close()
        if reason:
            raise UnreadableError(f"{self.name} is not safe with this file: {reason} (use 'av' or 'auto')")
        num_frames = self._open(source, num_threads)
        if num_frames != self.times.num_frames:
            shown = self.times.num_frames
            raise UnreadableError(f"{self.name} counts {num_frames} frames, but it shows {shown} (use 'av' or 'auto')")

    def _refusal(self, truth: PyAVReader, states_times: bool) -> str | None:
        """Why the decoder may return wrong frames. `states_times`: the file states times, as mp4 and matroska do."""
        reasons = truth.oddities()
        if not states_times:  # the decoder does not seek there
            reasons.pop("its groups of pictures are open")
            reasons.pop("only decoding tells how many frames it shows")
        reasons["it has several video streams"] = truth.num_streams > 1
        return next((reason for reason, holds in reasons.items() if holds), None)

    def close(self):
        self._reader = None


class DecordReader(_ForeignReader):
    name = "decord"

    def __init__(self, source: str | bytes, num_threads: int, container: str):
        self._can_seek = container in ("mp4", "matroska")  # in avi it jumps to wrong frames
        self._container = container
        if container == "stream":
            raise UnreadableError("decord misses frames at the beginning of such streams (use 'av' or 'auto')")
        super().__init__(source, num_threads, container)

    def _open(self, source, num_threads: int) -> int:
        decord, _ = load_decoder("decord")
        source = io.BytesIO(source) if isinstance(source, bytes) else source
        # Without fault_tol, decord silently replaces frames it cannot decode by their neighbours.
        self._reader = decord.VideoReader(source, num_threads=num_threads, fault_tol=1e-9)
        return len(self._reader)

    def _refusal(self, truth: PyAVReader, states_times: bool) -> str | None:
        if self._container == "matroska" and truth.is_reordered:
            return "it may miss the last frame of matroska files with B-frames"
        return super()._refusal(truth, states_times)

    def read(self, frames: list[int]) -> Iterator[np.ndarray]:
        # asnumpy, because decord's torch bridge is a global setting of the process
        if self._can_seek:
            yield from self._reader.get_batch(frames).asnumpy()
            return
        wanted = set(frames)
        for number in range(frames[-1] + 1):  # frame by frame, it never seeks
            image = self._reader.get_batch([number]).asnumpy()[0]
            if number in wanted:
                yield image


class TorchcodecReader(_ForeignReader):
    name = "torchcodec"

    def _open(self, source, num_threads: int) -> int:
        decoders, _ = load_decoder("torchcodec")
        # exact: approximate mode returns wrong frames where the frame rate varies
        self._reader = decoders.VideoDecoder(
            source, seek_mode="exact", num_ffmpeg_threads=num_threads, dimension_order="NHWC"
        )
        return self._reader.metadata.num_frames or 0

    def _refusal(self, truth: PyAVReader, states_times: bool) -> str | None:
        if not states_times:
            return "it finds frames reliably only in mp4 and matroska"
        return super()._refusal(truth, states_times)

    def read(self, frames: list[int]) -> Iterator[np.ndarray]:
        batch = self._reader.get_frames_at(indices=frames)
        shown = batch.pts_seconds.numpy() - self._reader.metadata.begin_stream_seconds
        if np.abs(shown - self._seconds[frames]).max() > 0.002:
            raise UnreadableError("torchcodec returned frames of other times than requested (use 'av' or 'auto')")
        yield from batch.data.numpy()


READERS = {"decord": DecordReader, "torchcodec": TorchcodecReader}


def open_reader(source: str | bytes, decoder: str, num_threads: int, container: str):
    """The reader of a file. `"auto"` is PyAV: no other decoder is faster on files where it is known to be correct."""
    if decoder in ("auto", "av"):
        return PyAVReader(source, num_threads)
    return READERS[decoder](source, num_threads, container)


def installed_decoder(decoder: str) -> str:
    """The name of the decoder that will be used. Raises `ImportError` if it cannot be imported."""
    name = "av" if decoder == "auto" else decoder
    for needed in (name, "av"):
        _, failure = load_decoder(needed)
        if failure is not None and decoder == "auto":
            raise ImportError(f"No video decoder can be imported ({failure}): `pip install av`.")
        if failure is not None:
            raise ImportError(
                f"decoder={decoder!r} cannot be imported ({failure}): `pip install {needed}`, or use decoder='auto'."
            )
    return name


def reason_of(error: Exception, what_failed: str) -> str:
    if isinstance(error, UnreadableError):
        return str(error)
    text = one_line(error)
    # decord and torchcodec say this in many more words
    return "it has no video stream that can be decoded" if "video stream" in text else f"{what_failed}: {text}"


__all__ = [
    "DecordReader",
    "PyAVReader",
    "RecountError",
    "TorchcodecReader",
    "installed_decoder",
    "load_decoder",
    "open_reader",
    "reason_of",
]
