"""CLIP weights under OpenAI's names: the files they come in, and what is refused."""

import pickle
import zipfile

import pytest
import torch
from golden.formula_model import fill_by_formula, tiny_clip_config, tiny_resnet_clip_config
from safetensors.torch import save_file

from clipfsar.checkpoints.arguments import ConvertArguments as Arguments
from clipfsar.checkpoints.convert import main
from clipfsar.checkpoints.openai_weights import load_clip, model_of_config, openai_place, read_openai_state, to_places
from modeling_clipfsar import CLIPFSARModel

TOWER = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1}  # one head of OpenAI's width


@pytest.fixture(scope="module", params=["vit", "resnet"])
def clip(request):
    config = tiny_clip_config(text_config=TOWER, vision_config=TOWER)
    if request.param == "resnet":
        resnet = tiny_resnet_clip_config()
        resnet.text_config, config = config.text_config, resnet
    model = model_of_config(config).eval()
    fill_by_formula(model)
    return model


@pytest.fixture
def openai_state(clip):
    sizes = {"input_resolution": torch.tensor(16), "context_length": torch.tensor(8), "vocab_size": torch.tensor(50)}
    return to_places(clip.state_dict(), openai_place) | sizes


def save_archive(state, path):
    """A TorchScript archive whose modules hold the tensors, as OpenAI's do."""
    archive = torch.nn.Module()
    for name, value in state.items():
        *parents, last = name.split(".")
        module = archive
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        if last in ("weight", "bias"):
            module.register_parameter(last, torch.nn.Parameter(value))
        else:
            module.register_buffer(last, value)
    torch.jit.save(torch.jit.script(archive), path)


def check_same_weights(clip, path):
    loaded, _ = load_clip(str(path))
    for name, weight in clip.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_names_are_openais(openai_state):
    assert {"token_embedding.weight", "transformer.resblocks.1.attn.in_proj_weight", "text_projection"} <= set(
        openai_state
    )
    assert openai_state["transformer.resblocks.1.attn.in_proj_weight"].shape == (3 * 64, 64)
    assert openai_state["text_projection"].shape == (64, 16)


def test_state_dict_is_read(clip, openai_state, tmp_path):
    torch.save(openai_state, tmp_path / "clip.pt")
    check_same_weights(clip, tmp_path / "clip.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TorchScript archive")
def test_torchscript_archive_is_read_as_torch_reads_it_but_without_running_it(
    clip, openai_state, tmp_path, monkeypatch
):
    save_archive(openai_state, tmp_path / "clip.pt")
    expected = torch.jit.load(tmp_path / "clip.pt").state_dict()
    monkeypatch.setattr(torch.jit, "load", None)
    state = read_openai_state(tmp_path / "clip.pt")
    assert state.keys() == expected.keys() - {"input_resolution", "context_length", "vocab_size"}
    for name, weight in state.items():
        assert torch.equal(weight, expected[name]), name
    check_same_weights(clip, tmp_path / "clip.pt")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_training_checkpoint_of_open_clip_is_read(clip, openai_state, tmp_path, prefix):
    state = {prefix + key: value for key, value in openai_state.items()}
    torch.save({"epoch": 3, "name": "RN50", "state_dict": state, "optimizer": {}}, tmp_path / "epoch_3.pt")
    check_same_weights(clip, tmp_path / "epoch_3.pt")


def test_safetensors_of_open_clip_are_read(clip, openai_state, tmp_path):
    save_file(openai_state, tmp_path / "open_clip_model.safetensors")
    check_same_weights(clip, tmp_path / "open_clip_model.safetensors")


def test_half_precision_becomes_float32(openai_state, tmp_path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in openai_state.items()}
    torch.save(half, tmp_path / "clip.pt")
    loaded, _ = load_clip(str(tmp_path / "clip.pt"))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_missing_and_unexpected_weights_are_all_named(openai_state, tmp_path):
    del openai_state["ln_final.bias"]
    del openai_state["transformer.resblocks.0.mlp.c_fc.weight"]
    torch.save(openai_state | {"visual.extra.weight": torch.zeros(1)}, tmp_path / "clip.pt")
    message = (
        r"missing: ln_final\.bias, transformer\.resblocks\.0\.mlp\.c_fc\.weight; unexpected: visual\.extra\.weight"
    )
    with pytest.raises(ValueError, match=message):
        load_clip(str(tmp_path / "clip.pt"))


