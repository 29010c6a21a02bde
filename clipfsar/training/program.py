"""`clipfsar train` and `train/train.py`: builds an `EpisodicTrainer` from options and runs it."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from clipfsar.checkpoints.model_card import SELECTED_ON_TEST
from clipfsar.data.splits import load_video_splits
from clipfsar.data.tables import read_class_texts
from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.results import EvaluationResults
from clipfsar.processes import first_process_decides, machines_first
from clipfsar.training.accelerator import make_accelerator
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.checks import check_classes
from clipfsar.training.preemption import PreemptionCallback, noting_sigterm
from clipfsar.training.run_folder import RESULTS, find_saved_state, run_lock
from clipfsar.training.trainer import EpisodicTrainer, log_to_terminal
from modeling_clipfsar import CLIPFSARModel
from paths_clipfsar import write_text
from processing_clipfsar import CLIPFSARProcessor


def make_trainer(
    args: EpisodicTrainingArguments, trainer_class: type[EpisodicTrainer] = EpisodicTrainer
) -> tuple[EpisodicTrainer, VideoSplit | None]:
    """The trainer for the options, and the test split. `trainer_class` may be your own subclass.

    Raises:
        ValueError: For missing splits, shared classes, or too few classes or videos; before anything is computed.
    """
    args.check_files()
    accelerator = make_accelerator(args)  # its checks read no files, so they come first
    first_process_decides(accelerator, lambda: _check_output_dir(args))
    source, columns = args.dataset, (args.video_column, args.label_column)
    assert source is not None  # `check_files` has raised an error
    datasets = machines_first(accelerator, lambda: load_video_splits(source, *columns))
    if "train" not in datasets:
        raise ValueError(f"{source} has no split 'train'; it has {', '.join(datasets)}.")
    splits = {name: VideoSplit(dataset, *columns, name) for name, dataset in datasets.items()}
    test = splits.get("test") if args.test_episodes else None
    check_classes(splits, args, tests=test is not None)
    model, processor = machines_first(accelerator, lambda: _model_and_processor(args))
    trainer = trainer_class(
        model, args, splits["train"], splits.get(args.select_on), processor, accelerator=accelerator
    )
    trainer.test_split, trainer.classes_are_checked = test, True
    return trainer, test


def _model_and_processor(args: EpisodicTrainingArguments) -> tuple[CLIPFSARModel, CLIPFSARProcessor]:
    set_seed(args.seed)  # for the new layers
    model = CLIPFSARModel.from_pretrained(args.model, for_training=True, dtype=torch.float32, **args.config_overrides())
    processor = CLIPFSARProcessor.from_pretrained(args.model, **args.processor_settings())
    if args.class_texts is not None:
        processor.class_texts = read_class_texts(args.class_texts)
    return model, processor


def _check_output_dir(args: EpisodicTrainingArguments):
    """Raises an error if `output_dir` holds another run, before a model is loaded."""
    output_dir = Path(args.output_dir)
    with run_lock(output_dir):
        find_saved_state(output_dir, args.resume)


def run(args: EpisodicTrainingArguments) -> EvaluationResults:
    """Trains, tests the best model, saves and uploads it. Returns the test results; empty without a test."""
    log_to_terminal()
    transformers_logging.disable_progress_bar()
    trainer, test = make_trainer(args)
    with trainer.writing():
        results = _train_and_test(trainer, test)
    trainer.close()
    return results


class RemoveOldResults(TrainerCallback):
    """Removes the test results of an earlier end of a run when its training goes on."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and state.global_step < state.max_steps:
            (Path(args.output_dir) / RESULTS).unlink(missing_ok=True)


def _train_and_test(trainer: EpisodicTrainer, test: VideoSplit | None) -> EvaluationResults:
    args, results = trainer.args, EvaluationResults()
    with noting_sigterm() as notice:
        trainer.callback_handler.add_callback(RemoveOldResults())
        trainer.callback_handler.add_callback(PreemptionCallback(notice, trainer.accelerator))
        trainer.train(resume_from_checkpoint=args.resume)
    if test is not None:
        results = trainer.evaluate(test)
        if trainer.accelerator.is_main_process:
            tqdm.write("\n".join(f"test {result}\n  {result.anew_in_words()}" for result in results))
            if args.select_on == "test":
                tqdm.write(SELECTED_ON_TEST)
            rows = [asdict(result.summary()) for result in results]
            write_text(trainer.output_dir / RESULTS, json.dumps(rows, indent=2) + "\n")
        trainer.save_model()
    if args.push_to_hub:
        trainer.push_to_hub()
    return results


def main(args: EpisodicTrainingArguments):
    run(args)


__all__ = ["main", "make_trainer", "run"]
