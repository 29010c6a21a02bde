"""What of a model trains: frozen, the last layers, adapters; how adapters are saved; what a run reports and resumes."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed
from golden.formula_model import (
    RESNET_IMAGE_SIZE,
    formula_tensor,
    tiny_config,
    tiny_episode,
    tiny_model,
    tiny_resnet_clip_config,
)
from safetensors.torch import load_file
from tiny_data import (
    read_log,
    run_in_children,
    save_tiny_clip,
    save_tiny_resnet_clip,
    tiny_model_and_processor,
    training_arguments,
    video_splits,
    write_video_folder,
)
from torch.nn.parallel import DistributedDataParallel
from transformers import SiglipConfig

from clipfsar.training.arguments import EpisodicTrainingArguments, parse_arguments
from clipfsar.training.trainable import (
    choose_trainable,
    has_adapters,
    merged_state_dict,
    save_trained_model,
    trainable_report,
)
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

HEAD = {
    "temporal_transformer.layers.0.attention.q_proj.weight",
    "temporal_transformer.layers.0.mlp.fc2.bias",
    "video_text_scale",
}


@pytest.fixture(scope="module")
def processor():
    return tiny_model_and_processor()[1]


@pytest.fixture
def vit():
    return tiny_model()


@pytest.fixture
def resnet():
    return tiny_model(tiny_config(tiny_resnet_clip_config()))


def trained_vision(model) -> set[str]:
    """Names of what trains in the visual tower; the head must train in any case, the text tower in none."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained >= HEAD
    assert not any(name.startswith(("clip.text_", "clip.logit_scale")) for name in trained)
    return {name.removeprefix("clip.") for name in trained if name.startswith("clip.")}


def test_all_of_the_visual_tower_trains_by_default(vit):
    choose_trainable(vit, EpisodicTrainingArguments())
    expected = {n for n, _ in vit.clip.named_parameters() if n.startswith(("vision_model.", "visual_projection."))}
    assert trained_vision(vit) == expected


def test_frozen_tower_trains_nothing(vit, resnet):
    for model in (vit, resnet):
        choose_trainable(model, EpisodicTrainingArguments(freeze_vision=True))
        assert trained_vision(model) == set()
        assert not model.train()._uses_batch_statistics()


def test_last_layers_are_counted_from_the_end_with_what_follows_them(vit):
    choose_trainable(vit, EpisodicTrainingArguments(train_last_layers=1))
    trained = trained_vision(vit)
    assert {name.split(".")[1] for name in trained if name.startswith("vision_model")} == {"encoder", "post_layernorm"}
    assert {name.split(".")[3] for name in trained if "encoder.layers" in name} == {"1"}
    assert "visual_projection.weight" in trained


def test_no_last_layer_leaves_norm_and_projection(vit):
    choose_trainable(vit, EpisodicTrainingArguments(train_last_layers=0))
    names = {"vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias", "visual_projection.weight"}
    assert trained_vision(vit) == names


def test_last_layers_of_a_resnet_are_its_blocks(resnet):
    choose_trainable(resnet, EpisodicTrainingArguments(train_last_layers=2))
    assert {name.split(".")[1] for name in trained_vision(resnet)} == {"layer3", "layer4", "attnpool"}
    resnet.train()
    assert not resnet.clip.vision_model.layer2[0].bn1.training
    assert resnet.clip.vision_model.layer3[0].bn1.training


def test_last_layers_of_siglip_include_its_pooling_head():
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip_config = SiglipConfig(
        text_config=tower | {"vocab_size": 50}, vision_config=tower | {"image_size": 16, "patch_size": 8}
    )
    model = CLIPFSARModel(tiny_config(clip_config))
    choose_trainable(model, EpisodicTrainingArguments(train_last_layers=1))
    assert {name.split(".")[1] for name in trained_vision(model)} == {"encoder", "post_layernorm", "head"}


def test_more_last_layers_than_there_are_are_refused(vit):
    with pytest.raises(ValueError, match="--train_last_layers 3: the visual tower has 2 layers"):
        choose_trainable(vit, EpisodicTrainingArguments(train_last_layers=3))


def test_frozen_batch_norms_neither_train_nor_count(resnet, vit):
    choose_trainable(resnet, EpisodicTrainingArguments(freeze_batch_norm=True))
    trained = trained_vision(resnet)
    assert "vision_model.layer1.0.conv1.weight" in trained
    assert not any(".bn" in name or "downsample.1" in name for name in trained)
    assert not resnet.train()._uses_batch_statistics()
    with pytest.raises(ValueError, match="this visual tower has no batch norms; leave the option out"):
        choose_trainable(vit, EpisodicTrainingArguments(freeze_batch_norm=True))


