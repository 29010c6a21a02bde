"""Inputs to the fingerprint of a support set: weights, precision and preprocessing, as digests and plain values."""

import hashlib
import json
import weakref
from collections.abc import Iterable
from typing import Any

import torch

try:
    from .backbones_clipfsar import tower_configs
except ImportError:
    if __package__:
        raise
    from backbones_clipfsar import tower_configs

try:
    from .offloading_clipfsar import loaded_state
except ImportError:
    if __package__:
        raise
    from offloading_clipfsar import loaded_state

try:
    from .paths_clipfsar import public_name
except ImportError:
    if __package__:
        raise
    from paths_clipfsar import public_name

# Configuration settings that change the prototypes, distances or text logits of the same weights.
COMPARISON_SETTINGS = (
    *("support_pooling", "prototype_modulation", "alignment"),
    *("otam_smoothing", "otam_bidirectional", "cosine_epsilon"),
    "chamfer_tuple_size",
)


def weights_digest(modules: Iterable[torch.nn.Module], settings: Any = None) -> str:
    """SHA-256 of the weights of modules, by name, of the adapters in use, and of `settings` (any JSON value)."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for module in modules:
        for name, value in sorted(loaded_state(module).items()):
            for tensor in _plain_tensors(value):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        if adapters := adapters_in_use(module):
            digest.update(json.dumps(adapters).encode())
    return digest.hexdigest()


def adapters_in_use(model: torch.nn.Module) -> tuple:
    """What peft's adapters in a model compute, by layer: the weights are the same when they are switched off."""
    return tuple(
        (
            name,
            layer.disable_adapters,
            tuple(layer.active_adapters),
            tuple(sorted(getattr(layer, "scaling", {}).items())),
        )
        for name, layer in model.named_modules()
        if isinstance(getattr(type(layer), "disable_adapters", None), property)  # a transformers model has a method
    )


def _plain_tensors(value: Any) -> list[torch.Tensor]:
    """A weight as tensors with readable bytes; a quantised layer keeps its weight and bias in a tuple."""
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in _plain_tensors(part)]
    if not isinstance(value, torch.Tensor):  # no bias, or the name of a dtype
        return []
    return [value.int_repr(), value.q_per_channel_scales()] if value.is_quantized else [value]


def precision_of(model) -> str:
    """`"float32"`, `"bfloat16"`, ..., or `"int8"` if layers are quantised. Features differ between precisions."""
    is_quantized = any(".quantized." in type(module).__module__ for module in model.modules())
    return "int8" if is_quantized else str(model.dtype).removeprefix("torch.")


def unseen_settings(tower_config) -> list:
    """Settings that change a tower's features without showing in the names and shapes of its weights."""
    return [getattr(tower_config, name, None) for name in ("hidden_act", "num_attention_heads", "layer_norm_eps")]


_IMAGE_SETTINGS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


def preprocessing_settings(processor) -> dict:
    """The settings of a processor that change frame features, as they come back from JSON."""
    settings = processor.to_dict()
    names = ("num_frames", "frame_sampling", "sampling_rate", "target_fps", "preprocessing")
    relevant = {name: settings[name] for name in names}
    # Not all settings: class and code path differ with the installed packages and the folder it was loaded from.
    images = settings["image_processor"]
    relevant["image_processor"] = {name: images[name] for name in _IMAGE_SETTINGS if images.get(name) is not None}
    return json.loads(json.dumps(relevant))


# model -> (state of its weights, digest): hashing costs a second per 2 GB
_digests: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def weights_state(model) -> tuple:
    """A value that changes when weights are modified in place or replaced; far cheaper than reading the weights.

    PyTorch does not count writes through `.data`, such as an average of weights makes, so one element of each tensor is
    compared as well. A write through `.data` that leaves all of these elements as they are goes unnoticed.
    """
    tensors = [*model.parameters(), *model.buffers()]
    known = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
    return known, _middle_elements(tensors), adapters_in_use(model)


@torch.no_grad()
def _middle_elements(tensors: Iterable[torch.Tensor]) -> dict[tuple, bytes]:
    """The middle element of each plain tensor, as bytes per device and dtype: one transfer for each."""
    elements: dict[tuple, list[torch.Tensor]] = {}
    for tensor in tensors:
        number = tensor.numel()
        is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if not is_plain or not number or tensor.is_quantized or tensor.is_meta:
            continue
        if tensor.is_contiguous():
            place = number // 2
        else:
            place = sum(size // 2 * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        element = tensor.as_strided((1,), (1,), tensor.storage_offset() + place)
        elements.setdefault((tensor.device, tensor.dtype), []).append(element)
    return {kind: torch.cat(ones).view(torch.uint8).cpu().numpy().tobytes() for kind, ones in elements.items()}


def model_digest(model) -> str:
    """SHA-256 of all weights of a CLIP-FSAR model."""
    state = weights_state(model)
    if model not in _digests or _digests[model][0] != state:
        towers = [unseen_settings(config) for config in tower_configs(model.config.clip_config)]
        _digests[model] = state, weights_digest([model], towers)
    return _digests[model][1]


def fingerprint_of(model, processor=None) -> dict:
    """Model, weights, precision and, with a processor, preprocessing of a support set's features, ready for JSON."""
    name = str(getattr(model, "name_or_path", "") or "")
    fingerprint: dict[str, Any] = {
        "model": public_name(name) if name else "a model made in memory",
        "weights": model_digest(model),
        "dtype": precision_of(model),
    }
    if processor is not None:
        settings = preprocessing_settings(processor)
        fingerprint["preprocessing"] = {**settings, "prompt_template": processor.prompt_template}
        if getattr(processor, "class_texts", None) is not None:  # sets of earlier versions do not name it
            fingerprint["preprocessing"]["class_texts"] = json.loads(json.dumps(processor.class_texts))
    return fingerprint


def differences(enrolled: dict, now: dict) -> list[str]:
    """Lists the settings that differ, also nested ones, as `["num_frames 8 (now 16)", ...]`."""
    different = []
    for name in now.keys() | enrolled.keys():
        before, after = enrolled.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            different += differences(before, after)
        elif before != after:
            different.append(f"{name} {before} (now {after})")
    return sorted(different)


__all__ = [
    "COMPARISON_SETTINGS",
    "differences",
    "fingerprint_of",
    "model_digest",
    "precision_of",
    "preprocessing_settings",
    "unseen_settings",
    "weights_digest",
    "weights_state",
]
