"""Labels of labelling tools as clips, and predictions for them. What the formats of all tools have in common.

Each format has a file: `label_studio.py`, `cvat.py`. Tables are read in `sources.py`.
"""

import functools
import os
import re
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from choices_clipfsar import SECONDS_PER_VIDEO, VIDEO_SUFFIXES
from clipfsar.data.clips import Clip, LeftOut, is_hidden
from container_clipfsar import VideoTimes
from paths_clipfsar import has_protocol, local_path
from spans_clipfsar import with_span
from video_clipfsar import VideoReadError, video_times


class NoTimesError(ValueError):
    """Raised for predictions of parts of a video whose frames have no times. The message names video and remedy."""


# In front of an upload: the beginning of a UUID (HumanSignal/label-studio, `data_import/models.py`).
_UPLOAD = re.compile(r"\A[0-9a-f]{8}-")


@dataclass(frozen=True)
class Label:
    """A label that somebody gave to a video, or to frames of it.

    Args:
        video: Path or address of the video.
        class_name: The label.
        where: File and task, for messages.
        frames: First frame, and the frame after the last, from 0; None for the whole video.
        fps: Rate at which the tool counted frames; None: the frames are those of the file.
    """

    video: str
    class_name: str
    where: str
    frames: tuple[int, int] | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Segment:
    """A predicted class with its score, for a part of a video or (without times) for all of it."""

    class_name: str
    score: float
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class PredictedVideo:
    """The predictions for a video, and what formats that count frames need to know about it.

    Args:
        width, height: Size of its frames; None where nobody asks for it.
    """

    video: str
    segments: Sequence[Segment]
    times: VideoTimes
    width: int | None = None
    height: int | None = None


class VideoFolder:
    """Finds videos below a folder by what a labelling tool calls them: a path, the name of an upload, or an address."""

    def __init__(self, root: str | os.PathLike):
        self.root = local_path(root).absolute()

    @functools.cached_property
    def _paths_by_name(self) -> dict[str, list[str]]:
        """The paths of all videos below the folder, by file name, and by file name without the suffix."""
        paths: dict[str, list[str]] = defaultdict(list)
        for folder, _, names in os.walk(self.root):
            for name in filter(_is_video, names):
                for key in (name, os.path.splitext(name)[0]):
                    paths[key].append(os.path.join(folder, name))
        return paths

    def find(self, name: str) -> str:
        """The path of a video. Addresses of other servers are returned unchanged.

        A video is looked for by its path below the folder, then in the whole folder by its file name, without the eight
        hexadecimal digits that Label Studio puts in front of uploads, or without a suffix, as names of tasks are. If it
        is not found, the path is that of a missing file.

        Raises:
            ValueError: If several videos have this name.
        """
        try:
            address = urllib.parse.urlparse(name)
        except ValueError:  # such as http://[, which reading reports
            return name
        if has_protocol(name) and not address.path.startswith("/data/"):
            return name
        if os.path.exists(self.root / name):
            return str(self.root / name)
        if has_protocol(name) or name.startswith("/data/"):
            # Label Studio's own: /data/upload/3/1a2b3c4d-a.mp4, /data/local-files/?d=clips/a.mp4
            name = urllib.parse.parse_qs(address.query).get("d", [urllib.parse.unquote(address.path)])[0]
            name = name.removeprefix("/data/").lstrip("/")
        path = PurePosixPath(name.replace("\\", "/"))
        if os.path.exists(self.root / path):
            return str(self.root / path)
        for file_name in (path.name, _UPLOAD.sub("", path.name)):
            found = self._paths_by_name.get(file_name, ())
            if len(found) > 1:
                raise ValueError(
                    f"{file_name} is the name of {len(found)} videos below {self.root}, such as {found[0]} and "
                    f"{found[1]}: rename one of them, or name its folder as --video_root."
                )
            if found:
                return found[0]
        return str(self.root / path.name)


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_SUFFIXES) and not is_hidden(name)


