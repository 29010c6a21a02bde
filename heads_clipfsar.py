"""Heads: ways of comparing videos that need more than one sequence per class, or weights of their own.

A head gets the states of queries and of *each* support video. TRX compares tuples of frames, HyRSM relates the videos
of an episode to each other, and Chamfer matches tuples without any weights. `register_head` adds one of your own.

Letters in shapes: B episodes, N classes, K shots, S support videos, Q queries, T, L, M frames, D feature size.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

try:
    from .alignment_clipfsar import frame_cosine_similarity
except ImportError:
    if __package__:
        raise
    from alignment_clipfsar import frame_cosine_similarity

try:
    from .choices_clipfsar import ALIGNMENTS, own_alignments
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import ALIGNMENTS, own_alignments

# Size of the largest intermediate tensor without gradients: on a CPU it fits the cache, on a GPU it fills the cores.
_NUMBERS_PER_CHUNK = {"cpu": 2**22}
_NUMBERS_PER_CHUNK_ELSEWHERE = 2**26
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def group_by_class(
    support: torch.Tensor, support_labels: torch.Tensor, n_way: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Support videos in the order of their classes.

    Args:
        support: (B, S, ...), any features of the support videos.
        support_labels: (B, S), the class within the episode, 0..N-1; -1 leaves the video out.
        n_way: N.

    Returns:
        (B, N, K, ...), where K is the largest number of shots of a class, and (B, N, K), which of these are videos
        and not padding; None if all of them are. Reads the labels, so a GPU is waited for.
    """
    membership = support_labels.unsqueeze(1) == torch.arange(n_way, device=support_labels.device).unsqueeze(-1)
    shots = membership.sum(-1)  # (B, N)
    most = max(1, int(shots.max()))
    rows = membership.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :most]  # (B, N, K)
    episodes = torch.arange(len(support), device=rows.device)[:, None, None]
    present = torch.arange(most, device=shots.device) < shots.unsqueeze(-1)
    return support[episodes, rows], None if bool(present.all()) else present


