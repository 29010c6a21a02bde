"""Training settings per benchmark. The command line overrides the preset, and the preset the defaults."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields

_EPIC_PAGE = "https://github.com/alibaba-mmai-research/CLIP-FSAR/tree/main/configs/projects/hyrsmplusplus/epic_kitchens"
_DIVING_PAGE = "https://github.com/OldStone0124/Knowledge-Prompting-for-FSAR/tree/main/data/diving48V2"


@dataclass(frozen=True)
class Preset:
    """The official settings of a benchmark (Section 4.1 of the paper, and the official program).

    The official program has settings for CLIP's ResNet-50 only; no ViT settings were published. The presets combine
    these settings with ViT-B/16, the paper's other backbone. This combination is ours and was not tuned.

    CLIP-FSAR has no settings for two more sets. EPIC-Kitchens has those of HyRSM++ (HyRSMplusplus_Epic_1shot_v1.yaml of
    the official repository, for an ImageNet ResNet-50). Diving48 has our defaults.

    Args:
        learning_rate, warmup_learning_rate: Full learning rate, and start of the linear warm-up.
        warmup_episodes: Length of the warm-up. (The official program calls it iterations per epoch.)
        decay_episodes: Episodes at which the rate falls to a tenth, and to a hundredth.
        episodes: Training episodes. The official program runs as many in each of four processes, but all four draw the
            same episodes, so the number of different episodes is equal.
        video_text_loss_weight: Weight of the video-text contrast; None: the default.
        eval_every: Episodes between validations.
        sizes: Published numbers of classes and videos of each split; None where nobody published a number of videos.
            Only `clipfsar prepare` checks them.
        lists_page: Where the split lists are, if `clipfsar prepare` does not download them.
        seed: Seed of the episodes and the new layers.
        frame_sampling: One frame from each of T segments (random in training, central in evaluation; officially random
            in both), or `"interval"`, T frames at a fixed rate.
        sampling_rate: The rate of `"interval"`: frames between sampled ones, at 12 frames per second.
        query_augmentation: Flip and colour jitter of query videos in training, for Kinetics only.
        preprocessing: The official preprocessing: squash to a square, then crop.
        model: The CLIP to start from.
    """

    learning_rate: float
    warmup_learning_rate: float
    warmup_episodes: int
    decay_episodes: tuple[int, ...]
    episodes: int
    video_text_loss_weight: float | None
    eval_every: int
    sizes: dict[str, tuple[int, int | None]]
    seed: int = 0
    frame_sampling: str = "segment_center"
    sampling_rate: int = 35
    query_augmentation: str = "none"
    preprocessing: str = "official"
    model: str = "openai/clip-vit-base-patch16"
    lists_page: str | None = None

    def as_defaults(self) -> dict:
        """The settings as command-line defaults, with lists instead of tuples."""
        names = [item.name for item in fields(self) if item.name not in ("sizes", "lists_page")]
        values = {name: getattr(self, name) for name in names}
        return values | {"decay_episodes": list(self.decay_episodes)}


def _sizes(
    train: tuple[int, int | None], validation: tuple[int, int], test: tuple[int, int]
) -> dict[str, tuple[int, int | None]]:
    return {"train": train, "validation": validation, "test": test}


PRESETS = {
    "ssv2_full": Preset(
        5e-5,
        1e-5,
        4000,
        (8000, 12000),
        30_000,
        3.0,
        eval_every=1000,
        sizes=_sizes((64, 67_013), (12, 1926), (24, 2857)),
    ),
    "ssv2_small": Preset(
        5e-5, 2e-5, 2000, (4000, 6000), 30_000, 3.0, eval_every=1000, sizes=_sizes((64, 6400), (12, 1200), (24, 2400))
    ),
    "kinetics100": Preset(
        1e-5,
        5e-6,
        250,
        (750, 1250),
        5_000,
        1.5,
        eval_every=100,
        sizes=_sizes((64, 6400), (12, 1200), (24, 2400)),
        seed=18,
        frame_sampling="interval",
        query_augmentation="kinetics",
    ),
    "ucf101": Preset(
        2e-6, 1e-7, 600, (1200, 1800), 3_000, 1.5, eval_every=100, sizes=_sizes((70, 9154), (10, 1421), (21, 2745))
    ),
    "hmdb51": Preset(
        1e-5, 1e-6, 700, (1400, 2100), 5_000, 1.2, eval_every=300, sizes=_sizes((31, 4280), (10, 1194), (10, 1292))
    ),
    "epic_kitchens": Preset(
        5e-5,
        1e-5,
        400,
        (800, 1600),  # steps 4 and 7 of a counter that grows by 2 every 400 iterations
        2_000,
        None,
        eval_every=100,
        sizes={"train": (60, None), "test": (20, None)},  # there is no list of validation classes
        seed=18,
        frame_sampling="interval",
        sampling_rate=50,
        lists_page=_EPIC_PAGE,
    ),
    "diving48": Preset(
        1e-5,
        1e-6,
        200,
        (),
        2_000,
        None,
        eval_every=200,
        sizes=_sizes((36, None), (6, 857), (6, 2798)),
        lists_page=_DIVING_PAGE,
    ),
}


def dataset_folder(benchmark: str) -> str:
    """The folder where `clipfsar prepare` writes the data of a benchmark and `train/train.py` looks for them."""
    return f"./data/{benchmark}"  # the dot shows that it is not a Hub id


def benchmark_on(command_line: Sequence[str]) -> str | None:
    """The benchmark named on a command line, or None. Its preset sets the defaults of the other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--benchmark", nargs="?")
    benchmark = parser.parse_known_args(command_line)[0].benchmark
    return benchmark if benchmark in PRESETS else None  # the real parser refuses an unknown one


def learning_rate_at(
    episode: int,
    learning_rate: float,
    warmup_learning_rate: float,
    warmup_episodes: int,
    decay_episodes: Sequence[int],
) -> float:
    """Learning rate at a training episode (from 0): linear warm-up, then 1x, 0.1x, 0.01x of the full rate.

    The official program's "iteration" is one episode of one process.
    """
    if episode < warmup_episodes:
        return warmup_learning_rate + (learning_rate - warmup_learning_rate) * episode / warmup_episodes
    return learning_rate * 0.1 ** sum(episode >= start for start in decay_episodes)


__all__ = ["PRESETS", "Preset", "benchmark_on", "dataset_folder", "learning_rate_at"]
