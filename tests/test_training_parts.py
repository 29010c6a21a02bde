"""The parts of a training run, one by one: what reaches the accelerator, the loader, the trackers and the messages."""

import contextlib
import gc
import json
import logging
import os
import shutil
import signal
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from golden.formula_model import tiny_model
from safetensors import safe_open
from tiny_data import random_clip, tiny_model_and_processor
from transformers import CLIPModel, EarlyStoppingCallback

import clipfsar.training.accelerator as accelerators
import clipfsar.training.trainer as training
from clipfsar.checked_files import write_checksums
from clipfsar.data.video_split import VideoSplit
from clipfsar.locks import LOCK_NAME
from clipfsar.processes import ignore_sigterm
from clipfsar.training import checks, program
from clipfsar.training.accelerator import make_accelerator
from clipfsar.training.arguments import EpisodicTrainingArguments, parse_arguments
from clipfsar.training.callbacks import EpisodicProgressCallback
from clipfsar.training.optimization import check_optimizer, check_optimizer_state, optimizer_groups
from clipfsar.training.preemption import PREEMPTED, PreemptionCallback, PreemptionNotice, noting_sigterm
from clipfsar.training.program import make_trainer
from clipfsar.training.resuming import check_same_data
from clipfsar.training.run_folder import TrainingLog, keep_foreign_files, put_in_place
from clipfsar.training.step import StepValues, mix_seeds, recorded_values
from clipfsar.training.trainable import (
    choose_trainable,
    has_adapters,
    merged_state_dict,
    remove_adapters,
    save_trained_model,
    trainable_report,
)
from modeling_clipfsar import CLIPFSARModel

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def labelled(**counts: int) -> Dataset:
    """Paths that are not there, so many of each class, in columns with names of their own."""
    names = sorted(counts)
    labels = [names.index(name) for name, number in counts.items() for _ in range(number)]
    features = Features({"clip": Value("string"), "action": ClassLabel(names=names)})
    return Dataset.from_dict({"clip": [f"{row}.mp4" for row in range(len(labels))], "action": labels}, features)


def split_of(name: str, **counts: int) -> VideoSplit:
    return VideoSplit(labelled(**counts), "clip", "action", name)


COLUMNS = {"video_column": "clip", "label_column": "action"}


@pytest.fixture
def make(tmp_path):
    """A trainer that has not read anything; keywords are arguments."""

    def make_trainer(
        trained_on=True, validates=True, accelerator=None, trainer_class=training.EpisodicTrainer, **overrides
    ):
        model, processor = tiny_model_and_processor()
        settings = {"output_dir": str(tmp_path / "run"), "report_to": "none", "n_way": 2, "test_episodes": 9, **COLUMNS}
        return trainer_class(
            model,
            EpisodicTrainingArguments(**settings | overrides),
            labelled(b=9, c=8, a=7) if trained_on else None,
            labelled(y=9, x=9) if validates else None,
            processor,
            accelerator=accelerator,
        )

    return make_trainer


# --- the accelerator --------------------------------------------------------------------------------------------------


def test_an_accelerator_has_the_settings_of_its_run(tmp_path):
    settings = {"output_dir": str(tmp_path), "mixed_precision": "bf16", "torch_compile": True, "ddp_timeout": 77}
    args = EpisodicTrainingArguments(
        **settings, report_to="tensorboard", episodes=36, episodes_per_update=12, episodes_per_forward=3, eval_every=12
    )
    accelerator = make_accelerator(args)
    assert accelerator.mixed_precision == "bf16"
    assert accelerator.state.dynamo_plugin.backend.value == "INDUCTOR"
    assert accelerator.init_handler.timeout == timedelta(seconds=77)
    assert accelerator.non_blocking
    assert (accelerator.project_dir, accelerator.logging_dir) == (str(tmp_path), str(tmp_path / "tensorboard"))
    assert [str(tracker) for tracker in accelerator.log_with] == ["tensorboard"]
    assert accelerator.gradient_accumulation_steps == 4


