"""The review of a support set: how good its clips are, judged by leaving them out. Nothing is encoded anew.

Letters in shapes: S clips, N classes, Q comparisons of clips, T frames, D feature size.
"""

import io
import itertools
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

try:
    from .paths_clipfsar import check_picture_name, naming_errors, wrapped
except ImportError:
    if __package__:
        raise
    from paths_clipfsar import check_picture_name, naming_errors, wrapped

try:
    from .left_out_clipfsar import LeftOut, by_class, hold_out, leave_one_out, rounds, sources_of_clips
except ImportError:
    if __package__:
        raise
    from left_out_clipfsar import LeftOut, by_class, hold_out, leave_one_out, rounds, sources_of_clips

try:
    from .support_set_files_clipfsar import EnrolledClass, embeds_of_clips
except ImportError:
    if __package__:
        raise
    from support_set_files_clipfsar import EnrolledClass, embeds_of_clips

# A clip is suspect if its margin is this many robust standard deviations above the median margin.
SUSPECT_DEVIATIONS = 3.0
# Mean cosine of frame features, minus the mean of the set. Rescaled, brightened, shifted and re-encoded copies of
# rendered clips have 0.97 and more; different clips of one class have 0.90 at most.
DUPLICATE_SIMILARITY = 0.96
# Clips of one class are compared with the same prototypes, so that their answers err together: two count as one.
_CLIPS_PER_INDEPENDENT_ANSWER = 2
_LABEL_WIDTH = 28  # characters in a line of a class name in the picture


@dataclass(frozen=True)
class SuspectClip:
    """A clip that looks mislabelled: far nearer to another class than to its own, even for this set.

    Args:
        margin: How much more the other class fits, in logits of the mode.
        deviations: How far the margin lies above the set's median margin, in robust standard deviations.
    """

    class_name: str
    clip: str
    nearer_to: str
    margin: float
    deviations: float


