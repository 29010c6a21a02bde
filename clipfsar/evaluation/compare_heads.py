"""`clipfsar compare`: heads x checkpoints x shots on the same episodes and cached features, as one table."""

import importlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from clipfsar.data.splits import check_split, load_video_splits
from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation import references  # registers its heads
from clipfsar.evaluation.arguments import CompareArguments
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.episodes import predict_episodes
from clipfsar.evaluation.feature_store import FeatureStore
from clipfsar.evaluation.paired import (
    holm,
    indistinguishable_groups,
    mean_and_interval,
    mean_ranks,
    over_seeds,
    paired_difference,
)
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.inference.load_model import load_model
from configuration_clipfsar import CLIPFSARConfig
from fingerprint_clipfsar import preprocessing_settings, weights_digest
from heads_clipfsar import HEADS, Head, register_head
from modeling_clipfsar import CLIPFSARModel
from paths_clipfsar import check_output_file, local_path, printable, write_text
from processing_clipfsar import CLIPFSARProcessor

_WITHOUT_HEAD = ("otam", "bi_mhm", "mean")


@dataclass(frozen=True)
class HeadResult:
    """One row of the table. Numbers in percent or points; a difference is to the first row with these shots.

    Args:
        p_value: Two-sided, of the difference, corrected by Holm's method for all differences of the table.
        mean_rank: Over the episodes with these shots; 1 is the best.
        seconds_per_1000_episodes: Everything after the states of the videos, which are made once, on the machine of
            the run.
        parameters: Weights outside the backbone.
    """

    name: str
    n_shot: int
    accuracy: float
    interval: float
    difference: float
    difference_interval: float
    p_value: float
    mean_rank: float
    seconds_per_1000_episodes: float
    parameters: int


@dataclass
class HeadComparison:
    """Results of `clipfsar compare`, and per number of shots the accuracies (seeds, E) of the episodes by name."""

    results: list[HeadResult]
    accuracies: dict[int, dict[str, np.ndarray]]
    protocol: Protocol

    def __str__(self) -> str:
        lines = [
            "| | shots | accuracy | to the first | p (Holm) | s per 1,000 episodes | parameters |",
            "|" + "---|" * 7,
        ]
        for one in self.results:
            name = printable(one.name).replace("|", "\\|")
            lines.append(f"| {' | '.join((name, str(one.n_shot), *_cells(one)))} |")
        return "\n".join(lines)

    def to_json(self, path: Path) -> None:
        """Writes protocol and results; the first rows have no p value, so theirs is null."""
        results = [asdict(one) | {"p_value": None if math.isnan(one.p_value) else one.p_value} for one in self.results]
        content = {"protocol": asdict(self.protocol), "results": results}
        write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def to_latex(self, path: Path) -> None:
        """Writes a table for the package booktabs."""
        head = "& shots & accuracy & to the first & $p$ (Holm) & s per 1,000 episodes & parameters"
        rows = [" & ".join((_latex(one.name), str(one.n_shot), *map(_latex, _cells(one)))) for one in self.results]
        parts = (r"\begin{tabular}{lrrrrrr}", r"\toprule", head + r" \\", r"\midrule", *(row + r" \\" for row in rows))
        text = "\n".join((*parts, r"\bottomrule", r"\end{tabular}"))
        write_text(path, text + "\n")

    def plot(self, folder: Path) -> list[Path]:
        """Draws `ranks_K_shot.png`: mean ranks, with a bar over those that no corrected test tells apart."""
        from clipfsar.plots import plot_ranks  # imports matplotlib, needed only here

        paths = []
        for n_shot, accuracies in self.accuracies.items():
            ranks = mean_ranks(over_seeds(accuracies))
            paths.append(folder / f"ranks_{n_shot}_shot.png")
            title = f"{self.protocol.n_way}-way {n_shot}-shot, {self.protocol.n_episodes:,} episodes: mean rank"
            groups = indistinguishable_groups(accuracies)
            plot_ranks(dict(zip(accuracies, ranks.tolist(), strict=True)), groups, paths[-1], title)
        return paths


