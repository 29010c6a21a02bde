"""Configuration of CLIP-FSAR: CLIP's configuration, nested, and the settings that the method adds."""

import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, CLIPConfig, CLIPTextConfig, PretrainedConfig

try:
    from .backbones_clipfsar import ACCEPTED, check_features, config_class, feature_size, why_no_backbone
except ImportError:
    if __package__:
        raise
    from backbones_clipfsar import ACCEPTED, check_features, config_class, feature_size, why_no_backbone

try:
    from .choices_clipfsar import (
        ALIGNMENTS,
        INFERENCE_MODES,
        LEAST,
        MAX_FRAMES,
        MOST,
        SUPPORT_POOLINGS,
        check_slip,
        check_truth,
        is_number,
        nearest,
        own_alignments,
        plain,
    )
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import (
        ALIGNMENTS,
        INFERENCE_MODES,
        LEAST,
        MAX_FRAMES,
        MOST,
        SUPPORT_POOLINGS,
        check_slip,
        check_truth,
        is_number,
        nearest,
        own_alignments,
        plain,
    )

try:
    from .paths_clipfsar import check_folder
except ImportError:
    if __package__:
        raise
    from paths_clipfsar import check_folder


class CLIPResNetVisionConfig(PretrainedConfig):
    """Sizes of CLIP's modified ResNet; the default is RN50's.

    | | depths | width | image_size | projection_dim | text hidden_size (heads of 64, 12 layers) |
    |---|---|---|---|---|---|
    | RN50 | 3, 4, 6, 3 | 64 | 224 | 1024 | 512 |
    | RN101 | 3, 4, 23, 3 | 64 | 224 | 512 | 512 |
    | RN50x4 | 4, 6, 10, 6 | 80 | 288 | 640 | 640 |
    | RN50x16 | 6, 8, 18, 8 | 96 | 384 | 768 | 768 |
    | RN50x64 | 3, 15, 36, 10 | 128 | 448 | 1024 | 1024 |

    Args:
        depths: Blocks of each of the four stages.
        width: Channels after the stem.
        image_size: Height and width of the images that the attention pooling's positions were trained with.
        projection_dim: Size of an image feature.
        num_attention_heads: Heads of the attention pooling; by default one per 64 channels, as in OpenAI's models.
        num_channels: Channels of an image.
        freeze_batch_norm: Use the stored batch norm statistics in training, and do not update them. Officially
            `False`: training then normalises by the batch.
    """

    model_type = "clip_resnet_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        depths=(3, 4, 6, 3),
        width=64,
        image_size=224,
        projection_dim=1024,
        num_attention_heads=None,
        num_channels=3,
        freeze_batch_norm=False,
        **kwargs,
    ):
        self.depths = list(depths)
        self.width = width
        self.image_size = image_size
        self.projection_dim = projection_dim
        self.num_attention_heads = (
            max(1, self.hidden_size // 64) if num_attention_heads is None else num_attention_heads
        )
        self.num_channels = num_channels
        self.freeze_batch_norm = freeze_batch_norm
        super().__init__(**kwargs)
        check_truth("freeze_batch_norm", freeze_batch_norm)
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"depths={self.depths}: there are four stages of at least one block each.")
        if width < 2 or width % 2:
            raise ValueError(f"width={width} must be even and at least 2: the stem begins with half of it.")
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"The last stage's {self.hidden_size} channels are not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if image_size < self.stride or image_size % self.stride:
            raise ValueError(f"image_size={image_size} must be a multiple of {self.stride}, the stride of the tower.")

    @property
    def hidden_size(self):
        """Channels after the last of four stages: the first has 4 times the stem's, each later one doubles."""
        return 32 * self.width

    @property
    def stride(self):
        """Pixels per position of the last feature map: the stem divides by 4, three stages by 2 each."""
        return 32


