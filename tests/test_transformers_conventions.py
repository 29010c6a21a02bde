"""What transformers and accelerate ask of a model: devices, Trainer, Auto classes, distributed training."""

import contextlib

import pytest
import torch
from accelerate import cpu_offload, disk_offload, infer_auto_device_map
from golden.formula_model import formula_tensor, tiny_clip_config, tiny_config, tiny_episode, tiny_resnet_clip_config
from tiny_data import random_clip, tiny_model_and_processor
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from configuration_clipfsar import CLIPResNetConfig, CLIPResNetVisionConfig
from modeling_clipfsar import CLIPFSARModel
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from resnet_clipfsar import CLIPResNetModel, CLIPResNetVisionModel
from support_set_clipfsar import SupportSet


def with_base_classes(episode):
    """An episode with the inputs of the video-text contrast; its three classes are the first of five."""
    support_labels, labels = episode["support_labels"], episode["labels"]
    return episode | {
        "base_class_embeds": formula_tensor((5, 16)),
        "support_base_labels": support_labels,
        "query_base_labels": labels,
    }


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_meta(monkeypatch):
    """Lets "meta" stand for a second device: nothing computes with tensors of two, but autocast does not know it."""
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **keywords: contextlib.nullcontext())


@pytest.mark.parametrize("clip_config", [tiny_clip_config(), tiny_resnet_clip_config()], ids=["vit", "resnet"])
def test_parts_that_are_not_split_over_devices_are_there(clip_config):
    # accelerate's FSDP policy refuses a name that no module has
    model = CLIPFSARModel(tiny_config(clip_config))
    assert {"CLIPFSARTemporalLayer", "CLIPEncoderLayer"} <= set(model._no_split_modules)
    classes = {type(module).__name__ for module in model.modules()}
    if clip_config.model_type == "clip_resnet":
        assert "CLIPResNetBottleneck" in model._no_split_modules
    assert set(model._no_split_modules) <= classes


def test_layers_that_training_adds_are_not_split_either(tiny_model, tmp_path):
    tiny_model().clip.save_pretrained(tmp_path)
    model = CLIPFSARModel.from_pretrained(tmp_path, temporal_num_heads=2)
    assert "CLIPFSARTemporalLayer" not in model._no_split_modules
    model.add_untrained_layers(seed=0)
    assert "CLIPFSARTemporalLayer" in model._no_split_modules


@pytest.mark.parametrize("pooling", ["before", "after"])
@pytest.mark.parametrize("mode", ["few_shot", "zero_shot", "ensemble"])
def test_what_belongs_to_an_episode_follows_the_features_to_their_device(tiny_model, pooling, mode, on_meta):
    episode = with_base_classes(tiny_episode(n_shot=2))
    model = tiny_model(support_pooling=pooling, inference_mode=mode)
    with torch.no_grad():
        known = model(**episode)
    names = ("support_labels", "labels", "base_class_embeds", "support_base_labels", "query_base_labels")
    on_cpu = {name: episode[name] for name in names} | {"class_embeds": known.class_embeds}
    features = {name: known[name].to("meta") for name in ("support_embeds", "query_embeds")}
    model.temporal_transformer.to("meta")
    output = model(**features, **on_cpu)
    assert output.logits.device.type == output.loss.device.type == "meta"
    assert output.logits.shape == known.logits.shape


def test_head_may_lie_on_another_device_than_the_features(tiny_model, on_meta):
    episode = with_base_classes(tiny_episode(n_shot=2))
    for pooling in ("before", "after"):
        model = tiny_model(support_pooling=pooling, inference_mode="ensemble")
        move = model.temporal_transformer.to("meta").register_forward_pre_hook
        move(lambda module, arguments: (arguments[0].to("meta"), *arguments[1:]))  # as accelerate's hooks do
        output = model(**episode)
        assert output.support_embeds.device.type == "cpu"
        assert output.logits.device.type == output.loss.device.type == "meta"


@pytest.mark.parametrize("clip_config", [tiny_clip_config(), tiny_resnet_clip_config()], ids=["vit", "resnet"])
@torch.no_grad()
def test_offloaded_weights_give_the_same_logits(tiny_model, clip_config, tmp_path):
    size = {"image_size": 64} if clip_config.model_type == "clip_resnet" else {}
    episode = with_base_classes(tiny_episode(**size))
    expected = tiny_model(clip_config=clip_config)(**episode, inference_mode="ensemble")
    for offload in (cpu_offload, lambda model, **to: disk_offload(model, tmp_path, **to)):
        model = tiny_model(clip_config=clip_config)
        offload(model, execution_device=torch.device("cpu"))
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        output = model(**episode, inference_mode="ensemble")
        assert torch.equal(output.logits, expected.logits)
        assert torch.equal(output.loss, expected.loss)


