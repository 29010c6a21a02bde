"""The score of "none of these": how little a video resembles the enrolled clips, the class names, or both.

The *misfit* of a video to a class has two parts. By clips: the distance to the nearest clip of the class, minus the
distance that is usual between clips of this class. By names: minus the text logit of the class. A video is as unknown
as its smallest misfit. Letters in shapes: S enrolled clips, N classes, Q queries, T frames, D feature size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

try:
    from .left_out_clipfsar import by_class, sources_of_clips
except ImportError:
    if __package__:
        raise
    from left_out_clipfsar import by_class, sources_of_clips

try:
    from .modeling_clipfsar import evaluating
except ImportError:
    if __package__:
        raise
    from modeling_clipfsar import evaluating

try:
    from .support_set_files_clipfsar import EnrolledClass, Unknowns, embeds_of_clips
except ImportError:
    if __package__:
        raise
    from support_set_files_clipfsar import EnrolledClass, Unknowns, embeds_of_clips

# The mean over all classes counts as this many clips in the usual distance of a class: a few clips tell little.
_PRIOR_CLIPS = 2
CLIPS_AT_ONCE = 256  # in the temporal transformer
CLASSES_AT_ONCE = 64
ENTRIES_AT_ONCE = 2**22  # of a matrix, for example (queries, clips)


@dataclass
class _Usual:
    """What is usual between clips of one class, in B sets of M clips.

    Every number depends on the clips of a class, not on their order.

    Args:
        nearest: (B, M), distance of each clip to the nearest other one of its class; infinite if there is none.
        labels: (B, M), class of each clip.
        num_classes: N.

    Attributes:
        mean: (B, 1), of all these distances.
        spread: (B, 1), their standard deviation, but at least a tenth of the mean: few distances may be equal.
    """

    nearest: torch.Tensor
    labels: torch.Tensor
    num_classes: int

    def __post_init__(self):
        has_other = self.nearest.isfinite()
        nearest = self.nearest.masked_fill(~has_other, 0)
        zeros = nearest.new_zeros(len(nearest), self.num_classes)
        self._totals = zeros.scatter_add(1, self.labels, nearest)
        self._counts = zeros.scatter_add(1, self.labels, has_other.to(nearest))
        self.mean = nearest.sum(1, keepdim=True) / has_other.sum(1, keepdim=True)
        variance = ((nearest - self.mean) * has_other).square().sum(1, keepdim=True) / has_other.sum(1, keepdim=True)
        self.spread = torch.maximum(variance.sqrt(), self.mean / 10)

    def of_class(self) -> torch.Tensor:
        """The usual distance of each class, (B, N)."""
        return (self._totals + _PRIOR_CLIPS * self.mean) / (self._counts + _PRIOR_CLIPS)

    def own_misfits(self) -> torch.Tensor:
        """Misfit (B, M) of each clip to its class by clips; what is usual comes from the other clips."""
        totals, counts = (one.gather(1, self.labels) for one in (self._totals, self._counts))
        usual = (totals - self.nearest + _PRIOR_CLIPS * self.mean) / (counts - 1 + _PRIOR_CLIPS)
        return ((self.nearest - usual) / self.spread).masked_fill(self.nearest.isinf(), torch.inf)


class UnknownScorer:
    """Scores of "none of these" from one model, for classes that do not change.

    Args:
        model: Give every method the same one.
        classes: N enrolled classes.
        unknowns: Background clips, and the error rate that is asked for.
    """

    def __init__(self, model, classes: Mapping[str, EnrolledClass], unknowns: Unknowns):
        self.unknowns = unknowns
        counts = torch.tensor([len(one.clip_names) for one in classes.values()])
        self.labels = torch.arange(len(counts)).repeat_interleave(counts)
        self.class_embeds = torch.stack([one.class_embeds for one in classes.values()]).to(model.device)
        embeds = [one.support_embeds for one in classes.values()]
        _, self.num_frames, size = embeds[0].shape
        self.vectors = torch.empty(len(self.labels), self.num_frames * size, device=model.device)
        self.mean_frames = torch.empty(len(self.labels), 1, size)  # text logits depend on nothing else
        done = 0
        # In pieces, because a copy of all features is large, and into tensors that are there: small results between
        # large temporary tensors would keep the memory of these.
        for start in range(0, len(embeds), CLASSES_AT_ONCE):
            piece = torch.cat(embeds[start : start + CLASSES_AT_ONCE])
            self.vectors[done : done + len(piece)] = self._vectors_of(model, piece)
            self.mean_frames[done : done + len(piece)] = piece.mean(1, keepdim=True)
            done += len(piece)
        self.own_texts = self._own_texts(model)
        sources = _sources(classes, self.labels).split(counts.tolist())
        own = zip(self.vectors.split(counts.tolist()), sources, strict=True)
        self.nearest = torch.cat([_nearest_others(*one) for one in own])  # (S,)
        self.usual = _Usual(self.nearest[None], self.labels[None], len(counts))
        self.background = None
        if unknowns.background is not None:
            self.background = self._vectors_of(model, embeds_of_clips({"background": unknowns.background}))
            nearest = _nearest_others(self.background, torch.arange(len(self.background)))
            self._background_nearest = nearest[nearest.isfinite()]
            self._clips_to_background = _distances(self.vectors, self.background).amin(1)
        self._calibrations: dict[str, tuple[float, float]] = {}
        self._between: tuple[torch.Tensor, torch.Tensor] | None = None

    def score(self, model, query_embeds: torch.Tensor, inference_mode: str) -> torch.Tensor:
        """See `SupportSet.score_unknown`."""
        if self.unknowns.error_rate is not None:
            self._check_enough_clips(inference_mode, self.unknowns.error_rate)
        queries_at_once = max(1, ENTRIES_AT_ONCE // len(self.labels))
        return torch.cat([self._scores(model, rows, inference_mode) for rows in query_embeds.split(queries_at_once)])

    def _scores(self, model, query_embeds: torch.Tensor, inference_mode: str) -> torch.Tensor:
        vectors = self._vectors_of(model, query_embeds)
        to_clips, texts = _distances(vectors, self.vectors), self._text_misfits(model, query_embeds)
        to_background = None if self.background is None else _distances(vectors, self.background).amin(1)
        error_rate = self.unknowns.error_rate
        if error_rate is not None:
            chances = self._chances_of_known(model, to_clips, texts, to_background, inference_mode)
            return (error_rate / (error_rate + chances)).float()
        slope, offset = self._calibration(model, inference_mode)
        by_clips = self._misfits_by_clips(to_clips)
        misfits = _combined(by_clips, texts / _spread(self.own_texts), inference_mode).amin(1)
        log_odds = slope * misfits + offset
        if to_background is not None and inference_mode != "zero_shot":
            excess = by_clips.amin(1) - self._background_misfits(to_background, self.usual)[0]
            log_odds = torch.maximum(log_odds, slope * excess)  # equal odds where both are equally near
        return log_odds.sigmoid().float()

    # Comparing. Distances and misfits are float64 on the CPU.

    def _vectors_of(self, model, embeds: torch.Tensor) -> torch.Tensor:
        """Unit vectors (clips, T * D) on the model's device. Their products are mean cosines, frame by frame."""
        if embeds.shape[-2] != self.num_frames:  # takes the frames that stand at the same time
            times = torch.linspace(0, embeds.shape[-2] - 1, self.num_frames)
            embeds = embeds[..., times.round().long().to(embeds.device), :]
        with evaluating(model):
            states = [model.get_query_states(rows.to(model.device)) for rows in embeds.split(CLIPS_AT_ONCE)]
        return F.normalize(F.normalize(torch.cat(states).float(), dim=-1).flatten(1), dim=-1)

    def _text_misfits(self, model, embeds: torch.Tensor) -> torch.Tensor:
        """Misfit (clips, N) to each class by its name, from frame features (clips, T, D)."""
        with evaluating(model):
            return -model.get_text_logits(embeds.to(model.device), self.class_embeds).cpu().double()

    def _own_texts(self, model) -> torch.Tensor:
        """Misfit (S,) of each clip to its class by the name."""
        own = torch.empty(len(self.labels), dtype=torch.float64)
        for rows in torch.arange(len(own)).split(CLIPS_AT_ONCE):
            own[rows] = self._text_misfits(model, self.mean_frames[rows]).gather(1, self.labels[rows, None])[:, 0]
        return own

    def _to_classes(self, to_clips: torch.Tensor) -> torch.Tensor:
        """Distances (Q, N) to the nearest clip of each class, from those to all clips (Q, S)."""
        nearest = to_clips.new_full((len(to_clips), len(self.class_embeds)), torch.inf)
        return nearest.scatter_reduce(1, self.labels.expand(len(to_clips), -1), to_clips, "amin")

    def _misfits_by_clips(self, to_clips: torch.Tensor) -> torch.Tensor:
        """Misfit (Q, N) to each class by its clips, from the distances to all clips (Q, S)."""
        return (self._to_classes(to_clips) - self.usual.of_class()) / self.usual.spread

    def _background_misfits(self, to_background: torch.Tensor, usual: _Usual) -> torch.Tensor:
        """Misfits (B, M) to the background clips as if they were a class, from the distances to the nearest one."""
        own = self._background_nearest
        usual_distance = (own.sum() + _PRIOR_CLIPS * usual.mean) / (len(own) + _PRIOR_CLIPS)
        return (to_background - usual_distance) / usual.spread

    # A threshold at equal odds

    def _calibration(self, model, inference_mode: str) -> tuple[float, float]:
        """Slope and offset that turn the smallest misfit into log odds of being unknown; made once for each mode.

        Known videos are clips left out of their class, unknown ones are the same clips without their class.
        """
        if inference_mode not in self._calibrations:
            is_known = self._can_be_known(inference_mode)
            if not is_known.any():
                raise ValueError(
                    "The score of unknown videos is calibrated by leaving clips out, but no class has two clips: "
                    "enroll more, or use inference_mode='zero_shot'."
                )
            own_by_clips, text_spread = self.usual.own_misfits()[0], _spread(self.own_texts)
            known, unknown = torch.empty(2, len(self.labels), dtype=torch.float64)
            for rows in torch.arange(len(self.labels)).split(max(1, ENTRIES_AT_ONCE // len(self.labels))):
                by_clips = self._misfits_by_clips(_distances(self.vectors[rows], self.vectors))
                by_texts = self._text_misfits(model, self.mean_frames[rows]) / text_spread
                own = self.labels[rows, None]
                by_clips = by_clips.scatter(1, own, own_by_clips[rows, None])
                misfits = _combined(by_clips, by_texts, inference_mode)
                known[rows] = misfits.amin(1)
                unknown[rows] = misfits.scatter(1, own, torch.inf).amin(1)
            self._calibrations[inference_mode] = _linear_discriminant(known[is_known], unknown[is_known])
        return self._calibrations[inference_mode]

    # A threshold with a known error rate

    def _chances_of_known(
        self,
        model,
        to_clips: torch.Tensor,
        texts: torch.Tensor,
        to_background: torch.Tensor | None,
        inference_mode: str,
    ) -> torch.Tensor:
        """Largest p-value (Q,) of "the query belongs to this class" among the classes: full conformal prediction.

        For each class the query joins its clips, and each clip is compared with the others. The p-value is the share of
        all clips, the query included, whose smallest misfit is no smaller than the query's (Vovk et al., Algorithmic
        Learning in a Random World, 2005).

        Args:
            to_clips: (Q, S), distances.
            texts: (Q, N), misfits to the names.
            to_background: (Q,), distances to the nearest background clip.
        """
        num_classes = len(self.class_embeds)
        between, clip_texts = self._comparisons_between_clips(model)
        pairs = torch.cartesian_prod(torch.arange(len(to_clips)), torch.arange(num_classes))  # query, class it joins
        chances = []
        for queries, classes in (piece.unbind(1) for piece in pairs.split(max(1, ENTRIES_AT_ONCE // between.numel()))):
            columns = classes[:, None, None].expand(-1, len(between), 1)
            new = torch.minimum(between.expand(len(classes), -1, -1).gather(2, columns), to_clips[queries, :, None])
            to_classes = between.expand(len(classes), -1, -1).scatter(2, columns, new)
            to_classes = torch.cat([to_classes, self._to_classes(to_clips[queries])[:, None]], dim=1)
            labels = torch.cat([self.labels.expand(len(classes), -1), classes[:, None]], dim=1)[..., None]
            nearest = to_classes.gather(2, labels)[..., 0]  # (pairs, S + 1); the query comes last
            usual = _Usual(nearest, labels[..., 0], num_classes)
            by_clips = (to_classes - usual.of_class()[:, None]) / usual.spread[..., None]
            by_clips = by_clips.scatter(2, labels, usual.own_misfits()[..., None])
            by_texts = torch.cat([clip_texts.expand(len(classes), -1, -1), texts[queries, None]], dim=1)
            by_texts = by_texts / _spread(by_texts.gather(2, labels)[..., 0])[..., None]
            misfits = _combined(by_clips, by_texts, inference_mode).amin(2)
            if to_background is not None and inference_mode != "zero_shot":
                background = self._clips_to_background.expand(len(classes), -1)
                background = torch.cat([background, to_background[queries, None]], dim=1)
                misfits = misfits + (by_clips.amin(2) - self._background_misfits(background, usual)).clamp(min=0)
            counts = nearest.isfinite() | (inference_mode == "zero_shot")
            fits_no_better = counts & (misfits >= misfits[:, -1:] - 1e-9)
            chances.append(fits_no_better.sum(1).double() / counts.sum(1))
        return torch.cat(chances).view(-1, num_classes).amax(1)

    def _comparisons_between_clips(self, model) -> tuple[torch.Tensor, torch.Tensor]:
        """Distance of each clip to the nearest other clip of each class, and misfits to the names, both (S, N)."""
        if self._between is None:
            to_classes, texts = [], []
            for rows in torch.arange(len(self.labels)).split(max(1, ENTRIES_AT_ONCE // len(self.labels))):
                to_classes.append(self._to_classes(_distances(self.vectors[rows], self.vectors)))
                texts.append(self._text_misfits(model, self.mean_frames[rows]))
            between = torch.cat(to_classes).scatter(1, self.labels[:, None], self.nearest[:, None])
            self._between = between, torch.cat(texts)
        return self._between

    def _check_enough_clips(self, inference_mode: str, error_rate: float) -> None:
        number = int(self._can_be_known(inference_mode).sum())
        if error_rate * (number + 1) < 1 - 1e-9:
            needed, least = math.ceil(1 / error_rate - 1e-9) - 1, math.ceil(1000 / (number + 1)) / 1000
            raise ValueError(
                f"unknown_error_rate={error_rate:g} needs {needed} clips, but {number} can be left out of their class: "
                f"enroll more, or choose at least {least:g}. The only clip of a class does not count, except in "
                "zero_shot mode."
            )

    def _can_be_known(self, inference_mode: str) -> torch.Tensor:
        """Whether each clip (S,) can be left out of its class as an example of a known video."""
        return self.nearest.isfinite() | (inference_mode == "zero_shot")


def _sources(classes: Mapping[str, EnrolledClass], labels: torch.Tensor) -> torch.Tensor:
    """Number (S,) of each clip's source. If no class has clips of two sources, each clip counts as its own."""
    sources = sources_of_clips(classes)
    if all(len(set(of_class)) < 2 for of_class in by_class(labels, sources, len(classes))):
        return torch.arange(len(sources))
    numbers = {source: number for number, source in enumerate(dict.fromkeys(sources))}
    return torch.tensor([numbers[source] for source in sources])


def _distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """One minus the products of unit vectors (Q, F) and (S, F): (Q, S)."""
    return 1 - (one @ other.T).cpu().double()


def _nearest_others(vectors: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Distance (K,) of each clip to the nearest one of another source; infinite if there is none."""
    nearest = [
        _distances(vectors[rows], vectors).masked_fill(sources[rows, None] == sources, torch.inf).amin(1)
        for rows in torch.arange(len(vectors)).split(max(1, ENTRIES_AT_ONCE // len(vectors)))
    ]
    return torch.cat(nearest)


def _spread(texts: torch.Tensor) -> torch.Tensor:
    """Standard deviation (..., 1) of misfits by names."""
    return texts.std(-1, correction=0, keepdim=True).clamp(min=1e-6)


def _combined(by_clips: torch.Tensor, by_texts: torch.Tensor, inference_mode: str) -> torch.Tensor:
    """The misfit that a mode looks at."""
    if inference_mode == "few_shot":
        return by_clips
    return by_texts if inference_mode == "zero_shot" else by_clips + by_texts


def _linear_discriminant(known: torch.Tensor, unknown: torch.Tensor) -> tuple[float, float]:
    """Slope and offset that give the log odds of being unknown, for normal values with one variance and equal odds.

    A handful of clips gives a poor variance: a tenth is added, and the odds at either mean are at most the number of
    clips plus one.
    """
    difference = float(unknown.mean() - known.mean())
    if not difference > 0:
        raise ValueError(
            "Unknown videos cannot be told from known ones: when left out, the enrolled clips are as near to other "
            "classes as to their own. More or clearer clips may help."
        )
    centred = torch.cat([known - known.mean(), unknown - unknown.mean()])
    variance = float(centred.square().sum()) / max(1, len(centred) - 2)
    slope = min(difference / (1.1 * variance + 1e-6), 2 * math.log(len(known) + 1) / difference)
    return slope, -slope * float(known.mean() + unknown.mean()) / 2


__all__ = ["UnknownScorer"]
