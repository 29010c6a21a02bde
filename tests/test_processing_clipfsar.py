"""The processor: which frames, reading them, pixel values, prompts, and the inputs of an episode.

`golden/processing.safetensors` (three small videos and their pixel values) and `golden/processing.json` (frame indices
of interval sampling) are data recorded from the official program, alibaba-mmai-research/CLIP-FSAR: frames squashed to
32x32, centre crop 28, CLIP's mean and standard deviation; test mode, centred clip.
"""

import io
import json
import pickle
import struct
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPTokenizer

import decoding_clipfsar
import pixels_clipfsar
import processing_clipfsar
from processing_clipfsar import (
    CLIPFSARProcessor,
    VideoReadError,
    augment_like_kinetics,
    read_video_frames,
    sample_frame_indices,
)

GOLDEN = Path(__file__).parent / "golden"
NUM_FRAMES_IN_FILE = 40
HEIGHT, WIDTH = 48, 64
CLIP_VOCABULARY = [*"abcdefghijklmnopqrstuvwxyz"]


def brightness(index):
    """The gray level that frame `index` of every video here is painted in."""
    return 20 + 5 * index


def painted_frames(num_frames=NUM_FRAMES_IN_FILE, height=HEIGHT, width=WIDTH):
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:] = brightness(np.arange(num_frames)).reshape(-1, 1, 1, 1)
    return frames


def shown_indices(frames):
    """Which frames these are, by their brightness."""
    return ((frames.float().mean(dim=(1, 2, 3)) - brightness(0)) / 5).round().int().tolist()


