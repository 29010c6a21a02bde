"""CLIP-FSAR: temporal alignment of videos, prototypes modulated by class texts, on top of CLIP.

This file holds the model and its output; the model's parts are in sibling modules. Shapes use the same letters:
B episodes, N classes (ways), S support videos, Q query videos, T frames, D feature size, K base classes.
"""

import contextlib
import inspect
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, TransformersKwargs

try:
    from .alignment_clipfsar import bi_mhm_distance, frame_cosine_similarity, otam_distance
except ImportError:
    if __package__:
        raise
    from alignment_clipfsar import bi_mhm_distance, frame_cosine_similarity, otam_distance

try:
    from .backbones_clipfsar import (
        VISION_MODULES,
        has_texts_of_one_length,
        image_inputs,
        pooled_output,
        vocabulary_size,
    )
except ImportError:
    if __package__:
        raise
    from backbones_clipfsar import VISION_MODULES, has_texts_of_one_length, image_inputs, pooled_output, vocabulary_size

try:
    from .choices_clipfsar import INFERENCE_MODES, check_known, is_number
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import INFERENCE_MODES, check_known, is_number

try:
    from .comparing_clipfsar import ComparesVideos, comparable
except ImportError:
    if __package__:
        raise
    from comparing_clipfsar import ComparesVideos, comparable

try:
    from .configuration_clipfsar import CLIPFSARConfig
except ImportError:
    if __package__:
        raise
    from configuration_clipfsar import CLIPFSARConfig

try:
    from .heads_clipfsar import make_head
except ImportError:
    if __package__:
        raise
    from heads_clipfsar import make_head

try:
    from .hub_clipfsar import HubFolder, check_is_episode
except ImportError:
    if __package__:
        raise
    from hub_clipfsar import HubFolder, check_is_episode

try:
    from .labels_clipfsar import (
        check_answer,
        check_base_labels,
        check_episode,
        check_features,
        check_given_once,
        check_labels,
        check_pixel_values,
        check_rows,
        check_shape,
        check_some_label,
        check_support_labels,
        checked_tokens,
        whole_labels,
    )
except ImportError:
    if __package__:
        raise
    from labels_clipfsar import (
        check_answer,
        check_base_labels,
        check_episode,
        check_features,
        check_given_once,
        check_labels,
        check_pixel_values,
        check_rows,
        check_shape,
        check_some_label,
        check_support_labels,
        checked_tokens,
        whole_labels,
    )

try:
    from .offloading_clipfsar import loaded_weight
except ImportError:
    if __package__:
        raise
    from offloading_clipfsar import loaded_weight

try:
    from .plain_clipfsar import StartsFromPlainCLIP
except ImportError:
    if __package__:
        raise
    from plain_clipfsar import StartsFromPlainCLIP

try:
    from .resnet_clipfsar import CLIPResNetModel
except ImportError:
    if __package__:
        raise
    from resnet_clipfsar import CLIPResNetModel

try:
    from .temporal_clipfsar import CLIPFSARTemporalTransformer
except ImportError:
    if __package__:
        raise
    from temporal_clipfsar import CLIPFSARTemporalTransformer


_NO_CONTRAST = (
    "The loss leaves out the video-text contrast: there are base labels, but no base_class_embeds. Encode the class "
    "names once, base_class_embeds = model.get_class_features(**processor.tokenize_classes(dataset.class_names)) under "
    "torch.no_grad(), and give them to each call; or set config.video_text_loss_weight = 0."
)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switches off dropout and gradients. On exit, even after an exception, each module gets its mode back.

    In a generator, leave this context before each `yield`: otherwise gradients are off for the caller as well.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


