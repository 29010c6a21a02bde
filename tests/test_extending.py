"""Extension points: a backbone and a distance of one's own, each as a reader would write it."""

import pytest
import torch
from tiny_data import random_clip, tiny_tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel, CLIPImageProcessor, PretrainedConfig, PreTrainedModel

from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from processing_clipfsar import CLIPFSARProcessor

# --- a backbone -------------------------------------------------------------------------------------------------------


class ToyConfig(PretrainedConfig):
    model_type = "toy"

    def __init__(self, vocab_size=54, projection_dim=16, **kwargs):
        self.vocab_size, self.projection_dim = vocab_size, projection_dim
        super().__init__(**kwargs)


class ToyModel(PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.vision_model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, config.projection_dim))
        self.text_model = nn.Embedding(config.vocab_size, config.projection_dim)
        self.post_init()

    def get_image_features(self, pixel_values):
        return self.vision_model(pixel_values)

    def get_text_features(self, input_ids, attention_mask):
        words = self.text_model(input_ids) * attention_mask.unsqueeze(-1)
        return words.sum(1) / attention_mask.sum(1, keepdim=True)


AutoConfig.register("toy", ToyConfig)
AutoModel.register(ToyConfig, ToyModel)


def toy_config(**overrides) -> CLIPFSARConfig:
    return CLIPFSARConfig(clip_config=ToyConfig(), num_frames=4, temporal_num_heads=2, **overrides)


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return CLIPFSARModel(toy_config()).eval()


@pytest.fixture
def toy_processor():
    image_processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPFSARProcessor(image_processor, tiny_tokenizer(), num_frames=4)


@pytest.fixture
def episode(toy_processor):
    support = {"run": [random_clip(1)], "dive": [random_clip(2)]}
    return toy_processor(support_videos=support, query_videos=[random_clip(3)], query_labels=["dive"])


def test_a_backbone_of_ones_own_trains_its_visual_tower(toy, episode):
    toy.freeze_text_tower()
    output = toy.train()(**episode)
    assert output.logits.shape == (1, 1, 2)
    output.loss.backward()
    trained = {name for name, parameter in toy.named_parameters() if parameter.grad is not None}
    of_backbone = {name for name in trained if name.startswith("clip.")}
    assert of_backbone == {"clip.vision_model.2.weight", "clip.vision_model.2.bias"}
    assert any(name.startswith("temporal_transformer.") for name in trained)


def test_a_backbone_of_ones_own_is_saved_and_loaded(toy, episode, tmp_path):
    toy.save_pretrained(tmp_path)
    loaded = CLIPFSARModel.from_pretrained(tmp_path)
    assert type(loaded.clip) is ToyModel
    with torch.no_grad():
        assert torch.equal(loaded(**episode).logits, toy(**episode).logits)


def test_the_plain_checkpoint_of_a_backbone_of_ones_own_is_a_start(toy, tmp_path):
    toy.clip.save_pretrained(tmp_path)
    started = CLIPFSARModel.from_pretrained(tmp_path, temporal_num_heads=4)
    assert torch.equal(started.clip.text_model.weight, toy.clip.text_model.weight)
    frames = torch.ones(1, 4, 3, 16, 16)
    assert torch.equal(started.get_video_features(frames), toy.get_video_features(frames))


def test_a_backbone_of_ones_own_enrolls_and_classifies(toy, toy_processor):
    classify = FewShotVideoClassificationPipeline(toy, toy_processor)
    classify.enroll({"run": [random_clip(1)], "dive": [random_clip(2)]})
    assert classify(random_clip(2))[0]["label"] == "dive"


def test_a_visual_tower_by_another_name_is_not_frozen_in_silence(toy):
    toy.clip.frames = toy.clip.vision_model
    del toy.clip.vision_model
    with pytest.raises(ValueError, match=r"ToyModel has no part called vision_model\. .*call its visual tower vision_"):
        toy.freeze_text_tower()


def test_a_backbone_that_does_not_say_how_large_its_features_are_is_refused():
    with pytest.raises(ValueError, match="type 'toy' does not say how large a feature is: give it a projection_dim"):
        CLIPFSARConfig(clip_config=ToyConfig(projection_dim=None))
