"""Preparing a data set: what comes of every source, what is found wrong, interruptions, and the way on to training."""

import contextlib
import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, Video, load_dataset, load_from_disk
from datasets.table import embed_table_storage
from PIL import Image
from tiny_data import (
    COLOURS,
    SETTINGS,
    read_log,
    run_in_children,
    save_tiny_clip,
    video_splits,
    write_video,
    write_video_folder,
)

from clipfsar.cli import main as clipfsar
from clipfsar.data import frame_store
from clipfsar.data import prepare as prepare_dataset
from clipfsar.data.arguments import parse_arguments
from clipfsar.data.copies import copies
from clipfsar.data.frame_store import MISSING, FrameStoreSettings, in_processes
from clipfsar.data.prepare import Preparation, _notes_on_sizes, _options_of_small_splits, with_class_names
from clipfsar.data.splits import check_disjoint_classes, load_video_splits
from clipfsar.evaluation.arguments import EvaluateArguments
from clipfsar.evaluation.evaluate_model import main as evaluate
from clipfsar.locks import FolderInUseError, FolderLock
from clipfsar.training.arguments import parse_arguments as parse_training_arguments
from clipfsar.training.program import main as train
from episodes_clipfsar import EpisodeSampler
from processing_clipfsar import CLIPFSARProcessor

NUM_VIDEOS = {"train": 12, "validation": 9, "test": 9}  # three of each class of COLOURS


@pytest.fixture(scope="module", autouse=True)
def children(tmp_path_factory):
    """Starts the server that all child processes are forked from, which has imported everything once."""
    run_in_children(print, folder=tmp_path_factory.mktemp("server")).check()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    return write_video_folder(tmp_path_factory.mktemp("videos"), videos_per_class=3)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def command_line(**options) -> list[str]:
    arguments = []
    for name, value in options.items():
        arguments += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return arguments


def prepare(output_dir: Path, **options) -> Path:
    """What the program does with these options; everything is read by one process unless they say otherwise."""
    settings = {"output_dir": output_dir} | ({} if options.get("skip_reading") else {"num_workers": 1})
    settings |= ({"frame_size": 16} if options.get("frame_store", "none") != "none" else {}) | options
    Preparation(parse_arguments(command_line(**settings))).run()
    return output_dir


@pytest.fixture
def table(video_folder, tmp_path):
    """A table of six videos of two classes, all for training, whose files a test may damage."""
    lines = ["path,label,split"]
    (tmp_path / "videos").mkdir()
    for name in ("green", "red"):
        for number in range(3):
            path = f"videos/{name}{number}.mp4"
            shutil.copy(video_folder / "train" / name / f"{number}.mp4", tmp_path / path)
            lines.append(f"{path},{name},train")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "clips.csv"


def cut_off(path: Path):
    path.write_bytes(path.read_bytes()[:200])


