"""Make a Source from Parquet or Arrow files: a table in one file, or the shards of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from multitask.data.sources import shards
from multitask.data.sources.embedded import reference
from multitask.data.sources.image_column import find_image_column, relative_to
from multitask.data.sources.shards import TabularShard
from multitask.data.sources.source import (
    CELL,
    Source,
    free_name,
    object_frame,
    plain_column,
    shorten,
)
from multitask.errors import InputError, counted, expected, quoted, shown

_INDEX = "__index_level_"  # prefix of the columns in which pandas stores a frame's index


@dataclass(frozen=True)
class ShardFile:
    """A file of a data set.

    Attributes:
        name: the path relative to the data set's folder, or the name of a single file.
        path: the path to open.
        split: the split of its rows; None if unknown.
        constants: column -> the value of all its rows, for columns that the file itself lacks.
    """

    name: str
    path: Path
    split: str | None = None
    constants: Mapping[str, str | None] = field(default_factory=dict)


@dataclass
class _Columns:
    """How to read the columns of all shards, decided by the first shard."""

    place: Path
    image: str | None  # None where no column holds bytes
    names: list[str]
    skipped: list[str]
    classes: dict[str, tuple[str, ...]]

    @property
    def paths(self) -> str:
        """The column of the paths inside an image struct."""
        return free_name(f"{self.image}.path", self.names)


def read_shards(
    kind: str,
    place: Path,
    files: Sequence[ShardFile],
    *,
    features: dict[str, Any] | None = None,
    images: Path | None = None,
    image_column: str | None = None,
) -> Source:
    """Read the columns of all shards, without the bytes of images.

    Args:
        kind: the kind of the source.
        place: the file, or the folder of the shards.
        files: at least one, in the order of their rows.
        features: descriptions of the columns from a file beside the shards; those in a shard's
            schema take precedence.
        images: the folder of the images, if they are not in the shards; None: that of the files.
        image_column: the column of images; None: detect it.

    Raises:
        InputError: a shard is unreadable or differs from the first one, or there is not exactly
            one column of images.
    """
    columns, parts, counts, missing = None, [], [], 0
    for file in files:
        shard = shards.open_shard(file.path)
        try:
            if columns is None:
                columns = _plan(place, shard, features or {}, image_column)
            _check_same(columns, shard, file, features or {})
            parts.append(_read(columns, shard, file))
            counts.append(shard.row_count)
            missing += shard.missing_bytes(columns.image) if columns.image else 0
        finally:
            shard.close()
    if columns is None or not sum(counts):
        raise InputError(f"{place}: no rows")
    frame = object_frame({n: [v for part in parts for v in part[n]] for n in parts[0]})
    source = Source(
        kind,
        place,
        frame,
        columns.image or "",
        class_names={n: c for n, c in columns.classes.items() if n in frame},
        rows=_row_names(files, counts),
        notes=_notes(columns, files, len(frame)),
    )
    for name in [name for name in files[0].constants if name not in frame]:
        frame[name] = _of_files(counts, [file.constants[name] for file in files])
    if files[0].split is not None or len({file.split for file in files}) > 1:
        split = free_name("split", frame.columns)
        frame = frame.assign(**{split: _of_files(counts, [file.split for file in files])})
        source = replace(source, frame=frame, split=split)
    if columns.image and missing < len(frame):
        return _with_references(source, columns, files, counts, missing)
    return _with_paths(source, columns, images, image_column)


def object_column(values: Sequence[Any]) -> pd.Series:
    """A column of dtype object."""
    return pd.Series(values, dtype=object)


def _of_files(counts: Sequence[int], values: Sequence[Any]) -> pd.Series:
    """A column in which all rows of a file have the same value."""
    pairs = zip(values, counts, strict=True)
    return object_column([value for value, count in pairs for _ in range(count)])


# === Columns ===


def _plan(
    place: Path, shard: TabularShard, features: dict[str, Any], image_column: str | None
) -> _Columns:
    features = features | shards.features_of(shard.schema)
    embedded = shards.image_columns(shard.schema, features)
    names = list(shard.schema.names)
    if image_column is not None and image_column not in names:
        raise InputError(
            f"{place}: no column {quoted(image_column)}. {expected(image_column, names)}",
            field="image_column",
        )
    if image_column is None and len(embedded) > 1:
        raise InputError(
            f"{place}: several columns hold images ({shorten(embedded)}); choose one",
            field="image_column",
        )
    image = embedded[0] if embedded and image_column is None else image_column
    if image is not None and not _holds_bytes(shard, image):
        image = None
    skipped = [
        column.name
        for column in shard.schema
        if column.name != image
        and (shards.holds_objects(column.type) or column.name.startswith(_INDEX))
    ]
    kept = [name for name in names if name not in (*skipped, image)]
    return _Columns(place, image, kept, skipped, shards.class_names_of(features))


def _holds_bytes(shard: TabularShard, name: str) -> bool:
    kind = shard.schema.field(name).type
    return shards.is_image_struct(kind) or shards.is_binary(kind)


def _check_same(
    columns: _Columns, shard: TabularShard, file: ShardFile, features: dict[str, Any]
) -> None:
    """Raise InputError if a shard lacks a column of the first one, or has other classes."""
    needed = [*columns.names, *([columns.image] if columns.image else [])]
    lacking = [name for name in needed if name not in shard.schema.names]
    if lacking:
        raise InputError(
            f"{file.path}: no column {quoted(lacking[0])}, which the first shard has; "
            f"it has {shorten(shard.schema.names)}"
        )
    own = shards.class_names_of(features | shards.features_of(shard.schema))
    for name in columns.names:
        if own.get(name) != columns.classes.get(name):
            raise InputError(
                f"{file.path}: column {shown(name, CELL)} has other classes than the first shard"
            )


def _read(columns: _Columns, shard: TabularShard, file: ShardFile) -> dict[str, Sequence[Any]]:
    """The columns of a shard; the last one holds the paths inside an image struct."""
    part: dict[str, Sequence[Any]] = {}
    for name in columns.names:
        values = plain_column(shard.read_column(name))
        if name in columns.classes:
            place = f"{file.path}: column {shown(name, CELL)}"
            values = shards.as_names(values, columns.classes[name], place)
        part[name] = values
    if columns.image:
        struct = shards.is_image_struct(shard.schema.field(columns.image).type)
        paths = shard.read_column(columns.image) if struct else [None] * shard.row_count
        part[columns.paths] = plain_column(paths)
    return part


def _row_names(files: Sequence[ShardFile], counts: Sequence[int]) -> pd.Series:
    where = [f" of {file.name}" if len(files) > 1 else "" for file in files]
    return object_column(
        [f"row {row}{text}" for text, count in zip(where, counts, strict=True)
         for row in range(count)]
    )  # fmt: skip


def _notes(columns: _Columns, files: Sequence[ShardFile], rows: int) -> tuple[str, ...]:
    kind = "/".join(sorted({file.path.suffix.lower().lstrip(".") for file in files}))
    notes = [f"{counted(len(files), f'{kind} file')}, {counted(rows, 'row')}"]
    if columns.skipped:
        notes.append(f"skipped columns, which hold no plain values: {shorten(columns.skipped)}")
    return tuple(notes)


# === Images: in the shards, or beside them ===


def _with_references(
    source: Source,
    columns: _Columns,
    files: Sequence[ShardFile],
    counts: Sequence[int],
    missing: int,
) -> Source:
    """Add the column of image references; keep the column of paths if it has any."""
    frame = source.frame
    notes = [f"images: inside the files, column {shown(source.image, CELL)}"]
    if frame[columns.paths].isna().all():
        frame = frame.drop(columns=columns.paths)
    names = [
        reference(file.name, row)
        for file, count in zip(files, counts, strict=True)
        for row in range(count)
    ]
    frame.insert(0, source.image, object_column(names))
    if missing:
        notes.append(f"rows without image bytes: {missing:,}")
    return replace(
        source,
        frame=frame,
        embedded=True,
        shards=tuple(file.name for file in files),
        notes=(*source.notes, *notes),
    )


def _with_paths(
    source: Source, columns: _Columns, images: Path | None, image_column: str | None
) -> Source:
    """Set the column of image paths: that of structs without bytes, or a detected one."""
    place, frame = source.place, source.frame
    folder = images or (place if place.is_dir() else place.parent)
    notes: list[str] = []
    image = columns.image
    if image is not None:
        paths = columns.paths
        if frame[paths].isna().all():
            raise InputError(f"{place}: column {quoted(image)} has neither bytes nor paths")
        frame = frame.rename(columns={paths: image})
        notes.append(f"images: column {shown(image, CELL)}, which holds paths instead of bytes")
    else:
        image, notes = find_image_column(frame, folder, place, image_column)
    frame[image], note = relative_to(folder, place, frame[image])
    return replace(
        source,
        frame=frame,
        image=image,
        images=folder,
        notes=(*source.notes, *notes, *([note] if note else [])),
    )
