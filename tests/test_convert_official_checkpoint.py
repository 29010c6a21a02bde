"""The converter of official checkpoints, on a checkpoint made by renaming a small model's weights back."""

import pytest
import torch
from golden.formula_model import fill_by_formula, tiny_clip_config, tiny_config, tiny_episode
from transformers import CLIPImageProcessor, CLIPTokenizer

from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor
from train.convert_official_checkpoint import Arguments, load_clip, main

WIDTH = 64  # a head of OpenAI's models is 64 wide, so this is one head


@pytest.fixture(scope="module")
def source():
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 1}
    clip_config = tiny_clip_config(
        text_config=tower | {"num_hidden_layers": 1}, vision_config=tower | {"num_hidden_layers": 2}
    )
    # 8 heads: the official number, which is not in a checkpoint.
    config = tiny_config(clip_config, temporal_num_heads=8, temporal_num_layers=2)
    model = CLIPFSARModel(config).eval()
    fill_by_formula(model)
    return model


def openai_blocks(state, tower):
    """Blocks of one tower, OpenAI's names: q, k and v stacked in one matrix."""
    renamed = {}
    for layer in range(len({key.split(".")[3] for key in state if key.startswith(f"{tower}.encoder.layers.")})):
        theirs, block = f"{tower}.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            thirds = [state[f"{theirs}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            renamed[f"{block}.attn.in_proj_{kind}"] = torch.cat(thirds)
            renamed[f"{block}.attn.out_proj.{kind}"] = state[f"{theirs}.self_attn.out_proj.{kind}"]
            renamed[f"{block}.ln_1.{kind}"] = state[f"{theirs}.layer_norm1.{kind}"]
            renamed[f"{block}.ln_2.{kind}"] = state[f"{theirs}.layer_norm2.{kind}"]
            renamed[f"{block}.mlp.c_fc.{kind}"] = state[f"{theirs}.mlp.fc1.{kind}"]
            renamed[f"{block}.mlp.c_proj.{kind}"] = state[f"{theirs}.mlp.fc2.{kind}"]
    return renamed


def openai_visual_state(model):
    state = model.clip.state_dict()
    return openai_blocks(state, "vision_model") | {
        "class_embedding": state["vision_model.embeddings.class_embedding"],
        "positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "ln_pre.weight": state["vision_model.pre_layrnorm.weight"],
        "ln_pre.bias": state["vision_model.pre_layrnorm.bias"],
        "ln_post.weight": state["vision_model.post_layernorm.weight"],
        "ln_post.bias": state["vision_model.post_layernorm.bias"],
        "proj": state["visual_projection.weight"].T.contiguous(),
    }


