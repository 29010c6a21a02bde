"""Training-free references for many shots, on mean frame features: a few lines each, as heads.

Importing this module registers them, so that `clipfsar compare --heads gda` finds them. Letters in shapes: B episodes,
N classes, K shots, Q queries, D feature size.
"""

import torch
import torch.nn.functional as F

from heads_clipfsar import Head, class_means, register_head


class MeanFrames(Head):
    """A head on the mean frame of each video, of length 1; `scores` is its only part."""

    compares_classes_together = True

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        return F.normalize(states.mean(-2, keepdim=True), dim=-1)

    def compare(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        if present is None:
            present = shots.new_ones(shots.shape[:3], dtype=torch.bool)
        return -self.scores(query.squeeze(-2), shots.squeeze(-2), present)

    def scores(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Scores (B, Q, N) of queries (B, Q, D), from shots (B, N, K, D) that are `present` (B, N, K)."""
        raise NotImplementedError(f"{type(self).__name__} does not define scores.")


class NearestMean(MeanFrames):
    """Cosine to the class mean (Prototypical Networks, Snell et al., NeurIPS 2017, without training)."""

    compares_classes_together = False

    def scores(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return query @ F.normalize(class_means(shots, present), dim=-1).transpose(-2, -1)


class TipAdapter(MeanFrames):
    """The cache of Tip-Adapter (Zhang et al., ECCV 2022): shots vote with exp(-beta (1 - cosine)); beta is 5.5 there.

    The paper adds CLIP's zero-shot logits; here `inference_mode="ensemble"` does. Votes are averaged over a class's
    shots, so that classes with more shots have no advantage.
    """

    compares_classes_together = False
    beta = 5.5

    def scores(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        cosines = torch.einsum("bqd,bnkd->bqnk", query, shots)
        votes = (-self.beta * (1 - cosines)).exp().movedim(1, 3)  # (B, N, K, Q)
        return class_means(votes, present).transpose(1, 2)


class GaussianDiscriminant(MeanFrames):
    """Gaussian discriminant analysis (Wang et al., ICLR 2024): class means and one covariance, shrunk as there.

    The precision matrix is D ((S - 1) C + tr(C) I)^-1 for S shots of covariance C. With a single shot per class there
    is no covariance, and it is the distance to the class mean.
    """

    def scores(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        means = class_means(shots, present)  # (B, N, D)
        centred = ((shots - means.unsqueeze(2)) * present.unsqueeze(-1)).flatten(1, 2)  # (B, N * K, D)
        number = present.sum((1, 2)).view(-1, 1, 1).to(shots.dtype)
        covariance = centred.transpose(-2, -1) @ centred / (number - 1)
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1).view(-1, 1, 1)
        shrunk = (number - 1) * covariance + torch.where(trace > 1e-9, trace, 1.0) * torch.eye(shots.shape[-1]).to(
            shots
        )
        weights = shots.shape[-1] * torch.linalg.solve(shrunk, means.transpose(-2, -1))  # (B, D, N)
        return query @ weights - (means.transpose(-2, -1) * weights).sum(-2, keepdim=True) / 2


class LinearProbe(MeanFrames):
    """A linear probe that needs no validation set, after LP++ (Huang et al., CVPR 2024).

    Full-batch gradient descent on the cross-entropy of the shots starts from the class means. As in LP++, the step is 1
    over a bound of the curvature, which the features give: neither a rate nor a number of steps is searched for.
    """

    steps, scale = 50, 100.0  # CLIP's scale of cosines

    def scores(self, query: torch.Tensor, shots: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        videos, counts = shots.flatten(1, 2), present.flatten(1).to(shots.dtype).unsqueeze(-1)
        labels = torch.eye(shots.shape[1]).to(shots).repeat_interleave(shots.shape[2], dim=0)  # (N * K, N)
        videos, number = videos * counts, counts.sum(1, keepdim=True)
        weights = self.scale * class_means(shots, present)  # (B, N, D)
        # The curvature of softmax cross-entropy is at most half the largest eigenvalue of the features' second moments.
        curvature = 0.5 * torch.linalg.matrix_norm(videos, 2).square().view(-1, 1, 1) / number
        for _ in range(self.steps):
            errors = ((videos @ weights.transpose(-2, -1)).softmax(-1) - labels) * counts / number
            weights = weights - errors.transpose(-2, -1) @ videos / curvature
        return query @ weights.transpose(-2, -1)


REFERENCES = {
    "nearest_mean": NearestMean,
    "tip_adapter": TipAdapter,
    "gda": GaussianDiscriminant,
    "linear_probe": LinearProbe,
}
for _name, _head in REFERENCES.items():
    register_head(_name, _head)

__all__ = ["REFERENCES", "GaussianDiscriminant", "LinearProbe", "NearestMean", "TipAdapter"]
