"""Writes and reads the two files of a support set. Reading checks them: they may be damaged, or made by a stranger.

`support_set.json` holds the fingerprint, the names of classes and clips, and the digests of the tensors and of itself.
`support_set.safetensors` holds the tensors.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # mypy's way to say that a module may be missing

try:
    from .choices_clipfsar import ALIGNMENTS, INFERENCE_MODES, is_number, own_alignments
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import ALIGNMENTS, INFERENCE_MODES, is_number, own_alignments

try:
    from .download_clipfsar import why_not_on_hub
except ImportError:
    if __package__:
        raise
    from download_clipfsar import why_not_on_hub

try:
    from .limits_clipfsar import UnreadableError, check_limit, check_regular_file, read_file
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import UnreadableError, check_limit, check_regular_file, read_file

try:
    from .paths_clipfsar import flush_to_disk, replace_file
except ImportError:
    if __package__:
        raise
    from paths_clipfsar import flush_to_disk, replace_file

SUPPORT_SET_NAME = "support_set.json"
SUPPORT_SET_WEIGHTS_NAME = "support_set.safetensors"
_NEXT_WEIGHTS_NAME = f".{SUPPORT_SET_WEIGHTS_NAME}.next"  # of tensors until they take the place of earlier ones
_FORMAT = 1
# What a support set may override of its model's configuration, after `SupportSet.tune`.
TUNED_SETTINGS = ("inference_mode", "alignment", "ensemble_text_weight", "ensemble_temperature")
_BACKGROUND = "background"  # entry of the description, and part of the names of tensors
_DIGEST = "sha256_of_description"  # version 0.1 wrote none


def check_on_hub(
    name: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    **_: Any,
) -> None:
    """Checks the name of a support set that is no folder, with a single question to the Hub.

    Raises:
        FileNotFoundError: If the name is not in the cache, and the Hub cannot be reached or has no such repository.
    """
    file, is_hub_id = os.path.join(subfolder, SUPPORT_SET_NAME), "/" in name
    try:
        cached = try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision)
    except HFValidationError:
        cached, is_hub_id = None, False
    if isinstance(cached, str) or (is_hub_id and local_files_only):
        return
    if not is_hub_id:
        raise FileNotFoundError(f"There is no folder {name!r}. A Hub id has the form OWNER/NAME.")
    why = why_not_on_hub(name, revision=revision, token=token)
    if why:
        raise FileNotFoundError(f"There is no folder {name!r}, and {why}.")


@dataclass
class EnrolledClass:
    """One class of a `SupportSet`, on the CPU. A change makes a new object and leaves this one unchanged.

    Args:
        class_embeds: Text feature, (D,).
        clip_names: K names, all different.
        support_embeds: Frame features of the visual tower, (K, T, D); empty without clips.
        thumbnails: K JPEG pictures, the T frames of a clip side by side; empty bytes for a clip without a picture.
    """

    class_embeds: torch.Tensor
    clip_names: list[str] = field(default_factory=list)
    support_embeds: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    thumbnails: list[bytes] = field(default_factory=list)

    def with_rows(self, rows: list[int]) -> "EnrolledClass":
        """A copy with some of the clips."""
        names, thumbnails = [self.clip_names[row] for row in rows], [self.thumbnails[row] for row in rows]
        return EnrolledClass(self.class_embeds, names, self.support_embeds[rows], thumbnails)


@dataclass(frozen=True)
class Unknowns:
    """What a `SupportSet` knows of videos that belong to none of its classes.

    Args:
        background: Clips that show none of the classes; its `class_embeds` mean nothing.
        error_rate: Largest chance that a known video counts as unknown; None balances both kinds of error.
    """

    background: EnrolledClass | None = None
    error_rate: float | None = None


def embeds_of_clips(classes: Mapping[str, EnrolledClass]) -> torch.Tensor:
    """Frame features (S, T, D) of all clips, class after class."""
    return torch.cat([one.support_embeds for one in classes.values()])


class _DamagedError(Exception):
    """What is wrong with a support set; the final message adds its location."""


class _DifferentSavesError(_DamagedError):
    """No tensor file is the one that the description names."""


def meaning(class_name: str) -> str:
    """A class name as the prompt has it: underscores are spaces."""
    return " ".join(str(class_name).replace("_", " ").split())


def write_support_set(
    folder: Path,
    fingerprint: dict,
    classes: Mapping[str, EnrolledClass],
    thumbnails: bool = True,
    settings: Mapping[str, Any] | None = None,
    unknowns: Unknowns | None = None,
) -> None:
    """Writes both files so that at every moment the folder holds a complete set, the old or the new one.

    If a set is there already, the new tensors first get a hidden name. The new JSON names their digest, and only then
    they take the place of the old ones. Readers also look under the hidden name.
    `settings` are those of `SupportSet.tune`.
    """
    unknowns = unknowns or Unknowns()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"class_embeds": torch.stack([one.class_embeds for one in classes.values()])}
    entries = {str(number): enrolled for number, enrolled in enumerate(classes.values())}
    if unknowns.background is not None:
        entries[_BACKGROUND] = unknowns.background
    for number, enrolled in entries.items():
        tensors[f"support_embeds.{number}"] = enrolled.support_embeds.contiguous()
        for row, picture in enumerate(enrolled.thumbnails if thumbnails else ()):
            if picture:
                tensors[f"thumbnails.{number}.{row}"] = torch.frombuffer(bytearray(picture), dtype=torch.uint8)
    with _only_writer(folder):
        _finish_earlier_write(folder)
        is_first = not (folder / SUPPORT_SET_NAME).exists()
        tensor_file = folder / (SUPPORT_SET_WEIGHTS_NAME if is_first else _NEXT_WEIGHTS_NAME)
        with replace_file(tensor_file) as partial:
            write_tensors(tensors, partial)
            digest = _digest_of_file(partial)
        _write_description(folder, fingerprint, classes, settings, unknowns, digest)
        if not is_first:
            os.replace(tensor_file, folder / SUPPORT_SET_WEIGHTS_NAME)
        flush_to_disk(folder, deep=False)


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file. Raises `OSError` with the name of the file where safetensors has an error of its own,
    such as that of a full disk."""
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def remove_support_set(folder: Path) -> None:
    """Removes the files of a support set from a folder, if there are any."""
    for name in (SUPPORT_SET_NAME, SUPPORT_SET_WEIGHTS_NAME, _NEXT_WEIGHTS_NAME):
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Waits for other writers of the folder, where the system can lock folders."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _finish_earlier_write(folder: Path) -> None:
    """Puts the hidden tensors that a killed writer left in place, or removes them if the description is of others."""
    left = folder / _NEXT_WEIGHTS_NAME
    if not left.exists():
        return
    try:
        named = _parsed(read_file(folder / SUPPORT_SET_NAME, "json_bytes"))["sha256"]
    except (
        FileNotFoundError,
        UnreadableError,
        _DamagedError,
        KeyError,
        TypeError,
    ):  # no description that could be read
        named = None
    if _digest_of_file(left) == named:
        os.replace(left, folder / SUPPORT_SET_WEIGHTS_NAME)
    else:
        left.unlink()


