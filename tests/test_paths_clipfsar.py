"""Rules for names of files and folders."""

import errno
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import ClassLabel
from tiny_data import tiny_model_and_processor, write_video

from choices_clipfsar import normalized_class_name
from clipfsar.data.sources import folder_splits
from clipfsar.data.splits import load_video_splits
from clipfsar.inference.predict import find_classes
from clipfsar.page.visitor import Examples
from paths_clipfsar import (
    check_output_file,
    check_path,
    class_name_of_folder,
    class_names_of_folders,
    encoded_url,
    file_name_of,
    has_protocol,
    local_path,
    looks_like_path,
    naming_errors,
    printable,
    public_name,
    replace_file,
    write_text,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("/data", "./data", "../data", "~/data", "runs/mine/best", "RN50.pt", "a/b.pyth")),
        *((name, True) for name in ("clips.csv", "new.MP4", r"runs\mine")),
        *((name, False) for name in ("data", "openai/clip-vit-base-patch16", "me/Qwen2.5", "somebody/data")),
    ],
)
def test_a_path_is_told_from_a_hub_id(name, expected):
    assert looks_like_path(name) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("s3://team/data", "hf://datasets/me/data", "file:///data", Path("s3://team/data"))),
        *(
            (name, False)
            for name in ("me/data", "/data/s3://x", "C://data", "s3:data", "s3:/data", "", Path("C:/data"))
        ),
    ],
)
def test_an_address_is_told_from_a_path(name, expected):
    assert has_protocol(name) is expected


def test_the_home_of_nobody_is_a_missing_file_and_no_module_asks_python_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a.mp4") == tmp_path / "a.mp4"
    assert local_path("~nobody.at.all/a.mp4") == Path("~nobody.at.all/a.mp4")
    root = Path(__file__).parents[1]
    modules = [*root.glob("*_clipfsar.py"), *(root / "clipfsar").rglob("*.py"), *(root / "demo").rglob("*.py")]
    asks = re.compile(r"(?<!os\.path)\.expanduser\(")  # of `Path`, which raises RuntimeError
    assert [path.name for path in modules if asks.search(path.read_text(encoding="utf-8"))] == []


