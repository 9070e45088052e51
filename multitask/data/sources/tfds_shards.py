"""Read the files that TFDS wrote: ArrayRecord or TFRecord, each record a `tf.train.Example`.

This does not need TensorFlow: TFDS has its own protobuf classes for the Example.
"""

import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from multitask.data.sources.source import input_errors, one_line, open_binary, refuse_pointer
from multitask.errors import InputError

_CHUNK = 16  # records in memory at once
_LENGTH = struct.Struct("<QI")  # before each record: its length, and the checksum of that
_CHECKSUM = 4  # bytes after each record: its checksum


class RecordFile(Protocol):
    """The records of a file, by position."""

    count: int

    def read(self, row: int) -> bytes:
        """One record."""

    def close(self) -> None:
        """Close the file."""


def example_of(record: bytes, place: str) -> Any:
    """The features of a record, name -> Feature; InputError if it is not an Example."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise InputError(f"{place}: damaged: {one_line(error)}") from None


def open_records(path: Path) -> RecordFile:
    """Open a file of records by the format in its name; InputError where it is unreadable."""
    refuse_pointer(path)
    return ArrayRecords(path) if ".array_record" in path.name else TfRecords(path)


class TfRecords:
    """A TFRecord file. Opening it reads 12 bytes of each record, to find its position.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = open_binary(path)
        self._spans = list(self._positions(os.fstat(self._file.fileno()).st_size))
        self.count = len(self._spans)

    def _positions(self, size: int) -> Iterator[tuple[int, int]]:
        at = 0
        while at < size:
            with input_errors(self.path):
                self._file.seek(at)
                header = self._file.read(_LENGTH.size)
            length = _LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else size
            start, at = at + _LENGTH.size, at + _LENGTH.size + length + _CHECKSUM
            if at > size:
                self._file.close()
                raise InputError(f"{self.path}: damaged: cut off at byte {size:,}, or not TFRecord")
            yield start, length

    def read(self, row: int) -> bytes:
        """One record."""
        start, length = self._spans[row]
        with input_errors(self.path):
            self._file.seek(start)
            return self._file.read(length)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ArrayRecords:
    """An ArrayRecord file, read in chunks of consecutive records.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        from array_record.python.array_record_module import ArrayRecordReader

        self.path = path
        open_binary(path).close()  # refuses a pipe, on which the library would wait
        try:
            self._reader = ArrayRecordReader(str(path))
            if not self._reader.ok():
                self._reader.close()  # raises the error
            self.count = self._reader.num_records()
        except Exception as error:  # the library documents no exceptions
            raise InputError(f"{path}: not a readable ArrayRecord: {one_line(error)}") from None
        self._start, self._chunk = 0, [b""][:0]

    def read(self, row: int) -> bytes:
        """One record."""
        if not self._start <= row < self._start + len(self._chunk):
            end = min(row + _CHUNK, self.count)
            try:
                self._chunk = self._reader.read(row, end)
            except Exception as error:  # the library documents no exceptions
                raise InputError(f"{self.path}: row {row}: damaged: {one_line(error)}") from None
            self._start = row
        return self._chunk[row - self._start]

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


class TfdsShard:
    """One open file, for EmbeddedImages.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._records = open_records(path)
        self.row_count = self._records.count

    def examples(self) -> Iterator[Any]:
        """The features of each record, name -> Feature."""
        for row in itertools.count():
            if row >= self.row_count:
                return
            yield self.example(row)

    def example(self, row: int) -> Any:
        """The features of one record, name -> Feature."""
        return example_of(self._records.read(row), f"{self.path}: row {row}")

    def image(self, name: str, row: int) -> bytes | None:
        """The bytes of an image; None where the row has none."""
        example = self.example(row)
        values = list(example[name].bytes_list.value) if name in example else []
        return values[0] if values else None

    def close(self) -> None:
        """Close the file."""
        self._records.close()


def open_tfds_shard(path: Path) -> TfdsShard:
    """Open a file of records; InputError where it is unreadable."""
    return TfdsShard(path)
