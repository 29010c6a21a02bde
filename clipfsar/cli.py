"""The command `clipfsar`. Slow imports happen after the options and the local paths are checked.

Exit codes: 0 done, 1 an error with a message of one line, 2 a usage error, 3 `predict` could not read some queries,
130 interrupted, 141 the reader of the output has closed it.
"""

import errno
import importlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

from clipfsar import __version__
from clipfsar.first_seconds import end_by_sentence
from clipfsar.options import INTERRUPTED, interruption_handler, nearest, parse_options

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
DONE, FAILED, USAGE, OUTPUT_CLOSED = 0, 1, 2, 141


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Args:
        summary: One line for `clipfsar --help`.
        options: "module:name" of a dataclass of options, or of a function that parses a command line.
        program: "module:name" of the function that gets the options. If it returns an int, that is the exit code.
        after_interrupt: Sentence on what the user can do after an interruption.
    """

    summary: str
    options: str
    program: str
    after_interrupt: str = ""


COMMANDS = {
    "train": Command(
        "train a model on few-shot episodes",
        "clipfsar.training.arguments:parse_arguments",
        "clipfsar.training.program:main",
        "Run the same command with --resume to continue from the last checkpoint, if there is one yet.",
    ),
    "prepare": Command(
        "make a data set from video files, and list bad ones",
        "clipfsar.data.arguments:parse_arguments",
        "clipfsar.data.prepare:main",
        "Run the same command again to continue where it stopped.",
    ),
    "evaluate": Command(
        "measure few-shot accuracy on a split",
        "clipfsar.evaluation.arguments:EvaluateArguments",
        "clipfsar.evaluation.evaluate_model:main",
    ),
    "compare": Command(
        "compare heads and checkpoints on the same episodes",
        "clipfsar.evaluation.arguments:CompareArguments",
        "clipfsar.training.train_heads:main",
        "Run the same command again: finished trainings are kept, and others continue.",
    ),
    "reproduce": Command(
        "prepare, train, evaluate and report a benchmark",
        "clipfsar.reproduction.arguments:parse_arguments",
        "clipfsar.reproduction.program:main",
        "Run the same command again to continue where it stopped.",
    ),
    "predict": Command(
        "classify videos by a few example clips per class",
        "clipfsar.inference.arguments:PredictArguments",
        "clipfsar.inference.predict:main",
    ),
    "review": Command(
        "judge example clips: expected accuracy, suspect labels, doubles",
        "clipfsar.inference.arguments:ReviewArguments",
        "clipfsar.inference.review:main",
    ),
    "export": Command(
        "write ONNX or torch.export files for other programs",
        "clipfsar.inference.arguments:ExportArguments",
        "clipfsar.inference.export:main",
    ),
    "convert": Command(
        "convert official checkpoints and OpenAI's weights, in both directions",
        "clipfsar.checkpoints.arguments:ConvertArguments",
        "clipfsar.checkpoints.convert:main",
    ),
    "push": Command(
        "upload a model to the Hugging Face Hub",
        "clipfsar.checkpoints.arguments:PushArguments",
        "clipfsar.checkpoints.push_to_hub:main",
    ),
    "demo-page": Command(
        "try a model on a page in the browser",
        "clipfsar.page.arguments:PageArguments",
        "clipfsar.page.app:main",
    ),
}


def usage() -> str:
    lines = [f"  {name:<10}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: clipfsar COMMAND [OPTIONS]",
            "",
            "Few-shot action recognition: you give a few clips per class, and the model classifies new clips.",
            "",
            *lines,
            "",
            "clipfsar COMMAND --help explains a command. clipfsar --version prints the version.",
        ]
    )


def _imported(place: str):
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _parse(name: str, command_line: list[str]):
    """The options of a subcommand. `--help` and usage errors end the program."""
    options, prog = _imported(COMMANDS[name].options), f"clipfsar {name}"
    if is_dataclass(options) and isinstance(options, type):
        return parse_options(options, command_line=command_line, prog=prog)
    return options(command_line, prog=prog)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours for people: without the place in the source, which is for developers."""
    is_ours = category is UserWarning and (filename.endswith("_clipfsar.py") or _PACKAGE in Path(filename).parents)
    return f"warning: {message}\n" if is_ours else _format_warning(message, category, filename, lineno, line)


_format_warning, _PACKAGE = warnings.formatwarning, Path(__file__).parent


def _run(name: str, command_line: list[str]) -> int:
    warnings.formatwarning = _one_line
    arguments = _parse(name, command_line)
    if getattr(arguments, "print_config", False):
        print(json.dumps(asdict(arguments), indent=2))
        return DONE
    if hasattr(arguments, "check_files"):
        arguments.check_files()
    result = _imported(COMMANDS[name].program)(arguments)
    return result if isinstance(result, int) else DONE


def _error(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def _dispatch(command_line: list[str]) -> int:
    name = command_line[0] if command_line else ""
    if name in ("-h", "--help", "help"):
        print(usage())
        return DONE
    if name == "--version":
        print(__version__)
        return DONE
    if not name:
        print(usage(), file=sys.stderr)
        return USAGE
    if name not in COMMANDS:
        meant = nearest(name, COMMANDS)
        _error(f"Unknown command {name!r}: " + (f"did you mean {meant!r}?" if meant else "see clipfsar --help."))
        return USAGE
    try:
        return _run(name, command_line[1:])
    except BrokenPipeError:
        raise
    except _errors_told_in_a_sentence() as error:
        _error(_sentence(error))
        return FAILED


def _errors_told_in_a_sentence() -> tuple[type[Exception], ...]:
    """Errors that the user can mend. safetensors has its own for a full disk; it is not imported for that."""
    safetensors = sys.modules.get("safetensors")
    own = () if safetensors is None else (safetensors.SafetensorError,)
    return (ValueError, OSError, ImportError, FloatingPointError, *own)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        remedy = " Free some space there, or name another place." if error.errno in _NO_SPACE else ""
        return f"{error.filename}: {error.strerror}.{remedy}"  # without the error number
    return str(error) or type(error).__name__


def main(command_line: Sequence[str] | None = None) -> int:
    """Runs a command line (by default that of this process) and returns the exit code."""
    command_line = list(sys.argv[1:] if command_line is None else command_line)
    command = COMMANDS.get(command_line[0] if command_line else "")
    interrupted = f"Interrupted. {command.after_interrupt if command else ''}".rstrip()
    before = signal.getsignal(signal.SIGINT)
    is_ours = before in (signal.default_int_handler, end_by_sentence)
    is_ours = is_ours and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, interruption_handler(interrupted))
    try:
        code = _dispatch(command_line)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:  # from the parser, after --help or a usage error
        if not isinstance(end.code, (int, type(None))):
            raise
        return end.code or DONE
    except BrokenPipeError:
        # The interpreter flushes stdout again when it ends; that must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, before)


__all__ = ["COMMANDS", "Command", "main"]
