"""Other backbones than CLIP, as tiny models with random weights, from plain checkpoints; and what is refused."""

import numpy as np
import pytest
import torch
from golden.formula_model import formula_tensor
from tiny_data import (
    random_clip,
    run_in_children,
    save_tiny_clip,
    tiny_tokenizer,
    training_arguments,
    write_video_folder,
)
from transformers import (
    AlignConfig,
    AltCLIPConfig,
    AutoModel,
    BlipConfig,
    ChineseCLIPConfig,
    ClapAudioConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    MetaClip2Config,
    PretrainedConfig,
    Siglip2Config,
    Siglip2ImageProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    XCLIPConfig,
)

import backbones_clipfsar
from backbones_clipfsar import why_no_backbone
from clipfsar.inference.load_model import load_model
from clipfsar.inference.quantized import quantize_int8
from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import VISION_MODULES, CLIPFSARModel
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from processing_clipfsar import CLIPFSARProcessor

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# Texts of 14 tokens: longer than the prompts of the tests, as SigLIP's 64 are than most.
TEXT = TOWER | {"vocab_size": 54, "max_position_embeddings": 14, "bos_token_id": 52, "eos_token_id": 53}
# ALIGN's visual tower: convolutions with batch norms, and no projection after them.
EFFICIENT_NET = {
    "image_size": 16,
    "hidden_dim": 24,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "depthwise_padding": [],
    "pooling_type": "mean",
}
CONFIGS = {
    "siglip": SiglipConfig(text_config=TEXT, vision_config=TOWER | {"image_size": 16, "patch_size": 8}),
    "siglip2": Siglip2Config(text_config=TEXT, vision_config=TOWER | {"num_patches": 4, "patch_size": 8}),
    "metaclip_2": MetaClip2Config(
        text_config=TEXT, vision_config=TOWER | {"image_size": 16, "patch_size": 8}, projection_dim=24
    ),
    # positions of RoBERTa's kind: two more than there may be tokens
    "altclip": AltCLIPConfig(
        text_config=TEXT | {"max_position_embeddings": 16, "pad_token_id": 1, "project_dim": 16},
        vision_config=TOWER | {"image_size": 16, "patch_size": 8},
        projection_dim=24,
    ),
    "chinese_clip": ChineseCLIPConfig(
        text_config=TEXT, vision_config=TOWER | {"image_size": 16, "patch_size": 8}, projection_dim=24
    ),
    "blip": BlipConfig(
        text_config=TEXT | {"encoder_hidden_size": 16},
        vision_config=TOWER | {"image_size": 16, "patch_size": 8},
        projection_dim=24,
    ),
    "align": AlignConfig(text_config=TEXT, vision_config=EFFICIENT_NET, projection_dim=24),
}
if why_no_backbone("altclip"):  # refused with an old transformers, as a test below has it
    del CONFIGS["altclip"]
SIZE = {"height": 16, "width": 16}
IMAGE_PROCESSORS = {
    "siglip": lambda: SiglipImageProcessor(size=SIZE),
    "siglip2": lambda: Siglip2ImageProcessor(patch_size=8, max_num_patches=4),
}


def clip_image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIZE)


OURS = {"num_frames": 2, "temporal_num_heads": 2, "temporal_intermediate_size": 32}


@pytest.fixture(scope="module", params=CONFIGS)
def plain(request, tmp_path_factory):
    """A plain checkpoint of a backbone, as on the Hub: model, image processor, tokenizer. (model, folder)"""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS[request.param]).eval()
    model.save_pretrained(folder)
    IMAGE_PROCESSORS.get(request.param, clip_image_processor)().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def model(plain):
    torch.manual_seed(0)
    return CLIPFSARModel.from_pretrained(plain[1], for_training=True, **OURS).eval()


@pytest.fixture(scope="module")
def processor(plain):
    return CLIPFSARProcessor.from_pretrained(plain[1], num_frames=2)


@pytest.fixture
def inputs(processor):
    videos = np.random.default_rng(0).integers(0, 256, (5, 4, 16, 16, 3), dtype=np.uint8)
    return processor(
        support_videos={"boxing": [videos[0]], "diving": [videos[1], videos[2]]},
        query_videos=[videos[3], videos[4]],
        query_labels=["diving", "boxing"],
    )


def test_frame_features_are_the_backbones_own(plain, model):
    frames = formula_tensor((3, 2, 3, 16, 16))
    own = frames.flatten(0, 1)
    extra = {}
    if model.config.clip_config.model_type == "siglip2":
        # cut by transformers' own image processor
        cutter = Siglip2ImageProcessor(
            patch_size=8, max_num_patches=4, do_resize=False, do_rescale=False, do_normalize=False
        )
        extra = dict(cutter([frame.numpy() for frame in own], input_data_format="channels_first", return_tensors="pt"))
        own = extra.pop("pixel_values")
    with torch.no_grad():
        expected = plain[0].get_image_features(own, **extra).pooler_output
        features = model.get_video_features(frames)
    assert features.shape == (3, 2, model.config.hidden_size)
    torch.testing.assert_close(features.flatten(0, 1), expected, rtol=0, atol=1e-6)


