"""The table of heads on the demo's tracks: what is trained and chosen, how folds are pooled, what is written."""

import numpy as np
import pytest
import torch

from clipfsar.evaluation.compare_heads import HeadComparison, compare_features, pooled
from clipfsar.evaluation.protocol import Protocol
from demo.synthetic import head_training
from demo.synthetic.head_table import BEGIN, END, summary, write_into
from demo.synthetic.head_training import TrackFeatures, choose_rate, new_head_model, split_of, train
from demo.synthetic.track_classes import ORDER, WHAT
from demo.synthetic.track_features import Features
from demo.synthetic.track_heads import Recipe, frozen_head


def random_features(class_names: tuple[str, ...], clips: int, seed: int, draws: int = 1) -> Features:
    """Classes of random means, easy to tell apart, at the tiny CLIP's feature size."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(len(class_names), 1, 1, 8, 128, generator=generator)
    noise = torch.randn(len(class_names), clips, draws, 8, 128, generator=generator)
    return Features(class_names, means + noise, torch.randn(len(class_names), 128, generator=generator))


@pytest.fixture(scope="module")
def data() -> TrackFeatures:
    splits = (WHAT.base[:10], WHAT.validation[:5], WHAT.novel[:6])
    features = [random_features(names, 3, seed) for seed, names in enumerate(splits)]
    return TrackFeatures(WHAT, *features)


@pytest.fixture
def short(monkeypatch, data):
    """Trainings of two episodes, on the few classes of `data`."""
    recipe = Recipe(episodes=2, n_way=5, validations=1)
    monkeypatch.setattr(head_training, "Recipe", lambda: recipe)
    monkeypatch.setattr(head_training, "_VALIDATION_EPISODES", 5)
    monkeypatch.setattr(TrackFeatures, "base_of", lambda self, fold: self.base)


def test_only_the_new_weights_of_a_head_are_trained(data, short):
    model, accuracy = train("trx", data, 0, 1e-3, seed=1)
    untrained = new_head_model("trx", 1).state_dict()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, untrained[name])}
    assert changed
    changed.discard("video_text_scale")  # decays, without any effect here
    assert {name.split(".")[0] for name in changed} == {"comparison_head"}
    assert 0 <= accuracy <= 100
    assert not model.training


def test_the_learning_rate_is_chosen_on_validation(data, monkeypatch):
    accuracies = {1e-4: 50.0, 3e-4: 60.0, 1e-3: 20.0}
    monkeypatch.setattr(head_training, "train", lambda alignment, data, fold, rate, seed: (None, accuracies[rate]))
    assert choose_rate("trx", data) == 3e-4


def test_a_fold_is_tested_on_verbs_that_its_training_never_saw():
    names = ORDER.scopes(ORDER.novel)[0]
    data = TrackFeatures(ORDER, *(random_features(part, 1, 0) for part in (ORDER.base, ORDER.validation, names)))
    tested = []
    for fold, verbs in enumerate(ORDER.folds):
        novel, base = data.novel_of(fold).class_names, data.base_of(fold).class_names
        assert len(novel) == len(verbs) == 12
        assert not {name for name in base if name.split()[-1] in verbs} & set(novel)
        tested += novel
    assert sorted(tested) == sorted(names)


def comparison_of(data: TrackFeatures, seed: int) -> HeadComparison:
    model = frozen_head("mean")
    contenders = {name: [split_of(model, data.novel)] for name in ("first", "second")}
    protocol = Protocol(5, (1, 2), 1, 6, seed, "few_shot")
    return compare_features(contenders, protocol, list(data.novel.class_names))


def test_folds_are_pooled_episode_by_episode(data):
    parts = [comparison_of(data, seed) for seed in range(2)]
    together = pooled(parts)
    assert together.protocol.n_episodes == 12
    assert together.accuracies[2]["second"].shape == (1, 12)
    for row, *rows in zip(together.results, *(part.results for part in parts), strict=True):
        assert (row.name, row.n_shot) == (rows[0].name, rows[0].n_shot)
        assert row.accuracy == pytest.approx(np.mean([part.accuracy for part in rows]))
        assert row.parameters == rows[0].parameters


def test_the_summary_names_what_needs_no_training_first_and_is_written_into_a_page(tmp_path):
    rng = np.random.default_rng(0)
    otam = rng.uniform(40, 60, (1, 500))
    accuracies = {"otam": otam, "chamfer": otam + 2 + np.tile([1, -1], 250), "trx, trained": otam - 3}
    comparison = HeadComparison([], {1: accuracies}, Protocol(5, (1,), 1, 500, 0, "few_shot"))
    lines = summary({"What": comparison})
    assert lines[0].startswith(
        "- What, 1-shot: without training, `chamfer` is best, 2.0 ± 0.1 points ahead of `otam`; "
    )
    assert lines[0].endswith("`trx, trained` is 5.0 ± 0.1 points behind it.")
    assert lines[-1] == f"| trx, trained | {otam.mean() - 3:.1f} ± {1.96 * otam.std() / 500**0.5:.1f} |"
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    write_into(page, lines)
    assert page.read_text() == "\n".join(["above", BEGIN, "", *lines, "", END, "below", ""])
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no part between '<!-- written by"):
        write_into(page, lines)