def test_a_path_that_is_not_there_is_named_with_its_option_and_a_hub_id_passes(tmp_path):
    check_path("model", None)
    check_path("model", "somebody/model")
    check_path("model", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^--model \./nothing does not exist\. Give a folder\.$"):
        check_path("model", "./nothing", "Give a folder.")
    with pytest.raises(FileNotFoundError, match=r"^--folder nothing does not exist\.$"):
        check_path("folder", "nothing", is_local=True)


def test_the_public_name_of_a_path_is_its_last_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert public_name(tmp_path / "here") == "here"
    assert public_name("here/") == "here"
    assert public_name(".") == tmp_path.name
    assert public_name("/home/somebody/secret/model") == "model"
    assert public_name("runs/mine/best") == "best"  # not there (any more), but no Hub id
    assert public_name("openai/clip") == "openai/clip"


def test_a_file_is_replaced_when_it_is_complete_and_not_before(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replace_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(RuntimeError), replace_file(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_appears_when_it_is_complete_whatever_a_killed_process_left(tmp_path):
    (tmp_path / ".shard.partial").mkdir()
    (tmp_path / ".shard.partial" / "left").touch()
    with replace_file(tmp_path / "shard") as partial:
        partial.mkdir()
        (partial / "keys").touch()
    assert os.listdir(tmp_path) == ["shard"]
    assert os.listdir(tmp_path / "shard") == ["keys"]


def on_a_full_disk(path: Path, text: str, **options) -> None:
    """`Path.write_text` where there is space for three bytes."""
    path.write_bytes(text.encode()[:3])
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_earlier_text_and_its_error_names_the_file(tmp_path, monkeypatch):
    write_text(tmp_path / "file.txt", "earlier \udcff")
    monkeypatch.setattr(Path, "write_text", on_a_full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "file.txt", "later")
    assert caught.value.filename == str(tmp_path / "file.txt")
    assert (tmp_path / "file.txt").read_bytes() == b"earlier \\udcff"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_text_goes_through_links_and_into_pipes_and_keeps_both(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for text in ("first", "second"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "file").read_text() == text
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(tmp_path / "pipe", "third")
        assert os.read(reader, 9) == b"third"
    finally:
        os.close(reader)
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "fourth")


def test_a_file_in_a_folder_without_write_permission_is_written_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("earlier")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr("paths_clipfsar.replace_file", lambda path: pytest.fail("a new file"))
    write_text(tmp_path / "file", "later")
    assert (tmp_path / "file").read_text() == "later"


def test_errors_that_have_a_name_or_are_not_of_writing_stay_as_they_are():
    for error in (OSError(errno.ENOSPC, "full", "other"), OSError(errno.ECONNRESET, "gone"), OSError("odd")):
        before = error.filename
        with pytest.raises(OSError), naming_errors("a.txt"):  # noqa: PT011
            raise error
        assert error.filename == before


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replace_file(path) as first, replace_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # its block ended last
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_removed_after_a_day_and_not_before(tmp_path):
    old, new, of_another = (
        tmp_path / f".{name}.partial" for name in ("file.0123abcd", "file.4567cdef", "file2.0123abcd")
    )
    for left in (old, new, of_another):
        left.touch()
    for left in (old, of_another):
        os.utime(left, (0, 0))
    with replace_file(tmp_path / "file") as partial:
        partial.touch()
    assert sorted(os.listdir(tmp_path)) == [".file.4567cdef.partial", ".file2.0123abcd.partial", "file"]


@pytest.mark.parametrize(("umask", "permissions"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_replaced_file_has_the_permissions_of_any_new_file(umask, permissions, tmp_path):
    earlier = os.umask(umask)
    try:
        with replace_file(tmp_path / "file") as partial:
            partial.touch(0o600)
    finally:
        os.umask(earlier)
    assert (tmp_path / "file").stat().st_mode & 0o777 == permissions


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("brush_hair", "brush hair"),
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("YoYo", "Yo Yo"),
        ("TaiChi", "Tai Chi"),
        ("jumping jacks", "jumping jacks"),
        ("__a__b_", "a b"),
    ],
)
def test_a_class_is_named_by_the_words_of_its_folder(folder, name):
    assert class_name_of_folder(folder) == name
    assert normalized_class_name(folder) == normalized_class_name(name)


def test_two_folders_of_one_class_are_named():
    message = "The folders 'brush hair' and 'brush_hair' in videos both stand for the class 'brush hair': move"
    with pytest.raises(ValueError, match=message):
        class_names_of_folders(["brush hair", "brush_hair"], "videos")


@pytest.mark.parametrize(
    ("url", "encoded"),
    [
        ("https://a.org/clip.mp4", "https://a.org/clip.mp4"),
        ("https://a.org/my clips/f\u00fcr dich.mp4", "https://a.org/my%20clips/f%C3%BCr%20dich.mp4"),
        ("https://a.org/my%20clips/f%C3%BCr.mp4", "https://a.org/my%20clips/f%C3%BCr.mp4"),
        ("https://a.org/100%.mp4", "https://a.org/100%25.mp4"),
        ("https://a.org/a%20b c.mp4?t=x y&s=%2F+&k=\u00e9", "https://a.org/a%20b%20c.mp4?t=x%20y&s=%2F+&k=%C3%A9"),
        ("http://m\u00fcller.de:8080/a.mp4", "http://xn--mller-kva.de:8080/a.mp4"),
        ("http://me:p%40ss@[::1]:80/a b.mp4", "http://me:p%40ss@[::1]:80/a%20b.mp4"),
    ],
)
def test_an_address_is_encoded_once(url, encoded):
    assert encoded_url(url) == encoded
    assert encoded_url(encoded) == encoded


# --- one tree, every way in -------------------------------------------------------------------------------------------

CLASSES = {"ApplyEyeMakeup": "Apply Eye Makeup", "brush_hair": "brush hair"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for clip in range(2):
            write_video(folder / name / f"{clip}.mp4", (200, 30, 100 * number), seed=clip)
    return folder


def names_of_every_way(tree) -> dict[str, list[str]]:
    label = load_video_splits(str(tree))["train"].features["label"]
    assert isinstance(label, ClassLabel)
    return {
        "prepare": list(dict.fromkeys(clip.class_name for clip in folder_splits(tree)["all"])),
        "videofolder": label.names,
        "predict": list(find_classes(tree)),
        "page": list(Examples.from_folder(tree).classes),
    }


def test_one_tree_gives_the_same_class_names_and_prompts_by_every_way(tree):
    _, processor = tiny_model_and_processor()
    expected = processor.tokenize_classes(list(CLASSES.values()))["input_ids"].tolist()
    for way, names in names_of_every_way(tree).items():
        assert names == list(CLASSES.values()), way
        assert processor.tokenize_classes(names)["input_ids"].tolist() == expected


def test_labels_of_a_videofolder_keep_their_rows(tree):
    rows = load_video_splits(str(tree))["train"]
    names = [rows.features["label"].names[label] for label in rows["label"]]
    assert names == [CLASSES[video["path"].split("/")[-2]] for video in rows["video"]]


@pytest.mark.parametrize("read", [folder_splits, find_classes, Examples.from_folder, load_video_splits])
def test_two_folders_of_one_class_are_refused_by_every_way(read, tree, tmp_path):
    for name in ("brush_hair", "brush hair"):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "0.mp4", (200, 30, 30), seed=0)
    with pytest.raises(ValueError, match="'brush hair' and 'brush_hair'"):
        read(str(tmp_path) if read is load_video_splits else tmp_path)


def test_videos_that_load_dataset_leaves_out_are_said(tree, tmp_path):
    folder = shutil.copytree(tree, tmp_path / "videos")
    (folder / "brush_hair" / "0.mp4").rename(folder / "brush_hair" / "0.webm")
    with pytest.warns(
        UserWarning, match=r"holds 4 videos, but load_dataset reads 3 of them.*clipfsar prepare --source"
    ):
        load_video_splits(str(folder))


# --- names out of any text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a clip", "a clip.png"),
        ("a/b\\c", "a_b_c.png"),
        ("a\nb\0c\x1b", "a_b_c_.png"),
        ("", "_.png"),
        ("é" * 200, "é" * 125 + ".png"),
        ("x" * 300, "x" * 251 + ".png"),
        ("\udcff", "_.png"),
    ],
)
def test_any_text_becomes_a_file_name(text, name, tmp_path):
    assert file_name_of(text, ".png") == name
    (tmp_path / file_name_of(text, ".png")).touch()


def test_equal_names_are_told_apart_also_where_cases_are_one_and_names_are_cut():
    used = []
    for text in ("a", "A", "a", "x" * 300, "x" * 301):
        used.append(file_name_of(text, ".png", used))
    assert used == ["a.png", "A_2.png", "a_3.png", "x" * 251 + ".png", "x" * 249 + "_2.png"]


def test_a_file_of_the_longest_name_can_be_replaced(tmp_path):
    path = tmp_path / ("x" * 255)
    with replace_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


def test_a_file_that_cannot_be_written_is_found_out_and_one_that_can_stays_as_it_is(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        check_output_file(tmp_path / ("x" * 256))
    with pytest.raises(IsADirectoryError):
        check_output_file(tmp_path)
    (tmp_path / "there").write_text("old")
    check_output_file(tmp_path / "there")
    check_output_file(tmp_path / "new folder" / "file")
    assert (tmp_path / "there").read_text() == "old"
    assert list((tmp_path / "new folder").iterdir()) == []


def test_examples_of_the_page_fit_its_limits_from_the_start(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for number in range(12):
        (tmp_path / "a" / f"{number}.mp4").touch()
    examples, added = Examples.from_folder(tmp_path), []
    visitor = SimpleNamespace(support_set={}, add=lambda pipeline, name, clips, are_uploads: added.append(len(clips)))
    examples.add_to(visitor, None)
    assert added == [10, 2]
    monkeypatch.setattr("clipfsar.page.visitor.MAX_CLIPS", 11)
    with pytest.raises(ValueError, match="holds 12 example clips; a visitor may have 11: remove some"):
        Examples.from_folder(tmp_path)


def test_several_processes_may_check_one_output_file_at_a_time(tmp_path):
    path = tmp_path / "results.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: check_output_file(path), range(400)))
    assert list(tmp_path.iterdir()) == []


def test_control_characters_are_shown_and_never_sent_to_a_terminal():
    assert printable("é a\n\x1b[31m") == "é a\\n\\x1b[31m"
