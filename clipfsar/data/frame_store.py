"""Reads every video of a data set once, in parallel. Finds unreadable videos and, if you want, keeps frames.

Finished work is stored in shards on the disk. An interrupted run loses at most one shard, and the next run continues.
"""

import json
import multiprocessing
import os
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_all_start_methods
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import torch
from datasets import Dataset, DatasetDict, Features, Value, Video, concatenate_datasets, load_from_disk
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from tqdm.auto import tqdm

from choices_clipfsar import SECONDS_PER_VIDEO
from clipfsar.checked_files import check_files, link_or_copy, write_checksums
from clipfsar.content import digest_column, digest_of_video, digests_of_videos, table_rows
from clipfsar.json_files import read_json
from clipfsar.locks import FolderLock
from clipfsar.shards import Shard
from container_clipfsar import READER_VERSION
from frame_archive_clipfsar import FRAME_FORMATS, pack_frames
from limits_clipfsar import UnreadableError
from parent_process_clipfsar import end_with_parent, shielding_children
from paths_clipfsar import replace_file, write_text
from pixels_clipfsar import resize_frames, resize_settings
from spans_clipfsar import split_span
from video_clipfsar import VideoReadError, VideoTimes, read_video_frames, sample_frame_indices

MISSING = "missing"
VIDEOS_PER_SHARD = 256
BYTES_PER_SHARD = 256 * 2**20
BLOCKS_PER_TASK = 8  # in a large split, so that all tasks have about the same number of videos


@dataclass(frozen=True)
class FrameStoreSettings:
    """Settings for what is kept of a video.

    Args:
        frame_format: `"none"` (only checks that training could read it), `"jpeg"`, `"raw"`, or `"file"` (the file
            itself).
        frame_size: Input size of the model that the frames are for.
        preprocessing: `"clip"` keeps the aspect ratio, shortest side `frame_size`; `"official"` squashes to 8/7 of it.
        frames_per_video: Number of frames to keep, each the middle one of an equal part of the video. Shorter videos
            keep all frames; 0 keeps all frames of every video. If it is an odd multiple of the number of frames that a
            model sees, segment centres are exactly those of the file. The default is 9 x 8.
        jpeg_quality: 1 to 95.
        decoder, seconds_per_video: See `read_video_frames`.
    """

    frame_format: str = "none"
    frame_size: int = 224
    preprocessing: str = "clip"
    frames_per_video: int = 72
    jpeg_quality: int = 90
    decoder: str = "auto"
    seconds_per_video: float | None = SECONDS_PER_VIDEO

    @property
    def keeps_something(self) -> bool:
        return self.frame_format != "none"

    def image_processor(self) -> SimpleNamespace:
        """The settings of CLIP's image processor that resizing uses."""
        size = {"height": self.frame_size, "width": self.frame_size}
        return SimpleNamespace(do_resize=True, size={"shortest_edge": self.frame_size}, crop_size=size, resample=3)


@dataclass(frozen=True)
class ReadVideo:
    """Result of reading a video: the data to keep (None if nothing is kept), or the reason why it cannot be read."""

    data: bytes | None = None
    error: str | None = None


def read_video(job: tuple[Any, FrameStoreSettings]) -> ReadVideo:
    """Reads a video (a value of a `datasets` video column) as training would, and extracts the data to keep."""
    torch.set_num_threads(1)  # the other cores read other videos
    video, settings = job
    seen: dict[str, Any] = {}

    def select_indices(num_frames: int, fps: float | None, times: VideoTimes) -> Sequence[int]:
        wanted = settings.frames_per_video if settings.frame_format in FRAME_FORMATS else 8
        indices: Sequence[int] = range(num_frames)
        if 0 < wanted < num_frames:
            indices = sample_frame_indices(num_frames, wanted)
        seen.update(num_frames=num_frames, fps=fps, indices=indices, times=times)
        return indices

    if is_missing(video):
        return ReadVideo(error=MISSING)
    path = None if _has_bytes(video) else _path_of(video)
    if settings.frame_format == "file" and path is not None and not os.path.isfile(path):
        kind = "an address" if "://" in path else "a folder of images"
        kind = kind if split_span(path)[1] is None else "a part of a video"
        return ReadVideo(error=f"{path!r} is {kind}, which cannot be embedded: use --frame_store jpeg.")
    try:
        frames = read_video_frames(
            video, select_indices, settings.decoder, seconds_per_video=settings.seconds_per_video
        )
    except VideoReadError as error:
        return ReadVideo(error=str(error))
    if settings.frame_format == "none":
        return ReadVideo()
    if settings.frame_format == "file":
        return ReadVideo(_file_of(video))
    image_processor = settings.image_processor()
    try:
        frames = resize_frames(frames, image_processor, settings.preprocessing)
    except UnreadableError as error:
        return ReadVideo(error=f"Cannot keep frames of video {_path_of(video)!r}: {error}.")
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
            seen["times"],
        )
    )


