"""Read CSV, TSV and JSON Lines: encoding, delimiter, header and the line of each row.

Python's `csv` module parses CSV and TSV. It is written in C, counts the lines inside quoted cells,
refuses an unclosed quotation mark, and shows rows with a wrong number of cells. pandas pads such
rows, and Arrow's reader does not count the lines inside cells.
"""

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from multitask.data.lists import MARK, without_marks
from multitask.data.sources.image_column import has_image_suffix
from multitask.data.sources.source import (
    CELL,
    object_frame,
    one_line,
    plain_column,
    read_bytes,
    refuse_repeated,
    shorten,
)
from multitask.errors import InputError, shown

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SAMPLE_CHARS, _SAMPLE_ROWS = 2**18, 200  # the part of the file that the delimiter is chosen by
_BOMS = (  # UTF-32 before UTF-16: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_GZIP = b"\x1f\x8b"
_SEP_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # Excel's own first line


@dataclass(frozen=True)
class RawTable:
    """A table as its file holds it.

    Attributes:
        frame: as in Source.
        rows: str [rows], as in Source.
        notes: as in Source.
    """

    frame: pd.DataFrame
    rows: pd.Series
    notes: list[str] = field(default_factory=list)


def decode(data: bytes, path: Path, *, western: bool) -> tuple[str, str]:
    """Decode the bytes of a text file.

    Args:
        data: the whole file.
        path: for messages.
        western: whether text that is not UTF-8 is read as Windows-1252.

    Returns:
        The text, and a note on its encoding, which is "" for plain UTF-8.

    Raises:
        InputError: the bytes are not text.
    """
    if data.startswith(_GZIP):
        raise InputError(f"{path}: compressed with gzip; unpack it first")
    encoding, note = next(
        ((encoding, f"encoding {name}") for bom, encoding, name in _BOMS if data.startswith(bom)),
        ("utf-8", ""),
    )
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or not western:
            what = note.removeprefix("encoding ") or "UTF-8"
            raise InputError(f"{path}: not {what} text (byte {error.start})") from None
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError as second:
            raise InputError(
                f"{path}: neither UTF-8 (byte {error.start}) nor Windows-1252 text "
                f"(byte {second.start}); save it as UTF-8"
            ) from None
        note = "encoding Windows-1252, because the file is not UTF-8; check accents"
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(
            f"{path}: not text: a NUL character in line {line}; if it is UTF-16 without a "
            "byte order mark, save it as UTF-8"
        )
    if MARK in text:
        text, _ = without_marks(text)
    return text, note


# === CSV and TSV ===


def sniff_delimiter(text: str, preferred: str = ",") -> str:
    """The delimiter that splits the first rows into the most columns, the same number in each.

    Args:
        text: the content of the file.
        preferred: the delimiter to choose among equally good ones.

    Returns:
        One of DELIMITERS. If none splits all rows alike, it is the one that splits the first row
        into the most cells, so that the error about unequal rows counts the right cells.
    """
    lines = io.StringIO(text[:_SAMPLE_CHARS], newline="")
    sample = list(lines)
    order = sorted(DELIMITERS, key=lambda delimiter: delimiter != preferred)
    scores = []
    for delimiter in order:
        reader = csv.reader(sample, delimiter=delimiter)
        try:
            rows = [row for row in itertools.islice(reader, _SAMPLE_ROWS) if any(row)]
        except csv.Error:
            rows = []
        if len(rows) > 1 and len(rows) < _SAMPLE_ROWS and len(text) > _SAMPLE_CHARS:
            rows.pop()  # may be cut off
        widths = [len(row) for row in rows] or [0]
        scores.append((len(set(widths)) == 1 and widths[0] > 1, widths[0]))
    return order[max(range(len(order)), key=lambda i: scores[i])]


def read_delimited(path: Path) -> RawTable:
    """Read a CSV or TSV file; every cell is a str, "" where it is empty.

    100,000 rows of 9 columns take about a second.

    Raises:
        InputError: the file is unreadable, is empty or has only a header, or a row has more or
            fewer cells than the header; the message names the line.
    """
    text, encoding = decode(read_bytes(path), path, western=True)
    notes = [encoding] if encoding else []
    skipped_lines = 0
    if stated := _SEP_LINE.match(text):
        delimiter, text, skipped_lines = stated[1], text[stated.end() :], 1
    else:
        delimiter = sniff_delimiter(text, "\t" if path.suffix.lower() in (".tsv", ".tab") else ",")
    if delimiter != ",":
        notes.append(f"columns separated by {DELIMITERS.get(delimiter, shown(delimiter))}")
    numbers, records, blank = _records(text, delimiter, path, skipped_lines)
    if not records:
        raise InputError(f"{path}: the file is empty")
    header = [name.strip() for name in records.pop(0)]
    header_line = numbers.pop(0)
    _check_header(header, path, header_line)
    if not records:
        raise InputError(f"{path}: only a header ({shorten(header)}), no rows below it")
    _even_widths(records, numbers, len(header), path)
    if blank:
        notes.append(f"{blank:,} blank line{'s' * (blank > 1)} skipped")
    columns = _named_columns(header, list(zip(*records, strict=True)), path, notes)
    rows = pd.Series([f"line {number}" for number in numbers], dtype=object)
    return RawTable(object_frame(columns), rows, notes)


def _records(
    text: str, delimiter: str, path: Path, skipped: int
) -> tuple[list[int], list[list[str]], int]:
    """Line numbers (of a row's first line), cells, and the number of blank lines."""
    numbers, records, blank, start = [], [], 0, 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cells) and (len(cells) > 1 or not cells[0].isspace()):
                numbers.append(start + skipped)
                records.append(cells)
            else:
                blank += 1
            start = reader.line_num + 1
    except csv.Error as error:
        cause = str(error)
        if "unexpected end of data" in cause:
            cause = "a quotation mark is not closed"
        elif "expected after" in cause:
            cause = "text after a closing quotation mark"
        raise InputError(f"{path}: line {start + skipped}: not CSV: {cause}") from None
    return numbers, records, blank


