"""Draws one episode of a track: a support clip of each class above, two query clips below."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from clipfsar.plots import plot_episode
from demo.synthetic.track_classes import Track, twin_of, verb_of
from demo.synthetic.track_features import ClassClips, frames_of_clip
from demo.synthetic.track_heads import N_WAY, new_head
from demo.synthetic.tracks import Run, TrackSettings, load_features, track_folder

PICTURE_SIZE = 96  # pixels of a frame
SUPPORT_CLIP, QUERY_CLIP = 0, 1


def classes_of_episode(track: Track, seed: int = 0) -> tuple[str, ...]:
    """Five novel classes of the first fold; on *Order* two of them are twins."""
    names = track.scopes(track.novel_of(0))[0]
    rng = np.random.default_rng(seed)
    chosen = [str(name) for name in rng.permutation(names)]
    if track.shares_look:
        first = next(name for name in chosen if twin_of(verb_of(name)))
        twin = next(name for name in chosen if verb_of(name) == twin_of(verb_of(first)))
        chosen = [first, twin, *(name for name in chosen if name not in (first, twin))]
    return tuple(chosen[:N_WAY])


def draw_episode(output_dir: Path, track: Track, settings: TrackSettings, picture: Path) -> None:
    """Answers a 5-way 1-shot episode with the `with_text` model of the first fold and seed, and draws it."""
    folder = track_folder(output_dir, track, settings)
    names = classes_of_episode(track, settings.seed)
    features = load_features(folder, "novel").of(names)
    model = new_head(True, settings.seed)
    run = Run(str(folder), track, settings, fold=0, seed=settings.seed, with_text=True)
    model.load_state_dict(load_file(run.path(".safetensors")), strict=False)
    asked = [0, 1]
    with torch.no_grad():
        logits = model(
            support_embeds=features.videos[:, SUPPORT_CLIP, 0][None],
            support_labels=torch.arange(len(names))[None],
            query_embeds=features.videos[asked, QUERY_CLIP, 0][None],
            class_embeds=features.texts[None],
            inference_mode="few_shot",
        ).logits[0]

    def frames(name: str, clip: int) -> np.ndarray:
        job = ClassClips(name, track.test_clips, 0, track.distractor_size, settings.seed)
        return frames_of_clip(job, clip, PICTURE_SIZE)

    plot_episode(
        list(names),
        np.stack([frames(name, SUPPORT_CLIP) for name in names]),
        np.stack([frames(names[label], QUERY_CLIP) for label in asked]),
        logits.softmax(-1).numpy(),
        asked,
        picture,
        f"One 5-way 1-shot episode of novel classes, answered by CLIP-FSAR ({track.name})",
    )


__all__ = ["classes_of_episode", "draw_episode"]
