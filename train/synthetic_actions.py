"""Synthetic actions: short rendered videos with which everything here runs without a network.

A class is "COLOUR SHAPE ACTION": "red star growing", "green square moving left", "two green rings meeting". One object
(or a small group) performs the action; one to three smaller distractors, each sharing the subject's colour or its shape
or neither, but never both, do something else; the background moves, the camera shakes, the frames are noisy. Size,
speed, place, hue, clip length, frame rate and frame shape differ from clip to clip.

What makes the set useful for few-shot recognition:

- the *base* (train), validation and *novel* (test) splits share neither a class nor an action verb, and the
  combinations of colour and shape in the novel classes are new as well;
- most classes come in time-reversed pairs of the same colour and shape ("red star growing" / "red star shrinking").
  Both render the same distribution of single frames, so only a model that sees their order tells them apart;
- the distractors make it useful to be told by the class text which object matters.

Every clip is a pure function of (seed, class, index); a class belongs to one split. As a program it writes the videos:

    python train/synthetic_actions.py --output_dir synthetic_actions --train_videos_per_class 24

The result is a `videofolder` tree (`train/red ring looping/000.mp4`, ...), which `datasets.load_dataset("videofolder",
data_dir=...)` reads. An interrupted run continues where it stopped.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import colorsys
import json
import math
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context

import av
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

# Part of the manifest: to be raised whenever a change here alters the pixels, so that old and new clips never mix.
RENDERER_VERSION = 2
MANIFEST_NAME = "synthetic_actions.json"

BASE_CLASSES = (
    "green square moving left",
    "green square moving right",
    "green square widening",
    "green square narrowing",
    "purple heart spinning clockwise",
    "purple heart spinning counterclockwise",
    "purple heart tilting left",
    "purple heart tilting right",
    "cyan star approaching",
    "cyan star receding",
    "cyan star soaring",
    "cyan star diving",
    "white circle orbiting clockwise",
    "white circle orbiting counterclockwise",
    "white circle spiralling inwards",
    "white circle spiralling outwards",
    "yellow moon brightening",
    "yellow moon darkening",
    "yellow moon hopping",
    "yellow moon shaking",
    "four orange triangles scattering",
    "four orange triangles gathering",
    "two blue crosses revolving",
    "red ring looping",
)
VALIDATION_CLASSES = (
    "white heart rolling left",
    "white heart rolling right",
    "orange cross arriving",
    "orange cross departing",
    "purple star stretching",
    "purple star flattening",
    "cyan moon blinking",
    "orange circle pulsing",
    "purple triangle zigzagging",
    "two yellow hearts swapping places",
)
# Few looks, many actions: who recognises colour and shape and nothing else is right in 64% of 5-way novel episodes.
NOVEL_CLASSES = (
    "red star growing",
    "red star shrinking",
    "red star rising",
    "red star falling",
    "red circle fading in",
    "red circle fading out",
    "red circle filling",
    "red circle draining",
    "two green rings meeting",
    "two green rings parting",
    "green star swinging",
    "green star bouncing",
)
SPLITS = {"train": BASE_CLASSES, "validation": VALIDATION_CLASSES, "test": NOVEL_CLASSES}

# Hue in degrees, saturation and value in [0, 1]; a clip moves each a little. Neighbouring hues stay apart after that.
COLOURS = {
    "red": (0, 0.88, 0.88),
    "orange": (28, 0.92, 0.98),
    "yellow": (55, 0.85, 0.97),
    "green": (120, 0.75, 0.70),
    "cyan": (182, 0.75, 0.90),
    "blue": (226, 0.80, 0.90),
    "purple": (284, 0.70, 0.75),
    "white": (0, 0.00, 0.98),
}
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "ring": "rings",
    "cross": "crosses",
    "heart": "hearts",
    "moon": "moons",
}
SHAPES = tuple(PLURALS)
NUMBER_WORDS = {1: "", 2: "two", 4: "four"}

# What captions of stills say besides, and how often each template is taken.
SIZE_WORDS = ("small", "large")
PLACES = ("on the left", "on the right", "at the top", "at the bottom")
CAPTION_TEMPLATES = {"{}": 0.25, "a photo of {}": 0.45, "a picture of {}": 0.15, "an image of {}": 0.15}


# ----------------------------------------------------------------------------------------------------------------------
# Shapes: signed distances, negative inside, for a shape of radius about 1 around the origin (x to the right, y down)
# ----------------------------------------------------------------------------------------------------------------------


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Exact distance to a closed polygon: the nearest edge, with the sign from the crossing number."""
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        edge_x, edge_y = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * edge_x + py * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
        nearest = np.minimum(nearest, (px - along * edge_x) ** 2 + (py - along * edge_y) ** 2)
        if ay != by:  # a horizontal edge is never crossed by a horizontal ray
            inside ^= ((y < ay) != (y < by)) & (px < py * (edge_x / edge_y))
    return np.where(inside, -1, 1).astype(x.dtype) * np.sqrt(nearest)