def in_processes(function: Callable, jobs: Iterable, num_workers: int) -> Iterator:
    """Yields `function(job)` for each job, in order, computed in several processes.

    If a job crashes its process, as a damaged video can crash a decoder, its result is the `BrokenProcessPool` error.
    Jobs that ran at the same time are repeated.
    """

    # A fork of this process would inherit torch's threads in a broken state. The fork server has imported everything
    # but run nothing.
    context = multiprocessing.get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        _start_server(context)

    stop, stopper = context.Pipe(duplex=False)  # closing the stopper ends all processes at once

    def new_pool(size: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(size, context, end_with_parent, (stop,))

    def submit(job) -> Future | None:
        try:
            with shielding_children():
                return pool.submit(function, job)
        except BrokenProcessPool:
            return None

    running: deque = deque()
    jobs, pool = iter(jobs), new_pool(num_workers)
    try:
        while True:
            while len(running) < 4 * num_workers and (job := next(jobs, None)) is not None:
                running.append((job, submit(job)))
            if not running:
                return
            job, future = running.popleft()
            try:
                result = _result(future, pool) if future is not None else None
                is_broken = future is None
            except BrokenProcessPool:
                is_broken = True
            if is_broken:
                pool.shutdown()
                result = _run_in_separate_process(function, job, new_pool)
                pool = new_pool(num_workers)
                running = deque((job, submit(job)) for job, _ in running)
            yield result
    except BaseException:
        stopper.close()  # nobody waits for the running jobs
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        stop.close()
        stopper.close()


def _result(future: Future, pool: ProcessPoolExecutor, seconds: float = 1.0):
    """Like `future.result()`, but always notices if a process dies.

    The pool's manager watches the processes that exist when it begins to wait. A process may start just afterwards
    (Python 3.11); if it dies, the manager does not notice until it wakes up. Submitting a dummy job wakes it up.
    """
    while True:
        try:
            return future.result(timeout=seconds)
        except TimeoutError:
            if future.done():  # the job itself raised TimeoutError
                return future.result()
            pool.submit(int)


def _start_server(context):
    """Starts the fork server. PYTHONPATH holds `sys.path` meanwhile: the server imports from there (Python 3.11)."""
    from multiprocessing import forkserver  # not on Windows

    context.set_forkserver_preload([__name__])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    with shielding_children():
        forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def _run_in_separate_process(function: Callable, job, new_pool: Callable[[int], ProcessPoolExecutor]):
    """The result of one job, run in a separate process. Shows whether this job crashed the pool."""
    with new_pool(1) as pool:
        try:
            with shielding_children():
                future = pool.submit(function, job)
            return future.result()
        except BrokenProcessPool as error:
            return error


@dataclass(frozen=True)
class _Shard:
    """A finished shard: a folder, and the keys of its videos. The folder `videos` in it has the kept data, if any."""

    path: Path
    keys: list[str]

    def load(self) -> Dataset:
        return load_from_disk(str(self.path / "videos"), keep_in_memory=False)


def read_split(
    dataset: Dataset, folder: Path, settings: FrameStoreSettings, num_workers: int, description: str = "reading videos"
) -> tuple[Dataset, dict[int, str]]:
    """Reads every video of a split. Continues an earlier run with the same settings in `folder`.

    Finished videos are identified by file, size, modification time and class. You may therefore repair, remove or add
    videos between two runs. Unreadable videos are tried again. Finished shards are checked against their checksums.

    Args:
        dataset: Columns `video` (paths, or dicts of path and bytes) and `label` (class names).

    Returns:
        The rows with readable videos, in order, with the kept data in place of the videos; and for each other row the
        reason why it cannot be read.

    Raises:
        FolderInUseError: If another process works in the folder.
        DamagedFileError: If a file of a finished shard has changed since it was written.
    """
    with _lock(folder):
        shards = _finished_shards(folder)
        keys, problems = _read_missing(dataset, folder, settings, num_workers, description, shards)
        good = [row for row in range(len(dataset)) if row not in problems]
        if not settings.keeps_something or not good:
            return dataset.select(good), problems
        return concatenate_datasets(_in_order(folder, shards, [keys[row] for row in good])), problems


def block_of_task(num_rows: int, task: Shard) -> int:
    """Number of videos in a block: task I of N reads the blocks I, I + N, ... of consecutive videos.

    The file of a block becomes part of the data set as it is. Files of single videos I, I + N, ... would have to be
    written again, in order.
    """
    size = num_rows // (BLOCKS_PER_TASK * task.count)
    return max(1, VIDEOS_PER_SHARD // 16, min(size, VIDEOS_PER_SHARD))


def read_shard(
    dataset: Dataset, folder: Path, settings: FrameStoreSettings, num_workers: int, description: str, task: Shard
) -> dict[int, str]:
    """Reads the videos of one task into `folder`, where `read_split` finds them. Others may do so at the same time.

    Args:
        dataset: The whole split; see `read_split`.

    Returns:
        For each row of the task that cannot be read, the reason.

    Raises:
        FolderInUseError: If `read_split` works in the folder.
        DamagedFileError: If a list of finished videos has changed since it was written.
    """
    block = block_of_task(len(dataset), task)
    rows = task.rows(len(dataset), block)
    if not rows:
        return {}
    with _lock(folder, is_shared=True):
        shards = _finished_shards(folder, only="keys.json")  # `read_split` checks the others
        mine = dataset.select(rows)
        _, problems = _read_missing(mine, folder, settings, num_workers, description, shards, task, block)
    return {rows[row]: problem for row, problem in problems.items()}


def _lock(folder: Path, is_shared: bool = False) -> FolderLock:
    remedy = "Wait until it ends, or name another folder"
    return FolderLock(folder, "keeps frames of videos", remedy, is_shared=is_shared)


def _read_missing(
    dataset: Dataset,
    folder: Path,
    settings: FrameStoreSettings,
    num_workers: int,
    description: str,
    shards: list[_Shard],
    task: Shard | None = None,
    block: int | None = None,
) -> tuple[list[str], dict[int, str]]:
    """Reads the videos that are in none of the shards, and appends new shards.

    Args:
        task: Gives names to the new shards that no other task uses.
        block: A new shard lies within one block of so many rows.

    Returns:
        The key of each row; and the reasons why rows cannot be read.
    """
    keys = _keys(dataset)
    done = {key for shard in shards for key in shard.keys}
    to_read = [row for row, key in enumerate(keys) if key not in done]
    jobs = ((dataset[row]["video"], settings) for row in to_read)
    results = in_processes(read_video, jobs, num_workers)
    progress = tqdm(total=len(dataset), initial=len(dataset) - len(to_read), desc=description, unit="video")
    read: dict[int, bytes | None] = {}
    problems, num_bytes = {}, 0

    def write():
        videos = _kept_videos(dataset.select(read), list(read.values()), settings) if settings.keeps_something else None
        shards.append(_write_shard(_new_shard(folder, task), videos, [keys[row] for row in read]))

    for row, result in zip(to_read, results, strict=True):
        if read and block is not None and row // block != max(read) // block:
            write()
            read, num_bytes = {}, 0
        if isinstance(result, BrokenProcessPool):
            result = ReadVideo(error=f"Cannot read video {_path_of(dataset[row]['video'])!r}: the decoder crashed.")
        if result.error is None:
            read[row] = result.data
            num_bytes += len(result.data or b"")
        else:
            problems[row] = result.error
        progress.update()
        progress.set_postfix(unreadable=len(problems), refresh=False)
        if len(read) == VIDEOS_PER_SHARD or num_bytes >= BYTES_PER_SHARD:
            write()
            read, num_bytes = {}, 0
    if read:
        write()
    progress.close()
    return keys, problems


def _finished_shards(folder: Path, only: str = "*") -> list[_Shard]:
    """The finished shards of a folder. `only` is a name pattern of the files to compare with their checksums."""
    paths = sorted(folder.glob("shard-*"))  # unfinished ones are called .shard-...
    remedies = {path: f"delete {path}, and its videos are read again" for path in paths}
    unchecked = [path for path, remedy in remedies.items() if not check_files(path, remedy, only, must_be_listed="*")]
    if unchecked:
        print(f"note: {len(unchecked)} finished pieces in {folder} have no checksums; they are used unchecked.")
    return [_Shard(path, read_json(path / "keys.json", remedies[path], list)) for path in paths]


def _new_shard(folder: Path, task: Shard | None = None) -> Path:
    """A name that no finished shard has, and that no other task gives at the same time."""
    if task is not None:
        return folder / f"shard-{task.index:05d}-of-{task.count:05d}-{secrets.token_hex(8)}"
    numbers = [int(path.name[6:]) for path in folder.glob("shard-*") if path.name[6:].isdecimal()]
    return folder / f"shard-{max(numbers, default=-1) + 1:06d}"


def _write_shard(path: Path, videos: Dataset | None, keys: list[str]) -> _Shard:
    """Writes a shard. It gets its name only when it is complete."""
    with replace_file(path) as partial:
        partial.mkdir()
        if videos is not None:
            _save_quietly(videos, partial / "videos")
        write_text(partial / "keys.json", json.dumps(keys))
        write_checksums(partial)
    return _Shard(path, keys)


def _kept_videos(part: Dataset, kept: list[bytes | None], settings: FrameStoreSettings) -> Dataset:
    """The rows with the kept data in place of the videos, and with the digests of these."""
    videos = [
        {"path": os.path.basename(video["path"] or "") or None, "bytes": data}
        for video, data in zip(references(part), kept, strict=True)
    ]
    digests = [digest_of_video(video).hex() for video in videos]
    # A plain struct: with a video column, `datasets` would decode frames as a video and drop bytes if the path exists.
    video = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"video": video, "label": Value("string"), digest_column(): Value("string")})
    columns = {"video": videos, "label": part["label"][:], digest_column(): digests}
    dataset = Dataset.from_dict(columns, features=features)
    return dataset.cast_column("video", Video(decode=False)) if settings.frame_format == "file" else dataset


