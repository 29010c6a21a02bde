"""Frame features of a split, computed once and kept: `manifest.json`, which says of what, and `features.safetensors`.

While videos are being encoded every batch lies in a file of its own, so that a run that is killed loses at most the
batches in flight, and the next one goes on. A store made of other weights, frames, preprocessing or videos is refused.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from backbones_clipfsar import tower_configs
from fingerprint_clipfsar import precision_of, preprocessing_settings, unseen_settings, weights_digest
from modeling_clipfsar import VISION_MODULES, CLIPFSARModel

_FORMAT = 1


class _Videos(TorchDataset):
    """One video per item, its frames ready for the visual tower, (T, C, H, W)."""

    def __init__(self, dataset, processor, video_column: str, draw_seed: tuple[int, ...] | None = None):
        self.dataset, self.processor, self.video_column = dataset, processor, video_column
        self.draw_seed = draw_seed

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, row: int):
        videos = [self.dataset[row][self.video_column]]
        if self.draw_seed is None:
            return self.processor.process_videos(videos)[0]
        seed = int(np.random.default_rng([*self.draw_seed, row]).integers(2**63))
        generator = torch.Generator().manual_seed(seed)
        return self.processor.process_videos(videos, training=True, generator=generator)[0]


@torch.no_grad()
def encode_batches(
    model: CLIPFSARModel,
    processor,
    dataset,
    rows: Sequence[int],
    accelerator: Accelerator,
    video_column: str = "video",
    batch_size: int = 16,
    num_workers: int = 0,
    description: str = "encoding videos",
    draw_seed: tuple[int, ...] | None = None,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Frame features of the given rows of a dataset, batch by batch: rows, and float32 (videos, T, D) on the device.

    Args:
        model: Not wrapped (of `accelerator.unwrap_model`); in evaluation mode while this runs.
        rows: This process's videos.
        batch_size: Videos per forward.
        num_workers: Processes that decode.
        draw_seed: Draw frames and crops at random as in training, by this seed and the row.
    """
    was_training = model.training
    model.eval()
    is_quiet = not accelerator.is_main_process
    progress = tqdm(total=len(rows), desc=description, unit="video", leave=False, disable=is_quiet)
    videos = Subset(_Videos(dataset, processor, video_column, draw_seed), rows)
    is_cuda = accelerator.device.type == "cuda"
    loader = DataLoader(videos, batch_size=batch_size, num_workers=num_workers, pin_memory=is_cuda)
    for position, pixel_values in zip(range(0, len(rows), batch_size), loader, strict=True):
        with accelerator.autocast():
            embeds = model.get_video_features(pixel_values.to(accelerator.device, non_blocking=True)).float()
        yield list(rows[position : position + batch_size]), embeds
        progress.update(len(pixel_values))
    progress.close()
    model.train(was_training)


def store_manifest(
    model: CLIPFSARModel,
    processor,
    dataset,
    accelerator: Accelerator,
    video_column: str,
    draw_seed: tuple[int, ...] | None = None,
) -> dict:
    """What the features of a store depend on; two stores of equal manifests hold the same features."""
    manifest = {
        "format": _FORMAT,
        "visual tower": _digest_of_weights(model),
        "preprocessing": preprocessing_settings(processor),
        "arithmetic": f"{precision_of(model)}, mixed precision: {accelerator.mixed_precision}",
        "videos": digest_of_videos(dataset, video_column),
        "num_videos": len(dataset),
    }
    if draw_seed is not None:
        manifest["random draw"] = draw_seed
    return json.loads(json.dumps(manifest))  # as it will be read back: no tuples, no enumerations


