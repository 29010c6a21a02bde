"""`CLIPFSARProcessor` turns videos and class names into inputs of a CLIP-FSAR model.

`video_clipfsar` chooses and reads frames. `pixels_clipfsar` resizes and crops them. The processor combines both with
the tokenizer. Letters in shapes: V videos, S support videos, Q query videos, T frames per video, N classes,
L tokens, C = 3 channels, H and W pixels.
"""

import functools
import inspect
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs, ProcessorMixin, TextKwargs

try:
    from .class_texts_clipfsar import check_single_prompts, tokenize_prompts
except ImportError:
    if __package__:
        raise
    from class_texts_clipfsar import check_single_prompts, tokenize_prompts

try:
    from .backbones_clipfsar import fit_to_plain_checkpoint
except ImportError:
    if __package__:
        raise
    from backbones_clipfsar import fit_to_plain_checkpoint

try:
    from .choices_clipfsar import (
        FRAME_SAMPLINGS,
        LOADING_OPTIONS,
        SECONDS_PER_VIDEO,
        check_choice,
        check_effect,
        check_finite,
        check_image_settings,
        check_known,
        check_positive_integer,
        check_saved_processor,
        check_truth,
        checked_processor_setting,
    )
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import (
        FRAME_SAMPLINGS,
        LOADING_OPTIONS,
        SECONDS_PER_VIDEO,
        check_choice,
        check_effect,
        check_finite,
        check_image_settings,
        check_known,
        check_positive_integer,
        check_saved_processor,
        check_truth,
        checked_processor_setting,
    )

try:
    from .frame_archive_clipfsar import FrameArchive
except ImportError:
    if __package__:
        raise
    from frame_archive_clipfsar import FrameArchive

try:
    from .limits_clipfsar import UnreadableError
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import UnreadableError

try:
    from .paths_clipfsar import check_folder
except ImportError:
    if __package__:
        raise
    from paths_clipfsar import check_folder

try:
    from .pixels_clipfsar import (
        augment_like_kinetics,
        crop_size_of,
        per_channel,
        resize_and_crop,
        resize_frames,
        resize_settings,
    )
except ImportError:
    if __package__:
        raise
    from pixels_clipfsar import (
        augment_like_kinetics,
        crop_size_of,
        per_channel,
        resize_and_crop,
        resize_frames,
        resize_settings,
    )

try:
    from .video_clipfsar import (
        VideoReadError,
        as_video_list,
        is_one_video,
        read_video_frames,
        sample_frame_indices,
        stream_video_frames,
    )
except ImportError:
    if __package__:
        raise
    from video_clipfsar import (
        VideoReadError,
        as_video_list,
        is_one_video,
        read_video_frames,
        sample_frame_indices,
        stream_video_frames,
    )


# --- pixel values -----------------------------------------------------------------------------------------------------


class SampledVideos:
    """Videos whose frames are chosen and read, but not yet resized, cropped and normalised.

    A data loader returns it if the GPU is to do the rest (`CLIPFSARProcessor.make_pixel_values`): the frames then go to
    the GPU as bytes, not as floats. It has `to` and `pin_memory` like a tensor.

    Args:
        frames: One tensor per video, uint8 (T, H, W, 3); sizes may differ.
        seeds: One seed per video, for its crop and augmentation; None if nothing is random.
        augmentation: Like the processor's `query_augmentation`.
    """

    def __init__(self, frames: list[torch.Tensor], seeds: list[int | None], augmentation: str = "none"):
        self.frames, self.seeds, self.augmentation = frames, seeds, augmentation

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device, non_blocking: bool = False) -> "SampledVideos":
        frames = [video.to(device, non_blocking=non_blocking) for video in self.frames]
        return SampledVideos(frames, self.seeds, self.augmentation)

    def pin_memory(self) -> "SampledVideos":
        return SampledVideos([video.pin_memory() for video in self.frames], self.seeds, self.augmentation)


# --- the processor ----------------------------------------------------------------------------------------------------


