"""The wheel, installed where the checkout is not: every command runs once, at small size."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from tiny_data import COLOURS, REPOSITORY, SETTINGS, save_tiny_clip, write_video
from transformers import CLIPConfig, CLIPModel

from clipfsar import __version__

# All commands but the ones that run as a console script, one after the other in one process: importing costs the most.
PROGRAM = """
import json, sys
from clipfsar.cli import main
for command_line in json.loads(sys.argv[1]):
    print("+", *command_line, flush=True)
    code = main(command_line)
    assert code == (1 if command_line[0] == "push" else 0), (command_line, code)

import evaluate
import clipfsar
import modeling_clipfsar
metric = evaluate.load(clipfsar.EPISODIC_ACCURACY)
result = metric.compute(predictions=[0, 1, 1, 0], references=[0, 1, 1, 1], episodes=[0, 0, 1, 1])
print(json.dumps({"accuracy": result["accuracy"], "package": clipfsar.__file__, "library": modeling_clipfsar.__file__}))
"""


pytestmark = pytest.mark.whole_program


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What a wheel is built from; building leaves files behind, which do not belong in the checkout."""
    folder = tmp_path_factory.mktemp("sources")
    for path in (*REPOSITORY.glob("*_clipfsar.py"), *(REPOSITORY / name for name in ("pyproject.toml", "README.md"))):
        shutil.copy(path, folder)
    shutil.copy(REPOSITORY / "LICENSE", folder)
    shutil.copytree(REPOSITORY / "clipfsar", folder / "clipfsar", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)], cwd=sources)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Folder of the programs of an environment with the wheel, and the third-party packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # Folders named in a .pth file are searched for packages; .pth files in them, such as that of an editable
    # installation of the checkout, are not read.
    others = [path for path in sys.path if "site-packages" in path and Path(path).is_dir()]
    (site_packages / "others.pth").write_text("\n".join(others) + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", str(folder)]
    run([*pip, "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)])
    return folder / "bin"


def run(command: list[str], cwd: Path | None = None, **variables: str) -> str:
    """Output of a program that has to succeed, in an environment that does not know the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    child = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, f"{command}\n{child.stdout}\n{child.stderr}"
    return child.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A plain CLIP, videos by class, and a folder for what the commands write."""
    folder = tmp_path_factory.mktemp("work")
    # The proportions are those of OpenAI's towers: an official checkpoint does not store them.
    config = CLIPConfig.from_pretrained(save_tiny_clip(folder / "clip"))
    config.vision_config.intermediate_size, config.vision_config.num_attention_heads = 4 * 32, 1
    CLIPModel(config).save_pretrained(folder / "clip")
    for split, colours in COLOURS.items():
        for name, colour in colours.items():
            (folder / "videos" / split / name).mkdir(parents=True)
            for number in range(3):
                write_video(folder / "videos" / split / name / f"{number}.mp4", colour, seed=number)
    return folder


def options(**values) -> list[str]:
    parts = ((f"--{name}", *map(str, value if isinstance(value, list) else [value])) for name, value in values.items())
    return [part for option in parts for part in option]


def test_the_wheel_holds_the_package_the_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"clipfsar-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert {name.split("/")[0].removesuffix(".py") for name in names if ".dist-info" not in name} == {
        "clipfsar",
        *(path.stem for path in REPOSITORY.glob("*_clipfsar.py")),
    }
    assert {"clipfsar/py.typed", "clipfsar/metrics/episodic_accuracy/README.md", "clipfsar/page/app.py"} <= names


def test_every_command_runs_from_the_wheel(environment, work):
    variables = {
        "HF_HOME": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "2",
    }
    variables |= {"ACCELERATE_USE_CPU": "true"}
    clipfsar = str(environment / "clipfsar")
    assert run([clipfsar, "--help"], work, **variables).startswith("usage: clipfsar COMMAND [OPTIONS]")
    training = SETTINGS | {"episodes": 8, "eval_every": 8, "n_shot": [1], "test_episodes": 10, "eval_episodes": 10}
    commands = [
        ["prepare", *options(source="videos", output_dir="data", frame_store="jpeg", frame_size=16, num_workers=1)],
        ["train", *options(dataset="data", model="clip", output_dir="run", **training)],
        [
            *("evaluate", *options(model="run/best", dataset="data", n_way=3, n_shot=1, n_episodes=10, num_workers=0)),
            *options(output_json="results.json"),
        ],
        ["export", *options(model="run/best", output_dir="exported", formats="torch")],
        ["convert", *options(model="run/best", checkpoint="official.pyth")],
        [
            *("convert", *options(checkpoint="official.pyth", clip_checkpoint="clip", output_dir="again")),
            *options(num_frames=4),
        ],
    ]
    (work / "incomplete").mkdir()
    commands.append(["push", *options(folder="incomplete", repo_id="me/x")])  # is refused, and nothing goes up
    program = [str(environment / "python"), "-c", PROGRAM, json.dumps(commands)]
    output = run(program, work, **variables)
    last = json.loads(output.splitlines()[-1])
    assert last["accuracy"] == 0.75
    for place in (last["package"], last["library"]):
        assert Path(place).is_relative_to(environment.parent)
    assert len(json.loads((work / "results.json").read_text())) == 3
    assert (work / "exported" / "query_classifier.pt2").is_file()
    assert (work / "again" / "config.json").is_file()
    predicting = options(model="again", support_set="videos/test", query="videos/test/orange/0.mp4", format="json")
    (answer,) = json.loads(run([clipfsar, "predict", *predicting], work, **variables))
    assert {entry["label"] for entry in answer["answer"]} == {"orange", "violet", "gray"}
