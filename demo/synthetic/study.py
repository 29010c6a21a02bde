"""Trains the visual tower as well, as the paper does, and measures what that gains on the two tracks of the demo.

    python -m demo.synthetic.study --output_dir study_output                       # everything: hours
    python -m demo.synthetic.study --output_dir study_output --tracks what --towers lora --num_seeds 1

The demo freezes the tower and trains the temporal transformer on cached features, because that takes seconds. This
study trains four recipes on the same clips for longer: `frozen` (as in the demo), `last_layer` (the tower's last layer
and everything after it), `lora` (adapters of rank 8) and `whole`. All recipes except `frozen` read pixels.

1. For each recipe and track, validation classes select one of the --learning_rates. Each candidate gets one training:
   CLIP-FSAR on the first fold with the first seed.
2. Both trained rows run on every fold and seed. The best state on validation classes is kept.
3. The novel classes are tested once, after all trainings.

Every training is saved: an interrupted study continues where it stopped, and more towers, tracks or seeds add only the
missing trainings. `study.json` holds all numbers, for each recipe in the form of `results.json`. --report writes the
tables as Markdown. A training of 150 episodes on pixels takes one to two minutes on one core. With `--device cuda` the
processes share a GPU: the last digits of a training then differ from run to run, so CPU and GPU have folders of their
own.
"""

import copy
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from clipfsar.inference.load_model import usable_device
from clipfsar.names import check_device
from clipfsar.options import option, parse_options
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.frozen_features import FeatureCollator
from clipfsar.training.trainable import choose_trainable
from demo.synthetic import TINY_CLIP
from demo.synthetic.render import RENDERER_VERSION
from demo.synthetic.study_report import machine, report
from demo.synthetic.track_classes import TRACKS, Track
from demo.synthetic.track_features import NUM_FRAMES, ClassClips, Features, frames_of_clip, tiny_clip, what_to_encode
from demo.synthetic.track_heads import Recipe, mean_one_shot, new_head, train_on_episodes, trained_weights
from demo.synthetic.track_heads import training_episodes as episodes_of
from demo.synthetic.track_jobs import Clock, Progress, check_options, showing_progress, working, write_text
from demo.synthetic.track_report import track_results
from demo.synthetic.tracks import (
    TrackSettings,
    choose_weights,
    gather,
    mean_validation,
    rows_of_frozen,
    rows_of_trained,
    validate_modes,
)
from modeling_clipfsar import CLIPFSARModel, evaluating

# Trained parts of the visual tower, as options of `clipfsar train`; the cheapest first.
TOWERS = {
    "frozen": {"freeze_vision": True},
    "last_layer": {"train_last_layers": 1},
    "lora": {"lora_rank": 8},
    "whole": {},
}


@dataclass(frozen=True)
class TowerRun:
    """One training, with its trained layers of the tower and its learning rate; a job for a process."""

    folder: str
    track: Track
    settings: TrackSettings
    tower: str
    fold: int
    seed: int
    with_text: bool
    device: str = "cpu"

    @property
    def recipe(self) -> Recipe:
        return self.settings.recipe

    def at(self, learning_rate: float) -> "TowerRun":
        recipe = replace(self.recipe, learning_rate=learning_rate)
        return replace(self, settings=replace(self.settings, recipe=recipe))

    def path(self, suffix: str) -> Path:
        kind = "with_text" if self.with_text else "without_text"
        name = f"{self.tower}_{self.recipe.learning_rate:g}_fold{self.fold}_seed{self.seed}_{kind}{suffix}"
        return Path(self.folder) / name


# ----------------------------------------------------------------------------------------------------------------------
# Jobs
# ----------------------------------------------------------------------------------------------------------------------


def render_class(job: ClassClips) -> np.ndarray:
    """Frames of a class's clips, (clips, draws, T, 3, size, size), uint8."""
    frames = np.stack([frames_of_clip(job, clip) for clip in range(job.clips)])
    frames = frames.reshape(job.clips, max(1, job.draws), NUM_FRAMES, *frames.shape[2:])
    return np.ascontiguousarray(np.moveaxis(frames, -1, 3))


