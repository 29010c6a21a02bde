"""CLIP's ResNet tower: sizes, batch norms in training, other image sizes, and its place in a CLIPFSARModel."""

import copy
import json

import pytest
import torch
from golden.formula_model import (
    RESNET_IMAGE_SIZE,
    fill_by_formula,
    formula_tensor,
    tiny_config,
    tiny_episode,
    tiny_model,
    tiny_resnet_clip_config,
)
from torch import nn
from transformers import CLIPTextConfig

from clipfsar.training.optimization import optimizer_groups
from configuration_clipfsar import CLIPFSARConfig, CLIPResNetConfig, CLIPResNetVisionConfig
from modeling_clipfsar import CLIPFSARModel
from resnet_clipfsar import CLIPResNetModel, CLIPResNetVisionModel


@pytest.fixture(scope="module")
def resnet_model():
    return tiny_model(tiny_config(tiny_resnet_clip_config()))


@pytest.fixture
def fresh_model(resnet_model):
    """A copy in training mode without dropout, to be changed."""
    model = copy.deepcopy(resnet_model).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def episode(**settings):
    return tiny_episode(image_size=RESNET_IMAGE_SIZE, **settings)


def two_episodes():
    first, second = episode(), episode(phase=1.0)
    return first, second, {name: torch.cat([first[name], second[name]]) for name in first}


