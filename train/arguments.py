"""Command line of the training program: `defaults < benchmark preset < command line`."""

import argparse
import sys
from dataclasses import asdict, dataclass, field, fields

from transformers import HfArgumentParser

from configuration_clipfsar import ALIGNMENTS, INFERENCE_MODES, SUPPORT_POOLINGS
from processing_clipfsar import DECODERS, FRAME_SAMPLINGS, PREPROCESSINGS, QUERY_AUGMENTATIONS
from train.presets import PRESETS


def _option(default, text: str, choices=None):
    metadata = {"help": text} | ({"choices": list(choices)} if choices else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainingArguments:
    """Options of `train/train.py`. Episodes are counted over all processes together."""

    # What
    benchmark: str | None = _option(None, "Official settings of a benchmark; other options override them.", PRESETS)
    dataset: str | None = _option(
        None,
        "Folder (videofolder tree train/CLASS/*.mp4, validation/..., test/...; save_to_disk; Parquet) or Hub id of a "
        "video data set with class-disjoint splits.",
    )
    model: str = _option("openai/clip-vit-base-patch16", "Plain CLIP checkpoint or CLIP-FSAR model to start from.")
    output_dir: str = _option("runs/clipfsar", "Folder for models, log, plot and the state to resume from.")
    resume: bool = _option(False, "Go on where a run in output_dir was stopped, exactly.")
    video_column: str = _option("video", "Column with the videos.")
    label_column: str = _option("label", "Column with the classes.")
    allow_shared_classes: bool = _option(False, "Let splits share classes. Results are then not few-shot results.")

    # Episodes
    n_way: int = _option(5, "Classes per episode, in training and evaluation.")
    train_n_shot: int = _option(1, "Support videos per class in training; officially 1, also for 5-shot tests.")
    train_n_query: int = _option(5, "Query videos per class in training.")
    n_shot: list[int] = _option([1, 5], "Support videos per class in the test; validation uses the first.")
    n_query: int = _option(1, "Query videos per class in validation and test.")
    episodes: int = _option(2000, "Training episodes in all.")
    episodes_per_update: int = _option(4, "Episodes whose mean loss makes one optimizer step, over all processes.")
    episodes_per_forward: int = _option(1, "Episodes that one process runs at once; the rest is accumulated.")
    seed: int = _option(0, "Seed of the new layers, the episodes, the frames drawn and dropout.")

    # Frames
    num_frames: int = _option(8, "Frames per video.")
    frame_sampling: str = _option("segment_center", "Frames of a video; training draws at random.", FRAME_SAMPLINGS)
    sampling_rate: int = _option(35, "Interval sampling: distance of frames, in frames of a 12 fps video.")
    preprocessing: str = _option("clip", "CLIP's own, or the official squash-and-crop.", PREPROCESSINGS)
    query_augmentation: str = _option("none", "Flips and colour jitter of query videos.", QUERY_AUGMENTATIONS)
    prompt_template: str = _option("a photo of {}", "Sentence around a class name.")
    decoder: str = _option("auto", "Video reader.", ("auto", *DECODERS))

    # Model; empty means: as the checkpoint has it
    alignment: str | None = _option(None, "Distance between frame sequences.", ALIGNMENTS)
    support_pooling: str | None = _option(None, "Average several shots before or after modulation.", SUPPORT_POOLINGS)
    prototype_modulation: bool | None = _option(None, "Modulate prototypes by class texts.")
    temporal_num_layers: int | None = _option(None, "Depth of the temporal transformer.")
    video_text_loss_weight: float | None = _option(None, "Weight of the video-text contrast.")
    gradient_checkpointing: bool = _option(False, "Recompute activations in the backward pass: less memory, slower.")
    torch_compile: bool = _option(False, "Compile the model with torch.compile.")

    # Optimization
    learning_rate: float = _option(1e-5, "Full learning rate.")
    warmup_learning_rate: float = _option(1e-6, "Rate at the first episode.")
    warmup_episodes: int = _option(200, "Episodes of linear warm-up.")
    decay_episodes: list[int] = _option([], "Two episodes at which the rate falls to 1/10 and 1/100; none: never.")
    weight_decay: float = _option(1e-3, "L2 decay of all trained weights but batch norms and the temporal norms.")
    optimizer: str = _option("adam", "adam couples the decay with the gradient, as officially.", ("adam", "adamw"))
    max_grad_norm: float = _option(0.0, "Clip gradients to this norm; 0 does not.")
    mixed_precision: str | None = _option(
        None, "Arithmetic of the forward pass; by default as accelerate is set up.", ("no", "fp16", "bf16")
    )

    # Looking
    select_on: str = _option(
        "validation",
        "Split that chooses the best model. test is what the official program does: it makes the test result too good "
        "and is here for comparison only.",
        ("validation", "test"),
    )
    eval_every: int = _option(200, "Episodes between validations (and checkpoints).")
    eval_episodes: int = _option(1000, "Validation episodes.")
    test_episodes: int = _option(10_000, "Test episodes per number of shots, at the end; 0 leaves the test out.")
    inference_modes: list[str] = _option(list(INFERENCE_MODES), f"Tested; any of {', '.join(INFERENCE_MODES)}.")
    log_every: int = _option(20, "Episodes between lines of the log; rounded up to whole updates.")
    eval_batch_size: int = _option(16, "Videos per forward when a split is encoded.")
    num_workers: int = _option(2, "Processes that read videos, per training process.")
    report_to: str = _option("auto", "Trackers: tensorboard, wandb, ..., none; auto is tensorboard if installed.")
    push_to_hub: str | None = _option(None, "Upload the best model to this Hub repository at the end.")
    hub_private: bool = _option(True, "Make a new Hub repository private; an old one stays as it is.")
    hub_revision: str | None = _option(None, "Branch of the Hub repository to upload to; made if need be.")
    print_config: bool = _option(False, "Print the resolved settings and stop.")

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
        unknown = sorted(set(self.inference_modes) - set(INFERENCE_MODES))
        if unknown:
            raise ValueError(f"--inference_modes {' '.join(unknown)}: there are {', '.join(INFERENCE_MODES)}.")

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
        )
        return {name: getattr(self, name) for name in names}

    def changes_nothing_when_different(self) -> set[str]:
        """Options that a resumed run may have other values of."""
        return {
            "output_dir",
            "resume",
            "decoder",
            "dataset",
            "episodes_per_forward",
            "gradient_checkpointing",
            "torch_compile",
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
        "Trains CLIP-FSAR by episodes. One process or several: python train/train.py ..., or accelerate launch "
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
    return parser.parse_args_into_dataclasses(arguments)[0]


__all__ = ["TrainingArguments", "parse_arguments"]
