"""Files that announce more than they hold, or hold something else: bounds before work, and one error for all of them.

`CLIPFSAR_FUZZ_SECONDS=300` makes the fuzzer of this file go on for so long; `CLIPFSAR_FUZZ_SEED` begins elsewhere.
"""

import copy
import hashlib
import io
import json
import os
import pathlib
import random
import re
import struct
import threading
import time
import warnings
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_data import tiny_model_and_processor
from transformers import CLIPImageProcessor

import pixels_clipfsar
from clipfsar.data.frame_store import FrameStoreSettings, read_video
from enrolled_clipfsar import _frames_of_strip
from frame_archive_clipfsar import pack_frames
from limits_clipfsar import LIMITS, limit, variable_of
from pixels_clipfsar import crop_frames, resize_and_crop, resize_for_crop
from processing_clipfsar import VideoReadError, read_video_frames
from support_set_clipfsar import EnrolledClass, SupportSet
from support_set_files_clipfsar import Unknowns

FUZZ_SECONDS = float(os.environ.get("CLIPFSAR_FUZZ_SECONDS", 2))
FUZZ_SEED = int(os.environ.get("CLIPFSAR_FUZZ_SEED", 0))


def write_video(path, width=16, height=16, num_frames=4, codec="ffv1"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            image = np.full((height, width, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def image_processor_of_size(size):
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


# --- limits -----------------------------------------------------------------------------------------------------------


def test_every_limit_has_a_variable_that_sets_it(monkeypatch):
    for name, default in LIMITS.items():
        assert limit(name) == default
        monkeypatch.setenv(variable_of(name), "7")
        assert limit(name) == 7


@pytest.mark.parametrize("value", ["0", "-1", "1e6", "", "²", "9" * 30])
def test_a_limit_that_is_none_is_named(value, monkeypatch):
    monkeypatch.setenv("CLIPFSAR_MAX_FRAME_PIXELS", value)
    with pytest.raises(ValueError, match=r"CLIPFSAR_MAX_FRAME_PIXELS=.* must be a whole number from 1"):
        limit("frame_pixels")


@pytest.mark.parametrize("seconds", [None, 20])
def test_frames_of_too_many_pixels_are_refused_with_value_limit_and_remedy(seconds, tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", 64, 48)
    monkeypatch.setenv("CLIPFSAR_MAX_FRAME_PIXELS", "3071")
    message = "64 x 48 have 3072 pixels, more than the limit of 3071 .set CLIPFSAR_MAX_FRAME_PIXELS to change"
    with pytest.raises(VideoReadError, match=message):
        read_video_frames(path, [0], seconds_per_video=seconds)
    monkeypatch.delenv("CLIPFSAR_MAX_FRAME_PIXELS")
    assert read_video_frames(path, [0], seconds_per_video=seconds).shape == (1, 48, 64, 3)


def test_a_clip_of_too_many_bytes_is_refused_before_there_is_room_for_it(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mkv")
    monkeypatch.setenv("CLIPFSAR_MAX_CLIP_BYTES", "2303")
    with pytest.raises(VideoReadError, match="3 frames of 16 x 16 pixels take 2304 bytes, more than the limit of 2303"):
        read_video_frames(path, [0, 1, 2])
    assert read_video_frames(path, [0, 1]).shape == (2, 16, 16, 3)


def test_a_video_of_too_many_frames_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPFSAR_MAX_FRAMES", "3")
    with pytest.raises(VideoReadError, match="it holds 4 frames or more, more than the limit of 3"):
        read_video_frames(write_video(tmp_path / "a.mkv"), [0])


def test_a_file_object_and_an_archive_of_too_many_bytes_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(pack_frames(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), [0], 1, None, {}, "raw"))
    monkeypatch.setenv("CLIPFSAR_MAX_FILE_BYTES", "100")
    with pytest.raises(VideoReadError, match=r"the file has [0-9]+ bytes, more than the limit of 100"):
        read_video_frames(path, [0])
    with pytest.raises(VideoReadError, match="it has 101 bytes or more, more than the limit of 100"):
        read_video_frames(io.BytesIO(path.read_bytes()), [0])


# --- very long frames -------------------------------------------------------------------------------------------------


def test_frames_of_2_by_40000_pixels_cost_little_memory(tmp_path, monkeypatch):
    made, resize = [], pixels_clipfsar._resize_uint8

    def counting(*arguments):
        made.append(resize(*arguments))
        return made[-1]

    monkeypatch.setattr(pixels_clipfsar, "_resize_uint8", counting)
    _, processor = tiny_model_and_processor()
    processor.image_processor = image_processor_of_size(224)
    pixels = processor.process_videos([write_video(tmp_path / "long.mkv", 40000, 2)])
    assert pixels.shape == (1, 4, 3, 224, 224)
    assert sum(frames.numel() for frames in made) < 50e6  # bytes; enlarged as a whole, they took 12 GB


@pytest.mark.parametrize("size", [(40, 700), (700, 40), (3, 3000), (90, 2000), (20, 3000)])
@pytest.mark.parametrize("seed", [None, 3])
def test_very_long_frames_are_cropped_as_if_they_had_been_enlarged_whole(size, seed):
    processor = image_processor_of_size(64)
    noise = torch.randint(0, 256, (2, 3, 1 + size[0] // 8, 1 + size[1] // 8), generator=torch.manual_seed(0)).float()
    frames = torch.nn.functional.interpolate(noise, size=size, mode="bilinear").to(torch.uint8)
    generators = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
    whole = crop_frames(resize_for_crop(frames, processor, "clip"), 64, 64, generators[0])
    cut = resize_and_crop(frames, processor, "clip", generators[1])
    assert cut.shape == whole.shape
    assert (cut.float() - whole.float()).abs().mean() < 1


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (90, 400), (1080, 1920), (8, 64)])
@pytest.mark.parametrize("seed", [None, 3])
def test_ordinary_frames_come_out_as_ever(size, seed):
    processor = image_processor_of_size(32)
    frames = torch.randint(0, 256, (2, 3, *size), generator=torch.manual_seed(0), dtype=torch.uint8)
    generators = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
    whole = crop_frames(resize_for_crop(frames, processor, "clip"), 32, 32, generators[0])
    assert torch.equal(resize_and_crop(frames, processor, "clip", generators[1]), whole)


def test_a_frame_store_says_of_very_long_frames_that_they_do_not_fit(tmp_path):
    path = write_video(tmp_path / "long.mkv", 40000, 2)
    read = read_video((str(path), FrameStoreSettings("jpeg")))
    assert "would become 4480000 x 224, more than 65500 to a side: crop the video" in read.error


# --- frame archives ---------------------------------------------------------------------------------------------------

FRAMES = torch.arange(3 * 4 * 4 * 3, dtype=torch.uint8).view(3, 4, 4, 3)


def members_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def zipped(members, compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


def archive(kind="raw", settings=None, **changes):
    """An archive of `FRAMES` of a video of nine, its description changed; `...` takes a name out."""
    members = members_of(pack_frames(FRAMES, [1, 4, 7], 9, 10.0, settings or {}, kind))
    manifest = json.loads(members["frames.json"]) | changes
    members["frames.json"] = json.dumps({name: value for name, value in manifest.items() if value is not Ellipsis})
    return zipped(members)


def npy(array):
    data = io.BytesIO()
    np.save(data, array, allow_pickle=array.dtype == object)
    return data.getvalue()


def test_a_member_that_is_compressed_is_refused():
    # a bomb: one byte of it became a thousand
    members = members_of(pack_frames(torch.zeros(1, 900, 900, 3, dtype=torch.uint8), [0], 1, None, {}, "raw"))
    data = zipped(members, zipfile.ZIP_DEFLATED)
    assert len(data) < 20_000
    with pytest.raises(VideoReadError, match="is compressed; frame archives store members uncompressed"):
        read_video_frames(data, [0])


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.full((4, 4, 3), np.nan), "float64"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((4, 12), np.uint8), r"\(4, 12\)"),
        (np.asfortranarray(np.zeros((4, 5, 3), np.uint8)), r"\(4, 5, 3\)"),
        (np.array([[["a"]]], object), "object"),
    ],
)
def test_a_frame_that_is_no_uint8_picture_is_refused(array, found):
    members = members_of(archive()) | {"000004.npy": npy(array)}
    with pytest.raises(VideoReadError, match=rf"'000004.npy' is {found}.*; uint8 \(H, W, 3\) is needed|{found}"):
        read_video_frames(zipped(members), [4])


def test_a_header_of_more_pixels_than_there_are_bytes_is_refused_before_any_allocation():
    header = npy(np.zeros((4, 4, 3), np.uint8)).replace(b"(4, 4, 3), }   ", b"(40000, 40000, 3), }")
    members = members_of(archive()) | {"000004.npy": header}
    with pytest.raises(VideoReadError, match=r"\(40000, 40000, 3\) in"):
        read_video_frames(zipped(members), [4])


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ({"shortest_edge": 4}, True),
        ({"height": 4, "width": 4}, True),
        ({"shortest_edge": 3}, False),
        ({"height": 4, "width": 5}, False),
        (None, True),
    ],
)
@pytest.mark.parametrize("frame_format", ["raw", "jpeg"])
def test_frames_have_the_size_that_is_announced(size, fits, frame_format):
    data = archive(frame_format, {"preprocessing": "clip", "size": size})
    if fits:
        assert read_video_frames(data, [1]).shape == (1, 4, 4, 3)
        return
    with pytest.raises(VideoReadError, match=r"has 4 x 4 pixels, but .* is announced"):
        read_video_frames(data, [1])


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded():
    members = members_of(archive("jpeg"))
    size = members["000004.jpg"].index(b"\xff\xc0") + 5
    members["000004.jpg"] = members["000004.jpg"][:size] + b"\x75\x30" * 2 + members["000004.jpg"][size + 4 :]
    start = time.process_time()
    with pytest.raises(VideoReadError, match="pixels"):
        read_video_frames(zipped(members), [4])
    assert time.process_time() - start < 1


