"""Whole-number arithmetic on CPUs: the linear layers of the visual tower in int8."""

import warnings

import torch
from torch import nn

from choices_clipfsar import DTYPES
from modeling_clipfsar import CLIPFSARModel


def quantize_int8(model: CLIPFSARModel) -> CLIPFSARModel:
    """Turns the linear layers of the visual tower's encoder into int8, in place; returns the model.

    Weights are rounded now, one scale per output channel; activations whenever they come, one scale per call. All that
    is cheap or decides between classes stays as it is: patches, projection, text tower (it runs once per class),
    temporal transformer and alignment. Such a model classifies on a CPU; it is neither trained, saved nor moved.

    Raises:
        ValueError: For a model elsewhere than on the CPU or in other arithmetic than float32, or a tower without an
            encoder of linear layers (CLIP's ResNets).
        ImportError: With a PyTorch that no longer has `torch.ao.quantization`.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise ValueError(
            f"int8 is made of a float32 model on the CPU; this one is {str(model.dtype).removeprefix('torch.')} on "
            f"{model.device}. Load it so, or use bfloat16, which GPUs have, too."
        )
    encoder = getattr(model.clip.vision_model, "encoder", None)
    if encoder is None:
        raise ValueError(
            f"int8 is for linear layers, and the visual tower of a {model.config.clip_config.model_type!r} is made of "
            "convolutions: use float32 or bfloat16."
        )
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    except ImportError as error:
        raise ImportError(
            f"int8 needs torch.ao.quantization, which torch {torch.__version__} does not have: use bfloat16, or an "
            "older torch (2.13 has it)."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a later PyTorch will not have it
        quantize_dynamic(encoder, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
    return model


__all__ = ["DTYPES", "quantize_int8"]
