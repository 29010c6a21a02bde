"""The numbers of the official program, and what this implementation computed in the run that reproduced them.

`golden/record_golden.py` says where each golden file comes from.
"""

import os
from pathlib import Path

import pytest
import torch
from golden import official_heads
from golden import record_golden as golden
from safetensors.torch import load_file
from transformers import CLIPConfig

from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel


def load_golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(golden.GOLDEN_DIR / f"{name}.safetensors")


@pytest.fixture(scope="module", params=golden.CLIP_CONFIGS)
def official(request):
    """Frame features, states and official logits of two recorded episodes, for each visual tower."""
    return load_golden(f"official_head_{request.param}")


@pytest.fixture(scope="module")
def head(official):
    """A model for the part behind the temporal transformer, whose only weight is the video-text scale."""
    towers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip_config = CLIPConfig(
        text_config=towers | {"vocab_size": 10},
        vision_config=towers | {"image_size": 16, "patch_size": 8},
        projection_dim=official["one_shot.class_embeds"].shape[-1],
    )
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=clip_config, num_frames=4, temporal_num_layers=0)).eval()
    with torch.no_grad():
        model.video_text_scale.copy_(official["video_text_scale"])
    return model


def test_alignment_gives_the_official_values_and_gradients():
    deviations = golden.compare_alignment(load_golden("alignment"))
    assert golden.too_large(deviations) == {}


@pytest.mark.parametrize("episode", ["one_shot", "three_shot"])
@pytest.mark.parametrize("pooling", golden.SUPPORT_POOLINGS)
@pytest.mark.parametrize("mode", golden.OFFICIAL_MODES)
@torch.no_grad()
def test_head_gives_the_official_logits(official, head, mode, pooling, episode):
    inference_mode, fields, recorded_as = golden.OFFICIAL_MODES[mode]
    query_states = official[f"{episode}.query_states"].unsqueeze(0)
    prototypes = official[f"{episode}.prototypes.pool_{pooling}"].unsqueeze(0)
    query_embeds = official[f"{episode}.query_embeds"].unsqueeze(0)
    class_embeds = official[f"{episode}.class_embeds"].unsqueeze(0)
    with golden.changed_config(head.config, **fields):
        distances = head.get_distances(query_states, prototypes)
        text_logits = head.get_text_logits(query_embeds, class_embeds)
        logits = head.get_logits(distances, text_logits, inference_mode)[0]
    expected = official[f"{episode}.logits.{mode}.pool_{pooling}"]
    torch.testing.assert_close(golden.as_official_recording(logits, recorded_as), expected, rtol=0, atol=1e-5)


def test_one_shot_poolings_agree_in_the_official_recordings_too(official):
    for mode in golden.OFFICIAL_MODES:
        before, after = (official[f"one_shot.logits.{mode}.pool_{pooling}"] for pooling in golden.SUPPORT_POOLINGS)
        torch.testing.assert_close(before, after, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tower", golden.CLIP_CONFIGS)
def test_whole_model_gives_what_it_gave_when_it_reproduced_the_official_program(tower):
    expected = load_golden(f"formula_model_{tower}")
    ours = golden.formula_model_outputs(tower)
    assert ours.keys() == {key for key in expected if not key.startswith("train.")}
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("tower", golden.CLIP_CONFIGS)
def test_training_follows_the_trajectory_it_followed_when_it_reproduced_the_official_program(tower):
    expected = {
        key.removeprefix("train."): value
        for key, value in load_golden(f"formula_model_{tower}").items()
        if key.startswith("train.")
    }
    ours = golden.formula_model_training(tower)
    assert ours.keys() == expected.keys()
    assert golden.too_large(golden.training_deviations(ours, expected), tower) == {}


@pytest.mark.parametrize("name", official_heads.IN_GOLDEN_FILE)
def test_a_head_gives_the_official_logits_gradients_and_losses(name):
    deviations = official_heads.deviations(load_golden("official_heads"), name)
    assert {name.split("/")[1] for name in deviations} >= {"logits", "support_grad_of_squared_logits"}
    assert {name: value for name, value in deviations.items() if not value <= official_heads.TOLERANCE} == {}


def test_a_deviation_is_noticed_even_when_it_is_not_a_number():
    assert golden.deviation(torch.tensor([0.0, torch.nan]), torch.zeros(2)) == torch.inf
    assert golden.too_large({"class texts": torch.inf, "training losses": 0.0}) == {"class texts": torch.inf}


needs_recordings = pytest.mark.skipif(
    "CLIPFSAR_PARITY_DIR" not in os.environ,
    reason="CLIPFSAR_PARITY_DIR does not name a folder with recordings of the official program (see "
    "tests/golden/record_golden.py); the golden files hold what fits into a repository",
)


@needs_recordings
@pytest.mark.parametrize("tower", golden.CLIP_CONFIGS)
def test_everything_recorded_of_the_official_program_is_reproduced(tower):
    deviations, _, _ = golden.compare_with_official(os.environ["CLIPFSAR_PARITY_DIR"], tower)
    assert deviations.keys() == golden.TOLERANCES.keys() - {"training final batch_statistics"}
    assert golden.too_large(deviations, tower) == {}


@needs_recordings
def test_everything_recorded_of_the_official_heads_is_reproduced():
    path = Path(os.environ["CLIPFSAR_PARITY_DIR"]) / "heads.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.parent} holds no recordings of heads")
    recorded = load_file(path)
    names = official_heads.names_of(recorded)
    assert names
    deviations = {name: official_heads.deviations(recorded, name) for name in names}
    large = {
        f"{name}/{key}": value
        for name, found in deviations.items()
        for key, value in found.items()
        if not value <= official_heads.TOLERANCE
    }
    assert large == {}
