"""Settings: the official table, the learning rates, and `defaults < preset < command line`."""

import json
import math
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from clipfsar.cli import main as run_command
from clipfsar.presets import PRESETS, learning_rate_at
from clipfsar.training.arguments import EpisodicTrainingArguments, parse_arguments
from clipfsar.training.program import main

# Recorded from the official program, alibaba-mmai-research/CLIP-FSAR: [iteration, learning rate] pairs per benchmark.
LEARNING_RATES = json.loads((Path(__file__).parent / "golden" / "learning_rates.json").read_text())

# The official settings (RN50; none were published for ViT). A warm-up lasts P iterations; the rate is full until 2P
# (Kinetics 3P) and a tenth until 3P (Kinetics 5P).
OFFICIAL_SETTINGS = {
    "ssv2_full": {
        "learning_rate": 5e-5,
        "warmup_learning_rate": 1e-5,
        "warmup_episodes": 4000,
        "decay_episodes": [8000, 12000],
        "episodes": 30_000,
        "video_text_loss_weight": 3.0,
        "eval_every": 1000,
        "seed": 0,
        "frame_sampling": "segment_center",
        "query_augmentation": "none",
    },
    "ssv2_small": {
        "learning_rate": 5e-5,
        "warmup_learning_rate": 2e-5,
        "warmup_episodes": 2000,
        "decay_episodes": [4000, 6000],
        "episodes": 30_000,
        "video_text_loss_weight": 3.0,
        "eval_every": 1000,
        "seed": 0,
        "frame_sampling": "segment_center",
        "query_augmentation": "none",
    },
    "kinetics100": {
        "learning_rate": 1e-5,
        "warmup_learning_rate": 5e-6,
        "warmup_episodes": 250,
        "decay_episodes": [750, 1250],
        "episodes": 5000,
        "video_text_loss_weight": 1.5,
        "eval_every": 100,
        "seed": 18,
        "frame_sampling": "interval",
        "query_augmentation": "kinetics",
    },
    "ucf101": {
        "learning_rate": 2e-6,
        "warmup_learning_rate": 1e-7,
        "warmup_episodes": 600,
        "decay_episodes": [1200, 1800],
        "episodes": 3000,
        "video_text_loss_weight": 1.5,
        "eval_every": 100,
        "seed": 0,
        "frame_sampling": "segment_center",
        "query_augmentation": "none",
    },
    "hmdb51": {
        "learning_rate": 1e-5,
        "warmup_learning_rate": 1e-6,
        "warmup_episodes": 700,
        "decay_episodes": [1400, 2100],
        "episodes": 5000,
        "video_text_loss_weight": 1.2,
        "eval_every": 300,
        "seed": 0,
        "frame_sampling": "segment_center",
        "query_augmentation": "none",
    },
}
# The same for all: 5-way, trained on 1-shot episodes with 5 queries per class, tested with 1 query in 10,000 episodes;
# gradients of 4 episodes per step; Adam with coupled decay 1e-3; float32; frames squashed to 256 and cropped to 224.
OFFICIAL_FOR_ALL = {
    "model": "openai/clip-vit-base-patch16",
    "preprocessing": "official",
    "sampling_rate": 35,
    "num_frames": 8,
    "prompt_template": "a photo of {}",
    "n_way": 5,
    "train_n_shot": 1,
    "train_n_query": 5,
    "n_query": 1,
    "test_episodes": 10_000,
    "episodes_per_update": 4,
    "optimizer": "adam",
    "weight_decay": 1e-3,
    "max_grad_norm": 0.0,
    "mixed_precision": None,
}


def test_there_are_five_benchmarks_of_the_paper_and_two_more_sets():
    assert list(OFFICIAL_SETTINGS) == ["ssv2_full", "ssv2_small", "kinetics100", "ucf101", "hmdb51"]
    assert list(PRESETS) == [*OFFICIAL_SETTINGS, "epic_kitchens", "diving48"]


def test_epic_kitchens_has_the_settings_of_hyrsm_plus_plus():
    """From HyRSMplusplus_Epic_1shot_v1.yaml of the official repository, counted as for the other benchmarks."""
    resolved = asdict(parse_arguments(["--benchmark", "epic_kitchens"]))
    expected = {
        "learning_rate": 5e-5,
        "warmup_learning_rate": 1e-5,
        "warmup_episodes": 400,
        "decay_episodes": [800, 1600],
        "episodes": 2000,
        "eval_every": 100,
        "seed": 18,
        "frame_sampling": "interval",
        "sampling_rate": 50,
        "preprocessing": "official",
    }
    assert {name: resolved[name] for name in expected} == expected


