"""Checks of an episode: its inputs, labels, tokens and values.

Values are read only where this is free: on the CPU, outside traced and compiled graphs. On a GPU, reading a value waits
for all queued work. Pipelines, support sets and evaluations wait anyway, so they check there as well
(`choices_clipfsar.check_finite`).
"""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch

try:
    from .choices_clipfsar import check_finite_weights, check_positive_integer
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import check_finite_weights, check_positive_integer

_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def whole_labels(**labels: torch.Tensor | None) -> tuple[Any, ...]:
    """Labels of any integer type as int64, by their names; None stays.

    Raises `ValueError` for other types: a label of 0.5 belongs to no class, and comparing it raises nothing.
    """
    for name, values in labels.items():
        _check_tensor(name, values)
        if values is not None and values.dtype not in _WHOLE_NUMBERS:
            raise ValueError(
                f"{name} has the type {values.dtype}, but labels are whole numbers: use {name}.long(), or check that "
                "they are labels."
            )
    return tuple(None if values is None else values.long() for values in labels.values())


def _check_tensor(name: str, values: Any) -> None:
    if values is not None and not isinstance(values, torch.Tensor):
        raise ValueError(f"{name} is a {type(values).__name__}, but must be a tensor: use torch.as_tensor({name}).")


_FEATURES = {
    "support_embeds": "episodes, videos, frames",
    "query_embeds": "episodes, videos, frames",
    "class_embeds": "episodes, classes",
    "base_class_embeds": "classes",
}


def check_features(size: int, **features: torch.Tensor | None) -> None:
    """Raises `ValueError` for features, by their names in `_FEATURES`, of another number of dimensions or size D."""
    for name, values in features.items():
        _check_tensor(name, values)
        leading = _FEATURES[name]
        if values is not None and (values.dim() != len(leading.split(",")) + 1 or values.shape[-1] != size):
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, but ({leading}, {size}) is needed: the model's features "
                f"have size {size}."
            )


def check_shape(name: str, labels: torch.Tensor | None, shape: Sequence[int], of_what: str) -> None:
    """Raises `ValueError` unless there is one label per video. A loss over flattened labels would accept (Q, B)."""
    if labels is not None and tuple(labels.shape) != tuple(shape):
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}, but there are {of_what} of shape {tuple(shape)} (episodes, "
            "videos): give one label per video."
        )


def check_episode(inference_mode: str, support_embeds, support_labels, query_embeds, class_embeds) -> None:
    """Raises `ValueError` when an input that the mode needs is missing, or the numbers of episodes differ."""
    if query_embeds is None:
        raise ValueError("There are no query videos: give query_pixel_values or query_embeds.")
    if inference_mode != "zero_shot" and support_embeds is None:
        raise ValueError(
            f"inference_mode={inference_mode!r} compares with support videos: give support_pixel_values (or "
            "support_embeds) and support_labels; without them only inference_mode='zero_shot' is possible."
        )
    if inference_mode != "few_shot" and class_embeds is None:
        raise ValueError(
            f"inference_mode={inference_mode!r} compares with class texts: give class_input_ids or class_embeds."
        )
    if support_embeds is not None and support_labels is None:
        raise ValueError("There are support videos but no support_labels (episodes, support videos).")
    for name, embeds in (("support", support_embeds), ("class", class_embeds)):
        if embeds is not None and embeds.shape[0] != query_embeds.shape[0]:
            raise ValueError(
                f"There are {query_embeds.shape[0]} episodes of query videos but {embeds.shape[0]} of {name} "
                "inputs: all must have the same leading (episode) dimension."
            )


_FORMS = (
    ("support_pixel_values", "support_embeds"),
    ("query_pixel_values", "query_embeds"),
    ("class_input_ids", "class_embeds"),
)


def check_given_once(*inputs: torch.Tensor | None) -> None:
    """Raises `ValueError` for an input that is given in two forms, of which only one would count, or is no tensor.

    `inputs` are in the order of `_FORMS`.
    """
    for names, form, other in zip(_FORMS, inputs[::2], inputs[1::2], strict=True):
        for name, values in zip(names, (form, other), strict=True):
            _check_tensor(name, values)
        if form is not None and other is not None:
            raise ValueError(f"Both {' and '.join(names)} are given, and they are two forms of one input: give one.")


