"""Leave-one-out over enrolled clips: each clip is compared with the classes as they would be without it.

Nothing is encoded anew: frame features are stored, and prototypes are quick to make. All comparisons go through the
model's own methods, so that any alignment works. Letters in shapes: S clips in the order of the classes, N classes,
R rounds, Q compared clips, T frames, D feature size.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

try:
    from .heads_clipfsar import group_by_class
except ImportError:
    if __package__:
        raise
    from heads_clipfsar import group_by_class

try:
    from .modeling_clipfsar import evaluating
except ImportError:
    if __package__:
        raise
    from modeling_clipfsar import evaluating

try:
    from .spans_clipfsar import split_span
except ImportError:
    if __package__:
        raise
    from spans_clipfsar import split_span

try:
    from .support_set_files_clipfsar import EnrolledClass, embeds_of_clips
except ImportError:
    if __package__:
        raise
    from support_set_files_clipfsar import EnrolledClass, embeds_of_clips

_VALUES_PER_BATCH = 2**24  # of prototypes: 64 MB


@dataclass
class LeftOut:
    """Comparisons of Q clips with N classes that were made without them.

    Args:
        distances: (Q, N), on the CPU; infinite where a class has no clip left.
        text_logits: (Q, N), on the CPU. They do not depend on clips.
        rows: Number (Q,) of each compared clip, in the order of the classes.
        labels: Class (Q,) of each compared clip.
    """

    distances: torch.Tensor
    text_logits: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor

    def logits(self, model, inference_mode: str) -> torch.Tensor:
        """Logits (Q, N) of a mode, float32; minus infinity for a class without clips, if the mode needs clips."""
        if inference_mode == "zero_shot":
            return self.text_logits.float()
        is_empty = self.distances.isinf()
        text_logits = self.text_logits.masked_fill(
            is_empty, -torch.inf
        )  # an ensemble normalises over the other classes
        return model.get_logits(self.distances, text_logits, inference_mode).float().masked_fill(is_empty, -torch.inf)

    def is_assessed(self, inference_mode: str) -> torch.Tensor:
        """Whether a right answer is possible for each clip (Q,): its class has a clip left, or the mode needs none."""
        if inference_mode == "zero_shot":
            return torch.ones(len(self.labels), dtype=torch.bool)
        return self.distances.take_along_dim(self.labels[:, None], 1)[:, 0].isfinite()


class _Comparison:
    """What all comparisons of the clips of some classes need, made once."""

    def __init__(self, model, classes: Mapping[str, EnrolledClass]):
        self.model = model
        counts = torch.tensor([len(one.clip_names) for one in classes.values()])
        self.labels = torch.arange(len(classes)).repeat_interleave(counts)
        self.rows_of_class = list(torch.arange(len(self.labels)).split(counts.tolist()))
        self.embeds = embeds_of_clips(classes).to(model.device)
        self.texts = torch.stack([one.class_embeds for one in classes.values()]).to(model.device)
        self.query_states = model.get_query_states(self.embeds)
        self.text_logits = model.get_text_logits(self.embeds, self.texts).cpu()
        if model.keeps_shots:
            self._encode_shots(counts)
        else:
            self.prototypes = self.prototypes_of(self.labels[None])  # (1, N, T, D), of all clips

    def _encode_shots(self, counts: torch.Tensor):
        """For a head that compares with each clip: the clips as `model.compare_encoded` takes them."""
        model, labels = self.model, self.labels[None].to(self.embeds.device)
        states = model.get_support_states(self.embeds[None], labels, self.texts[None])
        self.shots, present = group_by_class(model.encode_states(states), labels, len(counts))  # (1, N, K, X, E)
        self.present = torch.ones(self.shots.shape[:3], dtype=torch.bool) if present is None else present.cpu()
        self.places = torch.cat([torch.arange(count) for count in counts.tolist()])  # of a clip within its class
        self.queries = model.encode_states(self.query_states)

    def with_head(self, rows: torch.Tensor, left_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances (R, Q, N) of the clips `rows` (R, Q) to all clips but those left out (R, S), and which classes
        (R, N) have no clip left."""
        present = self.present.repeat(len(left_out), 1, 1)
        rounds, clips = left_out.nonzero().unbind(1)
        present[rounds, self.labels[clips], self.places[clips]] = False
        is_empty = ~present.any(-1)
        queries, present = self.queries[rows.to(self.embeds.device)], present.to(self.embeds.device)
        if not self.model.chosen_head.compares_classes_together or not is_empty.any():
            shots = self.shots.expand(len(left_out), *self.shots.shape[1:])
            return self.model.compare_encoded(queries, shots, present), is_empty
        # An empty class would change the distances to the others.
        distances = queries.new_full((*rows.shape, is_empty.shape[-1]), torch.inf, dtype=torch.float32)
        for number, kept in enumerate(~is_empty):
            given = (queries[number, None], self.shots[:, kept], present[number, None, kept])
            distances[number, :, kept] = self.model.compare_encoded(*given)[0].float()
        return distances, is_empty

    def prototypes_of(self, labels: torch.Tensor) -> torch.Tensor:
        """(R, N, T, D) from labels (R, S), where -1 leaves a clip out."""
        embeds, texts = (one.expand(len(labels), *one.shape) for one in (self.embeds, self.texts))
        return self.model.get_prototypes(embeds, labels.to(self.embeds.device), texts)

    def result(self, distances: torch.Tensor, is_empty: torch.Tensor, rows: torch.Tensor) -> LeftOut:
        distances = distances.cpu().masked_fill(is_empty, torch.inf)
        return LeftOut(distances, self.text_logits[rows], rows, self.labels[rows])

    def batches(self, number: int) -> tuple[torch.Tensor, ...]:
        values = self.shots if self.model.keeps_shots else self.prototypes
        return torch.arange(number).split(max(1, _VALUES_PER_BATCH // values.numel()))


def leave_one_out(model, classes: Mapping[str, EnrolledClass], sources: Sequence) -> LeftOut:
    """Compares each of the S clips with prototypes made without it and without other clips of its source.

    Args:
        model: The model that the classes were enrolled with.
        classes: N classes.
        sources: Source of each clip, any hashable value.
    """
    numbers = {source: number for number, source in enumerate(dict.fromkeys(sources))}
    source_of_clip = torch.tensor([numbers[source] for source in sources])
    distances, is_empty = [], []
    with evaluating(model):
        all_clips = _Comparison(model, classes)
        for rows in all_clips.batches(len(source_of_clip)):
            left_out = source_of_clip[rows][:, None] == source_of_clip  # (batch, S)
            if model.keeps_shots:
                found, empty = all_clips.with_head(rows[:, None], left_out)
                distances.append(found[:, 0])
                is_empty.append(empty)
                continue
            prototypes = all_clips.prototypes.repeat(len(rows), 1, 1, 1)
            is_empty.append(_replace_prototypes(all_clips, prototypes, left_out))
            query_states = all_clips.query_states[rows.to(model.device), None]
            distances.append(model.get_distances(query_states, prototypes)[:, 0])
        return all_clips.result(torch.cat(distances), torch.cat(is_empty), torch.arange(len(source_of_clip)))


def _replace_prototypes(all_clips: _Comparison, prototypes: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
    """Replaces the prototypes (batch, N, T, D) of classes that lose clips, given which clips (batch, S) are left out.

    All other prototypes stay, so the work does not grow with the number of classes. Returns which classes (batch, N)
    have no clip left.
    """
    rows_of_class = all_clips.rows_of_class
    loses_clips = torch.stack([left_out[:, rows].any(1) for rows in rows_of_class], dim=1)
    pairs = loses_clips.nonzero()  # (P, 2): a row of the batch and a class
    most = max(len(rows_of_class[label]) for label in pairs[:, 1].tolist())
    rows, labels = torch.zeros(len(pairs), most, dtype=torch.long), torch.full((len(pairs), most), -1)
    for number, (query, label) in enumerate(pairs.tolist()):
        own = rows_of_class[label]
        rows[number, : len(own)] = own
        labels[number, : len(own)] = -left_out[query, own].long()  # 0, or -1 for a clip that is left out
    device = prototypes.device
    texts = all_clips.texts[pairs[:, 1].to(device), None]
    made = all_clips.model.get_prototypes(all_clips.embeds[rows.to(device)], labels.to(device), texts)
    queries, changed = pairs.to(device).unbind(1)
    prototypes[queries, changed] = made[:, 0].to(prototypes)
    is_empty = torch.zeros_like(loses_clips)
    is_empty[pairs[:, 0], pairs[:, 1]] = (labels < 0).all(1)
    return is_empty


def hold_out(model, classes: Mapping[str, EnrolledClass], held_out: torch.Tensor) -> LeftOut:
    """Compares the held-out clips of each round with prototypes made of the other clips.

    Args:
        held_out: (R, S), which clips each of R rounds holds out. The answers come round by round.
    """
    distances, is_empty, compared = [], [], []
    with evaluating(model):
        all_clips = _Comparison(model, classes)
        for rounds in all_clips.batches(len(held_out)):
            if model.keeps_shots:
                for of_round in held_out[rounds]:
                    rows = of_round.nonzero()[:, 0]
                    found, empty = all_clips.with_head(rows[None], of_round[None])
                    distances.append(found[0])
                    is_empty.append(empty.expand(len(rows), -1))
                    compared.append(rows)
                continue
            labels = all_clips.labels.masked_fill(held_out[rounds], -1)  # (batch, S)
            prototypes = all_clips.prototypes_of(labels)
            empty = torch.stack([(labels[:, rows] < 0).all(1) for rows in all_clips.rows_of_class], dim=1)
            for number, round_number in enumerate(rounds.tolist()):
                rows = held_out[round_number].nonzero()[:, 0]
                states = all_clips.query_states[rows.to(model.device)]
                distances.append(model.get_distances(states[None], prototypes[number, None])[0])
                is_empty.append(empty[number].expand(len(rows), -1))
                compared.append(rows)
        return all_clips.result(torch.cat(distances), torch.cat(is_empty), torch.cat(compared))


def by_class(labels: torch.Tensor, values: Sequence, num_classes: int) -> list[list]:
    """The values of the clips of each class."""
    sorted_values: list[list] = [[] for _ in range(num_classes)]
    for label, value in zip(labels.tolist(), values, strict=True):
        sorted_values[label].append(value)
    return sorted_values


def rounds(labels: torch.Tensor, sources: Sequence, lost: int, seed: int, number: int = 20) -> torch.Tensor:
    """Clips (R, S) for `hold_out`: each round holds out `lost` random sources of each class, all in turn.

    A class always keeps one source. No class has an advantage, as the others have in `leave_one_out`.
    """
    generator = torch.Generator().manual_seed(seed % 2**64)  # `tune` adds 1 to seeds up to 2**64 - 1
    held_out = torch.zeros(number, len(labels), dtype=torch.bool)
    for label, of_class in enumerate(by_class(labels, sources, int(labels.max()) + 1)):
        own = list(dict.fromkeys(of_class))
        at_once = min(lost, len(own) - 1)
        rows_of_source = torch.tensor([[source == other for other in sources] for source in own]) & (labels == label)
        waiting: list[int] = []
        for row in range(number):
            if len(waiting) < at_once:
                waiting = torch.randperm(len(own), generator=generator).tolist()
            turn, waiting = waiting[:at_once], waiting[at_once:]
            held_out[row] |= rows_of_source[turn].any(0)
    return held_out


# --- sources ----------------------------------------------------------------------------------------------------------

# Names of clips that were cut from one video. Each pattern's group is the name of that video.
_CUT_NAMES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(.*_g\d+)_c\d+",  # UCF101: v_ApplyEyeMakeup_g01_c03
        r"(.+)_\d{6}_\d{6}",  # Kinetics: VIDEO_000010_000020
        r"(.+?)(?:_[a-z0-9]+){1,4}_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+",  # HMDB51: Film_kick_f_cm_np1_ba_goo_2
        r"(.+?)[ _.-]+(?:part|cut|scene|seg|segment|window)[ _.-]?\d+",
        r"(.+?)[ _.@-]+\d+(?:\.\d+s?|s)[-_]\d+(?:\.\d+s?|s)",  # VIDEO_12.5-15.0, VIDEO_3s-6s
    )
)


def source_of(clip_name: str) -> str | None:
    """The video that a clip was cut from, if its name tells, otherwise None.

    Known are the names of UCF101, Kinetics and HMDB51, names that end in `part`, `cut`, `scene`, `segment` or `window`
    with a number, names that end in a start and an end in seconds, and parts of videos (`VIDEO.mp4#t=3,6`).
    """
    whole, part = split_span(re.sub(r" \(\d+\)$", "", clip_name))
    if part is not None:
        return whole
    stem = re.sub(r"\.[a-zA-Z]\w{1,4}( \(\d+\))?$", "", clip_name)
    matches = (pattern.fullmatch(stem) for pattern in _CUT_NAMES)
    return next((match[1] for match in matches if match), None)


def sources_of_clips(
    classes: Mapping[str, EnrolledClass], sources: Mapping[Any, str] | None = None
) -> list[tuple[str, ...]]:
    """Source of each clip, in the order of the classes. A clip whose source is unknown is a source of its own.

    Args:
        sources: `{clip name: source}` or `{(class name, clip name): source}`; None goes by the clips' names.

    Raises:
        ValueError: For anything but such a mapping, and for the name of a clip that is not enrolled.
    """
    if sources is not None and not isinstance(sources, Mapping):
        raise ValueError(f"sources is a {type(sources).__name__}, but must be {{clip name: source}}.")
    clips = [(name, clip) for name, one in classes.items() for clip in one.clip_names]
    given = sources or {}
    unknown = [name for name in given if name not in {*clips, *(clip for _, clip in clips)}]
    if unknown:
        raise ValueError(f"sources names {unknown[0]!r}, but no clip of that name is enrolled.")
    found: list[tuple[str, ...]] = []
    for name, clip in clips:
        source = source_of(clip) if sources is None else given.get((name, clip), given.get(clip))
        found.append((name, clip) if source is None else (str(source),))
    return found


__all__ = ["LeftOut", "by_class", "hold_out", "leave_one_out", "rounds", "source_of", "sources_of_clips"]
