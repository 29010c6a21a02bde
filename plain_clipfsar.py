"""Models from plain CLIP checkpoints: for inference without untrained layers, which training adds later."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

try:
    from .backbones_clipfsar import cosine_scale
except ImportError:
    if __package__:
        raise
    from backbones_clipfsar import cosine_scale

try:
    from .choices_clipfsar import check_truth
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import check_truth

try:
    from .configuration_clipfsar import ADDED_BY_TRAINING, CLIPFSARConfig
except ImportError:
    if __package__:
        raise
    from configuration_clipfsar import ADDED_BY_TRAINING, CLIPFSARConfig

# Classes here are parts of `CLIPFSARModel`, which is a PreTrainedModel.
if TYPE_CHECKING:
    from transformers import PreTrainedModel as _PartOfModel
else:
    _PartOfModel = object
logger = logging.getLogger(__name__)


class StartsFromPlainCLIP(_PartOfModel):
    """The part of `CLIPFSARModel` that loads plain CLIPs."""

    temporal_transformer: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, for_training: bool = False, **kwargs):
        """Loads as in transformers, also from the checkpoint of any plain CLIP (or SigLIP, ...).

        By default a plain CLIP is loaded for inference, without the method's untrained layers:
        `temporal_num_layers=0`, `prototype_modulation=False`, and CLIP's own scale on the cosines of zero-shot
        classification. Settings that you pass override these. `EpisodicTrainer` adds the layers, drawn from its seed.
        `for_training=True` or a `temporal_num_layers` adds them here, drawn from torch's global generator.
        """
        check_truth("for_training", for_training)
        if for_training and "config" not in kwargs:
            kwargs["for_training"] = True
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._freeze_text_tower_if_any()  # loading makes new parameters
        if model.config._is_plain_checkpoint:
            model.config._is_plain_checkpoint = False
            model._start_from_plain_clip(pretrained_model_name_or_path)
        elif for_training:
            model.add_untrained_layers()
        return loaded

    @classmethod
    def from_clip(cls, clip: Any, **settings):
        """Makes the model that `from_pretrained` would load for inference from a plain CLIP in memory.

        The weights are shared, not copied. `settings` are settings of the configuration.
        """
        plain = {"temporal_num_layers": 0, "prototype_modulation": False, "added_by_training": [*ADDED_BY_TRAINING]}
        with torch.device("meta"):
            model = cls(CLIPFSARConfig(clip_config=clip.config, **plain | settings))
        model.clip = clip
        model.video_text_scale = nn.Parameter(torch.ones(1, dtype=clip.dtype, device=clip.device))
        model.name_or_path = model.config.name_or_path = clip.name_or_path
        model._start_from_plain_clip(clip.name_or_path)
        return model.train(clip.training)

    def _start_from_plain_clip(self, name):
        scale = cosine_scale(self.clip)
        if "video_text_scale_init" in (self.config.added_by_training or ()) and scale is not None:
            with torch.no_grad():
                self.video_text_scale.fill_(scale)
        if self.config.temporal_num_layers:
            logger.warning(f"{name} is a plain CLIP: the layers of CLIP-FSAR are new and need training.")
        else:
            logger.warning(f"{name} is a plain CLIP: classifying by its frame features, without training.")

    def add_untrained_layers(self, seed: int | None = None):
        """Adds the layers that a plain CLIP was loaded without, with the method's settings. Leaves other models alone.

        Args:
            seed: Seed of the new weights; without one they come from torch's global generator. The same seed gives the
                weights that `from_pretrained(..., for_training=True)` draws after `torch.manual_seed(seed)`.
        """
        config, left_out = self.config, self.config.added_by_training or ()
        config.added_by_training = None
        if "prototype_modulation" in left_out:
            config.prototype_modulation = True
        if "video_text_scale_init" in left_out:
            nn.init.constant_(self.video_text_scale, config.video_text_scale_init)
        if "temporal_num_layers" not in left_out:
            return
        config.temporal_num_layers = 1
        with torch.device("meta"):
            layers = type(self.temporal_transformer)(config)
        layers.to_empty(device="cpu")
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            layers.apply(self._init_weights)
        self.temporal_transformer = layers.to(self.device, self.video_text_scale.dtype).train(self.training)
        self._list_parts_not_to_split()
        self._note_structure()


__all__ = ["StartsFromPlainCLIP"]