def write_video(path, frames, codec="libx264", pixel_format="yuv420p", codec_options=None, **container_options):
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=25, options=codec_options or {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixel_format
        stream.codec_context.gop_size = 12
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_audio(path):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


VIDEO_KINDS = {
    "h264.mp4": {},
    "fragmented.mp4": {"movflags": "frag_keyframe+empty_moov"},  # states no number of frames
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4", "codec_options": {"qmin": "1", "qmax": "2"}},
    "h264.avi": {},  # with B-frames, of which avi does not say the order
    "mpeg2.mpg": {"codec": "mpeg2video", "codec_options": {"qmin": "1", "qmax": "2"}},
}


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder of readable videos, each 40 frames of 64x48 at 25 frames per second."""
    folder = tmp_path_factory.mktemp("videos")
    for name, options in VIDEO_KINDS.items():
        write_video(folder / name, painted_frames(), **options)
    return folder


@pytest.fixture(params=["auto", "decord", "torchcodec", "av"])
def decoder(request):
    if request.param != "auto":
        pytest.importorskip(request.param, exc_type=Exception)
    return request.param


def skip_if_unsuited(decoder, name):
    if (decoder, name[-4:]) in (("torchcodec", ".avi"), ("torchcodec", ".mpg"), ("decord", ".mpg")):
        pytest.skip(f"{decoder} is refused there")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """What a plain CLIP checkpoint says about preprocessing, with a vocabulary of single letters."""
    folder = tmp_path_factory.mktemp("clip")
    words = [piece for letter in CLIP_VOCABULARY for piece in (letter, letter + "</w>")]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 30}')
    size = {"height": 28, "width": 28}
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture
def processor(clip_folder):
    return CLIPFSARProcessor.from_pretrained(clip_folder, num_frames=4)


def random_frames(num_frames=6, height=40, width=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


# --- which frames


def test_segment_center_takes_the_middle_of_each_segment():
    assert sample_frame_indices(40, 8) == [2, 7, 12, 17, 22, 27, 32, 37]
    assert sample_frame_indices(9, 4) == [1, 3, 5, 7]


@pytest.mark.parametrize("sampling", ["segment_center", "segment_random", "interval", "linspace"])
def test_short_videos_repeat_frames_in_order(sampling):
    assert sample_frame_indices(3, 8, sampling) == [0, 0, 0, 1, 1, 2, 2, 2]
    assert sample_frame_indices(1, 4, sampling) == [0, 0, 0, 0]
    assert sample_frame_indices(8, 8, sampling) == list(range(8))


def test_segment_random_draws_each_frame_of_its_segment_and_no_other():
    generator = torch.Generator().manual_seed(0)
    draws = np.array([sample_frame_indices(19, 4, "segment_random", generator=generator) for _ in range(200)])
    # 19 // 4 = 4 frames per segment; the official program never takes the three left over at the end
    assert [set(column) for column in draws.T.tolist()] == [set(range(4 * i, 4 * i + 4)) for i in range(4)]


def test_the_same_seed_draws_the_same_frames():
    first, second = (
        sample_frame_indices(500, 8, "segment_random", generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("case", json.loads((GOLDEN / "processing.json").read_text()), ids=str)
def test_interval_sampling_equals_the_official_program(case):
    expected = case.pop("indices")
    assert sample_frame_indices(case.pop("num_video_frames"), case.pop("num_frames"), "interval", **case) == expected


def test_interval_sampling_with_a_generator_starts_anywhere_and_keeps_its_steps():
    generator = torch.Generator().manual_seed(0)
    draws = [sample_frame_indices(900, 8, "interval", fps=30.0, generator=generator) for _ in range(300)]
    starts = [draw[0] for draw in draws]
    assert min(starts) < 10
    assert max(starts) > 190  # 900 frames less a clip of 700
    assert {step for draw in draws for step in np.diff(draw).tolist()} <= {94, 95, 96}


def test_linspace_sampling_leaves_out_the_first_and_the_last_frame():
    assert sample_frame_indices(20, 8, "linspace") == [1, 3, 5, 8, 10, 13, 15, 18]
    assert sample_frame_indices(11, 8, "linspace") == [1, 2, 3, 4, 5, 6, 7, 9]
    assert sample_frame_indices(10, 8, "linspace") == [0, 1, 2, 3, 5, 6, 7, 9]  # too short to leave any out


def test_linspace_sampling_with_a_generator_draws_both_ends():
    generator = torch.Generator().manual_seed(0)
    draws = [sample_frame_indices(100, 8, "linspace", generator=generator) for _ in range(200)]
    assert {draw[0] for draw in draws} == {0, 1, 2, 3, 4, 5}
    assert {draw[-1] for draw in draws} == {94, 95, 96, 97, 98, 99}
    assert {(draw[0], draw[-1]) for draw in draws} > {(0, 94), (5, 94)}


def test_interval_sampling_never_runs_backwards_in_a_short_clip():
    for num_video_frames in range(9, 60):
        indices = sample_frame_indices(num_video_frames, 8, "interval", fps=25.0)
        assert indices == sorted(indices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8), "num_video_frames=0, but at least 1"),
        ((10, 0), "num_frames=0 must be a whole number of at least 1"),
        ((10, 8, "dense"), "sampling='dense' is not known: choose one of 'segment_center'"),
        ((100, 8, "interval"), "needs the video's frames per second, got fps=None"),
    ],
)
def test_impossible_samplings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_frame_indices(*arguments)


# --- reading


@pytest.mark.parametrize("name", VIDEO_KINDS)
def test_every_decoder_returns_the_right_frames_in_the_order_asked(videos, decoder, name):
    skip_if_unsuited(decoder, name)
    wanted = [39, 0, 13, 13, 25, 38]
    frames = read_video_frames(videos / name, wanted, decoder)
    assert frames.dtype == torch.uint8
    assert frames.shape == (6, HEIGHT, WIDTH, 3)
    assert shown_indices(frames) == wanted


@pytest.mark.parametrize("name", VIDEO_KINDS)
def test_every_decoder_tells_number_and_rate_of_frames(videos, decoder, name):
    skip_if_unsuited(decoder, name)
    told = []
    read_video_frames(videos / name, lambda *arguments: told.append(arguments) or [0], decoder)
    assert told == [(NUM_FRAMES_IN_FILE, pytest.approx(25.0))]


def test_bytes_file_objects_dicts_and_paths_give_the_same_frames(videos, decoder):
    path = videos / "h264.mp4"
    data = path.read_bytes()
    file = io.BytesIO(data)
    forms = [path, str(path), path.as_uri(), data, bytearray(data), file, file]  # a file object may be read twice
    forms += [{"path": str(path), "bytes": None}, {"path": "elsewhere.mp4", "bytes": data}]
    for form in forms:
        assert shown_indices(read_video_frames(form, [5, 30], decoder)) == [5, 30]


def test_av1_is_read_although_decord_cannot(tmp_path):
    av = pytest.importorskip("av")
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV writes no AV1")
    path = write_video(tmp_path / "av1.mp4", painted_frames(12, 64), "libsvtav1")  # 64: the encoder's least
    assert shown_indices(read_video_frames(path, [0, 7, 11])) == [0, 7, 11]


def test_odd_sizes_are_read(tmp_path, decoder):
    path = write_video(tmp_path / "odd.mp4", painted_frames(5, 47, 63), pixel_format="yuv444p")
    frames = read_video_frames(path, [0, 4], decoder)
    assert frames.shape == (2, 47, 63, 3)
    assert shown_indices(frames) == [0, 4]


def test_a_video_to_be_shown_rotated_is_turned_upright(tmp_path):
    frames = painted_frames(6)
    frames[:, : HEIGHT // 2] = 0  # the upper half is black
    path = write_video(tmp_path / "rotated.mp4", frames)
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 44  # the track's display matrix (ISO/IEC 14496-12, 8.3.2)
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # 90 degrees clockwise
    frames = read_video_frames(bytes(data), [0, 5])
    assert frames.shape == (2, WIDTH, HEIGHT, 3)
    assert frames[:, :, HEIGHT // 2 + 2 :].max() < 10  # what was above is now on the right
    assert frames[:, :, : HEIGHT // 2 - 2].min() > 10


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path):
    """Clips cut without re-encoding, as in Kinetics, begin with hidden frames."""
    data = bytearray(write_video(tmp_path / "whole.mp4", painted_frames()).read_bytes())
    media_time = data.find(b"elst") + 16
    hidden = 10 * 12800 // 25  # ten frames in the muxer's 1/12800 s
    start = struct.unpack(">i", data[media_time : media_time + 4])[0]
    data[media_time : media_time + 4] = struct.pack(">i", start + hidden)
    told = []
    frames = read_video_frames(bytes(data), lambda *arguments: told.append(arguments) or [0, 12, 29])
    assert told[-1][0] == 30
    assert shown_indices(frames) == [10, 22, 39]


def test_announced_frames_that_do_not_come_are_taken_off_the_count(videos, monkeypatch):
    class LosesTwo(decoding_clipfsar.PyAVReader):
        def _packets_from(self, entry):
            return iter(self._kept[entry:-2])

    monkeypatch.setattr(decoding_clipfsar, "PyAVReader", LosesTwo)
    told = []
    frames = read_video_frames(videos / "fragmented.mp4", lambda n, fps: told.append(n) or range(n))
    assert told == [40, 38]
    assert len(frames) == 38


def test_arrays_tensors_and_images_are_videos():
    frames = painted_frames(12)
    frames.setflags(write=False)
    tensor = torch.from_numpy(painted_frames(12))
    images = [Image.fromarray(frame) for frame in frames]
    for video in (frames, frames[:, ::-1], tensor, tensor.permute(0, 3, 1, 2), images, list(frames)):
        read = read_video_frames(video, [11, 0, 4])
        assert read.shape == (3, HEIGHT, WIDTH, 3)
        assert shown_indices(read) == [11, 0, 4]


def test_a_folder_of_frames_is_read_in_natural_order(tmp_path):
    for i, frame in enumerate(painted_frames(12)):
        Image.fromarray(frame).save(tmp_path / f"frame_{i}.png")  # as text, frame_10 would come before frame_2
    (tmp_path / "notes.txt").write_text("not a frame")
    assert shown_indices(read_video_frames(tmp_path, [2, 9, 10, 11])) == [2, 9, 10, 11]


def test_an_open_torchcodec_decoder_is_a_video(videos):
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=Exception)
    video = decoders.VideoDecoder(str(videos / "h264.mp4"))
    assert shown_indices(read_video_frames(video, [7, 30])) == [7, 30]


def test_urls_are_downloaded(videos, monkeypatch):
    asked = []

    def urlopen(request, timeout):
        asked.append(request.full_url)
        return io.BytesIO((videos / "h264.mp4").read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert shown_indices(read_video_frames("https://example.org/clip.mp4", [1, 2])) == [1, 2]
    assert asked == ["https://example.org/clip.mp4"]


def test_a_failed_download_names_the_url(monkeypatch):
    def urlopen(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 404, "Not Found", {}, None)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(VideoReadError, match=r"'https://example.org/clip.mp4': the download failed \(.*Not Found"):
        read_video_frames("https://example.org/clip.mp4", [0])


def unreadable(folder, kind):
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("This is not a video.\n" * 50)
    elif kind == "audio":
        write_audio(path)
    elif kind == "folder":
        path.mkdir()
    elif kind.startswith("cut off"):
        whole = write_video(folder / kind.split()[-1], painted_frames(), **VIDEO_KINDS[kind.split()[-1]])
        path = whole.with_stem("cut_off")
        path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    elif kind == "damaged":
        rng = np.random.default_rng(0)
        whole = write_video(path, rng.integers(0, 256, (20, HEIGHT, WIDTH, 3)).astype(np.uint8))
        data = bytearray(whole.read_bytes())
        middle = (data.find(b"mdat") + len(data)) // 2
        data[middle : middle + 3000] = bytes(3000)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "No such file"),
        ("empty", r"the file is empty \(0 bytes\)"),
        ("text", "cannot open it"),
        ("audio", "no video stream"),
        ("folder", r"it holds no frames \(.bmp, .jpeg"),
        ("cut off h264.mp4", "the file is cut off: it has [0-9]+ bytes, but at least [0-9]+ are needed"),
        ("cut off vp9.webm", "the file is cut off"),
        ("cut off mpeg4.avi", "the file is cut off"),
        ("damaged", "cannot be decoded"),
    ],
)
def test_an_unreadable_video_is_one_clear_error_with_its_path(tmp_path, decoder, kind, reason, capfd):
    path = unreadable(tmp_path, kind)
    capfd.readouterr()
    with pytest.raises(VideoReadError, match=f"^Cannot read video .*{reason}") as caught:
        read_video_frames(path, lambda n, fps: sample_frame_indices(n, 8), decoder)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if decoder == "auto":
        assert capfd.readouterr().err == ""


def test_the_error_survives_the_way_out_of_a_worker_process():
    error = VideoReadError("Cannot read video 'a.mp4': gone.", "a.mp4")
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.path) == (str(error), "a.mp4")
    assert str(VideoReadError(str(error))) == str(error)  # as torch's DataLoader does


def test_a_decoder_that_is_not_installed_says_how_to_get_it(videos, monkeypatch):
    monkeypatch.setattr(decoding_clipfsar, "load_decoder", lambda name: (None, f"No module named {name!r}"))
    with pytest.raises(ImportError, match=r"decoder='torchcodec' cannot be imported .*pip install torchcodec"):
        read_video_frames(videos / "h264.mp4", [0], decoder="torchcodec")
    with pytest.raises(ImportError, match=r"No video decoder can be imported.*pip install av"):
        read_video_frames(videos / "h264.mp4", [0])


@pytest.mark.parametrize("name", VIDEO_KINDS)
def test_pyav_reads_the_same_frames_whether_a_videos_packets_were_kept_or_not(videos, monkeypatch, name):
    indices = [0, 2, 13, 30, 39]
    kept = read_video_frames(videos / name, indices, "av")
    monkeypatch.setattr(decoding_clipfsar, "KEPT_PACKET_BYTES", 0)
    reader = decoding_clipfsar.PyAVReader(str(videos / name))
    assert reader._kept is None
    assert torch.equal(kept, read_video_frames(videos / name, indices, "av"))
    for index, frame in zip(indices, kept, strict=True):  # a reader may be asked again
        assert np.array_equal(next(reader.read([index])), frame.numpy())


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "float32, but uint8 from 0 to 255 is needed"),
        (np.zeros((4, 8, 8), np.uint8), r"shape \(4, 8, 8\), but \(T, H, W, 3\) is needed"),
        (np.zeros((0, 8, 8, 3), np.uint8), "it holds no frames"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "differ in size"),
        (17, "from a value of type int: give a path"),
        ({"path": None, "bytes": None}, "neither 'path' nor 'bytes'"),
    ],
)
def test_what_is_not_a_video_is_refused(video, message):
    with pytest.raises(VideoReadError, match=message):
        read_video_frames(video, lambda n, fps: [0, n - 1])


def test_frames_beyond_the_end_are_refused(videos, decoder):
    with pytest.raises(ValueError, match=r"Frame 40 of video .* it has 40 frames"):
        read_video_frames(videos / "h264.mp4", [0, 40], decoder)


# --- pixel values


@pytest.mark.parametrize("name", ["landscape", "portrait", "square"])
def test_official_preprocessing_equals_the_official_program(processor, name):
    golden = load_file(GOLDEN / "processing.safetensors")
    video, expected = golden[f"{name}.video_uint8"], golden[f"{name}.pixel_values"]
    processor.preprocessing, processor.num_frames = "official", len(video)
    torch.testing.assert_close(processor.process_videos([video])[0], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (100, 60), (28, 50), (20, 24)])
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 28}},
        {"size": {"height": 28, "width": 28}, "do_center_crop": False, "resample": 2},
        {"size": {"shortest_edge": 20}},  # smaller than the crop: zeros around it
        {"size": {"shortest_edge": 28}, "do_normalize": False},
    ],
    ids=str,
)
def test_clip_preprocessing_equals_clips_image_processor(processor, settings, height, width):
    settings = {"crop_size": {"height": 28, "width": 28}, **settings}
    processor.image_processor = CLIPImageProcessor(**settings)
    rng = np.random.default_rng(0)
    # smooth and noisy parts, as in photographs
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize((width, height), 3)
    video = np.stack([np.asarray(coarse)] * 4)
    video[:, : height // 2] = rng.integers(0, 256, video[:, : height // 2].shape)
    pixels = processor.process_videos([video])[0]
    expected = processor.image_processor([Image.fromarray(frame) for frame in video], return_tensors="pt")
    std = torch.tensor(processor.image_processor.image_std).view(3, 1, 1)
    std = std if settings.get("do_normalize", True) else torch.ones(3, 1, 1)
    difference = (pixels - expected["pixel_values"]).abs() * std * 255
    assert difference.max() < 2.001
    # (PIL resizes tall frames vertically first, torch never does: the rounding in between differs)
    assert difference.mean() < (0.2 if height > width else 0.05)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(28, 35), (80, 100)])
def test_resizing_through_float_as_on_a_gpu_is_that_of_bytes_up_to_rounding(mode, size):
    frames = random_frames(3, 40, 50).permute(0, 3, 1, 2)
    ways = (pixels_clipfsar._resize_through_float, pixels_clipfsar._resize_uint8)
    through_float, bytewise = (way(frames, *size, mode).int() for way in ways)
    difference = through_float - bytewise
    assert difference.abs().max() <= 1
    assert difference.abs().float().mean() < 0.02


def test_sampled_videos_move_with_their_seeds(processor):
    sampled = processor.read_videos([random_frames(6), random_frames(5, 40, 60)], training=True)
    moved = sampled.to(torch.device("meta"), non_blocking=True)
    assert [frames.device.type for frames in moved.frames] == ["meta", "meta"]
    assert (moved.seeds, moved.augmentation, len(moved)) == (sampled.seeds, sampled.augmentation, 2)
    assert processor.read_videos([random_frames(6)]).seeds == [None]


def test_training_crops_all_frames_of_a_video_alike_and_videos_apart(processor):
    processor.preprocessing = "official"
    processor.image_processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    video = random_frames(1, 32, 32).expand(4, -1, -1, -1)  # 32 x 32 is not resized, all frames are the same
    pixels = processor.process_videos([video] * 60, training=True, generator=torch.Generator().manual_seed(0))
    assert (pixels == pixels[:, :1]).all()
    std = torch.tensor(processor.image_processor.image_std).view(3, 1, 1)
    mean = torch.tensor(processor.image_processor.image_mean).view(3, 1, 1)
    corner = ((pixels[:, 0] * std + mean) * 255).round()[:, :, 0, 0]  # the pixel at the crop's origin, (60, 3)
    whole = video[0].permute(2, 0, 1).float()
    offsets = {(y, x) for color in corner for y in range(5) for x in range(5) if torch.equal(whole[:, y, x], color)}
    assert {y for y, _ in offsets} == {x for _, x in offsets} == set(range(5))
    assert any(x != y for y, x in offsets)


def test_training_crops_along_the_longer_side_with_clip_preprocessing(processor):
    video = random_frames(1, 28, 60).expand(4, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    pixels = processor.process_videos([video] * 20, training=True, generator=generator)
    assert pixels.shape == (20, 4, 3, 28, 28)
    assert len(torch.unique(pixels, dim=0)) > 10
    assert (pixels == pixels[:, :1]).all()


def test_the_same_seed_gives_the_same_pixels(processor, videos):
    def run(seed, **settings):
        generator = torch.Generator().manual_seed(seed)
        paths = [videos / "h264.mp4", videos / "vp9.webm"]
        return processor.process_videos(paths, generator=generator, **settings)

    assert torch.equal(run(1, training=True), run(1, training=True))
    assert not torch.equal(run(1, training=True), run(2, training=True))
    assert not torch.equal(run(1, frame_sampling="segment_random"), run(2, frame_sampling="segment_random"))
    assert torch.equal(run(1), run(2))


def test_a_draw_does_not_depend_on_the_videos_before_it(processor):
    frames = random_frames(50)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    after_long = processor.process_videos([random_frames(90), frames], training=True, generator=generators[0])
    after_short = processor.process_videos([random_frames(2), frames], training=True, generator=generators[1])
    assert torch.equal(after_long[1], after_short[1])


def test_interval_sampling_needs_the_rate_of_frames_in_memory(processor):
    processor.frame_sampling = "interval"
    with pytest.raises(ValueError, match="pass fps="):
        processor.process_videos([random_frames(50)])
    assert processor.process_videos([random_frames(50)], fps=12.0).shape == (1, 4, 3, 28, 28)


def test_videos_that_come_out_in_different_sizes_are_refused(processor):
    processor.image_processor = CLIPImageProcessor(size={"shortest_edge": 28}, do_center_crop=False)
    with pytest.raises(ValueError, match=r"different sizes.*do_center_crop"):
        processor.process_videos([random_frames(4, 40, 60), random_frames(4, 40, 40)])


# --- augmentation of query videos


def test_hue_shifts_go_around_the_colour_circle():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    shifted = [pixels_clipfsar._shift_hue(red, turns).flatten().tolist() for turns in (0.0, 1 / 3, 2 / 3, -1 / 3)]
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(shifted, expected, atol=1e-5)
    pixels = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pixels_clipfsar._shift_hue(pixels, 0.0), pixels)
    gray = pixels.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(pixels_clipfsar._shift_hue(gray, 0.2), gray)


def test_kinetics_augmentation_treats_frames_alike_and_stays_in_range():
    frame = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    pixels = frame.expand(4, -1, -1, -1)
    for seed in range(20):
        augmented = augment_like_kinetics(pixels, torch.Generator().manual_seed(seed))
        assert augmented.shape == pixels.shape
        assert (augmented == augmented[:1]).all()
        assert augmented.min() >= 0
        assert augmented.max() <= 1


def test_kinetics_augmentation_flips_half_and_grays_three_in_ten():
    pixels = torch.full((1, 3, 2, 2), 0.5)
    pixels[..., 0] = torch.tensor([0.6, 0.5, 0.4]).view(1, 3, 1)
    pixels[..., 1] = torch.tensor([0.3, 0.2, 0.25]).view(1, 3, 1)  # the darker side
    generator = torch.Generator().manual_seed(0)
    results = [augment_like_kinetics(pixels, generator)[0] for _ in range(1000)]
    flipped = sum((result[:, 0, 0].mean() < result[:, 0, 1].mean()).item() for result in results)
    gray = sum((result.amax(0) - result.amin(0)).max().item() < 1e-6 for result in results)
    assert 440 < flipped < 560
    assert 250 < gray < 350


def test_only_query_videos_in_training_are_augmented(processor, monkeypatch):
    calls = []
    monkeypatch.setattr(processing_clipfsar, "augment_like_kinetics", lambda p, generator: calls.append(len(p)) or p)
    episode = {"support_videos": {"a": random_frames(), "b": random_frames()}, "query_videos": [random_frames()]}
    processor(**episode, training=True)
    assert calls == []
    processor.query_augmentation = "kinetics"
    processor(**episode)
    assert calls == []
    processor(**episode, training=True)
    assert calls == [4]


# --- episodes


def test_an_episode_has_a_batch_dimension_and_the_models_input_names(processor):
    support = {"brush_hair": [random_frames(seed=1), random_frames(seed=2)], "run": [random_frames(seed=3)]}
    inputs = processor(support_videos=support, query_videos=[random_frames(seed=i) for i in range(5)])
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "support_pixel_values": (1, 3, 4, 3, 28, 28),
        "support_labels": (1, 3),
        "query_pixel_values": (1, 5, 4, 3, 28, 28),
        "class_input_ids": (1, 2, 19),
        "class_attention_mask": (1, 2, 19),
    }
    assert inputs["support_labels"].tolist() == [[0, 0, 1]]
    assert inputs["support_pixel_values"].dtype == torch.float32
    assert set(inputs) == set(processor.model_input_names)


def test_flat_lists_with_numbers_or_names_give_the_same_as_a_dict(processor):
    clips = [random_frames(seed=i) for i in range(3)]
    by_dict = processor(support_videos={"b": clips[:2], "a": clips[2]})
    for arguments in (
        {"support_labels": [0, 0, 1], "class_names": ["b", "a"]},
        {"support_labels": torch.tensor([0, 0, 1]), "class_names": ["b", "a"]},
        {"support_labels": ["b", "b", "a"]},
        {"support_labels": ["b", "b", "a"], "class_names": ["b", "a"]},
    ):
        flat = processor(support_videos=clips, **arguments)
        assert set(flat) == set(by_dict)
        assert all(torch.equal(flat[name], by_dict[name]) for name in by_dict)


def test_class_names_beside_a_dict_set_the_order(processor):
    inputs = processor({"a": random_frames(seed=0), "b": random_frames(seed=1)}, class_names=["b", "a"])
    expected = processor({"b": random_frames(seed=1), "a": random_frames(seed=0)})
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_parts_of_an_episode_can_be_made_alone(processor):
    assert set(processor(class_names=["a"])) == {"class_input_ids", "class_attention_mask"}
    assert set(processor(query_videos=[random_frames()])) == {"query_pixel_values"}
    zero_shot = processor(query_videos=[random_frames()], class_names=["a", "b"])
    assert set(zero_shot) == {"query_pixel_values", "class_input_ids", "class_attention_mask"}


def test_a_single_video_is_a_list_of_one(processor, videos):
    path = str(videos / "h264.mp4")
    for video in (path, Path(path), random_frames(), random_frames().numpy(), [Image.new("RGB", (30, 30))] * 5):
        assert processor(query_videos=video)["query_pixel_values"].shape[1] == 1
    inputs = processor(support_videos={"a": path, "b": {"path": path, "bytes": None}})
    assert inputs["support_labels"].tolist() == [[0, 1]]


def test_query_labels_become_labels(processor):
    inputs = processor(query_videos=[random_frames(), random_frames()], query_labels=["b", "a"], class_names=["a", "b"])
    assert inputs["labels"].tolist() == [[1, 0]]


def test_numpy_tensors_can_be_asked_for(processor):
    inputs = processor(query_videos=[random_frames()], class_names=["a"], return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in inputs.values())


CLIPS = [np.zeros((4, 30, 30, 3), np.uint8)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Nothing to process"),
        ({"support_videos": {"a": CLIPS, "b": []}}, "Class 'b' has no support videos"),
        ({"support_videos": CLIPS, "support_labels": [0, 0], "class_names": ["a", "b"]}, "Class 'b' has no support"),
        ({"support_videos": CLIPS, "support_labels": [0, 2]}, "Class 1 has no support videos"),
        ({"support_videos": [], "support_labels": []}, "support_videos is empty"),
        ({"support_videos": CLIPS}, "so support_labels are needed"),
        ({"support_videos": CLIPS, "support_labels": [0]}, "support_labels has 1 entries, but support_videos has 2"),
        (
            {"support_videos": CLIPS, "support_labels": [0, 1], "class_names": ["a"]},
            "holds 1, but labels go from 0 to 0",
        ),
        ({"support_videos": CLIPS, "support_labels": [0, -1], "class_names": ["a"]}, "holds -1, but labels go from 0"),
        ({"support_videos": CLIPS, "support_labels": [0, 0.5], "class_names": ["a"]}, "holds 0.5: labels are whole"),
        ({"support_videos": CLIPS, "support_labels": ["a", "c"], "class_names": ["a", "b"]}, "holds 'c', which is not"),
        ({"support_videos": {"a": CLIPS}, "support_labels": [0, 0]}, "support_labels must be left out"),
        ({"support_videos": {"a": CLIPS}, "class_names": ["b"]}, "are not the classes of support_videos"),
        ({"support_labels": [0], "class_names": ["a"]}, "support_labels are given without support_videos"),
        ({"query_videos": {"a": CLIPS}}, "query_videos must be a list of videos, not a dict"),
        ({"query_videos": []}, "There are no videos to process"),
        ({"query_videos": 5}, "A list of videos is needed, got int"),
        ({"query_videos": CLIPS, "query_labels": [0], "class_names": ["a"]}, "query_labels has 1 entries"),
        ({"class_names": ["a", "a"]}, "Class name 'a' appears twice"),
        ({"class_names": "boxing"}, "got the string 'boxing'"),
        ({"class_names": []}, "class_names is empty"),
        ({"class_names": ["a", " "]}, "must be strings that are not blank"),
        ({"class_names": ["a"], "return_tensors": "tf"}, "return_tensors='tf' is not supported"),
        ({"query_videos": CLIPS, "frame_sampling": "dense"}, "frame_sampling='dense' is not known"),
    ],
)
def test_inconsistent_episodes_are_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


# --- class names


def test_prompts_hold_class_names_with_spaces(processor):
    tokens = processor.tokenize_classes(["brush_hair", "run"])
    expected = processor.tokenizer(["a photo of brush hair", "a photo of run"], padding=True)
    assert tokens["input_ids"].tolist() == expected["input_ids"]
    assert tokens["attention_mask"].tolist() == expected["attention_mask"]
    assert tokens["attention_mask"].sum(1).tolist() == [19, 13]


def test_long_class_names_are_cut_at_the_tokenizers_limit(processor):
    assert processor.tokenize_classes(["x" * 100])["input_ids"].shape == (1, 30)


def test_classes_of_several_episodes_may_share_names(processor):
    assert len(processor.tokenize_classes(["a", "b", "a"])["input_ids"]) == 3


@pytest.mark.parametrize("names", [("Run", "run"), ("brush_hair", "brush hair"), ("x" * 40 + "a", "x" * 40 + "b")])
def test_two_names_of_one_text_are_named(processor, names):
    message = f"Class names '{names[0]}' and '{names[1]}' become the same text for this model"
    with pytest.raises(ValueError, match=message):
        processor.tokenize_classes(["jump", *names])
    with pytest.raises(ValueError, match=message):
        processor(query_videos=CLIPS, class_names=["jump", *names])


def test_names_of_one_text_may_stand_in_different_episodes(processor):
    names = ["Run", "jump", "run", "jump"]
    assert len(processor.tokenize_classes(names, n_way=2)["input_ids"]) == 4
    with pytest.raises(ValueError, match="'Run' and 'run'"):
        processor.tokenize_classes(["a", "b", "Run", "run"], n_way=2)


# --- after the model


def test_logits_become_labels_and_scores(processor):
    logits = torch.tensor([[[-1.0, -3.0, -2.0], [-5.0, -4.0, -9.0]]])
    results = processor.post_process_video_classification({"logits": logits}, ["a", "b", "c"], top_k=2)
    assert [[entry["label"] for entry in result] for result in results] == [["a", "c"], ["b", "a"]]
    assert results[0][0]["score"] == pytest.approx(0.6652, abs=1e-4)
    every = processor.post_process_video_classification(logits, ["a", "b", "c"])
    assert sum(entry["score"] for entry in every[0]) == pytest.approx(1.0)


def test_logits_that_do_not_fit_are_refused(processor):
    with pytest.raises(ValueError, match="logits have 3 classes, but class_names has 2"):
        processor.post_process_video_classification(torch.zeros(1, 2, 3), ["a", "b"])
    with pytest.raises(ValueError, match=r"but one episode, \(1, Q, N\)"):
        processor.post_process_video_classification(torch.zeros(2, 2, 3), ["a", "b", "c"])


# --- settings, saving, loading


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 must be"),
        ({"prompt_template": "a photo"}, "has no place for the class name"),
        ({"frame_sampling": "dense"}, "frame_sampling='dense' is not known"),
        ({"preprocessing": "none"}, "preprocessing='none' is not known"),
        ({"decoder": "opencv"}, "decoder='opencv' is not known: choose one of 'auto', 'decord'"),
        ({"query_augmentation": "flip"}, "query_augmentation='flip' is not known"),
        ({"target_fps": 0}, "target_fps=0 must be greater than 0"),
    ],
)
def test_bad_settings_are_refused(processor, settings, message):
    with pytest.raises(ValueError, match=message):
        CLIPFSARProcessor(processor.image_processor, processor.tokenizer, **settings)


def test_a_plain_clip_folder_gives_default_settings(clip_folder):
    processor = CLIPFSARProcessor.from_pretrained(clip_folder)
    assert isinstance(processor.tokenizer, CLIPTokenizer)
    assert dict(processor.image_processor.crop_size) == {"height": 28, "width": 28}
    assert (processor.num_frames, processor.prompt_template, processor.preprocessing) == (8, "a photo of {}", "clip")


def test_a_clip_folder_with_a_processor_config_of_its_own_works_too(clip_folder, tmp_path):
    from transformers import CLIPProcessor

    CLIPProcessor.from_pretrained(clip_folder).save_pretrained(tmp_path)
    processor = CLIPFSARProcessor.from_pretrained(tmp_path, num_frames=3)
    assert processor.num_frames == 3
    assert dict(processor.image_processor.crop_size) == {"height": 28, "width": 28}


def test_every_setting_is_saved_and_can_be_overridden_when_loading(clip_folder, tmp_path):
    settings = {
        "num_frames": 5,
        "prompt_template": "a clip of {}.",
        "frame_sampling": "interval",
        "sampling_rate": 4,
        "target_fps": 6,
        "preprocessing": "official",
        "decoder": "av",
        "num_threads": 2,
        "seconds_per_video": 30,
        "query_augmentation": "kinetics",
        "prompt_length": 20,
        "class_texts": {"boxing": ["someone boxes", "a fight of {}"]},
    }
    CLIPFSARProcessor.from_pretrained(clip_folder, **settings).save_pretrained(tmp_path)
    loaded = CLIPFSARProcessor.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in settings} == settings
    assert set(settings) == set(processing_clipfsar._SETTINGS)
    changed = CLIPFSARProcessor.from_pretrained(tmp_path, num_frames=6)
    assert (changed.num_frames, changed.decoder) == (6, "av")
    assert "num_frames" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
