"""Reads CLIP weights from OpenAI's and open_clip's files, and renames them to transformers' names and back.

Both kinds of files use the same names (`visual.conv1.weight`, `transformer.resblocks.0.ln_1.bias`, ...). Each of our
weights has one place there (`openai_place`), so one table serves both directions.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, PreTrainedConfig, PreTrainedModel

from clipfsar.checkpoints.openai_reference import encode_image, encode_text
from configuration_clipfsar import CLIPResNetConfig
from modeling_clipfsar import CLIPFSARConfig, CLIPFSARModel

# Constants that some files hold in addition to the weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")

# ----------------------------------------------------------------------------------------------------------------------
# Names
# ----------------------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """The place of one of our weights in OpenAI's file."""

    key: str
    third: int | None = None  # 0, 1, 2: query, key, value in a matrix that stacks them
    is_transposed: bool = False  # the file has (input, output), a Linear layer has (output, input)

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.third is not None:
            tensor = tensor.tensor_split(3)[self.third]
        if self.is_transposed:
            tensor = tensor.T
        return (tensor.float() if tensor.is_floating_point() else tensor).clone(memory_format=torch.contiguous_format)


# Weights of the ViT tower and the text tower outside their blocks. ResNet towers use OpenAI's names.
_PLACES = {
    "vision_model.embeddings.class_embedding": Place("visual.class_embedding"),
    "vision_model.embeddings.position_embedding.weight": Place("visual.positional_embedding"),
    "vision_model.embeddings.patch_embedding.weight": Place("visual.conv1.weight"),
    "vision_model.pre_layrnorm.weight": Place("visual.ln_pre.weight"),
    "vision_model.pre_layrnorm.bias": Place("visual.ln_pre.bias"),
    "vision_model.post_layernorm.weight": Place("visual.ln_post.weight"),
    "vision_model.post_layernorm.bias": Place("visual.ln_post.bias"),
    "visual_projection.weight": Place("visual.proj", is_transposed=True),
    "text_model.embeddings.token_embedding.weight": Place("token_embedding.weight"),
    "text_model.embeddings.position_embedding.weight": Place("positional_embedding"),
    "text_model.final_layer_norm.weight": Place("ln_final.weight"),
    "text_model.final_layer_norm.bias": Place("ln_final.bias"),
    "text_projection.weight": Place("text_projection", is_transposed=True),
    "logit_scale": Place("logit_scale"),
}
# Both of CLIP's transformers consist of the same blocks.
_BLOCK_NAMES = {
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
}


def openai_place(name: str) -> Place:
    """The place of a weight of `CLIPModel` or `CLIPResNetModel` under OpenAI's names."""
    if name in _PLACES:
        return _PLACES[name]
    block = re.fullmatch(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if not block:
        return Place(name.replace("vision_model.", "visual.", 1))
    tower, layer, part, kind = block.groups()
    prefix = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{layer}"
    projection = re.fullmatch(r"self_attn\.([qkv])_proj", part)
    if projection:
        return Place(f"{prefix}.attn.in_proj_{kind}", third="qkv".index(projection[1]))
    return Place(f"{prefix}.{_BLOCK_NAMES[part]}.{kind}")


def from_places(
    own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], place_of: Callable[[str], Place], source: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights of a file under our names, in float32, and a report with one line per weight.

    Args:
        own: Our weights, for names and shapes.
        theirs: The weights in the file.
        source: Name of the file, for errors.

    Raises:
        ValueError: For weights that are missing, unexpected or of another shape; the message lists all of them.
    """
    places = {name: place_of(name) for name in own}
    keys = {place.key for place in places.values()}
    taken = {name: place.take(theirs[place.key]) for name, place in places.items() if place.key in theirs}
    problems = {
        "missing": sorted(keys - theirs.keys()),
        "unexpected": sorted(theirs.keys() - keys),
        "of another shape": sorted({places[name].key for name in taken if taken[name].shape != own[name].shape}),
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in problems.items() if found)
        raise ValueError(f"{source} does not fit the model. Weights {listed}.")
    thirds = ("", " (query)", " (key)", " (value)")
    report = [
        f"{place.key}{thirds[0 if place.third is None else place.third + 1]} -> {name} {tuple(own[name].shape)}"
        for name, place in places.items()
    ]
    return taken, report


def to_places(own: dict[str, torch.Tensor], place_of: Callable[[str], Place]) -> dict[str, torch.Tensor]:
    """Our weights under the names of the file; the inverse of `from_places`."""
    theirs: dict[str, torch.Tensor] = {}
    for name, tensor in own.items():
        place = place_of(name)
        tensor = tensor.detach().cpu()
        tensor = tensor.T.contiguous() if place.is_transposed else tensor.clone()
        if place.third is None:
            theirs[place.key] = tensor
        else:
            thirds = theirs.setdefault(place.key, tensor.new_empty(3, *tensor.shape))
            thirds[place.third] = tensor
    stacked = {place.key for place in map(place_of, own) if place.third is not None}
    return {key: tensor.flatten(0, 1) if key in stacked else tensor for key, tensor in theirs.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Sizes
# ----------------------------------------------------------------------------------------------------------------------


def _shape(state: dict[str, torch.Tensor], key: str) -> torch.Size:
    if key not in state:
        raise ValueError(f"Weight {key} is missing; the sizes of the model are read from it.")
    return state[key].shape


def _count(state: dict[str, torch.Tensor], prefix: str) -> int:
    """The count of different numbers after the prefix: layers of a transformer, blocks of a stage."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def clip_config_from_openai(
    visual: dict[str, torch.Tensor], text_config: dict | PreTrainedConfig, hidden_act: str = "quick_gelu"
) -> CLIPConfig | CLIPResNetConfig:
    """A CLIP's configuration; the sizes of the visual tower are read from its weights (names without `visual.`).

    All of OpenAI's models have attention heads of size 64.
    """
    if "attnpool.positional_embedding" in visual:
        width = _shape(visual, "layer1.0.conv1.weight")[0]
        vision_config = {
            "depths": [_count(visual, f"layer{stage}.") for stage in (1, 2, 3, 4)],
            "width": width,
            "image_size": 32 * round((_shape(visual, "attnpool.positional_embedding")[0] - 1) ** 0.5),
            "projection_dim": _shape(visual, "attnpool.c_proj.weight")[0],
        }
        return CLIPResNetConfig(text_config=text_config, vision_config=vision_config)
    if "class_embedding" not in visual:
        raise ValueError(
            "There is no visual tower of CLIP: neither a ViT's class_embedding nor a ResNet's "
            "attnpool.positional_embedding was found."
        )
    width, _, patch_size, _ = _shape(visual, "conv1.weight")
    projection_dim = _shape(visual, "proj")[1]
    vision_config = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": _count(visual, "transformer.resblocks."),
        "num_attention_heads": max(1, width // 64),
        "image_size": patch_size * round((_shape(visual, "positional_embedding")[0] - 1) ** 0.5),
        "patch_size": patch_size,
        "projection_dim": projection_dim,
        "hidden_act": hidden_act,
    }
    return CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=projection_dim)


