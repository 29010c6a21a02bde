"""The command line: classes from folders and kept sets, every output, windows, and what happens to bad input."""

import csv
import io
import json
import os
import re
import shutil

import pytest
import torch
from PIL import Image
from tiny_data import add_foreign_tensor, random_clip, said_by, save_tiny_clip, tiny_model_and_processor, write_video

from clipfsar.cli import main as clipfsar
from clipfsar.data.tables import csv_text
from clipfsar.inference.arguments import PredictArguments, ReviewArguments
from clipfsar.inference.load_model import load_model
from clipfsar.inference.predict import SOME_UNREADABLE, as_csv, find_clips, find_queries, picture_name
from pipeline_clipfsar import FewShotVideoClassificationPipeline, save_with_pipeline
from support_set_clipfsar import SupportSet
from video_clipfsar import VideoReadError

COLOURS = {"red": (230, 30, 30), "dark_blue": (20, 20, 160)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`model`, `examples/CLASS/*.mp4` and `queries`, of which two cannot be read."""
    folder = tmp_path_factory.mktemp("predict")
    save_with_pipeline(*tiny_model_and_processor(), folder / "model")
    for name, colour in COLOURS.items():
        (folder / "examples" / name).mkdir(parents=True)
        for number in range(3):
            write_video(folder / "examples" / name / f"{number}.mp4", colour, seed=number)
    (folder / "queries").mkdir()
    write_video(folder / "queries" / "a.mp4", COLOURS["red"], seed=10)
    write_video(folder / "queries" / "b.mp4", COLOURS["dark_blue"], seed=11)
    (folder / "empty.mp4").touch()
    (folder / "nothing").mkdir()
    return folder


def predict(folders, *options, model="model", support="examples", query=("queries",)) -> int:
    command = ["predict", "--model", str(folders / model), "--device", "cpu"]
    command += ["--support_set", str(folders / support)] if support else []
    command += ["--query", *(str(folders / name) for name in query)] if query else []
    return clipfsar([*command, *map(str, options)])


@pytest.fixture(scope="module")
def expected(folders):
    """Answers of the pipeline in Python."""
    model, processor = load_model(str(folders / "model"))
    classify = FewShotVideoClassificationPipeline(model, processor, device="cpu")
    classify.enroll({name.replace("_", " "): find_clips(folders / "examples" / name) for name in sorted(COLOURS)})
    return {name: classify(str(folders / "queries" / f"{name}.mp4")) for name in ("a", "b")}


@pytest.mark.parametrize("classes", [["--labels", "red, blue"], ["--support_set", "EXAMPLES"]])
def test_own_classes_go_before_a_set_beside_the_model_of_another_precision(classes, folders, tmp_path, capsys):
    model = shutil.copytree(folders / "model", tmp_path / "model")
    SupportSet.from_videos(*load_model(str(model)), {"a": random_clip(0), "b": random_clip(1)}).save_pretrained(model)
    classes = [str(folders / "examples") if part == "EXAMPLES" else part for part in classes]
    command = ["predict", "--model", str(model), "--device", "cpu", "--dtype", "bfloat16", "--format", "json"]
    query = ["--query", str(folders / "queries" / "a.mp4")]
    assert clipfsar([*command, *query, *classes]) == 0
    assert json.loads(capsys.readouterr().out)[0]["query"].endswith("a.mp4")
    assert clipfsar([*command, *query]) == 1
    assert f"error: The support set saved next to the model, in {model}, cannot be used" in capsys.readouterr().err


def test_json_holds_the_answers_of_the_pipeline(folders, expected, capsys):
    assert predict(folders, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == [
        {"query": str(folders / "queries" / f"{name}.mp4"), "answer": expected[name]} for name in ("a", "b")
    ]


@pytest.mark.parametrize("command", ["predict", "review"])
def test_neither_the_progress_nor_the_report_of_loading_a_checkpoint_is_shown(folders, tmp_path, command):
    shutil.copytree(folders / "model", tmp_path / "model")
    add_foreign_tensor(tmp_path / "model")
    options = [*("--model", tmp_path / "model"), *("--support_set", folders / "examples"), *("--device", "cpu")]
    options += ["--output", tmp_path / "output.json"]
    options += ["--query", folders / "queries" / "a.mp4"] if command == "predict" else []
    codes = []
    said = said_by(lambda: codes.append(clipfsar([command, *map(str, options)])))
    assert codes == [0]
    assert "Loading" not in said
    assert "of.another" not in said


def test_the_table_is_a_line_per_video(folders, expected, capsys):
    assert predict(folders, "--top_k", 1) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folders / 'queries' / name}.mp4  {expected[name][0]['label']} {expected[name][0]['score']:.2f}"
        for name in ("a", "b")
    ]


def test_csv_has_a_column_per_class(folders, expected, tmp_path, capsys):
    assert predict(folders, "--format", "csv", "--output", tmp_path / "new" / "answers.csv") == 0
    assert f"{tmp_path / 'new' / 'answers.csv'}: results of 2 videos, csv\n" in capsys.readouterr().err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new" / "answers.csv").read_text())))
    for row, name in zip(rows, ("a", "b"), strict=True):
        assert row["label"] == expected[name][0]["label"]
        for entry in expected[name]:
            assert float(row[f"score of {entry['label']}"]) == pytest.approx(entry["score"])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_unreadable_queries_are_marked_and_told_by_the_exit_code(folders, expected, capsys, batch_size):
    query = ("queries/a.mp4", "empty.mp4", "queries/b.mp4", "nothing.mp4")
    code = predict(folders, "--format", "json", "--batch_size", batch_size, query=query)
    assert code == SOME_UNREADABLE
    printed = capsys.readouterr()
    first, empty, second, missing = json.loads(printed.out)
    for result, name in ((first, "a"), (second, "b")):
        for entry, wanted in zip(result["answer"], expected[name], strict=True):
            assert entry == {"label": wanted["label"], "score": pytest.approx(wanted["score"], abs=1e-5)}
    assert "the file is empty" in empty["error"]
    assert "nothing.mp4" in missing["error"]
    assert "2 of 4 queries could not be read." in printed.err


def test_queries_that_no_file_can_have_are_marked_as_missing(folders, capsys):
    names = ["~nobody.at.all/a.mp4", "queries/a.mp4", f"{300 * 'a'}.mp4"]
    command = ["predict", "--model", str(folders / "model"), "--labels", "a, b", "--format", "json", "--query"]
    assert clipfsar([*command, *(name if name[0] == "~" else str(folders / name) for name in names)]) == 3
    first, second, third = json.loads(capsys.readouterr().out)
    assert "~nobody.at.all/a.mp4" in first["error"]
    assert len(second["answer"]) == 2
    assert f"{300 * 'a'}.mp4" in third["error"]


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json"])
def test_a_damaged_file_of_a_model_is_named(folders, tmp_path, capsys, name):
    shutil.copytree(folders / "model", tmp_path / "model")
    whole = (tmp_path / "model" / name).read_bytes()
    for content in (b"[]", whole[:50], b"\xff\xfe" + whole[:50]):
        (tmp_path / "model" / name).write_bytes(content)
        assert predict(folders, "--labels", "a, b", model=tmp_path / "model", support=None) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.fullmatch(rf"error: {tmp_path}/model/{name} is damaged \(.*\): put back a copy of it\.", line)


def test_classes_are_encoded_once_and_kept(folders, capsys, tmp_path):
    assert predict(folders, "--save_support_set", tmp_path / "kept", query=()) == 0
    predict(folders, "--format", "json")
    first = capsys.readouterr().out
    shutil.move(folders / "examples", folders / "gone")
    try:
        assert predict(folders, "--format", "json", support=tmp_path / "kept") == 0
    finally:
        shutil.move(folders / "gone", folders / "examples")
    assert capsys.readouterr().out == first


def test_names_alone_are_zero_shot(folders, capsys):
    options = ("--labels", "red, dark_blue, green", "--format", "json")
    assert predict(folders, *options, support=None, query=("queries/a.mp4",)) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert {entry["label"] for entry in result["answer"]} == {"red", "dark_blue", "green"}


def test_names_alone_may_hold_commas_or_come_from_a_file(folders, capsys, tmp_path):
    def labels(*options) -> set[str]:
        assert predict(folders, *options, "--format", "json", support=None) == 0
        return {entry["label"] for entry in json.loads(capsys.readouterr().out)[0]["answer"]}

    assert labels("--labels", "red star", "green, wavy ring") == {"red star", "green, wavy ring"}
    assert labels("--labels", "red star, ring,") == {"red star", "ring"}
    (tmp_path / "names.txt").write_text("\ufeffred star\n\ngreen, wavy ring \n", encoding="utf-8")
    assert labels("--labels_file", tmp_path / "names.txt") == {"red star", "green, wavy ring"}


def test_names_in_a_pipe_are_not_waited_for(folders, capsys, tmp_path):
    os.mkfifo(tmp_path / "names")
    assert predict(folders, "--labels_file", tmp_path / "names", support=None) == 1
    assert "names cannot be read as text: it is not a regular file. Give a file with lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--labels_file", "empty.txt"], "--labels_file empty.txt holds no class names: write one per line."),
        (["--support_set", "class"], "class holds no folders: give one folder of clips per class"),
        (["--support_set", "class", "--class_texts", "empty.txt"], "class holds no folders"),
        (["--labels", "a, b", "--class_texts", "empty.txt"], "empty.txt"),
        (["--labels", "a, b", "--format", "cvat"], "but there are 2 queries"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(folders, options, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "class").mkdir()
    for path in ("empty.txt", "class/a.mp4", "class/b.mp4"):
        (tmp_path / path).touch()
    monkeypatch.setattr("clipfsar.inference.predict.load_model", lambda *arguments: pytest.fail("it is loaded"))
    assert clipfsar(["predict", "--model", str(folders / "model"), "--query", "class", *options]) == 1
    assert reason in capsys.readouterr().err


def test_a_file_of_names_in_another_encoding_is_refused(folders, capsys, tmp_path):
    (tmp_path / "names.txt").write_bytes("laufen\nh\u00fcpfen\n".encode("latin-1"))
    assert predict(folders, "--labels_file", tmp_path / "names.txt", support=None) == 1
    assert re.search(
        r"names\.txt is not a text file in UTF-8 \(line 2, .* save the file as UTF-8", capsys.readouterr().err
    )


def test_files_that_are_no_clips_are_counted(folders, capsys, tmp_path):
    shutil.copytree(folders / "examples", tmp_path / "examples")
    shutil.copytree(folders / "queries", tmp_path / "queries")
    for name in ("examples/red/notes.txt", "examples/__MACOSX", "queries/list.xml", "queries/.DS_Store"):
        (tmp_path / name).touch()
    assert predict(folders, support=tmp_path / "examples", query=(tmp_path / "queries",)) == 0
    printed = capsys.readouterr().err
    assert "--support_set left out: 1 file that is not a video (.txt 1), 1 hidden\n" in printed
    assert "--query left out: 1 file that is not a video (.xml 1), 1 hidden\n" in printed


def test_pictures_come_with_the_numbers_behind_them(folders, capsys, tmp_path):
    query = ("queries/a.mp4", "queries/a.mp4")
    options = ("--pictures", tmp_path, "--format", "json", "--inference_mode", "ensemble", "--detect_unknown", True)
    assert predict(folders, *options, query=query) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["picture"] for result in results] == [str(tmp_path / "a.png"), str(tmp_path / "a_2.png")]
    for result in results:
        assert Image.open(result["picture"]).size[0] > 600
        assert {"alignment", "text_share", "unknown_score"} <= set(result["why"])
        assert "none of these" in {entry["label"] for entry in result["answer"]}


def test_background_clips_and_an_error_rate_are_kept_with_the_classes(folders, capsys, tmp_path):
    options = ("--background", folders / "queries" / "a.mp4", "--unknown_error_rate", 0.2, "--format", "json")
    assert predict(folders, *options, "--save_support_set", tmp_path, query=("queries/a.mp4",)) == 0
    (answer,) = [result["answer"] for result in json.loads(capsys.readouterr().out)]
    unknown = {entry["label"]: entry["score"] for entry in answer}["none of these"]
    kept = SupportSet.from_pretrained(tmp_path)
    assert (kept.background, kept.unknown_error_rate, kept.class_names) == (["a.mp4"], 0.2, ["dark blue", "red"])
    assert (
        predict(folders, "--detect_unknown", True, "--format", "json", support=tmp_path, query=("queries/a.mp4",)) == 0
    )
    (again,) = [result["answer"] for result in json.loads(capsys.readouterr().out)]
    assert {entry["label"]: entry["score"] for entry in again}["none of these"] == pytest.approx(unknown)


@pytest.mark.parametrize("output", ["table", "json", "csv"])
def test_windows_say_what_happens_when(folders, capsys, tmp_path, output):
    options = ("--window_seconds", 0.2, "--stride_seconds", 0.12, "--pictures", tmp_path, "--format", output)
    assert predict(folders, *options, "--detect_unknown", True, query=("queries/a.mp4", "empty.mp4")) == SOME_UNREADABLE
    text = capsys.readouterr().out
    times = [(0.0, 0.2), (0.12, 0.32), (0.24, 0.44), (0.28, 0.48)]
    assert Image.open(tmp_path / "a.png").size[0] > 600
    if output == "json":
        result, empty = json.loads(text)
        assert [(window["start_seconds"], window["end_seconds"]) for window in result["windows"]] == times
        assert sum(result["windows"][0]["scores"].values()) == pytest.approx(1, abs=1e-6)
        assert 0 <= result["windows"][0]["unknown_score"] <= 1
        assert "the file is empty" in empty["error"]
    elif output == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [(float(row["start_seconds"]), float(row["end_seconds"])) for row in rows[:4]] == times
        assert rows[0]["score of none of these"]
        assert "the file is empty" in rows[4]["error"]
    else:
        assert "0.12 -     0.32 s" in text
        assert "NOT READ" in text


def test_frames_without_a_rate_are_marked_and_cost_no_other(folders, capsys, tmp_path):
    for number, frame in enumerate(random_clip(0)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    query = (tmp_path, "queries/a.mp4")
    options = ("--window_seconds", 0.2, "--format", "json")
    assert predict(folders, *options, query=query) == SOME_UNREADABLE
    frames, video = json.loads(capsys.readouterr().out)
    assert "does not say its frames per second" in frames["error"]
    assert len(video["windows"]) == 4
    assert predict(folders, *options, "--fps", 25, query=query) == 0


def test_windows_of_names_alone(folders, capsys):
    options = ("--labels", "red, green", "--window_seconds", 0.2, "--format", "json")
    assert predict(folders, *options, support=None, query=("queries/a.mp4",)) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert {window["label"] for window in result["windows"]} <= {"red", "green"}


def test_a_plain_clip_works_without_training(tmp_path, folders, capsys, caplog):
    save_tiny_clip(tmp_path)
    assert predict(folders, "--format", "json", model=tmp_path) == 0
    printed = capsys.readouterr()
    assert "is a plain CLIP: classifying by its frame features, without training." in caplog.text
    first, second = json.loads(printed.out)
    assert (first["answer"][0]["label"], second["answer"][0]["label"]) == ("red", "dark blue")
    model, _ = load_model(str(tmp_path))
    torch.testing.assert_close(model.video_text_scale[0], model.clip.logit_scale.exp())


def test_a_model_of_another_kind_is_refused(tmp_path, folders, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert predict(folders, model=tmp_path) == 1
    assert "holds a model of type 'bert', but BertModel has no get_image_" in capsys.readouterr().err


def test_clips_are_videos_and_folders_of_frames(tmp_path):
    for name in ("b.mp4", "A.MKV", "notes.txt", ".hidden.mp4", "frames/0.png", "frames/1.jpg", "deep/er/c.avi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "poster.jpg").touch()  # an image beside videos is no clip
    names = [clip.relative_to(tmp_path).as_posix() for clip in find_clips(tmp_path)]
    assert names == ["A.MKV", "b.mp4", "deep/er/c.avi", "frames"]
    assert find_queries([str(tmp_path / "frames"), "nothing.mp4"]) == [str(tmp_path / "frames"), "nothing.mp4"]


@pytest.mark.parametrize(
    ("options", "others", "reason"),
    [
        ((), {"query": ()}, "There is nothing to do"),
        ((), {"support": None}, "There are no classes: give --support_set"),
        (("--labels", "a, b"), {}, "Give --support_set or --labels, not both"),
        (("--labels", "a, b", "--pictures", "x"), {"support": None}, "--pictures needs example clips"),
        (("--labels", "a, b", "--detect_unknown", True), {"support": None}, "--detect_unknown needs example clips"),
        (
            ("--labels", "a, b", "--background", "."),
            {"support": None},
            "--background has no effect with --labels",
        ),
        (("--unknown_error_rate", 1), {}, "--unknown_error_rate 1.0 must be between 0 and 1"),
        (("--unknown_error_rate", 0.05), {}, "needs 19 clips, but 6 can be left out"),
        (("--labels", "a"), {"support": None}, "--labels a: at least two names are needed"),
        (("--pictures", __file__), {}, "--pictures .*test_predict.py is a file: name a folder"),
        (("--save_support_set", __file__), {}, "--save_support_set .*test_predict.py is a file: name a folder"),
        ((), {"query": ("nothing",)}, "--query .*nothing holds neither videos nor folders of image files"),
        ((), {"query": ("queries/a.mp4#t=a,b",)}, "--query .*a.mp4#t=a,b: the times 'a,b' after #t= are not numbers"),
        ((), {"support": "queries/a.mp4"}, "--support_set .*a.mp4 is a file without labels. Give a folder EXAMPLES"),
        (("--labels", "a", "--labels_file", "b"), {"support": None}, "Give --labels or --labels_file, not both"),
        (("--labels_file", "nowhere.txt"), {"support": None}, "--labels_file nowhere.txt does not exist"),
        (("--labels", "Run", "run"), {"support": None}, "Class names 'Run' and 'run' become the same text"),
        (("--stride_seconds", 1), {}, "--stride_seconds has no effect without --window_seconds: add it"),
        (("--window_seconds", 0), {}, "--window_seconds 0.0 must be greater than 0"),
        (("--window_seconds", "inf"), {}, "--window_seconds inf must be a finite number"),
        (("--top_k", 0), {}, "--top_k 0 must be at least 1"),
        ((), {"support": "queries"}, "holds no folders: give one folder of clips per class"),
        ((), {"support": "."}, r"Class 'model' has no clips: .*\(.mp4 .webm .avi .mkv .mov ...\) nor image files"),
        ((), {"support": "nowhere"}, "--support_set .*nowhere does not exist"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_the_remedy(folders, options, others, reason, capsys):
    assert predict(folders, *options, **others) in (1, 2)
    assert re.search(f"^error: .*{reason}", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "kind", "name", "expected"),
    [
        (PredictArguments, "csv", "a.CSV", None),
        (PredictArguments, "table", "a.txt", None),
        (PredictArguments, "table", "answers", None),
        (PredictArguments, None, "a.xlsx", "not written as .xlsx. Use .csv, .json, .jsonl, .xml or .txt, or give"),
        (ReviewArguments, "json", "a.json", None),
        (ReviewArguments, None, "a.csv", "not written as .csv. Use .json or .txt, or give --format"),
    ],
)
def test_the_ending_of_the_output_names_its_format_or_is_refused(options, kind, name, expected):
    given = {"model": "m", "support_set": "s", "output": name}
    given |= {"query": ["q.mp4"]} if options is PredictArguments else {}
    if expected is None:
        assert options(**given).format == kind
    else:
        with pytest.raises(ValueError, match=re.escape(expected)):
            options(**given)
        assert options(**given, format="table").format == "table"


def test_one_class_is_too_few(folders, tmp_path, capsys):
    shutil.copytree(folders / "examples" / "red", tmp_path / "red")
    assert predict(folders, support=tmp_path) == 1
    assert "At least two classes are needed" in capsys.readouterr().err


def test_an_unreadable_example_is_an_error_unless_it_may_be_skipped(folders, tmp_path, capsys):
    shutil.copytree(folders / "examples", tmp_path / "examples")
    (tmp_path / "examples" / "red" / "broken.mp4").touch()
    assert predict(folders, support=tmp_path / "examples") == 1
    error = capsys.readouterr().err
    assert re.search(r"error: .*broken\.mp4'?: the file is empty", error)
    assert "--skip_unreadable leaves unreadable example clips out." in error
    with pytest.warns(UserWarning, match=r"Left out of the support set: .*broken\.mp4"):
        assert predict(folders, "--skip_unreadable", True, support=tmp_path / "examples") == 0
    capsys.readouterr()
    saved = tmp_path / "saved"
    assert predict(folders, "--save_support_set", saved, query=None) == 0
    assert predict(folders, "--skip_unreadable", True, support=saved) == 1
    assert "--skip_unreadable has no effect with the saved support set" in capsys.readouterr().err


def test_options_about_a_list_are_refused_for_a_folder_of_classes(folders, tmp_path, capsys):
    for options in (("--video_root", tmp_path), ("--label_fps", 24)):
        assert predict(folders, *options) == 1
        assert f"{options[0]} has no effect with {folders}" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("table", 0), ("jsonl", 1), ("label_studio", 1)])
def test_a_class_that_is_called_none_of_these_is_refused_where_such_videos_have_no_label(folders, capsys, name, code):
    assert predict(folders, "--labels", "red, none of these", "--format", name, support=None) == code
    assert ("A class is called 'none of these'" in capsys.readouterr().err) == bool(code)


def test_two_folders_of_one_class_are_refused_by_their_names(folders, tmp_path, capsys):
    for name in ("red", "dark_blue", "dark blue"):
        shutil.copytree(folders / "examples" / name.replace(" ", "_"), tmp_path / name)
    assert predict(folders, support=tmp_path) == 1
    assert "The folders 'dark blue' and 'dark_blue' in" in capsys.readouterr().err


def test_errors_are_one_line_and_help_teaches(capsys):
    assert clipfsar(["predict", "--model", "x", "--labels", "a, b"]) == 2
    assert capsys.readouterr().err.startswith("error: There is nothing to do: give videos as --query")
    assert clipfsar(["predict", "--help"]) == 0
    assert "--support_set EXAMPLES --query new.mp4" in capsys.readouterr().out


# --- names that are data ----------------------------------------------------------------------------------------------


def test_pictures_of_parts_of_a_video_have_names_of_their_own():
    assert picture_name("long.mp4#t=0,0.5") == "long_0,0.5.png"
    assert picture_name("long.mp4#t=0,0.7", {"long_0,0.7.png"}) == "long_0,0.7_2.png"
    assert picture_name("long.mp4") == "long.png"


def test_csv_names_pictures():
    results = [{"query": "a.mp4", "answer": [{"label": "b", "score": 0.9}], "picture": "why/a.png"}]
    header, row = csv.reader(io.StringIO(as_csv(results, ["b"])))
    assert dict(zip(header, row, strict=True))["picture"] == "why/a.png"


def test_no_cell_of_a_csv_is_a_formula():
    answer = [{"label": "@b", "score": 0.9}, {"label": "=1+1", "score": -0.1}]
    results = [{"query": name, "answer": answer} for name in ("=cmd()", "+1.mp4", "-a.mp4", "@a", "\ta", "\ra", "a=b")]
    rows = list(csv.DictReader(io.StringIO(as_csv(results, ["@b", "=1+1"]), newline="")))
    assert [row["query"] for row in rows] == ["'=cmd()", "'+1.mp4", "'-a.mp4", "'@a", "'\ta", "'\ra", "a=b"]
    assert (rows[0]["label"], rows[0]["score of =1+1"]) == ("'@b", "-0.1")  # numbers stay numbers
    assert csv_text(["=a"], [{"=a": "-1"}, {}]) == "'=a\n'-1\n\"\"\n"


def test_no_name_of_a_query_costs_the_results(folders, capsysbinary, tmp_path):
    # a name of other bytes than UTF-8, two names of one letter, one too long for a picture's, one of a formula
    names = ["\udcff", "a", "A", "x" * 250, "$x^$", "b\nc"]
    for name in names:
        shutil.copy(folders / "queries" / "a.mp4", tmp_path / f"{name}.mp4")
    outputs = {}
    for output in ("json", "csv", "table"):
        pictures = ["--pictures", tmp_path / "pictures"] if output == "json" else []
        assert predict(folders, *pictures, "--format", output, query=[tmp_path / f"{name}.mp4" for name in names]) == 0
        outputs[output] = capsysbinary.readouterr().out.decode("utf-8")
    results = json.loads(outputs["json"])
    assert [result["query"] for result in results] == [str(tmp_path / f"{name}.mp4") for name in names]
    assert len({result["picture"].casefold() for result in results}) == len(names)
    for result in results:
        assert Image.open(result["picture"]).size[0] > 100
    assert len(list(csv.reader(io.StringIO(outputs["csv"], newline="")))) == len(names) + 1
    assert r"b\nc.mp4" in outputs["table"]


@pytest.mark.parametrize("option", ["--output", "--pictures", "--save_support_set"])
def test_a_place_that_cannot_be_written_is_found_out_before_the_work(folders, tmp_path, capsys, monkeypatch, option):
    monkeypatch.setattr("clipfsar.inference.predict.load_model", lambda *_: pytest.fail("worked first"))
    (tmp_path / "file").touch()
    assert predict(folders, option, tmp_path / "file" / "below") == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert predict(folders, option, tmp_path / ("x" * 256)) == 1
    assert "File name too long" in capsys.readouterr().err


def test_results_come_to_the_terminal_when_the_file_cannot_be_written_after_all(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("clipfsar.inference.predict.check_output_file", lambda path: None)
    (tmp_path / "folder").mkdir()
    assert predict(folders, "--format", "json", "--output", tmp_path / "folder") == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 2
    assert "Is a directory" in captured.err


@pytest.mark.parametrize("name", ["answers.json", "answers.xml"])
def test_a_full_disk_keeps_the_earlier_results_and_is_named(folders, tmp_path, capsys, monkeypatch, name):
    def full(path, text, **options):
        path.write_bytes(b"[")
        raise OSError(28, "No space left on device")

    (tmp_path / name).write_text("earlier")
    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert predict(folders, "--output", tmp_path / name, query=("queries/a.mp4",)) == 1
    printed = capsys.readouterr()
    assert printed.err.endswith(
        f"error: {tmp_path / name}: No space left on device. Free some space there, or name another place.\n"
    )
    assert len(printed.out) > 100  # the new results
    assert (tmp_path / name).read_bytes() == b"earlier"


def test_a_picture_that_cannot_be_drawn_costs_no_result(folders, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert predict(folders, "--format", "json", "--pictures", tmp_path) == SOME_UNREADABLE
    printed = capsys.readouterr()
    for result in json.loads(printed.out):
        assert result["answer"]
        assert "No space left on device" in result["picture_error"]
    assert "2 of 2 pictures could not be made." in printed.err


def test_a_damaged_picture_of_an_example_is_named_and_costs_no_answer(folders, tmp_path, capsys):
    assert predict(folders, "--save_support_set", tmp_path / "saved", query=()) == 0
    saved = SupportSet.from_pretrained(tmp_path / "saved")
    saved.classes["red"].thumbnails = [b"no picture"] * 3
    saved.save_pretrained(tmp_path / "damaged")
    capsys.readouterr()
    options = ("--pictures", tmp_path / "pictures", "--format", "csv")
    assert predict(folders, *options, support=tmp_path / "damaged", query=("queries/a.mp4",)) == SOME_UNREADABLE
    printed = capsys.readouterr()
    (row,) = csv.DictReader(io.StringIO(printed.out))
    assert row["label"] in ("red", "dark blue")
    assert re.search(
        r"queries/a\.mp4: The picture of clip '\d\.mp4' of class 'red' is damaged \(it is not a JPEG picture\): enroll "
        r"the clip again\.\n1 of 1 pictures could not be made\.",
        printed.err,
    )


def test_a_query_that_cannot_be_read_a_second_time_keeps_its_answer(folders, tmp_path, capsys, monkeypatch):
    explain = FewShotVideoClassificationPipeline.explain

    def gone(self, video, *rest):
        if video.endswith("a.mp4"):
            raise VideoReadError("Cannot read video 'a.mp4': the download failed (503).")
        return explain(self, video, *rest)

    monkeypatch.setattr(FewShotVideoClassificationPipeline, "explain", gone)
    assert predict(folders, "--pictures", tmp_path, "--format", "json") == SOME_UNREADABLE
    first, second = json.loads(capsys.readouterr().out)
    assert first["answer"]
    assert first["picture_error"] == "Cannot read video 'a.mp4': the download failed (503)."
    assert second["picture"] == str(tmp_path / "b.png")
