"""Accuracy over episodes, as a metric of the `evaluate` library. It needs no other files of this repository."""

import math

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Few-shot accuracy: the share of right answers in each episode, its mean over episodes, and the 95% interval of this
mean. Queries of one episode share their support videos, so episodes are the independent samples, not queries.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: Predicted class of each query, numbers or names.
    references: True class of each query, in the same form.
    episodes: Episode number of each query. Numbers must not repeat in later batches. Without it, or if it is negative,
        each query is a separate episode.
    class_names: For `compute`: names of the classes 0, 1, ..., to use in `per_class_accuracy`.

Returns:
    accuracy: Mean over episodes of the share of right answers, 0..1.
    interval: Half width of the 95% interval of `accuracy`, in its unit (normal approximation); NaN for one episode.
    n_episodes: Number of episodes.
    per_class_accuracy: Share of right answers for each true class, pooled over episodes; classes without queries are
        left out.

Examples:

    >>> metric = evaluate.load("./clipfsar/metrics/episodic_accuracy")
    >>> metric.compute(predictions=[0, 1, 1, 1], references=[0, 1, 0, 1], episodes=[0, 0, 1, 1])
    {'accuracy': 0.75, 'interval': 0.49, 'n_episodes': 2, 'per_class_accuracy': {0: 0.5, 1: 1.0}}
"""

_OWN_EPISODE = -1


def mean_and_interval(accuracies) -> tuple[float, float]:
    """Mean of independent accuracies (E,) and the half width of its 95% interval, 1.96 s / sqrt(E); NaN for E = 1.

    Raises:
        ValueError: When `accuracies` is empty.
    """
    accuracies = np.asarray(accuracies, dtype=np.float64)
    if accuracies.size == 0:
        raise ValueError("There are no episodes to take a mean over.")
    if accuracies.size == 1:
        return float(accuracies[0]), math.nan
    return float(accuracies.mean()), float(1.96 * accuracies.std(ddof=1) / math.sqrt(accuracies.size))


def per_class_accuracy(predictions, references) -> dict:
    """Share of right answers for each class in `references`, in order of the classes.

    Raises:
        ValueError: When there are no answers, or the numbers of predictions and references differ.
    """
    _check_lengths(predictions=predictions, references=references)
    references = np.asarray(references)
    is_right = np.asarray(predictions) == references
    return {label: float(is_right[references == label].mean()) for label in np.unique(references).tolist()}


def _check_lengths(**columns):
    lengths = {name: len(column) for name, column in columns.items()}
    if 0 in lengths.values() or len(set(lengths.values())) > 1:
        listed = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"There are {listed}: as many of each are needed, and at least one.")


def _check_not_fractional(**columns):
    """The columns of the metric hold whole numbers; `datasets` would cut off what is behind the point."""
    for name, column in columns.items():
        values = np.asarray(column.detach().cpu() if hasattr(column, "detach") else column)
        if values.dtype.kind == "f" and (values % 1 != 0).any():
            raise ValueError(
                f"{name} must be class names or whole numbers, not {values[values % 1 != 0].flat[0]}: of logits or "
                "probabilities, give argmax(-1)."
            )


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class EpisodicAccuracy(evaluate.Metric):
    def _info(self):
        number, name = datasets.Value("int64"), datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            # Names first: a name of digits could be taken for a number, but a number never for a name.
            features=[
                datasets.Features({"predictions": label, "references": label, "episodes": number})
                for label in (name, number)
            ],
        )

    # `evaluate` has no optional inputs, so these three methods fill in the episodes.

    def compute(self, *, predictions=None, references=None, episodes=None, class_names=None):
        """The metric over these answers and those added before with `add` and `add_batch`."""
        if self.writer is None and predictions is None and references is None:
            raise ValueError("There are no answers: give predictions and references, here or to add_batch.")
        return super().compute(
            predictions=predictions, references=references, episodes=episodes, class_names=class_names
        )

    def add_batch(self, *, predictions=None, references=None, episodes=None):
        """Adds the answers to several queries."""
        if predictions is None or references is None:
            raise ValueError("Both predictions and references are needed.")
        if episodes is None:
            episodes = np.full(len(predictions), _OWN_EPISODE)
        _check_lengths(predictions=predictions, references=references, episodes=episodes)
        _check_not_fractional(predictions=predictions, references=references, episodes=episodes)
        super().add_batch(predictions=predictions, references=references, episodes=episodes)

    def add(self, *, prediction=None, reference=None, episodes=_OWN_EPISODE):
        """Adds the answer to one query."""
        _check_not_fractional(prediction=prediction, reference=reference, episodes=episodes)
        super().add(prediction=prediction, reference=reference, episodes=episodes)

    def _compute(self, predictions, references, episodes, class_names=None):
        predictions, references, episodes = np.asarray(predictions), np.asarray(references), np.asarray(episodes)
        has_no_number = episodes < 0
        episodes = np.where(has_no_number, episodes.max() + 1 + np.arange(len(episodes)), episodes)
        _, episode_of_answer, sizes = np.unique(episodes, return_inverse=True, return_counts=True)
        accuracy, interval = mean_and_interval(np.bincount(episode_of_answer, predictions == references) / sizes)
        per_class = per_class_accuracy(predictions, references)
        if class_names is not None:
            per_class = {_name(class_names, label): value for label, value in per_class.items()}
        return {"accuracy": accuracy, "interval": interval, "n_episodes": len(sizes), "per_class_accuracy": per_class}


def _name(class_names, label) -> str:
    if not isinstance(label, int) or not 0 <= label < len(class_names):
        raise ValueError(f"Class {label!r} has no name: class_names names the classes 0..{len(class_names) - 1}.")
    return class_names[label]
