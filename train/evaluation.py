"""Few-shot accuracy of a model on a split: every video is encoded once, episodes then only align features.

    python train/evaluation.py --model runs/demo/best --dataset synthetic_actions --split test --n_shot 1 5

Neither the frame features of a video nor its states as a query depend on the episode, nor does a 1-shot prototype: a
query passes the temporal transformer without a text, and a support video with that of its own class.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from configuration_clipfsar import INFERENCE_MODES
from episodes_clipfsar import EpisodeSampler, read_labels
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor
from train.video_dataset import load_video_splits


@dataclass(frozen=True)
class EpisodicAccuracy:
    """Mean accuracy over episodes, in percent, with the half width of its 95% interval.

    The interval says how far the mean over *these videos and classes* may be off because episodes are a sample; it
    says nothing of other videos or classes.
    """

    inference_mode: str
    n_way: int
    n_shot: int
    n_query: int
    n_episodes: int
    accuracy: float
    interval: float

    def __str__(self) -> str:
        return (
            f"{self.n_way}-way {self.n_shot}-shot {self.inference_mode}: {self.accuracy:.1f} ± {self.interval:.1f}% "
            f"({self.n_episodes} episodes)"
        )


class _Videos(TorchDataset):
    """One video per item, its frames ready for the visual tower, (T, C, H, W)."""

    def __init__(self, dataset, processor, video_column: str):
        self.dataset, self.processor, self.video_column = dataset, processor, video_column

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, row: int):
        return self.processor.process_videos([self.dataset[row][self.video_column]])[0]


@torch.no_grad()
def encode_videos(
    model: CLIPFSARModel,
    processor,
    dataset,
    accelerator: Accelerator,
    video_column: str = "video",
    batch_size: int = 16,
    num_workers: int = 0,
    description: str = "encoding videos",
) -> torch.Tensor:
    """Frame features of every video of `dataset`, (V, T, D), float32 on the CPU, whatever the number of processes.

    Args:
        model: Not wrapped (of `accelerator.unwrap_model`); set to evaluation mode here and restored after.
        batch_size: Videos per forward of one process.
        num_workers: Processes that decode, per process.
    """
    was_training = model.training
    model.eval()
    # Every process takes every n-th video, and some the first ones again so that all have the same number of them.
    num_processes = accelerator.num_processes
    per_process = math.ceil(len(dataset) / num_processes)
    rows = [(accelerator.process_index + step * num_processes) % len(dataset) for step in range(per_process)]
    videos = Subset(_Videos(dataset, processor, video_column), rows)
    progress = tqdm(
        total=len(rows), desc=description, unit="video", leave=False, disable=not accelerator.is_main_process
    )
    embeds = []
    for pixel_values in DataLoader(videos, batch_size=batch_size, num_workers=num_workers):
        with accelerator.autocast():
            embeds.append(model.get_video_features(pixel_values.to(accelerator.device)).float())
        progress.update(len(pixel_values))
    progress.close()
    model.train(was_training)
    gathered = rearrange(accelerator.gather(torch.cat(embeds)), "(p v) t d -> (v p) t d", v=per_process)
    return gathered[: len(dataset)].cpu()


@torch.no_grad()
def encode_classes(model: CLIPFSARModel, processor, class_names: Sequence[str]) -> torch.Tensor:
    """Text features (C, D) of class names, float32, on the model's device."""
    tokens = processor.tokenize_classes(list(class_names))
    was_training = model.training
    model.eval()
    embeds = model.get_class_features(**{name: ids.to(model.device) for name, ids in tokens.items()})
    model.train(was_training)
    return embeds.float()


@torch.no_grad()
def episode_accuracies(
    model: CLIPFSARModel,
    video_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    labels: np.ndarray,
    sampler: EpisodeSampler,
    n_episodes: int,
    inference_modes: Sequence[str] = ("few_shot",),
    episodes_per_batch: int = 128,
) -> dict[str, torch.Tensor]:
    """Share of right answers in each of the episodes 0..n_episodes-1 of `sampler`, per inference mode.

    Equal, to round-off, to `model.forward` on the pixels of each episode.

    Args:
        video_embeds: (V, T, D), of `encode_videos`.
        class_embeds: (C, D), of `encode_classes`.
        labels: (V,), class of each video, 0..C-1.

    Returns:
        For each mode (n_episodes,), float64, in 0..1.
    """
    was_training = model.training
    model.eval()
    device = model.device
    video_embeds, class_embeds = video_embeds.to(device), class_embeds.to(device)
    labels = torch.as_tensor(labels, device=device)
    query_states = model.get_query_states(video_embeds)
    text_logits = model.get_text_logits(video_embeds, class_embeds)  # (V, C)
    if sampler.n_shot == 1:
        one = torch.zeros(len(labels), 1, dtype=torch.long, device=device)
        video_prototypes = model.get_prototypes(video_embeds.unsqueeze(1), one, class_embeds[labels].unsqueeze(1))[:, 0]

    support_labels = torch.arange(sampler.n_way, device=device).repeat_interleave(sampler.n_shot)
    query_labels = torch.arange(sampler.n_way, device=device).repeat_interleave(sampler.n_query)
    correct = {mode: [] for mode in inference_modes}
    for start in range(0, n_episodes, episodes_per_batch):
        episodes = [sampler.sample(index) for index in range(start, min(start + episodes_per_batch, n_episodes))]
        classes, support, query = (
            torch.as_tensor(np.stack(rows), device=device)
            for rows in zip(*((e.class_ids, e.support_rows, e.query_rows) for e in episodes), strict=True)
        )
        support, query = rearrange(support, "b n k -> b (n k)"), rearrange(query, "b n q -> b (n q)")
        if sampler.n_shot == 1:
            prototypes = video_prototypes[support]
        else:
            prototypes = model.get_prototypes(
                video_embeds[support], support_labels.expand(len(episodes), -1), class_embeds[classes]
            )
        distances = model.get_distances(query_states[query], prototypes)
        texts = text_logits[query.unsqueeze(-1), classes.unsqueeze(1)]  # (B, Q, N)
        for mode in inference_modes:
            predicted = model.get_logits(distances, texts, mode).argmax(-1)
            correct[mode].append((predicted == query_labels).double().mean(-1).cpu())
    model.train(was_training)
    return {mode: torch.cat(accuracies) for mode, accuracies in correct.items()}


