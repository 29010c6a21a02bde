"""Every video of a data set read once, in parallel: those that cannot be read are found, and frames kept if asked.

Done work lies in shards on the disk, so that an interrupted run loses a shard at most and the next one goes on.
"""

import json
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value, Video, concatenate_datasets, load_from_disk
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from tqdm.auto import tqdm
from transformers import CLIPImageProcessor

from frame_archive_clipfsar import FRAME_FORMATS, pack_frames
from processing_clipfsar import VideoReadError, read_video_frames, resize_frames, resize_settings, sample_frame_indices

MISSING = "missing"
VIDEOS_PER_SHARD = 256
BYTES_PER_SHARD = 256 * 2**20


@dataclass(frozen=True)
class FrameStoreSettings:
    """What is kept of a video.

    Args:
        frame_format: `"none"` (it is only tried whether training could read it), `"jpeg"`, `"raw"`, or `"file"`: the
            file as it is.
        frame_size: Input size of the model that the frames are for.
        preprocessing: `"clip"` keeps the aspect ratio, shortest side `frame_size`; `"official"` squashes to 8/7 of it.
        frames_per_video: As many frames, each the middle one of an equal part of the video; all of a shorter one; 0
            keeps all of every video. With an odd multiple of the number of frames that a model sees, segment centres
            are exactly those of the file; the default is 9 x 8.
        jpeg_quality: 1 to 95.
        decoder: Of `read_video_frames`.
    """

    frame_format: str = "none"
    frame_size: int = 224
    preprocessing: str = "clip"
    frames_per_video: int = 72
    jpeg_quality: int = 90
    decoder: str = "auto"

    def image_processor(self) -> CLIPImageProcessor:
        size = {"height": self.frame_size, "width": self.frame_size}
        return CLIPImageProcessor(size={"shortest_edge": self.frame_size}, crop_size=size)


@dataclass(frozen=True)
class ReadVideo:
    """What came of a video: what is to be kept of it (None if nothing), or why it cannot be read."""

    data: bytes | None = None
    error: str | None = None


def read_video(job: tuple[Any, FrameStoreSettings]) -> ReadVideo:
    """Reads a video, a value of a `datasets` video column, as training would, or extracts what is to be kept of it."""
    torch.set_num_threads(1)  # the other cores have videos of their own
    video, settings = job
    seen = {}

    def select_indices(num_frames: int, fps: float | None) -> list[int]:
        wanted = settings.frames_per_video if settings.frame_format in FRAME_FORMATS else 8
        indices = range(num_frames)
        if 0 < wanted < num_frames:
            indices = sample_frame_indices(num_frames, wanted)
        seen.update(num_frames=num_frames, fps=fps, indices=indices)
        return indices

    if is_missing(video):
        return ReadVideo(error=MISSING)
    try:
        frames = read_video_frames(video, select_indices, settings.decoder)
    except VideoReadError as error:
        return ReadVideo(error=str(error))
    if settings.frame_format == "none":
        return ReadVideo()
    if settings.frame_format == "file":
        return ReadVideo(_file_of(video))
    image_processor = settings.image_processor()
    frames = resize_frames(frames, image_processor, settings.preprocessing)
    resized_for = resize_settings(image_processor, settings.preprocessing)
    return ReadVideo(
        pack_frames(
            frames,
            seen["indices"],
            seen["num_frames"],
            seen["fps"],
            resized_for,
            settings.frame_format,
            settings.jpeg_quality,
        )
    )


