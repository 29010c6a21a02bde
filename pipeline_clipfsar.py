"""`pipeline("few-shot-video-classification")`: enroll classes with a few clips each, then classify videos.

classify = pipeline("few-shot-video-classification", model=folder_or_hub_id, trust_remote_code=True)
classify.enroll({"boxing": ["a.mp4", "b.mp4"], "diving": ["c.mp4"]})
classify("query.mp4")  # [{"label": "boxing", "score": 0.93}, {"label": "diving", "score": 0.07}]
"""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset as TorchDataset
from transformers import AutoModel, Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import cached_file

try:
    from .backbones_clipfsar import fit_to_plain_model, image_size, why_no_backbone
except ImportError:
    if __package__:
        raise
    from backbones_clipfsar import fit_to_plain_model, image_size, why_no_backbone

try:
    from .choices_clipfsar import (
        INFERENCE_MODES,
        UNKNOWN_LABEL,
        check_finite,
        check_known,
        check_positive_integer,
        check_same_num_frames,
        check_slip,
        check_truth,
    )
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import (
        INFERENCE_MODES,
        UNKNOWN_LABEL,
        check_finite,
        check_known,
        check_positive_integer,
        check_same_num_frames,
        check_slip,
        check_truth,
    )

try:
    from .class_texts_clipfsar import text_settings
except ImportError:
    if __package__:
        raise
    from class_texts_clipfsar import text_settings

try:
    from .configuration_clipfsar import CLIPFSARConfig
except ImportError:
    if __package__:
        raise
    from configuration_clipfsar import CLIPFSARConfig

try:
    from .episodes_clipfsar import undecoded_videos
except ImportError:
    if __package__:
        raise
    from episodes_clipfsar import undecoded_videos

try:
    from .explanation_clipfsar import Explanation
except ImportError:
    if __package__:
        raise
    from explanation_clipfsar import Explanation

try:
    from .fingerprint_clipfsar import weights_state
except ImportError:
    if __package__:
        raise
    from fingerprint_clipfsar import weights_state

try:
    from .modeling_clipfsar import CLIPFSARModel
except ImportError:
    if __package__:
        raise
    from modeling_clipfsar import CLIPFSARModel

try:
    from .processing_clipfsar import CLIPFSARProcessor
except ImportError:
    if __package__:
        raise
    from processing_clipfsar import CLIPFSARProcessor

try:
    from .support_set_files_clipfsar import remove_support_set
except ImportError:
    if __package__:
        raise
    from support_set_files_clipfsar import remove_support_set

try:
    from .video_clipfsar import as_video_list, is_one_video
except ImportError:
    if __package__:
        raise
    from video_clipfsar import as_video_list, is_one_video

try:
    from .support_set_clipfsar import (
        SUPPORT_SET_NAME,
        UNKNOWN_THRESHOLD,
        SupportSet,
        encode_class_names,
        repeatable_sampling,
    )
except ImportError:
    if __package__:
        raise
    from support_set_clipfsar import (
        SUPPORT_SET_NAME,
        UNKNOWN_THRESHOLD,
        SupportSet,
        encode_class_names,
        repeatable_sampling,
    )

TASK = "few-shot-video-classification"
_FIRST_CLASSES = threading.Lock()  # for pipelines without a support set: two threads must not make one each
_NOT_BOTH = (
    "Give support_set or candidate_labels, not both: a support set has its class names already "
    "(inference_mode='zero_shot' uses these alone)."
)


_PARAMETERS = ("support_set", "candidate_labels", "inference_mode", "top_k", "detect_unknown", "video_column")


