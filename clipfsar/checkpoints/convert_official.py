"""Converts official checkpoints to our models, and back.

The official checkpoint holds the visual tower (a ViT or CLIP's ResNet, of any size), the temporal transformer (of any
depth) and the video-text scale. It does not hold CLIP's text tower. No code in the files is run. The optimizer's state
is not converted.
"""

import re

from transformers import AutoTokenizer, CLIPImageProcessor

from backbones_clipfsar import is_in_official_program
from clipfsar.checkpoints.openai_weights import (
    Place,
    check_image_features,
    clip_config_from_openai,
    from_places,
    load_clip,
    load_weights_only,
    openai_place,
    to_places,
)
from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import VISION_MODULES, CLIPFSARModel
from pipeline_clipfsar import save_with_pipeline
from processing_clipfsar import CLIPFSARProcessor

# Our names of a temporal layer's parts -> the official program's (0 is the attention part, 1 the feed-forward part).
_TEMPORAL_NAMES = {
    "attention.norm": "0.norm",
    "attention.q_proj": "0.fn.to_q",
    "attention.k_proj": "0.fn.to_k",
    "attention.v_proj": "0.fn.to_v",
    "attention.out_proj": "0.fn.to_out.0",
    "mlp.fc1": "1.net.0",
    "mlp.fc2": "1.net.3",
}
_NUM_HEADS = 8  # of the official temporal transformer, for every size
_FEED_FORWARD = "head.context2.layers.0.1.net.0.weight"


def official_place(name: str) -> Place:
    """The place of a weight of `CLIPFSARModel` in the `model_state` of an official checkpoint."""
    if name == "video_text_scale":
        return Place("head.scale")
    temporal = re.fullmatch(r"temporal_transformer\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if temporal:
        return Place(f"head.context2.layers.{temporal[1]}.{_TEMPORAL_NAMES[temporal[2]]}.{temporal[3]}")
    place = openai_place(name.removeprefix("clip."))
    return place._replace(key=place.key.replace("visual.", "head.backbone.", 1))


def is_in_official(name: str) -> bool:
    """Whether official checkpoints hold this weight: all weights except CLIP's text tower and its logit scale."""
    return not name.startswith("clip.") or name.removeprefix("clip.").startswith(VISION_MODULES)


def convert_official_checkpoint(
    checkpoint: str, clip_checkpoint: str, num_frames: int = 8
) -> tuple[CLIPFSARModel, list[str]]:
    """Our model with the weights of an official checkpoint and the text tower of `clip_checkpoint`, and a report.

    Raises:
        ValueError: When the file is no official checkpoint, or a weight is missing, unexpected or of another shape.
    """
    loaded = load_weights_only(checkpoint)
    if not isinstance(loaded, dict) or "model_state" not in loaded:
        raise ValueError(f"{checkpoint} is not a checkpoint of the official program: it has no 'model_state'.")
    state = loaded["model_state"]
    if _FEED_FORWARD not in state:
        raise ValueError(f"{checkpoint}: weight {_FEED_FORWARD} of the temporal transformer is missing.")
    prefix = "head.backbone."
    visual = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    clip, report = load_clip(clip_checkpoint)
    clip_config = clip_config_from_openai(visual, clip.config.text_config)
    if clip_config.projection_dim != clip.config.projection_dim:
        raise ValueError(
            f"The visual tower of {checkpoint} gives features of size {clip_config.projection_dim}, but the text tower "
            f"of {clip_checkpoint} of size {clip.config.projection_dim}: give the CLIP that the training started from."
        )
    config = CLIPFSARConfig(
        clip_config=clip_config,
        num_frames=num_frames,
        temporal_num_layers=len({key.split(".")[3] for key in state if key.startswith("head.context2.layers.")}),
        temporal_num_heads=_NUM_HEADS,
        temporal_intermediate_size=state[_FEED_FORWARD].shape[0],
    )
    model = CLIPFSARModel(config).eval()
    own = {name: weight for name, weight in model.state_dict().items() if is_in_official(name)}
    weights, lines = from_places(own, state, official_place, checkpoint)
    text = {f"clip.{name}": weight for name, weight in clip.state_dict().items()}
    model.load_state_dict(weights | {name: text[name] for name in text if not is_in_official(name)})
    text_lines = [line for line in report if not line.startswith(("visual.", "Image"))]
    return model, [*text_lines, *lines, check_image_features(model.clip, visual)]


def official_checkpoint(model: CLIPFSARModel) -> dict:
    """The checkpoint that the official program would save for this model, without an optimizer's state.

    Raises:
        ValueError: For a model that the official program cannot represent.
    """
    config = model.config
    problems = {
        f"a backbone of type {config.clip_config.model_type!r}": not is_in_official_program(config.clip_config),
        f"temporal_num_heads={config.temporal_num_heads} instead of {_NUM_HEADS}": config.temporal_num_heads
        != _NUM_HEADS,
        "no temporal layers": config.temporal_num_layers == 0,
    }
    if any(problems.values()):
        listed = ", ".join(problem for problem, there in problems.items() if there)
        raise ValueError(f"The official program has no such model: this one has {listed}.")
    own = {name: weight for name, weight in model.state_dict().items() if is_in_official(name)}
    return {"epoch": 1, "model_state": to_places(own, official_place), "optimizer_state": {}, "cfg": "{}"}


def save_with_processor(model: CLIPFSARModel, output_dir: str, tokenizer: str | None, **saving):
    """Saves weights and code, and with a tokenizer also a processor with official preprocessing."""
    config = model.config
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{output_dir}: {num_parameters:,} parameters, {config.temporal_num_layers} temporal layer(s).")
    if tokenizer is None:
        model.save_pretrained(output_dir, **saving)
        print("No tokenizer was given (--tokenizer), so no processor is saved: pass class texts as token ids.")
        return
    size = config.clip_config.vision_config.image_size
    processor = CLIPFSARProcessor(
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
        AutoTokenizer.from_pretrained(tokenizer),
        num_frames=config.num_frames,
        preprocessing="official",
    )
    save_with_pipeline(model, processor, output_dir, **saving)


__all__ = [
    "convert_official_checkpoint",
    "is_in_official",
    "official_checkpoint",
    "official_place",
    "save_with_processor",
]
