"""Copies of data sets at addresses (s3://, gs://, hf://, ...) in the cache of `datasets`, made with fsspec.

A data set is read many times and at random, so every machine reads a copy of its own.
"""

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from datasets import config
from fsspec.utils import tokenize
from tqdm.auto import tqdm

from clipfsar.locks import FolderLock
from paths_clipfsar import public_name

_FILES_AT_ONCE = 64  # file systems of object stores copy several files in parallel
_HUB_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)/?")


def local_copy(address: str) -> str:
    """A folder with a copy of all files at an address; copies only files that changed since the last call.

    Args:
        address: A folder that an installed file system of fsspec can read. Its settings and credentials are fsspec's.

    Returns:
        The folder. A whole data set of the Hub (hf://datasets/OWNER/NAME) gives its id, OWNER/NAME, and a local
        address (file://) its path; nothing is copied.

    Raises:
        ValueError: If the protocol is unknown or its package is not installed, or for a file outside of its folder.
        FileNotFoundError: If there are no files.
        OSError: If they cannot be read, or arrive incomplete.
    """
    if match := _HUB_DATASET.fullmatch(address):
        return match[1]
    try:
        system, root = fsspec.url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{address} cannot be read: {' '.join(str(error).split())}.") from None
    if "file" in _protocols(system):
        return root
    files = _files_below(system, root, address)
    cache = Path(config.HF_DATASETS_CACHE, "clipfsar", hashlib.sha256(address.encode()).hexdigest()[:16])
    with FolderLock(cache, f"copies {address}", "Wait until it has ended", wait_seconds=None):
        _copy(system, files, cache / public_name(address), cache / "copied.txt", address)
    return str(cache / public_name(address))


def _protocols(system: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _files_below(system: fsspec.AbstractFileSystem, root: str, address: str) -> dict[str, dict[str, Any]]:
    """What the file system tells of each file, by its path in the folder."""
    files = {}
    for path, details in system.find(root, detail=True).items():
        relative = path.removeprefix(root).lstrip("/")
        if ".." in PurePosixPath(relative).parts or "\\" in relative or "\n" in relative:
            raise ValueError(f"{address} holds the file {relative!r}, whose name leaves its folder: rename it.")
        if relative and details["type"] == "file":
            files[relative] = details
    if not files:
        raise FileNotFoundError(f"{address} holds no files; the folder of a data set with videos is needed.")
    return files


def _copy(
    system: fsspec.AbstractFileSystem, files: dict[str, dict[str, Any]], folder: Path, record: Path, address: str
) -> None:
    """Makes `folder` hold these files and no others. `record` has a line for each one that is complete."""
    lines = {relative: f"{tokenize(details)} {relative}\n" for relative, details in files.items()}
    complete = set(record.read_text(encoding="utf-8").splitlines(keepends=True)) if record.is_file() else set()
    missing = [name for name, line in lines.items() if line not in complete or not (folder / name).is_file()]
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in files:
            path.unlink()
    with (
        record.open("a", encoding="utf-8", newline="\n") as log,
        tqdm(total=len(missing), desc=f"copying {address}", unit="file", leave=False, disable=not missing) as progress,
    ):
        for start in range(0, len(missing), _FILES_AT_ONCE):
            names = missing[start : start + _FILES_AT_ONCE]
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).unlink(missing_ok=True)  # a program that reads the earlier file keeps it
            system.get([files[name]["name"] for name in names], [str(folder / name) for name in names])
            for name in names:
                _check_size(folder / name, files[name].get("size"), address)
            log.write("".join(lines[name] for name in names))
            log.flush()
            progress.update(len(names))


def _check_size(path: Path, size: int | None, address: str) -> None:
    if size is not None and path.stat().st_size != size:
        raise OSError(
            f"{address}: the copy of {path.name} has {path.stat().st_size} bytes instead of {size}: run it again."
        )


__all__ = ["local_copy"]
