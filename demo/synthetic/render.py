"""Renders synthetic actions: short videos with which the demo and the tests run without a network.

A class is "COLOUR SHAPE ACTION": "red star growing", "green square moving left", "two green rings meeting". One object
(or a small group) performs the action. One to three smaller distractors move differently; each shares the subject's
colour or its shape or neither, but never both. The background moves, the camera shakes, and the frames are noisy.
Size, speed, place, hue, clip length, frame rate and frame shape differ from clip to clip.

The data set tests few-shot recognition:

- The *base* (train), validation and *novel* (test) splits share neither a class nor an action verb. The combinations of
  colour and shape in the novel classes are new as well.
- Most classes come in time-reversed pairs of the same colour and shape ("red star growing" / "red star shrinking").
  Both have the same distribution of single frames, so only the order of frames tells them apart.
- Because of the distractors, it helps to learn from the class text which object matters.

Every clip is a pure function of (seed, class, index), and every class belongs to one split. The program writes the
videos:

    python -m demo.synthetic.render --output_dir synthetic_actions --train_videos_per_class 12

The result is a `videofolder` tree (`train/green square looping/000.mp4`, ...), which
`datasets.load_dataset("videofolder", data_dir=...)` reads. An interrupted run continues where it stopped.
"""

import argparse
import colorsys
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from demo.synthetic.actions import ACTIONS, Track, cycles
from demo.synthetic.classes import (
    BASE_CLASSES,
    COLOURS,
    NOVEL_CLASSES,
    NUMBER_WORDS,
    SPLITS,
    VALIDATION_CLASSES,
    parse_class_name,
)
from demo.synthetic.shapes import PLURALS, SHAPES, signed_distance
from parent_process_clipfsar import ending_pool, shielding_children

# Part of the manifest. Raise it whenever a change alters the pixels, so that old and new clips never mix.
RENDERER_VERSION = 3
MANIFEST_NAME = "synthetic_actions.json"


# Other words in the captions of stills, and how often each template is used.
SIZE_WORDS = ("small", "large")
PLACES = ("on the left", "on the right", "at the top", "at the bottom")
CAPTION_TEMPLATES = {"{}": 0.25, "a photo of {}": 0.45, "a picture of {}": 0.15, "an image of {}": 0.15}


# ----------------------------------------------------------------------------------------------------------------------
# Scenes: all random choices of a clip are made here; painting the pixels is then deterministic
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
    """One clip before it is painted. `objects` are painted in order: distractors first, subjects in front of them."""

    num_frames: int
    fps: int
    height: int
    width: int
    objects: list[SceneObject]
    background: np.ndarray  # (height + margin, width + margin, 3); each frame shows a window of it
    background_path: np.ndarray  # (num_frames, 2) upper left corner of the window, integers
    camera: np.ndarray  # (num_frames, 2) shift of the objects (x, y), in units of the short side
    noise: np.ndarray  # (height + margin, width + margin, 3)
    noise_path: np.ndarray  # (num_frames, 2)
    num_subjects: int


_MARGIN = 24  # a background is larger than a frame by this many pixels
_NOISE_MARGIN = 16


def _progress(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Progress from 0 to 1, with rests at both ends and a random softness; its distribution is symmetric in time."""
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
    """A distractor with the subject's colour, or its shape, or neither, and another motion."""
    kind = rng.integers(3)
    other_colours = [name for name in COLOURS if name != colour]
    other_shapes = [name for name in SHAPES if name != shape]
    colour = colour if kind == 0 else other_colours[rng.integers(len(other_colours))]
    shape = shape if kind == 1 else other_shapes[rng.integers(len(other_shapes))]
    start_x, start_y = rng.uniform(-0.42, 0.42, size=2)
    phase = cycles(rng, time, 0.3, 1.5)
    motion = rng.integers(4)
    track = Track(x=start_x, y=start_y, angle=rng.uniform(-0.3, 0.3))
    if motion == 0:  # drift
        direction, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 0.6)
        track.x = start_x + distance * math.cos(direction) * (time - 0.5)
        track.y = start_y + distance * math.sin(direction) * (time - 0.5)
    elif motion == 1:  # run in a circle, in either direction
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
        [np.sin(cycles(rng, time, 1, 3)) + np.sin(cycles(rng, time, 3, 6)) for _ in range(2)], axis=-1
    )


