"""The pages of troubleshooting quote messages that the programs still have."""

import ast
import re

import pytest
from documentation import ROOT

PAGES = sorted(path for path in (ROOT / "docs/troubleshooting").glob("*.md") if path.stem != "index")
SOURCES = [*ROOT.glob("*_clipfsar.py"), *ROOT.glob("clipfsar/**/*.py"), *ROOT.glob("demo/**/*.py")]
OTHERS = ("invalid choice", "No such file or directory")  # of Python and the system


def message_texts() -> str:
    """All texts of the source, a line each, with "..." for each value that is filled in."""
    texts = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts.add("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    return "\n".join(" ".join(text.split()) for text in texts)


def quoted_messages(page) -> list[str]:
    """The messages of the tables' first columns; a cell may hold several, divided by semicolons."""
    rows = re.findall(r"^\| ((?:[^|\\]|\\.)+) \|", page.read_text(encoding="utf-8"), re.M)
    return [row for row in rows if row != "message" and set(row) != {"-"}]


@pytest.fixture(scope="module")
def messages() -> str:
    return message_texts()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_message_that_a_page_quotes_is_one_of_the_source(page, messages):
    unknown = []
    for row in quoted_messages(page):
        for message in re.split(r"; ", row):
            parts = [part.strip(" .,:;") for part in message.split("...")]
            unknown += [f"{row}: {part!r}" for part in parts if part not in OTHERS and part not in messages]
    assert not unknown, "\n".join(unknown)
