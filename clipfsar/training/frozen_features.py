"""Training on frame features that were computed once: what a frozen visual tower allows.

The tower sees each video only before the training. With one draw these are the frames and the crop of evaluation, and
nothing is random any more but the episodes: no other frames of a video, no other crops. With more draws each is made as
training makes them, and every episode picks one per video.
"""

import torch
from datasets import Dataset, Features, Value

from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.feature_store import FeatureStore

ROW = "row"


def row_dataset(dataset, label_column: str) -> Dataset:
    """The labels of a split, with the number of a row in the place of its video: for an `EpisodeDataset`."""
    labels = dataset.features[label_column]
    columns = {ROW: list(range(len(dataset))), label_column: dataset[label_column][:]}
    return Dataset.from_dict(columns, features=Features({ROW: Value("int64"), label_column: labels}))


def encode_draws(store: FeatureStore, split: VideoSplit, num_draws: int, seed: int) -> torch.Tensor:
    """Frame features of every video, (V, draws, T, D), float32 on the CPU; each draw in a folder of the store's.

    Args:
        num_draws: 1 takes the frames of evaluation; more are drawn at random, each by (seed, draw, row).
    """
    draws = []
    for draw in range(num_draws):
        name, draw_seed = ("evaluation_frames", None) if num_draws == 1 else (f"draw_{draw}", (seed, draw))
        folder = FeatureStore(store.folder / name, store.encoder)
        description = f"encoding training videos ({draw + 1} of {num_draws})"
        draws.append(folder.encode(split, draw_seed, description))
    return torch.stack(draws, dim=1)


class FeatureCollator:
    """Model inputs, `support_embeds` and `query_embeds` among them, of episodes over `row_dataset`.

    Args:
        features: (V, draws, T, D), of `encode_draws`.
    """

    def __init__(self, features: torch.Tensor):
        self.features = features

    def __call__(self, episodes: list[dict]) -> dict[str, torch.Tensor]:
        """Which draw of a video an episode gets depends on the episode's own seed alone."""
        batch = {}
        generators = [torch.Generator().manual_seed(episode["seed"]) for episode in episodes]
        for role in ("support", "query"):
            rows = torch.tensor([episode[f"{role}_videos"] for episode in episodes])  # (B, V)
            draws = [torch.randint(self.features.shape[1], rows.shape[1:], generator=g) for g in generators]
            batch[f"{role}_embeds"] = self.features[rows, torch.stack(draws)]
        for name in ("class_base_labels", "support_labels", "support_base_labels", "labels", "query_base_labels"):
            batch[name] = torch.tensor([episode[name] for episode in episodes])
        return batch


__all__ = ["ROW", "FeatureCollator", "encode_draws", "row_dataset"]
