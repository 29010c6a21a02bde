"""Lists of videos, classes and splits from official files, tables and folders."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from datasets import DatasetDict, Features, Value

from clipfsar.data.arguments import PrepareArguments
from clipfsar.data.class_split import resplit, split_classes
from clipfsar.data.clips import LeftOut, class_folders, find_clips
from clipfsar.data.sources import (
    Clip,
    class_name_of_folder,
    folder_splits,
    listed_clips,
    official_splits,
    read_official_class_names,
    read_official_list,
    table_splits,
    to_dataset,
    trx_splits,
)

FILES = {"train": "train_few_shot.txt", "validation": "val_few_shot.txt", "test": "test_few_shot.txt"}

# Two lines of each benchmark's list, in the official forms, and the class names that its folders or YAML file give.
LAYOUTS = {
    "ssv2_full": ["train8/78687", "train63/2"],
    "ssv2_small": ["train0/146073", "train8/78687"],
    "kinetics100": ["train0//air_drumming/-VtLx4X_A7s_000007_000017.mp4", "train1//arm wrestling/04CuxIMbkkQ.mp4"],
    "ucf101": ["train0//ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "train1//YoYo/v_YoYo_g25_c05.avi"],
    "hmdb51": ["train0//brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "train1//climb stairs/x.y_(1).avi"],
}
READ = {
    "ssv2_full": [(8, "78687"), (63, "2")],
    "ssv2_small": [(0, "146073"), (8, "78687")],
    "kinetics100": [(0, "air_drumming/-VtLx4X_A7s_000007_000017.mp4"), (1, "arm wrestling/04CuxIMbkkQ.mp4")],
    "ucf101": [(0, "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi"), (1, "YoYo/v_YoYo_g25_c05.avi")],
    "hmdb51": [(0, "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi"), (1, "climb stairs/x.y_(1).avi")],
}


def write_lists(folder: Path, **lists: list[str]) -> Path:
    """Official lists of the given lines, by split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in lists.items():
        (folder / FILES[split]).write_text("".join(f"{line}\n" for line in lines))
    return folder


def touch(root: Path, *paths: str) -> Path:
    """Empty files: nothing is decoded here."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def train_clips(folder: Path, lines: list[str], **options) -> list[Clip]:
    """What the train list of these lines names, with videos (or none) in `folder / "videos"`."""
    (folder / "videos").mkdir(exist_ok=True)
    lists = write_lists(folder / "lists", train=lines)
    return official_splits(lists, folder / "videos", splits=["train"], **options)["train"]


# --- official lists ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", LAYOUTS)
def test_a_list_of_every_benchmark_is_read(benchmark, tmp_path):
    file = write_lists(tmp_path, train=LAYOUTS[benchmark]) / FILES["train"]
    assert [(video.class_id, video.path) for video in read_official_list(file)] == READ[benchmark]
    assert [video.line for video in read_official_list(file)] == [1, 2]


def test_empty_lines_and_line_ends_of_windows_are_no_harm_and_lines_keep_their_numbers(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(b"train0/1\r\n\r\n  train1/2  \r\n\r\n")
    assert [(video.class_id, video.path, video.line) for video in read_official_list(file)] == [
        (0, "1", 1),
        (1, "2", 3),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "brush_hair/xyz.avi",
        "train//brush_hair/xyz.avi",
        "0//brush_hair/xyz.avi",
        "train0",
        "train0//",
        "train0/",
        "train0///brush_hair/xyz.avi",
        "train-1//brush_hair/xyz.avi",
        "train0 brush_hair/xyz.avi",
    ],
)
def test_a_line_in_the_wrong_form_is_named_with_file_number_and_what_was_expected(line, tmp_path):
    file = write_lists(tmp_path, train=["train0//brush_hair/a.avi", "", line]) / FILES["train"]
    message = (
        f"{file}, line 3: {line!r} is not of the form 'train8/78687' or 'train0//brush_hair/xyz.avi' "
        "(split and class id, then the video)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        read_official_list(file)


def test_an_empty_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train_few_shot.txt names no videos"):
        read_official_list(write_lists(tmp_path, train=["", ""]) / FILES["train"])


def test_a_list_that_is_not_there_is_named_with_all_three_and_the_way_without_it(tmp_path):
    lists = write_lists(tmp_path / "lists", train=["train0//run/a.avi"], test=["test0//dive/a.avi"])
    with pytest.raises(FileNotFoundError, match=r"val_few_shot.txt does not exist.*test_few_shot.txt.*--splits leaves"):
        official_splits(lists, tmp_path)
    assert list(official_splits(lists, tmp_path, splits=["train", "test"])) == ["train", "test"]


def test_a_video_root_that_is_not_there_is_named(tmp_path):
    lists = write_lists(tmp_path / "lists", train=["train0//run/a.avi"])
    with pytest.raises(FileNotFoundError, match=r"The folder of the videos, .*/nowhere, does not exist"):
        official_splits(lists, tmp_path / "nowhere", splits=["train"])


def test_all_three_lists_number_their_classes_from_zero(tmp_path):
    lists = write_lists(
        tmp_path,
        train=["train0//run/a.avi", "train1//dive/a.avi"],
        validation=["val0//swim/a.avi"],
        test=["test0//clap/a.avi", "test0//clap/b.avi"],
    )
    splits = official_splits(lists, tmp_path)
    names = {split: [clip.class_name for clip in clips] for split, clips in splits.items()}
    assert names == {"train": ["run", "dive"], "validation": ["swim"], "test": ["clap", "clap"]}


# --- files on the disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "there", "found"),
    [
        ("train0//run/a.avi", ["run/a.avi"], "run/a.avi"),
        ("train0//run/a.avi", ["run/a.avi", "run/a.mp4"], "run/a.avi"),  # as listed before all others
        ("train0//run/a.avi", ["run/a.mp4"], "run/a.mp4"),  # converted
        ("train0//run/a.avi", ["run/a.mkv", "run/a.webm"], "run/a.webm"),
        ("train0//run/a.b.avi", ["run/a.mp4", "run/a.b.mp4"], "run/a.b.mp4"),
        ("train0//run/a.avi", ["run/aa.avi", "run/a.txt", "dive/a.avi"], "run/a.avi"),  # missing
        ("train0/7", ["7.mp4", "7.webm", "77.mp4"], "7.mp4"),
        ("train0/7", ["7.webm"], "7.webm"),
        ("train0/7", ["77.mp4"], "7.mp4"),  # missing
        ("train0/7", ["7/000001.jpg"], "7"),  # frames in a folder
        ("train0/7.5", ["7.mp4", "7.5.mp4"], "7.5.mp4"),  # no suffix but part of the id
    ],
)
def test_a_listed_video_is_found_under_its_name_or_with_another_suffix(line, there, found, tmp_path):
    touch(tmp_path / "videos", *there)
    (tmp_path / "names.yaml").write_text("TRAIN: {CLASS_NAME: [run]}")
    clips = train_clips(tmp_path, [line], class_names_file=tmp_path / "names.yaml")
    assert clips == [Clip(str(tmp_path / "videos" / found), "run")]


# --- class names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("brush_hair", "brush hair"),
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("YoYo", "Yo Yo"),
        ("TaiChi", "Tai Chi"),
        ("air drumming", "air drumming"),
        ("__shake__hands_", "shake hands"),
        ("TV_Show", "TV Show"),
        ("run", "run"),
    ],
)
def test_a_folder_becomes_words(folder, name):
    assert class_name_of_folder(folder) == name


@pytest.mark.parametrize(
    ("benchmark", "names"),
    [
        ("kinetics100", ["air drumming", "arm wrestling"]),
        ("ucf101", ["Apply Eye Makeup", "Yo Yo"]),
        ("hmdb51", ["brush hair", "climb stairs"]),
    ],
)
def test_class_names_are_read_off_the_folders(benchmark, names, tmp_path):
    assert [clip.class_name for clip in train_clips(tmp_path, LAYOUTS[benchmark])] == names


def test_one_class_id_in_two_folders_needs_a_file_of_names(tmp_path):
    lines = ["train0//run/a.avi", "train1//dive/a.avi", "train0//dive/b.avi"]
    message = "line 3: class id 0 is 'dive' here and 'run' further up: .* train classes with --class_names_file"
    with pytest.raises(ValueError, match=message):
        train_clips(tmp_path, lines)


# As in the official files, where the lists stand among many other settings.
OFFICIAL_YAML = """
TASK_TYPE: few_shot_action
DATASET: {ROOT_DIR: 0}
TRAIN:
  ENABLE: true
  CLASS_NAME: [Pouring something into something, "Poking a stack of something without the stack collapsing"]
  META_BATCH: true
