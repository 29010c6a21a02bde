"""Options of `clipfsar reproduce`: those of `clipfsar train`, and what it does before and after training."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from choices_clipfsar import FRAME_STORES
from clipfsar.names import find_model
from clipfsar.options import check_least, check_no_overwriting, option, parse_options
from clipfsar.presets import PRESETS, benchmark_on
from clipfsar.training.arguments import MAY_CHANGE_ON_RESUME, EpisodicTrainingArguments
from paths_clipfsar import check_path, public_name

SHOTS = [1, 3, 5]  # of the paper's results
# What the results of a run do not depend on.
OF_NO_EFFECT = MAY_CHANGE_ON_RESUME - {"dataset", "mixed_precision", "n_shot", "test_episodes", "inference_modes"}
# Options that the report does not list among the differences: where the data are, what its tables and its part on
# videos show, and how it is made.
TOLD_ELSEWHERE = {
    *("dataset", "video_column", "label_column", "video_root", "official_splits", "class_names_file"),
    *("validation_class_names", "skip_bad_videos", "frame_store"),
    *("seed", "seeds", "select_on", "mimic_selection", "published", "hub_dataset", "plan"),
}
PUBLISHED = [name for name, preset in PRESETS.items() if preset.lists_page is None]


@dataclass
class ReproduceArguments(EpisodicTrainingArguments):
    """Settings of a reproduction. The options of training have their names and meaning; a run resumes by itself."""

    # The data; see `clipfsar prepare`
    video_root: str | None = option(
        None, "Folder that the paths in the official lists are relative to.", unused_with="dataset"
    )
    official_splits: str | None = option(
        None, "Folder of the official lists. Default: downloaded once.", unused_with="dataset"
    )
    class_names_file: str | None = option(
        None, "YAML file of the official program with the class names.", unused_with="dataset"
    )
    validation_class_names: str | None = option(
        None, "File of validation class names, or Something-Something's JSON file of labels.", unused_with="dataset"
    )
    skip_bad_videos: bool = option(
        False, "Leave out missing and unreadable videos; the report lists them.", unused_with="dataset"
    )
    frame_store: str = option(
        "jpeg",
        "Frames to keep in the data set: jpeg, raw, or none to read files.",
        FRAME_STORES,
        unused_with="dataset",
    )
    frame_size: int | None = option(
        None,
        "Input size that frames are kept for. Default: the model's.",
        needs="frame_store",
        unused_with="dataset",
        least=1,
    )

    # What is run and reported
    seed: int = option(0, "Seed to train with, for one run.", unused_with="seeds", least=0)
    seeds: list[int] = option([], "Seeds to train with, one run for each. Default: the benchmark's seed.", least=0)
    mimic_selection: bool = option(
        False,
        "Also train runs that select on the test split, as the official program does. Doubles the training.",
        unused_with="select_on=test",
    )
    published: str | None = option(None, "JSON file of published figures to show beside the results (see the docs).")
    hub_dataset: str | None = option(
        None, "Hub id of the benchmark's data set: writes .eval_results for it into the folders of the models."
    )
    plan: bool = option(False, "Measure the cost of an episode, print steps, memory, disk and hours, and stop.")

    def __post_init__(self):
        super().__post_init__()
        check_least(self)
        if self.benchmark is None:
            raise ValueError(f"Name a benchmark: clipfsar reproduce {'|'.join(PUBLISHED)} --video_root VIDEOS.")
        if self.benchmark not in PUBLISHED:
            raise ValueError(
                f"The paper has no results on {self.benchmark} to reproduce, only on {', '.join(PUBLISHED)}: use "
                f"clipfsar train --benchmark {self.benchmark}."
            )
        if self.dataset is None and self.video_root is None:
            raise ValueError(
                "--video_root is missing: give the folder of the benchmark's videos, or a prepared data set as "
                "--dataset."
            )
        if self.push_to_hub is not None:
            raise ValueError("--push_to_hub plays no part here: read the report, then use clipfsar push.")
        reports = [str(Path(self.output_dir) / name) for name in ("report.json", "report.md")]
        check_no_overwriting({"output_dir": reports}, {"published": self.published, "class_texts": self.class_texts})

    def check_files(self):
        """Raises `FileNotFoundError` for a missing folder, file or model."""
        for name in ("video_root", "official_splits", "class_names_file", "validation_class_names", "published"):
            check_path(name, getattr(self, name), is_local=True)
        self.model = find_model("model", self.model) or self.model

    @property
    def data(self) -> str:
        """The prepared data set."""
        return self.dataset or str(Path(self.output_dir) / "data")

    def prepare_command(self) -> list[str]:
        """The options of `clipfsar prepare` for the data."""
        values: dict = {"benchmark": self.benchmark, "output_dir": self.data}
        names = ("video_root", "official_splits", "class_names_file", "validation_class_names", "skip_bad_videos")
        values |= {name: getattr(self, name) for name in names}
        if self.frame_store == "none":
            values["skip_reading"] = True
        else:
            kept = ("frame_store", "preprocessing", "frame_size", "decoder", "seconds_per_video")
            values |= {name: getattr(self, name) for name in kept} | {"num_workers": max(1, self.num_workers)}
            values["model"] = self.model if self.frame_size is None else None  # whose input size the store is for
        return [f"--{name}={value}" for name, value in values.items() if value is not None]

    def runs(self) -> list[EpisodicTrainingArguments]:
        """The settings of each training run: per seed, then the same selected on the test split."""
        common = {item.name: getattr(self, item.name) for item in fields(EpisodicTrainingArguments)}
        first = EpisodicTrainingArguments(**common | {"dataset": self.data, "resume": True})
        selections = [self.select_on, *(["test"] if self.mimic_selection and self.select_on != "test" else [])]
        return [
            replace(first, seed=seed, select_on=split, output_dir=str(Path(self.output_dir) / _run_name(seed, split)))
            for split in selections
            for seed in self.seeds or [self.seed]
        ]


def _run_name(seed: int, select_on: str) -> str:
    return f"seed_{seed}" if select_on == "validation" else f"seed_{seed}_selected_on_{select_on}"


DESCRIPTION = """Reproduces a benchmark: prepares the data, trains, tests 1-, 3- and 5-shot in three modes, and reports.

    clipfsar reproduce hmdb51 --video_root VIDEOS --plan        # what it will take, measured on this machine
    clipfsar reproduce hmdb51 --video_root VIDEOS
    clipfsar reproduce hmdb51 --video_root VIDEOS --seeds 0 1 2 --mimic_selection
    accelerate launch -m clipfsar reproduce ssv2_small --video_root VIDEOS

