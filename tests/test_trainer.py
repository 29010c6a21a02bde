"""`EpisodicTrainer` with objects: the program's numbers, transformers' callbacks, and what subclasses may change."""

import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_data import (
    SETTINGS,
    model_of_tiny_clip,
    read_log,
    run_in_children,
    save_tiny_clip,
    save_tiny_resnet_clip,
    training_arguments,
    video_splits,
    write_video_folder,
)
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState

from clipfsar.data.video_split import VideoSplit
from clipfsar.training.arguments import EpisodicTrainingArguments, parse_arguments
from clipfsar.training.optimization import check_optimizer_state
from clipfsar.training.program import RemoveOldResults, _train_and_test, main
from clipfsar.training.trainer import EpisodicTrainer
from episodes_clipfsar import EpisodeSampler
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

QUICK = {"episodes": 8, "eval_every": 8, "eval_episodes": 2}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return video_splits(write_video_folder(tmp_path_factory.mktemp("videos"), videos_per_class=4))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def make(splits, tiny_clip, tmp_path):
    """A trainer of a class, on the tiny CLIP and without the test's splits being read; keywords are arguments."""

    def make_trainer(trainer_class=EpisodicTrainer, name="run", callbacks=(), objects=None, **overrides):
        settings = {key: value for key, value in SETTINGS.items() if key != "num_frames"}
        args = EpisodicTrainingArguments(output_dir=str(tmp_path / name), **settings | overrides)
        return trainer_class(
            model=model_of_tiny_clip(tiny_clip),
            args=args,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            processing_class=CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4),
            callbacks=callbacks,
            **objects or {},
        )

    return make_trainer


def train_losses(trainer) -> list[float]:
    return [line["loss"] for line in trainer.log_history if "loss" in line]


# --- objects ----------------------------------------------------------------------------------------------------------


def run_program(arguments: list[str]):
    main(parse_arguments(arguments))


def test_objects_train_as_the_program_does(make, splits, tiny_clip, tmp_path):
    splits.save_to_disk(tmp_path / "data")
    arguments = training_arguments(tmp_path / "data", tiny_clip, tmp_path / "program")
    run_in_children(run_program, arguments, folder=tmp_path / "output").check()
    trainer = make()
    output = trainer.train()
    results = trainer.evaluate(splits["test"])
    assert read_log(tmp_path / "run") == read_log(tmp_path / "program")
    ours, theirs = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("run", "program"))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    expected = json.loads((tmp_path / "program" / "results.json").read_text())
    assert [(r.n_shot, r.inference_mode, r.accuracy, r.interval) for r in results] == [
        (r["n_shot"], r["inference_mode"], r["accuracy"], r["interval"]) for r in expected
    ]
    assert output.global_step == 4
    assert output.metrics["accuracy"] == trainer.best["accuracy"]


def test_after_training_the_model_has_the_best_weights_and_saves_them_with_the_results(make, splits, tmp_path):
    trainer = make(episodes=16, learning_rate=3e-2, warmup_episodes=0)
    trainer.train()
    best = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert all(torch.equal(best[name], value) for name, value in trainer.model.state_dict().items())
    results = trainer.evaluate(splits["test"], n_shot=[1], n_episodes=30)
    assert (len(results), results[0].n_episodes) == (3, 30)
    trainer.save_model()
    trainer.save_model(tmp_path / "elsewhere")
    for folder in (tmp_path / "run" / "best", tmp_path / "elsewhere"):
        assert str(results[0].n_episodes) in (folder / "README.md").read_text().split("## Results")[1]
        assert CLIPFSARModel.from_pretrained(folder).config.num_frames == 4


def test_a_kept_adapter_stays_beside_the_best_model_however_often_it_is_saved(make, splits, tmp_path):
    pytest.importorskip("peft")
    trainer = make(**QUICK, lora_rank=2, keep_adapter=True)
    trainer.train()
    names = ("run/best", "elsewhere", "run/last")
    adapters = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in names]
    trained = adapters[0].read_bytes()
    trainer.save_model()  # without results
    trainer.evaluate(splits["test"], n_shot=1, n_episodes=4)
    trainer.save_model()
    trainer.save_model(tmp_path / "elsewhere")
    assert [path.read_bytes() == trained for path in adapters] == [True, True, True]  # the first validation is the last
    trainer.args.keep_adapter = False
    trainer.save_model()
    assert not adapters[0].exists()