def _in_order(folder: Path, shards: list[_Shard], keys: list[str]) -> list[Dataset]:
    """Data sets that hold the videos with these keys, one after the other, each all of one shard.

    A shard that fits into the order stays as it is. Videos of other shards are copied into new ones.
    """
    starting = {shard.keys[0]: shard for shard in shards if shard.keys}
    ordered: list[_Shard] = []
    others: list[str] = []
    start = 0
    while start < len(keys):
        shard = starting.get(keys[start])
        if shard is None or shard.keys != keys[start : start + len(shard.keys)]:
            others.append(keys[start])
            start += 1
            continue
        ordered += _copied(folder, shards, others)
        ordered.append(shard)
        others, start = [], start + len(shard.keys)
    ordered += _copied(folder, shards, others)
    return [shard.load() for shard in ordered]


def _copied(folder: Path, shards: list[_Shard], keys: list[str]) -> list[_Shard]:
    """New shards with copies of the videos with these keys, in this order."""
    if not keys:
        return []
    wanted = set(keys)
    sources = [shard for shard in shards if not wanted.isdisjoint(shard.keys)]
    videos = concatenate_datasets([shard.load() for shard in sources])
    position = {key: number for number, key in enumerate(key for shard in sources for key in shard.keys)}
    parts = [keys[start : start + VIDEOS_PER_SHARD] for start in range(0, len(keys), VIDEOS_PER_SHARD)]
    return [_write_shard(_new_shard(folder), videos.select([position[key] for key in part]), part) for part in parts]


