"""A run's folder: damage is found on resume, other data are refused, one process writes at a time."""

import contextlib
import inspect
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError
from safetensors.torch import save_file
from tiny_data import (
    SETTINGS,
    model_of_tiny_clip,
    save_tiny_clip,
    tiny_model_and_processor,
    training_arguments,
    video_splits,
    write_video_folder,
)
from transformers import TrainerCallback

from clipfsar.checked_files import CHECKSUMS, DamagedFileError
from clipfsar.data.video_split import VideoSplit
from clipfsar.inference.load_model import load_model
from clipfsar.locks import LOCK_NAME, FolderInUseError
from clipfsar.training import checks, program
from clipfsar.training.arguments import EpisodicTrainingArguments, parse_arguments
from clipfsar.training.resuming import check_same_data, check_same_settings, settings_of
from clipfsar.training.run_folder import TrainingLog, find_saved_state, told_how_to_go_on
from clipfsar.training.trainer import EpisodicTrainer
from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SHORT = {key: value for key, value in SETTINGS.items() if key != "num_frames"}
SHORT |= {"episodes": 8, "eval_every": 4, "eval_episodes": 4, "warmup_episodes": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_video_folder(tmp_path_factory.mktemp("videos"), videos_per_class=4)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def trainer_of(splits, tiny_clip, output_dir, callbacks=(), **overrides) -> EpisodicTrainer:
    return EpisodicTrainer(
        model=model_of_tiny_clip(tiny_clip),
        args=EpisodicTrainingArguments(output_dir=str(output_dir), **SHORT | overrides),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4),
        callbacks=callbacks,
    )


class StopHalfWay(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 1


@pytest.fixture(scope="module")
def stopped(folder, tiny_clip, tmp_path_factory):
    """Folder of a run that was stopped half way."""
    output_dir = tmp_path_factory.mktemp("stopped") / "run"
    trainer_of(video_splits(folder), tiny_clip, output_dir, [StopHalfWay()]).train()
    return output_dir


@pytest.fixture
def run(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "run"))


# --- damage -----------------------------------------------------------------------------------------------------------


def test_any_flipped_bit_of_the_checkpoint_or_the_best_model_is_found_on_resume(folder, tiny_clip, run):
    trainer, rng = trainer_of(video_splits(folder), tiny_clip, run), np.random.default_rng(0)
    files = [path for name in ("state", "best") for path in sorted((run / name).rglob("*")) if path.is_file()]
    assert {"progress.json", "optimizer.bin", "model.safetensors", "config.json", CHECKSUMS} <= {f.name for f in files}
    for path in files:
        if path.name == "README.md":  # people and uploads write into it
            continue
        whole = bytearray(path.read_bytes())
        for position in {0, len(whole) - 1, *rng.integers(len(whole), size=2).tolist()}:
            flipped = bytearray(whole)
            flipped[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(DamagedFileError, match=rf"{path.name}|{CHECKSUMS}") as error:
                trainer._checked_state(True)
            assert f"delete {run / path.relative_to(run).parts[0]}" in str(error.value)
        path.write_bytes(whole)
    assert trainer._checked_state(True) == (run / "state", [])


def test_damage_stops_a_resumed_run_before_it_trains(folder, tiny_clip, run):
    path = run / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    with pytest.raises(DamagedFileError, match=r"best/model\.safetensors has changed since it was written"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.episodes_done == 0
    assert not (run / LOCK_NAME).exists()


def test_the_remedy_helps_a_deleted_best_model_is_chosen_anew(folder, tiny_clip, run):
    shutil.rmtree(run / "best")
    trainer = trainer_of(video_splits(folder), tiny_clip, run, select_on="validation")
    _, notes = trainer._checked_state(True)
    assert notes == [f"{run / 'best'} is gone: the best model is selected anew, starting with the checkpoint's model."]
    trainer.train(resume_from_checkpoint=True)
    assert trainer.best["episode"] == 8
    assert (run / "best" / "model.safetensors").is_file()


def test_a_finished_run_without_its_best_model_has_the_last_one(folder, tiny_clip, run):
    trainer_of(video_splits(folder), tiny_clip, run).train(resume_from_checkpoint=True)
    shutil.rmtree(run / "best")
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    trainer.train(resume_from_checkpoint=True)
    best, last = ((run / name / "model.safetensors").read_bytes() for name in ("best", "last"))
    assert best == last


def test_a_run_of_an_earlier_version_goes_on_with_one_notice_and_is_recorded_then(folder, tiny_clip, run):
    for name in ("state", "best", "last"):
        (run / name / CHECKSUMS).unlink()
    path = run / "state" / "progress.json"
    progress = json.loads(path.read_text())
    assert set(progress.pop("data")) == {"train", "validation"}
    path.write_text(json.dumps(progress))
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    _, notes = trainer._checked_state(True)
    assert len(notes) == 2
    assert f"{run / 'state'} and {run / 'best'}: an earlier version wrote no checksums" in notes[0]
    assert "did not record its data" in notes[1]
    trainer.train(resume_from_checkpoint=True)
    assert trainer_of(video_splits(folder), tiny_clip, run)._checked_state(True)[1] == []
    for name in ("state", "best", "last"):
        (run / name / CHECKSUMS).unlink()
    trainer._checked_state(True)
    (run / "best" / "README.md").write_text("A card of one's own.")
    assert trainer._checked_state(True)[1] == []


@pytest.mark.parametrize(
    ("name", "file"), [("state", "optimizer.bin"), ("state", "progress.json"), ("best", "model.safetensors")]
)
def test_a_list_of_checksums_that_has_lost_a_line_is_found_on_resume(folder, tiny_clip, run, name, file):
    path = run / name / CHECKSUMS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.endswith(f"  {file}\n")))
    with pytest.raises(
        DamagedFileError, match=f"{CHECKSUMS} has no checksum of {file}: put back a copy .* {run / name}"
    ):
        trainer_of(video_splits(folder), tiny_clip, run)._checked_state(True)


