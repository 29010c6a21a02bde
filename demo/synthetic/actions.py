"""The actions (verbs): how objects move, grow, turn or fade over time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass
class Track:
    """State of one object over time. Each field is a number or an array `(num_frames,)`."""

    x: np.ndarray | float = 0.0
    y: np.ndarray | float = 0.0
    scale: np.ndarray | float = 1.0  # times the object's own radius
    stretch_x: np.ndarray | float = 1.0
    stretch_y: np.ndarray | float = 1.0
    angle: np.ndarray | float = 0.0  # radians; positive turns clockwise on the screen, because y points down
    opacity: np.ndarray | float = 1.0
    brightness: np.ndarray | float = 1.0
    fill: np.ndarray | float = 1.0  # the filled part of the height, from below

    def at(self, name: str, num_frames: int) -> np.ndarray:
        return np.broadcast_to(np.asarray(getattr(self, name), dtype=np.float32), (num_frames,))


def _between(start: float, end: float, progress: np.ndarray) -> np.ndarray:
    return start + (end - start) * progress


def _place(rng: np.random.Generator, reach: float = 0.13) -> tuple[float, float]:
    return rng.uniform(-reach, reach), rng.uniform(-reach, reach)


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
    # It starts outside one of the four borders of the central square and ends in the middle.
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


def cycles(rng, time, low: float, high: float) -> np.ndarray:
    """Phase in radians: `low` to `high` repetitions from a random start."""
    return 2 * math.pi * (rng.uniform(low, high) * time + rng.uniform())


def _shaking(rng, time):
    x, y = _place(rng)
    return [Track(x=x + rng.uniform(0.06, 0.1) * np.sin(cycles(rng, time, 4, 6)), y=y)]


def _hopping(rng, time):
    reach = rng.uniform(0.15, 0.28) * rng.choice((-1, 1))
    height = np.abs(np.sin(cycles(rng, time, 1.5, 2.5)))
    return [Track(x=_between(-reach, reach, time), y=0.26 - rng.uniform(0.2, 0.3) * height)]


def _looping(rng, time):
    phase = rng.choice((-1, 1)) * cycles(rng, time, 1, 1.6)
    return [Track(x=rng.uniform(0.22, 0.3) * np.sin(phase), y=rng.uniform(0.14, 0.22) * np.sin(2 * phase))]


def _revolving(rng, time):
    angle = rng.choice((-1, 1)) * cycles(rng, time, 0.6, 1.1)
    distance = rng.uniform(0.16, 0.24)
    dx, dy = distance * np.cos(angle), distance * np.sin(angle)
    return [Track(x=dx, y=dy), Track(x=-dx, y=-dy)]


def _blinking(rng, time):
    x, y = _place(rng)
    return [Track(x=x, y=y, opacity=(np.sin(cycles(rng, time, 2.5, 4)) > -0.3).astype(np.float32))]


def _pulsing(rng, time):
    x, y = _place(rng)
    return [Track(x=x, y=y, scale=1 + rng.uniform(0.35, 0.5) * np.sin(cycles(rng, time, 1.5, 2.5)))]


def _zigzagging(rng, time):
    reach = rng.uniform(0.26, 0.32) * rng.choice((-1, 1))
    sawtooth = 2 / math.pi * np.arcsin(np.sin(cycles(rng, time, 2, 3)))
    return [Track(x=_between(-reach, reach, time), y=rng.uniform(0.12, 0.2) * sawtooth)]


def _swinging(rng, time):
    # A pendulum that hangs from above the upper border of the frame.
    angle = rng.uniform(0.45, 0.65) * np.sin(cycles(rng, time, 1, 1.8))
    length = rng.uniform(0.5, 0.6)
    return [Track(x=length * np.sin(angle), y=length * np.cos(angle) - 0.4, angle=-angle)]


def _bouncing(rng, time):
    phase = cycles(rng, time, 1.2, 2.2) / (2 * math.pi) % 1
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


__all__ = ["ACTIONS", "Action", "Track", "cycles"]
