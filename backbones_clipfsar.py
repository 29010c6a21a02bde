"""Requirements on the backbone, which holds the visual and the text tower, and the rules for each kind of backbone.

A backbone is a transformers model with `get_image_features(pixel_values)` and `get_text_features(input_ids=...,
attention_mask=...)`. Both give features of one size, (batch, D), as a tensor or as the `pooler_output` of an output.
Its configuration holds that size as `projection_dim`. Its visual parts are named as in `VISION_MODULES`.
Every rule that depends on the kind of backbone is in this file.
"""

from typing import Any

import torch
from transformers import PretrainedConfig, __version__
from transformers.modeling_outputs import BaseModelOutputWithPooling

# Parts of a backbone that make frame features; all its other parts count as the text tower.
VISION_MODULES = ("vision_model.", "visual_projection.")

_GETTERS = ("get_image_features", "get_text_features")
# Backbones that have both getters. For these a configuration needs no import of the model, which takes seconds.
_KNOWN = ("clip", "clip_resnet", "siglip", "siglip2", "metaclip_2")
# Trained on texts padded to one length, without a mask.
_FIXED_LENGTH_TEXTS = ("siglip", "siglip2")
# Takes images cut into patches, with their number of rows and columns.
_PATCHES = ("siglip2",)
_CONVOLUTIONS = ("clip_resnet", "align")
_IN_OFFICIAL_PROGRAM = ("clip", "clip_resnet")
# Oldest transformers that loads all weights of a plain checkpoint into our model; in older ones some stay random.
_LOADS_SINCE = {"altclip": (5, 16)}
# Positions count from pad_token_id + 1, as in RoBERTa.
_POSITIONS_AFTER_PADDING = ("altclip",)

ACCEPTED = (
    "a model with get_image_features and get_text_features, such as clip, siglip, siglip2, metaclip_2, align, altclip, "
    "chinese_clip, or your own model, registered with AutoConfig and AutoModel"
)


# --- which models -----------------------------------------------------------------------------------------------------


def config_class(model_type: str) -> type | None:
    """The configuration class that transformers knows by this name, or that was registered with AutoConfig."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return None
    return CONFIG_MAPPING[model_type]  # the mapping's `get` sees only registered classes


def why_no_backbone(model_type: str) -> str | None:
    """Why models of this type cannot be a backbone; None if they can.

    Looks for the two getters in the class that `AutoModel` would make, which imports the code of that model only.
    """
    if model_type in _KNOWN:
        return None
    from transformers import MODEL_MAPPING

    since = _LOADS_SINCE.get(model_type, (0,))
    if tuple(int(number) for number in __version__.split(".")[:2]) < since:
        return (
            f"transformers {__version__} does not load all of its weights: install {'.'.join(map(str, since))} or newer"
        )

    made_by = config_class(model_type)
    if made_by is None:
        return "AutoConfig does not know this type"
    model_class = MODEL_MAPPING.get(made_by, None)
    if model_class is None:
        return "AutoModel has no model for it"
    model_class = model_class[0] if isinstance(model_class, (tuple, list)) else model_class
    missing = [getter for getter in _GETTERS if not hasattr(model_class, getter)]
    return f"{model_class.__name__} has no {' and no '.join(missing)}" if missing else None


# --- what its configuration says --------------------------------------------------------------------------------------


def tower_configs(clip_config) -> tuple[Any, Any]:
    """Configurations of the visual and the text tower; the backbone's own where it has no separate ones."""
    return tuple(getattr(clip_config, name, clip_config) for name in ("vision_config", "text_config"))


def feature_size(clip_config) -> int:
    """D, the size of a frame feature and of a class text."""
    size = getattr(clip_config, "projection_dim", None) or getattr(tower_configs(clip_config)[0], "hidden_size", None)
    if size is None:
        raise ValueError(
            f"clip_config of type {clip_config.model_type!r} does not say how large a feature is: give it a "
            "projection_dim."
        )
    return size


def check_features(clip_config) -> None:
    """Raises `ValueError` for a configuration whose towers do not give one feature each, both of the same size.

    Not every configuration tells this; `pooled_output` checks the features themselves.
    """
    vision, text = tower_configs(clip_config)
    size = feature_size(clip_config)
    text_size = getattr(text, "projection_size", None) or size  # SigLIP's
    if size != text_size:
        raise ValueError(
            f"clip_config gives image features of size {size} and text features of size {text_size}; both must have "
            "the same size, because they are compared with each other."
        )
    if not getattr(vision, "vision_use_head", True):
        raise ValueError(
            "clip_config has vision_use_head=False: without the pooling head there is no feature of a whole frame."
        )


def image_size(clip_config) -> int:
    """Height and width of the images that the visual tower was made for."""
    vision, _ = tower_configs(clip_config)
    if takes_patches(clip_config):
        return int(vision.num_patches**0.5) * vision.patch_size
    return getattr(vision, "image_size", 224)


def max_tokens(clip_config) -> int | None:
    """Number of tokens that the text tower has positions for; None where its configuration does not say."""
    _, text = tower_configs(clip_config)
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and clip_config.model_type in _POSITIONS_AFTER_PADDING:
        return positions - text.pad_token_id - 1
    return positions


def vocabulary_size(clip_config) -> int | None:
    """Number of tokens in the text tower's vocabulary; None where its configuration does not say."""
    return getattr(tower_configs(clip_config)[1], "vocab_size", None)


