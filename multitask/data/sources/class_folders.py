"""Read class folders, and folders of images with a metadata file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from multitask.data.folders import ImageSearch
from multitask.data.sources.shards import PARQUET_SUFFIXES, holds_objects, open_shard
from multitask.data.sources.source import (
    CELL,
    FOLDERS,
    Source,
    free_name,
    object_frame,
    plain_column,
    refuse_repeated,
    shorten,
)
from multitask.data.sources.splits import is_split_name
from multitask.data.sources.text_tables import RawTable, read_delimited, read_json_lines
from multitask.errors import InputError, counted, near, shown

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FILE_NAME, _PATH = "file_name", "path"


@dataclass(frozen=True)
class _Files:
    """The image files of a folder.

    Attributes:
        paths: relative to the folder, sorted.
        parts: for each path, its folders below the split folder.
        splits: for each path, its split folder; None if there are no split folders.
        notes: as in Source.
    """

    paths: list[str]
    parts: list[list[str]]
    splits: list[str] | None
    notes: list[str]


def _search(place: Path) -> _Files:
    search = ImageSearch()
    paths = [os.path.relpath(file, place).replace(os.sep, "/") for file in search.find(str(place))]
    if not paths:
        skipped = f" {search.skipped.line()}." if search.skipped.line() else ""
        raise InputError(f"{place}: no image files in it.{skipped}")
    parts = [path.split("/")[:-1] for path in paths]
    notes = [search.skipped.line()] if search.skipped.line() else []
    if not has_splits(place, sorted({part[0] if part else "" for part in parts})):
        return _Files(paths, parts, None, notes)
    return _Files(paths, [part[1:] for part in parts], [part[0] for part in parts], notes)


def has_splits(place: Path, folders: Sequence[str]) -> bool:
    """Whether the folders of images are split folders such as `train` and `test`.

    Args:
        place: the folder that holds them, for messages.
        folders: their names; "" stands for images that are in no folder.

    Raises:
        InputError: several folders are splits, but others are not.
    """
    splits = [name for name in folders if is_split_name(name)]
    others = [name or "images in no folder" for name in folders if not is_split_name(name)]
    if len(splits) > 1 and others:
        raise InputError(
            f"{place}: {shorten(splits)} look like splits, {shorten(others)} do not; "
            "move the others into a split folder, or elsewhere"
        )
    return bool(splits) and not others


# === Classes by folder ===


class LevelsNeededError(InputError):
    """The folders have several levels, and `levels` does not name them."""


def read_class_folders(place: Path, levels: Sequence[str] | None = None) -> Source:
    """Read `[<split>/]<class>/…`: folder names are the classes.

    Args:
        place: the folder.
        levels: a column name for each level of folders, from the top; deeper folders are ignored.
            None: one level, "class".

    Raises:
        InputError: there are no images, no image is in a folder, or the folders have several
            levels and `levels` does not name them.
    """
    files = _search(place)
    depths = [len(part) for part in files.parts]
    deepest = max(range(len(depths)), key=depths.__getitem__)
    names = _level_names(levels, place, files.paths[deepest], depths[deepest])
    notes = list(files.notes)
    columns: dict[str, list[str | None]] = {}
    for level, name in enumerate(names):
        columns[name] = [part[level] if len(part) > level else None for part in files.parts]
    shallow = sum(depth < len(names) for depth in depths)
    if shallow:
        example = files.paths[next(i for i, depth in enumerate(depths) if depth < len(names))]
        notes.append(
            f"images fewer than {counted(len(names), 'folder')} deep, which lack a class: "
            f"{shallow:,} (first: {shown(example)})"
        )
    if deeper := sum(depth > len(names) for depth in depths):
        notes.append(f"images in deeper folders, whose names are not used: {deeper:,}")
    return _source(place, files, columns, notes)


def _level_names(
    levels: Sequence[str] | None, place: Path, example: str, depth: int
) -> Sequence[str]:
    if depth == 0:
        raise InputError(
            f"{place}: its images are not in class folders, and there is no {METADATA[0]}"
        )
    if levels is None:
        if depth > 1:
            raise LevelsNeededError(
                f"{place}: its images are {depth} folders deep ({shown(example)}); name each "
                "level, from the top, such as style,artist",
                field="levels",
            )
        return ("class",)
    refuse_repeated(levels, "levels")
    if not levels or not all(levels):
        raise InputError("expected at least one name, and none empty", field="levels")
    if len(levels) > depth:
        raise InputError(
            f"{counted(len(levels), 'name')} ({shorten(levels)}), but the images in {place} are "
            f"only {counted(depth, 'folder')} deep",
            field="levels",
        )
    return levels


def _source(
    place: Path, files: _Files, columns: dict[str, list[str | None]], notes: list[str]
) -> Source:
    image = free_name(_PATH, columns)
    frame = object_frame({image: files.paths, **columns})
    split = None
    if files.splits is not None:
        split = free_name("split", frame.columns)
        frame.insert(1, split, pd.Series(files.splits, dtype=object))
        notes = [f"splits by folder: {shorten(dict.fromkeys(files.splits))}", *notes]
    for name in columns:
        notes.append(
            f"{name}: {counted(frame[name].nunique(), 'class', 'classes')}, named by folders"
        )
    return Source(FOLDERS, place, frame, image, images=place, split=split, notes=tuple(notes))


# === metadata.csv beside the images ===


def metadata_files(place: Path) -> list[tuple[str, str]]:
    """The metadata files of a folder, or of its split folders.

    Returns:
        Split folder ("" for the folder itself) and name of each file.
    """
    for name in METADATA:
        if (place / name).is_file():
            return [("", name)]
    splits = sorted(entry.name for entry in place.iterdir() if is_split_name(entry.name))
    return [
        (split, name)
        for split in splits
        for name in [name for name in METADATA if (place / split / name).is_file()][:1]
    ]


def read_metadata_folder(place: Path) -> Source:
    """Read a folder of images that metadata.csv, .jsonl or .parquet describes (`ImageFolder`).

    The column `file_name` holds paths relative to the folder of the metadata file.

    Raises:
        InputError: a metadata file is unreadable or has no column `file_name`, or a split folder
            has no metadata file.
    """
    tables = []
    metadata = metadata_files(place)
    for split, name in metadata:
        tables.append((split, name, _read_metadata(place / split / name)))
    _refuse_missing(place, [split for split, _ in metadata])
    frames, rows, notes = [], [], []
    for split, name, table in tables:
        if split:
            table.frame[_FILE_NAME] = [_join(split, path) for path in table.frame[_FILE_NAME]]
        frames.append(table.frame)
        where = f"{split}/{name}: " if split else ""
        rows += [where + row for row in table.rows]
        notes += [f"{where or f'{name}: '}{note}" for note in table.notes]
    frame = pd.concat(frames, ignore_index=True).astype(object)
    frame = frame.where(frame.notna(), None)
    tops = [_top_folder(path) for path in frame[_FILE_NAME]]
    split_column = None
    if has_splits(place, sorted(set(tops))):
        split_column = free_name("split", frame.columns)
        frame[split_column] = pd.Series(tops, dtype=object)
        notes.append(f"splits by folder: {shorten(dict.fromkeys(tops))}")
    files = shorten(f"{s}/{n}" if s else n for s, n in metadata)
    notes.insert(0, f"{files}, {counted(len(frame), 'row')}")
    return Source(
        FOLDERS,
        place,
        frame,
        _FILE_NAME,
        images=place,
        split=split_column,
        rows=pd.Series(rows, dtype=object),
        notes=tuple(notes),
    )


def _join(folder: str, path: object) -> object:
    return f"{folder}/{path.removeprefix('./')}" if isinstance(path, str) and path else path


def _top_folder(path: object) -> str:
    return path.split("/")[0] if isinstance(path, str) and "/" in path else ""


def _read_metadata(path: Path) -> RawTable:
    suffix = path.suffix.lower()
    if suffix in PARQUET_SUFFIXES:
        table = _read_parquet(path)
    else:
        table = read_delimited(path) if suffix == ".csv" else read_json_lines(path)
    if _FILE_NAME not in table.frame:
        columns = list(table.frame.columns)
        raise InputError(
            f'{path}: no column "{_FILE_NAME}"; it has {shorten(columns)}.'
            f"{near(_FILE_NAME, columns)}"
        )
    return table


def _read_parquet(path: Path) -> RawTable:
    shard = open_shard(path)
    try:
        columns = {
            field.name: plain_column(shard.read_column(field.name))
            for field in shard.schema
            if not holds_objects(field.type)
        }
    finally:
        shard.close()
    frame = object_frame(columns)
    return RawTable(frame, pd.Series([f"row {i}" for i in range(len(frame))], dtype=object))


def _refuse_missing(place: Path, described: Sequence[str]) -> None:
    """Raise InputError if some split folders have a metadata file and others have none."""
    if described == [""]:
        return
    splits = [
        entry.name for entry in place.iterdir() if is_split_name(entry.name) and entry.is_dir()
    ]
    lacking = sorted(set(splits) - set(described))
    if lacking:
        raise InputError(
            f"{place / lacking[0]}: no metadata file, but {shown(described[0], CELL)} has one"
        )
