"""Loading a model and its processor by one name."""

import shutil

import pytest
import torch
from tiny_data import tiny_model_and_processor

from clipfsar.inference.load_model import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and its processor, and others in the folder `v2`."""
    path = tmp_path_factory.mktemp("models") / "both"
    for place, template in ((path, "a photo of {}"), (path / "v2", "a video of {}")):
        model, processor = tiny_model_and_processor(alignment="otam" if place == path else "bi_mhm")
        processor.prompt_template = template
        model.save_pretrained(place)
        processor.save_pretrained(place)
    return path


def test_the_processor_comes_from_the_subfolder_of_its_model(folder):
    for options, expected in (({}, ("otam", "a photo of {}")), ({"subfolder": "v2"}, ("bi_mhm", "a video of {}"))):
        model, processor = load_model(str(folder), **options)
        assert (model.config.alignment, processor.prompt_template) == expected


def test_checksums_of_the_subfolder_count(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "v2" / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    load_model(str(copy))
    with pytest.raises(ValueError, match=r"v2/model\.safetensors"):
        load_model(str(copy), subfolder="v2")


def test_a_number_of_frames_is_that_of_both(folder):
    model, processor = load_model(str(folder), num_frames=6)
    assert (model.config.num_frames, processor.num_frames) == (6, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_a_dtype_is_a_name_or_one_of_torch(folder, dtype):
    assert load_model(str(folder), dtype)[0].dtype == torch.bfloat16


def test_a_dtype_that_is_none_is_answered_with_the_choices(folder):
    choices = r"choose one of 'auto', 'float32', 'float16', 'bfloat16', 'int8'\.$"
    for dtype, name in (("bf16", "'bf16'"), (torch.int32, "'int32'")):
        with pytest.raises(ValueError, match=f"^dtype={name} is not known: {choices}"):
            load_model(str(folder), dtype=dtype)
    with pytest.raises(TypeError, match=r"^load_model does not know 'torch_dtype': its name is dtype\.$"):
        load_model(str(folder), torch_dtype=torch.bfloat16)
