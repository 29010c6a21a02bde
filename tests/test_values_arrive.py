"""Values on their way: what is asked for arrives where it counts, what is kept comes back, limits lie where they are.

Every value here differs from the default and from its neighbours, so that one taken for another is seen.
"""

import copy
import io
import itertools
import json
import math
from dataclasses import asdict, fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from golden.formula_model import tiny_model
from PIL import Image
from safetensors.torch import load_file
from tiny_data import random_clip, similar_clips, tiny_model_and_processor
from transformers import EarlyStoppingCallback

import clipfsar.data.frame_store as frame_store
import clipfsar.inference.export as exporting
import clipfsar.training.trainer as training
import processing_clipfsar
import support_set_clipfsar
from clipfsar.checked_files import write_checksums
from clipfsar.data.arguments import PrepareArguments
from clipfsar.data.clips import LeftOut
from clipfsar.data.frame_store import MISSING, FrameStoreSettings, is_missing, read_video
from clipfsar.data.prepare import Preparation, frame_store_settings
from clipfsar.data.splits import check_disjoint_classes
from clipfsar.data.video_split import VideoSplit
from clipfsar.inference.arguments import ExportArguments
from clipfsar.training import checks, run_folder
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.callbacks import EpisodicFlowCallback, EpisodicProgressCallback, restore_callbacks
from clipfsar.training.optimization import make_optimizer
from clipfsar.training.run_folder import TrainingLog, put_in_place
from clipfsar.training.step import mix_seeds
from clipfsar.training.trainable import choose_trainable
from container_clipfsar import VideoTimes
from enrolled_clipfsar import _nearest_clip
from enrolling_clipfsar import clip_name, film_strip
from episodes_clipfsar import EpisodeCollator, EpisodeSampler
from explanation_clipfsar import Explanation, explain_classification
from fingerprint_clipfsar import model_digest
from frame_archive_clipfsar import FrameArchive
from pixels_clipfsar import augment_like_kinetics
from processing_clipfsar import SampledVideos
from support_set_clipfsar import SupportSet
from video_clipfsar import read_video_frames

CLIPS = {
    "walking": similar_clips(40, 3),
    "boxing": [random_clip(3)],
    "jumping": similar_clips(4, 2),
}


@pytest.fixture(scope="module")
def parts():
    return tiny_model_and_processor()


@pytest.fixture
def support_set(parts):
    return SupportSet.from_videos(*parts, CLIPS)


@pytest.fixture(scope="module")
def query_embeds(parts):
    model, processor = parts
    with torch.no_grad():
        return model.get_video_features(processor.process_videos([random_clip(10), random_clip(11)]))


# --- support sets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_mean", [0.4, 0.5, 0.6]),
        ("image_std", [0.2, 0.3, 0.4]),
        ("resample", 2),
        ("do_normalize", False),
        ("do_rescale", False),
        ("rescale_factor", 1 / 127),
        ("do_center_crop", False),
        ("do_resize", False),
        ("width", {"height": 16, "width": 8}),
        ("shortest_edge", {"shortest_edge": 18}),
    ],
)
def test_a_set_knows_each_setting_of_the_images(parts, support_set, name, value):
    other = tiny_model_and_processor()[1]
    setattr(other.image_processor, {"width": "crop_size", "shortest_edge": "size"}.get(name, name), value)
    with pytest.raises(ValueError, match=f"other preprocessing: .*{name} "):
        support_set.check(parts[0], other)


@pytest.mark.parametrize(("name", "value"), [("hidden_act", "gelu_new"), ("layer_norm_eps", 0.5)])
@pytest.mark.parametrize("tower", ["vision_config", "text_config"])
def test_the_digest_of_a_model_counts_what_no_weight_shows(tower, name, value):
    one, other = tiny_model(), tiny_model()
    setattr(getattr(other.config.clip_config, tower), name, value)
    assert model_digest(one) != model_digest(other)


def test_thumbnails_of_large_frames_are_made_smaller_in_their_shape():
    frames = torch.zeros(3, 200, 100, 3, dtype=torch.uint8)
    with Image.open(io.BytesIO(film_strip(frames))) as strip:
        assert strip.size == (3 * 48, 96)
    frames = torch.zeros(3, 96, 40, 3, dtype=torch.uint8)
    with Image.open(io.BytesIO(film_strip(frames))) as strip:
        assert strip.size == (3 * 40, 96)


def test_a_renamed_class_keeps_names_and_pictures_of_its_clips(parts, support_set):
    before = support_set.classes["walking"]
    support_set.rename_class(*parts, "walking", "strolling")
    after = support_set.classes["strolling"]
    assert (after.clip_names, after.thumbnails) == (before.clip_names, before.thumbnails)


def test_names_of_clips_stay_different_after_one_has_gone(parts, support_set):
    support_set.remove_clip("walking", np.int64(0))
    support_set.add(*parts, {"walking": [random_clip(7), random_clip(8)]})
    names = support_set.classes["walking"].clip_names
    assert names[:2] == ["clip 2", "clip 3"]
    assert len(set(names)) == 4
    with pytest.raises(ValueError, match="no clip -1"):
        support_set.remove_clip("walking", -1)


@pytest.mark.parametrize(
    ("video", "name"),
    [
        ("https://host/folder/a.mp4?token=secret", "a.mp4"),
        ("https://host/folder/a.mp4?token=secret#t=2.5,4", "a.mp4#t=2.5,4"),
        ("https://host/", None),
        ("/#t=2.5,4", None),
        ("folder/frames/", "frames"),
        ({"path": "folder/b.mp4", "bytes": b""}, "b.mp4"),
        ({"path": None, "bytes": b""}, None),
        (SimpleNamespace(name=3), None),
        (SimpleNamespace(name="folder/c.mp4"), "c.mp4"),
        (b"", None),
    ],
)
def test_a_clip_is_named_after_its_file_alone(video, name):
    assert clip_name(video) == name


