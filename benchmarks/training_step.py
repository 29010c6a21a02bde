"""One training step compared with bare CLIP on the same frames: time, peak memory, and the cost of the method.

    python -m benchmarks.training_step                    # ViT-B/32, 224 px, 5-way 1-shot, 1 query per class
    python -m benchmarks.training_step --vision vit_b16 --n_query 5 --gradient_checkpointing    # real size, 20 minutes
    python -m benchmarks.training_step --dtype bfloat16 --torch_compile

A step is the training program's work on one episode: forward, backward, Adam. Bare CLIP is `get_image_features` on the
same frames in one call, forward and backward. Both take turns in one process. "The method" is the forward and backward
pass on given frame features: everything except the visual tower. Weights and pixels are random; the cost does not
depend on them. Memory is the peak of the process on a CPU, and of the allocator on CUDA.
"""

import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

import torch
import transformers
from transformers import CLIPConfig

from clipfsar.options import parse_options
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.optimization import make_optimizer
from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel

VISION = {"vit_b32": {}, "vit_b16": {"patch_size": 16}}  # the other sizes are transformers' defaults


@dataclass
class Arguments:
    vision: str = field(default="vit_b32", metadata={"help": "Visual tower.", "choices": list(VISION)})
    n_way: int = field(default=5, metadata={"help": "Classes."})
    n_shot: int = field(default=1, metadata={"help": "Support videos per class."})
    n_query: int = field(default=1, metadata={"help": "Query videos per class."})
    num_frames: int = field(default=8, metadata={"help": "Frames per video."})
    num_base_classes: int = field(default=64, metadata={"help": "Classes of the video-text contrast."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations in the backward."})
    dtype: list[str] = field(
        default_factory=lambda: ["float32"], metadata={"help": "Precisions; those below float32 use autocast."}
    )
    torch_compile: bool = field(default=False, metadata={"help": "Also time the compiled model."})
    rounds: int = field(default=3, metadata={"help": "Turns of each; if more than 1, after one warm-up turn."})


class Step:
    """A model, an episode, and the pieces of a training step on it."""

    def __init__(self, arguments: Arguments, device: torch.device):
        torch.manual_seed(0)
        clip_config = CLIPConfig(vision_config={"image_size": 224} | VISION[arguments.vision], projection_dim=512)
        config = CLIPFSARConfig(clip_config=clip_config, num_frames=arguments.num_frames)
        self.model = CLIPFSARModel(config).to(device).train()
        self.model.freeze_text_tower()
        if arguments.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.runs = self.model  # or the compiled model
        self.optimizer = make_optimizer(self.model, EpisodicTrainingArguments())
        counts = {"support": arguments.n_way * arguments.n_shot, "query": arguments.n_way * arguments.n_query}
        classes = torch.arange(arguments.n_way, device=device)
        self.labels = {
            "support_labels": classes.repeat_interleave(arguments.n_shot)[None],
            "labels": classes.repeat_interleave(arguments.n_query)[None],
            "base_class_embeds": torch.randn(arguments.num_base_classes, 512, device=device),
            "class_base_labels": classes[None],
        }
        self.labels |= {
            "support_base_labels": self.labels["support_labels"],
            "query_base_labels": self.labels["labels"],
        }
        frames, size = arguments.num_frames, config.hidden_size
        self.pixels = {
            f"{role}_pixel_values": torch.randn(1, n, frames, 3, 224, 224, device=device) for role, n in counts.items()
        }
        self.all_frames = torch.cat([pixels.flatten(0, 2) for pixels in self.pixels.values()])
        self.embeds = {
            f"{role}_embeds": torch.randn(1, n, frames, size, device=device, requires_grad=True)
            for role, n in counts.items()
        }
        self.gradient = torch.randn(len(self.all_frames), size, device=device)
        self.dtype = torch.float32

    def _autocast(self):
        device = self.all_frames.device.type
        return torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32)

    def bare_clip(self):
        with self._autocast():
            features = self.model.clip.get_image_features(self.all_frames).pooler_output
        features.backward(self.gradient.to(features.dtype))
        self.optimizer.zero_grad()

    def episode(self):
        with self._autocast():
            loss = self.runs(**self.pixels, **self.labels).loss
        loss.backward()
        self.optimizer.zero_grad()

    def method(self):
        with self._autocast():
            loss = self.model(**self.embeds, **self.labels).loss
        loss.backward()
        self.optimizer.zero_grad()

    def adam(self):
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        start = _now(self.all_frames.device)
        self.optimizer.step()
        self.adam_seconds = _now(self.all_frames.device) - start
        self.optimizer.zero_grad()


def take_turns(work: dict[str, Callable], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round."""
    seconds = {name: [] for name in work}
    for turn in range(rounds + (rounds > 1)):
        for name, function in list(work.items())[:: (-1) ** turn]:  # the order alternates, since caches depend on it
            start = _now(device)
            function()
            if turn or rounds == 1:
                seconds[name].append(_now(device) - start)
    return seconds


def peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def rows_of(arguments: Arguments, dtype: str, step: Step, device: torch.device) -> list[str]:
    step.dtype = getattr(torch, dtype)
    seconds = take_turns({"bare": step.bare_clip, "episode": step.episode}, arguments.rounds, device)
    memory = peak_memory_gib(device)
    method = min(take_turns({"method": step.method}, 5, device)["method"])
    step.adam()  # the first call creates the moments
    step.adam()
    ratio = statistics.median(whole / bare for whole, bare in zip(seconds["episode"], seconds["bare"], strict=True))
    bare, episode = (statistics.median(seconds[name]) for name in ("bare", "episode"))
    cells = [dtype, f"{bare:.2f}", f"{episode:.2f}", f"{ratio:.3f}"]
    cells += [f"{part:.3f} ({100 * part / (episode + step.adam_seconds):.1f}%)" for part in (method, step.adam_seconds)]
    rows = ["| " + " | ".join([*cells, f"{memory:.1f}"]) + " |"]
    if arguments.torch_compile:
        step.runs = torch.compile(step.model)
        start = _now(device)
        step.episode()
        compiling = _now(device) - start
        seconds = take_turns({"bare": step.bare_clip, "episode": step.episode}, arguments.rounds, device)
        ratio = statistics.median(a / b for a, b in zip(seconds["episode"], seconds["bare"], strict=True))
        bare, episode = (statistics.median(seconds[name]) for name in ("bare", "episode"))
        first = f"{dtype}, compiled (first step {compiling:.0f} s)"
        rows.append(f"| {first} | {bare:.2f} | {episode:.2f} | {ratio:.3f} | - | - | {peak_memory_gib(device):.1f} |")
        step.runs = step.model
    return rows


def main(arguments: Arguments):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = Step(arguments, device)
    machine = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    print(f"{date.today()}, {machine}, torch {torch.__version__}, transformers {transformers.__version__}")
    checkpointing = ", gradient checkpointing" if arguments.gradient_checkpointing else ""
    print(
        f"{arguments.vision}, 224 px, {arguments.n_way}-way {arguments.n_shot}-shot, "
        f"{arguments.n_way * arguments.n_query} queries, {arguments.num_frames} frames{checkpointing}; "
        f"medians of {arguments.rounds} round(s), seconds"
    )
    print("| precision | bare CLIP | episode | ratio | the method (share) | Adam (share) | peak memory so far / GiB |")
    print("|---|---|---|---|---|---|---|")
    for dtype in arguments.dtype:
        print("\n".join(rows_of(arguments, dtype, step, device)), flush=True)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
