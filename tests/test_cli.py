"""The command `clipfsar`: subcommands, exit codes, and how little is imported before an answer."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError
from tiny_data import REPOSITORY

from clipfsar import __version__, cli
from clipfsar.checkpoints.arguments import ConvertArguments
from clipfsar.cli import COMMANDS, main

NAMES = ["train", "prepare", "evaluate", "compare", "reproduce", "predict", "review", "export", "convert", "push"]
NAMES += ["demo-page"]

# Runs command lines in a process that cannot import anything heavy.
WITHOUT_HEAVY_IMPORTS = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets", "numpy", "accelerate", "huggingface_hub"):
            raise RuntimeError(f"imports {name}")
sys.meta_path.insert(0, Blocker())
from clipfsar.cli import main
codes = []
for command_line in json.loads(sys.argv[1]):
    codes.append(main(command_line))
print(json.dumps(codes), file=sys.stderr)
"""


def test_warnings_have_no_place_in_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_parse", lambda name, command_line: None)
    monkeypatch.setattr(cli, "_imported", lambda place: lambda arguments: None)
    monkeypatch.setattr(cli.warnings, "formatwarning", cli.warnings.formatwarning)  # comes back after the test
    cli._run("predict", [])
    in_words = cli.warnings.formatwarning
    for ours in ("any/support_set_clipfsar.py", f"{Path(cli.__file__).parent}/data/prepare.py"):
        assert in_words("a.mp4 was left out", UserWarning, ours, 7, None) == "warning: a.mp4 was left out\n"
        assert f"{ours}:7" in in_words("old", DeprecationWarning, ours, 7, None)
    assert "torch/nn.py:7" in in_words("slow", UserWarning, "torch/nn.py", 7, None)  # another library's


def run(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, **options)


def codes_without_heavy_imports(*command_lines: list[str]) -> tuple[list[int], subprocess.CompletedProcess]:
    child = run("-c", WITHOUT_HEAVY_IMPORTS, json.dumps(command_lines))
    assert child.returncode == 0, child.stderr
    return json.loads(child.stderr.splitlines()[-1]), child


@dataclasses.dataclass
class Nothing:
    """Options of a command that a test makes."""


@pytest.fixture
def command(monkeypatch):
    """Makes the command `made`, which calls a function."""

    def make(function):
        monkeypatch.setattr(cli, "made_options", Nothing, raising=False)
        monkeypatch.setattr(cli, "made_program", lambda arguments: function(), raising=False)
        places = ("clipfsar.cli:made_options", "clipfsar.cli:made_program")
        monkeypatch.setitem(COMMANDS, "made", cli.Command("made", *places, after_interrupt="Begin again."))

    return make


def test_the_table_of_commands_is_complete_and_every_place_in_it_exists():
    assert list(COMMANDS) == NAMES
    for name, entry in COMMANDS.items():
        assert callable(cli._imported(entry.options)), name
        if name != "demo-page":  # its program needs gradio
            assert callable(cli._imported(entry.program)), name


