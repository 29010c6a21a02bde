"""Shards of read videos: which videos each holds, what is kept of a video, what is compared and what is said."""

import json
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from PIL import Image

import paths_clipfsar
from clipfsar.checked_files import DamagedFileError
from clipfsar.data import frame_store
from clipfsar.data.arguments import PrepareArguments
from clipfsar.data.frame_store import FrameStoreSettings, ReadVideo, read_shard, read_split, read_video
from clipfsar.data.prepare import Preparation, take_from_model
from clipfsar.locks import FolderInUseError
from clipfsar.shards import Shard
from frame_archive_clipfsar import FrameArchive
from processing_clipfsar import CLIPFSARProcessor
from video_clipfsar import VideoTimes


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Videos are read one after the other, no thread of the tests is taken away, and no disk is waited for."""
    monkeypatch.setattr(frame_store, "in_processes", lambda function, jobs, _: map(function, jobs))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(paths_clipfsar, "_flush", lambda path: None)  # a disk with much to do takes seconds


def clips(folder: Path, names: str) -> Dataset:
    """Folders of two pictures each, of the classes a and b in turn."""
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20, 40), (10 * place, 100 * number, 0)).save(folder / name / f"{number}.bmp")
    labels = ["ab"[place % 2] for place in range(len(names))]
    return Dataset.from_dict({"video": [str(folder / name) for name in names], "label": labels})


def shards_in(folder: Path) -> list[str]:
    """Names of the clips of each shard."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("shard-*/keys.json"))]
    return ["".join(Path(json.loads(key)[0]).name for key in keys) for keys in found]


RAW = FrameStoreSettings("raw", frame_size=16)


def test_a_shard_ends_with_so_many_videos_or_so_many_bytes(tmp_path, monkeypatch):
    dataset = clips(tmp_path / "clips", "stuvwxy")
    size = len(read_video((dataset[0]["video"], RAW)).data)
    monkeypatch.setattr(frame_store, "VIDEOS_PER_SHARD", 3)
    read_split(dataset, tmp_path / "few", RAW, num_workers=1)
    assert shards_in(tmp_path / "few") == ["stu", "vwx", "y"]
    monkeypatch.setattr(frame_store, "BYTES_PER_SHARD", 2 * size)
    read, problems = read_split(dataset, tmp_path / "small", RAW, num_workers=1)
    assert shards_in(tmp_path / "small") == ["st", "uv", "wx", "y"]
    assert ([Path(video["path"]).name for video in read["video"]], problems) == (list("stuvwxy"), {})
    monkeypatch.setattr(frame_store, "BYTES_PER_SHARD", 2 * size + 1)
    read_split(dataset, tmp_path / "more", RAW, num_workers=1)
    assert shards_in(tmp_path / "more") == ["stu", "vwx", "y"]


def test_a_shard_of_a_task_lies_in_one_block_and_has_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_store, "VIDEOS_PER_SHARD", 2)
    monkeypatch.setattr(frame_store, "BLOCKS_PER_TASK", 1)
    dataset = clips(tmp_path / "clips", "opqrstuvwx")
    (tmp_path / "clips" / "p" / "0.bmp").unlink()
    (tmp_path / "clips" / "p" / "1.bmp").write_bytes(b"no picture")
    problems = read_shard(dataset, tmp_path / "work", RAW, 1, "reading", Shard(0, 2))
    assert sorted(shards_in(tmp_path / "work")) == ["o", "st", "wx"]  # rows 0 and 1, 4 and 5, 8 and 9
    assert list(problems) == [1]
    names = [path.name for path in (tmp_path / "work").glob("shard-*")]
    assert all(name.startswith("shard-00000-of-00002-") for name in names)
    problems = read_shard(dataset.select([9, 9, 9, 1]), tmp_path / "other", RAW, 1, "reading", Shard(1, 2))
    assert list(problems) == [3]  # the row in the whole split
    assert read_shard(dataset.select([0]), tmp_path / "none", RAW, 1, "reading", Shard(1, 2)) == {}
    assert not (tmp_path / "none").exists()


def test_where_nothing_is_kept_a_shard_is_a_list(tmp_path):
    dataset = clips(tmp_path / "clips", "xy")
    read, problems = read_split(dataset, tmp_path / "work", FrameStoreSettings(), num_workers=1)
    assert (read.to_dict(), problems) == (dataset.to_dict(), {})
    (shard,) = (tmp_path / "work").glob("shard-*")
    assert sorted(path.name for path in shard.iterdir()) == ["SHA256SUMS", "keys.json"]


