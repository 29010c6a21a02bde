"""Options of `clipfsar evaluate`. This module does not import torch."""

import os
from dataclasses import dataclass

from choices_clipfsar import ALIGNMENTS, INFERENCE_MODES, SECONDS_PER_VIDEO
from clipfsar.inference.arguments import CLASS_TEXTS_HELP, DTYPE_CHOICES, DTYPE_HELP
from clipfsar.names import check_source, find_model
from clipfsar.options import REQUIRED, check_least, check_no_overwriting, option
from clipfsar.shards import shard_of
from paths_clipfsar import check_path

RESULTS = "results.json"  # in the output folder of `clipfsar evaluate`
EPISODES_PER_UPDATE = 4  # of the trainings of heads


@dataclass
class EvaluateArguments:
    """Few-shot accuracy of a model. Every video is encoded once; episodes only align features.

        clipfsar evaluate --model runs/mine/best --dataset DATA --split test --n_shot 1 5 --output_dir results
        clipfsar evaluate --model runs/mine/best --dataset DATA --n_shot 1 --exact    # over all episodes
        clipfsar evaluate --model runs/mine/best --dataset DATA --n_shot 5 --until_interval 0.2
        clipfsar evaluate --model runs/b/best --compare_with runs/a/best --dataset DATA    # paired

    --feature_store keeps the frame features on disk: the next evaluation reads them, and an interrupted one continues.
    """

    # Model and data
    model: str = option(REQUIRED, "Folder or Hub id of a CLIP-FSAR model (or of a plain CLIP, untrained).")
    dataset: str = option(
        REQUIRED, "Folder, Hub id or address (s3://..., hf://...) of a video data set.", reads_addresses=True
    )
    split: str = option("test", "Split to draw episodes from.")
    compare_with: str | None = option(None, "Another model that answers the same episodes; the comparison is paired.")
    alignment: str | None = option(None, "Alignment to use instead of the model's.", ALIGNMENTS)

    # Episodes
    n_way: int = option(5, "Classes per episode.", unused_with="read_episodes", least=2)
    n_shot: list[int] = option(
        [1, 5], "Support videos per class; one number or several.", unused_with="read_episodes", least=1
    )
    n_query: int = option(1, "Query videos per class.", unused_with="read_episodes", least=1)
    n_episodes: int = option(
        10_000, "Episodes per number of shots.", unused_with="read_episodes or until_interval", least=1
    )
    seed: int = option(0, "Seed of the episodes, and of the frames if they are drawn at random.", least=0)
    inference_modes: list[str] = option(
        list(INFERENCE_MODES), "Modes that answer the episodes.", INFERENCE_MODES, aliases=["inference_mode"]
    )
    until_interval: float | None = option(
        None, "Draw episodes until the 95% interval is +- this many points, instead of --n_episodes."
    )
    exact: bool = option(False, "1-shot: also compute the expected accuracy over all possible episodes.")
    write_episodes: str | None = option(None, "Write the episodes to this file (one --n_shot).")
    read_episodes: str | None = option(None, "Read the episodes from this file instead of drawing them.")

    # Results and cost
    feature_store: str | None = option(
        None, "Folder that keeps the frame features for later evaluations, and after an interruption."
    )
    rebuild_features: bool = option(
        False, "Replace a feature store that does not match the model or the videos.", needs="feature_store"
    )
    encode_only: bool = option(False, "Only fill the feature store; answer no episodes.")
    shard: list[int] = option(
        [],
        "Encode only shard I of N, on one machine or several. Afterwards the same command without --shard merges them. "
        "Default in a Slurm array: the task's shard; 0 1 encodes everything.",
        needs="encode_only",
    )
    output_dir: str | None = option(None, "Folder for results.json and pictures.")
    output_json: str | None = option(None, "Write the results to this file.")
    batch_size: int = option(16, "Videos per forward pass.", least=1)
    num_workers: int = option(2, "Worker processes that read videos.", least=0)
    class_texts: str | None = option(None, CLASS_TEXTS_HELP)
    seconds_per_video: float = option(
        SECONDS_PER_VIDEO, "Time limit for reading a video. A slower video counts as unreadable."
    )
    dtype: str = option("float32", DTYPE_HELP, DTYPE_CHOICES)
    mixed_precision: str | None = option(
        None, "Precision of the visual tower's computations on float32 weights.", ("no", "fp16", "bf16")
    )
    video_column: str = option("video", "Column with the videos.")
    label_column: str = option("label", "Column with the classes.")

    def __post_init__(self):
        check_least(self)
        unknown = sorted(set(self.inference_modes) - set(INFERENCE_MODES))
        if unknown:
            raise ValueError(f"--inference_modes {' '.join(unknown)}: there are {', '.join(INFERENCE_MODES)}.")
        if self.write_episodes and len(self.n_shot) > 1:
            raise ValueError(f"--write_episodes holds episodes of one --n_shot, not of {self.n_shot}.")
        if not self.seconds_per_video > 0:
            raise ValueError(f"--seconds_per_video {self.seconds_per_video} must be greater than 0.")
        if self.until_interval is not None and not self.until_interval > 0:
            raise ValueError(f"--until_interval {self.until_interval} must be greater than 0.")
        if self.exact and self.read_episodes is None and 1 not in self.n_shot:
            raise ValueError(f"--exact is about 1-shot episodes: add 1 to --n_shot {self.n_shot}.")
        if self.dtype != "float32" and self.mixed_precision not in (None, "no"):
            raise ValueError(
                f"--dtype {self.dtype} and --mixed_precision {self.mixed_precision} both set the precision of the "
                "visual tower: give one of them."
            )
        self._check_encoding()
        for name in ("write_episodes", "until_interval"):
            if self.read_episodes is not None and getattr(self, name) is not None:
                raise ValueError(f"--read_episodes already fixes the episodes: leave --{name} out.")
        results = self.output_dir and os.path.join(self.output_dir, RESULTS)
        writes = {"output_json": self.output_json, "write_episodes": self.write_episodes, "output_dir": results}
        check_no_overwriting(writes, {"read_episodes": self.read_episodes, "class_texts": self.class_texts})

    def _check_encoding(self):
        if self.shard and not self.encode_only:
            raise ValueError("--shard divides the encoding, not the episodes: add --encode_only.")
        if self.encode_only and self.feature_store is None:
            raise ValueError("--encode_only fills a feature store: name its folder with --feature_store.")
        self.task = shard_of(self.shard) if self.encode_only else None
        if self.task is not None and self.rebuild_features:
            raise ValueError(
                f"{self.task}: with --rebuild_features one task would delete the features of another. Delete the "
                "folder before the first task starts."
            )

    def check_files(self):
        """Raises `FileNotFoundError` for a missing file, data set or model."""
        check_path("read_episodes", self.read_episodes, is_local=True)
        check_path("class_texts", self.class_texts, is_local=True)
        check_source("dataset", self.dataset, "dataset", "clipfsar prepare makes a data set of videos.")
        self.model = find_model("model", self.model)
        self.compare_with = find_model("compare_with", self.compare_with)


