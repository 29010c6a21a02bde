"""Enrolled classes: equal to the model's own episodes, changed without encoding again, kept, refused where unfit."""

import contextlib
import copy
import io
import json
import os
import pickle
import re
import stat
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import random_clip, similar_clips, tiny_model_and_processor

import enrolled_clipfsar
import support_set_clipfsar
import support_set_files_clipfsar
from clipfsar.inference.load_model import load_model
from configuration_clipfsar import CLIPFSARConfig
from demo.synthetic import TINY_CLIP
from demo.synthetic.render import render_clip
from enrolled_clipfsar import Snapshot, _frames_of_strip, distances_in_pieces, listed
from enrolling_clipfsar import film_strip
from fingerprint_clipfsar import model_digest, weights_state
from left_out_clipfsar import leave_one_out
from modeling_clipfsar import CLIPFSARModel
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from processing_clipfsar import CLIPFSARProcessor, VideoReadError
from support_set_clipfsar import EnrolledClass, SupportSet
from support_set_files_clipfsar import Unknowns

FILES = ["support_set.json", "support_set.safetensors"]
MODES = ("few_shot", "zero_shot", "ensemble")
CLIPS = {
    "boxing": similar_clips(0, 3),
    "diving": [random_clip(3)],
    "running": [random_clip(4)],
}
QUERIES = [random_clip(10), random_clip(11)]
# Recorded from this program (torch 2.13, CPU): 9 known and 9 unknown clips.
GOLDEN_AUROC = 0.864


@pytest.fixture(scope="module")
def parts():
    return tiny_model_and_processor()


@pytest.fixture
def support_set(parts):
    return SupportSet.from_videos(*parts, CLIPS)


@pytest.fixture(scope="module")
def query_embeds(parts):
    model, processor = parts
    with torch.no_grad():
        return model.get_video_features(processor.process_videos(QUERIES))


def count_encoded_videos(model, monkeypatch) -> list[int]:
    """Videos of each call of the visual tower from now on."""
    calls, encode = [], model.get_video_features

    def counted(pixel_values):
        calls.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(model, "get_video_features", counted)
    return calls


@pytest.mark.parametrize("support_pooling", ["before", "after"])
@pytest.mark.parametrize("mode", MODES)
def test_logits_are_those_of_the_same_episode(mode, support_pooling):
    model, processor = tiny_model_and_processor(support_pooling=support_pooling)
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    inputs = processor(support_videos=CLIPS, query_videos=QUERIES)
    with torch.no_grad():
        expected = model(**inputs, inference_mode=mode).logits[0]
        logits = support_set.classify(model, model.get_video_features(inputs["query_pixel_values"][0]), mode)
    assert support_set.num_clips == {"boxing": 3, "diving": 1, "running": 1}
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_batch_size_changes_nothing(parts, support_set, query_embeds, batch_size):
    other = SupportSet.from_videos(*parts, CLIPS, batch_size=batch_size)
    torch.testing.assert_close(
        other.classify(parts[0], query_embeds), support_set.classify(parts[0], query_embeds), rtol=0, atol=1e-6
    )


def test_as_many_clips_are_encoded_at_once_as_asked_for(parts, monkeypatch):
    calls = count_encoded_videos(parts[0], monkeypatch)
    support_set = SupportSet.from_videos(*parts, CLIPS, batch_size=2)
    support_set.add_background(*parts, [random_clip(20), random_clip(21), random_clip(22)], batch_size=2)
    assert calls == [2, 2, 1, 2, 1]
    calls.clear()
    support_set.add(*parts, {"new": [random_clip(30 + number) for number in range(9)]})
    support_set.add_background(*parts, [random_clip(40 + number) for number in range(9)])
    assert calls == [8, 1, 8, 1]


def test_a_bar_counts_the_clips_where_it_is_asked_for(parts, capsys):
    support_set = SupportSet.from_videos(*parts, CLIPS)
    support_set.add_background(*parts, QUERIES)
    assert capsys.readouterr().err == ""
    support_set.add(*parts, {"new": [random_clip(30), random_clip(31), random_clip(32)]}, show_progress=True)
    support_set.add_background(*parts, [random_clip(33)], show_progress=True)
    shown = capsys.readouterr().err
    assert re.findall(r"enrolling: 100%.* (\d/\d) .*clip", shown) == ["3/3", "1/1"]


def test_adding_encodes_only_what_is_new(parts, query_embeds, monkeypatch):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, {"boxing": CLIPS["boxing"][:1], "diving": CLIPS["diving"]})
    support_set.classify(model, query_embeds)
    calls = count_encoded_videos(model, monkeypatch)
    support_set.add(model, processor, {"boxing": CLIPS["boxing"][1:], "running": CLIPS["running"]})
    assert calls == [3]
    whole = SupportSet.from_videos(model, processor, CLIPS)
    assert support_set.num_clips == whole.num_clips
    torch.testing.assert_close(
        support_set.classify(model, query_embeds), whole.classify(model, query_embeds), rtol=0, atol=1e-6
    )


def test_removing_encodes_nothing_and_leaves_the_rest(parts, support_set, query_embeds, monkeypatch):
    model, processor = parts
    fewer = SupportSet.from_videos(model, processor, {"boxing": CLIPS["boxing"][::2], "diving": CLIPS["diving"]})
    calls = count_encoded_videos(model, monkeypatch)
    support_set.classify(model, query_embeds)
    support_set.remove_clip("boxing", "clip 2")
    support_set.remove_class("running")
    assert calls == []
    assert support_set.classes["boxing"].clip_names == ["clip 1", "clip 3"]
    torch.testing.assert_close(
        support_set.classify(model, query_embeds), fewer.classify(model, query_embeds), rtol=0, atol=1e-6
    )


def test_prototypes_are_made_once(parts, support_set, query_embeds, monkeypatch):
    model, _ = parts
    calls, get_prototypes = [], model.get_prototypes
    monkeypatch.setattr(model, "get_prototypes", lambda *inputs: calls.append(1) or get_prototypes(*inputs))
    for _ in range(3):
        support_set.classify(model, query_embeds)
    assert len(calls) == 1


def test_a_model_in_training_mode_classifies_as_in_evaluation_mode(parts, support_set, query_embeds):
    model, _ = parts
    expected = support_set.classify(model, query_embeds)
    model.train()
    try:
        assert torch.equal(support_set.classify(model, query_embeds), expected)
        assert model.training
    finally:
        model.eval()


def test_clips_are_named_after_their_files(parts, tmp_path):
    folders = [tmp_path / "one" / "a", tmp_path / "two" / "a"]
    for folder in folders:
        folder.mkdir(parents=True)
        Image.fromarray(random_clip(1)[0]).save(folder / "0.png")
    clips = [str(folders[0]), folders[1], random_clip(2), {"path": str(folders[0]), "bytes": None}]
    support_set = SupportSet.from_videos(*parts, {"boxing": clips})
    assert support_set.classes["boxing"].clip_names == ["a", "a (2)", "clip 3", "a (3)"]


# None of these


def clusters(n_way: int, n_shot: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Frame features (N, K, T, D) of clips around a centre per class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_way, 1, 4, 16, generator=generator)
    return centres + spread * torch.randn(n_way, n_shot, 4, 16, generator=generator)


def enrolled_features(support_set: SupportSet, embeds: torch.Tensor) -> SupportSet:
    """A set of the same fingerprint with features (N, K, T, D) that came from nowhere."""
    texts = embeds.mean((1, 2))  # the class's name says what its clips show
    return SupportSet(
        support_set.fingerprint,
        {
            f"class {n}": EnrolledClass(texts[n], list("abcdefgh"[: len(clips)]), clips)
            for n, clips in enumerate(embeds)
        },
    )


