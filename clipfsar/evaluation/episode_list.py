"""A fixed list of episodes in a file, so that two models answer the same episodes."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clipfsar.data.video_split import VideoSplit
from episodes_clipfsar import EpisodeRows, EpisodeSampler
from paths_clipfsar import replace_file


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


def write_episodes(path: str | Path, sampler: EpisodeSampler, n_episodes: int, videos: str):
    """Writes the episodes 0..n_episodes-1 of a sampler; `videos` identifies the videos that the rows refer to."""
    episodes = [sampler.sample(index) for index in range(n_episodes)]
    tensors = {
        name: torch.stack([torch.as_tensor(getattr(episode, name)) for episode in episodes]).contiguous()
        for name in ("class_ids", "support_rows", "query_rows")
    }
    with replace_file(Path(path)) as partial:  # an earlier list stays complete until this one is
        save_file(tensors, partial, metadata={"videos": videos, "seed": json.dumps(sampler.seed)})


def read_episodes(path: str | Path, videos: str | VideoSplit) -> EpisodeList:
    """The episodes that `write_episodes` wrote. They must refer to `videos`: a split, or its identifier.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the episodes are about other videos, or the file is no list of episodes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no list of episodes at {path}.")
    try:
        file = safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is no list of episodes: {error}.") from None
    with file:
        names = {"class_ids", "support_rows", "query_rows"}
        if set(file.keys()) != names:
            raise ValueError(f"{path} is no list of episodes: it holds {', '.join(file.keys())}.")
        written = file.metadata()["videos"]
        if not (videos.is_known_by(written) if isinstance(videos, VideoSplit) else written == videos):
            raise ValueError(f"The episodes in {path} are about other videos (or the same in another order).")
        return EpisodeList(**{name: file.get_tensor(name) for name in names})


__all__ = ["EpisodeList", "read_episodes", "write_episodes"]
