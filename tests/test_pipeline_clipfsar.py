"""The pipeline: every kind of input and of classes, batches, marked errors, and the same scores in a fresh Python."""

import io
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_data import random_clip, similar_clips, tiny_model_and_processor, write_video
from transformers import CLIPProcessor, ViTConfig, ViTModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import pipeline_clipfsar
from modeling_clipfsar import CLIPFSARModel
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from processing_clipfsar import CLIPFSARProcessor, VideoReadError
from support_set_clipfsar import SupportSet

ROOT = Path(__file__).resolve().parents[1]
TASK = "few-shot-video-classification"
CLIPS = {"boxing": similar_clips(0, 2), "diving": [random_clip(3)], "running": [random_clip(4)]}
QUERIES = [random_clip(10), random_clip(11), random_clip(12)]
EPISODE = {"support_videos": CLIPS, "query_videos": QUERIES}
MISSING = "no/such/clip.mp4"


@pytest.fixture(scope="module")
def parts():
    return tiny_model_and_processor()


@pytest.fixture(scope="module")
def classify(parts):
    model, processor = parts
    return pipeline(TASK, model=model, processor=processor, device="cpu", support_set=CLIPS)


@pytest.fixture(scope="module")
def expected(parts):
    """Answers of the model itself, per mode."""
    model, processor = parts
    inputs = processor(support_videos=CLIPS, query_videos=QUERIES)
    with torch.no_grad():
        outputs = {mode: model(**inputs, inference_mode=mode) for mode in ("few_shot", "zero_shot", "ensemble")}
    return {mode: processor.post_process_video_classification(out, list(CLIPS)) for mode, out in outputs.items()}


def assert_same(answers, expected):
    assert len(answers) == len(expected)
    for answer, wanted in zip(answers, expected, strict=True):
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in wanted]
        assert [entry["score"] for entry in answer] == pytest.approx([entry["score"] for entry in wanted], abs=1e-6)


@pytest.mark.parametrize("mode", ["few_shot", "zero_shot", "ensemble"])
def test_scores_are_those_of_the_model(classify, expected, mode):
    assert_same([classify(query, inference_mode=mode) for query in QUERIES], expected[mode])


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_lists_generators_and_data_sets_give_the_same(classify, expected, tmp_path, batch_size):
    folders = []
    for number, query in enumerate(QUERIES):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        for frame, image in enumerate(query):
            Image.fromarray(image).save(folders[-1] / f"{frame}.png")
    paths = [str(folder) for folder in folders]
    rows = datasets.Dataset.from_dict({"clip": paths})
    options = {"batch_size": batch_size}
    assert_same(classify(QUERIES, **options), expected["few_shot"])
    assert_same(classify(tuple(paths), **options), expected["few_shot"])
    assert_same(classify([list(map(Image.fromarray, query)) for query in QUERIES], **options), expected["few_shot"])
    for lazy in (
        (query for query in QUERIES),
        iter(folders),
        KeyDataset(rows, "clip"),
    ):
        answers = classify(lazy, **options)
        assert not isinstance(answers, list)
        assert_same(list(answers), expected["few_shot"])
    assert_same(list(classify(rows, video_column="clip", **options)), expected["few_shot"])
    streamed = rows.to_iterable_dataset()
    assert_same(list(classify(streamed, video_column="clip", **options)), expected["few_shot"])


@pytest.mark.parametrize("kind", ["column", "video column", "tuple", "object array", "series"])
def test_sequences_that_are_no_lists_are_several_videos(kind, parts, classify, expected, tmp_path):
    paths = [str(tmp_path / f"{number}.mp4") for number in range(3)]
    for number, path in enumerate(paths):
        write_video(Path(path), (200, 30, 80 * number), seed=number)
    rows = datasets.Dataset.from_dict({"v": paths})
    sequence = {
        "column": lambda: rows["v"],
        "video column": lambda: rows.cast_column("v", datasets.Video())["v"],
        "tuple": lambda: tuple(paths),
        "object array": lambda: np.array(paths, dtype=object),
        "series": lambda: pytest.importorskip("pandas").Series(paths, index=[5, 6, 7]),
    }[kind]()
    answers = classify(sequence)
    assert isinstance(answers, list)
    assert_same(answers, classify(paths))
    assert_same(classify(sequence, batch_size=2), classify(paths))
    model, processor = parts
    torch.testing.assert_close(processor.process_videos(sequence), processor.process_videos(paths))
    enrolled = pipeline(TASK, model=model, processor=processor, device="cpu").enroll({"a": sequence, "b": paths})
    assert enrolled.num_clips == {"a": len(paths), "b": len(paths)}
    torch.testing.assert_close(enrolled.classes["a"].support_embeds, enrolled.classes["b"].support_embeds)


