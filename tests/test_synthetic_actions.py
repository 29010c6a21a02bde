"""Synthetic actions and the tiny CLIP: what the demonstration and its numbers rest on."""

import json

import av
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from demo.synthetic import TINY_CLIP
from demo.synthetic.actions import ACTIONS
from demo.synthetic.classes import (
    BASE_CLASSES,
    NOVEL_CLASSES,
    SPLITS,
    VALIDATION_CLASSES,
    join_class_name,
    parse_class_name,
)
from demo.synthetic.pretrain_tiny_clip import (
    balanced_batches,
    build_config,
    build_tokenizer,
    learn_merges,
    novel_combinations,
    place_positions,
    seen_combinations,
    train_clip,
)
from demo.synthetic.render import (
    draw_contact_sheet,
    draw_scene,
    paint_scene,
    render_clip,
    render_dataset,
    render_still,
    write_clip,
)
from demo.synthetic.shapes import SHAPES, signed_distance

ONE_VIDEO = {"test": 1}


def verbs(class_names):
    return {parse_class_name(name)[3].split()[0] for name in class_names}


def reversed_pairs(class_names):
    """Pairs of classes with the same motion, colour, shape and number, one of them backwards in time."""
    forwards = [name for name in class_names if not ACTIONS[parse_class_name(name)[3]].reversed]
    backwards = [name for name in class_names if ACTIONS[parse_class_name(name)[3]].reversed]
    pairs = []
    for a in forwards:
        for b in backwards:
            same_look = parse_class_name(a)[:3] == parse_class_name(b)[:3]
            if same_look and ACTIONS[parse_class_name(a)[3]].motion is ACTIONS[parse_class_name(b)[3]].motion:
                pairs.append((a, b))
    return pairs


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), stream


def test_a_clip_is_a_pure_function_of_seed_class_and_index():
    frames, fps = render_clip("red star growing", seed=3, index=5)
    np.random.default_rng(0).random()
    np.random.seed(1)  # noqa: NPY002 - global state must not matter
    again, fps_again = render_clip("red star growing", seed=3, index=5)
    assert fps == fps_again
    assert np.array_equal(frames, again)


@pytest.mark.parametrize(
    "other", [("red star growing", 3, 6), ("red star growing", 4, 5), ("red star shrinking", 3, 5)]
)
def test_another_index_seed_or_class_is_another_clip(other):
    frames, _ = render_clip("red star growing", 3, 5)
    others, _ = render_clip(*other)
    assert frames.shape != others.shape or np.abs(frames.astype(int) - others).mean() > 5


def test_clips_have_the_promised_sizes_and_lengths():
    for index in range(12):
        scene = draw_scene("red star rising", 0, index)
        assert 24 <= scene.num_frames <= 48
        assert 12 <= scene.fps <= 25
        assert scene.height != scene.width
        assert scene.height % 2 == scene.width % 2 == 0
    frames, _ = render_clip("red star rising", 0, 0)
    scene = draw_scene("red star rising", 0, 0)
    assert frames.shape == (scene.num_frames, scene.height, scene.width, 3)
    assert frames.dtype == np.uint8


def test_the_splits_share_neither_classes_nor_verbs():
    assert [len(names) for names in SPLITS.values()] == [72, 10, 12]
    names = list(SPLITS.values())
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert not set(first) & set(second)
            assert not verbs(first) & verbs(second)


def test_novel_combinations_of_colour_and_shape_are_unseen_in_base():
    combinations = [{parse_class_name(name)[1:3] for name in names} for names in (BASE_CLASSES, NOVEL_CLASSES)]
    assert not combinations[0] & combinations[1]


def test_base_and_novel_classes_contain_time_reversed_pairs_of_one_look():
    assert len(reversed_pairs(NOVEL_CLASSES)) == 5
    assert len(reversed_pairs(BASE_CLASSES)) == 3 * 10
    assert ("red star growing", "red star shrinking") in reversed_pairs(NOVEL_CLASSES)


def test_a_reversed_action_shows_the_same_states_in_the_opposite_order():
    progress = np.linspace(0, 1, 7)
    for name, action in ACTIONS.items():
        if not action.reversed:
            continue
        (twin,) = [a for a in ACTIONS.values() if a.motion is action.motion and not a.reversed]
        assert action.num_objects == twin.num_objects
        backward = action.motion(np.random.default_rng(0), 1 - progress)
        forward = twin.motion(np.random.default_rng(0), progress)
        for a, b in zip(backward, forward, strict=True):
            for field in ("x", "y", "scale", "stretch_x", "angle", "opacity", "brightness", "fill"):
                np.testing.assert_allclose(a.at(field, 7)[::-1], b.at(field, 7), atol=1e-6, err_msg=name)


