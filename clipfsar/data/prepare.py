"""Makes a data set for training out of videos as people have them, and finds what is wrong before training does.

    clipfsar prepare --benchmark hmdb51 --official_splits LISTS --video_root VIDEOS --frame_store jpeg
    clipfsar prepare --source FOLDER          # SPLIT/CLASS/VIDEO, or CLASS/VIDEO shared out by classes
    clipfsar prepare --source clips.csv       # columns path, label and, if there are splits, split
    clipfsar prepare --source HUB_ID --class_split 64 12 24

Every video is read once, in parallel; what cannot be read is listed in bad_videos.csv. With --frame_store the frames
are kept, resized, in the data set, from which training reads them many times faster than from the files. An interrupted
preparation goes on when it is started again.
"""

import argparse
import csv
import json
import math
import os
import shutil
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Value, Video
from transformers import HfArgumentParser

from choices_clipfsar import DECODERS, PREPROCESSINGS, SECONDS_PER_VIDEO
from episodes_clipfsar import read_labels
from clipfsar.options import HelpFormatter, option
from clipfsar.data.frame_store import MISSING, FrameStoreSettings, is_missing, read_split, references
from clipfsar.presets import PRESETS, dataset_folder
from clipfsar.data.splits import check_disjoint_classes, load_video_splits
from clipfsar.data.sources import SPLITS, folder_splits, official_splits, resplit, table_splits, to_dataset

DEFAULT_CLASS_SPLIT = (0.64, 0.12, 0.24)  # that of Kinetics-100 and SSv2
TABLE_SUFFIXES = (".csv", ".jsonl")
WORK_FOLDER = ".preparing"
BYTES_PER_PARQUET_FILE = 500 * 2**20


