"""Extension points: a backbone, a distance and a data source of one's own, each as a reader would write it."""

import zipfile

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_data import model_of_tiny_clip, random_clip, tiny_model_and_processor, tiny_tokenizer, write_video
from torch import nn
from transformers import AutoConfig, AutoModel, CLIPImageProcessor, PretrainedConfig, PreTrainedModel

from clipfsar.evaluation.episodes import evaluate_features
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.trainer import EpisodicTrainer
from configuration_clipfsar import CLIPFSARConfig
from left_out_clipfsar import leave_one_out
from modeling_clipfsar import CLIPFSARModel, evaluating
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from processing_clipfsar import CLIPFSARProcessor
from support_set_clipfsar import SupportSet

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
    started = CLIPFSARModel.from_pretrained(tmp_path, for_training=True, temporal_num_heads=4)
    assert torch.equal(started.clip.text_model.weight, toy.clip.text_model.weight)
    frames = torch.ones(1, 4, 3, 16, 16)
    assert torch.equal(started.get_video_features(frames), toy.get_video_features(frames))


def test_a_backbone_of_ones_own_enrolls_and_classifies(toy, toy_processor):
    classify = FewShotVideoClassificationPipeline(toy, toy_processor)
    classify.enroll({"run": [random_clip(1)], "dive": [random_clip(2)]})
    assert classify(random_clip(2))[0]["label"] == "dive"


def test_a_text_tower_without_input_embeddings_says_so(toy):
    with pytest.raises(NotImplementedError, match="text tower of ToyModel has no get_input_embeddings"):
        toy.get_input_embeddings()
    with pytest.raises(NotImplementedError, match="text tower of ToyModel has no get_input_embeddings"):
        toy.set_input_embeddings(torch.nn.Embedding(2, 2))


def test_a_visual_tower_by_another_name_is_not_frozen_in_silence(toy):
    toy.clip.frames = toy.clip.vision_model
    del toy.clip.vision_model
    with pytest.raises(ValueError, match=r"ToyModel has no part called vision_model\. .*call its visual tower vision_"):
        toy.freeze_text_tower()


def test_a_backbone_that_does_not_say_how_large_its_features_are_is_refused():
    with pytest.raises(ValueError, match="type 'toy' does not say how large a feature is: give it a projection_dim"):
        CLIPFSARConfig(clip_config=ToyConfig(projection_dim=None))


# --- a distance -------------------------------------------------------------------------------------------------------


class TimeWarpedModel(CLIPFSARModel):
    """Dynamic time warping: the cheapest way through the matrix, from its first cell to its last."""

    def align(self, frame_distances):
        costs = frame_distances[..., 0, :].cumsum(-1).unbind(-1)
        for row in frame_distances[..., 1:, :].unbind(-2):
            above, costs = costs, []
            for column, cell in enumerate(row.unbind(-1)):
                ways = [*above[max(0, column - 1) : column + 1], *costs[-1:]]
                costs.append(cell + torch.stack(ways).amin(0))
        return costs[-1]


CLIPS = {"run": [random_clip(1), random_clip(4)], "dive": [random_clip(2), random_clip(5)]}


@pytest.fixture(params=["otam", "mean"])
def models(request):
    """The same weights with the configuration's distance and with one of one's own, and a processor."""
    usual, processor = tiny_model_and_processor(alignment=request.param)
    own = TimeWarpedModel(usual.config).eval()
    own.load_state_dict(usual.state_dict(), assign=True)  # the very same tensors
    return usual, own, processor


def own_distances(model, query_embeds, prototypes):
    return model.align(model.get_frame_distances(model.get_query_states(query_embeds), prototypes))


def test_the_example_is_dynamic_time_warping():
    matrix = torch.tensor([[1.0, 9.0, 9.0], [2.0, 9.0, 9.0], [9.0, 3.0, 4.0]])
    assert TimeWarpedModel.align(None, matrix).item() == 1 + 2 + 3 + 4


