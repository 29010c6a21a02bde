"""Makes the folder of a Hugging Face Space that serves the page: code, tiny CLIP, README and requirements.

python -m demo.make_space --output_dir space
hf upload NAME/SPACE space --repo-type space
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from clipfsar.options import REQUIRED, option, parse_options

REPOSITORY = Path(__file__).resolve().parents[1]
APP = '''"""Starts the page: a Space runs this file."""

from demo.page import main

main([])
'''


@dataclass
class Arguments:
    output_dir: str = option(REQUIRED, "Folder of the Space: a new or empty one.")


def make_space(folder: Path):
    """Writes the folder of the Space. Raises `ValueError` when the folder is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder, or clear this one.")
    folder.mkdir(parents=True, exist_ok=True)
    for module in [*REPOSITORY.glob("*_clipfsar.py"), REPOSITORY / "LICENSE"]:
        shutil.copy(module, folder)
    for package in ("demo", "clipfsar"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    # A Space reads these two at its root.
    for name in ("README.md", "requirements.txt"):
        shutil.move(folder / "demo" / name, folder / name)
    (folder / "app.py").write_text(APP)


if __name__ == "__main__":
    try:
        make_space(Path(parse_options(Arguments, __doc__).output_dir))
    except ValueError as error:
        sys.exit(f"error: {error}")