def test_all_frames_of_an_archive_together_are_bounded_before_one_is_decoded(monkeypatch):
    monkeypatch.setenv("CLIPFSAR_MAX_CLIP_BYTES", "100")
    with pytest.raises(VideoReadError, match="3 frames of 4 x 4 pixels take 144 bytes, more than the limit of 100"):
        read_video_frames(archive(), [1, 4, 7])


def test_frames_of_two_sizes_are_refused():
    members = members_of(archive()) | {"000004.npy": npy(np.zeros((5, 4, 3), np.uint8))}
    with pytest.raises(VideoReadError, match="its frames differ in size: 4 x 4 and 4 x 5"):
        read_video_frames(zipped(members), [1, 4])


BROKEN = {
    "num_video_frames": [..., None, 0, -1, 2.5, "9", True, 10**30, [9]],
    "fps": [..., "25", -1, 0, float("nan"), float("inf"), 10**400, [], True],
    "indices": [..., None, [], "147", [1, 1, 7], [7, 4, 1], [-1, 4, 7], [1, 4, 9], [1.0, 4, 7], [[1]], {"1": 1}],
    "frame_format": [..., None, "png", "", 3, ["raw"]],
    "resized_for": [..., None, [], "clip", {"size": 3}, {"size": {"shortest_edge": "4"}}, {"size": [4, 4]}],
    "seconds": [None, [], [0, 1], "012345678", [float("nan")] * 9, list(range(9, 0, -1)), [0] * 9],
    "format": [..., None, 1, [], "clipfsar frames 2"],
    "reader": [None, "2", [], -1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BROKEN.items() for value in values])