def test_files_that_people_put_beside_the_best_model_are_no_damage(folder, tiny_clip, run):
    (run / "best" / "README.md").write_text("A card of one's own.")
    (run / "best" / "support_set.safetensors").write_bytes(b"classes")
    (run / "state" / ".nfs0001").write_bytes(b"of a network disk")
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    assert trainer._checked_state(True) == (run / "state", [])


def test_a_best_folder_without_weights_is_found_on_resume(folder, tiny_clip, run):
    shutil.rmtree(run / "best")
    (run / "best").mkdir()
    with pytest.raises(DamagedFileError, match=r"best holds no model\*\.safetensors: put back .*, or delete .*best: "):
        trainer_of(video_splits(folder), tiny_clip, run)._checked_state(True)


def test_a_new_run_has_nothing_to_say_about_its_folder_and_a_resumed_one_has(folder, tiny_clip, run, tmp_path):
    trainer = trainer_of(video_splits(folder), tiny_clip, tmp_path / "new")
    assert trainer._checked_state(False) == (None, [])
    (note,) = trainer._checked_state(True)[1]
    assert note == f"--resume: there is no checkpoint in {tmp_path / 'new'} yet; starting from the beginning."
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    for resume in (True, run, str(run / "state")):
        assert trainer._find_saved_state(resume) == run / "state"
    (run / "state").rename(run / "state.old")  # the process died between two renames
    assert trainer._find_saved_state(True) == run / "state"


# --- other data -------------------------------------------------------------------------------------------------------


def exchanged_classes(splits, folder):
    names = {"red": "green", "green": "red"}
    labels = [splits["train"].features["label"].int2str(label) for label in splits["train"]["label"]]
    columns = {"video": splits["train"]["video"][:], "label": [names.get(label, label) for label in labels]}
    return splits | {"train": Dataset.from_dict(columns)}


def fewer_videos(splits, folder):
    return splits | {"validation": splits["validation"].select(range(1, len(splits["validation"])))}


def another_order(splits, folder):
    return splits | {"train": splits["train"].select(range(len(splits["train"]) - 1, -1, -1))}


