"""The report of a reproduction: Markdown, JSON, and `.eval_results` for the Hub."""

import json
import math
import statistics
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import yaml

from clipfsar.checkpoints.model_card import SELECTED_ON_TEST
from clipfsar.data.older_reader import REPORT
from clipfsar.json_files import read_json
from clipfsar.reproduction.arguments import ReproduceArguments, overridden
from paths_clipfsar import public_name, replace_file, write_text

# How every reproduction differs from the official program; docs/official/differences.md has the whole list.
DIFFERENCES = (
    "Models are selected on the validation classes, unless a table says otherwise. The official program selects on the "
    "test split.",
    "The official settings are for CLIP's ResNet-50. Other backbones use them untuned.",
    "The test reads the central frame of each segment (or of the interval). The official test draws frames at random.",
    "All processes draw different episodes. In the official program all four draw the same.",
    "Accuracies have 95% intervals over the episodes. The official program reports none.",
)


def in_words(hours: float) -> str:
    """A duration for people, in hours or minutes."""
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def read_published(path: str | None) -> dict | None:
    """Published figures: `{"source": ..., "table": ..., "accuracy": {mode: {shots: percent}}}`.

    Raises:
        ValueError: When the source or the table is missing: a figure without its place cannot be checked.
    """
    if path is None:
        return None
    published = read_json(Path(path), "write it anew")
    for name in ("source", "table", "accuracy"):
        if not published.get(name):
            raise ValueError(f"--published {path} has no {name!r}: say the source and the table of the figures.")
    return published


def report_data(args: ReproduceArguments, finished: Sequence[dict], published: dict | None) -> dict:
    """Everything that the report says, as plain values.

    Args:
        finished: The record of each run, see `Reproduction`.
    """
    preparation = Path(args.data) / REPORT
    prepared = read_json(preparation, "prepare the data again") if preparation.is_file() else {}
    return {
        "benchmark": args.benchmark,
        "date": date.today().isoformat(),
        "model": public_name(args.model),
        # Their settings and data stay in the runs' folders: settings may name folders of this machine.
        "runs": [{name: run[name] for name in run if name not in ("settings", "data")} for run in finished],
        "over_seeds": [row for select_on in _selections(finished) for row in _over_seeds(finished, select_on)],
        "published": published,
        "options_that_differ": {name: list(values) for name, values in overridden(args).items()},
        "videos_per_split": {
            split: sum(classes.values()) for split, classes in prepared.get("videos_per_class", {}).items()
        },
        "left_out_videos": [
            {name: bad[name] for name in ("split", "class", "problem")} | {"file": Path(bad["path"] or "").name}
            for bad in prepared.get("bad_videos", [])
        ],
        "frame_store": prepared.get("settings", {}).get("frame_store"),
    }


def _selections(finished: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(run["selected_on"] for run in finished))


def _over_seeds(finished: Sequence[dict], select_on: str) -> list[dict]:
    """Mean and standard deviation over the seeds, per number of shots and mode. One seed has no deviation (None)."""
    values: dict[tuple, list[float]] = {}
    for run in finished:
        if run["selected_on"] == select_on:
            for result in run["results"]:
                values.setdefault((result["n_shot"], result["inference_mode"]), []).append(result["accuracy"])
    return [
        {
            "selected_on": select_on,
            "n_shot": n_shot,
            "inference_mode": mode,
            "mean": statistics.fmean(accuracies),
            "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "num_seeds": len(accuracies),
        }
        for (n_shot, mode), accuracies in values.items()
    ]


def markdown(data: dict) -> str:
    """The report for people."""
    lines = [f"# CLIP-FSAR on {data['benchmark']}: a reproduction", ""]
    lines += [f"Model: `{data['model']}`. {data['date']}. Accuracies in percent, measured on this data set."]
    for select_on in _selections(data["runs"]):
        lines += ["", f"## Selected on {select_on}", ""]
        lines += [f"**{SELECTED_ON_TEST}**", ""] if select_on == "test" else []
        lines += _table(data, select_on)
        lines += ["", *_selected(data, select_on)]
    lines += ["", *_published_words(data["published"])]
    lines += ["", "## Differences from the official protocol", "", *(f"- {line}" for line in DIFFERENCES)]
    if data["frame_store"] == "jpeg":
        lines.append("- Frames come from a store of JPEG images, so they differ slightly from those of the files.")
    for name, (preset, given) in data["options_that_differ"].items():
        lines.append(f"- `--{name}`: {given} instead of {preset}.")
    lines += ["", "## Videos", "", *_videos(data), "", "## Machine and time", ""]
    for run in data["runs"]:
        machine, duration = run["machine"], in_words(run["seconds"] / 3600)
        lines.append(
            f"- Seed {run['seed']}, selected on {run['selected_on']}: {duration} in the last start, "
            f"{run['num_processes']} process(es) on {machine['device']}, {machine['cpu_count']} CPU cores, torch "
            f"{machine['torch']}, clipfsar {machine['clipfsar']}."
        )
    return "\n".join(lines) + "\n"


