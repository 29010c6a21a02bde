"""Digests of videos: cheap, framed, and different whenever name, length or ends of a video are."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk

import clipfsar.content
from clipfsar.content import digest_of_video, digests_of_videos, framed_digest, joint_digest
from clipfsar.data.video_split import VideoSplit, digest_of_videos


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def test_parts_are_told_apart_by_where_they_end():
    assert framed_digest([b"ab", b"c"]) != framed_digest([b"a", b"bc"])
    assert framed_digest([b"ab", b""]) != framed_digest([b"ab"]) != framed_digest([b"", b"ab"])


def test_a_file_is_known_by_its_name_and_class_its_length_and_its_ends(tmp_path):
    content = bytes(range(256)) * 64
    known = digest_of_video(write(tmp_path / "here" / "jump" / "0.mp4", content))
    assert digest_of_video(write(tmp_path / "there" / "jump" / "0.mp4", content)) == known
    others = [
        digest_of_video(write(tmp_path / "a" / "jump" / "1.mp4", content)),
        digest_of_video(write(tmp_path / "b" / "run" / "0.mp4", content)),
        digest_of_video(write(tmp_path / "c" / "jump" / "0.mp4", b"!" + content[1:])),
        digest_of_video(write(tmp_path / "d" / "jump" / "0.mp4", content[:-1] + b"!")),
        digest_of_video(write(tmp_path / "e" / "jump" / "0.mp4", content[:9000] + content[9256:])),
    ]
    assert len({known, *others}) == 6


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8191, 8193])
def test_every_byte_of_the_ends_counts(size, tmp_path):
    rng = np.random.default_rng(size)
    content = rng.bytes(size)
    known = digest_of_video({"path": "a/0.mp4", "bytes": content})
    positions = {0, 4095, size - 4096, size - 1, *rng.integers(0, 4096, 3).tolist()}
    for position in sorted(position for position in positions if 0 <= position < size):
        changed = bytearray(content)
        changed[position] ^= 1
        assert digest_of_video({"path": "a/0.mp4", "bytes": bytes(changed)}) != known
    assert digest_of_video({"path": "a/0.mp4", "bytes": content + b"\0"}) != known


def test_bytes_in_a_data_set_are_known_as_they_are_elsewhere():
    videos = [{"path": "a/0.mp4", "bytes": b"x" * 10_000}, {"path": None, "bytes": b""}, {"path": "a/1", "bytes": None}]
    digests = digests_of_videos(Dataset.from_dict({"clip": videos}), "clip")
    assert [digest.tobytes() for digest in digests] == [digest_of_video(video) for video in videos]


@pytest.mark.parametrize("change", ["content", "size", "name", "one more", "one less"])
def test_a_folder_of_frames_that_changed_is_another_video(change, tmp_path):
    folder = tmp_path / "jump" / "0"
    for number in range(40):
        write(folder / f"{number}.png", bytes([number]) * 100)
    write(folder / "notes.txt", b"no frame")
    known = digest_of_video(str(folder))
    write(folder / "notes.txt", b"other notes")
    assert digest_of_video(str(folder)) == known
    if change == "content":  # as if all frames were cut anew: of the same size
        for number in range(40):
            write(folder / f"{number}.png", bytes([number + 1]) * 100)
    elif change == "size":
        write(folder / "7.png", b"?" * 101)
    elif change == "name":
        (folder / "7.png").rename(folder / "77.png")
    elif change == "one more":
        write(folder / "40.png", b"?")
    else:
        (folder / "39.png").unlink()
    assert digest_of_video(str(folder)) != known


def test_of_an_address_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr(clipfsar.content.urllib.request, "urlopen", None)
    one, other = (digest_of_video(f"https://example.org/{number}/a/0.mp4") for number in range(2))
    assert one == digest_of_video("https://example.org/0/a/0.mp4") != other


def test_a_file_url_is_its_file(tmp_path):
    path = write(tmp_path / "a" / "0.mp4", b"12345")
    assert digest_of_video(f"file://{path}") == digest_of_video(path)


def test_what_is_not_there_is_known_by_its_name(tmp_path):
    missing = [None, str(tmp_path / "a" / "0.mp4"), str(tmp_path / "a" / "1.mp4"), "a\0b"]
    assert len({digest_of_video(path) for path in missing}) == 4


def test_only_the_ends_of_a_long_video_are_read(tmp_path):
    path = tmp_path / "long.mp4"
    with path.open("wb") as file:
        file.truncate(2**40)  # of holes: nobody could read it to the end here
    assert digest_of_video(str(path)) == digest_of_video(str(path))


def test_an_empty_split_has_a_digest():
    dataset = Dataset.from_dict({"video": ["a"]}).select([])
    assert joint_digest(digests_of_videos(dataset)) == joint_digest(np.zeros((0, 16), np.uint8))


def test_a_split_is_looked_at_once(tmp_path, monkeypatch):
    split = VideoSplit(Dataset.from_dict({"video": [write(tmp_path / "0.mp4", b"1")], "label": ["jump"]}))
    digest = split.digest
    monkeypatch.setattr(clipfsar.content, "digest_of_video", None)
    assert (split.digest, split.record()["videos"]) == (digest, digest)


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_split_has_the_name_given_else_that_of_its_data_set():
    dataset = Dataset.from_dict({"clip": ["a.mp4", "b.mp4", "c.mp4"], "action": ["run", "dive", "run"]}, split="test")
    split = VideoSplit.of(dataset, "clip", "action", "mine")
    assert (split.name, VideoSplit(dataset, "clip", "action").name) == ("mine", "test")
    assert VideoSplit(Dataset.from_dict({"video": ["a.mp4"]})).name == "all"
    assert (split.class_names, split.labels.tolist(), len(split)) == (["dive", "run"], [1, 0, 1], 3)
    assert (split.rows_of("run").tolist(), split.video(1)) == ([0, 2], "b.mp4")
    assert VideoSplit.of(split, name="another") is split


def test_what_is_no_split_is_named_with_the_remedy():
    splits = DatasetDict({"val": Dataset.from_dict({"video": ["a.mp4"]})})
    with pytest.raises(ValueError, match=r"^This is a DatasetDict: pass one of its splits, such as splits\['val'\]\.$"):
        VideoSplit(splits)
    with pytest.raises(ValueError, match=r"^A datasets\.Dataset is needed, not list: load folders with load_video_spl"):
        VideoSplit(["a.mp4"])
    with pytest.raises(ValueError, match="There is no column 'video'; the dataset has clip"):
        VideoSplit(Dataset.from_dict({"clip": ["a.mp4"]}))


def test_digests_of_a_split_are_of_its_videos_in_order_and_of_its_classes(tmp_path):
    paths = [write(tmp_path / "a" / f"{number}.mp4", b"%d" % number) for number in range(3)]
    split = VideoSplit(Dataset.from_dict({"clip": paths, "label": ["x", "y", "x"]}), "clip")
    expected = joint_digest(np.stack([np.frombuffer(digest_of_video(path), np.uint8) for path in paths]))
    assert split.digest == expected == digest_of_videos(split.dataset, "clip")
    others = [(["x", "y", "y"], paths), (["x", "z", "x"], paths), (["y", "x", "y"], paths)]
    digests = {VideoSplit(Dataset.from_dict({"video": p, "label": labels})).digest_of_classes for labels, p in others}
    assert len({split.digest_of_classes, *digests}) == 4
    moved = VideoSplit(Dataset.from_dict({"video": paths[::-1], "label": ["x", "y", "x"]}))
    assert moved.digest_of_classes == split.digest_of_classes


def test_a_split_is_known_by_its_digest_and_by_that_of_version_0_1(tmp_path):
    path = write(tmp_path / "run" / "0.mp4", b"12345")
    (tmp_path / "run" / "frames").mkdir()
    videos = [
        {"path": path, "bytes": None},
        {"path": "x/run/1.mp4", "bytes": b"abc"},
        {"path": None, "bytes": b"abc"},
        {"path": str(tmp_path / "run" / "frames"), "bytes": None},
        {"path": str(tmp_path / "run" / "gone.mp4"), "bytes": None},
        {"path": None, "bytes": None},
    ]
    contents = hashlib.sha256(b"abc").digest()
    parts = [b"run/0.mp4", b"5", b"run/1.mp4", contents, contents, b"run/frames", b"run/gone.mp4"]
    split = VideoSplit(Dataset.from_dict({"video": videos}))
    assert split.is_known_by(hashlib.sha256(b"".join(parts)).hexdigest())
    assert split.is_known_by(split.digest)
    other = VideoSplit(Dataset.from_dict({"video": videos[::-1]}))
    assert not split.is_known_by(other.digest)
    assert not split.is_known_by(other._digest_of_0_1)
    plain = VideoSplit(Dataset.from_dict({"video": [path, str(tmp_path / "run" / "gone.mp4")] * 70}))
    assert plain.is_known_by(hashlib.sha256(b"run/0.mp45run/gone.mp4" * 70).hexdigest())


# --- what is different in a split -------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    return {name: [write(tmp_path / name / f"{n}.mp4", b"%d" % n * 50) for n in range(3)] for name in ("run", "a", "b")}


def split_of(files: dict[str, list[str]]) -> VideoSplit:
    rows = [(path, name) for name, paths in files.items() for path in paths]
    return VideoSplit(
        Dataset.from_dict({"video": [row[0] for row in rows], "label": [row[1] for row in rows]}), name="s"
    )


def test_nothing_changed_says_nothing(files, tmp_path):
    record = split_of(files).record()
    assert split_of(files).changes_since(record) == []
    shutil.move(tmp_path, tmp_path.with_name("moved"))
    moved = {name: [path.replace(str(tmp_path), f"{tmp_path.parent}/moved") for path in files[name]] for name in files}
    assert split_of(moved).changes_since(record) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f | {"a": f["b"], "b": f["a"]}, ["class 'a' has other videos", "class 'b' has other videos"]),
        (lambda f: {name: f[name] for name in ("run", "a")}, ["class 'b' is gone"]),
        (lambda f: f | {"c": f["b"]}, ["class 'c' is new"]),
        (lambda f: f | {"run": f["run"][:2]}, ["class 'run' had 3 videos and has 2"]),
        (lambda f: f | {"run": f["run"][::-1]}, ["class 'run' has other videos, or the same in another order"]),
        (lambda f: {name: f[name] for name in ("b", "a", "run")}, ["the videos are in another order"]),
    ],
)
def test_a_change_is_told_in_words(files, change, words):
    record = split_of(files).record()
    changes = split_of(change(files)).changes_since(record)
    assert len(changes) == len(words)
    for said, wanted in zip(changes, words, strict=True):
        assert said.startswith(f"s: {wanted}")


def test_another_class_order_is_told_with_both(files):
    def numbered(names):
        features = Features({"video": Value("string"), "label": ClassLabel(names=names)})
        rows = [(path, names.index(name)) for name in files for path in files[name]]
        columns = dict(zip(("video", "label"), zip(*rows, strict=True), strict=True))
        return VideoSplit(Dataset.from_dict(columns, features=features), name="s")

    record = numbered(["run", "a", "b"]).record()
    assert numbered(["run", "a", "b"]).changes_since(record) == []
    changes = numbered(["b", "run", "a"]).changes_since(record)
    assert changes == ["s: the classes are in another order, run, a, b (now b, run, a)"]
    before = split_of(dict.fromkeys("abcdef", files["run"]))
    record = before.record()
    record["classes"] = record["classes"][::-1]
    assert before.changes_since(record) == [
        "s: the classes are in another order, f, e, d, c, b, ... (now a, b, c, d, e, ...)"
    ]
    five = split_of(dict.fromkeys("abcde", files["run"]))
    record = five.record()
    record["classes"] = record["classes"][::-1]
    assert five.changes_since(record) == ["s: the classes are in another order, e, d, c, b, a (now a, b, c, d, e)"]


def test_a_replaced_file_of_equal_size_is_told(files):
    record = split_of(files).record()
    Path(files["a"][1]).write_bytes(b"?" * 50)
    assert split_of(files).changes_since(record) == ["s: class 'a' has other videos, or the same in another order"]


# --- what is read for digests -----------------------------------------------------------------------------------------


@pytest.fixture
def looked_at(monkeypatch) -> list:
    """The videos whose ends are read, in order."""
    videos, digest = [], clipfsar.content.digest_of_video

    def look(video):
        videos.append(video["path"] if isinstance(video, dict) else video)
        return digest(video)

    monkeypatch.setattr(clipfsar.content, "digest_of_video", look)
    return videos


def stored(number: int, size: int = 50) -> dict:
    return {"path": f"{number}.mp4", "bytes": b"%d" % number * size}


def with_digests(number: int) -> Dataset:
    videos = [stored(n) for n in range(number)]
    digests = [digest_of_video(video).hex() for video in videos]
    return Dataset.from_dict({"video": videos, "label": ["run"] * number, "video_digest": digests})


def test_of_videos_with_a_column_of_digests_four_are_looked_at(looked_at):
    dataset = with_digests(30)
    expected = digests_of_videos(dataset.remove_columns("video_digest"))
    looked_at.clear()
    assert np.array_equal(digests_of_videos(dataset), expected)
    assert looked_at == ["0.mp4", "9.mp4", "19.mp4", "29.mp4"]


def test_selected_videos_keep_their_digests():
    dataset = with_digests(9).select([5, 2, 7])
    assert [digest.tobytes() for digest in digests_of_videos(dataset)] == [
        digest_of_video(stored(n)) for n in (5, 2, 7)
    ]


def test_digests_of_other_videos_are_not_believed():
    dataset = with_digests(3)
    others = dataset.remove_columns("video").add_column("video", [stored(n, size=60) for n in range(3)])
    with pytest.warns(UserWarning, match="The column 'video_digest' belongs to other videos: the digests are computed"):
        digests = digests_of_videos(others)
    assert [digest.tobytes() for digest in digests] == [digest_of_video(stored(n, size=60)) for n in range(3)]


def test_digests_of_some_rows_look_at_no_others_and_at_none_once_all_are_known(looked_at):
    split = VideoSplit(Dataset.from_dict({"video": [stored(n) for n in range(5)], "label": ["run"] * 5}))
    some = split.digests_of([3, 1])
    assert looked_at == ["3.mp4", "1.mp4"]
    assert np.array_equal(split.digests[[3, 1]], some)
    looked_at.clear()
    assert np.array_equal(split.digests_of([3, 1]), some)
    assert looked_at == []


def test_only_the_ends_of_videos_inside_a_data_set_are_copied(tmp_path):
    Dataset.from_dict({"video": [stored(n, 10**6) for n in range(4)]}).save_to_disk(tmp_path / "data")
    dataset = load_from_disk(tmp_path / "data").select([3, 0, 2])
    pool = pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    before = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        digests = digests_of_videos(dataset)
    finally:
        pyarrow.set_memory_pool(before)
    assert pool.max_memory() < 10**5
    assert digests[1].tobytes() == digest_of_video(stored(0, 10**6))
