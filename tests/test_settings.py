"""Settings, names, labels and numbers are checked wherever they come from; what is wrong is named, never used."""

import copy
import inspect
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_data import random_clip, tiny_model_and_processor, video_splits, write_video_folder
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

from clipfsar.evaluation.evaluate_model import evaluate_episodes
from configuration_clipfsar import CLIPFSARConfig
from labels_clipfsar import check_answer
from modeling_clipfsar import CLIPFSARModel
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from processing_clipfsar import CLIPFSARProcessor
from support_set_clipfsar import SupportSet

NAN, INF = float("nan"), float("inf")
# Values that each field of the configuration refuses.
WRONG = {
    "num_frames": [0, -1, 2.5, "8", True, None, 10**9],
    "temporal_num_layers": [-1, 0.5, None, 10**6],
    "temporal_num_heads": [0, 1.5, 10**9],
    "temporal_intermediate_size": [0, "32", 10**12],
    "temporal_attention_dropout": [-0.1, 1.1, NAN, "0.1"],
    "temporal_hidden_dropout": [-0.1, 1.1, NAN],
    "prototype_modulation": ["False", 2, None],
    "alignment": ["bi-mhm", "OTAM", "dtw", None, []],
    "chamfer_tuple_size": [0, 2.5, True, None, 9],
    "trx_size": [0, 1.5, True, None],
    "trx_cardinalities": [[], 2, None, "23", [0], [2, 2.5], [9]],
    "head_dropout": [-0.1, 1.1, NAN, None, "0.1"],
    "num_base_classes": [-1, 1.5, None, True],
    "temporal_coherence_weight": [-1.0, INF, NAN, None],
    "temporal_coherence_window": [-1, 1.5, None],
    "temporal_coherence_balance": [0.0, -1.0, INF, None],
    "otam_smoothing": [0, -1, INF, NAN, "0.5", 1e-40, 1e40],
    "otam_bidirectional": ["no", 2],
    "cosine_epsilon": [-0.01, NAN, INF, 1e-45, 1e39],
    "support_pooling": ["befor", "After", None],
    "video_text_loss_weight": [-1, NAN, INF, 1e39],
    "video_text_scale_init": [0, -1, INF, NAN, 1e-45, 1e39],
    "inference_mode": ["fewshot", "", None],
    "ensemble_text_weight": [-0.1, 1.1, NAN],
    "ensemble_temperature": [0, -8, INF, 1e-40, 1e40],
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]
CLIPS = {"boxing": [random_clip(0), random_clip(1)], "diving": [random_clip(2)]}


@pytest.fixture
def parts():
    return tiny_model_and_processor()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny_model_and_processor()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return video_splits(write_video_folder(tmp_path_factory.mktemp("videos"), videos_per_class=3))["test"]


# --- values of the configuration --------------------------------------------------------------------------------------


def test_every_setting_of_the_configuration_has_values_that_are_refused():
    own = set(inspect.signature(CLIPFSARConfig.__init__).parameters) - {"self", "kwargs", "clip_config"}
    assert own - {"added_by_training"} == set(WRONG)


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_wrong_value_is_refused_on_every_way_in(tiny_config, name, value):
    config = tiny_config()
    before, saved = getattr(config, name), config.to_dict()
    ways = (
        lambda: tiny_config(**{name: value}),
        lambda: setattr(config, name, value),
        lambda: CLIPFSARConfig.from_dict(saved | {name: value}),
        lambda: CLIPFSARConfig.from_dict(saved, **{name: value}),
    )
    for way in ways:
        with pytest.raises(ValueError, match=f"{name}="):
            way()
    assert getattr(config, name) == before


@pytest.mark.parametrize("load", [CLIPFSARModel, AutoModel])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"alignment": "bi-mhm"},
            r"alignment='bi-mhm' is not one of otam, bi_mhm, mean, chamfer, trx, hyrsm.*: did you mean 'bi_mhm'\?",
        ),
        ({"support_pooling": "befor"}, "support_pooling='befor' is not one of before, after: did you mean 'before'"),
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
        ({"otam_smoothing": INF}, "otam_smoothing=inf must be greater than 0, and be a finite number"),
        ({"temporal_num_heads": 3}, "projection size 16 is not a multiple of temporal_num_heads=3"),
    ],
)
def test_from_pretrained_refuses_what_the_configuration_refuses(folder, load, settings, message):
    with pytest.raises(ValueError, match=message):
        load.from_pretrained(folder, **settings)


