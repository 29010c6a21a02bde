"""Converts official checkpoints and CLIP-MEI's to our models, and our models to official checkpoints.

Both hold the visual tower (a ViT or CLIP's ResNet, of any size), the temporal transformer (of any
depth) and the video-text scale. They do not hold CLIP's text tower. Official checkpoints with the heads TRX, HyRSM and
HyRSM++ may be without the last two. No code in the files is run. The optimizer's state is not converted.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor

from backbones_clipfsar import is_in_official_program
from clipfsar.checkpoints.official_heads import (
    check_num_frames,
    head_name,
    head_settings,
    head_weights,
    official_head_weights,
    recorded_settings,
    used_weights,
)
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
_HEAD = "comparison_head."  # begins our names of a head's weights


@dataclass(frozen=True)
class Program:
    """A program that trains CLIP-FSAR, and the form of its checkpoints.

    Args:
        name: For messages.
        weights: Key of the weights in a checkpoint.
        prefix: Begins the name of every weight.
        support_pooling: The program's default for several shots.
    """

    name: str
    weights: str
    prefix: str
    support_pooling: str


OFFICIAL = Program("the official program", "model_state", "head.", "before")
# https://github.com/D-XH/CLIP-MEI, run/main_run.py: a dict of "iteration", "model_state_dict", states of optimizer and
# scheduler, and "acc".
CLIP_MEI = Program("CLIP-MEI", "model_state_dict", "", "after")

# Weights that only other models of CLIP-MEI's repository have (its folder models/): start of a name -> model.
_OTHER_MODELS_OF_CLIP_MEI = {
    "token_tr.": "CLIP-MEI itself",
    "class_token_motion": "CLIP-CPM2C",
    "motion_conv1.": "a model with motion features (CLIP-MEI or CLIP-CPM2C)",
    "mapm.": "STEN",
    "resnet.": "a model on torchvision's ResNet (TRX, STRM, TA2N or SOAP)",
    "backbone.0.": "a model on torchvision's ResNet (OTAM or MoLo)",
}


def read_checkpoint(checkpoint: str) -> tuple[Program, dict, Any]:
    """The program that wrote a checkpoint, the weights in it, and the official program's settings (`cfg`).

    Raises:
        ValueError: When the file is no checkpoint of a known program, or is one of another model.
    """
    loaded = load_weights_only(checkpoint)
    for program in (OFFICIAL, CLIP_MEI):
        if isinstance(loaded, dict) and isinstance(loaded.get(program.weights), dict):
            state = loaded[program.weights]
            if program is CLIP_MEI:
                _refuse_other_models(state, checkpoint)
            else:
                _refuse_other_backbones(state, checkpoint)
            return program, state, loaded.get("cfg")
    raise ValueError(
        f"{checkpoint} is not a checkpoint of the official program: it has no 'model_state'. It is none of CLIP-MEI "
        "either, which has 'model_state_dict'."
    )


def _refuse_other_models(state: dict, checkpoint: str):
    for start, model in _OTHER_MODELS_OF_CLIP_MEI.items():
        found = next((name for name in state if name.startswith(start)), None)
        if found is not None:
            raise ValueError(
                f"{checkpoint} is of {model}, not of CLIP-FSAR: it has a weight {found}. Only the checkpoints of "
                "CLIP-FSAR in CLIP-MEI's repository can be converted."
            )


def _refuse_other_backbones(state: dict, checkpoint: str):
    """Refuses torchvision's ResNet, a sequence of numbered parts, which most official heads were trained with."""
    found = next((name for name in state if re.match(rf"{OFFICIAL.prefix}backbone\.\d+\.", name)), None)
    if found is not None:
        raise ValueError(
            f"{checkpoint} has torchvision's ResNet as its backbone (a weight {found}), not CLIP's visual tower: there "
            "is no text tower to it. Only official checkpoints with CLIP's visual tower can be converted."
        )


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
    """Our model with the weights of a checkpoint and the text tower of `clip_checkpoint`, and a report.

    Raises:
        ValueError: When `read_checkpoint` does, or a weight is missing, unexpected or of another shape.
    """
    program, state, recorded = read_checkpoint(checkpoint)
    return model_of_state(program, state, checkpoint, clip_checkpoint, num_frames, recorded=recorded)


