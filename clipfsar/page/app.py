"""A page to try CLIP-FSAR on: name classes, show a few clips of each, ask about another clip, see why.

    python -m demo.app                                  # the model of `make demo`, or else the tiny CLIP
    python -m demo.app --model runs/mine/best           # a folder or Hub id: CLIP-FSAR, or a plain CLIP

`make page` sets it up and starts it. Clips go to the machine that serves the page and nowhere else: no analytics, no
public link, nothing loaded from other hosts (the browser is told to refuse it). A clip is deleted once its frames are
encoded, the one in question when it is replaced or its visitor leaves. Nobody sees the classes of others.
"""

import argparse
import base64
import html
import io
import os
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError:
    if __name__ != "__main__":
        raise
    sys.exit("error: the page needs gradio: `make page` sets up an environment with it, `pip install gradio` adds it.")
import torch
from PIL import Image
from transformers import HfArgumentParser

from clipfsar.data.sources import VIDEO_SUFFIXES
from clipfsar.inference.load_model import load_model
from demo.synthetic import TINY_CLIP
from demo.visitor import Examples, Visitor, render_examples
from explanation_clipfsar import Explanation
from pipeline_clipfsar import UNKNOWN_LABEL, FewShotVideoClassificationPipeline

REPOSITORY = Path(__file__).resolve().parents[1]
TRAINED_IN_DEMO = REPOSITORY / "demo_output" / "runs" / "4" / "best"