def test_a_description_that_is_broken_in_any_way_is_unreadable_and_names_what(name, value):
    with pytest.raises(VideoReadError, match=name if name != "format" else "frame archive of another format"):
        read_video_frames(archive(**{name: value}), lambda num_frames, fps: [0])


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "null", "{", "[" * 100_000, '{"a":' * 100_000, "\ud800", "1" * 9999]
)
def test_a_description_that_is_no_object_is_unreadable(content):
    with pytest.raises(VideoReadError, match="frame archive"):
        read_video_frames(zipped({"frames.json": content.encode("utf-8", "surrogatepass")}), [0])


def test_a_description_of_too_many_bytes_is_refused(monkeypatch):
    monkeypatch.setenv("CLIPFSAR_MAX_JSON_BYTES", "50")
    with pytest.raises(VideoReadError, match=r"its frames.json has [0-9]+ bytes, more than the limit of 50"):
        read_video_frames(archive(), [0])


def test_a_store_that_was_resized_in_a_way_nobody_knows_is_refused_in_words():
    _, processor = tiny_model_and_processor()
    with pytest.raises(ValueError, match="The frame store was made for"):
        processor.process_videos([archive()])


# --- special files, and images ----------------------------------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo.mp4")
    return tmp_path / "fifo.mp4"


@pytest.mark.parametrize("seconds", [None, 5])
def test_a_pipe_and_a_device_are_never_opened(fifo, seconds):
    for path in (fifo, "/dev/zero", "/dev/stdin", fifo.parent / "folder"):
        with pytest.raises(VideoReadError, match=r"not a regular file|no frames|No such file"):
            read_video_frames(path, [0], seconds_per_video=seconds)


def test_pipes_and_devices_among_the_images_of_a_folder_are_never_opened(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    os.symlink("/dev/zero", tmp_path / "3.png")
    assert read_video_frames(tmp_path, [0]).shape == (1, 4, 4, 3)
    for number in (1, 2):
        with pytest.raises(VideoReadError, match=f"frame file '{number + 1}.png': it is not a regular file"):
            read_video_frames(tmp_path, [number])


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 9000, 9000, 1, 0, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "1.png").write_bytes(picture + struct.pack(">I", 9) + b"IDAT")
    start = time.process_time()
    with pytest.raises(VideoReadError, match=r"9000 x 9000 have 81000000 pixels"):
        read_video_frames(tmp_path, [0])
    assert time.process_time() - start < 0.5