def test_a_trainer_without_training_does_not_replace_the_best_model_of_a_run(make, tmp_path):
    pytest.importorskip("peft")
    settings = QUICK | {"lora_rank": 2, "keep_adapter": True}
    make(**settings).train()
    best = tmp_path / "run" / "best"
    before = {path.name: path.read_bytes() for path in best.rglob("*.safetensors")}
    untrained = make(**settings)
    message = r"best holds the best model of a run, and this trainer has not trained: continue .*save_model\(FOLDER\)"
    with pytest.raises(ValueError, match=message):
        untrained.save_model()
    assert not (tmp_path / "run" / "best.new").exists()
    untrained.save_model(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "adapter").exists()  # it is the adapter of another model
    untrained.model.load_state_dict(CLIPFSARModel.from_pretrained(best).state_dict())
    untrained.save_model()  # the same model again
    assert {path.name: path.read_bytes() for path in best.rglob("*.safetensors")} == before
    assert {"model.safetensors", "adapter_model.safetensors"} <= before.keys()


def test_a_run_is_of_the_model_that_it_was_given(make, tiny_clip, tmp_path):
    trainer = make()
    assert trainer.args.model == str(tiny_clip)
    args = EpisodicTrainingArguments(model="me/own", output_dir=str(tmp_path))
    for name in ("", None):
        trainer.model.name_or_path = name
        unnamed = EpisodicTrainer(trainer.model, args, processing_class=trainer.processing_class)
        assert unnamed.args.model == "me/own"


def test_a_loss_comes_alone_or_with_the_output(make):
    trainer = make()
    outputs = SimpleNamespace(loss=torch.tensor(2.5))
    assert trainer.compute_loss(lambda **inputs: outputs, {}) is outputs.loss
    assert trainer.compute_loss(lambda **inputs: outputs, {}, return_outputs=True) == (outputs.loss, outputs)


def test_the_log_history_is_transformers_with_steps_and_eval_names(make):
    trainer = make()
    trainer.train()
    first, *_, last = trainer.log_history
    assert set(first) == {
        *("loss", "few_shot_loss", "video_text_loss", "accuracy", "learning_rate"),
        *("episode", "step", "epoch"),
    }
    assert (first["episode"], first["step"], first["epoch"]) == (4, 1, 0.25)
    assert set(last) == {"eval_accuracy", "eval_interval", "episode", "step", "epoch"}
    best = max(
        (line for line in trainer.log_history if "eval_accuracy" in line), key=lambda line: line["eval_accuracy"]
    )
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (best["eval_accuracy"], best["step"])
    assert trainer.state.best_model_checkpoint == str(trainer.output_dir / "best")


def test_the_training_loss_is_the_mean_of_the_log(make):
    trainer = make(episodes=12, eval_every=12, eval_episodes=2)
    output = trainer.train()
    losses = train_losses(trainer)
    assert len(set(losses)) == 3
    assert output.training_loss == pytest.approx(sum(losses) / 3)


def test_results_on_validation_classes_do_not_become_those_of_the_card(make, splits, caplog):
    trainer = make()
    quick = {"n_shot": [1], "inference_modes": "few_shot", "n_episodes": 4}
    caplog.clear()
    trainer.evaluate(**quick)
    assert not caplog.messages
    trainer.evaluate(splits["validation"], **quick)  # the same classes as an object
    trainer.evaluate(splits["train"], **quick)
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "Classes of this data set trained or selected the model"
    ] * 2
    assert not trainer.results
    assert list(trainer.results) == []
    tested = trainer.evaluate(splits["test"], **quick)
    trainer.evaluate(**quick)
    assert trainer.results is tested


def test_training_classes_are_no_test_classes_where_the_test_split_selects(make, splits):
    trainer = make(select_on="test")
    quick = {"n_shot": [1], "inference_modes": "few_shot", "n_episodes": 4}
    trainer.evaluate(splits["train"], **quick)
    assert not trainer.results
    selected_on = trainer.evaluate(**quick)  # the card says that these classes selected the model
    assert trainer.results is selected_on


