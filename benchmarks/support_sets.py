"""How well a support set is judged and improved, on the embedded synthetic actions, as Markdown tables.

    python -m benchmarks.support_sets                       # the tiny CLIP, untrained; novel classes
    python -m benchmarks.support_sets --only review --model demo_output/run/best

Every draw takes some classes of the split and a few of their clips as the support set; all other clips of these
classes are held out. Numbers are means with 95% intervals over draws.

review: two clips of different classes swap their labels. Precision is the share of suspects that were swapped, recall
the share of swapped clips among the suspects. Then, without swaps, the expected accuracy is compared with that on the
held-out clips; coverage is how often the interval holds the latter.

tune: accuracy on the held-out clips with the settings of the model, and after `SupportSet.tune`. The model's settings
are few_shot (its default), and the official ensemble, whose text weight of 0.9 is too high for these texts.

suggest: all classes start with one clip each. Six clips of a pool get their labels at each step, by each strategy.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from clipfsar.inference.load_model import load_model
from clipfsar.options import parse_options
from demo.synthetic import TINY_CLIP
from demo.synthetic.classes import SPLITS
from demo.synthetic.render import render_clip
from suggestion_clipfsar import STRATEGIES
from support_set_clipfsar import SUPPORT_SET_NAME, EnrolledClass, SupportSet
from tuning_clipfsar import with_settings

SETTINGS = ((5, 2), (5, 3), (5, 5), (12, 5), (5, 10))  # classes, clips per class


@dataclass
class Arguments:
    model: str = field(default=str(TINY_CLIP), metadata={"help": "CLIP-FSAR model or plain CLIP."})
    split: str = field(default="test", metadata={"help": "Classes to draw from: test are the novel ones."})
    videos_per_class: int = field(default=40, metadata={"help": "Clips of each class."})
    draws: int = field(default=20, metadata={"help": "Support sets to draw for each line."})
    only: list[str] = field(default_factory=lambda: list(TABLES), metadata={"help": "Tables to make."})
    features: str | None = field(default=None, metadata={"help": "Folder that keeps the encoded clips."})
    seed: int = field(default=0, metadata={"help": "Seed of clips and draws."})


def enroll_split(model, processor, arguments: Arguments) -> SupportSet:
    """All clips of a split, as one support set; kept in the folder of `--features`, if given."""
    folder = Path(arguments.features or "")
    if arguments.features and (folder / SUPPORT_SET_NAME).is_file():
        whole = SupportSet.from_pretrained(folder)
        whole.check(model, processor)
        return whole
    whole = SupportSet()
    for name in tqdm(SPLITS[arguments.split], "rendering and encoding", unit="class"):
        clips = [render_clip(name, arguments.seed, number)[0] for number in range(arguments.videos_per_class)]
        whole.add(model, processor, {name: clips}, thumbnails=False)
    if arguments.features:
        whole.save_pretrained(folder)
    return whole


def draw_support_set(whole: SupportSet, n_way: int, n_shot: int, rng: np.random.Generator):
    """A support set of random classes and clips; frame features and labels of the other clips of these classes."""
    support_set, embeds, labels = SupportSet(whole.fingerprint), [], []
    for label, name in enumerate(rng.permutation(whole.class_names)[:n_way]):
        one = whole.classes[name]
        rows = rng.permutation(len(one.clip_names))
        support_set.classes[str(name)] = with_clips(one, rows[:n_shot])
        embeds.append(one.support_embeds[rows[n_shot:]])
        labels += [label] * (len(rows) - n_shot)
    return support_set, torch.cat(embeds), torch.tensor(labels)


def with_clips(one: EnrolledClass, rows: np.ndarray) -> EnrolledClass:
    names = [one.clip_names[row] for row in rows]
    return EnrolledClass(one.class_embeds, names, one.support_embeds[rows], [b""] * len(rows))


def swap_labels(support_set: SupportSet, rng: np.random.Generator) -> set[tuple[str, str]]:
    """Exchanges a clip of one class with a clip of another; returns both, (class, clip), as they are now named."""
    names = [str(name) for name in rng.permutation(support_set.class_names)[:2]]
    (first, row), (second, other) = (
        (one, int(rng.integers(len(one.clip_names)))) for one in (support_set.classes[name] for name in names)
    )
    kept = first.support_embeds[row].clone()
    first.support_embeds[row], second.support_embeds[other] = second.support_embeds[other], kept
    return {(names[0], first.clip_names[row]), (names[1], second.clip_names[other])}


def accuracy_of(model, support_set: SupportSet, embeds: torch.Tensor, labels: torch.Tensor, mode: str | None = None):
    answers = support_set.classify(model, embeds, mode).argmax(-1).cpu()
    return 100 * float((answers == labels).float().mean())


def mean_and_interval(values: list[float], digits: int = 1) -> str:
    """Text of a mean and the half width of its 95% interval."""
    half = 1.96 * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def measure_review(model, whole: SupportSet, arguments: Arguments):
    print("| classes | clips each | mode | swapped labels: precision | recall | expected accuracy | true | coverage |")
    print("|---|---|---|---|---|---|---|---|")
    for n_way, n_shot in dict.fromkeys((min(n_way, len(whole)), n_shot) for n_way, n_shot in SETTINGS):
        for mode in ("few_shot", "ensemble"):
            found, named, right, swaps = [], 0, 0, 0
            for draw in tqdm(range(arguments.draws), leave=False):
                rng = np.random.default_rng([arguments.seed, n_way, n_shot, draw])
                support_set, *held_out = draw_support_set(whole, n_way, n_shot, rng)
                review, true = support_set.review(model, mode), accuracy_of(model, support_set, *held_out, mode)
                low, high = review.interval
                found.append((review.accuracy, true, low <= true <= high, high - low))
                swapped = swap_labels(support_set, rng)
                suspects = {(one.class_name, one.clip) for one in support_set.review(model, mode).suspects}
                named, right, swaps = named + len(suspects), right + len(suspects & swapped), swaps + len(swapped)
            expected, true, covered, _ = zip(*found, strict=True)
            precision = f"{right / named:.2f} of {named}" if named else "none named"
            print(
                f"| {n_way} | {n_shot} | {mode} | {precision} | {right / swaps:.2f} of {swaps} | "
                f"{mean_and_interval(expected)} | {mean_and_interval(true)} | {100 * np.mean(covered):.0f}% |",
                flush=True,
            )


def measure_tuning(model, whole: SupportSet, arguments: Arguments):
    print("| classes | clips each | the model's settings | accuracy with them | tuned | gain | choices changed |")
    print("|---|---|---|---|---|---|---|")
    for n_way, n_shot in ((5, 1), (5, 3), (5, 5), (12, 5)):
        for mode in ("few_shot", "ensemble"):
            own, accuracies, changed = with_settings(model, {"inference_mode": mode}), [], 0
            for draw in tqdm(range(arguments.draws), leave=False):
                rng = np.random.default_rng([arguments.seed, n_way, n_shot, draw])
                support_set, *held_out = draw_support_set(whole, n_way, n_shot, rng)
                before = accuracy_of(own, support_set, *held_out)
                changed += bool(support_set.tune(own).settings)
                accuracies.append((before, accuracy_of(own, support_set, *held_out)))
            before, after = np.array(accuracies).T
            numbers = " | ".join(map(mean_and_interval, (before, after, after - before)))
            print(f"| {n_way} | {n_shot} | {mode} | {numbers} | {changed} of {arguments.draws} |", flush=True)


def measure_suggestions(model, whole: SupportSet, arguments: Arguments, k: int = 6, steps: int = 4):
    n_way = len(whole)
    counts = [n_way + k * step for step in range(steps + 1)]
    labels = " | ".join(f"{count} labels" for count in counts)
    print(f"| strategy | {labels} | gain over random, mean of the steps | at the end |")
    print("|---" * (len(counts) + 3) + "|")
    curves = {}
    for strategy in ("random", *(one for one in STRATEGIES if one != "random")):
        curves[strategy] = np.array(
            [_labelled_step_by_step(model, whole, arguments.seed, draw, strategy, n_way, k, steps)
             for draw in tqdm(range(arguments.draws), leave=False)]
        )  # fmt: skip
        numbers = " | ".join(mean_and_interval(values) for values in curves[strategy].T)
        gains = curves[strategy][:, 1:] - curves["random"][:, 1:]
        gain = "- | -"
        if strategy != "random":
            gain = f"{mean_and_interval(gains.mean(1))} | {mean_and_interval(gains[:, -1])}"
        print(f"| {strategy} | {numbers} | {gain} |", flush=True)


def _labelled_step_by_step(
    model, whole: SupportSet, seed: int, draw: int, strategy: str, n_way: int, k: int, steps: int
) -> list[float]:
    """Accuracies with one clip per class, then with k more of the pool at each step; half of the other clips are it."""
    rng = np.random.default_rng([seed, n_way, draw])
    support_set, embeds, labels = draw_support_set(whole, n_way, 1, rng)
    order = torch.from_numpy(rng.permutation(len(labels)))
    pool, held_out = order.chunk(2)
    accuracies = [accuracy_of(model, support_set, embeds[held_out], labels[held_out])]
    for step in range(steps):
        chosen = [one.index for one in support_set.suggest(model, embeds[pool], k, strategy, seed=seed + draw + step)]
        for row in pool[chosen].tolist():
            name = support_set.class_names[int(labels[row])]
            one = support_set.classes[name]
            clips = torch.cat([one.support_embeds, embeds[row, None]])
            names = [f"clip {number}" for number in range(len(clips))]
            support_set.classes[name] = EnrolledClass(one.class_embeds, names, clips, [b""] * len(clips))
        is_left = torch.ones(len(pool), dtype=torch.bool)
        is_left[chosen] = False
        pool = pool[is_left]
        accuracies.append(accuracy_of(model, support_set, embeds[held_out], labels[held_out]))
    return accuracies


TABLES = {"review": measure_review, "tune": measure_tuning, "suggest": measure_suggestions}


def main(arguments: Arguments):
    model, processor = load_model(arguments.model)
    whole = enroll_split(model, processor, arguments)
    for name in arguments.only:
        print(f"\n{name}\n")
        TABLES[name](model, whole, arguments)
    print(
        f"\n{arguments.model}, {len(whole)} classes of the split {arguments.split!r}, "
        f"{arguments.videos_per_class} clips each, {arguments.draws} draws, seed {arguments.seed}."
    )


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