def test_class_features_are_the_backbones_own(plain, model, processor):
    names = ["boxing", "a dive", "run"]
    prompts = [f"a photo of {name}" for name in names]
    # as each backbone's documentation has it
    is_siglip = model.config.clip_config.model_type.startswith("siglip")
    settings = {"padding": "max_length", "max_length": 14} if is_siglip else {"padding": True}
    tokens = processor.tokenizer(prompts, truncation=True, return_tensors="pt", **settings)
    mask = {} if is_siglip else {"attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        expected = plain[0].get_text_features(tokens["input_ids"], **mask).pooler_output
        features = model.get_class_features(**processor.tokenize_classes(names))
    assert features.shape == (3, model.config.hidden_size)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_class_features_do_not_depend_on_the_other_classes(model, processor):
    with torch.no_grad():
        alone, among = (
            model.get_class_features(**processor.tokenize_classes(names))[0] for names in (["run"], ["run", "a dive"])
        )
    torch.testing.assert_close(alone, among, rtol=0, atol=1e-6)


def test_episode_runs_and_trains_the_visual_tower_alone(plain, inputs):
    model = CLIPFSARModel.from_pretrained(plain[1], for_training=True, **OURS)
    model.freeze_text_tower()
    base_class_embeds = formula_tensor((4, model.config.hidden_size))
    output = model(
        **inputs,
        base_class_embeds=base_class_embeds,
        support_base_labels=inputs["support_labels"],
        query_base_labels=inputs["labels"],
        output_hidden_states=True,
    )
    assert output.logits.shape == (1, 2, 2)
    assert output.hidden_states[0].shape[0] == 5 * 2
    output.loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    of_clip = {name.removeprefix("clip.") for name in trained if name.startswith("clip.")}
    assert of_clip
    assert all(name.startswith(VISION_MODULES) for name in of_clip)
    without = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - trained
    assert without == set()


def test_saved_and_loaded_model_and_processor_give_the_same(model, processor, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = CLIPFSARModel.from_pretrained(tmp_path)
    assert loaded.config.clip_config.model_type == model.config.clip_config.model_type
    assert loaded.config.hidden_size == model.config.hidden_size
    again = CLIPFSARProcessor.from_pretrained(tmp_path)
    assert again.prompt_length == processor.prompt_length
    tokens = (one.tokenize_classes(["boxing", "run"]) for one in (processor, again))
    for expected, found in zip(*(token.values() for token in tokens), strict=True):
        assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_long_prompts_are_cut_at_the_positions_of_the_text_tower(processor, model):
    tokens = processor.tokenize_classes(["a very long name of an action that never ends"])
    assert tokens["input_ids"].shape == (1, 14)
    with torch.no_grad():
        assert torch.isfinite(model.get_class_features(**tokens)).all()


def test_videos_get_the_size_and_normalisation_of_the_backbone(processor, model):
    white = np.full((2, 40, 24, 3), 255, dtype=np.uint8)
    pixels = processor.process_videos([white])
    assert pixels.shape == (1, 2, 3, 16, 16)
    if model.config.clip_config.model_type.startswith("siglip"):
        torch.testing.assert_close(pixels, torch.ones_like(pixels), rtol=0, atol=1e-6)


def test_an_unreadable_video_among_others_is_marked(model, processor):
    classify = FewShotVideoClassificationPipeline(model, processor)
    classify.enroll({"run": [random_clip(1)], "dive": [random_clip(2)]})
    answers = classify([random_clip(3), b"no video"])
    assert {entry["label"] for entry in answers[0]} == {"run", "dive"}
    assert answers[1][0]["label"] is None


def test_zero_shot_answers_of_a_plain_checkpoint_are_the_backbones_own(plain):
    model, _ = load_model(str(plain[1]))
    assert model.config.temporal_num_layers == 0
    image, text = (torch.nn.functional.normalize(formula_tensor((2, model.config.hidden_size), i)) for i in range(2))
    cosines = image @ text.T
    logits = cosines / plain[0].temperature if model.config.clip_config.model_type == "align" else None
    if logits is None:
        logits = cosines * plain[0].logit_scale.exp()
    torch.testing.assert_close(model.get_text_logits(image[None, :, None], text[None])[0], logits)


def test_prompt_length_given_by_hand_wins(plain):
    processor = CLIPFSARProcessor.from_pretrained(plain[1], prompt_length=9)
    assert processor.tokenize_classes(["run"])["input_ids"].shape == (1, 9)
    with pytest.raises(ValueError, match="prompt_length"):
        CLIPFSARProcessor.from_pretrained(plain[1], prompt_length=0)


def test_plain_clip_pads_to_the_longest_prompt(tmp_path):
    processor = CLIPFSARProcessor.from_pretrained(save_tiny_clip(tmp_path))
    assert processor.prompt_length is None
    assert processor.tokenize_classes(["run"])["input_ids"].shape == (1, 13)


def train(arguments):
    from clipfsar.training.arguments import parse_arguments
    from clipfsar.training.program import main

    main(parse_arguments(arguments))


def test_siglip_trains_from_a_plain_checkpoint(tmp_path):
    folder = tmp_path / "siglip"
    AutoModel.from_config(CONFIGS["siglip"]).save_pretrained(folder)
    SiglipImageProcessor(size=SIZE).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    videos = write_video_folder(tmp_path / "videos", videos_per_class=3)
    options = {"episodes": 4, "eval_every": 4, "eval_episodes": 4, "test_episodes": 4}
    arguments = training_arguments(videos, folder, tmp_path / "run", **options)
    run_in_children(train, arguments, folder=tmp_path / "children").check()
    best = CLIPFSARModel.from_pretrained(tmp_path / "run" / "best")
    assert best.config.clip_config.model_type == "siglip"
    assert CLIPFSARProcessor.from_pretrained(tmp_path / "run" / "best").prompt_length == 14


class UnregisteredConfig(PretrainedConfig):
    model_type = "unregistered"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "type_and_reason"),
    [
        (XCLIPConfig, "of type 'xclip', but XCLIPModel has no get_image_features"),
        (
            CLIPTextConfig,
            "type 'clip_text_model', but CLIPTextModel has no get_image_features and no get_text_features",
        ),
        (ClapAudioConfig, "of type 'clap_audio_model', but AutoModel has no model for it"),
        (UnregisteredConfig, "of type 'unregistered', but AutoConfig does not know this type"),
    ],
)
def test_backbone_without_the_two_getters_is_refused_by_name(config, type_and_reason, tmp_path):
    config().save_pretrained(tmp_path)
    accepted = "a model with get_image_features and get_text_features, such as clip, siglip"
    for clip_config in (config(), config().to_dict()):
        with pytest.raises(ValueError, match=f"{type_and_reason}.*CLIP-FSAR is built on {accepted}"):
            CLIPFSARConfig(clip_config=clip_config)
    with pytest.raises(ValueError, match=f"{type_and_reason}.*CLIP-FSAR starts from .* {accepted}"):
        CLIPFSARConfig.from_pretrained(tmp_path)


