"""Which frames a file shows, and reading those: every frame here carries its number, so identity is checked.

`CLIPFSAR_RANDOM_VIDEOS=300` makes the test of random files read so many. `CLIPFSAR_ODD_VIDEOS` names a folder of odd
files with a `manifest.json` of what a player shows of each.
"""

import io
import json
import os
import pickle
import random
import struct
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_data import tiny_model_and_processor, write_video

import decoding_clipfsar
import reader_process_clipfsar
import video_clipfsar
from clipfsar.data.frame_store import FrameStoreSettings, read_split
from clipfsar.inference.windows import encode_windows
from container_clipfsar import VideoTimes, turns_of_matrix
from processing_clipfsar import VideoReadError, read_video_frames, stream_video_frames
from video_clipfsar import frames_differ_from_0_1

NUM_RANDOM = int(os.environ.get("CLIPFSAR_RANDOM_VIDEOS", 25))
WIDTH, HEIGHT, NUM_BLOCKS = 160, 96, 8
MATRICES = {  # of the display matrix: a, b, c, d; and what it does to a picture (H, W, 3)
    "as it is": ((1, 0, 0, 1), lambda image: image),
    "90 degrees": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "180 degrees": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "270 degrees": ((0, -1, 1, 0), lambda image: np.rot90(image)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    "transposed the other way": ((0, -1, -1, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
    "no matrix at all": ((0, 0, 0, 0), lambda image: image),
}


def numbered(number):
    """A picture of blocks, white where the number has a bit; the upper left corner is red."""
    image = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    for bit in range(NUM_BLOCKS):
        image[HEIGHT // 4 :, bit * WIDTH // NUM_BLOCKS : (bit + 1) * WIDTH // NUM_BLOCKS] = 255 * (number >> bit & 1)
    image[: HEIGHT // 4, : WIDTH // 2] = 230, 30, 30
    return image


def number_of(image):
    row = np.asarray(image)[HEIGHT * 5 // 8].mean(-1)
    centres = [(2 * bit + 1) * WIDTH // (2 * NUM_BLOCKS) for bit in range(NUM_BLOCKS)]
    return sum(int(row[centre] > 127) << bit for bit, centre in enumerate(centres))


def numbers_of(frames):
    return [number_of(frame) for frame in frames]


def write(path, num_frames=40, codec="libx264", rate=25, options=None, gop_size=12, times=None, **container_options):
    """`times`: of the frames, in 1/1000 s, where they are not those of the rate."""
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=options or {})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        stream.codec_context.gop_size = gop_size
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def patch(path, box, offset, data):
    """Overwrites bytes of an mp4 at an offset from the name of a box."""
    content = bytearray(path.read_bytes())
    position = content.index(box) + offset
    content[position : position + len(data)] = data
    path.write_bytes(content)


def set_matrix(path, matrix):
    a, b, c, d = (value * 65536 for value in matrix)
    patch(path, b"tkhd", 44, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))


def trim(path, hidden_at_start, num_kept, rate):
    """Changes the edit list so that it hides frames at both ends (ISO/IEC 14496-12, 8.6.6)."""
    content = path.read_bytes()
    position = content.index(b"elst")
    (start,) = struct.unpack(">i", content[position + 16 : position + 20])
    (timescale,) = struct.unpack(">I", content[content.index(b"mdhd") + 16 : content.index(b"mdhd") + 20])
    start += round(hidden_at_start * timescale / rate)
    patch(path, b"elst", 12, struct.pack(">ii", round(num_kept * 1000 / rate), start))


def plain_decode(path):
    """What decoding the whole file one frame after the other gives, not turned."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.best("video"))]


@pytest.fixture(params=["auto", "av", "decord", "torchcodec"])
def decoder(request):
    if request.param != "auto":
        pytest.importorskip(request.param, exc_type=Exception)
    return request.param


# --- every decoder gives the frames of a plain decode, or refuses -----------------------------------------------------

CODECS = {  # and the containers that take them
    "libx264": ("mp4", "mkv", "mov", "ts", "avi", "flv"),
    "libx265": ("mp4", "mkv"),
    "libvpx": ("webm",),
    "libvpx-vp9": ("webm", "mp4"),
    "mpeg4": ("mp4", "avi", "mkv"),
    "mpeg2video": ("mpg", "ts", "mkv"),
    "mjpeg": ("avi", "mov"),
}


def random_file(folder, seed):
    """A file, and what is done to its pictures."""
    rng = random.Random(seed)
    codec = rng.choice([name for name in CODECS if name in av.codecs_available])
    suffix = rng.choice(CODECS[codec])
    num_frames, rate = rng.randint(2, 70), rng.choice([10, 24, 25, Fraction(30000, 1001), 30, 50])
    if codec == "mpeg2video":
        rate = rng.choice([24, 25, 30])
    gop_size, num_b_frames, is_open = rng.choice([5, 12, 30, 250]), rng.choice([0, 2, 3]), rng.random() < 0.5
    options = {
        "libx264": {"preset": "veryfast", "x264-params": f"open-gop={int(is_open)}:bframes={num_b_frames}"},
        "libx265": {
            "preset": "ultrafast",
            "x265-params": f"open-gop={int(is_open)}:bframes={num_b_frames}:log-level=none:pools=1:rc-lookahead=5",
        },
        "libvpx": {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "10"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "10"},
        "mpeg4": {"qmin": "1", "qmax": "3", "bf": str(num_b_frames)},
        "mpeg2video": {"qmin": "1", "qmax": "3", "bf": str(num_b_frames)},
    }.get(codec, {})
    times = None
    if suffix in ("mp4", "mkv", "webm") and not codec.startswith("mpeg") and rng.random() < 0.3:
        times = np.cumsum([0, *(rng.choice([20, 40, 300]) for _ in range(num_frames - 1))]).tolist()
    path = write(folder / f"{seed}.{suffix}", num_frames, codec, rate, options, gop_size, times)
    name = "as it is"
    if suffix in ("mp4", "mov"):
        name = rng.choice([*MATRICES, *["as it is"] * 8])
        set_matrix(path, MATRICES[name][0])
        if times is None and num_frames > 12 and rng.random() < 0.4 and b"elst" in path.read_bytes():
            hidden = rng.choice([0, 1, 5, num_frames // 2])
            trim(path, hidden, rng.randint(1, num_frames - hidden), rate)
    return path, MATRICES[name][1]


def test_every_decoder_gives_the_frames_of_a_plain_decode_or_refuses(tmp_path, request):
    decoders = ["av", *(name for name in ("decord", "torchcodec") if decoding_clipfsar.load_decoder(name)[0])]
    num_read, wrong = dict.fromkeys(decoders, 0), []
    for seed in range(NUM_RANDOM):
        path, turn = random_file(tmp_path, seed)
        frames = [turn(frame) for frame in plain_decode(path)]
        rng = random.Random(seed)
        num_chosen = min(len(frames), 8)
        choices = [sorted(rng.sample(range(len(frames)), num_chosen)) for _ in range(3)]
        choices += [[0], [len(frames) - 1], list(range(len(frames)))]
        for name in decoders:
            for choice in choices:
                told = []
                try:
                    read = read_video_frames(path, lambda n, fps, told=told, c=choice: told.append(n) or c, name)
                except VideoReadError:
                    if name == "av":
                        raise
                    break
                except ValueError:
                    wrong.append((path.name, name, told, len(frames)))
                    break
                num_read[name] += 1
                expected = np.stack([frames[i] for i in choice]).astype(int)
                # equal to the bit by PyAV; other decoders convert colours by other code
                is_right = told == [len(frames)] and read.shape == expected.shape
                is_right = is_right and np.abs(read.numpy() - expected).mean((1, 2, 3)).max() <= (
                    0 if name == "av" else 3
                )
                if not is_right:
                    wrong.append((path.name, name, told, choice))
        path.unlink()
    assert not wrong, wrong
    assert num_read["av"] == 6 * NUM_RANDOM
    assert min(num_read.values()) >= NUM_RANDOM  # refusing everything would be no art


@pytest.mark.skipif("CLIPFSAR_ODD_VIDEOS" not in os.environ, reason="needs a folder of odd videos")
def test_odd_files_give_what_a_player_shows(decoder):
    folder = Path(os.environ["CLIPFSAR_ODD_VIDEOS"])
    for name, shown in json.loads((folder / "manifest.json").read_text()).items():
        wanted = list(range(0, shown["num_frames"], 7))
        try:
            frames = read_video_frames(folder / name, wanted, decoder, seconds_per_video=60)
        except VideoReadError:
            assert decoder in ("decord", "torchcodec")
            continue
        assert frames.shape[1:] == (shown["height"], shown["width"], 3), name
        if "numbers" in shown:
            rows = frames[:, shown["height"] * 3 // 8].float().mean(-1)
            bits = rows[:, [(2 * bit + 1) * shown["width"] // 20 for bit in range(10)]] > 127
            numbers = (bits.long() << torch.arange(10)).sum(1).tolist()
            assert numbers == [shown["numbers"][i] for i in wanted], name


# --- what a file shows ------------------------------------------------------------------------------------------------


def test_leading_pictures_of_an_open_group_are_right_after_a_seek(tmp_path):
    path = write(tmp_path / "open.mp4", 60, options={"x264-params": "open-gop=1:bframes=3"}, gop_size=15)
    assert decoding_clipfsar.PyAVReader(str(path)).order.has_leading_pictures
    for number in range(60):
        assert numbers_of(read_video_frames(path, [number])) == [number]


def test_frames_between_key_frames_that_nobody_wants_are_not_decoded(tmp_path):
    path = write(tmp_path / "many.mp4", 60, gop_size=5, options={"x264-params": "bframes=0:scenecut=0"})
    reader, sent = decoding_clipfsar.PyAVReader(str(path)), []
    packets_from = reader._packets_from
    reader._packets_from = lambda entry: (sent.append(packet.pts) or packet for packet in packets_from(entry))
    assert numbers_of(reader.read([7, 8, 51])) == [7, 8, 51]
    assert sent == [5, 6, 7, 8, 50, 51]


@pytest.mark.parametrize(("hidden", "kept"), [(0, 30), (10, 20), (13, 1), (5, 35)])
def test_an_edit_list_hides_frames_at_both_ends(tmp_path, hidden, kept):
    path = write(tmp_path / "cut.mp4")
    trim(path, hidden, kept, 25)
    told = []
    frames = read_video_frames(path, lambda n, fps: told.append((n, fps)) or range(n))
    assert told == [(kept, 25.0)]
    assert numbers_of(frames) == list(range(hidden, hidden + kept))


def test_frames_after_a_gradual_refresh_are_those_that_come_out(tmp_path):
    # each "key frame" refreshes a part of the picture; cut off before the second, nothing is whole for a while
    options = {"x264-params": "intra-refresh=1:keyint=15:bframes=0:scenecut=0"}
    whole, path = write(tmp_path / "whole.mkv", 60, options=options, gop_size=15), tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size and packet.pts >= 600:
                packet.stream = stream
                target.mux(packet)
    for file in (whole, path):
        expected = plain_decode(file)
        assert np.array_equal(read_video_frames(file, lambda n, fps: range(n)).numpy(), np.stack(expected))
        assert np.array_equal(read_video_frames(file, [30])[0].numpy(), expected[30])


def test_b_frames_whose_order_the_container_does_not_know_are_right(tmp_path):
    """MPEG-4 copied from avi into mp4 is given the times of decoding."""
    options = {"bf": "2", "qmin": "1", "qmax": "3"}
    whole, path = write(tmp_path / "whole.mp4", 30, "mpeg4", options=options), tmp_path / "copied.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.pts = packet.dts = number * 512
            packet.stream = stream
            target.mux(packet)
    assert numbers_of(read_video_frames(path, [3, 9, 10, 11, 29])) == [3, 9, 10, 11, 29]


def test_av1_is_read_from_any_key_frame(tmp_path):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV writes no AV1")
    path = write(tmp_path / "a.mkv", 40, "libsvtav1", gop_size=10)
    for number in (0, 3, 17, 39):
        assert numbers_of(read_video_frames(path, [number])) == [number]


def hidden_frame_of_vp8(data):
    """The packet again as one that is not shown."""
    return bytes([data[0] & ~0x10]) + data[1:]


def test_hidden_frames_of_vp8_are_not_counted(tmp_path):
    whole, path = write(tmp_path / "whole.webm", 20, "libvpx"), tmp_path / "hidden.webm"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                data = bytes(packet)
                new = av.Packet(hidden_frame_of_vp8(data) if packet.pts in (200, 440) else data)
                new.pts, new.dts, new.time_base, new.stream = packet.pts, packet.dts, packet.time_base, stream
                new.is_keyframe = packet.is_keyframe
                target.mux(new)
    frames = read_video_frames(path, lambda n, fps: range(n))
    assert numbers_of(frames) == [number for number in range(20) if number not in (5, 11)]


@pytest.mark.parametrize("name", MATRICES)
def test_pictures_are_turned_and_mirrored_as_the_file_asks(tmp_path, name):
    matrix, turn = MATRICES[name]
    path = write(tmp_path / "turned.mp4", 4)
    expected = [turn(frame) for frame in plain_decode(path)]
    set_matrix(path, matrix)
    assert np.array_equal(read_video_frames(path, range(4)).numpy(), np.stack(expected))
    streamed = [frame.numpy() for frame in stream_video_frames(path, range(4), seconds_per_video=60)]
    assert np.array_equal(np.stack(streamed), np.stack(expected))


def test_a_matrix_of_another_length_is_ignored():
    assert turns_of_matrix(b"\0" * 35) == turns_of_matrix(None) == (False, False, False)


@pytest.mark.parametrize("orientation", range(10))
def test_images_are_turned_as_their_exif_data_ask_for(tmp_path, orientation):
    turns = {3: 2, 6: -1, 8: 1}
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(numbered(7))
    for number in range(2):
        picture.save(tmp_path / f"{number}.png", exif=exif)
    expected = numbered(7)
    if orientation in (2, 4, 5, 7):
        expected = np.fliplr(expected)
        turns = {4: 2, 5: 1, 7: -1}
    expected = np.rot90(expected, turns.get(orientation, 0))
    images = [Image.open(path) for path in sorted(tmp_path.iterdir())]
    for video in (tmp_path, images):
        assert np.array_equal(read_video_frames(video, [1])[0].numpy(), expected)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_images_of_16_bits_are_read_as_the_same_file_is_by_ffmpeg(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(20_000, 30_000, (16, 24)).astype(np.uint16)
    (tmp_path / "clip").mkdir()
    for number in range(2):
        Image.fromarray(pixels).save(tmp_path / "clip" / f"{number}.{suffix}")
    expected = torch.from_numpy(np.repeat((pixels >> 8).astype(np.uint8)[None, :, :, None], 3, axis=-1))
    assert torch.equal(read_video_frames(tmp_path / "clip", [0]), expected)
    assert torch.equal(read_video_frames([Image.fromarray(pixels)] * 2, [1]), expected)
    if suffix == "png":
        by_ffmpeg = read_video_frames(tmp_path / "clip" / "0.png", [0])
        torch.testing.assert_close(by_ffmpeg.int(), expected.int(), atol=1, rtol=0)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_images_of_numbers_of_32_bits_are_refused(tmp_path, dtype):
    image = Image.fromarray(np.full((16, 24), 700, dtype))
    image.save(tmp_path / "0.tiff")
    for video in ([image] * 2, tmp_path):
        with pytest.raises(VideoReadError, match=r"its pixels are numbers of 32 bits .* 8 or 16 bits are needed"):
            read_video_frames(video, [0])


def test_a_film_beside_a_cover_picture_is_the_video(tmp_path):
    film, path = write(tmp_path / "film.mp4", 10), tmp_path / "both.mkv"
    with av.open(str(film)) as source, av.open(str(path), "w") as target:
        still = target.add_stream("mjpeg", rate=1)
        still.width, still.height, still.pix_fmt = 64, 64, "yuvj420p"
        stream = target.add_stream_from_template(source.streams.video[0])
        target.mux(still.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        target.mux(still.encode())
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert numbers_of(read_video_frames(path, lambda n, fps: range(n))) == list(range(10))


def test_names_that_look_like_addresses_or_patterns_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "plain.mp4", 3)
    for name in ("10:30.mp4", "clip%d.mp4", "a b#ü.mp4"):
        path = path.rename(tmp_path / name)
        assert len(read_video_frames(name, [0, 2])) == 2


# --- time -------------------------------------------------------------------------------------------------------------

SLOW = [*range(0, 1200, 40), *range(1200, 11200, 400)]  # 30 frames in 1.2 s, then 25 in 10 s


@pytest.fixture(scope="module")
def variable(tmp_path_factory):
    path = tmp_path_factory.mktemp("variable") / "variable.mkv"
    return write(path, len(SLOW), times=SLOW, options={"x264-params": "bframes=0"})


def times_of(path):
    told = []
    read_video_frames(path, lambda n, fps, times: told.append(times) or [0])
    return told[0]


def test_times_of_frames_are_those_of_the_file(variable):
    times = times_of(variable)
    assert times.num_frames == 55
    assert np.allclose(times.seconds, np.array(SLOW) / 1000)
    assert times.duration == pytest.approx(11.2)
    assert times.fps == pytest.approx(55 / 11.2)


def test_a_constant_rate_is_the_containers_to_the_bit(tmp_path):
    for rate in (Fraction(30000, 1001), 25):
        for suffix in ("mp4", "mkv"):
            times = times_of(write(tmp_path / f"constant.{suffix}", 50, rate=rate))
            assert (times.is_constant, times.fps, times.duration) == (True, float(rate), 50 / float(rate))


def test_frames_are_found_by_time():
    times = VideoTimes(4, 4 / 1.3, np.array([0.0, 0.1, 0.2, 1.2]), 1.3)
    assert times.as_constant() == (13, pytest.approx(10.0))
    assert times.frames_at([0, 1, 2, 3, 11, 12, 40]) == [0, 1, 2, 2, 2, 3, 3]
    constant = VideoTimes.at_rate(4, 25.0)
    assert constant.as_constant() == (4, 25.0)
    assert constant.frames_at([3, 1]) == [3, 1]


def test_windows_lie_where_frames_are_shown(variable):
    model, processor = tiny_model_and_processor()
    timeline = encode_windows(model, processor, variable, 2.0, 2.0)
    assert timeline.duration_seconds == pytest.approx(11.2)
    assert timeline.seconds[:, 0].tolist() == pytest.approx([0, 2, 4, 6, 8, 9.2])
    assert timeline.seconds[-1, 1] == pytest.approx(11.2)


def test_interval_sampling_goes_by_time(variable):
    _, processor = tiny_model_and_processor()
    processor.frame_sampling, processor.sampling_rate, processor.target_fps = "interval", 2, 1
    frames = processor.read_videos([variable]).frames[0]
    shown = [SLOW[number] / 1000 for number in numbers_of(frames)]
    assert len(shown) == 4  # two seconds apart
    assert np.diff(shown) == pytest.approx([2.6, 2.6, 2.6], abs=0.45)


# --- files that mean no good ------------------------------------------------------------------------------------------

FAKE_DECORD = """
import ctypes
import numpy

class logging:
    QUIET = 0
    set_level = staticmethod(lambda level: None)

class VideoReader:
    def __init__(self, source, **options):
        if "hang" in str(source):
            ctypes.CDLL(None).sleep(3600)
        if "crash" in str(source):
            ctypes.string_at(0)
    def __len__(self):
        return 40
    def get_batch(self, indices):
        self.shape = (len(indices), 96, 160, 3)
        return self
    def asnumpy(self):
        return numpy.zeros(self.shape, numpy.uint8)
"""


@pytest.fixture
def stuck(tmp_path, monkeypatch):
    """A folder of files, with a decord that is stuck in C at one of them and dies of another."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "decord.py").write_text(FAKE_DECORD)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    reader_process_clipfsar._end_processes()
    for name in ("good", "hang", "crash"):
        write(tmp_path / f"{name}.mp4")
    yield tmp_path
    reader_process_clipfsar._end_processes()


def test_a_decoder_that_is_stuck_is_ended_and_the_next_file_is_read(stuck):
    start = time.monotonic()
    with pytest.raises(VideoReadError, match=r"hang.mp4': timed out after 1 s") as caught:
        read_video_frames(stuck / "hang.mp4", [0], "decord", seconds_per_video=1)
    assert time.monotonic() - start < 5
    assert caught.value.path == str(stuck / "hang.mp4")
    with pytest.raises(VideoReadError, match=r"crash.mp4': the decoder crashed"):
        read_video_frames(stuck / "crash.mp4", [0], "decord", seconds_per_video=20)
    assert read_video_frames(stuck / "good.mp4", [0], "decord", seconds_per_video=20).shape == (1, 96, 160, 3)


def test_preparation_goes_on_after_a_file_that_takes_too_long(stuck):
    paths = [str(stuck / f"{name}.mp4") for name in ("hang", "good")]
    settings = FrameStoreSettings("jpeg", 16, decoder="decord", seconds_per_video=3)
    dataset = Dataset.from_dict({"video": paths, "label": ["a", "b"]})
    read, problems = read_split(dataset, stuck / "work", settings, num_workers=1)
    assert read["label"] == ["b"]
    assert list(problems) == [0]
    assert "timed out after 3 s" in problems[0]


class _Clips(torch.utils.data.Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        try:
            return read_video_frames(self.paths[row], [0], "decord", seconds_per_video=2).shape[1]
        except VideoReadError as error:
            return str(error)


def test_a_worker_of_a_loader_goes_on_after_a_file_that_takes_too_long(stuck):
    read_video_frames(stuck / "good.mp4", [0], "decord", seconds_per_video=20)  # the worker inherits a process in use
    clips = _Clips([str(stuck / f"{name}.mp4") for name in ("good", "hang", "good")])
    loader = torch.utils.data.DataLoader(clips, batch_size=None, num_workers=1)
    first, second, third = loader
    assert (first, third) == (96, 96)
    assert "timed out after 2 s" in second
    read_video_frames(stuck / "good.mp4", [0], "decord", seconds_per_video=20)


def test_a_stream_that_is_left_early_does_not_disturb_the_next(tmp_path):
    path = write(tmp_path / "a.mp4")
    for _ in range(2):
        frames = stream_video_frames(path, range(40), seconds_per_video=20)
        assert number_of(next(frames)) == 0
        frames.close()
    assert numbers_of(read_video_frames(path, [5, 39], seconds_per_video=20)) == [5, 39]
    with pytest.raises(ValueError, match="Frame 40 of video"):
        read_video_frames(path, [40], seconds_per_video=20)


def test_reading_within_a_time_limit_gives_the_same(tmp_path):
    path = write(tmp_path / "a.mp4", rate=Fraction(24000, 1001))
    told = []
    for seconds in (None, 20):
        for video in (path, path.read_bytes()):
            frames = read_video_frames(
                video, lambda n, fps, times: told.append((n, fps, times)) or [3, 3, 30], seconds_per_video=seconds
            )
            assert numbers_of(frames) == [3, 3, 30]
    assert told == [told[0]] * 4


def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoReadError, match="it is not a regular file"):
        read_video_frames(tmp_path / "pipe.mp4", [0])


def test_a_header_that_asks_for_a_thousand_million_frames_is_refused(tmp_path):
    path = write(tmp_path / "many.mp4")
    patch(path, b"stsz", 8, struct.pack(">II", 1, 10**9))
    with pytest.raises(VideoReadError, match="its header states 1000000000 frames, but the file has"):
        read_video_frames(path, [0])


def test_frames_of_absurd_size_are_refused():
    header = b"GIF89a" + struct.pack("<HH", 60000, 60000) + b"\x80\0\0" + bytes(6)
    picture = b"\x2c" + struct.pack("<HHHH", 0, 0, 60000, 60000) + b"\0\x02\x02\x4c\x01\0\x3b"
    with pytest.raises(VideoReadError, match=r"cannot be (decoded|opened)|pixels"):
        read_video_frames(header + picture, [0], seconds_per_video=20)


def test_an_edit_list_of_absurd_length_is_refused(tmp_path):
    path = write(tmp_path / "long.mp4")
    edits = struct.pack(">II", 0, 10**6) + struct.pack(">iii", 10, 0, 65536) * 10**6
    box = struct.pack(">I", len(edits) + 8) + b"elst" + edits
    box = struct.pack(">I", len(box) + 8) + b"edts" + box
    box = struct.pack(">I", len(box) + 8) + b"moov" + box
    path.write_bytes(path.read_bytes() + box)
    with pytest.raises(VideoReadError, match="edit list of 1000000 entries over 40 frames has 40000000 samples"):
        read_video_frames(path, [0])


def test_damaged_bytes_are_never_another_error(tmp_path):
    sources = [
        write(tmp_path / "a.mp4", 12).read_bytes(),
        write(tmp_path / "a.mkv", 12).read_bytes(),
        write(tmp_path / "a.webm", 12, "libvpx").read_bytes(),
        write(tmp_path / "a.avi", 12, "mpeg4").read_bytes(),
        write(tmp_path / "a.mpg", 12, "mpeg2video").read_bytes(),
        write(tmp_path / "a.gif", 12, "gif").read_bytes(),
    ]
    rng, num_refused = random.Random(0), 0
    for case in range(100):
        data = bytearray(sources[case % len(sources)])
        for _ in range(rng.choice([1, 4, 40])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            read_video_frames(bytes(data), lambda n, fps: range(min(n, 20)), seconds_per_video=20)
        except VideoReadError:
            num_refused += 1
    assert 0 < num_refused < 100


def test_a_damaged_frame_spoils_the_frames_made_from_it_and_no_other(tmp_path):
    """FFmpeg marks the damaged frame alone, and guesses what it and the frames after it show."""
    data = write(tmp_path / "a.mp4", 48, gop_size=24, options={"x264-params": "bframes=0"}).read_bytes()
    (tmp_path / "b.mp4").write_bytes(data)
    with av.open(io.BytesIO(data)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    truth, rng, num_marked = read_video_frames(data, range(48)), random.Random(0), 0
    for _ in range(40):
        damaged, number = bytearray(data), rng.randrange(2, 20)
        position, size = packets[number]
        damaged[position + rng.randrange(size // 2, size)] ^= 1 << rng.randrange(8)
        (tmp_path / "b.mp4").write_bytes(damaged)
        with av.open(str(tmp_path / "b.mp4")) as container:
            marked = [place for place, frame in enumerate(container.decode(video=0)) if frame.is_corrupt]
        others = [0, number - 1, 24, 47]
        assert torch.equal(read_video_frames(bytes(damaged), others), truth[others])
        if marked:
            num_marked += 1
            with pytest.raises(VideoReadError, match=r"cannot be decoded: its data are damaged|is damaged"):
                read_video_frames(bytes(damaged), [0, 23])
    assert num_marked > 5


@pytest.mark.parametrize(
    ("frames", "reached"),
    [
        ("K..x..K..", "...xxx..."),
        ("k..K.", "xxx.."),  # what is made from a damaged key frame is guessed too
        ("xx..", "xx.."),  # after a start in the middle, the picture becomes whole by itself
        ("xx.x.", "xx.xx"),
        ("K.k.", "..xx"),
    ],
)
def test_damage_spreads_to_the_next_key_frame_and_that_of_a_start_ends_by_itself(frames, reached):
    """K is a key frame; k and x are damaged."""
    damage = decoding_clipfsar._Damage()
    made = [SimpleNamespace(key_frame=one in "Kk", is_corrupt=one in "kx") for one in frames]
    assert "".join("x" if damage.reaches(frame) else "." for frame in made) == reached


# --- what version 0.1 read otherwise ----------------------------------------------------------------------------------


def test_files_that_version_0_1_read_otherwise_are_known(tmp_path, variable):
    plain = write(tmp_path / "plain.mp4")
    open_groups = write(tmp_path / "open.mp4", options={"x264-params": "open-gop=1:bframes=3"})
    cut, mirrored, turned = (write(tmp_path / f"{name}.mp4") for name in ("cut", "mirrored", "turned"))
    trim(cut, 0, 20, 25)
    set_matrix(mirrored, MATRICES["mirrored"][0])
    set_matrix(turned, MATRICES["90 degrees"][0])
    assert [frames_differ_from_0_1(path) for path in (plain, turned, variable, plain.read_bytes())] == [None] * 4
    assert "open" in frames_differ_from_0_1(open_groups)
    assert "edit list" in frames_differ_from_0_1(cut)
    assert "mirrored" in frames_differ_from_0_1(mirrored)
    assert "rate" in frames_differ_from_0_1(variable, "interval")
    assert frames_differ_from_0_1(np.zeros((3, 8, 8, 3), np.uint8)) is None


def test_whether_0_1_read_other_frames_is_not_asked_of_the_web_and_no_fault_of_ours_is_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(video_clipfsar, "download", None)  # would be called
    assert frames_differ_from_0_1("https://example.org/a.mp4") is None
    assert frames_differ_from_0_1({"path": "hf://buckets/a.mp4", "bytes": None}) is None
    for name, content in {
        "empty.mp4": b"",
        "text.mp4": b"no video at all",
        "zip.mp4": b"PK\x03\x04 but no archive",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert frames_differ_from_0_1(str(tmp_path / name)) is None
    assert frames_differ_from_0_1(str(tmp_path / "missing.mp4")) is None
    (tmp_path / "0.png").write_bytes(b"no image")
    assert frames_differ_from_0_1(str(tmp_path)) is None

    def mistake(*_):
        raise AttributeError("a mistake of the library")

    monkeypatch.setattr(video_clipfsar, "_oddity_for_0_1", mistake)
    write_video(tmp_path / "good.mp4", (0, 0, 250), seed=0)
    with pytest.raises(AttributeError, match="a mistake"):
        frames_differ_from_0_1(str(tmp_path / "good.mp4"))


def test_times_survive_the_way_out_of_a_process():
    times = VideoTimes(2, 1.0, np.array([0.0, 1.5]), 2.0)
    copied = pickle.loads(pickle.dumps(times))
    assert copied.seconds.tolist() == [0.0, 1.5]