def test_a_comma_splits_a_single_string_of_labels_only(parts):
    model, processor = parts
    ask = pipeline(TASK, model=model, processor=processor, device="cpu")
    labels = ["red star", "green, wavy ring"]
    assert {entry["label"] for entry in ask(QUERIES[0], candidate_labels=labels)} == set(labels)
    answer = ask(QUERIES[0], candidate_labels="red star, ring,")
    assert {entry["label"] for entry in answer} == {"red star", "ring"}


def test_two_labels_of_one_text_are_named(parts):
    model, processor = parts
    ask = pipeline(TASK, model=model, processor=processor, device="cpu")
    with pytest.raises(ValueError, match="'Boxing' and 'boxing' become the same text"):
        ask(QUERIES[0], candidate_labels=["Boxing", "boxing"])
    with pytest.raises(ValueError, match="'boxing' and 'Boxing' become the same text"):
        ask.enroll({"boxing": CLIPS["boxing"], "Boxing": ["not read at all.mp4"]})


def test_one_video_as_a_list_of_images_is_one_video(classify, expected):
    assert_same([classify([Image.fromarray(frame) for frame in QUERIES[0]])], expected["few_shot"][:1])


@pytest.mark.parametrize("open_file", [lambda path: path.open("rb"), lambda path: io.BytesIO(path.read_bytes())])
def test_a_file_object_is_one_video_and_no_iterator_of_lines(open_file, classify, tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, (200, 30, 80), seed=0)
    with open_file(path) as file:
        assert_same([classify(file)], [classify(str(path))])


def test_the_video_column_of_the_pipeline_is_that_of_its_calls(parts, expected):
    model, processor = parts
    rows = datasets.Dataset.from_dict({"clip": [str(number) for number in range(2)], "other": ["x", "y"]})
    classify = pipeline(TASK, model=model, processor=processor, candidate_labels="a, b", video_column="clip")
    for options, names in (({}, "01"), ({"video_column": "other"}, "xy")):
        answers = list(classify(rows, **options))
        assert [name in answer[0]["error"] for name, answer in zip(names, answers, strict=True)] == [True, True]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_episode_carries_its_own_classes(parts, expected, batch_size):
    model, processor = parts
    alone = pipeline(TASK, model=model, processor=processor, device="cpu")
    episode = {"support_videos": CLIPS, "query_videos": QUERIES}
    assert_same(alone(episode), expected["few_shot"])
    assert_same(alone(episode, inference_mode="ensemble"), expected["ensemble"])
    for answers in alone([episode, episode], batch_size=batch_size):
        assert_same(answers, expected["few_shot"])
    flat = {"support_videos": [clip for clips in CLIPS.values() for clip in clips], "query_videos": QUERIES}
    assert_same(alone(flat | {"support_labels": ["boxing", "boxing", "diving", "running"]}), expected["few_shot"])
    assert_same(alone({"class_names": list(CLIPS), "query_videos": QUERIES}), expected["zero_shot"])


def test_class_names_alone_are_zero_shot(parts, classify, expected):
    assert_same(classify(QUERIES, candidate_labels=list(CLIPS)), expected["zero_shot"])
    model, processor = parts
    by_names = pipeline(
        TASK, model=model, processor=processor, device="cpu", candidate_labels="boxing, diving, running"
    )
    assert_same([by_names(QUERIES[0])], expected["zero_shot"][:1])
    by_names.enroll(CLIPS)
    assert_same([by_names(QUERIES[0])], expected["few_shot"][:1])


