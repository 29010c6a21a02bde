"""Reading the splits of a video data set from wherever it is."""

from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from tiny_data import COLOURS, video_splits, write_video_folder

from clipfsar.data import splits as splits_module
from clipfsar.data.splits import check_disjoint_classes, load_video_splits
from episodes_clipfsar import read_labels

CLASSES = {split: sorted(colours) for split, colours in COLOURS.items()}


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    return write_video_folder(tmp_path_factory.mktemp("videos"), videos_per_class=2)


@pytest.fixture(scope="module")
def splits(video_folder):
    return video_splits(video_folder)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def names_of(dataset) -> list[str]:
    feature = dataset.features["label"]
    return [feature.int2str(label) if hasattr(feature, "int2str") else label for label in dataset["label"]]


def test_a_video_folder_is_read_with_its_classes_and_undecoded(video_folder):
    splits = load_video_splits(str(video_folder))
    assert list(splits) == ["train", "validation", "test"]
    for split, classes in CLASSES.items():
        assert names_of(splits[split]) == [name.replace("_", " ") for name in classes for _ in range(2)]
        paths = [video["path"] for video in splits[split]["video"]]
        assert paths == [str(video_folder / split / name / f"{n}.mp4") for name in classes for n in range(2)]
    check_disjoint_classes(splits)


def test_a_video_folder_has_the_rows_of_the_same_data_set_in_memory(video_folder, splits):
    read = load_video_splits(str(video_folder))
    for split in splits:
        assert [video["path"] for video in read[split]["video"]] == list(splits[split]["video"])
        assert names_of(read[split]) == [name.replace("_", " ") for name in names_of(splits[split])]


@pytest.mark.parametrize("validation", ["validation", "val", None])
def test_a_walked_tree_is_the_data_set_that_load_dataset_makes(tmp_path, validation):
    folders = ["train/a b", "train/a", "train/a-b", "test/A", "test/zoom"] + ([f"{validation}/c"] if validation else [])
    for folder in folders:
        (tmp_path / "tree" / folder).mkdir(parents=True)
        for name in ("10.mp4", "9.mp4", "x.MOV", ".hidden", "poster.jpg"):
            (tmp_path / "tree" / folder / name).touch()
    (tmp_path / "tree" / "test" / "A" / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    expected = datasets.load_dataset(str(tmp_path / "tree")).cast_column("video", datasets.Video(decode=False))
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    walked = splits_module._load_folder(tmp_path / "link", "label")
    assert list(walked) == list(expected)
    for name, split in expected.items():
        assert walked[name].features == split.features
        assert walked[name].split == split.split
        assert walked[name].info.builder_name == split.info.builder_name == "videofolder"
        assert walked[name].to_dict() == split.to_dict()


def test_posters_are_no_videos_however_many_there_are(tmp_path):
    for name in ("train/run/a.mp4", "train/run/a.jpg", "train/run/b.jpg", "train/run/c.png", "test/dive/a.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(
        UserWarning, match=r"holds 3 image files next to videos, which are left out\. If they are frames"
    ):
        splits = load_video_splits(str(tmp_path))
    assert [video["path"] for video in splits["train"]["video"]] == [str(tmp_path / "train" / "run" / "a.mp4")]


def test_a_plain_tree_is_walked_once_and_others_are_left_to_load_dataset(tmp_path, monkeypatch):
    for name in ("train/run/a.mp4", "train/test drive/a.mp4", "test/dive/a.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    walks, find = [], splits_module.find_clips
    monkeypatch.setattr(splits_module, "find_clips", lambda *given: walks.append(given) or find(*given))
    monkeypatch.setattr(splits_module, "load_dataset", None)
    read = load_video_splits(str(tmp_path))
    assert len(walks) == 1
    assert {name: names_of(split) for name, split in read.items()} == {"train": ["run", "test drive"], "test": ["dive"]}
    for other in ("train/run/deeper/b.mp4", "metadata.csv", "dev/swim/a.mp4", "train/run/b.webm", "val/run/a.jpg"):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).touch()
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            load_video_splits(str(tmp_path))
        (tmp_path / other).unlink()


@pytest.mark.parametrize(
    "paths",
    [
        ("train/run/a.mp4", "val/dive/b.mp4", "validation/swim/c.mp4"),  # two folders of one split
        ("train/run/a.mp4", "test/run/b.mp4"),  # a single class
        ("Train/run/a.mp4", "train/dive/b.mp4"),
        ("run/a.mp4", "dive/b.mp4"),
    ],
)
def test_only_the_plainest_tree_is_walked(paths, tmp_path):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert splits_module._splits_of_tree(tmp_path, [tmp_path / path for path in paths]) is None


def test_a_file_that_is_no_link_to_nowhere_is_a_row_and_rows_are_in_order_of_paths(tmp_path):
    paths = ["valid/run/b.mp4", "train/dive/c.mp4", "train/dive/a.AVI", "train/a/x.mp4", "valid/run/gone.mp4"]
    for path in paths[:4]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / paths[4]).symlink_to(tmp_path / "nowhere")
    (tmp_path / "train/a/y.mp4").symlink_to(tmp_path / "train/a/x.mp4")
    read = splits_module._splits_of_tree(tmp_path, [tmp_path / path for path in [*paths, "train/a/y.mp4"]])
    assert list(read) == ["train", "validation"]
    expected = {"train": ["a/x.mp4", "a/y.mp4", "dive/a.AVI", "dive/c.mp4"], "validation": ["run/b.mp4"]}
    assert {
        name: [Path(video["path"]).relative_to(tmp_path).as_posix().partition("/")[2] for video in split["video"]]
        for name, split in read.items()
    } == expected
    assert {name: names_of(split) for name, split in read.items()} == {
        "train": ["a", "a", "dive", "dive"],
        "validation": ["run"],
    }


