"""A first answer within a minute: enroll a few clips of each class, classify others.

The clips are rendered, and the model is the tiny CLIP next to this file, without any episodic training. With your own
clips and any CLIP, `pipeline` works in the same way.
"""

from pathlib import Path

from transformers import pipeline

from demo.synthetic import TINY_CLIP
from demo.synthetic.render import render_clip, write_clip
from pipeline_clipfsar import TASK

# Number of enrolled clips of each class.
SUPPORT = {"red star growing": 4, "red star shrinking": 4, "green star bouncing": 4, "red circle filling": 4}
QUERIES = ("red star growing", "green star bouncing", "white heart stretching")  # the last one is not enrolled
_QUERY = 9  # number of each query clip; support clips are numbered from 0


def clip_path(folder: Path, class_name: str, number: int) -> Path:
    return folder / class_name / f"{number:03d}.mp4"


def render_clips(folder: Path, seed: int = 0) -> None:
    """Writes the clips as CLASS/NUMBER.mp4. It takes a second and always overwrites clips of other versions."""
    wanted = [(name, number) for name, count in SUPPORT.items() for number in range(count)]
    for name, number in [*wanted, *((name, _QUERY) for name in QUERIES)]:
        path = clip_path(folder, name, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, *render_clip(name, seed, number))


def first_answer(output_dir: Path) -> list[dict]:
    """Enrolls the classes, classifies the queries and draws an explanation of the first answer.

    Returns:
        For each query its class, the clip and the answer: labels with scores, and the score of "none of these".
    """
    clips = output_dir / "clips"
    render_clips(clips)
    classify = pipeline(TASK, model=str(TINY_CLIP), device="cpu")
    classify.enroll({name: [str(clip_path(clips, name, n)) for n in range(c)] for name, c in SUPPORT.items()})
    queries = {name: clip_path(clips, name, _QUERY) for name in QUERIES}
    answers = classify([str(path) for path in queries.values()], detect_unknown=True)
    found = [
        {"class": name, "clip": str(path), "answer": answer}
        for (name, path), answer in zip(queries.items(), answers, strict=True)
    ]
    explanation = classify.explain(str(queries[QUERIES[0]]), detect_unknown=True)
    explanation.plot(output_dir / "why.png")
    return found


def in_words(answers: list[dict]) -> str:
    """The answers as lines of text."""
    lines = []
    for found in answers:
        scores = ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in found["answer"])
        truth = found["class"] if found["class"] in SUPPORT else f"{found['class']}, which is not enrolled"
        lines.append(f"  clip of {truth}:\n    {scores}")
    return "\n".join(lines)


__all__ = ["QUERIES", "SUPPORT", "clip_path", "first_answer", "in_words", "render_clips"]