def test_features_of_another_size_than_the_configuration_says_are_refused():
    align = AlignConfig(text_config=TEXT, vision_config=EFFICIENT_NET, projection_dim=16)
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=align, **OURS))
    with pytest.raises(ValueError, match=r"type 'align' gives features of shape \(2, 24\); \(batch, 16\) is needed"):
        model.get_video_features(torch.zeros(1, 2, 3, 16, 16))


def test_int8_is_refused_where_the_encoder_has_no_linear_layers():
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=CONFIGS["align"], **OURS))
    with pytest.raises(ValueError, match="visual tower of a 'align' is made of convolutions"):
        quantize_int8(model)


def test_towers_of_two_sizes_are_refused():
    text = TEXT | {"projection_size": 24}
    with pytest.raises(ValueError, match="image features of size 16 and text features of size 24"):
        CLIPFSARConfig(clip_config=SiglipConfig(text_config=text, vision_config=TOWER), **OURS)


def test_tower_without_a_pooling_head_is_refused():
    vision = TOWER | {"vision_use_head": False}
    with pytest.raises(ValueError, match="vision_use_head=False: without the pooling head there is no feature"):
        CLIPFSARConfig(clip_config=SiglipConfig(text_config=TEXT, vision_config=vision), **OURS)


def test_frames_that_do_not_divide_into_patches_are_refused():
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=CONFIGS["siglip2"], **OURS))
    with pytest.raises(ValueError, match="20 x 16 pixels cannot be cut into SigLIP 2's patches of 8 x 8"):
        model.get_video_features(torch.zeros(1, 2, 3, 20, 16))


def test_a_backbone_whose_weights_an_old_transformers_does_not_load_is_refused(monkeypatch):
    config = AltCLIPConfig(projection_dim=24, text_config={"project_dim": 24})
    for version, refused in (("5.15.1", True), ("5.16.0", False), ("6.0.0.dev0", False)):
        monkeypatch.setattr(backbones_clipfsar, "__version__", version)
        assert bool(why_no_backbone("altclip")) is refused
        assert why_no_backbone("chinese_clip") is None
    monkeypatch.setattr(backbones_clipfsar, "__version__", "5.15.1")
    with pytest.raises(ValueError, match=r"5\.15\.1 does not load all of its weights: install 5\.16 or newer"):
        CLIPFSARConfig(clip_config=config)
