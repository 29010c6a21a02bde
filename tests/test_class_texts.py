"""Texts of classes: prompts of one's own, averaged, in processor, support sets, episodes and files."""

import json
import re

import pytest
import torch
from tiny_data import random_clip, tiny_model_and_processor

from class_texts_clipfsar import check_class_prompts, class_prompts
from clipfsar.data.tables import read_class_texts
from clipfsar.evaluation.encoding import VideoEncoder
from episodes_clipfsar import EpisodeCollator
from support_set_clipfsar import SupportSet, encode_class_names

TEXTS = {"brush hair": ["someone brushes {}", "a comb"], "diving": "a person dives", "*": "a clip of {}"}


@pytest.fixture
def parts():
    model, processor = tiny_model_and_processor()
    processor.class_texts = TEXTS
    return model, processor


def feature_of(model, processor, text: str) -> torch.Tensor:
    tokens = processor.tokenizer([text], return_tensors="pt")
    with torch.no_grad():
        return model.get_class_features(tokens["input_ids"], tokens["attention_mask"])[0]


def test_own_texts_come_before_those_for_all_and_the_template(parts):
    assert class_prompts(parts[1], "brush_hair") == ["someone brushes brush hair", "a comb"]
    assert class_prompts(parts[1], "diving") == ["a person dives"]
    assert class_prompts(parts[1], "running") == ["a clip of running"]
    assert class_prompts(tiny_model_and_processor()[1], "running") == ["a photo of running"]


def test_a_text_for_a_misspelt_class_gets_a_warning(parts, recwarn):
    parts[1].class_texts = TEXTS | {"playing guitar": "hands on strings"}
    with pytest.warns(UserWarning, match=r"a text for 'playing guitar', but the class is called 'playing guitars'"):
        check_class_prompts(parts[1], ["playing guitars", "diving"])
    recwarn.clear()
    check_class_prompts(parts[1], ["brush_hair", "running"])  # the other texts are for other splits
    assert not recwarn


@pytest.mark.parametrize("class_name", ["Brush Hair", "BRUSH_HAIR", "brush-hair", "BrushHair"])
def test_texts_are_found_whatever_the_case_and_spaces_of_the_name(class_name, parts):
    words = class_name.replace("_", " ")
    assert class_prompts(parts[1], class_name) == [f"someone brushes {words}", "a comb"]


def test_two_entries_for_one_class_are_refused(parts):
    with pytest.raises(ValueError, match="class_texts has entries for 'red star' and 'Red_Star', which are one class"):
        parts[1].class_texts = {"red star": "a text", "Red_Star": "another"}


def test_texts_of_which_none_is_for_a_class_get_a_warning(parts, recwarn):
    message = "class_texts has texts for 'brush hair' and 1 more, but none for a class here, such as 'a': they have no"
    with pytest.warns(UserWarning, match=message):
        check_class_prompts(parts[1], ["a", "b"])
    parts[1].class_texts = {"Climbing": "a wall"}
    with pytest.warns(
        UserWarning, match="class_texts has texts for 'Climbing', but none for a class here, such as 'a'"
    ):
        check_class_prompts(parts[1], ["a"])
    recwarn.clear()
    parts[1].class_texts = {"*": "a clip of {}"}
    check_class_prompts(parts[1], ["a"])
    assert not recwarn


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("nataci\udcf3n", None, r"The class name b'nataci\xf3n' is not UTF-8: rename its folder"),
        ("a\ud800", None, r"The class name 'a\ud800' is not UTF-8: rename its folder"),
        ("a", {"a": "\udcf3 b"}, r"The text of class 'a', b'\xf3 b' is not UTF-8: correct class_texts"),
    ],
)
def test_a_name_or_text_of_other_bytes_than_utf_8_is_named(parts, name, texts, message):
    parts[1].class_texts = texts
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        encode_class_names(*parts, [name, "diving"])


def test_several_texts_are_averaged_in_direction_and_length(parts):
    one, other = (feature_of(*parts, text) for text in ("someone brushes brush hair", "a comb"))
    direction = one / one.norm() + other / other.norm()
    expected = direction / direction.norm() * (one.norm() + other.norm()) / 2
    embeds = encode_class_names(*parts, ["brush_hair", "diving"])
    torch.testing.assert_close(embeds[0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(embeds[1], feature_of(*parts, "a person dives"), rtol=0, atol=1e-5)


def test_a_support_set_knows_the_texts_it_was_enrolled_with(parts, tmp_path):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, {"brush_hair": random_clip(0), "diving": random_clip(1)})
    torch.testing.assert_close(
        support_set.classes["brush_hair"].class_embeds, encode_class_names(model, processor, ["brush_hair"])[0]
    )
    support_set.save_pretrained(tmp_path)
    SupportSet.from_pretrained(tmp_path).check(model, processor)
    processor.class_texts = None
    with pytest.raises(ValueError, match=r"other preprocessing: class_texts .*a comb.* \(now None\)"):
        support_set.check(model, processor)


def test_the_texts_of_an_evaluation_are_encoded_anew_when_they_change(parts):
    model, processor = parts
    encoder = VideoEncoder(model, processor)
    first = encoder.encode_classes(["diving", "running"])
    processor.class_texts = {"diving": "a jump"}
    assert not torch.equal(first[0], encoder.encode_classes(["diving", "running"])[0])


def test_episodes_of_several_texts_have_no_tokens_and_take_encoded_texts(parts):
    model, processor = parts
    episode = {"class_names": ["brush_hair", "diving"], "class_base_labels": [0, 1], "seed": 0}
    episode |= {"support_videos": [random_clip(0), random_clip(1)], "query_videos": [random_clip(2)]}
    episode |= {"support_labels": [0, 1], "labels": [0], "support_base_labels": [0, 1], "query_base_labels": [0]}
    batch = EpisodeCollator(processor)([episode])
    assert not {"class_input_ids", "class_attention_mask"} & set(batch)
    embeds = encode_class_names(model, processor, episode["class_names"])
    with torch.no_grad():
        logits = model(**batch, base_class_embeds=embeds).logits
    assert logits.shape == (1, 1, 2)
    with pytest.raises(ValueError, match="Class 'brush_hair' has 2 texts, but tokens hold one for each class"):
        processor.tokenize_classes(episode["class_names"])


def test_different_classes_of_the_same_texts_are_refused(parts):
    parts[1].class_texts = {"diving": "a jump", "running": "a jump"}
    with pytest.raises(ValueError, match="'diving' and 'running' become the same text"):
        SupportSet.from_videos(*parts, {"diving": random_clip(0), "running": random_clip(1)})


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["a jump"], "must be {class name: text or list of texts}"),
        ({"diving": []}, "give a text or a list of texts"),
        ({"diving": ["a jump", " "]}, "strings that are not blank"),
        ({"*": "a clip"}, "write {} where the name belongs, in each text"),
    ],
)
def test_unusable_texts_are_refused(parts, texts, problem):
    with pytest.raises(ValueError, match=problem):
        parts[1].class_texts = texts


def test_texts_are_read_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    assert read_class_texts(tmp_path / "texts.json") == TEXTS
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLIPFSAR_MAX_JSON_BYTES", "10")  # the limit is that of files
    assert read_class_texts("~/texts.json") == TEXTS
    (tmp_path / "texts.json").write_text("{")
    with pytest.raises(ValueError, match=r"texts\.json is not JSON"):
        read_class_texts(tmp_path / "texts.json")
