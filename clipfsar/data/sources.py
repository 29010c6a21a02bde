"""Reads lists of videos with classes and splits from common forms into a Hugging Face dataset.

Nothing is decoded here, so a list of a hundred thousand videos takes seconds.
"""

import itertools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from datasets import Dataset, DatasetDict, Features, Value

from choices_clipfsar import SECONDS_PER_VIDEO, VIDEO_SUFFIXES
from clipfsar.data.arguments import LABEL_SUFFIXES, SPLITS, TABLE_SUFFIXES, PrepareArguments
from clipfsar.data.clips import Clip, LeftOut, class_folders, find_clips, is_hidden
from clipfsar.data.cvat import read_cvat
from clipfsar.data.label_studio import LABEL, VIDEO, read_label_studio
from clipfsar.data.labels import VideoFolder, clips_of
from clipfsar.data.tables import read_json_text, read_rows, read_text
from clipfsar.option_conditions import check_without_effect
from clipfsar.options import nearest
from paths_clipfsar import check_utf8, class_name_of_folder, class_names_of_folders, local_path
from spans_clipfsar import with_span

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
TIME_COLUMNS = ("start_seconds", "end_seconds")
_DATA_SET_FILES = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
_LIST_FILES = {"train": "train_few_shot.txt", "validation": "val_few_shot.txt", "test": "test_few_shot.txt"}


# ----------------------------------------------------------------------------------------------------------------------
# The official split lists
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListedVideo:
    """A line of an official list: class id within its split, path in the folder of the videos, line number."""

    class_id: int
    path: str
    line: int


def read_official_list(path: Path) -> list[ListedVideo]:
    """The videos of an official list, such as `train_few_shot.txt` (from the official program's data files).

    Lines of SSv2 look like `train8/78687`, those of other benchmarks like `train0//brush_hair/xyz.avi`: name of the
    split and class id, one or two slashes, and the video.

    Raises:
        ValueError: For a line of another form; the message has file, line number and the expected form.
    """
    videos = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        line = line.strip()
        if not line:
            continue
        match = re.fullmatch(r"[A-Za-z]+(\d+)//?([^/].*)", line)
        if match is None:
            raise ValueError(
                f"{path}, line {number}: {line!r} is not of the form 'train8/78687' or 'train0//brush_hair/xyz.avi' "
                "(split and class id, then the video)."
            )
        videos.append(ListedVideo(int(match[1]), match[2], number))
    if not videos:
        raise ValueError(f"{path} names no videos.")
    return videos


def read_official_class_names(path: Path) -> dict[str, list[str]]:
    """Class names of base and test classes in the order of their ids, from a benchmark's official YAML file.

    Returns:
        `{"train": [...], "test": [...]}`, or only one of them if the file has one.

    Raises:
        ValueError: If it is not YAML, or has neither list.
    """
    try:
        settings = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None
    names: dict = {}
    for split, section in (("train", "TRAIN"), ("test", "TEST")):
        section = settings.get(section) if isinstance(settings, dict) else None
        if isinstance(section, dict) and section.get("CLASS_NAME"):
            names[split] = [str(name) for name in section["CLASS_NAME"]]
            _check_unique(names[split], path)
    if not names:
        raise ValueError(f"{path} has neither TRAIN.CLASS_NAME nor TEST.CLASS_NAME; give the YAML file of a benchmark.")
    return names


def _check_unique(names: list[str], path: Path):
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path} names the class {name!r} twice; each class has one id.")