def test_a_folder_reads_images_and_never_starts_a_program(tmp_path):
    # Pillow hands PostScript to Ghostscript, whatever the file is called
    (tmp_path / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(VideoReadError, match=r"frame file '1\.png': cannot identify image file"):
        read_video_frames(tmp_path, [0])


# --- other things that are unreadable ---------------------------------------------------------------------------------

UNREADABLE = {
    "a NUL in a path": "a\0b.mp4",
    "a NUL in the path of a row": {"path": "a\0b.mp4", "bytes": None},
    "half of a surrogate pair in a path": "a\ud800.mp4",
    "frames without pixels": np.zeros((4, 0, 0, 3), np.uint8),
    "frames without columns": torch.zeros(4, 3, 0, 3, dtype=torch.uint8),
    "a list of frames without pixels": [np.zeros((0, 0, 3), np.uint8)] * 4,
    "an image without pixels": [Image.new("RGB", (0, 0))] * 4,
    "a reference": "reference://a.mp4",
    "a reference to a file": "reference::/dev/zero://a.mp4",
    "an unknown protocol": "nonsense://a.mp4",
    "an address without a host": "http://",
    "an address that is none": "http://[::1/a.mp4",
    "a host that has no name": "http://" + "a" * 300 + "/a.mp4",
    "a text file": io.StringIO("text"),
    "a bytes path in a row": {"path": b"a.mp4", "bytes": None},
    "a number": 3,
    "a row of numbers": {"path": 3, "bytes": None},
}


@pytest.mark.parametrize("video", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("seconds", [None, 20])
def test_it_is_unreadable(video, seconds):
    with pytest.raises(VideoReadError, match=r"Cannot read (a )?video"):
        read_video_frames(video, lambda num_frames, fps: [0] * num_frames, seconds_per_video=seconds)


class BrokenFile:
    """A file object that raises when it is read."""

    def __init__(self, error):
        self.error = error

    def read(self, *_):
        raise self.error


@pytest.mark.parametrize("error", [MemoryError(), OSError("gone"), ValueError("I/O operation on closed file")])
def test_whatever_a_file_object_raises_is_unreadable(error):
    with pytest.raises(VideoReadError, match="Cannot read video given as bytes or frames: reading the file object"):
        read_video_frames(BrokenFile(error), [0])


@pytest.mark.parametrize(
    "place", ["video_clipfsar._empty_frames", "video_clipfsar.FrameArchive", "video_clipfsar._upright"]
)
def test_no_memory_while_reading_is_unreadable(place, tmp_path, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    monkeypatch.setattr(place, no_memory)
    for video in (tmp_path, archive()):
        if place.endswith("FrameArchive") == (video is not tmp_path):
            with pytest.raises(VideoReadError, match="MemoryError"):
                read_video_frames(video, [0])


# --- addresses --------------------------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Sends bytes for ever under /endless, one header after the other under /headers, too few under /short."""

    def do_GET(self):
        self.send_response(200)
        try:
            if self.path == "/headers":
                self.flush_headers()
                for _ in range(100):
                    self.wfile.write(b"x: y\r\n")
                    self.wfile.flush()
                    time.sleep(0.1)
            elif self.path == "/short":
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"too few")
            else:
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(bytes(1000))
                    time.sleep(0.1 if self.path == "/slow" else 0)
        except OSError:  # the reader has gone
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["slow", "headers"])
def test_a_download_ends_when_its_time_is_up(server, path, monkeypatch):
    monkeypatch.setenv("CLIPFSAR_MAX_DOWNLOAD_SECONDS", "1")
    start = time.monotonic()
    with pytest.raises(VideoReadError, match=r"it takes more than 1 s \(set CLIPFSAR_MAX_DOWNLOAD_SECONDS to change"):
        read_video_frames(f"{server}/{path}", [0])
    assert time.monotonic() - start < 3


def test_a_download_ends_when_it_has_too_many_bytes(server, monkeypatch):
    monkeypatch.setenv("CLIPFSAR_MAX_FILE_BYTES", "5000")
    with pytest.raises(VideoReadError, match=r"the download failed \(it has [0-9]+ bytes or more, more than the limit"):
        read_video_frames(f"{server}/endless", [0])


def test_a_download_that_breaks_off_is_not_taken_for_the_whole(server):
    with pytest.raises(
        VideoReadError, match=r"the download failed \(the connection closed with 993 bytes still to come"
    ):
        read_video_frames(f"{server}/short", [0])


# --- support sets -----------------------------------------------------------------------------------------------------


def small_support_set():
    """Two classes of two and one clips of three frames, in memory."""
    picture = io.BytesIO()
    Image.new("RGB", (12, 4), (200, 30, 30)).save(picture, "jpeg")
    generator = torch.Generator().manual_seed(0)

    def enrolled(*clips):
        embeds = torch.rand(len(clips), 3, 5, generator=generator)
        return EnrolledClass(torch.rand(5, generator=generator), list(clips), embeds, [picture.getvalue()] * len(clips))

    preprocessing = {"num_frames": 3, "prompt_template": "a photo of {}"}
    fingerprint = {"model": "a model", "weights": "0" * 64, "dtype": "float32", "preprocessing": preprocessing}
    return SupportSet(fingerprint, {"boxing": enrolled("b.mp4", "a.mp4"), "arm_wrestling": enrolled("c\udcff.mp4")})


def described(folder, change, keep_digest=False):
    """Changes the description of a saved set, and makes its digest fit."""
    path = folder / "support_set.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    description = change(description) or description
    if not keep_digest and isinstance(description, dict):
        description.pop("sha256_of_description", None)
    path.write_text(json.dumps(description), encoding="utf-8")


def stored(folder, change):
    """Changes the tensors of a saved set, and makes its digest fit."""
    path = folder / "support_set.safetensors"
    tensors = load_file(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, path)
    described(folder, lambda it: it.update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))


