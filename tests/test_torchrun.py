"""Training under torchrun: two nodes on one machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_data import child_environment, free_port, read_log, training_arguments, video_splits, write_video_folder

pytestmark = pytest.mark.whole_program

SHORT = {"episodes": 8, "eval_every": 4, "eval_episodes": 4, "test_episodes": 0, "resume": True}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    video_splits(write_video_folder(folder / "videos", videos_per_class=3)).save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.fixture
def start():
    """Starts torchrun with options and a program. What still runs after the test, such as workers, is killed."""
    started = []

    def run(options: list[str], program: list[str]) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", *options, *program]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        started.append(subprocess.Popen(command, env=child_environment(), **output))
        return started[-1]

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def two_nodes(start: Callable, dataset: Path, tiny_clip: Path, output_dirs: list[Path]) -> list[tuple[int, str]]:
    """Exit code and output of each node."""
    port = free_port()
    nodes = []
    for rank, output_dir in enumerate(output_dirs):
        options = ["1", "--nnodes", "2", "--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", port]
        arguments = training_arguments(dataset, tiny_clip, output_dir, **SHORT)
        nodes.append(start(options, ["-m", "clipfsar", "train", *arguments]))
    outputs = [node.communicate(timeout=600)[0] for node in nodes]
    return [(node.returncode, output) for node, output in zip(nodes, outputs, strict=True)]


def test_two_nodes_train_in_a_folder_that_they_share_and_in_no_others(start, dataset, tiny_clip, tmp_path):
    for code, output in two_nodes(start, dataset, tiny_clip, [tmp_path / "one", tmp_path / "two"]):
        assert code == 1
        assert "is not one folder for all processes: what the main process on" in " ".join(output.split())
        assert "clipfsar/training/program.py" not in output  # a sentence, no traceback of ours
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    for code, output in two_nodes(start, dataset, tiny_clip, [tmp_path / "shared"] * 2):
        assert code == 0, output
    assert [line["episode"] for line in read_log(tmp_path / "shared")] == [4, 4, 8, 8]
