"""What one of several processes does for all of them."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

Result = TypeVar("Result")


def first_process_decides(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Result of a function that the main process alone calls, the same on all processes.

    Raises:
        ValueError, OSError: What the function raised, on the main process; the others get a `ValueError` with the same
            message, instead of waiting for a process that has ended.
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
    """Whether a condition holds on every process; the same answer on all."""
    return condition if accelerator.num_processes == 1 else all(gather_object([condition]))


__all__ = ["first_process_decides", "holds_everywhere"]
