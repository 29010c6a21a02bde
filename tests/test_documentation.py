"""Every code block of the README and of docs/ runs, and prints what stands under it: documentation.py has the rules."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
import yaml
from documentation import NOT_RUN, PAGES, ROOT, RUN_ELSEWHERE, PageRunner, block_with, blocks_of
from tiny_data import save_tiny_clip, video_splits, write_video

import clipfsar
from clipfsar.training.arguments import EpisodicTrainingArguments
from demo.synthetic.render import render_dataset
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

EXAMPLES = ("red star growing", "red star shrinking", "green star bouncing")
SPLITS = {
    split: {f"{split}_{colour}": (40 * number, 250 - 40 * number, 30 * start) for number, colour in enumerate("abcde")}
    for start, split in enumerate(("train", "validation", "test"))
}
ALREADY_RUN = set()  # command lines, by this process


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with all that the pages name: models, videos, data sets, each tiny."""
    folder = tmp_path_factory.mktemp("desk")
    make_models(folder)
    make_videos(folder)
    make_data(folder)
    return folder


def make_models(folder):
    for name in ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32"):
        save_tiny_clip(folder / name)
    plain = folder / "openai/clip-vit-base-patch16"
    model, processor = CLIPFSARModel.from_pretrained(plain, for_training=True), CLIPFSARProcessor.from_pretrained(plain)
    for name in ("runs/mine/best", "runs/a/best", "runs/b/best", "path/or/hub-id", "demo_output/run/best"):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    (folder / "runs/mine/state").mkdir()
    progress = {"arguments": asdict(EpisodicTrainingArguments(dataset="data/mine", output_dir="runs/mine"))}
    (folder / "runs/mine/state/progress.json").write_text(json.dumps(progress))
    (folder / "demo").symlink_to(ROOT / "demo")
    (folder / "MODEL").symlink_to(folder / "runs/mine/best")
    (folder / "runs/hmdb51").symlink_to(folder / "runs/mine")


def make_videos(folder):
    render_dataset(folder / "clips", {"train": 0, "validation": 0, "test": 6}, num_workers=1, show_progress=False)
    for name in EXAMPLES:
        (folder / "EXAMPLES" / name).mkdir(parents=True)
        for number in range(3):
            os.link(folder / f"clips/test/{name}/{number:03d}.mp4", folder / f"EXAMPLES/{name}/{number:03d}.mp4")
    (folder / "demo_output/clips").symlink_to(folder / "clips")
    (folder / "EMPTY_SCENE").symlink_to(folder / "clips/test/red circle fading in")
    for number, name in enumerate(("a", "b", "c", "d", "new", "query")):
        write_video(folder / f"{name}.mp4", (60 * number, 200 - 30 * number, 90), seed=number)
    shutil.copy(folder / "clips/test/red star growing/005.mp4", folder / "long.mp4")
    shutil.copy(ROOT / "tests/labelling_tools/cvat_project.xml", folder / "actions.xml")
    (folder / "texts.json").write_text(json.dumps({"*": ["a photo of {}", "a picture of {}"]}))


def make_data(folder):
    for split, classes in SPLITS.items():
        for number, (name, colour) in enumerate(classes.items()):
            (folder / "videos" / split / name).mkdir(parents=True)
            for video in range(6):
                write_video(folder / "videos" / split / name / f"{video}.mp4", colour, seed=10 * number + video)
    video_splits(folder / "videos", SPLITS).save_to_disk(folder / "data/mine")
    for name in ("DATA", "data/hmdb51"):
        (folder / name).symlink_to(folder / "data/mine")
    (folder / "VIDEOS").symlink_to(folder / "videos")
    paths = sorted(path.relative_to(folder / "videos") for path in (folder / "videos").glob("*/*/*.mp4"))
    lines = ["path,label,split", *(f"{path},{path.parent.name},{path.parts[0]}" for path in paths)]
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    (folder / "labels.json").write_text(json.dumps([labelled_task(path) for path in paths[::3]]))
    (folder / "FOLDER_OF_CLASSES").mkdir()
    for name in SPLITS:
        for path in (folder / "videos" / name).iterdir():
            (folder / "FOLDER_OF_CLASSES" / path.name).symlink_to(path)


def labelled_task(path) -> dict:
    """A task of Label Studio, as it is exported."""
    result = {"from_name": "label", "to_name": "video", "type": "choices", "value": {"choices": [path.parent.name]}}
    return {"data": {"video": f"/data/local-files/?d={path}"}, "annotations": [{"result": [result]}]}


@pytest.fixture
def page_folder(desk, tmp_path, monkeypatch):
    """A copy of the desk as the present folder."""
    shutil.copytree(desk, tmp_path / "desk", copy_function=os.link, symlinks=True)
    monkeypatch.chdir(tmp_path / "desk")