def test_enrolling_adds_to_what_is_there(parts, expected):
    model, processor = parts
    growing = pipeline(TASK, model=model, processor=processor, device="cpu")
    growing.enroll({"boxing": CLIPS["boxing"][0]})
    growing.enroll({"boxing": CLIPS["boxing"][1], "diving": CLIPS["diving"], "running": CLIPS["running"]})
    assert growing.support_set.num_clips == {"boxing": 2, "diving": 1, "running": 1}
    assert_same(growing(QUERIES), expected["few_shot"])


def test_a_support_set_of_a_call_leaves_the_pipelines_own(classify, expected, parts, tmp_path):
    SupportSet.from_videos(*parts, {"a": QUERIES[0], "b": QUERIES[1]}).save_pretrained(tmp_path)
    assert classify(QUERIES[0], support_set=str(tmp_path))[0]["label"] == "a"
    assert_same([classify(QUERIES[0])], expected["few_shot"][:1])


def test_top_k_keeps_the_best(classify, expected):
    assert_same(classify(QUERIES, top_k=1), [answer[:1] for answer in expected["few_shot"]])
    assert len(classify(QUERIES[0], top_k=99)) == 3
    for top_k in (0, True, 1.5):
        with pytest.raises(ValueError, match=r"top_k=.* must be a whole number of at least 1"):
            classify(QUERIES[0], top_k=top_k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_arithmetic_gives_nearly_the_same(expected, dtype):
    model, processor = tiny_model_and_processor()
    half = pipeline(TASK, model=model.to(dtype), processor=processor, device="cpu", support_set=CLIPS)
    scores = {entry["label"]: entry["score"] for entry in half(QUERIES[0])}
    for entry in expected["few_shot"][0]:
        assert scores[entry["label"]] == pytest.approx(entry["score"], abs=0.03)


def test_random_frames_do_not_make_random_answers():
    model, processor = tiny_model_and_processor()
    processor.frame_sampling = "segment_random"
    steady = FewShotVideoClassificationPipeline(model, processor, device="cpu", support_set=CLIPS)
    episode = {"support_videos": CLIPS, "query_videos": QUERIES}
    first = steady(QUERIES)
    assert steady(QUERIES) == first
    assert steady(episode) == steady(episode)
    assert_same(steady(episode), first)


def test_videos_to_label_next_are_suggested_by_their_place(classify):
    videos = [*QUERIES, *CLIPS["boxing"]]
    with torch.no_grad():
        embeds = classify.model.get_video_features(classify.processor.process_videos(videos))
    expected = classify.support_set.suggest(classify.model, embeds, 2)
    for batch_size in (1, 8):
        found = classify.suggest(videos, 2, batch_size=batch_size)
        assert [(one.index, one.label) for one in found] == [(one.index, one.label) for one in expected]
    with pytest.raises(VideoReadError, match=MISSING):
        classify.suggest([*videos, MISSING], 2)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_none_of_these_leads_or_ends_the_answer_beside_the_classes(classify, batch_size):
    plain = classify(QUERIES, top_k=2)
    with torch.no_grad():
        embeds = classify.model.get_video_features(classify.processor.process_videos(QUERIES))
    scores = classify.support_set.score_unknown(classify.model, embeds).tolist()
    answers = classify([QUERIES[0], MISSING, *QUERIES[1:]], top_k=2, detect_unknown=True, batch_size=batch_size)
    assert answers.pop(1)[0]["error"]
    for answer, without, score in zip(answers, plain, scores, strict=True):
        entry = answer.pop(0 if score >= 0.5 else -1)
        assert entry == {"label": "none of these", "score": pytest.approx(score, abs=1e-5)}
        assert_same([answer], [without])


def test_a_folder_or_name_without_a_support_set_has_none(parts, tmp_path, monkeypatch):
    model, processor = tiny_model_and_processor()
    for name in (str(tmp_path), "someone/without-one", str(tmp_path / "gone")):
        monkeypatch.setattr(model, "name_or_path", name)
        monkeypatch.setattr(pipeline_clipfsar, "cached_file", lambda *args, **options: None)
        assert FewShotVideoClassificationPipeline(model, processor, device="cpu").support_set is None


def test_pushed_to_the_hub_a_pipeline_is_all_there_but_the_pictures(classify, tmp_path, monkeypatch):
    def create_commit(self, repo_id, operations, **options):
        for operation in operations:
            (tmp_path / operation.path_in_repo).write_bytes(Path(operation.path_or_fileobj).read_bytes())

    created = SimpleNamespace(repo_id="me/classes")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **options: created)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    card = huggingface_hub.ModelCard("---\nlibrary_name: transformers\n---\n")
    monkeypatch.setattr(transformers.utils.hub.ModelCard, "load", lambda repo_id, **options: card)
    classify.push_to_hub("classes")
    there = {path.name for path in tmp_path.iterdir()}
    assert {"support_set.json", "support_set.safetensors", "model.safetensors", "processor_config.json"} <= there
    assert {path.name for path in ROOT.glob("*_clipfsar.py")} <= there
    assert SupportSet.from_pretrained(tmp_path).classes["boxing"].thumbnails == [b"", b""]