def test_of_many_classes_ten_are_shown(parts):
    one = next(iter(SupportSet.from_videos(*parts, {"a": CLIPS["boxing"]}).classes.values()))
    shown = repr(SupportSet({}, {f"class {number}": one for number in range(11)}))
    assert shown.startswith("SupportSet(11 classes, clips {'class 0': 1, ")
    assert shown.endswith("'class 9': 1, ...})")


def test_features_are_kept_in_float32_whatever_the_model_computes_in(parts, tmp_path):
    model, processor = copy.deepcopy(parts[0]).to(torch.bfloat16), parts[1]
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    for one in support_set.classes.values():
        assert (one.support_embeds.dtype, one.class_embeds.dtype) == (torch.float32, torch.float32)
    support_set.save_pretrained(tmp_path)
    again = SupportSet.from_pretrained(tmp_path)
    again.check(model, processor)
    assert again.fingerprint == support_set.fingerprint


def test_a_set_in_a_subfolder_is_read_and_a_missing_one_named(support_set, tmp_path):
    support_set.save_pretrained(tmp_path / "inner")
    assert SupportSet.from_pretrained(tmp_path, subfolder="inner").num_clips == support_set.num_clips
    with pytest.raises(ValueError, match="holds no support set"):
        SupportSet.from_pretrained(tmp_path)


def test_an_upload_has_pictures_and_rights_as_asked_for(support_set, monkeypatch, tmp_path):
    asked = {}

    class Api:
        def __init__(self, token=None):
            asked["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            asked["private"] = private
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, repo_id, folder_path, revision, commit_message):
            again = SupportSet.from_pretrained(folder_path)
            asked.update(repo_id=repo_id, message=commit_message, pictures=again.classes["boxing"].thumbnails)

    monkeypatch.setattr(support_set_clipfsar, "HfApi", Api)
    support_set.push_to_hub("mine", private=False, token="t", commit_message="Two more clips", thumbnails=True)
    pictures = support_set.classes["boxing"].thumbnails
    assert asked.pop("pictures") == pictures != [b""]
    assert asked == {"token": "t", "private": False, "repo_id": "me/mine", "message": "Two more clips"}


def test_a_query_that_is_no_number_is_named(parts, support_set, query_embeds):
    queries = torch.cat([query_embeds, torch.full_like(query_embeds[:1], math.nan)])
    with pytest.raises(ValueError, match="query video 2"):
        support_set.classify(parts[0], queries)


def test_answers_carry_no_gradients(parts, support_set, query_embeds):
    distances, text_logits = support_set.compare(parts[0], query_embeds)
    assert [distances.requires_grad, text_logits.requires_grad] == [False, False]


def test_clips_are_encoded_in_evaluation_mode_and_the_mode_comes_back():
    model, processor = tiny_model_and_processor()
    for layer in model.clip.vision_model.modules():
        if hasattr(layer, "dropout") and isinstance(layer.dropout, float):
            layer.dropout = 0.5  # of the attention
    expected = SupportSet.from_videos(model, processor, CLIPS)
    model.train()
    now = SupportSet.from_videos(model, processor, CLIPS)
    assert model.training
    for name in CLIPS:
        assert torch.equal(now.classes[name].support_embeds, expected.classes[name].support_embeds)


def test_a_description_that_another_program_wrote_in_another_order_is_the_same(support_set, tmp_path):
    support_set.save_pretrained(tmp_path)
    path = tmp_path / "support_set.json"

    def turned(value):
        if isinstance(value, dict):
            return {name: turned(value[name]) for name in reversed(value)}
        return [turned(one) for one in value] if isinstance(value, list) else value

    path.write_text(json.dumps(turned(json.loads(path.read_text()))))
    assert SupportSet.from_pretrained(tmp_path).num_clips == support_set.num_clips


def test_both_files_are_asked_for_with_all_options(support_set, monkeypatch, tmp_path):
    support_set.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(
        support_set_clipfsar, "cached_file", lambda name, file, **given: asked.append((file, given)) or tmp_path / file
    )
    options = {"revision": "v2", "token": "t", "local_files_only": True, "subfolder": "inner"}
    SupportSet.from_pretrained("me/classes", **options)
    assert asked == [(file, options) for file in ("support_set.json", "support_set.safetensors")]


def test_a_class_may_get_another_spelling_of_its_name(parts):
    support_set = SupportSet.from_videos(*parts, {"brush_hair": CLIPS["boxing"], "walking": CLIPS["walking"]})
    support_set.rename_class(*parts, "brush_hair", "brush hair")
    assert support_set.class_names == ["brush hair", "walking"]


def test_enrolling_draws_nothing_whatever_the_processor_does(parts):
    processor = tiny_model_and_processor()[1]
    processor.frame_sampling = "segment_random"
    one, other = (SupportSet.from_videos(parts[0], processor, CLIPS) for _ in range(2))
    for name in CLIPS:
        assert torch.equal(one.classes[name].support_embeds, other.classes[name].support_embeds)


def test_the_clip_shown_is_like_the_query_in_all_frames_and_not_in_one():
    query = torch.eye(4, 8)
    one_frame = torch.cat([query[:1], -query[1:]])  # the same in one frame, the opposite in the others
    assert _nearest_clip(torch.stack([one_frame, query + 0.3]), query) == 1
    query = torch.ones(4, 2)  # what counts is the direction of each frame, not the course of each number over time
    other_direction, longer_frames = (
        query * torch.tensor([10.0, 0.1]),
        query * torch.tensor([[1.0], [10.0], [1], [0.1]]),
    )
    assert _nearest_clip(torch.stack([other_direction, longer_frames]), query) == 1


# --- explanations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zero_shot", "ensemble"])
def test_the_unknown_score_of_an_explanation_is_of_its_mode(parts, support_set, query_embeds, mode):
    model = parts[0]
    explanation = support_set.explain(model, query_embeds[1], mode, detect_unknown=True)
    expected = support_set.score_unknown(model, query_embeds[1:], mode)
    assert explanation.unknown_score == pytest.approx(float(expected), abs=1e-6)
    assert support_set.explain(model, query_embeds[1], mode).unknown_score is None


