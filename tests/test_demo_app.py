"""The demo page: what stands behind it, without a browser or gradio; and, where gradio is installed, that it is built.

`demo/check_page.py` uses the page in a real browser.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_data import COLOURS, REPOSITORY, tiny_model_and_processor, write_video

from clipfsar.page import visitor as visitor_module
from clipfsar.page.uploads import Uploads
from clipfsar.page.visitor import Examples, Visitor
from demo.make_space import make_space
from demo.page import EXAMPLE_QUERIES, default_model, render_examples
from frame_archive_clipfsar import pack_frames
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from review_clipfsar import SuspectClip


@pytest.fixture(scope="module")
def pipe():
    model, processor = tiny_model_and_processor()
    return FewShotVideoClassificationPipeline(model, processor, device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips each of `red`, `green` and `dark_blue`, and one that is none: `{name: [path, path]}`."""
    folder = tmp_path_factory.mktemp("clips")
    for name in ("red", "green", "dark_blue"):
        for number in (1, 2):
            write_video(folder / f"{name} {number}.mp4", COLOURS["train"][name], seed=number)
    (folder / "broken.mp4").write_bytes(b"not a video")
    return {
        name: [str(path) for path in sorted(folder.glob(f"{name}*.mp4"))]
        for name in ("red", "green", "dark_blue", "broken")
    }


@pytest.fixture
def visitor(pipe, clips):
    """Somebody with two classes of two clips and a clip in question."""
    visitor = Visitor()
    visitor.add(pipe, "red", clips["red"])
    visitor.add(pipe, "green", clips["green"])
    visitor.set_query(pipe, clips["red"][0])
    return visitor


def test_a_visitor_enrols_classes_and_gets_the_answer_of_the_pipeline(pipe, clips, visitor):
    explanation, note = visitor.answer(pipe, "few_shot", detect_unknown=False)
    assert note == ""
    expected = pipe(
        clips["red"][0], support_set={"red": clips["red"], "green": clips["green"]}, inference_mode="few_shot"
    )
    assert explanation.label == expected[0]["label"]
    assert float(explanation.probabilities.max()) == pytest.approx(expected[0]["score"], abs=1e-6)
    assert explanation.query_frames.shape == (4, 16, 16, 3)
    assert explanation.query_frames.dtype == torch.uint8


def test_adding_says_what_was_done_and_clips_of_a_known_class_join_it(pipe, clips):
    visitor = Visitor()
    assert visitor.add(pipe, " red  ball ", clips["red"]) == "Added 2 clips to “red ball”."
    assert visitor.add(pipe, "Red Ball", clips["green"][:1]) == "Added 1 clip to “red ball”."
    assert visitor.support_set.num_clips == {"red ball": 3}


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("\u202ered", "red"),  # would turn the direction of the sentences around it
        ("re\u200bd\ufeff", "red"),
        ("re\x00d\n ball", "red ball"),
        ("re\ud800d", "red"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
    ],
)
def test_names_that_look_alike_are_one_class(pipe, clips, typed, name):
    visitor = Visitor()
    visitor.add(pipe, typed, clips["red"][:1])
    visitor.add(pipe, name, clips["red"][1:])
    assert visitor.support_set.num_clips == {name: 2}


def test_a_name_of_invisible_characters_is_no_name(pipe, clips):
    with pytest.raises(ValueError, match="The class has no name yet"):
        Visitor().add(pipe, "\u200b \u202e", clips["red"])


@pytest.mark.filterwarnings("ignore:.* has the same frames as ")
def test_clips_that_are_given_twice_are_named(pipe, clips):
    visitor, (one, two) = Visitor(), clips["red"]
    assert visitor.add(pipe, "red", [one, one, two]) == (
        "Added 3 clips to “red”. “red 1.mp4 (2)” has the same frames as another clip and counts twice."
    )
    assert visitor.add(pipe, "blue", [one, two]) == (
        "Added 2 clips to “blue”. “red 1.mp4”, “red 2.mp4” have the same frames as another clip and count twice."
    )