def test_weights_of_another_activation_are_noticed(clip, openai_state, tmp_path):
    torch.save(openai_state, tmp_path / "clip.pt")
    exact, _ = load_clip(str(tmp_path / "clip.pt"), hidden_act="gelu")
    assert exact.config.text_config.hidden_act == "gelu"
    tokens = torch.tensor([[48, 7, 9, 49, 0, 0, 0, 0]])
    features = (model.get_text_features(tokens).pooler_output for model in (exact, clip))
    assert torch.subtract(*features).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "text_model.encoder.layers.0.self_attn.k_proj.weight"),
        ("text_model.final_layer_norm.weight", "text_model.final_layer_norm.bias"),
        ("vision_model.encoder.layers.1.layer_norm1.bias", "vision_model.encoder.layers.1.layer_norm2.bias"),
        ("vision_model.layer3.0.bn1.running_mean", "vision_model.layer3.0.bn2.running_mean"),
    ],
)
def test_two_weights_in_each_others_place_show_in_the_features(clip, openai_state, tmp_path, monkeypatch, one, other):
    exchanged = {one: other, other: one}
    if one not in clip.state_dict():
        pytest.skip("the other tower's")
    torch.save(openai_state, tmp_path / "clip.pt")
    monkeypatch.setattr(
        "clipfsar.checkpoints.openai_weights.openai_place", lambda name: openai_place(exchanged.get(name, name))
    )
    with pytest.raises(ValueError, match="features of a test input differ from those of the original weights by"):
        load_clip(str(tmp_path / "clip.pt"))


# --- hostile and broken files -----------------------------------------------------------------------------------------


class Hostile:
    """Unpickled without care, creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_hostile_state_dict_is_refused_before_it_runs(tmp_path):
    torch.save({"visual.conv1.weight": Hostile(tmp_path / "it_ran")}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"clip\.pt was not read, because it is no file of weights"):
        read_openai_state(tmp_path / "clip.pt")
    assert not (tmp_path / "it_ran").exists()


def test_hostile_archive_is_refused_before_it_runs(tmp_path):
    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        archive.writestr("clip/constants.pkl", pickle.dumps(()))
        archive.writestr("clip/data.pkl", pickle.dumps({"weight": Hostile(tmp_path / "it_ran")}))
    with pytest.raises(
        ValueError, match=r"clip\.pt was not read, because it is no archive of a CLIP's weights: .*open"
    ):
        read_openai_state(tmp_path / "clip.pt")
    assert not (tmp_path / "it_ran").exists()


def test_file_of_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="is no state dict: it must map names to tensors"):
        read_openai_state(tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pt was not read"):
        read_openai_state(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: there is no such file"):
        read_openai_state(tmp_path / "nowhere.pt")


# --- the folder to start training from ------------------------------------------------------------------------------


@torch.no_grad()
def test_folder_holds_clip_and_our_layers_begin_anew(clip, openai_state, tmp_path, capsys):
    torch.save(openai_state, tmp_path / "clip.pt")
    main(Arguments(clip_checkpoint=str(tmp_path / "clip.pt"), output_dir=str(tmp_path / "start")))
    assert "Text features of a test input agree with a plain computation" in capsys.readouterr().out
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(CLIPFSARModel.from_pretrained(tmp_path / "start", temporal_num_layers=2).state_dict())
    for name, weight in clip.state_dict().items():
        assert torch.equal(models[0][f"clip.{name}"], weight), name
    layer = "temporal_transformer.layers.1.mlp.fc1.weight"
    assert not torch.equal(models[0][layer], models[1][layer])
    assert models[0]["video_text_scale"] == 1
