"""Evaluation on cached features: the same numbers as the whole model on pixels, whatever the number of processes."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_data import run_in_children, save_tiny_clip, video_splits, write_video_folder

from configuration_clipfsar import INFERENCE_MODES
from episodes_clipfsar import EpisodeCollator, EpisodeDataset
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor
from train.evaluation import (
    Arguments,
    EpisodicAccuracy,
    encode_classes,
    encode_videos,
    episode_accuracies,
    evaluate,
    main,
)

VIDEOS_PER_CLASS = 5


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
def tiny_clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(True)


def make_model(tiny_clip, **config) -> CLIPFSARModel:
    torch.manual_seed(0)
    return CLIPFSARModel.from_pretrained(tiny_clip, num_frames=4, **config).eval()


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
    model = make_model(tiny_clip, **config)
    episodes = EpisodeDataset(hard_split, n_way=3, n_shot=n_shot, n_query=2, n_episodes=12, seed=6)
    video_embeds = encode_videos(model, processor, hard_split, Accelerator(cpu=True), batch_size=4)
    class_embeds = encode_classes(model, processor, episodes.class_names)
    cached = episode_accuracies(
        model, video_embeds, class_embeds, episodes.labels, episodes.sampler, 12, INFERENCE_MODES, episodes_per_batch=5
    )
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
    model = make_model(tiny_clip)
    embeds = encode_videos(model, processor, test_split, Accelerator(cpu=True), batch_size=4)
    assert embeds.shape == (3 * VIDEOS_PER_CLASS, 4, 16)
    assert (embeds.dtype, embeds.device.type) == (torch.float32, "cpu")
    with torch.no_grad():
        expected = model.get_video_features(processor.process_videos(list(test_split["video"])))
        texts = model.get_class_features(**processor.tokenize_classes(["gray", "dark_blue"]))
    torch.testing.assert_close(embeds, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encode_classes(model, processor, ["gray", "dark_blue"]), texts)


def test_workers_do_not_change_features(tiny_clip, processor, test_split):
    model, accelerator = make_model(tiny_clip), Accelerator(cpu=True)
    alone, with_workers = (encode_videos(model, processor, test_split, accelerator, num_workers=n) for n in (0, 2))
    assert torch.equal(alone, with_workers)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_runs_without_dropout_and_restores_the_mode(tiny_clip, processor, test_split, training):
    model, accelerator = make_model(tiny_clip), Accelerator(cpu=True)
    episodes = EpisodeDataset(test_split, n_way=3, n_query=2)

    def measure():
        video_embeds = encode_videos(model, processor, test_split, accelerator)
        class_embeds = encode_classes(model, processor, episodes.class_names)
        return evaluate(model, video_embeds, class_embeds, episodes.labels, n_way=3, n_query=2, n_episodes=50)

    expected = measure()
    model.train(training)
    assert measure() == expected
    assert model.training is training
    assert model.temporal_transformer.training is training
    assert not any(parameter.grad is not None for parameter in model.parameters())


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_a_mean_over_episodes(tiny_clip, processor, test_split):
    model = make_model(tiny_clip)
    episodes = EpisodeDataset(test_split, n_way=3, n_query=2, seed=3)
    video_embeds = encode_videos(model, processor, test_split, Accelerator(cpu=True))
    class_embeds = encode_classes(model, processor, episodes.class_names)
    given = model, video_embeds, class_embeds, episodes.labels
    values = episode_accuracies(*given, episodes.sampler, 40)["few_shot"].tolist()
    (result,) = evaluate(*given, n_way=3, n_query=2, n_episodes=40, seed=3)
    mean = sum(values) / 40
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 39)
    assert result.accuracy == pytest.approx(100 * mean)
    assert result.interval == pytest.approx(100 * 1.96 * deviation / math.sqrt(40))
    (single,) = evaluate(*given, n_way=3, n_query=2, n_episodes=1, seed=3)
    assert math.isnan(single.interval)


def test_all_modes_are_measured_on_the_same_seeded_episodes(tiny_clip, processor, test_split):
    model = make_model(tiny_clip)
    episodes = EpisodeDataset(test_split, n_way=3, n_query=2)
    video_embeds = encode_videos(model, processor, test_split, Accelerator(cpu=True))
    class_embeds = encode_classes(model, processor, episodes.class_names)
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
    model = make_model(tiny_clip, temporal_num_layers=0, prototype_modulation=False)
    labels = torch.arange(4).repeat_interleave(50)
    class_embeds = torch.eye(4, 16)
    perfect = class_embeds[labels].unsqueeze(1).expand(-1, 4, -1)
    useless = torch.randn(200, 4, 16, generator=torch.Generator().manual_seed(0))
    for embeds, expected in ((perfect, 100.0), (useless, 25.0)):
        (result,) = evaluate(model, embeds, class_embeds, labels.numpy(), 4, 1, 5, n_episodes=400)
        assert result.accuracy == pytest.approx(expected, abs=4)


# --- several processes and the command line ---------------------------------------------------------------------------


def encode_in_process(tiny_clip, saved_splits, output):
    """What one of the processes of a distributed evaluation does; an odd number of videos, two processes."""
    from train.video_dataset import load_video_splits

    accelerator = Accelerator(cpu=True)
    split = load_video_splits(str(saved_splits))["test"]
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    embeds = encode_videos(make_model(tiny_clip), processor, split, accelerator, batch_size=4)
    torch.save((accelerator.num_processes, embeds), output / f"embeds_{accelerator.process_index}.pt")
    accelerator.end_training()


def test_two_processes_encode_the_same_features_as_one(tiny_clip, saved_splits, processor, test_split, tmp_path):
    assert len(test_split) % 2 == 1
    run_in_children(
        encode_in_process, tiny_clip, saved_splits, tmp_path, folder=tmp_path / "output", num_processes=2
    ).check()
    expected = encode_videos(make_model(tiny_clip), processor, test_split, Accelerator(cpu=True), batch_size=4)
    for rank in range(2):
        num_processes, embeds = torch.load(tmp_path / f"embeds_{rank}.pt")
        assert num_processes == 2
        torch.testing.assert_close(embeds, expected, rtol=1e-5, atol=1e-5)


def arguments(tiny_clip, saved_splits, **settings) -> Arguments:
    defaults = {"n_way": 3, "n_shot": [1, 2], "n_query": 2, "n_episodes": 25, "num_workers": 0}
    return Arguments(model=str(tiny_clip), dataset=str(saved_splits), **defaults | settings)


@pytest.fixture(scope="module")
def checkpoint(tiny_clip, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model(tiny_clip).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_program_prints_and_writes_its_results(checkpoint, saved_splits, tmp_path, capsys):
    output_json = tmp_path / "results.json"
    results = main(arguments(checkpoint, saved_splits, output_json=str(output_json)))
    assert [(r.n_shot, r.inference_mode) for r in results] == [(k, mode) for k in (1, 2) for mode in INFERENCE_MODES]
    rows = json.loads(output_json.read_text())
    assert [EpisodicAccuracy(**row) for row in rows] == results
    printed = capsys.readouterr().out
    assert "split test, 15 videos:" in printed
    for result in results:
        assert str(result) in printed


def run_program(given: Arguments):
    main(given)


def test_the_program_gives_the_same_results_with_two_processes(checkpoint, saved_splits, tmp_path):
    outputs = {num_processes: tmp_path / f"{num_processes}.json" for num_processes in (1, 2)}
    for num_processes, output_json in outputs.items():
        given = arguments(checkpoint, saved_splits, output_json=str(output_json), n_shot=[1])
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
    ],
)
def test_a_bad_request_is_refused_before_anything_is_encoded(checkpoint, saved_splits, settings, message):
    with pytest.raises(ValueError, match=message):
        main(arguments(checkpoint, saved_splits, **settings))
