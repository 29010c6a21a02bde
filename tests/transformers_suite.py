"""transformers' own tests on our classes: `make upstream`, which puts them where Python finds them.

Not part of `make test`: they come from the package registry. `NOT_FOR_US` lists what does not apply, and why.
"""

import copy
import unittest
import unittest.mock

import torch
from golden.formula_model import (
    VOCAB_SIZE,
    formula_tensor,
    tiny_clip_config,
    tiny_config,
    tiny_episode,
    tiny_resnet_clip_config,
)
from tests_of_transformers.test_configuration_common import ConfigTester
from tests_of_transformers.test_modeling_common import ModelTesterMixin
from tests_of_transformers.test_processing_common import ProcessorTesterMixin
from tiny_data import tiny_tokenizer
from transformers import CLIPImageProcessor, Siglip2Config

from configuration_clipfsar import CLIPFSARConfig, CLIPResNetConfig, CLIPResNetVisionConfig
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor
from resnet_clipfsar import CLIPResNetVisionModel

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = TOWER | {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 6, "bos_token_id": 48, "eos_token_id": 49}
SIGLIP2 = Siglip2Config(text_config=TEXT, vision_config=TOWER | {"num_patches": 4, "patch_size": 8})

_TENSOR = "get_video_features gives a tensor (..., T, D), not an output: it did in version 0.1"
_EPISODE = "a call takes videos and class names of an episode, and no text, images or dicts of their settings"
_NAMES = "settings of a processor may be given to a call, under the names that version 0.1 gave them"
# Test: why it is not for us. Whatever else is skipped, transformers skips itself, and says why.
NOT_FOR_US = {
    "EpisodeTests": {
        "test_model_main_input_name": "the main input is the query, which all modes have; forward begins with support",
        "test_correct_missing_keys": "a plain CLIP lacks nothing: it is loaded without the layers that training adds",
        "test_get_video_features_output_0": _TENSOR,
        "test_get_video_features_output_1": _TENSOR,
        "test_get_video_features_output_2": _TENSOR,
        "test_get_video_features_hidden_states": _TENSOR,
        "test_get_video_features_attentions": _TENSOR,
    },
    "TestProcessor": {
        "test_model_input_names": _EPISODE,
        "test_processor_with_multiple_inputs": _EPISODE,
        "test_kwargs_overrides_default_subprocessor_kwargs_0_images": _EPISODE,
        "test_subprocessor_defaults_preserved_by_kwargs_0_images": _EPISODE,
        "test_doubly_passed_kwargs_0_images": _EPISODE,
        "test_overlapping_text_image_kwargs_handling_0_images": _EPISODE,
        "test_structured_kwargs_nested_from_dict_0_images": _EPISODE,
        "test_unstructured_kwargs_0_images": _EPISODE,
        "test_unstructured_kwargs_batched_0_images": _EPISODE,
        "test_flat_kwarg_applied_when_modality_dict_lacks_it": _EPISODE,
        "test_call_arguments_default_none": _NAMES,
        "test_call_arguments_not_in_attributes": _NAMES,
        "test_call_arguments_not_in_processor_kwargs": _NAMES,
        "test_init_arguments_not_in_processor_kwargs": _NAMES,
    },
}


def without_what_is_not_for_us(tests: type) -> type:
    """Marks the tests of the table as skipped; one that transformers does not have is an error."""
    for base in tests.__mro__:
        for name, reason in NOT_FOR_US.get(base.__name__, {}).items():
            setattr(tests, name, unittest.skip(reason)(getattr(tests, name)))
    return tests


# --- the model on its three kinds of backbone -------------------------------------------------------------------------


class EpisodeTester:
    """Makes configurations and inputs of our model, as transformers' tests ask for them."""

    is_training = True
    batch_size, n_way, num_frames = 7, 2, 2
    num_hidden_layers, num_attention_heads = 2, 2

    def __init__(self, parent, clip_config, image_size=16, **expected):
        self.parent, self.clip_config, self.image_size = parent, clip_config, image_size
        for name, value in expected.items():
            setattr(self, name, value)

    def get_config(self):
        return tiny_config(copy.deepcopy(self.clip_config), num_frames=self.num_frames)

    def prepare_config_and_inputs_for_common(self):
        episode = {"n_way": self.n_way, "n_query": 1, "num_frames": self.num_frames, "image_size": self.image_size}
        episodes = [tiny_episode(**episode, phase=float(number)) for number in range(self.batch_size)]
        inputs = {name: torch.cat([each[name] for each in episodes]) for name in episodes[0]}
        inputs.pop("labels")
        return self.get_config(), inputs