def test_a_split_that_is_not_there_is_named_with_those_there_are():
    splits = DatasetDict(train=with_classes(["run"]), dev=with_classes(["dive"]))
    splits_module.check_split("data", "dev", splits)
    message = r"^data has no split 'test'; it has train, dev\. Choose one of these with --split\. For a folder of exam"
    with pytest.raises(ValueError, match=message):
        splits_module.check_split("data", "test", splits)


def test_a_file_and_a_split_without_rows_are_no_data_sets(tmp_path):
    (tmp_path / "clips.csv").touch()
    with pytest.raises(
        ValueError, match=r"clips\.csv is a file: clipfsar prepare --source .*clips\.csv makes a data s"
    ):
        load_video_splits(str(tmp_path / "clips.csv"))
    nothing = Dataset.from_dict({"video": [], "label": []}, features=with_classes(["run"]).features)
    DatasetDict(train=with_classes(["run"]), test=nothing).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"saved, split 'test' holds no videos: leave it out or fill it\.$"):
        load_video_splits(str(tmp_path / "saved"))
    nothing.save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match=r"one, split 'train' holds no videos: leave it out or fill it\.$"):
        load_video_splits(str(tmp_path / "one"))
    for name in ("train/run/a.mp4", "train/dive/b.mp4", "test/swim/c.mp4"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        (tmp_path / "tree" / name).touch()
    (tmp_path / "tree" / "test/swim/c.mp4").unlink()
    (tmp_path / "tree" / "test/swim/c.mp4").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"tree, split 'test' holds no videos: leave it out or fill it\.$"):
        load_video_splits(str(tmp_path / "tree"))


ROWS = {"video": ["a.mp4", "b.mp4"], "label": ["run", "dive"]}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test/data-00000-of-00001.arrow", b"", r"damaged cannot be read as a data set: .*\. Write the file again"),
        ("test/data-00000-of-00001.arrow", b"\0" * 300, r"damaged cannot be read as a data set: .*\. Write the file"),
        ("test/dataset_info.json", b"{", r"dataset_info\.json is damaged \(.*\): save the data set again\.$"),
        ("test/dataset_info.json", b"[]", r"dataset_info\.json is damaged \(it holds list, not dict\): save the data"),
        ("test/state.json", b"[]", r"state\.json is damaged \(it holds list, not dict\): save the data set again\.$"),
        ("test/dataset_info.json", b'{"features": {"video": {"_type": "Nope"}}}', r"damaged cannot be read .*'Nope'"),
    ],
)
def test_a_damaged_file_of_a_saved_data_set_is_said(file, content, message, tmp_path):
    DatasetDict(train=Dataset.from_dict(ROWS), test=Dataset.from_dict(ROWS)).save_to_disk(tmp_path / "damaged")
    assert [len(split) for split in load_video_splits(str(tmp_path / "damaged")).values()] == [2, 2]
    (tmp_path / "damaged" / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_video_splits(str(tmp_path / "damaged"))


def without_rows(path: Path) -> None:
    Dataset.from_dict({"video": [], "label": []}).cast(Dataset.from_dict(ROWS).features).to_parquet(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_rows, r"tables cannot be read as a data set: .*test\.parquet has no rows\. Write the file again"),
        (lambda path: path.write_bytes(b""), r"test\.parquet: Parquet file size is 0 bytes\. Write the file again"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), r"test\.parquet: Parquet magic bytes not found in"),
        (Dataset.from_dict({"clip": ["a.mp4"]}).to_parquet, r"(?s)tables cannot be read .*names don't match"),
    ],
)
def test_the_damaged_file_of_a_folder_of_parquet_files_is_named(damage, message, tmp_path, capfd):
    for split in ("train", "test"):
        Dataset.from_dict(ROWS).to_parquet(tmp_path / "tables" / f"{split}.parquet")
    damage(tmp_path / "tables" / "test.parquet")
    with pytest.raises(ValueError, match=message):
        load_video_splits(str(tmp_path / "tables"))


