"""`EpisodicTrainer`: episodic training with models, processors and data sets as objects.

Everything random (episodes, frames, crops, dropout) is a pure function of the seed and the episode's number. The loss
curve does not depend on the number of processes or workers, and a run that was killed continues exactly.
"""

import atexit
import contextlib
import json
import logging
import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers.trainer_callback import CallbackHandler, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput

from backbones_clipfsar import is_convolutional
from class_texts_clipfsar import check_class_prompts
from clipfsar.checked_files import write_checksums
from clipfsar.checkpoints.model_card import SELECTED_ON_TEST, write_model_card
from clipfsar.checkpoints.push_to_hub import push_folder
from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.evaluate_model import Evaluation
from clipfsar.evaluation.feature_store import FeatureStore
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.results import EvaluationResults
from clipfsar.presets import learning_rate_at
from clipfsar.processes import check_same_everywhere, check_shared_folder, first_process_decides, ignore_sigterm
from clipfsar.training import checks, sharding
from clipfsar.training.accelerator import MainProcessLogger, make_accelerator, start_trackers
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.callbacks import (
    EpisodicFlowCallback,
    EpisodicProgressCallback,
    callback_states,
    restore_callbacks,
)
from clipfsar.training.frozen_features import ROW, FeatureCollator, encode_draws, row_dataset
from clipfsar.training.optimization import check_optimizer, check_optimizer_state, make_optimizer
from clipfsar.training.resuming import check_same_data, check_same_settings, settings_of, state_digest
from clipfsar.training.run_folder import (
    CARD,
    TrainingLog,
    check_own_folder,
    check_same_model,
    check_saved_state,
    find_saved_state,
    put_in_place,
    read_progress,
    replace_folder,
    restore_folder,
    run_lock,
    told_how_to_go_on,
)
from clipfsar.training.step import StepValues, mix_seeds, recorded_values
from clipfsar.training.trainable import (
    choose_trainable,
    copy_adapter,
    load_weights,
    remove_adapters,
    save_trained_model,
    trainable_report,
)
from episodes_clipfsar import EpisodeCollator, EpisodeDataset, EpisodeSampler
from fingerprint_clipfsar import model_digest
from paths_clipfsar import write_text

logger = MainProcessLogger(logging.getLogger(__name__), {})


