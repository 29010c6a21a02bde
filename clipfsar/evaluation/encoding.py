"""Encodes videos and class names into features: each video once, with any number of processes."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from choices_clipfsar import check_same_num_frames
from clipfsar.data.video_split import VideoSplit
from clipfsar.processes import ignore_sigterm
from modeling_clipfsar import VISION_MODULES, CLIPFSARModel, evaluating
from support_set_clipfsar import encode_class_names


class VideoEncoder:
    """Turns videos and class names into features, with a model and its processor.

    Args:
        model: The unwrapped model (see `accelerator.unwrap_model`). It encodes in evaluation mode; afterwards its mode
            is restored.
        processor: The model's `CLIPFSARProcessor`.
        accelerator: Divides the videos among the processes and sets the precision. The default covers this process, or
            all processes that `accelerate launch` or `torchrun` started.
        batch_size: Videos per forward pass.
        num_workers: Worker processes that read videos, per encoding process.
        seed: Seed of the frames when the processor's `frame_sampling` is `"segment_random"`. A video's frames depend
            only on the seed and its row, so that the same evaluation gives the same numbers.
    """

    def __init__(
        self,
        model: CLIPFSARModel,
        processor,
        accelerator: Accelerator | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ):
        check_same_num_frames(model, processor)
        self.model, self.processor = model, processor
        # cpu=True is needed for several processes without a GPU
        self.accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._class_embeds: dict = {}  # class names -> (state of the text tower, features)

    def encode(
        self, split, draw_seed: tuple[int, ...] | None = None, description: str = "encoding videos"
    ) -> torch.Tensor:
        """Frame features of every video, (V, T, D), float32 on the CPU, the same on all processes.

        Args:
            split: A `VideoSplit`, or a `datasets.Dataset` with a column `video`.
            draw_seed: Draws frames and crops at random as in training, seeded with this and the row.
            description: Text of the progress bar.
        """
        split = VideoSplit.of(split)
        # Process i of n takes the videos i, i + n, ... Some repeat a first video, so that all have the same number.
        num_processes = self.accelerator.num_processes
        per_process = math.ceil(len(split) / num_processes)
        first = self.accelerator.process_index
        rows = [(first + step * num_processes) % len(split) for step in range(per_process)]
        embeds = torch.cat([embeds for _, embeds in self.batches(split, rows, draw_seed, description)])
        gathered = rearrange(self.accelerator.gather(embeds), "(p v) t d -> (v p) t d", v=per_process)
        return gathered[: len(split)].cpu()

    def batches(
        self,
        split: VideoSplit,
        rows: Sequence[int],
        draw_seed: tuple[int, ...] | None = None,
        description: str = "encoding videos",
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yields the rows of each batch of this process and their features (videos, T, D), float32, on the device."""
        is_quiet = not self.accelerator.is_main_process
        progress = tqdm(total=len(rows), desc=description, unit="video", leave=False, disable=is_quiet)
        loader = DataLoader(
            _Videos(split, rows, self.processor, draw_seed, self.seed),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            worker_init_fn=ignore_sigterm,
            pin_memory=self.model.device.type == "cuda",
        )
        with progress:
            for start, pixel_values in zip(range(0, len(rows), self.batch_size), loader, strict=True):
                # Inside the loop: a generator must not leave gradients switched off for the caller of `next`.
                with evaluating(self.model), self.accelerator.autocast():
                    frames = pixel_values.to(self.model.device, non_blocking=True)
                    embeds = self.model.get_video_features(frames).float()
                yield list(rows[start : start + self.batch_size]), embeds
                progress.update(len(pixel_values))

    def encode_classes(self, class_names: Sequence[str]) -> torch.Tensor:
        """Text features (C, D) of class names, float32, on the model's device; cached until the text tower changes."""
        names = tuple(class_names)
        state = (*self._text_tower_state(), repr(getattr(self.processor, "class_texts", None)))
        if self._class_embeds.get(names, (None,))[0] != state:
            self._class_embeds[names] = state, encode_class_names(self.model, self.processor, names)
        return self._class_embeds[names][1]

    def _text_tower_state(self) -> tuple:
        """A value that changes with every training step of the text tower."""
        parameters = self.model.clip.named_parameters()
        return tuple((p.data_ptr(), p._version) for name, p in parameters if not name.startswith(VISION_MODULES))


class _Videos(TorchDataset):
    """One video per item: preprocessed frames (T, C, H, W)."""

    def __init__(self, split: VideoSplit, rows: Sequence[int], processor, draw_seed: tuple[int, ...] | None, seed: int):
        self.split, self.rows, self.processor = split, rows, processor
        self.training = draw_seed is not None
        draws = self.training or processor.frame_sampling == "segment_random"
        self.seeds = (draw_seed or (seed,)) if draws else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> torch.Tensor:
        row = int(self.rows[item])
        generator = None
        if self.seeds is not None:
            generator = torch.Generator().manual_seed(int(np.random.default_rng([*self.seeds, row]).integers(2**63)))
        videos = [self.split.video(row)]
        return self.processor.process_videos(videos, training=self.training, generator=generator)[0]


__all__ = ["VideoEncoder"]