def page_name(page) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_blocks_of_a_page_run_and_print_what_is_shown(page, page_folder, fresh_accelerate):
    PageRunner(page, ALREADY_RUN).run()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_fence_of_a_page_is_a_block_that_the_runner_knows(page):
    fences = re.findall(r"^ *(```+)(\S*)", page.read_text(encoding="utf-8"), re.M)
    assert len(fences) % 2 == 0
    languages = [language for _, language in fences[::2]]
    assert {language for _, language in fences[1::2]} <= {""}
    found = sum(len(blocks_of(page, language)) for language in set(languages) - {""})
    assert found == len([language for language in languages if language])


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_table_of_a_page_has_a_heading_of_as_many_columns_and_a_blank_line_before_it(page):
    text = re.sub(r"^( *```).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for before, table in re.findall(r"^(.*)\n((?:\|.*\n)+)", text, re.M):
        columns = [len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) for row in table.splitlines()]
        assert before == "", table
        assert re.fullmatch(r"\|[-| :]+\|", table.splitlines()[1]), table
        assert set(columns) == {columns[0]}, table


def test_a_program_that_another_test_runs_is_the_same_on_every_page():
    def code(block: str) -> str:
        tree = ast.parse(block)
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            function.body = function.body[1:] if ast.get_docstring(function) else function.body
        return ast.dump(tree)

    (words,) = RUN_ELSEWHERE
    program = code(block_with(ROOT / "docs/use/export.md", "python", words))
    assert "docs/use/export.md" in (ROOT / "tests" / RUN_ELSEWHERE[words]).read_text()
    copies = [block for page in PAGES for block in blocks_of(page, "python") if words in block]
    assert [block for block in copies if code(block) != program] == []


def test_few_blocks_are_not_run_and_each_says_why():
    left_out = [
        (page_name(page), block.splitlines()[0].removeprefix(NOT_RUN))
        for page in PAGES
        for language in ("python", "bash")
        for block in blocks_of(page, language)
        if block.startswith(NOT_RUN)
    ]
    assert all(reason.endswith(".") and len(reason) > 10 for _, reason in left_out)
    assert len(left_out) <= 5, left_out


def test_a_block_that_fails_or_prints_something_else_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("documentation.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 3\n```\n\n```python\nprint(x + 1)\n```\n\nIt prints\n\n```text\n4\n```\n")
    assert PageRunner(page).run() == 3
    page.write_text(page.read_text().replace("\n4\n", "\n5\n"))
    with pytest.raises(AssertionError):
        PageRunner(page).run()
    page.write_text("```python\nprint('a  1.5 ± 0.20')\n```\n\n```txt\na 22 ± 3\n```\n")
    assert PageRunner(page).run() == 2
    page.write_text(page.read_text().replace("\na 22", "\nb 22"))
    with pytest.raises(AssertionError):
        PageRunner(page).run()
    page.write_text("```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as error:
        PageRunner(page).run()
    assert error.value.__notes__ == ["in the block at page.md:1"]


@pytest.mark.parametrize(
    "line",
    [
        "clipfsar train --dataset data --epochs 3",
        "clipfsar classify",
        "accelerate launch --gpus 2 train/train.py --dataset data",
        "accelerate launch train/train.py --dataset data --epochs 3",
        "torchrun --nproc_per_node 2 train/train.py --dataset data --epochs 3",
        "python -m benchmarks.memory --backbone b32",
        "python -m benchmarks.nothing",
        "pip install '.[everything]'",
        "make coffee",
        "curl https://example.org",
    ],
)
def test_a_command_line_with_an_unknown_part_is_found(line, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"```bash\n{line}\n```\n")
    with pytest.raises((AssertionError, SystemExit)):
        PageRunner(page).run()


# --- the pages --------------------------------------------------------------------------------------------------------


def test_every_public_name_stands_in_the_api_reference_once():
    pages = (ROOT / "docs/api").glob("*.md")
    described = [name for page in pages for name in re.findall(r"^::: clipfsar\.(\w+)$", page.read_text(), re.M)]
    assert sorted(described) == sorted(set(clipfsar.__all__) - {"__version__"})


def test_links_of_the_readme_lead_somewhere_and_it_is_short():
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).is_file()] == []
    assert len(text.splitlines()) <= 200


def test_every_page_stands_in_the_navigation():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)

    def pages(entries):
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from pages(value) if isinstance(value, list) else [value]

    there = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.name != "README.md"]
    assert sorted(pages(settings["nav"])) == sorted(there)


# --- the picture of the house -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house():
    spec = importlib.util.spec_from_file_location("house", ROOT / "docs/house.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["house"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["house"]


def test_the_picture_of_the_house_names_every_module_once(house):
    modules = [module for room in house.rooms().values() for module in room.modules]
    there = {name for name, path in house.module_files().items() if path.name != "__init__.py"}
    assert sorted(modules) == sorted(there | {"clipfsar"})
    picture = house.draw()
    for room in house.rooms().values():
        for module in room.modules:
            assert house._label(module, room.name) in picture


def test_arrows_of_the_picture_lead_down_and_reach_every_imported_room(house):
    arrows = house.arrows()
    assert all(house.floor_of(upper) > house.floor_of(lower) for upper, lower in arrows)
    reached = {name: {lower for upper, lower in arrows if upper == name} for name in house.rooms()}
    for _ in range(len(reached)):
        for below in reached.values():
            below |= set().union(*(reached[other] for other in below))
    assert [name for name, below in reached.items() if not house.rooms()[name].imports <= below] == []


def test_the_picture_is_a_program_too(tmp_path):
    command = [sys.executable, str(ROOT / "docs/house.py"), str(tmp_path / "house.svg")]
    subprocess.run(command, check=True)
    assert (tmp_path / "house.svg").read_text().startswith("<svg")
