"""Child processes that end when their parent ends, even if it is killed, and that leave Ctrl-C to the parent.

A killed program cannot end its children, and a child that waits for work would wait forever. This module imports only
the standard library.
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
    """Ends this process as soon as its parent has ended, even while it computes. From now on it ignores Ctrl-C.

    Args:
        stop: The reading end of a pipe. The parent holds the other end; closing that end ends this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    handles = [stop] if stop is not None else []
    if parent is not None:  # it differs from the process of getppid where a fork server starts this one
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
    """Processes started in this block do not receive Ctrl-C. This process receives it when the block ends.

    `end_with_parent` does the same once it runs; this block covers the seconds before, while the children import.
    `is_for_multiprocessing`: whether the module `multiprocessing` starts them.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    # If multiprocessing started its resource tracker inside the block, it would unblock the signal.
    if is_for_multiprocessing:
        importlib.import_module("multiprocessing.resource_tracker").ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def ending_pool(num_workers: int, context) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end with this one, or at once if the block fails or is interrupted.

    Submit jobs under `shielding_children`.
    """
    stop, stopper = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_workers, context, end_with_parent, (stop,))
    try:
        yield pool
    except BaseException:
        stopper.close()  # nobody waits for the running jobs
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        stop.close()
        stopper.close()


__all__ = ["end_with_parent", "ending_pool", "shielding_children"]
