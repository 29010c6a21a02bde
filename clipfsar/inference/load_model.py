"""A model and its processor by name, a plain CLIP among them."""

import sys

import torch
from transformers import PretrainedConfig

from backbones_clipfsar import cosine_scale
from clipfsar.inference.quantized import quantize_int8
from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor


def load_model(name: str, dtype: str = "float32") -> tuple[CLIPFSARModel, CLIPFSARProcessor]:
    """A CLIP-FSAR model and its processor, or a plain CLIP as it is: untrained layers of ours would only do harm.

    `dtype` is `"auto"`, as saved, or one of `DTYPES`.

    Raises:
        ValueError: For a model of another kind.
        OSError: When there is none.
    """
    config = PretrainedConfig.get_config_dict(name)[0]
    settings = {"dtype": {"auto": "auto", "int8": torch.float32}.get(dtype) or getattr(torch, dtype)}
    is_plain = config.get("model_type") != CLIPFSARConfig.model_type
    if is_plain:
        print(f"{name} is a plain CLIP: classifying by its frame features, without training.", file=sys.stderr)
        settings |= {"temporal_num_layers": 0, "prototype_modulation": False}
    model = CLIPFSARModel.from_pretrained(name, **settings).eval()
    if is_plain:
        # CLIP's own factor on the cosines of zero-shot classification; ours would have to be trained.
        scale = cosine_scale(model.clip)
        if scale is not None:
            model.video_text_scale.data.fill_(scale)
    if dtype == "int8":
        quantize_int8(model)
    return model, CLIPFSARProcessor.from_pretrained(name)


__all__ = ["load_model"]