def train_tower(run: TowerRun) -> dict:
    """Trains and validates one model, or reads the files of an earlier training.

    Returns `history`, `validation` (from `validate_modes`), `cpu_seconds`, and `seconds` by the clock.
    """
    path = run.path(".json")
    if path.is_file():
        return json.loads(path.read_text())
    start, start_cpu = time.perf_counter(), time.process_time()
    validation = partial(_encoded, run, "validation", run.track.validation)
    with torch.random.fork_rng():
        model = _new_model(run).to(run.device)
        pixels, texts = _part(run, "base", run.track.base_of(run.fold))
        labels = np.repeat(np.arange(len(pixels)), pixels.shape[1])
        episodes = episodes_of(run.track.base_of(run.fold), labels, run.recipe, run.seed)
        validate = lambda: mean_one_shot(_on_cpu(model), run.track, validation(model))  # noqa: E731 - the current tower
        collate, texts = _collator(run, model, pixels), texts.to(run.device)
        history = train_on_episodes(model, run.recipe, episodes, collate, texts, validate)
    modes = validate_modes(_on_cpu(model), run.track, validation(model), run.settings, run.with_text)
    cpu_seconds, seconds = time.process_time() - start_cpu, time.perf_counter() - start
    result = {"history": history, "validation": modes}
    result |= {"cpu_seconds": round(cpu_seconds, 1), "seconds": round(seconds, 1)}
    save_file(trained_weights(model), run.path(".partial"))
    os.replace(run.path(".partial"), run.path(".safetensors"))
    write_text(path, json.dumps(result))
    return result


def test_tower(job: tuple[TowerRun, dict[int, float]]) -> dict:
    """Accuracies on a fold's novel classes, `{row: {shots or "twins": {item: %}}}`."""
    run, weights = job
    model = _new_model(run)
    model.load_state_dict(load_file(run.path(".safetensors")), strict=False)
    model.to(run.device)
    novel = _encoded(run, "novel", run.track.novel_of(run.fold), model.eval())
    return rows_of_trained(_on_cpu(model), run.track, novel, run.settings, weights if run.with_text else None)


def test_plain(run: TowerRun) -> dict:
    """Accuracies of the untrained rows on a fold's novel classes."""
    novel = _encoded(run, "novel", run.track.novel_of(run.fold), tiny_clip()[0])
    return rows_of_frozen(run.track, novel, run.settings)


def _new_model(run: TowerRun) -> CLIPFSARModel:
    torch.manual_seed(run.seed)
    model = new_head(run.with_text, run.seed)
    model.clip.requires_grad_(True)
    choose_trainable(model, EpisodicTrainingArguments(model=str(TINY_CLIP), **TOWERS[run.tower]))
    return model


def _collator(run: TowerRun, model: CLIPFSARModel, pixels: torch.Tensor):
    """The collator of episodes: features for a frozen tower, pixels for the others; on the run's device."""
    collate = FeatureCollator((encode(model, pixels) if run.tower == "frozen" else pixels).flatten(0, 1))

    def on_device(episodes: list[dict]) -> dict[str, torch.Tensor]:
        inputs = {name: tensor.to(run.device) for name, tensor in collate(episodes).items()}
        if run.tower != "frozen":
            for role in ("support", "query"):
                inputs[f"{role}_pixel_values"] = _normalized(inputs.pop(f"{role}_embeds"))
        return inputs

    return on_device


def _on_cpu(model: CLIPFSARModel) -> CLIPFSARModel:
    """The model on the CPU, where accuracies are measured from its features; a copy if it is elsewhere."""
    return model if model.device.type == "cpu" else copy.deepcopy(model).cpu()


