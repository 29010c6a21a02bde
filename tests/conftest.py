"""Fixtures that several test files use."""

import signal

import pytest
import torch
from accelerate.state import AcceleratorState
from golden import formula_model
from tiny_data import save_tiny_clip
from transformers import dynamic_module_utils

from processing_clipfsar import CLIPFSARProcessor

# Tests run in as many processes as there are cores (pytest -n 2); torch's own threads would only get in their way.
torch.set_num_threads(1)

# A shell starts background jobs with Ctrl-C ignored, and so would be every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The files that take longest, longest first: each is one process's work, and the last to begin would run alone.
LONG_FILES = (
    *("test_training.py", "test_export_model.py", "test_prepare_dataset.py", "test_trainer.py", "test_evaluation.py"),
    *("test_trainable.py", "test_demo.py", "test_run_folder.py", "test_alignment.py"),
)


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))  # stable


def pytest_make_parametrize_id(val, argname):
    """Bytes are left out of the names of tests: a zip file holds the time at which it was made, and all processes of a
    run must find the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def modules_cache(tmp_path_factory):
    """transformers keeps the code of folders loaded with trust_remote_code: not in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", folder)
        # In front: evaluate puts the user's own cache on the path, where a folder of the same name may lie.
        patch.syspath_prepend(folder)
        yield


@pytest.fixture
def tiny_config():
    """Makes a small configuration; keyword arguments are its fields."""
    return formula_model.tiny_config


@pytest.fixture
def tiny_model():
    """Makes a small model in evaluation mode, its weights by a formula; keyword arguments are configuration fields."""
    return formula_model.tiny_model


@pytest.fixture
def tiny_episode():
    """Makes the inputs of one episode for the small model, by a formula too."""
    return formula_model.tiny_episode


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """Folder of a plain CLIP with random weights."""
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return CLIPFSARProcessor.from_pretrained(tiny_clip, num_frames=4)


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps its settings for the whole process, also those of tests without this fixture."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