def test_what_load_dataset_cannot_read_is_said_with_its_reason(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "train.csv").write_text("video,label\na.mp4,run\nb.mp4,dive,3,4\n")
    with pytest.raises(ValueError, match=r"tables cannot be read as a data set: .*Expected 2 fields in line 3, saw 4"):
        load_video_splits(str(tmp_path / "tables"))


def test_folders_that_are_no_split_of_a_saved_data_set_do_not_matter(splits, tmp_path):
    splits.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "notes").mkdir()
    (tmp_path / "saved" / "notes" / "state.json").write_text("{}")
    assert list(load_video_splits(str(tmp_path / "saved"))) == list(splits)


def test_a_data_set_in_preparation_is_refused_until_its_report_is_there(splits, tmp_path):
    splits.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / ".preparing").mkdir()
    with pytest.raises(ValueError, match="saved is still being prepared, or its preparation was interrupted: wait for"):
        load_video_splits(str(tmp_path / "saved"))
    (tmp_path / "saved" / "preparation.json").write_text('{"settings": {}, "reader": 5}')
    assert list(load_video_splits(str(tmp_path / "saved"))) == ["train", "validation", "test"]


def test_videos_that_load_dataset_leaves_out_are_counted_in_a_warning(tmp_path):
    for name in ("train/run/a.mp4", "train/run/b.divx", "train/dive/c.mp4", "test/swim/d.y4m", "test/swim/e.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match="holds 5 videos, but load_dataset reads 3 of them: it knows few") as record:
        read = load_video_splits(str(tmp_path))
    assert {name: len(split) for name, split in read.items()} == {"train": 2, "test": 1}
    assert record[0].filename == __file__


def test_a_large_tree_is_read_with_a_note_that_preparing_is_faster(video_folder, monkeypatch, recwarn):
    load_video_splits(str(video_folder))
    assert not [warning for warning in recwarn if "in separate files" in str(warning.message)]
    monkeypatch.setattr(splits_module, "MANY_VIDEOS", 3)
    with pytest.warns(UserWarning, match=r"holds 20 videos in separate files: clipfsar prepare --source") as record:
        load_video_splits(str(video_folder))
    assert record[0].filename == __file__
    monkeypatch.setattr(splits_module, "MANY_VIDEOS", 20)
    recwarn.clear()
    load_video_splits(str(video_folder))
    assert not [warning for warning in recwarn if "in separate files" in str(warning.message)]


def test_a_column_of_labels_is_read_at_once(splits):
    class Rows(type(splits["train"])):
        def __getitem__(self, key):
            column = super().__getitem__(key)
            return Column(column) if isinstance(key, str) else column

    class Column:
        def __init__(self, column):
            self.column = column

        def __getitem__(self, key):
            assert key == slice(None)
            return self.column[:]

    split = splits["train"]
    rows = Rows(split.data, split.info, split.split)
    assert read_labels(rows)[0].tolist() == read_labels(split)[0].tolist()


def test_saved_splits_are_read(splits, tmp_path):
    splits.save_to_disk(tmp_path / "saved")
    read = load_video_splits(str(tmp_path / "saved"))
    assert {split: names_of(read[split]) for split in read} == {split: names_of(splits[split]) for split in splits}
    assert list(read["test"]["video"]) == list(splits["test"]["video"])


def test_a_single_saved_dataset_is_a_train_split(splits, tmp_path):
    splits["test"].save_to_disk(tmp_path / "saved")
    read = load_video_splits(str(tmp_path / "saved"))
    assert list(read) == ["train"]
    assert names_of(read["train"]) == names_of(splits["test"])


def save_parquet(splits: DatasetDict, folder):
    folder.mkdir()
    for split, dataset in splits.items():
        dataset.to_parquet(folder / f"{split}.parquet")


def test_parquet_files_named_by_split_are_read(splits, tmp_path):
    all_names = ClassLabel(names=sorted(name for names in CLASSES.values() for name in names))
    by_string = DatasetDict({split: with_classes(names_of(dataset)) for split, dataset in splits.items()})
    for kind, given in (("names", by_string), ("numbers", by_string.cast_column("label", all_names))):
        save_parquet(given, tmp_path / kind)
        read = load_video_splits(str(tmp_path / kind))
        assert {split: names_of(read[split]) for split in read} == {s: names_of(splits[s]) for s in splits}
        check_disjoint_classes(read)


def test_parquet_files_of_different_class_names_are_refused(splits, tmp_path):
    save_parquet(splits, tmp_path / "parquet")
    with pytest.raises(ValueError, match="do not have the same class names"):
        load_video_splits(str(tmp_path / "parquet"))


@pytest.mark.parametrize("source", ["./nothing/here", "/nothing/here", "~/nothing", "a/b/c"])
def test_a_path_where_nothing_is_is_named(source):
    with pytest.raises(FileNotFoundError, match=f"{source} does not exist. Give a folder with videos or the Hub id"):
        load_video_splits(source)


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty is an empty folder; a data set with videos is needed"):
        load_video_splits(str(tmp_path / "empty"))


@pytest.mark.parametrize("column", ["video", "label"])
def test_a_missing_column_is_named_with_split_and_those_there_are(splits, tmp_path, column):
    renamed = DatasetDict(splits)
    renamed["test"] = splits["test"].rename_column(column, "other")
    renamed.save_to_disk(tmp_path / "saved")
    there = ", ".join(renamed["test"].column_names)
    with pytest.raises(ValueError, match=f"split 'test': There is no column '{column}'; the dataset has {there}"):
        load_video_splits(str(tmp_path / "saved"))


def test_columns_may_have_other_names(splits, tmp_path):
    splits.rename_columns({"video": "clip", "label": "action"}).save_to_disk(tmp_path / "saved")
    read = load_video_splits(str(tmp_path / "saved"), video_column="clip", label_column="action")
    check_disjoint_classes(read, "action")
    with pytest.raises(ValueError, match="There is no column 'label'; the dataset has clip, action"):
        load_video_splits(str(tmp_path / "saved"))


def test_labels_without_names_are_refused_with_the_split(splits, tmp_path):
    numbers = Dataset.from_dict({"video": ["a.mp4", "b.mp4"], "label": [0, 1]})
    DatasetDict(train=splits["train"], test=numbers).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="split 'test': Column 'label' holds int values without class names"):
        load_video_splits(str(tmp_path / "saved"))


