"""Label Studio's JSON, both ways: labels of videos and of timelines as clips, predictions as pre-annotations.

From its documentation (https://labelstud.io, as of November 2026):

- A task has `data`, with the address of the video, and `annotations`, each with a list `result` (guide/task_format).
- `<Choices>` gives `{"type": "choices", "value": {"choices": ["a"]}}` for the whole video (tags/choices).
- `<TimelineLabels>` gives `{"type": "timelinelabels", "value": {"ranges": [{"start": 3, "end": 5}], "timelinelabels":
  ["a"]}}` (tags/timelinelabels). Frames count from 1 and the end is included, as in the converters of the YOLO backend
  (HumanSignal/label-studio-ml-backend, `utils/converter.py`).
- Frames are counted at `frameRate` of `<Video>`, 24 by default, which may come from the task, `$fps` (tags/video). The
  rate is not exported.
- `predictions` are pre-annotations: `model_version`, `score` and `result` (guide/predictions).
- JSON-MIN has the fields of `data` beside the values of the results, by the names of their tags (guide/export).
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from choices_clipfsar import VIDEO_SUFFIXES
from clipfsar.data.clips import LeftOut
from clipfsar.data.labels import Label, NoTimesError, PredictedVideo, Segment, VideoFolder
from clipfsar.data.tables import read_json_text
from clipfsar.options import nearest
from spans_clipfsar import split_span

VIDEO, LABEL = "video", "label"  # names of the field and the tag that we write, and look for first
_FPS_FIELD = "fps"  # of a task's data; written with predictions, for `frameRate="$fps"`


class _Task:
    """A task of an export, in either form, with errors that name it."""

    def __init__(self, path: Path, number: int, value: Any):
        if not isinstance(value, dict):
            raise ValueError(f"{path}, task number {number}, is no object: give an export of Label Studio as JSON.")
        self.value = value
        self.where = f"{path}, task {value.get('id', f'number {number}')}"
        self.is_short = not isinstance(value.get("data"), dict)  # JSON-MIN
        self.data: dict = value if self.is_short else value["data"]

    def error(self, field: str, found: Any, wanted: str) -> ValueError:
        return ValueError(
            f"{self.where}: {field} is {_shown(found)}, but {wanted} is needed. Correct or remove the task."
        )

    def listed(self, where: dict, field: str) -> list[dict]:
        values = where.get(field)
        values = [] if values is None else values
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.error(field, values, "a list of objects")
        return values

    def video(self, video_column: str, folder: VideoFolder) -> str:
        videos = [name for name, value in self.data.items() if isinstance(value, str) and _is_video(value)]
        if video_column == VIDEO and video_column not in self.data and len(videos) == 1:
            video_column = videos[0]
        if video_column not in self.data:
            meant = nearest(video_column, [name for name in self.data if isinstance(name, str)])
            raise ValueError(
                f"{self.where}: there is no field {video_column!r}; there are {', '.join(map(str, self.data))}. Name "
                f"the field of the videos with --video_column{f' {meant}' if meant else ''}."
            )
        name = self.data[video_column]
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise self.error(video_column, name, "the path or address of a video")
        return folder.find(name.strip())

    def fps(self) -> float | None:
        rate = self.data.get(_FPS_FIELD)
        if rate is None:
            return None
        try:
            rate = float(rate)
        except (TypeError, ValueError, OverflowError):
            rate = math.nan
        if not 0 < rate < 1e6:
            raise self.error(_FPS_FIELD, self.data[_FPS_FIELD], "a frame rate above 0")
        return rate

    def regions(self, label_column: str, use_predictions: bool, left_out: LeftOut) -> list[list[dict]]:
        """Lists of results, one for each annotator. Ground truth replaces the others."""
        if self.is_short:
            return [_regions_of_short(self.value, label_column)]
        if use_predictions:
            return [self.listed(one, "result") for one in self.listed(self.value, "predictions")]
        all_of_them = self.listed(self.value, "annotations")
        kept = [one for one in all_of_them if not one.get("was_cancelled")]
        left_out.labels["skipped (cancelled) annotations"] += len(all_of_them) - len(kept)
        kept = [one for one in kept if one.get("ground_truth")] or kept
        return [self.listed(one, "result") for one in kept]

    def frames(self, region: dict) -> list[tuple[int, int] | None]:
        """First frame and the one after the last, from 0, of each range of a region; [None] for the whole video."""
        if "ranges" not in region["value"]:
            return [None]
        found: list[tuple[int, int] | None] = []
        for span in self.listed(region["value"], "ranges"):
            start, end = (_as_frame(span.get(side)) for side in ("start", "end"))
            if start is None or end is None or end < start:
                raise self.error("ranges", [span], "a start and an end, whole numbers of frames from 1,")
            found.append((max(start - 1, 0), max(end, 1)))
        return found


def read_label_studio(
    path: Path,
    videos: VideoFolder | None = None,
    video_column: str = VIDEO,
    label_column: str = LABEL,
    fps: float | None = None,
    left_out: LeftOut | None = None,
    use_predictions: bool = False,
) -> list[Label]:
    """The labels of an export as JSON or JSON-MIN: classes of videos, and of parts of their timelines.

    A task whose annotators disagree is left out, unless an annotation is the ground truth.

    Args:
        videos: Folder of the videos; default: that of the file.
        video_column: Field of the tasks' data with the videos. The default also finds the only field with a video.
        label_column: Name of the labelling tag. The default also finds the only one, except for choices in JSON-MIN.
        fps: Rate at which Label Studio counted frames. Default: the field `fps` of a task's data, then the video's own.
        left_out: Counts what is not used, and notes at which rate frames are taken.
        use_predictions: Read the predictions in place of the annotations.

    Raises:
        ValueError: For anything of another form. The message has the task and the field.
    """
    left_out = LeftOut() if left_out is None else left_out
    folder = VideoFolder(path.parent) if videos is None else videos
    tasks = [_Task(path, number, value) for number, value in enumerate(_tasks_of(path), start=1)]
    answers = [(task, task.regions(label_column, use_predictions, left_out)) for task in tasks]
    tag = _labelling_tag(path, answers, label_column, left_out)
    labels: list[Label] = []
    for task, of_annotators in answers:
        of_annotators = [
            [region for region in regions if str(region.get("from_name")) == tag] for regions in of_annotators
        ]
        found = [_labels_of_task(task, regions, left_out) for regions in of_annotators if regions]
        if not any(found):
            is_predicted = bool(task.value.get("predictions")) and not task.value.get("annotations")
            kind = "with predictions alone, which nobody has accepted" if is_predicted else "without a label"
            left_out.labels[f"tasks {kind}"] += 1
        elif any(set(one) != set(found[0]) for one in found):
            left_out.labels["tasks whose annotators disagree"] += 1
        else:
            video, rate = task.video(video_column, folder), task.fps() if fps is None else fps
            labels += [Label(video, name, task.where, frames, rate) for name, frames in found[0]]
    own = sum(label.frames is not None and label.fps is None for label in labels)
    left_out.labels = +left_out.labels
    if not labels:
        raise ValueError(
            f"{path} has no labels to use ({left_out}). For JSON-MIN, name their field with --label_column."
        )
    if own:
        left_out.notes["frames counted at the video's own rate (--label_fps sets another), labels"] += own
    return labels


def _tasks_of(path: Path) -> list:
    value = read_json_text(path)
    tasks = [value] if isinstance(value, dict) else value  # target storage holds one file per task
    if not isinstance(tasks, list) or not tasks:
        raise ValueError(
            f"{path} is {_shown(value)}, but a list of tasks is needed: export them from Label Studio as JSON."
        )
    return tasks


def _labels_of_task(task: _Task, regions: list[dict], left_out: LeftOut) -> list[tuple[str, tuple[int, int] | None]]:
    """Class and frames of each region with one label."""
    found = []
    for region in regions:
        names = _names(region["value"])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise task.error("the label", names, "a list of names")
        names = [name.strip() for name in names if name.strip()]
        if len(names) == 1:
            found += [(names[0], frames) for frames in task.frames(region)]
        else:
            left_out.labels["regions with several labels" if names else "regions without a label"] += 1
    return list(dict.fromkeys(found))


def _labelling_tag(path: Path, answers: list, label_column: str, left_out: LeftOut) -> str | None:
    """The name of the tag whose labels are used. Counts results that are no labels, such as boxes."""
    names: dict[str | None, None] = {}
    for task, of_annotators in answers:
        for region in (region for regions in of_annotators for region in regions):
            if not isinstance(region.get("value"), dict):
                raise task.error("value of a result", region.get("value"), "an object")
            if _names(region["value"]) is not None:
                names[str(region.get("from_name"))] = None
            else:
                left_out.labels[f"results of type {_shown(region.get('type'))}"] += 1
    if label_column in names or not names:
        return label_column
    if label_column != LABEL or len(names) > 1:
        raise ValueError(
            f"{path} has no labels of a tag {label_column!r}; it has those of {', '.join(map(repr, names))}. Name the "
            "right one with --label_column."
        )
    return next(iter(names))


def _names(value: dict) -> Any:
    return value.get("timelinelabels", value.get("choices"))


def _regions_of_short(task: dict, label_column: str) -> list[dict]:
    """The results of a task in JSON-MIN. Labels of a timeline are lists of objects; a single choice is its name, which
    only the name of the field tells from other texts."""
    regions = []
    for name, value in task.items():
        parts = value if isinstance(value, list) else [value]
        labels = [part for part in parts if isinstance(part, dict) and _names(part) is not None]
        regions += [{"from_name": name, "value": part} for part in labels]
        if name == label_column and isinstance(value, str):
            regions.append({"from_name": name, "value": {"choices": [value]}})
    return regions


def _is_video(text: str) -> bool:
    return text.partition("?")[0].lower().endswith(VIDEO_SUFFIXES)


def _as_frame(value: Any) -> int | None:
    """The number of a frame; None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < 1e9 and value == int(value) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def label_studio_text(
    videos: Iterable[PredictedVideo], model_version: str, tag: str = LABEL, address: str | None = None
) -> str:
    """Predictions as tasks with pre-annotations, to import into Label Studio.

    Args:
        model_version: Name of the model, shown with the pre-annotations.
        tag: Name of the `<Choices>` or `<TimelineLabels>` tag. The `<Video>` tag is called "video".
        address: Address of a video for Label Studio, with {} for its file name. Default: the video as it was given.

    Raises:
        NoTimesError: If a segment has times, and the video does not say its frame rate.
    """
    tasks = []
    for video in videos:
        name = Path(split_span(video.video)[0]).name
        data: dict[str, Any] = {"video": video.video if address is None else address.replace("{}", name)}
        if video.times.fps:
            data[_FPS_FIELD] = round(video.times.fps, 6)
        results = [
            {"id": f"{tag}-{number}", "from_name": tag, "to_name": "video", "score": round(one.score, 6), **part}
            for number, one in enumerate(video.segments)
            for part in [_value_of(one, video, data.get(_FPS_FIELD))]
        ]
        prediction: dict[str, Any] = {"model_version": model_version, "result": results}
        if results:
            prediction["score"] = round(sum(one.score for one in video.segments) / len(results), 6)
        tasks.append({"data": data, "predictions": [prediction]})
    return json.dumps(tasks, indent=2, ensure_ascii=False) + "\n"


def _value_of(segment: Segment, video: PredictedVideo, fps: float | None) -> dict:
    if segment.start_seconds is None:
        return {"type": "choices", "value": {"choices": [segment.class_name]}}
    if fps is None:
        raise NoTimesError(f"{video.video} has no frame rate, which Label Studio's timeline needs: give --fps.")
    end = video.times.duration if segment.end_seconds is None else segment.end_seconds
    start = round(segment.start_seconds * fps) + 1
    ranges = [{"start": start, "end": max(start, round((end or 0) * fps))}]
    return {"type": "timelinelabels", "value": {"ranges": ranges, "timelinelabels": [segment.class_name]}}


__all__ = ["label_studio_text", "read_label_studio"]
