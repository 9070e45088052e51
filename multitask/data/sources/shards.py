"""Read Parquet and Arrow files: columns without image bytes, and the image bytes of one row.

Two types of columns hold images: binary values, and the Hub's struct {bytes, path}.
"""

import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from multitask.data.sources.source import (
    one_line,
    open_binary,
    refuse_pointer,
    refuse_repeated,
)
from multitask.errors import InputError, counted

PARQUET_SUFFIXES, ARROW_SUFFIXES = (".parquet", ".pq"), (".arrow", ".feather")
_ARROW_FILE = b"ARROW1"
# Images per batch. A row group may hold all images of a data set (pandas writes up to a million
# rows), so it is never read as a whole.
_BATCH_ROWS, _BUFFER_BYTES = 8, 2**20


class ImageShard(Protocol):
    """One open file with embedded images."""

    row_count: int

    def image(self, name: str, row: int) -> bytes | None:
        """The bytes of an image; None where the row has none."""

    def close(self) -> None:
        """Close the file."""


class TabularShard(ImageShard, Protocol):
    """One open Parquet or Arrow file."""

    schema: pa.Schema

    def read_column(self, name: str) -> list[Any]:
        """The values of a column; for an image struct, its paths."""

    def missing_bytes(self, name: str) -> int:
        """How many rows of an image column have no bytes."""


def open_shard(path: Path) -> TabularShard:
    """Open a Parquet or Arrow file.

    Raises:
        InputError: it is not a regular file, or not a readable Parquet or Arrow file.
    """
    refuse_pointer(path)
    shard: TabularShard
    shard = ArrowShard(path) if path.suffix.lower() in ARROW_SUFFIXES else ParquetShard(path)
    try:
        refuse_repeated(shard.schema.names, str(path))
    except InputError:
        shard.close()
        raise
    return shard


@contextmanager
def _parse_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable {what} file: {one_line(error)}") from None


def is_image_struct(kind: pa.DataType) -> bool:
    """Whether a type is the Hub's struct {bytes, path}."""
    if not pa.types.is_struct(kind):
        return False
    return any(kind[i].name == "bytes" and is_binary(kind[i].type) for i in range(kind.num_fields))


