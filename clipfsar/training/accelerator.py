"""The processes, device and precision of a run, and where it logs."""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import MultiProcessAdapter
from accelerate.utils import (
    DataLoaderConfiguration,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    is_tensorboard_available,
)

from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.sharding import make_fsdp_plugin, start_sharding

# Trackers of accelerate that take a run name in addition to a project name.
NAMED_TRACKERS = ("wandb", "trackio")


def make_accelerator(args: EpisodicTrainingArguments) -> Accelerator:
    """The `Accelerator` for the settings of a run.

    Raises:
        ValueError: When the episodes of an update cannot be split evenly among the processes, for fp16 on a CPU, or
            when accelerate's settings ask for DeepSpeed or for an FSDP that is not supported.
    """
    report_to = args.report_to
    if report_to == "auto":
        report_to = "tensorboard" if is_tensorboard_available() else "none"
    plugin = make_fsdp_plugin(args.mixed_precision, args.torch_compile)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # needed for several processes without a GPU
        mixed_precision=args.mixed_precision,
        log_with=None if report_to == "none" else report_to,
        project_config=ProjectConfiguration(args.output_dir, str(Path(args.output_dir) / "tensorboard")),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),  # copy batches while the GPU computes
        dynamo_backend="inductor" if args.torch_compile else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=args.ddp_timeout))],
        fsdp_plugin=plugin,
    )
    if plugin is not None:
        start_sharding(accelerator, plugin)
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


class MainProcessLogger(MultiProcessAdapter):
    """Logs on the main process only, without accelerate's "[RANK 0]" prefix."""

    def process(self, msg, kwargs):
        return msg, {"stacklevel": 2, **kwargs}


def start_trackers(accelerator: Accelerator, args: EpisodicTrainingArguments) -> None:
    """Starts the trackers with all settings that are set."""
    settings = {name: value for name, value in asdict(args).items() if value is not None}
    accelerator.init_trackers(
        args.project,
        config={name: str(value) if isinstance(value, list) else value for name, value in settings.items()},
        init_kwargs={name: {"name": args.run_name or Path(args.output_dir).name} for name in NAMED_TRACKERS},
    )


__all__ = ["NAMED_TRACKERS", "MainProcessLogger", "make_accelerator", "start_trackers"]
