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

try:
    from .heads_clipfsar import HEADS, Head, group_by_class
except ImportError:
    if __package__:
        raise
    from heads_clipfsar import HEADS, Head, group_by_class

try:
    from .labels_clipfsar import check_labels, check_shape, checked_classes, number_of_classes, whole_labels
except ImportError:
    if __package__:
        raise
    from labels_clipfsar import check_labels, check_shape, checked_classes, number_of_classes, whole_labels


def comparable(videos: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Both tensors on the device of the videos, in float32; in float64 if one of them is."""
    dtype = torch.promote_types(torch.promote_types(videos.dtype, others.dtype), torch.float32)
    return videos.to(dtype), others.to(videos.device, dtype)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _means_of_classes(videos: torch.Tensor, labels: torch.Tensor, n_way: int) -> torch.Tensor:
    """Mean (..., N, T, D) of the videos (..., S, T, D) of each class, by their labels (..., S); -1 is left out."""
    membership = labels.unsqueeze(-2) == torch.arange(n_way, device=labels.device).unsqueeze(-1)
    shots = membership.sum(-1, keepdim=True).clamp(min=1)
    mean_weights = membership.to(videos.dtype) / shots  # (..., N, S)
    return torch.einsum("...ns,...std->...ntd", mean_weights, videos)


class ComparesVideos:
    """The part of `CLIPFSARModel` that compares queries with support videos."""

    config: Any
    comparison_head: Head | None
    temporal_transformer: Any
    video_text_scale: nn.Parameter
    _check_structure: Any

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
            ValueError: When modulation is on and `class_embeds` is missing, shapes do not fit each other, or labels
                are no whole numbers or out of range.
        """
        support_labels = self._checked_support(support_embeds, support_labels, class_embeds)
        n_way = class_embeds.shape[1] if class_embeds is not None else number_of_classes(support_labels)
        support_embeds = support_embeds.to(self.video_text_scale.dtype)
        support_labels = support_labels.to(support_embeds.device)
        if self.config.support_pooling == "before" and not self.keeps_shots:
            pooled = _means_of_classes(support_embeds, support_labels, n_way)
            return self._modulate(pooled, class_embeds, attentions)
        check_choice("support_pooling", self.config.support_pooling, SUPPORT_POOLINGS)
        modulated = self._modulate_shots(support_embeds, support_labels, class_embeds, attentions)
        return self.average_shots(modulated.to(support_embeds.dtype), support_labels, n_way)

    def get_support_states(
        self,
        support_embeds: torch.Tensor,
        support_labels: torch.Tensor,
        class_embeds: torch.Tensor | None = None,
        attentions: list | None = None,
    ) -> torch.Tensor:
        """States (B, S, T, D) of the support videos, each modulated by the text of its class; no mean is taken.

        Arguments and errors are those of `get_prototypes`. A video with the label -1 has meaningless values.
        """
        support_labels = self._checked_support(support_embeds, support_labels, class_embeds)
        support_embeds = support_embeds.to(self.video_text_scale.dtype)
        return self._modulate_shots(support_embeds, support_labels.to(support_embeds.device), class_embeds, attentions)

    def average_shots(self, support_states: torch.Tensor, support_labels: torch.Tensor, n_way: int) -> torch.Tensor:
        """Mean (B, N, T, D) over the states (B, S, T, D) of each class's support videos, by their labels (B, S)."""
        (support_labels,) = whole_labels(support_labels=support_labels)
        check_shape("support_labels", support_labels, support_states.shape[:-2], "support videos")
        return _means_of_classes(support_states, support_labels.to(support_states.device), n_way)

    def _checked_support(self, support_embeds, support_labels, class_embeds) -> torch.Tensor:
        """The labels as int64, after the checks of `get_prototypes`."""
        (support_labels,) = whole_labels(support_labels=support_labels)
        check_shape("support_labels", support_labels, support_embeds.shape[:2], "support videos")
        check_labels("support_labels", support_labels, None if class_embeds is None else class_embeds.shape[1])
        if self.config.prototype_modulation and class_embeds is None:
            raise ValueError(
                "The prototypes are modulated by the class texts: give class_input_ids or class_embeds (the "
                "processor makes class_input_ids from class names), or use a model with prototype_modulation=False."
            )
        return support_labels

    def _modulate_shots(self, support_embeds, support_labels, class_embeds, attentions) -> torch.Tensor:
        texts = None
        if class_embeds is not None:
            rows = support_labels.clamp(min=0).unsqueeze(-1)
            texts = class_embeds.to(rows.device).take_along_dim(rows, dim=1)  # (B, S, D)
        return self._modulate(support_embeds, texts, attentions)

    def _modulate(self, sequences: torch.Tensor, texts: torch.Tensor | None, attentions: list | None) -> torch.Tensor:
        """Runs the temporal transformer over (..., T, D) and the text (..., D) as one more token; drops that token."""
        self._check_unchanged()
        num_frames = sequences.shape[-2]
        if self.config.prototype_modulation:
            assert texts is not None  # `_checked_support` has raised an error
            sequences = torch.cat([sequences, texts.unsqueeze(-2).to(sequences)], dim=-2)
        return self.temporal_transformer(sequences, attentions)[..., :num_frames, :]

    def get_query_states(self, query_embeds: torch.Tensor, attentions: list | None = None) -> torch.Tensor:
        """Query sequences after the temporal transformer, without a text: (..., T, D) -> (..., T, D).

        `attentions` is a list that receives the attention weights of each layer, (..., heads, T, T).
        """
        self._check_unchanged()
        return self.temporal_transformer(query_embeds.to(self.video_text_scale.dtype), attentions)

    def _check_unchanged(self):
        """Raises `ValueError` if settings of the model's parts have changed; compiled graphs do not check."""
        if not torch.compiler.is_compiling():
            self._check_structure()

    def get_distances(
        self,
        query_states: torch.Tensor,
        support_states: torch.Tensor,
        support_labels: torch.Tensor | None = None,
        n_way: int | None = None,
    ) -> torch.Tensor:
        """Distance of each query to each class, in float32. All alignments and heads answer this one question.

        Without labels, each support sequence is a class: a prototype from `get_prototypes`, or a single video. With
        labels, `"otam"`, `"bi_mhm"` and `"mean"` compare with the mean of a class's sequences: `align` of their frame
        distances. The others compare with each of them (see `heads_clipfsar`). With `alignment="mean"` it is the
        distance of the mean frames, which frame distances do not determine. An `align` that a subclass overrides takes
        precedence over that setting.

        Args:
            query_states: (..., Q, L, D), from `get_query_states`.
            support_states: (..., S, M, D), from `get_support_states`, or prototypes (..., N, M, D).
            support_labels: (..., S), the class within the episode, 0..N-1; -1 leaves the sequence out.
            n_way: N; by default the largest label + 1.

        Returns:
            (..., Q, N).

        Raises:
            ValueError: For labels that are no whole numbers, of another shape or out of range, and for a class without
                support (values on the CPU only: see `labels_clipfsar`).
        """
        support_labels, n_way = checked_classes(support_states.shape[:-2], support_labels, n_way)
        if self.keeps_shots:
            return self._distances_of_head(query_states, support_states, support_labels, n_way)
        prototypes = support_states
        if support_labels is not None:
            prototypes = self.average_shots(support_states, support_labels, n_way)
        if self.aligns_frames:
            return self.align(self.get_frame_distances(query_states, prototypes))
        with torch.autocast(query_states.device.type, enabled=False):
            query, prototypes = comparable(query_states, prototypes)
            similarity = frame_cosine_similarity(query.mean(-2), prototypes.mean(-2), self.config.cosine_epsilon)
            return query.shape[-2] * (1 - similarity)

    def _distances_of_head(self, query_states, support_states, support_labels, n_way) -> torch.Tensor:
        leading = query_states.shape[:-3]
        if support_labels is None:
            support_labels = torch.arange(n_way, device=support_states.device).expand(support_states.shape[:-2])
        query, support = (
            self.encode_states(states.to(query_states.device).reshape(-1, *states.shape[-3:]))
            for states in (query_states, support_states)
        )
        labels = support_labels.to(query.device).reshape(-1, support_labels.shape[-1])
        distances = self.compare_encoded(query, *group_by_class(support, labels, n_way))
        return distances.view(*leading, *distances.shape[1:])

    def encode_states(self, states: torch.Tensor) -> torch.Tensor:
        """Features (..., X, E) of states (..., T, D) from the head: its work that is the same in every episode."""
        with torch.autocast(states.device.type, enabled=False):
            return self.chosen_head.encode(_at_least_float32(states))

    def compare_encoded(
        self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Distances (B, Q, N) of encoded queries to encoded shots; see `Head.compare`."""
        with torch.autocast(query.device.type, enabled=False):
            return self.chosen_head.distances(query, shots, present)

    def _compare_shots(
        self,
        query_states: torch.Tensor,
        support: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        base_labels: tuple[torch.Tensor | None, torch.Tensor | None] | None,
        record: dict,
    ) -> tuple[dict[str, torch.Tensor | None], torch.Tensor]:
        """Prototypes and the head's loss, by their names in the output, and distances.

        Args:
            support: Arguments of `get_support_states`.
            base_labels: Labels of queries and support videos, in training. None in evaluation, which has no such loss.
            record: Receives attention weights.
        """
        support_embeds, labels, class_embeds = support
        n_way = class_embeds.shape[1] if class_embeds is not None else number_of_classes(labels)
        states = self.get_support_states(support_embeds, labels, class_embeds, **record)
        loss = None
        if base_labels is None:
            distances = self._distances_of_head(query_states, states, labels, n_way)
        else:
            for name, own in zip(("query_base_labels", "support_base_labels"), base_labels, strict=True):
                check_labels(name, own, self.config.num_base_classes or None)  # 0: the head has no classifier
            with torch.autocast(states.device.type, enabled=False):
                given = (_at_least_float32(query_states), _at_least_float32(states).to(query_states.device))
                on_device = labels.to(query_states.device)
                loss, distances = self.chosen_head.loss_and_distances(*given, on_device, n_way, *base_labels)
        prototypes = self.average_shots(states, labels, n_way)
        return {"prototypes": prototypes, "head_loss": loss}, distances

    @property
    def aligns_frames(self) -> bool:
        """Whether distances come from `align`. False for `alignment="mean"` and for heads, unless a subclass overrides
        `align`."""
        return self.config.alignment not in ("mean", *HEADS) or type(self).align is not ComparesVideos.align

    @property
    def keeps_shots(self) -> bool:
        """Whether a head compares queries with each shot of a class, not with a prototype."""
        return self.config.alignment in HEADS and type(self).align is ComparesVideos.align

    @property
    def chosen_head(self) -> Head:
        """The head that compares videos.

        Raises:
            ValueError: When the configuration has chosen another one since the model was made.
        """
        alignment = self.config.alignment
        if self.comparison_head is None or self.comparison_head.name != alignment:
            raise ValueError(
                f"The model was made without the head of alignment={alignment!r}: load it with "
                f"from_pretrained(..., alignment={alignment!r}) instead of changing its configuration."
            )
        return self.comparison_head

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