def test_a_support_set_comes_back_as_it_was_saved(tmp_path):
    saved = small_support_set()
    saved.save_pretrained(tmp_path)
    loaded = SupportSet.from_pretrained(tmp_path)
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.class_names == ["boxing", "arm_wrestling"]
    for name, enrolled in saved.classes.items():
        assert loaded.classes[name].clip_names == enrolled.clip_names
        assert torch.equal(loaded.classes[name].support_embeds, enrolled.support_embeds)
        assert torch.equal(loaded.classes[name].class_embeds, enrolled.class_embeds)
        assert loaded.classes[name].thumbnails == enrolled.thumbnails


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["classes"].reverse(),
        lambda it: it["classes"][0].update(name="swimming"),
        lambda it: it["classes"][0]["clips"].reverse(),
        lambda it: it["fingerprint"].update(model="another"),
        lambda it: it["fingerprint"]["preprocessing"].update(prompt_template="{}"),
        lambda it: it.update(new=1),
    ],
)
def test_a_description_that_was_changed_is_damaged(tmp_path, change):
    small_support_set().save_pretrained(tmp_path)
    described(tmp_path, change, keep_digest=True)
    with pytest.raises(ValueError, match=r"is damaged \(support_set.json was changed after it was saved\): restore"):
        SupportSet.from_pretrained(tmp_path)


def test_other_line_ends_and_no_digest_as_in_version_0_1_are_no_damage(tmp_path):
    small_support_set().save_pretrained(tmp_path)
    path = tmp_path / "support_set.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert SupportSet.from_pretrained(tmp_path).class_names == ["boxing", "arm_wrestling"]
    described(tmp_path, lambda it: None)
    assert SupportSet.from_pretrained(tmp_path).class_names == ["boxing", "arm_wrestling"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda it: it["classes"][1].update(name="boxing"), "class 'boxing' is listed twice"),
        (lambda it: it["classes"][0].update(name="arm  wrestling"), "class 'arm_wrestling' is listed twice"),
        (lambda it: it["classes"][0].update(name=" "), "' ' is not a class name"),
        (lambda it: it["classes"][0].update(name=3), "3 is not a class name"),
        (lambda it: it["classes"][0].update(clips=["b.mp4"]), "support_embeds.0' of class 'boxing' has shape"),
        (lambda it: it["classes"][0].update(clips="ab"), "class 'boxing' has no clips"),
        (lambda it: it["classes"][0].update(clips=["a", "a"]), "class 'boxing' has two clips with the same name"),
        (lambda it: it["classes"][0].update(clips=[1, 2]), "a clip of class 'boxing' has no name"),
        (lambda it: it["classes"][0].update(clips=["", "a"]), "a clip of class 'boxing' has no name"),
        (lambda it: it["classes"][0].update(clips=[]), "class 'boxing' has no clips"),
        (
            lambda it: it.update(classes=it["classes"][:1]),
            r"'class_embeds' has shape \(2, 5\), but 1 classes are listed",
        ),
        (lambda it: it.update(classes=[]), "it lists no classes"),
        (lambda it: it.update(classes={"a": 1}), "it lists no classes"),
        (lambda it: it.update(classes=[1]), "one of its classes is not an object"),
        (lambda it: it.update(fingerprint=None), "its fingerprint is not an object"),
        (lambda it: it["fingerprint"].update(weights=3), "'weights' of its fingerprint is not text"),
        (lambda it: it.update(fingerprint={"model": "a", "weights": "b"}), "KeyError: 'dtype'"),
        (lambda it: it["fingerprint"].update(preprocessing=[]), "'preprocessing' of its fingerprint is not an object"),
        (lambda it: it["fingerprint"]["preprocessing"].update(num_frames=8), r"\(2, 8, 5\) is needed"),
        (lambda it: it.update(unknown_error_rate=1.0), "unknown_error_rate=1.0 is not between 0 and 1"),
        (lambda it: it.update(unknown_error_rate="0.1"), "unknown_error_rate='0.1' is not between 0 and 1"),
        (lambda it: it.update(unknown_error_rate=0), "unknown_error_rate=0 is not between 0 and 1"),
        (lambda it: it.update(unknown_error_rate=True), "unknown_error_rate=True is not between 0 and 1"),
        (lambda it: it.update(background=["a.mp4"]), "its background is not an object"),
        (lambda it: it.update(background={}), "KeyError: 'clips'"),
        (lambda it: it.update(background={"clips": []}), "the background has no clips"),
        (lambda it: it.update(background={"clips": ["a", "a"]}), "the background has two clips with the same name"),
        (lambda it: it.update(background={"clips": ["a"]}), "KeyError: 'support_embeds.background'"),
        (lambda it: it.update(settings=["alignment"]), "'settings' is not an object"),
        (lambda it: [it], "support_set.json is not a JSON object"),
    ],
)
def test_a_description_that_makes_no_sense_is_damaged_and_says_what(tmp_path, change, what):
    small_support_set().save_pretrained(tmp_path)
    described(tmp_path, change)
    with pytest.raises(ValueError, match=rf"is damaged \(.*{what}"):
        SupportSet.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"format": ' + "1" * 5000 + "}", "\ud800"])
