"""The converter of official checkpoints, on a checkpoint made by renaming a small model's weights back."""

import pytest
import torch
from golden.formula_model import (
    IMAGE_SIZE,
    RESNET_IMAGE_SIZE,
    fill_by_formula,
    tiny_clip_config,
    tiny_config,
    tiny_episode,
    tiny_resnet_clip_config,
)
from transformers import CLIPImageProcessor, CLIPTokenizer

from clipfsar.checkpoints.arguments import ConvertArguments as Arguments
from clipfsar.checkpoints.convert import main
from clipfsar.checkpoints.convert_official import convert_official_checkpoint
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

WIDTH = 64  # a head of OpenAI's models is 64 wide, so this is one head


def make_source(clip_config) -> CLIPFSARModel:
    # 8 heads: the official number, which is not in a checkpoint.
    model = CLIPFSARModel(tiny_config(clip_config, temporal_num_heads=8, temporal_num_layers=2)).eval()
    fill_by_formula(model)
    return model


TOWER = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 1}
TEXT_CONFIG = TOWER | {"num_hidden_layers": 1}


@pytest.fixture(scope="module")
def source():
    return make_source(tiny_clip_config(text_config=TEXT_CONFIG, vision_config=TOWER | {"num_hidden_layers": 2}))


@pytest.fixture(scope="module")
def resnet_source():
    clip_config = tiny_resnet_clip_config()
    clip_config.text_config = tiny_clip_config(text_config=TEXT_CONFIG).text_config
    return make_source(clip_config)


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
    if model.config.clip_config.model_type == "clip_resnet":
        return {key.removeprefix("vision_model."): state[key] for key in state if key.startswith("vision_model.")}
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


def make_openai_state(source):
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


def make_official_state(source):
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
def openai_state(source):
    return make_openai_state(source)


@pytest.fixture
def official_state(source):
    return make_official_state(source)


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


@pytest.mark.parametrize(("tower", "image_size"), [("source", IMAGE_SIZE), ("resnet_source", RESNET_IMAGE_SIZE)])
@torch.no_grad()
def test_converted_checkpoint_gives_the_bits_of_the_model_it_was_made_of(tower, image_size, convert, request, capsys):
    source = request.getfixturevalue(tower)
    folder = convert(make_official_state(source), clip_state=make_openai_state(source), num_frames=4)
    model = CLIPFSARModel.from_pretrained(folder)
    inputs = tiny_episode(n_shot=2, image_size=image_size)
    for mode in ("few_shot", "zero_shot", "ensemble"):
        expected = source(**inputs, inference_mode=mode).logits
        assert torch.equal(model(**inputs, inference_mode=mode).logits, expected)
    for name, weight in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert model.config.num_frames == 4
    assert model.config.temporal_num_layers == 2
    assert model.config.temporal_intermediate_size == 32
    assert f"{source.num_parameters():,} parameters, 2 temporal layer(s)" in capsys.readouterr().out


def test_every_weight_is_reported_and_the_features_are_checked(official_state, convert, capsys):
    convert(official_state)
    printed = capsys.readouterr().out
    assert "head.backbone.proj -> clip.visual_projection.weight (16, 64)" in printed
    third = "head.backbone.transformer.resblocks.1.attn.in_proj_bias (value)"
    assert f"{third} -> clip.vision_model.encoder.layers.1.self_attn.v_proj.bias (64,)" in printed
    assert "head.context2.layers.1.1.net.3.bias -> temporal_transformer.layers.1.mlp.fc2.bias (16,)" in printed
    assert "Image features of a test input agree with a plain computation: largest relative deviation" in printed
    assert "Text features of a test input agree" in printed