def test_every_split_class_is_named_as_it_is_parsed():
    for name in BASE_CLASSES + VALIDATION_CLASSES + NOVEL_CLASSES:
        assert join_class_name(*parse_class_name(name)[1:]) == name


def test_distractors_share_colour_or_shape_with_the_subject_but_never_both():
    shared = set()
    for index in range(60):
        scene = draw_scene("red star growing", 0, index)
        distractors = scene.objects[: -scene.num_subjects]
        assert 1 <= len(distractors) <= 3
        shared |= {(item.colour == "red", item.shape == "star") for item in distractors}
    assert shared == {(True, False), (False, True), (False, False)}


def test_an_unknown_class_is_refused_with_an_example():
    with pytest.raises(ValueError, match=r"'mauve star growing' is not a class .* 'red star growing'"):
        render_clip("mauve star growing", 0, 0)
    with pytest.raises(ValueError, match="'red star meeting' is not a class"):
        render_clip("red star meeting", 0, 0)


def test_shapes_are_inside_negative_and_far_away_positive():
    for shape in set(SHAPES) - {"ring", "moon"}:
        near, far = signed_distance(shape, np.array([0.0, 2.0]), np.array([0.0, 0.0]))
        assert near < 0 < far, shape
    np.testing.assert_allclose(signed_distance("square", np.array([1.0]), np.array([0.0])), [0.2])
    np.testing.assert_allclose(signed_distance("ring", np.array([0.0]), np.array([0.0])), [0.5])


def test_a_growing_star_covers_more_and_more_red():
    scene = draw_scene("red star growing", 0, 0)
    scene.objects = scene.objects[-1:]
    first, last = paint_scene(scene, np.array([0, scene.num_frames - 1])).astype(int)
    red_pixels = [int(((f[..., 0] - f[..., 1] > 80) & (f[..., 0] - f[..., 2] > 80)).sum()) for f in (first, last)]
    assert red_pixels[1] > 4 * red_pixels[0] > 0


def test_a_single_frame_equals_that_frame_of_the_clip():
    scene = draw_scene("two green rings meeting", 1, 2)
    np.testing.assert_array_equal(paint_scene(scene, np.array([11]))[0], paint_scene(scene)[11])


def test_a_still_comes_with_a_caption_of_its_colour_and_shape():
    for index in range(20):
        image, caption = render_still("two green rings meeting", 0, index)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert "two green rings" in caption


def test_a_written_clip_decodes_to_its_frames(tmp_path):
    frames, fps = render_clip("red star growing", 0, 0)
    write_clip(tmp_path / "clip.mp4", frames, fps)
    decoded, stream = decode(tmp_path / "clip.mp4")
    assert stream.codec_context.name == "h264"
    assert stream.average_rate == fps
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 8  # lossy, and the noise goes first
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    assert render_dataset(folder, ONE_VIDEO, seed=0, num_workers=1, show_progress=False) == 12
    return folder


def test_a_dataset_is_a_tree_of_splits_and_class_names(rendered):
    assert sorted(path.name for path in rendered.iterdir()) == ["synthetic_actions.json", "test"]
    assert sorted(path.name for path in (rendered / "test").iterdir()) == sorted(NOVEL_CLASSES)
    assert json.loads((rendered / "synthetic_actions.json").read_text())["num_videos_per_class"]["test"] == 1
    decoded, _ = decode(rendered / "test" / "red star growing" / "000.mp4")
    assert len(decoded) == draw_scene("red star growing", 0, 0).num_frames


def test_a_dataset_reads_as_a_videofolder(rendered, tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.load_dataset("videofolder", data_dir=str(rendered), cache_dir=str(tmp_path))["test"]
    assert sorted(data.features["label"].names) == sorted(NOVEL_CLASSES)
    assert data.num_rows == 12


def test_an_interrupted_run_renders_only_what_is_missing(rendered):
    kept, missing = (rendered / "test" / name / "000.mp4" for name in ("red star growing", "red star rising"))
    before, content = kept.stat().st_mtime_ns, missing.read_bytes()
    missing.unlink()
    missing.with_name(".000.mp4.partial").write_bytes(content[:1000])  # what a killed process leaves behind
    assert render_dataset(rendered, ONE_VIDEO, seed=0, num_workers=1, show_progress=False) == 1
    assert kept.stat().st_mtime_ns == before
    assert missing.read_bytes() == content
    assert [path.name for path in missing.parent.iterdir()] == ["000.mp4"]


def test_a_tree_of_other_settings_is_refused(rendered):
    with pytest.raises(ValueError, match=r"other settings \(seed is 0 there and 1 here\).*choose another output_dir"):
        render_dataset(rendered, ONE_VIDEO, seed=1)
    with pytest.raises(ValueError, match="num_videos_per_class is"):
        render_dataset(rendered, {"test": 2}, seed=0)


def test_a_foreign_tree_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"already holds 'train' but no synthetic_actions\.json"):
        render_dataset(tmp_path, ONE_VIDEO)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Unknown split 'novel'"):
        render_dataset(tmp_path, {"novel": 1})


