"""Read the cells of a table: one value, a list of values or the text of a list."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from multitask.errors import InputError, expected, near, quoted

MOST_NAMED = 3  # values that a note quotes
_MOST_COLUMNS = 20  # columns that a message lists
# The text of a list: quoted items, numbers and None, separated by commas (Python, JSON) or by
# spaces (NumPy). Words without quotes are not a list: a museum's "[Portrait]" is a title.
_ITEM = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None|null|nan|[+-]?\d+(?:\.\d+)?""", re.DOTALL
)
_LIST = re.compile(rf"\[\s*(?:(?:{_ITEM.pattern})(?:\s*,\s*|\s+|(?=\])))*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_NO_ITEM = {"None", "null", "nan"}


def is_empty(cell: Any) -> bool:
    """Whether a cell is None, NaN, NaT or NA."""
    return cell is None or (
        not isinstance(cell, str) and pd.api.types.is_scalar(cell) and bool(pd.isna(cell))
    )


def clean_text(cell: Any) -> str:
    """A value as text, in the one spelling that class names have.

    White space is stripped and reduced to single spaces, and accents are composed. A whole number
    loses its decimal point, because pandas reads a column of integers with a gap as floats. Half a
    surrogate pair, which no file can hold, becomes U+FFFD.
    """
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", "replace")
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        cell = int(cell)
    text = " ".join(str(cell).split())
    if text.isascii():
        return text
    text = unicodedata.normalize("NFC", text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) > 1:
        return chr(int(code[1:], 16))
    return " " if code in "ntr" else code


def cell_values(cell: Any, separator: str | None = None) -> list[str]:
    """The values of a cell, cleaned; an empty list for an empty cell.

    Args:
        cell: a value, a list of values, or the text of a list.
        separator: the text between the values of a cell; None if cells are not split.
    """
    if isinstance(cell, list | tuple | set | frozenset | np.ndarray):
        items = sorted(cell, key=str) if isinstance(cell, set | frozenset) else cell
        return [value for item in items for value in cell_values(item, separator)]
    if is_empty(cell):
        return []
    if isinstance(cell, str):
        text = cell.strip()
        if text[:1] == "[" and _LIST.fullmatch(text):
            items = [item for item in _ITEM.findall(text) if item not in _NO_ITEM]
            return [
                clean_text(_ESCAPE.sub(_unescaped, item[1:-1]) if item[0] in "'\"" else item)
                for item in items
            ]
        if separator is not None and separator in cell:
            return [clean_text(part) for part in cell.split(separator)]
    return [clean_text(cell)]


def _cell_key(cell: Any) -> Any:
    """A hashable key of a cell; equal numbers of different types have the same text anyway."""
    if isinstance(cell, list | tuple | set | frozenset | dict | np.ndarray):
        return (type(cell), repr(cell))
    return (type(cell), cell) if isinstance(cell, bool) else cell


def distinct_cells(cells: Iterable[Any]) -> tuple[np.ndarray, list[Any]]:
    """Number the distinct cells of a column.

    Returns:
        int64 [rows], the number of each row's cell; and the distinct cells.
    """
    numbers: dict[Any, int] = {}
    distinct: list[Any] = []
    codes = []
    for cell in cells:
        # Most cells are texts, which are their own keys.
        key = cell if type(cell) is str else None if is_empty(cell) else _cell_key(cell)
        code = numbers.setdefault(key, len(distinct))
        if code == len(distinct):
            distinct.append(None if key is None else cell)
        codes.append(code)
    return np.asarray(codes, np.int64), distinct


def column_cells(frame: pd.DataFrame, column: str, *, place: str = "column") -> list[Any]:
    """The cells of a column.

    Args:
        frame: the table.
        column: the column's name.
        place: the field that names the column, for messages.

    Raises:
        InputError: the table has no such column, or two.
    """
    names = [str(name) for name in frame.columns]
    if names.count(column) > 1:
        raise InputError(
            f"{names.count(column)} columns are called {quoted(column)}; rename all but one",
            field=place,
        )
    if column not in names:
        text = f"unknown column {quoted(column)}. "
        if len(names) > _MOST_COLUMNS:
            text += f"The table has {len(names)} columns.{near(column, names)}"
        else:
            text += expected(column, names)
        raise InputError(text, field=place)
    cells: list[Any] = frame.iloc[:, names.index(column)].astype(object).tolist()
    return cells


def named_counts(counts: Mapping[str, int], most: int = MOST_NAMED) -> str:
    """`"a" 12, "b" 3 and 5 more`: the first entries of a dict of counts."""
    text = ", ".join(f"{quoted(name)} {count:,}" for name, count in list(counts.items())[:most])
    return f"{text} and {len(counts) - most:,} more" if len(counts) > most else text
