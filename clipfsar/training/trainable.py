"""Chooses the trained weights: the whole visual tower, its last layers, LoRA adapters in it, or none of it.

The text tower never trains. The temporal transformer, the video-text scale and a head always train.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from clipfsar.training.run_folder import has_same_weights
from modeling_clipfsar import VISION_MODULES, CLIPFSARModel
from pipeline_clipfsar import save_with_pipeline
from support_set_files_clipfsar import write_tensors

ADAPTER_FOLDER = "adapter"


def choose_trainable(model: CLIPFSARModel, args):
    """Freezes weights and adds adapters as `args` say. Call it before you create the optimizer.

    Args:
        model: Changed in place.
        args: `EpisodicTrainingArguments`: `freeze_vision`, `train_last_layers`, `lora_*` and `freeze_batch_norm`.

    Raises:
        ValueError: When a setting does not fit the model; the message names values that do.
    """
    model.freeze_text_tower()
    vision = _vision_parameters(model)
    if args.freeze_vision or args.train_last_layers is not None or args.lora_rank:
        for parameter in vision.values():
            parameter.requires_grad_(False)
    if args.train_last_layers is not None:
        _unfreeze_last_layers(model, args.train_last_layers)
    if args.lora_rank:
        _add_adapters(model, args)
    if args.freeze_batch_norm:
        norms = [m for m in model.clip.vision_model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            raise ValueError("--freeze_batch_norm: this visual tower has no batch norms; leave the option out.")
        for norm in norms:
            norm.requires_grad_(False)  # the model also keeps the statistics of frozen norms


def _vision_parameters(model: CLIPFSARModel) -> dict[str, nn.Parameter]:
    """Parameters of the visual tower and its projection by name, in order from the pixels on."""
    return {name: weight for name, weight in model.clip.named_parameters() if name.startswith(VISION_MODULES)}


def _unfreeze_last_layers(model: CLIPFSARModel, num_layers: int):
    """Unfreezes the last transformer layers or residual blocks, and everything after them."""
    layers = [m for m in model.clip.vision_model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if num_layers > len(layers):
        raise ValueError(
            f"--train_last_layers {num_layers}: the visual tower has {len(layers)} layers; leave the option out to "
            "train all of it."
        )
    parameters = list(_vision_parameters(model).values())
    position = {id(parameter): number for number, parameter in enumerate(parameters)}
    if num_layers:
        first = position[id(next(layers[-num_layers].parameters()))]
    else:
        first = 1 + max(position[id(parameter)] for parameter in layers[-1].parameters())
    for parameter in parameters[first:]:
        parameter.requires_grad_(True)


# ----------------------------------------------------------------------------------------------------------------------
# LoRA
# ----------------------------------------------------------------------------------------------------------------------


def _import_peft():
    try:
        import peft
    except ImportError:
        raise ValueError("--lora_rank needs the package peft: pip install peft.") from None
    return peft


def _add_adapters(model: CLIPFSARModel, args):
    """Adds LoRA (Hu et al., ICLR 2022) to the visual tower: W x + alpha / rank * B A x, where A and B train."""
    peft = _import_peft()
    tower = model.clip.vision_model
    kinds = {name.split(".")[-1] for name, module in tower.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    unknown = sorted({target.split(".")[-1] for target in args.lora_targets} - kinds)
    if unknown:
        raise ValueError(
            f"--lora_targets {' '.join(unknown)}: the visual tower's linear and convolution layers are named "
            f"{', '.join(sorted(kinds))}."
        )
    config = peft.LoraConfig(
        r=args.lora_rank,
        lora_alpha=2 * args.lora_rank if args.lora_alpha is None else args.lora_alpha,
        target_modules=list(args.lora_targets),
        # For a local folder only its name: the path on this machine is of no use elsewhere.
        base_model_name_or_path=Path(args.model).resolve().name if Path(args.model).exists() else args.model,
    )
    peft.inject_adapter_in_model(config, tower)


def has_adapters(model: CLIPFSARModel) -> bool:
    return any(".lora_" in name for name, _ in model.named_parameters())


@torch.no_grad()
def merged_state_dict(model: CLIPFSARModel) -> dict[str, torch.Tensor]:
    """The weights with merged adapters, under the names of a model without adapters; the model is not changed."""
    state = {
        name.replace(".base_layer.", "."): weight for name, weight in model.state_dict().items() if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            state[f"{name}.weight"] = module.base_layer.weight + module.get_delta_weight("default")
    return state


def remove_adapters(model: CLIPFSARModel):
    """Replaces layers with adapters by their original layers, in place; does nothing without adapters."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "base_layer"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base_layer)
    for module in model.modules():
        vars(module).pop("peft_config", None)  # or peft warns of a second adapter later