def _regular_corners(num_corners: int, inner_radius: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon, or of a star when `inner_radius` is given, the first one pointing up."""
    radii = [1.0] if inner_radius is None else [1.0, inner_radius]
    count = num_corners * len(radii)
    angles = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def _heart_corners(num_corners: int = 20) -> list[tuple[float, float]]:
    angles = [2 * math.pi * (i + 0.5) / num_corners for i in range(num_corners)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16 - 0.1,
        )
        for a in angles
    ]


_TRIANGLE, _STAR, _HEART = _regular_corners(3), _regular_corners(5, inner_radius=0.42), _heart_corners()


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of points `(x, y)`, in units of the object's radius, to the outline of `shape`.

    Raises `ValueError` for an unknown shape.
    """
    if shape == "circle":
        return np.hypot(x, y) - 0.92
    if shape == "square":
        return _box(x, y, 0.8, 0.8)
    if shape == "triangle":
        return _polygon(x, y - 0.2, _TRIANGLE)  # lowered, so that its middle is nearer the origin
    if shape == "star":
        return _polygon(x, y, _STAR)
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72) - 0.22
    if shape == "cross":
        return np.minimum(_box(x, y, 0.98, 0.33), _box(x, y, 0.33, 0.98))
    if shape == "heart":
        return _polygon(x, y, _HEART)
    if shape == "moon":
        return np.maximum(np.hypot(x, y) - 0.98, 0.82 - np.hypot(x - 0.55, y))
    raise ValueError(f"Unknown shape '{shape}': choose one of {', '.join(SHAPES)}.")


# ----------------------------------------------------------------------------------------------------------------------
# Actions: how an object moves. Lengths are in units of the frame's short side, the origin is the middle of the frame;
# the visible square that CLIP's centre crop keeps is then [-0.5, 0.5] x [-0.5, 0.5].
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Track:
    """State of one object over time: each field a number or an array `(num_frames,)`."""

    x: np.ndarray | float = 0.0
    y: np.ndarray | float = 0.0
    scale: np.ndarray | float = 1.0  # times the object's own radius
    stretch_x: np.ndarray | float = 1.0
    stretch_y: np.ndarray | float = 1.0
    angle: np.ndarray | float = 0.0  # radians; positive turns clockwise on the screen, because y points down
    opacity: np.ndarray | float = 1.0
    brightness: np.ndarray | float = 1.0
    fill: np.ndarray | float = 1.0  # the part of the height, from below, that is filled

    def at(self, name: str, num_frames: int) -> np.ndarray:
        return np.broadcast_to(np.asarray(getattr(self, name), dtype=np.float32), (num_frames,))


def _between(start: float, end: float, progress: np.ndarray) -> np.ndarray:
    return start + (end - start) * progress


def _place(rng: np.random.Generator, reach: float = 0.13) -> tuple[float, float]:
    return rng.uniform(-reach, reach), rng.uniform(-reach, reach)


# Actions that happen once. `progress` (num_frames,) runs from 0 to 1 (from 1 to 0 for the time-reversed action).
# Nothing else may depend on time, so that the reversed action shows the same frames in the opposite order.


def _moving_right(rng, progress):
    reach = rng.uniform(0.2, 0.29)
    return [Track(x=_between(-reach, reach, progress), y=rng.uniform(-0.2, 0.2))]


def _rolling_right(rng, progress):
    reach, turn = rng.uniform(0.2, 0.29), rng.uniform(0.8, 1.1) * 2 * math.pi
    y = rng.uniform(0.05, 0.25)
    return [Track(x=_between(-reach, reach, progress), y=y, angle=_between(-turn / 2, turn / 2, progress))]


def _rising(rng, progress):
    reach = rng.uniform(0.2, 0.29)
    return [Track(x=rng.uniform(-0.2, 0.2), y=_between(reach, -reach, progress))]


def _soaring(rng, progress):
    reach_x, reach_y = rng.uniform(0.2, 0.3, size=2)
    return [Track(x=_between(-reach_x, reach_x, progress), y=_between(reach_y, -reach_y, progress))]


def _approaching(rng, progress):
    # From small and high, as on the horizon, to large and low.
    y = _between(rng.uniform(-0.3, -0.22), rng.uniform(0.05, 0.15), progress)
    x = _between(rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.1), progress)
    return [Track(x=x, y=y, scale=_between(0.4, rng.uniform(1.2, 1.45), progress))]


def _growing(rng, progress):
    x, y = _place(rng, 0.15)
    return [Track(x=x, y=y, scale=_between(rng.uniform(0.35, 0.45), rng.uniform(1.3, 1.6), progress))]


def _widening(rng, progress):
    x, y = _place(rng)
    wide = _between(0.4, rng.uniform(1.4, 1.65), progress)
    return [Track(x=x, y=y, stretch_x=wide)]


def _stretching(rng, progress):
    x, y = _place(rng)
    tall = _between(0.4, rng.uniform(1.4, 1.65), progress)
    return [Track(x=x, y=y, stretch_y=tall, stretch_x=_between(1.3, 0.8, progress))]


def _arriving(rng, progress):
    # From outside one of the four borders of the central square to its middle.
    x, y = _place(rng, 0.08)
    angle = rng.integers(4) * math.pi / 2 + rng.uniform(-0.3, 0.3)
    distance = _between(rng.uniform(0.5, 0.6), 0, progress)
    return [Track(x=x + distance * np.cos(angle), y=y + distance * np.sin(angle))]


def _spiralling_outwards(rng, progress):
    radius = _between(0.03, rng.uniform(0.28, 0.34), progress)
    angle = rng.uniform(0, 2 * math.pi) + rng.choice((-1, 1)) * rng.uniform(1.2, 1.7) * 2 * math.pi * progress
    return [Track(x=radius * np.cos(angle), y=radius * np.sin(angle))]


