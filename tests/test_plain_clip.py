"""A plain CLIP means one thing everywhere: no untrained layers for inference, new ones by the seed in training."""

import warnings

import pytest
import torch
from accelerate import Accelerator
from documentation import ROOT, block_with
from safetensors.torch import load_file, save_file
from tiny_data import SETTINGS, random_clip, save_tiny_clip, video_splits, write_video_folder
from torch.utils.data import DataLoader
from transformers import CLIPModel, pipeline

import pipeline_clipfsar
from clipfsar.evaluation.arguments import EvaluateArguments
from clipfsar.evaluation.evaluate_model import _encoder
from clipfsar.inference.load_model import load_model
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.trainer import EpisodicTrainer
from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor

CLIPS = {"boxing": [random_clip(0), random_clip(1)], "diving": [random_clip(2)]}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return video_splits(write_video_folder(tmp_path_factory.mktemp("videos"), videos_per_class=6))


def assert_same_weights(model, other):
    weights, others = model.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


def of_the_pipeline(folder):
    return pipeline("few-shot-video-classification", model=str(folder)).model


def of_evaluate(folder):
    arguments = EvaluateArguments(model=str(folder), dataset="none")
    return _encoder(str(folder), None, arguments, Accelerator(cpu=True)).model


WAYS = {
    "from_pretrained": CLIPFSARModel.from_pretrained,
    "load_model": lambda folder: load_model(str(folder))[0],
    "evaluate": of_evaluate,
    "pipeline": of_the_pipeline,
    "from_clip": lambda folder: CLIPFSARModel.from_clip(CLIPModel.from_pretrained(folder)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_plain_clip_gives_the_same_model_without_untrained_layers(tiny_clip, way):
    model = WAYS[way](tiny_clip)
    assert (model.config.temporal_num_layers, model.config.prototype_modulation) == (0, False)
    torch.testing.assert_close(model.video_text_scale[0], model.clip.logit_scale.exp())
    assert not model.training
    assert_same_weights(model, CLIPFSARModel.from_pretrained(tiny_clip))


def test_it_is_said_in_one_line_and_transformers_reports_nothing(tiny_clip, caplog, capfd):
    CLIPFSARModel.from_pretrained(tiny_clip)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tiny_clip} is a plain CLIP: classifying by its frame features, without training."
    ]
    assert "MISSING" not in capfd.readouterr().err


@pytest.mark.parametrize("key", ["visual_projection.weight", "text_model.encoder.layers.0.mlp.fc1.bias"])
@pytest.mark.parametrize("is_plain", [True, False])
def test_a_file_without_a_weight_of_clip_is_refused(key, is_plain, tmp_path):
    save_tiny_clip(tmp_path)
    if not is_plain:
        CLIPFSARModel.from_pretrained(tmp_path, for_training=True).save_pretrained(tmp_path)
        key = f"clip.{key}"
    weights = load_file(tmp_path / "model.safetensors")
    del weights[key]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    missing = f"clip.{key.removeprefix('clip.')}"
    with pytest.raises(ValueError, match=f"^The weights in '{tmp_path}' lack '{missing}': the file is damaged, or"):
        CLIPFSARModel.from_pretrained(tmp_path)
    CLIPFSARModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    _, info = CLIPFSARModel.from_pretrained(tmp_path, output_loading_info=True)  # the caller decides
    assert set(info["missing_keys"]) == {missing}


def test_given_settings_win(tiny_clip):
    model = CLIPFSARModel.from_pretrained(tiny_clip, temporal_num_layers=2)
    assert (model.config.temporal_num_layers, model.config.prototype_modulation) == (2, True)
    assert (model.video_text_scale.item(), model.config.added_by_training) == (1.0, None)
    model = CLIPFSARModel.from_pretrained(tiny_clip, prototype_modulation=False, video_text_scale_init=3.0)
    assert (model.config.temporal_num_layers, model.video_text_scale.item()) == (0, 3.0)
    model.add_untrained_layers(0)
    assert (model.config.temporal_num_layers, model.config.prototype_modulation) == (1, False)
    assert model.video_text_scale.item() == 3.0


@pytest.mark.parametrize("is_saved_first", [False, True])
def test_training_adds_the_layers_that_the_seed_gives(tiny_clip, tmp_path, is_saved_first):
    torch.manual_seed(7)
    expected = CLIPFSARModel.from_pretrained(tiny_clip, for_training=True)
    model = CLIPFSARModel.from_pretrained(tiny_clip)
    if is_saved_first:
        model.save_pretrained(tmp_path)
        model = CLIPFSARModel.from_pretrained(tmp_path)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    model.add_untrained_layers(7)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(model, expected)
    for name in ("temporal_num_layers", "prototype_modulation", "video_text_scale_init", "added_by_training"):
        assert getattr(model.config, name) == getattr(expected.config, name), name
    before = model.temporal_transformer
    model.add_untrained_layers(8)  # nothing is missing any more
    assert model.temporal_transformer is before


