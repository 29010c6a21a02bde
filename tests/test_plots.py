"""Pictures: they are drawn, from whatever a log holds, and leave no figure open."""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from tiny_data import similar_clips, tiny_model_and_processor

from clipfsar.plots import (
    plot_confusion,
    plot_episode,
    plot_per_class,
    plot_ranks,
    plot_timeline,
    plot_training,
    plot_training_comparison,
)
from review_clipfsar import SuspectClip
from support_set_clipfsar import SupportSet

TRAIN = [
    {"episode": n, "kind": "train", "few_shot_loss": 1 / n, "video_text_loss": 2 / n, "accuracy": 9.0 * n}
    for n in range(1, 6)
]
VALIDATION = [{"episode": n, "kind": "validation", "accuracy": 40.0 + n, "interval": 3.0} for n in (2, 4)]


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    assert plt.get_fignums() == []


def is_drawn(path) -> bool:
    """A picture that is not of one colour."""
    pixels = np.asarray(Image.open(path).convert("L"))
    return pixels.shape[0] > 100 and pixels.min() < pixels.max()


@pytest.mark.parametrize("records", [TRAIN, TRAIN[:1], TRAIN + VALIDATION], ids=["train", "one line", "validation"])
def test_a_training_is_drawn_with_and_without_validation(records, tmp_path):
    plot_training(records, tmp_path / "training.png")
    assert is_drawn(tmp_path / "training.png")


@pytest.mark.parametrize("records", [[], VALIDATION], ids=["empty", "validation only"])
def test_nothing_is_drawn_without_a_training_line(records, tmp_path):
    plot_training(records, tmp_path / "training.png")
    assert not (tmp_path / "training.png").exists()


def test_runs_are_compared_by_their_validations(tmp_path):
    plot_training_comparison({"otam": TRAIN + VALIDATION, "mean": VALIDATION}, tmp_path / "comparison.png")
    assert is_drawn(tmp_path / "comparison.png")


def test_an_episode_is_drawn(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 4, 16, 16, 3), dtype=np.uint8)
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    plot_episode(
        ["run", "dive", "swim"], frames[:3], frames[3:], probabilities, [0, 2], tmp_path / "episode.png", "an episode"
    )
    assert is_drawn(tmp_path / "episode.png")


@pytest.mark.parametrize("num_classes", [2, 40])
def test_confusions_are_drawn_also_where_two_classes_never_met(num_classes, tmp_path):
    rates = np.random.default_rng(0).random((num_classes, num_classes))
    rates[0, 1] = np.nan
    names = [f"class {number}" for number in range(num_classes)]
    plot_confusion(rates, names, tmp_path / "confusion.png", "5-way 1-shot")
    assert is_drawn(tmp_path / "confusion.png")


def test_accuracies_per_class_are_drawn_with_the_hardest_at_the_top(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plt.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0]))
    plot_per_class({"run": 80.0, "dive": 20.0, "swim": 50.0}, tmp_path / "per_class.png", "5-way 1-shot")
    (axes,) = drawn
    heights = {
        label.get_text(): position for label, position in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    }
    on_screen = sorted(heights, key=lambda name: axes.transData.transform((0, heights[name]))[1], reverse=True)
    assert on_screen == ["dive", "swim", "run"]
    assert [bar.get_width() for bar in axes.patches] == [20, 50, 80]


def test_accuracies_per_class_are_drawn_also_where_a_class_was_never_asked_about(tmp_path):
    plot_per_class({"run": 80.0, "dive": float("nan"), "swim": 50.0}, tmp_path / "per_class.png", "5-way 1-shot")
    assert is_drawn(tmp_path / "per_class.png")


def test_the_score_of_no_class_is_drawn_over_time(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plt.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[2]))
    seconds, thumbnails = np.array([[0.0, 1.0], [1.0, 2.0]]), np.zeros((2, 4, 4, 3), np.uint8)
    scores, unknown = np.array([[0.6, 0.4], [0.7, 0.3]]), np.array([0.2, 0.9])
    labels = ["run", "none of these"]
    plot_timeline(seconds, scores, ["run", "dive"], labels, 2.0, tmp_path / "a.png", "a.mp4", thumbnails, unknown)
    (axes,) = drawn
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"run": [0.6, 0.7], "dive": [0.4, 0.3], "none of these, score": [0.2, 0.9], "none of these": []}


