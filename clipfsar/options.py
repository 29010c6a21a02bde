"""Turns dataclasses of options into command lines. Imports only the standard library, so that `--help` is fast."""

import argparse
import dataclasses
import difflib
import inspect
import numbers
import os
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from typing import Any

from clipfsar.first_seconds import INTERRUPTED
from clipfsar.option_conditions import check_conditions, conditions_in_words, names_in
from paths_clipfsar import has_protocol

REQUIRED = MISSING  # default of an option that must be given


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults that are set, and keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.required or action.default in (None, []):
            return action.help or ""
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action) or ""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`--name, --alias VALUE`, as in Python 3.13. Earlier versions repeat the value after each name."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def option(
    default: Any,
    text: str,
    choices: Iterable[str] | None = None,
    aliases: Sequence[str] = (),
    reads_addresses: bool = False,
    is_text: bool = False,
    needs: str | None = None,
    unused_with: str | None = None,
    least: int | None = None,
):
    """A field of a dataclass of options, with its help. A list as default is copied. `REQUIRED` means no default.

    `aliases` are other names of the option on the command line, such as an earlier name. Only an option that
    `reads_addresses` takes names such as s3://BUCKET/DATA; one that `is_text` may hold an address and reads nothing.

    An option that has an effect only beside others says so: `needs="lora_rank"`, `unused_with="read_episodes"` (see
    `clipfsar.option_conditions`). The help shows it, and a command line that gives the option in vain is refused.

    `least` is the smallest allowed number, also for each number of a list; see `check_least`.
    """
    metadata: dict = {"help": text, "aliases": tuple(aliases), "reads_addresses": reads_addresses, "is_text": is_text}
    metadata |= {"needs": needs, "unused_with": unused_with, "least": least}
    metadata |= {"choices": list(choices)} if choices else {}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, or None if none is close."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1)), None)


class OptionParser(argparse.ArgumentParser):
    """Prints a usage error as one line, `error: ...`, and exits with 2. Accepts `-` for `_` in option names.

    Attributes:
        given: Names of the fields whose options stand on the command line that was parsed last.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.given: set[str] = set()

    def error(self, message: str):
        message = message.removeprefix("argument ")
        self.exit(2, f"error: {message}{'' if message.endswith(('.', '?')) else '.'}\n")

    def parse_options(self, command_line: Sequence[str]) -> dict[str, Any]:
        """The values of the options, by name."""
        command_line = [_with_underscores(part) for part in command_line]
        known = [name for action in self._actions for name in action.option_strings]
        given = [part.partition("=")[0] for part in command_line if part.startswith("--")]
        for name in given:  # first, because a misspelt required option would be reported as missing
            if name not in known:
                meant = nearest(name, known)
                self.error(f"Unknown option {name!r}: {f'did you mean {meant!r}?' if meant else 'see --help.'}")
        self._note_given(given)
        values, unexpected = self.parse_known_args(command_line)
        if unexpected:
            self.error(f"Unexpected value {unexpected[0]!r}: values follow their option, --NAME VALUE.")
        return vars(values)

    def _note_given(self, names: list[str]) -> None:
        """Refuses an option that is given twice: argparse would take the last one in silence."""
        actions, first = {name: action for action in self._actions for name in action.option_strings}, dict[str, str]()
        for name in names:
            earlier = first.setdefault(actions[name].dest, name)
            if earlier != name:
                self.error(f"{earlier} and {name} set the same option: give one of them.")
            if names.count(name) > 1:
                takes_more = "; several values follow one option" if actions[name].nargs in ("*", "+") else ""
                self.error(f"{name} is given twice: give it once{takes_more}.")
        self.given = set(first)


def _with_underscores(part: str) -> str:
    if not part.startswith("--"):
        return part
    name, equals, value = part[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def make_parser(
    options_class: type,
    description: str | None = None,
    prog: str | None = None,
    defaults: dict[str, Any] | None = None,
) -> OptionParser:
    """A parser with an option for each field of a dataclass.

    Fields can be `str`, `int`, `float` or `bool`, each also `| None`, or lists of them. A flag is `--flag`,
    `--flag true` or `--flag false`. A flag that is true by default also has `--no_flag`.

    Args:
        description: Shown by `--help`; by default the docstring of the class.
        prog: Name of the program in the usage.
        defaults: Values that replace the defaults of the fields.
    """
    if description is None:
        description = inspect.getdoc(options_class)
    parser = OptionParser(prog=prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False)
    hints, defaults = typing.get_type_hints(options_class), defaults or {}
    unknown = defaults.keys() - {item.name for item in fields(options_class)}
    if unknown:
        raise TypeError(f"{options_class.__name__} has no option {', '.join(sorted(unknown))}.")
    _check_names_in_conditions(options_class)
    for item in fields(options_class):
        own = item.default if item.default_factory is MISSING else item.default_factory()
        _add_option(parser, item, hints[item.name], own, defaults.get(item.name, own))
    needed = [f"{action.option_strings[0]} {action.dest.upper()} " for action in parser._actions if action.required]
    parser.usage = f"%(prog)s {''.join(needed)}[OPTIONS]"
    return parser


def _check_names_in_conditions(options_class: type):
    known = {item.name for item in fields(options_class)}
    for item in fields(options_class):
        for condition in filter(None, (item.metadata.get("needs"), item.metadata.get("unused_with"))):
            if not names_in(condition) <= known - {item.name}:
                raise TypeError(f"The condition {condition!r} of option {item.name!r} names no other option.")


def _add_option(parser: OptionParser, item: dataclasses.Field, hint: Any, own_default: Any, default: Any):
    kind, is_list = _value_type(hint, item.name)
    conditions = conditions_in_words(item.metadata.get("needs"), item.metadata.get("unused_with"))
    # argparse formats a help text, so a plain % must be written twice
    settings = {"help": (item.metadata.get("help", "") + conditions).replace("%", "%%"), "type": kind}
    settings |= {"required": True} if default is MISSING else {"default": default}
    choices = item.metadata.get("choices")
    if choices:
        settings |= {"type": _chooser(kind, choices), "metavar": f"{{{','.join(map(str, choices))}}}"}
    if is_list:
        settings["nargs"] = "*" if own_default == [] else "+"
    elif kind is bool:
        settings |= {"type": _truth, "nargs": "?", "const": True, "metavar": "true|false"}
        settings |= {"default": False, "required": False} if default is MISSING else {}
    names = (item.name, *item.metadata.get("aliases", ()))
    parser.add_argument(*(f"--{name}" for name in names), dest=item.name, **settings)
    if kind is bool and own_default is True:
        silent: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        parser.add_argument(*(f"--no_{name}" for name in names), dest=item.name, action="store_false", **silent)


def _value_type(hint: Any, name: str) -> tuple[type, bool]:
    """The type of one value, and whether the option takes a list of them."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        hint = parts[0] if len(parts) == 1 else hint
    is_list = typing.get_origin(hint) is list
    if is_list:
        (hint,) = typing.get_args(hint)
    if hint not in (str, int, float, bool):
        raise TypeError(f"Option {name!r} has the type {hint}; use str, int, float, bool or lists of them.")
    return hint, is_list


