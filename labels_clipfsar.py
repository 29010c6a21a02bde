"""Checks of labels where looking at them costs nothing: on the CPU, outside of traced and compiled graphs."""

from collections.abc import Sequence

import numpy as np
import torch


def _values(labels: torch.Tensor | None) -> np.ndarray | None:
    """The labels as an array; None on a GPU, where reading them would wait for all work before, and in a graph."""
    is_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if labels is None or is_graph or type(labels) is not torch.Tensor or labels.device.type != "cpu":
        return None
    return np.from_dlpack(labels.detach())


def check_labels(name: str, labels: torch.Tensor | None, num_classes: int | None) -> None:
    """Raises `ValueError` for labels beyond the last class, where they can be read."""
    values = _values(labels)
    if values is None or num_classes is None or values.size == 0 or values.max() < num_classes:
        return
    raise ValueError(
        f"{name} holds the label {values.max()}, but there are {num_classes} classes: labels go from 0 to "
        f"{num_classes - 1}, and negative ones are left out."
    )


def check_support_labels(
    labels: torch.Tensor, shape: Sequence[int], n_way: int | None, is_compared: bool
) -> int | None:
    """The number of classes, as far as it is known.

    Args:
        labels: (B, S).
        shape: (B, S) of the support videos; other labels than that many are not looked at here.
        n_way: Number of class texts; without, the largest label + 1.
        is_compared: Whether queries are compared with the prototypes, so that each class needs one.

    Raises:
        ValueError: For labels out of range and, where prototypes are compared, for a class without support.
    """
    values = _values(labels)
    if values is None or values.shape != tuple(shape):
        return n_way
    n_way = int(values.max(initial=-1)) + 1 if n_way is None else n_way
    check_labels("support_labels", labels, n_way)
    for episode, row in enumerate(values if is_compared else ()):
        missing = sorted(set(range(n_way)) - set(row.tolist()))
        if missing:
            raise ValueError(
                f"Episode {episode} of the batch has no support video of class {', '.join(map(str, missing))}, and "
                f"there are {n_way} classes: episodes of one batch need the same number of classes, each with support."
            )
    return n_way


__all__ = ["check_labels", "check_support_labels"]