class CLIPResNetConfig(PretrainedConfig):
    """Configuration of a CLIP with a ResNet as visual tower; `CLIPConfig` is for ViTs. The default is RN50's.

    Args:
        text_config: A `CLIPTextConfig` or its dict.
        vision_config: A [`CLIPResNetVisionConfig`] or its dict.
        projection_dim: Size of image and text features; the visual tower's if not given.
        logit_scale_init_value: Initial value of CLIP's own logit scale.
    """

    model_type = "clip_resnet"
    sub_configs = {"text_config": CLIPTextConfig, "vision_config": CLIPResNetVisionConfig}

    def __init__(
        self, text_config=None, vision_config=None, projection_dim=None, logit_scale_init_value=2.6592, **kwargs
    ):
        if text_config is None or isinstance(text_config, dict):
            text_config = CLIPTextConfig(**(text_config or {}))
        if vision_config is None or isinstance(vision_config, dict):
            vision_config = CLIPResNetVisionConfig(**(vision_config or {}))
        if projection_dim is not None:
            vision_config.projection_dim = projection_dim
        self.text_config = text_config
        self.vision_config = vision_config
        self.projection_dim = vision_config.projection_dim
        self.logit_scale_init_value = logit_scale_init_value
        super().__init__(**kwargs)


def _as_clip_config(clip_config):
    """The backbone's configuration, made from an object, its dict, or None for CLIP's default."""
    if clip_config is None:
        return CLIPConfig()
    is_dict = isinstance(clip_config, dict)
    model_type = clip_config.get("model_type", CLIPConfig.model_type) if is_dict else clip_config.model_type
    why = why_no_backbone(model_type)
    if why:
        raise ValueError(f"clip_config is of type {model_type!r}, but {why}. CLIP-FSAR is built on {ACCEPTED}.")
    if not is_dict:
        return clip_config
    made_by = CLIPResNetConfig if model_type == CLIPResNetConfig.model_type else config_class(model_type)
    assert made_by is not None  # `why_no_backbone` has looked for it
    return made_by(**clip_config)


# Backbone settings of other versions of transformers. Each resembles a setting of this version, but is no typing error.
_SETTINGS_OF_OTHER_VERSIONS = {
    *("tie_encoder_decoder", "sep_token_id", "forced_bos_token_id", "forced_eos_token_id", "projection_dim"),
    *("projection_size", "text_projection_dim", "vision_projection_dim", "text_config_dict", "vision_config_dict"),
    *("logit_scale_init_value", "logit_bias_init_value", "initializer_range", "initializer_factor"),
}


def _read_settings(made_by: Any) -> frozenset[str]:
    """Names that a configuration class knows: its fields, arguments and attributes."""
    names = {*made_by.attribute_map}
    for base in made_by.__mro__:
        names |= {*vars(base), *vars(base).get("__annotations__", ())}
        if "__init__" in vars(base):
            names |= set(inspect.signature(base.__init__).parameters)
    return frozenset(name for name in names if not name.startswith("_"))


# each class is read once
_settings_of: Callable[[type], frozenset[str]] = functools.cache(_read_settings)


def _check_names(clip_config, where: str = "clip_config"):
    """Raises `TypeError` for a backbone setting that resembles a known one; transformers accepts any name."""
    values = vars(clip_config)
    towers = {name: value for name, value in values.items() if isinstance(value, PretrainedConfig)}
    known = _settings_of(type(clip_config))
    known_anywhere = known.union(*(_settings_of(type(tower)) for tower in towers.values()))
    for name in values:
        if name not in known and name not in _SETTINGS_OF_OTHER_VERSIONS and not name.startswith("_"):
            check_slip(where, name, known_anywhere, TypeError)
    for name, tower in towers.items():
        _check_names(tower, f"{where}.{name}")


# --- values -----------------------------------------------------------------------------------------------------------


def _one_of(*choices):
    def check(name, value):
        if value not in choices:
            hint = nearest(value, choices).removesuffix(".") if isinstance(value, str) else ""
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(str, choices))}{hint or '.'}")

    return check


def _whole(least: int, most: int):
    def check(name, value):
        limit = "must be 0 or more" if least == 0 else f"must be at least {least}"
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
            raise ValueError(f"{name}={value!r} {limit}, and a whole number.")
        if int(value) > most:
            raise ValueError(f"{name}={value!r} must be at most {most}.")

    return check


def _number(limit: str, is_allowed):
    def check(name, value):
        if not (is_number(value) and is_allowed(value)):
            raise ValueError(f"{name}={value!r} must {limit}, and be a finite number.")
        if value and not LEAST <= abs(value) <= MOST:
            raise ValueError(
                f"{name}={value!r} must lie between {LEAST:g} and {MOST:g}: the model computes in float32, where it "
                "would become 0 or infinite."
            )

    return check


_share = _number("lie between 0 and 1", lambda value: 0 <= value <= 1)
_positive = _number("be greater than 0", lambda value: value > 0)
_not_negative = _number("be 0 or more", lambda value: value >= 0)


