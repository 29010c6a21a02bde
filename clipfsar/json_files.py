"""JSON files that this library wrote, read with all checks. This module does not import torch."""

import json
from pathlib import Path
from typing import Any

from limits_clipfsar import UnreadableError, read_file


class DamagedFileError(ValueError):
    """Raised if a file has changed since it was written. The message names the file and the remedy."""


def read_json(path: Path, remedy: str, kind: type = dict, size_limit: str = "json_bytes") -> Any:
    """The content of a JSON file that this library wrote: an object, or a value of type `kind`.

    Args:
        remedy: Last part of the error message.
        size_limit: Name of the limit on its size (`limits_clipfsar`).

    Raises:
        DamagedFileError: If it is not JSON, not of type `kind`, not a regular file, or too large.
        OSError: If it cannot be read.
    """
    try:
        value = json.loads(read_file(path, size_limit).decode("utf-8"))
    except (ValueError, RecursionError, UnreadableError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {remedy}.") from None
    if not isinstance(value, kind):
        raise DamagedFileError(f"{path} is damaged (it holds {type(value).__name__}, not {kind.__name__}): {remedy}.")
    return value


__all__ = ["DamagedFileError", "read_json"]