MAX_FILE_SIZE = "100mb"
MAX_BARS = 8
MODES = {"few_shot": "example clips", "zero_shot": "class names", "ensemble": "both"}
CAMERA = {"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}, "audio": False}


@dataclass
class Arguments:
    model: str | None = field(
        default=os.environ.get("CLIPFSAR_MODEL"),
        metadata={
            "help": "Folder or Hub id of a CLIP-FSAR model or a plain CLIP. Default: the environment's CLIPFSAR_MODEL, "
            "or the model that `make demo` trained, or the tiny CLIP."
        },
    )
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; default: a GPU if there is one."})
    host: str | None = field(
        default=None, metadata={"help": "Address to listen on; default: this machine alone (127.0.0.1)."}
    )
    port: int | None = field(default=None, metadata={"help": "Default: the first free one from 7860 on."})


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
/* Else a loaded video lies over the choice between file and camera below it. */
#query .video-container .wrap, #query .video-container video { height: 258px !important; margin: 0; top: 0; }
/* What is reset or trimmed there is another file, and the one before is deleted. */
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
.why img { max-width: 620px; background: white; border-radius: 6px; }
.class-title { font-weight: 650; overflow-wrap: anywhere; }
"""


def message(text: str, kind: str = "problem") -> str:
    """HTML of a sentence: a `problem`, what was `done`, or a `hint` of what to do."""
    return f'<div class="{kind}" role="status">{html.escape(text)}</div>' if text else ""


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
    picture = f'<img alt="frames of {html.escape(clip_name)}" src="{data_uri(thumbnail, "jpeg")}">'
    return f'<div class="strip">{picture}<span class="quiet">{html.escape(clip_name)}</span></div>'


def probability_bars(explanation: Explanation) -> str:
    """HTML of the answer: the class, a bar per class, and what decided."""
    unknown = explanation.unknown_score
    is_unknown = unknown is not None and unknown >= 0.5
    order = explanation.probabilities.argsort(descending=True)[:MAX_BARS].tolist()
    rows = [(explanation.class_names[n], float(explanation.probabilities[n])) for n in order]
    bars = [_bar(name, score, "" if name == explanation.label and not is_unknown else "other") for name, score in rows]
    verdict = UNKNOWN_LABEL if is_unknown else explanation.label
    sentences = {
        "few_shot": ["Decided by the example clips."],
        "zero_shot": ["Decided by the class names alone; the clips play no part."],
        "ensemble": [
            f"Between the first two classes, their names had {100 * explanation.text_share:.0f}% of the say"
            f"{'' if explanation.text_agrees else ' and disagreed with the clips'}."
        ],
    }[explanation.inference_mode]
    if len(explanation.class_names) > MAX_BARS:
        sentences.append(f"{len(explanation.class_names) - MAX_BARS} less probable classes are not shown.")
    extra = ""
    if unknown is not None:
        extra = f'<div class="bars">{_bar(UNKNOWN_LABEL, unknown, "" if is_unknown else "other")}</div>'
        sentences.append(
            f"“{UNKNOWN_LABEL}” is scored apart, and given from 50% on"
            + (f"; of the classes alone it would be “{explanation.label}”." if is_unknown else ".")
        )
    return (
        f'<div class="verdict">{html.escape(verdict)}</div><div class="bars">{"".join(bars)}</div>{extra}'
        f'<div class="quiet">{html.escape(" ".join(sentences))}</div>'
    )


def _bar(name: str, score: float, kind: str) -> str:
    return (
        f'<div class="name">{html.escape(name)}</div>'
        f'<div class="track"><div class="fill {kind}" style="width: {100 * score:.1f}%"></div></div>'
        f'<div class="number">{100 * score:.0f}%</div>'
    )


def alignment_picture(explanation: Explanation, class_name: str) -> str:
    """HTML of the picture of how the clip was matched with a class."""
    data = io.BytesIO()
    explanation.plot(label=class_name, probabilities=False).savefig(data, format="png", dpi=150)
    alt = f"alignment with {html.escape(class_name)}"
    return f'<div class="why"><img alt="{alt}" src="{data_uri(data.getvalue(), "png")}"></div>'


class Uploads:
    """Which visitor holds which uploaded files, so that they go when used, replaced, or when their visitor leaves.

    Equal files of two visitors are one file: it goes with the last of them.
    """

    def __init__(self):
        self.paths: dict[str, set[str]] = {}

    def keep(self, visitor_id: str, *paths: str):
        self.paths.setdefault(visitor_id, set()).update(paths)

    def release(self, visitor_id: str, *paths: str):
        """Deletes files that nobody else holds."""
        held = self.paths.get(visitor_id, set())
        for path in paths:
            held.discard(path)
            if not any(path in others for others in self.paths.values()):
                Path(path).unlink(missing_ok=True)
        if not held:
            self.paths.pop(visitor_id, None)

    def forget(self, visitor_id: str):
        """Releases all that a visitor holds."""
        self.release(visitor_id, *self.paths.get(visitor_id, ()))


class NothingFromElsewhere:
    """Middleware: tells the browser to load nothing from, and send nothing to, any other host."""

    POLICY = (
        b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        b"style-src 'self' 'unsafe-inline'"
    )

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(part):
            if part["type"] == "http.response.start":
                part["headers"] = [*part["headers"], (b"content-security-policy", self.POLICY)]
            await send(part)

        await self.app(scope, receive, send_with_policy)


# --- the page ---------------------------------------------------------------------------------------------------------


def build_page(pipeline: FewShotVideoClassificationPipeline, examples: Examples, note: str = "") -> gr.Blocks:
    """The page, ready to be launched; `note` says of the model what visitors should know."""
    uploads = Uploads()
    # Whatever uses the model waits its turn.
    one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
    at_once = {"show_progress": "hidden", "api_visibility": "private"}

    with gr.Blocks(title="Few-shot video classification", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        visitor = gr.State(Visitor, time_to_live=6 * 3600)
        revision = gr.State(0)
        gr.Markdown("# Few-shot video classification\nShow a few clips of each class, then ask about a new one.")
        gr.HTML(
            f'<div class="quiet">{html.escape(note)} Clips stay on the machine that serves this page and are deleted '
            f"after use; up to {MAX_FILE_SIZE.upper().replace('MB', ' MB')} each.</div>"
        )
        with gr.Row():
            with gr.Column(min_width=320):
                gr.Markdown("## 1. Classes")

                def remove(class_name: str, here: Visitor, clip: str | None = None):
                    here.remove(class_name, clip)
                    return "", here.revision

                @gr.render([visitor, revision], [page.load, revision.change], show_progress="hidden")
                def show_classes(here: Visitor, _):
                    removed = [classes_message, revision]
                    if not len(here.support_set):
                        hint = "No class yet. Add at least two below, or try the example classes."
                        gr.HTML(message(hint, "hint"))
                    for name, enrolled in here.support_set.classes.items():
                        with gr.Column(elem_classes="card"):
                            with gr.Row(elem_classes="line"):
                                gr.HTML(f'<span class="class-title">{html.escape(name)}</span>')
                                button = gr.Button("Remove class", size="sm", min_width=110, scale=0)
                                button.click(partial(remove, name), visitor, removed, **at_once)
                            for clip, thumbnail in zip(enrolled.clip_names, enrolled.thumbnails, strict=True):
                                with gr.Row(elem_classes="line"):
                                    gr.HTML(clip_strip(thumbnail, clip))
                                    if len(enrolled.clip_names) > 1:  # an only clip goes with its class
                                        button = gr.Button("✕", size="sm", min_width=36, scale=0)
                                        button.click(partial(remove, name, clip=clip), visitor, removed, **at_once)

                gr.Markdown("### Add clips")
                class_name = gr.Textbox(
                    label="Class", placeholder="opening a door", info="A new one, or one from above.", max_lines=1
                )
                files = gr.File(
                    label="Clips",
                    file_count="multiple",
                    file_types=["video", *VIDEO_SUFFIXES],
                    height=150,
                    elem_id="clips",
                )
                with gr.Accordion("Record a clip", open=False):
                    recording = gr.Video(
                        sources=["webcam"],
                        show_label=False,
                        height=300,
                        elem_id="recording",
                        # Without sound, and as recorded: gradio would need ffmpeg to mute or mirror it afterwards.
                        include_audio=True,
                        webcam_options=gr.WebcamOptions(mirror=False, constraints=CAMERA),
                    )
                with gr.Row():
                    add_button = gr.Button("Add to class", variant="primary")
                    example_button = gr.Button("Add the example classes")
                classes_message = gr.HTML(elem_classes="message")
            with gr.Column(min_width=320):
                gr.Markdown("## 2. Clip in question")
                query = gr.Video(
                    sources=["upload", "webcam"],
                    label="Clip",
                    height=300,
                    elem_id="query",
                    include_audio=True,
                    webcam_options=gr.WebcamOptions(mirror=False, constraints=CAMERA),
                )
                query_message = gr.HTML(elem_classes="message")
                gr.HTML('<div class="quiet">Or an example; the last one is of none of the example classes:</div>')
                with gr.Row(elem_classes="tight"):
                    example_queries = [
                        (gr.Button(description, size="sm", min_width=120), path)
                        for description, path in examples.queries.items()
                    ]
                gr.Markdown("## 3. Answer")
                with gr.Group():
                    mode = gr.Radio(
                        [(name, mode) for mode, name in MODES.items()],
                        value=pipeline.model.config.inference_mode,
                        label="Decide by",
                    )
                    detect_unknown = gr.Checkbox(label=f"Allow “{UNKNOWN_LABEL}”")
                answer_html = gr.HTML(elem_id="answer")
                with gr.Column(visible=False) as why_part:
                    gr.Markdown("### Why")
                    frames_html = gr.HTML()
                    why_class = gr.Dropdown(label="Matched with", interactive=True)
                    why_html = gr.HTML()

        # What follows from classes, clip and settings

        def show_answer(here: Visitor, mode: str, detect_unknown: bool):
            explanation, note = here.answer(pipeline, mode, detect_unknown)
            if explanation is None:
                return message(note, "hint"), gr.skip(), gr.skip(), gr.skip(), gr.Column(visible=False)
            label = explanation.label
            return (
                message(note) + probability_bars(explanation),
                "<div class='quiet'>The frames of the clip that the model saw, first to last:</div>"
                + frames_row(explanation.query_frames),
                gr.Dropdown(choices=explanation.class_names, value=label, visible=mode != "zero_shot"),
                alignment_picture(explanation, label) if mode != "zero_shot" else "",
                gr.Column(visible=True),
            )

        gr.on(
            [page.load, revision.change, mode.change, detect_unknown.change],
            show_answer,
            [visitor, mode, detect_unknown],
            [answer_html, frames_html, why_class, why_html, why_part],
            **one_at_a_time,
            trigger_mode="always_last",  # or what is asked while an answer is under way would be dropped
            show_progress="minimal",
            show_progress_on=answer_html,
        )
        why_class.input(
            lambda here, name: alignment_picture(here.explanation, name) if here.explanation else "",
            [visitor, why_class],
            why_html,
            **one_at_a_time,
            trigger_mode="always_last",
        )

        # What visitors do

        def keep_uploads(paths: list[str] | str | None, request: gr.Request):
            uploads.keep(request.session_hash, *([paths] if isinstance(paths, str) else paths or ()))

        for component, event in ((files, files.upload), (recording, recording.change)):
            event(keep_uploads, component, **at_once)

        def add_clips(here: Visitor, name: str, paths: list[str] | None, recorded: str | None, request: gr.Request):
            clips = [*(paths or ()), *([recorded] if recorded else ())]
            try:
                done = here.add(pipeline, name, clips)
            except ValueError as error:
                return message(str(error)), gr.skip(), gr.skip(), gr.skip(), gr.skip()
            uploads.release(request.session_hash, *(clip for clip in clips if clip != here.query_path))
            return message(done, "done"), "", None, None, here.revision

        gr.on(
            [add_button.click, class_name.submit],
            add_clips,
            [visitor, class_name, files, recording],
            [classes_message, class_name, files, recording, revision],
            **one_at_a_time,
            show_progress_on=add_button,
        )

        def add_examples(here: Visitor):
            try:
                return message(examples.add_to(here, pipeline), "done"), here.revision
            except ValueError as error:
                return message(str(error)), here.revision

        example_button.click(
            add_examples,
            visitor,
            [classes_message, revision],
            **one_at_a_time,
            show_progress_on=example_button,
        )

        def ask(here: Visitor, path: str | None, request: gr.Request):
            visitor_id = request.session_hash
            replaced = here.query_path
            if replaced and replaced != path:
                uploads.release(visitor_id, replaced)
            if path:
                uploads.keep(visitor_id, path)
            try:
                here.set_query(pipeline, path)
            except ValueError as error:
                return message(str(error)), here.revision
            return "", here.revision

        query.change(
            ask,
            [visitor, query],
            [query_message, revision],
            **one_at_a_time,
            show_progress_on=query_message,
        )
        for button, path in example_queries:
            button.click(lambda path=path: path, None, query, **at_once)

        def forget(request: gr.Request):
            uploads.forget(request.session_hash)

        page.unload(forget)
    return page


def default_model() -> str:
    return str(TRAINED_IN_DEMO if TRAINED_IN_DEMO.is_dir() else TINY_CLIP)


def main(arguments: Arguments):
    # One core is left for reading clips and serving the page; more threads than free cores are very slow.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    model_name = arguments.model or default_model()
    if not Path(model_name).is_dir() and (model_name.startswith((".", "/")) or model_name.count("/") > 1):
        raise FileNotFoundError(f"--model {model_name}: there is no such folder.")
    model, processor = load_model(model_name)
    pipeline = FewShotVideoClassificationPipeline(model=model, processor=processor, device=arguments.device)
    if arguments.model:
        note = f"Model: {Path(model_name).name if Path(model_name).is_dir() else model_name}."
    else:
        note = (
            "This page runs a tiny model for demonstration: it knows rendered coloured shapes and nothing of the real "
            "world, so begin with the examples. Whoever starts the page can name another model."
        )
    # SIGTERM would leave the folder behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="clipfsar_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))
        page = build_page(pipeline, render_examples(Path(folder, "examples")), note)
        page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            quiet=True,
            prevent_thread_lock=True,
            share=False,
            ssr_mode=False,
            max_file_size=MAX_FILE_SIZE,
            allowed_paths=[str(Path(folder, "examples"))],
            footer_links=[],
            enable_monitoring=False,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            app_kwargs={"middleware": [Middleware(NothingFromElsewhere)]},
        )
        print(f"The page is at {page.local_url} (Ctrl+C ends it).", flush=True)
        page.block_thread()


if __name__ == "__main__":
    try:
        parser = HfArgumentParser(Arguments, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        main(parser.parse_args_into_dataclasses()[0])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