def _alignment(name, value):
    _one_of(*ALIGNMENTS, *own_alignments)(name, value)


def _tuple_sizes(name, value):
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name}={value!r} must be a list of one or more tuple sizes, such as [2, 3].")
    for size in value:
        _whole(1, 8)(name, size)


_CHECKS = {
    "num_frames": _whole(1, MAX_FRAMES),
    "temporal_num_layers": _whole(0, 1000),
    "temporal_num_heads": _whole(1, 10_000),
    "temporal_intermediate_size": _whole(1, 1_000_000),
    "temporal_attention_dropout": _share,
    "temporal_hidden_dropout": _share,
    "prototype_modulation": check_truth,
    "alignment": _alignment,
    "otam_smoothing": _positive,
    "otam_bidirectional": check_truth,
    "cosine_epsilon": _not_negative,
    "support_pooling": _one_of(*SUPPORT_POOLINGS),
    "chamfer_tuple_size": _whole(1, 8),
    "trx_size": _whole(1, 1_000_000),
    "trx_cardinalities": _tuple_sizes,
    "head_dropout": _share,
    "num_base_classes": _whole(0, 1_000_000),
    "temporal_coherence_weight": _not_negative,
    "temporal_coherence_window": _whole(0, MAX_FRAMES),
    "temporal_coherence_balance": _positive,
    "video_text_loss_weight": _not_negative,
    "video_text_scale_init": _positive,
    "inference_mode": _one_of(*INFERENCE_MODES),
    "ensemble_text_weight": _share,
    "ensemble_temperature": _positive,
}


# Settings that are useful only after training. For inference, a plain CLIP is loaded without them.
ADDED_BY_TRAINING = ("temporal_num_layers", "prototype_modulation", "video_text_scale_init")


