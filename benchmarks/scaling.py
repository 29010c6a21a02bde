"""Time and memory of work that grows with classes, videos and files: two sizes or more of each, as a table and a plot.

    python -m benchmarks.scaling                                             # small sizes, a few minutes
    python -m benchmarks.scaling --sizes large --before ../older_checkout    # both checkouts in turns

Each number comes from a process of its own. Time is CPU time of one thread, which other programs hardly disturb. Memory
is the growth of the peak (`getrusage`) during the work; data that the work starts from are made before. The exponent
compares with the size before: 1 is linear, 2 is quadratic. Work that takes longer than `--seconds` is stopped and
marked with ">"; its memory is the peak until then. The largest sizes are measured in this checkout only. Weights and
features are random: the cost does not depend on them.
"""

import itertools
import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch

from clipfsar.options import parse_options

FRAMES, WIDTH, CLIPS = 8, 512, 5
Work = Callable[[], object]


@dataclass(frozen=True)
class Law:
    """Work at several sizes.

    Args:
        title: What it is.
        unit: What the size counts.
        small, large: Sizes.
        largest: One more size, which older checkouts have no memory or time for.
        prepare: Makes the work of one size, in an empty folder.
    """

    title: str
    unit: str
    small: tuple[int, ...]
    large: tuple[int, ...]
    prepare: Callable[[int, Path], Work]
    largest: int | None = None

    def sizes(self, name: str) -> list[int]:
        largest = [self.largest] if name == "large" and self.largest else []
        return [*(self.small if name == "small" else self.large), *largest]


@dataclass
class Arguments:
    only: list[str] = field(default_factory=lambda: list(LAWS), metadata={"help": "Laws to measure.", "choices": []})
    sizes: str = field(default="small", metadata={"help": "Sizes to measure.", "choices": ["small", "large"]})
    before: str | None = field(default=None, metadata={"help": "An older checkout to measure as well."})
    seconds: int = field(default=60, metadata={"help": "CPU seconds after which a measurement is stopped."})
    processes: int = field(default=1, metadata={"help": "Laws to measure at a time."})
    output_dir: str = field(default=str(Path(__file__).parent), metadata={"help": "Folder for scaling.png."})


# --- the laws: they run in this checkout and in older ones ------------------------------------------------------------


def _model():
    from transformers import CLIPConfig

    from configuration_clipfsar import CLIPFSARConfig
    from modeling_clipfsar import CLIPFSARModel

    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip_config = CLIPConfig(text_config=tower, vision_config=tower, projection_dim=WIDTH)
    return CLIPFSARModel(CLIPFSARConfig(clip_config=clip_config, num_frames=FRAMES)).eval()


def _snapshot(num_classes: int, clips: int):
    """A maker of a snapshot of random classes, and its model."""
    from enrolled_clipfsar import Snapshot
    from support_set_clipfsar import EnrolledClass

    model, texts = _model(), torch.randn(num_classes, WIDTH)
    names = [f"clip {number}" for number in range(clips)]
    classes = {
        f"class {number}": EnrolledClass(
            text, list(names), text + 15 * torch.randn(clips, FRAMES, WIDTH), [b""] * clips
        )
        for number, text in enumerate(texts)
    }
    return lambda: Snapshot(model, classes), model


def calibration(num_classes: int, _: Path) -> Work:
    make, model = _snapshot(num_classes, CLIPS)
    snapshot = make()
    query = torch.randn(1, FRAMES, WIDTH)
    return lambda: snapshot.score_unknown(model, query, "ensemble")


def prototypes(num_classes: int, _: Path) -> Work:
    return _snapshot(num_classes, CLIPS)[0]


def windows(num_classes: int, _: Path) -> Work:
    from clipfsar.inference.windows import classify_windows

    make, model = _snapshot(num_classes, 1)
    snapshot, embeds = make(), torch.randn(256, FRAMES, WIDTH)
    return lambda: classify_windows(embeds, lambda batch: snapshot.classify(model, batch, "few_shot"))