# Bad input


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_an_unreadable_video_in_a_list_costs_no_other(classify, expected, batch_size, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    first, missing, second, nothing, third = classify(
        [QUERIES[0], MISSING, QUERIES[1], empty, QUERIES[2]], batch_size=batch_size
    )
    assert_same([first, second, third], expected["few_shot"])
    assert missing == [
        {"label": None, "score": 0.0, "error": f"Cannot read video {MISSING!r}: No such file or directory."}
    ]
    assert nothing[0]["label"] is None
    assert "empty.mp4" in nothing[0]["error"]


def test_a_list_of_unreadable_videos_comes_back_whole(classify):
    assert [answer[0]["label"] for answer in classify([MISSING, MISSING], batch_size=2)] == [None, None]
    assert classify([]) == []


def test_an_unreadable_video_alone_is_an_error(classify):
    with pytest.raises(VideoReadError, match=MISSING):
        classify(MISSING)


def test_an_unreadable_query_of_an_episode_costs_no_other(classify, expected):
    answers = classify({"support_videos": CLIPS, "query_videos": [QUERIES[0], MISSING, QUERIES[2]]})
    assert_same([answers[0], answers[2]], [expected["few_shot"][0], expected["few_shot"][2]])
    assert answers[1][0]["error"].startswith(f"Cannot read video {MISSING!r}")
    answers = classify({"support_videos": CLIPS, "query_videos": [MISSING]})
    assert answers[0][0]["label"] is None


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "4"])
def test_a_batch_size_is_a_whole_number_wherever_it_is_given(parts, classify, batch_size):
    message = f"batch_size={batch_size!r} must be a whole number of at least 1"
    for call in (
        lambda: classify(QUERIES[0], batch_size=batch_size),
        lambda: classify(QUERIES, batch_size=batch_size),
        lambda: classify.suggest(QUERIES, k=1, batch_size=batch_size),
        lambda: pipeline(TASK, model=parts[0], processor=parts[1], batch_size=batch_size),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_queries_of_an_episode_may_be_an_array_of_videos(classify):
    arrays = np.empty(len(QUERIES), dtype=object)
    arrays[:] = QUERIES
    assert_same(classify(EPISODE | {"query_videos": arrays}), classify(EPISODE))
    listed = {"support_videos": QUERIES, "support_labels": ["a", "b", "b"], "query_videos": QUERIES}
    assert_same(classify(listed | {"support_labels": np.array(["a", "b", "b"])}), classify(listed))
    assert_same(classify(EPISODE | {"query_videos": QUERIES[0]}), classify(EPISODE | {"query_videos": QUERIES[:1]}))


@pytest.mark.parametrize(
    ("inputs", "options", "reason"),
    [
        (None, {}, "There is no video"),
        (QUERIES[0], {"inference_mode": "no_shot"}, "'no_shot' is not one of few_shot, zero_shot, ensemble"),
        (QUERIES[0], {"candidate_labels": ["a"]}, "at least two names"),
        (QUERIES[0], {"candidate_labels": ["a", "a"]}, "all different"),
        (QUERIES[0], {"candidate_labels": ["a", "b"], "support_set": CLIPS}, "not both"),
        (
            QUERIES[0],
            {"candidate_labels": ["a", "b"], "inference_mode": "ensemble"},
            "candidate_labels are names alone",
        ),
        (QUERIES[0], {"support_set": {"boxing": CLIPS["boxing"]}}, "At least two classes are needed"),
        (QUERIES[0], {"support_set": {"boxing": [], "diving": CLIPS["diving"]}}, "'boxing' has no clips"),
        (QUERIES[0], {"support_set": 3}, "a SupportSet, a folder or Hub id of one, .* got int"),
        (QUERIES[0], {"support_set": str(ROOT / "clipfsar")}, "holds no support set"),
        (QUERIES[0], {"candidate_labels": ["a", "b"], "detect_unknown": True}, "learns from enrolled clips"),
        (
            QUERIES[0],
            {"support_set": CLIPS | {"none of these": QUERIES[:1]}, "detect_unknown": True},
            "under another name",
        ),
        ({"support_videos": CLIPS}, {}, "An episode has 'support_videos'"),
        ({"support_videos": CLIPS, "query_videos": []}, {}, "query videos: 0"),
        *(
            (inputs, {"video_column": "clip"}, "video_column='clip' names a column of .*, or leave video_column out")
            for inputs in (QUERIES, datasets.Dataset.from_dict({"video": ["a.mp4"]})["video"])
        ),
        *(
            (episode, options, "An episode has classes of its own")
            for episode in (EPISODE, [EPISODE, EPISODE])
            for options in ({"candidate_labels": ["a", "b"]}, {"support_set": CLIPS})
        ),
        ({"support_videos": CLIPS, "query_videos": QUERIES, "n_way": 3}, {}, r"unknown: \['n_way'\]"),
        ({"support_videos": {"boxing": CLIPS["boxing"]}, "query_videos": QUERIES}, {}, "at least two are needed"),
        (
            {"support_videos": {"boxing": [], "b": CLIPS["diving"]}, "query_videos": QUERIES},
            {},
            "'boxing' has no support",
        ),
    ],
)
def test_bad_input_is_answered_with_the_remedy(classify, inputs, options, reason):
    with pytest.raises(ValueError, match=reason):
        classify(inputs, **options)


def test_without_classes_the_error_says_how_to_give_some(parts):
    model, processor = parts
    with pytest.raises(ValueError, match=r"There are no classes to choose from: enroll clips with enroll"):
        pipeline(TASK, model=model, processor=processor, device="cpu")(QUERIES[0])


def test_a_support_set_of_another_model_is_refused(classify):
    other, processor = tiny_model_and_processor()
    with torch.no_grad():
        other.clip.visual_projection.weight.mul_(2)
    with pytest.raises(ValueError, match=r"enrolled with .* but this model is .* features cannot be compared"):
        classify(QUERIES[0], support_set=SupportSet.from_videos(other, processor, CLIPS))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda processor: setattr(processor, "preprocessing", "official"), r"preprocessing clip \(now official\)"),
        (lambda processor: setattr(processor, "num_frames", 2), r"num_frames 4 \(now 2\)"),
        (lambda processor: setattr(processor, "frame_sampling", "linspace"), r"frame_sampling .* \(now linspace\)"),
        (lambda processor: setattr(processor.image_processor, "image_std", [1, 1, 1]), r"image_std .* \(now \[1, 1, 1"),
        (lambda processor: setattr(processor, "prompt_template", "{}"), r"prompt_template .* \(now \{\}\)"),
    ],
)
def test_settings_of_the_processor_that_change_after_enrolling_are_refused(change, difference):
    model, processor = tiny_model_and_processor()
    ask = pipeline(TASK, model=model, processor=processor, device="cpu", support_set=CLIPS)
    change(processor)
    for act in (ask, ask.explain):
        with pytest.raises(ValueError, match=f"was enrolled with other preprocessing: .*{difference}"):
            act(QUERIES[0])


