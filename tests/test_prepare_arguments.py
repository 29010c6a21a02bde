"""Options of `clipfsar prepare`: which go together, what they set, and which an unfinished preparation keeps."""

import math
import sys

import pytest

from clipfsar.data.arguments import PrepareArguments, parse_arguments
from clipfsar.shards import Shard


@pytest.mark.parametrize(
    "other",
    [
        {"output_dir": "elsewhere"},
        {"num_workers": 3},
        {"seconds_per_video": 5.0},
        {"skip_bad_videos": True},
        {"push_to_hub": "me/clips"},
        {"hub_private": False},
        {"shard": [1, 2]},
        {"model": "mine", "frame_size": 224, "preprocessing": "clip"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_an_unfinished_preparation_goes_on_with_another(other):
    given = {"source": "videos", "output_dir": "data", "frame_store": "raw", "frame_size": 224}
    assert PrepareArguments(**(given | other)).settings() == PrepareArguments(**given).settings()


def test_all_other_settings_are_kept_by_an_unfinished_preparation():
    names = """source official_splits video_root class_names_file validation_class_names splits benchmark path_column
        split_column label_column video_column label_fps class_split seed skip_reading frame_store frame_size
        preprocessing frames_per_video jpeg_quality embed_videos decoder format"""
    arguments = PrepareArguments(source="videos", output_dir="data", label_fps=12.5, format="parquet")
    assert sorted(arguments.settings()) == sorted(names.split())  # as earlier versions recorded them
    assert (arguments.settings()["label_fps"], arguments.settings()["format"]) == (12.5, "parquet")
    given = {"official_splits": "lists", "video_root": "videos", "output_dir": "data"}
    assert PrepareArguments(**given, number_classes=True).settings()["number_classes"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_store": "raw"}, r"for one model: name it with --model, or give its input size as --frame_size\."),
        ({"frame_store": "raw", "frame_size": 16, "embed_videos": True}, "both fill the data set: choose one"),
        ({"jpeg_quality": 0}, "--jpeg_quality 0 must be at least 1"),
        ({"jpeg_quality": 96}, "--jpeg_quality 96 must be at most 95"),
        ({"frames_per_video": -1}, "--frames_per_video -1 must be at least 0"),
        ({"frame_size": 0}, "--frame_size 0 must be at least 1"),
        ({"num_workers": 0}, "--num_workers 0 must be at least 1"),
        ({"label_fps": 0.0}, "--label_fps 0.0 must be greater than 0 and finite"),
        ({"label_fps": 1e6}, "--label_fps 1000000.0 must be greater than 0 and finite"),
        ({"label_fps": math.nan}, "--label_fps nan must be"),
        ({"seconds_per_video": 0.0}, "--seconds_per_video 0.0 must be greater than 0"),
        ({"seconds_per_video": math.nan}, "--seconds_per_video nan must be"),
        ({"output_dir": None}, "--output_dir is missing"),
        ({"official_splits": "lists", "video_root": "videos"}, "Give either --source or --official_splits"),
        ({"source": None}, "Give either --source or --official_splits"),
        ({"source": None, "official_splits": "lists"}, "--official_splits needs --video_root"),
        ({"source": None, "benchmark": "hmdb51"}, "--benchmark hmdb51 needs --video_root"),
        ({"source": None, "benchmark": "diving48", "video_root": "v"}, "--benchmark diving48 needs --official_splits"),
        ({"skip_reading": True, "shard": [0, 2]}, "shard 0 of 2: with --skip_reading no video is read"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PrepareArguments(**({"source": "videos", "output_dir": "data"} | options))


@pytest.mark.parametrize(
    "options",
    [
        {"frame_store": "raw", "frame_size": 1, "frames_per_video": 0, "num_workers": 1},
        {"frame_store": "jpeg", "model": "mine", "jpeg_quality": 1},
        {"frame_store": "jpeg", "benchmark": "hmdb51", "jpeg_quality": 95},
        {"benchmark": "diving48"},
        {"source": None, "benchmark": "diving48", "official_splits": "lists", "video_root": "videos"},
        {"source": None, "benchmark": "hmdb51", "video_root": "videos"},
        {"label_fps": 0.5, "seconds_per_video": 0.5},
        {"skip_reading": True, "frame_store": "raw", "frame_size": 16, "shard": [0, 2]},
        {"skip_reading": True, "embed_videos": True, "shard": [0, 2]},
        {"skip_reading": True, "shard": [0, 1]},
    ],
)
def test_options_that_go_together_are_taken(options):
    arguments = PrepareArguments(**({"source": "videos", "output_dir": "data"} | options))
    assert {name: getattr(arguments, name) for name in options} == options
    assert arguments.task == (Shard(0, 2) if options.get("shard") == [0, 2] else None)


def test_frame_size_and_preprocessing_are_left_to_a_model_and_else_those_of_clip():
    given = {"source": "videos", "output_dir": "data"}
    plain, of_model = PrepareArguments(**given), PrepareArguments(**given, model="mine")
    assert (plain.frame_size, plain.preprocessing) == (224, "clip")
    assert (of_model.frame_size, of_model.preprocessing) == (None, None)
    of_model.fill_in(16, "official")
    assert (of_model.frame_size, of_model.preprocessing) == (16, "official")
    of_model.fill_in(32, "clip")
    assert (of_model.frame_size, of_model.preprocessing) == (16, "official")


def test_a_benchmark_has_its_own_splits():
    given = ["--official_splits", "lists", "--video_root", "videos", "--benchmark"]
    assert parse_arguments([*given, "epic_kitchens"]).splits == ["train", "test"]
    arguments = parse_arguments([*given, "hmdb51"])
    assert arguments.splits == ["train", "validation", "test"]
    assert (arguments.frame_size, arguments.preprocessing) == (224, "official")
    assert parse_arguments([*given, "hmdb51", "--splits", "test"]).splits == ["test"]


def test_the_command_line_is_that_of_the_program_unless_another_is_given(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--source", "there", "--output_dir", "data"])
    assert parse_arguments().source == "there"
    with pytest.raises(SystemExit):
        parse_arguments(["--help"], prog="clipfsar prepare")
    assert capsys.readouterr().out.startswith("usage: clipfsar prepare ")


FILES = ("official_splits", "video_root", "class_names_file", "validation_class_names")


@pytest.mark.parametrize("option", FILES)
def test_files_of_official_lists_that_are_not_there_are_named(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    given = dict.fromkeys(FILES, "here") | {"output_dir": "data"}
    PrepareArguments(**given).check_files()
    with pytest.raises(FileNotFoundError, match=rf"^--{option} owner/lists does not exist\.$"):  # no name on the Hub
        PrepareArguments(**(given | {option: "owner/lists"})).check_files()


def test_a_training_run_stands_for_its_best_model_and_a_table_that_is_not_there_is_no_data_set(tmp_path):
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "best" / "config.json").write_text("{}")
    arguments = PrepareArguments(source=str(tmp_path), output_dir="data", model=str(tmp_path / "run"))
    arguments.check_files()
    PrepareArguments(source=str(tmp_path), output_dir="data", video_root="nowhere").check_files()  # reading it tells
    assert arguments.model == str(tmp_path / "run" / "best")
    for name in ("clips.CSV", "labels.json", "labels.xml"):
        with pytest.raises(FileNotFoundError, match=rf"^--source .*/{name} does not exist\.$"):
            PrepareArguments(source=str(tmp_path / name), output_dir="data").check_files()
    with pytest.raises(FileNotFoundError, match=r"^--source .*/clips does not exist\. Give a folder with videos or"):
        PrepareArguments(source=str(tmp_path / "clips"), output_dir="data").check_files()