def test_an_unreadable_clip_is_named_without_its_folder_and_does_not_cost_the_others(pipe, clips):
    visitor = Visitor()
    done = visitor.add(pipe, "red", [*clips["broken"], *clips["red"]])
    assert re.fullmatch(r"Added 2 clips to “red”\. Cannot read video 'broken\.mp4': .+\.", done)
    assert visitor.support_set.num_clips == {"red": 2}


@pytest.mark.parametrize(
    ("name", "videos", "problem"),
    [
        ("  ", ["red"], "The class has no name yet"),
        (None, ["red"], "The class has no name yet"),
        ("x" * 81, ["red"], "The name has 81 characters; at most 80"),
        ("None of these", ["red"], "choose another name"),
        ("red", [], "“red” has no clip yet"),
        ("red", ["broken"], "Cannot read video 'broken.mp4'"),
    ],
)
def test_bad_input_is_a_sentence_and_changes_nothing(pipe, clips, visitor, name, videos, problem):
    before = visitor.support_set.num_clips, visitor.revision
    with pytest.raises(ValueError, match=problem):
        visitor.add(pipe, name, [clip for video in videos for clip in clips[video]])
    assert (visitor.support_set.num_clips, visitor.revision) == before


def test_there_is_a_limit_of_clips(pipe, clips, visitor, monkeypatch):
    monkeypatch.setattr(visitor_module, "MAX_CLIPS", 5)
    with pytest.raises(ValueError, match="You have 4 clips, and 2 more would exceed the limit of 5: remove some"):
        visitor.add(pipe, "blue", clips["dark_blue"])


def test_there_is_a_limit_of_clips_and_of_seconds_for_a_request(pipe, clips, visitor, monkeypatch):
    monkeypatch.setattr(visitor_module, "MAX_CLIPS_AT_ONCE", 1)
    with pytest.raises(ValueError, match="These are 2 clips; at most 1 can be added at once"):
        visitor.add(pipe, "blue", clips["dark_blue"])
    monkeypatch.setattr(visitor_module, "MAX_CLIPS_AT_ONCE", 2)
    times = iter([0.0, 0.0, 121.0])
    monkeypatch.setattr(visitor_module.time, "monotonic", lambda: next(times, 121.0))
    monkeypatch.setattr(pipe.processor, "seconds_per_video", None)
    done = visitor.add(pipe, "blue", clips["dark_blue"])
    assert done == "Added 1 clip to “blue”. “dark_blue 2.mp4” was left out: a request may take 120 s."


def test_frame_archives_of_visitors_are_refused(pipe, visitor, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(pack_frames(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), range(4), 4, None, {}))
    with pytest.raises(ValueError, match=r"^Cannot read video 'a\.mp4': it is an archive, but a video file is needed"):
        visitor.set_query(pipe, str(path))
    with pytest.raises(ValueError, match=r"^Cannot read video 'a\.mp4': it is an archive, but a video file is needed"):
        visitor.add(pipe, "blue", [str(path)])


@pytest.mark.parametrize("name", ["frames", "frames#t=0,1", "a.mp4#t=0,1"])
def test_folders_and_parts_of_videos_are_no_clips_of_a_visitor(pipe, clips, visitor, tmp_path, name):
    # They would be read without a time limit: an archive, too, behind the name of its part.
    (tmp_path / "frames").mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16)).save(tmp_path / "frames" / f"{number}.png")
    (tmp_path / "a.mp4").write_bytes(pack_frames(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), range(4), 4, None, {}))
    reason = "a video file is needed" if name == "frames" else "No such file or directory"
    with pytest.raises(ValueError, match=rf"^Cannot read video '{name}': {reason}\.$"):
        visitor.set_query(pipe, str(tmp_path / name))
    with pytest.raises(ValueError, match=rf"^Cannot read video '{name}': {reason}\.$"):
        visitor.add(pipe, "blue", [str(tmp_path / name)])
    assert visitor.support_set.num_clips == {"red": 2, "green": 2}


