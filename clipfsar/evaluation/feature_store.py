"""Frame features of a split, computed once and kept: `manifest.json`, which says of what, and `features.safetensors`.

While videos are being encoded every batch lies in a file of its own, so that a run that is killed loses at most the
batches in flight, and the next one goes on. A store made of other weights, frames, preprocessing or videos is refused.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from backbones_clipfsar import tower_configs
from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.encoding import VideoEncoder
from container_clipfsar import READER_VERSION
from fingerprint_clipfsar import precision_of, preprocessing_settings, unseen_settings, weights_digest
from modeling_clipfsar import VISION_MODULES, CLIPFSARModel
from paths_clipfsar import replace_file
from video_clipfsar import frames_differ_from_0_1

_FORMAT = 1


class FeatureStore:
    """A folder that keeps what a `VideoEncoder` computes; `encode` reads it, or encodes and fills it.

    Args:
        folder: Made if need be. All processes must see the same folder.
        encoder: What the features are computed with; its model, processor and precision must be those of the store.
        rebuild: Throw away a store that does not fit instead of refusing it.
    """

    def __init__(self, folder: str | Path, encoder: VideoEncoder, rebuild: bool = False):
        self.folder, self.encoder, self.rebuild = Path(folder), encoder, rebuild

    @property
    def _features(self) -> Path:
        return self.folder / "features.safetensors"

    def encode(
        self, split, draw_seed: tuple[int, ...] | None = None, description: str = "encoding videos"
    ) -> torch.Tensor:
        """As `VideoEncoder.encode`: (V, T, D), float32 on the CPU; every video is encoded once and then only read.

        Raises:
            ValueError: When the store was made of something else; the message says of what.
        """
        split, accelerator = VideoSplit.of(split), self.encoder.accelerator
        manifest = self.manifest(split, draw_seed)
        if accelerator.is_main_process:
            self._adopt_older_reader(split, manifest)
            self._open(manifest)
        accelerator.wait_for_everyone()
        path = self.folder / "manifest.json"
        if not path.is_file() or json.loads(path.read_text()) != manifest:
            raise ValueError(f"The feature store {self.folder} could not be opened; the first process says why.")
        if not self._features.is_file():
            self._encode_missing(split, draw_seed, description)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                self._merge(len(split))
            accelerator.wait_for_everyone()
        return load_file(self._features)["embeds"]

    def manifest(self, split: VideoSplit, draw_seed: tuple[int, ...] | None = None) -> dict:
        """The inputs of the features; two stores of equal manifests hold the same features."""
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
        return json.loads(json.dumps(manifest))  # as it will be read back: no tuples, no enumerations

    def _adopt_older_reader(self, split: VideoSplit, manifest: dict):
        """A store of version 0.1, which read some files wrongly, is taken over if it has none of these.

        Raises:
            ValueError: When it has; the message names the files.
        """
        path = self.folder / "manifest.json"
        if self.rebuild or not path.is_file():
            return
        present = json.loads(path.read_text())
        if "reader" in present or present != {name: manifest[name] for name in manifest if name != "reader"}:
            return
        sampling, different = self.encoder.processor.frame_sampling, []
        for row in range(len(split)):
            reason = frames_differ_from_0_1(split.video(row), sampling=sampling)
            if reason is not None:
                different.append(f"{_file_of(split.video(row))} ({reason})")
        if different:
            more = f" and {len(different) - 5} more" if len(different) > 5 else ""
            raise ValueError(
                f"The feature store {self.folder} was made by version 0.1, which read other frames of "
                f"{len(different)} of its {len(split)} videos: {', '.join(different[:5])}{more}. Name another folder, "
                "delete this one, or, in an evaluation, rebuild it with --rebuild_features."
            )
        with replace_file(path) as partial:
            partial.write_text(json.dumps(manifest, indent=2) + "\n")

    def _open(self, manifest: dict):
        """Makes an empty store, or finds that the one there is the right one."""
        folder, path = self.folder, self.folder / "manifest.json"
        if path.is_file():
            present = json.loads(path.read_text())
            names = [*manifest, *(name for name in present if name not in manifest)]
            different = [name for name in names if present.get(name) != manifest.get(name)]
            if not different:
                return
            if not self.rebuild:
                details = "; ".join(f"{name}: {present.get(name)} (now {manifest.get(name)})" for name in different)
                raise ValueError(
                    f"The feature store {folder} was made of something else: {details}. Name another folder, delete "
                    "this one, or, in an evaluation, rebuild it with --rebuild_features."
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is no feature store, but not empty either: name another folder.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with replace_file(path) as partial:
            partial.write_text(json.dumps(manifest, indent=2) + "\n")

    def _encode_missing(self, split: VideoSplit, draw_seed: tuple[int, ...] | None, description: str):
        """This process's share of the videos that no file of the store holds yet."""
        accelerator = self.encoder.accelerator
        done = {int(row) for part in self._parts() for row in load_file(part)["rows"]}
        to_do = [row for row in range(len(split)) if row not in done]
        accelerator.wait_for_everyone()  # nobody writes a part while another process still reads what is done
        mine = to_do[accelerator.process_index :: accelerator.num_processes]
        for rows, embeds in self.encoder.batches(split, mine, draw_seed, description):
            part = self.folder / f"part-{rows[0]:08d}.safetensors"
            _save_whole({"rows": torch.tensor(rows), "embeds": embeds.cpu().contiguous()}, part)

    def _merge(self, num_videos: int):
        parts = [load_file(part) for part in self._parts()]
        rows = torch.cat([part["rows"] for part in parts])
        order = rows.argsort()
        if rows[order].tolist() != list(range(num_videos)):
            raise ValueError(f"The parts in {self.folder} are not of every video once: delete the folder.")
        embeds = torch.cat([part["embeds"] for part in parts])[order].contiguous()
        _save_whole({"embeds": embeds}, self._features)
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.safetensors"))


def _file_of(video) -> str:
    path = video.get("path") if isinstance(video, dict) else video
    return Path(path).name if path else "a video in the data set"


def _save_whole(tensors: dict[str, torch.Tensor], path: Path):
    """A file appears under its name only when it is complete."""
    with replace_file(path) as partial:
        save_file(tensors, partial)


def _digest_of_visual_tower(model: CLIPFSARModel) -> str:
    """Of the visual tower alone: a temporal transformer trained further leaves frame features as they are."""
    names = [name.rstrip(".") for name in VISION_MODULES]
    towers = [getattr(model.clip, name) for name in names if hasattr(model.clip, name)]
    return weights_digest(towers, unseen_settings(tower_configs(model.config.clip_config)[0]))


__all__ = ["FeatureStore"]
