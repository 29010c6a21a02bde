"""Writes `index.html`: all results of the demo on one page, with no other files."""

import base64
from html import escape
from pathlib import Path

from demo.synthetic.track_report import table_of

INTRODUCTIONS = {
    "what": (
        "Classes differ in what is seen, as in Kinetics: each class has its own colour and shape. Distractors are as "
        "large as the subject, so one clip does not tell which object matters. The class name does: here a text can "
        "help."
    ),
    "order": (
        "Classes show the same object and differ in its motion, as in Something-Something. Most motions come with a "
        "twin, the same motion played backwards. Twins show the same single frames, so a text that describes frames "
        "cannot tell them apart. Here alignment must help."
    ),
}
MEANINGS = {
    "frozen_mean": "Features of the tiny CLIP, untrained. A video is the mean of its frames. No order, no training, "
    "no text.",
    "frozen_otam": "The same features. Frames are aligned in order by OTAM. No training, no text.",
    "without_text": "A temporal transformer, trained on base classes, and OTAM. No text.",
    "with_text": "CLIP-FSAR: the same, with prototypes modulated by the class names.",
    "swapped_texts": "CLIP-FSAR, but each motion gets the name of its twin. If names told twins apart, this row would "
    "be lower.",
    "texts_only": "Class names only, zero-shot. No support clips are used, so both columns are the same.",
    "ensemble": "CLIP-FSAR and texts together. The weight of the texts is chosen on validation classes.",
    "ensemble_official": "The same, with the official program's weight of 0.9.",
}
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
.wide { overflow-x: auto; } .wide img { min-width: min(44rem, 200vw); }
table { border-collapse: collapse; } td, th { padding: .25rem .75rem; border-bottom: 1px solid var(--line); }
td + td, th + th { text-align: right; white-space: nowrap; } th:first-child { text-align: left; }
pre { background: var(--soft); padding: .75rem; white-space: pre-wrap; border-radius: 4px; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1rem; }
"""


def write_report(output_dir: Path, results: dict, answers: list[dict], run: dict, seconds: float) -> Path:
    """Writes `index.html` with embedded pictures.

    Args:
        output_dir: Folder with the pictures: `first_answer/why.png`, `TRACK.png` and `TRACK_episode.png` of each track,
            `run/training.png` and `run/why.png`.
        results: Result of `run_tracks`.
        answers: Result of `first_answer`.
        run: Result of `end_to_end`.
        seconds: Duration of the demo.
    """
    sections = [
        _first_answer(output_dir, answers),
        *(_track(output_dir, name, track) for name, track in results["tracks"].items()),
        _rows(results["tracks"]),
        _run(output_dir, run),
        _next_steps(),
        _how_measured(results, seconds),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Few-shot action recognition: what the demo found</title>\n<style>{STYLE}</style>\n"
        "<h1>Few-shot action recognition: what the demo found</h1>\n"
        "<p>Give a few clips and a name for each class, and classify the next clip. All clips on this page are "
        "rendered, and the CLIP is tiny. The numbers compare methods with each other. They say nothing about real "
        "videos.</p>\n" + "\n".join(sections) + "\n</html>\n"
    )
    path = output_dir / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def _picture(path: Path, description: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p class="wide"><img src="data:image/png;base64,{data}" alt="{escape(description)}"></p>'


def _answer(answer: list[dict]) -> str:
    return ", ".join(f"{escape(entry['label'])} {entry['score']:.2f}" for entry in answer)


def _first_answer(output_dir: Path, answers: list[dict]) -> str:
    items = "".join(
        f"<li>A clip of <b>{escape(found['class'])}</b>: {_answer(found['answer'])}</li>" for found in answers
    )
    return (
        "<h2>A first answer</h2>\n<p>Four clips of each of four classes were enrolled. Nothing was trained. The last "
        "clip belongs to a class that was not enrolled. &ldquo;none of these&rdquo; has a separate score from 0 to "
        f"1.</p>\n<ul>{items}</ul>\n"
        + _picture(
            output_dir / "first_answer" / "why.png",
            "Which frames of the first clip were aligned with which frames of a support clip",
        )
    )


def _track(output_dir: Path, name: str, track: dict) -> str:
    answers = "".join(f"<li><b>{escape(s['question'])}</b> {escape(s['answer'])}</li>" for s in track["sentences"])
    return (
        f"<h2>{escape(track['title'])}</h2>\n<p>{INTRODUCTIONS[name]}</p>\n{_table(track)}\n<ul>{answers}</ul>\n"
        + _picture(output_dir / f"{name}.png", f"Accuracies of the track {name}, and paired differences")
        + "\n<h3>One episode</h3>\n"
        + _picture(output_dir / f"{name}_episode.png", f"Support and query clips of one episode of the track {name}")
    )


def _table(track: dict) -> str:
    headings, rows = table_of(track)
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _rows(tracks: dict[str, dict]) -> str:
    labels = {name: row["label"] for track in tracks.values() for name, row in track["rows"].items()}
    items = "".join(f"<dt>{escape(labels[name])}</dt><dd>{MEANINGS[name]}</dd>" for name in labels)
    return f"<h2>What each row means</h2>\n<dl>{items}</dl>"


def _run(output_dir: Path, run: dict) -> str:
    results = "".join(
        f"<li>{result['n_way']}-way {result['n_shot']}-shot, {result['inference_mode']}: "
        f"{result['accuracy']:.1f} ± {result['interval']:.1f}%</li>"
        for result in run["results"]
    )
    return (
        "<h2>One training from video files</h2>\n"
        "<p>The demo rendered mp4 files and kept their frames. It trained the last layer of the visual tower and the "
        "temporal transformer on episodes, and saved a folder for the Hub. These are the commands:</p>\n"
        f"<pre>{escape(chr(10).join(run['commands']))}</pre>\n<p>Accuracy on novel classes, with the 95% interval over "
        "episodes. The run is short, and its classes and clips differ from those of the tracks above: do not compare "
        f"them.</p>\n<ul>{results}</ul>\n"
        + _picture(output_dir / "run" / "training.png", "Losses and accuracies of the training")
        + f"\n<p>The saved folder classifies a clip of <b>{escape(run['class'])}</b>: {_answer(run['answer'])}.</p>\n"
        + _picture(output_dir / "run" / "why.png", "Why the clip is classified as it is")
    )


def _next_steps() -> str:
    commands = """# a folder with one folder of clips per class, EXAMPLES/CLASS/clip.mp4
