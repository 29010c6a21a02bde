"""Every number that a training run reports, computed again from what it saved."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import load_from_disk
from tiny_data import read_log, save_tiny_clip, training_arguments, video_splits, write_video_folder

from clipfsar.evaluation.evaluate_model import evaluate_episodes
from clipfsar.training.arguments import parse_arguments
from clipfsar.training.program import run
from clipfsar.training.step import recorded_values
from episodes_clipfsar import EpisodeCollator, EpisodeDataset
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

EPISODES, EVAL_EVERY = 24, 8


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Folder of a model without dropout, so that a training step can be computed again."""
    clip, folder = (tmp_path_factory.mktemp(name) for name in ("clip", "start"))
    save_tiny_clip(clip)
    torch.manual_seed(0)
    no_dropout = {"temporal_attention_dropout": 0.0, "temporal_hidden_dropout": 0.0}
    CLIPFSARModel.from_pretrained(clip, for_training=True, num_frames=4, **no_dropout).save_pretrained(folder)
    CLIPFSARProcessor.from_pretrained(clip, num_frames=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "colours"
    video_splits(write_video_folder(tmp_path_factory.mktemp("videos"))).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def finished(start, data, tmp_path_factory):
    """A run whose best model is not its last one: the learning rate is far too high."""
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = {"episodes": EPISODES, "eval_every": EVAL_EVERY, "learning_rate": 1e-1, "warmup_episodes": 0}
    run(parse_arguments(training_arguments(data, start, folder, **settings)))
    return folder


def measured(folder, split, **protocol):
    model = CLIPFSARModel.from_pretrained(folder).eval()
    return evaluate_episodes(model, CLIPFSARProcessor.from_pretrained(folder), split, n_way=3, **protocol)


def validations(folder) -> dict[int, float]:
    return {line["episode"]: line["accuracy"] for line in read_log(folder) if line["kind"] == "validation"}


def test_padding_is_neither_right_nor_wrong():
    logits = torch.tensor([[[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]], [[2.0, 1.0], [5.0, 5.0], [5.0, 5.0]]])
    outputs = SimpleNamespace(logits=logits, few_shot_loss=None, video_text_loss=None)
    labels = torch.tensor([[0, 0, 0], [0, -1, -1]])  # right, wrong, right; right, and two of padding
    assert recorded_values(torch.tensor(1.0), outputs, labels)["accuracy"].item() == 0.75
    labels[0, 1] = 1
    assert recorded_values(torch.tensor(1.0), outputs, labels)["accuracy"].item() == 1.0


@pytest.mark.usefixtures("fresh_accelerate")
def test_validations_are_of_validation_classes_and_choose_the_best(finished, data):
    accuracies = validations(finished)
    assert sorted(accuracies) == [8, 16, 24]
    best = json.loads((finished / "state" / "progress.json").read_text())["best"]
    assert best["episode"] == max(accuracies, key=accuracies.get) < EPISODES
    validation = load_from_disk(data)["validation"]
    protocol = {"n_shot": 1, "n_episodes": 20, "inference_modes": "few_shot"}
    for name, episode in (("best", best["episode"]), ("last", EPISODES)):
        (result,) = measured(finished / name, validation, **protocol)
        assert result.accuracy == pytest.approx(accuracies[episode], abs=1e-9), name


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_test_is_of_the_best_model_on_test_classes(finished, data):
    test = load_from_disk(data)["test"]
    reported = json.loads((finished / "results.json").read_text())
    protocol = {"n_shot": [1, 2], "n_episodes": 20}
    best, last = (measured(finished / name, test, **protocol) for name in ("best", "last"))
    assert [(row["n_shot"], row["inference_mode"]) for row in reported] == [
        (result.n_shot, result.inference_mode) for result in best
    ]
    for row, result in zip(reported, best, strict=True):
        assert (row["accuracy"], row["interval"]) == pytest.approx((result.accuracy, result.interval), abs=1e-9)
    assert [row["accuracy"] for row in reported] != [result.accuracy for result in last]
    card = (finished / "best" / "README.md").read_text()
    for result in best:
        assert f"{result.accuracy:.1f}" in card


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_first_line_of_the_log_is_the_mean_of_the_first_episodes(finished, start, data):
    train = load_from_disk(data)["train"]
    model, processor = CLIPFSARModel.from_pretrained(start).train(), CLIPFSARProcessor.from_pretrained(start)
    dataset = EpisodeDataset(train, n_way=3, n_shot=1, n_query=1, n_episodes=EPISODES, seed=0)
    tokens = processor.tokenize_classes(dataset.class_names)
    with torch.no_grad():
        base = model.get_class_features(**tokens)
        outputs = []
        for index in range(4):
            batch = EpisodeCollator(processor, training=True)([dataset[index]])
            outputs.append((model(**batch, base_class_embeds=base), batch["labels"]))
    (first, *_) = read_log(finished)
    assert (first["episode"], first["kind"]) == (4, "train")
    expected = {
        name: sum(float(getattr(output, name)) for output, _ in outputs) / 4
        for name in ("loss", "few_shot_loss", "video_text_loss")
    }
    right = [float((output.logits.argmax(-1) == labels).float().mean()) for output, labels in outputs]
    expected["accuracy"] = 100 * sum(right) / 4
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    weight = model.config.video_text_loss_weight
    assert first["loss"] == pytest.approx(first["few_shot_loss"] + weight * first["video_text_loss"], rel=1e-5)
