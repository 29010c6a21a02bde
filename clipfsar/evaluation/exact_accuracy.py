"""Exact 1-shot accuracy: the expectation over *all* episodes of a set of videos, without drawing any.

In an N-way 1-shot episode a query is right when it is closer to the prototype of its own class than to the prototypes
of the N - 1 other classes. Fix the query and its own prototype. Each other class then loses independently, with a
probability equal to the share of its videos that lie farther away. The chance that all N - 1 classes drawn from C - 1
lose is an elementary symmetric polynomial of these shares, divided by the number of possible draws. The mean over
queries and own prototypes, weighted as `EpisodeSampler` draws them, is the number that sampled episodes estimate.

Queries are answered class by class, so that memory grows with the number of videos and not with its square. Processes
share the queries out.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from clipfsar.evaluation.split_features import SplitFeatures
from modeling_clipfsar import CLIPFSARModel

ENTRIES_AT_ONCE = 2**21  # of a matrix (queries, support videos); a piece of queries takes about 40 bytes for each

# From rows of queries and rows of support videos to numbers (queries, support videos) that rank classes, by mode.
Ranking = Callable[[torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]]


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
    chances = exact_chances(lambda queries, supports: {"": distances[queries][:, supports]}, labels, n_way)
    return chances[""]


def exact_chances(
    rank: Ranking,
    labels: np.ndarray,
    n_way: int = 5,
    modes: Sequence[str] = ("",),
    *,
    accelerator: Accelerator | None = None,
    entries_at_once: int = ENTRIES_AT_ONCE,
    show_progress: bool = False,
) -> dict[str, torch.Tensor]:
    """`exact_one_shot_accuracies` of numbers that are computed when needed, (V,) per mode.

    Args:
        rank: Called with rows of queries and rows of support videos; gives one matrix (queries, support videos) per
            mode. The smaller a number, the nearer the support video.
        labels, n_way: See `exact_one_shot_accuracies`.
        modes: The modes that `rank` gives.
        accelerator: Its processes share the queries. All of them must call this function; each gets all chances.
        entries_at_once: Largest matrix to ask for. A single query may need more.

    Raises:
        ValueError: As `exact_one_shot_accuracies`.
    """
    classes = _Classes.of(labels, n_way)
    index, number = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    pieces = list(classes.pieces(max(1, entries_at_once // len(classes.rows))))[index::number]
    chances = {mode: torch.full((len(labels),), math.nan, dtype=torch.float64) for mode in modes}
    total, is_quiet = sum(len(queries) for _, queries in pieces), index > 0 or not show_progress
    with tqdm(total=total, desc="exact accuracy", unit="query", leave=False, disable=is_quiet) as progress:
        for position, queries in pieces:
            for mode, values in rank(queries, classes.rows).items():
                chances[mode][queries] = _chances_of_queries(values.cpu(), classes, position, queries, n_way)
            progress.update(len(queries))
    if number > 1:
        shares = gather_object([chances])
        chances = {mode: torch.stack([share[mode] for share in shares]).nanmean(0) for mode in modes}
    return chances


@dataclass(frozen=True)
class _Classes:
    """The videos with a label, class after class.

    Args:
        rows: (S,), rows of these videos.
        ends: Position in `rows` of the first video of each class, and of the end.
    """

    rows: torch.Tensor
    ends: list[int]

    @classmethod
    def of(cls, labels: np.ndarray, n_way: int) -> "_Classes":
        """Raises `ValueError` when there are too few classes or a class has a single video."""
        given = torch.as_tensor(labels)
        classes, counts = given[given >= 0].unique(return_counts=True)
        if len(classes) < n_way:
            raise ValueError(f"There are {len(classes)} classes, but n_way={n_way} are needed.")
        if counts.min() < 2:
            raise ValueError(
                f"Class {classes[counts.argmin()].item()} has 1 video; a support and a query video are needed."
            )
        rows = given.argsort(stable=True)[int((given < 0).sum()) :]
        return cls(rows, [0, *counts.cumsum(0).tolist()])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def slice_of(self, position: int) -> slice:
        return slice(self.ends[position], self.ends[position + 1])

    def pieces(self, queries_at_once: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Positions of classes, each with rows of some of its videos."""
        for position in range(len(self)):
            for queries in self.rows[self.slice_of(position)].split(queries_at_once):
                yield position, queries


