"""CVAT's XML 1.1, both ways: tracks and tags as clips, predictions as tracks.

From its documentation (https://docs.cvat.ai, "XML annotation format" and "CVAT for image/video", as of November 2026)
and the program that writes it (cvat-ai/cvat, `cvat/apps/dataset_manager/bindings.py` and `formats/cvat.py`):

- "CVAT for video" has a `<track label="a">` per object, with a shape such as `<box frame="3" outside="0">` for each
  frame; `outside="1"` says that the object is not there. "CVAT for images" has an `<image id="3">` per frame, with a
  `<tag label="a">` for each class of the frame. Tags are only in the second, tracks only in the first.
- Frames are those of the video, from 0. A task may begin at `start_frame` and take every Nth (`frame_filter`, step=N).
- In the export of a project, frames of a task count from the end of the task before it in its subset.
- `<meta>` names the video of a task (`source`) and its size (`original_size`).
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from clipfsar.data.clips import LeftOut
from clipfsar.data.labels import Label, NoTimesError, PredictedVideo, VideoFolder
from limits_clipfsar import UnreadableError, read_file
from spans_clipfsar import split_span

_SHAPES = ("box", "polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton")
_MOST_FRAMES = 10**9
# XML 1.0, section 2.2. It allows carriage returns, but readers make line feeds of them (section 2.11).
_NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _WithoutDoctype(ElementTree.TreeBuilder):
    """Refuses a document type, before an entity of it could be expanded."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise UnreadableError("it has a document type (<!DOCTYPE>), and CVAT writes none")


@dataclass(frozen=True)
class _Task:
    """A task of an export: its video, the step between its frames, and how many frames its numbers are ahead."""

    number: str
    video: str
    step: int
    ahead: int
    where: str

    def frame(self, text: str | None, of: str) -> int:
        """The frame of the video with this number in the file."""
        frame = _whole(text, f"{self.where}: the frame of a {of}") - self.ahead
        if frame < 0:
            raise ValueError(f"{self.where}: frame {text} of a {of} is before the task's first frame.")
        return frame


def read_cvat(path: Path, videos: VideoFolder | None = None, left_out: LeftOut | None = None) -> list[Label]:
    """The labels of an export of a task, a job or a project, as "CVAT for video" or "CVAT for images".

    A track is a clip for each stretch of frames in which its object is there; its boxes do not matter. Successive
    frames with the same tag are a clip.

    Args:
        videos: Folder of the videos; default: that of the file.
        left_out: Counts what is not used.

    Raises:
        ValueError: For anything of another form. The message has the task and the element.
    """
    left_out = LeftOut() if left_out is None else left_out
    root = _parse(path)
    tasks = _tasks_of(path, root, VideoFolder(path.parent) if videos is None else videos)
    labels: list[Label] = []
    tagged: dict[tuple[_Task, str], list[int]] = defaultdict(list)
    for element in root:
        if element.tag not in ("track", "image"):
            continue
        task = _task_of(path, tasks, element)
        if element.tag == "track":
            spans = _spans_of_track(task, element)
            left_out.labels["tracks that are outside in all frames"] += not spans
            labels += [Label(task.video, _name_of(task, element), task.where, span) for span in spans]
            continue
        frame = task.frame(element.get("id"), "<image>")
        for tag in element.findall("tag"):
            tagged[task, _name_of(task, tag)].append(frame)
        left_out.labels["shapes on single frames"] += sum(shape.tag in _SHAPES for shape in element)
    for (task, name), frames in tagged.items():
        labels += [Label(task.video, name, task.where, span) for span in _runs(frames, task.step)]
    labelled = {label.where for label in labels}
    left_out.labels["tasks without a label"] += sum(task.where not in labelled for task in tasks.values())
    left_out.labels = +left_out.labels
    if not labels:
        raise ValueError(
            f"{path} has no labels to use ({left_out}): export tracks as 'CVAT for video', or tags as 'CVAT for "
            "images'."
        )
    return labels


