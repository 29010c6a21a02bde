"""Divides the classes of a data set among train, validation and test."""

import math
from collections.abc import Sequence

import numpy as np
from datasets import DatasetDict, concatenate_datasets

from choices_clipfsar import normalized_class_name
from clipfsar.data.arguments import SPLITS


def split_classes(class_names: Sequence[str], shares: Sequence[float], seed: int = 0) -> dict[str, list[str]]:
    """Draws disjoint class sets for train, validation and test from a seed. The order of `class_names` has no effect.

    Args:
        shares: Three fractions that add up to 1, or three numbers of classes.

    Raises:
        ValueError: If the shares do not fit the number of classes.
    """
    names = sorted(set(class_names))
    if len(shares) != 3 or not all(0 <= share < math.inf for share in shares):
        raise ValueError(f"--class_split {_joined(shares)}: three numbers are needed, for train, validation and test.")
    if sum(shares) <= 1 + 1e-6 or (max(shares) <= 1 and any(share % 1 for share in shares)):
        if abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"--class_split {_joined(shares)}: fractions must add up to 1, but give {sum(shares):g}.")
        num_test, num_validation = (round(share * len(names)) for share in (shares[2], shares[1]))
        counts = (len(names) - num_validation - num_test, num_validation, num_test)
    else:
        counts = tuple(int(share) for share in shares)
        if sum(counts) != len(names) or counts != tuple(shares):
            raise ValueError(f"--class_split {_joined(shares)}: whole numbers must add up to {len(names)} classes.")
    order = np.random.default_rng(seed).permutation(len(names))
    ends = np.cumsum(counts)
    parts = np.split(order, ends[:-1])
    return {split: [names[i] for i in sorted(part)] for split, part in zip(SPLITS, parts, strict=True)}


def resplit(splits: DatasetDict, shares: Sequence[float], seed: int = 0) -> DatasetDict:
    """Splits the classes of a data set anew by `split_classes`. Its labels are class names.

    A class with several spellings gets the first one. Otherwise it could be two classes in two splits.
    """
    pooled = concatenate_datasets(list(splits.values()))
    first: dict = {}
    names = pooled["label"][:]
    labels = np.array([first.setdefault(normalized_class_name(name), name) for name in names])
    if labels.tolist() != names:
        pooled = pooled.remove_columns("label").add_column("label", labels.tolist())
    return DatasetDict(
        {
            split: pooled.select(np.flatnonzero(np.isin(labels, names)))
            for split, names in split_classes(labels.tolist(), shares, seed).items()
            if names
        }
    )


def _joined(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


__all__ = ["resplit", "split_classes"]
