"""What the page does when it is told to stop."""

import signal
import sys


def exit_on_signals():
    """Ends the process as usual when it is told to stop or its terminal closes: temporary folders are deleted."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, lambda *_: sys.exit(0))


__all__ = ["exit_on_signals"]
