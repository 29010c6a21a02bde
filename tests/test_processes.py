"""What one of several processes decides holds for all of them."""

from pathlib import Path

import pytest
from accelerate import Accelerator
from tiny_data import run_in_children

from clipfsar.processes import first_process_decides, holds_everywhere

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def refuse():
    raise FileNotFoundError("There is nothing.")


def decide_in_process(folder: Path):
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    calls = []
    result = first_process_decides(accelerator, lambda: calls.append(rank) or {"rank": rank})
    try:
        first_process_decides(accelerator, refuse)
        error = None
    except (ValueError, OSError) as refusal:
        error = f"{type(refusal).__name__}: {refusal}"
    agreed = [holds_everywhere(accelerator, condition) for condition in (True, rank == 0)]
    (folder / f"{rank}.txt").write_text(repr((result, len(calls), error, agreed)))
    accelerator.end_training()


def test_the_first_process_decides_and_refuses_for_all(tmp_path):
    run_in_children(decide_in_process, tmp_path, folder=tmp_path / "output", num_processes=2).check()
    results = [eval((tmp_path / f"{rank}.txt").read_text()) for rank in range(2)]
    assert results == [
        ({"rank": 0}, 1, "FileNotFoundError: There is nothing.", [True, False]),
        ({"rank": 0}, 0, "ValueError: There is nothing.", [True, False]),
    ]


def test_one_process_decides_for_itself():
    accelerator = Accelerator(cpu=True)
    assert first_process_decides(accelerator, lambda: 3) == 3
    with pytest.raises(FileNotFoundError, match="There is nothing"):
        first_process_decides(accelerator, refuse)
    assert holds_everywhere(accelerator, False) is False
