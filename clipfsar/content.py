"""Identifies a video by a digest of its name, its length, and its first and last bytes.

A digest takes two short reads, however long the video is. It changes when another file replaces the video, unless both
have the same length and the same first and last 4 KB. Videos at web addresses are not downloaded: their digest depends
on the address only, so it does not change when the video there does.
"""

import hashlib
import os
import stat
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from choices_clipfsar import IMAGE_SUFFIXES
from spans_clipfsar import split_span
from video_clipfsar import is_address

DIGEST_BYTES = 16
BYTES_AT_ENDS = 4096
IMAGES_LOOKED_INTO = 16  # images of a folder whose bytes are read; the others count by name and size
ROWS_COMPARED = 4  # of a column of digests


def framed_digest(parts: Iterable[bytes]) -> bytes:
    """Digest of a list of parts. Each part is preceded by its length, so ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def digest_of_video(video: Any) -> bytes:
    """Digest of a value of a video column: a path, an address, bytes, or a dict of path and bytes.

    - A file: CLASS/FILE, length, first and last 4 KB. Moving a data set does not change it.
    - A folder of frames: CLASS/FOLDER, name and size of every image, and the ends of at most 16 of them.
    - Bytes: like a file.
    - An address, or a path that does not exist: the name only.
    - A part of a video (`a.mp4#t=1,2`): the digest of the whole, and the part.
    """
    path, data = (video.get("path"), video.get("bytes")) if isinstance(video, dict) else (video, None)
    if isinstance(video, bytes):
        path, data = None, video
    if data is not None:
        view = memoryview(data)
        return _digest("bytes", _short_name(path), *_ends(view), len(view))
    if path is None:
        return _digest("nothing")
    path, span = split_span(os.fspath(path))
    if span is not None:
        return _digest("part", digest_of_video(path), str(span))
    if path.startswith("file://"):
        path = urllib.request.url2pathname(urllib.parse.urlparse(path).path)
    elif is_address(path):
        return _digest("address", path)
    return _digest_of_path(os.path.expanduser(path))


def _digest_of_path(path: str) -> bytes:
    name = _short_name(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return _digest("images", name, *_images(path))
        if stat.S_ISREG(mode):
            return _digest("file", name, *_ends_of_file(path))
    except (OSError, ValueError):  # missing, unreadable, or an invalid name: reading its frames will report it
        pass
    return _digest("unreadable", name)


def _digest(*parts: str | bytes | int) -> bytes:
    return framed_digest(
        part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass") for part in parts
    )


def _short_name(path: str | None) -> str:
    return "/".join(Path(path).parts[-2:]) if path else ""


def _ends(data: memoryview) -> tuple[bytes, bytes]:
    return bytes(data[:BYTES_AT_ENDS]), bytes(data[max(0, len(data) - BYTES_AT_ENDS) :])


def _ends_of_file(path: str) -> tuple[bytes, bytes, int]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(BYTES_AT_ENDS)
        file.seek(max(0, size - BYTES_AT_ENDS))
        return first, file.read(BYTES_AT_ENDS), size


def digest_of_ends(video: str | memoryview) -> bytes:
    """Digest of a file's or a view's length and ends, whatever its name."""
    ends = (*_ends(video), len(video)) if isinstance(video, memoryview) else _ends_of_file(video)
    return _digest(*ends)


def _images(folder: str) -> Iterator[str | bytes | int]:
    with os.scandir(folder) as entries:
        images = [entry for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.name[0] != "."]
        sizes = {entry.name: entry.stat().st_size for entry in images}
    names = sorted(sizes)
    for name in names:
        yield from (name, sizes[name])
    step = max(1, len(names) / IMAGES_LOOKED_INTO)
    for number in range(min(len(names), IMAGES_LOOKED_INTO)):
        yield from _ends_of_file(os.path.join(folder, names[int(number * step)]))


def digest_column(video_column: str = "video") -> str:
    """Name of the column with the digests of the videos in `video_column`, as hexadecimal text."""
    return f"{video_column}_digest"


def digests_of_videos(dataset, video_column: str = "video") -> np.ndarray:
    """Digest of each video of a `datasets.Dataset`, uint8 (V, 16).

    If `clipfsar prepare` stored them in a column, a few are compared with the videos, and all others are taken from it.
    Otherwise the ends of each video are read. No video is copied.
    """
    column = digest_column(video_column)
    if column not in dataset.column_names:
        return _read_digests(dataset, video_column, range(len(dataset)))
    stored = dataset[column][:]
    few = np.unique(np.linspace(0, len(dataset) - 1, min(ROWS_COMPARED, len(dataset))).astype(int))
    if [stored[row] for row in few] == [digest.tobytes().hex() for digest in _read_digests(dataset, video_column, few)]:
        return _array_of(map(bytes.fromhex, stored))
    warnings.warn(f"The column {column!r} belongs to other videos: the digests are computed again.", stacklevel=2)
    return _read_digests(dataset, video_column, range(len(dataset)))


def _read_digests(dataset, video_column: str, rows: Iterable[int]) -> np.ndarray:
    return _array_of(map(digest_of_video, _references(dataset, video_column, rows)))


def _array_of(digests: Iterable[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def table_rows(dataset) -> np.ndarray:
    """Position of each row of a `datasets.Dataset` in its Arrow table: `select` and `shuffle` keep the table.

    Reading such a data set through `datasets` copies whole rows, with all the bytes of their videos.
    """
    if dataset._indices is None:
        return np.arange(len(dataset))
    return dataset._indices.column(0).to_numpy()


def _references(dataset, video_column: str, rows: Iterable[int]) -> Iterator[Any]:
    """Paths, addresses and bytes of some rows of a video column. Bytes are not copied."""
    videos, positions = dataset.data.column(video_column), table_rows(dataset)
    is_struct = pyarrow.types.is_struct(videos.type)
    for row in rows:
        video = videos[int(positions[row])]
        if not is_struct:
            yield video.as_py()
            continue
        values = dict(video.items()) if video.is_valid else {}
        yield {name: _plain(values[name]) if name in values else None for name in ("path", "bytes")}


def _plain(value: pyarrow.Scalar) -> Any:
    is_binary = pyarrow.types.is_binary(value.type) or pyarrow.types.is_large_binary(value.type)
    return value.as_buffer() if is_binary and value.is_valid else value.as_py()


def joint_digest(digests: np.ndarray) -> str:
    """One digest for several videos in this order, from their digests (V, 16)."""
    return "content " + framed_digest([digests.tobytes()]).hex()


__all__ = [
    "DIGEST_BYTES",
    "digest_column",
    "digest_of_ends",
    "digest_of_video",
    "digests_of_videos",
    "framed_digest",
    "joint_digest",
    "table_rows",
]