def test_tasks_compare_the_lists_of_shards_and_putting_together_all_files(tmp_path):
    dataset = clips(tmp_path / "clips", "wxyz")
    read_shard(dataset, tmp_path / "work", RAW, 1, "reading", Shard(0, 2))
    (file,) = (tmp_path / "work").glob("shard-*/videos/*.arrow")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert read_shard(dataset, tmp_path / "work", RAW, 1, "reading", Shard(0, 2)) == {}
    with pytest.raises(DamagedFileError, match=r"\.arrow.*delete .*shard-00000-of-00002.*, and its videos are read"):
        read_split(dataset, tmp_path / "work", RAW, num_workers=1)
    keys = file.parents[1] / "keys.json"
    keys.write_text(keys.read_text() + " ")
    with pytest.raises(DamagedFileError, match=r"keys\.json"):
        read_shard(dataset, tmp_path / "work", RAW, 1, "reading", Shard(0, 2))


def test_tasks_share_a_folder_that_nobody_may_put_together_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_store, "VIDEOS_PER_SHARD", 1)
    dataset, refused = clips(tmp_path / "clips", "wxyz"), []

    def meanwhile(function, jobs, _):
        if not refused:
            refused.append(None)
            read_shard(dataset, tmp_path / "work", RAW, 1, "reading", Shard(1, 2))
            with pytest.raises(FolderInUseError, match=r"keeps frames of videos .* Wait until it ends, or name"):
                read_split(dataset, tmp_path / "work", RAW, num_workers=1)
        return map(function, jobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_store, "in_processes", meanwhile)
        read_shard(dataset, tmp_path / "work", RAW, 1, "reading", Shard(0, 2))
    assert sorted(shards_in(tmp_path / "work")) == ["w", "x", "y", "z"]


def test_a_bar_begins_with_what_is_done_and_counts_what_is_unreadable(tmp_path, capsys):
    dataset = clips(tmp_path / "clips", "wxyz")
    for name in "xy":
        (tmp_path / "clips" / name / "1.bmp").write_bytes(b"no picture")
    _, problems = read_split(dataset, tmp_path / "work", RAW, 1, "reading train videos")
    assert list(problems) == [1, 2]
    last = capsys.readouterr().err.rstrip().rpartition("\r")[2]
    assert last.startswith("reading train videos: 100%|")
    assert " 4/4 [" in last
    assert last.endswith("video/s, unreadable=2]")
    read_split(dataset, tmp_path / "work", RAW, 1)
    first, *_, last = capsys.readouterr().err.strip().split("\r")
    assert first.startswith("reading videos:  50%|")
    assert " 4/4 [" in last


@pytest.mark.parametrize(("frame_format", "number"), [("none", 8), ("file", 8), ("jpeg", 30), ("raw", 30)])
def test_what_is_only_checked_is_read_as_training_reads_it(frame_format, number, tmp_path, monkeypatch):
    wanted, times = [], VideoTimes.at_rate(100, 25.0)

    def read(video, select_indices, decoder, seconds_per_video):
        wanted.append((len(select_indices(100, 25.0, times)), decoder, seconds_per_video))
        return torch.zeros(wanted[0][0], 16, 16, 3, dtype=torch.uint8)

    monkeypatch.setattr(frame_store, "read_video_frames", read)
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the file")
    settings = FrameStoreSettings(frame_format, 16, frames_per_video=30, decoder="av", seconds_per_video=7.5)
    result = read_video((str(path), settings))
    assert (result.error, wanted) == (None, [(number, "av", 7.5)])
    if frame_format == "file":
        assert result.data == b"the file"
        assert read_video(({"path": "elsewhere", "bytes": b"inside"}, settings)).data == b"inside"
        assert read_video(({"path": str(path), "bytes": None}, settings)).data == b"the file"
    elif frame_format == "none":
        assert result.data is None
    else:
        archive = FrameArchive(result.data)
        assert (archive.num_frames, len(archive.indices), archive.times.duration) == (100, 30, 4.0)


