"""The store of frame features: the same numbers as encoding anew, read where possible and refused where not."""

import errno
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_data import model_of_tiny_clip, run_in_children, write_video

import video_clipfsar
from clipfsar import content
from clipfsar.data.video_split import VideoSplit, digest_of_videos
from clipfsar.evaluation import feature_store
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.episode_list import read_episodes, write_episodes
from clipfsar.evaluation.feature_store import FeatureStore
from clipfsar.locks import FolderInUseError, FolderLock
from clipfsar.shards import Shard
from episodes_clipfsar import EpisodeSampler
from processing_clipfsar import CLIPFSARProcessor

NUM_VIDEOS = 7
BATCHES = [[0, 1], [2, 3], [4, 5], [6]]  # of two videos


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def video_paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(NUM_VIDEOS):
        write_video(folder / f"{number}.mp4", (40 + 30 * number, 200 - 25 * number, 100), seed=number)
    return [str(folder / f"{number}.mp4") for number in range(NUM_VIDEOS)]


@pytest.fixture(scope="module")
def videos(video_paths):
    return Dataset.from_dict({"video": video_paths})


class Encoder:
    """A model that counts the videos it encodes and, if asked to, is killed in its n-th forward."""

    def __init__(self, tiny_clip, killed_in: int | None = None, **config):
        self.model = model_of_tiny_clip(tiny_clip, **config)
        self.encoded, self.forwards, self.killed_in = 0, 0, killed_in
        encode = self.model.get_video_features

        def get_video_features(pixel_values, **kwargs):
            self.forwards += 1
            if self.forwards == self.killed_in:
                raise KeyboardInterrupt
            self.encoded += len(pixel_values)
            return encode(pixel_values, **kwargs)

        self.model.get_video_features = get_video_features

    def store(self, folder, processor, videos, accelerator=None, rebuild=False, video_column="video") -> torch.Tensor:
        encoder = VideoEncoder(self.model, processor, accelerator or Accelerator(cpu=True), batch_size=2)
        return FeatureStore(folder, encoder, rebuild).encode(VideoSplit(videos, video_column))


@pytest.fixture(scope="module")
def expected(tiny_clip, processor, videos):
    embeds = VideoEncoder(model_of_tiny_clip(tiny_clip), processor, Accelerator(cpu=True), batch_size=2).encode(videos)
    AcceleratorState._reset_state(True)
    return embeds


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- reading and writing ----------------------------------------------------------------------------------------------


def test_stored_features_are_those_of_encoding_and_are_read_the_second_time(
    tiny_clip, processor, videos, expected, tmp_path
):
    first, second = Encoder(tiny_clip), Encoder(tiny_clip)
    stored = first.store(tmp_path / "new" / "store", processor, videos)
    assert torch.equal(stored, expected)
    assert (stored.dtype, stored.device.type) == (torch.float32, "cpu")
    assert first.encoded == NUM_VIDEOS
    assert names(tmp_path / "new" / "store") == ["features.safetensors", "manifest.json"]
    assert torch.equal(second.store(tmp_path / "new" / "store", processor, videos), expected)
    assert second.encoded == 0


def test_an_empty_folder_becomes_a_store(tiny_clip, processor, videos, expected, tmp_path):
    assert torch.equal(Encoder(tiny_clip).store(tmp_path, processor, videos), expected)


def test_a_temporal_transformer_trained_further_leaves_the_store_valid(
    tiny_clip, processor, videos, expected, tmp_path
):
    Encoder(tiny_clip).store(tmp_path, processor, videos)
    trained = Encoder(tiny_clip, alignment="mean", temporal_num_layers=2)
    with torch.no_grad():
        for parameter in (*trained.model.temporal_transformer.parameters(), trained.model.video_text_scale):
            parameter.add_(1.0)
        trained.model.clip.text_projection.weight.add_(1.0)
    assert torch.equal(trained.store(tmp_path, processor, videos), expected)
    assert trained.encoded == 0