def _spinning_clockwise(rng, progress):
    x, y = _place(rng)
    turn = rng.uniform(0.7, 1.0) * 2 * math.pi
    return [Track(x=x, y=y, angle=_between(-turn / 2, turn / 2, progress) + rng.uniform(-0.5, 0.5))]


def _orbiting_clockwise(rng, progress):
    radius, turn = rng.uniform(0.2, 0.3), rng.uniform(0.6, 0.9) * 2 * math.pi
    angle = _between(-turn / 2, turn / 2, progress) - math.pi / 2 + rng.uniform(-0.5, 0.5)
    return [Track(x=radius * np.cos(angle), y=radius * np.sin(angle))]


def _tilting_right(rng, progress):
    x, y = _place(rng)
    tilt = rng.uniform(1.0, 1.5)
    return [Track(x=x, y=y, angle=_between(-tilt, tilt, progress))]


def _brightening(rng, progress):
    x, y = _place(rng)
    return [Track(x=x, y=y, brightness=_between(rng.uniform(0.12, 0.25), 1, progress))]


def _fading_in(rng, progress):
    x, y = _place(rng, 0.2)
    return [Track(x=x, y=y, opacity=_between(rng.uniform(0.05, 0.15), 1, progress))]


def _filling(rng, progress):
    x, y = _place(rng, 0.16)
    return [Track(x=x, y=y, fill=_between(rng.uniform(0.0, 0.1), rng.uniform(0.9, 1.0), progress), scale=1.1)]


def _scattering(rng, progress):
    angle = rng.uniform(0, 2 * math.pi)
    tracks = []
    for i in range(4):
        distance = _between(rng.uniform(0.06, 0.09), rng.uniform(0.27, 0.36), progress)
        direction = angle + (i + rng.uniform(-0.2, 0.2)) * math.pi / 2
        tracks.append(Track(x=distance * np.cos(direction), y=distance * np.sin(direction)))
    return tracks


def _parting(rng, progress):
    x, y = _place(rng, 0.06)
    angle = rng.uniform(0, math.pi)
    distance = _between(rng.uniform(0.08, 0.11), rng.uniform(0.27, 0.33), progress)
    dx, dy = distance * np.cos(angle), distance * np.sin(angle)
    return [Track(x=x + dx, y=y + dy), Track(x=x - dx, y=y - dy)]


def _swapping_places(rng, progress):
    x, y = _place(rng, 0.05)
    angle = rng.uniform(-0.4, 0.4) + math.pi * progress
    dx, dy = rng.uniform(0.22, 0.3) * np.cos(angle), 0.16 * np.sin(angle)
    return [Track(x=x + dx, y=y + dy), Track(x=x - dx, y=y - dy)]


# Actions that repeat. `time` (num_frames,) runs from 0 to 1; each draws its own number of repetitions and start.


def _cycles(rng, time, low: float, high: float) -> np.ndarray:
    """Phase in radians: `low` to `high` repetitions from a random start."""
    return 2 * math.pi * (rng.uniform(low, high) * time + rng.uniform())


def _shaking(rng, time):
    x, y = _place(rng)
    return [Track(x=x + rng.uniform(0.06, 0.1) * np.sin(_cycles(rng, time, 4, 6)), y=y)]


def _hopping(rng, time):
    reach = rng.uniform(0.15, 0.28) * rng.choice((-1, 1))
    height = np.abs(np.sin(_cycles(rng, time, 1.5, 2.5)))
    return [Track(x=_between(-reach, reach, time), y=0.26 - rng.uniform(0.2, 0.3) * height)]


def _looping(rng, time):
    phase = rng.choice((-1, 1)) * _cycles(rng, time, 1, 1.6)
    return [Track(x=rng.uniform(0.22, 0.3) * np.sin(phase), y=rng.uniform(0.14, 0.22) * np.sin(2 * phase))]


def _revolving(rng, time):
    angle = rng.choice((-1, 1)) * _cycles(rng, time, 0.6, 1.1)
    distance = rng.uniform(0.16, 0.24)
    dx, dy = distance * np.cos(angle), distance * np.sin(angle)
    return [Track(x=dx, y=dy), Track(x=-dx, y=-dy)]


def _blinking(rng, time):
    x, y = _place(rng)
    return [Track(x=x, y=y, opacity=(np.sin(_cycles(rng, time, 2.5, 4)) > -0.3).astype(np.float32))]


def _pulsing(rng, time):
    x, y = _place(rng)
    return [Track(x=x, y=y, scale=1 + rng.uniform(0.35, 0.5) * np.sin(_cycles(rng, time, 1.5, 2.5)))]


def _zigzagging(rng, time):
    reach = rng.uniform(0.26, 0.32) * rng.choice((-1, 1))
    sawtooth = 2 / math.pi * np.arcsin(np.sin(_cycles(rng, time, 2, 3)))
    return [Track(x=_between(-reach, reach, time), y=rng.uniform(0.12, 0.2) * sawtooth)]


def _swinging(rng, time):
    # A pendulum hung above the frame's upper border.
    angle = rng.uniform(0.45, 0.65) * np.sin(_cycles(rng, time, 1, 1.8))
    length = rng.uniform(0.5, 0.6)
    return [Track(x=length * np.sin(angle), y=length * np.cos(angle) - 0.4, angle=-angle)]


