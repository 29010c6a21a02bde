"""Labels of episodes: their type, shape and values, wherever the model takes them."""

import re

import pytest
import torch

BASE = {
    "base_class_embeds": torch.ones(4, 16),
    "support_base_labels": torch.tensor([[0, 1, 2]]),
    "query_base_labels": torch.tensor([[0, 0, 1, 1, 2, 2]]),
}
NAMES = ("labels", "support_labels", "support_base_labels", "query_base_labels", "class_base_labels")
SUPPORT, QUERIES = torch.ones(1, 2, 4, 16), torch.ones(1, 3, 4, 16)


@pytest.fixture
def given(tiny_episode):
    """An episode of 3 classes, 3 support videos and 6 queries, with every kind of labels; without class tokens."""
    episode = tiny_episode() | BASE | {"class_base_labels": torch.tensor([[0, 1, 2]])}
    del episode["class_input_ids"]
    return episode


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_that_are_no_whole_numbers_are_refused(tiny_model, given, name, dtype):
    given[name] = given[name].to(dtype)
    with pytest.raises(ValueError, match=rf"^{name} has the type {dtype}, but labels are whole numbers: use {name}"):
        tiny_model()(**given)


def test_labels_that_are_no_tensor_are_refused(tiny_model, given):
    given["labels"] = given["labels"].numpy()
    with pytest.raises(ValueError, match=r"labels is a ndarray, but must be a tensor: use torch.as_tensor\(labels\)"):
        tiny_model()(**given)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_of_any_integer_type_give_the_same(tiny_model, given, dtype):
    model = tiny_model()
    expected = model(**given)
    output = model(**given | {name: given[name].to(dtype) for name in NAMES})
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("labels", [[0], [0], [1], [1], [2], [2]]),
        ("labels", [0, 0, 1, 1, 2, 2]),
        ("labels", [[0, 1, 2]]),
        ("support_labels", [[0], [1], [2]]),
        ("support_base_labels", [0, 1, 2]),
        ("query_base_labels", [[0, 1, 2]]),
        ("class_base_labels", [0, 1, 2]),
    ],
)
def test_a_wrong_shape_of_labels_is_named_with_the_right_one(tiny_model, given, name, labels):
    labels = torch.tensor(labels)
    shape = (1, 6) if "query" in name or name == "labels" else (1, 3)
    needed = r"\(episodes, classes\)" if name == "class_base_labels" else rf"\({shape[0]}, {shape[1]}\)"
    with pytest.raises(ValueError, match=rf"^{name} has shape \({str(tuple(labels.shape))[1:-1]}\), but .*{needed}"):
        tiny_model()(**given | {name: labels})


def test_base_labels_of_exchanged_lengths_are_refused(tiny_model, given):
    given["support_base_labels"], given["query_base_labels"] = given["query_base_labels"], given["support_base_labels"]
    with pytest.raises(ValueError, match=r"support_base_labels has shape \(1, 6\), but .* of shape \(1, 3\)"):
        tiny_model()(**given)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_support_labels_that_name_no_class_are_refused(tiny_model, given):
    model = tiny_model(prototype_modulation=False)
    del given["class_base_labels"], given["labels"]
    with pytest.raises(ValueError, match=r"support_labels name no class, .*: give each class a support video"):
        model(**given | {"support_labels": torch.full((1, 3), -1)})
    with pytest.raises(ValueError, match="support_labels name no class"):
        model.get_prototypes(SUPPORT, torch.full((1, 2), -1))


@pytest.mark.parametrize("alignment", ["otam", "mean", "trx"])
@pytest.mark.parametrize(
    ("labels", "n_way", "message"),
    [
        ([[0, 2]], None, "Episode 0 of the batch has no support video of class 1, and there are 3 classes"),
        ([[0, 1]], 3, "has no support video of class 2"),
        ([[0, 1]], 1, "holds the label 1, but there are 1 classes"),
        ([[0, 1]], 0, "n_way=0 must be a whole number of at least 1"),
        ([[0], [1]], None, r"support_labels has shape \(2, 1\), but there are support videos of shape \(1, 2\)"),
        ([0, 1], None, r"support_labels has shape \(2,\)"),
        ([[-1, -1]], None, "support_labels name no class"),
        ([[0.0, 1.0]], None, "support_labels has the type torch.float32"),
        (None, 5, "n_way=5, but without support_labels each of the 2 support sequences is a class"),
    ],
)
def test_distances_are_to_classes_with_support_only(tiny_model, alignment, labels, n_way, message):
    model = tiny_model(alignment=alignment)
    labels = None if labels is None else torch.tensor(labels)
    with pytest.raises(ValueError, match=message):
        model.get_distances(QUERIES, SUPPORT, labels, n_way)


def test_prototypes_take_labels_of_their_classes_only(tiny_model):
    model, texts = tiny_model(), torch.ones(1, 2, 16)
    for labels, message in (([[0, 2]], "holds the label 2, but there are 2 classes"), ([[0.0, 1.0]], "has the type")):
        for compute in (model.get_prototypes, model.get_support_states):
            with pytest.raises(ValueError, match=f"support_labels {message}"):
                compute(SUPPORT, torch.tensor(labels), texts)
    with pytest.raises(ValueError, match=r"support_labels has shape \(2, 1\)"):
        model.average_shots(SUPPORT, torch.tensor([[0], [1]]), 2)