def _table(data: dict, select_on: str) -> list[str]:
    runs = [run for run in data["runs"] if run["selected_on"] == select_on]
    published = data["published"]
    heads = ["way", "shot", "mode", *(f"seed {run['seed']}" for run in runs)]
    heads += ["mean over seeds ± deviation"] if len(runs) > 1 else []
    heads += [f"published ({published['table']})"] if published else []
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    over_seeds = [row for row in data["over_seeds"] if row["selected_on"] == select_on]
    for row, results in zip(over_seeds, zip(*(run["results"] for run in runs), strict=True), strict=True):
        cells = [str(results[0]["n_way"]), str(row["n_shot"]), row["inference_mode"]]
        cells += [f"{result['accuracy']:.1f} {_interval(result['interval'])}" for result in results]
        cells += [f"{row['mean']:.1f} ± {row['deviation']:.1f}"] if len(runs) > 1 else []
        if published:
            figure = published["accuracy"].get(row["inference_mode"], {}).get(str(row["n_shot"]))
            cells += ["-" if figure is None else f"{figure}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _interval(interval: float | None) -> str:
    return "" if interval is None or math.isnan(interval) else f"± {interval:.1f}"


def _selected(data: dict, select_on: str) -> list[str]:
    lines = []
    for run in (run for run in data["runs"] if run["selected_on"] == select_on):
        best, results = run["best"], run["results"]
        protocol = f"{results[0]['n_episodes']:,} test episodes" if results else "no test"
        if best is None:
            lines.append(
                f"- Seed {run['seed']}: there was no {select_on} split, so the last model was tested; {protocol}."
            )
            continue
        lines.append(
            f"- Seed {run['seed']}: the model of episode {best['episode']:,}, the best of all validations on the "
            f"{select_on} split ({best['accuracy']:.1f} ± {best['interval']:.1f}); {protocol}."
        )
    return lines


def _published_words(published: dict | None) -> list[str]:
    if published is None:
        return ["Published figures: not given (`--published`). The paper's tables: https://arxiv.org/abs/2303.02982."]
    return [f"Published figures are not ours: {published['table']} of {published['source']}."]


def _videos(data: dict) -> list[str]:
    if not data["videos_per_split"]:
        return ["The data set was not prepared by this command; see its own report."]
    used = ", ".join(f"{number:,} in {split}" for split, number in data["videos_per_split"].items())
    left_out = data["left_out_videos"]
    lines = [f"Used: {used}. Left out: {len(left_out):,}."]
    lines += [f"- {bad['split']}, {bad['class']}: {bad['file']} ({bad['problem']})" for bad in left_out[:20]]
    return lines + ([f"- and {len(left_out) - 20:,} more; see report.json"] if len(left_out) > 20 else [])


def write_report(args: ReproduceArguments, finished: Sequence[dict], published: dict | None) -> Path:
    """Writes `report.md` and `report.json`; with `--hub_dataset` also `.eval_results` of each model."""
    data, folder = report_data(args, finished, published), Path(args.output_dir)
    for name, text in (("report.json", json.dumps(data, indent=2) + "\n"), ("report.md", markdown(data))):
        with replace_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    if args.hub_dataset is not None:
        for run in finished:
            write_eval_results(folder / run["folder"] / "best", args.hub_dataset, run)
    return folder / "report.md"


def write_eval_results(folder: Path, hub_dataset: str, run: dict):
    """Results in the Hub's form, https://huggingface.co/docs/hub/eval-results: a list of values of one data set."""
    entries = [
        {
            "dataset": {
                "id": hub_dataset,
                "task_id": f"{result['n_way']}-way_{result['n_shot']}-shot_{result['inference_mode']}",
            },
            "value": round(result["accuracy"], 2),
            "date": run["date"],
            "notes": f"{result['n_episodes']} episodes, 95% interval {_interval(result['interval'])}, "
            f"seed {run['seed']}, selected on {run['selected_on']}",
        }
        for result in run["results"]
    ]
    path = folder / ".eval_results" / f"{hub_dataset.split('/')[-1]}.yaml"
    path.parent.mkdir(exist_ok=True)
    write_text(path, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))


__all__ = ["in_words", "markdown", "read_published", "report_data", "write_eval_results", "write_report"]
