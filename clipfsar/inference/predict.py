"""`clipfsar predict`: classifies videos by a few example clips per class."""

import functools
import json
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from choices_clipfsar import UNKNOWN_LABEL, VIDEO_SUFFIXES
from clipfsar.data.arguments import TABLE_SUFFIXES
from clipfsar.data.clips import LeftOut, class_folders, find_clips
from clipfsar.data.sources import is_labels, labelled_clips
from clipfsar.data.tables import csv_text, read_class_texts, read_text
from clipfsar.inference.arguments import SUPPORT_SET_REMEDY, PredictArguments
from clipfsar.inference.load_model import load_model, usable_device
from clipfsar.inference.preannotations import (
    FORMATS_OF_LABELS,
    as_cvat,
    as_json_lines,
    as_label_studio,
    write_cvat,
)
from clipfsar.inference.windows import classify_windows, encode_windows
from clipfsar.option_conditions import check_without_effect
from clipfsar.plots import plot_timeline
from enrolled_clipfsar import DamagedPictureError
from paths_clipfsar import check_output_file, class_names_of_folders, file_name_of, local_path, printable, write_text
from pipeline_clipfsar import FewShotVideoClassificationPipeline, split_labels
from spans_clipfsar import split_span
from support_set_clipfsar import SUPPORT_SET_NAME, SupportSet
from video_clipfsar import VideoReadError

SOME_UNREADABLE = 3


def find_classes(folder: Path, left_out: LeftOut | None = None) -> dict[str, list[Path]]:
    """`{class name: clips}` of a folder that holds one folder of clips per class, named as in a training set.

    Args:
        left_out: Counts the files that are no clips.

    Raises:
        ValueError: When there are no folders of classes, when one holds no clips, or when two mean the same class.
    """
    left_out = LeftOut() if left_out is None else left_out
    folders = class_folders(folder, left_out)
    if not folders:
        raise ValueError(
            f"{folder} holds no folders: give one folder of clips per class, {folder / 'CLASS' / 'a.mp4'}."
        )
    classes = {}
    for name, class_name in class_names_of_folders(folders, folder).items():
        classes[class_name] = find_clips(folder / name, left_out)
        if not classes[class_name]:
            raise ValueError(
                f"Class {class_name!r} has no clips: {folder / name} holds neither video files "
                f"({' '.join(VIDEO_SUFFIXES[:5])} ...) nor image files."
            )
    return classes


def find_queries(names: list[str], left_out: LeftOut | None = None) -> list[str]:
    """The videos to classify: folders are replaced by their clips. Missing files stay; the output marks them."""
    queries = []
    for name in names:
        path = local_path(name)
        clips = find_clips(path, left_out) if os.path.isdir(path) else []  # False for a name that no file can have
        queries += [str(clip) for clip in clips] or [name]
    return queries


def find_support_set(arguments) -> SupportSet | dict[str, list]:
    """What `--support_set` names: a saved support set (folder or Hub id), or `{class name: clips}`, from a folder of
    classes or the labels of a labelling tool. Needs no model, so mistakes are found before it is loaded.

    Args:
        arguments: Has the options `support_set`, `video_root`, `label_fps`, `batch_size` and `skip_unreadable`.
    """
    source = arguments.support_set
    path, left_out = local_path(source), LeftOut()
    has_labels = path.exists() and (path.suffix.lower() in TABLE_SUFFIXES or is_labels(path))
    if path.is_file() and not has_labels:
        raise ValueError(f"--support_set {source} is a file without labels. {SUPPORT_SET_REMEDY}")
    if (path / SUPPORT_SET_NAME).is_file() or not (path.is_dir() or has_labels):
        has_background = getattr(arguments, "background", [])  # its clips may be unreadable
        names = ["video_root", "label_fps", *([] if has_background else ["skip_unreadable"])]
        check_without_effect(arguments, names, f"the saved support set {source}, whose clips are encoded")
        return SupportSet.from_pretrained(path if path.is_dir() else source)
    if has_labels:
        reading = {"label_fps": arguments.label_fps, "skip_unreadable": arguments.skip_unreadable}
        classes: dict = labelled_clips(path, arguments.video_root, left_out=left_out, **reading)
    else:
        check_without_effect(arguments, ("video_root", "label_fps"), f"{source}, a folder with a folder per class")
        classes = find_classes(path, left_out)
    _print_left_out("--support_set", left_out)
    return classes