def test_a_description_that_is_no_json_is_damaged(tmp_path, text):
    small_support_set().save_pretrained(tmp_path)
    (tmp_path / "support_set.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="is damaged"):
        SupportSet.from_pretrained(tmp_path)


def test_a_file_of_tensors_of_too_many_bytes_is_not_loaded(tmp_path, monkeypatch):
    small_support_set().save_pretrained(tmp_path)
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda *_: pytest.fail("read"))
    monkeypatch.setenv("CLIPFSAR_MAX_FILE_BYTES", "100")
    with pytest.raises(ValueError, match=r"support_set\.safetensors has [0-9]+ bytes, more than the limit of 100"):
        SupportSet.from_pretrained(tmp_path)


def test_a_description_of_too_many_bytes_is_damaged(tmp_path, monkeypatch):
    small_support_set().save_pretrained(tmp_path)
    monkeypatch.setenv("CLIPFSAR_MAX_JSON_BYTES", "100")
    with pytest.raises(ValueError, match=r"is damaged \(the file has [0-9]+ bytes, more than the limit of 100"):
        SupportSet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda it: it.update({"support_embeds.0": it["support_embeds.0"][:, :2]}),
            r"\(2, 2, 5\), but \(2, 3, 5",
        ),
        (lambda it: it.update({"support_embeds.0": it["support_embeds.0"][:, :, :4]}), r"shape \(2, 3, 4\)"),
        (lambda it: it.update({"support_embeds.0": it["support_embeds.0"][0]}), r"shape \(3, 5\)"),
        (lambda it: it.update({"support_embeds.1": it["support_embeds.1"].half()}), "is torch.float16"),
        (lambda it: it.update({"class_embeds": it["class_embeds"].long()}), "'class_embeds' is torch.int64"),
        (lambda it: it.update({"class_embeds": it["class_embeds"][0]}), "'class_embeds' has shape"),
        (lambda it: it.update({"thumbnails.0.0": it["thumbnails.0.0"].float()}), "'thumbnails.0.0' is torch.float32"),
        (lambda it: it.pop("support_embeds.1"), "KeyError: 'support_embeds.1'"),
    ],
)
def test_tensors_of_other_shapes_or_types_are_damaged_and_say_which(tmp_path, change, what):
    small_support_set().save_pretrained(tmp_path)
    stored(tmp_path, lambda tensors: (change(tensors), tensors.update({k: v.contiguous() for k, v in tensors.items()})))
    with pytest.raises(ValueError, match=rf"is damaged \(.*{what}"):
        SupportSet.from_pretrained(tmp_path)


def test_background_of_another_shape_is_damaged(tmp_path):
    small = small_support_set()
    background = EnrolledClass(torch.zeros(5), ["e.mp4", "d.mp4"], torch.rand(2, 3, 5))
    SupportSet(small.fingerprint, small.classes, unknowns=Unknowns(background)).save_pretrained(tmp_path)
    assert SupportSet.from_pretrained(tmp_path).background == ["e.mp4", "d.mp4"]
    name = "support_embeds.background"
    stored(tmp_path, lambda it: it.update({name: it[name][:, :2].contiguous()}))
    message = r"'support_embeds.background' of the background has shape \(2, 2, 5\), but \(2, 3, 5\) is needed"
    with pytest.raises(ValueError, match=message):
        SupportSet.from_pretrained(tmp_path)


def test_without_a_number_of_frames_all_clips_have_that_of_the_first_class(tmp_path):
    saved = small_support_set()
    saved.fingerprint["preprocessing"].pop("num_frames")
    saved.save_pretrained(tmp_path / "saved")
    assert SupportSet.from_pretrained(tmp_path / "saved").num_clips == {"boxing": 2, "arm_wrestling": 1}
    for number, (name, shape, needed) in enumerate(
        [
            ("support_embeds.1", (1, 4, 5), r"\(1, 3, 5\)"),
            ("support_embeds.0", (2, 0, 5), r"\(2, 0, 5\)"),
            ("support_embeds.0", (2, 5), r"\(2, 5, 5\)"),
            ("support_embeds.0", (2,), r"\(2, None, 5\)"),
        ]
    ):
        folder = tmp_path / str(number)
        saved.save_pretrained(folder)
        stored(folder, lambda it, name=name, shape=shape: it.update({name: torch.zeros(shape)}))
        with pytest.raises(ValueError, match=rf"'{name}' of class .* has shape {re.escape(str(shape))}, but {needed}"):
            SupportSet.from_pretrained(folder)