def check_base_labels(support_embeds, query_embeds, support_base_labels, query_base_labels) -> None:
    """Raises `ValueError` when the labels of only some videos are given, or there is not one label per video."""
    given = [support_base_labels is not None, query_base_labels is not None]
    if support_embeds is None and given[0]:
        raise ValueError("support_base_labels are given without support videos: give the videos, or leave them out.")
    if support_embeds is not None and any(given) and not all(given):
        names = ["support_base_labels", "query_base_labels"]
        raise ValueError(
            f"{names[given.index(True)]} are given without {names[given.index(False)]}: the video-text contrast needs "
            "both. Give both; -1 leaves a video out."
        )
    if support_embeds is not None:
        check_shape("support_base_labels", support_base_labels, support_embeds.shape[:2], "support videos")
    check_shape("query_base_labels", query_base_labels, query_embeds.shape[:2], "query videos")


def check_some_label(name: str, *labels: torch.Tensor | None) -> None:
    """Raises `ValueError` when all labels are negative, where they can be read: a loss over none of them is NaN."""
    values = [_values(one) for one in labels if one is not None]
    if not values or any(one is None or one.max(initial=-1) >= 0 for one in values):
        return
    if not any(one.size for one in values if one is not None):
        raise ValueError(f"There are {name} of 0 videos, and a loss over no video is NaN: leave {name} out.")
    raise ValueError(f"All {name} are negative, which leaves every video out: give a label, or leave {name} out.")


def _is_free_to_read(values: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    """Whether values are on the CPU and not in a graph. On a GPU, reading them waits for all queued work."""
    is_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if is_graph or values is None:
        return False
    return type(values) in (torch.Tensor, torch.nn.Parameter) and values.device.type == "cpu"


def _values(labels: torch.Tensor | None) -> np.ndarray | None:
    """The labels as an array; None where reading them is not free."""
    return np.from_dlpack(labels.detach()) if _is_free_to_read(labels) else None


def _is_finite(values: torch.Tensor) -> bool:
    """Whether a CPU tensor is finite. Uses numpy because tests forbid the `bool` of a tensor: it waits for a GPU."""
    return bool(np.isfinite(np.from_dlpack(values.detach().float())).all())


_GIVEN = (
    *("support_pixel_values", "support_embeds", "query_pixel_values", "query_embeds"),
    *("class_embeds", "base_class_embeds"),
)


def check_answer(model, logits: torch.Tensor, *given: torch.Tensor | None) -> None:
    """Raises `ValueError` when logits are NaN or infinite. The message names the cause: an input or the weights.

    Reads only the logits if they are finite. Does not check weights in training: that is left to the trainer.

    Args:
        given: Videos and texts as `forward` takes them, in the order of `_GIVEN`.
    """
    if not _is_free_to_read(logits) or _is_finite(logits):
        return
    for name, values in zip(_GIVEN, given, strict=True):
        if _is_free_to_read(values) and not _is_finite(values):
            first = (~values.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{name} holds NaN or infinite numbers, the first at index {first}: correct it before the call."
            )
    if model.training:
        return
    check_finite_weights(model)
    raise ValueError(
        "The logits hold NaN or infinite numbers, though inputs and weights do not: if the model computes in float16, "
        "use bfloat16 or float32."
    )


def check_pixel_values(*pixel_values: torch.Tensor) -> None:
    """Raises `ValueError` for pixel values of other dimensions, and for frames of two sizes."""
    for values in pixel_values:
        if values.dim() != 6:
            raise ValueError(
                f"pixel values have shape {tuple(values.shape)}; (episodes, videos, frames, channels, height, width) "
                "is needed. One episode has a leading dimension of 1."
            )
    sizes = [tuple(values.shape[3:]) for values in pixel_values]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"Frames of support and of query videos have the shapes {' and '.join(map(str, sizes))} (channels, height, "
            "width): prepare both with one processor."
        )


def checked_tokens(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, vocabulary_size: int | None
) -> torch.Tensor:
    """Tokens of any integer type as int64.

    Raises:
        ValueError: For tokens that are no whole numbers or beyond the vocabulary, and for a mask of another shape.
    """
    _check_tensor("class_input_ids", input_ids)
    _check_tensor("class_attention_mask", attention_mask)
    if input_ids.dtype not in _WHOLE_NUMBERS:
        raise ValueError(
            f"class_input_ids has the type {input_ids.dtype}, but tokens are whole numbers: give the tokens that the "
            "processor makes. Text features are class_embeds."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"class_attention_mask has shape {tuple(attention_mask.shape)}, but class_input_ids has "
            f"{tuple(input_ids.shape)}: give one value per token."
        )
    check_rows("class_input_ids", input_ids, vocabulary_size, "tokens in the vocabulary")
    return input_ids.long()


