"""What the page leaves behind when it is told to stop. Needs neither gradio nor a browser."""

import os
import signal
import subprocess
import sys

import pytest


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a program of Python that finds the library, for at most 30 seconds."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    return subprocess.run([sys.executable, "-c", program], env=variables, timeout=30, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="these are the signals of POSIX")
def test_folders_are_deleted_when_the_process_is_told_to_stop_or_its_terminal_closes(name, tmp_path):
    program = (
        "import os, signal, tempfile; from clipfsar.page.signals import exit_on_signals; exit_on_signals()\n"
        "with tempfile.TemporaryDirectory(prefix='clips'):\n"
        f"    os.kill(os.getpid(), signal.{name})"
    )
    assert run(program, TMPDIR=str(tmp_path)).returncode == 0
    assert list(tmp_path.glob("clips*")) == []


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="these are the signals of POSIX")
def test_a_page_under_nohup_outlives_its_terminal():
    program = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from clipfsar.page.signals import exit_on_signals; exit_on_signals()\n"
        "os.kill(os.getpid(), signal.SIGHUP); print('still here')"
    )
    assert run(program).stdout == "still here\n"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="only POSIX has this timer")
def test_a_thread_that_still_computes_does_not_keep_the_process_alive():
    program = (
        "import threading, time; from clipfsar.page.signals import end_soon\n"
        "threading.Thread(target=time.sleep, args=(60,)).start(); end_soon(0.2)"
    )
    assert run(program).returncode == -signal.SIGALRM


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="only POSIX has this timer")
def test_an_exit_that_python_ignores_is_an_end_all_the_same():
    program = (
        "import os, signal, time; from clipfsar.page import signals\n"
        "signals.end_soon.__defaults__ = (0.5,); signals.exit_on_signals()\n"
        "class Deleted:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\n"
        "one = Deleted(); del one\n"
        "print('still here', flush=True); time.sleep(60)"
    )
    ended = run(program)
    assert (ended.returncode, ended.stdout) == (-signal.SIGALRM, "still here\n")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="only POSIX has this timer")
def test_being_told_again_does_not_put_off_the_end():
    program = (
        "import signal; from clipfsar.page.signals import end_soon\n"
        "end_soon(5); end_soon(60); print(signal.getitimer(signal.ITIMER_REAL)[0] <= 5)"
    )
    assert run(program).stdout == "True\n"
