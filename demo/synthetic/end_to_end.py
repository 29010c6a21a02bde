"""One training from video files to a classified clip, with the commands that users type.

`clipfsar prepare` makes a data set with stored frames from video files. `clipfsar train` trains the last layer of the
visual tower and the temporal transformer on episodes. `pipeline` classifies a clip with the saved model. The training
is short: it shows that each step works, not how good the method is. An interrupted step continues where it stopped.
"""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from transformers import pipeline

from clipfsar.cli import main as clipfsar
from clipfsar.data.older_reader import REPORT
from demo.synthetic import TINY_CLIP
from demo.synthetic.classes import SPLITS
from demo.synthetic.first_answer import clip_path
from demo.synthetic.quiet import quiet
from demo.synthetic.render import render_dataset
from pipeline_clipfsar import TASK

CLASS_NAMES = {split: names[:: 3 if split == "train" else 1] for split, names in SPLITS.items()}
CLIPS_PER_CLASS = {"train": 6, "validation": 6, "test": 6}
TRAINING = {
    "episodes": 48,
    "train_n_query": 1,
    "train_last_layers": 1,
    "eval_every": 24,
    "eval_episodes": 200,
    "test_episodes": 500,
    "n_shot": [1, 5],
    "n_query": 1,
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "warmup_learning_rate": 1e-5,
    "warmup_episodes": 8,
    "log_every": 8,
    "num_workers": 1,
    "report_to": "none",
}


def prepare_command(output_dir: Path) -> list[str]:
    kept = {"frame_store": "jpeg", "model": os.path.relpath(TINY_CLIP), "frames_per_video": 24}
    return ["prepare", *_options(source=output_dir / "clips", output_dir=output_dir / "data", **kept)]


def train_command(output_dir: Path, **settings) -> list[str]:
    folders = {"dataset": output_dir / "data", "model": os.path.relpath(TINY_CLIP), "output_dir": output_dir / "run"}
    return ["train", *_options(**folders, resume=True, **TRAINING | settings)]


def _options(**values) -> list[str]:
    command_line = []
    for name, value in values.items():
        command_line += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return command_line


def end_to_end(output_dir: Path, num_workers: int | None = None, class_names=None, **settings) -> dict:
    """Renders files, prepares them, trains, tests and classifies a clip.

    Args:
        class_names: Class names of each split, by default `CLASS_NAMES`.
        settings: They override `TRAINING`.

    Returns:
        The two commands, the test results, and the answer to a novel clip with its class.

    Raises:
        ValueError: When `output_dir` holds clips or a finished training with other settings.
    """
    class_names = class_names or CLASS_NAMES
    render_dataset(output_dir / "clips", CLIPS_PER_CLASS, num_workers=num_workers, class_names=class_names)
    if not (output_dir / "data" / REPORT).is_file():
        _run(prepare_command(output_dir))
    if not _is_trained(output_dir / "run", TRAINING | settings):
        _run(train_command(output_dir, **settings))
    commands = (prepare_command(output_dir), train_command(output_dir, **settings))
    return {
        "commands": [shlex.join(["clipfsar", *command]) for command in commands],
        "results": json.loads((output_dir / "run" / "results.json").read_text()),
        **classify_a_novel_clip(output_dir, class_names["test"]),
    }


def _is_trained(run: Path, settings: dict) -> bool:
    if not (run / "results.json").is_file():
        return False
    made_with = json.loads((run / "best" / "training_arguments.json").read_text())
    different = [f"{name}={made_with[name]!r}" for name, value in settings.items() if made_with[name] != value]
    if different:
        raise ValueError(f"{run} holds a training with {', '.join(different)}: delete it, or name another folder.")
    return True


def _run(command: list[str]):
    print(f"\n$ {shlex.join(['clipfsar', *command])}", flush=True)
    code = clipfsar(command)
    if code:
        raise SystemExit(code)


def classify_a_novel_clip(output_dir: Path, class_names: Sequence[str]) -> dict:
    """Classifies a clip among up to five novel classes with two clips each, with the trained model."""
    with quiet():
        classify = pipeline(TASK, model=str(output_dir / "run" / "best"), trust_remote_code=True, device="cpu")
    novel = output_dir / "clips" / "test"
    shown = class_names[:: max(1, len(class_names) // 5)][:5]
    classify.enroll({name: [str(clip_path(novel, name, number)) for number in (0, 1)] for name in shown})
    query = clip_path(novel, shown[0], 5)
    classify.explain(str(query)).plot(output_dir / "run" / "why.png")
    return {"query": str(query), "class": shown[0], "answer": classify(str(query))}


__all__ = ["TRAINING", "end_to_end", "prepare_command", "train_command"]
