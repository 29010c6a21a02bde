"""The metric: values worked out by hand, through `evaluate.load` and by its plain functions."""

import importlib
import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from clipfsar.evaluation.report import half_interval
from clipfsar.metrics.episodic_accuracy.episodic_accuracy import mean_and_interval, per_class_accuracy

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "clipfsar" / "metrics" / "episodic_accuracy"

# Three episodes of two queries; 2, 1 and 1 of them right: mean 2/3, standard deviation 1/sqrt(12).
PREDICTIONS, REFERENCES, EPISODES = [0, 1, 1, 1, 2, 0], [0, 1, 1, 0, 2, 2], [7, 7, 3, 3, 5, 5]
MEAN = 2 / 3
HALF_WIDTH = 1.96 * 12**-0.5 / 3**0.5
PER_CLASS = {0: 0.5, 1: 1.0, 2: 0.5}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load`, offline, everything that it writes in a folder of the test."""
    # It copies the script into a package that it imports from; the package's name tells the tests apart.
    package = tmp_path / f"modules_of_{tmp_path.name}"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.setattr("evaluate.loading.init_dynamic_modules", lambda *_: str(package))
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    return evaluate.load


@pytest.fixture
def metric(load):
    return load(str(FOLDER))


def check(result: dict):
    assert result["accuracy"] == pytest.approx(MEAN)
    assert result["interval"] == pytest.approx(HALF_WIDTH)
    assert result["n_episodes"] == 3
    assert result["per_class_accuracy"] == PER_CLASS


# --- through evaluate -------------------------------------------------------------------------------------------------


def test_values_are_those_worked_out_by_hand(metric):
    check(metric.compute(predictions=PREDICTIONS, references=REFERENCES, episodes=EPISODES))


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_arrays_and_tensors_do_as_well_as_lists(metric, make):
    check(metric.compute(predictions=make(PREDICTIONS), references=make(REFERENCES), episodes=make(EPISODES)))


def test_the_program_of_the_readme_prints_what_it_says(load, monkeypatch, capsys):
    readme = (FOLDER / "README.md").read_text()
    program, printed = readme.split("```python\n")[1].split("```\n\n```\n")
    monkeypatch.chdir(ROOT)
    exec(program, {})
    assert capsys.readouterr().out == printed.split("```")[0]