def _chances_of_queries(
    distances: torch.Tensor, classes: _Classes, position: int, queries: torch.Tensor, n_way: int
) -> torch.Tensor:
    """Chances (Q,) of queries of one class, from their distances (Q, S) to the videos of all classes."""
    own = classes.slice_of(position)
    # Own prototypes of each query: the other videos of its class, (Q, own videos - 1).
    is_other = classes.rows[own] != queries[:, None]
    own_distances = distances[:, own][is_other].view(len(queries), -1).contiguous()
    farther, tied = [], []
    for other in range(len(classes)):
        if other == position:
            continue
        rival = distances[:, classes.slice_of(other)].sort(-1).values.contiguous()
        below = torch.searchsorted(rival, own_distances)  # strictly closer rivals
        up_to = torch.searchsorted(rival, own_distances, right=True)
        farther.append((rival.shape[1] - up_to).double() / rival.shape[1])
        tied.append((up_to - below).double() / rival.shape[1])
    mean_chance = _mean_chance(torch.stack(farther), torch.stack(tied), n_way)
    return mean_chance.mean(-1) / math.comb(len(classes) - 1, n_way - 1)


def _mean_chance(farther: torch.Tensor, tied: torch.Tensor, n_way: int) -> torch.Tensor:
    """The symmetric polynomial of the shares of rivals (C - 1, ...) that are farther, plus a part of the tied ones.

    A tie with k others counts 1 / (k + 1), the integral of x^k over 0..1. With shares `farther + x * tied`, the
    integral over x of the polynomial (degree N - 1) counts ties correctly. N / 2 Gauss-Legendre nodes are exact.
    """
    if not tied.any():
        return elementary_symmetric_polynomial(farther, n_way - 1)
    nodes, weights = np.polynomial.legendre.leggauss((n_way + 1) // 2)
    terms = [
        weight / 2 * elementary_symmetric_polynomial(farther + (node + 1) / 2 * tied, n_way - 1)
        for node, weight in zip(nodes, weights, strict=True)
    ]
    return torch.stack(terms).sum(0)


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
    features: SplitFeatures,
    n_way: int = 5,
    inference_modes: Sequence[str] = ("few_shot",),
    *,
    accelerator: Accelerator | None = None,
    entries_at_once: int = ENTRIES_AT_ONCE,
) -> dict[str, torch.Tensor]:
    """`exact_one_shot_accuracies` of a model's features, (V,) per inference mode.

    All modes are exact, since each ranks a class by a number that depends only on the query and the class's prototype
    or text. The ensemble normalises over the classes of an episode, but with one factor for all classes.

    Args:
        accelerator, entries_at_once: See `exact_chances`.
    """
    check_has_exact_accuracy(features.model)
    config = features.model.config
    beta, temperature = config.ensemble_text_weight, config.ensemble_temperature

    def rank(queries: torch.Tensor, supports: torch.Tensor) -> dict[str, torch.Tensor]:
        queries, supports = queries.to(features.labels.device), supports.to(features.labels.device)
        distances = text_scores = torch.empty(0)
        if set(inference_modes) != {"zero_shot"}:
            distances = features.one_shot_distances(queries, supports)
        if set(inference_modes) != {"few_shot"}:
            text_scores = features.text_logits_of(queries)[:, features.labels[supports]]
        rankings = {
            "few_shot": lambda: distances,
            "zero_shot": lambda: -text_scores,
            "ensemble": lambda: (1 - beta) * distances / temperature - beta * text_scores,
        }
        return {mode: rankings[mode]() for mode in inference_modes}

    labels = features.labels.cpu().numpy()
    return exact_chances(
        *(rank, labels, n_way, inference_modes),
        accelerator=accelerator,
        entries_at_once=entries_at_once,
        show_progress=True,
    )


__all__ = [
    "check_has_exact_accuracy",
    "elementary_symmetric_polynomial",
    "exact_accuracy_of_videos",
    "exact_chances",
    "exact_one_shot_accuracies",
]
