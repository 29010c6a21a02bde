"""A tiny CLIP-FSAR model and episodes made of a closed formula, so that golden files hold no weights."""

import torch
from transformers import CLIPConfig

from configuration_clipfsar import CLIPFSARConfig, CLIPResNetConfig
from modeling_clipfsar import CLIPFSARModel

IMAGE_SIZE = 16
RESNET_IMAGE_SIZE = 64
VOCAB_SIZE = 50


def formula_tensor(shape, phase: float = 0.0) -> torch.Tensor:
    """Values between -1 and 1 by a formula of the flat index, in float32.

    The square keeps matrices of full rank: sin(a * i + b * j) would have rank 2. Computed in float64, so that machines
    that round a sine differently still agree in float32.
    """
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.618 * index**2 + 0.1 * index + phase).float().reshape(shape)


@torch.no_grad()
def fill_by_formula(model: torch.nn.Module):
    """Overwrites all parameters: every output depends on every one of them, and no value repeats between two."""
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        values = formula_tensor(parameter.shape, phase=float(number))
        if name.endswith("video_text_scale"):
            values = torch.full_like(values, 1.5)
        elif name.endswith("logit_scale"):
            values = torch.full_like(values, 2.5)
        elif parameter.dim() == 1 and name.endswith("weight"):  # of a norm
            values = 1 + 0.2 * values
        elif parameter.dim() < 2:
            values = 0.2 * values
        elif "embedding" not in name or "patch" in name:
            values = values * (2 / parameter[0].numel()) ** 0.5  # keeps the variance of a layer's input
        parameter.copy_(values)
    for number, (name, buffer) in enumerate(sorted(model.named_buffers())):
        values = formula_tensor(buffer.shape, phase=number + 0.5)
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * values)
        elif name.endswith("running_var"):
            buffer.copy_(1 + 0.5 * values)


def tiny_clip_config(**overrides) -> CLIPConfig:
    """CLIP for 16 x 16 pixels; token 49 ends a text and 0 pads, as the highest id and 0 do in OpenAI's."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 8}
    special_tokens = {"bos_token_id": VOCAB_SIZE - 2, "eos_token_id": VOCAB_SIZE - 1, "pad_token_id": 0}
    return CLIPConfig(
        text_config=tower | text | special_tokens | overrides.pop("text_config", {}),
        vision_config=tower | {"image_size": IMAGE_SIZE, "patch_size": 8} | overrides.pop("vision_config", {}),
        **{"projection_dim": 16} | overrides,
    )


def tiny_resnet_clip_config(**vision) -> CLIPResNetConfig:
    """The same with a ResNet for 64 x 64 pixels, with a block of either kind; keyword arguments are its fields."""
    sizes = {"depths": [1, 2, 1, 1], "width": 4, "image_size": RESNET_IMAGE_SIZE, "projection_dim": 16}
    return CLIPResNetConfig(text_config=tiny_clip_config().text_config, vision_config=sizes | vision)


def tiny_config(clip_config=None, **overrides) -> CLIPFSARConfig:
    sizes = {"num_frames": 4, "temporal_num_heads": 2, "temporal_intermediate_size": 32}
    return CLIPFSARConfig(clip_config=clip_config or tiny_clip_config(), **sizes | overrides)


def tiny_model(config: CLIPFSARConfig | None = None, **overrides) -> CLIPFSARModel:
    """In evaluation mode; `overrides` are fields of the configuration."""
    model = CLIPFSARModel(config or tiny_config(**overrides)).eval()
    fill_by_formula(model)
    return model


def tiny_class_input_ids(n_way: int) -> torch.Tensor:
    """(1, N, 6) tokens: start, a name of one or two tokens, end, padding."""
    rows = [[VOCAB_SIZE - 2, 3 + 7 * n, *[5 + n] * (n % 2), VOCAB_SIZE - 1] for n in range(n_way)]
    return torch.tensor([[row + [0] * (6 - len(row)) for row in rows]])


def tiny_episode(
    n_way: int = 3,
    n_shot: int = 1,
    n_query: int = 2,
    num_frames: int = 4,
    phase: float = 0.0,
    image_size: int = IMAGE_SIZE,
) -> dict[str, torch.Tensor]:
    """Inputs of one episode, B = 1; support labels are not sorted, because nothing may depend on that."""
    support_labels = torch.arange(n_way).repeat(n_shot)
    frame = (num_frames, 3, image_size, image_size)
    return {
        "support_pixel_values": formula_tensor((1, n_way * n_shot, *frame), phase),
        "support_labels": support_labels.unsqueeze(0),
        "query_pixel_values": formula_tensor((1, n_way * n_query, *frame), phase + 0.5),
        "class_input_ids": tiny_class_input_ids(n_way),
        "labels": torch.arange(n_way).repeat_interleave(n_query).unsqueeze(0),
    }
