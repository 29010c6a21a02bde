"""Makes a data set for training from video files. Implements `clipfsar prepare`."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Value, Video

from clipfsar.checked_files import create_file
from clipfsar.data.arguments import DEFAULT_CLASS_SPLIT, FRAME_SIZE, SPLITS, PrepareArguments
from clipfsar.data.class_split import resplit
from clipfsar.data.clips import LeftOut
from clipfsar.data.copies import copies, note_on_copies
from clipfsar.data.frame_store import (
    MISSING,
    FrameStoreSettings,
    block_of_task,
    is_missing,
    read_shard,
    read_split,
    references,
    save_linked,
)
from clipfsar.data.official_lists import with_official_lists
from clipfsar.data.older_reader import REPORT
from clipfsar.data.sources import check_options_of_source, listed_clips, to_dataset
from clipfsar.data.splits import WORK_FOLDER, check_disjoint_classes, load_video_splits
from clipfsar.data.tables import csv_text
from clipfsar.json_files import read_json
from clipfsar.locks import LOCK_NAME, FolderLock
from clipfsar.presets import PRESETS
from clipfsar.processes import exiting_on_sigterm
from clipfsar.shards import Shard
from container_clipfsar import READER_VERSION
from episodes_clipfsar import read_labels
from paths_clipfsar import flush_to_disk, replace_file, write_text
from pixels_clipfsar import resize_settings
from processing_clipfsar import CLIPFSARProcessor
from spans_clipfsar import split_span

BYTES_PER_PARQUET_FILE = 500 * 2**20


def frame_store_settings(arguments: PrepareArguments) -> FrameStoreSettings:
    assert arguments.frame_size is not None  # `fill_in` has set both
    assert arguments.preprocessing is not None
    return FrameStoreSettings(
        "file" if arguments.embed_videos else arguments.frame_store,
        arguments.frame_size,
        arguments.preprocessing,
        arguments.frames_per_video,
        arguments.jpeg_quality,
        arguments.decoder,
        arguments.seconds_per_video,
    )


def read_source(arguments: PrepareArguments, left_out: LeftOut | None = None) -> DatasetDict:
    """Reads the source as a data set with the columns video (paths or bytes) and label (names). Decodes nothing.

    `left_out` counts the files of a folder that are not used as clips.
    """
    check_options_of_source(arguments)
    listed = listed_clips(arguments, left_out)
    if listed is not None:
        splits = to_dataset(listed)
    else:
        assert arguments.source is not None  # official lists would be listed
        splits = load_video_splits(arguments.source, arguments.video_column, arguments.label_column)
        columns = arguments.video_column, arguments.label_column
        labelled = {split: with_class_names(dataset, *columns) for split, dataset in splits.items()}
        splits = DatasetDict({split: dataset for split, dataset in labelled.items() if len(dataset)})
        if not splits:
            raise ValueError(f"{arguments.source} has no labels in its column {arguments.label_column!r}.")
    if arguments.official_splits is None and (arguments.class_split or set(splits) == {"all"}):
        splits = resplit(splits, arguments.class_split or DEFAULT_CLASS_SPLIT, arguments.seed)
    return DatasetDict({split: splits[split] for split in sorted(splits, key=[*SPLITS, *splits].index)})


def with_class_names(dataset: Dataset, video_column: str, label_column: str) -> Dataset:
    """Keeps only the columns video and label. Labels become names, which agree across splits. Drops unlabelled rows."""
    labels, names = read_labels(dataset, label_column)
    videos = dataset.select(np.flatnonzero(labels >= 0)).select_columns([video_column])
    if video_column != "video":
        videos = videos.rename_column(video_column, "video")
    if all(video["bytes"] is None for video in references(videos)):
        # Plain paths: with a video column, `datasets` would save the files as well.
        videos = Dataset.from_dict({"video": [video["path"] for video in references(videos)]})
    return videos.add_column("label", [names[label] for label in labels[labels >= 0]])


class Preparation:
    """The preparation of one data set, from its source to the output folder."""

    def __init__(self, arguments: PrepareArguments):
        self.arguments = arguments
        self.output_dir = Path(arguments.output_dir)
        self.work_dir = self.output_dir / WORK_FOLDER
        self.left_out = LeftOut()
        self.splits = read_source(arguments, self.left_out)
        check_disjoint_classes(self.splits, remedy="--class_split splits all classes anew")
        self._check_parts_can_be_uploaded()
        self.listed = {split: (len(set(dataset["label"][:])), len(dataset)) for split, dataset in self.splits.items()}
        self.num_duplicates = self._leave_out_duplicates()
        self.bad: list[dict[str, str]] = []  # {"split", "class", "path", "problem"}

    def run(self):
        """Prepares the data set, or reads one shard of its videos.

        Raises:
            FolderInUseError: If another preparation works in the same folder. Only shards may be read at the same time.
        """
        remedy, task = "Wait until it ends, stop it, or name another --output_dir", self.arguments.task
        if task is None:
            with FolderLock(self.output_dir, "prepares a data set", remedy):
                self._run()
        else:
            with FolderLock(self.output_dir, f"prepares {task}", remedy, is_shared=True):
                self._run_task(task)

    def _run(self):
        arguments = self.arguments
        self._open_output_dir()
        missing = self._missing_rows()
        reads = not arguments.skip_reading or frame_store_settings(arguments).keeps_something
        # Missing files are known in seconds: report them before all other files are read.
        if not reads or (any(missing.values()) and not arguments.skip_bad_videos):
            for split, rows in missing.items():
                self._leave_out(split, dict.fromkeys(rows, MISSING))
        else:
            self._read_videos()
        self._write_bad_videos()
        print("\n".join(self.summary()))
        if not any(len(dataset) for dataset in self.splits.values()):
            raise self._nothing_readable()
        if self.bad and not arguments.skip_bad_videos:
            raise ValueError(
                f"{_videos(len(self.bad))} missing or unreadable, see {self.output_dir / 'bad_videos.csv'}. Fix them "
                "and run the command again (finished work is kept), or leave them out with --skip_bad_videos."
            )
        self._save()

    def _run_task(self, task: Shard):
        """Reads the videos of one shard. The preparation without a shard finds them, and reports the bad ones."""
        if self._is_prepared():
            print(f"{task}: nothing to do, {self.output_dir} is prepared.")
            return
        self._open_output_dir()
        settings, num_workers, num_rows = frame_store_settings(self.arguments), self.arguments.num_workers, 0
        for split, dataset in self.splits.items():
            description = f"reading {split} videos, {task}"
            problems = read_shard(dataset, self.work_dir / split, settings, num_workers, description, task)
            self._leave_out(split, problems)
            rows = task.rows(len(dataset), block_of_task(len(dataset), task))
            print(f"{task}: {len(rows):,} {split} videos, {len(problems):,} of them missing or unreadable.")
            num_rows += len(rows)
        if self.bad and len(self.bad) == num_rows:
            raise self._nothing_readable()
        print("After the last shard, run the same command without --shard (in a Slurm array: --shard 0 1).")

    def _nothing_readable(self) -> ValueError:
        first = self.bad[0]
        return ValueError(
            f"None of the {len(self.bad)} videos can be read; the first is {first['path']} ({first['problem']}). "
            "Check the folder of the videos."
        )

    def _is_prepared(self) -> bool:
        """Whether the folder holds the data set already, prepared with the same settings."""
        if not (self.output_dir / REPORT).is_file():
            return False
        report = read_json(self.output_dir / REPORT, f"delete {self.output_dir}, and all videos are read again")
        settings = json.loads(json.dumps(self.arguments.settings()))
        return all(report["settings"].get(name) == value for name, value in settings.items())

    def _open_output_dir(self):
        """Resumes an interrupted preparation with the same settings. Refuses a folder with any other content."""
        settings, path = self.arguments.settings(), self.work_dir / "settings.json"
        if (self.output_dir / REPORT).is_file():
            raise ValueError(f"{self.output_dir} already holds a prepared data set: delete it or name another folder.")
        others = {path.name for path in self.output_dir.iterdir()} - {LOCK_NAME, WORK_FOLDER}
        if others and not path.is_file():
            raise ValueError(f"{self.output_dir} is not empty: name another folder for the data set.")
        self.work_dir.mkdir(exist_ok=True)
        create_file(path, json.dumps(settings, indent=2) + "\n")  # unless it is there
        earlier = read_json(path, f"delete {self.work_dir}, and all videos are read again")
        different = [f"--{name} {earlier.get(name)}" for name in settings if earlier.get(name) != settings[name]]
        if different:
            raise ValueError(
                f"An unfinished preparation in {self.output_dir} was started with {', '.join(different)}: use the same "
                "settings, delete the folder, or name another one."
            )

    def _missing_rows(self) -> dict[str, list[int]]:
        return {
            split: [row for row, video in enumerate(references(dataset)) if is_missing(video)]
            for split, dataset in self.splits.items()
        }

    def _read_videos(self):
        settings, num_workers = frame_store_settings(self.arguments), self.arguments.num_workers
        for split, dataset in self.splits.items():
            description = f"reading {split} videos"
            read, problems = read_split(dataset, self.work_dir / split, settings, num_workers, description)
            self._leave_out(split, problems)
            self.splits[split] = read

    def _leave_out(self, split: str, problems: dict[int, str]):
        """Removes rows from a split and records their problems."""
        if not problems:
            return
        dataset = self.splits[split]
        bad = dataset.select(problems)
        for problem, name, video in zip(problems.values(), bad["label"][:], references(bad), strict=True):
            self.bad.append({"split": split, "class": name, "path": video["path"], "problem": problem})
        self.splits[split] = dataset.select([row for row in range(len(dataset)) if row not in problems])

    def _check_parts_can_be_uploaded(self):
        """Raises `ValueError` if parts of videos would be uploaded. Only a frame store holds them without the rest."""
        if not self.arguments.push_to_hub or frame_store_settings(self.arguments).keeps_something:
            return
        paths = (video["path"] for dataset in self.splits.values() for video in references(dataset))
        part = next((path for path in paths if path and split_span(path)[1] is not None), None)
        if part is not None:
            raise ValueError(f"{part} is a part of a video, which --push_to_hub uploads only with --frame_store jpeg.")

    def _leave_out_duplicates(self) -> int:
        """Removes duplicates: a file listed twice could be support and query of one episode.

        Raises:
            ValueError: If a file has two classes.
        """
        class_of: dict = {}
        num_duplicates = 0
        for split, dataset in self.splits.items():
            rows = []
            for row, (video, name) in enumerate(zip(references(dataset), dataset["label"][:], strict=True)):
                path = None if video["bytes"] is not None else video["path"]
                if path is None or path not in class_of:
                    rows.append(row)
                elif class_of[path] != name:
                    raise ValueError(f"{path} is listed as {class_of[path]!r} and as {name!r}: a video has one class.")
                class_of[path] = name
            num_duplicates += len(dataset) - len(rows)
            if len(rows) < len(dataset):
                self.splits[split] = dataset.select(rows)
        return num_duplicates

    def _write_bad_videos(self):
        path = self.output_dir / "bad_videos.csv"
        path.unlink(missing_ok=True)
        if self.bad:
            write_text(path, csv_text(list(self.bad[0]), self.bad))

    def summary(self) -> list[str]:
        """Describes each split, differences from the published numbers, and the classes with the most bad videos."""
        published = PRESETS[self.arguments.benchmark].sizes if self.arguments.benchmark else {}
        lines = [f"{'split':<12}{'classes':>8}{'videos':>9}{'missing':>9}{'unreadable':>12}{'smallest class':>20}"]
        for split, dataset in self.splits.items():
            sizes = Counter(dataset["label"][:])
            problems = Counter(
                MISSING if bad["problem"] == MISSING else "unreadable" for bad in self.bad if bad["split"] == split
            )
            smallest = _number_of_videos(min(sizes.values())) if sizes else "-"
            lines.append(
                f"{split:<12}{len(sizes):>8}{len(dataset):>9,}{problems[MISSING]:>9,}{problems['unreadable']:>12,}"
                f"{smallest:>20}"
            )
        for split, (num_classes, num_videos) in self.listed.items():
            classes, videos = published.get(split, (num_classes, num_videos))
            if classes != num_classes or videos not in (None, num_videos):
                size = f"{classes} classes" if videos is None else f"{videos:,} of {classes}"
                lines.append(
                    f"note: {split} lists {num_videos:,} videos of {num_classes} classes; the published "
                    f"{self.arguments.benchmark} has {size}."
                )
        if self.num_duplicates:
            lines.append(f"note: {_videos(self.num_duplicates)} listed twice; each is kept once.")
        lines += filter(None, [note_on_copies(copies(self.splits))])
        lines += _notes_on_sizes({split: Counter(dataset["label"][:]) for split, dataset in self.splits.items()})
        absent = [split for split in SPLITS if split not in self.splits]
        if absent:
            lines.append(f"note: there are no classes for {' and '.join(absent)}; --class_split makes all splits.")
        worst = Counter((bad["split"], bad["class"]) for bad in self.bad).most_common(5)
        lines += [f"bad videos of {split} class {name!r}: {count}" for (split, name), count in worst]
        lines += [f"note: {words}: {number:,}." for words, number in self.left_out.notes.items()]
        return [*lines, str(self.left_out)] if str(self.left_out) else lines

    def _save(self):
        """Saves the data set first and the report last: a folder with `preparation.json` is complete.

        The data set is written to the work folder and then moved, so nobody sees half of it.
        """
        arguments = self.arguments
        empty = [split for split, dataset in self.splits.items() if not len(dataset)]
        if empty:
            raise ValueError(f"The split {empty[0]!r} has no videos left.")
        self._put_in_place(self._write())
        if arguments.push_to_hub:
            self._upload()
        classes = {split: dict(Counter(dataset["label"][:])) for split, dataset in self.splits.items()}
        report = {
            "settings": asdict(arguments),
            "reader": READER_VERSION,
            "videos_per_class": classes,
            "bad_videos": self.bad,
        }
        with replace_file(self.output_dir / REPORT) as partial:
            partial.write_text(json.dumps(report, indent=2) + "\n")
        self.splits = None  # release the files before they are deleted
        shutil.rmtree(self.work_dir)
        print(self._what_next(classes))

    def _write(self) -> Path:
        """Writes the whole data set to a folder in the work folder, and returns it."""
        folder = self.work_dir / "result"
        shutil.rmtree(folder, ignore_errors=True)
        if self.arguments.format == "disk" and frame_store_settings(self.arguments).keeps_something:
            save_linked(self.splits, folder)
        elif self.arguments.format == "disk":
            self.splits.save_to_disk(str(folder))
        else:
            (folder / "data").mkdir(parents=True)
            for split, dataset in self.splits.items():
                num_files = min(len(dataset), math.ceil(dataset.data.nbytes / BYTES_PER_PARQUET_FILE))
                for number in range(num_files):
                    name = f"{split}-{number:05d}-of-{num_files:05d}.parquet"
                    part = dataset.shard(num_files, number)
                    part.to_parquet(str(folder / "data" / name))
        return folder

    def _put_in_place(self, folder: Path):
        flush_to_disk(folder)
        targets = {path: self.output_dir / path.name for path in folder.iterdir()}
        is_placing = self.work_dir / "is_placing"  # from then on, files with these names are those of this preparation
        present = [] if is_placing.exists() else [target for target in targets.values() if target.exists()]
        if present:
            raise ValueError(f"{present[0]} does not belong to this preparation: move it away and run it again.")
        is_placing.touch()
        for path in sorted(targets, key=Path.is_file):  # files, such as the list of splits, come last
            if targets[path].is_dir():  # left there before an interruption
                shutil.rmtree(targets[path])
            path.replace(targets[path])

    def _what_next(self, classes: dict[str, dict[str, int]]) -> str:
        """The next command. Training needs two classes, and two clips of each class; enrolling does not."""
        enough = [name for name, size in classes.get("train", {}).items() if size >= 2]
        fewest = min(map(len, classes.values()))
        single = [(name, split) for split, sizes in classes.items() for name, size in sizes.items() if size < 2]
        if len(enough) >= 2 and fewest >= 2 and single:
            name, split = single[0]
            return (
                f"{self.output_dir} is ready, but has {_classes(len(single))} with a single video, such as {name!r} in "
                f"{split}, and episodes need an example and a query. Add videos or leave such classes out, and prepare "
                "into another --output_dir."
            )
        if len(enough) >= 2 and fewest >= 2:
            model = f" --model {self.arguments.model}" if self.arguments.model is not None else ""
            options = "".join(f" {option}" for option in _options_of_small_splits(classes))
            return f"{self.output_dir} is ready: clipfsar train --dataset {self.output_dir}{model}{options} ..."
        if len(enough) >= 2:
            return f"{self.output_dir} is ready, but a split has a single class. {_split_anew(classes)}"
        return (
            f"{self.output_dir} is ready, but too small to train on: its split 'train' has {_classes(len(enough))} of "
            f"2 or more videos. {_USE_AS_EXAMPLES}"
        )

    def _upload(self):
        """Uploads the data set with its videos: `datasets` embeds the files of a column of its `Video` type."""
        splits = self.splits
        if next(iter(splits.values())).features["video"] == Value("string"):
            splits = splits.cast_column("video", Video(decode=False))
        splits.push_to_hub(self.arguments.push_to_hub, private=self.arguments.hub_private)


# What a class of a split needs for the default episodes: 1 example and 5 queries in training, 1 and 1 in validation, 5
# and 1 in the test.
_VIDEOS_NEEDED = {"train": 6, "validation": 2, "test": 6}
_USE_AS_EXAMPLES = (
    "Training needs 2 classes in each split. Use the clips as examples instead: clipfsar predict --support_set "
    "EXAMPLES --query VIDEOS, where EXAMPLES is the folder CLASS/VIDEO."
)


def _split_anew(classes: Mapping[str, Mapping[str, int]]) -> str:
    """What to do about a split with a single class: it can have more, or there are too few classes for all splits."""
    if sum(map(len, classes.values())) < 2 * len(classes):
        return _USE_AS_EXAMPLES
    return "Prepare into another --output_dir with --class_split, so that every split has two classes or more."


def _options_of_small_splits(classes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Options of `clipfsar train` that make episodes fit splits with fewer than 5 classes of 6 videos.

    By default episodes are 5-way; `_VIDEOS_NEEDED` has the videos of a class.

    Args:
        classes: `{split: {class name: number of videos}}`, at least 2 of each.
    """
    fewest = min(map(len, classes.values()))
    smallest = {split: min(sizes.values()) for split, sizes in classes.items()}
    options = [f"--n_way {fewest}"] if fewest < 5 else []
    if smallest.get("train", 6) < _VIDEOS_NEEDED["train"]:
        options.append(f"--train_n_query {smallest['train'] - 1}")
    if smallest.get("test", 6) < _VIDEOS_NEEDED["test"]:
        options.append("--n_shot 1")
    return options