def test_videos_in_the_dataset_itself_are_known_by_their_bytes(tiny_clip, processor, video_paths, expected, tmp_path):
    contents = [{"path": None, "bytes": Path(path).read_bytes()} for path in video_paths]
    assert torch.equal(Encoder(tiny_clip).store(tmp_path, processor, Dataset.from_dict({"video": contents})), expected)
    again = Encoder(tiny_clip)
    again.store(tmp_path, processor, Dataset.from_dict({"video": contents}))
    assert again.encoded == 0
    other = Dataset.from_dict({"video": [*contents[:-1], contents[0]]})
    with pytest.raises(ValueError, match="does not match: videos: "):
        again.store(tmp_path, processor, other)


def test_a_moved_data_set_is_still_the_same(tmp_path):
    digests = []
    for place in ("here", "there"):
        folder = tmp_path / place / "jumping"
        folder.mkdir(parents=True)
        (folder / "0.mp4").write_bytes(b"12345")
        digests.append(digest_of_videos(Dataset.from_dict({"video": [str(folder / "0.mp4")]}), "video"))
    assert digests[0] == digests[1]
    (tmp_path / "there" / "jumping" / "0.mp4").write_bytes(b"123456")
    changed = digest_of_videos(Dataset.from_dict({"video": [str(tmp_path / "there" / "jumping" / "0.mp4")]}), "video")
    assert changed != digests[0]


def test_another_column_of_videos_can_be_named(tiny_clip, processor, videos, expected, tmp_path):
    clips = videos.rename_column("video", "clip")
    assert torch.equal(Encoder(tiny_clip).store(tmp_path, processor, clips, video_column="clip"), expected)


@pytest.mark.parametrize("training", [True, False])
def test_encoding_is_without_dropout_and_restores_the_mode(tiny_clip, processor, videos, expected, training, tmp_path):
    encoder = Encoder(tiny_clip)
    encoder.model.train(training)
    assert torch.equal(encoder.store(tmp_path, processor, videos), expected)
    assert encoder.model.training is training


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_in", [1, 2, 4])
def test_an_interrupted_encoding_goes_on_and_loses_at_most_the_batch_in_flight(
    tiny_clip, processor, videos, expected, killed_in, tmp_path
):
    with pytest.raises(KeyboardInterrupt):
        Encoder(tiny_clip, killed_in=killed_in).store(tmp_path, processor, videos)
    parts = [load_file(path)["rows"].tolist() for path in sorted(tmp_path.glob("part-*.safetensors"))]
    assert parts == BATCHES[: killed_in - 1]
    assert not (tmp_path / "features.safetensors").exists()
    second = Encoder(tiny_clip)
    assert torch.equal(second.store(tmp_path, processor, videos), expected)
    assert second.encoded == NUM_VIDEOS - sum(map(len, parts))
    assert names(tmp_path) == ["features.safetensors", "manifest.json"]


def test_parts_of_any_size_and_place_are_made_whole(tiny_clip, processor, videos, expected, tmp_path):
    """As two processes leave them that had not come equally far."""
    with pytest.raises(KeyboardInterrupt):
        Encoder(tiny_clip, killed_in=4).store(tmp_path, processor, videos)
    (tmp_path / "part-00000002.safetensors").unlink()
    second = Encoder(tiny_clip, killed_in=2)
    with pytest.raises(KeyboardInterrupt):
        second.store(tmp_path, processor, videos)  # encodes 2 and 3, dies over 6
    third = Encoder(tiny_clip)
    assert torch.equal(third.store(tmp_path, processor, videos), expected)
    assert (second.encoded, third.encoded) == (2, 1)


