"""Episodes over a Hugging Face dataset with a video and a label column.

An episode is a pure function of (seed, epoch, index). It does not matter which process or worker draws it, or in which
order. `EpisodeSampler` sees only labels, `EpisodeDataset` adds the videos, `EpisodeCollator` makes the model inputs.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

try:
    from .choices_clipfsar import check_truth
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import check_truth

try:
    from .class_texts_clipfsar import has_several_prompts
except ImportError:
    if __package__:
        raise
    from class_texts_clipfsar import has_several_prompts


@dataclass(frozen=True)
class EpisodeRows:
    """Dataset rows of the videos of one episode; the episode's classes are numbered 0..N-1.

    Args:
        class_ids: (N,), class id in the dataset of each episode class.
        support_rows: (N, K), dataset rows of the support videos of each class.
        query_rows: (N, Q per class), dataset rows of the query videos, none of them a support video.
    """

    class_ids: np.ndarray
    support_rows: np.ndarray
    query_rows: np.ndarray


class EpisodeSampler:
    """Draws N-way K-shot episodes from a list of class ids.

    Args:
        labels: Class id of each video; any integers. A negative id leaves a video out.
        n_way, n_shot, n_query: Classes (2 or more), support videos per class, query videos per class.
        seed: Episodes of different seeds are independent of each other.
        class_names: Names of the ids, for error messages.

    Raises:
        ValueError: For `n_way` below 2, fewer classes than `n_way`, or a class with fewer than `n_shot + n_query`
            videos.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        n_way: int = 5,
        n_shot: int = 1,
        n_query: int = 5,
        seed: int = 0,
        class_names: Sequence[str] | None = None,
    ):
        if n_way < 2:
            raise ValueError(f"n_way={n_way} must be at least 2: among fewer classes every answer is right.")
        for name, value in (("n_shot", n_shot), ("n_query", n_query)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if seed < 0:
            raise ValueError(f"seed={seed} must be 0 or greater.")
        labels = np.asarray(labels, dtype=np.int64)
        self.labels = labels
        self.n_way, self.n_shot, self.n_query, self.seed = n_way, n_shot, n_query, seed
        self.class_ids = np.unique(labels[labels >= 0])
        if len(self.class_ids) < n_way:
            raise ValueError(
                f"There are {len(self.class_ids)} classes, but n_way={n_way} are needed: lower n_way or add classes."
            )
        self._rows_of_class = [np.flatnonzero(labels == class_id) for class_id in self.class_ids]
        for class_id, rows in zip(self.class_ids, self._rows_of_class, strict=True):
            if len(rows) < n_shot + n_query:
                name = class_names[class_id] if class_names is not None else str(class_id)
                raise ValueError(
                    f"Class {name!r} has {len(rows)} videos, but n_shot + n_query = {n_shot + n_query} are needed: "
                    "lower one of them or drop the class."
                )

    def episode_rng(self, index: int, epoch: int = 0) -> np.random.Generator:
        """The random generator of an episode; the frame seeds of its videos come from the same stream."""
        return np.random.default_rng([self.seed, epoch, index])

    def sample(self, index: int, epoch: int = 0) -> EpisodeRows:
        """Episode `index` of `epoch`: classes, then the videos of each class, all without replacement."""
        return self.draw(self.episode_rng(index, epoch))

    def draw(self, rng: np.random.Generator) -> EpisodeRows:
        """Draws an episode with a random generator; override this method in your own sampler."""
        chosen = rng.permutation(len(self.class_ids))[: self.n_way]
        rows = np.stack(
            [rng.permutation(self._rows_of_class[choice])[: self.n_shot + self.n_query] for choice in chosen]
        )
        return EpisodeRows(self.class_ids[chosen], rows[:, : self.n_shot], rows[:, self.n_shot :])


class EpisodeDataset(TorchDataset):
    """N-way K-shot episodes over a Hugging Face dataset, for a `DataLoader` with an [`EpisodeCollator`].

    Args:
        dataset: A `datasets.Dataset` with a column of videos (`Video(decode=False)`, `Video()` or paths) and one of
            labels (`ClassLabel` or class names).
        n_way, n_shot, n_query: Classes, support videos per class, query videos per class.
        n_episodes: Number of episodes; the episodes themselves do not depend on it.
        seed: Episodes of different seeds are independent of each other.
        video_column, label_column: Names of the two columns.
        sampler: Your own sampler; it replaces the one made from `n_way`, `n_shot`, `n_query` and `seed`.

    Raises:
        ValueError: For a missing column, labels without names, or too few classes or videos (with the numbers).

    Attributes:
        class_names: Names of all classes of the split, sorted by the dataset's own numbers; `*_base_labels` of an
            episode are positions in this list.
    """

    def __init__(
        self,
        dataset,
        n_way: int = 5,
        n_shot: int = 1,
        n_query: int = 5,
        n_episodes: int = 1000,
        seed: int = 0,
        video_column: str = "video",
        label_column: str = "label",
        sampler: EpisodeSampler | None = None,
    ):
        if n_episodes < 1:
            raise ValueError(f"n_episodes={n_episodes} must be at least 1.")
        self.dataset = undecoded_videos(dataset, video_column)
        self.video_column = video_column
        self.n_episodes = n_episodes
        self.labels, self.class_names = read_labels(dataset, label_column)
        if sampler is None:
            sampler = EpisodeSampler(self.labels, n_way, n_shot, n_query, seed, self.class_names)
        self.sampler = sampler
        # In shared memory, so that persistent workers see a new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int):
        """Switches to the episodes of another epoch; an episode depends on (seed, epoch, index)."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.n_episodes

    def __getitem__(self, index: int) -> dict:
        """Episode `index`, its videos not yet decoded.

        Returns:
            `class_names` (N), `class_base_labels` (N); `support_videos`, `support_labels`, `support_base_labels` (S);
            `query_videos`, `labels`, `query_base_labels` (Q); and `seed` for the choice of frames and crops. Labels
            are positions in the episode's classes, base labels in `class_names` of the dataset.
        """
        if not 0 <= index < self.n_episodes:
            raise IndexError(f"Episode {index} of {self.n_episodes}.")
        rng = self.sampler.episode_rng(index, int(self._epoch))
        rows = self.sampler.draw(rng)
        n_way, n_shot, n_query = self.sampler.n_way, self.sampler.n_shot, self.sampler.n_query
        support_rows, query_rows = rows.support_rows.flatten(), rows.query_rows.flatten()
        videos = self.dataset[np.concatenate([support_rows, query_rows])][self.video_column]
        return {
            "class_names": [self.class_names[class_id] for class_id in rows.class_ids],
            "class_base_labels": rows.class_ids.tolist(),
            "support_videos": videos[: len(support_rows)],
            "support_labels": np.repeat(np.arange(n_way), n_shot).tolist(),
            "support_base_labels": self.labels[support_rows].tolist(),
            "query_videos": videos[len(support_rows) :],
            "labels": np.repeat(np.arange(n_way), n_query).tolist(),
            "query_base_labels": self.labels[query_rows].tolist(),
            "seed": int(rng.integers(2**63)),
        }


class EpisodeCollator:
    """Makes model inputs from a list of episodes of [`EpisodeDataset`]: `model(**collator(episodes))`.

    Args:
        processor: A [`CLIPFSARProcessor`].
        training: Draw frames (and crops) at random from each episode's own seed; otherwise use the processor's
            deterministic choice.
        only_read: Leave resizing, cropping and normalising to `finish`, which does them on the frames' device: on a
            GPU, for example, instead of in the loader's processes. Until then the batch holds `support_videos` and
            `query_videos`, each a `SampledVideos`, instead of pixel values.

    Episodes with fewer videos than the largest of the list are padded with black videos of label -1.
    """

    def __init__(self, processor, training: bool = False, only_read: bool = False):
        check_truth("training", training)
        check_truth("only_read", only_read)
        self.processor = processor
        self.training = training
        self.only_read = only_read

    def __call__(self, episodes: list[dict]) -> dict[str, torch.Tensor]:
        """Returns `support_pixel_values` (B, S, T, C, H, W), `support_labels` (B, S), `query_pixel_values`, `labels`,
        `class_input_ids` (B, N, L), `class_attention_mask`, and the base labels, all for `CLIPFSARModel.forward`.

        If classes have several texts, there are no tokens: give the model `base_class_embeds`."""
        if episodes and "class_names" not in episodes[0]:
            raise ValueError(
                f"An episode has no class names, only {sorted(episodes[0])}. With transformers' Trainer, set "
                "TrainingArguments(remove_unused_columns=False): it removes what is no input of the model."
            )
        ways = sorted({len(episode["class_names"]) for episode in episodes})
        if len(ways) != 1:
            raise ValueError(f"Episodes of {ways} classes cannot share a batch: use one n_way.")
        base_labels = torch.tensor([episode["class_base_labels"] for episode in episodes])
        batch: dict[str, Any] = {"class_base_labels": base_labels}
        generators = [torch.Generator().manual_seed(episode["seed"]) for episode in episodes]
        for role in ("support", "query"):
            # One call for all episodes, so that their videos get into one tensor without another copy.
            counts = [len(episode[f"{role}_videos"]) for episode in episodes]
            videos = [video for episode in episodes for video in episode[f"{role}_videos"]]
            draws = [generator for generator, n in zip(generators, counts, strict=True) for _ in range(n)]
            settings = {"training": self.training, "generator": draws, "role": role}
            if self.only_read:
                batch[f"{role}_videos"] = self.processor.read_videos(videos, **settings)
                batch[f"num_{role}_videos"] = counts
            else:
                pixel_values = self.processor.process_videos(videos, **settings)
                batch[f"{role}_pixel_values"] = _by_episode(pixel_values, counts)
        for name in ("support_labels", "support_base_labels", "labels", "query_base_labels"):
            batch[name] = _pad([torch.tensor(episode[name]) for episode in episodes], -1)
        names = [name for episode in episodes for name in episode["class_names"]]
        tokens_by_name = {} if has_several_prompts(self.processor, names) else self._tokenize(names, ways[0])
        for name, tokens in tokens_by_name.items():
            batch[f"class_{name}"] = tokens.unflatten(0, (len(episodes), ways[0]))
        return batch

    def _tokenize(self, class_names: list[str], n_way: int) -> dict[str, torch.Tensor]:
        tokenize = self.processor.tokenize_classes
        if "n_way" not in inspect.signature(tokenize).parameters:  # code that version 0.1 saved next to a model
            return tokenize(class_names)
        return tokenize(class_names, n_way=n_way)

    def finish(self, batch: dict) -> dict[str, torch.Tensor]:
        """Makes model inputs from an `only_read` batch, on the batch's device; leaves other batches unchanged."""
        finished = dict(batch)
        for role in ("support", "query"):
            if f"{role}_videos" in finished:
                pixel_values = self.processor.make_pixel_values(finished.pop(f"{role}_videos"))
                finished[f"{role}_pixel_values"] = _by_episode(pixel_values, finished.pop(f"num_{role}_videos"))
        return finished


def undecoded_videos(dataset, video_column: str = "video"):
    """The dataset with its videos as `{"path", "bytes"}` or paths, not decoded when a row is read."""
    if video_column not in dataset.column_names:
        raise ValueError(f"There is no column {video_column!r}; the dataset has {', '.join(dataset.column_names)}.")
    feature = dataset.features[video_column]
    if type(feature).__name__ == "Video" and feature.decode:
        dataset = dataset.cast_column(video_column, type(feature)(decode=False))
    return dataset


def read_labels(dataset, label_column: str = "label") -> tuple[np.ndarray, list[str]]:
    """Class ids (V,) of a dataset's videos, 0..C-1 over the classes that occur in it, and the names of the C classes.

    Videos without a label get the id -1, which `EpisodeSampler` leaves out.

    Raises:
        ValueError: When the column is missing or holds numbers without names.
    """
    if label_column not in dataset.column_names:
        raise ValueError(f"There is no column {label_column!r}; the dataset has {', '.join(dataset.column_names)}.")
    values = list(dataset[label_column][:])  # the whole column at once: row by row takes 100 times as long
    names = getattr(dataset.features[label_column], "names", None)
    if names is None and not all(isinstance(value, str | None) for value in values):
        raise ValueError(
            f"Column {label_column!r} holds {type(values[0]).__name__} values without class names, but the class "
            "texts need names: use strings or cast_column(..., ClassLabel(names=[...]))."
        )
    # -1 is how `datasets` writes "no label" in a ClassLabel column.
    rows = [row for row, value in enumerate(values) if value is not None and not (names is not None and value < 0)]
    occurring, inverse = np.unique([values[row] for row in rows], return_inverse=True)
    labels = np.full(len(values), -1, dtype=np.int64)
    labels[rows] = inverse
    return labels, [names[value] if names is not None else str(value) for value in occurring]


def _by_episode(pixel_values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Groups the videos of consecutive episodes by episode, (V, ...) -> (B, largest count, ...)."""
    if len(set(counts)) == 1:
        return pixel_values.unflatten(0, (len(counts), counts[0]))
    return _pad(pixel_values.split(counts), 0.0)


def _pad(tensors: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    """Stacks tensors whose first dimensions may differ, padding with `value`."""
    return torch.nn.utils.rnn.pad_sequence([*tensors], batch_first=True, padding_value=value)


__all__ = ["EpisodeCollator", "EpisodeDataset", "EpisodeRows", "EpisodeSampler"]
