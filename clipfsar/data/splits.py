"""Reads a video data set with class-disjoint splits from a folder or the Hub."""

import warnings
from collections.abc import Callable
from pathlib import Path

from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    DatasetInfo,
    Features,
    NamedSplit,
    Video,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetBuildError
from datasets.packaged_modules.videofolder.videofolder import VideoFolder
from pyarrow import ArrowInvalid
from pyarrow.parquet import read_metadata, read_schema

from choices_clipfsar import normalized_class_name
from clipfsar.data.addresses import local_copy
from clipfsar.data.clips import LeftOut, find_clips
from clipfsar.data.older_reader import REPORT, check_kept_frames
from clipfsar.data.sources import SPLIT_FOLDERS
from clipfsar.json_files import read_json
from episodes_clipfsar import read_labels, undecoded_videos
from paths_clipfsar import class_names_of_folders, has_protocol, local_path, looks_like_path

MANY_VIDEOS = 20_000
WORK_FOLDER = ".preparing"  # exists in the folder of a data set during its preparation


def check_split(source: str, name: str, splits: DatasetDict) -> None:
    """Raises `ValueError` if a data set has no split of this name."""
    if name not in splits:
        raise ValueError(
            f"{source} has no split {name!r}; it has {', '.join(splits)}. Choose one of these with --split. For a "
            "folder of example clips, clipfsar review estimates the accuracy."
        )


def load_video_splits(source: str, video_column: str = "video", label_column: str = "label") -> DatasetDict:
    """Loads the splits of a video data set. Videos are not decoded.

    For a `videofolder` tree, folder names become class names in words: brush_hair and ApplyEyeMakeup become "brush
    hair" and "Apply Eye Makeup".

    Args:
        source: A folder written by `save_to_disk`, a folder of Parquet files, a `videofolder` tree
            (`train/CLASS/*.mp4`, `validation/...`, `test/...`), the id of a data set on the Hub, or the address of
            such a folder (s3://..., gs://..., hf://...), which is copied into the cache of `datasets`.
        video_column, label_column: Names of the two columns.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If a column is missing (the message lists the columns), two folders have one class name, the
            preparation of the data set is unfinished, or its files are damaged.
    """
    if has_protocol(source):
        source = local_copy(source)
    path = Path(source)
    if path.is_file():
        raise ValueError(f"{source} is a file: clipfsar prepare --source {source} makes a data set from it.")
    if path.is_dir() and not any(path.iterdir()):
        raise FileNotFoundError(f"{source} is an empty folder; a data set with videos is needed.")
    if (path / WORK_FOLDER).is_dir() and not (path / REPORT).is_file():
        raise ValueError(
            f"{source} is still being prepared, or its preparation was interrupted: wait for it, or finish it with the "
            "same clipfsar prepare command."
        )
    check_kept_frames(path)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        _check_saved_rows(path)
        splits = _read_files(load_from_disk, source)
    elif path.is_dir() or ("/" in source and not looks_like_path(source)):  # data sets on the Hub have an owner
        splits = _load_folder(path, label_column) if path.is_dir() else _read_files(load_dataset, source)
    else:
        raise FileNotFoundError(
            f"{source} does not exist. Give a folder with videos or the Hub id of a data set (OWNER/NAME); "
            "clipfsar prepare converts videos in other forms."
        )
    if isinstance(splits, Dataset):
        splits = DatasetDict(train=splits)
    for name, split in splits.items():
        if not len(split):
            raise _without_videos(source, name)
        try:
            read_labels(split.select([0]), label_column)
            splits[name] = _with_class_names_in_words(undecoded_videos(split, video_column), label_column)
        except ValueError as error:
            raise ValueError(f"{source}, split {name!r}: {error}") from None
    return splits


def _without_videos(source: str, split: str) -> ValueError:
    return ValueError(f"{source}, split {split!r} holds no videos: leave it out or fill it.")


def _check_saved_rows(folder: Path):
    """Refuses damaged JSON files, and a split without rows, which has no files: `load_from_disk` has no words for them.

    It ends with an `AttributeError` or an `IndexError`.
    """
    remedy = "save the data set again"
    listed = folder / "dataset_dict.json"
    names = read_json(listed, remedy).get("splits", []) if listed.is_file() else [""]
    for name in names:
        info, state = folder / name / "dataset_info.json", folder / name / "state.json"
        if info.is_file():
            read_json(info, remedy)
        if state.is_file() and not read_json(state, remedy).get("_data_files"):
            raise _without_videos(str(folder), name or "train")


def _read_files(read: Callable[[str], Dataset | DatasetDict], source: str) -> Dataset | DatasetDict:
    """Calls `load_from_disk` or `load_dataset`. Their errors do not say which data set, or which file, is damaged."""
    try:
        return read(source)
    except (DatasetBuildError, ValueError) as error:
        cause = _unusable_parquet_file(Path(source)) or str(error.__cause__ or error)
        remedy = " Write the file again, or remove it." if Path(source).is_dir() else ""
        raise ValueError(f"{source} cannot be read as a data set: {cause.rstrip().rstrip('.')}.{remedy}") from error


def _unusable_parquet_file(folder: Path) -> str | None:
    """What is wrong with the first file that Arrow cannot open or that has no rows; None if there is none."""
    for file in sorted(folder.rglob("*.parquet")):
        try:
            num_rows = read_metadata(file).num_rows
        except ArrowInvalid as error:
            return f"{file}: {error}"
        if not num_rows:
            return f"{file} has no rows"
    return None


