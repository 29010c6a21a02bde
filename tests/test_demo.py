"""The demo at a small size: all of its parts, from rendering to pictures."""

import re

import pytest
from PIL import Image

from demo.synthetic import render
from demo.synthetic.run import UNTRAINED, VARIANTS, Arguments, main


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(autouse=True)
def a_few_classes(monkeypatch):
    """A part of the classes: most of the time would go into rendering and decoding the others."""
    steps = {"train": 12, "validation": 2, "test": 2}
    monkeypatch.setattr(render, "SPLITS", {split: names[:: steps[split]] for split, names in render.SPLITS.items()})


def small_demo(output_dir):
    return Arguments(str(output_dir), episodes=4, test_episodes=20, train_videos_per_class=6, test_videos_per_class=6)


def test_the_demo_prints_a_table_and_draws_what_it_did(output_dir, capsys):
    main(small_demo(output_dir))

    printed = capsys.readouterr().out
    cell = r"\d+\.\d ± \d+\.\d"
    for name in [*UNTRAINED, *VARIANTS, "zero-shot (texts only)", "ensemble of both"]:
        assert re.search(rf"^\| {re.escape(name)} \| {cell} \| {cell} \|$", printed, re.MULTILINE), name
    assert "the models tested are those after 4, 4, 4, 4," in printed
    assert len(re.findall(r"with probability 0?1?\.\d\d \(", printed)) == 5
    assert (output_dir / "results.md").read_text().splitlines()[0] in printed
    for picture in ("episode.png", "training.png", "runs/4/training.png"):
        with Image.open(output_dir / picture) as image:
            assert min(image.size) > 200


def test_a_second_demo_in_the_same_folder_trains_nothing_again(output_dir, capsys):
    weights = output_dir / "runs" / "4" / "best" / "model.safetensors"
    if not weights.exists():
        main(small_demo(output_dir))
    before = weights.stat().st_mtime_ns
    main(small_demo(output_dir))
    assert weights.stat().st_mtime_ns == before