def test_choices_exclude_each_other():
    with pytest.raises(ValueError, match="--freeze_vision and --lora_rank exclude each other"):
        EpisodicTrainingArguments(freeze_vision=True, lora_rank=4)
    with pytest.raises(ValueError, match="--train_last_layers -1 must be 0 or more"):
        EpisodicTrainingArguments(train_last_layers=-1)


def test_report_counts_each_part(vit):
    choose_trainable(vit, EpisodicTrainingArguments(freeze_vision=True))
    head = sum(p.numel() for n, p in vit.named_parameters() if not n.startswith("clip."))
    vision = sum(p.numel() for n, p in vit.clip.named_parameters() if n.startswith("vis"))
    report = trainable_report(vit)
    assert f"visual tower 0 of {vision:,}" in report
    assert f"temporal transformer {head:,} of {head:,}" in report
    assert f"{head:,} of {vit.num_parameters():,} in all ({100 * head / vit.num_parameters():.2f}%)" in report


# --- LoRA -------------------------------------------------------------------------------------------------------------


def adapted(start, **settings):
    """With adapters that are not zero, as after some training."""
    torch.manual_seed(0)
    choose_trainable(start, EpisodicTrainingArguments(lora_rank=2, **settings))
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    return start.eval()


def test_adapters_alone_train_and_change_nothing_at_first(vit):
    inputs = tiny_episode()
    before = vit(**inputs).logits
    choose_trainable(vit, EpisodicTrainingArguments(lora_rank=2))
    assert torch.equal(vit(**inputs).logits, before)
    trained = trained_vision(vit)
    assert {name.split(".")[5] for name in trained} == {"q_proj", "v_proj"}
    assert {name.split(".")[6] for name in trained} == {"lora_A", "lora_B"}
    assert len(trained) == 2 * 2 * 2  # layers, targets, A and B


@pytest.mark.parametrize(
    ("tower", "image_size", "targets"),
    [("vit", 16, ["q_proj", "v_proj"]), ("vit", 16, ["fc1"]), ("resnet", RESNET_IMAGE_SIZE, ["conv2", "c_proj"])],
)
@torch.no_grad()
def test_merged_weights_give_what_the_adapters_gave(tower, image_size, targets, processor, request, tmp_path):
    model = request.getfixturevalue(tower)
    plain = copy.deepcopy(model)
    model = adapted(model, lora_targets=targets)
    images = tiny_episode(image_size=image_size)["query_pixel_values"]
    expected = model.get_video_features(images)
    assert (expected - plain.get_video_features(images)).abs().max() > 0.01
    save_trained_model(model, processor, tmp_path / "saved")
    loaded = CLIPFSARModel.from_pretrained(tmp_path / "saved")
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(loaded.get_video_features(images), expected, rtol=0, atol=1e-5)
    assert torch.equal(model.get_video_features(images), expected)  # saving leaves the model as it was
    assert not (tmp_path / "saved" / "adapter").exists()


@torch.no_grad()
def test_kept_adapter_turns_the_start_into_what_was_saved(vit, processor, tmp_path):
    peft = pytest.importorskip("peft")
    start = copy.deepcopy(vit)
    model = adapted(vit, model="somebody/clip")
    save_trained_model(model, processor, tmp_path, keep_adapter=True)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (2, 4)
    assert settings["base_model_name_or_path"] == "somebody/clip"
    tower = peft.PeftModel.from_pretrained(start.clip.vision_model, tmp_path / "adapter")
    images = tiny_episode()["query_pixel_values"][0, 0]
    expected = CLIPFSARModel.from_pretrained(tmp_path).clip.vision_model(images).pooler_output
    torch.testing.assert_close(tower(pixel_values=images).pooler_output, expected, rtol=0, atol=1e-5)


def test_targets_that_are_not_there_are_refused_with_those_that_are(vit):
    message = "--lora_targets query: the visual tower's linear and convolution layers are named fc1, fc2, k_proj, out_"
    with pytest.raises(ValueError, match=message):
        choose_trainable(vit, EpisodicTrainingArguments(lora_rank=2, lora_targets=["q_proj", "query"]))


def test_missing_peft_is_named(vit, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ValueError, match=r"--lora_rank needs the package peft: pip install peft"):
        choose_trainable(vit, EpisodicTrainingArguments(lora_rank=2))


