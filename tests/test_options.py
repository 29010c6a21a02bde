"""Command lines of dataclasses: what is understood, what is refused and in which words."""

import dataclasses
import os
import subprocess
import sys
import typing
from dataclasses import dataclass

import pytest
from tiny_data import REPOSITORY

from clipfsar.checkpoints.arguments import ConvertArguments, PushArguments
from clipfsar.cli import COMMANDS
from clipfsar.data.arguments import PrepareArguments
from clipfsar.evaluation.arguments import CompareArguments, EvaluateArguments
from clipfsar.inference.arguments import SUPPORT_SET_FILE, ExportArguments, PredictArguments, ReviewArguments
from clipfsar.options import (
    REQUIRED,
    check_least,
    check_no_overwriting,
    make_parser,
    nearest,
    option,
    parse_options,
)
from clipfsar.page.arguments import PageArguments
from clipfsar.presets import benchmark_on
from clipfsar.reproduction.arguments import ReproduceArguments
from clipfsar.training.arguments import EpisodicTrainingArguments
from support_set_files_clipfsar import SUPPORT_SET_NAME


@dataclass
class Options:
    """What the program does.

        program --model x    # an example, on a line of its own

    More about it.
    """

    model: str = option(REQUIRED, "Model.")
    n_shot: list[int] = option([1, 5], "Shots.")
    query: list[str] = option([], "Videos.")
    rate: float | None = option(None, "Rate.")
    resume: bool = option(False, "Resume.")
    private: bool = option(True, "Private.")
    modulate: bool | None = option(None, "Modulate.")
    mode: str = option("fast", "Mode.", ("fast", "slow"))
    splits: list[str] = option(["a"], "Splits.", ("a", "b"))

    def __post_init__(self):
        if self.n_shot[0] < 1:
            raise ValueError(f"--n_shot {self.n_shot[0]} must be\nat least 1.")


def parse(*command_line, **settings) -> Options:
    return parse_options(Options, command_line=["--model", "m", *command_line], **settings)


def refused(capsys, *command_line) -> str:
    """The one line that a refused command line ends in."""
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_options(Options, command_line=command_line)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.strip()


def test_what_is_not_given_has_the_default_of_the_field():
    assert parse() == Options("m")
    assert Options("m").n_shot == [1, 5]


PROGRAMS = {
    EvaluateArguments: {"model": "m", "dataset": "d"},
    CompareArguments: {"models": ["m"], "dataset": "d"},
    EpisodicTrainingArguments: {},
    ReproduceArguments: {"benchmark": "hmdb51", "video_root": "v"},
    PrepareArguments: {"source": "s", "output_dir": "o"},
    PredictArguments: {"model": "m", "support_set": ["s"], "query": ["q"]},
    ReviewArguments: {"model": "m", "support_set": ["s"]},
    ExportArguments: {"model": "m", "output_dir": "o"},
    ConvertArguments: {"checkpoint": "c", "clip_checkpoint": "p", "output_dir": "o"},
    PushArguments: {"folder": "f", "repo_id": "me/x"},
    PageArguments: {"model": "m"},
}


def numeric_fields(program):
    """Names of the fields of numbers, and whether they are lists."""
    for name, hint in typing.get_type_hints(program).items():
        kinds = {hint, *typing.get_args(hint)}
        if kinds & {int, float, list[int], list[float]}:
            yield name, typing.get_origin(hint) is list


def test_every_program_is_known_here():
    module_names = {command.options.partition(":")[0] for command in COMMANDS.values()}
    assert {program.__module__ for program in PROGRAMS} == module_names


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_number_of_a_program_is_refused_at_once_below_its_smallest_value(program):
    options = program(**PROGRAMS[program])
    accepted = []
    for name, is_list in numeric_fields(program):
        if name in ("shard", "class_split", "decay_episodes"):  # lists with rules of their own
            continue
        try:
            dataclasses.replace(options, **{name: [-1] if is_list else -1})
        except ValueError as error:
            assert str(error).startswith(f"--{name} -1 must be "), error  # noqa: PT017
        else:
            accepted.append(name)
    assert accepted == []