@pytest.fixture(scope="module")
def bare_parts():
    """Prototypes are plain means of features."""
    return tiny_model_and_processor(temporal_num_layers=0, prototype_modulation=False)


@pytest.mark.parametrize("mode", MODES)
def test_videos_of_no_class_are_told_from_the_others(bare_parts, mode):
    embeds = clusters(n_way=6, n_shot=8, spread=0.5)
    support_set = enrolled_features(SupportSet.from_videos(*bare_parts, CLIPS), embeds[:4, :4])
    known = support_set.score_unknown(bare_parts[0], embeds[:4, 4:].flatten(0, 1), mode)
    unknown = support_set.score_unknown(bare_parts[0], embeds[4:].flatten(0, 1), mode)
    assert known.max() < 0.5 < unknown.min()


def test_left_out_distances_are_those_of_a_set_without_the_clip_and_the_class_text_counts():
    model, processor = tiny_model_and_processor(prototype_modulation=True)
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    embeds = support_set.classes["boxing"].support_embeds
    left_out = leave_one_out(model, support_set.classes, range(5)).distances
    for row in range(3):
        rest = copy.deepcopy(support_set)
        rest.remove_clip("boxing", row)
        expected = rest.compare(model, embeds[row, None])[0][0, 0]
        assert float(left_out[row, 0]) == pytest.approx(float(expected), abs=1e-6)
        boxing = rest.classes["boxing"]
        rest.classes = rest.classes | {"boxing": replace(boxing, class_embeds=torch.zeros_like(boxing.class_embeds))}
        assert float(rest.compare(model, embeds[row, None])[0][0, 0]) != pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(
    ("at_once", "settings"),
    [
        *((at_once, {"support_pooling": pooling}) for at_once in (1, 3, 5) for pooling in ("before", "after")),
        *((2, {"alignment": alignment}) for alignment in ("chamfer", "trx")),
    ],
    ids="{}".format,
)
def test_in_pieces_prototypes_and_distances_are_those_of_the_whole(monkeypatch, at_once, settings):
    model, processor = tiny_model_and_processor(**settings)
    embeds = clusters(n_way=6, n_shot=3, spread=0.7)
    enrolled = enrolled_features(SupportSet.from_videos(model, processor, CLIPS), embeds[:5])
    for name, kept in (("class 1", 2), ("class 3", 1)):  # classes of different sizes
        one = enrolled.classes[name]
        enrolled.classes[name] = EnrolledClass(one.class_embeds, one.clip_names[:kept], one.support_embeds[:kept])
    whole, queries = enrolled.snapshot(model), embeds[:, 0]
    expected = whole.prototypes, *whole.compare(model, queries)

    monkeypatch.setattr(enrolled_clipfsar, "CLASSES_AT_ONCE", at_once)
    monkeypatch.setattr(enrolled_clipfsar, "PAIRS_AT_ONCE_ON_CPU", 2 * at_once)
    pieces = SupportSet(enrolled.fingerprint, enrolled.classes).snapshot(model)
    torch.testing.assert_close((pieces.prototypes, *pieces.compare(model, queries)), expected)


def test_no_call_compares_more_pairs_than_allowed(bare_parts, monkeypatch):
    model, _ = bare_parts
    support_set = enrolled_features(SupportSet.from_videos(*bare_parts, CLIPS), clusters(300, 1, 0.7))
    pairs, get_distances = [], model.get_distances
    monkeypatch.setattr(model, "get_distances", lambda q, p: pairs.append((len(q), len(p))) or get_distances(q, p))
    support_set.compare(model, torch.randn(20, 4, 16))
    assert pairs == [(16, 256), (16, 44), (4, 256), (4, 44)]


@pytest.mark.parametrize(
    ("device", "pairs_at_once", "num_queries", "num_prototypes", "expected"),
    [
        ("meta", None, 300, 257, [(256, 256), (256, 1), (44, 256), (44, 1)]),  # stands for any other than a processor
        ("cpu", None, 20, 257, [(16, 256), (16, 1), (4, 256), (4, 1)]),
        ("cpu", 3, 2, 2, [(1, 2), (1, 2)]),
        ("cpu", 3, 5, 1, [(3, 1), (2, 1)]),
        ("cpu", 1, 2, 2, [(1, 1)] * 4),
    ],
)
def test_pairs_compared_at_once_follow_the_device(device, pairs_at_once, num_queries, num_prototypes, expected):
    pairs = []

    def get_distances(queries, prototypes):
        pairs.append((len(queries), len(prototypes)))
        return torch.empty(len(queries), len(prototypes), device=device)

    model = SimpleNamespace(get_distances=get_distances)
    queries, prototypes = (torch.empty(number, 2, 4, device=device) for number in (num_queries, num_prototypes))
    distances = distances_in_pieces(model, queries, prototypes, pairs_at_once)
    assert (distances.shape, pairs) == ((num_queries, num_prototypes), expected)


def test_the_limit_follows_the_set(bare_parts):
    model, _ = bare_parts
    embeds = clusters(n_way=4, n_shot=4, spread=0.7)
    support_set = enrolled_features(SupportSet.from_videos(*bare_parts, CLIPS), embeds[:3])
    query = embeds[3, :1]
    assert support_set.score_unknown(model, query) > 0.5
    support_set.classes["class 3"] = enrolled_features(support_set, embeds).classes["class 3"]
    assert support_set.score_unknown(model, query) < 0.5


def test_one_clip_per_class_shows_nothing_of_known_videos(bare_parts):
    model, _ = bare_parts
    support_set = enrolled_features(SupportSet.from_videos(*bare_parts, CLIPS), clusters(3, 1, 0.7))
    query = clusters(1, 1, 0.7, seed=1)[0]
    for mode in ("few_shot", "ensemble"):
        with pytest.raises(ValueError, match="no class has two clips: enroll more, or use inference_mode='zero_shot'"):
            support_set.score_unknown(model, query, mode)
    assert 0 <= float(support_set.score_unknown(model, query, "zero_shot")) <= 1


def test_a_set_that_cannot_tell_says_so(bare_parts):
    model, _ = bare_parts
    embeds = torch.randn(2, 2, 4, 16, generator=torch.Generator().manual_seed(0))
    embeds[1] = embeds[0].flip(0)  # both classes hold the same two clips: left out, a clip is nearer to the other class
    support_set = enrolled_features(SupportSet.from_videos(*bare_parts, CLIPS), embeds)
    with pytest.raises(ValueError, match="Unknown videos cannot be told from known ones: when left out"):
        support_set.score_unknown(model, embeds[0])


def test_unknown_videos_are_told_on_the_embedded_default():
    model, processor = load_model(str(TINY_CLIP))
    enrolled = ("red star growing", "red circle draining", "two green rings meeting")
    others = ("red star shrinking", "red circle filling", "two green rings parting")  # the same, backwards
    clips = {name: [render_clip(name, 0, index)[0] for index in range(6)] for name in (*enrolled, *others)}
    support_set = SupportSet.from_videos(model, processor, {name: clips[name][:3] for name in enrolled})
    queries = [clip for name in (*enrolled, *others) for clip in clips[name][3:]]
    with torch.no_grad():
        scores = support_set.score_unknown(model, model.get_video_features(processor.process_videos(queries)))
    known, unknown = scores[:9], scores[9:]
    auroc = float((unknown[:, None] > known).float().mean())
    assert auroc == pytest.approx(GOLDEN_AUROC, abs=0.02)