class CLIPFSARConfig(PretrainedConfig):
    """Configuration of a [`CLIPFSARModel`].

    The method is "CLIP-guided Prototype Modulating for Few-shot Action Recognition" (Wang et al., IJCV 2023,
    arXiv 2303.02982). Defaults are the official program's unless said otherwise.

    Args:
        clip_config: Configuration of the backbone, or its dict with a `model_type`. The backbone can be any
            transformers model with `get_image_features` and `get_text_features`, including your own (see
            `backbones_clipfsar`). The default is CLIP ViT-B/32. `from_pretrained` fills this in for a plain checkpoint.
        num_frames: Frames sampled from a video, T (Section 4.1 of the paper). The weights do not depend on it.
        temporal_num_layers: Depth of the temporal transformer (officially 1; 0 leaves frame features unchanged).
        temporal_num_heads: Attention heads of the temporal transformer; must divide CLIP's projection size.
        temporal_intermediate_size: Width of the temporal transformer's feed-forward layer.
        temporal_attention_dropout: Dropout after the output projection of its attention, not on attention weights.
        temporal_hidden_dropout: Dropout after both layers of its feed-forward part.
        prototype_modulation: Append the class text to a support sequence before the temporal transformer (Section
            3.3 of the paper). `False` is our ablation: it needs no class texts for support videos.
        alignment: Distance between two frame sequences: `"otam"` (official), `"bi_mhm"` (Table 3 of the paper) or
            `"mean"` (ours). `"mean"` ignores order: it is the distance of the mean frames. It is multiplied by the
            number of query frames, so that its logits have the same range as the others. Three more compare a query
            with each shot of a class, and ignore `support_pooling`: `"chamfer"`, and `"trx"` and `"hyrsm"`, which have
            weights of their own (see `heads_clipfsar`). `register_head` adds names.
        otam_smoothing: Temperature of OTAM's soft minimum; smaller is closer to the hard minimum.
        otam_bidirectional: Add the distance with the roles of query and prototype exchanged.
        cosine_epsilon: Added to the product of the norms in every cosine of the training path.
        support_pooling: For several shots, average a class's videos frame by frame `"before"` they are modulated
            (official 5-shot settings) or `"after"`. With one shot both are the same.
        chamfer_tuple_size: Frames in a tuple of `"chamfer"`.
        trx_size: Size of the keys and values of `"trx"`.
        trx_cardinalities: Frames in the tuples of `"trx"`; the distances of several sizes are averaged.
        head_dropout: Dropout of `"trx"` and `"hyrsm"` after the position code. The attention heads of `"hyrsm"` are
            `temporal_num_heads`, and its dropout after attention is `temporal_attention_dropout`.
        num_base_classes: With `"hyrsm"`: classes of a classifier of single frames, whose cross-entropy is added in
            training; `support_base_labels` and `query_base_labels` are its labels. 0 leaves it out.
        temporal_coherence_weight: With `"hyrsm"`: weight of the temporal coherence loss, which makes it HyRSM++.
        temporal_coherence_window: Frames at most this far apart should look alike.
        temporal_coherence_balance: How slowly the wanted difference grows beyond the window.
        video_text_loss_weight: Weight of the video-text contrast in the loss. 1.5 is the official value for
            Kinetics-100 and UCF101; SSv2 uses 3.0 and HMDB51 1.2.
        video_text_scale_init: Initial value of the learnable factor on video-text cosines; 1.0, *not* CLIP's scale.
        inference_mode: Source of `logits`: `"few_shot"` (minus distance), `"zero_shot"` (text only) or `"ensemble"`.
        ensemble_text_weight: Beta, the exponent of the ensemble's text probability; the visual one has 1 - beta.
        ensemble_temperature: The ensemble's visual probability is softmax(-distance / this); officially 8 for any
            number of frames.
        added_by_training: Names of the settings that a plain CLIP was loaded without, for inference.
            `EpisodicTrainer` restores them. `from_pretrained` fills this in for a plain CLIP.

    Raises:
        ValueError: For a value outside its range or choices; the message names both.
    """

    model_type = "clipfsar"
    sub_configs = {"clip_config": AutoConfig}
    # In an evaluation, transformers' Trainer gathers only the logits: the other outputs are large or vary in shape.
    keys_to_ignore_at_inference = [
        *("few_shot_loss", "video_text_loss", "video_text_logits", "prototypes", "support_embeds", "query_embeds"),
        *("class_embeds", "hidden_states", "attentions", "prototype_attentions", "query_attentions"),
        "head_loss",
    ]

    def __init__(
        self,
        clip_config=None,
        num_frames=8,
        temporal_num_layers=1,
        temporal_num_heads=8,
        temporal_intermediate_size=2048,
        temporal_attention_dropout=0.2,
        temporal_hidden_dropout=0.05,
        prototype_modulation=True,
        alignment="otam",
        otam_smoothing=0.5,
        otam_bidirectional=True,
        cosine_epsilon=0.01,
        support_pooling="before",
        chamfer_tuple_size=3,
        trx_size=1152,
        trx_cardinalities=(2, 3),
        head_dropout=0.1,
        num_base_classes=0,
        temporal_coherence_weight=0.0,
        temporal_coherence_window=2,
        temporal_coherence_balance=4.0,
        video_text_loss_weight=1.5,
        video_text_scale_init=1.0,
        inference_mode="few_shot",
        ensemble_text_weight=0.9,
        ensemble_temperature=8.0,
        added_by_training=None,
        **kwargs,
    ):
        self.clip_config = _as_clip_config(clip_config)
        self.num_frames = num_frames
        self.temporal_num_layers = temporal_num_layers
        self.temporal_num_heads = temporal_num_heads
        self.temporal_intermediate_size = temporal_intermediate_size
        self.temporal_attention_dropout = temporal_attention_dropout
        self.temporal_hidden_dropout = temporal_hidden_dropout
        self.prototype_modulation = prototype_modulation
        self.alignment = alignment
        self.otam_smoothing, self.otam_bidirectional = otam_smoothing, otam_bidirectional
        self.cosine_epsilon = cosine_epsilon
        self.support_pooling = support_pooling
        self.chamfer_tuple_size, self.head_dropout = chamfer_tuple_size, head_dropout
        self.trx_size, self.trx_cardinalities = trx_size, trx_cardinalities
        self.num_base_classes, self.temporal_coherence_weight = num_base_classes, temporal_coherence_weight
        self.temporal_coherence_window = temporal_coherence_window
        self.temporal_coherence_balance = temporal_coherence_balance
        self.video_text_loss_weight = video_text_loss_weight
        self.video_text_scale_init = video_text_scale_init
        self.inference_mode = inference_mode
        self.ensemble_text_weight = ensemble_text_weight
        self.ensemble_temperature = ensemble_temperature
        self.added_by_training = added_by_training
        self._is_plain_checkpoint = kwargs.pop("_is_plain_checkpoint", False)
        self._finish(kwargs)

    def _finish(self, kwargs):
        """Checks all values and names, and hands the others to transformers."""
        self._check_values()
        for name in kwargs:
            self._check_name(name, TypeError)
        # The second Auto class that our remote code serves; `register_for_auto_class` writes the first.
        auto_map = kwargs.pop("auto_map", None) or {}
        auto_map.setdefault("AutoModelForVideoClassification", "modeling_clipfsar.CLIPFSARModel")
        super().__init__(auto_map=auto_map, **kwargs)

    def __setattr__(self, name, value):
        # Checked here because transformers sets keyword arguments of `from_pretrained` after `__init__`.
        if name in _CHECKS:
            _CHECKS[name](name, value)
            value = plain(value)
        elif name == "clip_config" and isinstance(value, PretrainedConfig):
            _check_names(value)
        else:
            self._check_name(name, AttributeError)
        super().__setattr__(name, value)

    def _check_name(self, name: str, error: type[Exception]):
        """Raises `error` for a name that resembles one of our settings. transformers has many others: they pass."""
        if not name.startswith("_") and name not in _settings_of(type(self)):
            check_slip(type(self).__name__, name, _CHECKS, error)

    def _check_values(self):
        """Raises `ValueError` for invalid values and for values that do not fit each other.

        Making a model checks again, because values may have been set one by one.
        """
        for name, check in _CHECKS.items():
            check(name, getattr(self, name))
        check_features(self.clip_config)
        if self.hidden_size % self.temporal_num_heads:
            raise ValueError(
                f"CLIP's projection size {self.hidden_size} is not a multiple of "
                f"temporal_num_heads={self.temporal_num_heads}."
            )
        sizes = {"chamfer": "chamfer_tuple_size", "trx": "trx_cardinalities"}
        if self.alignment in sizes:
            name = sizes[self.alignment]
            value = getattr(self, name)
            least = max(value) if isinstance(value, list) else value
            if least > self.num_frames:
                raise ValueError(f"{name}={value!r} needs at least {least} frames, but num_frames={self.num_frames}.")

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers; keyword arguments are checked like any other value."""
        if not kwargs.get("return_unused_kwargs"):  # otherwise the caller uses the names that are not ours
            for name in kwargs:
                check_slip(cls.__name__, name, _CHECKS, TypeError)
        made = super().from_dict(config_dict, **kwargs)
        (made[0] if isinstance(made, tuple) else made)._check_values()
        return made

    @property
    def hidden_size(self):
        """D, the size of a frame feature and of a class text: CLIP's projection size, the width of SigLIP's tower."""
        return feature_size(self.clip_config)

    def get_text_config(self, decoder=None, encoder=None):
        """The text tower's, in which transformers changes the size of the vocabulary."""
        return self.clip_config.get_text_config(decoder=decoder, encoder=encoder)

    def to_dict(self):
        """As in transformers, without the mark of a plain checkpoint: it is for loading only."""
        values = super().to_dict()
        values.pop("_is_plain_checkpoint", None)
        return values

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, for_training=False, **kwargs):
        """As in transformers; a plain CLIP's configuration becomes the `clip_config` of a new CLIP-FSAR one.

        By default the new one is for inference and has no untrained layers. `for_training=True` or a
        `temporal_num_layers` among the keyword arguments adds the method's layers.
        """
        check_truth("for_training", for_training)
        check_folder(pretrained_model_name_or_path)
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type")
        if model_type in (None, cls.model_type):
            return config_dict, kwargs
        why = why_no_backbone(model_type)
        if why:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} holds a model of type {model_type!r}, but {why}. CLIP-FSAR "
                f"starts from a CLIP-FSAR checkpoint or from {ACCEPTED}."
            )
        plain = {"model_type": cls.model_type, "clip_config": config_dict, "_is_plain_checkpoint": True}
        if not for_training and "temporal_num_layers" not in kwargs:
            left_out = [name for name in ADDED_BY_TRAINING if name not in kwargs]
            plain |= {"temporal_num_layers": 0, "added_by_training": left_out}
            plain["prototype_modulation"] = False
        return plain, kwargs


CLIPFSARConfig.register_for_auto_class()

if not __package__:  # imported as a library; remote code finds them through `_as_clip_config`
    AutoConfig.register(CLIPResNetVisionConfig.model_type, CLIPResNetVisionConfig, exist_ok=True)
    AutoConfig.register(CLIPResNetConfig.model_type, CLIPResNetConfig, exist_ok=True)

__all__ = ["CLIPFSARConfig", "CLIPResNetConfig", "CLIPResNetVisionConfig"]
