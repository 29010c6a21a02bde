"""Results of an evaluation as objects: print them, or convert them to JSON, pandas and pictures."""

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.report import (
    EpisodePredictions,
    confusion_rates,
    expected_calibration_error,
    half_interval,
    interval_over_videos,
    most_confused_pairs,
    per_class_accuracies,
    right_answers_per_video,
)
from paths_clipfsar import write_text


@dataclass(frozen=True)
class EpisodicAccuracy:
    """Mean accuracy over episodes, in percent, with the half width of its 95% interval.

    The interval covers the error from drawing a sample of episodes, for *these videos and classes*. It says nothing
    about other videos or classes.
    """

    inference_mode: str
    n_way: int
    n_shot: int
    n_query: int
    n_episodes: int
    accuracy: float
    interval: float

    def __str__(self) -> str:
        interval = f" ± {self.interval:.1f}" if self.interval > 0 else ""
        episodes = f"{self.n_episodes} episode{'s' if self.n_episodes != 1 else ''}"
        if not interval:  # 0 or NaN: the spread is unknown, so the number is not certain
            episodes += ", too few or too similar for an interval"
        return f"{self.n_way}-way {self.n_shot}-shot {self.inference_mode}: {self.accuracy:.1f}{interval}% ({episodes})"


@dataclass(frozen=True, eq=False)
class EpisodicResult(EpisodicAccuracy):
    """Result of a model for one number of shots and one inference mode. `print` shows it as a line.

    Args:
        predictions: The answers.
        labels: Class of each video of the split, (V,).
        class_names: C names.
        chances: (V,), from the exact evaluation: the chance that each video is classified correctly; None without it.
        compared_with: Name of the other model in `comparison`.
        comparison: `report.compare` with the other model's answers to the same episodes.

    The properties are computed at their first use.
    """

    predictions: EpisodePredictions = field(repr=False)
    labels: np.ndarray = field(repr=False)
    class_names: list[str] = field(repr=False)
    chances: np.ndarray | None = field(default=None, repr=False)
    compared_with: str | None = field(default=None, repr=False)
    comparison: dict | None = field(default=None, repr=False)

    def __str__(self) -> str:  # the same as the inherited one; written out because results are printed
        return super().__str__()

    @cached_property
    def exact(self) -> float | None:
        """Expected accuracy over all possible episodes, in percent; None if it was not computed."""
        if self.chances is None:
            return None
        labels = self.labels
        return 100 * float(np.mean([self.chances[labels == label].mean() for label in np.unique(labels[labels >= 0])]))

    @cached_property
    def per_class(self) -> dict[str, float]:
        """Accuracy in percent of the queries of each class; NaN for a class without queries."""
        accuracies = 100 * per_class_accuracies(self.predictions, len(self.class_names))
        return dict(zip(self.class_names, accuracies.tolist(), strict=True))

    @cached_property
    def confusion(self) -> np.ndarray:
        """(C, C) in percent: how often queries of the row's class are classified as the column's, *when both classes
        are in the episode*; NaN if they never are."""
        return 100 * confusion_rates(self.predictions, len(self.class_names))

    @cached_property
    def most_confused(self) -> list[dict]:
        """The ten largest confusions, `{"true", "predicted", "rate"}`, rates in percent."""
        return most_confused_pairs(self.confusion / 100, self.class_names)

    @cached_property
    def interval_over_videos(self) -> float:
        """Half width in points of the 95% interval if classes and query videos were drawn anew (bootstrap)."""
        return interval_over_videos(self.right_per_video, self.labels)

    @cached_property
    def right_per_video(self) -> np.ndarray:
        """(V,), how often each video is answered correctly as a query, 0..1; exactly if `exact` is known."""
        if self.chances is not None:
            return self.chances
        return right_answers_per_video(self.predictions, len(self.labels))

    @cached_property
    def calibration_error(self) -> float:
        """Expected calibration error in percent."""
        return expected_calibration_error(self.predictions)

    def summary(self) -> EpisodicAccuracy:
        """The accuracy alone."""
        return EpisodicAccuracy(**{item.name: getattr(self, item.name) for item in fields(EpisodicAccuracy)})

    def to_dict(self) -> dict:
        """The whole result as plain values; missing numbers are NaN."""
        values = asdict(self.summary())
        if self.exact is not None:
            values["exact_accuracy"] = self.exact
        for name in ("interval_over_videos", "calibration_error", "most_confused"):
            values[name] = getattr(self, name)
        values["per_class_accuracy"] = self.per_class
        if self.comparison is not None:
            values |= {"compared_with": self.compared_with, "comparison": self.comparison}
        return values

    def anew_in_words(self) -> str:
        """`interval_over_videos` for people."""
        return f"if classes and videos were drawn anew: {_half_in_words(self.interval_over_videos)}"

    def lines(self) -> list[str]:
        """Lines for people: the line of `print`, then details."""
        lines = [str(self)]
        if self.exact is not None:
            lines.append(f"  over all possible episodes: {self.exact:.2f}% (exact)")
        lines.append(f"  {self.anew_in_words()}; calibration error {self.calibration_error:.1f}%")
        asked = [item for item in self.per_class.items() if not math.isnan(item[1])]
        classes = sorted(asked, key=lambda item: item[1])
        lines.append(f"  hardest classes: {', '.join(f'{name} {accuracy:.0f}%' for name, accuracy in classes[:3])}")
        confused = [f"{pair['true']} -> {pair['predicted']} {pair['rate']:.0f}%" for pair in self.most_confused[:3]]
        if confused:
            lines.append(f"  most confused, when both are in the episode: {', '.join(confused)}")
        if self.comparison is not None:
            lines.append(f"  minus {self.compared_with}: {_in_words(self.comparison)}")
        return lines

    def plot(self, folder: str | os.PathLike) -> list[Path]:
        """Writes `confusion_*.png` and `per_class_*.png` into a folder, created if missing."""
        from clipfsar.plots import plot_confusion, plot_per_class  # imports matplotlib, needed only here

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.n_way}_way_{self.n_shot}_shot_{self.inference_mode}.png"
        paths = [folder / f"confusion_{name}", folder / f"per_class_{name}"]
        plot_confusion(self.confusion / 100, self.class_names, paths[0], str(self))
        plot_per_class(self.per_class, paths[1], str(self))
        return paths


