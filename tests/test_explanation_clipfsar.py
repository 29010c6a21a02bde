"""Explanations: the alignment is the derivative of the distance, the text's share adds up, the picture can be drawn."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import random_clip, similar_clips, tiny_model_and_processor

from explanation_clipfsar import Explanation, explain_classification
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from support_set_clipfsar import SupportSet

CLIPS = {"boxing": [random_clip(0), random_clip(1)], "diving": [random_clip(3)], "running": [random_clip(4)]}
QUERY = random_clip(10)


def make_pipeline(**overrides) -> FewShotVideoClassificationPipeline:
    model, processor = tiny_model_and_processor(**overrides)
    return FewShotVideoClassificationPipeline(model, processor, device="cpu", support_set=CLIPS)


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def example(**values) -> Explanation:
    """Two classes, three query frames, two prototype frames."""
    numbers = {
        "class_names": ["a", "b"],
        "inference_mode": "few_shot",
        "probabilities": torch.tensor([0.25, 0.75]),
        "clip_probabilities": torch.tensor([0.4, 0.6]),
        "text_probabilities": torch.tensor([0.5, 0.5]),
        "distances": torch.tensor([2.0, 1.0]),
        "frame_distances": torch.rand(2, 3, 2),
        "alignment": torch.tensor([[[1.0, 0], [0, 1], [0, 0]], [[0.5, 2], [0.01, 0], [1, 0.25]]]),
        "text_share": 0.0,
        "text_agrees": True,
    }
    return Explanation(**numbers | values)


@pytest.mark.parametrize("mode", ["few_shot", "zero_shot", "ensemble"])
def test_probabilities_are_those_of_the_pipeline(pipe, mode):
    explanation = pipe.explain(QUERY, inference_mode=mode)
    assert explanation.inference_mode == mode
    for entry in pipe(QUERY, inference_mode=mode):
        assert float(explanation.probabilities[explanation.class_names.index(entry["label"])]) == pytest.approx(
            entry["score"], abs=1e-6
        )
    assert explanation.label == pipe(QUERY, inference_mode=mode, top_k=1)[0]["label"]
    assert float(explanation.text_probabilities.sum()) == pytest.approx(1, abs=1e-6)
    assert float(explanation.clip_probabilities.sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("alignment", ["otam", "bi_mhm"])
def test_alignment_is_the_derivative_of_the_distance(alignment):
    pipe = make_pipeline(alignment=alignment)
    explanation = pipe.explain(QUERY)
    assert explanation.alignment.shape == (3, 4, 4)
    step = 1e-5
    for cell in ((0, 0, 0), (1, 2, 3), (2, 3, 1)):
        changed = explanation.frame_distances.double()
        before = pipe.model.align(changed)[cell[0]]
        changed[cell] += step
        slope = (pipe.model.align(changed)[cell[0]] - before) / step
        assert float(explanation.alignment[cell]) == pytest.approx(float(slope), abs=1e-3)


def test_without_order_there_is_no_alignment():
    explanation = make_pipeline(alignment="mean").explain(QUERY)
    assert explanation.alignment is None
    assert explanation.path() == []
    assert explanation.to_dict()["alignment"] is None


def test_explaining_works_in_inference_mode(pipe):
    expected = pipe.explain(QUERY).alignment
    with torch.inference_mode():
        assert torch.equal(pipe.explain(QUERY).alignment, expected)


def test_the_path_names_the_heaviest_pair_of_each_query_frame_that_counts():
    assert example().label == "b"
    assert example().path() == [(0, 1, 1.0), (2, 0, 0.5)]
    assert example().path("a") == [(0, 0, 1.0), (1, 1, 1.0)]
    with pytest.raises(ValueError, match="no class 'c'; explained are 'a', 'b'"):
        example().path("c")


def test_the_texts_share_is_their_part_of_the_log_odds():
    model, _ = tiny_model_and_processor(ensemble_text_weight=0.5, ensemble_temperature=1.0)
    query, prototypes = torch.randn(4, 16), torch.randn(2, 4, 16)
    texts = torch.stack([query.mean(0), -query.mean(0)])  # cosines 1 and -1: log odds of 2 * 1.5, the scale
    numbers = explain_classification(model, query, prototypes, texts, "ensemble")
    text_odds, clip_odds = 0.5 * 3.0, 0.5 * float(numbers["distances"][1] - numbers["distances"][0])
    best_is_first = text_odds + clip_odds > 0
    assert numbers["text_share"] == pytest.approx(1.5 / (1.5 + abs(clip_odds)), rel=1e-4)
    assert numbers["text_agrees"] is best_is_first
    assert explain_classification(model, query, prototypes, texts, "few_shot")["text_share"] == 0
    assert explain_classification(model, query, prototypes, texts, "zero_shot")["text_share"] == 1


def test_the_nearest_clip_is_shown_with_its_frames(pipe):
    explanation = pipe.explain(CLIPS["boxing"][1])
    assert explanation.support_clips == [("clip 2", 2), ("clip 1", 1), ("clip 1", 1)]
    assert [tuple(frames.shape) for frames in explanation.support_frames] == [(4, 16, 16, 3)] * 3
    assert explanation.query_frames.shape == (4, 16, 16, 3)
    difference = explanation.support_frames[0].float() - explanation.query_frames.float()
    assert difference.abs().mean() < 16  # JPEG of noise; the same clip


def test_the_numbers_are_ready_for_json(pipe):
    numbers = json.loads(json.dumps(pipe.explain(QUERY, inference_mode="ensemble").to_dict()))
    assert list(numbers["probabilities"]) == ["boxing", "diving", "running"]
    assert len(numbers["alignment"]) == len(numbers["alignment"][0]) == 4
    assert 0 <= numbers["text_share"] <= 1


def test_the_picture_is_drawn_for_any_class(tmp_path):
    pipe = make_pipeline()
    pipe.support_set = {name: similar_clips(seed, 3) for seed, name in enumerate(CLIPS)}
    explanation = pipe.explain(QUERY, inference_mode="ensemble", detect_unknown=True)
    explanation.plot(tmp_path / "why.png", title="query.mp4")
    explanation.plot(tmp_path / "other.png", label="running")
    with Image.open(tmp_path / "why.png") as picture, Image.open(tmp_path / "other.png") as other:
        assert min(picture.size) > 600
        assert picture.tobytes() != other.tobytes()


def test_the_picture_needs_neither_frames_nor_order(tmp_path):
    names = [f"class {number}" for number in range(12)]
    values = {name: torch.rand(12) for name in ("probabilities", "clip_probabilities", "text_probabilities")}
    frame_distances = torch.rand(12, 3, 5)
    many = example(class_names=names, frame_distances=frame_distances, alignment=None, **values)
    many.plot(tmp_path / "why.png", label="class 7")
    assert (tmp_path / "why.png").stat().st_size > 10_000


def test_the_alignment_can_be_drawn_alone_and_names_are_no_formulas(pipe, tmp_path):
    explanation = example(class_names=["$a^$", "a name of several words " * 5])
    explanation.plot(tmp_path / "why.png", label="$a^$")
    explanation.plot(tmp_path / "alone.png", label="$a^$", probabilities=False)
    with Image.open(tmp_path / "why.png") as picture, Image.open(tmp_path / "alone.png") as alone:
        assert alone.size[0] < picture.size[0] / 2


@pytest.mark.parametrize(
    "name", ["b", "Pretending to put something into something so that it almost falls off but does not"]
)
@pytest.mark.parametrize("size", [(32, 32), (18, 32), (32, 18)], ids=["square", "landscape", "portrait"])
@pytest.mark.parametrize("alone", [True, False])
def test_no_word_of_a_picture_is_cut_off(alone, size, name, tmp_path):
    shown = torch.full((8, *size, 3), 200, dtype=torch.uint8)
    explanation = example(
        class_names=["a", name],
        frame_distances=torch.rand(2, 8, 8),
        alignment=torch.rand(2, 8, 8),
        query_frames=shown,
        support_frames=[shown, shown],
        support_clips=[("a.mp4", 1), ("long name of a clip " * 5 if len(name) > 1 else "b.mp4", 3)],
    )
    explanation.plot(tmp_path / "why.png", title="query.mp4", probabilities=not alone)
    with Image.open(tmp_path / "why.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.min() < 100
    assert min(pixels[:2].min(), pixels[-2:].min(), pixels[:, :2].min(), pixels[:, -2:].min()) == 255


@pytest.mark.parametrize(
    ("unknown_score", "label", "title"),
    [
        (0.73, None, "a.mp4: none of these, score 0.73\nThe nearest class is 'b', probability 0.75"),
        (0.73, "a", "a.mp4: 'a', probability 0.25"),
        (0.2, None, "a.mp4: 'b', probability 0.75"),
    ],
)
def test_the_title_of_a_picture_is_the_answer(unknown_score, label, title):
    figure = example(unknown_score=unknown_score).plot(label=label, title="a.mp4")
    assert figure.get_suptitle() == title


def test_a_picture_of_another_format_is_refused_before_it_is_drawn():
    with pytest.raises(ValueError, match=r"^why.txt: a picture ends in one of .png, .pdf, .svg, .*, not in .txt.$"):
        example().plot("why.txt")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        example().plot()


def test_an_explanation_needs_enrolled_clips(pipe):
    bare = FewShotVideoClassificationPipeline(pipe.model, pipe.processor, device="cpu")
    with pytest.raises(ValueError, match="needs enrolled clips"):
        bare.explain(QUERY)
    support_set = SupportSet.from_videos(pipe.model, pipe.processor, CLIPS)
    assert bare.explain(QUERY, support_set=support_set).class_names == list(CLIPS)
