"""What is computed once for a split is what the model computes in each episode."""

import numpy as np
import pytest
import torch
from golden.formula_model import tiny_class_input_ids

from clipfsar.evaluation.episodes import predict_episodes
from clipfsar.evaluation.split_features import SplitFeatures
from configuration_clipfsar import INFERENCE_MODES
from episodes_clipfsar import EpisodeSampler

LABELS = np.repeat(np.arange(4), 5)
CONFIGS = [
    {"alignment": "otam"},
    {"alignment": "otam", "otam_bidirectional": False},
    {"alignment": "bi_mhm"},
    {"alignment": "mean"},
    {"support_pooling": "after"},
    {"prototype_modulation": False},
    {"temporal_num_layers": 0},
]


def config_id(config) -> str:
    return "-".join(map(str, config.values()))


@pytest.fixture(scope="module")
def pixel_values():
    """20 videos of four classes: each is the pattern of its class under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(4, 1, 3, 16, 16, generator=generator)
    return patterns[LABELS] + torch.randn(len(LABELS), 4, 3, 16, 16, generator=generator)


@torch.no_grad()
def features_of(model, pixel_values, **options) -> SplitFeatures:
    class_embeds = model.get_class_features(tiny_class_input_ids(4)[0])
    return SplitFeatures(model, model.get_video_features(pixel_values), class_embeds, LABELS, **options)


@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
@torch.no_grad()
def test_cached_states_are_the_models_own(tiny_model, pixel_values, config):
    model = tiny_model(**config)
    features = features_of(model, pixel_values, videos_per_batch=7)  # 20 videos in three batches, the last not full
    videos, texts = features.video_embeds, features.class_embeds
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(features.query_states, model.get_query_states(videos), **close)
    torch.testing.assert_close(
        features.text_logits, model.get_text_logits(videos.unsqueeze(0), texts.unsqueeze(0))[0], **close
    )
    labels = torch.tensor([[0, 1, 2, 3]])
    for first in range(5):  # an episode of the first videos of all classes, of the second ones, ...
        rows = torch.arange(first, 20, 5)
        prototypes = model.get_prototypes(videos[rows].unsqueeze(0), labels, texts.unsqueeze(0))[0]
        torch.testing.assert_close(features.one_shot_prototypes[rows], prototypes, **close)


def test_states_are_computed_once_and_without_dropout_or_gradients(tiny_model, pixel_values):
    model = tiny_model()
    expected = features_of(model, pixel_values)
    features = features_of(model.train(), pixel_values)
    for name in ("query_states", "text_logits", "one_shot_prototypes"):
        state = getattr(features, name)
        assert getattr(features, name) is state
        assert not state.requires_grad
        assert model.training
    torch.testing.assert_close(features.query_states, expected.query_states)


@pytest.mark.parametrize("n_shot", [1, 3])
@pytest.mark.parametrize("config", CONFIGS, ids=config_id)
@torch.no_grad()
def test_answers_to_episodes_are_those_of_the_whole_model_on_pixels(tiny_model, pixel_values, config, n_shot):
    model = tiny_model(**config)
    sampler = EpisodeSampler(LABELS, n_way=3, n_shot=n_shot, n_query=2, seed=1)
    indices = [9, 0, 4, 5, 2]
    answers = predict_episodes(
        features_of(model, pixel_values), sampler, indices, INFERENCE_MODES, episodes_per_batch=3
    )
    token_ids = tiny_class_input_ids(4)[0]
    assert list(answers) == list(INFERENCE_MODES)
    for mode, predictions in answers.items():
        assert predictions.class_ids.shape == (5, 3)
        assert predictions.query_rows.shape == predictions.confidences.shape == (5, 6)
        for position, index in enumerate(indices):
            episode = sampler.sample(index)
            support, query = episode.support_rows.flatten(), episode.query_rows.flatten()
            logits = model(
                support_pixel_values=pixel_values[support].unsqueeze(0),
                support_labels=torch.arange(3).repeat_interleave(n_shot).unsqueeze(0),
                query_pixel_values=pixel_values[query].unsqueeze(0),
                class_input_ids=token_ids[episode.class_ids].unsqueeze(0),
                inference_mode=mode,
            ).logits[0]
            confidences, predicted = logits.softmax(-1).max(-1)
            assert predictions.class_ids[position].tolist() == episode.class_ids.tolist()
            assert predictions.query_rows[position].tolist() == query.tolist()
            assert predictions.true_classes[position].tolist() == LABELS[query].tolist()
            assert predictions.predicted_classes[position].tolist() == episode.class_ids[predicted].tolist(), mode
            np.testing.assert_allclose(predictions.confidences[position], confidences, rtol=1e-4)
    assert len(np.unique(answers["few_shot"].predicted_classes)) > 1  # or the comparison would show little


@torch.no_grad()
def test_answers_from_features_are_those_of_the_model_on_features(tiny_model, pixel_values):
    model = tiny_model()
    features = features_of(model, pixel_values)
    sampler = EpisodeSampler(LABELS, n_way=4, n_shot=2, n_query=1)
    episodes = [sampler.sample(index) for index in range(6)]
    support, query = (
        torch.tensor(np.stack([getattr(episode, name).flatten() for episode in episodes]))
        for name in ("support_rows", "query_rows")
    )
    classes = torch.tensor(np.stack([episode.class_ids for episode in episodes]))
    logits = model(
        support_embeds=features.video_embeds[support],
        support_labels=torch.arange(4).repeat_interleave(2).expand(6, -1),
        query_embeds=features.video_embeds[query],
        class_embeds=features.class_embeds[classes],
    ).logits
    answers = predict_episodes(features, sampler, range(6))["few_shot"]
    assert answers.predicted_classes.tolist() == classes.take_along_dim(logits.argmax(-1), 1).tolist()
    np.testing.assert_allclose(answers.confidences, logits.softmax(-1).amax(-1), rtol=1e-5)