def test_a_model_is_not_made_of_settings_that_do_not_go_together(tiny_config):
    config = tiny_config()
    config.temporal_num_heads = 3  # fine alone
    with pytest.raises(ValueError, match="projection size 16 is not a multiple of temporal_num_heads=3"):
        CLIPFSARModel(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alignment", "bi-mhm", "alignment='bi-mhm' is not known"),
        ("support_pooling", "befor", "support_pooling='befor'"),
    ],
)
def test_a_setting_that_got_past_all_checks_is_not_taken_for_another(tiny_model, tiny_episode, name, value, message):
    model = tiny_model()
    model.config.__dict__[name] = value
    with pytest.raises(ValueError, match=message):
        model(**tiny_episode())
    with pytest.raises(ValueError, match="inference_mode='guess' is not one of"):
        model.get_logits(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), "guess")


def test_a_saved_configuration_names_no_labels(folder):
    assert not {"id2label", "label2id", "num_labels"} & set(json.loads((folder / "config.json").read_text()))


# --- names ------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_and_the_nearest_known_one_named(parts, folder, tiny_episode, tiny_config):
    model, processor = parts
    with pytest.raises(TypeError, match="from_pretrained does not know 'num_frame': did you mean 'num_frames'"):
        CLIPFSARProcessor.from_pretrained(folder, num_frame=16)
    with pytest.raises(TypeError, match=r"CLIPFSARModel\.from_pretrained does not know 'num_frame': did you mean 'num"):
        CLIPFSARModel.from_pretrained(folder, num_frame=16)
    with pytest.raises(TypeError, match="CLIPFSARProcessor does not know 'fsp': did you mean 'fps'"):
        processor(query_videos=[random_clip(0)], fsp=25)
    with pytest.raises(TypeError, match="does not know 'inference_modus': did you mean 'inference_mode'"):
        model(**tiny_episode(), inference_modus="zero_shot")
    with pytest.raises(TypeError, match="does not know 'interpolate_pos': did you mean 'interpolate_pos_encoding'"):
        model.get_video_features(tiny_episode()["query_pixel_values"], interpolate_pos=True)
    with pytest.raises(TypeError, match="CLIPFSARConfig does not know 'otam_smothing': did you mean 'otam_smoothing'"):
        tiny_config(otam_smothing=0.1)


def test_what_transformers_itself_passes_is_known(folder, tiny_episode):
    options = {"revision": "main", "token": None, "cache_dir": None, "trust_remote_code": False, "dtype": "auto"}
    options |= {"local_files_only": True, "force_download": False, "_from_auto": True, "attn_implementation": "eager"}
    assert CLIPFSARProcessor.from_pretrained(folder, num_frames=6, **options).num_frames == 6
    model = CLIPFSARModel.from_pretrained(folder)
    inputs = {"interpolate_pos_encoding": True, "num_items_in_batch": 1}
    assert model(**tiny_episode(), **inputs).logits.shape == (1, 6, 3)


TYPOS = {
    "num_frame": "num_frames",
    "aligment": "alignment",
    "n_frames": "num_frames",
    "otam_smothing": "otam_smoothing",
}


@pytest.mark.parametrize("name", TYPOS)
def test_a_name_assigned_to_a_configuration_that_is_nearly_a_setting_is_refused(tiny_config, name):
    with pytest.raises(AttributeError, match=f"does not know '{name}': did you mean '{TYPOS[name]}'"):
        setattr(tiny_config(), name, 3)


@pytest.mark.parametrize("load", [CLIPFSARConfig.from_pretrained, AutoConfig.from_pretrained])
def test_a_name_given_to_a_saved_configuration_that_is_nearly_a_setting_is_refused(folder, load):
    with pytest.raises(TypeError, match="CLIPFSARConfig does not know 'aligment': did you mean 'alignment'"):
        load(folder, aligment="mean")
    assert load(folder, alignment="mean").alignment == "mean"
    assert load(folder, anything=1, return_unused_kwargs=True)[1] == {"anything": 1}


def test_numbers_of_numpy_are_settings_and_can_be_saved(parts, tiny_config, tmp_path):
    config = tiny_config(num_frames=np.int64(4), otam_smoothing=np.float32(0.25), otam_bidirectional=np.bool_(False))
    config.trx_cardinalities = (np.int64(2), np.int64(3))
    found = (config.num_frames, config.otam_smoothing, config.otam_bidirectional, *config.trx_cardinalities)
    assert found == (4, 0.25, False, 2, 3)
    assert [type(value) for value in found] == [int, float, bool, int, int]
    config.save_pretrained(tmp_path)
    assert CLIPFSARConfig.from_pretrained(tmp_path).trx_cardinalities == [2, 3]
    processor = copy.deepcopy(parts[1])
    processor.num_frames, processor.target_fps = np.int64(5), np.float64(12.5)
    processor.save_pretrained(tmp_path)
    assert (type(processor.num_frames), CLIPFSARProcessor.from_pretrained(tmp_path).target_fps) == (int, 12.5)


