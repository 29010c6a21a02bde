"""A split of a data set for training and evaluation: videos, labels and class names."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from clipfsar.content import digests_of_videos, framed_digest, joint_digest
from episodes_clipfsar import read_labels, undecoded_videos


class VideoSplit:
    """A `datasets.Dataset` with the names of its two columns.

    Args:
        dataset: A column of videos (`Video()`, `Video(decode=False)`, paths) and one of labels (`ClassLabel` or names).
        video_column, label_column: Names of the two columns.
        name: Name of the split in messages and feature stores, such as "test". Default: the dataset's own name.

    Raises:
        ValueError: If the column of videos is missing. On access to labels, if they are missing or have no names.

    Attributes:
        dataset: The dataset; reading a row does not decode its video.
        labels: Class of each video, (V,), 0..C-1; -1 for a video without a class.
        class_names: C names.
    """

    def __init__(self, dataset, video_column: str = "video", label_column: str = "label", name: str | None = None):
        if isinstance(dataset, Mapping):
            raise ValueError(f"This is a DatasetDict: pass one of its splits, such as splits[{next(iter(dataset))!r}].")
        if not hasattr(dataset, "column_names"):
            raise ValueError(
                f"A datasets.Dataset is needed, not {type(dataset).__name__}: load folders with "
                "load_video_splits, or pass lists to Dataset.from_dict."
            )
        self.dataset = undecoded_videos(dataset, video_column)
        self.video_column, self.label_column = video_column, label_column
        self.name = name or str(getattr(dataset, "split", None) or "all")

    @classmethod
    def of(
        cls, dataset, video_column: str = "video", label_column: str = "label", name: str | None = None
    ) -> "VideoSplit":
        """Returns `dataset` if it is already a `VideoSplit`; otherwise makes one from it."""
        return dataset if isinstance(dataset, cls) else cls(dataset, video_column, label_column, name)

    @cached_property
    def _labels_and_names(self) -> tuple[np.ndarray, list[str]]:
        return read_labels(self.dataset, self.label_column)

    @property
    def labels(self) -> np.ndarray:
        return self._labels_and_names[0]

    @property
    def class_names(self) -> list[str]:
        return self._labels_and_names[1]

    def __len__(self) -> int:
        return len(self.dataset)

    def video(self, row: int):
        """The undecoded video of a row, for `CLIPFSARProcessor.process_videos`."""
        return self.dataset[row][self.video_column]

    def rows_of(self, class_name: str) -> np.ndarray:
        """Rows of the videos of a class."""
        return np.flatnonzero(self.labels == self.class_names.index(class_name))

    @cached_property
    def digests(self) -> np.ndarray:
        """Digest of each video, (V, 16); see `clipfsar.content`. Computed once, at the first access."""
        return digests_of_videos(self.dataset, self.video_column)

    def digests_of(self, rows: Sequence[int]) -> np.ndarray:
        """Digests of some videos, (len(rows), 16). Reads no others."""
        if "digests" in self.__dict__:  # where `cached_property` keeps them
            return self.digests[rows]
        return digests_of_videos(self.dataset.select(rows), self.video_column)

    @cached_property
    def digest(self) -> str:
        """Digest of all videos in order: names, lengths, first and last bytes."""
        return joint_digest(self.digests)

    @property
    def digest_of_classes(self) -> str:
        """Digest of the class of each video and of the class names."""
        return framed_digest([self.labels.tobytes(), *(name.encode() for name in self.class_names)]).hex()

    def is_known_by(self, digest: str) -> bool:
        """Whether a digest belongs to these videos. Digests of version 0.1 are recognised as well."""
        return digest == (self.digest if digest.startswith("content ") else self._digest_of_0_1)

    @cached_property
    def _digest_of_0_1(self) -> str:
        return _digest_of_0_1(self.dataset, self.video_column)

    def record(self) -> dict:
        """Class names, and digests of the videos of each class, ready for JSON; see `changes_since`."""
        rows_of = {name: self.rows_of(name) for name in self.class_names}
        classes = [[name, len(rows), joint_digest(self.digests[rows])] for name, rows in rows_of.items()]
        return {"classes": classes, "videos": self.digest}

    def changes_since(self, record: dict) -> list[str]:
        """Describes the differences between a `record` and this split, one sentence each. Empty if there are none."""
        now = self.record()
        if now == record:
            return []
        before, after = ({name: rest for name, *rest in one["classes"]} for one in (record, now))
        changes = [f"class {name!r} is gone" for name in before if name not in after]
        changes += [f"class {name!r} is new" for name in after if name not in before]
        for name in (name for name in before if name in after):
            (number, digest), (number_now, digest_now) = before[name], after[name]
            if number != number_now:
                changes.append(f"class {name!r} had {number} videos and has {number_now}")
            elif digest != digest_now:
                changes.append(f"class {name!r} has other videos, or the same in another order")
        if not changes and list(before) != list(after):
            changes = [f"the classes are in another order, {_listed(before)} (now {_listed(after)})"]
        return [f"{self.name}: {change}" for change in changes or ["the videos are in another order"]]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def digest_of_videos(dataset, video_column: str) -> str:
    """Digest of the order, names, lengths, first and last bytes of videos.

    A name is CLASS/FILE, so moving a data set does not change the digest.
    """
    return joint_digest(digests_of_videos(dataset, video_column))


def _digest_of_0_1(dataset, video_column: str) -> str:
    """Digest as in version 0.1: order, names and sizes of files, or all bytes of videos stored in the dataset."""
    digest = hashlib.sha256()
    batches = dataset.select_columns([video_column]).iter(100)
    for video in itertools.chain.from_iterable(batch[video_column] for batch in batches):
        path, data = (video.get("path"), video.get("bytes")) if isinstance(video, dict) else (video, None)
        digest.update("/".join(Path(path).parts[-2:]).encode() if path else b"")
        if data is not None:
            digest.update(hashlib.sha256(data).digest())
        elif path is not None and os.path.isfile(path):
            digest.update(str(os.path.getsize(path)).encode())
    return digest.hexdigest()


__all__ = ["VideoSplit", "digest_of_videos"]
