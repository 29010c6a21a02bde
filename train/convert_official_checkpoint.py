"""Turns a checkpoint of the official CLIP-FSAR program (ViT towers) into a folder that `from_pretrained` loads.

    python train/convert_official_checkpoint.py --checkpoint checkpoint_epoch_00001.pyth \\
        --clip_checkpoint ViT-B-16.pt --output_dir clip-fsar-vit-b16 --tokenizer openai/clip-vit-base-patch16

The official checkpoint holds the visual tower, the temporal transformer and the video-text scale; CLIP's text tower is
not in it and comes from `--clip_checkpoint`: OpenAI's file (TorchScript archive or state dict) or a Hugging Face CLIP
folder or Hub id.
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, HfArgumentParser

from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel
from pipeline_clipfsar import save_with_pipeline
from processing_clipfsar import CLIPFSARProcessor

# OpenAI's name of a part -> Hugging Face's. Both of CLIP's transformers are built of the same blocks.
_BLOCK_NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_VISION_NAMES = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}
_TEXT_NAMES = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
# Stored as (input, output) by OpenAI, as (output, input) by a Linear layer.
_TRANSPOSED = ("proj", "text_projection")
# Numbers that OpenAI's archives carry beside the weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")

_TEMPORAL_NAMES = {
    "0.norm": "attention.norm",
    "0.fn.to_q": "attention.q_proj",
    "0.fn.to_k": "attention.k_proj",
    "0.fn.to_v": "attention.v_proj",
    "0.fn.to_out.0": "attention.out_proj",
    "1.net.0": "mlp.fc1",
    "1.net.3": "mlp.fc2",
}


@dataclass
class Arguments:
    checkpoint: str = field(metadata={"help": "The official program's .pyth file."})
    clip_checkpoint: str = field(
        metadata={"help": "CLIP for the text tower: OpenAI's .pt file, or a Hugging Face CLIP folder or Hub id."}
    )
    output_dir: str = field(metadata={"help": "Folder to write."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer to put beside the weights: a folder or Hub id. By default that of --clip_checkpoint if "
            "it is a Hugging Face one; OpenAI's .pt files have none."
        },
    )
    num_frames: int = field(default=8, metadata={"help": "Frames per video the model was trained with."})


def convert_openai_tower(state: dict[str, torch.Tensor], names: dict[str, str], tower: str) -> dict[str, torch.Tensor]:
    """Renames the weights of one of OpenAI's two towers to `CLIPModel`'s names.

    Args:
        state: Weights without a prefix, as `conv1.weight` or `transformer.resblocks.0.ln_1.bias`.
        names: The tower's parts outside the blocks.
        tower: `"vision_model"` or `"text_model"`.

    Raises:
        ValueError: Listing all keys without a place.
    """
    converted, unexpected = {}, []
    for key, tensor in state.items():
        tensor = tensor.float()
        block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)\.?_?(weight|bias)", key)
        part = block and block[2].removesuffix(".")
        if key in names:
            converted[names[key]] = tensor.T.contiguous() if key in _TRANSPOSED else tensor
        elif block and part == "attn.in_proj_":
            layer = f"{tower}.encoder.layers.{block[1]}.self_attn"
            for projection, third in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{layer}.{projection}_proj.{block[3]}"] = third.clone()
        elif block and part in _BLOCK_NAMES:
            converted[f"{tower}.encoder.layers.{block[1]}.{_BLOCK_NAMES[part]}.{block[3]}"] = tensor
        else:
            unexpected.append(key)
    if unexpected:
        raise ValueError(f"Weights of OpenAI's {tower} without a place in CLIPModel: {', '.join(unexpected)}.")
    return converted


def convert_temporal_transformer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames `layers.{i}.0.fn.to_q.weight` ... (method: attention part 0, feed-forward part 1) to our names."""
    converted, unexpected = {}, []
    for key, tensor in state.items():
        match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if match and match[2] in _TEMPORAL_NAMES:
            converted[f"layers.{match[1]}.{_TEMPORAL_NAMES[match[2]]}.{match[3]}"] = tensor.float()
        else:
            unexpected.append(key)
    if unexpected:
        raise ValueError(f"Weights of the temporal transformer without a place in ours: {', '.join(unexpected)}.")
    return converted


def clip_config_from_openai(state: dict[str, torch.Tensor]) -> CLIPConfig:
    """Sizes of a ViT CLIP read off OpenAI's state dict. A head is 64 wide in all of OpenAI's models."""
    if "visual.conv1.weight" not in state or "visual.proj" not in state:
        raise ValueError(
            "This CLIP has no ViT visual tower (keys visual.conv1.weight and visual.proj): ResNet towers are not "
            "supported by this converter."
        )
    vision_width, _, patch_size, _ = state["visual.conv1.weight"].shape
    grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    vocab_size, text_width = state["token_embedding.weight"].shape
    projection_dim = state["text_projection"].shape[1]

    def num_layers(prefix: str) -> int:
        return len({key.split("resblocks.")[1].split(".")[0] for key in state if key.startswith(f"{prefix}resblocks.")})

    return CLIPConfig(
        projection_dim=projection_dim,
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": 4 * vision_width,
            "num_hidden_layers": num_layers("visual.transformer."),
            "num_attention_heads": vision_width // 64,
            "image_size": grid * patch_size,
            "patch_size": patch_size,
            "projection_dim": projection_dim,
        },
        text_config={
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": num_layers("transformer."),
            "num_attention_heads": text_width // 64,
            "vocab_size": vocab_size,
            "max_position_embeddings": state["positional_embedding"].shape[0],
            "projection_dim": projection_dim,
            # OpenAI's end-of-text token is the highest id, and the start-of-text token the one before.
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
            "pad_token_id": 0,
        },
    )