def test_a_kill_after_the_last_batch_loses_nothing(tiny_clip, processor, videos, expected, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_store, "save_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        Encoder(tiny_clip).store(tmp_path, processor, videos)
    monkeypatch.undo()
    second = Encoder(tiny_clip)
    assert torch.equal(second.store(tmp_path, processor, videos), expected)
    assert second.encoded == 0


def test_a_file_half_written_is_not_read(tiny_clip, processor, videos, expected, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Encoder(tiny_clip, killed_in=2).store(tmp_path, processor, videos)
    for name in (".part-00000002.safetensors.partial", ".features.safetensors.partial"):
        (tmp_path / name).write_bytes(b"half a file")
    second = Encoder(tiny_clip)
    assert torch.equal(second.store(tmp_path, processor, videos), expected)
    assert second.encoded == NUM_VIDEOS - 2
    assert torch.equal(Encoder(tiny_clip).store(tmp_path, processor, videos), expected)


# --- refusals ---------------------------------------------------------------------------------------------------------


def other_weights(encoder, processor, videos):
    encoder.model.clip.visual_projection.weight.data[0, 0] += 1e-3
    return processor, videos, Accelerator(cpu=True)


def other_frames(encoder, processor, videos):
    encoder.model.config.num_frames = 3
    return type(processor)(processor.image_processor, processor.tokenizer, num_frames=3), videos, Accelerator(cpu=True)


def other_frame_sampling(encoder, processor, videos):
    given = {"num_frames": 4, "frame_sampling": "interval"}
    return type(processor)(processor.image_processor, processor.tokenizer, **given), videos, Accelerator(cpu=True)


def other_crop(encoder, processor, videos):
    image_processor = type(processor.image_processor)(**processor.image_processor.to_dict() | {"do_normalize": False})
    return type(processor)(image_processor, processor.tokenizer, num_frames=4), videos, Accelerator(cpu=True)


def other_order(encoder, processor, videos):
    return processor, videos.select([1, 0, 2, 3, 4, 5, 6]), Accelerator(cpu=True)


def fewer_videos(encoder, processor, videos):
    return processor, videos.select(range(6)), Accelerator(cpu=True)


def other_arithmetic(encoder, processor, videos):
    AcceleratorState._reset_state(True)
    return processor, videos, Accelerator(cpu=True, mixed_precision="bf16")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_weights, "visual tower: "),
        (other_frames, "preprocessing: .*'num_frames': 4.*now .*'num_frames': 3"),
        (other_frame_sampling, "preprocessing: .*'segment_center'.*now .*'interval'"),
        (other_crop, "preprocessing: .*'do_normalize': True.*now .*'do_normalize': False"),
        (other_order, "videos: "),
        (fewer_videos, "videos: .*; num_videos: 7 .now 6"),
        (other_arithmetic, "arithmetic: float32, mixed precision: no .now float32, mixed precision: bf16"),
    ],
)
def test_a_store_of_something_else_is_refused_with_the_reason_or_rebuilt_on_request(
    tiny_clip, processor, videos, change, reason, tmp_path
):
    Encoder(tiny_clip).store(tmp_path, processor, videos)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    encoder = Encoder(tiny_clip)
    given = change(encoder, processor, videos)
    with pytest.raises(ValueError, match=f"does not match: {reason}.*--rebuild_features"):
        encoder.store(tmp_path, *given)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert encoder.encoded == 0

    rebuilt = encoder.store(tmp_path, *given, rebuild=True)
    assert encoder.encoded == len(given[1]) == len(rebuilt)
    assert torch.equal(encoder.store(tmp_path, *given), rebuilt)
    assert encoder.encoded == len(given[1])


def test_a_refusal_names_only_what_differs(tiny_clip, processor, videos, tmp_path):
    Encoder(tiny_clip).store(tmp_path, processor, videos)
    encoder = Encoder(tiny_clip)
    with pytest.raises(ValueError, match="does not match: visual tower") as refusal:
        encoder.store(tmp_path, *other_weights(encoder, processor, videos))
    assert not any(name in str(refusal.value) for name in ("preprocessing", "arithmetic", "videos"))