@dataclass
class CompareArguments:
    """Heads x checkpoints x shots on the same episodes: one table of paired differences.

        clipfsar compare --models runs/mine/best --heads otam bi_mhm mean chamfer --dataset DATA --output_dir compared
        clipfsar compare --models runs/otam/best runs/trx/best --dataset DATA     # each with its own alignment
        clipfsar compare --models runs/mine/best --heads otam mine.py:MyHead --dataset DATA

    Differences are to the first row. Their p values are corrected for the number of differences (Holm). A head with
    weights needs a checkpoint that was trained with it, or --train_heads, which trains on the split train and selects
    on validation. An interrupted command continues when you run it again. References without training, on mean frames:
    nearest_mean, tip_adapter, gda and linear_probe.
    """

    models: list[str] = option(REQUIRED, "Folders or Hub ids of CLIP-FSAR models or plain CLIPs.")
    dataset: str = option(REQUIRED, "Folder or Hub id of a video data set.")
    heads: list[str] = option([], "Alignments for each model, besides its own; FILE.py:CLASS is a head of your own.")
    split: str = option("test", "Split to draw episodes from.")
    n_way: int = option(5, "Classes per episode.", least=2)
    n_shot: list[int] = option([1, 5], "Support videos per class; one number or several.", least=1)
    n_query: int = option(1, "Query videos per class.", least=1)
    n_episodes: int = option(10_000, "Episodes per number of shots.", least=2)
    seed: int = option(0, "Seed of the episodes.", least=0)
    train_heads: list[str] = option(
        [], "Also train these alignments on cached features of the first model, all with the same episodes.", ALIGNMENTS
    )
    train_seeds: int = option(
        3, "Trainings of each of them; their spread is part of the interval.", needs="train_heads", least=2
    )
    train_episodes: int = option(2000, "Episodes of each training.", needs="train_heads", least=EPISODES_PER_UPDATE)
    feature_store: str | None = option(None, "Folder that keeps the frame features for later comparisons.")
    output_dir: str | None = option(
        None, "Folder for trainings, comparison.json, comparison.tex and pictures of mean ranks."
    )
    batch_size: int = option(16, "Videos per forward pass.", least=1)
    num_workers: int = option(2, "Worker processes that read videos.", least=0)

    def __post_init__(self):
        check_least(self)  # of --n_episodes and --train_seeds: one alone has no spread, so no interval
        if self.train_heads and self.output_dir is None:
            raise ValueError("--train_heads needs --output_dir, where the trainings are kept.")
        for name in self.train_heads:
            if name not in ALIGNMENTS:
                raise ValueError(f"--train_heads {name} is not known: there are {', '.join(ALIGNMENTS)}.")
        if self.train_episodes % EPISODES_PER_UPDATE:
            nearest = self.train_episodes - self.train_episodes % EPISODES_PER_UPDATE
            raise ValueError(
                f"--train_episodes {self.train_episodes} is not a multiple of {EPISODES_PER_UPDATE}, the episodes of "
                f"an update: {nearest} would be."
            )

    def check_files(self):
        """Raises `FileNotFoundError` for a missing data set or model."""
        check_source("dataset", self.dataset, "dataset", "clipfsar prepare makes a data set of videos.")
        self.models = [find_model("models", name) or name for name in self.models]


__all__ = ["EPISODES_PER_UPDATE", "RESULTS", "CompareArguments", "EvaluateArguments"]