_ACCEPTED: dict[type, Any] = {int: numbers.Integral, float: numbers.Real, str: str | os.PathLike}
_IN_WORDS = {int: "a whole number", float: "a number", str: "a text"}


def check_field_types(options: Any) -> None:
    """Checks that the fields of a dataclass of options hold what their options on a command line would.

    Paths become texts, NumPy's numbers Python's, and one value or a tuple a list where the field is one. Truth values
    are not checked.

    Raises:
        ValueError: For a value of another type, or none of the choices.
    """
    hints = typing.get_type_hints(type(options))
    for item in fields(options):
        kind, is_list = _value_type(hints[item.name], item.name)
        value = getattr(options, item.name)
        if kind is bool or (value is None and type(None) in typing.get_args(hints[item.name])):
            continue
        values = [
            _as_kind(kind, one, item) for one in (value if is_list and isinstance(value, list | tuple) else [value])
        ]
        setattr(options, item.name, values if is_list else values[0])


def _as_kind(kind: type, value: Any, item: dataclasses.Field) -> Any:
    if isinstance(value, bool) or not isinstance(value, _ACCEPTED[kind]):
        raise ValueError(f"--{item.name} {value!r} must be {_IN_WORDS[kind]}.")
    value = os.fspath(value) if kind is str else value.item() if hasattr(value, "item") else value
    choices = item.metadata.get("choices")
    if choices and value not in choices:
        raise ValueError(f"--{item.name} {value!r} is not one of {', '.join(choices)}.")
    return value


def check_least(options: Any) -> None:
    """Raises `ValueError` for a number of a dataclass of options that is below the `least` of its field."""
    for item in fields(options):
        least, given = item.metadata.get("least"), getattr(options, item.name)
        for value in given if isinstance(given, list | tuple) else [given]:
            if least is not None and value is not None and not value >= least:
                raise ValueError(f"--{item.name} {value} must be at least {least}.")


