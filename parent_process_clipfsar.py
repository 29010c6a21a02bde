"""Processes that end with the one that started them, however that ends, and leave Ctrl-C to it.

A killed program cannot end its helpers, and a helper that waits for work would wait for ever. Needs nothing but Python.
"""

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

SECONDS_BETWEEN_LOOKS = 1.0


def end_with_parent(stop=None) -> None:
    """Ends this process as soon as its parent has ended, also while it computes; Ctrl-C is then for the parent alone.

    Args:
        stop: The reading end of a pipe whose other end the parent alone holds: it ends this process by closing it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    handles = [stop] if stop is not None else []
    if parent is not None:  # not that of the operating system where a server forks for the parent
        handles.append(parent.sentinel)
    threading.Thread(target=_end_after, args=(os.getppid(), handles), daemon=True).start()


def _end_after(parent: int, handles: list):
    while os.getppid() == parent:
        if not handles:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        elif multiprocessing.connection.wait(handles, SECONDS_BETWEEN_LOOKS):
            break
    os._exit(1)


@contextlib.contextmanager
def shielding_children(is_for_multiprocessing: bool = True) -> Iterator[None]:
    """Processes that are started in this block never hear of Ctrl-C; this one hears of it when the block ends.

    `end_with_parent` does the same once it runs: this is for the seconds in which they import what they need.
    `is_for_multiprocessing`: whether that module starts them.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    # Started in the block, the tracker of multiprocessing would let the signal through again.
    if is_for_multiprocessing:
        importlib.import_module("multiprocessing.resource_tracker").ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def ending_pool(num_workers: int, context) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end with this one, and at once when the block fails or is interrupted.

    Jobs are to be submitted under `shielding_children`.
    """
    stop, stopper = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_workers, context, end_with_parent, (stop,))
    try:
        yield pool
    except BaseException:
        stopper.close()  # nobody waits for what is under way
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        stop.close()
        stopper.close()


__all__ = ["end_with_parent", "ending_pool", "shielding_children"]