def _bouncing(rng, time):
    phase = _cycles(rng, time, 1.2, 2.2) / (2 * math.pi) % 1
    height = 4 * phase * (1 - phase)  # a parabola between two contacts with the ground
    squash = np.maximum(0, 1 - 6 * height) * 0.35
    y = 0.28 - rng.uniform(0.45, 0.58) * height
    return [Track(x=rng.uniform(-0.2, 0.2), y=y, stretch_x=1 + squash, stretch_y=1 - squash)]


@dataclass(frozen=True)
class Action:
    """How an action is drawn: its motion, the number of objects, and whether it runs backwards in time."""

    motion: Callable[[np.random.Generator, np.ndarray], list[Track]]
    num_objects: int = 1
    reversed: bool = False
    repeats: bool = False


ACTIONS = {
    "moving left": Action(_moving_right, reversed=True),
    "moving right": Action(_moving_right),
    "soaring": Action(_soaring),
    "diving": Action(_soaring, reversed=True),
    "spinning clockwise": Action(_spinning_clockwise),
    "spinning counterclockwise": Action(_spinning_clockwise, reversed=True),
    "approaching": Action(_approaching),
    "receding": Action(_approaching, reversed=True),
    "orbiting clockwise": Action(_orbiting_clockwise),
    "orbiting counterclockwise": Action(_orbiting_clockwise, reversed=True),
    "widening": Action(_widening),
    "narrowing": Action(_widening, reversed=True),
    "spiralling inwards": Action(_spiralling_outwards, reversed=True),
    "spiralling outwards": Action(_spiralling_outwards),
    "brightening": Action(_brightening),
    "darkening": Action(_brightening, reversed=True),
    "scattering": Action(_scattering, num_objects=4),
    "gathering": Action(_scattering, num_objects=4, reversed=True),
    "tilting left": Action(_tilting_right, reversed=True),
    "tilting right": Action(_tilting_right),
    "shaking": Action(_shaking, repeats=True),
    "hopping": Action(_hopping, repeats=True),
    "looping": Action(_looping, repeats=True),
    "revolving": Action(_revolving, num_objects=2, repeats=True),
    "rolling left": Action(_rolling_right, reversed=True),
    "rolling right": Action(_rolling_right),
    "arriving": Action(_arriving),
    "departing": Action(_arriving, reversed=True),
    "stretching": Action(_stretching),
    "flattening": Action(_stretching, reversed=True),
    "blinking": Action(_blinking, repeats=True),
    "pulsing": Action(_pulsing, repeats=True),
    "zigzagging": Action(_zigzagging, repeats=True),
    "swapping places": Action(_swapping_places, num_objects=2),
    "growing": Action(_growing),
    "shrinking": Action(_growing, reversed=True),
    "rising": Action(_rising),
    "falling": Action(_rising, reversed=True),
    "meeting": Action(_parting, num_objects=2, reversed=True),
    "parting": Action(_parting, num_objects=2),
    "fading in": Action(_fading_in),
    "fading out": Action(_fading_in, reversed=True),
    "filling": Action(_filling),
    "draining": Action(_filling, reversed=True),
    "swinging": Action(_swinging, repeats=True),
    "bouncing": Action(_bouncing, repeats=True),
}


def parse_class_name(class_name: str) -> tuple[int, str, str, str]:
    """Number of objects, colour, shape (singular) and action of a class.

    "two green rings meeting" gives (2, "green", "ring", "meeting"). Any combination of a known colour, shape and action
    can be rendered, not only the classes of the splits. Raises `ValueError` for anything else.
    """
    words = class_name.split()
    numbers = {word: number for number, word in NUMBER_WORDS.items() if word}
    number = numbers.get(words[0], 1) if words else 1
    words = words[1:] if number > 1 else words
    singular = {PLURALS[shape] if number > 1 else shape: shape for shape in SHAPES}
    if len(words) >= 3 and words[0] in COLOURS and words[1] in singular:
        action = " ".join(words[2:])
        if action in ACTIONS and ACTIONS[action].num_objects == number:
            return number, words[0], singular[words[1]], action
    raise ValueError(
        f"'{class_name}' is not a class of synthetic actions: it should read 'COLOUR SHAPE ACTION', for example "
        f"'red star growing' or 'two green rings meeting', with a colour of {', '.join(COLOURS)}; a shape of "
        f"{', '.join(SHAPES)}; an action of {', '.join(ACTIONS)}."
    )


def join_class_name(colour: str, shape: str, action: str) -> str:
    """The class name of a colour, a shape (singular) and an action; the action says how many objects there are."""
    number = ACTIONS[action].num_objects
    return f"{NUMBER_WORDS[number]} {colour} {shape if number == 1 else PLURALS[shape]} {action}".strip()


# ----------------------------------------------------------------------------------------------------------------------
# Scenes: everything random about a clip is drawn here; drawing the pixels is then a plain function
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class SceneObject:
    colour: str
    shape: str
    rgb: np.ndarray  # (3,), 0 to 255
    radius: float  # in units of the short side
    track: Track


