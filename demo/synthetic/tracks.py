"""Runs both tracks of the demo and writes the results: `results.json` and `results.md`.

    from demo.synthetic.tracks import run_tracks
    results = run_tracks("demo_output")

As a program: `python -m demo.synthetic.tracks --output_dir demo_output`. `track_classes.py` defines the tracks.
Clips are rendered and encoded once (`track_features.py`), and temporal transformers train on these features
(`track_heads.py`). Validation classes select the ensemble's text weight. The novel classes are then tested once.
Everything is a pure function of the settings, with any number of processes. An interrupted run continues where it
stopped.

Rows (the same on both tracks; the tower is frozen in all of them):

- `frozen_mean`: features of the tiny CLIP, mean over frames, cosine. No order, no training, no text.
- `frozen_otam`: the same features, frames aligned by OTAM. No training, no text.
- `without_text`: a temporal transformer trained on base classes, OTAM, no text.
- `with_text`: the same with prototypes modulated by the class texts: CLIP-FSAR.
- `swapped_texts` (*Order* only): the models of `with_text`; in the test, each verb gets the text of its twin.
- `texts_only`: cosine of mean frame feature and class text. No support clips, so both columns are the same, exact.
- `ensemble`: `with_text` and `texts_only` together, with the text weight that is best on validation classes. There is
  one weight per track and number of shots, over all seeds and folds.
- `ensemble_official`: the same with the official weight, 0.9.

`results.json`:

    {
      "version": 1,
      "settings": {...},                            # TrackSettings
      "tracks": {
        "what" | "order": {
          "title": str,
          "num_base_classes": [int, ...],           # per fold
          "num_novel_items": int,                   # classes; verbs on Order
          "rows": {row: {
            "label": str,                           # name in the table
            "shots": {"1" | "5": {
              "accuracy": float,                    # %, mean over seeds and classes
              "interval": [low, high],              # 95%, over classes and seeds: see spread.py
              "half_width": float,
              "per_class": {class or verb: float},  # mean over seeds
              "per_seed": [float, ...],             # one number for untrained rows
            }},
            "twins": {...} | null,                  # Order, 1-shot, same form: a verb against its twin, chance 50
          }},
          "differences": {name: {                   # paired: the same clips, episodes and seeds; names: COMPARISONS
            "rows": [row, minus row],
            "shots": {"1" | "5": {"difference", "interval", "half_width", "per_class", "per_seed"}},
          }},
          "ensemble_text_weight": {"1": float, "5": float},
          "validation": {"without_text" | "with_text" | "ensemble": {"1": float, "5": float}},
          "training": [{"fold", "seed", "with_text", "history": [{"episode", "validation_accuracy"}]}, ...],
          "sentences": [{"question": str, "answer": str}, ...],  # computed from the numbers above
        }
      },
      "table": str,                                 # Markdown, both tracks with their sentences; also results.md
      "seconds": {phase: {"wall": float, "cpu": float}},  # only these numbers differ between two runs
    }

1-shot accuracy is exact: it covers all 5-way episodes. 5-shot accuracy covers `test_episodes` sampled episodes, the
same for all rows.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from choices_clipfsar import check_positive_integer
from clipfsar.options import option, parse_options
from demo.synthetic.render import RENDERER_VERSION
from demo.synthetic.track_classes import TRACKS, Track, exchange_twins
from demo.synthetic.track_features import Features, encode_class, what_to_encode
from demo.synthetic.track_heads import (
    SHOTS,
    Recipe,
    few_shot_accuracies,
    frozen_head,
    new_head,
    one_shot_accuracies,
    train_head,
    trained_weights,
    twin_accuracies,
)
from demo.synthetic.track_jobs import Clock, Progress, check_options, showing_progress, working, write_text
from demo.synthetic.track_report import OFFICIAL_TEXT_WEIGHT, Accuracies, tables, track_results
from modeling_clipfsar import CLIPFSARModel

TEXT_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
TEXTS_ALONE = 1.0

ENCODING, TRAINING, TESTING = "rendering and encoding clips", "training", "testing"


@dataclass(frozen=True)
class TrackSettings:
    """Settings of both tracks.

    Args:
        num_seeds: Number of trainings of each row and fold, with seeds `seed`, `seed + 1`, ...
        recipe: Recipe of each training.
        test_episodes: 5-shot episodes of each scope; 1-shot accuracy is exact.
        seed: Seed of the clips and of the first training.
    """

    num_seeds: int = 3
    recipe: Recipe = field(default_factory=Recipe)
    test_episodes: int = 300
    seed: int = 0

    def __post_init__(self):
        for name in ("num_seeds", "test_episodes"):
            check_positive_integer(name, getattr(self, name))

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.num_seeds)


@dataclass(frozen=True)
class Run:
    """One training of a track, with its fold and seed, with or without texts; a job for a process."""

    folder: str
    track: Track
    settings: TrackSettings
    fold: int
    seed: int
    with_text: bool

    def path(self, suffix: str) -> Path:
        kind = "with_text" if self.with_text else "without_text"
        return Path(self.folder) / f"fold{self.fold}_seed{self.seed}_{kind}{suffix}"


def run_tracks(
    output_dir: str | Path,
    settings: TrackSettings | None = None,
    tracks: Sequence[Track] = TRACKS,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> dict:
    """Runs the tracks, writes `results.json` and `results.md` to `output_dir`, and returns the content of the first.

    Args:
        num_workers: Processes; by default one per core. Results do not depend on them.
        progress: Called with the name of a phase, its finished jobs and all its jobs; by default a progress bar.
    """
    settings = settings or TrackSettings()
    output_dir = Path(output_dir)
    folders = {track.name: track_folder(output_dir, track, settings) for track in tracks}
    clock = Clock()
    with showing_progress(progress) as report, working(num_workers) as workers:
        with clock.phase("encoding"):
            _encode(tracks, folders, settings, workers, report, clock)
        runs = [
            Run(str(folders[track.name]), track, settings, fold, seed, with_text)
            for track in tracks
            for fold in range(len(track.folds))
            for seed in settings.seeds
            for with_text in (False, True)
        ]
        with clock.phase("training"):
            trained = clock.results(workers(train_run, runs, TRAINING, report))
        weights = {track.name: choose_weights(track, runs, trained) for track in tracks}
        with clock.phase("testing"):
            jobs = [(run, weights[run.track.name]) for run in runs]
            jobs += [(run, None) for run in runs if run.seed == settings.seed and not run.with_text]
            tested = clock.results(workers(test_run, jobs, TESTING, report))
    results = {"version": 1, "settings": asdict(settings), "tracks": {}}
    for track in tracks:
        own = [i for i, run in enumerate(runs) if run.track is track]
        accuracies = gather(jobs, tested, track)
        logs = [_log(runs[i], trained[i]) for i in own]
        validation = mean_validation(track, runs, trained, weights[track.name])
        results["tracks"][track.name] = track_results(track, accuracies, weights[track.name], validation, logs)
    results["table"] = tables(results)
    results["seconds"] = clock.seconds
    write_text(output_dir / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(output_dir / "results.md", results["table"] + "\n")
    return results


def track_folder(output_dir: Path, track: Track, settings: TrackSettings) -> Path:
    """The folder of a track's files. Each combination of settings has its own, so old files are never mistaken."""
    content = json.dumps([asdict(track), asdict(settings), RENDERER_VERSION], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:10]
    return output_dir / "tracks" / f"{track.name}-{digest}"


