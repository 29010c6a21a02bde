"""Sizes that keep the code readable: functions fit a screen, files can be read in one go."""

import ast
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.py")
    if not {"tests", "build"} & set(path.relative_to(ROOT).parts)
    and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def function_lengths(path: str) -> dict[str, int]:
    """Lines of each function of a file, docstring included."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {f"{node.name} (line {node.lineno})": node.end_lineno - node.lineno + 1 for node in functions}


def test_the_code_is_found():
    assert {"modeling_clipfsar.py", "clipfsar/inference/predict.py", "train/train.py"} <= set(CODE)


@pytest.mark.parametrize("path", CODE)
def test_functions_are_shorter_than_60_lines(path):
    assert {name: length for name, length in function_lengths(path).items() if length >= 60} == {}


def test_the_median_function_is_shorter_than_10_lines():
    assert statistics.median(length for path in CODE for length in function_lengths(path).values()) < 10


@pytest.mark.parametrize("path", CODE)
def test_files_have_at_most_700_lines(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 700


def test_make_programs_runs_every_file_with_a_whole_program():
    marked = {path.name for path in (ROOT / "tests").glob("test_*.py") if "mark.whole" + "_program" in path.read_text()}
    (target,) = re.findall(r"^programs:.*?\n\n", (ROOT / "Makefile").read_text(), re.M | re.S)
    assert set(re.findall(r"test_\w+\.py", target)) == marked