def model_of_state(
    program: Program,
    state: dict,
    checkpoint: str,
    clip_checkpoint: str,
    num_frames: int,
    support_pooling: str | None = None,
    recorded: Any = None,
) -> tuple[CLIPFSARModel, list[str]]:
    """`convert_official_checkpoint` after reading; `checkpoint` names the file in messages.

    Args:
        support_pooling: See `CLIPFSARConfig`; by default the program's.
        recorded: `cfg` of the checkpoint. It is read only for a head that needs it.
    """
    backbone = f"{program.prefix}backbone."
    visual = {key.removeprefix(backbone): value for key, value in state.items() if key.startswith(backbone)}
    rest, head = _without_head(state, program.prefix)
    settings = _temporal_settings(rest, f"{program.prefix}context2.layers.", head_name(head), checkpoint)
    clip, report = load_clip(clip_checkpoint)
    clip_config = clip_config_from_openai(visual, clip.config.text_config)
    if clip_config.projection_dim != clip.config.projection_dim:
        raise ValueError(
            f"The visual tower of {checkpoint} gives features of size {clip_config.projection_dim}, but the text tower "
            f"of {clip_checkpoint} of size {clip.config.projection_dim}: give the CLIP that the training started from."
        )
    pooling = support_pooling or program.support_pooling
    sizes = (clip_config.projection_dim, num_frames, settings["temporal_num_layers"] > 0)
    settings |= _head_settings(head, *sizes, recorded, checkpoint)
    config = CLIPFSARConfig(clip_config=clip_config, num_frames=num_frames, support_pooling=pooling, **settings)
    model = CLIPFSARModel(config).eval()
    weights, lines = _weights_of_state(model, program, rest, checkpoint)
    of_head, head_lines = _weights_of_head(model, head, program, checkpoint)
    text = {f"clip.{name}": weight for name, weight in clip.state_dict().items()}
    model.load_state_dict(weights | of_head | {name: text[name] for name in text if not is_in_official(name)})
    text_lines = [line for line in report if not line.startswith(("visual.", "Image"))]
    return model, [*text_lines, *lines, *head_lines, check_image_features(model.clip, visual)]


def _without_head(state: dict, prefix: str) -> tuple[dict, dict]:
    """The weights of a checkpoint without those of a head, and those of its head by their official names."""
    others = tuple(f"{prefix}{part}" for part in ("backbone.", "context2.", "scale"))
    head = {key.removeprefix(prefix): value for key, value in state.items() if not key.startswith(others)}
    if head_name(head) is None:
        return state, {}
    return {key: value for key, value in state.items() if key.startswith(others)}, head


def _temporal_settings(state: dict, layers: str, head: str | None, checkpoint: str) -> dict[str, Any]:
    """Settings of the temporal transformer. A head compares plain frame features where a checkpoint has none."""
    feed_forward = f"{layers}0.1.net.0.weight"
    if feed_forward not in state and head is not None:
        return {"temporal_num_layers": 0, "prototype_modulation": False, "temporal_num_heads": _NUM_HEADS}
    if feed_forward not in state:
        raise ValueError(f"{checkpoint}: weight {feed_forward} of the temporal transformer is missing.")
    return {
        "temporal_num_layers": len({key.removeprefix(layers).split(".")[0] for key in state if key.startswith(layers)}),
        "temporal_num_heads": _NUM_HEADS,
        "temporal_intermediate_size": state[feed_forward].shape[0],
    }


def _head_settings(
    head: dict, hidden_size: int, num_frames: int, has_temporal_layers: bool, recorded: Any, checkpoint: str
) -> dict[str, Any]:
    name = head_name(head)
    if name is None:
        return {}
    check_num_frames(head, num_frames, checkpoint)
    settings = head_settings(name, head_weights(name, head), hidden_size)
    settings |= {"alignment": name} | recorded_settings(name, recorded, checkpoint)
    num_heads = settings.get("temporal_num_heads", _NUM_HEADS)
    if has_temporal_layers and num_heads != _NUM_HEADS:
        raise ValueError(
            f"{checkpoint} has {num_heads} attention heads in HyRSM and {_NUM_HEADS} in the temporal transformer. Our "
            "models have one number for both."
        )
    return settings


