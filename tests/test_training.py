"""Training runs, small but whole: several processes, deaths at any moment, what is saved and what is refused.

Runs are child processes, forked off a server (see `tiny_data`), so that SIGKILL, process groups and accelerate's global
state are the real ones.
"""

import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from ast import literal_eval
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from accelerate import Accelerator
from datasets import load_from_disk
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file
from tiny_data import (
    REPOSITORY,
    Outcome,
    child_environment,
    free_port,
    read_log,
    run_in_children,
    save_tiny_clip,
    tiny_model_and_processor,
    training_arguments,
    video_splits,
    write_video,
    write_video_folder,
)
from torch.utils._python_dispatch import TorchDispatchMode

from clipfsar.evaluation import encoding
from clipfsar.training import trainer
from clipfsar.training.arguments import parse_arguments
from clipfsar.training.optimization import make_optimizer, optimizer_groups
from clipfsar.training.preemption import PREEMPTED
from clipfsar.training.program import main
from clipfsar.training.run_folder import complete_folder, replace_folder
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

# Losses of a run on weights by a formula, recorded from this program (torch 2.13, CPU; torch 2.8 gives the same).
GOLDEN_LOSSES = {4: 2.539327, 8: 2.240198, 12: 2.031267, 16: 1.840479}


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    return write_video_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def dataset(video_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "colours"
    video_splits(video_folder).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def without_dropout(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("without_dropout")
    torch.manual_seed(0)
    model = CLIPFSARModel.from_pretrained(
        tiny_clip, for_training=True, num_frames=4, temporal_attention_dropout=0.0, temporal_hidden_dropout=0.0
    )
    model.save_pretrained(folder)
    CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4).save_pretrained(folder)
    return folder


def run_program(arguments: list[str], prepare=None, *details):
    """In a child: the program's `main`, after `prepare(*details)`."""
    if prepare:
        prepare(*details)
    main(parse_arguments(arguments))


@pytest.fixture
def train(dataset, tiny_clip, tmp_path):
    """Trains into a folder of the test's `tmp_path`; keyword arguments are options of the program."""

    def run(name="run", prepare=(), num_processes=1, **overrides) -> Outcome:
        settings = {"dataset": dataset, "model": tiny_clip} | overrides
        arguments = training_arguments(output_dir=tmp_path / name, **settings)
        return run_in_children(
            run_program, arguments, *prepare, folder=tmp_path / "output", num_processes=num_processes
        )

    return run


@pytest.fixture(scope="module")
def reference(dataset, tiny_clip, tmp_path_factory):
    """Folder of an uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("reference")
    arguments = training_arguments(dataset, tiny_clip, folder / "run")
    outcome = run_in_children(run_program, arguments, folder=folder / "output").check()
    (folder / "run" / "printed.txt").write_text(outcome.output)
    return folder / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_run(output_dir: Path, reference: Path):
    """Bit for bit: log, models and results."""
    assert (output_dir / "training_log.jsonl").read_text() == (reference / "training_log.jsonl").read_text()
    for name in ("best", "last"):
        ours, theirs = weights(output_dir / name), weights(reference / name)
        assert list(ours) == list(theirs)
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert (output_dir / "results.json").read_text() == (reference / "results.json").read_text()
    assert (output_dir / "best" / "README.md").read_text() == (reference / "best" / "README.md").read_text()


def assert_close_run(output_dir: Path, reference: Path, loss_tolerance=1e-5, weight_tolerance=1e-6):
    log, expected_log = read_log(output_dir), read_log(reference)
    assert [(line["episode"], line["kind"]) for line in log] == [(x["episode"], x["kind"]) for x in expected_log]
    for line, expected in zip(log, expected_log, strict=True):
        for name in set(expected) - {"episode", "kind"}:
            assert line[name] == pytest.approx(expected[name], abs=loss_tolerance, rel=loss_tolerance), (name, line)
    ours, theirs = weights(output_dir / "last"), weights(reference / "last")
    for name in theirs:
        if name.endswith("k_proj.bias"):
            # It moves all attention scores of a query alike: its gradient is only round-off, which Adam enlarges.
            continue
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=weight_tolerance, msg=lambda m, n=name: n + m)


def assert_refused(outcome: Outcome, match: str):
    assert set(outcome.exit_codes) == {1}
    assert re.search(match, " ".join(outcome.output.split())), outcome.output


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_losses_stay_what_they_were(train, tmp_path):
    # Weights by a formula and no dropout: releases of torch and transformers draw different random numbers.
    for part in tiny_model_and_processor(temporal_attention_dropout=0.0, temporal_hidden_dropout=0.0):
        part.save_pretrained(tmp_path / "start")
    train(model=tmp_path / "start").check()
    losses = {line["episode"]: line["loss"] for line in read_log(tmp_path / "run") if line["kind"] == "train"}
    assert losses == pytest.approx(GOLDEN_LOSSES, abs=1e-5)


def test_the_log_has_a_line_per_step_and_validation(reference):
    log = read_log(reference)
    assert [(line["episode"], line["kind"]) for line in log] == [
        (4, "train"),
        (8, "train"),
        (8, "validation"),
        (12, "train"),
        (16, "train"),
        (16, "validation"),
    ]
    train = [line for line in log if line["kind"] == "train"]
    # The rate of an update is that of its last episode: 3, 7, 11, 15; the warm-up has four episodes.
    assert [line["learning_rate"] for line in train] == pytest.approx([7.75e-4, 1e-3, 1e-3, 1e-3])
    for line in train:
        assert line["loss"] == pytest.approx(line["few_shot_loss"] + 1.5 * line["video_text_loss"], rel=1e-5)
        assert 0 <= line["accuracy"] <= 100


def test_a_run_leaves_models_results_plot_and_no_rubbish(reference):
    names = {path.name for path in reference.iterdir()}
    assert names == {"best", "last", "state", "training_log.jsonl", "training.png", "results.json", "printed.txt"}
    assert Image.open(reference / "training.png").size[0] > 500
    for folder in ("best", "last"):
        there = {path.name for path in (reference / folder).iterdir()}
        assert {"config.json", "model.safetensors", "README.md", "training_arguments.json"} <= there
        assert {"modeling_clipfsar.py", "pipeline_clipfsar.py", "support_set_clipfsar.py"} <= there
        settings = json.loads((reference / folder / "training_arguments.json").read_text())
        assert settings["learning_rate"] == 1e-3


def test_a_run_prints_what_trains_each_validation_and_each_result(reference):
    printed = (reference / "printed.txt").read_text()
    lines = printed.replace("\r", "\n").splitlines()
    starts = (
        "16 episodes of 4 base classes, 1 process(es) on cpu, no mixed precision, updates of 4 x 1 episode(s) ",
        "Trained parameters: ",
        "episode 8: validation 3-way 1-shot few_shot: ",
        "episode 16: validation ",
        "test 3-way ",
    )
    assert [sum(line.startswith(start) for line in lines) for start in starts] == [1, 1, 1, 1, 6]
    assert sum(line.startswith("  if classes and videos were drawn anew: ") for line in lines) == 6
    assert "Loading weights" not in printed  # transformers' own bars
    assert "Writing model shards" not in printed


def test_saved_models_load_with_their_settings(reference):
    for name in ("best", "last"):
        model = CLIPFSARModel.from_pretrained(reference / name)
        assert model.config.num_frames == 4
        assert CLIPFSARProcessor.from_pretrained(reference / name).num_frames == 4
        saved = weights(reference / name)
        assert all(torch.equal(saved[key], value) for key, value in model.state_dict().items())
    changed = [name for name, value in weights(reference / "last").items() if name.startswith("temporal_transformer")]
    assert changed


def test_the_best_model_is_that_of_the_best_validation(reference):
    validations = [line for line in read_log(reference) if line["kind"] == "validation"]
    best = max(validations, key=lambda line: line["accuracy"])  # the first of equal ones
    progress = json.loads((reference / "state" / "progress.json").read_text())
    assert progress["best"]["episode"] == best["episode"]
    assert progress["best"]["accuracy"] == best["accuracy"]


def test_results_and_model_card_hold_the_tests_numbers(reference):
    results = json.loads((reference / "results.json").read_text())
    assert [(r["n_shot"], r["inference_mode"], r["n_episodes"]) for r in results] == [
        (n_shot, mode, 20) for n_shot in (1, 2) for mode in ("few_shot", "zero_shot", "ensemble")
    ]
    card = ModelCard.load(reference / "best" / "README.md")
    assert card.data.pipeline_tag == "video-classification"
    for r in results:
        line = f"| 3 | {r['n_shot']} | {r['inference_mode']} | {r['accuracy']:.1f}% | ± {r['interval']:.1f} | 20 |"
        assert line in card.text
    assert "CLIP-FSAR on colours" in card.text
    assert "4 base classes, seed 0" in " ".join(card.text.split())
    assert "not measured" in ModelCard.load(reference / "last" / "README.md").text


def test_an_easy_task_is_learned(train, tmp_path):
    train(episodes=64, eval_every=64, log_every=16, test_episodes=0, warmup_episodes=0).check()
    losses = [line for line in read_log(tmp_path / "run") if line["kind"] == "train"]
    assert losses[-1]["few_shot_loss"] < 0.5 * losses[0]["few_shot_loss"]
    assert losses[-1]["video_text_loss"] < losses[0]["video_text_loss"]
    assert losses[-1]["accuracy"] > 80


# --- processes, launchers ---------------------------------------------------------------------------------------------


def test_two_processes_give_the_curve_and_weights_of_one(train, reference, tmp_path):
    outcome = train(num_processes=2).check()
    assert "2 process(es) on cpu" in outcome.output
    assert "updates of 2 x 1 episode(s) per process" in outcome.output
    assert_close_run(tmp_path / "run", reference)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads(
        (reference / "results.json").read_text()
    )


def launch(program: list[str], cwd: Path, num_processes: int) -> subprocess.CompletedProcess:
    """A program under `accelerate launch`, from a folder that has nothing to do with the checkout."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--num_processes", str(num_processes), "--dynamo_backend", "no", "--main_process_port", free_port()]
    if num_processes > 1:
        command.append("--multi_gpu")  # with ACCELERATE_USE_CPU, the way to several processes on a CPU
    environment = child_environment(HF_DATASETS_CACHE=str(cwd / "cache"))
    del environment["PYTHONPATH"]
    result = subprocess.run(
        [*command, *program], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.whole_program
def test_accelerate_launch_starts_two_processes_by_path(video_folder, tiny_clip, reference, tmp_path):
    # The video folder itself this time, with its classes in the same order.
    videos = os.path.relpath(video_folder, tmp_path)
    arguments = training_arguments(videos, tiny_clip, "run", num_workers=2, mixed_precision="no")
    result = launch([str(REPOSITORY / "train" / "train.py"), *arguments], tmp_path, num_processes=2)
    assert "2 process(es) on cpu" in result.stderr
    assert_close_run(tmp_path / "run", reference)


@pytest.mark.whole_program
def test_accelerate_launch_starts_the_module(dataset, tiny_clip, tmp_path):
    program = ["-m", "clipfsar", "train", *training_arguments(dataset, tiny_clip, "run", print_config=True)]
    settings = json.loads(launch(program, tmp_path, num_processes=1).stdout)
    assert (settings["dataset"], settings["episodes_per_update"]) == (str(dataset), 4)


@pytest.mark.whole_program
def test_workers_and_a_folder_of_videos_give_the_run_of_a_data_set(train, video_folder, reference, tmp_path):
    train(dataset=video_folder, num_workers=2).check()
    assert_same_log_and_weights(tmp_path / "run", reference)


def assert_same_log_and_weights(output_dir: Path, reference: Path):
    """Bit for bit, whatever the number of workers and the form of the data set."""
    assert (output_dir / "training_log.jsonl").read_text() == (reference / "training_log.jsonl").read_text()
    ours, theirs = weights(output_dir / "last"), weights(reference / "last")
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


# --- deaths and resuming ----------------------------------------------------------------------------------------------


def die_at(name: str, call: int, after: bool = False):
    """In a child: SIGKILL itself in the `call`-th call of a function of the program, before or after it acts."""
    owner = trainer
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), []

    def counting(*args, **kwargs):
        calls.append(None)
        if len(calls) == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counting)