@pytest.mark.parametrize(
    ("report_to", "is_installed", "trackers"),
    [("auto", True, ["tensorboard"]), ("auto", False, []), ("none", True, [])],
)
def test_tensorboard_is_the_tracker_where_it_is_installed(monkeypatch, tmp_path, report_to, is_installed, trackers):
    monkeypatch.setattr(accelerators, "is_tensorboard_available", lambda: is_installed)
    accelerator = make_accelerator(EpisodicTrainingArguments(output_dir=str(tmp_path), report_to=report_to))
    assert [str(tracker) for tracker in accelerator.log_with] == trackers
    assert accelerator.state.dynamo_plugin.backend.value == "NO"


@pytest.mark.parametrize(
    ("device", "precision", "per_update", "message"),
    [
        ("cuda", "fp16", 12, None),
        ("cpu", "bf16", 12, None),
        ("cpu", "fp16", 12, "fp16 needs a GPU: on a CPU it would silently compute in float32"),
        (
            "cuda",
            "no",
            10,
            r"--episodes_per_update 10 cannot be shared among 2 process\(es\) running 3 episode\(s\) at once: make it "
            r"a multiple of 6\.",
        ),
    ],
)
def test_what_two_processes_can_share_and_compute_in(monkeypatch, tmp_path, device, precision, per_update, message):
    made = SimpleNamespace(num_processes=2, mixed_precision=precision, device=torch.device(device))
    monkeypatch.setattr(accelerators, "Accelerator", lambda **settings: made)
    settings = {"episodes": per_update, "episodes_per_update": per_update, "eval_every": per_update}
    args = EpisodicTrainingArguments(output_dir=str(tmp_path), **settings, episodes_per_forward=3)
    if message is None:
        assert make_accelerator(args).gradient_accumulation_steps == 2
    else:
        with pytest.raises(ValueError, match=message):
            make_accelerator(args)


class Other(Accelerator):
    """That of a process which is not the first, on another device."""

    is_main_process = is_local_main_process = False
    device = torch.device("meta")


def test_a_trainer_is_on_the_device_and_in_the_process_of_its_accelerator(make):
    trainer = make(accelerator=Other(cpu=True))
    assert {weight.device.type for weight in trainer.model.parameters()} == {"meta"}
    assert (trainer.state.is_world_process_zero, trainer.state.is_local_process_zero) == (False, False)
    assert trainer.state.max_steps == 500


# --- the loader -------------------------------------------------------------------------------------------------------


def test_a_loader_has_the_settings_of_the_run(make):
    trainer = make(episodes=40, num_workers=1, episodes_per_forward=2, preprocess_on_device=True)
    split = trainer.train_split
    trainer.episodes = trainer._training_episodes(split)
    trainer.episodes_done = 36
    trainer.accelerator = SimpleNamespace(device=torch.device("cuda"))
    loader = trainer._make_loader(split)
    assert (loader.num_workers, loader.batch_size, len(loader)) == (1, 2, 2)  # four episodes are left
    assert (len(trainer.episodes), trainer.episodes.class_names) == (40, ["a", "b", "c"])
    assert loader.worker_init_fn is ignore_sigterm
    assert loader.pin_memory
    assert (loader.collate_fn.training, loader.collate_fn.only_read) == (True, True)
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"))
    assert not trainer._make_loader(split).pin_memory


# --- trackers and messages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "name"), [({}, "run"), ({"run_name": "third try"}, "third try")])
def test_trackers_start_once_with_all_settings_that_are_set(make, given, name):
    trainer, started = make(project="few-shot", n_shot=[1, 3], **given), []
    trainer.accelerator = SimpleNamespace(
        log_with=["wandb"], init_trackers=lambda project, **options: started.append((project, options))
    )
    trainer._start_trackers()
    trainer._start_trackers()
    ((project, options),) = started
    assert project == "few-shot"
    assert options["init_kwargs"] == {"wandb": {"name": name}, "trackio": {"name": name}}
    assert (options["config"]["n_shot"], options["config"]["n_way"]) == ("[1, 3]", 2)  # trackers take no lists
    assert "dataset" not in options["config"]


def test_a_run_says_what_trains(make, caplog):
    trainer = make(episodes=20, episodes_per_forward=2)
    trainer.episodes = trainer._training_episodes(trainer.train_split)
    with caplog.at_level(logging.INFO, "clipfsar.training.trainer"):
        trainer._say_what_trains()
    first, second = caplog.messages
    assert first == (
        "20 episodes of 3 base classes, 1 process(es) on cpu, no mixed precision, updates of 2 x 2 episode(s) per "
        "process."
    )
    assert second.startswith("Trained parameters: visual tower ")