def exact(num_videos: int, _: Path) -> Work:
    from clipfsar.evaluation.exact_accuracy import exact_accuracy_of_videos
    from clipfsar.evaluation.split_features import SplitFeatures

    labels = np.repeat(np.arange(num_videos // 50), 50)
    texts, videos = torch.randn(num_videos // 50, WIDTH), torch.randn(num_videos, FRAMES, WIDTH).mul_(15)
    for start in range(0, num_videos, 1000):
        videos[start : start + 1000] += texts[labels[start : start + 1000], None]
    features = SplitFeatures(_model(), videos, texts, labels)
    return lambda: exact_accuracy_of_videos(features, 5, ("few_shot", "zero_shot", "ensemble"))


def merge(num_videos: int, folder: Path) -> Work:
    from clipfsar.checked_files import save_tensors
    from clipfsar.evaluation.feature_store import FeatureStore

    digests = np.zeros((num_videos, 16), np.uint8)
    for start in range(0, num_videos, 500):
        rows = torch.arange(start, min(start + 500, num_videos))
        part = {"rows": rows, "embeds": torch.randn(len(rows), FRAMES, WIDTH), "digests": torch.zeros(len(rows), 16)}
        save_tensors(part, folder / f"part-{start:08d}.safetensors")
    split = type("Split", (), {"digests": digests, "__len__": lambda self: num_videos})()
    return lambda: FeatureStore(folder, None)._merge(split)


def draws(num_videos: int, folder: Path) -> Work:
    from clipfsar.checked_files import load_tensors, save_tensors
    from clipfsar.training import frozen_features

    for draw in range(4):
        save_tensors({"embeds": torch.randn(num_videos, FRAMES, WIDTH)}, folder / f"draw_{draw}.safetensors")

    class Store:
        def __init__(self, folder: Path, encoder: None):
            self.folder, self.encoder = folder, encoder

        def encode(self, *_) -> torch.Tensor:
            return load_tensors(self.folder.with_suffix(".safetensors"), "")["embeds"]

    frozen_features.FeatureStore = Store
    episode = {f"{role}_videos": list(range(5)) for role in ("support", "query")} | {"seed": 0}
    labels = ("class_base_labels", "support_labels", "support_base_labels", "labels", "query_base_labels")
    episode |= {name: list(range(5)) for name in labels}

    def work():
        collator = frozen_features.FeatureCollator(frozen_features.encode_draws(Store(folder, None), None, 4, 0))
        for seed in range(100):
            collator([episode | {"seed": seed}])

    return work


def labels(num_videos: int, _: Path) -> Work:
    from datasets import ClassLabel, Dataset, Features, Value

    from episodes_clipfsar import read_labels

    features = Features({"video": Value("string"), "label": ClassLabel(names=[f"class {n}" for n in range(100)])})
    columns = {"video": [f"{n}.mp4" for n in range(num_videos)], "label": [n % 100 for n in range(num_videos)]}
    dataset = Dataset.from_dict(columns, features)
    return lambda: read_labels(dataset)


def tree(num_files: int, folder: Path) -> Work:
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    from clipfsar.data.splits import load_video_splits

    for number in range(num_files):
        split = ("train", "train", "train", "validation", "test")[number % 5]
        path = folder / "videos" / split / f"{split}_{number % 100}" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return lambda: load_video_splits(str(folder / "videos"))


LAWS = {
    "calibration": Law(
        "calibration of unknown videos", "classes of 5 clips", (20, 60), (100, 400), calibration, 10_000
    ),
    "prototypes": Law("prototypes of enrolled classes", "classes of 5 clips", (400, 1600), (1000, 4000), prototypes),
    "windows": Law("256 windows", "enrolled classes", (50, 200), (200, 1000), windows),
    "exact": Law("exact accuracy, three modes", "videos", (400, 1200), (1000, 2000), exact, 50_000),
    "merge": Law("merging a feature store", "videos", (1000, 3000), (4000, 16_000), merge),
    "draws": Law("four draws of a frozen tower", "videos", (500, 1500), (3000, 12_000), draws),
    "labels": Law("reading labels", "videos", (5000, 20_000), (24_000, 240_000), labels),
    "tree": Law("a tree of videos", "files", (200, 600), (1000, 4000), tree, 20_000),
}
Arguments.__dataclass_fields__["only"].metadata["choices"].extend(LAWS)


# --- one measurement, in a process of its own -------------------------------------------------------------------------


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    factor = 1 if sys.platform == "darwin" else 1024
    return factor * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(law: str, size: int, seconds: int) -> dict:
    """CPU seconds and bytes of the work. `stopped` tells whether it took too long."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        work = LAWS[law].prepare(size, Path(folder))
        before, start, stopped = peak_bytes(), time.process_time(), False
        signal.signal(signal.SIGPROF, _stop)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            work()
        except TimeoutError:
            stopped = True
        signal.setitimer(signal.ITIMER_PROF, 0)
        taken = time.process_time() - start
    return {"seconds": taken, "bytes": peak_bytes() - before, "peak": peak_bytes(), "stopped": stopped}


def _stop(*_):
    raise TimeoutError


def measured_in(checkout: Path, law: str, size: int, arguments: Arguments) -> dict:
    """`measured` by the code of a checkout. Started by a shell, which is small: a peak includes the parent's memory."""
    command = [sys.executable, "-P", __file__, "--measure", law, str(size), str(arguments.seconds)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    shell = ["/bin/sh", "-c", '"$@"; exit $?', "measure", *command]
    run = subprocess.run(shell, capture_output=True, text=True, env=environment, cwd=checkout)
    if run.returncode:
        sys.exit(f"error: {law} at {size} in {checkout} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


# --- the table and the plot -------------------------------------------------------------------------------------------


Rows = list[dict | None]


def exponents(sizes: list[int], values: list[float | None]) -> list[float | None]:
    """Exponent of the growth from each size to the next; None where one of the values is missing."""
    pairs = zip(itertools.pairwise(sizes), itertools.pairwise(values), strict=True)
    return [
        None,
        *(
            math.log(second / first) / math.log(other / one) if first and second else None
            for (one, other), (first, second) in pairs
        ),
    ]


def cells_of(sizes: list[int], rows: Rows) -> Iterator[list[str]]:
    """Seconds and memory of each size with their exponents, and the peak. Empty where nothing was measured."""
    times = exponents(sizes, [row["seconds"] if row and not row["stopped"] else None for row in rows])
    # Less than 16 MiB are lost among other allocations of a process.
    growth = exponents(sizes, [row["bytes"] if row and row["bytes"] > 2**24 else None for row in rows])
    for row, time_exponent, memory_exponent in zip(rows, times, growth, strict=True):
        if row is None:
            yield ["", "", ""]
            continue
        cells = [f"{'> ' if row['stopped'] else ''}{row['seconds']:.3g}", f"{row['bytes'] / 2**20:,.0f}"]
        found = (time_exponent, memory_exponent)
        with_exponents = [
            cell if exponent is None else f"{cell} ({exponent:.1f})"
            for cell, exponent in zip(cells, found, strict=True)
        ]
        yield [*with_exponents, f"{row['peak'] / 2**20:,.0f}"]


def _whole_decades(limits: tuple[float, float]) -> tuple[float, float]:
    return 10 ** math.floor(math.log10(limits[0])), 10 ** math.ceil(math.log10(limits[1]))


def plot(results: dict[str, dict[str, Rows]], sizes: dict[str, list[int]], path: Path, title: str):
    """Log-log, time above and memory below for each law. Hollow marks were stopped."""
    import matplotlib  # here, so that a measurement does not hold it

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(results))
    rows_of_panels = 2 * math.ceil(len(results) / columns)
    size = (2.9 * columns, 2.8 * rows_of_panels)
    figure, panels = plt.subplots(rows_of_panels, columns, figsize=size, layout="constrained", squeeze=False)
    pairs = [pair for upper in range(0, rows_of_panels, 2) for pair in panels[upper : upper + 2].T]
    for column in pairs[len(results) :]:
        for axes in column:
            axes.set_axis_off()
    colours = {"before": "tab:orange", "now": "tab:blue"}
    for (law, versions), column in zip(results.items(), pairs, strict=False):
        for axes, name, unit in zip(column, ("seconds", "bytes"), ("CPU time / s", "memory / bytes"), strict=True):
            for version, rows in versions.items():
                points = [(size, row) for size, row in zip(sizes[law], rows, strict=True) if row]
                values = [max(row[name], 1e-3 if name == "seconds" else 2**20) for _, row in points]
                axes.plot([size for size, _ in points], values, color=colours[version], label=version)
                for (size, row), value in zip(points, values, strict=True):
                    fill = "white" if row["stopped"] else colours[version]
                    axes.plot(size, value, "o", color=colours[version], markerfacecolor=fill, markersize=6)
            axes.set(xscale="log", yscale="log", ylabel=unit, xlabel=LAWS[law].unit)
            axes.set_xticks(sizes[law], [f"{size:,}" for size in sizes[law]], rotation=20)
            axes.tick_params(which="minor", labelbottom=False, labelleft=False)
            axes.set_ylim(*_whole_decades(axes.get_ylim()))
            axes.grid(alpha=0.3)
        column[0].set_title(LAWS[law].title, fontsize=9)
    panels[0, 0].legend()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: Arguments):
    checkouts = {"before": Path(arguments.before).resolve()} if arguments.before else {}
    checkouts["now"] = Path(__file__).resolve().parents[1]
    sizes = {law: LAWS[law].sizes(arguments.sizes) for law in arguments.only}

    def rows_of(law: str) -> dict[str, Rows]:
        rows: dict[str, Rows] = {version: [] for version in checkouts}
        for size in sizes[law]:
            for version, checkout in checkouts.items():
                is_left_out = version == "before" and size == LAWS[law].largest
                rows[version].append(None if is_left_out else measured_in(checkout, law, size, arguments))
        return rows

    columns = [f"{name}{f', {version}' if arguments.before else ''}" for version in checkouts for name in _COLUMNS]
    print(f"| | size | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    results = {}
    with ThreadPoolExecutor(arguments.processes) as executor:
        for law, versions in zip(arguments.only, executor.map(rows_of, arguments.only), strict=True):
            results[law] = versions
            lines = zip(sizes[law], *(cells_of(sizes[law], rows) for rows in versions.values()), strict=True)
            for size, *cells in lines:
                texts = " | ".join(itertools.chain.from_iterable(cells))
                print(f"| {LAWS[law].title} | {size:,} {LAWS[law].unit} | {texts} |", flush=True)
    machine = f"{platform.machine()}, one thread, torch {torch.__version__}, {date.today()}"
    print(
        f"\nIn brackets: the exponent from the size before. Memory: growth of the peak during the work. {FRAMES} "
        f"frames of {WIDTH} features per video. >: stopped after {arguments.seconds} s; {machine}. Picture: scaling.png"
    )
    path = Path(arguments.output_dir) / "scaling.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot(results, sizes, path, f"Time and memory as work grows; hollow: stopped\n{machine}")


_COLUMNS = ("CPU time / s", "memory / MiB", "peak / MiB")

if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measured(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main(parse_options(Arguments, __doc__))
