"""The score of "none of these": its parts by hand, its guarantee, background clips, and how they are kept."""

import math
from fractions import Fraction

import pytest
import torch
from tiny_data import random_clip, tiny_model_and_processor

from support_set_clipfsar import EnrolledClass, SupportSet
from support_set_files_clipfsar import Unknowns
from unknown_clipfsar import UnknownScorer, _linear_discriminant, _spread, _Usual

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
    query_embeds = query_embeds.repeat(2, 1, 1)  # as many clips as frames
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
        monkeypatch.setattr("unknown_clipfsar.CLASSES_AT_ONCE", at_once)
        for rate in (None, 0.2):
            anew = SupportSet(support_set.fingerprint, support_set.classes, unknowns=support_set.unknowns)
            anew.unknown_error_rate = rate
            scores = anew.score_unknown(model, query_embeds, mode)
            torch.testing.assert_close(scores, expected.setdefault(rate, scores))


# --- the whole score, by plain loops ----------------------------------------------------------------------------------

# Class of each clip by its angle: unequal classes, one of a single clip, not in the order of their names.
ANGLES = {"wide": [0.0, 35.0, 97.0], "single": [150.0], "close": [200.0, 221.0, 229.0, 251.0], "apart": [301.0, 333.0]}
QUERIES = [17.0, 62.0, 121.0, 149.0, 178.0, 224.0, 270.0, 352.0]
BACKGROUND = [126.0, 160.0, 275.0]


def distance(one: float, other: float) -> float:
    return 1 - math.cos(math.radians(one - other))


class Plain:
    """Misfits of clips, given as (angle, class), when each is compared with the others."""

    def __init__(self, clips: list[tuple[float, str]], background: list[float], mode: str):
        self.clips, self.background, self.mode = clips, background, mode
        self.nearest = [self.distance_to(own, angle, row) for row, (angle, own) in enumerate(clips)]
        finite = [one for one in self.nearest if one < math.inf]
        self.mean = sum(finite) / len(finite)
        variance = sum((one - self.mean) ** 2 for one in finite) / len(finite)
        self.spread = max(variance**0.5, self.mean / 10)
        texts = [self.text(angle, own) for angle, own in clips]
        self.text_spread = (sum((one - sum(texts) / len(texts)) ** 2 for one in texts) / len(texts)) ** 0.5

    def distance_to(self, name: str, angle: float, left_out: int | None = None) -> float:
        others = [other for row, (other, label) in enumerate(self.clips) if label == name and row != left_out]
        return min((distance(angle, other) for other in others), default=math.inf)

    def text(self, angle: float, name: str) -> float:
        """Minus the product with the mean of the enrolled clips of the class."""
        return -sum(math.cos(math.radians(angle - other)) for other in ANGLES[name]) / len(ANGLES[name])

    def usual(self, distances: list[float]) -> float:
        finite = [one for one in distances if one < math.inf]
        return (sum(finite) + 2 * self.mean) / (len(finite) + 2)

    def by_clips(self, angle: float, left_out: int | None = None) -> dict[str, float]:
        misfits = {}
        for name in ANGLES:
            rows = [row for row, (_, label) in enumerate(self.clips) if label == name and row != left_out]
            usual = self.usual([self.nearest[row] for row in rows])
            misfits[name] = (self.distance_to(name, angle, left_out) - usual) / self.spread
        return misfits

    def misfits(self, angle: float, left_out: int | None = None) -> dict[str, float]:
        clips = self.by_clips(angle, left_out)
        texts = {name: self.text(angle, name) / self.text_spread for name in ANGLES}
        return {
            name: {"few_shot": clips[name], "zero_shot": texts[name], "ensemble": clips[name] + texts[name]}[self.mode]
            for name in ANGLES
        }

    def beyond_background(self, angle: float, left_out: int | None = None) -> float | None:
        """How much less the clip resembles the nearest class than the background; None where that does not count."""
        if not self.background or self.mode == "zero_shot":
            return None
        own = [
            min((distance(one, other) for place, other in enumerate(self.background) if place != row), default=math.inf)
            for row, one in enumerate(self.background)
        ]
        to_background = min(distance(angle, other) for other in self.background)
        return min(self.by_clips(angle, left_out).values()) - (to_background - self.usual(own)) / self.spread

    def can_be_known(self, row: int) -> bool:
        return self.mode == "zero_shot" or self.nearest[row] < math.inf


def plain_score(query: float, background: list[float], mode: str) -> float:
    plain = Plain([(angle, name) for name, angles in ANGLES.items() for angle in angles], background, mode)
    known, unknown = [], []
    for row, (angle, own) in enumerate(plain.clips):
        if plain.can_be_known(row):
            misfits = plain.misfits(angle, row)
            known.append(min(misfits.values()))
            unknown.append(min(misfits[name] for name in ANGLES if name != own))
    slope, offset = _linear_discriminant(torch.tensor(known), torch.tensor(unknown))
    log_odds, excess = slope * min(plain.misfits(query).values()) + offset, plain.beyond_background(query)
    log_odds = log_odds if excess is None else max(log_odds, slope * excess)
    return 1 / (1 + math.exp(-log_odds))


