"""Allowed values of the model's and the processor's settings, and checks. Imports only the standard library, so that
command lines start quickly."""

import difflib
import functools
import logging
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Any

logger = logging.getLogger(__name__)

ALIGNMENTS = ("otam", "bi_mhm", "mean", "chamfer", "trx", "hyrsm")
TRAINED_ALIGNMENTS = ("trx", "hyrsm")  # these have weights of their own
own_alignments: list[str] = []  # names of heads of one's own, filled by `register_head`
SUPPORT_POOLINGS = ("before", "after")
INFERENCE_MODES = ("few_shot", "zero_shot", "ensemble")
FRAME_SAMPLINGS = ("segment_center", "segment_random", "interval", "linspace")
PREPROCESSINGS = ("clip", "official")
QUERY_AUGMENTATIONS = ("none", "kinetics")
DECODERS = ("decord", "torchcodec", "av")
DTYPES = ("float32", "float16", "bfloat16", "int8")
EXPORT_FORMATS = ("onnx", "torch")
FRAME_STORES = ("none", "jpeg", "raw")
OUTPUT_FORMATS = ("table", "json", "csv", "jsonl", "label_studio", "cvat")
# Suffixes of files that PyAV opens. If a listed file was converted to another format, preparation tries this order.
VIDEO_SUFFIXES = (
    *(".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".asf", ".m2ts", ".mts", ".ogv", ".ts"),
    *(".gif", ".vob", ".divx", ".xvid", ".qt", ".f4v", ".mxf", ".3g2", ".ogg", ".ogm", ".mpe", ".mpv", ".m1v", ".m2v"),
    *(".m2p", ".m2t", ".mod", ".tod", ".mp4v", ".mjpeg", ".mjpg", ".mj2", ".mk3d", ".y4m", ".wtv", ".dv", ".dif"),
    *(".rm", ".rmvb", ".nut", ".h264", ".264", ".h265", ".265", ".hevc", ".obu", ".ivf", ".amv", ".dav", ".ismv"),
)
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Endings of pictures that matplotlib writes.
PICTURE_SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".eps", ".ps", ".svgz")
UNKNOWN_LABEL = "none of these"  # the label of clips that belong to no class, with detect_unknown
SECONDS_PER_VIDEO = 60  # time limit for reading a video