def _cells(one: HeadResult) -> tuple[str, ...]:
    is_first = math.isnan(one.p_value)
    return (
        f"{one.accuracy:.1f} ± {one.interval:.1f}",
        "" if is_first else f"{one.difference:+.2f} ± {one.difference_interval:.2f}",
        "" if is_first else ("< 0.001" if one.p_value < 0.001 else f"{one.p_value:.3f}"),
        f"{one.seconds_per_1000_episodes:.2f}",
        f"{one.parameters:,}",
    )


_LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$"}


def _latex(text: str) -> str:
    """Text for LaTeX: names of folders and heads are not commands."""
    return "".join(_LATEX.get(letter, letter) for letter in printable(text))


def find_heads(names: Sequence[str]) -> list[str]:
    """Alignments by name. `FILE.py:CLASS` or `MODULE:CLASS` registers a head of your own under the class's name.

    Raises:
        ValueError: For an unknown name; the message lists the known ones. For two heads of one name.
    """
    found: dict[str, tuple] = {}  # name of a head -> where it comes from, and the option
    for name in names:
        place, _, own = name.rpartition(":")
        if place:
            head = getattr(_module(place), own, None)
            if not (isinstance(head, type) and issubclass(head, Head)):
                raise ValueError(f"--heads {name}: {place} has no subclass of clipfsar.Head called {own!r}.")
            if own in references.REFERENCES:
                raise ValueError(f"--heads {name}: {own} is a head of this library: rename yours.")
            register_head(own, head)
        elif name not in (*_WITHOUT_HEAD, *HEADS):
            raise ValueError(
                f"--heads {name} is not known: there are {', '.join((*_WITHOUT_HEAD, *HEADS))}, and FILE.py:CLASS for "
                "a head of your own."
            )
        origin = os.path.realpath(place) if place.endswith(".py") else place
        known, option = found.setdefault(own or name, (origin, name))
        if known != origin:  # the second would take the place of the first
            raise ValueError(f"--heads {option} and {name}: two heads are called {own or name}: rename one of them.")
    return list(found)


def _module(place: str):
    try:
        return _imported(place)
    except (ImportError, SyntaxError) as error:
        raise ValueError(
            f"--heads {place} cannot be imported ({error}): correct the name or the file, or install what it needs."
        ) from error


