"""Comparing heads: corrected statistics by hand, references without training, and the table of `clipfsar compare`."""

import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from golden.formula_model import tiny_model
from tiny_data import tiny_model_and_processor

from clipfsar.evaluation import compare_heads
from clipfsar.evaluation.arguments import CompareArguments
from clipfsar.evaluation.compare_heads import (
    HeadComparison,
    HeadResult,
    compare_features,
    find_heads,
    heads_of,
    names_in_table,
)
from clipfsar.evaluation.paired import (
    holm,
    indistinguishable_groups,
    mean_and_interval,
    mean_ranks,
    paired_difference,
)
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.references import REFERENCES, GaussianDiscriminant, LinearProbe, NearestMean, TipAdapter
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.training import train_heads
from clipfsar.training.arguments import EpisodicTrainingArguments
from heads_clipfsar import HEADS, own_alignments

OWN_HEAD = '''
from clipfsar import Head, class_means


class LastFrames(Head):
    """Compares the last frames."""

    def compare(self, query, shots, present=None):
        return (query[:, :, None, -1] - class_means(shots, present)[:, None, :, -1]).square().sum(-1)
'''


@pytest.fixture
def own_head(tmp_path):
    (tmp_path / "mine.py").write_text(OWN_HEAD)
    yield f"{tmp_path}/mine.py:LastFrames"
    HEADS.pop("LastFrames", None)
    if "LastFrames" in own_alignments:
        own_alignments.remove("LastFrames")


# --- statistics -------------------------------------------------------------------------------------------------------


def test_holm_multiplies_the_smallest_p_value_most():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_paired_difference_has_the_interval_of_the_differences():
    first, second = np.array([20.0, 40.0, 60.0, 80.0]), np.array([40.0, 40.0, 80.0, 80.0])
    difference, interval, p_value = paired_difference(first, second)
    deviation = np.std([20, 0, 20, 0], ddof=1) / 2
    assert difference == 10.0
    assert p_value == pytest.approx(math.erfc(10 / deviation / 2**0.5))
    assert interval >= 1.9 * deviation
    assert paired_difference(first, first) == (0.0, 0.0, 1.0)


def test_an_interval_over_seeds_holds_their_spread():
    episodes = np.tile([0.0, 100.0], 50)
    mean, interval = mean_and_interval(np.stack([episodes, episodes]))
    assert (mean, interval) == (50.0, pytest.approx(mean_and_interval(episodes)[1]))
    far_apart = mean_and_interval(np.stack([episodes, episodes + 10]))
    assert far_apart == (55.0, pytest.approx(math.hypot(interval, 12.71 * 5), rel=1e-3))


def test_ties_share_their_rank():
    accuracies = np.array([[100.0, 50.0], [100.0, 0.0], [0.0, 100.0]])
    assert mean_ranks(accuracies).tolist() == [(1.5 + 2) / 2, (1.5 + 3) / 2, (3 + 1) / 2]


def test_groups_hold_neighbours_that_no_test_tells_apart():
    rng = np.random.default_rng(0)
    base = rng.normal(50, 10, 200)
    near = base + rng.normal(0, 5, 200)
    accuracies = {"far": base - 20 + rng.normal(0, 1, 200), "base": base, "near": near}
    assert [set(group) for group in indistinguishable_groups(accuracies)] == [{"base", "near"}]


# --- references -------------------------------------------------------------------------------------------------------


