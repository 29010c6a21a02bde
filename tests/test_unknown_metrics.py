"""AUROC, AUPR and OSCR of hand-worked examples."""

import numpy as np
import pytest

from clipfsar.evaluation.unknowns import aupr, auroc, oscr

KNOWN, UNKNOWN = np.array([0.1, 0.4, 0.5]), np.array([0.4, 0.9])


def test_auroc_counts_pairs_in_order_and_ties_half():
    # 0.4 is above 0.1, ties with 0.4, and is below 0.5; 0.9 is above all three
    assert auroc(KNOWN, UNKNOWN) == pytest.approx((1 + 0.5 + 0 + 3) / 6)
    assert auroc(UNKNOWN, KNOWN) == pytest.approx(1 - 4.5 / 6)


def test_aupr_is_the_mean_precision_at_the_unknown_videos():
    # 0.9 unknown: 1 of 1; 0.5 known; 0.4 both at once: 2 of 4
    assert aupr(KNOWN, UNKNOWN) == pytest.approx((1 + 2 / 4) / 2)
    assert aupr(np.zeros(3), np.zeros(1)) == pytest.approx(1 / 4)  # equal scores: chance


def test_oscr_counts_only_known_videos_that_are_recognised():
    # the wrong answer to the first clip takes its two pairs away
    assert oscr(KNOWN, UNKNOWN, np.array([False, True, True])) == pytest.approx((0.5 + 0 + 2) / 6)
    perfect = np.array([0.0, 0.1, 0.2])
    assert oscr(perfect, UNKNOWN, np.array([True, True, False])) == pytest.approx(2 / 3)  # its limit is the accuracy
