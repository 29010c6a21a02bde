"""How good "none of these" is on the embedded synthetic actions, as Markdown tables.

    python -m benchmarks.unknown_videos                                   # the tiny CLIP, untrained; novel classes
    python -m benchmarks.unknown_videos --split validation              # the classes that chose the score
    python -m benchmarks.unknown_videos --model demo_output/run/best    # a trained model

Each draw enrolls half of the split's classes with a few clips each. The queries are the other clips of these classes
(known) and all clips of the other half (unknown). Numbers are means with 95% intervals over draws.

scores: AUROC is the chance that an unknown video scores higher than a known one, AUPR the average precision of finding
unknown videos, OSCR the chance that a known video scores lower and is also recognised (few-shot). Most classes of the
novel split come in time-reversed pairs, and all are red or green stars, circles or rings. Unknown videos therefore
resemble known ones far more than an arbitrary video would.

likeness: AUROC of the unknown videos that resemble an enrolled class in one way or another.

threshold: errors at a score of 0.5, by itself and with an `unknown_error_rate`. Known videos that are refused should
not be more than this rate; unknown videos that are let through have no guarantee.

background: all clips are filmed in one room. The same errors, and those on clips of the room without a subject, only
with bystanders; without and with five such clips as background.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from benchmarks.support_sets import enroll_split, mean_and_interval, with_clips
from choices_clipfsar import INFERENCE_MODES
from clipfsar.evaluation.unknowns import aupr, auroc, oscr
from clipfsar.inference.load_model import load_model
from clipfsar.options import parse_options
from demo.synthetic import TINY_CLIP
from demo.synthetic.actions import ACTIONS
from demo.synthetic.classes import parse_class_name
from demo.synthetic.render import draw_scene, paint_scene
from left_out_clipfsar import leave_one_out
from support_set_clipfsar import SupportSet

BACKGROUND_CLIPS = 5
ERROR_RATES = (0.05, 0.1, 0.2)


@dataclass
class Arguments:
    model: str = field(default=str(TINY_CLIP), metadata={"help": "CLIP-FSAR model or plain CLIP."})
    split: str = field(default="test", metadata={"help": "Classes to draw from: test are the novel ones."})
    videos_per_class: int = field(default=40, metadata={"help": "Clips of each class."})
    n_shot: list[int] = field(default_factory=lambda: [2, 5, 10], metadata={"help": "Clips enrolled per class."})
    draws: int = field(default=40, metadata={"help": "Support sets to draw per number of shots."})
    only: list[str] = field(default_factory=lambda: list(TABLES), metadata={"help": "Tables to make."})
    features: str | None = field(default=None, metadata={"help": "Folder that keeps the encoded clips."})
    seed: int = field(default=0, metadata={"help": "Seed of clips and draws."})


@dataclass
class Draw:
    """A support set of half of the classes, and frame features of the queries.

    Args:
        known: (K, T, D), other clips of these classes.
        labels: (K,), their classes.
        unknown: (U, T, D), clips of the other classes.
        unknown_names: (U,), these classes.
    """

    support_set: SupportSet
    known: torch.Tensor
    labels: np.ndarray
    unknown: torch.Tensor
    unknown_names: list[str]


def draws_of(whole: SupportSet, n_shot: int, arguments: Arguments):
    for number in tqdm(range(arguments.draws), f"{n_shot} clips", leave=False):
        rng = np.random.default_rng([arguments.seed, n_shot, number])
        yield draw_support_set(whole, n_shot, rng)


def draw_support_set(whole: SupportSet, n_shot: int, rng: np.random.Generator) -> Draw:
    """A support set of half of the classes with `n_shot` random clips each."""
    enrolled, known, labels, unknown, unknown_names = SupportSet(whole.fingerprint), [], [], [], []
    order = rng.permutation(whole.class_names)
    for number, name in enumerate(order):
        one = whole.classes[name]
        rows = rng.permutation(len(one.clip_names))
        if number >= len(order) // 2:
            unknown.append(one.support_embeds)
            unknown_names += [str(name)] * len(rows)
            continue
        enrolled.classes[str(name)] = with_clips(one, rows[:n_shot])
        known.append(one.support_embeds[rows[n_shot:]])
        labels += [number] * (len(rows) - n_shot)
    return Draw(enrolled, torch.cat(known), np.array(labels), torch.cat(unknown), unknown_names)


# --- candidates: larger is less known ---------------------------------------------------------------------------------


def smallest_distance(model, draw: Draw, embeds: torch.Tensor) -> torch.Tensor:
    return draw.support_set.compare(model, embeds)[0].amin(1)


def softmax(model, draw: Draw, embeds: torch.Tensor) -> torch.Tensor:
    return -(-draw.support_set.compare(model, embeds)[0]).softmax(1).amax(1)


def energy(model, draw: Draw, embeds: torch.Tensor) -> torch.Tensor:
    return -(-draw.support_set.compare(model, embeds)[0]).logsumexp(1)


def ratio_to_the_second(model, draw: Draw, embeds: torch.Tensor) -> torch.Tensor:
    first, second = draw.support_set.compare(model, embeds)[0].topk(2, dim=1, largest=False).values.unbind(1)
    return first / second


def distance_per_class(model, draw: Draw, embeds: torch.Tensor) -> torch.Tensor:
    """The distance to each class minus the mean distance of its own left-out clips."""
    left_out = leave_one_out(model, draw.support_set.classes, range(sum(draw.support_set.num_clips.values())))
    own = left_out.distances.gather(1, left_out.labels[:, None])[:, 0].view(len(draw.support_set), -1)
    return (draw.support_set.compare(model, embeds)[0] - own.mean(1)).amin(1)


def nearest_clip(model, draw: Draw, embeds: torch.Tensor) -> torch.Tensor:
    clips = torch.cat([one.support_embeds for one in draw.support_set.classes.values()])
    one, other = (F.normalize(F.normalize(rows, dim=-1).flatten(1), dim=-1) for rows in (embeds, clips))
    return -(one @ other.T).amax(1)


def of_mode(inference_mode: str) -> Callable:
    return lambda model, draw, embeds: draw.support_set.score_unknown(model, embeds, inference_mode).double().logit()


CANDIDATES = {
    "score_unknown, ensemble": of_mode("ensemble"),
    "score_unknown, few_shot: nearest clip, calibrated per class": of_mode("few_shot"),
    "score_unknown, zero_shot: largest text logit": of_mode("zero_shot"),
    "nearest clip": nearest_clip,
    "smallest distance to a prototype, calibrated per class": distance_per_class,
    "smallest distance to a prototype (version 0.2)": smallest_distance,
    "energy": energy,
    "largest softmax probability": softmax,
    "ratio of the two smallest distances": ratio_to_the_second,
}


# --- tables -----------------------------------------------------------------------------------------------------------


def measure_scores(model, whole: SupportSet, arguments: Arguments):
    print("| clips each | score | AUROC | over softmax | AUPR | OSCR |")
    print("|---|---|---|---|---|---|")
    for n_shot in arguments.n_shot:
        numbers = {name: [] for name in CANDIDATES}
        accuracies = []
        for draw in draws_of(whole, n_shot, arguments):
            is_right = draw.support_set.classify(model, draw.known, "few_shot").argmax(1).numpy() == draw.labels
            accuracies.append(is_right.mean())
            for name, score in CANDIDATES.items():
                known, unknown = (score(model, draw, embeds).numpy() for embeds in (draw.known, draw.unknown))
                numbers[name].append((auroc(known, unknown), aupr(known, unknown), oscr(known, unknown, is_right)))
        baseline = np.array(numbers["largest softmax probability"])[:, 0]
        for name, values in numbers.items():
            one, two, three = np.array(values).T
            gain = mean_and_interval(one - baseline, 3) if name != "largest softmax probability" else "-"
            cells = [mean_and_interval(one, 3), gain, mean_and_interval(two, 3), mean_and_interval(three, 3)]
            print(f"| {n_shot} | {name} | {' | '.join(cells)} |", flush=True)
        print(f"| {n_shot} | *accuracy on known clips, few_shot* | | | | {mean_and_interval(accuracies, 3)} |")


def likeness(name: str, enrolled: list[str]) -> str:
    """How much a class resembles the most similar enrolled one."""
    *look, action = parse_class_name(name)
    alike = [other for *others, other in map(parse_class_name, enrolled) if others == look]
    if any(ACTIONS[other].motion is ACTIONS[action].motion for other in alike):
        return "an enrolled action, backwards"
    return "an enrolled look, another action" if alike else "another look"


def measure_likeness(model, whole: SupportSet, arguments: Arguments):
    print("| clips each | unknown videos show | few_shot | ensemble |")
    print("|---|---|---|---|")
    for n_shot in arguments.n_shot:
        numbers: dict = {}
        for draw in draws_of(whole, n_shot, arguments):
            groups = np.array([likeness(name, draw.support_set.class_names) for name in draw.unknown_names])
            scores = [scores_of(model, draw, mode) for mode in ("few_shot", "ensemble")]
            for group in set(groups):
                values = [auroc(known, unknown[groups == group]) for known, unknown in scores]
                numbers.setdefault(group, []).append(values)
        for group, values in sorted(numbers.items()):
            cells = " | ".join(mean_and_interval(one, 2) for one in np.array(values).T)
            print(f"| {n_shot} | {group} | {cells} |", flush=True)


def measure_thresholds(model, whole: SupportSet, arguments: Arguments):
    print("| clips each | mode | unknown_error_rate | known refused / % | unknown let through / % |")
    print("|---|---|---|---|---|")
    for n_shot in arguments.n_shot:
        errors: dict = {}
        for draw in draws_of(whole, n_shot, arguments):
            least = 1 / (n_shot * len(draw.support_set) + 1)
            for mode in INFERENCE_MODES:
                draw.support_set.unknown_error_rate = None
                errors.setdefault((mode, None), []).append(errors_of(scores_of(model, draw, mode), 0.5))
                draw.support_set.unknown_error_rate = 0.5
                scores = scores_of(model, draw, mode)
                for rate in (rate for rate in ERROR_RATES if rate >= least):
                    threshold = 0.5 / (
                        0.5 + rate
                    )  # the score at the rate of 0.5 of a video that scores 0.5 at this rate
                    errors.setdefault((mode, rate), []).append(errors_of(scores, threshold - 1e-6))
        for (mode, rate), values in sorted(errors.items(), key=lambda item: INFERENCE_MODES.index(item[0][0])):
            cells = " | ".join(mean_and_interval(one) for one in np.array(values).T)
            print(f"| {n_shot} | {mode} | {'none' if rate is None else rate} | {cells} |", flush=True)


def scores_of(model, draw: Draw, mode: str) -> tuple[np.ndarray, np.ndarray]:
    known, unknown = (draw.support_set.score_unknown(model, embeds, mode) for embeds in (draw.known, draw.unknown))
    return known.numpy(), unknown.numpy()


def errors_of(scores: tuple[np.ndarray, np.ndarray], threshold: float) -> tuple[float, float]:
    """Known clips that are refused and unknown ones that are let through, in percent."""
    return 100 * float(np.mean(scores[0] >= threshold)), 100 * float(np.mean(scores[1] < threshold))


def film_one_room(class_name: str, room: np.ndarray, seed: int, index: int, subject: bool = True) -> np.ndarray:
    """Frames of a clip of a class in front of a background that many clips share; without its subject if asked for."""
    scene = draw_scene(class_name, seed, index)
    scene.background = room[: scene.background.shape[0], : scene.background.shape[1]]
    scene.objects = scene.objects if subject else scene.objects[: -scene.num_subjects]
    return paint_scene(scene)


def measure_background(model, processor, whole: SupportSet, arguments: Arguments):
    names, seed, number = whole.class_names, arguments.seed, arguments.videos_per_class // 2
    room = draw_scene(names[0], seed, 0).background.mean(axis=(0, 1), keepdims=True).repeat(400, 0).repeat(400, 1)
    in_room, empty = SupportSet(), SupportSet()
    for name in tqdm(names, "rendering and encoding", unit="class"):
        clips = [film_one_room(name, room, seed, index) for index in range(number)]
        in_room.add(model, processor, {name: clips}, thumbnails=False)
    scenes = [film_one_room(names[row % len(names)], room, seed + 1, row, subject=False) for row in range(2 * number)]
    empty.add_background(model, processor, scenes, thumbnails=False)
    background = empty.unknowns.background
    print("| clips each | mode | background | known refused / % | unknown let through / % | empty let through / % |")
    print("|---|---|---|---|---|---|")
    for n_shot in arguments.n_shot:
        errors: dict = {(mode, count): [] for mode in ("few_shot", "ensemble") for count in (0, BACKGROUND_CLIPS)}
        for draw_number, draw in enumerate(draws_of(in_room, n_shot, arguments)):
            rows = np.random.default_rng([seed, draw_number]).permutation(2 * number)
            rest = background.support_embeds[rows[BACKGROUND_CLIPS:]]
            for mode, count in errors:
                chosen = with_clips(background, rows[:count]) if count else None
                draw.support_set.unknowns = replace(empty.unknowns, background=chosen)
                passed = 100 * float((draw.support_set.score_unknown(model, rest, mode) < 0.5).float().mean())
                errors[mode, count].append((*errors_of(scores_of(model, draw, mode), 0.5), passed))
        for (mode, count), values in errors.items():
            cells = " | ".join(mean_and_interval(one) for one in np.array(values).T)
            print(f"| {n_shot} | {mode} | {count} clips | {cells} |", flush=True)


TABLES = ("scores", "likeness", "threshold", "background")


def main(arguments: Arguments):
    model, processor = load_model(arguments.model)
    whole = enroll_split(model, processor, arguments)
    for name in arguments.only:
        print(f"\n{name}\n")
        if name == "scores":
            measure_scores(model, whole, arguments)
        elif name == "likeness":
            measure_likeness(model, whole, arguments)
        elif name == "threshold":
            measure_thresholds(model, whole, arguments)
        else:
            measure_background(model, processor, whole, arguments)
    print(
        f"\n{arguments.model}, {len(whole) // 2} of {len(whole)} classes of the split {arguments.split!r} enrolled, "
        f"{arguments.videos_per_class} clips each, mean and 95% interval over {arguments.draws} draws, "
        f"seed {arguments.seed}."
    )


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
