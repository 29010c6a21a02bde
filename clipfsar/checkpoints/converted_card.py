"""The model card of converted weights. It states their origin and licence, which `clipfsar push` asks for."""

import json
from datetime import date
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from clipfsar.checkpoints.model_card import LIMITS, MODEL_PLACEHOLDER, TASK, USE
from clipfsar.json_files import read_json
from paths_clipfsar import public_name, replace_file

RECORD = "conversion.json"  # in the folder of converted weights: where they come from
NOT_STATED = "not stated"

_TEXT = f"""
# CLIP-FSAR, converted from {{program}}

{TASK} The weights were trained by {{program}} and converted with `clipfsar convert`.

{USE}

## Origin

- Weights: `{{checkpoint}}`, a checkpoint of {{program}}. Source: {{source}}.
- Text tower: `{{clip_checkpoint}}`. The checkpoint does not hold it.
- Converted on {{date}}. The features of the visual tower agree with a plain computation on the original weights.

## Results

Not measured here. Measure them with `clipfsar evaluate --model {{model_id}} --dataset DATA --n_shot 1 3 5`.

## Limits

{LIMITS}

## Licence

The code files are Apache-2.0. The licence of the weights is: {{license}}.
"""


def record_conversion(folder: Path, program: str, checkpoint: str, clip_checkpoint: str, num_frames: int):
    """Writes `conversion.json` and a model card that does not state source and licence yet."""
    record = {
        "program": program,
        "checkpoint": public_name(checkpoint),
        "clip_checkpoint": public_name(clip_checkpoint),
        "num_frames": num_frames,
        "date": date.today().isoformat(),
    }
    _write(folder, record)


def state_origin(folder: Path, license: str | None, source: str | None):
    """Writes licence and source of converted weights into their model card. Does nothing for trained models.

    Args:
        license: Identifier that the Hub knows (`"mit"`), or any name of a licence.
        source: Address or citation of the original weights.

    Raises:
        ValueError: When one of them was never given; or when they are given for a trained model, whose card already
            has its licence.
    """
    if not (folder / RECORD).is_file():
        if license is not None or source is not None:
            raise ValueError(
                f"--license and --source are for converted weights; {folder} is a trained model, whose card says both."
            )
        return
    record = read_json(folder / RECORD, "convert the checkpoint again")
    given = {"license": license or record.get("license"), "source": source or record.get("source")}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"{folder} holds weights of {record['program']}, converted from {record['checkpoint']}: say under which "
            f"licence and from where they are, with {' and '.join(missing)}. If their authors state no licence, ask "
            "them before you upload."
        )
    if given != {name: record.get(name) for name in given}:
        _write(folder, record | given)


def _write(folder: Path, record: dict):
    with replace_file(folder / RECORD) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")
    license, source = record.get("license"), record.get("source")
    is_known = license in HUB_LICENSES
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=["few-shot-learning", "action-recognition", "clip-fsar", "clip", "video", "custom_code"],
        license=license if is_known else "other",
        license_name=None if is_known or license is None else license.lower().replace(" ", "-"),
        language="en",
    )
    values = {**record, "license": license or NOT_STATED, "source": source or NOT_STATED}
    content = _TEXT.format(model_id=MODEL_PLACEHOLDER, **values)
    ModelCard(f"---\n{data.to_yaml()}\n---\n{content}").save(folder / "README.md")


# Identifiers of the Hub for licences that weights usually have (https://huggingface.co/docs/hub/repositories-licenses).
HUB_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-nc-sa-4.0")

__all__ = ["RECORD", "record_conversion", "state_origin"]
