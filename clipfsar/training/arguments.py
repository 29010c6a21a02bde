"""Command line of the training program: `defaults < benchmark preset < command line`."""

import math
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from choices_clipfsar import (
    ALIGNMENTS,
    DECODERS,
    FRAME_SAMPLINGS,
    INFERENCE_MODES,
    PREPROCESSINGS,
    QUERY_AUGMENTATIONS,
    SECONDS_PER_VIDEO,
    SUPPORT_POOLINGS,
    check_same_num_frames,
)
from clipfsar.data.tables import read_class_texts
from clipfsar.inference.arguments import CLASS_TEXTS_HELP
from clipfsar.json_files import read_json
from clipfsar.names import check_source, find_model
from clipfsar.options import TRUTH, check_field_types, make_parser, option, parse_options
from clipfsar.presets import PRESETS, benchmark_on, dataset_folder
from paths_clipfsar import check_path, public_name


@dataclass
class EpisodicTrainingArguments:
    """Settings of an `EpisodicTrainer`, and the options of `clipfsar train`: the same names, the same defaults.

    Episodes are counted over all processes together. The command line builds the trainer's objects from `benchmark`,
    `dataset`, `model`, the column names and the settings of frames and model (`num_frames` ...
    `video_text_loss_weight`). If you also pass these settings to a trainer, they must agree with its objects.
    """

    # Data, model, output
    benchmark: str | None = option(None, "Official settings of a benchmark; other options override them.", PRESETS)
    dataset: str | None = option(
        None,
        "Folder (videofolder tree train/CLASS/*.mp4, validation/..., test/...; save_to_disk; Parquet), Hub id or "
        "address (s3://..., hf://...) of a video data set with class-disjoint splits. With --benchmark NAME the "
        "default is data/NAME, where clipfsar prepare puts it.",
        reads_addresses=True,
    )
    model: str = option(
        "openai/clip-vit-base-patch16",
        "CLIP-FSAR model to start from, or plain CLIP, SigLIP, SigLIP 2 or MetaCLIP 2 (folder or Hub id).",
    )
    output_dir: str = option(
        "runs/clipfsar",
        "Folder for models, log, plot and the state to resume from. With --benchmark NAME the default is runs/NAME.",
    )
    resume: bool = option(
        False,
        "Continue the run in output_dir exactly where it stopped; without a run there, start one. --resume RUN "
        "continues the run in folder RUN with its own settings; a larger --episodes makes it longer.",
    )
    video_column: str = option("video", "Column with the videos.")
    label_column: str = option("label", "Column with the classes.")
    allow_shared_classes: bool = option(False, "Let splits share classes. The results are then not few-shot results.")

    # Episodes
    n_way: int = option(5, "Classes per episode, in training and evaluation.")
    train_n_shot: int = option(1, "Support videos per class in training. The official program always uses 1.")
    train_n_query: int = option(5, "Query videos per class in training.")
    n_shot: list[int] = option([1, 5], "Support videos per class in the test. Validation uses the first number.")
    n_query: int = option(1, "Query videos per class in validation and test.")
    episodes: int = option(2000, "Total number of training episodes.")
    episodes_per_update: int = option(4, "Episodes per optimizer step, over all processes; their losses are averaged.")
    episodes_per_forward: int = option(1, "Episodes per forward pass of one process; gradients are accumulated.")
    seed: int = option(0, "Seed of the new layers, the episodes, the sampled frames and dropout.")

    # Frames
    num_frames: int = option(8, "Frames per video.")
    frame_sampling: str = option(
        "segment_center", "How frames are chosen from a video; training draws them at random.", FRAME_SAMPLINGS
    )
    sampling_rate: int = option(
        35, "Distance between frames, in frames of a 12 fps video.", needs="frame_sampling=interval"
    )
    preprocessing: str = option("clip", "CLIP's own, or the official program's squash-and-crop.", PREPROCESSINGS)
    query_augmentation: str = option("none", "Flips and colour jitter of query videos.", QUERY_AUGMENTATIONS)
    prompt_template: str = option("a photo of {}", "Sentence around a class name.")
    class_texts: str | None = option(None, CLASS_TEXTS_HELP)
    decoder: str = option("auto", "Video reader.", ("auto", *DECODERS))
    seconds_per_video: float = option(
        SECONDS_PER_VIDEO, "Time limit for reading a video. A slower video counts as unreadable."
    )

    # Model; by default the checkpoint's settings
    alignment: str | None = option(None, "Distance between frame sequences.", ALIGNMENTS)
    support_pooling: str | None = option(None, "Average several shots before or after modulation.", SUPPORT_POOLINGS)
    prototype_modulation: bool | None = option(None, "Modulate the prototypes with the class texts.")
    temporal_num_layers: int | None = option(None, "Depth of the temporal transformer.")
    video_text_loss_weight: float | None = option(None, "Weight of the video-text contrast.")

    # Trained weights
    freeze_vision: bool = option(False, "Freeze the visual tower and train on frame features encoded once.")
    feature_draws: int = option(
        1,
        "1 encodes each training video once, with the frames and crop of evaluation. N > 1 encodes N random draws of "
        "frames and crops; each episode picks one draw per video. 0 reads pixels instead.",
        needs="freeze_vision",
    )
    features_dir: str | None = option(
        None,
        "Folder of the features; runs with the same frozen tower can share it. By default in output_dir.",
        needs="freeze_vision",
        unused_with="feature_draws=0",
    )
    train_last_layers: int | None = option(
        None, "Train only this many last layers of the visual tower, and everything after them."
    )
    lora_rank: int = option(
        0, "Freeze the visual tower and train low-rank adapters of this rank in it. 0: no adapters."
    )
    lora_alpha: float | None = option(
        None, "Scale of the adapters, divided by their rank; by default twice the rank.", needs="lora_rank"
    )
    lora_targets: list[str] = option(
        ["q_proj", "v_proj"],
        "Layers of the visual tower that get adapters: the last part of their names.",
        needs="lora_rank",
    )
    keep_adapter: bool = option(
        False,
        "Also save the adapters, in peft's format. They are always merged into the saved weights.",
        needs="lora_rank",
    )
    freeze_batch_norm: bool = option(
        False, "Freeze a ResNet's batch norms, statistics included.", unused_with="freeze_vision or lora_rank"
    )

    # Cost
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory, slower.")
    torch_compile: bool = option(False, "Compile the model with torch.compile.")
    preprocess_on_device: bool = option(
        False,
        "Resize, crop and normalise training videos on the model's device instead of in the reading processes. Useful "
        "when the GPU waits for its CPUs. Resized pixels may differ by one grey level.",
        unused_with="freeze_vision and feature_draws",  # features are encoded once, by the reading processes
    )

    # Optimization
    learning_rate: float = option(1e-5, "Full learning rate.")
    warmup_learning_rate: float = option(1e-6, "Rate at the first episode.", unused_with="warmup_episodes=0")
    warmup_episodes: int = option(200, "Episodes of linear warm-up.")
    decay_episodes: list[int] = option([], "Two episodes at which the rate falls to 1/10 and 1/100; none: no decay.")
    weight_decay: float = option(
        1e-3, "Weight decay of all trained weights except batch norms and the temporal transformer's norms."
    )
    optimizer: str = option(
        "adam", "adam adds the decay to the gradient, as the official program does.", ("adam", "adamw")
    )
    max_grad_norm: float = option(0.0, "Clip gradients to this norm; 0: no clipping.")
    mixed_precision: str | None = option(
        None, "Precision of the forward pass; by default accelerate's setting.", ("no", "fp16", "bf16")
    )

    # Validation, test, logging
    select_on: str = option(
        "validation",
        "Split that selects the best model. The official program uses test, which makes its test results too good: "
        "use test for comparison only.",
        ("validation", "test"),
    )
    eval_every: int = option(200, "Episodes between validations (and checkpoints).")
    eval_episodes: int = option(1000, "Validation episodes.")
    test_episodes: int = option(10_000, "Test episodes per number of shots, after training; 0 skips the test.")
    inference_modes: list[str] = option(
        list(INFERENCE_MODES),
        f"Modes to test; any of {', '.join(INFERENCE_MODES)}.",
        aliases=["inference_mode"],
        unused_with="test_episodes=0",
    )
    log_every: int = option(20, "Episodes between lines of the log; rounded up to whole updates.")
    eval_batch_size: int = option(16, "Videos per forward pass when a split is encoded.")
    ddp_timeout: int = option(1800, "Seconds that a process waits for the others before the run fails.")
    num_workers: int = option(2, "Worker processes that read videos, per training process.")
    report_to: str = option(
        "auto", "Tracker: tensorboard, wandb, trackio, ..., all, none. auto uses tensorboard if it is installed."
    )
    project: str = option("clipfsar", "Name of the project in the tracker.", unused_with="report_to=none")
    run_name: str | None = option(
        None, "Name of the run in the tracker; by default the name of output_dir.", unused_with="report_to=none"
    )
    push_to_hub: str | None = option(None, "Upload the best model to this Hub repository at the end.")
    hub_private: bool = option(
        True, "Create a new Hub repository as private. An existing one is not changed.", needs="push_to_hub"
    )
    hub_revision: str | None = option(
        None, "Branch of the Hub repository to upload to; created if missing.", needs="push_to_hub"
    )
    print_config: bool = option(False, "Print the resolved settings and stop.")

    def __post_init__(self):
        check_field_types(self)
        self._check_values()
        if self.episodes % self.episodes_per_update:
            raise ValueError(
                f"--episodes {self.episodes} is not a multiple of --episodes_per_update {self.episodes_per_update}: "
                f"{self.episodes - self.episodes % self.episodes_per_update} would be."
            )
        if self.eval_every % self.episodes_per_update:
            raise ValueError(
                f"--eval_every {self.eval_every} is not a multiple of --episodes_per_update "
                f"{self.episodes_per_update}: validations and checkpoints come between updates. "
                f"{self.episodes_per_update * max(1, round(self.eval_every / self.episodes_per_update))} would be."
            )
        self._check_what_trains()
        unknown = sorted(set(self.inference_modes) - set(INFERENCE_MODES))
        if unknown:
            raise ValueError(f"--inference_modes {' '.join(unknown)}: there are {', '.join(INFERENCE_MODES)}.")

    def _check_values(self):
        for name, may_be_none in TRUTH_VALUES.items():
            value = getattr(self, name)
            is_truth = not isinstance(value, str) and value in (True, False)  # the text "false" would be true
            if not is_truth and not (may_be_none and value is None):
                raise ValueError(f"--{name} {value} must be True or False.")
        for name, (is_allowed, words) in CHECKS.items():
            given = getattr(self, name)
            for value in given if isinstance(given, list) else [given]:
                if value is not None and not is_allowed(value):
                    raise ValueError(f"--{name} {value} must be {words}.")
        for name in ("n_shot", "inference_modes"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is empty: give at least one.")
        decay = self.decay_episodes
        if decay and (len(decay) != 2 or decay[0] >= decay[1]):
            raise ValueError(f"--decay_episodes {decay}: give two ascending numbers, or none.")

    def _check_what_trains(self):
        chosen = {
            "--freeze_vision": self.freeze_vision,
            "--train_last_layers": self.train_last_layers is not None,
            "--lora_rank": self.lora_rank > 0,
        }
        chosen = [option for option, is_chosen in chosen.items() if is_chosen]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other: give only one of them.")
        if self.trains_on_features and self.query_augmentation != "none":
            raise ValueError(
                f"--query_augmentation {self.query_augmentation} changes pixels, but with --freeze_vision the training "
                "uses features that are encoded once: use --query_augmentation none, or --feature_draws 0."
            )

    def check_files(self):
        """Raises `ValueError` without a data set, and `FileNotFoundError` for a missing data set or model."""
        if self.dataset is None:
            raise ValueError("--dataset is missing: give a folder with videos or the id of a data set on the Hub.")
        remedy = "Give a folder with videos or the Hub id of a data set (OWNER/NAME); clipfsar prepare makes one."
        check_source("dataset", self.dataset, "dataset", remedy)
        check_path("class_texts", self.class_texts, is_local=True)
        self.model = find_model("model", self.model)

    @property
    def trains_on_features(self) -> bool:
        return self.freeze_vision and self.feature_draws > 0

    # Attributes that transformers' callbacks read. A step is an optimizer step.

    load_best_model_at_end = True
    metric_for_best_model = "accuracy"
    greater_is_better = True
    eval_strategy = save_strategy = logging_strategy = "steps"
    num_train_epochs = 1

    @property
    def max_steps(self) -> int:
        return self.episodes // self.episodes_per_update

    @property
    def eval_steps(self) -> int:
        return self.eval_every // self.episodes_per_update

    @property
    def logging_steps(self) -> int:
        return max(1, -(-self.log_every // self.episodes_per_update))

    save_steps = eval_steps

    def to_dict(self) -> dict:
        return asdict(self)

    def without_paths(self) -> dict:
        """The settings for a folder that is shared: names in place of paths of this machine."""
        paths = ("dataset", "model", "output_dir", "features_dir")
        return asdict(self) | {name: (path := getattr(self, name)) and public_name(path) for name in paths}

    def config_overrides(self) -> dict:
        """Settings for the model's configuration, without those that are None."""
        return {name: getattr(self, name) for name in CONFIG_SETTINGS if getattr(self, name) is not None}

    def processor_settings(self) -> dict:
        """Settings for the processor."""
        return {name: getattr(self, name) for name in PROCESSOR_SETTINGS}

    def resolved(self, model, processor) -> "EpisodicTrainingArguments":
        """A copy of these settings with those of the model and the processor filled in.

        Raises:
            ValueError: When a setting that is not its default differs from the model or the processor.
        """
        actual = {name: getattr(model.config, name) for name in CONFIG_SETTINGS}
        actual |= {name: getattr(processor, name) for name in PROCESSOR_SETTINGS}
        check_same_num_frames(model, processor)
        defaults = {item.name: item.default for item in fields(self)}
        for name, value in actual.items():
            given = getattr(self, name)
            if given not in (value, defaults[name]):
                owner = "processor" if name in PROCESSOR_SETTINGS else "model"
                raise ValueError(
                    f"The arguments say {name}={given!r}, but the {owner} has {value!r}: leave {name} out of the "
                    f"arguments, or load the {owner} with {name}={given!r}."
                )
        if self.class_texts is not None and processor.class_texts != read_class_texts(self.class_texts):
            raise ValueError(
                f"The arguments say class_texts={self.class_texts!r}, but the processor has other texts, or none: set "
                "processor.class_texts to these texts, or leave class_texts out of the arguments."
            )
        return replace(self, **actual)

    def check_same_run(self, saved: dict):
        """Raises `ValueError` when a setting that affects the training differs from the run to resume.

        Runs of version 0.1 may not have recorded settings of the model; these are not compared.
        """
        left_to_model = {name for name in CONFIG_SETTINGS if saved.get(name) is None}
        may_change = MAY_CHANGE_ON_RESUME | left_to_model
        if self.episodes > saved["episodes"]:  # the learning rate of the episodes before stays the same
            may_change |= {"episodes"}
        different = [
            f"--{name} {saved[name]} (now {value})"
            for name, value in asdict(self).items()
            if name in saved and saved[name] != value and name not in may_change
        ]
        if self.n_shot[0] != saved["n_shot"][0]:  # validation uses the first, and selects the best model
            different.append(f"--n_shot {saved['n_shot'][0]} ... (now {self.n_shot[0]} ...)")
        if different:
            raise ValueError(
                f"The run in {self.output_dir} was started with {', '.join(different)}: resume with the same settings "
                "or use another --output_dir."
            )


# The options that are true or false, and whether they may be None.
TRUTH_VALUES = {
    name: hint is not bool
    for name, hint in typing.get_type_hints(EpisodicTrainingArguments).items()
    if hint in (bool, bool | None)
}
_Rule = tuple[Callable[[float], bool], str]
_AT_LEAST_1: _Rule = (lambda value: value >= 1, "at least 1")
_0_OR_MORE: _Rule = (lambda value: value >= 0, "0 or more")
_FINITE: _Rule = (lambda value: 0 <= value < math.inf, "a finite number, 0 or more")
# What a value, or each value of a list, must be; None is not checked.
CHECKS: dict[str, _Rule] = {
    "n_way": (lambda value: value >= 2, "at least 2"),
    **dict.fromkeys(("train_n_shot", "train_n_query", "n_shot", "n_query"), _AT_LEAST_1),
    **dict.fromkeys(("episodes", "episodes_per_update", "episodes_per_forward"), _AT_LEAST_1),
    **dict.fromkeys(("num_frames", "sampling_rate"), _AT_LEAST_1),
    **dict.fromkeys(("eval_every", "eval_episodes", "log_every", "eval_batch_size", "ddp_timeout"), _AT_LEAST_1),
    **dict.fromkeys(("test_episodes", "warmup_episodes", "decay_episodes", "num_workers"), _0_OR_MORE),
    **dict.fromkeys(("feature_draws", "train_last_layers", "lora_rank", "seed", "temporal_num_layers"), _0_OR_MORE),
    **dict.fromkeys(("learning_rate", "warmup_learning_rate", "weight_decay", "max_grad_norm"), _FINITE),
    "video_text_loss_weight": _FINITE,
    "lora_alpha": (lambda value: 0 < value < math.inf, "a finite number greater than 0"),
    "seconds_per_video": (lambda value: value > 0, "greater than 0"),
}
# Settings that the model's configuration and the processor hold.
CONFIG_SETTINGS = (
    *("num_frames", "alignment", "support_pooling", "prototype_modulation"),
    *("temporal_num_layers", "video_text_loss_weight"),
)
PROCESSOR_SETTINGS = (
    *("num_frames", "frame_sampling", "sampling_rate", "preprocessing"),
    *("query_augmentation", "prompt_template", "decoder", "seconds_per_video"),
)
# Settings of paths, speed, logging and testing: they do not affect the training.
MAY_CHANGE_ON_RESUME = {
    *("output_dir", "resume", "decoder", "seconds_per_video", "dataset", "benchmark", "features_dir", "keep_adapter"),
    *("episodes_per_forward", "gradient_checkpointing", "torch_compile", "preprocess_on_device", "mixed_precision"),
    *("eval_batch_size", "num_workers", "ddp_timeout", "report_to", "project", "run_name", "print_config", "log_every"),
    *("push_to_hub", "hub_private", "hub_revision", "test_episodes", "inference_modes", "n_shot"),
}


DESCRIPTION = """Trains CLIP-FSAR on episodes.

    clipfsar train --dataset data/mine --output_dir runs/mine
    clipfsar train --resume runs/mine                                         # continue after a stop
    clipfsar train --resume runs/mine --episodes 4000                         # make the run longer
    clipfsar train --benchmark hmdb51 --print_config                          # every setting, resolved
    accelerate launch -m clipfsar train --benchmark ssv2_small                # several GPUs

Options override the benchmark's settings, which override the defaults. The number of processes changes only the speed,
not the result.
"""


def parse_arguments(command_line: Sequence[str] | None = None, prog: str | None = None) -> EpisodicTrainingArguments:
    """The settings of a command line: its options override the benchmark's preset, which overrides the defaults.

    With `--resume RUN`, the options override the settings of that run instead.
    """
    command_line = list(sys.argv[1:] if command_line is None else command_line)
    run = _run_to_resume(command_line)
    if run is not None:
        parser = make_parser(EpisodicTrainingArguments, DESCRIPTION, prog)
        names = {part.partition("=")[0].replace("-", "_").lstrip("_") for part in command_line if part.startswith("--")}
        for name in ("output_dir", "benchmark"):  # they would choose another run, or other settings
            if name in names:
                parser.error(f"--resume {run} already says the folder and the settings: leave --{name} out")
        try:
            defaults = settings_of_run(Path(run)) | {"output_dir": run, "print_config": False}
        except (ValueError, OSError) as error:
            parser.error(str(error))
        return parse_options(EpisodicTrainingArguments, DESCRIPTION, command_line, prog, defaults)
    benchmark, defaults = benchmark_on(command_line), {}
    if benchmark:
        known = {item.name for item in fields(EpisodicTrainingArguments)}
        defaults = {name: value for name, value in PRESETS[benchmark].as_defaults().items() if name in known}
        defaults |= {"dataset": dataset_folder(benchmark), "output_dir": f"runs/{benchmark}"}
    return parse_options(EpisodicTrainingArguments, DESCRIPTION, command_line, prog, defaults)


def _run_to_resume(command_line: list[str]) -> str | None:
    """The folder after `--resume`, which becomes a plain `--resume`; None if no folder follows."""
    for position, part in enumerate(command_line):
        name, equals, value = part.partition("=")
        if name == "--resume":
            given = [value] if equals else command_line[position + 1 : position + 2]
            if given and not given[0].startswith("--") and given[0].lower() not in TRUTH:
                command_line[position : position + (1 if equals else 2)] = ["--resume"]
                return given[0]
    return None


def settings_of_run(folder: Path) -> dict:
    """The settings that the run in `folder` was started with.

    Raises:
        FileNotFoundError: For a folder without a checkpoint.
        ValueError: For a damaged one.
    """
    places = [folder / state / "progress.json" for state in ("state", "state.old")]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"--resume {folder}: this folder holds no checkpoint. To start a run there, give its options and "
            f"--output_dir {folder} --resume."
        )
    saved = read_json(path, "put back a copy of it").get("arguments")
    if not isinstance(saved, dict):
        raise ValueError(f"{path} is damaged (it holds no settings): put back a copy of it.")
    known = {item.name for item in fields(EpisodicTrainingArguments)}
    return {name: value for name, value in saved.items() if name in known}


__all__ = ["EpisodicTrainingArguments", "parse_arguments", "settings_of_run"]