def is_binary(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's binary types."""
    checks = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(check(kind) for check in checks)


def holds_objects(kind: pa.DataType) -> bool:
    """Whether a type is neither a plain value nor a list of plain values."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return holds_objects(kind.value_type)
    return pa.types.is_nested(kind) or is_binary(kind)


def _has_path(kind: pa.DataType) -> bool:
    return is_image_struct(kind) and kind.get_field_index("path") >= 0


class ParquetShard:
    """A Parquet file, read forwards in batches; an earlier row starts its row group again.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stream = open_binary(path)
        try:
            with _parse_errors(path, "Parquet"):
                # Without these options a column of a row group is read as a whole.
                self._file = pq.ParquetFile(
                    self._stream, pre_buffer=False, buffer_size=_BUFFER_BYTES
                )
                self.schema = self._file.schema_arrow
                self._metadata = self._file.metadata
        except InputError:
            self._stream.close()
            raise
        groups = range(self._metadata.num_row_groups)
        counts = [self._metadata.row_group(group).num_rows for group in groups]
        self._starts = list(itertools.accumulate(counts, initial=0))
        self.row_count = self._starts[-1]
        self._cursor: tuple[str, int] | None = None  # the column and row group that are being read
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._start, self._values = 0, pa.array([], pa.binary())  # first row and values of a batch

    def read_column(self, name: str) -> list[Any]:
        """The values of a column; for an image struct, its paths."""
        kind = self.schema.field(name).type
        with _parse_errors(self.path, "Parquet"):
            if not is_image_struct(kind):
                return self._file.read([name]).column(name).to_pylist()
            if not _has_path(kind):
                return [None] * self.row_count
            structs = self._file.read([f"{name}.path"]).column(name).to_pylist()
        return [struct and struct["path"] for struct in structs]

    def missing_bytes(self, name: str) -> int:
        """How many rows of an image column have no bytes; 0 where the file does not count them."""
        struct = is_image_struct(self.schema.field(name).type)
        leaf = f"{name}.bytes" if struct else name
        with _parse_errors(self.path, "Parquet"):
            groups = [self._metadata.row_group(i) for i in range(self._metadata.num_row_groups)]
            chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
            counts = [
                chunk.statistics.null_count
                for chunk in chunks
                if chunk.path_in_schema == leaf and chunk.statistics is not None
            ]
        return sum(count or 0 for count in counts)

    def image(self, name: str, row: int) -> bytes | None:
        """The bytes of an image; None where the row has none."""
        group = bisect.bisect_right(self._starts, row) - 1
        if self._cursor != (name, group) or row < self._start:
            struct = is_image_struct(self.schema.field(name).type)
            self._cursor = name, group
            self._start, self._values = self._starts[group], pa.array([], pa.binary())
            self._batches = self._file.iter_batches(
                _BATCH_ROWS, [group], [f"{name}.bytes" if struct else name], use_threads=False
            )
        with _parse_errors(self.path, "Parquet"):
            while row >= self._start + len(self._values):
                self._start += len(self._values)
                batch = next(self._batches, None)
                if batch is None:
                    raise InputError(f"{self.path}: damaged: row {row} cannot be read")
                self._values = batch.column(batch.schema.get_field_index(name))
            value = self._values[row - self._start].as_py()
        return value["bytes"] if isinstance(value, dict) else value

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class ArrowShard:
    """An Arrow file or stream, mapped into memory: only what is accessed is read.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        with open_binary(path) as file:  # checks that it is a regular file
            is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        with _parse_errors(path, "Arrow"):
            self._map = pa.memory_map(str(path))
            opened = pa.ipc.open_file(self._map) if is_file else pa.ipc.open_stream(self._map)
            self._table = opened.read_all()
            # Arrow trusts the offsets in a file; wrong ones would crash the process. Validation
            # reads the offsets and the texts, but not the images.
            self._table.validate(full=True)
        self.schema = self._table.schema
        self.row_count = self._table.num_rows
        self._leaves: dict[tuple[str, str], pa.ChunkedArray] = {}

    def _leaf(self, name: str, leaf: str) -> pa.ChunkedArray:
        if (name, leaf) not in self._leaves:
            column = self._table.column(name)
            if is_image_struct(column.type):
                # Unlike `StructArray.field`, the result is null where the struct is null.
                column = pc.struct_field(column, [column.type.get_field_index(leaf)])
            self._leaves[name, leaf] = column
        return self._leaves[name, leaf]

    def read_column(self, name: str) -> list[Any]:
        """The values of a column; for an image struct, its paths."""
        kind = self.schema.field(name).type
        if is_image_struct(kind) and not _has_path(kind):
            return [None] * self.row_count
        return self._leaf(name, "path").to_pylist()

    def missing_bytes(self, name: str) -> int:
        """How many rows of an image column have no bytes."""
        return self._leaf(name, "bytes").null_count

    def image(self, name: str, row: int) -> bytes | None:
        """The bytes of an image; None where the row has none."""
        return self._leaf(name, "bytes")[row].as_py()

    def close(self) -> None:
        """Unmap the file."""
        self._leaves, self._table = {}, self._table.slice(0, 0)
        self._map.close()


# === Descriptions of the columns in the schema ===


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """Column -> its description that `datasets` stored in a schema; {} if there are none."""
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = stored["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def class_names_of(features: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Column -> class names, for features that are a ClassLabel or a list of them."""
    result = {}
    for name, feature in features.items():
        if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
        elif isinstance(feature, list) and len(feature) == 1:  # how older versions write a list
            feature = feature[0]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if isinstance(names, list) and all(isinstance(text, str) for text in names):
                result[name] = tuple(names)
    return result


def image_columns(schema: pa.Schema, features: dict[str, Any]) -> list[str]:
    """The columns declared as images; if there are none, those whose type can hold images."""
    columns = [
        field.name for field in schema if is_image_struct(field.type) or is_binary(field.type)
    ]
    declared = [
        name
        for name in columns
        if isinstance(features.get(name), dict) and features[name].get("_type") == "Image"
    ]
    return declared or columns


def as_names(values: Sequence[Any], names: Sequence[str], place: str) -> list[Any]:
    """Replace class indices with names; -1 and None become None, lists stay lists.

    Args:
        values: [rows]; indices, None, or lists of these.
        names: the class names, by index.
        place: file and column, for messages.

    Raises:
        InputError: an index has no class.
    """
    by_index: dict[Any, str | None] = {**dict(enumerate(names)), -1: None, None: None}
    try:
        return [
            [by_index[item] for item in value] if isinstance(value, list) else by_index[value]
            for value in values
        ]
    except (KeyError, TypeError):
        wrong = next(
            (row, item)
            for row, value in enumerate(values)
            for item in (value if isinstance(value, list) else [value])
            if not isinstance(item, int | None) or item not in by_index
        )
        raise InputError(
            f"{place}: row {wrong[0]}: class {wrong[1]!r}: expected -1 to {len(names) - 1}, "
            f"because the file names {counted(len(names), 'class', 'classes')}"
        ) from None
