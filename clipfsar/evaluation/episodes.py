"""Answers to episodes out of features that were computed once, and their mean with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from einops import rearrange

from clipfsar.evaluation.episode_list import EpisodeList
from clipfsar.evaluation.report import EpisodePredictions, half_interval
from clipfsar.evaluation.split_features import SplitFeatures
from episodes_clipfsar import EpisodeSampler
from modeling_clipfsar import CLIPFSARModel


@dataclass(frozen=True)
class EpisodicAccuracy:
    """Mean accuracy over episodes, in percent, with the half width of its 95% interval.

    The interval says how far the mean over *these videos and classes* may be off because episodes are a sample; it
    says nothing of other videos or classes.
    """

    inference_mode: str
    n_way: int
    n_shot: int
    n_query: int
    n_episodes: int
    accuracy: float
    interval: float

    def __str__(self) -> str:
        return (
            f"{self.n_way}-way {self.n_shot}-shot {self.inference_mode}: {self.accuracy:.1f} ± {self.interval:.1f}% "
            f"({self.n_episodes} episodes)"
        )


@torch.no_grad()
def predict_episodes(
    features: SplitFeatures,
    sampler: EpisodeSampler | EpisodeList,
    indices: Sequence[int],
    inference_modes: Sequence[str] = ("few_shot",),
    episodes_per_batch: int = 128,
) -> dict[str, EpisodePredictions]:
    """Answers to the episodes `indices` of `sampler`, per inference mode, all modes on the same episodes.

    Equal, to round-off, to `model.forward` on the pixels of each episode.
    """
    model, device = features.model, features.video_embeds.device
    query_labels = torch.arange(sampler.n_way, device=device).repeat_interleave(sampler.n_query)
    parts = {mode: [] for mode in inference_modes}
    for start in range(0, len(indices), episodes_per_batch):
        episodes = [sampler.sample(index) for index in indices[start : start + episodes_per_batch]]
        classes, support, query = (
            torch.as_tensor(np.stack([getattr(episode, name) for episode in episodes]), device=device)
            for name in ("class_ids", "support_rows", "query_rows")
        )
        query = rearrange(query, "b n q -> b (n q)")
        prototypes = features.prototypes(support, classes)
        distances = model.get_distances(features.query_states[query], prototypes)
        texts = features.text_logits[query.unsqueeze(-1), classes.unsqueeze(1)]  # (B, Q, N)
        for mode in inference_modes:
            confidences, predicted = model.get_logits(distances, texts, mode).softmax(-1).max(-1)
            answers = (classes, query, classes[:, query_labels], classes.take_along_dim(predicted, 1), confidences)
            parts[mode].append([answer.cpu().numpy() for answer in answers])
    return {
        mode: EpisodePredictions(*(np.concatenate(answers) for answers in zip(*batches, strict=True)))
        for mode, batches in parts.items()
    }


def evaluate(
    model: CLIPFSARModel,
    video_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    labels: np.ndarray,
    n_way: int = 5,
    n_shot: int = 1,
    n_query: int = 1,
    n_episodes: int = 10_000,
    seed: int = 0,
    inference_modes: Sequence[str] = ("few_shot",),
    class_names: Sequence[str] | None = None,
) -> list[EpisodicAccuracy]:
    """Mean accuracy and 95% interval over seeded episodes, one result per inference mode; all on the same episodes."""
    sampler = EpisodeSampler(labels, n_way, n_shot, n_query, seed, class_names)
    was_training = model.training
    features = SplitFeatures(model, video_embeds, class_embeds, labels)
    predictions = predict_episodes(features, sampler, range(n_episodes), inference_modes)
    model.train(was_training)
    return [summarize(sampler, mode, answers) for mode, answers in predictions.items()]


def summarize(sampler: EpisodeSampler | EpisodeList, mode: str, predictions: EpisodePredictions) -> EpisodicAccuracy:
    accuracies = 100 * predictions.accuracies
    return EpisodicAccuracy(
        mode,
        sampler.n_way,
        sampler.n_shot,
        sampler.n_query,
        len(accuracies),
        accuracy=float(accuracies.mean()),
        interval=half_interval(accuracies),
    )


def predict_until_interval(predict, interval: float, chunk: int = 1000, max_episodes: int = 1_000_000):
    """Answers to as many episodes as it takes until every mode's 95% interval is +- `interval` points or narrower.

    Args:
        predict: Answers per mode to a range of episode indices.
        interval: Half width to reach, in points.
        chunk: Episodes between two looks.

    Raises:
        ValueError: When even `max_episodes` would not do.
    """
    parts = []
    while len(parts) * chunk < max_episodes:
        parts.append(predict(range(len(parts) * chunk, (len(parts) + 1) * chunk)))
        merged = {mode: _concatenate([part[mode] for part in parts]) for mode in parts[0]}
        if all(half_interval(100 * answers.accuracies) <= interval for answers in merged.values()):
            return merged
    raise ValueError(f"--until_interval {interval} is not reached within {max_episodes} episodes: ask for a wider one.")


def _concatenate(parts: list[EpisodePredictions]) -> EpisodePredictions:
    names = [item.name for item in fields(EpisodePredictions)]
    return EpisodePredictions(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


__all__ = ["EpisodicAccuracy", "evaluate", "predict_episodes", "predict_until_interval", "summarize"]
