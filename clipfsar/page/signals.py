"""What the page does when it is told to stop."""

import signal
import sys

SECONDS_TO_END = 30


def exit_on_signals():
    """Ends the process as usual when it is told to stop or its terminal closes: temporary folders are deleted."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, _exit)


def _exit(*_):
    end_soon()  # now: Python ignores an exit that is raised while it deletes an object
    sys.exit(0)


def end_soon(seconds: float = SECONDS_TO_END):
    """Ends this process after that time if it has not ended by itself. Python may wait for ever: threads still compute.

    The rest of the program deletes its folders meanwhile. The end comes from the system: a thread that holds
    Python's lock cannot put it off, nor can a second call.
    """
    if hasattr(signal, "setitimer") and not signal.getitimer(signal.ITIMER_REAL)[0]:  # Windows has no timer
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


__all__ = ["end_soon", "exit_on_signals"]
