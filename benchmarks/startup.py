"""Time until a model can be used: imports and loading, beside those of transformers' own CLIP, as a Markdown table.

    python -m benchmarks.startup                 # ViT-B/32, some 90 s
    python -m benchmarks.startup --rounds 10 --clock process_time    # on a busy machine

The counterpart in transformers gives the same: a model, or a model and what feeds it. "Import" and "first load" are
what a fresh Python process pays once; in each round all take their turn in a process of their own. "Loading again" is
`from_pretrained` in one process that has done it before, the models in turns. Weights are random and lie in the page
cache: `from_pretrained` maps them, and the first forward reads them. A ratio is the median of the rounds' ratios.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.utils import logging

from clipfsar.options import parse_options
from configuration_clipfsar import CLIPFSARConfig
from demo.synthetic import TINY_CLIP
from modeling_clipfsar import CLIPFSARModel
from pipeline_clipfsar import save_with_pipeline
from processing_clipfsar import CLIPFSARProcessor

# Name -> what is imported, what is loaded; `clip` and `fsar` are folders. Transformers' own stand before their like.
CASES = {
    "CLIPModel": ("from transformers import CLIPModel", "CLIPModel.from_pretrained(clip)"),
    "CLIPFSARModel": ("from modeling_clipfsar import CLIPFSARModel", "CLIPFSARModel.from_pretrained(fsar)"),
    "AutoModel, trust_remote_code=True": (
        "from transformers import AutoModel",
        "AutoModel.from_pretrained(fsar, trust_remote_code=True)",
    ),
    "CLIPModel, CLIPImageProcessor, CLIPTokenizer": (
        "from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer",
        "[part.from_pretrained(clip) for part in (CLIPModel, CLIPImageProcessor, CLIPTokenizer)]",
    ),
    "CLIPFSARModel, CLIPFSARProcessor": (
        "from modeling_clipfsar import CLIPFSARModel; from processing_clipfsar import CLIPFSARProcessor",
        "[part.from_pretrained(fsar) for part in (CLIPFSARModel, CLIPFSARProcessor)]",
    ),
    "the same, and the pipeline of the two": (
        "from modeling_clipfsar import CLIPFSARModel; from processing_clipfsar import CLIPFSARProcessor\n"
        "from pipeline_clipfsar import FewShotVideoClassificationPipeline as Pipeline",
        "Pipeline(CLIPFSARModel.from_pretrained(fsar), CLIPFSARProcessor.from_pretrained(fsar))",
    ),
}
MODELS = list(CASES)[:3]

# Programs of the child processes: cases, folders, rounds and the clock's name in, seconds out.
FRESH = """
import json, sys, time
[(imports, load)], (clip, fsar), _, clock = json.loads(sys.argv[1])
now = getattr(time, clock)
start = now()
exec(imports)
imported = now()
exec(load)
print(json.dumps([imported - start, now() - imported]))
"""
# Nobody's turn pays for another's: models stand in cycles, and loading compiles a pattern per weight, which stays in
# the cache of `re` for a model with the same names.
AGAIN = """
import gc, json, re, sys, time
cases, (clip, fsar), rounds, clock = json.loads(sys.argv[1])
now = getattr(time, clock)
for imports, _ in cases:
    exec(imports)
gc.disable()
gc.freeze()
seconds = [[] for _ in cases]
for turn in range(rounds + 1):
    for (_, load), durations in zip(cases, seconds):
        gc.collect()
        re.purge()
        start = now()
        exec(load)
        durations.append(now() - start)
print(json.dumps([durations[1:] for durations in seconds]))
"""


@dataclass
class Arguments:
    rounds: int = field(default=2, metadata={"help": "Fresh processes of each."})
    load_rounds: int = field(default=20, metadata={"help": "Rounds of loading again; one more is not counted."})
    clock: str = field(
        default="perf_counter",
        metadata={
            "choices": ["perf_counter", "process_time"],
            "help": "Time that passes, or what the process itself computes: less disturbed by others.",
        },
    )


def run(program: str, cases: list[str], folder: Path, clock: str, rounds: int = 0) -> list:
    """What a child process of `program` prints, read as JSON."""
    inputs = [CASES[name] for name in cases], [str(folder / "clip"), str(folder / "fsar")], rounds, clock
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(folder / "modules"),  # where custom code is copied to
        "HF_HUB_OFFLINE": "1",
    }
    # As usual, all of it runs from bytecode: a warm-up writes that of this checkout and of the copied code.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", program, json.dumps(inputs)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        sys.exit(f"error: a child process ended with code {child.returncode}:\n{child.stderr}")
    return json.loads(child.stdout)


def save_models(folder: Path) -> None:
    """A plain CLIP and a CLIP-FSAR with all its code, of random weights, each with what feeds it."""
    logging.disable_progress_bar()
    CLIPModel(CLIPConfig()).save_pretrained(folder / "clip")
    image_processor = CLIPImageProcessor()
    tokenizer = CLIPTokenizer.from_pretrained(TINY_CLIP)  # of few words: there is no other offline
    for part in (image_processor, tokenizer):
        part.save_pretrained(folder / "clip")
    processor = CLIPFSARProcessor(image_processor, tokenizer)
    save_with_pipeline(CLIPFSARModel(CLIPFSARConfig()), processor, folder / "fsar")


def cells(times: dict[str, list[float]], unit: str) -> dict[str, str]:
    """Medians in seconds or milliseconds, and behind one of ours its ratio to the row of transformers' own above it."""
    found = {}
    for name, seconds in times.items():
        median = statistics.median(seconds)
        found[name] = f"{median:.2f} s" if unit == "s" else f"{1000 * median:.0f} ms"
        if name.startswith("CLIPModel"):
            counterpart = seconds
        else:
            ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds, counterpart, strict=True))
            found[name] += f" ({ratio:.2f} x)"
    return found


def main(arguments: Arguments):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_models(folder)
        run(
            AGAIN, list(CASES), folder, arguments.clock
        )  # warms up: bytecode, the copy of the custom code, the page cache
        fresh = {name: [] for name in CASES}
        for _ in range(arguments.rounds):
            for name, times in fresh.items():
                times.append(run(FRESH, [name], folder, arguments.clock))
        again = dict(zip(MODELS, run(AGAIN, MODELS, folder, arguments.clock, arguments.load_rounds), strict=True))

    imports = cells({name: [imported for imported, _ in times] for name, times in fresh.items()}, "s")
    ready = cells({name: [sum(pair) for pair in times] for name, times in fresh.items()}, "s")
    again = cells(again, "ms")
    print("| | import | import and first load | loading again |\n|---|---|---|---|")
    for name in CASES:
        print(f"| {name} | {imports[name]} | {ready[name]} | {again.get(name, '')} |")
    print(
        f"\nViT-B/32, float32, {platform.machine()} CPU, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {arguments.rounds} rounds of fresh "
        f"processes, {arguments.load_rounds} of loading again, {arguments.clock}, {date.today()}."
    )


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
