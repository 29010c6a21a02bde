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
from PIL import Image, UnidentifiedImageError

try:
    from .choices_clipfsar import INFERENCE_MODES, check_finite, check_truth
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import INFERENCE_MODES, check_finite, check_truth

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
    from .support_set_files_clipfsar import EnrolledClass, Unknowns
except ImportError:
    if __package__:
        raise
    from support_set_files_clipfsar import EnrolledClass, Unknowns

try:
    from .tuning_clipfsar import with_settings
except ImportError:
    if __package__:
        raise
    from tuning_clipfsar import with_settings

try:
    from .unknown_clipfsar import UnknownScorer
except ImportError:
    if __package__:
        raise
    from unknown_clipfsar import UnknownScorer

CLASSES_AT_ONCE = 256  # bounds the memory of prototypes and distances, whatever the number of classes
PAIRS_AT_ONCE_ON_CPU = 2**12  # pairs of videos whose frame distances fit a processor's cache
PAIRS_AT_ONCE = 2**16  # on other devices


class DamagedPictureError(ValueError):
    """Raised for a damaged picture of an enrolled clip. Only pictures of explanations need it, no answer does."""


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
    return torch.cat(
        [
            torch.cat([model.get_distances(rows, piece) for piece in columns], dim=-1)
            for rows in query_states.split(pairs_at_once // max(1, len(columns[0])))
        ]
    )


class Snapshot:
    """The classes of a `SupportSet` at one moment, with their prototypes from one model. It never changes.

    Args:
        model: The model that makes the prototypes. Give every method the same one.
        classes: At least one class, each with clips.
        settings: Values of the model's configuration to use in place of its own: see `SupportSet.tune`.
        unknowns: Background clips, and the error rate that is asked for.

    Attributes:
        class_names: N names, in the order of the logits.
        class_embeds: (N, D), on the model's device.
        prototypes: (N, T, D), on the model's device.
        shots: For a model whose head compares with each clip: the encoded clips (1, N, K, X, E), and which of them are
            clips and not padding (1, N, K), or None if all are. Otherwise None.
    """

    def __init__(
        self,
        model,
        classes: Mapping[str, EnrolledClass],
        settings: Mapping[str, Any] | None = None,
        unknowns: Unknowns | None = None,
    ):
        self.settings, self.unknowns = dict(settings or {}), unknowns or Unknowns()
        self._identity = _identity_of(model, classes)
        self.class_names = list(classes)
        self._enrolled = [replace(one) for one in classes.values()]
        self._counts = torch.tensor([len(one.clip_names) for one in self._enrolled])
        self.class_embeds = torch.stack([one.class_embeds for one in self._enrolled]).to(model.device)
        model = with_settings(model, self.settings)
        self.prototypes, self.shots = self._compared_with_queries(model)
        self._unknown_scorer: UnknownScorer | None = None

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

    def is_of(
        self,
        model,
        classes: Mapping[str, EnrolledClass],
        settings: Mapping[str, Any] | None = None,
        unknowns: Unknowns | None = None,
    ) -> bool:
        """Whether a snapshot made now would be the same: no class, clip, weight or setting has changed.

        `unknowns` are the set's own object, which each change replaces; None does not compare them.
        """
        is_same = self.settings == (settings or {}) and (unknowns is None or unknowns is self.unknowns)
        return is_same and _same(self._identity, _identity_of(model, classes))

    # Classifying

    def classify(self, model, query_embeds: torch.Tensor, inference_mode: str | None = None) -> torch.Tensor:
        """See `SupportSet.classify`."""
        model = with_settings(model, self.settings)
        inference_mode = self._checked_mode(model, inference_mode)
        distances, text_logits = self._compare(model, self._checked_shape(query_embeds))
        return _checked("The logits", model.get_logits(distances, text_logits, inference_mode), model)

    def _checked_shape(self, query_embeds: torch.Tensor, leading: str = "Q, T") -> torch.Tensor:
        """Raises `ValueError` unless they are frame features of the enrolled feature size, (Q, T, D)."""
        size, num_dims = self.class_embeds.shape[-1], len(leading.split(",")) + 1
        is_tensor = isinstance(query_embeds, torch.Tensor)
        if not is_tensor or query_embeds.dim() != num_dims or query_embeds.shape[-1] != size:
            found = f"have shape {tuple(query_embeds.shape)}" if is_tensor else f"are a {type(query_embeds).__name__}"
            raise ValueError(
                f"query_embeds {found}, but a tensor ({leading}, {size}) of frame features is needed: take it from "
                "model.get_video_features."
            )
        return query_embeds

    def _checked_mode(self, model, inference_mode: str | None) -> str:
        inference_mode = checked_mode(model, inference_mode)
        check_enough_classes(self.class_names)
        return inference_mode

    def compare(self, model, query_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `SupportSet.compare`."""
        distances, text_logits = self._compare(with_settings(model, self.settings), self._checked_shape(query_embeds))
        return _checked("The distances", distances, model), _checked("The text logits", text_logits, model)

    def _compare(self, model, query_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
        # The scores do not tell: with an error rate they are ranks, which are numbers even for NaN.
        query_embeds = _checked("The frame features", self._checked_shape(query_embeds), model)
        if self._unknown_scorer is None:
            self._unknown_scorer = UnknownScorer(model, self.enrolled, self.unknowns)
        return _checked("The scores", self._unknown_scorer.score(model, query_embeds, inference_mode), model)

    # Why

    def explain(
        self, model, query_embeds: torch.Tensor, inference_mode: str | None = None, detect_unknown: bool = False
    ) -> Explanation:
        """See `SupportSet.explain`."""
        check_truth("detect_unknown", detect_unknown)
        model = with_settings(model, self.settings)
        inference_mode = self._checked_mode(model, inference_mode)
        query_embeds = self._checked_shape(query_embeds, "T").to(model.device)
        _checked("The frame features", query_embeds[None], model)
        nearest = [_nearest_clip(one.support_embeds, query_embeds.float().cpu()) for one in self._enrolled]
        with evaluating(model):
            given = (model, query_embeds, self.prototypes, self.class_embeds, inference_mode)
            shots = None if self.shots is None else (*self.shots, torch.tensor(nearest, device=model.device))
            numbers = explain_classification(*given, shots)
        _checked("The probabilities", numbers["probabilities"][None], model)
        enrolled = list(zip(self._enrolled, nearest, strict=True))
        support_clips = [(one.clip_names[row], len(one.clip_names)) for one, row in enrolled]
        return Explanation(
            class_names=list(self.class_names),
            inference_mode=inference_mode,
            unknown_score=float(self.score_unknown(model, query_embeds[None], inference_mode))
            if detect_unknown
            else None,
            support_frames=[
                _frames_of_strip(one.thumbnails[row], len(query_embeds), f"clip {clip!r} of class {name!r}")
                for name, (clip, _), (one, row) in zip(self.class_names, support_clips, enrolled, strict=True)
            ],
            support_clips=support_clips,
            **numbers,
        )


def _checked(what: str, values: torch.Tensor, model) -> torch.Tensor:
    """Values (Q, ...) of query videos. Raises `ValueError` if any are NaN or infinite."""
    rows = values if values.dim() > 1 else values[:, None]
    check_finite(what, rows, [f"query video {row}" for row in range(len(rows))], model)
    return values


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


def _frames_of_strip(picture: bytes, num_frames: int, clip: str = "a clip") -> torch.Tensor | None:
    """Frames, uint8 (T, h, w, 3), of a picture made by `_film_strip`; None for an empty one.

    Raises:
        DamagedPictureError: For a damaged picture. The message says of which clip.
    """
    if not picture:
        return None
    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG",)) as strip:
            check_frame_size(strip.width // num_frames, strip.height)
            check_frame_size(*strip.size)
            pixels = torch.from_numpy(np.array(strip.convert("RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, UnreadableError) as error:
        # Pillow names the object in memory that it read.
        reason = "it is not a JPEG picture" if isinstance(error, UnidentifiedImageError) else error
        raise DamagedPictureError(f"The picture of {clip} is damaged ({reason}): enroll the clip again.") from error
    return torch.stack(pixels.split(pixels.shape[1] // num_frames, dim=1)[:num_frames])


def _nearest_clip(support_embeds: torch.Tensor, query_embeds: torch.Tensor) -> int:
    """Row of the clip, of (K, T, D), that looks most like the query (T, D) frame by frame: the one to show."""
    return int(torch.cosine_similarity(support_embeds, query_embeds, dim=-1).mean(-1).argmax())


def listed(names: list[str]) -> str:
    """The first ten names, for messages."""
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


__all__ = [
    *("DamagedPictureError", "Snapshot", "check_enough_classes", "checked_mode", "distances_in_pieces", "listed"),
]