def damage_unnoticed(path: Path):
    """A file that was read before seems unchanged; if it were read again, it would be found bad."""
    before = path.stat()
    path.write_bytes(b"?" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rows_of(splits: DatasetDict, column: str = "path") -> dict[str, list[tuple[str, str]]]:
    """Path (or file name) and class name of every video, by split."""
    result = {}
    for split, dataset in splits.items():
        videos = [video["path"] if isinstance(video, dict) else video for video in dataset["video"]]
        videos = videos if column == "path" else [Path(video).name for video in videos]
        result[split] = list(zip(videos, dataset["label"], strict=True))
    return result


def bad_videos(folder: Path) -> list[dict]:
    with (folder / "bad_videos.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def counts_in(printed: str) -> dict[str, list[int]]:
    """Classes, videos, missing, unreadable and videos of the smallest class, by split, out of the printed table."""
    rows = re.findall(r"^(train|validation|test) +(\d+) +([\d,]+) +([\d,]+) +([\d,]+) +(\d+) videos?$", printed, re.M)
    return {split: [int(number.replace(",", "")) for number in numbers] for split, *numbers in rows}


# --- what comes of a source -------------------------------------------------------------------------------------------


def tree_rows(video_folder: Path) -> dict[str, list[tuple[str, str]]]:
    return {
        split: [
            (str(video_folder / split / name / f"{number}.mp4"), name.replace("_", " "))
            for name in sorted(colours)
            for number in range(3)
        ]
        for split, colours in COLOURS.items()
    }


def test_a_tree_becomes_a_folder_for_load_from_disk(video_folder, tmp_path, capsys):
    folder = prepare(tmp_path / "data", source=video_folder)
    splits = load_from_disk(folder)
    assert rows_of(splits) == tree_rows(video_folder)
    assert list(splits) == ["train", "validation", "test"]
    for dataset in splits.values():
        assert dataset.features == Features({"video": Value("string"), "label": Value("string")})
    assert rows_of(load_video_splits(str(folder))) == tree_rows(video_folder)
    printed = capsys.readouterr().out
    assert "\n\n" not in printed
    assert counts_in(printed) == {
        "train": [4, 12, 0, 0, 3],
        "validation": [3, 9, 0, 0, 3],
        "test": [3, 9, 0, 0, 3],
    }
    assert not (folder / "bad_videos.csv").exists()
    assert not (folder / ".preparing").exists()


def test_what_is_left_out_of_a_tree_is_said_at_the_end(video_folder, tmp_path, capsys):
    source = shutil.copytree(video_folder, tmp_path / "videos")
    some_class = next(folder for folder in (source / "train").iterdir())
    (some_class / "notes.txt").touch()
    (some_class / ".DS_Store").touch()
    (source / "train" / "nothing").mkdir()
    prepare(tmp_path / "data", source=source)
    lines = capsys.readouterr().out.splitlines()
    assert "left out: 1 file that is not a video (.txt 1), 1 hidden, class folders without clips: 'nothing'" in lines
    options = "--n_way 3 --train_n_query 2 --n_shot 1"
    assert lines[-1].endswith(f"is ready: clipfsar train --dataset {tmp_path / 'data'} {options} ...")
    notes = [line for line in lines if line.startswith("note: ") and "default episodes" in line]
    assert [note.split()[1:6] for note in notes] == [
        ["train", "has", "4", "classes", "with"],
        ["validation", "and", "test", "have", "3"],
    ]
    assert [note.partition("validation. ")[2] for note in notes] == [
        "Use --n_way 4 --train_n_query 2, or prepare into another --output_dir with --class_split.",
        "Use --n_way 3 --n_shot 1, or prepare into another --output_dir with --class_split.",
    ]


@pytest.mark.parametrize(
    ("train", "test", "options"),
    [
        (6, 6, []),
        (5, 6, ["--train_n_query 4"]),
        (6, 5, ["--n_shot 1"]),  # five examples leave no query
        (2, 2, ["--train_n_query 1", "--n_shot 1"]),
    ],
)
def test_the_options_for_small_classes_begin_with_the_sixth_video_missing(train, test, options):
    classes = {"train": dict.fromkeys("abcde", 9), "test": dict.fromkeys("fghij", 9)}
    classes["train"]["c"], classes["test"]["g"] = train, test
    assert _options_of_small_splits(classes) == options


def test_a_split_of_one_class_is_said_with_the_remedy(video_folder, tmp_path, capsys):
    prepare(tmp_path / "data", source=video_folder, class_split=[8, 1, 1])
    output = capsys.readouterr().out
    assert "note: validation and test have 1 class with at least 3 videos" in output
    assert output.splitlines()[-1].endswith(
        "is ready, but a split has a single class. Prepare into another --output_dir with "
        "--class_split, so that every split has two classes or more."
    )


def test_two_classes_in_each_split_are_enough_to_train_on():
    preparation = object.__new__(Preparation)
    preparation.output_dir, preparation.arguments = Path("data/gym"), SimpleNamespace(model=None)
    splits = {"train": {"a": 6, "b": 2}, "test": {"c": 6, "d": 6}}
    ready = "data/gym is ready: clipfsar train --dataset data/gym --n_way 2 --train_n_query 1 ..."
    assert preparation._what_next(splits) == ready
    one = preparation._what_next({"train": {"a": 6, "b": 6}, "test": {"c": 6}})
    assert one.startswith("data/gym is ready, but a split has a single class. Training needs 2 classes in each split.")
    few = preparation._what_next({"train": {"a": 6, "b": 1}, "test": {"c": 6, "d": 6}})
    assert few.startswith("data/gym is ready, but too small to train on: its split 'train' has 1 class of 2 or more")


def test_four_classes_are_no_three_splits_and_the_advice_is_to_use_them_as_examples():
    preparation = object.__new__(Preparation)
    preparation.output_dir = Path("data/gym")
    splits = {"train": Counter(a=6, b=6), "validation": Counter(c=6), "test": Counter(d=6)}
    for text in (preparation._what_next(splits), *_notes_on_sizes(splits)[1:]):
        assert "--class_split" not in text
        assert "Training needs 2 classes in each split. Use the clips as examples instead: clipfsar predict" in text


@pytest.mark.parametrize(("size", "is_small"), [(2, []), (1, ["validation"])])
def test_validation_needs_two_videos_of_a_class_and_the_others_six(size, is_small):
    sizes = {"train": 6, "validation": size, "test": 6}
    notes = _notes_on_sizes({split: Counter(dict.fromkeys("abcde", one)) for split, one in sizes.items()})
    assert [note.split()[1] for note in notes] == is_small
    notes = _notes_on_sizes({"train": Counter(dict.fromkeys("abcde", 5)), "test": Counter(dict.fromkeys("abcde", 5))})
    assert ["train and test have 5 classes with at least 5 videos" in note for note in notes] == [True]


@pytest.mark.parametrize("is_told", [True, False])
def test_the_options_for_small_splits_make_episodes_fit(is_told, tmp_path):
    smallest = {"train": 4, "validation": 2, "test": 3}
    classes = {split: dict.fromkeys("abc", size) for split, size in smallest.items()}
    options = _options_of_small_splits(classes) if is_told else []
    line = f"--dataset {tmp_path} --model m --output_dir {tmp_path / 'run'} {' '.join(options)}"
    args = parse_training_arguments(line.split())
    episodes = [("train", args.train_n_shot, args.train_n_query), ("validation", args.n_shot[0], args.n_query)]
    for split, n_shot, n_query in [*episodes, *(("test", n_shot, args.n_query) for n_shot in args.n_shot)]:
        labels = np.repeat(range(3), smallest[split])
        with contextlib.nullcontext() if is_told else pytest.raises(ValueError, match="are needed"):
            EpisodeSampler(labels, args.n_way, n_shot, n_query, 0)


def test_a_class_with_a_single_video_is_said_instead_of_a_command_that_fails():
    preparation = object.__new__(Preparation)
    preparation.output_dir = Path("data/mine")
    said = preparation._what_next({"train": {"a": 2, "b": 2, "c": 1}, "test": {"d": 3, "e": 3}})
    assert said.startswith("data/mine is ready, but has 1 class with a single video, such as 'c' in train, and ")


def test_what_is_too_small_to_train_on_is_said_with_what_it_is_good_for(tmp_path, capsys):
    for name in ("red", "blue"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        write_video(tmp_path / "videos" / name / "a.mp4", (200, 30, 30), seed=0)
    prepare(tmp_path / "data", source=tmp_path / "videos")
    last = capsys.readouterr().out.splitlines()[-1]
    assert "is ready, but too small to train on" in last
    assert "clipfsar predict --support_set" in last


def test_a_tree_becomes_parquet_files_for_load_dataset(video_folder, tmp_path, monkeypatch):
    # Small enough files that a split takes several; it must come back whole and in order.
    monkeypatch.setattr(prepare_dataset, "BYTES_PER_PARQUET_FILE", 500)
    folder = prepare(tmp_path / "data", source=video_folder, format="parquet", skip_reading=True)
    assert len(list((folder / "data").glob("train-*-of-*.parquet"))) > 1
    splits = load_dataset(str(folder))
    assert rows_of(splits) == tree_rows(video_folder)
    assert list(splits) == ["train", "validation", "test"]
    assert rows_of(load_video_splits(str(folder))) == tree_rows(video_folder)


@pytest.mark.parametrize("format", ["disk", "parquet"])
def test_saved_splits_that_number_their_classes_each_for_itself_keep_their_names(format, video_folder, tmp_path):
    video_splits(video_folder).save_to_disk(tmp_path / "saved")
    folder = prepare(tmp_path / "data", source=tmp_path / "saved", format=format, skip_reading=True)
    expected = {s: [(p, name.replace(" ", "_")) for p, name in rows] for s, rows in tree_rows(video_folder).items()}
    assert rows_of(load_video_splits(str(folder))) == expected


def test_a_flat_folder_is_shared_out_by_classes_and_a_seed(video_folder, tmp_path):
    source = tmp_path / "flat"
    for split in COLOURS:
        shutil.copytree(video_folder / split, source, dirs_exist_ok=True)
    options = {"source": source, "skip_reading": True}
    splits = {
        name: load_video_splits(str(prepare(tmp_path / name, **options, **more)))
        for name, more in (("0", {}), ("again", {"seed": 0}), ("1", {"seed": 1}), ("n", {"class_split": [3, 3, 4]}))
    }
    sizes = {name: [len(set(part["label"])) for part in value.values()] for name, value in splits.items()}
    assert sizes == {"0": [7, 1, 2], "again": [7, 1, 2], "1": [7, 1, 2], "n": [3, 3, 4]}
    for value in splits.values():
        check_disjoint_classes(value)
        rows = rows_of(value)
        assert sorted(row for part in rows.values() for row in part) == sorted(
            (str(source / Path(path).parent.name / Path(path).name), name)
            for part in tree_rows(video_folder).values()
            for path, name in part
        )
    assert rows_of(splits["again"]) == rows_of(splits["0"])
    assert rows_of(splits["1"]) != rows_of(splits["0"])


def test_class_split_shares_out_anew_what_has_splits(video_folder, tmp_path):
    folder = prepare(tmp_path / "data", source=video_folder, class_split=[0.5, 0.0, 0.5], skip_reading=True)
    splits = load_video_splits(str(folder))
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 15, "test": 15}
    check_disjoint_classes(splits)


def test_saved_splits_that_number_their_classes_each_for_itself_are_shared_out_by_name(video_folder, tmp_path):
    video_splits(video_folder).save_to_disk(tmp_path / "saved")
    folder = prepare(tmp_path / "data", source=tmp_path / "saved", class_split=[5, 2, 3], skip_reading=True)
    rows = rows_of(load_from_disk(folder))
    assert {split: len(part) for split, part in rows.items()} == {"train": 15, "validation": 6, "test": 9}
    assert {name for part in rows.values() for _, name in part} == {name for part in COLOURS.values() for name in part}
    for path, name in (row for part in rows.values() for row in part):
        assert Path(path).parent.name == name


def test_a_table_is_prepared(table, tmp_path):
    folder = prepare(tmp_path / "data", source=table)
    names = [(str(tmp_path / f"videos/{name}{n}.mp4"), name) for name in ("green", "red") for n in range(3)]
    assert rows_of(load_from_disk(folder)) == {"train": names}


def test_an_address_is_no_missing_file_and_stays_as_it_is(tmp_path, capsys):
    address = "https://example.org/a.mp4"
    (tmp_path / "clips.csv").write_text(f"path,label,split\n{address},run,train\n")
    folder = prepare(tmp_path / "data", source=tmp_path / "clips.csv", skip_reading=True)
    assert rows_of(load_from_disk(folder)) == {"train": [(address, "run")]}
    message = "note: there are no classes for validation and test; --class_split makes all splits."
    assert message in capsys.readouterr().out


def test_a_file_listed_twice_stays_once(table, tmp_path, capsys):
    _, first, second, *_ = table.read_text().splitlines()
    table.write_text(table.read_text() + f"{first}\n{second}\n")
    folder = prepare(tmp_path / "data", source=table, skip_reading=True)
    names = [(f"{name}{number}.mp4", name) for name in ("green", "red") for number in range(3)]
    assert rows_of(load_from_disk(folder), "name") == {"train": names}
    assert "note: 2 videos are listed twice; each is kept once." in capsys.readouterr().out


@pytest.mark.parametrize("options", [{}, {"skip_reading": True}, {"frame_store": "raw"}, {"embed_videos": True}])
def test_copies_under_other_names_and_in_other_classes_are_named(options, table, tmp_path, capsys):
    shutil.copy(tmp_path / "videos" / "green0.mp4", tmp_path / "videos" / "again.mp4")
    shutil.copy(tmp_path / "videos" / "green0.mp4", tmp_path / "videos" / "red9.mp4")
    table.write_text(table.read_text() + "videos/again.mp4,green,train\nvideos/red9.mp4,red,train\n")
    prepare(tmp_path / "data", source=table, **options)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "byte for byte" in line]
    folder = "" if {"frame_store", "embed_videos"} & set(options) else "videos/"
    listed = f"{folder}green0.mp4 (train class 'green') = {folder}again.mp4 (train class 'green') = "
    assert note.startswith(f"note: 2 videos are copies of another, byte for byte: {listed}{folder}red9.mp4 (train")
    assert note.endswith("so accuracy looks better than it is: leave the copies out.")


def test_videos_of_one_length_and_with_the_same_ends_are_no_copies(tmp_path, monkeypatch):
    for name, middle in (("a", b"x"), ("b", b"y"), ("c", b"x")):
        (tmp_path / name).write_bytes(bytes(10_000) + middle + bytes(10_000))
    rows = {"video": [str(tmp_path / name) for name in "abc"], "label": ["k"] * 3}
    (group,) = copies({"train": Dataset.from_dict(rows)})
    assert [place.name.rpartition("/")[2] for place in group] == ["a", "c"]
    rows["video"] = [{"path": f"{name}.mp4", "bytes": (tmp_path / name).read_bytes()} for name in "abc"]
    (group,) = copies({"train": Dataset.from_dict(rows).select([2, 1, 0])})
    assert [place.name for place in group] == ["c.mp4", "a.mp4"]
    monkeypatch.setattr("clipfsar.data.copies.digest_of_ends", lambda video: os.stat("nothing"))  # not readable
    assert copies({"train": Dataset.from_dict(rows)}) == []
    rows["video"] = ["https://example.org/a.mp4"] * 2 + [str(tmp_path / "gone.mp4")]
    assert copies({"train": Dataset.from_dict(rows)}) == []


@pytest.mark.parametrize("options", [{"video_root": "."}, {"label_fps": 24.0}])
def test_options_about_a_list_are_refused_for_a_folder_of_classes(options, table, tmp_path):
    (tmp_path / "classes" / "green").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=f"--{next(iter(options))} has no effect with .*classes, which holds the videos"
    ):
        prepare(tmp_path / "data", source=tmp_path / "classes", **options)


