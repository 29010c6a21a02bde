"""Data sets are read from addresses of other systems; writing there is refused before any work."""

import functools
import threading
from pathlib import Path

import datasets
import fsspec
import pytest
from tiny_data import video_splits, write_video_folder

from clipfsar import load_video_splits
from clipfsar.data import addresses
from clipfsar.data.addresses import local_copy
from clipfsar.evaluation.arguments import EvaluateArguments
from clipfsar.locks import FolderLock
from clipfsar.names import check_source
from clipfsar.options import parse_options
from clipfsar.training.arguments import parse_arguments
from paths_clipfsar import check_output_file, public_name


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A file system in memory, and a cache of its own for the copies."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def put_on(system, folder: Path, address: str):
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe(f"{address}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def test_a_saved_data_set_and_a_folder_of_videos_are_read_from_a_bucket(bucket, tmp_path):
    videos = write_video_folder(tmp_path / "videos", videos_per_class=1)
    video_splits(videos).save_to_disk(tmp_path / "saved")
    for folder in ("saved", "videos"):
        put_on(bucket, tmp_path / folder, f"/team/{folder}")
        splits = load_video_splits(f"memory://team/{folder}")
        assert {name: len(split) for name, split in splits.items()} == {"train": 4, "validation": 3, "test": 3}
    # The videos themselves are in the copy.
    path = Path(splits["test"][0]["video"]["path"])
    assert path.is_relative_to(tmp_path / "cache" / "clipfsar")
    assert path.read_bytes() == (videos / path.relative_to(path.parents[2])).read_bytes()


def test_only_files_that_changed_are_copied_again(bucket, monkeypatch):
    copied = []
    get = type(bucket).get
    monkeypatch.setattr(type(bucket), "get", lambda self, names, *rest: copied.append(names) or get(self, names, *rest))
    monkeypatch.setattr(addresses, "_FILES_AT_ONCE", 2)
    for name in "abc":
        bucket.pipe(f"/data/deep/{name}.txt", name.encode())
    folder = Path(local_copy("memory://data"))
    assert copied == [["/data/deep/a.txt", "/data/deep/b.txt"], ["/data/deep/c.txt"]]
    assert (folder.name, (folder / "deep" / "b.txt").read_text()) == ("data", "b")

    copied.clear()
    assert local_copy("memory://data") == str(folder)
    assert copied == []
    bucket.pipe("/data/deep/b.txt", b"new")
    bucket.rm("/data/deep/c.txt")
    (folder / "deep" / "a.txt").unlink()
    local_copy("memory://data")
    assert copied == [["/data/deep/a.txt", "/data/deep/b.txt"]]
    assert {path.name: path.read_text() for path in (folder / "deep").iterdir()} == {"a.txt": "a", "b.txt": "new"}


def test_a_program_that_reads_the_earlier_copy_keeps_it_and_others_find_no_folder_in_its_way(bucket):
    bucket.pipe("/data/deep/a.txt", b"abc")
    bucket.pipe("/data/deep/down/b.txt", b"b")
    folder = Path(local_copy("memory://data"))
    with (folder / "deep" / "a.txt").open("rb") as reader:
        bucket.pipe("/data/deep/a.txt", b"other")
        local_copy("memory://data")
        assert reader.read() == b"abc"
    assert {path.name: path.read_bytes() for path in folder.rglob("*.txt")} == {"a.txt": b"other", "b.txt": b"b"}


def test_a_killed_copy_goes_on_after_the_files_that_were_complete(bucket, monkeypatch):
    copied, recorded = [], []
    get = type(bucket).get

    def look(self, names, *rest):
        (record,) = Path(datasets.config.HF_DATASETS_CACHE).rglob("copied.txt")
        recorded.append([line.split()[-1] for line in record.read_text().splitlines()])
        copied.append(names)
        if len(copied) == 3:
            raise KeyboardInterrupt
        return get(self, names, *rest)

    monkeypatch.setattr(addresses, "_FILES_AT_ONCE", 1)
    for name in "abc":
        bucket.pipe(f"/data/{name}.txt", name.encode())
    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "get", look)
        with pytest.raises(KeyboardInterrupt):
            local_copy("memory://data")
        assert recorded == [[], ["a.txt"], ["a.txt", "b.txt"]]  # on the disk before the next file
        folder = Path(local_copy("memory://data"))
    assert copied == [["/data/a.txt"], ["/data/b.txt"], ["/data/c.txt"], ["/data/c.txt"]]
    assert sorted(path.read_text() for path in folder.iterdir()) == ["a", "b", "c"]


def test_a_copy_waits_for_another_of_the_same_address(bucket, monkeypatch):
    bucket.pipe("/data/a.txt", b"abc")
    folder = Path(local_copy("memory://data"))
    lock = FolderLock(folder.parent, "copies memory://data", "Wait")
    lock.__enter__()
    threading.Timer(0.3, lock.__exit__, (None, None, None)).start()
    with pytest.warns(UserWarning, match=r"Waiting for .*copies memory://data"):
        assert local_copy("memory://data") == str(folder)


