"""The folder of a run, complete at every moment: models, log, and the state that `--resume` reads."""

import contextlib
import filecmp
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from clipfsar.checked_files import DamagedFileError, check_files, listed_files, write_checksums
from clipfsar.json_files import read_json
from clipfsar.locks import FolderLock
from clipfsar.plots import plot_training
from paths_clipfsar import flush_to_disk, replace_file

CARD = "README.md"  # the model card: people and uploads edit it
RESULTS = "results.json"  # of the test at the end of a run
_ARCHIVE_WRITER = "inline_container"  # where torch's errors of writing come from
SECONDS_BETWEEN_PICTURES = 10.0


@contextlib.contextmanager
def told_how_to_go_on(path: Path) -> Iterator[None]:
    """Raises one `OSError` with the path and the remedy when a run cannot write there, as on a full disk.

    safetensors has an error of its own for that, and `torch.save` raises a `RuntimeError` of its archive writer.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        is_of_archive = _ARCHIVE_WRITER in str(error)
        if isinstance(error, RuntimeError) and not is_of_archive:
            raise
        reason = getattr(error, "strerror", None) or ("it was cut off" if is_of_archive else str(error))
        raise OSError(
            f"{path} could not be written ({reason}). Make sure that its disk has room and takes files; --resume "
            "(resume_from_checkpoint=True) then continues from the last checkpoint."
        ) from error


class TrainingLog:
    """`training_log.jsonl`: one line per logging step and validation. Resuming drops lines after the checkpoint."""

    def __init__(self, path: Path, episodes_done: int, is_main_process: bool, sha256: str | None = None):
        """Raises `DamagedFileError` when `sha256` is not the digest of the lines up to `episodes_done`."""
        self.path, self.is_main_process, self.records = path, is_main_process, []
        self._last_picture = time.monotonic()
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            # The process may have died while it wrote a line: incomplete JSON, always after the checkpoint.
            self.records = [record for line in lines if (record := _record_or_none(line))]
            self.records = [record for record in self.records if record["episode"] <= episodes_done]
            if sha256 is not None and sha256 != self.digest():
                raise DamagedFileError(
                    f"{path} is not what was written up to episode {episodes_done}: put back a copy of it, or delete "
                    "it to begin the log at the checkpoint."
                )
        if is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            with told_how_to_go_on(path), replace_file(path) as partial:  # a crash here loses nothing
                partial.write_text(self._text())

    def _text(self) -> str:
        return "".join(json.dumps(record) + "\n" for record in self.records)

    def digest(self) -> str:
        """SHA-256 of all lines."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def write(self, episode: int, kind: str, **values):
        record = {"episode": episode, "kind": kind, **values}
        self.records.append(record)
        if self.is_main_process:
            with told_how_to_go_on(self.path), self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint must not outlive the lines before it

    def draw(self, is_final: bool):
        """Draws `training.png` next to the log, at most every ten seconds and always at the end of a run."""
        if is_final or time.monotonic() - self._last_picture > SECONDS_BETWEEN_PICTURES:
            picture = self.path.with_name("training.png")
            with told_how_to_go_on(picture):
                plot_training(self.records, picture)
            self._last_picture = time.monotonic()

    def history(self, episodes_per_update: int, episodes: int) -> list[dict]:
        """The log as transformers' `log_history`: plain names for training, `eval_*` for validation, and `step`."""
        history = []
        for record in self.records:
            prefix = "eval_" if record["kind"] == "validation" else ""
            values = {f"{prefix}{name}": value for name, value in record.items() if name not in ("episode", "kind")}
            episode = record["episode"]
            place = {"episode": episode, "step": episode // episodes_per_update, "epoch": episode / episodes}
            history.append(values | place)
        return history


def _record_or_none(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("episode"), int) and "kind" in record
    return record if is_record else None


def restore_folder(folder: Path):
    """Restores the old `folder` if the process died between the two renames of `replace_folder`."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def replace_folder(new: Path, folder: Path):
    """Replaces `folder` by `new`. At every moment `folder` or its `.old` copy next to it is complete.

    `new` is flushed to the disk first, so the run also survives a power cut.
    """
    flush_to_disk(new)
    restore_folder(folder)  # otherwise the next lines could remove the only complete folder
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    flush_to_disk(folder.parent, deep=False)
    shutil.rmtree(old, ignore_errors=True)


def complete_folder(folder: Path) -> Path | None:
    """`folder`, or its `.old` copy if the process died between the two renames of `replace_folder`."""
    old = folder.with_name(folder.name + ".old")
    return next((candidate for candidate in (folder, old) if (candidate / "progress.json").is_file()), None)


def find_saved_state(output_dir: Path, resume: bool) -> Path | None:
    """The folder of the state to resume from; None for a run that starts from the beginning.

    Raises:
        ValueError: When the folder holds a state and `resume` is False, or models without their state.
    """
    saved_state = complete_folder(output_dir / "state")
    if saved_state and not resume:
        raise ValueError(
            f"{output_dir} holds a run already: --resume (resume_from_checkpoint=True) continues it; a new run "
            "needs another --output_dir."
        )
    models = [name for name in ("best", "last") if (output_dir / name / "config.json").is_file()]
    # --resume may overwrite models of a run that died before its first checkpoint, but not those of a finished run.
    if models and not saved_state and (not resume or (output_dir / RESULTS).is_file()):
        raise ValueError(
            f"{output_dir} holds models of a run whose state is gone ({', '.join(models)}). A new run would replace "
            "them: move them away, or use another --output_dir."
        )
    return saved_state


def check_own_folder(resume: bool | str | Path | None, output_dir: Path) -> None:
    """Raises `ValueError` when the path of another run is to be continued in `output_dir`."""
    own = (output_dir.resolve(), (output_dir / "state").resolve())
    if isinstance(resume, (str, Path)) and Path(resume).resolve() not in own:
        raise ValueError(
            f"resume_from_checkpoint={str(resume)!r} is not the run in {output_dir}: a run resumes in its own "
            "output_dir; name that folder."
        )


def read_progress(state_folder: Path | None) -> dict:
    """The progress recorded in a saved state; empty without a state."""
    if state_folder is None:
        return {}
    return read_json(state_folder / "progress.json", f"delete {state_folder} to begin anew")


def check_saved_state(state_folder: Path, output_dir: Path) -> list[str]:
    """Compares the state to resume from, and `best/`, with their checksums.

    Returns:
        Warnings about files that have no checksums, and about a missing `best/`.

    Raises:
        DamagedFileError: For a file that is not what was written; the message names the file and the remedy.
    """
    notes, unchecked = [], []
    remedy = f"put back a copy of this file, or begin anew without the state: delete {state_folder} and --resume"
    if not check_files(state_folder, remedy, must_be_listed="[!.]*"):
        unchecked.append(state_folder)
    best = output_dir / "best"
    if not best.is_dir():
        notes.append(f"{best} is gone: the best model is selected anew, starting with the checkpoint's model.")
    else:
        remedy = (
            f"put back a copy of this file, or delete {best}: --resume then selects the best model anew, starting "
            "with the last checkpoint's model"
        )
        if not check_files(best, remedy, must_be_listed="model*.safetensors"):
            unchecked.append(best)
        if not any(best.glob("model*.safetensors")):
            raise DamagedFileError(f"{best} holds no model*.safetensors: {remedy}.")
    if unchecked:
        names = " and ".join(map(str, unchecked))
        notes.append(
            f"{names}: an earlier version wrote no checksums, so damage cannot be detected; checksums are added now."
        )
    for folder in unchecked:
        write_checksums(folder, leave_out=[CARD])
    return notes


def keep_foreign_files(folder: Path, new: Path):
    """Copies the user's files in `folder`, such as a support set, to `new`, which will replace `folder`.

    The list of checksums names the run's own files. From a folder without this list, nothing is copied.
    """
    ours = listed_files(folder)
    for path in folder.rglob("*") if ours else ():
        name = path.relative_to(folder)
        if path.is_file() and name.as_posix() not in {*ours, CARD} and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, new / name)


def has_same_weights(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same model, by the bytes of their `model*.safetensors`."""
    names = {path.name for path in folder.glob("model*.safetensors")}
    if names != {path.name for path in other.glob("model*.safetensors")}:
        return False
    return all(filecmp.cmp(folder / name, other / name, shallow=False) for name in names)


def check_same_model(best: Path, new: Path):
    """Raises `ValueError`, and removes `new`, if a model without training would replace the best model of a run."""
    if any(best.glob("model*.safetensors")) and not has_same_weights(best, new):
        shutil.rmtree(new)
        raise ValueError(
            f"{best} holds the best model of a run, and this trainer has not trained: continue that run with "
            "train(resume_from_checkpoint=True), or save to another folder with save_model(FOLDER)."
        )


def put_in_place(new: Path, folder: Path, is_ours: bool):
    """Moves a model's folder `new` to `folder`; the user's files there stay.

    Args:
        is_ours: Whether `folder` belongs to the run. Such a folder is replaced by one rename. In any other folder the
            files are replaced one by one, and files that only the earlier model had are removed.
    """
    if is_ours:
        keep_foreign_files(folder, new)
        replace_folder(new, folder)
        return
    flush_to_disk(new)
    if not folder.exists():
        new.rename(folder)
        return
    for name in listed_files(folder) - listed_files(new):
        (folder / name).unlink(missing_ok=True)
    for path in [path for path in new.rglob("*") if path.is_file()]:
        target = folder / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(new)


def run_lock(output_dir: Path) -> FolderLock:
    """The lock that a run holds while it writes to its folder; a second run is rejected at once."""
    remedy = "Wait until it has ended, stop it, or name another --output_dir"
    return FolderLock(output_dir, "trains", remedy)


__all__ = [
    "CARD",
    "RESULTS",
    "TrainingLog",
    "check_own_folder",
    "check_same_model",
    "check_saved_state",
    "complete_folder",
    "find_saved_state",
    "has_same_weights",
    "keep_foreign_files",
    "put_in_place",
    "read_progress",
    "replace_folder",
    "restore_folder",
    "run_lock",
    "told_how_to_go_on",
]