def test_a_name_assigned_to_a_support_set_that_is_nearly_a_setting_is_refused():
    with pytest.raises(AttributeError, match="SupportSet does not know 'unknown_errorrate': did you mean 'unknown_er"):
        SupportSet().unknown_errorrate = 0.05


def test_a_name_given_to_a_pipelines_save_that_is_nearly_its_option_is_refused(parts, tmp_path):
    classify = FewShotVideoClassificationPipeline(*parts)
    with pytest.raises(TypeError, match="save_pretrained does not know 'thumbnail': did you mean 'thumbnails'"):
        classify.save_pretrained(tmp_path / "model", thumbnail=True)
    assert not (tmp_path / "model").exists()


def test_the_size_of_the_vocabulary_is_that_of_the_text_tower(tiny_model, tmp_path):
    model = tiny_model()
    model.resize_token_embeddings(60)
    model.save_pretrained(tmp_path)
    loaded = CLIPFSARModel.from_pretrained(tmp_path)
    assert loaded.config.clip_config.text_config.vocab_size == 60
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_name_assigned_to_a_processor_that_is_nearly_a_setting_is_refused(parts):
    with pytest.raises(AttributeError, match="CLIPFSARProcessor does not know 'num_frame': did you mean 'num_frames'"):
        parts[1].num_frame = 3


# Fields of configurations in transformers 4 and 5, and those that transformers, PEFT and accelerate assign.
OF_OTHERS = """
return_dict output_hidden_states torchscript torch_dtype dtype use_bfloat16 pruned_heads num_labels id2label
tie_word_embeddings chunk_size_feed_forward is_encoder_decoder is_decoder cross_attention_hidden_size use_cache
label2id add_cross_attention tie_encoder_decoder max_length min_length do_sample early_stopping num_beams
num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
exponential_decay_length_penalty suppress_tokens begin_suppress_tokens architectures finetuning_task tokenizer_class
prefix bos_token_id pad_token_id eos_token_id sep_token_id decoder_start_token_id task_specific_params problem_type
transformers_version _name_or_path initializer_range initializer_factor dropout hidden_dropout attention_dropout
hidden_dropout_prob attention_probs_dropout_prob name_or_path logit_scale_init_value logit_bias_init_value
text_config_dict vision_config_dict projection_dim projection_size text_projection_dim vision_projection_dim
num_patches num_channels patch_size image_size layer_norm_eps hidden_act vocab_size hidden_size
intermediate_size num_hidden_layers num_attention_heads num_key_value_heads qkv_bias max_position_embeddings
gradient_checkpointing quantization_config auto_map custom_pipelines _attn_implementation _commit_hash
_pre_quantization_dtype inference_mode peft_type base_model_name_or_path model_type
"""


def test_names_that_transformers_has_or_had_are_kept(tiny_config):
    settable = [
        name for name in OF_OTHERS.split() if name not in ("model_type", "inference_mode", "name_or_path", "num_labels")
    ]
    config = tiny_config()
    for name in settable:
        if not hasattr(config, name):
            setattr(config, name, None)
    for kind in ("clip", "siglip", "siglip2"):
        towers = {part: dict.fromkeys(set(OF_OTHERS.split()) - set(_known(kind, part))) for part in ("text", "vision")}
        clip_config = {f"{part}_config": {**values, "name_or_path": ""} for part, values in towers.items()}
        clip_config |= dict.fromkeys(set(OF_OTHERS.split()) - set(_known(kind)))
        assert CLIPFSARConfig(clip_config={**clip_config, "model_type": kind}).clip_config.model_type == kind


def _known(kind: str, part: str | None = None) -> set[str]:
    config = CONFIG_MAPPING[kind]()
    return {*dir(getattr(config, f"{part}_config") if part else config), "name_or_path"}


