"""What the page does for one visitor: enrol classes, take things out again, ask about a clip. No browser needed.

What goes wrong is a `ValueError` whose message is meant for the visitor: file names without folders, no options' names.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from choices_clipfsar import UNKNOWN_LABEL
from clipfsar.inference.predict import find_classes
from container_clipfsar import ZIP_MAGIC
from explanation_clipfsar import Explanation
from paths_clipfsar import class_name_of_folder
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from processing_clipfsar import VideoReadError
from support_set_clipfsar import SupportSet, repeatable_sampling

MAX_CLIPS = 100  # per visitor: some 50 kB of features and pictures each
MAX_CLIPS_AT_ONCE = 10
SECONDS_AT_ONCE = 120  # for reading and encoding all clips of one request
MAX_NAME_LENGTH = 80


class Visitor:
    """The classes and the clip in question of one visitor."""

    def __init__(self):
        self.support_set = SupportSet()
        self.query_path: str | None = None
        self.query_embeds: torch.Tensor | None = None  # (T, D), of the visual tower
        self.query_frames: torch.Tensor | None = None  # (T, H, W, 3), uint8, as the model saw them
        self.explanation: Explanation | None = None  # of the last answer
        self.revision = 0  # grows with every change of classes or clip

    def add(self, pipeline: FewShotVideoClassificationPipeline, class_name: str, clips: list[str]) -> str:
        """Encodes clips, given as paths, and adds them to a class; what was done, in a sentence.

        Clips that cannot be read are named and do not cost the others. Raises `ValueError` when none was added.
        """
        name = " ".join((class_name or "").split())
        if not name:
            raise ValueError("The class has no name yet: type one, such as “opening a door”.")
        if len(name) > MAX_NAME_LENGTH:
            raise ValueError(f"The name has {len(name)} characters; at most {MAX_NAME_LENGTH} are possible.")
        if name.casefold() == UNKNOWN_LABEL:
            raise ValueError(f"“{UNKNOWN_LABEL}” is the answer to clips of no class: choose another name.")
        if not clips:
            raise ValueError(f"“{name}” has no clip yet: drop video files or record one.")
        if len(clips) > MAX_CLIPS_AT_ONCE:
            raise ValueError(f"These are {len(clips)} clips; at most {MAX_CLIPS_AT_ONCE} can be added at once.")
        num_clips = sum(self.support_set.num_clips.values())
        if num_clips + len(clips) > MAX_CLIPS:
            raise ValueError(
                f"You have {num_clips} clips, and {len(clips)} more would pass the limit of {MAX_CLIPS}: remove some."
            )
        # Whoever types a name a second time means the same class, whatever its capitals.
        name = next((known for known in self.support_set.class_names if known.casefold() == name.casefold()), name)
        unreadable, end = [], time.monotonic() + SECONDS_AT_ONCE
        for clip in clips:
            if time.monotonic() > end:
                unreadable.append(f"“{Path(clip).name}” was left out: the {SECONDS_AT_ONCE} s for a request were up.")
                continue
            try:
                _check_no_archive(clip)
                self.support_set.add(pipeline.model, pipeline.processor, {name: [clip]})
            except VideoReadError as error:
                unreadable.append(_without_folders(error, clip))
        num_added = len(clips) - len(unreadable)
        if not num_added:
            raise ValueError(" ".join(unreadable))
        self.revision += 1
        added = f"Added {num_added} {'clip' if num_added == 1 else 'clips'} to “{name}”."
        return " ".join([added, *unreadable])

    def remove(self, class_name: str, clip: str | None = None):
        """Takes out a clip by its name, or the whole class."""
        if clip is None:
            self.support_set.remove_class(class_name)
        else:
            self.support_set.remove_clip(class_name, clip)
        self.revision += 1

    def set_query(self, pipeline: FewShotVideoClassificationPipeline, clip: str | None):
        """Encodes the clip in question, given as a path; None takes it away. An unreadable one does, too."""
        self.query_path, self.query_embeds, self.query_frames = clip, None, None
        self.revision += 1
        if clip is None:
            return
        try:
            _check_no_archive(clip)
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
        """The explanation, if there can be one, and what remains to be said or done."""
        self.explanation = None
        names = self.support_set.class_names
        if len(names) < 2:
            have = f"So far there is only “{names[0]}”. " if names else ""
            return None, f"{have}Name at least two classes and show a clip of each."
        if self.query_embeds is None:
            return None, "Now show a clip that is in question."
        if detect_unknown and inference_mode != "zero_shot" and max(self.support_set.num_clips.values()) < 2:
            detect_unknown = False
            note = f"To recognise “{UNKNOWN_LABEL}”, one class at least needs a second clip."
        else:
            note = ""
        try:
            self.explanation = self._explain(pipeline, inference_mode, detect_unknown)
        except ValueError as error:  # of the calibration alone: everything else was checked
            if not detect_unknown:
                raise
            self.explanation, note = self._explain(pipeline, inference_mode, False), str(error)
        return self.explanation, note

    def _explain(self, pipeline, inference_mode: str, detect_unknown: bool) -> Explanation:
        explanation = self.support_set.explain(pipeline.model, self.query_embeds, inference_mode, detect_unknown)
        explanation.query_frames = self.query_frames
        return explanation


def _check_no_archive(clip: str):
    """Frame archives are for data sets that one made oneself: they are read here, without a limit of time."""
    try:
        with open(clip, "rb") as file:
            is_archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    except OSError:
        return  # the reader says why
    if is_archive:
        raise VideoReadError(f"Cannot read video {clip!r}: it is an archive; video files are wanted.", clip)


def _without_folders(error: Exception, clip: str) -> str:
    """Paths of the server say nothing to a visitor."""
    return str(error).replace(str(clip), Path(clip).name)


# --- examples ---------------------------------------------------------------------------------------------------------

QUERIES = "queries"


@dataclass
class Examples:
    """Paths of example clips: those of each class, and clips to ask about by their names."""

    classes: dict[str, list[str]] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Examples":
        """The clips in FOLDER/CLASS and FOLDER/queries.

        Raises:
            ValueError: Without a folder of clips, with an empty one, or with two that stand for one class.
        """
        folder = Path(folder)
        classes = {name: [str(clip) for clip in clips] for name, clips in find_classes(folder).items()}
        queries = {class_name_of_folder(Path(clip).stem): clip for clip in classes.pop(QUERIES, ())}
        return cls(classes, queries)

    def add_to(self, visitor: Visitor, pipeline: FewShotVideoClassificationPipeline) -> str:
        """Enrols the example classes that the visitor does not have yet."""
        missing = {name: clips for name, clips in self.classes.items() if name not in visitor.support_set}
        for name, clips in missing.items():
            visitor.add(pipeline, name, clips)
        return f"Added {len(missing)} example classes." if missing else "The example classes are here already."

    @property
    def note_on_queries(self) -> str:
        """What the page says above the queries."""
        strangers = [name for name in self.queries if name not in self.classes]
        if self.classes and strangers == list(self.queries)[-1:]:
            return "Or an example; the last one is of none of the example classes:"
        return "Or an example:"