def official_splits(
    list_folder: Path,
    video_root: Path,
    class_names_file: Path | None = None,
    validation_class_names_file: Path | None = None,
    splits: Sequence[str] = SPLITS,
    numbered: Sequence[str] = (),
) -> dict[str, list[Clip]]:
    """The videos of the official lists, whether or not their files exist.

    Args:
        list_folder: Folder of `train_few_shot.txt`, `val_few_shot.txt`, `test_few_shot.txt`.
        video_root: Folder that the paths in the lists are relative to.
        class_names_file: A YAML file of the official program with the names of base and test classes. Without it, the
            names come from the folders in the paths.
        validation_class_names_file: Names of the validation classes (no official file has them): one line per class in
            the order of the ids, or Something-Something's own JSON file of labels. Without it, the names come from the
            folders in the paths.
        splits: The splits to read.
        numbered: Splits whose classes get numbers for names if nothing says their names. A note says so.

    Raises:
        FileNotFoundError: If a list does not exist.
        ValueError: For a line in the wrong form, a class id without a name, or a split without class names.
    """
    official_names = read_official_class_names(class_names_file) if class_names_file else {}
    folders = _FolderListings(video_root)
    result = {}
    for split in splits:
        list_file = list_folder / _LIST_FILES[split]
        if not list_file.is_file():
            raise FileNotFoundError(
                f"{list_file} does not exist. The official lists are {', '.join(_LIST_FILES.values())} in one folder; "
                "--splits leaves one out."
            )
        videos = read_official_list(list_file)
        if split == "validation" and validation_class_names_file:
            names = _read_validation_names(validation_class_names_file, videos)
            names_source = validation_class_names_file
        elif split in official_names:
            names, names_source = dict(enumerate(official_names[split])), class_names_file
        elif split in numbered and not _folders_are_classes(videos):
            names, names_source = _numbered_names(videos, split), list_file
        else:
            names, names_source = _names_of_folders(videos, list_file, split), list_file
        for video in videos:
            if video.class_id not in names:
                raise ValueError(
                    f"{list_file}, line {video.line}: class id {video.class_id} has no name; {names_source} has "
                    f"{len(names)} names (ids 0 to {max(names)})."
                )
        result[split] = [Clip(folders.find(video.path), names[video.class_id]) for video in videos]
    return result