def test_diving48_has_the_defaults_and_official_preprocessing():
    resolved, plain = asdict(parse_arguments(["--benchmark", "diving48"])), asdict(parse_arguments([]))
    changed = {name for name in plain if plain[name] != resolved[name]}
    assert changed == {"benchmark", "dataset", "output_dir", "preprocessing"}


@pytest.mark.parametrize("benchmark", OFFICIAL_SETTINGS)
def test_a_benchmark_resolves_to_the_official_settings(benchmark):
    resolved = asdict(parse_arguments(["--benchmark", benchmark, "--dataset", "videos"]))
    expected = OFFICIAL_SETTINGS[benchmark] | OFFICIAL_FOR_ALL
    assert {name: resolved[name] for name in expected} == expected


@pytest.mark.parametrize("benchmark", OFFICIAL_SETTINGS)
def test_a_preset_sets_nothing_that_is_not_an_option_and_nothing_besides_the_official_settings(benchmark):
    defaults = PRESETS[benchmark].as_defaults()
    assert set(defaults) <= {item.name for item in fields(EpisodicTrainingArguments)}
    resolved = asdict(parse_arguments(["--benchmark", benchmark]))
    plain = asdict(parse_arguments([]))
    changed = {name for name in plain if plain[name] != resolved[name]}
    assert changed <= {"benchmark", "dataset", "output_dir", "preprocessing", *OFFICIAL_SETTINGS[benchmark]}


@pytest.mark.parametrize("benchmark", OFFICIAL_SETTINGS)
def test_learning_rates_are_the_official_programs(benchmark):
    args = parse_arguments(["--benchmark", benchmark])
    recorded = LEARNING_RATES[benchmark]
    assert args.episodes == recorded["episodes"]
    assert args.warmup_episodes == recorded["iterations_per_epoch"]
    for iteration, expected in recorded["learning_rates"]:
        rate = learning_rate_at(
            iteration, args.learning_rate, args.warmup_learning_rate, args.warmup_episodes, tuple(args.decay_episodes)
        )
        assert rate == pytest.approx(expected, rel=1e-6), f"iteration {iteration}"


def test_learning_rate_without_warmup_and_decay_is_constant():
    assert [learning_rate_at(episode, 1e-3, 1e-5, 0, ()) for episode in (0, 1, 10**6)] == [1e-3] * 3


def test_defaults_give_way_to_the_preset_and_the_preset_to_the_command_line():
    assert parse_arguments([]).learning_rate == 1e-5
    assert parse_arguments(["--benchmark", "ucf101"]).learning_rate == 2e-6
    assert parse_arguments(["--benchmark", "ucf101", "--learning_rate", "1e-4"]).learning_rate == 1e-4
    assert parse_arguments(["--learning_rate", "1e-4", "--benchmark=ucf101"]).learning_rate == 1e-4
    assert parse_arguments(["--benchmark", "kinetics100", "--query_augmentation", "none"]).query_augmentation == "none"


def test_the_command_line_can_take_the_decay_out_of_a_preset():
    assert parse_arguments(["--benchmark", "ucf101", "--decay_episodes"]).decay_episodes == []


def test_a_default_on_the_command_line_overrides_the_preset():
    assert parse_arguments(["--benchmark", "kinetics100", "--seed", "0"]).seed == 0


def test_a_preset_does_not_leak_into_the_next_command_line():
    parse_arguments(["--benchmark", "ssv2_full", "--decay_episodes", "1", "2"])
    assert parse_arguments(["--benchmark", "ssv2_full"]).decay_episodes == [8000, 12000]
    assert parse_arguments([]).video_text_loss_weight is None


def test_options_take_true_and_false_and_lists():
    args = parse_arguments(["--resume", "--prototype_modulation", "false", "--n_shot", "1", "3", "5"])
    assert args.resume is True
    assert args.prototype_modulation is False
    assert args.n_shot == [1, 3, 5]
    given = ["--resume", "true", "--push_to_hub", "me/mine", "--hub_private", "false"]
    assert parse_arguments(given).hub_private is False


def test_only_what_the_command_line_says_of_the_model_overrides_a_checkpoint():
    assert parse_arguments([]).config_overrides() == {"num_frames": 8}
    args = parse_arguments(["--alignment", "bi_mhm", "--prototype_modulation", "false", "--temporal_num_layers", "0"])
    assert args.config_overrides() == {
        "num_frames": 8,
        "alignment": "bi_mhm",
        "prototype_modulation": False,
        "temporal_num_layers": 0,
    }


