"""Gets the tests of the installed transformers: they stand in its source distribution, not in its wheel.

The package registry that pip is configured for is all it needs. What comes is kept in build/, for each version.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "tests_of_transformers"
# Modules that the common tests import and that the source distribution leaves out.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        '    "return_dict": False,\n'
        '    "output_hidden_states": True,\n'
        '    "output_attentions": True,\n'
        '    "dtype": "float16",\n'
        '    "chunk_size_feed_forward": 5,\n'
        '    "architectures": ["BertModel"],\n'
        '    "id2label": {0: "label"},\n'
        '    "label2id": {"label": "0"},\n'
        '    "problem_type": "regression",\n'
        "}\n"
    ),
    "../fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def tests_of_transformers() -> Path:
    """A folder for `sys.path`: `from tests_of_transformers.test_modeling_common import ModelTesterMixin`."""
    folder = ROOT / "build" / f"transformers-{version('transformers')}"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            _unpack(_download(Path(scratch)), Path(scratch) / "unpacked")
            folder.parent.mkdir(exist_ok=True)
            shutil.move(Path(scratch) / "unpacked", folder)
    return folder


def _download(folder: Path) -> Path:
    requirement = f"transformers=={version('transformers')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    done = subprocess.run([*command, "--dest", str(folder), requirement], stdout=subprocess.DEVNULL)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if done.returncode or not archives:
        raise SystemExit(f"pip could not download the source distribution of {requirement}: is its registry reachable?")
    return archives[0]


def _unpack(archive: Path, folder: Path):
    package = folder / PACKAGE
    with tarfile.open(archive) as members:
        for member in members:
            path = Path(member.name)
            if member.isfile() and path.parts[1] == "tests" and path.suffix == ".py":
                target = package.joinpath(*path.parts[2:])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(members.extractfile(member).read())
    for name, text in STUBS.items():
        path = package / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for inner in {package, *(path.parent for path in package.rglob("*.py"))}:
        (inner / "__init__.py").touch()


if __name__ == "__main__":
    print(tests_of_transformers())