def load_clip(clip_checkpoint: str) -> CLIPModel:
    """A `CLIPModel` out of OpenAI's file (TorchScript archive or state dict), a Hugging Face folder or a Hub id."""
    if not Path(clip_checkpoint).is_file():
        return CLIPModel.from_pretrained(clip_checkpoint, dtype=torch.float32)
    try:
        state = torch.load(clip_checkpoint, map_location="cpu", weights_only=True)
    except RuntimeError:  # how torch.load refuses OpenAI's own TorchScript archives
        state = torch.jit.load(clip_checkpoint, map_location="cpu").state_dict()
    state = {key: value for key, value in state.items() if key not in _NOT_WEIGHTS}
    model = CLIPModel(clip_config_from_openai(state))
    vision = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    text = {key: value for key, value in state.items() if not key.startswith("visual.")}
    load_all_weights(
        model,
        convert_openai_tower(vision, _VISION_NAMES, "vision_model")
        | convert_openai_tower(text, _TEXT_NAMES, "text_model"),
    )
    return model


def load_all_weights(model: torch.nn.Module, state: dict[str, torch.Tensor]):
    """`load_state_dict`, strict, with all differences in one error."""
    own = model.state_dict()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape),
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"The checkpoint does not fit the model. Weights {listed}.")
    model.load_state_dict(state)


def convert_official_checkpoint(checkpoint: str, clip_checkpoint: str, num_frames: int = 8) -> CLIPFSARModel:
    """Our model with the weights of an official checkpoint and the text tower of `clip_checkpoint`.

    Raises:
        ValueError: When the file is not such a checkpoint, or any weight is missing, unexpected or of another shape.
    """
    loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict) or "model_state" not in loaded:
        raise ValueError(f"{checkpoint} is not a checkpoint of the official program: it has no 'model_state'.")
    parts = {"backbone": {}, "context2": {}}
    scale, unexpected = None, []
    for key, tensor in loaded["model_state"].items():
        part, _, name = key.removeprefix("head.").partition(".")
        if key == "head.scale":
            scale = tensor.float()
        elif key.startswith("head.") and part in parts:
            parts[part][name] = tensor
        else:
            unexpected.append(key)
    if unexpected or scale is None:
        raise ValueError(
            f"{checkpoint}: weights without a place: {', '.join(unexpected) or 'none'}; "
            f"head.scale is {'missing' if scale is None else 'there'}."
        )
    if "proj" not in parts["backbone"]:
        raise ValueError(f"{checkpoint} has no ViT visual tower; ResNet towers are not supported by this converter.")
    temporal = convert_temporal_transformer(parts["context2"])
    if "layers.0.mlp.fc1.weight" not in temporal:
        raise ValueError(
            f"{checkpoint}: weight head.context2.layers.0.1.net.0.weight of the temporal transformer is missing."
        )
    clip = load_clip(clip_checkpoint)
    config = CLIPFSARConfig(
        clip_config=clip.config,
        num_frames=num_frames,
        temporal_num_layers=len({key.split(".")[1] for key in temporal}),
        temporal_intermediate_size=temporal["layers.0.mlp.fc1.weight"].shape[0],
    )
    model = CLIPFSARModel(config)
    visual = convert_openai_tower(parts["backbone"], _VISION_NAMES, "vision_model")
    # CLIP's own visual tower is left out, so that a weight missing in the checkpoint is not silently taken from there.
    text = {key: value for key, value in clip.state_dict().items() if not key.startswith(("vision_", "visual_"))}
    state = {f"clip.{key}": value for key, value in (text | visual).items()}
    state |= {f"temporal_transformer.{key}": value for key, value in temporal.items()}
    load_all_weights(model, state | {"video_text_scale": scale.reshape(1)})
    return model.eval()


def main(arguments: Arguments):
    for path in (arguments.checkpoint,):
        if not Path(path).is_file():
            raise FileNotFoundError(f"--checkpoint {path}: there is no such file.")
    model = convert_official_checkpoint(arguments.checkpoint, arguments.clip_checkpoint, arguments.num_frames)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{arguments.output_dir}: {num_parameters:,} parameters, {model.config.temporal_num_layers} temporal layer(s)."
    )

    tokenizer = arguments.tokenizer
    if tokenizer is None and not Path(arguments.clip_checkpoint).is_file():
        tokenizer = arguments.clip_checkpoint
    if tokenizer is None:
        model.save_pretrained(arguments.output_dir)
        print("No tokenizer was given (--tokenizer), so no processor is saved: class texts must come as token ids.")
        return
    size = model.config.clip_config.vision_config.image_size
    processor = CLIPFSARProcessor(
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
        AutoTokenizer.from_pretrained(tokenizer),
        num_frames=arguments.num_frames,
        preprocessing="official",
    )
    save_with_pipeline(model, processor, arguments.output_dir)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()[0])
