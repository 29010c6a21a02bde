"""Frame archives: the frames that are kept, the ones that stand for others, and what may be read from which."""

import io
import zipfile

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from frame_archive_clipfsar import FrameArchive, pack_frames
from processing_clipfsar import (
    CLIPFSARProcessor,
    VideoReadError,
    read_video_frames,
    resize_frames,
    resize_settings,
    sample_frame_indices,
)

NUM_VIDEO_FRAMES = 100


def smooth_video(num_frames: int = NUM_VIDEO_FRAMES, height: int = 24, width: int = 40) -> torch.Tensor:
    """uint8 (T, H, W, 3): a gradient that brightens by 2 per frame, so that a frame tells its own number."""
    frames = torch.zeros(num_frames, height, width, 3)
    frames += torch.arange(num_frames).view(-1, 1, 1, 1) * 2 + torch.arange(width).view(1, 1, -1, 1)
    return frames.to(torch.uint8)


def archive_of(video: torch.Tensor, num_kept: int, image_processor, preprocessing="clip", frame_format="raw") -> bytes:
    indices = sample_frame_indices(len(video), num_kept) if num_kept < len(video) else range(len(video))
    frames = resize_frames(video[list(indices)], image_processor, preprocessing)
    settings = resize_settings(image_processor, preprocessing)
    return pack_frames(frames, indices, len(video), 25.0, settings, frame_format)


def image_processor_of_size(size: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def test_an_archive_gives_back_its_frames_by_their_numbers_in_the_video():
    frames = torch.arange(3 * 2 * 2 * 3, dtype=torch.uint8).view(3, 2, 2, 3)
    archive = FrameArchive(pack_frames(frames, [1, 4, 7], 9, 12.5, {"preprocessing": "clip", "size": None}, "raw"))
    assert (archive.num_frames, archive.fps, archive.indices) == (9, 12.5, [1, 4, 7])
    assert archive.resized_for == {"preprocessing": "clip", "size": None}
    assert not archive.is_complete
    assert torch.equal(archive.read([4, 7]), frames[1:])


@pytest.mark.parametrize(("wanted", "kept"), [(0, 1), (1, 1), (2, 1), (3, 4), (5, 4), (6, 7), (8, 7)])
def test_the_nearest_kept_frame_stands_for_one_that_was_left_out(wanted, kept):
    frames = torch.tensor([1, 4, 7], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 2, 2, 3)
    archive = FrameArchive(pack_frames(frames, [1, 4, 7], 9, None, {}, "raw"))
    assert archive.read([wanted])[0, 0, 0, 0] == kept


def test_a_jpeg_archive_is_near_the_frames_and_much_smaller_than_a_raw_one():
    frames = smooth_video(10, 64, 64)
    raw, jpeg = (pack_frames(frames, range(10), 10, None, {}, frame_format) for frame_format in ("raw", "jpeg"))
    difference = (FrameArchive(jpeg).read(range(10)).float() - frames.float()).abs()
    assert difference.mean() < 1
    assert len(jpeg) < len(raw) / 5


def test_any_zip_program_opens_an_archive():
    data = pack_frames(smooth_video(2), [0, 1], 2, None, {}, "jpeg")
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None
        assert file.namelist() == ["frames.json", "000000.jpg", "000001.jpg"]


def test_equal_frames_make_equal_archives():
    assert len({pack_frames(smooth_video(2), [0, 1], 2, None, {}, "jpeg") for _ in range(2)}) == 1


def test_a_whole_archive_is_read_like_the_video_it_was_made_of():
    video = smooth_video()
    data = pack_frames(video, range(len(video)), len(video), 25.0, {}, "raw")
    for source in (data, {"path": "a.mp4", "bytes": data}, io.BytesIO(data)):
        assert torch.equal(read_video_frames(source, [3, 50, 99]), video[[3, 50, 99]])


def test_an_archive_on_disk_is_read_by_its_path(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(pack_frames(smooth_video(4), range(4), 4, 25.0, {}, "raw"))
    assert torch.equal(read_video_frames(path, [2]), smooth_video(4)[[2]])


@pytest.mark.parametrize("frame_sampling", ["segment_center", "segment_random", "interval"])
@pytest.mark.parametrize("preprocessing", ["clip", "official"])
def test_training_from_a_whole_raw_archive_equals_training_from_the_video(tiny_clip, preprocessing, frame_sampling):
    processor = CLIPFSARProcessor.from_pretrained(
        tiny_clip, num_frames=4, preprocessing=preprocessing, frame_sampling=frame_sampling
    )
    video = smooth_video()
    data = archive_of(video, NUM_VIDEO_FRAMES, processor.image_processor, preprocessing)
    pixels = [
        processor.process_videos([source], training=True, generator=torch.Generator().manual_seed(3), fps=25.0)
        for source in (video, data)
    ]
    # the official resizing is not rounded when it is done on the fly
    atol = 0 if preprocessing == "clip" else 0.5 / 255 / min(processor.image_processor.image_std) + 1e-6
    torch.testing.assert_close(*pixels, rtol=0, atol=atol)


def test_segment_centres_are_exact_with_an_odd_multiple_of_the_frames(tiny_clip):
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    video = smooth_video(97)
    data = archive_of(video, 3 * 4, processor.image_processor)
    assert torch.equal(processor.process_videos([data]), processor.process_videos([video]))


def test_random_frames_of_an_archive_stay_in_order_and_near_those_drawn(tiny_clip):
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4, frame_sampling="segment_random")
    kept = sample_frame_indices(NUM_VIDEO_FRAMES, 20)  # 5 apart
    frames = torch.tensor(kept, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 16, 16, 3)
    settings = resize_settings(processor.image_processor, "clip")
    archive = FrameArchive(pack_frames(frames, kept, NUM_VIDEO_FRAMES, None, settings, "raw"))
    seen = set()
    for seed in range(50):
        drawn = sample_frame_indices(
            NUM_VIDEO_FRAMES, 4, "segment_random", generator=torch.Generator().manual_seed(seed)
        )
        read = archive.read(drawn)[:, 0, 0, 0].tolist()
        assert read == sorted(read)
        assert max(abs(a - b) for a, b in zip(drawn, read, strict=True)) <= 3
        seen.update(read)
    assert seen == set(kept)  # random sampling stays random: every kept frame has its turn


def test_an_archive_for_another_size_is_refused_with_both_sizes(tiny_clip):
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip)
    data = archive_of(smooth_video(), NUM_VIDEO_FRAMES, image_processor_of_size(20))
    with pytest.raises(
        ValueError, match=r"made for 'clip' preprocessing at shortest side 20, but 'clip' .* 16 is want"
    ):
        processor.process_videos([data])