def test_a_file_that_changed_under_its_name_is_noticed(tiny_clip, processor, video_paths, tmp_path):
    copies = [tmp_path / f"{number}.mp4" for number in range(2)]
    for copy, path in zip(copies, video_paths, strict=False):
        copy.write_bytes(Path(path).read_bytes())
    two = Dataset.from_dict({"video": [str(copy) for copy in copies]})
    Encoder(tiny_clip).store(tmp_path / "store", processor, two)
    copies[1].write_bytes(copies[1].read_bytes() + b"\0")
    with pytest.raises(ValueError, match="does not match: videos: "):
        Encoder(tiny_clip).store(tmp_path / "store", processor, two)


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_folder_that_is_no_store_is_refused_and_left_alone(tiny_clip, processor, videos, rebuild, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is no feature store, but not empty either: name another folder"):
        Encoder(tiny_clip).store(tmp_path, processor, videos, rebuild=rebuild)
    assert names(tmp_path) == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_manifest_is_written_for_people(tiny_clip, processor, videos, tmp_path):
    Encoder(tiny_clip).store(tmp_path, processor, videos)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["num_videos"] == NUM_VIDEOS
    assert manifest["preprocessing"]["num_frames"] == 4
    assert manifest["preprocessing"]["image_processor"]["crop_size"]["height"] == 16
    assert manifest["arithmetic"] == "float32, mixed precision: no"


# --- several processes ------------------------------------------------------------------------------------------------


def store_in_process(tiny_clip, video_paths, folder):
    accelerator = Accelerator(cpu=True)
    processor = CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)
    videos = Dataset.from_dict({"video": video_paths})
    encoder = Encoder(tiny_clip)
    embeds = encoder.store(folder / "store", processor, videos, accelerator)
    torch.save((encoder.encoded, embeds), folder / f"embeds_{accelerator.process_index}.pt")
    accelerator.end_training()