@pytest.mark.parametrize(
    ("clip_config", "message"),
    [
        ({"hiden_size": 8}, "clip_config does not know 'hiden_size': did you mean 'hidden_size'"),
        ({"text_config": {"hiden_size": 8}}, "clip_config.text_config does not know 'hiden_size'"),
        ({"text_confg": {"hidden_size": 8}}, "clip_config does not know 'text_confg': did you mean 'text_config'"),
        (
            {"model_type": "siglip", "vision_config": {"num_hiden_layers": 1}},
            "clip_config.vision_config does not know 'num_hiden_layers': did you mean 'num_hidden_layers'",
        ),
        ({"model_type": "clip_resnet", "vision_config": {"dephts": [1, 1, 1, 1]}}, "did you mean 'depths'"),
    ],
)
def test_a_slip_in_the_configuration_of_the_backbone_is_named(tiny_config, clip_config, message):
    config = tiny_config()
    for way in (
        lambda: CLIPFSARConfig(clip_config=clip_config),
        lambda: CLIPFSARConfig.from_dict(config.to_dict() | {"clip_config": clip_config}),
    ):
        with pytest.raises(TypeError, match=message):
            way()


def test_a_slip_in_a_part_of_the_backbones_configuration_is_named_on_loading(folder):
    with pytest.raises(TypeError, match="clip_config does not know 'projction_dim': did you mean 'projection_dim'"):
        CLIPFSARModel.from_pretrained(folder, clip_config={"projction_dim": 16})


def edited(folder, tmp_path, **changes):
    shutil.copytree(folder, tmp_path / "edited")
    path = tmp_path / "edited" / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path.parent


def test_an_unknown_name_in_a_saved_processor_is_refused(folder, tmp_path):
    with pytest.raises(
        TypeError, match=r"processor_config\.json does not know 'sampling': did you mean 'sampling_rate'"
    ):
        CLIPFSARProcessor.from_pretrained(edited(folder, tmp_path, sampling="interval"))


def test_an_unknown_image_setting_in_a_saved_processor_is_refused(folder, tmp_path):
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    changed = edited(folder, tmp_path, image_processor={**settings, "image_meen": [0, 0, 0]})
    with pytest.raises(TypeError, match="does not know 'image_meen': did you mean 'image_mean'"):
        CLIPFSARProcessor.from_pretrained(changed)


def test_names_of_other_versions_of_transformers_in_a_saved_processor_are_ignored_aloud(folder, tmp_path, caplog):
    known = {"transformers_version": "5.99", "chat_template": None, "feature_extractor_type": None}
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    new = {"image_processor": {**settings, "pad_token_images": 3}, "modality_router": {}}
    processor = CLIPFSARProcessor.from_pretrained(edited(folder, tmp_path, **known, **new))
    assert processor.num_frames == 4
    assert [record.getMessage() for record in caplog.records if "processor_config" in record.getMessage()] == [
        "processor_config.json: 'modality_router' is not a setting of CLIPFSARProcessor and is ignored."
    ]


# --- what weights were trained with -----------------------------------------------------------------------------------


CHANGES = [
    ({"temporal_num_layers": 3}, "The weights in .* were trained with temporal_num_layers=1, not 3"),
    ({"temporal_num_layers": 0}, "The weights in .* were trained with temporal_num_layers=1, not 0"),
    ({"temporal_num_heads": 4}, "The weights in .* were trained with temporal_num_heads=2, not 4"),
    ({"temporal_intermediate_size": 8}, "trained with temporal_intermediate_size=32, not 8"),
    ({"vision_config": {"num_hidden_layers": 1}}, r"clip_config\.vision_config\.num_hidden_layers=2, not 1"),
    ({"text_config": {"num_attention_heads": 1}}, r"clip_config\.text_config\.num_attention_heads=2, not 1"),
]


def of_towers(changes: dict, clip_config) -> dict:
    """Changes of a tower as a keyword of `from_pretrained`, which takes a tower's settings as a whole."""
    if "vision_config" not in changes and "text_config" not in changes:
        return changes
    return {"clip_config": {name: getattr(clip_config, name).to_dict() | change for name, change in changes.items()}}


