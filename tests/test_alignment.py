"""OTAM and Bi-MHM against slow programs that follow their definitions cell by cell."""

import itertools
import math

import pytest
import torch

from modeling_clipfsar import bi_mhm_distance, frame_cosine_similarity, otam_distance

SHAPES = [(1, 1), (1, 5), (5, 1), (2, 2), (4, 4), (8, 5), (3, 9)]


def reference_otam(distances: list[list[float]], smoothing: float) -> float:
    """The official recurrence in one direction, with the padded matrix written out; Python floats are float64.

    Columns 0 and M + 1 have zero cost. The first row is a running sum. Below it, column 0 is 0, the first frame's
    column and the padding column at the right can be reached from above, the columns between cannot.
    """

    def soft_minimum(*costs):
        smallest = min(costs)  # taken out, so that the exponentials cannot underflow all at once
        return smallest - smoothing * math.log(sum(math.exp((smallest - cost) / smoothing) for cost in costs))

    padded = [[0.0, *row, 0.0] for row in distances]
    last = len(padded[0]) - 1
    cost = [[0.0] * (last + 1) for _ in padded]
    for m in range(1, last + 1):
        cost[0][m] = padded[0][m] + cost[0][m - 1]
    for row in range(1, len(padded)):
        for m in range(1, last + 1):
            before = [cost[row - 1][m - 1], cost[row][m - 1]]
            if m in (1, last):
                before.append(cost[row - 1][m])
            cost[row][m] = padded[row][m] + soft_minimum(*before)
    return cost[-1][-1]


def reference_hard_otam(distances: list[list[float]]) -> float:
    """Cheapest path, by trying all: which cells may follow each other is the same as in the recurrence."""
    num_rows, last = len(distances), len(distances[0]) + 1
    padded = [[0.0, *row, 0.0] for row in distances]

    def cheapest_to(row, m):
        if m == 0:
            return 0.0
        steps = [cheapest_to(row, m - 1)]
        if row > 0:
            steps.append(cheapest_to(row - 1, m - 1))
            if m in (1, last):
                steps.append(cheapest_to(row - 1, m))
        return padded[row][m] + min(steps)

    return cheapest_to(num_rows - 1, last)


