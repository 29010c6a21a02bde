"""Training on frame features that were computed once: what a frozen visual tower allows.

The tower sees each video only before the training. With one draw these are the frames and the crop of evaluation, and
nothing is random any more but the episodes: no other frames of a video, no other crops. With more draws each is made as
training makes them, and every episode picks one per video.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Value

from clipfsar.evaluation.feature_store import stored_features
from modeling_clipfsar import CLIPFSARModel

ROW = "row"


def row_dataset(dataset, label_column: str) -> Dataset:
    """The labels of a split, with the number of a row in the place of its video: for an `EpisodeDataset`."""
    labels = dataset.features[label_column]
    columns = {ROW: list(range(len(dataset))), label_column: list(dataset[label_column])}
    return Dataset.from_dict(columns, features=Features({ROW: Value("int64"), label_column: labels}))


def encode_draws(
    folder: Path,
    num_draws: int,
    seed: int,
    model: CLIPFSARModel,
    processor,
    dataset,
    accelerator: Accelerator,
    video_column: str,
    **encoding,
) -> torch.Tensor:
    """Frame features of every video, (V, draws, T, D), float32 on the CPU; from a store per draw, if it is there.

    Args:
        folder: Holds the stores.
        num_draws: 1 takes the frames of evaluation; more are drawn at random, each by (seed, draw, row).
        encoding: For `encode_batches`.
    """
    draws = []
    for draw in range(num_draws):
        settings = encoding | {"description": f"encoding training videos ({draw + 1} of {num_draws})"}
        name, draw_seed = ("evaluation_frames", None) if num_draws == 1 else (f"draw_{draw}", (seed, draw))
        store = folder / name
        draws.append(
            stored_features(
                store, model, processor, dataset, accelerator, video_column, draw_seed=draw_seed, **settings
            )
        )
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


__all__ = ["FeatureCollator", "encode_draws", "row_dataset"]