def stored_features(
    folder: str | Path,
    model: CLIPFSARModel,
    processor,
    dataset,
    accelerator: Accelerator,
    video_column: str = "video",
    rebuild: bool = False,
    draw_seed: tuple[int, ...] | None = None,
    **encoding,
) -> torch.Tensor:
    """Frame features of every video, (V, T, D), float32 on the CPU: from the store, or encoded now and stored.

    Args:
        folder: The store; made if need be. All processes must see the same folder.
        rebuild: Throw away a store that does not fit instead of refusing it.
        draw_seed, encoding: For `encode_batches`.

    Raises:
        ValueError: When the store was made of something else; the message says of what.
    """
    folder = Path(folder)
    manifest = store_manifest(model, processor, dataset, accelerator, video_column, draw_seed)
    if accelerator.is_main_process:
        _open_store(folder, manifest, rebuild)
    accelerator.wait_for_everyone()
    if not (folder / "manifest.json").is_file() or json.loads((folder / "manifest.json").read_text()) != manifest:
        raise ValueError(f"The feature store {folder} could not be opened; the first process says why.")
    features = folder / "features.safetensors"
    if not features.is_file():
        done = {int(row) for part in folder.glob("part-*.safetensors") for row in load_file(part)["rows"]}
        to_do = [row for row in range(len(dataset)) if row not in done]
        accelerator.wait_for_everyone()  # nobody writes a part while another process still reads what is done
        mine = to_do[accelerator.process_index :: accelerator.num_processes]
        encoding["draw_seed"] = draw_seed
        for rows, embeds in encode_batches(model, processor, dataset, mine, accelerator, video_column, **encoding):
            part = folder / f"part-{rows[0]:08d}.safetensors"
            _save_at_once({"rows": torch.tensor(rows), "embeds": embeds.cpu().contiguous()}, part)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            parts = [load_file(part) for part in sorted(folder.glob("part-*.safetensors"))]
            rows = torch.cat([part["rows"] for part in parts])
            order = rows.argsort()
            if rows[order].tolist() != list(range(len(dataset))):
                raise ValueError(f"The parts in {folder} are not of every video once: delete the folder.")
            _save_at_once({"embeds": torch.cat([part["embeds"] for part in parts])[order].contiguous()}, features)
            for part in folder.glob("part-*.safetensors"):
                part.unlink()
        accelerator.wait_for_everyone()
    return load_file(features)["embeds"]


def _open_store(folder: Path, manifest: dict, rebuild: bool):
    path = folder / "manifest.json"
    if path.is_file():
        present = json.loads(path.read_text())
        different = [name for name in manifest if present.get(name) != manifest[name]]
        if not different:
            return
        if not rebuild:
            details = "; ".join(f"{name}: {present.get(name)} (now {manifest[name]})" for name in different)
            raise ValueError(
                f"The feature store {folder} was made of something else: {details}. Name another folder, delete this "
                "one, or, in an evaluation, rebuild it with --rebuild_features."
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is no feature store, but not empty either: name another folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(partial, path)


def _save_at_once(tensors: dict[str, torch.Tensor], path: Path):
    """A file appears under its name only when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial)
    os.replace(partial, path)


def _digest_of_weights(model: CLIPFSARModel) -> str:
    """Of the visual tower alone: a temporal transformer trained further leaves frame features as they are."""
    names = [name.rstrip(".") for name in VISION_MODULES]
    towers = [getattr(model.clip, name) for name in names if hasattr(model.clip, name)]
    return weights_digest(towers, unseen_settings(tower_configs(model.config.clip_config)[0]))


def digest_of_videos(dataset, video_column: str) -> str:
    """Of the order, names and sizes of files, or of the bytes of videos that lie in the dataset.

    The name is CLASS/FILE: a data set that was moved is still the same.
    """
    digest = hashlib.sha256()
    for video in dataset[video_column]:
        path, data = (video.get("path"), video.get("bytes")) if isinstance(video, dict) else (video, None)
        digest.update("/".join(Path(path).parts[-2:]).encode() if path else b"")
        if data is not None:
            digest.update(hashlib.sha256(data).digest())
        elif path is not None and os.path.isfile(path):
            digest.update(str(os.path.getsize(path)).encode())
    return digest.hexdigest()


__all__ = ["digest_of_videos", "encode_batches", "store_manifest", "stored_features"]