class Rising(EpisodicTrainer):
    """The last model is the best."""

    def validate(self):
        return {"accuracy": float(self.episodes_done), "interval": 1.0, "n_episodes": 2}


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_card_holds_no_results_of_earlier_weights(make, splits, tmp_path, caplog):
    trainer = make(Rising, episodes=4, eval_every=4, warmup_episodes=0)
    trainer.train()
    tested = trainer.evaluate(splits["test"], n_shot=1, inference_modes="few_shot", n_episodes=4)
    trainer.train(resume_from_checkpoint=True)  # nothing is left to train
    trainer.save_model()
    row = "| 3 | 1 | few_shot | "
    assert trainer.results is tested
    assert row in (tmp_path / "run" / "best" / "README.md").read_text()
    trainer.args.episodes = 8
    caplog.clear()
    trainer.train(resume_from_checkpoint=True)
    assert not warnings_in(caplog)
    trainer.save_model()
    assert warnings_in(caplog) == ["The model has changed since it was tested, so the card omits the results."]
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert "This is the model of episode 8" in card
    assert row not in card


def other_weights(trainer):
    with torch.no_grad():
        next(trainer.model.temporal_transformer.parameters()).view(-1)[0] += 0.5


def other_pictures(trainer):
    trainer.processing_class.image_processor.image_mean = [0.0, 0.0, 0.0]


def other_texts(trainer):
    trainer.processing_class.class_texts = {"*": "{} again"}


def another_ensemble(trainer):
    trainer.model.config.ensemble_text_weight = 0.25


@pytest.mark.parametrize("change", [other_weights, other_pictures, other_texts, another_ensemble])
def test_results_are_those_of_the_model_as_it_is(make, splits, tmp_path, change, caplog):
    trainer = make()
    tested = trainer.evaluate(splits["test"], n_shot=1, inference_modes="few_shot", n_episodes=4)
    trainer.model.config.inference_mode = "ensemble"  # each result has a mode of its own
    trainer.save_model(tmp_path / "before")
    assert trainer.results is tested
    change(trainer)
    assert trainer.results == []
    trainer.save_model(tmp_path / "after")
    cards = [(tmp_path / name / "README.md").read_text() for name in ("before", "after")]
    assert ["| 3 | 1 | few_shot | " in card for card in cards] == [True, False]
    assert caplog.messages[-1] == "The model has changed since it was tested, so the card omits the results."


def test_results_print_as_lines_and_go_to_json_and_pandas(make, splits, tmp_path, capsys):
    trainer = make()
    results = trainer.evaluate(splits["test"], n_shot=[1, 2], inference_modes="few_shot", n_episodes=20)
    print(results)
    assert capsys.readouterr().out.splitlines()[-2:] == [str(result) for result in results]
    results.to_json(tmp_path / "results.json")
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["n_shot"] for row in rows] == [1, 2]
    assert list(rows[0]["per_class_accuracy"]) == ["gray", "orange", "violet"]
    frame = results.to_pandas()
    assert frame["accuracy"].tolist() == [result.accuracy for result in results]
    assert results.get(n_shot=2) is results[1]
    assert np.allclose(np.nansum(results[0].confusion, axis=1), 100)  # every class is in each 3-way episode
    with pytest.raises(KeyError, match="There is no 5-shot few_shot result; there are 1-shot few_shot, 2-shot"):
        results.get(n_shot=5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"num_frames": 16},
            "say num_frames=16, but the processor has 4: leave num_frames out of the arguments, or load",
        ),
        ({"alignment": "mean"}, "say alignment='mean', but the model has 'otam'"),
    ],
)
def test_arguments_that_contradict_the_objects_are_refused(make, overrides, message):
    with pytest.raises(ValueError, match=message):
        make(**overrides)


def test_model_and_processor_of_different_frames_are_refused(tiny_clip, splits):
    with pytest.raises(ValueError, match="samples 8 frames per video, but the model is configured for 4: load both"):
        EpisodicTrainer(
            model_of_tiny_clip(tiny_clip), processing_class=CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=8)
        )


def test_splits_that_share_classes_are_refused(make, splits):
    trainer = make()
    trainer.eval_split = trainer.train_split
    with pytest.raises(ValueError, match="share 4 classes"):
        trainer.train()


