"""Data as people have it: names out of order, classes of unequal size, long videos, settings that are no defaults.

Faults that regular data hides: a cache emptied in one place and not in the other, a list sorted on the way, a mean over
videos where one over classes is meant.
"""

import io
import json
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from datasets import Dataset, Video, load_from_disk
from golden.formula_model import tiny_model
from PIL import Image
from tiny_data import random_clip, similar_clips, tiny_model_and_processor, write_video
from transformers import CLIPImageProcessor

import clipfsar.inference.export as exporting
import unknown_clipfsar
from clipfsar.data.arguments import PrepareArguments
from clipfsar.data.frame_store import read_video
from clipfsar.data.prepare import frame_store_settings
from clipfsar.data.prepare import main as prepare
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.report import EpisodePredictions
from clipfsar.evaluation.results import EpisodicAccuracy as Accuracy
from clipfsar.evaluation.results import EpisodicResult
from clipfsar.inference.arguments import ExportArguments
from clipfsar.metrics.episodic_accuracy.episodic_accuracy import EpisodicAccuracy
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.trainable import choose_trainable
from fingerprint_clipfsar import COMPARISON_SETTINGS, model_digest
from processing_clipfsar import CLIPFSARProcessor
from support_set_clipfsar import EnrolledClass, SupportSet
from support_set_files_clipfsar import Unknowns
from unknown_clipfsar import UnknownScorer
from video_clipfsar import VideoReadError, read_video_frames, sample_frame_indices

# Neither sorted nor of one size.
CLIPS = {
    "walking": similar_clips(40, 3),
    "boxing": [random_clip(3)],
    "jumping": similar_clips(4, 2),
}
QUERIES = [random_clip(10), random_clip(11), random_clip(12)]


@pytest.fixture(scope="module")
def parts():
    return tiny_model_and_processor()


@pytest.fixture(scope="module")
def query_embeds(parts):
    model, processor = parts
    with torch.no_grad():
        return model.get_video_features(processor.process_videos(QUERIES))


def without(clips: dict, class_name: str, row: int | None = None) -> dict:
    """The clips without a class, or without one clip of it."""
    rest = {name: list(videos) for name, videos in clips.items()}
    if row is None:
        del rest[class_name]
    else:
        del rest[class_name][row]
    return rest


# --- what is derived from a support set follows every change of it ----------------------------------------------------

CHANGES = {
    "remove a clip": (lambda s, m, p: s.remove_clip("walking", 1), without(CLIPS, "walking", 1)),
    "remove a class": (lambda s, m, p: s.remove_class("walking"), without(CLIPS, "walking")),
    "add a clip": (
        lambda s, m, p: s.add(m, p, {"boxing": [random_clip(52)]}),
        CLIPS | {"boxing": [*CLIPS["boxing"], random_clip(52)]},
    ),
    "add a class": (lambda s, m, p: s.add(m, p, {"arguing": [random_clip(7)]}), CLIPS | {"arguing": [random_clip(7)]}),
}


@pytest.mark.parametrize("mode", ["few_shot", "zero_shot", "ensemble"])
@pytest.mark.parametrize("change", CHANGES)
def test_answers_after_one_change_are_those_of_a_set_made_anew(parts, query_embeds, change, mode):
    model, processor = parts
    make_change, clips = CHANGES[change]
    changed, anew = SupportSet.from_videos(*parts, CLIPS), SupportSet.from_videos(*parts, clips)
    before = changed.classify(model, query_embeds, mode), changed.score_unknown(model, query_embeds, mode)
    make_change(changed, model, processor)
    assert changed.class_names == anew.class_names
    logits, unknown = changed.classify(model, query_embeds, mode), changed.score_unknown(model, query_embeds, mode)
    torch.testing.assert_close(logits, anew.classify(model, query_embeds, mode), rtol=0, atol=1e-6)
    torch.testing.assert_close(unknown, anew.score_unknown(model, query_embeds, mode), rtol=0, atol=1e-6)
    if "class" in change or mode != "zero_shot":
        assert logits.shape != before[0].shape or not torch.allclose(logits, before[0], atol=1e-5)
        assert not torch.allclose(unknown, before[1], atol=1e-6)


