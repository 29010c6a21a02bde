"""Command line of the training program: `defaults < benchmark preset < command line`."""

import argparse
import sys
from dataclasses import asdict, dataclass, fields

from transformers import HfArgumentParser

from choices_clipfsar import (
    ALIGNMENTS,
    DECODERS,
    FRAME_SAMPLINGS,
    INFERENCE_MODES,
    PREPROCESSINGS,
    QUERY_AUGMENTATIONS,
    SECONDS_PER_VIDEO,
    SUPPORT_POOLINGS,
)
from clipfsar.options import option
from clipfsar.presets import PRESETS, dataset_folder


@dataclass
class TrainingArguments:
    """Options of `train/train.py`. Episodes are counted over all processes together."""

    # What
    benchmark: str | None = option(None, "Official settings of a benchmark; other options override them.", PRESETS)
    dataset: str | None = option(
        None,
        "Folder (videofolder tree train/CLASS/*.mp4, validation/..., test/...; save_to_disk; Parquet) or Hub id of a "
        "video data set with class-disjoint splits; with --benchmark NAME it is data/NAME, where "
        "clipfsar prepare puts it.",
    )
    model: str = option(
        "openai/clip-vit-base-patch16",
        "CLIP-FSAR model to start from, or plain CLIP, SigLIP, SigLIP 2 or MetaCLIP 2 (folder or Hub id).",
    )
    output_dir: str = option(
        "runs/clipfsar",
        "Folder for models, log, plot and the state to resume from; with --benchmark NAME it is runs/NAME.",
    )
    resume: bool = option(False, "Go on where a run in output_dir was stopped, exactly.")
    video_column: str = option("video", "Column with the videos.")
    label_column: str = option("label", "Column with the classes.")
    allow_shared_classes: bool = option(False, "Let splits share classes. Results are then not few-shot results.")

    # Episodes
    n_way: int = option(5, "Classes per episode, in training and evaluation.")
    train_n_shot: int = option(1, "Support videos per class in training; officially 1, also for 5-shot tests.")
    train_n_query: int = option(5, "Query videos per class in training.")
    n_shot: list[int] = option([1, 5], "Support videos per class in the test; validation uses the first.")
    n_query: int = option(1, "Query videos per class in validation and test.")
    episodes: int = option(2000, "Training episodes in all.")
    episodes_per_update: int = option(4, "Episodes whose mean loss makes one optimizer step, over all processes.")
    episodes_per_forward: int = option(1, "Episodes that one process runs at once; the rest is accumulated.")
    seed: int = option(0, "Seed of the new layers, the episodes, the frames drawn and dropout.")

    # Frames
    num_frames: int = option(8, "Frames per video.")
    frame_sampling: str = option("segment_center", "Frames of a video; training draws at random.", FRAME_SAMPLINGS)
    sampling_rate: int = option(35, "Interval sampling: distance of frames, in frames of a 12 fps video.")
    preprocessing: str = option("clip", "CLIP's own, or the official squash-and-crop.", PREPROCESSINGS)
    query_augmentation: str = option("none", "Flips and colour jitter of query videos.", QUERY_AUGMENTATIONS)
    prompt_template: str = option("a photo of {}", "Sentence around a class name.")
    decoder: str = option("auto", "Video reader.", ("auto", *DECODERS))
    seconds_per_video: float = option(SECONDS_PER_VIDEO, "Time limit for reading a video; then it is unreadable.")

    # Model; empty means: as the checkpoint has it
    alignment: str | None = option(None, "Distance between frame sequences.", ALIGNMENTS)
    support_pooling: str | None = option(None, "Average several shots before or after modulation.", SUPPORT_POOLINGS)
    prototype_modulation: bool | None = option(None, "Modulate prototypes by class texts.")
    temporal_num_layers: int | None = option(None, "Depth of the temporal transformer.")
    video_text_loss_weight: float | None = option(None, "Weight of the video-text contrast.")

    # What trains
    freeze_vision: bool = option(False, "Train nothing of the visual tower, on frame features encoded once.")
    feature_draws: int = option(
        1,
        "With --freeze_vision: 1 encodes each training video once, with the frames and crop of evaluation; more, with "
        "as many random draws of frames and crops, of which every episode picks one per video; 0 keeps reading pixels.",
    )
    features_dir: str | None = option(
        None, "Folder of the features, to share among runs of the same frozen tower; by default in output_dir."
    )
    train_last_layers: int | None = option(
        None, "Train only the last so many layers of the visual tower, and what comes after them."
    )
    lora_rank: int = option(0, "Train low-rank adapters of this rank in the visual tower instead of it; 0: do not.")
    lora_alpha: float | None = option(
        None, "Scale of the adapters, divided by their rank; twice the rank if not given."
    )
    lora_targets: list[str] = option(["q_proj", "v_proj"], "Layers of the visual tower with adapters, by last name.")
    keep_adapter: bool = option(
        False, "Keep the adapters beside the saved weights, in peft's format; merged into these they are in any case."
    )
    freeze_batch_norm: bool = option(False, "Leave a ResNet's batch norms as they are, statistics included.")

    # Cost
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory, slower.")
    torch_compile: bool = option(False, "Compile the model with torch.compile.")
    preprocess_on_device: bool = option(
        False,
        "Resize, crop and normalise training videos where the model computes instead of in the processes that read "
        "them: for a GPU that waits for its CPUs. Resized pixels may differ by one grey level.",
    )

    # Optimization
    learning_rate: float = option(1e-5, "Full learning rate.")
    warmup_learning_rate: float = option(1e-6, "Rate at the first episode.")
    warmup_episodes: int = option(200, "Episodes of linear warm-up.")
    decay_episodes: list[int] = option([], "Two episodes at which the rate falls to 1/10 and 1/100; none: never.")
    weight_decay: float = option(1e-3, "L2 decay of all trained weights but batch norms and the temporal norms.")
    optimizer: str = option("adam", "adam couples the decay with the gradient, as officially.", ("adam", "adamw"))
    max_grad_norm: float = option(0.0, "Clip gradients to this norm; 0 does not.")
    mixed_precision: str | None = option(
        None, "Arithmetic of the forward pass; by default as accelerate is set up.", ("no", "fp16", "bf16")
    )

    # Looking
    select_on: str = option(
        "validation",
        "Split that chooses the best model. test is what the official program does: it makes the test result too good "
        "and is here for comparison only.",
        ("validation", "test"),
    )
    eval_every: int = option(200, "Episodes between validations (and checkpoints).")
    eval_episodes: int = option(1000, "Validation episodes.")
    test_episodes: int = option(10_000, "Test episodes per number of shots, at the end; 0 leaves the test out.")
    inference_modes: list[str] = option(list(INFERENCE_MODES), f"Tested; any of {', '.join(INFERENCE_MODES)}.")
    log_every: int = option(20, "Episodes between lines of the log; rounded up to whole updates.")
    eval_batch_size: int = option(16, "Videos per forward when a split is encoded.")
    num_workers: int = option(2, "Processes that read videos, per training process.")
    report_to: str = option("auto", "Trackers: tensorboard, wandb, ..., none; auto is tensorboard if installed.")
    push_to_hub: str | None = option(None, "Upload the best model to this Hub repository at the end.")
    hub_private: bool = option(True, "Make a new Hub repository private; an old one stays as it is.")
    hub_revision: str | None = option(None, "Branch of the Hub repository to upload to; made if need be.")
    print_config: bool = option(False, "Print the resolved settings and stop.")

    def __post_init__(self):
        decay = self.decay_episodes
        if decay and (len(decay) != 2 or decay != sorted(decay)):
            raise ValueError(f"--decay_episodes {decay}: give two ascending numbers, or none.")
        for name in ("episodes", "episodes_per_update", "episodes_per_forward", "eval_every", "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1.")
        if self.episodes % self.episodes_per_update:
            raise ValueError(
                f"--episodes {self.episodes} is not a multiple of --episodes_per_update {self.episodes_per_update}: "
                f"{self.episodes - self.episodes % self.episodes_per_update} would be."
            )
        if self.eval_every % self.episodes_per_update:
            raise ValueError(
                f"--eval_every {self.eval_every} is not a multiple of --episodes_per_update "
                f"{self.episodes_per_update}: validations and checkpoints come between updates."
            )
        self._check_what_trains()
        unknown = sorted(set(self.inference_modes) - set(INFERENCE_MODES))
        if unknown:
            raise ValueError(f"--inference_modes {' '.join(unknown)}: there are {', '.join(INFERENCE_MODES)}.")

    def _check_what_trains(self):
        chosen = {
            "--freeze_vision": self.freeze_vision,
            "--train_last_layers": self.train_last_layers is not None,
            "--lora_rank": self.lora_rank > 0,
        }
        chosen = [option for option, is_chosen in chosen.items() if is_chosen]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other: each says what of the visual tower trains.")
        for name in ("feature_draws", "train_last_layers", "lora_rank"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"--{name} {getattr(self, name)} must be 0 or more.")
        if self.trains_on_features and self.query_augmentation != "none":
            raise ValueError(
                f"--query_augmentation {self.query_augmentation} changes pixels, but with --freeze_vision the training "
                "runs on features encoded before: use --query_augmentation none, or --feature_draws 0."
            )

    @property
    def trains_on_features(self) -> bool:
        return self.freeze_vision and self.feature_draws > 0

    def config_overrides(self) -> dict:
        """What the command line says of the model's configuration."""
        names = (
            "num_frames",
            "alignment",
            "support_pooling",
            "prototype_modulation",
            "temporal_num_layers",
            "video_text_loss_weight",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def processor_settings(self) -> dict:
        names = (
            "num_frames",
            "frame_sampling",
            "sampling_rate",
            "preprocessing",
            "query_augmentation",
            "prompt_template",
            "decoder",
            "seconds_per_video",
        )
        return {name: getattr(self, name) for name in names}

    def changes_nothing_when_different(self) -> set[str]:
        """Options that a resumed run may have other values of."""
        return {
            "output_dir",
            "resume",
            "decoder",
            "seconds_per_video",
            "dataset",
            "episodes_per_forward",
            "features_dir",
            "keep_adapter",
            "gradient_checkpointing",
            "torch_compile",
            "preprocess_on_device",
            "mixed_precision",
            "eval_batch_size",
            "num_workers",
            "report_to",
            "push_to_hub",
            "hub_private",
            "hub_revision",
            "print_config",
            "test_episodes",
            "inference_modes",
            "n_shot",
            "log_every",
        }

    def check_same_run(self, saved: dict):
        """Raises:
        ValueError: When a setting that shapes the training differs from the run that is to be resumed.
        """
        may_differ = self.changes_nothing_when_different()
        different = [
            f"--{name} {saved[name]} (now {value})"
            for name, value in asdict(self).items()
            if name not in may_differ and name in saved and saved[name] != value
        ]
        if self.n_shot[0] != saved["n_shot"][0]:  # the one of the validation, which selects the best model
            different.append(f"--n_shot {saved['n_shot'][0]} ... (now {self.n_shot[0]} ...)")
        if different:
            raise ValueError(
                f"The run in {self.output_dir} was started with {', '.join(different)}: resume with the same settings "
                "or use another --output_dir."
            )


def parse_arguments(arguments: list[str] | None = None) -> TrainingArguments:
    """The command line over the benchmark's preset over the defaults."""
    arguments = sys.argv[1:] if arguments is None else arguments
    description = (
        "Trains CLIP-FSAR by episodes. One process or several: clipfsar train ..., or accelerate launch "
        "train/train.py ...; the number of processes changes the speed, not the result."
    )
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--benchmark", choices=list(PRESETS))
    benchmark = first.parse_known_args(arguments)[0].benchmark
    parser = HfArgumentParser(TrainingArguments, description=description, allow_abbrev=False)
    for action in parser._actions:
        if action.dest == "decay_episodes":
            action.nargs = "*"  # so that "--decay_episodes" alone takes the decay out of a preset
    if benchmark:
        known = {item.name for item in fields(TrainingArguments)}
        parser.set_defaults(**{k: v for k, v in PRESETS[benchmark].as_defaults().items() if k in known})
        parser.set_defaults(dataset=dataset_folder(benchmark), output_dir=f"runs/{benchmark}")
    return parser.parse_args_into_dataclasses(arguments)[0]


__all__ = ["TrainingArguments", "parse_arguments"]
