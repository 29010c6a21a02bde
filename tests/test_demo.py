"""The demo at a small size: both tracks with all of their rows, from rendering to pictures."""

import json
import logging
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from transformers.utils import logging as transformers_logging

from demo.synthetic import run, study, tracks
from demo.synthetic.classes import SPLITS
from demo.synthetic.end_to_end import end_to_end
from demo.synthetic.first_answer import first_answer, in_words
from demo.synthetic.quiet import quiet
from demo.synthetic.track_classes import ORDER, WHAT, look_of, twin_of, verb_of
from demo.synthetic.track_episode import classes_of_episode
from demo.synthetic.track_heads import Recipe
from demo.synthetic.track_report import LABELS
from demo.synthetic.tracks import (
    ENCODING,
    TESTING,
    TEXT_WEIGHTS,
    TRAINING,
    TrackSettings,
    run_tracks,
    track_folder,
)

FOLDS = (
    ("growing", "shrinking", "rising", "falling", "swinging"),
    ("moving left", "moving right", "shaking", "hopping", "looping"),
)


def small_tracks():
    """Both tracks with as few classes and clips as 5-way 5-shot episodes need."""
    verbs = sum(FOLDS, ())
    sizes = {"base_clips": 2, "draws": 1, "test_clips": 6}
    one_look = {name: tuple(n for n in getattr(ORDER, name)[:36] if verb_of(n) in verbs) for name in ("base", "novel")}
    return (
        replace(WHAT, base=WHAT.base[:6], validation=WHAT.validation[:5], novel=WHAT.novel[:5], **sizes),
        replace(ORDER, **one_look, validation=ORDER.validation[:5], folds=FOLDS, **sizes),
    )


SMALL = TrackSettings(num_seeds=2, recipe=Recipe(episodes=2, n_way=5, n_query=1, validations=1), test_episodes=4)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracks")
    phases = []
    results = run_tracks(folder, SMALL, small_tracks(), 1, lambda *call: phases.append(call))
    return folder, results, phases


@pytest.mark.whole_program
def test_a_run_has_all_rows_on_both_tracks(small_run):
    folder, results, _ = small_run
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    for name, track in results["tracks"].items():
        assert list(track["rows"]) == [row for row in LABELS if row != "swapped_texts" or name == "order"]
        for row in track["rows"].values():
            for column in row["shots"].values():
                assert 0 <= column["accuracy"] <= 100
                assert np.mean(list(column["per_class"].values())) == pytest.approx(column["accuracy"])
                assert np.mean(column["per_seed"]) == pytest.approx(column["accuracy"])
        assert len(track["rows"]["with_text"]["shots"]["1"]["per_seed"]) == 2
        assert len(track["rows"]["frozen_otam"]["shots"]["1"]["per_seed"]) == 1
        assert set(track["ensemble_text_weight"].values()) <= set(TEXT_WEIGHTS)
        for difference in track["differences"].values():
            ours, theirs = (track["rows"][row]["shots"]["1"]["accuracy"] for row in difference["rows"])
            assert difference["shots"]["1"]["difference"] == pytest.approx(ours - theirs)
    assert set(results["tracks"]["order"]["rows"]["with_text"]["shots"]["1"]["per_class"]) == set(sum(FOLDS, ()))
    assert results["tracks"]["order"]["rows"]["texts_only"]["twins"]["accuracy"] == pytest.approx(50, abs=25)
    assert (folder / "results.md").read_text() == results["table"] + "\n"


@pytest.mark.whole_program
def test_the_caller_hears_how_far_each_phase_is(small_run):
    phases = small_run[2]
    names = list(dict.fromkeys(phase for phase, _, _ in phases))
    assert names == [ENCODING, TRAINING, TESTING]
    for name in names:
        done = [(number, total) for phase, number, total in phases if phase == name]
        assert [number for number, _ in done] == list(range(done[0][1] + 1))


@pytest.mark.whole_program
def test_a_run_goes_on_where_it_stopped_and_gives_the_same_numbers(small_run):
    folder, results, _ = small_run
    (kept,) = folder.glob("tracks/what-*/fold0_seed0_with_text.safetensors")
    (lost,) = folder.glob("tracks/what-*/fold0_seed1_with_text.json")
    before = kept.stat().st_mtime_ns
    lost.unlink()
    again = run_tracks(folder, SMALL, small_tracks(), 1, lambda *call: None)
    assert kept.stat().st_mtime_ns == before
    assert lost.is_file()
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in results.items() if k != "seconds"}


