"""`clipfsar reproduce`: prepares, trains, tests and reports a benchmark, and continues where it stopped."""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from clipfsar.data.arguments import parse_arguments as parse_prepare_arguments
from clipfsar.data.older_reader import REPORT
from clipfsar.data.prepare import main as prepare
from clipfsar.data.splits import load_video_splits
from clipfsar.data.tables import read_class_texts
from clipfsar.data.video_split import VideoSplit
from clipfsar.json_files import read_json
from clipfsar.processes import first_process_decides
from clipfsar.reproduction.arguments import OF_NO_EFFECT, ReproduceArguments
from clipfsar.reproduction.plan import count_videos, plan
from clipfsar.reproduction.report import read_published, write_report
from clipfsar.training.accelerator import make_accelerator
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.program import run as train_and_test
from clipfsar.training.resuming import check_same_data
from clipfsar.training.run_folder import complete_folder
from paths_clipfsar import replace_file
from processing_clipfsar import CLIPFSARProcessor

FINISHED = "reproduction.json"  # in the folder of a run: its record, once it is trained and tested
_OF_THE_DATA = ("official_splits", "class_names_file", "validation_class_names", "frame_store", "frame_size")


class Reproduction:
    """The steps of a reproduction. Each leaves a file when it is done; a step with its file is not done again."""

    def __init__(self, args: ReproduceArguments):
        self.args, self.runs = args, args.runs()
        self.published = read_published(args.published)
        self.accelerator = make_accelerator(self.runs[0])
        self.is_main = self.accelerator.is_main_process

    def run(self) -> Path | None:
        """Returns the report, on the main process.

        Raises:
            ValueError: When several processes would have to train several runs, or when a finished run was trained with
                other settings, data or class texts.
        """
        to_do = [run for run in self.runs if not _is_finished(run)]
        if self.accelerator.num_processes > 1 and len(to_do) > 1:
            raise ValueError(
                f"{len(to_do)} runs are left, but {self.accelerator.num_processes} processes train one run per start: "
                "give one --seeds per start, and at last all of them for the report."
            )
        first_process_decides(self.accelerator, self.prepare)
        done = [run for run in self.runs if run not in to_do]
        first_process_decides(self.accelerator, lambda: check_inputs(done))
        for number, settings in enumerate(self.runs, start=1):
            if settings in to_do:
                self._say(f"Run {number} of {len(self.runs)}: {settings.output_dir}")
                self.train(settings)
        if not self.is_main:
            return None
        finished = [read_json(Path(run.output_dir) / FINISHED, "delete the run's folder") for run in self.runs]
        report = write_report(self.args, finished, self.published)
        self._say(f"\n{report.read_text(encoding='utf-8')}\nReport: {report} and report.json next to it.")
        return report

    def prepare(self):
        """Prepares the data set, unless it is there.

        Raises:
            ValueError: When it was prepared with other options.
        """
        args = self.args
        if args.dataset is not None:
            return
        wanted, report = parse_prepare_arguments(args.prepare_command()), Path(args.data) / REPORT
        if not report.is_file():
            self._say(f"Preparing {args.benchmark} in {args.data}")
            prepare(wanted)
            return
        prepared = read_json(report, f"delete {args.data}, and all videos are read again")["settings"]
        given = {name: getattr(wanted, name) for name in _OF_THE_DATA if name in prepared}
        different = [
            f"--{name} {prepared[name]} (now {value})"
            for name, value in given.items()
            if value not in (None, prepared[name])
        ]
        if different:
            raise ValueError(
                f"{args.data} was prepared with {', '.join(different)}: use the same options, delete the folder, or "
                "name another --output_dir."
            )

    def train(self, settings: EpisodicTrainingArguments):
        """Trains and tests one run, or continues it, and records it."""
        start, num_processes = time.monotonic(), self.accelerator.num_processes
        results = train_and_test(settings)
        if not self.is_main:
            return
        folder = Path(settings.output_dir)
        rows = [asdict(result.summary()) for result in results]
        record = {
            "folder": folder.name,
            "settings": _settings(settings),
            "data": _progress(folder).get("data"),
            "seed": settings.seed,
            "selected_on": settings.select_on,
            "best": _best(folder),
            "results": [row | {"interval": _without_nan(row["interval"])} for row in rows],
            "seconds": time.monotonic() - start,
            "num_processes": num_processes,
            "machine": _machine(),
            "date": date.today().isoformat(),
        }
        with replace_file(folder / FINISHED) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n")

    def _say(self, text: str):
        if self.is_main:
            print(text, flush=True)


