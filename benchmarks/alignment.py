"""OTAM compared with a plain loop over cells: forward, and forward with backward, on batches of distance matrices.

    python -m benchmarks.alignment                 # 25 queries x 5 classes, 8 x 8 and 32 x 32 frames, one thread
    python -m benchmarks.alignment --num_threads 2 --rounds 20

The loop is the paper's recurrence: one tensor operation per cell for all matrices at once, one direction after the
other. Both take turns in one process. A turn repeats one of them for --turn_ms; the figure is the median over turns of
the mean time of a call. With --turn_ms 0 a turn is a single call with cold caches. The program first checks that both
give the same distances. "Operations" counts operations that touch data, without views. It is about the number of
kernels that a GPU starts, which is the cost of small matrices there.
"""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from clipfsar.options import parse_options
from modeling_clipfsar import otam_distance


@dataclass
class Arguments:
    n_queries: int = field(default=25, metadata={"help": "Query videos."})
    n_way: int = field(default=5, metadata={"help": "Classes."})
    num_frames: list[int] = field(default_factory=lambda: [8, 32], metadata={"help": "Frames per video; several."})
    rounds: int = field(default=15, metadata={"help": "Turns of each."})
    turn_ms: float = field(default=50, metadata={"help": "Length of a turn in milliseconds; at least one call."})
    num_threads: int = field(default=1, metadata={"help": "Threads on a CPU."})


def otam_distance_by_cells(frame_distances: torch.Tensor, smoothing: float = 0.5) -> torch.Tensor:
    """`otam_distance` in both directions, written as the recurrence: (..., L, M) -> (...)."""

    def softmin(*costs: torch.Tensor) -> torch.Tensor:
        return -smoothing * torch.stack(costs).div(-smoothing).logsumexp(0)

    def one_direction(distances: torch.Tensor) -> torch.Tensor:
        distances = F.pad(distances, (1, 1))
        num_rows, num_columns = distances.shape[-2:]
        above = [distances[..., 0, 0]]
        for m in range(1, num_columns):
            above.append(above[-1] + distances[..., 0, m])
        for row in range(1, num_rows):
            cost = [torch.zeros_like(above[0])]
            for m in range(1, num_columns):
                ways = [above[m - 1], cost[m - 1]]
                if m in (1, num_columns - 1):
                    ways.append(above[m])
                cost.append(distances[..., row, m] + softmin(*ways))
            above = cost
        return above[-1]

    return one_direction(frame_distances) + one_direction(frame_distances.transpose(-2, -1))


def milliseconds(functions: list[Callable], rounds: int, turn_ms: float, device: torch.device) -> list[float]:
    """Median over turns of the duration of a call, for each function, after one warm-up turn."""
    times = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, durations in zip(functions, times, strict=True):
            calls, start = 0, _now(device)
            while not calls or time.perf_counter() - start < turn_ms / 1000:
                function()
                calls += 1
            if turn:
                durations.append(1000 * (_now(device) - start) / calls)
    return [statistics.median(durations) for durations in times]


class CountOperations(TorchDispatchMode):
    """Counts operations that read or write data."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        allocates = function.overloadpacket in (torch.ops.aten.empty, torch.ops.aten.new_empty)
        self.count += not (function.is_view or allocates)
        return function(*args, **(kwargs or {}))


def operations(function: Callable) -> int:
    with CountOperations() as operations:
        function()
    return operations.count


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: Arguments):
    torch.set_num_threads(arguments.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{date.today()}, {name}, {arguments.num_threads} thread(s), torch {torch.__version__}, milliseconds")
    print("| queries x classes x frames | pass | loop over cells | otam_distance | ratio | operations, loop / ours |")
    print("|---|---|---|---|---|---|")
    for num_frames in arguments.num_frames:
        shape = (arguments.n_queries, arguments.n_way, num_frames, num_frames)
        distances = torch.rand(shape, device=device, requires_grad=True)
        torch.testing.assert_close(otam_distance(distances), otam_distance_by_cells(distances), rtol=1e-5, atol=1e-4)
        ways = (otam_distance_by_cells, otam_distance)

        def forward(way):
            with torch.no_grad():
                way(distances)  # noqa: B023

        def forward_and_backward(way):
            torch.autograd.grad(way(distances).sum(), distances)  # noqa: B023

        for title, work in (("forward", forward), ("forward + backward", forward_and_backward)):
            calls = [lambda way=way: work(way) for way in ways]  # noqa: B023
            loop, ours = milliseconds(calls, arguments.rounds, arguments.turn_ms, device)
            counts = " / ".join(str(operations(call)) for call in calls)
            cells = [" x ".join(map(str, shape)), title, f"{loop:.2f}", f"{ours:.2f}", f"{loop / ours:.0f} x", counts]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
