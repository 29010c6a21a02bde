"""The embedded default: rendered actions, a tiny CLIP, and the programs of `make demo`."""

from pathlib import Path

TINY_CLIP = Path(__file__).parent / "tiny_clip"  # a plain CLIP that knows the rendered shapes and colours