def load_weights(model: CLIPFSARModel, folder: Path):
    """Loads the weights in a folder. They include merged adapters, so those of the model are removed."""
    files = sorted(folder.glob("model*.safetensors"))
    weights = {name: weight for file in files for name, weight in load_file(file).items()}
    remove_adapters(model)
    model.load_state_dict(weights)


def save_trained_model(model: CLIPFSARModel, processor, folder: Path, keep_adapter: bool = False):
    """Calls `save_with_pipeline` with the adapters merged into the weights; `keep_adapter` also saves them separately.

    `folder/adapter` is in peft's format. It fits the visual tower that the training started from:
    `PeftModel.from_pretrained(start.clip.vision_model, folder / "adapter")`.
    """
    if not has_adapters(model):
        save_with_pipeline(model, processor, folder)
        return
    save_with_pipeline(model, processor, folder, state_dict=merged_state_dict(model))
    if keep_adapter:
        peft, tower = _import_peft(), model.clip.vision_model
        state = peft.get_peft_model_state_dict(tower, save_embedding_layers=False)
        (folder / ADAPTER_FOLDER).mkdir()
        tower.peft_config["default"].save_pretrained(folder / ADAPTER_FOLDER)
        weights = {f"base_model.model.{name}": weight.contiguous().cpu() for name, weight in state.items()}
        write_tensors(weights, folder / ADAPTER_FOLDER / "adapter_model.safetensors", metadata={"format": "pt"})


def copy_adapter(best: Path, new: Path):
    """Copies the adapter in `best` to `new` if both hold the same model: the best model again, its adapter merged."""
    if (best / ADAPTER_FOLDER).is_dir() and not (new / ADAPTER_FOLDER).exists() and has_same_weights(best, new):
        shutil.copytree(best / ADAPTER_FOLDER, new / ADAPTER_FOLDER)


# ----------------------------------------------------------------------------------------------------------------------
# Report
# ----------------------------------------------------------------------------------------------------------------------


def trainable_report(model: CLIPFSARModel) -> str:
    """One line with the numbers of trained and total parameters of each part of the model."""
    counts = {"visual tower": [0, 0], "text tower": [0, 0], "temporal transformer": [0, 0], "all": [0, 0]}
    if model.comparison_head is not None:
        counts["head"] = [0, 0]
    for name, parameter in model.named_parameters():
        clip_name = name.removeprefix("clip.")
        if name.startswith("comparison_head."):
            part = "head"
        elif clip_name == name:
            part = "temporal transformer"  # with the video-text scale, a single number
        else:
            part = "visual tower" if clip_name.startswith(VISION_MODULES) else "text tower"
        for count in (counts[part], counts["all"]):
            count[0] += parameter.numel() * parameter.requires_grad
            count[1] += parameter.numel()
    parts = [f"{part} {trained:,} of {total:,}" for part, (trained, total) in counts.items() if part != "all"]
    trained, total = counts["all"]
    return f"Trained parameters: {', '.join(parts)}; {trained:,} of {total:,} in all ({100 * trained / total:.2f}%)."


__all__ = [
    "choose_trainable",
    "copy_adapter",
    "has_adapters",
    "load_weights",
    "merged_state_dict",
    "remove_adapters",
    "save_trained_model",
    "trainable_report",
]