@pytest.fixture
def openai_state(source):
    """State dict of a CLIP in OpenAI's naming, whose visual tower is *not* the trained one."""
    state = source.clip.state_dict()
    visual = {f"visual.{key}": torch.zeros_like(value) for key, value in openai_visual_state(source).items()}
    text = openai_blocks(state, "text_model") | {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": state["text_model.final_layer_norm.weight"],
        "ln_final.bias": state["text_model.final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": state["logit_scale"],
    }
    sizes = {"input_resolution": torch.tensor(16), "context_length": torch.tensor(8), "vocab_size": torch.tensor(50)}
    return visual | text | sizes


@pytest.fixture
def official_state(source):
    """`model_state` of the official program's checkpoint."""
    renamed = {"head.scale": source.video_text_scale.detach()}
    renamed |= {f"head.backbone.{key}": value for key, value in openai_visual_state(source).items()}
    for number, layer in enumerate(source.temporal_transformer.layers):
        prefix = f"head.context2.layers.{number}"
        parts = {
            f"{prefix}.0.norm": layer.attention.norm,
            f"{prefix}.0.fn.to_q": layer.attention.q_proj,
            f"{prefix}.0.fn.to_k": layer.attention.k_proj,
            f"{prefix}.0.fn.to_v": layer.attention.v_proj,
            f"{prefix}.0.fn.to_out.0": layer.attention.out_proj,
            f"{prefix}.1.net.0": layer.mlp.fc1,
            f"{prefix}.1.net.3": layer.mlp.fc2,
        }
        for name, module in parts.items():
            renamed |= {f"{name}.{kind}": value for kind, value in module.state_dict().items()}
    return renamed


@pytest.fixture
def convert(tmp_path, openai_state):
    """Runs the command with a `model_state` (or anything else as the file's content) and returns the output folder."""

    def run(model_state=None, content=None, clip_state=openai_state, **arguments):
        content = {"epoch": 1, "model_state": model_state, "optimizer_state": {}, "cfg": "TRAIN: {}"} | (content or {})
        torch.save({key: value for key, value in content.items() if value is not None}, tmp_path / "official.pyth")
        torch.save(clip_state, tmp_path / "clip.pt")
        paths = {
            "checkpoint": str(tmp_path / "official.pyth"),
            "clip_checkpoint": str(tmp_path / "clip.pt"),
            "output_dir": str(tmp_path / "converted"),
        }
        main(Arguments(**paths | arguments))
        return tmp_path / "converted"

    return run


@torch.no_grad()
def test_converted_checkpoint_gives_the_bits_of_the_model_it_was_made_of(source, official_state, convert, capsys):
    folder = convert(official_state, num_frames=4)
    model = CLIPFSARModel.from_pretrained(folder)
    inputs = tiny_episode(n_shot=2)
    for mode in ("few_shot", "zero_shot", "ensemble"):
        expected = source(**inputs, inference_mode=mode).logits
        assert torch.equal(model(**inputs, inference_mode=mode).logits, expected)
    assert model.config.num_frames == 4
    assert model.config.temporal_num_layers == 2
    assert model.config.temporal_intermediate_size == 32
    assert model.clip.logit_scale == source.clip.logit_scale
    assert f"{source.num_parameters():,} parameters, 2 temporal layer(s)" in capsys.readouterr().out


@torch.no_grad()
def test_half_precision_weights_of_openai_become_float32(source, official_state, openai_state, convert):
    half = {key: value.half() if value.is_floating_point() else value for key, value in openai_state.items()}
    model = CLIPFSARModel.from_pretrained(convert(official_state, clip_state=half))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    tokens = tiny_episode()["class_input_ids"]
    torch.testing.assert_close(model.get_class_features(tokens), source.get_class_features(tokens), rtol=0, atol=0.02)


def test_text_tower_may_come_from_a_hugging_face_folder_with_its_tokenizer(source, official_state, convert, tmp_path):
    clip_folder = tmp_path / "hf_clip"
    source.clip.save_pretrained(clip_folder)
    vocabulary = {token: number for number, token in enumerate([*"abc", "a</w>", "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(clip_folder)
    folder = convert(official_state, clip_checkpoint=str(clip_folder), num_frames=4)
    model = CLIPFSARModel.from_pretrained(folder)
    for name, weight in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    processor = CLIPFSARProcessor.from_pretrained(folder)
    assert (processor.num_frames, processor.preprocessing) == (4, "official")
    assert isinstance(processor.image_processor, CLIPImageProcessor)
    assert processor.image_processor.crop_size["height"] == 16


def test_without_a_tokenizer_the_model_is_saved_alone_and_the_program_says_so(official_state, convert, capsys):
    folder = convert(official_state)
    assert not (folder / "processor_config.json").exists()
    assert "No tokenizer was given (--tokenizer)" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TorchScript archive")  # what OpenAI published
def test_openai_torchscript_archive_is_read(source, openai_state, tmp_path):
    archive = torch.nn.Module()
    for name, value in openai_state.items():
        *parents, last = name.split(".")
        module = archive
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        module.register_buffer(last, value)
    torch.jit.save(torch.jit.script(archive), tmp_path / "clip.pt")
    clip = load_clip(str(tmp_path / "clip.pt"))
    for name, weight in source.clip.text_model.state_dict().items():
        assert torch.equal(clip.text_model.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("head.context2.layers.1.0.fn.to_q.weight", r"missing: temporal_transformer\.layers\.1\.attention\.q_proj"),
        ("head.context2.layers.0.1.net.0.weight", "missing"),
        ("head.backbone.ln_post.weight", r"missing: .*post_layernorm\.weight"),
        ("head.backbone.transformer.resblocks.1.attn.in_proj_weight", r"missing: .*layers\.1\.self_attn\.k_proj"),
        ("head.scale", "head.scale is missing"),
    ],
)
def test_missing_weight_is_named(official_state, convert, key, message):
    del official_state[key]
    with pytest.raises(ValueError, match=message):
        convert(official_state)


def test_checkpoint_without_a_temporal_transformer_is_refused(official_state, convert):
    state = {key: value for key, value in official_state.items() if "context2" not in key}
    with pytest.raises(ValueError, match=r"temporal transformer|context2"):
        convert(state)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("head.unknown.weight", "weights without a place: head.unknown.weight"),
        ("backbone.conv1.weight", "weights without a place: backbone.conv1.weight"),
        ("head.backbone.ln_extra.weight", "OpenAI's vision_model without a place in CLIPModel: ln_extra.weight"),
        ("head.context2.layers.0.2.weight", "temporal transformer without a place in ours: layers.0.2.weight"),
        ("head.backbone.transformer.resblocks.7.ln_1.weight", r"unexpected: .*layers\.7\.layer_norm1"),
    ],
)
def test_unexpected_weight_is_named(official_state, convert, key, message):
    with pytest.raises(ValueError, match=message):
        convert(official_state | {key: torch.zeros(2)})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("head.context2.layers.0.0.fn.to_q.weight", r"of another shape: .*layers\.0\.attention\.q_proj\.weight"),
        ("head.backbone.ln_pre.bias", r"of another shape: .*pre_layrnorm\.bias"),
    ],
)
def test_weight_of_another_shape_is_named(official_state, convert, key, message):
    official_state[key] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=message):
        convert(official_state)


def test_file_of_something_else_is_refused(convert):
    with pytest.raises(
        ValueError, match=r"official\.pyth is not a checkpoint of the official program: .*'model_state'"
    ):
        convert(content={"state_dict": {}})


def test_missing_file_is_named(convert, official_state, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--checkpoint .*nowhere\.pyth: there is no such file"):
        convert(official_state, checkpoint=str(tmp_path / "nowhere.pyth"))


def test_resnet_towers_are_refused(official_state, openai_state, convert):
    resnet = {"head.backbone.layer1.0.conv1.weight": torch.zeros(8, 8, 1, 1), "head.scale": torch.ones(1)}
    with pytest.raises(ValueError, match="no ViT visual tower; ResNet towers are not supported"):
        convert(resnet)
    text_only = {key: value for key, value in openai_state.items() if not key.startswith("visual.")}
    resnet_clip = text_only | {"visual.conv1.weight": torch.zeros(8, 3, 3, 3)}
    with pytest.raises(ValueError, match="ResNet towers are not supported"):
        convert(official_state, clip_state=resnet_clip)
