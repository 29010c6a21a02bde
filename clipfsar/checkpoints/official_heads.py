"""Weights of the official code base's TRX, HyRSM and HyRSM++ heads, under the names of `heads_clipfsar` and back."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import yaml

# Official names and ours. {} is the number of a cardinality.
_NAMES = {
    "trx": {
        "transformers.{}.k_linear.": "key_maps.{}.",
        "transformers.{}.v_linear.": "value_maps.{}.",
        "transformers.{}.norm_k.": "key_norms.{}.",
    },
    "hyrsm": {
        "temporal_atte_before.norm.": "frame_norm.",
        "temporal_atte_before.fn.to_qkv.": "frame_qkv.",
        "temporal_atte_before.fn.to_out.0.": "frame_out.",
        "temporal_atte.fc.": "video_out.",
        "temporal_atte.layer_norm.": "video_norm.",
        "layer2.0.": "mix.",
        "classification_layer.": "classifier.",
    },
}
_PROJECTIONS = "temporal_atte.w_{}s.weight"  # of query, key and value: one matrix here
_CONVOLUTION = "layer2.0.weight"  # 1 x 1: a linear layer here
# Recorded in the files, but not used: a norm that the official program never calls, and codes and tuples of frames that
# both programs compute.
_UNUSED = re.compile(r"transformers\.\d+\.(norm_v|pe|tuples)\.|pe\.")
_TUPLES = re.compile(r"transformers\.\d+\.tuples\.\d+")
_HEAD_OF = {"transformers.": "trx", "temporal_atte_before.": "hyrsm"}  # start of an official name -> head
_NUM_HEADS = 8  # of HyRSM's attentions, unless the settings say another number
# Settings of HyRSM's position code, in TRAIN: only these values are in our head. EPIC-Kitchens has others.
_POSITION_CODE = {"POSITION_A": 10.0, "POSITION_B": 1.0}


def head_name(official: Mapping[str, torch.Tensor]) -> str | None:
    """The head that official weights have, `"trx"` or `"hyrsm"`; None for weights without one."""
    return next((head for start, head in _HEAD_OF.items() for key in official if key.startswith(start)), None)


def used_weights(official: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official weights of a head without those that nothing is computed with."""
    return {key: value for key, value in official.items() if not _UNUSED.match(key)}


def head_weights(name: str, official: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a head, `"trx"` or `"hyrsm"` (also HyRSM++'s), from official ones. Some may be missing.

    Raises:
        ValueError: For an official name that such a head does not have.
    """
    weights, projections = {}, {}
    for key, value in used_weights(official).items():
        if name == "hyrsm" and key.startswith("temporal_atte.w_"):
            projections[key] = value
            continue
        own = _renamed(key, _NAMES[name])
        if own is None:
            raise ValueError(f"{key!r} is not a weight of the official {name} head.")
        weights[own] = value.squeeze(-1) if key == _CONVOLUTION else value
    names = [_PROJECTIONS.format(letter) for letter in "qkv"]
    if all(key in projections for key in names):
        weights["video_qkv.weight"] = torch.cat([projections[key] for key in names])
    return weights


def official_head_weights(name: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `head_weights`: what the official program needs of a head's weights."""
    names, official = {own: key for key, own in _NAMES[name].items()}, {}
    for own, value in weights.items():
        if own == "video_qkv.weight":
            for letter, projection in zip("qkv", value.chunk(3), strict=True):
                official[_PROJECTIONS.format(letter)] = projection
            continue
        key = _renamed(own, names)
        assert key is not None, own
        official[key] = value.unsqueeze(-1) if key == _CONVOLUTION else value
    return official


def _renamed(key: str, names: Mapping[str, str]) -> str | None:
    for old, new in names.items():
        pattern, replacement = re.escape(old).replace(r"\{\}", r"(\d+)"), new.replace("{}", r"\1")
        if re.match(pattern, key):
            return re.sub(f"^{pattern}", replacement, key)
    return None


def head_settings(name: str, weights: Mapping[str, torch.Tensor], hidden_size: int) -> dict[str, Any]:
    """Settings of the configuration that the shapes of a head's weights determine, for frames of `hidden_size`.

    Raises:
        ValueError: When TRX has no map of keys.
    """
    if name == "trx":
        maps = [weight for key, weight in sorted(weights.items()) if re.fullmatch(r"key_maps\.\d+\.weight", key)]
        if not maps:
            raise ValueError("The official trx head has no weight transformers.0.k_linear.weight.")
        return {"trx_size": len(maps[0]), "trx_cardinalities": [one.shape[1] // hidden_size for one in maps]}
    return {"num_base_classes": len(weights["classifier.bias"]) if "classifier.bias" in weights else 0}


def recorded_settings(name: str, recorded: Any, source: str) -> dict[str, Any]:
    """Settings of the configuration that only the settings recorded in a checkpoint say.

    Args:
        recorded: `cfg` of the checkpoint, YAML text; None or empty: the official defaults.
        source: Name of the file, for errors.

    Raises:
        ValueError: When it is not YAML, or HyRSM's position code has settings that our head has not.
    """
    if name != "hyrsm":
        return {}
    try:
        settings = yaml.safe_load(recorded or "{}")
    except (yaml.YAMLError, AttributeError) as error:
        raise ValueError(f"{source}: 'cfg' is not YAML text: {' '.join(str(error).split())}") from None
    train = settings.get("TRAIN") if isinstance(settings, dict) else None
    train = train if isinstance(train, dict) else {}
    different = [f"{key}: {train[key]}" for key, value in _POSITION_CODE.items() if train.get(key, value) != value]
    if different or "NO_POSITION" in train:
        listed = ", ".join(different or ["NO_POSITION"])
        raise ValueError(
            f"{source} was trained with another position code, {listed}. Only HyRSM's own can be converted: "
            f"{', '.join(f'{key}: {value:g}' for key, value in _POSITION_CODE.items())}."
        )
    return {"temporal_num_heads": int(train.get("HEAD") or _NUM_HEADS)}


def check_num_frames(official: Mapping[str, torch.Tensor], num_frames: int, source: str):
    """Raises `ValueError` when TRX's tuples are of videos with another number of frames."""
    frames = [int(value.max()) + 1 for key, value in official.items() if _TUPLES.fullmatch(key)]
    if frames and max(frames) != num_frames:
        raise ValueError(
            f"{source} was trained with {max(frames)} frames per video, not {num_frames}: give --num_frames "
            f"{max(frames)}."
        )


__all__ = [
    "check_num_frames",
    "head_name",
    "head_settings",
    "head_weights",
    "official_head_weights",
    "recorded_settings",
    "used_weights",
]
