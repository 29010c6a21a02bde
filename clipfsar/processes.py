"""Functions for programs that run in several processes."""

import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

Result = TypeVar("Result")


def first_process_decides(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Calls a function on the main process only and returns its result on all processes.

    Raises:
        ValueError, OSError: The error of the function, on the main process. The others raise a `ValueError` with the
            same message, so that they do not wait for a process that has ended.
    """
    if accelerator.num_processes == 1:
        return function()
    outcome, error = [None, None], None
    if accelerator.is_main_process:
        try:
            outcome = [function(), None]
        except (ValueError, OSError) as refusal:
            outcome, error = [None, str(refusal)], refusal
    result, message = broadcast_object_list(outcome)
    if message is not None:
        raise error or ValueError(message)
    return result


def machines_first(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Calls a function on one process per machine, then on the others, and returns each process's own result.

    The first call on a machine downloads what the other processes then find in the cache.

    Raises:
        ValueError, OSError: The error of the function. Every process raises it if a first call fails.
    """
    if accelerator.num_processes == 1:
        return function()
    results: list[Result] = []
    error = None
    if accelerator.is_local_main_process:
        try:
            results.append(function())
        except (ValueError, OSError) as refusal:
            error = refusal
    messages = gather_object([None if error is None else str(error)])
    if any(messages):
        raise error or ValueError(next(filter(None, messages)))
    return results[0] if results else function()


def check_shared_folder(accelerator: Accelerator, folder: Path, option: str, patience_seconds: float = 10.0) -> None:
    """Raises `ValueError` on every process unless all processes see the same `folder`.

    The main process writes a file with a random name, and the others look for it. Two machines with folders of their
    own would otherwise resume from different checkpoints without noticing.

    Args:
        option: Names the folder in the message, for example "--output_dir".
        patience_seconds: How long to look: a network disk may show new files late.
    """
    if accelerator.num_processes == 1:
        return

    def write() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        name = f".shared-{secrets.token_hex(8)}"
        (folder / name).touch()
        return name

    mark = folder / first_process_decides(accelerator, write)
    end = time.monotonic() + patience_seconds
    while not (is_there := mark.is_file()) and time.monotonic() < end:
        time.sleep(0.1)
    hosts = gather_object([(socket.gethostname(), is_there)])
    if accelerator.is_main_process:
        mark.unlink(missing_ok=True)
    missing = sorted({host for host, is_there in hosts if not is_there})
    if missing:
        raise ValueError(
            f"{option} {folder} is not one folder for all processes: what the main process on {hosts[0][0]} writes is "
            f"not there on {', '.join(missing)}. Name a folder on a disk that all machines share."
        )


def check_same_everywhere(accelerator: Accelerator, what: str, compute: Callable[[], object]) -> None:
    """Raises `ValueError` on every process unless `compute` gives all of them the same; `what` names it in the message.

    A single process computes nothing.
    """
    if accelerator.num_processes == 1:
        return
    values = gather_object([compute()])
    different = [rank for rank, other in enumerate(values) if other != values[0]]
    if different:
        raise ValueError(
            f"The processes do not agree on {what}: process 0 has {values[0]}, process {different[0]} has "
            f"{values[different[0]]}. Check that all machines have the same files and package versions."
        )


def holds_anywhere(accelerator: Accelerator, condition: bool) -> bool:
    """Whether a condition holds on some process. All processes get the same answer."""
    return condition if accelerator.num_processes == 1 else any(gather_object([condition]))


def holds_everywhere(accelerator: Accelerator, condition: bool) -> bool:
    """Whether a condition holds on every process. All processes get the same answer."""
    return condition if accelerator.num_processes == 1 else all(gather_object([condition]))


__all__ = [
    "check_same_everywhere",
    "check_shared_folder",
    "first_process_decides",
    "holds_anywhere",
    "holds_everywhere",
    "machines_first",
]