class EvaluationResults(list):
    """A list of `EpisodicResult`, one per number of shots and inference mode, with the `protocol` of the evaluation."""

    def __init__(self, results=(), protocol: Protocol | None = None):
        super().__init__(results)
        self.protocol = protocol

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def get(self, n_shot: int, inference_mode: str = "few_shot") -> EpisodicResult:
        """The result of one number of shots and one mode.

        Raises:
            KeyError: When there is no such result; the message lists the results.
        """
        for result in self:
            if (result.n_shot, result.inference_mode) == (n_shot, inference_mode):
                return result
        available = ", ".join(f"{result.n_shot}-shot {result.inference_mode}" for result in self)
        raise KeyError(f"There is no {n_shot}-shot {inference_mode} result; there are {available}.")

    def to_dicts(self) -> list[dict]:
        """Plain values for JSON; None stands for a missing number."""
        return [_without_nan(result.to_dict()) for result in self]

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """JSON text, also written to `path` if given; its folder is created if missing."""
        text = json.dumps(self.to_dicts(), indent=2, allow_nan=False) + "\n"
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        return text

    def to_pandas(self):
        """A `pandas.DataFrame`: a row per result, and a column per class, `accuracy of NAME`.

        Raises:
            ImportError: When pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("A table of results needs pandas: pip install pandas.") from None
        rows = []
        for result in self.to_dicts():
            per_class = result.pop("per_class_accuracy")
            result.pop("most_confused")
            comparison = result.pop("comparison", None) or {}
            rows.append(
                result
                | {f"comparison_{name}": value for name, value in comparison.items()}
                | {f"accuracy of {name}": value for name, value in per_class.items()}
            )
        return pandas.DataFrame(rows)

    def plot(self, folder: str | os.PathLike) -> list[Path]:
        """Draws every result with `EpisodicResult.plot`; the files."""
        return [path for result in self for path in result.plot(folder)]


def summarize(predictions: EpisodePredictions, inference_mode: str, n_shot: int, n_query: int) -> EpisodicAccuracy:
    """Mean accuracy of answers to episodes, with its interval."""
    accuracies = 100 * predictions.accuracies
    n_way = predictions.class_ids.shape[1]
    accuracy, interval = float(accuracies.mean()), half_interval(accuracies)
    return EpisodicAccuracy(inference_mode, n_way, n_shot, n_query, len(accuracies), accuracy, interval)


def _in_words(comparison: dict) -> str:
    exact = f" ({comparison['exact_difference']:+.2f} exactly)" if "exact_difference" in comparison else ""
    return (
        f"{comparison['difference']:+.2f} ± {comparison['interval']:.2f} points{exact}; if classes and videos were "
        f"drawn anew: {_half_in_words(comparison['interval_over_videos'])}"
    )


def _half_in_words(interval_over_videos: float) -> str:
    """A bootstrap of equal values has no width, which does not mean that the number is certain."""
    return (
        f"± {interval_over_videos:.1f}" if interval_over_videos > 0 else "cannot be told, all videos are answered alike"
    )


def _without_nan(value):
    """The value with None in place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


__all__ = ["EpisodicAccuracy", "EpisodicResult", "EvaluationResults", "summarize"]
