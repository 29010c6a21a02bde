"""One training step at real size: time of its forward and backward pass, and peak memory.

    python benchmarks/training_step.py                          # ViT-B/16, 224 px, 5-way 1-shot, 5 queries per class
    python benchmarks/training_step.py --n_query 1 --repeats 3

Random weights and pixels: neither changes the cost. The last column is the step without the visual tower, on the same
frame features: what the method adds to CLIP. On the CPU memory is the process's peak, on CUDA the allocator's.
"""

import platform
import resource
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers
from transformers import CLIPConfig, HfArgumentParser

from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel


@dataclass
class Arguments:
    n_way: int = field(default=5, metadata={"help": "Classes."})
    n_shot: int = field(default=1, metadata={"help": "Support videos per class."})
    n_query: int = field(default=5, metadata={"help": "Query videos per class."})
    num_frames: int = field(default=8, metadata={"help": "Frames per video."})
    num_base_classes: int = field(default=64, metadata={"help": "Classes of the video-text contrast."})
    gradient_checkpointing: bool = field(default=True, metadata={"help": "Recompute activations in the backward."})
    dtype: str = field(default="float32", metadata={"help": "Arithmetic; others than float32 by autocast."})
    repeats: int = field(default=1, metadata={"help": "Steps; the fastest counts."})


def vit_b16() -> CLIPConfig:
    vision = {"patch_size": 16, "image_size": 224}  # the other sizes of CLIP ViT-B/16 are transformers' defaults
    return CLIPConfig(vision_config=vision, projection_dim=512)


def peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def main(arguments: Arguments):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=vit_b16(), num_frames=arguments.num_frames)).to(device).train()
    model.freeze_text_tower()
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    n_support, n_query = arguments.n_way * arguments.n_shot, arguments.n_way * arguments.n_query
    frames = (arguments.num_frames, 3, 224, 224)
    base_labels = torch.arange(arguments.n_way, device=device)
    episode = {
        "support_labels": base_labels.repeat_interleave(arguments.n_shot)[None],
        "labels": base_labels.repeat_interleave(arguments.n_query)[None],
        "base_class_embeds": torch.randn(arguments.num_base_classes, 512, device=device),
        "class_base_labels": base_labels[None],
    }
    episode |= {"support_base_labels": episode["support_labels"], "query_base_labels": episode["labels"]}
    support, query = torch.randn(1, n_support, *frames, device=device), torch.randn(1, n_query, *frames, device=device)

    def step(**videos) -> tuple[float, float]:
        times = [_now(device)]
        with torch.autocast(device.type, getattr(torch, arguments.dtype), enabled=arguments.dtype != "float32"):
            loss = model(**videos, **episode).loss
        times.append(_now(device))
        loss.backward()
        times.append(_now(device))
        model.zero_grad()
        return times[1] - times[0], times[2] - times[1]

    forward, backward = min(
        (step(support_pixel_values=support, query_pixel_values=query) for _ in range(arguments.repeats)), key=sum
    )
    memory = peak_memory_gib(device)
    embeds = [
        torch.randn(1, n, arguments.num_frames, 512, device=device, requires_grad=True) for n in (n_support, n_query)
    ]
    head = min(sum(step(support_embeds=embeds[0], query_embeds=embeds[1])) for _ in range(5))
    machine = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    print(f"{date.today()}, {machine}, torch {torch.__version__}, transformers {transformers.__version__}")
    print("| episode | forward / s | backward / s | peak memory / GiB | all but the visual tower / s (share) |")
    print("|---|---|---|---|---|")
    checkpointing = ", gradient checkpointing" if arguments.gradient_checkpointing else ""
    print(
        f"| ViT-B/16, 224 px, {arguments.n_way}-way {arguments.n_shot}-shot, {n_query} queries, {arguments.num_frames} "
        f"frames, {arguments.dtype}{checkpointing} | {forward:.1f} | {backward:.1f} | {memory:.1f} | {head:.3f} "
        f"({100 * head / (forward + backward):.2f}%) |"
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main(HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()[0])