@dataclass
class CLIPFSAROutput(ModelOutput):
    """Output of [`CLIPFSARModel`] for a batch of episodes.

    Args:
        loss: `few_shot_loss + config.video_text_loss_weight * video_text_loss + head_loss`; a loss that is None is left
            out.
        logits: (B, Q, N); `softmax(logits)` gives the class probabilities in every inference mode.
        few_shot_loss: Cross-entropy of minus the distances. Without support videos, cross-entropy of `logits`.
        video_text_loss: Cross-entropy of `video_text_logits` over the base classes.
        video_text_logits: (B, S + Q, K), support videos before query videos.
        prototypes: (B, N, T, D), after the temporal transformer.
        support_embeds: (B, S, T, D), frame features of the visual tower; you can pass them to `forward` again.
        query_embeds: (B, Q, T, D), likewise.
        class_embeds: (B, N, D), projected text features; likewise.
        hidden_states: On request: hidden states of the visual tower, one tensor per layer (videos * T, tokens, width).
            The support videos of all episodes come before the query videos.
        attentions: On request: attention weights of the visual tower (eager attention only), in the same order.
        prototype_attentions: On request: attention weights of the temporal transformer (eager attention only), one
            tensor per layer, (B, N, heads, T + 1, T + 1): frames, then the class text. Without prototype modulation
            there is no text. With `support_pooling="after"` the second dimension is support videos, not classes.
        query_attentions: On request: the same for queries, (B, Q, heads, T, T).
        head_loss: In training, what the head of `config.alignment` adds to the loss, such as HyRSM++'s coherence.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    few_shot_loss: torch.Tensor | None = None
    video_text_loss: torch.Tensor | None = None
    video_text_logits: torch.Tensor | None = None
    prototypes: torch.Tensor | None = None
    support_embeds: torch.Tensor | None = None
    query_embeds: torch.Tensor | None = None
    class_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    prototype_attentions: tuple[torch.Tensor, ...] | None = None
    query_attentions: tuple[torch.Tensor, ...] | None = None
    head_loss: torch.Tensor | None = None


class CLIPFSARPreTrainedModel(PreTrainedModel):
    config_class = CLIPFSARConfig
    # A plain CLIP checkpoint loads into `self.clip`, and ours loads into a plain CLIPModel.
    base_model_prefix = "clip"
    main_input_name = "query_pixel_values"
    input_modalities = ("video", "text")
    # The loss is a mean over a batch: transformers' Trainer must divide it when it accumulates gradients.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["CLIPFSARTemporalLayer"]  # the backbone's are added to these

    @torch.no_grad()
    def _init_weights(self, module):
        """Initialises our layers as PyTorch does, like the official program; CLIP's parts initialise themselves."""
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = module.in_features**-0.5
                nn.init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, CLIPFSARModel):
            nn.init.constant_(module.video_text_scale, self.config.video_text_scale_init)


