"""Hides the reports of loading a model, since the demo loads models many times."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_PLAIN_CLIP = logging.getLogger("plain_clipfsar")  # reports that a plain CLIP's layers are new, or left out


@contextmanager
def quiet() -> Iterator[None]:
    """Hides transformers' warnings and progress bars and the notes on a plain CLIP; restores them afterwards."""
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