class FewShotVideoClassificationPipeline(Pipeline):
    """Classifies videos by a few example clips per class.

    The classes come from one of these, at construction or with a call:

    - `support_set`: a `SupportSet`, the folder or Hub id of a saved one, or `{class name: videos}` to enroll. `enroll`
      adds clips to the pipeline's own set. A set saved next to the model is loaded automatically, except with
      `support_set=False`, which takes none.
    - `candidate_labels`: class names alone, for zero-shot use.
    - an episode as the input itself, `{"support_videos": {class name: videos}, "query_videos": [...]}`.

    A video is anything the processor reads: a path or URL, bytes, a file object, frames as an array, a list of images,
    a folder of frames, a value of a `datasets` video column.

    Loading options (`device`, `dtype`, `batch_size`, `num_workers`, ...) are those of every transformers pipeline.
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _forward_params: dict

    @classmethod
    def in_config(cls) -> dict:
        """The `custom_pipelines` of a saved configuration, through which `pipeline` finds this class."""
        return {TASK: {"impl": f"{cls.__module__.split('.')[-1]}.{cls.__name__}", "pt": ["AutoModel"]}}

    def __init__(self, model, processor=None, *args, support_set=None, video_column: str = "video", **kwargs):
        model, processor = _for_inference(model, processor)
        if processor is None:
            raise ValueError(f"The {TASK} pipeline needs the model's processor: pass processor=.")
        check_same_num_frames(model, processor)
        self.video_column = video_column
        if kwargs.get("batch_size") is not None:
            check_positive_integer("batch_size", kwargs["batch_size"])
        if support_set is not None and support_set is not False and kwargs.get("candidate_labels") is not None:
            raise ValueError(_NOT_BOTH)
        super().__init__(model, *args, processor=processor, **kwargs)
        self.model.eval()
        self._preprocess_params.pop("classes_given", None)  # the pipeline's own classes do not hinder an episode
        self._candidate_embeds: tuple = (None, None)  # what the last text features were made with, and they
        self._forward_params.setdefault("support_set", None)
        if support_set is None and not self._forward_params.get("candidate_labels"):
            self._take_support_set_beside_model()
        else:
            self.support_set = None if support_set is False else support_set

    def _take_support_set_beside_model(self):
        try:
            self.support_set = _support_set_beside(self.model)
        except ValueError as error:
            raise ValueError(
                f"The support set saved next to the model, in {self.model.name_or_path}, cannot be used: {error} Or "
                "give classes of your own, by clips or by names."
            ) from None

    @property
    def support_set(self) -> SupportSet | None:
        """The enrolled classes that calls use by default."""
        return self._forward_params["support_set"]

    @support_set.setter
    def support_set(self, support_set):
        changed = {"support_set": support_set}
        if support_set is not None:
            changed = {"support_set": self._as_support_set(support_set), "candidate_labels": None}
        self._forward_params = {**self._forward_params, **changed}  # in one step: another thread may be classifying

    def enroll(self, videos: Mapping[str, Any], **options) -> SupportSet:
        """Adds clips, `{class name: videos}`, to the enrolled classes; see `SupportSet.add` for the options.

        Returns the support set, which you can change or save.
        """
        with _FIRST_CLASSES:
            if self.support_set is None:
                self.support_set = SupportSet.from_videos(self.model, self.processor, videos, **options)
                return self.support_set
        support_set = self.support_set
        support_set.add(self.model, self.processor, videos, **options)
        return support_set

    def suggest(
        self,
        videos: Iterable[Any],
        k: int,
        strategy: str = "representative",
        inference_mode: str | None = None,
        seed: int = 0,
        batch_size: int = 8,
    ) -> list:
        """The `k` of several unlabelled videos to label next, for the enrolled classes; see `SupportSet.suggest`.

        The `index` of a suggestion is the place of its video. Raises the errors of `SupportSet.suggest`, and a
        `VideoReadError` for an unreadable video.
        """
        if self.support_set is None:
            raise ValueError("Suggestions are for enrolled classes: enroll at least one clip of each class first.")
        embeds, videos = [], as_video_list(videos)
        check_positive_integer("batch_size", batch_size)
        for start in range(0, len(videos), batch_size):
            batch = videos[start : start + batch_size]
            pixel_values = [self.preprocess(video, raise_unreadable=True)["pixel_values"] for video in batch]
            with torch.no_grad():
                embeds.append(self.model.get_video_features(torch.cat(pixel_values).to(self.device)).float().cpu())
        pool_embeds = torch.cat(embeds) if embeds else torch.empty(0)
        return self.support_set.suggest(self.model, pool_embeds, k, strategy, inference_mode, seed)

    def explain(
        self, video: Any, support_set=None, inference_mode: str | None = None, detect_unknown: bool = False
    ) -> Explanation:
        """Explains the classification of a video: numbers, and `plot` for a picture. See `Explanation`.

        Raises the same errors as a call with that video alone.
        """
        support_set = self.support_set if support_set is None else support_set
        if support_set is None:
            raise ValueError("An explanation needs enrolled clips: enroll some, or give support_set=.")
        support_set = self._as_support_set(support_set)
        pixel_values = self.preprocess(video, raise_unreadable=True)["pixel_values"]
        with torch.no_grad():
            (query_embeds,) = self.model.get_video_features(pixel_values.to(self.device))
        check_finite("The frame features", query_embeds[None], ["the video"], self.model)
        explanation = support_set.explain(self.model, query_embeds, inference_mode, detect_unknown)
        explanation.query_frames = self.processor.to_frames(pixel_values[0])
        return explanation

    def _as_support_set(self, support_set) -> SupportSet:
        if isinstance(support_set, Mapping):
            return SupportSet.from_videos(self.model, self.processor, support_set)
        if isinstance(support_set, (str, os.PathLike)):
            support_set = SupportSet.from_pretrained(support_set)
        # Not isinstance: the set may come from the same code in another package.
        if not hasattr(support_set, "classify"):
            raise ValueError(
                "support_set must be a SupportSet, a folder or Hub id of one, or {class name: videos}; got "
                f"{type(support_set).__name__}."
            )
        support_set.check(self.model, self.processor)
        return support_set

    def __call__(self, inputs: Any, **kwargs) -> Any:
        """Classifies videos.

        Args:
            inputs: One video, a list of videos (or a column of a `datasets` data set, an array of paths, a pandas
                Series), a generator of them, or a (`datasets` or torch) data set; or one episode or several,
                `{"support_videos": ..., "query_videos": [...]}`.
            support_set, candidate_labels: Classes for this call, instead of the pipeline's own. A string of labels is
                split at its commas; a list is used as given.
            inference_mode: `"few_shot"`, `"zero_shot"` or `"ensemble"`; by default the model's, and `"zero_shot"` with
                `candidate_labels`.
            top_k: Classes returned per video, 5 by default.
            detect_unknown: Also score "none of these" (`SupportSet.score_unknown`). Its entry is not part of the
                softmax over classes. It comes first if its score is 0.5 or more, else last. `top_k` does not count it.
            video_column: Video column of a `datasets` data set; by default the pipeline's, which is `"video"`.
            batch_size: Videos per forward pass.
            num_workers: Processes that decode a data set.

        Returns:
            For one video `[{"label", "score"}, ...]`, most probable first. For a list: a list of these. For a generator
            or a data set: an iterator over them. For an episode: one per query video. Among several videos an
            unreadable one gives `[{"label": None, "score": 0.0, "error": why}]`.

        Raises:
            VideoReadError: For an unreadable video given alone.
            ValueError: For fewer than two classes, an unknown mode, a support set of another model or preprocessing,
                an episode with classes besides its own, or a `video_column` for inputs that have no columns.
        """
        video_column = kwargs.pop("video_column", None)
        if kwargs.get("batch_size") is not None:
            check_positive_integer("batch_size", kwargs["batch_size"])
        if inputs is None:
            raise ValueError(f"There is no video: give the {TASK} pipeline one video, several, or an episode.")
        if hasattr(inputs, "column_names") and hasattr(inputs, "features"):
            column = self.video_column if video_column is None else video_column
            return super().__call__(_videos_of_dataset(inputs, column), **kwargs)
        if video_column is not None:
            raise ValueError(
                f"video_column={video_column!r} names a column of a `datasets` data set, but the input is a "
                f"{type(inputs).__name__}: give the data set itself, or leave video_column out."
            )
        if hasattr(getattr(inputs, "source", None), "column_names"):  # a lazy column, `rows["video"]`
            return list(super().__call__(_videos_of_dataset(inputs.source, inputs.column_name), **kwargs))
        if is_one_video(inputs):  # before the iterators: a file object is one of lines
            inputs = tuple(inputs) if isinstance(inputs, list) else inputs  # the base class takes lists for several
        elif _is_sequence(inputs):
            inputs = as_video_list(inputs)
            if not inputs:
                return []
        elif isinstance(inputs, Iterator):
            inputs = (video for video in inputs)  # the base class accepts only generators
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self, support_set=None, candidate_labels=None, inference_mode=None, top_k=None, detect_unknown=None, **unknown
    ):
        check_known("The pipeline", unknown, _PARAMETERS)
        preprocess_params, forward_params, postprocess_params = {}, {}, {}
        if support_set is not None or candidate_labels is not None:
            preprocess_params["classes_given"] = True
        if support_set is not None and candidate_labels is not None:
            raise ValueError(_NOT_BOTH)
        if inference_mode is not None:
            if inference_mode not in INFERENCE_MODES:
                raise ValueError(f"inference_mode={inference_mode!r} is not one of {', '.join(INFERENCE_MODES)}.")
            forward_params["inference_mode"] = inference_mode
        if candidate_labels is not None:
            if isinstance(candidate_labels, str):
                candidate_labels = split_labels(candidate_labels)
            is_list = isinstance(candidate_labels, Iterable) and not isinstance(candidate_labels, (bytes, Mapping))
            candidate_labels = tuple(candidate_labels) if is_list else candidate_labels
            if not is_list or not all(isinstance(name, str) for name in candidate_labels):
                raise ValueError(f"candidate_labels={candidate_labels!r} must be class names: a list, or one string.")
            forward_params.update(candidate_labels=candidate_labels, support_set=None)
        if support_set is not None:
            forward_params.update(support_set=self._as_support_set(support_set), candidate_labels=None)
        if detect_unknown is not None:
            check_truth("detect_unknown", detect_unknown)
            forward_params["detect_unknown"] = detect_unknown
        if top_k is not None:
            check_positive_integer("top_k", top_k)
            postprocess_params["top_k"] = top_k
        return preprocess_params, forward_params, postprocess_params

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        # A single unreadable video is an error. Among others it is only marked, so that the others are classified.
        preprocess_params = {**preprocess_params, "raise_unreadable": not _is_episode(inputs)}
        return super().run_single(inputs, preprocess_params, forward_params, postprocess_params)

    def preprocess(self, inputs: Any, raise_unreadable: bool = False, classes_given: bool = False) -> dict[str, Any]:
        if _is_episode(inputs) and classes_given:
            raise ValueError(
                "An episode has classes of its own, so support_set and candidate_labels do not apply: leave them out, "
                "or give its query videos alone."
            )
        if _is_episode(inputs):
            return {"episode": self._preprocess_episode(inputs)}
        try:
            sampling = repeatable_sampling(self.processor)
            pixel_values = self.processor.process_videos([inputs], frame_sampling=sampling)  # (1, T, C, H, W)
            error = None
        except self.processor.unreadable_error as unreadable:
            if raise_unreadable:
                raise
            # A placeholder of the right shape, so that the video fits into a batch.
            edge = image_size(self.model.config.clip_config)
            height, width = self.processor._crop_size((edge, edge))
            pixel_values, error = torch.zeros(1, self.processor.num_frames, 3, height, width), str(unreadable)
        return {"pixel_values": pixel_values, "error": error}

    def _preprocess_episode(self, episode: Mapping[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(episode) - {"support_videos", "query_videos", "support_labels", "class_names"})
        queries = [] if episode.get("query_videos") is None else as_video_list(episode["query_videos"])
        if unknown or not queries:
            raise ValueError(
                f"An episode has 'support_videos' (or 'class_names') and 'query_videos'; unknown: {unknown}, "
                f"query videos: {len(queries)}."
            )
        support = {name: value for name, value in episode.items() if name != "query_videos"}
        class_names = episode.get("class_names")
        if class_names is None and isinstance(episode.get("support_videos"), Mapping):
            class_names = list(episode["support_videos"])
        elif class_names is None:
            labels = episode.get("support_labels")
            class_names = list(dict.fromkeys(() if labels is None else labels))
        inputs = dict(self.processor(**support, frame_sampling=repeatable_sampling(self.processor)))
        if len(class_names) < 2:
            raise ValueError(f"The episode's classes are {class_names}: at least two are needed to choose from.")
        items = [self.preprocess(video) for video in queries]
        readable = [item["pixel_values"] for item in items if item["error"] is None]
        if readable:
            inputs["query_pixel_values"] = torch.cat(readable)[None]  # (1, Q, T, C, H, W)
        return {"inputs": inputs, "class_names": class_names, "errors": [item["error"] for item in items]}

    def _forward(
        self, model_inputs, support_set=None, candidate_labels=None, inference_mode=None, detect_unknown=False
    ) -> dict[str, Any]:
        if detect_unknown and ("episode" in model_inputs or candidate_labels is not None):
            raise ValueError("detect_unknown learns from enrolled clips: enroll some, or give support_set=.")
        if detect_unknown and support_set is not None and UNKNOWN_LABEL in support_set:
            raise ValueError(
                f"A class is called {UNKNOWN_LABEL!r}, which detect_unknown uses: enroll it under another name."
            )
        if "episode" in model_inputs:
            episodes = model_inputs["episode"]
            if not isinstance(episodes, list):
                return {"episode": self._forward_episode(episodes, inference_mode)}
            return {"episode": [self._forward_episode(episode, inference_mode) for episode in episodes]}
        pixel_values, error = model_inputs["pixel_values"], model_inputs["error"]
        errors = error if isinstance(error, list) else [error]  # a list if the loader made a batch
        rows = [row for row, error in enumerate(errors) if error is None]
        if support_set is not None:
            support_set = self._snapshot_of(support_set)
        class_names, classify = self.classifier(support_set, candidate_labels, inference_mode)
        logits = torch.full((len(errors), len(class_names)), torch.nan)
        unknown = torch.full((len(errors),), torch.nan) if detect_unknown else None
        if rows:
            query_embeds = self.model.get_video_features(pixel_values[rows])
            logits[rows] = self._checked(classify(query_embeds))
            if unknown is not None:
                unknown[rows] = support_set.score_unknown(self.model, query_embeds, inference_mode).float().cpu()
        outputs = {"logits": logits, "unknown": unknown, "error": error, "class_names": class_names}
        if isinstance(error, list):
            outputs["class_names"] = [class_names] * len(errors)
        return outputs

    def classifier(self, support_set=None, candidate_labels=None, inference_mode=None):
        """Class names (N), and a function from frame features of queries (Q, T, D) to logits (Q, N)."""
        if candidate_labels is not None:
            if inference_mode not in (None, "zero_shot"):
                raise ValueError(
                    f"inference_mode={inference_mode!r} compares with clips, but candidate_labels are names alone: "
                    "enroll clips of the classes, or use 'zero_shot'."
                )
            embeds = self._embeds_of(candidate_labels)
            return list(candidate_labels), lambda query_embeds: self.model.get_text_logits(query_embeds, embeds)
        if support_set is None:
            raise ValueError(
                "There are no classes to choose from: enroll clips with enroll({class name: videos}), or give "
                "support_set=, candidate_labels=, or an episode {'support_videos': ..., 'query_videos': ...}."
            )
        snapshot = self._snapshot_of(support_set)
        return snapshot.class_names, lambda embeds: snapshot.classify(self.model, embeds, inference_mode)

    def _embeds_of(self, candidate_labels: tuple[str, ...]) -> torch.Tensor:
        """Text features (N, D) of class names; those of the last names are kept until model or processor change."""
        made_with = candidate_labels, weights_state(self.model), text_settings(self.processor)
        kept_with, embeds = self._candidate_embeds
        if kept_with != made_with:
            if len(set(candidate_labels)) < 2 or len(set(candidate_labels)) < len(candidate_labels):
                raise ValueError(
                    f"candidate_labels {list(candidate_labels)}: at least two names, all different, are needed."
                )
            embeds = encode_class_names(self.model, self.processor, candidate_labels)
            self._candidate_embeds = made_with, embeds
        return embeds

    def _snapshot_of(self, support_set):
        """A snapshot, from which an answer takes both names and scores: no other thread changes it.

        Raises `ValueError` if the processor's settings have changed since the classes were enrolled.
        """
        if not hasattr(support_set, "check") or len(support_set) < 2:  # a snapshot, or rejected later
            return support_set
        support_set.check(self.model, self.processor)
        return support_set.snapshot(self.model) if hasattr(support_set, "snapshot") else support_set  # 0.1 has none

    def _forward_episode(self, episode: dict, inference_mode: str | None) -> dict[str, Any]:
        inputs, errors = episode["inputs"], episode["errors"]
        if inference_mode is None and "support_pixel_values" not in inputs:
            inference_mode = "zero_shot"
        logits = torch.full((len(errors), len(episode["class_names"])), torch.nan)
        if "query_pixel_values" in inputs:
            rows = [row for row, error in enumerate(errors) if error is None]
            logits[rows] = self._checked(self.model(**inputs, inference_mode=inference_mode).logits[0])
        return {"logits": logits, "error": errors, "class_names": episode["class_names"]}

    def _checked(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (Q, N), on the CPU. Raises `ValueError` for NaN, which would look like scores in the answer."""
        logits = logits.float().cpu()
        check_finite("The logits", logits, [f"query video {row}" for row in range(len(logits))], self.model)
        return logits

    def postprocess(self, model_outputs: dict[str, Any], top_k: int = 5) -> list:
        if "episode" in model_outputs:
            episode = model_outputs["episode"]
            return [
                self._answer(logits, episode["class_names"], error, None, top_k)
                for logits, error in zip(episode["logits"], episode["error"], strict=True)
            ]
        names = ("logits", "class_names", "error", "unknown")
        logits, class_names, error, unknown = (model_outputs[name] for name in names)
        return self._answer(logits[0], class_names, error, unknown, top_k)

    def _answer(self, logits, class_names: list[str], error: str | None, unknown, top_k: int) -> list[dict[str, Any]]:
        if error is not None:
            return [{"label": None, "score": 0.0, "error": error}]
        answer = self.processor.post_process_video_classification(logits[None], class_names, top_k)[0]
        if unknown is None:
            return answer
        entry: dict[str, Any] = {"label": UNKNOWN_LABEL, "score": float(unknown)}
        return [entry, *answer] if entry["score"] >= UNKNOWN_THRESHOLD else [*answer, entry]

    def save_pretrained(self, save_directory: str | os.PathLike, thumbnails: bool = False, **kwargs) -> None:
        """Saves model, processor, their code and the enrolled classes: a folder for `pipeline` and the Hub.

        `thumbnails=True` also saves the pictures of the enrolled clips. Without enrolled classes, a support set that an
        earlier save left in the folder is removed: the next pipeline would load it.
        """
        check_truth("thumbnails", thumbnails)
        for name in kwargs:
            check_slip("save_pretrained", name, ["thumbnails"], TypeError)
        save_with_pipeline(self.model, self.processor, save_directory, **kwargs)
        if self.support_set is not None:
            self.support_set.save_pretrained(save_directory, thumbnails=thumbnails)
        else:
            remove_support_set(Path(save_directory))


