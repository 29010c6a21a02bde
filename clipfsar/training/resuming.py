"""What a run was started with, whether it goes on with the same, and what results belong to."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from choices_clipfsar import PROCESSOR_CHECKS
from clipfsar.content import framed_digest
from clipfsar.data.video_split import VideoSplit
from configuration_clipfsar import CLIPFSARConfig
from fingerprint_clipfsar import model_digest, precision_of, preprocessing_settings

# Settings that change neither a training nor its results. All others are recorded, also those to come.
_OF_NO_EFFECT = {"inference_mode", "added_by_training", "decoder", "num_threads", "seconds_per_video"}
_OF_NO_EFFECT |= {"self", "kwargs", "clip_config"}  # the weights fit only one backbone
_OF_TESTS_ALONE = {"model.config.ensemble_text_weight", "model.config.ensemble_temperature"}
_MOST_DIFFERENCES = 10  # of a message


def settings_of(model, processor) -> dict[str, Any]:
    """The settings of a model and its processor that shape a training and its results, ready for JSON."""
    owners = (
        ("model.config", model.config, inspect.signature(CLIPFSARConfig.__init__).parameters),
        ("processor", processor, PROCESSOR_CHECKS),
    )
    settings = {
        f"{place}.{name}": getattr(owner, name)
        for place, owner, names in owners
        for name in names
        if name not in _OF_NO_EFFECT and hasattr(owner, name)  # the code beside an older model knows fewer
    }
    settings["processor.class_texts"] = getattr(processor, "class_texts", None) or {}
    settings["processor.image_processor"] = preprocessing_settings(processor)["image_processor"]
    return json.loads(json.dumps(settings))


def state_digest(model, processor) -> str:
    """Digest of a model's weights and their precision, and of the settings of the model and its processor."""
    settings = json.dumps(settings_of(model, processor))
    return framed_digest([model_digest(model).encode(), precision_of(model).encode(), settings.encode()]).hex()


def check_same_settings(saved: Mapping[str, Any], now: Mapping[str, Any], output_dir: str | Path) -> None:
    """Raises `ValueError` when a run goes on with a model or a processor that has other settings.

    Args:
        saved: `settings_of` at the start of the run. Settings that it does not name are not compared.
    """
    changes = []
    for name in (saved.keys() & now.keys()) - _OF_TESTS_ALONE:
        before, after = saved[name], now[name]
        if isinstance(before, dict) and isinstance(after, dict):
            both = [(f"{name}[{key!r}]", before.get(key), after.get(key)) for key in {**before, **after}]
        else:
            both = [(name, before, after)]
        changes += [f"{place} {old!r} (now {new!r})" for place, old, new in both if old != new]
    if changes:
        raise ValueError(
            f"The run in {output_dir} was started with {_listed(sorted(changes), ', ')}: resume with the same settings "
            "or use another --output_dir."
        )


def check_same_data(progress: Mapping[str, Any], splits: Mapping[str, VideoSplit], args) -> list[str]:
    """Compares the splits with the record that the run made of them at its start.

    A test split may come and go: it does not shape the run.

    Args:
        progress: The progress in the saved state; that of an earlier version has no record of the data.
        args: `EpisodicTrainingArguments`.

    Returns:
        Warnings about data that could not be compared.

    Raises:
        ValueError: When the data differ; the message lists the differences.
    """
    record = progress.get("data")
    if record is None:
        was_selected = progress.get("best") is not None
        before = {"train", args.select_on} if was_selected else splits.keys()
    else:
        before = record.keys()
    shaping = ("train", args.select_on)
    changes = [f"the split {name!r} is gone" for name in shaping if name in before and name not in splits]
    changes += [f"the split {name!r} is new" for name in shaping if name in splits and name not in before]
    for name, split in splits.items():
        changes += split.changes_since(record[name]) if record and name in record else []
    if changes:
        raise ValueError(
            f"The run in {args.output_dir} was started on other data: {_listed(changes, '; ')}. Resume it with the "
            "data it was started on, or use another --output_dir."
        )
    if record is None:
        return [
            f"The run in {args.output_dir} was started by a version that did not record its data. The data are assumed "
            "to be unchanged, and recorded now."
        ]
    return []


def _listed(changes: Sequence[str], comma: str) -> str:
    more = len(changes) - _MOST_DIFFERENCES
    words = "1 more difference" if more == 1 else f"{more} more differences"
    return comma.join(changes[:_MOST_DIFFERENCES]) + (f"{comma}and {words}" if more > 0 else "")


__all__ = ["check_same_data", "check_same_settings", "settings_of", "state_digest"]