def test_what_is_no_file_is_not_embedded_and_the_reason_is_said(tmp_path):
    folder = clips(tmp_path, "x")[0]["video"]
    settings, end = FrameStoreSettings("file"), ", which cannot be embedded: use --frame_store jpeg."
    (tmp_path / "a.mp4").touch()
    for path, kind in (
        (folder, "a folder of images"),
        ("https://example.org/a.mp4", "an address"),
        (f"{tmp_path}/a.mp4#t=1,2", "a part of a video"),
    ):
        assert read_video((path, settings)).error == f"{path!r} is {kind}{end}"
        assert read_video(({"path": path, "bytes": None}, settings)).error == f"{path!r} is {kind}{end}"
    assert read_video((f"{tmp_path}/gone.mp4", settings)).error == "missing"
    assert "the file is empty (0 bytes)" in read_video((f"{tmp_path}/a.mp4", settings)).error
    inside = read_video(({"path": f"{tmp_path}/a.mp4#t=1,2", "bytes": b"no video"}, settings)).error
    assert inside.startswith("Cannot read video")


def test_frames_that_cannot_be_kept_and_decoders_that_crash_are_reasons(tmp_path, monkeypatch):
    Image.new("RGB", (1, 5000)).save(tmp_path / "0.bmp")  # would be 80000 pixels high
    error = read_video((str(tmp_path), FrameStoreSettings("raw", frame_size=16))).error
    assert error.startswith(f"Cannot keep frames of video '{tmp_path}': ")
    dataset = clips(tmp_path / "clips", "xyz")
    crash = BrokenProcessPool("a process died")
    monkeypatch.setattr(frame_store, "in_processes", lambda *_: iter([crash, ReadVideo(b"frames"), crash]))
    read, problems = read_split(dataset, tmp_path / "work", RAW, num_workers=1)
    assert problems == {
        row: f"Cannot read video '{tmp_path}/clips/{'xyz'[row]}': the decoder crashed." for row in (0, 2)
    }
    assert read["video"][:] == [{"bytes": b"frames", "path": "y"}]


@pytest.mark.parametrize(("preprocessing", "size"), [("clip", (40, 20)), ("official", (23, 23))])
def test_frames_are_kept_in_the_size_that_a_model_of_this_input_size_needs(preprocessing, size, tmp_path):
    dataset = clips(tmp_path, "x")
    settings = FrameStoreSettings("raw", frame_size=20, preprocessing=preprocessing)
    archive = FrameArchive(read_video((dataset[0]["video"], settings)).data)
    assert archive.read([0, 1]).shape == (2, *size, 3)
    assert settings.image_processor() == SimpleNamespace(
        do_resize=True, size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}, resample=3
    )


def test_parts_of_videos_are_uploaded_only_as_frames(tmp_path):
    (tmp_path / "clips.csv").write_text("path,label,split,start_seconds\na.mp4,a,train,\nb.mp4,b,train,1\n")
    given = {"source": str(tmp_path / "clips.csv"), "output_dir": str(tmp_path / "data")}
    with pytest.raises(ValueError, match=r"^/.*/b\.mp4#t=1 is a part of a video, which --push_to_hub uploads only"):
        Preparation(PrepareArguments(**given, push_to_hub="me/clips"))
    Preparation(PrepareArguments(**given, push_to_hub="me/clips", frame_store="raw", frame_size=16))
    Preparation(PrepareArguments(**given))


def test_a_model_that_resizes_otherwise_has_no_frame_store(tiny_clip, tmp_path):
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip)
    processor.image_processor.resample = 2
    processor.save_pretrained(tmp_path / "model")
    given = {"source": "videos", "output_dir": "data", "model": str(tmp_path / "model")}
    message = r"model resizes frames by \{.*'resample': 2\}, but a frame store by \{.*'resample': 3\}: leave --frame"
    with pytest.raises(ValueError, match=message):
        take_from_model(PrepareArguments(**given, frame_store="raw"))
    arguments = PrepareArguments(**given)
    take_from_model(arguments)
    assert (arguments.frame_size, arguments.preprocessing) == (16, "clip")
    arguments = PrepareArguments(**given | {"model": str(tiny_clip)}, frame_store="raw", frame_size=16)
    take_from_model(arguments)
    assert (arguments.frame_size, arguments.preprocessing) == (16, "clip")