# ----------------------------------------------------------------------------------------------------------------------
# Jobs, each on one thread of a process
# ----------------------------------------------------------------------------------------------------------------------


def train_run(run: Run) -> dict:
    """Trains and validates one model, or reads the files of an earlier training.

    Returns `history` and `validation` (from `validate_modes`).
    """
    path = run.path(".json")
    if path.is_file():
        return json.loads(path.read_text())
    base = load_features(run.folder, "base").of(run.track.base_of(run.fold))
    validation = load_features(run.folder, "validation")
    model, history = train_head(run.track, base, validation, run.settings.recipe, run.with_text, run.seed)
    result = {
        "history": history,
        "validation": validate_modes(model, run.track, validation, run.settings, run.with_text),
    }
    save_file(trained_weights(model), run.path(".partial"))
    os.replace(run.path(".partial"), run.path(".safetensors"))
    write_text(path, json.dumps(result))
    return result


def test_run(job: tuple[Run, dict[int, float] | None]) -> dict:
    """Accuracies on a fold's novel classes: `{row: {shots or "twins": {item: %}}}`.

    Without weights, the accuracies of the untrained rows.
    """
    run, weights = job
    novel = load_features(run.folder, "novel").of(run.track.novel_of(run.fold))
    if weights is None:
        return rows_of_frozen(run.track, novel, run.settings)
    model = new_head(run.with_text, run.seed)
    model.load_state_dict(load_file(run.path(".safetensors")), strict=False)
    return rows_of_trained(model, run.track, novel, run.settings, weights if run.with_text else None)


