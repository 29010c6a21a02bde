"""A model and its processor by name, a plain CLIP among them."""

import torch

from clipfsar.inference.quantized import quantize_int8
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor


def load_model(name: str, dtype: str = "float32", **settings) -> tuple[CLIPFSARModel, CLIPFSARProcessor]:
    """A CLIP-FSAR model and its processor for inference, or a plain CLIP: see `CLIPFSARModel.from_pretrained`.

    `dtype` is `"auto"`, as saved, or one of `DTYPES`; `settings` are of the model's configuration.

    Raises:
        ValueError: For a model of another kind.
        OSError: When there is none.
    """
    dtype_of_weights = {"auto": "auto", "int8": torch.float32}.get(dtype) or getattr(torch, dtype)
    model = CLIPFSARModel.from_pretrained(name, dtype=dtype_of_weights, **settings).eval()
    if dtype == "int8":
        quantize_int8(model)
    return model, CLIPFSARProcessor.from_pretrained(name)


def usable_device(name: str | None) -> str | None:
    """The name of a device as it is.

    Raises:
        ValueError: When this machine or this PyTorch has no such device.
    """
    if name is not None:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(
                f"--device {name} cannot be used here ({reason}): leave it out to take what is there."
            ) from None
    return name


__all__ = ["load_model", "usable_device"]
