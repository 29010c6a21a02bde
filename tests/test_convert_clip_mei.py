"""The converter of CLIP-MEI's CLIP-FSAR checkpoints, on small files in its form, against a plain computation."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.formula_model import IMAGE_SIZE, RESNET_IMAGE_SIZE, tiny_clip_config, tiny_episode, tiny_resnet_clip_config
from PIL import Image
from test_convert_official_checkpoint import TEXT_CONFIG, TOWER, make_official_state, make_openai_state, make_source
from tiny_data import child_environment, random_clip, tiny_tokenizer

from clipfsar.checkpoints.arguments import ConvertArguments
from clipfsar.checkpoints.convert import main
from clipfsar.checkpoints.openai_reference import encode_image
from clipfsar.checkpoints.openai_weights import load_weights_only
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor


def make_model(kind: str) -> CLIPFSARModel:
    """A small model with a text tower for `tiny_tokenizer`; its visual tower is a ViT or a ResNet."""
    text = TEXT_CONFIG | {"vocab_size": len(tiny_tokenizer()), "max_position_embeddings": 32}
    vit = tiny_clip_config(text_config=text, vision_config=TOWER | {"num_hidden_layers": 1})
    clip_config = vit if kind == "vit" else tiny_resnet_clip_config()
    clip_config.text_config = vit.text_config
    return make_source(clip_config)


def checkpoint_of(model: CLIPFSARModel) -> dict:
    """`checkpoint_best.pt` of CLIP-MEI: weights, states of optimizer and scheduler, and an accuracy of numpy."""
    state = {key.removeprefix("head."): value for key, value in make_official_state(model).items()}
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight], lr=2e-6)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[5])
    weight.grad = torch.ones(2)
    optimizer.step()
    scheduler.step()
    return {
        "iteration": 3000,
        "model_state_dict": state,
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "acc": np.float64(91.3),
    }


@pytest.fixture
def convert(tmp_path):
    """Writes a checkpoint and the CLIP of a model, converts them and returns the output folder."""

    def run(checkpoint: dict, model: CLIPFSARModel, **arguments):
        torch.save(checkpoint, tmp_path / "checkpoint_best.pt")
        torch.save(make_openai_state(model), tmp_path / "clip.pt")
        tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
        paths = {name: str(tmp_path / name) for name in ("tokenizer", "output_dir")}
        paths |= {"checkpoint": str(tmp_path / "checkpoint_best.pt"), "clip_checkpoint": str(tmp_path / "clip.pt")}
        main(ConvertArguments(**paths | arguments))
        return tmp_path / "output_dir"

    return run


def temporal_transformer(state: dict, x: torch.Tensor) -> torch.Tensor:
    """Two layers on (batch, length, size), from the names of the file alone."""
    for number in range(2):
        layer = {key.removeprefix(f"context2.layers.{number}."): value for key, value in state.items()}
        y = F.layer_norm(x, x.shape[-1:], layer["0.norm.weight"], layer["0.norm.bias"])
        q, k, v = ((y @ layer[f"0.fn.to_{letter}.weight"].T).unflatten(-1, (8, -1)).transpose(1, 2) for letter in "qkv")
        attended = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        attended = attended.transpose(1, 2).flatten(2)
        x = attended @ layer["0.fn.to_out.0.weight"].T + layer["0.fn.to_out.0.bias"] + x
        hidden = F.gelu(x @ layer["1.net.0.weight"].T + layer["1.net.0.bias"])
        x = hidden @ layer["1.net.3.weight"].T + layer["1.net.3.bias"] + x
    return x


def otam(distances: list[list[float]]) -> float:
    """One direction of OTAM, cell by cell, soft minimum with temperature 0.5."""

    def soft_minimum(*values: float) -> float:
        return -0.5 * math.log(sum(math.exp(-value / 0.5) for value in values))

    rows = [[0.0, *row, 0.0] for row in distances]
    cost = [np.cumsum(rows[0]).tolist()]
    for row in rows[1:]:
        above, current = cost[-1], [0.0]
        for m in range(1, len(row)):
            ways = [above[m - 1], current[m - 1]]
            ways += [above[m]] if m in (1, len(row) - 1) else []
            current.append(row[m] + soft_minimum(*ways))
        cost.append(current)
    return cost[-1][-1]


def plain_logits(state: dict, inputs: dict, class_embeds: torch.Tensor) -> torch.Tensor:
    """Logits (queries, classes) of one episode as CLIP-MEI's program computes them: modulation, then the mean."""
    visual = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    videos = {}
    for role in ("support", "query"):
        pixels = inputs[f"{role}_pixel_values"][0]
        videos[role] = encode_image(visual, pixels.flatten(0, 1), "quick_gelu").unflatten(0, pixels.shape[:2])
    labels = inputs["support_labels"][0]
    with_text = torch.cat([videos["support"], class_embeds[labels][:, None]], dim=1)
    support = temporal_transformer(state, with_text)[:, :-1]
    query = temporal_transformer(state, videos["query"])
    logits = torch.zeros(len(query), len(class_embeds))
    for label in range(len(class_embeds)):
        prototype = support[labels == label].mean(0)
        for row, frames in enumerate(query):
            norms = frames.norm(dim=-1)[:, None] * prototype.norm(dim=-1) + 0.01
            distances = 1 - frames @ prototype.T / norms
            logits[row, label] = -otam(distances.tolist()) - otam(distances.T.tolist())
    return logits


