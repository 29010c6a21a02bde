"""Processes end with the one that started them; Ctrl-C is one sentence and exit code 130, wherever it comes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
from tiny_data import REPOSITORY, child_environment

from clipfsar import cli
from clipfsar.data import frame_store

# Imports nothing heavy: what is tested is how processes end.
PROGRAM = """
import multiprocessing, os, sys, time
from parent_process_clipfsar import end_with_parent, ending_pool, shielding_children

def report_and_wait(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(100)

if __name__ == "__main__":
    with ending_pool(2, multiprocessing.get_context(sys.argv[1])) as pool:
        with shielding_children():
            futures = [pool.submit(report_and_wait, sys.argv[2]) for _ in range(8)]
        try:
            for future in futures:
                future.result()
        except KeyboardInterrupt:
            print("interrupted")
            raise SystemExit(130)
"""


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent_and_ctrl_c_waits_for_none(method, number, tmp_path):
    program, pids = tmp_path / "program.py", tmp_path / "pids"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), method, str(pids)]
    with subprocess.Popen(
        command, env=child_environment(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        wait_for(lambda: len(lines_of(pids)) == 2)
        workers = [int(line) for line in lines_of(pids)]
        assert all(map(is_running, workers))
        # a terminal sends SIGINT to all of them
        (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)
        parent.wait(20)
        wait_for(lambda: not any(map(is_running, workers)))
        output, errors = parent.communicate(timeout=20)
    if number == signal.SIGINT:
        assert (parent.returncode, output, errors) == (130, b"interrupted\n", b"")
    assert len(lines_of(pids)) == 2


def wait_in_processes(folder):
    """In a child: jobs that take long, in the processes of preparation; what these import is little."""
    frame_store._start_server = lambda context: None
    forkserver._forkserver.__init__()  # one of its own: that of the tests, if there is one, is no child of this process
    job = ["sh", "-c", f"touch '{folder}'/$PPID; sleep 15"]
    list(frame_store.in_processes(subprocess.check_call, [job] * 3, 2))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_the_workers_of_preparation_end_with_it(tmp_path):
    folder = tmp_path / "pids"
    folder.mkdir()
    parent = multiprocessing.get_context("fork").Process(target=wait_in_processes, args=(folder,))
    parent.start()
    wait_for(lambda: len(list(folder.iterdir())) == 2)
    workers = [int(path.name) for path in folder.iterdir()]
    parent.kill()
    parent.join()
    wait_for(lambda: not any(map(is_running, workers)))


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.parametrize("moment", ["options", "files", "import", "work"])
def test_every_command_ends_with_one_sentence_whenever_it_is_interrupted(command, moment, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    class Arguments:
        check_files = interrupt if moment == "files" else lambda self: None

    def imported(place):
        if place == cli.COMMANDS[command].options:
            return interrupt if moment == "options" else lambda *_, **__: Arguments()
        return interrupt() if moment == "import" else interrupt

    monkeypatch.setattr(cli, "_imported", imported)
    assert cli.main([command]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == " ".join(filter(None, ("Interrupted.", cli.COMMANDS[command].after_interrupt))) + "\n"


@pytest.mark.parametrize("module", ["benchmarks.alignment", "benchmarks.run_all", "demo.page", "demo.synthetic.run"])
def test_benchmarks_and_demos_end_with_one_sentence_while_they_import(module):
    # (the program interrupts itself in the first import that takes seconds)
    code = f"""
import runpy, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name in ("torch", "numpy", "av", "matplotlib"):
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["-m"]
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
signal.raise_signal(signal.SIGINT)  # of a program that imports nothing of the kind
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, env=child_environment())
    assert (child.returncode, child.stderr.decode()) == (130, "Interrupted.\n")