class _Videos(TorchDataset):
    """The video column of a `datasets` data set, as a torch one: the base class takes others for a single input."""

    def __init__(self, dataset, video_column: str):
        self.dataset, self.video_column = dataset, video_column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int):
        return self.dataset[row][self.video_column]


def _videos_of_dataset(dataset, video_column: str):
    if dataset.features is not None:  # a streamed data set may not have them
        dataset = undecoded_videos(dataset, video_column)
    return _Videos(dataset, video_column) if hasattr(dataset, "__len__") else (row[video_column] for row in dataset)


def _is_sequence(inputs: Any) -> bool:
    """Several videos in memory: a list, a tuple, an array of paths, a pandas Series, ..."""
    if is_one_video(inputs) or isinstance(inputs, (Mapping, TorchDataset, Iterator)):
        return False
    return isinstance(inputs, Iterable) and hasattr(inputs, "__len__")


def split_labels(labels: str) -> list[str]:
    """Class names from one string, split at its commas, as in transformers' zero-shot pipelines."""
    return [label.strip() for label in labels.split(",") if label.strip()]


def _is_episode(inputs: Any) -> bool:
    return isinstance(inputs, Mapping) and not is_one_video(inputs)


def _for_inference(model, processor):
    """Returns a CLIP-FSAR model and its processor unchanged; makes both from a plain CLIP and its processor."""
    model_type: Any = getattr(model.config, "model_type", None)
    if model_type == CLIPFSARConfig.model_type:
        return model, processor
    why = why_no_backbone(model_type)
    if why:
        raise ValueError(
            f"The {TASK} pipeline needs a CLIP-FSAR model or a plain CLIP, but {model.name_or_path!r} is of type "
            f"{model_type!r}: {why}."
        )
    if processor is not None and not hasattr(processor, "process_videos"):
        # Made from the parts that `pipeline` has loaded: the model's name may mean another revision.
        ours = CLIPFSARProcessor(processor.image_processor, processor.tokenizer)
        settings = fit_to_plain_model(ours, model.config)
        processor = CLIPFSARProcessor(ours.image_processor, ours.tokenizer, **settings)
    if processor is None:  # the caller raises the error
        return CLIPFSARModel.from_clip(model), None
    return CLIPFSARModel.from_clip(model, num_frames=processor.num_frames), processor


