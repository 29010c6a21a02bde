"""Enrolled classes: clips are encoded once, saved and shared, and videos are classified against them.

A `SupportSet` holds the frame features of each clip and the text feature of each class. Neither depends on the other
clips, and prototypes are quick to compute from them. You can add and remove classes and clips; the others are not
re-encoded.
Letters in shapes: N classes, K clips of a class, Q query videos, T frames, D feature size.
"""

import itertools
import numbers
import os
import tempfile
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from tqdm.auto import tqdm
from transformers.utils import cached_file

try:
    from .choices_clipfsar import NamesChecked, check_known, check_same_num_frames, check_truth, checked_seed, is_number
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import NamesChecked, check_known, check_same_num_frames, check_truth, checked_seed, is_number

try:
    from .class_texts_clipfsar import check_class_prompts
except ImportError:
    if __package__:
        raise
    from class_texts_clipfsar import check_class_prompts

try:
    from .enrolled_clipfsar import Snapshot, check_enough_classes, checked_mode, listed
except ImportError:
    if __package__:
        raise
    from enrolled_clipfsar import Snapshot, check_enough_classes, checked_mode, listed

try:
    from .enrolling_clipfsar import check_enrolling, encode_class_names, encode_clips, repeatable_sampling, with_clips
except ImportError:
    if __package__:
        raise
    from enrolling_clipfsar import check_enrolling, encode_class_names, encode_clips, repeatable_sampling, with_clips

try:
    from .explanation_clipfsar import Explanation
except ImportError:
    if __package__:
        raise
    from explanation_clipfsar import Explanation

try:
    from .fingerprint_clipfsar import (
        differences,
        fingerprint_of,
        precision_of,
        preprocessing_settings,
        unseen_settings,
        weights_digest,
    )
except ImportError:
    if __package__:
        raise
    from fingerprint_clipfsar import (
        differences,
        fingerprint_of,
        precision_of,
        preprocessing_settings,
        unseen_settings,
        weights_digest,
    )

try:
    from .review_clipfsar import SupportSetReview, repeated_clips, review_classes
except ImportError:
    if __package__:
        raise
    from review_clipfsar import SupportSetReview, repeated_clips, review_classes

try:
    from .suggestion_clipfsar import Suggestion, suggest_clips
except ImportError:
    if __package__:
        raise
    from suggestion_clipfsar import Suggestion, suggest_clips

try:
    from .paths_clipfsar import check_folder
except ImportError:
    if __package__:
        raise
    from paths_clipfsar import check_folder

try:
    from .support_set_files_clipfsar import (
        SUPPORT_SET_NAME,
        SUPPORT_SET_WEIGHTS_NAME,
        EnrolledClass,
        Unknowns,
        check_on_hub,
        meaning,
        read_support_set,
        write_support_set,
    )
except ImportError:
    if __package__:
        raise
    from support_set_files_clipfsar import (
        SUPPORT_SET_NAME,
        SUPPORT_SET_WEIGHTS_NAME,
        EnrolledClass,
        Unknowns,
        check_on_hub,
        meaning,
        read_support_set,
        write_support_set,
    )

try:
    from .tuning_clipfsar import Tuning, tune_classes, with_settings
except ImportError:
    if __package__:
        raise
    from tuning_clipfsar import Tuning, tune_classes, with_settings

try:
    from .video_clipfsar import as_video_list
except ImportError:
    if __package__:
        raise
    from video_clipfsar import as_video_list

arithmetic = precision_of  # its name in version 0.1

# A video counts as unknown if its score of "none of these" is at least this: equal odds.
UNKNOWN_THRESHOLD = 0.5
_BACKGROUND = "the background"  # in messages
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download", "proxies")


# --- the support set --------------------------------------------------------------------------------------------------


