"""Exact 1-shot accuracy: all episodes counted one by one where that is possible, many drawn ones where it is not."""

import math
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clipfsar.evaluation import exact_accuracy, split_features
from clipfsar.evaluation.episodes import predict_episodes
from clipfsar.evaluation.exact_accuracy import (
    elementary_symmetric_polynomial,
    exact_accuracy_of_videos,
    exact_chances,
    exact_one_shot_accuracies,
)
from clipfsar.evaluation.report import half_interval
from clipfsar.evaluation.split_features import SplitFeatures
from configuration_clipfsar import INFERENCE_MODES
from episodes_clipfsar import EpisodeSampler

LABELS = np.array([2, 0, 1, 1, 2, 3, 0, 2, 3, 3, 1, 3])  # classes of 2, 3, 3 and 4 videos, not in order


def chances_over_all_episodes(distances: np.ndarray, labels: np.ndarray, n_way: int) -> list[float]:
    """Chance of each video over every own support video, set of other classes and support video of each of these."""
    rows_of_class = {label: np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])}
    chances = []
    for query, label in enumerate(labels):
        if label < 0:
            chances.append(math.nan)
            continue
        others = [rows for other, rows in rows_of_class.items() if other != label]
        outcomes = []
        for own in rows_of_class[label][rows_of_class[label] != query]:
            for classes in combinations(others, n_way - 1):  # each set as often, however many videos there are in it
                rivals = distances[query, np.array(list(product(*classes)))]  # (support sets, N - 1)
                won = (rivals >= distances[query, own]).all(-1)
                outcomes.append(np.mean(won / (1 + (rivals == distances[query, own]).sum(-1))))
        chances.append(float(np.mean(outcomes)))
    return chances


def random_distances(num_videos: int, seed: int, num_values: int | None = None) -> np.ndarray:
    """Continuous, or of so few values that most are tied."""
    rng = np.random.default_rng(seed)
    shape = (num_videos, num_videos)
    return rng.random(shape) if num_values is None else rng.integers(num_values, size=shape).astype(float)


@pytest.mark.parametrize("num_values", [None, 1, 2, 4], ids=["continuous", "all tied", "two values", "four values"])
@pytest.mark.parametrize("n_way", [2, 3, 4])
def test_chances_are_those_counted_over_all_episodes(n_way, num_values):
    for seed in range(3):
        distances = random_distances(len(LABELS), seed, num_values)
        exact = exact_one_shot_accuracies(torch.tensor(distances), LABELS, n_way)
        assert exact.dtype == torch.float64
        np.testing.assert_allclose(exact, chances_over_all_episodes(distances, LABELS, n_way), rtol=0, atol=1e-12)


def test_more_classes_than_nodes_of_the_integral_are_still_exact():
    labels = np.repeat(np.arange(7), 2)
    for n_way in (5, 6, 7):
        distances = random_distances(len(labels), n_way, num_values=3)
        exact = exact_one_shot_accuracies(torch.tensor(distances), labels, n_way)
        np.testing.assert_allclose(exact, chances_over_all_episodes(distances, labels, n_way), rtol=0, atol=1e-12)


def test_a_hand_made_case():
    # Class 0 is videos 0, 1, class 1 is videos 2, 3. Video 0 is nearer to its own than to one of two rivals.
    distances = torch.tensor([[9.0, 2, 1, 3], [1, 9, 1, 2], [5, 5, 9, 4], [0, 0, 1, 9]])
    assert exact_one_shot_accuracies(distances, np.array([0, 0, 1, 1]), n_way=2).tolist() == [0.5, 0.75, 1, 0]


def test_the_distance_of_a_video_to_itself_is_not_looked_at():
    distances = torch.tensor(random_distances(len(LABELS), 0))
    expected = exact_one_shot_accuracies(distances, LABELS, 3)
    for value in (-1.0, math.inf):
        assert torch.equal(exact_one_shot_accuracies(distances.clone().fill_diagonal_(value), LABELS, 3), expected)


