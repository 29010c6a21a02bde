"""Training on cached frame features of a frozen visual tower.

The tower encodes each video once, before the training. With one draw it sees the frames and the crop of evaluation, so
only the episodes are random. With several draws, each has random frames and crops as in training, and every episode
picks one draw per video.
"""

from collections.abc import Sequence

import torch
from datasets import Dataset, Features, Value

from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.feature_store import FeatureStore

ROW = "row"


def row_dataset(dataset, label_column: str) -> Dataset:
    """A data set for `EpisodeDataset`: the labels of a split, with row numbers in place of the videos."""
    labels = dataset.features[label_column]
    columns = {ROW: list(range(len(dataset))), label_column: dataset[label_column][:]}
    return Dataset.from_dict(columns, features=Features({ROW: Value("int64"), label_column: labels}))


def encode_draws(store: FeatureStore, split: VideoSplit, num_draws: int, seed: int) -> list[torch.Tensor]:
    """Frame features of every video, (V, T, D) per draw, float32 on the CPU; each draw has a folder in the store.

    They are memory-mapped and never copied as a whole, so the processes of one machine share them.

    Args:
        num_draws: 1 uses the frames of evaluation. More are random draws, seeded with (seed, draw, row).
    """
    draws = []
    for draw in range(num_draws):
        name, draw_seed = ("evaluation_frames", None) if num_draws == 1 else (f"draw_{draw}", (seed, draw))
        folder = FeatureStore(store.folder / name, store.encoder)
        description = f"encoding training videos ({draw + 1} of {num_draws})"
        draws.append(folder.encode(split, draw_seed, description))
    return draws


class FeatureCollator:
    """Collates episodes over `row_dataset` into model inputs with `support_embeds` and `query_embeds`.

    Args:
        features: (V, T, D) per draw, from `encode_draws`; or one tensor (V, draws, T, D).
    """

    def __init__(self, features: torch.Tensor | Sequence[torch.Tensor]):
        self.draws = features.unbind(1) if isinstance(features, torch.Tensor) else tuple(features)

    def __call__(self, episodes: list[dict]) -> dict[str, torch.Tensor]:
        """The model inputs of a batch. The episode's seed alone decides which draw of a video it gets."""
        batch = {}
        generators = [torch.Generator().manual_seed(episode["seed"]) for episode in episodes]
        for role in ("support", "query"):
            rows = torch.tensor([episode[f"{role}_videos"] for episode in episodes])  # (B, V)
            chosen = torch.stack([torch.randint(len(self.draws), rows.shape[1:], generator=g) for g in generators])
            embeds = self.draws[0].new_empty(*rows.shape, *self.draws[0].shape[1:])
            for draw, features in enumerate(self.draws):
                embeds[chosen == draw] = features[rows[chosen == draw]]
            batch[f"{role}_embeds"] = embeds
        for name in ("class_base_labels", "support_labels", "support_base_labels", "labels", "query_base_labels"):
            batch[name] = torch.tensor([episode[name] for episode in episodes])
        return batch


__all__ = ["ROW", "FeatureCollator", "encode_draws", "row_dataset"]