class _FolderListings:
    """Finds videos below a root. Lists each folder once: checking 70,000 files one by one is slow on a network."""

    def __init__(self, root: Path):
        if not root.is_dir():
            raise FileNotFoundError(f"The folder of the videos, {root}, does not exist.")
        self._root = root.absolute()
        self._listings: dict = {}  # folder -> stem -> file names; a converted file has the stem of the listed one

    def find(self, path: str, *others: str) -> str:
        """The file at `path` below the root, or a converted one with another suffix.

        If it is missing, the first of `others` that exists; if they are missing too, the expected path.
        """
        found = (self._existing(candidate) for candidate in (path, *others))
        return next((file for file in found if file is not None), str(self._expected(path)))

    def _existing(self, path: str) -> str | None:
        expected = self._root / path
        folder, stem = expected.parent, _stem(expected.name)
        if folder not in self._listings:
            self._listings[folder] = {}
            for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
                self._listings[folder].setdefault(_stem(name), []).append(name)
        names = self._listings[folder].get(stem, [])
        if expected.name in names:
            return str(expected)
        videos = [name for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
        videos.sort(key=lambda name: VIDEO_SUFFIXES.index(os.path.splitext(name)[1].lower()))
        return str(expected.with_name(videos[0])) if videos else None

    def _expected(self, path: str) -> Path:
        expected = self._root / path
        return expected if _stem(expected.name) != expected.name else expected.with_name(f"{expected.name}.mp4")


def _stem(name: str) -> str:
    """The name without its suffix. Only known suffixes are removed, because video ids may contain dots."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def _names_of_folders(videos: list[ListedVideo], list_file: Path, split: str) -> dict[int, str]:
    """Class names from paths such as brush_hair/xyz.avi."""
    option = "--validation_class_names" if split == "validation" else "--class_names_file"
    names: dict = {}
    for video in videos:
        folder = os.path.basename(os.path.dirname(video.path))
        if not folder:
            raise ValueError(
                f"{list_file}, line {video.line}: {video.path!r} does not say the name of its class: give the names of "
                f"the {split} classes with {option}, or leave the split out with --splits."
            )
        name = class_name_of_folder(folder)
        if names.setdefault(video.class_id, name) != name:
            raise ValueError(
                f"{list_file}, line {video.line}: class id {video.class_id} is {name!r} here and "
                f"{names[video.class_id]!r} further up: give the names of the {split} classes with {option}."
            )
    if not _folders_are_classes(videos):
        raise ValueError(
            f"{list_file}: classes share the folder {name!r}, so folders do not name them: give the names of the "
            f"{split} classes with {option}, or number them with --number_classes."
        )
    return names


def _folders_are_classes(videos: list[ListedVideo]) -> bool:
    """Whether each class has a folder of its own."""
    folders = {(video.class_id, os.path.dirname(video.path)) for video in videos}
    names = {os.path.basename(folder) for _, folder in folders}
    return "" not in names and len(names) >= len({class_id for class_id, _ in folders})


def _numbered_names(videos: list[ListedVideo], split: str) -> dict[int, str]:
    remedy = {"validation": "--validation_class_names takes names, or Something-Something's label file"}
    print(
        f"note: the {split} classes have numbers for names, because no file names them. Their texts mean nothing to "
        f"the model; {remedy.get(split, '--class_names_file takes names')}.",
        file=sys.stderr,
    )
    return {video.class_id: f"{split} class {video.class_id}" for video in videos}


def _read_validation_names(path: Path, videos: list[ListedVideo]) -> dict[int, str]:
    """Class names by class id, from a text file or, through the video ids, from Something-Something's labels."""
    if path.suffix != ".json":
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{path} names no classes: write one line per class, in the order of the ids.")
        _check_unique(lines, path)
        return dict(enumerate(lines))
    try:
        templates = {entry["id"]: entry["template"] for entry in read_json_text(path, "file_bytes")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not a label file of Something-Something, [{{"id": ..., "template": ...}}, ...] ({error!r}).'
        ) from None
    names: dict[int, str] = {}
    for video in videos:
        video_id = Path(video.path).stem
        if video_id in templates:
            name = templates[video_id].replace("[", "").replace("]", "")
            if names.setdefault(video.class_id, name) != name:
                raise ValueError(
                    f"{path} calls the videos of class id {video.class_id} {names[video.class_id]!r} and {name!r}: it "
                    "does not belong to this list."
                )
    if not names:
        raise ValueError(f"{path} has no label of any video of the validation list.")
    return names


# ----------------------------------------------------------------------------------------------------------------------
# Lists of TRX and the programs after it: https://github.com/tobyperrett/trx, https://github.com/D-XH/CLIP-MEI;
# meta_train.txt, ... of Diving48: https://github.com/OldStone0124/Knowledge-Prompting-for-FSAR
# ----------------------------------------------------------------------------------------------------------------------

_TRX_LISTS = {"train": "train", "validation": "val", "test": "test"}


def is_in_trx_form(list_folder: Path) -> bool:
    """Whether a folder holds lists such as `trainlist07.txt` or `meta_train.txt`, and none of the official program."""
    if any((list_folder / name).is_file() for name in _LIST_FILES.values()):
        return False
    return any(any(list_folder.glob(pattern)) for name in _TRX_LISTS.values() for pattern in _trx_patterns(name))


def _trx_patterns(name: str) -> tuple[str, str]:
    return f"{name}list[0-9][0-9].txt", f"meta_{name}.txt"


def trx_splits(
    list_folder: Path, video_root: Path, class_names_file: Path | None = None, splits: Sequence[str] = SPLITS
) -> dict[str, list[Clip]]:
    """The videos of lists with a line CLASS/VIDEO each: a folder of frames (or a file) CLASS/VIDEO below `video_root`,
    or SPLIT/CLASS/VIDEO, where SPLIT is train, val or test; or VIDEO, if there is no folder CLASS.

    Args:
        list_folder: Folder of `trainlistNN.txt`, `vallistNN.txt`, `testlistNN.txt` with one number NN, or of
            `meta_train.txt`, `meta_val.txt`, `meta_test.txt`.
        class_names_file: JSON file `{"train0": "Bending something until it breaks", ...}` for lists whose classes are
            called by split and number; for classes called by number also a JSON list of names, or of lists of words as
            in `Diving48_vocab.json`. Without it, classes are called as in the list.

    Raises:
        FileNotFoundError: If a list does not exist.
        ValueError: If a split has several lists, or a line another form; the message has file and line.
    """
    names = None if class_names_file is None else _read_names_of_classes(class_names_file)
    result = {}
    for split in splits:
        list_file = _trx_list(list_folder, split)
        root = video_root / _TRX_LISTS[split]
        folders, clips = _FolderListings(root if root.is_dir() else video_root), []
        for number, line in enumerate(read_text(list_file).splitlines(), start=1):
            class_name, _, video = line.strip().partition("/")
            if not line.strip():
                continue
            if not class_name or not video or "/" in video:
                raise ValueError(f"{list_file}, line {number}: {line.strip()!r} is not of the form CLASS/VIDEO.")
            if names is not None and class_name not in names:
                raise ValueError(f"{list_file}, line {number}: {class_names_file} has no name for {class_name!r}.")
            name = class_name_of_folder(class_name) if names is None else str(names[class_name])
            clips.append(Clip(folders.find(f"{class_name}/{video}", video), name))
        if not clips:
            raise ValueError(f"{list_file} names no videos.")
        result[split] = clips
    return result


def _read_names_of_classes(path: Path) -> dict[str, str]:
    content = read_json_text(path, "file_bytes")
    if isinstance(content, list):
        content = {str(number): name for number, name in enumerate(content)}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no class names: give a list of them, or an object with the name of each class.")
    return {key: " ".join(name) if isinstance(name, list) else str(name) for key, name in content.items()}


def _trx_list(list_folder: Path, split: str) -> Path:
    found = sorted(path for pattern in _trx_patterns(_TRX_LISTS[split]) for path in list_folder.glob(pattern))
    if not found:
        names = f"{_TRX_LISTS[split]}listNN.txt (NN: two digits) or meta_{_TRX_LISTS[split]}.txt"
        raise FileNotFoundError(f"{list_folder} has no {names}; --splits leaves a split out.")
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise ValueError(f"{list_folder} has several lists of {split}, {listed}: leave the one that you want there.")
    return found[0]


# ----------------------------------------------------------------------------------------------------------------------
# Folders and tables
# ----------------------------------------------------------------------------------------------------------------------


def folder_splits(folder: Path, left_out: LeftOut | None = None) -> dict[str, list[Clip]]:
    """The clips of a tree SPLIT/CLASS/VIDEO, or of CLASS/VIDEO, which gives one split "all".

    Videos may be in subfolders of a class folder, at any depth: see `find_clips`.

    Args:
        left_out: Counts what is not used as a clip.

    Raises:
        ValueError: If there are no videos (the message has the expected form), or if two folders have one class name.
    """
    left_out = LeftOut() if left_out is None else left_out
    names = class_folders(folder, left_out)
    if {name.lower() for name in names} & set(SPLIT_FOLDERS):
        unknown = [name for name in names if name.lower() not in SPLIT_FOLDERS]
        if unknown:
            raise ValueError(
                f"{folder} has split folders and also {', '.join(map(repr, unknown))}: move all classes into train, "
                "validation and test, or none."
            )
        result: dict = {}
        for name in names:  # there may be both val and validation
            classes = class_folders(folder / name, left_out)
            result.setdefault(SPLIT_FOLDERS[name.lower()], []).extend(
                _clips_of_classes(folder / name, classes, left_out)
            )
    else:
        _check_depth(folder, names)
        result = {"all": _clips_of_classes(folder, names, left_out)}
    if not any(result.values()):
        raise ValueError(
            f"{folder} holds no videos. Use SPLIT/CLASS/VIDEO or CLASS/VIDEO, where a video is a file "
            f"({', '.join(VIDEO_SUFFIXES)}) or a folder of images."
            f"{f' Other content was {left_out}.' if str(left_out) else ''}"
        )
    return {split: clips for split, clips in result.items() if clips}


def _check_depth(folder: Path, names: list[str]):
    """Refuses a folder around the data set: it would make the data set one class."""
    inner = class_folders(folder / names[0]) if len(names) == 1 else []
    if len({SPLIT_FOLDERS.get(name.lower()) for name in inner} - {None}) > 1:
        raise ValueError(f"The splits are one folder further down: give {folder / names[0]}.")


def _clips_of_classes(folder: Path, names: list[str], left_out: LeftOut) -> list[Clip]:
    clips = []
    for name, class_name in class_names_of_folders(names, folder).items():
        found = find_clips(os.path.abspath(folder / name), left_out)
        clips += [Clip(str(path), class_name) for path in found]
        if not found:
            left_out.empty_classes.append(name)
    return clips


def table_splits(
    table: Path,
    video_root: Path | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
) -> dict[str, list[Clip]]:
    """The clips of a CSV, TSV or JSON Lines file with columns for path, class and (optional) split.

    Without a column of splits, all videos are in one split "all". Paths are relative to `video_root`, or to the folder
    of the table. Optional columns `start_seconds` and `end_seconds` make a row a part of its video.

    Raises:
        ValueError: For a missing column (the message lists the columns), an empty value or an unknown split. The
            message has the line.
    """
    root = table.parent if video_root is None else video_root
    result: dict = {}
    for line, row in read_rows(table, (path_column, label_column, split_column)):
        for option, column in (("path_column", path_column), ("label_column", label_column)):
            if column not in row:
                meant = _nearest_column(column, row)
                raise ValueError(
                    f"{table}, line {line}: there is no column {column!r}; there are {', '.join(map(str, row))}."
                    f"{f' Did you mean --{option} {meant!r}?' if meant else ''}"
                )
            if row[column] in (None, ""):
                raise ValueError(f"{table}, line {line}: the column {column!r} is empty.")
        if len(str(row[label_column]).splitlines()) > 1:
            raise ValueError(
                f"{table}, line {line}: the class name {row[label_column]!r} has a line break. Remove it, or the "
                "quotation mark before it."
            )
        split = SPLIT_FOLDERS.get(str(row[split_column]).lower()) if split_column in row else "all"
        if split is None:
            raise ValueError(f"{table}, line {line}: split {row[split_column]!r} is not one of {', '.join(SPLITS)}.")
        path = str(row[path_column])
        if "://" not in path:
            path = _local_path(root, path)
        part = _part_of_row(f"{table}, line {line}", path, row)
        result.setdefault(split, []).append(Clip(part, str(row[label_column])))
        if len(result) > 1 and "all" in result:
            raise ValueError(f"{table}, line {line}: some lines have a column {split_column!r} and some have none.")
    if not result:
        raise ValueError(f"{table} names no videos.")
    return result


def _part_of_row(where: str, path: str, row: dict) -> str:
    """The path of a row, or of the part of its video that the columns of times say."""
    start, end = (row.get(column) for column in TIME_COLUMNS)
    if start in (None, "") and end in (None, ""):
        return path
    try:
        return with_span(path, float(start or 0), None if end in (None, "") else float(end))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{where}: {TIME_COLUMNS[0]} {start!r} and {TIME_COLUMNS[1]} {end!r} are no part of a video: give seconds, "
            "the end after the start."
        ) from None


