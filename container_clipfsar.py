"""Finds out from a video's packets which frames it shows, when, and where decoding may begin. Nothing is decoded.

A container's frame count, frame rate and seek table are often wrong about what a player shows. The packets are right:
FFmpeg marks those that an edit list hides, and each carries the time at which its frame is shown.

This module needs neither torch nor transformers. A process that only reads videos therefore starts quickly.
"""

import io
import itertools
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

try:
    from .limits_clipfsar import UnreadableError, check_limit, check_regular_file, limit
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import UnreadableError, check_limit, check_regular_file, limit

READER_VERSION = 2  # version 0.1 of the library had reader 1
ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class VideoTimes:
    """When the frames of a video are shown.

    Args:
        num_frames: Number of frames shown.
        fps: Mean frame rate, None if unknown.
        seconds: When each frame is shown, counted from the first, (num_frames). None if frame i is shown at i / fps,
            within half a frame.
        duration: Seconds from the first frame to the end of the last; None without a rate. `seconds` need it.
    """

    num_frames: int
    fps: float | None = None
    seconds: np.ndarray | None = None
    duration: float | None = None

    @classmethod
    def at_rate(cls, num_frames: int, fps: float | None) -> "VideoTimes":
        return cls(num_frames, fps, None, num_frames / fps if fps else None)

    @property
    def is_constant(self) -> bool:
        return self.seconds is None

    def as_constant(self) -> tuple[int, float | None]:
        """Frame count and rate of a video that shows the same at a constant rate.

        They are the video's own if its rate is constant. Otherwise the rate is that of its shortest frame, at most 120
        per second.
        """
        return (self.num_frames, self.fps) if self.seconds is None else self._at_shortest_frame(self.seconds)

    def _at_shortest_frame(self, seconds: np.ndarray) -> tuple[int, float]:
        assert self.duration is not None  # known wherever the seconds are
        shortest = max(float(np.diff(seconds).min(initial=np.inf)), 1 / 120)
        num_frames = max(round(self.duration / shortest), 1)
        return num_frames, num_frames / self.duration

    def frames_at(self, indices: list[int]) -> list[int]:
        """The frames of this video that are shown when the video of `as_constant` shows frames `indices`."""
        if self.seconds is None:
            return indices
        _, rate = self._at_shortest_frame(self.seconds)
        middles = (np.asarray(indices) + 0.5) / rate + self.seconds[0]
        frames = np.searchsorted(self.seconds, middles, side="right") - 1
        return frames.clip(0, self.num_frames - 1).tolist()

    def part(self, start_seconds: float, end_seconds: float | None) -> tuple[int, "VideoTimes"]:
        """The frames that begin in a part of the video: number of the first one, and the times of the part.

        A part that lies within one frame is that frame. `end_seconds` is excluded; None is the end of the video. A part
        may end up to a second after the video, because programs disagree about the lengths of videos.

        Raises:
            UnreadableError: Without a frame rate, for a part that is empty, or for one outside of the video.
        """
        if self.duration is None or not self.fps:
            raise UnreadableError("it does not say its frames per second, which a part in seconds needs")
        if end_seconds is not None and not start_seconds < end_seconds:
            raise UnreadableError(
                f"the part from {start_seconds:g} to {end_seconds:g} seconds is empty: its end is not after its start"
            )
        end = self.duration if end_seconds is None else end_seconds
        if start_seconds >= self.duration or end > self.duration + 1:
            raise UnreadableError(
                f"the part from {start_seconds:g} to {end:g} seconds is not in it: it lasts {self.duration:.6g} seconds"
            )
        seconds = np.arange(self.num_frames) / self.fps if self.seconds is None else self.seconds - self.seconds[0]
        # Times of parts are rounded, to a millisecond at worst, so a frame may seem to begin just before the part.
        slack = min(1e-3, 0.1 / self.fps)
        first, stop = np.searchsorted(seconds, [start_seconds - slack, end - slack])
        first = min(int(first), self.num_frames - 1)
        if stop <= first:
            first = max(int(np.searchsorted(seconds, start_seconds + slack)) - 1, 0)
            stop = first + 1
        length = int(stop) - first
        if self.seconds is None:
            return first, VideoTimes.at_rate(length, self.fps)
        duration = (float(seconds[stop]) if stop < self.num_frames else self.duration) - float(seconds[first])
        return first, VideoTimes(length, length / duration, seconds[first:stop] - seconds[first], duration)