def test_videos_without_a_label_get_no_chance_and_change_none():
    distances = torch.tensor(random_distances(len(LABELS), 0))
    expected = exact_one_shot_accuracies(distances, LABELS, 3)
    rows = torch.tensor([1, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14])  # 0, 2 and 6 have no label
    larger, labels = torch.zeros(15, 15, dtype=torch.float64), np.full(15, -1)
    larger[rows.unsqueeze(1), rows] = distances
    labels[rows] = LABELS
    exact = exact_one_shot_accuracies(larger, labels, 3)
    assert torch.equal(exact[rows], expected)
    assert torch.nonzero(exact.isnan()).flatten().tolist() == [0, 2, 6]


def test_equal_distances_give_chance_and_well_separated_classes_give_one():
    for n_way in (2, 3, 4):
        tied = exact_one_shot_accuracies(torch.ones(12, 12), LABELS, n_way)
        torch.testing.assert_close(tied, torch.full((12,), 1 / n_way, dtype=torch.float64))
        apart = torch.tensor(LABELS[:, None] != LABELS).float()
        assert exact_one_shot_accuracies(apart, LABELS, n_way).tolist() == [1.0] * 12
        assert exact_one_shot_accuracies(-apart, LABELS, n_way).tolist() == [0.0] * 12


def test_too_few_classes_or_a_class_of_one_video_are_refused():
    with pytest.raises(ValueError, match="There are 4 classes, but n_way=5 are needed"):
        exact_one_shot_accuracies(torch.ones(12, 12), LABELS, 5)
    with pytest.raises(ValueError, match="Class 7 has 1 video; a support and a query video are needed"):
        exact_one_shot_accuracies(torch.ones(5, 5), np.array([2, 2, 7, 4, 4]), 2)


