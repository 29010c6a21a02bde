"""Weights of the official code base's TRX, HyRSM and HyRSM++ heads, under the names of `heads_clipfsar`."""

import re
from collections.abc import Mapping
from typing import Any

import torch

# Official names on the left. A number in a name is that of a cardinality.
_NAMES = {
    "trx": {
        r"transformers\.(\d+)\.k_linear\.": r"key_maps.\1.",
        r"transformers\.(\d+)\.v_linear\.": r"value_maps.\1.",
        r"transformers\.(\d+)\.norm_k\.": r"key_norms.\1.",
    },
    "hyrsm": {
        r"temporal_atte_before\.norm\.": "frame_norm.",
        r"temporal_atte_before\.fn\.to_qkv\.": "frame_qkv.",
        r"temporal_atte_before\.fn\.to_out\.0\.": "frame_out.",
        r"temporal_atte\.fc\.": "video_out.",
        r"temporal_atte\.layer_norm\.": "video_norm.",
        r"layer2\.0\.": "mix.",
        r"classification_layer\.": "classifier.",
    },
}
# Recorded in the files, but not used: a norm that the official program never calls, and codes that we compute.
_UNUSED = re.compile(r"transformers\.\d+\.(norm_v|pe)\.|pe\.")


def head_weights(name: str, official: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a head, `"trx"` or `"hyrsm"` (also HyRSM++'s), from official ones.

    Raises:
        ValueError: For an official name that such a head does not have.
    """
    weights, projections = {}, {}
    for key, value in official.items():
        if _UNUSED.match(key):
            continue
        if name == "hyrsm" and key.startswith("temporal_atte.w_"):
            projections[key.removeprefix("temporal_atte.w_")] = value
            continue
        found = [re.sub(f"^{old}", new, key) for old, new in _NAMES[name].items() if re.match(old, key)]
        if not found:
            raise ValueError(f"{key!r} is not a weight of the official {name} head.")
        weights[found[0]] = value.squeeze(-1) if key.startswith("layer2.0.weight") else value
    if projections:
        weights["video_qkv.weight"] = torch.cat([projections[f"{one}s.weight"] for one in "qkv"])
    return weights


def head_settings(name: str, weights: Mapping[str, torch.Tensor], hidden_size: int) -> dict[str, Any]:
    """Settings of the configuration that the shapes of a head's weights determine, for frames of `hidden_size`."""
    if name == "trx":
        maps = [weight for key, weight in sorted(weights.items()) if re.fullmatch(r"key_maps\.\d+\.weight", key)]
        return {"trx_size": len(maps[0]), "trx_cardinalities": [one.shape[1] // hidden_size for one in maps]}
    return {"num_base_classes": len(weights["classifier.bias"]) if "classifier.bias" in weights else 0}


__all__ = ["head_settings", "head_weights"]
