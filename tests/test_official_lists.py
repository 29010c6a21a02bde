"""The official lists: downloaded from a server of this machine, checked, kept; and the real ones where they are."""

import functools
import hashlib
import http.server
import os
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from clipfsar.cli import main as clipfsar
from clipfsar.data import official_lists as module
from clipfsar.data.arguments import PrepareArguments, parse_arguments
from clipfsar.data.official_lists import NAMES, SHA256, lists_folder, official_lists
from clipfsar.data.prepare import Preparation
from clipfsar.data.sources import read_official_class_names
from clipfsar.data.splits import load_video_splits
from clipfsar.presets import PRESETS

# Set this to a folder with the files of configs/projects/CLIPFSAR to try them out: BENCHMARK/train_few_shot.txt, ...
REAL_LISTS = os.environ.get("CLIPFSAR_OFFICIAL_LISTS")

LISTS = {
    "train_few_shot.txt": "train0//run/a.avi\ntrain1//dive/b.avi\n",
    "val_few_shot.txt": "val0//swim/c.avi\n",
    "test_few_shot.txt": "test0//climb/d.avi\n",
    NAMES["hmdb51"]: "TRAIN: {CLASS_NAME: [running, diving]}\nTEST: {CLASS_NAME: [climbing]}\n",
}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    requests: list = []

    def log_message(self, *_):
        self.requests.append(self.path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves small lists of "hmdb51" and keeps the paths of the requests; the cache is a folder of the test."""
    folder = tmp_path / "served" / "hmdb51"
    folder.mkdir(parents=True)
    for name, text in LISTS.items():
        (folder / name).write_text(text)
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in LISTS.items()}
    monkeypatch.setattr(QuietHandler, "requests", [])
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setattr(module, "ADDRESS", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setitem(SHA256, "hmdb51", digests)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder
        running.shutdown()
        thread.join()


def test_lists_are_downloaded_once_and_again_when_damaged(server):
    folder = official_lists("hmdb51")
    assert {path.name: path.read_text() for path in folder.iterdir()} == LISTS
    assert folder == lists_folder("hmdb51")
    (folder / "val_few_shot.txt").write_text("val0//swim/c.a")
    QuietHandler.requests.clear()
    official_lists("hmdb51")
    assert QuietHandler.requests == ["/hmdb51/val_few_shot.txt"]
    assert (folder / "val_few_shot.txt").read_text() == LISTS["val_few_shot.txt"]


def test_another_file_than_the_official_one_is_refused(server):
    (server / "test_few_shot.txt").write_text("<html>Please log in</html>")
    with pytest.raises(ValueError, match=r"test_few_shot.txt is not the file of the official program: its SHA-256 is"):
        official_lists("hmdb51")
    assert not (lists_folder("hmdb51") / "test_few_shot.txt").exists()


def test_a_file_that_is_not_there_is_said_in_one_sentence_with_the_remedy(server):
    (server / "train_few_shot.txt").unlink()
    with pytest.raises(
        ConnectionError, match=r"cannot be downloaded \(http.*train_few_shot.txt: HTTP Error 404"
    ) as error:
        official_lists("hmdb51")
    assert f"of {module.PAGE}/hmdb51 into {lists_folder('hmdb51')}" in str(error.value)


@pytest.mark.parametrize("value", ["1", "on", "Yes", "TRUE"])
def test_offline_nothing_is_asked_and_the_files_are_named(value, server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(ConnectionError, match=r"\(HF_HUB_OFFLINE is set\). Put train_few_shot.txt, val_few_shot.txt"):
        official_lists("hmdb51")
    assert QuietHandler.requests == []


def test_the_reason_of_a_failed_download_is_one_line_and_never_empty(server, monkeypatch):
    address = f"{module.ADDRESS}/hmdb51/train_few_shot.txt"
    for error, reason in ((TimeoutError(), "TimeoutError"), (OSError("no\n  route"), "no route")):
        monkeypatch.setattr(module, "download", Mock(side_effect=error))
        with pytest.raises(ConnectionError) as raised:
            official_lists("hmdb51")
        assert str(raised.value).startswith(
            f"The official lists of hmdb51 cannot be downloaded ({address}: {reason}). Put train_few_shot.txt, "
        )
        assert str(raised.value).endswith(" with --official_splits and the YAML file with --class_names_file.")


def test_names_of_ones_own_go_before_those_of_a_benchmark_and_its_lists_are_used(server):
    given = {"benchmark": "hmdb51", "video_root": "videos", "output_dir": "data"}
    lists = str(lists_folder("hmdb51"))
    for own, expected in ((None, f"{lists}/{NAMES['hmdb51']}"), ("mine.yaml", "mine.yaml")):
        arguments = module.with_official_lists(PrepareArguments(**given, class_names_file=own, skip_bad_videos=True))
        assert (arguments.official_splits, arguments.class_names_file) == (lists, expected)
        assert arguments.skip_bad_videos is True
    for other in ({"source": "videos"}, {"official_splits": "lists"}):
        arguments = PrepareArguments(**({**given, "video_root": None} if "source" in other else given), **other)
        assert module.with_official_lists(arguments) is arguments


def test_offline_kept_lists_are_used(server, monkeypatch):
    official_lists("hmdb51")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert official_lists("hmdb51") == lists_folder("hmdb51")


def test_a_benchmark_and_the_videos_are_enough_to_prepare(server, tmp_path):
    for path in ("run/a.avi", "dive/b.avi", "swim/c.avi", "climb/d.avi"):
        (tmp_path / "videos" / path).parent.mkdir(parents=True)
        (tmp_path / "videos" / path).touch()
    options = ["--video_root", str(tmp_path / "videos"), "--output_dir", str(tmp_path / "data"), "--skip_reading"]
    assert clipfsar(["prepare", "--benchmark", "hmdb51", *options]) == 0
    splits = load_video_splits(str(tmp_path / "data"))
    assert {split: list(dataset["label"]) for split, dataset in splits.items()} == {
        "train": ["running", "diving"],
        "validation": ["swim"],
        "test": ["climbing"],
    }


def test_a_benchmark_without_videos_says_what_is_missing(capsys):
    assert clipfsar(["prepare", "--benchmark", "ucf101"]) == 2
    assert "--benchmark ucf101 needs --video_root, the folder that the paths in the off" in capsys.readouterr().err


@pytest.mark.parametrize(("benchmark", "page"), [("epic_kitchens", "CLIP-FSAR"), ("diving48", "Knowledge-Prompting")])
def test_lists_that_are_not_downloaded_are_asked_for_with_their_page(benchmark, page, tmp_path, capsys):
    assert clipfsar(["prepare", "--benchmark", benchmark, "--video_root", str(tmp_path)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert (
        f"--benchmark {benchmark} needs --official_splits: its lists are not downloaded. Put those of http" in message
    )
    assert page in message


def test_epic_kitchens_has_no_validation_and_its_number_of_classes_is_compared(tmp_path, capsys):
    lists, videos = tmp_path / "lists", tmp_path / "videos" / "clips_256"
    for folder in (lists, videos):
        folder.mkdir(parents=True)
    (lists / "train_few_shot.txt").write_text("train0//clips_256/P01_01_0.MP4\ntrain1//clips_256/P01_01_1.MP4\n")
    (lists / "test_few_shot.txt").write_text(
        "".join(f"test{number}//clips_256/P01_02_{number}.MP4\n" for number in range(20))
    )
    arguments = {"--benchmark": "epic_kitchens", "--official_splits": lists, "--video_root": videos.parent}
    arguments |= {"--output_dir": tmp_path / "data", "--number_classes": "true"}
    preparation = Preparation(parse_arguments([str(part) for pair in arguments.items() for part in pair]))
    assert preparation.listed == {"train": (2, 2), "test": (20, 20)}
    notes = [line for line in preparation.summary() if "published" in line]
    assert notes == ["note: train lists 2 videos of 2 classes; the published epic_kitchens has 60 classes."]


def test_every_benchmark_has_three_lists_and_a_file_of_names():
    assert list(SHA256) == [name for name, preset in PRESETS.items() if preset.lists_page is None]
    for benchmark, digests in SHA256.items():
        assert list(digests) == ["train_few_shot.txt", "val_few_shot.txt", "test_few_shot.txt", NAMES[benchmark]]
        assert {len(digest) for digest in digests.values()} == {64}


@pytest.mark.skipif(REAL_LISTS is None, reason="CLIPFSAR_OFFICIAL_LISTS names no folder")
@pytest.mark.parametrize("benchmark", SHA256)
def test_the_real_lists_have_the_published_sizes(benchmark, tmp_path, capsys):
    lists = Path(REAL_LISTS) / benchmark
    for name, digest in SHA256[benchmark].items():
        assert hashlib.sha256((lists / name).read_bytes()).hexdigest() == digest
    five_shot = read_official_class_names(lists / NAMES[benchmark].replace("1shot", "5shot"))
    assert five_shot == read_official_class_names(lists / NAMES[benchmark])
    (tmp_path / "videos").mkdir()
    arguments = {"--official_splits": lists, "--class_names_file": lists / NAMES[benchmark]}
    arguments |= {"--benchmark": benchmark, "--video_root": tmp_path / "videos", "--output_dir": tmp_path / "data"}
    preparation = Preparation(parse_arguments([str(part) for pair in arguments.items() for part in pair]))
    assert preparation.listed == PRESETS[benchmark].sizes
    assert len(set(preparation.splits["train"]["label"])) == len(five_shot["train"])
    assert ("have numbers for names" in capsys.readouterr().err) == benchmark.startswith("ssv2")