def die_between_the_renames_of(folder_name: str, call: int):
    """In a child: SIGKILL itself when the old folder is out of the way and the new one is not in its place yet."""
    original, calls = Path.rename, []

    def rename(self, target):
        result = original(self, target)
        if Path(target).name == f"{folder_name}.old":
            calls.append(None)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    Path.rename = rename


@pytest.mark.whole_program
def test_a_run_that_dies_again_and_again_ends_as_if_it_had_not(train, reference, tmp_path):
    run = tmp_path / "run"
    deaths = [
        (die_at, "recorded_values", 3),  # within the first update, no checkpoint yet
        (die_at, "replace_folder", 1),  # the first checkpoint is complete, but still called state.new
        (die_at, "TrainingLog.draw", 1),  # between the models and the state of the first checkpoint
        (die_at, "recorded_values", 11),  # within the accumulation of an update after the first checkpoint
        (die_at, "recorded_values", 5, True),  # at its first step after it (of a resumed run the calls count anew)
        (die_at, "TrainingLog.write", 3),  # a validation is done, but not written down
        (die_between_the_renames_of, "state", 1),  # the last checkpoint is there, the one before called state.old
        (die_at, "Evaluation._answers", 1),  # in the last validation
        (die_at, "Evaluation._answers", 3),  # in the test, of two shots
    ]
    train_log_lines = []
    for number, death in enumerate(deaths):
        outcome = train(prepare=death, resume=number > 0)
        assert outcome.exit_codes == [-signal.SIGKILL], (death, outcome.output)
        log = run / "training_log.jsonl"
        train_log_lines.append(len(log.read_text().splitlines()))
        with log.open("a") as file:  # the line that was being written
            file.write('{"episode": 12, "kind": "train", "lo')
    assert train(resume=True).check()
    assert_same_run(run, reference)
    assert {path.name for path in run.iterdir()} == {path.name for path in reference.iterdir()} - {"printed.txt"}