# Keeping


def test_saved_and_loaded_it_is_the_same(parts, support_set, query_embeds, tmp_path):
    support_set.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["support_set.json", "support_set.safetensors"]
    assert (tmp_path / "support_set.json").read_text().startswith('{\n  "format": 1,\n  "fingerprint": {\n    "model"')
    loaded = SupportSet.from_pretrained(tmp_path)
    loaded.check(*parts)
    assert loaded.num_clips == support_set.num_clips
    for name, enrolled in support_set.classes.items():
        assert loaded.classes[name].clip_names == enrolled.clip_names
        assert loaded.classes[name].thumbnails == enrolled.thumbnails
    for mode in MODES:
        expected = support_set.classify(parts[0], query_embeds, mode)
        assert torch.equal(loaded.classify(parts[0], query_embeds, mode), expected)


def test_thumbnails_are_left_out_on_request(parts, support_set, tmp_path):
    assert support_set.classes["boxing"].thumbnails[0].startswith(b"\xff\xd8")  # JPEG
    support_set.save_pretrained(tmp_path, thumbnails=False)
    assert SupportSet.from_pretrained(tmp_path).classes["boxing"].thumbnails == [b"", b"", b""]


def test_nothing_of_this_machine_is_saved(parts, tmp_path):
    clip = tmp_path / "private" / "clip.npy"
    clip.mkdir(parents=True)
    Image.fromarray(random_clip(1)[0]).save(clip / "0.png")
    SupportSet.from_videos(*parts, {"boxing": [clip], "diving": [clip]}).save_pretrained(tmp_path / "saved")
    assert "private" not in (tmp_path / "saved" / "support_set.json").read_text()


def test_a_file_is_no_support_set(tmp_path):
    (tmp_path / "classes").touch()
    with pytest.raises(ValueError, match="classes' holds no support set: it is not a folder"):
        SupportSet.from_pretrained(tmp_path / "classes")


@pytest.mark.parametrize("kind", [SupportSet, CLIPFSARProcessor, CLIPFSARModel, CLIPFSARConfig])
def test_a_folder_that_is_missing_is_called_missing(kind, tmp_path):
    missing = str(tmp_path / "classes")
    with pytest.raises(FileNotFoundError, match=f"There is no folder '{missing}'. A Hub id has the form OWNER/NAME."):
        kind.from_pretrained(missing)


def test_a_misspelt_support_set_is_named_after_at_most_one_question(monkeypatch, tmp_path):
    asked = []

    def unreachable(self, name, **options):
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", unreachable)
    with pytest.raises(FileNotFoundError, match=r"^There is no folder 'my_clases'. A Hub id has the form OWNER/NAME.$"):
        SupportSet.from_pretrained("my_clases", cache_dir=tmp_path)
    assert asked == []
    message = r"^There is no folder 'me/clases', and the Hub cannot be reached .ConnectionError."
    with pytest.raises(FileNotFoundError, match=message):
        SupportSet.from_pretrained("me/clases", cache_dir=tmp_path)
    assert asked == ["me/clases"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "support_set.json").write_text("{"), "is damaged .JSONDecodeError"),
        (lambda folder: (folder / "support_set.json").write_text('{"format": 1}'), "is damaged .KeyError"),
        (
            lambda folder: (folder / "support_set.json").write_text('{"format": 99}'),
            "format 99, but this version reads 1",
        ),
        (lambda folder: (folder / "support_set.safetensors").write_bytes(b"x"), "come from different saves"),
        (lambda folder: (folder / "support_set.json").unlink(), "holds no support set"),
        (
            lambda folder: (folder / "support_set.safetensors").unlink(),
            r"is damaged \(there is no support_set.safetensors\): restore both files, or enroll the clips again\.$",
        ),
    ],
)
def test_a_damaged_set_is_refused_with_the_reason(support_set, tmp_path, damage, reason):
    support_set.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=reason):
        SupportSet.from_pretrained(tmp_path)


def test_a_save_that_is_killed_at_any_step_leaves_the_old_or_the_new_set(parts, support_set, tmp_path, monkeypatch):
    fewer = copy.deepcopy(support_set)
    fewer.remove_class("running")
    rename = os.replace
    found = []
    for allowed in range(4):
        folder = tmp_path / str(allowed)
        support_set.save_pretrained(folder)
        left = iter([True] * allowed)

        def killed(source, target, left=left):
            if not next(left, False):
                raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(os, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            fewer.save_pretrained(folder)
        monkeypatch.setattr(os, "replace", rename)
        found.append(len(SupportSet.from_pretrained(folder)))
        support_set.save_pretrained(folder)
        assert len(SupportSet.from_pretrained(folder)) == 3
        assert sorted(os.listdir(folder)) == FILES
    assert found == [3, 3, 2, 2]


def test_tensors_under_their_hidden_name_are_read_without_others_beside_them(support_set, tmp_path):
    support_set.save_pretrained(tmp_path)
    (tmp_path / "support_set.safetensors").rename(tmp_path / ".support_set.safetensors.next")
    assert SupportSet.from_pretrained(tmp_path).num_clips == support_set.num_clips


def test_tensors_left_by_a_killed_save_survive_another_killed_save(support_set, tmp_path):
    support_set.save_pretrained(tmp_path)
    (tmp_path / "support_set.safetensors").rename(tmp_path / ".support_set.safetensors.next")
    (tmp_path / "support_set.safetensors").write_bytes(b"of the save before")
    damaged = copy.deepcopy(support_set)
    damaged.remove_class("running")
    damaged.fingerprint = {"model": object()}  # JSON cannot hold it: the save fails half way
    with pytest.raises(TypeError):
        damaged.save_pretrained(tmp_path)
    assert len(SupportSet.from_pretrained(tmp_path)) == 3


@pytest.mark.parametrize("description", [None, "", "{}", "[]", '{"sha256": 3}'])
def test_tensors_that_no_description_names_are_gone_after_the_next_save(support_set, tmp_path, description):
    (tmp_path / ".support_set.safetensors.next").write_bytes(b"of a save that was killed")
    if description is not None:
        (tmp_path / "support_set.json").write_text(description)
    support_set.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == FILES
    assert SupportSet.from_pretrained(tmp_path).num_clips == support_set.num_clips


def test_a_save_ends_when_its_last_rename_is_on_the_disk(support_set, tmp_path, monkeypatch):
    support_set.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"of a model, which is on the disk already")
    events, rename, flush = [], os.replace, os.fsync

    def renamed(source, target):
        events.append(Path(target).name)
        rename(source, target)

    def flushed(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        flush(descriptor)

    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "fsync", flushed)
    support_set.save_pretrained(tmp_path)
    assert events == [
        *("file", ".support_set.safetensors.next", "folder"),
        *("file", "support_set.json", "folder"),
        *("support_set.safetensors", "folder"),
    ]


def test_a_set_that_is_replaced_while_it_is_read_is_read_again(support_set, tmp_path, monkeypatch):
    support_set.save_pretrained(tmp_path)
    fewer, read_file = copy.deepcopy(support_set), support_set_files_clipfsar.read_file
    fewer.remove_class("running")

    def read_and_replaced(*given):
        description = read_file(*given)
        monkeypatch.setattr(support_set_files_clipfsar, "read_file", read_file)
        fewer.save_pretrained(tmp_path)
        return description

    monkeypatch.setattr(support_set_files_clipfsar, "read_file", read_and_replaced)
    assert SupportSet.from_pretrained(tmp_path).class_names == ["boxing", "diving"]


