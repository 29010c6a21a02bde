"""Videos of a data set that are copies of each other, byte for byte, under other names or in other classes.

Only videos of equal length are read: first their ends, then, if these agree, all of their bytes. Several are read at a
time, because on a network disk opening a file takes longer than reading its ends. Links to one file are read once.
"""

import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
from tqdm import tqdm

from clipfsar.content import digest_of_ends, table_rows

COPIES_NAMED = 5  # groups that the note lists
_READERS = 4  # more only wait for each other where the disk is fast
_AT_ONCE = 64  # videos that a thread reads
_SILENT = 10_000  # videos to read without a progress bar


@dataclass(frozen=True)
class Place:
    """A video: its split, class and name, and its path or its bytes inside the data set.

    Args:
        file: Identity of the file, the same for all links to it; None for bytes inside the data set.
    """

    split: str
    class_name: str
    name: str
    video: Any
    file: tuple[int, int] | None = None


def copies(splits: Mapping[str, Any]) -> list[list[Place]]:
    """Groups of two or more videos with the same bytes. Folders of frames, addresses and empty files are not compared.

    Args:
        splits: `datasets.Dataset` objects with the columns `video` and `label`, by name.
    """
    sized = [pair for split, dataset in splits.items() for pair in _with_sizes(split, dataset)]
    groups = _groups(sized)
    for digest in (_of_ends, _of_all):
        keys = _keys(digest, {_identity(place): place for group in groups for place in group})
        groups = [part for group in groups for part in _groups((one, keys[_identity(one)]) for one in group)]
    return groups


def _identity(place: Place) -> Hashable:
    return place.file or (id(place.video.column), place.video.row)


def _keys(digest: Callable[[Any], bytes], places: Mapping[Hashable, Place]) -> dict[Hashable, Hashable]:
    """The digest of each place, under its identity."""
    with ThreadPoolExecutor(_READERS) as readers:
        all_places = list(places.values())
        parts = [all_places[start : start + _AT_ONCE] for start in range(0, len(all_places), _AT_ONCE)]
        keys = readers.map(lambda part: [_key(digest, place) for place in part], parts)
        bar = tqdm(keys, "looking for copies", len(parts), disable=len(places) < _SILENT)
        return dict(zip(places, itertools.chain.from_iterable(bar), strict=True))


def _key(digest: Callable[[Any], bytes], place: Place) -> Hashable:
    try:
        return digest(place.video)
    except OSError:  # such as a file of another user
        return object()  # equal to no other


def note_on_copies(groups: list[list[Place]]) -> str:
    """A sentence about the copies with their names; empty without copies."""
    if not groups:
        return ""
    number = sum(len(group) - 1 for group in groups)
    listed = "; ".join(" = ".join(map(_in_words, group)) for group in groups[:COPIES_NAMED])
    more = f"; and {len(groups) - COPIES_NAMED} more" if len(groups) > COPIES_NAMED else ""
    videos = "1 video is a copy" if number == 1 else f"{number:,} videos are copies"
    return (
        f"note: {videos} of another, byte for byte: {listed}{more}. An episode may ask for a video that is also among "
        "its examples, so accuracy looks better than it is: leave the copies out."
    )


def _in_words(place: Place) -> str:
    return f"{place.name} ({place.split} class {place.class_name!r})"


def _groups(keyed: Iterable[tuple[Place, Hashable]]) -> list[list[Place]]:
    """The places of each key that several have."""
    found: dict[Hashable, list[Place]] = {}
    for place, key in keyed:
        found.setdefault(key, []).append(place)
    return [group for group in found.values() if len(group) > 1]


def _with_sizes(split: str, dataset) -> Iterator[tuple[Place, int]]:
    """Each video with its length in bytes; from the table's offsets or the folder, without reading the video."""
    if not len(dataset):
        return
    column, rows = dataset.data.column("video"), table_rows(dataset)
    paths, data, sizes = column, None, None
    if pyarrow.types.is_struct(column.type):
        paths, data = (pyarrow.compute.struct_field(column, name) for name in ("path", "bytes"))
        sizes = pyarrow.compute.binary_length(data).to_pylist()
    names, labels = paths.to_pylist(), dataset["label"][:]
    for row, class_name in zip(map(int, rows), labels, strict=True):
        path = names[row]
        size = None if sizes is None else sizes[row]
        if size == 0:  # broken, and like all other empty files
            continue
        if size is not None and data is not None:
            name = os.path.basename(path or "") or f"row {row}"
            yield Place(split, class_name, name, _Bytes(data, row)), size
        elif path is not None and (status := _status(path)) is not None and status.st_size:
            file = (status.st_dev, status.st_ino)
            yield Place(split, class_name, "/".join(Path(path).parts[-2:]), path, file), status.st_size


def _status(path: str) -> os.stat_result | None:
    """What the system knows about a file; None for folders, addresses and files that are missing."""
    try:
        status = os.stat(os.path.expanduser(path))
    except (OSError, ValueError):  # (a path with a zero byte is a ValueError)
        return None
    return status if stat.S_ISREG(status.st_mode) else None


@dataclass(frozen=True)
class _Bytes:
    """A video inside an Arrow table, which is not copied."""

    column: pyarrow.ChunkedArray
    row: int

    def view(self) -> memoryview:
        return memoryview(self.column[self.row].as_buffer())


def _of_ends(video: Any) -> bytes:
    return digest_of_ends(video.view() if isinstance(video, _Bytes) else os.path.expanduser(video))


def _of_all(video: Any) -> bytes:
    if isinstance(video, _Bytes):
        return hashlib.sha256(video.view()).digest()
    with open(os.path.expanduser(video), "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


__all__ = ["Place", "copies", "note_on_copies"]
