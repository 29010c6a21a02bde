"""Saved folders and pushed repositories carry the code: a Python without this checkout loads and runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from golden.formula_model import (
    RESNET_IMAGE_SIZE,
    tiny_clip_config,
    tiny_config,
    tiny_model,
    tiny_resnet_clip_config,
)
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPTokenizer

from processing_clipfsar import CLIPFSARProcessor

ROOT = Path(__file__).resolve().parents[1]
MODES = ("few_shot", "zero_shot", "ensemble")
CODE_FILES = {f"{name}_clipfsar.py" for name in ("configuration", "modeling", "processing", "resnet")}

# Runs elsewhere, with nothing of ours to import: the names are blocked, because an installation of the project may have
# put them beside transformers.
CHILD = """
import importlib, sys
from pathlib import Path

folder, resnet_folder, videos_file, result_dir, *blocked = sys.argv[1:]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
for name in blocked:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} can be imported")

import numpy as np, torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, AutoProcessor

torch.set_num_threads(1)
videos = dict(np.load(videos_file))
support = {name: [videos[name]] for name in ("boxing", "diving")}
results = {}

def run(folder, label, auto_class):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    for thing in (config, processor, model):
        assert type(thing).__module__.startswith("transformers_modules."), type(thing)
        assert type(thing).__name__.startswith("CLIPFSAR"), type(thing)
    assert type(model.config) is type(config)
    inputs = processor(support_videos=support, query_videos=[videos["query"]], return_tensors="pt")
    with torch.no_grad():
        for mode in ("few_shot", "zero_shot", "ensemble"):
            results[f"{label}.{mode}"] = model(**inputs, inference_mode=mode).logits
    return model, processor

try:
    AutoModel.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("custom code ran without being trusted")

run(folder, "AutoModel", AutoModel)
model, processor = run(folder, "AutoModelForVideoClassification", AutoModelForVideoClassification)
again = Path(result_dir) / "saved_again"
model.save_pretrained(again)
processor.save_pretrained(again)
run(str(again), "saved_again", AutoModel)
run(resnet_folder, "resnet", AutoModel)

alone = Path(result_dir) / "processor_alone"
processor.save_pretrained(alone)
shape = AutoProcessor.from_pretrained(alone, trust_remote_code=True).process_videos([videos["query"]]).shape
assert tuple(shape) == (1, 4, 3, 16, 16), shape
save_file(results, Path(result_dir) / "logits.safetensors")
"""


@pytest.fixture(scope="module")
def model_and_processor():
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=32)
    text_config = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = tiny_model(tiny_config(tiny_clip_config(text_config=text_config)))
    image_processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return model, CLIPFSARProcessor(image_processor, tokenizer, num_frames=4)


@pytest.fixture(scope="module")
def resnet_and_processor(model_and_processor):
    """The same with a ResNet as visual tower, for larger images."""
    vit, processor = model_and_processor
    clip_config = tiny_resnet_clip_config()
    clip_config.text_config = vit.config.clip_config.text_config
    size = {"height": RESNET_IMAGE_SIZE, "width": RESNET_IMAGE_SIZE}
    image_processor = CLIPImageProcessor(size={"shortest_edge": RESNET_IMAGE_SIZE}, crop_size=size)
    return tiny_model(tiny_config(clip_config)), CLIPFSARProcessor(image_processor, processor.tokenizer, num_frames=4)


@pytest.fixture(scope="module")
def videos():
    """Two classes' support videos and a query, (frames, height, width, 3)."""
    generator = np.random.default_rng(0)
    return {name: generator.integers(0, 256, (8, 20, 24, 3), dtype=np.uint8) for name in ("boxing", "diving", "query")}


def logits_of_all_modes(model_and_processor, videos):
    model, processor = model_and_processor
    support = {name: [videos[name]] for name in ("boxing", "diving")}
    inputs = processor(support_videos=support, query_videos=[videos["query"]], return_tensors="pt")
    with torch.no_grad():
        return {mode: model(**inputs, inference_mode=mode).logits for mode in MODES}


@pytest.fixture(scope="module")
def expected_logits(model_and_processor, videos):
    return logits_of_all_modes(model_and_processor, videos)