@pytest.mark.parametrize("load", [CLIPFSARModel, AutoModel])
@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_a_trained_model_is_not_loaded_into_another_structure(folder, load, changes, message):
    changes = of_towers(changes, CLIPFSARConfig.from_pretrained(folder).clip_config)
    with pytest.raises(ValueError, match=message):
        load.from_pretrained(folder, **changes)
    config = CLIPFSARConfig.from_pretrained(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load.from_pretrained(folder, config=config)


def test_another_structure_can_be_asked_for_by_name(folder):
    model = CLIPFSARModel.from_pretrained(folder, temporal_num_layers=2, ignore_mismatched_sizes=True)
    assert len(model.temporal_transformer.layers) == 2


def test_settings_that_change_no_weights_can_be_given(folder):
    model = CLIPFSARModel.from_pretrained(folder, num_frames=7, prototype_modulation=False, temporal_num_layers=1)
    assert (model.config.num_frames, model.config.prototype_modulation) == (7, False)
    model, info = CLIPFSARModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.num_frames == 4


@pytest.mark.parametrize(
    ("layers", "message"), [(2, "lack 'temporal_transformer.layers.1"), (0, "include the unexpected 'temporal_tr")]
)
def test_a_configuration_that_is_not_that_of_the_weights_beside_it_is_refused(folder, tmp_path, layers, message):
    shutil.copytree(folder, tmp_path / "edited")
    path = tmp_path / "edited" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temporal_num_layers": layers}))
    with pytest.raises(ValueError, match=message):
        CLIPFSARModel.from_pretrained(path.parent)
    _, info = CLIPFSARModel.from_pretrained(path.parent, output_loading_info=True)  # asks, and is told
    assert info["missing_keys"] or info["unexpected_keys"]


def test_layers_that_were_never_saved_begin_anew_as_many_as_asked_for(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "start")
    weights = load_file(folder / "model.safetensors")
    clip = {name: weight for name, weight in weights.items() if name.startswith("clip.")}
    save_file(clip, tmp_path / "start" / "model.safetensors", metadata={"format": "pt"})
    for settings in ({}, {"temporal_num_layers": 2, "temporal_num_heads": 4}):
        model = CLIPFSARModel.from_pretrained(tmp_path / "start", **settings)
        assert len(model.temporal_transformer.layers) == settings.get("temporal_num_layers", 1)


def test_a_backbone_of_a_plain_clip_keeps_its_structure(folder, tmp_path):
    CLIPFSARModel.from_pretrained(folder).clip.save_pretrained(tmp_path)
    model = CLIPFSARModel.from_pretrained(tmp_path, temporal_num_layers=3, temporal_num_heads=2)
    assert len(model.temporal_transformer.layers) == 3
    changes = of_towers({"vision_config": {"num_attention_heads": 1}}, model.config.clip_config)
    with pytest.raises(ValueError, match=r"clip_config\.vision_config\.num_attention_heads=2, not 1"):
        CLIPFSARModel.from_pretrained(tmp_path, **changes)


# --- tokens of the Hub ------------------------------------------------------------------------------------------------


def test_a_token_given_on_loading_is_neither_printed_nor_copied_nor_saved(folder, tmp_path):
    model = CLIPFSARModel.from_pretrained(folder, token="hf_secret", local_files_only=True)
    assert model.hub_options["token"] == "hf_secret"  # what lies beside the model is loaded with it
    model.save_pretrained(tmp_path / "saved")
    torch.save(model, tmp_path / "pickled.pt")
    copied = copy.deepcopy(model)
    assert copied.hub_options == {"local_files_only": True}
    assert pickle.loads(pickle.dumps(model)).hub_options == {"local_files_only": True}
    for shown in (repr(model.hub_options), str(model.hub_options), repr(vars(model)), str(model.config)):
        assert "hf_secret" not in shown
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]


# --- what the configuration asks to return ----------------------------------------------------------------------------


def test_the_configuration_says_what_is_returned(folder, tiny_episode):
    episode = tiny_episode()
    model = CLIPFSARModel.from_pretrained(folder, output_hidden_states=True, return_dict=False)
    assert isinstance(model(**episode), tuple)
    assert len(model(**episode, return_dict=True).hidden_states) == 3
    assert model(**episode, return_dict=True, output_hidden_states=False).hidden_states is None
    model = CLIPFSARModel.from_pretrained(folder, output_attentions=True, attn_implementation="eager")
    assert len(model(**episode).attentions) == 2


@pytest.mark.parametrize("name", ["return_dict", "output_hidden_states", "output_attentions"])
def test_what_clip_is_configured_to_return_does_not_change_features(folder, tiny_episode, name):
    episode = tiny_episode()
    expected = CLIPFSARModel.from_pretrained(folder)
    model = CLIPFSARModel.from_pretrained(folder, attn_implementation="eager")
    setattr(model.config.clip_config, name, name != "return_dict")
    pixels, tokens = episode["query_pixel_values"], episode["class_input_ids"]
    for given in ({}, {name: name != "return_dict"}):
        features = model.get_video_features(pixels, **given)
        torch.testing.assert_close(features, expected.get_video_features(pixels))
    torch.testing.assert_close(model.get_class_features(tokens), expected.get_class_features(tokens))


# --- frames per video -------------------------------------------------------------------------------------------------


