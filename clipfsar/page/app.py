"""The page of `clipfsar demo-page`: its layout, and its reactions to visitors."""

import base64
import contextlib
import html
import io
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError as error:
    raise ImportError(
        f"The page needs gradio ({error}): pip install '.[demo]' in a clone of clipfsar, or `make page`, adds it."
    ) from error
import torch
from PIL import Image

from choices_clipfsar import UNKNOWN_LABEL, VIDEO_SUFFIXES
from clipfsar.inference.load_model import load_model, usable_device
from clipfsar.page.arguments import PageArguments
from clipfsar.page.folder import temporary_folder
from clipfsar.page.guard import Guard
from clipfsar.page.signals import end_soon, exit_on_signals
from clipfsar.page.uploads import Uploads, which_upload
from clipfsar.page.visitor import Examples, Visitor, plain_text
from explanation_clipfsar import Explanation
from limits_clipfsar import variable_of
from paths_clipfsar import public_name
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from review_clipfsar import SupportSetReview
from support_set_clipfsar import EnrolledClass

MAX_FILE_SIZE = "100mb"
MAX_BARS = 8
MAX_STRIPS = 8  # in a review
SECONDS_TO_WAIT = 5  # for the previous request of the same visitor
# Limits for visitors' clips. Environment variables change them (see `limits_clipfsar`).
LIMITS = {"frame_pixels": 2**25, "clip_bytes": 2**30, "reader_bytes": 2**31}
MODES = {"few_shot": "example clips", "zero_shot": "class names", "ensemble": "both"}
CAMERA = {"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}, "audio": False}


# --- pieces of the page -----------------------------------------------------------------------------------------------

CSS = """
.gradio-container { max-width: 1180px !important; margin: auto; }
.gradio-container h1 { margin-bottom: 0; }
.quiet, .hint { color: color-mix(in srgb, var(--body-text-color) 70%, transparent); }
.quiet { font-size: var(--text-sm); }
.problem { border-left: 4px solid #d97706; padding: 6px 12px;
  background: color-mix(in srgb, #d97706 10%, transparent); }
.done { border-left: 4px solid #16a34a; padding: 6px 12px; }
.hint { border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 14px 16px; }
.card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 12px; gap: 8px; }
.gradio-container .html-container { padding: 0; }
/* Otherwise a loaded video covers the choice between file and camera below it. */
#query .video-container .wrap, #query .video-container video { height: 258px !important; margin: 0; top: 0; }
#query[data-unplayable] .video-container::after { content: "This browser cannot play the clip."; position: absolute;
  inset: 0; display: grid; place-items: center; pointer-events: none; }
/* Hidden: they replace the file, and the previous one is deleted. */
#query [aria-label^="Reset"], #query [aria-label^="Trim"] { display: none; }
.line { align-items: center !important; flex-wrap: nowrap !important; }
.tight { gap: 8px; }
.message:not(:has([role])) { display: none; }
.verdict { font-size: 1.6rem; font-weight: 650; line-height: 1.25; overflow-wrap: anywhere; }
.bars { display: grid; grid-template-columns: minmax(0, 11em) 1fr 3em; gap: 7px 10px; align-items: center;
  margin: 12px 0; }
.bars .name { overflow-wrap: anywhere; line-height: 1.2; }
.bars .track { background: var(--border-color-primary); border-radius: 4px; height: 14px; }
.bars .fill { background: var(--color-accent); border-radius: 4px; height: 14px; }
.bars .fill.other { background: var(--body-text-color-subdued); opacity: 0.55; }
.bars .number { text-align: right; font-variant-numeric: tabular-nums; }
.frames { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 3px; max-width: 620px; }
.frames img, .strip img, .why img { width: 100%; display: block; border-radius: 3px; }
.strip img { max-width: 520px; }
.strip .quiet { overflow-wrap: anywhere; }
.why img { max-width: 620px; background: white; border-radius: 6px; }
.review table, .review tr, .review th, .review td { border: none !important; }
.review table { width: 100%; border-collapse: collapse; font-size: var(--text-sm); margin: 8px 0 14px; }
.review th, .review td { border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: anywhere;
  padding: 4px 10px 4px 0 !important; }
.review .headline { font-size: 1.15rem; font-weight: 650; overflow-wrap: anywhere; }
.review .finding .strip { margin-top: 6px; }
.review .number { text-align: right !important; font-variant-numeric: tabular-nums; white-space: nowrap; }
.review td:last-child, .review th:last-child { padding-left: 14px !important; }
.review .scroll { max-height: 330px; overflow-y: auto; }
.review .finding { border-left: 4px solid #d97706; padding: 2px 12px; margin: 10px 0; overflow-wrap: anywhere; }
.class-title { font-weight: 650; overflow-wrap: anywhere; }
"""


# Browsers play fewer formats than the model reads. This stands in the place of the clip, not as an error over the page.
HEAD = """<script>
addEventListener("error", event => {
  if (!event.target.matches?.("#query video")) return;
  event.stopImmediatePropagation();
  event.target.closest("#query").dataset.unplayable = "";
}, true);
addEventListener("loadeddata", event => delete event.target.closest?.("#query")?.dataset.unplayable, true);
</script>"""


def theme() -> gr.themes.Base:
    """Fonts of the visitor's machine, and colours that can be read: gradio's own are too pale on white."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )


def escaped(text: str) -> str:
    """HTML of a text, which may come from a visitor."""
    return html.escape(plain_text(text))


def message(text: str, kind: str = "problem") -> str:
    """HTML of a message to the visitor. `kind`: "problem", "done" (success) or "hint"."""
    return f'<div class="{kind}" role="status">{escaped(text)}</div>' if text else ""


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def frames_row(frames: torch.Tensor) -> str:
    """HTML of frames (T, H, W, 3), uint8, side by side."""
    images = []
    for frame in frames:
        data = io.BytesIO()
        Image.fromarray(frame.cpu().numpy()).save(data, format="JPEG", quality=88)
        images.append(f'<img alt="" src="{data_uri(data.getvalue(), "jpeg")}">')
    return f'<div class="frames" role="img" aria-label="{len(frames)} frames">{"".join(images)}</div>'


def clip_strip(thumbnail: bytes, clip_name: str) -> str:
    """HTML of an enrolled clip: its frames and its name."""
    picture = f'<img alt="frames of {escaped(clip_name)}" src="{data_uri(thumbnail, "jpeg")}">'
    return f'<div class="strip">{picture}<span class="quiet">{escaped(clip_name)}</span></div>'


def probability_bars(explanation: Explanation) -> str:
    """HTML of the answer: the class, a bar per class, and what the decision is based on."""
    unknown, is_unknown = explanation.unknown_score, explanation.is_unknown
    # Stable: of equally probable classes the first one is the answer.
    order = explanation.probabilities.argsort(descending=True, stable=True)[:MAX_BARS].tolist()
    rows = [(explanation.class_names[n], float(explanation.probabilities[n])) for n in order]
    bars = [_bar(name, score, "" if name == explanation.label and not is_unknown else "other") for name, score in rows]
    verdict = UNKNOWN_LABEL if is_unknown else explanation.label
    sentences = {
        "few_shot": ["Decided by the example clips."],
        "zero_shot": ["Decided by the class names alone; the clips are not used."],
        "ensemble": [
            f"Between the top two classes, the class names count {100 * explanation.text_share:.0f}%"
            f"{'' if explanation.text_agrees else ' and disagree with the clips'}."
        ],
    }[explanation.inference_mode]
    if len(explanation.class_names) > MAX_BARS:
        sentences.append(f"{len(explanation.class_names) - MAX_BARS} less probable classes are not shown.")
    extra = ""
    if unknown is not None:
        extra = f'<div class="bars">{_bar(UNKNOWN_LABEL, unknown, "" if is_unknown else "other")}</div>'
        sentences.append(
            f"“{UNKNOWN_LABEL}” has a separate score and is the answer at 50% or more"
            + (f"; without it the answer would be “{explanation.label}”." if is_unknown else ".")
        )
    return (
        f'<div class="verdict">{escaped(verdict)}</div><div class="bars">{"".join(bars)}</div>{extra}'
        f'<div class="quiet">{escaped(" ".join(sentences))}</div>'
    )


def _bar(name: str, score: float, kind: str) -> str:
    return (
        f'<div class="name">{escaped(name)}</div>'
        f'<div class="track"><div class="fill {kind}" style="width: {100 * score:.1f}%"></div></div>'
        f'<div class="number">{100 * score:.0f}%</div>'
    )


def alignment_picture(explanation: Explanation, class_name: str) -> str:
    """HTML of a picture that shows how the frames of the clip match a class."""
    data = io.BytesIO()
    figure = explanation.plot(label=class_name, probabilities=False)
    figure.savefig(data, format="png", dpi=150, bbox_inches="tight")
    alt = f"alignment with {escaped(class_name)}"
    return f'<div class="why"><img alt="{alt}" src="{data_uri(data.getvalue(), "png")}"></div>'


def review_part(review: SupportSetReview, classes: Mapping[str, EnrolledClass]) -> str:
    """HTML of a review of these classes: the expected accuracy, what to do about which clip, and a table of classes."""
    return (
        f'<div class="review">{_expected_accuracy(review)}{"".join(_findings(review, classes))}'
        f'<div class="scroll">{_table_of_classes(review)}</div></div>'
    )


def _expected_accuracy(review: SupportSetReview) -> str:
    if review.accuracy is None or review.interval is None:
        return message("This cannot be checked yet: no class has clips of two videos. Add clips.", "hint")
    low, high = review.interval
    fewer = "With one clip fewer in each class. " if review.shots_fewer else ""
    return (
        f'<div class="headline">About {review.accuracy:.0f}% of new clips would be recognised</div>'
        f'<div class="quiet">95% interval {low:.0f} to {high:.0f}%; guessing gives '
        f"{100 / len(review.class_names):.0f}%. {fewer}Each clip was left out and classified by the others, decided by "
        f"{'clips and class names' if review.inference_mode == 'ensemble' else MODES[review.inference_mode]}.</div>"
    )


def _findings(review: SupportSetReview, classes: Mapping[str, EnrolledClass]) -> Iterator[str]:
    """HTML of what stands out. Clips are shown, suspects before doubles, at most `MAX_STRIPS`."""
    clips = [
        (
            one.class_name,
            one.clip,
            f"Is this “{one.class_name}”? It looks like “{one.nearer_to}”. If it is not, remove it.",
        )
        for one in review.suspects
    ]
    for name, clip, other_name, other in review.duplicates:
        advice = "One of them is enough." if name == other_name else "Is one label wrong? If both are right, keep both."
        clips.append((name, clip, f"In “{name}”, and almost the same as “{other}” in “{other_name}”. {advice}"))
    for name, clip, sentence in clips[:MAX_STRIPS]:
        enrolled = classes[name]
        strip = clip_strip(enrolled.thumbnails[enrolled.clip_names.index(clip)], clip)
        yield f'<div class="finding">{escaped(sentence)}{strip}</div>'
    sentences = [f"{len(clips) - MAX_STRIPS} more clips stand out."] if len(clips) > MAX_STRIPS else []
    sentences += [
        f"“{one}” and “{other}” are hard to tell apart: {right} of {total} clips are recognised. Add clips of both."
        for one, other, right, total in review.inseparable
    ]
    if review.too_few and review.accuracy is not None:
        names = ", ".join(f"“{name}”" for name in review.too_few)
        sentences.append(f"{names}: add clips of another video. Those of one video alone cannot be checked.")
    sentences += [
        f"{len(members)} clips are of the video “{source}”. They were left out together."
        for source, members in review.shared_sources.items()
    ]
    yield from (f'<div class="finding">{escaped(sentence)}</div>' for sentence in sentences)
    if not clips and not sentences and review.accuracy is not None:
        yield message("No clip and no class stands out.", "done")


def _table_of_classes(review: SupportSetReview) -> str:
    rows = []
    for row, name in enumerate(review.class_names):
        accuracy = review.per_class[name]
        others = dict(zip(review.class_names, review.confusion[row], strict=True))
        del others[name]
        other = max(others, key=others.__getitem__)
        taken_for = f"{escaped(other)} ({100 * others[other]:.0f}%)" if others[other] > 0 else "-"
        known = "-" if accuracy is None else f"{accuracy:.0f}%"
        rows.append(
            f'<tr><th scope="row">{escaped(name)}</th><td class="number">{review.num_clips[name]}</td>'
            f'<td class="number">{known}</td><td>{taken_for}</td></tr>'
        )
    return (
        '<table><thead><tr><th scope="col">class</th><th scope="col" class="number">clips</th>'
        '<th scope="col" class="number">recognised</th><th scope="col">most often taken for</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


# --- the page ---------------------------------------------------------------------------------------------------------

# Several visitors are served at a time, so a slow clip holds up nobody else. Each visitor has one request at a time.
NUM_WORKERS = 4
MAX_WAITING = 64
_IN_WORKERS = {"concurrency_limit": NUM_WORKERS, "concurrency_id": "model", "api_visibility": "private"}
_AT_ONCE = {"show_progress": "hidden", "api_visibility": "private"}


def build_page(
    pipeline: FewShotVideoClassificationPipeline, examples: Examples | None = None, note: str = ""
) -> gr.Blocks:
    """Builds the page, ready to launch. `note`: what visitors should know about the model."""
    return _Page(pipeline, examples or Examples()).build(note)


def _camera() -> gr.WebcamOptions:
    return gr.WebcamOptions(mirror=False, constraints=CAMERA)


class _Page:
    """The page. Its components are attributes, so that each part and its reactions can have separate methods."""

    def __init__(self, pipeline: FewShotVideoClassificationPipeline, examples: Examples):
        self.pipeline, self.examples, self.uploads = pipeline, examples, Uploads()
        self.drawing = threading.Lock()  # matplotlib is not thread-safe
        self.turns: weakref.WeakKeyDictionary[Visitor, threading.Lock] = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def turn_of(self, here: Visitor):
        """Allows one request of a visitor at a time. After a short wait, another one is refused, to free its worker."""
        turn = self.turns.setdefault(here, threading.Lock())
        if not turn.acquire(timeout=SECONDS_TO_WAIT):
            raise gr.Error("Your last request is still running: try again when it is done.", print_exception=False)
        try:
            yield
        finally:
            turn.release()

    def build(self, note: str) -> gr.Blocks:
        settings = {"title": "Few-shot video classification", "analytics_enabled": False, "delete_cache": (600, 3600)}
        with gr.Blocks(**settings) as self.page:
            self.visitor = gr.State(Visitor, time_to_live=6 * 3600)
            self.revision = gr.State(0)
            gr.Markdown("# Few-shot video classification\nShow a few clips of each class, then ask about a new one.")
            gr.HTML(
                f'<div class="quiet">{escaped(note)} Clips stay on the machine that serves this page and are '
                f"deleted after use. Limit per clip: {MAX_FILE_SIZE.upper().replace('MB', ' MB')}.</div>"
            )
            with gr.Row():
                with gr.Column(min_width=320):
                    self.add_classes()
                    self.add_review()
                with gr.Column(min_width=320):
                    self.add_query()
                    self.add_answer()
            self.connect_answer()
            self.connect_uploads()
            self.connect_classes()
            self.connect_query()
            self.connect_review()
            self.page.unload(self.forget)
        for function in self.page.fns.values():  # includes those that gradio adds
            function.api_visibility = "private"
        self.page.run_history = False
        self.page.uploads = self.uploads
        return self.page.queue(max_size=MAX_WAITING, api_open=False)

    # Layout

    def add_classes(self):
        gr.Markdown("## 1. Classes")
        changes = [self.page.load, self.revision.change]
        gr.render([self.visitor, self.revision], changes, show_progress="hidden")(self.show_classes)
        gr.Markdown("### Add clips")
        self.class_name = gr.Textbox(
            label="Class", placeholder="opening a door", info="A new class, or one from above.", max_lines=1
        )
        self.files = gr.File(
            label="Clips",
            file_count="multiple",
            file_types=["video", *VIDEO_SUFFIXES],
            height=150,
            elem_id="clips",
        )
        with gr.Accordion("Record a clip", open=False):
            self.recording = gr.Video(
                sources=["webcam"],
                show_label=False,
                height=300,
                elem_id="recording",
                # Not muted and not mirrored: gradio would need ffmpeg for either.
                include_audio=True,
                webcam_options=_camera(),
            )
        with gr.Row():
            self.add_button = gr.Button("Add to class", variant="primary")
            self.example_button = gr.Button("Add the example classes", visible=bool(self.examples.classes))
        self.classes_message = gr.HTML(elem_classes="message")

    def show_classes(self, here: Visitor, _):
        if not len(here.support_set):
            others = ", or try the example classes" if self.examples.classes else ""
            gr.HTML(message(f"No class yet. Add at least two below{others}.", "hint"))
        for name, enrolled in here.support_set.classes.items():
            with gr.Column(elem_classes="card"):
                with gr.Row(elem_classes="line"):
                    gr.HTML(f'<span class="class-title">{escaped(name)}</span>')
                    self.add_removal(gr.Button("Remove class", size="sm", min_width=110, scale=0), name)
                for clip, thumbnail in zip(enrolled.clip_names, enrolled.thumbnails, strict=True):
                    with gr.Row(elem_classes="line"):
                        gr.HTML(clip_strip(thumbnail, clip))
                        if len(enrolled.clip_names) > 1:  # the only clip of a class cannot be removed alone
                            self.add_removal(gr.Button("✕", size="sm", min_width=36, scale=0), name, clip)

    def add_removal(self, button: gr.Button, class_name: str, clip: str | None = None):
        def remove(here: Visitor):
            with self.turn_of(here):
                here.remove(class_name, clip)
            return "", here.revision

        button.click(remove, self.visitor, [self.classes_message, self.revision], **_AT_ONCE)

    def add_review(self):
        gr.Markdown("### Review your clips")
        gr.HTML(
            '<div class="quiet">Are they enough, and are they good ones? Each clip is left out once and classified by '
            "the others.</div>"
        )
        self.review_button = gr.Button("Review")
        self.review_html = gr.HTML(elem_id="review")

    def add_query(self):
        gr.Markdown("## 2. Clip to classify")
        self.query = gr.Video(
            sources=["upload", "webcam"],
            label="Clip",
            height=300,
            elem_id="query",
            include_audio=True,
            webcam_options=_camera(),
        )
        self.query_message = gr.HTML(elem_classes="message")
        self.example_queries = []
        if self.examples.queries:
            gr.HTML(f'<div class="quiet">{self.examples.note_on_queries}</div>')
            with gr.Row(elem_classes="tight", equal_height=True):
                for name, path in self.examples.queries.items():
                    self.example_queries.append((gr.Button(name, size="sm", min_width=120), path))

    def add_answer(self):
        gr.Markdown("## 3. Answer")
        with gr.Group():
            self.mode = gr.Radio(
                [(name, mode) for mode, name in MODES.items()],
                value=self.pipeline.model.config.inference_mode,
                label="Decide by",
            )
            self.detect_unknown = gr.Checkbox(label=f"Allow “{UNKNOWN_LABEL}”")
        self.answer_html = gr.HTML(elem_id="answer")
        with gr.Column(visible=False) as self.why_part:
            gr.Markdown("### Why")
            self.frames_html = gr.HTML()
            self.why_class = gr.Dropdown(label="Matched with", interactive=True)
            self.why_html = gr.HTML()

    # Reactions to classes, clip and settings

    def connect_answer(self):
        gr.on(
            [self.page.load, self.revision.change, self.mode.change, self.detect_unknown.change],
            self.show_answer,
            [self.visitor, self.mode, self.detect_unknown],
            [self.answer_html, self.frames_html, self.why_class, self.why_html, self.why_part],
            **_IN_WORKERS,
            trigger_mode="always_last",  # otherwise requests during an answer would be dropped
            show_progress="minimal",
            show_progress_on=self.answer_html,
        )
        self.why_class.input(
            self.show_why,
            [self.visitor, self.why_class],
            self.why_html,
            **_IN_WORKERS,
            trigger_mode="always_last",
        )

    def show_why(self, here: Visitor, name: str) -> str:
        explanation = here.explanation
        return self.draw(explanation, name) if explanation and name in explanation.class_names else ""

    def draw(self, explanation: Explanation, name: str) -> str:
        with self.drawing:
            return alignment_picture(explanation, name)

    def show_answer(self, here: Visitor, mode: str, detect_unknown: bool):
        with self.turn_of(here):
            explanation, note = here.answer(self.pipeline, mode, detect_unknown)
        if explanation is None:
            return message(note, "hint"), gr.skip(), gr.skip(), gr.skip(), gr.Column(visible=False)
        label = explanation.label
        assert explanation.query_frames is not None  # the visitor has a clip
        return (
            message(note) + probability_bars(explanation),
            "<div class='quiet'>The frames of the clip that the model sees, in order:</div>"
            + frames_row(explanation.query_frames),
            gr.Dropdown(choices=explanation.class_names, value=label, visible=mode != "zero_shot"),
            self.draw(explanation, label) if mode != "zero_shot" else "",
            gr.Column(visible=True),
        )

    # Actions of visitors

    def connect_uploads(self):
        gr.on(
            [self.files.change, self.recording.change],
            self.keep_uploads,
            [self.visitor, self.files, self.recording],
            **_AT_ONCE,
            trigger_mode="always_last",
        )

    def keep_uploads(self, here: Visitor, paths: list[str] | None, recorded: str | None, request: gr.Request):
        """Holds the clips that wait to be added, and deletes those that the visitor took away."""
        offered = {*(paths or ()), *([recorded] if recorded else ())}
        self.uploads.keep(request.session_hash, *offered)
        turn = self.turns.setdefault(here, threading.Lock())
        if turn.acquire(blocking=False):  # otherwise they may be read at this moment
            try:
                self.uploads.release(request.session_hash, *(here.offered - offered - {here.query_path}))
                here.offered = offered
            finally:
                turn.release()

    def connect_classes(self):
        gr.on(
            [self.add_button.click, self.class_name.submit],
            self.add_clips,
            [self.visitor, self.class_name, self.files, self.recording],
            [self.classes_message, self.class_name, self.files, self.recording, self.revision],
            **_IN_WORKERS,
            show_progress_on=self.add_button,
        )
        self.example_button.click(
            self.add_examples,
            self.visitor,
            [self.classes_message, self.revision],
            **_IN_WORKERS,
            show_progress_on=self.example_button,
        )

    def add_clips(self, here: Visitor, name: str, paths: list[str] | None, recorded: str | None, request: gr.Request):
        clips = [*(paths or ()), *([recorded] if recorded else ())]
        self.uploads.keep(request.session_hash, *clips)
        try:
            with self.turn_of(here):
                uploads = {clip: which_upload(clip) for clip in clips}
                if here.has_added(uploads):
                    return (gr.skip(),) * 5  # a double click
                done = here.add(self.pipeline, name, clips)
                here.added = uploads
                self.uploads.release(request.session_hash, *(uploads.keys() - {here.query_path}))
        except ValueError as error:
            return message(str(error)), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return message(done, "done"), "", None, None, here.revision

    def add_examples(self, here: Visitor):
        try:
            with self.turn_of(here):
                return message(self.examples.add_to(here, self.pipeline), "done"), here.revision
        except ValueError as error:
            return message(str(error)), here.revision

    def connect_query(self):
        self.query.change(
            self.ask,
            [self.visitor, self.query],
            [self.query_message, self.revision],
            **_IN_WORKERS,
            show_progress_on=self.query_message,
        )
        for button, path in self.example_queries:
            button.click(lambda path=path: path, None, self.query, **_AT_ONCE)

    def connect_review(self):
        self.review_button.click(
            self.show_review,
            [self.visitor, self.mode],
            self.review_html,
            **_IN_WORKERS,
            show_progress="minimal",
            show_progress_on=self.review_html,
        )
        self.revision.change(self.hide_review, self.visitor, self.review_html, **_AT_ONCE)

    def show_review(self, here: Visitor, mode: str) -> str:
        with self.turn_of(here):
            review, note = here.review(self.pipeline, mode)
            return message(note, "hint") if review is None else review_part(review, here.reviewed)

    def hide_review(self, here: Visitor):
        """Removes a review of classes that have changed since."""
        return gr.skip() if here.is_reviewed else ""

    def ask(self, here: Visitor, path: str | None, request: gr.Request):
        visitor_id = request.session_hash
        replaced = here.query_path
        if replaced and replaced != path and replaced not in here.offered:
            self.uploads.release(visitor_id, replaced)
        if path:
            self.uploads.keep(visitor_id, path)
        try:
            with self.turn_of(here):
                here.set_query(self.pipeline, path)
        except ValueError as error:
            return message(str(error)), here.revision
        return "", here.revision

    def forget(self, request: gr.Request):
        self.uploads.forget(request.session_hash)


def main(arguments: PageArguments, note: str | None = None):
    """Serves the page until it is interrupted. `note` describes the model; by default it is the model's name."""
    exit_on_signals()
    # Leaves one core for reading clips and serving the page. More threads than free cores are very slow.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    examples = Examples.from_folder(arguments.examples) if arguments.examples else Examples()
    model, processor = load_model(arguments.model)
    processor.seconds_per_video = arguments.seconds_per_video
    pipeline = FewShotVideoClassificationPipeline(
        model=model, processor=processor, device=usable_device(arguments.device)
    )
    for name, value in LIMITS.items():
        os.environ.setdefault(variable_of(name), str(value))
    # Visitors are told; the terminal is not the place for their names and files.
    warnings.filterwarnings("ignore", message="(?s).* has the same frames as ")
    with temporary_folder() as folder:
        uploads = folder / "uploads"
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        page = build_page(pipeline, examples, note or f"Model: {public_name(arguments.model)}.")
        page.uploads.watch(uploads)
        page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            quiet=True,
            prevent_thread_lock=True,
            share=False,
            ssr_mode=False,
            max_file_size=MAX_FILE_SIZE,
            allowed_paths=[str(Path(arguments.examples).absolute())] if arguments.examples else [],
            footer_links=[],
            enable_monitoring=False,
            theme=theme(),
            css=CSS,
            head=HEAD,
            max_threads=NUM_WORKERS + 4,
            mcp_server=False,
            app_kwargs={"middleware": [Middleware(Guard, hosts=arguments.served_as, uploads=uploads)]},
        )
        print(f"The page is at {page.local_url} (Ctrl+C ends it).", flush=True)
        try:
            while True:  # gradio's own loop would treat Ctrl-C as a regular end
                time.sleep(1)  # another thread may get the signal: this one acts on it when it wakes
        finally:
            end_soon()  # after Ctrl-C as well
            page.close(verbose=False)


__all__ = ["alignment_picture", "build_page", "main", "message", "probability_bars", "review_part"]
