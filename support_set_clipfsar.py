"""Enrolled classes: clips encoded once, kept, saved and shared, against which videos are then classified.

A `SupportSet` holds the frame features of each clip and the text feature of each class. Neither depends on the other
clips, and prototypes follow from them in no time: you can add and remove classes and clips, and the others are not
re-encoded.
Letters in shapes: N classes, K clips of a class, Q query videos, T frames, D feature size.
"""

import io
import itertools
import os
import re
import tempfile
import urllib.parse
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import cached_file

try:
    from .choices_clipfsar import INFERENCE_MODES, check_finite, check_same_num_frames
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import INFERENCE_MODES, check_finite, check_same_num_frames

try:
    from .explanation_clipfsar import Explanation, explain_classification
except ImportError:
    if __package__:
        raise
    from explanation_clipfsar import Explanation, explain_classification

try:
    from .fingerprint_clipfsar import (
        COMPARISON_SETTINGS,
        differences,
        fingerprint_of,
        precision_of,
        preprocessing_settings,
        unseen_settings,
        weights_digest,
        weights_state,
    )
except ImportError:
    if __package__:
        raise
    from fingerprint_clipfsar import (
        COMPARISON_SETTINGS,
        differences,
        fingerprint_of,
        precision_of,
        preprocessing_settings,
        unseen_settings,
        weights_digest,
        weights_state,
    )

try:
    from .modeling_clipfsar import evaluating
except ImportError:
    if __package__:
        raise
    from modeling_clipfsar import evaluating

try:
    from .limits_clipfsar import UnreadableError, check_frame_size
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import UnreadableError, check_frame_size

try:
    from .support_set_files_clipfsar import (
        SUPPORT_SET_NAME,
        SUPPORT_SET_WEIGHTS_NAME,
        EnrolledClass,
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
        meaning,
        read_support_set,
        write_support_set,
    )

try:
    from .video_clipfsar import as_video_list
except ImportError:
    if __package__:
        raise
    from video_clipfsar import as_video_list

arithmetic = precision_of  # its name in version 0.1

# From this score of "none of these" a video counts as unknown: equal odds.
UNKNOWN_THRESHOLD = 0.5

THUMBNAIL_HEIGHT = 96


def repeatable_sampling(processor) -> str | None:
    """For `process_videos`: segment centres in place of random frames, so that the same clip gives the same answer."""
    return "segment_center" if processor.frame_sampling == "segment_random" else None


# --- the support set --------------------------------------------------------------------------------------------------