@dataclass
class Arguments:
    # From where
    source: str | None = option(
        None,
        "Folder of videos (SPLIT/CLASS/VIDEO or CLASS/VIDEO), table (.csv, .jsonl), saved data set, or Hub id.",
    )
    official_splits: str | None = option(None, "Folder of train_few_shot.txt, val_few_shot.txt, test_few_shot.txt.")
    video_root: str | None = option(None, "Folder that the paths of the official lists, or of a table, start from.")
    class_names_file: str | None = option(
        None, "YAML file of the official program with the class names; else they are read off the videos' folders."
    )
    validation_class_names: str | None = option(
        None,
        "Validation class names, a line each in the order of the ids, or Something-Something's JSON file of labels; "
        "else they are read off the videos' folders.",
    )
    splits: list[str] = option(list(SPLITS), "Official lists to read.", SPLITS)
    benchmark: str | None = option(
        None,
        "Checks the numbers of classes and videos against the published ones; sets preprocessing and output_dir.",
        PRESETS,
    )
    path_column: str = option("path", "Column of a table with the paths.")
    split_column: str = option("split", "Column of a table with the splits, if it has one.")
    label_column: str = option("label", "Column with the classes.")
    video_column: str = option("video", "Column of a data set with the videos.")
    class_split: list[float] = option(
        [],
        "Share the classes out anew: fractions or numbers of classes for train, validation and test. Data without "
        f"splits are shared out as {' '.join(map(str, DEFAULT_CLASS_SPLIT))}.",
    )
    seed: int = option(0, "Of --class_split.")

    # What to do
    skip_reading: bool = option(
        False, "Do not try to read every video, only look whether the files are there. A frame store reads them anyway."
    )
    skip_bad_videos: bool = option(
        False, "Go on without missing and unreadable videos, instead of stopping once all are listed."
    )
    frame_store: str = option(
        "none",
        "Keep resized frames in the data set: jpeg is small and near enough, raw is exact and about 14 times larger.",
        ("none", "jpeg", "raw"),
    )
    frame_size: int = option(224, "Input size of the model that the frame store is for.")
    preprocessing: str = option("clip", "Preprocessing that the frame store is for.", PREPROCESSINGS)
    frames_per_video: int = option(
        72, "Frames kept of a longer video, evenly spaced; 9 x 8, so that one of 8 segments still has 9. 0 keeps all."
    )
    jpeg_quality: int = option(90, "1 to 95.")
    embed_videos: bool = option(False, "Put the video files themselves into the data set, to move or upload it.")
    decoder: str = option("auto", "Video reader.", ("auto", *DECODERS))
    seconds_per_video: float = option(SECONDS_PER_VIDEO, "Time limit for reading a video; then it is unreadable.")
    num_workers: int = option(os.cpu_count() or 1, "Processes that read videos.")

    # Where to
    output_dir: str | None = option(None, "Folder of the data set; with --benchmark NAME it is data/NAME.")
    format: str = option(
        "disk",
        "disk is for load_from_disk, parquet for load_dataset and the Hub; training takes both.",
        ("disk", "parquet"),
    )
    push_to_hub: str | None = option(None, "Also upload the data set, videos included, to this Hub repository.")
    hub_private: bool = option(True, "Make a new Hub repository private.")

    def __post_init__(self):
        if (self.source is None) == (self.official_splits is None):
            raise ValueError("Give either --source or --official_splits with --video_root.")
        if self.official_splits is not None and self.video_root is None:
            raise ValueError("--official_splits needs --video_root, the folder that the lists' paths start from.")
        if self.output_dir is None:
            raise ValueError("--output_dir is missing: the folder of the data set.")
        if self.embed_videos and self.frame_store != "none":
            raise ValueError("--embed_videos and --frame_store both fill the data set: choose one.")
        for name, least in (("frame_size", 1), ("frames_per_video", 0), ("num_workers", 1), ("jpeg_quality", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least {least}.")
        if not self.seconds_per_video > 0:
            raise ValueError(f"--seconds_per_video {self.seconds_per_video} must be greater than 0.")
        if self.jpeg_quality > 95:
            raise ValueError(f"--jpeg_quality {self.jpeg_quality} must be at most 95.")

    def frame_store_settings(self) -> FrameStoreSettings:
        return FrameStoreSettings(
            "file" if self.embed_videos else self.frame_store,
            self.frame_size,
            self.preprocessing,
            self.frames_per_video,
            self.jpeg_quality,
            self.decoder,
            self.seconds_per_video,
        )

    def that_shape_the_result(self) -> dict:
        """Options on which a preparation that goes on must agree with the one that was interrupted."""
        others = {"output_dir", "num_workers", "seconds_per_video", "skip_bad_videos", "push_to_hub", "hub_private"}
        return {name: value for name, value in asdict(self).items() if name not in others}


def read_source(arguments: Arguments) -> DatasetDict:
    """The data set as it is named, with the columns video (paths or bytes) and label (names); nothing is decoded."""
    if arguments.official_splits is not None:
        return to_dataset(
            official_splits(
                Path(arguments.official_splits),
                Path(arguments.video_root),
                _path_or_none(arguments.class_names_file),
                _path_or_none(arguments.validation_class_names),
                arguments.splits,
            )
        )
    source = Path(arguments.source)
    if source.is_file() and source.suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(f"--source {source} is a file, but no table: these end in {' or '.join(TABLE_SUFFIXES)}.")
    if source.suffix.lower() in TABLE_SUFFIXES and not source.is_file():
        raise FileNotFoundError(f"--source {source} does not exist.")
    is_saved = any((source / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if source.is_file():
        columns = (arguments.path_column, arguments.label_column, arguments.split_column)
        splits = to_dataset(table_splits(source, _path_or_none(arguments.video_root), *columns))
    elif source.is_dir() and not is_saved and not any(source.rglob("*.parquet")):
        splits = to_dataset(folder_splits(source))
    else:
        splits = load_video_splits(arguments.source, arguments.video_column, arguments.label_column)
        columns = arguments.video_column, arguments.label_column
        labelled = {split: with_class_names(dataset, *columns) for split, dataset in splits.items()}
        splits = DatasetDict({split: dataset for split, dataset in labelled.items() if len(dataset)})
        if not splits:
            raise ValueError(f"{arguments.source} has no class of any video in its column {arguments.label_column!r}.")
    if arguments.class_split or set(splits) == {"all"}:
        splits = resplit(splits, arguments.class_split or DEFAULT_CLASS_SPLIT, arguments.seed)
    return DatasetDict({split: splits[split] for split in sorted(splits, key=[*SPLITS, *splits].index)})


def with_class_names(dataset: Dataset, video_column: str, label_column: str) -> Dataset:
    """The columns video and label alone, labels as names, which mean the same in every split; unlabelled rows go."""
    labels, names = read_labels(dataset, label_column)
    labelled = dataset.select(np.flatnonzero(labels >= 0)) if (labels < 0).any() else dataset
    videos = labelled.select_columns([video_column])
    if video_column != "video":
        videos = videos.rename_column(video_column, "video")
    if all(video["bytes"] is None for video in references(videos)):
        # Plain paths: `datasets` would put the files of a video column into whatever it saves.
        videos = Dataset.from_dict({"video": [video["path"] for video in references(videos)]})
    return videos.add_column("label", [names[label] for label in labels[labels >= 0]])


def _path_or_none(path: str | None) -> Path | None:
    return None if path is None else Path(path)


class Preparation:
    """One data set under way from its source to the output folder."""

    def __init__(self, arguments: Arguments):
        self.arguments = arguments
        self.output_dir = Path(arguments.output_dir)
        self.work_dir = self.output_dir / WORK_FOLDER
        self.splits = read_source(arguments)
        check_disjoint_classes(self.splits, remedy="--class_split shares all classes out anew")
        self.listed = {split: (len(set(dataset["label"])), len(dataset)) for split, dataset in self.splits.items()}
        self.num_twice = self._leave_out_repetitions()
        self.bad = []  # {"split", "class", "path", "problem"}

    def run(self):
        arguments = self.arguments
        self._open_output_dir()
        missing = self._missing_rows()
        reads = not arguments.skip_reading or arguments.frame_store_settings().keeps_something
        # Missing files are known in seconds; nobody shall wait for the reading of all others to hear of them.
        if not reads or (any(missing.values()) and not arguments.skip_bad_videos):
            for split, rows in missing.items():
                self._leave_out(split, dict.fromkeys(rows, MISSING))
        else:
            self._read_videos()
        self._write_bad_videos()
        print("\n".join(self.summary()))
        if not any(len(dataset) for dataset in self.splits.values()):
            first = self.bad[0]
            raise ValueError(
                f"Not one of the {len(self.bad)} videos can be read; the first is {first['path']} "
                f"({first['problem']}). Is the folder of the videos the right one?"
            )
        if self.bad and not arguments.skip_bad_videos:
            raise ValueError(
                f"{_videos(len(self.bad))} missing or unreadable, see {self.output_dir / 'bad_videos.csv'}. Mend them "
                "and start again (what is done stays), or go on without them with --skip_bad_videos."
            )
        self._save()

    def _open_output_dir(self):
        """Goes on with an interrupted preparation of the same settings; refuses to touch anything else."""
        settings, path = self.arguments.that_shape_the_result(), self.work_dir / "settings.json"
        if (self.output_dir / "preparation.json").is_file():
            raise ValueError(f"{self.output_dir} holds a prepared data set already: delete it or name another folder.")
        if path.is_file():
            earlier = json.loads(path.read_text())
            different = [f"--{name} {earlier.get(name)}" for name in settings if earlier.get(name) != settings[name]]
            if different:
                raise ValueError(
                    f"An unfinished preparation in {self.output_dir} was started with {', '.join(different)}: go on "
                    "with the same settings, delete the folder, or name another one."
                )
        elif self.output_dir.is_dir() and any(self.output_dir.iterdir()):
            raise ValueError(f"{self.output_dir} is not empty: name another folder for the data set.")
        self.work_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n")

    def _missing_rows(self) -> dict[str, list[int]]:
        return {
            split: [row for row, video in enumerate(references(dataset)) if is_missing(video)]
            for split, dataset in self.splits.items()
        }

    def _read_videos(self):
        settings, num_workers = self.arguments.frame_store_settings(), self.arguments.num_workers
        for split, dataset in self.splits.items():
            description = f"reading {split} videos"
            read, problems = read_split(dataset, self.work_dir / split, settings, num_workers, description)
            self._leave_out(split, problems)
            if self.arguments.embed_videos and len(read):
                read = read.cast_column("video", Video(decode=False))
            self.splits[split] = read

    def _leave_out(self, split: str, problems: dict[int, str]):
        """Takes rows out of a split and notes what is wrong with them."""
        if not problems:
            return
        dataset = self.splits[split]
        bad = dataset.select(problems)
        for problem, name, video in zip(problems.values(), bad["label"], references(bad), strict=True):
            self.bad.append({"split": split, "class": name, "path": video["path"], "problem": problem})
        self.splits[split] = dataset.select([row for row in range(len(dataset)) if row not in problems])

    def _leave_out_repetitions(self) -> int:
        """A file listed twice could be support and query of one episode: one stays.

        Raises:
            ValueError: For a file with two classes.
        """
        class_of, num_twice = {}, 0
        for split, dataset in self.splits.items():
            rows = []
            for row, (video, name) in enumerate(zip(references(dataset), dataset["label"], strict=True)):
                path = None if video["bytes"] is not None else video["path"]
                if path is None or path not in class_of:
                    rows.append(row)
                elif class_of[path] != name:
                    raise ValueError(f"{path} is listed as {class_of[path]!r} and as {name!r}: a video has one class.")
                class_of[path] = name
            num_twice += len(dataset) - len(rows)
            if len(rows) < len(dataset):
                self.splits[split] = dataset.select(rows)
        return num_twice

    def _write_bad_videos(self):
        path = self.output_dir / "bad_videos.csv"
        path.unlink(missing_ok=True)
        if self.bad:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(self.bad[0]))
                writer.writeheader()
                writer.writerows(self.bad)

    def summary(self) -> list[str]:
        """What there is, split by split, beside the published numbers, and which classes miss most."""
        published = PRESETS[self.arguments.benchmark].sizes if self.arguments.benchmark else {}
        lines = [f"{'split':<12}{'classes':>8}{'videos':>9}{'missing':>9}{'unreadable':>12}{'smallest class':>20}"]
        for split, dataset in self.splits.items():
            sizes = Counter(dataset["label"])
            problems = Counter(
                MISSING if bad["problem"] == MISSING else "unreadable" for bad in self.bad if bad["split"] == split
            )
            smallest = f"{min(sizes.values())} videos" if sizes else "-"
            lines.append(
                f"{split:<12}{len(sizes):>8}{len(dataset):>9,}{problems[MISSING]:>9,}{problems['unreadable']:>12,}"
                f"{smallest:>20}"
            )
        for split, (num_classes, num_videos) in self.listed.items():
            if split in published and published[split] != (num_classes, num_videos):
                lines.append(
                    f"note: {split} lists {num_videos:,} videos of {num_classes} classes; the published "
                    f"{self.arguments.benchmark} has {published[split][1]:,} of {published[split][0]}."
                )
        if self.num_twice:
            lines.append(f"note: {_videos(self.num_twice)} listed twice; each stays once.")
        for split, dataset in self.splits.items():
            sizes = Counter(dataset["label"])
            if sizes and (len(sizes) < 5 or min(sizes.values()) < 6):
                lines.append(
                    f"note: {split} has {len(sizes)} classes of {min(sizes.values())} or more videos; 5-way 1-shot "
                    "episodes with 5 queries per class, the defaults of training, need 5 of 6. Lower --n_way and the "
                    "numbers of queries, or share the classes out otherwise with --class_split."
                )
        absent = [split for split in SPLITS if split not in self.splits]
        if absent:
            lines.append(f"note: there are no classes for {' and '.join(absent)}; --class_split shares them out.")
        worst = Counter((bad["split"], bad["class"]) for bad in self.bad).most_common(5)
        lines += [f"bad videos of {split} class {name!r}: {count}" for (split, name), count in worst]
        return lines

    def _save(self):
        """The data set first, the report last: a folder with `preparation.json` is complete."""
        arguments = self.arguments
        empty = [split for split, dataset in self.splits.items() if not len(dataset)]
        if empty:
            raise ValueError(f"The split {empty[0]!r} has no videos left.")
        if arguments.format == "disk":
            self.splits.save_to_disk(str(self.output_dir))
        else:
            (self.output_dir / "data").mkdir(exist_ok=True)
            for split, dataset in self.splits.items():
                num_files = min(len(dataset), math.ceil(dataset.data.nbytes / BYTES_PER_PARQUET_FILE))
                for number in range(num_files):
                    name = f"{split}-{number:05d}-of-{num_files:05d}.parquet"
                    part = dataset.shard(num_files, number, contiguous=True)
                    part.to_parquet(str(self.output_dir / "data" / name))
        if arguments.push_to_hub:
            self._upload()
        classes = {split: dict(Counter(dataset["label"])) for split, dataset in self.splits.items()}
        report = {"settings": asdict(arguments), "videos_per_class": classes, "bad_videos": self.bad}
        (self.output_dir / "preparation.json").write_text(json.dumps(report, indent=2) + "\n")
        self.splits = None  # before the files go that it reads from
        shutil.rmtree(self.work_dir)
        print(f"{self.output_dir} is ready: clipfsar train --dataset {self.output_dir} ...")

    def _upload(self):
        """With the videos: files become bytes on the way, which `datasets` does for its own kind of column."""
        splits = self.splits
        if next(iter(splits.values())).features["video"] == Value("string"):
            splits = splits.cast_column("video", Video(decode=False))
        splits.push_to_hub(self.arguments.push_to_hub, private=self.arguments.hub_private)


def _videos(number: int) -> str:
    return f"{number:,} video{' is' if number == 1 else 's are'}"


def parse_arguments(command_line: list[str] | None = None) -> Arguments:
    """The command line over the benchmark's settings over the defaults."""
    command_line = sys.argv[1:] if command_line is None else command_line
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--benchmark", choices=list(PRESETS))
    benchmark = first.parse_known_args(command_line)[0].benchmark
    parser = HfArgumentParser(Arguments, description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    if benchmark:
        parser.set_defaults(preprocessing=PRESETS[benchmark].preprocessing, output_dir=dataset_folder(benchmark))
    return parser.parse_args_into_dataclasses(command_line)[0]


if __name__ == "__main__":
    try:
        Preparation(parse_arguments()).run()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")

__all__ = ["Arguments", "Preparation", "parse_arguments", "read_source"]
