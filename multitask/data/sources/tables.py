"""Read a table: CSV, TSV, JSON Lines, Excel or Parquet, one row per image."""

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from multitask.data.sources.columnar import ShardFile, read_shards
from multitask.data.sources.image_column import find_image_column, relative_to
from multitask.data.sources.shards import ARROW_SUFFIXES, PARQUET_SUFFIXES
from multitask.data.sources.source import (
    CELL,
    TABLE,
    Source,
    first_bytes,
    object_frame,
    one_line,
    plain_column,
    read_bytes,
    refuse_pointer,
    refuse_repeated,
    shorten,
)
from multitask.data.sources.text_tables import RawTable, read_delimited, read_json_lines
from multitask.errors import InputError, install, shown
from multitask.reading import MAX_TEXT_BYTES

DELIMITED_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
JSON_SUFFIXES, EXCEL_SUFFIXES = (".jsonl", ".ndjson", ".json"), (".xlsx", ".xlsm")
TABLE_SUFFIXES = DELIMITED_SUFFIXES + JSON_SUFFIXES + EXCEL_SUFFIXES + PARQUET_SUFFIXES
_ZIP, _OLD_OFFICE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
_MOST_UNPACKED = 8 * MAX_TEXT_BYTES  # bytes of a workbook: a small file must not fill the memory


def read_table(
    place: Path, *, images: Path | None = None, image_column: str | None = None
) -> Source:
    """Read a table.

    Args:
        place: the file.
        images: the folder that its paths are relative to; None: the folder of the table.
        image_column: the column of images; None: detect it.

    Raises:
        InputError: the file is not a readable table, or has no column of images.
    """
    refuse_pointer(place)
    suffix, start = place.suffix.lower(), first_bytes(place)
    if start.startswith(b"PAR1") or suffix in PARQUET_SUFFIXES or suffix in ARROW_SUFFIXES:
        files = [ShardFile(place.name, place)]
        return read_shards(TABLE, place, files, images=images, image_column=image_column)
    return table_source(place, _reader(place, suffix, start)(place), images, image_column)


def _reader(place: Path, suffix: str, start: bytes) -> Callable[[Path], RawTable]:
    if start.startswith(_OLD_OFFICE):
        raise InputError(f"{place}: an old Excel file (.xls); save it as .xlsx or CSV")
    if start.startswith(_ZIP) or suffix in EXCEL_SUFFIXES:
        return read_excel
    if suffix in JSON_SUFFIXES or start.lstrip(b"\xef\xbb\xbf \r\n").startswith(b'{"'):
        return read_json_lines
    return read_delimited


def table_source(
    place: Path, table: RawTable, images: Path | None, image_column: str | None
) -> Source:
    """Make a Source of a table whose images are files; InputError if no column holds images."""
    folder = images or place.parent
    image, notes = find_image_column(table.frame, folder, place, image_column)
    frame = table.frame
    frame[image], note = relative_to(folder, place, frame[image])
    return Source(
        TABLE,
        place,
        frame,
        image,
        images=folder,
        rows=table.rows,
        notes=(*table.notes, *notes, *([note] if note else [])),
    )


# === Excel ===


def read_excel(path: Path) -> RawTable:
    """Read the first sheet of a workbook that has a table; an empty cell is None.

    Numbers stay numbers, and dates become text. A formula has its stored result.

    Raises:
        InputError: the file is not a readable workbook, or openpyxl is not installed.
    """
    # calamine is ten times as fast, but reads a date before 1900 as a time of day.
    try:
        import openpyxl
    except ImportError:
        raise InputError(
            f"{path}: reading Excel files needs openpyxl; install it with {install('excel')}, or "
            "save the sheet as CSV"
        ) from None
    data = io.BytesIO(read_bytes(path))
    _check_unpacked(path, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and validation, which are not read
            book = openpyxl.load_workbook(data, read_only=True, data_only=True)
            sheets = [(sheet.title, _sheet_rows(sheet)) for sheet in book.worksheets]
    except InputError:
        raise
    except Exception as error:  # undocumented: KeyError, ValueError, ParseError, …
        raise InputError(f"{path}: not a readable Excel file: {one_line(error)}") from None
    filled = [(title, rows) for title, rows in sheets if rows]
    if not filled:
        raise InputError(f"{path}: the file is empty")
    title, rows = next((sheet for sheet in filled if _is_table(sheet[1])), filled[0])
    notes = [f"sheet {shown(title, CELL)}"]
    if len(filled) > 1:
        others = shorten(other for other, _ in filled if other != title)
        notes.append(f"only the first sheet with a table is read; not read: {others}")
    return _excel_table(path, title, rows, notes)


def _is_table(rows: list[tuple[int, tuple[Any, ...]]]) -> bool:
    """Whether a sheet has a header of several columns and a row below it, unlike a cover sheet."""
    return len(rows) > 1 and sum(cell is not None for cell in rows[0][1]) > 1


def _check_unpacked(path: Path, data: io.BytesIO) -> None:
    try:
        with zipfile.ZipFile(data) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: not a readable Excel file: {one_line(error)}") from None
    if "xl/workbook.xml" not in names:
        raise InputError(f"{path}: a ZIP archive, not an Excel file; unpack it first")
    if unpacked > _MOST_UNPACKED:
        raise InputError(f"{path}: larger than {_MOST_UNPACKED:,} bytes when unpacked")


def _sheet_rows(sheet: Any) -> list[tuple[int, tuple[Any, ...]]]:
    """Number (as Excel shows it) and cells of each row that is not empty."""
    sheet.reset_dimensions()  # some writers state a wrong size, and rows would be cut off
    rows = enumerate(sheet.iter_rows(values_only=True), start=1)
    return [
        (number, cells) for number, cells in rows if any(c is not None and c != "" for c in cells)
    ]


def _excel_table(
    path: Path, title: str, rows: list[tuple[int, tuple[Any, ...]]], notes: list[str]
) -> RawTable:
    where = f"{path}: sheet {shown(title, CELL)}"
    (_, header), body = rows[0], rows[1:]
    names = ["" if cell is None else str(cell).strip() for cell in header]
    if not body:
        raise InputError(f"{where}: only a header ({shorten(names)}), no rows below it")
    width = max(len(cells) for _, cells in rows)
    names += [""] * (width - len(names))
    columns = {}
    refuse_repeated([name or f"\0{i}" for i, name in enumerate(names)], where)
    for index, name in enumerate(names):
        cells = [row[index] if index < len(row) else None for _, row in body]
        if name:
            columns[name] = plain_column(cells)
        elif any(cell is not None for cell in cells):
            raise InputError(f"{where}: column {index + 1} has no name in the header")
    numbers = pd.Series([f"row {number}" for number, _ in body], dtype=object)
    return RawTable(object_frame(columns), numbers, notes)
