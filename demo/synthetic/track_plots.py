"""Pictures of a track's results."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"1": "tab:blue", "5": "tab:orange"}
COMPARISON_LABELS = {
    "alignment": "OTAM instead of mean pooling,\nfrozen features",
    "training_alone": "training without text\ninstead of frozen features",
    "text": "text: CLIP-FSAR instead of\ntraining without text",
    "method": "CLIP-FSAR instead of\nfrozen features (OTAM)",
    "swapped_texts": "twins' texts exchanged",
    "ensemble": "ensemble instead of CLIP-FSAR",
    "ensemble_over_texts": "ensemble instead of texts only",
    "official_weight": "official ensemble weight\ninstead of the chosen one",
}


def plot_track(track: dict, path: Path) -> None:
    """Draws the rows of a track (left) and paired differences (right), with intervals over classes and seeds.

    Args:
        track: One of `tracks` in `results.json`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    rows = {row["label"]: row["shots"] for row in track["rows"].values()}
    _draw(left, rows, "accuracy", "5-way accuracy on novel classes / %")
    found = track["differences"]
    differences = {label: found[name]["shots"] for name, label in COMPARISON_LABELS.items() if name in found}
    _draw(right, differences, "difference", "difference / points")
    right.axvline(0, color="0.4", linewidth=1, zorder=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9)
    figure.suptitle(f"{track['title']} (95% intervals over classes and training seeds)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(axes, rows: dict[str, dict], kind: str, label: str) -> None:
    shots = list(next(iter(rows.values())))
    for offset, number in enumerate(shots):
        cells = [row[number] for row in rows.values()]
        places = [position + 0.26 * (offset - (len(shots) - 1) / 2) for position in range(len(rows))]
        means = [cell[kind] for cell in cells]
        errors = [[max(0, cell[kind] - cell["interval"][0]) for cell in cells]]
        errors.append([max(0, cell["interval"][1] - cell[kind]) for cell in cells])
        colour = COLOURS.get(number, "tab:gray")
        axes.errorbar(means, places, xerr=errors, fmt="o", capsize=3, color=colour, label=f"{number}-shot")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axes.set_xlabel(label)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


__all__ = ["plot_track"]
