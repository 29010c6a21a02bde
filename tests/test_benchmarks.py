"""The page of all benchmarks: complete, and honest about what failed."""

import pytest
from tiny_data import REPOSITORY

from benchmarks import run_all
from benchmarks.run_all import Arguments, main


def test_every_benchmark_is_on_the_page():
    scripts = {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")}
    # of how good "none of these" and reviews are, not of what things cost
    assert set(run_all.TABLES) == scripts - {"__init__", "run_all", "unknown_videos", "support_sets"}


def test_the_page_holds_each_table_its_command_and_what_failed(tmp_path, monkeypatch, capsys):
    tmp_path = tmp_path / "measured"
    tmp_path.mkdir()
    (tmp_path / "good.py").write_text("import sys; print('today\\n| a |', *sys.argv[1:]); print('done')")
    (tmp_path / "bad.py").write_text("raise SystemExit('error: no clips')")
    monkeypatch.setattr(run_all, "FOLDER", tmp_path)
    monkeypatch.setattr(run_all, "TABLES", {"bad": ("Bad", []), "good": ("Good", ["--rounds", "2"])})
    with pytest.raises(SystemExit, match="error: bad failed"):
        main(Arguments(only=["bad", "good"], output=str(tmp_path / "page.md")))
    page = (tmp_path / "page.md").read_text()
    assert "## Bad\n\n`python -m benchmarks.bad`\n\nFailed, exit status 1." in page
    assert "## Good\n\n`python -m benchmarks.good --rounds 2`\n\ntoday\n\n| a | --rounds 2\n\ndone\n" in page
    assert "error: no clips" in capsys.readouterr().err