def test_an_example_may_be_a_folder_of_images(pipe, visitor, tmp_path):
    (tmp_path / "fading" / "one").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(tmp_path / "fading" / "one" / f"{number}.png")
    assert Examples.from_folder(tmp_path).add_to(visitor, pipe) == "Added 1 example class."
    assert visitor.support_set.num_clips == {"red": 2, "green": 2, "fading": 1}


def test_without_two_classes_or_a_clip_the_page_says_what_is_missing(pipe, clips):
    visitor = Visitor()
    assert visitor.answer(pipe, "few_shot", False) == (None, "Name at least two classes and show a clip of each.")
    visitor.add(pipe, "red", clips["red"])
    assert visitor.answer(pipe, "few_shot", False)[1].startswith("So far there is only “red”. Name at least two")
    visitor.add(pipe, "green", clips["green"])
    assert visitor.answer(pipe, "few_shot", False) == (None, "Now add the clip to classify.")


def test_an_unreadable_clip_in_question_takes_the_old_answer_away(pipe, clips, visitor):
    with pytest.raises(ValueError, match=r"^Cannot read video 'broken\.mp4'"):
        visitor.set_query(pipe, clips["broken"][0])
    assert visitor.answer(pipe, "few_shot", False) == (None, "Now add the clip to classify.")


def test_unknown_clips_need_a_second_example_and_the_page_says_so(pipe, clips, visitor):
    for name in ("red", "green"):
        visitor.remove(name, f"{name} 2.mp4")
    explanation, note = visitor.answer(pipe, "few_shot", detect_unknown=True)
    assert note == "To recognise “none of these”, at least one class needs a second clip."
    assert explanation.unknown_score is None
    visitor.add(pipe, "red", clips["red"][1:])
    explanation, note = visitor.answer(pipe, "few_shot", detect_unknown=True)
    assert (0 < explanation.unknown_score < 1, note) == (True, "")


def test_a_visitor_reviews_only_the_classes_of_that_visitor(pipe, clips, visitor):
    other = Visitor()
    other.add(pipe, "dark_blue", clips["dark_blue"])
    assert other.review(pipe, "few_shot") == (
        None,
        "Name at least two classes and show two clips of each; then your clips can be checked.",
    )
    review, note = visitor.review(pipe, "few_shot")
    assert (review.num_clips, review.inference_mode, note) == ({"red": 2, "green": 2}, "few_shot", "")
    assert visitor.is_reviewed
    visitor.remove("red", "red 1.mp4")
    assert not visitor.is_reviewed
    assert visitor.reviewed == {}  # the removed clip is kept nowhere


def test_classes_and_clips_can_be_taken_out(pipe, clips, visitor):
    visitor.remove("red", "red 1.mp4")
    assert visitor.support_set.num_clips == {"red": 1, "green": 2}
    with pytest.raises(ValueError, match="only clip of class 'red'"):
        visitor.remove("red", "red 2.mp4")
    visitor.remove("red")
    assert visitor.support_set.class_names == ["green"]


def test_visitors_do_not_see_each_others_classes(visitor):
    assert Visitor().support_set.class_names == []
    assert visitor.support_set.class_names == ["red", "green"]


def test_examples_are_added_once_and_beside_what_is_there(pipe, clips, tmp_path, visitor):
    examples = Examples.from_folder(render_examples(tmp_path))
    assert list(examples.queries) == list(EXAMPLE_QUERIES)
    assert examples.add_to(visitor, pipe) == "Added 3 example classes."
    assert examples.add_to(visitor, pipe) == "You already have the example classes."
    assert list(visitor.support_set.num_clips.values()) == [2, 2, 2, 2, 2]


def test_the_note_on_the_queries_says_which_one_is_of_no_class():
    classes = {"a": ["a.mp4"], "b": ["b.mp4"]}
    strange = Examples(classes, {"a": "1.mp4", "c": "2.mp4"})
    assert strange.note_on_queries == "Or an example (the last one belongs to none of the example classes):"
    assert Examples(classes, {"a": "1.mp4"}).note_on_queries == "Or an example:"
    assert Examples(classes, {"c": "1.mp4", "a": "2.mp4"}).note_on_queries == "Or an example:"