def test_distances_of_an_explanation_follow_from_its_frame_distances(parts, support_set, query_embeds):
    model = parts[0]
    explanation = support_set.explain(model, query_embeds[0])
    distances, text_logits = support_set.compare(model, query_embeds[:1])
    torch.testing.assert_close(explanation.distances, distances[0])
    torch.testing.assert_close(model.align(explanation.frame_distances), distances[0])
    torch.testing.assert_close(explanation.text_probabilities, text_logits[0].softmax(-1))


def test_an_explanation_weighs_clips_and_names_as_the_model_does():
    model, _ = tiny_model_and_processor(ensemble_text_weight=0.3, ensemble_temperature=0.5)
    generator = torch.Generator().manual_seed(1)
    query, prototypes, texts = (torch.randn(*shape, generator=generator) for shape in ((4, 16), (3, 4, 16), (3, 16)))
    numbers = explain_classification(model, query, prototypes, texts, "ensemble")
    clips, names = ((-numbers["distances"] / 0.5).softmax(-1), numbers["text_probabilities"])
    torch.testing.assert_close(numbers["clip_probabilities"], clips)
    together = 0.3 * names.log() + 0.7 * clips.log()
    torch.testing.assert_close(numbers["probabilities"], together.softmax(-1), rtol=0, atol=1e-5)
    best, second = together.topk(2).indices.tolist()
    odds = [abs(float(weight * (p[best] / p[second]).log())) for weight, p in ((0.3, names), (0.7, clips))]
    assert numbers["text_share"] == pytest.approx(odds[0] / sum(odds), rel=1e-4)
    assert numbers["text_agrees"] is bool(names[best] >= names[second])


def explanation_of(num_classes: int, **values) -> Explanation:
    """Class n has the n-th largest probability but one: the best is the second, the first the least probable."""
    probabilities = torch.arange(num_classes, 0, -1).roll(1).double()
    probabilities[0] = 0.5
    numbers = {
        "class_names": [f"class {number}" for number in range(num_classes)],
        "inference_mode": "ensemble",
        "probabilities": probabilities / probabilities.sum(),
        "clip_probabilities": torch.linspace(0, 0.1, num_classes),
        "text_probabilities": torch.linspace(0.2, 0.3, num_classes),
        "distances": torch.linspace(3, 4, num_classes),
        "frame_distances": torch.rand(num_classes, 3, 2),
        "alignment": torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.1, 1.0]]).expand(num_classes, 3, 2),
        "text_share": 0.375,
        "text_agrees": False,
        "unknown_score": 0.125,
    }
    return Explanation(**numbers | values)


def test_numbers_of_an_explanation_stand_under_their_names():
    one = explanation_of(3)
    numbers = one.to_dict()
    for name in ("probabilities", "clip_probabilities", "text_probabilities", "distances"):
        assert list(numbers[name].items()) == list(zip(one.class_names, getattr(one, name).tolist(), strict=True))
    assert (numbers["label"], numbers["inference_mode"]) == ("class 1", "ensemble")
    assert (numbers["text_share"], numbers["text_agrees"], numbers["unknown_score"]) == (0.375, False, 0.125)
    assert numbers["alignment"] == one.alignment[1].tolist()
    assert numbers["path"] == [(0, 1, 1.0), (2, 1, 0.5)]


def test_the_sentences_of_a_picture_say_what_decided():
    assert explanation_of(11)._sentences() == [
        "Between the top two classes, the class names count 38% and disagree with the clips.",
        "3 less probable classes are not shown.",
        'Score of "none of these": 0.12.',
    ]
    assert explanation_of(8, inference_mode="few_shot", unknown_score=None)._sentences() == [
        "Decided by the example clips."
    ]
    assert explanation_of(2, inference_mode="zero_shot")._sentences()[0].startswith("Decided by the class names alone")


def test_a_picture_shows_the_best_classes_the_asked_one_and_each_pair_in_its_cell():
    figure = explanation_of(10).plot(label="class 0")
    grid, bars = figure.axes
    shown = [f"class {number}" for number in (1, 2, 3, 4, 5, 6, 7, 0)]
    assert [label.get_text() for label in bars.get_yticklabels()] == shown
    (circles,) = grid.collections
    assert circles.get_offsets().tolist() == [[1.5, 0.5], [1.5, 2.5]]  # x is the example's frame, y the query's
    assert circles.get_sizes().tolist() == pytest.approx([260, 130])
    assert "'class 0', probability 0.01" in figure._suptitle.get_text()


# --- exports ----------------------------------------------------------------------------------------------------------


def test_a_description_has_the_settings_of_its_model(parts):
    model, processor = tiny_model_and_processor(alignment="bi_mhm")
    processor.preprocessing, processor.frame_sampling = "official", "interval"
    shapes = exporting.input_shapes(model, processor, "few_shot")
    described = exporting.describe(model, processor, "few_shot", shapes)
    assert (described["inference_mode"], described["alignment"]) == ("few_shot", "bi_mhm")
    assert described["preprocessing"]["preprocessing"] == "official"
    assert described["preprocessing"]["frame_sampling"] == "interval"
    assert described["weights"] == model_digest(model) != model_digest(tiny_model())
    assert described["outputs"]["logits"]["shape"] == ["num_queries", "num_classes"]
    for side in ("inputs", "outputs"):
        for name, entry in described[side].items():
            assert (entry["dtype"], entry["meaning"]) == ("float32", exporting.MEANINGS[name])


def test_frames_that_are_no_squares_are_exported_as_they_are(parts):
    model, processor = tiny_model_and_processor()
    processor.image_processor.crop_size = {"height": 16, "width": 8}
    shapes = exporting.input_shapes(model, processor, "zero_shot")
    assert shapes == {"pixel_values": ["num_queries", 4, 3, 16, 8], "class_embeds": ["num_classes", 16]}


