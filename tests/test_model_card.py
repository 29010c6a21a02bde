"""The model card: metadata that the Hub reads, every number with its interval, no paths of the machine."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from clipfsar.checkpoints.model_card import write_model_card
from clipfsar.evaluation.results import EpisodicAccuracy
from clipfsar.training.arguments import parse_arguments

RESULTS = [
    EpisodicAccuracy("few_shot", 5, 1, 1, 10_000, 61.234, 0.456),
    EpisodicAccuracy("ensemble", 5, 5, 1, 10_000, 72.5, 0.25),
]
BEST = {"accuracy": 55.55, "interval": 2.22, "episode": 600, "n_episodes": 1000}


def write_card(folder: Path, *arguments: str, best=BEST, results=RESULTS) -> ModelCard:
    dataset = [] if "--dataset" in arguments else ["--dataset", "someone/actions"]
    args = parse_arguments([*dataset, "--episodes", "800", "--seed", "7", *arguments])
    write_model_card(folder, args, best, results, num_base_classes=24)
    return ModelCard.load(folder / "README.md")


def test_the_metadata_says_what_the_model_is(tmp_path):
    data = write_card(tmp_path).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "video-classification")
    assert {"few-shot-learning", "action-recognition", "custom_code"} <= set(data.tags)


def test_the_metadata_holds_every_result(tmp_path):
    data = write_card(tmp_path).data
    for read, result in zip(data.eval_results, RESULTS, strict=True):
        assert read.task_type == "video-classification"
        assert read.task_name == f"5-way {result.n_shot}-shot, {result.inference_mode}"
        assert (read.dataset_name, read.dataset_split) == ("someone/actions", "test")
        assert (read.metric_type, read.metric_value) == ("accuracy", round(result.accuracy, 2))
        assert read.metric_name == f"mean of 10000 episodes, 95% interval ± {result.interval:.2f}"


def test_the_text_holds_results_selection_and_training(tmp_path):
    text = " ".join(write_card(tmp_path).text.split())
    assert "| 5 | 1 | few_shot | 61.2% | ± 0.5 | 10000 |" in text
    assert "| 5 | 5 | ensemble | 72.5% | ± 0.2 | 10000 |" in text
    assert "the model of episode 600, the best on the validation classes: 55.5 ± 2.2% (1000 episodes)" in text
    assert "600 episodes (5-way 1-shot, 5 queries per class) of 24 base classes, seed 7" in text
    assert "classes that were not trained on" in text
    assert "arXiv:2303.02982" in text
    assert "{" not in re.sub(r"```.*?```", "", text)  # nothing left unformatted


def test_without_a_test_nothing_is_claimed(tmp_path):
    card = write_card(tmp_path, best=None, results=[])
    assert card.data.eval_results is None
    assert "Test split: not measured." in card.text
    assert "%" not in card.text.replace("95%", "")
    assert "800 episodes" in card.text


def test_shared_classes_are_confessed(tmp_path):
    text = write_card(tmp_path, "--allow_shared_classes").text
    assert "not a few-shot result" in text
    assert "were not trained on" not in text


def test_the_program_on_the_card_is_python(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", write_card(tmp_path).text, flags=re.DOTALL)
    compile(program, "card", "exec")


@pytest.mark.parametrize("name", ["dataset", "model"])
def test_paths_of_the_machine_do_not_stand_on_the_card(tmp_path, name):
    local = tmp_path / "private" / "things"
    local.mkdir(parents=True)
    text = (write_card(tmp_path, f"--{name}", str(local)) and tmp_path / "README.md").read_text()
    assert "things" in text
    assert "private" not in text
    assert str(tmp_path) not in text


def test_the_base_model_and_its_licence_are_named(tmp_path):
    card = write_card(tmp_path, "--model", "openai/clip-vit-base-patch16")
    assert card.data.base_model == "openai/clip-vit-base-patch16"
    assert card.data.license == "other"
    assert card.data.license_link == "https://huggingface.co/openai/clip-vit-base-patch16"
    assert "derived from [`openai/clip-vit-base-patch16`](https://huggingface.co/openai/clip" in card.text
    assert "OpenAI never said whether that covers the weights" in card.text


def test_a_base_model_of_this_machine_gets_no_address(tmp_path):
    (tmp_path / "own").mkdir()
    card = write_card(tmp_path, "--model", str(tmp_path / "own"))
    assert (card.data.base_model, getattr(card.data, "license_link", None)) == (None, None)
    assert "huggingface.co/own" not in (tmp_path / "README.md").read_text()


def test_the_card_names_the_repository_it_is_made_for(tmp_path):
    assert 'model="path/or/hub-id"' in write_card(tmp_path).text
    assert 'model="me/actions"' in write_card(tmp_path, "--push_to_hub", "me/actions").text
