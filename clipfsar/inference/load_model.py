"""Loads a model (also a plain CLIP) and its processor by name."""

from pathlib import Path

import torch

from choices_clipfsar import DTYPES, check_choice
from clipfsar.checked_files import CHECKSUMS, check_files
from clipfsar.inference.quantized import quantize_int8
from clipfsar.json_files import read_json
from hub_clipfsar import HUB_OPTIONS
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

_JSON_FILES = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.json", "model.safetensors.index.json"),
)


def load_model(name: str, dtype: str | torch.dtype = "float32", **settings) -> tuple[CLIPFSARModel, CLIPFSARProcessor]:
    """A CLIP-FSAR model and its processor for inference, or a plain CLIP: see `CLIPFSARModel.from_pretrained`.

    Args:
        dtype: One of `DTYPES`, a floating-point dtype of torch, or `"auto"` for the saved precision.
        settings: Override the model's configuration; `num_frames` that of the processor as well. Options of the Hub and
            of folders (`revision`, `subfolder`, `cache_dir`, `token`, `local_files_only`) are for both.

    Raises:
        ValueError: For a model of another kind, an unknown dtype, and for weights that differ from their checksums
            (`SHA256SUMS`), and for a damaged JSON file, which transformers would not name.
        TypeError: For an unknown setting.
        OSError: When the model does not exist.
    """
    if "torch_dtype" in settings:
        raise TypeError("load_model does not know 'torch_dtype': its name is dtype.")
    name_of_dtype = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    check_choice("dtype", name_of_dtype, ("auto", *DTYPES))
    folder = Path(name, settings.get("subfolder") or "")
    remedy = f"put back a copy of it, or, if it was changed on purpose, delete {folder / CHECKSUMS}"
    for file in filter(Path.is_file, (folder / file for file in _JSON_FILES)):
        read_json(file, "put back a copy of it", size_limit="file_bytes")  # some vocabularies take 30 MB
    check_files(folder, remedy, only="model*.safetensors", must_be_listed="model*.safetensors")
    of_weights = {"auto": "auto", "int8": torch.float32}.get(name_of_dtype) or getattr(torch, name_of_dtype)
    model = CLIPFSARModel.from_pretrained(name, dtype=of_weights, **settings).eval()
    if name_of_dtype == "int8":
        quantize_int8(model)
    of_both = {option: settings[option] for option in (*HUB_OPTIONS, "num_frames") if option in settings}
    return model, CLIPFSARProcessor.from_pretrained(name, **of_both)


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
