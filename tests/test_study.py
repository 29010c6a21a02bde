"""The study at a small size, and its conclusions from made-up numbers."""

from dataclasses import replace

import pytest
import torch

from demo.synthetic.study import TOWERS, TowerRun, _new_model, encode, render_class, run_study
from demo.synthetic.study_report import conclusion, report
from demo.synthetic.track_classes import WHAT
from demo.synthetic.track_features import ClassClips, encode_class, tiny_clip
from demo.synthetic.track_heads import Recipe
from demo.synthetic.tracks import TrackSettings

SMALL = TrackSettings(num_seeds=1, recipe=Recipe(episodes=2, n_way=5, validations=1), test_episodes=4)


def small_track():
    names = {"base": WHAT.base[:5], "validation": WHAT.validation[:5], "novel": WHAT.novel[:5]}
    return replace(WHAT, **names, base_clips=2, draws=1, test_clips=6)


@pytest.mark.whole_program
def test_a_study_trains_the_tower_and_goes_on_where_it_stopped(tmp_path):
    calls = []
    arguments = (tmp_path, SMALL, [small_track()], ["frozen", "last_layer"], [1e-4], 1)
    study = run_study(*arguments, lambda *call: calls.append(call))
    towers = study["tracks"]["what"]
    assert list(towers) == ["frozen", "last_layer"]
    assert towers["last_layer"]["learning_rate"] == 1e-4
    assert all(log["cpu_seconds"] > 0 for log in towers["last_layer"]["training"])
    text = report(study)
    assert "| none (as in the demo) |" in text
    assert "Not measured: LoRA, rank 8; all." in text
    assert "not measured: the track order" in text
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("what-*/*")}
    assert len([path for path in written if path.suffix == ".safetensors"]) == 3 + 4
    again = run_study(*arguments, lambda *call: None)
    assert again == study
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("what-*/*")} == written


@pytest.mark.parametrize("tower", TOWERS)
def test_each_recipe_trains_what_its_name_says(tower):
    if tower == "lora":
        pytest.importorskip("peft")
    model = _new_model(TowerRun("", WHAT, SMALL, tower, 0, 0, True))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    in_tower = {name for name in trained if name.startswith("clip.")}
    assert any(name.startswith("temporal_transformer.") for name in trained)
    assert not any("text_model" in name for name in trained)
    assert bool(in_tower) == (tower != "frozen")
    assert all("lora_" in name for name in in_tower) == (tower in ("lora", "frozen"))
    assert any("embeddings" in name for name in in_tower) == (tower == "whole")


def test_pixels_are_encoded_as_the_demo_encodes_them():
    job = ClassClips("red star growing", 2, 1, 1.0, 0)
    features = encode(tiny_clip()[0], torch.from_numpy(render_class(job))[None])
    torch.testing.assert_close(features[0], torch.from_numpy(encode_class(job)[0]), atol=1e-4, rtol=1e-4)


def test_an_unknown_tower_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(ValueError, match="Unknown tower 'half': choose from frozen, last_layer, lora, whole"):
        run_study(tmp_path, SMALL, towers=["half"])


def made_up(gain: float, half_width: float, seconds: float) -> dict:
    cell = {"difference": gain, "interval": [gain - half_width, gain + half_width], "half_width": half_width}
    return {"differences": {"method": {"shots": {"5": cell}}}, "training": [{"cpu_seconds": seconds}]}


def test_the_cheapest_recipe_that_beats_frozen_features_on_both_tracks_is_named():
    both = {"frozen": made_up(0.2, 1, 5), "lora": made_up(2, 1, 60), "whole": made_up(3, 1, 90)}
    other = both | {"last_layer": made_up(3, 1, 30)}
    text = conclusion({"tracks": {"what": both, "order": other}})
    assert text.startswith(
        "CLIP-FSAR beats frozen features at five shots on both tracks. The cheapest recipe that does trains: LoRA"
    )
    assert "Not measured: last layer." in text


def test_a_gain_on_one_track_alone_is_no_win():
    text = conclusion({"tracks": {"what": {"lora": made_up(2, 1, 60)}, "order": {"lora": made_up(0.5, 1, 60)}}})
    assert text.startswith("None of the measured recipes beats frozen features at five shots on both tracks.")
