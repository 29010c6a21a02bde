"""Work in shards: every row in one of them, and the same result as without, whichever tasks are killed or repeated."""

import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, load_from_disk
from tiny_data import write_video_folder

import paths_clipfsar
from clipfsar.checked_files import create_file, link_or_copy
from clipfsar.cli import main as clipfsar
from clipfsar.data import frame_store
from clipfsar.data.arguments import parse_arguments
from clipfsar.data.frame_store import block_of_task
from clipfsar.data.prepare import Preparation
from clipfsar.data.splits import load_video_splits
from clipfsar.evaluation.arguments import EvaluateArguments
from clipfsar.locks import FolderInUseError
from clipfsar.shards import Shard, shard_of

# --- which rows, which shard ------------------------------------------------------------------------------------------


def test_shard_1_of_3_has_every_third_row():
    assert Shard(1, 3).rows(8) == [1, 4, 7]
    assert Shard(2, 3).rows(2) == []


def test_a_shard_may_have_blocks_of_rows():
    assert Shard(1, 2).rows(11, block=3) == [3, 4, 5, 9, 10]


@pytest.mark.parametrize("num_rows", [0, 1, 7, 100, 71_796])
def test_every_video_is_read_by_exactly_one_task_and_all_read_about_as_many(num_rows):
    block = block_of_task(num_rows, Shard(0, 8))
    tasks = [Shard(index, 8).rows(num_rows, block) for index in range(8)]
    assert sorted(row for rows in tasks for row in rows) == list(range(num_rows))
    sizes = [len(rows) for rows in tasks]
    assert max(sizes) - min(sizes) <= block <= max(16, num_rows / 64)


def test_tasks_of_a_large_split_read_blocks_of_one_piece_each():
    assert block_of_task(71_796, Shard(0, 8)) == frame_store.VIDEOS_PER_SHARD


def slurm(**values: int) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_without_options_a_task_of_a_slurm_array_has_its_shard():
    assert shard_of([], slurm(ID=3, COUNT=8, MIN=0, MAX=7, STEP=1)) == Shard(3, 8)
    assert shard_of([], slurm(ID=3, COUNT=8)) == Shard(3, 8)
    assert shard_of([], {}) is None


def test_a_slurm_array_may_begin_anywhere_and_have_steps():
    assert [shard_of([], slurm(ID=task, COUNT=3, MIN=5, MAX=7)) for task in (5, 6, 7)] == [
        *(Shard(0, 3), Shard(1, 3), Shard(2, 3))
    ]
    assert shard_of([], slurm(ID=15, COUNT=8, MIN=1, MAX=15, STEP=2)) == Shard(7, 8)


@pytest.mark.parametrize("task", [2, 5])
def test_every_task_of_a_slurm_array_with_gaps_is_told_to_name_its_shard(task):
    with pytest.raises(ValueError, match=r'array of 2 tasks from 2 to 5 has gaps.*--shard "\$SLURM_ARRAY_TASK_ID" 8'):
        shard_of([], slurm(ID=task, COUNT=2, MIN=2, MAX=5, STEP=1))


def test_the_option_goes_before_slurm_and_one_shard_is_everything():
    in_array = slurm(ID=3, COUNT=8, MIN=0, MAX=7)
    assert shard_of([1, 4], in_array) == Shard(1, 4)
    assert shard_of([0, 1], in_array) is None


@pytest.mark.parametrize("values", [[1], [8, 8], [-1, 8], [0, 0], [0, 1, 2]])
def test_a_shard_that_is_none_is_refused_with_examples(values):
    with pytest.raises(ValueError, match="give the index and the number of shards, such as --shard 0 8 to --shard 7 8"):
        shard_of(values, {})


# --- preparing --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = write_video_folder(tmp_path_factory.mktemp("videos"), videos_per_class=3)
    shutil.rmtree(folder / "validation")
    return folder  # 12 videos of four classes for training, 9 of three for the test


