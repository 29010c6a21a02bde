"""Exported query classifiers: the model's logits for any number of queries and classes, from files alone."""

import json
import math
import re
import struct
import subprocess
import sys
import zipfile
from copy import deepcopy
from types import SimpleNamespace

import av
import numpy as np
import onnxruntime
import pytest
import torch
from documentation import ROOT, block_with
from golden.formula_model import formula_tensor, tiny_clip_config, tiny_config, tiny_model, tiny_resnet_clip_config
from test_backbones import CONFIGS, OURS
from tiny_data import REPOSITORY, add_foreign_tensor, random_clip, said_by, tiny_model_and_processor, write_video

from clipfsar.inference import export as export_model
from clipfsar.inference.arguments import ExportArguments as Arguments
from clipfsar.inference.export import QueryClassifier, export, main
from modeling_clipfsar import CLIPFSARModel
from pipeline_clipfsar import FewShotVideoClassificationPipeline, save_with_pipeline
from support_set_clipfsar import SupportSet

NUM_FRAMES = 3
SIZES = ((1, 2), (4, 3), (2, 7))  # queries and classes


def shapes_of(model, inference_mode, image_size=16):
    shapes = {"pixel_values": ["num_queries", NUM_FRAMES, 3, image_size, image_size]}
    if inference_mode != "zero_shot":
        shapes["prototypes"] = ["num_classes", NUM_FRAMES, model.config.hidden_size]
    if inference_mode != "few_shot":
        shapes["class_embeds"] = ["num_classes", model.config.hidden_size]
    return shapes


@torch.no_grad()
def episode(model, inference_mode, n_query, n_way, image_size=16):
    """Inputs of an exported file, and the logits that a forward of the whole model gives."""
    size = model.config.hidden_size
    pixel_values = formula_tensor((n_query, NUM_FRAMES, 3, image_size, image_size), phase=n_query)
    support_embeds = formula_tensor((1, n_way, NUM_FRAMES, size), phase=1.0)
    support_labels, class_embeds = torch.arange(n_way)[None], formula_tensor((1, n_way, size), phase=2.0)
    output = model(
        support_embeds=support_embeds,
        support_labels=support_labels,
        query_pixel_values=pixel_values[None],
        class_embeds=class_embeds,
        inference_mode=inference_mode,
    )
    inputs = {"pixel_values": pixel_values, "prototypes": output.prototypes[0], "class_embeds": class_embeds[0]}
    wanted = shapes_of(model, inference_mode)
    return {name: inputs[name] for name in wanted}, output.logits[0]


def run_onnx(path, inputs):
    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def small_model(**config):
    """A model of one layer, because the time of an export grows with the layers."""
    clip_config = tiny_clip_config(vision_config={"num_hidden_layers": 1})
    return tiny_model(tiny_config(clip_config, num_frames=NUM_FRAMES, **config))


def check_files(model, inference_mode, folder, formats=("onnx", "torch"), image_size=16):
    shapes = shapes_of(model, inference_mode, image_size)
    export(QueryClassifier(model, inference_mode), shapes, folder, formats)
    for n_query, n_way in SIZES:
        inputs, expected = episode(model, inference_mode, n_query, n_way, image_size)
        assert expected.shape == (n_query, n_way)
        assert expected.std() > 1e-3  # or equality would show little
        if "onnx" in formats:
            logits = run_onnx(folder / "query_classifier.onnx", inputs)
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        if "torch" in formats:
            logits = torch.export.load(folder / "query_classifier.pt2").module()(**inputs)
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


# --- equal to the model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "inference_mode"), [({}, "ensemble"), ({"alignment": "bi_mhm"}, "few_shot")])
@pytest.mark.whole_program
def test_both_files_give_the_models_logits_for_any_number_of_queries_and_classes(tmp_path, config, inference_mode):
    check_files(small_model(**config), inference_mode, tmp_path)


def test_mean_pooling_is_exported(tmp_path):
    check_files(small_model(alignment="mean"), "few_shot", tmp_path, ["torch"])


def test_zero_shot_takes_names_alone(tmp_path):
    check_files(small_model(), "zero_shot", tmp_path, ["torch"])


@pytest.mark.whole_program
def test_distances_that_exp_cannot_hold_are_right_in_onnx(tmp_path):
    # exp(-distance / smoothing) is 0 in float32 from 104 on
    model = small_model(otam_bidirectional=False, otam_smoothing=0.005)
    assert all((-episode(model, "few_shot", *sizes)[1] / 0.005).max() > 104 for sizes in SIZES)
    check_files(model, "few_shot", tmp_path, ["onnx"])


