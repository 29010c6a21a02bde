"""From accuracies to what a reader sees: rows, paired differences, sentences and the Markdown table."""

import numpy as np

from demo.synthetic.spread import (
    Spread,
    effect_sentence,
    guessing_sentence,
    shots_in_words,
    spread_of,
    worth_training,
)
from demo.synthetic.track_classes import Track

# Row -> number of shots (or "twins") -> items, and their accuracies (seeds, items) in %.
Accuracies = dict[str, dict[int | str, tuple[list[str], np.ndarray]]]

OFFICIAL_TEXT_WEIGHT = 0.9

LABELS = {
    "frozen_mean": "frozen features, mean pooling",
    "frozen_otam": "frozen features, OTAM",
    "without_text": "trained without text, OTAM",
    "with_text": "trained with text (CLIP-FSAR)",
    "swapped_texts": "CLIP-FSAR, twins' texts exchanged",
    "texts_only": "texts only (zero-shot)",
    "ensemble": "ensemble, weight chosen on validation",
    "ensemble_official": "ensemble, official weight 0.9",
}
# Each is a row minus another one, on the same clips and episodes and with the same seeds.
COMPARISONS = {
    "alignment": ("frozen_otam", "frozen_mean"),
    "training_alone": ("without_text", "frozen_otam"),
    "text": ("with_text", "without_text"),
    "method": ("with_text", "frozen_otam"),
    "swapped_texts": ("swapped_texts", "with_text"),
    "over_texts_only": ("with_text", "texts_only"),
    "ensemble": ("ensemble", "with_text"),
    "ensemble_over_texts": ("ensemble", "texts_only"),
    "official_weight": ("ensemble_official", "ensemble"),
}


def track_results(
    track: Track, accuracies: Accuracies, weights: dict[int, float], validation: dict, training: list[dict]
) -> dict:
    """A track's part of `results.json`; its form is described in tracks.py."""
    rows, differences, spreads = {}, {}, {}
    for row in (name for name in LABELS if name in accuracies):
        columns = {column: _column(track, *found) for column, found in accuracies[row].items()}
        shots = {str(column): as_json("accuracy", *found) for column, found in columns.items() if column != "twins"}
        twins = as_json("accuracy", *columns["twins"]) if "twins" in columns else None
        rows[row] = {"label": LABELS[row], "shots": shots, "twins": twins}
        if "twins" in columns:
            spreads[f"twins of {row}"] = columns["twins"][0]
    for name, pair in COMPARISONS.items():
        if set(pair) <= set(accuracies):
            found = {shots: _difference(track, *(accuracies[row][shots] for row in pair)) for shots in weights}
            shots = {str(number): as_json("difference", *parts) for number, parts in found.items()}
            differences[name] = {"rows": list(pair), "shots": shots}
            spreads[name] = {number: parts[0] for number, parts in found.items()}
    return {
        "title": track.title,
        "num_base_classes": [len(track.base_of(fold)) for fold in range(len(track.folds))],
        "num_novel_items": len(accuracies["frozen_otam"][1][0]),
        "rows": rows,
        "differences": differences,
        "ensemble_text_weight": {str(shots): weight for shots, weight in weights.items()},
        "validation": validation,
        "training": training,
        "sentences": sentences(spreads, weights),
    }


def _column(track: Track, items: list[str], values: np.ndarray) -> tuple[Spread, list[str], np.ndarray]:
    return spread_of(values, [track.group_of(item) for item in items]), items, values


def _difference(track: Track, ours: tuple, theirs: tuple) -> tuple[Spread, list[str], np.ndarray]:
    """Paired by items and seeds; a row without training stands beside every seed."""
    if ours[0] != theirs[0]:
        raise ValueError(f"Rows of different classes cannot be compared: {ours[0]} and {theirs[0]}.")
    return _column(track, ours[0], ours[1] - theirs[1])


