"""CLIPFSARModel: loading and saving, what may and may not change its outputs, modes, losses, errors, precision."""

import pytest
import torch
from golden.record_golden import changed_config
from transformers import (
    AttentionInterface,
    AutoModel,
    AutoModelForVideoClassification,
    CLIPConfig,
    CLIPModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel, CLIPFSAROutput

# Sums in another order: logits up to 10, so a few units in the last place of float32.
ROUND_OFF = {"rtol": 0, "atol": 1e-5}
MODES = ("few_shot", "zero_shot", "ensemble")


def as_embeds(output, inputs):
    """The inputs of an episode with the features of `output` in place of pixels and tokens."""
    kept = {key: value for key, value in inputs.items() if "pixel" not in key and not key.startswith("class_input")}
    return kept | {name: getattr(output, name) for name in ("support_embeds", "query_embeds", "class_embeds")}


def with_base_classes(model, inputs, n_base=5):
    """An episode with the inputs of the video-text contrast: its classes are three of `n_base`."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([[3, 0, 2]])
    return inputs | {
        "base_class_embeds": torch.randn(n_base, model.config.hidden_size, generator=generator),
        "class_base_labels": rows,
        "support_base_labels": rows.gather(1, inputs["support_labels"]),
        "query_base_labels": rows.gather(1, inputs["labels"]),
    }


def batch_of(*episodes):
    return {key: torch.cat([episode[key] for episode in episodes]) for key in episodes[0]}


@pytest.fixture
def model(tiny_model):
    return tiny_model()


@pytest.fixture
def inputs(tiny_episode):
    """Three classes, two shots, two queries each."""
    return tiny_episode(n_shot=2)


# --- loading and saving -----------------------------------------------------------------------------------------------


@pytest.fixture
def plain_clip(model, tmp_path):
    """A CLIPModel and the folder it is saved in."""
    model.clip.save_pretrained(tmp_path / "clip")
    return model.clip, tmp_path / "clip"


def test_plain_clip_checkpoint_fills_clip_and_leaves_our_layers_fresh(plain_clip):
    clip, folder = plain_clip
    settings = {"num_frames": 16, "temporal_num_heads": 4, "for_training": True}
    model, info = CLIPFSARModel.from_pretrained(folder, **settings, output_loading_info=True)
    assert model.config.num_frames == 16
    for name, weight in clip.state_dict().items():
        assert torch.equal(model.clip.state_dict()[name], weight), name
    assert not info["missing_keys"]  # ours are expected to be new, and are not reported
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]

    assert model.video_text_scale.tolist() == [1.0]
    attention, mlp = model.temporal_transformer.layers[0].attention, model.temporal_transformer.layers[0].mlp
    assert torch.equal(attention.norm.weight, torch.ones(16))
    assert torch.equal(attention.norm.bias, torch.zeros(16))
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, mlp.fc1, mlp.fc2):
        bound = linear.in_features**-0.5  # PyTorch's own: uniform between plus and minus this
        assert bound * 0.9 < linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
        if linear.bias is not None:
            assert 0 < linear.bias.abs().max() <= bound


def test_fresh_layers_follow_the_seed(plain_clip):
    one, same, other = (
        (
            torch.manual_seed(seed),
            CLIPFSARModel.from_pretrained(plain_clip[1], for_training=True, temporal_num_heads=4),
        )[1]
        for seed in (0, 0, 1)
    )
    weights = [m.temporal_transformer.layers[0].mlp.fc1.weight for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_video_text_scale_starts_where_the_configuration_says(plain_clip):
    model = CLIPFSARModel.from_pretrained(
        plain_clip[1], for_training=True, temporal_num_heads=4, video_text_scale_init=2.5
    )
    assert model.video_text_scale.tolist() == [2.5]


def test_plain_clip_model_loads_from_our_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path)
    clip, info = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    for name, weight in model.clip.state_dict().items():
        assert torch.equal(clip.state_dict()[name], weight), name


@pytest.mark.parametrize("load", [CLIPFSARModel, AutoModel, AutoModelForVideoClassification])
def test_saved_and_loaded_model_gives_the_same_bits(model, inputs, tmp_path, load):
    model.save_pretrained(tmp_path)
    loaded = load.from_pretrained(tmp_path)
    assert type(loaded) is CLIPFSARModel
    assert loaded.video_text_scale.tolist() == [1.5]
    assert not loaded.training
    with torch.no_grad():
        expected, output = (m(**with_base_classes(model, inputs)) for m in (model, loaded))
    for name in ("logits", "loss", "video_text_logits", "prototypes"):
        assert torch.equal(output[name], expected[name]), name


def test_loading_in_bfloat16_casts_all_weights(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = CLIPFSARModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.video_text_scale.item() == 1.5


def test_model_is_small_beside_clip(model):
    # One temporal layer at D=16, FFN 32: norm 32, q/k/v/out 4 * 256 + 16, FFN 512 + 32 + 512 + 16; and the scale.
    assert model.num_parameters() - model.clip.num_parameters() == 32 + 1040 + 1072 + 1


def test_input_embeddings_can_be_read_and_set(model):
    # Those of the tokens, as transformers asks of a model with texts; the towers give their own.
    assert model.get_input_embeddings() is model.clip.text_model.embeddings.token_embedding
    replacement = torch.nn.Embedding(60, 32)
    model.set_input_embeddings(replacement)
    assert model.clip.text_model.embeddings.token_embedding is replacement
    assert model.get_input_embeddings() is replacement
    assert model.clip.vision_model.get_input_embeddings() is model.clip.vision_model.embeddings.patch_embedding


# --- what must not change the outputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["before", "after"])
@torch.no_grad()
def test_support_order_does_not_change_logits(tiny_model, inputs, pooling):
    model = tiny_model(support_pooling=pooling)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = inputs | {key: inputs[key][:, order] for key in ("support_pixel_values", "support_labels")}
    torch.testing.assert_close(model(**shuffled).logits, model(**inputs).logits, **ROUND_OFF)


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_query_order_permutes_rows_and_class_order_columns(model, inputs, mode):
    expected = model(**inputs, inference_mode=mode).logits
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = inputs | {"query_pixel_values": inputs["query_pixel_values"][:, order]}
    logits = model(**shuffled, inference_mode=mode).logits
    torch.testing.assert_close(logits, expected[:, order], **ROUND_OFF)

    classes = torch.tensor([2, 0, 1])  # class n of the new episode is class classes[n] of the old one
    renumbered = inputs | {
        "class_input_ids": inputs["class_input_ids"][:, classes],
        "support_labels": classes.argsort()[inputs["support_labels"]],
    }
    logits = model(**renumbered, inference_mode=mode).logits
    torch.testing.assert_close(logits, expected[:, :, classes], **ROUND_OFF)
    assert (expected[:, :, classes] - expected).abs().max() > 1e-2


@pytest.mark.parametrize("pooling", ["before", "after"])
@torch.no_grad()
def test_padding_videos_change_nothing(tiny_model, inputs, pooling):
    model = tiny_model(support_pooling=pooling)
    inputs = with_base_classes(model, inputs)
    expected = model(**inputs)
    padded = dict(inputs)
    for name, value in (
        ("support_pixel_values", 3.0),
        ("query_pixel_values", 3.0),
        ("support_labels", -1),
        ("labels", -1),
        ("support_base_labels", -1),
        ("query_base_labels", -1),
    ):
        padded[name] = torch.cat([inputs[name], torch.full_like(inputs[name][:, :2], value)], dim=1)
    output = model(**padded)
    torch.testing.assert_close(output.logits[:, :6], expected.logits, **ROUND_OFF)
    torch.testing.assert_close(output.prototypes, expected.prototypes, **ROUND_OFF)
    for name in ("loss", "few_shot_loss", "video_text_loss"):
        torch.testing.assert_close(output[name], expected[name], **ROUND_OFF)


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_batch_of_episodes_equals_single_episodes(model, tiny_episode, mode):
    episodes = [tiny_episode(n_shot=2, phase=phase) for phase in (0.0, 1.0)]
    episodes[1]["class_input_ids"] = episodes[1]["class_input_ids"].flip(1)
    together = model(**batch_of(*episodes), inference_mode=mode).logits
    assert together.shape == (2, 6, 3)
    for logits, episode in zip(together, episodes, strict=True):
        torch.testing.assert_close(logits, model(**episode, inference_mode=mode).logits[0], **ROUND_OFF)


@torch.no_grad()
def test_all_frames_of_all_episodes_go_through_the_visual_tower_in_one_call(model, tiny_episode, monkeypatch):
    batch = batch_of(*(tiny_episode(n_shot=2, phase=phase) for phase in (0.0, 1.0)))
    numbers_of_frames = []
    forward = model.clip.vision_model.forward

    def counted(pixel_values, *args, **kwargs):
        numbers_of_frames.append(len(pixel_values))
        return forward(pixel_values, *args, **kwargs)

    monkeypatch.setattr(model.clip.vision_model, "forward", counted)
    model(**batch)
    videos = (batch["support_pixel_values"], batch["query_pixel_values"])
    assert numbers_of_frames == [sum(pixel_values.shape[:3].numel() for pixel_values in videos)]


@torch.no_grad()
def test_video_text_contrast_of_a_batch_sees_each_episode_with_its_own_labels(model, tiny_episode):
    episodes = [with_base_classes(model, tiny_episode(phase=phase)) for phase in (0.0, 1.0)]
    episodes[1]["query_base_labels"] = 4 - episodes[1]["query_base_labels"]
    base_class_embeds = episodes[0]["base_class_embeds"]
    batch = batch_of(*episodes) | {"base_class_embeds": base_class_embeds}
    expected = torch.stack([model(**episode).video_text_loss for episode in episodes]).mean()
    torch.testing.assert_close(model(**batch).video_text_loss, expected, **ROUND_OFF)


@pytest.mark.parametrize("pooling", ["before", "after"])
@torch.no_grad()
def test_classes_may_have_unequal_shots(tiny_model, tiny_episode, pooling):
    model = tiny_model(support_pooling=pooling)
    inputs = tiny_episode(n_shot=2)
    inputs["support_labels"] = torch.tensor([[0, 0, 0, 1, 1, 2]])
    prototypes = model(**inputs).prototypes[0]
    for label, videos in enumerate(([0, 1, 2], [3, 4], [5])):
        alone = {
            "support_pixel_values": inputs["support_pixel_values"][:, videos],
            "support_labels": torch.zeros(1, len(videos), dtype=torch.long),
            "query_pixel_values": inputs["query_pixel_values"],
            "class_input_ids": inputs["class_input_ids"][:, [label]],
        }
        torch.testing.assert_close(prototypes[label], model(**alone).prototypes[0, 0], **ROUND_OFF)


@torch.no_grad()
def test_poolings_agree_for_one_shot_and_differ_for_more(model, tiny_episode):
    for n_shot, agree in ((1, True), (2, False)):
        inputs = tiny_episode(n_shot=n_shot)
        before = model(**inputs).logits
        with changed_config(model.config, support_pooling="after"):
            after = model(**inputs).logits
        assert torch.allclose(before, after, **ROUND_OFF) is agree


@torch.no_grad()
def test_features_can_be_given_in_place_of_pixels_and_tokens(model, inputs):
    for mode in MODES:
        expected = model(**inputs, inference_mode=mode)
        output = model(**as_embeds(expected, inputs), inference_mode=mode)
        torch.testing.assert_close(output.logits, expected.logits, **ROUND_OFF)

    features = model.get_video_features(inputs["support_pixel_values"])
    torch.testing.assert_close(features, expected.support_embeds, **ROUND_OFF)
    texts = model.get_class_features(inputs["class_input_ids"])
    torch.testing.assert_close(texts, expected.class_embeds, **ROUND_OFF)
    mixed = {key: value for key, value in inputs.items() if key != "support_pixel_values"}
    output = model(**mixed, support_embeds=features, inference_mode="ensemble")
    torch.testing.assert_close(output.logits, expected.logits, **ROUND_OFF)


@torch.no_grad()
def test_features_of_a_video_do_not_need_leading_dimensions(model, inputs):
    video = inputs["support_pixel_values"][0, 0]
    features = model.get_video_features(video)
    assert features.shape == (4, 16)
    batch = model.get_video_features(inputs["support_pixel_values"])
    assert batch.shape == (1, 6, 4, 16)
    torch.testing.assert_close(batch[0, 0], features, **ROUND_OFF)
    tokens = inputs["class_input_ids"][0, 0]
    assert model.get_class_features(tokens).shape == (16,)
    assert model.get_class_features(tokens, torch.ones_like(tokens)).shape == (16,)
    states = model.get_query_states(features)
    torch.testing.assert_close(states, model.get_query_states(batch)[0, 0], **ROUND_OFF)


@torch.no_grad()
def test_base_class_rows_stand_in_for_the_text_tower(model, inputs, monkeypatch):
    texts = model.get_class_features(inputs["class_input_ids"])[0]
    expected = model(**inputs, inference_mode="ensemble").logits
    rows = torch.tensor([[4, 1, 0]])
    base_class_embeds = torch.zeros(5, 16).index_copy(0, rows[0], texts)
    monkeypatch.setattr(model, "get_class_features", lambda *_: pytest.fail("the text tower ran"))
    output = model(**inputs, base_class_embeds=base_class_embeds, class_base_labels=rows, inference_mode="ensemble")
    torch.testing.assert_close(output.logits, expected, **ROUND_OFF)


@torch.no_grad()
def test_tokens_after_the_end_of_a_text_and_their_mask_do_not_matter(model, inputs):
    expected = model.get_class_features(inputs["class_input_ids"])
    padding = inputs["class_input_ids"] == 0
    junk = inputs["class_input_ids"].masked_fill(padding, 17)
    torch.testing.assert_close(model.get_class_features(junk), expected, **ROUND_OFF)
    torch.testing.assert_close(model.get_class_features(junk, (~padding).long()), expected, **ROUND_OFF)


# --- modes and configurations -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_ensemble_probabilities_are_the_normalised_official_product(model, inputs):
    distances = -model(**inputs).logits
    p_text = model(**inputs, inference_mode="zero_shot").logits.softmax(-1)
    for beta in (0.9, 0.5, 0.0, 1.0):
        p_visual = ((8 - distances) / 8).softmax(-1)
        product = p_text**beta * p_visual ** (1 - beta)
        with changed_config(model.config, ensemble_text_weight=beta):
            logits = model(**inputs, inference_mode="ensemble").logits
        torch.testing.assert_close(logits.exp(), product, **ROUND_OFF)
        torch.testing.assert_close(logits.softmax(-1), product / product.sum(-1, keepdim=True), **ROUND_OFF)


@torch.no_grad()
def test_zero_shot_needs_no_support_and_is_the_scaled_plain_cosine(model, inputs):
    del inputs["support_pixel_values"], inputs["support_labels"]
    output = model(**inputs, inference_mode="zero_shot")
    video, text = output.query_embeds.mean(2), output.class_embeds
    expected = 1.5 * torch.nn.functional.cosine_similarity(video.unsqueeze(2), text.unsqueeze(1), dim=-1)
    torch.testing.assert_close(output.logits, expected, **ROUND_OFF)
    assert output.prototypes is None
    torch.testing.assert_close(
        output.loss, torch.nn.functional.cross_entropy(expected[0], inputs["labels"][0]), **ROUND_OFF
    )


@torch.no_grad()
def test_inference_mode_may_come_from_the_configuration(tiny_model, inputs):
    for mode in MODES:
        expected = tiny_model()(**inputs, inference_mode=mode).logits
        assert torch.equal(tiny_model(inference_mode=mode)(**inputs).logits, expected)


@torch.no_grad()
def test_inference_mode_does_not_change_what_is_trained(model, inputs):
    losses = {mode: model(**inputs, inference_mode=mode).loss for mode in MODES}
    assert torch.equal(losses["few_shot"], losses["zero_shot"])
    assert torch.equal(losses["few_shot"], losses["ensemble"])


@pytest.mark.parametrize("pooling", ["before", "after"])
@torch.no_grad()
def test_without_modulation_texts_are_ignored_and_not_needed(tiny_model, inputs, pooling):
    model = tiny_model(prototype_modulation=False, support_pooling=pooling)
    expected = model(**inputs).logits
    other = inputs | {"class_input_ids": inputs["class_input_ids"].flip(1)}
    assert torch.equal(model(**other).logits, expected)
    del inputs["class_input_ids"]
    torch.testing.assert_close(model(**inputs).logits, expected, **ROUND_OFF)


@torch.no_grad()
def test_modulation_makes_prototypes_depend_on_their_own_text_only(model, inputs):
    expected = model(**inputs).prototypes
    other = inputs["class_input_ids"].clone()
    other[0, 1, 1] += 1
    prototypes = model(**inputs | {"class_input_ids": other}).prototypes
    assert torch.equal(prototypes[0, [0, 2]], expected[0, [0, 2]])
    assert (prototypes[0, 1] - expected[0, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_without_temporal_layers_a_prototype_is_the_mean_of_its_videos(tiny_model, inputs):
    model = tiny_model(temporal_num_layers=0)
    output = model(**inputs)
    expected = torch.stack([output.support_embeds[0, inputs["support_labels"][0] == n].mean(0) for n in range(3)])
    torch.testing.assert_close(output.prototypes[0], expected, **ROUND_OFF)
    assert torch.equal(model.get_query_states(output.query_embeds), output.query_embeds)


@torch.no_grad()
def test_temporal_transformer_is_what_the_paper_draws(model):
    """y = Attn(LN(x)) + x, z = FFN(y) + y, written with other tools than the model's."""
    layer = model.temporal_transformer.layers[0]
    attention, mlp = layer.attention, layer.mlp
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    normed = torch.nn.functional.layer_norm(x, (16,), attention.norm.weight, attention.norm.bias)
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        query, key, value = (
            normed @ projection.weight[head].T for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        heads.append((query @ key.mT / 8**0.5).softmax(-1) @ value)
    y = torch.cat(heads, -1) @ attention.out_proj.weight.T + attention.out_proj.bias + x
    inner = y @ mlp.fc1.weight.T + mlp.fc1.bias
    inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
    expected = inner @ mlp.fc2.weight.T + mlp.fc2.bias + y
    torch.testing.assert_close(model.temporal_transformer(x), expected, **ROUND_OFF)


@torch.no_grad()
def test_dropout_is_where_the_configuration_says(tiny_model):
    model = tiny_model(temporal_attention_dropout=1.0, temporal_hidden_dropout=1.0).train()
    x = torch.randn(1, 3, 4, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.get_query_states(x), x), "with everything dropped only the residual paths are left"
    model = tiny_model(temporal_attention_dropout=1.0, temporal_hidden_dropout=0.0)
    without_attention = model.train().get_query_states(x)
    torch.testing.assert_close(without_attention, x + model.temporal_transformer.layers[0].mlp(x), **ROUND_OFF)
    assert not torch.allclose(model.eval().get_query_states(x), without_attention, **ROUND_OFF)


@torch.no_grad()
def test_feed_forward_drops_out_after_both_of_its_layers(model):
    mlp, sizes = model.temporal_transformer.layers[0].mlp, []
    mlp.dropout.register_forward_hook(lambda module, args, output: sizes.append(output.shape[-1]))
    mlp(torch.zeros(1, 4, 16))
    assert sizes == [32, 16]


@torch.no_grad()
def test_alignments_that_ignore_order_do_not_see_reversed_queries_and_otam_does(tiny_model, inputs):
    reversed_queries = inputs | {"query_pixel_values": inputs["query_pixel_values"].flip(2)}
    for alignment, ignores_order in (("otam", False), ("bi_mhm", True), ("mean", True)):
        model = tiny_model(alignment=alignment)
        logits, reversed_logits = (model(**episode).logits for episode in (inputs, reversed_queries))
        assert torch.allclose(logits, reversed_logits, **ROUND_OFF) is ignores_order, alignment


@torch.no_grad()
def test_mean_alignment_is_the_distance_of_mean_frames_times_their_number(tiny_model, inputs):
    model = tiny_model(alignment="mean")
    output = model(**inputs)
    query, prototypes = model.get_query_states(output.query_embeds)[0].mean(1), output.prototypes[0].mean(1)
    norms = query.norm(dim=-1)[:, None] * prototypes.norm(dim=-1)
    torch.testing.assert_close(output.logits[0], -4 * (1 - query @ prototypes.T / (norms + 0.01)), **ROUND_OFF)


@torch.no_grad()
def test_queries_may_have_another_number_of_frames_than_the_support(model, inputs):
    longer = inputs | {"query_embeds": torch.randn(1, 6, 7, 16, generator=torch.Generator().manual_seed(0))}
    del longer["query_pixel_values"]
    for alignment in ("otam", "bi_mhm", "mean"):
        with changed_config(model.config, alignment=alignment):
            assert model(**longer).logits.shape == (1, 6, 3)


@torch.no_grad()
def test_a_query_is_nearest_to_its_own_copy_in_the_support(model, tiny_episode):
    inputs = tiny_episode(n_query=1)
    inputs["query_pixel_values"] = inputs["support_pixel_values"]
    with changed_config(model.config, prototype_modulation=False):
        assert model(**inputs).logits[0].argmax(-1).tolist() == [0, 1, 2]


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.5, 3.0, 0.0])
@torch.no_grad()
def test_loss_is_few_shot_plus_weighted_video_text(tiny_model, inputs, weight):
    model = tiny_model(video_text_loss_weight=weight)
    inputs = with_base_classes(model, inputs)
    output = model(**inputs)
    few_shot = torch.nn.functional.cross_entropy(output.logits[0], inputs["labels"][0])
    videos = torch.cat([output.support_embeds, output.query_embeds], dim=1)[0].mean(1)
    texts = inputs["base_class_embeds"]
    expected_logits = 1.5 * videos @ texts.T / (videos.norm(dim=-1)[:, None] * texts.norm(dim=-1) + 0.01)
    base_labels = torch.cat([inputs["support_base_labels"], inputs["query_base_labels"]], dim=1)[0]
    video_text = torch.nn.functional.cross_entropy(expected_logits, base_labels)
    torch.testing.assert_close(output.video_text_logits[0], expected_logits, **ROUND_OFF)
    torch.testing.assert_close(output.few_shot_loss, few_shot, **ROUND_OFF)
    torch.testing.assert_close(output.video_text_loss, video_text, **ROUND_OFF)
    torch.testing.assert_close(output.loss, few_shot + weight * video_text, **ROUND_OFF)