def test_episodes_are_decided_by_ones_own_distance(models):
    usual, own, processor = models
    episode = processor(support_videos=CLIPS, query_videos=[random_clip(3)], query_labels=["dive"])
    output = own(**episode)
    assert torch.equal(output.logits, -own_distances(own, output.query_embeds, output.prototypes))
    assert not torch.allclose(output.logits, usual(**episode).logits)
    output.loss.backward()
    assert own.temporal_transformer.layers[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_a_support_set_does_not_serve_the_answers_of_another_distance(models):
    usual, own, processor = models
    support_set = SupportSet.from_videos(usual, processor, CLIPS)
    with torch.no_grad():
        query_embeds = own.get_video_features(processor.process_videos([random_clip(3)]))
        usual_logits = support_set.classify(usual, query_embeds)
        usual_left_out = leave_one_out(usual, support_set.classes, range(4)).distances
        logits = support_set.classify(own, query_embeds)
        assert torch.equal(logits, -own_distances(own, query_embeds, support_set.get_prototypes(own)))
    left_out = leave_one_out(own, support_set.classes, range(4)).distances
    assert not torch.allclose(left_out, usual_left_out)
    assert torch.equal(support_set.classify(usual, query_embeds), usual_logits)


def test_explanations_show_the_path_of_ones_own_distance(models):
    _, own, processor = models
    classify = FewShotVideoClassificationPipeline(own, processor)
    classify.enroll(CLIPS)
    explanation = classify.explain(random_clip(3))
    torch.testing.assert_close(explanation.distances, own.align(explanation.frame_distances), rtol=0, atol=1e-6)
    assert set(explanation.alignment.unique().tolist()) == {0.0, 1.0}  # a pair is on the path or not
    assert (explanation.alignment[:, 0, 0] == 1).all()
    assert (explanation.alignment[:, -1, -1] == 1).all()
    scores = {entry["label"]: entry["score"] for entry in classify(random_clip(3))}
    for name, score in zip(explanation.class_names, (-explanation.distances).softmax(-1).tolist(), strict=True):
        assert scores[name] == pytest.approx(score, abs=1e-6)


def test_evaluation_uses_ones_own_distance(models):
    class Contrary(TimeWarpedModel):
        def align(self, frame_distances):
            return -super().align(frame_distances)

    _, own, processor = models
    contrary = Contrary(own.config).eval()
    contrary.load_state_dict(own.state_dict())
    with torch.no_grad():
        clips = [random_clip(seed) for seed in (1, 1, 1, 2, 2, 2)]
        embeds = own.get_video_features(processor.process_videos(clips))
        texts = own.get_class_features(**processor.tokenize_classes(["run", "dive"]))
    protocol = Protocol(n_way=2, n_shot=1, n_episodes=4, inference_modes="few_shot")
    labels = np.array([0, 0, 0, 1, 1, 1])
    for model, accuracy in ((own, 100.0), (contrary, 0.0)):
        (result,) = evaluate_features(SplitFeatures(model, embeds, texts, labels), protocol, ["run", "dive"])
        assert result.accuracy == accuracy


def test_a_model_with_ones_own_distance_is_saved_and_loaded(models, tmp_path):
    _, own, processor = models
    own.save_pretrained(tmp_path)
    episode = processor(support_videos=CLIPS, query_videos=[random_clip(3)])
    loaded = TimeWarpedModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**episode).logits, own(**episode).logits)


# --- a data source ----------------------------------------------------------------------------------------------------


def videos_in_zip(path):
    """Rows of a data set out of one archive: the bytes of each file, and its folder as its class."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            yield {"video": {"path": name, "bytes": archive.read(name)}, "label": name.split("/")[0]}


def test_a_data_source_of_ones_own_trains_and_evaluates(tiny_clip, processor, tmp_path):
    colours = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "white": (240, 240, 240)}
    with zipfile.ZipFile(tmp_path / "videos.zip", "w") as archive:
        for name, colour in colours.items():
            for number in range(3):
                write_video(tmp_path / "clip.mp4", colour, seed=number)
                archive.write(tmp_path / "clip.mp4", f"{name}/{number}.mp4")
    videos = Dataset.from_list(list(videos_in_zip(tmp_path / "videos.zip")))
    base, novel = (
        videos.filter(lambda label, names=names: label in names, input_columns="label")
        for names in (("red", "green"), ("blue", "white"))
    )
    args = EpisodicTrainingArguments(
        output_dir=str(tmp_path / "run"),
        n_way=2,
        n_shot=[1],
        train_n_query=1,
        episodes=4,
        eval_every=4,
        eval_episodes=5,
        num_workers=0,
        report_to="none",
    )
    trainer = EpisodicTrainer(model_of_tiny_clip(tiny_clip), args, base, novel, processor)
    trainer.train()
    (result,) = trainer.evaluate(novel, inference_modes="few_shot", n_episodes=10)
    assert set(result.per_class) == {"blue", "white"}


# --- evaluation mode --------------------------------------------------------------------------------------------------


def test_modes_come_back_after_an_exception(toy):
    toy.train()
    toy.clip.eval()  # as after freezing

    def have_an_accident():
        with evaluating(toy):
            assert not any(module.training for module in toy.modules())
            assert not torch.is_grad_enabled()
            raise KeyError("an accident")

    with pytest.raises(KeyError):
        have_an_accident()
    assert torch.is_grad_enabled()
    assert toy.training
    assert toy.temporal_transformer.training
    assert not toy.clip.training
