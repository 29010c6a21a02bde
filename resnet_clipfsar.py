"""CLIP with its modified ResNet as visual tower (Radford et al., ICML 2021, Section 2.4); not part of transformers.

Three things differ from an ordinary ResNet. The stem has three convolutions and an average pool. An average pool and a
convolution of stride 1 replace a strided one (anti-aliasing). The last pooling is attention with the mean as its query.
Weights have OpenAI's names (`bn` in a name is a batch norm). Shapes: V images, C channels, H and W height and width.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, CLIPTextModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

try:
    from .configuration_clipfsar import CLIPResNetConfig, CLIPResNetVisionConfig
except ImportError:
    if __package__:
        raise
    from configuration_clipfsar import CLIPResNetConfig, CLIPResNetVisionConfig

_EXPANSION = 4  # channels after a block, in multiples of those inside it


class CLIPResNetBatchNorm(nn.BatchNorm2d):
    """Batch norm that counts each batch once, even under gradient checkpointing.

    Checkpointing runs a block again in the backward pass: the running statistics already include these images.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or not _is_recomputing():
            return super().forward(hidden_states)
        return F.batch_norm(
            hidden_states,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=True,
            momentum=0.0,  # rather than no statistics: the second run must save the same tensors as the first
            eps=self.eps,
        )


