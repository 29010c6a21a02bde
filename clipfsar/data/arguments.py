"""Options of `clipfsar prepare`. Imports only light modules, so that `--help` and usage errors are fast."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from choices_clipfsar import DECODERS, FRAME_STORES, PREPROCESSINGS, SECONDS_PER_VIDEO
from clipfsar.names import check_source, find_model
from clipfsar.options import check_least, option, parse_options
from clipfsar.presets import PRESETS, benchmark_on, dataset_folder
from clipfsar.shards import shard_of
from paths_clipfsar import check_path

SPLITS = ("train", "validation", "test")
DEFAULT_CLASS_SPLIT = (0.64, 0.12, 0.24)  # as in Kinetics-100 and SSv2
FRAME_SIZE = 224  # input size of the models of the presets
TABLE_SUFFIXES = (".csv", ".jsonl", ".tsv")
_A_TABLE = " or ".join(f"source=*{suffix}" for suffix in TABLE_SUFFIXES)  # conditions of options
LABEL_SUFFIXES = (".json", ".xml")  # Label Studio, CVAT
LABEL_FPS_HELP = (
    "Rate at which Label Studio counted frames: frameRate of its <Video> tag, 24 unless set there. Default: the field "
    "fps of a task, then the video's own rate."
)


@dataclass
class PrepareArguments:
    """Makes a data set for training from your videos, and finds bad videos before training does.

        clipfsar prepare --benchmark hmdb51 --video_root VIDEOS --frame_store jpeg    # downloads the official lists
        clipfsar prepare --benchmark hmdb51 --official_splits LISTS --video_root VIDEOS --frame_store jpeg
        clipfsar prepare --source FOLDER --frame_store jpeg --model openai/clip-vit-base-patch16
        clipfsar prepare --source FOLDER          # SPLIT/CLASS/VIDEO; or CLASS/VIDEO, split by classes
        clipfsar prepare --source clips.csv       # columns path, label and, optionally, split
        clipfsar prepare --source labels.json --video_root VIDEOS       # Label Studio; CVAT's XML works, too
        clipfsar prepare --source HUB_ID --class_split 64 12 24
        clipfsar prepare --source FOLDER --shard 0 8    # one of eight tasks; then once without --shard

    Every video is read once, in parallel. Videos that cannot be read are listed in bad_videos.csv. With --frame_store
    the data set keeps the resized frames; training reads them many times faster than the video files. To resume an
    interrupted preparation, run the same command again.
    """

    # From where
    source: str | None = option(
        None,
        "Folder of videos (SPLIT/CLASS/VIDEO or CLASS/VIDEO), table (.csv, .tsv, .jsonl), labels of Label Studio "
        "(.json) or CVAT (.xml), saved data set, or Hub id.",
    )
    official_splits: str | None = option(
        None,
        "Folder of train_few_shot.txt, val_few_shot.txt, test_few_shot.txt, or of TRX's and CLIP-MEI's "
        "trainlist07.txt, ..., or meta_train.txt, ... (a line CLASS/VIDEO each). Default with a --benchmark of the "
        "paper: the official ones, downloaded once.",
    )
    video_root: str | None = option(
        None,
        "Folder of the videos in official lists, a table, or labels of a tool.",
    )
    class_names_file: str | None = option(
        None,
        "YAML file of the official program with the class names; for TRX's lists a JSON file. Default: with downloaded "
        "lists the benchmark's own, otherwise names of the videos' folders.",
        unused_with="source",
    )
    validation_class_names: str | None = option(
        None,
        "File of validation class names, one per line in the order of the ids, or Something-Something's JSON file of "
        "labels. Default: names of the videos' folders; with --benchmark, numbers where there are none.",
        unused_with="source",
    )
    number_classes: bool = option(
        False,
        "Number the classes of official lists that nothing names, e.g. EPIC-Kitchens.",
        unused_with="source",
    )
    splits: list[str] = option(list(SPLITS), "Official lists to read.", SPLITS, unused_with="source")
    benchmark: str | None = option(
        None,
        "Compare the numbers of classes and videos with the published ones. Also sets preprocessing and output_dir.",
        PRESETS,
    )
    path_column: str = option("path", "Column of the paths in a table.", needs=_A_TABLE)
    split_column: str = option("split", "Column of the splits in a table (optional).", needs=_A_TABLE)
    label_column: str = option(
        "label", "Column of the classes. For Label Studio the name of the labelling tag.", needs="source"
    )
    video_column: str = option(
        "video",
        "Column of the videos in a data set. For Label Studio the field of a task.",
        needs="source",
        unused_with=_A_TABLE,
    )
    label_fps: float | None = option(None, LABEL_FPS_HELP, needs="source", unused_with=_A_TABLE)
    class_split: list[float] = option(
        [],
        "Split the classes anew: fractions or numbers of classes for train, validation and test. Default for data "
        f"without splits: {' '.join(map(str, DEFAULT_CLASS_SPLIT))}.",
        needs="source",
    )
    seed: int = option(0, "Random seed of --class_split.", needs="source", least=0)

    # What to do
    skip_reading: bool = option(
        False,
        "Only check that the files exist; do not read every video.",
        unused_with="frame_store or embed_videos",  # these read every video
    )
    skip_bad_videos: bool = option(
        False, "Leave out missing and unreadable videos. Without this option they are listed and the program stops."
    )
    frame_store: str = option(
        "none",
        "Keep resized frames in the data set: jpeg is small and slightly lossy; raw is exact and 14 times larger.",
        FRAME_STORES,
    )
    model: str | None = option(
        None, "Model that the frame store is for (folder or Hub id). Its processor sets the next two options."
    )
    frame_size: int | None = option(
        None, "Input size of the model that the frame store is for; 224 for benchmarks.", needs="frame_store", least=1
    )
    preprocessing: str | None = option(
        None, "Preprocessing of the frame store. Default: clip.", PREPROCESSINGS, needs="frame_store"
    )
    frames_per_video: int = option(
        72,
        "Number of evenly spaced frames to keep of longer videos: 9 candidates for each of 8 segments. 0 keeps all.",
        needs="frame_store",
        least=0,
    )
    jpeg_quality: int = option(90, "Quality of the JPEG frames, 1 to 95.", needs="frame_store=jpeg", least=1)
    embed_videos: bool = option(False, "Store the video files inside the data set, so that you can move or upload it.")
    decoder: str = option("auto", "Video reader.", ("auto", *DECODERS), unused_with="skip_reading")
    seconds_per_video: float = option(
        SECONDS_PER_VIDEO, "Time limit for reading a video; slower ones are unreadable.", unused_with="skip_reading"
    )
    num_workers: int = option(
        os.cpu_count() or 1, "Number of processes that read videos.", unused_with="skip_reading", least=1
    )
    shard: list[int] = option(
        [],
        "Read only shard I of N: --shard 0 8 to --shard 7 8, on one machine or several. Afterwards the same command "
        "without --shard makes the data set. Default in a Slurm array: the task's shard; 0 1 reads everything.",
    )

    # Where to
    output_dir: str = option(None, "Folder of the data set. Default with --benchmark NAME: data/NAME.")
    format: str = option(
        "disk",
        "disk is for load_from_disk, parquet for load_dataset and the Hub; training takes both.",
        ("disk", "parquet"),
    )
    push_to_hub: str | None = option(None, "Also upload the data set, videos included, to this Hub repository.")
    hub_private: bool = option(True, "Make a new Hub repository private.", needs="push_to_hub")

    def __post_init__(self):
        lists_page = PRESETS[self.benchmark].lists_page if self.benchmark is not None else None
        downloads_lists = self.source is None and self.official_splits is None and self.benchmark is not None
        if downloads_lists and lists_page is not None:
            raise ValueError(
                f"--benchmark {self.benchmark} needs --official_splits: its lists are not downloaded. Put those of "
                f"{lists_page} into a folder."
            )
        if (self.source is None) == (self.official_splits is None) and not downloads_lists:
            raise ValueError("Give either --source or --official_splits with --video_root.")
        if downloads_lists and self.video_root is None:
            raise ValueError(
                f"--benchmark {self.benchmark} needs --video_root, the folder that the paths in the official lists are "
                "relative to."
            )
        if self.official_splits is not None and self.video_root is None:
            raise ValueError("--official_splits needs --video_root, the folder that the lists' paths are relative to.")
        if self.output_dir is None:
            raise ValueError("--output_dir is missing: give a folder for the data set.")
        if self.embed_videos and self.frame_store != "none":
            raise ValueError("--embed_videos and --frame_store both fill the data set: choose one.")
        if self.frame_store != "none" and (self.model, self.benchmark, self.frame_size) == (None, None, None):
            raise ValueError(
                "--frame_store keeps frames resized for one model: name it with --model, or give its input size as "
                "--frame_size."
            )
        if self.model is None:
            self.fill_in(FRAME_SIZE, PREPROCESSINGS[0])
        check_least(self)
        if self.label_fps is not None and not 0 < self.label_fps < 1e6:
            raise ValueError(f"--label_fps {self.label_fps} must be greater than 0 and finite.")
        if not self.seconds_per_video > 0:
            raise ValueError(f"--seconds_per_video {self.seconds_per_video} must be greater than 0.")
        self.task = shard_of(self.shard)
        if self.task is not None and self.skip_reading and self.frame_store == "none" and not self.embed_videos:
            raise ValueError(
                f"{self.task}: with --skip_reading no video is read, so there is nothing to divide. Leave --shard out "
                "(in a Slurm array: --shard 0 1)."
            )
        if self.jpeg_quality > 95:
            raise ValueError(f"--jpeg_quality {self.jpeg_quality} must be at most 95.")

    def fill_in(self, frame_size: int, preprocessing: str):
        """Sets frame size and preprocessing where they are not given."""
        self.frame_size = frame_size if self.frame_size is None else self.frame_size
        self.preprocessing = self.preprocessing or preprocessing

    def settings(self) -> dict:
        """The options that determine the data set. Only a preparation with the same ones can be resumed."""
        others = {"output_dir", "num_workers", "seconds_per_video", "skip_bad_videos", "push_to_hub", "hub_private"}
        others |= {"shard"}
        others |= {"model"}  # it only sets frame_size and preprocessing
        others |= set() if self.number_classes else {"number_classes"}  # earlier versions did not record it
        return {name: value for name, value in asdict(self).items() if name not in others}

    def check_files(self):
        """Raises `FileNotFoundError` if a given file or folder does not exist."""
        remedy = (
            "Give a folder with videos or the Hub id of a data set (OWNER/NAME); clipfsar prepare converts videos in "
            "other forms."
        )
        is_table = self.source is not None and self.source.lower().endswith((*TABLE_SUFFIXES, *LABEL_SUFFIXES))
        check_source("source", self.source, "dataset", "" if is_table else remedy)
        self.model = find_model("model", self.model)
        folders = "official_splits", "video_root", "class_names_file", "validation_class_names"
        for name in folders if self.source is None else ():
            check_path(name, getattr(self, name), is_local=True)


def parse_arguments(command_line: Sequence[str] | None = None, prog: str | None = None) -> PrepareArguments:
    """Parses a command line. It overrides the settings of the benchmark, and these override the defaults."""
    command_line = sys.argv[1:] if command_line is None else command_line
    benchmark = benchmark_on(command_line)
    defaults: dict = {}
    if benchmark:
        preset = PRESETS[benchmark]
        defaults = {
            "preprocessing": preset.preprocessing,
            "output_dir": dataset_folder(benchmark),
            "splits": list(preset.sizes),  # EPIC-Kitchens has no validation classes
        }
    return parse_options(PrepareArguments, command_line=command_line, prog=prog, defaults=defaults)


__all__ = [
    "DEFAULT_CLASS_SPLIT",
    "LABEL_FPS_HELP",
    "LABEL_SUFFIXES",
    "SPLITS",
    "TABLE_SUFFIXES",
    "PrepareArguments",
    "parse_arguments",
]