clipfsar predict --model openai/clip-vit-base-patch16 --support_set EXAMPLES --query new.mp4 --pictures why

# train on your own classes
clipfsar prepare --source FOLDER_OF_CLASSES --frame_store jpeg --model openai/clip-vit-base-patch16 \\
    --output_dir data/mine
clipfsar train --dataset data/mine --model openai/clip-vit-base-patch16 --output_dir runs/mine"""
    return (
        "<h2>Continue with your own clips</h2>\n<p>You can use any CLIP. The first use downloads it.</p>\n"
        f"<pre>{escape(commands)}</pre>\n<p><code>make page</code> opens a page in your browser; it can also record "
        "clips with your camera.</p>"
    )


def _how_measured(results: dict, seconds: float) -> str:
    settings, phases = results["settings"], results["seconds"]
    took = ", ".join(f"{escape(phase)} {spent['wall']:.0f} s" for phase, spent in phases.items())
    return (
        "<h2>How it was measured</h2>\n"
        "<p>Numbers are means over novel classes with the 95% interval over classes and "
        f"{settings['num_seeds']} training seeds, by bootstrap; differences are paired. Every choice was made on "
        "validation classes. The visual tower is frozen in all rows of the two tracks. 1-shot accuracy covers all "
        f"possible episodes; 5-shot accuracy covers {settings['test_episodes']} sampled episodes. "
        "<code>results.json</code> holds these numbers, also for each class and seed.</p>\n"
        f"<p>The demo took {seconds:.0f} s; the tracks: {took}.</p>"
    )


__all__ = ["write_report"]
