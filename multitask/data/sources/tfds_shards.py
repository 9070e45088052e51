"""Files of records that TFDS wrote: ArrayRecord and TFRecord, each record a `tf.train.Example`.

Neither is decoded by TensorFlow: TFDS has the classes of the Example itself.
"""

import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from multitask.data.sources.source import input_errors, one_line, open_binary, refuse_pointer
from multitask.errors import InputError

_CHUNK = 16  # records that are in memory at once
_LENGTH, _CHECKSUM = struct.Struct("<QI"), 4  # before a record: length and its sum; after it: a sum


class RecordFile(Protocol):
    """The records of a file, by position."""

    count: int

    def read(self, row: int) -> bytes:
        """One record."""

    def close(self) -> None:
        """Close the file."""


def example_of(record: bytes, place: str) -> Any:
    """The features of a record, name -> Feature; InputError where it is not an Example."""
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
    """A TFRecord file. The position of each record is read first: 12 bytes of each.

    Args:
        path: of the file.
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
                raise InputError(f"{self.path}: damaged: cut off at byte {size:,}, or no TFRecord")
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
        path: of the file.
    """

    def __init__(self, path: Path):
        from array_record.python.array_record_module import ArrayRecordReader

        self.path = path
        open_binary(path).close()  # a regular file, which the library can open without waiting
        try:
            self._reader = ArrayRecordReader(str(path))
            if not self._reader.ok():
                self._reader.close()  # raises what is wrong
            self.count = self._reader.num_records()
        except Exception as error:  # the library documents none
            raise InputError(f"{path}: not a readable ArrayRecord: {one_line(error)}") from None
        self._start, self._chunk = 0, [b""][:0]

    def read(self, row: int) -> bytes:
        """One record."""
        if not self._start <= row < self._start + len(self._chunk):
            end = min(row + _CHUNK, self.count)
            try:
                self._chunk = self._reader.read(row, end)
            except Exception as error:  # the library documents none
                raise InputError(f"{self.path}: row {row}: damaged: {one_line(error)}") from None
            self._start = row
        return self._chunk[row - self._start]

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


class TfdsShard:
    """One open file, for EmbeddedImages.

    Args:
        path: of the file.
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