def test_a_writer_waits_for_another_one_and_then_leaves_the_folder_free(support_set, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    writer = threading.Thread(target=support_set.save_pretrained, args=(tmp_path,))
    writer.start()
    writer.join(0.2)
    waits, written = writer.is_alive(), os.listdir(tmp_path)
    os.close(other)
    writer.join()
    assert (waits, written, sorted(os.listdir(tmp_path))) == (True, [], FILES)
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if the writer still holds it
    os.close(other)


def refused_lock(*_):
    raise OSError("this file system has no locks")


@pytest.mark.parametrize("fcntl", [None, SimpleNamespace(flock=refused_lock, LOCK_EX=2)], ids=["Windows", "no locks"])
def test_a_set_is_saved_where_folders_cannot_be_locked(support_set, tmp_path, monkeypatch, fcntl):
    monkeypatch.setattr(support_set_files_clipfsar, "fcntl", fcntl)
    support_set.save_pretrained(tmp_path / "new" / "folder")
    assert SupportSet.from_pretrained(tmp_path / "new" / "folder").num_clips == support_set.num_clips


def test_a_set_in_the_cache_is_read_without_a_question_to_the_hub(support_set, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: pytest.fail("the Hub was asked"))
    commit = "0123456789" * 4
    support_set.save_pretrained(tmp_path / "models--me--classes" / "snapshots" / commit / "inner")
    options = {"revision": commit, "cache_dir": tmp_path, "subfolder": "inner"}
    assert SupportSet.from_pretrained("me/classes", **options).num_clips == support_set.num_clips
    with pytest.raises(OSError, match="in the cached files"):  # transformers' message
        SupportSet.from_pretrained("me/others", cache_dir=tmp_path, local_files_only=True)
    for name in ("my_classes", "me/my classes", "me/classes.json"):  # the last one can only be a file
        for given in ({}, {"local_files_only": True}):
            message = f"^There is no folder '{name}'. A Hub id has the form OWNER/NAME.$"
            with pytest.raises(FileNotFoundError, match=message):
                SupportSet.from_pretrained(name, cache_dir=tmp_path, **given)


def test_the_hub_is_asked_for_the_revision_with_the_token(tmp_path, monkeypatch):
    asked = []

    class Api:
        def __init__(self, token):
            self.token = token

        def repo_info(self, name, repo_type, revision, timeout):
            asked.append((name, repo_type, revision, self.token))
            raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(FileNotFoundError, match="the Hub cannot be reached"):
        SupportSet.from_pretrained("me/classes", cache_dir=tmp_path, revision="v2", token="t")
    assert asked == [("me/classes", "model", "v2", "t")]


def test_writers_of_one_folder_at_once_leave_a_whole_set(support_set, tmp_path):
    fewer = copy.deepcopy(support_set)
    fewer.remove_class("running")
    in_threads([lambda one=one: one.save_pretrained(tmp_path) for one in (support_set, fewer) * 4])
    assert len(SupportSet.from_pretrained(tmp_path)) in (2, 3)
    assert sorted(os.listdir(tmp_path)) == FILES


def test_pushed_to_the_hub_and_pulled_it_is_the_same(parts, support_set, query_embeds, tmp_path, monkeypatch):
    requests = []

    def upload_folder(self, *, repo_id, folder_path, **options):
        requests.append((repo_id, options))
        for path in Path(folder_path).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        return "a commit"

    def create_repo(self, repo_id, **options):
        requests.append((repo_id, options))
        return SimpleNamespace(repo_id="me/classes")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_branch", lambda self, repo_id, **options: requests.append((repo_id, options))
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    assert support_set.push_to_hub("classes", revision="v2") == "a commit"
    assert requests == [
        ("classes", {"private": True, "exist_ok": True}),
        ("me/classes", {"branch": "v2", "exist_ok": True}),
        ("me/classes", {"revision": "v2", "commit_message": "Upload support set"}),
    ]

    monkeypatch.setattr(
        support_set_clipfsar,
        "cached_file",
        lambda name, file, **options: requests.append((name, options)) or tmp_path / file,
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **options: None)
    pulled = SupportSet.from_pretrained("me/classes", revision="v2")
    assert requests[-1] == ("me/classes", {"revision": "v2"})
    assert pulled.classes["boxing"].thumbnails == [b"", b"", b""]  # pictures of people stay here unless asked for
    assert torch.equal(pulled.classify(parts[0], query_embeds), support_set.classify(parts[0], query_embeds))


# Refusing


def test_another_model_is_refused_and_both_are_named(support_set, query_embeds):
    other, _ = tiny_model_and_processor()
    support_set.check(other)  # the same weights
    with torch.no_grad():
        other.temporal_transformer.layers[0].mlp.fc1.bias[0] += 1
    other.name_or_path = "someone/other-model"
    with pytest.raises(
        ValueError, match=r"enrolled with 'a model made in memory' \(weights \w{8}, float32\), but this "
    ):
        support_set.classify(other, query_embeds)
    with pytest.raises(ValueError, match=r"this model is 'someone/other-model' \(weights \w{8}, float32\)"):
        support_set.check(other)


def test_weights_changed_after_enrolling_are_noticed(query_embeds):
    model, processor = tiny_model_and_processor()
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    support_set.classify(model, query_embeds)
    with torch.no_grad():
        model.clip.visual_projection.weight.mul_(1.5)
    with pytest.raises(ValueError, match="their features cannot be compared"):
        support_set.classify(model, query_embeds)


def test_another_arithmetic_is_refused(support_set, query_embeds):
    other, _ = tiny_model_and_processor()
    with pytest.raises(ValueError, match=r"float32\), but this model is .* bfloat16\)"):
        support_set.classify(other.to(torch.bfloat16), query_embeds)


@pytest.mark.parametrize(
    ("setting", "value", "difference"),
    [
        ("num_frames", 6, r"num_frames 4 \(now 6\)"),
        ("preprocessing", "official", r"preprocessing clip \(now official\)"),
        ("prompt_template", "{} it is", r"prompt_template a photo of {} \(now {} it is\)"),
    ],
)
def test_other_preprocessing_is_refused_and_the_difference_named(parts, support_set, setting, value, difference):
    _, processor = tiny_model_and_processor()
    setattr(processor, setting, value)
    with pytest.raises(ValueError, match=difference):
        support_set.check(parts[0], processor)
    with pytest.raises(ValueError, match=difference):
        support_set.add(parts[0], processor, {"new": [random_clip(7)]})


def test_what_cannot_be_enrolled_is_refused_before_a_clip_is_encoded(parts, monkeypatch):
    model, processor = parts
    other = tiny_model_and_processor()[1]
    other.prompt_template = "{} it is"
    longer = CLIPFSARProcessor(processor.image_processor, processor.tokenizer, num_frames=6)
    same_texts = tiny_model_and_processor()[1]
    same_texts.class_texts = {"leap": "a jump", "jump": "a jump"}
    support_set = SupportSet.from_videos(model, processor, {"boxing": CLIPS["boxing"][:1]})
    calls = count_encoded_videos(model, monkeypatch)
    for act, reason in {
        lambda: support_set.add(model, other, {"new": [random_clip(7)]}): "other preprocessing: prompt_template",
        lambda: support_set.add_background(model, other, [random_clip(7)]): "other preprocessing: prompt_template",
        lambda: support_set.add(
            model, processor, {"boxing_": [random_clip(7)]}
        ): "'boxing' and 'boxing_' mean the same",
        lambda: SupportSet.from_videos(model, longer, CLIPS): "samples 6 frames per video, but the model .* for 4",
        lambda: SupportSet().add_background(model, longer, [random_clip(7)]): "samples 6 frames per video",
        lambda: SupportSet.from_videos(
            model, same_texts, {"leap": [random_clip(0)], "jump": [random_clip(1)]}
        ): "'leap' and 'jump' become the same text",
    }.items():
        with pytest.raises(ValueError, match=reason):
            act()
    assert calls == []
    assert (support_set.num_clips, support_set.background) == ({"boxing": 1}, [])


def while_encoding(model, monkeypatch, act):
    """Another thread changes the set while the first clip is encoded."""
    encode = model.get_video_features

    def encoded(pixel_values):
        monkeypatch.setattr(model, "get_video_features", encode)
        act()
        return encode(pixel_values)

    monkeypatch.setattr(model, "get_video_features", encoded)


@pytest.mark.parametrize(
    "add",
    [
        lambda one, parts: one.add(*parts, {"new": [random_clip(7)]}),
        lambda one, parts: one.add_background(*parts, [random_clip(7)]),
    ],
)
def test_a_first_class_of_other_preprocessing_that_came_meanwhile_wins(parts, monkeypatch, add):
    support_set, other = SupportSet(), tiny_model_and_processor()[1]
    other.prompt_template = "{} it is"
    while_encoding(parts[0], monkeypatch, lambda: support_set.add(parts[0], other, {"boxing": CLIPS["boxing"]}))
    with pytest.raises(ValueError, match=r"other preprocessing: prompt_template {} it is \(now a photo of {}\)"):
        add(support_set, parts)
    assert (support_set.num_clips, support_set.background) == ({"boxing": 3}, [])
    support_set.check(parts[0], other)


@pytest.mark.parametrize(
    ("name", "meanwhile", "reason"),
    [
        ("brush_hair", "brush hair", "'brush hair' and 'brush_hair' mean the same"),
        ("leap", "jump", "'jump' and 'leap' become the same text"),
    ],
)
def test_a_class_that_came_meanwhile_under_another_name_is_not_enrolled_twice(monkeypatch, name, meanwhile, reason):
    model, processor = tiny_model_and_processor()
    processor.class_texts = {"leap": "a jump", "jump": "a jump"}
    support_set = SupportSet()
    while_encoding(model, monkeypatch, lambda: support_set.add(model, processor, {meanwhile: [random_clip(0)]}))
    with pytest.raises(ValueError, match=reason):
        support_set.add(model, processor, {name: [random_clip(1)]})
    assert support_set.num_clips == {meanwhile: 1}


def test_settings_that_change_no_feature_are_accepted(parts, support_set):
    _, processor = tiny_model_and_processor()
    processor.decoder, processor.num_threads, processor.query_augmentation = "av", 4, "kinetics"
    support_set.check(parts[0], processor)


@pytest.mark.parametrize(
    ("videos", "reason"),
    [
        ({}, "at least one class"),
        ([random_clip(0)], "at least one class"),
        ({"boxing": []}, "Class 'boxing' has no clips"),
        ({" ": [random_clip(0)]}, "not blank"),
        ({3: [random_clip(0)]}, "Class name 3 is not usable"),
        (
            {"brush_hair": [random_clip(0)], "brush hair": [random_clip(1)]},
            "'brush_hair' and 'brush hair' mean the same",
        ),
    ],
)
def test_classes_that_cannot_be_enrolled_are_refused(parts, videos, reason):
    with pytest.raises(ValueError, match=reason):
        SupportSet.from_videos(*parts, videos)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_a_batch_size_that_is_no_number_of_clips_is_refused(parts, support_set, batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be a whole number of at least 1"):
        support_set.add(*parts, {"new": [random_clip(7)]}, batch_size=batch_size)
    assert "new" not in support_set


def test_unreadable_clips_are_all_named_and_cost_nothing(parts, support_set, tmp_path):
    (tmp_path / "empty.mp4").touch()
    before = support_set.num_clips
    clips = {"boxing": [random_clip(5), tmp_path / "empty.mp4"], "diving": [tmp_path / "missing.mp4"]}
    with pytest.raises(VideoReadError, match=r"2 of 3 clips cannot be read:\n.*empty.mp4.*\n.*missing.mp4"):
        support_set.add(*parts, clips)
    assert support_set.num_clips == before
    with pytest.warns(UserWarning, match=r"Left out of the support set: .*empty.mp4") as caught:
        support_set.add(*parts, {"boxing": clips["boxing"]}, skip_unreadable=True)
    assert [warning.filename for warning in caught] == [__file__]
    assert support_set.num_clips == before | {"boxing": 4}
    unreadable = pytest.warns(UserWarning, match="missing.mp4")
    with unreadable, pytest.raises(ValueError, match="'diving': none of its 1 clips can be read"):
        support_set.add(*parts, {"diving": clips["diving"]}, skip_unreadable=True)


def test_a_single_unreadable_clip_is_named_in_a_plain_sentence(parts, support_set, tmp_path):
    missing = tmp_path / "missing.mp4"
    for call in (
        lambda: support_set.add(*parts, {"boxing": [random_clip(5), missing]}),
        lambda: support_set.add_background(*parts, [random_clip(5), missing]),
    ):
        with pytest.raises(VideoReadError) as caught:
            call()
        assert "missing.mp4" in str(caught.value)
        assert "clips cannot be read" not in str(caught.value)
    with pytest.warns(UserWarning, match=r"Left out of the support set: .*missing.mp4"):
        support_set.add_background(*parts, [missing, random_clip(5)], skip_unreadable=True)
    assert (support_set.num_clips, support_set.background) == ({"boxing": 3, "diving": 1, "running": 1}, ["clip 1"])


@pytest.mark.parametrize(
    "ask",
    [
        lambda one, model, embeds: one.classify(model, embeds),
        lambda one, model, embeds: one.score_unknown(model, embeds),
        lambda one, model, embeds: one.explain(model, embeds[0]),
        lambda one, model, embeds: one.review(model),
        lambda one, model, embeds: one.tune(model),
        lambda one, model, embeds: one.suggest(model, embeds, 1),
        lambda one, model, embeds: one.snapshot(model).classify(model, embeds),
        lambda one, model, embeds: one.snapshot(model).score_unknown(model, embeds, "zero_shot"),
    ],
)
def test_one_class_is_too_few_to_choose_from(parts, query_embeds, ask):
    support_set = SupportSet.from_videos(*parts, {"boxing": CLIPS["boxing"]})
    with pytest.raises(ValueError, match=r"'boxing'. At least two classes are needed"):
        ask(support_set, parts[0], query_embeds)


def test_a_set_whose_last_class_has_gone_is_empty_and_takes_clips_of_its_model_alone(parts, query_embeds, tmp_path):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, {"boxing": CLIPS["boxing"]})
    support_set.remove_class("boxing")
    for ask in (
        lambda: support_set.classify(model, query_embeds),
        lambda: support_set.compare(model, query_embeds),
        lambda: support_set.get_prototypes(model),
    ):
        with pytest.raises(ValueError, match=r"Enrolled: nothing\. At least two classes are needed"):
            ask()
    with pytest.raises(ValueError, match="No class is enrolled, so there is nothing to save"):
        support_set.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    other = tiny_model_and_processor()[1]
    other.prompt_template = "{} it is"
    with pytest.raises(ValueError, match="other preprocessing"):
        support_set.add(model, other, CLIPS)


def test_a_set_that_begins_with_background_is_of_the_model_that_encoded_it(parts, query_embeds, tmp_path):
    model, processor = parts
    support_set = SupportSet()
    support_set.add_background(model, processor, QUERIES[:1])
    with pytest.raises(ValueError, match=r"Enrolled: nothing\. At least two classes are needed"):
        support_set.get_prototypes(model)
    other = tiny_model_and_processor()[1]
    other.prompt_template = "{} it is"
    with pytest.raises(ValueError, match="other preprocessing"):
        support_set.add(model, other, CLIPS)
    support_set.add(model, processor, CLIPS)
    support_set.save_pretrained(tmp_path)
    (picture,) = SupportSet.from_pretrained(tmp_path).unknowns.background.thumbnails
    assert picture.startswith(b"\xff\xd8")  # JPEG
    assert support_set.score_unknown(model, query_embeds)[0] >= 0.5
    support_set.add_background(model, processor, QUERIES[1:], thumbnails=False)
    assert [len(one) > 0 for one in support_set.unknowns.background.thumbnails] == [True, False]


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (
            lambda one, model, embeds: one.remove_class("swimming"),
            "no class 'swimming'; enrolled are 'boxing', 'diving'",
        ),
        (lambda one, model, embeds: one.remove_clip("boxing", "x.mp4"), "no clip 'x.mp4'; it has 'clip 1', 'clip 2'"),
        (lambda one, model, embeds: one.remove_clip("boxing", 3), "no clip 3"),
        (lambda one, model, embeds: one.remove_clip("boxing", True), "no clip True"),
        (lambda one, model, embeds: one.remove_clip("boxing", 1.0), "no clip 1.0"),
        (lambda one, model, embeds: one.remove_clip("diving", 0), "the only clip of class 'diving'"),
        (lambda one, model, embeds: one.classify(model, embeds, "no_shot"), "'no_shot' is not one of few_shot, zero"),
        (
            lambda one, model, embeds: SupportSet().classify(model, embeds, "no_shot"),
            "'no_shot' is not one of few_shot",
        ),
        (lambda one, model, embeds: SupportSet().compare(model, embeds), "No class is enrolled yet: add some with"),
        (lambda one, model, embeds: SupportSet().classify(model, embeds), "Enrolled: nothing. At least two"),
        (lambda one, model, embeds: SupportSet().save_pretrained("never"), "nothing to save"),
    ],
)
def test_what_is_not_there_or_makes_no_sense_is_said(parts, support_set, query_embeds, act, reason):
    with pytest.raises(ValueError, match=reason):
        act(support_set, parts[0], query_embeds)
    assert json.dumps(support_set.num_clips) == '{"boxing": 3, "diving": 1, "running": 1}'


