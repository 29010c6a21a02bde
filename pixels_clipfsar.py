"""From frames to pixel values: resizing, cropping, augmentation. Shapes: T frames, H x W pixels."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

try:
    from .limits_clipfsar import UnreadableError, check_clip_size
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import UnreadableError, check_clip_size

# Frames with a larger aspect ratio are cut before they are enlarged. (A panorama has a ratio of 4.)
LARGEST_ASPECT_RATIO = 8
MAX_JPEG_SIDE = 65_500


def _resize_uint8(frames: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """Antialiased resize of uint8 frames (T, 3, H, W), as in PIL but for all frames at once."""
    if frames.device.type == "cpu":
        return F.interpolate(frames, size=(height, width), mode=mode, antialias=True)
    return _resize_through_float(frames, height, width, mode)


def _resize_through_float(frames: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """The same within one grey level, for devices that cannot resize uint8 (GPUs). It rounds after each axis."""
    frames = frames.float()
    for size in ((frames.shape[-2], width), (height, width)):
        # bicubic overshoots 0 and 255; halves are rounded up
        frames = F.interpolate(frames, size=size, mode=mode, antialias=True).add_(0.5).floor_().clamp_(0, 255)
    return frames.to(torch.uint8)


def crop_frames(
    frames: torch.Tensor, height: int, width: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Crops all frames (T, 3, H, W) alike: at a random x and a random y, or centrally without `generator`."""
    missing_height, missing_width = max(height - frames.shape[-2], 0), max(width - frames.shape[-1], 0)
    if missing_height or missing_width:
        # as transformers' center_crop: zeros around frames that are too small
        top, left = (missing_height + 1) // 2, (missing_width + 1) // 2
        frames = F.pad(frames, (left, missing_width - left, top, missing_height - top))
    top, left = _draw_corner(frames.shape[-2] - height, frames.shape[-1] - width, generator)
    return frames[..., top : top + height, left : left + width]


def _draw_corner(slack_height: int, slack_width: int, generator: torch.Generator | None) -> tuple[int, int]:
    """Top and left of a crop; `slack_*` are the rows and columns left over."""
    if generator is None:
        return slack_height // 2, slack_width // 2
    top = int(torch.randint(slack_height + 1, (), generator=generator))
    return top, int(torch.randint(slack_width + 1, (), generator=generator))


