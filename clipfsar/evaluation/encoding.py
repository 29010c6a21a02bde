"""Videos and class names to features: each video once, whatever the number of processes."""

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
from modeling_clipfsar import VISION_MODULES, CLIPFSARModel, evaluating
from support_set_clipfsar import encode_class_names


class VideoEncoder:
    """A model and its processor, as what turns videos and class names into features.

    Args:
        model: Not wrapped (of `accelerator.unwrap_model`); in evaluation mode while it encodes, then as it was.
        processor: The model's `CLIPFSARProcessor`.
        accelerator: Shares videos out among processes and sets the precision; by default one for this process, or for
            all processes that `accelerate launch` or `torchrun` started.
        batch_size: Videos per forward.
        num_workers: Processes that read videos, per process that encodes.
        seed: Of the frames where the processor's `frame_sampling` is `"segment_random"`: each video's frames are a
            function of the seed and its row, so that the same evaluation gives the same numbers.
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
        # cpu also where several processes have no GPU
        self.accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._class_embeds: dict = {}  # class names -> (state of the text tower, features)

    def encode(
        self, split, draw_seed: tuple[int, ...] | None = None, description: str = "encoding videos"
    ) -> torch.Tensor:
        """Frame features of every video, (V, T, D), float32 on the CPU, the same on all processes.

        Args:
            split: A `VideoSplit`, or a `datasets.Dataset` with a column `video`.
            draw_seed: Draw frames and crops at random as in training, by this seed and the row.
            description: Of the progress bar.
        """
        split = VideoSplit.of(split)
        # Every process takes every n-th video, and some the first ones again so that all have the same number of them.
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
        """Frame features of this process's rows, batch by batch: rows, and float32 (videos, T, D) on the device."""
        is_quiet = not self.accelerator.is_main_process
        progress = tqdm(total=len(rows), desc=description, unit="video", leave=False, disable=is_quiet)
        loader = DataLoader(
            _Videos(split, rows, self.processor, draw_seed, self.seed),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.model.device.type == "cuda",
        )
        with progress:
            for start, pixel_values in zip(range(0, len(rows), self.batch_size), loader, strict=True):
                # not around the loop: what a generator switches off would stay off for whoever it yields to
                with evaluating(self.model), self.accelerator.autocast():
                    frames = pixel_values.to(self.model.device, non_blocking=True)
                    embeds = self.model.get_video_features(frames).float()
                yield list(rows[start : start + self.batch_size]), embeds
                progress.update(len(pixel_values))

    def encode_classes(self, class_names: Sequence[str]) -> torch.Tensor:
        """Text features (C, D) of class names, float32, on the model's device; kept while the text tower stays."""
        names, state = tuple(class_names), self._text_tower_state()
        if self._class_embeds.get(names, (None,))[0] != state:
            self._class_embeds[names] = state, encode_class_names(self.model, self.processor, names)
        return self._class_embeds[names][1]

    def _text_tower_state(self) -> tuple:
        """Changes with every step that trains the text tower."""
        parameters = self.model.clip.named_parameters()
        return tuple((p.data_ptr(), p._version) for name, p in parameters if not name.startswith(VISION_MODULES))


class _Videos(TorchDataset):
    """One video per item, its frames ready for the visual tower, (T, C, H, W)."""

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