def test_an_archive_for_another_preprocessing_is_refused_with_both(tiny_clip):
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, preprocessing="official")
    data = archive_of(smooth_video(), NUM_VIDEO_FRAMES, processor.image_processor, "clip")
    with pytest.raises(
        ValueError, match=r"made for 'clip' preprocessing .* but 'official' preprocessing at 18 x 18 is"
    ):
        processor.process_videos([data])


@pytest.mark.parametrize(("num_kept", "training", "is_enough"), [(12, True, True), (11, True, False), (4, False, True)])
def test_an_archive_of_too_few_frames_to_draw_from_is_refused(tiny_clip, num_kept, training, is_enough):
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    data = archive_of(smooth_video(), num_kept, processor.image_processor)
    if is_enough:
        assert processor.process_videos([data], training=training).shape == (1, 4, 3, 16, 16)
    else:
        with pytest.raises(ValueError, match="keeps 11 of a video's 100 frames, but to draw 4 frames it must keep 12"):
            processor.process_videos([data], training=training)


def test_a_short_video_needs_no_more_frames_than_it_has(tiny_clip):
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    data = archive_of(smooth_video(5), 12, processor.image_processor)
    assert processor.process_videos([data], training=True).shape == (1, 4, 3, 16, 16)


def zip_of(**members: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("_", "."), content)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zip_of(picture_jpg=b""), "it is a zip file, but not a frame archive"),
        (zip_of(frames_json=b"{]"), "it is a zip file, but not a frame archive"),
        (zip_of(frames_json=b'{"format": "clipfsar frames 9"}'), "another format, 'clipfsar frames 9'"),
        (pack_frames(smooth_video(4), range(4), 4, None, {}, "raw")[:-30], "it is a zip file, but not a frame archive"),
    ],
)
def test_other_and_cut_off_zip_files_are_refused_with_the_path(tmp_path, data, message):
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    with pytest.raises(VideoReadError, match=message) as error:
        read_video_frames(path, [0])
    assert error.value.path == str(path)


def test_a_damaged_frame_is_an_error_and_not_another_frame(tmp_path):
    data = bytearray(pack_frames(smooth_video(4), range(4), 4, None, {}, "raw"))
    position = data.index(np.lib.format.MAGIC_PREFIX, 1000) + 200
    data[position] ^= 0xFF
    with pytest.raises(VideoReadError, match="a wanted frame cannot be decoded: Bad CRC-32"):
        read_video_frames(bytes(data), [0, 1, 2, 3])
