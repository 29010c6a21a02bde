"""Tiny videos, a tiny CLIP and training runs in child processes, for the tests of episodes, evaluation and training."""

import gc
import io
import json
import logging
import multiprocessing
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from golden.formula_model import tiny_clip_config, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from configuration_clipfsar import CLIPResNetConfig
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor
from resnet_clipfsar import CLIPResNetModel

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_FRAMES_IN_FILE = 12
VIDEOS_PER_CLASS = 8
COLOURS = {
    "train": {"red": (230, 30, 30), "green": (30, 200, 30), "dark_blue": (20, 20, 160), "yellow": (220, 220, 30)},
    "validation": {"cyan": (20, 200, 200), "magenta": (200, 20, 200), "white": (240, 240, 240)},
    "test": {"orange": (240, 140, 20), "violet": (120, 40, 180), "gray": (120, 120, 120)},
}


def write_video(path: Path, colour: tuple[int, int, int], seed: int):
    """Twelve plain frames of 32 x 32 pixels, of about one colour, that fade from one brightness to another."""
    rng = np.random.default_rng(seed)
    tint, (first, last) = rng.normal(0, 12, 3), rng.uniform(0.4, 1.0, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for brightness in np.linspace(first, last, NUM_FRAMES_IN_FILE):
            pixel = np.clip((np.array(colour) + tint) * brightness, 0, 255).astype(np.uint8)
            frame = np.broadcast_to(pixel, (32, 32, 3)).copy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_video_folder(folder: Path, videos_per_class: int = VIDEOS_PER_CLASS) -> Path:
    """A `videofolder` tree, SPLIT/CLASS/NUMBER.mp4, with the disjoint classes of `COLOURS`."""
    for split, colours in COLOURS.items():
        for class_number, (class_name, colour) in enumerate(colours.items()):
            (folder / split / class_name).mkdir(parents=True)
            for number in range(videos_per_class):
                path = folder / split / class_name / f"{number}.mp4"
                write_video(path, colour, seed=100 * class_number + number)
    return folder


def video_splits(folder: Path, classes: dict[str, dict] = COLOURS) -> DatasetDict:
    """Such a tree as data sets of paths and labels, without the cache that reading a `videofolder` writes."""
    splits = DatasetDict()
    for split, colours in classes.items():
        names = sorted(colours)
        paths = [str(path) for name in names for path in sorted((folder / split / name).glob("*.mp4"))]
        labels = [names.index(Path(path).parent.name) for path in paths]
        features = Features({"video": Value("string"), "label": ClassLabel(names=names)})
        splits[split] = Dataset.from_dict({"video": paths, "label": labels}, features=features)
    return splits


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer without merges: every letter is a token."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=32)


def save_tiny_clip(folder: Path) -> Path:
    """A plain CLIP checkpoint with random weights: one layer of width 32, 16 x 16 pixels, projection 16."""
    tokenizer = tiny_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "projection_dim": 16}
    vision = {"image_size": 16, "patch_size": 8, "projection_dim": 16}
    config = CLIPConfig(text_config=tower | special | text, vision_config=tower | vision, projection_dim=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop_size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=crop_size).save_pretrained(folder)
    return folder


def save_tiny_resnet_clip(folder: Path) -> Path:
    """The same with a ResNet of one block a stage for 32 x 32 pixels."""
    text_config = CLIPConfig.from_pretrained(save_tiny_clip(folder)).text_config  # and the tokenizer
    vision = {"depths": [1, 1, 1, 1], "width": 4, "image_size": 32, "projection_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPResNetModel(CLIPResNetConfig(text_config=text_config, vision_config=vision)).save_pretrained(folder)
    crop_size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop_size).save_pretrained(folder)
    return folder


def model_of_tiny_clip(tiny_clip: Path, **config) -> CLIPFSARModel:
    """A CLIP-FSAR on a plain CLIP, its new layers by a seed."""
    torch.manual_seed(0)
    return CLIPFSARModel.from_pretrained(tiny_clip, for_training=True, num_frames=4, **config).eval()


def tiny_model_and_processor(**overrides) -> tuple[CLIPFSARModel, CLIPFSARProcessor]:
    """A CLIP-FSAR model, its weights by a formula, and a processor for it; `overrides` are of its configuration."""
    tokenizer = tiny_tokenizer()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_config = {"vocab_size": len(tokenizer), "max_position_embeddings": 32} | special
    model = tiny_model(tiny_config(tiny_clip_config(text_config=text_config), **overrides))
    image_processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return model, CLIPFSARProcessor(image_processor, tokenizer, num_frames=4)