def test_a_report_counts_every_part_of_a_model_with_a_head():
    model = tiny_model(alignment="trx", trx_size=8)
    choose_trainable(model, EpisodicTrainingArguments(train_last_layers=0))
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    head = sum(size for name, size in sizes.items() if name.startswith("comparison_head."))
    temporal = sum(size for name, size in sizes.items() if not name.startswith(("comparison_head.", "clip.")))
    vision = sum(size for name, size in sizes.items() if name.startswith("clip.vis"))
    text, last, total = sum(sizes.values()) - head - temporal - vision, 2 * 32 + 32 * 16, sum(sizes.values())
    trained = last + temporal + head
    assert trainable_report(model) == (
        f"Trained parameters: visual tower {last:,} of {vision:,}, text tower 0 of {text:,}, temporal transformer "
        f"{temporal:,} of {temporal:,}, head {head:,} of {head:,}; {trained:,} of {total:,} in all "
        f"({100 * trained / total:.2f}%)."
    )


def test_the_bar_is_shown_by_the_first_process_alone_and_needs_no_loss():
    args, bar = SimpleNamespace(episodes=40, episodes_per_update=4), EpisodicProgressCallback()
    bar.on_train_end(args, None, None)  # before any training
    for is_first in (True, False):
        bar.on_train_begin(args, SimpleNamespace(global_step=0, is_world_process_zero=is_first), None)
        assert bar._bar.disable == (not is_first)
    bar.on_log(args, None, None)
    bar.on_log(args, None, None, logs={"of_a_callback": 1.0})


def test_callbacks_come_and_go(make):
    trainer = make()
    one, other = EarlyStoppingCallback(), EarlyStoppingCallback()
    trainer.add_callback(one)
    trainer.add_callback(other)
    assert trainer.callback_handler.callbacks[-2:] == [one, other]
    trainer.remove_callback(one)
    assert trainer.pop_callback(other) is other
    assert EarlyStoppingCallback not in {type(callback) for callback in trainer.callback_handler.callbacks}


def test_a_test_split_that_selects_is_the_validation_split(make):
    trainer = make(select_on="test")
    assert trainer._splits() == {"train": trainer.train_split, "test": trainer.eval_split}
    assert (trainer.train_split.name, trainer.eval_split.name) == ("train", "test")
    trainer = make()
    trainer.test_split = "the test"
    assert list(trainer._splits()) == ["train", "validation", "test"]


def test_python_closes_a_trainer_that_is_left_open_once_and_for_all(make, monkeypatch):
    registered, calls = [], []
    monkeypatch.setattr(training.atexit, "register", lambda *what: registered.append(what))
    trainer = make()
    trainer.accelerator = SimpleNamespace(
        free_memory=lambda: calls.append("free"), end_training=lambda: calls.append("end")
    )
    trainer.wrapped_model, trainer.wrapped_optimizer = object(), object()
    ((at_exit, *what),) = registered
    at_exit(*what)
    trainer.close()
    assert calls == ["free", "end"]
    assert (trainer.accelerator, trainer.wrapped_model, trainer.wrapped_optimizer) == (None, None, None)
    del trainer
    gc.collect()
    at_exit(*what)  # nothing is left to close


# --- checks of the data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_training", [True, False])
def test_a_look_at_the_first_video_leaves_the_random_numbers_as_they_were(is_training):
    processor = tiny_model_and_processor()[1]
    split = SimpleNamespace(video=lambda row: random_clip(row))
    before = torch.get_rng_state()
    checks.check_first_video(split, processor, training=is_training)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("number", "end"), [(10, "10 is gone. Resume"), (12, "10 is gone; and 2 more differences. ")])
def test_ten_of_many_differences_of_the_data_are_told(number, end):
    split = SimpleNamespace(changes_since=lambda record: [f"{n} is gone" for n in range(1, number + 1)])
    with pytest.raises(ValueError, match=rf"^The run in out was started on other data: 1 is gone; .*; {end}"):
        check_same_data({"data": {"train": {}}}, {"train": split}, EpisodicTrainingArguments(output_dir="out"))


