"""The trainer's callbacks: when to log, validate and save, and the progress bar. They run before the user's.

The state of the user's callbacks is saved with a run and restored with it.
"""

from collections.abc import Iterable

from tqdm.auto import tqdm
from transformers.trainer_callback import DefaultFlowCallback, ExportableState, TrainerCallback


class EpisodicFlowCallback(DefaultFlowCallback):
    """Schedules logging, validation and checkpoints in episodes, as the arguments do, always between updates."""

    def __init__(self):
        self._logged_at = 0  # episodes done at the last line of the log

    def on_train_begin(self, args, state, control, **kwargs):
        self._logged_at = state.global_step * args.episodes_per_update

    def on_step_end(self, args, state, control, **kwargs):
        episodes_done = state.global_step * args.episodes_per_update
        is_check = state.global_step >= state.max_steps or episodes_done % args.eval_every == 0
        control.should_evaluate = control.should_save = is_check
        control.should_log = is_check or episodes_done >= self._logged_at + args.log_every
        return control

    def on_log(self, args, state, control, **kwargs):
        self._logged_at = state.global_step * args.episodes_per_update

    def on_epoch_end(self, args, state, control, **kwargs):
        return control  # there are no epochs


class EpisodicProgressCallback(TrainerCallback):
    """Progress bar of the main process: episodes, last loss, last accuracy."""

    def __init__(self):
        self._bar = tqdm(disable=True)  # until the training begins

    def on_train_begin(self, args, state, control, **kwargs):
        self._bar = tqdm(
            total=args.episodes,
            initial=state.global_step * args.episodes_per_update,
            desc="training",
            unit="episode",
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args, state, control, **kwargs):
        self._bar.update(args.episodes_per_update)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", accuracy=f"{logs['accuracy']:.1f}%", refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self._bar.close()


def callback_states(callbacks: Iterable[TrainerCallback]) -> list[list]:
    """Class name and state of each callback that has one, ready for JSON."""
    return [[type(one).__name__, one.state()] for one in callbacks if isinstance(one, ExportableState)]


def restore_callbacks(callbacks: Iterable[TrainerCallback], saved: list[list]) -> None:
    """Restores what `callback_states` gave; callbacks are matched by class name and order."""
    saved = list(saved)
    for callback in (one for one in callbacks if isinstance(one, ExportableState)):
        position = next((i for i, (name, _) in enumerate(saved) if name == type(callback).__name__), None)
        if position is not None:
            for name, value in saved.pop(position)[1]["attributes"].items():
                setattr(callback, name, value)


__all__ = ["EpisodicFlowCallback", "EpisodicProgressCallback", "callback_states", "restore_callbacks"]