def with_classes(names: list[str]) -> Dataset:
    return Dataset.from_dict({"video": ["a.mp4"] * len(names), "label": names})


def test_shared_classes_are_named_by_name_and_not_by_number(splits):
    check_disjoint_classes(splits)  # their numbers overlap, their names do not
    shared = DatasetDict(train=with_classes(["run", "dive", "jump"]), test=with_classes(["swim", "run", "dive"]))
    message = r"The splits 'train' and 'test' share 2 classes: dive, run\. .* give --allow_shared_classes"
    with pytest.raises(ValueError, match=message):
        check_disjoint_classes(shared)


@pytest.mark.parametrize("pair", [("train", "validation"), ("validation", "test")])
def test_every_pair_of_splits_is_compared(pair):
    splits = DatasetDict({split: with_classes([split]) for split in ("train", "validation", "test")})
    check_disjoint_classes(splits)
    for split in pair:
        splits[split] = with_classes([split, "run"])
    with pytest.raises(ValueError, match=f"The splits '{pair[0]}' and '{pair[1]}' share 1 class: run"):
        check_disjoint_classes(splits)


def test_many_shared_classes_are_cut_after_ten():
    ten = DatasetDict(train=with_classes(list("jihgfedcba")), test=with_classes(list("abcdefghij")))
    with pytest.raises(ValueError, match=r"share 10 classes: a, b, c, d, e, f, g, h, i, j\. Few-shot splits have"):
        check_disjoint_classes(ten)
    names = [f"class {number:02}" for number in range(12)]
    with pytest.raises(ValueError, match=r"share 12 classes: class 00, .*class 09, \.\.\.\. Few-shot"):
        check_disjoint_classes(DatasetDict(train=with_classes(names), test=with_classes(names)))


def test_only_a_name_with_an_owner_is_looked_for_on_the_hub(tmp_path, monkeypatch):
    def ask(name):
        raise RuntimeError(f"asked for {name}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(splits_module, "load_dataset", ask)
    with pytest.raises(RuntimeError, match="asked for me/actions"):
        load_video_splits("me/actions")
    for name in ("actions", "./me/actions", "/me/actions"):
        with pytest.raises(FileNotFoundError, match=r"does not exist\. Give a folder with videos or the Hub id"):
            load_video_splits(name)
