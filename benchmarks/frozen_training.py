"""Seconds per training episode: the whole model on pixels, and a frozen visual tower on pixels and on features.

    python -m benchmarks.frozen_training           # CLIP ViT-B/16 with random weights (the cost is the same)
    python -m benchmarks.frozen_training --model demo/synthetic/tiny_clip --whole_model --warmup_episodes 4 \\
        --pixel_episodes 24

It runs the training program without validations: 5-way 1-shot episodes with 5 queries per class by default, one episode
at a time. Worker processes decode the videos (rendered, or those of --dataset). For features, the training videos are
encoded once before the first episode; this time is printed separately.
"""

import platform
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from clipfsar.options import parse_options
from clipfsar.training.arguments import parse_arguments
from clipfsar.training.program import make_trainer
from clipfsar.training.trainer import EpisodicTrainer
from demo.synthetic import TINY_CLIP
from demo.synthetic.render import render_dataset


@dataclass
class Arguments:
    dataset: str | None = field(default=None, metadata={"help": "Video data set; by default clips are rendered."})
    model: str | None = field(default=None, metadata={"help": "CLIP to start from; by default a random ViT-B/16."})
    whole_model: bool = field(default=False, metadata={"help": "Also time training of all but the text tower."})
    train_n_query: int = field(default=5, metadata={"help": "Query videos per class."})
    train_videos_per_class: int = field(default=6, metadata={"help": "Clips of each of the 72 rendered classes."})
    warmup_episodes: int = field(default=1, metadata={"help": "Episodes before the timed ones."})
    pixel_episodes: int = field(default=1, metadata={"help": "Timed episodes on pixels."})
    feature_episodes: int = field(default=200, metadata={"help": "Timed episodes on features."})
    num_workers: int = field(default=1, metadata={"help": "Processes that decode videos."})


class TimedTrainer(EpisodicTrainer):
    """Trains without validations and checkpoints, and measures the time after the warm-up episodes."""

    def _make_loader(self, split):
        start = time.perf_counter()
        loader = super()._make_loader(split)
        self.encoding_seconds = time.perf_counter() - start
        return loader

    def _validate_and_select(self):
        if self.episodes_done == self.args.eval_every:
            self.start, self.episodes_before = time.perf_counter(), self.episodes_done

    def _save_checkpoint(self, to_log):
        pass

    def _load_best(self):
        pass

    def seconds_per_episode(self) -> float:
        """Trains; returns the seconds per episode after the warm-up."""
        self.train()
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - self.start) / (self.episodes_done - self.episodes_before)


def save_random_vit_b16(folder: Path):
    """Saves a random CLIP ViT-B/16 with the tiny CLIP's tokenizer: the texts are not timed."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_CLIP)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = special | {"vocab_size": len(tokenizer)}
    # the other sizes of CLIP ViT-B/16 are transformers' defaults
    config = CLIPConfig(vision_config={"patch_size": 16, "image_size": 224}, text_config=text, projection_dim=512)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def measure(arguments: Arguments, dataset: str, num_episodes: int, output_dir: str, *options: str) -> TimedTrainer:
    settings = {
        "dataset": dataset,
        "model": arguments.model,
        "output_dir": output_dir,
        "episodes": arguments.warmup_episodes + num_episodes,
        "eval_every": arguments.warmup_episodes,
        "episodes_per_update": min(4, arguments.warmup_episodes),
        "log_every": 1_000_000,
        "test_episodes": 0,
        "train_n_query": arguments.train_n_query,
        "num_workers": arguments.num_workers,
        "report_to": "none",
    }
    command_line = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    run, _ = make_trainer(parse_arguments([*command_line, *options]), TimedTrainer)
    run.seconds = run.seconds_per_episode()
    run.accelerator.free_memory()
    return run


def main(arguments: Arguments):
    with tempfile.TemporaryDirectory() as folder:
        dataset = arguments.dataset
        if dataset is None:
            dataset = f"{folder}/clips"
            videos = {"train": arguments.train_videos_per_class, "validation": 8, "test": 8}
            render_dataset(Path(dataset), videos, seed=0)
        name = "ViT-B/16 with random weights" if arguments.model is None else Path(arguments.model).name
        if arguments.model is None:
            arguments.model = f"{folder}/vit_b16"
            save_random_vit_b16(Path(arguments.model))
        pixels, features = arguments.pixel_episodes, arguments.feature_episodes
        rows = {}
        if arguments.whole_model:
            rows["all but the text tower, on pixels"] = measure(arguments, dataset, pixels, f"{folder}/all")
        options = ("--freeze_vision", "--feature_draws", "0")
        rows["the head, on pixels"] = measure(arguments, dataset, pixels, f"{folder}/pixels", *options)
        rows["the head, on features"] = measure(arguments, dataset, features, f"{folder}/features", "--freeze_vision")
    on_features = rows["the head, on features"]
    device = on_features.accelerator.device
    is_cuda = device.type == "cuda"
    machine = (
        torch.cuda.get_device_name() if is_cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    print(f"{date.today()}, {machine}, torch {torch.__version__}, transformers {transformers.__version__}")
    vision = on_features.model.config.clip_config.vision_config
    print(
        f"{name}, {vision.image_size} px; 5-way 1-shot, {arguments.train_n_query} queries per "
        f"class, {on_features.args.num_frames} frames; {arguments.num_workers} worker(s)"
    )
    print("| trained weights | seconds per episode | times the last row |")
    print("|---|---|---|")
    for row, run in rows.items():
        print(f"| {row} | {run.seconds:.4f} | {run.seconds / on_features.seconds:.1f} |")
    print(f"Encoding the {len(on_features.train_split)} training videos, once: {on_features.encoding_seconds:.1f} s.")


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