# --- going on ---------------------------------------------------------------------------------------------------------


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_a_callback_stops_a_run_that_then_goes_on_exactly(make, tmp_path):
    make(name="whole").train()
    stopped = make(callbacks=[StopAt(3)])
    for name in ("state", "best", "last"):  # of a run that died while it saved
        (tmp_path / "run" / f"{name}.new").mkdir(parents=True)
        (tmp_path / "run" / f"{name}.new" / "half.bin").write_bytes(b"half")
    stopped.train()
    assert stopped.episodes_done == 12
    assert (tmp_path / "run" / "state" / "progress.json").is_file()
    assert (tmp_path / "run" / "training.png").is_file()
    assert not list((tmp_path / "run").rglob("half.bin"))
    with pytest.raises(ValueError, match=r"holds a run already: --resume \(resume_from_checkpoint=True\)"):
        make().train()
    recorder = Recorder()
    make(callbacks=[recorder]).train(resume_from_checkpoint=True)
    assert (recorder.events[1], recorder.epochs[1]) == (("on_train_begin", 3), 0.75)
    whole, resumed = (read_log(tmp_path / name) for name in ("whole", "run"))
    stopped_at = {"episode": 12, "kind": "validation"}
    assert [line for line in resumed if not stopped_at.items() <= line.items()] == whole
    ours, theirs = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("run", "whole"))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_a_path_of_another_run_is_not_resumed_from(make, tmp_path):
    with pytest.raises(
        ValueError, match=r"is not the run in .*: a run resumes in its own output_dir; name that folder"
    ):
        make().train(resume_from_checkpoint=str(tmp_path / "other"))
    make().train(resume_from_checkpoint=str(tmp_path / "run"))  # begins it


def test_results_of_an_earlier_end_are_removed_when_training_goes_on_and_only_then(make, tmp_path):
    old, args = tmp_path / "run" / "results.json", SimpleNamespace(output_dir=str(tmp_path / "run"))
    old.parent.mkdir()
    old.write_text("[]")
    for is_main, done in ((True, 4), (False, 2)):  # nothing is left to train; another process removes it
        state = TrainerState(global_step=done, max_steps=4, is_world_process_zero=is_main)
        RemoveOldResults().on_train_begin(args, state, None)
    assert old.exists()
    settings = {"episodes": 4, "eval_every": 4, "eval_episodes": 2, "test_episodes": 0}
    _train_and_test(make(**settings), None)
    assert not old.exists()
    finished = make(**settings, resume=True)
    assert list(_train_and_test(finished, None)) == []
    assert finished.episodes_done == 4


