"""Options of `clipfsar predict` and `clipfsar export`. Imports nothing heavy, so that `--help` answers at once."""

from dataclasses import dataclass

from choices_clipfsar import DTYPES, EXPORT_FORMATS, INFERENCE_MODES, OUTPUT_FORMATS, SECONDS_PER_VIDEO, UNKNOWN_LABEL
from clipfsar.options import REQUIRED, option
from paths_clipfsar import check_path


@dataclass
class PredictArguments:
    """Classifies videos by a few example clips per class. The folder EXAMPLES holds a folder of clips for every class.

        clipfsar predict --model runs/mine/best --support EXAMPLES --query new.mp4 folder_of_videos
        clipfsar predict --model runs/mine/best --support EXAMPLES --save_support my_classes      # encode once, ...
        clipfsar predict --model runs/mine/best --support my_classes --query new.mp4              # ... ask often
        clipfsar predict --model runs/mine/best --labels "jumping, running" --query new.mp4       # names alone
        clipfsar predict --model runs/mine/best --support EXAMPLES --query new.mp4 --pictures why # why it says so
        clipfsar predict --model runs/mine/best --support EXAMPLES --query long.mp4 --window_seconds 3 \\
            --stride_seconds 1 --pictures timelines --format csv --output timeline.csv            # what, and when

    A clip is a video file or a folder of image files. With --window_seconds a long video is decoded once, and every
    window of it is classified. Exit code: 0 when all queries were answered, 3 when some could not be read (they are
    marked in the output), 1 when nothing could be done, 2 for a usage error. A plain CLIP as --model works without
    training, by its frame features alone.
    """

    model: str = option(REQUIRED, "Folder or Hub id of a CLIP-FSAR model, or of a plain CLIP (untrained).")
    support: str | None = option(
        None, "The classes: a folder EXAMPLES/CLASS/clips, or a support set saved before, also on the Hub."
    )
    labels: list[str] | None = option(
        None,
        "Class names alone, instead of --support (zero-shot): several values, or one with commas between the names.",
    )
    labels_file: str | None = option(None, "Text file of class names, a name per line, instead of --labels.")
    query: list[str] = option([], "Videos to classify: files, or folders of them.")
    inference_mode: str | None = option(
        None,
        "few_shot: by the clips; zero_shot: by the class names; ensemble: by both. Default: the model's.",
        INFERENCE_MODES,
    )
    top_k: int = option(5, "Classes shown per video.")
    seconds_per_video: float = option(SECONDS_PER_VIDEO, "Time limit for reading a video; then it is unreadable.")
    detect_unknown: bool = option(False, f"Also score {UNKNOWN_LABEL!r}.")
    window_seconds: float | None = option(None, "Classify windows of this length instead of whole videos.")
    stride_seconds: float | None = option(
        None, "From the start of a window to that of the next; default: half a window."
    )
    fps: float | None = option(None, "Frames per second of videos that do not say, such as folders of frames.")
    format: str = option("table", "Format of the output.", OUTPUT_FORMATS)
    output: str | None = option(None, "File for the output; default: the terminal.")
    pictures: str | None = option(None, "Folder for a picture per video: why the answer, or with windows the timeline.")
    save_support: str | None = option(None, "Folder to keep the encoded classes in; --support takes it the next time.")
    skip_unreadable: bool = option(False, "Leave unreadable example clips out, with a warning.")
    batch_size: int = option(8, "Videos per forward.")
    device: str | None = option(None, "cpu, cuda, ...; default: a GPU if there is one.")
    dtype: str = option(
        "auto",
        "Precision; auto: as saved; int8 quantizes the linear layers of the visual tower, on a CPU.",
        ("auto", *DTYPES),
    )

    def __post_init__(self):
        if isinstance(self.labels, str):
            self.labels = [self.labels]
        if self.labels is not None and self.labels_file is not None:
            raise ValueError("Give --labels or --labels_file, not both.")
        has_labels = self.labels is not None or self.labels_file is not None
        if self.support is not None and has_labels:
            raise ValueError("Give --support or --labels, not both: a support set has its class names already.")
        if not self.query and not self.save_support:
            raise ValueError("There is nothing to do: give videos as --query, or keep the classes with --save_support.")
        if has_labels:
            for name in ("pictures", "detect_unknown", "save_support"):
                if getattr(self, name) and not (name == "pictures" and self.window_seconds):
                    raise ValueError(f"--{name} needs example clips: give --support instead of --labels.")
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
        """Raises `FileNotFoundError` for a local path that is not there; a query is marked in the output instead."""
        check_path("model", self.model)
        check_path("labels_file", self.labels_file, is_local=True)
        check_path("support", self.support, "Give a folder EXAMPLES/CLASS/clips, or a saved support set.")


@dataclass
class ExportArguments:
    """Exports the query path, frames and classes in, logits out, for programs without this library or Python.

        clipfsar export --model runs/mine/best --output_dir exported                            # .onnx, .pt2
        clipfsar export --model runs/mine/best --output_dir exported --support_set my_classes   # and classes
        clipfsar export --model runs/mine/best --output_dir exported --support_set more --only_classes true

    The classes are inputs: classes enrolled with `clipfsar predict --save_support my_classes` are written to
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
        """Raises `FileNotFoundError` for a local path that is not there."""
        check_path("model", self.model)
        check_path("support_set", self.support_set, "clipfsar predict --save_support makes one.")


__all__ = ["ExportArguments", "PredictArguments"]
