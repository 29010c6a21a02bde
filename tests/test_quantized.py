"""int8 on CPUs: near float32 and told apart from it wherever features are kept; every arithmetic evaluates."""

import json
import warnings

import pytest
import torch
from accelerate import Accelerator
from golden.formula_model import formula_tensor, tiny_config, tiny_resnet_clip_config
from tiny_data import model_of_tiny_clip, random_clip, tiny_model_and_processor, video_splits, write_video_folder

from clipfsar.cli import main as clipfsar
from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.arguments import EvaluateArguments
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.evaluate_model import run
from clipfsar.evaluation.feature_store import FeatureStore
from clipfsar.inference.quantized import DTYPES, quantize_int8
from pipeline_clipfsar import save_with_pipeline
from support_set_clipfsar import SupportSet, precision_of

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`checkpoint` and `saved` splits of a few videos."""
    folder = tmp_path_factory.mktemp("quantized")
    save_with_pipeline(*tiny_model_and_processor(), folder / "checkpoint")
    video_splits(write_video_folder(folder / "videos", videos_per_class=4)).save_to_disk(folder / "saved")
    return folder


def test_int8_features_and_logits_are_near_those_of_float32_and_not_equal(tiny_model, tiny_episode):
    episode = {**tiny_episode(n_query=4), "inference_mode": "few_shot"}
    with torch.no_grad():
        expected, given = (model(**episode) for model in (tiny_model(), quantize_int8(tiny_model())))
    # a step of 1 / 127 of the largest weight and activation, in twelve layers one after the other
    error = (given.query_embeds - expected.query_embeds).norm() / expected.query_embeds.norm()
    assert 1e-4 < error < 0.05
    assert 0 < (given.logits - expected.logits).std() < 0.1 * expected.logits.std()


def test_only_linear_layers_of_the_visual_encoder_are_quantised_without_a_warning(tiny_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = quantize_int8(tiny_model())
    quantised = {
        name for name, module in model.named_modules() if type(module).__module__.endswith("dynamic.modules.linear")
    }
    encoder = "clip.vision_model.encoder.layers"
    layers = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    assert quantised == {f"{encoder}.{number}.{layer}" for number in range(2) for layer in layers}
    for name in quantised:  # a scale for each output
        weight = model.get_submodule(name).weight()
        assert len(weight.q_per_channel_scales()) == len(weight)


def test_what_cannot_be_quantised_is_refused_with_the_remedy(tiny_model):
    for model, reason in (
        (tiny_model().to("meta"), "needs a float32 model on the CPU; this model is float32 on meta"),
        (tiny_model().to(torch.bfloat16), "this model is bfloat16 on cpu. Load it in float32 on the CPU"),
        (tiny_model(tiny_config(tiny_resnet_clip_config())), "'clip_resnet' is made of convolutions: use float32"),
    ):
        with pytest.raises(ValueError, match=reason):
            quantize_int8(model)
        assert precision_of(model) != "int8"


# --- features that are kept -------------------------------------------------------------------------------------------


def test_a_support_set_knows_int8_from_float32(tmp_path):
    (model, processor), (other, _) = tiny_model_and_processor(), tiny_model_and_processor()
    quantize_int8(model)
    clips = {name: [random_clip(number)] for number, name in enumerate("abc")}
    SupportSet.from_videos(model, processor, clips).save_pretrained(tmp_path)
    support_set = SupportSet.from_pretrained(tmp_path)
    embeds = formula_tensor((2, 4, 16))
    assert support_set.classify(model, embeds).shape == (2, 3)
    with pytest.raises(ValueError, match=r"enrolled with .*, int8\), but this model is .*, float32\)"):
        support_set.classify(other, embeds)


def test_int8_of_other_weights_is_another_model():
    (model, processor), (other, _) = tiny_model_and_processor(), tiny_model_and_processor()
    other.clip.vision_model.encoder.layers[0].mlp.fc1.weight.data[0, 0] += 1
    clips = {name: [random_clip(number)] for number, name in enumerate("ab")}
    support_set = SupportSet.from_videos(quantize_int8(model), processor, clips)
    support_set.check(quantize_int8(tiny_model_and_processor()[0]), processor)
    with pytest.raises(ValueError, match="their features cannot be compared"):
        support_set.check(quantize_int8(other), processor)


def test_a_feature_store_of_another_arithmetic_is_refused(tiny_clip, processor, data, tmp_path):
    videos, accelerator = video_splits(data / "videos")["test"], Accelerator(cpu=True)
    models = {"float32": model_of_tiny_clip(tiny_clip), "int8": quantize_int8(model_of_tiny_clip(tiny_clip))}
    models["bfloat16"] = model_of_tiny_clip(tiny_clip).to(torch.bfloat16)
    encoders = {name: VideoEncoder(model, processor, accelerator) for name, model in models.items()}
    for name, encoder in encoders.items():
        manifest = FeatureStore(tmp_path, encoder).manifest(VideoSplit(videos))
        assert manifest["arithmetic"] == f"{name}, mixed precision: no"
    stored = {name: FeatureStore(tmp_path / name, encoder).encode(videos) for name, encoder in encoders.items()}
    for name in ("int8", "bfloat16"):
        assert 0 < (stored[name] - stored["float32"]).abs().max() < 0.1
        for made, now in ((name, "float32"), ("float32", name)):
            with pytest.raises(ValueError, match=f"arithmetic: {made}, mixed precision: no .now {now}"):
                FeatureStore(tmp_path / made, encoders[now]).encode(videos)


# --- programs ---------------------------------------------------------------------------------------------------------


def evaluate(data, **settings) -> list[dict]:
    defaults = {"n_way": 3, "n_shot": [1], "n_query": 2, "n_episodes": 10, "num_workers": 0}
    arguments = EvaluateArguments(model=str(data / "checkpoint"), dataset=str(data / "saved"), **defaults | settings)
    return run(arguments).to_dicts()


@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluation_runs_in_every_arithmetic(data, tmp_path, dtype):
    results = evaluate(data, dtype=dtype, feature_store=str(tmp_path))
    assert all(result["accuracy"] > 50 for result in results if result["inference_mode"] == "few_shot")
    (manifest,) = tmp_path.rglob("manifest.json")
    assert json.loads(manifest.read_text())["arithmetic"] == f"{dtype}, mixed precision: no"


def test_one_arithmetic_at_a_time(data):
    with pytest.raises(ValueError, match="--dtype int8 and --mixed_precision bf16 both set"):
        evaluate(data, dtype="int8", mixed_precision="bf16")


def test_predict_answers_in_int8_on_the_cpu_only(data, capsys):
    query = data / "videos" / "test" / "gray" / "0.mp4"
    options = [
        "--model",
        data / "checkpoint",
        "--support",
        data / "videos" / "test",
        "--query",
        query,
        "--format",
        "json",
    ]
    answers = {}
    for dtype in ("float32", "int8"):
        command = [
            str(option) for option in (*options, "--dtype", dtype, *(["--device", "cpu"] if dtype != "int8" else []))
        ]
        assert clipfsar(["predict", *command]) == 0
        (result,) = json.loads(capsys.readouterr().out)
        answers[dtype] = {answer["label"]: answer["score"] for answer in result["answer"]}
    assert answers["int8"] == pytest.approx(answers["float32"], abs=0.05)
    assert answers["int8"] != answers["float32"]
    command = [str(option) for option in (*options, "--dtype", "int8", "--device", "cuda")]
    assert clipfsar(["predict", *command]) == 2
    message = "error: --dtype int8 is for CPUs: leave --device cuda out, or use --dtype bfloat16.\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_an_unknown_precision_is_refused_with_the_choices(command, capsys):
    assert clipfsar([command, "--model", "x", "--dtype", "int4"]) == 2
    assert "choose from" in capsys.readouterr().err