def test_a_piece_is_named_after_the_last_and_a_video_after_its_file(tmp_path):
    for name in ("shard-000007", "shard-00000-of-00002-abc", ".shard-000009"):
        (tmp_path / name).mkdir()
    assert frame_store._new_shard(tmp_path).name == "shard-000008"
    (tmp_path / "shard-654321").mkdir()
    assert frame_store._new_shard(tmp_path).name == "shard-654322"
    assert frame_store._new_shard(tmp_path / "empty").name == "shard-000000"
    videos = [{"path": "x/y/a.mp4", "bytes": b"A"}, {"path": None, "bytes": b"B"}, {"path": "x/", "bytes": b"C"}]
    part = Dataset.from_dict({"video": videos, "label": ["a", "b", "c"]})
    kept = frame_store._kept_videos(part, [b"1", b"2", b"3"], RAW)
    assert [(video["path"], video["bytes"]) for video in kept["video"]] == [("a.mp4", b"1"), (None, b"2"), (None, b"3")]
    assert list(kept["label"]) == ["a", "b", "c"]


def test_a_data_set_is_linked_to_its_shards_however_much_memory_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 2**30)
    dataset = clips(tmp_path / "clips", "xyz")
    read, _ = read_split(dataset, tmp_path / "work", RAW, num_workers=1)
    frame_store.save_linked(DatasetDict(train=read), tmp_path / "saved")
    (file,) = (tmp_path / "work").glob("shard-*/videos/*.arrow")
    (linked,) = (tmp_path / "saved" / "train").glob("*.arrow")
    assert (linked.name, linked.samefile(file)) == ("data-00000-of-00001.arrow", True)
    assert load_from_disk(tmp_path / "saved")["train"].to_dict() == read.to_dict()
    state = json.loads((tmp_path / "saved" / "train" / "state.json").read_text())
    assert (state["_fingerprint"], state["_split"]) == (read._fingerprint, None)


def test_a_frame_store_reads_every_video_also_where_files_alone_would_be_checked(tmp_path):
    clips(tmp_path / "clips", "xy")
    (tmp_path / "clips.csv").write_text("path,label,split\nclips/x,a,train\nclips/y,b,train\n")
    given = {"source": str(tmp_path / "clips.csv"), "frame_size": 16, "skip_reading": True}
    Preparation(PrepareArguments(**given, output_dir=str(tmp_path / "raw"), frame_store="raw")).run()
    kept = load_from_disk(tmp_path / "raw")["train"]
    assert [FrameArchive(video["bytes"]).num_frames for video in kept["video"]] == [2, 2]
    Preparation(PrepareArguments(**given, output_dir=str(tmp_path / "paths"))).run()
    assert list(load_from_disk(tmp_path / "paths")["train"]["video"]) == [f"{tmp_path}/clips/{name}" for name in "xy"]


@pytest.mark.parametrize("is_shown", [True, False])
def test_saving_is_quiet_and_leaves_bars_as_they_were(is_shown, tmp_path, capsys):
    (enable_progress_bar if is_shown else disable_progress_bar)()
    try:
        frame_store._save_quietly(Dataset.from_dict({"video": ["a"]}), tmp_path / "saved")
        assert is_progress_bar_enabled() == is_shown
    finally:
        enable_progress_bar()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("before", [None, "somewhere"])
def test_the_server_of_processes_imports_from_where_this_one_does(before, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(forkserver, "ensure_running", lambda: seen.append(os.environ["PYTHONPATH"]))
    monkeypatch.setattr(sys, "path", ["", "/one", "/two"])
    monkeypatch.chdir(tmp_path)
    if before is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", before)
    preloaded = []
    frame_store._start_server(SimpleNamespace(set_forkserver_preload=preloaded.append))
    assert (seen, preloaded) == ([f"{tmp_path}:/one:/two"], [["clipfsar.data.frame_store"]])
    assert os.environ.get("PYTHONPATH") == before


def test_what_a_video_is_known_by_has_its_class_its_part_and_its_bytes(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"12345")
    os.utime(tmp_path / "a.mp4", ns=(1, 2))
    path = str(tmp_path / "a.mp4")
    digest = np.arange(16, dtype=np.uint8)
    keys = [
        frame_store._key({"path": path}, "run", None),
        frame_store._key({"path": f"{path}#t=1,2"}, "run", None),
        frame_store._key({"path": None}, "run", None),
        frame_store._key({"path": "a.mp4"}, "dive", digest),
    ]
    *known, reader = json.loads(keys[0])
    assert known == [path, 5, 2, "run"]
    assert [json.loads(key)[-1] for key in keys] == [reader] * 4
    assert [json.loads(key)[:-1] for key in keys[1:]] == [
        [f"{path}#t=1,2", 5, 2, "run"],
        [None, "run"],
        ["a.mp4", "000102030405060708090a0b0c0d0e0f", "dive"],
    ]
