"""Every way of comparing videos on the novel clips of both tracks, with and without training, as Markdown tables.

    python -m demo.synthetic.head_table                                     # most of the time is training
    python -m demo.synthetic.head_table --num_seeds 0                       # without training: some minutes
    python -m demo.synthetic.head_table --page docs/use/heads.md            # also writes the table into the page

The tower is the tiny CLIP's, unchanged, and all ways answer the same episodes. TRX and HyRSM are trained on base
classes without texts, several seeds each; learning rate and state are chosen on validation classes. On Order each verb
is novel in the fold whose training never saw it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clipfsar.evaluation.compare_heads import HeadComparison, compare_features, pooled
from clipfsar.evaluation.paired import mean_and_interval, paired_difference
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.references import REFERENCES
from clipfsar.options import option, parse_options
from demo.synthetic.head_training import TRAINED_HEADS, TrackFeatures, choose_rate, encode_track, split_of, train
from demo.synthetic.track_classes import ORDER, WHAT
from demo.synthetic.track_heads import N_WAY, SHOTS, Recipe, frozen_head
from paths_clipfsar import replace_file

UNTRAINED = ("otam", "bi_mhm", "mean", "chamfer", *REFERENCES)
BEGIN, END = "<!-- written by demo.synthetic.head_table -->", "<!-- end -->"


@dataclass
class Arguments:
    clips: int = option(20, "Clips of each novel class.")
    n_episodes: int = option(1002, "5-way episodes per number of shots, divided among the folds of a track.")
    num_seeds: int = option(3, "Trainings of each head per fold; 0 leaves trained heads out.")
    num_threads: int = option(2, "Threads on a CPU.")
    page: str | None = option(None, "Page of the documentation whose marked part is replaced.")


def compare_on(data: TrackFeatures, arguments: Arguments) -> HeadComparison:
    """All heads, 1-shot and 5-shot, in the novel classes of each fold."""
    rates = {name: choose_rate(name, data) for name in TRAINED_HEADS if arguments.num_seeds}
    for name, rate in rates.items():
        print(f"{data.track.name}: {name} is trained with learning rate {rate:g}", flush=True)
    folds = range(len(data.track.folds))
    protocol = Protocol(N_WAY, SHOTS, 1, arguments.n_episodes // len(folds), 0, "few_shot")
    return pooled([_compare_in_fold(data, fold, protocol, rates, arguments.num_seeds) for fold in folds])


def _compare_in_fold(
    data: TrackFeatures, fold: int, protocol: Protocol, rates: dict[str, float], num_seeds: int
) -> HeadComparison:
    novel = data.novel_of(fold)
    models = {name: [frozen_head(name)] for name in UNTRAINED}
    for name, rate in rates.items():
        models[f"{name}, trained"] = [train(name, data, fold, rate, seed)[0] for seed in range(num_seeds)]
    contenders = {name: [split_of(model, novel) for model in of_name] for name, of_name in models.items()}
    return compare_features(contenders, protocol, list(novel.class_names))


def summary(comparisons: dict[str, HeadComparison]) -> list[str]:
    """Lines of Markdown: per track and number of shots what wins, ways without weights first, then the table."""
    columns = {
        f"{track}, {n_shot}-shot": accuracies
        for track, comparison in comparisons.items()
        for n_shot, accuracies in comparison.accuracies.items()
    }
    names = list(next(iter(columns.values())))
    lines = [_verdict(column, accuracies) for column, accuracies in columns.items()]
    lines += ["", f"| {N_WAY}-way accuracy, % | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for name in names:
        cells = [mean_and_interval(accuracies[name]) for accuracies in columns.values()]
        lines.append(f"| {name} | {' | '.join(f'{mean:.1f} ± {interval:.1f}' for mean, interval in cells)} |")
    return lines


def caption(arguments: Arguments) -> str:
    """What the rows are, and how they were measured, as a paragraph of Markdown."""
    text = (
        "Frozen features of the tiny CLIP, novel classes of the [two tracks](../evaluate/two-tracks.md), "
        f"{arguments.clips} clips per class, the same {arguments.n_episodes:,} episodes for all rows. On *Order* they "
        "are drawn within the verbs of each fold, on one look. "
    )
    if arguments.num_seeds:
        text += (
            f"TRX and HyRSM are trained on the base classes of a fold, without texts, {arguments.num_seeds} times with "
            f"{Recipe().episodes} episodes. Learning rate and state are chosen on validation classes. "
        )
    return text + (
        "± is a 95% interval over episodes and trainings: it is about these clips and classes. The lines above compare "
        "the best of several rows, and their intervals are not corrected for that."
    )


def _verdict(column: str, accuracies: dict[str, np.ndarray]) -> str:
    """What is best without training, and what the best trained way changes."""
    best, best_trained = (_best(accuracies, is_trained) for is_trained in (False, True))
    line = f"- {column}: without training, `{best}` is best"
    if best != "otam":
        line += f", {_difference(accuracies['otam'], accuracies[best])} `otam`"
    if best_trained is not None:
        line += f"; `{best_trained}` is {_difference(accuracies[best], accuracies[best_trained])} it"
    return f"{line}."


def _best(accuracies: dict[str, np.ndarray], is_trained: bool) -> str | None:
    names = [name for name in accuracies if name.endswith(", trained") == is_trained]
    return max(names, key=lambda name: accuracies[name].mean()) if names else None


def _difference(first: np.ndarray, second: np.ndarray) -> str:
    """How accuracies differ from the first ones, in words with the paired interval."""
    difference, interval, _ = paired_difference(first, second)
    if abs(difference) <= interval:
        return f"within the interval ({difference:+.1f} ± {interval:.1f} points) of"
    return f"{abs(difference):.1f} ± {interval:.1f} points {'ahead of' if difference > 0 else 'behind'}"


def write_into(page: Path, lines: list[str]) -> None:
    """Replaces what is between the marks of a page.

    Raises:
        ValueError: When the page does not have the marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no part between {BEGIN!r} and {END!r}.")
    with replace_file(page) as partial:
        partial.write_text("\n".join([f"{before}{BEGIN}", "", *lines, "", f"{END}{after}"]), encoding="utf-8")


def main(arguments: Arguments):
    torch.set_num_threads(arguments.num_threads)
    comparisons = {}
    for name, track in (("What", WHAT), ("Order", ORDER)):
        comparisons[name] = compare_on(encode_track(track, arguments.clips), arguments)
        print(f"\n{name}, {arguments.clips} clips of each novel class\n\n{comparisons[name]}\n", flush=True)
    lines = [*summary(comparisons), "", caption(arguments)]
    print("\n".join(lines))
    if arguments.page is not None:
        write_into(Path(arguments.page), lines)


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