def test_model_and_processor_of_different_num_frames_do_not_meet(parts, split):
    model, processor = parts
    other = CLIPFSARProcessor(processor.image_processor, processor.tokenizer, num_frames=6)
    message = "The processor samples 6 frames per video, but the model is configured for 4"
    with pytest.raises(ValueError, match=message):
        FewShotVideoClassificationPipeline(model=model, processor=other)
    with pytest.raises(ValueError, match=message):
        SupportSet.from_videos(model, other, CLIPS)
    with pytest.raises(ValueError, match=message):
        evaluate_episodes(model, other, split, n_way=2, n_shot=1, n_episodes=2)


def test_forward_takes_any_number_of_frames_and_unequal_ones(tiny_model, tiny_episode):
    episode = tiny_episode()
    episode["query_pixel_values"] = torch.cat([episode["query_pixel_values"]] * 2, dim=2)
    assert tiny_model()(**episode).logits.isfinite().all()


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("labels", [[0, 0, 1, 1, 2, 3]], "labels holds the label 3, but there are 3 classes: labels go from 0 to 2"),
        ("support_labels", [[0, 1, 5]], "support_labels holds the label 5, but there are 3 classes"),
        ("support_labels", [[0, 1, 1]], "Episode 0 of the batch has no support video of class 2, and there are 3"),
    ],
)
def test_labels_that_fit_no_class_are_named(tiny_model, tiny_episode, name, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**tiny_episode() | {name: torch.tensor(labels)})


def test_a_base_label_out_of_range_is_named(tiny_model, tiny_episode):
    base = {"base_class_embeds": torch.ones(4, 16), "support_base_labels": torch.tensor([[0, 1, 4]])}
    with pytest.raises(ValueError, match="support_base_labels holds the label 4, but there are 4 classes"):
        tiny_model()(**tiny_episode(), **base, query_base_labels=torch.zeros(1, 6).long())


def test_a_class_without_support_in_a_batch_of_unequal_ways_is_named(tiny_model, tiny_episode):
    episode = {name: torch.cat([value] * 2) for name, value in tiny_episode().items()}
    episode["support_labels"] = torch.tensor([[0, 1, 2], [0, 1, -1]])
    with pytest.raises(ValueError, match="Episode 1 of the batch has no support video of class 2"):
        tiny_model()(**episode)
    del episode["labels"]  # without prototypes to compare with, support does not matter
    assert tiny_model()(**episode, inference_mode="zero_shot").logits.shape == (2, 6, 3)


def test_rows_of_the_base_classes_are_in_range(tiny_model, tiny_episode):
    episode, base = tiny_episode(), torch.ones(4, 16)
    for value in (4, -1):  # -1 would be the last row
        labels = torch.tensor([[0, 1, value]])
        with pytest.raises(ValueError, match=f"class_base_labels holds {value}, but there are 4 rows of .* 0 to 3"):
            tiny_model()(**episode, base_class_embeds=base, class_base_labels=labels)


@pytest.mark.parametrize("value", [-1, 10**6])
def test_tokens_are_those_of_the_vocabulary(tiny_model, tiny_episode, value):
    episode = tiny_episode()
    episode["class_input_ids"][0, 1, 2] = value
    size = tiny_model().config.clip_config.text_config.vocab_size
    with pytest.raises(ValueError, match=f"class_input_ids holds {value}, but there are {size} tokens in the vocabu"):
        tiny_model()(**episode)


def test_an_empty_mode_is_no_mode(parts, tiny_episode):
    with pytest.raises(ValueError, match="inference_mode='' is not one of few_shot"):
        parts[0](**tiny_episode(), inference_mode="")
    support_set = SupportSet.from_videos(*parts, CLIPS)
    with pytest.raises(ValueError, match="inference_mode='' is not one of few_shot"):
        support_set.classify(parts[0], torch.ones(1, 4, 16), "")


# --- NaN and infinite numbers -----------------------------------------------------------------------------------------


def enroll_and_ask(classify):
    classify.enroll(CLIPS)
    classify(random_clip(3))


def spoil(model, name: str, value: float):
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["clip.visual_projection.weight", "temporal_transformer.layers.0.mlp.fc1.weight"])
def test_broken_weights_are_named_instead_of_an_answer(parts, name, value):
    model, processor = parts
    classify = FewShotVideoClassificationPipeline(model=model, processor=processor)
    spoil(model, name, value)
    with pytest.raises(ValueError, match=f"Weights of the model hold NaN or infinite numbers: '{name}'"):
        enroll_and_ask(classify)
    with pytest.raises(ValueError, match=f"Weights of the model hold NaN .* '{name}'"):
        classify({"support_videos": CLIPS, "query_videos": [random_clip(3)]})


