"""Evaluation on cached features: the same numbers as the whole model on pixels, whatever the number of processes."""

import json
import math
import os
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import DatasetDict
from tiny_data import model_of_tiny_clip, run_in_children, video_splits, write_video_folder

from clipfsar.evaluation import evaluate_model
from clipfsar.evaluation.arguments import EvaluateArguments
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.episodes import evaluate_features, predict_episodes, predict_until_interval
from clipfsar.evaluation.evaluate_model import run, warn_of_base_classes
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.report import EpisodePredictions, half_interval
from clipfsar.evaluation.results import EpisodicAccuracy
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.json_files import DamagedFileError
from configuration_clipfsar import INFERENCE_MODES
from episodes_clipfsar import EpisodeCollator, EpisodeDataset, EpisodeSampler
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

VIDEOS_PER_CLASS = 5


def main(given: EvaluateArguments) -> list[dict]:
    """What the program reports, as its JSON has it."""
    return run(given).to_dicts()


def evaluate(model, video_embeds, class_embeds, labels, **protocol) -> list[EpisodicAccuracy]:
    """Accuracies on given features; few-shot, 1-shot unless the protocol says otherwise."""
    features = SplitFeatures(model, video_embeds, class_embeds, labels)
    names = [str(label) for label in range(len(class_embeds))]
    protocol = {"n_shot": 1, "inference_modes": "few_shot"} | protocol
    return [result.summary() for result in evaluate_features(features, Protocol(**protocol), names)]


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    return write_video_folder(tmp_path_factory.mktemp("videos"), VIDEOS_PER_CLASS)


