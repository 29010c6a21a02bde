"""Time until a model can be used: imports and loading, compared with transformers' CLIP, as a Markdown table.

    python -m benchmarks.startup                 # ViT-B/32, about 90 s
    python -m benchmarks.startup --rounds 10 --clock process_time    # on a busy machine

The counterpart in transformers gives the same: a model, or a model with its processor. "Import" and "first load" are
costs of a fresh Python process; each case of a round runs in a separate process. "Loading again" is `from_pretrained`
in a process that has loaded the model before; the models take turns. Weights are random and in the page cache:
`from_pretrained` maps them, and the first forward reads them. A ratio is the median of the rounds' ratios.
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

# Name -> (imports, loading); `clip` and `fsar` are folders. Each of transformers' cases comes before its counterparts.
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

# Programs of the child processes. Inputs: cases, folders, rounds and the name of the clock. Output: seconds.
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
# No turn may affect the next one. Models are in reference cycles, so they are collected. Loading compiles a pattern per
# weight, which `re` would cache for models with the same names, so this cache is cleared.
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
    rounds: int = field(default=2, metadata={"help": "Fresh processes of each case."})
    load_rounds: int = field(default=20, metadata={"help": "Rounds of loading again, after one warm-up round."})
    clock: str = field(
        default="perf_counter",
        metadata={
            "choices": ["perf_counter", "process_time"],
            "help": "Wall-clock time, or CPU time of the process, which other programs disturb less.",
        },
    )


def run(program: str, cases: list[str], folder: Path, clock: str, rounds: int = 0) -> list:
    """Runs `program` in a child process and returns its output, read as JSON."""
    inputs = [CASES[name] for name in cases], [str(folder / "clip"), str(folder / "fsar")], rounds, clock
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(folder / "modules"),  # transformers copies custom code there
        "HF_HUB_OFFLINE": "1",
    }
    # All code runs from bytecode, as usual: a warm-up writes the bytecode of this checkout and of the copied code.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", program, json.dumps(inputs)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        sys.exit(f"error: a child process ended with code {child.returncode}:\n{child.stderr}")
    return json.loads(child.stdout)


def save_models(folder: Path) -> None:
    """Saves a plain CLIP and a CLIP-FSAR model with its code, both with random weights and their processors."""
    logging.disable_progress_bar()
    CLIPModel(CLIPConfig()).save_pretrained(folder / "clip")
    image_processor = CLIPImageProcessor()
    tokenizer = CLIPTokenizer.from_pretrained(TINY_CLIP)  # small vocabulary; the only one offline
    for part in (image_processor, tokenizer):
        part.save_pretrained(folder / "clip")
    processor = CLIPFSARProcessor(image_processor, tokenizer)
    save_with_pipeline(CLIPFSARModel(CLIPFSARConfig()), processor, folder / "fsar")


def cells(times: dict[str, list[float]], unit: str) -> dict[str, str]:
    """Medians in seconds or milliseconds; ours also with the ratio to the nearest row of transformers' CLIP above."""
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
