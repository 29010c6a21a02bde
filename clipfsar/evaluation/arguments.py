"""Shim: overwritten at merge."""

from dataclasses import dataclass, field

from choices_clipfsar import ALIGNMENTS, DTYPES, INFERENCE_MODES


@dataclass
class EvaluateArguments:
    """Few-shot accuracy of a model on a split (shim, to be overwritten)."""

    model: str = field(metadata={"help": "Folder or Hub id of a CLIP-FSAR model (or of a plain CLIP, untrained)."})
    dataset: str = field(metadata={"help": "Folder or Hub id of a video data set."})
    split: str = field(default="test", metadata={"help": "Split to draw episodes from."})
    compare_with: str | None = field(
        default=None, metadata={"help": "Another model that answers the same episodes; the comparison is paired."}
    )
    n_way: int = field(default=5, metadata={"help": "Classes per episode."})
    n_shot: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "Support videos per class; several."})
    n_query: int = field(default=1, metadata={"help": "Query videos per class."})
    n_episodes: int = field(default=10_000, metadata={"help": "Episodes per number of shots."})
    until_interval: float | None = field(
        default=None, metadata={"help": "Draw episodes until the 95%% interval is +- this many points, instead."}
    )
    exact: bool = field(default=False, metadata={"help": "1-shot: also the expectation over all episodes there are."})
    write_episodes: str | None = field(default=None, metadata={"help": "Write the episodes to this file (one n_shot)."})
    read_episodes: str | None = field(default=None, metadata={"help": "Take the episodes from this file instead."})
    seed: int = field(default=0, metadata={"help": "Seed of the episodes."})
    inference_modes: list[str] = field(
        default_factory=lambda: list(INFERENCE_MODES), metadata={"help": f"Any of {', '.join(INFERENCE_MODES)}."}
    )
    alignment: str | None = field(
        default=None, metadata={"help": "Another alignment than the model's.", "choices": list(ALIGNMENTS)}
    )
    feature_store: str | None = field(
        default=None, metadata={"help": "Folder to keep the frame features in, for the next time and after a kill."}
    )
    rebuild_features: bool = field(default=False, metadata={"help": "Replace a feature store of something else."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for results.json and pictures."})
    output_json: str | None = field(default=None, metadata={"help": "Write the results to this file."})
    batch_size: int = field(default=16, metadata={"help": "Videos per forward."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode videos."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Arithmetic of the whole model, as in clipfsar predict; int8: of the visual tower, on a CPU.",
            "choices": list(DTYPES),
        },
    )
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "Arithmetic of the visual tower on float32 weights.", "choices": ["no", "fp16", "bf16"]},
    )
    video_column: str = field(default="video", metadata={"help": "Column with the videos."})
    label_column: str = field(default="label", metadata={"help": "Column with the classes."})