@pytest.mark.parametrize("degree", range(5))
def test_the_symmetric_polynomial_is_a_sum_over_subsets(degree):
    values = torch.rand(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = sum(
        torch.stack([torch.ones_like(values[0]), *subset]).prod(0) for subset in combinations(values, degree)
    )
    torch.testing.assert_close(elementary_symmetric_polynomial(values, degree), expected)


# --- features of a model ----------------------------------------------------------------------------------------------


def noisy_classes(model, noise: float = 1.5) -> tuple[SplitFeatures, np.ndarray]:
    """Five classes of 2..6 videos, none of them easy, and a video without a label."""
    generator = torch.Generator().manual_seed(0)
    labels = np.append(np.repeat(np.arange(5), [2, 3, 4, 5, 6]), -1)
    centres = torch.randn(5, 1, 16, generator=generator)
    class_embeds = centres.squeeze(1) + noise * torch.randn(5, 16, generator=generator)
    videos = centres[labels] + noise * torch.randn(len(labels), 4, 16, generator=generator)
    return SplitFeatures(model, videos, class_embeds, labels), labels


@pytest.mark.parametrize("alignment", ["otam", "bi_mhm", "mean"])
def test_many_drawn_episodes_agree_with_the_exact_accuracy_in_every_mode(tiny_model, alignment):
    features, labels = noisy_classes(tiny_model(alignment=alignment))
    exact = exact_accuracy_of_videos(features, 3, INFERENCE_MODES)
    assert list(exact) == list(INFERENCE_MODES)
    sampled = predict_episodes(features, EpisodeSampler(labels, 3, 1, 1, seed=4), range(4000), INFERENCE_MODES)
    for mode in INFERENCE_MODES:
        assert exact[mode].isnan().tolist() == (labels < 0).tolist()
        expected = np.mean([exact[mode].numpy()[labels == label].mean() for label in range(5)])
        accuracies = sampled[mode].accuracies
        assert 0.4 < expected < 0.98  # neither chance nor certain
        assert abs(accuracies.mean() - expected) < 1.3 * half_interval(accuracies), mode  # nine of them, at 99%


def plain_exact_accuracy(features: SplitFeatures, n_way: int, mode: str) -> torch.Tensor:
    """From one matrix of all videos with all videos."""
    model, own_class = features.model, features.labels.clamp(min=0)
    with torch.no_grad():
        distances = model.get_distances(features.query_states, features.one_shot_prototypes)
    texts = features.text_logits[:, own_class]
    beta, temperature = model.config.ensemble_text_weight, model.config.ensemble_temperature
    ensemble = (1 - beta) * distances / temperature - beta * texts
    ranking = {"few_shot": distances, "zero_shot": -texts, "ensemble": ensemble}[mode]
    return exact_one_shot_accuracies(ranking, features.labels.numpy(), n_way)


@pytest.mark.parametrize("entries", [1, 3 * 20, 10**6], ids=["a query at once", "three", "a class"])
def test_in_pieces_the_exact_accuracy_is_that_of_the_whole_matrix(tiny_model, monkeypatch, entries):
    monkeypatch.setattr(split_features, "PROTOTYPES_AT_ONCE", 3 if entries < 100 else 10**6)
    features, _ = noisy_classes(tiny_model())
    pieces = exact_accuracy_of_videos(features, 3, INFERENCE_MODES, entries_at_once=entries)
    for mode in INFERENCE_MODES:
        torch.testing.assert_close(pieces[mode], plain_exact_accuracy(features, 3, mode), equal_nan=True)


def test_no_matrix_of_all_videos_with_all_videos_is_made():
    labels, asked = np.repeat(np.arange(4), 5), []

    def rank(queries, supports):
        asked.append((len(queries), len(supports)))
        return {"": torch.rand(asked[-1])}

    exact_chances(rank, labels, 3, entries_at_once=60)
    assert asked == 4 * [(3, 20), (2, 20)]


def test_modes_that_nobody_asked_for_are_not_computed(tiny_model):
    features, _ = noisy_classes(tiny_model())
    features.one_shot_distances = None
    assert list(exact_accuracy_of_videos(features, 3, ["zero_shot"])) == ["zero_shot"]
    features, _ = noisy_classes(tiny_model())
    features.text_logits_of = None
    assert list(exact_accuracy_of_videos(features, 3, ["few_shot"])) == ["few_shot"]


def test_processes_share_the_queries_and_all_get_the_chances(monkeypatch):
    distances = torch.tensor(random_distances(len(LABELS), 0))
    expected = exact_one_shot_accuracies(distances, LABELS, 3)
    asked = []

    def rank(queries, supports):
        asked.extend(queries.tolist())
        return {"": distances[queries][:, supports]}

    def chances_of(index, others):
        process = SimpleNamespace(process_index=index, num_processes=3)
        monkeypatch.setattr(exact_accuracy, "gather_object", lambda mine: others + mine)
        return exact_chances(rank, LABELS, 3, accelerator=process, entries_at_once=2 * len(LABELS))

    shares = [chances_of(index, []) for index in range(3)]
    assert sorted(asked) == list(range(len(LABELS)))
    assert all(share[""].isnan().any() for share in shares)
    assert torch.equal(chances_of(2, shares[:2])[""], expected)


def test_perfect_features_are_right_in_all_episodes_and_constant_ones_by_chance(tiny_model):
    model = tiny_model(temporal_num_layers=0, prototype_modulation=False)
    labels = torch.arange(4).repeat_interleave(3)
    class_embeds = torch.eye(4, 16)
    perfect = class_embeds[labels].unsqueeze(1).expand(-1, 4, -1)
    constant = torch.ones(12, 4, 16)
    for videos, expected in ((perfect, 1.0), (constant, 0.25)):
        exact = exact_accuracy_of_videos(SplitFeatures(model, videos, class_embeds, labels.numpy()), 4)
        torch.testing.assert_close(exact["few_shot"], torch.full((12,), expected, dtype=torch.float64))