def test_thumbnails_show_what_the_model_saw(parts, support_set):
    _, processor = parts
    frames = processor.to_frames(processor.process_videos([CLIPS["diving"][0]])[0])
    picture = Image.open(io.BytesIO(support_set.classes["diving"].thumbnails[0]))
    assert picture.size == (4 * 16, 16)
    strip = np.concatenate(list(frames.numpy()), axis=1).astype(float)
    assert np.abs(np.asarray(picture) - strip).mean() < 16  # JPEG of noise


def test_a_picture_comes_back_as_its_frames_in_their_order():
    frames = torch.tensor([[250, 10, 20], [15, 240, 30], [20, 30, 235]], dtype=torch.uint8)[:, None, None]
    again = _frames_of_strip(film_strip(frames.expand(3, 16, 24, 3)), 3)
    assert (again.shape, again.dtype) == ((3, 16, 24, 3), torch.uint8)
    assert (again.float().mean((1, 2)) - frames[:, 0, 0]).abs().max() < 12  # JPEG
    assert _frames_of_strip(b"", 3) is None


def test_pictures_have_jpegs_quality_of_85_and_at_least_a_pixel_for_each_frame():
    with Image.open(io.BytesIO(film_strip(torch.zeros(3, 400, 1, 3, dtype=torch.uint8)))) as strip:
        assert (strip.size, strip.format) == ((3, 96), "JPEG")
        assert strip.quantization[0][0] == 5