def test_zero_episodes_and_zero_shots_are_refused_instead_of_replaced(make, splits):
    trainer = make()
    for given, message in (
        ({"n_episodes": 0}, "n_episodes=0 must be at least 1"),
        ({"n_shot": 0}, "n_shot=0"),
        ({"n_shot": []}, r"n_shot=\[\]"),
        ({"inference_modes": []}, r"inference_modes=\[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.evaluate(splits["test"], **given)


# --- transformers' callbacks ------------------------------------------------------------------------------------------


class SameAccuracy(EpisodicTrainer):
    """Whose validation never improves."""

    def validate(self) -> dict[str, float]:
        return {"accuracy": 50.0, "interval": 1.0, "n_episodes": 10}


def test_early_stopping_stops_and_counts_on_after_a_resume(make):
    settings = {"episodes": 64, "eval_every": 4, "log_every": 4}
    trainer = make(SameAccuracy, name="whole", callbacks=[EarlyStoppingCallback(early_stopping_patience=3)], **settings)
    trainer.train()
    assert trainer.episodes_done == 16  # the first is the best, three more do not improve on it
    assert trainer.best["episode"] == 4
    interrupted = [EarlyStoppingCallback(early_stopping_patience=3), StopAt(3)]
    make(SameAccuracy, callbacks=interrupted, **settings).train()
    trainer = make(SameAccuracy, callbacks=[EarlyStoppingCallback(early_stopping_patience=3)], **settings)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.episodes_done == 16


class Recorder(TrainerCallback):
    """Every event, with what transformers hands to callbacks."""

    def __init__(self):
        self.events, self.logs, self.epochs = [], [], []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def record(args, state, control, **details):
            assert {"model", "processing_class", "optimizer", "train_dataloader"} <= set(details)
            self.events.append((name, state.global_step))
            self.epochs.append(state.epoch)
            if name == "on_log":
                self.logs.append(details["logs"])
            if name == "on_evaluate":
                assert set(details["metrics"]) == {"eval_accuracy", "eval_interval", "eval_n_episodes"}

        return record


def test_callbacks_hear_of_every_event_in_transformers_order(make):
    recorder = Recorder()
    trainer = make(callbacks=[recorder], episodes=8, episodes_per_update=2, eval_every=8, log_every=4)
    trainer.train()
    update = ["on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"]
    logged = [*update, "on_log"]
    names = [name for name, _ in recorder.events]
    checked = [*update, "on_log", "on_evaluate", "on_save"]
    assert names == ["on_init_end", "on_train_begin", *update, *logged, *update, *checked, "on_train_end"]
    of_updates = [place for place, (name, _) in enumerate(recorder.events) if name == "on_step_end"]
    assert [recorder.events[place][1] for place in of_updates] == [1, 2, 3, 4]
    assert [recorder.epochs[place] for place in of_updates] == [0.25, 0.5, 0.75, 1.0]
    assert [logs["loss"] for logs in recorder.logs] == train_losses(trainer)


class LogEveryStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_log = True


def test_a_callback_may_ask_for_more_lines_of_the_log(make):
    trainer = make(callbacks=[LogEveryStep()], log_every=1000)
    trainer.train()
    assert [line["step"] for line in trainer.log_history if "loss" in line] == [1, 2, 3, 4]


class DieAfterSaving(TrainerCallback):
    """Saves in the middle of the episodes of a line of the log, and ends the run there."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == 3
        return control

    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_line_of_the_log_is_the_mean_of_all_its_episodes_also_after_a_resume(make, tmp_path):
    settings = {"episodes": 20, "eval_every": 20, "log_every": 20, "eval_episodes": 2}
    whole = make(name="whole", **settings)
    assert [whole.train().training_loss] == train_losses(whole)
    with pytest.raises(KeyboardInterrupt):
        make(callbacks=[DieAfterSaving()], **settings).train()
    make(**settings).train(resume_from_checkpoint=True)
    assert read_log(tmp_path / "run") == read_log(tmp_path / "whole")


class NaNAtSecondStep(EpisodicTrainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        return (loss * (float("nan") if self.episodes_done == 4 else 1.0), outputs) if return_outputs else loss


def test_weights_after_a_nan_loss_are_not_saved_before_the_log_has_it(make, tmp_path):
    trainer = make(NaNAtSecondStep, episodes=40, eval_every=4, log_every=40, eval_episodes=2)
    with pytest.raises(FloatingPointError, match=r"The loss is nan at episode 8\. The last checkpoint"):
        trainer.train()
    assert all(bool(value.isfinite().all()) for value in load_file(tmp_path / "run/last/model.safetensors").values())


def test_an_optimizer_that_does_not_hold_what_trains_is_said(make, tiny_clip, caplog):
    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=1e-3)

    other = CLIPFSARModel.from_pretrained(tiny_clip, for_training=True)
    with pytest.raises(ValueError, match="holds parameters of another model"):
        make(objects={"optimizer": sgd(other)}).train()
    trainer = make(freeze_vision=True, **QUICK)
    trainer.optimizer = torch.optim.SGD(trainer.model.clip.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=r"holds none of the \d+ weights that train: make it after"):
        trainer.train()
    trainer.optimizer = torch.optim.SGD([trainer.model.video_text_scale], lr=1e-3)
    trainer.train()
    assert "The optimizer leaves out" in caplog.text


def test_training_classes_are_evaluated_beside_the_features_that_they_trained_on(make):
    trainer = make(freeze_vision=True, **QUICK)
    trainer.train()
    (result,) = trainer.evaluate(trainer.train_split, n_shot=[1], inference_modes="few_shot", n_episodes=4)
    assert result.n_episodes == 4
    trainer.train_split.name = "other"  # the same videos, encoded anew
    (again,) = trainer.evaluate(trainer.train_split, n_shot=[1], inference_modes="few_shot", n_episodes=4)
    assert again.accuracy == result.accuracy
    features = trainer.output_dir / "features"
    assert {path.name for path in features.iterdir()} == {"train", "train_evaluated", "validation", "other"}
    shutil.rmtree(features)
    make(freeze_vision=True, **QUICK).train(resume_from_checkpoint=True)
    assert not features.exists()  # a finished run needs no features


def test_an_optimizer_that_is_set_after_a_training_is_the_next_ones(make):
    trainer = make(callbacks=[StopAt(1)], **QUICK)
    trainer.train()
    made = trainer.optimizer
    trainer.callback_handler.pop_callback(StopAt)
    trainer.control.should_training_stop = False
    ours = trainer.optimizer = torch.optim.Adam(trainer.model.temporal_transformer.parameters(), lr=1e-3)
    trainer.output_dir = trainer.output_dir.with_name("other")
    trainer.train()
    assert trainer.optimizer is ours is not made


def test_a_resumed_update_has_all_its_forwards_if_their_size_has_changed(make):
    make(callbacks=[StopAt(1)], episodes_per_forward=2, **QUICK).train()
    recorder = Recorder()
    make(callbacks=[recorder], **QUICK).train(resume_from_checkpoint=True)
    assert [name for name, _ in recorder.events].count("on_substep_end") == 3


def test_layers_are_computed_again_in_the_backward_pass_when_asked(make):
    calls = {}
    for asked in (False, True):
        trainer = make(gradient_checkpointing=asked)
        loader, layers = trainer._prepare(None), []
        trainer.wrapped_model.train()
        tower = trainer.model.clip.vision_model
        tower.encoder.layers[0].layer_norm1.register_forward_hook(lambda *_, layers=layers: layers.append(1))
        trainer._forward_and_backward(next(iter(loader)), 0)
        calls[asked] = len(layers)
        kernel = tower.embeddings.patch_embedding.weight
        assert not kernel.is_contiguous(memory_format=torch.channels_last)
    assert calls[True] == 2 * calls[False] > 0


def test_kernels_of_a_resnet_are_laid_out_as_they_compute_fastest(splits, tmp_path):
    save_tiny_resnet_clip(tmp_path / "resnet")
    settings = {"n_way": 3, "train_n_query": 1, "n_shot": [1], "report_to": "none"}
    args = EpisodicTrainingArguments(output_dir=str(tmp_path / "run"), **settings)
    model = model_of_tiny_clip(tmp_path / "resnet")
    processor = CLIPFSARProcessor.from_pretrained(tmp_path / "resnet", num_frames=4)
    trainer = EpisodicTrainer(model, args, splits["train"], processing_class=processor)
    trainer._prepare(None)
    assert trainer.model.clip.vision_model.conv2.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("trained", [{}, {"lora_rank": 2}], ids=["all weights", "LoRA"])
def test_an_interrupted_trainer_goes_on_by_itself(make, tmp_path, trained):
    make(name="whole", **QUICK, **trained).train()
    trainer = make(callbacks=[StopAt(1)], **QUICK, **trained)
    trainer.train()
    trainer.callback_handler.pop_callback(StopAt)
    trainer.control.should_training_stop = False
    trainer.train(resume_from_checkpoint=True)
    ours, theirs = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("run", "whole"))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda weights: torch.optim.SGD(weights, lr=1e-3), r"has the settings .*betas.*, not .*momentum"),
        (lambda weights: torch.optim.Adam(weights[1:], lr=1e-3), r"has \[\d+\] weights in its groups, not \[\d+\]"),
        (
            lambda weights: torch.optim.Adam(weights[::-1], lr=1e-3),
            r"has a state of shape \(.*\) for weight \d+, not \(",
        ),
    ],
    ids=["class", "weights", "order"],
)
def test_a_run_resumes_with_its_own_kind_of_optimizer_only(make, optimizer, message):
    def with_optimizer(make_optimizer, **options):
        trainer = make(**QUICK, **options)
        trainer.optimizer = make_optimizer([*trainer.model.temporal_transformer.parameters()])
        return trainer

    with_optimizer(lambda weights: torch.optim.Adam(weights, lr=1e-3), callbacks=[StopAt(1)]).train()
    with pytest.raises(ValueError, match=f"not that of the run in .*run, which {message}.*: resume with"):
        with_optimizer(optimizer).train(resume_from_checkpoint=True)
    with_optimizer(lambda weights: torch.optim.Adam(weights, lr=1e-3)).train(resume_from_checkpoint=True)


def test_settings_that_another_torch_knows_and_factored_states_do_not_keep_a_run_from_going_on(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3, 5))
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    weight.sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["fused"]  # an earlier version did not have it
    saved["state"][0]["exp_avg_sq_row"] = torch.ones(3)  # as Adafactor's
    torch.save(saved, tmp_path / "optimizer.bin")
    check_optimizer_state(optimizer, tmp_path)
    saved["param_groups"][0] |= {"fused": None, "of_a_later_version": 1}
    torch.save(saved, tmp_path / "optimizer.bin")
    check_optimizer_state(optimizer, tmp_path)
    saved["state"][0]["exp_avg"] = torch.ones(5, 3)
    torch.save(saved, tmp_path / "optimizer.bin")
    with pytest.raises(ValueError, match=r"a state of shape \(5, 3\) for weight 0, not \(3, 5\)"):
        check_optimizer_state(optimizer, tmp_path)


def test_a_sampler_that_contradicts_the_arguments_or_the_data_is_refused(make, splits):
    labels, names = VideoSplit.of(splits["train"]).labels, VideoSplit.of(splits["train"]).class_names
    with pytest.raises(ValueError, match="The sampler has n_way=4, but the arguments say n_way=3"):
        make(objects={"sampler": EpisodeSampler(labels, 4, 1, 1, 0, names)}).train()
    with pytest.raises(ValueError, match="made with labels of other videos"):
        make(objects={"sampler": EpisodeSampler(labels[::-1].copy(), 3, 1, 1, 0, names)}).train()
    make(objects={"sampler": EpisodeSampler(labels, 3, 1, 1, 7, names)}, **QUICK).train()


class OnlyAccuracy(EpisodicTrainer):
    def validate(self):
        return {"accuracy": 50.0}


def test_a_validation_without_its_interval_is_refused_before_anything_is_saved(make, tmp_path):
    with pytest.raises(ValueError, match=r"validate\(\) returned no interval, n_episodes"):
        make(OnlyAccuracy).train()
    assert not (tmp_path / "run" / "best").exists()


def test_texts_of_the_arguments_that_the_processor_does_not_have_are_refused(make, tmp_path):
    (tmp_path / "texts.json").write_text('{"*": ["a photo of {}"]}')
    with pytest.raises(ValueError, match=r"say class_texts='.*texts.json', but the processor has other texts, or none"):
        make(class_texts=str(tmp_path / "texts.json"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, "--optimizer 'sgd' is not one of adam, adamw"),
        ({"seed": 1.5}, "--seed 1.5 must be a whole number"),
        ({"episodes": True}, "--episodes True must be a whole number"),
        ({"learning_rate": "fast"}, "--learning_rate 'fast' must be a number"),
        ({"n_shot": [1, "5"]}, "--n_shot '5' must be a whole number"),
        ({"inference_modes": []}, "--inference_modes is empty"),
        ({"model": 3}, "--model 3 must be a text"),
    ],
)
def test_arguments_of_another_type_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EpisodicTrainingArguments(**settings)


def test_arguments_may_be_one_value_a_tuple_or_a_path(tmp_path):
    args = EpisodicTrainingArguments(output_dir=tmp_path, n_shot=1, inference_modes="few_shot", decay_episodes=(8, 12))
    assert args.output_dir == str(tmp_path)
    assert (args.n_shot, args.inference_modes, args.decay_episodes) == ([1], ["few_shot"], [8, 12])


def test_numbers_of_numpy_become_pythons_so_that_they_can_be_stored():
    args = EpisodicTrainingArguments(seed=np.int64(3), learning_rate=np.float32(0.5), n_shot=[np.int32(1), np.int32(5)])
    assert json.loads(json.dumps([args.seed, args.learning_rate, args.n_shot])) == [3, 0.5, [1, 5]]
    assert [type(value) for value in (args.seed, args.learning_rate, *args.n_shot)] == [int, float, int, int]


def test_trackers_hear_the_names_of_project_and_run(make, monkeypatch):
    started, logged = [], []
    from accelerate import tracking

    class Fake(tracking.GeneralTracker):
        name = "wandb"
        requires_logging_directory = False
        main_process_only = True

        def __init__(self, project, **options):
            super().__init__()
            started.append((project, options))

        @property
        def tracker(self):
            return None

        def start(self):
            pass

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **kwargs):
            logged.append((step, sorted(values)))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda names, directory: [names])
    make(report_to="wandb", project="few-shot", eval_every=16).train()
    assert started == [("few-shot", {"name": "run"})]
    assert logged[-1] == (16, ["validation/accuracy", "validation/interval"])


# --- what subclasses may change ---------------------------------------------------------------------------------------


class OnlyFewShot(EpisodicTrainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        inputs.pop("base_class_embeds")
        outputs = model(**inputs)
        loss = 2 * outputs.few_shot_loss
        return (loss, outputs) if return_outputs else loss


def test_a_loss_of_ones_own(make):
    trainer = make(OnlyFewShot)
    trainer.train()
    for line in (line for line in trainer.log_history if "loss" in line):
        assert line["loss"] == pytest.approx(2 * line["few_shot_loss"])
        assert "video_text_loss" not in line


class SlowHead(EpisodicTrainer):
    def create_optimizer(self):
        return torch.optim.SGD(self.model.temporal_transformer.parameters(), lr=0.0)

    def learning_rate(self, episode: int) -> float:
        return 0.5


class NumbersDrawn(EpisodicTrainer):
    """What dropout would draw from, forward by forward."""

    def compute_loss(self, model, inputs, return_outputs=False):
        self.drawn = [*getattr(self, "drawn", ()), torch.get_rng_state().sum().item()]
        return super().compute_loss(model, inputs, return_outputs)


def test_dropout_differs_from_episode_to_episode(make):
    trainer = make(NumbersDrawn, episodes=4, eval_every=4, eval_episodes=2)
    trainer.train()
    assert len(set(trainer.drawn)) == 4


@pytest.mark.parametrize("way", ["method", "argument"])
def test_an_optimizer_of_ones_own(make, tiny_clip, way):
    trainer = make(SlowHead if way == "method" else EpisodicTrainer)
    if way == "argument":
        trainer.optimizer = torch.optim.SGD(trainer.model.temporal_transformer.parameters(), lr=0.0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name.split(".")[0] for name, value in trainer.model.state_dict().items() if not value.equal(before[name])}
    assert moved == {"temporal_transformer"}
    rates = {line["learning_rate"] for line in trainer.log_history if "loss" in line}
    assert (rates == {0.5}) == (way == "method")


class FirstClasses(EpisodeSampler):
    """Draws episodes of the first three classes only."""

    def draw(self, rng):
        episode = super().draw(rng)
        while set(episode.class_ids) != {0, 1, 2}:
            episode = super().draw(rng)
        return episode


class Curriculum(EpisodicTrainer):
    def create_sampler(self, split):
        return FirstClasses(split.labels, self.args.n_way, 1, 1, self.args.seed, split.class_names)


@pytest.mark.parametrize("way", ["method", "argument"])
def test_a_sampler_of_ones_own(make, splits, way):
    trainer = make(Curriculum)
    if way == "argument":
        trainer = make(objects={"sampler": trainer.create_sampler(trainer.train_split)})
    trainer.train()
    seen = {label for index in range(16) for label in trainer.episodes[index]["class_base_labels"]}
    assert seen == {0, 1, 2}


class Worst(EpisodicTrainer):
    """Selects by a number of its own: the earlier the better."""

    def validate(self) -> dict[str, float]:
        return {"accuracy": 100.0 - self.episodes_done, "interval": 0.0, "n_episodes": 1, "margin": 3.0}


def test_a_validation_of_ones_own_chooses_the_best_model(make, tmp_path):
    trainer = make(Worst)
    trainer.train()
    assert (trainer.best["episode"], trainer.best["margin"]) == (8, 3.0)
    assert [line["eval_margin"] for line in trainer.log_history if "eval_margin" in line] == [3.0, 3.0]
    assert "the model of episode 8" in (tmp_path / "run" / "best" / "README.md").read_text()


def test_uploading_saves_first_and_needs_a_name(make, splits, monkeypatch, tmp_path):
    uploads = []
    monkeypatch.setattr(
        "clipfsar.training.trainer.push_folder",
        lambda folder, *details: uploads.append((Path(folder), details)) or "url",
    )
    recorder = Recorder()
    settings = {"episodes": 4, "eval_every": 4, "eval_episodes": 2, "hub_private": False, "hub_revision": "v2"}
    trainer = make(callbacks=[recorder], **settings)
    trainer.train()
    trainer.evaluate(splits["test"], n_shot=2, n_episodes=31, inference_modes="zero_shot")
    with pytest.raises(ValueError, match="no repository to upload to: pass repo_id='USER/NAME'"):
        trainer.push_to_hub()
    assert trainer.push_to_hub("me/actions") == "url"
    assert uploads == [(tmp_path / "run" / "best", ("me/actions", False, "v2", "Upload CLIP-FSAR model"))]
    assert recorder.events[-1] == ("on_push_begin", 1)
    assert "| 3 | 2 | zero_shot |" in (tmp_path / "run" / "best" / "README.md").read_text()
    trainer.args.push_to_hub = "me/default"
    trainer.push_to_hub(commit_message="Again")
    assert uploads[-1][1] == ("me/default", False, "v2", "Again")