def enroll(model, processor, found: SupportSet | dict[str, list], arguments) -> SupportSet:
    """The support set that `find_support_set` found; clips are encoded."""
    if isinstance(found, SupportSet):
        return found
    options = {"batch_size": arguments.batch_size, "skip_unreadable": arguments.skip_unreadable}
    try:
        return SupportSet.from_videos(model, processor, found, **options, show_progress=True)
    except VideoReadError as error:
        raise VideoReadError(f"{error}\n--skip_unreadable leaves unreadable example clips out.") from None


def _print_left_out(option: str, left_out: LeftOut):
    lines = [str(left_out), *(f"note: {words}: {number:,}" for words, number in left_out.notes.items())]
    for line in filter(None, lines):
        print(f"{option} {line}", file=sys.stderr)


def _labels(arguments: PredictArguments) -> tuple[str, ...] | None:
    """The names of `--labels` or `--labels_file`; None without them.

    Raises `ValueError` for fewer than two different names.
    """
    names = _given_labels(arguments)
    if names is not None and len(set(names)) < 2:
        option = "labels" if arguments.labels_file is None else "labels_file"
        value = arguments.labels_file or " ".join(arguments.labels or ())
        raise ValueError(f'--{option} {value}: at least two names are needed, such as --labels "jumping, running".')
    return names


def _given_labels(arguments: PredictArguments) -> tuple[str, ...] | None:
    if arguments.labels_file is not None:
        lines = read_text(local_path(arguments.labels_file)).splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
        if not names:
            raise ValueError(f"--labels_file {arguments.labels_file} holds no class names: write one per line.")
        return names
    labels = arguments.labels
    if labels is None:
        return None
    return tuple(labels if len(labels) > 1 else split_labels(labels[0]))


