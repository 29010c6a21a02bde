"""The notebooks run from top to bottom in a fresh kernel and print what they show."""

import json
import re

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_data import REPOSITORY, child_environment

FOLDER = REPOSITORY / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Numbers of trained models differ between processors.
VARIES = "varies"


def printed(cell) -> str:
    """What a cell prints and the text of its last value; pictures are left out."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(output.text)
        elif output.output_type == "execute_result" and set(output.data) == {"text/plain"}:
            parts.append(output.data["text/plain"])
    return "".join(parts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_shows(path, monkeypatch):
    for name, value in child_environment().items():
        monkeypatch.setenv(name, value)
    shown = nbformat.read(path, as_version=4)
    ran = nbformat.from_dict(json.loads(json.dumps(shown)))
    NotebookClient(ran, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    cells = [pair for pair in zip(shown.cells, ran.cells, strict=True) if pair[0].cell_type == "code"]
    compared = [pair for pair in cells if VARIES not in pair[0].metadata.get("tags", [])]
    assert [printed(cell) for _, cell in compared] == [printed(cell) for cell, _ in compared]
    assert sum(bool(printed(cell)) for cell, _ in compared) >= 2
    assert all(bool(printed(cell)) for cell, _ in cells if VARIES in cell.metadata.get("tags", []))
    pictures = [
        cell.source for _, cell in cells if any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]
    shown_pictures = [
        cell.source for cell, _ in cells if any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]
    assert pictures == shown_pictures != []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_keeps_nothing_of_the_machine_that_ran_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 100_000
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    assert {output.get("name") for output in outputs} <= {None, "stdout"}
    assert not re.search(r"/(home|root|tmp|work|usr)/", json.dumps(outputs))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_badge_opens_it(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
    repository = re.search(r"git clone --quiet https://github\.com/(\S+?)[\"\\]", path.read_text(encoding="utf-8"))[1]
    address = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}"
    assert address in "".join(first)