def test_messages_show_ten_names():
    names = [f"class {number}" for number in range(11)]
    assert listed(names[:10]) == ", ".join(f"'class {number}'" for number in range(10))
    assert listed(names) == ", ".join(f"'class {number}'" for number in range(10)) + " and 1 more"


# --- renaming, and changes while others ask ---------------------------------------------------------------------------


def test_a_renamed_class_keeps_its_place_and_clips_and_gets_the_new_names_text(parts, support_set, query_embeds):
    model, processor = parts
    expected = SupportSet.from_videos(model, processor, {"boxing": CLIPS["boxing"], "dive": CLIPS["diving"]})
    support_set.remove_class("running")
    support_set.rename_class(model, processor, "diving", "dive")
    assert support_set.class_names == ["boxing", "dive"]
    for mode in MODES:
        logits = support_set.classify(model, query_embeds, mode)
        torch.testing.assert_close(logits, expected.classify(model, query_embeds, mode), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("nobody", "b", "no class 'nobody'"),
        ("diving", "boxing", "a class 'boxing' already"),
        ("diving", " ", "not usable"),
        ("diving", "boxing_", "mean the same"),
    ],
)
def test_a_name_that_cannot_be_given_is_refused_and_nothing_changes(parts, support_set, old, new, reason):
    before = support_set.classes
    with pytest.raises(ValueError, match=reason):
        support_set.rename_class(*parts, old, new)
    assert support_set.classes is before


def test_a_name_is_encoded_only_by_the_model_and_preprocessing_of_the_set(parts, support_set):
    model, processor = parts
    other_model, other_processor = tiny_model_and_processor()
    with torch.no_grad():
        other_model.clip.visual_projection.weight.mul_(1.5)
    other_processor.prompt_template = "{} it is"
    before = support_set.classes
    with pytest.raises(ValueError, match="their features cannot be compared"):
        support_set.rename_class(other_model, processor, "diving", "dive")
    with pytest.raises(ValueError, match="other preprocessing"):
        support_set.rename_class(model, other_processor, "diving", "dive")
    assert support_set.classes is before


def test_a_name_of_the_same_text_as_another_is_refused():
    model, processor = tiny_model_and_processor()
    processor.class_texts = {"leap": "a jump", "jump": "a jump"}
    support_set = SupportSet.from_videos(model, processor, {"jump": [random_clip(0)], "run": [random_clip(1)]})
    with pytest.raises(ValueError, match="'jump' and 'leap' become the same text"):
        support_set.rename_class(model, processor, "run", "leap")
    assert support_set.class_names == ["jump", "run"]


def test_sets_and_models_made_in_inference_mode_answer_outside_of_it():
    clips = {"diving": [random_clip(0)], "boxing": [random_clip(1), random_clip(2)]}
    with torch.inference_mode():  # its tensors have no version counter
        model, processor = tiny_model_and_processor()
        support_set = SupportSet.from_videos(model, processor, clips)
        support_set.classes["boxing"].support_embeds = support_set.classes["boxing"].support_embeds + 0
        queries = support_set.classes["diving"].support_embeds.clone()
        expected = support_set.classify(model, queries)
    assert support_set.classes["boxing"].support_embeds.is_inference()
    assert torch.equal(support_set.classify(model, queries), expected)


def test_a_snapshot_stays_as_it_was_while_the_set_changes(parts, support_set, query_embeds):
    model, processor = parts
    snapshot = support_set.snapshot(model)
    names, logits = list(snapshot.class_names), snapshot.classify(model, query_embeds)
    unknown = snapshot.score_unknown(model, query_embeds)
    support_set.remove_clip("boxing", 0)
    support_set.rename_class(model, processor, "diving", "dive")
    support_set.remove_class("running")
    support_set.add(model, processor, {"boxing": [random_clip(9)]})
    assert snapshot.class_names == names
    assert torch.equal(snapshot.classify(model, query_embeds), logits)
    assert torch.equal(snapshot.score_unknown(model, query_embeds), unknown)