def _support_set_beside(model) -> SupportSet | None:
    """The support set saved in the folder or repository the model came from, if there is one."""
    name = getattr(model, "name_or_path", "")
    if not name:
        return None
    options = getattr(model, "hub_options", {})  # a model of older code has none
    if os.path.isdir(name):
        is_there = os.path.isfile(os.path.join(name, options.get("subfolder", ""), SUPPORT_SET_NAME))
    else:
        missing_is_fine = {
            "_raise_exceptions_for_gated_repo": False,
            "_raise_exceptions_for_missing_entries": False,
            "_raise_exceptions_for_connection_errors": False,
        }
        try:
            is_there = cached_file(name, SUPPORT_SET_NAME, **options, **missing_is_fine) is not None
        except OSError:  # no such repository on the Hub
            is_there = False
    return SupportSet.from_pretrained(name, **options) if is_there else None


def save_with_pipeline(model, processor, save_directory: str | os.PathLike, **kwargs) -> None:
    """Saves a model and its processor, so that `pipeline(task, model=save_directory, trust_remote_code=True)` works.

    Calling `save_pretrained` on both does the same. This function also works for a model with older code, which does
    not know pipelines. `kwargs` are for `model.save_pretrained`.
    """
    # Does not make a pipeline, so that a model in training stays in that mode. Does not use the registry, so that code
    # that came with a checkpoint is saved as well.
    pipeline_class = FewShotVideoClassificationPipeline
    model.config.custom_pipelines = pipeline_class.in_config()
    model.save_pretrained(save_directory, **kwargs)
    processor.save_pretrained(save_directory)
    custom_object_save(pipeline_class, save_directory)


if not __package__:
    PIPELINE_REGISTRY.register_pipeline(TASK, FewShotVideoClassificationPipeline, pt_model=AutoModel)

__all__ = ["UNKNOWN_LABEL", "FewShotVideoClassificationPipeline", "save_with_pipeline", "split_labels"]