def test_help_explains_every_option_and_lists_the_benchmarks(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    assert "{ssv2_full,ssv2_small,kinetics100,ucf101,hmdb51,epic_kitchens,diving48}" in text
    words = " ".join(text.split())
    for item in fields(EpisodicTrainingArguments):
        assert f"--{item.name}" in text
        start = item.metadata["help"].split("-")[0][:30].strip()  # argparse may break a line at a hyphen
        assert start in words, item.name


def test_print_config_prints_the_resolved_settings_and_stops(capsys):
    assert run_command(["train", "--benchmark", "hmdb51", "--n_shot", "3", "--print_config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == asdict(parse_arguments(["--benchmark", "hmdb51", "--n_shot", "3", "--print_config"]))
    assert (printed["video_text_loss_weight"], printed["n_shot"]) == (1.2, [3])


def test_a_run_without_a_dataset_says_what_is_missing():
    with pytest.raises(ValueError, match="--dataset is missing: give a folder with videos or the id"):
        main(parse_arguments([]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decay_episodes", "20", "10"], r"--decay_episodes \[20, 10\]: give two ascending numbers, or none"),
        (["--decay_episodes", "20"], r"--decay_episodes \[20\]: give two ascending numbers, or none"),
        (["--episodes", "0"], "--episodes 0 must be at least 1"),
        (["--episodes_per_update", "0"], "--episodes_per_update 0 must be at least 1"),
        (["--episodes_per_forward", "0"], "--episodes_per_forward 0 must be at least 1"),
        (["--eval_every", "0"], "--eval_every 0 must be at least 1"),
        (["--eval_episodes", "-1"], "--eval_episodes -1 must be at least 1"),
        (["--episodes", "30"], "--episodes 30 is not a multiple of --episodes_per_update 4: 28 would be"),
        (["--eval_every", "6"], "--eval_every 6 is not a multiple of --episodes_per_update 4"),
        (["--inference_modes", "best", "few_shot"], "--inference_modes best: there are few_shot, zero_shot, ensemble"),
    ],
)
def test_a_bad_value_is_named_with_its_remedy(arguments, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_arguments(arguments)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("benchmark", PRESETS)
def test_presets_keep_the_limits_of_values(benchmark):
    assert parse_arguments(["--benchmark", benchmark]).episodes == PRESETS[benchmark].episodes


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", -1e-5, "-1e-05 must be a finite number, 0 or more"),
        ("learning_rate", math.nan, "nan must be a finite number"),
        ("learning_rate", math.inf, "inf must be a finite number"),
        ("weight_decay", -1e-3, "-0.001 must be a finite number, 0 or more"),
        ("max_grad_norm", -1.0, "-1.0 must be a finite number, 0 or more"),
        ("max_grad_norm", math.nan, "nan must be a finite number"),
        ("lora_alpha", -4.0, "-4.0 must be a finite number greater than 0"),
        ("warmup_learning_rate", -1e-6, "-1e-06 must be a finite number, 0 or more"),
        ("warmup_episodes", -1, "-1 must be 0 or more"),
        ("decay_episodes", [-5, 10], "-5 must be 0 or more"),
        ("decay_episodes", [10, 10], r"\[10, 10\]: give two ascending numbers"),
        ("log_every", 0, "0 must be at least 1"),
        ("eval_batch_size", 0, "0 must be at least 1"),
        ("n_way", 1, "1 must be at least 2"),
        ("n_shot", [1, 0], "0 must be at least 1"),
        ("n_shot", [], "is empty: give at least one"),
        ("n_query", 0, "0 must be at least 1"),
        ("train_n_shot", 0, "0 must be at least 1"),
        ("train_n_query", -1, "-1 must be at least 1"),
        ("test_episodes", -1, "-1 must be 0 or more"),
        ("num_workers", -1, "-1 must be 0 or more"),
    ],
)
def test_a_value_that_spoils_a_training_is_refused_before_it(name, value, message):
    with pytest.raises(ValueError, match=f"--{name} {message}"):
        EpisodicTrainingArguments(**{name: value})


def test_zero_means_none_where_the_help_says_so():
    names = ("test_episodes", "warmup_episodes", "max_grad_norm", "weight_decay", "lora_rank", "num_workers")
    args = EpisodicTrainingArguments(**dict.fromkeys(names, 0))
    assert [getattr(args, name) for name in names] == [0] * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "kinetics"], "invalid choice: 'kinetics'"),
        (["--alignment", "dtw"], "invalid choice: 'dtw'"),
        (["--episodes", "many"], "invalid int value: 'many'"),
    ],
)
def test_a_bad_choice_is_refused_by_the_parser(arguments, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_a_misspelt_option_is_refused_and_not_taken_for_another(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_arguments(["--learning_rat", "1"])
    assert "Unknown option '--learning_rat': did you mean '--learning_rate'?" in capsys.readouterr().err
