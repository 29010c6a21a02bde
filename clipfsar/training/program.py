"""`clipfsar train` and `train/train.py`: objects out of options, and an `EpisodicTrainer` over them."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from clipfsar.checkpoints.model_card import SELECTED_ON_TEST
from clipfsar.data.splits import check_disjoint_classes, load_video_splits
from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.results import EvaluationResults
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.run_folder import find_saved_state
from clipfsar.training.trainer import (
    EpisodicTrainer,
    check_first_video,
    check_protocol,
    log_to_terminal,
    make_accelerator,
)
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor


def make_trainer(
    args: EpisodicTrainingArguments, trainer_class: type[EpisodicTrainer] = EpisodicTrainer
) -> tuple[EpisodicTrainer, VideoSplit | None]:
    """The trainer that the options ask for, of a class of one's own if need be, and the test split.

    Raises:
        ValueError: When splits, classes or numbers of videos do not do; before anything is computed.
    """
    args.check_files()
    accelerator = make_accelerator(args)  # first of all what is refused without reading anything
    find_saved_state(Path(args.output_dir), args.resume)
    datasets = load_video_splits(args.dataset, args.video_column, args.label_column)
    if "train" not in datasets:
        raise ValueError(f"{args.dataset} has no split 'train'; it has {', '.join(datasets)}.")
    if not args.allow_shared_classes:
        check_disjoint_classes(datasets, args.label_column)
    columns = (args.video_column, args.label_column)
    splits = {name: VideoSplit(dataset, *columns, name) for name, dataset in datasets.items()}
    test = splits.get("test") if args.test_episodes else None
    if args.select_on in splits:
        check_protocol(splits[args.select_on], args.n_way, args.n_shot[:1], args.n_query)
    if test is not None:
        check_protocol(test, args.n_way, args.n_shot, args.n_query)
    set_seed(args.seed)  # of the new layers
    processor = CLIPFSARProcessor.from_pretrained(args.model, **args.processor_settings())
    if test is not None:
        check_first_video(test, processor)
    model = CLIPFSARModel.from_pretrained(args.model, for_training=True, dtype=torch.float32, **args.config_overrides())
    trainer = trainer_class(
        model, args, splits["train"], splits.get(args.select_on), processor, accelerator=accelerator
    )
    return trainer, test


def run(args: EpisodicTrainingArguments) -> EvaluationResults:
    """Trains, tests the best model, saves and uploads it; the results of the test, empty without one."""
    log_to_terminal()
    transformers_logging.disable_progress_bar()
    trainer, test = make_trainer(args)
    trainer.train(resume_from_checkpoint=args.resume)
    results = EvaluationResults()
    if test is not None:
        results = trainer.evaluate(test)
        if trainer.accelerator.is_main_process:
            tqdm.write("\n".join(f"test {result}" for result in results))
            if args.select_on == "test":
                tqdm.write(SELECTED_ON_TEST)
            rows = [asdict(result.summary()) for result in results]
            (trainer.output_dir / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
        trainer.save_model()
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.close()
    return results


def main(args: EpisodicTrainingArguments):
    run(args)


__all__ = ["main", "make_trainer", "run"]