def _parse(path: Path) -> Element:
    try:
        parser = ElementTree.XMLParser(target=_WithoutDoctype())
        parser.feed(read_file(path, "xml_bytes"))
        root: Element = parser.close()
    except (ElementTree.ParseError, UnreadableError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is not read as an XML export of CVAT: {error}.") from None
    if root.tag != "annotations":
        raise ValueError(
            f"{path} begins with <{root.tag}>, but <annotations> is needed: export it from CVAT as XML 1.1."
        )
    return root


def _tasks_of(path: Path, root: Element, videos: VideoFolder) -> dict[str, _Task]:
    """The tasks of an export by their numbers. A file without `<meta>` is one task."""
    project = root.findall("meta/project/tasks/task")
    elements = project or root.findall("meta/task") or root.findall("meta/job") or [Element("task")]
    tasks: dict[str, _Task] = {}
    ahead: dict[str, int] = defaultdict(int)
    for element in elements:
        number = (element.findtext("id") or "").strip()
        where = f"{path}, task {number}" if number else str(path)
        if element.findtext("mode") == "annotation":
            raise ValueError(f"{where} is a task of single images, but a task made of one video is needed.")
        step_text = re.search(r"step\s*=\s*(\d+)", element.findtext("frame_filter") or "")
        step = max(_whole(step_text[1], f"{where}: frame_filter"), 1) if step_text else 1
        names = (element.findtext("source"), root.findtext("meta/source"), element.findtext("name"), path.stem)
        found = [videos.find(text.strip()) for text in names if text and text.strip()]
        video = next(filter(os.path.exists, found), found[0])
        subset = (element.findtext("subset") or "").strip()
        tasks[number] = _Task(number, video, step, ahead[subset], where)
        if project:
            size, start = (_whole(element.findtext(name), f"{where}: {name}") for name in ("size", "start_frame"))
            ahead[subset] += start + step * size
    return tasks


def _task_of(path: Path, tasks: dict[str, _Task], element: Element) -> _Task:
    number = element.get("task_id")
    if number is None and len(tasks) == 1:
        return next(iter(tasks.values()))
    if number not in tasks:
        raise ValueError(f"{path}: a <{element.tag}> belongs to task {number}, which <meta> does not list.")
    return tasks[number]


def _name_of(task: _Task, element: Element) -> str:
    name = (element.get("label") or "").strip()
    if not name:
        raise ValueError(f"{task.where}: a <{element.tag}> has no label. Correct or remove it.")
    return name


def _spans_of_track(task: _Task, track: Element) -> list[tuple[int, int]]:
    """First frame, and the frame after the last, of each stretch in which the object is there."""
    shapes = [shape for shape in track if shape.tag in _SHAPES]
    shown = sorted((task.frame(shape.get("frame"), f"<{shape.tag}>"), _is_outside(shape)) for shape in shapes)
    spans, start, last = [], None, 0
    for frame, is_outside in shown:
        if is_outside and start is not None:
            spans.append((start, frame))
            start = None
        elif not is_outside and start is None:
            start = frame
        last = frame
    if start is not None:
        spans.append((start, last + task.step))
    return spans


def _is_outside(shape: Element) -> bool:
    points = shape.findall("points")
    if shape.tag == "skeleton" and points:
        return all(point.get("outside") == "1" for point in points)
    return shape.get("outside") == "1"


def _runs(frames: list[int], step: int) -> list[tuple[int, int]]:
    """Stretches of successive frames: first frame, and the frame after the last."""
    spans: list[tuple[int, int]] = []
    for frame in sorted(set(frames)):
        if spans and frame == spans[-1][1]:
            spans[-1] = (spans[-1][0], frame + step)
        else:
            spans.append((frame, frame + step))
    return spans


def _whole(text: str | None, what: str) -> int:
    text = (text or "").strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > _MOST_FRAMES:
        raise ValueError(f"{what} is {text!r}, but a whole number from 0 to {_MOST_FRAMES} is needed. Export it again.")
    return int(text)


def cvat_text(video: PredictedVideo) -> str:
    """Predictions for a video as "CVAT for video 1.1", to import into the task of this video.

    Each segment is a track whose box is the whole frame; without times it goes from the first to the last frame.

    Raises:
        NoTimesError: If a segment has times, and the video does not say its frame rate.
    """
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    name = _as_xml(Path(split_span(video.video)[0]).name)
    task = SubElement(SubElement(root, "meta"), "task")
    num_frames = video.times.num_frames
    texts = {"name": name, "size": num_frames, "mode": "interpolation", "start_frame": 0, "stop_frame": num_frames - 1}
    for field, value in texts.items():
        SubElement(task, field).text = str(value)
    labels = SubElement(task, "labels")
    for class_name in dict.fromkeys(segment.class_name for segment in video.segments):
        label = SubElement(labels, "label")
        SubElement(label, "name").text = _as_xml(class_name)
        SubElement(label, "type").text = "any"
        SubElement(label, "attributes")
    size = SubElement(task, "original_size")
    SubElement(size, "width").text, SubElement(size, "height").text = str(video.width), str(video.height)
    SubElement(task, "source").text = name
    for number, segment in enumerate(video.segments):
        track = SubElement(root, "track", id=str(number), label=_as_xml(segment.class_name), source="auto")
        for frame, outside in _keyframes(video, segment.start_seconds, segment.end_seconds):
            box = {"frame": str(frame), "keyframe": "1", "outside": outside, "occluded": "0", "z_order": "0"}
            box |= {"xtl": "0.00", "ytl": "0.00", "xbr": f"{video.width:.2f}", "ybr": f"{video.height:.2f}"}
            SubElement(track, "box", box)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _as_xml(text: str) -> str:
    """Text without the characters that XML cannot hold: they become escapes, all others stay as they are."""
    return _NOT_IN_XML.sub(lambda match: ascii(match[0])[1:-1], text)


def _keyframes(video: PredictedVideo, start: float | None, end: float | None) -> Iterable[tuple[int, str]]:
    """Frames with a box, and whether it is outside: the first, the last, and the one after it."""
    first, stop = 0, video.times.num_frames
    if start is not None:
        try:
            first, part = video.times.part(start, end)
        except UnreadableError as error:
            raise NoTimesError(
                f"{video.video} cannot be written for CVAT: {error}. Give --fps for a folder of frames."
            ) from None
        stop = first + part.num_frames
    frames = [(frame, "0") for frame in dict.fromkeys((first, stop - 1))]
    return [*frames, (stop, "1")] if stop < video.times.num_frames else frames


__all__ = ["cvat_text", "read_cvat"]
