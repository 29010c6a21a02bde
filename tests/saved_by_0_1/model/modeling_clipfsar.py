"""CLIP-FSAR: temporal alignment of videos, prototypes modulated by class texts, on top of CLIP.

Reads from small to large: alignment functions, temporal transformer, model. Shapes use the same letters everywhere:
B episodes, N classes (ways), S support videos, Q query videos, T frames, D feature size, K base classes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

try:
    from .configuration_clipfsar import INFERENCE_MODES, CLIPFSARConfig
except ImportError:
    if __package__:
        raise
    from configuration_clipfsar import INFERENCE_MODES, CLIPFSARConfig

try:
    from .resnet_clipfsar import CLIPResNetModel
except ImportError:
    if __package__:
        raise
    from resnet_clipfsar import CLIPResNetModel


# Parts of `clip` that make frame features.
VISION_MODULES = ("vision_model.", "visual_projection.")
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.7 was the first to have it


def frame_cosine_similarity(x: torch.Tensor, y: torch.Tensor, epsilon: float = 0.01) -> torch.Tensor:
    """Cosine of every vector of `x` (..., L, D) with every vector of `y` (..., M, D), as (..., L, M).

    `epsilon` is added to the product of the two norms, as the official program does: the cosine of a vector with
    itself is a little below 1.
    """
    norms = x.norm(dim=-1).unsqueeze(-1) * y.norm(dim=-1).unsqueeze(-2)
    return x @ y.transpose(-2, -1) / (norms + epsilon)


class _OtamDistance(torch.autograd.Function):
    """OTAM distance of matrices, (batch, L, M) -> (batch), one way or both, with exact gradients.

    With E = exp(-C / smoothing) for the cumulative cost C, a soft minimum is a plain sum. An inner cell needs only its
    left and upper left neighbours, E[l, m] = a[l, m] * (E[l, m-1] + E[l-1, m-1]), so one step handles a whole column of
    all matrices; only in the first column a cell needs the one above it. All in logarithms: stable for long videos and
    small temperatures. Columns and rows lead, so that every step runs over memory as it lies. Autograd would record
    each step and work out anew what the columns tell at once; here the backward pass is a second sweep. A step is two
    operations either way: a small matrix costs what starting them costs.
    """

    @staticmethod
    def forward(
        frame_distances: torch.Tensor, smoothing: float, bidirectional: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores = frame_distances.permute(2, 1, 0)  # (M, L, batch)
        if bidirectional:  # the transposed matrices in the same sweep
            scores = torch.cat([scores, frame_distances.permute(1, 2, 0)], dim=-1)
        scores = scores / -smoothing
        num_columns, num_rows, batch = scores.shape
        columns = scores.new_empty(num_columns, num_rows + 1, batch)  # log E below a row of zeros (log 0)
        columns[:, 0] = -torch.inf
        # First column: E[l] = a[l] * (2 + E[l-1]), where the 2 are the two ways in from the padding column left of it;
        # the first row has one.
        log_two = scores.new_full((batch,), math.log(2))
        columns[0, 1] = scores[0, 0]
        rows, scores_of_rows = columns[0, 1:].unbind(), scores[0].unbind()
        for row in range(1, num_rows):
            torch.logaddexp(rows[row - 1], log_two, out=rows[row]).add_(scores_of_rows[row])
        cells, upper_cells, scores = columns[:, 1:].unbind(), columns[:, :-1].unbind(), scores.unbind()
        for m in range(1, num_columns):
            torch.logaddexp(cells[m - 1], upper_cells[m - 1], out=cells[m]).add_(scores[m])
        # The padding column at the right costs nothing: every row of the last column reaches the end by two ways,
        # straight and down, except the bottom row, which has only the first.
        ends = columns[-1, 1:] + math.log(2)
        ends[-1] = columns[-1, -1]
        total = ends.logsumexp(0)
        distances = total * -smoothing
        if bidirectional:
            distances = distances.view(2, -1).sum(0)
        return distances, columns, ends.sub_(total).exp_()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.bidirectional = inputs[2]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_distances: torch.Tensor, *_) -> tuple[torch.Tensor, None, None]:
        columns, share_of_end = ctx.saved_tensors
        if ctx.bidirectional:
            grad_distances = grad_distances.repeat(2)
        # Scores are distances over -smoothing and distances totals times -smoothing: the factors cancel.
        grads = columns.new_empty(len(columns), *share_of_end.shape)  # (M, L, batch)
        torch.mul(share_of_end, grad_distances, out=grads[-1])
        from_left = (columns[:-1, 1:] - columns[:-1, :-1]).sigmoid_()  # the rest comes from the upper left
        from_upper_left = (1 - from_left[:, 1:]).unbind()
        from_left, columns_of_grads = from_left.unbind(), grads.unbind()
        upper_rows, lower_rows = grads[:, :-1].unbind(), grads[:, 1:].unbind()
        for m in reversed(range(1, len(columns))):
            torch.mul(columns_of_grads[m], from_left[m - 1], out=columns_of_grads[m - 1])
            upper_rows[m - 1].addcmul_(lower_rows[m], from_upper_left[m - 1])
        from_above = (columns[0, 1:-1] - math.log(2)).sigmoid_().unbind()
        rows = grads[0].unbind()
        for row in reversed(range(1, len(rows))):
            rows[row - 1].addcmul_(rows[row], from_above[row - 1])
        if not ctx.bidirectional:
            return grads.permute(2, 1, 0), None, None
        forth, back = grads.unflatten(-1, (2, -1)).unbind(-2)
        return forth.permute(2, 1, 0) + back.permute(2, 0, 1), None, None


def _otam_for_graphs(frame_distances: torch.Tensor, smoothing: float) -> torch.Tensor:
    """One direction of `_OtamDistance`, (batch, L, M) -> (batch), written for an exported graph.

    A graph keeps no gradient and knows no tensor that is written to piece by piece; and ONNX has no `logaddexp`: the
    exporter makes log(exp(x) + exp(y)) of it, which long videos and small temperatures take to log(0).
    """

    def log_add_exp(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, y]).logsumexp(0)

    scores = frame_distances.permute(2, 1, 0) / -smoothing  # (M, L, batch)
    rows = [scores[0, 0]]
    log_two = torch.full_like(rows[0], math.log(2))
    for score in scores[0, 1:].unbind():
        rows.append(log_add_exp(rows[-1], log_two) + score)
    column = torch.stack(rows)
    for score in scores[1:].unbind():
        column = torch.cat([column[:1], log_add_exp(column[1:], column[:-1])]) + score
    return -smoothing * torch.cat([column[:-1] + math.log(2), column[-1:]]).logsumexp(0)


def otam_distance(frame_distances: torch.Tensor, smoothing: float = 0.5, bidirectional: bool = True) -> torch.Tensor:
    """Soft ordered temporal alignment distance (OTAM, Cao et al., CVPR 2020) of query and prototype frames.

    Args:
        frame_distances: Distances of query frames (rows) to prototype frames (columns), (..., L, M), any L, M >= 1.
        smoothing: Temperature of the soft minimum -t * log(sum(exp(-x / t))), in the unit of the distances.
        bidirectional: Add the distance of the transposed matrix (the official default).

    Returns:
        (...), in float32 at least. Differentiable.

    Raises:
        ValueError: For fewer than two dimensions, an empty matrix or a temperature that is not positive.

    The matrix gets a zero column at the left and at the right, so that a path may skip frames at both ends. The first
    row is a plain running sum, as in the official program.
    """
    frame_distances = _checked_frame_distances(frame_distances)
    if not smoothing > 0:
        raise ValueError(f"smoothing={smoothing} must be greater than 0.")
    matrices = frame_distances.flatten(0, -3) if frame_distances.dim() > 2 else frame_distances[None]
    if _is_exporting():
        ways = [matrices, matrices.transpose(-2, -1)] if bidirectional else [matrices]
        return sum(_otam_for_graphs(way, smoothing) for way in ways).view(frame_distances.shape[:-2])
    is_square = matrices.shape[-2] == matrices.shape[-1]
    # Without a gradient to come, autograd's own bookkeeping would be a quarter of the time of a small matrix.
    needs_grad = torch.is_grad_enabled() and matrices.requires_grad
    sweep = _OtamDistance.apply if needs_grad else _OtamDistance.forward
    distances = sweep(matrices, smoothing, bidirectional and is_square)[0]
    if bidirectional and not is_square:
        distances = distances + sweep(matrices.transpose(-2, -1), smoothing, False)[0]
    return distances.view(frame_distances.shape[:-2])


def bi_mhm_distance(frame_distances: torch.Tensor) -> torch.Tensor:
    """Bidirectional mean Hausdorff distance (Wang et al., HyRSM, CVPR 2022), (..., L, M) -> (...).

    The mean over query frames of the smallest distance to a prototype frame, plus the mean over prototype frames of
    the smallest distance to a query frame. Blind to order.

    Raises:
        ValueError: For fewer than two dimensions or an empty matrix.
    """
    frame_distances = _checked_frame_distances(frame_distances)
    return frame_distances.amin(-1).mean(-1) + frame_distances.amin(-2).mean(-1)


def _checked_frame_distances(frame_distances: torch.Tensor) -> torch.Tensor:
    if frame_distances.dim() < 2 or 0 in frame_distances.shape[-2:]:
        raise ValueError(
            f"frame_distances has shape {tuple(frame_distances.shape)}; (..., query frames, prototype frames) with "
            "at least one frame each is needed."
        )
    return frame_distances if frame_distances.dtype == torch.float64 else frame_distances.float()


class CLIPFSARTemporalAttention(nn.Module):
    """Multi-head attention over the frames of a sequence, with the LayerNorm before it: (V, L, D) -> (V, L, D)."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.temporal_num_heads
        self.norm = nn.LayerNorm(size)
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.out_proj = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.temporal_attention_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.norm(hidden_states)
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (V, heads, L, D / heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        context = F.scaled_dot_product_attention(query, key, value)
        return self.dropout(self.out_proj(context.transpose(1, 2).flatten(2)))


class CLIPFSARTemporalMLP(nn.Module):
    """Feed-forward part of a temporal layer; no LayerNorm before it, as in the official program."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.temporal_intermediate_size)
        self.fc2 = nn.Linear(config.temporal_intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.temporal_hidden_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(hidden_states)))))


class CLIPFSARTemporalLayer(GradientCheckpointingLayer):
    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        self.attention = CLIPFSARTemporalAttention(config)
        self.mlp = CLIPFSARTemporalMLP(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(hidden_states)
        return hidden_states + self.mlp(hidden_states)


class CLIPFSARTemporalTransformer(nn.Module):
    """Mixes the frames of each sequence, (..., L, D) -> (..., L, D); no positions, the same weights for all videos."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        self.layers = nn.ModuleList(CLIPFSARTemporalLayer(config) for _ in range(config.temporal_num_layers))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        sequences = hidden_states.reshape(-1, *hidden_states.shape[-2:])
        for layer in self.layers:
            sequences = layer(sequences)
        return sequences.view(hidden_states.shape)


@dataclass
class CLIPFSAROutput(ModelOutput):
    """What an episode gives.

    Args:
        loss: `few_shot_loss + config.video_text_loss_weight * video_text_loss`, of what could be computed.
        logits: (B, Q, N); `softmax(logits)` are the class probabilities in every inference mode.
        few_shot_loss: Cross-entropy of minus the distances; in zero-shot use without support, of `logits`.
        video_text_loss: Cross-entropy of `video_text_logits` over the base classes.
        video_text_logits: (B, S + Q, K), support videos before query videos.
        prototypes: (B, N, T, D), after the temporal transformer.
        support_embeds: (B, S, T, D), frame features of the visual tower; can be given back to `forward`.
        query_embeds: (B, Q, T, D), likewise.
        class_embeds: (B, N, D), projected text features; likewise.
        hidden_states: On request, of the visual tower, one tensor per layer (videos * T, tokens, width), the support
            videos of all episodes before the query videos.
        attentions: On request (with eager attention), likewise.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    few_shot_loss: torch.FloatTensor | None = None
    video_text_loss: torch.FloatTensor | None = None
    video_text_logits: torch.FloatTensor | None = None
    prototypes: torch.FloatTensor | None = None
    support_embeds: torch.FloatTensor | None = None
    query_embeds: torch.FloatTensor | None = None
    class_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class CLIPFSARPreTrainedModel(PreTrainedModel):
    config_class = CLIPFSARConfig
    # A plain CLIP checkpoint loads into `self.clip`, and ours loads into a plain CLIPModel.
    base_model_prefix = "clip"
    main_input_name = "query_pixel_values"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = [
        "CLIPEncoderLayer",
        "CLIPTextEmbeddings",
        "CLIPVisionEmbeddings",
        "CLIPResNetBottleneck",
        "CLIPFSARTemporalLayer",
    ]

    @torch.no_grad()
    def _init_weights(self, module):
        """PyTorch's own initialisation for our layers, as officially; CLIP's parts initialise themselves."""
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


class CLIPFSARModel(CLIPFSARPreTrainedModel):
    """CLIP with a temporal transformer, text-modulated prototypes and an alignment: episodes in, class logits out.

    `CLIPFSARModel.from_pretrained("openai/clip-vit-base-patch16")` starts from plain CLIP weights with fresh layers of
    our own; `CLIPFSARModel.from_pretrained(folder)` continues one that was trained.
    """

    def __init__(self, config: CLIPFSARConfig):
        super().__init__(config)
        is_resnet = config.clip_config.model_type == CLIPResNetModel.config_class.model_type
        self.clip = (CLIPResNetModel._from_config if is_resnet else AutoModel.from_config)(config.clip_config)
        self.temporal_transformer = CLIPFSARTemporalTransformer(config)
        self.video_text_scale = nn.Parameter(torch.full((1,), float(config.video_text_scale_init)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.clip.vision_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.clip.vision_model.set_input_embeddings(value)

    def freeze_text_tower(self):
        """Stops gradients of CLIP's text tower and of CLIP's own logit scale: the method trains neither."""
        for name, parameter in self.clip.named_parameters():
            if not name.startswith(VISION_MODULES):
                parameter.requires_grad_(False)

    def get_video_features(self, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
        """Projected, not normalised frame features of the visual tower, (..., T, C, H, W) -> (..., T, D)."""
        return self._encode_frames(pixel_values, **kwargs)[0]

    def _encode_frames(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        if pixel_values.dim() < 4:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; (..., frames, channels, height, width) is needed."
            )
        frames = pixel_values.flatten(0, -4).to(self.clip.dtype)
        if self.config.clip_config.model_type == "siglip2":
            frames, patches = _as_patches(frames, self.config.clip_config.vision_config.patch_size)
            kwargs = patches | kwargs
        outputs = self.clip.get_image_features(frames, **kwargs)
        return outputs.pooler_output.unflatten(0, pixel_values.shape[:-3]), outputs

    def get_class_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Projected, not normalised text features, tokens (..., L) -> (..., D).

        SigLIP's text towers know no mask: padding belongs to their texts, all of them of one length (the processor
        sees to it), and `attention_mask` is left out.
        """
        num_tokens = input_ids.shape[-1]
        if self.config.clip_config.model_type in ("siglip", "siglip2"):
            attention_mask = None
        outputs = self.clip.get_text_features(
            input_ids=input_ids.reshape(-1, num_tokens),
            attention_mask=None if attention_mask is None else attention_mask.reshape(-1, num_tokens),
        )
        return outputs.pooler_output.view(*input_ids.shape[:-1], self.config.hidden_size)

    def get_prototypes(
        self,
        support_embeds: torch.Tensor,
        support_labels: torch.Tensor,
        class_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Prototype of each class: its support videos averaged, modulated by its text (paper, Section 3.3).

        Args:
            support_embeds: Frame features of the support videos, (B, S, T, D).
            support_labels: Class of each within the episode, (B, S), 0..N-1; -1 leaves a (padding) video out.
            class_embeds: Text features of the episode's classes, (B, N, D); only without `prototype_modulation`
                may they be missing, and N is then the largest label + 1.

        Returns:
            (B, N, T, D). A class without support videos has meaningless values.

        Raises:
            ValueError: When modulation is on and `class_embeds` is missing, or shapes do not fit each other.
        """
        if support_labels.shape != support_embeds.shape[:2]:
            raise ValueError(
                f"support_labels has shape {tuple(support_labels.shape)}, but there are support videos of shape "
                f"{tuple(support_embeds.shape[:2])} (episodes, videos)."
            )
        if self.config.prototype_modulation and class_embeds is None:
            raise ValueError(
                "The prototypes are modulated by the class texts: give class_input_ids or class_embeds (from class "
                "names, the processor makes the former), or use a model with prototype_modulation=False."
            )
        n_way = class_embeds.shape[1] if class_embeds is not None else int(support_labels.max()) + 1
        support_embeds = support_embeds.to(self.video_text_scale.dtype)
        membership = support_labels.unsqueeze(1) == torch.arange(n_way, device=support_labels.device).unsqueeze(-1)
        shots = membership.sum(-1, keepdim=True).clamp(min=1)
        mean_weights = membership.to(support_embeds.dtype) / shots  # (B, N, S)

        if self.config.support_pooling == "before":
            pooled = torch.einsum("bns,bstd->bntd", mean_weights, support_embeds)
            return self._modulate(pooled, class_embeds)
        texts = None
        if class_embeds is not None:
            texts = class_embeds.take_along_dim(support_labels.clamp(min=0).unsqueeze(-1), dim=1)  # (B, S, D)
        modulated = self._modulate(support_embeds, texts)
        return torch.einsum("bns,bstd->bntd", mean_weights, modulated.to(mean_weights.dtype))

    def _modulate(self, sequences: torch.Tensor, texts: torch.Tensor | None) -> torch.Tensor:
        """Temporal transformer over (..., T, D) with the text (..., D) as one more token, which is dropped after."""
        num_frames = sequences.shape[-2]
        if self.config.prototype_modulation:
            sequences = torch.cat([sequences, texts.unsqueeze(-2).to(sequences.dtype)], dim=-2)
        return self.temporal_transformer(sequences)[..., :num_frames, :]

    def get_query_states(self, query_embeds: torch.Tensor) -> torch.Tensor:
        """Query sequences after the temporal transformer, without a text: (..., T, D) -> (..., T, D)."""
        return self.temporal_transformer(query_embeds.to(self.video_text_scale.dtype))

    def get_distances(self, query_states: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        """Distance of each query to each prototype under `config.alignment`, in float32.

        Args:
            query_states: (..., Q, L, D), of `get_query_states`.
            prototypes: (..., N, M, D), of `get_prototypes`.

        Returns:
            (..., Q, N).
        """
        config = self.config
        if config.alignment == "mean":
            with torch.autocast(query_states.device.type, enabled=False):
                query, prototypes = _at_least_float32(query_states), _at_least_float32(prototypes)
                similarity = frame_cosine_similarity(query.mean(-2), prototypes.mean(-2), config.cosine_epsilon)
                return query.shape[-2] * (1 - similarity)
        return self.align(self.get_frame_distances(query_states, prototypes))

    def get_frame_distances(self, query_states: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        """Distance of each query's frames to each prototype's, (..., Q, L, D) and (..., N, M, D) -> (..., Q, N, L, M).

        1 - cosine, in float32.
        """
        with torch.autocast(query_states.device.type, enabled=False):
            query, prototypes = _at_least_float32(query_states), _at_least_float32(prototypes)
            (n_query, num_rows), (n_way, num_columns) = query.shape[-3:-1], prototypes.shape[-3:-1]
            similarity = frame_cosine_similarity(
                query.flatten(-3, -2), prototypes.flatten(-3, -2), self.config.cosine_epsilon
            )  # (..., Q * L, N * M): one matrix product for all pairs
            frame_distances = 1 - similarity.unflatten(-1, (n_way, num_columns)).unflatten(-3, (n_query, num_rows))
            return frame_distances.transpose(-3, -2)  # (..., Q, N, L, M)

    def align(self, frame_distances: torch.Tensor) -> torch.Tensor:
        """Distance (...) out of frame distances (..., L, M), by the configuration's `"otam"` or `"bi_mhm"`."""
        config = self.config
        with torch.autocast(frame_distances.device.type, enabled=False):
            if config.alignment == "bi_mhm":
                return bi_mhm_distance(frame_distances)
            return otam_distance(frame_distances, config.otam_smoothing, config.otam_bidirectional)

    def get_text_logits(self, query_embeds: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
        """Zero-shot logits: scaled cosine of mean query feature (B, Q, T, D) and class text (B, N, D), as (B, Q, N).

        Plain normalisation here, without the epsilon of the training path, as in the official program.
        """
        with torch.autocast(query_embeds.device.type, enabled=False):
            video = F.normalize(_at_least_float32(query_embeds).mean(-2), dim=-1)
            text = F.normalize(_at_least_float32(class_embeds), dim=-1)
            return self.video_text_scale.to(video.dtype) * (video @ text.transpose(-2, -1))

    def get_video_text_logits(self, video_embeds: torch.Tensor, base_class_embeds: torch.Tensor) -> torch.Tensor:
        """Scaled cosine of mean frame features (B, V, T, D) and all base class texts (K, D), as (B, V, K)."""
        with torch.autocast(video_embeds.device.type, enabled=False):
            video, text = _at_least_float32(video_embeds).mean(-2), _at_least_float32(base_class_embeds)
            similarity = frame_cosine_similarity(video, text, self.config.cosine_epsilon)
            return self.video_text_scale.to(video.dtype) * similarity

    def get_logits(
        self,
        distances: torch.Tensor | None,
        text_logits: torch.Tensor | None,
        inference_mode: str | None = None,
        ensemble_text_weight: float | None = None,
    ) -> torch.Tensor:
        """Class logits (B, Q, N) of a mode out of distances (few-shot), text logits (zero-shot) or both (ensemble)."""
        inference_mode = inference_mode or self.config.inference_mode
        if inference_mode == "few_shot":
            return -distances
        if inference_mode == "zero_shot":
            return text_logits
        beta = self.config.ensemble_text_weight if ensemble_text_weight is None else ensemble_text_weight
        visual = (-distances / self.config.ensemble_temperature).log_softmax(-1)
        return beta * text_logits.log_softmax(-1) + (1 - beta) * visual

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
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CLIPFSAROutput | tuple:
        """Runs B episodes at once.

        Args:
            support_pixel_values: (B, S, T, C, H, W); or give `support_embeds` (B, S, T, D), their frame features.
            support_labels: (B, S), the class within the episode, 0..N-1; -1 pads, so classes may have unequal shots.
            query_pixel_values: (B, Q, T, C, H, W); or give `query_embeds` (B, Q, T, D).
            class_input_ids: (B, N, L) tokens of the class texts; or give `class_embeds` (B, N, D).
            class_attention_mask: (B, N, L).
            labels: (B, Q), the query's class within the episode, for the loss; negative ones are ignored.
            base_class_embeds: (K, D), texts of all training classes, for the video-text contrast.
            class_base_labels: (B, N), rows of `base_class_embeds` that are the episode's class texts: with both given,
                the text tower does not run.
            support_base_labels: (B, S), rows of `base_class_embeds`; negative ones are ignored.
            query_base_labels: (B, Q), likewise.
            inference_mode: `"few_shot"`, `"zero_shot"` (no support needed) or `"ensemble"`; by default the
                configuration's. It changes `logits`, not what is trained.
            output_hidden_states, output_attentions: Return those of the visual tower.
            return_dict: `False` gives a tuple.
            kwargs: Passed to CLIP's visual tower (e.g. `interpolate_pos_encoding=True`).

        Raises:
            ValueError: When something that the mode needs is missing or shapes do not fit; the message says what.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        inference_mode = inference_mode or self.config.inference_mode
        if inference_mode not in INFERENCE_MODES:
            raise ValueError(f"inference_mode={inference_mode!r} is not one of {', '.join(INFERENCE_MODES)}.")
        if output_hidden_states or output_attentions:
            kwargs.update(output_hidden_states=output_hidden_states, output_attentions=output_attentions)

        support_embeds, query_embeds, tower_outputs = self._encode_episode_frames(
            support_pixel_values, support_embeds, query_pixel_values, query_embeds, kwargs
        )
        if class_embeds is None and base_class_embeds is not None and class_base_labels is not None:
            class_embeds = base_class_embeds[class_base_labels]
        elif class_embeds is None and class_input_ids is not None:
            class_embeds = self.get_class_features(class_input_ids, class_attention_mask)
        self._check_episode(inference_mode, support_embeds, support_labels, query_embeds, class_embeds)

        prototypes = distances = text_logits = None
        if support_embeds is not None:
            prototypes = self.get_prototypes(support_embeds, support_labels, class_embeds)
            distances = self.get_distances(self.get_query_states(query_embeds), prototypes)
        if inference_mode != "few_shot":
            text_logits = self.get_text_logits(query_embeds, class_embeds)
        logits = self.get_logits(distances, text_logits, inference_mode)

        few_shot_loss = video_text_loss = video_text_logits = None
        if labels is not None:
            few_shot_loss = _cross_entropy(logits if distances is None else -distances, labels)
        if base_class_embeds is not None:
            videos = query_embeds if support_embeds is None else torch.cat([support_embeds, query_embeds], dim=1)
            video_text_logits = self.get_video_text_logits(videos, base_class_embeds)
            if query_base_labels is not None:
                base_labels = query_base_labels
                if support_embeds is not None:
                    base_labels = torch.cat([support_base_labels, query_base_labels], dim=1)
                video_text_loss = _cross_entropy(video_text_logits, base_labels)
        loss = few_shot_loss
        if video_text_loss is not None:
            weighted = self.config.video_text_loss_weight * video_text_loss
            loss = weighted if loss is None else loss + weighted

        output = CLIPFSAROutput(
            loss=loss,
            logits=logits,
            few_shot_loss=few_shot_loss,
            video_text_loss=video_text_loss,
            video_text_logits=video_text_logits,
            prototypes=prototypes,
            support_embeds=support_embeds,
            query_embeds=query_embeds,
            class_embeds=class_embeds,
            hidden_states=tower_outputs.hidden_states if output_hidden_states else None,
            attentions=tower_outputs.attentions if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def _encode_episode_frames(self, support_pixel_values, support_embeds, query_pixel_values, query_embeds, kwargs):
        """Support and query videos of all episodes through the visual tower in one call; features given are kept."""
        todo = [
            pixel_values
            for pixel_values, embeds in ((support_pixel_values, support_embeds), (query_pixel_values, query_embeds))
            if pixel_values is not None and embeds is None
        ]
        for pixel_values in todo:
            if pixel_values.dim() != 6:
                raise ValueError(
                    f"pixel values have shape {tuple(pixel_values.shape)}; (episodes, videos, frames, channels, "
                    "height, width) is needed. One episode has a leading dimension of 1."
                )
        if not todo:
            return support_embeds, query_embeds, BaseModelOutput()
        if self._uses_batch_statistics():
            embeds, outputs = self._encode_separately(todo, kwargs)
        else:
            frames = torch.cat([pixel_values.flatten(0, 2) for pixel_values in todo])
            embeds, outputs = self._encode_frames(frames, **kwargs)
        parts = embeds.split([pixel_values.shape[:3].numel() for pixel_values in todo])
        parts = [part.unflatten(0, pixel_values.shape[:3]) for part, pixel_values in zip(parts, todo, strict=True)]
        if query_embeds is None and query_pixel_values is not None:
            query_embeds = parts.pop()
        if support_embeds is None and support_pixel_values is not None:
            support_embeds = parts.pop()
        return support_embeds, query_embeds, outputs

    def _uses_batch_statistics(self) -> bool:
        """Whether a frame's feature depends on the other frames of the same call: batch norms in training."""
        return any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            for module in self.clip.vision_model.modules()
        )

    def _encode_separately(self, videos: list[torch.Tensor], kwargs) -> tuple[torch.Tensor, BaseModelOutput]:
        """A call for the support and one for the query videos of each episode, in this order, as officially.

        So an episode's features do not depend on what else is in the batch. Results are in the order of one call.
        """
        if len({len(part) for part in videos}) > 1:
            raise ValueError(
                f"There are {' and '.join(str(len(part)) for part in videos)} episodes of support and of query videos: "
                "all inputs must have the same leading (episode) dimension."
            )
        encoded = [
            [self._encode_frames(part[episode].flatten(0, 1), **kwargs) for part in videos]
            for episode in range(len(videos[0]))
        ]
        embeds, outputs = zip(*(call for calls in zip(*encoded, strict=True) for call in calls), strict=True)
        hidden_states = None
        if outputs[0].hidden_states is not None:
            hidden_states = tuple(torch.cat(states) for states in zip(*(o.hidden_states for o in outputs), strict=True))
        return torch.cat(embeds), BaseModelOutput(hidden_states=hidden_states)

    def _check_episode(self, inference_mode, support_embeds, support_labels, query_embeds, class_embeds):
        if query_embeds is None:
            raise ValueError("There are no query videos: give query_pixel_values or query_embeds.")
        if inference_mode != "zero_shot" and support_embeds is None:
            raise ValueError(
                f"inference_mode={inference_mode!r} compares with support videos: give support_pixel_values (or "
                "support_embeds) and support_labels; without them only inference_mode='zero_shot' is possible."
            )
        if inference_mode != "few_shot" and class_embeds is None:
            raise ValueError(
                f"inference_mode={inference_mode!r} compares with class texts: give class_input_ids or class_embeds."
            )
        if support_embeds is not None and support_labels is None:
            raise ValueError("There are support videos but no support_labels (episodes, support videos).")
        for name, embeds in (("support", support_embeds), ("class", class_embeds)):
            if embeds is not None and embeds.shape[0] != query_embeds.shape[0]:
                raise ValueError(
                    f"There are {query_embeds.shape[0]} episodes of query videos but {embeds.shape[0]} of {name} "
                    "inputs: all must have the same leading (episode) dimension."
                )


def _as_patches(frames: torch.Tensor, patch_size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Frames (V, C, H, W) as SigLIP 2 takes them, (V, patches, patch * patch * C), with what else it wants to know."""
    height, width = (size // patch_size for size in frames.shape[-2:])
    if (height * patch_size, width * patch_size) != frames.shape[-2:]:
        raise ValueError(
            f"Frames of {frames.shape[-2]} x {frames.shape[-1]} pixels cannot be cut into SigLIP 2's patches of "
            f"{patch_size} x {patch_size}: resize them to a multiple."
        )
    patches = frames.unflatten(-1, (width, patch_size)).unflatten(-3, (height, patch_size))
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (V, C, h, p, w, p) -> (V, h, w, p * p * C)
    shapes = torch.tensor([[height, width]], device=frames.device).expand(len(frames), 2)
    mask = torch.ones(patches.shape[:2], dtype=torch.long, device=frames.device)
    return patches, {"spatial_shapes": shapes, "pixel_attention_mask": mask}


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of (..., classes) over all labels (...) that are not negative."""
    labels = labels.flatten()
    return F.cross_entropy(logits.flatten(0, -2), labels.masked_fill(labels < 0, -100))


CLIPFSARModel.register_for_auto_class("AutoModel")

# As remote code the Auto classes find us through the checkpoint's `auto_map`; imported as a library, through these.
if not __package__:
    AutoConfig.register(CLIPFSARConfig.model_type, CLIPFSARConfig, exist_ok=True)
    AutoModel.register(CLIPFSARConfig, CLIPFSARModel, exist_ok=True)
    AutoModelForVideoClassification.register(CLIPFSARConfig, CLIPFSARModel, exist_ok=True)

__all__ = ["CLIPFSARModel", "CLIPFSAROutput", "CLIPFSARPreTrainedModel", "bi_mhm_distance", "otam_distance"]
