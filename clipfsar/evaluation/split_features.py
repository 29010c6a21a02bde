"""Features of a split's videos that are the same in every episode, computed once."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from enrolled_clipfsar import distances_in_pieces
from modeling_clipfsar import CLIPFSARModel, evaluating

PROTOTYPES_AT_ONCE = 4096
_BYTES_OF_FEATURES = 2**26  # encoded videos that are copied at once; larger copies leave a processor's cache


class SplitFeatures:
    """Frame features of a split, and the values computed from them that do not depend on the episode.

    Args:
        model: It computes in evaluation mode; afterwards its mode is restored.
        video_embeds: (V, T, D), from `VideoEncoder.encode`.
        class_embeds: (C, D), from `VideoEncoder.encode_classes`.
        labels: (V,), class of each video, 0..C-1; videos with a negative label are in no episode.
        videos_per_batch: Batch size of the temporal transformer.
        episodes_per_batch: Batch size of the temporal transformer for prototypes of several shots.

    Attributes:
        query_states: (V, T, D). A query passes the temporal transformer without a text.
        text_logits: (V, C), zero-shot.
        one_shot_prototypes: (V, T, D). The text of its own class modulates each support video.
        encoded_queries, encoded_shots: (V, X, E), the same two encoded by the model's head, if it has one.
    """

    def __init__(
        self,
        model: CLIPFSARModel,
        video_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
        labels: np.ndarray,
        videos_per_batch: int = 256,
        episodes_per_batch: int = 32,
    ):
        self.model = model
        self.video_embeds, self.class_embeds = video_embeds.to(model.device), class_embeds.to(model.device)
        self.labels = torch.as_tensor(labels, device=model.device)
        self.videos_per_batch, self.episodes_per_batch = videos_per_batch, episodes_per_batch

    @cached_property
    def query_states(self) -> torch.Tensor:
        return self._of_all_videos(lambda rows: self.model.get_query_states(self.video_embeds[rows]))

    @cached_property
    def text_logits(self) -> torch.Tensor:
        return self._of_all_videos(self.text_logits_of)

    @cached_property
    def one_shot_prototypes(self) -> torch.Tensor:
        def prototypes_of(rows: slice) -> torch.Tensor:
            videos, own_texts = self.video_embeds[rows], self.class_embeds[self.labels[rows]]
            only_class = torch.zeros(len(videos), 1, dtype=torch.long, device=videos.device)
            return self.model.get_prototypes(videos.unsqueeze(1), only_class, own_texts.unsqueeze(1)).squeeze(1)

        return self._of_all_videos(prototypes_of)

    def _of_all_videos(self, values_of: Callable[[slice], torch.Tensor]) -> torch.Tensor:
        """Values (V, ...) from those of batches of videos, without a second copy of all of them."""
        num_videos, size = len(self.video_embeds), self.videos_per_batch
        with evaluating(self.model):
            first = values_of(slice(0, size))
            whole = first.new_empty(num_videos, *first.shape[1:])
            whole[:size] = first
            for start in range(size, num_videos, size):
                whole[start : start + size] = values_of(slice(start, start + size))
        return whole

    @cached_property
    def encoded_queries(self) -> torch.Tensor:
        return self._encoded(self.query_states)

    @cached_property
    def encoded_shots(self) -> torch.Tensor:
        if torch.equal(self.one_shot_prototypes, self.query_states):  # no text, no temporal transformer
            return self.encoded_queries
        return self._encoded(self.one_shot_prototypes)

    def _encoded(self, states: torch.Tensor) -> torch.Tensor:
        return self._of_all_videos(lambda rows: self.model.encode_states(states[rows]))

    def distances(self, query_rows: torch.Tensor, support_rows: torch.Tensor, class_ids: torch.Tensor) -> torch.Tensor:
        """Distances (B, Q, N) of queries (B, Q) to the classes (B, N) with support videos (B, N, K)."""
        model = self.model
        if not model.keeps_shots:
            return model.get_distances(self.query_states[query_rows], self.prototypes(support_rows, class_ids))
        bytes_per_video = self.encoded_queries[0].nbytes
        videos_per_episode = query_rows.shape[1] + support_rows.shape[1:].numel()
        at_once = max(1, _BYTES_OF_FEATURES // (bytes_per_video * videos_per_episode))
        pieces = zip(query_rows.split(at_once), support_rows.split(at_once), strict=True)
        with evaluating(model):
            return torch.cat(
                [
                    model.compare_encoded(self.encoded_queries[queries], self.encoded_shots[shots])
                    for queries, shots in pieces
                ]
            )

    def one_shot_distances(self, query_rows: torch.Tensor, support_rows: torch.Tensor) -> torch.Tensor:
        """Distances (Q, S) of videos as queries to the 1-shot prototypes of videos, computed in pieces."""
        if self.model.keeps_shots:
            return self._one_shot_distances_of_head(query_rows, support_rows)
        prototypes = self.one_shot_prototypes
        with evaluating(self.model):
            query_states = self.model.get_query_states(self.video_embeds[query_rows])
            pieces = support_rows.split(PROTOTYPES_AT_ONCE)
            return torch.cat([distances_in_pieces(self.model, query_states, prototypes[rows]) for rows in pieces], -1)

    def _one_shot_distances_of_head(self, query_rows: torch.Tensor, support_rows: torch.Tensor) -> torch.Tensor:
        queries, shots = self.encoded_queries, self.encoded_shots
        at_once = max(1, _BYTES_OF_FEATURES // shots[0].nbytes)
        with evaluating(self.model):
            pieces = [
                self.model.compare_encoded(queries[None, query_rows], shots[None, rows, None])[0]
                for rows in support_rows.split(at_once)
            ]
        return torch.cat(pieces, dim=-1)

    def text_logits_of(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Zero-shot logits (rows, C) of some videos."""
        with evaluating(self.model):
            return self.model.get_text_logits(self.video_embeds[rows], self.class_embeds)

    def prototypes(self, support_rows: torch.Tensor, class_ids: torch.Tensor) -> torch.Tensor:
        """Prototypes (B, N, T, D) of episodes with support videos (B, N, K) of the classes (B, N).

        If the support is averaged *after* the temporal transformer, they are means of 1-shot prototypes. If it is
        averaged before, the transformer runs for every episode, in batches that fit a processor's cache.
        """
        if support_rows.shape[-1] == 1:
            return self.one_shot_prototypes[support_rows.squeeze(-1)]
        if self.model.config.support_pooling == "after":
            return self.one_shot_prototypes[support_rows].mean(2)
        n_way, n_shot = support_rows.shape[1:]
        support_labels = torch.arange(n_way, device=support_rows.device).repeat_interleave(n_shot)
        pieces = zip(support_rows.split(self.episodes_per_batch), class_ids.split(self.episodes_per_batch), strict=True)
        with evaluating(self.model):
            return torch.cat(
                [
                    self.model.get_prototypes(
                        *(self.video_embeds[rows.flatten(1)], support_labels.expand(len(rows), -1)),
                        self.class_embeds[classes],
                    )
                    for rows, classes in pieces
                ]
            )


__all__ = ["SplitFeatures"]