class Prediction:
    """A model, the classes it chooses from, and its answers to the queries."""

    def __init__(self, arguments: PredictArguments):
        self.arguments = arguments
        # Outputs that cannot be written fail here, before the work.
        if arguments.output:
            folder = output_folder(arguments)
            check_output_file(arguments.output if folder is None else folder / "a.xml")
        for name in filter(None, (arguments.pictures, arguments.save_support_set)):
            check_output_file(Path(name) / SUPPORT_SET_NAME)
        self.queries = self._find_queries()
        background = self._clips("--background", arguments.background)
        self.candidate_labels = _labels(arguments)
        found = None if arguments.support_set is None else find_support_set(arguments)
        class_texts = None if arguments.class_texts is None else read_class_texts(arguments.class_texts)
        model, processor = load_model(arguments.model, arguments.dtype)
        processor.seconds_per_video = arguments.seconds_per_video
        if class_texts is not None:
            processor.class_texts = class_texts
        device = "cpu" if arguments.dtype == "int8" else usable_device(arguments.device)
        # With classes of one's own, a set saved next to the model is not even looked at.
        beside_model = None if found is None and self.candidate_labels is None else False
        self.pipeline = FewShotVideoClassificationPipeline(model, processor, support_set=beside_model, device=device)
        if found is not None:
            self.pipeline.support_set = enroll(model, processor, found, arguments)
        elif self.candidate_labels is None and self.pipeline.support_set is None:
            raise ValueError("There are no classes: give --support_set EXAMPLES (EXAMPLES/CLASS/clips) or --labels.")
        self._set_unknowns(background)
        names = self.candidate_labels or self.support_set.class_names
        if arguments.format in FORMATS_OF_LABELS and UNKNOWN_LABEL in names:
            raise ValueError(
                f"A class is called {UNKNOWN_LABEL!r}. In --format {arguments.format} such videos have no label: give "
                "the class another name."
            )
        self.picture_names: set[str] = set()

    def _find_queries(self) -> list[str]:
        queries = self._clips("--query", self.arguments.query)
        if self.arguments.format == "cvat" and len(queries) > 1 and output_folder(self.arguments) is None:
            raise ValueError(
                f"--format cvat: a file is for one task of CVAT, with one video, but there are {len(queries)} queries. "
                "Name a folder as --output, for a file per video."
            )
        return queries

    @staticmethod
    def _clips(option: str, names: list[str]) -> list[str]:
        left_out = LeftOut()
        clips = find_queries(names, left_out)
        _print_left_out(option, left_out)
        folders = [path for path in (local_path(name) for name in names) if os.path.isdir(path)]
        if names and len(folders) == len(names) and not any(map(find_clips, folders)):
            raise ValueError(f"{option} {' '.join(names)} holds neither videos nor folders of image files.")
        return clips

    def _set_unknowns(self, background: list[str]):
        """Adds the background clips to the support set, and sets its `--unknown_error_rate`."""
        arguments = self.arguments
        if background:
            options = {"batch_size": arguments.batch_size, "skip_unreadable": arguments.skip_unreadable}
            self.support_set.add_background(self.pipeline.model, self.pipeline.processor, background, **options)
        if arguments.unknown_error_rate is not None:
            self.support_set.unknown_error_rate = arguments.unknown_error_rate

    @property
    def support_set(self) -> SupportSet:
        """The enrolled classes; only without labels."""
        assert self.pipeline.support_set is not None
        return self.pipeline.support_set

    @property
    def class_names(self) -> list[str]:
        """All possible labels of an answer."""
        names = list(self.candidate_labels or self.support_set.class_names)
        return [*names, UNKNOWN_LABEL] if self.arguments.detect_unknown else names

    def run(self) -> list[dict]:
        """One result per query, in order, as plain values for JSON: `query`, and `answer`, `windows` or `error`."""
        queries = self.queries
        window_seconds = self.arguments.window_seconds
        if window_seconds is not None:
            return [self._in_windows(query, window_seconds) for query in queries]
        answers = self.pipeline(
            (query for query in queries),
            batch_size=self.arguments.batch_size,
            top_k=self.arguments.top_k,
            inference_mode=self.arguments.inference_mode,
            **({"candidate_labels": self.candidate_labels} if self.candidate_labels else {}),
            **({"detect_unknown": True} if self.arguments.detect_unknown else {}),
        )
        results = []
        for query, answer in zip(queries, tqdm(answers, "classifying", len(queries), unit="video"), strict=True):
            if "error" in answer[0]:
                results.append({"query": query, "error": answer[0]["error"]})
                continue
            results.append({"query": query, "answer": answer})
            if self.arguments.pictures:
                self._explain(results[-1], self.arguments.pictures)
        return results

    def _explain(self, result: dict, folder: str):
        """Adds the numbers and the picture behind an answer, for which the query is read a second time. The answer is
        kept if this fails."""
        options = (self.arguments.inference_mode, self.arguments.detect_unknown)
        try:
            explanation = self.pipeline.explain(result["query"], None, *options)
        except (VideoReadError, DamagedPictureError) as error:
            result["picture_error"] = str(error)
            return
        result["why"] = explanation.to_dict()
        draw = functools.partial(explanation.plot, title=printable(Path(result["query"]).name))
        self._draw(result, draw, folder)

    def _in_windows(self, query: str, window_seconds: float) -> dict:
        arguments, pipeline = self.arguments, self.pipeline
        class_names, classify = pipeline.classifier(
            pipeline.support_set if self.candidate_labels is None else None,
            self.candidate_labels,
            arguments.inference_mode,
        )
        stride = arguments.stride_seconds or window_seconds / 2
        try:
            timeline = encode_windows(
                pipeline.model,
                pipeline.processor,
                query,
                window_seconds,
                stride,
                arguments.fps,
                show_progress=True,
            )
        except ValueError as error:  # unreadable, or without a frame rate; the other queries go on
            return {"query": query, "error": str(error)}
        scores = classify_windows(timeline.embeds, classify).softmax(-1)
        unknown = None
        if arguments.detect_unknown:
            unknown = classify_windows(
                timeline.embeds,
                lambda embeds: self.support_set.score_unknown(pipeline.model, embeds, arguments.inference_mode),
            )
        windows = []
        for row, (start, end) in enumerate(timeline.seconds.tolist()):
            window_scores = dict(zip(class_names, scores[row].tolist(), strict=True))
            best = max(window_scores, key=window_scores.__getitem__)
            window = {"start_seconds": round(start, 3), "end_seconds": round(end, 3)}
            window |= {"label": best, "score": window_scores[best], "scores": window_scores}
            if unknown is not None:
                window["unknown_score"] = float(unknown[row])
                if window["unknown_score"] >= 0.5:
                    window |= {"label": UNKNOWN_LABEL, "score": window["unknown_score"]}
            windows.append(window)
        result = {"query": query, "windows": windows}
        if arguments.pictures:
            draw = functools.partial(
                plot_timeline,
                timeline.seconds.numpy(),
                scores.numpy(),
                class_names,
                [window["label"] for window in windows],
                timeline.duration_seconds,
                title=f"{printable(Path(query).name)}, windows of {window_seconds:g} s every {stride:g} s",
                thumbnails=timeline.thumbnails.numpy(),
                unknown_scores=None if unknown is None else unknown.numpy(),
            )
            self._draw(result, lambda path: draw(path=path), arguments.pictures)
        return result

    def _draw(self, result: dict, draw: Callable[[Path], object], folder: str):
        """Draws the picture of a result under a unique name. The result is kept if the picture cannot be written."""
        name = picture_name(result["query"], self.picture_names)
        self.picture_names.add(name)
        path = Path(folder) / name
        try:
            draw(path)
            result["picture"] = str(path)
        except OSError as error:
            result["picture_error"] = str(error)


