"""Runs the code blocks of Markdown pages: Python, command lines, and the outputs shown under them.

The rules, for whoever writes a page:

- ```python blocks are executed, in order; those of one page share their names.
- ```bash blocks: every command line must parse. Those of `RUN`, and all whose output is shown, are run as well.
- ```text is the output of the last Python or bash block of the same section, and is compared with it. ```txt is
  compared without its numbers and digests, for what other versions of the packages may round otherwise. A fence
  without a language holds anything else.
- A block that cannot run here begins with "# Not run by the tests: REASON".
"""

import contextlib
import importlib
import io
import itertools
import re
import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.abstract.lexers import LexerCollection
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from clipfsar.cli import COMMANDS, _parse
from clipfsar.cli import main as run_command
from clipfsar.options import make_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LANGUAGES = ("python", "bash", "text", "txt", "bibtex")
SHOWN = ("text", "txt")  # outputs
NOT_RUN = "# Not run by the tests: "
# Numbers that would take minutes become small before a Python block runs.
SMALLER = {
    "episodes=2000": "episodes=4, eval_every=4, eval_episodes=4, test_episodes=4, warmup_episodes=4, num_workers=0, "
    'report_to="none"',
    "n_episodes=10_000": "n_episodes=8",
    "num_workers=4": "num_workers=0",
}
# Subcommands that are run, with options that make them quick where a command line does not say otherwise.
RUN = {
    "predict": {},
    "prepare": {"--num_workers": "1"},
    "evaluate": {"--n_episodes": "8", "--num_workers": "0"},
}
# The same for commands whose output is shown.
RUN_AND_SHOW = {
    "compare": {"--n_episodes": "2000"},
    "evaluate": {"--num_workers": "0"},
    "prepare": {"--num_workers": "1"},
}
# Values that take the place of those in a command line.
QUICK_VALUES = {"--until_interval": "20"}
# Python blocks with these words run in another test, which asks more of them.
RUN_ELSEWHERE = {"import onnxruntime": "test_export_model.py"}
# Programs whose arguments are not checked.
KNOWN_PROGRAMS = {"cd", "cp", "git", "hf", "mkdir", "."}


def blocks_of(page: Path, language: str) -> list[str]:
    """The code of every block of a language, in the order of the page."""
    document = Document.parse(str(page), _blocks(lambda example: None))
    return [example.parsed for example in document.examples() if example.region.lexemes["language"] == language]


def block_with(page: Path, language: str, text: str) -> str:
    """The one block of a page that holds a text."""
    found = [block for block in blocks_of(page, language) if text in block]
    assert len(found) == 1, f"{page.name} has {len(found)} {language} blocks with {text!r}"
    return found[0]


def _blocks(evaluator):
    lexers = LexerCollection([FencedCodeBlockLexer(language=r"[a-z]+")])

    def parse(document):
        for region in lexers(document):
            yield Region(region.start, region.end, region.lexemes["source"], evaluator, region.lexemes)

    return parse


@dataclass
class PageRunner:
    """Runs the blocks of one page, in the present folder.

    Args:
        page: The page.
        already_run: Command lines that were run on another page, which are not run again.
    """

    page: Path
    already_run: set[str] = field(default_factory=set)
    printed: str | None = None  # by the last block; None where it was not run
    end: int = 0  # of that block
    shown: bool = False  # whether its output is

    def run(self) -> int:
        """Runs all blocks and returns how many there were."""
        examples = [*Document.parse(str(self.page), _blocks(self._evaluate)).examples()]
        for example, following in itertools.zip_longest(examples, examples[1:]):
            self.shown = following is not None and _is_output_of(following, example.end)
            try:
                example.evaluate()
            except (Exception, SystemExit) as error:
                error.add_note(f"in the block at {self.page.name}:{example.line}")
                raise
        return len(examples)

    def _evaluate(self, example: Example) -> None:
        language = example.region.lexemes["language"]
        assert language in LANGUAGES, f"blocks are {', '.join(LANGUAGES)}, not {language!r}"
        if language in SHOWN:
            self._compare(example)
        elif language in ("python", "bash"):
            self.end = example.end
            self.printed = None
            if not example.parsed.startswith(NOT_RUN) and not any(words in example.parsed for words in RUN_ELSEWHERE):
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    complete = (self._run_python if language == "python" else self._run_shell)(example)
                self.printed = printed.getvalue() if complete else None

    def _compare(self, example: Example) -> None:
        if self.end == 0 or not _is_output_of(example, self.end) or self.printed is None:
            return
        form = _stripped if example.region.lexemes["language"] == "text" else _without_numbers
        assert form(self.printed) == form(example.parsed)

    def _run_python(self, example: Example) -> bool:
        for large, small in SMALLER.items():
            example.parsed = type(example.parsed)(
                example.parsed.replace(large, small), example.parsed.offset, example.parsed.line_offset
            )
        PythonEvaluator()(example)
        return True

    def _run_shell(self, example: Example) -> bool:
        """Checks the lines of a block; whether all of them were run as well."""
        were_run = [self._check_line(line) for line in command_lines(example.parsed)]
        return all(were_run)

    def _check_line(self, line: str) -> bool:
        words = shlex.split(line, comments=True)
        command = check_command(words)
        if command is None or (not self.shown and (command not in RUN or line in self.already_run)):
            return False
        self.already_run.add(line)
        arguments = words[words.index(command) + 1 :]
        for option, value in (RUN_AND_SHOW if self.shown else RUN).get(command, {}).items():
            in_vain = option == "--n_episodes" and "--until_interval" in arguments
            arguments += [] if option in arguments or in_vain else [option, value]
        for option in QUICK_VALUES.keys() & set(arguments):
            arguments[arguments.index(option) + 1] = QUICK_VALUES[option]
        if "--benchmark" in arguments:  # needs the videos of one
            return False
        if command == "prepare" and Path(folder := arguments[arguments.index("--output_dir") + 1]).exists():
            arguments[arguments.index(folder)] = f"prepared_{len(self.already_run)}"  # it has a data set already
        assert run_command([command, *arguments]) == 0, line
        return True


