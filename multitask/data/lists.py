"""Split the text of a class file or a CSV into cells, whatever program wrote it."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from multitask.errors import counted
from multitask.spec import MISSING, InputError, near, shown

MARK = "\ufeff"  # a byte order mark; joining two files leaves one inside the result
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
CELL = 40  # characters of a cell that a message quotes
_INTEGER = re.compile(r"[+-]?\d+")
_DIGITS = 9  # a number with more digits is not an index


def lines(text: str) -> list[str]:
    r"""Split only at the line ends \n, \r\n and \r.

    `str.splitlines` also splits at other characters, such as U+0085, which occurs in garbled names.
    """
    return re.split(r"\r\n|\n|\r", text)


def without_marks(text: str) -> tuple[str, int]:
    """The text without byte order marks at the start of its lines, and their number."""
    return re.subn(rf"(^|(?<=[\r\n])){MARK}+", "", text)


def is_integer(text: str) -> bool:
    """Whether a text is a whole number, with or without a sign."""
    return bool(_INTEGER.fullmatch(text))


def as_index(text: str, count: int) -> int:
    """Convert a text to a class index; MISSING if it is not in 0 to count - 1."""
    if not is_integer(text) or len(text.lstrip("+-0")) > _DIGITS:
        return MISSING
    index = int(text)
    return index if 0 <= index < count else MISSING


# === CSV ===


@dataclass(frozen=True)
class Rows:
    """The rows of a CSV of two columns.

    Attributes:
        numbers: line numbers, from 1; for a row of several lines, that of its last line.
        pairs: path and class as written, stripped.
        notes: one phrase for each thing that was skipped or converted.
    """

    numbers: list[int]
    pairs: list[tuple[str, str]]
    notes: list[str]


def _cells(text: str, separator: str) -> tuple[list[int], list[list[str]]]:
    """Return line numbers and stripped cells of the non-blank lines; may raise csv.Error."""
    numbers, rows = [], []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                numbers.append(reader.line_num)
                rows.append(cells)
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: not CSV: {error}") from None
    return numbers, rows


def _used(rows: list[list[str]]) -> list[int]:
    """The columns that are not entirely empty."""
    width = max(map(len, rows), default=0)
    return [c for c in range(width) if any(len(row) > c and row[c] for row in rows)]


def _pairs(rows: list[list[str]]) -> list[tuple[str, str]] | None:
    """Return the cells of the two columns in use; None if not exactly two are in use."""
    used = _used(rows)
    if len(used) != 2:
        return None
    first, second = ([row[c] if len(row) > c else "" for row in rows] for c in used)
    return list(zip(first, second, strict=True))


def _is_header(first: tuple[str, str], is_label: Callable[[str], bool]) -> bool:
    return not is_label(first[1]) and "." not in first[0]


def _fits(rows: list[list[str]], is_label: Callable[[str], bool]) -> bool:
    """Whether rows are clearly `path,class`: two full columns, and a class in the second."""
    pairs = _pairs(rows)
    if not pairs or not all(name and label for name, label in pairs):
        return False
    only_header = len(pairs) == 1 and _is_header(pairs[0], is_label)
    return only_header or any(is_label(label) for _, label in pairs)


def read_rows(text: str, place: str, is_label: Callable[[str], bool]) -> Rows:
    """Read the rows of a CSV's text, without header and blank lines.

    Args:
        text: text of the file; may be empty.
        place: the file, for messages.
        is_label: whether a text is a class name or looks like an index.

    Raises:
        InputError: not CSV, or not two columns; the message names the line.
    """
    notes: list[str] = []
    text, marks = without_marks(text)
    if marks:
        notes.append(
            f"{marks} byte order mark{'s' * (marks > 1)} inside the file (from joined files?) "
            "skipped"
        )
    separator, numbers, rows = _split(text, place, is_label)
    if separator != ",":
        notes.append(f"its columns are separated by {SEPARATORS[separator]}")
    if not rows:
        return Rows([], [], notes)
    pairs = _pairs(rows)
    if pairs is None:
        raise InputError(f"{place}: {_why_not_two(numbers, rows)}")
    last = numbers[-1]
    skipped = 0
    below = pairs[1:]
    if _is_header(pairs[0], is_label) and (not below or any(is_label(cell) for _, cell in below)):
        header, width = pairs[0], len(rows[0])
        kept = [i for i, pair in enumerate(pairs) if pair != header]
        skipped = len(pairs) - len(kept)
        times = f", {skipped} times," if skipped > 1 else ""
        notes.append(f"a header row ({shown(separator.join(rows[0]), CELL)}){times} was skipped")
        if width > 2:
            notes[-1] += ", and so were columns without content"
        numbers, pairs = [numbers[i] for i in kept], [pairs[i] for i in kept]
    for number, (name, label) in zip(numbers, pairs, strict=True):
        if not name or not label:
            what = "path" if not name else "class"
            raise InputError(f"{place}: line {number}: the {what} is empty")
    blank = last - len(pairs) - skipped
    if blank > 0:
        notes.append(f"{blank} blank lines were skipped")
    return Rows(numbers, pairs, notes)


def _split(
    text: str, place: str, is_label: Callable[[str], bool]
) -> tuple[str, list[int], list[list[str]]]:
    """Split by commas, or by the only other separator that gives two columns if commas do not.

    Returns:
        The separator, line numbers and cells.
    """
    splits, refusal = {}, None
    for separator in SEPARATORS:
        try:
            numbers, rows = _cells(text, separator)
        except csv.Error as error:
            if separator == ",":
                refusal = InputError(f"{place}: {error}")
            continue
        if separator == "," and (not rows or _fits(rows, is_label)):
            return separator, numbers, rows
        if separator == "," or _fits(rows, is_label):
            splits[separator] = numbers, rows
    others = [separator for separator in splits if separator != ","]
    if len(others) == 1:
        return others[0], *splits[others[0]]
    if refusal:
        raise refusal
    return ",", *splits[","]


def _why_not_two(numbers: list[int], rows: list[list[str]]) -> str:
    """Name the wrong line if most lines have two cells; otherwise the number of columns."""
    counts = [sum(map(bool, row)) for row in rows]
    usual = Counter(counts).most_common(1)[0][0]
    wrong = next((i for i, count in enumerate(counts) if count > 2), None)
    if usual == 2 and wrong is not None:
        joined = any(MARK in cell for cell in rows[wrong])
        cause = (
            "it contains a byte order mark: two files were joined without a line break"
            if joined
            else 'a path with a comma needs double quotes: "a, b.jpg",3'
        )
        cells = counted(counts[wrong], "cell")
        return f"line {numbers[wrong]}: {cells}, the other lines have 2; {cause}"
    used = len(_used(rows))
    return f"expected two columns, `path,class`; found {counted(used, 'column')}"


# === Classes: by index or by name ===


def are_names(texts: Sequence[str], classes: Sequence[str]) -> bool | None:
    """Whether the cells of a class column are names, by comparison with the class file.

    Args:
        texts: the cells.
        classes: names, by index.

    Returns:
        True: names. False: indices. None: ambiguous, because every cell is both, and at least one
        means two different classes (or there is no cell).
    """
    index_of = {name: index for index, name in enumerate(classes)}
    known = set(texts)  # few, because there are few classes
    by_index = {text: as_index(text, len(classes)) for text in known}
    by_name = {text: index_of.get(text, MISSING) for text in known}
    if MISSING not in by_index.values() and MISSING not in by_name.values():
        return None if by_index != by_name or not known else False
    indices, names = (
        sum(labels[text] != MISSING for text in texts) for labels in (by_index, by_name)
    )
    return names > indices


def read_labels_as(texts: Sequence[str], classes: Sequence[str], *, names: bool) -> list[int]:
    """Read the class of each cell; MISSING if it is not a class."""
    index_of = {name: index for index, name in enumerate(classes)}
    if names:
        return [index_of.get(text, MISSING) for text in texts]
    return [as_index(text, len(classes)) for text in texts]


def refuse_no_index(
    texts: Sequence[str], numbers: Sequence[int], classes: Sequence[str], place: str
) -> None:
    """Raise InputError for the first cell that is not a whole number."""
    for number, text in zip(numbers, texts, strict=True):
        if not is_integer(text):
            raise InputError(
                f"{place}: line {number}: class {shown(text, CELL)}: expected an index, "
                f"0 to {len(classes) - 1}.{near(text, classes)}"
            )
