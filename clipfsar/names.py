"""Checks names of models, data sets and support sets on a command line before anything is loaded.

Such a name is a local folder or a Hub id. Libraries would ask the Hub for one file after another, with retries. The
check here asks once.
"""

import os
import re
import sys
from pathlib import Path
from typing import overload

from download_clipfsar import why_not_on_hub
from paths_clipfsar import check_path, has_protocol, local_path, looks_like_path

_DEVICES = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "mlu")
_SINGLE_DEVICES = ("cpu", "mps")  # a machine has only one of each


@overload
def find_model(option: str, name: str) -> str: ...
@overload
def find_model(option: str, name: None) -> None: ...
@overload
def find_model(option: str, name: str | None) -> str | None: ...


def find_model(option: str, name: str | None) -> str | None:
    """The name of a model. For the folder of a training run, its subfolder `best`.

    Raises:
        FileNotFoundError: If there is no such model; see `check_source`.
    """
    if name is None:
        return None
    folder = local_path(name)
    if folder.is_file():
        raise FileNotFoundError(f"--{option} {name} is a file: give a model's folder, which has a config.json.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        best, last = folder / "best", folder / "last"
        if not (best / "config.json").is_file() and (last / "config.json").is_file():
            raise FileNotFoundError(
                f"--{option} {name} is a training run without a best model: give its last one, --{option} {last}."
            )
        if not (best / "config.json").is_file():
            raise FileNotFoundError(
                f"--{option} {name} holds no model: it has neither a config.json nor the folder 'best' of a training "
                "run."
            )
        print(f"--{option} {name} is a training run: using its best model, {best}.", file=sys.stderr)
        return str(best)
    check_source(option, name, kind="model", remedy="Give a local folder, or a model that is in the cache.")
    return name


def check_source(option: str, name: str | None, kind: str = "model", remedy: str = "") -> None:
    """Checks that a name exists: as a local path, as a repository in the cache, or on the Hub.

    Args:
        option: Name of the option with this name, for the message.
        name: None passes.
        kind: `"model"` or `"dataset"`, as the Hub calls its repositories.
        remedy: Sentence that ends the message.

    Raises:
        FileNotFoundError: If it does not exist, or if the Hub cannot be reached.
    """
    if name is not None and kind == "dataset" and has_protocol(name):
        return  # loading it tells, and comes before the model
    check_path(option, name, remedy)
    if name is None or looks_like_path(name) or Path(name).exists():
        return
    why = _why_not_on_hub(name, kind)
    if why:
        raise FileNotFoundError(
            f"--{option} {name}: there is no such folder, and {why}.{f' {remedy}' if remedy else ''}"
        )


def _why_not_on_hub(name: str, kind: str) -> str | None:
    """Half a sentence for the message. None if the repository exists, or may exist."""
    # These imports take half a second. Only names that are not local paths need them.
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return "it is not a valid Hub id (OWNER/NAME)"
    if _is_in_cache(name, kind, Path(constants.HF_HUB_CACHE)):
        return None
    return why_not_on_hub(name, kind)


def _is_in_cache(name: str, kind: str, hub_cache: Path) -> bool:
    folder = f"{kind}s--{name.replace('/', '--')}"
    places = [hub_cache / folder]
    if kind == "dataset":  # `datasets` keeps prepared data sets in another cache
        home = local_path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
        cache = local_path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
        places.append(cache / name.replace("/", "___"))
    return any(place.is_dir() for place in places)


def check_device(name: str | None) -> None:
    """Raises `ValueError` for a name that is not a PyTorch device. Does not check whether this machine has it."""
    if not name:
        return
    found = re.fullmatch(rf"({'|'.join(_DEVICES)})(?::(\d+))?", name)
    if found and found[1] in _SINGLE_DEVICES and int(found[2] or 0):
        raise ValueError(f"--device {name} is not a device: there is only one {found[1]}. Give --device {found[1]}.")
    if found:
        return
    hint = "did you mean cuda?" if name.lower().startswith(("gpu", "nvidia")) else f"choose from {', '.join(_DEVICES)}."
    raise ValueError(f"--device {name} is not a device: {hint}")


__all__ = ["check_device", "check_source", "find_model"]