def unit(*shape, seed=0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


@pytest.mark.parametrize("reference", REFERENCES.values())
def test_a_reference_finds_the_class_of_a_shot_and_ignores_padding(reference):
    head = reference(None)
    shots, present = unit(1, 3, 4, 1, 8), torch.ones(1, 3, 4, dtype=torch.bool)
    present[0, 1, 2:] = False
    distances = head.compare(shots[:, :, 0], shots, present)
    assert distances.shape == (1, 3, 3)
    assert distances.argmin(-1).tolist() == [[0, 1, 2]]
    other = torch.where(present[..., None, None], shots, unit(1, 3, 4, 1, 8, seed=5))
    torch.testing.assert_close(head.compare(shots[:, :, 0], other, present), distances, rtol=1e-4, atol=1e-4)


def test_tip_adapter_votes_with_its_formula():
    query, shots = unit(1, 1, 4), unit(1, 2, 2, 4, seed=1)
    votes = TipAdapter(None).scores(query, shots, torch.ones(1, 2, 2, dtype=torch.bool))
    by_hand = [np.mean([math.exp(-5.5 * (1 - float(query[0, 0] @ shot))) for shot in one]) for one in shots[0]]
    assert votes[0, 0].tolist() == pytest.approx(by_hand, rel=1e-5)


def test_one_shot_gaussian_discriminant_and_nearest_mean_agree():
    query, shots, present = unit(1, 6, 8), unit(1, 5, 1, 8, seed=1), torch.ones(1, 5, 1, dtype=torch.bool)
    answers = [one(None).scores(query, shots, present).argmax(-1) for one in (GaussianDiscriminant, NearestMean)]
    assert answers[0].tolist() == answers[1].tolist()


def test_a_linear_probe_lowers_the_loss_of_its_shots():
    class Untrained(LinearProbe):
        steps = 0

    shots, present = unit(1, 4, 6, 8) + 0.5 * unit(1, 4, 1, 8, seed=1), torch.ones(1, 4, 6, dtype=torch.bool)
    shots = torch.nn.functional.normalize(shots, dim=-1)
    labels = torch.arange(4).repeat_interleave(6)
    losses = [
        torch.nn.functional.cross_entropy(head(None).scores(shots.flatten(1, 2), shots, present)[0], labels).item()
        for head in (Untrained, LinearProbe)
    ]
    assert losses[1] < losses[0]


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_compares_every_head_with_the_first_on_the_same_episodes(tmp_path, own_head):
    (own,) = find_heads([own_head])
    labels = np.repeat(np.arange(4), 6)
    generator = torch.Generator().manual_seed(0)
    videos = torch.randn(4, 1, 16, generator=generator)[labels] + torch.randn(24, 4, 16, generator=generator)
    texts = torch.randn(4, 16, generator=generator)
    contenders = {
        name: [SplitFeatures(tiny_model(alignment=name, trx_size=8), videos, texts, labels)]
        for name in ("otam", "trx", "gda", own)
    }
    protocol = Protocol(3, (1, 2), 1, 40, 0, "few_shot")
    comparison = compare_features(contenders, protocol, list("abcd"))
    assert [(one.name, one.n_shot) for one in comparison.results[:4]] == [(name, 1) for name in contenders]
    assert len(comparison.results) == 8
    first, second = comparison.results[0], comparison.results[1]
    assert math.isnan(first.p_value)
    assert second.difference == pytest.approx(second.accuracy - first.accuracy)
    assert second.parameters > first.parameters
    of_shots = [one.mean_rank for one in comparison.results if one.n_shot == 1]
    assert sum(of_shots) == pytest.approx(1 + 2 + 3 + 4)
    assert str(comparison).splitlines()[2].startswith("| otam | 1 |")
    comparison.to_latex(tmp_path / "table.tex")
    assert r"LastFrames & 1 & " in (tmp_path / "table.tex").read_text()
    comparison.to_json(tmp_path / "table.json")
    saved = json.loads((tmp_path / "table.json").read_text())
    assert saved["results"][0]["p_value"] is None
    assert all(path.is_file() for path in comparison.plot(tmp_path))


def test_names_of_folders_are_no_commands_of_latex_or_markdown(tmp_path):
    names = ("50% r&d", r"a_b\{x}", "#1|$2^~<>", "two\nlines")
    results = [HeadResult(name, 1, 50.0, 1.0, 0.0, 0.0, math.nan, 1.0, 0.5, 1234) for name in names]
    comparison = HeadComparison(results, {}, Protocol())
    comparison.to_latex(tmp_path / "table.tex")
    rows = (tmp_path / "table.tex").read_text().splitlines()[4:8]
    assert [row.split(" & 1 & ")[0] for row in rows] == [
        r"50\% r\&d",
        r"a\_b\textbackslash{}\{x\}",
        r"\#1$|$\$2\textasciicircum{}\textasciitilde{}$<$$>$",
        r"two\textbackslash{}nlines",
    ]
    assert rows[0].endswith(r" & 1 & 50.0 $\pm$ 1.0 &  &  & 0.50 & 1,234 \\")
    assert [line.split(" | 1 | ")[0] for line in str(comparison).splitlines()[2:]] == [
        "| 50% r&d",
        r"| a_b\{x}",
        r"| #1\|$2^~<>",
        r"| two\nlines",
    ]


def test_every_checkpoint_has_a_name_of_its_own_in_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("a/m", "b/m", "runs/x/seed_0/best", "runs/y/seed_0/best", "runs/y/seed_0/last")
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    assert names_in_table(["runs/x/seed_0/best"]) == {"runs/x/seed_0/best": "seed_0"}
    assert names_in_table(["a/m", "me/model"]) == {"a/m": "m", "me/model": "model"}
    assert list(names_in_table(names[:2]).values()) == ["a/m", "b/m"]
    assert list(names_in_table(names[2:4]).values()) == ["x/seed_0", "y/seed_0"]
    assert list(names_in_table(names[3:]).values()) == ["best", "last"]
    for twice in (["a/m", "./a/m"], ["me/model", "me/model"]):
        with pytest.raises(ValueError, match="twice: name each model once"):
            names_in_table(twice)


def test_an_unknown_head_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("Head = 3\n")
    for name in ("Head", "Other"):
        with pytest.raises(ValueError, match=f"mine.py has no subclass of clipfsar.Head called '{name}'"):
            find_heads([f"{tmp_path / 'mine.py'}:{name}"])
    with pytest.raises(ValueError, match="--heads otan is not known: there are otam, bi_mhm, mean, chamfer"):
        find_heads(["otan"])
    with pytest.raises(ValueError, match="there is no such file"):
        find_heads(["nowhere.py:Head"])


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("no_such_module", "No module named 'no_such_module'"),
        ("needs.py", "No module named 'no_such_package'"),
        ("odd.py", r"invalid syntax \(odd.py, line 1\)"),
    ],
)
def test_a_head_that_cannot_be_imported_is_told_with_its_option(place, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    (tmp_path / "odd.py").write_text("class :\n")
    with pytest.raises(ValueError, match=rf"^--heads {place} cannot be imported \({reason}\): correct the name or "):
        find_heads([f"{place}:Head"])


def test_a_file_without_its_ending_is_no_module():
    with pytest.raises(ValueError, match=r"^--heads ./mine is no file that ends in .py, and no module\.$"):
        find_heads(["./mine:Head"])


def test_two_heads_of_one_name_are_refused(tmp_path, own_head):
    (tmp_path / "other.py").write_text(OWN_HEAD)
    other = f"{tmp_path}/other.py:LastFrames"
    with pytest.raises(ValueError, match=re.escape(f"--heads {own_head} and {other}: two heads are called LastFrames")):
        find_heads([own_head, "otam", other])
    assert find_heads([own_head, own_head.replace("mine.py", "./mine.py"), "otam", "otam"]) == ["LastFrames", "otam"]


def test_a_head_of_ones_own_does_not_take_the_place_of_a_reference(tmp_path):
    (tmp_path / "mine.py").write_text(OWN_HEAD.replace("LastFrames", "gda"))
    with pytest.raises(ValueError, match="gda: gda is a head of this library: rename yours"):
        find_heads([f"{tmp_path}/mine.py:gda"])
    assert HEADS["gda"] is GaussianDiscriminant


def test_a_head_without_its_weights_is_left_out(tmp_path, capsys):
    tiny_model(alignment="bi_mhm").config.save_pretrained(tmp_path)
    assert heads_of(str(tmp_path), ["otam", "trx", "chamfer"]) == ["otam", "chamfer", "bi_mhm"]
    assert "no weights for trx" in capsys.readouterr().out
    assert heads_of(str(tmp_path), []) == ["bi_mhm"]


def save_first_model(folder, **settings):
    """A model to train heads on; `settings` are of its configuration."""
    model, processor = tiny_model_and_processor(**settings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.fixture
def first_model(tmp_path):
    save_first_model(tmp_path / "first")
    return str(tmp_path / "first")


def test_every_head_is_trained_with_the_same_seeds_on_the_same_features(tmp_path, first_model, monkeypatch):
    trained = []
    monkeypatch.setattr(train_heads, "train", trained.append)
    given = {"models": [first_model], "dataset": "data", "output_dir": str(tmp_path), "train_heads": ["otam", "trx"]}
    folders = train_heads.train_heads(CompareArguments(**given, train_seeds=2, train_episodes=400))
    assert [(one.alignment, one.seed) for one in trained] == [("otam", 0), ("otam", 1), ("trx", 0), ("trx", 1)]
    assert {(one.features_dir, one.freeze_vision, one.resume) for one in trained} == {
        (str(tmp_path / "trained" / "features"), True, True)
    }
    assert folders["trx, trained"] == [str(tmp_path / "trained" / "trx" / f"seed_{n}" / "best") for n in range(2)]
    compared = []
    monkeypatch.setattr(train_heads, "compare", lambda *given: compared.append(given))
    arguments = CompareArguments(**given, train_seeds=2)
    train_heads.main(arguments)
    assert compared == [(arguments, folders)]


def test_a_head_trains_with_the_settings_of_the_comparison_and_without_a_test_of_its_own():
    numbers = {"n_way": 4, "n_shot": [2, 3], "num_workers": 1}
    given = {"models": ["me/clip", "me/other"], "dataset": "me/videos", "output_dir": "out", "train_heads": ["trx"]}
    arguments = CompareArguments(**given, **numbers, train_seeds=4, train_episodes=1640)
    made = asdict(train_heads.training_of(arguments, "trx", 3))
    defaults = asdict(EpisodicTrainingArguments())
    assert {name: value for name, value in made.items() if value != defaults[name]} == numbers | {
        "model": "me/clip",
        "dataset": "me/videos",
        "output_dir": "out/trained/trx/seed_3",
        "features_dir": "out/trained/features",
        "freeze_vision": True,
        "alignment": "trx",
        "seed": 3,
        "episodes": 1640,
        "eval_every": 164,
        "test_episodes": 0,
        "learning_rate": 1e-4,
        "report_to": "none",
        "resume": True,
    }
    few = CompareArguments(**given, train_episodes=100)
    assert train_heads.training_of(few, "trx", 0).eval_every == 8
    assert train_heads.training_of(replace(few, train_episodes=36), "trx", 0).eval_every == 4


def test_heads_are_trained_on_the_frames_that_the_table_is_made_on(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(train_heads, "train", trained.append)
    _, processor = save_first_model(tmp_path / "first")
    processor.frame_sampling, processor.query_augmentation = "linspace", "kinetics"
    processor.prompt_template = "someone does {}"
    processor.save_pretrained(tmp_path / "first")
    given = {"models": [str(tmp_path / "first")], "dataset": "data", "output_dir": str(tmp_path / "out")}
    train_heads.train_heads(CompareArguments(**given, train_heads=["otam"], train_seeds=2))
    names = ("num_frames", "frame_sampling", "prompt_template", "query_augmentation")
    assert [[getattr(one, name) for name in names] for one in trained] == [
        [4, "linspace", "someone does {}", "none"],
        [4, "linspace", "someone does {}", "none"],
    ]


def test_heads_that_were_trained_on_a_model_that_has_changed_since_are_refused(tmp_path, first_model, monkeypatch):
    monkeypatch.setattr(train_heads, "train", lambda one: None)
    given = {"models": [first_model], "dataset": "data", "output_dir": str(tmp_path / "out"), "train_heads": ["otam"]}
    arguments = CompareArguments(**given)
    train_heads.train_heads(arguments)
    train_heads.train_heads(arguments)  # the same model
    model, processor = tiny_model_and_processor()
    with torch.no_grad():
        model.clip.visual_projection.weight.add_(1)
    model.save_pretrained(first_model)
    folder = tmp_path / "out" / "trained"
    message = f"{folder} were trained from another model than {first_model} is now (different: weights)"
    with pytest.raises(ValueError, match=re.escape(f"{message}: name another --output_dir, or delete {folder}, and")):
        train_heads.train_heads(arguments)
    processor.prompt_template = "someone does {}"
    processor.save_pretrained(first_model)
    with pytest.raises(ValueError, match=re.escape("(different: weights, preprocessing)")):
        train_heads.train_heads(arguments)


def test_trainings_of_earlier_versions_are_not_recorded_as_those_of_the_present_model(
    tmp_path, first_model, monkeypatch
):
    monkeypatch.setattr(train_heads, "train", lambda one: None)
    (tmp_path / "out" / "trained" / "otam" / "seed_0" / "best").mkdir(parents=True)
    given = {"models": [first_model], "dataset": "data", "output_dir": str(tmp_path / "out"), "train_heads": ["otam"]}
    train_heads.train_heads(CompareArguments(**given))
    assert [path.name for path in (tmp_path / "out" / "trained").iterdir()] == ["otam"]


def test_a_trained_head_with_other_frozen_towers_or_frames_is_refused(tmp_path, first_model):
    first, processor = save_first_model(tmp_path / "same" / "best")
    assert compare_heads._trained_head(str(tmp_path / "same" / "best"), first, first_model).device == first.device
    processor.num_frames = 2
    processor.save_pretrained(tmp_path / "same" / "best")
    message = "same/best was trained on the features of another model than .*/first: name another --output_dir, or "
    with pytest.raises(ValueError, match=f"{message}delete .*/same, and it is trained again"):
        compare_heads._trained_head(str(tmp_path / "same" / "best"), first, first_model)
    with torch.no_grad():
        first.clip.visual_projection.weight.add_(1)
    with pytest.raises(ValueError, match="first was trained on the features of another model than"):
        compare_heads._trained_head(first_model, first, first_model)


def test_trainings_need_a_folder_and_two_seeds():
    with pytest.raises(ValueError, match="--train_heads needs --output_dir"):
        CompareArguments(models=["clip"], dataset="data", train_heads=["trx"])
    with pytest.raises(ValueError, match="--train_seeds 1 must be at least 2"):
        CompareArguments(models=["clip"], dataset="data", train_heads=["trx"], output_dir="out", train_seeds=1)


def test_trainings_that_cannot_start_are_refused_before_the_first():
    given = {"models": ["clip"], "dataset": "data", "output_dir": "out"}
    message = "--train_heads trxx is not known: there are otam, bi_mhm, mean, chamfer, trx, hyrsm"
    with pytest.raises(ValueError, match=message):
        CompareArguments(**given, train_heads=["otam", "trxx"])
    with pytest.raises(ValueError, match=r"--train_episodes 1001 is not a multiple of 4, .*: 1000 would be"):
        CompareArguments(**given, train_heads=["otam"], train_episodes=1001)