def test_links_to_one_file_are_read_once(table, tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f"{number}.mp4").symlink_to(tmp_path / "videos" / "green0.mp4")
    read = []
    monkeypatch.setattr("clipfsar.data.copies.digest_of_ends", lambda path: read.append(path) or b"")
    rows = {"video": [str(tmp_path / f"{number}.mp4") for number in range(3)], "label": ["k"] * 3}
    assert len(copies({"train": Dataset.from_dict(rows)})[0]) == 3
    assert len(read) == 1


def test_a_file_with_two_classes_is_an_error(table, tmp_path):
    table.write_text(table.read_text() + "videos/green0.mp4,red,train\n")
    message = "videos/green0.mp4 is listed as 'green' and as 'red': a video has one class"
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", source=table)
    assert not (tmp_path / "data").exists()


def test_a_file_with_two_classes_is_an_error_in_two_splits_as_well(table, tmp_path):
    table.write_text(table.read_text() + "videos/red1.mp4,blue,test\n")
    message = "videos/red1.mp4 is listed as 'red' and as 'blue': a video has one class"
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", source=table)


def test_classes_become_names_and_videos_without_one_go():
    features = Features({"id": Value("int64"), "clip": Value("string"), "action": ClassLabel(names=["run", "dive"])})
    columns = {"id": list(range(4)), "clip": list("abcd"), "action": [1, -1, 0, None]}
    named = with_class_names(Dataset.from_dict(columns, features=features), "clip", "action")
    assert named.features == Features({"video": Value("string"), "label": Value("string")})
    assert named.to_dict() == {"video": ["a", "c"], "label": ["dive", "run"]}
    strings = Dataset.from_dict({"video": list("abc"), "label": ["run", None, "dive"]})
    assert with_class_names(strings, "video", "label").to_dict() == {"video": ["a", "c"], "label": ["run", "dive"]}


def test_classes_become_names_beside_bytes_which_stay_and_paths_which_become_strings():
    videos = [{"path": "a.mp4", "bytes": b"A"}, {"path": None, "bytes": b"B"}, {"path": "c.mp4", "bytes": b"C"}]
    features = Features({"video": Video(decode=False), "label": Value("string")})
    dataset = Dataset.from_dict({"video": videos, "label": ["run", None, "dive"]}, features=features)
    named = with_class_names(dataset, "video", "label")
    assert named.features == features
    assert list(named["video"]) == [videos[0], videos[2]]
    paths = [{"path": "a.mp4", "bytes": None}, {"path": "b.mp4", "bytes": None}, {"path": "c.mp4", "bytes": None}]
    dataset = Dataset.from_dict({"video": paths, "label": ["run", None, "dive"]}, features=features)
    named = with_class_names(dataset, "video", "label")
    assert named.features == Features({"video": Value("string"), "label": Value("string")})
    assert list(named["video"]) == ["a.mp4", "c.mp4"]


def save_numbered(folder: Path, **labels: list[int]) -> Path:
    """Splits of videos a, b, c, ... that are not there, of the classes run (0) and dive (1)."""
    features = Features({"video": Value("string"), "label": ClassLabel(names=["run", "dive"])})
    splits = {
        split: Dataset.from_dict({"video": list("abcd")[: len(part)], "label": part}, features=features)
        for split, part in labels.items()
    }
    DatasetDict(splits).save_to_disk(folder)
    return folder


def test_a_split_whose_classes_nobody_says_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        Path(name).touch()
    source = save_numbered(tmp_path / "saved", train=[0, 1, -1, 0], test=[-1, -1])
    folder = prepare(tmp_path / "data", source=source, skip_reading=True)
    assert rows_of(load_from_disk(folder)) == {"train": [("a", "run"), ("b", "dive"), ("d", "run")]}


def test_a_source_whose_classes_nobody_says_is_refused(tmp_path):
    source = save_numbered(tmp_path / "saved", train=[-1, -1, -1])
    with pytest.raises(ValueError, match="saved has no labels in its column 'label'"):
        prepare(tmp_path / "data", source=source)
    assert not (tmp_path / "data").exists()


def test_rows_without_a_video_are_missing_videos(video_folder, tmp_path):
    file = video_folder / "train" / "red" / "0.mp4"
    features = Features({"video": Video(decode=False), "label": Value("string")})
    columns = {"video": [None, {"path": "red.mp4", "bytes": file.read_bytes()}], "label": ["red", "red"]}
    DatasetDict(train=Dataset.from_dict(columns, features=features)).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="1 video is missing or unreadable"):
        prepare(tmp_path / "data", source=tmp_path / "saved")
    folder = prepare(tmp_path / "data", source=tmp_path / "saved", skip_bad_videos=True)
    assert bad_videos(folder) == [{"split": "train", "class": "red", "path": "", "problem": MISSING}]
    assert list(load_from_disk(folder)["train"]["video"]) == [{"path": "red.mp4", "bytes": file.read_bytes()}]


@pytest.mark.parametrize("frame_store_format", ["none", "raw"])
def test_a_parquet_data_set_with_its_videos_inside_is_prepared(frame_store_format, video_folder, tiny_clip, tmp_path):
    """As people have them on the Hub: bytes, names of files rather than paths, other columns, no splits."""
    files = sorted((video_folder / "train").glob("*/*.mp4"))
    features = Features({"id": Value("int64"), "clip": Video(decode=False), "action": Value("string")})
    clips = [{"path": f"{file.parent.name}{file.name}", "bytes": file.read_bytes()} for file in files]
    columns = {"id": list(range(12)), "clip": clips, "action": [file.parent.name for file in files]}
    (tmp_path / "source").mkdir()
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "source" / "train.parquet")
    folder = prepare(
        tmp_path / "data",
        source=tmp_path / "source",
        video_column="clip",
        label_column="action",
        class_split=[2, 1, 1],
        frame_store=frame_store_format,
        format="parquet",
    )
    splits = load_video_splits(str(folder))
    kept = {"video": Video(decode=False), "label": Value("string")}
    if frame_store_format != "none":
        kept["video"] = {"bytes": Value("binary"), "path": Value("string")}
        kept["video_digest"] = Value("string")
    for dataset in splits.values():
        assert dataset.features == Features(kept)
    assert sorted(row for part in rows_of(splits).values() for row in part) == sorted(
        (clip["path"], name) for clip, name in zip(clips, columns["action"], strict=True)
    )
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    file_of = {clip["path"]: str(file) for clip, file in zip(clips, files, strict=True)}
    for dataset in splits.values():
        originals = [file_of[video["path"]] for video in dataset["video"]]
        torch.testing.assert_close(
            processor.process_videos(list(dataset["video"])), processor.process_videos(originals), rtol=0, atol=0
        )


# --- frame stores and embedded videos ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("frame_store", "tolerance"), [("raw", 0.0), ("jpeg", 0.05)])
def test_a_frame_store_holds_the_frames_of_the_files(frame_store, tolerance, table, tiny_clip, tmp_path):
    folder = prepare(tmp_path / "data", source=table, frame_store=frame_store)
    paths = sorted(str(path) for path in (tmp_path / "videos").iterdir())
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    expected = processor.process_videos(paths)
    shutil.rmtree(tmp_path / "videos")  # the store stands by itself
    dataset = load_video_splits(str(folder))["train"]
    struct = {"bytes": Value("binary"), "path": Value("string")}
    columns = {"video": struct, "label": Value("string"), "video_digest": Value("string")}
    assert dataset.features == Features(columns)
    stored = list(dataset["video"])
    assert [Path(video["path"]).name for video in stored] == [Path(path).name for path in paths]
    assert (processor.process_videos(stored) - expected).abs().mean() <= tolerance


def test_a_frame_store_takes_size_and_preprocessing_from_the_model(table, tiny_clip, tmp_path):
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, preprocessing="official")
    processor.save_pretrained(tmp_path / "model")
    shutil.copy(tiny_clip / "config.json", tmp_path / "model")
    options = {"model": tmp_path / "model", "frame_store": "jpeg", "source": table, "num_workers": 1}
    prepare_dataset.main(parse_arguments(command_line(output_dir=tmp_path / "data", **options)))
    processor.process_videos([load_from_disk(tmp_path / "data")["train"][0]["video"]])
    with pytest.raises(ValueError, match=r"--frame_size 24 differs from that of .*model, which is 16: leave one"):
        prepare_dataset.main(parse_arguments(command_line(output_dir=tmp_path / "other", frame_size=24, **options)))


def test_a_frame_store_for_another_size_or_preprocessing_is_refused_with_the_reason(table, tiny_clip, tmp_path):
    folder = prepare(tmp_path / "data", source=table, frame_store="jpeg", frame_size=24)
    video = load_from_disk(folder)["train"][0]["video"]
    match = "The frame store was made for 'clip' preprocessing at shortest side 24, but 'clip' preprocessing at"
    with pytest.raises(ValueError, match=match):
        CLIPFSARProcessor.from_pretrained(tiny_clip).process_videos([video])
    with pytest.raises(ValueError, match="but 'official' preprocessing at 18 x 18 is wanted"):
        CLIPFSARProcessor.from_pretrained(tiny_clip, preprocessing="official").process_videos([video])