def text_config_from_openai(state: dict[str, torch.Tensor], hidden_act: str = "quick_gelu") -> dict:
    """Configuration of the text tower. The end-of-text token has the highest id, start-of-text the one below."""
    vocab_size, width = _shape(state, "token_embedding.weight")
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": _count(state, "transformer.resblocks."),
        "num_attention_heads": max(1, width // 64),
        "vocab_size": vocab_size,
        "max_position_embeddings": _shape(state, "positional_embedding")[0],
        "projection_dim": _shape(state, "text_projection")[1],
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": 0,
        "hidden_act": hidden_act,
    }


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------


class _NumberType:
    """Takes the place of `numpy.dtype` in a pickle: the kind and size of one number."""

    def __init__(self, code: str, *_):
        if re.fullmatch(r"[biuf][1248]", code) is None:
            raise pickle.UnpicklingError(f"a numpy value of type {code!r} is no plain number")
        self.code = code

    def __setstate__(self, state: tuple):
        self.code = f"{state[1].replace('|', '')}{self.code}"  # the byte order, such as "<"


def _plain_number(kind: _NumberType, data: bytes) -> bool | int | float:
    """Takes the place of numpy's function that makes a number from its bytes."""
    (number,) = np.frombuffer(data, kind.code)
    return number.item()


# Numbers of numpy, such as an accuracy beside the weights, become plain ones: nothing of numpy's unpickling runs.
_NUMPY_NUMBERS: list = [
    (_NumberType, "numpy.dtype"),
    *((_plain_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_NumberType, f"numpy.dtypes.{name}DType") for name in ("Bool", "Float32", "Float64", "Int32", "Int64")),
]


