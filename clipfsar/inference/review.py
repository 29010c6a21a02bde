"""`clipfsar review`: judges a support set by leaving its clips out."""

import json
import sys
from pathlib import Path

from transformers.utils import logging as transformers_logging

from clipfsar.data.tables import read_class_texts, read_rows
from clipfsar.inference.arguments import ReviewArguments
from clipfsar.inference.load_model import load_model, usable_device
from clipfsar.inference.predict import enroll, find_support_set, write_output
from paths_clipfsar import check_output_file, local_path, printable
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from support_set_clipfsar import SUPPORT_SET_NAME


def read_sources(table: Path) -> dict:
    """`{clip: source}`, or `{(class, clip): source}` for rows with a class, from a CSV or JSON Lines file.

    Raises `ValueError` for a file without the columns `clip` and `source`.
    """
    sources: dict = {}
    for line, row in read_rows(table, ("clip", "source")):
        missing = [name for name in ("clip", "source") if not row.get(name)]
        if missing:
            raise ValueError(f"{table}, line {line} has no {' and no '.join(missing)}: each row needs clip and source.")
        clip, source = str(row["clip"]), str(row["source"])
        sources[(str(row["class"]), clip) if row.get("class") else clip] = source
    return sources


def main(arguments: ReviewArguments) -> None:
    """Runs `clipfsar review`."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    outputs = [arguments.output, arguments.picture]
    if arguments.save_support_set:
        outputs.append(str(Path(arguments.save_support_set) / SUPPORT_SET_NAME))
    for path in filter(None, outputs):
        check_output_file(path)
    sources = None if arguments.sources is None else read_sources(local_path(arguments.sources))
    found = find_support_set(arguments)
    class_texts = None if arguments.class_texts is None else read_class_texts(arguments.class_texts)
    model, processor = load_model(arguments.model, arguments.dtype)
    if class_texts is not None:
        processor.class_texts = class_texts
    device = "cpu" if arguments.dtype == "int8" else usable_device(arguments.device)
    FewShotVideoClassificationPipeline(model=model, processor=processor, device=device)  # moves the model
    support_set = enroll(model, processor, found, arguments)
    if arguments.save_support_set:
        support_set.save_pretrained(arguments.save_support_set)
        print(f"{arguments.save_support_set}: {support_set}", file=sys.stderr)
    review = support_set.review(model, arguments.inference_mode, sources)
    if arguments.picture:
        review.plot(arguments.picture)
    if arguments.format == "json":
        text = json.dumps(review.to_dict(), indent=2, ensure_ascii=False) + "\n"
    else:
        text = "\n".join(map(printable, str(review).splitlines())) + "\n"
    write_output(text, arguments.output)
    if arguments.output:
        print(f"{arguments.output}: the review, {arguments.format}", file=sys.stderr)


__all__ = ["main", "read_sources"]