def class_means(shots: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """Mean (B, N, ...) over the shots of each class (B, N, K, ...), without the padding; see `group_by_class`."""
    if present is None:
        return shots.mean(2)
    weights = present.to(shots.dtype) / present.sum(-1, keepdim=True).clamp(min=1)
    return (shots * weights.reshape(*weights.shape, *[1] * (shots.dim() - 3))).sum(2)


class Head(nn.Module):
    """A way of comparing videos: states of queries and support videos in, distances out.

    A subclass overrides `compare`. Work that does not depend on the rest of the episode belongs into `encode`: an
    evaluation then does it once per video.

    Args:
        config: The model's `CLIPFSARConfig`.

    Attributes:
        name: The `alignment` that chose it.
        compares_classes_together: Whether a distance to a class depends on the other classes of the episode. Then no
            exact accuracy exists, and clips are left out of whole support sets.
    """

    name = ""
    compares_classes_together = False

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Head":
        """Moves the weights. They stay in float32 when the model goes to half precision: videos are compared in it."""

        def keeping_float32(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            is_halved = moved.is_floating_point() and moved.element_size() < 4
            return tensor.to(moved.device, torch.float32) if is_halved else moved

        return super()._apply(keeping_float32, recurse)

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        """Features (..., X, E) of videos from their states (..., T, D); by default the states themselves."""
        return states

    def compare(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """Distances (B, Q, N), which grow when videos differ.

        Args:
            query: (B, Q, X, E), from `encode`.
            shots: (B, N, K, X, E), from `encode`.
            present: (B, N, K), False for padding where classes have unequal shots; None if there is none.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define compare.")

    def frame_weights(
        self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """How much each pair of a query frame and a support frame counts, (B, Q, N, K, L, M), for explanations.

        None if the head cannot tell.
        """
        return None

    def numbers_per_pair(self, query: torch.Tensor) -> int:
        """Size of the largest tensor that `compare` makes for one query and one shot."""
        return query.shape[-2:].numel()

    def forward(
        self,
        query_states: torch.Tensor,
        support_states: torch.Tensor,
        support_labels: torch.Tensor,
        n_way: int | None = None,
    ) -> torch.Tensor:
        """Distances (B, Q, N).

        Args:
            query_states: (B, Q, L, D).
            support_states: (B, S, M, D).
            support_labels: (B, S), the class within the episode, 0..N-1; -1 leaves the video out.
            n_way: N; by default the largest label + 1.
        """
        n_way = int(support_labels.max()) + 1 if n_way is None else n_way
        shots, present = group_by_class(self.encode(support_states), support_labels, n_way)
        return self.distances(self.encode(query_states), shots, present)

    def loss_and_distances(
        self,
        query_states: torch.Tensor,
        support_states: torch.Tensor,
        support_labels: torch.Tensor,
        n_way: int,
        query_base_labels: torch.Tensor | None = None,
        support_base_labels: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What `forward` returns, and before it a loss that the head adds in training; None if it adds none."""
        return None, self(query_states, support_states, support_labels, n_way)

    def distances(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """`compare` in chunks of episodes or queries, so that memory does not grow with them. One call in training."""
        if torch.is_grad_enabled() or _is_exporting():
            return self.compare(query, shots, present)
        n_query = query.shape[1]
        numbers = _NUMBERS_PER_CHUNK.get(query.device.type, _NUMBERS_PER_CHUNK_ELSEWHERE)
        queries = max(1, numbers // max(1, self.numbers_per_pair(query) * shots.shape[1:3].numel()))
        episodes = max(1, queries // max(1, n_query))
        distances = []
        for start in range(0, len(query), episodes):
            chunk = slice(start, start + episodes)
            of_chunk = None if present is None else present[chunk]
            parts = query[chunk].split(queries, dim=1)
            distances.append(torch.cat([self.compare(part, shots[chunk], of_chunk) for part in parts], dim=1))
        return torch.cat(distances) if distances else self.compare(query, shots, present)


def _ordered_tuples(num_frames: int, size: int, device: torch.device) -> torch.Tensor:
    """(P, size), all tuples of frame numbers in the order of time.

    Raises:
        ValueError: When there are fewer frames than a tuple has.
    """
    if num_frames < size:
        raise ValueError(f"A video of {num_frames} frames has no tuple of {size}: use more frames or smaller tuples.")
    return torch.tensor(list(itertools.combinations(range(num_frames), size)), device=device)


# --- Chamfer ----------------------------------------------------------------------------------------------------------


class Chamfer(Head):
    """Chamfer++ (Bertrand et al., arXiv 2303.16084): matches ordered tuples of frames in both directions. No weights.

    The similarity of two tuples is the mean cosine of their frames. That of a query and a class is the mean of two:
    over the query's tuples, the largest similarity to a tuple of *any* shot; over the shots' tuples, the largest to a
    tuple of the query. The distance is 1 minus that. The paper's "joint" variant: shots stand side by side, no mean of
    shots is taken. A tuple's frames come from one shot.
    """

    def compare(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        return self._distances(self._frame_similarities(query, shots), present)

    def _frame_similarities(self, query: torch.Tensor, shots: torch.Tensor) -> torch.Tensor:
        """(B, Q, N, K, L, M)."""
        similarity = frame_cosine_similarity(query.flatten(1, 2), shots.flatten(1, 3), self.config.cosine_epsilon)
        similarity = similarity.unflatten(-1, shots.shape[1:4]).unflatten(1, query.shape[1:3])  # (B, Q, L, N, K, M)
        return similarity.movedim(2, -2)

    def _distances(self, similarity: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
        size = self.config.chamfer_tuple_size
        rows, columns = (_ordered_tuples(num, size, similarity.device) for num in similarity.shape[-2:])
        # (B, Q, N, K, query tuples, support tuples)
        tuples = torch.stack([similarity[..., r, :][..., c] for r, c in zip(rows.T, columns.T, strict=True)]).mean(0)
        per_shot = tuples.amax(-2).mean(-1)  # (B, Q, N, K): a shot's tuples look for their best match
        of_query = tuples.amax(-1)  # (B, Q, N, K, query tuples)
        if present is not None:
            of_query = of_query.masked_fill(~present[:, None, ..., None], -torch.inf)
            per_shot = (
                per_shot.masked_fill(~present[:, None], 0) * (present.shape[-1] / present.sum(-1))[:, None, :, None]
            )
        return 1 - 0.5 * (of_query.amax(3).mean(-1) + per_shot.mean(-1))

    def frame_weights(
        self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None
    ) -> torch.Tensor:
        return _derivative(
            lambda similarity: -self._distances(similarity, present), self._frame_similarities(query, shots)
        )

    def numbers_per_pair(self, query: torch.Tensor) -> int:
        return math.comb(query.shape[-2], self.config.chamfer_tuple_size) ** 2


def _derivative(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """Derivative of the sum of a function's values, also where gradients are off."""
    with torch.inference_mode(False), torch.enable_grad():
        variable = at.clone().requires_grad_()
        (derivative,) = torch.autograd.grad(function(variable).sum(), variable)
    return derivative


# --- TRX --------------------------------------------------------------------------------------------------------------


class TRX(Head):
    """Temporal-relational cross-transformers (Perrett et al., CVPR 2021): attention between tuples of frames.

    Every tuple of c frames, in the order of time, has a key and a value, linear in the tuple's frames; the key is
    normalised. A query's tuple attends over all tuples of all shots of a class, which gives the value it expects. The
    distance is the mean over its tuples of the squared distance of the expected and its own value, and the mean over c.

    The maps are linear, so a tuple's key or value is a sum of one term per frame. `encode` computes these terms, one
    per place in a tuple and frame. `compare` takes their products, and sums products over the frames of tuples: 8
    frames have 18 terms for c = 3 but 56 tuples. No tuple of the width of a value is ever made.
    """

    key_maps: Any  # lists of modules: of linear layers, and of layer norms
    value_maps: Any
    key_norms: Any

    def __init__(self, config: Any):
        super().__init__(config)
        size, self.cardinalities = config.trx_size, tuple(config.trx_cardinalities)
        self.key_maps, self.value_maps = (
            nn.ModuleList(nn.Linear(c * config.hidden_size, size) for c in self.cardinalities) for _ in range(2)
        )
        self.key_norms = nn.ModuleList(nn.LayerNorm(size) for _ in self.cardinalities)
        self.dropout = nn.Dropout(config.head_dropout)

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        """Terms (..., X, size): for each cardinality c, those of keys, then those of values, c * (T - c + 1) each."""
        _ordered_tuples(states.shape[-2], max(self.cardinalities), states.device)  # raises for too few frames
        code = _sine_code(states.shape[-2], states.shape[-1], states)
        terms = []
        for c, key_map, value_map in zip(self.cardinalities, self.key_maps, self.value_maps, strict=True):
            frames = self.dropout(states + 0.1 * code)
            keys = _terms(key_map, frames, c)
            terms += [keys - keys.mean(-1, keepdim=True), _terms(value_map, frames, c)]  # a norm's mean is linear too
        return torch.cat(terms, dim=-2)

    def compare(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        distances = []
        for query_tuples, tuples, attention, query_values, values in self._attend(query, shots, present):
            # The expected value is a weighted sum of the shots' terms, (B, Q, query tuples, N, K * terms).
            weights = (attention @ tuples).flatten(-2)
            both = query_tuples @ _products(query_values, values).flatten(3)  # (B, Q, query tuples, N * K * terms)
            values = values.flatten(2, 3)  # (B, N, K * terms, size)
            expected = weights.movedim(3, 1).flatten(2, 3) @ (values @ values.transpose(-2, -1))
            expected = expected.unflatten(2, weights.shape[1:3]).movedim(1, 3)
            own = _squared_sums(query_values, query_tuples).sum(-1, keepdim=True)
            of_class = ((expected - 2 * both.view(weights.shape)) * weights).sum((2, -1))
            distances.append((own + of_class) / len(query_tuples))
        return torch.stack(distances).mean(0)

    def _attend(
        self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """For each cardinality: tuples of queries and of shots as 0/1 sums of terms (tuples, terms), the attention (B,
        Q, query tuples, N, K, tuples), and terms of values of queries (B, Q, terms, size) and shots (B, N, K, ...)."""
        of_query, of_shots = (self._split(features) for features in (query, shots))
        for number, norm in enumerate(self.key_norms):
            (query_keys, query_values), (keys, values) = of_query[number], of_shots[number]
            query_tuples, tuples = (
                _sums_of_terms(query, self.cardinalities[number], one.shape[-2]) for one in (query_keys, keys)
            )
            scores = (_products(query_keys * norm.weight**2, keys) @ tuples.T).flatten(3)
            scores = (query_tuples / _lengths(query_keys, query_tuples, norm).unsqueeze(-1)) @ scores
            # Only this part of the norms' offsets differs between a class's tuples; a softmax ignores the others.
            offsets = (keys @ (norm.weight * norm.bias)) @ tuples.T  # (B, N, K, tuples)
            factors = norm.normalized_shape[0] ** -0.5 / _lengths(keys, tuples, norm)
            scores = scores.view(*scores.shape[:3], *offsets.shape[1:])
            scores = torch.addcmul((offsets * factors)[:, None, None], scores, factors[:, None, None])
            if present is not None:
                scores = scores.masked_fill(~present[:, None, None, ..., None], -torch.inf)
            attention = scores.flatten(-2).softmax(-1)  # over all tuples of all shots of a class
            yield query_tuples, tuples, attention.view(scores.shape), query_values, values

    def _num_frames(self, features: torch.Tensor) -> int:
        """T of encoded videos: X = 2 * sum of c * (T - c + 1)."""
        return (features.shape[-2] // 2 + sum(c * (c - 1) for c in self.cardinalities)) // sum(self.cardinalities)

    def _split(self, features: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Terms of keys and values for each cardinality."""
        num_frames = self._num_frames(features)
        sizes = [c * (num_frames - c + 1) for c in self.cardinalities for _ in range(2)]
        parts = [part.contiguous() for part in features.split(sizes, dim=-2)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def frame_weights(
        self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The attention between tuples, given to the pairs of their frames: first with first, second with second."""
        num_rows, num_columns = (self._num_frames(features) for features in (query, shots))
        weights = query.new_zeros(*query.shape[:2], *shots.shape[1:3], num_rows, num_columns)
        attended = self._attend(query, shots, present)
        for (query_tuples, tuples, attention, *_), c in zip(attended, self.cardinalities, strict=True):
            attention = attention.movedim(2, -2)  # (B, Q, N, K, query tuples, tuples)
            of_terms = query_tuples.T @ attention @ tuples / (c * len(query_tuples) * len(self.cardinalities))
            of_places = of_terms.unflatten(-1, (c, -1)).unflatten(-3, (c, -1))  # (B, Q, N, K, c, terms, c, terms)
            rows, columns = num_rows - c + 1, num_columns - c + 1
            for place in range(c):
                pairs = of_places[..., place, :, place, :]
                weights[..., place : place + rows, place : place + columns] += pairs
        return weights

    def numbers_per_pair(self, query: torch.Tensor) -> int:
        num_frames = self._num_frames(query)
        return max(math.comb(num_frames, c) ** 2 for c in self.cardinalities)


def _sine_code(num_frames: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """The usual position code (T, D): sine and cosine at 10000^(-i / D) for even i."""
    positions = torch.arange(num_frames, dtype=torch.float32, device=like.device).unsqueeze(-1)
    even = torch.arange(0, size, 2, dtype=torch.float32, device=like.device)
    angles = positions * torch.exp(even * (-math.log(10000.0) / size))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[:, :size].to(like.dtype)


def _terms(linear: nn.Linear, frames: torch.Tensor, c: int) -> torch.Tensor:
    """Each frame's part of a linear map of c concatenated frames, (..., c * (T - c + 1), size): place after place, the
    frames that can stand there in the order of time."""
    size, width = linear.weight.shape
    weight = linear.weight.view(size, c, width // c).transpose(0, 1)  # (c, size, D)
    terms = F.linear(frames, weight.flatten(0, 1)).unflatten(-1, (c, size)) + linear.bias / c  # (..., T, c, size)
    last = frames.shape[-2] - c + 1
    return torch.cat([terms[..., place : place + last, place, :] for place in range(c)], dim=-2)


def _sums_of_terms(like: torch.Tensor, c: int, num_terms: int) -> torch.Tensor:
    """(tuples, terms), 1 where a term belongs to a tuple."""
    per_place = num_terms // c
    tuples = _ordered_tuples(per_place + c - 1, c, like.device)
    places = torch.arange(c, device=like.device) * (per_place - 1)  # a place's first term is of the frame of its number
    return F.one_hot(tuples + places, num_terms).sum(1).to(like.dtype)


def _products(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Products (B, Q, X, N * K, Y) of the rows of (B, Q, X, E) with those of (B, N, K, Y, E), by one multiplication."""
    products = x.flatten(1, 2) @ y.flatten(1, 3).transpose(-2, -1)
    return products.view(*x.shape[:3], -1, y.shape[-2])


def _squared_sums(terms: torch.Tensor, tuples: torch.Tensor) -> torch.Tensor:
    """Squared length (..., tuples) of the sum of each tuple's terms, of (..., terms, size)."""
    return ((tuples @ (terms @ terms.transpose(-2, -1))) * tuples).sum(-1)


def _lengths(terms: torch.Tensor, tuples: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    """Standard deviation (..., tuples) by which a layer norm divides the sum of centred terms (..., terms, size)."""
    return (_squared_sums(terms, tuples) / terms.shape[-1] + norm.eps).sqrt()


# --- HyRSM ------------------------------------------------------------------------------------------------------------


class HyRSM(Head):
    """Hybrid relation guided set matching (Wang et al., CVPR 2022), and HyRSM++ (Wang et al., PR 2023).

    Frames attend to the frames of their video. The shots of a class are averaged frame by frame. For each query, the
    class means and the query attend to each other as one token per video, and each frame is mixed with its video's
    token. Prototypes therefore differ per query. The distance sums, over the frames of either side, the smallest cosine
    distance to a frame of the other side.

    In training, `temporal_coherence_weight` adds the loss of HyRSM++, and `num_base_classes` a classifier of frames.
    """

    compares_classes_together = True

    def __init__(self, config: Any):
        super().__init__(config)
        size, self.num_heads = config.hidden_size, config.temporal_num_heads
        self.frame_norm = nn.LayerNorm(size)
        self.frame_qkv = nn.Linear(size, 3 * size, bias=False)
        self.frame_out = nn.Linear(size, size)
        self.video_qkv = nn.Linear(size, 3 * size, bias=False)
        self.video_out = nn.Linear(size, size)
        self.video_norm = nn.LayerNorm(size)
        self.mix = nn.Linear(2 * size, size)  # officially a 1 x 1 convolution
        self.classifier = nn.Linear(size, config.num_base_classes) if config.num_base_classes else None
        self.code_dropout = nn.Dropout(config.head_dropout)
        self.frame_dropout = nn.Dropout(config.temporal_attention_dropout)

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        size = states.shape[-1]
        frames = self.code_dropout(states * (size / 10) ** 0.5 + _official_code(states.shape[-2], size, states))
        mixed = self._attend(self.frame_qkv(self.frame_norm(frames)))
        return (frames + self.frame_dropout(self.frame_out(mixed))).relu()

    def _attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Multi-head attention over the last but one dimension, (..., L, 3 * D) -> (..., L, D)."""
        heads = qkv.unflatten(-1, (3, self.num_heads, -1)).movedim(-3, 0).transpose(-3, -2)
        return F.scaled_dot_product_attention(*heads.unbind()).transpose(-3, -2).flatten(-2)

    def compare(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        return self._match(_cosine_distances(*self._relate(query, shots, present)))

    def _relate(
        self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames of queries (B, Q, L, D) and of the prototypes that each query meets (B, Q, N, M, D)."""
        prototypes = class_means(shots, present)  # (B, N, M, D)
        n_query = query.shape[1]
        classes, own = prototypes.mean(-2), query.mean(-2)  # one token per video
        tokens, qkv = (
            torch.cat([one.unsqueeze(1).expand(-1, n_query, -1, -1), other.unsqueeze(2)], dim=2)
            for one, other in ((classes, own), (self.video_qkv(classes), self.video_qkv(own)))
        )  # (B, Q, N + 1, ...): the projections of a class's token are the same for all queries
        tokens = self.video_norm(tokens + self.video_out(self._attend(qkv))).relu()
        of_frame, of_token = self.mix.weight.chunk(2, dim=1)
        mixed = F.linear(tokens, of_token, self.mix.bias).unsqueeze(-2)  # (B, Q, N + 1, 1, D)
        of_query = F.linear(query, of_frame) + mixed[:, :, -1]
        return of_query, F.linear(prototypes, of_frame).unsqueeze(1) + mixed[:, :, :-1]

    @staticmethod
    def _match(frame_distances: torch.Tensor) -> torch.Tensor:
        return frame_distances.amin(-1).sum(-1) + frame_distances.amin(-2).sum(-1)

    def loss_and_distances(
        self,
        query_states: torch.Tensor,
        support_states: torch.Tensor,
        support_labels: torch.Tensor,
        n_way: int,
        query_base_labels: torch.Tensor | None = None,
        support_base_labels: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        query, support = self.encode(query_states), self.encode(support_states)
        of_query, prototypes = self._relate(query, *group_by_class(support, support_labels, n_way))
        losses = []
        if self.config.temporal_coherence_weight:
            coherence = self.temporal_coherence_loss(prototypes) + self.temporal_coherence_loss(of_query)
            losses.append(self.config.temporal_coherence_weight * coherence)
        if self.classifier is not None and query_base_labels is not None and support_base_labels is not None:
            labels = torch.cat([support_base_labels, query_base_labels], dim=1).to(query.device)
            logits = self.classify_frames(torch.cat([support, query], dim=1))  # (B, S + Q, T, base classes)
            labels = labels.masked_fill(labels < 0, -100).unsqueeze(-1).expand(logits.shape[:-1])
            losses.append(F.cross_entropy(logits.flatten(0, -2), labels.flatten()))
        loss = torch.stack(losses).sum() if losses else None
        return loss, self._match(_cosine_distances(of_query, prototypes))

    def classify_frames(self, features: torch.Tensor) -> torch.Tensor:
        """Base-class logits (..., T, base classes) of encoded frames (..., T, D).

        Raises:
            ValueError: When the model was made without `num_base_classes`.
        """
        if self.classifier is None:
            raise ValueError("num_base_classes=0: this head has no classifier of frames.")
        return self.classifier(features)

    def temporal_coherence_loss(self, frames: torch.Tensor) -> torch.Tensor:
        """Mean loss of related frames (..., T, D) (HyRSM++): near frames look alike, far frames differ.

        With the distance d of frames i and j, and a window w and balance b from the configuration, it is d / (|i - j|^2
        + 1) inside |i - j| <= w, and outside relu(1 - exp(-(|i - j| - w)^2 / b) - d).
        """
        frames = F.normalize(frames, dim=-1)
        distances = 1 - frames @ frames.transpose(-2, -1)
        positions = torch.arange(frames.shape[-2], device=frames.device, dtype=frames.dtype)
        gaps = (positions.unsqueeze(-1) - positions).abs()
        window, balance = self.config.temporal_coherence_window, self.config.temporal_coherence_balance
        margins = 1 - (-((gaps - window) ** 2) / balance).exp()
        return torch.where(gaps <= window, distances / (gaps**2 + 1), (margins - distances).relu()).mean()

    def frame_weights(
        self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The pairs that count in the distance, of the query and a class's mean; the same for each of its shots."""
        weights = _derivative(self._match, _cosine_distances(*self._relate(query, shots, present)))
        return weights.unsqueeze(3).expand(-1, -1, -1, shots.shape[2], -1, -1)


def _official_code(num_frames: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """HyRSM's position code (T, D). Officially the exponents are twice the usual ones, and differ in a pair."""
    positions = torch.arange(num_frames, dtype=torch.float32, device=like.device).unsqueeze(-1)
    even = torch.arange(0, size, 2, dtype=torch.float32, device=like.device)
    waves = [(positions / 10000 ** (2 * even / size)).sin(), (positions / 10000 ** (2 * (even + 1) / size)).cos()]
    return torch.stack(waves, dim=-1).flatten(-2)[:, :size].to(like.dtype)


def _cosine_distances(query: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """1 - cosine of frames (B, Q, L, D) and (B, Q, N, M, D), as (B, Q, N, L, M)."""
    query, prototypes = F.normalize(query, dim=-1), F.normalize(prototypes, dim=-1)
    similarity = query @ prototypes.flatten(2, 3).transpose(-2, -1)  # (B, Q, L, N * M)
    return 1 - similarity.unflatten(-1, prototypes.shape[2:4]).transpose(2, 3)


# --- choosing one -----------------------------------------------------------------------------------------------------

HEADS: dict[str, Callable[[Any], Head]] = {"chamfer": Chamfer, "trx": TRX, "hyrsm": HyRSM}


def register_head(name: str, head: Callable[[Any], Head]) -> None:
    """Makes `alignment=name` choose a head of your own, wherever an alignment is chosen.

    The code of the head is not saved with a model: register it again before you load one.

    Args:
        name: A new name; registering the same name again replaces your head.
        head: A subclass of `Head`, or a function that makes one from a configuration.

    Raises:
        ValueError: For the name of a way of comparing that this library has.
    """
    if name in ALIGNMENTS:
        raise ValueError(f"alignment={name!r} is one of {', '.join(ALIGNMENTS)}: give your head another name.")
    HEADS[name] = head
    if name not in own_alignments:
        own_alignments.append(name)


def make_head(config: Any) -> Head | None:
    """The head that a configuration chooses; None for `"otam"`, `"bi_mhm"` and `"mean"`, which need none."""
    if config.alignment not in HEADS:
        return None
    head = HEADS[config.alignment](config)
    head.name = config.alignment
    return head


__all__ = ["HEADS", "TRX", "Chamfer", "Head", "HyRSM", "class_means", "group_by_class", "make_head", "register_head"]
