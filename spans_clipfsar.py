"""Parts of videos: `long.mp4#t=12.5,15` is what `long.mp4` shows from second 12.5 up to second 15.

A name of this form goes wherever a path of a video goes: columns of data sets, tables, support sets, queries. The form
is the time of the W3C's Media Fragments URI 1.0 (section 4.2.1: seconds, the end excluded; either side may be left
out). This module imports only the standard library.
"""

import os
import re
from dataclasses import dataclass

_PART = re.compile(r"(?P<path>.+)#t=(?P<start>\d{1,9}(?:\.\d{1,9})?)?(?:,(?P<end>\d{1,9}(?:\.\d{1,9})?))?", re.DOTALL)


@dataclass(frozen=True)
class Span:
    """Seconds of a video, from its first frame. `end_seconds` is excluded; None is the end of the video."""

    start_seconds: float = 0.0
    end_seconds: float | None = None

    @property
    def length_seconds(self) -> float | None:
        return None if self.end_seconds is None else self.end_seconds - self.start_seconds

    def __str__(self) -> str:
        end = "" if self.end_seconds is None else f",{_as_text(self.end_seconds)}"
        return f"{_as_text(self.start_seconds)}{end}"


def split_span(name: str) -> tuple[str, Span | None]:
    """The path in the name of a part, and its span. Any other name is returned unchanged, with None.

    A file that is itself called so (`odd#t=1.mp4#t=2`) is that file.
    """
    match = _PART.fullmatch(name) if "#t=" in name else None
    if match is None or match.group("start", "end") == (None, None) or os.path.exists(os.path.expanduser(name)):
        return name, None
    return match["path"], Span(float(match["start"] or 0), None if match["end"] is None else float(match["end"]))


def wrong_times(name: str) -> str | None:
    """What is wrong with the times in `long.mp4#t=a,b`, as half a sentence. None if `long.mp4` does not exist."""
    path, mark, times = name.rpartition("#t=")
    is_part_or_file = not mark or split_span(name)[1] is not None or os.path.exists(os.path.expanduser(name))
    if is_part_or_file or not os.path.exists(os.path.expanduser(path)):
        return None
    return f"the times {times!r} after #t= are not numbers of seconds, such as #t=12.5,15"


def with_span(path: str, start_seconds: float, end_seconds: float | None = None) -> str:
    """The name of a part of a video. Times are written to the microsecond.

    If the path is itself the name of a part, the times count from its beginning, and the result ends with it at latest.

    Raises:
        ValueError: If the part does not start at 0 or later, or does not end after its start.
    """
    path, whole = split_span(path)
    if whole is not None and start_seconds >= 0:
        ends = [one for one in (end_seconds, whole.length_seconds) if one is not None]
        end_seconds = whole.start_seconds + min(ends) if ends else None
        start_seconds += whole.start_seconds
    end = end_seconds if end_seconds is not None else start_seconds + 1
    if not 0 <= round(start_seconds, 6) < round(end, 6) < 1e9:
        raise ValueError(
            f"A part of {path} from {start_seconds} to {end_seconds} seconds is impossible: it starts at 0 or later, "
            "and ends after its start."
        )
    return f"{path}#t={Span(start_seconds, end_seconds)}"


def _as_text(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


__all__ = ["Span", "split_span", "with_span", "wrong_times"]