@pytest.mark.parametrize("load", [CLIPFSARModel.from_pretrained, CLIPFSARConfig.from_pretrained])
def test_the_text_false_does_not_count_as_true_for_training(tiny_clip, load):
    with pytest.raises(ValueError, match="for_training='False' must be True or False"):
        load(tiny_clip, for_training="False")


def test_the_trainer_trains_the_layers_of_the_method(tiny_clip, splits, tmp_path, fresh_accelerate):
    settings = {name: value for name, value in SETTINGS.items() if name != "num_frames"}
    args = EpisodicTrainingArguments(output_dir=str(tmp_path), seed=7, **settings)
    model = CLIPFSARModel.from_pretrained(tiny_clip, num_frames=4)
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    trainer = EpisodicTrainer(model, args, splits["train"], processing_class=processor)
    torch.manual_seed(7)
    assert_same_weights(model, CLIPFSARModel.from_pretrained(tiny_clip, for_training=True))
    assert (trainer.args.temporal_num_layers, trainer.args.prototype_modulation) == (1, True)


def test_the_pipeline_answers_with_a_plain_clip(tiny_clip):
    classify = pipeline("few-shot-video-classification", model=str(tiny_clip))
    classify.enroll(CLIPS)
    (best, _) = classify(random_clip(0))
    assert best["label"] == "boxing"


def test_a_pipeline_of_a_plain_clip_in_memory_samples_what_the_processor_samples(tiny_clip, processor):
    clip = CLIPModel.from_pretrained(tiny_clip)
    classify = pipeline_clipfsar.FewShotVideoClassificationPipeline(model=clip, processor=processor)
    assert classify.model.config.num_frames == processor.num_frames == 4


# --- training by hand -------------------------------------------------------------------------------------------------


def test_train_mode_freezes_the_text_tower(tiny_clip):
    model = CLIPFSARModel.from_pretrained(tiny_clip, for_training=True)
    assert model.train() is model
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    text_tower = ("clip.text_model.", "clip.text_projection.", "clip.logit_scale")
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(text_tower)}
    assert frozen


def loop_of_the_documentation() -> str:
    """The part of a block that makes episodes for a training loop of one's own, without worker processes."""
    block = block_with(ROOT / "docs/extend/training-loop.md", "python", "in loader")
    part = block[block.index("episodes = ") : block.index("    loss.backward()")]
    part = part.replace("n_episodes=10_000", "n_episodes=2")
    assert "num_workers=4" in part
    imports = "from clipfsar import EpisodeCollator, EpisodeDataset\n"
    return imports + part.replace("num_workers=4", "num_workers=0")


def test_the_loop_of_the_documentation_has_the_loss_of_the_method_or_says_what_is_missing(tiny_clip, splits):
    model = CLIPFSARModel.from_pretrained(tiny_clip, for_training=True, num_frames=4).train()
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    block = loop_of_the_documentation().replace("n_way=5", "n_way=3")
    names = {
        "model": model,
        "processor": processor,
        "dataset": splits["train"],
        "DataLoader": DataLoader,
        "torch": torch,
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(block, names)
    said = [str(warning.message) for warning in caught if "video-text contrast" in str(warning.message)]
    assert bool(said) == ("base_class_embeds" not in block)
    names["loss"].backward()
    assert {
        name for name, p in model.clip.named_parameters() if p.grad is not None and name.startswith("text_")
    } == set()


def test_the_remedy_of_the_warning_gives_the_loss_with_the_contrast(tiny_clip, splits):
    from episodes_clipfsar import EpisodeCollator, EpisodeDataset

    model = CLIPFSARModel.from_pretrained(tiny_clip, for_training=True, num_frames=4)
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    dataset = EpisodeDataset(splits["train"], n_way=3, n_episodes=1, n_query=1)
    batch = EpisodeCollator(processor)([dataset[0]])
    with pytest.warns(
        UserWarning, match="leaves out the video-text contrast: there are base labels, but no base_class_e"
    ):
        assert model(**batch).video_text_loss is None
    with torch.no_grad():
        base_class_embeds = model.get_class_features(**processor.tokenize_classes(dataset.class_names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = model(**batch, base_class_embeds=base_class_embeds)
    torch.testing.assert_close(output.loss, output.few_shot_loss + 1.5 * output.video_text_loss)
