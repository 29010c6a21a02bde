"""Accuracy of "none of these" on the embedded synthetic actions, as a Markdown table.

    python -m benchmarks.unknown_videos                                   # the tiny CLIP, untrained; novel classes
    python -m benchmarks.unknown_videos --model demo_output/run/best   # a trained model

Each draw enrolls half of the split's classes with a few clips each. The queries are the other clips of these classes
(known) and all clips of the other half (unknown). AUROC is the chance that an unknown video scores higher than a known
one. "Wrongly refused" and "let through" are errors at the threshold of 0.5, which depends only on the support set. Most
classes of the novel split come in time-reversed pairs, and all are red or green stars, circles or rings. Unknown videos
therefore resemble known ones far more than an arbitrary video would.
"""

import tempfile
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from clipfsar.data.splits import load_video_splits
from clipfsar.inference.load_model import load_model
from clipfsar.options import parse_options
from demo.synthetic import TINY_CLIP
from demo.synthetic.render import render_dataset
from episodes_clipfsar import read_labels
from support_set_clipfsar import SupportSet

MODES = ("few_shot", "zero_shot", "ensemble")


@dataclass
class Arguments:
    model: str = field(default=str(TINY_CLIP), metadata={"help": "CLIP-FSAR model or plain CLIP."})
    split: str = field(default="test", metadata={"help": "Classes to draw from: test are the novel ones."})
    videos_per_class: int = field(default=20, metadata={"help": "Clips of each class."})
    n_shot: list[int] = field(default_factory=lambda: [2, 5, 10], metadata={"help": "Clips enrolled per class."})
    draws: int = field(default=40, metadata={"help": "Support sets to draw per number of shots."})
    seed: int = field(default=0, metadata={"help": "Seed of clips and draws."})


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Chance that an unknown score is above a known one; ties count half."""
    return float(np.mean((unknown[:, None] > known) + 0.5 * (unknown[:, None] == known)))


def draw_support_set(whole: SupportSet, n_shot: int, rng: np.random.Generator):
    """A support set of half of the classes with `n_shot` random clips each; the features of known and unknown clips."""
    enrolled, known, unknown = SupportSet(whole.fingerprint), [], []
    order = rng.permutation(whole.class_names)
    for number, name in enumerate(order):
        one = whole.classes[name]
        if number >= len(order) // 2:
            unknown.append(one.support_embeds)
            continue
        rows = rng.permutation(len(one.clip_names))
        chosen = type(one)(one.class_embeds, [one.clip_names[row] for row in rows[:n_shot]])
        chosen.support_embeds, chosen.thumbnails = one.support_embeds[rows[:n_shot]], [b""] * n_shot
        enrolled.classes[str(name)] = chosen
        known.append(one.support_embeds[rows[n_shot:]])
    return enrolled, torch.cat(known), torch.cat(unknown)


def main(arguments: Arguments):
    model, processor = load_model(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        counts = dict.fromkeys(("train", "validation", "test"), 1) | {arguments.split: arguments.videos_per_class}
        render_dataset(folder, counts, seed=arguments.seed)
        split = load_video_splits(folder)[arguments.split]
        labels, class_names = read_labels(split)
        clips = {name: [] for name in class_names}
        for video, label in zip(split["video"], labels, strict=True):
            clips[class_names[label]].append(video)
        whole = SupportSet.from_videos(model, processor, clips, thumbnails=False, show_progress=True)

    print("| clips per class | mode | AUROC | wrongly refused / % | let through / % |")
    print("|---|---|---|---|---|")
    for n_shot in arguments.n_shot:
        rows = {mode: [] for mode in MODES}
        for draw in tqdm(range(arguments.draws), leave=False):
            rng = np.random.default_rng([arguments.seed, n_shot, draw])
            support_set, *queries = draw_support_set(whole, n_shot, rng)
            for mode in MODES:
                known, unknown = (support_set.score_unknown(model, embeds, mode).numpy() for embeds in queries)
                errors = 100 * np.mean(known >= 0.5), 100 * np.mean(unknown < 0.5)
                rows[mode].append((auroc(known, unknown), *errors))
        for mode, values in rows.items():
            mean, interval = np.mean(values, 0), 1.96 * np.std(values, 0, ddof=1) / len(values) ** 0.5
            refused, let_through = (f"{mean[i]:.0f} ± {interval[i]:.0f}" for i in (1, 2))
            print(f"| {n_shot} | {mode} | {mean[0]:.3f} ± {interval[0]:.3f} | {refused} | {let_through} |")
    print(
        f"\n{arguments.model}, {len(class_names) // 2} of {len(class_names)} classes of the split {arguments.split!r} "
        f"enrolled, mean and 95% interval over {arguments.draws} draws, seed {arguments.seed}."
    )


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
