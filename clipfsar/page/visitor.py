"""The actions of one visitor: enroll classes, remove and review clips, classify a clip. Works without a browser.

Errors are `ValueError`s whose messages are meant for the visitor: without folders of the server, without option names.
"""

import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from choices_clipfsar import UNKNOWN_LABEL
from clipfsar.inference.predict import find_classes
from container_clipfsar import ZIP_MAGIC
from explanation_clipfsar import Explanation
from limits_clipfsar import UnreadableError, check_regular_file
from paths_clipfsar import class_name_of_folder
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from processing_clipfsar import VideoReadError
from review_clipfsar import SupportSetReview
from support_set_clipfsar import EnrolledClass, SupportSet, repeatable_sampling

MAX_CLIPS = 100  # per visitor; a clip takes about 50 kB for features and pictures
MAX_CLIPS_AT_ONCE = 10
SECONDS_AT_ONCE = 120  # for reading and encoding all clips of one request
MAX_NAME_LENGTH = 80
_JOINERS = "\u200c\u200d"  # invisible, but letters of some scripts and emoji need them


class Visitor:
    """The classes of one visitor, and the clip to classify."""

    def __init__(self):
        self.support_set = SupportSet()
        self.query_path: str | None = None
        self.query_embeds: torch.Tensor | None = None  # (T, D), from the visual tower
        self.query_frames: torch.Tensor | None = None  # (T, H, W, 3), uint8, as the model sees them
        self.explanation: Explanation | None = None  # for the last answer
        self.reviewed: Mapping[str, EnrolledClass] = {}  # the classes of the last review
        self.offered: set[str] = set()  # paths of clips that wait to be added
        self.added: dict[str, tuple | None] = {}  # paths of the clips that were added last, and which upload of them
        self.revision = 0  # increases with every change of classes or clip

    def add(
        self,
        pipeline: FewShotVideoClassificationPipeline,
        class_name: str,
        clips: list[str],
        are_uploads: bool = True,
    ) -> str:
        """Encodes clips, given as paths, and adds them to a class. Returns a sentence about the result.

        It names the clips that cannot be read; the others are added. Raises `ValueError` if none is added.

        Args:
            are_uploads: Whether a visitor named the clips: then they must be video files.
        """
        name = plain_text(class_name or "")
        if not name:
            raise ValueError("The class has no name yet: type one, such as “opening a door”.")
        if len(name) > MAX_NAME_LENGTH:
            raise ValueError(f"The name has {len(name)} characters; at most {MAX_NAME_LENGTH} are allowed.")
        if name.casefold() == UNKNOWN_LABEL:
            raise ValueError(f"“{UNKNOWN_LABEL}” is the answer for clips that belong to no class: choose another name.")
        if not clips:
            raise ValueError(f"“{name}” has no clip yet: drop video files or record one.")
        if len(clips) > MAX_CLIPS_AT_ONCE:
            raise ValueError(f"These are {len(clips)} clips; at most {MAX_CLIPS_AT_ONCE} can be added at once.")
        num_clips = sum(self.support_set.num_clips.values())
        if num_clips + len(clips) > MAX_CLIPS:
            raise ValueError(
                f"You have {num_clips} clips, and {len(clips)} more would exceed the limit of {MAX_CLIPS}: remove some."
            )
        # A name typed again means the same class, even with other capitals.
        name = next((known for known in self.support_set.class_names if known.casefold() == name.casefold()), name)
        pictures = {picture for enrolled in self.support_set.classes.values() for picture in enrolled.thumbnails}
        unreadable, repeated, end = [], [], time.monotonic() + SECONDS_AT_ONCE
        for clip in clips:
            if time.monotonic() > end:
                unreadable.append(f"“{Path(clip).name}” was left out: a request may take {SECONDS_AT_ONCE} s.")
                continue
            try:
                if are_uploads:
                    _check_video_file(clip)
                self.support_set.add(pipeline.model, pipeline.processor, {name: [clip]})
            except VideoReadError as error:
                unreadable.append(_without_folders(error, clip))
                continue
            enrolled = self.support_set.classes[name]
            if enrolled.thumbnails[-1] in pictures:
                repeated.append(f"“{enrolled.clip_names[-1]}”")
            pictures.add(enrolled.thumbnails[-1])
        num_added = len(clips) - len(unreadable)
        if not num_added:
            raise ValueError(" ".join(unreadable))
        self.revision += 1
        added = f"Added {num_added} {'clip' if num_added == 1 else 'clips'} to “{name}”."
        if repeated:
            has, counts = ("has", "counts") if len(repeated) == 1 else ("have", "count")
            added += f" {', '.join(repeated)} {has} the same frames as another clip and {counts} twice."
        return " ".join([added, *unreadable])

    def has_added(self, uploads: Mapping[str, tuple | None]) -> bool:
        """Whether these files, and not later uploads of the same files, were added last."""
        added = self.added
        return bool(uploads) and all(path in added and one in (None, added[path]) for path, one in uploads.items())

    def remove(self, class_name: str, clip: str | None = None):
        """Removes a clip by its name, or the whole class."""
        if clip is None:
            self.support_set.remove_class(class_name)
        else:
            self.support_set.remove_clip(class_name, clip)
        self.reviewed = {}
        self.revision += 1

    def set_query(self, pipeline: FewShotVideoClassificationPipeline, clip: str | None):
        """Encodes the clip to classify, given as a path. None or an unreadable clip removes the current one."""
        self.query_path, self.query_embeds, self.query_frames = clip, None, None
        self.revision += 1
        if clip is None:
            return
        try:
            _check_video_file(clip)
            pixel_values = pipeline.processor.process_videos(  # (1, T, C, H, W)
                [clip], role="query", frame_sampling=repeatable_sampling(pipeline.processor)
            )
        except VideoReadError as error:
            raise ValueError(_without_folders(error, clip)) from error
        with torch.no_grad():
            (self.query_embeds,) = pipeline.model.get_video_features(pixel_values.to(pipeline.device)).float().cpu()
        self.query_frames = pipeline.processor.to_frames(pixel_values[0])

    def answer(
        self, pipeline: FewShotVideoClassificationPipeline, inference_mode: str, detect_unknown: bool
    ) -> tuple[Explanation | None, str]:
        """The explanation of the answer, or None, and a note on what is missing."""
        self.explanation = None
        names = self.support_set.class_names
        if len(names) < 2:
            have = f"So far there is only “{names[0]}”. " if names else ""
            return None, f"{have}Name at least two classes and show a clip of each."
        if self.query_embeds is None:
            return None, "Now add the clip to classify."
        if detect_unknown and inference_mode != "zero_shot" and max(self.support_set.num_clips.values()) < 2:
            detect_unknown = False
            note = f"To recognise “{UNKNOWN_LABEL}”, at least one class needs a second clip."
        else:
            note = ""
        try:
            self.explanation = self._explain(pipeline, self.query_embeds, inference_mode, detect_unknown)
        except ValueError as error:  # from the calibration; everything else was checked
            if not detect_unknown:
                raise
            self.explanation = self._explain(pipeline, self.query_embeds, inference_mode, False)
            note = str(error)
        return self.explanation, note

    def review(
        self, pipeline: FewShotVideoClassificationPipeline, inference_mode: str
    ) -> tuple[SupportSetReview | None, str]:
        """The review of the classes, or None, and a note on what is missing."""
        names = self.support_set.class_names
        if len(names) < 2:
            return None, "Name at least two classes and show two clips of each; then your clips can be checked."
        self.reviewed = self.support_set.classes
        return self.support_set.review(pipeline.model, inference_mode), ""

    @property
    def is_reviewed(self) -> bool:
        """Whether the last review is one of the classes as they are."""
        return self.reviewed is self.support_set.classes

    def _explain(self, pipeline, query_embeds: torch.Tensor, inference_mode: str, detect_unknown: bool) -> Explanation:
        explanation = self.support_set.explain(pipeline.model, query_embeds, inference_mode, detect_unknown)
        explanation.query_frames = self.query_frames
        return explanation