def test_the_same_clip_gets_the_same_answer_from_a_model_that_samples_at_random(clips):
    model, processor = tiny_model_and_processor()
    processor.frame_sampling = "segment_random"
    pipe, embeds = FewShotVideoClassificationPipeline(model, processor, device="cpu"), []
    for seed in range(3):
        torch.manual_seed(seed)
        visitor = Visitor()
        visitor.set_query(pipe, clips["red"][0])
        embeds.append(visitor.query_embeds)
    assert torch.equal(embeds[0], embeds[1])
    assert torch.equal(embeds[0], embeds[2])
    processor.frame_sampling = "segment_center"
    visitor.set_query(pipe, clips["red"][0])
    assert torch.equal(visitor.query_embeds, embeds[0])


def test_a_space_has_the_code_and_what_spaces_read(tmp_path):
    make_space(tmp_path / "space")
    readme = (tmp_path / "space" / "README.md").read_text(encoding="utf-8")
    settings = dict(line.split(": ", 1) for line in readme.split("---\n")[1].splitlines())
    requirements = (tmp_path / "space" / "requirements.txt").read_text()
    assert settings["app_file"] == "app.py"
    program = (tmp_path / "space" / "app.py").read_text()
    assert "from demo.page import main" in program
    found = "import demo.page, clipfsar.page.arguments, sys; print(demo.page.default_model())"
    model = subprocess.check_output([sys.executable, "-c", found], cwd=tmp_path / "space", text=True).strip()
    assert model == str(tmp_path / "space" / "demo" / "synthetic" / "tiny_clip")
    assert f"gradio=={settings['sdk_version']}\n" in requirements
    assert (tmp_path / "space" / "demo" / "synthetic" / "tiny_clip" / "model.safetensors").is_file()
    modules = {path.name for path in REPOSITORY.glob("*_clipfsar.py")}
    assert modules <= {path.name for path in (tmp_path / "space").iterdir()}
    with pytest.raises(ValueError, match="is not empty"):
        make_space(tmp_path / "space")


# --- with gradio ------------------------------------------------------------------------------------------------------


@pytest.fixture
def app():
    return pytest.importorskip("clipfsar.page.app", reason="gradio is not installed", exc_type=ImportError)


def test_names_are_shown_as_they_are_and_never_run(app, pipe, clips):
    visitor = Visitor()
    visitor.add(pipe, "<b>red</b>", clips["red"])
    visitor.add(pipe, "$green^$", clips["green"])
    visitor.set_query(pipe, clips["red"][0])
    explanation, _ = visitor.answer(pipe, "few_shot", False)
    assert "&lt;b&gt;red&lt;/b&gt;" in app.probability_bars(explanation)
    assert "<b>" not in app.probability_bars(explanation) + app.alignment_picture(explanation, "<b>red</b>")
    assert "data:image/png;base64," in app.alignment_picture(explanation, "$green^$")
    assert app.message("<script>") == '<div class="problem" role="status">&lt;script&gt;</div>'


@pytest.mark.parametrize("mode", ["few_shot", "zero_shot", "ensemble"])
def test_the_answer_says_what_decided_it(app, pipe, visitor, mode):
    explanation, _ = visitor.answer(pipe, mode, False)
    bars = app.probability_bars(explanation)
    words = {"few_shot": "by the example clips", "zero_shot": "class names alone", "ensemble": "class names count"}
    assert words[mode] in bars
    assert bars.count('class="track"') == 2


def test_none_of_these_is_the_answer_from_one_half_on(app, pipe, visitor):
    explanation, _ = visitor.answer(pipe, "few_shot", False)
    explanation.unknown_score = 0.5
    assert '<div class="verdict">none of these</div>' in app.probability_bars(explanation)
    explanation.unknown_score = 0.49
    assert f'<div class="verdict">{explanation.label}</div>' in app.probability_bars(explanation)