class SupportSet:
    """Classes enrolled from clips, any number per class, for one model and its preprocessing.

        support_set = SupportSet.from_videos(model, processor, {"boxing": ["a.mp4", "b.mp4"], "diving": ["c.mp4"]})
        support_set.add(model, processor, {"diving": ["d.mp4"], "running": ["e.mp4"]})
        support_set.remove_clip("boxing", "b.mp4")
        support_set.save_pretrained("my_classes")
        logits = SupportSet.from_pretrained("my_classes").classify(model, model.get_video_features(pixel_values))

    Adding and removing never encodes a clip again. `fingerprint` says what the features were made with; every use with
    another model, precision or preprocessing is an error that names both.
    """

    def __init__(self, fingerprint: dict | None = None, classes: Mapping[str, EnrolledClass] | None = None):
        self.fingerprint = fingerprint
        self.classes = dict(classes or {})
        self._derived: dict[str, Any] = {}  # prototypes and what else follows from classes and model

    @classmethod
    def from_videos(cls, model, processor, videos: Mapping[str, Any], **options) -> "SupportSet":
        """A new set out of `{class name: videos}`; for the options see `add`."""
        support_set = cls()
        support_set.add(model, processor, videos, **options)
        return support_set

    # What is in it

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

    # Coming and going

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
        """Encodes clips and adds them to classes that are there or to new ones.

        Args:
            videos: `{class name: videos}`; a video is whatever the processor reads, one alone is a list of one.
            batch_size: Clips per forward.
            thumbnails: Keep a small picture of each clip's frames, for explanations.
            skip_unreadable: Leave unreadable clips out, with a warning, instead of failing.

        Raises:
            ValueError: Without classes, with a class without clips, for class names that mean the same, or when the set
                was enrolled with another model or preprocessing.
            VideoReadError: For unreadable clips, naming all of them; the set is then as it was before.
        """
        videos = self._checked_videos(videos)
        if self.fingerprint is not None:
            self.check(model, processor)
        check_same_num_frames(model, processor)
        processor.tokenize_classes([*self.classes, *videos])  # refuses names of one text before clips are encoded
        jobs = [(name, video) for name, clips in videos.items() for video in clips]
        encoded, errors = {name: [] for name in videos}, []
        progress = tqdm(total=len(jobs), desc="enrolling", unit="clip", disable=not show_progress)
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            for name, clip in _encode_clips(model, processor, batch, thumbnails, errors):
                encoded[name].append(clip)
            progress.update(len(batch))
        progress.close()
        if errors and not skip_unreadable:
            listed = "\n".join(errors)
            raise processor.unreadable_error(
                listed if len(errors) == 1 else f"{len(errors)} of {len(jobs)} clips cannot be read:\n{listed}"
            )
        for error in errors:
            warnings.warn(f"Left out of the support set: {error}", stacklevel=2)
        for name, clips in encoded.items():
            if not clips:
                raise ValueError(f"Class {name!r}: none of its {len(videos[name])} clips can be read.")
        self._take_in(model, processor, encoded)

    def _take_in(self, model, processor, encoded: dict[str, list]) -> None:
        """Puts encoded clips into their classes, new ones with their text feature."""
        if self.fingerprint is None:
            self.fingerprint = fingerprint_of(model, processor)
        new_names = [name for name in encoded if name not in self.classes]
        if new_names:
            for name, embeds in zip(new_names, encode_class_names(model, processor, new_names).cpu(), strict=True):
                self.classes[name] = EnrolledClass(embeds.clone())
        for name, clips in encoded.items():
            self._append(self.classes[name], clips)
        self._derived.clear()

    def remove_class(self, class_name: str) -> None:
        """Raises `ValueError` for a class that is not there."""
        self._class(class_name)
        del self.classes[class_name]
        self._derived.clear()

    def remove_clip(self, class_name: str, clip: str | int) -> None:
        """Removes a clip by its name or position; the last one of a class only goes with the class.

        Raises `ValueError` for a class or clip that is not there, and for the last clip.
        """
        enrolled = self._class(class_name)
        known = clip in enrolled.clip_names if isinstance(clip, str) else 0 <= clip < len(enrolled.clip_names)
        if not known:
            raise ValueError(f"Class {class_name!r} has no clip {clip!r}; it has {_listed(enrolled.clip_names)}.")
        if len(enrolled.clip_names) == 1:
            raise ValueError(
                f"{enrolled.clip_names[0]!r} is the only clip of class {class_name!r}: add another first, or take the "
                "class out with remove_class."
            )
        position = enrolled.clip_names.index(clip) if isinstance(clip, str) else clip
        kept = [row for row in range(len(enrolled.clip_names)) if row != position]
        enrolled.clip_names = [enrolled.clip_names[row] for row in kept]
        enrolled.thumbnails = [enrolled.thumbnails[row] for row in kept]
        enrolled.support_embeds = enrolled.support_embeds[kept]
        self._derived.clear()

    def _class(self, class_name: str) -> EnrolledClass:
        if class_name not in self.classes:
            raise ValueError(f"There is no class {class_name!r}; enrolled are {_listed(self.class_names)}.")
        return self.classes[class_name]

    def _checked_videos(self, videos: Mapping[str, Any]) -> dict[str, list]:
        if not isinstance(videos, Mapping) or not videos:
            raise ValueError("Give the clips to enrol as {class name: [video, ...]}, with at least one class.")
        meanings = {meaning(name): name for name in self.classes}
        checked = {}
        for name, clips in videos.items():
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"Class name {name!r} is not usable: names must be strings that are not blank.")
            if meanings.setdefault(meaning(name), name) != name:
                raise ValueError(
                    f"Class names {meanings[meaning(name)]!r} and {name!r} mean the same: use one of them for both."
                )
            checked[name] = as_video_list(clips)
            if not checked[name]:
                raise ValueError(f"Class {name!r} has no clips: give it at least one or leave the class out.")
        return checked

    @staticmethod
    def _append(enrolled: EnrolledClass, clips: list[tuple[str | None, torch.Tensor, bytes]]) -> None:
        for name, _, thumbnail in clips:
            enrolled.clip_names.append(_unused_name(name, enrolled.clip_names))
            enrolled.thumbnails.append(thumbnail)
        new = torch.stack([embeds for _, embeds, _ in clips])
        old = enrolled.support_embeds
        enrolled.support_embeds = new if old is None else torch.cat([old, new])

    # Classifying

    def classify(self, model, query_embeds: torch.Tensor, inference_mode: str | None = None) -> torch.Tensor:
        """Logits (Q, N) of query videos; `softmax` gives class probabilities, in the order of `class_names`.

        Args:
            query_embeds: Frame features of the visual tower (of `model.get_video_features`), (Q, T, D).
            inference_mode: `"few_shot"`, `"zero_shot"` or `"ensemble"`; by default the model's.

        Raises:
            ValueError: For an unknown mode, fewer than two classes, another model than the set's, or NaN in the logits.
        """
        inference_mode = self._checked_mode(model, inference_mode)
        distances, text_logits = self.compare(model, query_embeds)
        logits = model.get_logits(distances, text_logits, inference_mode)
        check_finite("The logits", logits, [f"query video {row}" for row in range(len(logits))], model)
        return logits

    def _checked_mode(self, model, inference_mode: str | None) -> str:
        inference_mode = inference_mode or model.config.inference_mode
        if inference_mode not in INFERENCE_MODES:
            raise ValueError(f"inference_mode={inference_mode!r} is not one of {', '.join(INFERENCE_MODES)}.")
        if len(self) < 2:
            raise ValueError(
                f"Enrolled: {_listed(self.class_names) or 'nothing'}. At least two classes are needed: with one, every "
                "video would be of it with a score of 1."
            )
        return inference_mode

    def compare(self, model, query_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances to the prototypes and text logits of query videos (Q, T, D), both (Q, N)."""
        prototypes = self.get_prototypes(model)
        query_embeds = query_embeds.to(model.device)
        with evaluating(model):
            distances = model.get_distances(model.get_query_states(query_embeds), prototypes)
            return distances, model.get_text_logits(query_embeds, self._derived["class_embeds"])

    def get_prototypes(self, model) -> torch.Tensor:
        """(N, T, D), on the model's device; made once and kept until classes, clips or the model change."""
        self.check(model)
        settings = tuple(getattr(model.config, name) for name in COMPARISON_SETTINGS)
        distance = getattr(model.align, "__func__", model.align)  # a subclass may have a distance of its own
        made_with = (weights_state(model), settings, type(model), distance)
        if self._derived.get("made_with") != made_with:
            enrolled = list(self.classes.values())
            class_embeds = torch.stack([one.class_embeds for one in enrolled]).to(model.device)
            support_embeds = torch.cat([one.support_embeds for one in enrolled]).to(model.device)
            labels = torch.arange(len(enrolled)).repeat_interleave(torch.tensor(list(self.num_clips.values())))
            check_finite("The enrolled clips", support_embeds, [self.class_names[label] for label in labels], model)
            with evaluating(model):
                prototypes = model.get_prototypes(
                    support_embeds[None], labels[None].to(model.device), class_embeds[None]
                )[0]
            self._derived = {"made_with": made_with, "class_embeds": class_embeds, "prototypes": prototypes}
        return self._derived["prototypes"]

    # None of these

    def score_unknown(self, model, query_embeds: torch.Tensor, inference_mode: str | None = None) -> torch.Tensor:
        """Scores (Q,) from 0 to 1 of query videos (Q, T, D) being of *none* of the enrolled classes.

        Calibrated on the set itself by leaving out. What known videos look like: each clip against the prototypes made
        without it, so only clips of classes with two or more count. What unknown ones look like: each clip with its
        class taken away. Compared is the distance to the nearest prototype, the largest text logit (`"zero_shot"`,
        where clips of classes with one count, too), or both (`"ensemble"`). A linear discriminant with equal odds for
        known and unknown makes the score. It knows no other unknowns than the enrolled classes are to each other.

        Raises:
            ValueError: As `classify`; when no class has two clips; when left-out clips are as near to other classes as
                to their own.
        """
        inference_mode = self._checked_mode(model, inference_mode)
        distances, text_logits = self.compare(model, query_embeds)
        weights, offset = self._calibration(model, inference_mode)
        return (_nearness(distances, text_logits, inference_mode) @ weights + offset).sigmoid()

    def _calibration(self, model, inference_mode: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and offset of the linear discriminant of a mode; kept until the set or the model change."""
        self.get_prototypes(model)  # forgets calibrations of before a change
        kept = self._derived.setdefault("calibrations", {})
        if inference_mode not in kept:
            counts = torch.tensor(list(self.num_clips.values()))
            labels = torch.arange(len(self)).repeat_interleave(counts)
            is_known = counts[labels] > 1
            if inference_mode == "zero_shot":
                is_known[:] = True
            if not is_known.any():
                raise ValueError(
                    "What unknown videos look like is learned by leaving clips out, but no class has two clips: enrol "
                    "more, or use inference_mode='zero_shot'."
                )
            known_distances, distances, text_logits = self._left_out_comparisons(model)
            own = torch.nn.functional.one_hot(labels, len(self)).bool().to(distances.device)
            known = _nearness(known_distances, text_logits, inference_mode)[is_known]
            others = distances.masked_fill(own, torch.inf), text_logits.masked_fill(own, -torch.inf)
            kept[inference_mode] = _linear_discriminant(known, _nearness(*others, inference_mode))
        return kept[inference_mode]

    def _left_out_comparisons(self, model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of all enrolled clips (S): distances to the prototypes with that of the own class made without the clip
        (infinite for an only clip), distances to all as they are, text logits; each (S, N)."""
        if "left_out" not in self._derived:
            enrolled = list(self.classes.values())
            distances, text_logits = self.compare(model, torch.cat([one.support_embeds for one in enrolled]))
            own_distances = torch.cat([self._left_out_distances(model, one) for one in enrolled])
            columns = torch.arange(len(enrolled)).repeat_interleave(torch.tensor(list(self.num_clips.values())))
            left_out = distances.scatter(1, columns[:, None].to(model.device), own_distances[:, None])
            self._derived["left_out"] = left_out, distances, text_logits
        return self._derived["left_out"]

    @staticmethod
    def _left_out_distances(model, one: EnrolledClass, clips_per_batch: int = 16) -> torch.Tensor:
        """Distance (K,) of each clip of a class to the prototype made of the others."""
        embeds, text = one.support_embeds.to(model.device), one.class_embeds.to(model.device)
        num_clips = len(embeds)
        if num_clips == 1:
            return torch.full((1,), torch.inf, device=model.device)
        others = torch.tensor([[row for row in range(num_clips) if row != left_out] for left_out in range(num_clips)])
        distances = []
        with evaluating(model):
            for rows in torch.arange(num_clips).split(clips_per_batch):
                labels = torch.zeros(len(rows), num_clips - 1, dtype=torch.long, device=model.device)
                texts = text.expand(len(rows), 1, -1)
                prototypes = model.get_prototypes(embeds[others[rows].to(model.device)], labels, texts)
                query_states = model.get_query_states(embeds[rows.to(model.device)].unsqueeze(1))
                distances.append(model.get_distances(query_states, prototypes).flatten())
        return torch.cat(distances)

    def explain(
        self, model, query_embeds: torch.Tensor, inference_mode: str | None = None, detect_unknown: bool = False
    ) -> Explanation:
        """Why a query video, frame features (T, D), is classified as it is; frames of the clips from the thumbnails."""
        inference_mode = self._checked_mode(model, inference_mode)
        prototypes = self.get_prototypes(model)
        query_embeds = query_embeds.to(model.device)
        with evaluating(model):
            numbers = explain_classification(
                model, query_embeds, prototypes, self._derived["class_embeds"], inference_mode
            )
        nearest = [_nearest_clip(one.support_embeds, query_embeds.float().cpu()) for one in self.classes.values()]
        enrolled = list(zip(self.classes.values(), nearest, strict=True))
        return Explanation(
            class_names=self.class_names,
            inference_mode=inference_mode,
            unknown_score=float(self.score_unknown(model, query_embeds[None], inference_mode))
            if detect_unknown
            else None,
            support_frames=[_frames_of_strip(one.thumbnails[row], len(query_embeds)) for one, row in enrolled],
            support_clips=[(one.clip_names[row], len(one.clip_names)) for one, row in enrolled],
            **numbers,
        )

    def check(self, model, processor=None) -> None:
        """Raises `ValueError` when the set was enrolled with another model or, where a processor is given, with other
        preprocessing; the message names both sides."""
        if self.fingerprint is None:
            raise ValueError("No class is enrolled yet: add some with SupportSet.add(model, processor, videos).")
        now = fingerprint_of(model, processor)
        enrolled_with = self.fingerprint
        if any(now[name] != enrolled_with[name] for name in ("weights", "dtype")):
            one, other = (
                f"{made['model']!r} (weights {made['weights'][:8]}, {made['dtype']})" for made in (enrolled_with, now)
            )
            raise ValueError(
                f"The support set was enrolled with {one}, but this model is {other}: their features do not compare. "
                "Load the model it was enrolled with, or enrol the clips with this one."
            )
        if processor is None:
            return
        different = differences(enrolled_with["preprocessing"], now["preprocessing"])
        if different:
            raise ValueError(
                f"The support set was enrolled with other preprocessing: {'; '.join(different)}. Use the processor it "
                "was enrolled with, or enrol the clips with this one."
            )

    # Keeping

    def save_pretrained(self, save_directory: str | os.PathLike, thumbnails: bool = True) -> None:
        """Writes `support_set.safetensors` and `support_set.json`; a model may lie in the same folder.

        `thumbnails=False` leaves the pictures of the clips out.
        """
        if not self.classes:
            raise ValueError("No class is enrolled, so there is nothing to save.")
        write_support_set(Path(save_directory), self.fingerprint, self.classes, thumbnails)

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | os.PathLike, **hub_options) -> "SupportSet":
        """Reads what `save_pretrained` or `push_to_hub` wrote: a folder or a Hub id.

        Args:
            hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`, as in transformers.

        Raises:
            ValueError: When a folder holds no support set or a damaged one.
            OSError: When the Hub cannot be reached or has none (transformers' message).
        """
        name = os.fspath(pretrained_name_or_path)
        if os.path.isdir(name) and not os.path.isfile(
            os.path.join(name, hub_options.get("subfolder", ""), SUPPORT_SET_NAME)
        ):
            raise ValueError(f"{name!r} holds no support set: there is no {SUPPORT_SET_NAME} in it.")
        description_file, tensor_file = (
            cached_file(name, file, **hub_options) for file in (SUPPORT_SET_NAME, SUPPORT_SET_WEIGHTS_NAME)
        )
        return cls(*read_support_set(name, description_file, tensor_file))

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
        """Uploads the two files to a Hub repository, made if need be; returns the address of the commit.

        Args:
            private: Of a new repository; one that is there stays as it is.
            revision: Branch, made if need be.
            thumbnails: Also upload the pictures of the clips.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, thumbnails=thumbnails)
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )


def _nearness(distances: torch.Tensor, text_logits: torch.Tensor, inference_mode: str) -> torch.Tensor:
    """What tells unknown videos from known ones, (Q, N) and (Q, N) -> (Q, 1 or 2); larger is less known."""
    nearest = {"few_shot": [distances.amin(-1)], "zero_shot": [-text_logits.amax(-1)]}
    nearest["ensemble"] = nearest["few_shot"] + nearest["zero_shot"]
    return torch.stack(nearest[inference_mode], dim=-1).cpu()


def _linear_discriminant(known: torch.Tensor, unknown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fisher's, of values (S, F): weights (F,) and an offset whose sum is the log odds of being unknown at equal odds.

    A tenth of each variance is added to it: a handful of clips does not tell a covariance well.
    """
    known, unknown = known.double(), unknown.double()  # on the CPU, where there are doubles
    difference = unknown.mean(0) - known.mean(0)
    if not (difference > 0).any():
        raise ValueError(
            "Nothing tells unknown videos from known ones here: left out, the enrolled clips are as near to other "
            "classes as to their own. More or clearer clips may help."
        )
    centred = torch.cat([known - known.mean(0), unknown - unknown.mean(0)])
    covariance = centred.T @ centred / max(1, len(centred) - 2)
    covariance += torch.diag(0.1 * covariance.diagonal() + 1e-6)
    helpful = difference > 0  # what points the wrong way is left out
    weights = torch.zeros_like(difference)
    weights[helpful] = torch.linalg.solve(covariance[helpful][:, helpful], difference[helpful])
    offset = -(weights @ (known.mean(0) + unknown.mean(0))) / 2
    return weights.float(), offset.float()


def _encode_clips(
    model, processor, jobs: list[tuple[str, Any]], thumbnails: bool, errors: list[str]
) -> list[tuple[str, tuple[str | None, torch.Tensor, bytes]]]:
    """Class, and file name, frame features and picture, of each readable clip of (class, video); what is wrong with
    the others goes to `errors`."""
    readable, pixel_values = [], []
    for job in jobs:
        try:
            video = processor.process_videos([job[1]], frame_sampling=repeatable_sampling(processor))
            pixel_values.append(video[0])
            readable.append(job)
        except processor.unreadable_error as error:
            errors.append(str(error))
    if not readable:
        return []
    with evaluating(model):
        embeds = model.get_video_features(torch.stack(pixel_values).to(model.device)).float().cpu()
    names = [_clip_name(video) or f"a clip of {name}" for name, video in readable]
    check_finite("The frame features", embeds, names, model)
    encoded = []
    for (name, video), clip_embeds, pixels in zip(readable, embeds, pixel_values, strict=True):
        picture = _film_strip(processor.to_frames(pixels)) if thumbnails else b""
        encoded.append((name, (_clip_name(video), clip_embeds.clone(), picture)))
    return encoded


def encode_class_names(model, processor, class_names: Iterable[str]) -> torch.Tensor:
    """Text features (N, D) of class names, float32, on the model's device."""
    tokens = processor.tokenize_classes(list(class_names))
    with evaluating(model):
        return model.get_class_features(**{name: ids.to(model.device) for name, ids in tokens.items()}).float()


def _film_strip(frames: torch.Tensor) -> bytes:
    """JPEG of frames, uint8 (T, H, W, C), side by side."""
    num_frames, height, width = frames.shape[:3]
    strip = Image.fromarray(frames.permute(1, 0, 2, 3).reshape(height, num_frames * width, -1).cpu().numpy())
    if height > THUMBNAIL_HEIGHT:
        frame_width = max(1, round(width * THUMBNAIL_HEIGHT / height))
        strip = strip.resize((num_frames * frame_width, THUMBNAIL_HEIGHT), Image.Resampling.BILINEAR)
    data = io.BytesIO()
    strip.save(data, format="JPEG", quality=85)
    return data.getvalue()


def _frames_of_strip(picture: bytes, num_frames: int) -> torch.Tensor | None:
    """uint8 (T, h, w, 3) of what `_film_strip` made.

    Raises:
        ValueError: For a picture that it did not make.
    """
    if not picture:
        return None
    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG",)) as strip:
            check_frame_size(strip.width // num_frames, strip.height)
            check_frame_size(*strip.size)
            pixels = torch.from_numpy(np.array(strip.convert("RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, UnreadableError) as error:
        raise ValueError(f"The picture of a clip is damaged ({error}): enrol the clip anew.") from error
    return torch.stack(pixels.split(pixels.shape[1] // num_frames, dim=1)[:num_frames])


def _nearest_clip(support_embeds: torch.Tensor, query_embeds: torch.Tensor) -> int:
    """Which of the clips (K, T, D) looks most like the query (T, D) frame by frame: the one to show."""
    return int(torch.cosine_similarity(support_embeds, query_embeds, dim=-1).mean(-1).argmax())


def _clip_name(video: Any) -> str | None:
    """The file name of a video that has one: folders say more about a machine than about a clip."""
    if isinstance(video, Mapping):
        video = video.get("path")
    path = video if isinstance(video, (str, os.PathLike)) else getattr(video, "name", None)
    if not isinstance(path, (str, os.PathLike)):
        return None
    path = os.fspath(path)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", path):
        path = urllib.parse.urlparse(path).path
    return os.path.basename(path.rstrip("/")) or None


def _unused_name(name: str | None, used: list[str]) -> str:
    if name is not None and name not in used:
        return name
    numbers = itertools.count(len(used) + 1 if name is None else 2)
    names = (f"clip {number}" if name is None else f"{name} ({number})" for number in numbers)
    return next(candidate for candidate in names if candidate not in used)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


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
