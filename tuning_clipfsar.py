"""Tuning of a support set: which mode, ensemble weights and alignment suit its clips, judged by holding clips out.

Nothing is encoded anew, and no weight changes. Letters in shapes: S clips, N classes, Q answers, C candidates.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

try:
    from .left_out_clipfsar import by_class, hold_out, rounds, sources_of_clips
except ImportError:
    if __package__:
        raise
    from left_out_clipfsar import by_class, hold_out, rounds, sources_of_clips

try:
    from .support_set_files_clipfsar import TUNED_SETTINGS, EnrolledClass
except ImportError:
    if __package__:
        raise
    from support_set_files_clipfsar import TUNED_SETTINGS, EnrolledClass

ALIGNMENTS_TO_TRY = ("otam", "bi_mhm", "mean")  # those without weights of their own
TEXT_WEIGHTS = (0.1, 0.25, 0.5, 0.75, 0.9)
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LEAST_SOURCES = 3  # one is held out for the gain, one for the choice, one is left
_ROUNDS_OF_CHOICE, _MOST_ROUNDS_OF_GAIN = 10, 10


@dataclass(frozen=True)
class Tuning:
    """What `SupportSet.tune` found. `print` shows it in words; `to_dict` is for JSON.

    Args:
        settings: The settings that were chosen, a part of the model's configuration; empty if the model's own stay.
        reason: Why the model's own settings stay; None if others were chosen.
        default_accuracy: Accuracy of the model's own settings on held-out clips, in percent; None without a measure.
        accuracy: The same of chosen settings. The clips that measure it had no part in the choice.
        gain_interval: 95% interval of the difference, in points.
    """

    settings: dict[str, Any]
    reason: str | None = None
    default_accuracy: float | None = None
    accuracy: float | None = None
    gain_interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"The model's own settings stay: {self.reason}"
        low, high = self.gain_interval or (0.0, 0.0)
        chosen = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return (
            f"Chosen: {chosen}. Accuracy on held-out clips with settings chosen this way: {self.accuracy:.0f}%, with "
            f"the model's own {self.default_accuracy:.0f}% (95% interval of the gain {low:+.0f} to {high:+.0f} points)."
        )

    def to_dict(self) -> dict:
        return asdict(self)


def with_settings(model, settings: Mapping[str, Any]):
    """The model with other settings of its configuration; both share their weights."""
    if not settings:
        return model
    other = copy.copy(model)
    other.config = copy.copy(model.config)
    for name, value in settings.items():
        setattr(other.config, name, value)
    return other


def own_settings(model) -> dict[str, Any]:
    """The model's settings that tuning may change."""
    return {name: getattr(model.config, name) for name in TUNED_SETTINGS}


def candidate_settings(model) -> list[dict[str, Any]]:
    """The settings to choose from; the model's own come first and win a tie."""
    own = own_settings(model)
    alignments = dict.fromkeys((own["alignment"], *ALIGNMENTS_TO_TRY))
    candidates = [own, own | {"inference_mode": "zero_shot"}]
    for alignment in alignments:
        candidates.append(own | {"inference_mode": "few_shot", "alignment": alignment})
        for weight in TEXT_WEIGHTS:
            mode = {"inference_mode": "ensemble", "alignment": alignment, "ensemble_text_weight": weight}
            candidates += [own | mode | {"ensemble_temperature": temperature} for temperature in TEMPERATURES]
    return candidates