def test_addresses_of_one_name_have_copies_of_their_own(bucket):
    for place in ("north", "south"):
        bucket.pipe(f"/{place}/data/a.txt", place.encode())
    folders = [Path(local_copy(f"memory://{place}/data")) for place in ("north", "south")]
    assert [folder.name for folder in folders] == ["data", "data"]
    assert [(folder / "a.txt").read_text() for folder in folders] == ["north", "south"]


def test_a_bar_counts_the_files_to_copy_and_without_any_there_is_none(bucket, capsys, monkeypatch):
    monkeypatch.setattr(addresses, "_FILES_AT_ONCE", 2)
    monkeypatch.setattr(addresses, "tqdm", functools.partial(addresses.tqdm, mininterval=0, miniters=1))
    for name in "abc":
        bucket.pipe(f"/data/{name}.txt", b"x")
    local_copy("memory://data")
    shown = capsys.readouterr().err.split("\r")
    assert [line.split("[")[0].split()[-1] for line in shown if "[" in line] == ["0/3", "2/3", "3/3"]
    assert all("copying memory://data: " in line and "file" in line for line in shown if "[" in line)
    assert shown[-1] == ""  # and is gone at the end
    local_copy("memory://data")
    assert capsys.readouterr().err == ""


def test_files_of_unknown_size_are_taken_as_they_come_and_links_are_no_files(bucket, monkeypatch):
    details = {f"/data/{kind}": {"name": f"/data/{kind}", "type": kind} for kind in ("file", "other")}
    find = type(bucket).find
    monkeypatch.setattr(
        type(bucket), "find", lambda self, root, detail=False, **more: details if detail else find(self, root, **more)
    )
    bucket.pipe(dict.fromkeys(details, b"abc"))
    folder = Path(local_copy("memory://data"))
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("file", "abc")]


def test_a_copy_that_is_incomplete_is_made_again(bucket, monkeypatch):
    bucket.pipe("/data/a.txt", b"abc")
    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "get", lambda self, names, paths: Path(paths[0]).write_bytes(b"a"))
        with pytest.raises(OSError, match=r"the copy of a\.txt has 1 bytes instead of 3: run it again\."):
            local_copy("memory://data")
    assert Path(local_copy("memory://data"), "a.txt").read_bytes() == b"abc"


def test_addresses_that_cannot_be_read_are_named(bucket):
    bucket.pipe("/data/../secret.txt", b"x")
    bucket.pipe("/windows/a\\b.txt", b"x")
    bucket.pipe("/lines/a\nb.txt", b"x")
    for address, error, match in (
        ("memory://nothing", FileNotFoundError, "memory://nothing holds no files"),
        ("memory://windows/a\\b.txt", FileNotFoundError, "holds no files; the folder of a data set with videos is"),
        ("memory://windows", ValueError, r"holds the file 'a\\\\b\.txt', whose name leaves its folder"),
        ("memory://lines", ValueError, r"holds the file 'a\\nb\.txt', whose name leaves its folder"),
        ("nope://team/data", ValueError, "nope://team/data cannot be read: Protocol not known: nope"),
        ("memory://data", ValueError, r"holds the file '\.\./secret\.txt', whose name leaves its folder"),
    ):
        with pytest.raises(error, match=match):
            load_video_splits(address)


def test_whole_data_sets_of_the_hub_and_local_addresses_are_not_copied(tmp_path):
    assert local_copy("hf://datasets/owner/name") == "owner/name"
    assert local_copy("hf://datasets/owner/name/") == "owner/name"
    assert local_copy(f"file://{tmp_path}") == str(tmp_path)
    assert public_name("s3://team/data/") == "data"


@pytest.mark.parametrize("name", ["output_dir", "model", "features_dir"])
def test_training_writes_to_no_address(name, capsys):
    assert parse_arguments(["--dataset", "s3://team/data"]).dataset == "s3://team/data"
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--dataset", "s3://team/data", f"--{name}", "s3://team/run"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --{name} s3://team/run is an address, but this option needs a name of this machine. Only --dataset "
        "can read addresses. Nothing is written to addresses: copy results there afterwards.\n"
    )


def test_evaluation_reads_data_from_an_address_and_writes_nothing_there(capsys):
    command_line = ["--model", "runs/mine", "--dataset", "gs://team/data"]
    parse_options(EvaluateArguments, command_line=command_line)
    check_source("dataset", "gs://team/data", "dataset")
    with pytest.raises(SystemExit):
        parse_options(EvaluateArguments, command_line=[*command_line, "--feature_store", "gs://team/features"])
    assert "--feature_store gs://team/features is an address" in capsys.readouterr().err


def test_files_and_folders_at_addresses_are_not_written_from_python_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (
        lambda: FolderLock(Path("s3://team/run"), "trains", "Wait"),
        lambda: FolderLock("s3://team/run", "trains", "Wait"),
        lambda: check_output_file("s3://team/results.json"),
    ):
        with pytest.raises(ValueError, match=r"s3:.*is an address, and nothing is written to addresses"):
            write()
    assert list(tmp_path.iterdir()) == []  # no folder called "s3:"
