"""Find the column of a table whose values are image files."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from multitask.data.image_kinds import SUFFIXES
from multitask.data.sources.source import CELL, shorten
from multitask.errors import InputError, expected, quoted, shown
from multitask.spec import why_unsafe

# Names in order of preference, for tables in which several columns hold files.
USUAL = (
    *("image", "file_name", "filename", "image_path", "img_path", "image_file", "path", "file"),
    *("filepath", "file_path", "img", "photo", "image_name"),
)
_LOOKED_AT, _SAMPLE = 2000, 200  # values of a column to read, and distinct ones to test
_HINTS = 10  # distinct values to try with a suffix added
_LEAST_FILES = 0.05  # least share of files for a column of images
_CLEAR = 0.5  # share that counts as clear; a column with this share of the best one's is a rival
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # C:\ or \\server
_URLS = ("http://", "https://", "ftp://", "s3://", "gs://", "data:")


@dataclass(frozen=True)
class _Column:
    """A sample of a column's texts, and the shares of files, image names and URLs in it."""

    name: str
    files: float
    names: float
    urls: float
    texts: list[str]

    @property
    def first(self) -> str:
        return self.texts[0] if self.texts else ""


def has_image_suffix(text: str) -> bool:
    """Whether a text ends like the name of an image file."""
    return os.path.splitext(text)[1].lower() in SUFFIXES


