"""What a preparation says of its splits: counts, notes on sizes, classes with bad videos, the next step."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset

from clipfsar.data.clips import LeftOut
from clipfsar.data.frame_store import MISSING
from clipfsar.data.prepare import Preparation, _notes_on_sizes


def preparation(classes: dict[str, dict[str, int]], **fields) -> Preparation:
    """One with so many videos of each class, none of which is there."""
    one = object.__new__(Preparation)
    one.output_dir, one.arguments = Path("data/gym"), SimpleNamespace(benchmark=None, model=None)
    one.left_out, one.listed, one.num_duplicates, one.bad = LeftOut(), {}, 0, []
    labels = {split: [name for name, number in of.items() for _ in range(number)] for split, of in classes.items()}
    one.splits = {
        split: Dataset.from_dict({"label": of, "video": [f"{split}{row}.mp4" for row in range(len(of))]})
        for split, of in labels.items()
    }
    for name, value in fields.items():
        setattr(one, name, value)
    return one


FIVE = dict.fromkeys("abcde", 6)


def test_splits_of_enough_classes_and_videos_are_a_table_alone():
    one = preparation({"train": FIVE | {"f": 1200}, "validation": FIVE, "test": FIVE})
    assert one.summary() == [
        "split        classes   videos  missing  unreadable      smallest class",
        "train              6    1,230        0           0            6 videos",
        "validation         5       30        0           0            6 videos",
        "test               5       30        0           0            6 videos",
    ]
    one.left_out.num_hidden = 2
    one.left_out.notes = Counter({"what to know": 1200})
    assert one.summary()[4:] == ["note: what to know: 1,200.", "left out: 2 hidden"]


@pytest.mark.parametrize(("number", "words"), [(1, " 1 video"), (2, " 2 videos"), (1200, " 1,200 videos")])
def test_the_size_of_the_smallest_class_is_a_plain_number(number, words):
    lines = preparation({"train": {"a": number, "b": number}}).summary()
    assert lines[1].endswith(words)


def test_the_five_classes_with_the_most_bad_videos_are_named():
    numbers = {"a": 1, "b": 5, "c": 3, "d": 2, "e": 7, "f": 4}
    bad = [
        {"split": split, "class": name, "path": "x.mp4", "problem": MISSING if name == "e" else "cut off"}
        for split, name in (("test", name) for name, number in numbers.items() for _ in range(number))
    ]
    one = preparation({"train": FIVE, "validation": FIVE, "test": FIVE}, bad=bad)
    lines = one.summary()
    assert lines[3] == "test               5       30        7          15            6 videos"
    assert lines[4:] == [f"bad videos of test class '{name}': {numbers[name]}" for name in "ebfcd"]


@pytest.mark.parametrize(
    ("listed", "note"),
    [
        ((31, 4280), []),
        ((31, 4279), ["note: train lists 4,279 videos of 31 classes; the published hmdb51 has 4,280 of 31."]),
        ((30, 4280), ["note: train lists 4,280 videos of 30 classes; the published hmdb51 has 4,280 of 31."]),
    ],
)
def test_other_numbers_than_the_published_ones_are_noted(listed, note):
    one = preparation({"train": FIVE, "validation": FIVE, "test": FIVE}, listed={"train": listed, "extra": (1, 1)})
    one.arguments.benchmark = "hmdb51"
    assert one.summary()[4:] == note
    # The number of videos of EPIC-Kitchens is not published.
    one.arguments.benchmark, one.listed = "epic_kitchens", {"train": (60, 5)}
    assert one.summary()[4:] == []


def test_a_video_listed_twice_and_splits_that_are_not_there_are_noted():
    one = preparation({"train": FIVE}, num_duplicates=1)
    assert one.summary()[2:] == [
        "note: 1 video is listed twice; each is kept once.",
        "note: there are no classes for validation and test; --class_split makes all splits.",
    ]
    one.num_duplicates = 1200
    assert one.summary()[2] == "note: 1,200 videos are listed twice; each is kept once."


def test_bad_videos_are_listed_whatever_their_files_are_called(tmp_path):
    bad = [{"split": "test", "class": "é", "path": "=a.mp4", "problem": "frame '\udcff.png' is broken, sadly"}]
    one = preparation({}, output_dir=tmp_path, bad=bad)
    one._write_bad_videos()
    written = "split,class,path,problem\ntest,é,'=a.mp4,\"frame '\\udcff.png' is broken, sadly\"\n"
    assert (tmp_path / "bad_videos.csv").read_bytes() == written.encode()
    one.bad = []
    one._write_bad_videos()
    one._write_bad_videos()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_left_out_where_it_is_listed_again_and_bytes_are_not_compared():
    one = preparation({})
    rows = {"train": ("abac", "xyxz"), "test": ("dbd", "wyw")}
    one.splits = {
        split: Dataset.from_dict({"video": list(videos), "label": list(labels)})
        for split, (videos, labels) in rows.items()
    }
    stored = [{"path": "a", "bytes": b"1"}, {"path": "a", "bytes": b"2"}, {"path": None, "bytes": None}] * 2
    one.splits["validation"] = Dataset.from_dict({"video": stored, "label": list("uvuvuv")})
    assert one._leave_out_duplicates() == 3
    assert {split: list(dataset["video"]) for split, dataset in one.splits.items()} == {
        "train": ["a", "b", "c"],
        "test": ["d"],
        "validation": stored,
    }
    assert {split: "".join(dataset["label"]) for split, dataset in one.splits.items()} == {
        "train": "xyz",
        "test": "w",
        "validation": "uvuvuv",
    }


def test_bad_rows_are_left_out_and_listed_with_their_problems():
    one = preparation({"train": {"a": 2, "b": 2}, "test": {"c": 1}})
    one._leave_out("train", {3: "cut off", 0: MISSING})
    one._leave_out("test", {})
    assert {split: list(dataset["video"]) for split, dataset in one.splits.items()} == {
        "train": ["train1.mp4", "train2.mp4"],
        "test": ["test0.mp4"],
    }
    assert one.bad == [
        {"split": "train", "class": "b", "path": "train3.mp4", "problem": "cut off"},
        {"split": "train", "class": "a", "path": "train0.mp4", "problem": MISSING},
    ]


def test_a_split_without_videos_has_no_smallest_class():
    lines = preparation({"train": {}, "validation": FIVE, "test": FIVE}).summary()
    assert lines[1] == "train              0        0        0           0                   -"
    assert len(lines) == 4


NEEDED = "the default episodes need 5 classes, of 6 videos in training and test and of 2 in validation."


@pytest.mark.parametrize(
    ("classes", "notes"),
    [
        ({"train": FIVE, "validation": dict.fromkeys("abcde", 2), "test": FIVE}, []),
        ({"dev": {"a": 1}, "test": {}}, []),  # of other splits nothing is known
        (
            {"train": FIVE, "test": FIVE | {"a": 1}},
            [f"test has 5 classes with at least 1 video; {NEEDED} Add videos or leave classes out: a class needs 2 "
             "videos at least."],
        ),
        (
            {"train": FIVE | {"a": 2}},
            [f"train has 5 classes with at least 2 videos; {NEEDED} Use --train_n_query 1, or prepare into another "
             "--output_dir with --class_split."],
        ),
        (
            {"train": {"a": 6, "b": 7, "c": 8}, "test": {"d": 6}},
            [f"train has 3 classes with at least 6 videos; {NEEDED} Use --n_way 3, or prepare into another "
             "--output_dir with --class_split.",
             f"test has 1 class with at least 6 videos; {NEEDED} Prepare into another --output_dir with --class_split, "
             "so that every split has two classes or more."],
        ),
        (
            {"train": {"a": 1000, "b": 1200}, "validation": {"c": 1000, "d": 1000}},
            [f"train and validation have 2 classes with at least 1,000 videos; {NEEDED} Use --n_way 2, or prepare into "
             "another --output_dir with --class_split."],
        ),
    ],
)  # fmt: skip
def test_splits_that_are_too_small_for_default_episodes_are_noted_with_the_remedy(classes, notes):
    assert _notes_on_sizes({split: Counter(sizes) for split, sizes in classes.items()}) == [
        f"note: {note}" for note in notes
    ]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"train": FIVE, "test": FIVE}, ": clipfsar train --dataset data/gym ..."),
        ({"train": {"a": 2, "b": 2}}, ": clipfsar train --dataset data/gym --n_way 2 --train_n_query 1 ..."),
        (
            {"train": {"a": 6, "b": 6, "c": 6}, "test": {"d": 6}},
            ", but a split has a single class. Prepare into another --output_dir with --class_split, so that every "
            "split has two classes or more.",
        ),
        (
            {"train": {"a": 2, "b": 6, "c": 6}, "test": {"d": 1, "e": 1, "f": 2}},
            ", but has 2 classes with a single video, such as 'd' in test, and episodes need an example and a query. "
            "Add videos or leave such classes out, and prepare into another --output_dir.",
        ),
        (
            {"test": {"d": 6, "e": 6}},
            ", but too small to train on: its split 'train' has 0 classes of 2 or more videos. Training needs 2 "
            "classes in each split. Use the clips as examples instead: clipfsar predict --support_set EXAMPLES --query "
            "VIDEOS, where EXAMPLES is the folder CLASS/VIDEO.",
        ),
    ],
)
def test_the_next_step_is_one_that_works(classes, said):
    assert preparation({})._what_next(classes) == f"data/gym is ready{said}"


def test_the_next_step_names_the_model_of_the_frames():
    one = preparation({})
    one.arguments.model = "mine"
    assert one._what_next({"train": FIVE}) == "data/gym is ready: clipfsar train --dataset data/gym --model mine ..."
