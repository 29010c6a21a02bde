"""Statistics of answers to episodes: accuracy, intervals, per class, confusions, calibration, model comparison."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipfsar.metrics.episodic_accuracy.episodic_accuracy import mean_and_interval, per_class_accuracy


@dataclass(frozen=True)
class EpisodePredictions:
    """Answers of one model in one inference mode to E episodes of Q queries each.

    Args:
        class_ids: (E, N), the classes to choose from.
        query_rows: (E, Q), dataset rows of the queries.
        true_classes: (E, Q), of the dataset's classes.
        predicted_classes: (E, Q).
        confidences: (E, Q), the predicted class's probability.
    """

    class_ids: np.ndarray
    query_rows: np.ndarray
    true_classes: np.ndarray
    predicted_classes: np.ndarray
    confidences: np.ndarray

    @property
    def is_right(self) -> np.ndarray:
        """(E, Q), bool."""
        return self.predicted_classes == self.true_classes

    @property
    def accuracies(self) -> np.ndarray:
        """Share of right answers in each episode, (E,)."""
        return self.is_right.mean(-1)


def half_interval(values: np.ndarray) -> float:
    """Half width of the 95% interval of a mean over independent values, (E,); NaN for a single one."""
    return mean_and_interval(values)[1]


def per_class_accuracies(predictions: EpisodePredictions, num_classes: int) -> np.ndarray:
    """Accuracy of each class, (C,), in 0..1; NaN for a class without queries."""
    known = per_class_accuracy(predictions.predicted_classes.ravel(), predictions.true_classes.ravel())
    return np.array([known.get(label, np.nan) for label in range(num_classes)])


def confusion_rates(predictions: EpisodePredictions, num_classes: int) -> np.ndarray:
    """(C, C): how often a query of class i is taken for class j, *when the episode has class j*; NaN if it never has.

    A plain confusion matrix would also depend on how often two classes occur in the same episode.
    """
    true, predicted = predictions.true_classes, predictions.predicted_classes
    taken = np.zeros((num_classes, num_classes))
    np.add.at(taken, (true.ravel(), predicted.ravel()), 1)
    offered = np.zeros((num_classes, num_classes))
    n_queries, n_way = true.shape[1], predictions.class_ids.shape[1]
    pairs = (np.repeat(true[:, :, None], n_way, axis=2), np.repeat(predictions.class_ids[:, None], n_queries, axis=1))
    np.add.at(offered, tuple(part.ravel() for part in pairs), 1)
    return np.divide(taken, offered, out=np.full_like(taken, np.nan), where=offered > 0)


def most_confused_pairs(rates: np.ndarray, class_names: Sequence[str], num_pairs: int = 10) -> list[dict]:
    """The largest rates off the diagonal, as `{"true", "predicted", "rate"}`, in percent."""
    off_diagonal = np.where(np.eye(len(rates), dtype=bool), np.nan, rates)
    order = np.argsort(np.nan_to_num(off_diagonal, nan=-1.0), axis=None)[::-1][:num_pairs]
    pairs = [np.unravel_index(position, rates.shape) for position in order]
    return [
        {"true": class_names[i], "predicted": class_names[j], "rate": 100 * float(rates[i, j])}
        for i, j in pairs
        if off_diagonal[i, j] > 0
    ]


def expected_calibration_error(predictions: EpisodePredictions, num_bins: int = 15) -> float:
    """ECE (Guo et al., ICML 2017) in percent: mean gap of confidence and accuracy over equal bins of confidence."""
    confidences, is_right = predictions.confidences.ravel(), predictions.is_right.ravel()
    bins = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    gaps = np.bincount(bins, weights=confidences - is_right, minlength=num_bins)
    return 100 * float(np.abs(gaps).sum() / counts.sum())


def interval_over_videos(chances: np.ndarray, labels: np.ndarray, num_resamples: int = 1000, seed: int = 0) -> float:
    """Half width (percent) of the 95% interval for other classes and other query videos of these classes (bootstrap).

    With more episodes, an interval over episodes shrinks to nothing, although the number of videos stays the same. This
    interval treats the classes and query videos as a sample. It does not redraw support videos, so it is still somewhat
    too narrow.

    Args:
        chances: (V,), chance that each video is classified correctly as a query; NaN leaves a video out.
        labels: (V,), classes.
    """
    rng = np.random.default_rng(seed)
    known = ~np.isnan(chances)
    groups = [chances[known & (labels == label)] for label in np.unique(labels[known])]
    means = []
    for _ in range(num_resamples):
        drawn = (groups[choice] for choice in rng.integers(len(groups), size=len(groups)))
        means.append(np.mean([group[rng.integers(len(group), size=len(group))].mean() for group in drawn]))
    low, high = np.percentile(means, [2.5, 97.5])
    return 100 * float(high - low) / 2


def right_answers_per_video(predictions: EpisodePredictions, num_videos: int) -> np.ndarray:
    """(V,), share of right answers to each video as a query; NaN for a video that was never a query."""
    rows = predictions.query_rows.ravel()
    asked = np.bincount(rows, minlength=num_videos)
    right = np.bincount(rows, weights=predictions.is_right.ravel(), minlength=num_videos)
    return np.divide(right, asked, out=np.full(num_videos, np.nan), where=asked > 0)


def compare(first: EpisodePredictions, second: EpisodePredictions) -> dict:
    """Paired comparison of two models on the same episodes.

    Returns:
        `difference` of the mean accuracies (second minus first, in points) with the half width `interval` of its 95%
        interval over episodes; the numbers of queries `only_first_right` and `only_second_right`, and the `p_value` of
        McNemar's test on them (two-sided, with continuity correction). Queries of one episode are not independent: take
        the p-value as a rough guide, and rely on the interval.

    Raises:
        ValueError: When the episodes are not the same.
    """
    if not np.array_equal(first.query_rows, second.query_rows) or not np.array_equal(first.class_ids, second.class_ids):
        raise ValueError("The two models answered different episodes: a paired comparison needs the same episodes.")
    differences = 100 * (second.accuracies - first.accuracies)
    only_first = int((first.is_right & ~second.is_right).sum())
    only_second = int((second.is_right & ~first.is_right).sum())
    discordant = only_first + only_second
    chi_square = max(0, abs(only_first - only_second) - 1) ** 2 / discordant if discordant else 0.0
    return {
        "difference": float(differences.mean()),
        "interval": half_interval(differences),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": math.erfc((chi_square / 2) ** 0.5),
    }


__all__ = [
    "EpisodePredictions",
    "compare",
    "confusion_rates",
    "expected_calibration_error",
    "half_interval",
    "interval_over_videos",
    "most_confused_pairs",
    "per_class_accuracies",
    "right_answers_per_video",
]
