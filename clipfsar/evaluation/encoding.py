"""Frame features of a split and text features of its classes."""

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from einops import rearrange

from clipfsar.evaluation.feature_store import encode_batches
from modeling_clipfsar import CLIPFSARModel


def encode_videos(
    model: CLIPFSARModel, processor, dataset, accelerator: Accelerator, video_column: str = "video", **encoding
) -> torch.Tensor:
    """Frame features of every video of `dataset`, (V, T, D), float32 on the CPU, whatever the number of processes.

    Args:
        model: Not wrapped (of `accelerator.unwrap_model`); set to evaluation mode here and restored after.
        encoding: For `encode_batches`: `batch_size`, `num_workers`, `description`.
    """
    # Every process takes every n-th video, and some the first ones again so that all have the same number of them.
    num_processes = accelerator.num_processes
    per_process = math.ceil(len(dataset) / num_processes)
    rows = [(accelerator.process_index + step * num_processes) % len(dataset) for step in range(per_process)]
    batches = encode_batches(model, processor, dataset, rows, accelerator, video_column, **encoding)
    embeds = torch.cat([embeds for _, embeds in batches])
    gathered = rearrange(accelerator.gather(embeds), "(p v) t d -> (v p) t d", v=per_process)
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


__all__ = ["encode_classes", "encode_videos"]