def resize_and_crop(
    frames: torch.Tensor, image_processor, preprocessing: str, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Applies `resize_for_crop`, then `crop_frames`. For very long frames, it enlarges only the part in the crop.

    (A frame of 2 x 40,000 pixels, resized to a shortest side of 224, would have a billion pixels.)

    Raises:
        UnreadableError: If the result exceeds the limit of a clip.
    """
    height, width = crop_size_of(frames.shape[-2:], image_processor, preprocessing)
    check_clip_size(len(frames), width, height)
    target = _resized_size(frames.shape[-2:], image_processor, preprocessing)
    is_short = max(target) <= LARGEST_ASPECT_RATIO * max(min(target), height, width)
    if is_short or target == tuple(frames.shape[-2:]):
        frames = resize_for_crop(frames, image_processor, preprocessing)
        return crop_frames(frames, height, width, generator)
    corner = _draw_corner(max(target[0] - height, 0), max(target[1] - width, 0), generator)
    crop, size = list(corner), list(target)
    for axis, length in ((0, height), (1, width)):
        frames, crop[axis], size[axis] = _cut(frames, axis - 2, target[axis], corner[axis], length)
    frames = _resize_uint8(frames, size[0], size[1], _mode_of(image_processor))
    frames = frames[..., crop[0] : crop[0] + height, crop[1] : crop[1] + width]
    return crop_frames(frames, height, width)  # pads frames that are still too small


def _cut(frames: torch.Tensor, axis: int, resized: int, start: int, length: int) -> tuple[torch.Tensor, int, int]:
    """The part of an axis that a crop needs, and where the crop starts and how long that part is after resizing.

    Args:
        resized: Length of the whole axis after resizing.
        start, length: Start and length of the crop in the resized axis.
    """
    full = frames.shape[axis]
    margin = 4 * max(1, -(-full // resized))  # wider than the bicubic filter
    first = start * full // resized - margin
    last = -(-(start + length) * full // resized) + margin

    def offset(position: int) -> float:
        """Distance of a pixel from the grid of the resized axis. A cut on that grid causes no shift."""
        return abs(position * resized / full - round(position * resized / full))

    first = min(range(max(first, 0), max(first - 32, -1), -1), key=offset)
    last = min(range(min(last, full), min(last + 32, full + 1)), key=offset)
    before, part = round(first * resized / full), max(1, round((last - first) * resized / full))
    return frames.narrow(axis, first, last - first), start - before, part


def _gray(pixels: torch.Tensor) -> torch.Tensor:
    """Luma (ITU-R BT.601) of pixels: (T, 3, H, W) -> (T, 1, H, W)."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
    return (pixels * weights).sum(dim=-3, keepdim=True)


def _shift_hue(pixels: torch.Tensor, turns: float) -> torch.Tensor:
    """Turns the hue of pixels (T, 3, H, W) in [0, 1] around the colour circle; value and saturation stay."""
    value, chroma = pixels.amax(dim=-3), pixels.amax(dim=-3) - pixels.amin(dim=-3)
    red, green, blue = pixels.unbind(dim=-3)
    divisor = chroma.clamp_min(1e-12)  # gray has no hue; its chroma of 0 cancels the value computed here
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )  # (T, H, W), in sixths of a turn
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
    sector = (offsets + (hue + 6 * turns).unsqueeze(-3)) % 6  # (T, 3, H, W)
    return value.unsqueeze(-3) - chroma.unsqueeze(-3) * torch.minimum(sector, 4 - sector).clamp(0, 1)


