"""The score of "none of these": its parts by hand, its guarantee, background clips, and how they are kept."""

import math
from fractions import Fraction

import pytest
import torch
from tiny_data import random_clip, tiny_model_and_processor

from support_set_clipfsar import EnrolledClass, SupportSet
from support_set_files_clipfsar import Unknowns
from unknown_clipfsar import UnknownScorer, _linear_discriminant, _Usual

EMPTY = [random_clip(20), random_clip(21)]


@pytest.fixture(scope="module")
def parts():
    return tiny_model_and_processor()


@pytest.fixture
def support_set(parts):
    """Two classes whose clips resemble each other, three and two of them."""
    made = SupportSet.from_videos(*parts, {"boxing": random_clip(0), "diving": random_clip(1)})
    generator = torch.Generator().manual_seed(0)
    for name, number in (("boxing", 3), ("diving", 2)):
        clips = torch.randn(1, 4, 16, generator=generator) + 0.5 * torch.randn(number, 4, 16, generator=generator)
        made.classes[name] = enrolled(clips)
    return made


@pytest.fixture(scope="module")
def query_embeds(parts):
    """Frame features of two clips that resemble none of the enrolled ones."""
    model, processor = parts
    with torch.no_grad():
        return model.get_video_features(processor.process_videos([random_clip(10), EMPTY[0]]))


class PlainModel:
    """Compares frame features as they are."""

    device = torch.device("cpu")

    def modules(self):
        return []

    def eval(self):
        return self

    def get_query_states(self, embeds):
        return embeds

    def get_text_logits(self, embeds, class_embeds):
        return embeds.mean(-2) @ class_embeds.T


def enrolled(clips: torch.Tensor, names: list[str] | None = None) -> EnrolledClass:
    return EnrolledClass(clips.mean((0, 1)), names or [f"clip {row}" for row in range(len(clips))], clips)


def at_angles(*degrees: float) -> torch.Tensor:
    """Clips of one frame; the distance of two is one minus the cosine of the angle between them."""
    radians = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([radians.cos(), radians.sin()], dim=-1)[:, None]


# --- misfits ----------------------------------------------------------------------------------------------------------


def test_what_is_usual_in_a_class_leans_on_the_mean_of_all_classes():
    usual = _Usual(torch.tensor([[0.1, 0.3, 0.6, torch.inf]]), torch.tensor([[0, 0, 1, 2]]), 3)
    mean = 1 / 3  # of 0.1, 0.3 and 0.6; the mean counts as two clips
    torch.testing.assert_close(usual.of_class(), torch.tensor([[(0.4 + 2 * mean) / 4, (0.6 + 2 * mean) / 3, mean]]))
    spread = (((0.1 - mean) ** 2 + (0.3 - mean) ** 2 + (0.6 - mean) ** 2) / 3) ** 0.5
    own = [0.1 - (0.3 + 2 * mean) / 3, 0.3 - (0.1 + 2 * mean) / 3, 0.6 - mean]  # what is usual comes from the others
    torch.testing.assert_close(usual.own_misfits()[0, :3], torch.tensor(own) / spread)
    assert usual.own_misfits()[0, 3] == torch.inf


def test_clips_that_are_equally_far_apart_have_a_spread_all_the_same():
    usual = _Usual(torch.full((1, 4), 0.2), torch.tensor([[0, 0, 1, 1]]), 2)
    assert float(usual.spread) == pytest.approx(0.02)
    torch.testing.assert_close(usual.own_misfits(), torch.zeros(1, 4))


def test_a_clip_is_compared_with_the_nearest_one_of_each_class_and_with_what_is_usual_there():
    tight, wide = enrolled(at_angles(0, 5, 10)), enrolled(at_angles(90, 130, 170))
    scorer = UnknownScorer(PlainModel(), {"tight": tight, "wide": wide}, Unknowns())
    near, far = (1 - torch.deg2rad(torch.tensor(float(angle))).cos() for angle in (5, 40))
    torch.testing.assert_close(scorer.nearest.float(), torch.tensor([near, near, near, far, far, far]))
    # Both queries are 40 degrees away from the nearest clip: usual for the wide class, not for the tight one.
    tight, wide = scorer.score(PlainModel(), at_angles(-40, 210), "few_shot").logit()
    assert tight > wide + 0.5