def _nearest_column(column: str, row: dict) -> str | None:
    by_case = {str(name).casefold(): str(name) for name in row}
    return by_case.get(nearest(column.casefold(), by_case) or "")


def _local_path(root: Path, path: str) -> str:
    """An absolute path. `~` is the home folder. Windows paths work on other systems as well."""
    absolute = (local_path(root) / local_path(path)).absolute()
    if "\\" in path and os.sep == "/" and not absolute.exists():
        absolute = (local_path(root) / local_path(path.replace("\\", "/"))).absolute()
    return str(absolute)


def listed_clips(arguments: PrepareArguments, left_out: LeftOut | None = None) -> dict[str, list[Clip]] | None:
    """The clips of official lists, a table or a folder, by split. None for a saved data set or a Hub id."""
    if arguments.official_splits is None:
        return _listed_by_source(arguments, left_out)
    assert arguments.video_root is not None  # the options were checked
    lists, video_root = Path(arguments.official_splits), Path(arguments.video_root)
    class_names_file = _path_or_none(arguments.class_names_file)
    if is_in_trx_form(lists):
        named = "lists of lines CLASS/VIDEO, which name the classes"
        check_without_effect(arguments, ("validation_class_names", "number_classes"), named)
        return trx_splits(lists, video_root, class_names_file, arguments.splits)
    return official_splits(
        lists,
        video_root,
        class_names_file,
        _path_or_none(arguments.validation_class_names),
        arguments.splits,
        SPLITS if arguments.number_classes else ("validation",) if arguments.benchmark is not None else (),
    )


