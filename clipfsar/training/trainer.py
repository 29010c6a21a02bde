"""Trains CLIP-FSAR by episodes.

    accelerate launch train/train.py --dataset DATA --model openai/clip-vit-base-patch16 --output_dir runs/mine

Everything random (episodes, frames, crops, dropout) is a pure function of the seed and the episode's number. So the
loss curve does not depend on the number of processes or workers, and a run that was killed goes on exactly with
--resume. In --output_dir: `best/` and `last/` (folders for `from_pretrained` and the Hub), `training_log.jsonl`,
`training.png`, `results.json`, and `state/`, which --resume reads.
"""

import json
import logging
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DataLoaderConfiguration, is_tensorboard_available, set_seed
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from clipfsar.checkpoints.model_card import SELECTED_ON_TEST, public_name, write_model_card
from clipfsar.checkpoints.push_to_hub import push_folder
from clipfsar.data.splits import check_disjoint_classes, load_video_splits
from clipfsar.evaluation.encoding import encode_classes, encode_videos
from clipfsar.evaluation.episodes import EpisodicAccuracy, evaluate
from clipfsar.evaluation.feature_store import stored_features
from clipfsar.plots import plot_training
from clipfsar.presets import learning_rate_at
from clipfsar.training.arguments import TrainingArguments, parse_arguments
from clipfsar.training.frozen_features import ROW, FeatureCollator, encode_draws, row_dataset
from clipfsar.training.run_folder import TrainingLog, complete_folder, replace_folder, restore_folder
from clipfsar.training.trainable import ADAPTER_FOLDER, choose_trainable, save_model, trainable_report
from episodes_clipfsar import EpisodeCollator, EpisodeDataset, EpisodeSampler, read_labels
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

logger = get_logger(__name__)