def test_results_are_a_tests_only_for_classes_that_shaped_nothing():
    trained_on, selected_on = split_of("train", running=1, red=1), split_of("validation", eating=1)
    test, of_training, of_validation = (
        split_of("t", jumping=1),
        split_of("t", jumping=1, RED=1),
        split_of("t", eating=1),
    )

    def counts(split, **options) -> bool:
        return checks.is_of_test_classes(split, trained_on, selected_on, EpisodicTrainingArguments(**options))

    assert counts(test)
    assert not counts(of_training)
    assert not counts(of_validation)
    assert counts(of_training, allow_shared_classes=True)
    assert not counts(of_validation, allow_shared_classes=True)
    assert counts(of_validation, select_on="test")
    assert not counts(of_training, select_on="test")
    assert checks.is_of_test_classes(test, None, None, EpisodicTrainingArguments())


def test_a_split_that_is_too_small_to_train_is_named_with_the_options():
    args = EpisodicTrainingArguments(n_way=2, train_n_shot=2, train_n_query=3, seed=7)
    sampler = checks.training_sampler(split_of("train", a=5, b=6), args)
    assert (sampler.n_way, sampler.n_shot, sampler.n_query, sampler.seed) == (2, 2, 3, 7)
    message = (
        "^Split 'train' cannot be used for training with --n_way 2, --train_n_shot 2 and --train_n_query 3: Class 'b' "
        "has 4 videos"
    )
    with pytest.raises(ValueError, match=message):
        checks.training_sampler(split_of("train", a=5, b=4), args)


def test_splits_may_share_classes_only_if_that_is_allowed():
    splits = {"train": split_of("train", red=9, blue=9), "validation": split_of("validation", red=9, pink=9)}
    settings = {"n_way": 2, "label_column": "action"}
    checks.check_classes(splits, EpisodicTrainingArguments(**settings, allow_shared_classes=True), tests=True)
    with pytest.raises(ValueError, match="'train' and 'validation' share 1 class: red"):
        checks.check_classes(splits, EpisodicTrainingArguments(**settings))


def test_all_numbers_of_a_sampler_that_differ_are_named():
    args = EpisodicTrainingArguments(n_way=3, train_n_shot=4, train_n_query=5)
    sampler = SimpleNamespace(n_way=3, n_shot=6, n_query=7)
    message = (
        r"^The sampler has n_shot=6, but the arguments say train_n_shot=4; n_query=7, but the arguments say "
        r"train_n_query=5: give both the same numbers\.$"
    )
    with pytest.raises(ValueError, match=message):
        checks.check_sampler(sampler, None, args)


# --- the optimizer ----------------------------------------------------------------------------------------------------


def test_only_norms_of_the_temporal_transformer_are_not_decayed():
    def linear_and_norm():
        return torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(2), "linear": torch.nn.Linear(2, 2)})

    module = torch.nn.ModuleDict({"temporal_transformer": linear_and_norm(), "comparison_head": linear_and_norm()})
    decayed, exempt = optimizer_groups(module, 0.1)
    assert exempt["params"] == list(module["temporal_transformer"]["norm"].parameters())
    assert len(decayed["params"]) == 6


def adam_with_state():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    weight.sum().backward()
    optimizer.step()
    return optimizer


def test_what_a_scheduler_or_an_earlier_torch_left_in_a_state_is_no_other_kind(tmp_path):
    optimizer = adam_with_state()
    check_optimizer_state(optimizer, tmp_path)  # with FSDP there is no such file
    saved = optimizer.state_dict()
    saved["param_groups"][0]["initial_lr"] = 1e-3  # a scheduler's
    saved["state"][0]["momentum_buffer"] = None  # of SGD without momentum
    del saved["param_groups"][0]["fused"]
    torch.save(saved, tmp_path / "optimizer.bin")
    check_optimizer_state(optimizer, tmp_path)


class Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_state_that_is_a_program_is_not_run(tmp_path):
    torch.save({"param_groups": Payload(tmp_path / "made")}, tmp_path / "optimizer.bin")
    with contextlib.suppress(Exception):
        check_optimizer_state(adam_with_state(), tmp_path)
    assert not (tmp_path / "made").exists()


