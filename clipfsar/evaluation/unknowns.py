"""How well scores tell videos of no class from others: AUROC, AUPR and OSCR.

A score is larger the less a video is known. Ties count half, or are ranked together.
"""

import numpy as np


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Chance that an unknown video (U,) scores higher than a known one (K,)."""
    return oscr(known, unknown, np.ones(len(known), dtype=bool))


def aupr(known: np.ndarray, unknown: np.ndarray) -> float:
    """Average precision of finding the unknown videos (U,) among both by the largest scores.

    Its value for chance is U / (K + U).
    """
    scores = np.concatenate([known, unknown])
    is_unknown = np.repeat([False, True], [len(known), len(unknown)])
    order = np.argsort(-scores, kind="stable")
    found, number = np.cumsum(is_unknown[order]), np.arange(1, len(scores) + 1)
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    found, precision = found[last_of_tie], (found / number)[last_of_tie]
    return float(np.sum(np.diff(found, prepend=0) * precision) / len(unknown))


def oscr(known: np.ndarray, unknown: np.ndarray, is_right: np.ndarray) -> float:
    """Area under the open-set classification rate curve (Dhamija et al., NeurIPS 2018).

    The curve plots the share of known videos that are let through *and* classified correctly against the share of
    unknown videos that are let through. The area is the chance that a known video is classified correctly and scores
    lower than an unknown one.

    Args:
        known: (K,), scores.
        unknown: (U,), scores.
        is_right: (K,), whether the class of each known video is recognised.
    """
    sorted_unknown = np.sort(unknown)
    below = np.searchsorted(sorted_unknown, known, "left") + np.searchsorted(sorted_unknown, known, "right")
    return float(np.mean(is_right * (1 - below / 2 / len(unknown))))


__all__ = ["aupr", "auroc", "oscr"]
