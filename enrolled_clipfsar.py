"""Snapshots of enrolled classes, and the answers that one model computes from them.

A `SupportSet` changes; a `Snapshot` of it does not. Each answer comes from one snapshot, so that threads can classify
while another one adds or removes classes. Letters in shapes are those of `SupportSet`.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

try:
    from .choices_clipfsar import INFERENCE_MODES, check_finite
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import INFERENCE_MODES, check_finite

try:
    from .explanation_clipfsar import Explanation, explain_classification
except ImportError:
    if __package__:
        raise
    from explanation_clipfsar import Explanation, explain_classification

try:
    from .fingerprint_clipfsar import COMPARISON_SETTINGS, weights_state
except ImportError:
    if __package__:
        raise
    from fingerprint_clipfsar import COMPARISON_SETTINGS, weights_state

try:
    from .heads_clipfsar import group_by_class
except ImportError:
    if __package__:
        raise
    from heads_clipfsar import group_by_class

try:
    from .limits_clipfsar import UnreadableError, check_frame_size
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import UnreadableError, check_frame_size

try:
    from .modeling_clipfsar import evaluating
except ImportError:
    if __package__:
        raise
    from modeling_clipfsar import evaluating

try:
    from .support_set_files_clipfsar import EnrolledClass
except ImportError:
    if __package__:
        raise
    from support_set_files_clipfsar import EnrolledClass

try:
    from .tuning_clipfsar import with_settings
except ImportError:
    if __package__:
        raise
    from tuning_clipfsar import with_settings

CLASSES_AT_ONCE = 256  # bounds the memory of prototypes and distances, whatever the number of classes
PAIRS_AT_ONCE_ON_CPU = 2**12  # pairs of videos whose frame distances fit a processor's cache
PAIRS_AT_ONCE = 2**16  # on other devices
ENTRIES_AT_ONCE = 2**20  # of a matrix (clips, classes)
CLIPS_AT_ONCE = 256  # in the temporal transformer


def distances_in_pieces(
    model, query_states: torch.Tensor, prototypes: torch.Tensor, pairs_at_once: int | None = None
) -> torch.Tensor:
    """`model.get_distances` of (Q, T, D) and (N, T, D), as (Q, N), computed for a few pairs of videos at a time.

    All frame distances at once take about 2 KB per pair of videos with 8 frames. A piece has at most
    `CLASSES_AT_ONCE` prototypes and, if that many queries are left, `pairs_at_once` pairs.
    """
    if pairs_at_once is None:
        pairs_at_once = PAIRS_AT_ONCE_ON_CPU if query_states.device.type == "cpu" else PAIRS_AT_ONCE
    columns = prototypes.split(min(CLASSES_AT_ONCE, pairs_at_once))
    queries_at_once = max(1, pairs_at_once // max(1, len(columns[0])))
    return torch.cat(
        [
            torch.cat([model.get_distances(rows, piece) for piece in columns], dim=-1)
            for rows in query_states.split(queries_at_once)
        ]
    )


class Snapshot:
    """The classes of a `SupportSet` at one moment, with their prototypes from one model. It never changes.

    Args:
        model: The model that makes the prototypes. Give every method the same one.
        classes: At least one class, each with clips.
        settings: Of the model's configuration, in place of its own: see `SupportSet.tune`.

    Attributes:
        class_names: N names, in the order of the logits.
        class_embeds: (N, D), on the model's device.
        prototypes: (N, T, D), on the model's device.
        shots: For a model whose head compares with each clip: the encoded clips (1, N, K, X, E), and which of them are
            clips and not padding (1, N, K), or None if all are. Otherwise None.
    """

    def __init__(self, model, classes: Mapping[str, EnrolledClass], settings: Mapping[str, Any] | None = None):
        self.settings = dict(settings or {})
        self._identity = _identity_of(model, classes)
        self.class_names = list(classes)
        self._enrolled = [replace(one) for one in classes.values()]
        self._counts = torch.tensor([len(one.clip_names) for one in self._enrolled])
        self.class_embeds = torch.stack([one.class_embeds for one in self._enrolled]).to(model.device)
        model = with_settings(model, self.settings)
        self.prototypes, self.shots = self._compared_with_queries(model)
        self._novelties: tuple[torch.Tensor, torch.Tensor] | None = None
        self._calibrations: dict = {}

    def _pieces(self) -> Iterator[range]:
        """Classes that are computed at once: each piece costs its clips times its classes."""
        for start in range(0, len(self), CLASSES_AT_ONCE):
            yield range(start, min(start + CLASSES_AT_ONCE, len(self)))

    def _compared_with_queries(self, model) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor | None] | None]:
        """`prototypes` and `shots`, made for a few classes at a time. A head's model modulates each clip once."""
        prototypes, encoded = [], []
        for classes in self._pieces():
            embeds, labels, texts = self._support_of(model, classes)
            with evaluating(model):
                if not model.keeps_shots:
                    prototypes.append(model.get_prototypes(embeds, labels, texts))
                    continue
                states = model.get_support_states(embeds, labels, texts)
                prototypes.append(model.average_shots(states, labels, len(classes)))
                encoded.append(model.encode_states(states))
        shots = None
        if encoded:
            shots = group_by_class(torch.cat(encoded, dim=1), self._labels[None].to(model.device), len(self))
        return torch.cat(prototypes, dim=1)[0], shots

    def _support_of(self, model, classes: range) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clips (1, S, T, D), labels (1, S) and texts (1, N, D) of consecutive classes, as one episode."""
        embeds = self._support_embeds_of(classes).to(model.device)
        labels = self._labels_of(classes)
        check_finite("The enrolled clips", embeds, [self.class_names[label] for label in labels], model)
        texts = self.class_embeds[classes.start : classes.stop]
        return embeds[None], (labels - classes.start)[None].to(model.device), texts[None]

    def _support_embeds_of(self, classes: range) -> torch.Tensor:
        return torch.cat([self._enrolled[label].support_embeds for label in classes])

    def _labels_of(self, classes: range) -> torch.Tensor:
        """Class of each clip of some classes."""
        return torch.tensor(classes).repeat_interleave(self._counts[classes.start : classes.stop])

    @property
    def _labels(self) -> torch.Tensor:
        """Class (S,) of each clip."""
        return self._labels_of(range(len(self)))

    def __len__(self) -> int:
        return len(self.class_names)

    @property
    def enrolled(self) -> dict[str, EnrolledClass]:
        """The classes by name. Do not change them."""
        return dict(zip(self.class_names, self._enrolled, strict=True))

    def is_of(self, model, classes: Mapping[str, EnrolledClass], settings: Mapping[str, Any] | None = None) -> bool:
        """Whether a snapshot made now would be the same: no class, clip, weight or setting has changed."""
        return self.settings == (settings or {}) and _same(self._identity, _identity_of(model, classes))

    # Classifying

    def classify(self, model, query_embeds: torch.Tensor, inference_mode: str | None = None) -> torch.Tensor:
        """See `SupportSet.classify`."""
        model = with_settings(model, self.settings)
        inference_mode = self._checked_mode(model, inference_mode)
        distances, text_logits = self.compare(model, query_embeds)
        logits = model.get_logits(distances, text_logits, inference_mode)
        check_finite("The logits", logits, [f"query video {row}" for row in range(len(logits))], model)
        return logits

    def _checked_mode(self, model, inference_mode: str | None) -> str:
        inference_mode = checked_mode(model, inference_mode)
        check_enough_classes(self.class_names)
        return inference_mode

    def compare(self, model, query_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances to the prototypes and text logits of query videos (Q, T, D), both (Q, N)."""
        model = with_settings(model, self.settings)
        query_embeds = query_embeds.to(model.device)
        with evaluating(model):
            query_states = model.get_query_states(query_embeds)
            if self.shots is None:
                distances = distances_in_pieces(model, query_states, self.prototypes)
            else:
                distances = model.compare_encoded(model.encode_states(query_states[None]), *self.shots)[0]
            return distances, model.get_text_logits(query_embeds, self.class_embeds)

    # None of these

    def score_unknown(self, model, query_embeds: torch.Tensor, inference_mode: str | None = None) -> torch.Tensor:
        """See `SupportSet.score_unknown`."""
        model = with_settings(model, self.settings)
        inference_mode = self._checked_mode(model, inference_mode)
        distances, text_logits = self.compare(model, query_embeds)
        weights, offset = self._calibration(model, inference_mode)
        return (_novelty(distances, text_logits, inference_mode) @ weights + offset).sigmoid()

    def _calibration(self, model, inference_mode: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and offset of the linear discriminant of a mode; made once."""
        if inference_mode not in self._calibrations:
            is_known = self._counts[self._labels] > 1
            if inference_mode == "zero_shot":
                is_known[:] = True
            if not is_known.any():
                raise ValueError(
                    "The score of unknown videos is calibrated by leaving clips out, but no class has two clips: "
                    "enroll more, or use inference_mode='zero_shot'."
                )
            features = _NOVELTY_FEATURES[inference_mode]
            known, unknown = (novelty[:, features] for novelty in self._left_out_novelties(model))
            self._calibrations[inference_mode] = _linear_discriminant(known[is_known], unknown)
        return self._calibrations[inference_mode]

    def _left_out_novelties(self, model) -> tuple[torch.Tensor, torch.Tensor]:
        """Novelty of each enrolled clip as a known video and as one of no class, both (S, 2), on the CPU.

        Distances and text logits are made for a few classes at a time: all of them are (S, N), and S grows with N.
        """
        if self._novelties is None:
            known, unknown = [], []
            for classes in self._clip_pieces():
                left_out, distances, text_logits = self._left_out_comparisons_of(model, classes)
                own = (self._labels_of(classes)[:, None] == torch.arange(len(self))).to(distances.device)
                known.append(_novelty(left_out, text_logits, "ensemble"))
                others = distances.masked_fill(own, torch.inf), text_logits.masked_fill(own, -torch.inf)
                unknown.append(_novelty(*others, "ensemble"))
            self._novelties = torch.cat(known), torch.cat(unknown)
        return self._novelties

    def _clip_pieces(self) -> Iterator[range]:
        """Consecutive classes with few clips, and few pairs of a clip and a class. A piece has one class at least."""
        start, entries = 0, 0
        width = max(len(self), ENTRIES_AT_ONCE // CLIPS_AT_ONCE)
        for label, count in enumerate(self._counts.tolist()):
            if label > start and entries + count * width > ENTRIES_AT_ONCE:
                yield range(start, label)
                start, entries = label, 0
            entries += count * width
        yield range(start, len(self))

    def left_out_comparisons(self, model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Left-out distances, distances and text logits of all enrolled clips, each (S, N). The left-out distance to a
        clip's own class is to the prototype made without the clip: infinite for the only clip of a class."""
        return self._left_out_comparisons_of(model, range(len(self)))

    def _left_out_comparisons_of(self, model, classes: range) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`left_out_comparisons` of the clips of some classes, with all classes."""
        distances, text_logits = self.compare(model, self._support_embeds_of(classes))
        if self.shots is None:
            own_distances = torch.cat([_left_out_distances(model, self._enrolled[label]) for label in classes])
        else:
            own_distances = self._left_out_distances_of_head(model, classes)
        own = self._labels_of(classes)[:, None].to(distances.device)
        return distances.scatter(1, own, own_distances[:, None]), distances, text_logits

    def _left_out_distances_of_head(self, model, classes: range, clips_per_batch: int = 16) -> torch.Tensor:
        """Distance (clips,) of each clip of some classes to its own class without it; all other clips stay."""
        assert self.shots is not None
        shots, present = self.shots
        if present is None:
            present = torch.ones(shots.shape[:3], dtype=torch.bool, device=shots.device)
        embeds, labels_of_clips = self._support_embeds_of(classes), self._labels_of(classes)
        counts = self._counts[classes.start : classes.stop]
        places = torch.cat([torch.arange(count) for count in counts.tolist()])  # of a clip within its class
        distances = []
        with evaluating(model):
            for rows in torch.arange(len(embeds)).split(clips_per_batch):
                queries = model.encode_states(model.get_query_states(embeds[rows].to(model.device))).unsqueeze(1)
                without = present.repeat(len(rows), 1, 1)
                without[torch.arange(len(rows)), labels_of_clips[rows], places[rows]] = False
                others = shots.expand(len(rows), *shots.shape[1:])
                labels = labels_of_clips[rows].to(model.device)
                if not model.chosen_head.compares_classes_together:  # the clip's own class is enough
                    chosen = torch.arange(len(rows), device=labels.device), labels
                    others, without = others[chosen].unsqueeze(1), without[chosen].unsqueeze(1)
                    labels = torch.zeros_like(labels)
                found = model.compare_encoded(queries, others, without)[:, 0]
                distances.append(found.take_along_dim(labels[:, None], 1)[:, 0])
        is_only = self._counts[labels_of_clips] == 1
        return torch.cat(distances).masked_fill(is_only.to(model.device), torch.inf)

    # Why

    def explain(
        self, model, query_embeds: torch.Tensor, inference_mode: str | None = None, detect_unknown: bool = False
    ) -> Explanation:
        """See `SupportSet.explain`."""
        model = with_settings(model, self.settings)
        inference_mode = self._checked_mode(model, inference_mode)
        query_embeds = query_embeds.to(model.device)
        nearest = [_nearest_clip(one.support_embeds, query_embeds.float().cpu()) for one in self._enrolled]
        with evaluating(model):
            given = (model, query_embeds, self.prototypes, self.class_embeds, inference_mode)
            shots = None if self.shots is None else (*self.shots, torch.tensor(nearest, device=model.device))
            numbers = explain_classification(*given, shots)
        enrolled = list(zip(self._enrolled, nearest, strict=True))
        return Explanation(
            class_names=list(self.class_names),
            inference_mode=inference_mode,
            unknown_score=float(self.score_unknown(model, query_embeds[None], inference_mode))
            if detect_unknown
            else None,
            support_frames=[_frames_of_strip(one.thumbnails[row], len(query_embeds)) for one, row in enrolled],
            support_clips=[(one.clip_names[row], len(one.clip_names)) for one, row in enrolled],
            **numbers,
        )


def checked_mode(model, inference_mode: str | None) -> str:
    """The given mode, or the model's if it is None. Raises `ValueError` for an unknown one."""
    inference_mode = model.config.inference_mode if inference_mode is None else inference_mode
    if inference_mode not in INFERENCE_MODES:
        raise ValueError(f"inference_mode={inference_mode!r} is not one of {', '.join(INFERENCE_MODES)}.")
    return inference_mode


def check_enough_classes(class_names: list[str]):
    """Raises `ValueError` for fewer than two classes."""
    if len(class_names) < 2:
        raise ValueError(
            f"Enrolled: {listed(class_names) or 'nothing'}. At least two classes are needed: with one, every "
            "video would belong to it with a score of 1."
        )


def _identity_of(model, classes: Mapping[str, EnrolledClass]) -> tuple:
    """Everything that determines the prototypes: settings and weights of the model, and the tensors of the classes."""
    settings = tuple(getattr(model.config, name) for name in COMPARISON_SETTINGS)
    distance = getattr(model.align, "__func__", model.align)  # a subclass may define its own distance
    made_with = (weights_state(model), settings, type(model), distance, list(classes))
    tensors = [tensor for one in classes.values() for tensor in (one.class_embeds, one.support_embeds)]
    # a value written into a tensor changes its version
    return made_with, tensors, [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _same(one: tuple, other: tuple) -> bool:
    same_tensors = all(a is b for a, b in zip(one[1], other[1], strict=False))
    return one[0] == other[0] and same_tensors and one[2] == other[2]


def _left_out_distances(model, one: EnrolledClass, clips_per_batch: int = 16) -> torch.Tensor:
    """Distance (K,) of each clip of a class to the prototype made of the others."""
    embeds, text = one.support_embeds.to(model.device), one.class_embeds.to(model.device)
    num_clips = len(embeds)
    if num_clips == 1:
        return torch.full((1,), torch.inf, device=model.device)
    others = torch.tensor([[row for row in range(num_clips) if row != left_out] for left_out in range(num_clips)])
    distances = []
    with evaluating(model):
        for rows in torch.arange(num_clips).split(clips_per_batch):
            labels = torch.zeros(len(rows), num_clips - 1, dtype=torch.long, device=model.device)
            texts = text.expand(len(rows), 1, -1)
            prototypes = model.get_prototypes(embeds[others[rows].to(model.device)], labels, texts)
            query_states = model.get_query_states(embeds[rows.to(model.device)].unsqueeze(1))
            distances.append(model.get_distances(query_states, prototypes).flatten())
    return torch.cat(distances)


# Columns of `_novelty` that a mode looks at.
_NOVELTY_FEATURES = {"few_shot": [0], "zero_shot": [1], "ensemble": [0, 1]}


def _novelty(distances: torch.Tensor, text_logits: torch.Tensor, inference_mode: str) -> torch.Tensor:
    """Features that separate unknown from known videos, (Q, N) and (Q, N) -> (Q, 1 or 2); larger is less known."""
    novelty = torch.stack([distances.amin(-1), -text_logits.amax(-1).to(distances.device)], dim=-1)
    return novelty[:, _NOVELTY_FEATURES[inference_mode]].cpu()


def _linear_discriminant(known: torch.Tensor, unknown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fisher's discriminant of values (S, F): weights (F,) and an offset that give the log odds of being unknown.

    Prior odds are equal. A tenth of each variance is added to it: a handful of clips gives a poor covariance.
    """
    known, unknown = known.double(), unknown.double()  # on the CPU, which has float64
    difference = unknown.mean(0) - known.mean(0)
    if not (difference > 0).any():
        raise ValueError(
            "Unknown videos cannot be told from known ones: when left out, the enrolled clips are as near to other "
            "classes as to their own. More or clearer clips may help."
        )
    centred = torch.cat([known - known.mean(0), unknown - unknown.mean(0)])
    covariance = centred.T @ centred / max(1, len(centred) - 2)
    covariance += torch.diag(0.1 * covariance.diagonal() + 1e-6)
    helpful = difference > 0  # a feature that points the wrong way gets weight 0
    weights = torch.zeros_like(difference)
    weights[helpful] = torch.linalg.solve(covariance[helpful][:, helpful], difference[helpful])
    offset = -(weights @ (known.mean(0) + unknown.mean(0))) / 2
    return weights.float(), offset.float()


def _frames_of_strip(picture: bytes, num_frames: int) -> torch.Tensor | None:
    """Frames, uint8 (T, h, w, 3), of a picture made by `_film_strip`; None for an empty one.

    Raises:
        ValueError: For a damaged picture.
    """
    if not picture:
        return None
    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG",)) as strip:
            check_frame_size(strip.width // num_frames, strip.height)
            check_frame_size(*strip.size)
            pixels = torch.from_numpy(np.array(strip.convert("RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, UnreadableError) as error:
        raise ValueError(f"The picture of a clip is damaged ({error}): enroll the clip again.") from error
    return torch.stack(pixels.split(pixels.shape[1] // num_frames, dim=1)[:num_frames])


def _nearest_clip(support_embeds: torch.Tensor, query_embeds: torch.Tensor) -> int:
    """Row of the clip, of (K, T, D), that looks most like the query (T, D) frame by frame: the one to show."""
    return int(torch.cosine_similarity(support_embeds, query_embeds, dim=-1).mean(-1).argmax())


def listed(names: list[str]) -> str:
    """The first ten names, for messages."""
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


__all__ = ["Snapshot", "check_enough_classes", "checked_mode", "distances_in_pieces", "listed"]