def _write_description(folder: Path, fingerprint: dict, classes, settings, unknowns: Unknowns, digest: str) -> None:
    description = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "classes": [{"name": name, "clips": one.clip_names} for name, one in classes.items()],
        "sha256": digest,
    }
    if settings:
        description["settings"] = dict(settings)
    if unknowns.background is not None:
        description[_BACKGROUND] = {"clips": unknowns.background.clip_names}
    if unknowns.error_rate is not None:
        description["unknown_error_rate"] = unknowns.error_rate
    description[_DIGEST] = _digest_of_description(description)
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    with replace_file(folder / SUPPORT_SET_NAME) as partial:
        # Characters that UTF-8 cannot encode, from file names of other bytes, become JSON escapes.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_support_set(
    name: str, description_file: str | os.PathLike, tensor_file: str | os.PathLike
) -> tuple[dict, dict[str, EnrolledClass], dict[str, Any], Unknowns]:
    """Fingerprint, classes, tuned settings and `Unknowns` from the two files of the support set `name`.

    Raises:
        ValueError: When they are damaged or have another format; the message says what is wrong.
    """
    try:
        try:
            return _read(name, description_file, tensor_file)
        except (_DifferentSavesError, FileNotFoundError):  # a writer may have finished meanwhile
            return _read(name, description_file, tensor_file)
    except (_DamagedError, UnreadableError, SafetensorError) as error:
        reason = str(error)
    except FileNotFoundError as error:
        reason = f"there is no {os.path.basename(error.filename)}"
    except KeyError as error:
        reason = f"KeyError: {error}"
    raise ValueError(
        f"The support set in {name!r} is damaged ({reason}): restore both files, or enroll the clips again."
    )


