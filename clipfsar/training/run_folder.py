"""The folder of a run, complete at every moment: models, log, and the state that `--resume` reads."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from clipfsar.checked_files import DamagedFileError, check_files, listed_files, read_json, write_checksums
from clipfsar.locks import FolderLock
from clipfsar.plots import plot_training
from paths_clipfsar import flush_to_disk, replace_file

CARD = "README.md"  # of a model's folder: people and uploads write into it


SECONDS_BETWEEN_PICTURES = 10.0


class TrainingLog:
    """`training_log.jsonl`: a line per logging step, validation and test; cut back to the checkpoint on resume."""

    def __init__(self, path: Path, episodes_done: int, is_main_process: bool, sha256: str | None = None):
        """Raises `DamagedFileError` when the lines up to `episodes_done` are not those of `digest()`, `sha256`."""
        self.path, self.is_main_process, self.records = path, is_main_process, []
        self._last_picture = time.monotonic()
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            # A line that was being written when the process died is not complete JSON; it lies after the checkpoint.
            self.records = [record for line in lines if (record := _record_or_none(line))]
            self.records = [record for record in self.records if record["episode"] <= episodes_done]
            if sha256 is not None and sha256 != self.digest():
                raise DamagedFileError(
                    f"{path} is not what was written up to episode {episodes_done}: put back a copy of it, or delete "
                    "it, and the log begins at the checkpoint."
                )
        if is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as partial:  # so that a death here loses nothing
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
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint must not outlive the lines before it

    def draw(self, is_final: bool):
        """`training.png` beside the log: at the end of a run, and before it no more often than every ten seconds."""
        if is_final or time.monotonic() - self._last_picture > SECONDS_BETWEEN_PICTURES:
            plot_training(self.records, self.path.with_name("training.png"))
            self._last_picture = time.monotonic()

    def history(self, episodes_per_update: int, episodes: int) -> list[dict]:
        """The same as transformers' `log_history`: plain names for training, `eval_*` for validations, with `step`."""
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
    """Brings back the predecessor of `folder` if the process died between the two renames of `replace_folder`."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def replace_folder(new: Path, folder: Path):
    """Puts `new` in the place of `folder`; at every moment a complete one lies at `folder` or beside it as `.old`.

    All of `new` is on the disk before: a power cut is survived as well.
    """
    flush_to_disk(new)
    restore_folder(folder)  # or the next line would remove the only complete one
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    flush_to_disk(folder.parent, deep=False)
    shutil.rmtree(old, ignore_errors=True)


def complete_folder(folder: Path) -> Path | None:
    """`folder`, or its predecessor if the process died between the two renames of `replace_folder`."""
    old = folder.with_name(folder.name + ".old")
    return next((candidate for candidate in (folder, old) if (candidate / "progress.json").is_file()), None)


def find_saved_state(output_dir: Path, resume: bool) -> Path | None:
    """The state that a run goes on from; None where it begins.

    Raises:
        ValueError: When there is one, but the run is not to be resumed; when there is none, but models are.
    """
    saved_state = complete_folder(output_dir / "state")
    if saved_state and not resume:
        raise ValueError(
            f"{output_dir} holds a run already: --resume (resume_from_checkpoint=True) goes on with it, a new run "
            "needs another --output_dir."
        )
    models = [name for name in ("best", "last") if (output_dir / name / "config.json").is_file()]
    # A run that died before its first checkpoint may begin anew over them; one that was finished, or is not meant, not.
    if models and not saved_state and (not resume or (output_dir / "results.json").is_file()):
        raise ValueError(
            f"{output_dir} holds models of a run whose state is gone ({', '.join(models)}), which a new run would "
            "replace: move them away, or use another --output_dir."
        )
    return saved_state


def read_progress(state_folder: Path | None) -> dict:
    """How far the run of a saved state had come; empty without one."""
    if state_folder is None:
        return {}
    return read_json(state_folder / "progress.json", f"delete {state_folder} to begin anew")


def check_saved_state(state_folder: Path, output_dir: Path) -> list[str]:
    """Compares the state that a run goes on from, and `best/`, with their checksums.

    Returns:
        What could not be checked, or is missing and can be done without, in sentences.

    Raises:
        DamagedFileError: For a file that is not what was written; the message names it and what can be done.
    """
    notes, unchecked = [], []
    remedy = f"put back a copy of this file, or begin anew without the state: delete {state_folder} and --resume"
    if not check_files(state_folder, remedy, must_be_listed="[!.]*"):
        unchecked.append(state_folder)
    best = output_dir / "best"
    if not best.is_dir():
        notes.append(f"{best} is gone: the best model is chosen anew, beginning with that of the checkpoint.")
    else:
        remedy = (
            f"put back a copy of this file, or delete {best}: --resume then chooses the best model anew, beginning "
            "with that of the last checkpoint"
        )
        if not check_files(best, remedy, must_be_listed="model*.safetensors"):
            unchecked.append(best)
        if not any(best.glob("model*.safetensors")):
            raise DamagedFileError(f"{best} holds no model*.safetensors: {remedy}.")
    if unchecked:
        names = " and ".join(map(str, unchecked))
        notes.append(
            f"{names}: an earlier version wrote no checksums, so damage is not looked for; they are added now."
        )
    for folder in unchecked:
        write_checksums(folder, leave_out=[CARD])
    return notes


def keep_foreign_files(folder: Path, new: Path):
    """Copies what others put into `folder`, such as a support set, to `new`, which is about to take its place.

    Whose a file is, the list of checksums tells; a folder without it is replaced as it is.
    """
    ours = listed_files(folder)
    for path in folder.rglob("*") if ours else ():
        name = path.relative_to(folder)
        if path.is_file() and name.as_posix() not in {*ours, CARD} and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, new / name)


def put_in_place(new: Path, folder: Path, is_ours: bool):
    """Puts a model's folder `new` in the place of `folder`; what others put there stays.

    Args:
        is_ours: Whether `folder` is the run's own, and replaced at once. Into any other one that is there the files are
            put one by one; of the files of an earlier model, those that this one does not have go.
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
    """What a run holds while it writes into its folder; a second one is refused at once."""
    remedy = "Wait until it has ended, stop it, or name another --output_dir"
    return FolderLock(output_dir, "trains", remedy)


__all__ = [
    "CARD",
    "TrainingLog",
    "check_saved_state",
    "complete_folder",
    "find_saved_state",
    "keep_foreign_files",
    "put_in_place",
    "read_progress",
    "replace_folder",
    "restore_folder",
    "run_lock",
]