def _is_output_of(example: Example, end: int) -> bool:
    """Whether a block shows what the block before it, which ends at `end`, printed: no heading lies between them."""
    between = example.document.text[end : example.start]
    return example.region.lexemes["language"] in SHOWN and not re.search(r"^#+ ", between, re.M)


def _stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _without_numbers(text: str) -> list[str]:
    """The lines with "0" for each number or digest, and one space for each gap: a shorter number moves the columns."""
    number = r"\b[0-9a-f]{8}\b|[-+]?\d[\d,]*(\.\d+)?(e[-+]\d+)?"
    return [" ".join(re.sub(number, "0", line).split()) for line in _stripped(text)]


def command_lines(block: str) -> list[str]:
    """The commands of a shell block: continued lines joined, comments and blank lines left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def check_command(words: list[str]) -> str | None:
    """Fails for a command line with an unknown program or option; returns the subcommand of `clipfsar`, if any."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables before the program
        words = words[1:]
    program, *arguments = words
    program = program.rpartition("/bin/")[2]
    if program == "clipfsar":
        return _check_subcommand(arguments)
    if program in ("accelerate", "torchrun"):
        _check_launcher(program, arguments)
    elif program in ("python", "python3"):
        _check_module(arguments)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(arguments) <= set(targets), f"make has no {arguments}"
    elif program == "pip":
        _check_pip(arguments)
    else:
        assert program in KNOWN_PROGRAMS, f"no check for {program!r}"
    return None


def _check_subcommand(arguments: list[str]) -> str | None:
    if arguments in (["--help"], ["--version"]):
        return None
    name, *options = arguments
    assert name in COMMANDS, f"clipfsar has no command {name!r}"
    if options != ["--help"]:
        _parse(name, options)
        return name
    return None


def _check_launcher(program: str, arguments: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    if program == "accelerate":
        assert arguments[0] == "launch"
        launch = launch_command_parser().parse_args(arguments[1:])
    else:
        launch = get_args_parser().parse_args(arguments)
    assert launch.training_script == "train/train.py" or (launch.module and launch.training_script == "clipfsar")
    options = launch.training_script_args
    if launch.module:
        _parse(options[0], options[1:])
    else:
        _parse("train", options)


def _check_module(arguments: list[str]) -> None:
    """`python -m MODULE OPTIONS`, by the options of the module's class of arguments, or by what its source names."""
    assert arguments[0] == "-m", f"python runs modules: {arguments}"
    name, options = arguments[1], arguments[2:]
    if name == "venv":
        assert len(options) == 1
        return
    if name == "pytest":
        assert all((ROOT / option).exists() for option in options if not option.startswith("-"))
        return
    if name == "clipfsar":
        _check_subcommand(options)
        return
    path = ROOT / f"{name.replace('.', '/')}.py"
    assert path.is_file(), f"there is no module {name}"
    source = path.read_text(encoding="utf-8")
    if name == "demo.page":
        make_parser(importlib.import_module("clipfsar.page.arguments").PageArguments).parse_options(options)
        return
    for option in (part[2:].partition("=")[0] for part in options if part.startswith("--")):
        assert re.search(rf'^    {option}:|"--{option}"', source, re.M), f"{name} has no option --{option}"


def _check_pip(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for argument in arguments for extra in re.findall(r"\[([\w,]+)\]", argument)}
    assert {extra for group in named for extra in group.split(",")} <= set(extras), f"unknown extras in {arguments}"
    for option, value in itertools.pairwise(arguments):
        assert option not in ("-c", "-r") or (ROOT / value).is_file(), f"there is no {value}"


__all__ = ["NOT_RUN", "PAGES", "ROOT", "RUN_ELSEWHERE", "PageRunner", "block_with", "blocks_of"]