def test_of_equally_probable_classes_the_answer_is_shown_first(app, pipe, visitor):
    explanation, _ = visitor.answer(pipe, "few_shot", False)
    explanation.class_names = [f"class {number}" for number in range(40)]
    explanation.probabilities = torch.full((40,), 1 / 40)
    names = re.findall('class="name">(class [0-9]+)<', app.probability_bars(explanation))
    assert explanation.label == "class 0"
    assert names == [f"class {number}" for number in range(app.MAX_BARS)]


class Request:
    session_hash = "me"


@pytest.mark.filterwarnings("ignore:.* has the same frames as ")
def test_a_double_click_adds_clips_once_and_another_upload_of_them_adds_them_again(app, pipe, clips, tmp_path):
    page, here = app._Page(pipe, Examples()), Visitor()
    page.uploads = Uploads(seconds_to_claim=0)
    path = tmp_path / "red 1.mp4"

    def upload():
        (tmp_path / "new").write_bytes(Path(clips["red"][0]).read_bytes())
        (tmp_path / "new").rename(path)

    upload()
    first = page.add_clips(here, "red", [str(path)], None, Request)
    assert "Added 1 clip to “red”." in first[0]
    assert not path.exists()
    assert page.add_clips(here, "red", [str(path)], None, Request) == (app.gr.skip(),) * 5
    assert here.support_set.num_clips == {"red": 1}
    upload()
    page.add_clips(here, "other", [str(path)], None, Request)
    assert here.support_set.num_clips == {"red": 1, "other": 1}


def test_a_double_click_adds_clips_once_while_their_files_are_still_there(app, pipe, clips, tmp_path):
    page, here = app._Page(pipe, Examples()), Visitor()
    path = tmp_path / "red 1.mp4"
    path.write_bytes(Path(clips["red"][0]).read_bytes())
    page.add_clips(here, "red", [str(path)], None, Request)
    assert path.exists()  # equal uploads of others are one file with it, so it is deleted some seconds later
    assert page.add_clips(here, "red", [str(path)], None, Request) == (app.gr.skip(),) * 5


def test_clips_that_a_visitor_takes_away_again_are_deleted_but_not_the_clip_in_question(app, pipe, clips, tmp_path):
    page, here = app._Page(pipe, Examples()), Visitor()
    page.uploads = Uploads(seconds_to_claim=0)
    paths = [tmp_path / name for name in ("1.mp4", "2.mp4", "3.mp4")]
    for path in paths:
        path.write_bytes(Path(clips["red"][0]).read_bytes())
    one, two, three = map(str, paths)
    page.ask(here, three, Request)
    page.keep_uploads(here, [one, two, three], None, Request)
    page.keep_uploads(here, [two], None, Request)
    assert [path.exists() for path in paths] == [False, True, True]
    with page.turn_of(here):  # the clips may be read at this moment
        page.keep_uploads(here, None, None, Request)
    assert paths[1].exists()
    page.keep_uploads(here, None, None, Request)
    assert [path.exists() for path in paths] == [False, False, True]
    page.ask(here, None, Request)
    assert not paths[2].exists()


def test_the_clip_in_question_stays_while_it_also_waits_to_be_added(app, pipe, clips, tmp_path):
    page, here = app._Page(pipe, Examples()), Visitor()
    page.uploads = Uploads(seconds_to_claim=0)
    path = tmp_path / "1.mp4"
    path.write_bytes(Path(clips["red"][0]).read_bytes())
    page.ask(here, str(path), Request)
    page.keep_uploads(here, [str(path)], None, Request)
    page.ask(here, None, Request)
    assert path.exists()


def test_names_that_turn_the_direction_of_text_are_shown_without_that(app):
    assert app.message("“\u202eabc” and <b>") == '<div class="problem" role="status">“abc” and &lt;b&gt;</div>'
    assert "&lt;abc&gt;" in app.clip_strip(b"", "<\u2067abc>")