def picture_name(query: str, used: Collection[str] = ()) -> str:
    """The file name of a query's picture: the video's name and, for a part of a video, its seconds."""
    path, span = split_span(query)
    stem = Path(path).stem or "video"
    return file_name_of(stem if span is None else f"{stem}_{span}", ".png", used)


def as_table(results: list[dict], top_k: int) -> str:
    """Text for people: one line per video or window."""
    lines = []
    queries = [printable(result["query"]) for result in results]
    width = max(map(len, queries), default=0)
    for query, result in zip(queries, results, strict=True):
        if "error" in result:
            lines.append(f"{query:{width}}  NOT READ: {result['error']}")
        elif "answer" in result:
            entries = "   ".join(f"{entry['label']} {entry['score']:.2f}" for entry in result["answer"])
            lines.append(f"{query:{width}}  {printable(entries)}")
        else:
            lines.append(query)
            for window in result["windows"]:
                times = f"{window['start_seconds']:8.2f} - {window['end_seconds']:8.2f} s"
                ranked = sorted(window["scores"].items(), key=lambda item: -item[1])
                others = [f"{name} {score:.2f}" for name, score in ranked if name != window["label"]]
                entries = [f"{window['label']} {window['score']:.2f}", *others]
                lines.append(f"  {times}  {printable('   '.join(entries[:top_k]))}")
        if "picture" in result:
            lines.append(f"  {'see' if 'windows' in result else 'why:'} {result['picture']}")
        if "picture_error" in result:
            lines.append(f"  no picture: {result['picture_error']}")
    return "\n".join(lines) + "\n"