def test_a_contact_sheet_has_a_row_per_class():
    sheet = draw_contact_sheet(NOVEL_CLASSES[:3], num_frames=8)
    assert sheet.size == (8 * 96, 3 * (96 + 14))


@pytest.fixture(scope="module")
def tiny_clip():
    return (
        CLIPModel.from_pretrained(TINY_CLIP).eval(),
        AutoTokenizer.from_pretrained(TINY_CLIP),
        CLIPImageProcessor.from_pretrained(TINY_CLIP),
    )


def text_features(model, tokenizer, texts):
    features = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt"))
    return torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1)


def image_features(model, image_processor, images):
    features = model.get_image_features(**image_processor(images, return_tensors="pt"))
    return torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1)


@torch.no_grad()
def test_tiny_clip_finds_colour_and_shape_of_fresh_stills(tiny_clip):
    model, tokenizer, image_processor = tiny_clip
    combinations = seen_combinations()
    texts = text_features(model, tokenizer, [f"a photo of a {colour} {shape}" for colour, shape in combinations])
    images = [
        render_still(join_class_name(*pair, "moving left"), seed=424242, index=index)[0]
        for index in range(3)
        for pair in combinations
    ]
    predicted = (image_features(model, image_processor, images) @ texts.T).argmax(-1)
    right = predicted == torch.arange(len(combinations)).repeat(3)
    assert right.float().mean() > 0.4  # chance: 1 of 60


def test_tiny_clip_is_small_enough_to_be_committed():
    assert (TINY_CLIP / "model.safetensors").stat().st_size < 3_000_000


@torch.no_grad()
def test_text_features_do_not_depend_on_padding(tiny_clip):
    model, tokenizer, _ = tiny_clip
    alone = text_features(model, tokenizer, ["a red star"])
    padded = text_features(model, tokenizer, ["a red star", "a photo of two green rings meeting"])[:1]
    torch.testing.assert_close(alone, padded)


def test_any_text_tokenizes_and_comes_back(tiny_clip):
    tokenizer = tiny_clip[1]
    for text in ("a photo of red star growing", "héllo wörld", "漢字 тест", "naïve café 😀"):
        tokens = tokenizer(text)["input_ids"]
        assert tokens[0] == tokenizer.bos_token_id
        assert tokens.count(tokenizer.eos_token_id) == 1  # no unknown pieces, which would be <|endoftext|> too
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert len(tokenizer("star " * 100, truncation=True)["input_ids"]) == tokenizer.model_max_length == 32


def test_words_of_every_class_are_single_tokens(tiny_clip):
    tokenizer = tiny_clip[1]
    for name in BASE_CLASSES + VALIDATION_CLASSES + NOVEL_CLASSES:
        assert len(tokenizer(name)["input_ids"]) == len(name.split()) + 2


def test_the_committed_tokenizer_is_the_one_the_program_builds(tiny_clip):
    assert build_tokenizer().get_vocab() == tiny_clip[1].get_vocab()


def test_merges_take_the_most_frequent_pair_first():
    assert learn_merges(["ring", "rings"]) == [
        ("i", "n"),
        ("r", "in"),
        ("g", "s</w>"),
        ("rin", "g</w>"),
        ("rin", "gs</w>"),
    ]


def test_every_batch_holds_each_combination_equally_often():
    num_combinations = len(seen_combinations())
    batches = balanced_batches(num_combinations * 5, 2, torch.Generator().manual_seed(0))
    assert batches.shape == (2, 2 * num_combinations)  # the fifth still of each combination is left over
    assert batches.unique().numel() == batches.numel()
    for batch in batches:
        assert ((batch % num_combinations).bincount() == 2).all()


def test_novel_combinations_are_not_among_those_that_captions_name():
    assert novel_combinations() == {("red", "star"), ("red", "circle"), ("green", "ring"), ("green", "star")}
    assert len(seen_combinations()) == 60
    assert not novel_combinations() & set(seen_combinations())


def test_pretraining_twice_gives_the_same_weights():
    tokenizer = build_tokenizer()
    images = torch.randint(256, (120, 3, 68, 68), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = dict(tokenizer([f"a photo of a {c} {s}" for c, s in seen_combinations()] * 2, return_tensors="pt"))
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = CLIPModel(build_config(tokenizer))
        place_positions(model)
        train_clip(model, images, tokens, CLIPImageProcessor.from_pretrained(TINY_CLIP), 2, 1, 1e-3, seed=0)
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*weights)
