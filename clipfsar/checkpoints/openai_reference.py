"""CLIP's two towers as plain functions of OpenAI's weights. Converted models are checked against them.

There are no modules and no renaming: each function reads the weights under OpenAI's names. A mistake in the renaming,
or in our modules, therefore shows in the features. For inference only, in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F

Weights = dict[str, torch.Tensor]
_ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}


def encode_image(weights: Weights, images: torch.Tensor, hidden_act: str = "quick_gelu") -> torch.Tensor:
    """Image features (V, D) of (V, 3, H, W). `weights` are the visual tower's, with names without `visual.`."""
    weights = {key: value.float() for key, value in weights.items()}
    if "attnpool.positional_embedding" in weights:
        return _resnet(weights, images)
    patch_size = weights["conv1.weight"].shape[-1]
    patches = F.conv2d(images, weights["conv1.weight"], stride=patch_size).flatten(2).transpose(1, 2)
    classes = weights["class_embedding"].expand(len(images), 1, -1)
    tokens = torch.cat([classes, patches], dim=1) + weights["positional_embedding"]
    tokens = _transformer(weights, _layer_norm(weights, "ln_pre", tokens), hidden_act)
    return _layer_norm(weights, "ln_post", tokens[:, 0]) @ weights["proj"]


def encode_text(weights: Weights, input_ids: torch.Tensor, hidden_act: str = "quick_gelu") -> torch.Tensor:
    """Text features (V, D) of tokens (V, L). The highest token id ends a text."""
    weights = {key: value.float() for key, value in weights.items()}
    length = input_ids.shape[1]
    tokens = weights["token_embedding.weight"][input_ids] + weights["positional_embedding"][:length]
    future = torch.full((length, length), -torch.inf).triu(1)
    tokens = _layer_norm(weights, "ln_final", _transformer(weights, tokens, hidden_act, future))
    return tokens[torch.arange(len(tokens)), input_ids.argmax(-1)] @ weights["text_projection"]


def _layer_norm(weights: Weights, name: str, tokens: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def _transformer(weights: Weights, tokens: torch.Tensor, hidden_act: str, mask=None) -> torch.Tensor:
    """Pre-norm transformer blocks, (V, L, width) -> (V, L, width), with heads of size 64."""
    size = tokens.shape[-1]
    layer = 0
    while f"transformer.resblocks.{layer}.ln_1.weight" in weights:
        name = f"transformer.resblocks.{layer}"
        states = _layer_norm(weights, f"{name}.ln_1", tokens).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            states,
            states,
            states,
            size,
            max(1, size // 64),
            weights[f"{name}.attn.in_proj_weight"],
            weights[f"{name}.attn.in_proj_bias"],
            None,
            None,
            False,
            0.0,
            weights[f"{name}.attn.out_proj.weight"],
            weights[f"{name}.attn.out_proj.bias"],
            training=False,
            need_weights=False,
            attn_mask=mask,
        )
        tokens = tokens + attended.transpose(0, 1)
        states = _layer_norm(weights, f"{name}.ln_2", tokens)
        states = F.linear(states, weights[f"{name}.mlp.c_fc.weight"], weights[f"{name}.mlp.c_fc.bias"])
        states = _ACTIVATIONS[hidden_act](states)
        tokens = tokens + F.linear(states, weights[f"{name}.mlp.c_proj.weight"], weights[f"{name}.mlp.c_proj.bias"])
        layer += 1
    return tokens


def _resnet(weights: Weights, images: torch.Tensor) -> torch.Tensor:
    def convolve(x, conv: str, norm: str, stride: int = 1):
        kernel = weights[f"{conv}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        statistics: Any = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *statistics)

    x = images
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = convolve(x, f"conv{number}", f"bn{number}", stride).relu()
    x = F.avg_pool2d(x, 2)
    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in weights:
            name, pool = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = convolve(x, f"{name}.conv1", f"{name}.bn1").relu()
            y = convolve(y, f"{name}.conv2", f"{name}.bn2").relu()
            y = convolve(F.avg_pool2d(y, pool), f"{name}.conv3", f"{name}.bn3")
            if f"{name}.downsample.0.weight" in weights:
                x = convolve(F.avg_pool2d(x, pool), f"{name}.downsample.0", f"{name}.downsample.1")
            x = (x + y).relu()
            block += 1

    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + weights["attnpool.positional_embedding"][:, None]
    kernels: Any = {f"{letter}_proj_weight": weights[f"attnpool.{letter}_proj.weight"] for letter in "qkv"}
    pooled, _ = F.multi_head_attention_forward(
        tokens[:1],
        tokens,
        tokens,
        tokens.shape[-1],
        max(1, tokens.shape[-1] // 64),
        None,
        torch.cat([weights[f"attnpool.{letter}_proj.bias"] for letter in "qkv"]),
        None,
        None,
        False,
        0.0,
        weights["attnpool.c_proj.weight"],
        weights["attnpool.c_proj.bias"],
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        **kernels,
    )
    return pooled[0]


__all__ = ["encode_image", "encode_text"]