@pytest.mark.whole_program
def test_a_resnet_is_exported(tmp_path):
    clip_config = tiny_resnet_clip_config(depths=[1, 1, 1, 1], image_size=32)
    model = tiny_model(tiny_config(clip_config, num_frames=NUM_FRAMES, alignment="mean"))
    check_files(model, "few_shot", tmp_path, ["torch"], image_size=32)


def test_a_model_in_training_is_exported_as_it_predicts():
    model = small_model().train()
    classifier = QueryClassifier(model, "few_shot")
    assert model.training
    assert not any(module.training for module in classifier.model.modules())


@pytest.mark.whole_program
def test_siglip_is_exported_and_siglip_2_refused(tmp_path):
    torch.manual_seed(0)
    models = {}
    for name in ("siglip", "siglip2"):
        clip_config = deepcopy(CONFIGS[name])
        clip_config.vision_config.num_hidden_layers = 1
        models[name] = CLIPFSARModel(tiny_config(clip_config, **OURS | {"num_frames": NUM_FRAMES})).eval()
    check_files(models["siglip"], "few_shot", tmp_path, ["torch"])
    with pytest.raises(ValueError, match=r"SigLIP 2's visual tower .* export a model on CLIP"):
        QueryClassifier(models["siglip2"], "few_shot")


@pytest.mark.parametrize(("deviation", "largest"), [(1.1e-4, 0.5), (2e-3, 10.0), (math.nan, 1.0)])
def test_a_file_that_deviates_is_refused_and_removed(tmp_path, monkeypatch, deviation, largest):
    model = small_model()
    monkeypatch.setattr(export_model, "_largest_deviation", lambda *_: (deviation, largest))
    with pytest.raises(ValueError, match=f"deviates by {deviation:.2g} from the model's logits of up to {largest:.2g}"):
        export(QueryClassifier(model, "zero_shot"), shapes_of(model, "zero_shot"), tmp_path, ["torch"])
    assert list(tmp_path.iterdir()) == []


def test_a_deviation_is_seen(tmp_path):
    model, other = small_model(), small_model()
    other.video_text_scale.data += 0.25
    shapes = shapes_of(model, "zero_shot")
    export(QueryClassifier(model, "zero_shot"), shapes, tmp_path, ["torch"])
    path = tmp_path / "query_classifier.pt2"
    with torch.no_grad():
        deviation, largest = export_model._largest_deviation(QueryClassifier(other, "zero_shot"), shapes, path)
        again = export_model._largest_deviation(QueryClassifier(other, "zero_shot"), shapes, path)
    assert deviation == pytest.approx(largest / (1.5 + 0.25) * 0.25, rel=1e-4)
    assert again == (deviation, largest)  # its frames are random, and the same each time


def test_a_file_that_takes_padding_for_clips_is_seen(tmp_path, monkeypatch):
    def sums(pixel_values, shots, is_shot):
        return (shots.sum(-1) * is_shot).sum(1).expand(len(pixel_values), -1)

    def sums_with_padding(pixel_values, shots, is_shot):
        return sums(pixel_values, shots, torch.ones_like(is_shot))

    shapes = {
        "pixel_values": ["num_queries", 2],
        "shots": ["num_classes", "num_shots", 2],
        "is_shot": ["num_classes", "num_shots"],
    }
    for written, is_right in ((sums, True), (sums_with_padding, False)):
        loaded = SimpleNamespace(module=lambda written=written: written)
        monkeypatch.setattr(torch.export, "load", lambda path, loaded=loaded: loaded)
        deviation, _ = export_model._largest_deviation(sums, shapes, tmp_path / "query_classifier.pt2")
        assert (deviation == 0) == is_right


