"""Which unlabelled clips to label next for a support set.

Letters in shapes: P clips of the pool, S enrolled clips, N classes, T frames, D feature size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

try:
    from .choices_clipfsar import check_choice, check_positive_integer, checked_seed
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import check_choice, check_positive_integer, checked_seed

try:
    from .support_set_files_clipfsar import EnrolledClass, embeds_of_clips
except ImportError:
    if __package__:
        raise
    from support_set_files_clipfsar import EnrolledClass, embeds_of_clips

STRATEGIES = ("representative", "margin", "coverage", "typicality", "random")
_NEIGHBOURS = 5  # of a clip, for its typicality
_MOST_COMPARED = 2**13  # clips of a pool that are compared with each other: 256 MB


@dataclass(frozen=True)
class Suggestion:
    """A clip of the pool to label next.

    Args:
        index: Its place in the pool.
        label: The class that it is taken for now.
        probability: Probability of that class.
    """

    index: int
    label: str
    probability: float


def suggest_clips(
    classify: Callable[[torch.Tensor], torch.Tensor],
    classes: Mapping[str, EnrolledClass],
    pool_embeds: torch.Tensor,
    k: int,
    strategy: str,
    seed: int = 0,
) -> list[Suggestion]:
    """See `SupportSet.suggest`, which calls this.

    Args:
        classify: Gives logits (P, N) of frame features (P, T, D).
        pool_embeds: (P, T, D).
    """
    check_choice("strategy", strategy, STRATEGIES)
    check_positive_integer("k", k)
    seed = checked_seed("seed", seed)
    if not isinstance(pool_embeds, torch.Tensor):
        raise ValueError(f"The pool is a {type(pool_embeds).__name__}, but must be a tensor (P, T, D).")
    if pool_embeds.dim() != 3 or k > len(pool_embeds):
        raise ValueError(
            f"The pool has the shape {tuple(pool_embeds.shape)}; frame features (P, T, D) of at least k={k} clips are "
            "needed: give more clips, or a smaller k."
        )
    probabilities = classify(pool_embeds).float().softmax(-1).cpu()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool_embeds), generator=generator)  # earlier in it wins a tie
    vectors = _vectors(pool_embeds)[order]
    best, second = probabilities[order].topk(2).values.unbind(-1)
    margins = best - second
    if strategy == "representative":
        most = max(k, _MOST_COMPARED)  # of a larger pool random ones, as the order is random
        chosen = _representative(vectors[:most], 1 - margins[:most], _vectors(embeds_of_clips(classes)), k)
    elif strategy == "margin":
        chosen = margins.argsort(stable=True)[:k].tolist()
    elif strategy == "coverage":
        enrolled = _vectors(embeds_of_clips(classes))
        chosen = _farthest_first(vectors, enrolled, k)
    elif strategy == "typicality":
        chosen = _typical_of_clusters(vectors, k)
    else:
        chosen = list(range(k))
    names, labels = list(classes), probabilities.argmax(-1)
    indices = order[chosen].tolist()
    return [Suggestion(row, names[int(labels[row])], float(probabilities[row].max())) for row in indices]


def _vectors(embeds: torch.Tensor) -> torch.Tensor:
    """Frame features (P, T, D) as unit vectors (P, T * D): their products are mean cosines, frame by frame."""
    return F.normalize(F.normalize(embeds.float().cpu(), dim=-1).flatten(1), dim=-1)


def _representative(vectors: torch.Tensor, weights: torch.Tensor, enrolled: torch.Tensor, k: int) -> list[int]:
    """One after the other the clip that brings the others nearest to an enrolled or chosen clip.

    That is the greedy solution of facility location (Wei et al., ICML 2015). Clips count by their weights.
    """
    similarity, nearest = vectors @ vectors.T, (vectors @ enrolled.T).amax(1)
    chosen: list[int] = []
    for _ in range(k):
        gains = weights @ (similarity - nearest[:, None]).clamp(min=0)
        gains[chosen] = -torch.inf
        chosen.append(int(gains.argmax()))
        nearest = torch.maximum(nearest, similarity[chosen[-1]])
    return chosen


def _farthest_first(vectors: torch.Tensor, enrolled: torch.Tensor, k: int) -> list[int]:
    """One after the other the clip that is least like any enrolled or chosen clip (Sener and Savarese, ICLR 2018)."""
    nearest = (vectors @ enrolled.T).amax(1)
    chosen: list[int] = []
    for _ in range(k):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, vectors @ vectors[chosen[-1]])
        nearest[chosen] = torch.inf
    return chosen


def _typical_of_clusters(vectors: torch.Tensor, k: int) -> list[int]:
    """The clip of each of k clusters that is most like its neighbours (after TypiClust, Hacohen et al., ICML 2022)."""
    cluster = _clusters(vectors, k)
    chosen = []
    for number in cluster.unique().tolist():
        members = (cluster == number).nonzero()[:, 0]
        similarity = vectors[members] @ vectors[members].T
        typicality = similarity.topk(min(_NEIGHBOURS + 1, len(members))).values.mean(1)
        chosen.append(int(members[typicality.argmax()]))
    others = [row for row in range(len(vectors)) if row not in set(chosen)]
    return (chosen + others)[:k]  # others only if clusters are empty


def _clusters(vectors: torch.Tensor, k: int, rounds: int = 20) -> torch.Tensor:
    """Cluster (P,) of each vector, by spherical k-means that starts from vectors far apart."""
    centres = vectors[[0, *_farthest_first(vectors, vectors[:1], k - 1)]]
    cluster = (vectors @ centres.T).argmax(1)
    for _ in range(rounds):
        sums = F.one_hot(cluster, k).float().T @ vectors
        again = (vectors @ F.normalize(sums, dim=-1).T).argmax(1)
        if torch.equal(again, cluster):
            break
        cluster = again
    return cluster


__all__ = ["STRATEGIES", "Suggestion", "suggest_clips"]
