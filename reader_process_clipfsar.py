"""Reading video files in a process that can be killed. Signals and threads cannot stop a decoder that hangs in C.

One such process serves one thread. It starts when the first file is read and imports only PyAV and numpy, which takes a
third of a second. A request then costs one message each way and a copy of the frames through a pipe.
"""

import contextlib
import io
import multiprocessing.util
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

try:
    from .container_clipfsar import UnreadableError, VideoTimes, check_container
except ImportError:
    if __package__:
        raise
    from container_clipfsar import UnreadableError, VideoTimes, check_container

try:
    from .decoding_clipfsar import RecountError, installed_decoder, open_reader, reason_of
except ImportError:
    if __package__:
        raise
    from decoding_clipfsar import RecountError, installed_decoder, open_reader, reason_of

try:
    from .limits_clipfsar import limit, set_limits, take_limits
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import limit, set_limits, take_limits

try:
    from .parent_process_clipfsar import end_with_parent, shielding_children
except ImportError:
    if __package__:
        raise
    from parent_process_clipfsar import end_with_parent, shielding_children

PIPE_BYTES = 2**20
_ERRORS = {"unreadable": UnreadableError, "import": ImportError}


class TimedOutError(UnreadableError):
    """Raised when the time limit of a video is reached."""


# --- in the process ---------------------------------------------------------------------------------------------------


