"""The optimizer, and which weights it decays."""

import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)


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


def check_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Checks an optimizer that was given: one of another model, or made before the model had all its layers.

    Raises:
        ValueError: When it holds weights of another model, or none that train. Trained weights that it leaves out are a
            warning: that may be on purpose.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held - {id(parameter) for parameter in model.parameters()}:
        raise ValueError("The optimizer holds parameters of another model: make it with this model's parameters.")
    trained = {name: id(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    left_out = [name for name, parameter in trained.items() if parameter not in held]
    advice = (
        "make it after the EpisodicTrainer, which adds the method's layers and chooses what trains, and set "
        "trainer.optimizer; or override create_optimizer"
    )
    if len(left_out) == len(trained):
        raise ValueError(f"The optimizer holds none of the {len(trained)} weights that train: {advice}.")
    if left_out:
        logger.warning(
            f"The optimizer leaves out {len(left_out)} of {len(trained)} weights that train, such as {left_out[0]}: "
            f"they stay as they are. If you do not mean this, {advice}."
        )


__all__ = ["check_optimizer", "make_optimizer", "optimizer_groups"]
