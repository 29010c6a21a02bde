"""Labels from Label Studio, CVAT and tables as clips, and predictions for these tools. The files in `labelling_tools/`
are in the forms that the tools document."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from tiny_data import tiny_model_and_processor, write_video

from clipfsar.cli import main as clipfsar
from clipfsar.data.arguments import PrepareArguments
from clipfsar.data.clips import Clip, LeftOut
from clipfsar.data.cvat import cvat_text, read_cvat
from clipfsar.data.frame_store import FrameStoreSettings, read_video
from clipfsar.data.label_studio import label_studio_text, read_label_studio
from clipfsar.data.labels import Label, PredictedVideo, Segment, VideoFolder, clips_of
from clipfsar.data.sources import is_labels, labelled_clips, listed_clips, read_labelled_clips, table_splits
from clipfsar.data.splits import load_video_splits
from clipfsar.data.tables import csv_text
from clipfsar.inference.arguments import PredictArguments
from clipfsar.inference.preannotations import (
    as_cvat,
    as_json_lines,
    as_label_studio,
    merge_windows,
    predicted_videos,
)
from container_clipfsar import VideoTimes
from frame_archive_clipfsar import FrameArchive
from pipeline_clipfsar import save_with_pipeline
from spans_clipfsar import split_span
from support_set_clipfsar import SupportSet
from video_clipfsar import VideoReadError, video_times

FILES = Path(__file__).parent / "labelling_tools"
FPS = 25  # of the tiny videos, which have 12 frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """`a.mp4` and `clips/b.mp4`."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "clips").mkdir()
    write_video(folder / "a.mp4", (230, 30, 30), seed=0)
    write_video(folder / "clips" / "b.mp4", (20, 20, 160), seed=1)
    return folder


def spans(clips, fps: float = FPS) -> list[tuple]:
    """Name of the video, first frame, frame after the last, and class of each clip."""
    found = []
    for clip in clips:
        path, span = split_span(clip.path)
        frames = () if span is None else (round(span.start_seconds * fps, 3), round(span.end_seconds * fps, 3))
        found.append((path.rsplit("/", 1)[-1], *frames, clip.class_name))
    return found


# --- reading ----------------------------------------------------------------------------------------------------------


def test_label_studio_timelines_and_choices_become_clips(videos):
    left_out = LeftOut()
    clips = read_labelled_clips(FILES / "label_studio.json", videos, left_out=left_out)
    assert spans(clips) == [
        ("a.mp4", 0, 6, "opening a door"),  # frames 1 to 6
        ("a.mp4", 6, 12, "closing a door"),
        ("b.mp4", 5, 10, "opening a door"),  # frames 11 to 20 at the task's 50 per second
        ("d.mp4", "closing a door"),  # the ground truth
    ]
    assert [clip.path.partition("#")[0] for clip in clips] == [
        *([str(videos / "a.mp4")] * 2),
        *(str(videos / "clips" / "b.mp4"), "https://example.org/d.mp4"),
    ]
    assert dict(left_out.labels) == {
        "skipped (cancelled) annotations": 1,
        "results of type 'videorectangle'": 1,
        "regions with several labels": 1,
        "tasks without a label": 1,
        "tasks whose annotators disagree": 1,
    }
    assert dict(left_out.notes) == {"frames counted at the video's own rate (--label_fps sets another), labels": 2}
    assert str(left_out).startswith("left out: skipped (cancelled) annotations (1), results of type")


def test_annotators_who_mark_the_same_parts_in_another_order_agree(videos, tmp_path):
    def region(start, end, name):
        value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [name]}
        return {"from_name": "label", "type": "timelinelabels", "value": value}

    one, other = region(1, 4, "waving"), region(5, 8, "sitting")
    task = {"id": 1, "data": {"video": "a.mp4"}, "annotations": [{"result": [one, other]}, {"result": [other, one]}]}
    (tmp_path / "labels.json").write_text(json.dumps([task]))
    clips = read_labelled_clips(tmp_path / "labels.json", videos)
    assert spans(clips) == [("a.mp4", 0, 4, "waving"), ("a.mp4", 4, 8, "sitting")]


def test_label_studio_frames_are_counted_at_a_given_rate(videos):
    clips = read_labelled_clips(FILES / "label_studio.json", videos, label_fps=12.5)
    assert spans(clips)[:3] == [
        ("a.mp4", 0, 12, "opening a door"),
        ("a.mp4", 12, 24, "closing a door"),
        ("b.mp4", 20, 40, "opening a door"),
    ]


def test_label_studio_json_min_gives_the_same_clips(videos):
    clips = read_labelled_clips(FILES / "label_studio_min.json", videos)
    assert spans(clips) == [("a.mp4", 0, 6, "opening a door"), ("a.mp4", 6, 12, "closing a door")]


def studio_task(number: int | None, *results: dict, **fields) -> dict:
    """A task with one annotation; `fields` are those of the task."""
    named = {} if number is None else {"id": number}
    return {**named, "data": {"video": "a.mp4", "fps": 25}, "annotations": [{"result": list(results)}], **fields}


def choice(*names: str, tag: str = "label") -> dict:
    return {"from_name": tag, "type": "choices", "value": {"choices": list(names)}}


def timeline(name: str, *ranges: tuple, tag: str = "label") -> dict:
    spans = [{"start": start, "end": end} for start, end in ranges]
    return {"from_name": tag, "type": "timelinelabels", "value": {"ranges": spans, "timelinelabels": [name]}}


def studio_labels(folder: Path, tasks, left_out: LeftOut | None = None, **options) -> list[tuple]:
    """Video, class and frames of each label of a file called `tasks.json`."""
    (folder / "tasks.json").write_text(json.dumps(tasks))
    labels = read_label_studio(folder / "tasks.json", left_out=left_out, **options)
    return [(label.video.removeprefix(f"{folder}/"), label.class_name, label.frames) for label in labels]


def test_label_studio_regions_have_any_number_of_ranges_and_one_name(tmp_path):
    left_out = LeftOut()
    regions = timeline(" waving ", (0, 0), (3, 3), (5, 7.0)), choice(" "), choice(), timeline("waving", (3, 3))
    assert studio_labels(tmp_path, [studio_task(1, *regions)], left_out) == [
        ("a.mp4", "waving", (0, 1)),  # some versions count from 0
        ("a.mp4", "waving", (2, 3)),
        ("a.mp4", "waving", (4, 7)),
    ]
    assert left_out.labels == {"regions without a label": 2}
    assert left_out.notes == {}


def test_annotators_who_name_no_class_do_not_disagree_and_skipped_ones_do_not_count(tmp_path):
    wrong, none = {"was_cancelled": True, "result": [choice("sitting")]}, {"result": []}
    boxes = {"result": [{"from_name": "label2", "type": "rectangle", "value": {}}]}
    right = {"was_cancelled": False, "result": [choice("waving")]}
    left_out = LeftOut()
    tasks = [studio_task(7, annotations=[none, right, wrong, boxes, right]), studio_task(8, annotations=[wrong])]
    assert studio_labels(tmp_path, tasks, left_out) == [("a.mp4", "waving", None)]
    assert left_out.labels == {
        "skipped (cancelled) annotations": 2,
        "results of type 'rectangle'": 1,
        "tasks without a label": 1,
    }
    without = {**studio_task(9), "annotations": None, "predictions": [{"result": [choice("waving")]}]}
    for task in (without, without | {"annotations": [none]}):
        left_out = LeftOut()
        assert studio_labels(tmp_path, [studio_task(1, choice("x")), task], left_out) == [("a.mp4", "x", None)]
        kind = "without a label" if task["annotations"] else "with predictions alone, which nobody has accepted"
        assert left_out.labels == {f"tasks {kind}": 1}


