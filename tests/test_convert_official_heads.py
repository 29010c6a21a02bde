"""The converter of official checkpoints with the heads TRX, HyRSM and HyRSM++, on small files in their form."""

import itertools
import re

import pytest
import torch
from golden import official_heads as recordings
from golden.formula_model import fill_by_formula, tiny_clip_config, tiny_config, tiny_episode
from safetensors.torch import load_file
from test_convert_official_checkpoint import (
    TEXT_CONFIG,
    TOWER,
    make_official_state,
    make_openai_state,
    openai_visual_state,
)
from tiny_data import random_clip, tiny_tokenizer
from transformers import pipeline

from clipfsar import load_model
from clipfsar.checkpoints.arguments import ConvertArguments
from clipfsar.checkpoints.convert import main
from clipfsar.checkpoints.official_heads import head_weights, official_head_weights
from modeling_clipfsar import CLIPFSARModel

RECORDED = load_file(recordings.GOLDEN_FILE)
SETTINGS = {"trx": "{}", "hyrsm_plusplus_5shot": "TRAIN: {HEAD: 4, POSITION_A: 10, POSITION_B: 1.0}"}  # as recorded


def source_model(projection_dim: int, text: dict | None = None, **settings) -> CLIPFSARModel:
    """A small CLIP-FSAR model with 8 attention heads, the official number."""
    towers = {"text_config": TEXT_CONFIG | (text or {}), "vision_config": TOWER | {"num_hidden_layers": 1}}
    clip_config = tiny_clip_config(**towers, projection_dim=projection_dim)
    model = CLIPFSARModel(tiny_config(clip_config, **{"temporal_num_heads": 8} | settings)).eval()
    fill_by_formula(model)
    return model


def recorded_part(name: str, part: str) -> dict[str, torch.Tensor]:
    prefix = f"{name}/{part}/"
    return {key.removeprefix(prefix): value for key, value in RECORDED.items() if key.startswith(prefix)}


def tuples_of_frames(num_frames: int) -> dict[str, torch.Tensor]:
    """The official TRX keeps the tuples of frame numbers among its weights."""
    return {
        f"head.transformers.{number}.tuples.{place}": torch.tensor(frames)
        for number, size in enumerate((2, 3))
        for place, frames in enumerate(itertools.combinations(range(num_frames), size))
    }


def plain_state(model: CLIPFSARModel, name: str) -> dict[str, torch.Tensor]:
    """`model_state` of a recorded head on the visual tower of a model: no temporal transformer, no scale."""
    state = {f"head.backbone.{key}": value for key, value in openai_visual_state(model).items()}
    state |= {f"head.{key}": value for key, value in recorded_part(name, "weights").items()}
    return state | (tuples_of_frames(8) if name == "trx" else {})


