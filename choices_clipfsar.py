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
DECODERS = ("decord", "torchcodec", "av")
SECONDS_PER_VIDEO = 60  # time limit for reading a video


def _check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(map(repr, choices))}.")


def _check_positive_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