def _load_folder(folder: Path, label_column: str) -> DatasetDict:
    """The splits of a folder of videos or Parquet files. A tree of videos is walked only once."""
    left_out = LeftOut()
    clips = find_clips(local_path(folder).resolve(), left_out)
    if len(clips) > MANY_VIDEOS:
        warnings.warn(
            f"{folder} holds {len(clips):,} videos in separate files: clipfsar prepare --source {folder} decodes each "
            "of them once, and training and evaluation then read its frames several times faster.",
            stacklevel=3,
        )
    if not left_out.suffixes:  # with more posters than videos, load_dataset would take the posters
        splits = _splits_of_tree(local_path(folder).resolve(), clips)
        if splits is not None:
            _warn_of_images(folder, left_out.num_images)
            return splits
    splits = _read_files(load_dataset, str(folder))
    _warn_of_files_left_out(folder, splits, clips)
    _check_class_names_of_files(folder, label_column)
    return splits


def _splits_of_tree(root: Path, clips: list[Path]) -> DatasetDict | None:
    """The data set that `load_dataset` makes of a plain tree SPLIT/CLASS/VIDEO; None for any other tree.

    `load_dataset` walks the tree about 50 times to match its patterns of names. Here the name of the first folder
    alone decides the split: `load_dataset` takes the class "test drive" of the split `train` for test videos.
    """
    places = [(clip.relative_to(root).parts, clip) for clip in sorted(clips, key=str)]
    names = {parts[0] for parts, _ in places}
    class_names = sorted({parts[-2] for parts, _ in places if len(parts) == 3})
    is_plain = all(len(parts) == 3 and clip.suffix.lower() in VideoFolder.EXTENSIONS for parts, clip in places)
    if not is_plain or not names <= SPLIT_FOLDERS.keys() or len(class_names) < 2:
        return None
    if len({SPLIT_FOLDERS[name] for name in names}) < len(names):
        return None
    features = Features({"video": Video(decode=False), "label": ClassLabel(names=class_names)})
    numbers = {name: number for number, name in enumerate(class_names)}
    splits = DatasetDict()
    for name in sorted(names, key=list(SPLIT_FOLDERS).index):
        rows = [(str(clip), numbers[parts[1]]) for parts, clip in places if parts[0] == name and _has_file(clip)]
        columns = {"video": [path for path, _ in rows], "label": [label for _, label in rows]}
        split, info = NamedSplit(SPLIT_FOLDERS[name]), DatasetInfo(builder_name="videofolder", features=features)
        splits[str(split)] = Dataset.from_dict(columns, features, info, split)
    return splits


def _warn_of_images(folder: Path, number: int):
    """Warns of images next to videos. They may be posters, or the frames of clips."""
    if number:
        warnings.warn(
            f"{folder} holds {number:,} image {'file' if number == 1 else 'files'} next to videos, which are left out. "
            "If they are frames of clips, move the videos out of these folders.",
            stacklevel=4,
        )


def _has_file(clip: Path) -> bool:
    """False for a broken link, which `load_dataset` leaves out."""
    return not clip.is_symlink() or clip.is_file()


def _warn_of_files_left_out(folder: Path, splits: DatasetDict, clips: list[Path]):
    """Warns of videos that `load_dataset` ignores: it knows few suffixes and silently leaves out other files."""
    if any(split.info.builder_name != "videofolder" for split in splits.values()):
        return
    num_videos = sum(clip.is_file() for clip in clips)
    num_rows = sum(len(split) for split in splits.values())
    if num_rows < num_videos:
        warnings.warn(
            f"{folder} holds {num_videos} videos, but load_dataset reads {num_rows} of them: it knows few file types. "
            f"clipfsar prepare --source {folder} reads them all.",
            stacklevel=4,
        )


def _check_class_names_of_files(folder: Path, label_column: str):
    """Refuses Parquet files with different class names: `load_dataset` silently uses those of the first file."""
    names = {}
    for file in sorted(folder.rglob("*.parquet")):
        feature = Features.from_arrow_schema(read_schema(file)).get(label_column)
        names[file.name] = getattr(feature, "names", None)
    if len({tuple(value) for value in names.values() if value is not None}) > 1:
        raise ValueError(
            f"The Parquet files {', '.join(names)} in {folder} do not have the same class names in their "
            f"{label_column!r} columns: write them with one ClassLabel for all splits, or with class names as strings."
        )


def _with_class_names_in_words(split: Dataset, label_column: str) -> Dataset:
    """Splits class names that come from folders into words. Other class names do not change."""
    label = split.features[label_column]
    if split.info.builder_name != "videofolder" or not isinstance(label, ClassLabel):
        return split
    names = list(class_names_of_folders(label.names, f"the split {split.split}").values())
    if names == label.names:
        return split
    info = split.info.copy()
    info.features[label_column] = ClassLabel(names=names)  # the label numbers in the table do not change
    return Dataset(split.data.cast(info.features.arrow_schema), info, split.split)


def check_disjoint_classes(
    splits: DatasetDict,
    label_column: str = "label",
    remedy: str = "to continue anyway, give --allow_shared_classes; the results will say so",
):
    """Checks that splits share no classes: few-shot accuracy is measured on classes that training never saw.

    Spelling variants such as brush_hair and Brush Hair count as one class.

    Raises:
        ValueError: If two splits share classes; the message names them.
    """
    names = {
        split: {normalized_class_name(name): name for name in read_labels(dataset, label_column)[1]}
        for split, dataset in splits.items()
    }
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sorted(names[first][name] for name in names.get(first, {}).keys() & names.get(second, {}).keys())
        if shared:
            raise ValueError(
                f"The splits {first!r} and {second!r} share {len(shared)} "
                f"{'class' if len(shared) == 1 else 'classes'}: {', '.join(shared[:10])}"
                f"{', ...' if len(shared) > 10 else ''}. Few-shot splits have disjoint classes; {remedy}."
            )


__all__ = ["WORK_FOLDER", "check_disjoint_classes", "check_split", "load_video_splits"]