@pytest.mark.parametrize(("size", "what"), [(1, None), (0, r"'class_embeds' has shape \(2, 0\)")])
def test_features_may_be_small_but_not_empty(tmp_path, size, what):
    saved = small_support_set()
    saved.fingerprint["preprocessing"]["num_frames"] = 1
    for name, one in saved.classes.items():
        embeds = one.support_embeds[:, :1, :size].contiguous()
        saved.classes[name] = EnrolledClass(one.class_embeds[:size], one.clip_names, embeds, one.thumbnails)
    saved.unknown_error_rate = 0.2
    saved.save_pretrained(tmp_path)
    if what is None:
        loaded = SupportSet.from_pretrained(tmp_path)
        assert (loaded.num_clips, loaded.unknown_error_rate) == ({"boxing": 2, "arm_wrestling": 1}, 0.2)
    else:
        with pytest.raises(ValueError, match=what):
            SupportSet.from_pretrained(tmp_path)


def test_a_picture_that_is_none_is_named_when_it_is_shown():
    narrow, other_format = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (2, 4)).save(narrow, "jpeg")
    Image.new("RGB", (6, 4)).save(other_format, "png")
    for data in (b"no picture", narrow.getvalue(), other_format.getvalue()):
        with pytest.raises(ValueError, match=r"The picture of a clip is damaged .*: enroll the clip again"):
            _frames_of_strip(data, 3)


@pytest.mark.parametrize(("limit", "size"), [(20, "6 x 4 have 24 pixels"), (70, "18 x 4 have 72 pixels")])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch, limit, size):
    picture = io.BytesIO()
    Image.new("RGB", (18, 4)).save(picture, "jpeg")
    monkeypatch.setenv("CLIPFSAR_MAX_FRAME_PIXELS", str(limit))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=f"picture of a clip is damaged .its frames of {size}, more than the limit"):
        _frames_of_strip(picture.getvalue(), 3)


# --- a fuzzer ---------------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, taken out, put in, repeated or cut off."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 50])):
        place = rng.randrange(len(data) + 1)
        length = min(rng.choice([1, 2, 4, 4, 8, 100]), len(data) - place)
        new = {
            "random": rng.randbytes(length),
            "extreme": rng.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * length,
            "nothing": b"",
            "twice": bytes(data[place : place + length]) * 2,
            "from elsewhere": bytes(data[(other := rng.randrange(len(data) + 1)) : other + length]),
        }
        data[place : place + length] = new[rng.choice(list(new))]
        if not data:
            break
    if rng.random() < 0.1:
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


STRANGE = [
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a",
    "\0",
    [],
    {},
]


def mutated(value, rng: random.Random):
    """A value of JSON with something in it replaced, taken out or put in."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value, name = dict(value), rng.choice(list(value))
        if rng.random() < 0.1:
            del value[name]
        else:
            value[name] = mutated(value[name], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        value, place = list(value), rng.randrange(len(value))
        if rng.random() < 0.2:
            value.insert(place, rng.choice([*STRANGE, value[place]]))
        elif rng.random() < 0.2:
            del value[place]
        else:
            value[place] = mutated(value[place], rng)
        return value
    return copy.deepcopy(rng.choice(STRANGE))


def damaged_archive(rng: random.Random) -> bytes:
    """An archive whose description or members are changed, or its bytes."""
    frame_format = rng.choice(["raw", "jpeg"])
    size = rng.choice([{}, {"preprocessing": "clip", "size": {"shortest_edge": 4}}])
    members = members_of(pack_frames(FRAMES, [1, 4, 7], 9, 10.0, size, frame_format))
    kind = rng.choice(["description", "description", "text", "member", "bytes", "members", "compressed"])
    if kind == "description":
        members["frames.json"] = json.dumps(mutated(json.loads(members["frames.json"]), rng))
    elif kind == "text":
        members["frames.json"] = damaged(members["frames.json"], rng)
    elif kind in ("member", "members"):
        for name in rng.sample(sorted(members), 1 if kind == "member" else 2):
            if rng.random() < 0.2:
                del members[name]
            else:
                members[name] = damaged(members[name], rng)
    data = zipped(members, zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED)
    return damaged(data, rng) if kind == "bytes" else data


def check_unreadable_or_right(video, folder):
    """Reads, and allows `VideoReadError` or frames; anything else fails the test and leaves the file behind."""
    seen = []

    def select(num_frames, fps):
        seen.append(num_frames)
        assert isinstance(num_frames, int)
        assert num_frames > 0
        assert fps is None or 0 < fps < float("inf")
        return [0, num_frames // 2, num_frames - 1]

    try:
        frames = read_video_frames(video, select, seconds_per_video=20)
    except VideoReadError:
        return False
    except BaseException as error:
        path = folder / "found.bin"
        path.write_bytes(video if isinstance(video, bytes) else b"")
        raise AssertionError(f"{type(error).__name__}, kept as {path}") from error
    assert frames.dtype == torch.uint8
    assert frames.ndim == 4
    assert (len(frames), frames.shape[-1]) == (3, 3)
    assert 0 not in frames.shape
    return True


def until(seconds):
    """Numbers of cases, for so long."""
    end, number = time.process_time() + seconds, FUZZ_SEED * 10**6
    while time.process_time() < end:
        yield number
        number += 1


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Small files of many formats, `{name: bytes}`."""
    folder = tmp_path_factory.mktemp("seeds")
    formats = [("mp4", "libx264"), ("mkv", "ffv1"), ("webm", "libvpx"), ("avi", "mpeg4"), ("ts", "mpeg2video")]
    formats += [("flv", "flv1"), ("mov", "mjpeg"), ("ogv", "libtheora"), ("wmv", "wmv2"), ("nut", "ffv1")]
    files = {}
    for suffix, codec in formats:
        path = folder / f"a.{suffix}"
        try:
            write_video(path, 32, 32, codec=codec)
        except Exception:  # an FFmpeg without that encoder
            continue
        files[suffix] = path.read_bytes()
    assert len(files) >= 5
    return files