def test_broken_frames_are_named_instead_of_an_answer(parts, monkeypatch):
    model, processor = parts
    classify = FewShotVideoClassificationPipeline(model=model, processor=processor)
    classify.enroll(CLIPS)
    process = processor.process_videos
    monkeypatch.setattr(processor, "process_videos", lambda *given, **options: process(*given, **options) * NAN)
    with pytest.raises(ValueError, match="The logits of 'query video 0' hold NaN or infinite numbers"):
        classify(random_clip(3))
    with pytest.raises(ValueError, match="The frame features of 'the video' hold NaN"):
        classify.explain(random_clip(3))
    with pytest.raises(ValueError, match="The frame features of 'a clip of running' hold NaN"):
        classify.enroll({"running": [random_clip(4)]})
    assert classify.support_set.class_names == ["boxing", "diving"]


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["support_pixel_values", "query_pixel_values"])
def test_the_model_names_the_pixel_values_that_are_no_numbers(tiny_model, tiny_episode, name, training, value):
    episode = tiny_episode()
    episode[name][0, 1, 2, 0, 3, 4] = value
    with pytest.raises(
        ValueError, match=rf"{name} holds NaN or infinite numbers, the first at index \[0, 1, 2, 0, 3, 4"
    ):
        tiny_model().train(training)(**episode)


@pytest.mark.parametrize("name", ["support_embeds", "query_embeds", "class_embeds"])
def test_the_model_names_the_features_that_are_no_numbers(tiny_model, tiny_episode, name):
    model, episode = tiny_model(), tiny_episode()
    output = model(**episode, inference_mode="ensemble")
    features = {
        each: getattr(output, each).detach().clone() for each in ("support_embeds", "query_embeds", "class_embeds")
    }
    features[name][0, 1] = NAN
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite numbers, the first at index"):
        model(**features, support_labels=episode["support_labels"], inference_mode="ensemble")


def test_the_model_names_its_weights_that_are_no_numbers_in_inference_alone(tiny_model, tiny_episode):
    model = tiny_model()
    spoil(model, "temporal_transformer.layers.0.mlp.fc1.weight", NAN)
    with pytest.raises(
        ValueError, match=r"Weights of the model hold NaN .*'temporal_transformer.layers.0.mlp.fc1.weight'"
    ):
        model(**tiny_episode())
    assert model.train()(**tiny_episode()).loss.isnan()  # the trainer tells with the episode, and what to do


def test_numbers_are_not_looked_at_in_a_graph_nor_on_another_device(tiny_model):
    model, broken = tiny_model(), torch.tensor([1.0, NAN])

    def doubled(logits):
        check_answer(model, logits, *[None] * 6)
        return 2 * logits

    with pytest.raises(ValueError, match="The logits hold NaN or infinite numbers, though inputs and weights do not"):
        doubled(broken)
    compiled = torch.compile(doubled, fullgraph=True, backend="eager")  # fails where a value is read
    assert compiled(broken).isnan().tolist() == [False, True]
    assert torch.jit.trace(doubled, broken, check_trace=False)(broken).isnan().tolist() == [False, True]
    assert doubled(broken.to("meta")).shape == (2,)


def test_broken_features_of_a_class_are_named(parts):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    support_set.classes["diving"].support_embeds[0, 0, 0] = NAN
    with pytest.raises(ValueError, match="The enrolled clips of 'diving' hold NaN or infinite numbers"):
        support_set.classify(model, torch.ones(1, 4, 16))


@pytest.mark.parametrize("name", ["clip.visual_projection.weight", "temporal_transformer.layers.0.mlp.fc1.weight"])
def test_an_evaluation_of_broken_weights_gives_no_accuracy(parts, split, name):
    model, processor = parts
    spoil(model, name, NAN)
    with pytest.raises(ValueError, match=f"Weights of the model hold NaN or infinite numbers: '{name}'"):
        evaluate_episodes(model, processor, split, n_way=2, n_shot=1, n_episodes=2)


