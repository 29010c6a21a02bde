"""Reads a video data set with class-disjoint splits from a folder or the Hub."""

import warnings
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, load_dataset, load_from_disk
from pyarrow.parquet import read_schema

from clipfsar.data.addresses import local_copy
from clipfsar.data.clips import find_clips
from clipfsar.data.older_reader import REPORT, check_kept_frames
from episodes_clipfsar import read_labels, undecoded_videos
from paths_clipfsar import class_names_of_folders, has_protocol, looks_like_path, normalized_class_name

WORK_FOLDER = ".preparing"  # exists in the folder of a data set during its preparation


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
        ValueError: If a column is missing (the message lists the columns), two folders have one class name, or the
            preparation of the data set is unfinished.
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
        splits = load_from_disk(source)
    elif path.is_dir() or ("/" in source and not looks_like_path(source)):  # data sets on the Hub have an owner
        splits = load_dataset(source)
        _warn_of_files_left_out(path, splits)
        _check_class_names_of_files(path, label_column)
    else:
        raise FileNotFoundError(
            f"{source} does not exist. Give a folder with videos or the Hub id of a data set (OWNER/NAME); "
            "clipfsar prepare converts videos in other forms."
        )
    if isinstance(splits, Dataset):
        splits = DatasetDict(train=splits)
    for name, split in splits.items():
        if not len(split):
            raise ValueError(f"{source}, split {name!r} holds no videos: leave it out or fill it.")
        try:
            read_labels(split.select([0]), label_column)
            splits[name] = _with_class_names_in_words(undecoded_videos(split, video_column), label_column)
        except ValueError as error:
            raise ValueError(f"{source}, split {name!r}: {error}") from None
    return splits


def _warn_of_files_left_out(folder: Path, splits: DatasetDict):
    """Warns of videos that `load_dataset` ignores: it knows few suffixes and silently leaves out other files."""
    if not folder.is_dir() or any(split.info.builder_name != "videofolder" for split in splits.values()):
        return
    num_videos = sum(clip.is_file() for clip in find_clips(folder))
    num_rows = sum(len(split) for split in splits.values())
    if num_rows < num_videos:
        warnings.warn(
            f"{folder} holds {num_videos} videos, but load_dataset reads {num_rows} of them: it knows few file types. "
            f"clipfsar prepare --source {folder} reads them all.",
            stacklevel=3,
        )


def _check_class_names_of_files(folder: Path, label_column: str):
    """Refuses Parquet files with different class names: `load_dataset` silently uses those of the first file."""
    names = {}
    for file in sorted(folder.rglob("*.parquet")) if folder.is_dir() else ():
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
                f"The splits {first!r} and {second!r} share {len(shared)} classes: {', '.join(shared[:10])}"
                f"{', ...' if len(shared) > 10 else ''}. Few-shot splits have disjoint classes; {remedy}."
            )


__all__ = ["WORK_FOLDER", "check_disjoint_classes", "load_video_splits"]
