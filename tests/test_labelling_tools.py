"""Labels from Label Studio, CVAT and tables as clips, and predictions for these tools. The files in `labelling_tools/`
are in the forms that the tools document."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tiny_data import tiny_model_and_processor, write_video

from clipfsar.cli import main as clipfsar
from clipfsar.data.clips import LeftOut
from clipfsar.data.cvat import cvat_text, read_cvat
from clipfsar.data.frame_store import FrameStoreSettings, read_video
from clipfsar.data.label_studio import label_studio_text, read_label_studio
from clipfsar.data.labels import PredictedVideo, Segment, VideoFolder, clips_of
from clipfsar.data.sources import is_labels, labelled_clips, read_labelled_clips
from clipfsar.data.splits import load_video_splits
from clipfsar.inference.preannotations import as_json_lines, merge_windows, predicted_videos
from container_clipfsar import VideoTimes
from frame_archive_clipfsar import FrameArchive
from pipeline_clipfsar import save_with_pipeline
from spans_clipfsar import split_span
from support_set_clipfsar import SupportSet
from video_clipfsar import video_times

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


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_may_have_parts_of_videos(videos, tmp_path, suffix):
    rows = [("a.mp4", "opening", 0.2, 0.4), ("a.mp4", "closing", 0.4, ""), ("clips/b.mp4", "closing", "", "")]
    columns = ("path", "label", "start_seconds", "end_seconds")
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    if suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    (tmp_path / f"labels{suffix}").write_text("\n".join(lines))
    assert labelled_clips(tmp_path / f"labels{suffix}", videos) == {
        "opening": [f"{videos / 'a.mp4'}#t=0.2,0.4"],
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


def test_a_folder_of_exports_is_read_whole(videos, tmp_path):
    shutil.copy(FILES / "cvat_video.xml", tmp_path)
    shutil.copy(FILES / "label_studio_min.json", tmp_path)
    assert is_labels(tmp_path)
    assert len(read_labelled_clips(tmp_path, videos)) == 5
    (tmp_path / "opening").mkdir()
    assert not is_labels(tmp_path)


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
        ("other-a.mp4", "other-a.mp4"),  # the eight characters of an upload are not in front
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
        ([1], "task number 1, is no object"),
        ([task(data={})], r"task 9: there is no field 'video'"),
        ([task(data={"video": 5})], "task 9: video is 5, but the path or address of a video is needed"),
        ([task(data={"video": "a.mp4", "fps": "fast"})], "task 9: fps is 'fast', but a frame rate above 0"),
        ([task(data={"video": "a.mp4", "fps": -1})], "task 9: fps is -1"),
        ([task(annotations={"result": []})], "task 9: annotations is .*, but a list of objects is needed"),
        ([task(annotations=[{"result": "x"}])], "task 9: result is 'x', but a list of objects is needed"),
        ([task(annotations=[{"result": [{"from_name": "label"}]}])], "task 9: value of a result is None"),
        ([task(value={"timelinelabels": "waving"})], "task 9: the label is 'waving', but a list of names"),
        ([task(value={"timelinelabels": [5]})], r"task 9: the label is \[5\]"),
        ([task(value={"ranges": [{"start": 5, "end": 3}]})], "task 9: ranges is .*whole numbers of frames"),
        ([task(value={"ranges": [{"start": 1.5, "end": 3}]})], "task 9: ranges is"),
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


@pytest.mark.parametrize(("text", "reason"), [("{", "is not JSON"), ("[" * 100_000, "nested too deeply")])
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
        (TRACK.format("x", -1), "the frame of a <box> is '-1', but a whole number from 0"),
        (TRACK.format("x", "9" * 400), "the frame of a <box> is"),
        (TRACK.format("x", "\u0663"), "the frame of a <box> is"),
        ('<annotations><track label="x" task_id="7"/><meta/></annotations>', "belongs to task 7, which <meta>"),
        ("<annotations><meta><task><mode>annotation</mode></task></meta></annotations>", "is a task of single images"),
        ("<annotations><meta><task><frame_filter>step=99999999999</frame_filter></task></meta></annotations>",
         "frame_filter is '99999999999'"),
    ],
)  # fmt: skip
def test_cvat_files_of_another_form_are_refused(tmp_path, text, reason):
    (tmp_path / "labels.xml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"labels\.xml.*{reason}"):
        labelled_clips(tmp_path / "labels.xml")


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
