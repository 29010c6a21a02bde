"""What one of several processes decides holds for all of them."""

import signal
import threading
from pathlib import Path

import pytest
from accelerate import Accelerator
from tiny_data import run_in_children

from clipfsar.processes import (
    check_same_everywhere,
    check_shared_folder,
    first_process_decides,
    holds_anywhere,
    holds_everywhere,
    machines_first,
)
from clipfsar.training.preemption import noting_sigterm

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def refuse():
    raise FileNotFoundError("There is nothing.")


def fail():
    raise RuntimeError("No memory.")


def fail_silently():
    raise KeyError


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


def look_in_process(folder: Path):
    """Each process looks into the same folder, then into one of its own, and downloads first or second."""
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    check_shared_folder(accelerator, folder / "shared", "--output_dir")
    found = []
    for check in (
        lambda: check_shared_folder(accelerator, folder / f"own_{rank}", "--output_dir", patience_seconds=0.1),
        lambda: check_same_everywhere(accelerator, "the seed", lambda: rank),
        lambda: check_same_everywhere(accelerator, "nothing", lambda: 5),
        lambda: machines_first(accelerator, refuse),
        lambda: machines_first(accelerator, fail),
        lambda: first_process_decides(accelerator, fail_silently),
    ):
        try:
            check()
            found.append(None)
        except (ValueError, OSError, RuntimeError, KeyError) as refusal:
            found.append(str(refusal))
    mark = folder / "downloaded"
    found.append(machines_first(accelerator, lambda: mark.exists() or mark.touch()))
    found.append(holds_anywhere(accelerator, rank == 1))
    (folder / f"{rank}.txt").write_text(repr(found))
    accelerator.end_training()


def test_all_processes_see_one_folder_and_the_same_values(tmp_path):
    run_in_children(look_in_process, tmp_path, folder=tmp_path / "output", num_processes=2).check()
    for rank in (0, 1):
        own, seed, nothing, refused, failed, silent, downloaded, anywhere = eval((tmp_path / f"{rank}.txt").read_text())
        assert "--output_dir" in own
        assert "is not one folder for all processes" in own
        assert "do not agree on the seed: process 0 has 0, process 1 has 1." in seed
        assert (nothing, refused, anywhere) == (None, "There is nothing.", True)
        assert failed == ("No memory." if rank == 0 else "Another process failed: RuntimeError: No memory.")
        assert silent == ("" if rank == 0 else "Another process failed: KeyError: ")
        assert downloaded is (None if rank == 0 else True)  # the second process finds what the first has fetched
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {"shared", "own_0", "output"}
    assert list((tmp_path / "shared").iterdir()) == list((tmp_path / "own_0").iterdir()) == []


def test_one_process_compares_nothing(tmp_path):
    accelerator = Accelerator(cpu=True)
    check_shared_folder(accelerator, tmp_path / "new", "--output_dir")
    check_same_everywhere(accelerator, "nothing", refuse)
    assert not (tmp_path / "new").exists()
    assert holds_anywhere(accelerator, True) is True
    assert machines_first(accelerator, lambda: 4) == 4


def test_sigterm_is_noted_only_where_nobody_else_handles_it_and_in_the_main_thread():
    def in_thread(results):
        with noting_sigterm():
            results.append(signal.getsignal(signal.SIGTERM))

    results: list = []
    thread = threading.Thread(target=in_thread, args=[results])
    thread.start()
    thread.join()
    assert results == [signal.SIG_DFL]  # in another thread the block changes nothing
    with noting_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with noting_sigterm():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
