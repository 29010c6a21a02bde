"""`evaluate_episodes`: objects in, results out; the program over it prints and writes the same."""

import pytest
import torch
from accelerate import Accelerator
from tiny_data import model_of_tiny_clip, video_splits, write_video_folder

from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.evaluate_model import evaluate_episodes
from clipfsar.evaluation.feature_store import FeatureStore
from clipfsar.evaluation.protocol import Protocol
from processing_clipfsar import CLIPFSARProcessor

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
COUNTS = {"n_way": 3, "n_query": 1, "n_episodes": 30}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Test videos under wrong names, so that no model is always right, and classes of 3, 5 and 7 videos."""
    videos = video_splits(write_video_folder(tmp_path_factory.mktemp("videos"), videos_per_class=5))["test"]
    labels = [0, 1, 2] * 3 + [1, 1, 2, 2, 2, 2]
    return videos.remove_columns("label").add_column("label", labels, feature=videos.features["label"])


@pytest.fixture(scope="module")
def model(tiny_clip):
    return model_of_tiny_clip(tiny_clip)


@pytest.fixture(scope="module")
def other(tiny_clip):
    model = model_of_tiny_clip(tiny_clip)
    with torch.no_grad():
        for layer in model.temporal_transformer.layers:
            layer.mlp.fc2.weight.mul_(30)
    return model


def test_a_result_per_number_of_shots_and_mode_that_carries_its_protocol(model, processor, split):
    results = evaluate_episodes(model, processor, split, n_shot=[1, 2], seed=3, **COUNTS)
    assert [(result.n_shot, result.inference_mode) for result in results] == [
        (n_shot, mode) for n_shot in (1, 2) for mode in ("few_shot", "zero_shot", "ensemble")
    ]
    assert results.protocol == Protocol(3, (1, 2), 1, 30, 3)
    for result in results:
        per_class = list(result.per_class.values())
        assert result.accuracy == pytest.approx(sum(per_class) / 3)  # each class is asked about equally often
        assert result.exact is None


def test_the_model_stays_as_it_was(model, processor, split):
    model.train()
    with pytest.raises(ValueError, match="n_way=9 are needed"):
        evaluate_episodes(model, processor, split, n_way=9, n_episodes=5)
    with pytest.raises(
        ValueError, match="compare_with is a pair, not CLIPFSARModel: give the other model and its proc"
    ):
        evaluate_episodes(model, processor, split, n_way=2, n_shot=1, n_episodes=5, compare_with=model)
    evaluate_episodes(model, processor, split, n_shot=1, **COUNTS)
    assert model.training
    model.eval()


def test_train_mode_comes_back_when_a_video_is_unreadable(model, processor, split, tmp_path):
    (tmp_path / "empty.mp4").touch()
    broken = split.select_columns(["video", "label"]).map(lambda row, i: {"video": str(tmp_path / "empty.mp4")}, True)
    model.train()
    with pytest.raises(ValueError, match=r"empty\.mp4'?: the file is empty"):
        VideoEncoder(model, processor, Accelerator(cpu=True)).encode(broken)
    assert model.training
    model.eval()


def test_exact_numbers_of_both_models_are_compared_exactly(model, other, processor, split):
    ours, theirs = (
        evaluate_episodes(m, processor, split, n_shot=1, inference_modes="few_shot", exact=True, **COUNTS)[0]
        for m in (model, other)
    )
    options = {"n_shot": [1, 2], "inference_modes": "few_shot", "exact": True, "compare_with": (other, processor)}
    one, two = evaluate_episodes(model, processor, split, **options, **COUNTS)
    assert ours.exact != theirs.exact
    assert one.comparison["exact_difference"] == pytest.approx(ours.exact - theirs.exact)
    assert f"({ours.exact - theirs.exact:+.2f} exactly)" in one.lines()[-1]
    assert "exact_difference" not in two.comparison


def test_class_names_are_encoded_once_while_the_text_tower_stays(model, processor, monkeypatch):
    encoder = VideoEncoder(model, processor, Accelerator(cpu=True))
    first = encoder.encode_classes(["dive", "clap"])
    assert encoder.encode_classes(["dive", "clap"]) is first
    assert not torch.equal(encoder.encode_classes(["clap", "dive"]), first)
    with torch.no_grad():
        model.clip.text_projection.weight.mul_(2)
    doubled = encoder.encode_classes(["dive", "clap"])
    torch.testing.assert_close(doubled, 2 * first)
    with torch.no_grad():
        model.clip.text_projection.weight.div_(2)


def test_random_frames_of_evaluation_are_drawn_by_the_seed(model, tiny_clip, split, tmp_path):
    random = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4, frame_sampling="segment_random")

    def encode(seed, num_workers=0, batch_size=16):
        return VideoEncoder(model, random, Accelerator(cpu=True), batch_size, num_workers, seed).encode(split)

    torch.manual_seed(1)
    first = encode(seed=0)
    torch.manual_seed(2)
    assert torch.equal(encode(seed=0, num_workers=2, batch_size=3), first)
    assert not torch.equal(encode(seed=1), first)
    results = [
        evaluate_episodes(model, random, split, n_shot=1, seed=0, inference_modes="few_shot", **COUNTS)
        for _ in range(2)
    ]
    assert results[0].to_dicts() == results[1].to_dicts()
    FeatureStore(tmp_path, VideoEncoder(model, random, Accelerator(cpu=True), seed=0)).encode(split)
    with pytest.raises(ValueError, match=r"seed of the frames: 0 \(now 1\)"):
        FeatureStore(tmp_path, VideoEncoder(model, random, Accelerator(cpu=True), seed=1)).encode(split)


def test_a_store_of_a_random_draw_is_not_one_of_evaluation_frames(model, processor, split, tmp_path):
    encoder = VideoEncoder(model, processor, Accelerator(cpu=True))
    FeatureStore(tmp_path, encoder).encode(split, draw_seed=(0, 1))
    with pytest.raises(ValueError, match=r"random draw: \[0, 1\] \(now None\)"):
        FeatureStore(tmp_path, encoder).encode(split)


def test_features_are_kept_per_model_and_split(model, other, processor, split, tmp_path):
    options = {"n_shot": 1, "inference_modes": "few_shot", "feature_store": tmp_path, **COUNTS}
    first = evaluate_episodes(model, processor, split, **options, compare_with=(other, processor))
    evaluate_episodes(model, processor, VideoSplit(split, name="another"), **options)
    assert len(list(tmp_path.rglob("features.safetensors"))) == 3
    again = evaluate_episodes(model, processor, split, **options, compare_with=(other, processor))
    assert again.to_dicts() == first.to_dicts()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inference_modes": "fewshot"}, "inference_modes fewshot: there are few_shot, zero_shot, ensemble"),
        ({"n_episodes": 0}, "n_episodes=0 must be at least 1"),
        ({"n_shot": []}, r"n_shot=\[\].*: give at least one of each"),
        ({"n_shot": "1"}, "n_shot='1' must be a whole number or a list of them"),
        ({"n_shot": [2], "exact": True}, r"exact is about 1-shot episodes: add 1 to n_shot=\[2\]"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_encoded(model, processor, split, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate_episodes(model, processor, split, **{"n_way": 3} | settings)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda split: {"test": split}, r"This is a DatasetDict: pass one of its splits, such as splits\['test'\]"),
        (lambda split: "data/test", "A datasets.Dataset is needed, not str: load folders with load_video_splits"),
    ],
)
def test_what_is_no_data_set_is_named(model, processor, split, wrong, message):
    with pytest.raises(ValueError, match=message):
        evaluate_episodes(model, processor, wrong(split), n_way=3)
