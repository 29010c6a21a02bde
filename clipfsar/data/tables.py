"""Reads text files and tables (CSV, TSV and JSON Lines) and reports errors in them. Writes CSV."""

import csv
import functools
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from limits_clipfsar import UnreadableError, read_file
from paths_clipfsar import local_path

_DELIMITERS = (",", ";", "\t")
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path, size_limit: str = "file_bytes") -> str:
    """The content of a text file in UTF-8, with or without a byte order mark.

    Args:
        size_limit: Name of the limit on its size (`limits_clipfsar`).

    Raises:
        ValueError: For another encoding (the message has file, line and remedy), for a pipe or device, which may never
            end, and for a file above the size limit.
    """
    try:
        data = read_file(path, size_limit)
    except UnreadableError as error:
        raise ValueError(f"{path} cannot be read as text: {error}. Give a file with lines of text.") from None
    remedy = "save the file as UTF-8 (spreadsheets call it 'CSV UTF-8')"
    if data.startswith(_UTF_16_MARKS):
        raise ValueError(f"{path} is not a text file in UTF-8 but in UTF-16: {remedy}.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = len(data) - len(error.object) + error.start
        line = data.count(b"\n", 0, start) + 1
        raise ValueError(
            f"{path} is not a text file in UTF-8 (line {line}, byte {start} is 0x{data[start]:02x}): {remedy}."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path} is not a text file in UTF-8 (line {line} has a zero byte): {remedy}.")
    return text


def read_class_texts(path: str | os.PathLike) -> dict[str, Any]:
    """`{class name: text or list of texts}` of a JSON file, for `CLIPFSARProcessor.class_texts`, which checks it.

    Raises `ValueError` for a file that is not JSON.
    """
    return read_json_text(path, "file_bytes")


def read_json_text(path: str | os.PathLike, size_limit: str = "json_bytes") -> Any:
    """The value in a JSON file of another program or of a person. Raises `ValueError` if it is not JSON."""
    return _parsed_json(os.fspath(path), read_text(local_path(path), size_limit))


def _parsed_json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}.") from None
    except RecursionError:
        raise ValueError(f"{where} is not read: its values are nested too deeply.") from None
    except ValueError:  # Python's limit on the digits of a whole number
        raise ValueError(f"{where} is not read: it has a number of too many digits. Shorten or remove it.") from None


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV text with a header. All CSV files of this library are written with it.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, which spreadsheets do not show: names
    of files and classes are not trusted. Columns missing from a row stay empty.
    """
    lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    return "".join(f"{_csv_line(map(_without_formula, line))}\n" for line in lines)


def _csv_line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # line ends stay \r\n here, so that it quotes carriage returns
    return text.getvalue().removesuffix("\r\n")


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet would run a text, or would if it had no apostrophes in front."""
    return text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r"))


def _without_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def _without_apostrophe(text: str) -> str:
    """Undoes `_without_formula`."""
    return text[1:] if text.startswith("'") and _is_formula(text) else text


def read_rows(table: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict]]:
    """Yields line number and `{column: value}` for each row of a .csv, .tsv or .jsonl file.

    The header line of a .csv or .tsv file decides whether commas, semicolons or tabs separate its columns. Blanks
    around values are removed, and so is the apostrophe that `csv_text` writes in front of formulas.

    Args:
        columns: Names of the required columns; they help to recognise the separator.

    Raises:
        ValueError: If the file is not such a table; the message has the line.
    """
    text = read_text(table)
    rows = _rows_of_json_lines if table.suffix.lower() == ".jsonl" else _rows
    yield from rows(table, text, columns)


def _rows(table: Path, text: str, columns: Sequence[str]) -> Iterator[tuple[int, dict]]:
    header = next((line for line in text.splitlines() if line.strip()), "")

    def names(delimiter: str) -> list[str]:
        rows = _records(table, header, delimiter, strict=False)
        return next((values for _, values in rows), [])

    delimiter = max(_DELIMITERS, key=lambda mark: (len(set(columns) & set(names(mark))), len(names(mark))))
    fields = None
    for line, values in _records(table, text, delimiter):
        if not any(values):
            continue
        if fields is None:
            fields = values
            repeated = sorted({name for name in fields if name and fields.count(name) > 1})
            if repeated:
                raise ValueError(
                    f"{table}, line {line}: there is more than one column {', '.join(map(repr, repeated))}: "
                    "rename or remove the others."
                )
            continue
        if len(values) != len(fields):
            raise ValueError(f"{table}, line {line}: {len(fields)} columns are expected, but it has {len(values)}.")
        yield line, dict(zip(fields, values, strict=True))


def _records(table: Path, text: str, delimiter: str, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """The last line and the values of each record of CSV text, without blanks around values.

    A stray quotation mark would make all lines up to the next one, or to the end, a single value. So a record of
    several lines must follow the rules of quoting strictly. Records of one line need not: `"a" , "b"` is understood.

    Args:
        strict: False for a header alone, whose values may go on in the next line.
    """
    lines: list[str] = []
    is_at_end = False

    def read_lines() -> Iterator[str]:
        nonlocal is_at_end
        for line in io.StringIO(text, newline=""):
            lines.append(line)
            yield line
        is_at_end = True

    read = functools.partial(csv.reader, delimiter=delimiter, skipinitialspace=True)
    reader = read(read_lines())
    while True:
        first = reader.line_num + 1
        try:
            values = next(reader, None)
            if values is not None and strict and (is_at_end or len(lines) > 1):
                next(read(lines, strict=True))
        except csv.Error as error:
            raise ValueError(
                f"{table}, line {first}: a value begins with a quotation mark and does not end with one, or is too "
                f"long ({error}). Remove the mark, or write it twice and quote the whole value."
            ) from None
        if values is None:
            return
        lines.clear()
        yield reader.line_num, [_without_apostrophe(value.strip()) for value in values]


def _rows_of_json_lines(table: Path, text: str, columns: Sequence[str]) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = _parsed_json(f"{table}, line {number}", line)
            if not isinstance(row, dict):
                raise ValueError(f"{table}, line {number}: an object with columns is expected.")
            for column in columns:
                _check_value(row.get(column), f"{table}, line {number}: the column {column!r}")
            yield number, row


def _check_value(value: Any, what: str) -> None:
    """Raises `ValueError` for a JSON value that is neither a text nor a number, such as a list. None passes."""
    is_usable = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    if not is_usable or isinstance(value, bool):
        raise ValueError(f"{what} is {json.dumps(value)[:100]}, which is no text and no number.")


__all__ = ["csv_text", "read_class_texts", "read_json_text", "read_rows", "read_text"]