def draw_scene(class_name: str, seed: int, index: int, distractor_size: float = 1.0) -> Scene:
    """The scene of clip `index` of a class, with all random choices; the same arguments give the same scene.

    `distractor_size` multiplies only the radius of the distractors, which is 0.5 to 0.72 of the subject's.
    """
    number, colour, shape, action_name = parse_class_name(class_name)
    action = ACTIONS[action_name]
    # The seed contains the whole class name. With equal random numbers, clip 3 of a class would be clip 3 of its
    # reversed twin, played backwards.
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
    for distractor in distractors:
        distractor.radius *= distractor_size

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

    All frames are computed at once, but only in a square window around the object, which covers a small part of them.
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
    # With uneven stretch the distance is approximate: the soft edge becomes a fraction of a pixel wider or narrower.
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
    """Frames `(len(frame_indices), height, width, 3)`, uint8; by default all frames of the clip."""
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

    Raises `ValueError` for a name that does not consist of a known colour, shape and action.
    """
    scene = draw_scene(class_name, seed, index)
    return paint_scene(scene), scene.fps


# ----------------------------------------------------------------------------------------------------------------------
# Stills with captions, for demo/synthetic/pretrain_tiny_clip.py
# ----------------------------------------------------------------------------------------------------------------------


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _describe(rng: np.random.Generator, scene: Scene, frame: int, class_name: str) -> str:
    """A caption of one frame: colour and shape, and sometimes the size, the place, the action or a distractor."""
    number, colour, shape, action = parse_class_name(class_name)
    subjects = scene.objects[-scene.num_subjects :]
    x = np.mean([item.track.at("x", scene.num_frames)[frame] for item in subjects])
    y = np.mean([item.track.at("y", scene.num_frames)[frame] for item in subjects])
    radius = subjects[0].radius * subjects[0].track.at("scale", scene.num_frames)[frame]

    kind = rng.choice(("plain", "size", "place", "action", "bystander"), p=(0.2, 0.15, 0.2, 0.35, 0.1))
    noun = f"{colour} {shape if number == 1 else PLURALS[shape]}"
    if kind == "size" and number == 1 and not 0.14 <= radius <= 0.25:
        noun = f"{SIZE_WORDS[int(radius > 0.25)]} {noun}"
    # Class names have no article (a few-shot prompt reads "a photo of red star growing"); most captions have one.
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
    """One frame `(height, width, 3)`, uint8 RGB, from clip `index` of a class, and its caption."""
    scene = draw_scene(class_name, seed, index)
    rng = np.random.default_rng([seed, zlib.crc32(class_name.encode()), index, 1])
    frame = int(rng.integers(scene.num_frames))
    return paint_scene(scene, np.array([frame]))[0], _describe(rng, scene, frame, class_name)


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------


def write_clip(path: str | Path, frames: np.ndarray, fps: int) -> None:
    """Write frames `(num_frames, height, width, 3)`, uint8 RGB with even height and width, as H.264 in mp4.

    The file appears under its name only when it is complete.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")  # hidden, so that no dataset builder takes it for a video
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread: the pool below uses the cores, and x264's output depends on the number of its threads. No
        # macroblock tree: for sizes that are not multiples of 16, its look-ahead reads uninitialized memory, and equal
        # frames became different files.
        stream.options = {"preset": "veryfast", "crf": "20", "g": "12", "threads": "1", "x264-params": "mbtree=0"}
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    os.replace(partial, path)


def _render_to_file(job: tuple[str, str, int, int]) -> None:
    path, class_name, seed, index = job
    frames, fps = render_clip(class_name, seed, index)
    write_clip(path, frames, fps)


def _check_manifest(output_dir: Path, manifest: dict) -> None:
    """Write the manifest into a new folder; raise `ValueError` for a folder with other settings or from elsewhere."""
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
            "the folder, or use its settings."
        )


def render_dataset(
    output_dir: str | Path,
    num_videos_per_class: int | dict[str, int] = 20,
    seed: int = 0,
    num_workers: int | None = None,
    show_progress: bool = True,
    class_names: Mapping[str, Sequence[str]] = SPLITS,
) -> int:
    """Write the three splits as a `videofolder` tree and return the number of newly rendered clips.

    `num_videos_per_class` is one number, or one per split (`{"train": 24, "validation": 20, "test": 20}`; 0 leaves a
    split out). Existing clips are kept, so an interrupted run continues. `num_workers=None` uses every core; 1 renders
    in this process. `class_names` are the classes of each split. Raises `ValueError` when `output_dir` holds a tree
    with other settings.
    """
    output_dir = Path(output_dir)
    if isinstance(num_videos_per_class, int):
        num_videos_per_class = dict.fromkeys(SPLITS, num_videos_per_class)
    unknown = sorted(set(num_videos_per_class) - set(SPLITS))
    if unknown:
        raise ValueError(f"Unknown split '{unknown[0]}' in num_videos_per_class: the splits are {', '.join(SPLITS)}.")
    counts = {split: int(num_videos_per_class.get(split, 0)) for split in SPLITS}
    manifest = {"renderer_version": RENDERER_VERSION, "seed": seed, "num_videos_per_class": counts}
    if class_names != SPLITS:
        manifest["class_names"] = {split: list(names) for split, names in class_names.items()}
    _check_manifest(output_dir, manifest)

    jobs = []
    for split, names in class_names.items():
        for class_name in names if counts[split] else ():
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
        # Spawned, not forked: the caller may have torch's threads, which break in a forked process.
        with ending_pool(num_workers, get_context("spawn")) as pool:
            with shielding_children():
                done = pool.map(_render_to_file, jobs, chunksize=8)
            for _ in tqdm(done, **progress):
                pass
    return len(jobs)


def draw_contact_sheet(class_names: tuple[str, ...], seed: int = 0, index: int = 0, num_frames: int = 8) -> Image.Image:
    """A contact sheet: one row per class, with `num_frames` frames of clip `index` in CLIP's centre crop."""
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
        "Existing clips are kept: to continue an interrupted run, start it again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", help="folder for train/, validation/ and test/; not needed for a contact sheet")
    parser.add_argument("--train_videos_per_class", type=int, default=12, help="clips of each base class")
    parser.add_argument("--validation_videos_per_class", type=int, default=20, help="clips of each validation class")
    parser.add_argument("--test_videos_per_class", type=int, default=20, help="clips of each novel class")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other clips of the same classes")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count(), help="processes that render in parallel")
    parser.add_argument("--contact_sheet", metavar="PNG", help="draw one clip of every class into this image")
    parser.add_argument("--contact_sheet_index", type=int, default=0, help="which clip of each class the sheet shows")
    args = parser.parse_args(arguments)
    if not args.output_dir and not args.contact_sheet:
        parser.error("nothing to do: give --output_dir DIR to render videos, or --contact_sheet PNG to see some frames")

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
    "CAPTION_TEMPLATES",
    "PLACES",
    "SIZE_WORDS",
    "draw_contact_sheet",
    "draw_scene",
    "paint_scene",
    "render_clip",
    "render_dataset",
    "render_still",
    "write_clip",
]
