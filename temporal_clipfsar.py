"""The temporal transformer of CLIP-FSAR: attention over the frames of a video and, for prototypes, the class text.

Shapes: V sequences of L tokens, D feature size.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

try:
    from .configuration_clipfsar import CLIPFSARConfig
except ImportError:
    if __package__:
        raise
    from configuration_clipfsar import CLIPFSARConfig


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as in transformers: (V, heads, L, C) each -> (V, L, heads, C) and the weights (V, heads, L, L).

    It ignores `attention_mask` and `dropout`: our layers use neither a mask nor dropout on the weights.
    """
    weights = (query @ key.transpose(-2, -1) * scaling).softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class CLIPFSARTemporalAttention(nn.Module):
    """Multi-head attention over the frames of a sequence, with the LayerNorm before it: (V, L, D) -> (V, L, D).

    Also returns the attention weights (V, heads, L, L), or None if the attention implementation keeps none.
    """

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.is_causal = False
        self.num_heads = config.temporal_num_heads
        self.scaling = (size // self.num_heads) ** -0.5
        self.norm = nn.LayerNorm(size)
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.out_proj = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.temporal_attention_dropout)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states = self.norm(hidden_states)
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (V, heads, L, D / heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0)
        return self.dropout(self.out_proj(context.flatten(2))), weights


class CLIPFSARTemporalMLP(nn.Module):
    """Feed-forward part of a temporal layer; no LayerNorm before it, as in the official program."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.temporal_intermediate_size)
        self.fc2 = nn.Linear(config.temporal_intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.temporal_hidden_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(hidden_states)))))


class CLIPFSARTemporalLayer(GradientCheckpointingLayer):
    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        self.attention = CLIPFSARTemporalAttention(config)
        self.mlp = CLIPFSARTemporalMLP(config)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        mixed, weights = self.attention(hidden_states)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(hidden_states), weights


class CLIPFSARTemporalTransformer(nn.Module):
    """Mixes the frames of each sequence, (..., L, D) -> (..., L, D); no positions, the same weights for all videos."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        self.layers = nn.ModuleList(CLIPFSARTemporalLayer(config) for _ in range(config.temporal_num_layers))

    def forward(self, hidden_states: torch.Tensor, attentions: list | None = None) -> torch.Tensor:
        """Appends the attention weights of each layer, (..., heads, L, L), to `attentions` if it is given."""
        if 0 in hidden_states.shape:  # no videos: transformers' attention fails on an empty tensor
            return hidden_states
        sequences = hidden_states.reshape(-1, *hidden_states.shape[-2:])
        for layer in self.layers:
            sequences, weights = layer(sequences)
            if attentions is not None and weights is not None and weights.dim() == 4:  # flex attention returns sums
                attentions.append(weights.view(*hidden_states.shape[:-2], *weights.shape[1:]))
        return sequences.view(hidden_states.shape)


__all__ = [
    "CLIPFSARTemporalAttention",
    "CLIPFSARTemporalLayer",
    "CLIPFSARTemporalMLP",
    "CLIPFSARTemporalTransformer",
    "eager_attention_forward",
]
