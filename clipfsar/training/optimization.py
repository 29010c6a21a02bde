"""The optimizer, which weights it decays, and whether it fits the model and a saved state."""

import logging
from pathlib import Path

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
    """Checks an optimizer: one that was given may be of another model, or made before the model had all its layers.

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


_MEANS_OF_GRADIENTS = ("exp_avg", "momentum_buffer")  # have the weight's shape; other values may be factored


def check_optimizer_state(optimizer: torch.optim.Optimizer, saved_state: Path) -> None:
    """Checks that a run's saved optimizer is of the same kind, with the same weights in the same order.

    torch loads the state of another kind without a word, and then lacks a setting, or has values of other weights.
    Another version of torch may know more settings of the same optimizer. So each side must have some of its own
    before they count as two kinds.

    Raises:
        ValueError: When they differ; the message says in what.
    """
    path = saved_state / "optimizer.bin"
    if not path.is_file():  # FSDP saves a folder, and names the weights in it
        return
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    both = saved["param_groups"], optimizer.param_groups
    numbers, numbers_now = ([len(group["params"]) for group in groups] for groups in both)
    settings, settings_now = (sorted({*groups[0]} - {"params", "initial_lr"}) for groups in both)
    if numbers != numbers_now:
        difference = f"{numbers} weights in its groups, not {numbers_now}"
    elif {*settings} - {*settings_now} and {*settings_now} - {*settings}:
        difference = f"the settings {', '.join(settings)}, not {', '.join(settings_now)}"
    else:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        numbered = [number for group in saved["param_groups"] for number in group["params"]]
        shapes = [
            (number, tuple(value.shape), tuple(weight.shape))
            for number, weight in zip(numbered, weights, strict=True)
            for name, value in saved["state"].get(number, {}).items()
            if name in _MEANS_OF_GRADIENTS and isinstance(value, torch.Tensor) and value.shape != weight.shape
        ]
        if not shapes:
            return
        difference = "a state of shape {1} for weight {0}, not {2}".format(*shapes[0])
    raise ValueError(
        f"The optimizer is not that of the run in {saved_state.parent}, which has {difference}: resume with an "
        "optimizer of the same class and weights, in the same order, or use another output_dir."
    )


__all__ = ["check_optimizer", "check_optimizer_state", "make_optimizer", "optimizer_groups"]