def _notes_on_sizes(classes: Mapping[str, Counter]) -> list[str]:
    """Sentences about splits that are too small for the default episodes; one for splits of the same size."""
    splits_of: dict[tuple[int, int], list[str]] = {}
    for split, sizes in classes.items():
        if sizes and split in _VIDEOS_NEEDED:
            splits_of.setdefault((len(sizes), min(sizes.values())), []).append(split)
    return [
        f"note: {' and '.join(splits)} {'has' if len(splits) == 1 else 'have'} {_classes(num_classes)} with at least "
        f"{_number_of_videos(smallest)}; the default episodes need 5 classes, of 6 videos in training and test and of "
        f"2 in validation. {_remedy(splits, classes)}"
        for (num_classes, smallest), splits in splits_of.items()
        if num_classes < 5 or smallest < max(_VIDEOS_NEEDED[split] for split in splits)
    ]


def _remedy(splits: list[str], classes: Mapping[str, Counter]) -> str:
    """What to do about some splits with too few classes or videos for the default episodes."""
    small = {split: classes[split] for split in splits}
    if any(len(sizes) < 2 for sizes in small.values()):
        return _split_anew(classes)
    if any(min(sizes.values()) < 2 for sizes in small.values()):
        return "Add videos or leave classes out: a class needs 2 videos at least."
    options = " ".join(_options_of_small_splits(small))
    return f"Use {options}, or prepare into another --output_dir with --class_split."