def test_clips_of_one_video_are_not_compared_with_each_other():
    names = ["a part 1.mp4", "a part 2.mp4", "b.mp4"]
    classes = {"one": enrolled(at_angles(0, 1, 30), names), "other": enrolled(at_angles(90, 120))}
    expected = 1 - torch.deg2rad(torch.tensor([30.0, 29, 29, 30, 30])).cos()
    scorer = UnknownScorer(PlainModel(), classes, Unknowns())
    torch.testing.assert_close(scorer.nearest.float(), expected)
    with_single = {"single": enrolled(at_angles(90)), "one": classes["one"]}  # has no other source to compare with
    nearest = UnknownScorer(PlainModel(), with_single, Unknowns()).nearest
    torch.testing.assert_close(nearest.float(), torch.tensor([torch.inf, *expected[:3]]))
    only = {"one": enrolled(at_angles(0, 1), names[:2]), "other": enrolled(at_angles(90))}
    assert UnknownScorer(PlainModel(), only, Unknowns()).nearest.isfinite().tolist() == [True, True, False]


def test_the_discriminant_is_fishers_and_claims_no_more_than_its_clips_can_tell():
    slope, offset = _linear_discriminant(torch.tensor([1.0, 7.0, 4.0]), torch.tensor([4.0, 8.0, 6.0]))
    expected = 2 / (1.1 * (18 + 8) / (6 - 2) + 1e-6)
    assert (slope, offset) == pytest.approx((expected, -expected * (4 + 6) / 2))
    slope, offset = _linear_discriminant(torch.zeros(3), torch.full((3,), 10.0))
    assert (slope * 10 + offset, slope * 0 + offset) == pytest.approx((math.log(4), -math.log(4)))


def test_a_query_with_more_frames_is_compared_at_the_same_times(support_set, query_embeds):
    scorer = UnknownScorer(PlainModel(), support_set.classes, Unknowns())
    slow = torch.rand(len(query_embeds), 1 + 2 * (query_embeds.shape[1] - 1), query_embeds.shape[2])
    slow[:, ::2] = query_embeds  # other frames between them
    torch.testing.assert_close(*(scorer.score(PlainModel(), one, "few_shot") for one in (query_embeds, slow)))


@pytest.mark.parametrize("mode", ["few_shot", "ensemble"])
def test_in_pieces_the_scores_are_those_of_the_whole(support_set, parts, query_embeds, mode, monkeypatch):
    model, processor = parts
    support_set.add_background(model, processor, EMPTY)
    expected = {}
    for at_once in (2**22, 1):
        monkeypatch.setattr("unknown_clipfsar.ENTRIES_AT_ONCE", at_once)
        monkeypatch.setattr("unknown_clipfsar.CLIPS_AT_ONCE", at_once)
        for rate in (None, 0.2):
            anew = SupportSet(support_set.fingerprint, support_set.classes, unknowns=support_set.unknowns)
            anew.unknown_error_rate = rate
            scores = anew.score_unknown(model, query_embeds, mode)
            torch.testing.assert_close(scores, expected.setdefault(rate, scores))


# --- a threshold with a known error rate ------------------------------------------------------------------------------


def share_refused(mode: str, seed: int, with_background: bool, rate: float, queries: int = 20) -> float | None:
    """Share of clips that are refused and are drawn like 12 enrolled ones; None if a class has fewer than two clips."""
    generator = torch.Generator().manual_seed(seed)
    centres, spread = torch.randn(3, 1, 6, generator=generator), torch.tensor([0.3, 0.6, 1.0])
    labels = torch.randint(0, 3, (12 + queries,), generator=generator)
    clips = centres[labels] + spread[labels, None, None] * torch.randn(12 + queries, 1, 6, generator=generator)
    classes = {str(label): enrolled(clips[:12][labels[:12] == label]) for label in range(3)}
    if min(len(one.clip_names) for one in classes.values()) < 2:
        return None
    background = enrolled(torch.randn(3, 1, 6, generator=generator)) if with_background else None
    scorer = UnknownScorer(PlainModel(), classes, Unknowns(background, rate))
    return float((scorer.score(PlainModel(), clips[12:], mode) >= 0.5).float().mean())