@pytest.mark.parametrize("mode", ["few_shot", "zero_shot", "ensemble"])
def test_a_head_that_compares_with_each_clip_takes_the_clips_except_by_names(mode):
    model, processor = tiny_model_and_processor(alignment="trx", trx_size=8, trx_cardinalities=[2])
    shapes = exporting.input_shapes(model, processor, mode)
    of_clip = [12, 8]  # a key and a value for each of the 6 pairs of frames
    clips = {"shots": ["num_classes", "num_shots", *of_clip], "is_shot": ["num_classes", "num_shots"]}
    names = {"class_embeds": ["num_classes", 16]}
    expected = {"few_shot": clips, "zero_shot": names, "ensemble": clips | names}[mode]
    assert shapes == {"pixel_values": ["num_queries", 4, 3, 16, 16]} | expected


@pytest.fixture
def exported_with(monkeypatch, tmp_path):
    """Runs an export whose file deviates as given, without one being made."""

    def export(deviation: float, largest: float):
        nothing = SimpleNamespace(graph_module=torch.nn.Module())
        monkeypatch.setattr(torch.nn.Module, "graph", SimpleNamespace(nodes=()), raising=False)
        monkeypatch.setattr(torch.export, "export", lambda *args, **options: nothing)
        monkeypatch.setattr(torch.export, "save", lambda graph, file: file.write(b"0" * 2_500_000))
        monkeypatch.setattr(exporting, "_largest_deviation", lambda *_: (deviation, largest))
        shapes = {"pixel_values": ["num_queries", 2], "class_embeds": ["num_classes", 2]}
        return exporting.export(None, shapes, tmp_path, ["torch"])

    return export


@pytest.mark.parametrize(("deviation", "largest"), [(0.9e-4, 0.5), (0.9e-3, 10.0), (1e-4, 1.0)])
def test_a_deviation_within_the_limit_of_the_largest_logit_is_accepted(exported_with, tmp_path, deviation, largest):
    assert exported_with(deviation, largest) == {"torch": (deviation, largest)}
    assert (tmp_path / "query_classifier.pt2").is_file()


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model, processor = tiny_model_and_processor(inference_mode="ensemble")
    for part in (model, processor):
        part.save_pretrained(folder / "model")
    SupportSet.from_videos(model, processor, CLIPS).save_pretrained(folder / "classes")
    return folder


def test_new_classes_leave_the_description_of_the_file_as_it_was(saved_model, tmp_path):
    model, _ = tiny_model_and_processor()
    present = {"weights": model_digest(model), "inference_mode": "zero_shot", "note": "mine", "class_names": ["x"]}
    (tmp_path / exporting.DESCRIPTION).write_text(json.dumps(present))
    arguments = {"model": str(saved_model / "model"), "support_set": str(saved_model / "classes")}
    exporting.main(ExportArguments(**arguments, output_dir=str(tmp_path), only_classes=True))
    described = json.loads((tmp_path / exporting.DESCRIPTION).read_text())
    assert described == present | {"class_names": list(CLIPS)}


def test_an_export_says_what_lies_where(saved_model, tmp_path, monkeypatch, capsys):
    def export(classifier, shapes, folder, formats):
        assert not classifier.model.training
        for name in formats:
            (folder / exporting.FILES[name]).write_bytes(b"0" * 2_500_000)
        return dict.fromkeys(formats, (2e-6, 7.0))

    monkeypatch.setattr(exporting, "export", export)
    arguments = {"model": str(saved_model / "model"), "support_set": str(saved_model / "classes")}
    exporting.main(ExportArguments(**arguments, output_dir=str(tmp_path / "out"), formats=["torch"]))
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"{tmp_path / 'out' / 'query_classifier.pt2'}: 2.5 MB; logits of up to 7 deviate by 2e-06.",
        f"{tmp_path / 'out' / 'classes.npz'}: 3 classes.",
    ]


def test_names_of_classes_go_out_whole_and_in_their_order(parts, tmp_path):
    names = ["walking slowly over a bridge in the rain", "a", "jumping over a rope"]
    support_set = SupportSet.from_videos(*parts, dict.fromkeys(names, CLIPS["boxing"]))
    exporting.write_classes(parts[0], support_set, tmp_path)
    assert np.load(tmp_path / "classes.npz")["class_names"].tolist() == names


