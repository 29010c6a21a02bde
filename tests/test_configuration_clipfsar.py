"""CLIPFSARConfig: defaults, round trips, the way from a plain CLIP checkpoint, and errors."""

import json

import pytest
from transformers import AutoConfig, CLIPConfig, ViTConfig

from configuration_clipfsar import CLIPFSARConfig


def test_defaults_are_those_of_the_official_program():
    config = CLIPFSARConfig()
    assert config.num_frames == 8
    assert (config.temporal_num_layers, config.temporal_num_heads, config.temporal_intermediate_size) == (1, 8, 2048)
    assert (config.temporal_attention_dropout, config.temporal_hidden_dropout) == (0.2, 0.05)
    assert (config.alignment, config.otam_smoothing, config.otam_bidirectional) == ("otam", 0.5, True)
    assert (config.cosine_epsilon, config.support_pooling) == (0.01, "before")
    assert (config.video_text_loss_weight, config.video_text_scale_init) == (1.5, 1.0)
    assert (config.inference_mode, config.ensemble_text_weight, config.ensemble_temperature) == ("few_shot", 0.9, 8.0)
    assert config.prototype_modulation is True
    assert config.clip_config.to_dict() == CLIPConfig().to_dict()
    assert config.hidden_size == 512


def test_clip_config_may_be_a_config_its_dict_or_nothing(tiny_config):
    clip_config = tiny_config().clip_config
    from_config = CLIPFSARConfig(clip_config=clip_config)
    from_dict = CLIPFSARConfig(clip_config=clip_config.to_dict())
    assert from_config.clip_config is clip_config
    assert isinstance(from_dict.clip_config, CLIPConfig)
    assert from_dict.to_dict() == from_config.to_dict()
    assert from_dict.hidden_size == 16
    assert CLIPFSARConfig(clip_config=None).clip_config.projection_dim == 512


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_frames": 16, "temporal_num_layers": 0, "temporal_attention_dropout": 0, "prototype_modulation": False},
        {"alignment": "bi_mhm", "support_pooling": "after", "inference_mode": "ensemble", "otam_smoothing": 1},
    ],
)
def test_saved_and_loaded_config_is_the_same(tiny_config, tmp_path, fields):
    config = tiny_config(**fields)
    config.save_pretrained(tmp_path)
    for loaded in (CLIPFSARConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is CLIPFSARConfig
        # Where it was loaded from and the library's version are no part of the model.
        ours, theirs = (
            {key: value for key, value in c.to_dict().items() if key not in ("_name_or_path", "transformers_version")}
            for c in (config, loaded)
        )
        assert theirs == ours
        for name, value in fields.items():
            assert getattr(loaded, name) == value


def test_dict_of_a_config_makes_the_same_config(tiny_config):
    config = tiny_config(num_frames=3)
    assert CLIPFSARConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert CLIPFSARConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_saved_config_is_plain_json_with_the_clip_config_nested(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "clipfsar"
    assert saved["clip_config"]["model_type"] == "clip"
    assert saved["clip_config"]["vision_config"]["hidden_size"] == 32
    assert saved["auto_map"]["AutoModelForVideoClassification"] == "modeling_clipfsar.CLIPFSARModel"


def test_configs_do_not_share_their_auto_maps():
    one, other = CLIPFSARConfig(), CLIPFSARConfig()
    one.auto_map["AutoModel"] = "changed"
    assert "AutoModel" not in other.auto_map


def test_plain_clip_config_becomes_the_nested_one(tiny_config, tmp_path):
    clip_config = tiny_config().clip_config
    clip_config.save_pretrained(tmp_path)
    config = CLIPFSARConfig.from_pretrained(tmp_path, num_frames=16, temporal_num_heads=4)
    assert type(config) is CLIPFSARConfig
    assert (config.num_frames, config.temporal_num_heads, config.hidden_size) == (16, 4, 16)
    assert config.clip_config.vision_config.patch_size == clip_config.vision_config.patch_size
    assert config.clip_config.text_config.eos_token_id == clip_config.text_config.eos_token_id


def test_config_of_another_model_is_refused(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"type 'vit', but ViTModel has no get_image_features .* starts from"):
        CLIPFSARConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alignment": "dtw"}, "alignment='dtw' is not one of otam, bi_mhm, mean"),
        ({"support_pooling": "between"}, "support_pooling='between' is not one of before, after"),
        ({"inference_mode": "text"}, "inference_mode='text' is not one of few_shot, zero_shot, ensemble"),
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
        ({"temporal_num_heads": 0}, "temporal_num_heads=0 must be at least 1"),
        ({"temporal_intermediate_size": 0}, "temporal_intermediate_size=0 must be at least 1"),
        ({"temporal_num_layers": -1}, "temporal_num_layers=-1 must be 0 or more"),
        ({"temporal_attention_dropout": 1.5}, "temporal_attention_dropout=1.5 must lie between 0 and 1"),
        ({"temporal_hidden_dropout": -0.1}, "temporal_hidden_dropout=-0.1 must lie between 0 and 1"),
        ({"ensemble_text_weight": 9}, "ensemble_text_weight=9 must lie between 0 and 1"),
        ({"otam_smoothing": 0}, "otam_smoothing=0 must be greater than 0"),
        ({"ensemble_temperature": -8.0}, "ensemble_temperature=-8.0 must be greater than 0"),
        ({"temporal_num_heads": 3}, "projection size 16 is not a multiple of temporal_num_heads=3"),
    ],
)
def test_value_out_of_range_is_refused_with_its_limit(tiny_config, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)