@pytest.mark.parametrize(("mode", "with_background"), [("few_shot", True), ("zero_shot", False), ("ensemble", False)])
def test_known_clips_are_refused_no_more_often_than_asked_for(mode, with_background):
    shares = [share_refused(mode, seed, with_background, rate=0.3) for seed in range(40)]
    shares = torch.tensor([share for share in shares if share is not None])
    assert len(shares) > 25
    assert 0.1 < shares.mean() < 0.3 + 2 * shares.std() / len(shares) ** 0.5


def test_a_low_rate_needs_many_clips_and_the_message_says_how_many(support_set, parts, query_embeds):
    model = parts[0]
    support_set.unknown_error_rate = 0.05
    with pytest.raises(
        ValueError, match=r"unknown_error_rate=0.05 needs 19 clips, but 5 can be .* choose at least 0.167"
    ):
        support_set.score_unknown(model, query_embeds)
    support_set.unknown_error_rate = 1 / 6  # 5 clips are just enough
    assert support_set.score_unknown(model, query_embeds).tolist() == [0.5, 0.5]  # the least known of all six


def test_a_lower_rate_refuses_fewer_videos(support_set, parts, query_embeds):
    scores = []
    for rate in (0.2, 0.5):
        support_set.unknown_error_rate = rate
        scores.append(support_set.score_unknown(parts[0], query_embeds))
    assert (scores[0] < scores[1]).all()


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan"), True, "0.1"])
def test_a_rate_is_between_0_and_1(support_set, rate):
    with pytest.raises(ValueError, match="must be a number between 0 and 1, or None"):
        support_set.unknown_error_rate = rate


# --- background -------------------------------------------------------------------------------------------------------


def test_a_clip_like_the_background_is_of_no_class_and_the_classes_stay(support_set, parts, query_embeds):
    model, processor = parts
    logits, (_, before) = support_set.classify(model, query_embeds), support_set.score_unknown(model, query_embeds)
    support_set.add_background(model, processor, EMPTY[0])
    support_set.add_background(model, processor, EMPTY[1:])
    assert support_set.background == ["clip 1", "clip 2"]
    assert support_set.class_names == ["boxing", "diving"]
    assert torch.equal(support_set.classify(model, query_embeds), logits)
    after = support_set.score_unknown(model, query_embeds)[1]  # the first background clip itself
    assert after >= 0.5
    assert after >= before
    support_set.remove_background()
    assert support_set.background == []
    assert support_set.score_unknown(model, query_embeds)[1] == before


def test_names_alone_know_no_background(support_set, parts, query_embeds):
    before = support_set.score_unknown(parts[0], query_embeds, "zero_shot")
    support_set.add_background(*parts, EMPTY)
    assert torch.equal(support_set.score_unknown(parts[0], query_embeds, "zero_shot"), before)


def test_background_and_rate_are_kept_with_the_set(support_set, parts, query_embeds, tmp_path):
    model, processor = parts
    support_set.add_background(model, processor, EMPTY)
    support_set.unknown_error_rate = Fraction(1, 5)  # any number; the file holds a float
    support_set.save_pretrained(tmp_path)
    loaded = SupportSet.from_pretrained(tmp_path)
    assert (loaded.background, loaded.unknown_error_rate) == (["clip 1", "clip 2"], 0.2)
    one, other = loaded.unknowns.background, support_set.unknowns.background
    assert torch.equal(one.support_embeds, other.support_embeds)
    assert one.thumbnails == other.thumbnails
    torch.testing.assert_close(
        loaded.score_unknown(model, query_embeds), support_set.score_unknown(model, query_embeds)
    )
    loaded.remove_background()
    loaded.unknown_error_rate = None
    loaded.save_pretrained(tmp_path)
    assert SupportSet.from_pretrained(tmp_path).unknowns == Unknowns()


def test_background_of_another_model_or_without_clips_is_refused(support_set, parts):
    with pytest.raises(ValueError, match="There is no background clip to add"):
        support_set.add_background(*parts, [])
    other, processor = tiny_model_and_processor(temporal_num_layers=0)
    with torch.no_grad():
        other.clip.logit_scale.add_(1)
        other.clip.visual_projection.weight.add_(1)
    with pytest.raises(ValueError, match="was enrolled with"):
        support_set.add_background(other, processor, EMPTY)