def _read(name: str, description_file, tensor_file) -> tuple[dict, dict[str, EnrolledClass], dict[str, Any], Unknowns]:
    description = _parsed(read_file(description_file, "json_bytes"))
    _check(isinstance(description, dict), f"{SUPPORT_SET_NAME} is not a JSON object")
    if description["format"] != _FORMAT:
        raise ValueError(
            f"{name!r} holds a support set of format {description['format']!r}, but this version reads {_FORMAT}: "
            "use the version that saved it."
        )
    if _DIGEST in description:
        expected = _digest_of_description(description)
        _check(description[_DIGEST] == expected, f"{SUPPORT_SET_NAME} was changed after it was saved")
    tensor_bytes = _tensor_bytes(Path(tensor_file), description["sha256"])
    fingerprint, entries = description["fingerprint"], description["classes"]
    _check_fingerprint(fingerprint)
    _check_entries(entries)
    settings = description.get("settings", {})
    _check_settings(settings)
    background, error_rate = description.get(_BACKGROUND), description.get("unknown_error_rate")
    _check_unknowns(background, error_rate)
    tensors = load(tensor_bytes)
    _check_tensors(tensors, entries, background, fingerprint["preprocessing"].get("num_frames"))
    classes = {
        entry["name"]: _enrolled_class(tensors, str(number), entry["clips"], tensors["class_embeds"][number])
        for number, entry in enumerate(entries)
    }
    clips_of_none = None
    if background is not None:
        no_text = torch.zeros_like(tensors["class_embeds"][0])
        clips_of_none = _enrolled_class(tensors, _BACKGROUND, background["clips"], no_text)
    return fingerprint, classes, settings, Unknowns(clips_of_none, error_rate)


def _enrolled_class(tensors: dict, number: str, clips: list[str], class_embeds: torch.Tensor) -> EnrolledClass:
    pictures = (tensors.get(f"thumbnails.{number}.{row}") for row in range(len(clips)))
    thumbnails = [b"" if picture is None else picture.numpy().tobytes() for picture in pictures]
    return EnrolledClass(class_embeds, clips, tensors[f"support_embeds.{number}"], thumbnails)


def _tensor_bytes(tensor_file: Path, digest: str) -> bytes:
    """Content of the file that the description names: the usual one, or one whose writer has not finished."""
    next_file = tensor_file.with_name(_NEXT_WEIGHTS_NAME)
    files = [file for file in (tensor_file, next_file) if file.exists()]
    for file in files or [tensor_file]:
        num_bytes = check_regular_file(file)
        check_limit("file_bytes", num_bytes, f"{SUPPORT_SET_WEIGHTS_NAME} has {num_bytes} bytes")
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() == digest:
            return content
    raise _DifferentSavesError("the two files come from different saves")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also for a whole number with more digits than Python accepts
        raise _DamagedError(f"{type(error).__name__}: {error}") from error


def _check(is_sound: bool, what_is_wrong: str):
    if not is_sound:
        raise _DamagedError(what_is_wrong)


