"""CLIP-FSAR: few-shot action recognition in videos. Every public name is imported when it is first used."""

import importlib
import os
import sys
from typing import TYPE_CHECKING

from clipfsar.first_seconds import guard_first_seconds

guard_first_seconds()

__version__ = "0.2.0"

# The metric's folder, for `evaluate.load(clipfsar.EPISODIC_ACCURACY)`.
EPISODIC_ACCURACY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "metrics", "episodic_accuracy")

_NAMES_OF_MODULES = {
    "alignment_clipfsar": ("bi_mhm_distance", "frame_cosine_similarity", "otam_distance"),
    "clipfsar.checkpoints.push_to_hub": ("push_folder",),
    "clipfsar.data.sources": ("labelled_clips",),
    "clipfsar.data.splits": ("load_video_splits",),
    "clipfsar.data.video_split": ("VideoSplit",),
    "clipfsar.evaluation.encoding": ("VideoEncoder",),
    "clipfsar.evaluation.evaluate_model": ("evaluate_episodes",),
    "clipfsar.evaluation.feature_store": ("FeatureStore",),
    "clipfsar.evaluation.protocol": ("Protocol",),
    "clipfsar.evaluation.results": ("EpisodicResult", "EvaluationResults"),
    "clipfsar.inference.load_model": ("load_model",),
    "clipfsar.inference.quantized": ("quantize_int8",),
    "clipfsar.training.arguments": ("EpisodicTrainingArguments",),
    "clipfsar.training.trainer": ("EpisodicTrainer",),
    "configuration_clipfsar": ("CLIPFSARConfig", "CLIPResNetConfig", "CLIPResNetVisionConfig"),
    "enrolling_clipfsar": ("encode_class_names",),
    "episodes_clipfsar": ("EpisodeCollator", "EpisodeDataset", "EpisodeRows", "EpisodeSampler"),
    "explanation_clipfsar": ("Explanation",),
    "heads_clipfsar": ("Head", "class_means", "register_head"),
    "modeling_clipfsar": ("CLIPFSARModel", "CLIPFSAROutput"),
    "pipeline_clipfsar": ("FewShotVideoClassificationPipeline",),
    "processing_clipfsar": ("CLIPFSARProcessor", "SampledVideos"),
    "resnet_clipfsar": ("CLIPResNetModel",),
    "review_clipfsar": ("SupportSetReview",),
    "suggestion_clipfsar": ("Suggestion",),
    "support_set_clipfsar": ("SupportSet",),
    "tuning_clipfsar": ("Tuning",),
    "video_clipfsar": ("VideoReadError", "read_video_frames", "sample_frame_indices"),
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names}


def __getattr__(name: str):
    if name in _MODULE_OF_NAME:
        value = getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)
        globals()[name] = value  # Python then calls this function only once per name
        if "transformers" in sys.modules:  # `pipeline("few-shot-video-classification", model=...)` comes next
            importlib.import_module("pipeline_clipfsar")  # registers the task
        return value
    message = f"module {__name__!r} has no attribute {name!r}"
    if not name.startswith("_"):
        import difflib

        meant = difflib.get_close_matches(name, __all__, n=1)
        message += f": did you mean {meant[0]!r}?" if meant else ""
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF_NAME})


if TYPE_CHECKING:
    from alignment_clipfsar import bi_mhm_distance, frame_cosine_similarity, otam_distance
    from clipfsar.checkpoints.push_to_hub import push_folder
    from clipfsar.data.sources import labelled_clips
    from clipfsar.data.splits import load_video_splits
    from clipfsar.data.video_split import VideoSplit
    from clipfsar.evaluation.encoding import VideoEncoder
    from clipfsar.evaluation.evaluate_model import evaluate_episodes
    from clipfsar.evaluation.feature_store import FeatureStore
    from clipfsar.evaluation.protocol import Protocol
    from clipfsar.evaluation.results import EpisodicResult, EvaluationResults
    from clipfsar.inference.load_model import load_model
    from clipfsar.inference.quantized import quantize_int8
    from clipfsar.training.arguments import EpisodicTrainingArguments
    from clipfsar.training.trainer import EpisodicTrainer
    from configuration_clipfsar import CLIPFSARConfig, CLIPResNetConfig, CLIPResNetVisionConfig
    from enrolling_clipfsar import encode_class_names
    from episodes_clipfsar import EpisodeCollator, EpisodeDataset, EpisodeRows, EpisodeSampler
    from explanation_clipfsar import Explanation
    from heads_clipfsar import Head, class_means, register_head
    from modeling_clipfsar import CLIPFSARModel, CLIPFSAROutput
    from pipeline_clipfsar import FewShotVideoClassificationPipeline
    from processing_clipfsar import CLIPFSARProcessor, SampledVideos
    from resnet_clipfsar import CLIPResNetModel
    from review_clipfsar import SupportSetReview
    from suggestion_clipfsar import Suggestion
    from support_set_clipfsar import SupportSet
    from tuning_clipfsar import Tuning
    from video_clipfsar import VideoReadError, read_video_frames, sample_frame_indices

__all__ = [
    "EPISODIC_ACCURACY",
    "CLIPFSARConfig",
    "CLIPFSARModel",
    "CLIPFSAROutput",
    "CLIPFSARProcessor",
    "CLIPResNetConfig",
    "CLIPResNetModel",
    "CLIPResNetVisionConfig",
    "EpisodeCollator",
    "EpisodeDataset",
    "EpisodeRows",
    "EpisodeSampler",
    "EpisodicResult",
    "EpisodicTrainer",
    "EpisodicTrainingArguments",
    "EvaluationResults",
    "Explanation",
    "FeatureStore",
    "FewShotVideoClassificationPipeline",
    "Head",
    "Protocol",
    "SampledVideos",
    "Suggestion",
    "SupportSet",
    "SupportSetReview",
    "Tuning",
    "VideoEncoder",
    "VideoReadError",
    "VideoSplit",
    "__version__",
    "bi_mhm_distance",
    "class_means",
    "encode_class_names",
    "evaluate_episodes",
    "frame_cosine_similarity",
    "labelled_clips",
    "load_model",
    "load_video_splits",
    "otam_distance",
    "push_folder",
    "quantize_int8",
    "read_video_frames",
    "register_head",
    "sample_frame_indices",
]