@pytest.mark.whole_program
def test_other_settings_take_nothing_from_an_earlier_run(small_run):
    folder = small_run[0]
    other = replace(SMALL, recipe=replace(SMALL.recipe, learning_rate=1e-3))
    assert not track_folder(folder, small_tracks()[0], other).exists()
    assert track_folder(folder, small_tracks()[0], SMALL).is_dir()


CLASSES = {split: names[::4][:3] for split, names in SPLITS.items()}
SETTINGS = {"episodes": 4, "eval_every": 4, "n_way": 3, "n_shot": [1], "eval_episodes": 5, "test_episodes": 5}


@pytest.fixture(scope="module")
def small_training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("end_to_end")
    return folder, lambda: end_to_end(folder, 1, CLASSES, **SETTINGS)


@pytest.mark.whole_program
def test_files_become_a_trained_model_that_classifies_a_novel_clip(small_training, fresh_accelerate):
    folder, train = small_training
    done = train()
    assert [result["inference_mode"] for result in done["results"]] == ["few_shot", "zero_shot", "ensemble"]
    assert done["class"] == "red star growing"
    assert {entry["label"] for entry in done["answer"]} == {
        "red star growing",
        "red circle fading in",
        "two green rings meeting",
    }
    assert all(command.startswith("clipfsar ") for command in done["commands"])
    weights = folder / "run" / "best" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert train()["results"] == done["results"]
    assert weights.stat().st_mtime_ns == before  # nothing was trained again
    with pytest.raises(ValueError, match="run holds a training with episodes=4: delete it, or name another folder"):
        end_to_end(folder, 1, CLASSES, **SETTINGS | {"episodes": 8})


def test_what_the_demo_silences_speaks_again_afterwards():
    logger = logging.getLogger("plain_clipfsar")
    before = logger.level, transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    with quiet():
        assert logger.level == logging.ERROR
        assert not transformers_logging.is_progress_bar_enabled()
    after = logger.level, transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    assert after == before


def test_the_first_answer_knows_what_was_shown_and_what_was_not(tmp_path):
    answers = first_answer(tmp_path)
    best = [found["answer"][0]["label"] for found in answers]
    assert best == ["red star growing", "green star bouncing", "none of these"]
    assert "white heart stretching, which is not enrolled" in in_words(answers)
    with Image.open(tmp_path / "why.png") as picture:
        assert min(picture.size) > 400


@pytest.mark.whole_program
def test_the_demo_prints_its_tables_and_shows_everything_on_one_page(
    small_run, small_training, monkeypatch, capsys, fresh_accelerate
):
    folder, results, _ = small_run
    trained = small_training[1]()
    shutil.copytree(small_training[0] / "run", folder / "run")
    monkeypatch.setattr(run, "run_tracks", lambda *_, **__: results)
    monkeypatch.setattr(run, "end_to_end", lambda *_: trained)
    monkeypatch.setattr(run, "TrackSettings", lambda num_seeds: SMALL)
    monkeypatch.setattr(run, "TRACKS", small_tracks())
    run.main(run.Arguments(str(folder)))
    assert results["table"] in capsys.readouterr().out
    for name in ("what", "order", "what_episode", "order_episode"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 400
    page = (folder / "index.html").read_text()
    for row in results["tracks"]["order"]["rows"].values():
        cell = row["shots"]["1"]
        assert f"<td>{row['label'].replace(chr(39), '&#x27;')}</td><td>{cell['accuracy']:.1f} ± " in page
    assert page.count("data:image/png;base64,") == 7
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # no other file is needed


def test_an_episode_on_order_holds_twins():
    names = classes_of_episode(ORDER)
    assert len(set(names)) == 5
    assert verb_of(names[1]) == twin_of(verb_of(names[0]))
    assert len({look_of(name) for name in names}) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_seeds": 0}, "num_seeds=0 must be a whole number of at least 1"),
        ({"num_workers": -3}, "num_workers=-3 must be a whole number of at least 1"),
        ({"output_dir": __file__}, "is a file: name a folder"),
    ],
)
def test_options_that_would_fail_after_minutes_are_refused_at_once(options, reason):
    for program in (run, study, tracks):
        with pytest.raises(ValueError, match=reason):
            program.Arguments(**options)


def test_learning_rates_of_the_study_are_positive():
    with pytest.raises(ValueError, match="learning_rates: 0 must be greater than 0"):
        study.Arguments(learning_rates=[1e-4, 0.0])