def validate_modes(
    model: CLIPFSARModel, track: Track, features: Features, settings: TrackSettings, with_text: bool
) -> dict[str, dict[str, float]]:
    """Mean accuracies per number of shots: `few_shot`, and with texts also the ensemble with each text weight."""
    weights = dict.fromkeys(SHOTS, TEXT_WEIGHTS if with_text else ())
    accuracies = _accuracies(model, track, features, settings, weights)
    return {
        str(shots): {str(mode): float(np.mean(list(items.values()))) for mode, items in modes.items()}
        for shots, modes in accuracies.items()
    }


def rows_of_trained(
    model: CLIPFSARModel, track: Track, novel: Features, settings: TrackSettings, weights: dict[int, float] | None
) -> dict:
    """The rows of a trained model. `weights` are the ensemble's text weights, None for a model without texts."""
    if weights is None:
        return {"without_text": _row(model, track, novel, settings)}
    asked = {shots: (weights[shots], OFFICIAL_TEXT_WEIGHT) for shots in SHOTS}
    found = _accuracies(model, track, novel, settings, asked)
    rows = {
        "with_text": {shots: found[shots]["few_shot"] for shots in SHOTS} | _twins(model, track, novel),
        "ensemble": {shots: found[shots][weights[shots]] for shots in SHOTS},
        "ensemble_official": {shots: found[shots][OFFICIAL_TEXT_WEIGHT] for shots in SHOTS},
    }
    if track.shares_look:
        swapped = novel.with_texts_of(exchange_twins(novel.class_names))
        rows["swapped_texts"] = _row(model, track, swapped, settings)
    return rows


def rows_of_frozen(track: Track, novel: Features, settings: TrackSettings) -> dict:
    rows = {f"frozen_{name}": _row(frozen_head(name), track, novel, settings) for name in ("mean", "otam")}
    texts = one_shot_accuracies(frozen_head("mean"), track, novel, (TEXTS_ALONE,))[TEXTS_ALONE]
    rows["texts_only"] = dict.fromkeys(SHOTS, texts)
    if track.shares_look:
        rows["texts_only"]["twins"] = twin_accuracies(frozen_head("mean"), track, novel)["texts"]
    return rows


def _row(model: CLIPFSARModel, track: Track, features: Features, settings: TrackSettings) -> dict:
    found = _accuracies(model, track, features, settings, dict.fromkeys(SHOTS, ()))
    return {shots: found[shots]["few_shot"] for shots in SHOTS} | _twins(model, track, features)


def _twins(model: CLIPFSARModel, track: Track, features: Features) -> dict:
    return {"twins": twin_accuracies(model, track, features)["few_shot"]} if track.shares_look else {}


def _accuracies(model, track: Track, features: Features, settings: TrackSettings, weights: dict) -> dict:
    """Accuracies per number of shots, per mode, per item."""
    few = few_shot_accuracies(model, track, features, settings.test_episodes, weights[5])
    return {1: one_shot_accuracies(model, track, features, weights[1]), 5: few}


@cache
def load_features(folder: str | Path, split: str) -> Features:
    """Features of a split ("base", "validation" or "novel") from a track's folder."""
    tensors = load_file(Path(folder) / f"{split}.safetensors")
    names = json.loads((Path(folder) / f"{split}.json").read_text())
    return Features(tuple(names), tensors["videos"], tensors["texts"])