def _listed_by_source(arguments: PrepareArguments, left_out: LeftOut | None) -> dict[str, list[Clip]] | None:
    assert arguments.source is not None  # the options were checked
    source = Path(arguments.source)
    suffix = source.suffix.lower()
    if source.is_file() and suffix not in (*TABLE_SUFFIXES, *LABEL_SUFFIXES):
        raise ValueError(
            f"--source {source} is a file, but not a table: tables end in {' or '.join(TABLE_SUFFIXES)}, labels of "
            "Label Studio in .json, those of CVAT in .xml."
        )
    if suffix in (*TABLE_SUFFIXES, *LABEL_SUFFIXES) and not source.exists():
        raise FileNotFoundError(f"--source {source} does not exist.")
    root = _path_or_none(arguments.video_root)
    if source.is_file() and suffix in TABLE_SUFFIXES:
        columns = (arguments.path_column, arguments.label_column, arguments.split_column)
        return table_splits(source, root, *columns)
    if is_labels(source):
        clips = read_labelled_clips(
            source,
            root,
            video_column=arguments.video_column,
            label_column=arguments.label_column,
            label_fps=arguments.label_fps,
            skip_unreadable=arguments.skip_bad_videos,
            seconds_per_video=arguments.seconds_per_video,
            left_out=left_out,
        )
        return {"all": clips}
    is_saved = any((source / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if source.is_dir() and not is_saved and not any(source.rglob("*.parquet")):
        return folder_splits(source, left_out)
    return None


def check_options_of_source(arguments: PrepareArguments) -> None:
    """Raises `ValueError` for an option about paths in a list beside a source that is no list."""
    if arguments.source is not None:
        source = Path(arguments.source)
        if not (source.suffix.lower() in (*TABLE_SUFFIXES, *LABEL_SUFFIXES) or is_labels(source)):
            check_without_effect(arguments, ("video_root", "label_fps"), f"{source}, which holds the videos itself")


def is_labels(path: Path) -> bool:
    """Whether a path is an export of Label Studio or CVAT, or a folder of such files and nothing else."""
    if path.is_dir():
        files = [path / name for name in os.listdir(path) if not is_hidden(name)]
        return bool(files) and all(file.is_file() and is_labels(file) for file in files)
    return path.suffix.lower() in LABEL_SUFFIXES and path.name not in _DATA_SET_FILES


def read_labelled_clips(
    path: str | os.PathLike,
    video_root: str | os.PathLike | None = None,
    *,
    video_column: str = VIDEO,
    label_column: str = LABEL,
    label_fps: float | None = None,
    skip_unreadable: bool = False,
    seconds_per_video: float = SECONDS_PER_VIDEO,
    left_out: LeftOut | None = None,
) -> list[Clip]:
    """The clips of labels from Label Studio (.json) or CVAT (.xml), of a folder of such files, or of a table.

    Args:
        video_root: Folder of the videos. Default: the folder of the file.
        video_column, label_column, label_fps: See `read_label_studio`.
        skip_unreadable: Leave out parts of videos that cannot be opened.
        left_out: Counts what is not used.

    Raises:
        ValueError: For a file of another form, or one without labels. The message has file, task and field.
    """
    path, left_out = local_path(path), LeftOut() if left_out is None else left_out
    root = None if video_root is None else local_path(video_root)
    videos = VideoFolder((path if path.is_dir() else path.parent) if root is None else root)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return [clip for clips in table_splits(path, root, label_column=label_column).values() for clip in clips]
    labels = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if is_hidden(file.name):
            continue
        if file.suffix.lower() == ".xml":
            labels += read_cvat(file, videos, left_out)
        else:
            labels += read_label_studio(file, videos, video_column, label_column, label_fps, left_out)
    return clips_of(labels, left_out, skip_unreadable, seconds_per_video)


def labelled_clips(path: str | os.PathLike, video_root: str | os.PathLike | None = None, **options) -> dict[str, list]:
    """`{class name: clips}` of labels from a labelling tool or of a table, for `SupportSet.from_videos`.

    A clip is a path, or the name of a part of a video, such as `long.mp4#t=12.5,15`.

    Args:
        path: Export of Label Studio (.json) or CVAT (.xml), folder of such files, or table (.csv, .tsv, .jsonl).
        video_root: Folder of the videos. Default: the folder of the file.
        options: `video_column` and `label_column` (field of the videos and name of the labelling tag in Label Studio,
            column of the classes in a table), `label_fps` (rate at which Label Studio counted frames), and
            `skip_unreadable` (leave out parts of videos that cannot be opened).

    Raises:
        ValueError: For a file of another form, or one without labels. The message has file, task and field.
    """
    classes: dict[str, list] = {}
    for clip in read_labelled_clips(path, video_root, **options):
        classes.setdefault(clip.class_name, []).append(clip.path)
    return classes


def _path_or_none(path: str | None) -> Path | None:
    return None if path is None else Path(path)


def to_dataset(splits: dict[str, list[Clip]]) -> DatasetDict:
    """Makes a data set with the columns `video` (paths) and `label` (class names).

    Raises:
        ValueError: For a name that is not UTF-8; a data set cannot store it.
    """
    for clip in itertools.chain.from_iterable(splits.values()):
        for name in (clip.class_name, clip.path):
            check_utf8("The name", name, "rename the file or folder")
    features = Features({"video": Value("string"), "label": Value("string")})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"video": [clip.path for clip in clips], "label": [clip.class_name for clip in clips]}, features
            )
            for split, clips in splits.items()
            if clips
        }
    )


__all__ = [
    "SPLITS",
    "SPLIT_FOLDERS",
    "VIDEO_SUFFIXES",
    "Clip",
    "check_options_of_source",
    "class_name_of_folder",
    "folder_splits",
    "is_in_trx_form",
    "is_labels",
    "labelled_clips",
    "listed_clips",
    "official_splits",
    "read_labelled_clips",
    "read_official_class_names",
    "read_official_list",
    "table_splits",
    "to_dataset",
    "trx_splits",
]