class CLIPFSARModel(HubFolder, StartsFromPlainCLIP, ComparesVideos, CLIPFSARPreTrainedModel):
    """CLIP with a temporal transformer, text-modulated prototypes and an alignment: episodes in, class logits out.

    See `from_pretrained` for how to load a plain CLIP."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__(config)
        config._check_values()
        is_resnet = config.clip_config.model_type == CLIPResNetModel.config_class.model_type
        self.clip = (CLIPResNetModel._from_config if is_resnet else AutoModel.from_config)(config.clip_config)
        self.temporal_transformer = CLIPFSARTemporalTransformer(config)
        self.comparison_head = make_head(config)
        if self.comparison_head is not None:  # the name is no part of a backbone, unlike SigLIP's "head"
            self._keep_in_fp32_modules_strict = {"comparison_head"}  # videos are compared in float32
        self.video_text_scale = nn.Parameter(torch.full((1,), float(config.video_text_scale_init)))
        getter = inspect.signature(self.clip.get_image_features).parameters
        self._visual_inputs = {*getter, *TransformersKwargs.__annotations__, "return_dict"} - {"pixel_values"}
        self.post_init()
        self._list_parts_not_to_split()
        self._note_structure()
        self._freeze_text_tower_if_any()
        if config._is_plain_checkpoint:  # `from_pretrained` logs one line about them
            self._keys_to_ignore_on_load_missing = {r"^temporal_transformer\.", r"^video_text_scale$"}

    def _list_parts_not_to_split(self):
        """Keeps in `_no_split_modules` only the classes that occur in the model: accelerate's FSDP policy rejects the
        others."""
        names = {type(module).__name__ for module in self.modules()}
        self._no_split_modules: Any = {*type(self)._no_split_modules, *self._no_split_modules} & names

    def train(self, mode: bool = True) -> "CLIPFSARModel":
        """Sets the mode as in PyTorch; `train()` also freezes the text tower, as the method does.

        A new model starts with a frozen text tower. To train it, unfreeze it after each call of `train()`.
        """
        if mode:
            self.freeze_text_tower()
        return super().train(mode)

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's token embeddings, as in transformers; `clip.vision_model` has the patch embeddings."""
        tower: Any = getattr(self.clip, "text_model", None)
        if not hasattr(tower, "get_input_embeddings"):  # a custom backbone; transformers handles this error
            raise NotImplementedError(f"The text tower of {type(self.clip).__name__} has no get_input_embeddings.")
        return tower.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.get_input_embeddings()  # raises if there are none
        self.clip.text_model.set_input_embeddings(value)

    def freeze_text_tower(self):
        """Freezes CLIP's text tower and CLIP's own logit scale: the method trains neither.

        Raises `ValueError` for a custom backbone whose visual parts are not named as in `VISION_MODULES`.
        """
        parameters = dict(self.clip.named_parameters())
        text_names = [name for name in parameters if not name.startswith(VISION_MODULES)]
        if len(text_names) == len(parameters):
            raise ValueError(
                f"{type(self.clip).__name__} has no part called {' or '.join(VISION_MODULES)}, so nothing would be "
                "left to train: call its visual tower vision_model, and a projection after it visual_projection."
            )
        for name in text_names:
            parameters[name].requires_grad_(False)

    def _freeze_text_tower_if_any(self):
        """Freezes the text tower before DistributedDataParallel wraps the model and registers what needs gradients."""
        with contextlib.suppress(ValueError):  # visual parts of other names; `train()` raises this error
            self.freeze_text_tower()

    def get_video_features(self, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
        """Projected, not normalised frame features of the visual tower, (..., T, C, H, W) -> (..., T, D).

        The weights do not depend on T: it may differ from the configuration's, and between support and query videos.
        """
        kwargs.pop("return_dict", None)  # features are a tensor
        return self._encode_frames(pixel_values, **kwargs)[0]

    def _encode_frames(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        if pixel_values.dim() < 4:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; (..., frames, channels, height, width) is needed."
            )
        if kwargs:
            check_known("The visual tower", kwargs, self._visual_inputs)
        frames = pixel_values.flatten(0, -4).to(self.clip.dtype)
        frames, extra = image_inputs(self.clip.config, frames)
        kwargs = extra | kwargs | self._getter_options
        outputs = pooled_output(self.clip.get_image_features(frames, **kwargs), self.clip.config)
        return outputs.pooler_output.unflatten(0, pixel_values.shape[:-3]), outputs

    @property
    def _getter_options(self) -> dict:
        """Arguments that make CLIP's getters return an output if CLIP's configuration asks for tuples. Otherwise empty:
        a custom getter may not know `return_dict`."""
        return {"return_dict": True} if getattr(self.clip.config, "return_dict", True) is False else {}

    def get_class_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Projected, not normalised text features, tokens (..., L) -> (..., D).

        SigLIP's text towers take no mask. The processor pads their texts to one length, and `attention_mask` is
        ignored.
        """
        input_ids = checked_tokens(input_ids, attention_mask, vocabulary_size(self.clip.config))
        num_tokens = input_ids.shape[-1]
        if has_texts_of_one_length(self.clip.config):
            attention_mask = None
        outputs = self.clip.get_text_features(
            input_ids=input_ids.reshape(-1, num_tokens),
            attention_mask=None if attention_mask is None else attention_mask.reshape(-1, num_tokens),
            **self._getter_options,
        )
        features = pooled_output(outputs, self.clip.config).pooler_output
        return features.view(*input_ids.shape[:-1], self.config.hidden_size)

    def get_text_logits(self, query_embeds: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
        """Zero-shot logits: scaled cosine of mean query feature (B, Q, T, D) and class text (B, N, D), as (B, Q, N).

        Normalises without the epsilon of the training path, as the official program does.
        """
        with torch.autocast(query_embeds.device.type, enabled=False):
            video, text = comparable(query_embeds, class_embeds)
            video, text = F.normalize(video.mean(-2), dim=-1), F.normalize(text, dim=-1)
            return loaded_weight(self, "video_text_scale").to(video) * (video @ text.transpose(-2, -1))

    def get_video_text_logits(self, video_embeds: torch.Tensor, base_class_embeds: torch.Tensor) -> torch.Tensor:
        """Scaled cosine of mean frame features (B, V, T, D) and all base class texts (K, D), as (B, V, K)."""
        with torch.autocast(video_embeds.device.type, enabled=False):
            video, text = comparable(video_embeds, base_class_embeds)
            similarity = frame_cosine_similarity(video.mean(-2), text, self.config.cosine_epsilon)
            return loaded_weight(self, "video_text_scale").to(similarity) * similarity

    def get_logits(
        self,
        distances: torch.Tensor | None,
        text_logits: torch.Tensor | None,
        inference_mode: str | None = None,
        ensemble_text_weight: float | None = None,
    ) -> torch.Tensor:
        """Class logits (B, Q, N) of a mode: from distances (few-shot), text logits (zero-shot) or both (ensemble).

        `ensemble_text_weight`, from 0 to 1, is the configuration's by default. Raises `ValueError` for others.
        """
        inference_mode = self._checked_mode(inference_mode)
        if ensemble_text_weight is not None and not (
            is_number(ensemble_text_weight) and 0 <= ensemble_text_weight <= 1
        ):
            raise ValueError(f"ensemble_text_weight={ensemble_text_weight!r} must be a number from 0 to 1.")
        if inference_mode == "few_shot":
            assert distances is not None
            return -distances
        assert text_logits is not None
        if inference_mode == "zero_shot":
            return text_logits
        assert distances is not None
        beta = self.config.ensemble_text_weight if ensemble_text_weight is None else ensemble_text_weight
        visual = (-distances / self.config.ensemble_temperature).log_softmax(-1)
        return beta * text_logits.to(visual.device).log_softmax(-1) + (1 - beta) * visual

    def forward(
        self,
        support_pixel_values: torch.FloatTensor | None = None,
        support_labels: torch.LongTensor | None = None,
        query_pixel_values: torch.FloatTensor | None = None,
        class_input_ids: torch.LongTensor | None = None,
        class_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        support_embeds: torch.FloatTensor | None = None,
        query_embeds: torch.FloatTensor | None = None,
        class_embeds: torch.FloatTensor | None = None,
        base_class_embeds: torch.FloatTensor | None = None,
        class_base_labels: torch.LongTensor | None = None,
        support_base_labels: torch.LongTensor | None = None,
        query_base_labels: torch.LongTensor | None = None,
        inference_mode: str | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CLIPFSAROutput | tuple:
        """Runs B episodes at once.

        Args:
            support_pixel_values: (B, S, T, C, H, W); or give `support_embeds` (B, S, T, D), their frame features.
            support_labels: (B, S), the class within the episode, 0..N-1; -1 pads, so classes may have unequal shots.
            query_pixel_values: (B, Q, T, C, H, W); or give `query_embeds` (B, Q, T, D).
            class_input_ids, class_attention_mask: (B, N, L) tokens of class texts; or give `class_embeds` (B, N, D).
            labels: (B, Q), the query's class within the episode, for the loss; negative ones are ignored.
            base_class_embeds: (K, D), texts of all training classes, for the video-text contrast.
            class_base_labels: (B, N), rows of `base_class_embeds` that are the episode's class texts: with both given,
                the text tower does not run.
            support_base_labels: (B, S), rows of `base_class_embeds`; negative ones are ignored.
            query_base_labels: (B, Q), likewise.
            inference_mode: `"few_shot"`, `"zero_shot"` (no support needed) or `"ensemble"`; by default the
                configuration's. It changes `logits`; with support videos it does not change the loss.
            output_hidden_states: Return the visual tower's; layer indices select some (where transformers can).
            output_attentions: Return the visual tower's and the temporal transformer's (eager attention only).
            return_dict: `False` returns a tuple.
            kwargs: Passed to CLIP's visual tower (e.g. `interpolate_pos_encoding=True`); a `TypeError` if unknown.

        T may be any number of frames: the weights do not depend on it. Raises `ValueError` when an input that the mode
        needs is missing or does not fit. Labels, tokens and logits are checked on the CPU only: see `labels_clipfsar`.
        """
        inference_mode = self._checked_mode(inference_mode)
        videos = (support_pixel_values, support_embeds, query_pixel_values, query_embeds)
        self._check_given(kwargs, *videos, class_input_ids, class_embeds)
        kwargs |= self._output_options(output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        own_labels = whole_labels(support_labels=support_labels, labels=labels)
        base_labels = whole_labels(support_base_labels=support_base_labels, query_base_labels=query_base_labels)
        encoded = self._encode_episode_frames(*videos, own_labels, kwargs)
        texts = (class_embeds, class_input_ids, class_attention_mask, base_class_embeds, class_base_labels)
        encoded["class_embeds"] = self._embed_classes(*texts)
        compared = self._compare(encoded, own_labels, base_labels, inference_mode, kwargs.get("output_attentions"))
        compared |= self._contrast(encoded, base_class_embeds, *base_labels)
        check_answer(self, compared["logits"], *videos, class_embeds, base_class_embeds)
        output = CLIPFSAROutput(loss=self._weighted_sum(compared), **compared, **encoded)
        as_output = self.config.return_dict if return_dict is None else return_dict
        return output if as_output else output.to_tuple()

    def _check_given(self, names, *inputs: torch.Tensor | None):
        check_given_once(*inputs)
        check_is_episode(names)
        check_known("CLIPFSARModel.forward", names, {*_INPUTS, *self._visual_inputs} if names else ())

    def _output_options(self, **outputs) -> dict:
        """The visual tower's output options that are switched on; for None the configuration decides.

        Layer indices can select hidden states, as in transformers; 0 is an index, not False.
        """
        wanted = {name: getattr(self.config, name) if value is None else value for name, value in outputs.items()}
        return {name: value for name, value in wanted.items() if value is not None and value is not False}

    def _checked_mode(self, inference_mode: str | None) -> str:
        inference_mode = self.config.inference_mode if inference_mode is None else inference_mode
        if inference_mode not in INFERENCE_MODES:
            raise ValueError(f"inference_mode={inference_mode!r} is not one of {', '.join(INFERENCE_MODES)}.")
        return inference_mode

    def _embed_classes(
        self, class_embeds, input_ids, attention_mask, base_class_embeds, base_labels
    ) -> torch.Tensor | None:
        """Text features of the episodes' classes: if not given, rows of `base_class_embeds`, or encoded from tokens."""
        if input_ids is None and attention_mask is not None:
            raise ValueError("class_attention_mask is given without class_input_ids: give both, or leave it out.")
        check_features(self.config.hidden_size, class_embeds=class_embeds, base_class_embeds=base_class_embeds)
        if class_embeds is not None:
            return class_embeds
        if base_class_embeds is not None and base_labels is not None:
            (base_labels,) = whole_labels(class_base_labels=base_labels)
            if base_labels.dim() != 2:
                raise ValueError(
                    f"class_base_labels has shape {tuple(base_labels.shape)}, but (episodes, classes) is needed."
                )
            check_rows("class_base_labels", base_labels, len(base_class_embeds), "rows of base_class_embeds")
            return base_class_embeds[base_labels.to(base_class_embeds.device)]
        if input_ids is None:
            return None
        class_embeds = self.get_class_features(input_ids, attention_mask)
        check_features(self.config.hidden_size, class_embeds=class_embeds)  # tokens of one episode, without that
        return class_embeds

    def _compare(
        self,
        encoded: dict,
        own_labels: tuple,
        base_labels: tuple,
        inference_mode: str,
        output_attentions: bool | None,
    ) -> dict:
        """Prototypes, logits, losses but the contrast, and attention weights, by their names in the output.

        `own_labels` are those of support videos and queries within the episode; `base_labels` those of base classes.
        """
        support_labels, labels = own_labels
        support_embeds, query_embeds, class_embeds = (
            encoded[f"{name}_embeds"] for name in ("support", "query", "class")
        )
        check_features(self.config.hidden_size, support_embeds=support_embeds, query_embeds=query_embeds)
        check_episode(inference_mode, support_embeds, support_labels, query_embeds, class_embeds)
        n_way = None if class_embeds is None else class_embeds.shape[1]
        if support_embeds is not None:
            compares = inference_mode != "zero_shot" or labels is not None
            n_way = check_support_labels(support_labels, support_embeds.shape[:2], n_way, compares)
        check_base_labels(support_embeds, query_embeds, *base_labels)
        check_shape("labels", labels, query_embeds.shape[:2], "query videos")
        check_labels("labels", labels, n_way)
        check_some_label("labels", labels)
        distances = text_logits = loss = None
        compared: dict[str, Any] = {"prototypes": None}
        if support_embeds is not None:
            support = (support_embeds, support_labels, class_embeds)
            records: dict[str, dict] = {
                name: {"attentions": []} if output_attentions else {} for name in ("query", "prototype")
            }
            query_states = self.get_query_states(query_embeds, **records["query"])
            if self.keeps_shots:
                of_training = base_labels[::-1] if self.training else None
                compared, distances = self._compare_shots(query_states, support, of_training, records["prototype"])
            else:
                compared["prototypes"] = self.get_prototypes(*support, **records["prototype"])
                distances = self.get_distances(query_states, compared["prototypes"])
            if output_attentions:
                compared |= {f"{name}_attentions": tuple(one["attentions"]) or None for name, one in records.items()}
        if inference_mode != "few_shot":
            text_logits = self.get_text_logits(query_embeds, class_embeds)
        logits = self.get_logits(distances, text_logits, inference_mode)
        if labels is not None:
            loss = _cross_entropy(logits if distances is None else -distances, labels)
        return compared | {"logits": logits, "few_shot_loss": loss}

    def _contrast(self, encoded: dict, base_class_embeds, support_base_labels, query_base_labels) -> dict:
        """Logits and loss of all videos of encoded episodes against all base classes, by their names in the output."""
        logits = loss = None
        if base_class_embeds is None and query_base_labels is not None and self.config.video_text_loss_weight:
            warnings.warn(_NO_CONTRAST, stacklevel=5)
        if base_class_embeds is not None:
            support_embeds, videos = encoded["support_embeds"], encoded["query_embeds"]
            if support_embeds is not None:
                videos = torch.cat([support_embeds.to(videos.device), videos], dim=1)
            logits = self.get_video_text_logits(videos, base_class_embeds)
            check_labels("support_base_labels", support_base_labels, len(base_class_embeds))
            check_labels("query_base_labels", query_base_labels, len(base_class_embeds))
            check_some_label("support_base_labels and query_base_labels", support_base_labels, query_base_labels)
            if query_base_labels is not None:
                base_labels = query_base_labels
                if support_embeds is not None:
                    base_labels = torch.cat([support_base_labels, query_base_labels], dim=1)
                loss = _cross_entropy(logits, base_labels)
        return {"video_text_logits": logits, "video_text_loss": loss}

    def _weighted_sum(self, losses: dict) -> torch.Tensor | None:
        """The weighted sum of the losses, by their names in the output, that are not None; None if all are."""
        total = losses["few_shot_loss"]
        weights = {"video_text_loss": self.config.video_text_loss_weight, "head_loss": 1.0}
        for name, weight in weights.items():
            loss = losses.get(name)
            if loss is not None:
                total = weight * loss if total is None else total + weight * loss.to(total.device)
        return total

    def _encode_episode_frames(
        self, support_pixel_values, support_embeds, query_pixel_values, query_embeds, own_labels, kwargs
    ):
        """Encodes support and query videos of all episodes in one call of the visual tower; keeps given features.

        `own_labels` are those of support videos and queries within the episode. Returns the features and, on request,
        the tower's hidden states and attentions, by their names in the output.
        """
        given = ((support_pixel_values, support_embeds), (query_pixel_values, query_embeds))
        labelled = [
            (pixel_values, labels)
            for (pixel_values, embeds), labels in zip(given, own_labels, strict=True)
            if pixel_values is not None and embeds is None
        ]
        todo = [pixel_values for pixel_values, _ in labelled]
        check_pixel_values(*todo)
        if not todo:
            return {"support_embeds": support_embeds, "query_embeds": query_embeds}
        if self._uses_batch_statistics():
            embeds, outputs = self._encode_separately(labelled, kwargs)
        else:
            frames = torch.cat([pixel_values.flatten(0, 2) for pixel_values in todo])
            embeds, outputs = self._encode_frames(frames, **kwargs)
        parts = embeds.split([pixel_values.shape[:3].numel() for pixel_values in todo])
        parts = [part.unflatten(0, pixel_values.shape[:3]) for part, pixel_values in zip(parts, todo, strict=True)]
        if query_embeds is None and query_pixel_values is not None:
            query_embeds = parts.pop()
        if support_embeds is None and support_pixel_values is not None:
            support_embeds = parts.pop()
        on_request = [name for name in ("hidden_states", "attentions") if f"output_{name}" in kwargs]
        return {
            "support_embeds": support_embeds,
            "query_embeds": query_embeds,
            **{name: getattr(outputs, name, None) for name in on_request},
        }

    def _uses_batch_statistics(self) -> bool:
        """Whether a frame's feature depends on the other frames of the same call: batch norms in training."""
        return any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            for name, module in self.clip.named_modules()
            if name.startswith(VISION_MODULES)
        )

    def _encode_separately(self, labelled: list[tuple], kwargs) -> tuple[torch.Tensor, BaseModelOutput]:
        """Encodes each episode in two calls, support videos before query videos, as the official program does.

        An episode's features then do not depend on the other episodes of the batch, nor on padding videos, whose
        features are 0. The results keep the order of a single call.

        Args:
            labelled: Videos (B, V, T, C, H, W) and their labels within the episode (B, V) or None.
        """
        if len({len(part) for part, _ in labelled}) > 1:
            raise ValueError(
                f"There are {' and '.join(str(len(part)) for part, _ in labelled)} episodes of support and of query "
                "videos: all inputs must have the same leading (episode) dimension."
            )
        numbers = [_numbers_of_videos(*part) for part in labelled]
        encoded = [
            [
                self._encode_without_padding(part[episode], number[episode], kwargs)
                for (part, _), number in zip(labelled, numbers, strict=True)
            ]
            for episode in range(len(labelled[0][0]))
        ]
        embeds, outputs = zip(*(call for calls in zip(*encoded, strict=True) for call in calls), strict=True)
        hidden_states = None
        if outputs[0].hidden_states is not None:
            layers = zip(*(output.hidden_states for output in outputs), strict=True)
            hidden_states = tuple(None if calls[0] is None else torch.cat(calls) for calls in layers)
        return torch.cat(embeds), BaseModelOutput(hidden_states=hidden_states)

    def _encode_without_padding(self, videos: torch.Tensor, number: int, kwargs) -> tuple[torch.Tensor, Any]:
        """Frame features of (V, T, C, H, W), of which the first `number` are encoded and the others get zeros."""
        embeds, outputs = self._encode_frames(videos[:number].flatten(0, 1), **kwargs)
        missing = (len(videos) - number) * videos.shape[1]
        if not missing:
            return embeds, outputs
        states = getattr(outputs, "hidden_states", None)
        states = states and tuple(None if one is None else _with_zeros(one, missing) for one in states)
        return _with_zeros(embeds, missing), BaseModelOutput(hidden_states=states)