def test_finite_numbers_are_answered(parts, split):
    model, processor = parts
    results = evaluate_episodes(model, processor, split, n_way=2, n_shot=1, n_episodes=2)
    assert all(np.isfinite(result.accuracy) for result in results)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("preprocessing", "offical"), ("frame_sampling", "segments"), ("query_augmentation", "flip")),
        *(("decoder", "opencv"), ("target_fps", 0), ("sampling_rate", -1), ("seconds_per_video", float("nan"))),
        *(("num_frames", 10**9), ("num_threads", 10**9), ("prompt_length", 10**9), ("seconds_per_video", 1e12)),
        *(("target_fps", 1e-40), ("sampling_rate", 1e300)),
        *(("num_frames", 2.5), ("num_threads", -4), ("prompt_template", "a photo"), ("prompt_length", 0)),
    ],
)
def test_a_processor_checks_what_is_assigned_to_it(name, value):
    _, processor = tiny_model_and_processor()
    before = getattr(processor, name)
    with pytest.raises(ValueError, match=f"{name}="):
        setattr(processor, name, value)
    assert getattr(processor, name) == before


@pytest.mark.parametrize(("name", "value"), [("temporal_num_layers", 3), ("temporal_num_heads", 4)])
def test_a_configuration_that_is_not_the_models_is_not_saved(tmp_path, name, value):
    model, _ = tiny_model_and_processor()
    made_with = getattr(model.config, name)
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=f"says {name}={value}, but the model was made with {made_with}"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_unknown_parameter_of_the_pipeline_is_named():
    model, processor = tiny_model_and_processor()
    classify = FewShotVideoClassificationPipeline(model=model, processor=processor, device="cpu")
    with pytest.raises(TypeError, match="The pipeline does not know 'topk': did you mean 'top_k'"):
        classify(random_clip(0), topk=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("do_normalize", "false"), ("do_resize", 1), ("rescale_factor", 0), ("rescale_factor", NAN)),
        *(("image_std", [0.2, 0.0, 0.2]), ("image_mean", [0.5, NAN, 0.5]), ("image_mean", "abc")),
        *(("image_mean", 0.5), ("image_std", [0.5, 0.5]), ("image_mean", [0.5] * 4), ("image_std", None)),
        *(("crop_size", 0), ("crop_size", -3), ("size", None), ("size", {"longest_edge": 16}), ("size", 0)),
        *(("crop_size", {"longest_edge": 16}), ("crop_size", {"height": 16.5, "width": 16}), ("resample", "bicubic")),
    ],
)
def test_settings_of_images_that_would_make_other_pixels_are_refused(tmp_path, name, value):
    _, processor = tiny_model_and_processor()
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"][name] = value
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"{name}=.* of the image processor must be"):
        CLIPFSARProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("image_std", [0.5, 0.5]), ("crop_size", 16), ("resample", None)])
def test_settings_of_images_that_change_later_are_checked_with_the_next_video(name, value):
    _, processor = tiny_model_and_processor()
    setattr(processor.image_processor, name, value)
    with pytest.raises(ValueError, match=f"{name}=.* of the image processor must be"):
        processor(query_videos=[random_clip(0)])
    with pytest.raises(ValueError, match=f"{name}=.* of the image processor must be"):
        processor.image_processor = processor.image_processor


def test_official_preprocessing_needs_mean_and_deviation_but_no_size_beside_that_of_the_crop():
    _, processor = tiny_model_and_processor()
    processor.preprocessing, processor.image_processor.do_normalize = "official", False
    processor.image_processor.size = processor.image_processor.resample = None
    assert processor(query_videos=[random_clip(0)])["query_pixel_values"].shape == (1, 1, 4, 3, 16, 16)
    processor.image_processor.image_mean = None
    with pytest.raises(ValueError, match="image_mean=None of the image processor must be 3 numbers"):
        processor(query_videos=[random_clip(0)])


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("max_length", 5, "prompt_length is the number of tokens of each prompt"),
        ("padding", "max_length", "prompt_length is the number of tokens of each prompt"),
        ("do_pad", True, "leave it out"),
        ("do_convert_rgb", False, "leave it out"),
    ],
)
def test_a_setting_of_transformers_that_has_no_effect_is_refused(tmp_path, name, value, remedy):
    _, processor = tiny_model_and_processor()
    processor.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=rf"from_pretrained: '{name}' has no effect here: {remedy}\.$"):
        CLIPFSARProcessor.from_pretrained(tmp_path, **{name: value})


def test_answers_that_are_nan_though_the_weights_are_finite_give_no_accuracy(parts, split):
    model, processor = parts
    with torch.no_grad():
        model.temporal_transformer.layers[0].mlp.fc2.weight.fill_(1e38)
    with pytest.raises(ValueError, match="Answers of the mode 'few_shot' are NaN"):
        evaluate_episodes(model, processor, split, n_way=2, n_shot=1, n_episodes=2)