def test_two_processes_share_the_work_that_one_left(tiny_clip, processor, videos, video_paths, expected, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Encoder(tiny_clip, killed_in=2).store(tmp_path / "store", processor, videos)
    run_in_children(
        store_in_process, tiny_clip, video_paths, tmp_path, folder=tmp_path / "output", num_processes=2
    ).check()
    encoded = []
    for rank in range(2):
        count, embeds = torch.load(tmp_path / f"embeds_{rank}.pt")
        encoded.append(count)
        torch.testing.assert_close(embeds, expected, rtol=1e-5, atol=1e-5)
    assert sorted(encoded) == [2, 3]


# --- shards -----------------------------------------------------------------------------------------------------------


def encode_shard(encoder: Encoder, folder, processor, videos, index: int, count: int, rebuild=False) -> int:
    videos_encoder = VideoEncoder(encoder.model, processor, Accelerator(cpu=True), batch_size=2)
    return FeatureStore(folder, videos_encoder, rebuild).encode_shard(VideoSplit(videos), Shard(index, count))


def test_shards_of_which_one_was_killed_and_repeated_give_the_features_of_one_encoding(
    tiny_clip, processor, videos, expected, tmp_path
):
    encoder, killed = Encoder(tiny_clip), Encoder(tiny_clip, killed_in=2)
    assert encode_shard(encoder, tmp_path, processor, videos, 2, 3) == 2  # rows 2 and 5
    with pytest.raises(KeyboardInterrupt):
        encode_shard(killed, tmp_path, processor, videos, 0, 3)  # rows 0 and 3, dies over 6
    for index in (0, 1, 2):
        encode_shard(encoder, tmp_path, processor, videos, index, 3)
    assert (killed.encoded, encoder.encoded) == (2, NUM_VIDEOS - 2)
    assert torch.equal(encoder.store(tmp_path, processor, videos), expected)
    assert encoder.encoded == NUM_VIDEOS - 2
    assert names(tmp_path) == ["features.safetensors", "manifest.json"]
    assert encode_shard(encoder, tmp_path, processor, videos, 0, 3) == 3  # a task after the end finds its work done
    assert names(tmp_path) == ["features.safetensors", "manifest.json"]


def test_tasks_may_encode_the_same_videos_at_once_and_what_no_task_encoded_is_encoded_at_the_end(
    tiny_clip, processor, videos, expected, tmp_path
):
    first, second, last = (Encoder(tiny_clip) for _ in range(3))
    encode = first.model.get_video_features

    def meanwhile(pixel_values, **kwargs):
        if not second.encoded:
            encode_shard(second, tmp_path, processor, videos, 0, 2)  # the same shard, from its start to its end
        return encode(pixel_values, **kwargs)

    first.model.get_video_features = meanwhile
    encode_shard(first, tmp_path, processor, videos, 0, 2)
    assert (first.encoded, second.encoded) == (4, 4)
    assert torch.equal(last.store(tmp_path, processor, videos), expected)
    assert last.encoded == NUM_VIDEOS - 4


def test_a_task_with_another_model_is_refused(tiny_clip, processor, videos, tmp_path):
    encode_shard(Encoder(tiny_clip), tmp_path, processor, videos, 0, 2)
    other = Encoder(tiny_clip)
    other_weights(other, processor, videos)
    with pytest.raises(ValueError, match="does not match: visual tower: "):
        encode_shard(other, tmp_path, processor, videos, 1, 2)
    with pytest.raises(ValueError, match=r"A task cannot rebuild .*: delete the folder before the first task starts"):
        encode_shard(other, tmp_path, processor, videos, 1, 2, rebuild=True)
    assert other.encoded == 0


def test_nothing_is_merged_while_a_task_encodes(tiny_clip, processor, videos, tmp_path, monkeypatch):
    with FolderLock(tmp_path, "encodes videos", "Wait", is_shared=True):
        encode_shard(Encoder(tiny_clip), tmp_path, processor, videos, 0, 2)  # beside another task
        monkeypatch.setattr(FeatureStore, "_lock", lambda self: FolderLock(self.folder, "encodes videos", "Wait"))
        with pytest.raises(FolderInUseError):
            Encoder(tiny_clip).store(tmp_path, processor, videos)


@pytest.mark.parametrize("has_column", [True, False])
def test_a_store_looks_at_each_video_once_or_at_four_if_the_digests_are_stored(
    tiny_clip, processor, video_paths, has_column, tmp_path, monkeypatch
):
    contents = [{"path": f"{number}.mp4", "bytes": Path(path).read_bytes()} for number, path in enumerate(video_paths)]
    columns = {"video": contents}
    if has_column:
        columns["video_digest"] = [content.digest_of_video(video).hex() for video in contents]
    looked_at, digest = [], content.digest_of_video
    monkeypatch.setattr(content, "digest_of_video", lambda video: looked_at.append(video["path"]) or digest(video))
    encoder = VideoEncoder(model_of_tiny_clip(tiny_clip), processor, Accelerator(cpu=True), batch_size=2)
    split = VideoSplit(Dataset.from_dict(columns))
    for draw in range(3):  # of a frozen tower, each with a store of its own
        FeatureStore(tmp_path / str(draw), encoder).encode(split, (0, draw))
    assert len(looked_at) == (4 if has_column else NUM_VIDEOS)


# --- what videos hold -------------------------------------------------------------------------------------------------


@pytest.fixture
def copies(video_paths, tmp_path):
    """Copies of three videos that a test may change, and a data set of them."""
    paths = [tmp_path / "videos" / f"{number}.mp4" for number in range(3)]
    paths[0].parent.mkdir()
    for copy, path in zip(paths, video_paths, strict=False):
        copy.write_bytes(Path(path).read_bytes())
    return paths, Dataset.from_dict({"video": [str(path) for path in paths]})


def test_a_file_replaced_by_one_of_equal_size_is_noticed_and_named(tiny_clip, processor, copies, tmp_path):
    paths, dataset = copies
    Encoder(tiny_clip).store(tmp_path / "store", processor, dataset)
    content = bytearray(paths[1].read_bytes())
    content[-10] ^= 1
    paths[1].write_bytes(content)
    expected = r"does not match: videos: .*; 1 of 3 encoded videos have changed: 1\.mp4\. Name another folder"
    with pytest.raises(ValueError, match=expected):
        Encoder(tiny_clip).store(tmp_path / "store", processor, dataset)


def test_a_changed_file_is_noticed_in_a_store_that_is_half_filled_too(tiny_clip, processor, copies, tmp_path):
    paths, dataset = copies
    with pytest.raises(KeyboardInterrupt):
        Encoder(tiny_clip, killed_in=2).store(tmp_path / "store", processor, dataset)
    paths[0].write_bytes(paths[0].read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match=r"1 of 2 encoded videos have changed: 0\.mp4"):
        Encoder(tiny_clip).store(tmp_path / "store", processor, dataset)


def test_frames_changed_in_a_folder_are_noticed(tiny_clip, processor, tmp_path):
    folder = tmp_path / "jump" / "0"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (32, 32), (50 * number, 0, 0)).save(folder / f"{number}.bmp")
    dataset = Dataset.from_dict({"video": [str(folder)]})
    Encoder(tiny_clip).store(tmp_path / "store", processor, dataset)
    Image.new("RGB", (32, 32), (0, 0, 99)).save(folder / "2.bmp")
    with pytest.raises(ValueError, match="1 of 1 encoded videos have changed: 0"):
        Encoder(tiny_clip).store(tmp_path / "store", processor, dataset)


