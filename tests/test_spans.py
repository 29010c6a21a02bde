"""Parts of videos by name: which frames they are, and what else knows them."""

import numpy as np
import pytest
import torch
from tiny_data import NUM_FRAMES_IN_FILE, tiny_model_and_processor, write_video

from clipfsar.content import digest_of_video
from container_clipfsar import VideoTimes
from left_out_clipfsar import source_of
from limits_clipfsar import UnreadableError
from spans_clipfsar import Span, split_span, with_span
from support_set_clipfsar import SupportSet
from video_clipfsar import VideoReadError, read_video_frames, stream_video_frames, video_times


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A video of 25 frames per second."""
    path = tmp_path_factory.mktemp("spans") / "long.mp4"
    write_video(path, (200, 60, 30), seed=3)
    return str(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.mp4#t=12.5,15", ("a.mp4", Span(12.5, 15.0))),
        ("a.mp4#t=,15", ("a.mp4", Span(0.0, 15.0))),
        ("a.mp4#t=3", ("a.mp4", Span(3.0, None))),
        ("https://x.org/a.mp4#t=1,2", ("https://x.org/a.mp4", Span(1.0, 2.0))),
        ("a.mp4", ("a.mp4", None)),
        ("a.mp4#t=", ("a.mp4#t=", None)),
        ("a.mp4#t=-1,2", ("a.mp4#t=-1,2", None)),
        ("a.mp4#t=1e9,2", ("a.mp4#t=1e9,2", None)),
        ("a.mp4#t=nan,2", ("a.mp4#t=nan,2", None)),
        ("a.mp4#xywh=1,2,3,4", ("a.mp4#xywh=1,2,3,4", None)),
    ],
)
def test_a_name_tells_the_part(name, expected):
    assert split_span(name) == expected


def test_a_file_that_is_called_like_a_part_is_a_file(tmp_path):
    (tmp_path / "a.mp4#t=1,2").touch()
    assert split_span(str(tmp_path / "a.mp4#t=1,2")) == (str(tmp_path / "a.mp4#t=1,2"), None)


def test_names_of_parts_are_read_back():
    for start, end in [(0, 1), (1 / 3, 2 / 3), (12.5, 15), (1001 / 30000, 7007 / 30000)]:
        span = split_span(with_span("a.mp4", start, end))[1]
        assert (span.start_seconds, span.end_seconds) == pytest.approx((start, end), abs=5e-7)


@pytest.mark.parametrize("part", [(1, 1), (2, 1), (-1, 1), (float("nan"), 1), (0, float("inf")), (0, 1e-9)])
def test_impossible_parts_have_no_name(part):
    with pytest.raises(ValueError, match="it starts at 0 or later, and ends after its start"):
        with_span("a.mp4", *part)


@pytest.mark.parametrize(
    ("whole", "times", "expected"),
    [
        ("a.mp4#t=10,12", (0, 1), "a.mp4#t=10,11"),
        ("a.mp4#t=10,12", (0.5, None), "a.mp4#t=10.5,12"),
        ("a.mp4#t=10,12", (0.5, 2.001), "a.mp4#t=10.5,12"),  # rounded up
        ("a.mp4#t=10", (1, 2), "a.mp4#t=11,12"),
        ("a.mp4#t=10", (1, None), "a.mp4#t=11"),
        ("a.mp4#t=,12", (1, 2), "a.mp4#t=1,2"),
    ],
)
def test_a_part_of_a_part_is_one_of_the_whole_video(whole, times, expected):
    assert with_span(whole, *times) == expected


def test_a_part_after_the_end_of_its_part_has_no_name():
    with pytest.raises(ValueError, match="it starts at 0 or later, and ends after its start"):
        with_span("a.mp4#t=10,12", 2, 3)


@pytest.mark.parametrize("fps", [24, 25, 30000 / 1001, 120])
def test_a_part_is_the_frames_that_begin_in_it_at_any_rate(fps):
    times = VideoTimes.at_rate(100, fps)
    for first, stop in [(0, 1), (3, 10), (41, 100), (99, 100)]:
        span = split_span(with_span("a.mp4", first / fps, stop / fps))[1]
        start, part = times.part(span.start_seconds, span.end_seconds)
        assert (start, part.num_frames, part.fps) == (first, stop - first, fps)


def test_a_part_follows_the_times_of_a_varying_rate():
    times = VideoTimes(5, 5 / 2, np.array([0, 0.1, 0.2, 1.0, 1.5]), 2.0)
    start, part = times.part(0.1, 1.5)
    assert (start, part.num_frames, part.duration) == (1, 3, pytest.approx(1.4))
    assert part.seconds.tolist() == pytest.approx([0, 0.1, 0.9])
    start, part = times.part(0.5, 0.6)  # within a frame
    assert (start, part.num_frames, part.duration) == (2, 1, pytest.approx(0.8))


@pytest.mark.parametrize("part", [(4, 5), (1, 6)])
def test_a_part_outside_of_the_video_is_refused(part):
    with pytest.raises(UnreadableError, match="is not in it: it lasts 4 seconds"):
        VideoTimes.at_rate(100, 25).part(*part)


@pytest.mark.parametrize("part", [(3, 3), (3, 2), (5, 2)])
def test_a_part_that_ends_before_it_starts_is_refused(part):
    with pytest.raises(UnreadableError, match=f"from {part[0]} to {part[1]} seconds is empty: its end is not after"):
        VideoTimes.at_rate(100, 25).part(*part)


def test_times_that_are_no_numbers_are_named_where_there_is_such_a_video(video):
    with pytest.raises(VideoReadError, match=r"long.mp4#t=a,b': the times 'a,b' after #t= are not numbers of seconds"):
        video_times(f"{video}#t=a,b")
    with pytest.raises(VideoReadError, match="No such file"):
        video_times(f"{video}.gone#t=a,b")


def test_a_part_in_seconds_needs_a_rate():
    with pytest.raises(UnreadableError, match="it does not say its frames per second"):
        VideoTimes(100).part(0, 1)


def test_frames_of_a_part_are_those_of_the_video(video):
    fps = video_times(video).fps
    part = with_span(video, 3 / fps, 9 / fps)
    assert video_times(part).num_frames == 6
    expected = read_video_frames(video, range(3, 9))
    assert torch.equal(read_video_frames(part, lambda num_frames, fps: range(num_frames)), expected)
    assert torch.equal(torch.stack(list(stream_video_frames(part, range(6)))), expected)
    assert torch.equal(read_video_frames(part, [5, 0], seconds_per_video=60), expected[[5, 0]])


def test_an_unreadable_part_names_the_video_and_the_part(video):
    with pytest.raises(VideoReadError, match=r"long\.mp4#t=500,600': the part from 500 to 600 seconds is not in it"):
        read_video_frames(with_span(video, 500, 600), [0])
    with pytest.raises(VideoReadError, match=r"missing\.mp4#t=1,2"):
        read_video_frames("missing.mp4#t=1,2", [0])


def test_parts_have_digests_of_their_own(video):
    digests = {digest_of_video(name) for name in (video, f"{video}#t=0,1", f"{video}#t=1,2", f"{video}#t=1.0,2.0")}
    assert len(digests) == 3


def test_a_support_set_names_parts_and_knows_their_video(video):
    model, processor = tiny_model_and_processor()
    middle = NUM_FRAMES_IN_FILE / 2 / video_times(video).fps
    support_set = SupportSet.from_videos(
        model, processor, {"first": [with_span(video, 0, middle)], "second": [with_span(video, middle)]}
    )
    (first,), (second,) = (enrolled.clip_names for enrolled in support_set.classes.values())
    assert (first.partition(",")[0], second.partition("=")[0]) == ("long.mp4#t=0", "long.mp4#t")
    assert source_of(first) == source_of(second) == "long.mp4"


def test_a_folder_of_videos_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(
        VideoReadError, match=r"it holds no frames \(.*\); a folder is one clip of image files, so give"
    ):
        video_times(tmp_path)