def check_no_overwriting(writes: Mapping[str, Any], reads: Mapping[str, Any]) -> None:
    """Checks that no file that a program writes is one that it reads, or writes for another option.

    Args:
        writes, reads: A path, several or none for the name of each option. Only files count: folders, pipes and devices
            may be given twice.

    Raises:
        ValueError: If a file would be overwritten; the message names both options.
    """
    owner: dict[str, str] = {}
    for names, is_written in ((reads, False), (writes, True)):
        for name, given in names.items():
            for path in given if isinstance(given, list | tuple) else [given]:
                place = os.path.realpath(os.path.expanduser(path)) if path else ""
                if not place or (os.path.exists(place) and not os.path.isfile(place)):
                    continue
                other = owner.setdefault(place, name)
                if is_written and other != name:
                    raise ValueError(f"--{name} would overwrite {path}, the file of --{other}: name another file.")


TRUTH = {"true": True, "yes": True, "t": True, "y": True, "1": True}
TRUTH |= {"false": False, "no": False, "f": False, "n": False, "0": False}


def _truth(text: str | bool) -> bool:
    if str(text).lower() not in TRUTH:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return TRUTH[str(text).lower()]


def _chooser(kind: type, choices: list) -> Callable[[str], Any]:
    def choose(text: str):
        value = kind(text)
        if value not in choices:
            meant = nearest(text, map(str, choices))
            hint = f"; did you mean {meant!r}?" if meant else ""
            raise argparse.ArgumentTypeError(
                f"invalid choice: {text!r} (choose from {', '.join(map(str, choices))}){hint}"
            )
        return value

    choose.__name__ = kind.__name__  # argparse shows it if `kind` refuses a value
    return choose


def parse_options(
    options_class: type,
    description: str | None = None,
    command_line: Sequence[str] | None = None,
    prog: str | None = None,
    defaults: dict[str, Any] | None = None,
):
    """Parses a command line into an instance of a dataclass of options. See `make_parser` for the arguments.

    A usage error ends the program with code 2 and one line on stderr. A `ValueError` in `__post_init__` of the
    dataclass is a usage error as well, and so is an option that has no effect beside the others.
    """
    parser = make_parser(options_class, description, prog, defaults)
    values = parser.parse_options(sys.argv[1:] if command_line is None else command_line)
    try:
        _check_addresses(options_class, values)
        check_conditions(options_class, values, parser.given)
        options = options_class(**values)
        check_conditions(options_class, vars(options), parser.given)  # again, with what `__post_init__` filled in
        return options
    except ValueError as error:
        parser.error(" ".join(str(error).split()))


def _check_addresses(options_class: type, values: dict[str, Any]):
    """Raises `ValueError` for an address as the value of an option that cannot read it."""
    readers = [f"--{item.name}" for item in fields(options_class) if item.metadata.get("reads_addresses")]
    for item in fields(options_class):
        if item.metadata.get("is_text"):
            continue
        value = values[item.name]
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and has_protocol(name) and f"--{item.name}" not in readers:
                reading = f" Only {' and '.join(readers)} can read addresses." if readers else ""
                raise ValueError(
                    f"--{item.name} {name} is an address, but this option needs a name of this machine.{reading} "
                    "Nothing is written to addresses: copy results there afterwards."
                )


def interruption_handler(sentence: str = "Interrupted.") -> Callable:
    """Handler of SIGINT that raises `KeyboardInterrupt`. During an import it prints the sentence and ends the program.

    Libraries that are being imported may swallow the exception or turn it into another one.
    """

    def handle(_, frame):
        while frame is not None:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                os.write(2, f"{sentence}\n".encode())
                os._exit(INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt

    return handle


def end_quietly_when_interrupted() -> None:
    """Makes Ctrl-C print one sentence and exit with 130 in a program that runs as `python -m PACKAGE.PROGRAM`.

    The package calls it before the slow imports of the program. It does nothing if another program imports the package.
    """
    if sys.argv[:1] != ["-m"]:  # runpy keeps it there until it has found the program
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interruption_handler())
    show = sys.excepthook

    def show_or_end(kind, error, traceback):
        if not issubclass(kind, KeyboardInterrupt):
            show(kind, error, traceback)
            return
        print("Interrupted.", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # otherwise Python would print a traceback and end by the signal

    sys.excepthook = show_or_end


__all__ = [
    "INTERRUPTED",
    "REQUIRED",
    "TRUTH",
    "HelpFormatter",
    "OptionParser",
    "check_field_types",
    "check_least",
    "check_no_overwriting",
    "end_quietly_when_interrupted",
    "interruption_handler",
    "make_parser",
    "nearest",
    "option",
    "parse_options",
]
