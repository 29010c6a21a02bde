"""Memory of a training step, computed without a GPU: the step runs on tensors without data, and counts their sizes.

    python -m benchmarks.memory
    python -m benchmarks.memory --backbones b16 --n_query 5 --n_way 10

The sum contains weights, gradients, Adam's two moments, and the peak of all other tensors in the forward and backward
pass. It does not contain CUDA's context and libraries (about 0.5 GiB), workspaces of kernels, and fragmentation.
"""

import weakref
from dataclasses import dataclass, field
from datetime import date

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm
from transformers import CLIPConfig
from transformers.initialization import no_init_weights

from clipfsar.options import parse_options
from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel

# CLIP's ViT checkpoints (Radford et al., 2021, Table 20); the other sizes are transformers' defaults.
BACKBONES = {
    "b32": ("ViT-B/32", {"patch_size": 32}, {}, 512),
    "b16": ("ViT-B/16", {"patch_size": 16}, {}, 512),
    "l14": (
        "ViT-L/14",
        {
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        768,
    ),
}


@dataclass
class Arguments:
    backbones: list[str] = field(default_factory=lambda: list(BACKBONES), metadata={"help": "b32, b16, l14."})
    n_way: int = field(default=5, metadata={"help": "Classes."})
    n_shot: int = field(default=1, metadata={"help": "Support videos per class."})
    n_query: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "Query videos per class."})
    num_frames: int = field(default=8, metadata={"help": "Frames per video."})


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live storages that operations have made: `now`, and their `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, num_bytes: int):
        self.now += num_bytes
        self.peak = max(self.peak, self.now)


def training_memory(
    config: CLIPFSARConfig,
    n_way: int,
    n_shot: int,
    n_query: int,
    bf16: bool,
    checkpointing: bool,
    with_adam: bool = True,
) -> int:
    """Peak bytes of a training step on one episode."""
    with FakeTensorMode(), no_init_weights():
        model = CLIPFSARModel(config).train()
        model.freeze_text_tower()
        if checkpointing:
            model.gradient_checkpointing_enable()
        parameters = list(model.parameters())
        fixed = sum(parameter.nbytes for parameter in parameters)
        if with_adam:
            fixed += 2 * sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
        size = config.clip_config.vision_config.image_size
        live = LiveBytes()
        with live:
            labels = torch.arange(n_way)
            videos = {
                f"{role}_pixel_values": torch.empty(1, n_way * number, config.num_frames, 3, size, size)
                for role, number in (("support", n_shot), ("query", n_query))
            }
            episode = {
                "support_labels": labels.repeat_interleave(n_shot)[None],
                "labels": labels.repeat_interleave(n_query)[None],
                "base_class_embeds": torch.empty(64, config.hidden_size),
                "class_base_labels": labels[None],
            }
            episode |= {"support_base_labels": episode["support_labels"], "query_base_labels": episode["labels"]}
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**videos, **episode).loss
            loss.backward()
        return fixed + live.peak


def main(arguments: Arguments):
    rows = []
    cases = [(name, n_query) for name in arguments.backbones for n_query in arguments.n_query]
    for name, n_query in tqdm(cases, desc="counting", leave=False):
        title, vision, text, projection = BACKBONES[name]
        config = CLIPFSARConfig(
            CLIPConfig(vision_config={"image_size": 224, **vision}, text_config=text, projection_dim=projection),
            num_frames=arguments.num_frames,
        )
        cells = [
            training_memory(config, arguments.n_way, arguments.n_shot, n_query, bf16, checkpointing) / 2**30
            for bf16 in (False, True)
            for checkpointing in (False, True)
        ]
        rows.append(f"| {title} | {n_query} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    print(
        f"{date.today()}, torch {torch.__version__}: GiB, computed; {arguments.n_way}-way {arguments.n_shot}-shot, "
        f"{arguments.num_frames} frames of 224 px, one episode at once, Adam"
    )
    print("| backbone | queries per class | fp32 | fp32, checkpointing | bf16 | bf16, checkpointing |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