def _weights_of_state(
    model: CLIPFSARModel, program: Program, state: dict, checkpoint: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """All weights of a model in a checkpoint but those of its head, and a report with one line per weight."""
    own = {name: weight for name, weight in model.state_dict().items() if is_in_official(name)}
    own = {name: weight for name, weight in own.items() if not name.startswith(_HEAD)}
    untrained = {}
    if model.comparison_head is not None and f"{program.prefix}scale" not in state:  # trained without texts
        untrained["video_text_scale"] = own.pop("video_text_scale")

    def place_of(name: str) -> Place:
        place = official_place(name)
        return place._replace(key=place.key.replace(OFFICIAL.prefix, program.prefix, 1))

    weights, lines = from_places(own, state, place_of, checkpoint)
    return weights | untrained, lines


def _weights_of_head(
    model: CLIPFSARModel, head: dict, program: Program, checkpoint: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    name = head_name(head)
    if name is None or model.comparison_head is None:
        return {}, []
    own = official_head_weights(name, model.comparison_head.state_dict())
    theirs = {f"{program.prefix}{key}": value for key, value in used_weights(head).items()}
    weights, _ = from_places(own, theirs, lambda key: Place(f"{program.prefix}{key}"), checkpoint)
    names = {key: next(iter(head_weights(name, {key: weight})), "video_qkv.weight") for key, weight in weights.items()}
    lines = [f"{program.prefix}{key} -> {_HEAD}{names[key]} {tuple(weights[key].shape)}" for key in weights]
    return {f"{_HEAD}{key}": weight for key, weight in head_weights(name, weights).items()}, lines


def official_checkpoint(model: CLIPFSARModel) -> dict:
    """The checkpoint that the official program would save for this model, without an optimizer's state.

    Raises:
        ValueError: For a model that the official program cannot represent.
    """
    config, head = model.config, model.comparison_head
    has_head = config.alignment in ("trx", "hyrsm")
    is_plain = has_head and not config.prototype_modulation  # an official head on frame features
    problems = {
        f"a backbone of type {config.clip_config.model_type!r}": not is_in_official_program(config.clip_config),
        f"temporal_num_heads={config.temporal_num_heads} instead of {_NUM_HEADS}": config.temporal_num_heads
        != _NUM_HEADS,
        "no temporal layers": config.temporal_num_layers == 0 and not is_plain,
        f"the head {config.alignment!r}": head is not None and not has_head,
    }
    if any(problems.values()):
        listed = ", ".join(problem for problem, there in problems.items() if there)
        raise ValueError(f"The official program has no such model: this one has {listed}.")
    own = {name: weight for name, weight in model.state_dict().items() if is_in_official(name)}
    state = to_places({name: own[name] for name in own if not name.startswith(_HEAD)}, official_place)
    if head is not None:
        of_head = official_head_weights(config.alignment, head.state_dict())
        state |= {f"{OFFICIAL.prefix}{key}": weight.cpu().clone() for key, weight in of_head.items()}
    return {"epoch": 1, "model_state": state, "optimizer_state": {}, "cfg": "{}"}


def _processor_settings(program: Program, image_size: int) -> dict:
    """The image processor and settings of the processor for frames as a program's test prepares them.

    CLIP-MEI (`video_reader.py`): shortest side 8/7 of the crop (256 for 224), bilinear, central crop, values from 0 to
    1 that are not normalised. The official program squashes frames instead (`preprocessing="official"`).
    """
    crop_size = {"height": image_size, "width": image_size}
    if program is not CLIP_MEI:
        image_processor = CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=crop_size)
        return {"image_processor": image_processor, "preprocessing": "official"}
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": round(image_size * 8 / 7)},
        crop_size=crop_size,
        resample=Image.Resampling.BILINEAR,
        do_normalize=False,
    )
    return {"image_processor": image_processor, "preprocessing": "clip", "frame_sampling": "linspace"}


def save_with_processor(
    model: CLIPFSARModel, output_dir: str, tokenizer: str | None, program: Program = OFFICIAL, **saving
):
    """Saves weights and code, and with a tokenizer also a processor with the program's preprocessing."""
    config = model.config
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{output_dir}: {num_parameters:,} parameters, {config.temporal_num_layers} temporal layer(s).")
    if tokenizer is None:
        model.save_pretrained(output_dir, **saving)
        print("No tokenizer was given (--tokenizer), so no processor is saved: pass class texts as token ids.")
        return
    size = config.clip_config.vision_config.image_size
    processor = CLIPFSARProcessor(
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        num_frames=config.num_frames,
        **_processor_settings(program, size),
    )
    save_with_pipeline(model, processor, output_dir, **saving)


__all__ = [
    "CLIP_MEI",
    "OFFICIAL",
    "Program",
    "convert_official_checkpoint",
    "is_in_official",
    "model_of_state",
    "official_checkpoint",
    "official_place",
    "read_checkpoint",
    "save_with_processor",
]