def test_an_export_that_fails_leaves_no_description(saved_model, tmp_path, monkeypatch):
    def export(*_):
        raise ValueError("deviates")

    monkeypatch.setattr(exporting, "export", export)
    with pytest.raises(ValueError, match="deviates"):
        exporting.main(ExportArguments(model=str(saved_model / "model"), output_dir=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_classes_are_not_put_beside_a_file_of_nobody_knows_which_model(saved_model, tmp_path):
    (tmp_path / exporting.DESCRIPTION).write_text("{}")
    arguments = {"model": str(saved_model / "model"), "support_set": str(saved_model / "classes")}
    with pytest.raises(ValueError, match="holds another model than"):
        exporting.main(ExportArguments(**arguments, output_dir=str(tmp_path), only_classes=True))
    assert [path.name for path in tmp_path.iterdir()] == [exporting.DESCRIPTION]


def test_an_export_may_be_made_again_in_its_folder_and_names_classes_in_their_order(saved_model, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "export", lambda classifier, shapes, folder, formats: {})
    arguments = {"model": str(saved_model / "model"), "support_set": str(saved_model / "classes")}
    for _ in range(2):
        exporting.main(ExportArguments(**arguments, output_dir=str(tmp_path / "out"), formats=["torch"]))
    described = json.loads((tmp_path / "out" / exporting.DESCRIPTION).read_text())
    assert described["class_names"] == list(CLIPS)


def test_a_description_is_written_for_readers_in_any_script(saved_model, tmp_path):
    SupportSet.from_videos(*tiny_model_and_processor(), {"öffnen": CLIPS["boxing"]}).save_pretrained(tmp_path / "set")
    present = {"weights": model_digest(tiny_model_and_processor()[0]), "inference_mode": "zero_shot"}
    (tmp_path / exporting.DESCRIPTION).write_text(json.dumps(present))
    arguments = {"model": str(saved_model / "model"), "support_set": str(tmp_path / "set")}
    exporting.main(ExportArguments(**arguments, output_dir=str(tmp_path), only_classes=True))
    lines = (tmp_path / exporting.DESCRIPTION).read_text(encoding="utf-8").splitlines()
    assert lines[-4:] == ['  "class_names": [', '    "öffnen"', "  ]", "}"]


# --- training ---------------------------------------------------------------------------------------------------------


def labelled(**counts: int) -> Dataset:
    """Paths that are not there, so many of each class."""
    names = sorted(counts)
    labels = [names.index(name) for name, number in counts.items() for _ in range(number)]
    features = Features({"video": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"video": [f"{row}.mp4" for row in range(len(labels))], "label": labels}, features)


DISTINCT = {
    "n_way": 2,
    "train_n_shot": 3,
    "train_n_query": 4,
    "n_shot": [1, 6],
    "n_query": 7,
    "eval_episodes": 8,
    "test_episodes": 9,
    "seed": 10,
    "eval_batch_size": 11,
    "num_workers": 12,
    "inference_modes": ["zero_shot"],
}


@pytest.fixture
def trainer(parts, tmp_path):
    model, processor = tiny_model_and_processor()
    args = EpisodicTrainingArguments(output_dir=str(tmp_path / "run"), report_to="none", num_frames=4, **DISTINCT)
    counts = {"a": 20, "b": 20, "c": 20}
    splits = labelled(**counts), labelled(x=20, y=20)
    return training.EpisodicTrainer(model, args, *splits, processor)


@pytest.mark.usefixtures("fresh_accelerate")
def test_validation_and_test_have_protocols_of_their_own(trainer, monkeypatch):
    asked = []

    class Evaluation:
        def __init__(self, split, protocol):
            self.asked = split, protocol

        def run(self, encoder):
            asked.append(self.asked)
            return [SimpleNamespace(accuracy=61.0, interval=2.0, n_episodes=8)]

    monkeypatch.setattr(training, "Evaluation", Evaluation)
    assert trainer.validate() == {"accuracy": 61.0, "interval": 2.0, "n_episodes": 8}
    trainer.evaluate()
    trainer.evaluate(labelled(u=9, v=9), n_shot=[5], inference_modes="few_shot", n_episodes=33)
    trainer.args.test_episodes = 0  # no test at the end of the run, which says nothing about this one
    trainer.evaluate(labelled(u=9, v=9), inference_modes="ensemble")
    given = [
        (split.class_names, p.n_way, list(p.n_shot), p.n_query, p.n_episodes, p.seed, list(p.inference_modes))
        for split, p in asked
    ]
    assert given == [
        (["x", "y"], 2, [1], 7, 8, 10, ["few_shot"]),
        (["x", "y"], 2, [1, 6], 7, 9, 10, ["zero_shot"]),
        (["u", "v"], 2, [5], 7, 33, 10, ["few_shot"]),
        (["u", "v"], 2, [1, 6], 7, 10_000, 10, ["ensemble"]),
    ]


@pytest.mark.usefixtures("fresh_accelerate")
def test_training_episodes_have_the_shots_and_queries_of_training(trainer):
    sampler = trainer.create_sampler(trainer.train_split)
    assert (sampler.n_way, sampler.n_shot, sampler.n_query, sampler.seed) == (2, 3, 4, 10)
    drawn = trainer._training_episodes(trainer.train_split).sampler
    assert (drawn.n_way, drawn.n_shot, drawn.n_query, drawn.seed) == (2, 3, 4, 10)
    trainer.sampler = sampler
    assert trainer._training_episodes(trainer.train_split).sampler is sampler
    assert (trainer.encoder.batch_size, trainer.encoder.num_workers, trainer.encoder.seed) == (11, 12, 10)


@pytest.mark.usefixtures("fresh_accelerate")
def test_first_videos_are_tried_as_they_will_be_used(trainer, monkeypatch):
    tried = []
    monkeypatch.setattr(checks, "check_classes", lambda *args: None)
    monkeypatch.setattr(
        checks, "check_first_video", lambda split, processor, training: tried.append((split.name, training))
    )
    trainer.test_split = VideoSplit(labelled(u=9, v=9), name="test")
    trainer._check_data()
    assert tried == [("train", True), ("validation", False), ("test", False)]


def test_the_first_video_is_read_in_the_mode_of_its_split():
    calls = []
    processor = SimpleNamespace(process_videos=lambda videos, **options: calls.append((videos, options["training"])))
    for is_training in (True, False):
        checks.check_first_video(VideoSplit(labelled(a=2)), processor, training=is_training)
    assert calls == [(["0.mp4"], True), (["0.mp4"], False)]


def test_each_split_needs_the_videos_of_its_own_protocol():
    args = EpisodicTrainingArguments(n_way=2, n_shot=[1, 5], n_query=2)
    splits = {
        "train": VideoSplit(labelled(a=2, b=2), name="train"),
        "validation": VideoSplit(labelled(c=3, d=3), name="validation"),  # enough for one shot
        "test": VideoSplit(labelled(e=7, f=7), name="test"),  # and for five
    }
    checks.check_classes(splits, args, tests=True)
    few = splits | {"test": VideoSplit(labelled(e=7, f=6), name="test")}
    checks.check_classes(few, args)  # not tested
    with pytest.raises(ValueError, match="'test' cannot be used 2-way 5-shot: Class 'f' has 6 videos"):
        checks.check_classes(few, args, tests=True)
    few = splits | {"validation": VideoSplit(labelled(c=3, d=2), name="validation")}
    with pytest.raises(ValueError, match="'validation' cannot be used 2-way 1-shot: Class 'd' has 2 videos"):
        checks.check_classes(few, args)


def test_lines_of_the_log_come_after_so_many_episodes_and_with_every_check():
    args = SimpleNamespace(episodes_per_update=4, log_every=6, eval_every=20)
    state, flow = SimpleNamespace(global_step=0, max_steps=9), EpisodicFlowCallback()
    logged, checked = [], []
    for step in range(1, 10):
        state.global_step = step
        control = flow.on_step_end(args, state, SimpleNamespace())
        if control.should_log:
            logged.append(4 * step)
            flow.on_log(args, state, control)
        assert control.should_evaluate == control.should_save
        checked += [4 * step] if control.should_save else []
    assert (logged, checked) == ([8, 16, 20, 28, 36], [20, 36])


def test_the_bar_goes_on_where_a_resumed_run_does():
    args = SimpleNamespace(episodes=40, episodes_per_update=4)
    bar = EpisodicProgressCallback()
    bar.on_train_begin(args, SimpleNamespace(global_step=3, is_world_process_zero=True), None)
    assert (bar._bar.total, bar._bar.n) == (40, 12)
    bar.on_step_end(args, None, None)
    bar.on_log(args, None, None, logs={"loss": 1.23456, "accuracy": 78.91})
    assert (bar._bar.n, bar._bar.postfix) == (16, "accuracy=78.9%, loss=1.235")
    bar.on_train_end(args, None, None)


def test_pictures_of_a_run_are_drawn_at_the_end_and_seldom_before(tmp_path, monkeypatch):
    drawn, now = [], [100.0]
    monkeypatch.setattr(run_folder, "plot_training", lambda records, path: drawn.append((now[0], path.name)))
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now[0])
    log = TrainingLog(tmp_path / "training_log.jsonl", 0, is_main_process=True)
    for now[0] in (101.0, 110.0, 111.0, 115.0, 122.0):
        log.draw(is_final=False)
    now[0] = 123.0
    log.draw(is_final=True)
    assert drawn == [(111.0, "training.png"), (122.0, "training.png"), (123.0, "training.png")]


def test_a_log_cut_back_keeps_the_line_of_its_checkpoint(tmp_path):
    path = tmp_path / "training_log.jsonl"
    log = TrainingLog(path, 0, is_main_process=True)
    for episode in (4, 8, 12):
        log.write(episode, "train", loss=float(episode))
    again = TrainingLog(path, 8, is_main_process=True)
    assert [line["episode"] for line in again.records] == [4, 8]
    assert path.read_text().count("\n") == 2
    assert TrainingLog(path, 12, is_main_process=False).records == again.records


def test_of_an_earlier_model_those_files_go_that_the_new_one_has_not(tmp_path):
    folder, new = tmp_path / "folder", tmp_path / "new"
    for place, names in ((folder, ("a.py", "b.py")), (new, ("b.py", "c.py"))):
        place.mkdir()
        for name in names:
            (place / name).write_text(f"{name} of {place.name}")
        write_checksums(place)
    (folder / "mine.txt").write_text("mine")
    put_in_place(new, folder, is_ours=False)
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".py", ".txt")}
    assert texts == {"b.py": "b.py of new", "c.py": "c.py of new", "mine.txt": "mine"}
    assert not new.exists()


