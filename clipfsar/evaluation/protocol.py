"""The protocol of an evaluation: its episodes and inference modes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from choices_clipfsar import INFERENCE_MODES
from clipfsar.data.video_split import VideoSplit
from episodes_clipfsar import EpisodeSampler


@dataclass(frozen=True)
class Protocol:
    """Episodes and inference modes of an evaluation; the results keep it as `protocol`.

    A number of shots or a mode that is given twice counts once.

    Args:
        n_way: Classes per episode.
        n_shot: Support videos per class; one number or several, each evaluated on separate episodes.
        n_query: Query videos per class.
        n_episodes: Episodes per number of shots.
        seed: Different seeds give independent episodes.
        inference_modes: Any of `"few_shot"`, `"zero_shot"`, `"ensemble"`; all answer the same episodes.

    Raises:
        ValueError: For an unknown mode, or a count below 1.
    """

    n_way: int = 5
    n_shot: int | Sequence[int] = (1, 5)
    n_query: int = 1
    n_episodes: int = 10_000
    seed: int = 0
    inference_modes: str | Sequence[str] = INFERENCE_MODES

    def __post_init__(self):
        shots = self.shots
        modes = (self.inference_modes,) if isinstance(self.inference_modes, str) else tuple(self.inference_modes)
        if not all(isinstance(number, int) for number in shots):
            raise ValueError(f"n_shot={self.n_shot!r} must be a whole number or a list of them.")
        shots, modes = tuple(dict.fromkeys(shots)), tuple(dict.fromkeys(modes))
        object.__setattr__(self, "n_shot", shots)
        object.__setattr__(self, "inference_modes", modes)
        if not shots or not modes:
            raise ValueError(f"n_shot={list(shots)}, inference_modes={list(modes)}: give at least one of each.")
        if self.n_episodes < 1:
            raise ValueError(f"n_episodes={self.n_episodes} must be at least 1.")
        unknown = sorted(set(modes) - set(INFERENCE_MODES))
        if unknown:
            raise ValueError(f"inference_modes {' '.join(unknown)}: there are {', '.join(INFERENCE_MODES)}.")

    @property
    def shots(self) -> tuple[int, ...]:
        return (self.n_shot,) if isinstance(self.n_shot, int) else tuple(self.n_shot)

    def samplers(self, split: VideoSplit) -> dict[int, EpisodeSampler]:
        """The sampler of the episodes, per number of shots.

        Raises:
            ValueError: When the split has too few classes, or a class too few videos; the message has the numbers.
        """
        return {n_shot: self.sampler(split.labels, n_shot, split.class_names) for n_shot in self.shots}

    def sampler(self, labels: np.ndarray, n_shot: int, class_names: Sequence[str]) -> EpisodeSampler:
        """The sampler for one number of shots, of videos with labels (V,); raises like `samplers`."""
        return EpisodeSampler(labels, self.n_way, n_shot, self.n_query, self.seed, class_names)


__all__ = ["Protocol"]