def test_damaged_videos_are_unreadable_or_read(seeds, tmp_path):
    outcomes = []
    for number in until(FUZZ_SECONDS / 2):
        rng = random.Random(number)
        outcomes.append(check_unreadable_or_right(damaged(seeds[rng.choice(sorted(seeds))], rng), tmp_path))
    assert {*outcomes} == {True, False}


def test_damaged_archives_are_unreadable_or_read(tmp_path):
    outcomes = []
    for number in until(FUZZ_SECONDS / 2):
        outcomes.append(check_unreadable_or_right(damaged_archive(random.Random(number)), tmp_path))
    assert {*outcomes} == {True, False}


def test_damaged_images_are_unreadable_or_read(tmp_path):
    pictures = {}
    for suffix in ("bmp", "jpg", "png", "tif", "webp"):
        data = io.BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(
            data, Image.registered_extensions()[f".{suffix}"]
        )
        pictures[suffix] = data.getvalue()
    folder = tmp_path / "frames"
    folder.mkdir()
    outcomes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in until(FUZZ_SECONDS / 4):
            rng = random.Random(number)
            suffix = rng.choice(sorted(pictures))
            path = folder / f"1.{suffix}"
            path.write_bytes(damaged(pictures[suffix], rng))
            outcomes.append(check_unreadable_or_right(folder, tmp_path))
            path.unlink()
    assert {*outcomes} == {True, False}


def test_damaged_support_sets_are_refused_or_read(tmp_path):
    small_support_set().save_pretrained(tmp_path / "whole")
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    folder, outcomes = tmp_path / "set", []
    folder.mkdir()
    for number in until(FUZZ_SECONDS / 4):
        rng = random.Random(number)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        kind = rng.choice(["description", "description", "tensors", "either"])
        if kind == "description":
            described(folder, lambda it, rng=rng: mutated(it, rng))
        elif kind == "tensors":
            data = damaged(files["support_set.safetensors"], rng)
            (folder / "support_set.safetensors").write_bytes(data)
            described(folder, lambda it, data=data: it.update(sha256=hashlib.sha256(data).hexdigest()))
        else:
            name = rng.choice(sorted(files))
            (folder / name).write_bytes(damaged(files[name], rng))
        try:
            loaded = SupportSet.from_pretrained(folder)
        except ValueError as error:
            if "is damaged (" not in str(error) and "of format" not in str(error):
                raise
            outcomes.append(False)
            continue
        assert len({one.support_embeds.shape[1:] for one in loaded.classes.values()}) == 1
        for name, one in loaded.classes.items():
            assert name.strip()
            assert len(one.clip_names) == len(one.support_embeds) == len(one.thumbnails) > 0
            assert one.support_embeds.dtype == one.class_embeds.dtype == torch.float32
        outcomes.append(True)
    assert {*outcomes} == {True, False}


def test_tensors_of_too_many_bytes_are_refused_before_they_are_read(tmp_path, monkeypatch):
    model, processor = tiny_model_and_processor()
    clips = {name: [np.full((4, 16, 16, 3), value, np.uint8)] for name, value in (("a", 20), ("b", 200))}
    SupportSet.from_videos(model, processor, clips).save_pretrained(tmp_path)
    os.truncate(tmp_path / "support_set.safetensors", 2**38)  # sparse: it takes no room
    with pytest.raises(
        ValueError, match=r"damaged \(support_set\.safetensors has 274877906944 bytes, more than the limit"
    ):
        SupportSet.from_pretrained(tmp_path)