def test_seeds_of_dropout_are_those_of_the_run_and_of_the_episode():
    seeds = [mix_seeds(seed, episode) for seed in range(20) for episode in range(20)]
    assert len(set(seeds)) == 400
    assert min(abs(one - other) for one, other in itertools.pairwise(seeds)) > 2**32


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_an_optimizer_has_the_settings_of_the_run(optimizer):
    args = EpisodicTrainingArguments(
        optimizer=optimizer, weight_decay=0.125, warmup_learning_rate=0.5, learning_rate=0.25
    )
    made = make_optimizer(tiny_model(), args)
    assert type(made) is {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    assert [(group["lr"], group["weight_decay"]) for group in made.param_groups] == [(0.5, 0.125), (0.5, 0.0)]


def test_settings_of_the_command_line_go_to_the_model_and_the_processor():
    given = {
        "num_frames": 3,
        "frame_sampling": "interval",
        "sampling_rate": 4,
        "preprocessing": "official",
        "query_augmentation": "kinetics",
        "prompt_template": "see {}",
        "decoder": "av",
        "seconds_per_video": 5.0,
    }
    args = EpisodicTrainingArguments(**given, alignment="mean", temporal_num_layers=2, prototype_modulation=False)
    assert args.processor_settings() == given
    assert args.config_overrides() == {
        "num_frames": 3,
        "alignment": "mean",
        "temporal_num_layers": 2,
        "prototype_modulation": False,
    }
    assert asdict(args)["sampling_rate"] == 4


@pytest.mark.usefixtures("fresh_accelerate")
def test_new_layers_are_drawn_by_the_seed_of_the_run(trainer, monkeypatch):
    seeds = []
    monkeypatch.setattr(type(trainer.model), "add_untrained_layers", lambda self, seed: seeds.append(seed))
    training.EpisodicTrainer(trainer.model, trainer.args, processing_class=trainer.processing_class)
    assert seeds == [10]


@pytest.mark.usefixtures("fresh_accelerate")
def test_callbacks_of_one_class_get_back_each_what_it_counted(trainer):
    callbacks = [EarlyStoppingCallback(patience) for patience in (5, 6, 7)]
    for callback in callbacks:
        trainer.add_callback(callback)
    saved = [["EarlyStoppingCallback", {"attributes": {"early_stopping_patience_counter": n}}] for n in (1, 2)]
    other = ["Other", {"attributes": {"early_stopping_patience_counter": 9}}]
    restore_callbacks(trainer.callback_handler.callbacks, [other, *saved])
    assert [callback.early_stopping_patience_counter for callback in callbacks] == [1, 2, 0]


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_adapter_beside_a_model_is_its_own(trainer, tmp_path):
    pytest.importorskip("peft")
    trainer.args.lora_rank, trainer.args.keep_adapter = 2, True
    choose_trainable(trainer.model, trainer.args)
    adapters = {name: value for name, value in trainer.model.named_parameters() if ".lora_B." in name}
    for trainer.episodes_done, value in enumerate((0.25, 0.5), start=1):
        for parameter in adapters.values():
            parameter.data.fill_(value)
        trainer._save_run_model("best")
        kept = load_file(tmp_path / "run" / "best" / "adapter" / "adapter_model.safetensors")
        assert {float(weight.mean()) for name, weight in kept.items() if ".lora_B." in name} == {value}


def test_a_resumed_run_counts_the_episodes_since_its_checkpoint():
    args = SimpleNamespace(episodes_per_update=4, log_every=8, eval_every=100)
    state, flow = SimpleNamespace(global_step=3, max_steps=99), EpisodicFlowCallback()
    flow.on_train_begin(args, state, None)
    logs = []
    for state.global_step in (4, 5):
        logs.append(flow.on_step_end(args, state, SimpleNamespace()).should_log)
    assert logs == [False, True]


MAY_CHANGE = {
    *("output_dir", "resume", "decoder", "seconds_per_video", "dataset", "benchmark", "features_dir", "keep_adapter"),
    *("episodes_per_forward", "gradient_checkpointing", "torch_compile", "preprocess_on_device", "mixed_precision"),
    *("eval_batch_size", "num_workers", "report_to", "project", "run_name", "print_config", "log_every"),
    *("ddp_timeout", "push_to_hub", "hub_private", "hub_revision", "test_episodes", "inference_modes"),
}


@pytest.mark.parametrize("name", sorted({field.name for field in fields(EpisodicTrainingArguments)} - {"n_shot"}))
def test_a_run_goes_on_only_with_the_settings_that_shape_it(name):
    args = EpisodicTrainingArguments()
    other = asdict(args) | {name: 9999 if name == "episodes" else "another"}  # a run may not become shorter
    if name in MAY_CHANGE:
        args.check_same_run(other)
    else:
        with pytest.raises(ValueError, match=f"was started with --{name} {other[name]}"):
            args.check_same_run(other)


@pytest.mark.usefixtures("fresh_accelerate")
def test_adapters_begin_by_the_seed_of_the_run_and_leave_that_of_the_program(trainer, monkeypatch):
    def choose(model, args):
        raise InterruptedError(f"seed {torch.initial_seed()}")

    monkeypatch.setattr(training, "choose_trainable", choose)
    monkeypatch.setattr(trainer, "_check_data", lambda: None)
    before = torch.initial_seed()
    assert before != 10
    with pytest.raises(InterruptedError, match="seed 10"):
        trainer._prepare(None)
    assert torch.initial_seed() == before


# --- data -------------------------------------------------------------------------------------------------------------


def test_each_setting_of_a_frame_store_is_that_of_the_command_line():
    given = {
        "frame_size": 20,
        "preprocessing": "official",
        "frames_per_video": 30,
        "jpeg_quality": 40,
        "decoder": "av",
        "seconds_per_video": 50.0,
    }
    settings = frame_store_settings(PrepareArguments(source="s", output_dir="o", frame_store="jpeg", **given))
    assert asdict(settings) == given | {"frame_format": "jpeg"}
    assert len(fields(settings)) == 7


@pytest.mark.parametrize("pair", [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_no_two_splits_may_share_a_class(pair):
    counts = {"train": {"a": 1}, "validation": {"b": 1}, "test": {"c": 1}}
    check_disjoint_classes({split: labelled(**names) for split, names in counts.items()})
    for split in pair:
        counts[split]["both"] = 1
    with pytest.raises(ValueError, match=f"{pair[0]!r} and {pair[1]!r} share 1 class: both"):
        check_disjoint_classes({split: labelled(**names) for split, names in counts.items()})


def test_exactly_enough_classes_and_videos_are_enough():
    episode = EpisodeSampler([0, 0, 0, 1, 1, 1], n_way=2, n_shot=1, n_query=2).sample(0)
    assert sorted(np.concatenate([episode.support_rows, episode.query_rows], 1).flatten().tolist()) == list(range(6))


@pytest.mark.parametrize("only_read", [False, True])
def test_a_collator_augments_queries_alone(parts, only_read):
    processor = tiny_model_and_processor()[1]
    videos = [random_clip(number) for number in range(4)]
    episode = {"support_videos": videos[:2], "query_videos": videos[2:], "class_names": ["a", "b"], "seed": 5}
    episode |= {name: [0, 1] for name in ("class_base_labels", "support_labels", "support_base_labels", "labels")}
    episode["query_base_labels"] = [0, 1]

    def made(augmentation):
        processor.query_augmentation = augmentation
        collator = EpisodeCollator(processor, training=True, only_read=only_read)
        return collator.finish(collator([episode]))

    plain, augmented = made("none"), made("kinetics")
    assert torch.equal(plain["support_pixel_values"], augmented["support_pixel_values"])
    for before, after in zip(plain["query_pixel_values"][0], augmented["query_pixel_values"][0], strict=True):
        assert not torch.allclose(before, after, atol=1e-3)


def test_options_of_a_call_hold_for_support_and_query(parts):
    processor = tiny_model_and_processor()[1]
    processor.sampling_rate = 1
    clips = {"support_videos": {"a": random_clip(1)}, "query_videos": [random_clip(1)]}
    made = processor(**clips, frame_sampling="interval", fps=24.0)
    expected = processor.process_videos([random_clip(1)], frame_sampling="interval", fps=24.0)
    assert not torch.equal(expected, processor.process_videos([random_clip(1)]))
    assert not torch.equal(expected, processor.process_videos([random_clip(1)], frame_sampling="interval", fps=12.0))
    for name in ("support_pixel_values", "query_pixel_values"):
        assert torch.equal(made[name][0], expected)
    first, second = (
        processor(**clips, training=True, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3)
    )
    for name in ("support_pixel_values", "query_pixel_values"):
        assert torch.equal(first[name], second[name])
        assert not torch.equal(first[name], processor(**clips)[name])


def test_a_processor_reads_with_its_own_decoder_threads_and_time(parts, monkeypatch):
    processor, asked = tiny_model_and_processor()[1], []

    def read(video, select_indices, *options):
        asked.append(options)
        return torch.zeros(4, 20, 20, 3, dtype=torch.uint8)

    monkeypatch.setattr(processing_clipfsar, "read_video_frames", read)
    processor.decoder, processor.num_threads, processor.seconds_per_video = "torchcodec", 3, 7.5
    processor.process_videos(["a.mp4"])
    ((decoder, num_threads, _, seconds),) = asked
    assert (decoder, num_threads, seconds) == ("torchcodec", 3, 7.5)


@pytest.mark.parametrize(("draws", "least"), [(False, 4), (True, 12)])
def test_a_frame_store_is_accepted_from_the_least_number_of_frames_on(parts, draws, least):
    processor = tiny_model_and_processor()[1]
    wanted = processing_clipfsar.resize_settings(processor.image_processor, "clip")
    for kept in (least - 1, least):
        archive = SimpleNamespace(resized_for=wanted, is_complete=False, indices=range(kept), num_frames=99)
        if kept == least:
            processor._check_archive(archive, draws)
        else:
            with pytest.raises(ValueError, match=f"keeps {kept} of a video's 99 frames, .* must keep {least} or all"):
                processor._check_archive(archive, draws)


def draws_of(pixels: torch.Tensor, number: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([augment_like_kinetics(pixels, generator) for _ in range(number)])


def test_augmentation_makes_frames_darker_and_brighter_by_up_to_a_half():
    levels = draws_of(torch.full((1, 3, 2, 2), 0.4))[:, 0, 0, 0, 0] / 0.4  # gray: nothing but brightness changes it
    assert 0.5 <= float(levels.min()) < 0.52
    assert 1.48 < float(levels.max()) <= 1.5


def test_augmentation_turns_hues_by_up_to_a_quarter_circle():
    pixels = draws_of(torch.tensor([0.5, 0.2, 0.2]).view(1, 3, 1, 1))[:, 0, :, 0, 0]
    coloured = pixels[(pixels.amax(1) - pixels.amin(1)) > 1e-3]
    red, green, blue = coloured.unbind(1)
    angles = torch.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue).rad2deg()
    assert -93 < float(angles.min()) < -80
    assert 80 < float(angles.max()) < 93


@pytest.mark.parametrize(("frames_per_video", "kept"), [(0, 20), (20, 20), (30, 20), (19, 19), (5, 5), (1, 1)])
def test_a_frame_store_keeps_as_many_frames_as_asked_for(tmp_path, monkeypatch, frames_per_video, kept):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # this process has other tests to run
    for number in range(20):
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    settings = FrameStoreSettings("raw", 16, frames_per_video=frames_per_video)
    assert len(FrameArchive(read_video((str(tmp_path), settings)).data).indices) == kept


def test_a_frame_store_keeps_the_times_of_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    times = VideoTimes(3, 2.0, np.array([0.0, 0.1, 1.2]), 1.5)

    def read(video, select_indices, *args, **options):
        indices = select_indices(3, 2.0, times)
        return torch.zeros(len(indices), 16, 16, 3, dtype=torch.uint8)

    monkeypatch.setattr(frame_store, "read_video_frames", read)
    archive = FrameArchive(read_video((str(tmp_path), FrameStoreSettings("jpeg", 16))).data)
    assert (archive.times.seconds.tolist(), archive.times.duration) == ([0.0, 0.1, 1.2], 1.5)
    assert (archive.num_frames, archive.fps) == (3, 2.0)


@pytest.mark.parametrize("address", ["https://a/b.mp4", "hf://datasets/a/b.mp4", "s3://a/b.mp4", "file:///a/b.mp4"])
def test_an_address_is_not_missing(address):
    assert not is_missing(address)
    assert not is_missing({"path": address, "bytes": None})


def test_what_is_nowhere_is_missing(tmp_path):
    assert is_missing(str(tmp_path / "b.mp4"))
    assert is_missing({"path": None, "bytes": None})
    assert not is_missing({"path": None, "bytes": b""})
    assert not is_missing(str(tmp_path))


def test_hidden_images_are_no_frames(tmp_path):
    for name in ("1.png", "2.png", "._1.png", ".hidden.png"):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / name)
    told = []
    read_video_frames(str(tmp_path), lambda num_frames, fps: told.append(num_frames) or [0])
    assert told == [2]


def test_bad_videos_are_counted_in_their_own_split(tmp_path):
    one = object.__new__(Preparation)
    one.arguments, one.left_out, one.listed, one.num_duplicates = SimpleNamespace(benchmark=None), LeftOut(), {}, 0
    videos = {"train": {"a": 6, "b": 7}, "test": {"c": 8}}
    labels = {split: [name for name, number in of.items() for _ in range(number)] for split, of in videos.items()}
    one.splits = {
        split: Dataset.from_dict({"label": of, "video": [f"{row}.mp4" for row in range(len(of))]})
        for split, of in labels.items()
    }
    problems = {"train": [MISSING, "cut off", "cut off"], "test": [MISSING]}
    one.bad = [{"split": split, "class": "a", "problem": what} for split, all_ in problems.items() for what in all_]
    lines = [line.split() for line in one.summary()]
    assert lines[1:3] == [
        ["train", "2", "13", "1", "2", "6", "videos"],
        ["test", "1", "8", "1", "0", "8", "videos"],
    ]


def test_pinned_videos_keep_their_seeds_and_augmentation():
    pinned = SampledVideos([SimpleNamespace(pin_memory=lambda: "pinned")], [7], "kinetics").pin_memory()
    assert (pinned.frames, pinned.seeds, pinned.augmentation) == (["pinned"], [7], "kinetics")
