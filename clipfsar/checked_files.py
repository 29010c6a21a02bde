"""Files that are whole or not there, and whose damage is found: checksums of folders and of tensors.

Whatever is written beside its place and then renamed is on the disk before the rename: after a power cut, too, there is
the old one or the new one.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from limits_clipfsar import UnreadableError, read_file
from paths_clipfsar import replace_file

CHECKSUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")


class DamagedFileError(ValueError):
    """A file is not what was written; the message names it and what can be done."""


def write_checksums(folder: Path, leave_out: Sequence[str] = ()) -> None:
    """Writes `SHA256SUMS` of all files below a folder, as `sha256sum` does; `sha256sum --check` reads it, too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    lines = [f"{_sha256(path)}  {name}\n" for name, path in names.items() if name not in {CHECKSUMS, *leave_out}]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def check_files(folder: Path, remedy: str, only: str = "*", must_be_listed: str | None = None) -> bool:
    """Compares the files of a folder with its checksums; False where it has none, as folders of version 0.1.

    Args:
        remedy: Ends the message.
        only: Pattern of the names of files that are compared.
        must_be_listed: Pattern of the names of files that need a checksum: a list may have lost a line. Other files
            without one were put there later by others.

    Raises:
        DamagedFileError: For a file that is missing, different, or without the checksum it needs.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return False
    checksums = _read_checksums(path, remedy)
    for file in folder.rglob(must_be_listed) if must_be_listed else ():
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name not in {CHECKSUMS, *checksums}:
            raise DamagedFileError(f"{path} has no checksum of {name}: {remedy}.")
    for name, checksum in checksums.items():
        file = folder / name
        if not file.match(only):
            continue
        if not file.is_file():
            raise DamagedFileError(f"{file} is missing, or the list {path} is damaged: {remedy}.")
        if _sha256(file) != checksum:
            raise DamagedFileError(f"{file} is not what was written (its checksum in {path} is another): {remedy}.")
    return True


def listed_files(folder: Path) -> set[str]:
    """Names of the files that `write_checksums` was given; none where the list is missing or damaged."""
    try:
        return set(_read_checksums(folder / CHECKSUMS, "")) | {CHECKSUMS}
    except (DamagedFileError, OSError):
        return set()


def _read_checksums(path: Path, remedy: str) -> dict[str, str]:
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = _LINE.findall(text)
    if not lines or "".join(f"{checksum}  {name}\n" for checksum, name in lines) != text:
        raise DamagedFileError(f"{path} is damaged: {remedy}.")
    return {name: checksum for checksum, name in lines}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, remedy: str, kind: type = dict) -> Any:
    """The content of a JSON file of the project's own, an object or what `kind` says.

    Args:
        remedy: Ends the message.

    Raises:
        DamagedFileError: When it is no JSON, something else than `kind`, no regular file, or too large.
        OSError: When it cannot be read.
    """
    try:
        value = json.loads(read_file(path, "json_bytes").decode("utf-8"))
    except (ValueError, RecursionError, UnreadableError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {remedy}.") from None
    if not isinstance(value, kind):
        raise DamagedFileError(f"{path} is damaged (it holds {type(value).__name__}, not {kind.__name__}): {remedy}.")
    return value


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file with a checksum of its tensors in it; it appears under its name when it is complete."""
    with replace_file(path) as partial:
        save_file(tensors, partial, metadata={"sha256": _sha256_of_tensors(tensors)})


def load_tensors(path: Path, remedy: str, has_checksum: bool = True) -> dict[str, torch.Tensor]:
    """Reads what `save_tensors` wrote.

    Args:
        remedy: Ends the message about a damaged file.
        has_checksum: False for a file of an older version, which need not have one.

    Raises:
        DamagedFileError: When a byte is another one than was written.
    """
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("sha256")
        tensors = load_file(path)
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {remedy}.") from error
    if (written is not None or has_checksum) and written != _sha256_of_tensors(tensors):
        raise DamagedFileError(f"{path} is damaged (its checksum is another): {remedy}.")
    return tensors


def _sha256_of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{len(name)} {name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


__all__ = [
    "CHECKSUMS",
    "DamagedFileError",
    "check_files",
    "listed_files",
    "load_tensors",
    "read_json",
    "save_tensors",
    "write_checksums",
]
