"""Reviews of support sets: exact leave-one-out, sources of clips, and what the review names."""

import io
import itertools
import json
import math
import pickle

import pytest
import torch
from PIL import Image
from tiny_data import random_clip, tiny_model_and_processor

import review_clipfsar
import suggestion_clipfsar
import tuning_clipfsar
from clipfsar.cli import main as run_command
from clipfsar.inference.arguments import ReviewArguments
from demo.synthetic import TINY_CLIP
from left_out_clipfsar import LeftOut, hold_out, leave_one_out, rounds, source_of, sources_of_clips
from review_clipfsar import (
    SupportSetReview,
    SuspectClip,
    averaged_answers,
    repeated_clips,
    review_classes,
    wilson_interval,
)
from suggestion_clipfsar import STRATEGIES, suggest_clips
from support_set_clipfsar import EnrolledClass, SupportSet
from support_set_files_clipfsar import write_support_set
from tuning_clipfsar import Tuning, candidate_settings, own_settings, tune_classes

MODES = ("few_shot", "zero_shot", "ensemble")
SIZE = 16


def enrolled(embeds: torch.Tensor, text: torch.Tensor, names: list[str] | None = None) -> EnrolledClass:
    names = names or [f"{number}.mp4" for number in range(len(embeds))]
    return EnrolledClass(text, names, embeds, [b""] * len(embeds))


def random_classes(counts: dict[str, int], seed: int = 0) -> dict[str, EnrolledClass]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: enrolled(torch.randn(number, 4, SIZE, generator=generator), torch.randn(SIZE, generator=generator))
        for name, number in counts.items()
    }