def plain_text(text: str) -> str:
    """The text on one line, without characters that cannot be seen or that turn the direction of what follows.

    Otherwise names that look alike could differ, and a name could garble the sentence around it.
    """
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    kept = (char for char in text if char in _JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
    return " ".join("".join(kept).split())


def _check_video_file(clip: str):
    """Refuses all but a file of this very name that another process reads, within the time limit.

    Folders of images and frame archives would be read in this process, without a limit. The name of a part of a video
    (`a.mp4#t=1,2`) could hide either.
    """
    try:
        check_regular_file(clip)
        with open(clip, "rb") as file:
            reason = "it is an archive, but a video file is needed" if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC else ""
    except (UnreadableError, ValueError):  # a folder; a name with a null byte
        reason = "a video file is needed"
    except OSError as error:
        reason = f"{error.strerror}"
    if reason:
        raise VideoReadError(f"Cannot read video {clip!r}: {reason}.", clip)


def _without_folders(error: Exception, clip: str) -> str:
    """The message of an error without folders of the server, which would mean nothing to a visitor."""
    return str(error).replace(str(clip), Path(clip).name)


# --- examples ---------------------------------------------------------------------------------------------------------

QUERIES = "queries"


@dataclass
class Examples:
    """Paths of example clips: the clips of each class, and clips to classify by their names."""

    classes: dict[str, list[str]] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Examples":
        """The clips in FOLDER/CLASS and FOLDER/queries.

        Raises:
            ValueError: If there is no folder of clips, if one is empty, or if two folders have one class name.
        """
        folder = Path(folder)
        classes = {name: [str(clip) for clip in clips] for name, clips in find_classes(folder).items()}
        queries = {class_name_of_folder(Path(clip).stem): clip for clip in classes.pop(QUERIES, ())}
        num_clips, long = sum(map(len, classes.values())), [name for name in classes if len(name) > MAX_NAME_LENGTH]
        if num_clips > MAX_CLIPS:
            raise ValueError(f"{folder} holds {num_clips} example clips; a visitor may have {MAX_CLIPS}: remove some.")
        if long:
            raise ValueError(f"{folder}: the name {long[0]!r} has over {MAX_NAME_LENGTH} characters: shorten it.")
        return cls(classes, queries)

    def add_to(self, visitor: Visitor, pipeline: FewShotVideoClassificationPipeline) -> str:
        """Enrolls the example classes that the visitor does not have yet. Returns a sentence about the result."""
        missing = {name: clips for name, clips in self.classes.items() if name not in visitor.support_set}
        for name, clips in missing.items():
            for start in range(0, len(clips), MAX_CLIPS_AT_ONCE):
                visitor.add(pipeline, name, clips[start : start + MAX_CLIPS_AT_ONCE], are_uploads=False)
        if not missing:
            return "You already have the example classes."
        return f"Added {len(missing)} example {'class' if len(missing) == 1 else 'classes'}."

    @property
    def note_on_queries(self) -> str:
        """The text above the buttons of the queries."""
        strangers = [name for name in self.queries if name not in self.classes]
        if self.classes and strangers == list(self.queries)[-1:]:
            return "Or an example (the last one belongs to none of the example classes):"
        return "Or an example:"