def test_a_frame_store_of_few_frames_is_refused_for_drawing_them(table, tiny_clip, tmp_path):
    folder = prepare(tmp_path / "data", source=table, frame_store="jpeg", frames_per_video=8)
    video = load_from_disk(folder)["train"][0]["video"]
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    assert processor.process_videos([video]).shape == (1, 4, 3, 16, 16)
    message = r"keeps 8 of a video's 12 frames, but to draw 4 frames it must keep 12 or all: .*--frames_per_video 12"
    with pytest.raises(ValueError, match=message):
        processor.process_videos([video], training=True)


@pytest.mark.parametrize("format", ["disk", "parquet"])
def test_embedded_videos_are_the_files_themselves(format, table, tmp_path):
    files = [path.read_bytes() for path in sorted((tmp_path / "videos").iterdir())]
    folder = prepare(tmp_path / "data", source=table, embed_videos=True, format=format)
    shutil.rmtree(tmp_path / "videos")
    dataset = load_video_splits(str(folder))["train"]
    columns = {"video": Video(decode=False), "label": Value("string"), "video_digest": Value("string")}
    assert dataset.features == Features(columns)
    assert [video["bytes"] for video in dataset["video"]] == files
    again = prepare(tmp_path / "again", source=folder, frame_store="jpeg")  # a source like any other
    assert rows_of(load_from_disk(again)) == rows_of(load_video_splits(str(folder)))


def test_folders_of_images_go_into_a_frame_store_and_cannot_be_embedded(tmp_path):
    for name in ("run", "clap"):
        (tmp_path / "source" / name / "video0").mkdir(parents=True)
        for number in range(9):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / "source" / name / "video0" / f"{number}.png")
    options = {"source": tmp_path / "source", "class_split": [2, 0, 0]}
    folder = prepare(tmp_path / "data", **options, frame_store="raw")
    assert rows_of(load_from_disk(folder), "name") == {"train": [("video0", "clap"), ("video0", "run")]}
    problem = "video0' is a folder of images, which cannot be embedded: use --frame_store jpeg."
    with pytest.raises(ValueError, match=f"None of the 2 videos can be read; the first is .*{problem}"):
        prepare(tmp_path / "embedded", **options, embed_videos=True)
    assert [bad["problem"].endswith(problem) for bad in bad_videos(tmp_path / "embedded")] == [True, True]
    write_video(tmp_path / "source" / "run" / "video1.mp4", (0, 0, 250), seed=0)
    with pytest.raises(ValueError, match="2 videos are missing or unreadable"):
        prepare(tmp_path / "embedded", **options, embed_videos=True)
    folder = prepare(tmp_path / "embedded", **options, embed_videos=True, skip_bad_videos=True)
    assert rows_of(load_from_disk(folder), "name") == {"train": [("video1.mp4", "run")]}


def test_an_address_cannot_be_embedded(table, tmp_path):
    file = tmp_path / "videos" / "green0.mp4"
    table.write_text(table.read_text().replace("videos/green0.mp4", file.as_uri()))
    folder = prepare(tmp_path / "data", source=table, embed_videos=True, skip_bad_videos=True)
    (bad,) = bad_videos(folder)
    assert bad["problem"] == f"'file://{file}' is an address, which cannot be embedded: use --frame_store jpeg."
    assert len(load_from_disk(folder)["train"]) == 5


@pytest.mark.parametrize("options", [{}, {"frame_store": "jpeg"}, {"embed_videos": True, "hub_private": False}])
def test_an_upload_has_the_videos_inside(options, table, tiny_clip, tmp_path, monkeypatch):
    uploads = []

    def push_to_hub(splits, repo_id, private):
        """What `datasets` makes of the files of its own kind of column, in a folder instead of on the Hub."""
        (tmp_path / "hub").mkdir()
        for split, dataset in splits.items():
            embedded = dataset.with_format("arrow").map(embed_table_storage, batched=True, keep_in_memory=True)
            embedded.with_format(None).to_parquet(tmp_path / "hub" / f"{split}.parquet")
        uploads.append((repo_id, private))

    monkeypatch.setattr(DatasetDict, "push_to_hub", push_to_hub)
    folder = prepare(tmp_path / "data", source=table, push_to_hub="someone/clips", **options)
    assert uploads == [("someone/clips", options.get("hub_private", True))]
    files = sorted((tmp_path / "videos").iterdir())
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    expected, contents = processor.process_videos([str(path) for path in files]), [path.read_bytes() for path in files]
    here = load_from_disk(folder)["train"]
    assert (here.features["video"] == Value("string")) == (options == {})  # the upload alone is made larger
    shutil.rmtree(tmp_path / "videos")
    uploaded = load_video_splits(str(tmp_path / "hub"))["train"]
    assert list(uploaded["label"]) == ["green"] * 3 + ["red"] * 3
    if "frame_store" in options:
        assert list(uploaded["video"]) == list(here["video"])
    else:
        assert [video["bytes"] for video in uploaded["video"]] == contents
    assert (processor.process_videos(list(uploaded["video"])) - expected).abs().mean() <= 0.05


def test_an_upload_that_fails_costs_no_reading(table, tmp_path, monkeypatch):
    def push_to_hub(*args, **kwargs):
        raise ConnectionError("no network")

    options = {"source": table, "frame_store": "raw"}
    with monkeypatch.context() as patch:
        patch.setattr(DatasetDict, "push_to_hub", push_to_hub)
        with pytest.raises(ConnectionError, match="no network"):
            prepare(tmp_path / "data", **options, push_to_hub="someone/clips")
    for path in (tmp_path / "videos").iterdir():
        damage_unnoticed(path)
    folder = prepare(tmp_path / "data", **options)
    assert len(load_from_disk(folder)["train"]) == 6


# --- missing and unreadable videos ------------------------------------------------------------------------------------


def test_missing_videos_stop_the_preparation_before_anything_is_read_and_are_listed(table, tmp_path, capsys):
    for name in ("red0", "red2", "green1"):
        (tmp_path / "videos" / f"{name}.mp4").unlink()
    cut_off(tmp_path / "videos" / "red1.mp4")
    with pytest.raises(ValueError, match=r"^3 videos are missing or unreadable, see .*/data/bad_videos.csv\. Fix"):
        prepare(tmp_path / "data", source=table)
    listed = [
        (bad["split"], bad["class"], Path(bad["path"]).name, bad["problem"]) for bad in bad_videos(tmp_path / "data")
    ]
    assert listed == [
        ("train", "green", "green1.mp4", MISSING),
        ("train", "red", "red0.mp4", MISSING),
        ("train", "red", "red2.mp4", MISSING),
    ]
    printed = capsys.readouterr().out
    assert counts_in(printed) == {"train": [2, 3, 3, 0, 1]}
    assert "bad videos of train class 'red': 2" in printed
    assert "bad videos of train class 'green': 1" in printed
    assert not (tmp_path / "data" / "dataset_dict.json").exists()


@pytest.mark.parametrize("options", [{}, {"frame_store": "jpeg"}, {"embed_videos": True}])
def test_skip_bad_videos_goes_on_without_them_and_says_so(options, table, tmp_path, capsys):
    (tmp_path / "videos" / "red0.mp4").unlink()
    cut_off(tmp_path / "videos" / "red1.mp4")
    (tmp_path / "videos" / "green2.mp4").write_bytes(b"")
    folder = prepare(tmp_path / "data", source=table, skip_bad_videos=True, **options)
    assert rows_of(load_from_disk(folder), "name") == {
        "train": [("green0.mp4", "green"), ("green1.mp4", "green"), ("red2.mp4", "red")]
    }
    problems = {Path(bad["path"]).name: bad["problem"] for bad in bad_videos(folder)}
    assert problems.keys() == {"red0.mp4", "red1.mp4", "green2.mp4"}
    assert problems["red0.mp4"] == MISSING
    assert "the file is cut off: it has 200 bytes, but at least" in problems["red1.mp4"]
    assert "the file is empty (0 bytes)" in problems["green2.mp4"]
    assert counts_in(capsys.readouterr().out) == {"train": [2, 3, 1, 2, 1]}
    report = json.loads((folder / "preparation.json").read_text())
    assert report["videos_per_class"] == {"train": {"green": 2, "red": 1}}
    assert report["settings"]["skip_bad_videos"] is True
    assert len(report["bad_videos"]) == 3


def test_unreadable_videos_stop_the_preparation_once_all_are_known(table, tmp_path):
    cut_off(tmp_path / "videos" / "red0.mp4")
    (tmp_path / "videos" / "red2.mp4").write_text("no video at all")
    with pytest.raises(ValueError, match=r"^2 videos are missing or unreadable, see .* --skip_bad_videos"):
        prepare(tmp_path / "data", source=table)
    assert [Path(bad["path"]).name for bad in bad_videos(tmp_path / "data")] == ["red0.mp4", "red2.mp4"]
    folder = prepare(tmp_path / "data", source=table, skip_bad_videos=True)  # the same folder, now as asked
    assert len(load_from_disk(folder)["train"]) == 4


def test_with_skip_reading_only_missing_ones_are_found(table, tmp_path):
    cut_off(tmp_path / "videos" / "red0.mp4")
    (tmp_path / "videos" / "red2.mp4").unlink()
    folder = prepare(tmp_path / "data", source=table, skip_reading=True, skip_bad_videos=True)
    assert [row["problem"] for row in bad_videos(folder)] == [MISSING]
    assert len(load_from_disk(folder)["train"]) == 5


