"""Videos that are copies of each other: where they are found, what is not compared, and what is said."""

from datasets import Dataset

from clipfsar.data.copies import Place, copies, note_on_copies


def test_videos_without_bytes_of_their_own_are_no_copies(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"frame")
        (tmp_path / f"{name}.mp4").touch()
    rows = {"video": [str(path) for path in sorted(tmp_path.iterdir())] + ["a\0b", "a\0b"], "label": ["k"] * 6}
    assert copies({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(rows).select([])}) == []
    videos = [{"path": None, "bytes": b""}] * 2 + [{"path": None, "bytes": None}] * 2
    assert copies({"train": Dataset.from_dict({"video": videos, "label": ["k"] * 4})}) == []


def test_copies_inside_and_outside_of_data_sets_are_found_in_all_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a/0.mp4", "b/1.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"same")
    videos = [{"path": path, "bytes": data} for path, data in ((None, b"x"), (None, b"same"), ("v/2.mp4", b"same"))]
    splits = {
        "test": Dataset.from_dict({"video": videos, "label": list("pqr")}),
        "train": Dataset.from_dict({"video": ["~/b/1.mp4", str(tmp_path / "a/0.mp4")], "label": ["s", "t"]}),
    }
    (group,) = copies(splits)
    assert [(place.split, place.class_name, place.name) for place in group] == [
        ("test", "q", "row 1"),
        ("test", "r", "2.mp4"),
        ("train", "s", "b/1.mp4"),
        ("train", "t", "a/0.mp4"),
    ]


def test_files_that_nobody_may_read_are_no_copies(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).write_bytes(b"same")
    rows = {"video": [str(tmp_path / "a"), str(tmp_path / "b")], "label": ["k", "k"]}

    def refused(path, *args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    assert copies({"train": Dataset.from_dict(rows)}) == []


def test_the_note_on_copies_names_five_groups_and_counts_all_copies():
    def group(*names: str) -> list[Place]:
        return [Place("test", f"class of {name}", f"{name}.mp4", name) for name in names]

    end = "An episode may ask for a video that is also among its examples, so accuracy looks better than it is"
    assert note_on_copies([group("a", "b")]) == (
        "note: 1 video is a copy of another, byte for byte: a.mp4 (test class 'class of a') = b.mp4 (test class "
        f"'class of b'). {end}: leave the copies out."
    )
    five = note_on_copies([group(*letters) for letters in ("ab", "cde", "fg", "hi", "jk")])
    assert five.startswith(
        "note: 6 videos are copies of another, byte for byte: a.mp4 (test class 'class of a') = b.mp4"
    )
    assert five.endswith(
        f"; j.mp4 (test class 'class of j') = k.mp4 (test class 'class of k'). {end}: leave the copies out."
    )
    seven = note_on_copies([group(*letters) for letters in ("ab", "cde", "fg", "hi", "jk", "lm", "no")])
    assert "note: 8 videos are copies of another" in seven
    assert f"= k.mp4 (test class 'class of k'); and 2 more. {end}: leave the copies out." in seven
    assert "1,000 videos are copies" in note_on_copies([group(*map(str, range(1001)))])
    assert note_on_copies([]) == ""
