"""The embedded default: rendered actions, a tiny CLIP, and what `make demo` does with them."""

from pathlib import Path

TINY_CLIP = Path(__file__).parent / "tiny_clip"  # a plain CLIP that knows the rendered shapes and colours