KINDS = {"paths": {}, "frames": {"frame_store": "jpeg"}, "files": {"embed_videos": True}}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@EVERY_KIND
@pytest.mark.parametrize("skip_bad_videos", [True, False])
def test_not_a_single_readable_video_is_an_error_of_its_own(skip_bad_videos, kind, table, tmp_path):
    for path in (tmp_path / "videos").iterdir():
        cut_off(path)
    message = (
        r"None of the 6 videos can be read; the first is .*/videos/green0\.mp4 \(.*the file is cut off.*\)\. Check"
    )
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", source=table, skip_bad_videos=skip_bad_videos, **kind)
    assert len(bad_videos(tmp_path / "data")) == 6


@EVERY_KIND
def test_a_split_without_a_single_readable_video_is_named(kind, table, tmp_path):
    table.write_text(table.read_text().replace("red,train", "red,test"))
    for number in range(3):
        cut_off(tmp_path / "videos" / f"red{number}.mp4")
    with pytest.raises(ValueError, match="The split 'test' has no videos left"):
        prepare(tmp_path / "data", source=table, skip_bad_videos=True, **kind)
    assert len(bad_videos(tmp_path / "data")) == 3


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("skip_bad_videos", [True, False])
def test_a_video_root_without_the_files_is_named(skip_bad_videos, times, table, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([header, *lines * times]) + "\n")
    message = (
        r"^None of the 6 videos can be read; the first is .*/elsewhere/videos/green0\.mp4 \(missing\)\. Check "
        r"the folder of the videos\."
    )
    options = {"video_root": tmp_path / "elsewhere", "skip_bad_videos": skip_bad_videos}
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", source=table, **options)
    assert [bad["problem"] for bad in bad_videos(tmp_path / "data")] == [MISSING] * 6
    assert str(tmp_path / "elsewhere" / "videos") in bad_videos(tmp_path / "data")[0]["path"]


# In child processes these are found by their names in this module.


def square_or_die(number: int) -> int:
    if number in (3, 4, 11):
        os._exit(1)
    return number**2


def read_or_die(job):
    """What a decoder does that a damaged video takes down with its process."""
    if b"die" in Path(job[0]).read_bytes():
        os._exit(1)
    return frame_store.read_video(job)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_job_that_kills_its_process_costs_nobody_elses_result(num_workers):
    results = list(in_processes(square_or_die, range(12), num_workers))
    assert [result if isinstance(result, int) else type(result).__name__ for result in results] == [
        *(0, 1, 4, "BrokenProcessPool", "BrokenProcessPool", 25, 36, 49, 64, 81, 100, "BrokenProcessPool")
    ]


def test_jobs_for_a_pool_that_died_meanwhile_are_done_by_the_next():
    results = in_processes(square_or_die, range(2, 10), 1)
    first = next(results)
    time.sleep(0.5)  # 3 kills the process of the pool before the next jobs are handed in
    assert [first, *(result for result in results if isinstance(result, int))] == [4, 25, 36, 49, 64, 81]