def in_processes(function: Callable, jobs: Iterable, num_workers: int) -> Iterator:
    """`function(job)` of each job, in order, from several processes.

    A job that takes its process down with it, as a damaged video can do with a decoder, gives the `BrokenProcessPool`
    instead of a result; the jobs that were under way beside it are done again.
    """

    # Not forked from here, where torch's threads would be inherited half-alive, but from a server that has imported
    # everything once and run nothing.
    context = multiprocessing.get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])

    def new_pool(size: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(size, mp_context=context)

    def submit(job) -> Future | None:
        try:
            return pool.submit(function, job)
        except BrokenProcessPool:
            return None

    jobs, under_way, pool = iter(jobs), deque(), new_pool(num_workers)
    try:
        while True:
            while len(under_way) < 4 * num_workers and (job := next(jobs, None)) is not None:
                under_way.append((job, submit(job)))
            if not under_way:
                return
            job, future = under_way.popleft()
            try:
                result = future.result() if future is not None else None
                is_broken = future is None
            except BrokenProcessPool:
                is_broken = True
            if is_broken:
                pool.shutdown()
                result = _alone(function, job, new_pool)
                pool = new_pool(num_workers)
                under_way = deque((job, submit(job)) for job, _ in under_way)
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(function: Callable, job, new_pool: Callable[[int], ProcessPoolExecutor]):
    """The result of one job in a process of its own: was it this one that took the others down?"""
    with new_pool(1) as pool:
        try:
            return pool.submit(function, job).result()
        except BrokenProcessPool as error:
            return error


def read_split(
    dataset: Dataset,
    folder: Path,
    settings: FrameStoreSettings,
    num_workers: int,
    video_column: str = "video",
    description: str = "reading videos",
) -> tuple[Dataset, list[dict]]:
    """Reads every video of a split, going on with what `folder` holds of an earlier run of the same settings.

    Returns:
        The rows whose videos can be read, in order, with frame archives for videos if there is a store; and for each of
        the others its row, path and error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos = dataset.select_columns([video_column])

    def read(rows: Sequence[int], progress: tqdm) -> Iterator[tuple[int, ReadVideo]]:
        jobs = ((videos[row][video_column], settings) for row in rows)
        for row, result in zip(rows, in_processes(read_video, jobs, num_workers), strict=True):
            if isinstance(result, BrokenProcessPool):
                path = _path_of(videos[row][video_column])
                result = ReadVideo(error=f"Cannot read video {path!r}: the decoder crashed.")
            progress.update()
            yield row, result

    shards = _finished_shards(folder)
    done = shards[-1].end if shards else 0
    with tqdm(total=len(dataset), initial=done, desc=description, unit="video") as progress:
        # What could not be read the last time may have been mended since.
        bad_rows = [video["row"] for shard in shards for video in shard.bad]
        progress.total += len(bad_rows)
        mended = {row: result for row, result in read(bad_rows, progress) if result.error is None}
        for shard in shards:
            if any(video["row"] in mended for video in shard.bad):
                _mend_shard(shard, dataset, mended, settings, video_column)
        results, num_bytes = {}, 0
        for row, result in read(range(done, len(dataset)), progress):
            results[row] = result
            num_bytes += len(result.data or b"")
            if len(results) == VIDEOS_PER_SHARD or num_bytes >= BYTES_PER_SHARD or row == len(dataset) - 1:
                _write_shard(folder, dataset, results, settings, video_column)
                results, num_bytes = {}, 0

    shards = _finished_shards(folder)
    bad = [video for shard in shards for video in shard.bad]
    if settings.frame_format == "none":
        return dataset.select([row for shard in shards for row in shard.good]), bad
    return concatenate_datasets([load_from_disk(str(shard.frames)) for shard in shards]), bad


@dataclass(frozen=True)
class _Shard:
    """A finished piece of the work: the rows up to `end`, those that could be read, and why the others could not."""

    path: Path
    end: int
    good: list[int]
    bad: list[dict]

    @property
    def frames(self) -> Path:
        return self.path / "frames"


def _finished_shards(folder: Path) -> list[_Shard]:
    paths = sorted(folder.glob("shard-*"))  # unfinished ones are called .shard-...
    return [_Shard(path, **json.loads((path / "rows.json").read_text())) for path in paths]


def _mend_shard(
    shard: _Shard, dataset: Dataset, mended: dict[int, ReadVideo], settings: FrameStoreSettings, video_column: str
):
    results = {row: ReadVideo() for row in shard.good}
    if settings.frame_format != "none":
        kept = load_from_disk(str(shard.frames))[video_column]
        results = {row: ReadVideo(video["bytes"]) for row, video in zip(shard.good, kept, strict=True)}
    results |= {video["row"]: mended.get(video["row"], ReadVideo(error=video["error"])) for video in shard.bad}
    _write_shard(shard.path.parent, dataset, dict(sorted(results.items())), settings, video_column)


def _write_shard(
    folder: Path, dataset: Dataset, results: dict[int, ReadVideo], settings: FrameStoreSettings, video_column: str
):
    """A shard appears under its name only when it is complete."""
    path = folder / f"shard-{min(results):08d}"
    partial = folder / f".{path.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    good = [row for row, result in results.items() if result.error is None]
    if settings.frame_format != "none":
        part = dataset.select(good)
        videos = [
            {"path": _path_of(video), "bytes": results[row].data}
            for row, video in zip(good, part[video_column], strict=True)
        ]
        _save_quietly(_with_videos(part, videos, video_column), partial / "frames")
    bad = [
        {"row": row, "path": _path_of(dataset[row][video_column]), "error": result.error}
        for row, result in results.items()
        if result.error is not None
    ]
    (partial / "rows.json").write_text(json.dumps({"good": good, "bad": bad, "end": max(results) + 1}))
    shutil.rmtree(path, ignore_errors=True)  # one that is being mended; if this dies here, it is read again
    os.replace(partial, path)


def _with_videos(dataset: Dataset, videos: list[dict], video_column: str) -> Dataset:
    # A video feature throws bytes away when they come with the path of a file that is there; a plain struct does not.
    struct = {"bytes": Value("binary"), "path": Value("string")}
    columns = {name: dataset[name] for name in dataset.column_names} | {video_column: videos}
    features = Features({**dataset.features, video_column: struct})
    return Dataset.from_dict(columns, features=features).cast_column(video_column, Video(decode=False))


def _save_quietly(dataset: Dataset, folder: Path):
    was_enabled = is_progress_bar_enabled()
    disable_progress_bar()
    dataset.save_to_disk(str(folder))
    if was_enabled:
        enable_progress_bar()


def is_missing(video: Any) -> bool:
    """Whether a value of a video column is the path of a file that is not there."""
    path = None if isinstance(video, dict) and video.get("bytes") is not None else _path_of(video)
    return path is not None and "://" not in path and not os.path.exists(path)


def _file_of(video: Any) -> bytes:
    if isinstance(video, dict) and video.get("bytes") is not None:
        return video["bytes"]
    return Path(_path_of(video)).read_bytes()


def _path_of(video: Any) -> str | None:
    return video.get("path") if isinstance(video, dict) else video


__all__ = ["MISSING", "FrameStoreSettings", "ReadVideo", "in_processes", "is_missing", "read_split", "read_video"]