def _classes(number: int) -> str:
    return f"{number} class{'' if number == 1 else 'es'}"


def _number_of_videos(number: int) -> str:
    return f"{number:,} video{'' if number == 1 else 's'}"


def _videos(number: int) -> str:
    return f"{number:,} video{' is' if number == 1 else 's are'}"


def take_from_model(arguments: PrepareArguments):
    """Sets frame size and preprocessing from the model that the frame store is for, unless they are given.

    Raises:
        ValueError: If the given frame size differs from the model's, or if the model resizes frames in a way that no
            frame store supports.
    """
    processor = CLIPFSARProcessor.from_pretrained(arguments.model)
    size = dict(getattr(processor.image_processor, "crop_size", None) or processor.image_processor.size)
    size_of_model = int(size.get("height", FRAME_SIZE))
    if arguments.frame_size not in (None, size_of_model):
        raise ValueError(
            f"--frame_size {arguments.frame_size} differs from that of {arguments.model}, which is {size_of_model}: "
            "leave one of the two options out."
        )
    arguments.fill_in(size_of_model, processor.preprocessing)
    settings = frame_store_settings(arguments)
    pair = processor.image_processor, settings.image_processor()
    wanted, kept = (resize_settings(one, settings.preprocessing) for one in pair)
    if arguments.frame_store != "none" and wanted != kept:
        raise ValueError(
            f"{arguments.model} resizes frames by {wanted}, but a frame store by {kept}: leave --frame_store out "
            "(training then reads the video files), or prepare for a CLIP model."
        )


def main(arguments: PrepareArguments):
    arguments = with_official_lists(arguments)
    if arguments.model is not None:
        take_from_model(arguments)
    with exiting_on_sigterm("Run the same command again to continue where it stopped."):
        Preparation(arguments).run()


__all__ = ["Preparation", "main", "read_source", "take_from_model", "with_class_names"]
