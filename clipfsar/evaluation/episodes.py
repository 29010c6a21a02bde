"""Answers episodes from features that were computed once.

The frame features of a video, its query states and its 1-shot prototype are the same in every episode: a query passes
the temporal transformer without a text, and a support video with the text of its own class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from einops import rearrange

from clipfsar.evaluation.episode_list import EpisodeList
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.report import EpisodePredictions, half_interval
from clipfsar.evaluation.results import EpisodicResult, EvaluationResults, summarize
from clipfsar.evaluation.split_features import SplitFeatures
from episodes_clipfsar import EpisodeSampler


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
    parts: dict[str, list] = {mode: [] for mode in inference_modes}
    for start in range(0, len(indices), episodes_per_batch):
        episodes = [sampler.sample(index) for index in indices[start : start + episodes_per_batch]]
        classes, support, query = (
            torch.as_tensor(np.stack([getattr(episode, name) for episode in episodes]), device=device)
            for name in ("class_ids", "support_rows", "query_rows")
        )
        query = rearrange(query, "b n q -> b (n q)")
        distances = features.distances(query, support, classes)
        texts = features.text_logits[query.unsqueeze(-1), classes.unsqueeze(1)]  # (B, Q, N)
        for mode in parts:  # a mode that is asked for twice answers once
            confidences, predicted = model.get_logits(distances, texts, mode).softmax(-1).max(-1)
            answers = (classes, query, classes[:, query_labels], classes.take_along_dim(predicted, 1), confidences)
            parts[mode].append([answer.cpu().numpy() for answer in answers])
    predictions = {
        mode: EpisodePredictions(*(np.concatenate(answers) for answers in zip(*batches, strict=True)))
        for mode, batches in parts.items()
    }
    for mode, answers in predictions.items():
        if not np.isfinite(answers.confidences).all():  # argmax would still count NaN as an answer
            raise ValueError(
                f"Answers of the mode {mode!r} are NaN: a file of the model is damaged, or numbers grow too large for "
                "its precision. Load another copy, or use --dtype float32."
            )
    return predictions


def evaluate_features(features: SplitFeatures, protocol: Protocol, class_names: Sequence[str]) -> EvaluationResults:
    """Results of a protocol on features that you have already; `evaluate_episodes` also computes the features."""
    results = EvaluationResults(protocol=protocol)
    labels = features.labels.cpu().numpy()
    for n_shot in protocol.shots:
        sampler = EpisodeSampler(labels, protocol.n_way, n_shot, protocol.n_query, protocol.seed, class_names)
        answers = predict_episodes(features, sampler, range(protocol.n_episodes), protocol.inference_modes)
        results += results_of_answers(answers, sampler, labels, class_names)
    return results


def results_of_answers(
    answers: Mapping[str, EpisodePredictions],
    sampler: EpisodeSampler | EpisodeList,
    labels: np.ndarray,
    class_names: Sequence[str],
    chances: Mapping[str, np.ndarray] | None = None,
) -> list[EpisodicResult]:
    """One result per inference mode.

    Args:
        answers: Answers to episodes of `sampler`, per mode.
        labels: (V,), classes of the split's videos.
        chances: (V,) per mode, from the exact evaluation.
    """
    results = []
    for mode, predictions in answers.items():
        summary = summarize(predictions, mode, sampler.n_shot, sampler.n_query)
        exact = None if chances is None else chances[mode]
        results.append(EpisodicResult(**vars(summary), **_details(predictions, labels, class_names, exact)))
    return results


def _details(predictions, labels, class_names, chances) -> dict:
    return {"predictions": predictions, "labels": labels, "class_names": list(class_names), "chances": chances}


def predict_until_interval(
    predict: Callable[[Sequence[int]], dict[str, EpisodePredictions]],
    interval: float,
    chunk: int = 1000,
    max_episodes: int = 1_000_000,
) -> dict[str, EpisodePredictions]:
    """Answers more and more episodes until every mode's 95% interval is +- `interval` points or narrower.

    Args:
        predict: Answers a range of episode indices, per mode.
        interval: Half width to reach, in points.
        chunk: Episodes between two checks of the interval.

    Raises:
        ValueError: When `max_episodes` do not suffice.
    """
    parts: list[dict] = []
    while len(parts) * chunk < max_episodes:
        parts.append(predict(range(len(parts) * chunk, (len(parts) + 1) * chunk)))
        merged = {mode: _concatenate([part[mode] for part in parts]) for mode in parts[0]}
        if all(half_interval(100 * answers.accuracies) <= interval for answers in merged.values()):
            return merged
    raise ValueError(f"until_interval={interval} is not reached within {max_episodes} episodes: ask for a wider one.")


def _concatenate(parts: list[EpisodePredictions]) -> EpisodePredictions:
    names = [item.name for item in fields(EpisodePredictions)]
    return EpisodePredictions(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


__all__ = ["evaluate_features", "predict_episodes", "predict_until_interval", "results_of_answers"]
