"""The main job on an embedded default: renders synthetic actions, trains on base classes, tests on novel ones.

    python -m demo.synthetic.run --output_dir demo_output

Needs no network and no GPU: the videos are rendered here, and the CLIP to start from lies beside this file. Trains the
method part by part, so that the table shows what each part is worth, then classifies single clips as a user would.
The visual tower stays as it is (`--freeze_vision`), which makes thousands of episodes a matter of a minute: what trains
is the temporal transformer. An interrupted demo goes on where it stopped.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from clipfsar.data.splits import load_video_splits
from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.episodes import evaluate_features
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.options import parse_options
from clipfsar.plots import plot_episode, plot_training_comparison
from clipfsar.training.arguments import parse_arguments
from clipfsar.training.program import run as train
from demo.synthetic import TINY_CLIP
from demo.synthetic.render import render_dataset
from episodes_clipfsar import EpisodeDataset
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

# Each row adds one part to the one before.
VARIANTS = {
    "mean pooling": ["--alignment", "mean", "--prototype_modulation", "false", "--video_text_loss_weight", "0"],
    "OTAM only": ["--alignment", "otam", "--prototype_modulation", "false", "--video_text_loss_weight", "0"],
    "+ video-text contrast": ["--alignment", "otam", "--prototype_modulation", "false"],
    "+ modulation (CLIP-FSAR)": ["--alignment", "otam"],
}
FULL_MODEL = "+ modulation (CLIP-FSAR)"
# What the tiny CLIP's features give as they are: the training must be seen against these.
UNTRAINED = {"untrained, mean pooling": "mean", "untrained, OTAM": "otam"}


@dataclass
class Arguments:
    output_dir: str = field(default="demo_output", metadata={"help": "Folder for clips, models and pictures."})
    episodes: int = field(default=2400, metadata={"help": "Training episodes of each of the four runs."})
    test_episodes: int = field(default=5_000, metadata={"help": "Test episodes per number of shots."})
    train_videos_per_class: int = field(default=12, metadata={"help": "Clips of each base class."})
    test_videos_per_class: int = field(default=20, metadata={"help": "Clips of each validation and novel class."})
    seed: int = field(default=0, metadata={"help": "Seed of clips, episodes and new layers."})


def train_variant(name: str, clips: Path, folder: Path, arguments: Arguments) -> list[dict]:
    """Trains and tests one row of the table; its results, from the file if it was done before."""
    print(f"\n=== {name}", flush=True)
    if not (folder / "results.json").is_file():
        options = {
            "dataset": clips,
            "model": TINY_CLIP,
            "output_dir": folder,
            "episodes": arguments.episodes,
            "eval_every": max(4, arguments.episodes // 10 // 4 * 4),
            "eval_episodes": 1000,
            "test_episodes": arguments.test_episodes,
            "freeze_vision": True,
            "feature_draws": 4,
            "features_dir": folder.parent / "features",  # the same of all rows
            "learning_rate": 5e-4,
            "warmup_learning_rate": 5e-5,
            "warmup_episodes": 100,
            "log_every": 40,
            "optimizer": "adamw",
            "seed": arguments.seed,
            "num_workers": 1,
        }
        command_line = [part for option, value in options.items() for part in (f"--{option}", str(value))]
        train(parse_arguments([*command_line, "--resume", "true", *VARIANTS[name]]))
    return json.loads((folder / "results.json").read_text())


def evaluate_untrained(clips: Path, path: Path, arguments: Arguments) -> dict[str, list[dict]]:
    """Few-shot results of plain CLIP features, without a temporal transformer; from the file if done before."""
    if not path.is_file():
        novel = load_video_splits(str(clips))["test"]
        split = VideoSplit(novel)
        processor = CLIPFSARProcessor.from_pretrained(TINY_CLIP)
        settings = {"dtype": torch.float32, "temporal_num_layers": 0, "prototype_modulation": False}
        counts = {"n_episodes": arguments.test_episodes, "seed": arguments.seed}
        protocol = Protocol(n_shot=(1, 5), inference_modes="few_shot", **counts)
        results, video_embeds = {}, None
        for name, alignment in UNTRAINED.items():
            model = CLIPFSARModel.from_pretrained(TINY_CLIP, alignment=alignment, **settings)
            encoder = VideoEncoder(model, processor)
            model.to(encoder.accelerator.device)
            if video_embeds is None:  # the alignment comes after them
                video_embeds = encoder.encode(split)
            class_embeds = encoder.encode_classes(split.class_names)
            features = SplitFeatures(model, video_embeds, class_embeds, split.labels)
            answers = evaluate_features(features, protocol, split.class_names)
            results[name] = [asdict(result.summary()) for result in answers]
        path.write_text(json.dumps(results, indent=2) + "\n")
    return json.loads(path.read_text())


def results_table(results: dict[str, list[dict]], untrained: dict[str, list[dict]]) -> str:
    """Markdown: a row per part of the method, a column per number of shots."""

    def cell(rows: list[dict], mode: str, n_shot: int) -> str:
        row = next(row for row in rows if row["inference_mode"] == mode and row["n_shot"] == n_shot)
        return f"{row['accuracy']:.1f} ± {row['interval']:.1f}"

    table = ["| novel classes, 5-way accuracy in % | 1-shot | 5-shot |", "|---|---|---|"]
    for name, rows in (untrained | results).items():
        table.append(f"| {name} | {cell(rows, 'few_shot', 1)} | {cell(rows, 'few_shot', 5)} |")
    full = results[FULL_MODEL]
    # Texts alone do not depend on the shots; both columns are the same model on other episodes.
    for name, mode in (("zero-shot (texts only)", "zero_shot"), ("ensemble of both", "ensemble")):
        table.append(f"| {name} | {cell(full, mode, 1)} | {cell(full, mode, 5)} |")
    return "\n".join(table)


def rows_without_effect(results: dict[str, list[dict]]) -> list[str]:
    """Parts of the method whose rows lie within the intervals of the row before, for all numbers of shots."""
    few_shot = {name: [row for row in rows if row["inference_mode"] == "few_shot"] for name, rows in results.items()}
    names = list(few_shot)
    return [
        name
        for before, name in pairwise(names)
        if all(
            abs(row["accuracy"] - previous["accuracy"]) <= row["interval"] + previous["interval"]
            for row, previous in zip(few_shot[name], few_shot[before], strict=True)
        )
    ]


def classify_single_clips(model_folder: Path, clips: Path, picture: Path, seed: int):
    """One novel episode as a user would run it: support videos by class name, query videos, probabilities."""
    model = CLIPFSARModel.from_pretrained(model_folder).eval()
    processor = CLIPFSARProcessor.from_pretrained(model_folder)
    novel = load_video_splits(str(clips))["test"]
    episode = EpisodeDataset(novel, n_way=5, n_shot=1, n_query=1, n_episodes=1, seed=seed)[0]
    class_names, query_videos = episode["class_names"], episode["query_videos"]
    inputs = processor(
        support_videos=dict(zip(class_names, episode["support_videos"], strict=True)), query_videos=query_videos
    )
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(-1)[0]  # (Q, N)

    print(f"\nSingle clips against one support clip of each of: {', '.join(class_names)}")
    for video, scores, label in zip(query_videos, probabilities, episode["labels"], strict=True):
        best = int(scores.argmax())
        clip = Path(video["path"]).relative_to(clips.resolve() if Path(video["path"]).is_absolute() else clips)
        verdict = "right" if best == label else f"wrong, it is {class_names[label]!r}"
        print(f"  {clip}: {class_names[best]!r} with probability {scores[best]:.2f} ({verdict})")

    plot_episode(
        class_names,
        processor.to_frames(inputs["support_pixel_values"][0]).numpy(),
        processor.to_frames(inputs["query_pixel_values"][0]).numpy(),
        probabilities.numpy(),
        episode["labels"],
        picture,
        "One 5-way 1-shot episode of novel classes",
    )


def main(arguments: Arguments):
    start = time.perf_counter()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # One core renders or reads videos while the others compute.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    output_dir = Path(arguments.output_dir)
    clips = output_dir / "clips"
    print(f"=== Rendering synthetic actions into {clips}", flush=True)
    render_dataset(
        clips,
        {
            "train": arguments.train_videos_per_class,
            "validation": arguments.test_videos_per_class,
            "test": arguments.test_videos_per_class,
        },
        seed=arguments.seed,
    )
    folders = {name: output_dir / "runs" / f"{number}" for number, name in enumerate(VARIANTS, start=1)}
    results = {name: train_variant(name, clips, folder, arguments) for name, folder in folders.items()}

    untrained = evaluate_untrained(clips, output_dir / "untrained.json", arguments)
    logs = {
        name: [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
        for name, folder in folders.items()
    }
    plot_training_comparison(logs, output_dir / "training.png")
    classify_single_clips(folders[FULL_MODEL] / "best", clips, output_dir / "episode.png", arguments.seed)
    table = results_table(results, untrained)
    tested = [json.loads((folder / "state" / "progress.json").read_text())["best"] for folder in folders.values()]
    note = (
        f"Mean and 95% interval over {arguments.test_episodes} episodes of the same novel videos, seed "
        f"{arguments.seed}. "
        f"Of {arguments.episodes} training episodes per row, the models tested are those after "
        f"{', '.join(str(best['episode']) for best in tested)}, the best on validation classes. The interval says "
        "nothing of other videos or seeds."
    )
    without_effect = rows_without_effect(results)
    if without_effect:
        note += f" Not told apart from the row before by these intervals: {', '.join(without_effect)}."
    note += (
        " The visual tower is frozen, so the video-text contrast, which trains that tower, cannot show here what it is "
        "worth."
    )
    (output_dir / "results.md").write_text(f"{table}\n\n{note}\n")
    print(f"\n{table}\n\n{note}")
    print(
        f"\n{time.perf_counter() - start:.0f} s. Look at {output_dir / 'episode.png'} and "
        f"{output_dir / 'training.png'}; the model is {folders[FULL_MODEL] / 'best'}."
    )


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