@dataclass
class Packets:
    """The fields of a stream's packets, one list entry per packet, in decoding order."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    duration: list[int | None] = field(default_factory=list)
    is_key: list[bool] = field(default_factory=list)
    num_shown: list[int] = field(default_factory=list)  # frames that the packet shows: 0 for a hidden one
    is_cut: bool = False  # an edit list hides packets
    is_odd: bool = False  # only decoding tells how many frames are shown, or in which order
    is_b_picture: list[bool] = field(default_factory=list)  # for MPEG-4, whose containers may not say it
    has_times: bool = True  # False: frames are shown in packet order


@dataclass
class FrameOrder:
    """The shown frames, each identified by the packet it is decoded from.

    Args:
        packets: Packet number of each shown frame, in the order shown.
        entries: Packets at which decoding may begin, rising; the first is 0.
        ranks: One value per packet; it rises with the time at which the frame is shown. None if that is unknown.
    """

    packets: list[int]
    entries: list[int]
    ranks: Sequence[float | None]

    def entry_of(self, frame: int) -> int:
        """The last packet from which decoding gives a frame. Frames that lead a key frame need an earlier one."""
        packet = self.packets[frame]
        position = int(np.searchsorted(self.entries, packet, side="right")) - 1
        while position > 0 and not self.follows(packet, self.entries[position]):
            position -= 1
        return self.entries[position]

    def follows(self, packet: int, earlier: int) -> bool:
        """Whether a packet's frame is known not to be shown before that of `earlier`."""
        rank, earlier_rank = self.ranks[packet], self.ranks[earlier]
        return rank is not None and earlier_rank is not None and rank >= earlier_rank

    @property
    def has_leading_pictures(self) -> bool:
        """Whether frames are shown before the key frame that they follow in the file: an open GOP."""
        position = np.searchsorted(self.entries, self.packets, side="right") - 1
        keys = (self.entries[number] for number in position.clip(0))
        return any(not self.follows(*pair) for pair in zip(self.packets, keys, strict=True))


# --- packets ----------------------------------------------------------------------------------------------------------