def clear_classes(num_clips: int, num_classes: int = 4, seed: int = 0) -> dict[str, EnrolledClass]:
    """Classes whose clips lie close together, and far from those of other classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.eye(SIZE)[:num_classes]
    noise = torch.randn(num_classes, num_clips, 4, SIZE, generator=generator)
    return {f"class {number}": enrolled(centre + 0.5 * noise[number], centre) for number, centre in enumerate(centres)}


def without(classes: dict[str, EnrolledClass], gone: set[tuple[str, str]]) -> dict[str, EnrolledClass]:
    """The classes as `remove_clip` would leave them; a class without clips is missing."""
    left = {}
    for name, one in classes.items():
        rows = [row for row, clip in enumerate(one.clip_names) if (name, clip) not in gone]
        if rows:
            left[name] = enrolled(one.support_embeds[rows], one.class_embeds, [one.clip_names[row] for row in rows])
    return left


@pytest.fixture(scope="module")
def model():
    return tiny_model_and_processor()[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "settings",
    [
        {"alignment": "otam"},
        {"alignment": "bi_mhm", "support_pooling": "after"},
        {"alignment": "mean", "prototype_modulation": False},
        {"alignment": "chamfer", "chamfer_tuple_size": 2},
        {"alignment": "trx", "trx_size": 8},
        {"alignment": "hyrsm"},
    ],
)
def test_leaving_one_out_equals_a_set_without_that_clip_and_its_source(settings, mode, monkeypatch):
    model, _ = tiny_model_and_processor(**settings)
    monkeypatch.setattr("left_out_clipfsar._VALUES_PER_BATCH", 3 * 3 * 4 * SIZE)  # several batches
    classes = random_classes({"boxing": 3, "diving": 1, "running": 2})
    clips = [(name, clip) for name, one in classes.items() for clip in one.clip_names]
    sources = ["tape", "b", "c", "d", "tape", "e"]  # the first clips of boxing and running
    logits = leave_one_out(model, classes, sources).logits(model, mode)
    embeds = torch.cat([one.support_embeds for one in classes.values()])
    fingerprint = SupportSet.from_videos(model, tiny_model_and_processor()[1], {"a": random_clip(0)}).fingerprint
    for row, source in enumerate(sources):
        gone = {clip for clip, other in zip(clips, sources, strict=True) if other == source}
        left = classes if mode == "zero_shot" else without(classes, gone)
        expected = SupportSet(fingerprint, left).classify(model, embeds[row, None], mode)[0]
        columns = [column for column, name in enumerate(classes) if name in left]
        torch.testing.assert_close(logits[row, columns], expected, rtol=1e-6, atol=2e-6)
        assert logits[row].isinf().sum() == len(classes) - len(left)


@pytest.mark.parametrize("values_per_batch", [1, 2**24])  # a round at a time, all at once
@pytest.mark.parametrize("alignment", ["otam", "trx", "hyrsm"])
def test_holding_out_equals_a_set_without_those_clips(alignment, values_per_batch, monkeypatch):
    monkeypatch.setattr("left_out_clipfsar._VALUES_PER_BATCH", values_per_batch)
    model = tiny_model_and_processor(alignment=alignment)[0]
    classes = random_classes({"boxing": 3, "diving": 2})
    held_out = torch.tensor([[True, False, False, True, False], [False, True, True, True, True]])
    answers = hold_out(model, classes, held_out)
    assert answers.rows.tolist() == [0, 3, 1, 2, 3, 4]
    assert answers.labels.tolist() == [0, 1, 0, 0, 1, 1]
    fingerprint = SupportSet.from_videos(model, tiny_model_and_processor()[1], {"a": random_clip(0)}).fingerprint
    embeds = torch.cat([one.support_embeds for one in classes.values()])
    left = without(classes, {("boxing", "0.mp4"), ("diving", "0.mp4")})
    expected, _ = SupportSet(fingerprint, left).compare(model, embeds[[0, 3]])
    torch.testing.assert_close(answers.distances[:2], expected, rtol=0, atol=1e-6)
    assert answers.distances[2:, 1].isinf().all()  # the second round empties diving
    assert answers.is_assessed("few_shot").tolist() == [True, True, True, True, False, False]
    assert [one is True for one in answers.is_assessed("zero_shot").tolist()] == [True] * 6


@pytest.mark.parametrize("alignment", ["otam", "trx", "hyrsm"])
@pytest.mark.parametrize("counts", [{"diving": 2, "boxing": 3}, {"diving": 2, "boxing": 1, "walking": 2}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_clips_are_left_out_whatever_the_model_computes_in(alignment, counts, dtype):
    model = tiny_model_and_processor(alignment=alignment)[0]
    classes = random_classes(counts)
    expected = leave_one_out(model, classes, range(5)).logits(model, "ensemble")
    model = model.to(dtype)
    logits = leave_one_out(model, classes, range(5)).logits(model, "ensemble")
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.5)


@pytest.mark.parametrize("alignment", ["chamfer", "trx", "hyrsm"])
def test_in_classes_of_one_size_a_head_leaves_out_a_clip_all_the_same(alignment):
    model, processor = tiny_model_and_processor(alignment=alignment)
    classes = random_classes({"diving": 2, "boxing": 2})
    distances = leave_one_out(model, classes, range(4)).distances
    fingerprint = SupportSet.from_videos(model, processor, {"a": random_clip(0)}).fingerprint
    left = SupportSet(fingerprint, without(classes, {("boxing", "0.mp4")}))
    expected, _ = left.compare(model, classes["boxing"].support_embeds[:1])
    torch.testing.assert_close(distances[2:3], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("clip", "source"),
    [
        ("v_ApplyEyeMakeup_g01_c03.avi", "v_ApplyEyeMakeup_g01"),
        ("dQw4w9WgXcQ_000010_000020.mp4", "dQw4w9WgXcQ"),
        ("Faith_Rewarded_kick_f_cm_np1_ba_goo_2.avi", "Faith_Rewarded"),
        ("holiday part 2.mp4", "holiday"),
        ("Faith_Rewarded_kick_f_cm_np1_ba_goo_2.avi (2)", "Faith_Rewarded"),
        ("long film_pick_u_nm_np2_le_med_13.avi", "long film"),
        ("HOLIDAY-SCENE_12.MOV", "HOLIDAY"),
        ("holiday.segment-03.mp4", "holiday"),
        ("holiday cut4", "holiday"),
        ("holiday_window_5.webm (3)", "holiday"),
        ("holiday_12.5-15.0.mp4", "holiday"),
        ("holiday 3s_6s.mkv", "holiday"),
        ("holiday@3-6.mkv", None),
        ("holiday.mp4#t=3,6", "holiday.mp4"),
        ("holiday.mp4#t=3,6 (2)", "holiday.mp4"),
        ("000.mp4", None),
        ("clip 2", None),
        ("2024-11-03.mp4", None),
        ("fi031.mp4", None),
    ],
)
def test_names_tell_the_source(clip, source):
    assert source_of(clip) == source


def test_given_sources_replace_those_of_the_names():
    classes = random_classes({"boxing": 2, "diving": 1})
    assert sources_of_clips(classes) == [("boxing", "0.mp4"), ("boxing", "1.mp4"), ("diving", "0.mp4")]
    assert sources_of_clips(classes, {("boxing", "0.mp4"): "tape", "1.mp4": "tape"})[:2] == [("tape",), ("tape",)]
    given = {"0.mp4": 7, ("diving", "0.mp4"): "film", "1.mp4": None}  # what names the class as well goes first
    assert sources_of_clips(classes, given) == [("7",), ("boxing", "1.mp4"), ("film",)]
    cut = {"boxing": enrolled(torch.zeros(2, 4, SIZE), torch.zeros(SIZE), ["film part 1.mp4", "film part 2.mp4"])}
    assert sources_of_clips(cut) == [("film",), ("film",)]
    assert sources_of_clips(cut, {}) == [("boxing", "film part 1.mp4"), ("boxing", "film part 2.mp4")]
    with pytest.raises(ValueError, match=r"sources names 'other\.mp4', but no clip of that name is enrolled"):
        sources_of_clips(classes, {"other.mp4": "tape"})


def test_each_round_takes_as_many_sources_of_every_class_where_classes_share_a_video():
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    sources = ["long", "a", "b", "long", "c", "long"]
    for lost, taken in ((1, [1, 1]), (2, [1, 2])):  # a class keeps one source
        for held_out in rounds(labels, sources, lost, seed=0, number=12):
            clips = list(zip(labels.tolist(), sources, held_out.tolist(), strict=True))
            gone = {(label, source) for label, source, is_out in clips if is_out}
            assert [sum(label == one for label, _ in gone) for one in (0, 1)] == taken
            assert all(is_out == ((label, source) in gone) for label, source, is_out in clips)  # all of it, or none


@pytest.mark.parametrize(("lost", "number", "times"), [(1, 8, 2), (2, 6, 3)])
def test_all_sources_of_a_class_have_their_turn_before_one_has_its_next(lost, number, times):
    labels = torch.tensor([0, 0, 0, 0, 0, 1])  # the last clip is the only one of its class, and stays
    sources = ["c", "a", "a", "d", "b", "e"]
    held_out = rounds(labels, sources, lost, seed=3, number=number)
    assert held_out.shape == (number, 6)
    assert torch.equal(held_out, rounds(labels, sources, lost, seed=3, number=number))
    assert not torch.equal(held_out, rounds(labels, sources, lost, seed=4, number=number))
    assert held_out.sum(0).tolist() == [times] * 5 + [0]
    assert len(rounds(labels, sources, lost, seed=3)) == 20


def test_the_accuracy_is_extrapolated_along_the_mean_of_1_by_sources(model, monkeypatch):
    given, with_interval = [], review_clipfsar._with_interval
    monkeypatch.setattr(
        review_clipfsar, "_with_interval", lambda *inputs: given.append(inputs) or with_interval(*inputs)
    )
    review_classes(model, random_classes({"walking": 5, "single": 1, "boxing": 2, "jumping": 3}), "few_shot")
    ((_, _, num_sources, levels, whole),) = given
    assert (num_sources, whole) == (10, pytest.approx((1 / 5 + 1 / 2 + 1 / 3) / 3))
    assert [place for _, place in levels] == pytest.approx([(1 / 4 + 1 + 1 / 2) / 3, (1 / 3 + 1 + 1) / 3])


def test_swapped_labels_are_named(model):
    classes = clear_classes(num_clips=5)
    first, second = classes["class 0"].support_embeds, classes["class 1"].support_embeds
    first[2], second[4] = second[4].clone(), first[2].clone()
    review = review_classes(model, classes, "few_shot")
    assert {(one.class_name, one.clip, one.nearer_to) for one in review.suspects} == {
        ("class 0", "2.mp4", "class 1"),
        ("class 1", "4.mp4", "class 0"),
    }
    assert "Mislabelled? class 0/2.mp4 looks like 'class 1'." in str(review)


def test_a_clear_set_has_no_findings_and_the_accuracy_is_that_of_its_clips(model):
    review = review_classes(model, clear_classes(num_clips=4), "few_shot")
    assert review.suspects == review.duplicates == review.inseparable == review.too_few == []
    assert review.accuracy == pytest.approx(100)
    low, high = wilson_interval(1.0, 16 / 2)  # two clips count as one answer
    assert review.interval == pytest.approx((100 * low, 100 * high))
    assert review.shots_fewer == 0
    assert review.per_class == dict.fromkeys(review.class_names, pytest.approx(100))
    assert "No clip or class stands out." in str(review)


def test_a_near_copy_is_named_and_hides_in_the_accuracy_only_if_its_source_is_unknown(model):
    classes = random_classes({"boxing": 2, "diving": 2, "running": 2})
    for one in classes.values():  # the second clip is a copy: each would find the other
        one.support_embeds[1] = one.support_embeds[0] + 0.01
    review = review_classes(model, classes, "few_shot")
    assert review.duplicates == [(name, "0.mp4", name, "1.mp4") for name in classes]
    first, *_ = classes
    assert f"Almost the same: {first}/0.mp4 and {first}/1.mp4. One of them is enough." in review.summary()
    review.duplicates = [(first, "0.mp4", "another", "1.mp4")]  # the most telling pair, if the labels are right
    line = f"Almost the same: {first}/0.mp4 and another/1.mp4. Is one label wrong? If both are right, keep both."
    assert line in review.summary()
    assert review.accuracy == pytest.approx(100)
    together = {(name, clip): name for name, one in classes.items() for clip in one.clip_names}
    review = review_classes(model, classes, "few_shot", together)
    assert review.accuracy is None
    assert review.too_few == list(classes)
    assert review.shared_sources["boxing"] == [("boxing", "0.mp4"), ("boxing", "1.mp4")]


def test_clips_are_doubles_by_what_they_do_not_share_with_all_others(model):
    classes = random_classes({"boxing": 3, "diving": 2})
    for one in classes.values():
        one.support_embeds += 30
    assert review_classes(model, classes, "few_shot").duplicates == []
    classes["diving"].support_embeds[1] = classes["boxing"].support_embeds[2] + 0.1
    assert review_classes(model, classes, "few_shot").duplicates == [("boxing", "2.mp4", "diving", "1.mp4")]


def test_classes_that_guess_are_inseparable(model):
    classes = clear_classes(num_clips=6, num_classes=3)
    generator = torch.Generator().manual_seed(1)
    for name in ("class 0", "class 1"):
        classes[name].support_embeds = torch.randn(6, 4, SIZE, generator=generator)
    pairs = {pair[:2]: pair[2:] for pair in review_classes(model, classes, "few_shot").inseparable}
    right, total = pairs["class 0", "class 1"]
    assert (right <= 9, total) == (True, 12)


def test_a_class_whose_clip_cannot_be_left_out_is_not_called_inseparable(model):
    classes = clear_classes(num_clips=2, num_classes=3)
    classes["single"] = enrolled(-4 * torch.eye(SIZE)[:1, None].expand(1, 4, SIZE), torch.ones(SIZE))
    review = review_classes(model, classes, "few_shot")
    assert (review.too_few, review.inseparable) == (["single"], [])


def test_single_clips_leave_the_accuracy_unknown_except_by_names(model):
    classes = random_classes({"boxing": 1, "diving": 1})
    review = review_classes(model, classes, "few_shot")
    assert (review.accuracy, review.interval, review.shots_fewer) == (None, None, 0)
    assert review.per_class == {"boxing": None, "diving": None}
    assert "unknown. No class has clips of two videos." in str(review)
    assert review_classes(model, classes, "zero_shot").accuracy is not None


def test_the_review_of_a_set_goes_to_json_and_a_picture(tmp_path):
    model, processor = tiny_model_and_processor()
    clips = {name: [random_clip(10 * row + number) for number in range(3)] for row, name in enumerate(("a", "b"))}
    review = SupportSet.from_videos(model, processor, clips).review(model)
    values = json.loads(json.dumps(review.to_dict()))
    assert values["num_clips"] == {"a": 3, "b": 3}
    assert set(values) == {
        *("class_names", "num_clips", "inference_mode", "accuracy", "interval", "shots_fewer", "per_class"),
        *("confusion", "suspects", "duplicates", "shared_sources", "inseparable", "too_few"),
    }
    review.duplicates.append(("a", "clip 1", "b", "clip 2"))
    review.plot(tmp_path / "review.png")
    assert (tmp_path / "review.png").stat().st_size > 10_000


def test_a_picture_of_another_format_is_refused_by_its_option():
    with pytest.raises(ValueError, match=r"^--picture r.bmp: a picture ends in one of .png, .* not in .bmp.$"):
        ReviewArguments(model="m", support_set="s", picture="r.bmp")


def test_the_command_reviews_a_saved_set(tmp_path, capsys):
    from clipfsar.inference.load_model import load_model

    model, processor = load_model(str(TINY_CLIP))
    support_set = SupportSet.from_videos(model, processor, {"a": random_clip(0), "b": random_clip(1)})
    classes = {
        name: enrolled(
            one.support_embeds + 0.1 * torch.randn(4, 8, 128, generator=torch.manual_seed(row)), one.class_embeds
        )
        for row, (name, one) in enumerate(support_set.classes.items())
    }
    write_support_set(tmp_path / "set", support_set.fingerprint, classes)
    (tmp_path / "sources.csv").write_text("class,clip,source\na,0.mp4,tape\na,1.mp4,tape\n")
    options = ["--model", str(TINY_CLIP), "--support_set", str(tmp_path / "set"), "--device", "cpu"]
    options += ["--sources", str(tmp_path / "sources.csv"), "--output", str(tmp_path / "review.json")]
    assert run_command(["review", *options]) == 0
    review = json.loads((tmp_path / "review.json").read_text())
    assert review["shared_sources"] == {"tape": [["a", "0.mp4"], ["a", "1.mp4"]]}
    (tmp_path / "sources.csv").write_text("clip\n0.mp4\n")
    assert run_command(["review", *options]) == 1
    assert "sources.csv, line 2 has no source: each row needs clip and source." in capsys.readouterr().err


# --- the numbers of the review ----------------------------------------------------------------------------------------


def answers_of(logits: list[list[float]], labels: list[int], empty: tuple = ()) -> LeftOut:
    """Answers that are looked at by their names; `empty` are (clip, class) without a clip left."""
    distances = torch.zeros(len(labels), len(logits[0]))
    for place in empty:
        distances[place] = torch.inf
    return LeftOut(distances, torch.tensor(logits), torch.arange(len(labels)), torch.tensor(labels))


class ByNames:
    """Gives the text logits in every mode."""

    def get_logits(self, distances, text_logits, inference_mode):
        return text_logits


@pytest.mark.parametrize(
    ("share", "number", "z", "expected"),
    [
        (0.8, 10, 1.96, (0.4902, 0.9433)),
        (1.0, 4, 1.96, (0.5101, 1.0)),
        (0.0, 5, 1.96, (0.0, 0.4345)),
        (0.5, 20, 1.0, (0.3909, 0.6091)),
    ],
)
def test_the_interval_is_wilsons(share, number, z, expected):
    assert wilson_interval(share, number, z) == pytest.approx(expected, abs=1e-4)


def test_the_interval_has_95_percent_unless_asked_otherwise():
    assert wilson_interval(0.3, 7) == wilson_interval(0.3, 7, 1.96) != wilson_interval(0.3, 7, 1.0)


@pytest.mark.parametrize(
    ("levels", "whole", "accuracy", "shots_fewer"),
    [
        ([(0.75, 0.5), (0.5, 1.0)], 0.25, 87.5, 0),
        ([(0.75, 0.5), (0.25, 0.9)], 0.1, 100, 0),  # the line ends above 100%
        ([(0.75, 0.5), (0.8, 1.0)], 0.25, 75, 0),  # fewer clips were no worse: by chance
        ([(0.75, 0.5)], 0.25, 75, 1),
        ([(0.75, 0.5), (0.5, 0.5)], 0.25, 75, 1),
        ([], 0.0, 75, 0),
    ],
)
def test_the_accuracy_of_all_clips_lies_on_the_line_through_those_of_fewer(levels, whole, accuracy, shots_fewer):
    shares = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0.5, 0.5, 0], [0, 0, 0]])  # the second and fourth are never out
    answers = review_clipfsar._with_interval(shares, torch.tensor([0, 0, 1, 2]), 6, levels, whole)
    assert (answers.accuracy, answers.shots_fewer) == (pytest.approx(accuracy), shots_fewer)
    assert answers.confusion().tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]]
    interval = tuple(100 * limit for limit in wilson_interval(accuracy / 100, 3))  # two clips count as one answer
    assert answers.interval == pytest.approx(interval)


def test_the_shares_are_those_of_rounds_without_one_video(model):
    classes = random_classes({"walking": 4, "boxing": 3, "jumping": 1})
    sources = sources_of_clips(classes, {("walking", "2.mp4"): "tape", ("walking", "3.mp4"): "tape"})
    left_out = leave_one_out(model, classes, sources)
    answers = averaged_answers(model, classes, sources, "few_shot", left_out, seed=5)
    held_out = hold_out(model, classes, rounds(left_out.labels, sources, 1, 5))
    expected = torch.zeros(8, 3)
    for row, answer in zip(held_out.rows.tolist(), held_out.logits(model, "few_shot").argmax(1).tolist(), strict=True):
        expected[row, answer] += 1
    expected[:7] /= expected[:7].sum(1, keepdim=True)
    torch.testing.assert_close(answers.shares, expected)
    assert answers.shares[7].tolist() == [0, 0, 0]  # the only clip of its class
    assert 0 < float(answers.shares[:7].amax(1).min()) < 1  # or the rounds would count for nothing
    assert answers.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]


def test_clips_that_no_round_or_one_round_leaves_out_have_whole_answers(model):
    classes = random_classes({"walking": 25, "boxing": 2})  # of 20 rounds, each leaves out one of the 25
    sources = sources_of_clips(classes)
    answers = averaged_answers(model, classes, sources, "few_shot", leave_one_out(model, classes, sources))
    assert sorted(answers.shares.sum(1).tolist()) == [0] * 5 + [1] * 22


def test_by_names_no_clip_is_left_out_and_each_counts_once(model):
    classes = random_classes({"walking": 3, "boxing": 1})
    sources = ["tape", "tape", "b", "c"]
    left_out = answers_of([[2.0, 1.0], [0.0, 1.0], [5.0, 1.0], [0.0, 3.0]], [0, 0, 0, 1], empty=[(3, 1)])
    answers = averaged_answers(model, classes, sources, "zero_shot", left_out)
    assert answers.shares.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert answers.accuracy == pytest.approx(100 * (2 / 3 + 1) / 2)  # each class counts alike
    low, high = wilson_interval((2 / 3 + 1) / 2, 3 / 2)  # three videos
    assert (answers.interval, answers.shots_fewer) == (pytest.approx((100 * low, 100 * high)), 0)


def test_a_suspect_stands_out_from_the_margins_of_the_set():
    margins = [-2.0, -1.5, -1.0, -2.5, -3.0, 0.5, 1.5, 0.0]  # of the other class over the own one
    labels = [0, 1, 0, 1, 0, 1, 0, 0]
    logits = [
        [margin, 0.0, -9.0] if label else [0.0, margin, -9.0] for margin, label in zip(margins, labels, strict=True)
    ]
    clips, names = [("ab"[label], f"{row}.mp4") for row, label in enumerate(labels)], ["a", "b", "c"]
    # Margins sorted: -3, -2.5, -2, -1.5, -1, 0, 0.5, 1.5. torch takes -1.5 as the median, and 1 as that of the
    # distances to it: 0, 0.5, 0.5, 1, 1.5, 1.5, 2, 3.
    answers = answers_of(logits, labels)
    assert review_clipfsar._suspects(ByNames(), answers, "ensemble", clips, names) == []  # (1.5 + 1.5) / 1.4826 < 3
    answers.text_logits[6, 1], answers.text_logits[5, 0] = 4.0, 3.5
    found = review_clipfsar._suspects(ByNames(), answers, "ensemble", clips, names)
    assert [(one.class_name, one.clip, one.nearer_to, one.margin) for one in found] == [
        ("a", "6.mp4", "b", 4.0),  # the worst first
        ("b", "5.mp4", "a", 3.5),
    ]
    assert [one.deviations for one in found] == pytest.approx([5.5 / 1.4826, 5 / 1.4826])
    answers.distances[6, 0] = torch.inf  # now it had no chance to be right
    (only,) = review_clipfsar._suspects(ByNames(), answers, "ensemble", clips, names)
    assert only.clip == "5.mp4"


def test_a_clip_that_is_nearest_to_its_own_class_is_never_suspect():
    logits = [[0.0, -10.0], [0.0, -10.5], [-11.0, 0.0], [0.0, -10.2], [0.0, -1.0], [0.0, 0.0]]  # a tie is no error
    answers = answers_of(logits, [0, 0, 1, 0, 0, 0])
    clips = [("a", f"{row}.mp4") for row in range(6)]
    assert review_clipfsar._suspects(ByNames(), answers, "ensemble", clips, ["a", "b"]) == []


def test_two_clips_are_too_few_to_suspect_one():
    logits = [[0.0, -1.0], [0.0, 1.0], [0.0, -1.0]]
    clips = [("a", f"{row}.mp4") for row in range(3)]
    for number, suspects in ((2, 0), (3, 1)):
        answers = answers_of(logits[:number], [0] * number)
        assert len(review_clipfsar._suspects(ByNames(), answers, "ensemble", clips, ["a", "b"])) == suspects


@pytest.mark.parametrize(
    ("right", "total", "is_named"),
    [
        (9, 12, True),  # 75%, and 47% at the lower end of the interval
        (10, 12, False),
        (4, 5, False),  # 38% at the lower end, but more than 75%
        (15, 20, False),  # 75%, but 53% at the lower end
    ],
)
def test_classes_are_hard_to_tell_apart_by_share_and_by_significance(right, total, is_named):
    labels = [0] * 3 + [2] * (total - 3)
    # All are surely not of class 1, the wrong ones fit class 0 and 2 alike.
    logits = [[float(label == 0 or row >= right), -5.0, float(label == 2)] for row, label in enumerate(labels)]
    pairs = review_clipfsar._inseparable(ByNames(), answers_of(logits, labels), "zero_shot", ["a", "b", "c"])
    assert pairs == ([("a", "c", right, total)] if is_named else [])


def test_the_pair_that_is_hardest_to_tell_apart_comes_first_and_clips_without_a_chance_do_not_count():
    labels = torch.tensor([0] * 2 + [1] * 2 + [2] * 7)
    logits = torch.full((11, 3), -9.0)
    logits[torch.arange(11), labels] = 1.0
    logits[0, 1] = logits[4:8, 1] = 2.0  # 3 of 4 are right between 0 and 1, and 5 of 9 between 1 and 2
    answers = answers_of(logits.tolist(), labels.tolist())
    inseparable = review_clipfsar._inseparable
    assert inseparable(ByNames(), answers, "few_shot", ["a", "b", "c"]) == [("b", "c", 5, 9), ("a", "b", 3, 4)]
    answers.distances[10, 2] = torch.inf
    assert inseparable(ByNames(), answers, "few_shot", ["a", "b", "c"])[0] == ("b", "c", 4, 8)
    answers.distances[4:, 2] = torch.inf  # no clip of c is left
    answers.text_logits[2:4, 2] = 2.0
    assert inseparable(ByNames(), answers, "few_shot", ["a", "b", "c"]) == [("a", "b", 3, 4)]
    answers.distances[:2, 0] = torch.inf
    answers.text_logits[2:4, 0] = 2.0
    assert inseparable(ByNames(), answers, "few_shot", ["a", "b", "c"]) == []


def test_clips_of_one_known_video_are_listed_with_it():
    clips = [("b", "1"), ("a", "1"), ("a", "2"), ("b", "2"), ("a", "3")]
    sources = [("tape",), ("film",), ("a", "2"), ("tape",), ("a", "3")]
    assert review_clipfsar._shared_sources(clips, sources) == {"tape": [("b", "1"), ("b", "2")]}
    assert review_clipfsar._of_one_source(["b", "a"], clips, sources) == ["b"]


def test_the_review_tells_what_it_was_asked_and_how_many_clips_there_are(model):
    classes = random_classes({"walking": 3, "boxing": 1})
    few_shot, by_names = (review_classes(model, classes, mode) for mode in ("few_shot", "zero_shot"))
    assert few_shot.num_clips == {"walking": 3, "boxing": 1}
    assert (few_shot.inference_mode, by_names.inference_mode) == ("few_shot", "zero_shot")
    assert (few_shot.too_few, by_names.too_few) == (["boxing"], [])  # names need no clips
    assert few_shot.per_class["boxing"] is None
    assert few_shot.per_class["walking"] == pytest.approx(100 * few_shot.confusion[0][0], abs=0.01)
    again = [review_classes(model, random_classes({"a": 4, "b": 3, "c": 3}), "few_shot", seed=s) for s in (0, 0, 1)]
    assert again[0].confusion == again[1].confusion != again[2].confusion
    shares = [share for row in again[0].confusion for share in row]
    assert [round(share, 4) for share in shares] == shares != [round(share, 3) for share in shares]


# --- what the review says ---------------------------------------------------------------------------------------------


def a_review(**changed) -> SupportSetReview:
    """Three classes, with something to say of each kind."""
    values = {
        "class_names": ["run", "jumping", "sit"],
        "num_clips": {"run": 4, "jumping": 12, "sit": 1},
        "inference_mode": "ensemble",
        "accuracy": 71.6,
        "interval": (40.4, 90.6),
        "shots_fewer": 0,
        "per_class": {"run": 75.0, "jumping": 66.6667, "sit": None},
        "confusion": [[0.75, 0.05, 0.2], [0.3333, 0.6667, 0.0], [0.0, 0.0, 0.0]],
        "suspects": [SuspectClip("run", "2.mp4", "sit", 1.5, 4.0)],
        "duplicates": [("run", "0.mp4", "run", "1.mp4"), ("run", "3.mp4", "sit", "0.mp4")],
        "shared_sources": {"tape": [("run", "0.mp4"), ("run", "1.mp4"), ("jumping", "5.mp4")]},
        "inseparable": [("run", "sit", 3, 5)],
        "too_few": ["sit", "it's"],
    }
    return SupportSetReview(**values | changed)


def test_a_printed_review_says_everything_and_ends_with_a_table():
    assert str(a_review()).splitlines() == [
        "Expected accuracy on new clips (ensemble): 72%, 95% interval 40 to 91%. Guessing gives 33%.",
        """Too few clips: 'sit', "it's" cannot be left out. Add clips from another video.""",
        "Mislabelled? run/2.mp4 looks like 'sit'. Watch it; remove or move it.",
        "Almost the same: run/0.mp4 and run/1.mp4. One of them is enough.",
        "Almost the same: run/3.mp4 and sit/0.mp4. Is one label wrong? If both are right, keep both.",
        "From one video: 3 clips of 'tape' are left out together.",
        "Hard to tell apart: 'run' and 'sit', 3 of 5 left-out clips are right.",
        "",
        "class    clips  accuracy  most often taken for",
        "run          4       75%  sit (20%)",
        "jumping     12       67%  run (33%)",
        "sit          1         -  -",
    ]


def test_a_review_without_findings_says_so():
    nothing = {"suspects": [], "duplicates": [], "shared_sources": {}, "inseparable": [], "too_few": []}
    found = a_review(**nothing, shots_fewer=1, class_names=["run", "sit"], confusion=[[1.0, 0.0], [0.0, 1.0]])
    assert str(found).splitlines() == [
        "Expected accuracy on new clips (ensemble, with one clip fewer per class): 72%, 95% interval 40 to 91%. "
        "Guessing gives 50%.",
        "No clip or class stands out.",
        "",
        "class  clips  accuracy  most often taken for",
        "run        4       75%  -",
        "sit        1         -  -",
    ]
    unknown = "Expected accuracy (ensemble): unknown. No class has clips of two videos."
    for missing in ({"accuracy": None}, {"interval": None}):
        assert a_review(**nothing | missing).summary() == [unknown, "No clip or class stands out."]


def test_a_review_of_pictures_goes_to_json_without_them():
    review = a_review(_thumbnails={("run", "0.mp4"): b"picture"})
    assert "picture" not in repr(review)
    assert not any("thumbnails" in name for name in review.to_dict())


def test_a_clip_given_twice_is_told_by_its_picture_or_else_by_its_features():
    one, other = torch.zeros(4, SIZE), torch.ones(4, SIZE)
    known = {
        "boxing": EnrolledClass(one[0], ["0.mp4", "1.mp4"], torch.stack([one, one]), [b"", b"same"]),
        "by hand": EnrolledClass(one[0], ["0.mp4"], one[None]),  # without pictures
        "diving": EnrolledClass(one[0], ["0.mp4"], one[None], [b"same"]),
    }
    new = {"diving": [(None, one, b"first"), (None, other, b"same")], "boxing": [("2.mp4", one, b""), ("a", one, b"")]}
    assert repeated_clips(known, new) == [
        "'clip 2' of class 'diving' has the same frames as '1.mp4' of class 'boxing': one of the labels is wrong. "
        "Remove that clip.",
        "'a' of class 'boxing' has the same frames as '2.mp4' of class 'boxing': an example that is given twice counts "
        "twice. Remove one of them.",
    ]
    assert repeated_clips({}, {"boxing": [("0.mp4", one, None), ("1.mp4", other, None)]}) == []


# --- the picture of a review ------------------------------------------------------------------------------------------


def strip_of(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 16), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_picture_shows_shares_and_the_clips_that_stand_out():
    shares = [[0.606, 0.012, 0.382], [0.3333, 0.59, 0.0767], [0.004, 0.0, 0.0]]
    review = a_review(confusion=shares, _thumbnails={("run", "2.mp4"): strip_of((200, 0, 0))})
    figure = review.plot()
    title = "Expected accuracy on new clips (ensemble): 72%, 95% interval 40 to 91%. Guessing gives 33%."
    assert figure._suptitle.get_text() == title
    confusion, *strips = figure.get_axes()
    shown = {text.get_position(): (text.get_text(), text.get_color()) for text in confusion.texts}
    assert shown == {  # (class it is taken for, class); dark cells have light numbers, and 0 is left out
        (0, 0): ("61", "white"),
        (1, 0): ("1", "black"),
        (2, 0): ("38", "black"),
        (0, 1): ("33", "black"),
        (1, 1): ("59", "black"),
        (2, 1): ("8", "black"),
    }
    (image,) = confusion.get_images()
    assert image.get_clim() == (0, 100)
    assert image.get_array().tolist() == [pytest.approx([100 * share for share in row]) for row in shares]
    assert [label.get_text() for label in confusion.get_yticklabels()] == ["run (4)", "jumping (12)", "sit (1)"]
    assert [label.get_text() for label in confusion.get_xticklabels()] == ["run", "jumping", "sit"]
    assert (confusion.get_xlabel(), confusion.get_ylabel()) == ("taken for", "class (clips)")
    assert [axes.get_title(loc="left") for axes in strips] == [
        "2.mp4 of 'run': looks like 'sit'",
        *("0.mp4 of 'run': almost the same as the next", "1.mp4 of 'run'"),
        *("3.mp4 of 'run': almost the same as the next", "0.mp4 of 'sit'"),
    ]
    assert not any(axes.axison for axes in strips)
    assert [len(axes.get_images()) for axes in strips] == [1, 0, 0, 0, 0]
    pixels = strips[0].get_images()[0].get_array()
    assert pixels.shape == (16, 32, 3)
    assert abs(pixels.mean((0, 1)) - (200, 0, 0)).max() < 3
    assert [text.get_text() for axes in strips[1:] for text in axes.texts] == ["no picture kept"] * 4


def test_at_most_eight_clips_are_drawn_suspects_first():
    suspects = [SuspectClip("run", f"{number}.mp4", "sit", 1.5, 4.0) for number in range(6)]
    titles = [axes.get_title(loc="left") for axes in a_review(suspects=suspects).plot().get_axes()[1:]]
    assert titles[:6] == [f"{number}.mp4 of 'run': looks like 'sit'" for number in range(6)]
    assert titles[6:] == ["0.mp4 of 'run': almost the same as the next", "1.mp4 of 'run'"]


def test_a_few_clips_have_the_room_of_four():
    strips = a_review(duplicates=[]).plot().get_axes()[1:]
    assert [axes.get_title(loc="left") for axes in strips] == ["2.mp4 of 'run': looks like 'sit'", "", "", ""]
    assert not any(axes.axison for axes in strips)


def test_dollars_in_names_are_no_formulas_in_the_picture():
    names = ["run", r"$\x$"]
    review = a_review(class_names=names, num_clips=dict.fromkeys(names, 4), confusion=[[1.0, 0.0], [0.0, 1.0]])
    review.suspects = [SuspectClip("run", r"$\y$.mp4", r"$\x$", 1.5, 4.0)]
    figure = review.plot()
    figure.canvas.draw()  # a formula that is none would fail here
    assert figure.get_axes()[1].get_title(loc="left") == r"$\y$.mp4 of 'run': looks like '$\\x$'"


@pytest.mark.parametrize(("number", "shown"), [(20, 20), (21, 0)])
def test_a_picture_of_many_classes_is_larger_and_has_no_numbers(number, shown):
    names = [f"class {row}" for row in range(number)]
    counts, confusion = dict.fromkeys(names, 2), torch.eye(number).tolist()
    review = a_review(class_names=names, num_clips=counts, confusion=confusion, suspects=[], duplicates=[])
    figure = review.plot()
    assert len(figure.get_axes()) == 1  # no strips
    assert len(figure.get_axes()[0].texts) == shown
    width, height = figure.get_size_inches()
    assert (width, height) == (8, pytest.approx(0.42 * number + 2.2 + 0.05 * 8))


def test_long_names_are_wrapped_in_the_picture_of_a_review():
    name = "opening a wooden box with a hammer and a saw"
    review = a_review(class_names=["run", name], num_clips={"run": 4, name: 2}, confusion=[[1.0, 0.0], [0.0, 1.0]])
    axes = review.plot().get_axes()[0]
    assert axes.get_xticklabels()[1].get_text().replace("\n", " ") == name
    assert max(map(len, axes.get_xticklabels()[1].get_text().split("\n"))) <= 28


# --- tuning -----------------------------------------------------------------------------------------------------------


def misled_set(num_clips: int = 4) -> tuple:
    """A model that goes by the texts, and a set whose clips are clear but whose texts belong to other classes."""
    model, processor = tiny_model_and_processor(inference_mode="ensemble")
    classes = clear_classes(num_clips)
    texts = [one.class_embeds for one in classes.values()]
    for one, text in zip(classes.values(), [*texts[1:], texts[0]], strict=True):
        one.class_embeds = text
    support_set = SupportSet.from_videos(model, processor, {"a": random_clip(0)})
    return model, SupportSet(support_set.fingerprint, classes)


def test_tuning_leaves_misleading_texts_and_keeps_the_choice(tmp_path):
    model, support_set = misled_set()
    clips = torch.cat([one.support_embeds for one in support_set.classes.values()])
    labels = torch.arange(4).repeat_interleave(4)
    assert (support_set.classify(model, clips).argmax(-1) == labels).float().mean() < 0.5
    tuning = support_set.tune(model)
    assert (tuning.accuracy, tuning.reason) == (100, None)
    assert tuning.default_accuracy < 50
    assert support_set.settings == tuning.settings != {}
    assert all(getattr(model.config, name) != value for name, value in tuning.settings.items())
    support_set.save_pretrained(tmp_path)
    for kept in (support_set, SupportSet.from_pretrained(tmp_path), pickle.loads(pickle.dumps(support_set))):
        assert kept.settings == tuning.settings
        assert (kept.classify(model, clips).argmax(-1) == labels).all()
    assert support_set.review(model).inference_mode == tuning.settings.get("inference_mode", "ensemble")
    assert model.config.inference_mode == "ensemble"
    assert model.config.ensemble_text_weight == 0.9


def test_tuning_again_starts_from_the_models_own_settings_and_keeps_the_choice():
    model, support_set = misled_set()
    first = support_set.tune(model)
    second = support_set.tune(model)
    assert second == first
    assert support_set.settings == first.settings != {}


def test_tuning_declines_with_two_videos_in_a_class():
    model, support_set = misled_set(num_clips=3)
    tuning = tune_classes(model, support_set.classes, {("class 2", "0.mp4"): "tape", ("class 2", "1.mp4"): "tape"})
    assert (tuning.settings, tuning.accuracy) == ({}, None)
    assert "a choice needs 3 videos in every class, but 'class 2' has clips of 2." in str(tuning)


def test_the_first_of_the_classes_with_the_fewest_videos_is_named(model):
    tuning = tune_classes(model, random_classes({"jumping": 3, "walking": 2, "boxing": 2}))
    assert tuning.reason == "a choice needs 3 videos in every class, but 'walking' has clips of 2."


def test_tuning_keeps_settings_that_are_never_wrong(model):
    tuning = tune_classes(model, clear_classes(num_clips=3))
    assert tuning.settings == {}
    assert tuning.accuracy == tuning.default_accuracy == 100
    assert tuning.reason == "no others answer more held-out clips correctly."


def test_the_measured_gain_comes_from_clips_without_part_in_the_choice(model, monkeypatch):
    seen, choose = [], tuning_clipfsar._choose
    monkeypatch.setattr(tuning_clipfsar, "_choose", lambda *inputs: seen.append(inputs) or choose(*inputs))
    classes = random_classes({"boxing": 3, "diving": 3})
    tune_classes(model, classes)
    assert [sum(len(one.clip_names) for one in inputs[1].values()) for inputs in seen] == [6, 4, 4, 4]
    assert all(len(inputs[2]) == sum(len(one.clip_names) for one in inputs[1].values()) for inputs in seen)


def test_the_gain_is_measured_in_rounds_of_their_own_which_the_seed_draws(model, monkeypatch):
    seen = []
    monkeypatch.setattr(tuning_clipfsar, "_choose", lambda *inputs: seen.append(inputs) or inputs[3][0])
    classes = random_classes({"walking": 12, "boxing": 4})
    support_set = SupportSet(SupportSet.from_videos(*tiny_model_and_processor(), {"a": random_clip(0)}).fingerprint)
    support_set.classes = classes
    support_set.tune(model, seed=7)
    assert [inputs[4] for inputs in seen] == [7] * 11  # the choice, and 10 rounds however many clips a class has
    labels = torch.tensor([0] * 12 + [1] * 4)
    clips = [(name, clip) for name, one in classes.items() for clip in one.clip_names]
    for (_, rest, sources, _, _), held_out in zip(seen[1:], rounds(labels, clips, 1, 8, 10).tolist(), strict=True):
        kept = [clip for clip, is_out in zip(clips, held_out, strict=True) if not is_out]
        assert [(name, clip) for name, one in rest.items() for clip in one.clip_names] == sources == kept
    seen.clear()
    tune_classes(model, random_classes({"walking": 3, "boxing": 5}))
    assert len(seen) == 1 + 5


@pytest.mark.parametrize(
    ("misled", "accuracy", "interval"),
    [
        ([0, 1, 2, 3], 100, (0, 0)),
        ([1, 0, 2, 3], 50, (-91.7873, -8.2127)),  # 1.96 * 52.2233 / sqrt(12 / 2) on each side of -50
        ([1, 2, 3, 0], 0, (-100, -100)),
    ],
)
def test_a_choice_without_a_gain_is_measured_and_not_kept(model, monkeypatch, misled, accuracy, interval):
    monkeypatch.setattr(tuning_clipfsar, "_choose", lambda *inputs: inputs[3][1])  # by the names alone
    classes = clear_classes(num_clips=3)
    texts = [one.class_embeds for one in classes.values()]
    for one, text in zip(classes.values(), misled, strict=True):
        one.class_embeds = texts[text]
    tuning = tune_classes(model, classes)
    assert tuning.settings == {}
    assert tuning.reason == "others that win on some clips are no better on the clips held out from the choice."
    assert (tuning.default_accuracy, tuning.accuracy) == (100, pytest.approx(accuracy))
    assert tuning.gain_interval == pytest.approx(interval, abs=1e-3)
    if accuracy == 0:  # also where a round holds out more clips than there are classes
        tape = {("class 2", "0.mp4"): "tape", ("class 2", "2.mp4"): "tape", ("class 2", "1.mp4"): "film"}
        classes["class 2"] = enrolled(classes["class 2"].support_embeds.repeat(2, 1, 1), texts[3])
        tuning = tune_classes(model, classes, tape)
        assert (tuning.default_accuracy, tuning.accuracy) == (100, 0)


def test_answers_are_likely_among_the_classes_of_one_clip(model, monkeypatch):
    logits = torch.tensor([[[0.0, 1], [0, 1]], [[2, 0], [0, 2]], [[103, 100], [-100, -97]], [[1, 0], [0, 1]]])
    monkeypatch.setattr(tuning_clipfsar, "_logits_of_candidates", lambda *_: (logits, torch.tensor([0, 1])))
    classes = random_classes({"boxing": 3, "diving": 3})
    assert tuning_clipfsar._choose(model, classes, range(6), list("abcd"), 0) == "c"


def test_the_choice_takes_ten_rounds_that_hold_out_one_video_of_each_class(model, monkeypatch):
    seen, of_rounds = [], tuning_clipfsar.hold_out
    monkeypatch.setattr(tuning_clipfsar, "hold_out", lambda *given: seen.append(given[2]) or of_rounds(*given))
    classes = random_classes({"boxing": 3, "diving": 4})
    tuning_clipfsar._choose(model, classes, sources_of_clips(classes), [own_settings(model)], 5)
    (held_out,) = seen
    assert held_out[:, :3].sum(1).tolist() == held_out[:, 3:].sum(1).tolist() == [1] * 10


def test_the_likeliest_of_the_best_is_chosen_unless_the_models_own_is_one_of_them():
    model, support_set = misled_set()
    sources = sources_of_clips(support_set.classes)
    own = own_settings(model)
    by_names = own | {"inference_mode": "zero_shot"}
    sure, less_sure, unsure = (
        own | {"ensemble_text_weight": 0.1, "ensemble_temperature": temperature} for temperature in (0.25, 2.0, 8.0)
    )
    for candidates, chosen in (
        ([by_names, unsure, sure, less_sure], sure),
        ([unsure, by_names, sure], unsure),
        ([by_names, by_names | {"alignment": "mean"}], by_names),
    ):
        assert tuning_clipfsar._choose(model, support_set.classes, sources, candidates, 0) == chosen


@pytest.mark.parametrize(
    ("alignment", "tried"), [("bi_mhm", ["bi_mhm", "otam", "mean"]), ("trx", ["trx", "otam", "bi_mhm", "mean"])]
)
def test_the_settings_to_choose_from_are_all_that_need_no_training(alignment, tried):
    model = tiny_model_and_processor(alignment=alignment, inference_mode="ensemble", ensemble_text_weight=0.3)[0]
    own = ("ensemble", alignment, 0.3, 8.0)
    found = [tuple(one.values()) for one in candidate_settings(model)]
    assert found[:2] == [own, ("zero_shot", *own[1:])]
    expected = {("few_shot", one, 0.3, 8.0) for one in tried}
    weights, temperatures = (0.1, 0.25, 0.5, 0.75, 0.9), (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    expected |= set(itertools.product(["ensemble"], tried, weights, temperatures))
    assert (set(found[2:]), len(found)) == (expected, 2 + 31 * len(tried))
    assert set(candidate_settings(model)[-1]) == {
        *("inference_mode", "alignment", "ensemble_text_weight", "ensemble_temperature")
    }


def test_tuning_says_what_was_chosen_and_what_it_brings():
    tuning = Tuning({"alignment": "mean", "ensemble_text_weight": 0.25}, None, 61.7, 73.4, (-2.6, 26.0))
    assert str(tuning) == (
        "Chosen: alignment='mean', ensemble_text_weight=0.25. Accuracy on held-out clips with settings chosen this "
        "way: 73%, with the model's own 62% (95% interval of the gain -3 to +26 points)."
    )
    assert tuning.to_dict() == {
        "settings": {"alignment": "mean", "ensemble_text_weight": 0.25},
        "reason": None,
        "default_accuracy": 61.7,
        "accuracy": 73.4,
        "gain_interval": (-2.6, 26.0),
    }
    assert str(Tuning({}, "too few clips.")) == "The model's own settings stay: too few clips."


def test_the_mode_sources_and_seed_of_a_review_and_of_suggestions_are_those_asked_for(model):
    fingerprint = SupportSet.from_videos(*tiny_model_and_processor(), {"a": random_clip(0)}).fingerprint
    support_set = SupportSet(fingerprint, random_classes({"walking": 4, "boxing": 2, "jumping": 3}))
    together = {("walking", "0.mp4"): "tape", ("walking", "1.mp4"): "tape"}
    for mode in ("few_shot", "ensemble"):
        review = support_set.review(model, mode, together, seed=5)
        assert review == review_classes(model, support_set.classes, mode, together, 5)
        assert (review.inference_mode, list(review.shared_sources)) == (mode, ["tape"])
    assert len({support_set.review(model, seed=seed).accuracy for seed in (5, 6)}) == 2
    pool = torch.randn(12, 4, SIZE, generator=torch.Generator().manual_seed(3))
    for mode in MODES:
        margins = support_set.classify(model, pool, mode).softmax(-1).topk(2).values.diff(dim=-1)[:, 0].neg()
        suggestions = support_set.suggest(model, pool, 2, "margin", mode)
        assert [one.index for one in suggestions] == margins.argsort()[:2].tolist()
    draws = [[one.index for one in support_set.suggest(model, pool, 6, "random", seed=seed)] for seed in (4, 4, 5)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    "settings",
    [
        {"inference_mode": "zero_shot", "alignment": "bi_mhm"},
        {"ensemble_text_weight": 0, "ensemble_temperature": 0.25},
        {"ensemble_text_weight": 1, "ensemble_temperature": 30},
    ],
)
def test_sound_settings_of_a_saved_set_come_back(tmp_path, settings):
    support_set = SupportSet.from_videos(*tiny_model_and_processor(), {"a": random_clip(0), "b": random_clip(1)})
    write_support_set(tmp_path, support_set.fingerprint, support_set.classes, settings=settings)
    assert SupportSet.from_pretrained(tmp_path).settings == settings


def test_unsound_settings_of_a_saved_set_are_refused(tmp_path):
    model, processor = tiny_model_and_processor()
    support_set = SupportSet.from_videos(model, processor, {"a": random_clip(0), "b": random_clip(1)})
    for settings, reason in (
        ({"alignment": "guess"}, "alignment='guess' is not known"),
        ({"alignment": 3}, "alignment=3 is not known"),
        ({"inference_mode": "guess"}, "inference_mode='guess' is not known"),
        ({"ensemble_temperature": 0}, "ensemble_temperature=0 is no sound setting"),
        ({"ensemble_temperature": "8"}, "ensemble_temperature='8' is no sound setting"),
        ({"ensemble_text_weight": -0.1}, "ensemble_text_weight=-0.1 is no sound setting"),
        ({"ensemble_text_weight": 1.1}, "ensemble_text_weight=1.1 is no sound setting"),
        ({"ensemble_text_weight": True}, "ensemble_text_weight=True is no sound setting"),
        ({"hidden_size": 3}, "its settings name 'hidden_size'"),
    ):
        write_support_set(tmp_path, support_set.fingerprint, support_set.classes, settings=settings)
        with pytest.raises(ValueError, match=reason):
            SupportSet.from_pretrained(tmp_path)


# --- suggestions ------------------------------------------------------------------------------------------------------


def suggested(
    strategy: str, pool: torch.Tensor, k: int, logits: torch.Tensor | None = None, seed: int = 0
) -> list[int]:
    classes = clear_classes(num_clips=1, num_classes=2)
    logits = torch.zeros(len(pool), 2) if logits is None else logits
    return [one.index for one in suggest_clips(lambda _: logits, classes, pool, k, strategy, seed)]


def around(axes: list[int], counts: list[int]) -> torch.Tensor:
    """Clips near unit vectors, (sum of counts, 4, SIZE); the first of each is exactly there."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for axis, count in zip(axes, counts, strict=True):
        noise = 0.1 * torch.randn(count, 4, SIZE, generator=generator)
        noise[0] = 0
        clips.append(torch.eye(SIZE)[axis] + noise)
    return torch.cat(clips)