def test_help_lists_the_commands_with_a_line_each(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in COMMANDS.items():
        assert f"  {name:<10}  {entry.summary}" in lines
    assert all(len(line) <= 120 for line in lines)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_without_a_command_the_usage_is_shown_as_an_error(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: clipfsar COMMAND [OPTIONS]")


def test_help_and_usage_errors_of_every_command_import_nothing_heavy():
    helps = [[name, "--help"] for name in NAMES]
    errors = [[name, "--no_such_option"] for name in NAMES]
    codes, child = codes_without_heavy_imports(["--help"], ["--version"], *helps, *errors)
    assert codes == [0] * (2 + len(helps)) + [2] * len(errors)
    for name in NAMES:
        assert f"usage: clipfsar {name} " in child.stdout
    assert child.stderr.count("error: Unknown option '--no_such_option'") == len(NAMES)


def test_print_config_of_train_imports_nothing_heavy():
    codes, child = codes_without_heavy_imports(["train", "--benchmark", "hmdb51", "--n_shot", "3", "--print_config"])
    assert codes == [0]
    printed = json.loads(child.stdout)
    assert (printed["video_text_loss_weight"], printed["n_shot"]) == (1.2, [3])


MISSING = {
    "prepare --source": ["prepare", "--source", "./nothing", "--output_dir", "data"],
    "prepare --video_root": ["prepare", "--official_splits", ".", "--video_root", "nothing", "--output_dir", "data"],
    "predict --model": ["predict", "--model", "runs/no/model", "--labels", "a, b", "--query", "x.mp4"],
    "predict --support_set": ["predict", "--model", "me/model", "--support_set", "/nothing", "--query", "x.mp4"],
    "export --support_set": ["export", "--model", "me/model", "--output_dir", "x", "--support_set", "~/nothing"],
    "convert --checkpoint": [
        *("convert", "--checkpoint", "nothing.pyth", "--clip_checkpoint", "openai/clip", "--output_dir", "x"),
    ],
    "convert --clip_checkpoint": ["convert", "--clip_checkpoint", "RN50_nothing.pt", "--output_dir", "x"],
    "push --folder": ["push", "--folder", "nothing", "--repo_id", "me/x"],
    "demo-page --examples": ["demo-page", "--model", "me/model", "--examples", "nothing"],
}


def test_local_paths_that_are_not_there_are_told_before_anything_heavy_is_imported():
    codes, child = codes_without_heavy_imports(*MISSING.values())
    assert codes == [1] * len(MISSING)
    errors = child.stderr.splitlines()[:-1]
    assert len(errors) == len(MISSING)
    for error, name in zip(errors, MISSING, strict=True):
        assert error.startswith(f"error: {name.split()[1]} "), name
        assert "does not exist." in error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("evalute", "error: Unknown command 'evalute': did you mean 'evaluate'?\n"),
        ("xyz", "error: Unknown command 'xyz': see clipfsar --help.\n"),
    ],
)
def test_an_unknown_command_suggests_the_nearest(name, message, capsys):
    assert main([name, "--model", "x"]) == 2
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("Lower it."), "error: Lower it.\n"),
        (ImportError("needs\n  gradio"), "error: needs gradio\n"),
        (FloatingPointError("The loss is nan."), "error: The loss is nan.\n"),
        (SafetensorError("I/O error: No space left on device"), "error: I/O error: No space left on device\n"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "error: a.json: No such file or directory.\n"),
        (OSError(28, "Full", "a"), "error: a: Full. Free some space there, or name another place.\n"),
        (PermissionError(), "error: PermissionError\n"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(command, capsys, error, line):
    def fail():
        raise error

    command(fail)
    assert main(["made"]) == 1
    assert capsys.readouterr() == ("", line)


def test_a_mistake_of_ours_keeps_its_traceback(command):
    command(lambda: {}["nothing"])
    with pytest.raises(KeyError):
        main(["made"])


INTERRUPTED_AT_ONCE = "import clipfsar, signal; signal.raise_signal(signal.SIGINT)"
INTERRUPTED_IN_MAIN = """
import signal, sys
from clipfsar import cli
cli._dispatch = lambda command_line: signal.raise_signal(signal.SIGINT)
sys.exit(cli.main(["prepare"]))
"""


@pytest.mark.parametrize(
    ("name", "program", "code", "message"),
    [
        ("clipfsar", INTERRUPTED_AT_ONCE, 130, r"Interrupted\.\n"),
        ("clipfsar", INTERRUPTED_IN_MAIN, 130, r"Interrupted\. Run the same command again to continue .*\n"),
        # where the package is imported, Ctrl-C stays as it is
        ("other", INTERRUPTED_AT_ONCE, -signal.SIGINT, r"(?s)Traceback.*KeyboardInterrupt\n"),
    ],
)
def test_an_interruption_while_the_program_starts_is_one_sentence(name, program, code, message, tmp_path):
    (tmp_path / name).write_text(program)
    ended = subprocess.run(
        [sys.executable, tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (ended.returncode, ended.stdout) == (code, "")
    assert re.fullmatch(message, ended.stderr), ended.stderr


def test_an_interruption_is_one_sentence_and_exit_code_130(command, capsys):
    def interrupt():
        raise KeyboardInterrupt

    command(interrupt)
    assert main(["made"]) == 130
    assert capsys.readouterr() == ("", "Interrupted. Begin again.\n")


@pytest.mark.parametrize(("result", "code"), [(None, 0), ([], 0), (0, 0), (3, 3)])
def test_a_program_may_choose_its_exit_code(command, result, code):
    command(lambda: result)
    assert main(["made"]) == code


def test_output_whose_reader_has_gone_prints_no_traceback():
    for arguments in ("--help", "train --help"):
        program = f"{sys.executable} -m clipfsar {arguments} | true; echo ${{PIPESTATUS[0]}}"
        child = subprocess.run(["bash", "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
        assert child.stderr == ""
        assert child.stdout.strip() in ("0", "141")  # `true` may end before or after the output comes


def test_the_package_can_be_run_as_a_module():
    child = run("-m", "clipfsar", "predict", "--model", "x")
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.startswith("error: There is nothing to do: give videos as --query")


# --- convert ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "direction"),
    [
        ({"checkpoint": "x.pyth", "clip_checkpoint": "RN50.pt", "output_dir": "out"}, "from_official"),
        ({"clip_checkpoint": "RN50.pt", "output_dir": "out", "hidden_act": "gelu"}, "from_openai"),
        ({"model": "out", "checkpoint": "back.pyth"}, "to_official"),
    ],
)
def test_convert_tells_its_three_ways_apart(given, direction):
    assert ConvertArguments(**given).direction == direction


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "There is nothing to convert. Give --checkpoint, --clip_checkpoint and --output_dir for an official"),
        (
            {"checkpoint": "x.pyth", "output_dir": "out"},
            "To convert an official checkpoint, --checkpoint and --clip_checkpoint and --output_dir are needed; "
            "--clip_checkpoint is missing",
        ),
        ({"clip_checkpoint": "RN50.pt"}, "OpenAI's or open_clip's weights, .* are needed; --output_dir is missing"),
        ({"model": "out"}, r"the way back \(--model\), .* are needed; --checkpoint is missing"),
        (
            {"model": "out", "checkpoint": "back.pyth", "tokenizer": "x"},
            r"--tokenizer plays no part in converting the way back \(--model\): leave it out",
        ),
        (
            {"checkpoint": "x.pyth", "clip_checkpoint": "x", "output_dir": "out", "hidden_act": "gelu"},
            "--hidden_act plays no part in converting an official checkpoint",
        ),
    ],
)
def test_convert_says_what_is_missing_for_which_way(given, message):
    with pytest.raises(ValueError, match=message):
        ConvertArguments(**given)