def file_of(state: dict, cfg: str | None) -> dict:
    """An official checkpoint, with the state of an optimizer that has made a step."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    return {"epoch": 1, "model_state": state, "optimizer_state": optimizer.state_dict(), "cfg": cfg}


@pytest.fixture
def convert(tmp_path):
    """Writes a checkpoint and the CLIP of a model, converts them and returns the output folder."""

    def run(state: dict, model: CLIPFSARModel, cfg: str | None = "{}", **arguments):
        torch.save(file_of(state, cfg), tmp_path / "official.pyth")
        torch.save(make_openai_state(model), tmp_path / "clip.pt")
        paths = {"checkpoint": str(tmp_path / "official.pyth"), "clip_checkpoint": str(tmp_path / "clip.pt")}
        main(ConvertArguments(**paths | {"output_dir": str(tmp_path / "converted")} | arguments))
        return tmp_path / "converted"

    return run


@pytest.mark.parametrize("name", recordings.IN_GOLDEN_FILE)
def test_a_converted_head_gives_the_logits_that_the_official_program_recorded(name, convert):
    source = source_model(32)
    model = CLIPFSARModel.from_pretrained(convert(plain_state(source, name), source, SETTINGS[name]))
    assert (model.config.alignment, model.config.num_frames) == (name.split("_")[0], 8)
    assert (model.config.temporal_num_layers, model.config.prototype_modulation) == (0, False)
    shots = [key.split("/")[1] for key in RECORDED if re.fullmatch(rf"{name}/\d+shot/query", key)]
    assert shots
    for shot in shots:
        episode = recorded_part(name, shot)
        labels = episode["support_labels"].unsqueeze(0)
        support = model.get_support_states(episode["support"].unsqueeze(0), labels)
        with torch.no_grad():
            distances = model.get_distances(model.get_query_states(episode["query"].unsqueeze(0)), support, labels)
        assert torch.allclose(-distances[0], episode["logits"], rtol=5e-6, atol=5e-6), shot


@pytest.mark.parametrize("alignment", ["trx", "hyrsm"])
def test_a_head_inside_clip_fsar_is_converted_bit_by_bit_and_back(alignment, convert, tmp_path):
    source = source_model(16, alignment=alignment, trx_size=24, num_base_classes=3, temporal_num_layers=2)
    head = official_head_weights(alignment, source.comparison_head.state_dict())
    state = make_official_state(source) | {f"head.{key}": value for key, value in head.items()}
    folder = convert(state, source, num_frames=4)
    model = CLIPFSARModel.from_pretrained(folder)
    inputs = tiny_episode(n_shot=2)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, source(**inputs).logits)
    main(ConvertArguments(model=str(folder), checkpoint=str(tmp_path / "back.pyth")))
    back = torch.load(tmp_path / "back.pyth", weights_only=True)["model_state"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("name", recordings.IN_GOLDEN_FILE)
def test_names_of_heads_there_and_back(name):
    head, official = name.split("_")[0], recorded_part(name, "weights")
    back = official_head_weights(head, head_weights(head, official))
    assert {key for key in official if not re.search(r"norm_v|pe\.pe", key)} == back.keys()
    assert all(torch.equal(back[key], official[key]) for key in back)


def test_a_converted_head_answers_a_clip_with_its_processor(convert, tmp_path):
    source = source_model(32, text={"vocab_size": len(tiny_tokenizer()), "max_position_embeddings": 32})
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    folder = convert(plain_state(source, "trx"), source, tokenizer=str(tmp_path / "tokenizer"))
    model, processor = load_model(str(folder))
    clips = {"boxing": [random_clip(0), random_clip(1)], "diving": [random_clip(2)]}
    classify = pipeline("few-shot-video-classification", model=model, processor=processor, device="cpu")
    answers = classify(random_clip(2), support_set=clips)
    assert answers[0]["label"] == "diving"
    assert processor.preprocessing == "official"


def test_a_resnet_of_imagenet_is_refused_by_name(convert):
    source = source_model(32)
    state = {f"head.{key}": value for key, value in recorded_part("trx", "weights").items()}
    with pytest.raises(ValueError, match=r"torchvision's ResNet as its backbone \(a weight head.backbone.4.0.conv1"):
        convert(state | {"head.backbone.4.0.conv1.weight": torch.zeros(4, 4, 1, 1)}, source)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            "TRAIN: {POSITION_A: 2048, POSITION_B: 0.1}",
            "another position code, POSITION_A: 2048, POSITION_B: 0.1.",
        ),
        ("TRAIN: {NO_POSITION: true}", "another position code, NO_POSITION"),
        ("TRAIN: {", "'cfg' is not YAML text"),
    ],
)
def test_another_position_code_of_hyrsm_is_refused(cfg, message, convert):
    source = source_model(32)
    with pytest.raises(ValueError, match=message):
        convert(plain_state(source, "hyrsm_plusplus_5shot"), source, cfg)


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("trx", "head.transformers.1.norm_k.bias", "Weights missing: head.transformers.1.norm_k.bias"),
        ("trx", "head.transformers.0.k_linear.weight", "missing: head.transformers.0.k_linear"),
        ("hyrsm_plusplus_5shot", "head.temporal_atte.w_ks.weight", "Weights missing: head.temporal_atte.w_ks.weight"),
    ],
)
def test_a_missing_weight_of_a_head_is_named(name, key, message, convert):
    source = source_model(32)
    state = plain_state(source, name)
    del state[key]
    with pytest.raises(ValueError, match=message):
        convert(state, source, SETTINGS[name])


def test_an_unknown_weight_beside_a_head_is_named(convert):
    source = source_model(32)
    with pytest.raises(ValueError, match="'class_token' is not a weight of the official trx head"):
        convert(plain_state(source, "trx") | {"head.class_token": torch.zeros(1)}, source)


def test_another_number_of_frames_than_the_tuples_have_is_refused(convert):
    source = source_model(32)
    with pytest.raises(ValueError, match="was trained with 8 frames per video, not 16: give --num_frames 8"):
        convert(plain_state(source, "trx"), source, num_frames=16)


def test_a_head_that_the_official_program_has_not_is_not_written(tmp_path):
    source_model(16, alignment="chamfer").save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="has the head 'chamfer'"):
        main(ConvertArguments(model=str(tmp_path / "ours"), checkpoint=str(tmp_path / "back.pyth")))