The same command continues after a stop, at every step. The report has our numbers with intervals, what was selected on
what, differences from the official protocol, missing videos, machine and time. Options override the benchmark's
settings; the report lists them.
"""


def parse_arguments(command_line: Sequence[str] | None = None, prog: str | None = None) -> ReproduceArguments:
    """The settings of a command line, which may begin with the name of a benchmark."""
    command_line = list(sys.argv[1:] if command_line is None else command_line)
    if command_line and not command_line[0].startswith("-"):
        command_line[:1] = ["--benchmark", command_line[0]]
    benchmark, defaults = benchmark_on(command_line), {"n_shot": SHOTS}
    if benchmark:
        known = {item.name for item in fields(ReproduceArguments)}
        preset = {name: value for name, value in PRESETS[benchmark].as_defaults().items() if name in known}
        defaults |= preset | {"output_dir": f"reproductions/{benchmark}"}
    return parse_options(ReproduceArguments, DESCRIPTION, command_line, prog, defaults)


def overridden(args: ReproduceArguments) -> dict:
    """Settings that differ from the benchmark's and can change the numbers: name -> (the benchmark's, given)."""
    preset = parse_arguments([args.benchmark or "", f"--dataset={args.data}"])
    names = [item.name for item in fields(args) if item.name not in TOLD_ELSEWHERE | OF_NO_EFFECT]
    pairs = {name: (getattr(preset, name), getattr(args, name)) for name in names}
    return {
        name: (_in_public(name, official), _in_public(name, given))
        for name, (official, given) in pairs.items()
        if official != given
    }


def _in_public(name: str, value: Any) -> Any:
    """A setting without folders of this machine: the report is for others."""
    return public_name(value) if name in ("model", "class_texts") and value is not None else value


__all__ = ["OF_NO_EFFECT", "SHOTS", "ReproduceArguments", "overridden", "parse_arguments"]