@pytest.fixture(scope="module")
def saved_folder(model_and_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for part in model_and_processor:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def resnet_folder(resnet_and_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet")
    for part in resnet_and_processor:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pushed_folder(model_and_processor, tmp_path_factory):
    """What `push_to_hub` uploads; the Hub is a folder."""
    folder = tmp_path_factory.mktemp("pushed")

    def create_commit(self, repo_id, operations, **kwargs):
        assert repo_id == "someone/clip-fsar"
        for operation in operations:
            target = folder / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(operation.path_or_fileobj, target)
        return "a commit"

    def load_card(repo_id, **kwargs):
        return huggingface_hub.ModelCard("---\nlibrary_name: transformers\n---\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id)
        )
        patch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
        patch.setattr(transformers.utils.hub.ModelCard, "load", load_card)
        for part in model_and_processor:
            assert part.push_to_hub("someone/clip-fsar") == "a commit"
    return folder


@pytest.fixture(scope="module")
def child_results(saved_folder, pushed_folder, resnet_folder, videos, tmp_path_factory):
    """One fresh Python for each of the two folders, at the same time: most of it is importing."""
    blocked = [*(path.stem for path in ROOT.glob("*_clipfsar.py")), "clipfsar"]
    children = {}
    for name, folder in (("saved", saved_folder), ("pushed", pushed_folder)):
        elsewhere = tmp_path_factory.mktemp(f"{name}_child")
        np.savez(elsewhere / "videos.npz", **videos)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(elsewhere / "hf_home"),
            "HF_MODULES_CACHE": str(elsewhere / "modules"),
        }
        # -I: neither the working folder, nor PYTHONPATH, nor a user's own packages.
        command = [sys.executable, "-I", "-c", CHILD, folder, resnet_folder, elsewhere / "videos.npz", elsewhere]
        children[name] = (
            elsewhere,
            subprocess.Popen(
                [str(part) for part in (*command, *blocked)],
                cwd=elsewhere,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ),
        )
    results = {}
    for name, (elsewhere, process) in children.items():
        output, _ = process.communicate(timeout=300)
        results[name] = SimpleNamespace(folder=elsewhere, returncode=process.returncode, output=output)
    return results


@pytest.mark.whole_program
@pytest.mark.parametrize("origin", ["saved", "pushed"])
def test_fresh_python_without_the_checkout_gives_the_same_bits(child_results, expected_logits, origin):
    result = child_results[origin]
    assert result.returncode == 0, result.output
    logits = load_file(result.folder / "logits.safetensors")
    for label in ("AutoModel", "AutoModelForVideoClassification", "saved_again"):
        for mode in MODES:
            assert torch.equal(logits[f"{label}.{mode}"], expected_logits[mode]), (label, mode)


@pytest.mark.whole_program
def test_fresh_python_runs_a_resnet_too(child_results, resnet_and_processor, videos):
    result = child_results["saved"]
    assert result.returncode == 0, result.output
    logits = load_file(result.folder / "logits.safetensors")
    for mode, expected in logits_of_all_modes(resnet_and_processor, videos).items():
        assert torch.equal(logits[f"resnet.{mode}"], expected), mode


def test_logits_to_compare_are_not_trivial(expected_logits):
    for mode in MODES:
        assert expected_logits[mode].shape == (1, 1, 2)
        assert (expected_logits[mode][..., 0] - expected_logits[mode][..., 1]).abs().item() > 1e-4


@pytest.mark.whole_program
def test_saved_folder_holds_the_code_as_it_stands_here(saved_folder, pushed_folder, child_results):
    for folder in (saved_folder, pushed_folder, child_results["saved"].folder / "saved_again"):
        names = {path.name for path in folder.iterdir()}
        assert names >= CODE_FILES | {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}
        for name in CODE_FILES:
            assert (folder / name).read_bytes() == (ROOT / name).read_bytes(), folder / name


def test_saved_files_lead_the_auto_classes_to_the_code(saved_folder):
    auto_map = json.loads((saved_folder / "config.json").read_text())["auto_map"]
    assert auto_map["AutoConfig"] == "configuration_clipfsar.CLIPFSARConfig"
    assert auto_map["AutoModel"] == "modeling_clipfsar.CLIPFSARModel"
    assert auto_map["AutoModelForVideoClassification"] == "modeling_clipfsar.CLIPFSARModel"
    auto_map = json.loads((saved_folder / "processor_config.json").read_text())["auto_map"]
    assert auto_map["AutoProcessor"] == "processing_clipfsar.CLIPFSARProcessor"


def test_nothing_of_this_machine_is_saved(saved_folder, pushed_folder):
    for folder in (saved_folder, pushed_folder):
        for path in folder.glob("*.json"):
            assert str(ROOT) not in path.read_text(), path
            assert str(folder) not in path.read_text(), path


def test_pushed_repository_has_a_model_card(pushed_folder):
    assert "library_name: transformers" in (pushed_folder / "README.md").read_text()