def test_a_snapshot_knows_what_it_was_made_of(parts, support_set):
    model, classes = parts[0], support_set.classes
    plain = Snapshot(model, classes)
    assert (plain.settings, plain.unknowns) == ({}, Unknowns())
    assert plain.is_of(model, classes)
    assert plain.is_of(model, classes, {}, plain.unknowns)
    assert not plain.is_of(model, classes, {"alignment": "mean"})
    assert not plain.is_of(model, classes, {}, Unknowns())  # a change replaces the object
    assert not plain.is_of(model, {name: classes[name] for name in ("boxing", "diving")})
    assert not plain.is_of(model, {name: classes[name] for name in ("boxing", "running", "diving")})
    tuned = Snapshot(model, classes, {"alignment": "mean"}, Unknowns(error_rate=0.5))
    assert tuned.is_of(model, classes, {"alignment": "mean"})
    assert tuned.is_of(model, classes, {"alignment": "mean"}, tuned.unknowns)
    assert not tuned.is_of(model, classes)
    assert not tuned.is_of(model, classes, {"alignment": "otam"}, tuned.unknowns)


def test_a_change_in_the_midst_of_an_answer_leaves_the_answer_as_it_was(parts, support_set, query_embeds, monkeypatch):
    model = parts[0]
    expected = support_set.classify(model, query_embeds, "ensemble")
    get_query_states = model.get_query_states

    def meanwhile(embeds):
        if "diving" in support_set:
            support_set.remove_class("diving")
        return get_query_states(embeds)

    monkeypatch.setattr(model, "get_query_states", meanwhile)
    assert torch.equal(support_set.classify(model, query_embeds, "ensemble"), expected)
    assert support_set.classify(model, query_embeds, "ensemble").shape == (2, 2)


def test_classes_written_into_by_hand_are_noticed(parts, support_set, query_embeds):
    model = parts[0]
    before = support_set.classify(model, query_embeds)
    support_set.classes["diving"].support_embeds.mul_(-1)
    changed = support_set.classify(model, query_embeds)
    assert not torch.equal(changed, before)
    support_set.classes["diving"] = support_set.classes["running"]
    assert not torch.equal(support_set.classify(model, query_embeds), changed)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copy_is_a_set_of_its_own(parts, support_set, query_embeds, copied):
    model = parts[0]
    support_set.add_background(*parts, QUERIES[:1])
    support_set.unknown_error_rate = 0.25
    support_set.settings = {"alignment": "mean"}
    expected = support_set.classify(model, query_embeds)
    other = copied(support_set)
    assert (other.fingerprint, other.background) == (support_set.fingerprint, ["clip 1"])
    assert (other.unknown_error_rate, other.settings) == (0.25, {"alignment": "mean"})
    other.remove_class("diving")
    assert torch.equal(support_set.classify(model, query_embeds), expected)
    torch.testing.assert_close(other.classify(model, query_embeds), expected[:, [0, 2]])


@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.data.mul_(3),
        lambda weight: weight.data.copy_(weight.data.flip(0)),
        lambda weight: setattr(weight, "data", weight.data * 3),
    ],
)
def test_weights_written_through_data_are_noticed_by_every_cache(write):
    model, processor = tiny_model_and_processor(inference_mode="ensemble")
    support_set = SupportSet.from_videos(model, processor, {"run": [random_clip(0)], "jump": [random_clip(1)]})
    classify = FewShotVideoClassificationPipeline(model, processor, support_set=support_set, device="cpu")
    query = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    support_set.classify(model, query)
    by_name = classify._embeds_of(("a", "b"))
    digest = model_digest(model)
    assert weights_state(model) == weights_state(model)
    with torch.no_grad():
        write(model.temporal_transformer.layers[0].mlp.fc1.weight)
    with pytest.raises(ValueError, match="their features cannot be compared"):  # not the answer of the old weights
        support_set.classify(model, query)
    assert model_digest(model) != digest
    with torch.no_grad():
        write(model.clip.text_projection.weight)
    assert not torch.equal(classify._embeds_of(("a", "b")), by_name)


def test_an_adapter_that_is_switched_off_or_exchanged_is_another_model():
    peft = pytest.importorskip("peft")
    model, processor = tiny_model_and_processor()
    digests = [model_digest(model)]
    for name in ("one", "two"):
        settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        peft.inject_adapter_in_model(settings, model, adapter_name=name)
    layers = [layer for layer in model.modules() if hasattr(layer, "scale_layer")]
    for name in ("one", "two"):
        for layer in layers:
            layer.set_adapter(name)
        digests.append(model_digest(model))
    support_set = SupportSet.from_videos(model, processor, {"a": random_clip(0), "b": random_clip(1)})
    for layer in layers:
        layer.enable_adapters(False)
    digests.append(model_digest(model))
    assert len(set(digests)) == 4
    with pytest.raises(ValueError, match="enrolled with"):
        support_set.check(model, processor)
    for layer in layers:
        layer.enable_adapters(True)
    support_set.check(model, processor)
    for layer in layers:
        layer.scale_layer(3.0)
    with pytest.raises(ValueError, match="enrolled with"):
        support_set.check(model, processor)


def test_the_state_of_weights_can_be_taken_of_tensors_of_all_kinds():
    module = torch.nn.Module()
    module.register_buffer("empty", torch.zeros(0))
    module.register_buffer("number", torch.tensor(float("nan")))
    module.register_buffer("flags", torch.tensor([True, False]))
    module.register_buffer("short", torch.ones(4, 2, dtype=torch.bfloat16).t())
    module.register_buffer("meta", torch.ones(3, device="meta"))
    module.register_buffer("quantized", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    module.weight = torch.nn.Parameter(torch.randn(8, 3, 2, 2).to(memory_format=torch.channels_last))
    before = weights_state(module)
    assert weights_state(module) == before
    module.short.data[1, 2] = 5.0  # its middle element
    assert weights_state(module) != before


def test_a_clip_that_is_given_twice_is_named_with_its_classes(parts, tmp_path):
    model, processor = parts
    clips = [random_clip(number) for number in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        support_set = SupportSet.from_videos(model, processor, {"run": clips[:2], "jump": [clips[2]]})
        support_set.remove_clip("run", "clip 2")
        support_set.add(model, processor, {"jump": [clips[1]]})  # it is enrolled once, after all
    support_set.save_pretrained(tmp_path)
    support_set = SupportSet.from_pretrained(tmp_path)
    message = "'clip 1' of class 'jump' has the same frames as 'clip 1' of class 'run': one of the labels is wrong"
    with pytest.warns(UserWarning, match=message):
        support_set.add(model, processor, {"jump": [clips[0]]})
    assert support_set.num_clips == {"run": 1, "jump": 3}
    message = "'clip 2' of class 'swim' has the same frames as 'clip 1' of class 'swim': .* counts twice. Remove one of"
    with pytest.warns(UserWarning, match=message):
        support_set.add(model, processor, {"swim": [clips[3], clips[3]]}, thumbnails=False)


def test_threads_that_add_classes_at_once_lose_none(parts):
    support_set = SupportSet.from_videos(*parts, {"first": [random_clip(0)]})

    def add(number):
        support_set.add(*parts, {f"class {'abcdefgh'[number]}": [random_clip(number)], "first": [random_clip(20)]})

    in_threads([lambda number=number: add(number) for number in range(8)])
    assert sorted(support_set.class_names) == sorted(["first", *(f"class {letter}" for letter in "abcdefgh")])
    assert support_set.num_clips["first"] == 9


def in_threads(functions):
    """Runs functions at once, in threads that Python changes between as often as it can; raises what one raised."""
    errors = []

    def run(function):
        try:
            function()
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=(function,)) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


# --- inputs that would be taken for something else --------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("error_rate", [None, 0.4])
def test_no_answer_comes_from_nan(parts, value, error_rate):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, {"a": similar_clips(0, 2), "b": similar_clips(1, 2)})
    support_set.unknown_error_rate = error_rate
    queries = torch.randn(2, *support_set.classes["a"].support_embeds.shape[1:])
    queries[1, 0, 0] = value
    for compute in (support_set.classify, support_set.compare, support_set.score_unknown):
        with pytest.raises(ValueError, match="of 'query video 1' hold NaN or infinite numbers"):
            compute(model, queries)
    with pytest.raises(ValueError, match=r"The frame features of .* hold NaN or infinite numbers"):
        support_set.explain(model, queries[1])
    logits = torch.tensor([[0.0, 1.0], [value, 1.0]])
    with pytest.raises(ValueError, match="The logits of 'query video 1' hold NaN"):
        processor.post_process_video_classification(logits, ["a", "b"])


