"""Classifies every window of a long video, which is decoded once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor
from support_set_clipfsar import repeatable_sampling
from video_clipfsar import VideoTimes, sample_frame_indices, stream_video_frames

THUMBNAILS_PER_TIMELINE = 9


@dataclass
class Timeline:
    """The W windows of a video, in order.

    Args:
        seconds: (W, 2), start and end of each window.
        embeds: Frame features of each window, (W, T, D).
        duration_seconds: Duration of the video.
        thumbnails: Frames spread evenly over the video, uint8 (n, H, W, 3), after resizing and cropping.
    """

    seconds: torch.Tensor
    embeds: torch.Tensor
    duration_seconds: float
    thumbnails: torch.Tensor


def window_bounds(num_video_frames: int, fps: float, window_seconds: float, stride_seconds: float) -> list[tuple]:
    """First frame and number of frames of each window. The last one ends with the video; a short video is one window.

    Raises:
        ValueError: For lengths that are not positive and finite, a window shorter than one frame, or a stride shorter
            than half a frame.
    """
    for name, seconds in (("window_seconds", window_seconds), ("stride_seconds", stride_seconds)):
        if not 0 < seconds * fps < math.inf:
            raise ValueError(f"{name}={seconds} must be greater than 0, and be a finite number.")
    length = round(window_seconds * fps)
    if length < 1:
        raise ValueError(f"window_seconds={window_seconds} is less than a frame at {fps:.3g} frames per second.")
    if round(2 * stride_seconds * fps) < 1:  # half a window is the default, so of a window of one frame half a frame
        raise ValueError(f"stride_seconds={stride_seconds} is less than half a frame at {fps:.3g} frames per second.")
    if length >= num_video_frames:
        return [(0, num_video_frames)]
    last = num_video_frames - length
    starts = [round(number * stride_seconds * fps) for number in range(int(last / (stride_seconds * fps)) + 1)]
    starts = sorted({start for start in starts if start <= last} | {last})
    return [(start, length) for start in starts]


def _plan(
    processor: CLIPFSARProcessor, times: VideoTimes, num_video_frames: int, fps: float, lengths: tuple[float, float]
) -> dict[str, Any]:
    """The bounds and the frames of each window of a video, and all needed frames in order.

    Bounds are counted in `num_video_frames` frames of constant rate; `times` maps these to frames of the file.
    `lengths`: seconds of a window, and seconds from one window to the next.
    """
    sampling = repeatable_sampling(processor) or processor.frame_sampling
    settings = {"fps": fps, "sampling_rate": processor.sampling_rate, "target_fps": processor.target_fps}
    bounds = window_bounds(num_video_frames, fps, *lengths)
    windows = [
        times.frames_at(
            [start + index for index in sample_frame_indices(length, processor.num_frames, sampling, **settings)]
        )
        for start, length in bounds
    ]
    frames = sorted({index for window in windows for index in window})
    return {"fps": fps, "num_video_frames": num_video_frames, "bounds": bounds, "windows": windows, "frames": frames}


@torch.no_grad()
def encode_windows(
    model: CLIPFSARModel,
    processor: CLIPFSARProcessor,
    video: Any,
    window_seconds: float,
    stride_seconds: float,
    fps: float | None = None,
    frames_per_batch: int = 64,
    show_progress: bool = False,
) -> Timeline:
    """Frame features of all windows. Every frame is decoded and encoded once, even if several windows share it.

    The frames of a window are sampled as the processor samples a whole video, but with segment centres instead of
    random frames. Windows follow the times at which frames are shown, also if the frame rate varies.

    Args:
        fps: Frames per second of a video without a frame rate.

    Raises:
        VideoReadError: When the video cannot be read.
        ValueError: When the frame rate is unknown, or for impossible lengths.
    """
    plan: dict[str, Any] = {}

    def select_indices(num_video_frames: int, video_fps: float | None, times: VideoTimes) -> list[int]:
        rate = fps
        if video_fps:
            num_video_frames, rate = times.as_constant()
        if not rate:
            raise ValueError("This video does not say its frames per second, which windows need: give fps.")
        plan.update(_plan(processor, times, num_video_frames, rate, (window_seconds, stride_seconds)))
        return plan["frames"]

    embeds, thumbnails, waiting = list[Any](), list[Any](), list[Any]()
    progress = None
    for frame in stream_video_frames(video, select_indices, processor.num_threads, processor.seconds_per_video):
        if progress is None:
            frames = plan["frames"]
            progress = tqdm(total=len(frames), desc="encoding frames", unit="frame", disable=not show_progress)
            shown = {len(frames) * (2 * i + 1) // (2 * THUMBNAILS_PER_TIMELINE) for i in range(THUMBNAILS_PER_TIMELINE)}
        position = len(embeds) * frames_per_batch + len(waiting)
        waiting.append(processor.process_frames(frame[None])[0])
        if position in shown:
            thumbnails.append(processor.to_frames(waiting[-1]))
        if len(waiting) == frames_per_batch or position == len(frames) - 1:
            embeds.append(model.get_video_features(torch.stack(waiting)[None].to(model.device))[0].float())
            progress.update(len(waiting))
            waiting = []
    if progress is not None:
        progress.close()
    row_of_frame = {index: row for row, index in enumerate(plan["frames"])}
    rows = torch.tensor([[row_of_frame[index] for index in window] for window in plan["windows"]])
    bounds = torch.tensor(plan["bounds"], dtype=torch.float64)
    return Timeline(
        seconds=torch.stack([bounds[:, 0], bounds.sum(1)], dim=1) / plan["fps"],
        embeds=torch.cat(embeds)[rows],
        duration_seconds=plan["num_video_frames"] / plan["fps"],
        thumbnails=torch.stack(thumbnails),
    )


@torch.no_grad()
def classify_windows(embeds: torch.Tensor, classify: Callable, windows_per_batch: int = 256) -> torch.Tensor:
    """Results of `classify` on frame features (W, T, D), on the CPU, one batch of windows at a time."""
    return torch.cat([classify(batch).float().cpu() for batch in embeds.split(windows_per_batch)])


__all__ = ["Timeline", "classify_windows", "encode_windows", "window_bounds"]