def as_csv(results: list[dict], class_names: list[str]) -> str:
    """CSV text, one line per video or window: query, start, end, label, score, error, the picture if
    there is one, and a score for each class. Scores of classes beyond `top_k` are empty."""
    rows = []
    for result in results:
        for window in result.get("windows", [result]):
            scores = window.get("scores") or {entry["label"]: entry["score"] for entry in result.get("answer", ())}
            if "unknown_score" in window:
                scores = {**scores, UNKNOWN_LABEL: window["unknown_score"]}
            answer = result["answer"][0] if "answer" in result else window
            rows.append(
                {
                    "query": result["query"],
                    **{name: window.get(name, "") for name in ("start_seconds", "end_seconds")},
                    **{name: answer.get(name, "") for name in ("label", "score")},
                    **{name: result.get(name, "") for name in ("error", "picture")},
                    **{f"score of {name}": score for name, score in scores.items()},
                }
            )
    columns = ["query", "start_seconds", "end_seconds", "label", "score", "error"]
    columns += ["picture"] if any("picture" in result for result in results) else []
    columns += [f"score of {name}" for name in class_names]
    return csv_text(columns, rows)


def output_folder(arguments: PredictArguments) -> Path | None:
    """The folder that `--output` names for a file per video; None if it names a file or nothing."""
    is_folder = arguments.format == "cvat" and Path(arguments.output or ".xml").suffix.lower() != ".xml"
    return Path(arguments.output) if is_folder and arguments.output else None


def as_text(results: list[dict], prediction: Prediction) -> str:
    """The results in the format that the options name."""
    arguments = prediction.arguments
    texts: dict[str, Callable[[], str]] = {
        "table": lambda: as_table(results, arguments.top_k),
        "json": lambda: json.dumps(results, indent=2, ensure_ascii=False) + "\n",
        "csv": lambda: as_csv(results, prediction.class_names),
        "jsonl": lambda: as_json_lines(results),
        "label_studio": lambda: as_label_studio(results, arguments),
        "cvat": lambda: "".join(as_cvat(results, arguments).values()),
    }
    return texts[arguments.format]()


def write_output(text: str, path: str | None):
    """Writes to the file, or to standard output, also if writing the file fails."""
    # Characters that cannot be encoded, as in file names with other bytes, become escapes (in JSON, JSON's own).
    if path is None:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return
    try:
        write_text(path, text)
    except OSError:
        write_output(text, None)
        raise


def _videos(number: int) -> str:
    return f"{number:,} video{'' if number == 1 else 's'}"


def _tell_what_is_missing(results: list[dict], arguments: PredictArguments) -> int:
    """Counts what could not be read or drawn, with the reasons where the output has no place for them. Returns the exit
    code."""
    without_place = {"error": FORMATS_OF_LABELS, "picture_error": ("csv", *FORMATS_OF_LABELS)}
    sentences = {"error": "queries could not be read", "picture_error": "pictures could not be made"}
    code = 0
    for kind, sentence in sentences.items():
        failed = [result for result in results if kind in result]
        if arguments.format in without_place[kind]:
            for result in failed:
                print(f"{printable(result['query'])}: {result[kind]}", file=sys.stderr)
        if failed:
            print(f"{len(failed)} of {len(results)} {sentence}.", file=sys.stderr)
            code = SOME_UNREADABLE
    return code


def main(arguments: PredictArguments) -> int:
    """Runs `clipfsar predict`; returns its exit code."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    prediction = Prediction(arguments)
    if arguments.save_support_set:
        prediction.support_set.save_pretrained(arguments.save_support_set)
        print(f"{arguments.save_support_set}: {prediction.support_set}", file=sys.stderr)
    if not arguments.query:
        return 0
    results = prediction.run()
    folder = output_folder(arguments)
    text = "" if folder is not None else as_text(results, prediction)
    if folder is not None:
        write_cvat(as_cvat(results, arguments), folder)
    elif text or arguments.format != "cvat":  # a file for CVAT holds a video; without one an earlier file stays
        write_output(text, arguments.output)
    written = [one for one in results if arguments.format not in FORMATS_OF_LABELS or "error" not in one]
    if arguments.output:
        print(f"{arguments.output}: results of {_videos(len(written))}, {arguments.format}", file=sys.stderr)
    return _tell_what_is_missing(results, arguments)


__all__ = [
    *("SOME_UNREADABLE", "Prediction", "as_csv", "as_table", "find_classes", "find_clips", "find_queries"),
    *("as_text", "enroll", "find_support_set", "main", "output_folder", "picture_name", "write_output"),
]