def random_distances(*shape, seed=0, dtype=torch.float64) -> torch.Tensor:
    """Between 0 and 2, as one minus a cosine."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).to(dtype)


@pytest.mark.parametrize("smoothing", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_otam_follows_the_official_recurrence(shape, smoothing):
    distances = random_distances(3, *shape)
    for bidirectional in (False, True):
        expected = [
            reference_otam(matrix.tolist(), smoothing)
            + (reference_otam(matrix.T.tolist(), smoothing) if bidirectional else 0.0)
            for matrix in distances
        ]
        ours = otam_distance(distances, smoothing, bidirectional)
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_otam_of_one_pair_of_frames_is_their_distance_each_way():
    # One path only: in from the left, out to the right.
    assert otam_distance(torch.tensor([[0.75]]), bidirectional=False).item() == 0.75
    assert otam_distance(torch.tensor([[0.75]])).item() == 1.5


def test_otam_of_two_query_frames_and_one_prototype_frame_is_the_soft_minimum_over_its_four_paths():
    # E = exp(-cost / smoothing). Upper cell: a. Lower: b * (2 + a). Out: 2 ways from the upper, 1 from the lower cell.
    a, b = math.exp(-0.3 / 0.5), math.exp(-1.1 / 0.5)
    expected = -0.5 * math.log(2 * a + b * (2 + a))
    ours = otam_distance(torch.tensor([[0.3], [1.1]], dtype=torch.float64), 0.5, bidirectional=False)
    assert ours.item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (3, 3), (4, 3)])
def test_otam_gradient_is_right(shape):
    distances = random_distances(2, *shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: otam_distance(d, 0.5, False), distances)
    assert torch.autograd.gradcheck(lambda d: otam_distance(d, 0.3, True), distances)


@pytest.mark.parametrize("shape", [(6, 6), (6, 4)])
def test_both_directions_together_do_not_tell_query_from_prototype(shape):
    distances = random_distances(5, *shape)
    transposed = distances.transpose(-2, -1)
    torch.testing.assert_close(otam_distance(distances), otam_distance(transposed), rtol=0, atol=1e-12)
    one, other = (otam_distance(d, bidirectional=False) for d in (distances, transposed))
    assert (one - other).abs().min() > 1e-3


@pytest.mark.parametrize("shape", [(5, 5), (4, 6)])
def test_raising_any_distance_never_lowers_otam(shape):
    distances = random_distances(*shape)
    base = otam_distance(distances)
    raised = distances + 0.3 * torch.eye(distances.numel(), dtype=torch.float64).view(-1, *shape)
    assert (otam_distance(raised) >= base).all()
    gradient = torch.func.grad(lambda d: otam_distance(d))(distances)
    assert (gradient > 0).all(), "every cell lies on some path"


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (4, 4), (5, 3)])
def test_otam_approaches_the_cheapest_path_from_below_as_smoothing_goes_to_zero(shape):
    distances = random_distances(*shape)
    cheapest = reference_hard_otam(distances.tolist())
    soft = [otam_distance(distances, smoothing, False).item() for smoothing in (1.0, 0.1, 0.01, 0.001)]
    assert all(softer <= harder + 1e-12 for softer, harder in itertools.pairwise(soft))
    assert soft[-1] <= cheapest + 1e-12
    assert soft[-1] == pytest.approx(cheapest, abs=0.01)


@pytest.mark.parametrize("smoothing", [0.01, 0.5, 10.0])
@pytest.mark.parametrize("value", [None, 0.0, 2.0])
def test_otam_of_long_videos_is_finite_and_so_are_its_gradients(smoothing, value):
    distances = random_distances(2, 64, 64, dtype=torch.float32)
    if value is not None:
        distances.fill_(value)
    distances.requires_grad_()
    result = otam_distance(distances, smoothing)
    (gradient,) = torch.autograd.grad(result.sum(), distances)
    assert result.isfinite().all()
    assert gradient.isfinite().all()
    # Against float64: the sums in logarithms lose nothing that matters, up to a cost of 128 each way.
    exact = otam_distance(distances.detach().double(), smoothing)
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.01, 0.5, 10.0])
@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 48, 40)])
def test_gradients_of_long_videos_lose_nothing_in_float32(smoothing, shape):
    distances = random_distances(*shape, dtype=torch.float32)
    gradients = []
    for matrix in (distances, distances.double()):
        matrix = matrix.clone().requires_grad_()
        gradients += torch.autograd.grad(otam_distance(matrix, smoothing).sum(), matrix)
    # A small temperature magnifies the round-off of the costs before they are exponentiated.
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=0, atol=5e-6 + 2e-6 / smoothing)


def test_memory_that_the_gradient_needs_is_linear_in_the_matrix():
    def saved_bytes(num_frames: int) -> int:
        sizes = []
        distances = random_distances(2, num_frames, num_frames, dtype=torch.float32).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            otam_distance(distances)
        return sum(sizes)

    matrix = 2 * 64 * 64 * 4
    assert matrix <= saved_bytes(64) <= 2.2 * matrix  # a cumulative cost per cell and direction
    assert saved_bytes(128) == pytest.approx(4 * saved_bytes(64), rel=0.02)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 7)])
def test_distances_are_the_same_whether_a_gradient_will_be_asked_for_or_not(shape):
    distances = random_distances(*shape, dtype=torch.float32)
    expected = otam_distance(distances.clone().requires_grad_())
    assert expected.requires_grad
    with torch.no_grad():
        assert torch.equal(otam_distance(distances), expected)
    with torch.inference_mode():
        assert torch.equal(otam_distance(distances), expected)


@pytest.mark.parametrize("distance", [otam_distance, bi_mhm_distance])
@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 3, 2)])
@pytest.mark.parametrize("shape", [(4, 4), (3, 5)])
def test_every_matrix_of_a_batch_is_aligned_alone(distance, leading, shape):
    distances = random_distances(*leading, *shape)
    together = distance(distances)
    assert together.shape == leading
    for index in itertools.product(*map(range, leading)):
        torch.testing.assert_close(together[index], distance(distances[index]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("distance", [otam_distance, bi_mhm_distance])
@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3, 4)])
def test_no_matrices_give_no_distances(distance, shape):
    empty = torch.zeros(shape, requires_grad=True)
    result = distance(empty)
    assert result.shape == shape[:-2]
    result.sum().backward()
    assert empty.grad.shape == shape


def test_otam_accepts_views_and_leaves_its_input_alone():
    distances = random_distances(4, 5, 2, 3, dtype=torch.float32)
    view = distances.permute(2, 3, 0, 1)  # what a batched matrix product over all pairs gives
    before = distances.clone()
    torch.testing.assert_close(otam_distance(view), otam_distance(view.contiguous()), rtol=0, atol=1e-6)
    assert torch.equal(distances, before)


@pytest.mark.parametrize("distance", [otam_distance, bi_mhm_distance])
def test_alignment_is_in_float32_at_least(distance):
    distances = random_distances(2, 8, 8, dtype=torch.float32)
    assert distance(distances.bfloat16()).dtype == torch.float32
    assert distance(distances.half()).dtype == torch.float32
    assert distance(distances.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = distance(distances)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, distance(distances))


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 5, 3)])
def test_compiled_otam_is_the_same_with_its_gradient(shape):
    distances = random_distances(*shape, dtype=torch.float32).requires_grad_()
    compiled = torch.compile(otam_distance, fullgraph=True, backend="aot_eager")
    expected, result = otam_distance(distances), compiled(distances)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), distances)
    (gradient,) = torch.autograd.grad(result.sum(), distances)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-6)


def test_otam_compiled_for_inference_is_the_same():
    distances = random_distances(2, 5, 5, dtype=torch.float32)
    compiled = torch.compile(otam_distance, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(distances), otam_distance(distances), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shape", "smoothing"), [*((shape, 0.5) for shape in SHAPES), ((8, 8), 0.01)])
def test_an_exported_graph_gives_the_same_otam(shape, smoothing):
    class Otam(torch.nn.Module):
        def forward(self, distances):
            return otam_distance(distances, smoothing)

    distances = random_distances(2, 3, *shape)
    graph = torch.export.export(Otam(), (distances,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    more = random_distances(5, 3, *shape, seed=1)
    torch.testing.assert_close(graph(more), otam_distance(more, smoothing), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_bi_mhm_is_the_two_means_of_smallest_distances(shape):
    distances = random_distances(*shape)
    num_rows, num_columns = shape
    expected = 0.0
    for row in range(num_rows):
        expected += min(distances[row, m].item() for m in range(num_columns)) / num_rows
    for m in range(num_columns):
        expected += min(distances[row, m].item() for row in range(num_rows)) / num_columns
    assert bi_mhm_distance(distances).item() == pytest.approx(expected, abs=1e-12)


def test_bi_mhm_gradient_is_right():
    assert torch.autograd.gradcheck(bi_mhm_distance, random_distances(2, 4, 3).requires_grad_())


def test_bi_mhm_is_blind_to_frame_order_and_otam_is_not():
    distances = random_distances(5, 8, 8)
    shuffled = distances[:, torch.tensor([3, 1, 4, 0, 5, 7, 2, 6])]
    torch.testing.assert_close(bi_mhm_distance(shuffled), bi_mhm_distance(distances), rtol=0, atol=1e-12)
    reversed_query = distances.flip(-2)
    torch.testing.assert_close(bi_mhm_distance(reversed_query), bi_mhm_distance(distances), rtol=0, atol=1e-12)
    assert (otam_distance(reversed_query) - otam_distance(distances)).abs().min() > 1e-3


def test_otam_prefers_the_order_of_the_prototype():
    # Equal frames are 0 apart, others 1: in order, a path of zeros exists; reversed, none does.
    same_order = 1 - torch.eye(8)
    assert otam_distance(same_order) < otam_distance(same_order.flip(-1)) - 1


def test_one_direction_may_linger_at_a_query_frame_but_skips_none_between_the_ends():
    # Three frames against nine that show each of the three three times.
    distances = (1 - torch.eye(3)).repeat_interleave(3, dim=1)
    assert otam_distance(distances, 0.01, bidirectional=False).item() == pytest.approx(0.0, abs=0.05)
    assert otam_distance(distances.flip(0), 0.01, bidirectional=False).item() == pytest.approx(6.0, abs=0.05)
    # Nine rows in three columns: inner columns cannot be reached from above, so the middle frame's column takes the
    # path on to the last column one row later at most, where that frame is not shown yet.
    assert otam_distance(distances.T, 0.01, bidirectional=False).item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("distance", [otam_distance, bi_mhm_distance])
@pytest.mark.parametrize(("shape", "text"), [((4,), r"\(4,\)"), ((2, 0, 4), r"\(2, 0, 4\)"), ((4, 0), r"\(4, 0\)")])
def test_matrix_without_frames_is_refused(distance, shape, text):
    with pytest.raises(ValueError, match=rf"shape {text}; .* at least one frame each"):
        distance(torch.zeros(shape))


@pytest.mark.parametrize("smoothing", [1e-40, 1e40])
def test_a_smoothing_that_float32_makes_zero_or_infinite_is_refused(smoothing):
    with pytest.raises(ValueError, match="must lie between 1e-30 and 1e"):
        otam_distance(torch.rand(3, 4, 4), smoothing)
    assert otam_distance(torch.rand(3, 4, 4), 1e-30).isfinite().all()


@pytest.mark.parametrize("smoothing", [0, -0.5, math.nan])
def test_temperature_must_be_positive(smoothing):
    with pytest.raises(ValueError, match=f"smoothing={smoothing} must be greater than 0"):
        otam_distance(torch.zeros(2, 2), smoothing)


def test_cosine_has_its_epsilon_on_the_product_of_the_norms():
    x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    expected = torch.tensor([[25 / 25.01, 8 / 10.01, 0.0]])
    torch.testing.assert_close(frame_cosine_similarity(x, y), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(frame_cosine_similarity(x, y[:1], epsilon=0.0), torch.ones(1, 1), rtol=0, atol=1e-6)