def test_a_file_of_label_studio_may_hold_one_task_or_name_its_fields_and_tag_otherwise(tmp_path):
    task = studio_task(None, choice("waving", tag="act"), choice("left", tag="side"), choice("x", tag="act"))
    task["data"] = {"camera": "c.mp4?X", "left": "a.MP4?part=1", "fps": None, "note": "mp4"}
    with pytest.raises(ValueError, match=r"no labels of a tag 'label'; it has those of 'act', 'side'\. Name the right"):
        studio_labels(tmp_path, task)
    with pytest.raises(ValueError, match=r"no labels of a tag 'acts'; it has those of 'act'\. Name the right one with"):
        studio_labels(tmp_path, studio_task(1, choice("waving", tag="act")), label_column="acts")
    message = r"tasks\.json, task number 1: there is no field 'video'; there are camera, left, fps, note\."
    with pytest.raises(ValueError, match=message + " Name the field of the videos with --video_column\\.$"):
        studio_labels(tmp_path, task, label_column="act")
    with pytest.raises(ValueError, match=r"no field 'Camera'; .* with --video_column camera\.$"):
        studio_labels(tmp_path, task, label_column="act", video_column="Camera")
    found = studio_labels(tmp_path, task, label_column="act", video_column="left")
    assert found == [("a.MP4?part=1", "waving", None), ("a.MP4?part=1", "x", None)]
    del task["data"]["left"]
    (tmp_path / "c.mp4?X").touch()
    assert studio_labels(tmp_path, task, label_column="side") == [("c.mp4?X", "left", None)]
    with pytest.raises(ValueError, match="no field 'clip'"):
        studio_labels(tmp_path, task, label_column="side", video_column="clip")
    assert studio_labels(tmp_path, studio_task(1, choice("waving", tag="act"))) == [("a.mp4", "waving", None)]


def test_json_min_has_one_label_or_several_in_a_field(tmp_path):
    regions = [region["value"] for region in (timeline("x", (1, 2)), timeline("y", (3, 5)))]
    tasks = [
        {"id": 1, "video": " a.mp4 ", "label": regions, "fps": "25", "boxes": [{"sequence": []}, 7]},
        {"id": 2, "video": "b.mp4", "label": choice("z")["value"], "other": "w", "fps": 25.0},
    ]
    left_out = LeftOut()
    assert studio_labels(tmp_path, tasks, left_out) == [
        ("a.mp4", "x", (0, 2)),
        ("a.mp4", "y", (2, 5)),
        ("b.mp4", "z", None),
    ]
    assert (left_out.labels, left_out.notes) == ({}, {})


def test_a_choice_in_json_min_needs_the_name_of_its_field(videos, tmp_path):
    tasks = [{"id": 1, "video": "a.mp4", "action": "waving"}, {"id": 2, "video": "clips/b.mp4", "action": "sitting"}]
    (tmp_path / "min.json").write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=r"no labels to use \(left out: tasks without a label \(2\)\).* --label_col"):
        labelled_clips(tmp_path / "min.json", videos)
    assert labelled_clips(tmp_path / "min.json", videos, label_column="action") == {
        "waving": [str(videos / "a.mp4")],
        "sitting": [str(videos / "clips" / "b.mp4")],
    }


def test_cvat_tracks_are_clips_where_they_are_not_outside(videos):
    left_out = LeftOut()
    clips = read_labelled_clips(FILES / "cvat_video.xml", videos, left_out=left_out)
    assert spans(clips) == [
        ("a.mp4", 0, 4, "opening a door"),
        ("a.mp4", 8, 12, "opening a door"),
        ("a.mp4", 3, 6, "closing a door"),
    ]
    assert dict(left_out.labels) == {"tracks that are outside in all frames": 1}
    assert dict(left_out.notes) == {"clips that overlap one of another class": 1}


def test_cvat_tags_of_successive_frames_are_a_clip(videos):
    left_out = LeftOut()
    labels = read_cvat(FILES / "cvat_images.xml", VideoFolder(videos), left_out)
    assert [(label.class_name, label.frames) for label in labels] == [
        ("waving", (0, 4)),  # every second frame
        ("waving", (6, 8)),
        ("closing a door", (6, 10)),
    ]
    assert {label.video for label in labels} == {str(videos / "a.mp4")}  # found by the task's name
    assert dict(left_out.labels) == {"shapes on single frames": 1}


def test_frames_of_a_cvat_project_count_from_the_end_of_the_task_before(videos):
    labels = read_cvat(FILES / "cvat_project.xml", VideoFolder(videos))
    assert [(Path(label.video).name, label.class_name, label.frames) for label in labels] == [
        ("a.mp4", "opening a door", (0, 6)),
        ("b.mp4", "closing a door", (2, 6)),
    ]


def test_a_cvat_task_begins_after_the_first_frames_that_the_one_before_leaves_out(videos, tmp_path):
    third = """<task><id>9</id><size>3</size><subset>default</subset><start_frame>1</start_frame>
        <source>c.mp4</source></task></tasks>"""
    track = """<track label="waving" task_id="9"><box frame="25" outside="0"/><box frame="27" outside="1"/></track>
    </annotations>"""
    text = (FILES / "cvat_project.xml").read_text().replace("</tasks>", third).replace("</annotations>", track)
    (tmp_path / "project.xml").write_text(text)
    labels = read_cvat(tmp_path / "project.xml", VideoFolder(videos))
    # 12 frames of the first task; 2 before the second, and 5 with a step of 2
    assert [(label.class_name, label.frames) for label in labels][-1] == ("waving", (25 - 24, 27 - 24))
    assert len(labels) == 3


def cvat_labels(folder: Path, text: str, left_out: LeftOut | None = None) -> list[tuple]:
    """Video, class and frames of each label of a file called `clips.xml`."""
    (folder / "clips.xml").write_text(f"<annotations>{text}</annotations>")
    labels = read_cvat(folder / "clips.xml", left_out=left_out)
    return [(Path(label.video).name, label.class_name, label.frames) for label in labels]


def cvat_track(name: str, *frames: tuple[int, int], shape: str = "box", number: str = "") -> str:
    """A track with shapes of (frame, whether it is outside)."""
    shapes = "".join(f'<{shape} frame="{frame}" outside="{outside}"/>' for frame, outside in frames)
    task_of = f' task_id="{number}"' if number else ""
    return f'<track label=" {name} "{task_of}>{shapes}<attribute frame="99"/></track>'


@pytest.mark.parametrize("shape", ["box", "polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton"])
def test_cvat_tracks_may_be_of_any_shape_and_in_any_order_of_frames(tmp_path, shape):
    track = cvat_track("waving", (9, 0), (2, 0), (4, 1), (3, 0), (5, 1), (7, 1), shape=shape)
    assert cvat_labels(tmp_path, track) == [("clips", "waving", (2, 4)), ("clips", "waving", (9, 10))]


def test_the_last_frame_of_a_cvat_track_counts_as_many_as_the_task_steps(tmp_path):
    meta = "<meta><task><frame_filter> step = 3 </frame_filter></task></meta>"
    assert cvat_labels(tmp_path, meta + cvat_track("waving", (3, 0), (6, 0))) == [("clips", "waving", (3, 9))]
    assert cvat_labels(tmp_path, cvat_track("x", (10**9, 0))) == [("clips", "x", (10**9, 10**9 + 1))]
    meta = "<meta><task><frame_filter>step=0</frame_filter></task></meta>"
    assert cvat_labels(tmp_path, meta + cvat_track("waving", (3, 0), (6, 0))) == [("clips", "waving", (3, 7))]


