"""The study's numbers as Markdown."""

import os
import platform
from pathlib import Path

import torch

from demo.synthetic.spread import Spread, effect_sentence

LABELS = {
    "frozen": "none (as in the demo)",
    "last_layer": "last layer",
    "lora": "LoRA, rank 8",
    "whole": "all",
}
SECONDS = {"cpu_seconds": "CPU seconds", "seconds": "seconds"}


def report(study: dict) -> str:
    """A page with a table for each track, what follows from it and what it cost; from the content of `study.json`."""
    recipe = study["settings"]["recipe"]
    parts = [
        "# Training the visual tower",
        "Is it worth training the visual tower, as the paper does? The demo trains the temporal transformer on "
        "features of a frozen tower. The study trains the tower as well, on the clips of the demo's two tracks. "
        "`python -m demo.synthetic.study --report FILE` writes this page.",
    ]
    parts += [_track_section(towers, _seconds_of(study)) for towers in study["tracks"].values() if towers]
    parts.append(f"## Conclusion\n\n{conclusion(study)}")
    parts.append(
        f"## How it was measured\n\n{recipe['episodes']} episodes of {recipe['n_way']} classes with one support and "
        f"{recipe['n_query']} query clip each, AdamW; {study['settings']['num_seeds']} training seed(s). Learning "
        "rate, state and ensemble weight were chosen on validation classes. 5-way accuracy in % on novel classes, mean "
        "and 95% interval over classes and seeds; differences are paired. With a single seed the intervals are over "
        f"classes alone. {_cost(study)}"
    )
    return "\n\n".join(parts) + "\n"


def _track_section(towers: dict[str, dict], seconds_of: str) -> str:
    title = next(iter(towers.values()))["title"]
    lines = [f"## {title}", "", _header(seconds_of), "|---" * 8 + "|"]
    frozen = next(iter(towers.values()))["rows"]["frozen_otam"]["shots"]
    lines.append(f"| no training at all, OTAM | {_cell(frozen['1'])} | {_cell(frozen['5'])} | | | | | |")
    sentences = []
    for tower, track in towers.items():
        rows, method = track["rows"], track["differences"]["method"]["shots"]
        cells = [_cell(rows[row]["shots"][shots]) for row in ("without_text", "with_text") for shots in ("1", "5")]
        cells += [_signed(method[shots]) for shots in ("1", "5")]
        seconds = [log[seconds_of] for log in track["training"]]
        lines.append(f"| {LABELS[tower]} | {' | '.join(cells)} | {sum(seconds) / len(seconds):.0f} |")
        subject = f"Tower: {LABELS[tower]}. The text"
        sentences.append("- " + effect_sentence(subject, _spreads(track, "text")))
    return "\n".join([*lines, "", *sentences])


def _seconds_of(study: dict) -> str:
    """The seconds that say what a training costs: of its CPU, or of the clock where a GPU works."""
    return "cpu_seconds" if study["device"] == "cpu" else "seconds"


def _header(seconds_of: str) -> str:
    columns = ["layers of the tower that train", "without text, 1-shot", "5-shot", "CLIP-FSAR, 1-shot", "5-shot"]
    columns += ["CLIP-FSAR minus no training, 1-shot", "5-shot", f"{SECONDS[seconds_of]} per training"]
    return f"| {' | '.join(columns)} |"


def _cell(cell: dict) -> str:
    return f"{cell['accuracy']:.1f} ± {cell['half_width']:.1f}"


def _signed(cell: dict) -> str:
    return f"{cell['difference']:+.1f} ± {cell['half_width']:.1f}"


def _spreads(track: dict, comparison: str) -> dict[int, Spread]:
    cells = track["differences"][comparison]["shots"]
    return {int(shots): Spread(cell["difference"], *cell["interval"]) for shots, cell in cells.items()}


def conclusion(study: dict) -> str:
    """Whether some recipe beats frozen features at five shots on every track, and the cheapest that does."""
    tracks = [towers for towers in study["tracks"].values() if towers]
    measured = [tower for tower in LABELS if all(tower in towers for towers in tracks)]
    missing = [name for name, towers in study["tracks"].items() if not towers]
    missing += [name for name in ("what", "order") if name not in study["tracks"]]
    winners = []
    for tower in measured:
        spreads = [_spreads(towers[tower], "method")[5] for towers in tracks]
        if all(spread.is_clear and spread.mean > 0 for spread in spreads):
            winners.append(tower)
    of_what = "on both tracks" if not missing else f"(not measured: the track {' and '.join(missing)})"
    unmeasured = [LABELS[tower] for tower in LABELS if tower not in measured]
    tail = f" Not measured: {'; '.join(unmeasured)}." if unmeasured else ""
    if winners:
        costs = {t: sum(log["cpu_seconds"] for towers in tracks for log in towers[t]["training"]) for t in winners}
        cheapest = LABELS[min(costs, key=costs.get)]
        best = f"The cheapest recipe that does trains: {cheapest}."
        return f"CLIP-FSAR beats frozen features at five shots {of_what}. {best}{tail}"
    return f"None of the measured recipes beats frozen features at five shots {of_what}.{tail}"


def _cost(study: dict) -> str:
    logs = [log for towers in study["tracks"].values() for track in towers.values() for log in track["training"]]
    hours = sum(log["cpu_seconds"] for log in logs) / 3600
    together = "" if study["device"] == "cpu" else f" {study['num_workers']} trainings shared the GPU at a time."
    return f"The {len(logs)} trainings took {hours:.2f} CPU hours in all on {study['machine']}.{together}"


def machine(device: str = "cpu") -> str:
    """Name of the processor and number of cores, behind the name of a GPU on CUDA."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}; {machine()}"
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        name = names[0].split(":", 1)[1].strip() if names else name
    return f"{name}, {os.cpu_count()} cores"


__all__ = ["conclusion", "machine", "report"]