def clips_of(
    labels: Iterable[Label],
    left_out: LeftOut,
    skip_unreadable: bool = False,
    seconds_per_video: float = SECONDS_PER_VIDEO,
) -> list[Clip]:
    """The labelled videos and parts of videos as clips. Equal labels of a clip count once.

    Videos are opened where frames are those of the file: their times are needed.

    Args:
        left_out: Counts clips with several labels, which are left out, and notes overlaps and clips of one frame.
        skip_unreadable: Also leave out parts of videos that cannot be opened.

    Raises:
        ValueError: For such a part otherwise, and for frames that a video does not have.
    """
    times: dict[str, VideoTimes | VideoReadError] = {}
    labels_of: dict[str, list[Label]] = defaultdict(list)  # by clip; frames of several rates may mean the same seconds
    for label in dict.fromkeys(labels):
        seconds = _seconds_of(label, times, seconds_per_video) if label.frames is not None else None
        if isinstance(seconds, VideoReadError):
            if not skip_unreadable:
                raise ValueError(f"{label.where}: {seconds} Its folder is an option, --video_root.")
            left_out.labels["labels of parts of unreadable videos"] += 1
            continue
        path = label.video if seconds is None else with_span(label.video, *seconds)
        labels_of[path].append(label)
    clear = {path: own for path, own in labels_of.items() if len({label.class_name for label in own}) == 1}
    left_out.labels += Counter({"clips with several labels": len(labels_of) - len(clear)})
    left_out.notes += _notes([own[0] for own in clear.values()])
    return [Clip(path, own[0].class_name) for path, own in clear.items()]


def _seconds_of(
    label: Label, times: dict[str, VideoTimes | VideoReadError], seconds_per_video: float
) -> tuple[float, float] | VideoReadError:
    """Start and end of a label's frames. `times` keeps what is known about each video."""
    start, stop = label.frames or (0, 0)
    if label.fps is not None:
        return start / label.fps, stop / label.fps
    if label.video not in times:
        try:
            times[label.video] = video_times(label.video, seconds_per_video)
        except VideoReadError as error:
            times[label.video] = error
    found = times[label.video]
    if isinstance(found, VideoReadError):
        return found
    if not found.fps or found.duration is None:
        raise ValueError(
            f"{label.where}: {label.video} has no frame rate, so its frames have no times. Give --label_fps."
        )
    if stop > found.num_frames + found.fps:
        raise ValueError(
            f"{label.where}: {label.class_name!r} ends at frame {stop}, but {label.video} has {found.num_frames} "
            "frames. If the tool counted frames at another rate, give it as --label_fps."
        )
    stop = min(stop, found.num_frames)
    if start >= stop:
        raise ValueError(
            f"{label.where}: {label.class_name!r} begins at frame {start}, after the end of {label.video}."
        )
    if found.seconds is None:
        return start / found.fps, stop / found.fps
    ends = [*(found.seconds - found.seconds[0]).tolist(), found.duration]
    return ends[start], ends[stop]


def _notes(labels: list[Label]) -> Counter:
    """What to know about labels: parts of one frame, and parts that begin within another one of their video."""
    notes: Counter = Counter()
    ends: dict[str, dict[str, int]] = defaultdict(dict)
    for label in sorted((label for label in labels if label.frames), key=lambda label: label.frames or (0, 0)):
        start, stop = label.frames or (0, 0)
        notes["clips of one frame"] += stop - start == 1
        others = ends[label.video]
        notes["clips that overlap one of their class"] += others.get(label.class_name, 0) > start
        notes["clips that overlap one of another class"] += any(
            end > start for name, end in others.items() if name != label.class_name
        )
        others[label.class_name] = max(stop, others.get(label.class_name, 0))
    return +notes


__all__ = ["Label", "NoTimesError", "PredictedVideo", "Segment", "VideoFolder", "clips_of"]