def as_json(kind: str, spread: Spread, items: list[str], values: np.ndarray) -> dict:
    return {
        kind: spread.mean,
        "interval": [spread.low, spread.high],
        "half_width": spread.half_width,
        "per_class": dict(zip(items, values.mean(0).tolist(), strict=True)),
        "per_seed": values.mean(1).tolist(),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Sentences
# ----------------------------------------------------------------------------------------------------------------------


def sentences(spreads: dict, weights: dict[int, float]) -> list[dict[str, str]]:
    """Questions with answers that follow from the numbers alone.

    Args:
        spreads: `Spread` per number of shots for each name of `COMPARISONS`; `Spread` of `"twins of ROW"`.
        weights: The chosen text weight per number of shots.
    """
    answers = {
        "What does alignment do?": [
            effect_sentence("OTAM instead of mean pooling, on frozen features,", spreads["alignment"])
        ],
        "What does the text do?": [
            effect_sentence("Training with text (CLIP-FSAR) instead of without", spreads["text"])
        ],
        "Is it worth training?": [
            worth_training(spreads["method"]),
            effect_sentence("CLIP-FSAR instead of OTAM on frozen features", spreads["method"]),
            effect_sentence("Training without text, instead of OTAM on frozen features,", spreads["training_alone"]),
        ],
        "What does the ensemble add?": [
            effect_sentence(
                f"The ensemble (text weight chosen on validation: {_listed(weights)}) instead of CLIP-FSAR alone",
                spreads["ensemble"],
            ),
            effect_sentence("The ensemble instead of texts only", spreads["ensemble_over_texts"]),
            *_official_weight(spreads["official_weight"], weights),
        ],
    }
    twins = {
        "frozen_mean": ("What does alignment do?", "Between twins, mean pooling"),
        "frozen_otam": ("What does alignment do?", "Between twins, OTAM"),
        "texts_only": ("What does the text do?", "Between twins, the text alone"),
    }
    for row, (question, subject) in twins.items():
        if f"twins of {row}" in spreads:
            answers[question].append(guessing_sentence(subject, spreads[f"twins of {row}"], 50.0))
    if "swapped_texts" in spreads:
        swapped = effect_sentence("Exchanging the texts of twins", spreads["swapped_texts"])
        answers["What does the text do?"].append(swapped)
    return [{"question": question, "answer": " ".join(parts)} for question, parts in answers.items()]


def _official_weight(spreads: dict[int, Spread], weights: dict[int, float]) -> list[str]:
    """Sentences on the official weight, where it is not the chosen one."""
    other = {shots: spread for shots, spread in spreads.items() if weights[shots] != OFFICIAL_TEXT_WEIGHT}
    same = [shots_in_words(shots) for shots in spreads if shots not in other]
    found = (
        [effect_sentence(f"The official weight {OFFICIAL_TEXT_WEIGHT} instead of the chosen one", other)]
        if other
        else []
    )
    return found + ([f"The chosen weight is the official one at {' and '.join(same)}."] if same else [])


def _listed(weights: dict[int, float]) -> str:
    return ", ".join(f"{weight:g} at {shots}-shot" for shots, weight in weights.items())


# ----------------------------------------------------------------------------------------------------------------------
# Table
# ----------------------------------------------------------------------------------------------------------------------


def tables(results: dict) -> str:
    """Markdown: a table for each track, its answers and how it was measured."""
    parts = [f"{_table(track)}\n\n{_answers(track)}" for track in results["tracks"].values()]
    return "\n\n".join([*parts, _note(results["settings"])])


def table_of(track: dict) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a track's table, as text; the first heading is what the rows are called by."""
    has_twins = any(row["twins"] for row in track["rows"].values())
    headings = ["5-way accuracy in %", *(f"{shots}-shot" for shots in track["ensemble_text_weight"])]
    rows = []
    for row in track["rows"].values():
        cells = [*row["shots"].values(), *([row["twins"]] if has_twins else [])]
        texts = ["" if cell is None else f"{cell['accuracy']:.1f} ± {cell['half_width']:.1f}" for cell in cells]
        rows.append([row["label"], *texts])
    return headings + ["a verb against its twin (2-way), 1-shot"] * has_twins, rows


def _table(track: dict) -> str:
    headings, rows = table_of(track)
    lines = [f"| {' | '.join(line)} |" for line in ([track["title"], *headings[1:]], *rows)]
    return "\n".join([lines[0], "|---" * len(headings) + "|", *lines[1:]])


def _answers(track: dict) -> str:
    return "\n".join(f"- **{item['question']}** {item['answer']}" for item in track["sentences"])


def _note(settings: dict) -> str:
    return (
        "5-way accuracy in % on novel classes; guessing gives 20%. ± is the half width of a 95% interval over classes "
        f"and {settings['num_seeds']} training seeds. Differences are paired, and rounded after subtraction. An effect "
        "is measurable where its interval and ± exclude zero. Every choice was made on validation classes. The visual "
        "tower is frozen in all rows."
    )


__all__ = [
    "COMPARISONS",
    "LABELS",
    "OFFICIAL_TEXT_WEIGHT",
    "Accuracies",
    "sentences",
    "table_of",
    "tables",
    "track_results",
]