def random_clip(seed: int) -> np.ndarray:
    """Eight frames of noise around a colour of its own, uint8 (8, 20, 24, 3): clips whose features differ."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.integers(0, 200, 3) + rng.integers(0, 56, (8, 20, 24, 3)), 0, 255).astype(np.uint8)


def similar_clips(seed: int, number: int) -> list[np.ndarray]:
    """Clips with other noise around one colour: left out of their class, they are still nearest to it."""
    colour = np.random.default_rng(seed).integers(0, 200, 3)
    rngs = [np.random.default_rng([seed, row]) for row in range(number)]
    return [(colour + rng.integers(0, 56, (8, 20, 24, 3))).astype(np.uint8) for rng in rngs]


def add_foreign_tensor(folder: Path) -> None:
    """Adds a tensor to a saved model that is none of its own: transformers reports it when it loads the model."""
    weights = load_file(folder / "model.safetensors") | {"of.another": torch.zeros(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def said_by(function: Callable[[], object]) -> str:
    """All that a call prints, warns of and logs."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    loggers = [logging.getLogger(name) for name in ("transformers", "torch.onnx", "onnxscript")]
    for logger in loggers:
        logger.setLevel(logging.WARNING)  # an earlier export may have changed it
        logger.addHandler(handler)
    transformers_logging.enable_progress_bar()
    transformers_logging.warning_once.cache_clear()
    with redirect_stdout(text), redirect_stderr(text), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)
        function()
    for logger in loggers:
        logger.removeHandler(handler)
    return "\n".join([text.getvalue(), *(str(one.message) for one in warned)])


# ----------------------------------------------------------------------------------------------------------------------
# Programs in child processes
# ----------------------------------------------------------------------------------------------------------------------

# A child is a fork of a server that has imported everything once: a run costs a second rather than ten, and is still a
# process of its own that accelerate's global state, a process group or SIGKILL stay in.
_SERVER = multiprocessing.get_context("forkserver")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}


@dataclass
class Outcome:
    """How a function in child processes ended: exit codes (minus the signal where killed) and what they printed."""

    exit_codes: list[int]
    output: str

    def check(self) -> "Outcome":
        assert set(self.exit_codes) == {0}, self.output
        return self


def child_environment(**variables: str) -> dict[str, str]:
    """Environment of a child: the repository importable, one thread, no accelerator, no network."""
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}


def run_in_children(function, *arguments, folder: Path, num_processes: int = 1, timeout_seconds: int = 120) -> Outcome:
    """Runs a module-level function in one process, or in several that `torch.distributed` (gloo) joins.

    What the processes print goes through a file in `folder`.
    """
    _start_server()
    variables = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"output_{len(list(folder.glob('output_*')))}.txt"
    children = [
        _SERVER.Process(
            target=_run_child,
            args=(function, arguments, output, variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}),
        )
        for rank in range(num_processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout_seconds)
        if child.exitcode is None:
            child.kill()
            child.join()
    return Outcome([child.exitcode for child in children], output.read_text())


def _run_child(function, arguments, output: Path, variables: dict[str, str]):
    if variables["WORLD_SIZE"] == "1":
        variables = {}
    os.environ.update(variables)
    torch.set_num_threads(1)
    gc.freeze()  # what the server imported is not searched for garbage in every child
    # A forked child has the server's way of starting processes, with which each worker of a loader would import
    # everything anew; a program has the default of the platform.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    try:
        function(*arguments)
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        if code == 1:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.stdout.flush()
    sys.stderr.flush()


def _start_server():
    _SERVER.set_forkserver_preload(["clipfsar.training.program", "tiny_data"])
    before = dict(os.environ)
    os.environ.update(child_environment())
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


# ----------------------------------------------------------------------------------------------------------------------
# Training runs
# ----------------------------------------------------------------------------------------------------------------------

SETTINGS = {
    "n_way": 3,
    "train_n_query": 1,
    "n_shot": [1, 2],
    "num_frames": 4,
    "episodes": 16,
    "episodes_per_update": 4,
    "learning_rate": 1e-3,
    "warmup_learning_rate": 1e-4,
    "warmup_episodes": 4,
    "eval_every": 8,
    "eval_episodes": 20,
    "test_episodes": 20,
    "log_every": 4,
    "num_workers": 0,
    "report_to": "none",
}


def training_arguments(dataset: Path, model: Path, output_dir: Path, **overrides) -> list[str]:
    """Command line of a run of a few seconds: four updates, two validations, a test."""
    settings = {"dataset": dataset, "model": model, "output_dir": output_dir, **SETTINGS, **overrides}
    if not settings["warmup_episodes"]:
        settings.pop("warmup_learning_rate", None)  # an option without effect is refused
    arguments = []
    for name, value in settings.items():
        arguments.append(f"--{name}")
        arguments += [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return arguments


def read_log(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "training_log.jsonl").read_text().splitlines()]
