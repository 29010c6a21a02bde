"""Models are loaded again and again here; what loading reports each time is left out."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_PLAIN_CLIP = logging.getLogger("plain_clipfsar")  # tells that a plain CLIP's layers are new, or left out


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and bars of transformers, no notes on a plain CLIP; afterwards everything is as before."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    level = _PLAIN_CLIP.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    _PLAIN_CLIP.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _PLAIN_CLIP.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


__all__ = ["quiet"]
