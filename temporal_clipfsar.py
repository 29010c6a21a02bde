"""The temporal transformer of CLIP-FSAR: attention over the frames of a video, and its text where there is one.

Shapes: V sequences of L tokens, D feature size.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

try:
    from .configuration_clipfsar import CLIPFSARConfig
except ImportError:
    if __package__:
        raise
    from configuration_clipfsar import CLIPFSARConfig


class CLIPFSARTemporalAttention(nn.Module):
    """Multi-head attention over the frames of a sequence, with the LayerNorm before it: (V, L, D) -> (V, L, D)."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.temporal_num_heads
        self.norm = nn.LayerNorm(size)
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.out_proj = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.temporal_attention_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.norm(hidden_states)
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (V, heads, L, D / heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        context = F.scaled_dot_product_attention(query, key, value)
        return self.dropout(self.out_proj(context.transpose(1, 2).flatten(2)))


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

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(hidden_states)
        return hidden_states + self.mlp(hidden_states)


class CLIPFSARTemporalTransformer(nn.Module):
    """Mixes the frames of each sequence, (..., L, D) -> (..., L, D); no positions, the same weights for all videos."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        self.layers = nn.ModuleList(CLIPFSARTemporalLayer(config) for _ in range(config.temporal_num_layers))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        sequences = hidden_states.reshape(-1, *hidden_states.shape[-2:])
        for layer in self.layers:
            sequences = layer(sequences)
        return sequences.view(hidden_states.shape)


__all__ = [
    "CLIPFSARTemporalAttention",
    "CLIPFSARTemporalLayer",
    "CLIPFSARTemporalMLP",
    "CLIPFSARTemporalTransformer",
]