@torch.no_grad()
def test_negative_labels_are_ignored(model, inputs):
    inputs["labels"] = torch.tensor([[0, -1, 1, -100, -1, 2]])
    output = model(**inputs)
    expected = torch.nn.functional.cross_entropy(output.logits[0, [0, 2, 5]], torch.tensor([0, 1, 2]))
    torch.testing.assert_close(output.loss, expected, **ROUND_OFF)


@torch.no_grad()
def test_each_loss_is_there_with_its_labels_only(model, inputs):
    labels = inputs.pop("labels")
    output = model(**inputs)
    assert output.loss is None
    full = with_base_classes(model, inputs | {"labels": labels})
    del full["labels"]
    output = model(**full)
    assert output.few_shot_loss is None
    torch.testing.assert_close(output.loss, 1.5 * output.video_text_loss, **ROUND_OFF)
    del full["query_base_labels"], full["support_base_labels"]  # one without the other is refused
    output = model(**full)
    assert output.loss is None
    assert output.video_text_logits.shape == (1, 12, 5)


def test_frozen_text_tower_gets_no_gradient_and_everything_else_does(model, inputs):
    model.freeze_text_tower()
    model.train()
    model(**with_base_classes(model, inputs)).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    text = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("clip.text_model.", "clip.text_projection.", "clip.logit_scale"))
    }
    assert without == text
    # Not only unused, but off: distributed training waits for the gradient of everything that asks for one.
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == text
    zero = {name for name, parameter in model.named_parameters() if name not in text and not parameter.grad.any()}
    # A bias of the keys shifts all scores of a query alike, which softmax does not see: zero up to round-off.
    assert all(name.endswith("k_proj.bias") for name in zero), zero