def test_a_preparation_that_is_told_to_stop_deletes_its_temporary_files_and_ends_with_143(
    video_folder, tmp_path, monkeypatch, capfd
):
    closed = []

    def read(*_):
        with contextlib.ExitStack() as stack:
            stack.callback(closed.append, True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr(Preparation, "run", read)
    command = ["prepare", *command_line(source=video_folder, output_dir=tmp_path / "data")]
    assert (clipfsar(command), closed) == (143, [True])
    assert (
        "Told to stop (SIGTERM). Run the same command again to continue where it stopped.\n" in capfd.readouterr().err
    )
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_death_that_the_pool_sleeps_through_is_noticed():
    class SleepingPool:
        """Its manager looks after its processes only when there is something to do."""

        future = Future()

        def submit(self, job):
            self.future.set_exception(BrokenProcessPool("a process died"))

    with pytest.raises(BrokenProcessPool, match="a process died"):
        frame_store._result(SleepingPool.future, SleepingPool(), seconds=0.01)


def test_a_job_may_itself_run_out_of_time():
    future = Future()
    future.set_exception(TimeoutError("the job's own"))
    with pytest.raises(TimeoutError, match="the job's own"):
        frame_store._result(future, None)


def test_a_video_that_kills_the_decoder_is_listed_and_the_others_are_read(table, tmp_path, monkeypatch):
    (tmp_path / "videos" / "red0.mp4").write_text("die")
    with monkeypatch.context() as patch:
        patch.setattr(frame_store, "read_video", read_or_die)
        prepare(tmp_path / "data", source=table, frame_store="jpeg", num_workers=2, skip_bad_videos=True)
    (bad,) = bad_videos(tmp_path / "data")
    assert bad["problem"] == f"Cannot read video '{tmp_path}/videos/red0.mp4': the decoder crashed."
    assert len(load_from_disk(tmp_path / "data")["train"]) == 5


# --- names and files that are not what they should be ---------------------------------------------------------------


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_name_that_is_not_utf_8_is_named(place, video_folder, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(video_folder / "train", source)
    old = source / "green" if place == "folder" else next((source / "green").iterdir())
    os.rename(os.fsencode(old), os.fsencode(old.parent) + b"/gr\xfcn" + os.fsencode(old.suffix))
    assert clipfsar(["prepare", *command_line(source=source, output_dir=tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: The name b'.*gr\\xfcn.*' is not UTF-8: rename the file or folder\.\n", error)


@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_damaged_settings_of_an_unfinished_preparation_say_what_to_do(content, table, tmp_path, interrupted):
    interrupted()
    (tmp_path / "data" / ".preparing" / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings\.json is damaged .*: delete .*preparing, and all videos"):
        prepare(tmp_path / "data", source=table)


@pytest.mark.parametrize("lost", ["keys.json", "videos/"])
def test_a_list_of_a_shard_that_lost_a_line_is_found(lost, table, tmp_path, interrupted):
    interrupted(frame_store="raw")
    path = tmp_path / "data" / ".preparing" / "train" / "shard-000000" / "SHA256SUMS"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if lost not in line))
    assert len(path.read_text()) < sum(map(len, lines))
    with pytest.raises(ValueError, match=r"SHA256SUMS has no checksum of .*: delete .*shard-000000, and its videos"):
        prepare(tmp_path / "data", source=table, frame_store="raw")


# --- interruptions ----------------------------------------------------------------------------------------------------


def interrupt_at_shard(monkeypatch, number: int):
    """Shards of two videos, and Ctrl-C when the `number`-th of them would be written."""
    write, calls = frame_store._write_shard, []

    def write_or_stop(*args):
        calls.append(None)
        if len(calls) == number:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(frame_store, "VIDEOS_PER_SHARD", 2)
    monkeypatch.setattr(frame_store, "_write_shard", write_or_stop)


@pytest.fixture
def interrupted(table, tmp_path, monkeypatch):
    """Starts a preparation that stops after four videos, green0 to red0, were read for good."""

    def start(**options):
        with monkeypatch.context() as patch:
            interrupt_at_shard(patch, 3)
            with pytest.raises(KeyboardInterrupt):
                prepare(tmp_path / "data", source=table, **options)
        for name in ("green0", "green1", "green2", "red0"):
            damage_unnoticed(tmp_path / "videos" / f"{name}.mp4")

    return start


@EVERY_KIND
def test_an_interrupted_preparation_goes_on_and_reads_nothing_twice(kind, table, tmp_path, interrupted):
    whole = list(load_from_disk(prepare(tmp_path / "whole", source=table, **kind))["train"])
    interrupted(**kind)
    resumed = load_from_disk(prepare(tmp_path / "data", source=table, **kind))["train"]
    assert list(resumed) == whole


def test_a_shard_that_was_being_written_is_not_taken_for_a_finished_one(table, tmp_path, monkeypatch):
    whole = load_from_disk(prepare(tmp_path / "whole", source=table, frame_store="raw"))["train"]
    with monkeypatch.context() as patch:
        interrupt_at_shard(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "data", source=table, frame_store="raw")
    work = tmp_path / "data" / ".preparing" / "train"
    assert sorted(path.name for path in work.iterdir()) == ["shard-000000", "shard-000001"]
    assert sorted(path.name for path in (work / "shard-000000").iterdir()) == ["SHA256SUMS", "keys.json", "videos"]
    (work / "shard-000001").rename(work / ".shard-000001")
    for name in ("green0", "green1"):
        damage_unnoticed(tmp_path / "videos" / f"{name}.mp4")
    resumed = load_from_disk(prepare(tmp_path / "data", source=table, frame_store="raw"))["train"]
    assert list(resumed) == list(whole)


@EVERY_KIND
def test_mended_videos_come_to_their_places_and_the_others_are_not_read_again(kind, table, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_store, "VIDEOS_PER_SHARD", 2)
    options = {"source": table} | kind
    whole = list(load_from_disk(prepare(tmp_path / "whole", **options))["train"])
    bad = [tmp_path / "videos" / f"{name}.mp4" for name in ("green1", "red0", "red1")]
    good = [path.read_bytes() for path in bad]
    for path in bad:
        cut_off(path)
    with pytest.raises(ValueError, match="3 videos are missing or unreadable"):
        prepare(tmp_path / "data", **options)
    for path, content in zip(bad[:2], good[:2], strict=True):
        path.write_bytes(content)
    for name in ("green0", "green2", "red2"):
        damage_unnoticed(tmp_path / "videos" / f"{name}.mp4")
    with pytest.raises(ValueError, match="1 video is missing or unreadable"):
        prepare(tmp_path / "data", **options)
    assert [Path(row["path"]).name for row in bad_videos(tmp_path / "data")] == ["red1.mp4"]
    bad[2].write_bytes(good[2])
    mended = load_from_disk(prepare(tmp_path / "data", **options))["train"]
    assert list(mended) == whole
    assert not (tmp_path / "data" / "bad_videos.csv").exists()


@EVERY_KIND
@pytest.mark.parametrize("removed", ["train/green/1.mp4", "train/yellow/2.mp4"])
def test_a_bad_video_that_is_removed_from_the_folder_is_gone_and_the_others_keep_their_classes(
    removed, kind, video_folder, tmp_path, monkeypatch
):
    """The other way to mend: what cannot be read is deleted, which moves all videos behind it one row up."""
    monkeypatch.setattr(frame_store, "VIDEOS_PER_SHARD", 2)
    source = tmp_path / "videos"
    shutil.copytree(video_folder, source, ignore=shutil.ignore_patterns("validation", "test"))
    cut_off(source / removed)
    options = {"source": source} | kind
    with pytest.raises(ValueError, match="1 video is missing or unreadable"):
        prepare(tmp_path / "data", **options)
    (source / removed).unlink()
    whole = list(load_from_disk(prepare(tmp_path / "whole", **options))["train"])
    for path in source.glob("train/*/*.mp4"):
        damage_unnoticed(path)
    dataset = load_from_disk(prepare(tmp_path / "data", **options))["train"]
    assert list(dataset) == whole
    left = [(path, name) for path, name in tree_rows(source)["train"] if Path(path) != source / removed]
    assert rows_of({"train": dataset}, "name") == {"train": [(Path(path).name, name) for path, name in left]}


def rewrite(table: Path, change):
    """The table with other lines below its header."""
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([header, *change(lines)]) + "\n")


@EVERY_KIND
def test_videos_added_to_an_interrupted_preparation_are_read_and_shift_no_other(kind, table, tmp_path, interrupted):
    interrupted(**kind)
    (tmp_path / "videos" / "blue0.mp4").write_text("no video at all")
    write_video(tmp_path / "videos" / "blue1.mp4", (0, 0, 250), seed=0)
    rewrite(table, lambda lines: [f"videos/blue{number}.mp4,blue,train" for number in range(2)] + lines)
    with pytest.raises(ValueError, match="1 video is missing or unreadable"):
        prepare(tmp_path / "data", source=table, **kind)
    folder = prepare(tmp_path / "data", source=table, **kind, skip_bad_videos=True)
    names = ["blue1", *(f"{name}{number}" for name in ("green", "red") for number in range(3))]
    assert rows_of(load_from_disk(folder), "name") == {"train": [(f"{name}.mp4", name[:-1]) for name in names]}
    assert [Path(row["path"]).name for row in bad_videos(folder)] == ["blue0.mp4"]


@EVERY_KIND
def test_the_result_has_the_order_of_the_source_even_if_it_was_another_one_before(kind, table, tmp_path, interrupted):
    whole = list(load_from_disk(prepare(tmp_path / "whole", source=table, **kind))["train"])
    interrupted(**kind)
    rewrite(table, lambda lines: lines[::-1])
    resumed = load_from_disk(prepare(tmp_path / "data", source=table, **kind))["train"]
    assert list(resumed) == whole[::-1]


@EVERY_KIND
def test_a_class_that_was_put_right_meanwhile_is_that_of_the_result(kind, table, tmp_path):
    cut_off(tmp_path / "videos" / "red2.mp4")
    with pytest.raises(ValueError, match="1 video is missing or unreadable"):
        prepare(tmp_path / "data", source=table, **kind)
    rewrite(table, lambda lines: [line.replace("green1.mp4,green", "green1.mp4,lime") for line in lines[:5]])
    rows = rows_of(load_from_disk(prepare(tmp_path / "data", source=table, **kind)), "name")["train"]
    assert [name for _, name in rows] == ["green", "lime", "green", "red", "red"]
    assert [path for path, _ in rows] == ["green0.mp4", "green1.mp4", "green2.mp4", "red0.mp4", "red1.mp4"]


def test_a_file_that_is_another_one_now_is_read_again(table, tmp_path):
    videos = tmp_path / "videos"
    cut_off(videos / "red2.mp4")
    with pytest.raises(ValueError, match="1 video is missing or unreadable"):
        prepare(tmp_path / "data", source=table, frame_store="raw")
    write_video(videos / "green0.mp4", (0, 0, 250), seed=0)
    (videos / "green1.mp4").write_bytes(b"?" * (videos / "green1.mp4").stat().st_size)  # of the same size, but later
    folder = prepare(tmp_path / "data", source=table, frame_store="raw", skip_bad_videos=True)
    assert [Path(row["path"]).name for row in bad_videos(folder)] == ["green1.mp4", "red2.mp4"]
    rewrite(table, lambda lines: [lines[0], lines[2], lines[3], lines[4]])
    whole = prepare(tmp_path / "whole", source=table, frame_store="raw")
    assert list(load_from_disk(folder)["train"]) == list(load_from_disk(whole)["train"])


# --- what videos hold, damage, one writer -----------------------------------------------------------------------------


def test_bytes_that_are_others_now_are_read_again(table, tmp_path):
    """The row and the name are the same, so only what the bytes are tells."""
    files = sorted((tmp_path / "videos").iterdir())
    rows = [{"path": path.name, "bytes": path.read_bytes()} for path in files]
    rows[5]["bytes"] = b"cut off"
    settings = FrameStoreSettings("file")

    def read(videos):
        dataset = Dataset.from_dict({"video": videos, "label": ["a", "a", "a", "b", "b", "b"]})
        return frame_store.read_split(dataset, tmp_path / "work", settings, num_workers=1)

    _, problems = read(rows)
    assert list(problems) == [5]
    rows[0] = {"path": rows[0]["path"], "bytes": rows[3]["bytes"]}
    rows[5] = {"path": rows[5]["path"], "bytes": files[5].read_bytes()}
    kept, problems = read(rows)
    assert problems == {}
    assert [video["bytes"] for video in kept["video"]] == [row["bytes"] for row in rows]


def test_frames_that_changed_in_their_folder_are_read_again(tmp_path):
    folders = [tmp_path / "clips" / str(number) for number in range(2)]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for frame in range(3):
            Image.new("RGB", (24, 24), (100 * number, 40 * frame, 0)).save(folder / f"{frame}.bmp")
    dataset = Dataset.from_dict({"video": [str(folder) for folder in folders], "label": ["a", "b"]})
    settings = FrameStoreSettings("raw", frame_size=16)
    before = frame_store.read_split(dataset, tmp_path / "work", settings, num_workers=1)[0]["video"][:]
    Image.new("RGB", (24, 24), (0, 0, 200)).save(folders[1] / "1.bmp")
    after = frame_store.read_split(dataset, tmp_path / "work", settings, num_workers=1)[0]["video"][:]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_any_flipped_bit_of_a_finished_shard_is_found_and_the_remedy_helps(table, tmp_path, monkeypatch):
    whole = list(load_from_disk(prepare(tmp_path / "whole", source=table, frame_store="raw"))["train"])
    with monkeypatch.context() as patch:
        interrupt_at_shard(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "data", source=table, frame_store="raw")
    shard, rng = tmp_path / "data" / ".preparing" / "train" / "shard-000001", np.random.default_rng(0)
    for path in sorted(path for path in shard.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for position in rng.integers(len(content), size=3).tolist():
            flipped = bytearray(content)
            flipped[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=rf"delete {shard}, and its videos are read again"):
                frame_store._finished_shards(shard.parent)
        path.write_bytes(content)
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="its videos are read again"):
        prepare(tmp_path / "data", source=table, frame_store="raw")
    shutil.rmtree(shard)
    assert list(load_from_disk(prepare(tmp_path / "data", source=table, frame_store="raw"))["train"]) == whole


def test_shards_without_checksums_are_taken_with_a_note(tmp_path, capsys):
    for number in range(2):
        (tmp_path / f"shard-00000{number}").mkdir()
        (tmp_path / f"shard-00000{number}" / "keys.json").write_text("[]")
    assert [shard.keys for shard in frame_store._finished_shards(tmp_path)] == [[], []]
    expected = f"note: 2 finished pieces in {tmp_path} have no checksums; they are used unchecked.\n"
    assert capsys.readouterr().out == expected


def test_two_preparations_in_one_folder_are_one_and_a_refusal(table, tmp_path, monkeypatch):
    read, errors = frame_store.read_video, []

    def meanwhile(*args):
        with pytest.raises(FolderInUseError) as error:
            prepare(tmp_path / "data", source=table)
        errors.append(str(error.value))
        return map(read, args[1])

    monkeypatch.setattr(frame_store, "in_processes", meanwhile)
    folder = prepare(tmp_path / "data", source=table)
    assert len(load_from_disk(folder)["train"]) == 6
    (error,) = errors
    assert error.startswith(f"{tmp_path / 'data'} is in use: process {os.getpid()} on ")
    assert error.endswith("Wait until it ends, stop it, or name another --output_dir.")
    assert not (folder / ".lock").exists()


def test_the_folder_of_a_frame_store_has_one_writer(table, tmp_path):
    dataset = Dataset.from_dict({"video": [str(tmp_path / "videos" / "red0.mp4")], "label": ["red"]})
    with FolderLock(tmp_path / "work", "keeps frames", "Wait"), pytest.raises(FolderInUseError):
        frame_store.read_split(dataset, tmp_path / "work", FrameStoreSettings(), num_workers=1)


@pytest.mark.parametrize("format", ["disk", "parquet"])
def test_nobody_sees_half_a_data_set_and_a_death_while_it_is_put_in_place_is_survived(
    format, table, tmp_path, monkeypatch
):
    replace, seen = Path.replace, []

    def look(self, target):
        with pytest.raises(ValueError, match="still being prepared, or its preparation was interrupted"):
            load_video_splits(str(tmp_path / "data"))
        seen.append(Path(target).name)
        replace(self, target)
        if len(seen) == 1:
            raise KeyboardInterrupt
        return target

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", look)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "data", source=table, format=format)
        folder = prepare(tmp_path / "data", source=table, format=format)
    assert len(load_video_splits(str(folder))["train"]) == 6
    assert seen == (["train", "train", "dataset_dict.json"] if format == "disk" else ["data", "data"])
    assert not (folder / ".preparing").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frame_size": 32}, "--frame_size 16:"),
        ({"format": "parquet"}, "--format disk:"),
        ({"frame_store": "raw"}, "--frame_store jpeg:"),
        ({"frames_per_video": 24, "seed": 1}, "--seed 0, --frames_per_video 72:"),
    ],
)
def test_an_unfinished_preparation_does_not_go_on_with_other_settings(changed, message, table, tmp_path):
    cut_off(tmp_path / "videos" / "red0.mp4")
    options = {"source": table, "frame_store": "jpeg"}
    with pytest.raises(ValueError, match="1 video is missing or unreadable"):
        prepare(tmp_path / "data", **options)
    message = f"An unfinished preparation in .*/data was started with {message} use the same settings, delete"
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", **(options | changed))
    prepare(tmp_path / "data", **options, num_workers=2, skip_bad_videos=True)  # these may change


def test_a_folder_with_anything_else_in_it_is_left_alone(table, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ValueError, match="/data is not empty: name another folder for the data set"):
        prepare(tmp_path / "data", source=table)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["thesis.txt"]


def test_a_prepared_data_set_is_not_prepared_over(table, tmp_path):
    folder = prepare(tmp_path / "data", source=table, skip_reading=True)
    before = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="/data already holds a prepared data set: delete it or name another folder"):
        prepare(tmp_path / "data", source=table, skip_reading=True)
    assert {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# --- what is refused at once ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give either --source or --official_splits with --video_root"),
        ({"source": "a", "official_splits": "b"}, "Give either --source or --official_splits"),
        ({"official_splits": "lists"}, "--official_splits needs --video_root, the folder that the lists' paths"),
        ({"source": "a", "output_dir": None}, "--output_dir is missing: give a folder for the data set"),
        ({"source": "a", "embed_videos": True, "frame_store": "jpeg"}, "both fill the data set: choose one"),
        ({"source": "a", "num_workers": 0}, "--num_workers 0 must be at least 1"),
        ({"source": "a", "frame_store": "raw", "frame_size": 0}, "--frame_size 0 must be at least 1"),
        (
            {"source": "a", "frame_store": "raw", "frame_size": 8, "frames_per_video": -1},
            "--frames_per_video -1 must be at least 0",
        ),
        (
            {"source": "a", "frame_store": "jpeg", "frame_size": 8, "jpeg_quality": 96},
            "--jpeg_quality 96 must be at most 95",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, capsys):
    options = {"output_dir": "data"} | options
    given = {name: value for name, value in options.items() if value is not None}
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_arguments(command_line(**given))
    assert re.match(f"error: .*{message}", capsys.readouterr().err)


def test_a_benchmark_sets_preprocessing_and_folder_and_the_command_line_both():
    source = ["--official_splits", "lists", "--video_root", "videos"]
    for benchmark in ("ssv2_full", "ssv2_small", "kinetics100", "ucf101", "hmdb51"):
        arguments = parse_arguments([*source, "--benchmark", benchmark])
        assert (arguments.preprocessing, arguments.output_dir) == ("official", f"./data/{benchmark}")
        assert parse_training_arguments(["--benchmark", benchmark]).dataset == arguments.output_dir
    given = ["--frame_store", "raw", "--preprocessing", "clip", "--output_dir", "there"]
    arguments = parse_arguments([*source, "--benchmark", "hmdb51", *given])
    assert (arguments.preprocessing, arguments.output_dir) == ("clip", "there")


def test_a_class_in_two_splits_is_named(table, tmp_path):
    table.write_text(table.read_text() + "videos/red0.mp4,red,test\n")
    message = "The splits 'train' and 'test' share 1 class: red. .*; --class_split splits all classes anew"
    with pytest.raises(ValueError, match=message) as error:
        prepare(tmp_path / "data", source=table)
    assert "--allow_shared_classes" not in str(error.value)  # which this program does not have
    assert not (tmp_path / "data").exists()


def test_a_class_in_two_splits_is_named_whatever_the_spelling_and_class_split_helps(video_folder, tmp_path):
    source = tmp_path / "videos"
    for name in ("train/brush_hair", "test/BrushHair", "test/dive"):
        shutil.copytree(video_folder / "train" / "red", source / name)
    message = "The splits 'train' and 'test' share 1 class: brush hair. .*; --class_split splits all classes"
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", source=source)
    folder = prepare(tmp_path / "data", source=source, class_split=[1, 0, 1], skip_reading=True)
    sizes = {name: count for part in load_from_disk(folder).values() for name, count in Counter(part["label"]).items()}
    assert sizes == {"brush hair": 6, "dive": 3} or sizes == {"Brush Hair": 6, "dive": 3}


def test_a_label_column_that_is_not_there_is_named_with_those_that_are(table, video_folder, tmp_path):
    with pytest.raises(ValueError, match="line 2: there is no column 'action'; there are path, label, split"):
        prepare(tmp_path / "data", source=table, label_column="action")
    video_splits(video_folder).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="split 'train': There is no column 'action'; the dataset has video, label"):
        prepare(tmp_path / "data", source=tmp_path / "saved", label_column="action")