def test_a_run_killed_from_outside_goes_on_exactly(dataset, tiny_clip, reference, tmp_path):
    arguments = training_arguments(dataset, tiny_clip, tmp_path / "run")
    for seconds in (0.3, 0.7):  # after the first line of the log: about a third and two thirds of the run
        run_in_children(kill_after, arguments, tmp_path / "run", seconds, folder=tmp_path / "output")
        arguments = training_arguments(dataset, tiny_clip, tmp_path / "run", resume=True)
    run_in_children(run_program, arguments, folder=tmp_path / "output").check()
    assert_same_run(tmp_path / "run", reference)


def kill_after(arguments: list[str], output_dir: Path, seconds: float):
    """In a child: SIGKILL itself that long after the log has a line, wherever the program is then."""
    import threading
    import time

    def wait_and_kill():
        log = output_dir / "training_log.jsonl"
        while not (log.is_file() and log.read_text()):
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_and_kill, daemon=True).start()
    main(parse_arguments(arguments))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (1, 2),
        (2, 1),
    ],
)
@pytest.mark.whole_program
def test_a_run_is_resumed_with_other_episodes_per_forward(train, without_dropout, tmp_path, first, then):
    settings = {"model": without_dropout, "eval_every": 4, "episodes": 12, "test_episodes": 0}
    train("whole", **settings).check()
    outcome = train(prepare=(die_at, "TrainingLog.draw", 2), episodes_per_forward=first, **settings)
    assert outcome.exit_codes == [-signal.SIGKILL]
    train(resume=True, episodes_per_forward=then, **settings).check()
    assert_close_run(tmp_path / "run", tmp_path / "whole")


