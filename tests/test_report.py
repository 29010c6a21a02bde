"""What is said of answers to episodes, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from clipfsar.evaluation.report import (
    EpisodePredictions,
    compare,
    confusion_rates,
    expected_calibration_error,
    half_interval,
    interval_over_videos,
    most_confused_pairs,
    per_class_accuracies,
    right_answers_per_video,
)

NAN = math.nan


def answers(class_ids, query_rows, true_classes, predicted_classes, confidences=None) -> EpisodePredictions:
    confidences = np.full(np.shape(query_rows), 0.5) if confidences is None else confidences
    parts = (class_ids, query_rows, true_classes, predicted_classes, confidences)
    return EpisodePredictions(*(np.array(part) for part in parts))


@pytest.fixture
def two_way():
    """Four 2-way episodes over classes 0..2 of four (3 never occurs); videos 10 * class + number."""
    return answers(
        class_ids=[[0, 1], [1, 2], [2, 0], [0, 1]],
        query_rows=[[0, 10], [10, 20], [20, 0], [1, 11]],
        true_classes=[[0, 1], [1, 2], [2, 0], [0, 1]],
        predicted_classes=[[0, 0], [2, 2], [2, 0], [1, 1]],
    )


def right_and_wrong(*is_right: list[int]) -> EpisodePredictions:
    """2-way episodes of class 0 and 1 whose queries (rows 0, 1, ...) are answered rightly where there is a 1."""
    is_right = np.array(is_right, dtype=bool)
    num_episodes, num_queries = is_right.shape
    true = np.tile(np.arange(num_queries) % 2, (num_episodes, 1))
    rows = np.arange(is_right.size).reshape(is_right.shape)
    return answers(np.tile([0, 1], (num_episodes, 1)), rows, true, np.where(is_right, true, 1 - true))


def test_right_answers_and_accuracies_per_episode(two_way):
    assert two_way.is_right.tolist() == [[True, False], [False, True], [True, True], [False, True]]
    assert two_way.accuracies.tolist() == [0.5, 0.5, 1.0, 0.5]


def test_accuracy_per_class_knows_classes_never_asked_about(two_way):
    np.testing.assert_allclose(per_class_accuracies(two_way, 4), [2 / 3, 1 / 3, 1, NAN])


def test_right_answers_per_video_know_videos_never_asked_about(two_way):
    shares = right_answers_per_video(two_way, 22)
    assert {row: share for row, share in enumerate(shares) if not math.isnan(share)} == {
        0: 1.0,
        1: 0.0,
        10: 0.0,
        11: 1.0,
        20: 1.0,
    }
    assert shares.shape == (22,)


def test_a_confusion_is_a_share_of_the_episodes_that_offered_both_classes(two_way):
    # Class 0 was asked about three times, twice beside 1 (taken for it once) and once beside 2.
    expected = [[2 / 3, 1 / 2, 0, NAN], [1 / 2, 1 / 3, 1, NAN], [0, 0, 1, NAN], [NAN] * 4]
    np.testing.assert_allclose(confusion_rates(two_way, 4), expected)


def test_several_queries_per_class_count_one_by_one():
    predictions = answers([[2, 0]], [[5, 6, 1, 2]], [[2, 2, 0, 0]], [[2, 0, 0, 0]])
    np.testing.assert_allclose(confusion_rates(predictions, 3), [[1, NAN, 0], [NAN] * 3, [0.5, NAN, 0.5]])


def test_the_most_confused_pairs_come_first_and_right_answers_are_none():
    rates = np.array([[0.9, 0.3, NAN], [0.0, 0.2, 0.5], [0.1, NAN, 1.0]])
    pairs = most_confused_pairs(rates, ["run", "dive", "swim"])
    assert [(pair["true"], pair["predicted"]) for pair in pairs] == [("dive", "swim"), ("run", "dive"), ("swim", "run")]
    assert [pair["rate"] for pair in pairs] == pytest.approx([50, 30, 10])
    assert most_confused_pairs(rates, ["run", "dive", "swim"], num_pairs=1) == pairs[:1]
    assert most_confused_pairs(np.eye(3), ["run", "dive", "swim"]) == []


# --- calibration ------------------------------------------------------------------------------------------------------


def with_confidences(is_right, confidences) -> EpisodePredictions:
    predictions = right_and_wrong(is_right)
    return EpisodePredictions(*(*vars(predictions).values(),)[:4], np.array([confidences]))


def test_calibration_error_of_a_hand_example():
    # Bin 0.2..0.4: 0.25 and 0.35, one right: gap of sums |0.6 - 1| = 0.4. Bin 0.8..1: 0.9 and 1.0 wrong: 1.9.
    predictions = with_confidences([0, 1, 0, 0], [0.25, 0.35, 0.9, 1.0])
    assert expected_calibration_error(predictions, num_bins=5) == pytest.approx(100 * (0.4 + 1.9) / 4)
    assert expected_calibration_error(predictions, num_bins=1) == pytest.approx(100 * (2.5 - 1) / 4)


def test_confidences_that_come_true_have_no_calibration_error():
    is_right = [1] * 3 + [0] * 1 + [1] * 2 + [0] * 2
    assert expected_calibration_error(with_confidences(is_right, [0.75] * 4 + [0.5] * 4)) == pytest.approx(0)
    assert expected_calibration_error(with_confidences([1, 1], [1.0, 1.0])) == 0
    assert expected_calibration_error(with_confidences([0, 0], [1.0, 1.0])) == 100


# --- intervals --------------------------------------------------------------------------------------------------------


def test_half_interval_of_a_mean():
    # Deviations -1, 0, 1 around 2: variance 2 / 2 = 1 with three values.
    assert half_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(1.96 / math.sqrt(3))
    assert half_interval(np.array([5.0, 5.0])) == 0
    assert math.isnan(half_interval(np.array([5.0])))


def test_an_interval_over_videos_is_zero_without_differences():
    assert interval_over_videos(np.full(12, 0.7), np.arange(12) % 3) == pytest.approx(0, abs=1e-9)


def test_an_interval_over_videos_is_seeded_and_leaves_out_videos_without_an_answer():
    rng = np.random.default_rng(0)
    chances, labels = rng.random(30), np.arange(30) % 6
    width = interval_over_videos(chances, labels)
    assert width == interval_over_videos(chances, labels) != interval_over_videos(chances, labels, seed=1)
    with_unknown = np.append(chances, [NAN, NAN]), np.append(labels, [-1, 2])
    assert interval_over_videos(*with_unknown) == width


def test_an_interval_over_videos_is_that_of_a_mean_over_classes():
    # Videos of a class are alike and each half of the classes is all right or all wrong: the mean over C classes has
    # a standard deviation of 0.5 / sqrt(C), however many videos there are.
    widths = {}
    for num_classes in (4, 12, 36):
        labels = np.repeat(np.arange(num_classes), 5)
        widths[num_classes] = interval_over_videos((labels % 2).astype(float), labels)
        assert widths[num_classes] == pytest.approx(100 * 1.96 * 0.5 / num_classes**0.5, rel=0.15)
    assert widths[4] > widths[12] > widths[36]


# --- two models -------------------------------------------------------------------------------------------------------


def test_a_model_does_not_differ_from_itself(two_way):
    assert compare(two_way, two_way) == {
        "difference": 0,
        "interval": 0,
        "only_first_right": 0,
        "only_second_right": 0,
        "p_value": 1,
    }


def test_a_comparison_is_paired():
    # Ten queries that only the first gets right, two that only the second does: chi^2 = (8 - 1)^2 / 12 = 4.08.
    first = right_and_wrong([1] * 12, [1] * 6 + [0] * 6, [1] * 10 + [0] * 2)
    second = right_and_wrong([1] * 12, [1] * 6 + [0] * 6, [0] * 10 + [1] * 2)
    result = compare(first, second)
    assert (result["only_first_right"], result["only_second_right"]) == (10, 2)
    assert result["p_value"] == pytest.approx(0.0433, abs=5e-5)
    assert result["difference"] == pytest.approx(-100 * 8 / 36)
    assert result["interval"] == pytest.approx(half_interval(np.array([0, 0, -100 * 8 / 12])))
    other_way = compare(second, first)
    assert other_way["difference"] == -result["difference"]
    assert other_way["p_value"] == result["p_value"]


@pytest.mark.parametrize(("only_first", "only_second"), [(1, 0), (3, 3)])
def test_few_or_balanced_differences_say_nothing(only_first, only_second):
    first = right_and_wrong([1] * only_first + [0] * only_second)
    second = right_and_wrong([0] * only_first + [1] * only_second)
    assert compare(first, second)["p_value"] == 1


def test_answers_to_different_episodes_are_not_compared(two_way):
    parts = vars(two_way)
    other_queries = EpisodePredictions(**{**parts, "query_rows": two_way.query_rows + 1})
    other_classes = EpisodePredictions(**{**parts, "class_ids": two_way.class_ids[:, ::-1]})
    fewer = EpisodePredictions(**{name: part[:2] for name, part in parts.items()})
    for other in (other_queries, other_classes, fewer):
        with pytest.raises(
            ValueError, match="answered different episodes: a paired comparison needs the same episodes"
        ):
            compare(two_way, other)