@dataclass
class Scene:
    """One clip before it is drawn. `objects` are painted in order: distractors first, the subject in front of them."""

    num_frames: int
    fps: int
    height: int
    width: int
    objects: list[SceneObject]
    background: np.ndarray  # (height + margin, width + margin, 3), of which each frame shows a window
    background_path: np.ndarray  # (num_frames, 2) upper left corner of that window, integers
    camera: np.ndarray  # (num_frames, 2) shift of the objects (x, y), in units of the short side
    noise: np.ndarray  # (height + margin, width + margin, 3)
    noise_path: np.ndarray  # (num_frames, 2)
    num_subjects: int


_MARGIN = 24  # pixels by which a background is larger than a frame
_NOISE_MARGIN = 16


def _progress(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """0 to 1 with a rest at either end and a more or less soft start and stop; its law is symmetric in time."""
    rest_before, rest_after = rng.uniform(0, 0.2, size=2)
    linear = np.clip((time - rest_before) / (1 - rest_before - rest_after), 0, 1)
    softness = rng.uniform()
    return (1 - softness) * linear + softness * linear**2 * (3 - 2 * linear)


def _draw_rgb(rng: np.random.Generator, colour: str) -> np.ndarray:
    hue, saturation, value = COLOURS[colour]
    hue = hue + rng.uniform(-7, 7)
    saturation = saturation + (rng.uniform(-0.1, 0.1) if saturation else rng.uniform(0, 0.06))
    value = min(1.0, value + rng.uniform(-0.12, 0.08))
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1, min(1.0, saturation), value), dtype=np.float32) * 255


def _draw_distractor(rng: np.random.Generator, colour: str, shape: str, main_radius: float, time: np.ndarray):
    """Another object: of the subject's colour, or of its shape, or of neither, with a motion of its own."""
    kind = rng.integers(3)
    other_colours = [name for name in COLOURS if name != colour]
    other_shapes = [name for name in SHAPES if name != shape]
    colour = colour if kind == 0 else other_colours[rng.integers(len(other_colours))]
    shape = shape if kind == 1 else other_shapes[rng.integers(len(other_shapes))]
    start_x, start_y = rng.uniform(-0.42, 0.42, size=2)
    phase = _cycles(rng, time, 0.3, 1.5)
    motion = rng.integers(4)
    track = Track(x=start_x, y=start_y, angle=rng.uniform(-0.3, 0.3))
    if motion == 0:  # drift
        direction, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 0.6)
        track.x = start_x + distance * math.cos(direction) * (time - 0.5)
        track.y = start_y + distance * math.sin(direction) * (time - 0.5)
    elif motion == 1:  # run in a circle, either way round
        distance, sense = rng.uniform(0.05, 0.15), rng.choice((-1, 1))
        track.x, track.y = start_x + distance * np.cos(phase), start_y + sense * distance * np.sin(phase)
    elif motion == 2:  # change the size
        track.scale = 1 + 0.35 * np.sin(phase)
    else:  # turn
        track.angle = rng.choice((-1, 1)) * phase
    return SceneObject(colour, shape, _draw_rgb(rng, colour), main_radius * rng.uniform(0.5, 0.72), track)


def _value_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise (height, width) in about [-1, 1]: a coarse random grid, interpolated bilinearly."""
    grid = rng.uniform(-1, 1, size=(cells + 1, cells + 1)).astype(np.float32)
    rows, columns = np.linspace(0, cells - 1e-3, height), np.linspace(0, cells - 1e-3, width)
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top).astype(np.float32)[:, None], (columns - left).astype(np.float32)
    upper = grid[top][:, left] * (1 - right) + grid[top][:, left + 1] * right
    lower = grid[top + 1][:, left] * (1 - right) + grid[top + 1][:, left + 1] * right
    return upper * (1 - down) + lower * down


def _draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A dull, uneven surface (height, width, 3), 0 to 255, some with stripes or a checkerboard."""
    base = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.35), rng.uniform(0.22, 0.6))
    tint = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.35), rng.uniform(0.22, 0.6))
    mix = np.clip(0.5 + 0.8 * _value_noise(rng, height, width, 4), 0, 1)[..., None]
    surface = (1 - mix) * np.array(base, dtype=np.float32) + mix * np.array(tint, dtype=np.float32)
    texture = rng.uniform(0.02, 0.07) * _value_noise(rng, height, width, 16)
    pattern = rng.integers(3)
    if pattern > 0:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        direction, period = rng.uniform(0, math.pi), rng.uniform(8, 20)
        along = np.sin(2 * math.pi / period * (x * math.cos(direction) + y * math.sin(direction)))
        across = np.sin(2 * math.pi / period * (y * math.cos(direction) - x * math.sin(direction)))
        texture = texture + rng.uniform(0.02, 0.06) * np.sign(along if pattern == 1 else along * across)
    return np.clip(surface + texture[..., None], 0, 1) * 255