def evaluate(
    model: CLIPFSARModel,
    video_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    labels: np.ndarray,
    n_way: int = 5,
    n_shot: int = 1,
    n_query: int = 1,
    n_episodes: int = 10_000,
    seed: int = 0,
    inference_modes: Sequence[str] = ("few_shot",),
    class_names: Sequence[str] | None = None,
) -> list[EpisodicAccuracy]:
    """Mean accuracy and 95% interval over seeded episodes, one result per inference mode; all on the same episodes."""
    sampler = EpisodeSampler(labels, n_way, n_shot, n_query, seed, class_names)
    accuracies = episode_accuracies(model, video_embeds, class_embeds, labels, sampler, n_episodes, inference_modes)
    return [
        EpisodicAccuracy(
            mode,
            n_way,
            n_shot,
            n_query,
            n_episodes,
            accuracy=100 * values.mean().item(),
            interval=100 * 1.96 * values.std().item() / n_episodes**0.5 if n_episodes > 1 else float("nan"),
        )
        for mode, values in accuracies.items()
    ]


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Folder or Hub id of a CLIP-FSAR model (or of a plain CLIP, untrained)."})
    dataset: str = field(metadata={"help": "Folder or Hub id of a video data set."})
    split: str = field(default="test", metadata={"help": "Split to draw episodes from."})
    n_way: int = field(default=5, metadata={"help": "Classes per episode."})
    n_shot: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "Support videos per class; several."})
    n_query: int = field(default=1, metadata={"help": "Query videos per class."})
    n_episodes: int = field(default=10_000, metadata={"help": "Episodes per number of shots."})
    seed: int = field(default=0, metadata={"help": "Seed of the episodes."})
    inference_modes: list[str] = field(
        default_factory=lambda: list(INFERENCE_MODES), metadata={"help": f"Any of {', '.join(INFERENCE_MODES)}."}
    )
    output_json: str | None = field(default=None, metadata={"help": "Write the results here, too."})
    batch_size: int = field(default=16, metadata={"help": "Videos per forward."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode videos."})
    video_column: str = field(default="video", metadata={"help": "Column with the videos."})
    label_column: str = field(default="label", metadata={"help": "Column with the classes."})


def main(arguments: Arguments) -> list[EpisodicAccuracy]:
    unknown = sorted(set(arguments.inference_modes) - set(INFERENCE_MODES))
    if unknown:
        raise ValueError(f"--inference_modes {' '.join(unknown)}: there are {', '.join(INFERENCE_MODES)}.")
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # also several processes without a GPU
    splits = load_video_splits(arguments.dataset, arguments.video_column, arguments.label_column)
    if arguments.split not in splits:
        raise ValueError(f"{arguments.dataset} has no split {arguments.split!r}; it has {', '.join(splits)}.")
    dataset = splits[arguments.split]
    labels, class_names = read_labels(dataset, arguments.label_column)
    for n_shot in arguments.n_shot:  # too few videos are found out before the encoding
        EpisodeSampler(labels, arguments.n_way, n_shot, arguments.n_query, class_names=class_names)

    model = CLIPFSARModel.from_pretrained(arguments.model, dtype=torch.float32).to(accelerator.device)
    processor = CLIPFSARProcessor.from_pretrained(arguments.model)
    video_embeds = encode_videos(
        model,
        processor,
        dataset,
        accelerator,
        arguments.video_column,
        arguments.batch_size,
        arguments.num_workers,
        description=f"encoding {arguments.split} videos",
    )
    results = []
    if accelerator.is_main_process:
        class_embeds = encode_classes(model, processor, class_names)
        for n_shot in arguments.n_shot:
            results += evaluate(
                model,
                video_embeds,
                class_embeds,
                labels,
                arguments.n_way,
                n_shot,
                arguments.n_query,
                arguments.n_episodes,
                arguments.seed,
                arguments.inference_modes,
                class_names,
            )
        print(f"{arguments.model} on {arguments.dataset}, split {arguments.split}, {len(dataset)} videos:")
        print("\n".join(f"  {result}" for result in results))
        if arguments.output_json:
            Path(arguments.output_json).write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()[0])
