"""Frames per second from video files and from a frame store, and episodes per second of a data loader.

    python -m benchmarks.data_loading                                     # rendered clips: 320 x 240, 250 frames, H.264
    python -m benchmarks.data_loading --videos FOLDER --num_workers 0 2   # your own: FOLDER/CLASS/VIDEO

Training reads 8 random frames of a video. The sources take turns in one process, so that other load on the machine
affects all of them equally. A row is the median over rounds. "Reading" ends with frames in memory, "ready" with
normalised pixel values for the model. The frame stores are in memory here; a cold read from a disk takes longer.
"Cached features" is training with --freeze_vision: the loader only gathers features.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import av
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value, Video
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor, CLIPTokenizer

from clipfsar.data.frame_store import FrameStoreSettings, read_video
from clipfsar.data.sources import folder_splits
from clipfsar.options import parse_options
from clipfsar.training.frozen_features import ROW, FeatureCollator, row_dataset
from demo.synthetic import TINY_CLIP
from episodes_clipfsar import EpisodeCollator, EpisodeDataset
from processing_clipfsar import CLIPFSARProcessor, read_video_frames, sample_frame_indices

NUM_FRAMES = 8


@dataclass
class Arguments:
    videos: str | None = field(default=None, metadata={"help": "Folder CLASS/VIDEO of real clips; default: rendered."})
    num_videos: int = field(default=24, metadata={"help": "Videos to read."})
    rounds: int = field(default=5, metadata={"help": "Turns of each source."})
    episodes: int = field(default=12, metadata={"help": "5-way 1-shot 5-query episodes per data loader."})
    num_workers: list[int] = field(default_factory=lambda: [0, 2], metadata={"help": "Workers of the data loader."})
    preprocessing: str = field(default="clip", metadata={"choices": ["clip", "official"]})


def render(path: Path, gop_size: int, seed: int, num_frames: int = 250):
    """Writes a moving texture with noise in H.264, 320 x 240 at 25 frames per second."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (15, 20, 3)).astype(np.uint8).repeat(32, 0).repeat(32, 1)  # (480, 640, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 320, 240, "yuv420p", gop_size
        for t in range(num_frames):
            frame = texture[t % 240 : t % 240 + 240, (2 * t) % 320 : (2 * t) % 320 + 320].astype(np.int16)
            frame = np.clip(frame + rng.integers(-8, 9, frame.shape), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def sources_of(arguments: Arguments, folder: Path) -> dict[str, list]:
    """The same videos in each form, by name."""
    if arguments.videos:
        clips = [clip.path for split in folder_splits(Path(arguments.videos)).values() for clip in split]
        files = {"your files": clips[: arguments.num_videos]}
    else:
        files = {}
        for name, gop_size in (("H.264, key frame every 250", 250), ("H.264, key frame every 12", 12)):
            files[name] = [str(folder / f"{gop_size}_{number}.mp4") for number in range(arguments.num_videos)]
            for number, path in enumerate(files[name]):
                render(Path(path), gop_size, number)
    first = next(iter(files.values()))
    stores = {}
    for frame_format in ("jpeg", "raw"):
        settings = FrameStoreSettings(frame_format, preprocessing=arguments.preprocessing)
        stores[f"frame store, {frame_format}"] = [
            {"path": None, "bytes": read_video((path, settings)).data} for path in first
        ]
    return files | stores


def frames_per_second(sources: dict[str, list], work: Callable, rounds: int) -> dict[str, float]:
    """Frames per second of each source: the median over rounds in which the sources take turns."""
    rates = {name: [] for name in sources}
    for turn in range(rounds + 1):
        for name, videos in sources.items():
            start = time.perf_counter()
            for number, video in enumerate(videos):
                work(video, torch.Generator().manual_seed(1000 * turn + number))
            if turn:  # the first round warms up
                rates[name].append(NUM_FRAMES * len(videos) / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def read_random_frames(video, generator: torch.Generator) -> torch.Tensor:
    return read_video_frames(
        video, lambda n, _: sample_frame_indices(n, NUM_FRAMES, "segment_random", generator=generator)
    )


def dataset_of(videos: list) -> Dataset:
    """A data set of 60 videos of 10 classes, which repeats `videos`."""
    rows = [videos[number % len(videos)] for number in range(60)]
    struct = Features(
        {
            "video": {"bytes": Value("binary"), "path": Value("string")},
            "label": ClassLabel(names=[f"class {number}" for number in range(10)]),
        }
    )
    rows = [video if isinstance(video, dict) else {"path": video, "bytes": None} for video in rows]
    dataset = Dataset.from_dict({"video": rows, "label": [number % 10 for number in range(60)]}, features=struct)
    return dataset.cast_column("video", Video(decode=False))


def episodes_per_second(dataset: Dataset, column: str, collator: Callable, num_workers: int, n_episodes: int) -> float:
    """Loaded 5-way 1-shot 5-query episodes per second, 30 videos each."""
    warm_up = max(2 * num_workers, 1)
    episodes = EpisodeDataset(dataset, 5, 1, 5, n_episodes=warm_up + n_episodes, video_column=column)
    loader = DataLoader(episodes, num_workers=num_workers, collate_fn=collator)
    for number, _ in enumerate(loader):
        if number == warm_up - 1:  # the workers have started, and all have work
            start = time.perf_counter()
    return n_episodes / (time.perf_counter() - start)


def main(arguments: Arguments):
    torch.set_num_threads(1)
    size = {"height": 224, "width": 224}
    image_processor = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=size)
    tokenizer = CLIPTokenizer.from_pretrained(TINY_CLIP)
    processor = CLIPFSARProcessor(image_processor, tokenizer, NUM_FRAMES, preprocessing=arguments.preprocessing)
    with tempfile.TemporaryDirectory() as folder:
        sources = sources_of(arguments, Path(folder))
        reading = frames_per_second(sources, read_random_frames, arguments.rounds)
        ready = frames_per_second(
            sources,
            lambda video, generator: processor.process_videos([video], training=True, generator=generator),
            arguments.rounds,
        )
        collator = EpisodeCollator(processor, training=True)
        loading = {
            name: [
                episodes_per_second(dataset_of(videos), "video", collator, number, arguments.episodes)
                for number in arguments.num_workers
            ]
            for name, videos in sources.items()
        }
        # Features of ViT-B's size, one draw per video. An episode is fast, so it runs many more of them.
        collator = FeatureCollator(torch.randn(60, 1, NUM_FRAMES, 512))
        rows = row_dataset(dataset_of(next(iter(sources.values()))), "label")
        cached = [
            episodes_per_second(rows, ROW, collator, number, 50 * arguments.episodes)
            for number in arguments.num_workers
        ]
        sizes = {
            name: sum(len(video["bytes"]) if isinstance(video, dict) else os.path.getsize(video) for video in videos)
            for name, videos in sources.items()
        }
    print(
        f"{date.today()}, {platform.machine()} CPU, {os.cpu_count()} cores, torch {torch.__version__}; "
        f"{arguments.videos or 'rendered clips of 320 x 240, 250 frames'}, {NUM_FRAMES} random frames of each, "
        f"{arguments.preprocessing!r} preprocessing at 224"
    )
    workers = [f"episodes/s, {number} workers" for number in arguments.num_workers]
    columns = ["", "MB per video", "reading, frames/s", "ready, frames/s", *workers]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    base = next(iter(sources))
    for name, videos in sources.items():
        cells = [f"{sizes[name] / len(videos) / 1e6:.2f}"]
        cells += [f"{rates[name]:.0f} ({rates[name] / rates[base]:.1f} x)" for rates in (reading, ready)]
        cells += [f"{rate:.2f}" for rate in loading[name]]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"| cached features | {NUM_FRAMES * 512 * 4 / 1e6:.2f} | - | - | {' | '.join(f'{r:.0f}' for r in cached)} |")


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
