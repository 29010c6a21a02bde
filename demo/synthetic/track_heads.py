"""Trains the temporal transformer on cached features, and measures its accuracy with and without texts.

It uses the library's parts: `CLIPFSARModel` on `support_embeds` and `query_embeds`, its loss, `EpisodeDataset`,
`FeatureCollator`, `optimizer_groups`, exact 1-shot accuracy and `SplitFeatures`. `EpisodicTrainer` with a frozen tower
does the same, but starts from video files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Value
from datasets import Features as Columns

from clipfsar.evaluation.exact_accuracy import exact_one_shot_accuracies
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.presets import learning_rate_at
from clipfsar.training.frozen_features import ROW, FeatureCollator
from clipfsar.training.optimization import optimizer_groups
from demo.synthetic.track_classes import Track, twin_of, verb_of
from demo.synthetic.track_features import Features, new_model
from episodes_clipfsar import EpisodeDataset, EpisodeSampler
from modeling_clipfsar import CLIPFSARModel

N_WAY = 5
SHOTS = (1, 5)


@dataclass(frozen=True)
class Recipe:
    """Training recipe of a temporal transformer.

    The defaults have the best 1-shot accuracy of CLIP-FSAR on the validation classes of both tracks, among recipes that
    take less than 10 seconds on one core. Episodes are wider than the paper's 5-way episodes: a query is compared with
    20 classes, so each clip teaches more.

    Args:
        episodes: Training episodes.
        episodes_per_step: Episodes per optimizer step, in one forward pass.
        n_way, n_query: Classes of a training episode, and query clips per class. Each class has one support clip.
        learning_rate: Full learning rate. It warms up linearly from a tenth, and is a tenth again in the last sixth.
        weight_decay: Weight decay of AdamW.
        validations: Number of validations during the training. The state with the best one is tested.
    """

    episodes: int = 150
    episodes_per_step: int = 1
    n_way: int = 20
    n_query: int = 1
    learning_rate: float = 5e-4
    weight_decay: float = 1e-3
    validations: int = 3

    def rate_at(self, episode: int) -> float:
        warmup = self.episodes // 10
        return learning_rate_at(
            episode, self.learning_rate, self.learning_rate / 10, warmup, (self.episodes * 5 // 6, self.episodes)
        )


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def new_head(with_text: bool, seed: int) -> CLIPFSARModel:
    """A model with a new temporal transformer; `with_text` turns on prototype modulation and video-text contrast."""
    torch.manual_seed(seed)
    return new_model(
        temporal_num_layers=1,
        alignment="otam",
        prototype_modulation=with_text,
        video_text_loss_weight=1.5 if with_text else 0.0,
    )


def frozen_head(alignment: str) -> CLIPFSARModel:
    """A model that compares the tiny CLIP's unchanged features."""
    return new_model(temporal_num_layers=0, alignment=alignment, prototype_modulation=False)


def train_head(
    track: Track, base: Features, validation: Features, recipe: Recipe, with_text: bool, seed: int
) -> tuple[CLIPFSARModel, list[dict]]:
    """The trained model with the best 1-shot validation accuracy, and the history of validations.

    A pure function of its arguments: it restores torch's global random state.
    """
    with torch.random.fork_rng():
        model = new_head(with_text, seed)
        episodes = training_episodes(base.class_names, base.labels, recipe, seed)
        history = train_on_episodes(
            model,
            recipe,
            episodes,
            FeatureCollator(base.clips),
            base.texts,
            lambda: mean_one_shot(model, track, validation),
        )
    return model, history


def training_episodes(class_names: Sequence[str], labels: np.ndarray, recipe: Recipe, seed: int) -> EpisodeDataset:
    """Episodes over row numbers of clips instead of videos."""
    columns = {ROW: list(range(len(labels))), "label": labels.tolist()}
    types = Columns({ROW: Value("int64"), "label": ClassLabel(names=list(class_names))})
    dataset = Dataset.from_dict(columns, features=types)
    return EpisodeDataset(dataset, recipe.n_way, 1, recipe.n_query, recipe.episodes, seed, video_column=ROW)


