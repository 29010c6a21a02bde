"""Divides the rows of a data set among tasks that a scheduler starts, such as a Slurm array."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`; indices begin at 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"

    def rows(self, num_rows: int, block: int = 1) -> list[int]:
        """Rows of this shard: the blocks `index`, `index + count`, ... of `block` consecutive rows each.

        Every row is in exactly one of the `count` shards.
        """
        starts = range(self.index * block, num_rows, self.count * block)
        return [row for start in starts for row in range(start, min(start + block, num_rows))]


def shard_of(values: Sequence[int], environment: Mapping[str, str] = os.environ) -> Shard | None:
    """The shard of `--shard I N`, or of a task of a Slurm array if no values are given. None means all rows: `0 1`.

    Raises:
        ValueError: If the values are not an index and a number of shards, or if the array has gaps.
    """
    if not values:
        return _shard_of_slurm(environment)
    if len(values) != 2 or not 0 <= values[0] < values[1]:
        raise ValueError(
            f"--shard {' '.join(map(str, values))}: give the index and the number of shards, such as --shard 0 8 to "
            "--shard 7 8."
        )
    return Shard(*values) if values[1] > 1 else None


def _shard_of_slurm(environment: Mapping[str, str]) -> Shard | None:
    """The position of a task in its array, which may begin at any number and have steps (`--array=1-15:2`)."""
    if "SLURM_ARRAY_TASK_ID" not in environment or "SLURM_ARRAY_TASK_COUNT" not in environment:
        return None
    count = int(environment["SLURM_ARRAY_TASK_COUNT"])
    step = int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
    first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
    last = int(environment.get("SLURM_ARRAY_TASK_MAX", first + step * (count - 1)))
    index, rest = divmod(int(environment["SLURM_ARRAY_TASK_ID"]) - first, step)
    if last != first + step * (count - 1) or rest or not 0 <= index < count:
        raise ValueError(
            f"The Slurm array of {count} tasks from {first} to {last} has gaps, so the shard of this task is unclear: "
            'give it, for example --shard "$SLURM_ARRAY_TASK_ID" 8 for task numbers from 0 to 7.'
        )
    return Shard(index, count) if count > 1 else None


__all__ = ["Shard", "shard_of"]