# Decoding can begin at any key frame of these codecs. (In a GIF, only the first frame is whole.)
_CODECS_WITH_KEY_FRAMES = {
    *("h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "h263", "flv1", "mjpeg", "prores"),
    *("dnxhd", "ffv1", "rawvideo", "huffyuv", "theora", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"),
}
_CODECS_WITHOUT_REORDERING = {
    *("vp8", "vp9", "h263", "flv1", "mjpeg", "prores", "dnxhd", "ffv1", "rawvideo", "huffyuv", "gif"),
    *("msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"),
}
# Containers that do not say when frames are shown, so that FFmpeg invents times: avi, and streams without a container.
_FORMATS_WITHOUT_TIMES = {
    *("avi", "h261", "h263", "h264", "hevc", "m4v", "mpegvideo", "av1", "obu", "rawvideo", "vc1", "mjpeg", "cavsvideo"),
}
_SMALLEST_CODED_VOP = 20  # bytes; FFmpeg treats smaller ones as placeholders of packed B-frames


def count_shown(codec: str, data: memoryview) -> int:
    """How many frames a packet of VP8 or VP9 shows; 1 for any other codec."""
    if codec == "vp8":
        return data[0] >> 4 & 1  # RFC 6386, 9.1: show_frame
    if codec == "vp9":
        return sum(_is_shown_by_vp9(data[start]) for start in _vp9_frames(data))
    return 1


def _is_shown_by_vp9(head: int) -> bool:
    """Whether a frame is shown, by its first byte (VP9 bitstream specification, 6.2)."""
    bits = [head >> shift & 1 for shift in range(7, -1, -1)]  # frame_marker (2), profile (2), ...
    position = 5 if bits[2] and bits[3] else 4  # profile 3 has a reserved bit
    show_existing_frame, _, show_frame = bits[position : position + 3]
    return bool(show_existing_frame or show_frame)


def _vp9_frames(data: memoryview) -> list[int]:
    """Start of each frame in a packet; a superframe holds several (VP9 bitstream specification, annex B)."""
    marker = data[-1]
    num_frames, size_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index_size = 2 + num_frames * size_bytes
    if marker >> 5 != 0b110 or len(data) < index_size or data[-index_size] != marker:
        return [0]
    table = bytes(data[-index_size + 1 : -1])
    sizes = [int.from_bytes(table[i : i + size_bytes], "little") for i in range(0, len(table), size_bytes)]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return [start for start, size in zip(starts, sizes, strict=True) if size and start < len(data)]


def _mpeg4_picture(data: memoryview) -> int | None:
    """Type of the only coded picture in a packet, 2 for a B-picture; None if the packet holds anything else."""
    if len(data) < _SMALLEST_CODED_VOP:
        return None
    data = bytes(data)
    start = data.find(b"\0\0\1\xb6")
    is_one = start >= 0 and data.find(b"\0\0\1\xb6", start + 4) < 0
    return data[start + 4] >> 6 if is_one and start + 4 < len(data) else None


def _is_gradual_refresh(data: bytes) -> bool:
    """Whether an H.264 packet says that pictures are whole only some frames after it (ITU-T H.264, D.1.8)."""
    # The message precedes the picture: head of a NAL unit, payload type 6, payload size, recovery_frame_cnt.
    match = re.search(rb"[\0\1].?\x06\x06[\1\2\3](.)", data, re.DOTALL)
    return match is not None and not match[1][0] & 0x80


def list_packets(container, stream, keep_bytes: int) -> tuple[Packets, list | None]:
    """Demuxes a stream. Returns the fields of its packets, and the packets if they take at most `keep_bytes`.

    The returned packets carry their number instead of their time. The decoder passes it on to the frame.
    """
    codec = stream.codec_context.codec.canonical_name
    has_times = not _FORMATS_WITHOUT_TIMES & set(container.format.name.split(","))
    packets, kept, num_bytes = Packets(has_times=has_times), list[Any](), 0
    packets.is_odd = not has_times and codec not in _CODECS_WITHOUT_REORDERING | {"mpeg4"}
    # Here a packet may hold half a frame (one field). For other codecs and containers FFmpeg joins the fields.
    packets.is_odd |= codec == "h264" and "mpegts" in container.format.name and _is_interlaced(stream)
    max_packets = limit("frames")
    for packet in container.demux(stream):
        if not packet.size:
            continue
        number = len(packets.pts)
        if number == max_packets:
            check_limit("frames", number + 1, f"it holds {number + 1} frames or more")
        packets.pts.append(packet.pts)
        packets.dts.append(packet.dts)
        packets.size.append(packet.size)
        packets.duration.append(packet.duration)
        packets.is_key.append(packet.is_keyframe)
        packets.is_cut |= packet.is_discard
        packets.num_shown.append(0 if packet.is_discard else count_shown(codec, memoryview(packet)))
        if codec == "mpeg4" and not packets.is_odd:
            picture = _mpeg4_picture(memoryview(packet))
            packets.is_b_picture.append(picture == 2)
            packets.is_odd = picture is None or (picture == 2 and not has_times)
        if codec == "h264" and packet.is_keyframe and not packets.is_odd:
            packets.is_odd = _is_gradual_refresh(bytes(memoryview(packet)[:4096]))
        num_bytes += packet.size
        if kept is not None:
            packet.pts = number
            kept.append(packet)
            if num_bytes > keep_bytes:
                kept = None
    return packets, kept


def _is_interlaced(stream) -> bool:
    return stream.codec_context.field_order > 1  # 0: unknown, 1: progressive


def order_of_packets(packets: Packets, codec: str) -> FrameOrder | None:
    """The order in which frames are shown, by their times. None if only decoding tells."""
    shown = [number for number, count in enumerate(packets.num_shown) if count]
    ranks: Sequence[int | None] = packets.pts if packets.has_times else range(len(packets.pts))
    times = [rank for number in shown if (rank := ranks[number]) is not None]
    decoded = [dts for number in shown if (dts := packets.dts[number]) is not None]
    is_sound = (
        not packets.is_odd
        and max(packets.num_shown, default=0) <= 1
        and len(set(times)) == len(shown)  # each has a time, and no two the same
        and all(a <= b for a, b in itertools.pairwise(decoded))
    )
    if not is_sound:
        return None
    order = [number for _, number in sorted(zip(times, shown, strict=True))]
    if codec == "mpeg4" and order != [number for number in _order_by_type(packets) if packets.num_shown[number]]:
        return None  # copied from an avi, which stores no times
    entries = [0]
    if codec in _CODECS_WITH_KEY_FRAMES:
        entries += [number for number, is_key in enumerate(packets.is_key) if is_key and number]
    return FrameOrder(order, entries, ranks)


def _order_by_type(packets: Packets) -> list[int]:
    """Display order of MPEG-4 pictures: B-pictures at once, each other picture when the next other one comes."""
    order: list[int] = []
    held: list[int] = []
    for number, is_b_picture in enumerate(packets.is_b_picture):
        if is_b_picture:
            order.append(number)
        else:
            order += held
            held = [number]
    return order + held


def unsettled_start(order: FrameOrder, packets: Packets) -> int | None:
    """The first key frame, if frames are shown before it. Only decoding tells whether those decode. Otherwise None."""
    if not order.packets:
        return None
    first_key = packets.is_key.index(True) if True in packets.is_key else len(packets.is_key) - 1
    return None if order.follows(order.packets[0], first_key) else first_key


def exact_seconds(order: FrameOrder, packets: Packets, container, stream) -> np.ndarray | None:
    """When each frame is shown, in seconds after the first, (num_frames); None if unknown."""
    ticks = [pts for number in order.packets if (pts := packets.pts[number]) is not None]
    if not ticks or len(ticks) < len(order.packets) or stream.time_base is None:
        return None
    first = ticks[0]
    if container.format.name == "avi":  # it numbers frames from the beginning of the file, in the order shown
        ticks = sorted(ticks)
        first = min(stream.start_time or 0, ticks[0])
    if min(np.diff(ticks), default=1) <= 0:
        return None
    return np.array([(time - first) * float(stream.time_base) for time in ticks])


def times_of(order: FrameOrder, packets: Packets, container, stream) -> VideoTimes:
    """When the frames are shown, and their rate. The container's rate is used if the times agree with it."""
    num_frames, seconds = len(order.packets), exact_seconds(order, packets, container, stream)
    rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    if seconds is None or num_frames == 1:
        return VideoTimes.at_rate(num_frames, rates[0] if rates else None)
    tick = float(stream.time_base)
    for rate in rates:
        # half a frame, and half a tick for rounding
        if np.abs(seconds - seconds[0] - np.arange(num_frames) / rate).max() <= 0.5 / rate + 0.5 * tick:
            return VideoTimes.at_rate(num_frames, rate)
    last, stated = seconds[-1] - seconds[-2], packets.duration[order.packets[-1]]
    if "mp4" in container.format.name and stated:
        last = stated * tick  # (other containers state none; FFmpeg guesses there)
    duration = float(seconds[-1] - seconds[0] + last)
    return VideoTimes(num_frames, num_frames / duration, seconds, duration)


# --- orientation ------------------------------------------------------------------------------------------------------


def turns_of_matrix(matrix: bytes | None) -> tuple[bool, bool, bool]:
    """How a display matrix (nine numbers, ISO/IEC 14496-12, 8.3.2) turns a picture: whether to swap rows and columns,
    then left and right, then top and bottom. A matrix that is not valid is ignored."""
    if matrix is None or len(matrix) != 36:
        return False, False, False
    a, b, _, c, d = struct.unpack("=9i", matrix)[:5]
    if a * d == b * c:
        return False, False, False
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def turn(image: np.ndarray, turns: tuple[bool, bool, bool]) -> np.ndarray:
    """A picture (H, W, 3), turned as it is shown; a view."""
    is_transposed, flip_columns, flip_rows = turns
    image = image.swapaxes(0, 1) if is_transposed else image
    return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


# --- before anything is opened ----------------------------------------------------------------------------------------


def check_container(source: str | bytes) -> str:
    """The kind of container, by its first bytes. Raises `UnreadableError` if the file is missing or empty, if it is
    shorter than its header states (decoders silently accept a cut-off webm or avi), or if its header states more
    samples than it can hold."""
    try:
        num_bytes = len(source) if isinstance(source, bytes) else check_regular_file(source)
        if not num_bytes:
            raise UnreadableError("the file is empty (0 bytes)")
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            kind, end = _kind_and_end(file, num_bytes)
            if kind == "mp4":
                _check_mp4_counts(file, num_bytes)
    except (OSError, ValueError) as error:  # (a path with a zero byte is a ValueError)
        raise UnreadableError(getattr(error, "strerror", None) or str(error)) from error
    if end > num_bytes:
        raise UnreadableError(f"the file is cut off: it has {num_bytes} bytes, but at least {end} are needed")
    return kind


def _kind_and_end(file, num_bytes: int) -> tuple[str, int]:
    head = file.read(16)
    if head[4:8] in _MP4_BOXES:
        return "mp4", _mp4_end(file, num_bytes)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        size = int.from_bytes(head[4:8], "little")
        return "avi", size + 8 if size < 0xFFFFFFF0 else 0  # streamed files hold 0 or -1 here
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska", _matroska_end(file)
    if head.startswith(ZIP_MAGIC):
        return "frame archive", 0  # a zip ends with its table of contents, so a cut-off one does not open
    if head.startswith((b"\x00\x00\x01\xba", b"\x47", b"FLV", b"\x30\x26\xb2\x75", b"OggS")):
        return "stream", 0  # MPEG program and transport streams, Flash, Windows Media, Ogg: they state no length
    return "unknown", 0


_MP4_BOXES = tuple(b"ftyp moov mdat moof free skip wide udta meta sidx mfra uuid".split())
_MP4_PARENTS = tuple(b"moov trak edts mdia minf stbl moof traf".split())


def _mp4_end(file, num_bytes: int) -> int:
    """Where the last top-level box of an mp4 or mov ends (ISO/IEC 14496-12, 4.2)."""
    position = 0
    for kind, _, end in _mp4_boxes(file, 0, num_bytes):
        if kind not in _MP4_BOXES:  # bytes after the last box
            break
        position = end
    return position


def _mp4_boxes(file, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start of the content and end of each box between two positions."""
    while start + 8 <= end:
        file.seek(start)
        header = file.read(16)
        size, content = int.from_bytes(header[:4], "big"), start + 8
        if size == 1:
            size, content = int.from_bytes(header[8:16], "big"), start + 16
        elif size == 0:  # the box extends to the end
            size = end - start
        if size < 8:
            return
        yield header[4:8], content, start + size
        start += size


def _check_mp4_counts(file, num_bytes: int):
    """Refuses sample counts too large for the file: FFmpeg allocates memory for them when it opens the file."""

    def number(position: int) -> int:
        file.seek(position)
        return int.from_bytes(file.read(4), "big")

    pending = [(0, num_bytes)]
    num_edits = num_samples = 0
    while pending:
        for kind, content, end in _mp4_boxes(file, *pending.pop()):
            if kind in _MP4_PARENTS:
                pending.append((content, min(end, num_bytes)))
            elif kind in (b"stsz", b"stz2", b"trun"):
                count = number(content + (4 if kind == b"trun" else 8))
                if count > num_bytes:
                    raise UnreadableError(f"its header states {count} frames, but the file has {num_bytes} bytes")
                num_samples = max(num_samples, count)
            elif kind == b"elst":
                num_edits = max(num_edits, min(number(content + 4), (end - content) // 12))
    if num_edits > 1:
        product = num_edits * num_samples
        words = f"its edit list of {num_edits} entries over {num_samples} frames has {product} samples"
        check_limit("edited_samples", product, words)


def _matroska_end(file) -> int:
    """Where the segment of a webm or mkv ends, 0 if the file does not say (RFC 8794, sections 4 to 6)."""

    def read_size():
        first = file.read(1)
        length = 9 - first[0].bit_length() if first and first[0] else 1
        data = int.from_bytes(first + file.read(length - 1), "big") & ((1 << 7 * length) - 1)
        return None if data == (1 << 7 * length) - 1 else data  # all ones: unknown, as when streamed

    file.seek(4)
    header_size = read_size()
    if header_size is None or header_size > 2**20:
        return 0
    file.seek(header_size, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    segment_size = read_size()
    return 0 if segment_size is None else file.tell() + segment_size


def one_line(error: Exception) -> str:
    """A decoder's error message without stack trace, source positions and issue-tracker links."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    lines = [line.strip() for line in text.strip().splitlines()] or [type(error).__name__]
    line = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: |^\w+, \S+\.cpp:\d+, ", "", lines[0])
    return line.rstrip(". ")[:200]


__all__ = [
    "READER_VERSION",
    "FrameOrder",
    "Packets",
    "UnreadableError",
    "VideoTimes",
    "check_container",
    "count_shown",
    "exact_seconds",
    "list_packets",
    "one_line",
    "order_of_packets",
    "times_of",
    "turn",
    "turns_of_matrix",
    "unsettled_start",
]
