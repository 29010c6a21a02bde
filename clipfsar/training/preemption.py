"""SIGTERM, which schedulers send before they take a machine away: save at the next update, then end with code 143."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from accelerate import Accelerator
from transformers.trainer_callback import TrainerCallback

from clipfsar.processes import holds_anywhere

PREEMPTED = 128 + signal.SIGTERM  # exit code, as in shells


class PreemptionNotice:
    """Whether this process has received SIGTERM."""

    has_come = False


@contextlib.contextmanager
def noting_sigterm() -> Iterator[PreemptionNotice]:
    """Within this block SIGTERM only sets the notice. A second SIGTERM ends the process, as it does without the block.

    Signals reach the main thread only. In another thread, or where another handler is set, the block changes nothing.
    """
    notice = PreemptionNotice()
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield notice
        return

    def note(*_):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        notice.has_come = True

    signal.signal(signal.SIGTERM, note)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class PreemptionCallback(TrainerCallback):
    """Saves a checkpoint after SIGTERM and ends the program with code 143.

    One process looks after each update. Several processes must agree, which makes them wait for each other, so they
    look only where a line of the log makes them wait anyway.
    """

    def __init__(self, notice: PreemptionNotice, accelerator: Accelerator):
        self._notice, self._accelerator, self._is_leaving = notice, accelerator, False

    def on_step_end(self, args, state, control, **kwargs):
        if self._accelerator.num_processes == 1 or control.should_log:
            self._is_leaving = holds_anywhere(self._accelerator, self._notice.has_come)
        control.should_save = control.should_save or self._is_leaving
        return control

    def on_save(self, args, state, control, **kwargs):
        if self._is_leaving:
            if state.is_world_process_zero:
                episodes = state.global_step * args.episodes_per_update
                print(f"SIGTERM: saved a checkpoint after episode {episodes}. --resume continues from it.", flush=True)
            raise SystemExit(PREEMPTED)


__all__ = ["PREEMPTED", "PreemptionCallback", "PreemptionNotice", "noting_sigterm"]