FILES = [
    (EvaluateArguments, {"write_episodes": "x", "output_json": "x", "n_shot": [1]}, "write_episodes", "output_json"),
    (EvaluateArguments, {"write_episodes": "r/results.json", "output_dir": "r", "n_shot": [1]}, "output_dir", "write"),
    (EvaluateArguments, {"read_episodes": "./x", "output_json": "x"}, "output_json", "read_episodes"),
    (EvaluateArguments, {"class_texts": "x", "output_json": "a/../x"}, "output_json", "class_texts"),
    (PredictArguments, {"support_set": "x.csv", "output": "x.csv"}, "output", "support_set"),
    (PredictArguments, {"query": ["a", "x.mp4#t=1,2"], "output": "x.mp4", "format": "csv"}, "output", "query"),
    (PredictArguments, {"support_set": None, "labels_file": "x.txt", "output": "x.txt"}, "output", "labels_file"),
    (PredictArguments, {"save_support_set": "s", "output": "s/support_set.json"}, "save_support_set", "output"),
    (ReviewArguments, {"support_set": "x.json", "output": "x.json"}, "output", "support_set"),
    (ReviewArguments, {"support_set": "s", "sources": "x.csv", "output": "x.csv", "format": "table"}, "output", "sour"),
    (ReviewArguments, {"output": "x.png", "picture": "x.png", "format": "table"}, "picture", "output"),
    (ReproduceArguments, {"output_dir": "r", "published": "r/report.json"}, "output_dir", "published"),
]


@pytest.mark.parametrize(("program", "files", "writer", "other"), FILES)
def test_a_file_that_a_program_reads_or_writes_is_not_overwritten(program, files, writer, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.mp4").touch()
    with pytest.raises(ValueError, match=f"--{writer} would overwrite .*, the file of --{other}.*: name another file"):
        program(**PROGRAMS[program] | files)


def test_folders_and_devices_may_be_named_twice(tmp_path):
    check_no_overwriting({"output": os.devnull, "picture": os.devnull, "folder": None}, {"set": str(tmp_path)})
    check_no_overwriting({"output": str(tmp_path)}, {"set": str(tmp_path), "texts": ["a", "a"]})
    assert SUPPORT_SET_FILE == SUPPORT_SET_NAME


def test_a_number_below_the_least_is_refused_also_in_a_list():
    @dataclass
    class Numbers:
        shots: list[int] = option([1, 5], "Shots.", least=1)
        size: int | None = option(None, "Size.", least=0)

    check_least(Numbers())
    check_least(Numbers([1], 0))
    for shots, size, message in (([5, 0], None, "--shots 0 must be at least 1."), ([5], -1, "--size -1 must be at ")):
        with pytest.raises(ValueError, match=message):
            check_least(Numbers(shots, size))


def test_values_have_the_type_of_their_field():
    options = parse("--n_shot", "3", "7", "--rate", "1e-4", "--query", "a.mp4", "b.mp4", "--mode", "slow")
    assert (options.n_shot, options.rate, options.query) == ([3, 7], 1e-4, ["a.mp4", "b.mp4"])
    assert options.mode == "slow"


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (["--resume"], (True, True, None)),
        (["--resume", "true"], (True, True, None)),
        (["--resume", "False"], (False, True, None)),
        (["--no_private"], (False, False, None)),
        (["--no-private"], (False, False, None)),
        (["--private", "false"], (False, False, None)),
        (["--private"], (False, True, None)),
        (["--modulate", "false"], (False, True, False)),
    ],
)
def test_flags_are_given_alone_with_a_value_or_negated(command_line, expected):
    options = parse(*command_line)
    assert (options.resume, options.private, options.modulate) == expected


def test_hyphens_stand_for_underscores_in_names_and_nowhere_else():
    assert parse("--n-shot", "2").n_shot == [2]
    assert parse("--query", "my-clip_1.mp4", "--rate=-1").query == ["my-clip_1.mp4"]
    assert parse_options(Options, command_line=["--model=a-b"]).model == "a-b"


