"""Options of `clipfsar predict` and `clipfsar export`. Imports nothing heavy, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path

from choices_clipfsar import DTYPES, EXPORT_FORMATS, INFERENCE_MODES, OUTPUT_FORMATS, SECONDS_PER_VIDEO, UNKNOWN_LABEL
from clipfsar.names import check_device, check_source, find_model
from clipfsar.options import REQUIRED, option
from paths_clipfsar import check_path

DTYPE_CHOICES = ("auto", *DTYPES)
DTYPE_HELP = "Precision of the model; auto: as saved; int8: of the visual tower's linear layers, on a CPU."


@dataclass
class PredictArguments:
    """Classifies videos by a few example clips per class. The folder EXAMPLES holds a folder of clips for every class.

        clipfsar predict --model runs/mine/best --support_set EXAMPLES --query new.mp4 folder_of_videos
        clipfsar predict --model runs/mine/best --support_set EXAMPLES --save_support_set my_classes  # encode once, ...
        clipfsar predict --model runs/mine/best --support_set my_classes --query new.mp4              # ... ask often
        clipfsar predict --model runs/mine/best --labels "jumping, running" --query new.mp4       # names alone
        clipfsar predict --model runs/mine/best --support_set EXAMPLES --query new.mp4 --pictures why # why it says so
        clipfsar predict --model runs/mine/best --support_set EXAMPLES --query long.mp4 --window_seconds 3 \\
            --stride_seconds 1 --pictures timelines --format csv --output timeline.csv            # what, and when

    A clip is a video file or a folder of image files. With --window_seconds a long video is decoded once, and every
    window of it is classified. Exit code: 0 when all queries were answered, 3 when some could not be read (they are
    marked in the output), 1 when nothing could be done, 2 for a usage error. A plain CLIP as --model works without
    training, by its frame features alone.
    """

    model: str = option(REQUIRED, "Folder or Hub id of a CLIP-FSAR model, or of a plain CLIP (untrained).")
    support_set: str | None = option(
        None,
        "The classes: a folder EXAMPLES/CLASS/clips, or a support set saved before, also on the Hub.",
        aliases=["support"],
    )
    labels: list[str] | None = option(
        None,
        "Class names alone (zero-shot), instead of --support_set: several values, or one with commas between them.",
    )
    labels_file: str | None = option(None, "Text file of class names, a name per line, instead of --labels.")
    query: list[str] = option([], "Videos to classify: files, or folders of them.")
    inference_mode: str | None = option(
        None,
        "few_shot: by the clips; zero_shot: by the class names; ensemble: by both. Default: the model's.",
        INFERENCE_MODES,
        aliases=["inference_modes"],
    )
    top_k: int = option(5, "Classes shown per video.")
    seconds_per_video: float = option(SECONDS_PER_VIDEO, "Time limit for reading a video; then it is unreadable.")
    detect_unknown: bool = option(False, f"Also score {UNKNOWN_LABEL!r}.")
    window_seconds: float | None = option(None, "Classify windows of this length instead of whole videos.")
    stride_seconds: float | None = option(
        None, "From the start of a window to that of the next; default: half a window."
    )
    fps: float | None = option(None, "Frames per second of videos that do not say, such as folders of frames.")
    format: str | None = option(
        None, "Format of the output; default: by the ending of --output, .csv or .json, else table.", OUTPUT_FORMATS
    )
    output: str | None = option(None, "File for the output; default: the terminal.")
    pictures: str | None = option(None, "Folder for a picture per video: why the answer, or with windows the timeline.")
    save_support_set: str | None = option(
        None,
        "Folder to keep the encoded classes in; --support_set takes it the next time.",
        aliases=["save_support"],
    )
    skip_unreadable: bool = option(False, "Leave unreadable example clips out, with a warning.")
    batch_size: int = option(8, "Videos per forward.")
    device: str | None = option(None, "cpu, cuda, ...; default: a GPU if there is one.")
    dtype: str = option("float32", DTYPE_HELP, DTYPE_CHOICES)

    def __post_init__(self):
        if isinstance(self.labels, str):
            self.labels = [self.labels]
        check_device(self.device)
        if self.format is None:
            ending = Path(self.output or "").suffix.lower().removeprefix(".")
            self.format = ending if ending in OUTPUT_FORMATS else "table"
        if self.labels is not None and self.labels_file is not None:
            raise ValueError("Give --labels or --labels_file, not both.")
        has_labels = self.labels is not None or self.labels_file is not None
        if self.support_set is not None and has_labels:
            raise ValueError("Give --support_set or --labels, not both: a support set has its class names already.")
        if not self.query and not self.save_support_set:
            raise ValueError(
                "There is nothing to do: give videos as --query, or keep the classes with --save_support_set."
            )
        if has_labels:
            for name in ("pictures", "detect_unknown", "save_support_set"):
                if getattr(self, name) and not (name == "pictures" and self.window_seconds):
                    raise ValueError(f"--{name} needs example clips: give --support_set instead of --labels.")
        if self.dtype == "int8" and self.device not in (None, "cpu"):
            raise ValueError(f"--dtype int8 is for CPUs: leave --device {self.device} out, or use --dtype bfloat16.")
        if self.window_seconds is None and self.stride_seconds is not None:
            raise ValueError("--stride_seconds needs --window_seconds.")
        for name in ("window_seconds", "stride_seconds", "fps", "seconds_per_video"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"--{name} {getattr(self, name)} must be greater than 0.")
        for name in ("top_k", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1.")

    def check_files(self):
        """Raises `FileNotFoundError` for what is not there. A query among others is marked in the output instead."""
        check_path("model", self.model)  # what is no path of this machine is asked of the Hub last
        check_path("labels_file", self.labels_file, is_local=True)
        check_source(
            "support_set", self.support_set, remedy="Give a folder EXAMPLES/CLASS/clips, or a saved support set."
        )
        if self.query and not any("://" in query or Path(query).expanduser().exists() for query in self.query):
            raise FileNotFoundError(f"--query {' '.join(self.query)}: there is no such file or folder.")
        self.model = find_model("model", self.model)


@dataclass
class ExportArguments:
    """Exports the query path, frames and classes in, logits out, for programs without this library or Python.

        clipfsar export --model runs/mine/best --output_dir exported                            # .onnx, .pt2
        clipfsar export --model runs/mine/best --output_dir exported --support_set my_classes   # and classes
        clipfsar export --model runs/mine/best --output_dir exported --support_set more --only_classes true

    The classes are inputs: classes enrolled with `clipfsar predict --save_support_set my_classes` are written to
    classes.npz. Any number of classes fits, and other classes need no new export. query_classifier.json describes the
    inputs and how frames become pixel values. Every file is loaded again and compared with the model on random frames
    before it counts.
    """

    model: str = option(REQUIRED, "Folder or Hub id of a CLIP-FSAR model, or of a plain CLIP (untrained).")
    output_dir: str = option(REQUIRED, "Folder for the files.")
    formats: list[str] = option(
        list(EXPORT_FORMATS), f"Any of {', '.join(EXPORT_FORMATS)}: ONNX, and PyTorch's own (torch.export)."
    )
    inference_mode: str | None = option(
        None,
        "few_shot: by the clips; zero_shot: by the names; ensemble: by both. Default: the model's.",
        INFERENCE_MODES,
        aliases=["inference_modes"],
    )
    support_set: str | None = option(None, "Saved support set (folder or Hub id) whose classes go to classes.npz.")
    only_classes: bool = option(False, "Write classes.npz alone, for a model that lies exported in output_dir.")

    def __post_init__(self):
        unknown = sorted(set(self.formats) - set(EXPORT_FORMATS))
        if unknown:
            raise ValueError(f"--formats {' '.join(unknown)}: there are {', '.join(EXPORT_FORMATS)}.")
        if self.only_classes and self.support_set is None:
            raise ValueError("--only_classes writes the classes of a support set: give --support_set.")

    def check_files(self):
        """Raises `FileNotFoundError` for what is not there."""
        check_source("support_set", self.support_set, remedy="clipfsar predict --save_support_set makes one.")
        self.model = find_model("model", self.model)


__all__ = ["DTYPE_CHOICES", "DTYPE_HELP", "ExportArguments", "PredictArguments"]
