"""What a reproduction will take: steps, memory, disk and hours, from the measured cost of a few videos."""

import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from clipfsar.data.arguments import parse_arguments as parse_prepare_arguments
from clipfsar.data.frame_store import is_missing
from clipfsar.data.official_lists import with_official_lists
from clipfsar.data.older_reader import REPORT
from clipfsar.data.sources import listed_clips
from clipfsar.data.splits import load_video_splits
from clipfsar.presets import PRESETS
from clipfsar.reproduction.arguments import ReproduceArguments
from clipfsar.reproduction.report import in_words
from clipfsar.training.trainable import choose_trainable
from modeling_clipfsar import CLIPFSARModel

_WAYS, _VIDEOS = 2, 4  # measured: an episode of 2 classes with a support and a query video each
MB_PER_VIDEO = {"none": 0, "jpeg": 1, "raw": 14}  # docs/data/frame-stores.md: 72 frames of 256 pixels


@dataclass(frozen=True)
class Cost:
    """Measured on this machine.

    Args:
        train_seconds, encode_seconds: Per video, in training (forward and backward) and in evaluation.
        memory_bytes: Peak of weights, gradients and activations of the measured episode; None if unknown.
        weight_bytes, trained_bytes: All weights, and those that train.
        device: Name of the device.
    """

    train_seconds: float
    encode_seconds: float
    memory_bytes: int | None
    weight_bytes: int
    trained_bytes: int
    device: str


def measure(args: ReproduceArguments) -> Cost:
    """Runs a small episode twice on random frames, and times the second."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = accelerator or torch.device("cpu")
    overrides = args.runs()[0].config_overrides()
    model = CLIPFSARModel.from_pretrained(args.model, for_training=True, dtype=torch.float32, **overrides)
    model.to(device).train()
    choose_trainable(model, args)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    episode = _random_episode(model, device)
    precision = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(args.mixed_precision or "no")

    def train():
        with torch.autocast(device.type, precision, enabled=precision is not None):
            loss = model(**episode).loss
        loss.backward()

    before = _memory(device) or 0
    train_seconds = _second_time(train, device) / _VIDEOS
    peak = _memory(device)
    model.eval()
    with torch.inference_mode():
        encode_seconds = _second_time(lambda: model.get_video_features(episode["query_pixel_values"][0]), device)
    weights = list(model.parameters())
    weight_bytes = sum(weight.nbytes for weight in weights)
    trained_bytes = sum(weight.nbytes for weight in weights if weight.requires_grad)
    # On a CPU the weights were there before; the peak of a device counts them.
    memory = peak if peak is None or device.type == "cuda" else weight_bytes + peak - before
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Cost(train_seconds, encode_seconds / _WAYS, memory, weight_bytes, trained_bytes, name)


def _random_episode(model: CLIPFSARModel, device: torch.device) -> dict[str, torch.Tensor]:
    config = model.config
    size, labels = config.clip_config.vision_config.image_size, torch.arange(_WAYS, device=device)[None]
    videos = torch.randn(1, _WAYS, config.num_frames, 3, size, size, device=device)
    texts = torch.randn(_WAYS, config.hidden_size, device=device)
    return {
        "support_pixel_values": videos,
        "query_pixel_values": videos.clone(),
        "support_labels": labels,
        "labels": labels,
        "base_class_embeds": texts,
        "class_base_labels": labels,
        "support_base_labels": labels,
        "query_base_labels": labels,
    }


def _second_time(function: Callable[[], object], device: torch.device) -> float:
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if importlib.util.find_spec("resource") is None:  # Windows
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def split_sizes(args: ReproduceArguments) -> dict[str, int]:
    """Videos per split: of the prepared data if there are such, otherwise the published numbers."""
    if (Path(args.data) / REPORT).is_file() or args.dataset is not None:
        return {split: len(dataset) for split, dataset in load_video_splits(args.data).items()}
    return {split: videos or 0 for split, (_, videos) in PRESETS[args.benchmark or ""].sizes.items()}


def count_videos(args: ReproduceArguments) -> list[str]:
    """Says how many of the listed videos exist, and which classes have none. Reads no video; prepared data need none.

    Classes that nothing names are a note on standard error.
    """
    if (Path(args.data) / REPORT).is_file() or args.dataset is not None:
        return []
    try:
        listed = listed_clips(with_official_lists(parse_prepare_arguments(args.prepare_command()))) or {}
    except (ConnectionError, FileNotFoundError) as error:  # no lists, or no folder of videos
        return [f"Videos not counted: {error}"]
    clips = [clip for split in listed.values() for clip in split]
    found = Counter(clip.class_name for clip in clips if not is_missing({"path": clip.path}))
    absent = [repr(name) for name in dict.fromkeys(clip.class_name for clip in clips) if not found[name]]
    lines = [f"{found.total():,} of {len(clips):,} listed files found below {args.video_root}; they are not read."]
    if absent:
        shown = f"{', '.join(absent[:10])}{', ...' if len(absent) > 10 else ''}"
        lines.append(f"Classes without a file: {len(absent)} ({shown})")
    return lines


def plan(args: ReproduceArguments, cost: Cost | None = None) -> list[str]:
    """The steps of a reproduction with hours, memory and disk, as lines of text."""
    cost = cost or measure(args)
    sizes, runs = split_sizes(args), args.runs()
    num_videos = sum(sizes.values())
    per_episode = args.n_way * (args.train_n_shot + args.train_n_query)
    num_validations = -(-args.episodes // args.eval_every)
    training = args.episodes * per_episode * cost.train_seconds / 3600
    validation = num_validations * sizes.get(args.select_on, 0) * cost.encode_seconds / 3600
    test = sizes.get("test", 0) * cost.encode_seconds / 3600
    store_gb = num_videos * MB_PER_VIDEO[args.frame_store] / 1000
    # best, last, the state with its weights and Adam's two moments; the state twice while it is replaced
    run_gb = (4 * cost.weight_bytes + 4 * cost.trained_bytes) / 1e9
    lines = [
        f"Plan for {args.benchmark} with {args.model} on {cost.device}, one process, in {args.output_dir}:",
        f"  prepare   {num_videos:,} videos; the time for reading them is not measured",
    ]
    for run in runs:
        lines.append(
            f"  seed {run.seed}, selected on {run.select_on}: train {args.episodes:,} episodes {in_words(training)}, "
            f"{num_validations} validations {in_words(validation)}, test {in_words(test)}"
        )
    lines.append(
        f"  in all    {in_words(len(runs) * (training + validation + test))}; several GPUs divide the training"
    )
    if cost.memory_bytes is not None:
        activations = max(0, cost.memory_bytes - cost.weight_bytes - cost.trained_bytes) * per_episode / _VIDEOS
        memory = (cost.weight_bytes + 3 * cost.trained_bytes + activations) / 2**30
        word = "at least" if cost.device == "cpu" else "about"  # of a CPU's process only the peak so far is known
        lines.append(f"  memory    {word} {memory:.1f} GiB for {per_episode} videos at once; see docs/train/memory.md")
    lines.append(f"  disk      {store_gb:.0f} GB frame store ({args.frame_store}), {run_gb:.1f} GB per run")
    lines.append(
        f"Measured: {1000 * cost.train_seconds:.0f} ms to train on a video of {args.num_frames} frames, "
        f"{1000 * cost.encode_seconds:.0f} ms to encode one; random frames, without reading. An episode has "
        f"{per_episode} videos."
    )
    return lines


__all__ = ["Cost", "count_videos", "measure", "plan", "split_sizes"]