def test_a_list_that_is_empty_by_default_can_be_emptied_on_the_command_line():
    assert parse("--query", defaults={"query": ["preset.mp4"]}).query == []
    assert parse(defaults={"query": ["preset.mp4"]}).query == ["preset.mp4"]


def test_lists_of_two_parses_are_not_the_same_object():
    parse().n_shot.append(9)
    assert parse().n_shot == [1, 5]


def test_defaults_lie_between_those_of_the_class_and_the_command_line():
    preset = {"model": "preset", "rate": 0.5, "private": False}
    options = parse_options(Options, command_line=["--rate", "2"], defaults=preset)
    assert (options.model, options.rate, options.private) == ("preset", 2.0, False)
    with pytest.raises(TypeError, match="Options has no option depth"):
        make_parser(Options, defaults={"depth": 3})


@pytest.mark.parametrize(
    ("command_line", "message"),
    [
        ([], "error: the following arguments are required: --model."),
        (["--nshot", "1"], "error: Unknown option '--nshot': did you mean '--n_shot'?"),
        (["--model", "m", "--zzz"], "error: Unknown option '--zzz': see --help."),
        (
            ["--model", "m", "--quer", "x"],
            "error: Unknown option '--quer': did you mean '--query'?",
        ),  # no abbreviations
        (["--model", "m", "n"], "error: Unexpected value 'n': values follow their option, --NAME VALUE."),
        (
            ["--model", "m", "--mode", "slwo"],
            "error: --mode: invalid choice: 'slwo' (choose from fast, slow); did you mean 'slow'?",
        ),
        (["--model", "m", "--splits", "a", "c"], "error: --splits: invalid choice: 'c' (choose from a, b)."),
        (["--model", "m", "--n_shot", "many"], "error: --n_shot: invalid int value: 'many'."),
        (["--model", "m", "--n_shot"], "error: --n_shot: expected at least one argument."),
        (["--model", "m", "--resume", "maybe"], "error: --resume: 'maybe' is neither true nor false."),
        (["--model", "m", "--n_shot", "0"], "error: --n_shot 0 must be at least 1."),
    ],
)
def test_a_usage_error_is_one_line_with_its_remedy(capsys, command_line, message):
    assert refused(capsys, *command_line) == message


def test_help_keeps_the_lines_of_the_description_and_shows_only_defaults_that_say_something(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        parse_options(Options, command_line=["--help"], prog="program")
    text = capsys.readouterr().out
    assert text.startswith("usage: program --model MODEL [OPTIONS]\n\nWhat the program does.\n")
    assert "    program --model x    # an example, on a line of its own\n" in text
    assert "Shots. (default: 1 5)" in text
    assert "Mode. (default: fast)" in text
    assert "None" not in text
    assert "[]" not in text


def test_a_field_of_another_type_is_an_error_of_the_programmer():
    @dataclass
    class Wrong:
        table: dict = option(None, "Table.")

    with pytest.raises(TypeError, match="Option 'table' has the type <class 'dict'>"):
        make_parser(Wrong)


def test_the_nearest_name_is_found_or_none():
    assert nearest("evalute", ["train", "evaluate"]) == "evaluate"
    assert nearest("xyz", ["train", "evaluate"]) is None


@pytest.mark.parametrize(
    ("command_line", "benchmark"),
    [
        (["--benchmark", "ucf101"], "ucf101"),
        (["--seed", "1", "--benchmark=hmdb51"], "hmdb51"),
        (["--benchmark", "unknown"], None),
        (["--benchmark"], None),
        ([], None),
    ],
)
def test_the_benchmark_is_read_off_a_command_line_before_the_rest(command_line, benchmark):
    assert benchmark_on(command_line) == benchmark


def test_parsing_needs_nothing_but_python():
    program = "import sys, clipfsar.options, clipfsar.presets, paths_clipfsar; print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "datasets"} & set(child.stdout.split())