def _camera_shake(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    amplitude = rng.uniform(0, 0.012)
    return amplitude * np.stack(
        [np.sin(_cycles(rng, time, 1, 3)) + np.sin(_cycles(rng, time, 3, 6)) for _ in range(2)], axis=-1
    )


def draw_scene(class_name: str, seed: int, index: int) -> Scene:
    """Draw everything random of clip `index` of a class; the same arguments give the same scene."""
    number, colour, shape, action_name = parse_class_name(class_name)
    action = ACTIONS[action_name]
    # The whole name goes in: a reversed pair must not share its random numbers, or clip 3 of one would be clip 3 of the
    # other run backwards.
    rng = np.random.default_rng([seed, zlib.crc32(class_name.encode()), index])

    num_frames, fps = int(rng.integers(24, 49)), int(rng.integers(12, 26))
    short = int(rng.choice((80, 84, 88)))
    long = int(short * rng.uniform(1.15, 1.45)) // 2 * 2  # even, as 4:2:0 video needs
    height, width = (short, long) if rng.uniform() < 0.65 else (long, short)

    time = np.linspace(0, 1, num_frames, dtype=np.float32)
    progress = time if action.repeats else _progress(rng, time)
    progress = 1 - progress if action.reversed else progress
    radius = rng.uniform(0.175, 0.235) * {1: 1.0, 2: 0.72, 4: 0.55}[number]
    rgb, tilt = _draw_rgb(rng, colour), rng.uniform(-0.2, 0.2)
    subjects = []
    for track in action.motion(rng, progress):
        track.angle = track.angle + tilt
        subjects.append(SceneObject(colour, shape, rgb, radius, track))
    main_radius = max(radius, 0.15)
    distractors = [_draw_distractor(rng, colour, shape, main_radius, time) for _ in range(rng.integers(1, 4))]

    camera = _camera_shake(rng, time)
    speed = rng.uniform(-0.5, 0.5, size=2) * _MARGIN
    path = _MARGIN / 2 + np.outer(time - 0.5, speed) - camera[:, ::-1] * short
    return Scene(
        num_frames=num_frames,
        fps=fps,
        height=height,
        width=width,
        objects=distractors + subjects,
        background=_draw_background(rng, height + _MARGIN, width + _MARGIN),
        background_path=np.clip(np.rint(path), 0, _MARGIN).astype(int),
        camera=camera.astype(np.float32),
        noise=rng.uniform(3, 9) * rng.standard_normal((height + _NOISE_MARGIN, width + _NOISE_MARGIN, 3), np.float32),
        noise_path=rng.integers(0, _NOISE_MARGIN + 1, size=(num_frames, 2)),
        num_subjects=len(subjects),
    )


# ----------------------------------------------------------------------------------------------------------------------
# Pixels
# ----------------------------------------------------------------------------------------------------------------------


def _paint(frames: np.ndarray, item: SceneObject, scene: Scene, indices: np.ndarray) -> None:
    """Paint one object, with soft edges and a dark rim, into `frames` (len(indices), height, width, 3) in place.

    All frames are computed at once, in a square window around the object, because it covers a small part of them.
    """
    short = min(scene.height, scene.width)
    state = {name: item.track.at(name, scene.num_frames)[indices][:, None, None] for name in Track.__annotations__}
    radius = item.radius * state["scale"] * short  # (frames, 1, 1) in pixels
    x = (state["x"] + scene.camera[indices, 0][:, None, None]) * short + scene.width / 2
    y = (state["y"] + scene.camera[indices, 1][:, None, None]) * short + scene.height / 2
    reach = 1.25 * float(np.max(radius * np.maximum(state["stretch_x"], state["stretch_y"]))) + 2
    size = 2 * math.ceil(reach)
    left, top = np.rint(x - size / 2).astype(int), np.rint(y - size / 2).astype(int)

    pixels = np.arange(size, dtype=np.float32) + 0.5
    dx, dy = (left - x + pixels).astype(np.float32), (top - y + pixels[:, None]).astype(np.float32)
    cos, sin = np.cos(state["angle"]), np.sin(state["angle"])
    local_x = (cos * dx + sin * dy) / (radius * state["stretch_x"])  # (frames, size, size)
    local_y = (cos * dy - sin * dx) / (radius * state["stretch_y"])
    # Under an uneven stretch the distance is approximate: the soft edge gets a fraction of a pixel wider or narrower.
    pixels_per_unit = radius * np.sqrt(state["stretch_x"] * state["stretch_y"])
    distance = signed_distance(item.shape, local_x, local_y) * pixels_per_unit

    alpha = np.clip(0.5 - distance, 0, 1) * state["opacity"]
    rim = np.clip(distance + 1.8, 0, 1)
    shade = (1.0 - 0.12 * (local_x + local_y)) * (1 - 0.5 * rim) * state["brightness"]
    if np.min(state["fill"]) < 1:
        empty = np.clip((1 - 2 * state["fill"] - local_y) * radius + 0.5, 0, 1) * np.clip(-distance - 3, 0, 1)
        shade = shade * (1 - 0.8 * empty)
    colour = np.minimum(shade[..., None] * item.rgb, 255)
    for i in range(len(indices)):
        row, column = top[i, 0, 0], left[i, 0, 0]
        r0, r1 = max(row, 0), min(row + size, scene.height)
        c0, c1 = max(column, 0), min(column + size, scene.width)
        if r0 < r1 and c0 < c1:
            window = frames[i, r0:r1, c0:c1]
            inside = (i, slice(r0 - row, r1 - row), slice(c0 - column, c1 - column))
            window += alpha[inside][..., None] * (colour[inside] - window)


def paint_scene(scene: Scene, frame_indices: np.ndarray | None = None) -> np.ndarray:
    """Frames `(len(frame_indices), height, width, 3)`, uint8; all of them by default."""
    indices = np.arange(scene.num_frames) if frame_indices is None else np.asarray(frame_indices)
    height, width = scene.height, scene.width
    frames = np.empty((len(indices), height, width, 3), dtype=np.float32)
    for i, (row, column) in enumerate(scene.background_path[indices]):
        frames[i] = scene.background[row : row + height, column : column + width]
    for item in scene.objects:
        _paint(frames, item, scene, indices)
    for i, (row, column) in enumerate(scene.noise_path[indices]):
        frames[i] += scene.noise[row : row + height, column : column + width]
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def render_clip(class_name: str, seed: int, index: int) -> tuple[np.ndarray, int]:
    """Clip `index` of a class: frames `(num_frames, height, width, 3)`, uint8 RGB, and frames per second.

    Raises `ValueError` for a name that is no colour, shape and action known here.
    """
    scene = draw_scene(class_name, seed, index)
    return paint_scene(scene), scene.fps


# ----------------------------------------------------------------------------------------------------------------------
# Stills with captions, for train/pretrain_tiny_clip.py
# ----------------------------------------------------------------------------------------------------------------------


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _describe(rng: np.random.Generator, scene: Scene, frame: int, class_name: str) -> str:
    """A caption of one frame: always colour and shape, and at times the size, the place, the action or a bystander."""
    number, colour, shape, action = parse_class_name(class_name)
    subjects = scene.objects[-scene.num_subjects :]
    x = np.mean([item.track.at("x", scene.num_frames)[frame] for item in subjects])
    y = np.mean([item.track.at("y", scene.num_frames)[frame] for item in subjects])
    radius = subjects[0].radius * subjects[0].track.at("scale", scene.num_frames)[frame]

    kind = rng.choice(("plain", "size", "place", "action", "bystander"), p=(0.2, 0.15, 0.2, 0.35, 0.1))
    noun = f"{colour} {shape if number == 1 else PLURALS[shape]}"
    if kind == "size" and number == 1 and not 0.14 <= radius <= 0.25:
        noun = f"{SIZE_WORDS[int(radius > 0.25)]} {noun}"
    # Class names carry no article (a few-shot prompt reads "a photo of red star growing"); captions mostly do.
    subject = f"{NUMBER_WORDS[number]} {noun}" if number > 1 else noun if rng.uniform() < 0.3 else _article(noun)
    if kind == "action":
        subject = f"{subject} {action}"
    elif kind == "place" and max(abs(x), abs(y)) > 0.14:
        subject = f"{subject} {PLACES[int(x > 0)] if abs(x) > abs(y) else PLACES[2 + int(y > 0)]}"
    elif kind == "bystander":
        other = scene.objects[0]
        subject = f"{subject} and {_article(other.colour + ' ' + other.shape)}"
    template = rng.choice(list(CAPTION_TEMPLATES), p=list(CAPTION_TEMPLATES.values()))
    return template.format(subject)


def render_still(class_name: str, seed: int, index: int) -> tuple[np.ndarray, str]:
    """One frame `(height, width, 3)`, uint8 RGB, out of clip `index` of a class, and a caption of that frame."""
    scene = draw_scene(class_name, seed, index)
    rng = np.random.default_rng([seed, zlib.crc32(class_name.encode()), index, 1])
    frame = int(rng.integers(scene.num_frames))
    return paint_scene(scene, np.array([frame]))[0], _describe(rng, scene, frame, class_name)


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------


def write_clip(path: str | Path, frames: np.ndarray, fps: int) -> None:
    """Write frames `(num_frames, height, width, 3)`, uint8 RGB with even height and width, as H.264 in mp4.

    The file appears under its name only once it is complete.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")  # hidden, so that no dataset builder takes it for a video
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread: the pool below uses the cores, and x264's output depends on the number of its threads. Its
        # lookahead takes another that only x264's own parameters name; with it the same frames gave other bytes now
        # and then.
        one_thread = "threads=1:lookahead-threads=1:sliced-threads=0"
        stream.options = {"preset": "veryfast", "crf": "20", "g": "12", "threads": "1", "x264-params": one_thread}
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    os.replace(partial, path)


def _render_to_file(job: tuple[str, str, int, int]) -> None:
    path, class_name, seed, index = job
    frames, fps = render_clip(class_name, seed, index)
    write_clip(path, frames, fps)


def _check_manifest(output_dir: Path, manifest: dict) -> None:
    """Write the manifest into a new folder; raise `ValueError` for a folder of other settings or of another origin."""
    path = output_dir / MANIFEST_NAME
    if not path.exists():
        occupied = [name for name in SPLITS if (output_dir / name).exists()]
        if occupied:
            raise ValueError(
                f"'{output_dir}' already holds '{occupied[0]}' but no {MANIFEST_NAME}, so it was not made by this "
                "program: choose another output_dir."
            )
        output_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest, indent=2) + "\n")
        return
    found = json.loads(path.read_text())
    differing = [name for name in manifest if found.get(name) != manifest[name]]
    if differing:
        details = "; ".join(f"{name} is {found.get(name)} there and {manifest[name]} here" for name in differing)
        raise ValueError(
            f"'{output_dir}' holds synthetic actions of other settings ({details}): choose another output_dir, delete "
            "that folder, or ask for its settings again."
        )


def render_dataset(
    output_dir: str | Path,
    num_videos_per_class: int | dict[str, int] = 20,
    seed: int = 0,
    num_workers: int | None = None,
    show_progress: bool = True,
) -> int:
    """Write the three splits as a `videofolder` tree and return the number of clips that had to be rendered.

    `num_videos_per_class` is one number, or one per split (`{"train": 24, "validation": 20, "test": 20}`; 0 leaves a
    split out). What is already there is kept, so that an interrupted run continues. `num_workers=None` uses every core;
    1 renders in this process. Raises `ValueError` when `output_dir` holds a tree of other settings.
    """
    output_dir = Path(output_dir)
    if isinstance(num_videos_per_class, int):
        num_videos_per_class = dict.fromkeys(SPLITS, num_videos_per_class)
    unknown = sorted(set(num_videos_per_class) - set(SPLITS))
    if unknown:
        raise ValueError(f"Unknown split '{unknown[0]}' in num_videos_per_class: the splits are {', '.join(SPLITS)}.")
    counts = {split: int(num_videos_per_class.get(split, 0)) for split in SPLITS}
    _check_manifest(output_dir, {"renderer_version": RENDERER_VERSION, "seed": seed, "num_videos_per_class": counts})

    jobs = []
    for split, class_names in SPLITS.items():
        for class_name in class_names if counts[split] else ():
            folder = output_dir / split / class_name
            folder.mkdir(parents=True, exist_ok=True)
            paths = [folder / f"{index:03d}.mp4" for index in range(counts[split])]
            jobs += [(str(p), class_name, seed, index) for index, p in enumerate(paths) if not p.exists()]

    num_workers = min(num_workers or os.cpu_count() or 1, max(len(jobs), 1))
    progress = {"total": len(jobs), "desc": "rendering", "unit": "clip", "disable": not show_progress or not jobs}
    if num_workers == 1:
        for job in tqdm(jobs, **progress):
            _render_to_file(job)
    else:
        # Spawned, not forked: the caller may hold threads (torch), which a forked process would inherit half-alive.
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            for _ in tqdm(pool.map(_render_to_file, jobs, chunksize=8), **progress):
                pass
    return len(jobs)


def draw_contact_sheet(class_names: tuple[str, ...], seed: int = 0, index: int = 0, num_frames: int = 8) -> Image.Image:
    """A sheet for looking: a row per class, `num_frames` frames of clip `index` in CLIP's centre crop."""
    tile, label = 96, 14
    sheet = Image.new("RGB", (num_frames * tile, len(class_names) * (tile + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, class_name in enumerate(class_names):
        scene = draw_scene(class_name, seed, index)
        centres = ((np.arange(num_frames) + 0.5) * scene.num_frames / num_frames).astype(int)
        draw.text((2, row * (tile + label) + 1), class_name, fill="black")
        for column, frame in enumerate(paint_scene(scene, centres)):
            side = min(scene.height, scene.width)
            top, left = (scene.height - side) // 2, (scene.width - side) // 2
            picture = Image.fromarray(frame[top : top + side, left : left + side]).resize((tile - 2, tile - 2))
            sheet.paste(picture, (column * tile, row * (tile + label) + label))
    return sheet


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Render synthetic actions: three splits of short H.264 videos as a videofolder tree "
        f"({len(BASE_CLASSES)} base, {len(VALIDATION_CLASSES)} validation and {len(NOVEL_CLASSES)} novel classes). "
        "Already rendered clips are kept, so an interrupted run can simply be started again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", help="folder for train/, validation/ and test/; not needed for a contact sheet")
    parser.add_argument("--train_videos_per_class", type=int, default=24, help="clips of each base class")
    parser.add_argument("--validation_videos_per_class", type=int, default=20, help="clips of each validation class")
    parser.add_argument("--test_videos_per_class", type=int, default=20, help="clips of each novel class")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other clips of the same classes")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count(), help="processes that render side by side")
    parser.add_argument("--contact_sheet", metavar="PNG", help="draw one clip of every class into this image")
    parser.add_argument("--contact_sheet_index", type=int, default=0, help="which clip of each class the sheet shows")
    args = parser.parse_args(arguments)
    if not args.output_dir and not args.contact_sheet:
        parser.error("nothing to do: give --output_dir DIR to render videos, --contact_sheet PNG to look at some")

    if args.contact_sheet:
        classes = sum(SPLITS.values(), ())
        draw_contact_sheet(classes, args.seed, args.contact_sheet_index).save(args.contact_sheet)
        print(f"Drew {len(classes)} classes into {args.contact_sheet}")
    if args.output_dir:
        counts = {split: getattr(args, f"{split}_videos_per_class") for split in SPLITS}
        num_rendered = render_dataset(args.output_dir, counts, args.seed, args.num_workers)
        total = sum(counts[split] * len(classes) for split, classes in SPLITS.items())
        print(f"{args.output_dir}: {total} clips, {num_rendered} of them rendered now")


if __name__ == "__main__":
    main()

__all__ = [
    "ACTIONS",
    "BASE_CLASSES",
    "CAPTION_TEMPLATES",
    "COLOURS",
    "NOVEL_CLASSES",
    "NUMBER_WORDS",
    "PLACES",
    "PLURALS",
    "SHAPES",
    "SIZE_WORDS",
    "SPLITS",
    "VALIDATION_CLASSES",
    "draw_contact_sheet",
    "draw_scene",
    "join_class_name",
    "paint_scene",
    "parse_class_name",
    "render_clip",
    "render_dataset",
    "render_still",
    "write_clip",
]