def serve():
    """Answers requests from standard input until there are no more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output that a library prints must not mix with the answers
    # This also works while a decoder hangs, and while a sibling holds the other end of the pipe open.
    end_with_parent()
    # Schedulers may send SIGTERM to all processes: the program decides when to stop, and its readers end with it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _limit_memory()
    reader = None
    try:
        while (request := _receive(requests)) is not None:
            kind, *arguments = request
            if kind == "open":
                reader = _open(answers, *arguments)
            else:
                _read(answers, reader, *arguments)
            answers.flush()
    except BrokenPipeError:  # the parent has ended; closing `answers` would fail again
        os._exit(1)


def _open(answers, source, decoder: str, num_threads: int, limits: dict[str, str]):
    take_limits(limits)
    try:
        container = check_container(source)
        if container == "frame archive":
            _send(answers, ("archive",))
            return None
        installed_decoder(decoder)
        reader = open_reader(source, decoder, num_threads, container)
    except ImportError as error:
        _send(answers, ("import", str(error)))
    except Exception as error:
        _send(answers, ("unreadable", reason_of(error, f"{'av' if decoder == 'auto' else decoder} cannot open it")))
    else:
        _send(answers, ("times", _plain(reader.times)))
        return reader


def _read(answers, reader, frames: list[int]):
    try:
        for image in reader.read(frames):
            _send(answers, ("frame", image.shape))
            answers.write(np.ascontiguousarray(image).data)
        _send(answers, ("end",))
    except RecountError as error:
        _send(answers, ("recount", str(error), _plain(reader.times)))
    except BrokenPipeError:
        raise
    except Exception as error:
        _send(answers, ("unreadable", reason_of(error, "a wanted frame cannot be decoded")))


def _plain(times: VideoTimes) -> tuple:
    # Plain values, not our classes: this module may have another name in the parent.
    return times.num_frames, times.fps, times.seconds, times.duration


def _limit_memory():
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        allowed = limit("reader_bytes") if hard == resource.RLIM_INFINITY else min(limit("reader_bytes"), hard)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))


# --- messages ---------------------------------------------------------------------------------------------------------


def _send(file, message: tuple):
    data = pickle.dumps(message)
    file.write(struct.pack("<Q", len(data)) + data)


def _receive(file) -> tuple | None:
    header = file.read(8)
    if len(header) < 8:
        return None
    (size,) = struct.unpack("<Q", header)
    data = file.read(size)
    return pickle.loads(data) if len(data) == size else None


# --- in the program ---------------------------------------------------------------------------------------------------


class _ReaderProcess:
    def __init__(self):
        folder, name = os.path.split(os.path.abspath(__file__))
        paths = [folder, *(os.path.abspath(path) for path in sys.path)]
        module = name.removesuffix(".py")
        program = f"import sys; sys.path[:] = {paths!r}; import {module}; {module}.serve()"
        command = [sys.executable, "-c", program]
        with shielding_children(is_for_multiprocessing=False):
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert isinstance(stdin, io.BufferedWriter)  # as `Popen` makes pipes
        assert isinstance(stdout, io.BufferedReader)
        self._stdin, self._stdout = stdin, stdout
        self._buffer = np.empty(0, np.uint8)
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import fcntl  # not on Windows

            fcntl.fcntl(stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self):
        self._process.kill()
        self._process.wait()
        for file in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                file.close()

    @contextlib.contextmanager
    def limited(self, seconds: float):
        """Kills the process when the time is up and raises `TimedOutError`. Raises `UnreadableError` if it crashed."""
        is_late = threading.Event()

        def stop():
            is_late.set()
            self._process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, EOFError) as error:
            if is_late.is_set():
                raise TimedOutError() from None
            raise UnreadableError("the decoder crashed") from error
        finally:
            timer.cancel()

    def send(self, message: tuple):
        _send(self._stdin, message)
        self._stdin.flush()

    def receive(self) -> tuple:
        message = _receive(self._stdout)
        if message is None:
            raise EOFError
        return message

    def receive_frame(self, shape: tuple[int, ...]) -> np.ndarray:
        """A frame, valid until the next is received. New memory for each frame would cost as much as the pipe."""
        size = int(np.prod(shape))
        if self._buffer.size < size:
            self._buffer = np.empty(size, np.uint8)
        frame = self._buffer[:size]
        if self._stdout.readinto(frame.data) < size:
            raise EOFError
        return frame.reshape(shape)


_idle: list[_ReaderProcess] = []
_lock = threading.Lock()
_is_registered = False
_processes_of_parent: list[_ReaderProcess] = []  # a forked child neither uses nor closes its parent's readers


def _take_process() -> _ReaderProcess:
    with _lock:
        while _idle:
            process = _idle.pop()
            if process.is_alive:
                return process
    _register_end()
    return _ReaderProcess()


def _register_end():
    """Ends the readers when this process ends. (The processes of multiprocessing do not run `atexit` functions.)"""
    global _is_registered
    if not _is_registered:
        _is_registered = True
        multiprocessing.util.Finalize(None, _end_processes, exitpriority=1)


def _forget_processes():
    global _lock, _is_registered
    _is_registered = False
    _processes_of_parent.extend(_idle)
    _idle.clear()
    _lock = threading.Lock()


def _end_processes():
    while _idle:
        _idle.pop().kill()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_processes)


class RemoteReader:
    """A reader (see `decoding_clipfsar`) that works in another process and has a time limit. Use it in a `with` block.

    If `is_archive`, the file is a frame archive, which this reader does not read. Raises the errors of readers, and
    `TimedOutError`.
    """

    def __init__(self, source: str | bytes, decoder: str, num_threads: int, seconds: float):
        self._seconds = self._left = seconds
        self._taken: _ReaderProcess | None = _take_process()
        self._is_busy = True
        source = os.path.abspath(source) if isinstance(source, str) else source
        self.times: VideoTimes  # unless it is an archive
        self.is_archive = False
        try:
            with self._in_time():
                self._answer(("open", source, decoder, num_threads, set_limits()))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "RemoteReader":
        return self

    def __exit__(self, *_):
        process, self._taken = self._taken, None
        if process is None:
            return
        if self._is_busy or not process.is_alive:
            process.kill()
        else:
            with _lock:
                _idle.append(process)

    @property
    def _process(self) -> _ReaderProcess:
        assert self._taken is not None  # outside the `with` block another reader may have it
        return self._taken

    def read(self, frames: list[int]) -> Iterator[np.ndarray]:
        """Yields frames; `frames` are their numbers, rising. Opening the file and all frames share one time limit."""
        with self._in_time():
            kind, *values = self._answer(("read", frames))
            while kind == "frame":
                yield self._process.receive_frame(*values)
                kind, *values = self._answer()

    def stream(self, frames: list[int]) -> Iterator[np.ndarray]:
        """Like `read`, but the full time limit applies to each frame, so that a long video can be read to its end."""
        message = ("read", frames)
        while True:
            self._left = self._seconds
            with self._in_time():
                kind, *values = self._answer(message)
                if kind != "frame":
                    return
                image = self._process.receive_frame(*values)
            yield image
            message = None

    def _answer(self, message: tuple | None = None) -> tuple:
        """Sends `message`, unless it is None, and returns the next answer."""
        self._is_busy = True
        if message is not None:
            self._process.send(message)
        kind, *values = answer = self._process.receive()
        self._is_busy = kind == "frame"
        if kind in _ERRORS:
            raise _ERRORS[kind](*values)
        if kind in ("times", "recount"):
            self.times = VideoTimes(*values[-1])
        if kind == "recount":
            raise RecountError(values[0])
        self.is_archive = kind == "archive"
        return answer

    @contextlib.contextmanager
    def _in_time(self):
        start = time.monotonic()
        try:
            with self._process.limited(max(self._left, 0.001)):
                yield
        except TimedOutError:
            raise TimedOutError(f"timed out after {self._seconds:g} s (raise seconds_per_video)") from None
        self._left -= time.monotonic() - start


def can_start_processes() -> bool:
    """Whether the Python executable and the file of this module are known, which a reader process needs."""
    return bool(sys.executable) and Path(__file__).is_file()


__all__ = ["RemoteReader", "TimedOutError", "can_start_processes"]
