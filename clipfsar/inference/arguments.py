"""Options of `clipfsar predict`, `review` and `export`. Imports nothing heavy, so that `--help` is fast."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from choices_clipfsar import DTYPES, EXPORT_FORMATS, INFERENCE_MODES, OUTPUT_FORMATS, SECONDS_PER_VIDEO, UNKNOWN_LABEL
from clipfsar.data.arguments import LABEL_FPS_HELP
from clipfsar.names import check_device, check_source, find_model
from clipfsar.options import REQUIRED, check_no_overwriting, option
from paths_clipfsar import check_output_folder, check_path, check_picture_name, local_path
from spans_clipfsar import split_span, wrong_times

SUPPORT_SET_FILE = "support_set.json"  # SUPPORT_SET_NAME of a module that imports torch
DTYPE_CHOICES = ("auto", *DTYPES)
CLASS_TEXTS_HELP = (
    "JSON file of texts in place of the prompt, {class name: text or list of texts}; several texts of a class are "
    'averaged. "*" is for all other classes, with {} for the name.'
)
SUPPORT_SET_HELP = (
    "The classes: a folder EXAMPLES/CLASS/clips, a saved support set (folder or Hub id), or labels: of Label Studio "
    "(.json), of CVAT (.xml), or a table (.csv, .tsv, .jsonl)."
)
SUPPORT_SET_REMEDY = "Give a folder EXAMPLES/CLASS/clips, a saved support set, or a file of labels."
VIDEO_ROOT_HELP = "Folder of the videos in a file of labels. Default: the folder of the file."
DTYPE_HELP = "Precision of the model. auto: as saved. int8 quantizes the visual tower's linear layers, on a CPU."


_FORMATS_BY_ENDING = {"csv": "csv", "json": "json", "jsonl": "jsonl", "xml": "cvat"}


def _check_ending(output: str | None, known: Collection[str]) -> None:
    """Raises `ValueError` for a file of results whose ending promises another format, such as .xlsx."""
    ending = Path(output or "").suffix.lower().removeprefix(".")
    if ending and ending not in (*known, "txt"):
        endings = ", ".join(f".{one}" for one in known)
        raise ValueError(
            f"--output {output}: results are not written as .{ending}. Use {endings} or .txt, or give --format."
        )


def _saved(folder: str | None) -> str | None:
    """The file of a support set that is saved in a folder."""
    return folder and str(Path(folder) / SUPPORT_SET_FILE)


@dataclass
class PredictArguments:
    """Classifies videos by a few example clips per class. The folder EXAMPLES holds one folder of clips per class.

        clipfsar predict --model runs/mine/best --support_set EXAMPLES --query new.mp4 folder_of_videos
        clipfsar predict --model runs/mine/best --support_set EXAMPLES --save_support_set my_classes  # encode once, ...
        clipfsar predict --model runs/mine/best --support_set my_classes --query new.mp4              # ... ask often
        clipfsar predict --model runs/mine/best --labels "jumping, running" --query new.mp4       # class names only
        clipfsar predict --model runs/mine/best --support_set EXAMPLES --query new.mp4 --pictures why # explanations
        clipfsar predict --model runs/mine/best --support_set EXAMPLES --background NONE --query new.mp4 # or none
        clipfsar predict --model runs/mine/best --support_set EXAMPLES --query long.mp4 --window_seconds 3 \\
            --stride_seconds 1 --pictures timelines --format csv --output timeline.csv            # what, and when
        clipfsar predict --model runs/mine/best --support_set labels.json --video_root VIDEOS --query long.mp4 \\
            --window_seconds 3 --format label_studio --output tasks.json    # labels in, pre-annotations out

    A clip is a video file or a folder of image files. --window_seconds classifies every window of a long video, which
    is decoded once. A plain CLIP as --model works without training, by its frame features alone.

    Exit codes: 0 when all queries were answered; 1 for an error; 2 for a usage error; 3 when some queries could not be
    read (the output marks them).
    """

    model: str = option(REQUIRED, "Folder or Hub id of a CLIP-FSAR model, or of a plain CLIP (untrained).")
    support_set: str | None = option(None, SUPPORT_SET_HELP, aliases=["support"])
    video_root: str | None = option(None, VIDEO_ROOT_HELP, needs="support_set")
    label_fps: float | None = option(None, LABEL_FPS_HELP, needs="support_set")
    labels: list[str] | None = option(
        None,
        "Class names only (zero-shot), instead of --support_set: several values, or one value with commas.",
    )
    labels_file: str | None = option(None, "Text file with one class name per line, instead of --labels.")
    query: list[str] = option(
        [],
        "Videos to classify: files, folders, addresses of files, or parts of videos (long.mp4#t=12.5,15, in seconds).",
        reads_addresses=True,
    )
    inference_mode: str | None = option(
        None,
        "few_shot: by the clips; zero_shot: by the class names; ensemble: by both. Default: the model's.",
        INFERENCE_MODES,
        aliases=["inference_modes"],
        needs="query",
    )
    top_k: int = option(
        5,
        "Classes shown per video.",
        needs="query",
        unused_with="window_seconds and format=csv or window_seconds and format=json",  # these list all classes
    )
    class_texts: str | None = option(None, CLASS_TEXTS_HELP)
    seconds_per_video: float = option(
        SECONDS_PER_VIDEO, "Time limit for reading a video. A slower video counts as unreadable."
    )
    detect_unknown: bool = option(False, f"Also score {UNKNOWN_LABEL!r}.", needs="query")
    background: list[str] = option(
        [],
        "Clips that show none of the classes, such as an empty scene: files or folders. Sets --detect_unknown.",
        unused_with="labels or labels_file",
    )
    unknown_error_rate: float | None = option(
        None,
        "Largest chance that a video of the classes counts as unknown, such as 0.1. Sets --detect_unknown.",
        unused_with="labels or labels_file",
    )
    window_seconds: float | None = option(
        None, "Classify windows of this length instead of whole videos.", needs="query"
    )
    stride_seconds: float | None = option(
        None,
        "Time from the start of one window to the start of the next; default: half a window.",
        needs="window_seconds",
    )
    fps: float | None = option(
        None,
        "Frames per second of videos without a frame rate, such as folders of frames.",
        needs="window_seconds or format=label_studio or format=cvat or output=*.xml",
    )
    format: str = option(
        None,
        "Format of the output. jsonl, label_studio and cvat are labels, for tools and clipfsar prepare. Default: csv, "
        "json or jsonl if --output ends in it, cvat for .xml, otherwise table.",
        OUTPUT_FORMATS,
        needs="query",
    )
    output: str | None = option(
        None,
        "File for the output; default: the terminal. For cvat also a folder, for a file per video.",
        needs="query",
    )
    video_address: str | None = option(
        None,
        "Address of a video for --format label_studio, with {} for its file name, such as "
        "/data/local-files/?d=clips/{}. Default: the query.",
        needs="format=label_studio",
    )
    pictures: str | None = option(
        None,
        "Folder for one picture per video: an explanation of the answer, or with windows the timeline. Replaces the "
        "pictures of earlier runs that have the same names.",
        needs="query",
    )
    save_support_set: str | None = option(
        None,
        "Folder to save the encoded classes in; later runs read it with --support_set.",
        aliases=["save_support"],
    )
    skip_unreadable: bool = option(False, "Leave out unreadable example clips, with a warning.", needs="support_set")
    batch_size: int = option(
        8,
        "Videos per forward pass.",
        unused_with="window_seconds and labels or window_seconds and labels_file",  # no whole videos to encode
    )
    device: str | None = option(None, "cpu, cuda, ...; default: a GPU if available.")
    dtype: str = option("float32", DTYPE_HELP, DTYPE_CHOICES)

    def __post_init__(self):
        if isinstance(self.labels, str):
            self.labels = [self.labels]
        check_device(self.device)
        if self.format is None:
            ending = Path(self.output or "").suffix.lower().removeprefix(".")
            self.format = _FORMATS_BY_ENDING.get(ending, "table")
            _check_ending(self.output, _FORMATS_BY_ENDING)
        if self.video_address is not None and (self.format != "label_studio" or "{}" not in self.video_address):
            raise ValueError(
                f"--video_address {self.video_address} is for --format label_studio, with {{}} for a video's file name."
            )
        if self.labels is not None and self.labels_file is not None:
            raise ValueError("Give --labels or --labels_file, not both.")
        if self.unknown_error_rate is not None and not 0 < self.unknown_error_rate < 1:
            raise ValueError(f"--unknown_error_rate {self.unknown_error_rate} must be between 0 and 1.")
        has_labels = self.labels is not None or self.labels_file is not None
        if self.support_set is not None and has_labels:
            raise ValueError("Give --support_set or --labels, not both: a support set has its class names already.")
        if not self.query and not self.save_support_set:
            raise ValueError(
                "There is nothing to do: give videos as --query, or save the classes with --save_support_set."
            )
        if has_labels:
            for name in ("pictures", "background", "unknown_error_rate", "detect_unknown", "save_support_set"):
                if getattr(self, name) and not (name == "pictures" and self.window_seconds):
                    raise ValueError(f"--{name} needs example clips: give --support_set instead of --labels.")
        self.detect_unknown = self.detect_unknown or bool(self.background) or self.unknown_error_rate is not None
        if self.dtype == "int8" and self.device not in (None, "cpu"):
            raise ValueError(f"--dtype int8 is for CPUs: leave --device {self.device} out, or use --dtype bfloat16.")
        for name in ("window_seconds", "stride_seconds", "label_fps", "fps"):
            if getattr(self, name) == math.inf:
                raise ValueError(f"--{name} {getattr(self, name)} must be a finite number.")
        for name in ("window_seconds", "stride_seconds", "fps", "label_fps", "seconds_per_video"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"--{name} {getattr(self, name)} must be greater than 0.")
        for name in ("top_k", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1.")
        reads = {"query": [split_span(query)[0] for query in self.query], "background": self.background}
        reads |= {name: getattr(self, name) for name in ("support_set", "labels_file", "class_texts")}
        check_no_overwriting({"output": self.output, "save_support_set": _saved(self.save_support_set)}, reads)

    def check_files(self):
        """Raises `FileNotFoundError` for missing files. Missing queries raise it only if all of them are missing."""
        check_path("model", self.model)  # paths of this machine first, the Hub last
        check_path("labels_file", self.labels_file, is_local=True)
        check_path("class_texts", self.class_texts, is_local=True)
        check_path("video_root", self.video_root, is_local=True)
        for name in self.background:
            check_path("background", name, is_local=True)
        check_source("support_set", self.support_set, remedy=SUPPORT_SET_REMEDY)
        for name in ("pictures", "save_support_set"):
            check_output_folder(name, getattr(self, name))
        for query in self.query:
            reason = wrong_times(query)
            if reason is not None:
                raise ValueError(f"--query {query}: {reason}.")
        paths = [split_span(query)[0] for query in self.query]
        if paths and not any("://" in path or os.path.exists(local_path(path)) for path in paths):
            raise FileNotFoundError(f"--query {' '.join(self.query)}: there is no such file or folder.")
        self.model = find_model("model", self.model)


@dataclass
class ReviewArguments:
    """Judges a support set by leaving its clips out: expected accuracy, suspect labels, doubles, similar classes.

        clipfsar review --model runs/mine/best --support_set EXAMPLES --picture review.png
        clipfsar review --model runs/mine/best --support_set my_classes --format json --output review.json
        clipfsar review --model runs/mine/best --support_set EXAMPLES --sources sources.csv

    Clips that were cut from one video are left out together. Names tell which they are for UCF101, HMDB51 and Kinetics,
    and if they end in "part 2" or "12.5-15.0". Otherwise give a table, with the columns clip and source, and class if
    clips of different classes have the same name.
    """

    model: str = option(REQUIRED, "Folder or Hub id of a CLIP-FSAR model, or of a plain CLIP (untrained).")
    support_set: str = option(REQUIRED, SUPPORT_SET_HELP, aliases=["support"])
    video_root: str | None = option(None, VIDEO_ROOT_HELP)
    label_fps: float | None = option(None, LABEL_FPS_HELP)
    inference_mode: str | None = option(
        None,
        "few_shot: by the clips; zero_shot: by the class names; ensemble: by both. Default: the model's.",
        INFERENCE_MODES,
        aliases=["inference_modes"],
    )
    sources: str | None = option(
        None, "CSV or JSON Lines file with the columns clip and source; clips that it does not list count separately."
    )
    format: str = option(
        None, "Format of the output; default: json if --output ends in it, otherwise table.", ("table", "json")
    )
    output: str | None = option(None, "File for the output; default: the terminal.")
    picture: str | None = option(None, "File for a picture (.png, .pdf, .svg): confusion, and film strips of clips.")
    save_support_set: str | None = option(
        None, "Folder to save the encoded classes in; later runs read it with --support_set."
    )
    class_texts: str | None = option(None, CLASS_TEXTS_HELP)
    skip_unreadable: bool = option(False, "Leave out unreadable example clips, with a warning.")
    batch_size: int = option(8, "Videos per forward pass.")
    device: str | None = option(None, "cpu, cuda, ...; default: a GPU if available.")
    dtype: str = option("float32", DTYPE_HELP, DTYPE_CHOICES)

    def __post_init__(self):
        check_device(self.device)
        if self.format is None:
            self.format = "json" if Path(self.output or "").suffix.lower() == ".json" else "table"
            _check_ending(self.output, ("json",))
        if self.batch_size < 1:
            raise ValueError(f"--batch_size {self.batch_size} must be at least 1.")
        if self.label_fps is not None and not 0 < self.label_fps < math.inf:
            raise ValueError(f"--label_fps {self.label_fps} must be greater than 0 and finite.")
        check_picture_name(self.picture, "picture")
        writes = {"output": self.output, "picture": self.picture, "save_support_set": _saved(self.save_support_set)}
        check_no_overwriting(writes, {name: getattr(self, name) for name in ("support_set", "sources", "class_texts")})

    def check_files(self):
        """Raises `FileNotFoundError` for missing files."""
        check_path("model", self.model)  # paths of this machine first, the Hub last
        check_path("sources", self.sources, is_local=True)
        check_output_folder("save_support_set", self.save_support_set)
        check_path("class_texts", self.class_texts, is_local=True)
        check_path("video_root", self.video_root, is_local=True)
        check_source("support_set", self.support_set, remedy=SUPPORT_SET_REMEDY)
        self.model = find_model("model", self.model)


@dataclass
class ExportArguments:
    """Exports the query path (frames and classes in, logits out) for programs without this library or Python.

        clipfsar export --model runs/mine/best --output_dir exported                            # .onnx, .pt2
        clipfsar export --model runs/mine/best --output_dir exported --support_set my_classes   # and classes
        clipfsar export --model runs/mine/best --output_dir exported --support_set more --only_classes true

    The classes are inputs, so other classes need no new export, and any number of classes works. classes.npz holds the
    classes that you enrolled with `clipfsar predict --save_support_set my_classes`. query_classifier.json describes the
    inputs, and how to turn frames into pixel values. Every exported file is loaded again and compared with the model on
    random frames.
    """

    model: str = option(REQUIRED, "Folder or Hub id of a CLIP-FSAR model, or of a plain CLIP (untrained).")
    output_dir: str = option(REQUIRED, "Folder for the files.")
    formats: list[str] = option(
        list(EXPORT_FORMATS),
        f"Any of {', '.join(EXPORT_FORMATS)}: ONNX, and PyTorch's format (torch.export).",
        unused_with="only_classes",
    )
    inference_mode: str | None = option(
        None,
        "few_shot: by the clips; zero_shot: by the names; ensemble: by both. Default: the model's.",
        INFERENCE_MODES,
        aliases=["inference_modes"],
        unused_with="only_classes",
    )
    support_set: str | None = option(None, "Saved support set (folder or Hub id) to write to classes.npz.")
    only_classes: bool = option(False, "Write only classes.npz, for a model that is already exported in output_dir.")

    def __post_init__(self):
        unknown = sorted(set(self.formats) - set(EXPORT_FORMATS))
        if unknown:
            raise ValueError(f"--formats {' '.join(unknown)}: there are {', '.join(EXPORT_FORMATS)}.")
        if self.only_classes and self.support_set is None:
            raise ValueError("--only_classes writes the classes of a support set: give --support_set.")

    def check_files(self):
        """Raises `FileNotFoundError` for a missing support set or model."""
        check_source("support_set", self.support_set, remedy="clipfsar predict --save_support_set makes one.")
        self.model = find_model("model", self.model)


__all__ = [
    *("CLASS_TEXTS_HELP", "DTYPE_CHOICES", "DTYPE_HELP", "SUPPORT_SET_FILE", "SUPPORT_SET_REMEDY"),
    *("ExportArguments", "PredictArguments", "ReviewArguments"),
]
