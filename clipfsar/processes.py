"""Functions for programs that run in several processes."""

from collections.abc import Callable
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


def holds_everywhere(accelerator: Accelerator, condition: bool) -> bool:
    """Whether a condition holds on every process. All processes get the same answer."""
    return condition if accelerator.num_processes == 1 else all(gather_object([condition]))


__all__ = ["first_process_decides", "holds_everywhere"]
