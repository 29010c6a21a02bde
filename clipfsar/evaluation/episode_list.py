"""A fixed list of episodes in a file, so that two models answer the same episodes."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from clipfsar.checked_files import load_tensors, save_tensors
from clipfsar.data.video_split import VideoSplit
from episodes_clipfsar import EpisodeRows, EpisodeSampler

_NAMES = ("class_ids", "support_rows", "query_rows")
_NOTES_OF_0_2 = {"videos", "seed"}
_REMEDY = "write a new list with --write_episodes"


class EpisodeList:
    """Episodes read from a file; replaces an `EpisodeSampler`.

    Args:
        class_ids: (E, N).
        support_rows: (E, N, K).
        query_rows: (E, N, Q per class).
    """

    def __init__(self, class_ids: torch.Tensor, support_rows: torch.Tensor, query_rows: torch.Tensor):
        self.class_ids, self.support_rows, self.query_rows = (
            tensor.numpy() for tensor in (class_ids, support_rows, query_rows)
        )
        self.n_way, self.n_shot, self.n_query = *support_rows.shape[1:], query_rows.shape[2]

    def __len__(self) -> int:
        return len(self.class_ids)

    def sample(self, index: int) -> EpisodeRows:
        return EpisodeRows(self.class_ids[index], self.support_rows[index], self.query_rows[index])


def write_episodes(path: str | Path, sampler: EpisodeSampler, n_episodes: int, videos: str | VideoSplit):
    """Writes the episodes 0..n_episodes-1 of a sampler.

    Args:
        videos: The split that the rows refer to, or an identifier of its videos. A split's labels and class names
            are identified as well.
    """
    episodes = [sampler.sample(index) for index in range(n_episodes)]
    tensors = {
        name: torch.stack([torch.as_tensor(getattr(episode, name)) for episode in episodes]).contiguous()
        for name in _NAMES
    }
    notes = {"videos": videos} if isinstance(videos, str) else _identity(videos)
    save_tensors(tensors, Path(path), notes | {"seed": json.dumps(sampler.seed)})


def _identity(split: VideoSplit) -> dict[str, str]:
    return {"videos": split.digest, "classes": split.digest_of_classes}


def read_episodes(path: str | Path, videos: str | VideoSplit) -> EpisodeList:
    """The episodes that `write_episodes` wrote. They must refer to `videos`: a split, or its identifier.

    Lists of version 0.2 have neither a checksum nor the identity of classes; their episodes are checked all the same.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the file is damaged or no list of episodes, or the episodes are about other videos or classes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no list of episodes at {path}.")
    try:
        file = safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is no list of episodes: {error}.") from None
    with file:
        held, notes = set(file.keys()), file.metadata() or {}
    if held != set(_NAMES):
        raise ValueError(f"{path} is no list of episodes: it holds {', '.join(sorted(held)) or 'nothing'}.")
    if "videos" not in notes:
        raise ValueError(f"{path} is no list of episodes: it does not say its videos.")
    tensors = load_tensors(Path(path), _REMEDY, has_checksum=set(notes) != _NOTES_OF_0_2)
    _check_tensors(path, tensors)
    written = notes["videos"]
    if not (videos.is_known_by(written) if isinstance(videos, VideoSplit) else written == videos):
        raise ValueError(f"The episodes in {path} are about other videos (or the same in another order).")
    episodes = EpisodeList(**tensors)
    if isinstance(videos, VideoSplit):
        if notes.get("classes", videos.digest_of_classes) != videos.digest_of_classes:
            raise ValueError(f"Labels or class names of the videos have changed since {path} was written: {_REMEDY}.")
        _check_rows(path, episodes, videos)
    return episodes


def _check_tensors(path: str | Path, tensors: dict[str, torch.Tensor]):
    """Checks types and sizes, and what holds for episodes of any videos."""
    classes, support, query = (tensors[name] for name in _NAMES)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int64:
            raise ValueError(f"{path} is no list of episodes: {name} must be int64, not {tensor.dtype}.")
    shapes = [tuple(tensor.shape) for tensor in (classes, support, query)]
    if [len(shape) for shape in shapes] != [2, 3, 3] or len({shape[:2] for shape in shapes}) > 1:
        raise ValueError(f"{path} is no list of episodes: the shapes {shapes} of {', '.join(_NAMES)} do not match.")
    if 0 in (*support.shape, *query.shape) or classes.shape[1] < 2:
        raise ValueError(f"{path} holds no episodes of at least two classes, support and query: {_REMEDY}.")
    problems = {
        "negative numbers": torch.stack([tensor.flatten(1).amin(1) < 0 for tensor in tensors.values()]).any(0),
        "a class twice": (classes.sort().values.diff() == 0).any(1),
        "a query video in its support": (support.unsqueeze(-1) == query.unsqueeze(-2)).flatten(1).any(1),
    }
    for problem, where in problems.items():
        if bool(where.any()):
            raise ValueError(f"Episode {int(where.nonzero()[0])} in {path} has {problem}: {_REMEDY}.")


def _check_rows(path: str | Path, episodes: EpisodeList, split: VideoSplit):
    """Checks that every row is a video of the class that the episode says."""
    classes = episodes.class_ids[..., np.newaxis]
    for rows in (episodes.support_rows, episodes.query_rows):
        if rows.max() >= len(split):
            raise ValueError(f"The episodes in {path} name row {rows.max()}, but there are {len(split)}: {_REMEDY}.")
        wrong = np.argwhere(split.labels[rows] != classes)
        if len(wrong):
            row, number = rows[tuple(wrong[0])], wrong[0][0]
            raise ValueError(f"Episode {number} in {path} gives row {row} another class than the videos do: {_REMEDY}.")


__all__ = ["EpisodeList", "read_episodes", "write_episodes"]