class Reads:
    """Reads videos in this process, counts them by file, and dies before those named."""

    def __init__(self):
        self.counts: Counter = Counter()
        self.deadly: set[str] = set()

    def __call__(self, job):
        name = "/".join(Path(job[0]).parts[-3:])
        if name in self.deadly:
            raise KeyboardInterrupt
        self.counts[name] += 1
        return frame_store.read_video(job)


@pytest.fixture
def reads(monkeypatch, tmp_path):
    read = Reads()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(frame_store, "in_processes", lambda _, jobs, __: map(read, jobs))
    monkeypatch.setattr(frame_store, "VIDEOS_PER_SHARD", 2)
    monkeypatch.setattr(frame_store, "BLOCKS_PER_TASK", 1)
    monkeypatch.setattr(paths_clipfsar, "_flush", lambda path: None)  # a disk with much to do takes seconds
    return read


def prepare(videos: Path, output_dir: Path, *options: str) -> Path:
    given = ["--source", str(videos), "--output_dir", str(output_dir), "--frame_size", "16", *options]
    Preparation(parse_arguments([*given] if "--frame_store" in options else [*given, "--frame_store", "raw"])).run()
    return output_dir


def shard(index: int, count: int) -> list[str]:
    return ["--shard", str(index), str(count)]


def files_of(folder: Path) -> dict[int, int]:
    """Size of each Arrow file on the disk, by its inode: a file with several names counts once."""
    states = [path.stat() for path in folder.rglob("*.arrow")]
    return {state.st_ino: state.st_size for state in states}


def test_shards_of_which_two_were_killed_and_repeated_give_the_unsharded_result(videos, reads, tmp_path):
    whole = prepare(videos, tmp_path / "whole")
    reads.counts.clear()
    reads.deadly = {"train/green/2.mp4", "test/violet/2.mp4"}  # row 5 of the third task, row 8 of the second one
    for index in (2, 1):
        with pytest.raises(KeyboardInterrupt):
            prepare(videos, tmp_path / "data", *shard(index, 3))
    reads.deadly = set()
    for index in (2, 0, 1):
        prepare(videos, tmp_path / "data", *shard(index, 3))
    assert not (tmp_path / "data" / "dataset_dict.json").exists()
    assert set(reads.counts) == {str(path.relative_to(videos)) for path in videos.rglob("*.mp4")}
    reads.deadly = set(reads.counts)  # nothing may be read once more
    prepare(videos, tmp_path / "data")
    for split, dataset in load_from_disk(whole).items():
        merged = load_from_disk(tmp_path / "data")[split]
        assert merged.features == dataset.features
        assert list(merged) == list(dataset)
    reports = [json.loads((folder / "preparation.json").read_text()) for folder in (whole, tmp_path / "data")]
    for report in reports:
        del report["settings"]["output_dir"]
    assert reports[0] == reports[1]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted(path.name for path in whole.iterdir())


def test_tasks_may_overlap_and_a_task_that_is_repeated_reads_nothing(videos, reads, tmp_path):
    whole = load_from_disk(prepare(videos, tmp_path / "whole"))
    prepare(videos, tmp_path / "data", *shard(0, 2))
    reads.counts.clear()
    prepare(videos, tmp_path / "data", *shard(0, 2))
    assert not reads.counts
    for index in range(3):
        prepare(videos, tmp_path / "data", *shard(index, 3))
    assert set(reads.counts.values()) == {1}
    assert sum(reads.counts.values()) == 21 - 6 - 5  # the other half of each split
    reads.deadly = set(reads.counts)
    merged = load_from_disk(prepare(videos, tmp_path / "data"))
    assert {split: list(dataset) for split, dataset in merged.items()} == {
        split: list(dataset) for split, dataset in whole.items()
    }