def test_an_address_is_known_by_itself_and_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(video_clipfsar, "download", None)
    splits = [VideoSplit(Dataset.from_dict({"video": [f"https://example.org/{name}.mp4"]})) for name in "aab"]
    assert splits[0].digest == splits[1].digest != splits[2].digest


# --- damage -----------------------------------------------------------------------------------------------------------


def flipped(path: Path, rng) -> bytes:
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    return bytes(content)


@pytest.mark.parametrize("name", ["features.safetensors", "manifest.json"])
def test_any_flipped_bit_of_a_store_is_found(tiny_clip, processor, videos, name, tmp_path):
    encoder = Encoder(tiny_clip)
    encoder.store(tmp_path, processor, videos)
    path, rng = tmp_path / name, np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(25):
        path.write_bytes(flipped(path, rng))
        with pytest.raises(ValueError, match=r"is damaged|does not match|is no feature store"):
            encoder.store(tmp_path, processor, videos)
        path.write_bytes(whole)
    assert encoder.encoded == NUM_VIDEOS


def test_any_flipped_bit_of_a_part_is_found_and_the_remedy_helps(tiny_clip, processor, videos, expected, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Encoder(tiny_clip, killed_in=4).store(tmp_path, processor, videos)
    path, rng = tmp_path / "part-00000002.safetensors", np.random.default_rng(1)
    whole, last = path.read_bytes(), Encoder(tiny_clip)
    for _ in range(10):
        path.write_bytes(flipped(path, rng))
        with pytest.raises(ValueError, match=r"damaged .*: delete this file|of every video once"):
            last.store(tmp_path, processor, videos)
        path.write_bytes(whole)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"part-00000002\.safetensors is damaged .*delete this file, and its videos"):
        last.store(tmp_path, processor, videos)
    path.unlink()
    assert torch.equal(Encoder(tiny_clip).store(tmp_path, processor, videos), expected)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_manifest_can_be_rebuilt(tiny_clip, processor, videos, expected, tmp_path, content):
    Encoder(tiny_clip).store(tmp_path, processor, videos)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*: delete the folder"):
        Encoder(tiny_clip).store(tmp_path, processor, videos)
    assert torch.equal(Encoder(tiny_clip).store(tmp_path, processor, videos, rebuild=True), expected)


# --- earlier versions -------------------------------------------------------------------------------------------------