@pytest.mark.parametrize("suffix", ["xlsx", "txt", "mp4"])
def test_a_file_of_another_kind_is_not_said_to_be_missing(suffix, tmp_path):
    (tmp_path / f"clips.{suffix}").write_text("a.mp4\trun\n")
    message = rf"--source .*clips\.{suffix} is a file, but not a table: tables end in \.csv or \.jsonl"
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", source=tmp_path / f"clips.{suffix}")


def test_a_faulty_list_is_refused_before_anything_is_done(video_folder, tmp_path):
    (tmp_path / "train_few_shot.txt").write_text("train0//red/0.avi\nred/1.avi\n")
    with pytest.raises(ValueError, match=r"train_few_shot\.txt, line 2: 'red/1\.avi' is not of the form"):
        prepare(tmp_path / "data", official_splits=tmp_path, video_root=video_folder / "train", splits="train")
    assert not (tmp_path / "data").exists()


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "./nothing"], r"\./nothing does not exist\. Give a folder"),
        (
            ["--source", "nothing"],
            "nothing: there is no such folder, and .* Give a folder with videos or .*OWNER/NAME",
        ),
        (["--source", "nothing.csv"], r"--source nothing\.csv does not exist\.\n$"),
        (
            ["--source", "somebody/nothing"],
            "--source somebody/nothing: there is no such folder, and HF_HUB_OFFLINE",
        ),
        (["--source", "clips.csv", "--decoder", "torchcodec"], "decoder='torchcodec' cannot be imported"),
        (["--source", "clips.csv", "--frame_store", "raw", "--frame_size", "0"], "--frame_size 0 must be at least 1"),
        (
            ["--source", "clips.csv", "--video_root", "nowhere"],
            r"None of the 6 videos .*green0\.mp4 \(missing\)\. Check",
        ),
    ],
)
def test_errors_of_the_user_are_one_line_on_the_command_line(arguments, message, table, tmp_path, monkeypatch, capsys):
    if "torchcodec" in arguments and importlib.util.find_spec("torchcodec"):
        pytest.skip("torchcodec is installed")
    monkeypatch.chdir(tmp_path)
    code = clipfsar(["prepare", *arguments, "--output_dir", "data", "--num_workers", "1"])
    assert code == (2 if "--frame_size" in arguments else 1)
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert re.search(f"error: .*{message}", lines[-1])  # a progress bar may stand before it
    assert sum("error: " in line for line in lines) == 1


