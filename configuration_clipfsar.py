"""Configuration of CLIP-FSAR: CLIP's own configuration nested, and the few numbers the method adds to it."""

from transformers import CLIPConfig, PretrainedConfig

ALIGNMENTS = ("otam", "bi_mhm", "mean")
SUPPORT_POOLINGS = ("before", "after")
INFERENCE_MODES = ("few_shot", "zero_shot", "ensemble")


class CLIPFSARConfig(PretrainedConfig):
    """Configuration of a [`CLIPFSARModel`].

    The method is "CLIP-guided Prototype Modulating for Few-shot Action Recognition" (Wang et al., IJCV 2023,
    arXiv 2303.02982). Defaults are those of the official program's settings unless said otherwise.

    Args:
        clip_config: Sizes of the two CLIP towers, a `CLIPConfig` or its dict; the default is CLIP ViT-B/32's, as in
            transformers. `from_pretrained` of a plain CLIP checkpoint fills this in.
        num_frames: Frames sampled from a video, T (Section 4.1 of the paper). The weights do not depend on it.
        temporal_num_layers: Depth of the temporal transformer (1 officially; 0 leaves frame features as they are).
        temporal_num_heads: Attention heads of the temporal transformer; must divide CLIP's projection size.
        temporal_intermediate_size: Width of its feed-forward layer.
        temporal_attention_dropout: Dropout after the output projection of its attention (not on attention weights).
        temporal_hidden_dropout: Dropout after both layers of its feed-forward part.
        prototype_modulation: Append the class text to a support sequence before the temporal transformer (Section
            3.3 of the paper). Ours: `False` is the ablation without it, and needs no class texts for support videos.
        alignment: Distance between two frame sequences: `"otam"` (official), `"bi_mhm"` (Table 3 of the paper), or
            `"mean"`, which ignores order: the distance of the mean frames, times the number of query frames so that
            its logits have the range of the others' (ours).
        otam_smoothing: Temperature of OTAM's soft minimum; smaller is closer to the hard minimum.
        otam_bidirectional: Add the distance with the roles of query and prototype exchanged.
        cosine_epsilon: Added to the product of the norms in every cosine of the training path.
        support_pooling: For several shots, average a class's videos frame by frame `"before"` they are modulated
            (official 5-shot settings) or `"after"`. The same for one shot.
        video_text_loss_weight: Weight of the video-text contrast in the loss. 1.5 is the official value for
            Kinetics-100 and UCF101; SSv2 uses 3.0 and HMDB51 1.2.
        video_text_scale_init: Start of the learnable factor on the video-text cosines; 1.0, *not* CLIP's logit scale.
        inference_mode: What `logits` are: `"few_shot"` (minus distance), `"zero_shot"` (text only) or `"ensemble"`.
        ensemble_text_weight: Beta, the exponent of the text probability in the ensemble; 1 - beta for the visual one.
        ensemble_temperature: The ensemble's visual probability is softmax(-distance / this); 8 officially, whatever
            the number of frames.

    Raises:
        ValueError: For a value outside its range or choices; the message names both.
    """

    model_type = "clipfsar"
    sub_configs = {"clip_config": CLIPConfig}

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
        video_text_loss_weight=1.5,
        video_text_scale_init=1.0,
        inference_mode="few_shot",
        ensemble_text_weight=0.9,
        ensemble_temperature=8.0,
        **kwargs,
    ):
        if clip_config is None:
            clip_config = CLIPConfig()
        elif isinstance(clip_config, dict):
            clip_config = CLIPConfig(**clip_config)
        self.clip_config = clip_config
        self.num_frames = num_frames
        self.temporal_num_layers = temporal_num_layers
        self.temporal_num_heads = temporal_num_heads
        self.temporal_intermediate_size = temporal_intermediate_size
        self.temporal_attention_dropout = temporal_attention_dropout
        self.temporal_hidden_dropout = temporal_hidden_dropout
        self.prototype_modulation = prototype_modulation
        self.alignment = alignment
        self.otam_smoothing = otam_smoothing
        self.otam_bidirectional = otam_bidirectional
        self.cosine_epsilon = cosine_epsilon
        self.support_pooling = support_pooling
        self.video_text_loss_weight = video_text_loss_weight
        self.video_text_scale_init = video_text_scale_init
        self.inference_mode = inference_mode
        self.ensemble_text_weight = ensemble_text_weight
        self.ensemble_temperature = ensemble_temperature
        self._check_values()
        # The second Auto class that custom code of ours serves; the first is written by `register_for_auto_class`.
        auto_map = kwargs.pop("auto_map", None) or {}
        auto_map.setdefault("AutoModelForVideoClassification", "modeling_clipfsar.CLIPFSARModel")
        super().__init__(auto_map=auto_map, **kwargs)

    def _check_values(self):
        for name, choices in (
            ("alignment", ALIGNMENTS),
            ("support_pooling", SUPPORT_POOLINGS),
            ("inference_mode", INFERENCE_MODES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}.")
        for name in ("num_frames", "temporal_num_heads", "temporal_intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.temporal_num_layers < 0:
            raise ValueError(f"temporal_num_layers={self.temporal_num_layers} must be 0 or more.")
        for name in ("temporal_attention_dropout", "temporal_hidden_dropout", "ensemble_text_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1.")
        for name in ("otam_smoothing", "ensemble_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0.")
        if self.hidden_size % self.temporal_num_heads:
            raise ValueError(
                f"CLIP's projection size {self.hidden_size} is not a multiple of "
                f"temporal_num_heads={self.temporal_num_heads}."
            )

    @property
    def hidden_size(self):
        """D, the size of a frame feature and of a class text: CLIP's projection size."""
        return self.clip_config.projection_dim

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; a plain CLIP checkpoint's becomes the `clip_config` of a new one of ours."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type")
        if model_type == CLIPConfig.model_type:
            config_dict = {"model_type": cls.model_type, "clip_config": config_dict}
        elif model_type not in (None, cls.model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path!r} holds a model of type {model_type!r}; "
                f"CLIP-FSAR starts from a {cls.model_type!r} or a {CLIPConfig.model_type!r} checkpoint."
            )
        return config_dict, kwargs


CLIPFSARConfig.register_for_auto_class()

__all__ = ["CLIPFSARConfig"]