def has_texts_of_one_length(clip_config) -> bool:
    """Whether every text has `max_tokens` tokens, padding included and not masked."""
    return clip_config.model_type in _FIXED_LENGTH_TEXTS


def takes_patches(clip_config) -> bool:
    """Whether the visual tower takes patches and their number of rows and columns instead of images."""
    return clip_config.model_type in _PATCHES


def is_convolutional(clip_config) -> bool:
    """Whether the visual tower is made of convolutions and batch norms."""
    return clip_config.model_type in _CONVOLUTIONS


def is_in_official_program(clip_config) -> bool:
    """Whether the official program has this kind of backbone."""
    return clip_config.model_type in _IN_OFFICIAL_PROGRAM


# --- what its processor needs -----------------------------------------------------------------------------------------


def fit_to_plain_checkpoint(processor, name_or_path, loading: dict) -> dict:
    """Calls `fit_to_plain_model` for a checkpoint by name; does nothing for a CLIP-FSAR checkpoint.

    `loading` holds the keyword arguments for loading the checkpoint.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(name_or_path, **loading)
    except OSError:
        return {}
    made_by = config_class(config.get("model_type"))
    if made_by is None or "clip_config" in config:
        return {}
    return fit_to_plain_model(processor, made_by(**config))


def fit_to_plain_model(processor, config) -> dict:
    """Adapts a processor's parts to a plain model. Returns the settings that the model needs besides: none for CLIP.

    A tokenizer may allow more tokens than its text tower has positions, as MetaCLIP 2's does: it gets the lower limit.
    SigLIP's texts are padded to the length used in its training. SigLIP 2's image processor has no image size, because
    it cuts images of any shape into patches: frames become squares with the same number of patches.
    """
    limit = max_tokens(config)
    if limit is not None:
        processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, limit)
    settings = processor.image_processor
    if takes_patches(config) and getattr(settings, "max_num_patches", None):
        from transformers import CLIPImageProcessor  # its import warns if torchvision is missing: not at the top

        edge = int(settings.max_num_patches**0.5) * settings.patch_size
        processor.image_processor = CLIPImageProcessor(
            size={"height": edge, "width": edge},
            resample=settings.resample,
            do_center_crop=False,
            image_mean=settings.image_mean,
            image_std=settings.image_std,
        )
    return {"prompt_length": limit} if has_texts_of_one_length(config) else {}


# --- what goes in and comes out ---------------------------------------------------------------------------------------


def image_inputs(clip_config, frames: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Frames (V, C, H, W) as `get_image_features` takes them, and its other arguments."""
    if not takes_patches(clip_config):
        return frames, {}
    return _as_patches(frames, clip_config.vision_config.patch_size)


def _as_patches(frames: torch.Tensor, patch_size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Frames (V, C, H, W) as SigLIP 2 takes them, (V, patches, patch * patch * C), and its other arguments."""
    height, width = (size // patch_size for size in frames.shape[-2:])
    if (height * patch_size, width * patch_size) != frames.shape[-2:]:
        raise ValueError(
            f"Frames of {frames.shape[-2]} x {frames.shape[-1]} pixels cannot be cut into SigLIP 2's patches of "
            f"{patch_size} x {patch_size}: resize them to a multiple."
        )
    patches = frames.unflatten(-1, (width, patch_size)).unflatten(-3, (height, patch_size))
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (V, C, h, p, w, p) -> (V, h, w, p * p * C)
    shapes = torch.tensor([[height, width]], device=frames.device).expand(len(frames), 2)
    mask = torch.ones(patches.shape[:2], dtype=torch.long, device=frames.device)
    return patches, {"spatial_shapes": shapes, "pixel_attention_mask": mask}


def pooled_output(outputs: Any, clip_config) -> BaseModelOutputWithPooling:
    """The result of a getter, as an output whose `pooler_output` is (batch, D).

    Raises `ValueError` for features of another shape.
    """
    if isinstance(outputs, torch.Tensor):
        outputs = BaseModelOutputWithPooling(pooler_output=outputs)
    features, size = outputs.pooler_output, feature_size(clip_config)
    if features is None or features.dim() != 2 or features.shape[-1] != size:
        shape = None if features is None else tuple(features.shape)
        raise ValueError(
            f"A backbone of type {clip_config.model_type!r} gives features of shape {shape}; (batch, {size}) is "
            "needed: one feature per frame or text, of the size that its configuration calls projection_dim."
        )
    return outputs


def cosine_scale(backbone: torch.nn.Module) -> torch.Tensor | None:
    """The factor on cosines in the backbone's own zero-shot classification; None where it has none."""
    if hasattr(backbone, "logit_scale"):
        scale: Any = backbone.logit_scale
        return scale.detach().exp().reshape(())  # SigLIP has it as a vector of one
    if hasattr(backbone, "temperature"):  # ALIGN's
        temperature: Any = backbone.temperature
        return 1 / temperature.detach().reshape(())
    return None


__all__ = [
    "ACCEPTED",
    "VISION_MODULES",
    "check_features",
    "config_class",
    "cosine_scale",
    "feature_size",
    "fit_to_plain_checkpoint",
    "fit_to_plain_model",
    "has_texts_of_one_length",
    "image_inputs",
    "image_size",
    "is_convolutional",
    "is_in_official_program",
    "max_tokens",
    "pooled_output",
    "takes_patches",
    "tower_configs",
    "vocabulary_size",
    "why_no_backbone",
]