def _is_recomputing() -> bool:
    """Whether this runs inside a backward pass; torch's own checkpointing uses the same test."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class CLIPResNetBottleneck(GradientCheckpointingLayer):
    """Residual block of three convolutions, (V, C, H, W) -> (V, 4 * channels, H / stride, W / stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        out_channels = _EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = CLIPResNetBatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = CLIPResNetBatchNorm(channels)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = CLIPResNetBatchNorm(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.ModuleDict(
                {
                    "-1": nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                    "0": nn.Conv2d(in_channels, out_channels, 1, bias=False),
                    "1": CLIPResNetBatchNorm(out_channels),
                }
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states
        if self.downsample is not None:
            for layer in self.downsample.values():
                residual = layer(residual)
        hidden_states = F.relu(self.bn1(self.conv1(hidden_states)))
        hidden_states = F.relu(self.bn2(self.conv2(hidden_states)))
        hidden_states = self.bn3(self.conv3(self.avgpool(hidden_states)))
        return F.relu(hidden_states + residual)


class CLIPResNetAttentionPool(nn.Module):
    """The mean of all positions attends to itself and to all positions, (V, C, H, W) -> (V, projection)."""

    def __init__(self, config: CLIPResNetVisionConfig):
        super().__init__()
        size, self.grid_size = config.hidden_size, config.image_size // config.stride
        self.num_heads = config.num_attention_heads
        # row 0 is the mean's, then the grid's, row by row
        self.positional_embedding = nn.Parameter(torch.empty(self.grid_size**2 + 1, size))
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.c_proj = nn.Linear(size, config.projection_dim)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        # Positions are the first dimension, as in OpenAI's program, so that results agree to the last bit.
        tokens = feature_map.flatten(2).permute(2, 0, 1)  # (H * W, V, C)
        tokens = torch.cat([tokens.mean(0, keepdim=True), tokens])
        tokens = tokens + self._positions(*feature_map.shape[-2:]).to(tokens.dtype).unsqueeze(1)
        query, key, value = (
            projection(states).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)  # (V, heads, tokens, C / heads)
            for projection, states in ((self.q_proj, tokens[:1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        return self.c_proj(F.scaled_dot_product_attention(query, key, value).flatten(1))

    def _positions(self, height: int, width: int) -> torch.Tensor:
        """Learned positions, (H * W + 1, C), interpolated if the feature map has another size than in training."""
        if (height, width) == (self.grid_size, self.grid_size):
            return self.positional_embedding
        mean, grid = self.positional_embedding[:1], self.positional_embedding[1:]
        grid = grid.T.unflatten(1, (self.grid_size, self.grid_size)).unsqueeze(0).float()  # (1, C, grid, grid)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([mean, grid[0].flatten(1).T.to(mean.dtype)])


class CLIPResNetPreTrainedModel(PreTrainedModel):
    config_class: type[PretrainedConfig] = CLIPResNetConfig
    base_model_prefix = "clip"
    input_modalities: tuple[str, ...] = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True  # in the text tower; the pooling has only one query
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["CLIPResNetBottleneck", "CLIPTextEmbeddings", "CLIPEncoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module):
        """Initialises as OpenAI does, but the last batch norm of a block starts at one. The text tower does its own."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            statistics = dict(module.named_buffers())
            nn.init.zeros_(statistics["running_mean"])
            nn.init.ones_(statistics["running_var"])
            nn.init.zeros_(statistics["num_batches_tracked"])
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, CLIPResNetAttentionPool):
            nn.init.normal_(module.positional_embedding, std=module.positional_embedding.shape[-1] ** -0.5)
        elif isinstance(module, CLIPResNetModel):
            nn.init.constant_(module.logit_scale, self.config.logit_scale_init_value)


class CLIPResNetVisionModel(CLIPResNetPreTrainedModel):
    """CLIP's modified ResNet with its projection, images (V, 3, H, W) of any size -> features (V, projection)."""

    config_class = CLIPResNetVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "conv1"

    def __init__(self, config: CLIPResNetVisionConfig):
        super().__init__(config)
        width = config.width
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = CLIPResNetBatchNorm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = CLIPResNetBatchNorm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = CLIPResNetBatchNorm(width)
        self.avgpool = nn.AvgPool2d(2)
        in_channels = width
        for number, depth in enumerate(config.depths):
            channels, stride = width * 2**number, 2 if number else 1
            blocks = [CLIPResNetBottleneck(in_channels, channels, stride)]
            in_channels = _EXPANSION * channels
            blocks += [CLIPResNetBottleneck(in_channels, channels, 1) for _ in range(depth - 1)]
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))
        self.attnpool = CLIPResNetAttentionPool(config)
        self.post_init()
        self.train(self.training)  # freezes batch norms if configured

    def train(self, mode: bool = True):
        """Sets the mode as in PyTorch, but keeps frozen batch norms in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                frozen = self.config.freeze_batch_norm or not module.weight.requires_grad
                module.train(mode and not frozen)
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encodes images.

        Args:
            pixel_values: (V, channels, H, W).
            output_hidden_states: Return the feature maps of the stem and of each stage, (V, C, H, W). Indices select
                some of them; the others are None.
            interpolate_pos_encoding: Interpolate the positions of the attention pooling for images of another size than
                `config.image_size`; `False` rejects such images.

        Returns:
            `last_hidden_state`, the feature map (V, hidden_size, H / 32, W / 32), and `pooler_output`
            (V, projection_dim), projected.

        Raises:
            ValueError: For images that are too small, or of another size with `interpolate_pos_encoding=False`.
        """
        height, width = pixel_values.shape[-2:]
        if min(height, width) < self.config.stride:
            raise ValueError(f"Images of {height} x {width} pixels are too small: the minimum is {self.config.stride}.")
        if not interpolate_pos_encoding and (height, width) != (self.config.image_size,) * 2:
            raise ValueError(
                f"Images of {height} x {width} pixels do not fit the model's {self.config.image_size} x "
                f"{self.config.image_size}: resize them, or pass interpolate_pos_encoding=True."
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = F.relu(self.bn1(self.conv1(pixel_values)))
        hidden_states = F.relu(self.bn2(self.conv2(hidden_states)))
        hidden_states = self.avgpool(F.relu(self.bn3(self.conv3(hidden_states))))
        all_hidden_states = [hidden_states]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden_states = stage(hidden_states)
            all_hidden_states.append(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=self.attnpool(hidden_states),
            hidden_states=_selected(all_hidden_states, output_hidden_states),
        )


def _selected(hidden_states: list[torch.Tensor], wanted: bool | int | list[int]) -> tuple | None:
    """All hidden states, none, or those at the indices, as in transformers. Indices out of range select nothing."""
    if isinstance(wanted, bool):
        return tuple(hidden_states) if wanted else None
    count = len(hidden_states)
    kept = {i % count for i in ([wanted] if isinstance(wanted, int) else wanted) if -count <= i < count}
    return tuple(state if i in kept else None for i, state in enumerate(hidden_states))


class CLIPResNetModel(CLIPResNetPreTrainedModel):
    """CLIP with a ResNet and transformers' own text tower; it has the getters of `CLIPModel`."""

    def __init__(self, config: CLIPResNetConfig):
        super().__init__(config)
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model = CLIPResNetVisionModel._from_config(config.vision_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Images (V, 3, H, W); the projected, not normalised feature is `pooler_output`, (V, projection_dim)."""
        return self.vision_model(pixel_values, return_dict=True, **kwargs)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Tokens (V, L); the projected, not normalised feature is `pooler_output`, (V, projection_dim)."""
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs


# As in modeling_clipfsar: Auto classes find the library through these registrations.
if not __package__:
    AutoModel.register(CLIPResNetConfig, CLIPResNetModel, exist_ok=True)
    AutoModel.register(CLIPResNetVisionConfig, CLIPResNetVisionModel, exist_ok=True)

__all__ = ["CLIPResNetModel", "CLIPResNetVisionModel"]