@pytest.mark.parametrize(("kind", "image_size"), [("vit", IMAGE_SIZE), ("resnet", RESNET_IMAGE_SIZE)])
@torch.no_grad()
def test_converted_checkpoint_answers_as_a_plain_computation(kind, image_size, convert, capsys):
    source = make_model(kind)
    checkpoint = checkpoint_of(source)
    model = CLIPFSARModel.from_pretrained(convert(checkpoint, source, num_frames=4))
    inputs = tiny_episode(n_shot=2, image_size=image_size)
    class_embeds = model.get_class_features(inputs["class_input_ids"])[0]
    expected = plain_logits(checkpoint["model_state_dict"], inputs, class_embeds)
    torch.testing.assert_close(model(**inputs).logits[0], expected, rtol=1e-4, atol=1e-4)
    assert model.config.support_pooling == "after"
    assert "checkpoint_best.pt was written by CLIP-MEI." in capsys.readouterr().out


def test_support_pooling_can_be_asked_for(convert):
    source = make_model("vit")
    folder = convert(checkpoint_of(source), source, support_pooling="before")
    assert CLIPFSARModel.from_pretrained(folder).config.support_pooling == "before"


def test_saved_processor_prepares_frames_as_clip_mei_tests(convert):
    source = make_model("vit")
    processor = CLIPFSARProcessor.from_pretrained(convert(checkpoint_of(source), source, num_frames=4))
    assert (processor.frame_sampling, processor.image_processor.do_normalize) == ("linspace", False)
    frames = np.random.default_rng(0).integers(0, 256, (12, 48, 60, 3), dtype=np.uint8)
    resized = [Image.fromarray(frames[i]).resize((22, 18), Image.Resampling.BILINEAR) for i in (1, 4, 7, 10)]
    expected = np.stack([np.asarray(image)[1:17, 3:19] for image in resized]) / 255
    pixels = processor.process_videos([frames])[0].permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels - expected).max() < 1.01 / 255  # one grey level


@pytest.mark.parametrize(
    ("weight", "model"),
    [
        ("token_tr.mlp.net.0.weight", "CLIP-MEI itself"),
        ("class_token_motion", "CLIP-CPM2C"),
        ("mapm.layers.0.0.norm.weight", "STEN"),
        ("resnet.0.weight", r"a model on torchvision's ResNet \(TRX,"),
        ("backbone.0.weight", r"a model on torchvision's ResNet \(OTAM or"),
    ],
)
def test_checkpoints_of_other_models_are_refused_by_name(weight, model, convert):
    source = make_model("vit")
    checkpoint = checkpoint_of(source)
    checkpoint["model_state_dict"][weight] = torch.zeros(2)
    with pytest.raises(ValueError, match=rf"checkpoint_best.pt is of {model}.*, not of CLIP-FSAR: .* {weight}"):
        convert(checkpoint, source)


def test_missing_weight_is_named_as_in_the_file(convert):
    source = make_model("vit")
    checkpoint = checkpoint_of(source)
    del checkpoint["model_state_dict"]["scale"]
    with pytest.raises(ValueError, match=r"Weights missing: scale\."):
        convert(checkpoint, source)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(91.3), np.int64(-7), np.bool_(True)])
def test_numbers_of_numpy_become_plain_ones(value, tmp_path):
    torch.save({"acc": value}, tmp_path / "file.pt")
    loaded = load_weights_only(tmp_path / "file.pt")["acc"]
    assert loaded == value.item()
    assert type(loaded) is type(value.item())


class ObjectOfNumpy:
    def __reduce__(self):
        return np.float64(0).__reduce__()[0], (np.dtype("O"), 1)


def test_other_values_of_numpy_are_refused(tmp_path):
    torch.save({"acc": ObjectOfNumpy()}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"file\.pt was not read, because it is no file of weights and plain values"):
        load_weights_only(tmp_path / "file.pt")


@pytest.mark.whole_program
def test_converted_checkpoint_answers_a_clip_in_a_fresh_process(convert, tmp_path):
    source = make_model("resnet")
    folder = convert(checkpoint_of(source), source)
    np.savez(tmp_path / "clips.npz", red=random_clip(0), blue=random_clip(1))
    program = f"""
import numpy as np
from transformers import pipeline
clips = np.load({str(tmp_path / "clips.npz")!r})
classify = pipeline("few-shot-video-classification", model={str(folder)!r}, trust_remote_code=True)
classify.enroll({{"red": [clips["red"]], "blue": [clips["blue"]]}})
print(classify(clips["blue"])[0]["label"])
"""
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=child_environment()
    )
    assert child.stdout.split()[-1:] == ["blue"], child.stderr