def test_an_optimizer_that_does_not_hold_what_trains_is_described(caplog):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[2].requires_grad_(False)
    check_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert not caplog.messages
    check_optimizer(torch.optim.SGD([model[0].weight, model[1].bias], lr=0.1), model)
    (message,) = caplog.messages
    assert message.startswith("The optimizer leaves out 2 of 4 weights that train, such as 0.bias: they stay as they ")
    with pytest.raises(ValueError, match=r"^The optimizer holds none of the 4 weights that train: make it after"):
        check_optimizer(torch.optim.SGD(model[2].parameters(), lr=0.1), model)
    with pytest.raises(ValueError, match=r"holds parameters of another model: make it with this model's"):
        check_optimizer(torch.optim.SGD([*model.parameters(), torch.nn.Parameter(torch.ones(1))], lr=0.1), model)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda one, two: torch.optim.Adam([{"params": [one]}, {"params": [two]}]),
            r"has \[2\] weights .*, not \[1, 1\]",
        ),
        (
            lambda one, two: torch.optim.Adam([two, one]),
            r"has a state of shape \(2, 3\) for weight 0, not \(4,\): resume",
        ),
        (
            lambda one, two: torch.optim.SGD([one, two]),
            r"has the settings amsgrad, betas, .*, not dampening, .*: resume",
        ),
    ],
    ids=["groups", "order", "kind"],
)
def test_another_optimizer_than_a_runs_is_described(tmp_path, other, message):
    weights = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.Adam(weights)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    (tmp_path / "run" / "state").mkdir(parents=True)
    torch.save(optimizer.state_dict(), tmp_path / "run" / "state" / "optimizer.bin")
    check_optimizer_state(torch.optim.Adam(weights), tmp_path / "run" / "state")
    with pytest.raises(ValueError, match=rf"^The optimizer is not that of the run in \S*/run, which {message}"):
        check_optimizer_state(other(*weights), tmp_path / "run" / "state")


# --- values for the log -----------------------------------------------------------------------------------------------


def test_means_are_over_all_forwards_since_the_last_line_of_the_log():
    accelerator = Accelerator(cpu=True)
    assert StepValues().rows(accelerator, 0) == []
    values = StepValues([{"loss": 1.0, "accuracy": 0.5}])
    for loss in (2.0, 6.0):
        values.append({"loss": torch.tensor(loss), "accuracy": torch.tensor(1.0)})
    rows = [{"loss": 1.0, "accuracy": 0.5}, {"loss": 2.0, "accuracy": 1.0}, {"loss": 6.0, "accuracy": 1.0}]
    assert values.rows(accelerator, 3) == rows
    assert values.rows(accelerator, 3) == rows  # looking takes nothing away
    assert values.pop_means(accelerator, 3) == {"loss": 3.0, "accuracy": pytest.approx(2.5 / 3)}
    values.append({"loss": torch.tensor(4.0), "accuracy": torch.tensor(0.0)})
    assert values.pop_means(accelerator, 4) == {"loss": 4.0, "accuracy": 0.0}
    values.append({"loss": torch.tensor(float("inf")), "accuracy": torch.tensor(0.0)})
    with pytest.raises(FloatingPointError, match=r"^The loss is inf at episode 7\. The last checkpoint is older"):
        values.rows(accelerator, 7)


def test_losses_that_a_model_has_are_recorded_without_their_gradients():
    logits, labels = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 3.0], [4.0, 5.0]]), torch.tensor([1, 1, 1, 1])
    weight = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    outputs = SimpleNamespace(logits=logits, few_shot_loss=weight * 2, video_text_loss=None)
    values = recorded_values(weight * 3, outputs, labels)
    assert {name: (value.item(), value.dtype) for name, value in values.items()} == {
        "loss": (3.0, torch.float32),
        "few_shot_loss": (2.0, torch.float32),
        "accuracy": (0.75, torch.float32),
    }
    assert not any(value.requires_grad for value in values.values())


def test_seeds_of_dropout_stay_what_they_were():
    assert [mix_seeds(0, 0), mix_seeds(1, 0), mix_seeds(3, 41)] == [1, 2177342782468422678, 9208134618682244833]