def batch_statistics(model) -> dict[str, torch.Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith(names)}


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depths", "width", "image_size", "projection_dim", "text_width", "num_parameters"),
    [
        ((3, 4, 6, 3), 64, 224, 1024, 512, 102_007_137),
        ((3, 4, 23, 3), 64, 224, 512, 512, 119_688_033),
        ((4, 6, 10, 6), 80, 288, 640, 640, 178_300_601),
        ((6, 8, 18, 8), 96, 384, 768, 768, 290_979_217),
        ((3, 15, 36, 10), 128, 448, 1024, 1024, 623_258_305),
    ],
    ids=["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"],
)
def test_each_of_openais_resnets_has_its_number_of_parameters(
    depths, width, image_size, projection_dim, text_width, num_parameters
):
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_attention_heads": text_width // 64}
    vision = {"depths": depths, "width": width, "image_size": image_size, "projection_dim": projection_dim}
    with torch.device("meta"):
        model = CLIPResNetModel(CLIPResNetConfig(text_config=text, vision_config=vision))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_default_is_rn50():
    config = CLIPFSARConfig(clip_config=CLIPResNetConfig())
    assert (config.clip_config.vision_config.depths, config.clip_config.vision_config.width) == ([3, 4, 6, 3], 64)
    assert (config.hidden_size, config.clip_config.vision_config.hidden_size) == (1024, 2048)
    assert config.clip_config.vision_config.num_attention_heads == 32
    assert isinstance(config.clip_config.text_config, CLIPTextConfig)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (3, 4, 6)}, r"depths=\[3, 4, 6\]: there are four stages of at least one block each"),
        ({"depths": (3, 4, 0, 3)}, "at least one block"),
        ({"width": 5}, "width=5 must be even"),
        ({"image_size": 100}, "image_size=100 must be a multiple of 32"),
        ({"num_attention_heads": 3}, "2048 channels are not a multiple of num_attention_heads=3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CLIPResNetVisionConfig(**fields)


@torch.no_grad()
def test_strides_are_average_pools_and_not_skipped_pixels(resnet_model):
    # Every pixel of an image counts: a change in any one reaches the feature map.
    tower = resnet_model.clip.vision_model
    image = formula_tensor((1, 3, 64, 64))
    plain = tower(image).last_hidden_state
    for row, column in ((0, 0), (31, 31), (63, 63)):
        changed = image.clone()
        changed[..., row, column] += 1.0
        assert (tower(changed).last_hidden_state - plain).abs().max() > 1e-6


# --- images and outputs -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_states_are_the_maps_of_stem_and_stages(resnet_model):
    images = formula_tensor((2, 3, 64, 64))
    outputs = resnet_model.clip.get_image_features(images, output_hidden_states=True)
    shapes = [tuple(states.shape) for states in outputs.hidden_states]
    assert shapes == [(2, 4, 16, 16), (2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4), (2, 128, 2, 2)]
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert outputs.pooler_output.shape == (2, 16)
    assert resnet_model.clip.get_image_features(images).hidden_states is None


@pytest.mark.parametrize("is_training", [False, True])
def test_hidden_states_of_an_episode_are_support_before_query(fresh_model, is_training):
    model, (_, _, inputs) = fresh_model.train(is_training), two_episodes()
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
        first = model.clip.get_image_features(inputs["support_pixel_values"][0].flatten(0, 1)).last_hidden_state
    num_support, num_query = 2 * 3 * 4, 2 * 6 * 4
    assert output.hidden_states[-1].shape == (num_support + num_query, 128, 2, 2)
    torch.testing.assert_close(output.hidden_states[-1][: 3 * 4], first, rtol=0, atol=1e-6)
    assert output.attentions is None


@torch.no_grad()
def test_positions_are_stretched_for_images_of_another_size(resnet_model):
    pool = copy.deepcopy(resnet_model.clip.vision_model.attnpool)
    assert torch.equal(pool._positions(2, 2), pool.positional_embedding)
    pool.positional_embedding[1:] = pool.positional_embedding[1]  # a plain surface stays one
    stretched = pool._positions(3, 5)
    assert stretched.shape == (3 * 5 + 1, 128)
    torch.testing.assert_close(stretched[1:], pool.positional_embedding[1].expand(15, -1), rtol=0, atol=1e-6)
    assert torch.equal(stretched[0], pool.positional_embedding[0])
    assert resnet_model.get_video_features(formula_tensor((1, 2, 3, 96, 160))).shape == (1, 2, 16)


@torch.no_grad()
def test_stretched_positions_keep_rows_and_columns_apart(resnet_model):
    pool = copy.deepcopy(resnet_model.clip.vision_model.attnpool)
    pool.positional_embedding[1:] = torch.tensor([0.0, 0.0, 1.0, 1.0]).unsqueeze(-1)  # grows from row to row
    grid = pool._positions(4, 3)[1:, 0].unflatten(0, (4, 3))
    torch.testing.assert_close(grid[:, 0], grid[:, 2], rtol=0, atol=1e-6)
    assert (grid[:, 0].diff() > 0).all()


def test_images_of_another_size_can_be_refused(resnet_model):
    with pytest.raises(ValueError, match="96 x 64 pixels do not fit the model's 64 x 64: resize them, or pass"):
        resnet_model.clip.get_image_features(torch.zeros(1, 3, 96, 64), interpolate_pos_encoding=False)
    with pytest.raises(ValueError, match="Images of 16 x 64 pixels are too small: the minimum is 32"):
        resnet_model.clip.get_image_features(torch.zeros(1, 3, 16, 64))


# --- batch norms in training --------------------------------------------------------------------------------------


def test_training_normalises_support_and_query_videos_apart(fresh_model):
    inputs = episode()
    support, query = inputs["support_pixel_values"], inputs["query_pixel_values"]
    output = fresh_model(**inputs)
    with torch.no_grad():
        alone = fresh_model.get_video_features(support), fresh_model.get_video_features(query)
        together = fresh_model.get_video_features(torch.cat([support, query], dim=1))
    assert torch.equal(output.support_embeds, alone[0])
    assert torch.equal(output.query_embeds, alone[1])
    assert (together[:, :3] - alone[0]).abs().max() > 1e-3


def test_training_gives_an_episode_what_it_gives_it_alone(fresh_model):
    first, second, both = two_episodes()
    logits = fresh_model(**both).logits
    torch.testing.assert_close(logits[:1], fresh_model(**first).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[1:], fresh_model(**second).logits, rtol=0, atol=1e-5)


def test_several_episodes_at_once_leave_the_statistics_they_leave_one_after_another(fresh_model):
    first, second, both = two_episodes()
    other = copy.deepcopy(fresh_model)
    fresh_model(**both)
    other(**first)
    other(**second)
    expected = batch_statistics(other)
    for name, buffer in batch_statistics(fresh_model).items():
        torch.testing.assert_close(buffer, expected[name], rtol=0, atol=1e-6)
    assert fresh_model.clip.vision_model.bn1.num_batches_tracked == 4


def padded_episodes():
    """Two episodes of unequal numbers of videos, and the batch that `EpisodeCollator` makes of them."""
    first, second, _ = two_episodes()
    for name in ("query_pixel_values", "labels"):
        second[name] = second[name][:, :-2]
    for name in ("support_pixel_values", "support_labels"):
        first[name] = torch.cat([first[name], first[name][:, :1]], dim=1)
    both = {}
    for name in first:
        value = 0.0 if first[name].is_floating_point() else -1
        both[name] = torch.nn.utils.rnn.pad_sequence([first[name][0], second[name][0]], True, value)
    return first, second, both


def test_padding_videos_change_no_statistics_and_no_features_of_others(fresh_model):
    first, second, both = padded_episodes()
    other = copy.deepcopy(fresh_model)
    output = fresh_model(**both, output_hidden_states=True)
    alone = [other(**one, output_hidden_states=True) for one in (first, second)]
    expected = batch_statistics(other)
    for name, buffer in batch_statistics(fresh_model).items():
        torch.testing.assert_close(buffer, expected[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(output.logits[:1], alone[0].logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.logits[1:, :4], alone[1].logits, rtol=0, atol=1e-5)
    assert not output.query_embeds[1, 4:].any()
    states = output.hidden_states[-1].unflatten(0, (2 * (4 + 6), 4))  # support of both episodes, then queries
    assert not states[7].any()
    assert not states[-2:].any()
    torch.testing.assert_close(states[4:7].flatten(0, 1), alone[1].hidden_states[-1][:12], rtol=0, atol=1e-5)
    output.loss.backward()
    assert fresh_model.clip.vision_model.conv1.weight.grad.isfinite().all()


def test_a_query_without_label_is_encoded_as_any_other(fresh_model):
    _, _, both = two_episodes()
    expected = copy.deepcopy(fresh_model)(**both).query_embeds
    both["labels"][1, -1] = -1
    torch.testing.assert_close(fresh_model(**both).query_embeds, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_evaluation_encodes_all_videos_in_one_call(resnet_model, monkeypatch):
    calls = []
    get_image_features = resnet_model.clip.get_image_features
    monkeypatch.setattr(
        resnet_model.clip,
        "get_image_features",
        lambda frames, **kwargs: calls.append(len(frames)) or get_image_features(frames, **kwargs),
    )
    resnet_model(**two_episodes()[2])
    assert calls == [2 * (3 + 6) * 4]


def test_frozen_batch_norm_keeps_its_statistics_and_needs_one_call(fresh_model):
    fresh_model.clip.vision_model.config.freeze_batch_norm = True
    fresh_model.train()
    before = batch_statistics(fresh_model)
    inputs = episode()
    logits = fresh_model(**inputs).logits
    assert not fresh_model._uses_batch_statistics()
    for name, buffer in batch_statistics(fresh_model).items():
        assert torch.equal(buffer, before[name]), name
    torch.testing.assert_close(logits, fresh_model.eval()(**inputs).logits, rtol=0, atol=1e-6)


def test_frozen_batch_norm_is_saved_with_the_model(fresh_model, tmp_path):
    fresh_model.config.clip_config.vision_config.freeze_batch_norm = True
    fresh_model.save_pretrained(tmp_path)
    assert not CLIPFSARModel.from_pretrained(tmp_path).train()._uses_batch_statistics()


def test_frozen_tower_keeps_its_statistics(fresh_model):
    fresh_model.clip.vision_model.requires_grad_(False)
    assert not fresh_model.train()._uses_batch_statistics()
    fresh_model.clip.vision_model.requires_grad_(True)
    assert fresh_model.train()._uses_batch_statistics()
    assert not fresh_model.eval()._uses_batch_statistics()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(fresh_model, use_reentrant):
    inputs = episode()
    checkpointed = copy.deepcopy(fresh_model)
    # the newer name where there is one: the older goes with transformers 6
    enable = getattr(checkpointed, "activation_checkpointing_enable", checkpointed.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    for model in (fresh_model, checkpointed):
        model(**inputs).loss.backward()
    expected = batch_statistics(fresh_model)
    for name, buffer in batch_statistics(checkpointed).items():
        assert torch.equal(buffer, expected[name]), name
    gradients = {name: parameter.grad for name, parameter in fresh_model.named_parameters()}
    for name, parameter in checkpointed.named_parameters():
        if gradients[name] is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-5, msg=name)


def test_batch_norms_are_decayed_where_the_official_program_decays_them(resnet_model):
    # It exempts what has "bn" in its name, and the norm of a shortcut is called "downsample.1" there.
    names = {parameter: name for name, parameter in resnet_model.named_parameters()}
    decayed, exempt = (
        {names[parameter] for parameter in group["params"]} for group in optimizer_groups(resnet_model, 0.1)
    )
    assert {"clip.vision_model.bn1.weight", "clip.vision_model.layer2.1.bn3.bias"} <= exempt
    assert {"clip.vision_model.layer1.0.downsample.1.weight", "clip.vision_model.attnpool.c_proj.bias"} <= decayed


# --- as any model of transformers ---------------------------------------------------------------------------------


@torch.no_grad()
def test_saved_and_loaded_model_gives_the_same_bits(resnet_model, tmp_path):
    resnet_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["clip_config"]["model_type"] == "clip_resnet"
    loaded = CLIPFSARModel.from_pretrained(tmp_path)
    inputs = episode()
    assert torch.equal(loaded(**inputs).logits, resnet_model(**inputs).logits)
    alone = CLIPResNetModel.from_pretrained(tmp_path)
    images = inputs["query_pixel_values"][0, 0]
    assert torch.equal(alone.get_image_features(images).pooler_output, loaded.get_video_features(images))


@torch.no_grad()
def test_plain_resnet_clip_is_a_start(resnet_model, tmp_path):
    resnet_model.clip.save_pretrained(tmp_path)
    model = CLIPFSARModel.from_pretrained(tmp_path, temporal_num_heads=2, temporal_num_layers=2)
    images = episode()["query_pixel_values"]
    assert torch.equal(model.get_video_features(images), resnet_model.get_video_features(images))
    assert len(model.temporal_transformer.layers) == 2


def test_weights_of_a_new_tower_have_the_size_of_openais():
    torch.manual_seed(0)
    tower = CLIPFSARModel(tiny_config(tiny_resnet_clip_config(width=8))).clip.vision_model
    assert (tower.bn1.weight == 1).all()
    assert tower.attnpool.q_proj.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert tower.attnpool.positional_embedding.std().item() == pytest.approx(256**-0.5, rel=0.1)
    assert torch.isfinite(tower(formula_tensor((1, 3, 64, 64))).pooler_output).all()


def test_weights_missing_in_a_checkpoint_are_initialised(resnet_model, tmp_path):
    state = {name: weight for name, weight in resnet_model.state_dict().items() if ".bn1." not in name}
    resnet_model.save_pretrained(tmp_path, state_dict=state)
    tower = CLIPFSARModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True).clip.vision_model
    assert torch.equal(tower.bn1.running_mean, torch.zeros(2))
    assert torch.equal(tower.bn1.running_var, torch.ones(2))
    assert torch.equal(tower.bn2.running_var, resnet_model.clip.vision_model.bn2.running_var)


@torch.no_grad()
def test_channels_last_and_bfloat16_give_nearly_the_same(resnet_model):
    inputs = episode()
    expected = resnet_model(**inputs)
    channels_last = copy.deepcopy(resnet_model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last(**inputs).logits, expected.logits, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = resnet_model(**inputs)
    assert mixed.logits.dtype == torch.float32
    assert ((mixed.support_embeds - expected.support_embeds).abs().max() / expected.support_embeds.abs().max()) < 0.05
    half = copy.deepcopy(resnet_model).bfloat16()(**inputs)
    assert ((half.support_embeds - expected.support_embeds).abs().max() / expected.support_embeds.abs().max()) < 0.05


def test_every_trained_weight_gets_a_gradient(fresh_model):
    fresh_model.freeze_text_tower()
    inputs = episode()
    fresh_model(
        **inputs,
        base_class_embeds=formula_tensor((5, 16)),
        support_base_labels=inputs["support_labels"],
        query_base_labels=inputs["labels"],
    ).loss.backward()
    without = {name for name, parameter in fresh_model.named_parameters() if parameter.grad is None}
    assert all(name.startswith(("clip.text_", "clip.logit_scale")) for name in without)
    assert fresh_model.clip.vision_model.conv1.weight.grad.abs().max() > 0


def test_input_embedding_is_the_first_convolution(fresh_model):
    tower = fresh_model.clip.vision_model
    assert tower.get_input_embeddings() is tower.conv1
    other = nn.Conv2d(3, 2, 3)
    tower.set_input_embeddings(other)
    assert tower.conv1 is other
    assert fresh_model.get_input_embeddings() is fresh_model.clip.text_model.embeddings.token_embedding


def test_tower_alone_is_filled_by_its_own_config():
    tower = CLIPResNetVisionModel(tiny_resnet_clip_config(depths=[1, 1, 1, 1]).vision_config).eval()
    fill_by_formula(tower)
    assert tower(formula_tensor((2, 3, 64, 64))).pooler_output.shape == (2, 16)