@pytest.mark.parametrize("tower", ["source", "resnet_source"])
def test_there_and_back_gives_the_same_checkpoint(tower, convert, request, tmp_path):
    source = request.getfixturevalue(tower)
    state = make_official_state(source)
    folder = convert(state, clip_state=make_openai_state(source))
    main(Arguments(checkpoint=str(tmp_path / "back.pyth"), model=str(folder)))
    back = torch.load(tmp_path / "back.pyth", weights_only=True)
    assert back.keys() == {"epoch", "model_state", "optimizer_state", "cfg"}
    assert back["model_state"].keys() == state.keys()
    for key, weight in state.items():
        assert torch.equal(back["model_state"][key], weight), key


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temporal_num_heads": 2}, "has temporal_num_heads=2 instead of 8"),
        ({"temporal_num_layers": 0}, "has no temporal layers"),
    ],
)
def test_model_that_the_official_program_does_not_have_is_not_written(fields, message, tmp_path):
    settings = {"temporal_num_heads": 8} | fields
    CLIPFSARModel(tiny_config(**settings)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        main(Arguments(checkpoint=str(tmp_path / "back.pyth"), model=str(tmp_path / "ours")))
    assert not (tmp_path / "back.pyth").exists()


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


def test_text_tower_may_come_from_a_resnet_folder_of_ours(resnet_source, convert, tmp_path):
    resnet_source.save_pretrained(tmp_path / "ours")
    CLIPTokenizer(vocab={"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, merges=[]).save_pretrained(
        tmp_path / "ours"
    )
    folder = convert(make_official_state(resnet_source), clip_checkpoint=str(tmp_path / "ours"))
    model = CLIPFSARModel.from_pretrained(folder)
    for name, weight in resnet_source.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert CLIPFSARProcessor.from_pretrained(folder).image_processor.crop_size["height"] == RESNET_IMAGE_SIZE


def test_without_a_tokenizer_the_model_is_saved_alone_and_the_program_says_so(official_state, convert, capsys):
    folder = convert(official_state)
    assert not (folder / "processor_config.json").exists()
    assert "No tokenizer was given (--tokenizer)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("head.context2.layers.1.0.fn.to_q.weight", r"missing: head\.context2\.layers\.1\.0\.fn\.to_q\.weight"),
        ("head.context2.layers.0.1.net.0.weight", "net.0.weight of the temporal transformer is missing"),
        ("head.backbone.ln_post.weight", r"missing: head\.backbone\.ln_post\.weight"),
        ("head.backbone.conv1.weight", "Weight conv1.weight is missing; the sizes"),
        ("head.backbone.transformer.resblocks.1.attn.in_proj_weight", r"missing: .*resblocks\.1\.attn\.in_proj_weight"),
        ("head.scale", "missing: head.scale"),
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
        ("head.unknown.weight", "unexpected: head.unknown.weight"),
        ("backbone.conv1.weight", "unexpected: backbone.conv1.weight"),
        ("head.backbone.ln_extra.weight", "unexpected: head.backbone.ln_extra.weight"),
        ("head.context2.layers.0.2.weight", "unexpected: head.context2.layers.0.2.weight"),
        ("head.backbone.transformer.resblocks.7.ln_1.weight", r"unexpected: .*resblocks\.7\.ln_1\.weight"),
    ],
)
def test_unexpected_weight_is_named(official_state, convert, key, message):
    with pytest.raises(ValueError, match=message):
        convert(official_state | {key: torch.zeros(2)})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("head.context2.layers.0.0.fn.to_q.weight", r"of another shape: head\.context2\.layers\.0\.0\.fn\.to_q"),
        ("head.backbone.ln_pre.bias", r"of another shape: head\.backbone\.ln_pre\.bias"),
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


def test_checkpoint_without_a_visual_tower_is_refused(official_state, convert):
    state = {key: value for key, value in official_state.items() if "backbone" not in key}
    with pytest.raises(ValueError, match="no visual tower of CLIP: neither a ViT's class_embedding nor a ResNet's"):
        convert(state)


def test_text_tower_of_a_clip_of_another_size_is_refused(official_state, resnet_source, convert):
    clip_state = make_openai_state(resnet_source)
    clip_state["text_projection"] = torch.zeros(WIDTH, 32)
    clip_state["visual.attnpool.c_proj.weight"] = torch.zeros(32, 128)
    clip_state["visual.attnpool.c_proj.bias"] = torch.zeros(32)
    with pytest.raises(ValueError, match=r"gives features of size 16, but the text tower of .*clip\.pt of size 32"):
        convert(official_state, clip_state=clip_state)


def test_hostile_checkpoint_is_refused_before_it_runs(tmp_path, openai_state):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "it_ran"), "w"))

    torch.save({"model_state": {"head.scale": Hostile()}}, tmp_path / "hostile.pyth")
    torch.save(openai_state, tmp_path / "clip.pt")
    paths = {"clip_checkpoint": str(tmp_path / "clip.pt"), "output_dir": str(tmp_path / "converted")}
    with pytest.raises(ValueError, match=r"hostile\.pyth was not read, because it is no file of weights and plain val"):
        main(Arguments(checkpoint=str(tmp_path / "hostile.pyth"), **paths))
    assert not (tmp_path / "it_ran").exists()


def test_program_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="are needed; --clip_checkpoint and --output_dir are missing"):
        main(Arguments(checkpoint=str(tmp_path / "official.pyth")))


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    kept = tmp_path / "official.pyth"
    kept.write_bytes(b"the only copy")
    with pytest.raises(ValueError, match=r"official.pyth is there already: name a new file"):
        main(Arguments(checkpoint=str(kept), model="anything"))
    assert kept.read_bytes() == b"the only copy"


def test_text_is_no_checkpoint(tmp_path):
    (tmp_path / "text.pyth").write_text("hello")
    with pytest.raises(ValueError, match=r"text.pyth was not read, because it is no file of weights"):
        convert_official_checkpoint(tmp_path / "text.pyth", "anything")