def _check_header(header: list[str], path: Path, line: int) -> None:
    images = [name for name in header if has_image_suffix(name)]
    if images:
        raise InputError(
            f"{path}: line {line} has {shown(images[0], CELL)} where the names of the columns "
            "should be; add a header line"
        )
    refuse_repeated([name or f"\0{i}" for i, name in enumerate(header)], str(path))


def _even_widths(records: list[list[str]], numbers: list[int], width: int, path: Path) -> None:
    """Drop empty cells beyond the header; raise InputError for any other row of a wrong width.

    Spreadsheets write such cells if a row was once longer.
    """
    if set(map(len, records)) == {width}:
        return
    for number, cells in zip(numbers, records, strict=True):
        if len(cells) > width and not any(cells[width:]):
            del cells[width:]
        elif len(cells) != width:
            raise InputError(
                f"{path}: line {number}: {len(cells)} cell{'s' * (len(cells) != 1)}, the header "
                f"has {width}; "
                'a cell with the separator in it needs double quotes: "a, b"'
            )


def _named_columns(
    header: list[str], columns: list[tuple[str, ...]], path: Path, notes: list[str]
) -> dict[str, tuple[str, ...]]:
    """The columns by name; drops unnamed empty columns and an unnamed first column of numbers."""
    named = {}
    for number, (name, cells) in enumerate(zip(header, columns, strict=True), start=1):
        if name:
            named[name] = cells
        elif not any(cells):
            notes.append(f"column {number} has neither name nor content; skipped")
        elif number == 1 and all(map(str.isdecimal, cells)):
            notes.append("the first column has no name and holds row numbers; skipped")
        else:
            raise InputError(f"{path}: column {number} has no name in the header")
    return named


# === JSON Lines ===


def read_json_lines(path: Path) -> RawTable:
    """Read JSON Lines, one object per line; a key that an object lacks is None.

    Raises:
        InputError: the file is unreadable or empty, or a line is not a JSON object; the message
            names the line.
    """
    text, encoding = decode(read_bytes(path), path, western=False)
    notes = [encoding] if encoding else []
    if text.lstrip().startswith("["):
        raise InputError(f"{path}: it is one JSON array; JSON Lines has one object per line")
    numbers, objects = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            numbers.append(number)
            objects.append(_json_object(line, path, number))
    names = dict.fromkeys(itertools.chain.from_iterable(objects))
    if not names:
        raise InputError(f"{path}: its objects have no keys")
    columns = {name: [item.get(name) for item in objects] for name in names}
    return RawTable(
        object_frame(dict(_without_objects(columns, notes))),
        pd.Series([f"line {number}" for number in numbers], dtype=object),
        notes,
    )


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        where = f"line {number}, column {error.colno}"
        raise InputError(f"{path}: {where}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number or a depth beyond Python's limits
        raise InputError(f"{path}: line {number}: not JSON: {one_line(error)}") from None
    if not isinstance(item, dict):
        raise InputError(
            f"{path}: line {number}: {shown(item, CELL)}: expected a JSON object such as "
            '{"image": "a.jpg"}'
        )
    return item


def _without_objects(
    columns: dict[str, list[Any]], notes: list[str]
) -> Iterator[tuple[str, list[Any]]]:
    for name, values in columns.items():
        if any(isinstance(value, dict) for value in values):
            notes.append(f"column {shown(name, CELL)} holds objects; skipped")
        else:
            yield name, list(plain_column(values))
