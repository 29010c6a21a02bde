"""Exact 1-shot accuracy: all episodes counted one by one where that is possible, many drawn ones where it is not."""

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch

from clipfsar.evaluation.episodes import predict_episodes
from clipfsar.evaluation.exact_accuracy import (
    elementary_symmetric_polynomial,
    exact_accuracy_of_videos,
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


def test_the_exact_accuracy_does_not_depend_on_the_batches(tiny_model):
    features, _ = noisy_classes(tiny_model())
    whole, parts = (exact_accuracy_of_videos(features, 3, queries_per_batch=size)["few_shot"] for size in (64, 3))
    torch.testing.assert_close(whole, parts, equal_nan=True)


def test_perfect_features_are_right_in_all_episodes_and_constant_ones_by_chance(tiny_model):
    model = tiny_model(temporal_num_layers=0, prototype_modulation=False)
    labels = torch.arange(4).repeat_interleave(3)
    class_embeds = torch.eye(4, 16)
    perfect = class_embeds[labels].unsqueeze(1).expand(-1, 4, -1)
    constant = torch.ones(12, 4, 16)
    for videos, expected in ((perfect, 1.0), (constant, 0.25)):
        exact = exact_accuracy_of_videos(SplitFeatures(model, videos, class_embeds, labels.numpy()), 4)
        torch.testing.assert_close(exact["few_shot"], torch.full((12,), expected, dtype=torch.float64))
