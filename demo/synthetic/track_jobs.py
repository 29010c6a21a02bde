"""Runs the jobs of the tracks and the study on all cores, with progress bars and timing."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from choices_clipfsar import check_positive_integer
from demo.synthetic.quiet import quiet
from parent_process_clipfsar import ending_pool, shielding_children

Progress = Callable[[str, int, int], None]  # phase, done, total


def check_options(options) -> None:
    """Raises `ValueError` for values that would fail only after minutes: numbers below 1, rates of 0, a file as folder.

    Args:
        options: Options of one of the demo's programs. Options that this program does not have are skipped.
    """
    for name in ("num_seeds", "episodes", "num_workers"):
        value = getattr(options, name, None)
        if value is not None:
            check_positive_integer(name, value)
    for rate in getattr(options, "learning_rates", ()):
        if not 0 < rate < float("inf"):
            raise ValueError(f"learning_rates: {rate:g} must be greater than 0.")
    if Path(options.output_dir).is_file():
        raise ValueError(f"output_dir={options.output_dir!r} is a file: name a folder.")


def write_text(path: Path, text: str) -> None:
    """Writes a file. It appears under its name only when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


class Clock:
    """Wall-clock seconds of each phase, and CPU seconds over all processes."""

    def __init__(self):
        self.seconds = {}
        self._cpu = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start, own, self._cpu = time.perf_counter(), time.process_time(), 0.0
        yield
        cpu = self._cpu + time.process_time() - own
        self.seconds[name] = {"wall": round(time.perf_counter() - start, 1), "cpu": round(cpu, 1)}

    def results(self, timed: list[tuple[object, float]]) -> list:
        """Results of timed jobs; adds their CPU seconds to the phase."""
        self._cpu += sum(seconds for _, seconds in timed)
        return [result for result, _ in timed]


def _timed(function: Callable, job) -> tuple[object, float]:
    """A job's result and its CPU seconds. One thread only: with more, results would depend on the machine."""
    torch.set_num_threads(1)
    start = time.process_time()
    with quiet():
        return function(job), time.process_time() - start


@contextmanager
def working(num_workers: int | None) -> Iterator[Callable]:
    """Yields a function `(function, jobs, phase, report)` that runs jobs and returns results and seconds in order."""
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1:
        threads = torch.get_num_threads()

        def run_here(function, jobs, phase, report):
            report(phase, 0, len(jobs))
            done = []
            for job in jobs:
                result, _ = _timed(function, job)
                done.append((result, 0.0))  # `Clock` already counts this process's seconds
                report(phase, len(done), len(jobs))
            return done

        try:
            yield run_here
        finally:
            torch.set_num_threads(threads)
        return
    # Spawned, not forked: this process may have torch's threads, which break in a forked process.
    with ending_pool(num_workers, get_context("spawn")) as pool:

        def run_in_pool(function, jobs, phase, report):
            report(phase, 0, len(jobs))
            with shielding_children():
                futures = [pool.submit(_timed, function, job) for job in jobs]
            done = []
            for future in futures:
                done.append(future.result())
                report(phase, len(done), len(jobs))
            return done

        yield run_in_pool


@contextmanager
def showing_progress(progress: Progress | None) -> Iterator[Progress]:
    """Yields the caller's function, or by default one that shows a progress bar for each phase."""
    if progress is not None:
        yield progress
        return
    bars = {}

    def report(phase: str, done: int, total: int) -> None:
        if phase not in bars and total:
            bars[phase] = tqdm(total=total, desc=phase, unit="job")
        if phase in bars:
            bars[phase].update(done - bars[phase].n)
            if done == total:
                bars[phase].close()

    yield report


__all__ = ["Clock", "Progress", "check_options", "showing_progress", "working", "write_text"]
