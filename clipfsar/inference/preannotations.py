"""Predictions as labels: for Label Studio and CVAT, where people correct them, and as JSON Lines."""

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from choices_clipfsar import SECONDS_PER_VIDEO, UNKNOWN_LABEL
from clipfsar.data.cvat import cvat_text
from clipfsar.data.label_studio import label_studio_text
from clipfsar.data.labels import NoTimesError, PredictedVideo, Segment
from clipfsar.inference.arguments import PredictArguments
from container_clipfsar import VideoTimes
from paths_clipfsar import file_name_of, has_protocol, public_name, write_text
from spans_clipfsar import split_span
from video_clipfsar import VideoReadError, read_video_frames, video_times

FORMATS_OF_LABELS = ("jsonl", "label_studio", "cvat")


def merge_windows(windows: list[dict], offset_seconds: float = 0.0) -> list[Segment]:
    """Windows of a video, which may overlap, as segments that do not. Neighbours of one class become one segment.

    Two windows that overlap meet halfway between their centres. The score of a segment is the mean of its windows'
    scores, by their shares of it. Windows of no class give no segment. `offset_seconds` is added to all times.
    """
    merged: list[tuple[str, float, float, float]] = []  # class, score times length, start and end
    centers = [(window["start_seconds"] + window["end_seconds"]) / 2 for window in windows]
    for row, window in enumerate(windows):
        start, end, name = window["start_seconds"], window["end_seconds"], window["label"]
        if row:
            start = max(start, (centers[row - 1] + centers[row]) / 2)
        if row + 1 < len(windows):
            end = min(end, (centers[row] + centers[row + 1]) / 2)
        if name == UNKNOWN_LABEL or round(start, 6) >= round(end, 6):
            continue
        weight = window["score"] * (end - start)
        if merged and merged[-1][0] == name and start - merged[-1][3] < 1e-6:
            _, weight_before, start, _ = merged.pop()
            weight += weight_before
        merged.append((name, weight, start, end))
    return [
        Segment(name, weight / (end - start), start + offset_seconds, end + offset_seconds)
        for name, weight, start, end in merged
    ]


def segments_of(result: dict) -> tuple[str, list[Segment]]:
    """The whole video of a query's result (from `Prediction.run`), and its segments in seconds of this video."""
    video, span = split_span(result["query"])
    if "windows" in result:
        return video, merge_windows(result["windows"], 0.0 if span is None else span.start_seconds)
    best = result["answer"][0]
    if best["label"] == UNKNOWN_LABEL:
        return video, []
    part = (None, None) if span is None else (span.start_seconds, span.end_seconds)
    return video, [Segment(best["label"], best["score"], *part)]


def _identity(video: str) -> str:
    """The same for all spellings of a video's path."""
    return video if has_protocol(video) else os.path.abspath(os.path.expanduser(video))


def _distinct(results: Iterable[dict]) -> list[dict]:
    """The results of queries that were read. A query that is given twice is labelled once."""
    distinct: dict[tuple, dict] = {}
    for result in results:
        if "error" not in result:
            video, span = split_span(result["query"])
            distinct.setdefault((_identity(video), span), result)
    return list(distinct.values())


def _mark(results: Iterable[dict], video: str, error: ValueError) -> None:
    """Says in the results of a video why they are not written."""
    for result in results:
        if _identity(split_span(result["query"])[0]) == _identity(video):
            result.setdefault("error", str(error))


def as_json_lines(results: list[dict]) -> str:
    """A line per video or segment, with the columns that `clipfsar prepare --source` reads. Without unread queries."""
    lines = []
    for result in _distinct(results):
        video, segments = segments_of(result)
        for one in segments:
            row = {"path": video, "label": one.class_name, "score": one.score}
            times = {"start_seconds": one.start_seconds, "end_seconds": one.end_seconds}
            row |= {name: round(seconds, 6) for name, seconds in times.items() if seconds is not None}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def predicted_videos(
    results: Collection[dict],
    fps: float | None = None,
    with_size: bool = False,
    seconds_per_video: float | None = SECONDS_PER_VIDEO,
) -> list[PredictedVideo]:
    """What the formats of labelling tools need of results. Unread queries are left out; parts of a video join it.

    A video is opened a second time for this. If that fails, it is left out, and its results get an `error`.

    Args:
        fps: Frame rate of videos that have none.
        with_size: Also read the first frame, for its size.
        seconds_per_video: See `read_video_frames`.
    """
    segments: dict[str, tuple[str, list[Segment]]] = {}
    for result in _distinct(results):
        video, found = segments_of(result)
        segments.setdefault(_identity(video), (video, []))[1].extend(found)
    videos = []
    for video, found in segments.values():
        size: tuple = (None, None)
        try:
            times = video_times(video, seconds_per_video)
            if with_size:
                size = tuple(read_video_frames(video, [0], seconds_per_video=seconds_per_video).shape[1:3])
        except VideoReadError as error:
            _mark(results, video, error)
            continue
        times = times if times.fps or not fps else VideoTimes.at_rate(times.num_frames, fps)
        videos.append(PredictedVideo(video, found, times, width=size[1], height=size[0]))
    return videos


def as_label_studio(results: list[dict], arguments: PredictArguments) -> str:
    """Tasks with pre-annotations; see `label_studio_text`."""
    videos = predicted_videos(results, arguments.fps, seconds_per_video=arguments.seconds_per_video)
    model_version = f"clipfsar {public_name(arguments.model)}"
    for video in list(videos):
        try:
            label_studio_text([video], model_version)
        except NoTimesError as error:
            _mark(results, video.video, error)
            videos.remove(video)
    return label_studio_text(videos, model_version, address=arguments.video_address)


def as_cvat(results: list[dict], arguments: PredictArguments) -> dict[str, str]:
    """For each video a name for its XML file, and the text of it."""
    texts: dict[str, str] = {}
    for video in predicted_videos(results, arguments.fps, True, arguments.seconds_per_video):
        try:
            text = cvat_text(video)
        except NoTimesError as error:
            _mark(results, video.video, error)
            continue
        texts[file_name_of(Path(video.video).stem or "video", ".xml", texts)] = text
    return texts


def write_cvat(texts: dict[str, str], folder: Path) -> None:
    """Writes a file per video into a folder."""
    for name, text in texts.items():
        write_text(folder / name, text)


__all__ = [
    "FORMATS_OF_LABELS",
    *("as_cvat", "as_json_lines", "as_label_studio", "merge_windows", "predicted_videos", "segments_of", "write_cvat"),
]