def test_two_tasks_that_read_the_same_rows_at_once_do_not_disturb_each_other(videos, reads, tmp_path, monkeypatch):
    write, others = frame_store._write_shard, ["another task"]

    def write_late(*args):
        if others:
            others.pop()
            prepare(videos, tmp_path / "data", *shard(0, 2))  # the same shard, from its start to its end
        return write(*args)

    monkeypatch.setattr(frame_store, "_write_shard", write_late)
    prepare(videos, tmp_path / "data", *shard(0, 2))
    assert max(reads.counts.values()) == 2
    prepare(videos, tmp_path / "data")
    merged = load_from_disk(tmp_path / "data")
    assert {split: len(dataset) for split, dataset in merged.items()} == {"train": 12, "test": 9}


def test_the_data_set_consists_of_the_files_that_the_tasks_wrote(videos, reads, tmp_path):
    for index in range(2):
        prepare(videos, tmp_path / "data", *shard(index, 2))
    written = files_of(tmp_path / "data")
    prepare(videos, tmp_path / "data")
    assert files_of(tmp_path / "data") == written


def test_no_byte_of_a_frame_store_is_on_the_disk_twice(videos, reads, tmp_path, monkeypatch):
    seen = {}
    place = Preparation._put_in_place

    def look(self, folder):
        seen.update(files_of(tmp_path / "data"))
        place(self, folder)

    monkeypatch.setattr(Preparation, "_put_in_place", look)
    prepare(videos, tmp_path / "data")
    assert seen == files_of(tmp_path / "data")


def test_a_file_is_copied_where_the_disk_has_no_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "a").write_text("content")
    monkeypatch.setattr("os.link", no_links)
    assert link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"
    assert not create_file(tmp_path / "b", "other content")
    assert (tmp_path / "b").read_text() == "content"


def test_of_two_processes_that_create_a_file_one_succeeds(tmp_path):
    assert create_file(tmp_path / "a", "first")
    assert not create_file(tmp_path / "a", "second")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "first")]


def test_the_data_set_is_not_put_together_while_a_task_still_reads(videos, reads, tmp_path, monkeypatch):
    errors = []

    def meanwhile(_, jobs, __):
        if not errors:
            with pytest.raises(FolderInUseError) as error:
                prepare(videos, tmp_path / "data")
            errors.append(str(error.value))
        return map(reads, jobs)

    monkeypatch.setattr(frame_store, "in_processes", meanwhile)
    prepare(videos, tmp_path / "data", *shard(1, 2))
    assert "prepares shard 1 of 2 there since" in errors[0]
    assert (tmp_path / "data" / ".preparing").is_dir()