def test_the_model_itself_stays_as_it_is():
    model = small_model()
    names = set(model.state_dict())
    classifier = QueryClassifier(model, "few_shot")
    assert set(model.state_dict()) == names
    assert not any("text_model" in name for name in classifier.state_dict())
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() in shared for parameter in classifier.parameters())


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`model`, support sets `two` and `three` of it, and `exported` with the classes of `two`."""
    folder = tmp_path_factory.mktemp("export")
    model, processor = tiny_model_and_processor(inference_mode="ensemble")
    save_with_pipeline(model, processor, folder / "model")
    clips = {name: [random_clip(3 * number), random_clip(3 * number + 1)] for number, name in enumerate("cab")}
    SupportSet.from_videos(model, processor, clips).save_pretrained(folder / "three")
    SupportSet.from_videos(model, processor, {name: clips[name] for name in "ba"}).save_pretrained(folder / "two")
    (folder / "said.txt").write_text(said_by(lambda: run(folder, "two")))
    return folder


def run(folder, support_set=None, **options):
    main(
        Arguments(
            model=str(folder / "model"),
            output_dir=str(folder / "exported"),
            support_set=support_set and str(folder / support_set),
            **options,
        )
    )


def test_an_export_says_what_it_wrote_and_nothing_of_its_tools(exported):
    said = (exported / "said.txt").read_text().splitlines()
    assert [re.sub(r".*/", "", line).split(":")[0] for line in said if line] == [
        *("query_classifier.onnx", "query_classifier.pt2", "classes.npz")
    ]


def test_an_export_shows_neither_the_progress_nor_the_report_of_loading_a_checkpoint(tmp_path, monkeypatch):
    def write(classifier, shapes, folder, formats):
        (folder / "query_classifier.pt2").touch()
        return {"torch": (0.0, 1.0)}

    monkeypatch.setattr(export_model, "export", write)
    save_with_pipeline(*tiny_model_and_processor(), tmp_path / "model")
    add_foreign_tensor(tmp_path / "model")
    said = said_by(lambda: run(tmp_path, formats=["torch"])).splitlines()
    assert [re.sub(r".*/", "", line).split(":")[0] for line in said if line] == ["query_classifier.pt2"]


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_before_the_work_begins(tmp_path, monkeypatch, package):
    model = small_model()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("the work has begun"))
    reason = rf"need more packages \(import of {package} .*pip install .*, or leave them out with --formats torch"
    with pytest.raises(ImportError, match=reason):
        export(QueryClassifier(model, "zero_shot"), shapes_of(model, "zero_shot"), tmp_path, ["onnx"])
    assert list(tmp_path.iterdir()) == []


def test_the_folders_of_an_export_are_made_and_one_that_fails_leaves_no_file(exported, monkeypatch, tmp_path):
    def stop(*inputs):
        raise RuntimeError("stopped here")

    monkeypatch.setattr(export_model, "export", stop)
    with pytest.raises(RuntimeError, match="stopped here"):
        main(Arguments(model=str(exported / "model"), output_dir=str(tmp_path / "new" / "exported")))
    assert list((tmp_path / "new" / "exported").iterdir()) == []


def test_an_export_on_a_full_disk_names_the_file(tmp_path, monkeypatch):
    model = small_model()
    shapes = shapes_of(model, "zero_shot")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(save=full))
    monkeypatch.setattr(torch.export, "save", full)
    for name, file in export_model.FILES.items():
        with pytest.raises(OSError, match="No space left on device") as caught:
            export(QueryClassifier(model, "zero_shot"), shapes, tmp_path, [name])
        assert str(caught.value.filename) == str(tmp_path / file)


def answer_with_the_documentation(folder) -> dict[str, float]:
    """Runs the program of the documentation, in a process that could not import this library or PyTorch."""
    program = block_with(ROOT / "docs/use/export.md", "python", "import onnxruntime")
    forbid = "import sys\nsys.modules['torch'] = sys.modules['modeling_clipfsar'] = None\n"
    command = [sys.executable, "-I", "-c", forbid + program]
    printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return {name: float(score) for name, score in re.findall(r"(\w): (\d\.\d+)", printed)}


@pytest.mark.whole_program
def test_the_program_of_the_documentation_answers_as_the_pipeline_and_takes_other_classes_without_a_new_export(
    exported,
):
    write_video(exported / "query.mp4", (200, 60, 30), seed=3)
    model, processor = tiny_model_and_processor(inference_mode="ensemble")
    written = (exported / "exported" / "query_classifier.onnx").read_bytes()
    for support_set, class_names in (("two", ["b", "a"]), ("three", ["c", "a", "b"])):
        run(exported, support_set, only_classes=True)
        classify = FewShotVideoClassificationPipeline(
            model, processor, support_set=str(exported / support_set), device="cpu"
        )
        expected = {answer["label"]: answer["score"] for answer in classify(str(exported / "query.mp4"))}
        answers = answer_with_the_documentation(exported)
        assert sorted(answers) == sorted(expected) == sorted(class_names)
        # two digits are printed, and its frames are resized by other code
        assert answers == pytest.approx(expected, abs=0.02)
        description = json.loads((exported / "exported" / "query_classifier.json").read_text())
        assert description["class_names"] == class_names
    assert (exported / "exported" / "query_classifier.onnx").read_bytes() == written


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, 1), (0, -1, -1, 0), (0, 0, 0, 0)])
@pytest.mark.whole_program
def test_the_program_of_the_documentation_reads_a_phones_video_upright_and_decodes_only_what_it_needs(exported, matrix):
    # 60 frames that differ above and below, left and right, and in time; key frames every 5
    rng = np.random.default_rng(1)
    with av.open(str(exported / "query.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": "bframes=2:scenecut=0:open-gop=1"})
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 64, 32, "yuv420p", 5
        for _ in range(60):
            blocks = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8).repeat(16, 0).repeat(32, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(blocks, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray((exported / "query.mp4").read_bytes())
    a, b, c, d = (value * 65536 for value in matrix)
    position = data.index(b"tkhd") + 44
    data[position : position + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (exported / "query.mp4").write_bytes(data)
    model, processor = tiny_model_and_processor(inference_mode="ensemble")
    run(exported, "three", only_classes=True)
    classify = FewShotVideoClassificationPipeline(model, processor, support_set=str(exported / "three"), device="cpu")
    expected = {answer["label"]: answer["score"] for answer in classify(str(exported / "query.mp4"))}
    assert answer_with_the_documentation(exported) == pytest.approx(expected, abs=0.02)


def test_files_hold_neither_the_text_tower_nor_paths_of_this_machine(exported):
    folder = exported / "exported"
    names = ["classes.npz", "query_classifier.json", "query_classifier.onnx", "query_classifier.pt2"]
    assert sorted(path.name for path in folder.iterdir()) == names  # each whole in itself
    kept = torch.export.load(folder / "query_classifier.pt2").state_dict
    assert any("vision_model" in name for name in kept)
    assert not any("text_model" in name for name in kept)
    with zipfile.ZipFile(folder / "query_classifier.pt2") as archive:
        written = [archive.read(name) for name in archive.namelist()]
    for data in (*written, (folder / "query_classifier.onnx").read_bytes()):
        assert str(REPOSITORY).encode() not in data
        assert sys.prefix.encode() not in data


def test_the_description_says_what_goes_in_and_how_frames_become_pixels(exported):
    description = json.loads((exported / "exported" / "query_classifier.json").read_text())
    assert {name: entry["shape"] for name, entry in description["inputs"].items()} == {
        "pixel_values": ["num_queries", 4, 3, 16, 16],
        "prototypes": ["num_classes", 4, 16],
        "class_embeds": ["num_classes", 16],
    }
    session = onnxruntime.InferenceSession(exported / "exported" / "query_classifier.onnx")
    assert {entry.name: entry.shape for entry in session.get_inputs()} == {
        name: entry["shape"] for name, entry in description["inputs"].items()
    }
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        ("logits", ["num_queries", "num_classes"])
    ]
    assert description["inference_mode"] == "ensemble"
    assert description["num_frames"] == 4
    assert description["preprocessing"]["image_processor"]["crop_size"] == {"height": 16, "width": 16}


def test_classes_are_those_of_the_support_set(exported):
    run(exported, "three", only_classes=True)
    classes = np.load(exported / "exported" / "classes.npz")
    model, _ = tiny_model_and_processor()
    support_set = SupportSet.from_pretrained(exported / "three")
    assert classes["class_names"].tolist() == ["c", "a", "b"]  # as enrolled, not sorted
    torch.testing.assert_close(torch.from_numpy(classes["prototypes"]), support_set.get_prototypes(model))
    for row, name in enumerate("cab"):
        torch.testing.assert_close(
            torch.from_numpy(classes["class_embeds"][row]), support_set.classes[name].class_embeds
        )


def test_files_of_another_export_do_not_stay_beside_the_new_ones(tmp_path, monkeypatch, capsys):
    def write(classifier, shapes, folder, formats):
        for name in formats:
            (folder / export_model.FILES[name]).write_text(name)
        if fails:
            raise ValueError("deviates")
        return dict.fromkeys(formats, (0.0, 1.0))

    fails = False

    monkeypatch.setattr(export_model, "export", write)
    model, processor = tiny_model_and_processor(inference_mode="ensemble")
    save_with_pipeline(model, processor, tmp_path / "model")
    clips = {name: [random_clip(number)] for number, name in enumerate("ab")}
    SupportSet.from_videos(model, processor, clips).save_pretrained(tmp_path / "classes")
    run(tmp_path, "classes", formats=["onnx"])
    run(tmp_path, formats=["torch"])  # the other format of the same model: all belong together
    names = {"query_classifier.onnx", "query_classifier.pt2", "query_classifier.json", "classes.npz"}
    assert {path.name for path in (tmp_path / "exported").iterdir()} == names
    description = json.loads((tmp_path / "exported" / "query_classifier.json").read_text())
    assert description["class_names"] == ["a", "b"]
    capsys.readouterr()
    fails, before = True, {path.name: path.read_bytes() for path in (tmp_path / "exported").iterdir()}
    with pytest.raises(ValueError, match="deviates"):
        run(tmp_path, formats=["torch"], inference_mode="few_shot")
    assert {path.name: path.read_bytes() for path in (tmp_path / "exported").iterdir()} == before
    fails = False
    run(tmp_path, formats=["torch"], inference_mode="few_shot")
    names -= {"query_classifier.onnx", "classes.npz"}
    assert {path.name for path in (tmp_path / "exported").iterdir()} == names
    assert "class_names" not in json.loads((tmp_path / "exported" / "query_classifier.json").read_text())
    printed = capsys.readouterr().out
    for name in ("query_classifier.onnx", "classes.npz"):
        assert f"{name} was of another export, and was removed." in printed
    assert printed.count("was of another export") == 2  # the third was replaced


def test_an_export_that_breaks_off_while_it_replaces_files_leaves_no_description_of_the_old_ones(tmp_path, monkeypatch):
    def write(classifier, shapes, folder, formats):
        assert (folder.parent, folder.name[:5]) == (tmp_path / "exported", ".new-")  # not on another disk
        (folder / "query_classifier.pt2").touch()
        return {"torch": (0.0, 1.0)}

    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(export_model, "export", write)
    save_with_pipeline(*tiny_model_and_processor(inference_mode="ensemble"), tmp_path / "model")
    run(tmp_path, formats=["torch"])
    assert (tmp_path / "exported" / "query_classifier.json").is_file()
    monkeypatch.setattr(export_model.os, "replace", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        run(tmp_path, formats=["torch"], inference_mode="few_shot")
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["query_classifier.pt2"]


def test_classes_that_were_tuned_otherwise_than_the_graph_are_refused(tmp_path, monkeypatch):
    def write(classifier, shapes, folder, formats):
        (folder / "query_classifier.onnx").touch()
        return dict.fromkeys(formats, (0.0, 1.0))

    monkeypatch.setattr(export_model, "export", write)
    model, processor = tiny_model_and_processor(inference_mode="ensemble")
    save_with_pipeline(model, processor, tmp_path / "model")
    support_set = SupportSet.from_videos(model, processor, {name: [random_clip(n)] for n, name in enumerate("ab")})
    run(tmp_path, formats=["onnx"], inference_mode="few_shot")
    support_set.save_pretrained(tmp_path / "plain")
    run(tmp_path, "plain", only_classes=True)  # the graph's mode was asked for
    before = (tmp_path / "exported" / "classes.npz").read_bytes()
    for settings in ({"inference_mode": "ensemble"}, {"alignment": "bi_mhm"}, {"ensemble_text_weight": 0.25}):
        support_set.settings = settings
        support_set.save_pretrained(tmp_path / "tuned")
        ((name, value),) = settings.items()
        with pytest.raises(ValueError, match=f"exported with {name}=.*, but the support set answers with {value!r}"):
            run(tmp_path, "tuned", only_classes=True)
    assert (tmp_path / "exported" / "classes.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"formats": ["onnx", "tflite"]}, "--formats tflite: there are onnx, torch"),
        ({"only_classes": True}, "--only_classes writes the classes of a support set: give --support_set"),
        ({"support_set": "model"}, "holds no support set"),
        ({"support_set": "two", "only_classes": True, "output_dir": "nothing"}, "holds no query_classifier.json"),
        ({"support_set": "two", "model": "other"}, "enrolled with .* but this model is"),
        ({"support_set": "of other", "model": "other", "only_classes": True}, "holds another model than"),
        ({"model": "nothing"}, "nothing"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_the_remedy(exported, options, reason):
    if not (exported / "other").exists():
        model, processor = tiny_model_and_processor()
        model.temporal_transformer.layers[0].mlp.fc1.bias.data += 1
        save_with_pipeline(model, processor, exported / "other")
        clips = {"a": random_clip(0), "b": random_clip(1)}
        SupportSet.from_videos(model, processor, clips).save_pretrained(exported / "of other")
    paths = {"model": "model", "output_dir": "exported"} | options
    for name in ("model", "output_dir", "support_set"):
        if name in paths:
            paths[name] = str(exported / paths[name])
    with pytest.raises((ValueError, OSError), match=reason):
        main(Arguments(**paths))
