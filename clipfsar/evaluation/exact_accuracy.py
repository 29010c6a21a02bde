"""Exact 1-shot accuracy: the expectation over *all* episodes of a set of videos, without drawing any.

In an N-way 1-shot episode a query is right when it is closer to the prototype of its own class than to the prototypes
of the N - 1 other classes. Fix the query and its own prototype. Each other class then loses independently, with a
probability equal to the share of its videos that lie farther away. The chance that all N - 1 classes drawn from C - 1
lose is an elementary symmetric polynomial of these shares, divided by the number of possible draws. The mean over
queries and own prototypes, weighted as `EpisodeSampler` draws them, is the number that sampled episodes estimate.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from clipfsar.evaluation.split_features import SplitFeatures
from modeling_clipfsar import CLIPFSARModel


def exact_one_shot_accuracies(distances: torch.Tensor, labels: np.ndarray, n_way: int = 5) -> torch.Tensor:
    """Chance that each video is classified correctly as a query of a random N-way 1-shot episode.

    Args:
        distances: (V, V), from every query to every possible 1-shot prototype. The diagonal is ignored, since a video
            is not in its own support.
        labels: (V,), class of each video; at least `n_way` classes of at least two videos. Videos with a negative label
            are left out.

    Returns:
        (V,), float64; NaN for videos left out. The mean over the videos of a class, then over classes, is the expected
        accuracy of an episode. A distance tied with k others counts 1 / (k + 1), since classes are in random order.

    Raises:
        ValueError: When there are too few classes or a class has a single video.
    """
    labels = torch.as_tensor(labels)
    classes, counts = labels[labels >= 0].unique(return_counts=True)
    if len(classes) < n_way:
        raise ValueError(f"There are {len(classes)} classes, but n_way={n_way} are needed.")
    if counts.min() < 2:
        raise ValueError(
            f"Class {classes[counts.argmin()].item()} has 1 video; a support and a query video are needed."
        )
    rows_of_class = [torch.nonzero(labels == label).flatten() for label in classes]
    # A tie with k others counts 1 / (k + 1), the integral of x^k over 0..1. With shares `farther + x * tied`, the
    # integral over x of the polynomial (degree N - 1) counts ties correctly. N / 2 Gauss-Legendre nodes are exact.
    nodes, weights = np.polynomial.legendre.leggauss((n_way + 1) // 2)
    nodes, weights = (nodes + 1) / 2, weights / 2

    chances = torch.full((len(labels),), math.nan, dtype=torch.float64)
    for position, own in enumerate(rows_of_class):
        # Own prototypes of each query: the other videos of its class, (queries, own videos - 1).
        is_other = ~torch.eye(len(own), dtype=torch.bool)
        own_distances = distances[own][:, own][is_other].view(len(own), -1).contiguous()
        farther, tied = [], []
        for other in rows_of_class[:position] + rows_of_class[position + 1 :]:
            rival = distances[own][:, other].sort(-1).values.contiguous()
            below = torch.searchsorted(rival, own_distances)  # strictly closer rivals
            up_to = torch.searchsorted(rival, own_distances, right=True)
            farther.append((len(other) - up_to).double() / len(other))
            tied.append((up_to - below).double() / len(other))
        farther, tied = torch.stack(farther), torch.stack(tied)  # (C - 1, queries, own prototypes)
        if not tied.any():
            mean_chance = elementary_symmetric_polynomial(farther, n_way - 1)
        else:
            mean_chance = sum(
                weight * elementary_symmetric_polynomial(farther + node * tied, n_way - 1)
                for node, weight in zip(nodes, weights, strict=True)
            )
        chances[own] = mean_chance.mean(-1) / math.comb(len(classes) - 1, n_way - 1)
    return chances


def elementary_symmetric_polynomial(values: torch.Tensor, degree: int) -> torch.Tensor:
    """Sum (...) of the products of all subsets of `degree` of the values (n, ...). All values are positive here, so
    the recurrence only adds and nothing cancels."""
    sums = [torch.ones_like(values[0])] + [torch.zeros_like(values[0]) for _ in range(degree)]
    for value in values:
        for size in range(degree, 0, -1):
            sums[size] = sums[size] + value * sums[size - 1]
    return sums[degree]


def check_has_exact_accuracy(model: CLIPFSARModel) -> None:
    """Raises `ValueError` when a distance depends on more than a query and a class."""
    if model.keeps_shots and model.chosen_head.compares_classes_together:
        raise ValueError(
            f"The prototypes of alignment={model.config.alignment!r} depend on the other videos of an episode, so "
            "there is no exact accuracy: draw episodes, without exact."
        )


@torch.no_grad()
def exact_accuracy_of_videos(
    features: SplitFeatures, n_way: int = 5, inference_modes: Sequence[str] = ("few_shot",), queries_per_batch: int = 4
) -> dict[str, torch.Tensor]:
    """`exact_one_shot_accuracies` of a model's features, (V,) per inference mode.

    All modes are exact, since each ranks a class by a number that depends only on the query and the class's prototype
    or text. The ensemble normalises over the classes of an episode, but with one factor for all classes.
    """
    model, own_class = features.model, features.labels.clamp(min=0)
    check_has_exact_accuracy(model)
    starts = range(0, len(own_class), queries_per_batch)
    starts = tqdm(starts, desc="aligning all pairs", unit="batch", leave=False)
    distances = torch.cat([features.one_shot_distances(slice(start, start + queries_per_batch)) for start in starts])
    text_scores = features.text_logits[:, own_class]  # (V, V)
    beta, temperature = model.config.ensemble_text_weight, model.config.ensemble_temperature
    rankings = {
        "few_shot": distances,
        "zero_shot": -text_scores,
        "ensemble": (1 - beta) * distances / temperature - beta * text_scores,
    }
    labels = features.labels.cpu().numpy()
    return {mode: exact_one_shot_accuracies(rankings[mode].cpu(), labels, n_way) for mode in inference_modes}


__all__ = [
    "check_has_exact_accuracy",
    "elementary_symmetric_polynomial",
    "exact_accuracy_of_videos",
    "exact_one_shot_accuracies",
]