def test_a_plot_of_another_format_is_refused():
    with pytest.raises(ValueError, match=r"^a.bmp: a picture ends in one of .png, .* not in .bmp.$"):
        plot_per_class({"run": 80.0}, Path("a.bmp"), "5-way 1-shot")


def test_a_full_disk_is_an_error_with_the_name_of_the_picture(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        plot_per_class({"a": 0.5, "b": 1.0}, tmp_path / "a.png", "title")
    assert caught.value.filename == str(tmp_path / "a.png")
    plt.close("all")


def test_names_are_shown_as_they_are_and_are_no_formulas(tmp_path):
    names = ["$x^$", "_hidden", "\\frac{1}"]  # as a formula, the first is an error
    plot_confusion(np.full((3, 3), 0.5), names, tmp_path / "confusion.png", "$x^$")
    plot_per_class(dict.fromkeys(names, 50.0), tmp_path / "per_class.png", "$x^$")
    frames = np.zeros((3, 2, 4, 4, 3), np.uint8)
    plot_episode(names, frames, frames, np.full((3, 3), 1 / 3), [0, 1, 2], tmp_path / "episode.png", "$x^$")
    seconds, thumbnails = np.array([[0.0, 1.0], [1.0, 2.0]]), np.zeros((2, 4, 4, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_timeline(
            seconds, np.full((2, 3), 0.3), names, ["_a", "$x^$"], 2.0, tmp_path / "timeline.png", "$x^$", thumbnails
        )
    assert len(list(tmp_path.iterdir())) == 4


LONG_NAMES = [  # as Something-Something has them
    "Pretending to put something into something but it does not fit in",
    "Pulling two ends of something so that it separates into two pieces",
    "x",
    "Moving something and something so that they collide with each other",
]
LONG_TITLE = "runs/a_run_with_a_long_name/best on data/a_folder_with_a_long_name, split test: 5-way 1-shot few_shot"


def draw_confusion(path):
    plot_confusion(np.full((4, 4), 0.25), LONG_NAMES, path, LONG_TITLE)


def draw_per_class(path):
    plot_per_class(dict.fromkeys(LONG_NAMES, 50.0), path, LONG_TITLE)


def draw_ranks(path):
    ranks = {f"runs/a_run_with_a_long_name_{n}/best: {name}": 1.0 + n for n, name in enumerate(LONG_NAMES)}
    plot_ranks(ranks, [list(ranks)[:2]], path, LONG_TITLE)


def draw_timeline(path):
    seconds = np.stack([np.arange(4.0), np.arange(4.0) + 2], 1)
    frames = np.full((6, 24, 32, 3), 128, np.uint8)
    plot_timeline(seconds, np.eye(4), LONG_NAMES, LONG_NAMES, 5.0, path, LONG_TITLE, frames)


def draw_episode(path):
    frames = np.full((4, 8, 24, 32, 3), 128, np.uint8)
    plot_episode(LONG_NAMES, frames, frames, np.full((4, 4), 0.25), [0, 1, 2, 3], path, LONG_TITLE)


def draw_comparison(path):
    plot_training_comparison({LONG_TITLE: TRAIN + VALIDATION}, path)


def draw_review(path):
    model, processor = tiny_model_and_processor()
    clips = {name: similar_clips(seed, 3) for seed, name in enumerate(LONG_NAMES)}
    review = SupportSet.from_videos(model, processor, clips).review(model)
    review.suspects.append(SuspectClip(LONG_NAMES[0], "clip 1", LONG_NAMES[1], 2.0, 5.0))
    review.plot(path)


@pytest.mark.parametrize(
    "draw",
    [draw_confusion, draw_per_class, draw_ranks, draw_timeline, draw_episode, draw_comparison, draw_review],
    ids=lambda draw: draw.__name__.removeprefix("draw_"),
)
def test_long_names_are_neither_cut_off_nor_push_the_picture_aside(draw, tmp_path, monkeypatch):
    widest, savefig = [], plt.Figure.savefig

    def measure_and_save(figure, *args, **options):
        savefig(figure, *args, **options)
        widest.append(max(axes.get_position().width for axes in figure.axes))

    monkeypatch.setattr(plt.Figure, "savefig", measure_and_save)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*layout not applied")
        draw(tmp_path / "picture.png")
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("L"))
    assert min(pixels[:2].min(), pixels[-2:].min(), pixels[:, :2].min(), pixels[:, -2:].min()) == 255
    assert widest[0] > 0.3
