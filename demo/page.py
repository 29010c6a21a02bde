"""The demo page with rendered example clips and a default model.

    python -m demo.page                                  # the model of `make demo`; without it the tiny CLIP
    python -m demo.page --model runs/mine/best           # a folder or Hub id: CLIP-FSAR, or a plain CLIP

`make page` installs and starts it. `clipfsar demo-page --help` explains all options.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clipfsar.options import parse_options
from clipfsar.page.arguments import PageArguments
from clipfsar.page.signals import exit_on_signals
from demo.synthetic import TINY_CLIP
from demo.synthetic.render import render_clip, write_clip

REPOSITORY = Path(__file__).resolve().parents[1]
TRAINED_IN_DEMO = REPOSITORY / "demo_output" / "run" / "best"
EXAMPLE_CLASSES = ("green star bouncing", "red star growing", "red star shrinking")
EXAMPLE_QUERIES = (*EXAMPLE_CLASSES, "yellow moon hopping")  # the last one belongs to no class
_CLIPS_PER_CLASS = 2
_QUERY_INDEX = 5
_NOTE = (
    "This page runs a tiny demonstration model. It knows rendered coloured shapes and nothing of the real world: try "
    "the examples first. Whoever starts the page can choose another model."
)


def default_model() -> str:
    return str(TRAINED_IN_DEMO if TRAINED_IN_DEMO.is_dir() else TINY_CLIP)


def render_examples(folder: str | Path) -> Path:
    """Renders clips to FOLDER/CLASS/ and FOLDER/queries/ in about a second; returns the folder."""
    folder = Path(folder)

    def render(class_name: str, index: int, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, *render_clip(class_name, 0, index))

    for name in EXAMPLE_CLASSES:
        for index in range(_CLIPS_PER_CLASS):
            render(name, index, folder / name / f"{name} {index + 1}.mp4")
    for name in EXAMPLE_QUERIES:
        render(name, _QUERY_INDEX, folder / "queries" / f"{name}.mp4")
    return folder


def main(command_line: Sequence[str] | None = None):
    """Starts the page with the options of a command line."""
    model = os.environ.get("CLIPFSAR_MODEL") or default_model()
    arguments = parse_options(PageArguments, __doc__, command_line, "python -m demo.page", {"model": model})
    try:
        arguments.check_files()
        exit_on_signals()
        from clipfsar.page.app import main as serve  # imported late: it takes seconds

        with tempfile.TemporaryDirectory(prefix="clipfsar_examples_") as folder:
            arguments.examples = arguments.examples or str(render_examples(folder))
            serve(arguments, _NOTE if arguments.model == default_model() else None)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
