"""Read Kaggle's copy of WikiArt (`steubk/wikiart`): folders by style, and classes.csv.

Its column names mislead. `genre` in classes.csv is a list of styles. The numbers in wclasses.csv
are class indices of another data set, and the file has no names for them.
"""

import ast
import csv
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from multitask.data.sources.source import KAGGLE, Source, open_binary, shorten
from multitask.data.sources.text_tables import RawTable, read_delimited
from multitask.errors import InputError

_HEADER_BYTES = 4096


@dataclass(frozen=True)
class _Layout:
    """A file of the data set: its columns as written, and what they really hold.

    Attributes:
        name: the name of the file.
        written: the columns in its header.
        real: the name of each column in the Source.
    """

    name: str
    written: tuple[str, ...]
    real: tuple[str, ...]


def _layout(name: str, written: str, real: str) -> _Layout:
    return _Layout(name, tuple(written.split()), tuple(real.split()))


# For each file, its header as written, and below it the names of what the columns hold.
NAMED = _layout(
    "classes.csv",
    "filename artist genre description phash width height genre_count subset",
    "filename artist style description phash width height style_count subset",
)
NUMBERED = _layout(
    "wclasses.csv",
    "file artist genre style",
    "file artist genre style",
)
_LAYOUTS = (NAMED, NUMBERED)
_UNCERTAIN, _EVERYBODY_ELSE = "uncertain artist", "0"
_PAINTER, _LISTED, _MANNER, _SUBSET = 1, 2, 3, 8  # positions of columns in a layout


def recognise(place: Path) -> tuple[Path, _Layout] | None:
    """Recognise a file of the data set, or the file in a folder of it; None for anything else."""
    files = [place / layout.name for layout in _LAYOUTS] if place.is_dir() else [place]
    for file in files:
        if file.is_file():
            header, first = _first_lines(file)
            for layout in _LAYOUTS:
                # A user's own table may have the plain column names of wclasses.csv too.
                numbered = sum(cell.isdecimal() for cell in first) >= len(layout.written) - 1
                if set(layout.written) == set(header) and (layout is NAMED or numbered):
                    return file, layout
    return None


def _first_lines(file: Path) -> tuple[list[str], list[str]]:
    """The cells of the header and of the first row; [] if they are not text."""
    with open_binary(file) as opened:
        lines = opened.read(_HEADER_BYTES).split(b"\n")[:2]
    try:
        cells = list(csv.reader([line.decode("utf-8-sig") for line in lines]))
    except (UnicodeDecodeError, csv.Error):
        return [], []
    rows = [[name.strip() for name in row] for row in [*cells, [], []]]
    return rows[0], rows[1]


def read_kaggle(file: Path, layout: _Layout, place: Path, images: Path | None = None) -> Source:
    """Read classes.csv or wclasses.csv, with the columns named by what they hold.

    Args:
        file: the CSV file.
        layout: its layout.
        place: the folder or file that the user gave.
        images: the folder with the style folders; None: the folder of the file.

    Raises:
        InputError: the file is unreadable, or a cell is not a list of styles.
    """
    table = read_delimited(file)
    if layout is NAMED:
        frame, notes = _named(table, file)
    else:
        frame, notes = _numbered(table)
    return Source(
        KAGGLE,
        place,
        frame,
        layout.real[0],
        images=images or file.parent,
        split=layout.real[_SUBSET] if layout is NAMED else None,
        rows=table.rows,
        notes=(f"Kaggle's WikiArt, {file.name}", *table.notes, *notes),
    )


def _named(table: RawTable, file: Path) -> tuple[pd.DataFrame, list[str]]:
    frame = table.frame[list(NAMED.written)].set_axis(list(NAMED.real), axis=1)
    painter, listed, subset = (NAMED.real[i] for i in (_PAINTER, _LISTED, _SUBSET))
    frame[listed] = _lists(frame[listed], table.rows, file)
    several = sum(isinstance(value, list) for value in frame[listed])
    uncertain = frame[subset] == _UNCERTAIN
    frame.loc[uncertain, [painter, subset]] = None
    notes = [
        f"its column {NAMED.written[_LISTED]} holds lists of styles and is read as {listed}; "
        f"rows with several: {several:,}"
    ]
    if uncertain.any():
        notes.append(
            f'rows of the subset "{_UNCERTAIN}", which have neither artist nor split: '
            f"{int(uncertain.sum()):,}"
        )
    return frame, notes


def _lists(cells: pd.Series, rows: pd.Series, file: Path) -> pd.Series:
    """`['a']` becomes a, `['a', 'b']` a list."""
    known: dict[str, str | list[str] | None] = {}
    for cell, row in zip(cells, rows, strict=True):
        if cell not in known:
            known[cell] = _parse_list(cell, f"{file}: {row}")
    return pd.Series([known[cell] for cell in cells], dtype=object)


def _parse_list(cell: str, place: str) -> str | list[str] | None:
    try:
        # Only literals are evaluated; the length limits depth and time.
        value = ast.literal_eval(cell) if cell.startswith("[") and len(cell) < 1000 else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{place}: {cell[:40]!r}: expected a list such as ['Cubism']")
    return value[0] if len(value) == 1 else value or None


def _numbered(table: RawTable) -> tuple[pd.DataFrame, list[str]]:
    frame = table.frame[list(NUMBERED.written)]
    painter, manner = NUMBERED.real[_PAINTER], NUMBERED.real[_MANNER]
    others = frame[painter] == _EVERYBODY_ELSE
    frame.loc[others, painter] = None
    notes = [f"rows of artist 0 (all other artists), which have no label: {int(others.sum()):,}"]
    folders = frame[NUMBERED.real[0]].str.split("/").str[0]
    pairs = pd.DataFrame({"number": frame[manner], "folder": folders}).drop_duplicates()
    if pairs["number"].is_unique and pairs["folder"].is_unique and len(pairs) > 1:
        frame[manner] = folders.astype(object)
        notes.append(f"{manner} is read from the folders, which agree with the numbers")
        numbers = [name for name in NUMBERED.real[1:] if name != manner]
    else:
        notes.append(f"{manner} is read from the numbers, which do not agree with the folders")
        numbers = list(NUMBERED.real[1:])
    notes.append(f"the file has no names for the numbers of {shorten(numbers)}")
    return frame, notes
