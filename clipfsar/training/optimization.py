"""The optimizer, and which weights it decays."""

import torch
from torch import nn


def optimizer_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Two groups of trained parameters: with and without weight decay.

    The official program does not decay parameters with "bn" or "norm" in *its* names: batch norms and the norms of the
    temporal transformer. It names CLIP's own LayerNorms `ln_*` and decays them, so we decay them as well.
    """
    with_decay: list[nn.Parameter] = []
    without_decay: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = "bn" in name or (name.startswith("temporal_transformer.") and ".norm." in name)
            (without_decay if is_exempt else with_decay).append(parameter)
    return [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without_decay, "weight_decay": 0.0},
    ]


def make_optimizer(model: torch.nn.Module, args) -> torch.optim.Optimizer:
    """Adam or AdamW over the trained parameters, at the warm-up rate; `args` are `EpisodicTrainingArguments`."""
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer]
    return optimizer_class(optimizer_groups(model, args.weight_decay), lr=args.warmup_learning_rate, fused=True)


__all__ = ["make_optimizer", "optimizer_groups"]