@pytest.fixture(scope="module")
def saved_splits(video_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "saved"
    video_splits(video_folder).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def test_split(video_folder):
    return video_splits(video_folder)["test"]


@pytest.fixture(scope="module")
def hard_split(test_split):
    """The test videos under wrong names: no model gets all of these right, so that accuracies tell models apart."""
    labels = [(row * 7) % 3 for row in range(len(test_split))]
    return test_split.remove_columns("label").add_column("label", labels, feature=test_split.features["label"])


@pytest.fixture(scope="module")
def hard_data(hard_split, video_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hard_data") / "saved"
    DatasetDict(test=hard_split, validation=video_splits(video_folder)["validation"]).save_to_disk(folder)
    return folder


# --- cached features and pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shot", [1, 3])
@pytest.mark.parametrize(
    "config",
    [
        {"alignment": "otam"},
        {"alignment": "bi_mhm"},
        {"alignment": "mean"},
        {"support_pooling": "after"},
        {"prototype_modulation": False},
        {"temporal_num_layers": 0},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_cached_features_give_the_accuracies_of_the_whole_model(tiny_clip, processor, hard_split, config, n_shot):
    model = model_of_tiny_clip(tiny_clip, **config)
    episodes = EpisodeDataset(hard_split, n_way=3, n_shot=n_shot, n_query=2, n_episodes=12, seed=6)
    video_embeds = VideoEncoder(model, processor, Accelerator(cpu=True), batch_size=4).encode(hard_split)
    class_embeds = VideoEncoder(model, processor).encode_classes(episodes.class_names)
    features = SplitFeatures(model, video_embeds, class_embeds, episodes.labels)
    answers = predict_episodes(features, episodes.sampler, range(12), INFERENCE_MODES, episodes_per_batch=5)
    cached = {mode: predictions.accuracies for mode, predictions in answers.items()}
    batch = EpisodeCollator(processor)([episodes[index] for index in range(12)])
    assert list(cached) == list(INFERENCE_MODES)
    for mode, accuracies in cached.items():
        with torch.no_grad():
            predicted = model(**batch, inference_mode=mode).logits.argmax(-1)
        expected = (predicted == batch["labels"]).double().mean(-1)
        assert accuracies.tolist() == expected.tolist(), mode
        assert 0 < accuracies.mean() < 1
    assert len(set(cached["few_shot"].tolist())) > 1  # or the comparison would show little


def test_features_of_videos_and_classes_are_the_models(tiny_clip, processor, test_split):
    model = model_of_tiny_clip(tiny_clip)
    embeds = VideoEncoder(model, processor, Accelerator(cpu=True), batch_size=4).encode(test_split)
    assert embeds.shape == (3 * VIDEOS_PER_CLASS, 4, 16)
    assert (embeds.dtype, embeds.device.type) == (torch.float32, "cpu")
    with torch.no_grad():
        expected = model.get_video_features(processor.process_videos(list(test_split["video"])))
        texts = model.get_class_features(**processor.tokenize_classes(["gray", "dark_blue"]))
    torch.testing.assert_close(embeds, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(VideoEncoder(model, processor).encode_classes(["gray", "dark_blue"]), texts)


def test_workers_do_not_change_features(tiny_clip, processor, test_split):
    model, accelerator = model_of_tiny_clip(tiny_clip), Accelerator(cpu=True)
    alone, with_workers = (
        VideoEncoder(model, processor, accelerator, num_workers=n).encode(test_split) for n in (0, 2)
    )
    assert torch.equal(alone, with_workers)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_runs_without_dropout_and_restores_the_mode(tiny_clip, processor, test_split, training):
    model, accelerator = model_of_tiny_clip(tiny_clip), Accelerator(cpu=True)
    episodes = EpisodeDataset(test_split, n_way=3, n_query=2)

    def measure():
        video_embeds = VideoEncoder(model, processor, accelerator).encode(test_split)
        class_embeds = VideoEncoder(model, processor).encode_classes(episodes.class_names)
        return evaluate(model, video_embeds, class_embeds, episodes.labels, n_way=3, n_query=2, n_episodes=50)

    expected = measure()
    model.train(training)
    assert measure() == expected
    assert model.training is training
    assert model.temporal_transformer.training is training
    assert not any(parameter.grad is not None for parameter in model.parameters())


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_a_mean_over_episodes(tiny_clip, processor, test_split):
    model = model_of_tiny_clip(tiny_clip)
    episodes = EpisodeDataset(test_split, n_way=3, n_query=2, seed=3)
    video_embeds = VideoEncoder(model, processor, Accelerator(cpu=True)).encode(test_split)
    class_embeds = VideoEncoder(model, processor).encode_classes(episodes.class_names)
    given = model, video_embeds, class_embeds, episodes.labels
    values = predict_episodes(SplitFeatures(*given), episodes.sampler, range(40))["few_shot"].accuracies.tolist()
    (result,) = evaluate(*given, n_way=3, n_query=2, n_episodes=40, seed=3)
    mean = sum(values) / 40
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 39)
    assert result.accuracy == pytest.approx(100 * mean)
    assert result.interval == pytest.approx(100 * 1.96 * deviation / math.sqrt(40))
    (single,) = evaluate(*given, n_way=3, n_query=2, n_episodes=1, seed=3)
    assert math.isnan(single.interval)


def test_all_modes_are_measured_on_the_same_seeded_episodes(tiny_clip, processor, test_split):
    model = model_of_tiny_clip(tiny_clip)
    episodes = EpisodeDataset(test_split, n_way=3, n_query=2)
    video_embeds = VideoEncoder(model, processor, Accelerator(cpu=True)).encode(test_split)
    class_embeds = VideoEncoder(model, processor).encode_classes(episodes.class_names)
    settings = {"n_way": 3, "n_shot": 2, "n_query": 2, "n_episodes": 30, "inference_modes": INFERENCE_MODES}
    first, again, other = (
        evaluate(model, video_embeds, class_embeds, episodes.labels, seed=seed, **settings) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert [(r.inference_mode, r.n_way, r.n_shot, r.n_query, r.n_episodes) for r in first] == [
        (mode, 3, 2, 2, 30) for mode in INFERENCE_MODES
    ]


def test_a_result_reads_as_a_sentence():
    result = EpisodicAccuracy("few_shot", 5, 1, 1, 10_000, 61.234, 0.456)
    assert str(result) == "5-way 1-shot few_shot: 61.2 ± 0.5% (10000 episodes)"


def test_perfect_features_are_all_right_and_useless_ones_are_at_chance(tiny_clip):
    model = model_of_tiny_clip(tiny_clip, temporal_num_layers=0, prototype_modulation=False)
    labels = torch.arange(4).repeat_interleave(50)
    class_embeds = torch.eye(4, 16)
    perfect = class_embeds[labels].unsqueeze(1).expand(-1, 4, -1)
    useless = torch.randn(200, 4, 16, generator=torch.Generator().manual_seed(0))
    for embeds, expected in ((perfect, 100.0), (useless, 25.0)):
        (result,) = evaluate(model, embeds, class_embeds, labels.numpy(), n_way=4, n_query=5, n_episodes=400)
        assert result.accuracy == pytest.approx(expected, abs=4)


def alternating_answers(indices) -> dict[str, EpisodePredictions]:
    """A right answer in every other episode (every tenth in the second mode): known standard deviations."""
    index = np.array(indices)[:, None]
    zeros = np.zeros_like(index)
    return {
        mode: EpisodePredictions(np.tile([0, 1], (len(index), 1)), index, zeros, (index % period != 0) * 1, zeros + 0.5)
        for mode, period in (("few_shot", 2), ("zero_shot", 10))
    }


def test_episodes_are_drawn_until_every_interval_is_narrow_enough():
    # +- 1.96 * 50 / sqrt(E) <= 10 from 97 episodes on; in chunks of 20 that is 100. The other mode needs fewer.
    answers = predict_until_interval(alternating_answers, 10, chunk=20)
    assert {mode: len(predictions.class_ids) for mode, predictions in answers.items()} == {
        "few_shot": 100,
        "zero_shot": 100,
    }
    assert answers["few_shot"].query_rows.ravel().tolist() == list(range(100))
    assert half_interval(100 * answers["few_shot"].accuracies) == pytest.approx(9.85, abs=0.01)
    assert len(predict_until_interval(alternating_answers, 12, chunk=20)["few_shot"].class_ids) == 80


def test_modes_and_shots_that_are_given_twice_count_once():
    protocol = Protocol(n_shot=[1, 5, 1], inference_modes=["few_shot", "ensemble", "few_shot"])
    assert (protocol.n_shot, protocol.shots) == ((1, 5), (1, 5))
    assert protocol.inference_modes == ("few_shot", "ensemble")


def test_an_interval_out_of_reach_is_said_to_be_so():
    with pytest.raises(ValueError, match=r"until_interval=0.1 is not reached within 200 episodes: ask for a wider"):
        predict_until_interval(alternating_answers, 0.1, chunk=50, max_episodes=200)


def test_answers_until_an_interval_are_those_to_as_many_episodes(tiny_clip, processor, hard_split):
    model = model_of_tiny_clip(tiny_clip)
    episodes = EpisodeDataset(hard_split, n_way=3, n_query=2)
    video_embeds = VideoEncoder(model, processor, Accelerator(cpu=True)).encode(hard_split)
    class_embeds = VideoEncoder(model, processor).encode_classes(episodes.class_names)
    features = SplitFeatures(model, video_embeds, class_embeds, episodes.labels)
    predict = partial(predict_episodes, features, EpisodeSampler(episodes.labels, 3, 1, 1))
    once, twice = (predict(range(9), modes)["few_shot"] for modes in (["few_shot"], ["few_shot", "few_shot"]))
    assert len(twice.class_ids) == len(once.class_ids) == 9
    answers, again = (predict_until_interval(predict, 5, chunk=30)["few_shot"] for _ in range(2))
    drawn = len(answers.class_ids)
    assert drawn % 30 == 0
    assert half_interval(100 * answers.accuracies) <= 5 < half_interval(100 * answers.accuracies[:-30])
    for name in ("class_ids", "query_rows", "true_classes", "predicted_classes"):
        assert np.array_equal(getattr(answers, name), getattr(again, name))
        assert np.array_equal(getattr(answers, name), getattr(predict(range(drawn))["few_shot"], name))


# --- several processes and the command line ---------------------------------------------------------------------------


def encode_in_process(tiny_clip, saved_splits, output):
    """What one of the processes of a distributed evaluation does; an odd number of videos, two processes."""
    from clipfsar.data.splits import load_video_splits

    accelerator = Accelerator(cpu=True)
    split = load_video_splits(str(saved_splits))["test"]
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    embeds = VideoEncoder(model_of_tiny_clip(tiny_clip), processor, accelerator, batch_size=4).encode(split)
    torch.save((accelerator.num_processes, embeds), output / f"embeds_{accelerator.process_index}.pt")
    accelerator.end_training()


def test_two_processes_encode_the_same_features_as_one(tiny_clip, saved_splits, processor, test_split, tmp_path):
    assert len(test_split) % 2 == 1
    run_in_children(
        encode_in_process, tiny_clip, saved_splits, tmp_path, folder=tmp_path / "output", num_processes=2
    ).check()
    expected = VideoEncoder(model_of_tiny_clip(tiny_clip), processor, Accelerator(cpu=True), batch_size=4).encode(
        test_split
    )
    for rank in range(2):
        num_processes, embeds = torch.load(tmp_path / f"embeds_{rank}.pt")
        assert num_processes == 2
        torch.testing.assert_close(embeds, expected, rtol=1e-5, atol=1e-5)


def arguments(tiny_clip, saved_splits, **settings) -> EvaluateArguments:
    defaults = {"n_way": 3, "n_shot": [1, 2], "n_query": 2, "n_episodes": 25, "num_workers": 0}
    return EvaluateArguments(model=str(tiny_clip), dataset=str(saved_splits), **defaults | settings)


def accuracy_of(result: dict) -> EpisodicAccuracy:
    return EpisodicAccuracy(**{item.name: result[item.name] for item in fields(EpisodicAccuracy)})


@pytest.fixture(scope="module")
def checkpoint(tiny_clip, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model_of_tiny_clip(tiny_clip).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_program_prints_and_writes_its_results(checkpoint, saved_splits, tmp_path, capsys):
    output_json = tmp_path / "results.json"
    results = main(arguments(checkpoint, saved_splits, output_json=str(output_json)))
    assert [(result["n_shot"], result["inference_mode"]) for result in results] == [
        (n_shot, mode) for n_shot in (1, 2) for mode in INFERENCE_MODES
    ]
    assert json.loads(output_json.read_text()) == results
    printed = capsys.readouterr().out
    assert "split test, 15 videos:" in printed
    for result in results:
        assert str(accuracy_of(result)) in printed
        half = result["interval_over_videos"]
        anew = f"± {half:.1f}" if half > 0 else "cannot be told, all videos are answered alike"
        assert f"drawn anew: {anew}; calibration error" in printed
        assert f"calibration error {result['calibration_error']:.1f}%" in printed


def test_the_program_measures_what_evaluate_does(checkpoint, tiny_clip, hard_data, processor, hard_split):
    results = main(arguments(checkpoint, hard_data, seed=3))
    model = CLIPFSARModel.from_pretrained(checkpoint)
    episodes = EpisodeDataset(hard_split, n_way=3, n_query=2)
    video_embeds = VideoEncoder(model, processor, Accelerator(cpu=True)).encode(hard_split)
    class_embeds = VideoEncoder(model, processor).encode_classes(episodes.class_names)
    for n_shot in (1, 2):
        expected = evaluate(
            *(model, video_embeds, class_embeds, episodes.labels),
            n_way=3,
            n_shot=n_shot,
            n_query=2,
            n_episodes=25,
            seed=3,
            inference_modes=INFERENCE_MODES,
        )
        measured = [accuracy_of(result) for result in results if result["n_shot"] == n_shot]
        for result, other in zip(measured, expected, strict=True):
            assert result.accuracy == pytest.approx(other.accuracy)
            assert result.interval == pytest.approx(other.interval)
            assert (result.inference_mode, result.n_episodes) == (other.inference_mode, 25)
    assert len({result["accuracy"] for result in results}) > 1


def test_a_result_says_which_classes_are_hard_and_taken_for_which(checkpoint, hard_data, capsys):
    (result,) = main(arguments(checkpoint, hard_data, n_shot=[1], inference_modes=["few_shot"], n_episodes=200))
    assert list(result["per_class_accuracy"]) == ["gray", "orange", "violet"]
    # all classes are in every 3-way episode and asked about equally often
    assert np.mean(list(result["per_class_accuracy"].values())) == pytest.approx(result["accuracy"])
    for name, accuracy in result["per_class_accuracy"].items():
        taken = sum(pair["rate"] for pair in result["most_confused"] if pair["true"] == name)
        assert accuracy + taken == pytest.approx(100)
    rates = [pair["rate"] for pair in result["most_confused"]]
    assert rates == sorted(rates, reverse=True)
    hardest = min(result["per_class_accuracy"], key=result["per_class_accuracy"].get)
    first = result["most_confused"][0]
    printed = capsys.readouterr().out
    assert f"hardest classes: {hardest} {result['per_class_accuracy'][hardest]:.0f}%" in printed
    assert f"when both are in the episode: {first['true']} -> {first['predicted']} {first['rate']:.0f}%" in printed


def test_pictures_and_results_are_written_to_a_folder(checkpoint, hard_data, tmp_path):
    folder = tmp_path / "new" / "results"
    results = main(arguments(checkpoint, hard_data, inference_modes=["few_shot"], output_dir=str(folder)))
    names = [f"3_way_{n_shot}_shot_few_shot" for n_shot in (1, 2)]
    pictures = [f"{kind}_{name}.png" for kind in ("confusion", "per_class") for name in names]
    assert sorted(os.listdir(folder)) == sorted([*pictures, "results.json"])
    assert json.loads((folder / "results.json").read_text()) == results


def test_the_exact_accuracy_stands_beside_the_sampled_one_for_one_shot(checkpoint, hard_data, tmp_path, capsys):
    output_json = str(tmp_path / "results.json")
    results = main(arguments(checkpoint, hard_data, exact=True, n_query=1, n_episodes=1000, output_json=output_json))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert ["exact_accuracy" in result for result in results] == [True] * 3 + [False] * 3
    printed = capsys.readouterr().out
    for result in results[:3]:
        assert 20 < result["exact_accuracy"] < 100
        assert abs(result["exact_accuracy"] - result["accuracy"]) < 1.5 * result["interval"] + 1e-9
        assert f"over all possible episodes: {result['exact_accuracy']:.2f}% (exact)" in printed


def test_the_program_draws_until_the_interval_is_narrow_enough(checkpoint, hard_data):
    given = arguments(checkpoint, hard_data, n_shot=[1], n_query=1, inference_modes=["few_shot"], until_interval=1.2)
    given.n_episodes = 7  # does not count
    (result,), (again,) = main(given), main(given)
    assert result == again
    assert result["interval"] <= 1.2
    assert result["n_episodes"] in (1000, 2000, 3000)


# --- two models on the same episodes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_checkpoint(tiny_clip, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other_checkpoint")
    model = model_of_tiny_clip(tiny_clip)
    with torch.no_grad():
        for layer in model.temporal_transformer.layers:
            layer.mlp.fc2.weight.mul_(30)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_model_compared_with_itself_does_not_differ(checkpoint, hard_data, tmp_path, capsys):
    output_json = tmp_path / "results.json"
    results = main(arguments(checkpoint, hard_data, compare_with=str(checkpoint), output_json=str(output_json)))
    assert json.loads(output_json.read_text()) == results
    for result in results:
        assert result["compared_with"] == str(checkpoint)
        assert result["comparison"] == {
            "difference": 0,
            "interval": 0,
            "only_first_right": 0,
            "only_second_right": 0,
            "p_value": 1,
            "interval_over_videos": 0,
        }
    line = f"minus {checkpoint}: +0.00 ± 0.00 points; if classes and videos were drawn anew: cannot be told, all videos"
    assert capsys.readouterr().out.count(line) == len(results)


def test_a_difference_is_that_to_the_model_compared_with(checkpoint, other_checkpoint, hard_data):
    given = {"inference_modes": ["few_shot"], "n_episodes": 200}
    results = main(arguments(checkpoint, hard_data, compare_with=str(other_checkpoint), **given))
    others = main(arguments(other_checkpoint, hard_data, **given))
    for result, other in zip(results, others, strict=True):
        comparison = result["comparison"]
        assert comparison["difference"] == pytest.approx(result["accuracy"] - other["accuracy"])
        assert comparison["only_first_right"] + comparison["only_second_right"] > 0
        queries = 200 * 3 * 2
        surplus = comparison["only_second_right"] - comparison["only_first_right"]
        assert comparison["difference"] == pytest.approx(100 * surplus / queries)
        assert 0 < comparison["interval"] < math.hypot(result["interval"], other["interval"]) * 1.2


def test_models_compared_until_an_interval_answer_the_same_episodes(checkpoint, other_checkpoint, hard_data):
    given = {"n_shot": [2], "n_query": 1, "inference_modes": ["few_shot"], "until_interval": 1.2}
    (alone,) = main(arguments(checkpoint, hard_data, **given))
    (result,) = main(arguments(checkpoint, hard_data, **given, compare_with=str(other_checkpoint)))
    assert {name: result[name] for name in alone} == alone
    assert "comparison" in result


def test_episodes_written_and_read_give_the_same_results(checkpoint, other_checkpoint, hard_data, tmp_path):
    path = str(tmp_path / "episodes.safetensors")
    given = {"n_shot": [2], "seed": 5}
    written = main(arguments(checkpoint, hard_data, **given, write_episodes=path))
    assert main(arguments(checkpoint, hard_data, read_episodes=path)) == written  # its own shots, ways and queries
    read = main(arguments(checkpoint, hard_data, read_episodes=path, n_way=2, n_query=1, n_episodes=3, seed=6))
    assert read == written
    assert main(arguments(other_checkpoint, hard_data, read_episodes=path)) == main(
        arguments(other_checkpoint, hard_data, **given)
    )
    with pytest.raises(ValueError, match="are about other videos"):
        main(arguments(checkpoint, hard_data, read_episodes=path, split="validation"))


def test_the_exact_accuracy_is_about_episodes_like_those_read(checkpoint, hard_data, tmp_path):
    path = str(tmp_path / "episodes.safetensors")
    given = {"n_way": 2, "n_shot": [1], "exact": True}
    written = main(arguments(checkpoint, hard_data, **given, write_episodes=path))
    read = main(arguments(checkpoint, hard_data, exact=True, read_episodes=path))
    assert [result["exact_accuracy"] for result in read] == [result["exact_accuracy"] for result in written]


def test_another_alignment_than_the_models_can_be_asked_for(checkpoint, tiny_clip, processor, hard_data, tmp_path):
    model_of_tiny_clip(tiny_clip, alignment="mean").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    given = {"n_episodes": 200, "inference_modes": ["few_shot", "zero_shot"]}
    own, overridden, expected = (
        main(arguments(model, hard_data, **given, **settings))
        for model, settings in ((checkpoint, {}), (checkpoint, {"alignment": "mean"}), (tmp_path, {}))
    )
    assert overridden == expected
    assert [a == b for a, b in zip(own, overridden, strict=True)] == [False, True] * 2  # texts know no alignment


def test_a_feature_store_is_filled_once_per_model(checkpoint, other_checkpoint, hard_data, tmp_path, monkeypatch):
    expected = main(arguments(checkpoint, hard_data))
    forwards = []
    encode = CLIPFSARModel.get_video_features
    monkeypatch.setattr(
        CLIPFSARModel, "get_video_features", lambda *given, **options: forwards.append(1) or encode(*given, **options)
    )
    given = {"feature_store": str(tmp_path / "store")}
    assert main(arguments(checkpoint, hard_data, **given)) == expected
    assert len(forwards) == 1  # 15 videos are one batch
    assert main(arguments(checkpoint, hard_data, **given)) == expected
    assert len(forwards) == 1
    main(arguments(checkpoint, hard_data, **given, compare_with=str(other_checkpoint)))
    assert len(forwards) == 2
    assert len(list((tmp_path / "store").iterdir())) == 2
    main(arguments(checkpoint, hard_data, split="validation", **given))  # beside the features of the other split
    assert len(forwards) == 3
    assert main(arguments(checkpoint, hard_data, **given)) == expected
    assert len(forwards) == 3


def test_encode_only_fills_the_store_in_shards_and_answers_no_episodes(
    checkpoint, hard_data, tmp_path, monkeypatch, capsys
):
    expected = main(arguments(checkpoint, hard_data))
    encoded = []
    encode = CLIPFSARModel.get_video_features
    monkeypatch.setattr(
        CLIPFSARModel, "get_video_features", lambda *given, **options: encoded.append(1) or encode(*given, **options)
    )
    given = {"feature_store": str(tmp_path / "store")}
    for shard in ([0, 2], [1, 2], [1, 2], []):
        evaluate_model.main(arguments(checkpoint, hard_data, **given, encode_only=True, shard=shard))
    printed = capsys.readouterr().out
    assert len(encoded) == 2  # a batch for each of the two shards
    assert "holds the features of 8 test videos of shard 0 of 2." in printed
    assert "holds the features of all 15 test videos." in printed
    assert "1-shot" not in printed.split("holds the features")[1]
    assert main(arguments(checkpoint, hard_data, **given)) == expected
    assert len(encoded) == 2


def run_program(given: EvaluateArguments):
    main(given)


@pytest.mark.parametrize("with_store", [False, True], ids=["", "feature store"])
def test_the_program_gives_the_same_results_with_two_processes(checkpoint, hard_data, with_store, tmp_path):
    outputs = {num_processes: tmp_path / f"{num_processes}.json" for num_processes in (1, 2)}
    for num_processes, output_json in outputs.items():
        given = arguments(checkpoint, hard_data, output_json=str(output_json), n_shot=[1], exact=True)
        given.feature_store = str(tmp_path / f"store_{num_processes}") if with_store else None
        outcome = run_in_children(run_program, given, folder=tmp_path / "output", num_processes=num_processes)
        assert outcome.check().output.count("15 videos") == 1
    assert outputs[1].read_text() == outputs[2].read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inference_modes": ["few_shot", "best"]}, "--inference_modes best: there are few_shot, zero_shot, ensemble"),
        ({"split": "holdout"}, "has no split 'holdout'; it has train, validation, test"),
        ({"n_way": 4}, "There are 3 classes, but n_way=4 are needed"),
        ({"n_shot": [1, 4]}, r"Class 'gray' has 5 videos, but n_shot \+ n_query = 6 are needed"),
        ({"label_column": "action"}, "There is no column 'action'; the dataset has video, label"),
        ({"write_episodes": "episodes"}, r"--write_episodes holds episodes of one --n_shot, not of \[1, 2\]"),
        ({"exact": True, "n_shot": [2, 3]}, r"--exact is about 1-shot episodes: add 1 to --n_shot \[2, 3\]"),
        ({"read_episodes": "a", "write_episodes": "b", "n_shot": [1]}, "--read_episodes .* --write_episodes"),
        ({"read_episodes": "a", "until_interval": 1.0}, "--read_episodes .* --until_interval"),
        ({"until_interval": 0.0}, "--until_interval 0.0 must be greater than 0"),
        ({"n_episodes": 0}, "--n_episodes 0 must be at least 1"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_encoded(checkpoint, saved_splits, settings, message, monkeypatch):
    monkeypatch.setattr(CLIPFSARModel, "get_video_features", None)
    with pytest.raises(ValueError, match=message):
        main(arguments(checkpoint, saved_splits, **settings))


def test_missing_or_other_episodes_are_found_out_before_anything_is_encoded(
    checkpoint, saved_splits, tmp_path, monkeypatch
):
    path = str(tmp_path / "episodes.safetensors")
    main(arguments(checkpoint, saved_splits, n_shot=[1], write_episodes=path))
    monkeypatch.setattr(CLIPFSARModel, "get_video_features", None)
    with pytest.raises(FileNotFoundError, match="There is no list of episodes at nowhere"):
        main(arguments(checkpoint, saved_splits, read_episodes="nowhere"))
    with pytest.raises(ValueError, match="are about other videos"):
        main(arguments(checkpoint, saved_splits, read_episodes=path, split="validation"))


def test_results_of_very_few_episodes_are_valid_json(checkpoint, saved_splits, tmp_path):
    """Classes that were never asked about and the interval of a single episode have no number."""
    main(
        arguments(
            checkpoint,
            saved_splits,
            n_way=2,
            n_shot=[1],
            n_episodes=1,
            inference_modes=["few_shot"],
            output_dir=str(tmp_path),
        )
    )

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    (result, *_) = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert result["interval"] is None
    assert sorted(map(type, result["per_class_accuracy"].values()), key=str) == [type(None), float, float]


def test_a_model_is_not_evaluated_in_silence_on_classes_that_trained_it(tmp_path, capsys):
    warn_of_base_classes("openai/clip", ["boxing"])
    (tmp_path / "training_arguments.json").write_text(json.dumps({"base_classes": ["Brush_hair", "diving"]}))
    warn_of_base_classes(str(tmp_path), ["boxing", "running"])
    assert capsys.readouterr().err == ""
    warn_of_base_classes(str(tmp_path), ["boxing", "brush hair"])
    assert "was trained on 1 of these 2 classes, such as 'brush hair'" in capsys.readouterr().err


@pytest.mark.parametrize("base_classes", ["boxing", [1], {"boxing": 1}, None])
def test_base_classes_that_are_no_list_of_names_are_called_damaged(tmp_path, base_classes):
    (tmp_path / "training_arguments.json").write_text(json.dumps({"base_classes": base_classes}))
    with pytest.raises(DamagedFileError, match=r"training_arguments\.json is damaged \(base_classes must be a list"):
        warn_of_base_classes(str(tmp_path), ["boxing"])
