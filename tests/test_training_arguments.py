"""Limits of the training's settings, what transformers' callbacks read off them, and how a run is named to go on."""

import json
from dataclasses import asdict

import pytest
from tiny_data import tiny_model_and_processor

from clipfsar.training.arguments import EpisodicTrainingArguments, parse_arguments, settings_of_run

AT_LEAST_1 = (
    *("train_n_shot", "train_n_query", "n_query", "episodes", "episodes_per_update", "episodes_per_forward"),
    *("eval_every", "eval_episodes", "log_every", "eval_batch_size", "ddp_timeout"),
)
AT_LEAST_0 = ("test_episodes", "warmup_episodes", "num_workers", "feature_draws", "train_last_layers", "lora_rank")


@pytest.mark.parametrize(
    ("name", "lowest"), [("n_way", 2), *((name, 1) for name in AT_LEAST_1), *((name, 0) for name in AT_LEAST_0)]
)
def test_each_number_has_a_lowest_value(name, lowest):
    others = {"episodes": 8, "episodes_per_update": 1, "eval_every": 1}
    assert getattr(EpisodicTrainingArguments(**others | {name: lowest}), name) == lowest
    with pytest.raises(ValueError, match=rf"^--{name} {lowest - 1} must be (at least {lowest}|{lowest} or more)\.$"):
        EpisodicTrainingArguments(**others | {name: lowest - 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_shot": [2, 0]}, "--n_shot 0 must be at least 1."),
        ({"decay_episodes": [-1, 4]}, "--decay_episodes -1 must be 0 or more."),
        ({"lora_alpha": 0.0}, "--lora_alpha 0.0 must be a finite number greater than 0."),
        ({"lora_alpha": float("inf")}, "--lora_alpha inf must be a finite number greater than 0."),
        ({"seconds_per_video": 0.0}, "--seconds_per_video 0.0 must be greater than 0."),
        ({"freeze_vision": None}, "--freeze_vision None must be True or False."),
        ({"prototype_modulation": "false"}, "--prototype_modulation false must be True or False."),
        (
            {"eval_every": 6},
            "--eval_every 6 is not a multiple of --episodes_per_update 4: validations and checkpoints come between "
            "updates. 8 would be.",
        ),
        (
            {"eval_every": 1},
            "--eval_every 1 is not a multiple of --episodes_per_update 4: validations and checkpoints come between "
            "updates. 4 would be.",
        ),
        ({"train_last_layers": 0, "lora_rank": 2}, "--train_last_layers and --lora_rank exclude each other: give only"),
        ({"inference_modes": ["zero_shot", "some", "best"]}, "--inference_modes best some: there are few_shot, "),
    ],
)
def test_a_setting_that_cannot_be_is_named(settings, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        EpisodicTrainingArguments(**settings)
    assert str(error.value).startswith(message)


def test_settings_at_their_limits_are_accepted():
    args = EpisodicTrainingArguments(
        decay_episodes=[0, 1], lora_rank=1, lora_alpha=0.1, seconds_per_video=0.1, prototype_modulation=None
    )
    assert (args.decay_episodes, args.lora_alpha) == ([0, 1], 0.1)
    assert EpisodicTrainingArguments(freeze_vision=True, feature_draws=1).trains_on_features


@pytest.mark.parametrize(("log_every", "steps"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_callbacks_of_transformers_read_steps_and_strategies(log_every, steps):
    args = EpisodicTrainingArguments(episodes=40, episodes_per_update=4, eval_every=20, log_every=log_every)
    assert (args.max_steps, args.eval_steps, args.save_steps, args.logging_steps) == (10, 5, 5, steps)
    assert (args.eval_strategy, args.save_strategy, args.logging_strategy) == ("steps", "steps", "steps")
    assert (args.load_best_model_at_end, args.greater_is_better, args.num_train_epochs) == (True, True, 1)
    assert args.metric_for_best_model == "accuracy"
    assert args.to_dict() == asdict(args)


# --- a run that goes on -----------------------------------------------------------------------------------------------


def test_all_settings_that_differ_from_a_runs_are_named():
    saved = asdict(EpisodicTrainingArguments(n_shot=[5, 1], seed=3, episodes=800))
    args = EpisodicTrainingArguments(output_dir="out", n_shot=[1, 5], episodes=600)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        args.check_same_run(saved)
    assert str(error.value) == (
        "The run in out was started with --episodes 800 (now 600), --seed 3 (now 0), --n_shot 5 ... (now 1 ...): "
        "resume with the same settings or use another --output_dir."
    )


def test_a_longer_run_another_second_shot_and_settings_that_were_not_recorded_are_the_same_run():
    saved = asdict(EpisodicTrainingArguments(n_shot=[5, 1], alignment=None, prototype_modulation=True))
    del saved["weight_decay"]
    EpisodicTrainingArguments(n_shot=[5, 2], episodes=2400, alignment="mean", prototype_modulation=True).check_same_run(
        saved
    )
    with pytest.raises(ValueError, match=r"--prototype_modulation True \(now False\)"):
        EpisodicTrainingArguments(n_shot=[5], prototype_modulation=False).check_same_run(saved)


@pytest.fixture
def run(tmp_path):
    settings = asdict(EpisodicTrainingArguments(dataset="me/videos", episodes=800, seed=7, print_config=True))
    for name, seed in (("state", 7), ("state.old", 8)):
        (tmp_path / "run" / name).mkdir(parents=True)
        content = {"arguments": settings | {"seed": seed, "of_a_later_version": 1}}
        (tmp_path / "run" / name / "progress.json").write_text(json.dumps(content))
    return tmp_path / "run"


@pytest.mark.parametrize("way", ["{option} {run}", "{option}={run}", "--seed 9 {option} {run}"])
def test_a_run_is_named_behind_resume(run, way):
    line = way.format(option="--resume", run=run).split()
    args = parse_arguments([*line, "--episodes", "1200"])
    assert (args.resume, args.output_dir, args.dataset, args.episodes) == (True, str(run), "me/videos", 1200)
    assert args.seed == (9 if "--seed" in way else 7)
    assert not args.print_config


@pytest.mark.parametrize(
    ("line", "resume"),
    [
        ("--resume", True),
        ("--resume --seed 3", True),
        ("--resume true --seed 3", True),
        ("--resume=false", False),
        ("--seed 3 --resume", True),
        ("", False),
    ],
)
def test_resume_without_a_folder_is_an_option_like_others(line, resume):
    args = parse_arguments(["--dataset", "d", "--output_dir", "out", *line.split()])
    assert (args.resume, args.output_dir, args.episodes) == (resume, "out", 2000)
    assert args.seed == (3 if "--seed" in line else 0)


@pytest.mark.parametrize("option", ["--output_dir", "--output-dir=o", "--benchmark"])
def test_a_named_run_takes_no_other_folder_in_any_spelling(run, option, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_arguments(["--resume", str(run), *([option] if "=" in option else [option, "hmdb51"])])
    assert f"--resume {run} already says the folder and the settings: leave --" in capsys.readouterr().err


def test_settings_of_a_run_are_those_of_its_whole_state(run):
    assert settings_of_run(run)["seed"] == 7
    assert "of_a_later_version" not in settings_of_run(run)
    (run / "state" / "progress.json").unlink()
    assert settings_of_run(run)["seed"] == 8
    (run / "state.old" / "progress.json").unlink()
    message = (
        f"--resume {run}: this folder holds no checkpoint. To start a run there, give its options and --output_dir "
        f"{run} --resume."
    )
    with pytest.raises(FileNotFoundError) as error:
        settings_of_run(run)
    assert str(error.value) == message


def test_class_texts_that_the_processor_has_may_be_named_in_the_arguments(tmp_path):
    model, processor = tiny_model_and_processor()
    (tmp_path / "texts.json").write_text('{"a": ["one"]}')
    args = EpisodicTrainingArguments(class_texts=str(tmp_path / "texts.json"), sampling_rate=35)
    processor.class_texts = {"a": ["one"]}
    processor.sampling_rate = 6
    resolved = args.resolved(model, processor)
    assert (resolved.num_frames, resolved.sampling_rate, resolved.alignment) == (4, 6, "otam")
    assert args.sampling_rate == 35
    processor.class_texts = {"a": ["other"]}
    with pytest.raises(ValueError, match="but the processor has other texts"):
        args.resolved(model, processor)
