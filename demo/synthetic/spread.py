"""How far off a mean may be, and the sentences that follow from it.

Accuracies come as a table of seeds by items (classes or verbs). A mean over *these* items and seeds is exact; what is
asked is how it would differ with other ones. So both are drawn again at random, with replacement, many times over
(bootstrap). Items of a group, such as a verb and its twin, are drawn together. Each draw takes one group and one seed
fewer than there are: the spread of a mean of n numbers, drawn n at a time, comes out too small by the factor
(n - 1) / n, a third for three seeds; drawn n - 1 at a time, it is right. A row without training has one seed.

The interval is the central 95% of the means. Clips are not drawn again: each class has its own, so their luck is part
of the differences between classes. Classes that meet in an episode are treated as independent of each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Spread:
    """A mean with its 95% interval, in points."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside of the interval, and of mean ± half width, which is what people read."""
        return (self.low > 0 or self.high < 0) and abs(self.mean) > self.half_width


def spread_of(values: np.ndarray, groups: Sequence[str], seed: int = 0, resamples: int = RESAMPLES) -> Spread:
    """Mean of `values` (seeds, items) and its interval over groups of items and seeds.

    Args:
        groups: Group of each item.
        seed: Seed of the resampling; the same for all rows, so that equal tables give equal intervals.
    """
    values = np.asarray(values, dtype=np.float64)
    names = sorted(set(groups))
    membership = np.array([[group == name for group in groups] for name in names], dtype=np.float64)  # (G, items)
    sums, sizes = values @ membership.T, membership.sum(1)  # (seeds, G), (G,)
    rng = np.random.default_rng(seed)
    group_counts, seed_counts = (_resampled_counts(rng, number, resamples) for number in (len(names), len(values)))
    means = np.einsum("rs,sg,rg->r", seed_counts, sums, group_counts)
    means /= seed_counts.sum(1) * (group_counts @ sizes)
    low, high = np.percentile(means, (2.5, 97.5))
    return Spread(float(values.mean()), float(low), float(high))


def _resampled_counts(rng: np.random.Generator, number: int, resamples: int) -> np.ndarray:
    """How often each of `number` things is drawn, (resamples, number); `number` - 1 draws, or the only one."""
    return rng.multinomial(max(number - 1, 1), np.full(number, 1 / number), size=resamples).astype(np.float64)


# ----------------------------------------------------------------------------------------------------------------------
# Sentences
# ----------------------------------------------------------------------------------------------------------------------


def effect_sentence(subject: str, spreads: Mapping[int, Spread]) -> str:
    """One sentence on a difference at each number of shots.

    >>> effect_sentence("The text", {1: Spread(5.0, 4.2, 5.8), 5: Spread(0.1, -0.4, 0.6)})
    'The text adds 5.0 ± 0.8 points at one shot; no effect is measurable at five shots (+0.1 ± 0.5).'
    """
    clear = {shots: spread for shots, spread in spreads.items() if spread.is_clear}
    unclear = [
        f"{shots_in_words(shots)} ({_signed(spread)})" for shots, spread in spreads.items() if shots not in clear
    ]
    if not clear:
        return f"{subject} has no measurable effect at {' or at '.join(unclear)}."
    parts, verb = [], None
    for shots, spread in clear.items():
        before, verb = verb, "adds" if spread.mean > 0 else "costs"
        figure = f"{abs(spread.mean):.1f} ± {spread.half_width:.1f} points at {shots_in_words(shots)}"
        parts.append(figure if verb == before else f"{verb} {figure}")
    tail = f"; no effect is measurable at {' or at '.join(unclear)}" if unclear else ""
    return f"{subject} {' and '.join(parts)}{tail}."


def shots_in_words(shots: int) -> str:
    """ "one shot", "five shots", "3 shots"."""
    return {1: "one shot", 5: "five shots"}.get(shots, f"{shots} shots")


def _signed(spread: Spread) -> str:
    mean = round(spread.mean, 1) or 0.0  # no "-0.0"
    return f"{mean:+.1f} ± {spread.half_width:.1f}"


def guessing_sentence(subject: str, spread: Spread, chance: float) -> str:
    """Whether an accuracy differs from guessing, in one sentence."""
    figure = f"{spread.mean:.1f} ± {spread.half_width:.1f}%"
    if spread.low <= chance <= spread.high:
        return f"{subject} cannot be told apart from guessing ({figure}; guessing gives {chance:.0f}%)."
    side = "better" if spread.mean > chance else "worse"
    return f"{subject} is {side} than guessing ({figure}; guessing gives {chance:.0f}%)."


def worth_training(spreads: Mapping[int, Spread]) -> str:
    """The answer to "is it worth training?" from the gain over frozen features; undecided where zero is possible.

    >>> worth_training({1: Spread(0.1, -0.4, 0.6), 5: Spread(-2.1, -3.1, -1.1)})
    'For CLIP-FSAR: no at five shots; undecided at one shot.'
    """
    kinds = {"gain": [], "loss": [], "none": []}
    for shots, spread in spreads.items():
        kind = "none" if not spread.is_clear else "gain" if spread.mean > 0 else "loss"
        kinds[kind].append(shots_in_words(shots))
    parts = [
        f"{word} at {' and '.join(kinds[kind])}"
        for kind, word in (("gain", "yes"), ("loss", "no"), ("none", "undecided"))
        if kinds[kind]
    ]
    return f"For CLIP-FSAR: {'; '.join(parts)}."


__all__ = [
    "RESAMPLES",
    "Spread",
    "effect_sentence",
    "guessing_sentence",
    "shots_in_words",
    "spread_of",
    "worth_training",
]