def _imported(place: str):
    if place.startswith(".") and not place.endswith(".py"):
        raise ValueError(f"--heads {place} is no file that ends in .py, and no module.")
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None or not Path(place).is_file():
        raise ValueError(f"--heads {place}: there is no such file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def heads_of(model: str, heads: Sequence[str]) -> list[str]:
    """The checkpoint's own alignment, and those of `heads` that need no weights; prints which are left out."""
    config = CLIPFSARConfig.from_pretrained(model)
    chosen = [config.alignment]
    for name in heads:
        needs_weights = name in HEADS and any(True for _ in HEADS[name](config).parameters())
        if needs_weights and name != config.alignment:
            print(f"{model} has no weights for {name}, so this pair is left out; train it with --alignment {name}.")
        elif name not in chosen:
            chosen.append(name)
    return [name for name in (*heads, config.alignment) if name in chosen] if heads else chosen


def compare_features(
    contenders: Mapping[str, Sequence[SplitFeatures]], protocol: Protocol, class_names: Sequence[str]
) -> HeadComparison:
    """Lets every contender answer the same episodes; the first is the reference of the differences.

    Args:
        contenders: Features by name; several of one name are trainings with different seeds.
    """
    accuracies: dict[int, dict[str, np.ndarray]] = {}
    seconds: dict[tuple[int, str], float] = {}
    for n_shot in protocol.shots:
        accuracies[n_shot] = {}
        for name, seeds in contenders.items():
            sampler = protocol.sampler(seeds[0].labels.cpu().numpy(), n_shot, class_names)
            for one in seeds:  # makes what is made once: the states of the videos, and on a GPU its context
                predict_episodes(one, sampler, range(1))
            start = time.perf_counter()
            answers = [predict_episodes(one, sampler, range(protocol.n_episodes))["few_shot"] for one in seeds]
            seconds[n_shot, name] = (time.perf_counter() - start) / protocol.n_episodes / len(seeds) * 1000
            accuracies[n_shot][name] = np.stack([100 * one.accuracies for one in answers])
    parameters = {name: _parameters(seeds[0].model) for name, seeds in contenders.items()}
    return HeadComparison(_results(accuracies, seconds, parameters), accuracies, protocol)


def pooled(comparisons: Sequence[HeadComparison]) -> HeadComparison:
    """One comparison of the same contenders in the episodes of several, such as those of the folds of a data set.

    Its `protocol` is the first one's; the number of episodes is the sum.
    """
    first, accuracies, seconds = comparisons[0], {}, {}
    for n_shot, of_shots in first.accuracies.items():
        parts = {name: [one.accuracies[n_shot][name] for one in comparisons] for name in of_shots}
        accuracies[n_shot] = {name: np.concatenate(part, axis=-1) for name, part in parts.items()}
    for rows in zip(*(one.results for one in comparisons), strict=True):
        seconds[rows[0].n_shot, rows[0].name] = float(np.mean([row.seconds_per_1000_episodes for row in rows]))
    parameters = {row.name: row.parameters for row in first.results}
    n_episodes = sum(one.protocol.n_episodes for one in comparisons)
    protocol = replace(first.protocol, n_episodes=n_episodes)
    return HeadComparison(_results(accuracies, seconds, parameters), accuracies, protocol)


def _parameters(model: CLIPFSARModel) -> int:
    return sum(weight.numel() for name, weight in model.named_parameters() if not name.startswith("clip."))


def _results(accuracies, seconds, parameters) -> list[HeadResult]:
    rows = [(n_shot, name) for n_shot, of_shots in accuracies.items() for name in of_shots]
    firsts = {n_shot: next(iter(of_shots)) for n_shot, of_shots in accuracies.items()}
    others = [row for row in rows if row[1] != firsts[row[0]]]
    pairs = {row: paired_difference(accuracies[row[0]][firsts[row[0]]], accuracies[row[0]][row[1]]) for row in others}
    corrected = dict(zip(others, holm([pairs[row][2] for row in others]), strict=True))
    ranks = {
        (n_shot, name): rank
        for n_shot, of_shots in accuracies.items()
        for name, rank in zip(of_shots, mean_ranks(over_seeds(of_shots)).tolist(), strict=True)
    }
    results = []
    for row in rows:
        difference, interval, _ = pairs.get(row, (0.0, 0.0, 1.0))
        of_episodes = (*mean_and_interval(accuracies[row[0]][row[1]]), difference, interval)
        p_value = corrected.get(row, float("nan"))
        results.append(HeadResult(row[1], row[0], *of_episodes, p_value, ranks[row], seconds[row], parameters[row[1]]))
    return results


@torch.no_grad()
def run(arguments: CompareArguments, trained: Mapping[str, Sequence[str]] | None = None) -> HeadComparison:
    """Prints the table, and writes `comparison.json`, `comparison.tex` and pictures to the output folder.

    Args:
        trained: Folders of models that were trained with several seeds, by their name in the table.
    """
    folder = None if arguments.output_dir is None else Path(arguments.output_dir)
    if folder is not None:
        check_output_file(folder / "comparison.json")
    heads, short_names = find_heads(arguments.heads), names_in_table(arguments.models)
    splits = load_video_splits(arguments.dataset)
    check_split(arguments.dataset, arguments.split, splits)
    split = VideoSplit.of(splits[arguments.split])
    given = (arguments.n_way, arguments.n_shot, arguments.n_query, arguments.n_episodes, arguments.seed)
    protocol = Protocol(*given, "few_shot")
    protocol.samplers(split)  # raises an error for too few videos, before anything is encoded
    contenders: dict[str, list[SplitFeatures]] = {}
    for name, short_name in short_names.items():
        for alignment, features in _features_of(name, short_name, heads, split, arguments).items():
            contenders[alignment if len(short_names) == 1 else f"{short_name} {alignment}"] = [features]
    first = next(iter(contenders.values()))[0]
    for name, folders in (trained or {}).items():
        models = [_trained_head(folder, first.model, arguments.models[0]) for folder in folders]
        contenders[name] = [SplitFeatures(one, first.video_embeds, first.class_embeds, split.labels) for one in models]
    comparison = compare_features(contenders, protocol, split.class_names)
    print(f"{arguments.dataset}, split {arguments.split}, {len(split)} videos, {protocol.n_episodes:,} episodes:\n")
    print(comparison)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        comparison.to_json(folder / "comparison.json")
        comparison.to_latex(folder / "comparison.tex")
        comparison.plot(folder)
    return comparison


def _features_of(
    model_name: str, short_name: str, heads: Sequence[str], split: VideoSplit, arguments: CompareArguments
) -> dict[str, SplitFeatures]:
    """Features of a checkpoint by alignment. Its visual tower, which all of them share, encodes the videos once."""
    alignments = heads_of(model_name, heads)
    models = {alignment: load_model(model_name, alignment=alignment) for alignment in alignments}
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    encoder = VideoEncoder(*models[alignments[0]], accelerator, arguments.batch_size, arguments.num_workers)
    store = encoder if arguments.feature_store is None else _store(arguments, short_name, encoder)
    embeds, texts = store.encode(split), encoder.encode_classes(split.class_names)
    return {
        alignment: SplitFeatures(model.to(accelerator.device), embeds, texts, split.labels)
        for alignment, (model, _) in models.items()
    }


def _trained_head(folder: str, first: CLIPFSARModel, name: str) -> CLIPFSARModel:
    """The model in `folder`, which answers on the features of the model `first` that is called `name`.

    Raises:
        ValueError: When it was trained on other features: its frozen towers or its frames are not those of `first`.
    """
    (model, processor), of_first = load_model(folder), CLIPFSARProcessor.from_pretrained(name)
    same_towers = weights_digest([model.clip]) == weights_digest([first.clip])
    if not same_towers or preprocessing_settings(processor) != preprocessing_settings(of_first):
        raise ValueError(
            f"The head in {folder} was trained on the features of another model than {name}: name another "
            f"--output_dir, or delete {Path(folder).parent}, and it is trained again."
        )
    return model.to(first.device)


def _store(arguments: CompareArguments, short_name: str, encoder: VideoEncoder) -> FeatureStore:
    return FeatureStore(Path(arguments.feature_store or "") / short_name / arguments.split, encoder)


def names_in_table(models: Sequence[str]) -> dict[str, str]:
    """A short name for each checkpoint: its folder or that of its run, after as many folders as tell them apart.

    Raises:
        ValueError: When a checkpoint is given twice.
    """
    paths = {name: local_path(name) for name in models}
    paths = {name: path.resolve() if path.exists() else path for name, path in paths.items()}  # a Hub id stays
    for name in models:
        if list(paths.values()).count(paths[name]) > 1 or list(models).count(name) > 1:
            raise ValueError(f"--models names {name} twice: name each model once.")
    runs = [path.parent if path.name in ("best", "last") else path for path in paths.values()]
    # best/ and last/ of one run keep these names.
    parts = {
        name: (run if runs.count(run) == 1 else path).parts
        for (name, path), run in zip(paths.items(), runs, strict=True)
    }
    for depth in range(1, max(map(len, parts.values())) + 1):
        short = {name: "/".join(of_name[-depth:]) for name, of_name in parts.items()}
        if len(set(short.values())) == len(short):
            break
    return short


__all__ = [
    "HeadComparison",
    "HeadResult",
    "compare_features",
    "find_heads",
    "heads_of",
    "names_in_table",
    "pooled",
    "references",
    "run",
]