def tune_classes(
    model, classes: Mapping[str, EnrolledClass], sources: Mapping[Any, str] | None = None, seed: int = 0
) -> Tuning:
    """See `SupportSet.tune`, which calls this."""
    source_of_clip = sources_of_clips(classes, sources)
    labels = _labels(classes)
    num_sources = [len(set(values)) for values in by_class(labels, source_of_clip, len(classes))]
    fewest, name = min(zip(num_sources, classes, strict=True), key=lambda pair: pair[0])
    if fewest < LEAST_SOURCES:
        return Tuning({}, f"a choice needs {LEAST_SOURCES} videos in every class, but {name!r} has clips of {fewest}.")
    candidates = candidate_settings(model)
    chosen = _choose(model, classes, source_of_clip, candidates, seed)
    number = min(_MOST_ROUNDS_OF_GAIN, max(num_sources))
    right = torch.cat(
        [
            _answers_of_choice(model, classes, source_of_clip, candidates, held_out, seed)
            for held_out in rounds(labels, source_of_clip, 1, seed + 1, number)
        ],
        dim=1,
    )  # (2, Q): the model's own settings, those that were chosen without the clip
    gains = 100 * (right[1] - right[0])
    gain, half = float(gains.mean()), 1.96 * float(gains.std()) / (len(gains) / 2) ** 0.5  # two clips count as one
    measured: dict[str, Any] = {
        "default_accuracy": 100 * float(right[0].mean()),
        "accuracy": 100 * float(right[1].mean()),
        "gain_interval": (gain - half, gain + half),
    }
    if chosen == candidates[0]:
        return Tuning({}, "no others answer more held-out clips correctly.", **measured)
    if gain <= 0:
        return Tuning(
            {}, "others that win on some clips are no better on the clips held out from the choice.", **measured
        )
    return Tuning({name: value for name, value in chosen.items() if value != candidates[0][name]}, None, **measured)


def _labels(classes: Mapping[str, EnrolledClass]) -> torch.Tensor:
    counts = torch.tensor([len(one.clip_names) for one in classes.values()])
    return torch.arange(len(classes)).repeat_interleave(counts)


def _choose(
    model, classes: Mapping[str, EnrolledClass], sources: Sequence, candidates: list[dict], seed: int
) -> dict[str, Any]:
    """The candidate with most right answers; among equals the one with the likeliest answers, or the model's own."""
    held_out = rounds(_labels(classes), sources, 1, seed, _ROUNDS_OF_CHOICE)
    logits, labels = _logits_of_candidates(model, classes, held_out, candidates)
    accuracy = (logits.argmax(-1) == labels).float().mean(1)
    likelihood = logits.log_softmax(-1).take_along_dim(labels[None, :, None], -1).mean((1, 2)).clamp(min=-1e3)
    best = accuracy == accuracy.max()
    number = 0 if best[0] else int(likelihood.masked_fill(~best, -torch.inf).argmax())
    return candidates[number]


def _logits_of_candidates(
    model, classes: Mapping[str, EnrolledClass], held_out: torch.Tensor, candidates: list[dict]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (C, Q, N) and labels (Q,) of held-out clips. Distances are computed once for each alignment."""
    compared = {
        alignment: hold_out(with_settings(model, {"alignment": alignment}), classes, held_out)
        for alignment in dict.fromkeys(one["alignment"] for one in candidates)
    }
    logits = [compared[one["alignment"]].logits(with_settings(model, one), one["inference_mode"]) for one in candidates]
    return torch.stack(logits), compared[candidates[0]["alignment"]].labels


def _answers_of_choice(
    model,
    classes: Mapping[str, EnrolledClass],
    sources: Sequence,
    candidates: list[dict],
    held_out: torch.Tensor,
    seed: int,
) -> torch.Tensor:
    """Right answers (2, Q) to held-out clips (S,): of the model's own settings, and of those chosen without them."""
    kept = (~held_out).tolist()
    kept_of_class = zip(classes.items(), by_class(_labels(classes), kept, len(classes)), strict=True)
    rest = {
        name: one.with_rows([row for row, is_kept in enumerate(own) if is_kept]) for (name, one), own in kept_of_class
    }
    rest_sources = [source for source, is_kept in zip(sources, kept, strict=True) if is_kept]
    chosen = _choose(model, rest, rest_sources, candidates, seed)
    logits, labels = _logits_of_candidates(model, classes, held_out[None], [candidates[0], chosen])
    return (logits.argmax(-1) == labels).float()


__all__ = ["Tuning", "candidate_settings", "own_settings", "tune_classes", "with_settings"]
