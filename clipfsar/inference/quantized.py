"""int8 on CPUs: quantizes the linear layers of the visual tower."""

import warnings

import torch
from torch import nn

from choices_clipfsar import DTYPES
from modeling_clipfsar import CLIPFSARModel


def quantize_int8(model: CLIPFSARModel) -> CLIPFSARModel:
    """Quantizes the linear layers of the visual tower's encoder to int8, in place; returns the model.

    Weights are quantized now, with one scale per output channel; activations at each call, with one scale per call. The
    cheap parts, and the parts that decide between classes, stay in float32: patches, projection, text tower (it runs
    once per class), temporal transformer and alignment. The model then classifies on a CPU only. You cannot train, save
    or move it.

    Raises:
        ValueError: For a model that is not float32 on the CPU, and for a tower without an encoder of linear layers
            (CLIP's ResNets).
        ImportError: When PyTorch has no `torch.ao.quantization`.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise ValueError(
            f"int8 needs a float32 model on the CPU; this model is {str(model.dtype).removeprefix('torch.')} on "
            f"{model.device}. Load it in float32 on the CPU, or use bfloat16, which also runs on GPUs."
        )
    encoder = getattr(model.clip.vision_model, "encoder", None)
    if encoder is None or not any(isinstance(module, nn.Linear) for module in encoder.modules()):
        raise ValueError(
            f"int8 is for linear layers, but the visual tower of a {model.config.clip_config.model_type!r} is made of "
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
        warnings.simplefilter("ignore")  # a later PyTorch will remove it
        quantize_dynamic(encoder, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
    return model


__all__ = ["DTYPES", "quantize_int8"]