def test_gradients_reach_the_text_tower_unless_it_is_frozen(model, inputs):
    model(**inputs).loss.backward()
    assert model.clip.text_projection.weight.grad is None  # a new model's is
    model.requires_grad_(True)
    model(**inputs).loss.backward()
    assert model.clip.text_projection.weight.grad.abs().sum() > 0


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        (["query_pixel_values"], {}, "no query videos: give query_pixel_values or query_embeds"),
        (["support_pixel_values"], {}, "inference_mode='few_shot' compares with support videos"),
        (["support_pixel_values"], {"inference_mode": "ensemble"}, "inference_mode='ensemble' compares with support"),
        (["class_input_ids"], {"inference_mode": "zero_shot"}, "inference_mode='zero_shot' compares with class texts"),
        (["class_input_ids"], {"inference_mode": "ensemble"}, "inference_mode='ensemble' compares with class texts"),
        (["support_labels"], {}, "support videos but no support_labels"),
        (["class_input_ids"], {}, "prototypes are modulated by the class texts: give class_input_ids or class_embeds"),
        ([], {"inference_mode": "guess"}, "inference_mode='guess' is not one of few_shot, zero_shot, ensemble"),
        ([], {"support_labels": torch.zeros(1, 4).long()}, r"support_labels has shape \(1, 4\), .* \(1, 6\)"),
        (
            ["class_input_ids"],
            {"class_embeds": torch.zeros(2, 3, 16)},
            "1 episodes of query videos but 2 of class inputs",
        ),
        (
            ["support_pixel_values"],
            {"support_embeds": torch.zeros(2, 6, 4, 16), "support_labels": torch.zeros(2, 6).long()},
            "1 episodes of query videos but 2 of support inputs",
        ),
        ([], {"query_pixel_values": torch.zeros(6, 4, 3, 16, 16)}, r"shape \(6, 4, 3, 16, 16\); .* leading dimension"),
    ],
)
def test_missing_or_unfitting_inputs_are_named(model, inputs, removed, added, message):
    inputs = {key: value for key, value in inputs.items() if key not in removed} | added
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_single_image_has_too_few_dimensions_for_video_features(model):
    with pytest.raises(ValueError, match=r"shape \(3, 16, 16\); \(\.\.\., frames, channels, height, width\)"):
        model.get_video_features(torch.zeros(3, 16, 16))


