"""Frame features of a split, computed once: `features.safetensors`, and their inputs in `manifest.json`.

During encoding every batch is saved in a separate file. A killed run loses at most the batches in flight, and the next
run continues. A store made with other weights, frames, preprocessing or videos is rejected. Videos are identified by
their content (`clipfsar.content`); videos at web addresses by their address.
"""

import contextlib
import errno
import json
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from backbones_clipfsar import tower_configs
from clipfsar.checked_files import DamagedFileError, create_file, load_tensors, save_rows, save_tensors
from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.json_files import read_json
from clipfsar.locks import LOCK_NAME, FolderLock
from clipfsar.processes import first_process_decides, holds_everywhere
from clipfsar.shards import Shard
from container_clipfsar import READER_VERSION
from fingerprint_clipfsar import precision_of, preprocessing_settings, unseen_settings, weights_digest
from modeling_clipfsar import VISION_MODULES, CLIPFSARModel
from paths_clipfsar import replace_file
from video_clipfsar import frames_differ_from_0_1

_FORMAT = 2  # format 1 has no checksums, and identifies videos by file size
SECONDS_TO_WAIT = 300
_ENCODE_AGAIN = "delete this file, and its videos are encoded again"


class FeatureStore:
    """A folder that caches the features of a `VideoEncoder`; `encode` reads them, or encodes the videos and saves them.

    Args:
        folder: Created if missing. All processes must see the same folder.
        encoder: Computes the features. Its model, processor and precision must match the store.
        rebuild: Replace a store that does not match instead of rejecting it.
    """

    def __init__(self, folder: str | Path, encoder: VideoEncoder, rebuild: bool = False):
        self.folder, self.encoder, self.rebuild = Path(folder), encoder, rebuild

    @property
    def _features(self) -> Path:
        return self.folder / "features.safetensors"

    def encode(
        self, split, draw_seed: tuple[int, ...] | None = None, description: str = "encoding videos"
    ) -> torch.Tensor:
        """The result of `VideoEncoder.encode`, (V, T, D), float32 on the CPU. Every video is encoded only once.

        The features are memory-mapped: they may be larger than the memory, and processes of one machine share them.

        If another program encodes into the same folder, this one waits and then reads the features. With several
        `torch.distributed` processes it waits at most five minutes.

        Raises:
            ValueError: When the store does not match; the message lists the differences. When a file is damaged; the
                message names it. When another process still encodes there after the waiting time.
        """
        split, accelerator = VideoSplit.of(split), self.encoder.accelerator
        with contextlib.ExitStack() as stack:
            is_done, manifest = first_process_decides(accelerator, lambda: self._open(split, draw_seed, stack))
            self._check_everywhere(manifest)
            if not is_done:
                self._encode_missing(split, range(len(split)), draw_seed, description)
                accelerator.wait_for_everyone()
                first_process_decides(accelerator, lambda: self._merge(split))
        return load_tensors(self._features, _ENCODE_AGAIN, manifest["format"] > 1)["embeds"]

    def encode_shard(self, split, shard: Shard, description: str = "encoding videos") -> int:
        """Encodes the videos of one shard that are not in the store yet. Returns the number of videos of the shard.

        Several tasks may encode into the same folder at once; `encode` then puts their features together.

        Raises:
            ValueError: When the store does not match. When a file is damaged. When `rebuild` is set: one task would
                delete the features of another.
        """
        if self.rebuild:
            raise ValueError(f"A task cannot rebuild {self.folder}: delete the folder before the first task starts.")
        split, accelerator = VideoSplit.of(split), self.encoder.accelerator
        rows = shard.rows(len(split))
        with contextlib.ExitStack() as stack:
            is_done, manifest = first_process_decides(accelerator, lambda: self._open_shard(split, stack))
            self._check_everywhere(manifest)
            if not is_done:
                self._encode_missing(split, rows, None, description, f"-{secrets.token_hex(8)}")
                accelerator.wait_for_everyone()
        return len(rows)

    def manifest(self, split: VideoSplit, draw_seed: tuple[int, ...] | None = None) -> dict:
        """All inputs of the features: two stores with equal manifests hold the same features."""
        encoder = self.encoder
        manifest = {
            "format": _FORMAT,
            "visual tower": _digest_of_visual_tower(encoder.model),
            "preprocessing": preprocessing_settings(encoder.processor),
            "arithmetic": f"{precision_of(encoder.model)}, mixed precision: {encoder.accelerator.mixed_precision}",
            "videos": split.digest,
            "num_videos": len(split),
        }
        if draw_seed is not None:
            manifest["random draw"] = draw_seed
        elif encoder.processor.frame_sampling == "segment_random":
            manifest["seed of the frames"] = encoder.seed
        manifest["reader"] = READER_VERSION
        return json.loads(json.dumps(manifest))  # as it is read back from the file: no tuples, no enums

    def _present(self) -> dict | None:
        path = self.folder / "manifest.json"
        if not path.is_file():
            return None
        remedy = "delete the folder, and the videos are encoded again, or rebuild it with --rebuild_features"
        try:
            return read_json(path, remedy)
        except DamagedFileError:
            if self.rebuild:
                return {}
            raise

    def _check_everywhere(self, manifest: dict):
        if not holds_everywhere(self.encoder.accelerator, self._present() == manifest):
            raise ValueError(
                f"Not every process sees the feature store {self.folder} of the first one: name a folder that all of "
                "them share."
            )

    def _open_shard(self, split: VideoSplit, stack) -> tuple[bool, dict]:
        """Like `_open`. The lock is shared with other tasks, which write the same manifest or are refused."""
        manifest = self.manifest(split)
        if self._present() == manifest and self._features.is_file():
            return True, manifest
        stack.enter_context(self._lock(is_shared=True))
        if not self._matches(split, manifest):
            create_file(self.folder / "manifest.json", _text_of(manifest))
            self._matches(split, manifest)  # another task may have been first
        return self._features.is_file(), manifest

    def _open(self, split: VideoSplit, draw_seed: tuple[int, ...] | None, stack) -> tuple[bool, dict]:
        """Whether the store is complete, and its manifest. An incomplete store is locked in `stack`.

        A complete store is only read, so its folder may be on a read-only disk.
        """
        manifest, present = self.manifest(split, draw_seed), self._present()
        if present == manifest and self._features.is_file():
            return True, manifest
        older = self._older(split, present, manifest)
        try:
            stack.enter_context(self._lock())
        except OSError as error:
            is_read_only = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
            if older is not None and self._features.is_file() and is_read_only:
                return True, older
            raise
        if older is not None:
            self._bring_up_to_date(manifest)
        self._check_or_clear(split, manifest)
        return self._features.is_file(), manifest

    def _lock(self, is_shared: bool = False) -> FolderLock:
        seconds = None if self.encoder.accelerator.num_processes == 1 else SECONDS_TO_WAIT
        remedy = "Wait until it has ended, or name another folder for the features"
        return FolderLock(self.folder, "encodes videos", remedy, seconds, is_shared)

    def _older(self, split: VideoSplit, present: dict | None, manifest: dict) -> dict | None:
        """The present manifest if an older version made this store, and everything it recorded matches; else None.

        Raises:
            ValueError: When version 0.1 made it and read some of its videos differently; the message names them.
        """
        if self.rebuild or present is None or present.get("format") != 1:
            return None
        others = {name: value for name, value in manifest.items() if name not in ("format", "videos", "reader")}
        known = {name: value for name, value in present.items() if name not in ("format", "videos", "reader")}
        if known != others or not split.is_known_by(str(present.get("videos"))):
            return None
        if "reader" not in present:
            self._check_older_reader(split)
        elif present["reader"] != manifest["reader"]:
            return None
        warnings.warn(
            f"The feature store {self.folder} is of an earlier version, which recorded neither checksums nor the "
            "content of the videos. The videos are assumed to be unchanged. If you replaced videos by others of the "
            "same size, rebuild it with --rebuild_features.",
            stacklevel=2,
        )
        return present

    def _check_older_reader(self, split: VideoSplit):
        sampling, different = self.encoder.processor.frame_sampling, []
        for row in range(len(split)):
            reason = frames_differ_from_0_1(split.video(row), sampling=sampling)
            if reason is not None:
                different.append(f"{_file_of(split.video(row))} ({reason})")
        if different:
            more = f" and {len(different) - 5} more" if len(different) > 5 else ""
            raise ValueError(
                f"The feature store {self.folder} was made by version 0.1, which read other frames of "
                f"{len(different)} of the {len(split)} videos: {', '.join(different[:5])}{more}. Name another folder, "
                "delete this one, or, in an evaluation, rebuild it with --rebuild_features."
            )

    def _bring_up_to_date(self, manifest: dict):
        """Adds checksums, then updates the manifest, so that a store of the new format always has checksums."""
        for path in (*self._parts(), *([self._features] if self._features.is_file() else [])):
            save_tensors(load_tensors(path, _ENCODE_AGAIN, has_checksum=False), path)
        self._write_manifest(manifest)

    def _write_manifest(self, manifest: dict):
        with replace_file(self.folder / "manifest.json") as partial:
            partial.write_text(_text_of(manifest))

    def _check_or_clear(self, split: VideoSplit, manifest: dict):
        """Checks that the store matches, or empties it for new features. Other files in the folder stay."""
        if self._matches(split, manifest):
            return
        for path in (self._features, *self._parts()):  # before the manifest changes
            path.unlink(missing_ok=True)
        self._write_manifest(manifest)

    def _matches(self, split: VideoSplit, manifest: dict) -> bool:
        """Whether the store has this manifest. False for an empty folder, and for a store that is to be replaced.

        Raises:
            ValueError: When it has another one; the message lists the differences. When the folder is no store.
        """
        folder = self.folder
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".manifest.json")} - {LOCK_NAME}
        present = self._present()  # after the names, because another task may write it meanwhile
        if present is None and names:
            raise ValueError(f"{folder} is no feature store, but not empty either: name another folder.")
        if present == manifest:
            return True
        if present is not None and not self.rebuild:
            names = [*manifest, *(name for name in present if name not in manifest)]
            different = [name for name in names if present.get(name) != manifest.get(name)]
            if "videos" in different and present.get("format") == 1:
                different.remove("format")
            details = "; ".join(f"{name}: {present.get(name)} (now {manifest.get(name)})" for name in different)
            raise ValueError(
                f"The feature store {folder} does not match: {details}{self._other_videos(split)}. Name another "
                "folder, delete this one, or, in an evaluation, rebuild it with --rebuild_features."
            )
        return False

    def _other_videos(self, split: VideoSplit) -> str:
        """Text that names the videos that changed since they were encoded; empty if the store cannot tell."""
        known: dict = {}
        for path in (self._features, *self._parts()):
            if path.is_file():
                tensors = load_tensors(path, _ENCODE_AGAIN, has_checksum=False)
                rows = tensors.get("rows", torch.arange(len(tensors["embeds"]))).tolist()
                known |= dict(zip(rows, tensors["digests"].numpy(), strict=True)) if "digests" in tensors else {}
        if not known or max(known) >= len(split):
            return ""
        others = [row for row, digest in sorted(known.items()) if (digest != split.digests[row]).any()]
        names = ", ".join(_file_of(split.video(row)) for row in others[:5]) + (", ..." if len(others) > 5 else "")
        return f"; {len(others)} of {len(known)} encoded videos have changed: {names}" if others else ""

    def _encode_missing(
        self,
        split: VideoSplit,
        rows: Sequence[int],
        draw_seed: tuple[int, ...] | None,
        description: str,
        name_end: str = "",
    ):
        """Encodes this process's share of those rows that are not in the store yet.

        Args:
            name_end: End of the names of new files. Two tasks with different ones never write the same file.
        """
        accelerator = self.encoder.accelerator
        done = {row for part in self._parts() for row in _rows_of(part)}
        to_do = [row for row in rows if row not in done]
        accelerator.wait_for_everyone()  # no process may write a part while another one still lists them
        mine = to_do[accelerator.process_index :: accelerator.num_processes]
        for batch, embeds in self.encoder.batches(split, mine, draw_seed, description):
            part = self.folder / f"part-{batch[0]:08d}{name_end}.safetensors"
            digests = torch.from_numpy(split.digests_of(batch).copy())
            save_tensors({"rows": torch.tensor(batch), "digests": digests, "embeds": embeds.cpu().contiguous()}, part)

    def _merge(self, split: VideoSplit):
        rows = {row for part in self._parts() for row in _rows_of(part)}  # parts of overlapping tasks share rows
        if rows != set(range(len(split))):
            raise ValueError(f"The parts in {self.folder} do not hold every video: delete the folder.")
        loaded = (load_tensors(part, _ENCODE_AGAIN) for part in self._parts())
        parts = ((part["rows"].tolist(), part["embeds"]) for part in loaded)
        with safe_open(self._parts()[0], "pt") as first:
            shape = first.get_slice("embeds").get_shape()
        whole = torch.empty(len(split), *shape[1:], device="meta")
        save_rows("embeds", whole, parts, {"digests": torch.from_numpy(split.digests.copy())}, self._features)
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.safetensors"))


def _text_of(manifest: dict) -> str:
    return json.dumps(manifest, indent=2) + "\n"


def _rows_of(part: Path) -> list[int]:
    try:
        with safe_open(part, "pt") as file:
            return file.get_tensor("rows").tolist()
    except SafetensorError as error:
        raise DamagedFileError(f"{part} is damaged ({error}): {_ENCODE_AGAIN}.") from error


def _file_of(video) -> str:
    path = video.get("path") if isinstance(video, dict) else video
    return Path(path).name if path else "a video in the data set"


def _digest_of_visual_tower(model: CLIPFSARModel) -> str:
    """Digest of the visual tower alone: frame features do not depend on the temporal transformer."""
    names = [name.rstrip(".") for name in VISION_MODULES]
    towers = [getattr(model.clip, name) for name in names if hasattr(model.clip, name)]
    return weights_digest(towers, unseen_settings(tower_configs(model.config.clip_config)[0]))


__all__ = ["FeatureStore"]
