"""What the settings of model and processor may be. Needs nothing but Python, so that a command line can ask quickly."""

import numbers
from collections.abc import Iterable
from typing import Any

ALIGNMENTS = ("otam", "bi_mhm", "mean")
SUPPORT_POOLINGS = ("before", "after")
INFERENCE_MODES = ("few_shot", "zero_shot", "ensemble")
FRAME_SAMPLINGS = ("segment_center", "segment_random", "interval")
PREPROCESSINGS = ("clip", "official")
QUERY_AUGMENTATIONS = ("none", "kinetics")
DECODERS = ("decord", "torchcodec", "av")  # the order in which decoder="auto" tries them
DTYPES = ("float32", "float16", "bfloat16", "int8")
EXPORT_FORMATS = ("onnx", "torch")
FRAME_STORES = ("none", "jpeg", "raw")
OUTPUT_FORMATS = ("table", "json", "csv")
# What PyAV opens by its name. Preparation looks for a listed file that was converted to another format in this order.
VIDEO_SUFFIXES = (
    *(".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".asf", ".m2ts", ".mts", ".ogv", ".ts"),
    *(".gif", ".vob", ".divx", ".xvid", ".qt", ".f4v", ".mxf", ".3g2", ".ogg", ".ogm", ".mpe", ".mpv", ".m1v", ".m2v"),
    *(".m2p", ".m2t", ".mod", ".tod", ".mp4v", ".mjpeg", ".mjpg", ".mj2", ".mk3d", ".y4m", ".wtv", ".dv", ".dif"),
    *(".rm", ".rmvb", ".nut", ".h264", ".264", ".h265", ".265", ".hevc", ".obu", ".ivf", ".amv", ".dav", ".ismv"),
)
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
UNKNOWN_LABEL = "none of these"  # the label of clips that belong to no class, if asked for


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises `ValueError` for a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(map(repr, choices))}.")


def check_positive_integer(name: str, value: Any) -> None:
    """Raises `ValueError` for anything but a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