def test_a_model_that_is_no_clip_is_refused(parts):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes))
    with pytest.raises(ValueError, match=r"needs a CLIP-FSAR model or a plain CLIP, but .* is of type 'vit': ViTModel"):
        FewShotVideoClassificationPipeline(model=model, processor=parts[1], device="cpu")


def test_a_model_without_its_processor_is_refused(parts):
    with pytest.raises(ValueError, match="needs the model's processor"):
        FewShotVideoClassificationPipeline(parts[0], device="cpu")


# Saved folders

CHILD = """
import json, sys
import numpy as np, torch
from transformers import AutoModel, AutoProcessor, pipeline

folder, videos, again = sys.argv[1:4]
for name in sys.argv[4:]:
    sys.modules[name] = None  # must not be imported from the checkout
torch.set_num_threads(1)
queries = list(np.load(videos).values())
classify = pipeline("few-shot-video-classification", model=folder, trust_remote_code=True, device="cpu")
assert type(classify).__module__.startswith("transformers_modules."), type(classify)
answers = [classify(query) for query in queries]
assert classify(queries) == answers
marked = classify([queries[0], "/nowhere.mp4", queries[1]])  # errors cross the borders of files, too
assert [marked[0], marked[2]] == answers[:2] and "nowhere" in marked[1][0]["error"]
classify.save_pretrained(again)
classify = pipeline("few-shot-video-classification", model=again, trust_remote_code=True, device="cpu")
assert [classify(query) for query in queries] == answers
for auto_class in (AutoModel, AutoProcessor):
    assert type(auto_class.from_pretrained(again, trust_remote_code=True)).__name__.startswith("CLIPFSAR")
print(json.dumps(answers))
"""


