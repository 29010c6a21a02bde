"""The two tracks of the demo: their base, validation and novel classes.

On *What*, appearance decides, as in Kinetics. A class is a look (colour and shape) with one verb. Every class has a
different look, so no class is another one played backwards. Distractors are as large as the subject. One clip does not
tell which of its objects matters; the class text does. The captions that trained the tiny CLIP never named four of the
novel looks.

On *Order*, motion decides, as in Something-Something. The classes of an episode share one look and differ only in the
verb. Most verbs come with a *twin*: the same motion played backwards, which shows the same frames in another order.
The 36 verbs are divided into folds, twins together. Each verb is novel once, in the fold whose training never saw it.
Ten other verbs are the validation classes of every fold.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from demo.synthetic.actions import ACTIONS
from demo.synthetic.classes import (
    BASE_CLASSES,
    COLOURS,
    NOVEL_CLASSES,
    VALIDATION_CLASSES,
    join_class_name,
    parse_class_name,
)
from demo.synthetic.shapes import SHAPES

Look = tuple[str, str]  # colour and shape


@dataclass(frozen=True)
class Track:
    """The classes of a track, and their numbers of clips.

    Args:
        name: `"what"` or `"order"`.
        title: Heading of the table.
        base, validation, novel: Class names. A fold trains on the base classes without its verbs, and is tested on the
            novel classes with its verbs.
        folds: Verbs that each fold leaves out of the training.
        shares_look: Whether the classes of an episode share one look.
        base_clips, draws: Number of clips of a base class, and of random draws of frames and crop per clip.
        test_clips: Number of clips of a validation or novel class, with the frames and the crop of evaluation.
        distractor_size: Factor on the usual size of distractors.
    """

    name: str
    title: str
    base: tuple[str, ...]
    validation: tuple[str, ...]
    novel: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...]
    shares_look: bool
    base_clips: int
    test_clips: int
    draws: int = 2
    distractor_size: float = 1.0

    def base_of(self, fold: int) -> tuple[str, ...]:
        """Base classes that a fold trains on."""
        return tuple(name for name in self.base if verb_of(name) not in self.folds[fold])

    def novel_of(self, fold: int) -> tuple[str, ...]:
        """Novel classes that a fold is tested on."""
        return tuple(name for name in self.novel if verb_of(name) in self.folds[fold])

    def scopes(self, class_names: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Sets of classes to draw episodes from: one set of all classes, or one set per look."""
        if not self.shares_look:
            return [class_names]
        looks = dict.fromkeys(look_of(name) for name in class_names)
        return [tuple(name for name in class_names if look_of(name) == look) for look in looks]

    def item_of(self, class_name: str) -> str:
        """The item that accuracies are averaged over: the verb if classes share looks, otherwise the class."""
        return verb_of(class_name) if self.shares_look else class_name

    def group_of(self, item: str) -> str:
        """The unit that intervals resample: twins share a motion and form one unit."""
        return ACTIONS[item].motion.__name__.strip("_") if self.shares_look else item


def verb_of(class_name: str) -> str:
    return parse_class_name(class_name)[3]


def look_of(class_name: str) -> Look:
    return parse_class_name(class_name)[1:3]


def twin_of(verb: str) -> str | None:
    """The verb for the same motion played backwards; None if there is none."""
    twins = [name for name, action in ACTIONS.items() if action.motion is ACTIONS[verb].motion and name != verb]
    return twins[0] if twins else None


def exchange_twins(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The class names with each verb replaced by its twin; a verb without a twin stays."""
    parts = [(*look_of(name), verb_of(name)) for name in class_names]
    return tuple(join_class_name(colour, shape, twin_of(verb) or verb) for colour, shape, verb in parts)


# ----------------------------------------------------------------------------------------------------------------------
# Looks and verbs
# ----------------------------------------------------------------------------------------------------------------------

_VALIDATION_LOOKS = (("orange", "cross"), ("white", "heart"))
UNNAMED_LOOKS = tuple(dict.fromkeys(look_of(name) for name in NOVEL_CLASSES))  # in no caption of the tiny CLIP
_BASE_VERBS = tuple(dict.fromkeys(verb_of(name) for name in BASE_CLASSES))
_VALIDATION_VERBS = tuple(dict.fromkeys(verb_of(name) for name in VALIDATION_CLASSES))
_NOVEL_VERBS = tuple(dict.fromkeys(verb_of(name) for name in NOVEL_CLASSES))


def _other_looks() -> list[Look]:
    """The looks that are neither validation looks nor unnamed: those of `BASE_CLASSES`, then others in fixed order."""
    base = list(dict.fromkeys(look_of(name) for name in BASE_CLASSES))
    others = [look for look in product(COLOURS, SHAPES) if look not in _VALIDATION_LOOKS + UNNAMED_LOOKS]
    order = np.random.default_rng(7).permutation(len(others))
    return base + [others[i] for i in order if others[i] not in base]


def _one_verb_each(looks: list[Look], verbs: list[str]) -> tuple[str, ...]:
    return tuple(join_class_name(*look, verbs[i % len(verbs)]) for i, look in enumerate(looks))


def _verb_folds(num_folds: int = 3) -> tuple[tuple[str, ...], ...]:
    """Base and novel verbs in folds of equal size, twins in the same fold."""
    units = {}
    for verb in _BASE_VERBS + _NOVEL_VERBS:
        units.setdefault(ACTIONS[verb].motion, []).append(verb)
    pairs = [unit for unit in units.values() if len(unit) == 2]
    singles = [unit for unit in units.values() if len(unit) == 1]
    rng = np.random.default_rng(5)
    folds = [[] for _ in range(num_folds)]
    for group in (pairs, singles):
        for position, chosen in enumerate(rng.permutation(len(group))):
            folds[position % num_folds] += group[chosen]
    return tuple(map(tuple, folds))


def _every_verb_on(looks: tuple[Look, ...], verbs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(join_class_name(*look, verb) for look in looks for verb in verbs)


def _what_track() -> Track:
    looks = _other_looks()
    order = np.random.default_rng(3).permutation(len(_BASE_VERBS))
    base_verbs = [_BASE_VERBS[i] for i in order]
    return Track(
        name="what",
        title="What: classes differ in what is seen",
        base=_one_verb_each(looks[:38], base_verbs),
        validation=_one_verb_each([*_VALIDATION_LOOKS, *looks[38:46]], _VALIDATION_VERBS),
        novel=_one_verb_each([*UNNAMED_LOOKS, *looks[46:54]], _NOVEL_VERBS),
        folds=(_NOVEL_VERBS,),
        shares_look=False,
        base_clips=8,
        test_clips=20,
        distractor_size=1.55,  # the largest distractor is a little larger than the subject
    )


def _order_track() -> Track:
    verbs = _BASE_VERBS + _NOVEL_VERBS
    base_looks = tuple(dict.fromkeys(look_of(name) for name in BASE_CLASSES))
    return Track(
        name="order",
        title="Order: classes share a look and differ in the verb",
        base=_every_verb_on(base_looks, verbs),
        validation=_every_verb_on(_VALIDATION_LOOKS, _VALIDATION_VERBS),
        novel=_every_verb_on((("red", "star"), ("green", "ring")), verbs),
        folds=_verb_folds(),
        shares_look=True,
        base_clips=6,
        test_clips=10,
    )


WHAT, ORDER = _what_track(), _order_track()
TRACKS = (WHAT, ORDER)


__all__ = ["ORDER", "TRACKS", "UNNAMED_LOOKS", "WHAT", "Track", "exchange_twins", "look_of", "twin_of", "verb_of"]
