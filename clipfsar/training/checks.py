"""Checks of a run's data before the training starts: classes, numbers of videos, first videos."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from choices_clipfsar import normalized_class_name
from clipfsar.data.splits import check_disjoint_classes
from clipfsar.data.video_split import VideoSplit
from episodes_clipfsar import EpisodeSampler


def check_classes(splits: Mapping[str, VideoSplit], args, tests: bool = False):
    """Checks that the splits share no classes, and that validation (with `tests`, also the test) has enough videos.

    Raises:
        ValueError: For shared classes, or too few classes or videos.
    """
    if not args.allow_shared_classes:
        datasets = {name: split.dataset for name, split in splits.items()}
        check_disjoint_classes(datasets, args.label_column)
    if args.select_on in splits:
        check_protocol(splits[args.select_on], args.n_way, args.n_shot[:1], args.n_query)
    if tests and "test" in splits:
        check_protocol(splits["test"], args.n_way, args.n_shot, args.n_query)


def check_protocol(split: VideoSplit, n_way: int, shots: Sequence[int], n_query: int):
    """Raises `ValueError` when a split has too few classes or videos for an evaluation."""
    for n_shot in shots:
        try:
            EpisodeSampler(split.labels, n_way, n_shot, n_query, 0, split.class_names)
        except ValueError as error:
            message = f"Split {split.name!r} cannot be used {n_way}-way {n_shot}-shot: {error}"
            raise ValueError(message) from None


def check_first_video(split: VideoSplit, processor, training: bool = False):
    """Processes the first video of a split, to find moved folders and frame stores of the wrong size early."""
    processor.process_videos([split.video(0)], training=training, generator=torch.Generator())


def training_sampler(split: VideoSplit, args) -> EpisodeSampler:
    """The sampler of the training episodes; `ValueError` with the options' names when the split is too small."""
    shots = (args.n_way, args.train_n_shot, args.train_n_query)
    try:
        return EpisodeSampler(split.labels, *shots, args.seed, split.class_names)
    except ValueError as error:
        raise ValueError(
            f"Split {split.name!r} cannot be used for training with --n_way {args.n_way}, --train_n_shot "
            f"{args.train_n_shot} and --train_n_query {args.train_n_query}: {error}"
        ) from None


def check_sampler(sampler: EpisodeSampler, split: VideoSplit, args) -> None:
    """Raises `ValueError` if a sampler that was given draws other episodes than `args` say, or from other videos."""
    names = {"n_way": "n_way", "n_shot": "train_n_shot", "n_query": "train_n_query"}
    different = [
        f"{name}={getattr(sampler, name)}, but the arguments say {of_args}={getattr(args, of_args)}"
        for name, of_args in names.items()
        if getattr(sampler, name) != getattr(args, of_args)
    ]
    if different:
        raise ValueError(f"The sampler has {'; '.join(different)}: give both the same numbers.")
    if not np.array_equal(sampler.labels, split.labels):
        raise ValueError("The sampler was made with labels of other videos than train_dataset: make it with those.")


def is_of_test_classes(split: VideoSplit, trained_on: VideoSplit | None, selected_on: VideoSplit | None, args) -> bool:
    """Whether results on a split may stand in a model card, as those of classes that did not shape the model."""
    names = {normalized_class_name(name) for name in split.class_names}
    # The card says if the model was selected on the test split, or if classes may be shared.
    others = [None if args.select_on == "test" else selected_on, None if args.allow_shared_classes else trained_on]
    seen = {normalized_class_name(name) for one in others if one is not None for name in one.class_names}
    return not names & seen


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Raises `ValueError` when a `validate` of your own leaves out a metric that the log and the model card need."""
    missing = sorted({"accuracy", "interval", "n_episodes"} - set(metrics))
    if missing:
        raise ValueError(f"validate() returned no {', '.join(missing)}: the log and the model card need it.")


__all__ = [
    *("check_classes", "check_first_video", "check_metrics", "check_protocol", "check_sampler"),
    *("is_of_test_classes", "training_sampler"),
]