def encode(model: CLIPFSARModel, pixels: torch.Tensor) -> torch.Tensor:
    """Frame features of clips (C, clips, draws, T, 3, size, size), uint8: (C, clips, draws, T, D), on the CPU."""
    frames = pixels.flatten(0, 3)
    with torch.no_grad(), evaluating(model):
        parts = [
            model.get_video_features(_normalized(part.to(model.device))[None, None])[0, 0] for part in frames.split(128)
        ]
    return torch.cat(parts).view(*pixels.shape[:4], -1).cpu()


def _normalized(pixels: torch.Tensor) -> torch.Tensor:
    processor = tiny_clip()[1].image_processor
    mean, std = (
        torch.tensor(values, device=pixels.device).view(3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    return (pixels.float() / 255 - mean) / std


def _encoded(run: TowerRun, split: str, class_names: tuple[str, ...], model: CLIPFSARModel) -> Features:
    pixels, texts = _part(run, split, class_names)
    return Features(class_names, encode(model, pixels), texts)


def _part(run: TowerRun, split: str, class_names: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and texts of some classes of a split."""
    pixels, texts = _pixels_and_texts(run.folder, split)
    rows = [getattr(run.track, split).index(name) for name in class_names]
    return pixels[rows], texts[rows]


@cache
def _pixels_and_texts(folder: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = load_file(Path(folder) / f"{split}.safetensors")
    return tensors["pixels"], tensors["texts"]


# ----------------------------------------------------------------------------------------------------------------------
# The study
# ----------------------------------------------------------------------------------------------------------------------


def run_study(
    output_dir: str | Path,
    settings: TrackSettings,
    tracks: Sequence[Track] = TRACKS,
    towers: Sequence[str] = tuple(TOWERS),
    learning_rates: Sequence[float] = (1e-4, 5e-4),
    num_workers: int | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> dict:
    """Runs the missing trainings and tests, writes `study.json` and returns its content.

    Raises:
        ValueError: For a tower that is not in `TOWERS`.
    """
    unknown = sorted(set(towers) - set(TOWERS))
    if unknown:
        raise ValueError(f"Unknown tower '{unknown[0]}': choose from {', '.join(TOWERS)}.")
    folders = {track.name: _folder(Path(output_dir), track, settings, device) for track in tracks}
    study = {
        "settings": asdict(settings),
        "device": device,
        "num_workers": num_workers or os.cpu_count(),
        "tracks": {track.name: {} for track in tracks},
    }
    with showing_progress(progress) as show, working(num_workers) as workers:

        def run_all(function, jobs, phase):
            return Clock().results(workers(function, jobs, phase, show))

        for track in tracks:
            _render(track, folders[track.name], settings, run_all)
        first = {
            (track.name, tower): TowerRun(
                str(folders[track.name]), track, settings, tower, 0, settings.seed, True, device
            )
            for track in tracks
            for tower in towers
        }
        candidates = [run.at(rate) for run in first.values() for rate in learning_rates]
        found = dict(zip(candidates, run_all(train_tower, candidates, "choosing learning rates"), strict=True))
        trained = {}  # all trainings come before all tests
        for key, run in first.items():
            accuracies = {rate: _best_validation(found[run.at(rate)]) for rate in learning_rates}
            runs = _all_runs(run.at(max(accuracies, key=accuracies.get)))
            results = run_all(train_tower, runs, f"training {key[1]} on {key[0]}")
            trained[key] = (runs, results, accuracies)
        for (name, tower), (runs, results, accuracies) in trained.items():
            study["tracks"][name][tower] = _tested(runs, results, run_all) | {"learning_rates": accuracies}
    study["machine"] = machine(device)
    write_text(Path(output_dir) / "study.json", json.dumps(study, indent=2) + "\n")
    return study


def _folder(output_dir: Path, track: Track, settings: TrackSettings, device: str = "cpu") -> Path:
    """The folder of a track's clips and trainings. It depends on clips, recipe and device, but not on the seeds."""
    recipe = replace(settings.recipe, learning_rate=0.0)  # the rate is part of the file names
    content = [asdict(track), asdict(recipe), settings.seed, settings.test_episodes, RENDERER_VERSION]
    content += [] if device == "cpu" else [device]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    return output_dir / f"{track.name}-{digest}"


def _render(track: Track, folder: Path, settings: TrackSettings, run_all) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = tiny_clip()
    for split, jobs in what_to_encode(track, settings.seed).items():
        path = folder / f"{split}.safetensors"
        if not path.is_file():
            pixels = torch.from_numpy(np.stack(run_all(render_class, jobs, f"rendering {split} clips of {track.name}")))
            tokens = [processor.tokenize_classes([job.class_name]) for job in jobs]
            with torch.no_grad():
                texts = torch.cat([model.get_class_features(**inputs) for inputs in tokens])
            save_file({"pixels": pixels, "texts": texts}, folder / ".partial")
            os.replace(folder / ".partial", path)


def _all_runs(run: TowerRun) -> list[TowerRun]:
    return [
        replace(run, fold=fold, seed=seed, with_text=with_text)
        for fold in range(len(run.track.folds))
        for seed in run.settings.seeds
        for with_text in (False, True)
    ]


def _best_validation(trained: dict) -> float:
    return max(record["validation_accuracy"] for record in trained["history"])


def _tested(runs: list[TowerRun], trained: list[dict], run_all) -> dict:
    """Results of a recipe on a track, in the form of `results.json`, with its cost."""
    track, tower = runs[0].track, runs[0].tower
    weights = choose_weights(track, runs, trained)
    phase = f"testing {tower} on {track.name}"
    jobs = [(run, weights) for run in runs]
    plain = [run for run in runs if run.seed == run.settings.seed and not run.with_text]
    rows = run_all(test_tower, jobs, phase) + run_all(test_plain, plain, f"{phase}, frozen rows")
    accuracies = gather(jobs + [(run, None) for run in plain], rows, track)
    logs = [
        {"fold": run.fold, "seed": run.seed, "with_text": run.with_text} | {k: r[k] for k in r if k != "validation"}
        for run, r in zip(runs, trained, strict=True)
    ]
    results = track_results(track, accuracies, weights, mean_validation(track, runs, trained, weights), logs)
    return results | {"learning_rate": runs[0].recipe.learning_rate}


@dataclass
class Arguments:
    output_dir: str = option("study_output", "Folder for clips, weights and numbers. A study in it continues.")
    tracks: list[str] = option([track.name for track in TRACKS], "Tracks to run.", [track.name for track in TRACKS])
    towers: list[str] = option(list(TOWERS), "Recipes: the trained parts of the visual tower.", list(TOWERS))
    num_seeds: int = option(3, "Number of seeds, and so of trainings of each row and fold.")
    episodes: int = option(600, "Training episodes, each of 20 classes with one support and one query clip.")
    learning_rates: list[float] = option([1e-4, 5e-4], "Candidate learning rates; validation selects one.")
    num_workers: int | None = option(None, "Processes; by default one per core. Results do not depend on them.")
    device: str = option("cpu", "Device of the trainings, such as cuda.")
    report: str | None = option(None, "Write the tables as Markdown here, for example docs/evaluate/study.md.")

    def __post_init__(self):
        check_options(self)
        check_device(self.device)
        usable_device(self.device)


def main(arguments: Arguments) -> None:
    settings = TrackSettings(arguments.num_seeds, Recipe(episodes=arguments.episodes))
    tracks = [track for track in TRACKS if track.name in arguments.tracks]
    study = run_study(
        arguments.output_dir,
        settings,
        tracks,
        arguments.towers,
        arguments.learning_rates,
        arguments.num_workers,
        device=arguments.device,
    )
    text = report(study)
    print(text)
    if arguments.report:
        Path(arguments.report).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(arguments.report), text)


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))


__all__ = ["TOWERS", "TowerRun", "encode", "run_study"]
