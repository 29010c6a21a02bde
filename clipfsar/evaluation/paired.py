"""Statistics of several models that answered the same episodes: paired differences, corrected p values, ranks."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from clipfsar.evaluation.report import half_interval

# 97.5% quantiles of Student's t for 1, 2, ... degrees of freedom: the spread of a few seeds has heavy tails.
_T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
_Z_QUANTILE = 1.96


def mean_and_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean of values (E,), or (seeds, E), and the half width of its 95% interval.

    With several seeds the interval covers both episodes and seeds: the two half widths are added as squares.
    """
    values = np.atleast_2d(values)
    interval, num_seeds = half_interval(values.mean(0)), len(values)
    if num_seeds > 1:
        quantile = _T_QUANTILES[min(num_seeds - 1, len(_T_QUANTILES)) - 1]
        interval = math.hypot(interval, quantile * values.mean(1).std(ddof=1) / math.sqrt(num_seeds))
    return float(values.mean()), interval


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Mean of second minus first, the half width of its 95% interval, and its two-sided p value.

    Args:
        first, second: (E,) or (seeds, E), accuracies of the same episodes in percent. Equal numbers of seeds are
            paired. The p value is below 0.05 exactly if the interval excludes 0; it is about these videos and classes.
    """
    differences = np.atleast_2d(second) - np.atleast_2d(first)
    if not np.any(differences):
        return 0.0, 0.0, 1.0
    difference, interval = mean_and_interval(differences)
    p_value = math.erfc(abs(difference) / (interval / _Z_QUANTILE) / math.sqrt(2)) if interval > 0 else 0.0
    return difference, interval, p_value


def holm(p_values: Sequence[float]) -> list[float]:
    """p values in the same order, corrected for their number by Holm (1979): 0.01 and 0.04 become 0.02 and 0.04."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected


def mean_ranks(accuracies: np.ndarray) -> np.ndarray:
    """Mean rank (R,) of R models over episodes (R, E); 1 is the best, and ties share their mean rank."""
    better = (accuracies[None] > accuracies[:, None]).sum(1)
    tied = (accuracies[None] == accuracies[:, None]).sum(1) - 1
    return (1 + better + tied / 2).mean(-1)


def over_seeds(accuracies: Mapping[str, np.ndarray]) -> np.ndarray:
    """Accuracies (R, E) of R models, the mean over seeds where there are several."""
    return np.stack([np.atleast_2d(values).mean(0) for values in accuracies.values()])


def indistinguishable_groups(accuracies: Mapping[str, np.ndarray], level: float = 0.05) -> list[list[str]]:
    """Largest groups of neighbours in rank of which no two differ, by Holm-corrected paired tests of all pairs."""
    names = list(accuracies)
    ranks = mean_ranks(over_seeds(accuracies))
    names = [names[position] for position in np.argsort(ranks, kind="stable")]
    pairs = [(i, j) for j in range(len(names)) for i in range(j)]
    p_values = holm([paired_difference(accuracies[names[i]], accuracies[names[j]])[2] for i, j in pairs])
    differ = {pair for pair, p_value in zip(pairs, p_values, strict=True) if p_value < level}
    groups: list[tuple[int, int]] = []
    for start in range(len(names)):
        end = start
        while end + 1 < len(names) and not any((i, end + 1) in differ for i in range(start, end + 1)):
            end += 1
        if end > start and (not groups or end > groups[-1][1]):
            groups.append((start, end))
    return [names[start : end + 1] for start, end in groups]


__all__ = [
    "holm",
    "indistinguishable_groups",
    "mean_and_interval",
    "mean_ranks",
    "over_seeds",
    "paired_difference",
]