def check_rows(name: str, rows: torch.Tensor | None, number: int | None, of_what: str) -> None:
    """Raises `ValueError` for row numbers that a table does not have, where they can be read."""
    values = _values(rows)
    if values is None or number is None or values.size == 0:
        return
    for value in (values.min(), values.max()):
        if not 0 <= value < number:
            raise ValueError(f"{name} holds {value}, but there are {number} {of_what}: 0 to {number - 1}.")


def check_labels(name: str, labels: torch.Tensor | None, num_classes: int | None) -> None:
    """Raises `ValueError` for labels beyond the last class, where they can be read."""
    values = _values(labels)
    if values is None or num_classes is None or values.size == 0 or values.max() < num_classes:
        return
    raise ValueError(
        f"{name} holds the label {values.max()}, but there are {num_classes} classes: labels go from 0 to "
        f"{num_classes - 1}, and negative ones are left out."
    )


def number_of_classes(support_labels: torch.Tensor) -> int:
    """The largest label + 1. Reads the labels, so a GPU is waited for. Raises `ValueError` when they name no class."""
    number = int(support_labels.max()) + 1 if support_labels.numel() else 0
    if not torch.compiler.is_compiling() and number < 1:
        raise ValueError(_NO_CLASS)
    return number


_NO_CLASS = "support_labels name no class, because all are negative or there are none: give each class a support video."


def checked_classes(
    shape: Sequence[int], support_labels: torch.Tensor | None, n_way: int | None
) -> tuple[torch.Tensor | None, int]:
    """The labels as int64 and the number of classes, for a comparison of queries with support sequences.

    Args:
        shape: (..., S) of the support sequences.
        support_labels: (..., S); None if each sequence is a class.
        n_way: By default the largest label + 1.

    Raises:
        ValueError: For labels of another type or shape or out of range, and for a class without support.
    """
    if support_labels is None:
        if n_way is not None and n_way != shape[-1]:
            raise ValueError(
                f"n_way={n_way!r}, but without support_labels each of the {shape[-1]} support sequences is a class: "
                "give support_labels, or leave n_way out."
            )
        return None, shape[-1]
    (support_labels,) = whole_labels(support_labels=support_labels)
    check_shape("support_labels", support_labels, shape, "support videos")
    if n_way is not None and not torch.compiler.is_compiling():
        check_positive_integer("n_way", n_way)
    n_way = number_of_classes(support_labels) if n_way is None else n_way
    check_support_labels(support_labels, shape, n_way, is_compared=True)
    return support_labels, n_way


def check_support_labels(
    labels: torch.Tensor, shape: Sequence[int], n_way: int | None, is_compared: bool
) -> int | None:
    """The number of classes, as far as it is known.

    Args:
        labels: (..., S), where the leading dimensions are episodes.
        shape: (..., S) of the support videos.
        n_way: Number of class texts; without texts, the largest label + 1.
        is_compared: Whether queries are compared with the prototypes, so that each class needs support.

    Raises:
        ValueError: For labels of another shape or out of range, when there is no class at all and, where prototypes
            are compared, for a class without support.
    """
    check_shape("support_labels", labels, shape, "support videos")
    values = _values(labels)
    if values is None:
        return n_way
    n_way = int(values.max(initial=-1)) + 1 if n_way is None else n_way
    if n_way < 1:
        raise ValueError(_NO_CLASS)
    check_labels("support_labels", labels, n_way)
    episodes = values.reshape(math.prod(values.shape[:-1]), values.shape[-1])  # also of 0 videos
    for episode, row in enumerate(episodes if is_compared else ()):
        missing = sorted(set(range(n_way)) - set(row.tolist()))
        if missing:
            raise ValueError(
                f"Episode {episode} of the batch has no support video of class {', '.join(map(str, missing))}, and "
                f"there are {n_way} classes: episodes of one batch need the same number of classes, each with support."
            )
    return n_way


__all__ = [
    *(
        "check_answer",
        "check_base_labels",
        "check_episode",
        "check_features",
        "check_given_once",
        "check_labels",
        "check_pixel_values",
        "check_rows",
        "checked_tokens",
    ),
    *("check_shape", "check_some_label", "check_support_labels", "checked_classes", "number_of_classes"),
    "whole_labels",
]
