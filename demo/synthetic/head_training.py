"""Trains heads on the base classes of a track, without texts, and chooses them on its validation classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from clipfsar.evaluation.episodes import predict_episodes
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.training.frozen_features import FeatureCollator
from demo.synthetic.quiet import quiet
from demo.synthetic.track_classes import Track
from demo.synthetic.track_features import ClassClips, Features, encode_class, new_model, what_to_encode
from demo.synthetic.track_heads import N_WAY, Recipe, train_on_episodes, training_episodes
from modeling_clipfsar import CLIPFSARModel

TRAINED_HEADS = ("trx", "hyrsm")
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
TRX_SIZE = 128  # the official 1152 are for features of 2048; here they have 128
_VALIDATION_EPISODES = 200


@dataclass(frozen=True)
class TrackFeatures:
    """Features of a track's base and validation classes, and of its novel classes, of one look where they share it."""

    track: Track
    base: Features
    validation: Features
    novel: Features

    def base_of(self, fold: int) -> Features:
        return self.base.of(self.track.base_of(fold))

    def novel_of(self, fold: int) -> Features:
        names = set(self.track.novel_of(fold))
        return self.novel.of(tuple(name for name in self.novel.class_names if name in names))


def encode_track(track: Track, novel_clips: int) -> TrackFeatures:
    """Renders and encodes the clips of a track, `novel_clips` of each novel class."""
    jobs = what_to_encode(track, seed=0)
    names = track.scopes(track.novel)[0]
    novel = [ClassClips(name, novel_clips, 0, track.distractor_size, 0) for name in names]
    return TrackFeatures(track, encode(jobs["base"]), encode(jobs["validation"]), encode(novel))


def encode(jobs: Sequence[ClassClips]) -> Features:
    videos, texts = (torch.from_numpy(np.stack(parts)) for parts in zip(*map(encode_class, jobs), strict=True))
    return Features(tuple(job.class_name for job in jobs), videos, texts)


def split_of(model: CLIPFSARModel, features: Features) -> SplitFeatures:
    return SplitFeatures(model, features.clips[:, 0], features.texts, features.labels)


def new_head_model(alignment: str, seed: int) -> CLIPFSARModel:
    """A model with a new head to train, on plain frame features."""
    torch.manual_seed(seed)
    settings = {"prototype_modulation": False, "video_text_loss_weight": 0.0, "trx_size": TRX_SIZE}
    with quiet():  # every weight of a head is new, so transformers lists them all
        return new_model(temporal_num_layers=0, alignment=alignment, **settings)


def validation_accuracy(model: CLIPFSARModel, data: TrackFeatures) -> float:
    """5-way 1-shot accuracy (%) in sampled episodes of the validation classes: HyRSM has no exact one."""
    means = []
    for names in data.track.scopes(data.validation.class_names):
        part = data.validation.of(names)
        sampler = Protocol(N_WAY, 1, 1, _VALIDATION_EPISODES, 0, "few_shot").sampler(part.labels, 1, list(names))
        answers = predict_episodes(split_of(model, part), sampler, range(_VALIDATION_EPISODES))
        means.append(100 * answers["few_shot"].accuracies.mean())
    return float(np.mean(means))


def train(alignment: str, data: TrackFeatures, fold: int, rate: float, seed: int) -> tuple[CLIPFSARModel, float]:
    """The state of one training that is best on validation classes, and its accuracy (%) there."""
    recipe, base = replace(Recipe(), learning_rate=rate), data.base_of(fold)
    with torch.random.fork_rng():
        model = new_head_model(alignment, seed)
        history = train_on_episodes(
            model,
            recipe,
            training_episodes(base.class_names, base.labels, recipe, seed),
            FeatureCollator(base.clips),
            base.texts,
            lambda: validation_accuracy(model, data),
        )
    return model, max(one["validation_accuracy"] for one in history)


def choose_rate(alignment: str, data: TrackFeatures) -> float:
    """The learning rate that is best on validation classes, in one training per rate, in the first fold."""
    return max(LEARNING_RATES, key=lambda rate: train(alignment, data, 0, rate, 0)[1])


__all__ = [
    "TRAINED_HEADS",
    "TrackFeatures",
    "choose_rate",
    "encode_track",
    "new_head_model",
    "split_of",
    "train",
    "validation_accuracy",
]
