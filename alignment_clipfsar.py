"""Distances between two videos, computed from the distances of their frames: OTAM and mean Hausdorff distance.

Letters in shapes: L query frames (rows), M prototype frames (columns).
"""

import math

import torch

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.7 was the first to have it


def frame_cosine_similarity(x: torch.Tensor, y: torch.Tensor, epsilon: float = 0.01) -> torch.Tensor:
    """Cosine of every vector of `x` (..., L, D) with every vector of `y` (..., M, D), as (..., L, M).

    `epsilon` is added to the product of the two norms, as the official program does: the cosine of a vector with
    itself is a little below 1.
    """
    norms = x.norm(dim=-1).unsqueeze(-1) * y.norm(dim=-1).unsqueeze(-2)
    return x @ y.transpose(-2, -1) / (norms + epsilon)


class _OtamDistance(torch.autograd.Function):
    """OTAM distance of matrices, (batch, L, M) -> (batch), one way or both, with exact gradients.

    With E = exp(-C / smoothing) for the cumulative cost C, a soft minimum is a plain sum. An inner cell needs only its
    left and upper left neighbours, E[l, m] = a[l, m] * (E[l, m-1] + E[l-1, m-1]), so one step handles a whole column of
    all matrices. Only in the first column does a cell need the one above it. All values are logarithms, which are
    stable for long videos and small temperatures. Columns and rows are the first dimensions, so that every step reads
    contiguous memory. The backward pass is a second sweep over the saved columns; autograd would record every step. A
    step takes two operations in either pass: for small matrices the launches dominate.
    """

    @staticmethod
    def forward(
        frame_distances: torch.Tensor, smoothing: float, bidirectional: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores = frame_distances.permute(2, 1, 0)  # (M, L, batch)
        if bidirectional:  # the transposed matrices in the same sweep
            scores = torch.cat([scores, frame_distances.permute(1, 2, 0)], dim=-1)
        scores = scores / -smoothing
        num_columns, num_rows, batch = scores.shape
        columns = scores.new_empty(num_columns, num_rows + 1, batch)  # log E below a row of zeros (log 0)
        columns[:, 0] = -torch.inf
        # First column: E[l] = a[l] * (2 + E[l-1]), where 2 counts the two paths from the padding column on its left;
        # the first row has one path.
        log_two = scores.new_full((batch,), math.log(2))
        columns[0, 1] = scores[0, 0]
        rows, scores_of_rows = columns[0, 1:].unbind(), scores[0].unbind()
        for row in range(1, num_rows):
            torch.logaddexp(rows[row - 1], log_two, out=rows[row]).add_(scores_of_rows[row])
        cells, upper_cells, scores = columns[:, 1:].unbind(), columns[:, :-1].unbind(), scores.unbind()
        for m in range(1, num_columns):
            torch.logaddexp(cells[m - 1], upper_cells[m - 1], out=cells[m]).add_(scores[m])
        # The padding column at the right costs nothing: every row of the last column reaches the end by two paths,
        # straight and down. The bottom row has only the first.
        ends = columns[-1, 1:] + math.log(2)
        ends[-1] = columns[-1, -1]
        total = ends.logsumexp(0)
        distances = total * -smoothing
        if bidirectional:
            distances = distances.view(2, -1).sum(0)
        return distances, columns, ends.sub_(total).exp_()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.bidirectional = inputs[2]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_distances: torch.Tensor, *_) -> tuple[torch.Tensor, None, None]:
        columns, share_of_end = ctx.saved_tensors
        if ctx.bidirectional:
            grad_distances = grad_distances.repeat(2)
        # Scores are frame distances / -smoothing, and distances are totals * -smoothing: the factors cancel.
        grads = columns.new_empty(len(columns), *share_of_end.shape)  # (M, L, batch)
        torch.mul(share_of_end, grad_distances, out=grads[-1])
        from_left = (columns[:-1, 1:] - columns[:-1, :-1]).sigmoid_()  # the rest comes from the upper left
        from_upper_left = (1 - from_left[:, 1:]).unbind()
        from_left, columns_of_grads = from_left.unbind(), grads.unbind()
        upper_rows, lower_rows = grads[:, :-1].unbind(), grads[:, 1:].unbind()
        for m in reversed(range(1, len(columns))):
            torch.mul(columns_of_grads[m], from_left[m - 1], out=columns_of_grads[m - 1])
            upper_rows[m - 1].addcmul_(lower_rows[m], from_upper_left[m - 1])
        from_above = (columns[0, 1:-1] - math.log(2)).sigmoid_().unbind()
        rows = grads[0].unbind()
        for row in reversed(range(1, len(rows))):
            rows[row - 1].addcmul_(rows[row], from_above[row - 1])
        if not ctx.bidirectional:
            return grads.permute(2, 1, 0), None, None
        forth, back = grads.unflatten(-1, (2, -1)).unbind(-2)
        return forth.permute(2, 1, 0) + back.permute(2, 0, 1), None, None