def _settings(run: EpisodicTrainingArguments) -> dict:
    """The settings that the results of a run depend on."""
    return {name: value for name, value in asdict(run).items() if name not in OF_NO_EFFECT}


def _is_finished(run: EpisodicTrainingArguments) -> bool:
    """Whether a run was trained and tested with these settings. If not, a start trains it longer or tests it again.

    Raises:
        ValueError: When it was trained with other settings.
    """
    path = Path(run.output_dir) / FINISHED
    if not path.is_file():
        return False
    tested = read_json(path, "delete the run's folder").get("settings")
    if tested is None:  # of an earlier version
        return False
    run.check_same_run(tested)
    before, now = tested.get("mixed_precision"), run.mixed_precision
    if before != now:
        before, now = (f"--mixed_precision {one}" if one else "no --mixed_precision" for one in (before, now))
        raise ValueError(
            f"The run in {run.output_dir} was trained with {before} (now {now}): use the same, or another --output_dir."
        )
    return tested == json.loads(json.dumps(_settings(run)))


def check_inputs(finished: Sequence[EpisodicTrainingArguments]) -> None:
    """Compares data and class texts with those that finished runs were trained and tested with.

    A finished run is not opened again, so nothing else would notice that their files hold something else now.

    Raises:
        ValueError: When they differ; the message says how.
    """
    if not finished:
        return
    columns = (finished[0].video_column, finished[0].label_column)  # all runs are on the same data
    loaded = load_video_splits(finished[0].dataset or "", *columns)
    splits = {name: VideoSplit(dataset, *columns, name) for name, dataset in loaded.items()}
    for run in finished:
        folder = Path(run.output_dir)
        record, progress = read_json(folder / FINISHED, "delete the run's folder"), _progress(folder)
        if record.get("data"):  # earlier versions recorded the data in the state only
            progress = progress | {"data": record["data"]}
        used = {"train", run.select_on, *(["test"] if run.test_episodes else [])}
        given = {name: split for name, split in splits.items() if name in used}
        for note in check_same_data(progress, given, run):
            print(f"warning: {note}", file=sys.stderr)
        _check_class_texts(run)


def _check_class_texts(run: EpisodicTrainingArguments) -> None:
    if run.class_texts is None:
        return
    trained_with = CLIPFSARProcessor.from_pretrained(Path(run.output_dir) / "best").class_texts
    if read_class_texts(run.class_texts) != trained_with:
        raise ValueError(
            f"The run in {run.output_dir} was trained with other class texts than {run.class_texts} holds now: put "
            "back the file, or use another --output_dir."
        )


def _progress(folder: Path) -> dict:
    """What the run in a folder recorded with its last checkpoint; empty if its state is gone."""
    state = complete_folder(folder / "state")
    return read_json(state / "progress.json", "delete the run's folder") if state else {}


def _best(folder: Path) -> dict | None:
    """The validation that selected the model; None if there was none."""
    best = _progress(folder).get("best")
    return best and best | {"interval": _without_nan(best["interval"]) or 0.0}


def _without_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _machine() -> dict:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "device": device,
        "cpu_count": os.cpu_count(),
        "torch": torch.__version__,
        "clipfsar": version("clipfsar"),
    }


def main(args: ReproduceArguments):
    if args.plan:
        for line in count_videos(args):
            print(line, flush=True)  # before the slow measurement
        print("\n".join(plan(args)))
        return
    Reproduction(args).run()


__all__ = ["FINISHED", "Reproduction", "main"]