def make_older(folder: Path, dataset):
    """A store as it was before it had checksums and knew what videos hold."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": 1, "videos": VideoSplit(dataset)._digest_of_0_1}
    path.write_text(json.dumps(manifest))
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        tensors.pop("digests")
        save_file(tensors, file)


def test_a_store_of_an_earlier_format_is_taken_over_with_one_notice(
    tiny_clip, processor, copies, tmp_path, recwarn, monkeypatch
):
    paths, dataset = copies
    embeds = Encoder(tiny_clip).store(tmp_path / "store", processor, dataset).clone()
    make_older(tmp_path / "store", dataset)
    recwarn.clear()
    again = Encoder(tiny_clip)
    assert torch.equal(again.store(tmp_path / "store", processor, dataset), embeds)
    assert sum("neither checksums nor the content of the videos" in str(warning.message) for warning in recwarn) == 1
    recwarn.clear()
    assert torch.equal(again.store(tmp_path / "store", processor, dataset), embeds)
    assert len(recwarn) == again.encoded == 0
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"\0")  # from now on what videos hold is known
    with pytest.raises(ValueError, match="does not match: videos"):
        again.store(tmp_path / "store", processor, dataset)


def test_a_half_filled_store_of_an_earlier_format_goes_on(tiny_clip, processor, copies, tmp_path):
    _, dataset = copies
    whole = Encoder(tiny_clip).store(tmp_path / "whole", processor, dataset)
    with pytest.raises(KeyboardInterrupt):
        Encoder(tiny_clip, killed_in=2).store(tmp_path / "store", processor, dataset)
    make_older(tmp_path / "store", dataset)
    second = Encoder(tiny_clip)
    with pytest.warns(UserWarning, match="earlier version"):
        assert torch.equal(second.store(tmp_path / "store", processor, dataset), whole)
    assert second.encoded == 1


def test_a_store_of_an_earlier_format_on_a_read_only_disk_is_read(tiny_clip, processor, copies, tmp_path, monkeypatch):
    _, dataset = copies
    embeds = Encoder(tiny_clip).store(tmp_path / "store", processor, dataset).clone()
    make_older(tmp_path / "store", dataset)
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FolderLock, "__enter__", read_only)
    with pytest.warns(UserWarning, match="earlier version"):
        assert torch.equal(Encoder(tiny_clip).store(tmp_path / "store", processor, dataset), embeds)
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before


def test_episodes_written_by_an_earlier_version_are_still_about_their_videos(copies, tmp_path):
    paths = [str(path) for path in copies[0]]
    dataset = Dataset.from_dict({"video": [*paths, paths[0]], "label": ["red", "red", "sky", "sky"]})
    split = VideoSplit(dataset)
    for number, digest in enumerate((split._digest_of_0_1, split.digest)):
        write_episodes(tmp_path / str(number), EpisodeSampler([0, 0, 1, 1], 2, 1, 1), 2, digest)
        assert len(read_episodes(tmp_path / str(number), split)) == 2
    with pytest.raises(ValueError, match="about other videos"):
        read_episodes(tmp_path / "1", VideoSplit(dataset.select([1, 0, 2, 3])))


# --- one writer -------------------------------------------------------------------------------------------------------


def test_who_comes_second_waits_and_then_only_reads(tiny_clip, processor, videos, expected, tmp_path, monkeypatch):
    second, results = Encoder(tiny_clip), []
    thread = threading.Thread(target=lambda: results.append(second.store(tmp_path, processor, videos)))
    first = Encoder(tiny_clip)
    encode = first.model.get_video_features

    def meanwhile(pixel_values):
        if not thread.is_alive() and not results:
            thread.start()
            thread.join(0.5)
            assert thread.is_alive()
        return encode(pixel_values)

    first.model.get_video_features = meanwhile
    with pytest.warns(UserWarning, match=r"Waiting for .*: process \d+ on .* encodes videos there since"):
        embeds = first.store(tmp_path, processor, videos)
    thread.join()
    assert torch.equal(embeds, expected)
    assert torch.equal(results[0], expected)
    assert (first.encoded, second.encoded) == (NUM_VIDEOS, 0)
    assert names(tmp_path) == ["features.safetensors", "manifest.json"]


def test_a_store_that_is_whole_is_read_while_its_folder_is_locked(tiny_clip, processor, videos, expected, tmp_path):
    Encoder(tiny_clip).store(tmp_path, processor, videos)
    with FolderLock(tmp_path, "encodes videos", "Wait"):
        assert torch.equal(Encoder(tiny_clip).store(tmp_path, processor, videos), expected)


def test_rebuilding_leaves_what_is_not_the_stores(tiny_clip, processor, videos, tmp_path):
    Encoder(tiny_clip).store(tmp_path, processor, videos)
    (tmp_path / "notes.txt").write_text("mine")
    encoder = Encoder(tiny_clip)
    encoder.store(tmp_path, *other_weights(encoder, processor, videos), rebuild=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