def test_a_review_shows_suspects_with_their_frames_and_a_table(app, pipe, clips):
    visitor = Visitor()
    visitor.add(pipe, "<i>red</i>", [*clips["red"], clips["green"][0]])
    visitor.add(pipe, "green", clips["green"][1:])
    review, _ = visitor.review(pipe, "few_shot")
    review.suspects = [SuspectClip("<i>red</i>", "green 1.mp4", "green", 2.0, 5.0)]
    review.duplicates = [("<i>red</i>", "red 1.mp4", "<i>red</i>", "red 2.mp4")] * 9
    part = app.review_part(review, visitor.reviewed)
    assert "Is this “&lt;i&gt;red&lt;/i&gt;”? It looks like “green”." in part
    assert "<i>" not in part
    assert part.count("data:image/jpeg;base64,") == app.MAX_STRIPS
    assert "2 more clips stand out." in part
    assert '<th scope="row">green</th><td class="number">1</td><td class="number">-</td>' in part
    assert "“green”: add clips of another video." in part


def test_a_review_that_finds_nothing_says_so(app, pipe, visitor):
    review, _ = visitor.review(pipe, "zero_shot")
    review.suspects, review.duplicates, review.inseparable, review.shared_sources = [], [], [], {}
    part = app.review_part(review, visitor.reviewed)
    assert re.search(r"About \d+% of new clips would be recognised", part)
    assert "decided by class names" in part
    assert "No clip and no class stands out." in part


def test_a_review_of_too_few_clips_says_what_is_missing(app, pipe, visitor):
    for name in ("red", "green"):
        visitor.remove(name, f"{name} 2.mp4")
    review, _ = visitor.review(pipe, "few_shot")
    assert "This cannot be checked yet: no class has clips of two videos." in app.review_part(review, visitor.reviewed)


def test_a_review_goes_when_its_classes_change_and_stays_when_the_clip_does(app, pipe, clips, visitor):
    page = app._Page(pipe, Examples())
    assert "would be recognised" in page.show_review(visitor, "few_shot")
    visitor.set_query(pipe, clips["green"][0])
    assert page.hide_review(visitor) != ""
    visitor.remove("green", "green 2.mp4")
    assert page.hide_review(visitor) == ""
    assert "Name at least two classes" in page.show_review(Visitor(), "few_shot")


def test_the_page_is_built_without_analytics(app, pipe, tmp_path):
    page = app.build_page(pipe, Examples.from_folder(render_examples(tmp_path)))
    assert not page.analytics_enabled
    assert Path(default_model()).is_dir()


def words_of(page) -> list[str]:
    """Texts of the page's visible components, in order."""
    properties = [component["props"] for component in page.get_config_file()["components"]]
    return [str(props.get("value") or props.get("label") or "") for props in properties if props.get("visible", True)]


def test_no_function_of_the_page_is_an_endpoint(app, pipe):
    page = app.build_page(pipe)
    assert {function.api_visibility for function in page.fns.values()} == {"private"}
    assert page.get_api_info() == {"named_endpoints": {}, "unnamed_endpoints": {}}
    limits = {function.concurrency_limit for function in page.fns.values() if function.concurrency_id == "model"}
    assert limits == {app.NUM_WORKERS}


def test_whoever_asks_twice_at_a_time_is_told_to_wait_and_others_are_not(app, pipe, monkeypatch):
    monkeypatch.setattr(app, "SECONDS_TO_WAIT", 0.05)
    page, one, other = app._Page(pipe, Examples()), Visitor(), Visitor()
    again = page.turn_of(one)
    with page.turn_of(one), page.turn_of(other), pytest.raises(Exception, match="Your last request is still running"):
        again.__enter__()
    with page.turn_of(one):
        pass


def test_a_page_without_examples_offers_none(app, pipe, tmp_path):
    with_examples = words_of(app.build_page(pipe, Examples.from_folder(render_examples(tmp_path))))
    without = words_of(app.build_page(pipe))
    assert "Add the example classes" in with_examples
    assert "Add the example classes" not in without
    assert set(EXAMPLE_QUERIES) <= set(with_examples)
    assert not set(EXAMPLE_QUERIES) & set(without)