def optimizer_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Trained parameters, with and without decay.

    The official program leaves out of the decay what has "bn" or "norm" in *its* names: batch norms and the norm of
    the temporal transformer. CLIP's own LayerNorms are called `ln_*` there and are decayed, so ours are, too.
    """
    with_decay, without_decay = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = "bn" in name or (name.startswith("temporal_transformer.") and ".norm." in name)
            (without_decay if is_exempt else with_decay).append(parameter)
    return [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without_decay, "weight_decay": 0.0},
    ]


def make_optimizer(model: torch.nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer]
    groups = optimizer_groups(model, args.weight_decay)
    return optimizer_class(groups, lr=args.warmup_learning_rate, fused=True)


class Run:
    """One training run: what is trained, on what, and how far it has come."""

    def __init__(self, args: TrainingArguments):
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.accelerator = self._make_accelerator()
        self.is_main_process = self.accelerator.is_main_process
        saved_state = self._find_saved_state()
        progress = json.loads((saved_state / "progress.json").read_text()) if saved_state else {}
        self.episodes_done = progress.get("episodes_done", 0)
        self.best = progress.get("best")  # {"accuracy", "interval", "episode"} of the validation, or None

        self.splits = load_video_splits(args.dataset, args.video_column, args.label_column)
        self._check_splits()
        set_seed(args.seed)  # the new layers
        self.processor = CLIPFSARProcessor.from_pretrained(args.model, **args.processor_settings())
        self._check_first_videos()
        self.model = CLIPFSARModel.from_pretrained(args.model, dtype=torch.float32, **args.config_overrides())
        choose_trainable(self.model, args)
        if args.gradient_checkpointing:
            # the newer name where there is one: the older goes with transformers 6
            enable = getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)
            enable()
        self.model.to(self.accelerator.device)
        if self.model.config.clip_config.model_type == "clip_resnet":
            self.model.to(memory_format=torch.channels_last)  # an eighth less time for RN50 on a CPU

        train_split, video_column = self.splits["train"], args.video_column
        if args.trains_on_features:
            train_split, video_column = row_dataset(train_split, args.label_column), ROW
        self.episodes = EpisodeDataset(
            train_split,
            args.n_way,
            args.train_n_shot,
            args.train_n_query,
            args.episodes,
            args.seed,
            video_column,
            args.label_column,
        )
        # The text tower is frozen, so the class texts are encoded here and never again.
        self.base_class_embeds = encode_classes(self.model, self.processor, self.episodes.class_names)
        self.wrapped_model, self.optimizer, self.loader = self.accelerator.prepare(
            self.model, make_optimizer(self.model, args), self._make_loader()
        )
        if saved_state:
            self.accelerator.load_state(str(saved_state))
            # Checkpoints lie between updates, but accelerate's count of forwards may stand in the middle of one where
            # the number of processes or of episodes per forward is another now.
            self.accelerator.step = 0
            logger.info(f"Resuming after episode {self.episodes_done} of {args.episodes}.")
        if self.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        self.log = TrainingLog(self.output_dir / "training_log.jsonl", self.episodes_done, self.is_main_process)
        self._start_trackers()

    def _make_accelerator(self) -> Accelerator:
        args = self.args
        report_to = args.report_to
        if report_to == "auto":
            report_to = "tensorboard" if is_tensorboard_available() else "none"
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # also several processes without a GPU
            mixed_precision=args.mixed_precision,
            log_with=None if report_to == "none" else report_to,
            project_dir=args.output_dir,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),  # a batch crosses while the GPU computes
            dynamo_backend="inductor" if args.torch_compile else None,
        )
        per_step = accelerator.num_processes * args.episodes_per_forward
        if args.episodes_per_update % per_step:
            raise ValueError(
                f"--episodes_per_update {args.episodes_per_update} cannot be shared among {accelerator.num_processes} "
                f"process(es) running {args.episodes_per_forward} episode(s) at once: make it a multiple of {per_step}."
            )
        accelerator.gradient_accumulation_steps = args.episodes_per_update // per_step
        if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError(
                "fp16 needs a GPU: on a CPU it would silently compute in float32. Use --mixed_precision bf16 or no."
            )
        return accelerator

    def _start_trackers(self):
        """Last of all preparations: a run that is refused leaves nothing behind."""
        if self.accelerator.log_with:
            settings = {name: value for name, value in asdict(self.args).items() if value is not None}
            self.accelerator.init_trackers(
                "tensorboard", config={k: str(v) if isinstance(v, list) else v for k, v in settings.items()}
            )

    def _find_saved_state(self) -> Path | None:
        if self.is_main_process:
            for name in ("best", "last", "state"):
                restore_folder(self.output_dir / name)
        self.accelerator.wait_for_everyone()
        saved_state = complete_folder(self.output_dir / "state")
        if saved_state and not self.args.resume:
            raise ValueError(
                f"{self.output_dir} holds a run already: --resume goes on with it, a new run needs another "
                "--output_dir."
            )
        if saved_state:
            self.args.check_same_run(json.loads((saved_state / "progress.json").read_text())["arguments"])
        elif self.args.resume:
            logger.warning(f"--resume: there is no checkpoint in {self.output_dir} yet; starting from the beginning.")
        return saved_state

    def _check_splits(self):
        """Everything that would otherwise fail after hours: splits, classes, numbers of videos."""
        args = self.args
        if "train" not in self.splits:
            raise ValueError(f"{args.dataset} has no split 'train'; it has {', '.join(self.splits)}.")
        if not args.allow_shared_classes:
            check_disjoint_classes(self.splits, args.label_column)
        for split, shots in ((args.select_on, args.n_shot[:1]), ("test", args.n_shot if args.test_episodes else [])):
            if split not in self.splits:
                continue
            labels, class_names = read_labels(self.splits[split], args.label_column)
            for n_shot in shots:
                try:
                    EpisodeSampler(labels, args.n_way, n_shot, args.n_query, args.seed, class_names)
                except ValueError as error:
                    raise ValueError(
                        f"Split {split!r} cannot be used {args.n_way}-way {n_shot}-shot: {error}"
                    ) from None
        if args.select_on not in self.splits:
            logger.warning(f"There is no split {args.select_on!r}: the last model is kept as the best one, unselected.")
        if args.select_on == "test":
            logger.warning(SELECTED_ON_TEST)

    def _check_first_videos(self):
        """One video of each split through the processor: a moved folder or a frame store of another size shows here."""
        for split, dataset in self.splits.items():
            if split in ("train", self.args.select_on, "test"):
                video = dataset[0][self.args.video_column]
                self.processor.process_videos([video], training=split == "train", generator=torch.Generator())

    def _make_loader(self) -> DataLoader:
        """The episodes that are still to come; those before a resumed checkpoint are not even read."""
        args = self.args
        to_come = range(self.episodes_done, args.episodes)
        if args.trains_on_features and len(to_come):
            collator = FeatureCollator(self._encode_training_videos())
            self.finish_batch = dict  # features are model inputs already
        else:
            collator = EpisodeCollator(self.processor, training=True, only_read=args.preprocess_on_device)
            self.finish_batch = collator.finish
        return DataLoader(
            Subset(self.episodes, to_come) if len(to_come) else self.episodes,
            batch_size=args.episodes_per_forward,
            collate_fn=collator,
            num_workers=0 if args.trains_on_features else args.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _features_dir(self) -> Path:
        return Path(self.args.features_dir or self.output_dir / "features")

    def _encode_training_videos(self) -> torch.Tensor:
        args = self.args
        return encode_draws(
            self._features_dir() / "train",
            args.feature_draws,
            args.seed,
            self.model,
            self.processor,
            self.splits["train"],
            self.accelerator,
            args.video_column,
            batch_size=args.eval_batch_size,
            num_workers=args.num_workers,
        )

    def train(self):
        args, accelerator = self.args, self.accelerator
        logger.info(
            f"{args.episodes} episodes of {len(self.episodes.class_names)} base classes, {accelerator.num_processes} "
            f"process(es) on {accelerator.device.type}, {accelerator.mixed_precision} mixed precision, updates of "
            f"{accelerator.gradient_accumulation_steps} x {args.episodes_per_forward} episode(s) per process."
        )
        logger.info(trainable_report(self.model))
        progress = tqdm(
            total=args.episodes,
            initial=self.episodes_done,
            desc="training",
            unit="episode",
            disable=not self.is_main_process,
        )
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        per_forward = args.episodes_per_forward
        next_episode = self.episodes_done + accelerator.process_index * per_forward  # that this process gets next
        next_log = self.episodes_done
        recorded = []  # left on the device until the next line of the log, so as not to wait for it before
        self.wrapped_model.train()
        for batch in self.loader if self.episodes_done < args.episodes else ():
            with accelerator.accumulate(self.wrapped_model):
                # Dropout, too, depends on nothing but the seed and the episode.
                torch.manual_seed(_mix_seeds(args.seed, next_episode))
                batch = self.finish_batch(batch)
                output = self.wrapped_model(**batch, base_class_embeds=self.base_class_embeds)
                accelerator.backward(output.loss)
                if accelerator.sync_gradients:
                    last_of_update = self.episodes_done + args.episodes_per_update - 1
                    learning_rate = self._set_learning_rate(last_of_update)
                    if args.max_grad_norm:
                        accelerator.clip_grad_norm_(trained, args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            recorded.append(_record(output, batch["labels"]))
            next_episode += per_forward * accelerator.num_processes
            if not accelerator.sync_gradients:
                continue

            self.episodes_done += args.episodes_per_update
            progress.update(args.episodes_per_update)
            is_last = self.episodes_done >= args.episodes
            is_check = is_last or self.episodes_done % args.eval_every == 0
            if is_check or self.episodes_done >= next_log + args.log_every:
                self._log_training(recorded, learning_rate, progress)
                recorded, next_log = [], self.episodes_done
            if is_check:
                self._validate_and_save()
        progress.close()

    def _set_learning_rate(self, episode: int) -> float:
        args = self.args
        learning_rate = learning_rate_at(
            episode, args.learning_rate, args.warmup_learning_rate, args.warmup_episodes, tuple(args.decay_episodes)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _log_training(self, recorded: list[torch.Tensor], learning_rate: float, progress: tqdm):
        """Means since the last line, over all processes."""
        values = self.accelerator.gather(torch.stack(recorded)).mean(0).tolist()
        loss, few_shot_loss, video_text_loss, accuracy = values
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise FloatingPointError(
                f"The loss is {loss} at episode {self.episodes_done}: the last checkpoint is from "
                "before. --resume with --mixed_precision bf16 or no instead of fp16, or begin anew in another "
                "--output_dir with a lower --learning_rate or --max_grad_norm 1."
            )
        values = {
            "loss": loss,
            "few_shot_loss": few_shot_loss,
            "video_text_loss": video_text_loss,
            "accuracy": 100 * accuracy,
            "learning_rate": learning_rate,
        }
        self.log.write(self.episodes_done, "train", **values)
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=self.episodes_done)
        progress.set_postfix(loss=f"{loss:.3f}", accuracy=f"{100 * accuracy:.1f}%", refresh=False)

    def _validate_and_save(self):
        """Validation, then `best/` if it is the best so far, `last/`, and the state: in this order, so that a state
        is never ahead of the models it speaks of."""
        if self.args.select_on in self.splits:
            results = self._evaluate(self.args.select_on, self.args.n_shot[:1], self.args.eval_episodes, ["few_shot"])
            if self.is_main_process:
                self._take_validation(results[0])
        elif self.is_main_process:
            self._save_model("best")
        if self.is_main_process:
            self._save_model("last")
            plot_training(self.log.records, self.output_dir / "training.png")
        self._save_state()

    def _take_validation(self, result: EpisodicAccuracy):
        """Writes a validation down and keeps the model if it is the best so far."""
        split = self.args.select_on
        self.log.write(self.episodes_done, "validation", accuracy=result.accuracy, interval=result.interval)
        self.accelerator.log({"validation/accuracy": result.accuracy}, step=self.episodes_done)
        tqdm.write(f"episode {self.episodes_done}: {split} {result}")
        if self.best is None or result.accuracy > self.best["accuracy"]:
            self.best = {
                "accuracy": result.accuracy,
                "interval": result.interval,
                "episode": self.episodes_done,
                "n_episodes": result.n_episodes,
            }
            self._save_model("best")

    def _save_state(self):
        """What --resume needs, complete at every moment; all processes take part."""
        new = self.output_dir / "state.new"
        if self.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(new))
        self.accelerator.wait_for_everyone()
        if self.is_main_process:
            progress = {"episodes_done": self.episodes_done, "best": self.best, "arguments": asdict(self.args)}
            (new / "progress.json").write_text(json.dumps(progress, indent=2) + "\n")
            replace_folder(new, self.output_dir / "state")
        self.accelerator.wait_for_everyone()

    def _evaluate(self, split: str, shots: list[int], n_episodes: int, modes: list[str]) -> list[EpisodicAccuracy]:
        """Results on the main process; the others help to encode the videos and return nothing."""
        args, dataset = self.args, self.splits[split]
        # A frozen tower gives the same features at every validation.
        is_frozen = args.trains_on_features
        encode = partial(stored_features, self._features_dir() / split) if is_frozen else encode_videos
        video_embeds = encode(
            self.model,
            self.processor,
            dataset,
            self.accelerator,
            args.video_column,
            batch_size=args.eval_batch_size,
            num_workers=args.num_workers,
            description=f"encoding {split} videos",
        )
        if not self.is_main_process:
            return []
        labels, class_names = read_labels(dataset, args.label_column)
        class_embeds = encode_classes(self.model, self.processor, class_names)
        results = []
        for n_shot in shots:
            results += evaluate(
                self.model,
                video_embeds,
                class_embeds,
                labels,
                args.n_way,
                n_shot,
                args.n_query,
                n_episodes,
                args.seed,
                modes,
                class_names,
            )
        return results

    def _save_model(self, name: str, results: list[EpisodicAccuracy] = ()):
        """A complete folder for `from_pretrained` and the Hub: weights, code, processor, settings, model card."""
        folder, new = self.output_dir / name, self.output_dir / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        save_model(self.model, self.processor, new, self.args.keep_adapter)
        if (folder / ADAPTER_FOLDER).is_dir() and results:  # the same model again, now with the test's numbers
            shutil.copytree(folder / ADAPTER_FOLDER, new / ADAPTER_FOLDER, dirs_exist_ok=True)
        settings = asdict(self.args)
        for option in (
            "dataset",
            "model",
            "output_dir",
            "features_dir",
        ):  # the folder travels: no paths of this machine
            settings[option] = settings[option] and public_name(settings[option])
        (new / "training_arguments.json").write_text(json.dumps(settings, indent=2) + "\n")
        write_model_card(new, self.args, self.best, list(results), len(self.episodes.class_names))
        replace_folder(new, folder)

    def test(self) -> list[EpisodicAccuracy]:
        """The best model on the test split; results go to `results.json` and the model card."""
        args = self.args
        if "test" not in self.splits or not args.test_episodes:
            return []
        best = CLIPFSARModel.from_pretrained(self.output_dir / "best", dtype=torch.float32)
        self.model = best.to(self.accelerator.device)
        results = self._evaluate("test", args.n_shot, args.test_episodes, args.inference_modes)
        if self.is_main_process:
            tqdm.write("\n".join(f"test {result}" for result in results))
            if args.select_on == "test":
                tqdm.write(SELECTED_ON_TEST)
            rows = [asdict(result) for result in results]
            (self.output_dir / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
            self._save_model("best", results)
        return results


def _record(output, labels: torch.Tensor) -> torch.Tensor:
    """Losses and accuracy of a forward pass, (4,), on its device."""
    accuracy = (output.logits.argmax(-1) == labels).float().mean()
    return torch.stack([output.loss, output.few_shot_loss, output.video_text_loss, accuracy]).detach()


def _mix_seeds(seed: int, episode: int) -> int:
    """A seed for PyTorch out of two numbers, far apart for neighbours."""
    return (seed * 0x9E3779B97F4A7C15 + episode * 0xBF58476D1CE4E5B9 + 1) % 2**63


def main(args: TrainingArguments) -> list[EpisodicAccuracy]:
    if args.print_config:
        print(json.dumps(asdict(args), indent=2))
        return []
    if args.dataset is None:
        raise ValueError("--dataset is missing: give a folder with videos or the id of a data set on the Hub.")
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    run = Run(args)
    run.train()
    results = run.test()
    if args.push_to_hub and run.is_main_process:
        push_folder(run.output_dir / "best", args.push_to_hub, args.hub_private, args.hub_revision)
    # The wrapped model goes first: were it the last to hold the process group, its end would wait for the group's
    # threads while holding Python's lock, which these want, too. Now and then two processes never ended.
    accelerator = run.accelerator
    del run
    accelerator.free_memory()
    accelerator.end_training()
    return results


def run():
    """`main` for the command line of this process."""
    try:
        main(parse_arguments())
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command with --resume goes on from the last checkpoint.")