# --- SIGTERM ----------------------------------------------------------------------------------------------------------


def test_a_second_sigterm_ends_the_process():
    with noting_sigterm() as notice:
        assert not notice.has_come
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.has_come
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not PreemptionNotice.has_come


@pytest.mark.parametrize(
    ("num_processes", "logs", "leaves"), [(1, False, True), (1, True, True), (2, False, False), (2, True, True)]
)
def test_several_processes_look_for_sigterm_where_they_log(capsys, num_processes, logs, leaves):
    notice, args = PreemptionNotice(), SimpleNamespace(episodes_per_update=4)
    callback = PreemptionCallback(notice, SimpleNamespace(num_processes=num_processes))
    state = SimpleNamespace(global_step=5, is_world_process_zero=True)
    control = SimpleNamespace(should_save=False, should_log=logs)
    assert not callback.on_step_end(args, state, control).should_save
    callback.on_save(args, state, control)  # a checkpoint of its time, which ends nothing
    notice.has_come = True
    assert callback.on_step_end(args, state, control).should_save == leaves
    if leaves:
        for state.is_world_process_zero in (True, False):
            with pytest.raises(SystemExit) as end:
                callback.on_save(args, state, control)
            assert end.value.code == PREEMPTED == 143
    sentence = "SIGTERM: saved a checkpoint after episode 20. --resume continues from it.\n"
    assert capsys.readouterr().out == (sentence if leaves else "")


def test_a_checkpoint_that_is_due_is_saved_without_a_signal():
    callback = PreemptionCallback(PreemptionNotice(), SimpleNamespace(num_processes=1))
    control = SimpleNamespace(should_save=True, should_log=False)
    assert callback.on_step_end(None, None, control).should_save


# --- the folder -------------------------------------------------------------------------------------------------------


def files_below(folder: Path, *names: str, listed: bool = True) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of {folder.name}")
    if listed:
        write_checksums(folder)
    return folder


def test_a_model_in_a_folder_of_the_users_replaces_files_at_any_depth(tmp_path):
    folder = files_below(tmp_path / "folder", "gone.py", "deep/er/old.py", "same.py")
    (folder / "gone.py").unlink()  # somebody was faster
    new = files_below(tmp_path / "new", "same.py", "a/b/c.py", "a/b/d.py")
    put_in_place(new, folder, is_ours=False)
    assert (folder / "same.py").read_text() == "same.py of new"
    assert (folder / "a" / "b" / "c.py").read_text() == "a/b/c.py of new"
    assert (folder / "a" / "b" / "d.py").is_file()
    assert not (folder / "deep" / "er" / "old.py").exists()


def test_nothing_is_kept_of_a_folder_without_checksums(tmp_path):
    folder = files_below(tmp_path / "folder", "weights.bin", listed=False)
    new = files_below(tmp_path / "new", "model.bin")
    keep_foreign_files(folder, new)
    assert sorted(path.name for path in new.iterdir()) == ["SHA256SUMS", "model.bin"]


def test_the_new_one_of_two_files_with_the_same_name_stays_and_a_card_is_not_kept(tmp_path):
    folder = files_below(tmp_path / "folder", "ours.py")
    files_below(folder, "README.md", "mine/a.txt", "mine/b.txt", "both.txt", listed=False)
    new = files_below(tmp_path / "new", "both.txt")
    keep_foreign_files(folder, new)
    texts = {path.relative_to(new).as_posix(): path.read_text() for path in new.rglob("*.txt")}
    assert texts == {
        "both.txt": "both.txt of new",
        "mine/a.txt": "mine/a.txt of folder",
        "mine/b.txt": "mine/b.txt of folder",
    }
    assert not (new / "README.md").exists()


def test_a_line_of_the_log_is_on_the_disk_before_training_goes_on(tmp_path, monkeypatch):
    path, flushed = tmp_path / "log.jsonl", []
    log = TrainingLog(path, 0, is_main_process=True)
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append((os.fstat(descriptor).st_ino, path.read_text())))
    log.write(4, "train", loss=0.5)
    line = '{"episode": 4, "kind": "train", "loss": 0.5}\n'
    assert flushed == [(path.stat().st_ino, line)]