class EpisodicTrainer:
    """Trains a CLIP-FSAR model on episodes and keeps the model that does best on validation classes.

        args = EpisodicTrainingArguments(output_dir="runs/mine", episodes=2000)
        trainer = EpisodicTrainer(model=model, args=args, train_dataset=splits["train"],
                                  eval_dataset=splits["validation"], processing_class=processor)
        trainer.train(resume_from_checkpoint=True)
        results = trainer.evaluate(splits["test"], n_shot=[1, 5])
        trainer.save_model()

    To change its behaviour, override `compute_loss`, `create_optimizer`, `learning_rate`, `create_sampler` or
    `validate`, or pass `optimizer=` or `sampler=`.

    Args:
        model: A `CLIPFSARModel`, float32. A plain CLIP gets the method's layers, initialized with the seed of `args`.
            Training changes the model in place: `args` choose what is frozen. After `train` it has the best weights.
        args: `EpisodicTrainingArguments`; by default all defaults.
        train_dataset: A `datasets.Dataset` with a column of videos and one of labels, or a `VideoSplit`.
        eval_dataset: Validation classes in the same form. Without it, the last model is kept as the best, unselected.
        processing_class: The model's `CLIPFSARProcessor`.
        callbacks: transformers' `TrainerCallback` objects. A step is an optimizer step; metrics are called
            `eval_accuracy` and `eval_interval`. Every process runs the callbacks, and all processes must make the same
            decisions to log, save or stop.
        optimizer: Replaces `create_optimizer`, over the model's parameters; `learning_rate` sets its rate.
        sampler: An `EpisodeSampler` of training episodes; replaces `create_sampler`.
        accelerator: The result of `make_accelerator(args)`; by default a new one.

    Raises:
        ValueError: When settings contradict each other, the model, the processor or the data; the message says how.

    Attributes:
        state, control: transformers' `TrainerState` and `TrainerControl`.
        log_history: The log, one dict per line.
        best: Validation metrics of the best model so far, with its `episode`; None before the first validation.
    """

    def __init__(
        self,
        model,
        args: EpisodicTrainingArguments | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        callbacks: Sequence[TrainerCallback] = (),
        *,
        optimizer: torch.optim.Optimizer | None = None,
        sampler: EpisodeSampler | None = None,
        accelerator: Accelerator | None = None,
    ):
        if processing_class is None:
            raise ValueError("An EpisodicTrainer needs the model's processor: pass processing_class=.")
        args = args or EpisodicTrainingArguments()
        self.model, self.processing_class = model, processing_class
        model.add_untrained_layers(args.seed)
        self.args = replace(args.resolved(model, processing_class), model=_name_of(model) or args.model)
        self.output_dir = Path(self.args.output_dir)
        self.accelerator = accelerator or make_accelerator(self.args)
        self.model.to(self.accelerator.device)
        columns = (self.args.video_column, self.args.label_column)
        self.train_split = None if train_dataset is None else VideoSplit.of(train_dataset, *columns, "train")
        name = self.args.select_on
        self.eval_split = None if eval_dataset is None else VideoSplit.of(eval_dataset, *columns, name)
        cost = (self.args.eval_batch_size, self.args.num_workers, self.args.seed)
        self.encoder = VideoEncoder(model, processing_class, self.accelerator, *cost)
        self.optimizer, self.sampler = optimizer, sampler
        self._own_optimizer: torch.optim.Optimizer | None = None  # what `create_optimizer` made
        self.episodes_done, self._tested = 0, (EvaluationResults(), "")  # the results, and of what
        self.best: dict[str, Any] | None = None
        self.log: TrainingLog  # from the beginning of the training
        self.test_split: VideoSplit | None = None
        self.classes_are_checked = False  # set by the training program
        self._lock = run_lock(self.output_dir)
        self._start = dict[str, Any]()  # what a run was started with, on the main process

        is_main, is_local_main = self.accelerator.is_main_process, self.accelerator.is_local_main_process
        self.control = TrainerControl()
        self.state = TrainerState(
            max_steps=self.args.max_steps, is_world_process_zero=is_main, is_local_process_zero=is_local_main
        )
        own = [EpisodicFlowCallback(), EpisodicProgressCallback()]
        self.callback_handler = CallbackHandler([*own, *callbacks], model, processing_class, None, None)
        self._trackers_started = False
        # A torch.distributed process that does not close its process group ends in SIGABRT.
        atexit.register(_close_if_alive, weakref.ref(self))
        self.control = self._call("on_init_end")

    # --- methods that subclasses may override -------------------------------------------------------------------------

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False):
        """The loss of a batch of episodes; with `return_outputs` also the model's output, whose losses are logged.

        Args:
            model: The wrapped model. Call this one, so that the processes share their gradients.
            inputs: Keyword arguments of `CLIPFSARModel.forward`, including `base_class_embeds` for the video-text
                contrast.
        """
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def create_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the trained parameters. The trainer sets its learning rate before every step."""
        return make_optimizer(self.model, self.args)

    def learning_rate(self, episode: int) -> float:
        """Learning rate of the update whose last episode (from 0) is `episode`."""
        args, decay = self.args, self.args.decay_episodes
        return learning_rate_at(episode, args.learning_rate, args.warmup_learning_rate, args.warmup_episodes, decay)

    def create_sampler(self, split: VideoSplit) -> EpisodeSampler:
        """The sampler of the training episodes. To write your own, override `EpisodeSampler.draw`."""
        return checks.training_sampler(split, self.args)

    def validate(self) -> dict[str, float]:
        """Metrics of the current weights on validation classes, the same on all processes. Best `accuracy` wins.

        The dict needs `accuracy` and its `interval` in percent, and `n_episodes`. Other metrics are logged, too.
        """
        args = self.args
        given = (args.n_way, args.n_shot[0], args.n_query, args.eval_episodes, args.seed)
        split = self.eval_split
        assert split is not None  # without one, the trainer does not validate
        (result,) = self._evaluate(split, Protocol(*given, "few_shot"))
        self._say(f"episode {self.episodes_done}: {split.name} {result}")
        return {"accuracy": result.accuracy, "interval": result.interval, "n_episodes": result.n_episodes}

    # --- training -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainOutput:
        """Trains to the end, or until a callback stops it. Afterwards the model has the best weights.

        Args:
            resume_from_checkpoint: `True` continues the run in `output_dir`, or starts one there. A path must be
                `output_dir` itself. Without this argument, a folder that holds a run is rejected.

        Raises:
            ValueError: When the folder holds a run and you do not resume, or a run with other settings or data, or
                damaged files; when another process trains there.
            FloatingPointError: When the loss is NaN or infinite; the last checkpoint is older.
        """
        if self.train_split is None:
            raise ValueError("There is nothing to train on: pass train_dataset=.")
        with self.writing():
            return self._train(resume_from_checkpoint)

    @contextlib.contextmanager
    def writing(self):
        """Locks `output_dir` against other runs; the main process holds the lock for all processes."""
        check_shared_folder(self.accelerator, self.output_dir, "--output_dir")
        with contextlib.ExitStack() as stack:
            first_process_decides(self.accelerator, lambda: stack.enter_context(self._lock) and None)
            yield

    def _train(self, resume_from_checkpoint: bool | str | None) -> TrainOutput:
        loader = self._prepare(self._find_saved_state(resume_from_checkpoint))
        self._say_what_trains()
        self.control = self._call("on_train_begin")
        self.wrapped_model.train()
        next_episode = self.episodes_done + self.accelerator.process_index * self.args.episodes_per_forward
        is_first = True  # first forward of an update
        for batch in loader if self.episodes_done < self.args.episodes else ():
            if is_first:
                self.control = self._call("on_step_begin")
            self._to_log.append(self._forward_and_backward(batch, next_episode))
            next_episode += self.args.episodes_per_forward * self.accelerator.num_processes
            is_first = self.accelerator.sync_gradients
            if not is_first:
                self.control = self._call("on_substep_end")
                continue
            self._after_update()
            if self.control.should_training_stop:
                break
        self.control = self._call("on_train_end")
        self._load_best()
        losses = [line["loss"] for line in self.state.log_history if "loss" in line]
        return TrainOutput(self.state.global_step, sum(losses) / max(1, len(losses)), dict(self.best or {}))

    def _forward_and_backward(self, batch, episode: int) -> dict[str, torch.Tensor]:
        """Runs one forward and backward, and steps the optimizer if the update is complete; the values to log."""
        args, accelerator = self.args, self.accelerator
        with accelerator.accumulate(self.wrapped_model):
            # Dropout depends only on the seed and the episode.
            torch.manual_seed(mix_seeds(args.seed, episode))
            inputs = self._finish_batch(batch)
            inputs["base_class_embeds"] = self.base_class_embeds
            loss, outputs = self.compute_loss(self.wrapped_model, inputs, return_outputs=True)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                self._set_learning_rate(self.learning_rate(self.episodes_done + args.episodes_per_update - 1))
                if args.max_grad_norm:
                    accelerator.clip_grad_norm_(self._trained, args.max_grad_norm)
                self.control = self._call("on_pre_optimizer_step")
            self.wrapped_optimizer.step()
            if accelerator.sync_gradients:
                self.control = self._call("on_optimizer_step")
            self.wrapped_optimizer.zero_grad()
        return recorded_values(loss, outputs, inputs["labels"])

    def _set_learning_rate(self, learning_rate: float):
        for group in self.wrapped_optimizer.param_groups:
            group["lr"] = learning_rate

    def _after_update(self):
        """Asks the callbacks, then logs, validates and saves as they say."""
        self.episodes_done += self.args.episodes_per_update
        self.state.global_step += 1
        self.state.epoch = self.episodes_done / self.args.episodes
        self.control = self._call("on_step_end")
        stops = self.control.should_training_stop  # a stop also logs, validates and saves
        if self.control.should_log or stops:
            self._log_training()
        to_log = []
        if self.control.should_evaluate or self.control.should_save or self.control.should_training_stop:
            to_log = self._to_log.rows(self.accelerator, self.episodes_done)  # a bad loss ends the run here
            sharding.gather_weights(self.accelerator, self.wrapped_model, self.model)
        if self.control.should_evaluate or stops:
            self._validate_and_select()
        if self.control.should_save or self.control.should_training_stop:
            self._save_checkpoint(to_log)

    def _log_training(self):
        """Logs the means since the last line, over all processes."""
        values = self._to_log.pop_means(self.accelerator, self.episodes_done)
        values["accuracy"] *= 100
        values["learning_rate"] = self.wrapped_optimizer.param_groups[0]["lr"]
        self._write_log("train", values)
        self.control = self._call("on_log", logs=values)

    def _write_log(self, kind: str, values: dict[str, float]):
        self.log.write(self.episodes_done, kind, **values)
        self.state.log_history = self.log.history(self.args.episodes_per_update, self.args.episodes)
        self.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=self.episodes_done)

    def _validate_and_select(self):
        """Validates, and saves `best/` if the model is the best so far."""
        if self.eval_split is None:
            if self.accelerator.is_main_process:
                self._save_run_model("best")
            return
        metrics = self.validate()
        checks.check_metrics(metrics)
        self._write_log("validation", {name: value for name, value in metrics.items() if name != "n_episodes"})
        # Callbacks come first: they compare with the best model so far.
        self.control = self._call("on_evaluate", metrics={f"eval_{name}": value for name, value in metrics.items()})
        if self.best is None or metrics["accuracy"] > self.best["accuracy"]:
            self.best = metrics | {"episode": self.episodes_done}
            self._note_best()
            if self.accelerator.is_main_process:
                self._save_run_model("best")

    def _note_best(self):
        if self.best is not None:
            self.state.best_metric = self.best["accuracy"]
            self.state.best_global_step = self.best["episode"] // self.args.episodes_per_update
            self.state.best_model_checkpoint = str(self.output_dir / "best")

    def _save_checkpoint(self, to_log: list[dict[str, float]]):
        """Saves `last/`, then the state. In this order, a state never refers to a model that is not saved yet."""
        if self.accelerator.is_main_process:
            self._save_run_model("last")
            self.log.draw(is_final=self.episodes_done >= self.args.episodes or self.control.should_training_stop)
        self._save_state(to_log)
        self.control = self._call("on_save")

    def _save_state(self, to_log: list[dict[str, float]]):
        """Saves the state to resume from, with all processes. At every moment a complete state is on the disk."""
        new = self.output_dir / "state.new"
        if self.accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with told_how_to_go_on(new):
            self.accelerator.save_state(str(new))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            progress = {
                "episodes_done": self.episodes_done,
                "best": self.best,
                "arguments": asdict(self.args),
                **self._start,
                "log_sha256": self.log.digest(),
                "to_log": to_log,
                "fsdp": sharding.form_of_state(self.accelerator),
                "callbacks": callback_states(self.callback_handler.callbacks),
            }
            with told_how_to_go_on(new):
                write_text(new / "progress.json", json.dumps(progress, indent=2) + "\n")
                write_checksums(new)
                replace_folder(new, self.output_dir / "state")
        self.accelerator.wait_for_everyone()

    # --- preparing a run ----------------------------------------------------------------------------------------------

    def _find_saved_state(self, resume: bool | str | None) -> Path | None:
        check_own_folder(resume, self.output_dir)
        saved_state, notes = first_process_decides(self.accelerator, lambda: self._checked_state(bool(resume)))
        for note in notes:
            logger.warning(note)
        return saved_state

    def _checked_state(self, resume: bool) -> tuple[Path | None, list[str]]:
        """The checked state to resume from, and warnings about it; for the main process."""
        for name in ("best", "last", "state"):
            restore_folder(self.output_dir / name)
        saved_state = find_saved_state(self.output_dir, resume)
        if saved_state is None:
            missing = f"--resume: there is no checkpoint in {self.output_dir} yet; starting from the beginning."
            return None, [missing] if resume else []
        notes = check_saved_state(saved_state, self.output_dir)
        progress = read_progress(saved_state)
        self.args.check_same_run(progress["arguments"])
        sharding.check_form_of_state(self.accelerator, progress.get("fsdp"), self.output_dir)
        settings = settings_of(self.model, self.processing_class)
        check_same_settings(progress.get("settings", {}), settings, self.output_dir)
        return saved_state, notes + check_same_data(progress, self._splits(), self.args)

    def _splits(self) -> dict[str, VideoSplit]:
        splits = {"train": self.train_split, self.args.select_on: self.eval_split, "test": self.test_split}
        if self.args.select_on == "test":
            splits["test"] = self.eval_split
        return {name: split for name, split in splits.items() if split is not None}

    def _prepare(self, saved_state: Path | None) -> DataLoader:
        """Checks the data, freezes weights, wraps the model, restores the state; the loader of the next episodes."""
        args, accelerator, split = self.args, self.accelerator, self.train_split
        assert split is not None  # `train` has raised an error
        self._check_data()
        progress = read_progress(saved_state)
        self.episodes_done, self.best = progress.get("episodes_done", 0), progress.get("best")
        self._to_log = StepValues(progress.get("to_log"))
        if hasattr(self, "wrapped_model"):  # an earlier `train` was interrupted or is made longer
            accelerator.free_memory()
            remove_adapters(self.model)
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)  # for the adapters
            choose_trainable(self.model, args)
        if args.gradient_checkpointing:
            # The old name will disappear in transformers 6.
            enable = getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)
            enable()
        self.model.to(accelerator.device)
        if is_convolutional(self.model.config.clip_config) and not sharding.is_sharded(accelerator):
            self.model.to(memory_format=torch.channels_last)  # RN50 on a CPU: one eighth faster
        self.episodes = self._training_episodes(split)
        # The text tower is frozen, so the class texts are encoded here and never again.
        self.base_class_embeds = self.encoder.encode_classes(self.episodes.class_names)
        if self.optimizer is None or self.optimizer is self._own_optimizer:  # of an earlier `train`
            self.optimizer = self._own_optimizer = self.create_optimizer()
        check_optimizer(self.optimizer, self.model)
        self.wrapped_model, self.wrapped_optimizer, loader = sharding.prepare(
            accelerator, self.model, self.optimizer, self._make_loader(split)
        )
        self._trained = [parameter for parameter in self.wrapped_model.parameters() if parameter.requires_grad]
        if saved_state:
            check_optimizer_state(self.optimizer, saved_state)
            accelerator.load_state(str(saved_state))
            sharding.gather_weights(accelerator, self.wrapped_model, self.model)
            # Checkpoints lie between updates. If the number of processes or of episodes per forward has changed,
            # accelerate's count of forwards would be in the middle of an update.
            accelerator.step = 0
            restore_callbacks(self.callback_handler.callbacks, progress.get("callbacks", []))
            self._restore_best()
            loaded = lambda: (self.episodes_done, model_digest(self.model))  # noqa: E731
            check_same_everywhere(accelerator, "the episodes done and the loaded weights", loaded)
            logger.info(f"Resuming after episode {self.episodes_done} of {args.episodes}.")
        log = self.output_dir / "training_log.jsonl"
        self.log = TrainingLog(log, self.episodes_done, accelerator.is_main_process, progress.get("log_sha256"))
        self.state.log_history = self.log.history(args.episodes_per_update, args.episodes)
        self.state.global_step = self.episodes_done // args.episodes_per_update
        self.state.epoch = self.episodes_done / args.episodes
        self._note_best()
        self.callback_handler.optimizer, self.callback_handler.train_dataloader = self.wrapped_optimizer, loader
        self._start_trackers()
        return loader

    def _restore_best(self):
        """Saves the checkpoint's model as the best so far if `best/` was deleted."""
        is_gone = first_process_decides(self.accelerator, lambda: not (self.output_dir / "best").is_dir())
        if is_gone:
            self.best = None
            if self.accelerator.is_main_process:
                self._save_run_model("best")

    def _check_data(self):
        """Finds errors early that would stop the run after hours: classes, numbers of videos, the first videos."""
        args, splits = self.args, self._splits()
        if self.eval_split is None:
            logger.warning(f"There is no split {args.select_on!r}: the last model is kept as the best one, unselected.")
        elif args.select_on == "test":
            logger.warning(SELECTED_ON_TEST)
        if not self.classes_are_checked:
            checks.check_classes(splits, args)
        for name, split in splits.items():
            check_class_prompts(self.processing_class, split.class_names)  # rejects names that become the same text
            checks.check_first_video(split, self.processing_class, training=name == "train")
        if self.accelerator.is_main_process:
            self._start["data"] = {name: split.record() for name, split in splits.items()}
            self._start["settings"] = settings_of(self.model, self.processing_class)

    def _training_episodes(self, split: VideoSplit) -> EpisodeDataset:
        args = self.args
        if self.sampler is not None:
            checks.check_sampler(self.sampler, split, args)
        sampler = self.sampler or self.create_sampler(split)
        dataset, video_column = split.dataset, split.video_column
        if args.trains_on_features:
            dataset, video_column = row_dataset(dataset, split.label_column), ROW
        columns: dict[str, Any] = {"video_column": video_column, "label_column": split.label_column}
        return EpisodeDataset(dataset, n_episodes=args.episodes, sampler=sampler, **columns)

    def _make_loader(self, split: VideoSplit) -> DataLoader:
        """The loader of the next episodes. It does not read the episodes before a resumed checkpoint."""
        args = self.args
        to_come = range(self.episodes_done, args.episodes)
        if args.trains_on_features and len(to_come):
            store = FeatureStore(self._features_dir() / "train", self.encoder)
            collator = FeatureCollator(encode_draws(store, split, args.feature_draws, args.seed))
            self._finish_batch: Callable[[dict], dict] = dict  # features are model inputs already
        else:
            collator = EpisodeCollator(self.processing_class, training=True, only_read=args.preprocess_on_device)
            self._finish_batch = collator.finish
        return DataLoader(
            Subset(self.episodes, to_come),
            batch_size=args.episodes_per_forward,
            collate_fn=collator,
            num_workers=0 if args.trains_on_features else args.num_workers,
            worker_init_fn=ignore_sigterm,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _features_dir(self) -> Path:
        return Path(self.args.features_dir or self.output_dir / "features")

    def _start_trackers(self):
        """Starts the trackers. This comes last, so that a rejected run leaves nothing behind."""
        if self.accelerator.log_with and not self._trackers_started:
            start_trackers(self.accelerator, self.args)
            self._trackers_started = True

    def _say_what_trains(self):
        args, accelerator = self.args, self.accelerator
        device = accelerator.device.type + (" with FSDP 2" if sharding.is_sharded(accelerator) else "")
        logger.info(
            f"{args.episodes} episodes of {len(self.episodes.class_names)} base classes, {accelerator.num_processes} "
            f"process(es) on {device}, {accelerator.mixed_precision} mixed precision, updates of "
            f"{accelerator.gradient_accumulation_steps} x {args.episodes_per_forward} episode(s) per process."
        )
        logger.info(trainable_report(self.model))

    # --- evaluating, saving, uploading --------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset=None,
        n_shot: int | Sequence[int] | None = None,
        inference_modes: str | Sequence[str] | None = None,
        n_episodes: int | None = None,
    ) -> EvaluationResults:
        """Few-shot accuracy of the current weights. After `train`, these are the best model's.

        Args:
            eval_dataset: A data set or `VideoSplit`; by default the validation classes.
            n_shot, inference_modes: By default those of `args`.
            n_episodes: Episodes per number of shots; by default `args.test_episodes`.

        Returns:
            The results, the same on every process. `save_model` writes them into the model card, unless they are
            results of classes that trained or selected it.
        """
        args = self.args
        split = self.eval_split
        if eval_dataset is not None:
            split = VideoSplit.of(eval_dataset, args.video_column, args.label_column)
        if split is None:
            raise ValueError("There is nothing to evaluate on: pass a data set.")
        if n_episodes is None:  # a run without a test, test_episodes=0, says nothing about other evaluations
            n_episodes = args.test_episodes or Protocol.n_episodes
        shots = args.n_shot if n_shot is None else n_shot
        modes = args.inference_modes if inference_modes is None else inference_modes
        results = self._evaluate(split, Protocol(args.n_way, shots, args.n_query, n_episodes, args.seed, modes))
        if checks.is_of_test_classes(split, self.train_split, self.eval_split, args):
            self._tested = results, state_digest(self.model, self.processing_class)
        elif split is not self.eval_split:
            logger.warning("Classes of this data set trained or selected the model, so the card omits the results.")
        return results

    @property
    def results(self) -> EvaluationResults:
        """The results of the last test, for the model card; empty if the model or its settings have changed since."""
        results, tested = self._tested
        is_of_now = not results or tested == state_digest(self.model, self.processing_class)
        return results if is_of_now else EvaluationResults()

    def _evaluate(self, split: VideoSplit, protocol: Protocol) -> EvaluationResults:
        """The results of a split. The features of a frozen tower never change, so they are cached."""
        encoder: VideoEncoder | FeatureStore = self.encoder
        if self.args.trains_on_features:
            name = "train_evaluated" if split.name == "train" else split.name  # train/ holds the draws
            encoder = FeatureStore(self._features_dir() / name, self.encoder)
        return Evaluation(split, protocol).run(encoder)

    def save_model(self, output_dir: str | Path | None = None):
        """Writes a folder for `from_pretrained`, the pipeline and the Hub: weights, code, processor, settings, card.

        The default folder is `best/` in the run's folder. The card holds the results of the last `evaluate`, unless the
        model has changed since. Files that you put into the folder stay.
        """
        with self.writing() if output_dir is None else contextlib.nullcontext():
            if self.accelerator.is_main_process:
                folder = self.output_dir / "best" if output_dir is None else Path(output_dir)
                folder.parent.mkdir(parents=True, exist_ok=True)
                results = self.results
                if self._tested[0] and not results:
                    logger.warning("The model has changed since it was tested, so the card omits the results.")
                self._save_folder(folder, results)
            self.accelerator.wait_for_everyone()

    def _save_run_model(self, name: str):
        self._save_folder(self.output_dir / name, EvaluationResults())

    def _save_folder(self, folder: Path, results: EvaluationResults):
        is_ours = folder.parent == self.output_dir and folder.name in ("best", "last")
        with told_how_to_go_on(folder) if is_ours else contextlib.nullcontext():
            self._write_folder(folder, results, is_ours)

    def _write_folder(self, folder: Path, results: EvaluationResults, is_ours: bool):
        new = folder.with_name(f"{folder.name}.new" if is_ours else f".{folder.name}.new-{os.getpid()}")
        shutil.rmtree(new, ignore_errors=True)
        save_trained_model(self.model, self.processing_class, new, self.args.keep_adapter)
        if folder == (best := self.output_dir / "best") and not self.episodes_done:
            check_same_model(best, new)
        if self.args.keep_adapter:
            copy_adapter(best, new)
        base_classes = self.train_split.class_names if self.train_split is not None else []
        settings = self.args.without_paths() | {"base_classes": base_classes}
        write_text(new / "training_arguments.json", json.dumps(settings, indent=2) + "\n")
        write_model_card(new, self.args, self.best, [result.summary() for result in results], len(base_classes))
        write_checksums(new, leave_out=[CARD])
        put_in_place(new, folder, is_ours)

    def push_to_hub(self, repo_id: str | None = None, commit_message: str = "Upload CLIP-FSAR model") -> str | None:
        """Saves the model and uploads its folder; returns the commit's URL on the main process, None on the others.

        Args:
            repo_id: USER/NAME; by default `args.push_to_hub`. A new repository is private unless `args` say otherwise.
        """
        repo_id = repo_id or self.args.push_to_hub
        if repo_id is None:
            raise ValueError("There is no repository to upload to: pass repo_id='USER/NAME'.")
        self.control = self._call("on_push_begin")
        self.save_model()
        if not self.accelerator.is_main_process:
            return None
        args = self.args
        return push_folder(self.output_dir / "best", repo_id, args.hub_private, args.hub_revision, commit_message)

    def _load_best(self):
        """Loads the best weights into the model. They include the merged adapters, so the adapters are removed."""
        self.accelerator.wait_for_everyone()
        load_weights(self.model, self.output_dir / "best")

    # --- callbacks ----------------------------------------------------------------------------------------------------

    @property
    def log_history(self) -> list[dict]:
        return self.state.log_history

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]):
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> TrainerCallback | None:
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]):
        self.callback_handler.remove_callback(callback)

    def _call(self, event: str, **details) -> TrainerControl:
        positional = list(details.values())
        return getattr(self.callback_handler, event)(self.args, self.state, self.control, *positional)

    # --- closing ------------------------------------------------------------------------------------------------------

    def _say(self, text: str):
        if self.accelerator.is_main_process:
            tqdm.write(text)

    def close(self):
        """Ends the trackers and the process group. Afterwards the trainer cannot train or evaluate.

        Call it at the end of a run with several processes. Otherwise it runs when Python exits.
        """
        if self.accelerator is None:
            return
        # Delete the wrapped model first. If it held the process group last, deleting it would wait for the group's
        # threads and hold Python's lock, which these threads need: now and then two processes never ended.
        self.wrapped_model = self.wrapped_optimizer = self.callback_handler.train_dataloader = None
        accelerator, self.accelerator = self.accelerator, None
        accelerator.free_memory()
        accelerator.end_training()


def _name_of(model) -> str:
    return str(getattr(model, "name_or_path", "") or "")


def _close_if_alive(reference: weakref.ref):
    trainer = reference()
    if trainer is not None:
        trainer.close()


def log_to_terminal():
    """Prints the trainer's log on the terminal of the main process; for programs."""
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)


__all__ = ["EpisodicTrainer", "log_to_terminal", "make_accelerator"]