# --- outputs ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_states_and_attentions_of_the_visual_tower_come_on_request(tiny_model, inputs):
    model = tiny_model()
    assert model(**inputs).hidden_states is None
    model.set_attn_implementation("eager")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    num_frames, num_tokens = (6 + 6) * 4, 4 + 1
    assert [tuple(states.shape) for states in output.hidden_states] == [(num_frames, num_tokens, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(num_frames, 2, num_tokens, num_tokens)] * 2
    # Support frames first: those of a video alone are the first ones.
    alone = model.clip.vision_model(inputs["support_pixel_values"][0, 0], output_hidden_states=True).hidden_states
    torch.testing.assert_close(output.hidden_states[-1][:4], alone[-1], **ROUND_OFF)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (1, 3, 2, 5, 5)),
        ({"support_pooling": "after"}, (1, 6, 2, 5, 5)),
        ({"prototype_modulation": False}, (1, 3, 2, 4, 4)),
    ],
)
@torch.no_grad()
def test_attentions_of_the_temporal_transformer_come_under_names_of_their_own(tiny_model, inputs, settings, shape):
    model = tiny_model(temporal_num_layers=2, **settings)
    assert model(**inputs).prototype_attentions is None
    expected = model(**inputs, output_attentions=True)
    assert expected.prototype_attentions is None  # sdpa keeps no weights
    model.set_attn_implementation("eager")
    output = model(**inputs, output_attentions=True)
    assert [tuple(weights.shape) for weights in output.prototype_attentions] == [shape] * 2
    assert [tuple(weights.shape) for weights in output.query_attentions] == [(1, 6, 2, 4, 4)] * 2
    for weights in (*output.prototype_attentions, *output.query_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    torch.testing.assert_close(output.logits, expected.logits, **ROUND_OFF)


@torch.no_grad()
def test_return_dict_false_gives_a_tuple_of_what_is_there(model, inputs):
    output = model(**inputs)
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(output, CLIPFSAROutput)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(output.to_tuple())
    assert torch.equal(as_tuple[0], output.loss)
    assert torch.equal(as_tuple[1], output.logits)


@torch.no_grad()
def test_position_embeddings_are_interpolated_on_request(model, inputs):
    larger = torch.nn.functional.interpolate(inputs["query_pixel_values"][0].flatten(0, 1), scale_factor=2)
    inputs["query_pixel_values"] = larger.unflatten(0, (1, 6, 4))
    inputs["support_embeds"] = model.get_video_features(inputs.pop("support_pixel_values"))
    assert model(**inputs, interpolate_pos_encoding=True).logits.isfinite().all()
    with pytest.raises(ValueError, match="Input image size"):
        model(**inputs)


# --- implementations and precision ------------------------------------------------------------------------------------


@torch.no_grad()
def test_attention_implementations_agree(model, inputs):
    assert model.clip.vision_model.config._attn_implementation == "sdpa"
    expected = model(**inputs, inference_mode="ensemble").logits
    model.set_attn_implementation("eager")
    assert model.clip.vision_model.config._attn_implementation == "eager"
    torch.testing.assert_close(model(**inputs, inference_mode="ensemble").logits, expected, **ROUND_OFF)


@torch.no_grad()
def test_attention_registered_with_transformers_runs_in_the_temporal_transformer(model, inputs):
    expected, modules = model(**inputs), []

    def recorded(module, *arguments, **keywords):
        modules.append(type(module).__name__)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *arguments, **keywords)

    AttentionInterface.register("recorded", recorded)
    try:
        model.set_attn_implementation("recorded")
        output = model(**inputs)
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["recorded"]
    assert modules.count("CLIPFSARTemporalAttention") == 2  # prototypes, queries
    assert modules.count("CLIPAttention") == 4
    assert torch.equal(output.logits, expected.logits)