def plain_chance(query: float, background: list[float], mode: str) -> float:
    """The largest p-value among the classes that the query may belong to."""
    chances = []
    for joined in ANGLES:
        clips = [(angle, name) for name, angles in ANGLES.items() for angle in angles] + [(query, joined)]
        plain, misfits = Plain(clips, background, mode), []
        for row, (angle, _) in enumerate(clips):
            beyond = plain.beyond_background(angle, row)
            misfits.append(min(plain.misfits(angle, row).values()) + max(0, beyond or 0))
        counted = [misfit for row, misfit in enumerate(misfits) if plain.can_be_known(row)]
        chances.append(sum(misfit >= misfits[-1] for misfit in counted) / len(counted))
    return max(chances)


@pytest.mark.parametrize("background", [[], BACKGROUND, BACKGROUND[:1]])
@pytest.mark.parametrize("mode", ["few_shot", "zero_shot", "ensemble"])
def test_the_score_is_that_of_plain_loops(mode, background):
    classes = {name: enrolled(at_angles(*angles)) for name, angles in ANGLES.items()}
    clips = enrolled(at_angles(*background)) if background else None
    scores = UnknownScorer(PlainModel(), classes, Unknowns(clips)).score(PlainModel(), at_angles(*QUERIES), mode)
    torch.testing.assert_close(
        scores, torch.tensor([plain_score(one, background, mode) for one in QUERIES]), atol=1e-5, rtol=0
    )
    assert scores.max() - scores.min() > 0.1
    rate = 0.15
    scores = UnknownScorer(PlainModel(), classes, Unknowns(clips, rate)).score(PlainModel(), at_angles(*QUERIES), mode)
    chances = [plain_chance(one, background, mode) for one in QUERIES]
    torch.testing.assert_close(rate / scores - rate, torch.tensor(chances), atol=1e-4, rtol=0)
    assert max(chances) - min(chances) > 0.3


def test_texts_that_are_all_alike_have_a_spread_all_the_same():
    assert _spread(torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]])).tolist() == [
        [pytest.approx((8 / 3) ** 0.5)],
        [pytest.approx(1e-6)],
    ]


def test_one_clip_of_each_kind_gives_odds_of_two():
    slope, offset = _linear_discriminant(torch.tensor([1.0]), torch.tensor([2.0]))
    assert (2 * slope + offset, slope + offset) == pytest.approx((math.log(2), -math.log(2)))


@pytest.mark.parametrize("unknown", [[1.0, 3.0], [0.0, 1.0]])
def test_clips_as_near_to_other_classes_as_to_their_own_tell_nothing(unknown):
    with pytest.raises(ValueError, match=r"as near to other classes as to their own\. More or clearer clips may help"):
        _linear_discriminant(torch.tensor([1.0, 3.0]), torch.tensor(unknown))


def test_single_clips_cannot_show_what_is_known_except_by_names():
    classes = {"one": enrolled(at_angles(10)), "other": enrolled(at_angles(80))}
    scorer = UnknownScorer(PlainModel(), classes, Unknowns())
    with pytest.raises(ValueError, match="no class has two clips: enroll more, or use inference_mode='zero_shot'"):
        scorer.score(PlainModel(), at_angles(10), "few_shot")
    assert scorer.score(PlainModel(), at_angles(10, 170), "zero_shot").diff() > 0


@pytest.mark.parametrize(
    ("rate", "number", "needed", "least"),
    [(0.16, 5, 6, "0.167"), (0.1, 4, 9, "0.2"), (1 / 49, 47, 48, "0.021"), (0.3, 2, 3, "0.334")],
)
def test_a_rate_says_how_many_clips_it_needs(rate, number, needed, least):
    generator = torch.Generator().manual_seed(0)
    for clips, is_enough in ((number, False), (needed, True)):
        classes = {
            "single": enrolled(torch.randn(1, 1, 6, generator=generator)),
            "others": enrolled(torch.randn(clips, 1, 6, generator=generator)),
        }
        scorer = UnknownScorer(PlainModel(), classes, Unknowns(error_rate=rate))
        query = torch.randn(1, 1, 6, generator=generator)
        if is_enough:
            assert scorer.score(PlainModel(), query, "few_shot") <= 0.5 + 1e-6
        else:
            reason = f"={rate:g} needs {needed} clips, but {number} can be .* choose at least {least}. The only clip"
            with pytest.raises(ValueError, match=reason):
                scorer.score(PlainModel(), query, "few_shot")


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
