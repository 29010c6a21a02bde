"""Makes Ctrl-C print one sentence while the command `clipfsar` starts. Imports very little, because it runs first."""

import os
import signal
import sys

INTERRUPTED = 130  # exit code, as in shells


def end_by_sentence(*_) -> None:
    """Handler of SIGINT for a program that has not begun its work."""
    os.write(2, b"Interrupted.\n")
    os._exit(INTERRUPTED)


def _is_our_program() -> bool:
    """Whether this process was started as `clipfsar` or `python -m clipfsar`. False if another program imports the
    package, and in worker processes."""
    words = sys.orig_argv[1:]
    if "-m" in words:
        return words[words.index("-m") + 1 :][:1] == ["clipfsar"]
    return any(os.path.basename(word) == "clipfsar" for word in words[:1])


def guard_first_seconds() -> None:
    if _is_our_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_by_sentence)


__all__ = ["INTERRUPTED", "end_by_sentence", "guard_first_seconds"]
