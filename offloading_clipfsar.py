"""Weights that accelerate has offloaded to the disk or the CPU: they are "meta" tensors, except during `forward`."""

from collections.abc import Iterable

import torch


def _hooks_of(modules: Iterable[torch.nn.Module]) -> list:
    """accelerate's hooks of modules; a sequence of hooks counts as its members."""
    hooks = [module._hf_hook for module in modules if hasattr(module, "_hf_hook")]
    return [one for hook in hooks for one in getattr(hook, "hooks", [hook])]


def computing_device(model: torch.nn.Module) -> torch.device:
    """The device of a model's weights, or, if they are offloaded, the one that they are brought to for computing."""
    device = next(model.parameters()).device
    if device.type != "meta":
        return device
    places = [getattr(hook, "execution_device", None) for hook in _hooks_of(model.modules())]
    return next((torch.device(place) for place in places if place is not None), device)


def loaded_weight(module: torch.nn.Module, name: str) -> torch.Tensor:
    """A parameter of the module itself, also where it is offloaded."""
    weight = getattr(module, name)
    if weight.is_meta:
        for hook in _hooks_of([module]):
            if getattr(hook, "weights_map", None) is not None:
                return hook.weights_map[name]
    return weight


def loaded_state(module: torch.nn.Module) -> dict:
    """The `state_dict` of a module, with offloaded weights."""
    state = module.state_dict()
    modules = dict(module.named_modules())
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_meta:
            owner, _, own_name = name.rpartition(".")
            state[name] = loaded_weight(modules[owner], own_name)
    return state


__all__ = ["computing_device", "loaded_state", "loaded_weight"]
