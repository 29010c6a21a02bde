"""Episodes in a file: read back they are the same, and about the same videos."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file

from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.episode_list import read_episodes, write_episodes
from episodes_clipfsar import EpisodeSampler

LABELS = np.arange(40) % 5


def rows(episode) -> list:
    return [part.tolist() for part in (episode.class_ids, episode.support_rows, episode.query_rows)]


@pytest.mark.parametrize(("n_way", "n_shot", "n_query"), [(3, 1, 1), (5, 2, 4)])
def test_episodes_read_back_are_those_written(n_way, n_shot, n_query, tmp_path):
    sampler = EpisodeSampler(LABELS, n_way, n_shot, n_query, seed=3)
    write_episodes(tmp_path / "episodes", sampler, 7, "digest")
    episodes = read_episodes(tmp_path / "episodes", "digest")
    assert (len(episodes), episodes.n_way, episodes.n_shot, episodes.n_query) == (7, n_way, n_shot, n_query)
    for index in range(7):
        assert rows(episodes.sample(index)) == rows(sampler.sample(index))
    assert episodes.sample(0).support_rows.shape == (n_way, n_shot)
    assert episodes.sample(0).support_rows.dtype == np.int64


def test_episodes_of_other_videos_are_refused(tmp_path):
    write_episodes(tmp_path / "episodes", EpisodeSampler(LABELS), 2, "digest")
    with pytest.raises(ValueError, match=r"The episodes in .* are about other videos \(or the same in another order\)"):
        read_episodes(tmp_path / "episodes", "another digest")


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"embeds": torch.zeros(2), "rows": torch.zeros(1)}, tmp_path / "features.safetensors")
    with pytest.raises(ValueError, match=r"features\.safetensors is no list of episodes: it holds embeds, rows"):
        read_episodes(tmp_path / "features.safetensors", "digest")


@pytest.mark.parametrize("content", [b"", b"episode 1: run, dive, swim; a list, but not ours"], ids=["empty", "text"])
def test_a_file_of_another_format_is_refused(content, tmp_path):
    (tmp_path / "episodes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"episodes\.txt is no list of episodes"):
        read_episodes(tmp_path / "episodes.txt", "digest")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no list of episodes at .*nowhere"):
        read_episodes(tmp_path / "nowhere", "digest")


# --- what a list says must be true of the videos ----------------------------------------------------------------------


def split_of(names: list[str]) -> VideoSplit:
    """Videos at addresses, which nobody opens, of these classes."""
    return VideoSplit(
        Dataset.from_dict({"video": [f"https://example.org/{row}.mp4" for row in range(len(names))], "label": names})
    )


NAMES = ["dive", "dive", "dive", "run", "run", "run", "swim", "swim", "swim"]
SPLIT = split_of(NAMES)
SAMPLER = EpisodeSampler(SPLIT.labels, n_way=2, n_shot=1, n_query=2)


def tensors_of(n_episodes: int = 4) -> dict[str, torch.Tensor]:
    episodes = [SAMPLER.sample(index) for index in range(n_episodes)]
    names = ("class_ids", "support_rows", "query_rows")
    return {name: torch.tensor(np.stack([getattr(each, name) for each in episodes])) for name in names}


def write_like_0_2(path, tensors: dict[str, torch.Tensor]):
    """A list as version 0.2.0 wrote it: without a checksum and without the identity of the classes."""
    save_file(tensors, path, metadata={"videos": SPLIT.digest, "seed": "0"})


@pytest.mark.parametrize(
    "names",
    [
        ["dive", "dive", "run", "dive", "run", "run", "swim", "swim", "swim"],
        [name.replace("run", "race") for name in NAMES],
    ],
    ids=["two labels swapped", "a class renamed"],
)
def test_a_list_is_not_read_after_labels_or_class_names_have_changed(names, tmp_path):
    write_episodes(tmp_path / "episodes", SAMPLER, 4, SPLIT)
    assert len(read_episodes(tmp_path / "episodes", SPLIT)) == 4
    with pytest.raises(ValueError, match=r"Labels or class names of the videos have changed since .* was written"):
        read_episodes(tmp_path / "episodes", split_of(names))


def test_any_flipped_bit_of_a_list_is_found(tmp_path):
    path = tmp_path / "episodes"
    write_episodes(path, SAMPLER, 2, SPLIT)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(ValueError, match=r"is damaged|is no list of episodes"):
            read_episodes(path, SPLIT)


def test_a_list_of_version_0_2_is_read(tmp_path):
    write_like_0_2(tmp_path / "episodes", tensors_of())
    episodes = read_episodes(tmp_path / "episodes", SPLIT)
    assert [rows(episodes.sample(index)) for index in range(4)] == [rows(SAMPLER.sample(index)) for index in range(4)]


def test_the_labels_of_a_list_of_version_0_2_are_compared(tmp_path):
    write_like_0_2(tmp_path / "episodes", tensors_of())
    labels = ["dive", "dive", "run", "dive", "run", "run", "swim", "swim", "swim"]
    with pytest.raises(ValueError, match=r"Episode \d in .* gives row \d another class than the videos do"):
        read_episodes(tmp_path / "episodes", split_of(labels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it["query_rows"].copy_(it["support_rows"].expand(-1, -1, 2)), "has a query video in its support"),
        (lambda it: it["class_ids"][2].fill_(1), "Episode 2 in .* has a class twice"),
        (lambda it: it["support_rows"][1].fill_(-1), "Episode 1 in .* has negative numbers"),
        (lambda it: it["query_rows"][0, 0].fill_(9), "name row 9, but there are 9"),
        (lambda it: it["class_ids"].copy_(it["class_ids"].flip(1)), "another class than the videos do"),
        (lambda it: it.update(class_ids=it["class_ids"].float()), "class_ids must be int64, not torch.float32"),
        (lambda it: it.update({name: each[:0] for name, each in it.items()}), "holds no episodes"),
        (lambda it: it.update(query_rows=it["query_rows"][:3]), "shapes .* do not match"),
        (lambda it: it.update(class_ids=it["class_ids"].flatten()), "shapes .* do not match"),
        (lambda it: it.update({name: each[:, :1] for name, each in it.items()}), "of at least two classes"),
    ],
)
def test_episodes_that_cannot_be_are_refused(change, message, tmp_path):
    tensors = tensors_of()
    change(tensors)
    write_like_0_2(tmp_path / "episodes", {name: each.contiguous() for name, each in tensors.items()})
    with pytest.raises(ValueError, match=message):
        read_episodes(tmp_path / "episodes", SPLIT)


def test_a_list_that_does_not_say_its_videos_is_refused(tmp_path):
    save_file(tensors_of(), tmp_path / "episodes")
    with pytest.raises(ValueError, match="is no list of episodes: it does not say its videos"):
        read_episodes(tmp_path / "episodes", SPLIT)