def _sample(values: pd.Series) -> list[str]:
    """Some of a column's distinct texts, spread over its rows."""
    for step in (max(1, len(values) // _LOOKED_AT), 1):
        texts = [text for text in dict.fromkeys(filter(_is_text, values[::step])) if text.strip()]
        if texts:
            break  # otherwise the column is nearly empty: read all of it
    return texts[:: max(1, len(texts) // _SAMPLE)][:_SAMPLE]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def is_file_below(folder: Path, path: str) -> bool:
    """Whether a path names a regular file below a folder; False for a path that leaves it."""
    path = path.replace("\\", "/") if os.sep == "/" else path
    try:
        return why_unsafe(path) is None and os.path.isfile(os.path.join(folder, path))
    except ValueError:  # a NUL character, or a name that the file system cannot encode
        return False


def _look(frame: pd.DataFrame, name: str, folder: Path) -> _Column:
    texts = _sample(frame[name])
    count = len(texts) or 1
    return _Column(
        name,
        sum(is_file_below(folder, text) for text in texts) / count,
        sum(map(has_image_suffix, texts)) / count,
        sum(text.lower().lstrip().startswith(_URLS) for text in texts) / count,
        texts,
    )


def find_image_column(
    frame: pd.DataFrame, folder: Path, place: Path, given: str | None
) -> tuple[str, list[str]]:
    """Find the column of image paths.

    Args:
        frame: [rows]; the columns of the table.
        folder: the folder that the paths should be relative to.
        place: the table, for messages.
        given: the user's choice; None: look for files, then for names such as `a.jpg`.

    Returns:
        The name of the column, and notes on how it was chosen.

    Raises:
        InputError: there is no such column, several are equally likely, or it holds URLs.
    """
    if given is not None:
        if given not in frame.columns:
            raise InputError(
                f"{place}: no column {quoted(given)}. {expected(given, frame)}",
                field="image_column",
            )
        _refuse_urls(_look(frame, given, folder), place)
        return given, []
    columns = [_look(frame, name, folder) for name in frame.columns]
    files = _best([(column.files, column.name) for column in columns], _LEAST_FILES)
    names = _best([(column.names, column.name) for column in columns if column.urls < _CLEAR], 0.9)
    likely = files or names
    if not likely:
        for column in columns:
            if column.name.lower() in USUAL or column.names >= _CLEAR:
                _refuse_urls(column, place)
        raise InputError(_no_column(columns, folder, place))
    if len(likely) > 1:
        usual = [name for name in USUAL if name in {column.lower() for column in likely}]
        if not usual:
            raise InputError(
                f"{place}: several columns hold {'files' if files else 'names of images'} "
                f"({shorten(likely)}); choose one",
                field="image_column",
            )
        likely = [column for column in likely if column.lower() == usual[0]]
    how = "its values are files" if files else "its values are names of images"
    return likely[0], [f"images: column {shown(likely[0], CELL)}, because {how}"]


def _best(shares: Sequence[tuple[float, str]], least: float) -> list[str]:
    """The columns whose share is the largest or close to it; [] if all are below `least`."""
    top = max((share for share, _ in shares), default=0.0)
    if top < least:
        return []
    return [name for share, name in shares if share >= max(least, top * _CLEAR)]


def _refuse_urls(column: _Column, place: Path) -> None:
    if column.urls >= _CLEAR:
        raise InputError(
            f"{place}: column {shown(column.name, CELL)} holds URLs "
            f"({shown(column.first, CELL)}), not files; download the images first, and write each "
            "file's path into a column"
        )


def _no_column(columns: Sequence[_Column], folder: Path, place: Path) -> str:
    text = (
        f"{place}: no column of images: no column holds files below {folder}, or names such as "
        f"a.jpg. Columns: {shorten(column.name for column in columns)}."
    )
    for column in columns:
        for suffix in (".jpg", ".jpeg", ".png", ".webp", ".tif"):
            files = [name for name in column.texts[:_HINTS] if is_file_below(folder, name + suffix)]
            if files:
                return (
                    f"{text} With {suffix} added, {shown(files[0], CELL)} of column "
                    f"{shown(column.name, CELL)} is a file; add the suffix in the table"
                )
    partly = max(columns, key=lambda column: column.names)
    usual = [column for column in columns if column.name.lower().removesuffix("s") in USUAL]
    if partly.names:
        text += f" {partly.names:.0%} of the values of {shown(partly.name, CELL)} are such names."
    elif usual:
        text += f" Column {shown(usual[0].name, CELL)} holds {shown(usual[0].first, CELL)}."
    return f"{text} Name the column (image_column), or the folder of the images (images)"


def _refuse_drives(folder: Path, place: Path, values: pd.Series) -> None:
    """Raise InputError if all paths are absolute Windows paths and this system is not Windows."""
    texts = [value for value in values if isinstance(value, str) and value]
    if os.sep == "/" and texts and all(map(_DRIVE.match, texts)):
        raise InputError(
            f"{place}: column {shown(values.name, CELL)} holds absolute paths of Windows "
            f"({shown(texts[0], CELL)}); replace them by paths below {folder}, the folder of the "
            "images"
        )


def relative_to(folder: Path, place: Path, values: pd.Series) -> tuple[pd.Series, str]:
    """Make absolute paths below a folder relative to it.

    Args:
        folder: the folder of the images.
        place: the table, for messages.
        values: the column of the images.

    Returns:
        The column, and a note; "" if nothing changed.

    Raises:
        InputError: all paths are absolute, and none is below the folder.
    """
    _refuse_drives(folder, place, values)
    prefixes = {f"{root}/" for root in (folder, folder.absolute(), folder.resolve())}
    prefixes = {prefix for prefix in prefixes if prefix.startswith("/")}
    changed = [
        next((value[len(p) :] for p in prefixes if value.startswith(p)), value)
        if isinstance(value, str) and value.startswith("/")
        else value
        for value in values
    ]
    count = sum(one is not other for one, other in zip(changed, values, strict=True))
    texts = [value for value in values if isinstance(value, str) and value]
    if texts and not count and all(text.startswith("/") for text in texts):
        above = os.path.commonpath([os.path.dirname(text) for text in texts])
        raise InputError(
            f"{place}: column {shown(values.name, CELL)} holds absolute paths, all below {above} "
            f"and none below {folder}; name the folder that they are in",
            field="images",
        )
    note = f"{count:,} absolute paths below {folder} made relative to it" if count else ""
    return pd.Series(changed, dtype=object), note