def replaced_file(splits, folder):
    path = Path(splits["train"][3]["video"])
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    return splits


def other_data_under_the_same_path(splits, folder):
    one, other = (folder / "validation" / name for name in ("cyan", "white"))
    shutil.move(one, folder / "aside")
    shutil.move(other, one)
    shutil.move(folder / "aside", other)
    return video_splits(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (exchanged_classes, "train: class 'green' has other videos.*train: class 'red' has other videos"),
        (fewer_videos, "validation: class 'cyan' had 4 videos and has 3"),
        (another_order, "train: class .* in another order"),
        (replaced_file, "train: class 'dark_blue' has other videos"),
        (other_data_under_the_same_path, "validation: class 'cyan' has other videos.*'white' has other videos"),
    ],
)
def test_a_run_is_not_resumed_on_other_data(change, words, folder, tiny_clip, run, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "videos"))
    same = video_splits(copied)  # moved, but the same
    assert trainer_of(same, tiny_clip, run)._checked_state(True) == (run / "state", [])
    trainer = trainer_of(change(dict(same), copied), tiny_clip, run)
    with pytest.raises(ValueError, match=rf"was started on other data: .*{words}.*Resume it with the data it was"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.episodes_done == 0


def test_the_test_split_of_the_program_is_recorded_and_compared_too(folder, tiny_clip, run, tmp_path):
    splits = video_splits(folder)
    trainer = trainer_of(splits, tiny_clip, run)
    trainer.test_split = VideoSplit(splits["test"], name="test")
    trainer.train(resume_from_checkpoint=True)
    assert set(json.loads((run / "state" / "progress.json").read_text())["data"]) == {"train", "validation", "test"}
    trainer = trainer_of(splits, tiny_clip, run)
    trainer.test_split = VideoSplit(splits["test"].select(range(8)), name="test")
    with pytest.raises(ValueError, match="test: class 'violet' is gone"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer_of(splits, tiny_clip, run)._checked_state(True)[1] == []  # without a test nothing is compared


def test_a_run_is_not_resumed_without_the_classes_that_selected_its_best_model(folder, tiny_clip, run):
    before = (run / "best" / "model.safetensors").read_bytes()
    trainer = trainer_of({**video_splits(folder), "validation": None}, tiny_clip, run)
    with pytest.raises(ValueError, match=r"was started on other data: the split 'validation' is gone\. Resume it with"):
        trainer.train(resume_from_checkpoint=True)
    assert (run / "best" / "model.safetensors").read_bytes() == before
    assert json.loads((run / "state" / "progress.json").read_text())["episodes_done"] == 4


RECORDED_BEST = {"accuracy": 50.0, "episode": 4}


@pytest.mark.parametrize(
    ("progress", "names", "differences"),
    [
        ({"data": {"train": {}, "validation": {}}}, ["train"], "the split 'validation' is gone"),
        ({"data": {"train": {}}}, ["train", "validation"], "the split 'validation' is new"),
        ({"data": {"train": {}, "dev": {}}}, ["train", "validation"], "the split 'validation' is new"),
        ({"data": {"validation": {}}}, ["train"], "the split 'validation' is gone; the split 'train' is new"),
        ({"data": {"train": {}, "validation": {}, "test": {}}}, ["train", "validation"], None),
        ({"data": {"train": {}, "validation": {}}}, ["train", "validation", "test"], None),
        # Earlier versions recorded no data, but the best accuracy on the validation classes.
        ({"best": RECORDED_BEST}, ["train"], "the split 'validation' is gone"),
        ({"best": RECORDED_BEST}, ["train", "validation", "test"], None),
        ({"best": None}, ["train"], None),
        ({"best": None}, ["train", "validation"], None),
    ],
)
def test_splits_that_shape_a_run_stay_and_a_test_split_may_come_and_go(progress, names, differences):
    splits = {name: SimpleNamespace(changes_since=lambda record: []) for name in names}
    args = EpisodicTrainingArguments(output_dir="out")
    if differences is None:
        assert len(check_same_data(progress, splits, args)) == ("data" not in progress)
        return
    with pytest.raises(ValueError, match=rf"^The run in out was started on other data: {differences}\. Resume it with"):
        check_same_data(progress, splits, args)


def test_the_test_split_stays_where_it_selects():
    splits = {"train": SimpleNamespace(changes_since=lambda record: [])}
    with pytest.raises(ValueError, match="the split 'test' is gone"):
        check_same_data({"data": {"train": {}, "test": {}}}, splits, EpisodicTrainingArguments(select_on="test"))


# --- another model or processor ---------------------------------------------------------------------------------------


def other_pictures(model, processor):
    processor.image_processor.image_std = [5.0, 5.0, 5.0]


def other_texts(model, processor):
    processor.class_texts = {"red": "a crimson thing", "*": ["{}", "some {}"]}


def another_length_of_prompts(model, processor):
    processor.prompt_length = 20


def a_harder_alignment(model, processor):
    model.config.otam_smoothing = 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_pictures, r"processor\.image_processor\['image_std'\] \[0\.26.*\] \(now \[5\.0, 5\.0, 5\.0\]\): resume"),
        (
            other_texts,
            r"processor\.class_texts\['\*'\] None \(now \['{}', 'some {}'\]\), "
            r"processor\.class_texts\['red'\] None \(now 'a crimson thing'\): resume with the same settings",
        ),
        (another_length_of_prompts, r"processor\.prompt_length None \(now 20\): resume with the same settings"),
        (a_harder_alignment, r"model\.config\.otam_smoothing 0\.5 \(now 0\.1\): resume with the same settings"),
    ],
)
def test_a_run_is_not_resumed_with_another_model_or_processor(change, words, folder, tiny_clip, run):
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    change(trainer.model, trainer.processing_class)
    with pytest.raises(ValueError, match=rf"^The run in \S*run was started with {words}"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.episodes_done == 0


def test_a_run_goes_on_with_another_reader_and_another_way_to_test(folder, tiny_clip, run):
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    trainer.processing_class.num_threads, trainer.processing_class.seconds_per_video = 2, 5.0
    trainer.model.config.inference_mode, trainer.model.config.ensemble_text_weight = "ensemble", 0.5
    assert trainer._checked_state(True) == (run / "state", [])


def test_a_run_goes_on_with_the_model_and_the_processor_that_it_saved(folder, tiny_clip, run):
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    model = CLIPFSARModel.from_pretrained(run / "last")
    processor = CLIPFSARProcessor.from_pretrained(run / "last")
    assert settings_of(model, processor) == settings_of(trainer.model, trainer.processing_class)


def test_a_run_that_recorded_no_settings_of_its_objects_goes_on_and_records_them(folder, tiny_clip, run):
    path = run / "state" / "progress.json"
    progress = json.loads(path.read_text())
    settings = progress.pop("settings")
    path.write_text(json.dumps(progress))
    (run / "state" / CHECKSUMS).unlink()
    trainer_of(video_splits(folder), tiny_clip, run).train(resume_from_checkpoint=True)
    assert json.loads(path.read_text())["settings"] == settings


def test_every_setting_of_model_and_processor_is_recorded_or_has_no_effect():
    model, processor = tiny_model_and_processor()
    names = {name.rpartition(".")[2] for name in settings_of(model, processor)}
    settings = inspect.signature(CLIPFSARConfig.__init__).parameters.keys()
    settings |= inspect.signature(CLIPFSARProcessor.__init__).parameters.keys()
    assert settings - names == {
        *("self", "kwargs", "clip_config", "tokenizer", "added_by_training", "inference_mode"),
        *("decoder", "num_threads", "seconds_per_video"),
    }


def test_texts_that_one_has_and_then_changes_are_named_and_ten_differences_are_told():
    saved = {"processor.class_texts": {"red": "a red thing", "blue": "b"}, "of_a_later_version": 1}
    now = {"processor.class_texts": {"red": "zzz"}, "of_this_version": 2}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_same_settings(saved, now, "out")
    assert str(error.value) == (
        "The run in out was started with processor.class_texts['blue'] 'b' (now None), processor.class_texts['red'] "
        "'a red thing' (now 'zzz'): resume with the same settings or use another --output_dir."
    )
    many = {str(number): "a" for number in range(11)}
    with pytest.raises(ValueError, match=r"\['8'\] 'a' \(now None\), and 1 more difference: resume"):
        check_same_settings({"processor.class_texts": many}, {"processor.class_texts": {}}, "out")
    check_same_settings({"of_a_later_version": 1}, now, "out")


def test_the_program_refuses_a_run_whose_file_of_class_texts_has_changed(folder, tiny_clip, tmp_path):
    video_splits(folder).save_to_disk(tmp_path / "data")
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"red": "a red thing"}))
    options = SHORT | {"episodes": 4, "class_texts": texts}
    program.main(parse_arguments(training_arguments(tmp_path / "data", tiny_clip, tmp_path / "run", **options)))
    texts.write_text(json.dumps({"red": "a crimson thing"}))
    args = parse_arguments(["--resume", str(tmp_path / "run"), "--episodes", "8"])
    with pytest.raises(ValueError, match=r"class_texts\['red'\] 'a red thing' \(now 'a crimson thing'\): resume"):
        program.main(args)


