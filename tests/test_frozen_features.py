"""Training on features of a frozen tower: the same episodes and losses as on the pixels they were made of."""

import pytest
import torch
from accelerate import Accelerator
from tiny_data import save_tiny_clip, video_splits, write_video_folder

from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.feature_store import FeatureStore
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.frozen_features import ROW, FeatureCollator, encode_draws, row_dataset
from episodes_clipfsar import EpisodeCollator, EpisodeDataset
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

SHAPE = {"n_way": 3, "n_shot": 2, "n_query": 2, "n_episodes": 4, "seed": 3}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return video_splits(write_video_folder(tmp_path_factory.mktemp("videos"), videos_per_class=4))["train"]


@pytest.fixture(scope="module")
def model_and_processor(tmp_path_factory):
    folder = save_tiny_clip(tmp_path_factory.mktemp("clip"))
    settings = {"num_frames": 3}
    model = CLIPFSARModel.from_pretrained(folder, for_training=True, temporal_num_heads=2, **settings).eval()
    return model, CLIPFSARProcessor.from_pretrained(folder, **settings)


@pytest.fixture
def encode(split, model_and_processor, tmp_path):
    def run(num_draws, seed=0):
        encoder = VideoEncoder(*model_and_processor, Accelerator(cpu=True), batch_size=5)
        draws = encode_draws(FeatureStore(tmp_path / "features", encoder), VideoSplit(split), num_draws, seed)
        return torch.stack(draws, dim=1)

    return run


@torch.no_grad()
def test_episodes_on_features_give_the_losses_of_the_same_episodes_on_pixels(split, model_and_processor, encode):
    model, processor = model_and_processor
    on_pixels = EpisodeDataset(split, **SHAPE)
    on_features = EpisodeDataset(row_dataset(split, "label"), **SHAPE, video_column=ROW)
    assert on_features.class_names == on_pixels.class_names
    episodes = range(SHAPE["n_episodes"])
    pixels = EpisodeCollator(processor)([on_pixels[i] for i in episodes])
    features = FeatureCollator(encode(1))([on_features[i] for i in episodes])
    for name in ("support_labels", "labels", "support_base_labels", "query_base_labels", "class_base_labels"):
        assert torch.equal(features[name], pixels[name]), name
    texts = torch.randn(4, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    expected, found = (model(**batch, base_class_embeds=texts) for batch in (pixels, features))
    torch.testing.assert_close(found.support_embeds, expected.support_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.loss, model(**pixels, base_class_embeds=texts).loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.logits, model(**pixels, base_class_embeds=texts).logits, rtol=0, atol=1e-5)


def test_draws_are_random_frames_that_depend_on_nothing_but_seed_draw_and_video(encode, tmp_path, split, capsys):
    features = encode(2)
    shown = capsys.readouterr().err
    assert "encoding training videos (1 of 2)" in shown
    assert "encoding training videos (2 of 2)" in shown
    assert features.shape == (len(split), 2, 3, 16)
    differs = (features[:, 0] - features[:, 1]).abs().amax((1, 2)) > 1e-4
    assert differs.float().mean() > 0.8  # of so few frames, the same may be drawn twice
    torch.testing.assert_close(encode(2), features, rtol=0, atol=0)  # from the store
    (tmp_path / "features").rename(tmp_path / "elsewhere")
    other_draws = encode(3)
    assert torch.equal(other_draws[:, :2], features)
    (tmp_path / "features").rename(tmp_path / "elsewhere_too")
    assert not torch.equal(encode(2, seed=1), features)


def test_features_of_another_seed_are_not_taken_for_these(encode):
    encode(2)
    with pytest.raises(ValueError, match="does not match: random draw"):
        encode(2, seed=1)


def test_stored_features_are_not_encoded_again(encode, monkeypatch):
    features = encode(1)
    monkeypatch.setattr(VideoEncoder, "batches", None)
    assert torch.equal(encode(1), features)


def test_every_episode_picks_its_own_draws():
    # Value = 10 * row + draw, so that an entry says where it came from.
    features = (10 * torch.arange(6).view(6, 1, 1, 1) + torch.arange(4).view(1, 4, 1, 1)).float()
    episode = {
        "support_videos": [0, 1, 2],
        "query_videos": [3, 4, 5],
        "class_base_labels": [0, 1, 2],
        **{name: [0, 1, 2] for name in ("support_labels", "support_base_labels", "labels", "query_base_labels")},
    }
    collator = FeatureCollator(features)
    batches = [collator([episode | {"seed": seed}]) for seed in range(20)]
    for batch in batches:
        assert batch["support_embeds"].shape == (1, 3, 1, 1)
        assert (batch["support_embeds"] // 10).flatten().tolist() == [0, 1, 2]
        assert (batch["query_embeds"] // 10).flatten().tolist() == [3, 4, 5]
    draws = {int(value) % 10 for batch in batches for value in batch["query_embeds"].flatten()}
    assert draws == {0, 1, 2, 3}
    again = collator([episode | {"seed": 0}, episode | {"seed": 1}])
    assert torch.equal(again["support_embeds"][1:], batches[1]["support_embeds"])


def test_draws_in_separate_tensors_give_the_batches_of_one_tensor():
    features = torch.randn(6, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    names = ("class_base_labels", "support_labels", "support_base_labels", "labels", "query_base_labels")
    episodes = [
        {"support_videos": [0, 1, 2], "query_videos": [5, 4, 5], "seed": seed} | {name: [0, 1, 2] for name in names}
        for seed in range(4)
    ]
    whole, draws = (FeatureCollator(given)(episodes) for given in (features, [features[:, d] for d in range(3)]))
    assert whole.keys() == draws.keys()
    assert all(torch.equal(whole[name], draws[name]) for name in whole)


def test_augmentation_of_pixels_is_refused_on_features():
    settings = {"freeze_vision": True, "query_augmentation": "kinetics"}
    with pytest.raises(ValueError, match=r"--query_augmentation kinetics changes pixels, .* or --feature_draws 0"):
        EpisodicTrainingArguments(**settings)
    assert not EpisodicTrainingArguments(**settings, feature_draws=0).trains_on_features
    assert not EpisodicTrainingArguments().trains_on_features
