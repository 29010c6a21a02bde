"""Files that are complete or absent, and checksums that find damage in folders and tensors.

A new file is written under another name, flushed to the disk, and then renamed. After a power cut there is either the
old file or the new one.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from clipfsar.json_files import DamagedFileError
from paths_clipfsar import flush_to_disk, naming_errors, replace_file, write_text
from support_set_files_clipfsar import write_tensors

CHECKSUMS = "SHA256SUMS"
NO_NOTES: Mapping[str, str] = {}
# Errors of file systems without hard links, and of a file with as many links as they allow.
_CANNOT_LINK = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EXDEV, errno.EMLINK}
_DTYPES = {torch.float32: "F32", torch.uint8: "U8"}
_BYTES_AT_ONCE = 2**24
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")


def create_file(path: Path, text: str) -> bool:
    """Writes a new file, complete from the moment when it exists. Returns False, and changes nothing, if it is there.

    If several processes create the same file at once, one of them succeeds.
    """
    draft = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with naming_errors(path):
            draft.write_text(text, encoding="utf-8")
            flush_to_disk(draft)
        return link_or_copy(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> bool:
    """Makes a hard link, which takes no space, or a copy where the file system has no links.

    Returns False, and changes nothing, if `target` exists.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        if target.exists():
            return False
        with replace_file(target) as partial:
            shutil.copyfile(source, partial)
    return True


def write_checksums(folder: Path, leave_out: Sequence[str] = ()) -> None:
    """Writes `SHA256SUMS` for all files below a folder, in the format of `sha256sum --check`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    lines = [f"{_sha256(path)}  {name}\n" for name, path in names.items() if name not in {CHECKSUMS, *leave_out}]
    write_text(folder / CHECKSUMS, "".join(lines))


def check_files(folder: Path, remedy: str, only: str = "*", must_be_listed: str | None = None) -> bool:
    """Compares the files of a folder with its checksums. Returns False if it has none, like folders of version 0.1.

    Args:
        remedy: Last part of the error message.
        only: Name pattern of the files to compare.
        must_be_listed: Name pattern of files that need a checksum, because the list may have lost a line. Other files
            without a checksum are ignored: somebody may have added them later.

    Raises:
        DamagedFileError: If a file is missing, has changed, or lacks a checksum that it needs.
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
            raise DamagedFileError(f"{file} has changed since it was written (checksum differs from {path}): {remedy}.")
    return True


def listed_files(folder: Path) -> set[str]:
    """Names of the files in the list of checksums, and of the list. Empty if the list is missing or damaged."""
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


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, notes: Mapping[str, str] = NO_NOTES) -> None:
    """Writes a safetensors file that contains a checksum of its tensors. It gets its name when it is complete.

    Args:
        notes: Texts for the file's metadata; the checksum covers them as well.
    """
    with replace_file(path) as partial:
        write_tensors(tensors, partial, {**notes, "sha256": _sha256_of_tensors(tensors, notes)})


class _FileForTorch(io.FileIO):
    """A file for PyTorch's writer in C++, which ends the program if writing raises. The error is kept until the end."""

    error: OSError | None = None

    def write(self, data, /) -> int:
        rest = memoryview(data).cast("B")
        size = rest.nbytes
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size


@contextlib.contextmanager
def file_for_torch(path: Path) -> Iterator[IO[bytes]]:
    """A new file for `torch.save` and `torch.export.save`. Raises `OSError` with its name for a full disk."""
    with naming_errors(path), _FileForTorch(path, "wb") as file:
        yield file
        if file.error is not None:
            raise file.error


def save_rows(
    name: str,
    whole: torch.Tensor,
    parts: Iterable[tuple[Sequence[int], torch.Tensor]],
    others: dict[str, torch.Tensor],
    path: Path,
) -> None:
    """Writes the file that `save_tensors` would write, but one tensor comes in parts and never lies whole in memory.

    Args:
        name: Name of that tensor.
        whole: A tensor of its shape and type, on the device "meta".
        parts: Row numbers and values (rows, ...). Each row is in a part.
        others: The other tensors.
    """
    tensors, row_bytes = {name: whole, **others}, whole.nbytes // len(whole)
    with replace_file(path) as partial, partial.open("w+b") as file:
        file.write(_header(tensors, "0" * 64))
        start = file.tell()
        for rows, values in parts:
            for row, value in zip(rows, values, strict=True):
                file.seek(start + row * row_bytes)
                file.write(_bytes_of(value))
        file.seek(start + whole.nbytes)
        for tensor in others.values():
            file.write(_bytes_of(tensor))
        digest = hashlib.sha256()
        for each, tensor in sorted(tensors.items()):
            digest.update(_described(each, tensor))
            if each != name:
                digest.update(_bytes_of(tensor))
                continue
            file.seek(start)
            for done in range(0, whole.nbytes, _BYTES_AT_ONCE):
                digest.update(file.read(min(_BYTES_AT_ONCE, whole.nbytes - done)))
        file.seek(0)
        file.write(_header(tensors, digest.hexdigest()))


def _header(tensors: dict[str, torch.Tensor], checksum: str) -> bytes:
    """Start of a safetensors file: length of the JSON text, and that text with the place of each tensor.

    The format is described at https://github.com/huggingface/safetensors#format.
    """
    entries: dict[str, Any] = {"__metadata__": {"sha256": checksum}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def load_tensors(path: Path, remedy: str, has_checksum: bool = True) -> dict[str, torch.Tensor]:
    """Reads what `save_tensors` wrote. The tensors are memory-mapped: processes of one machine share them.

    Args:
        remedy: Last part of the message about a damaged file.
        has_checksum: False for files of older versions, which may have none.

    Raises:
        DamagedFileError: If any byte has changed since it was written.
    """
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
        written = notes.pop("sha256", None)
        tensors = load_file(path)
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {remedy}.") from error
    if (written is not None or has_checksum) and written != _sha256_of_tensors(tensors, notes):
        raise DamagedFileError(f"{path} is damaged (its checksum differs): {remedy}.")
    return tensors


def _sha256_of_tensors(tensors: dict[str, torch.Tensor], notes: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(_described(name, tensor))
        digest.update(_bytes_of(tensor))
    for name, text in sorted(notes.items()):
        digest.update(f"{len(name)} {name} {len(text)} {text} ".encode())
    return digest.hexdigest()


def _described(name: str, tensor: torch.Tensor) -> bytes:
    return f"{len(name)} {name} {tensor.dtype} {list(tensor.shape)} ".encode()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


__all__ = [
    "CHECKSUMS",
    "DamagedFileError",
    "check_files",
    "create_file",
    "file_for_torch",
    "link_or_copy",
    "listed_files",
    "load_tensors",
    "save_rows",
    "save_tensors",
    "write_checksums",
]