OTHER_SETTINGS = {
    "support_pooling": "after",
    "prototype_modulation": False,
    "alignment": "bi_mhm",
    "otam_smoothing": 2.0,
    "otam_bidirectional": False,
    "cosine_epsilon": 30.0,
    "chamfer_tuple_size": 1,
}


def test_every_setting_of_the_comparison_has_its_case():
    assert set(OTHER_SETTINGS) == set(COMPARISON_SETTINGS)


@pytest.mark.parametrize("name", COMPARISON_SETTINGS)
def test_a_setting_changed_after_the_first_answer_counts_in_the_second(query_embeds, name):
    model, processor = tiny_model_and_processor(alignment="chamfer" if name.startswith("chamfer") else "otam")
    kept = SupportSet.from_videos(model, processor, CLIPS)
    before = kept.classify(model, query_embeds, "few_shot")
    setattr(model.config, name, OTHER_SETTINGS[name])
    anew = SupportSet.from_videos(model, processor, CLIPS)
    now, expected = (one.classify(model, query_embeds, "few_shot") for one in (kept, anew))
    torch.testing.assert_close(now, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(now, before, rtol=0, atol=1e-5)


def test_a_distance_replaced_after_the_first_answer_counts_in_the_second(query_embeds):
    model, processor = tiny_model_and_processor()
    kept = SupportSet.from_videos(model, processor, CLIPS)
    before = kept.classify(model, query_embeds, "few_shot")
    model.align = lambda frame_distances: frame_distances.amin((-2, -1))
    anew = SupportSet.from_videos(model, processor, CLIPS)
    scores, expected = (one.classify(model, query_embeds, "few_shot") for one in (kept, anew))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(scores, before, rtol=0, atol=1e-5)


def test_prototypes_have_no_dropout_for_a_model_in_training_mode(parts):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    again = SupportSet(support_set.fingerprint, support_set.classes)  # without a snapshot yet
    expected = support_set.snapshot(model).prototypes
    model.train()
    try:
        labels = torch.tensor([[0, 0, 0, 1, 2, 2]])
        embeds = torch.cat([one.support_embeds for one in support_set.classes.values()])[None]
        texts = torch.stack([one.class_embeds for one in support_set.classes.values()])[None]
        assert not torch.allclose(model.get_prototypes(embeds, labels, texts)[0], expected)  # there is dropout
        assert torch.equal(again.snapshot(model).prototypes, expected)
        assert model.training
    finally:
        model.eval()


def test_a_renamed_class_keeps_its_place_and_its_clips(parts, query_embeds):
    model, processor = parts
    renamed = SupportSet.from_videos(model, processor, CLIPS)
    renamed.rename_class(model, processor, "walking", "strolling")
    clips = {"strolling": CLIPS["walking"], "boxing": CLIPS["boxing"], "jumping": CLIPS["jumping"]}
    anew = SupportSet.from_videos(model, processor, clips)
    assert renamed.class_names == ["strolling", "boxing", "jumping"]
    assert renamed.num_clips == anew.num_clips
    torch.testing.assert_close(
        renamed.classify(model, query_embeds, "ensemble"), anew.classify(model, query_embeds, "ensemble")
    )


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_clips_after_an_unreadable_one_stay_in_their_class(parts, query_embeds, batch_size):
    model, processor = parts
    gaps = {
        "walking": ["gone.mp4", *CLIPS["walking"]],
        "boxing": [*CLIPS["boxing"], "gone_too.mp4"],
        "jumping": [CLIPS["jumping"][0], "gone_as_well.mp4", CLIPS["jumping"][1]],
    }
    with pytest.warns(UserWarning, match="Left out of the support set"):
        left = SupportSet.from_videos(model, processor, gaps, skip_unreadable=True, batch_size=batch_size)
    whole = SupportSet.from_videos(model, processor, CLIPS)
    assert left.num_clips == {"walking": 3, "boxing": 1, "jumping": 2}
    for name in CLIPS:
        torch.testing.assert_close(
            left.classes[name].support_embeds, whole.classes[name].support_embeds, rtol=0, atol=1e-6
        )
    with pytest.raises(VideoReadError, match=r"3 of 9 clips cannot be read"):
        SupportSet.from_videos(model, processor, gaps, batch_size=batch_size)


# --- "none of these" --------------------------------------------------------------------------------------------------


def test_what_is_known_is_learned_from_clips_against_classes_without_them(parts, monkeypatch):
    model, _ = parts
    seen = {}

    def keep(known, unknown):
        seen.update(known=known, unknown=unknown)
        return 1.0, 0.0

    monkeypatch.setattr(unknown_clipfsar, "_linear_discriminant", keep)
    support_set = SupportSet.from_videos(*parts, CLIPS)
    embeds = {name: one.support_embeds for name, one in support_set.classes.items()}
    support_set.score_unknown(model, embeds["boxing"], "few_shot")
    scorer = UnknownScorer(model, support_set.classes, Unknowns())
    usual = dict(zip(CLIPS, scorer.usual.of_class()[0].tolist(), strict=True))
    unknown = []
    for name, videos in CLIPS.items():
        for row in range(len(videos)):
            clip = embeds[name][row : row + 1]
            distances = {other: nearest_clip(model, clip, embeds[other]) for other in CLIPS if other != name}
            unknown.append(min(distances[other] - usual[other] for other in distances) / float(scorer.usual.spread))
    del unknown[3]  # the only clip of boxing cannot be left out
    torch.testing.assert_close(seen["unknown"].tolist(), unknown, rtol=1e-4, atol=1e-4)
    own = [misfit for misfit in scorer.usual.own_misfits()[0].tolist() if misfit < float("inf")]
    expected = [min(pair) for pair in zip(own, unknown, strict=True)]
    torch.testing.assert_close(seen["known"].tolist(), expected, rtol=1e-4, atol=1e-4)


def nearest_clip(model, clip: torch.Tensor, others: torch.Tensor) -> float:
    """Distance of a clip (1, T, D) to the nearest of others (K, T, D): one minus the mean cosine of their frames."""
    with torch.no_grad():
        one, many = model.get_query_states(clip), model.get_query_states(others)
    return float((1 - torch.cosine_similarity(one, many, dim=-1).mean(-1)).min())


def test_each_of_many_clips_is_compared_with_all_the_others(parts):
    model, processor = parts
    few = SupportSet.from_videos(model, processor, CLIPS)
    many = torch.randn(18, 4, 16, generator=torch.Generator().manual_seed(0))  # more than one batch
    names = [f"clip {row}" for row in range(len(many))]
    crowd = EnrolledClass(few.classes["walking"].class_embeds, names, many, [b""] * len(many))
    scorer = UnknownScorer(model, {"boxing": few.classes["boxing"], "crowd": crowd}, Unknowns())
    for row in (0, 15, 16, 17):
        expected = nearest_clip(model, many[row : row + 1], torch.cat([many[:row], many[row + 1 :]]))
        assert float(scorer.nearest[1 + row]) == pytest.approx(expected, abs=1e-5)  # boxing, before it, has one clip


@pytest.mark.parametrize("mode", ["zero_shot", "ensemble"])
def test_the_unknown_score_is_that_of_the_mode_asked_for(query_embeds, mode):
    model, processor = tiny_model_and_processor()
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    asked, default = (support_set.score_unknown(model, query_embeds, name) for name in (mode, None))
    model.config.inference_mode = mode
    torch.testing.assert_close(support_set.score_unknown(model, query_embeds), asked, rtol=0, atol=0)
    assert not torch.allclose(asked, default, atol=1e-4)


# --- what a set is for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_fps", 7),
        ("sampling_rate", 3),
        ("frame_sampling", "interval"),
        ("preprocessing", "official"),
        ("prompt_template", "a video of {}"),
    ],
)
def test_a_set_knows_each_setting_of_the_preprocessing(parts, name, value):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    other = tiny_model_and_processor()[1]
    setattr(other, name, value)
    with pytest.raises(ValueError, match=f"other preprocessing: .*{name} .* \\(now {value}\\)"):
        support_set.check(model, other)