# Keyword arguments of transformers' `from_pretrained` for processors and tokenizers that have an effect here.
LOADING_OPTIONS = (
    *(
        "cache_dir",
        "force_download",
        "local_files_only",
        "token",
        "revision",
        "subfolder",
        "trust_remote_code",
        "proxies",
    ),
    *("code_revision", "repo_type", "use_auth_token", "resume_download", "user_agent", "mirror", "use_fast", "backend"),
    *(
        "adapter_kwargs",
        "config",
        "dtype",
        "torch_dtype",
        "device_map",
        "attn_implementation",
        "tokenizer_type",
        "task",
    ),
    *("gguf_file", "from_slow", "legacy", "add_bos_token", "add_eos_token", "add_prefix_space", "model_max_length"),
    *("clean_up_tokenization_spaces", "truncation_side", "padding_side", "bos_token", "eos_token", "unk_token"),
    *("pad_token", "sep_token", "cls_token", "mask_token", "extra_special_tokens", "additional_special_tokens"),
    *("image_processor", "tokenizer", "chat_template", "return_unused_kwargs", "kwargs"),
    *("do_resize", "size", "default_to_square", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


# Names that transformers writes into the file of a processor.
_WRITTEN_BY_TRANSFORMERS = (
    *("auto_map", "processor_class", "transformers_version", "image_processor_type", "feature_extractor_type"),
    *("feature_extractor", "video_processor", "audio_tokenizer", "name_or_path", "tokenizer_class"),
)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises `ValueError` for a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(map(repr, choices))}.")


# Range of positive numbers that float32, the model's precision, can divide by and multiply with.
LEAST, MOST = 1e-30, 1e30
MAX_FRAMES = 100_000  # per clip; the method uses 8


def check_truth(name: str, value: Any) -> None:
    """Raises `ValueError` for anything but true and false. The text `"false"` would count as true."""
    if isinstance(value, str) or value not in (True, False):
        raise ValueError(f"{name}={value!r} must be True or False.")


def check_positive_integer(name: str, value: Any) -> None:
    """Raises `ValueError` for anything but a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")


def checked_seed(name: str, value: Any) -> int:
    """A seed for `torch.Generator.manual_seed`, which takes no integers of NumPy.

    Raises:
        ValueError: For anything but a whole number of 64 bits.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not -(2**63) <= int(value) < 2**64:
        raise ValueError(f"{name}={value!r} must be a whole number from -2**63 to 2**64 - 1.")
    return int(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """`": did you mean 'num_frames'?"` for a name that resembles a known one, otherwise `"."`."""
    meant = difflib.get_close_matches(name, sorted(map(str, known)), n=1)
    return f": did you mean {meant[0]!r}?" if meant else "."


def check_known(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises `TypeError`, as Python does for an unknown keyword, and names the nearest known one."""
    known = set(known)
    for name in names:
        if name not in known:
            raise TypeError(f"{where} does not know {name!r}{nearest(name, known)}")


def check_slip(where: str, name: str, settings: Iterable[str], error: type[Exception], cutoff: float = 0.8) -> None:
    """Raises `error` for a name that resembles a setting, and so is probably a typing error.

    Other unknown names pass: transformers and other libraries have their own, which differ between versions.
    """
    meant = () if name in settings else difflib.get_close_matches(name, sorted(settings), n=1, cutoff=cutoff)
    if meant:
        raise error(f"{where} does not know {name!r}: did you mean {meant[0]!r}?")


class NamesChecked:
    """Refuses to set an attribute whose name resembles a public one: it would have no effect."""

    def __setattr__(self, name, value):
        known = [one for one in dir(self) if not one.startswith("_")]
        if not name.startswith("_") and name not in known:
            check_slip(type(self).__name__, name, known, AttributeError)
        super().__setattr__(name, value)


def plain(value: Any) -> Any:
    """A setting as it comes back from JSON, which takes no tuples and no numbers of NumPy."""
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number; `True` and `False` are not numbers here."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_positive(name: str, value: Any) -> None:
    if not is_number(value) or value <= 0:
        raise ValueError(f"{name}={value!r} must be greater than 0.")
    if not 1e-6 <= value <= 1e6:
        raise ValueError(f"{name}={value!r} must lie between 0.000001 and 1000000.")


def _check_whole(name: str, value: Any, most: int) -> None:
    check_positive_integer(name, value)
    if value > most:
        raise ValueError(f"{name}={value!r} must be at most {most}.")


def _check_template(name: str, value: Any) -> None:
    if not isinstance(value, str) or "{}" not in value:
        raise ValueError(f"{name}={value!r} has no place for the class name: write {{}} where the name belongs.")


@functools.lru_cache(10_000)  # each episode looks for its classes among all class texts
def normalized_class_name(class_name: str) -> str:
    """A form for comparing class names; it is the same for brush_hair, brush-hair and Brush Hair."""
    return re.sub(r"[\s_-]", "", class_name.casefold())


def _check_class_texts(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name}={value!r} must be {{class name: text or list of texts}}.")
    classes: dict[str, str] = {}
    for class_name, texts in value.items():
        listed = [texts] if isinstance(texts, str) else texts
        if not isinstance(listed, (list, tuple)) or not listed:
            raise ValueError(f"{name} of {class_name!r} is {texts!r}: give a text or a list of texts.")
        if not all(isinstance(text, str) and text.strip() for text in (class_name, *listed)):
            raise ValueError(
                f"{name} of {class_name!r} is {texts!r}: names and texts must be strings that are not blank."
            )
        if (other := classes.setdefault(normalized_class_name(class_name), class_name)) != class_name:
            raise ValueError(
                f"{name} has entries for {other!r} and {class_name!r}, which are one class: keep one of them."
            )
        if class_name == "*" and not all("{}" in text for text in listed):
            raise ValueError(f"{name} of '*' is {texts!r}: write {{}} where the name belongs, in each text.")


def _check_threads(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= int(value) <= 1024:
        raise ValueError(f"{name}={value!r} must be a whole number up to 1024; 0 lets the decoder choose.")


def _one_of(choices: Sequence[str]):
    return lambda name, value: check_choice(name, value, choices)


def _at_most(most: int):
    return lambda name, value: _check_whole(name, value, most)


def _or_none(check):
    return lambda name, value: None if value is None else check(name, value)


# The check of each processor setting: a function of name and value that raises `ValueError`.
PROCESSOR_CHECKS = {
    "num_frames": _at_most(MAX_FRAMES),
    "prompt_template": _check_template,
    "frame_sampling": _one_of(FRAME_SAMPLINGS),
    "sampling_rate": _check_positive,
    "target_fps": _check_positive,
    "preprocessing": _one_of(PREPROCESSINGS),
    "decoder": _one_of(("auto", *DECODERS)),
    "num_threads": _check_threads,
    "query_augmentation": _one_of(QUERY_AUGMENTATIONS),
    "prompt_length": _or_none(_at_most(MAX_FRAMES)),
    "class_texts": _or_none(_check_class_texts),
    "seconds_per_video": _or_none(_check_positive),
}


def checked_processor_setting(processor, name: str, value: Any) -> Any:
    """The value of an attribute that is assigned to a processor, with Python's numbers. Raises `ValueError` for a wrong
    one, and `AttributeError` for a name that resembles a setting."""
    if name in PROCESSOR_CHECKS:
        PROCESSOR_CHECKS[name](name, value)
        return plain(value)
    if name == "image_processor":
        check_image_settings(value, processor.preprocessing)
    elif not hasattr(type(processor), name):
        check_slip(type(processor).__name__, name, PROCESSOR_CHECKS, AttributeError)
    return value


def check_saved_processor(saved: dict, image_settings: Iterable[str]) -> None:
    """Checks the names in the file of a saved processor, which may have been edited by hand.

    A name that resembles a setting is an error. Any other unknown name may come from another version of transformers:
    a warning says that it is ignored.

    Args:
        saved: The content of `processor_config.json`.
        image_settings: Names that image processors know.

    Raises:
        TypeError: For an unknown name that resembles a known one.
    """
    known = {*PROCESSOR_CHECKS, *LOADING_OPTIONS, *_WRITTEN_BY_TRANSFORMERS, *image_settings}
    for name in saved:
        if name not in known and not name.startswith("_"):
            check_slip("processor_config.json", name, PROCESSOR_CHECKS, TypeError, cutoff=0.7)
            logger.warning(f"processor_config.json: {name!r} is not a setting of CLIPFSARProcessor and is ignored.")
    for name in saved.get("image_processor") or ():
        if name not in _WRITTEN_BY_TRANSFORMERS and not name.startswith("_"):
            check_slip("'image_processor' of processor_config.json", name, image_settings, TypeError)


def check_effect(where: str, names: Iterable[str], without_effect: Iterable[str]) -> None:
    """Raises `TypeError` for a name of transformers that changes nothing here, although it looks as if it did."""
    for name in names:
        if name in without_effect:
            is_length = name in ("max_length", "padding", "truncation")
            remedy = "prompt_length is the number of tokens of each prompt" if is_length else "leave it out"
            raise TypeError(f"{where}: {name!r} has no effect here: {remedy}.")


def check_image_settings(image_processor, preprocessing: str) -> None:
    """Raises `ValueError` for settings of an image processor that no pixel values can be made with, or wrong ones."""
    is_official = preprocessing == "official"  # resizes in its own way, and always normalises
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        value = getattr(image_processor, name, None)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} of the image processor must be true or false.")
    factor = getattr(image_processor, "rescale_factor", None)
    if factor is not None and (not is_number(factor) or factor <= 0):
        raise ValueError(f"rescale_factor={factor!r} of the image processor must be greater than 0.")
    for name in ("image_mean", "image_std"):
        value = getattr(image_processor, name, None)
        is_needed = is_official or getattr(image_processor, "do_normalize", None)
        if (value is not None or is_needed) and not _is_per_channel(value, has_sign=name == "image_mean"):
            sign = " greater than 0" if name == "image_std" else ""
            raise ValueError(f"{name}={value!r} of the image processor must be 3 numbers{sign}, one per channel.")
    does_resize = getattr(image_processor, "do_resize", None) and not is_official
    resample = getattr(image_processor, "resample", None)
    if (resample is not None or does_resize) and not isinstance(resample, numbers.Integral):
        raise ValueError(f"resample={resample!r} of the image processor must be 2 (bilinear) or 3 (bicubic).")
    has_crop = getattr(image_processor, "crop_size", None) is not None
    # SigLIP 2's image processor has no size until a processor fits it to its model.
    takes_any_size = getattr(image_processor, "max_num_patches", None) is not None
    _check_size(image_processor, "size", not takes_any_size and (not has_crop if is_official else does_resize))
    _check_size(image_processor, "crop_size", not is_official and getattr(image_processor, "do_center_crop", None))


def _is_per_channel(value: Any, has_sign: bool) -> bool:
    is_list = isinstance(value, (list, tuple)) and len(value) == 3
    return is_list and all(is_number(one) and (has_sign or one > 0) for one in value)


def _check_size(image_processor, name: str, is_needed: Any) -> None:
    value: Any = getattr(image_processor, name, None)
    edges = {key: edge for key, edge in (dict(value) if hasattr(value, "get") else {}).items() if edge is not None}
    is_whole = all(isinstance(edge, numbers.Integral) and int(edge) > 0 for edge in edges.values())
    has_form = is_whole and ("shortest_edge" in edges or {"height", "width"} <= edges.keys())
    # What is not needed may have another form.
    if not is_whole or (is_needed and not has_form):
        raise ValueError(
            f"{name}={edges or value!r} of the image processor must be {{'shortest_edge': number}} or "
            "{'height': number, 'width': number}, in pixels, at least 1."
        )


def check_same_num_frames(model, processor) -> None:
    """Raises `ValueError` when processor and model are configured for different numbers of frames."""
    if processor.num_frames != model.config.num_frames:
        raise ValueError(
            f"The processor samples {processor.num_frames} frames per video, but the model is configured for "
            f"{model.config.num_frames}: load both with the same num_frames=."
        )


_ROWS_AT_ONCE = 4096


def check_finite(what: str, values, names: Sequence[str], model=None) -> None:
    """Raises `ValueError` if any of the values are NaN or infinite.

    Copies data from the device of `values`, so do not use it in a training loop.

    Args:
        values: A tensor with one row per name in `names`.
        model: The model that computed the values; if its weights are the cause, the message names them.
    """
    if all(bool(piece.isfinite().all()) for piece in values.split(_ROWS_AT_ONCE)):  # `isfinite` makes copies
        return
    if model is not None:
        check_finite_weights(model)
    is_finite = values.isfinite().flatten(1).all(1).tolist()
    found = [name for name, fine in zip(names, is_finite, strict=True) if not fine]
    raise ValueError(
        f"{what} of {_listed(found)} hold NaN or infinite numbers: check the pixel values, and if the model computes "
        "in float16, use bfloat16 or float32."
    )


def check_finite_weights(model) -> None:
    """Raises `ValueError` if weights of a model hold NaN or infinite numbers; the message names these weights."""
    weights = [*model.named_parameters(), *model.named_buffers()]
    broken = [name for name, weight in weights if not bool(weight.isfinite().all())]
    if broken:
        raise ValueError(
            f"Weights of the model hold NaN or infinite numbers: {_listed(broken)}. The file is damaged or its "
            "training diverged: load another checkpoint."
        )


def _listed(names: list) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