@dataclass
class SupportSetReview:
    """What `SupportSet.review` found. `print` shows it as a table; `to_dict` is for JSON; `plot` draws it.

    Args:
        class_names: N names.
        num_clips: Clips of each class.
        inference_mode: The mode that was reviewed.
        accuracy: Expected accuracy on new clips, in percent, each class equally likely; None if no clip can be left
            out. It is the accuracy of left-out clips, extrapolated from fewer clips to all clips.
        interval: Its 95% interval, in percent.
        shots_fewer: 0, or 1 if no class has three sources: `accuracy` is then for one clip fewer per class.
        per_class: Accuracy of left-out clips of each class, in percent; None for a class whose clips cannot be left
            out.
        confusion: N rows of shares: how often clips of a class (row) are taken for each class (column).
        suspects: Clips that look mislabelled, the worst first.
        duplicates: Pairs of clips (class, clip, class, clip) that are almost the same.
        shared_sources: Sources with several clips, `{source: [(class, clip), ...]}`. These clips are left out together.
        inseparable: Pairs of classes (class, class, right answers, answers) whose left-out clips are told apart in at
            most 75% of cases, and not significantly more often than by guessing (5% level).
        too_few: Classes with clips of only one source: they cannot be left out.
    """

    class_names: list[str]
    num_clips: dict[str, int]
    inference_mode: str
    accuracy: float | None
    interval: tuple[float, float] | None
    shots_fewer: int
    per_class: dict[str, float | None]
    confusion: list[list[float]]
    suspects: list[SuspectClip]
    duplicates: list[tuple[str, str, str, str]]
    shared_sources: dict[str, list[tuple[str, str]]]
    inseparable: list[tuple[str, str, int, int]]
    too_few: list[str]
    _thumbnails: dict[tuple[str, str], bytes] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return "\n".join([*self.summary(), "", *self._table()])

    def to_dict(self) -> dict:
        """Everything but the pictures, as plain values for JSON."""
        values = asdict(self)
        del values["_thumbnails"]
        return values

    def summary(self) -> list[str]:
        """What to know and do, one sentence per line."""
        lines = [self._accuracy_in_words()]
        if self.too_few:
            lines.append(f"Too few clips: {_quoted(self.too_few)} cannot be left out. Add clips from another video.")
        for one in self.suspects:
            lines.append(
                f"Mislabelled? {one.class_name}/{one.clip} looks like {one.nearer_to!r}. Watch it; remove or move it."
            )
        for class_name, clip, other_class, other in self.duplicates:
            is_one_class = class_name == other_class
            advice = "One of them is enough" if is_one_class else "Is one label wrong? If both are right, keep both"
            lines.append(f"Almost the same: {class_name}/{clip} and {other_class}/{other}. {advice}.")
        for source, clips in self.shared_sources.items():
            lines.append(f"From one video: {len(clips)} clips of {source!r} are left out together.")
        for one, other, right, total in self.inseparable:
            lines.append(f"Hard to tell apart: {one!r} and {other!r}, {right} of {total} left-out clips are right.")
        return lines if len(lines) > 1 else [*lines, "No clip or class stands out."]

    def _accuracy_in_words(self) -> str:
        if self.accuracy is None or self.interval is None:
            return f"Expected accuracy ({self.inference_mode}): unknown. No class has clips of two videos."
        low, high = self.interval
        fewer = ", with one clip fewer per class" if self.shots_fewer else ""
        return (
            f"Expected accuracy on new clips ({self.inference_mode}{fewer}): {self.accuracy:.0f}%, "
            f"95% interval {low:.0f} to {high:.0f}%. Guessing gives {100 / len(self.class_names):.0f}%."
        )

    def _table(self) -> list[str]:
        width = max(5, *map(len, self.class_names))
        lines = [f"{'class':{width}}  clips  accuracy  most often taken for"]
        for row, name in enumerate(self.class_names):
            accuracy = self.per_class[name]
            shares = [0.0 if column == row else share for column, share in enumerate(self.confusion[row])]
            other = max(range(len(shares)), key=shares.__getitem__)
            taken_for = f"{self.class_names[other]} ({100 * shares[other]:.0f}%)" if shares[other] > 0 else "-"
            known = "-" if accuracy is None else f"{accuracy:.0f}%"
            lines.append(f"{name:{width}}  {self.num_clips[name]:5}  {known:>8}  {taken_for}")
        return lines

    def plot(self, path: str | os.PathLike | None = None):
        """Draws the confusion of classes, and film strips of suspect and doubled clips.

        Returns matplotlib's figure, and writes it to `path` if given.

        Raises:
            ValueError: If `path` does not end as a picture does.
        """
        check_picture_name(path)
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("Pictures need matplotlib: `pip install matplotlib`.") from error
        captions = self._captions()
        longest = min(max(map(len, self.class_names)), _LABEL_WIDTH)  # slanted names need room below
        height = max(5.0, 0.42 * len(self.class_names) + 2.2 + 0.05 * longest, 1.15 * len(captions) + 1)
        figure = Figure(figsize=(14 if captions else 8, height), layout="constrained")
        title = textwrap.fill(self._accuracy_in_words(), 110 if captions else 60)
        figure.suptitle(title, fontsize=12, fontweight="bold", parse_math=False)
        left, right = figure.subfigures(1, 2, squeeze=False)[0] if captions else (figure, None)
        self._draw_confusion(left.subplots())
        if right is not None:
            shown = max(4, len(captions))
            for axes, caption in itertools.zip_longest(right.subplots(shown, 1), captions):
                axes.axis("off")
                if caption is not None:
                    _draw_strip(axes, self._thumbnails.get(caption[0], b""), caption[1])
        if path is not None:
            with naming_errors(path):
                figure.savefig(path, dpi=110, bbox_inches="tight")
        return figure

    def _captions(self, most: int = 8) -> list[tuple[tuple[str, str], str]]:
        """The clips to draw, each with a caption; suspects before doubles."""
        captions = []
        for one in self.suspects:
            text = f"{one.clip} of {one.class_name!r}: looks like {one.nearer_to!r}"
            captions.append(((one.class_name, one.clip), text))
        for class_name, clip, other_class, other in self.duplicates:
            captions.append(((class_name, clip), f"{clip} of {class_name!r}: almost the same as the next"))
            captions.append(((other_class, other), f"{other} of {other_class!r}"))
        return captions[:most]

    def _draw_confusion(self, axes):
        shares = torch.tensor(self.confusion) * 100
        axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
        numbers = range(len(self.class_names))
        if len(self.class_names) <= 20:
            for row, column in itertools.product(numbers, numbers):
                value = float(shares[row, column])
                if value >= 0.5:
                    colour = "white" if value > 60 else "black"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=9, color=colour)
        names = [f"{wrapped(name, _LABEL_WIDTH, 4)} ({self.num_clips[name]})" for name in self.class_names]
        axes.set_yticks(numbers, names, fontsize=9, parse_math=False)
        names = [wrapped(name, _LABEL_WIDTH, 4) for name in self.class_names]
        axes.set_xticks(numbers, names, fontsize=9, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set(xlabel="taken for", ylabel="class (clips)")
        axes.set_title("left-out clips, % of each class", fontsize=11)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _draw_strip(axes, picture: bytes, caption: str):
    axes.set_title(wrapped(caption, 90), fontsize=10, loc="left", parse_math=False)
    if picture:
        with Image.open(io.BytesIO(picture), formats=("JPEG",)) as strip:
            axes.imshow(np.asarray(strip.convert("RGB")))
        axes.set_anchor("W")
    else:
        axes.text(0, 0.5, "no picture kept", color="0.5", fontsize=9)


# --- what the review computes -----------------------------------------------------------------------------------------


def review_classes(
    model,
    classes: Mapping[str, EnrolledClass],
    inference_mode: str,
    sources: Mapping[Any, str] | None = None,
    seed: int = 0,
) -> SupportSetReview:
    """See `SupportSet.review`, which calls this."""
    names = list(classes)
    clips = [(name, clip) for name, one in classes.items() for clip in one.clip_names]
    pictures = [picture for one in classes.values() for picture in one.thumbnails]
    source_of_clip = sources_of_clips(classes, sources)
    left_out = leave_one_out(model, classes, source_of_clip)
    answers = averaged_answers(model, classes, source_of_clip, inference_mode, left_out, seed)
    confusion = answers.confusion()
    return SupportSetReview(
        class_names=names,
        num_clips={name: len(one.clip_names) for name, one in classes.items()},
        inference_mode=inference_mode,
        accuracy=answers.accuracy,
        interval=answers.interval,
        shots_fewer=answers.shots_fewer,
        per_class={
            name: 100 * float(confusion[row, row]) if confusion[row].sum() > 0 else None
            for row, name in enumerate(names)
        },
        confusion=[[round(share, 4) for share in row] for row in confusion.tolist()],
        suspects=_suspects(model, left_out, inference_mode, clips, names),
        duplicates=_duplicates(classes, clips),
        shared_sources=_shared_sources(clips, source_of_clip),
        inseparable=_inseparable(model, left_out, inference_mode, names),
        too_few=[] if inference_mode == "zero_shot" else _of_one_source(names, clips, source_of_clip),
        _thumbnails={clip: picture for clip, picture in zip(clips, pictures, strict=True) if picture},
    )


@dataclass
class AveragedAnswers:
    """How left-out clips are answered on average.

    Args:
        shares: (S, N), how often each clip is taken for each class; a row of zeros if it is never left out.
        labels: Class (S,) of each clip.
        accuracy: Expected accuracy in percent, None if no clip is left out.
        interval: Its 95% interval.
        shots_fewer: 1 if the accuracy could not be extrapolated to all clips.
    """

    shares: torch.Tensor
    labels: torch.Tensor
    accuracy: float | None
    interval: tuple[float, float] | None
    shots_fewer: int

    def confusion(self) -> torch.Tensor:
        """(N, N), the mean answers of the clips of each class."""
        return _mean_of_classes(self.shares, self.labels, self.shares.sum(1) > 0)


def _mean_of_classes(values: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean of the rows (S, N) that count, for each of N classes, (N, N); zeros for a class without such rows."""
    membership = F.one_hot(labels, values.shape[1]).float() * counts[:, None]
    return membership.T @ values / membership.sum(0).clamp(min=1)[:, None]


def averaged_answers(
    model,
    classes: Mapping[str, EnrolledClass],
    sources: Sequence,
    inference_mode: str,
    left_out: LeftOut,
    seed: int = 0,
) -> AveragedAnswers:
    """Answers of clips when every class gives up one source, then two, averaged over seeded rounds.

    When one clip alone is left out, its own class has one clip fewer than the others, and looks worse than it is: with
    three clips per class by 15 points. Here all classes lose equally. From the accuracies with one and with two sources
    fewer, a line in 1 / sources gives that of all sources.
    """
    labels = left_out.labels
    num_classes = left_out.distances.shape[1]
    if inference_mode == "zero_shot":
        shares = F.one_hot(left_out.logits(model, inference_mode).argmax(1), num_classes).float()
        return _with_interval(shares, labels, len(set(sources)), [], 0)
    sources_of_class = [list(dict.fromkeys(own)) for own in by_class(labels, sources, num_classes)]
    shares, levels = torch.zeros(len(labels), num_classes), []
    most = max(map(len, sources_of_class))
    for lost in (1, 2)[: most - 1]:
        held_out = rounds(labels, sources, lost, seed)
        answers = hold_out(model, classes, held_out)
        right = F.one_hot(answers.logits(model, inference_mode).argmax(1), num_classes).float()
        sums = torch.zeros(len(labels), num_classes).index_add_(0, answers.rows, right)
        at_level = sums / sums.sum(1, keepdim=True).clamp(min=1)
        shares = at_level if lost == 1 else shares
        kept = [len(own) - min(lost, len(own) - 1) for own in sources_of_class if len(own) > 1]
        levels.append((_accuracy(at_level, labels), sum(1 / number for number in kept) / len(kept)))
    whole = [1 / len(own) for own in sources_of_class if len(own) > 1]
    num_sources = len({source for own in sources_of_class if len(own) > 1 for source in own})
    return _with_interval(shares, labels, num_sources, levels, sum(whole) / max(1, len(whole)))


def _accuracy(shares: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean over classes of the share (S, N) of right answers; classes whose clips are never left out do not count."""
    confusion = _mean_of_classes(shares, labels, shares.sum(1) > 0)
    return float(confusion.diagonal()[confusion.sum(1) > 0].mean())


def _with_interval(
    shares: torch.Tensor, labels: torch.Tensor, num_sources: int, levels: list[tuple[float, float]], whole: float
) -> AveragedAnswers:
    """Extrapolates the accuracies of `levels`, each with its mean of 1 / sources, to `whole`, and adds the interval."""
    if not (shares.sum(1) > 0).any():
        return AveragedAnswers(shares, labels, None, None, 0)
    accuracy = _accuracy(shares, labels)
    can_extrapolate = len(levels) == 2 and levels[1][1] > levels[0][1]
    if can_extrapolate:
        (one, x), (two, further) = levels
        accuracy = min(1.0, one + max(0.0, one - two) / (further - x) * (x - whole))
    low, high = wilson_interval(accuracy, num_sources / _CLIPS_PER_INDEPENDENT_ANSWER)
    shots_fewer = 1 if levels and not can_extrapolate else 0
    return AveragedAnswers(shares, labels, 100 * accuracy, (100 * low, 100 * high), shots_fewer)


def wilson_interval(share: float, number: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of `number` independent answers, 95% for the given z."""
    centre = share + z * z / (2 * number)
    half = z * (share * (1 - share) / number + z * z / (4 * number * number)) ** 0.5
    whole = 1 + z * z / number
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)


def _suspects(
    model, left_out: LeftOut, inference_mode: str, clips: list[tuple[str, str]], names: list[str]
) -> list[SuspectClip]:
    """Clips nearer to another class than to their own, by a margin that stands out from the margins of the set.

    In a set with classes that are hard to tell apart, many clips are nearer to another class; few of them are wrong.
    """
    assessed = left_out.is_assessed(inference_mode)
    logits = left_out.logits(model, inference_mode)
    own = left_out.labels[:, None]
    others, nearest = logits.scatter(1, own, -torch.inf).max(1)
    margins = (others - logits.take_along_dim(own, 1)[:, 0])[assessed]
    if len(margins) < 3:
        return []
    deviations = (margins - margins.median()) / _robust_deviation(margins)
    found = [
        SuspectClip(clips[row][0], clips[row][1], names[int(nearest[row])], float(margin), float(deviation))
        for row, margin, deviation in zip(assessed.nonzero()[:, 0].tolist(), margins, deviations, strict=True)
        if margin > 0 and deviation > SUSPECT_DEVIATIONS
    ]
    return sorted(found, key=lambda one: -one.deviations)


def _robust_deviation(values: torch.Tensor) -> torch.Tensor:
    """Standard deviation of normal values, from the median distance to the median."""
    return 1.4826 * (values - values.median()).abs().median().clamp(min=1e-6)


def _duplicates(classes: Mapping[str, EnrolledClass], clips: list[tuple[str, str]]) -> list[tuple[str, str, str, str]]:
    """Pairs of clips whose frames have almost the same features, frame by frame."""
    embeds = embeds_of_clips(classes).float()  # (S, T, D)
    frames = F.normalize(embeds - embeds.mean((0, 1)), dim=-1).flatten(1)
    pairs = []
    for rows in torch.arange(len(frames)).split(256):
        similar = frames[rows] @ frames.T / embeds.shape[1] > DUPLICATE_SIMILARITY
        pairs += [(int(rows[row]), column) for row, column in similar.nonzero().tolist() if rows[row] < column]
    return [(*clips[one], *clips[other]) for one, other in pairs]


def repeated_clips(classes: Mapping[str, EnrolledClass], new: Mapping[str, list]) -> list[str]:
    """Sentences about new clips with the same frames as another new or enrolled clip, told by their pictures.

    Args:
        classes: The enrolled classes.
        new: `{class name: [(file name or None, frame features, picture), ...]}`. Clips without pictures are only
            compared with each other, by their features.
    """
    known: dict[bytes, tuple[str, str]] = {}
    for class_name, enrolled in classes.items():
        for clip, picture in zip(enrolled.clip_names, enrolled.thumbnails, strict=False):
            known.setdefault(picture, (class_name, clip))  # new clips without a picture go by their features
    sentences = []
    for class_name, clips in new.items():
        for number, (name, embeds, picture) in enumerate(clips, start=1):
            clip = (class_name, f"clip {number}" if name is None else name)
            first = known.setdefault(picture or embeds.numpy().tobytes(), clip)
            if first is not clip:
                what = "an example that is given twice counts twice. Remove one of them."
                if first[0] != class_name:
                    what = "one of the labels is wrong. Remove that clip."
                where = f"{clip[1]!r} of class {class_name!r} has the same frames as {first[1]!r} of class {first[0]!r}"
                sentences.append(f"{where}: {what}")
    return sentences


def _shared_sources(clips: list[tuple[str, str]], sources: Sequence[tuple[str, ...]]) -> dict:
    """The clips of each source that has several."""
    shared: dict[str, list[tuple[str, str]]] = {}
    for clip, source in zip(clips, sources, strict=True):
        shared.setdefault(source[0] if len(source) == 1 else "", []).append(clip)
    shared.pop("", None)  # sources of one clip each
    return {source: members for source, members in shared.items() if len(members) > 1}


def _of_one_source(names: list[str], clips: list[tuple[str, str]], sources: Sequence) -> list[str]:
    of_class: dict[str, set] = {name: set() for name in names}
    for (name, _), source in zip(clips, sources, strict=True):
        of_class[name].add(source)
    return [name for name, own in of_class.items() if len(own) < 2]


def _inseparable(model, left_out: LeftOut, inference_mode: str, names: list[str]) -> list[tuple[str, str, int, int]]:
    """Pairs of classes with few right answers, perhaps only guesses, when only the two are asked about."""
    logits, assessed = left_out.logits(model, inference_mode), left_out.is_assessed(inference_mode)
    own = left_out.labels[:, None]
    is_right = logits.take_along_dim(own, 1) > logits  # (S, N), against each other class
    membership = F.one_hot(left_out.labels, len(names)).bool() & assessed[:, None]
    right = membership.float().T @ is_right.float()  # (N, N): clips of a class that are right against another
    counts = membership.sum(0)
    pairs = []
    for one, other in itertools.combinations(range(len(names)), 2):
        num_right, total = int(right[one, other] + right[other, one]), int(counts[one] + counts[other])
        if not (counts[one] and counts[other]):
            continue
        if num_right <= 0.75 * total and wilson_interval(num_right / total, total)[0] <= 0.5:
            pairs.append((names[one], names[other], num_right, total))
    return sorted(pairs, key=lambda pair: pair[2] / pair[3])


__all__ = [
    *("SupportSetReview", "SuspectClip", "averaged_answers", "repeated_clips", "review_classes", "wilson_interval"),
]
