"""Runs every benchmark and writes all tables into one page.

    python -m benchmarks.run_all                          # `make benchmark`: about ten minutes on two CPU cores
    python -m benchmarks.run_all --only alignment reading --output look.md

The benchmarks run one after the other in separate processes, each for about a minute. To repeat one, use the command
above its table; its --help lists other settings. Run them on an idle machine.
"""

import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from clipfsar.options import parse_options
from demo.synthetic import TINY_CLIP

FOLDER = Path(__file__).resolve().parent
# Title and command line of each table, in the order of the page.
TABLES = {
    "alignment": ("Alignment", []),
    "training_step": (
        "A training step compared with bare CLIP",
        ["--num_frames", "2", "--rounds", "6", "--dtype", "float32", "bfloat16"],
    ),
    "memory": ("Memory of a training step, computed", ["--backbones", "b32", "b16"]),
    "frozen_training": (
        "Training with a frozen visual tower",
        [
            "--model",
            str(TINY_CLIP.relative_to(FOLDER.parent)),
            "--whole_model",
            "--warmup_episodes",
            "4",
            "--pixel_episodes",
            "24",
        ],
    ),
    "reading": ("Reading sampled frames, and preprocessing", ["--num_videos", "5"]),
    "data_loading": ("Loaders", ["--num_videos", "8", "--rounds", "2", "--episodes", "6"]),
    "evaluation": ("Evaluation", ["--loop_episodes", "40"]),
    "heads": ("Heads", []),
    "inference": ("A query among enrolled classes", []),
    "latency": ("One clip through the pipeline", ["--rounds", "10"]),
    "startup": ("Import and loading", []),
    "precision": ("bfloat16 and int8 on a CPU", []),
    "episode_size": ("Cost as an episode grows", ["--rounds", "2"]),
    "scaling": ("At scale", []),
}


@dataclass
class Arguments:
    only: list[str] = field(
        default_factory=lambda: list(TABLES),
        metadata={"help": f"Benchmarks to run, of {', '.join(TABLES)}.", "choices": list(TABLES)},
    )
    output: str = field(default=str(FOLDER / "results.md"), metadata={"help": "File of the page."})


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _with_tables_apart(text: str) -> str:
    """The text with an empty line before and after each table, as Markdown needs it."""
    text = re.sub(r"(?m)^([^|\n].*)\n(?=\|)", r"\1\n\n", text)
    return re.sub(r"(?m)^(\|.*)\n(?=[^|\n])", r"\1\n\n", text)


def main(arguments: Arguments):
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "datasets", "numpy", "av"))
    page = [
        "# Benchmarks",
        f"Written by `make benchmark` on {date.today()}: {processor_name()} ({os.cpu_count()} cores), {device}, "
        f"{platform.system()}, Python {platform.python_version()}, {versions}. The measurements of one table take "
        "turns in one process. Between tables and between machines, compare only ratios.",
    ]
    failed, start = [], time.perf_counter()
    for name in (progress := tqdm(arguments.only, unit="table")):
        progress.set_description(name)
        title, options = TABLES[name]
        command = [sys.executable, "-m", f"{FOLDER.name}.{name}", *options]
        run = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
        page += [f"## {title}", f"`{' '.join(['python', '-m', f'benchmarks.{name}', *options])}`"]
        if run.returncode:
            failed.append(name)
            tqdm.write(run.stderr, file=sys.stderr)
            page.append(f"Failed, exit status {run.returncode}.")
        else:
            page.append(_with_tables_apart(run.stdout.strip()))
        picture = FOLDER / f"{name}.png"
        if picture.is_file() and not run.returncode:
            page.append(f"![{title}]({os.path.relpath(picture, Path(arguments.output).parent)})")
    page.append(f"All benchmarks took {(time.perf_counter() - start) / 60:.0f} minutes.")
    Path(arguments.output).write_text("\n\n".join(page) + "\n")
    print(f"The tables are in {arguments.output}.")
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed; see their output above.")


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