def terminate_after_update(number: int):
    """In a child: SIGTERM to this process and to its loader's workers, in the middle of that update."""
    original, done = trainer.EpisodicTrainer._set_learning_rate, []

    def set_learning_rate(self, value):
        done.append(value)
        if len(done) == number:
            for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
                os.kill(process, signal.SIGTERM)
        original(self, value)

    trainer.EpisodicTrainer._set_learning_rate = set_learning_rate


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.whole_program)])
def test_a_run_that_its_scheduler_stops_saves_at_the_next_update_and_goes_on_exactly(
    train, reference, tmp_path, num_processes
):
    # the reference has no loader workers; they change nothing
    outcome = train(prepare=(terminate_after_update, 3), num_workers=1, num_processes=num_processes)
    assert set(outcome.exit_codes) == {PREEMPTED}
    assert outcome.output.count("SIGTERM: saved a checkpoint after episode 12. --resume continues from it.") == 1
    progress = json.loads((tmp_path / "run" / "state" / "progress.json").read_text())
    assert progress["episodes_done"] == 12
    train(resume=True).check()
    if num_processes == 1:
        assert_same_run(tmp_path / "run", reference)
    else:
        assert_close_run(tmp_path / "run", reference)


def terminate_in_validation():
    """In a child: SIGTERM to this process and to the workers that read validation videos, once."""
    done = []

    def batches(self, *arguments, **options):
        for batch in encode(self, *arguments, **options):
            if not done:
                done.append(True)
                for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
                    os.kill(process, signal.SIGTERM)
            yield batch

    encode = encoding.VideoEncoder.batches
    encoding.VideoEncoder.batches = batches


@pytest.mark.whole_program
def test_a_run_that_its_scheduler_stops_while_it_validates_saves_and_goes_on_exactly(train, reference, tmp_path):
    outcome = train(prepare=(terminate_in_validation,), num_workers=1, eval_batch_size=2)
    assert outcome.exit_codes == [PREEMPTED]
    assert "SIGTERM: saved a checkpoint after episode 12." in outcome.output
    train(resume=True, eval_batch_size=2).check()
    assert_close_run(tmp_path / "run", reference)


def test_a_run_is_continued_and_made_longer_by_its_folder_alone(train, reference, tmp_path):
    train(episodes=8).check()
    command_line = ["--resume", str(tmp_path / "run"), "--episodes", "16"]
    assert parse_arguments(command_line).learning_rate == 1e-3
    outcome = run_in_children(run_program, command_line, folder=tmp_path / "output").check()
    assert "Resuming after episode 8 of 16." in outcome.output
    assert_same_run(tmp_path / "run", reference)