class CLIPFSARProcessor(ProcessorMixin):
    """Makes an episode from videos and class names, with CLIP's image processor and tokenizer.

    - `num_frames`: T, frames per video.
    - `prompt_template`: the sentence around a class name, with `{}` for the name. Underscores in names become spaces.
    - `class_texts`: texts in place of it, `{class name: text or list of texts}`; `"*"` is for all other classes.
    - `frame_sampling`, `sampling_rate`, `target_fps`: see `sample_frame_indices`.
    - `preprocessing`: `"clip"` follows the settings of `image_processor` (shortest side, antialiased bicubic, crop);
      `"official"` is the preprocessing of the published numbers: squash to 8/7 of the crop size (256 for 224) without
      keeping the aspect ratio, bilinear without antialiasing, crop. In training both crop at random, once per video.
    - `decoder`, `num_threads`, `seconds_per_video`: see `read_video_frames`.
    - `prompt_length`: number of tokens to cut or pad every prompt to. `None` pads to the longest prompt of a call.
      SigLIP needs the length that it was trained with, 64.
    - `query_augmentation`: `"kinetics"` applies `augment_like_kinetics` to query videos in training. It mirrors half of
      the videos. Do not use it for data where left and right matter, such as Something-Something.

    `from_pretrained` also takes the plain checkpoint of any backbone (CLIP, SigLIP, SigLIP 2, MetaCLIP 2, ALIGN, ...).
    You can pass it settings as keyword arguments.
    """

    # The class that this processor raises. Code loaded from a saved folder lies in a separate package, so other modules
    # may have another class named `VideoReadError`.
    unreadable_error = VideoReadError

    def __init__(
        self,
        image_processor,
        tokenizer,
        num_frames=8,
        prompt_template="a photo of {}",
        frame_sampling="segment_center",
        sampling_rate=35,
        target_fps=12,
        preprocessing="clip",
        decoder="auto",
        num_threads=1,
        query_augmentation="none",
        prompt_length=None,
        seconds_per_video=SECONDS_PER_VIDEO,
        class_texts=None,
    ):
        self.num_frames = num_frames
        self.prompt_template = prompt_template
        self.frame_sampling = frame_sampling
        self.sampling_rate = sampling_rate
        self.target_fps = target_fps
        self.preprocessing = preprocessing
        self.decoder = decoder
        self.num_threads = num_threads
        self.query_augmentation = query_augmentation
        self.prompt_length = prompt_length
        self.seconds_per_video = seconds_per_video
        self.class_texts = class_texts
        super().__init__(image_processor, tokenizer)

    def __setattr__(self, name, value):
        """Checks every setting, however it is set. Raises `ValueError` with name, value and allowed values."""
        super().__setattr__(name, checked_processor_setting(self, name, value))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Loads a processor, as in transformers. A plain CLIP checkpoint gets our default settings.

        Keyword arguments that are our settings (`num_frames=16`) override the saved ones. An unknown keyword raises a
        `TypeError` that names it and the nearest known one.
        """
        if "_from_pipeline" not in kwargs:  # a pipeline also passes the model's settings to its processor
            names = [name for name in kwargs if not name.startswith("_")]
            check_effect("CLIPFSARProcessor.from_pretrained", names, _WITHOUT_EFFECT)
            check_known("CLIPFSARProcessor.from_pretrained", names, {*_SETTINGS, *LOADING_OPTIONS})
        check_folder(pretrained_model_name_or_path)
        # Remove them first: the mixin also passes keyword arguments to the tokenizer, which would save them as its own.
        settings = {name: kwargs.pop(name) for name in _SETTINGS if name in kwargs}
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        settings = fit_to_plain_checkpoint(processor, pretrained_model_name_or_path, kwargs) | settings
        if not settings:
            return processor
        saved = {name: getattr(processor, name) for name in _SETTINGS}
        return cls(processor.image_processor, processor.tokenizer, **{**saved, **settings})

    @classmethod
    def from_args_and_dict(cls, args, processor_dict, **kwargs):
        if processor_dict.get("processor_class") == cls.__name__:  # not for a plain checkpoint
            check_saved_processor(processor_dict, ImagesKwargs.__annotations__)
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @property
    def model_input_names(self):
        return [
            "support_pixel_values",
            "support_labels",
            "query_pixel_values",
            "class_input_ids",
            "class_attention_mask",
        ]

    def __call__(
        self,
        support_videos: Mapping[str, Any] | Sequence | None = None,
        query_videos: Sequence | None = None,
        support_labels: Sequence[int] | Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        query_labels: Sequence[int] | Sequence[str] | None = None,
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
        frame_sampling: str | None = None,
        fps: float | None = None,
        return_tensors: str | None = "pt",
        **unknown,
    ) -> BatchFeature:
        """Makes the model inputs of one episode. Each output is present only if its inputs are given.

        Pass support videos as `{"boxing": [video, ...], ...}`, in the order of the classes, or as a flat list with
        `support_labels`. These are indices into `class_names`, or class names; `class_names` then defaults to their
        order of first appearance. Classes may have unequal numbers of videos. `class_names` with `query_videos` alone
        is zero-shot. A single video counts as a list of one. See `read_video_frames` for what counts as a video, and
        `process_videos` for `training`, `generator`, `frame_sampling` and `fps`.

        Returns a `BatchFeature`. Every tensor has a leading batch dimension of 1: `support_pixel_values` (1, S, T, C,
        H, W), `support_labels` (1, S), `query_pixel_values` (1, Q, T, C, H, W), `class_input_ids` (1, N, L),
        `class_attention_mask` (1, N, L), and with `query_labels` also `labels` (1, Q).

        Raises `ValueError` for an inconsistent episode, `VideoReadError` (a subclass) for an unreadable video, and
        `TypeError` for an unknown keyword.
        """
        check_known("CLIPFSARProcessor", unknown, _CALL)
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors={return_tensors!r} is not supported: use 'pt' (the default) or 'np'.")
        support_videos, support_labels, class_names, query_videos, query_labels = _checked_episode(
            support_videos, support_labels, class_names, query_videos, query_labels
        )
        options: dict[str, Any] = {"training": training, "generator": generator, "fps": fps}
        options["frame_sampling"] = frame_sampling
        data = {}
        if support_videos is not None:
            data["support_pixel_values"] = self.process_videos(support_videos, **options)
            data["support_labels"] = torch.tensor(support_labels)
        if query_videos is not None:
            data["query_pixel_values"] = self.process_videos(query_videos, role="query", **options)
        if class_names is not None:
            for name, tokens in self.tokenize_classes(class_names).items():
                data[f"class_{name}"] = tokens
        if query_labels is not None:
            data["labels"] = torch.tensor(query_labels)
        data = {name: value.unsqueeze(0) for name, value in data.items()}
        if return_tensors == "np":
            data = {name: value.numpy() for name, value in data.items()}
        return BatchFeature(data)

    def process_videos(
        self,
        videos: Sequence,
        *,
        training: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        frame_sampling: str | None = None,
        role: str = "support",
        fps: float | None = None,
    ) -> torch.Tensor:
        """Pixel values of videos, float32 (V, T, C, H, W).

        `training` draws random frames (`"segment_random"` for both segment samplings, a random start for `"interval"`,
        random ends for `"linspace"`) and a random crop. Without it only `"segment_random"` is random. `generator` is
        one generator, a list of one per video, or None for torch's global one. Every video takes the same number of
        draws, whatever its length and decoder. `role="query"` in training applies the processor's `query_augmentation`.
        `frame_sampling` overrides the processor's. `fps`: frames per second of videos that do not state it (frames in
        memory or in folders). Only `"interval"` needs it.
        """
        videos = as_video_list(videos)
        sampled = self._read_videos(videos, training, generator, frame_sampling, fps)
        return self._finish_videos(sampled, len(videos), self._augmentation(role, training))

    def read_videos(
        self,
        videos: Sequence,
        *,
        training: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        frame_sampling: str | None = None,
        role: str = "support",
        fps: float | None = None,
    ) -> SampledVideos:
        """The first half of `process_videos`, with the same arguments: chooses and reads frames."""
        sampled = self._read_videos(as_video_list(videos), training, generator, frame_sampling, fps)
        frames, seeds = zip(*sampled, strict=True)
        return SampledVideos(list(frames), list(seeds), self._augmentation(role, training))

    def make_pixel_values(self, sampled: SampledVideos) -> torch.Tensor:
        """The second half of `process_videos`: resizes, crops and normalises on the device of the frames.

        Returns float32 (V, T, C, H, W). The CPU resizes bytes, a GPU floats: one resized pixel in a hundred may differ
        by a grey level. Frames that already have the right size (from a frame store) give equal results.
        """
        return self._finish_videos(zip(sampled.frames, sampled.seeds, strict=True), len(sampled), sampled.augmentation)

    def _augmentation(self, role: str, training: bool) -> str:
        check_choice("role", role, ("support", "query"))
        return self.query_augmentation if training and role == "query" else "none"

    def _read_videos(
        self, videos: list, training: bool, generator, frame_sampling: str | None, fps: float | None
    ) -> Iterator[tuple[torch.Tensor, int | None]]:
        """Yields for each video its sampled frames (T, H, W, 3) and the seed of its crop (None for a central crop)."""
        check_truth("training", training)
        sampling = self.frame_sampling if frame_sampling is None else frame_sampling
        check_choice("frame_sampling", sampling, FRAME_SAMPLINGS)
        if training and sampling == "segment_center":
            sampling = "segment_random"
        if not videos:
            raise ValueError("There are no videos to process: give a list of at least one.")
        is_random = training or sampling == "segment_random"
        generators = generator if isinstance(generator, Sequence) else [generator] * len(videos)
        for video, generator in zip(videos, generators, strict=True):
            frame_seed, pixel_seed = _draw_seeds(generator) if is_random else (None, None)
            frames = self._read_sampled_frames(video, sampling, frame_seed, fps)
            yield frames, pixel_seed if training else None

    def _finish_videos(
        self, sampled: Iterable[tuple[torch.Tensor, int | None]], num_videos: int, augmentation: str
    ) -> torch.Tensor:
        pixel_values = None  # one tensor, filled in place: stacking videos cost as much as resizing them
        for i, (frames, seed) in enumerate(sampled):
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            frames = self._resize_and_crop(frames, generator)  # (T, C, H, W)
            if pixel_values is None:
                pixel_values = torch.empty(num_videos, *frames.shape, device=frames.device)
            if frames.shape != pixel_values.shape[1:]:
                raise ValueError(
                    f"The videos come out in different sizes, {tuple(pixel_values.shape[-2:])} and "
                    f"{tuple(frames.shape[-2:])}: the image processor needs do_center_crop, or a size with height and "
                    "width."
                )
            pixel_values[i] = frames
            self._normalize_(pixel_values[i], augmentation, generator)
        assert pixel_values is not None  # there is at least one video
        return pixel_values

    def process_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Pixel values (T, C, H, W) of frames that are already chosen, uint8 (T, H, W, 3)."""
        pixels = self._resize_and_crop(frames, None).float()
        self._normalize_(pixels, "none", None)
        return pixels

    def to_frames(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The resized and cropped frames that the model sees: pixel values (..., C, H, W) -> uint8 (..., H, W, C)."""
        settings, is_official = self.image_processor, self.preprocessing == "official"
        pixels = pixel_values.float()
        if is_official or settings.do_normalize:
            mean, std = (
                per_channel(tuple(value), pixels.device) for value in (settings.image_mean, settings.image_std)
            )
            pixels = pixels * std + mean
        if is_official or settings.do_rescale:
            pixels = pixels / (1 / 255 if is_official else settings.rescale_factor)
        return pixels.clamp(0, 255).round().to(torch.uint8).movedim(-3, -1)

    def tokenize_classes(self, class_names: Sequence[str], n_way: int | None = None) -> dict[str, torch.Tensor]:
        """Tokens of the prompts of class names: `{"input_ids": (N, L), "attention_mask": (N, L)}`, int64.

        Underscores become spaces ("brush_hair" -> "a photo of brush hair"). Prompts are padded to the longest and cut
        at the tokenizer's `model_max_length`, or have `prompt_length` tokens. A name may appear twice. Different names
        with the same tokens, and classes with several prompts, raise a `ValueError`. `n_way`: names per episode; only
        names of one episode are compared.
        """
        names = _check_class_names(class_names, unique=False)
        check_single_prompts(self, names)
        return tokenize_prompts(self, names, n_way)[0]

    def post_process_video_classification(
        self, outputs: Any, class_names: Sequence[str], top_k: int | None = None
    ) -> list[list[dict[str, Any]]]:
        """Returns for each query video of one episode its classes, best first: `[{"label", "score"}, ...]`.

        `outputs` is the model's output, or its logits, (1, Q, N) or (Q, N). Scores are the softmax of the logits.
        `top_k` keeps the best k. Raises `ValueError` for a wrong number of classes, for several episodes or for NaN.
        """
        class_names = _check_class_names(class_names)
        outputs = outputs["logits"] if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
        logits = torch.as_tensor(outputs)
        logits = logits[0] if logits.ndim == 3 and len(logits) == 1 else logits
        if logits.ndim != 2:
            raise ValueError(
                f"The logits have shape {tuple(logits.shape)}, but one episode, (1, Q, N) or (Q, N), is needed: "
                "for several episodes pass logits[i]."
            )
        if logits.shape[-1] != len(class_names):
            raise ValueError(f"The logits have {logits.shape[-1]} classes, but class_names has {len(class_names)}.")
        check_finite("The logits", logits, [f"query video {row}" for row in range(len(logits))])
        top_k = len(class_names) if top_k is None else top_k
        check_positive_integer("top_k", top_k)
        scores, classes = logits.float().softmax(dim=-1).topk(min(top_k, len(class_names)), dim=-1)
        return [
            [{"label": class_names[index], "score": score} for index, score in zip(*row, strict=True)]
            for row in zip(classes.tolist(), scores.tolist(), strict=True)
        ]

    def _read_sampled_frames(self, video, sampling: str, seed: int | None, fps: float | None):
        def select_indices(num_video_frames, video_fps, times):
            if sampling == "interval" and video_fps:  # by time, where the rate varies
                num_video_frames, video_fps = times.as_constant()
            indices = sample_frame_indices(
                num_video_frames,
                self.num_frames,
                sampling,
                fps=video_fps or fps,
                sampling_rate=self.sampling_rate,
                target_fps=self.target_fps,
                # A new generator each time, so that choosing frames again gives the same draw.
                generator=None if seed is None else torch.Generator().manual_seed(seed),
            )
            return times.frames_at(indices) if sampling == "interval" else indices

        check_archive = functools.partial(self._check_archive, draws=seed is not None)
        return read_video_frames(
            video, select_indices, self.decoder, self.num_threads, check_archive, self.seconds_per_video
        )

    def _resize_and_crop(self, frames: torch.Tensor, crop_generator: torch.Generator | None) -> torch.Tensor:
        """uint8 (T, H, W, 3) -> (T, 3, crop height, crop width), from 0 to 255, cropped at random with a generator."""
        check_image_settings(self.image_processor, self.preprocessing)  # they may have changed since
        frames = frames.permute(0, 3, 1, 2)  # (T, 3, H, W), channels last in memory: twice as fast to resize on CPU
        try:
            frames = resize_and_crop(frames, self.image_processor, self.preprocessing, crop_generator)
        except UnreadableError as error:
            raise VideoReadError(f"Cannot read video: {error}.") from error
        # contiguous here: permuting bytes is cheaper than permuting floats later
        return frames.contiguous()

    def _normalize_(self, pixels: torch.Tensor, augmentation: str, generator: torch.Generator | None) -> None:
        """Augments, rescales and normalises pixels from 0 to 255, in place."""
        settings = self.image_processor
        is_official = self.preprocessing == "official"
        if augmentation == "kinetics":
            assert generator is not None  # only training augments
            pixels.copy_(augment_like_kinetics(pixels / 255, generator)).mul_(255)
        if is_official or settings.do_rescale:
            pixels.mul_(1 / 255 if is_official else settings.rescale_factor)
        if is_official or settings.do_normalize:
            mean, std = (
                per_channel(tuple(value), pixels.device) for value in (settings.image_mean, settings.image_std)
            )
            pixels.sub_(mean).div_(std)

    def _crop_size(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        return crop_size_of(frame_size, self.image_processor, self.preprocessing)

    def _check_archive(self, archive: FrameArchive, draws: bool) -> None:
        """Raises `ValueError` if a frame archive does not fit the settings of this processor."""
        wanted = resize_settings(self.image_processor, self.preprocessing)
        if archive.resized_for != wanted:
            raise ValueError(
                f"The frame store was made for {_in_words(archive.resized_for)}, but {_in_words(wanted)} is wanted: "
                "prepare the data again with the --preprocessing and --frame_size of this model, or choose what the "
                "store was made for."
            )
        least = (3 if draws else 1) * self.num_frames
        if not archive.is_complete and len(archive.indices) < least:
            purpose = f"{'draw' if draws else 'choose'} {self.num_frames} frames"
            raise ValueError(
                f"The frame store keeps {len(archive.indices)} of a video's {archive.num_frames} frames, but to "
                f"{purpose} it must keep {least} or all: prepare the data again with --frames_per_video {least} or "
                "more, or lower num_frames."
            )


_SETTINGS = (
    "num_frames",
    "prompt_template",
    "frame_sampling",
    "sampling_rate",
    "target_fps",
    "preprocessing",
    "decoder",
    "num_threads",
    "query_augmentation",
    "prompt_length",
    "seconds_per_video",
    "class_texts",
)
_CALL = set(inspect.signature(CLIPFSARProcessor.__call__).parameters) - {"self", "unknown"}
_WITHOUT_EFFECT = {*ImagesKwargs.__annotations__, *TextKwargs.__annotations__}.difference(LOADING_OPTIONS)


def _in_words(settings: dict) -> str:
    size = settings.get("size")
    if not size:
        return "frames of any size"
    sizes = " x ".join(str(value) for value in size.values())
    return f"{settings.get('preprocessing')!r} preprocessing at {'shortest side ' if len(size) == 1 else ''}{sizes}"


def _draw_seeds(generator: torch.Generator | None) -> tuple[int, int]:
    """Two seeds: one for the choice of frames, one for crop and augmentation."""
    device = "cpu" if generator is None else generator.device
    return tuple(torch.randint(2**62, (2,), generator=generator, device=device).tolist())


def _check_class_names(class_names: Iterable[str], unique: bool = True) -> list[str]:
    if isinstance(class_names, str):
        raise ValueError(f"class_names must be a list of names, got the string {class_names!r}: put it in a list.")
    class_names = list(class_names)
    if not class_names:
        raise ValueError("class_names is empty: give at least one name.")
    seen = set()
    for name in class_names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"class_names holds {name!r}: names must be strings that are not blank.")
        if unique and name in seen:
            raise ValueError(f"Class name {name!r} appears twice in class_names: names must be unique.")
        seen.add(name)
    return class_names


def _checked_episode(support_videos, support_labels, class_names, query_videos, query_labels) -> tuple:
    """The same five values, checked against each other and in one form: lists of videos, labels as ints."""
    if class_names is not None:
        class_names = _check_class_names(class_names)
    if isinstance(support_videos, Mapping) and not is_one_video(support_videos):
        if support_labels is not None:
            raise ValueError("support_videos is a dict of classes, so support_labels must be left out.")
        support_videos, support_labels, class_names = _flatten_classes(support_videos, class_names)
    if support_videos is not None:
        support_videos = as_video_list(support_videos)
    if query_videos is not None:
        if isinstance(query_videos, Mapping) and not is_one_video(query_videos):
            raise ValueError("query_videos must be a list of videos, not a dict: pass the classes as query_labels.")
        query_videos = as_video_list(query_videos)
    support_labels, class_names = _check_support(support_videos, support_labels, class_names)
    if query_labels is not None:
        query_labels = _label_indices("query_labels", query_labels, class_names, "query_videos", query_videos)
    if support_videos is None and query_videos is None and class_names is None:
        raise ValueError("Nothing to process: give support_videos, query_videos or class_names.")
    return support_videos, support_labels, class_names, query_videos, query_labels


def _flatten_classes(support_videos: Mapping[str, Any], class_names: list[str] | None):
    """Turns `{name: videos}` into a flat list of videos, their labels, and the class names in order."""
    names = _check_class_names(support_videos)
    if class_names is not None:
        if set(class_names) != set(names):
            raise ValueError(
                f"class_names {class_names} are not the classes of support_videos {names}: leave class_names out, or "
                "use it only to put the same classes in another order."
            )
        names = class_names
    videos, labels = [], []
    for label, name in enumerate(names):
        videos_of_class = as_video_list(support_videos[name])
        videos.extend(videos_of_class)
        labels.extend([label] * len(videos_of_class))
    return videos, labels, names


def _check_support(support_videos, support_labels, class_names):
    """Support labels as ints, and the class names, checked against each other."""
    if support_videos is None:
        if support_labels is not None:
            raise ValueError("support_labels are given without support_videos: give both, or neither.")
        return None, class_names
    if support_labels is None:
        raise ValueError(
            "support_videos is a list, so support_labels are needed to say the class of each video (or pass a dict of "
            "class name to videos)."
        )
    support_labels = _flat_labels(support_labels)
    if class_names is None and any(isinstance(label, str) for label in support_labels):
        class_names = _check_class_names(dict.fromkeys(support_labels))
    labels = _label_indices("support_labels", support_labels, class_names, "support_videos", support_videos)
    n_way = len(class_names) if class_names is not None else max(labels, default=-1) + 1
    for label in range(n_way):
        if label not in labels:
            name = repr(class_names[label]) if class_names is not None else label
            raise ValueError(f"Class {name} has no support videos: give it at least one or leave the class out.")
    if not labels:
        raise ValueError("support_videos is empty: give at least one video per class, or leave it out.")
    return labels, class_names


def _flat_labels(labels) -> list:
    return labels.tolist() if isinstance(labels, (np.ndarray, torch.Tensor)) else list(labels)


def _label_indices(name: str, labels, class_names: list[str] | None, videos_name: str, videos: list | None):
    """Turns labels, ints or class names, into ints from 0 to N - 1."""
    labels = _flat_labels([labels] if isinstance(labels, str) else labels)
    num_videos = 0 if videos is None else len(videos)
    if len(labels) != num_videos:
        raise ValueError(
            f"{name} has {len(labels)} entries, but {videos_name} has {num_videos}: one label per video is needed."
        )
    indices = []
    for label in labels:
        if isinstance(label, str):
            if class_names is None or label not in class_names:
                raise ValueError(f"{name} holds {label!r}, which is not among class_names {class_names}.")
            indices.append(class_names.index(label))
            continue
        if isinstance(label, bool) or not isinstance(label, numbers.Integral):
            raise ValueError(f"{name} holds {label!r}: labels are whole numbers or class names.")
        if int(label) < 0 or (class_names is not None and int(label) >= len(class_names)):
            limit = f"0 to {len(class_names) - 1}" if class_names is not None else "0 upwards"
            raise ValueError(f"{name} holds {label}, but labels go from {limit}.")
        indices.append(int(label))
    return indices


CLIPFSARProcessor.register_for_auto_class()

if not __package__:
    # Only in a checkout or an installation: AutoProcessor then finds the class without trust_remote_code. Code saved
    # with a checkpoint does not register itself: the auto_map of the checkpoint names it.
    try:
        from configuration_clipfsar import CLIPFSARConfig
    except ImportError:
        pass  # this file alone, without its neighbours, still works
    else:
        AutoProcessor.register(CLIPFSARConfig, CLIPFSARProcessor, exist_ok=True)

__all__ = [
    "CLIPFSARProcessor",
    "SampledVideos",
    "VideoReadError",
    "augment_like_kinetics",
    "read_video_frames",
    "resize_frames",
    "resize_settings",
    "sample_frame_indices",
    "stream_video_frames",
]