class SupportSet(NamesChecked):
    """Classes enrolled from clips, any number per class, for one model and its preprocessing.

        support_set = SupportSet.from_videos(model, processor, {"boxing": ["a.mp4", "b.mp4"], "diving": ["c.mp4"]})
        support_set.add(model, processor, {"diving": ["d.mp4"], "running": ["e.mp4"]})
        support_set.remove_clip("boxing", "b.mp4")
        support_set.save_pretrained("my_classes")
        logits = SupportSet.from_pretrained("my_classes").classify(model, model.get_video_features(pixel_values))

    Adding and removing never re-encodes a clip. `fingerprint` records the model, precision and preprocessing of the
    features; any use with different ones is an error that names both.

    Threads may classify while another one changes the set: every answer comes from one `Snapshot` of it. Each change
    replaces `classes` and does not modify it in place.
    """

    def __init__(
        self,
        fingerprint: dict | None = None,
        classes: Mapping[str, EnrolledClass] | None = None,
        settings: Mapping[str, Any] | None = None,
        unknowns: Unknowns | None = None,
    ):
        self.fingerprint = fingerprint
        self.classes = dict(classes or {})
        self.settings = dict(settings or {})  # of the model's configuration, see `tune`
        self.unknowns = unknowns or Unknowns()  # background clips and the error rate; a change replaces the object
        self._snapshot: Snapshot | None = None  # the last one
        self._lock = threading.RLock()  # held while the set changes or a snapshot is made

    def __getstate__(self) -> dict:
        names = ("fingerprint", "classes", "settings", "unknowns")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict) -> None:
        type(self).__init__(self, **state)

    @classmethod
    def from_videos(cls, model, processor, videos: Mapping[str, Any], **options) -> "SupportSet":
        """A new set from `{class name: videos}`; for the options see `add`."""
        support_set = cls()
        support_set.add(model, processor, videos, **options)
        return support_set

    # Contents

    @property
    def class_names(self) -> list[str]:
        return list(self.classes)

    @property
    def num_clips(self) -> dict[str, int]:
        return {name: len(enrolled.clip_names) for name, enrolled in self.classes.items()}

    def __len__(self) -> int:
        return len(self.classes)

    def __contains__(self, class_name: str) -> bool:
        return class_name in self.classes

    def __repr__(self) -> str:
        counts = ", ".join(f"{name!r}: {number}" for name, number in itertools.islice(self.num_clips.items(), 10))
        return f"SupportSet({len(self)} classes, clips {{{counts}{', ...' if len(self) > 10 else ''}}})"

    # Adding and removing

    def add(
        self,
        model,
        processor,
        videos: Mapping[str, Any],
        *,
        batch_size: int = 8,
        thumbnails: bool = True,
        skip_unreadable: bool = False,
        show_progress: bool = False,
    ) -> None:
        """Encodes clips and adds them to existing or new classes.

        Args:
            videos: `{class name: videos}`; a video is anything the processor reads. One video needs no list.
            batch_size: Clips per forward pass.
            thumbnails: Keep a small picture of each clip's frames, for explanations.
            skip_unreadable: Leave unreadable clips out, with a warning, instead of failing.

        A clip with the same frames as another one is added as well, with a warning that names both.

        Raises:
            ValueError: If there are no classes, a class has no clips, class names mean the same, `batch_size` is
                below 1, or the set was enrolled with another model or preprocessing.
            VideoReadError: For unreadable clips; the message names all of them, and the set stays unchanged.
        """
        videos = self._checked_videos(videos)
        check_class_prompts(processor, [*self.classes, *videos])  # rejects names of the same text before encoding
        options: dict = {"batch_size": batch_size, "thumbnails": thumbnails, "skip_unreadable": skip_unreadable}
        jobs = [(name, video) for name, clips in videos.items() for video in clips]
        encoded: dict[str, list] = {name: [] for name in videos}
        for name, clip in self._encode(model, processor, jobs, **options, show_progress=show_progress):
            encoded[name].append(clip)
        for name, clips in encoded.items():
            if not clips:
                raise ValueError(f"Class {name!r}: none of its {len(videos[name])} clips can be read.")
        for sentence in repeated_clips(self._with_background(), encoded):
            warnings.warn(sentence, stacklevel=2)
        self._insert(model, processor, encoded)

    def _encode(
        self,
        model,
        processor,
        jobs: list[tuple[str, Any]],
        *,
        batch_size: int = 8,
        thumbnails: bool = True,
        skip_unreadable: bool = False,
        show_progress: bool = False,
    ) -> list[tuple[str, tuple[str | None, torch.Tensor, bytes]]]:
        """Checks the model and encodes videos, given as (class, video); raises like `add`."""
        truths = {"thumbnails": thumbnails, "skip_unreadable": skip_unreadable, "show_progress": show_progress}
        check_enrolling(batch_size, **truths)
        if self.fingerprint is not None:
            self.check(model, processor)
        check_same_num_frames(model, processor)
        encoded: list[tuple[str, tuple[str | None, torch.Tensor, bytes]]] = []
        errors: list[str] = []
        with tqdm(total=len(jobs), desc="enrolling", unit="clip", disable=not show_progress) as progress:
            for start in range(0, len(jobs), batch_size):
                batch = jobs[start : start + batch_size]
                encoded += encode_clips(model, processor, batch, thumbnails, errors)
                progress.update(len(batch))
        if errors and not skip_unreadable:
            listed = "\n".join(errors)
            raise processor.unreadable_error(
                listed if len(errors) == 1 else f"{len(errors)} of {len(jobs)} clips cannot be read:\n{listed}"
            )
        for error in errors:
            warnings.warn(f"Left out of the support set: {error}", stacklevel=3)
        return encoded

    def _insert(self, model, processor, encoded: dict[str, list]) -> None:
        """Adds encoded clips to their classes; encodes the names of new classes."""
        with self._lock:
            if self.fingerprint is not None:
                self.check(model, processor)  # another thread may have enrolled the first class meanwhile
            classes = dict(self.classes)
            self._check_meanings(encoded)
            check_class_prompts(processor, [*classes, *encoded])
            new_names = [name for name in encoded if name not in classes]
            if new_names:
                for name, embeds in zip(new_names, encode_class_names(model, processor, new_names).cpu(), strict=True):
                    classes[name] = EnrolledClass(embeds.clone())
            for name, clips in encoded.items():
                classes[name] = with_clips(classes[name], clips)
            self.fingerprint = self.fingerprint or fingerprint_of(model, processor)
            self.classes = classes

    def rename_class(self, model, processor, class_name: str, new_name: str) -> None:
        """Renames a class and encodes its new name; its position and its clips stay.

        Raises `ValueError` for an unknown class, a name that another class has or that means the same, and a model or
        preprocessing other than the set's.
        """
        with self._lock:
            renamed = self._class(class_name)
            self.check(model, processor)
            others = {name: one for name, one in self.classes.items() if name != class_name}
            if new_name in others:
                raise ValueError(f"There is a class {new_name!r} already: choose another name, or remove that class.")
            self._check_meanings([new_name], others)
            check_class_prompts(processor, [*others, new_name])
            (embeds,) = encode_class_names(model, processor, [new_name]).cpu()
            renamed = replace(renamed, class_embeds=embeds.clone())
            items = self.classes.items()
            self.classes = dict((new_name, renamed) if name == class_name else (name, one) for name, one in items)

    def remove_class(self, class_name: str) -> None:
        """Removes a class with its clips. Raises `ValueError` for an unknown class."""
        with self._lock:
            self._class(class_name)
            self.classes = {name: one for name, one in self.classes.items() if name != class_name}

    def remove_clip(self, class_name: str, clip: str | int) -> None:
        """Removes a clip by its name or position.

        Raises `ValueError` for an unknown class or clip, and for the only clip of a class: remove the class instead.
        """
        with self._lock:
            enrolled = self._class(class_name)
            names = enrolled.clip_names
            is_position = isinstance(clip, numbers.Integral) and not isinstance(clip, bool)
            known = clip in names if isinstance(clip, str) else is_position and 0 <= clip < len(names)
            if not known:
                raise ValueError(f"Class {class_name!r} has no clip {clip!r}; it has {listed(names)}.")
            if len(names) == 1:
                raise ValueError(
                    f"{names[0]!r} is the only clip of class {class_name!r}: add another first, or remove the class "
                    "with remove_class."
                )
            position = names.index(clip) if isinstance(clip, str) else clip
            kept = [row for row in range(len(names)) if row != position]
            self.classes = self.classes | {class_name: enrolled.with_rows(kept)}

    # Videos of no class

    @property
    def background(self) -> list[str]:
        """Names of the background clips, see `add_background`."""
        return [] if self.unknowns.background is None else list(self.unknowns.background.clip_names)

    def add_background(self, model, processor, videos: Any, **options) -> None:
        """Encodes clips that show none of the classes, for example an empty scene.

        They are no class: no answer names them, and class probabilities do not change. `score_unknown` gives at least
        0.5 to a video that is nearer to them than to every class, except in `"zero_shot"` mode, which uses no clips.

        Args:
            videos: One video or several; anything the processor reads.
            options: `batch_size`, `thumbnails`, `skip_unreadable`, `show_progress`, as for `add`.

        Raises the errors of `add`, and warns of the same repeated clips.
        """
        jobs = [(_BACKGROUND, video) for video in as_video_list(videos)]
        clips = [clip for _, clip in self._encode(model, processor, jobs, **options)]
        if not clips:
            raise ValueError("There is no background clip to add: give at least one video that can be read.")
        for sentence in repeated_clips(self._with_background(), {_BACKGROUND: clips}):
            warnings.warn(sentence, stacklevel=2)
        with self._lock:
            if self.fingerprint is not None:
                self.check(model, processor)  # another thread may have enrolled the first class meanwhile
            self.fingerprint = self.fingerprint or fingerprint_of(model, processor)
            enrolled = self.unknowns.background or EnrolledClass(torch.zeros(clips[0][1].shape[-1]))
            self.unknowns = replace(self.unknowns, background=with_clips(enrolled, clips))

    def _with_background(self) -> dict[str, EnrolledClass]:
        background = self.unknowns.background
        return self.classes if background is None else {**self.classes, _BACKGROUND: background}

    def remove_background(self) -> None:
        """Removes all background clips."""
        with self._lock:
            self.unknowns = replace(self.unknowns, background=None)

    @property
    def unknown_error_rate(self) -> float | None:
        """Largest chance that `score_unknown` gives a video of an enrolled class 0.5 or more; saved with the set.

        None, the default, balances both kinds of error without a guarantee. The guarantee of a number holds if the
        enrolled clips and new videos of these classes are drawn alike and independently, each class equally often among
        both. It is for the average over classes and over draws of the clips. It says nothing about videos of other
        classes, which are more often taken for known if the rate is low.

        Raises:
            ValueError: For a number that is not between 0 and 1. `score_unknown` raises it when there are fewer than
                1 / rate - 1 clips that can be left out.
        """
        return self.unknowns.error_rate

    @unknown_error_rate.setter
    def unknown_error_rate(self, rate: float | None) -> None:
        if rate is not None and not (is_number(rate) and 0 < rate < 1):
            raise ValueError(f"unknown_error_rate={rate!r} must be a number between 0 and 1, or None.")
        with self._lock:
            self.unknowns = replace(self.unknowns, error_rate=None if rate is None else float(rate))

    def _class(self, class_name: str) -> EnrolledClass:
        if class_name not in self.classes:
            raise ValueError(f"There is no class {class_name!r}; enrolled are {listed(self.class_names)}.")
        return self.classes[class_name]

    def _checked_videos(self, videos: Mapping[str, Any]) -> dict[str, list]:
        if not isinstance(videos, Mapping) or not videos:
            raise ValueError("Give the clips to enroll as {class name: [video, ...]}, with at least one class.")
        self._check_meanings(videos)
        checked = {}
        for name, clips in videos.items():
            checked[name] = as_video_list(clips)
            if not checked[name]:
                raise ValueError(f"Class {name!r} has no clips: give it at least one or leave the class out.")
        return checked

    def _check_meanings(self, names: Iterable[str], classes: Iterable[str] | None = None) -> None:
        """Raises `ValueError` for blank names and for names that mean the same, `classes` (the set's) included."""
        meanings = {meaning(name): name for name in (self.classes if classes is None else classes)}
        for name in names:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"Class name {name!r} is not usable: names must be strings that are not blank.")
            if meanings.setdefault(meaning(name), name) != name:
                raise ValueError(
                    f"Class names {meanings[meaning(name)]!r} and {name!r} mean the same: use one of them for both."
                )

    # Classifying

    def snapshot(self, model) -> Snapshot:
        """The current classes with their prototypes from a model; cached until something changes.

        Raises:
            ValueError: If no class is enrolled, or the model is not the set's.
        """
        with self._lock:
            classes = self.classes
            if self.fingerprint is not None and not classes:
                check_enough_classes([])
            self.check(model)
            if self._snapshot is None or not self._snapshot.is_of(model, classes, self.settings, self.unknowns):
                self._snapshot = Snapshot(model, classes, self.settings, self.unknowns)
            return self._snapshot

    def _checked_snapshot(self, model, inference_mode: str | None) -> Snapshot:
        """A snapshot, after checks of the mode and the number of classes, which are cheap."""
        checked_mode(model, inference_mode)
        check_enough_classes(self.class_names)
        return self.snapshot(model)

    def classify(self, model, query_embeds: torch.Tensor, inference_mode: str | None = None) -> torch.Tensor:
        """Logits (Q, N) of query videos; `softmax` gives class probabilities, in the order of `class_names`.

        If other threads change the set, use a `snapshot`: it has the same method, and the class names of its logits.

        Args:
            query_embeds: Frame features of the visual tower (from `model.get_video_features`), (Q, T, D).
            inference_mode: `"few_shot"`, `"zero_shot"` or `"ensemble"`; by default the model's.

        Raises:
            ValueError: For an unknown mode, fewer than two classes, another model than the set's, features of another
                shape, or NaN in the logits.
        """
        return self._checked_snapshot(model, inference_mode).classify(model, query_embeds, inference_mode)

    def compare(self, model, query_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances to the prototypes and text logits of query videos (Q, T, D), both (Q, N). Raises as `classify`."""
        return self.snapshot(model).compare(model, query_embeds)

    def get_prototypes(self, model) -> torch.Tensor:
        """(N, T, D), on the model's device; cached until classes, clips or the model change."""
        return self.snapshot(model).prototypes

    def score_unknown(self, model, query_embeds: torch.Tensor, inference_mode: str | None = None) -> torch.Tensor:
        """Scores (Q,) from 0 to 1 that query videos (Q, T, D) belong to *none* of the enrolled classes.

        It compares each video with the nearest clip of each class, and with what is usual between clips of this class
        (`"few_shot"`), with the class names (`"zero_shot"`), or with both (`"ensemble"`). Clips that were cut from one
        video are not compared with each other.

        The enrolled clips calibrate it: known videos are clips left out of their class, unknown ones are clips without
        their class. 0.5 stands for equal odds. With an `unknown_error_rate`, 0.5 is the threshold of that rate instead.

        Raises:
            ValueError: As `classify`; also when no class has two clips, when left-out clips are as near to other
                classes as to their own, or when there are too few clips for the `unknown_error_rate`.
        """
        return self._checked_snapshot(model, inference_mode).score_unknown(model, query_embeds, inference_mode)

    def explain(
        self, model, query_embeds: torch.Tensor, inference_mode: str | None = None, detect_unknown: bool = False
    ) -> Explanation:
        """Explains the classification of a query video, frame features (T, D). Clip frames come from the thumbnails.

        Raises as `classify`.
        """
        snapshot = self._checked_snapshot(model, inference_mode)
        return snapshot.explain(model, query_embeds, inference_mode, detect_unknown)

    # Improving

    def review(
        self, model, inference_mode: str | None = None, sources: Mapping[Any, str] | None = None, seed: int = 0
    ) -> SupportSetReview:
        """Judges the enrolled clips by leaving them out: expected accuracy, suspect labels, doubles, similar classes.

        Nothing is encoded anew. Clips that were cut from one video are left out together, so that they do not flatter
        the accuracy.

        Args:
            inference_mode: `"few_shot"`, `"zero_shot"` or `"ensemble"`; by default the model's.
            sources: The video that each clip was cut from, `{clip name: source}` or
                `{(class name, clip name): source}`. By default clip names tell, see `left_out_clipfsar.source_of`;
                `{}` counts every clip as a video of its own.
            seed: Seed of the rounds that are averaged.

        Raises:
            ValueError: As `classify`, and for the name of a clip in `sources` that is not enrolled.
        """
        seed = checked_seed("seed", seed)
        snapshot = self._checked_snapshot(model, inference_mode)
        model = with_settings(model, snapshot.settings)
        return review_classes(model, snapshot.enrolled, checked_mode(model, inference_mode), sources, seed)

    def tune(self, model, sources: Mapping[Any, str] | None = None, seed: int = 0) -> Tuning:
        """Chooses inference mode, ensemble weight, temperature and alignment by holding clips out; keeps the choice.

        The set uses the choice from then on wherever you give no `inference_mode`, and saves it. Weights, features and
        the model's configuration stay. The accuracy in the result comes from clips that had no part in the choice. The
        model's own settings stay if a class has clips of fewer than three videos, or if other settings are not better
        on these clips.

        Args:
            sources: As for `review`.
            seed: Seed of the rounds.

        Raises:
            ValueError: As `classify`, and for the name of a clip in `sources` that is not enrolled.
        """
        seed = checked_seed("seed", seed)
        snapshot = self._checked_snapshot(model, None)
        tuning = tune_classes(model, snapshot.enrolled, sources, seed)
        with self._lock:
            self.settings = dict(tuning.settings)
        return tuning

    def suggest(
        self,
        model,
        pool_embeds: torch.Tensor,
        k: int,
        strategy: str = "representative",
        inference_mode: str | None = None,
        seed: int = 0,
    ) -> list[Suggestion]:
        """The `k` clips of an unlabelled pool to label next, with the classes that they are taken for now.

        Args:
            pool_embeds: Frame features of the pool (from `model.get_video_features`), (P, T, D).
            strategy: `"representative"` takes clips that resemble many others which no enrolled or suggested clip
                resembles; those whose class is unsure count more. `"margin"` takes clips whose two best classes are
                nearest to each other, `"coverage"` clips least like any enrolled or suggested one, `"typicality"` the
                most typical clip of each of `k` clusters, and `"random"` any.
            seed: Breaks ties, and draws the random clips.

        Raises:
            ValueError: As `classify`, for an unknown strategy, and for a pool of fewer than `k` clips.
        """
        snapshot = self._checked_snapshot(model, inference_mode)
        return suggest_clips(
            lambda embeds: snapshot.classify(model, embeds, inference_mode),
            snapshot.enrolled,
            pool_embeds,
            k,
            strategy,
            seed,
        )

    def check(self, model, processor=None) -> None:
        """Raises `ValueError` when the set was enrolled with another model or, if a processor is given, with other
        preprocessing. The message names both sides."""
        if self.fingerprint is None:
            raise ValueError("No class is enrolled yet: add some with SupportSet.add(model, processor, videos).")
        now = fingerprint_of(model, processor)
        enrolled_with = self.fingerprint
        if any(now[name] != enrolled_with[name] for name in ("weights", "dtype")):
            one, other = (
                f"{made['model']!r} (weights {made['weights'][:8]}, {made['dtype']})" for made in (enrolled_with, now)
            )
            raise ValueError(
                f"The support set was enrolled with {one}, but this model is {other}: their features cannot be "
                "compared. Load the model it was enrolled with, or enroll the clips with this one."
            )
        if processor is None:
            return
        different = differences(enrolled_with["preprocessing"], now["preprocessing"])
        if different:
            raise ValueError(
                f"The support set was enrolled with other preprocessing: {'; '.join(different)}. Use the processor it "
                "was enrolled with, or enroll the clips with this one."
            )

    # Saving and loading

    def save_pretrained(self, save_directory: str | os.PathLike, thumbnails: bool = True) -> None:
        """Writes `support_set.safetensors` and `support_set.json`; the folder may also hold a model.

        `thumbnails=False` leaves out the pictures of the clips.
        """
        check_truth("thumbnails", thumbnails)
        with self._lock:
            fingerprint, classes, settings, unknowns = self.fingerprint, self.classes, self.settings, self.unknowns
        if fingerprint is None or not classes:
            raise ValueError("No class is enrolled, so there is nothing to save.")
        write_support_set(Path(save_directory), fingerprint, classes, thumbnails, settings, unknowns)

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | os.PathLike, **hub_options) -> "SupportSet":
        """Reads what `save_pretrained` or `push_to_hub` wrote: a folder or a Hub id.

        Args:
            hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`, as in transformers.

        Raises:
            ValueError: When a folder holds no support set or a damaged one.
            FileNotFoundError: When there is no such folder or repository, or the Hub cannot be reached.
            TypeError: For an unknown option.
            OSError: When the repository holds no support set (transformers' message).
        """
        check_known("SupportSet.from_pretrained", hub_options, _HUB_OPTIONS)
        name = os.fspath(pretrained_name_or_path)
        check_folder(name)
        names = (SUPPORT_SET_NAME, SUPPORT_SET_WEIGHTS_NAME)
        files = [os.path.join(name, hub_options.get("subfolder", ""), file) for file in names]
        if not os.path.exists(name):
            check_on_hub(name, **hub_options)
            files = [cached_file(name, file, **hub_options) for file in names]
        elif not os.path.isfile(files[0]):
            why = f"there is no {SUPPORT_SET_NAME} in it" if os.path.isdir(name) else "it is not a folder"
            raise ValueError(f"{name!r} holds no support set: {why}.")
        return cls(*read_support_set(name, *files))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload support set",
        thumbnails: bool = False,
    ) -> str:
        """Uploads the two files to a Hub repository, created if missing; returns the address of the commit.

        Args:
            private: Make a new repository private; an existing one stays as it is.
            revision: Branch, created if missing.
            thumbnails: Also upload the pictures of the clips.
        """
        check_truth("private", private)
        check_truth("thumbnails", thumbnails)
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, thumbnails=thumbnails)
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )


__all__ = [
    "UNKNOWN_THRESHOLD",
    "EnrolledClass",
    "SupportSet",
    "arithmetic",
    "encode_class_names",
    "preprocessing_settings",
    "repeatable_sampling",
    "unseen_settings",
    "weights_digest",
]
