"""How [`CLIPFSARModel`] compares videos: prototypes of the classes, and distances of queries to them.

Letters in shapes: B episodes, N classes, S support videos, Q queries, T, L, M frames, D feature size.
"""

from typing import Any

import torch
from torch import nn

try:
    from .alignment_clipfsar import bi_mhm_distance, frame_cosine_similarity, otam_distance
except ImportError:
    if __package__:
        raise
    from alignment_clipfsar import bi_mhm_distance, frame_cosine_similarity, otam_distance

try:
    from .choices_clipfsar import ALIGNMENTS, SUPPORT_POOLINGS, check_choice
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import ALIGNMENTS, SUPPORT_POOLINGS, check_choice


def comparable(videos: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Both tensors on the device of the videos, in float32; a float64 tensor keeps its precision."""
    both = (videos, others.to(videos.device))
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in both)


class ComparesVideos:
    """The part of `CLIPFSARModel` that compares queries with support videos."""

    config: Any
    temporal_transformer: Any
    video_text_scale: nn.Parameter

    def get_prototypes(
        self,
        support_embeds: torch.Tensor,
        support_labels: torch.Tensor,
        class_embeds: torch.Tensor | None = None,
        attentions: list | None = None,
    ) -> torch.Tensor:
        """Prototype of each class: its support videos averaged, modulated by its text (paper, Section 3.3).

        Args:
            support_embeds: Frame features of the support videos, (B, S, T, D).
            support_labels: Class of each support video within the episode, (B, S), 0..N-1; -1 leaves the video out.
            class_embeds: Text features of the episode's classes, (B, N, D). They may be None without
                `prototype_modulation`: N is then the largest label + 1.
            attentions: List that receives each layer's attention weights, as `CLIPFSAROutput.prototype_attentions`.

        Returns:
            (B, N, T, D). A class without support videos has meaningless values.

        Raises:
            ValueError: When modulation is on and `class_embeds` is missing, or shapes do not fit each other.
        """
        if support_labels.shape != support_embeds.shape[:2]:
            raise ValueError(
                f"support_labels has shape {tuple(support_labels.shape)}, but there are support videos of shape "
                f"{tuple(support_embeds.shape[:2])} (episodes, videos)."
            )
        if self.config.prototype_modulation and class_embeds is None:
            raise ValueError(
                "The prototypes are modulated by the class texts: give class_input_ids or class_embeds (the "
                "processor makes class_input_ids from class names), or use a model with prototype_modulation=False."
            )
        n_way = class_embeds.shape[1] if class_embeds is not None else int(support_labels.max()) + 1
        support_embeds = support_embeds.to(self.video_text_scale.dtype)
        support_labels = support_labels.to(support_embeds.device)
        membership = support_labels.unsqueeze(1) == torch.arange(n_way, device=support_labels.device).unsqueeze(-1)
        shots = membership.sum(-1, keepdim=True).clamp(min=1)
        mean_weights = membership.to(support_embeds.dtype) / shots  # (B, N, S)

        if self.config.support_pooling == "before":
            pooled = torch.einsum("bns,bstd->bntd", mean_weights, support_embeds)
            return self._modulate(pooled, class_embeds, attentions)
        check_choice("support_pooling", self.config.support_pooling, SUPPORT_POOLINGS)
        texts = None
        if class_embeds is not None:
            rows = support_labels.clamp(min=0).unsqueeze(-1)
            texts = class_embeds.to(rows.device).take_along_dim(rows, dim=1)  # (B, S, D)
        modulated = self._modulate(support_embeds, texts, attentions)
        return torch.einsum("bns,bstd->bntd", mean_weights.to(modulated.device), modulated.to(mean_weights.dtype))

    def _modulate(self, sequences: torch.Tensor, texts: torch.Tensor | None, attentions: list | None) -> torch.Tensor:
        """Runs the temporal transformer over (..., T, D) and the text (..., D) as one more token; drops that token."""
        num_frames = sequences.shape[-2]
        if self.config.prototype_modulation:
            sequences = torch.cat([sequences, texts.unsqueeze(-2).to(sequences)], dim=-2)
        return self.temporal_transformer(sequences, attentions)[..., :num_frames, :]

    def get_query_states(self, query_embeds: torch.Tensor, attentions: list | None = None) -> torch.Tensor:
        """Query sequences after the temporal transformer, without a text: (..., T, D) -> (..., T, D).

        `attentions` is a list that receives the attention weights of each layer, (..., heads, T, T).
        """
        return self.temporal_transformer(query_embeds.to(self.video_text_scale.dtype), attentions)

    def get_distances(self, query_states: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        """Distance of each query to each prototype: `align` of their frame distances, in float32.

        With `alignment="mean"` it is the distance of the mean frames, which frame distances do not determine. An
        `align` that a subclass overrides takes precedence over that setting.

        Args:
            query_states: (..., Q, L, D), from `get_query_states`.
            prototypes: (..., N, M, D), from `get_prototypes`.

        Returns:
            (..., Q, N).
        """
        if self.aligns_frames:
            return self.align(self.get_frame_distances(query_states, prototypes))
        with torch.autocast(query_states.device.type, enabled=False):
            query, prototypes = comparable(query_states, prototypes)
            similarity = frame_cosine_similarity(query.mean(-2), prototypes.mean(-2), self.config.cosine_epsilon)
            return query.shape[-2] * (1 - similarity)

    @property
    def aligns_frames(self) -> bool:
        """Whether distances come from `align`. False only for `alignment="mean"` if no subclass overrides `align`."""
        return self.config.alignment != "mean" or type(self).align is not ComparesVideos.align

    def get_frame_distances(self, query_states: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        """Distance of each query's frames to each prototype's, (..., Q, L, D) and (..., N, M, D) -> (..., Q, N, L, M).

        1 - cosine, in float32.
        """
        with torch.autocast(query_states.device.type, enabled=False):
            query, prototypes = comparable(query_states, prototypes)
            (n_query, num_rows), (n_way, num_columns) = query.shape[-3:-1], prototypes.shape[-3:-1]
            similarity = frame_cosine_similarity(
                query.flatten(-3, -2), prototypes.flatten(-3, -2), self.config.cosine_epsilon
            )  # (..., Q * L, N * M): one matrix product for all pairs
            frame_distances = 1 - similarity.unflatten(-1, (n_way, num_columns)).unflatten(-3, (n_query, num_rows))
            return frame_distances.transpose(-3, -2)  # (..., Q, N, L, M)

    def align(self, frame_distances: torch.Tensor) -> torch.Tensor:
        """Distance (...) from frame distances (..., L, M), by the configuration's `"otam"` or `"bi_mhm"`.

        Override this method in a subclass to use your own distance. It then applies wherever videos are compared: in
        training, evaluation, support sets, pipelines and explanations.
        """
        config = self.config
        with torch.autocast(frame_distances.device.type, enabled=False):
            if config.alignment == "bi_mhm":
                return bi_mhm_distance(frame_distances)
            if config.alignment == "otam":
                return otam_distance(frame_distances, config.otam_smoothing, config.otam_bidirectional)
        check_choice("alignment", config.alignment, ALIGNMENTS)
        raise ValueError(f"alignment={config.alignment!r} compares no frames: get_distances computes it.")


__all__ = ["ComparesVideos", "comparable"]
