"""Episodes in a file: read back they are the same, and about the same videos."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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