def test_model_without_adapters_is_saved_as_ever(vit, processor, tmp_path):
    assert not has_adapters(vit)
    assert merged_state_dict(vit).keys() == vit.state_dict().keys()
    save_trained_model(vit, processor, tmp_path, keep_adapter=True)
    assert not (tmp_path / "adapter").exists()


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    video_splits(write_video_folder(folder / "videos")).save_to_disk(folder / "colours")
    return folder / "colours"


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def run_program(arguments: list[str], stop_after: int | None = None):
    from clipfsar.training.program import main
    from clipfsar.training.trainer import EpisodicTrainer

    if stop_after is not None:
        save_state, calls = EpisodicTrainer._save_state, []

        def save_and_stop(self, *details):
            save_state(self, *details)
            calls.append(1)
            if len(calls) == stop_after:
                raise KeyboardInterrupt

        EpisodicTrainer._save_state = save_and_stop
    main(parse_arguments(arguments))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


CHOICES = {
    "lora": {"lora_rank": 2, "keep_adapter": "true", "learning_rate": 1e-2},
    "frozen": {"freeze_vision": "true", "feature_draws": 2},
    "resnet": {},  # whose batch norms have statistics to go on with
}


@pytest.mark.whole_program
@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_stopped_half_way_ends_as_if_it_had_not(choice, dataset, tiny_clip, tmp_path):
    start_folder = save_tiny_resnet_clip(tmp_path / "resnet") if choice == "resnet" else tiny_clip
    for name, stops in (("whole", [None]), ("stopped", [1, None])):
        for stop in stops:
            options = CHOICES[choice] | {"resume": "true"}
            arguments = training_arguments(dataset, start_folder, tmp_path / name, **options)
            outcome = run_in_children(run_program, arguments, stop, folder=tmp_path / f"{name}_children")
            assert (stop is None) == (outcome.exit_codes == [0]), outcome.output
            assert (tmp_path / name / "state").is_dir()  # it did not stop before its first checkpoint
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert read_log(stopped) == read_log(whole)
    for folder in ("best", "last"):
        expected = weights(whole / folder)
        found = weights(stopped / folder)
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            assert torch.equal(found[name], weight), name
    start = weights(start_folder)
    last = weights(whole / "last")
    changed = {name for name, weight in start.items() if not torch.equal(last[f"clip.{name}"], weight)}
    if choice == "frozen":
        assert changed == set()
    elif choice == "resnet":
        assert {"vision_model.conv1.weight", "vision_model.bn1.running_mean", "vision_model.bn1.weight"} <= changed
        assert last["clip.vision_model.bn1.num_batches_tracked"] == 2 * 16  # support and query of each episode
    else:
        assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
        assert (whole / "best" / "adapter" / "adapter_model.safetensors").is_file()
    assert "Trained parameters: visual tower " in outcome.output
    CLIPFSARProcessor.from_pretrained(whole / "best")


# --- with DistributedDataParallel, outside of our trainer -------------------------------------------------------------


def with_contrast(episode):
    """An episode with the inputs of the video-text contrast; its three classes are the first of five."""
    base_labels = {
        f"{part}_base_labels": episode[name] for part, name in (("support", "support_labels"), ("query", "labels"))
    }
    return episode | base_labels | {"base_class_embeds": formula_tensor((5, 16))}


def train_with_ddp(folder):
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    model = CLIPFSARModel.from_pretrained(folder)
    wrapped = DistributedDataParallel(model)  # before the model is told that it is trained, as accelerate does
    wrapped.train()
    optimizer = torch.optim.SGD([value for value in wrapped.parameters() if value.requires_grad], lr=0.1)
    for step in range(3):
        loss = wrapped(**with_contrast(tiny_episode(phase=float(2 * step + rank)))).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    sums = [torch.zeros(()) for _ in range(2)]
    torch.distributed.all_gather(sums, sum(value.detach().double().sum() for value in model.parameters()).float())
    assert torch.equal(*sums)
    torch.distributed.destroy_process_group()
    print(f"rank {rank} trained", flush=True)
    os._exit(0)  # threads of gloo and DDP sometimes keep a forked process from ending on a busy machine


def test_two_processes_train_without_looking_for_unused_parameters(tmp_path):
    tiny_model(temporal_attention_dropout=0.0, temporal_hidden_dropout=0.0).save_pretrained(tmp_path / "model")
    outcome = run_in_children(train_with_ddp, tmp_path / "model", folder=tmp_path / "run", num_processes=2)
    assert outcome.exit_codes == [0, 0], outcome.output
    assert {"rank 0 trained", "rank 1 trained"} <= set(outcome.output.splitlines())
    assert "rank 0 trained" in outcome.output
    assert "rank 1 trained" in outcome.output