def test_it_loads_from_any_working_directory(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(str(FOLDER)).compute(predictions=[1, 1], references=[1, 0])["accuracy"] == 0.5


def test_an_episode_may_spread_over_batches(metric):
    for rows in (slice(0, 3), slice(3, 6)):  # the second episode is cut in two
        metric.add_batch(predictions=PREDICTIONS[rows], references=REFERENCES[rows], episodes=EPISODES[rows])
    check(metric.compute())


def test_answers_may_come_one_by_one(metric):
    for prediction, reference, episode in zip(PREDICTIONS, REFERENCES, EPISODES, strict=True):
        metric.add(prediction=prediction, reference=reference, episodes=episode)
    check(metric.compute())


def test_without_episodes_every_answer_is_one(metric):
    result = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["n_episodes"] == 6
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["interval"] == pytest.approx(1.96 * (4 / 15) ** 0.5 / 6**0.5)  # 4 ones, 2 zeros: variance 4 / 15


def test_batches_without_episodes_do_not_share_one(metric):
    for row in range(4):
        metric.add_batch(predictions=PREDICTIONS[row : row + 1], references=REFERENCES[row : row + 1])
    assert metric.compute()["n_episodes"] == 4


def test_every_episode_weighs_the_same_however_many_queries_it_has(metric):
    result = metric.compute(predictions=[0, 0, 0, 0], references=[0, 1, 1, 1], episodes=[0, 1, 1, 1])
    assert result["accuracy"] == 0.5
    assert result["per_class_accuracy"] == {0: 1.0, 1: 0.0}


def test_one_episode_has_no_interval(metric):
    result = metric.compute(predictions=[0, 1], references=[0, 0], episodes=[4, 4])
    assert result["accuracy"] == 0.5
    assert math.isnan(result["interval"])


def test_a_second_use_starts_afresh(metric):
    metric.compute(predictions=[0], references=[1], episodes=[0])
    check(metric.compute(predictions=PREDICTIONS, references=REFERENCES, episodes=EPISODES))


# --- classes ----------------------------------------------------------------------------------------------------------


def test_class_names_replace_numbers_per_class(metric):
    names = ["boxing", "diving", "juggling", "never asked about"]
    result = metric.compute(predictions=PREDICTIONS, references=REFERENCES, episodes=EPISODES, class_names=names)
    assert result["per_class_accuracy"] == {"boxing": 0.5, "diving": 1.0, "juggling": 0.5}


def test_class_names_serve_batches_too(metric):
    metric.add_batch(predictions=[0, 1], references=[1, 1], episodes=[0, 0])
    assert metric.compute(class_names=["boxing", "diving"])["per_class_accuracy"] == {"diving": 0.5}


def test_answers_may_be_names(metric):
    result = metric.compute(predictions=["7", "run"], references=["7", "jump"], episodes=[0, 1])
    assert result["accuracy"] == 0.5
    assert result["per_class_accuracy"] == {"7": 1.0, "jump": 0.0}


@pytest.mark.parametrize("references", [[2, 2], [-1, -1]])
def test_a_class_without_a_name_is_an_error(metric, references):
    with pytest.raises(ValueError, match=r"has no name: class_names names the classes 0\.\.1"):
        metric.compute(predictions=[0, 0], references=references, class_names=["boxing", "diving"])


# --- errors -----------------------------------------------------------------------------------------------------------


def test_unequal_numbers_are_an_error_with_the_numbers(metric):
    with pytest.raises(ValueError, match="There are 2 predictions, 1 references, 2 episodes"):
        metric.compute(predictions=[0, 1], references=[0])
    with pytest.raises(ValueError, match="There are 2 predictions, 2 references, 1 episodes"):
        metric.add_batch(predictions=[0, 1], references=[0, 1], episodes=[0])


@pytest.mark.parametrize(
    ("predictions", "references", "episodes"),
    [
        ([0.7, 1.0], [0, 1], [0, 0]),
        (torch.tensor([0.0, 1.5]), [0, 1], [0, 0]),
        ([0, 1], np.array([0.2, 1]), [0, 0]),
        ([0, 1], [0, 1], [0, 0.5]),
        ([math.nan, 1], [0, 1], [0, 0]),
    ],
)
def test_fractions_are_refused_instead_of_cut_off(metric, predictions, references, episodes):
    with pytest.raises(ValueError, match="must be class names or whole numbers, not"):
        metric.compute(predictions=predictions, references=references, episodes=episodes)
    with pytest.raises(ValueError, match=r"prediction must be class names or whole numbers, not 0\.9"):
        metric.add(prediction=0.9, reference=0)


def test_whole_numbers_may_be_of_a_type_for_fractions(metric):
    check(metric.compute(predictions=np.array(PREDICTIONS, float), references=REFERENCES, episodes=EPISODES))


def test_empty_answers_are_an_error(metric):
    with pytest.raises(ValueError, match="There are 0 predictions, 0 references"):
        metric.compute(predictions=[], references=[])


def test_nothing_added_is_an_error(metric):
    with pytest.raises(ValueError, match="There are no answers"):
        metric.compute()


def test_half_an_answer_is_an_error(metric):
    with pytest.raises(ValueError, match="Both predictions and references"):
        metric.compute(predictions=[0, 1])


# --- plain functions --------------------------------------------------------------------------------------------------


def test_interval_follows_the_formula_and_the_report_of_the_evaluation():
    accuracies = np.array([1.0, 0.5, 0.75, 0.25, 1.0])  # mean 0.7, squared deviations 0.425
    mean, interval = mean_and_interval(accuracies)
    assert mean == pytest.approx(0.7)
    assert interval == pytest.approx(1.96 * math.sqrt(0.425 / 4) / math.sqrt(5))
    assert interval == pytest.approx(half_interval(accuracies))


def test_plain_functions_take_lists_and_refuse_nothing_at_all():
    assert mean_and_interval([0.2, 0.2]) == (pytest.approx(0.2), pytest.approx(0.0))
    assert per_class_accuracy(["a", "a", "b"], ["a", "b", "b"]) == {"a": 1.0, "b": 0.5}
    with pytest.raises(ValueError, match="no episodes"):
        mean_and_interval([])
    with pytest.raises(ValueError, match="0 predictions, 0 references"):
        per_class_accuracy([], [])
