"""Plots of training runs, episodes and results."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from choices_clipfsar import UNKNOWN_LABEL
from paths_clipfsar import check_picture_name, naming_errors, wrapped

# Names of classes, runs and files are plain text: "$" does not begin a formula.
_PLAIN_TEXT: Any = plt.rc_context({"text.parse_math": False})
_LABEL_WIDTH = 36  # characters in a line of a class name


def plot_training(records: list[dict], path: Path):
    """Plots losses and accuracies over episodes, from the lines of `training_log.jsonl`, if there are any."""
    check_picture_name(path)
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    if not train:
        return
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(11, 4))
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.12, top=0.97, wspace=0.16)  # layouts are slow
    episodes = [record["episode"] for record in train]
    for name, label in (("few_shot_loss", "few-shot"), ("video_text_loss", "video-text")):
        if name in train[0]:  # a custom loss may leave one out
            losses.plot(episodes, [record[name] for record in train], label=label)
    losses.set(xlabel="training episodes", ylabel="cross-entropy", ylim=(0, None))
    accuracies.plot(episodes, [record["accuracy"] for record in train], label="base classes (training)", alpha=0.5)
    if validation:
        accuracies.errorbar(
            [record["episode"] for record in validation],
            [record["accuracy"] for record in validation],
            [record["interval"] for record in validation],
            label="validation classes, 95% interval",
            marker="o",
            capsize=3,
        )
    accuracies.set(xlabel="training episodes", ylabel="accuracy / %", ylim=(0, 100))
    for axes in (losses, accuracies):
        axes.legend()
        axes.grid(alpha=0.3)
    with naming_errors(path):
        figure.savefig(path, dpi=120)
    plt.close(figure)


@_PLAIN_TEXT
def plot_training_comparison(runs: dict[str, list[dict]], path: Path):
    """Plots validation accuracy over training episodes. `runs`: name -> lines of its `training_log.jsonl`."""
    check_picture_name(path)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, records in runs.items():
        validation = [record for record in records if record["kind"] == "validation"]
        episodes = [record["episode"] for record in validation]
        accuracies = [record["accuracy"] for record in validation]
        intervals = [record["interval"] for record in validation]
        axes.errorbar(episodes, accuracies, intervals, label=_in_legend(name), marker="o", capsize=3)
    axes.set(xlabel="training episodes", ylabel="accuracy on validation classes / %")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    with naming_errors(path):
        figure.savefig(path, dpi=120)
    plt.close(figure)


@_PLAIN_TEXT
def plot_episode(
    class_names: list[str],
    support_frames: np.ndarray,
    query_frames: np.ndarray,
    probabilities: np.ndarray,
    true_classes: list[int],
    path: Path,
    title: str,
):
    """Plots an episode: one support video per class at the top; below them query videos with their class probabilities.

    Args:
        class_names: N names.
        support_frames: (N, T, H, W, 3), uint8.
        query_frames: (Q, T, H, W, 3), uint8.
        probabilities: (Q, N).
        true_classes: Q positions in `class_names`.
    """
    check_picture_name(path)
    n_rows = len(class_names) + len(query_frames)
    figure, axes = plt.subplots(
        n_rows, 2, figsize=(12, 0.95 * n_rows + 0.6), width_ratios=(3, 1), layout="constrained", squeeze=False
    )
    short_names = [wrapped(name, 30, 1) for name in class_names]
    class_names = [wrapped(name, _LABEL_WIDTH) for name in class_names]
    true_names = [class_names[true_class] for true_class in true_classes]
    labels = [f"support\n{name}" for name in class_names] + [f"query, true class\n{name}" for name in true_names]
    for (strip, side), frames, label in zip(axes, [*support_frames, *query_frames], labels, strict=True):
        strip.imshow(np.concatenate(list(frames), axis=1), aspect="equal")
        strip.set(xticks=[], yticks=[])
        strip.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        side.axis("off")
    for (_, side), scores, true_class in zip(axes[len(class_names) :], probabilities, true_classes, strict=True):
        side.axis("on")
        colours = ["tab:green" if n == true_class else "tab:gray" for n in range(len(class_names))]
        side.barh(range(len(class_names)), scores, color=colours)
        side.set(xlim=(0, 1.0), xticks=[], yticks=range(len(class_names)))
        side.set_yticklabels(short_names, fontsize=6)
        side.invert_yaxis()
        verdict = "right" if int(scores.argmax()) == true_class else "wrong"
        side.set_title(f"{verdict}, probability of the true class {scores[true_class]:.2f}", fontsize=7, pad=2)
    figure.suptitle(wrapped(title, 120))
    with naming_errors(path):
        figure.savefig(path, dpi=120, bbox_inches="tight")  # the layout ignores the fixed aspect of images
    plt.close(figure)


@_PLAIN_TEXT
def plot_confusion(rates: np.ndarray, class_names: list[str], path: Path, title: str):
    """Plots a confusion matrix. `rates`: (C, C), 0..1, how often the row's class is taken for the column's class."""
    check_picture_name(path)
    labels, lines, inches = _labels(class_names)
    size = 2.4 + max(0.28, 0.13 * lines) * len(class_names) + inches
    figure, axes = plt.subplots(figsize=(size + 1.5, size), layout="constrained")
    image = axes.imshow(100 * rates, vmin=0, vmax=100, cmap="viridis")
    positions = range(len(class_names))
    axes.set(xticks=positions, yticks=positions, xlabel="predicted", ylabel="true")
    axes.set_xticklabels(labels, rotation=90, fontsize=7)
    axes.set_yticklabels(labels, fontsize=7)
    figure.suptitle(wrapped(title, int(11 * size)), fontsize=9)
    figure.colorbar(image, label="% of queries, when both\nclasses are in the episode", shrink=0.8)
    with naming_errors(path):
        figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


@_PLAIN_TEXT
def plot_per_class(accuracies: dict[str, float], path: Path, title: str):
    """Plots the accuracy (%) of each class as a bar, the hardest class at the top."""
    check_picture_name(path)
    names = sorted(accuracies, key=accuracies.__getitem__)
    labels, lines, inches = _labels(names)
    size = (6.4 + inches, 1.2 + max(0.24, 0.13 * lines) * len(names))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.barh(range(len(names)), [accuracies[name] for name in names], color="tab:blue")
    axes.set_yticks(range(len(names)), labels)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="accuracy / %")
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="x", alpha=0.3)
    figure.suptitle(wrapped(title, int(11 * size[0])), fontsize=9)
    with naming_errors(path):
        figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


@_PLAIN_TEXT
def plot_ranks(ranks: dict[str, float], groups: list[list[str]], path: Path, title: str):
    """Plots mean ranks (1 is the best) on a line, and a bar over each group of names that cannot be told apart."""
    check_picture_name(path)
    names = sorted(ranks, key=lambda name: ranks[name])
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.3 * (len(names) + len(groups))), layout="constrained")
    top = 0.6 * len(groups)
    for row, name in enumerate(names):
        axes.plot([ranks[name]] * 2, [-1 - row, top + 0.6], color="0.8", linewidth=0.8, zorder=1)
        axes.scatter(ranks[name], -1 - row, color="tab:blue", zorder=2)
        label = f"{wrapped(name, 48, 2)} ({ranks[name]:.2f})"
        axes.annotate(label, (ranks[name], -1 - row), (8, 0), textcoords="offset points", va="center", fontsize=9)
    for number, group in enumerate(groups):
        ends = [ranks[group[0]], ranks[group[-1]]]
        axes.plot(ends, [top - 0.6 * number] * 2, color="tab:red", linewidth=4, solid_capstyle="butt")
    spread = max(ranks.values()) - min(ranks.values())
    axes.set(xlim=(min(ranks.values()) - 0.05 * spread, max(ranks.values()) + 0.45 * spread + 0.01), yticks=[])
    axes.set_ylim(-0.7 - len(names), top + 0.6)
    axes.set_xlabel("mean rank, 1 is the best; red: no corrected paired test tells them apart")
    axes.spines[["top", "left", "right"]].set_visible(False)
    figure.suptitle(wrapped(title, 80), fontsize=10)
    with naming_errors(path):
        figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


@_PLAIN_TEXT
def plot_timeline(
    seconds: np.ndarray,
    scores: np.ndarray,
    class_names: list[str],
    labels: list[str],
    duration_seconds: float,
    path: Path,
    title: str,
    thumbnails: np.ndarray,
    unknown_scores: np.ndarray | None = None,
):
    """Plots a long video over time: frames at the top, a coloured strip of answers, and class scores below.

    Args:
        seconds: (W, 2), start and end of windows.
        scores: (W, N).
        class_names: N names; only the nine with the highest peak scores are drawn.
        labels: Answers of the W windows; a name that is not a class is drawn in grey.
        thumbnails: (n, H, W, 3), uint8, spread evenly over the video.
        unknown_scores: (W,), scores of "none of these", drawn as a dashed line, if requested.
    """
    check_picture_name(path)
    colours = {name: plt.cm.tab10(i) for i, name in enumerate([class_names[n] for n in np.argsort(-scores.max(0))[:9]])}
    figure, (film, strip, lines) = plt.subplots(
        3, 1, figsize=(13, 6), height_ratios=(1.1, 0.35, 3), sharex=True, layout="constrained"
    )
    width = duration_seconds / len(thumbnails)
    for i, image in enumerate(thumbnails):
        film.imshow(image, extent=((i + 0.01) * width, (i + 0.99) * width, 0, 1), aspect="auto")
    film.set(ylim=(0, 1), title=wrapped(title, 90))
    film.axis("off")

    # Where windows overlap, each moment belongs to the window whose middle is nearest.
    middles = seconds.mean(1)
    edges = np.concatenate([[0.0], (middles[1:] + middles[:-1]) / 2, [duration_seconds]])
    for start, end, label in zip(edges[:-1], edges[1:], labels, strict=True):
        strip.axvspan(start, end, color=colours.get(label, "0.8"), linewidth=0)
    strip.set(yticks=[], ylim=(0, 1))
    strip.set_ylabel("answer", rotation=0, ha="right", va="center")
    for name, colour in colours.items():
        lines.plot(
            middles, scores[:, class_names.index(name)], "o-", color=colour, label=_in_legend(name), markersize=3
        )
    if unknown_scores is not None:
        lines.plot(middles, unknown_scores, "o--", color="0.55", label=f"{UNKNOWN_LABEL}, score", markersize=3)
    for other in sorted(set(labels) - set(colours)):
        lines.plot([], [], color="0.8", linewidth=8, label=_in_legend(other))
    lines.set(xlabel="seconds (middle of the window)", ylabel="score", ylim=(-0.02, 1.02), xlim=(0, duration_seconds))
    lines.grid(alpha=0.3)
    lines.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    with naming_errors(path):
        figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _labels(class_names: list[str]) -> tuple[list[str], int, float]:
    """Class names in lines, the largest number of lines, and the inches that the longest line takes at 7 points."""
    labels = [wrapped(name, _LABEL_WIDTH) for name in class_names]
    lines = [label.splitlines() or [""] for label in labels]
    return labels, max(map(len, lines)), 0.055 * max(len(line) for of_name in lines for line in of_name)


def _in_legend(name: str) -> str:
    """The name for a legend, in lines. Matplotlib would leave out names that begin with an underscore."""
    return wrapped(f" {name}" if name.startswith("_") else name, _LABEL_WIDTH)


__all__ = [
    "plot_confusion",
    "plot_episode",
    "plot_per_class",
    "plot_ranks",
    "plot_timeline",
    "plot_training",
    "plot_training_comparison",
]