def test_margin_suggests_clips_between_two_classes():
    logits = torch.tensor([[3.0, 0.0], [0.1, 0.0], [0.0, 5.0], [0.0, 0.3]])
    assert suggested("margin", around([0], [4]), 2, logits) == [1, 3]


def test_coverage_suggests_what_is_unlike_enrolled_and_suggested_clips():
    pool = around([0, 1, 8, 9], [2, 2, 2, 2])  # classes lie near axes 0 and 1
    chosen = suggested("coverage", pool, 2)
    assert {row // 2 for row in chosen} == {2, 3}


def test_representatives_stand_for_many_clips_that_no_enrolled_one_resembles():
    pool = around([0, 8, 9, 10], [9, 2, 6, 4])  # classes lie near axes 0 and 1, so the first nine are covered
    assert suggested("representative", pool, 2) == [11, 17]  # the middle of six clips, then of four
    sure = torch.zeros(len(pool), 2)
    sure[11:17, 0] = 9.0
    assert suggested("representative", pool, 1, sure) == [17]  # clips whose class is sure count little
    sure[17:, 1] = 9.0
    assert suggested("representative", pool, 1, sure)[0] in (9, 10)  # however many they are


def test_a_large_pool_is_represented_by_some_of_its_clips(monkeypatch):
    monkeypatch.setattr("suggestion_clipfsar._MOST_COMPARED", 5)
    pool = around([8, 9], [20, 20])
    assert len(set(suggested("representative", pool, 3))) == 3
    assert len(set(suggested("representative", pool, 8))) == 8  # more than are compared otherwise


def test_typicality_suggests_the_middle_of_each_cluster():
    assert sorted(suggested("typicality", around([4, 5, 6], [6, 8, 7]), 3)) == [0, 6, 14]


@pytest.mark.parametrize(("alike", "is_typical"), [(6, True), (5, False)])
def test_a_typical_clip_is_most_like_its_five_neighbours(alike, is_typical):
    pool = around([4, 5], [alike, 8])
    pool[:alike] = pool[0].clone()
    (row,) = suggested("typicality", pool, 1)
    assert (row < alike) == is_typical


def test_clusters_end_where_each_clip_is_nearest_to_the_mean_of_its_own():
    def clusters(*degrees: float, **options) -> list[int]:
        radians = torch.deg2rad(torch.tensor(degrees))
        return suggestion_clipfsar._clusters(torch.stack([radians.cos(), radians.sin()], dim=1), 2, **options).tolist()

    assert clusters(0, 5, 10, 15, 20, 25, 30, 60, 90) == [0] * 7 + [1] * 2  # whether large or small
    assert clusters(0, 90, 40) == [0, 1, 0]  # they start from the first clip and the one that is least like it
    assert clusters(0, 42, 44, 46, 90, rounds=0) == [0, 0, 0, 1, 1]
    assert clusters(0, 42, 44, 46, 90) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_clip_is_suggested_once_even_if_all_are_alike(strategy):
    pool = torch.ones(5, 4, SIZE)
    for k in (1, 3, 5):
        assert len(set(suggested(strategy, pool, k))) == k


def test_a_suggestion_tells_the_class_that_the_clip_is_taken_for_and_how_surely():
    logits = torch.tensor([[1.0, 2.0, 0.0], [math.log(6), math.log(3), 0.0], [0.0, 9.0, 0.0], [9.0, 0.0, 0.0]])
    classes = random_classes({"walking": 1, "boxing": 2, "diving": 1})
    first, second = suggest_clips(lambda _: logits, classes, torch.ones(4, 4, SIZE), 2, "margin")
    assert (first.index, first.label) == (1, "walking")
    assert first.probability == pytest.approx(0.6)
    assert (second.index, second.label) == (0, "boxing")


def test_a_pool_that_is_no_tensor_of_frame_features_is_refused():
    classes = random_classes({"walking": 1, "boxing": 2})
    for pool, reason in (
        (torch.ones(4, SIZE), rf"shape \(4, {SIZE}\); frame features \(P, T, D\) of at least k=1 clips"),
        ([torch.ones(4, SIZE)], r"is a list, but must be a tensor \(P, T, D\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            suggest_clips(lambda _: None, classes, pool, 1, "margin")
    for k, seed, reason in ((0, 0, "k=0 must be"), (2.5, 0, r"k=2\.5 must be"), (1, 0.5, r"seed=0\.5 must be")):
        with pytest.raises(ValueError, match=reason):
            suggest_clips(lambda _: torch.zeros(4, 2), classes, torch.ones(4, 4, SIZE), k, "random", seed)


def test_ties_are_broken_by_the_seed():
    pool = around([0], [30])
    for strategy in ("margin", "random"):
        draws = [tuple(suggested(strategy, pool, 3, seed=seed)) for seed in (0, 0, 1)]
        assert draws[0] == draws[1] != draws[2]
    classes = clear_classes(num_clips=1, num_classes=2)
    unasked = suggest_clips(lambda _: torch.zeros(30, 2), classes, pool, 3, "random")
    assert tuple(one.index for one in unasked) == draws[0]


def test_a_set_suggests_with_its_own_answers_and_refuses_a_small_pool():
    model, processor = tiny_model_and_processor()
    support_set = SupportSet.from_videos(model, processor, {"a": random_clip(0), "b": random_clip(1)})
    pool = torch.cat([one.support_embeds for one in support_set.classes.values()])
    answers = {one.index: one.label for one in support_set.suggest(model, pool, 2)}
    assert answers == {0: "a", 1: "b"}
    with pytest.raises(ValueError, match="of at least k=3 clips are needed: give more clips, or a smaller k"):
        support_set.suggest(model, pool, 3)
    with pytest.raises(ValueError, match="strategy='best' is not known"):
        support_set.suggest(model, pool, 1, "best")
