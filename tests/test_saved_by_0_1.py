"""What version 0.1 saved keeps loading: a model folder with its code, a support set, a feature store.

`saved_by_0_1/` was written by version 0.1 on a tiny model (weights by a formula) and four rendered clips;
`expected.safetensors` holds its answers to three clips and its frame features of the four.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tiny_data import child_environment, random_clip

from clipfsar.data import older_reader
from clipfsar.data.arguments import PrepareArguments
from clipfsar.data.prepare import main as prepare
from clipfsar.data.splits import load_video_splits
from clipfsar.evaluation import feature_store
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.feature_store import FeatureStore
from container_clipfsar import READER_VERSION
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor
from support_set_clipfsar import SupportSet

SAVED = Path(__file__).resolve().parent / "saved_by_0_1"
EXPECTED = load_file(SAVED / "expected.safetensors")
QUERIES = [random_clip(90 + number) for number in range(3)]


@pytest.fixture
def parts():
    return CLIPFSARModel.from_pretrained(SAVED / "model").eval(), CLIPFSARProcessor.from_pretrained(SAVED / "model")


def test_model_and_support_set_answer_as_they_did(parts):
    model, processor = parts
    support_set = SupportSet.from_pretrained(SAVED / "support_set")
    assert support_set.num_clips == {"swim": 1, "brush_hair": 2, "climb stairs": 3}
    support_set.check(model, processor)
    with torch.no_grad():
        logits = support_set.classify(model, model.get_video_features(processor.process_videos(QUERIES)))
    torch.testing.assert_close(logits, EXPECTED["logits"], rtol=0, atol=1e-5)


def test_the_folder_runs_the_code_that_was_saved_with_it(tmp_path):
    # in a process that cannot import what stands in this checkout
    program = """
import json, sys
from importlib.util import find_spec
assert find_spec("modeling_clipfsar") is None
import torch
from safetensors.torch import load_file
from transformers import pipeline
classify = pipeline("few-shot-video-classification", model=sys.argv[1], support_set=sys.argv[2], trust_remote_code=True)
queries = [video.numpy() for video in load_file(sys.argv[3])["queries"]]
print(json.dumps([{entry["label"]: entry["score"] for entry in answer} for answer in classify(queries)]))
"""
    save_file(
        {"queries": torch.stack([torch.from_numpy(query) for query in QUERIES])}, tmp_path / "queries.safetensors"
    )
    environment = child_environment(HF_MODULES_CACHE=str(tmp_path / "modules"))
    environment["PYTHONPATH"] = ""
    arguments = [str(SAVED / "model"), str(SAVED / "support_set"), str(tmp_path / "queries.safetensors")]
    child = subprocess.run(
        [sys.executable, "-c", _WITHOUT_THE_LIBRARY + program, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    answers = json.loads(child.stdout.splitlines()[-1])
    expected = EXPECTED["logits"].softmax(-1).tolist()
    for answer, scores in zip(answers, expected, strict=True):
        assert [answer[name] for name in ("swim", "brush_hair", "climb stairs")] == pytest.approx(scores, abs=1e-5)


# The editable installation finds our modules by a finder of its own; without it, only the folder's code is left.
_WITHOUT_THE_LIBRARY = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
"""


@pytest.fixture
def encoder(parts, monkeypatch):
    monkeypatch.setattr(VideoEncoder, "batches", None)  # the features are there already
    return VideoEncoder(*parts, Accelerator(cpu=True))


@pytest.fixture
def dataset():
    videos = [SAVED / "videos" / name / f"{number}.mp4" for name in ("swim", "brush_hair") for number in range(2)]
    return Dataset.from_dict({"video": [str(video) for video in videos], "label": [v.parent.name for v in videos]})


def test_the_feature_store_is_taken_over(encoder, dataset, tmp_path, monkeypatch):
    shutil.copytree(SAVED / "feature_store", tmp_path / "store")
    embeds = FeatureStore(tmp_path / "store", encoder).encode(dataset)
    torch.testing.assert_close(embeds, EXPECTED["video_embeds"], rtol=0, atol=0)
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["reader"] == READER_VERSION
    monkeypatch.setattr(feature_store, "frames_differ_from_0_1", None)  # looked at once
    assert torch.equal(FeatureStore(tmp_path / "store", encoder).encode(dataset), embeds)


def test_features_of_files_that_were_read_wrongly_are_refused(encoder, dataset, tmp_path, monkeypatch):
    def differ(video, sampling):
        return "it is mirrored" if video.endswith("swim/1.mp4") else None

    monkeypatch.setattr(feature_store, "frames_differ_from_0_1", differ)
    shutil.copytree(SAVED / "feature_store", tmp_path / "store")
    with pytest.raises(ValueError, match=r"read other frames of 1 of the 4 videos: 1\.mp4 \(it is mirrored\)\. Name"):
        FeatureStore(tmp_path / "store", encoder).encode(dataset)


def test_kept_frames_of_files_that_were_read_wrongly_are_refused(tmp_path, monkeypatch):
    arguments = PrepareArguments(
        source=str(SAVED / "videos"),
        class_split=[1, 1, 0],
        frame_store="jpeg",
        frame_size=16,
        num_workers=1,
        output_dir=str(tmp_path / "data"),
    )
    prepare(arguments)
    load_video_splits(str(tmp_path / "data"))
    path = tmp_path / "data" / "preparation.json"
    report = json.loads(path.read_text())
    assert report.pop("reader") == READER_VERSION
    path.write_text(json.dumps(report))  # as version 0.1 wrote it
    monkeypatch.setattr(
        older_reader, "frames_differ_from_0_1", lambda file: "it is mirrored" if "swim/1" in file else None
    )
    with pytest.raises(
        ValueError, match=r"keeps frames of 1 files that version 0\.1 read wrongly: .*swim/1\.mp4 \(it is mirrored"
    ):
        load_video_splits(str(tmp_path / "data"))
    monkeypatch.setattr(older_reader, "frames_differ_from_0_1", lambda file: None)
    load_video_splits(str(tmp_path / "data"))
    assert json.loads(path.read_text())["reader"] == READER_VERSION
