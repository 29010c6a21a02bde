"""The page of all benchmarks: complete, and honest about what failed."""

import pytest
import torch
from tiny_data import REPOSITORY

from benchmarks import run_all, scaling
from benchmarks.run_all import Arguments, main
from clipfsar.training import frozen_features


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


TINY = {"calibration": 3, "exact": 250, "merge": 40, "draws": 20, "labels": 200, "tree": 10}


@pytest.mark.parametrize("law", scaling.LAWS)
def test_every_law_can_be_measured(law, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_features, "FeatureStore", frozen_features.FeatureStore)  # restored afterwards
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    work = scaling.LAWS[law].prepare(TINY.get(law, 5), tmp_path)
    with torch.no_grad():
        work()
    assert len(scaling.LAWS[law].small) >= 2


def test_the_table_of_laws_holds_exponents_and_what_was_stopped(tmp_path, monkeypatch, capsys):
    asked = []

    def measured_in(checkout, law, size, arguments):
        asked.append((checkout.name, law, size))
        row = {"seconds": size**2 / 1e4, "bytes": size * 2**20, "peak": 2**30, "stopped": size == 10_000}
        return row | {"bytes": size**2 * 2**20} if checkout.name == "old" else row

    monkeypatch.setattr(scaling, "measured_in", measured_in)
    settings = {"only": ["calibration"], "sizes": "large", "before": str(tmp_path / "old")}
    scaling.main(scaling.Arguments(**settings, output_dir=str(tmp_path)))
    lines = capsys.readouterr().out.splitlines()
    unit = "| calibration of unknown videos | {} classes of 5 clips |"
    assert lines[2] == f"{unit.format(100)} 1 | 10,000 | 1,024 | 1 | 100 | 1,024 |"
    assert lines[3] == f"{unit.format(400)} 16 (2.0) | 160,000 (2.0) | 1,024 | 16 (2.0) | 400 (1.0) | 1,024 |"
    assert lines[4] == f"{unit.format('10,000')}  |  |  | > 1e+04 | 10,000 (1.0) | 1,024 |"
    assert ("old", "calibration", 10_000) not in asked
    assert (tmp_path / "scaling.png").stat().st_size > 5000