def test_a_task_that_comes_after_the_end_has_nothing_to_do(videos, reads, tmp_path, capsys):
    prepare(videos, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    prepare(videos, tmp_path / "data", *shard(1, 2))
    assert capsys.readouterr().out.endswith(f"shard 1 of 2: nothing to do, {tmp_path / 'data'} is prepared.\n")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before
    with pytest.raises(ValueError, match="already holds a prepared data set"):
        prepare(videos, tmp_path / "data", *shard(1, 2), "--frames_per_video", "8")


def test_a_task_with_other_settings_is_refused(videos, reads, tmp_path):
    prepare(videos, tmp_path / "data", *shard(0, 2))
    with pytest.raises(ValueError, match=r"was started with --frames_per_video 72: use the same settings"):
        prepare(videos, tmp_path / "data", *shard(1, 2), "--frames_per_video", "8")


def test_a_task_says_what_it_could_not_read_and_the_preparation_lists_it(videos, reads, tmp_path, capsys):
    source = shutil.copytree(videos, tmp_path / "videos")
    for path in (source / "train/green/1.mp4", source / "train/red/0.mp4"):  # one for each task
        path.write_bytes(path.read_bytes()[:100])
    prepare(source, tmp_path / "data", *shard(0, 2))
    assert "shard 0 of 2: 6 train videos, 1 of them missing or unreadable." in capsys.readouterr().out
    assert not (tmp_path / "data" / "bad_videos.csv").exists()
    with pytest.raises(ValueError, match="2 videos are missing or unreadable"):
        prepare(source, tmp_path / "data")


def test_a_task_that_can_read_nothing_fails(videos, reads, tmp_path):
    source = shutil.copytree(videos, tmp_path / "videos")
    for path in source.rglob("*.mp4"):
        path.write_bytes(b"?")
    with pytest.raises(ValueError, match=r"None of the 11 videos can be read; the first is .*Check the folder"):
        prepare(source, tmp_path / "data", *shard(0, 2))


def test_what_somebody_put_into_the_folder_meanwhile_is_not_deleted(videos, reads, tmp_path):
    prepare(videos, tmp_path / "data", *shard(0, 2))
    (tmp_path / "data" / "train").mkdir()
    (tmp_path / "data" / "train" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ValueError, match="train does not belong to this preparation: move it away and run it again"):
        prepare(videos, tmp_path / "data")
    (tmp_path / "data" / "train").rename(tmp_path / "mine")
    prepare(videos, tmp_path / "data")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "irreplaceable"


def test_a_piece_with_a_number_in_the_middle_may_be_deleted(tmp_path):
    for number in (0, 2):
        (tmp_path / f"shard-00000{number}").mkdir()
    assert frame_store._new_shard(tmp_path).name == "shard-000003"


def test_preparing_looks_at_no_byte_of_videos_that_it_only_selects(tmp_path, monkeypatch):
    rows = {"video": [{"path": f"{n}.mp4", "bytes": b"?" * 10} for n in range(6)], "label": list("aabbcc")}
    monkeypatch.setattr(Dataset, "iter", None)  # which would copy them
    some = Dataset.from_dict(rows).select([4, 1])
    assert list(frame_store.references(some)) == [{"path": f"{n}.mp4", "bytes": b""} for n in (4, 1)]


def test_nothing_to_read_is_nothing_to_divide(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--source", "a", "--output_dir", "b", "--skip_reading", "--shard", "0", "2"])
    assert "with --skip_reading no video is read, so there is nothing to divide" in capsys.readouterr().err


def test_a_slurm_array_prepares_its_shards(videos, reads, tmp_path, monkeypatch):
    for task in (1, 2):
        for name, value in slurm(ID=task, COUNT=2, MIN=1, MAX=2, STEP=1).items():
            monkeypatch.setenv(name, value)
        prepare(videos, tmp_path / "data")
    assert not (tmp_path / "data" / "train").exists()
    reads.deadly = set(reads.counts)
    prepare(videos, tmp_path / "data", *shard(0, 1))
    assert len(load_video_splits(str(tmp_path / "data"))["train"]) == 12


# --- options of the evaluation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": [0, 2]}, "--shard divides the encoding, not the episodes: add --encode_only"),
        ({"encode_only": True}, "--encode_only fills a feature store: name its folder with --feature_store"),
        (
            {"encode_only": True, "feature_store": "f", "shard": [0, 2], "rebuild_features": True},
            "shard 0 of 2: with --rebuild_features one task would delete the features of another",
        ),
    ],
)
def test_an_encoding_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluateArguments(model="m", dataset="d", **options)


def test_an_array_over_models_evaluates_each_of_them_whole(monkeypatch):
    for name, value in slurm(ID=1, COUNT=2, MIN=0, MAX=1).items():
        monkeypatch.setenv(name, value)
    arguments = EvaluateArguments(model="m", dataset="d", feature_store="f")
    assert arguments.task is None
    assert EvaluateArguments(model="m", dataset="d", feature_store="f", encode_only=True).task == Shard(1, 2)


def test_the_command_line_takes_a_shard(capsys):
    assert clipfsar(["evaluate", "--model", "m", "--dataset", "d", "--shard", "0", "2"]) == 2
    assert "--shard has no effect without --encode_only: add it" in capsys.readouterr().err