def test_the_digest_of_a_model_counts_its_heads():
    # The same weights in the same shapes, cut into other heads.
    one, other = tiny_model(), tiny_model()
    heads = other.config.clip_config.vision_config.num_attention_heads
    other.config.clip_config.vision_config.num_attention_heads = heads * 2
    assert model_digest(one) == model_digest(tiny_model())
    assert model_digest(one) != model_digest(other)


# --- what is shown ----------------------------------------------------------------------------------------------------

COLOURS = {"walking": (250, 10, 20), "boxing": (15, 240, 30), "jumping": (20, 30, 235)}


def plain_clip(colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), (8, 20, 24, 3)).copy()


def test_frames_are_shown_in_the_colours_they_have(parts):
    processor = parts[1]
    settings = processor.image_processor.to_dict() | {"image_mean": [0.1, 0.5, 0.9], "image_std": [0.7, 0.4, 0.2]}
    other = CLIPFSARProcessor(CLIPImageProcessor.from_dict(settings), processor.tokenizer, num_frames=4)
    for colour in COLOURS.values():
        shown = other.to_frames(other.process_videos([plain_clip(colour)]))[0]
        assert (shown.reshape(-1, 3).int() - torch.tensor(colour)).abs().max() <= 1


def test_thumbnails_are_of_their_own_clips(parts):
    clips = {name: ["gone.mp4", plain_clip(colour)] for name, colour in COLOURS.items()}
    with pytest.warns(UserWarning, match="Left out"):
        support_set = SupportSet.from_videos(*parts, clips, skip_unreadable=True, batch_size=4)
    for name, colour in COLOURS.items():
        (picture,) = support_set.classes[name].thumbnails
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=int)
        assert np.abs(pixels.mean((0, 1)) - colour).max() < 12, name  # JPEG
    query = parts[0].get_video_features(parts[1].process_videos([plain_clip((20, 30, 235))]))[0].detach()
    for name, frames in zip(COLOURS, support_set.explain(parts[0], query).support_frames, strict=True):
        assert np.abs(np.asarray(frames, dtype=float).reshape(-1, 3).mean(0) - COLOURS[name]).max() < 12, name


