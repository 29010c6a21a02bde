"""Inputs and settings from Python that would be ignored, or read as something else: an error or a warning says so."""

import ast
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import REPOSITORY, random_clip, tiny_model_and_processor

from clipfsar.evaluation.protocol import Protocol
from clipfsar.training.arguments import EpisodicTrainingArguments
from configuration_clipfsar import CLIPFSARConfig, CLIPResNetVisionConfig
from modeling_clipfsar import CLIPFSARModel
from pipeline_clipfsar import FewShotVideoClassificationPipeline

BASE = {"base_class_embeds": torch.ones(4, 16)}
SUPPORT_ROWS, QUERY_ROWS = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 0, 1, 1, 2, 2]])


# --- inputs of forward ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            BASE | {"query_base_labels": QUERY_ROWS},
            "query_base_labels are given without support_base_labels: .* Give both; -1 leaves a video out",
        ),
        (
            BASE | {"support_base_labels": SUPPORT_ROWS},
            "support_base_labels are given without query_base_labels: .* Give both",
        ),
        ({"support_base_labels": SUPPORT_ROWS}, "support_base_labels are given without query_base_labels"),
        (
            {"support_embeds": torch.zeros(1, 3, 4, 16)},
            "Both support_pixel_values and support_embeds are given, and they are two forms of one input: give one",
        ),
        ({"query_embeds": torch.zeros(1, 6, 4, 16)}, "Both query_pixel_values and query_embeds are given"),
        ({"class_embeds": torch.zeros(1, 3, 16)}, "Both class_input_ids and class_embeds are given"),
        (
            {
                "class_input_ids": None,
                "class_embeds": torch.ones(1, 3, 16),
                "class_attention_mask": torch.ones(1, 3, 8),
            },
            "class_attention_mask is given without class_input_ids: give both, or leave it out",
        ),
        ({"labels": torch.full((1, 6), -1)}, "All labels are negative, which leaves every video out"),
        (
            BASE | {"support_base_labels": SUPPORT_ROWS * 0 - 1, "query_base_labels": QUERY_ROWS * 0 - 100},
            "All support_base_labels and query_base_labels are negative",
        ),
    ],
)
def test_an_input_that_would_be_ignored_is_named(tiny_model, tiny_episode, added, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**tiny_episode() | added)


def test_base_labels_of_support_videos_need_support_videos(tiny_model, tiny_episode):
    episode = tiny_episode()
    del episode["support_pixel_values"], episode["support_labels"], episode["labels"]
    given = BASE | {"query_base_labels": QUERY_ROWS, "inference_mode": "zero_shot"}
    assert tiny_model()(**episode, **given).video_text_loss.isfinite()
    with pytest.raises(ValueError, match="support_base_labels are given without support videos"):
        tiny_model()(**episode, **given, support_base_labels=SUPPORT_ROWS)


def test_a_single_label_is_enough_for_a_finite_loss(tiny_model, tiny_episode):
    labels = torch.tensor([[-1, -1, -1, -1, -1, 2]])
    rows = {"support_base_labels": SUPPORT_ROWS * 0 - 1, "query_base_labels": labels}
    output = tiny_model()(**tiny_episode() | {"labels": labels} | BASE | rows)
    assert output.few_shot_loss.isfinite()
    assert output.video_text_loss.isfinite()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["false", "True", "", 2, None, [True]])
def test_only_true_and_false_are_truth_values(value):
    for name in ("prototype_modulation", "otam_bidirectional"):
        with pytest.raises(ValueError, match=f"{name}=.* must be True or False"):
            CLIPFSARConfig(**{name: value})
    with pytest.raises(ValueError, match=r"freeze_batch_norm=.* must be True or False"):
        CLIPResNetVisionConfig(freeze_batch_norm=value)
    for name in ("freeze_vision", "resume", "hub_private"):
        with pytest.raises(ValueError, match=f"--{name} .* must be True or False"):
            EpisodicTrainingArguments(**{name: value})


def test_an_option_that_can_be_left_to_the_model_may_be_none():
    assert EpisodicTrainingArguments(prototype_modulation=None).prototype_modulation is None
    with pytest.raises(ValueError, match="--prototype_modulation no must be True or False"):
        EpisodicTrainingArguments(prototype_modulation="no")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"candidate_labels": 5}, "candidate_labels=5 must be class names: a list, or one string"),
        ({"candidate_labels": {"a": "b"}}, "candidate_labels=.* must be class names: a list, or one string"),
        ({"candidate_labels": ["a", 5]}, "candidate_labels=.* must be class names: a list, or one string"),
        ({"detect_unknown": "false"}, "detect_unknown='false' must be True or False"),
    ],
)
def test_the_pipeline_names_arguments_of_another_kind(given, message):
    classify = FewShotVideoClassificationPipeline(*tiny_model_and_processor(), device="cpu")
    with pytest.raises(ValueError, match=message):
        classify(random_clip(0), **given)