def test_a_run_is_not_made_shorter(reference):
    saved = json.loads((reference / "state" / "progress.json").read_text())["arguments"]
    args = parse_arguments(["--resume", str(reference), "--episodes", "12"])
    with pytest.raises(ValueError, match=r"was started with --episodes 16 \(now 12\): resume with the same settings"):
        args.check_same_run(saved)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "this folder holds no checkpoint"),
        ("{", "progress.json is damaged (Expecting"),
        ('{"arguments": 3}', "progress.json is damaged (it holds no settings)"),
    ],
)
def test_a_folder_without_a_sound_checkpoint_is_not_continued(content, reason, tmp_path, capsys):
    if content is not None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "progress.json").write_text(content)
    with pytest.raises(SystemExit) as end:
        parse_arguments([f"--resume={tmp_path}"])
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--output_dir=other", "--benchmark=hmdb51"])
def test_a_run_named_by_its_folder_takes_no_other_folder_and_no_other_preset(reference, option, capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--resume", str(reference), option])
    assert end.value.code == 2
    assert f"already says the folder and the settings: leave {option.partition('=')[0]} out." in capsys.readouterr().err


def run_in_folder_of_its_own(arguments: list[str]):
    """In a child: each process is a machine with an output folder of its own."""
    place = arguments.index("--output_dir") + 1
    arguments[place] += f"_{os.environ['RANK']}"
    main(parse_arguments(arguments))


@pytest.mark.whole_program
def test_machines_with_folders_of_their_own_are_refused_in_one_sentence(dataset, tiny_clip, tmp_path):
    arguments = training_arguments(dataset, tiny_clip, tmp_path / "run", resume=True)
    outcome = run_in_children(run_in_folder_of_its_own, arguments, folder=tmp_path / "output", num_processes=2)
    assert set(outcome.exit_codes) == {1}
    assert outcome.output.count("is not one folder for all processes: what the main process on") == 2
    assert not any((tmp_path / f"run_{rank}" / "state").exists() for rank in (0, 1))


def load_other_weights():
    """In a child: the second process loads other weights than the first."""
    load = Accelerator.load_state

    def load_state(self, *args, **kwargs):
        load(self, *args, **kwargs)
        if self.process_index == 1:
            with torch.no_grad():
                next(iter(self._models[0].parameters())).add_(1)

    Accelerator.load_state = load_state


@pytest.mark.whole_program
def test_processes_that_loaded_other_weights_are_refused(train):
    train(episodes=8, test_episodes=0).check()
    outcome = train(resume=True, episodes=16, num_processes=2, prepare=(load_other_weights,))
    assert set(outcome.exit_codes) == {1}
    assert outcome.output.count("The processes do not agree on the episodes done and the loaded weights") == 2


def test_resuming_a_finished_run_tests_it_again(train, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    train(resume=True).check()
    assert_same_run(tmp_path / "run", reference)


def test_an_existing_run_is_not_overwritten(train, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    assert_refused(
        train(),
        r"holds a run already: --resume \(resume_from_checkpoint=True\) continues it; a new run needs another",
    )
    assert_same_run(tmp_path / "run", reference)


def test_a_run_is_not_resumed_with_other_settings(train, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    outcome = train(resume=True, learning_rate=1e-4, seed=1, num_workers=1)
    match = r"was started with --seed 0 \(now 1\), --learning_rate 0.001 \(now 0.0001\): resume with the same settings"
    assert_refused(outcome, match)


def test_a_run_is_not_resumed_with_another_shot_of_validation(reference):
    saved = json.loads((reference / "state" / "progress.json").read_text())["arguments"]
    args = parse_arguments(training_arguments("data", saved["model"], reference, n_shot=[2, 1]))
    with pytest.raises(ValueError, match="--n_shot"):
        args.check_same_run(saved)


def test_resuming_nothing_starts_at_the_beginning_with_a_warning(train, reference, tmp_path):
    outcome = train(resume=True).check()
    assert "there is no checkpoint in" in outcome.output
    assert_same_run(tmp_path / "run", reference)


def test_a_death_while_the_tested_model_is_saved_is_survived(train, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    outcome = train(resume=True, prepare=(die_between_the_renames_of, "best", 1))
    assert outcome.exit_codes == [-signal.SIGKILL]
    train(resume=True).check()
    assert_same_run(tmp_path / "run", reference)


class Death(BaseException):
    pass


def replace_and_die(monkeypatch, folder: Path, content: str, steps: int) -> bool:
    """Writes `folder` anew and dies after so many steps on the disk; False when there were not that many."""
    new = folder.with_name("state.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    (new / "progress.json").write_text(content)
    done = []

    def step(original):
        def act(*args, **kwargs):
            if len(done) == steps:
                raise Death
            done.append(None)
            return original(*args, **kwargs)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", step(Path.rename))
        patch.setattr(shutil, "rmtree", step(shutil.rmtree))
        try:
            replace_folder(new, folder)
        except Death:
            return True
    return False


def test_one_death_between_any_two_steps_leaves_a_complete_folder(monkeypatch, tmp_path):
    deaths = 0
    for steps in range(10):
        folder = tmp_path / str(steps) / "state"
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text("old")
        died = replace_and_die(monkeypatch, folder, "new", steps)
        deaths += died
        content = (complete_folder(folder) / "progress.json").read_text()
        assert content in (("old", "new") if died else ("new",))
    assert 3 <= deaths < 10


def test_two_deaths_between_any_two_steps_leave_a_complete_folder(monkeypatch, tmp_path):
    for first in range(5):
        for second in range(5):
            folder = tmp_path / f"{first}-{second}" / "state"
            folder.mkdir(parents=True)
            (folder / "progress.json").write_text("old")
            for content, steps in (("new", first), ("newer", second)):
                replace_and_die(monkeypatch, folder, content, steps)
                assert (complete_folder(folder) / "progress.json").read_text() in ("old", "new", "newer")


# --- what is trained --------------------------------------------------------------------------------------------------


def test_only_temporal_and_batch_norms_are_not_decayed(tiny_clip):
    model = CLIPFSARModel.from_pretrained(tiny_clip, temporal_num_layers=2)
    model.freeze_text_tower()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = optimizer_groups(model, 1e-3)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (1e-3, 0.0)
    assert {names[id(parameter)] for parameter in exempt["params"]} == {
        f"temporal_transformer.layers.{layer}.attention.norm.{kind}" for layer in (0, 1) for kind in ("weight", "bias")
    }
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"clip.vision_model.post_layernorm.weight", "video_text_scale"} <= decayed_names
    assert "clip.vision_model.encoder.layers.0.layer_norm1.bias" in decayed_names
    text_tower = {name for name in names.values() if name.startswith(("clip.text_", "clip.logit_scale"))}
    assert not decayed_names & text_tower
    assert len(decayed_names) + len(exempt["params"]) + len(text_tower) == len(names)


def test_batch_norms_are_not_decayed():
    module = torch.nn.ModuleDict({"bn1": torch.nn.BatchNorm2d(2), "conv": torch.nn.Conv2d(1, 1, 1)})
    decayed, exempt = optimizer_groups(module, 0.1)
    assert [len(group["params"]) for group in (decayed, exempt)] == [2, 2]
    assert exempt["params"][0] is module["bn1"].weight


def test_the_optimizer_is_adam_with_coupled_decay_unless_asked(tiny_clip):
    model = CLIPFSARModel.from_pretrained(tiny_clip, for_training=True)
    for arguments, expected in (([], torch.optim.Adam), (["--optimizer", "adamw"], torch.optim.AdamW)):
        optimizer = make_optimizer(model, parse_arguments(arguments))
        assert type(optimizer) is expected
        assert optimizer.defaults["betas"] == (0.9, 0.999)
        assert optimizer.defaults["fused"]


def test_the_text_tower_is_frozen_and_all_else_is_trained(reference, tiny_clip):
    before, after = weights(tiny_clip), weights(reference / "last")
    for name, value in before.items():
        is_frozen = name.startswith(("text_", "logit_scale"))
        if not name.endswith(("k_proj.bias", "position_ids")):
            assert torch.equal(value, after[f"clip.{name}"]) == is_frozen, name


def count_text_features():
    """In a child: prints how often the text tower ran before the first step, and from there on."""
    trainer_class, encode = trainer.EpisodicTrainer, transformers.CLIPModel.get_text_features
    begin, load_best = trainer_class._say_what_trains, trainer_class._load_best
    calls = []

    def get_text_features(self, *args, **kwargs):
        calls.append(None)
        return encode(self, *args, **kwargs)

    before = []

    def noted_begin(self):
        before.append(len(calls))
        begin(self)

    def counted(self):
        print(f"text tower: {before[0]} times before, {len(calls) - before[0]} times in training")
        load_best(self)

    transformers.CLIPModel.get_text_features = get_text_features
    trainer_class._say_what_trains, trainer_class._load_best = noted_begin, counted


@pytest.fixture(scope="module")
def without_validation(dataset, tmp_path_factory):
    splits = load_from_disk(dataset)
    del splits["validation"]
    splits.save_to_disk(tmp_path_factory.mktemp("without_validation") / "data")
    return tmp_path_factory.getbasetemp() / "without_validation0" / "data"


def test_without_validation_the_last_model_is_the_best_and_the_text_tower_rests(train, without_validation, tmp_path):
    outcome = train(dataset=without_validation, prepare=(count_text_features,)).check()
    assert "There is no split 'validation': the last model is kept as the best one" in outcome.output
    assert "text tower: 1 times before, 0 times in training" in outcome.output
    best, last = (weights(tmp_path / "run" / name) for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in last)
    assert json.loads((tmp_path / "run" / "state" / "progress.json").read_text())["best"] is None
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())) == 6


# --- ways to run the same ---------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_nothing(train, reference, tmp_path):
    train(gradient_checkpointing=True, test_episodes=0).check()
    assert_close_run(tmp_path / "run", reference)


def test_preprocessing_where_the_model_computes_changes_nothing_on_a_cpu(train, reference, tmp_path):
    train(preprocess_on_device=True, episodes_per_forward=1, num_workers=1, test_episodes=0).check()
    reference_log = (reference / "training_log.jsonl").read_text()
    assert (tmp_path / "run" / "training_log.jsonl").read_text() == reference_log


def count_waits(path: Path):
    """In a child: writes down where the training loop reads numbers off tensors, which on a GPU is a wait for it."""
    waits = []

    class ReadsOfNumbers(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                waits.append(str(function))
            return function(*args, **(kwargs or {}))

    def counted(name):
        original = getattr(torch.Tensor, name)

        def method(tensor, *args, **kwargs):
            waits.append(name)
            return original(tensor, *args, **kwargs)

        return method

    train, log_training = trainer.EpisodicTrainer.train, trainer.EpisodicTrainer._log_training

    def noted_log(self, *args):
        waits.append("LOG")
        log_training(self, *args)

    def noted_train(self, **options):
        for name in ("tolist", "cpu", "numpy"):  # not seen by the mode on a CPU
            setattr(torch.Tensor, name, counted(name))
        with ReadsOfNumbers():
            train(self, **options)
        path.write_text(json.dumps(waits))

    trainer.EpisodicTrainer.train, trainer.EpisodicTrainer._log_training = noted_train, noted_log


def test_between_lines_of_the_log_no_step_waits_for_its_device(train, tmp_path):
    counts = []
    for episodes in (8, 16):
        path, name = tmp_path / f"waits_{episodes}.json", f"run_{episodes}"
        settings = {"episodes": episodes, "eval_every": episodes, "log_every": 1000, "test_episodes": 0}
        train(name, (count_waits, path), num_workers=1, max_grad_norm=1.0, **settings).check()
        waits = json.loads(path.read_text())
        assert "tolist" in waits[waits.index("LOG") :], "the log itself does read numbers, and is noticed"
        counts.append(len(waits[: waits.index("LOG")]))
    assert counts[0] == counts[1], "twice the steps, as many waits: those of the start"


def test_episodes_per_forward_change_nothing_but_dropout(train, without_dropout, tmp_path):
    for episodes_per_forward in (1, 2):
        train(
            str(episodes_per_forward),
            model=without_dropout,
            episodes=8,
            episodes_per_forward=episodes_per_forward,
            test_episodes=0,
        ).check()
    assert_close_run(tmp_path / "2", tmp_path / "1")


def test_bfloat16_runs_and_stays_near_float32(train, reference, tmp_path):
    outcome = train(mixed_precision="bf16", test_episodes=0).check()
    assert "bf16 mixed precision" in outcome.output
    for line, expected in zip(read_log(tmp_path / "run"), read_log(reference), strict=True):
        if line["kind"] == "train":
            assert line["loss"] == pytest.approx(expected["loss"], rel=0.05)
            assert line["loss"] != expected["loss"]
    assert {value.dtype for value in weights(tmp_path / "run" / "last").values()} == {torch.float32}


def test_gradients_are_clipped_when_asked(train, tmp_path):
    # Adam is blind to the size of gradients but for its epsilon: clipped to next to nothing, weights hardly move.
    settings = {"episodes": 4, "eval_every": 4, "test_episodes": 0, "weight_decay": 0.0}
    for name, norm in (("free", 0.0), ("clipped", 1e-12)):
        train(name, max_grad_norm=norm, **settings).check()
    scales = {name: weights(tmp_path / name / "last")["video_text_scale"].item() for name in ("free", "clipped")}
    assert abs(scales["free"] - 1) > 1e-4
    assert abs(scales["clipped"] - 1) < 1e-5


def test_tensorboard_gets_the_numbers(train, tmp_path):
    pytest.importorskip("tensorboard")
    train(report_to="tensorboard", episodes=4, eval_every=4, test_episodes=0).check()
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_half_precision_on_a_cpu_is_refused(train):
    assert_refused(train(mixed_precision="fp16"), "ValueError: fp16 needs a GPU: on a CPU it would silently compute in")


def test_episodes_that_processes_cannot_share_are_refused(train):
    match = "--episodes_per_update 4 cannot be shared among 1 process.* running 3 episode.*: make it a multiple of 3"
    assert_refused(train(episodes_per_forward=3), match)
    match = "--episodes_per_update 5 cannot be shared among 2 process.* running 1 episode.*: make it a multiple of 2"
    assert_refused(train(num_processes=2, episodes=15, episodes_per_update=5, eval_every=5), match)


def test_a_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    outcome = train(learning_rate=1e30, warmup_episodes=0)
    assert_refused(outcome, r"FloatingPointError: The loss is (nan|inf) at episode \d+\. ")
    assert not (tmp_path / "run" / "state").exists()
    assert all(line["loss"] == line["loss"] for line in read_log(tmp_path / "run"))


def test_too_few_videos_of_a_split_are_found_out_before_training(train):
    match = r"Split 'test' cannot be used 3-way 8-shot: Class 'gray' has 8 videos, but n_shot \+ n_query = 9 are needed"
    assert_refused(train(n_shot=[1, 8]), match)
    train("untested", n_shot=[1, 8], test_episodes=0, episodes=4, eval_every=4, eval_episodes=2).check()
    match = "Split 'validation' cannot be used 4-way 1-shot: There are 3 classes, but n_way=4 are needed"
    assert_refused(train(n_way=4), match)
    match = (
        r"Split 'train' cannot be used for training with --n_way 3, --train_n_shot 1 and --train_n_query 90: Class '"
    )
    assert_refused(train(train_n_query=90), match)


def test_shared_classes_are_refused_unless_allowed(train, dataset, tmp_path):
    splits = load_from_disk(dataset)
    splits["test"] = splits["train"]
    splits.save_to_disk(tmp_path / "shared")
    match = "The splits 'train' and 'test' share 4 classes: dark_blue, green, red, yellow.*--allow_shared_classes"
    assert_refused(train(dataset=tmp_path / "shared"), match)
    train(dataset=tmp_path / "shared", allow_shared_classes=True, episodes=8).check()
    assert "not a few-shot result" in (tmp_path / "run" / "best" / "README.md").read_text()


def test_a_dataset_without_training_split_is_refused(train, dataset, tmp_path):
    splits = load_from_disk(dataset)
    del splits["train"]
    splits.save_to_disk(tmp_path / "data")
    assert_refused(train(dataset=tmp_path / "data"), "has no split 'train'; it has validation, test")


def run_by_path(folder: Path, *arguments: str):
    """In a child: `clipfsar train ...` in `folder`."""
    os.chdir(folder)
    path = str(REPOSITORY / "train" / "train.py")
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def test_errors_of_the_user_are_one_line_on_the_command_line(tmp_path):
    arguments = "--dataset", "./nothing", "--output_dir", "run"
    outcome = run_in_children(run_by_path, tmp_path, *arguments, folder=tmp_path / "output")
    message = (
        "error: --dataset ./nothing does not exist. Give a folder with videos or the Hub id of a data set "
        "(OWNER/NAME); "
    )
    assert_refused(outcome, re.escape(message))


# --- the Hub ----------------------------------------------------------------------------------------------------------


def catch_upload(hub: Path):
    """In a child: a Hub that is a folder."""

    def create_repo(self, repo_id, private, exist_ok):
        (hub / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        (hub / "private.json").write_text(json.dumps(private))
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, repo_id, branch, exist_ok):
        (hub / "branch.json").write_text(json.dumps(branch))

    def upload_folder(self, repo_id, folder_path, **kwargs):
        shutil.copytree(folder_path, hub / repo_id, dirs_exist_ok=True)

    HfApi.create_repo, HfApi.create_branch, HfApi.upload_folder = create_repo, create_branch, upload_folder


# What somebody without this repository does: the program on the model card.
RUN_CARD = r"""
import pathlib, re, sys

card = (pathlib.Path(sys.argv[1]) / "README.md").read_text()
(program,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
assert 'model="someone/colours"' in program
exec(program.replace("someone/colours", sys.argv[1]))
print(type(classify).__module__, type(classify.model).__module__)
"""


@pytest.mark.whole_program
def test_the_program_on_an_uploaded_models_card_runs_without_this_repository(train, tmp_path):
    hub = tmp_path / "hub"
    train(push_to_hub="someone/colours", hub_revision="v2", episodes=8, prepare=(catch_upload, hub)).check()
    assert json.loads((hub / "private.json").read_text()) is True
    assert json.loads((hub / "branch.json").read_text()) == "v2"
    uploaded = hub / "someone" / "colours"
    assert "few_shot" in ModelCard.load(uploaded / "README.md").text
    assert str(tmp_path) not in "".join(file.read_text() for file in uploaded.glob("*.json"))
    for number, name in enumerate(("a", "b", "c", "query", "one", "two")):
        write_video(tmp_path / f"{name}.mp4", (40 * number, 200 - 40 * number, 90), seed=number)
    environment = child_environment(HF_MODULES_CACHE=str(tmp_path / "modules"))
    del environment["PYTHONPATH"]
    command = [sys.executable, "-I", "-c", RUN_CARD, str(uploaded)]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    one, several, by_names, modules = result.stdout.splitlines()[-4:]
    assert sum(entry["score"] for entry in literal_eval(one)) == pytest.approx(1, abs=1e-5)
    assert [len(answer) for answer in literal_eval(several)] == [2, 2]
    assert {entry["label"] for entry in literal_eval(by_names)} == {"jumping", "running"}
    assert all(module.startswith("transformers_modules.") for module in modules.split())
    assert (tmp_path / "my_classes" / "support_set.json").is_file()


def test_settings_of_a_run_are_kept_with_its_model(reference, dataset, tiny_clip):
    expected = asdict(parse_arguments(training_arguments(dataset, tiny_clip, reference)))
    expected |= {"dataset": dataset.name, "model": tiny_clip.name, "output_dir": reference.name}
    # what the options left to the model
    expected |= {"alignment": "otam", "support_pooling": "before", "prototype_modulation": True}
    expected |= {"temporal_num_layers": 1, "video_text_loss_weight": 1.5}
    expected["base_classes"] = ["dark_blue", "green", "red", "yellow"]
    assert json.loads((reference / "best" / "training_arguments.json").read_text()) == expected


def test_selecting_on_the_test_split_is_shouted_about(train, tmp_path):
    outcome = train(select_on="test", episodes=8, eval_every=4).check()
    log = [line for line in read_log(tmp_path / "run") if line["kind"] == "validation"]
    warning = "WARNING: the model was selected on the TEST split"
    assert outcome.output.count(warning) == 2  # before the training and beside the result
    assert f"**{warning}" in (tmp_path / "run" / "best" / "README.md").read_text()
    assert len(log) == 2


def test_models_are_selected_on_validation_classes_by_default(reference):
    assert "TEST split" not in (reference / "printed.txt").read_text()
    assert "TEST split" not in (reference / "best" / "README.md").read_text()
    assert json.loads((reference / "state" / "progress.json").read_text())["arguments"]["select_on"] == "validation"
