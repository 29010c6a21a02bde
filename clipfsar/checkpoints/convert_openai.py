"""Converts CLIP weights of OpenAI or open_clip (ViT or ResNet) to a model to start training from.

transformers implements only CLIP's ViTs; our code implements its modified ResNets.
"""

import torch

from clipfsar.checkpoints.openai_weights import load_clip
from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel


def convert_openai_checkpoint(
    clip_checkpoint: str, hidden_act: str = "quick_gelu"
) -> tuple[CLIPFSARModel, dict[str, torch.Tensor], list[str]]:
    """A model with the CLIP of a file, the weights to save, and a report.

    The weights are only CLIP's: our own layers are initialized when the saved model is loaded.
    """
    clip, report = load_clip(clip_checkpoint, hidden_act)
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=clip.config))
    model.clip = clip
    return model, {f"clip.{name}": weight for name, weight in clip.state_dict().items()}, report


__all__ = ["convert_openai_checkpoint"]