def test_a_skeleton_of_cvat_is_there_while_one_of_its_points_is(tmp_path):
    def skeleton(frame, *outside):
        points = "".join(f'<points outside="{one}"/>' for one in outside)
        return f'<skeleton frame="{frame}" outside="0">{points}</skeleton>'

    shapes = skeleton(1, 0, 1) + skeleton(2, 1, 0) + skeleton(4, 1, 1)
    assert cvat_labels(tmp_path, f'<track label="x">{shapes}</track>') == [("clips", "x", (1, 4))]
    box = '<box frame="1" outside="1"><points outside="0"/></box>'
    left_out = LeftOut()
    with pytest.raises(ValueError, match=r"\(left out: tracks that are outside in all frames \(2\), tasks without a"):
        cvat_labels(tmp_path, f'<track label="x">{box}</track><track label="y"/>', left_out)


def test_a_cvat_tag_that_a_frame_has_twice_counts_once_and_frames_may_come_in_any_order(tmp_path):
    frames = {4: "ab", 2: "a", 3: "aa", 7: "b"}
    tags = {frame: "".join(f'<tag label="{name}"/>' for name in names) for frame, names in frames.items()}
    images = "".join(f'<image id="{frame}">{tags[frame]}<mask/><box/><attribute/></image>' for frame in frames)
    left_out = LeftOut()
    assert cvat_labels(tmp_path, images, left_out) == [
        ("clips", "a", (2, 5)),
        ("clips", "b", (4, 5)),
        ("clips", "b", (7, 8)),
    ]
    assert left_out.labels == {"shapes on single frames": 8}


def test_tasks_of_each_subset_of_a_cvat_project_count_from_zero(tmp_path):
    tasks = [("3", "train", 10, 0), ("5", "test", 4, 1), ("8", "train", 6, 0), ("9", "test", 2, 0)]
    meta = "".join(
        f"<task><id>{number}</id><name>v{number}</name><subset>{subset}</subset><size>{size}</size>"
        f"<start_frame>{start}</start_frame></task>"
        for number, subset, size, start in tasks
    )
    meta, left_out = f"<meta><project><tasks>{meta}</tasks></project></meta>", LeftOut()
    tracks = "".join(cvat_track("x", (12, 0), (14, 1), number=number) for number in ("3", "5", "8", "9"))
    found = cvat_labels(tmp_path, meta + tracks, left_out)
    assert found == [("v3", "x", (12, 14)), ("v5", "x", (12, 14)), ("v8", "x", (2, 4)), ("v9", "x", (7, 9))]
    assert left_out.labels == {}
    with pytest.raises(ValueError, match=r"clips\.xml, task 8: frame 9 of a <box> is before the task's first frame\."):
        cvat_labels(tmp_path, meta + cvat_track("x", (9, 0), number="8"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("<source> a.mp4 </source><name>b.mp4</name>", "a.mp4"),
        ("<source>gone.mp4</source><name>b.mp4</name>", "b.mp4"),
        ("<source>gone.mp4</source><name>nowhere</name>", "gone.mp4"),
        ("<source> </source><name>nowhere</name>", "nowhere"),
        ("", "clips"),
    ],
)
def test_the_video_of_a_cvat_task_is_the_first_that_is_there_else_the_first_named(tmp_path, names, expected):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    track = cvat_track("x", (0, 0), number="4")
    assert cvat_labels(tmp_path, f"<meta><task><id>4</id>{names}</task></meta>{track}") == [(expected, "x", (0, 1))]


def test_an_export_of_a_cvat_job_names_its_video_beside_it(tmp_path):
    (tmp_path / "b.mp4").touch()
    meta = "<meta><job><id> 7 </id><name>a</name><frame_filter>step=2</frame_filter></job>"
    track = cvat_track("x", (4, 0), number="7")
    found = cvat_labels(tmp_path, f"{meta}<source>b.mp4</source></meta>{track}")
    assert found == [("b.mp4", "x", (4, 6))]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_may_have_parts_of_videos(videos, tmp_path, suffix):
    rows = [("a.mp4", "opening", 0.2, 0.4), ("a.mp4", "closing", 0.4, ""), ("clips/b.mp4", "closing", "", "")]
    rows.append(("clips/b.mp4", "opening", "", 0.3))
    columns = ("path", "label", "start_seconds", "end_seconds")
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    if suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    (tmp_path / f"labels{suffix}").write_text("\n".join(lines))
    assert labelled_clips(tmp_path / f"labels{suffix}", videos) == {
        "opening": [f"{videos / 'a.mp4'}#t=0.2,0.4", f"{videos / 'clips' / 'b.mp4'}#t=0,0.3"],
        "closing": [f"{videos / 'a.mp4'}#t=0.4", str(videos / "clips" / "b.mp4")],
    }


@pytest.mark.parametrize(("start", "end"), [("0.4", "0.2"), ("x", "1"), ("-1", "2"), ("nan", "2"), ("0", "inf")])
def test_impossible_times_in_a_table_are_refused_with_the_line(tmp_path, start, end):
    (tmp_path / "labels.csv").write_text(f"path,label,start_seconds,end_seconds\na.mp4,x,{start},{end}\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 2: start_seconds .* are no part of a video: give seconds"):
        labelled_clips(tmp_path / "labels.csv")


def test_a_clip_with_two_labels_is_left_out_and_equal_labels_count_once(videos):
    video, left_out = str(videos / "a.mp4"), LeftOut()
    label = read_cvat(FILES / "cvat_video.xml", VideoFolder(videos))[0]
    other = type(label)(video, "waving", "elsewhere", (6, 9))
    twice = type(label)(video, "sitting", "elsewhere", (6, 9))
    assert spans(clips_of([label, label, other, twice], left_out)) == [("a.mp4", 0, 4, "opening a door")]
    assert dict(left_out.labels) == {"clips with several labels": 1}