def test_a_support_of_no_video_lacks_its_classes(tiny_model, given):
    del given["support_pixel_values"], given["support_base_labels"], given["query_base_labels"]
    support = {"support_embeds": torch.ones(1, 0, 4, 16), "support_labels": torch.empty(1, 0, dtype=torch.long)}
    with pytest.raises(ValueError, match="Episode 0 of the batch has no support video of class 0, 1, 2, and there are"):
        tiny_model()(**given | support)


def test_a_loss_over_no_query_is_refused(tiny_model, given):
    given["query_pixel_values"], none = given["query_pixel_values"][:, :0], torch.empty(1, 0, dtype=torch.long)
    with pytest.raises(
        ValueError, match="There are labels of 0 videos, and a loss over no video is NaN: leave labels out"
    ):
        tiny_model()(**given | {"labels": none, "query_base_labels": none})


# --- tokens and pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"class_input_ids": torch.ones(1, 3, 4)},
            "class_input_ids has the type torch.float32, but tokens are whole numbers: give the tokens that",
        ),
        (
            {"class_attention_mask": torch.ones(1, 3, 5, dtype=torch.long)},
            "class_attention_mask has shape (1, 3, 5), but class_input_ids has (1, 3, 4): give one value per token",
        ),
        (
            {"class_attention_mask": torch.ones(3, 4, dtype=torch.long)},
            "class_attention_mask has shape (3, 4), but class_input_ids has (1, 3, 4): give one value per token",
        ),
        ({"class_attention_mask": [1]}, "class_attention_mask is a list, but must be a tensor"),
        (
            {"class_input_ids": torch.ones(3, 4, dtype=torch.long)},
            "class_embeds has shape (3, 16), but (episodes, classes, 16) is needed",
        ),
        (
            {"query_pixel_values": torch.ones(1, 6, 4, 3, 24, 24)},
            "Frames of support and of query videos have the shapes (3, 16, 16) and (3, 24, 24) (channels, height",
        ),
    ],
)
def test_tokens_and_frames_that_do_not_fit_are_named(tiny_model, given, changes, message):
    del given["class_base_labels"]
    given["class_input_ids"] = torch.ones(1, 3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_model()(**given | changes)


def test_tokens_of_any_integer_type_give_the_same(tiny_model, tiny_episode):
    model, tokens = tiny_model(), tiny_episode()["class_input_ids"]
    assert torch.equal(model.get_class_features(tokens.to(torch.uint8)), model.get_class_features(tokens))


@pytest.mark.parametrize("alignment", ["otam", "mean"])
@pytest.mark.parametrize("other", ["query_embeds", "class_embeds", "support_embeds"])
def test_features_of_float32_and_float64_are_compared_in_float64(tiny_model, given, alignment, other):
    model = tiny_model(alignment=alignment).double()
    features = {"query_embeds": QUERIES, "class_embeds": torch.ones(1, 2, 16), "support_embeds": SUPPORT}
    features |= {name: values.double() for name, values in features.items() if name != other}
    logits = model(**features, support_labels=torch.tensor([[0, 1]]), inference_mode="ensemble").logits
    assert logits.dtype == torch.float64
    assert model.get_distances(QUERIES.double(), SUPPORT).dtype == torch.float64


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replaced", "name", "features", "needed"),
    [
        ("query_pixel_values", "query_embeds", torch.ones(1, 6, 4, 7), "(episodes, videos, frames, 16)"),
        ("query_pixel_values", "query_embeds", torch.ones(1, 6, 16), "(episodes, videos, frames, 16)"),
        ("support_pixel_values", "support_embeds", torch.ones(3, 4, 16), "(episodes, videos, frames, 16)"),
        ("class_base_labels", "class_embeds", torch.ones(3, 16), "(episodes, classes, 16)"),
        ("class_base_labels", "base_class_embeds", torch.ones(1, 4, 16), "(classes, 16)"),
    ],
)
def test_features_of_another_shape_are_named(tiny_model, given, replaced, name, features, needed):
    del given[replaced]
    message = re.escape(f"{name} has shape {tuple(features.shape)}, but {needed} is needed: the model's features have")
    with pytest.raises(ValueError, match=message):
        tiny_model()(**given | {name: features})


@pytest.mark.parametrize("name", ["support_pixel_values", "query_pixel_values", "base_class_embeds"])
def test_arrays_are_refused(tiny_model, given, name):
    given[name] = given[name].numpy()
    with pytest.raises(ValueError, match=rf"{name} is a ndarray, but must be a tensor: use torch.as_tensor\({name}\)"):
        tiny_model()(**given)


@pytest.mark.parametrize("weight", [3.0, -0.1, float("nan"), "0.5", True])
def test_the_weight_of_texts_in_an_ensemble_is_a_share(tiny_model, weight):
    with pytest.raises(ValueError, match=r"ensemble_text_weight=.* must be a number from 0 to 1"):
        tiny_model().get_logits(torch.ones(1, 2, 3), torch.ones(1, 2, 3), "ensemble", weight)


def test_base_labels_beyond_the_classifier_of_a_head_are_refused(tiny_model, given):
    model = tiny_model(alignment="hyrsm", num_base_classes=2, video_text_loss_weight=0.0).train()
    with pytest.raises(ValueError, match="query_base_labels holds the label 2, but there are 2 classes"):
        model(**given)