def test_a_log_is_begun_in_a_folder_that_is_not_there_yet(tmp_path):
    path = tmp_path / "runs" / "mine" / "training_log.jsonl"
    log = TrainingLog(path, 0, is_main_process=False)
    log.write(4, "train", loss=0.5)
    assert not path.parent.exists()  # the first process alone writes
    log = TrainingLog(path, 0, is_main_process=True)
    log.write(4, "train", loss=0.5)
    log.write(6, "validation", accuracy=61.5)
    assert path.read_text() == (
        '{"episode": 4, "kind": "train", "loss": 0.5}\n{"episode": 6, "kind": "validation", "accuracy": 61.5}\n'
    )
    assert log.history(2, 24) == [
        {"loss": 0.5, "episode": 4, "step": 2, "epoch": 4 / 24},
        {"eval_accuracy": 61.5, "episode": 6, "step": 3, "epoch": 0.25},
    ]


# --- what is saved ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "expected"), [(None, 6), (5.5, 5.5)])
def test_an_adapter_holds_its_own_weights_alone_and_the_name_of_its_start(tmp_path, alpha, expected):
    pytest.importorskip("peft")
    start, (model, processor) = tmp_path / "somewhere" / "start", tiny_model_and_processor()
    start.mkdir(parents=True)
    args = EpisodicTrainingArguments(model=str(start), lora_rank=3, lora_alpha=alpha, lora_targets=["fc1", "out_proj"])
    choose_trainable(model, args)
    save_trained_model(model, processor, tmp_path / "saved", keep_adapter=True)
    settings = json.loads((tmp_path / "saved" / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (3, expected, "start")
    with safe_open(tmp_path / "saved" / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {name.rpartition(".lora_")[2] for name in file.keys()} == {"A.weight", "B.weight"}  # noqa: SIM118
        assert {name.split(".")[-3] for name in file.keys()} == {"fc1", "out_proj"}  # noqa: SIM118


def test_adapters_that_are_removed_leave_the_model_as_it_was_and_ready_for_others(recwarn):
    pytest.importorskip("peft")
    model = tiny_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for rank in (2, 3):
        choose_trainable(model, EpisodicTrainingArguments(lora_rank=rank, lora_targets=["fc1"]))
        assert has_adapters(model)
        merged = merged_state_dict(model)
        assert not any(weight.requires_grad for weight in merged.values())
        assert all(torch.equal(merged[name], weight) for name, weight in before.items())  # they begin as nothing
        remove_adapters(model)
        assert not has_adapters(model)
        assert model.state_dict().keys() == before.keys() == merged.keys()
    assert not [str(warning.message) for warning in recwarn if "adapter" in str(warning.message)]


def test_a_model_without_training_data_is_saved_without_base_classes(make, tmp_path):
    trainer = make(trained_on=False, features_dir=str(tmp_path / "x" / "features"))
    trainer.save_model(tmp_path / "a" / "b" / "model")
    settings = json.loads((tmp_path / "a" / "b" / "model" / "training_arguments.json").read_text())
    assert (settings["base_classes"], settings["output_dir"], settings["features_dir"]) == ([], "run", "features")
    assert "0 base classes" in " ".join((tmp_path / "a" / "b" / "model" / "README.md").read_text().split())


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture
def options(tiny_clip, tmp_path):
    """A command line whose videos are never read; keywords are options."""
    splits = {"train": labelled(b=9, c=8, a=7), "validation": labelled(y=9, x=9), "test": labelled(v=9, u=5)}
    DatasetDict(splits).save_to_disk(tmp_path / "data")

    def make_options(**overrides) -> EpisodicTrainingArguments:
        settings = {"dataset": tmp_path / "data", "model": tiny_clip, "output_dir": tmp_path / "run", "n_way": 2}
        settings |= {"n_shot": 1, "report_to": "none", "num_frames": 4, **COLUMNS, **overrides}
        return parse_arguments([part for name, value in settings.items() for part in (f"--{name}", str(value))])

    return make_options


def test_new_layers_of_a_plain_clip_are_those_of_the_seed(options, caplog):
    layers = []
    for outer, seed in ((1, 5), (2, 5), (3, 6)):
        torch.manual_seed(outer)
        trainer, _ = make_trainer(options(seed=seed))
        layers.append(trainer.model.temporal_transformer.state_dict())
    assert caplog.text.count("is a plain CLIP: the layers of CLIP-FSAR are new and need training.") == 3
    first, second, third = layers
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_new_layers_of_the_program_are_those_of_from_pretrained(options, tiny_clip):
    layers = {"alignment": "trx", "temporal_num_layers": 2}
    torch.manual_seed(5)
    expected = CLIPFSARModel.from_pretrained(tiny_clip, for_training=True, num_frames=4, **layers).state_dict()
    trainer, _ = make_trainer(options(seed=5, **layers))
    found = trainer.model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_a_model_in_half_precision_trains_in_float32(options, tiny_clip, tmp_path):
    half = shutil.copytree(tiny_clip, tmp_path / "half")
    CLIPModel.from_pretrained(tiny_clip, dtype=torch.bfloat16).save_pretrained(half)
    trainer, test = make_trainer(options(model=half, test_episodes=0))
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    assert (test, trainer.test_split) == (None, None)


def test_the_program_reads_the_class_texts(options, tmp_path):
    (tmp_path / "texts.json").write_text('{"a": ["one", "two"]}')
    trainer, test = make_trainer(options(class_texts=tmp_path / "texts.json"))
    assert trainer.processing_class.class_texts == {"a": ["one", "two"]}
    assert trainer.test_split is test
    assert [split.name for split in (trainer.train_split, trainer.eval_split, test)] == ["train", "validation", "test"]
    assert [split.class_names for split in (trainer.eval_split, test)] == [["x", "y"], ["u", "v"]]


def test_the_program_and_its_trainer_share_one_accelerator(options, monkeypatch):
    monkeypatch.setattr(training, "make_accelerator", None)
    trainer, _ = make_trainer(options())
    assert trainer.accelerator.num_processes == 1


def test_a_missing_file_of_class_texts_is_named(options, tmp_path):
    with pytest.raises(FileNotFoundError, match="--class_texts owner/texts does not exist"):
        make_trainer(options(class_texts="owner/texts"))


def test_data_without_a_training_split_are_refused(options, tmp_path):
    args = options()
    DatasetDict({"validation": labelled(y=9, x=9), "test": labelled(v=9, u=5)}).save_to_disk(tmp_path / "other")
    args.dataset = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other has no split 'train'; it has validation, test\.$"):
        make_trainer(args)


def test_a_test_split_that_is_too_small_is_refused_before_a_model_is_loaded(options, monkeypatch):
    monkeypatch.setattr(program, "CLIPFSARModel", None)
    with pytest.raises(ValueError, match="'test' cannot be used 2-way 5-shot: Class 'u' has 5 videos"):
        make_trainer(options(n_shot=5))


def test_a_run_that_is_there_already_is_refused_before_the_data_are_read(options, tmp_path):
    args = options()
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "run" / "state").mkdir(parents=True)
    (tmp_path / "run" / "state" / "progress.json").write_text("{}")
    with pytest.raises(ValueError, match="run holds a run already"):
        make_trainer(args)


class Noting(training.EpisodicTrainer):
    """Trains nothing and notes what it is told to do, and whether its folder was locked then."""

    def note(self, *what):
        self.noted = [*getattr(self, "noted", ()), (*what, (self.output_dir / LOCK_NAME).exists())]

    def train(self, resume_from_checkpoint=None):
        self.note("train", resume_from_checkpoint)

    def push_to_hub(self):
        self.note("upload")


@pytest.mark.parametrize("resumes", [False, True])
def test_a_run_trains_uploads_without_a_test_and_closes(make, monkeypatch, resumes):
    trainer = make(trainer_class=Noting, resume=resumes, push_to_hub="me/model" if resumes else None)
    monkeypatch.setattr(program, "make_trainer", lambda args: (trainer, None))
    assert list(program.run(trainer.args)) == []
    assert trainer.noted == [("train", resumes, True), ("upload", True)][: 1 + resumes]
    assert trainer.accelerator is None
    assert not (trainer.output_dir / "results.json").exists()