TEST:
  CLASS_NAME:
    - 'Approaching something with your camera'
SOLVER: {BASE_LR: 0.00005}
"""


def test_class_names_are_read_out_of_the_official_yaml(tmp_path):
    (tmp_path / "names.yaml").write_text(OFFICIAL_YAML)
    assert read_official_class_names(tmp_path / "names.yaml") == {
        "train": ["Pouring something into something", "Poking a stack of something without the stack collapsing"],
        "test": ["Approaching something with your camera"],
    }


def test_names_of_the_yaml_go_by_class_id_and_before_those_of_folders(tmp_path):
    (tmp_path / "names.yaml").write_text("TRAIN: {CLASS_NAME: [brushing hair, cartwheel]}")
    lines = ["train1//x/a.avi", "train0//x/b.avi", "train1//y/c.avi"]
    clips = train_clips(tmp_path, lines, class_names_file=tmp_path / "names.yaml")
    assert [clip.class_name for clip in clips] == ["cartwheel", "brushing hair", "cartwheel"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN: [unclosed", "names.yaml is not a YAML file: .*line 1"),
        ("just words", "names.yaml has neither TRAIN.CLASS_NAME nor TEST.CLASS_NAME; give the YAML file"),
        ("TRAIN: {BATCH_SIZE: 1}\nVAL: {CLASS_NAME: [run]}", "names.yaml has neither TRAIN.CLASS_NAME nor"),
        ("", "names.yaml has neither TRAIN.CLASS_NAME nor"),
    ],
)
def test_a_file_that_is_no_official_yaml_is_refused(text, message, tmp_path):
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_official_class_names(tmp_path / "names.yaml")


def test_a_name_that_the_yaml_gives_to_two_ids_is_refused(tmp_path):
    (tmp_path / "names.yaml").write_text("TRAIN: {CLASS_NAME: [run, dive, run]}")
    with pytest.raises(ValueError, match=r"names.yaml names the class 'run' twice; each class has one id\."):
        train_clips(tmp_path, ["train0/1", "train1/2", "train2/3"], class_names_file=tmp_path / "names.yaml")


def test_a_class_id_outside_the_names_is_named_with_its_line(tmp_path):
    (tmp_path / "names.yaml").write_text("TRAIN: {CLASS_NAME: [run, dive]}")
    message = r"train_few_shot.txt, line 2: class id 2 has no name; .*names.yaml has 2 names \(ids 0 to 1\)"
    with pytest.raises(ValueError, match=message):
        train_clips(tmp_path, ["train1/1", "train2/2"], class_names_file=tmp_path / "names.yaml")


def test_ssv2_lists_without_names_say_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"line 1: '78687' does not say the name of its class: .*--class_names_file"):
        train_clips(tmp_path, ["train8/78687"])


def test_numbers_stand_for_names_that_nothing_says_if_asked_for(tmp_path, capsys):
    lists = write_lists(tmp_path / "lists", train=["train1//clips_256/P01_11_100.MP4", "train0//clips_256/P01_1_7.MP4"])
    clips = official_splits(lists, tmp_path, splits=["train"], numbered=["train"])["train"]
    assert [clip.class_name for clip in clips] == ["train class 1", "train class 0"]
    assert clips[0].path == str(tmp_path / "clips_256" / "P01_11_100.MP4")
    assert "note: the train classes have numbers for names" in capsys.readouterr().err


def test_only_options_and_benchmarks_make_numbers_of_classes(tmp_path, capsys):
    lists = write_lists(tmp_path / "lists", train=["train1/5"], validation=["val7/6"], test=["test0//dive/a.avi"])
    given = {"official_splits": str(lists), "video_root": str(tmp_path), "output_dir": "data"}
    with pytest.raises(ValueError, match=r"train_few_shot\.txt, line 1: '5' does not say the name of its class"):
        listed_clips(PrepareArguments(**given, benchmark="ssv2_full"))
    with pytest.raises(ValueError, match=r"val_few_shot\.txt, line 1: '6' does not say the name of its class"):
        listed_clips(PrepareArguments(**given, splits=["test", "validation"]))
    assert capsys.readouterr().err == ""
    numbered = listed_clips(PrepareArguments(**given, splits=["test", "validation"], benchmark="ssv2_full"))
    assert {split: [clip.class_name for clip in clips] for split, clips in numbered.items()} == {
        "test": ["dive"],
        "validation": ["validation class 7"],
    }
    assert capsys.readouterr().err == (
        "note: the validation classes have numbers for names, because no file names them. Their texts mean nothing to "
        "the model; --validation_class_names takes names, or Something-Something's label file.\n"
    )
    numbered = listed_clips(PrepareArguments(**given, number_classes=True))
    names = {split: [clip.class_name for clip in clips] for split, clips in numbered.items()}
    assert names == {"train": ["train class 1"], "validation": ["validation class 7"], "test": ["dive"]}
    assert "; --class_names_file takes names.\n" in capsys.readouterr().err


def test_files_of_names_and_lists_of_both_forms_are_those_of_the_options(tmp_path):
    lists = write_lists(tmp_path / "lists", train=["train0/5"], validation=["val0/6"])
    (tmp_path / "names.yaml").write_text("TRAIN: {CLASS_NAME: [run]}")
    (tmp_path / "names.txt").write_text("swim\n")
    given = {"official_splits": str(lists), "video_root": str(tmp_path), "output_dir": "data"}
    given |= {"splits": ["train", "validation"]}
    files = {"class_names_file": str(tmp_path / "names.yaml"), "validation_class_names": str(tmp_path / "names.txt")}
    assert listed_clips(PrepareArguments(**given, **files)) == {
        "train": [Clip(str(tmp_path / "5.mp4"), "run")],
        "validation": [Clip(str(tmp_path / "6.mp4"), "swim")],
    }
    lists = write_trx_lists(tmp_path / "trx", trainlist07="0/5\n", vallist07="1/6\n", testlist07="2/7\n")
    (tmp_path / "names.json").write_text('["run", "swim", "dive"]')
    given |= {"official_splits": str(lists)}
    assert listed_clips(PrepareArguments(**given, class_names_file=str(tmp_path / "names.json"))) == {
        "train": [Clip(str(tmp_path / "0/5.mp4"), "run")],
        "validation": [Clip(str(tmp_path / "1/6.mp4"), "swim")],
    }
    for option, value in (("validation_class_names", "names.txt"), ("number_classes", True)):
        with pytest.raises(ValueError, match=rf"--{option} has no effect with lists of lines CLASS/VIDEO, which name"):
            listed_clips(PrepareArguments(**given, **{option: value}))
    touch(lists, "test_few_shot.txt")  # a list of the official program makes all of them official
    with pytest.raises(FileNotFoundError, match=r"train_few_shot\.txt does not exist"):
        listed_clips(PrepareArguments(**given))


def test_columns_and_folders_of_a_table_are_those_of_the_options(tmp_path):
    table = write_table(tmp_path / "clips.TSV", "file\taction\tpart\na.mp4\trun\tval\n")
    given = {"source": str(table), "path_column": "file", "label_column": "action", "split_column": "part"}
    given |= {"output_dir": "data"}
    assert listed_clips(PrepareArguments(**given)) == {"validation": [Clip(str(tmp_path / "a.mp4"), "run")]}
    given |= {"video_root": "/videos"}
    assert listed_clips(PrepareArguments(**given)) == {"validation": [Clip("/videos/a.mp4", "run")]}


def test_folders_of_saved_data_sets_and_tables_are_left_to_others(tmp_path):
    def listed(folder: Path):
        return listed_clips(PrepareArguments(source=str(folder), output_dir="data"))

    for number, file in enumerate(("dataset_dict.json", "state.json", "data/train.parquet")):
        folder = touch(tmp_path / str(number), "run/a.mp4")
        assert listed(folder) == {"all": [Clip(str(folder / "run/a.mp4"), "run")]}
        touch(folder, file)
        assert listed(folder) is None
    assert listed(Path("owner/name")) is None
    for name in ("clips.csv", "labels.json", "labels.XML"):
        with pytest.raises(FileNotFoundError, match=rf"^--source .*{name} does not exist\.$"):
            listed(tmp_path / name)


def test_a_folder_that_classes_share_is_no_name(tmp_path):
    with pytest.raises(ValueError, match=r"classes share the folder 'clips 256'.*--class_names_file, or number them"):
        train_clips(tmp_path, ["train1//clips_256/a.MP4", "train0//clips_256/b.MP4"])


# --- lists of TRX and CLIP-MEI


def write_trx_lists(folder: Path, **lists: str) -> Path:
    folder.mkdir()
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_lists_of_trx_name_folders_of_frames(tmp_path):
    lists = write_trx_lists(
        tmp_path / "lists",
        trainlist03="brush_hair/one\nclimb/x.y_(1)\n",
        vallist03="swim/two\n",
        testlist03="dive/gone\nrun/c.avi\n",
    )
    root = touch(tmp_path / "frames", "brush_hair/one/1.jpg", "climb/x.y_(1)/1.jpg", "swim/two/1.jpg", "run/c.mp4")
    splits = trx_splits(lists, root)
    assert {split: [(clip.path, clip.class_name) for clip in clips] for split, clips in splits.items()} == {
        "train": [(f"{root}/brush_hair/one", "brush hair"), (f"{root}/climb/x.y_(1)", "climb")],
        "validation": [(f"{root}/swim/two", "swim")],
        "test": [(f"{root}/dive/gone.mp4", "dive"), (f"{root}/run/c.mp4", "run")],
    }


def test_frames_of_clip_mei_lie_in_a_folder_per_split_and_json_names_its_classes(tmp_path):
    lists = write_trx_lists(tmp_path / "lists", trainlist07="train0/78687\n", testlist07="test0/5\n")
    (tmp_path / "names.json").write_text('{"train0": "Bending something", "test0": "Digging something"}')
    root = touch(tmp_path / "frames", "train/train0/78687/1.jpg", "test/test0/5/1.jpg")
    splits = trx_splits(lists, root, tmp_path / "names.json", ["train", "test"])
    assert splits == {
        "train": [Clip(f"{root}/train/train0/78687", "Bending something")],
        "test": [Clip(f"{root}/test/test0/5", "Digging something")],
    }
    (tmp_path / "names.json").write_text("{}")
    with pytest.raises(ValueError, match=r"trainlist07.txt, line 1: .*names.json has no name for 'train0'"):
        trx_splits(lists, root, tmp_path / "names.json", ["train"])


def test_lists_of_diving48_name_videos_of_one_folder_and_its_vocabulary_names_classes(tmp_path):
    lists = write_trx_lists(tmp_path / "lists", meta_train="0/_8Vy3dlHg2w_00000\n", meta_val="1/zYHstCxnAPA_00335\n")
    (tmp_path / "Diving48_vocab.json").write_text('[["Back", "15som", "NoTwis", "PIKE"], ["Inward", "25som"]]')
    root = touch(tmp_path / "rgb", "_8Vy3dlHg2w_00000.mp4")
    splits = trx_splits(lists, root, tmp_path / "Diving48_vocab.json", ["train", "validation"])
    assert splits == {
        "train": [Clip(f"{root}/_8Vy3dlHg2w_00000.mp4", "Back 15som NoTwis PIKE")],
        "validation": [Clip(f"{root}/1/zYHstCxnAPA_00335.mp4", "Inward 25som")],
    }


@pytest.mark.parametrize("line", ["brush_hair", "a/b/c", "/b", "a/"])
def test_a_line_of_another_form_than_trx_is_named(line, tmp_path):
    lists = write_trx_lists(tmp_path / "lists", trainlist03=f"run/a\n{line}\n")
    with pytest.raises(ValueError, match=r"trainlist03.txt, line 2: .* is not of the form CLASS/VIDEO"):
        trx_splits(lists, tmp_path, splits=["train"])


def test_several_lists_of_trx_in_a_folder_are_refused(tmp_path):
    lists = write_trx_lists(tmp_path / "lists", trainlist03="run/a\n", trainlist07="run/a\n")
    with pytest.raises(ValueError, match=r"several lists of train, trainlist03.txt, trainlist07.txt: leave the one"):
        trx_splits(lists, tmp_path, splits=["train"])
    with pytest.raises(
        FileNotFoundError, match=r"lists has no vallistNN.txt \(NN: two digits\) or meta_val.txt; --splits"
    ):
        trx_splits(lists, tmp_path, splits=["validation"])


def validation_clips(folder: Path, lines: list[str], names_file: Path | None = None) -> list[Clip]:
    lists = write_lists(folder / "lists", validation=lines)
    (folder / "names.yaml").write_text(OFFICIAL_YAML)
    return official_splits(lists, folder, folder / "names.yaml", names_file, ["validation"])["validation"]


def test_validation_names_of_ssv2_are_in_no_official_file_and_asked_for(tmp_path):
    message = (
        "val_few_shot.txt, line 1: '5' does not say .* names of the validation classes with --validation_class_names"
    )
    with pytest.raises(ValueError, match=message):
        validation_clips(tmp_path, ["val0/5"])


def test_validation_names_come_from_the_folders_when_there_are_such(tmp_path):
    assert [clip.class_name for clip in validation_clips(tmp_path, ["val0//ride_bike/a.avi"])] == ["ride bike"]


def test_validation_names_come_from_a_text_file_in_the_order_of_the_ids(tmp_path):
    (tmp_path / "names.txt").write_text("Bending something\n\n  Closing something \n")
    clips = validation_clips(tmp_path, ["val1/5", "val0/6"], tmp_path / "names.txt")
    assert [clip.class_name for clip in clips] == ["Closing something", "Bending something"]


def test_a_text_file_with_a_name_twice_or_too_few_is_refused(tmp_path):
    (tmp_path / "names.txt").write_text("Bending something\nBending something\n")
    with pytest.raises(
        ValueError, match=r"names.txt names the class 'Bending something' twice; each class has one id\."
    ):
        validation_clips(tmp_path, ["val0/5"], tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("Bending something\n")
    with pytest.raises(ValueError, match=r"line 2: class id 1 has no name; .*names.txt has 1 names \(ids 0 to 0\)"):
        validation_clips(tmp_path, ["val0/5", "val1/6"], tmp_path / "names.txt")


def test_an_empty_text_file_of_names_is_refused(tmp_path):
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"names\.txt names no classes: write one line per class, in the order of"):
        validation_clips(tmp_path, ["val0/5"], tmp_path / "names.txt")


SSV2_LABELS = [
    {"id": "5", "label": "bending a spoon", "template": "Bending [something] so that it deforms", "placeholders": []},
    {"id": "6", "label": "closing a book", "template": "Closing [something]", "placeholders": ["a book"]},
    {"id": "7", "label": "closing a box", "template": "Closing [something]", "placeholders": ["a box"]},
    {"id": "999", "label": "not listed", "template": "Moving [something] up", "placeholders": []},
]


def test_validation_names_come_from_the_labels_of_ssv2_by_the_ids_of_the_videos(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(SSV2_LABELS))
    # Video 8 is in no label file (people have one of train and one of validation): its class is known by another.
    clips = validation_clips(tmp_path, ["val1/6", "val0/5", "val1/7", "val0/8"], tmp_path / "labels.json")
    assert [clip.class_name for clip in clips] == [
        "Closing something",
        "Bending something so that it deforms",
        "Closing something",
        "Bending something so that it deforms",
    ]


@pytest.mark.parametrize(
    ("text", "lines", "message"),
    [
        ("{broken", ["val0/5"], "labels.json is not a label file of Something-Something"),
        ('{"Closing something": 0}', ["val0/5"], "labels.json is not a label file of Something-Something"),
        ('[{"id": "5"}]', ["val0/5"], r"is not a label file.*\(KeyError\('template'\)\)"),
        (json.dumps(SSV2_LABELS), ["val0/1"], "labels.json has no label of any video of the validation list"),
        (json.dumps(SSV2_LABELS), ["val0/5", "val1/1"], "line 2: class id 1 has no name; .*labels.json has 1 names"),
    ],
)
def test_labels_of_ssv2_that_do_not_fit_are_refused(text, lines, message, tmp_path):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        validation_clips(tmp_path, lines, tmp_path / "labels.json")


def test_labels_of_ssv2_that_give_one_class_two_names_are_refused(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(SSV2_LABELS))
    message = (
        "labels.json calls the videos of class id 0 'Bending something so that it deforms' and 'Closing something': it "
        "does not belong to this list"
    )
    with pytest.raises(ValueError, match=message):
        validation_clips(tmp_path, ["val0/5", "val0/6"], tmp_path / "labels.json")


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_tree_of_splits_is_read_with_its_videos_in_order(tmp_path):
    touch(tmp_path, "Train/run_fast/b.mp4", "Train/run_fast/a.AVI", "val/TaiChi/c.webm", "test/clap/d.mkv")
    assert folder_splits(tmp_path) == {
        "train": [Clip(str(tmp_path / "Train/run_fast" / name), "run fast") for name in ("a.AVI", "b.mp4")],
        "validation": [Clip(str(tmp_path / "val/TaiChi/c.webm"), "Tai Chi")],
        "test": [Clip(str(tmp_path / "test/clap/d.mkv"), "clap")],
    }


def test_a_flat_folder_of_classes_is_one_split(tmp_path):
    touch(tmp_path, "run/a.mp4", "clap/b.mp4")
    clips = [Clip(str(tmp_path / "clap/b.mp4"), "clap"), Clip(str(tmp_path / "run/a.mp4"), "run")]
    assert folder_splits(tmp_path) == {"all": clips}


def test_other_files_hidden_ones_and_empty_classes_are_left_out(tmp_path):
    touch(tmp_path, "run/a.mp4", "run/notes.txt", "run/.a.mp4", ".cache/b.mp4", "list.txt", "run/empty/x.txt")
    (tmp_path / "clap").mkdir()
    assert folder_splits(tmp_path) == {"all": [Clip(str(tmp_path / "run/a.mp4"), "run")]}


def test_what_is_left_out_is_counted(tmp_path):
    touch(tmp_path, "run/a.mp4", "run/notes.txt", "run/b.XML", "run/.a.mp4", "run/Thumbs.db", "run/poster.jpg")
    touch(tmp_path, "__MACOSX/run/._a.mp4", "list.txt", "stray.mp4", "jump/readme", "README")
    (tmp_path / "clap").mkdir()
    left_out = LeftOut()
    assert folder_splits(tmp_path, left_out) == {"all": [Clip(str(tmp_path / "run/a.mp4"), "run")]}
    assert str(left_out) == (
        "left out: 5 files that are not videos (.txt 2, no suffix 2, .xml 1), 1 image file next to clips, "
        "1 file outside class folders, 3 hidden, class folders without clips: 'clap', 'jump'"
    )
    assert str(LeftOut()) == ""


def test_what_is_left_out_is_said_in_one_sentence_however_much_it_is():
    left_out = LeftOut(
        suffixes=Counter({f".{letter}": 2 for letter in "kjihgfedcb"} | {".a": 1200}),
        num_hidden=1000,
        num_images=2001,
        num_outside=3000,
        empty_classes=[f"c{number}" for number in range(11)],
        labels=Counter({"skipped annotations": 1500, "others": 1}),
        notes=Counter({"what to know": 4}),
    )
    assert str(left_out) == (
        "left out: 1,220 files that are not videos (.a 1,200, .b 2, .c 2, .d 2, .e 2, .f 2, .g 2, .h 2, .i 2, .j 2, "
        "...), 2,001 image files next to clips, 3,000 files outside class folders, 1,000 hidden, class folders without "
        "clips: 'c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7', 'c8', 'c9', ..., skipped annotations (1,500), "
        "others (1)"
    )
    ten = LeftOut(suffixes=Counter({f".{letter}": 1 for letter in "abcdefghij"}), empty_classes=list("abcdefghij"))
    assert "..." not in str(ten)
    assert str(LeftOut(num_hidden=1)) == "left out: 1 hidden"
    assert str(LeftOut(notes=Counter(known=1))) == ""


def test_videos_lie_at_any_depth_below_their_class(tmp_path):
    touch(
        tmp_path, "train/run/day 1/cam/b.mp4", "train/run/a.gif", "train/run/frames/0.jpg", "train/run/__MACOSX/c.mp4"
    )
    assert folder_splits(tmp_path) == {
        "train": [Clip(str(tmp_path / "train/run" / name), "run") for name in ("a.gif", "day 1/cam/b.mp4", "frames")]
    }


def test_images_above_clips_do_not_hide_these(tmp_path):
    touch(tmp_path, "run/poster.jpg", "run/one/0.jpg", "run/two/0.jpg")
    assert [Path(clip.path).name for clip in folder_splits(tmp_path)["all"]] == ["one", "two"]


def test_a_link_to_a_folder_above_ends(tmp_path):
    touch(tmp_path, "run/a/b.mp4")
    (tmp_path / "run/a/loop").symlink_to(tmp_path / "run")
    assert [Path(clip.path).name for clip in folder_splits(tmp_path)["all"]] == ["b.mp4"]
    (tmp_path / "run/a/up").symlink_to(tmp_path)  # above the folder that is searched: its clips are there already
    touch(tmp_path, "jump/c.mp4")
    found = [path.relative_to(tmp_path).as_posix() for path in find_clips(tmp_path / "run")]
    assert found == ["run/a/b.mp4", "run/a/up/jump/c.mp4"]


def test_a_folder_that_links_show_twice_is_read_under_both_names(tmp_path):
    touch(tmp_path, "elsewhere/b.mp4")
    for name in ("one", "two"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "link").symlink_to(tmp_path / "elsewhere")
    found = [path.relative_to(tmp_path).as_posix() for path in find_clips(tmp_path / "run")]
    assert found == ["run/one/link/b.mp4", "run/two/link/b.mp4"]


def test_a_folder_around_the_splits_is_no_class(tmp_path):
    touch(tmp_path, "data/train/run/a.mp4", "data/test/clap/b.mp4")
    with pytest.raises(ValueError, match=r"The splits are one folder further down: give .*data\."):
        folder_splits(tmp_path)
    touch(tmp_path, "more/run/a.mp4")  # beside others it is a class
    assert [clip.class_name for clip in folder_splits(tmp_path)["all"]] == ["data", "data", "more"]


def test_a_class_with_a_folder_called_like_a_split_is_a_class(tmp_path):
    touch(tmp_path, "run/test/a.mp4", "run/indoors/b.mp4")
    assert [clip.class_name for clip in folder_splits(tmp_path)["all"]] == ["run", "run"]
    touch(tmp_path, "run/Test/a.mp4")  # two spellings of one split
    assert [clip.class_name for clip in folder_splits(tmp_path)["all"]] == ["run", "run", "run"]


@pytest.mark.parametrize(
    "suffix",
    ["gif", "vob", "divx", "qt", "f4v", "mxf", "3g2", "ogg", "mpe", "m2v", "mp4v", "y4m", "wtv", "rm", "rmvb", "nut"],
)
def test_what_pyav_opens_is_a_video(suffix, tmp_path):
    touch(tmp_path, f"run/a.{suffix}")
    assert folder_splits(tmp_path) == {"all": [Clip(str(tmp_path / f"run/a.{suffix}"), "run")]}


def test_a_folder_of_images_is_a_video(tmp_path):
    touch(tmp_path, "run/a/000001.jpg", "run/a/000002.jpg", "run/b.mp4")
    assert [Path(clip.path).name for clip in folder_splits(tmp_path)["all"]] == ["a", "b.mp4"]


def test_a_relative_folder_gives_absolute_paths(tmp_path, monkeypatch):
    touch(tmp_path, "videos/run/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert folder_splits(Path("videos"))["all"][0].path == str(tmp_path / "videos/run/a.mp4")


def test_classes_beside_splits_are_refused(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "clap/b.mp4")
    with pytest.raises(ValueError, match="has split folders and also 'clap': move all classes into train"):
        folder_splits(tmp_path)


@pytest.mark.parametrize("path", ["a.mp4", "train/a.mp4", "run/notes.txt"])
def test_a_folder_without_videos_says_what_was_expected(path, tmp_path):
    touch(tmp_path, path)
    with pytest.raises(ValueError, match=r"holds no videos. Use SPLIT/CLASS/VIDEO or CLASS/VIDEO"):
        folder_splits(tmp_path)


def test_two_folders_of_one_split_are_read_together(tmp_path):
    touch(tmp_path, "val/run/a.mp4", "validation/clap/b.mp4", "train/dive/c.mp4")
    splits = folder_splits(tmp_path)
    assert {split: [clip.class_name for clip in clips] for split, clips in splits.items()} == {
        "train": ["dive"],
        "validation": ["run", "clap"],
    }


# --- tables -----------------------------------------------------------------------------------------------------------


def write_table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_with_splits_is_read(tmp_path):
    table = write_table(
        tmp_path / "clips.csv",
        'path,label,split\na.mp4,"run, fast",train\nsub/b.mp4,clap,val\n'
        '/videos/c.mp4,dive,Test\nd.mp4,"run, fast",train\n',
    )
    assert table_splits(table) == {
        "train": [Clip(str(tmp_path / "a.mp4"), "run, fast"), Clip(str(tmp_path / "d.mp4"), "run, fast")],
        "validation": [Clip(str(tmp_path / "sub/b.mp4"), "clap")],
        "test": [Clip("/videos/c.mp4", "dive")],
    }


def test_a_csv_without_splits_is_one_split(tmp_path):
    table = write_table(tmp_path / "clips.csv", "path,label\na.mp4,run\nb.mp4,clap\n")
    assert table_splits(table) == {"all": [Clip(str(tmp_path / "a.mp4"), "run"), Clip(str(tmp_path / "b.mp4"), "clap")]}


@pytest.mark.parametrize("splits", [True, False])
def test_json_lines_are_read(splits, tmp_path):
    row = {"path": "a.mp4", "label": "run"} | ({"split": "test"} if splits else {})
    table = write_table(tmp_path / "clips.jsonl", json.dumps(row) + "\n\n" + json.dumps(row | {"path": "é.mp4"}) + "\n")
    clips = [Clip(str(tmp_path / "a.mp4"), "run"), Clip(str(tmp_path / "é.mp4"), "run")]
    assert table_splits(table) == {"test" if splits else "all": clips}


def test_columns_of_a_table_may_have_other_names_and_paths_another_root(tmp_path):
    table = write_table(tmp_path / "clips.csv", "file,action,part\na.mp4,run,train\n")
    assert table_splits(table, Path("/videos"), "file", "action", "part") == {"train": [Clip("/videos/a.mp4", "run")]}


def test_a_csv_as_spreadsheets_save_it_is_read(tmp_path):
    (tmp_path / "clips.csv").write_bytes(b"\xef\xbb\xbfpath,label\r\na.mp4,run\r\n")
    assert table_splits(tmp_path / "clips.csv") == {"all": [Clip(str(tmp_path / "a.mp4"), "run")]}


@pytest.mark.parametrize(
    "text",
    [
        "path, label\na.mp4, run, fast\n".replace("run, fast", '"run, fast"'),
        "path;label\na.mp4;run, fast\n",
        "path\tlabel\na.mp4\trun, fast\n",
        "id;a,b,c;path;label\n1;x,y;a.mp4;run, fast\n",
        '\ufeff"path" , "label"\r\na.mp4 , "run, fast"\r\n',
        "path;label;;\na.mp4;run, fast;;\n",  # columns without names
        "a,b\tpath\tlabel\tc;d;e;f\n\t a.mp4 \trun, fast\t\n",
        "\n , \npath,label\n\na.mp4,'run, fast'\n,\n".replace("'", '"'),
        'path,label,"a\nnote"\na.mp4,"run, fast","5"" or\n,more"',
    ],
)
def test_the_header_decides_what_separates_columns(text, tmp_path):
    (tmp_path / "clips.csv").write_bytes(text.encode())
    assert table_splits(tmp_path / "clips.csv") == {"all": [Clip(str(tmp_path / "a.mp4"), "run, fast")]}


def test_the_home_of_nobody_in_a_table_is_a_missing_file(tmp_path):
    table = write_table(tmp_path / "clips.csv", "path,label\n~nobody.at.all/a.mp4,run\n")
    assert table_splits(table) == {"all": [Clip(str(tmp_path / "~nobody.at.all" / "a.mp4"), "run")]}


@pytest.mark.parametrize("text", ["5", "[" * 200_000, "{", '"a"', "1" * 5000])
def test_a_file_of_class_names_of_another_form_is_named(tmp_path, text):
    touch(tmp_path, "videos/run/a.mp4")
    (tmp_path / "trainlist01.txt").write_text("run/a.mp4\n")
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ValueError, match=r"names\.json (holds no class names|is not )"):
        trx_splits(tmp_path, tmp_path / "videos", tmp_path / "names.json", ["train"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "path,label\na.mp4,h\u00fcpfen\n".encode("latin-1"),
            r"clips.csv .* \(line 2, byte 18 is 0xfc\): save the file",
        ),
        ("path,label\na.mp4,run\n".encode("utf-16"), "clips.csv is not a text file in UTF-8 but in UTF-16: save the"),
        ("path,label\na.mp4,run\n".encode("utf-16-le"), "line 1 has a zero byte.*save the file as UTF-8"),
        (b"\xef\xbb\xbfpath,label\na\xe9.mp4,run\n", "line 2, byte 15 is 0xe9"),
        (b"\npath\xe9", "line 2, byte 5 is 0xe9"),
    ],
)
def test_a_table_in_another_encoding_is_named_with_line_and_remedy(data, message, tmp_path):
    (tmp_path / "clips.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        table_splits(tmp_path / "clips.csv")


def test_a_column_in_other_letters_is_suggested(tmp_path):
    table = write_table(tmp_path / "clips.csv", "Path,Label\na.mp4,run\n")
    with pytest.raises(
        ValueError, match=r"no column 'path'; there are Path, Label\. Did you mean --path_column 'Path'\?"
    ):
        table_splits(table)


def test_paths_with_a_tilde_or_backslashes_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    touch(tmp_path, "me/a.mp4", "sub/b.mp4", "odd\\name.mp4")
    table = write_table(tmp_path / "clips.csv", "path,label\n~/a.mp4,run\nsub\\b.mp4,run\nodd\\name.mp4,run\n")
    paths = [clip.path for clip in table_splits(table)["all"]]
    assert paths == [str(tmp_path / name) for name in ("me/a.mp4", "sub/b.mp4", "odd\\name.mp4")]


def test_an_address_in_a_table_stays_one(tmp_path):
    table = write_table(tmp_path / "clips.csv", "path,label\nhttps://example.org/a.mp4,run\n")
    assert table_splits(table) == {"all": [Clip("https://example.org/a.mp4", "run")]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("clips.csv", "path,class\na.mp4,run\n", "line 2: there is no column 'label'; there are path, class"),
        ("clips.csv", "file,label\na.mp4,run\n", "line 2: there is no column 'path'; there are file, label"),
        ("clips.csv", "path,label\na.mp4,run\nb.mp4,\n", "line 3: the column 'label' is empty"),
        ("clips.csv", "path,label\n,run\n", "line 2: the column 'path' is empty"),
        ("clips.csv", "path,label\na.mp4\n", "line 2: 2 columns are expected"),
        ("clips.csv", "path,label\na.mp4,run,fast\n", "line 2: 2 columns are expected"),
        ("clips.csv", "path,label,split\na.mp4,run,dev\n", "line 2: split 'dev' is not one of train, validation, test"),
        ("clips.csv", "path,label,split\na.mp4,run,\n", "line 2: split '' is not one of"),
        ("clips.csv", "path,label,label\na.mp4,run,dive\n", "line 1: there is more than one column 'label'"),
        ("clips.tsv", "\npath\tlabel\t path\na\trun\tb\n", "line 2: there is more than one column 'path'"),
        ("clips.csv", 'path,label\n"a\nb.mp4",run\nc.mp4\n', "line 4: 2 columns are expected, but it has 1"),
        ("clips.csv", "b,path,b,label,label\n", "line 1: there is more than one column 'b', 'label': rename or"),
        ("clips.csv", "path,label\n", "clips.csv names no videos"),
        ("clips.csv", "", "clips.csv names no videos"),
        ("clips.jsonl", '{"path": "a.mp4"}\n', "line 1: there is no column 'label'; there are path"),
        ("clips.jsonl", '{"path": "a.mp4", "label": null}\n', "line 1: the column 'label' is empty"),
        (
            "clips.jsonl",
            '{"path": "a.mp4", "label": ["run"]}\n',
            r"""line 1: the column 'label' is \["run"\], which is no text and no number""",
        ),
        ("clips.jsonl", '{"path": {"a": 1}, "label": "run"}\n', """the column 'path' is {"a": 1}, which is no text"""),
        ("clips.jsonl", '{"path": "a.mp4", "label": true}\n', "the column 'label' is true, which is no text"),
        ("clips.jsonl", '{"path": "a.mp4", "label": NaN}\n', "the column 'label' is NaN, which is no text"),
        ("clips.jsonl", '{"path": "a", "label": "b", "split": ["test"]}\n', "the column 'split' is .*, which is no"),
        ("clips.jsonl", '{"path": "a.mp4", "label": "run"}\n{"path"\n', "line 2 is not JSON"),
        ("clips.jsonl", "\n" + 200_000 * "[", "line 2 is not read: its values are nested too deeply"),
        ("clips.jsonl", '{"path": ' + 5000 * "1" + "}", "line 1 is not read: it has a number of too many digits"),
        ("clips.jsonl", '["a.mp4", "run"]\n', "line 1: an object with columns is expected"),
        ("clips.JSONL", '\n{"path": "a.mp4", "label": "run"}\n\n\n5\n', "line 5: an object with columns is expected"),
        ("clips.csv", "kind,split\na.mp4,run\n", r"no column 'path'; there are kind, split\.$"),
        ("clips.csv", 'path,label\na.mp4,run\nb.mp4,"walk\nc.mp4,jump\n', "clips.csv, line 3: a value begins with a"),
        ("clips.tsv", 'path\tlabel\na.mp4\t"run', r"line 2: .*\(unexpected end of data\)\. Remove the mark, or write"),
        ("clips.csv", 'path,label\na.mp4,"run\nb.mp4,"walk"\nc.mp4,jump\n', "line 2: a value begins with a quotation"),
        ("clips.csv", 'path,label\na.mp4,"run\nb.mp4,walk"\n', r"line 3: the class name 'run.nb.mp4,walk' has a line"),
        ("clips.csv", 'path,label\na.mp4,"' + 9999 * "run,run,run,run\n", "line 2: .*, or is too long .field larger"),
        ("clips.csv", '"path,label' + 9999 * "run,run,run,run", "clips.csv, line 1: .*, or is too long .field larger"),
        ("clips.csv", 'path,"label\na.mp4,run\nb.mp4,run\n', "clips.csv, line 1: a value begins with a quotation mark"),
        ("clips.jsonl", '{"path": "a.mp4", "label": "run\\nwalk"}\n', "line 1: the class name 'run.nwalk' has a line"),
    ],
)
def test_a_faulty_table_is_refused_with_the_line(name, text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        table_splits(write_table(tmp_path / name, text))


def test_labels_that_are_numbers_are_names_of_classes_and_other_columns_may_hold_anything(tmp_path):
    table = write_table(tmp_path / "clips.jsonl", '{"path": "a.mp4", "label": 3, "tags": ["x"], "ok": true}\n')
    assert table_splits(table) == {"all": [Clip(str(tmp_path / "a.mp4"), "3")]}


def test_a_table_that_says_only_some_splits_is_refused(tmp_path):
    rows = [{"path": "a.mp4", "label": "run", "split": "train"}, {"path": "b.mp4", "label": "clap"}]
    table = write_table(tmp_path / "clips.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="line 2"):
        table_splits(table)


# --- splits of classes ------------------------------------------------------------------------------------------------

NAMES = [f"class {letter}" for letter in "abcdefghijklmnopqrstuvwxy"]  # 25 classes


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [
        ((0.64, 0.12, 0.24), (16, 3, 6)),
        ((0.8, 0.0, 0.2), (20, 0, 5)),
        ((1, 0, 0), (25, 0, 0)),
        ((15, 4, 6), (15, 4, 6)),
        ((1, 0, 24), (1, 0, 24)),
    ],
)
def test_classes_are_shared_out_by_fractions_or_numbers_each_to_one_split(shares, sizes):
    splits = split_classes(NAMES, shares)
    assert tuple(len(splits[split]) for split in ("train", "validation", "test")) == sizes
    assert sorted(name for names in splits.values() for name in names) == NAMES


def test_two_classes_may_be_in_a_split_each():
    assert {split: len(names) for split, names in split_classes(["run", "dive"], (1, 0, 1)).items()} == {
        "train": 1,
        "validation": 0,
        "test": 1,
    }


def test_shares_are_rounded_so_that_forty_classes_are_enough_for_episodes_of_five():
    splits = split_classes([f"class {number}" for number in range(40)], (0.64, 0.12, 0.24))
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [25, 5, 10]  # 4.8 and 9.6 are up


def test_the_seed_and_nothing_else_decides_which_classes_go_where():
    splits = split_classes(NAMES, (15, 4, 6), seed=3)
    assert split_classes(NAMES[::-1] + NAMES[:5], (15, 4, 6), seed=3) == splits
    assert split_classes(NAMES, (0.6, 0.16, 0.24), seed=3) == splits
    drawn = {tuple(split_classes(NAMES, (15, 4, 6), seed)["test"]) for seed in range(10)}
    assert len(drawn) == 10


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5, 0.2, 0.2), r"--class_split 0.5 0.2 0.2: fractions must add up to 1, but give 0.9"),
        ((0.7, 0.3, 0.3), "--class_split 0.7 0.3 0.3: fractions must add up to 1, but give 1.3"),
        ((1, 0.5, 0), "--class_split 1 0.5 0: fractions must add up to 1, but give 1.5"),
        ((1, 1, 1), "--class_split 1 1 1: whole numbers must add up to 25 classes"),
        ((float("nan"), 0.5, 0.5), "--class_split nan 0.5 0.5: three numbers are needed"),
        ((float("inf"), 0, 0), "--class_split inf 0 0: three numbers are needed"),
        ((10, 5, 5), "--class_split 10 5 5: whole numbers must add up to 25 classes"),
        ((14.5, 4.5, 6), "--class_split 14.5 4.5 6: whole numbers must add up to 25"),
        ((15.5, 4.25, 6.25), "--class_split 15.5 4.25 6.25: whole numbers must add up to 25"),
        ((0.5, 0.25, 0.24), "--class_split 0.5 0.25 0.24: fractions must add up to 1, but give 0.99"),
        ((), "--class_split : three numbers are needed"),
        ((0.8, 0.2), "--class_split 0.8 0.2: three numbers are needed, for train, validation and test"),
        ((30, -10, 5), "--class_split 30 -10 5: three numbers are needed"),
    ],
)
def test_shares_that_do_not_fit_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        split_classes(NAMES, shares)


def rows_of(splits: DatasetDict) -> dict[str, list[tuple[str, str]]]:
    """Path and class name of every video, by split."""
    return {split: list(zip(part["video"], part["label"], strict=True)) for split, part in splits.items()}


def clips_of(names: list[str]) -> list[Clip]:
    return [Clip(f"/{name}/{number}.mp4", name) for name in names for number in range(2)]


def test_clips_become_splits_of_paths_and_class_names_and_a_split_without_clips_none():
    clips = {"train": clips_of(["run", "clap"]), "test": clips_of(["dive"]), "validation": []}
    splits = to_dataset(clips)
    assert rows_of(splits) == {
        split: [(clip.path, clip.class_name) for clip in clips[split]] for split in ("train", "test")
    }
    assert list(splits) == ["train", "test"]
    for dataset in splits.values():
        assert dataset.features == Features({"video": Value("string"), "label": Value("string")})


def test_a_data_set_is_shared_out_whole_and_every_class_to_one_split():
    clips = clips_of(NAMES)
    splits = resplit(to_dataset({"all": clips}), (15, 4, 6), seed=1)
    rows = rows_of(splits)
    assert {split: len(part) for split, part in rows.items()} == {"train": 30, "validation": 8, "test": 12}
    assert sorted(row for part in rows.values() for row in part) == [(clip.path, clip.class_name) for clip in clips]
    classes = Counter(name for part in rows.values() for name in {name for _, name in part})
    assert set(classes.values()) == {1}
    assert {name for _, name in rows["test"]} == set(split_classes(NAMES, (15, 4, 6), seed=1)["test"])


def test_a_split_without_classes_is_not_there():
    assert list(resplit(to_dataset({"all": clips_of(NAMES)}), (0.8, 0, 0.2))) == ["train", "test"]


def test_classes_of_several_splits_are_shared_out_together():
    clips = {"train": clips_of(["a", "b", "c"]), "test": clips_of(["d", "e"])}
    rows = rows_of(resplit(to_dataset(clips), (2, 1, 2)))
    assert {split: len(part) for split, part in rows.items()} == {"train": 4, "validation": 2, "test": 4}
    assert sorted(row for part in rows.values() for row in part) == [
        (clip.path, clip.class_name) for clip in clips_of(list("abcde"))
    ]


def test_a_class_that_two_splits_spell_differently_is_shared_out_as_one():
    clips = {"train": clips_of(["brush hair", "run"]), "test": clips_of(["Brush_Hair", "dive"])}
    rows = rows_of(resplit(to_dataset(clips), (1, 1, 1)))
    assert sorted(row for part in rows.values() for row in part) == [
        *(("/Brush_Hair/0.mp4", "brush hair"), ("/Brush_Hair/1.mp4", "brush hair")),
        *(("/brush hair/0.mp4", "brush hair"), ("/brush hair/1.mp4", "brush hair")),
        *(("/dive/0.mp4", "dive"), ("/dive/1.mp4", "dive")),
        *(("/run/0.mp4", "run"), ("/run/1.mp4", "run")),
    ]
    assert sorted(len(part) for part in rows.values()) == [2, 2, 4]


def test_a_link_to_itself_is_one_clip_that_cannot_be_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop.mp4").symlink_to(tmp_path / "a" / "loop.mp4")
    (tmp_path / "a" / "b.mp4").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert [path.name for path in find_clips(tmp_path / "a")] == ["b.mp4", "loop.mp4"]
    assert class_folders(tmp_path) == ["a"]