def save_linked(splits: DatasetDict, folder: Path) -> None:
    """Writes what `DatasetDict.save_to_disk` writes, with links to the files of the shards instead of copies.

    Args:
        splits: Data sets that `read_split` returned.
    """
    _save_quietly(DatasetDict({name: split.select([]) for name, split in splits.items()}), folder)
    for name, split in splits.items():
        for path in (folder / name).glob("*.arrow"):
            path.unlink()
        sources = [Path(file["filename"]) for file in split.cache_files]
        names = [f"data-{number:05d}-of-{len(sources):05d}.arrow" for number in range(len(sources))]
        for source, target in zip(sources, names, strict=True):
            link_or_copy(source, folder / name / target)
        state = read_json(folder / name / "state.json", "run the command again")
        state |= {"_data_files": [{"filename": target} for target in names], "_fingerprint": split._fingerprint}
        write_text(folder / name / "state.json", json.dumps(state, indent=2, sort_keys=True) + "\n")


def references(dataset: Dataset) -> Iterator[dict]:
    """Yields the values of the column `video` with their paths, but with `b""` in place of stored bytes."""
    videos = dataset.data.column("video")
    if pyarrow.types.is_struct(videos.type):
        has_bytes = pyarrow.compute.is_valid(pyarrow.compute.struct_field(videos, "bytes")).to_pylist()
        paths = pyarrow.compute.struct_field(videos, "path").to_pylist()
    else:
        paths = videos.to_pylist()
        has_bytes = [False] * len(paths)
    for row in table_rows(dataset):
        yield {"path": paths[row], "bytes": b"" if has_bytes[row] else None}


