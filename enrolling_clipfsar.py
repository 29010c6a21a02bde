"""Encoding of clips and class names for enrolled classes.

Letters in shapes: N classes, T frames, D feature size.
"""

import io
import itertools
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from PIL import Image

try:
    from .choices_clipfsar import check_finite, check_positive_integer, check_truth
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import check_finite, check_positive_integer, check_truth

try:
    from .class_texts_clipfsar import average_prompts, tokenize_prompts
except ImportError:
    if __package__:
        raise
    from class_texts_clipfsar import average_prompts, tokenize_prompts

try:
    from .modeling_clipfsar import evaluating
except ImportError:
    if __package__:
        raise
    from modeling_clipfsar import evaluating

try:
    from .spans_clipfsar import split_span
except ImportError:
    if __package__:
        raise
    from spans_clipfsar import split_span

try:
    from .support_set_files_clipfsar import EnrolledClass
except ImportError:
    if __package__:
        raise
    from support_set_files_clipfsar import EnrolledClass

THUMBNAIL_HEIGHT = 96


def repeatable_sampling(processor) -> str | None:
    """`frame_sampling` for `process_videos`: segment centres, not random frames. A clip then gives one answer."""
    return "segment_center" if processor.frame_sampling == "segment_random" else None


def check_enrolling(batch_size: int, **truths: bool) -> None:
    """Raises `ValueError` for options of `SupportSet.add` that are not of their type."""
    check_positive_integer("batch_size", batch_size)
    for name, value in truths.items():
        check_truth(name, value)


def encode_clips(
    model, processor, jobs: list[tuple[str, Any]], thumbnails: bool, errors: list[str]
) -> list[tuple[str, tuple[str | None, torch.Tensor, bytes]]]:
    """Encodes the readable clips of jobs (class, video), as (class, (file name, frame features, picture)). Appends the
    messages for the others to `errors`."""
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
    names = [clip_name(video) or f"a clip of {name}" for name, video in readable]
    check_finite("The frame features", embeds, names, model)
    encoded = []
    for (name, video), clip_embeds, pixels in zip(readable, embeds, pixel_values, strict=True):
        picture = film_strip(processor.to_frames(pixels)) if thumbnails else b""
        encoded.append((name, (clip_name(video), clip_embeds.clone(), picture)))
    return encoded


def encode_class_names(model, processor, class_names: Iterable[str]) -> torch.Tensor:
    """Text features (N, D) of class names, float32, on the model's device. Several prompts of a class are averaged."""
    names = list(class_names)
    if hasattr(processor, "class_texts"):
        tokens, counts = tokenize_prompts(processor, names)
    else:  # code that an earlier version saved next to a model
        tokens, counts = processor.tokenize_classes(names), [1] * len(names)
    with evaluating(model):
        embeds = model.get_class_features(**{name: ids.to(model.device) for name, ids in tokens.items()}).float()
        return torch.stack([average_prompts(own) for own in embeds.split(counts)])


def film_strip(frames: torch.Tensor) -> bytes:
    """JPEG of frames, uint8 (T, H, W, C), side by side."""
    num_frames, height, width = frames.shape[:3]
    strip = Image.fromarray(frames.permute(1, 0, 2, 3).reshape(height, num_frames * width, -1).cpu().numpy())
    if height > THUMBNAIL_HEIGHT:
        frame_width = max(1, round(width * THUMBNAIL_HEIGHT / height))
        strip = strip.resize((num_frames * frame_width, THUMBNAIL_HEIGHT), Image.Resampling.BILINEAR)
    data = io.BytesIO()
    strip.save(data, format="JPEG", quality=85)
    return data.getvalue()


def with_clips(enrolled: EnrolledClass, clips: list[tuple[str | None, torch.Tensor, bytes]]) -> EnrolledClass:
    """A copy of a class with more clips, each a file name, frame features and a picture."""
    names = list(enrolled.clip_names)
    for name, _, _ in clips:
        names.append(_unused_name(name, names))
    new, old = torch.stack([embeds for _, embeds, _ in clips]), enrolled.support_embeds
    support_embeds = torch.cat([old, new]) if enrolled.clip_names else new
    thumbnails = [*enrolled.thumbnails, *(picture for _, _, picture in clips)]
    return EnrolledClass(enrolled.class_embeds, names, support_embeds, thumbnails)


def clip_name(video: Any) -> str | None:
    """The file name of a video, or None. Folders are left out: they describe a machine, not a clip."""
    if isinstance(video, Mapping):
        video = video.get("path")
    path = video if isinstance(video, (str, os.PathLike)) else getattr(video, "name", None)
    if not isinstance(path, (str, os.PathLike)):
        return None
    path, part = split_span(os.fspath(path))
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", path):
        path = urllib.parse.urlparse(path).path
    name = os.path.basename(path.rstrip("/"))
    return f"{name}#t={part}" if name and part is not None else name or None


def _unused_name(name: str | None, used: list[str]) -> str:
    if name is not None and name not in used:
        return name
    numbers = itertools.count(len(used) + 1 if name is None else 2)
    names = (f"clip {number}" if name is None else f"{name} ({number})" for number in numbers)
    return next(candidate for candidate in names if candidate not in used)


__all__ = [
    *("check_enrolling", "clip_name", "encode_class_names", "encode_clips", "film_strip", "repeatable_sampling"),
    "with_clips",
]