def test_the_help_shows_the_example_commands_on_lines_of_their_own(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert "    clipfsar prepare --source HUB_ID --class_split 64 12 24" in lines
    commands = [line for line in lines if line.startswith("    clipfsar prepare --")]
    assert len(commands) == 8
    for command in commands:
        parse_arguments([*command.split("#")[0].split()[2:], "--output_dir", "data"])  # no option that there is not


# --- published sizes --------------------------------------------------------------------------------------------------

PUBLISHED = {
    "ssv2_full": {"train": "67,013 of 64", "validation": "1,926 of 12", "test": "2,857 of 24"},
    "ssv2_small": {"train": "6,400 of 64", "validation": "1,200 of 12", "test": "2,400 of 24"},
    "kinetics100": {"train": "6,400 of 64", "validation": "1,200 of 12", "test": "2,400 of 24"},
    "ucf101": {"train": "9,154 of 70", "validation": "1,421 of 10", "test": "2,745 of 21"},
    "hmdb51": {"train": "4,280 of 31", "validation": "1,194 of 10", "test": "1,292 of 10"},
}
LIST_FILES = {"train": "train_few_shot.txt", "validation": "val_few_shot.txt", "test": "test_few_shot.txt"}


def write_lists(folder: Path, lines: dict[str, list[str]]) -> Path:
    folder.mkdir(parents=True)
    for split, split_lines in lines.items():
        (folder / LIST_FILES[split]).write_text("".join(f"{line}\n" for line in split_lines))
    return folder


@pytest.mark.parametrize("benchmark", PUBLISHED)
def test_lists_of_other_sizes_than_the_published_ones_are_noted_and_accepted(benchmark, tmp_path, capsys):
    (tmp_path / "videos" / "class").mkdir(parents=True)
    lines = {}
    for split in LIST_FILES:
        (tmp_path / "videos" / split).mkdir()
        lines[split] = [f"{split}0//{split}/{number}.avi" for number in range(2)]
        for number in range(2):
            (tmp_path / "videos" / split / f"{number}.avi").touch()
    lists = write_lists(tmp_path / "lists", lines)
    options = {"official_splits": lists, "video_root": tmp_path / "videos", "skip_reading": True}
    prepare(tmp_path / "data", benchmark=benchmark, **options)
    printed = capsys.readouterr().out
    for split, size in PUBLISHED[benchmark].items():
        assert f"note: {split} lists 2 videos of 1 classes; the published {benchmark} has {size}." in printed


HMDB51_SIZES = {"train": (31, 4280), "validation": (10, 1194), "test": (10, 1292)}


@pytest.fixture(scope="module")
def hmdb51(tmp_path_factory):
    """Lists of HMDB51's size, and the files that they name; empty, since nothing is decoded."""
    folder, lines = tmp_path_factory.mktemp("hmdb51"), {}
    for split, (num_classes, num_videos) in HMDB51_SIZES.items():
        for class_id in range(num_classes):
            (folder / "videos" / f"{split}_{class_id}").mkdir(parents=True)
        paths = [f"{split}_{number % num_classes}/{number}.avi" for number in range(num_videos)]
        lines[split] = [f"{split}{number % num_classes}//{path}" for number, path in enumerate(paths)]
        for path in paths:
            os.close(os.open(folder / "videos" / path, os.O_CREAT))
    write_lists(folder / "lists", lines)
    return folder


def prepare_hmdb51(lists: Path, videos: Path, output_dir: Path, **options) -> Path:
    options |= {"official_splits": lists, "video_root": videos, "skip_reading": True}
    return prepare(output_dir, benchmark="hmdb51", **options)


def test_lists_of_the_size_of_hmdb51_are_prepared_and_counted(hmdb51, tmp_path, capsys):
    assert sum(len((hmdb51 / "lists" / name).read_text().splitlines()) for name in LIST_FILES.values()) == 6766
    folder = prepare_hmdb51(hmdb51 / "lists", hmdb51 / "videos", tmp_path / "data")
    printed = capsys.readouterr().out
    assert "note:" not in printed
    assert counts_in(printed) == {
        "train": [31, 4280, 0, 0, 138],
        "validation": [10, 1194, 0, 0, 119],
        "test": [10, 1292, 0, 0, 129],
    }
    splits = load_video_splits(str(folder))
    assert {split: (len(set(part["label"])), len(part)) for split, part in splits.items()} == HMDB51_SIZES
    class_of_path = {path: name for rows in rows_of(splits).values() for path, name in rows}
    assert class_of_path[str(hmdb51 / "videos" / "train_30" / "30.avi")] == "train 30"


def test_what_is_missing_does_not_make_the_lists_smaller(hmdb51, tmp_path, capsys):
    """A class without a single file is missing from the disk, not from the list."""
    (tmp_path / "videos").mkdir()
    for folder in (hmdb51 / "videos").iterdir():
        if folder.name != "test_3":
            (tmp_path / "videos" / folder.name).symlink_to(folder)
    prepare_hmdb51(hmdb51 / "lists", tmp_path / "videos", tmp_path / "data", skip_bad_videos=True)
    printed = capsys.readouterr().out
    assert counts_in(printed)["test"] == [9, 1163, 129, 0, 129]
    assert "bad videos of test class 'test 3': 129" in printed
    assert "note:" not in printed


# --- from official lists to a tested model ----------------------------------------------------------------------------

EVALUATION = {"n_way": 3, "n_shot": [1], "n_episodes": 20, "num_workers": 0, "output_json": "evaluation.json"}


def train_and_evaluate(folder: Path, training: list[str], evaluating: dict):
    """In a child, in `folder`: the two programs one after the other."""
    os.chdir(folder)
    train(parse_training_arguments(training))
    evaluate(EvaluateArguments(**evaluating))


def check_run(folder: Path, run: str):
    log = read_log(folder / run)
    assert [(line["episode"], line["kind"]) for line in log if line["kind"] == "validation"] == [
        (8, "validation"),
        (16, "validation"),
    ]
    assert len(json.loads((folder / run / "results.json").read_text())) == 6  # two shots, three modes
    results = json.loads((folder / "evaluation.json").read_text())
    assert {(result["n_way"], result["n_shot"], result["n_episodes"]) for result in results} == {(3, 1, 20)}
    # The same model, split, seed and episodes as in the test of the training.
    trained = json.loads((folder / run / "results.json").read_text())
    tested = {(result["n_shot"], result["inference_mode"]): result["accuracy"] for result in trained}
    assert {r["inference_mode"]: r["accuracy"] for r in results} == {
        mode: accuracy for (n_shot, mode), accuracy in tested.items() if n_shot == 1
    }
    for result in results:
        assert set(result["per_class_accuracy"]) == set(COLOURS["test"])


def test_hmdb51_goes_from_its_lists_to_a_tested_model(video_folder, tiny_clip, tmp_path, monkeypatch):
    """Three commands with `--benchmark`; sizes aside, nothing else is said."""
    lines = {}
    for split, colours in COLOURS.items():
        shutil.copytree(video_folder / split, tmp_path / "videos", dirs_exist_ok=True)
        lines[split] = [f"{split}{i}//{name}/{n}.avi" for i, name in enumerate(colours) for n in range(3)]
    write_lists(tmp_path / "lists", lines)
    preparing = {"official_splits": "lists", "video_root": "videos", "frame_store": "jpeg", "frame_size": 16}
    monkeypatch.chdir(tmp_path)
    Preparation(parse_arguments(command_line(benchmark="hmdb51", **preparing))).run()
    run_in_children(
        train_and_evaluate,
        tmp_path,
        command_line(benchmark="hmdb51", model=tiny_clip, **SETTINGS),
        EVALUATION | {"model": "runs/hmdb51/best", "dataset": "./data/hmdb51"},
        folder=tmp_path / "output",
    ).check()
    settings = json.loads((tmp_path / "runs/hmdb51/best/training_arguments.json").read_text())
    assert (settings["preprocessing"], settings["video_text_loss_weight"]) == ("official", 1.2)
    check_run(tmp_path, "runs/hmdb51")


def test_ssv2_goes_from_its_lists_to_a_tested_model(video_folder, tiny_clip, tmp_path, monkeypatch):
    """Names out of the YAML file and of Something-Something's labels; raw frames, Parquet."""
    lines, labels, names = {}, [], {}
    (tmp_path / "videos").mkdir()
    for split, colours in COLOURS.items():
        lines[split], names[split] = [], [name.replace("_", " ") for name in colours]
        for class_id, name in enumerate(colours):
            for number in range(3):
                video_id = str(1000 * len(lines) + 10 * class_id + number)
                shutil.copy(video_folder / split / name / f"{number}.mp4", tmp_path / "videos" / f"{video_id}.mp4")
                lines[split].append(f"{split}{class_id}/{video_id}")
                labels.append({"id": video_id, "label": "a thing", "template": f"[{name}]"})
    write_lists(tmp_path / "lists", lines)
    yaml_text = f"TRAIN: {{CLASS_NAME: {names['train']}}}\nTEST: {{CLASS_NAME: {names['test']}}}\n"
    (tmp_path / "names.yaml").write_text(yaml_text)
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    preparing = {
        "official_splits": "lists",
        "video_root": "videos",
        "class_names_file": "names.yaml",
        "validation_class_names": "labels.json",
        "frame_store": "raw",
        "frame_size": 16,
        "preprocessing": "official",
        "format": "parquet",
        "output_dir": "data/ours",
    }
    training = {"benchmark": "ssv2_small", "dataset": "data/ours", "output_dir": "runs/ours", "model": tiny_clip}
    monkeypatch.chdir(tmp_path)
    Preparation(parse_arguments(command_line(**preparing))).run()
    run_in_children(
        train_and_evaluate,
        tmp_path,
        command_line(**training, **SETTINGS),
        EVALUATION | {"model": "runs/ours/best", "dataset": "data/ours"},
        folder=tmp_path / "output",
    ).check()
    check_run(tmp_path, "runs/ours")
    splits = load_video_splits(str(tmp_path / "data/ours"))
    for split, dataset in splits.items():
        parts = [line.removeprefix(split).split("/") for line in lines[split]]
        expected = [(f"{video_id}.mp4", names[split][int(class_id)]) for class_id, video_id in parts]
        assert rows_of({split: dataset}, "name")[split] == expected
        assert Counter(name for _, name in expected) == dict.fromkeys(names[split], 3)
