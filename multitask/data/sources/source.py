"""The result of every reader, and functions that all readers use to open the user's files."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from multitask.errors import InputError, near, shown
from multitask.reading import MAX_TEXT_BYTES, open_regular, read_regular

TABLE, HUB, FOLDERS, TFDS, KAGGLE = KINDS = ("table", "hub", "folders", "tfds", "kaggle")
CELL = 40  # characters of a cell that a message quotes
_PLAIN = (str, bool, int, float)
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Source:
    """A table with one row per image, with the raw values of the source.

    Attributes:
        kind: one of KINDS.
        place: the file or folder that was read, for messages.
        frame: [rows], RangeIndex, every column of dtype object: str, int, float, bool, lists of
            these, and None where there is no value. Text formats have only str, and "" where the
            cell is empty. It never holds the bytes of images.
        image: the column of image references.
        embedded: whether the images are inside shards. If so, a reference is opaque, and
            EmbeddedImages reads it. If not, it is a path relative to `images`, as the source
            spells it.
        images: the folder that the paths are relative to; None if the images are embedded.
        shards: the files of the embedded images, in the order of the rows: paths relative to
            `place`, or its name if it is a file. () if the images are not embedded.
        split: the column of splits if the source itself names them by folders, shards or its
            layout. The values are those names, or None for a row without a split.
        class_names: column -> its classes, in the order that the source itself defines. The frame
            holds these names.
        rows: str [rows], the place of each row for messages, with the file's name if there are
            several files; None if each row is a file. `line 17` of a text file is the row's first
            line, counted from 1. `row 17` of Excel is counted from 1, as in Excel; `row 17` of
            other files is counted from 0, as in references.
        notes: what was recognised or skipped, one line each.
    """

    kind: str
    place: Path
    frame: pd.DataFrame
    image: str
    embedded: bool = False
    images: Path | None = None
    shards: tuple[str, ...] = ()
    split: str | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: pd.Series | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)


# === Opening files ===


@contextmanager
def input_errors(path: Path) -> Iterator[None]:
    """Turn the errors of opening and reading a file into InputErrors of one line."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.{near_sibling(path)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None


def near_sibling(path: Path) -> str:
    """A hint about a missing path: a similar name in its folder, or that its folder is missing."""
    if not path.parent.is_dir():
        return f" There is no folder {path.parent}."
    return near(path.name, sorted(entry.name for entry in path.parent.iterdir()))


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a regular file; InputError where it cannot be read or is empty."""
    with input_errors(path):
        data = read_regular(path, limit)
    if not data.strip():
        raise InputError(f"{path}: the file is empty")
    return data


def open_binary(path: Path) -> BinaryIO:
    """Open a regular file; InputError where that is impossible."""
    with input_errors(path):
        return open_regular(path)


def first_bytes(path: Path, count: int = 8) -> bytes:
    """Return the first bytes of a regular file; fewer where it is shorter."""
    with open_binary(path) as file, input_errors(path):
        return file.read(count)


def refuse_pointer(path: Path) -> None:
    """Raise InputError for a Git LFS pointer, the short text that replaces a file before a pull."""
    if first_bytes(path, len(_LFS)) == _LFS:
        raise InputError(f"{path}: a Git LFS pointer, not the file; run `git lfs pull` first")


def one_line(error: object, most: int = 200) -> str:
    """A library's error text on one line, control characters escaped."""
    text = " ".join(str(error).split())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def walk_files(folder: Path, depth: int) -> list[str]:
    """Paths of all files of a folder, relative to it, sorted.

    Hidden files, hidden folders and links to folders are skipped. Links to files are not: the Hub's
    cache consists of them.

    Args:
        folder: where to begin.
        depth: levels of folders below it that are listed.

    Raises:
        InputError: the folder cannot be listed.
    """
    files: list[str] = []
    todo = [("", depth)]
    while todo:
        prefix, levels = todo.pop()
        with input_errors(folder / prefix), os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    files.append(prefix + entry.name)
                elif levels and not entry.is_symlink():
                    todo.append((f"{prefix}{entry.name}/", levels - 1))
    return sorted(files)


# === Values ===


def plain(value: Any) -> Any:
    """A value as str, int, float, bool, list or None; dates and other objects become their text."""
    if value is None or isinstance(value, _PLAIN):
        return None if value != value else value  # NaN is not equal to itself
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


def plain_column(values: Sequence[Any]) -> Sequence[Any]:
    """`plain` of each value; the values themselves where their types show that nothing changes."""
    if set(map(type, values)) <= {str, int, bool, type(None)}:
        return values
    return [plain(value) for value in values]


def object_frame(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """A frame of dtype object, so that 3 stays 3 beside a missing value."""
    series = {name: pd.Series(values, dtype=object) for name, values in columns.items()}
    return pd.DataFrame(series, copy=False)


def free_name(name: str, taken: Iterable[str]) -> str:
    """The name, with underscores added until it is not taken."""
    names = set(taken)
    while name in names:
        name += "_"
    return name


def refuse_repeated(names: Sequence[str], where: str) -> None:
    """Raise InputError for the first column name that occurs twice.

    Args:
        names: the column names, in order.
        where: the place for the message.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name in first:
            raise InputError(
                f"{where}: the column name {shown(name, CELL)} is repeated "
                f"(columns {first[name]} and {number})"
            )
        first[name] = number


def shorten(names: Iterable[str], most: int = 8) -> str:
    """`a, b, c, … (12)`: the first names of a list, each cut to CELL characters, and the number."""
    listed = [shown(name, CELL)[1:-1] for name in names]
    more = f", … ({len(listed)})" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