def test_no_answer_comes_from_features_too_large_to_compare(parts, support_set):
    model = parts[0]
    queries = torch.randn(2, *support_set.classes["boxing"].support_embeds.shape[1:])
    queries[1] *= 1e30  # finite, and its square is not
    computed = {"logits": support_set.classify, "distances": support_set.compare, "scores": support_set.score_unknown}
    for what, compute in computed.items():
        with pytest.raises(ValueError, match=f"The {what} of 'query video 1' hold NaN or infinite numbers"):
            compute(model, queries)
    with pytest.raises(ValueError, match="The probabilities of 'query video 0' hold NaN or infinite numbers"):
        support_set.explain(model, queries[1])


def test_clips_that_a_model_turns_into_nan_are_named(tmp_path, monkeypatch):
    model, processor = tiny_model_and_processor()
    monkeypatch.setattr(
        model, "get_video_features", lambda pixel_values: torch.full((len(pixel_values), 4, 16), torch.nan)
    )
    clip = tmp_path / "clip"
    clip.mkdir()
    Image.fromarray(random_clip(1)[0]).save(clip / "0.png")
    message = "The frame features of 'a clip of boxing', 'clip' hold NaN or infinite numbers"
    with pytest.raises(ValueError, match=message):
        SupportSet.from_videos(model, processor, {"boxing": [random_clip(0)], "diving": [clip]})


@pytest.mark.parametrize("shape", [(4, 32), (1, 1, 4, 32), (1, 4, 7)])
def test_frame_features_of_another_shape_are_named(parts, support_set, shape):
    model, size = parts[0], support_set.classes["boxing"].class_embeds.shape[-1]
    embeds = torch.zeros(*shape[:-1], size if shape[-1] == 32 else 7)
    message = rf"query_embeds have shape {re.escape(str(tuple(embeds.shape)))}, but a tensor \(Q, T, {size}\) .* needed"
    for compute in (support_set.classify, support_set.compare, support_set.score_unknown):
        with pytest.raises(ValueError, match=message):
            compute(model, embeds)
        with pytest.raises(ValueError, match="query_embeds are a ndarray, but a tensor"):
            compute(model, embeds.numpy())
    with pytest.raises(ValueError, match=rf"query_embeds have shape .*, but a tensor \(T, {size}\)"):
        support_set.explain(model, torch.zeros(1, 4, size))


@pytest.mark.parametrize("name", ["thumbnails", "skip_unreadable", "show_progress"])
def test_options_of_enrolling_are_true_or_false(parts, name):
    support_set, options = SupportSet(), {name: "false"}
    with pytest.raises(ValueError, match=f"{name}='false' must be True or False"):
        SupportSet.from_videos(*parts, CLIPS, **options)
    with pytest.raises(ValueError, match=f"{name}='false' must be True or False"):
        support_set.add_background(*parts, QUERIES, **options)


def test_options_of_saving_and_explaining_are_true_or_false(parts, support_set, query_embeds, tmp_path, monkeypatch):
    monkeypatch.setattr(support_set_clipfsar, "HfApi", lambda **_: pytest.fail("the Hub was asked"))
    for name, call in {
        "thumbnails": lambda **given: support_set.save_pretrained(tmp_path, **given),
        "private": lambda **given: support_set.push_to_hub("me/classes", **given),
        "thumbnails ": lambda **given: support_set.push_to_hub("me/classes", **given),
        "detect_unknown": lambda **given: support_set.explain(parts[0], query_embeds[0], **given),
        "training": lambda **given: parts[1].process_videos(QUERIES, **given),
        "training ": lambda **given: parts[1].read_videos(QUERIES, **given),
    }.items():
        with pytest.raises(ValueError, match=f"{name.strip()}='no' must be True or False"):
            call(**{name.strip(): "no"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**64 - 1, np.int64(3)])
def test_any_whole_number_of_64_bits_is_a_seed(parts, seed):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, {"a": similar_clips(0, 3), "b": similar_clips(1, 3)})
    assert support_set.review(model, seed=seed) == support_set.review(model, seed=seed)
    assert support_set.tune(model, seed=seed) == support_set.tune(model, seed=seed)
    pool = support_set.classes["a"].support_embeds
    assert len(support_set.suggest(model, pool, 1, "random", seed=seed)) == 1


@pytest.mark.parametrize("seed", ["a", 1.5, True, None, 2**64])
def test_a_seed_is_a_whole_number(parts, seed):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, {"a": similar_clips(0, 2), "b": similar_clips(1, 2)})
    pool = support_set.classes["a"].support_embeds
    calls = (support_set.review, support_set.tune, lambda model, **given: support_set.suggest(model, pool, 1, **given))
    for call in calls:
        with pytest.raises(ValueError, match=rf"seed={seed!r} must be a whole number from -2\*\*63 to 2\*\*64 - 1"):
            call(model, seed=seed)


def test_sources_and_pools_of_another_type_are_named(parts, support_set):
    for call in (support_set.review, support_set.tune):
        with pytest.raises(ValueError, match=r"sources is a list, but must be \{clip name: source\}"):
            call(parts[0], sources=["a", "b"])
    with pytest.raises(ValueError, match=r"The pool is a ndarray, but must be a tensor \(P, T, D\)"):
        support_set.suggest(parts[0], np.zeros((3, 4, 32)), 1)


def test_a_background_clip_that_is_enrolled_or_repeated_is_named(parts, support_set):
    message = "of class 'the background' has the same frames as .* of class 'diving'"
    with pytest.warns(UserWarning, match=message) as caught:
        support_set.add_background(*parts, CLIPS["diving"])
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="'clip 2' of class 'the background' has the same frames as 'clip 1' of class"):
        support_set.add_background(*parts, [QUERIES[0], QUERIES[0]])
    with pytest.warns(UserWarning, match="of class 'new' has the same frames as 'clip 2' of class 'the background'"):
        support_set.add(*parts, {"new": QUERIES[:1]})


def test_an_unknown_option_of_loading_is_named(support_set, tmp_path):
    support_set.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"SupportSet.from_pretrained does not know 'revison': did you mean 'revision'"):
        SupportSet.from_pretrained(tmp_path, revison="main")
    with pytest.raises(TypeError, match="does not know 'foo'"):
        SupportSet.from_pretrained(tmp_path, foo=3)
