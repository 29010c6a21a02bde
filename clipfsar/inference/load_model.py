"""Loads a model (also a plain CLIP) and its processor by name."""

from pathlib import Path

import torch

from clipfsar.checked_files import CHECKSUMS, check_files
from clipfsar.inference.quantized import quantize_int8
from clipfsar.json_files import read_json
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

_JSON_FILES = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.json", "model.safetensors.index.json"),
)


def load_model(name: str, dtype: str = "float32", **settings) -> tuple[CLIPFSARModel, CLIPFSARProcessor]:
    """A CLIP-FSAR model and its processor for inference, or a plain CLIP: see `CLIPFSARModel.from_pretrained`.

    `dtype` is one of `DTYPES`, or `"auto"` for the saved precision. `settings` override the model's configuration.

    Raises:
        ValueError: For a model of another kind, for weights that differ from their checksums (`SHA256SUMS`), and for a
            damaged JSON file, which transformers would not name.
        OSError: When the model does not exist.
    """
    remedy = f"put back a copy of it, or, if it was changed on purpose, delete {Path(name) / CHECKSUMS}"
    for file in filter(Path.is_file, (Path(name) / file for file in _JSON_FILES)):
        read_json(file, "put back a copy of it", size_limit="file_bytes")  # some vocabularies take 30 MB
    check_files(Path(name), remedy, only="model*.safetensors", must_be_listed="model*.safetensors")
    dtype_of_weights = {"auto": "auto", "int8": torch.float32}.get(dtype) or getattr(torch, dtype)
    model = CLIPFSARModel.from_pretrained(name, dtype=dtype_of_weights, **settings).eval()
    if dtype == "int8":
        quantize_int8(model)
    return model, CLIPFSARProcessor.from_pretrained(name)


def usable_device(name: str | None) -> str | None:
    """The given device name, after a check that it can be used.

    Raises:
        ValueError: When this machine or this PyTorch has no such device.
    """
    if name is not None:
        kind = name.partition(":")[0]
        part = getattr(torch, kind, None)  # torch.cuda, torch.mps, ...; plug-ins add other makers' devices
        if kind != "cpu" and not (part is not None and part.is_available()):
            raise ValueError(
                f"--device {name} cannot be used: this machine, or this PyTorch, has no {kind}. Leave the option out "
                "to use the available device."
            )
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(
                f"--device {name} cannot be used here ({reason}): leave the option out to use the available device."
            ) from None
    return name


__all__ = ["load_model", "usable_device"]