def _encode(tracks, folders: dict[str, Path], settings: TrackSettings, workers, report, clock) -> None:
    """Encodes and writes the splits whose features are missing."""
    missing = {}
    for track in tracks:
        folders[track.name].mkdir(parents=True, exist_ok=True)
        for split, jobs in what_to_encode(track, settings.seed).items():
            if not (folders[track.name] / f"{split}.json").is_file():
                missing[track.name, split] = jobs
    jobs_of_all = [job for jobs in missing.values() for job in jobs]
    encoded = iter(clock.results(workers(encode_class, jobs_of_all, ENCODING, report)))
    for (track_name, split), jobs in missing.items():
        videos, texts = zip(*(next(encoded) for _ in jobs), strict=True)
        tensors = {"videos": torch.from_numpy(np.stack(videos)), "texts": torch.from_numpy(np.stack(texts))}
        save_file(tensors, folders[track_name] / f"{split}.safetensors")
        write_text(folders[track_name] / f"{split}.json", json.dumps([job.class_name for job in jobs]))


# ----------------------------------------------------------------------------------------------------------------------
# Combining the results of the jobs
# ----------------------------------------------------------------------------------------------------------------------


def choose_weights(track: Track, runs: list[Run], trained: list[dict]) -> dict[int, float]:
    """The text weight with the best mean validation accuracy, per number of shots; the smaller one on a tie."""
    own = [result["validation"] for run, result in zip(runs, trained, strict=True) if run.track is track]
    with_text = [result for result in own if str(TEXT_WEIGHTS[0]) in result["1"]]
    return {
        shots: max(TEXT_WEIGHTS, key=lambda weight: np.mean([r[str(shots)][str(weight)] for r in with_text]))
        for shots in SHOTS
    }


def mean_validation(track: Track, runs: list[Run], trained: list[dict], weights: dict[int, float]) -> dict:
    """Mean validation accuracy of the trained rows."""
    rows = {}
    for name, with_text in (("without_text", False), ("with_text", True), ("ensemble", True)):
        pairs = zip(runs, trained, strict=True)
        own = [r["validation"] for run, r in pairs if run.track is track and run.with_text == with_text]
        modes = {shots: str(weights[shots]) if name == "ensemble" else "few_shot" for shots in SHOTS}
        rows[name] = {str(shots): float(np.mean([r[str(shots)][modes[shots]] for r in own])) for shots in SHOTS}
    return rows


def gather(jobs: list, tested: list[dict], track: Track) -> Accuracies:
    """`{row: {shots or "twins": (items, accuracies)}}`, with accuracies (seeds, items) over all folds."""
    per_seed = {}
    for (run, _), rows in zip(jobs, tested, strict=True):
        if run.track is track:
            for row, columns in rows.items():
                for column, items in columns.items():
                    per_seed.setdefault(row, {}).setdefault(column, {}).setdefault(run.seed, {}).update(items)
    return {
        row: {
            column: (list(next(iter(seeds.values()))), np.array([list(items.values()) for items in seeds.values()]))
            for column, seeds in columns.items()
        }
        for row, columns in per_seed.items()
    }


def _log(run: Run, trained: dict) -> dict:
    return {"fold": run.fold, "seed": run.seed, "with_text": run.with_text, "history": trained["history"]}


@dataclass
class Arguments:
    output_dir: str = option("demo_output", "Folder for features, heads and results.")
    num_seeds: int = option(3, "Number of seeds, and so of trainings of each row.")
    episodes: int = option(Recipe().episodes, "Training episodes.")
    num_workers: int | None = option(None, "Processes; by default one per core. Results do not depend on them.")

    def __post_init__(self):
        check_options(self)


def main(arguments: Arguments) -> None:
    settings = TrackSettings(num_seeds=arguments.num_seeds, recipe=Recipe(episodes=arguments.episodes))
    results = run_tracks(arguments.output_dir, settings, num_workers=arguments.num_workers)
    print(f"\n{results['table']}\n\n{json.dumps(results['seconds'])}")


if __name__ == "__main__":
    main(parse_options(Arguments, "Runs both tracks of the demo and prints their tables."))


__all__ = [
    "ENCODING",
    "TESTING",
    "TRAINING",
    "Progress",
    "TrackSettings",
    "choose_weights",
    "gather",
    "load_features",
    "mean_validation",
    "rows_of_frozen",
    "rows_of_trained",
    "run_tracks",
    "track_folder",
    "validate_modes",
]
