"""Finds the clips below a folder and counts what is left out. Preparation, prediction and the page share this rule."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from choices_clipfsar import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_SYSTEM_NAMES = ("__macosx", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Clip:
    """A video file, which may not exist, or a part of one (`spans_clipfsar`), and its class."""

    path: str
    class_name: str


@dataclass
class LeftOut:
    """Counts files, folders and labels that are not used as clips.

    Args:
        suffixes: Files of other kinds, by suffix.
        num_hidden: Dot files and files that operating systems create (`__MACOSX`, `Thumbs.db`).
        num_images: Image files next to clips, such as posters.
        num_outside: Clips outside class folders.
        empty_classes: Class folders without clips.
        labels: Labels of labelling tools that are not used, by the reason.
        notes: What to know about labels that are used, with their number.
    """

    suffixes: Counter = field(default_factory=Counter)
    num_hidden: int = 0
    num_images: int = 0
    num_outside: int = 0
    empty_classes: list[str] = field(default_factory=list)
    labels: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        """The counts as a sentence, empty if nothing was left out."""
        parts = []
        if self.suffixes:
            counts = sorted(self.suffixes.items(), key=lambda item: (-item[1], item[0]))
            kinds = ", ".join(f"{suffix} {number:,}" for suffix, number in counts[:10])
            kinds += ", ..." if len(self.suffixes) > 10 else ""
            parts.append(f"{_files(self.suffixes.total(), 'that is not a video', 'that are not videos')} ({kinds})")
        if self.num_images:
            parts.append(f"{self.num_images:,} image {'file' if self.num_images == 1 else 'files'} next to clips")
        if self.num_outside:
            parts.append(f"{_files(self.num_outside, 'outside class folders', 'outside class folders')}")
        if self.num_hidden:
            parts.append(f"{self.num_hidden:,} hidden")
        if self.empty_classes:
            names = ", ".join(map(repr, self.empty_classes[:10])) + (", ..." if len(self.empty_classes) > 10 else "")
            parts.append(f"class folders without clips: {names}")
        parts += [f"{words} ({number:,})" for words, number in self.labels.items()]
        return f"left out: {', '.join(parts)}" if parts else ""


def _files(number: int, one: str, several: str) -> str:
    return f"{number:,} {f'file {one}' if number == 1 else f'files {several}'}"


def is_hidden(name: str) -> bool:
    """Whether a name belongs to a dot file, or to a file that operating systems create."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def find_clips(folder: str | os.PathLike, left_out: LeftOut | None = None) -> list[Path]:
    """Video files and folders of image files, at any depth, in order of their names.

    A folder of image files is one clip, unless it also contains clips.

    Args:
        left_out: Counts what is not a clip.
    """
    left_out = LeftOut() if left_out is None else left_out
    return [Path(path) for path in _find_clips(os.fspath(folder), left_out, (os.path.realpath(folder),))]


def _find_clips(folder: str, left_out: LeftOut, above: tuple[str, ...]) -> list[str]:
    clips, num_images = [], 0
    for entry in _visible(folder, left_out):
        suffix = os.path.splitext(entry.name)[1].lower()
        if _is_folder(entry):
            inner = os.path.realpath(entry.path)
            if inner not in above:  # a link to a folder above would never end
                clips += _find_clips(entry.path, left_out, (*above, inner))
        elif suffix in VIDEO_SUFFIXES:
            clips.append(entry.path)
        elif suffix in IMAGE_SUFFIXES:
            num_images += 1
        else:
            left_out.suffixes[suffix or "no suffix"] += 1
    if num_images and not clips:
        return [folder]
    left_out.num_images += num_images
    return clips


def _visible(folder: str | os.PathLike, left_out: LeftOut) -> Iterable[os.DirEntry]:
    with os.scandir(os.fspath(folder)) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_hidden(entry.name):
                left_out.num_hidden += 1
            else:
                yield entry


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder. A broken link, such as one to itself, counts as an unreadable file."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def class_folders(folder: str | os.PathLike, left_out: LeftOut | None = None) -> list[str]:
    """Names of the folders in a folder, in order. Files next to them are left out."""
    left_out = LeftOut() if left_out is None else left_out
    names = []
    for entry in _visible(folder, left_out):
        suffix = os.path.splitext(entry.name)[1].lower()
        if _is_folder(entry):
            names.append(entry.name)
        elif suffix in VIDEO_SUFFIXES:
            left_out.num_outside += 1
        else:
            left_out.suffixes[suffix or "no suffix"] += 1
    return names


__all__ = ["Clip", "LeftOut", "class_folders", "find_clips", "is_hidden"]
