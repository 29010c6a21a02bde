"""Seconds per training episode: the whole model on pixels, a frozen visual tower on pixels, and on features.

    python benchmarks/frozen_training.py                                    # rendered clips, the tiny CLIP of train/
    python benchmarks/frozen_training.py --dataset DATA --model openai/clip-vit-base-patch16 --pixel_episodes 4

Runs the training program itself, without its validations: 5-way 1-shot episodes with 5 queries per class unless said
otherwise, one episode at a time, videos decoded by worker processes. Encoding the training videos comes once before the
first episode on features and is given apart.
"""

import platform
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers
from transformers import HfArgumentParser

from train.arguments import parse_arguments
from train.synthetic_actions import render_dataset
from train.train import Run

TINY_CLIP = Path(__file__).resolve().parents[1] / "train" / "tiny_clip"


@dataclass
class Arguments:
    dataset: str | None = field(default=None, metadata={"help": "Video data set; by default clips are rendered."})
    model: str = field(default=str(TINY_CLIP), metadata={"help": "CLIP to start from."})
    train_n_query: int = field(default=5, metadata={"help": "Query videos per class."})
    pixel_episodes: int = field(default=24, metadata={"help": "Episodes timed on pixels, after 4 to warm up."})
    feature_episodes: int = field(default=400, metadata={"help": "Episodes timed on features, after 4 to warm up."})
    num_workers: int = field(default=1, metadata={"help": "Processes that decode videos."})


class TimedRun(Run):
    """A run without validations that keeps the time."""

    def _encode_training_videos(self) -> torch.Tensor:
        start = time.perf_counter()
        features = super()._encode_training_videos()
        self.encoding_seconds = time.perf_counter() - start
        return features

    def _validate_and_save(self):
        self.start, self.episodes_before = time.perf_counter(), self.episodes_done

    def seconds_per_episode(self, num_episodes: int) -> float:
        """Of the episodes after the first check, which comes after 4."""
        check = self._validate_and_save
        self._validate_and_save = lambda: check() if self.episodes_done == 4 else None
        self.train()
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - self.start) / num_episodes


def measure(arguments: Arguments, dataset: str, num_episodes: int, output_dir: str, *options: str) -> TimedRun:
    settings = {
        "dataset": dataset,
        "model": arguments.model,
        "output_dir": output_dir,
        "episodes": num_episodes + 4,
        "eval_every": 4,
        "log_every": 1_000_000,
        "test_episodes": 0,
        "train_n_query": arguments.train_n_query,
        "num_workers": arguments.num_workers,
        "report_to": "none",
    }
    command_line = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    run = TimedRun(parse_arguments([*command_line, *options]))
    run.seconds = run.seconds_per_episode(num_episodes)
    run.accelerator.free_memory()
    return run


def main(arguments: Arguments):
    with tempfile.TemporaryDirectory() as folder:
        dataset = arguments.dataset
        if dataset is None:
            dataset = f"{folder}/clips"
            render_dataset(Path(dataset), {"train": 10, "validation": 8, "test": 8}, seed=0)
        pixels, features = arguments.pixel_episodes, arguments.feature_episodes
        rows = {
            "all but the text tower, on pixels": measure(arguments, dataset, pixels, f"{folder}/all"),
            "the head, on pixels": measure(
                arguments, dataset, pixels, f"{folder}/pixels", "--freeze_vision", "--feature_draws", "0"
            ),
            "the head, on features": measure(arguments, dataset, features, f"{folder}/features", "--freeze_vision"),
        }
    on_features = rows["the head, on features"]
    device = on_features.accelerator.device
    is_cuda = device.type == "cuda"
    machine = (
        torch.cuda.get_device_name() if is_cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    print(f"{date.today()}, {machine}, torch {torch.__version__}, transformers {transformers.__version__}")
    vision = on_features.model.config.clip_config.vision_config
    print(
        f"{Path(arguments.model).name}, {vision.image_size} px; 5-way 1-shot, {arguments.train_n_query} queries per "
        f"class, {on_features.args.num_frames} frames; {arguments.num_workers} worker(s)"
    )
    print("| what trains | seconds per episode | times the last row |")
    print("|---|---|---|")
    for name, run in rows.items():
        print(f"| {name} | {run.seconds:.4f} | {run.seconds / on_features.seconds:.1f} |")
    print(
        f"Encoding the {len(on_features.splits['train'])} training videos, once: {on_features.encoding_seconds:.1f} s."
    )


if __name__ == "__main__":
    main(HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()[0])
