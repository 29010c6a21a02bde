"""Functions for programs that run in several processes."""

import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

Result = TypeVar("Result")


def first_process_decides(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Calls a function on the main process only and returns its result on all processes.

    Raises:
        Exception: Whatever the function raises, on the main process. The others raise a `ValueError` with its message,
            so that they do not wait for a process that has ended.
    """
    if accelerator.num_processes == 1:
        return function()
    results, error = _attempt(function) if accelerator.is_main_process else ([], None)
    results, message = broadcast_object_list([results, _message_for_others(error)])
    if message is not None:
        raise error or ValueError(message)
    return results[0]


def machines_first(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Calls a function on one process per machine, then on the others, and returns each process's own result.

    The first call on a machine downloads what the other processes then find in the cache.

    Raises:
        Exception: Whatever the function raises. If a first call fails, every process raises: the others a `ValueError`
            with its message.
    """
    if accelerator.num_processes == 1:
        return function()
    results, error = _attempt(function) if accelerator.is_local_main_process else ([], None)
    messages = [message for message in gather_object([_message_for_others(error)]) if message is not None]
    if messages:
        raise error or ValueError(messages[0])
    return results[0] if results else function()


def _attempt(function: Callable[[], Result]) -> tuple[list[Result], Exception | None]:
    """The result in a list, or the error. The caller raises it when the other processes know of it."""
    try:
        return [function()], None
    except Exception as error:
        return [], error


def _message_for_others(error: Exception | None) -> str | None:
    """The message of an error that is meant for people; other errors with their type."""
    if error is None:
        return None
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    return f"Another process failed: {type(error).__name__}: {error}"


def ignore_sigterm(_worker: int = 0) -> None:
    """`worker_init_fn` of a loader: schedulers may send SIGTERM to all processes, and the training still needs batches.

    The workers end with their loader, or with the process that they work for.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def exiting_on_sigterm(remedy: str) -> Iterator[None]:
    """Within this block SIGTERM ends the program as Ctrl-C does, with code 143: multiprocessing deletes its files.

    A second SIGTERM ends it at once. `remedy` is the last sentence of the message. The block changes nothing in another
    thread, or where another handler is set.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(2, f"Told to stop (SIGTERM). {remedy}\n".encode())
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
    "exiting_on_sigterm",
    "first_process_decides",
    "holds_anywhere",
    "holds_everywhere",
    "ignore_sigterm",
    "machines_first",
]