def _keys(dataset: Dataset) -> list[str]:
    """A key for each video and its class: see `_key`."""
    rows = list(zip(references(dataset), dataset["label"][:], strict=True))
    others = [row for row, (video, _) in enumerate(rows) if video["bytes"] is not None or _is_folder(video["path"])]
    digests = dict(zip(others, digests_of_videos(dataset.select(others)), strict=True))
    return [_key(video, label, digests.get(row)) for row, (video, label) in enumerate(rows)]


def _key(video: dict, label: str, digest: np.ndarray | None) -> str:
    """Identifies a video: size and time of its file, or a digest of stored bytes or of a folder of frames.

    Keys of version 0.1 have no reader version, so videos from its interrupted runs are read again.
    """
    reader = f"reader {READER_VERSION}, with digest"
    if digest is not None:
        return json.dumps([video["path"], digest.tobytes().hex(), label, reader])
    try:
        status = os.stat(split_span(video["path"] or "")[0])
    except (OSError, ValueError):  # no such file, or an invalid path
        return json.dumps([video["path"], label, reader])
    return json.dumps([video["path"], status.st_size, status.st_mtime_ns, label, reader])


def _is_folder(path: str | None) -> bool:
    return path is not None and os.path.isdir(split_span(path)[0])


def _save_quietly(dataset: Dataset | DatasetDict, folder: Path):
    was_enabled = is_progress_bar_enabled()
    disable_progress_bar()
    dataset.save_to_disk(str(folder))
    if was_enabled:
        enable_progress_bar()


def is_missing(video: Any) -> bool:
    """Whether a value of a video column is empty, or the path of a file that does not exist."""
    if _has_bytes(video):
        return False
    path = _path_of(video)
    return path is None or ("://" not in path and not os.path.exists(split_span(path)[0]))


def _file_of(video: Any) -> bytes:
    path = None if _has_bytes(video) else _path_of(video)
    return video["bytes"] if path is None else Path(path).read_bytes()


def _has_bytes(video: Any) -> bool:
    return isinstance(video, dict) and video.get("bytes") is not None


def _path_of(video: Any) -> str | None:
    return video.get("path") if isinstance(video, dict) else video


__all__ = [
    "MISSING",
    "FrameStoreSettings",
    "ReadVideo",
    "block_of_task",
    "in_processes",
    "is_missing",
    "read_shard",
    "read_split",
    "read_video",
    "references",
    "save_linked",
]