def _digest_of_file(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_description(description: dict) -> str:
    """SHA-256 of its values, not of its bytes: line ends and indentation may change in transfer."""
    covered = {name: value for name, value in description.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_fingerprint(fingerprint: Any):
    _check(isinstance(fingerprint, dict), "its fingerprint is not an object")
    for name in ("model", "weights", "dtype"):
        _check(isinstance(fingerprint[name], str), f"{name!r} of its fingerprint is not text")
    _check(isinstance(fingerprint["preprocessing"], dict), "'preprocessing' of its fingerprint is not an object")


def _check_settings(settings: Any):
    _check(isinstance(settings, dict), "'settings' is not an object")
    names = {"inference_mode": INFERENCE_MODES, "alignment": (*ALIGNMENTS, *own_alignments)}
    for name, value in settings.items():
        _check(name in TUNED_SETTINGS, f"its settings name {name!r}")
        if name in names:
            _check(value in names[name], f"{name}={value!r} is not known")
            continue
        is_share = name == "ensemble_text_weight"
        is_sound = is_number(value) and (0 <= value <= 1 if is_share else value > 0)
        _check(is_sound, f"{name}={value!r} is no sound setting")


def _check_unknowns(background: Any, error_rate: Any):
    if background is not None:
        _check(isinstance(background, dict), "its background is not an object")
        _check_clips(background["clips"], "the background")
    is_sound = error_rate is None or (is_number(error_rate) and 0 < error_rate < 1)
    _check(is_sound, f"unknown_error_rate={error_rate!r} is not between 0 and 1")


def _check_entries(entries: Any):
    """Checks that there are classes and clips, and that their names differ, for classes also in meaning."""
    _check(isinstance(entries, list) and bool(entries), "it lists no classes")
    meanings = set()
    for entry in entries:
        _check(isinstance(entry, dict), "one of its classes is not an object")
        name, clips = entry["name"], entry["clips"]
        _check(isinstance(name, str) and bool(name.strip()), f"{name!r} is not a class name")
        _check(meaning(name) not in meanings, f"class {name!r} is listed twice")
        meanings.add(meaning(name))
        _check_clips(clips, f"class {name!r}")


def _check_clips(clips: Any, owner: str):
    _check(isinstance(clips, list) and bool(clips), f"{owner} has no clips")
    _check(all(isinstance(clip, str) and clip for clip in clips), f"a clip of {owner} has no name")
    _check(len(set(clips)) == len(clips), f"{owner} has two clips with the same name")


def _check_tensors(tensors: dict[str, torch.Tensor], entries: list[dict], background: dict | None, num_frames: Any):
    """Checks the tensors' types and shapes against the description."""
    for name, tensor in tensors.items():
        dtype = torch.uint8 if name.startswith("thumbnails.") else torch.float32
        _check(tensor.dtype == dtype, f"{name!r} is {tensor.dtype}, but {dtype} is needed")
    class_embeds = tensors["class_embeds"]
    _check(
        class_embeds.ndim == 2 and class_embeds.shape[0] == len(entries) and class_embeds.shape[1] > 0,
        f"'class_embeds' has shape {tuple(class_embeds.shape)}, but {len(entries)} classes are listed",
    )
    size = class_embeds.shape[1]
    owners = {str(number): (f"class {entry['name']!r}", entry["clips"]) for number, entry in enumerate(entries)}
    if background is not None:
        owners[_BACKGROUND] = "the background", background["clips"]
    for number, (owner, clips) in owners.items():
        name, num_clips = f"support_embeds.{number}", len(clips)
        shape = tuple(tensors[name].shape)
        num_frames = num_frames if num_frames is not None or len(shape) < 2 else shape[1]
        _check(
            shape == (num_clips, num_frames, size) and num_frames > 0,
            f"{name!r} of {owner} has shape {shape}, but {(num_clips, num_frames, size)} is needed",
        )


__all__ = [
    "SUPPORT_SET_NAME",
    "SUPPORT_SET_WEIGHTS_NAME",
    "TUNED_SETTINGS",
    "EnrolledClass",
    "Unknowns",
    "check_on_hub",
    "embeds_of_clips",
    "meaning",
    "read_support_set",
    "remove_support_set",
    "write_support_set",
    "write_tensors",
]
