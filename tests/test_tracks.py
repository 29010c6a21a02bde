"""The two tracks of the demo: classes and features, and statistics and sentences with made-up numbers."""

import numpy as np
import pytest
import torch

from demo.synthetic.render import draw_scene, paint_scene
from demo.synthetic.spread import Spread, effect_sentence, guessing_sentence, spread_of, worth_training
from demo.synthetic.track_classes import (
    ORDER,
    TRACKS,
    UNNAMED_LOOKS,
    WHAT,
    exchange_twins,
    look_of,
    twin_of,
    verb_of,
)
from demo.synthetic.track_features import ClassClips, Features, encode_class, tiny_clip
from demo.synthetic.track_heads import Recipe, frozen_head, one_shot_accuracies, train_head
from demo.synthetic.track_report import sentences, track_results

GAIN, LOSS, UNCLEAR = Spread(5.0, 4.2, 5.8), Spread(-2.1, -3.1, -1.1), Spread(0.1, -0.4, 0.6)


# ----------------------------------------------------------------------------------------------------------------------
# Classes
# ----------------------------------------------------------------------------------------------------------------------


def test_the_what_track_has_the_looks_it_promises():
    assert [len(names) for names in (WHAT.base, WHAT.validation, WHAT.novel)] == [38, 10, 12]
    looks = [look_of(name) for name in WHAT.base + WHAT.validation + WHAT.novel]
    assert len(set(looks)) == 60
    assert tuple(map(look_of, WHAT.novel[:4])) == UNNAMED_LOOKS


@pytest.mark.parametrize("track", TRACKS, ids=lambda track: track.name)
def test_base_validation_and_novel_classes_share_neither_verb_nor_look(track):
    for fold in range(len(track.folds)):
        splits = (track.base_of(fold), track.validation, track.novel_of(fold))
        for of in (verb_of, look_of):
            found = [set(map(of, names)) for names in splits]
            assert not found[0] & found[1]
            assert not found[0] & found[2]
            assert not found[1] & found[2]


def test_every_verb_of_the_order_track_is_novel_in_one_fold_with_its_twin():
    assert [len(fold) for fold in ORDER.folds] == [12, 12, 12]
    assert sorted(sum(ORDER.folds, ())) == sorted({verb_of(name) for name in ORDER.novel})
    for fold in ORDER.folds:
        assert all(twin_of(verb) in (None, *fold) for verb in fold)
    assert twin_of("growing") == "shrinking"
    assert twin_of("swinging") is None


def test_episodes_of_the_order_track_stay_within_one_look():
    scopes = ORDER.scopes(ORDER.novel_of(0))
    assert [len(scope) for scope in scopes] == [12, 12]
    assert all(len(set(map(look_of, scope))) == 1 for scope in scopes)
    assert ORDER.group_of("growing") == ORDER.group_of("shrinking") != ORDER.group_of("filling")


def test_exchanging_twins_twice_changes_nothing():
    names = ORDER.novel_of(0)
    assert exchange_twins(exchange_twins(names)) == names
    assert exchange_twins(("red star growing", "red star looping")) == ("red star shrinking", "red star looping")


def test_larger_distractors_are_the_only_difference_of_a_scene():
    usual, cluttered = (draw_scene("red star growing", 0, 3, size) for size in (1.0, 1.55))
    count = len(usual.objects) - usual.num_subjects
    assert [b.radius / a.radius for a, b in zip(usual.objects, cluttered.objects, strict=True)] == pytest.approx(
        [1.55] * count + [1.0] * usual.num_subjects
    )
    assert np.array_equal(usual.background, cluttered.background)
    assert np.array_equal(usual.noise, cluttered.noise)


# ----------------------------------------------------------------------------------------------------------------------
# Spread
# ----------------------------------------------------------------------------------------------------------------------


def test_the_interval_of_many_classes_is_that_of_their_mean():
    values = np.random.default_rng(0).normal(70, 10, size=(1, 40))
    spread = spread_of(values, [str(i) for i in range(40)])
    assert spread.mean == pytest.approx(values.mean())
    assert spread.half_width == pytest.approx(1.96 * values.std(ddof=1) / 40**0.5, rel=0.05)


def test_seeds_widen_the_interval():
    items = [str(i) for i in range(12)]
    classes_alone = spread_of(np.zeros((1, 12)), items)
    with_seeds = spread_of(np.array([[-3.0] * 12, [0.0] * 12, [3.0] * 12]), items)
    assert classes_alone.half_width == 0
    assert with_seeds.low == pytest.approx(-3)
    assert with_seeds.high == pytest.approx(3)