def test_options_of_the_program_about_labels_all_reach_their_reader(videos, times, tmp_path):
    tasks = [
        studio_task(1, timeline("waving", (1, 2), tag="act"), choice("x"), data={"clip": "a.mp4", "video": 5}),
        studio_task(2, timeline("sitting", (1, 3), tag="act"), data={"clip": "b.mp4", "fps": 1}),
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    given = {"source": str(tmp_path / "tasks.json"), "video_root": str(videos), "output_dir": "data"}
    given |= {"video_column": "clip", "label_column": "act"}
    arguments = PrepareArguments(**given, label_fps=12.5)
    left_out = LeftOut()
    found = listed_clips(arguments, left_out)
    assert list(found) == ["all"]
    assert spans(found["all"]) == [("a.mp4", 0, 4, "waving"), ("b.mp4", 0, 6, "sitting")]
    slow = PrepareArguments(**given, seconds_per_video=7.5)  # no video is known to `times`
    with pytest.raises(ValueError, match=r"task 1: Cannot read video .*a\.mp4"):
        listed_clips(slow)
    found = listed_clips(dataclasses.replace(slow, skip_bad_videos=True), left_out)
    assert [clip.class_name for clip in found["all"]] == ["sitting"]
    assert left_out.labels == {"labels of parts of unreadable videos": 1}
    assert times.asked == [(str(videos / "a.mp4"), 7.5)] * 2


def test_columns_of_a_table_of_labels_may_have_other_names(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label,action\na.mp4,1,waving\n")
    assert labelled_clips(tmp_path / "labels.csv", label_column="action") == {"waving": [str(tmp_path / "a.mp4")]}
    assert labelled_clips(tmp_path / "labels.csv") == {"1": [str(tmp_path / "a.mp4")]}


def test_what_to_know_about_clips_is_counted_by_class_and_video():
    parts = [
        *(("a", "x", 10, 20), ("a", "x", 0, 5), ("a", "x", 2, 3)),  # the last one: in the second, and one frame
        *(("a", "x", 4, 9), ("a", "y", 5, 6), ("a", "y", 20, 30), ("a", "x", 29, 31)),  # in one of x, of x, none, of y
        *(("b", "x", 0, 9), ("b", "y", 9, 10), ("c", "x", 1, 3)),
    ]
    labels = [Label(f"{video}.mp4", name, "here", (start, stop), 10.0) for video, name, start, stop in parts]
    left_out = LeftOut()
    found = clips_of([*labels, Label("a.mp4", "x", "here")], left_out)
    assert spans(found, fps=10) == [*((f"{video}.mp4", start, stop, name) for video, name, start, stop in parts),
                                    ("a.mp4", "x")]  # fmt: skip
    assert left_out.notes == {
        "clips of one frame": 3,
        "clips that overlap one of their class": 2,
        "clips that overlap one of another class": 2,
    }
    assert left_out.labels == {}


class _Times:
    """Videos of 12 frames: one per second, none known, or at times of their own."""

    videos = {
        "steady.mp4": VideoTimes.at_rate(12, 2.0),
        "still": VideoTimes(12),
        "varying.mp4": VideoTimes(3, 2.0, np.array([5.0, 5.1, 6.2]), 1.5),
    }

    def __init__(self):
        self.asked = []

    def __call__(self, video, seconds):
        self.asked.append((video, seconds))
        if video not in self.videos:
            raise VideoReadError(f"Cannot read video {video!r}: it is gone.")
        return self.videos[video]


@pytest.fixture
def times(monkeypatch):
    """Times of videos that are nowhere."""
    known = _Times()
    monkeypatch.setattr("clipfsar.data.labels.video_times", known)
    return known


@pytest.mark.parametrize(
    ("video", "frames", "expected"),
    [
        ("steady.mp4", (3, 12), "steady.mp4#t=1.5,6"),
        ("steady.mp4", (3, 14), "steady.mp4#t=1.5,6"),  # tools that round the length up
        ("steady.mp4", (3, 15), "'x' ends at frame 15, but steady.mp4 has 12 frames"),
        ("steady.mp4", (12, 13), "'x' begins at frame 12, after the end of steady.mp4"),
        ("varying.mp4", (1, 2), "varying.mp4#t=0.1,1.2"),
        ("varying.mp4", (0, 3), "varying.mp4#t=0,1.5"),
        ("still", (1, 2), "labels.xml: still has no frame rate, so its frames have no times. Give --label_fps."),
        ("gone.mp4", (1, 2), "labels.xml: Cannot read video 'gone.mp4': it is gone. Its folder is an option, --vi"),
    ],
)
def test_frames_of_the_file_become_seconds(times, video, frames, expected):
    label = Label(video, "x", "labels.xml", frames)
    if "#t=" in expected:
        assert [clip.path for clip in clips_of([label], LeftOut())] == [expected]
    else:
        with pytest.raises(ValueError, match=re.escape(expected)):
            clips_of([label], LeftOut())


def test_a_video_is_opened_once_for_all_its_labels_and_never_where_rates_are_known(times):
    labels = [Label(name, "x", "here", (start, start + 1)) for name in ("steady.mp4", "gone.mp4") for start in range(3)]
    labels += [Label("other.mp4", "x", "here", (0, 1), 2.0), Label("another.mp4", "x", "here")]
    left_out = LeftOut()
    assert len(clips_of(labels, left_out, skip_unreadable=True, seconds_per_video=7.5)) == 5
    assert times.asked == [("steady.mp4", 7.5), ("gone.mp4", 7.5)]
    assert left_out.labels == {"labels of parts of unreadable videos": 3}


def test_a_folder_of_exports_is_read_whole(videos, tmp_path):
    shutil.copy(FILES / "cvat_video.xml", tmp_path)
    shutil.copy(FILES / "label_studio_min.json", tmp_path)
    assert is_labels(tmp_path)
    (tmp_path / ".hidden.json").write_text("[")
    assert len(read_labelled_clips(tmp_path, videos)) == 5
    shutil.copy(videos / "a.mp4", tmp_path / ".a.mp4")
    for other in ("opening", "notes.txt", "state.json", "dataset_info.json"):
        assert is_labels(tmp_path)
        (tmp_path / other).mkdir() if other == "opening" else (tmp_path / other).touch()
        assert not is_labels(tmp_path)
        (tmp_path / other).rmdir() if other == "opening" else (tmp_path / other).unlink()
    (tmp_path / "empty").mkdir()
    assert not is_labels(tmp_path / "empty")
    assert is_labels(Path("LABELS.XML"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.mp4", "a.mp4"),
        ("/data/upload/7/1a2b3c4d-a.mp4", "a.mp4"),
        ("http://localhost:8080/data/upload/7/1a2b3c4d-a.mp4", "a.mp4"),
        ("/data/local-files/?d=clips%2Fb.mp4", "clips/b.mp4"),
        ("/somewhere/else/a.mp4", "a.mp4"),
        ("C:\\videos\\a.mp4", "a.mp4"),
        ("a", "a.mp4"),  # the name of a task
        ("b.mp4", "clips/b.mp4"),
        ("missing.mp4", "missing.mp4"),
        ("other-a.mp4", "other-a.mp4"),  # the eight digits of an upload are not in front
        ("clips/swimming-a.mp4", "swimming-a.mp4"),
        ("/data/upload/7/1A2B3C4D-a.mp4", "1A2B3C4D-a.mp4"),
        ("1a2b3c4d-1a2b3c4d-a.mp4", "1a2b3c4d-1a2b3c4d-a.mp4"),
        ("~nobody/missing.mp4", "missing.mp4"),
        (f"{300 * 'm'}.mp4", f"{300 * 'm'}.mp4"),
    ],
)
def test_videos_are_found_by_what_a_tool_calls_them(videos, name, expected):
    assert VideoFolder(videos).find(name) == str(videos / expected)


def test_a_name_of_several_videos_is_refused(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"a\.mp4 is the name of 2 videos below .*: rename one of them, or name its"):
        VideoFolder(tmp_path).find("a.mp4")
    assert VideoFolder(tmp_path).find("y/a.mp4") == str(tmp_path / "y" / "a.mp4")


def test_a_task_of_cvat_without_a_source_is_found_by_its_name_or_that_of_its_file(videos, tmp_path):
    text = (FILES / "cvat_images.xml").read_text()
    (tmp_path / "a.xml").write_text(text.replace("<name>a</name>", "<name>doors, first part</name>"))
    assert {label.video for label in read_cvat(tmp_path / "a.xml", VideoFolder(videos))} == {str(videos / "a.mp4")}


def test_addresses_of_other_servers_stay(videos):
    assert VideoFolder(videos).find("http://[/a.mp4") == "http://[/a.mp4"
    assert VideoFolder(videos).find("s3://bucket/a.mp4") == "s3://bucket/a.mp4"


# --- files that are not as they should be -----------------------------------------------------------------------------

TIMELINE = {"from_name": "label", "type": "timelinelabels"}


def task(**changes) -> dict:
    value = {"ranges": [{"start": 1, "end": 5}], "timelinelabels": ["waving"]} | changes.pop("value", {})
    result = TIMELINE | {"value": value}
    return {"id": 9, "data": {"video": "a.mp4"}, "annotations": [{"result": [result]}]} | changes


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ([], r"is \[\], but a list of tasks is needed"),
        ("text", "is 'text', but a list of tasks is needed"),
        ([task(), 1], "task number 2, is no object"),
        ("x" * 58, f"is '{'x' * 58}', but a list of tasks"),
        ("x" * 59, rf"is '{'x' * 56}\.\.\., but a list of tasks"),
        ([task(data={})], r"task 9: there is no field 'video'"),
        ([task(data={"video": 5})], "task 9: video is 5, but the path or address of a video is needed"),
        ([task(data={"video": "a.mp4", "fps": "fast"})], "task 9: fps is 'fast', but a frame rate above 0"),
        ([task(data={"video": " "})], "task 9: video is ' ', but the path or address"),
        ([task(data={"video": "a\0.mp4"})], "task 9: video is .*, but the path or address"),
        ([task(data={"video": "a.mp4", "fps": -1})], "task 9: fps is -1"),
        ([task(data={"video": "a.mp4", "fps": 0})], "task 9: fps is 0, but a frame rate above 0 is needed"),
        ([task(data={"video": "a.mp4", "fps": 1e6})], "task 9: fps is 1000000.0, but"),
        ([task(data={"video": "a.mp4", "fps": [25]})], r"task 9: fps is \[25\], but"),
        ([task(annotations={"result": []})], "task 9: annotations is .*, but a list of objects is needed"),
        ([task(annotations=[{"result": "x"}])], "task 9: result is 'x', but a list of objects is needed"),
        ([task(annotations=[{"result": [{"from_name": "label"}]}])], "task 9: value of a result is None"),
        ([task(value={"timelinelabels": "waving"})], "task 9: the label is 'waving', but a list of names"),
        ([task(value={"timelinelabels": [5]})], r"task 9: the label is \[5\]"),
        ([task(value={"ranges": [{"start": 5, "end": 3}]})], "task 9: ranges is .*whole numbers of frames"),
        ([task(value={"ranges": [{"start": 1.5, "end": 3}]})], "task 9: ranges is"),
        ([task(value={"ranges": [{"start": -1, "end": 3}]})], "task 9: ranges is"),
        ([task(value={"ranges": [{"start": 1}]})], "task 9: ranges is .*a start and an end, whole numbers"),
        ([task(value={"ranges": [{"start": True, "end": 3}]})], "task 9: ranges is"),
        ([task(value={"ranges": [{"start": "1", "end": 3}]})], "task 9: ranges is"),
        ([task(value={"ranges": [{"start": 1, "end": 1e9}]})], "task 9: ranges is"),
        ([task(value={"ranges": [None]})], r"task 9: ranges is \[None\], but a list of objects is needed"),
        ([task(value={"ranges": [{"start": 1, "end": 1e300}]})], "task 9: ranges is"),
        ([task(value={"ranges": [{"start": 1, "end": float("nan")}]})], "task 9: ranges is"),
        ([task(value={"ranges": 7})], "task 9: ranges is 7, but a list of objects"),
        ([task(value={"ranges": [{"start": 1, "end": 500}]})], r"ends at frame 500, but .* 12 frames.* --label_fps"),
        ([task(value={"ranges": [{"start": 20, "end": 30}]})], r"begins at frame 19, after the end of"),
        ([task(data={"video": "gone.mp4"})], r"task 9: Cannot read video .*gone\.mp4.* --video_root"),
        ([task(annotations=[{"result": [{"from_name": name, "value": {"choices": ["x"]}}]} for name in "ab"])],
         "no labels of a tag 'label'; it has those of 'a', 'b'"),
    ],
)  # fmt: skip
def test_label_studio_files_of_another_form_are_refused_with_task_and_field(videos, tmp_path, tasks, reason):
    (tmp_path / "labels.json").write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=rf"labels\.json.* ?{reason}"):
        labelled_clips(tmp_path / "labels.json", videos)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "1" * 5000 + "]", "labels.json is not read: it has a number of too many digits"),
    ],
)
def test_files_that_are_not_json_are_refused(tmp_path, text, reason):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        labelled_clips(tmp_path / "labels.json")


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><annotations>&b;</annotations>'
EXTERNAL = '<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotations/>'
TRACK = '<annotations><track label="{}"><box frame="{}" outside="0"/></track></annotations>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ENTITIES, "it has a document type"),
        (EXTERNAL, "it has a document type"),
        ("<annotations>", "is not read as an XML export of CVAT: no element found"),
        ("<annotations>&a;</annotations>", "undefined entity"),
        ("<dataset/>", "begins with <dataset>, but <annotations> is needed"),
        ("<annotations/>", r"has no labels to use \(left out: tasks without a label \(1\)\): export tracks as"),
        (TRACK.format("", 1), "a <track> has no label"),
        ('<annotations><track><box frame="1"/></track></annotations>', "a <track> has no label"),
        (TRACK.format("x", -1), "the frame of a <box> is '-1', but a whole number from 0"),
        (TRACK.format("x", 10**9 + 1), "the frame of a <box> is '1000000001'"),
        (TRACK.format("x", "0" * 11), "the frame of a <box> is"),
        ('<annotations><track label="x"><box/></track></annotations>', "the frame of a <box> is ''"),
        (TRACK.format("x", "9" * 400), "the frame of a <box> is"),
        (TRACK.format("x", "\u0663"), "the frame of a <box> is"),
        ('<annotations><track label="x" task_id="7"/><meta/></annotations>', "belongs to task 7, which <meta>"),
        ('<annotations><meta><task><id>1</id></task><task><id>2</id></task></meta><track label="x"/></annotations>',
         "a <track> belongs to task None, which <meta>"),
        ("<annotations><meta><task><mode>annotation</mode></task></meta></annotations>", "is a task of single images"),
        ("<annotations><meta><task><frame_filter>step=99999999999</frame_filter></task></meta></annotations>",
         "frame_filter is '99999999999'"),
    ],
)  # fmt: skip
def test_cvat_files_of_another_form_are_refused(tmp_path, text, reason):
    (tmp_path / "labels.xml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"labels\.xml.*{reason}") as error:
        labelled_clips(tmp_path / "labels.xml")
    assert "labels.xml, task :" not in str(error.value)  # a task without a number is called by its file


def test_files_above_the_limits_are_refused(tmp_path, monkeypatch):
    for name in ("JSON", "XML"):
        monkeypatch.setenv(f"CLIPFSAR_MAX_{name}_BYTES", "100")
    for name in ("label_studio.json", "cvat_video.xml"):
        with pytest.raises(ValueError, match=r"more than the limit of 100 \(set CLIPFSAR_MAX_"):
            labelled_clips(FILES / name)


def test_parts_of_unreadable_videos_may_be_left_out(videos, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps([task(), task(data={"video": "gone.mp4"})]))
    left_out = LeftOut()
    clips = read_labelled_clips(tmp_path / "labels.json", videos, skip_unreadable=True, left_out=left_out)
    assert spans(clips) == [("a.mp4", 0, 5, "waving")]
    assert dict(left_out.labels) == {"labels of parts of unreadable videos": 1}


# --- writing, and back again ------------------------------------------------------------------------------------------

WINDOWS = [
    {"start_seconds": 0.0, "end_seconds": 0.16, "label": "opening a door", "score": 0.9},
    {"start_seconds": 0.08, "end_seconds": 0.24, "label": "opening a door", "score": 0.6},
    {"start_seconds": 0.16, "end_seconds": 0.32, "label": "none of these", "score": 0.5},
    {"start_seconds": 0.24, "end_seconds": 0.4, "label": "closing <a> & door", "score": 0.7},
    {"start_seconds": 0.32, "end_seconds": 0.48, "label": "closing <a> & door", "score": 0.7},
]
EXPECTED = [("a.mp4", 0, 5, "opening a door"), ("a.mp4", 7, 12, "closing <a> & door")]


def test_windows_that_overlap_become_segments_that_do_not():
    first, second = merge_windows(WINDOWS)
    assert (first.start_seconds, first.end_seconds) == pytest.approx((0, 0.2))
    assert first.score == pytest.approx((0.9 * 0.12 + 0.6 * 0.08) / 0.2)
    assert (second.start_seconds, second.end_seconds) == pytest.approx((0.28, 0.48))
    apart = [{**WINDOWS[0]}, {**WINDOWS[1], "start_seconds": 1.0, "end_seconds": 1.2}]
    assert [(one.start_seconds, one.end_seconds) for one in merge_windows(apart)] == [(0.0, 0.16), (1.0, 1.2)]


@pytest.fixture(scope="module")
def results(videos):
    return [
        {"query": str(videos / "a.mp4"), "windows": WINDOWS},
        {"query": str(videos / "gone.mp4"), "error": "missing"},
    ]


def test_predictions_come_back_from_label_studio_as_the_same_clips(videos, results, tmp_path):
    text = label_studio_text(predicted_videos(results), "clipfsar best", address="/data/local-files/?d={}")
    (written,) = json.loads(text)
    assert written["data"] == {"video": "/data/local-files/?d=a.mp4", "fps": 25.0}
    (prediction,) = written["predictions"]
    assert prediction["model_version"] == "clipfsar best"
    assert prediction["result"][0] == {
        "id": "label-0",
        "from_name": "label",
        "to_name": "video",
        "type": "timelinelabels",
        "score": 0.78,
        "value": {"ranges": [{"start": 1, "end": 5}], "timelinelabels": ["opening a door"]},
    }
    (tmp_path / "tasks.json").write_text(text)
    with pytest.raises(ValueError, match="no labels to use"):  # nobody has accepted them
        read_labelled_clips(tmp_path / "tasks.json", videos)
    assert (
        spans(
            clips_of(read_label_studio(tmp_path / "tasks.json", VideoFolder(videos), use_predictions=True), LeftOut())
        )
        == EXPECTED
    )
    accepted = [{**written, "annotations": [{"result": prediction["result"]}]}]
    (tmp_path / "tasks.json").write_text(json.dumps(accepted))
    assert spans(read_labelled_clips(tmp_path / "tasks.json", videos)) == EXPECTED


def test_predictions_come_back_from_cvat_as_the_same_clips(videos, results, tmp_path):
    (video,) = predicted_videos(results, with_size=True)
    (tmp_path / "a.xml").write_text(cvat_text(video), encoding="utf-8")
    assert spans(read_labelled_clips(tmp_path / "a.xml", videos)) == EXPECTED


CVAT_FILE = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <name>a.mp4</name>
      <size>12</size>
      <mode>interpolation</mode>
      <start_frame>0</start_frame>
      <stop_frame>11</stop_frame>
      <labels>
        <label>
          <name>opening</name>
          <type>any</type>
          <attributes />
        </label>
        <label>
          <name>&lt;é&gt;\\x01</name>
          <type>any</type>
          <attributes />
        </label>
      </labels>
      <original_size>
        <width>48</width>
        <height>32</height>
      </original_size>
      <source>a.mp4</source>
    </task>
  </meta>
  <track id="0" label="opening" source="auto">
    <box frame="2" keyframe="1" outside="0" occluded="0" z_order="0" xtl="0.00" ytl="0.00" xbr="48.00" ybr="32.00" />
    <box frame="4" keyframe="1" outside="0" occluded="0" z_order="0" xtl="0.00" ytl="0.00" xbr="48.00" ybr="32.00" />
    <box frame="5" keyframe="1" outside="1" occluded="0" z_order="0" xtl="0.00" ytl="0.00" xbr="48.00" ybr="32.00" />
  </track>
  <track id="1" label="&lt;é&gt;\\x01" source="auto">
    <box frame="5" keyframe="1" outside="0" occluded="0" z_order="0" xtl="0.00" ytl="0.00" xbr="48.00" ybr="32.00" />
    <box frame="6" keyframe="1" outside="1" occluded="0" z_order="0" xtl="0.00" ytl="0.00" xbr="48.00" ybr="32.00" />
  </track>
  <track id="2" label="opening" source="auto">
    <box frame="10" keyframe="1" outside="0" occluded="0" z_order="0" xtl="0.00" ytl="0.00" xbr="48.00" ybr="32.00" />
    <box frame="11" keyframe="1" outside="0" occluded="0" z_order="0" xtl="0.00" ytl="0.00" xbr="48.00" ybr="32.00" />
  </track>
  <track id="3" label="opening" source="auto">
    <box frame="0" keyframe="1" outside="0" occluded="0" z_order="0" xtl="0.00" ytl="0.00" xbr="48.00" ybr="32.00" />
    <box frame="11" keyframe="1" outside="0" occluded="0" z_order="0" xtl="0.00" ytl="0.00" xbr="48.00" ybr="32.00" />
  </track>
</annotations>
"""


def test_a_file_for_cvat_has_everything_that_cvat_writes():
    parts = [("opening", 0.08, 0.2), ("<é>\x01", 0.2, 0.24), ("opening", 0.4, 0.48), ("opening", None, None)]
    segments = [Segment(name, 0.5, start, end) for name, start, end in parts]
    video = PredictedVideo("clips/a.mp4#t=0,1", segments, VideoTimes.at_rate(12, 25.0), width=48, height=32)
    assert cvat_text(video) == CVAT_FILE


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("می\u200cدود", "می\u200cدود"),  # Persian, with a zero-width non-joiner
        ("走る\u3000人", "走る\u3000人"),
        ("a\xa0b", "a\xa0b"),
        ("\U0001f468\u200d\U0001f373", "\U0001f468\u200d\U0001f373"),
        ("a\x0b\rb\ud800\uffff", "a\\x0b\\rb\\ud800\\uffff"),
    ],
)
def test_names_in_files_for_cvat_are_changed_only_where_xml_forbids_them(tmp_path, name, written):
    video = PredictedVideo(f"{name}.mp4", [Segment(name, 0.5)], VideoTimes.at_rate(12, 25.0), width=48, height=32)
    (tmp_path / "a.xml").write_text(cvat_text(video), encoding="utf-8")
    root = ElementTree.parse(tmp_path / "a.xml").getroot()
    names = [root.findtext("meta/task/labels/label/name"), root.find("track").get("label")]
    assert (names, root.findtext("meta/task/source")) == ([written, written], f"{written}.mp4")
    assert [label.class_name for label in read_cvat(tmp_path / "a.xml")] == [written]


def test_tasks_for_label_studio_have_rates_scores_and_names_as_they_are():
    parts = [Segment("öffnen", 0.1234567, 0.3, None), Segment("zu", 0.5, 0.04, 0.05)]
    whole = [Segment("öffnen", 0.33333333), Segment("zu", 0.5)]
    videos = [
        PredictedVideo("x/{}.mp4#t=0,1", parts, VideoTimes.at_rate(12, 29.97002997)),
        PredictedVideo("x/b.mp4", whole, VideoTimes(5)),
        PredictedVideo("c.mp4", [], VideoTimes.at_rate(5, 100 / 7)),
    ]
    text = label_studio_text(videos, "mine", "action", "s3://videos/{}?name={}")
    assert "öffnen" in text
    assert text.startswith('[\n  {\n    "data": {\n')
    assert text.endswith("]\n")
    named = {"from_name": "action", "to_name": "video"}

    def on_timeline(start: int, end: int, name: str) -> dict:
        value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [name]}
        return {"type": "timelinelabels", "value": value}

    def of_whole(name: str) -> dict:
        return {"type": "choices", "value": {"choices": [name]}}

    results = [
        [
            {"id": "action-0", **named, "score": 0.123457, **on_timeline(10, 12, "öffnen")},
            {"id": "action-1", **named, "score": 0.5, **on_timeline(2, 2, "zu")},
        ],
        [
            {"id": "action-0", **named, "score": 0.333333, **of_whole("öffnen")},
            {"id": "action-1", **named, "score": 0.5, **of_whole("zu")},
        ],
    ]
    assert json.loads(text) == [
        {
            "data": {"video": "s3://videos/{}.mp4?name={}.mp4", "fps": 29.97003},
            "predictions": [{"model_version": "mine", "result": results[0], "score": 0.311728}],
        },
        {
            "data": {"video": "s3://videos/b.mp4?name=b.mp4"},
            "predictions": [{"model_version": "mine", "result": results[1], "score": 0.416667}],
        },
        {
            "data": {"video": "s3://videos/c.mp4?name=c.mp4", "fps": 14.285714},
            "predictions": [{"model_version": "mine", "result": []}],
        },
    ]
    assert json.loads(label_studio_text(videos[:1], "mine"))[0]["data"]["video"] == "x/{}.mp4#t=0,1"


def test_predictions_come_back_from_json_lines_as_the_same_clips(videos, results, tmp_path):
    (tmp_path / "a.jsonl").write_text(as_json_lines(results))
    assert spans(read_labelled_clips(tmp_path / "a.jsonl")) == EXPECTED


def test_classes_of_whole_videos_and_of_parts_come_back(videos, tmp_path):
    answers = [{"label": "waving", "score": 0.8}], [{"label": "none of these", "score": 0.9}]
    names = [f"{videos / 'a.mp4'}#t=0.2,0.4", str(videos / "a.mp4")]
    results = [{"query": name, "answer": answer} for name, answer in zip(names, answers, strict=True)]
    (video,) = predicted_videos(results, with_size=True)
    (tmp_path / "a.xml").write_text(cvat_text(video))
    assert spans(read_labelled_clips(tmp_path / "a.xml", videos)) == [("a.mp4", 5, 10, "waving")]
    results = [{"query": names[1], "answer": answers[0]}]
    (video,) = predicted_videos(results, with_size=True)
    (written,) = json.loads(label_studio_text([video], "x"))
    assert written["predictions"][0]["result"][0]["value"] == {"choices": ["waving"]}
    (tmp_path / "a.xml").write_text(cvat_text(video))
    assert spans(read_labelled_clips(tmp_path / "a.xml", videos)) == [("a.mp4", 0, 12, "waving")]
    (tmp_path / "a.jsonl").write_text(as_json_lines(results))
    assert spans(read_labelled_clips(tmp_path / "a.jsonl")) == [("a.mp4", "waving")]


def test_frames_of_two_rates_are_compared_in_seconds(videos, tmp_path):
    def task(number, start, end, name, fps):
        value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [name]}
        result = [{"from_name": "label", "type": "timelinelabels", "value": value}]
        return {"id": number, "data": {"video": "a.mp4", "fps": fps}, "annotations": [{"result": result}]}

    (tmp_path / "labels.json").write_text(
        json.dumps(
            [
                task(1, 1, 2, "waving", 25.0),  # seconds 0 to 0.08
                task(2, 1, 2, "sitting", 12.5),  # 0 to 0.16: another part with the same frames
                task(3, 1, 4, "standing", 25.0),  # 0 to 0.16: the same part with other frames
            ]
        )
    )
    left_out = LeftOut()
    clips = read_labelled_clips(tmp_path / "labels.json", videos, left_out=left_out)
    assert [(clip.class_name, clip.path.rpartition("#")[2]) for clip in clips] == [("waving", "t=0,0.08")]
    assert left_out.labels == {"clips with several labels": 1}


@pytest.mark.parametrize("fps", [24.0, 30000 / 1001, 60.0])
def test_every_segment_of_frames_comes_back_at_any_rate(tmp_path, fps):
    times = VideoTimes.at_rate(40, fps)
    wanted = [(0, 1), (1, 7), (9, 20), (20, 40)]
    segments = [
        Segment(f"c{number}", 0.5, round(start / fps, 3), round(stop / fps, 3))
        for number, (start, stop) in enumerate(wanted)
    ]
    video = PredictedVideo("a.mp4", segments, times, 32, 32)
    (tmp_path / "tasks.json").write_text(label_studio_text([video], "x"))
    labels = read_label_studio(tmp_path / "tasks.json", use_predictions=True)
    assert [label.frames for label in labels] == wanted
    (tmp_path / "a.xml").write_text(cvat_text(video))
    assert [label.frames for label in read_cvat(tmp_path / "a.xml")] == wanted


def test_a_video_without_a_rate_has_no_timeline():
    video = PredictedVideo("frames", [Segment("x", 0.5, 0.0, 1.0)], VideoTimes(40), 32, 32)
    with pytest.raises(ValueError, match="has no frame rate, which Label Studio's timeline needs: give --fps"):
        label_studio_text([video], "x")
    with pytest.raises(ValueError, match="cannot be written for CVAT: it does not say its frames per second"):
        cvat_text(video)


def test_a_video_that_is_given_twice_is_labelled_once(videos, monkeypatch):
    monkeypatch.chdir(videos)
    answer = [{"label": "waving", "score": 0.8}]
    results = [{"query": name, "answer": answer} for name in ("a.mp4", str(videos / "a.mp4"), "a.mp4#t=0.2,0.4")]
    (video,) = predicted_videos(results)
    assert (video.video, video.segments) == (
        "a.mp4",
        [Segment("waving", 0.8, None, None), Segment("waving", 0.8, 0.2, 0.4)],
    )
    assert len(as_json_lines(results).splitlines()) == 2


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_support_set_is_enrolled_from_labels(videos):
    model, processor = tiny_model_and_processor()
    support_set = SupportSet.from_videos(model, processor, labelled_clips(FILES / "cvat_video.xml", videos))
    assert support_set.num_clips == {"opening a door": 2, "closing a door": 1}
    assert support_set.classes["opening a door"].clip_names == ["a.mp4#t=0,0.16", "a.mp4#t=0.32,0.48"]
    assert video_times(f"{videos / 'a.mp4'}#t=0.32,0.48").num_frames == 4


def test_prepare_reads_labels_as_clips(videos, tmp_path, capsys):
    command = ["prepare", "--source", str(FILES / "label_studio.json"), "--video_root", str(videos), "--skip_reading"]
    command += [
        "true",
        "--class_split",
        "1",
        "0",
        "1",
        "--output_dir",
        str(tmp_path / "data"),
        "--skip_bad_videos",
        "true",
    ]
    assert clipfsar(command) == 0
    splits = load_video_splits(str(tmp_path / "data"))
    found = {(Path(row["video"]).name, row["label"]) for rows in splits.values() for row in rows}
    assert ("a.mp4#t=0,0.24", "opening a door") in found
    assert ("a.mp4#t=0.24,0.48", "closing a door") in found
    printed = capsys.readouterr().out
    assert "note: frames counted at the video's own rate (--label_fps sets another), labels: 2." in printed
    assert "left out: skipped (cancelled) annotations (1)" in printed


def test_parts_of_videos_are_not_uploaded_without_their_frames(videos, tmp_path, capsys):
    command = [
        "prepare",
        "--source",
        str(FILES / "cvat_video.xml"),
        "--video_root",
        str(videos),
        "--skip_reading",
        "true",
    ]
    command += ["--class_split", "1", "0", "1", "--output_dir", str(tmp_path / "data"), "--push_to_hub", "me/data"]
    assert clipfsar(command) == 1
    assert "is a part of a video, which --push_to_hub uploads only with --frame_store jpeg" in capsys.readouterr().err


def test_a_frame_store_keeps_the_frames_of_a_part_only(videos):
    kept = read_video((f"{videos / 'a.mp4'}#t=0.2,0.4", FrameStoreSettings("jpeg", frame_size=16)))
    assert (kept.error, FrameArchive(kept.data).num_frames) == (None, 5)
    refused = read_video((f"{videos / 'a.mp4'}#t=0.2,0.4", FrameStoreSettings("file")))
    assert "is a part of a video, which cannot be embedded: use --frame_store jpeg" in refused.error


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    save_with_pipeline(*tiny_model_and_processor(), folder / "model")
    return folder / "model"


def predict(model, videos, *options, query=("a.mp4",)) -> int:
    command = ["predict", "--model", str(model), "--device", "cpu"]
    command += [] if "--video_root" in options else ["--video_root", str(videos)]
    command += ["--support_set", str(FILES / "cvat_video.xml"), "--query", *(str(videos / name) for name in query)]
    return clipfsar([*command, *map(str, options)])


def test_predict_writes_a_file_for_each_task_of_cvat(model, videos, tmp_path, capsys):
    options = ("--window_seconds", 0.2, "--format", "cvat", "--output", tmp_path / "tasks")
    assert predict(model, videos, *options, query=("a.mp4", "clips/b.mp4")) == 0
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == ["a.xml", "b.xml"]
    clips = read_labelled_clips(tmp_path / "tasks", videos)
    assert {clip.class_name for clip in clips} <= {"opening a door", "closing a door"}
    assert sum(stop - start for _, start, stop, _ in spans(clips)) == 24  # all frames of both videos
    assert "--support_set left out: tracks that are outside in all frames (1)" in capsys.readouterr().err
    assert predict(model, videos, "--format", "cvat", query=("a.mp4", "clips/b.mp4")) == 1
    assert "there are 2 queries. Name a folder as --output, for a file per video" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["cvat", "label_studio"])
def test_a_video_that_cannot_be_opened_again_for_a_tool_costs_no_other(
    model, videos, tmp_path, capsys, monkeypatch, output
):
    def gone(video, *rest):
        if video.endswith("a.mp4"):
            raise VideoReadError(f"Cannot read video {video!r}: the download failed (503).")
        return video_times(video, *rest)

    monkeypatch.setattr("clipfsar.inference.preannotations.video_times", gone)
    options = ("--format", output, "--output", tmp_path / "tasks")
    assert predict(model, videos, *options, query=("a.mp4", "clips/b.mp4")) == 3
    names = [path.name for path in (tmp_path / "tasks").iterdir()] if output == "cvat" else []
    names = names or [Path(task["data"]["video"]).name for task in json.loads((tmp_path / "tasks").read_text())]
    assert names == ["b.xml" if output == "cvat" else "b.mp4"]
    said = capsys.readouterr().err
    assert "a.mp4: Cannot read video " in said
    assert "1 of 2 queries could not be read." in said
    assert f"tasks: results of 1 video, {output}\n" in said


def test_a_file_for_cvat_stays_if_its_video_cannot_be_read(model, videos, tmp_path, capsys):
    (tmp_path / "a.xml").write_text("earlier")
    (tmp_path / "empty.mp4").touch()
    assert predict(model, videos, "--output", tmp_path / "a.xml", query=(tmp_path / "empty.mp4",)) == 3
    assert (tmp_path / "a.xml").read_text() == "earlier"
    said = capsys.readouterr().err
    assert f"{tmp_path / 'a.xml'}: results of 0 videos, cvat\n" in said
    assert re.search(r"empty\.mp4: Cannot read video .*: the file is empty.*\n1 of 1 queries could not be read\.", said)


@pytest.mark.parametrize("output", ["cvat", "label_studio"])
def test_frames_without_a_rate_cost_no_other_video_its_labels(videos, tmp_path, output):
    (tmp_path / "frames").mkdir()
    for number in range(4):
        Image.fromarray(np.full((32, 48, 3), 40 * number, np.uint8)).save(tmp_path / "frames" / f"{number}.png")
    results = [{"query": str(path), "windows": WINDOWS[:1]} for path in (tmp_path / "frames", videos / "a.mp4")]
    arguments = PredictArguments(model="m", query=["a"], support_set="s", format=output)
    if output == "cvat":
        assert list(as_cvat(results, arguments)) == ["a.xml"]
    else:
        (task,) = json.loads(as_label_studio(results, arguments))
        assert task["data"]["video"] == str(videos / "a.mp4")
    assert "ive --fps" in results[0]["error"]
    assert "error" not in results[1]


@pytest.mark.parametrize(("ending", "options"), [("json", ("--format", "label_studio")), ("jsonl", ()), ("xml", ())])
def test_predict_writes_labels_that_can_be_read_again(model, videos, tmp_path, ending, options):
    path = tmp_path / f"labels.{ending}"
    assert predict(model, videos, "--output", path, *options) == 0
    if ending == "json":
        labels = read_label_studio(path, VideoFolder(videos), use_predictions=True)
        assert [(Path(label.video).name, label.frames) for label in labels] == [("a.mp4", None)]
        assert json.loads(path.read_text())[0]["predictions"][0]["model_version"] == "clipfsar model"
    else:
        assert [found[:-1] for found in spans(read_labelled_clips(path, videos))] == [
            ("a.mp4",) if ending == "jsonl" else ("a.mp4", 0, 12)
        ]


def test_predictions_are_no_labels_until_somebody_accepts_them(model, videos, tmp_path):
    assert predict(model, videos, "--format", "label_studio", "--output", tmp_path / "tasks.json") == 0
    with pytest.raises(ValueError, match=r"tasks with predictions alone, which nobody has accepted \(1\)"):
        read_label_studio(tmp_path / "tasks.json", VideoFolder(videos))


def test_windows_as_csv_are_a_table_of_parts(model, videos, tmp_path):
    assert predict(model, videos, "--output", tmp_path / "windows.csv", "--window_seconds", 0.2) == 0
    command = ["prepare", "--source", str(tmp_path / "windows.csv"), "--path_column", "query", "--skip_reading", "true"]
    command += ["--class_split", "1", "0", "0", "--output_dir", str(tmp_path / "data")]
    assert clipfsar(command) == 0
    videos_of_rows = [row["video"] for row in load_video_splits(str(tmp_path / "data"))["train"]]
    assert videos_of_rows[0] == f"{videos / 'a.mp4'}#t=0,0.2"


def test_windows_of_a_part_as_csv_are_parts_of_the_whole_video(model, videos, tmp_path):
    options = ("--output", tmp_path / "windows.csv", "--window_seconds", 0.12)
    assert predict(model, videos, *options, query=("a.mp4#t=0.16,0.4",)) == 0
    clips = table_splits(tmp_path / "windows.csv", path_column="query")["all"]
    video = videos / "a.mp4"
    assert [clip.path for clip in clips] == [f"{video}#t=0.16,0.28", f"{video}#t=0.24,0.36", f"{video}#t=0.28,0.4"]


@pytest.mark.parametrize("name", ["=go", "-a", "@a", "+1", "'=go", "''-a", "'a'", "'", "a=b"])
def test_names_in_a_csv_come_back_as_they_were(tmp_path, name):
    (tmp_path / "a.csv").write_text(csv_text(["path", "label"], [{"path": f"{name}.mp4", "label": name}]))
    assert table_splits(tmp_path / "a.csv")["all"] == [Clip(str(tmp_path / f"{name}.mp4"), name)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--video_address", "/data/{}"), "--video_address has no effect without --format label_studio"),
        (("--video_address", "/data/a", "--format", "label_studio"), "with {} for a video's file name"),
        (("--label_fps", "inf"), "--label_fps inf must be a finite number"),
        (("--label_fps", 0), "--label_fps 0.0 must be greater than 0"),
        (("--video_root", "nowhere"), "--video_root nowhere does not exist"),
    ],
)
def test_options_of_labels_that_make_no_sense_are_refused(model, videos, options, reason, capsys):
    assert predict(model, videos, *options) in (1, 2)
    assert re.search(re.escape(reason), capsys.readouterr().err)