# --- a full disk ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(num_bytes: int):
    """Files take no more than so many bytes, and the errors are those of a full disk but for their numbers."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


REMEDY = (
    r"\. Make sure that its disk has room and takes files; --resume \(resume_from_checkpoint=True\) then continues "
    r"from the last checkpoint\.$"
)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: torch.save(torch.ones(100_000), path), "it was cut off"),
        (lambda path: save_file({"a": torch.ones(100_000)}, path), "Error while serializing: .*too large.*"),
        (lambda path: path.write_bytes(bytes(100_000)), "File too large"),
        (lambda path: (path / "file").touch(), "No such file or directory"),
    ],
)
def test_whatever_cannot_write_says_where_and_how_to_go_on(tmp_path, write, reason):
    path = tmp_path / "file"
    with (
        pytest.raises(OSError, match=rf"^{path} could not be written \({reason}\){REMEDY}"),
        full_disk(20_000),
        told_how_to_go_on(path),
    ):
        write(path)


def test_other_errors_of_torch_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match=r"^Timed out"), told_how_to_go_on(tmp_path):
        raise RuntimeError("Timed out waiting for the other processes.")


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    log = TrainingLog(tmp_path / "training_log.jsonl", 0, is_main_process=True)
    path = re.escape(str(tmp_path / "training_log.jsonl"))
    with pytest.raises(OSError, match=rf"^{path} could not be written \(.*\){REMEDY}"), full_disk(10):
        log.write(4, "train", loss=0.5)


def only_small_files(accelerator):
    save_state = accelerator.save_state

    def save(folder):
        with full_disk(1000):
            save_state(folder)

    accelerator.save_state = save


def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on(folder, tiny_clip, run):
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    only_small_files(trainer.accelerator)
    path = re.escape(str(run / "state.new"))
    with pytest.raises(OSError, match=rf"^{path} could not be written \(.*\){REMEDY}"):
        trainer.train(resume_from_checkpoint=True)
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.episodes_done == 8
    assert not (run / "state.new").exists()


def test_a_model_of_a_run_that_cannot_be_written_is_named_and_that_of_another_folder_has_its_own_error(
    folder, tiny_clip, run, tmp_path
):
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    path = re.escape(str(run / "last"))
    with pytest.raises(OSError, match=rf"^{path} could not be written \(.*\){REMEDY}"), full_disk(10_000):
        trainer._save_run_model("last")
    with pytest.raises((OSError, SafetensorError)) as error, full_disk(10_000):
        trainer.save_model(tmp_path / "elsewhere")
    assert "--resume" not in str(error.value)


# --- one writer -------------------------------------------------------------------------------------------------------


class Second(TrainerCallback):
    """Another run begins in the same folder while the first one trains."""

    def __init__(self, second: EpisodicTrainer):
        self.second, self.error = second, None

    def on_step_end(self, args, state, control, **kwargs):
        try:
            self.second.train(resume_from_checkpoint=True)
        except ValueError as error:
            self.error = error


def test_a_second_run_in_one_folder_is_refused_and_the_first_goes_on(folder, tiny_clip, tmp_path):
    splits = video_splits(folder)
    second = Second(trainer_of(splits, tiny_clip, tmp_path / "run"))
    trainer = trainer_of(splits, tiny_clip, tmp_path / "run", [second])
    trainer.train()
    assert isinstance(second.error, FolderInUseError)
    assert str(second.error).startswith(f"{tmp_path / 'run'} is in use: process ")
    assert trainer.episodes_done == 8
    assert second.second.episodes_done == 0
    assert not (tmp_path / "run" / LOCK_NAME).exists()
    with trainer.writing():
        with pytest.raises(FolderInUseError, match="name another --output_dir"):
            second.second.save_model()
        second.second.save_model(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "model.safetensors").is_file()


def test_the_program_is_refused_before_it_loads_a_model(folder, tiny_clip, run, monkeypatch):
    monkeypatch.setattr(program, "load_video_splits", None)
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    args = parse_arguments(training_arguments(folder, tiny_clip, run))
    with trainer.writing(), pytest.raises(FolderInUseError, match="trains there since"):
        program.make_trainer(args)


def test_the_program_looks_at_classes_and_first_videos_once(folder, tiny_clip, tmp_path, monkeypatch):
    calls = {"check_disjoint_classes": 0, "check_protocol": 0, "check_first_video": 0}

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    import clipfsar.training.trainer as trainer_module

    for name in calls:
        function = counted(name, getattr(checks, name))
        for module in (checks, trainer_module):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, function)
    DatasetDict(video_splits(folder)).save_to_disk(tmp_path / "data")
    arguments = training_arguments(tmp_path / "data", tiny_clip, tmp_path / "run", **SHORT | {"episodes": 4})
    trainer, _ = program.make_trainer(parse_arguments(arguments))
    trainer._check_data()
    assert calls == {"check_disjoint_classes": 1, "check_protocol": 2, "check_first_video": 3}


# --- what others put there --------------------------------------------------------------------------------------------


def test_saving_a_model_deletes_nothing_of_anybody_else(folder, tiny_clip, run, tmp_path):
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    trainer.model.load_state_dict(CLIPFSARModel.from_pretrained(run / "best").state_dict())
    home = tmp_path / "home"
    (home / "letters").mkdir(parents=True)
    (home / "letters" / "thesis.tex").write_text("years of work")
    (run / "best" / "support_set.json").write_text("{}")
    (run / "best" / "notes" / "2024").mkdir(parents=True)
    (run / "best" / "notes" / "2024" / "why.txt").write_text("because")
    for name in ("home.old", "home.new"):
        (tmp_path / name).mkdir()
    for _ in range(2):
        trainer.save_model(home)
        trainer.save_model()
        assert (home / "letters" / "thesis.tex").read_text() == "years of work"
        assert (home / "model.safetensors").is_file()
        assert (run / "best" / "support_set.json").read_text() == "{}"
        assert (run / "best" / "notes" / "2024" / "why.txt").read_text() == "because"
    assert sorted(path.name for path in tmp_path.iterdir() if "home" in path.name) == ["home", "home.new", "home.old"]
    for other in (tmp_path / "elsewhere" / "best", run / "mine"):  # named like a run's folder, or in a run
        other.mkdir(parents=True)
        (other / "thesis.tex").write_text("years of work")
        trainer.save_model(other)
        assert (other / "thesis.tex").read_text() == "years of work"
    assert torch.equal(
        CLIPFSARProcessor.from_pretrained(home).process_videos([np.zeros((4, 16, 16, 3), np.uint8)]),
        trainer.processing_class.process_videos([np.zeros((4, 16, 16, 3), np.uint8)]),
    )


# --- what is left of a run --------------------------------------------------------------------------------------------


def test_models_of_a_run_whose_state_is_gone_are_not_replaced(folder, tiny_clip, run):
    shutil.rmtree(run / "state")
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    before = (run / "best" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"holds models of a run whose state is gone \(best, last\)"):
        trainer.train()
    (run / "results.json").write_text("[]")  # it was finished
    with pytest.raises(ValueError, match="whose state is gone"):
        trainer.train(resume_from_checkpoint=True)
    assert (run / "best" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("there", "resumes", "answer"),
    [
        ((), True, None),
        (("state/progress.json", "best/config.json"), True, "state"),
        (("state.old/progress.json",), True, "state.old"),
        (("state.old/progress.json",), False, "holds a run already"),
        (("best/config.json",), True, None),  # died before its first checkpoint
        (("best/config.json",), False, r"whose state is gone \(best\)"),
        (("last/config.json",), False, r"whose state is gone \(last\)"),
        (("last/config.json", "results.json"), True, r"whose state is gone \(last\)"),
        (("results.json",), False, None),
    ],
)
def test_a_state_is_found_or_what_keeps_a_run_from_beginning(tmp_path, there, resumes, answer):
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    if answer in (None, "state", "state.old"):
        assert find_saved_state(tmp_path, resumes) == (tmp_path / answer if answer else None)
    else:
        with pytest.raises(ValueError, match=answer):
            find_saved_state(tmp_path, resumes)


def test_a_state_of_fsdp_is_not_resumed_without_it(folder, tiny_clip, run):
    path = run / "state" / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fsdp": "SHARDED_STATE_DICT"}))
    (run / "state" / CHECKSUMS).unlink()
    with pytest.raises(ValueError, match=r"was saved with FSDP 2 \(SHARDED_STATE_DICT\) and cannot continue without"):
        trainer_of(video_splits(folder), tiny_clip, run)._checked_state(True)


@pytest.mark.parametrize("damage", ["a bit", "a byte that is no text", "a line less"])
def test_a_damaged_log_is_found_on_resume(folder, tiny_clip, run, damage):
    log = run / "training_log.jsonl"
    data = bytearray(log.read_bytes())
    if damage == "a line less":
        data = data[data.index(b"\n") + 1 :]
    else:
        position = data.index(b'"loss": ') + 10
        data[position] ^= 1 if damage == "a bit" else 128
    log.write_bytes(data)
    trainer = trainer_of(video_splits(folder), tiny_clip, run)
    with pytest.raises(DamagedFileError, match=r"training_log\.jsonl is not what was written up to episode 4"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("line", [0, 20, 39])
def test_damage_to_any_line_of_a_long_log_is_found(tmp_path, line):
    path = tmp_path / "training_log.jsonl"
    log = TrainingLog(path, 0, is_main_process=True)
    for episode in range(40):
        log.write(episode, "train", loss=1.5)
    TrainingLog(path, 39, is_main_process=True, sha256=log.digest())
    lines = path.read_text().splitlines(keepends=True)
    lines[line] = lines[line].replace("1.5", "1.4")
    path.write_text("".join(lines))
    with pytest.raises(DamagedFileError, match="is not what was written up to episode 39"):
        TrainingLog(path, 39, is_main_process=True, sha256=log.digest())


def test_lines_that_are_no_records_are_left_out_and_a_deleted_log_begins_anew(folder, tiny_clip, run):
    log = run / "training_log.jsonl"
    kept = log.read_text()
    log.write_bytes(
        log.read_bytes()
        + b'[1]\n{"kind": "train"}\n{"episode": 2}\n{"episode": "4", "kind": "train"}\n\xff\xfe\n{"episode": 8, "kind'
    )
    trainer_of(video_splits(folder), tiny_clip, run).train(resume_from_checkpoint=True)
    assert log.read_text().startswith(kept)
    log.unlink()
    trainer_of(video_splits(folder), tiny_clip, run).train(resume_from_checkpoint=True)
    assert log.read_text() == ""


def test_weights_that_are_not_what_was_written_are_not_loaded(run):
    path = run / "best" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-40] ^= 64
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors has changed since .* delete .*SHA256SUMS"):
        load_model(str(run / "best"))
    (run / "best" / CHECKSUMS).unlink()
    assert load_model(str(run / "best"))[0].config.num_frames == 4