def test_no_picture_is_made_where_none_is_wanted(parts):
    support_set = SupportSet.from_videos(*parts, CLIPS, thumbnails=False)
    assert [one.thumbnails for one in support_set.classes.values()] == [[b""] * 3, [b""], [b""] * 2]


def test_pictures_stay_with_their_clips_where_others_have_none(parts, tmp_path):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, {"walking": CLIPS["walking"][:1]}, thumbnails=False)
    support_set.add(model, processor, {"boxing": CLIPS["boxing"], "walking": CLIPS["walking"][1:2]})
    support_set.add(model, processor, {"walking": CLIPS["walking"][2:]}, thumbnails=False)
    pictures = support_set.classes["walking"].thumbnails
    assert [bool(picture) for picture in pictures] == [False, True, False]
    support_set.save_pretrained(tmp_path)
    again = SupportSet.from_pretrained(tmp_path)
    assert again.classes["walking"].thumbnails == pictures
    assert again.classes["boxing"].thumbnails == support_set.classes["boxing"].thumbnails


@pytest.mark.parametrize("mode", ["zero_shot", "ensemble"])
def test_an_explanation_is_of_the_mode_asked_for(parts, query_embeds, mode):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    assert model.config.inference_mode == "few_shot"
    explanation = support_set.explain(model, query_embeds[0], mode)
    expected, of_model = (support_set.classify(model, query_embeds[:1], name)[0].softmax(-1) for name in (mode, None))
    assert explanation.inference_mode == mode
    torch.testing.assert_close(explanation.probabilities, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(explanation.probabilities, of_model, rtol=0, atol=1e-3)


def test_clips_that_come_later_have_their_own_features(parts):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    support_set.add(model, processor, {"walking": [random_clip(52)], "boxing": [random_clip(53)]})
    for name, clips in (CLIPS | {"walking": [*CLIPS["walking"], random_clip(52)]}).items():
        for row, clip in enumerate(clips):
            embeds = model.get_video_features(processor.process_videos([clip]))[0].detach()
            torch.testing.assert_close(support_set.classes[name].support_embeds[row], embeds, rtol=0, atol=1e-5)


def test_a_clip_leaves_with_its_name_and_its_picture(parts):
    clips = {"walking": [plain_clip(colour) for colour in COLOURS.values()], "boxing": [random_clip(3)]}
    support_set = SupportSet.from_videos(*parts, clips)
    walking = support_set.classes["walking"]
    names, pictures = list(walking.clip_names), list(walking.thumbnails)
    support_set.remove_clip("walking", names[1])
    assert support_set.classes["walking"].clip_names == [names[0], names[2]]
    assert support_set.classes["walking"].thumbnails == [pictures[0], pictures[2]]
    support_set.remove_clip("walking", 0)
    assert support_set.classes["walking"].thumbnails == [pictures[2]]


def test_the_clip_shown_is_the_one_that_looks_most_like_the_query(parts):
    model, processor = parts
    clips = {"walking": [plain_clip(colour) for colour in COLOURS.values()], "boxing": [random_clip(3)]}
    support_set = SupportSet.from_videos(model, processor, clips)
    names = support_set.classes["walking"].clip_names
    for row, colour in enumerate(COLOURS.values()):
        query = model.get_video_features(processor.process_videos([plain_clip(colour)]))[0].detach()
        explanation = support_set.explain(model, query)
        assert explanation.support_clips[0] == (names[row], 3)
        frames = np.asarray(explanation.support_frames[0], dtype=float)
        assert np.abs(frames.reshape(-1, 3).mean(0) - colour).max() < 12


def test_a_set_comes_back_with_each_clip_under_its_name(parts, tmp_path):
    files = []
    for row, name in enumerate(("zebra", "ape", "mule")):
        files.append(tmp_path / f"{name}.mp4")
        write_video(files[-1], (40 + 90 * row, 200 - 90 * row, 100), seed=row)
    support_set = SupportSet.from_videos(*parts, {"walking": files, "boxing": [random_clip(3)]})
    support_set.save_pretrained(tmp_path / "saved")
    again = SupportSet.from_pretrained(tmp_path / "saved")
    assert again.class_names == ["walking", "boxing"]
    assert again.classes["walking"].clip_names == ["zebra.mp4", "ape.mp4", "mule.mp4"]
    for name in again.class_names:
        one, other = again.classes[name], support_set.classes[name]
        assert torch.equal(one.support_embeds, other.support_embeds)
        assert torch.equal(one.class_embeds, other.class_embeds)
        assert one.thumbnails == other.thumbnails


# --- what is exported -------------------------------------------------------------------------------------------------


def test_exported_names_and_prototypes_are_in_one_order(parts, tmp_path):
    model, _ = parts
    support_set = SupportSet.from_videos(*parts, CLIPS)
    exporting.write_classes(model, support_set, tmp_path)
    written = np.load(tmp_path / "classes.npz")
    assert sorted(written["class_names"]) != list(written["class_names"])
    for name, prototype, text in zip(
        written["class_names"], written["prototypes"], written["class_embeds"], strict=True
    ):
        alone = SupportSet.from_videos(*parts, {str(name): CLIPS[str(name)], "other": [random_clip(9)]})
        torch.testing.assert_close(torch.from_numpy(prototype), alone.get_prototypes(model)[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.from_numpy(text), alone.classes[str(name)].class_embeds, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alignment", ["chamfer", "hyrsm"])
@pytest.mark.parametrize(
    ("class_names", "is_shot"),
    [(["walking", "boxing", "jumping"], [[1, 1, 1], [1, 0, 0], [1, 1, 0]]), (["walking", "again"], [[1, 1, 1]] * 2)],
)
def test_exported_clips_give_a_heads_logits_whether_or_not_classes_are_equal(tmp_path, alignment, class_names, is_shot):
    model, processor = tiny_model_and_processor(alignment=alignment)
    clips = CLIPS | {"again": similar_clips(4, 3)}
    support_set = SupportSet.from_videos(model, processor, {name: clips[name] for name in class_names})
    exporting.write_classes(model, support_set, tmp_path)
    written = np.load(tmp_path / "classes.npz")
    assert written["is_shot"].tolist() == is_shot
    assert (written["is_shot"].dtype, written["shots"].dtype) == (np.float32, np.float32)
    frames = processor.process_videos(QUERIES)
    with torch.no_grad():
        classes = {name: torch.from_numpy(written[name]) for name in ("shots", "is_shot")}
        logits = exporting.QueryClassifier(model, "few_shot")(frames, **classes)
        expected = support_set.classify(model, model.get_video_features(frames), "few_shot")
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_classes_of_other_preprocessing_are_not_exported(tmp_path):
    model, processor = tiny_model_and_processor()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    other = tiny_model_and_processor()[1]
    other.prompt_template = "someone {}"
    SupportSet.from_videos(model, other, CLIPS).save_pretrained(tmp_path / "classes")
    arguments = ExportArguments(
        model=str(tmp_path / "model"),
        output_dir=str(tmp_path / "out"),
        support_set=str(tmp_path / "classes"),
        formats=["torch"],
    )
    with pytest.raises(ValueError, match="other preprocessing: prompt_template someone"):
        exporting.main(arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "mode", "inputs"),
    [
        ("zero_shot", "zero_shot", ["pixel_values", "class_embeds"]),
        ("few_shot", "few_shot", ["pixel_values", "prototypes"]),
        (None, "ensemble", ["pixel_values", "prototypes", "class_embeds"]),
    ],
)
def test_the_mode_that_is_asked_for_is_exported(tmp_path, monkeypatch, asked, mode, inputs):
    model, processor = tiny_model_and_processor(inference_mode="ensemble")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    exported = {}

    def export(classifier, shapes, *_):
        exported.update(mode=classifier.inference_mode, shapes=shapes)
        return {}

    monkeypatch.setattr(exporting, "export", export)
    arguments = {"model": str(tmp_path / "model"), "output_dir": str(tmp_path / "out"), "inference_mode": asked}
    exporting.main(ExportArguments(**arguments))
    assert (exported["mode"], sorted(exported["shapes"])) == (mode, sorted(inputs))
    description = json.loads((tmp_path / "out" / "query_classifier.json").read_text())
    assert (description["inference_mode"], sorted(description["inputs"])) == (mode, sorted(inputs))


def test_a_file_that_is_right_only_for_the_sizes_it_was_traced_with_is_refused(tmp_path, monkeypatch):
    model = tiny_model()
    classifier = exporting.QueryClassifier(model, "zero_shot")
    size = model.config.hidden_size
    shapes = {"pixel_values": ["num_queries", 3, 3, 16, 16], "class_embeds": ["num_classes", size]}
    traced = (2, 3)

    def right_for_traced_sizes(**inputs):
        logits = classifier(**inputs)
        return logits if logits.shape == traced else logits + 1

    (tmp_path / "query_classifier.pt2").touch()
    monkeypatch.setattr(torch.export, "load", lambda path: SimpleNamespace(module=lambda: right_for_traced_sizes))
    monkeypatch.setattr(
        torch.export, "export", lambda *args, **options: SimpleNamespace(graph_module=torch.nn.Module())
    )
    monkeypatch.setattr(torch.nn.Module, "graph", SimpleNamespace(nodes=()), raising=False)
    monkeypatch.setattr(torch.export, "save", lambda graph, path: None)
    with pytest.raises(ValueError, match=r"query_classifier\.pt2 deviates by 1 from the model's logits"):
        exporting.export(classifier, shapes, tmp_path, ["torch"])
    assert not (tmp_path / "query_classifier.pt2").exists()


def test_a_deviation_is_the_largest_of_either_sign(tmp_path, monkeypatch):
    shapes = {"pixel_values": ["num_queries", 2], "class_embeds": ["num_classes", 2]}
    right = {(1, 2): [[1.0, -3.0]], (3, 5): [[0.5] * 5] * 3, (2, 1): [[2.0], [-1.0]]}
    wrong = {(1, 2): [[1.5, -3.0]], (3, 5): [[0.5] * 5] * 3, (2, 1): [[2.0], [-3.0]]}

    def answering(logits):
        return lambda pixel_values, class_embeds: torch.tensor(logits[len(pixel_values), len(class_embeds)])

    monkeypatch.setattr(torch.export, "load", lambda path: SimpleNamespace(module=lambda: answering(wrong)))
    assert exporting._largest_deviation(answering(right), shapes, tmp_path / "query_classifier.pt2") == (2.0, 3.0)


# --- what is measured -------------------------------------------------------------------------------------------------


def test_the_exact_accuracy_is_a_mean_over_classes_not_videos():
    labels = np.array([2, 0, 0, 0, 1, 1])
    chances = np.array([0.1, 1.0, 0.8, 0.6, 0.5, 0.3])
    one = np.zeros((1, 1), dtype=int)
    predictions = EpisodePredictions(one, one, one, one, one)
    result = EpisodicResult("few_shot", 1, 1, 1, 1, 0.0, 0.0, predictions, labels, ["a", "b", "c"], chances)
    assert result.exact == pytest.approx(100 * (0.8 + 0.4 + 0.1) / 3)  # over videos it would be 55


@pytest.mark.parametrize(
    ("episodes", "interval", "line"),
    [
        (1, float("nan"), "60.0% (1 episode, too few or too similar for an interval)"),
        (12, 0.0, "60.0% (12 episodes, too few or too similar for an interval)"),
        (12, 4.21, "60.0 ± 4.2% (12 episodes)"),
    ],
)
def test_a_result_without_spread_claims_no_interval(episodes, interval, line):
    assert str(Accuracy("few_shot", 5, 1, 1, episodes, 60.0, interval)) == f"5-way 1-shot few_shot: {line}"


def test_answers_with_and_without_episodes_do_not_merge():
    metric = EpisodicAccuracy()
    metric.add_batch(predictions=[1, 1, 2], references=[1, 2, 2], episodes=[7, 7, 7])
    metric.add_batch(predictions=[5, 6], references=[5, 5])  # each an episode of its own
    metric.add(prediction=3, reference=4)
    metric.add_batch(predictions=[1, 0], references=[1, 1], episodes=[9, 9])
    result = metric.compute()
    accuracies = [2 / 3, 1, 0, 0, 1 / 2]
    assert result["n_episodes"] == 5
    assert result["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["interval"] == pytest.approx(1.96 * np.std(accuracies, ddof=1) / 5**0.5)


def test_draws_of_one_video_in_two_rows_differ_and_are_the_same_again(parts, tmp_path):
    model, processor = parts
    path = str(tmp_path / "long.mp4")
    write_video(tmp_path / "long.mp4", (200, 40, 60), seed=1)
    split = Dataset.from_dict({"video": [path] * 5, "label": ["a"] * 5})
    first, again = (VideoEncoder(model, processor, batch_size=size).encode(split, (3, 0)) for size in (2, 5))
    torch.testing.assert_close(first, again, rtol=0, atol=1e-6)
    assert len({tuple(row.flatten().round(decimals=4).tolist()) for row in first}) >= 4  # a frame may repeat by chance
    other = VideoEncoder(model, processor, batch_size=5).encode(split, (3, 1))
    assert not torch.allclose(first, other, atol=1e-4)


# --- what is read -----------------------------------------------------------------------------------------------------


def numbered_frames(count: int) -> np.ndarray:
    """Frame n is of brightness n, in the corner its number: (count, 16, 16, 3)."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 16, 16, 3)).copy()


@pytest.mark.parametrize("frames_per_video", [72, 24])
def test_a_frame_store_keeps_frames_from_all_of_a_long_video(tmp_path, frames_per_video):
    folder = tmp_path / "videos" / "walking"
    for number in range(2):
        clip = folder / str(number)  # a folder of pictures: their colours come back as they are
        clip.mkdir(parents=True)
        for index, frame in enumerate(numbered_frames(200)):
            Image.fromarray(frame).save(clip / f"{index:03d}.png")
    arguments = PrepareArguments(
        source=str(tmp_path / "videos"),
        output_dir=str(tmp_path / "data"),
        frame_store="raw",
        frame_size=16,
        frames_per_video=frames_per_video,
        class_split=[1, 0, 0],
        num_workers=1,
    )
    prepare(arguments)
    kept = load_from_disk(tmp_path / "data")["train"]
    video = kept.cast_column("video", Video(decode=False))[0]["video"]
    wanted = sample_frame_indices(200, 8)
    frames = read_video_frames(video, lambda num_frames, fps: sample_frame_indices(num_frames, 8))
    assert frames[:, 8, 8, 0].tolist() == pytest.approx(list(wanted), abs=200 / frames_per_video)
    assert max(wanted) > 180


def test_a_lower_jpeg_quality_keeps_smaller_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # this process has other tests to run
    for number, frame in enumerate(random_clip(5)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    sizes = []
    for quality in (95, 90, 40):
        arguments = PrepareArguments(
            source=str(tmp_path),
            output_dir=str(tmp_path / "data"),
            frame_store="jpeg",
            frame_size=16,
            jpeg_quality=quality,
        )
        sizes.append(len(read_video((str(tmp_path), frame_store_settings(arguments))).data))
    assert sizes[0] > sizes[1] > sizes[2]


def test_the_rate_that_a_file_has_wins_over_one_that_is_given(tmp_path):
    path = tmp_path / "numbered.mkv"
    with av.open(str(path), "w") as container:  # lossless, 24 frames a second
        stream = container.add_stream("ffv1", rate=24)
        stream.width = stream.height = 16
        stream.pix_fmt = "bgr0"
        for frame in numbered_frames(120):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    _, processor = tiny_model_and_processor()
    processor.frame_sampling, processor.sampling_rate = "interval", 6
    own = processor.process_videos([str(path)])
    assert torch.equal(processor.process_videos([str(path)], fps=3.0), own)
    in_memory = numbered_frames(120)
    assert torch.equal(processor.process_videos([in_memory], fps=24.0), own)
    assert not torch.equal(processor.process_videos([in_memory], fps=12.0), own)


@pytest.mark.parametrize(("lora_alpha", "scaling"), [(None, 2.0), (9.0, 3.0)])
def test_the_scale_of_adapters_is_the_one_asked_for(lora_alpha, scaling):
    pytest.importorskip("peft")
    model = tiny_model()
    choose_trainable(model, EpisodicTrainingArguments(lora_rank=3, lora_alpha=lora_alpha))
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert {value for module in adapted for value in module.scaling.values()} == {scaling}