@torch.no_grad()
def test_default_attention_of_the_temporal_transformer_keeps_its_bits(model):
    attention = model.temporal_transformer.layers[0].attention
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    query, key, value = (
        projection(attention.norm(x)).unflatten(-1, (2, 8)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    context = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.equal(attention(x)[0], attention.out_proj(context.transpose(1, 2).flatten(2)))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # the name that all 5.x releases know
def test_gradient_checkpointing_gives_the_same_gradients(tiny_model, inputs):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(temporal_attention_dropout=0.0, temporal_hidden_dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
            assert model.temporal_transformer.layers[0].gradient_checkpointing
        model(**with_base_classes(model, inputs)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", ["before", "after"])
@torch.no_grad()
def test_half_precision_model_gives_finite_float32_logits_near_the_exact_ones(tiny_model, inputs, dtype, pooling):
    exact = tiny_model(support_pooling=pooling)
    half = tiny_model(support_pooling=pooling).to(dtype)
    for mode in MODES:
        logits = half(**inputs, inference_mode=mode).logits
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, exact(**inputs, inference_mode=mode).logits, rtol=0, atol=0.2)


@pytest.mark.parametrize("pooling", ["before", "after"])
def test_autocast_trains_with_alignment_and_losses_in_float32(tiny_model, inputs, pooling):
    model = tiny_model(support_pooling=pooling).train()
    inputs = with_base_classes(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
    assert output.logits.dtype == output.video_text_logits.dtype == output.loss.dtype == torch.float32
    output.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)


@torch.no_grad()
def test_distances_and_text_cosines_do_not_notice_autocast(model):
    generator = torch.Generator().manual_seed(0)
    queries, prototypes = (torch.randn(1, 3, 4, 16, generator=generator) for _ in range(2))
    texts = torch.randn(1, 3, 16, generator=generator)

    def results():
        distances = []
        for alignment in ("otam", "bi_mhm", "mean"):
            with changed_config(model.config, alignment=alignment):
                distances.append(model.get_distances(queries, prototypes))
        return [*distances, model.get_text_logits(queries, texts), model.get_video_text_logits(queries, texts[0])]

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for ours, exact in zip(results(), expected, strict=True):
            assert torch.equal(ours, exact)


@torch.no_grad()
def test_autocast_is_near_the_exact_logits(model, inputs):
    expected = model(**inputs).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.2)


@torch.no_grad()
def test_double_precision_model_stays_in_double_precision(tiny_model, inputs):
    expected = tiny_model()(**inputs, inference_mode="ensemble")
    output = tiny_model().double()(**inputs, inference_mode="ensemble")
    assert output.logits.dtype == output.prototypes.dtype == torch.float64
    torch.testing.assert_close(output.logits.float(), expected.logits, **ROUND_OFF)


def test_empty_batch_of_episodes_gives_no_logits(model):
    inputs = {
        "support_embeds": torch.zeros(0, 3, 4, 16),
        "support_labels": torch.zeros(0, 3, dtype=torch.long),
        "query_embeds": torch.zeros(0, 2, 4, 16),
        "class_embeds": torch.zeros(0, 3, 16),
    }
    assert model(**inputs).logits.shape == (0, 2, 3)


def test_head_compiles_into_one_graph_and_so_does_its_gradient(tiny_model, inputs):
    model = tiny_model(support_pooling="after")
    with torch.no_grad():
        features = as_embeds(model(**inputs), inputs)
    expected = model(**features, inference_mode="ensemble")
    # aot_eager traces forward and backward as inductor does, without the C++ compiler and the time that it takes.
    output = torch.compile(model, fullgraph=True, backend="aot_eager")(**features, inference_mode="ensemble")
    torch.testing.assert_close(output.logits, expected.logits, **ROUND_OFF)
    torch.testing.assert_close(output.loss, expected.loss, **ROUND_OFF)
    weight = model.temporal_transformer.layers[0].mlp.fc1.weight
    gradient, expected_gradient = (torch.autograd.grad(o.loss, weight)[0] for o in (output, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-6)


@torch.no_grad()
def test_whole_model_compiles_into_one_graph(model, inputs):
    expected = model(**inputs, inference_mode="ensemble").logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs, inference_mode="ensemble").logits, expected, **ROUND_OFF)


def test_loading_a_checkpoint_of_another_size_says_which_setting_differs(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = CLIPFSARConfig.from_pretrained(tmp_path, temporal_intermediate_size=48)
    with pytest.raises(ValueError, match=r"The weights in .* were trained with temporal_intermediate_size=32, not 48"):
        CLIPFSARModel.from_pretrained(tmp_path, config=config)


def test_plain_clip_checkpoint_needs_no_configuration_but_a_fitting_head_count(tmp_path, model):
    # 16 / 8 heads would do; CLIP's own sizes come from the checkpoint, never from the defaults.
    model.clip.save_pretrained(tmp_path)
    loaded = CLIPFSARModel.from_pretrained(tmp_path, for_training=True)
    assert isinstance(loaded.config.clip_config, CLIPConfig)
    assert loaded.config.hidden_size == 16
    assert loaded.temporal_transformer.layers[0].mlp.fc1.weight.shape == (2048, 16)