def load_weights_only(path: str | Path):
    """`torch.load` that runs no code from the file. Numbers of numpy become plain ones.

    Raises:
        ValueError: When the file holds more than weights and plain values, or is no PyTorch file.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} was not read, because it is no file of weights and plain values: other content could run any code "
            f"on this machine. ({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from None


def read_openai_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Weights of a CLIP under OpenAI's names, from any of the usual files.

    These are OpenAI's TorchScript archives (their code is not run), state dicts, open_clip's checkpoints (with a
    `state_dict`, whose names may begin with `module.` or `text.`) and safetensors.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    if str(path).endswith(".safetensors"):
        state = load_file(path)
    elif _is_torchscript(path):
        state = _read_torchscript(path)
    else:
        state = load_weights_only(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is no state dict: it must map names to tensors, or hold such a 'state_dict'.")
    named = {key.removeprefix("module.").removeprefix("text."): value for key, value in state.items()}
    return {key: value for key, value in named.items() if key not in _NOT_WEIGHTS}


def _is_torchscript(path: str | Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Module:
    """Replaces any module of a TorchScript archive; it has the attributes that the archive lists."""


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _TorchscriptUnpickler(pickle.Unpickler):
    """Reads the modules of a TorchScript archive as plain attributes; runs no code from the archive."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str):
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): lambda data, offset, size, stride, *rest: data.as_strided(
                size, stride, offset
            ),
            ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_")):
            return lambda value, *rest: value
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a module's weights")
        return known[module, name]

    def persistent_load(self, saved_id):
        _, dtype, key, _, _ = saved_id
        data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _read_torchscript(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a TorchScript archive, named as in a `state_dict`."""

    def visit(module: _Module, prefix: str) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = {}
        for name, value in vars(module).items():
            if isinstance(value, _Module):
                state |= visit(value, f"{prefix}{name}.")
            elif isinstance(value, torch.Tensor):
                state[prefix + name] = value
        return state

    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).split("/")[0]
        try:
            return visit(_TorchscriptUnpickler(archive, root).load(), "")
        except (pickle.UnpicklingError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} was not read, because it is no archive of a CLIP's weights: {error}.") from None


# ----------------------------------------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------------------------------------


def model_of_config(config: CLIPConfig | CLIPResNetConfig) -> PreTrainedModel:
    """A `CLIPModel` or `CLIPResNetModel`, as `CLIPFSARModel` builds it."""
    heads = {"temporal_num_layers": 0, "temporal_num_heads": 1}
    return CLIPFSARModel(CLIPFSARConfig(clip_config=config, **heads)).clip


def load_clip(source: str, hidden_act: str = "quick_gelu") -> tuple[PreTrainedModel, list[str]]:
    """A CLIP, and a report of the renamed weights and the check of its features.

    Args:
        source: A file that `read_openai_state` reads, or a Hugging Face folder or Hub id of a CLIP or CLIP-FSAR model.
        hidden_act: Activation of the transformers in a file: open_clip's models without "quickgelu" in their name use
            `gelu`.

    Raises:
        ValueError: When weights are missing, unexpected or of another shape, or the features differ from a plain
            computation with the file's weights.
    """
    if not Path(source).is_file():
        return CLIPFSARModel.from_pretrained(source, dtype=torch.float32).clip.eval(), []
    state = read_openai_state(source)
    visual = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    text = {key: value for key, value in state.items() if not key.startswith("visual.")}
    model = model_of_config(
        clip_config_from_openai(visual, text_config_from_openai(text, hidden_act), hidden_act)
    ).eval()
    weights, report = from_places(model.state_dict(), state, openai_place, source)
    model.load_state_dict(weights)
    report.append(check_image_features(model, visual))
    return model, [*report, check_text_features(model, text)]


# Relative. Wrong renaming changes features by about their own size; another order of float32 sums by far less.
_LARGEST_DEVIATION = 1e-3


@torch.no_grad()
def check_image_features(model: PreTrainedModel, visual: dict[str, torch.Tensor]) -> str:
    """Compares the features of noise images with `encode_image` on the original weights (names without `visual.`)."""
    config = model.config.vision_config
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, config.image_size, config.image_size, generator=generator)
    expected = encode_image(visual, images, getattr(config, "hidden_act", "quick_gelu"))
    return _compare("Image", model.get_image_features(images).pooler_output, expected)


@torch.no_grad()
def check_text_features(model: PreTrainedModel, text: dict[str, torch.Tensor]) -> str:
    """Compares the features of random tokens with `encode_text` on the original weights."""
    config = model.config.text_config
    generator = torch.Generator().manual_seed(0)
    length = config.max_position_embeddings
    tokens = torch.randint(1, config.vocab_size - 2, (2, length), generator=generator)
    tokens[:, 0] = config.vocab_size - 2
    tokens[0, length // 2], tokens[0, length // 2 + 1 :] = config.vocab_size - 1, 0
    tokens[1, -1] = config.vocab_size - 1
    expected = encode_text(text, tokens, config.hidden_act)
    return _compare("Text", model.get_text_features(tokens).pooler_output, expected)


def _compare(kind: str, features: torch.Tensor, expected: torch.Tensor) -> str:
    deviation = ((features - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not deviation <= _LARGEST_DEVIATION:
        raise ValueError(
            f"{kind} features of a test input differ from those of the original weights by {deviation:.1e} of the "
            "largest one: this is not OpenAI's CLIP architecture, or it has another activation (--hidden_act)."
        )
    return f"{kind} features of a test input agree with a plain computation: largest relative deviation {deviation:.1e}"


__all__ = [
    "Place",
    "check_image_features",
    "check_text_features",
    "clip_config_from_openai",
    "from_places",
    "load_clip",
    "load_weights_only",
    "model_of_config",
    "openai_place",
    "read_openai_state",
    "text_config_from_openai",
    "to_places",
]