def test_twins_that_agree_count_once():
    values = np.repeat(np.random.default_rng(0).normal(70, 10, size=(1, 15)), 2, axis=1)
    pairs = [str(i // 2) for i in range(30)]
    alone = spread_of(values, [str(i) for i in range(30)])
    assert spread_of(values, pairs).half_width == pytest.approx(2**0.5 * alone.half_width, rel=0.08)


def test_equal_tables_have_equal_intervals():
    values = np.random.default_rng(0).normal(size=(3, 12))
    assert spread_of(values, list("abcdefghijkl")) == spread_of(values.copy(), list("abcdefghijkl"))


# ----------------------------------------------------------------------------------------------------------------------
# Sentences
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spreads", "sentence"),
    [
        (
            {1: GAIN, 5: UNCLEAR},
            "The text adds 5.0 ± 0.8 points at one shot; no effect is measurable at five shots (+0.1 ± 0.5).",
        ),
        ({1: GAIN, 5: GAIN}, "The text adds 5.0 ± 0.8 points at one shot and 5.0 ± 0.8 points at five shots."),
        ({1: GAIN, 5: LOSS}, "The text adds 5.0 ± 0.8 points at one shot and costs 2.1 ± 1.0 points at five shots."),
        (
            {1: UNCLEAR, 5: UNCLEAR},
            "The text has no measurable effect at one shot (+0.1 ± 0.5) or at five shots (+0.1 ± 0.5).",
        ),
    ],
)
def test_a_difference_is_claimed_only_where_its_interval_leaves_zero_out(spreads, sentence):
    assert effect_sentence("The text", spreads) == sentence


@pytest.mark.parametrize(
    ("spreads", "sentence"),
    [
        ({1: GAIN, 5: GAIN}, "For CLIP-FSAR: yes at one shot and five shots."),
        ({1: GAIN, 5: LOSS}, "For CLIP-FSAR: yes at one shot; no at five shots."),
        ({1: UNCLEAR, 5: LOSS}, "For CLIP-FSAR: no at five shots; undecided at one shot."),
        ({1: UNCLEAR, 5: UNCLEAR}, "For CLIP-FSAR: undecided at one shot and five shots."),
    ],
)
def test_whether_training_is_worth_it_follows_from_the_signs(spreads, sentence):
    assert worth_training(spreads) == sentence


def test_an_interval_that_excludes_zero_only_where_it_is_longer_is_no_clear_effect():
    assert not Spread(3.1, 0.1, 6.7).is_clear  # 3.1 ± 3.3
    assert Spread(3.1, 0.1, 5.9).is_clear  # 3.1 ± 2.9


def test_a_difference_of_nothing_has_no_minus():
    assert effect_sentence("Nothing", {1: Spread(-0.04, -0.1, 0.1)}) == (
        "Nothing has no measurable effect at one shot (+0.0 ± 0.1)."
    )


def test_guessing_is_called_guessing():
    unclear, better = Spread(52.0, 48.0, 56.0), Spread(70.0, 66.0, 74.0)
    assert guessing_sentence("The text", unclear, 50) == (
        "The text cannot be told apart from guessing (52.0 ± 4.0%; guessing gives 50%)."
    )
    assert guessing_sentence("OTAM", better, 50) == "OTAM is better than guessing (70.0 ± 4.0%; guessing gives 50%)."


def made_up_accuracies(gain_of_text: float):
    """Classes that differ a lot, and a text that helps each of them by about the same."""
    rng = np.random.default_rng(0)
    classes = rng.normal(70, 15, size=(1, 12))
    without = classes + rng.normal(0, 1, size=(3, 12))
    with_text = without + gain_of_text + rng.normal(0, 1, size=(3, 12))
    trained = {"without_text": without, "with_text": with_text}
    trained |= {"ensemble": with_text + 1, "ensemble_official": with_text - 1}
    tables = {"frozen_mean": classes - 5, "frozen_otam": classes, "texts_only": classes} | trained
    return {row: {shots: (list(WHAT.novel), table) for shots in (1, 5)} for row, table in tables.items()}


def test_a_paired_difference_is_seen_where_the_rows_alone_would_hide_it():
    results = track_results(WHAT, made_up_accuracies(3.0), {1: 0.5, 5: 0.3}, {}, [])
    rows = results["rows"]
    assert rows["with_text"]["shots"]["1"]["half_width"] > 6
    difference = results["differences"]["text"]["shots"]["1"]
    assert difference["difference"] == pytest.approx(3.0, abs=0.5)
    assert 0 < difference["interval"][0] < 3 < difference["interval"][1] < 5
    assert results["differences"]["ensemble"]["shots"]["1"]["interval"] == pytest.approx([1.0, 1.0])
    answers = {item["question"]: item["answer"] for item in results["sentences"]}
    assert "adds 3." in answers["What does the text do?"] or "adds 2." in answers["What does the text do?"]
    assert "validation: 0.5 at 1-shot, 0.3 at 5-shot)" in answers["What does the ensemble add?"]


def test_a_text_without_effect_is_not_praised():
    results = track_results(WHAT, made_up_accuracies(0.0), {1: 0.5, 5: 0.3}, {}, [])
    answers = {item["question"]: item["answer"] for item in results["sentences"]}
    assert "has no measurable effect at one shot" in answers["What does the text do?"]


def test_rows_of_different_classes_are_not_compared():
    accuracies = made_up_accuracies(0.0)
    accuracies["with_text"] = {
        shots: (["another"] * 12, table) for shots, (_, table) in accuracies["with_text"].items()
    }
    with pytest.raises(ValueError, match="Rows of different classes"):
        track_results(WHAT, accuracies, {1: 0.5, 5: 0.3}, {}, [])


def test_exchanged_texts_and_twins_have_their_sentences():
    shots = {
        name: {1: GAIN, 5: UNCLEAR}
        for name in ("alignment", "text", "method", "training_alone", "ensemble", "ensemble_over_texts")
    }
    shots |= {"official_weight": {1: LOSS, 5: LOSS}, "swapped_texts": {1: UNCLEAR, 5: UNCLEAR}}
    twins = {"twins of frozen_mean": Spread(50.5, 49.0, 52.0), "twins of texts_only": Spread(50.0, 47.0, 53.0)}
    answers = {item["question"]: item["answer"] for item in sentences(shots | twins, {1: 0.9, 5: 0.3})}
    assert answers["What does the ensemble add?"].endswith(
        "The official weight 0.9 instead of the chosen one costs 2.1 ± 1.0 points at five shots. "
        "The chosen weight is the official one at one shot."
    )
    assert "Between twins, the text alone cannot be told apart from guessing" in answers["What does the text do?"]
    assert "Exchanging the texts of twins has no measurable effect" in answers["What does the text do?"]
    assert "Between twins, mean pooling cannot be told apart" in answers["What does alignment do?"]


# ----------------------------------------------------------------------------------------------------------------------
# Features and accuracies
# ----------------------------------------------------------------------------------------------------------------------


def test_a_class_is_encoded_as_the_processor_would():
    videos, text = encode_class(ClassClips("red star growing", 2, 0, 1.0, 0))
    model, processor = tiny_clip()
    clip = paint_scene(draw_scene("red star growing", 0, 1))
    with torch.no_grad():
        expected = model.get_video_features(processor.process_videos([clip])[None])[0]
        expected_text = model.get_class_features(**processor.tokenize_classes(["red star growing"]))
    np.testing.assert_allclose(videos[1], expected, atol=0.05)  # a crop may differ by a pixel
    np.testing.assert_allclose(text, expected_text[0], atol=1e-5)


def test_the_ensemble_with_all_weight_on_texts_is_the_texts_alone():
    generator = torch.Generator().manual_seed(0)
    names = WHAT.novel[:5]
    texts = torch.randn(5, 128, generator=generator)
    videos = texts[:, None, None, None] + 4 * torch.randn(5, 4, 1, 8, 128, generator=generator)
    features = Features(names, videos, texts)
    found = one_shot_accuracies(frozen_head("otam"), WHAT, features, (0.0, 1.0))
    assert found[0.0] == pytest.approx(found["few_shot"])
    nearest = torch.nn.functional.cosine_similarity(videos.mean((2, 3))[:, :, None], texts, dim=-1).argmax(-1)
    right = 100 * (nearest == torch.arange(5)[:, None]).double().mean(1)
    assert list(found[1.0].values()) == pytest.approx(right.tolist())


def test_training_leaves_the_callers_random_numbers_alone():
    generator = torch.Generator().manual_seed(1)
    videos = torch.randn(5, 2, 1, 8, 128, generator=generator)
    features = Features(WHAT.novel[:5], videos, videos.mean((1, 2, 3)))
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    model, history = train_head(
        WHAT, features, features, Recipe(episodes=2, n_way=5, n_query=1, validations=1), True, 0
    )
    assert torch.equal(torch.get_rng_state(), expected)
    assert not model.training
    assert [record["episode"] for record in history] == [2]