def _with_zeros(rows: torch.Tensor, missing: int) -> torch.Tensor:
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def _numbers_of_videos(videos: torch.Tensor, labels: torch.Tensor | None) -> list[int]:
    """Videos of each episode (B, V, T, C, H, W) without the padding at its end: negative labels, pixels all 0."""
    numbers = [videos.shape[1]] * len(videos)
    if len(videos) == 1 or labels is None or labels.shape != videos.shape[:2]:
        return numbers  # only a batch of several episodes is padded
    for episode, row in enumerate(labels.tolist()):
        while (
            numbers[episode] > 1 and row[numbers[episode] - 1] < 0 and not videos[episode, numbers[episode] - 1].any()
        ):
            numbers[episode] -= 1
    return numbers


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of (..., classes) over all labels (...) that are not negative."""
    labels = labels.flatten().to(logits.device)
    return F.cross_entropy(logits.flatten(0, -2), labels.masked_fill(labels < 0, -100))


_INPUTS = set(inspect.signature(CLIPFSARModel.forward).parameters) - {"self", "kwargs"}

CLIPFSARModel.register_for_auto_class("AutoModel")

# Auto classes find remote code through the checkpoint's `auto_map`, and the library through these registrations.
if not __package__:
    AutoConfig.register(CLIPFSARConfig.model_type, CLIPFSARConfig, exist_ok=True)
    AutoModel.register(CLIPFSARConfig, CLIPFSARModel, exist_ok=True)
    AutoModelForVideoClassification.register(CLIPFSARConfig, CLIPFSARModel, exist_ok=True)

__all__ = [
    "VISION_MODULES",
    "CLIPFSARModel",
    "CLIPFSAROutput",
    "CLIPFSARPreTrainedModel",
    "bi_mhm_distance",
    "evaluating",
    "otam_distance",
]