def test_modulation_without_a_temporal_transformer_is_said_to_have_no_effect(tiny_model, caplog):
    message = "prototype_modulation=True has no effect with temporal_num_layers=0"
    with caplog.at_level(logging.WARNING):
        tiny_model(temporal_num_layers=0, prototype_modulation=False)
        tiny_model()
    assert message not in caplog.text
    tiny_model(temporal_num_layers=0)
    assert message in caplog.text


CHANGES = {
    "temporal_num_layers": 3,
    "temporal_num_heads": 4,
    "temporal_intermediate_size": 8,
    "temporal_attention_dropout": 0.9,
    "temporal_hidden_dropout": 0.9,
}
OF_HEADS = {"trx_size": 8, "trx_cardinalities": [2], "head_dropout": 0.9, "num_base_classes": 3}


@pytest.mark.parametrize(
    ("alignment", "name", "value"),
    [
        *(("otam", name, value) for name, value in CHANGES.items()),
        *(("trx", name, value) for name, value in (CHANGES | OF_HEADS).items()),
    ],
)
def test_a_setting_changed_after_the_model_was_made_is_refused_when_the_model_is_used(
    tiny_model, tiny_episode, alignment, name, value
):
    model, episode = tiny_model(alignment=alignment), tiny_episode()
    made_with = getattr(model.config, name)
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=f"says {name}=.*, but the model was made with .*: it cannot be changed"):
        model(**episode)
    with pytest.raises(ValueError, match=f"{name}="):
        model.get_query_states(torch.zeros(1, 4, 16))
    setattr(model.config, name, made_with)
    assert model(**episode).logits.isfinite().all()


def test_settings_that_a_model_reads_when_it_answers_may_change(tiny_model, tiny_episode):
    model, episode = tiny_model(), tiny_episode()
    before = model(**episode).logits
    for name, value in OF_HEADS.items():  # it has no head
        setattr(model.config, name, value)
    assert torch.equal(model(**episode).logits, before)
    model.config.otam_smoothing = 5.0
    assert not torch.equal(model(**episode).logits, before)


def test_layers_added_for_training_are_those_of_the_configuration(tiny_model, tiny_episode):
    model = tiny_model(temporal_num_layers=0, prototype_modulation=False)
    model.config.added_by_training = ["temporal_num_layers", "prototype_modulation"]
    model.add_untrained_layers(seed=0)
    assert model(**tiny_episode()).logits.isfinite().all()
    model.config.temporal_hidden_dropout = 0.9
    with pytest.raises(ValueError, match=r"temporal_hidden_dropout=0\.9"):
        model(**tiny_episode())


# --- zero is a number, not the default --------------------------------------------------------------------------------


def test_zero_heads_and_zero_shots_are_not_defaults():
    with pytest.raises(ValueError, match="num_attention_heads=0"):
        CLIPResNetVisionConfig(num_attention_heads=0)
    with pytest.raises(ValueError, match="n_shot=0"):
        Protocol(n_shot=0).sampler(np.array([0, 0, 1, 1]), 0, ["a", "b"])


# A frame rate of 0 in a file says nothing, so the caller's counts.
ZERO_IS_NO_NUMBER = {("clipfsar/inference/windows.py", "video_fps"), ("processing_clipfsar.py", "video_fps")}


def number_or_default(tree: ast.Module) -> list[str]:
    """Arguments that may be whole or real numbers and stand before an `or` outside a condition: 0 would be ignored."""
    found = []
    for function in (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda))):
        arguments = [*function.args.args, *function.args.kwonlyargs]
        kinds = {one.arg: ast.unparse(one.annotation) for one in arguments if one.annotation is not None}
        numbers = {name for name, kind in kinds.items() if {"int", "float"} & set(kind.replace("|", " ").split())}
        tests = {id(part) for node in ast.walk(function) if hasattr(node, "test") for part in ast.walk(node.test)}
        for node in ast.walk(function):
            if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or) and id(node) not in tests:
                found += [one.id for one in node.values[:-1] if isinstance(one, ast.Name) and one.id in numbers]
    return found


@pytest.mark.parametrize(
    "path", [*sorted(REPOSITORY.glob("*_clipfsar.py")), *sorted((REPOSITORY / "clipfsar").rglob("*.py"))], ids=str
)
def test_no_argument_that_may_be_zero_falls_back_to_a_default(path: Path):
    place = path.relative_to(REPOSITORY).as_posix()
    found = number_or_default(ast.parse(path.read_text(encoding="utf-8")))
    assert [name for name in found if (place, name) not in ZERO_IS_NO_NUMBER] == []


def test_the_search_for_such_arguments_finds_them():
    found = number_or_default(ast.parse("def f(n: int | None = None, s: str = ''):\n    return n or 5, s or 'a'"))
    assert found == ["n"]


def test_a_configuration_can_still_be_changed_before_the_next_model_is_made(tiny_config, tiny_episode):
    config = tiny_config()
    CLIPFSARModel(config)
    config.temporal_num_layers = 2
    assert CLIPFSARModel(config).eval()(**tiny_episode()).logits.isfinite().all()
