"""Windows of a long video: where they lie, what their features are, and that frames are read once."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import NUM_FRAMES_IN_FILE, random_clip, tiny_model_and_processor, write_video

from clipfsar.inference.windows import classify_windows, encode_windows, window_bounds
from processing_clipfsar import VideoReadError, read_video_frames, stream_video_frames


@pytest.fixture(scope="module")
def parts():
    return tiny_model_and_processor()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "long.mp4"
    write_video(path, (200, 60, 30), seed=3)
    return path


@pytest.mark.parametrize(
    ("num_video_frames", "window", "stride", "expected"),
    [
        (100, 4, 4, [(0, 40), (40, 40), (60, 40)]),  # the last window ends with the video
        (100, 5, 2.5, [(0, 50), (25, 50), (50, 50)]),
        (40, 4, 1, [(0, 40)]),
        (7, 4, 1, [(0, 7)]),  # shorter than a window
        (3, 0.1, 0.05, [(0, 1), (1, 1), (2, 1)]),  # one frame, and the default stride
        (45, 4, 10, [(0, 40), (5, 40)]),
        (12, 0.3, 0.25, [(0, 3), (2, 3), (5, 3), (8, 3), (9, 3)]),  # starts at 0, 2.5, 5, 7.5, rounded
    ],
)
def test_windows_cover_the_video(num_video_frames, window, stride, expected):
    assert window_bounds(num_video_frames, 10, window, stride) == expected


@pytest.mark.parametrize(
    ("window", "stride"),
    [(0, 1), (1, 0), (-1, 1), (0.01, 1), (1, 1e-9), (math.inf, 1), (1, math.inf), (1e308, 1), (math.nan, 1)],
)
def test_impossible_windows_are_refused(window, stride):
    with pytest.raises(ValueError, match=r"must be greater than 0|less than (a|half a) frame at 10 frames per second"):
        window_bounds(100, 10, window, stride)


def test_features_of_windows_are_those_of_the_pieces_alone(parts):
    model, processor = parts
    frames = np.concatenate([random_clip(seed) for seed in range(4)])  # 32 frames
    timeline = encode_windows(model, processor, frames, 1.2, 0.8, fps=10, frames_per_batch=5)
    assert timeline.seconds.tolist() == pytest.approx(
        np.array([[0, 1.2], [0.8, 2.0], [1.6, 2.8], [2.0, 3.2]]), abs=1e-9
    )
    assert timeline.duration_seconds == 3.2
    with torch.no_grad():
        pieces = processor.process_videos([frames[start : start + 12] for start in (0, 8, 16, 20)])
        expected = model.get_video_features(pieces)
    torch.testing.assert_close(timeline.embeds, expected, rtol=0, atol=1e-5)
    assert 0 < len(timeline.thumbnails) <= 9
    assert timeline.thumbnails.shape[1:] == (16, 16, 3)


def test_every_frame_is_encoded_once(parts, video, monkeypatch):
    model, processor = parts
    encoded, encode = [], model.get_video_features

    def counted(pixel_values):
        encoded.append(pixel_values.shape[1])
        return encode(pixel_values)

    monkeypatch.setattr(model, "get_video_features", counted)
    timeline = encode_windows(model, processor, video, 0.16, 0.04)  # windows of 4 frames, one frame apart
    assert len(timeline.embeds) == NUM_FRAMES_IN_FILE - 3
    assert sum(encoded) == NUM_FRAMES_IN_FILE


def test_frames_that_are_streamed_are_those_that_are_read(video, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(random_clip(5)):
        Image.fromarray(frame).save(folder / f"{number}.png")
    for source in (video, video.read_bytes(), folder, random_clip(6)):
        streamed = torch.stack(list(stream_video_frames(source, lambda num_frames, fps: [0, 3, 7])))
        assert torch.equal(streamed, read_video_frames(source, [0, 3, 7], decoder="av" if source is video else "auto"))


def test_interval_sampling_of_a_window_follows_the_video_rate(parts):
    model, processor = tiny_model_and_processor()
    processor.frame_sampling, processor.sampling_rate, processor.target_fps = "interval", 2, 10
    frames = np.concatenate([random_clip(seed) for seed in range(4)])
    timeline = encode_windows(model, processor, frames, 1.6, 1.6, fps=10)
    with torch.no_grad():
        expected = model.get_video_features(processor.process_videos([frames[:16], frames[16:]], fps=10))
    torch.testing.assert_close(timeline.embeds, expected, rtol=0, atol=1e-5)


def test_windows_are_classified_in_batches_of_any_size():
    embeds = torch.randn(7, 4, 16)
    expected = embeds.mean((1, 2))[:, None]
    for size in (1, 3, 100):
        assert torch.equal(classify_windows(embeds, lambda batch: batch.mean((1, 2))[:, None], size), expected)


def test_videos_without_a_rate_need_one(parts):
    with pytest.raises(ValueError, match="does not say its frames per second, which windows need: give fps"):
        encode_windows(*parts, random_clip(0), 1, 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"no video" * 100, "Cannot read video"), (None, "No such file")],
)
def test_unreadable_videos_are_an_error_with_the_path(parts, tmp_path, content, reason):
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoReadError, match=reason) as caught:
        encode_windows(*parts, path, 1, 1)
    assert "broken.mp4" in str(caught.value)


def test_a_video_that_is_cut_off_is_refused(parts, video, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.read_bytes()[:-200])
    with pytest.raises(VideoReadError, match=r"cut\.mp4"):
        encode_windows(*parts, path, 0.16, 0.08)