def train_on_episodes(
    model: CLIPFSARModel,
    recipe: Recipe,
    episodes: EpisodeDataset,
    collate: Callable[[list[dict]], dict[str, torch.Tensor]],
    base_texts: torch.Tensor,
    validate: Callable[[], float],
) -> list[dict]:
    """Trains all parameters that require gradients; the model then has the weights of the best validation.

    Args:
        collate: Turns a list of episodes into model inputs.
        base_texts: (C, D), texts of all base classes, for the modulation and the contrast.
        validate: Returns the accuracy of the current model.

    Returns:
        `episode` and `validation_accuracy` of each validation.
    """
    optimizer = torch.optim.AdamW(optimizer_groups(model, recipe.weight_decay), recipe.rate_at(0), fused=True)
    starts = range(0, recipe.episodes, recipe.episodes_per_step)
    validation_steps = {len(starts) * (i + 1) // recipe.validations - 1 for i in range(recipe.validations)}
    history, best, weights = [], -1.0, {}
    for step, start in enumerate(starts):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(start)
        indices = range(start, min(start + recipe.episodes_per_step, recipe.episodes))
        inputs = collate([episodes[index] for index in indices])
        model.train()
        model(**inputs, base_class_embeds=base_texts).loss.backward()  # class_base_labels index these rows
        optimizer.step()
        optimizer.zero_grad()
        if step in validation_steps:
            accuracy = validate()
            history.append({"episode": indices[-1] + 1, "validation_accuracy": accuracy})
            if accuracy > best:
                best, weights = accuracy, trained_weights(model)
    model.load_state_dict(weights, strict=False)
    model.eval()
    return history


def trained_weights(model: CLIPFSARModel) -> dict[str, torch.Tensor]:
    """Copies of the trained weights."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


# ----------------------------------------------------------------------------------------------------------------------
# Accuracy
# ----------------------------------------------------------------------------------------------------------------------


def _split_features(model: CLIPFSARModel, features: Features) -> SplitFeatures:
    return SplitFeatures(model, features.clips[:, 0], features.texts, features.labels)


def _rankings(model: CLIPFSARModel, distances: torch.Tensor, texts: torch.Tensor, weights: Sequence[float]) -> dict:
    """Numbers that are larger for worse classes, per mode: `few_shot` and the ensemble with each text weight.

    They rank classes as the ensemble's probabilities do, since all classes of an episode share the normalization.
    """
    temperature = model.config.ensemble_temperature
    ensembles = {weight: (1 - weight) * distances / temperature - weight * texts for weight in weights}
    return {"few_shot": distances} | ensembles


def one_shot_accuracies(
    model: CLIPFSARModel, track: Track, features: Features, weights: Sequence[float] = ()
) -> dict[str | float, dict[str, float]]:
    """Exact 5-way 1-shot accuracy (%) over all episodes: per mode, per item of the track.

    Modes are `"few_shot"` and each text weight of the ensemble; weight 1.0 means texts only.
    """
    found = {}
    for names in track.scopes(features.class_names):
        part = features.of(names)
        split = _split_features(model, part)
        with torch.no_grad():
            distances = torch.cat(
                [model.get_distances(queries, split.one_shot_prototypes) for queries in split.query_states.split(25)]
            )
            texts = split.text_logits[:, split.labels]
        for mode, ranking in _rankings(model, distances, texts, weights).items():
            chances = exact_one_shot_accuracies(ranking, part.labels, N_WAY).view(len(names), -1).mean(1)
            _collect(found.setdefault(mode, {}), track, names, chances)
    return _means(found)


def mean_one_shot(model: CLIPFSARModel, track: Track, features: Features) -> float:
    """Exact 5-way 1-shot accuracy (%), the mean over items."""
    return float(np.mean(list(one_shot_accuracies(model, track, features)["few_shot"].values())))


def few_shot_accuracies(
    model: CLIPFSARModel,
    track: Track,
    features: Features,
    num_episodes: int,
    weights: Sequence[float] = (),
    n_shot: int = 5,
) -> dict[str | float, dict[str, float]]:
    """Accuracy (%) over `num_episodes` 5-way episodes of each scope: per mode, per item of the track.

    The episodes depend only on the clips, so all rows answer the same episodes.
    """
    found = {}
    for scope, names in enumerate(track.scopes(features.class_names)):
        part = features.of(names)
        n_query = min(5, part.videos.shape[1] - n_shot)
        sampler = EpisodeSampler(part.labels, N_WAY, n_shot, n_query, seed=scope, class_names=names)
        truth, distances, texts = _answer_episodes(_split_features(model, part), sampler, num_episodes)
        own = torch.arange(N_WAY).repeat_interleave(n_query)
        for mode, ranking in _rankings(model, distances, texts, weights).items():
            right = (ranking.argmin(-1) == own).double().flatten()
            counts = torch.bincount(truth, minlength=len(names))
            _collect(found.setdefault(mode, {}), track, names, torch.bincount(truth, right, len(names)) / counts)
    return _means(found)


@torch.no_grad()
def _answer_episodes(split: SplitFeatures, sampler: EpisodeSampler, num_episodes: int):
    """True classes (all queries,), and distances and text logits (episodes, queries, classes)."""
    parts = []
    for start in range(0, num_episodes, 50):
        drawn = [sampler.sample(index) for index in range(start, min(start + 50, num_episodes))]
        classes, support, query = (
            torch.from_numpy(np.stack([getattr(episode, name) for episode in drawn]))
            for name in ("class_ids", "support_rows", "query_rows")
        )
        query = query.flatten(1)
        distances = split.model.get_distances(split.query_states[query], split.prototypes(support, classes))
        texts = split.text_logits[query.unsqueeze(-1), classes.unsqueeze(1)]
        parts.append((split.labels[query], distances, texts))
    truth, distances, texts = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return truth.flatten(), distances, texts


def twin_accuracies(model: CLIPFSARModel, track: Track, features: Features) -> dict[str, dict[str, float]]:
    """Exact 2-way 1-shot accuracy (%) between a verb and its twin on the same look: `few_shot` and `texts`, per verb.

    Only the order of frames tells twins apart. Chance is 50.
    """
    found = {}
    for names in track.scopes(features.class_names):
        for name in names:
            others = [other for other in names if verb_of(other) == twin_of(verb_of(name))]
            if others and names.index(name) < names.index(others[0]):
                pair = (name, others[0])
                part = features.of(pair)
                split = _split_features(model, part)
                with torch.no_grad():
                    distances = model.get_distances(split.query_states, split.one_shot_prototypes)
                    rankings = {"few_shot": distances, "texts": -split.text_logits[:, split.labels]}
                for mode, ranking in rankings.items():
                    chances = exact_one_shot_accuracies(ranking, part.labels, 2).view(2, -1).mean(1)
                    _collect(found.setdefault(mode, {}), track, pair, chances)
    return _means(found)


def _collect(found: dict, track: Track, class_names: Sequence[str], chances: torch.Tensor) -> None:
    for name, chance in zip(class_names, chances.tolist(), strict=True):
        found.setdefault(track.item_of(name), []).append(100 * chance)


def _means(found: dict) -> dict:
    return {mode: {item: float(np.mean(values)) for item, values in items.items()} for mode, items in found.items()}


__all__ = [
    "N_WAY",
    "SHOTS",
    "Recipe",
    "few_shot_accuracies",
    "frozen_head",
    "mean_one_shot",
    "new_head",
    "one_shot_accuracies",
    "train_head",
    "train_on_episodes",
    "trained_weights",
    "training_episodes",
    "twin_accuracies",
]
