"""FSDP 2: trained weights, gradients and optimizer state shared among the processes, as accelerate's settings ask.

Validation, the test and saving need whole weights, and not on all processes at once. FSDP 2 therefore trains a copy of
the model. The copy's frozen weights are the model's own tensors, so they take no memory; its trained weights are
sharded. `gather_weights` brings them back into the model.
"""

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

# What accelerate's other settings are called; they would change how a model trains.
_OTHERS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism_config",
}


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")


def make_fsdp_plugin(mixed_precision: str | None, compiles: bool) -> FullyShardedDataParallelPlugin | None:
    """The plugin for accelerate's settings; None if they do not ask for FSDP.

    Args:
        mixed_precision: The run's option; None for accelerate's setting.
        compiles: Whether the run compiles its model.

    Raises:
        ValueError: For settings that this trainer does not support, such as DeepSpeed and FSDP 1. The message says
            what to set instead.
    """
    for variable, name in _OTHERS.items():
        if _is_set(variable):
            raise ValueError(
                f"{name} is not supported ({variable} is set): use FSDP 2 (fsdp_version: 2), or several processes "
                "without it, which give the same losses."
            )
    if not _is_set("ACCELERATE_USE_FSDP"):
        return None
    # Without a setting, the layers in `_no_split_modules` become units of their own.
    os.environ.setdefault("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    # Where one process loads the weights for all, the others could not build a model from a plain CLIP.
    plugin = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False)
    mixed_precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    refusals = {
        f"fsdp_version: {plugin.fsdp_version} is not supported: set fsdp_version: 2": plugin.fsdp_version != 2,
        "fsdp_ignored_modules is not supported: frozen weights are never sharded": bool(plugin.ignored_modules),
        "fsdp_offload_params is not supported: set it to false": _is_set("FSDP_OFFLOAD_PARAMS"),
        "fsdp_activation_checkpointing is not supported: set it to false and give --gradient_checkpointing": (
            plugin.activation_checkpointing
        ),
        "fp16 is not supported with FSDP 2: use --mixed_precision bf16 or no": mixed_precision == "fp16",
        "--torch_compile is not supported with FSDP 2: leave one of them out": compiles,
    }
    for message, is_asked in refusals.items():
        if is_asked:
            raise ValueError(f"{message}.")
    # Autocast sets the precision, as without FSDP, so the alignment stays in float32.
    plugin.set_mixed_precision("fp32", override=True)
    return plugin


def start_sharding(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Makes sure that `accelerator` shards: on CPUs, accelerate ignores its FSDP settings.

    Raises:
        ValueError: With a single process, which has nothing to share.
    """
    if accelerator.num_processes == 1:
        raise ValueError(
            "FSDP is set (ACCELERATE_USE_FSDP), but there is only one process: start several, for example with "
            "torchrun --nproc_per_node 2, or switch FSDP off."
        )
    for state in (PartialState(), accelerator.state):  # accelerate copies the first one into the second
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the accelerator shards with FSDP 2."""
    return bool(accelerator.is_fsdp2)


def form_of_state(accelerator: Accelerator) -> str | None:
    """How accelerate saves the state: accelerate's name with FSDP 2, None without it."""
    return accelerator.state.fsdp_plugin.state_dict_type.name if is_sharded(accelerator) else None


def check_form_of_state(accelerator: Accelerator, saved: str | None, output_dir: Path) -> None:
    """Raises `ValueError` if this accelerator cannot read a state of the form `saved`."""
    ours = form_of_state(accelerator)
    if saved != ours:
        names = {form: f"with FSDP 2 ({form})" if form else "without FSDP" for form in (saved, ours)}
        raise ValueError(
            f"The run in {output_dir} was saved {names[saved]} and cannot continue {names[ours]}: resume it with the "
            "settings of accelerate that it was started with."
        )


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader
) -> tuple[Any, Any, DataLoader]:
    """`accelerator.prepare`. With FSDP 2 it wraps a copy of `model`, and `optimizer` then steps the copy."""
    if not is_sharded(accelerator):
        return accelerator.prepare(model, optimizer, loader)
    # DistributedDataParallel sends the weights of the first process to the others; FSDP 2 does not.
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(broadcast(tensor.contiguous()))
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    trained = copy.deepcopy(model, {id(parameter): parameter for parameter in frozen})
    _step_other_parameters(optimizer, dict(zip(model.parameters(), trained.parameters(), strict=True)))
    # FSDP 2 cannot shard numbers, such as CLIP's frozen scale.
    accelerator.state.fsdp_plugin.ignored_modules = [nn.ParameterList(frozen)]
    trained.forward = accelerator.autocast()(trained.forward)
    # Views are harmless: nothing changes the model's output in place.
    warnings.filterwarnings("ignore", message=".*FSDP2-wrapped module .* returned a view tensor")
    return accelerator.prepare(trained, optimizer, loader)


def _step_other_parameters(optimizer: torch.optim.Optimizer, others: dict[nn.Parameter, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [others[parameter] for parameter in group["params"]]


@torch.no_grad()
def gather_weights(accelerator: Accelerator, wrapped_model: nn.Module, model: nn.Module) -> None:
    """Copies the sharded weights into `model` on every process. All processes must call it. Nothing without FSDP 2."""
    if not is_sharded(accelerator):
        return
    tensors = model.state_dict()
    for name, tensor in wrapped_model.state_dict().items():
        if isinstance(tensor, DTensor):
            tensors[name].copy_(tensor.full_tensor())
    for name, buffer in wrapped_model.named_buffers():  # running statistics: the first process's, as without FSDP
        if name in tensors:
            tensors[name].copy_(broadcast(buffer))


__all__ = [
    "check_form_of_state",
    "form_of_state",
    "gather_weights",
    "is_sharded",
    "make_fsdp_plugin",
    "prepare",
    "start_sharding",
]