def augment_like_kinetics(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augments a video as the official program does for query videos of Kinetics-100 in training.

    Horizontal flip (p = 0.5); colour jitter in random order: brightness, contrast and saturation times a factor from
    [0.5, 1.5], hue turned by up to a quarter circle either way; grayscale (p = 0.3). All frames share one draw.
    `pixels` and the result are float (T, 3, H, W) in [0, 1]. The order of the draws differs from the official program.
    """
    brightness, contrast, saturation = torch.empty(3).uniform_(0.5, 1.5, generator=generator).tolist()
    turns = torch.empty(()).uniform_(-0.25, 0.25, generator=generator).item()
    flip, to_gray = (torch.rand(2, generator=generator) < torch.tensor([0.5, 0.3])).tolist()

    def towards(anchor, factor):
        return lambda pixels: torch.lerp(anchor(pixels), pixels, factor)

    steps = (
        lambda pixels: pixels * brightness,
        towards(lambda pixels: _gray(pixels).mean(dim=(-3, -2, -1), keepdim=True).expand_as(pixels), contrast),
        towards(lambda pixels: _gray(pixels).expand_as(pixels), saturation),
        lambda pixels: _shift_hue(pixels, turns),
    )
    if flip:
        pixels = pixels.flip(-1)
    for step in torch.randperm(len(steps), generator=generator).tolist():
        pixels = steps[step](pixels).clamp(0, 1)
    return _gray(pixels).expand_as(pixels) if to_gray else pixels


@functools.lru_cache(maxsize=16)
def per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # cached, because copying it to a GPU each time would make the program wait
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def resize_settings(image_processor, preprocessing: str) -> dict:
    """The settings of `resize_frames` as plain values. Frames resized with equal settings are interchangeable."""
    if preprocessing == "official":
        height, width = _official_size(image_processor)
        return {"preprocessing": "official", "size": {"height": height, "width": width}}
    if not image_processor.do_resize:
        return {"preprocessing": "clip", "size": None}
    size = {name: int(value) for name, value in dict(image_processor.size).items() if value}
    return {"preprocessing": "clip", "size": size, "resample": int(image_processor.resample)}


def resize_frames(frames: torch.Tensor, image_processor, preprocessing: str = "clip") -> torch.Tensor:
    """Resizes frames as `process_videos` does before it crops: uint8 (T, H, W, 3) -> uint8 (T, H', W', 3).

    For `"official"` the result is rounded; `process_videos` does not round.

    Raises:
        UnreadableError: If the result exceeds the limit of a clip, or a side is longer than JPEG allows.
    """
    frames = frames.permute(0, 3, 1, 2)
    height, width = _resized_size(frames.shape[-2:], image_processor, preprocessing)
    if max(height, width) > MAX_JPEG_SIDE:
        raise UnreadableError(
            f"its frames of {frames.shape[-1]} x {frames.shape[-2]} pixels would become {width} x {height}, more than "
            f"{MAX_JPEG_SIDE} to a side: crop the video"
        )
    check_clip_size(len(frames), width, height)
    resized = resize_for_crop(frames, image_processor, preprocessing)
    if resized.dtype != torch.uint8:
        resized = resized.round().to(torch.uint8)
    return resized.permute(0, 2, 3, 1).contiguous()


def resize_for_crop(frames: torch.Tensor, image_processor, preprocessing: str) -> torch.Tensor:
    """Resizes uint8 (T, 3, H, W) for the crop. Returns uint8, or float from 0 to 255 for official preprocessing."""
    size = _resized_size(frames.shape[-2:], image_processor, preprocessing)
    is_same = tuple(frames.shape[-2:]) == size
    if preprocessing == "official":
        frames = frames.float()
        return frames if is_same else F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    return frames if is_same else _resize_uint8(frames, *size, _mode_of(image_processor))


def _mode_of(image_processor) -> str:
    mode = {2: "bilinear", 3: "bicubic"}.get(int(image_processor.resample))
    if mode is None:
        raise ValueError(f"The image processor's resample={image_processor.resample!r} is not supported: use 2 or 3.")
    return mode


def _resized_size(frame_size: Sequence[int], image_processor, preprocessing: str) -> tuple[int, int]:
    """Height and width that frames of `frame_size` are resized to before they are cropped."""
    if preprocessing == "official":
        return _official_size(image_processor)
    if not image_processor.do_resize:
        return frame_size[0], frame_size[1]
    size = image_processor.size
    if size.get("shortest_edge"):
        target = shortest_edge_size(frame_size, size.get("shortest_edge"))
    else:
        target = size.get("height"), size.get("width")
    if None in target or size.get("longest_edge"):
        raise ValueError(f"The image processor's size={size} is not supported: use shortest_edge, or height and width.")
    return target


def crop_size_of(frame_size: Sequence[int], image_processor, preprocessing: str) -> tuple[int, int]:
    """Height and width of the pixel values, from the image processor's settings; `frame_size` if they set none."""
    if preprocessing == "official":
        return official_crop_size(image_processor)
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    if size is image_processor.size and not image_processor.do_resize:
        return frame_size[0], frame_size[1]
    if size.get("shortest_edge"):
        return shortest_edge_size(frame_size, size.get("shortest_edge"))
    return size.get("height"), size.get("width")


def official_crop_size(image_processor) -> tuple[int, int]:
    size = getattr(image_processor, "crop_size", None) or image_processor.size
    if size.get("shortest_edge"):
        return size.get("shortest_edge"), size.get("shortest_edge")
    return size.get("height"), size.get("width")


def _official_size(image_processor) -> tuple[int, int]:
    """Height and width before the crop. The official program squashes to 256 x 256 for a crop of 224 x 224."""
    height, width = official_crop_size(image_processor)
    return round(height * 8 / 7), round(width * 8 / 7)


def shortest_edge_size(frame_size: Sequence[int], edge: int) -> tuple[int, int]:
    height, width = frame_size
    shortest = min(height, width)
    return edge * height // shortest, edge * width // shortest  # rounded down, as transformers does


__all__ = [
    "augment_like_kinetics",
    "crop_frames",
    "crop_size_of",
    "official_crop_size",
    "per_channel",
    "resize_and_crop",
    "resize_for_crop",
    "resize_frames",
    "resize_settings",
    "shortest_edge_size",
]
