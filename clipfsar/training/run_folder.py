"""The folder of a run, complete at every moment: models, log, and the state that `--resume` reads."""

import json
import shutil
from pathlib import Path

from paths_clipfsar import replace_file


class TrainingLog:
    """`training_log.jsonl`: a line per logging step, validation and test; cut back to the checkpoint on resume."""

    def __init__(self, path: Path, episodes_done: int, is_main_process: bool):
        self.path, self.is_main_process, self.records = path, is_main_process, []
        if path.is_file():
            lines = path.read_text().splitlines()
            # A line that was being written when the process died is not complete JSON; it lies after the checkpoint.
            self.records = [record for line in lines if (record := _json_or_none(line))]
            self.records = [record for record in self.records if record["episode"] <= episodes_done]
        if is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as partial:  # so that a death here loses nothing
                partial.write_text("".join(json.dumps(record) + "\n" for record in self.records))

    def write(self, episode: int, kind: str, **values):
        record = {"episode": episode, "kind": kind, **values}
        self.records.append(record)
        if self.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

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


def _json_or_none(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def restore_folder(folder: Path):
    """Brings back the predecessor of `folder` if the process died between the two renames of `replace_folder`."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def replace_folder(new: Path, folder: Path):
    """Puts `new` in the place of `folder`; at every moment a complete one lies at `folder` or beside it as `.old`."""
    restore_folder(folder)  # or the next line would remove the only complete one
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def complete_folder(folder: Path) -> Path | None:
    """`folder`, or its predecessor if the process died between the two renames of `replace_folder`."""
    old = folder.with_name(folder.name + ".old")
    return next((candidate for candidate in (folder, old) if (candidate / "progress.json").is_file()), None)


def find_saved_state(output_dir: Path, resume: bool) -> Path | None:
    """The state that a run goes on from; None where it begins.

    Raises:
        ValueError: When there is one, but the run is not to be resumed.
    """
    saved_state = complete_folder(output_dir / "state")
    if saved_state and not resume:
        raise ValueError(
            f"{output_dir} holds a run already: --resume (resume_from_checkpoint=True) goes on with it, a new run "
            "needs another --output_dir."
        )
    return saved_state


def read_progress(state_folder: Path | None) -> dict:
    """How far the run of a saved state had come; empty without one."""
    return {} if state_folder is None else json.loads((state_folder / "progress.json").read_text())


__all__ = ["TrainingLog", "complete_folder", "find_saved_state", "read_progress", "replace_folder", "restore_folder"]