def run_elsewhere(folder: Path, elsewhere: Path) -> list:
    """Answers of a fresh Python that sees neither the network nor this checkout."""
    np.savez(elsewhere / "queries.npz", *QUERIES)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(elsewhere / "home"),
        "HF_MODULES_CACHE": str(elsewhere / "code"),
    }
    blocked = [*(path.stem for path in ROOT.glob("*_clipfsar.py")), "clipfsar"]
    command = [sys.executable, "-I", "-c", CHILD, folder, elsewhere / "queries.npz", elsewhere / "again", *blocked]
    result = subprocess.run(
        list(map(str, command)), cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.whole_program
def test_a_saved_pipeline_gives_the_same_scores_in_a_fresh_python(classify, tmp_path):
    folder = tmp_path / "saved"
    classify.save_pretrained(folder)
    answers = [classify(query) for query in QUERIES]
    (tmp_path / "elsewhere").mkdir()
    assert run_elsewhere(folder, tmp_path / "elsewhere") == answers
    code = {path.name for path in ROOT.glob("*_clipfsar.py")}
    for saved in (folder, tmp_path / "elsewhere" / "again"):
        assert {path.name for path in saved.glob("*.py")} == code
        for name in code:
            assert (saved / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.fixture
def saved_apart(parts, tmp_path):
    """A folder that model and processor were saved to, each by itself."""
    folder = tmp_path / "apart"
    for part in parts:
        part.save_pretrained(folder)
    return folder


def test_a_model_and_a_processor_saved_apart_make_a_folder_that_pipeline_opens(saved_apart, classify):
    again = pipeline(TASK, model=str(saved_apart), trust_remote_code=True, device="cpu", support_set=CLIPS)
    assert [again(query) for query in QUERIES] == [classify(query) for query in QUERIES]
    assert {path.name for path in saved_apart.glob("*.py")} == {path.name for path in ROOT.glob("*_clipfsar.py")}
    found = json.loads((saved_apart / "config.json").read_text())["custom_pipelines"][TASK]["impl"]
    assert found == "pipeline_clipfsar.FewShotVideoClassificationPipeline"


def test_the_hubs_snippet_for_video_classification_says_what_to_use(saved_apart, tmp_path):
    write_video(tmp_path / "query.mp4", (200, 30, 40), seed=0)
    generic = pipeline("video-classification", model=str(saved_apart), trust_remote_code=True, device="cpu")
    with pytest.raises(TypeError, match=r'Use pipeline\("few-shot-video-classification", .* takes example clips'):
        generic(str(tmp_path / "query.mp4"))


@pytest.fixture
def commit_to_cache(tmp_path, monkeypatch):
    """Puts a copy of a folder into a cache of the Hub as huggingface_hub lays it out; nothing else can be reached."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def commit(name: str, branch: str, folder: Path) -> Path:
        number = uuid.uuid4().hex + "0" * 8  # transformers keeps the code of a commit that it has seen
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(number)
        return Path(shutil.copytree(folder, repository / "snapshots" / number))

    return commit


@pytest.mark.parametrize(("revision", "names"), [("main", ["boxing", "diving"]), ("v1", ["jumping", "walking"])])
def test_a_revision_is_that_of_the_support_set_too(parts, saved_apart, commit_to_cache, revision, names):
    for branch, classes in {"main": ("boxing", "diving"), "v1": ("walking", "jumping")}.items():
        clips = {name: [random_clip(row)] for row, name in enumerate(classes)}
        SupportSet.from_videos(*parts, clips).save_pretrained(commit_to_cache("me/model", branch, saved_apart))
    opened = pipeline(TASK, model="me/model", revision=revision, trust_remote_code=True, device="cpu")
    assert sorted(opened.support_set.class_names) == names


@pytest.mark.parametrize("revision", ["main", "v1"])
def test_a_revision_of_a_plain_clip_is_that_of_its_processor_too(tiny_clip, commit_to_cache, revision):
    means = {"main": [0.5, 0.5, 0.5], "v1": [0.1, 0.2, 0.3]}
    for branch, mean in means.items():
        folder = commit_to_cache("me/clip", branch, tiny_clip)
        processor = CLIPFSARProcessor.from_pretrained(folder)
        processor.image_processor.image_mean = mean
        CLIPProcessor(processor.image_processor, processor.tokenizer).save_pretrained(folder)
    opened = pipeline(TASK, model="me/clip", revision=revision, device="cpu")
    assert list(opened.processor.image_processor.image_mean) == means[revision]


def test_a_set_beside_the_model_that_does_not_fit_hinders_nobody_with_own_classes(parts, saved_apart):
    SupportSet.from_videos(*parts, CLIPS).save_pretrained(saved_apart)
    half = CLIPFSARModel.from_pretrained(saved_apart, dtype=torch.bfloat16)
    message = f"^The support set saved next to the model, in {saved_apart}, cannot be used: The support set was"
    with pytest.raises(ValueError, match=message + r".*\. Or give classes of your own, by clips or by names\.$"):
        FewShotVideoClassificationPipeline(half, parts[1])
    model, processor = CLIPFSARModel.from_pretrained(saved_apart), parts[1]
    assert FewShotVideoClassificationPipeline(model, processor).support_set.class_names == list(CLIPS)
    assert FewShotVideoClassificationPipeline(model, processor, support_set=False).support_set is None
    assert FewShotVideoClassificationPipeline(half, processor, candidate_labels="a, b")(QUERIES[0])
    empty = FewShotVideoClassificationPipeline(half, processor, support_set=False)
    assert empty.enroll(CLIPS).class_names == list(CLIPS)


def test_a_pipeline_saved_without_classes_leaves_none_of_an_earlier_save(parts, classify, tmp_path):
    model, processor = parts
    classify.save_pretrained(tmp_path)
    assert (tmp_path / "support_set.json").exists()
    pipeline(TASK, model=model, processor=processor, device="cpu").save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*support_set.*"))
    assert (tmp_path / "model.safetensors").exists()


def test_an_episode_is_answered_by_a_pipeline_that_has_classes_of_its_own(parts, expected):
    model, processor = parts
    options = {"model": model, "processor": processor, "device": "cpu"}
    for own in ({"candidate_labels": ["a", "b"]}, {"support_set": {"a": QUERIES[:1], "b": QUERIES[1:]}}):
        assert_same(pipeline(TASK, **options, **own)(EPISODE), expected["few_shot"])


def test_a_saved_pipeline_holds_neither_paths_nor_pictures(classify, tmp_path):
    classify.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.json"):
        assert str(tmp_path) not in file.read_text()
    assert SupportSet.from_pretrained(tmp_path).classes["boxing"].thumbnails == [b"", b""]


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detect_unknown", [False, True])
def test_no_answer_mixes_the_names_of_one_moment_with_the_prototypes_of_another(parts, detect_unknown):
    """A class's logit depends on its name and clips alone, so differences of log scores tell whose they are."""
    model, processor = parts
    clips = {
        "a": CLIPS["boxing"],
        "b": CLIPS["diving"],
        "c": CLIPS["running"],
        "d": QUERIES[1:2],
        "e": similar_clips(30, 2),
    }
    pixels = processor.process_videos(QUERIES[:1])
    with torch.no_grad():
        every = SupportSet.from_videos(model, processor, {**clips, "f": clips["b"]})
        logits = every.classify(model, model.get_video_features(pixels))[0].tolist()
    logit_of = dict(zip(every.class_names, logits, strict=True))
    classify = pipeline(TASK, model=model, processor=processor, device="cpu", support_set=clips)
    answers, errors, done = [], [], threading.Event()

    def ask():
        try:
            while not done.is_set():
                answers.append(classify(QUERIES[0], top_k=10, detect_unknown=detect_unknown))
        except Exception as error:
            errors.append(error)

    def change():
        support_set = classify.support_set
        for _ in range(8):
            support_set.remove_class("a")
            support_set.rename_class(model, processor, "b", "f")
            support_set.remove_class("c")
            support_set.add(model, processor, {"a": clips["a"]}, thumbnails=False)
            support_set.rename_class(model, processor, "f", "b")
            support_set.add(model, processor, {"c": clips["c"]}, thumbnails=False)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        change()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert errors == []
    assert len({tuple(entry["label"] for entry in answer) for answer in answers}) > 1
    for answer in answers:
        scores = {entry["label"]: entry["score"] for entry in answer if entry["label"] in logit_of}
        for one, other in itertools.combinations(scores, 2):
            difference = math.log(scores[one]) - math.log(scores[other])
            assert difference == pytest.approx(logit_of[one] - logit_of[other], abs=1e-3), answer


@pytest.mark.parametrize("changed", ["prompt", "texts", "weights"])
def test_texts_of_labels_follow_the_processor_and_the_weights(changed, monkeypatch):
    model, processor = tiny_model_and_processor()
    labels = ["red star", "green ring"]
    ask = pipeline(TASK, model=model, processor=processor, device="cpu", candidate_labels=labels)
    encoded = []
    encode = pipeline_clipfsar.encode_class_names
    monkeypatch.setattr(pipeline_clipfsar, "encode_class_names", lambda *given: encoded.append(1) or encode(*given))
    before = ask(QUERIES[0])
    assert ask(QUERIES[0]) == before
    assert len(encoded) == 1
    with torch.no_grad():
        {
            "prompt": lambda: setattr(processor, "prompt_template", "{}"),
            "texts": lambda: setattr(processor, "class_texts", {"red star": ["a star", "a red one"]}),
            "weights": lambda: model.clip.text_projection.weight[0].mul_(-3),
        }[changed]()
    fresh = pipeline(TASK, model=model, processor=processor, device="cpu", candidate_labels=labels)
    answer = ask(QUERIES[0])
    assert answer == fresh(QUERIES[0])
    assert len(encoded) == 3
    assert answer != before


def test_labels_of_two_threads_do_not_meet(parts):
    model, processor = parts

    class Interrupted(FewShotVideoClassificationPipeline):
        """Another thread's labels come right after every assignment."""

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "_candidate_embeds" and value[0] == ("a", "b"):
                super().__setattr__(name, (("c", "d"), torch.zeros(2, 16)))

    query_embeds = torch.ones(1, 4, 16)
    usual, classify = (
        kind(model=model, processor=processor) for kind in (FewShotVideoClassificationPipeline, Interrupted)
    )
    expected = usual.classifier(candidate_labels=("a", "b"))[1](query_embeds)
    assert torch.equal(classify.classifier(candidate_labels=("a", "b"))[1](query_embeds), expected)