class EpisodeTests(ModelTesterMixin):
    all_model_classes = (CLIPFSARModel,)
    additional_model_inputs = ("support_pixel_values", "support_labels", "class_input_ids")
    test_resize_embeddings = False  # the text tower is the backbone's, its vocabulary the tokenizer's
    _is_composite = True

    def setUp(self):
        self.model_tester = EpisodeTester(self, **self.backbone)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels:  # and what else the loss needs, so that every parameter has a gradient
            labels = torch.zeros(inputs["query_pixel_values"].shape[:2], dtype=torch.long)
            inputs |= {"labels": labels, "query_base_labels": labels, "support_base_labels": inputs["support_labels"]}
            size = model_class.config_class.hidden_size.fget(self.model_tester.get_config())
            inputs["base_class_embeds"] = formula_tensor((3, size))
        return inputs

    def test_batching_equivalence(self, **tolerances):
        # Hidden states of support videos stand before those of query videos, for all episodes: with the support as
        # features, those of the first episode are the first.
        prepare = self.model_tester.prepare_config_and_inputs_for_common

        def prepare_with_features():
            config, inputs = prepare()
            inputs["support_embeds"] = formula_tensor(
                (*inputs.pop("support_pixel_values").shape[:3], config.hidden_size)
            )
            return config, inputs

        self.model_tester.prepare_config_and_inputs_for_common = prepare_with_features
        super().test_batching_equivalence(**tolerances)


@without_what_is_not_for_us
class TestViT(EpisodeTests, unittest.TestCase):
    backbone = {"clip_config": tiny_clip_config(), "seq_length": 5, "hidden_size": 32}


@without_what_is_not_for_us
class TestSigLIP2(EpisodeTests, unittest.TestCase):
    backbone = {"clip_config": SIGLIP2, "seq_length": 4, "hidden_size": 16}


@without_what_is_not_for_us
class TestResNet(EpisodeTests, unittest.TestCase):
    # Feature maps of the stem and of four stages; the first has 16 x 16 positions.
    feature_maps = {"expected_num_hidden_layers": 5, "seq_length": 16, "hidden_size": 16}
    backbone = {"clip_config": tiny_resnet_clip_config(), "image_size": 64, **feature_maps}
    has_attentions = False

    def _prepare_config_and_inputs_for_retain_grad_hidden_states_attentions(self):
        # Where batch norms see the batch, episodes are encoded one by one, and their hidden states are put together.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config.clip_config.vision_config.freeze_batch_norm = True
        return config, inputs


class TowerTester(EpisodeTester):
    """The same for the ResNet tower alone, which has no loss."""

    is_training = False

    def get_config(self):
        return tiny_resnet_clip_config().vision_config

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": formula_tensor((self.batch_size, 3, 64, 64))}


class TestResNetTower(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CLIPResNetVisionModel,)
    test_resize_embeddings = False
    has_attentions = False

    def setUp(self):
        self.model_tester = TowerTester(self, None, **TestResNet.feature_maps)

    def test_model_get_set_embeddings(self):
        # As transformers' own visual towers have it: a convolution in place of embeddings.
        tower = CLIPResNetVisionModel(self.model_tester.get_config())
        assert isinstance(tower.get_input_embeddings(), torch.nn.Conv2d)
        replacement = torch.nn.Conv2d(3, 2, 3)
        tower.set_input_embeddings(replacement)
        assert tower.get_input_embeddings() is replacement


# --- configurations ---------------------------------------------------------------------------------------------------


class TestConfigurations(unittest.TestCase):
    model_tester = None  # the configurations are made of their sizes

    def test_of_the_model(self):
        sizes = {"num_frames": 4, "alignment": "bi_mhm", "temporal_num_heads": 2}
        ConfigTester(self, CLIPFSARConfig, has_text_modality=False, **sizes).run_common_tests()

    def test_of_the_resnet(self):
        ConfigTester(self, CLIPResNetConfig, has_text_modality=False, projection_dim=16).run_common_tests()

    def test_of_the_resnet_tower(self):
        common = {"has_text_modality": False, "common_properties": ["hidden_size", "num_attention_heads"]}
        ConfigTester(self, CLIPResNetVisionConfig, **common, width=4).run_common_tests()


# --- the processor ----------------------------------------------------------------------------------------------------


@without_what_is_not_for_us
class TestProcessor(ProcessorTesterMixin, unittest.TestCase):
    processor_class = CLIPFSARProcessor

    @classmethod
    def setUpClass(cls):
        # As transformers' own processors: one that takes its code along has an `auto_map` after it was saved.
        cls.enterClassContext(unittest.mock.patch.object(CLIPFSARProcessor, "_auto_class", None))
        super().setUpClass()

    images_input_name = "query_pixel_values"
    text_input_name = "class_input_ids"

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})

    @classmethod
    def _setup_tokenizer(cls):
        return tiny_tokenizer()

    @staticmethod
    def prepare_processor_dict():
        return {"num_frames": 4}