def _otam_for_graphs(frame_distances: torch.Tensor, smoothing: float) -> torch.Tensor:
    """One direction of `_OtamDistance`, (batch, L, M) -> (batch), written for an exported graph.

    An exported graph has no gradients and cannot write into parts of a tensor. ONNX has no `logaddexp`: the exporter
    replaces it with log(exp(x) + exp(y)), which becomes log(0) for long videos and small temperatures.
    """

    def log_add_exp(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, y]).logsumexp(0)

    scores = frame_distances.permute(2, 1, 0) / -smoothing  # (M, L, batch)
    rows = [scores[0, 0]]
    log_two = torch.full_like(rows[0], math.log(2))
    for score in scores[0, 1:].unbind():
        rows.append(log_add_exp(rows[-1], log_two) + score)
    column = torch.stack(rows)
    for score in scores[1:].unbind():
        column = torch.cat([column[:1], log_add_exp(column[1:], column[:-1])]) + score
    return -smoothing * torch.cat([column[:-1] + math.log(2), column[-1:]]).logsumexp(0)


def otam_distance(frame_distances: torch.Tensor, smoothing: float = 0.5, bidirectional: bool = True) -> torch.Tensor:
    """Soft ordered temporal alignment distance (OTAM, Cao et al., CVPR 2020) of query and prototype frames.

    Args:
        frame_distances: Distances of query frames (rows) to prototype frames (columns), (..., L, M), any L, M >= 1.
        smoothing: Temperature of the soft minimum -t * log(sum(exp(-x / t))), in the unit of the distances.
        bidirectional: Add the distance of the transposed matrix (the official default).

    Returns:
        (...), in float32 at least. Differentiable.

    Raises:
        ValueError: For fewer than two dimensions, an empty matrix or a temperature that is not positive.

    The matrix gets a zero column at the left and at the right, so that a path may skip frames at both ends. The first
    row is a plain running sum, as in the official program.
    """
    frame_distances = _checked_frame_distances(frame_distances)
    if not smoothing > 0:
        raise ValueError(f"smoothing={smoothing} must be greater than 0.")
    if not 1e-30 <= smoothing <= 1e30:
        raise ValueError(f"smoothing={smoothing} must lie between 1e-30 and 1e+30: float32 makes others 0 or infinite.")
    matrices = frame_distances.flatten(0, -3) if frame_distances.dim() > 2 else frame_distances[None]
    if _is_exporting():
        ways = [matrices, matrices.transpose(-2, -1)] if bidirectional else [matrices]
        summed = sum(_otam_for_graphs(way, smoothing) for way in ways)
        return summed.view(frame_distances.shape[:-2])  # type: ignore[union-attr]  # a tensor: there is a way
    is_square = matrices.shape[-2] == matrices.shape[-1]
    # Without gradients, autograd's bookkeeping would take a quarter of the time for a small matrix.
    needs_grad = torch.is_grad_enabled() and matrices.requires_grad
    sweep = _OtamDistance.apply if needs_grad else _OtamDistance.forward
    distances = sweep(matrices, smoothing, bidirectional and is_square)[0]
    if bidirectional and not is_square:
        distances = distances + sweep(matrices.transpose(-2, -1), smoothing, False)[0]
    return distances.view(frame_distances.shape[:-2])


def bi_mhm_distance(frame_distances: torch.Tensor) -> torch.Tensor:
    """Bidirectional mean Hausdorff distance (Wang et al., HyRSM, CVPR 2022), (..., L, M) -> (...).

    The mean over query frames of the smallest distance to a prototype frame, plus the mean over prototype frames of
    the smallest distance to a query frame. It ignores order.

    Raises:
        ValueError: For fewer than two dimensions or an empty matrix.
    """
    frame_distances = _checked_frame_distances(frame_distances)
    return frame_distances.amin(-1).mean(-1) + frame_distances.amin(-2).mean(-1)


def _checked_frame_distances(frame_distances: torch.Tensor) -> torch.Tensor:
    if frame_distances.dim() < 2 or 0 in frame_distances.shape[-2:]:
        raise ValueError(
            f"frame_distances has shape {tuple(frame_distances.shape)}; (..., query frames, prototype frames) with "
            "at least one frame each is needed."
        )
    return frame_distances if frame_distances.dtype == torch.float64 else frame_distances.float()


__all__ = ["bi_mhm_distance", "frame_cosine_similarity", "otam_distance"]
