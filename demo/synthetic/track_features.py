"""Frame features of rendered clips, directly from the renderer, without video files.

Clips are rendered and encoded once with the tiny CLIP's frozen towers. Each class is a separate job on one thread, so
the features do not depend on the number of processes.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from PIL import Image

from demo.synthetic import TINY_CLIP
from demo.synthetic.render import draw_scene, paint_scene
from demo.synthetic.track_classes import Track
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

NUM_FRAMES = 8
_DRAWS = 99  # part of the seed: frames and crops get other random numbers than scenes


@dataclass(frozen=True)
class ClassClips:
    """Clips of one class to encode: `clips` clips with `draws` random draws each; 0 draws means as in evaluation."""

    class_name: str
    clips: int
    draws: int
    distractor_size: float
    seed: int


@dataclass(frozen=True)
class Features:
    """Features of some classes.

    Args:
        class_names: C names.
        videos: (C, clips, draws, T, D); evaluation has one draw.
        texts: (C, D).
    """

    class_names: tuple[str, ...]
    videos: torch.Tensor
    texts: torch.Tensor

    def of(self, class_names: tuple[str, ...]) -> "Features":
        """The features of some of the classes."""
        rows = [self._rows[name] for name in class_names]
        return Features(class_names, self.videos[rows], self.texts[rows])

    def with_texts_of(self, class_names: tuple[str, ...]) -> "Features":
        """The same clips with the texts of other classes of the same collection."""
        return Features(self.class_names, self.videos, self.texts[[self._rows[name] for name in class_names]])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.class_names)}

    @property
    def labels(self) -> np.ndarray:
        """Class of each clip, (C * clips,), in the order of `clips`."""
        return np.repeat(np.arange(len(self.class_names)), self.videos.shape[1])

    @property
    def clips(self) -> torch.Tensor:
        """Features of all clips, (C * clips, draws, T, D)."""
        return self.videos.flatten(0, 1)


def what_to_encode(track: Track, seed: int) -> dict[str, list[ClassClips]]:
    """The clips of each split of a track."""
    counts = {"base": (track.base_clips, track.draws)} | dict.fromkeys(("validation", "novel"), (track.test_clips, 0))
    return {
        split: [ClassClips(name, *numbers, track.distractor_size, seed) for name in getattr(track, split)]
        for split, numbers in counts.items()
    }


def encode_class(job: ClassClips) -> tuple[np.ndarray, np.ndarray]:
    """Features of a class's clips (clips, draws, T, D) and of its text (D,), float32."""
    model, processor = tiny_clip()
    frames = np.concatenate([frames_of_clip(job, clip) for clip in range(job.clips)])
    mean, std = (np.array(value, np.float32) for value in _mean_and_std(processor))
    pixels = torch.from_numpy((frames.astype(np.float32) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        features = torch.cat([model.get_video_features(batch[None, None])[0, 0] for batch in pixels.split(128)])
        text = model.get_class_features(**processor.tokenize_classes([job.class_name]))[0]
    shape = (job.clips, max(1, job.draws), NUM_FRAMES, -1)
    return features.view(shape).numpy(), text.numpy()


@cache
def tiny_clip() -> tuple[CLIPFSARModel, CLIPFSARProcessor]:
    """The unchanged tiny CLIP and its processor; one copy in each process."""
    return new_model(temporal_num_layers=0), CLIPFSARProcessor.from_pretrained(TINY_CLIP)


def new_model(**settings) -> CLIPFSARModel:
    """A model over the tiny CLIP's frozen towers, in evaluation mode; `settings` are for its configuration."""
    model = CLIPFSARModel.from_pretrained(TINY_CLIP, dtype=torch.float32, **settings).eval()
    model.clip.requires_grad_(False)
    return model


def frames_of_clip(job: ClassClips, clip: int, size: int | None = None) -> np.ndarray:
    """Frames (draws * T, size, size, 3), uint8: the centre of each of T segments, or random draws.

    A draw takes a random frame of each segment and one random crop, as in training on files.

    Args:
        size: Side of a frame; by default the tiny CLIP's.
    """
    scene = draw_scene(job.class_name, job.seed, clip, job.distractor_size)
    size = size or tiny_clip()[0].config.clip_config.vision_config.image_size
    segment = scene.num_frames // NUM_FRAMES
    if not job.draws:
        centres = (2 * np.arange(NUM_FRAMES) + 1) * scene.num_frames // (2 * NUM_FRAMES)
        return _crop(paint_scene(scene, centres), size, 0.5, 0.5)
    rng = np.random.default_rng([job.seed, clip, _DRAWS, *job.class_name.encode()])
    draws = []
    for _ in range(job.draws):
        indices = np.arange(NUM_FRAMES) * segment + rng.integers(segment, size=NUM_FRAMES)
        draws.append(_crop(paint_scene(scene, indices), size, *rng.uniform(size=2)))
    return np.concatenate(draws)


def _crop(frames: np.ndarray, size: int, across: float, down: float) -> np.ndarray:
    """Frames with their shortest side resized to `size` (bicubic), cropped to a square at (across, down) in 0..1."""
    height, width = frames.shape[1:3]
    scale = size / min(height, width)
    new_width, new_height = max(size, int(width * scale)), max(size, int(height * scale))
    left, top = int(across * (new_width - size)), int(down * (new_height - size))
    pictures = [Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(picture.crop((left, top, left + size, top + size))) for picture in pictures])


def _mean_and_std(processor: CLIPFSARProcessor) -> tuple[list[float], list[float]]:
    return processor.image_processor.image_mean, processor.image_processor.image_std


__all__ = [
    "NUM_FRAMES",
    "ClassClips",
    "Features",
    "encode_class",
    "frames_of_clip",
    "new_model",
    "tiny_clip",
    "what_to_encode",
]