@pytest.mark.parametrize("mode", ["few_shot", "zero_shot", "ensemble"])
def test_a_pipeline_of_an_offloaded_model_answers_alike_and_takes_the_same_support_set(mode, tmp_path):
    model, processor = tiny_model_and_processor()
    clips = {"waving": random_clip(0), "boxing": random_clip(1)}
    support_set = SupportSet.from_videos(model, processor, clips)
    whole = FewShotVideoClassificationPipeline(model=model, processor=processor, support_set=support_set)
    offloaded, _ = tiny_model_and_processor()
    disk_offload(offloaded, tmp_path, execution_device=torch.device("cpu"))
    assert offloaded.video_text_scale.is_meta
    assert offloaded.device == torch.device("cpu")
    own_set = SupportSet.from_videos(offloaded, processor, clips)
    expected = whole(random_clip(2), inference_mode=mode)
    for enrolled in (support_set, own_set):
        split = FewShotVideoClassificationPipeline(model=offloaded, processor=processor, support_set=enrolled)
        assert split(random_clip(2), inference_mode=mode) == expected
    episode = tiny_episode()
    base = formula_tensor((5, 16))
    features = model.get_video_features(episode["query_pixel_values"])
    assert torch.equal(offloaded.get_video_text_logits(features, base), model.get_video_text_logits(features, base))


@torch.no_grad()
def test_device_map_over_memory_and_disk_gives_the_same_logits(tiny_model, tmp_path):
    model, episode = tiny_model(), tiny_episode()
    model.save_pretrained(tmp_path / "model")
    no_split = list(model._no_split_modules)
    device_map = infer_auto_device_map(model, {"cpu": "60KB", "disk": "1GB"}, no_split_module_classes=no_split)
    assert set(device_map.values()) == {"cpu", "disk"}
    split = CLIPFSARModel.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert torch.equal(split(**episode).logits, model(**episode).logits)


# --- transformers' Trainer --------------------------------------------------------------------------------------------


def collate(episodes):
    return {name: torch.cat([episode[name] for episode in episodes]) for name in episodes[0]} | {
        "base_class_embeds": formula_tensor((5, 16))
    }


def made_trainer(model, folder, **arguments):
    episodes = [with_base_classes(tiny_episode(phase=float(number))) for number in range(4)]
    arguments = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 3} | arguments
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        **arguments,
    )

    def accuracy(prediction):
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    return Trainer(
        model, args, data_collator=collate, train_dataset=episodes, eval_dataset=episodes, compute_metrics=accuracy
    )


def test_transformers_trainer_evaluates_logits_and_labels(tiny_model, tmp_path, fresh_accelerate):
    model = tiny_model()
    trainer = made_trainer(model, tmp_path)
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape == (4, 6, 3)
    assert predicted.label_ids.shape == (4, 6)
    with torch.no_grad():
        outputs = [model(**collate([episode])) for episode in trainer.eval_dataset]
    right = [
        (output.logits.argmax(-1) == episode["labels"]).float().mean()
        for output, episode in zip(outputs, trainer.eval_dataset, strict=True)
    ]
    assert predicted.metrics["test_accuracy"] == pytest.approx(torch.stack(right).mean().item())
    loss = torch.stack([output.loss for output in outputs]).mean().item()
    assert predicted.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_transformers_trainer_trains_the_same_when_it_accumulates_gradients(tiny_model, tmp_path, fresh_accelerate):
    without_dropout = {"temporal_attention_dropout": 0.0, "temporal_hidden_dropout": 0.0}
    trained = []
    for batch_size, steps in ((4, 1), (2, 2)):
        model = tiny_model(**without_dropout)
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}
        made_trainer(
            model, tmp_path, max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, save_strategy="no", **sizes
        ).train()
        trained.append(model)
    for (name, one), other in zip(trained[0].named_parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5, msg=name)


# --- Auto classes -----------------------------------------------------------------------------------------------------


def test_auto_classes_know_the_resnet(tmp_path):
    config = tiny_resnet_clip_config()
    model = CLIPResNetModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    model.vision_model.save_pretrained(tmp_path / "tower")
    assert type(AutoConfig.from_pretrained(tmp_path / "clip")) is CLIPResNetConfig
    assert type(AutoConfig.for_model("clip_resnet_vision")) is CLIPResNetVisionConfig
    assert type(AutoModel.from_config(config)) is CLIPResNetModel
    loaded = AutoModel.from_pretrained(tmp_path / "clip").eval()
    pixels = formula_tensor((2, 3, 64, 64))
    assert torch.equal(loaded.get_image_features(pixels).pooler_output, model.get_image_features(pixels).pooler_output)
    assert type(AutoModel.from_pretrained(tmp_path / "tower")) is CLIPResNetVisionModel


# --- frozen parameters ------------------------------------------------------------------------------------------------


def test_text_tower_of_a_new_or_loaded_model_is_frozen(tiny_model, tmp_path):
    model = CLIPFSARModel(tiny_config())
    model.save_pretrained(tmp_path)
    for each in (model, CLIPFSARModel.from_pretrained(tmp_path)):
        frozen = {name.split(".")[1] for name, value in each.named_parameters() if not value.requires_grad}
        assert frozen == {"text_model", "text_projection", "logit_scale"}
