"""Videos of a data set that are copies of each other, byte for byte, under other names or in other classes.

Only videos of equal length are read: first their ends, then, if these agree, all of their bytes.
"""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute

from clipfsar.content import digest_of_ends, table_rows

COPIES_NAMED = 5  # groups that the note lists


@dataclass(frozen=True)
class Place:
    """A video: its split, class and name, and its path or its bytes inside the data set."""

    split: str
    class_name: str
    name: str
    video: Any


def copies(splits: Mapping[str, Any]) -> list[list[Place]]:
    """Groups of two or more videos with the same bytes. Folders of frames, addresses and empty files are not compared.

    Args:
        splits: `datasets.Dataset` objects with the columns `video` and `label`, by name.
    """
    sized = [pair for split, dataset in splits.items() for pair in _with_sizes(split, dataset)]
    groups = _groups(sized)
    for digest in (_of_ends, _of_all):
        groups = [part for group in groups for part in _groups((place, _key(digest, place)) for place in group)]
    return groups


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
        elif path is not None and (length := _length(path)):
            yield Place(split, class_name, "/".join(Path(path).parts[-2:]), path), length


def _length(path: str) -> int | None:
    path = os.path.expanduser(path)
    return os.path.getsize(path) if os.path.isfile(path) else None


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
