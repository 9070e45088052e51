"""The TFDS builder that decodes images once and writes them as sharded records.

Every image of the splits train and validation is decoded once, turned upright, reduced to a
bounded shorter side and stored as JPEG with its path and labels. One builder has one configuration
per spec and fingerprint:

  RECORDS_DIR/multitask/{spec}-{fingerprint}/{version}/*.array_record
                                                       dataset_info.json, features.json
                                                       excluded.csv: every row without a record

The records do not hold the test set: `evaluate` reads it from the original files.

ArrayRecord can be read at any index, and the records of a split have the order of its rows. The
order of an epoch is therefore a permutation of all records, not of a buffer, and skipped records
are not read.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds

from multitask.console import progress_bar
from multitask.data.decode import decode_image, reduce_image
from multitask.data.image_files import (
    bytes_function,
    find_unusable,
    map_files,
    why_unreadable,
)
from multitask.data.table import TEST, TRAIN, VALIDATION, Table, drop_paths
from multitask.spec import MISSING, DataSpec

# Version of what a record folder holds and how it is made; a new version makes new records.
VERSION = "2.0.0"
SHARD_IMAGES = 1024  # in memory while a shard is written; the smallest unit of work in Beam
EXCLUDED, NEAR_DUPLICATES = "excluded.csv", "near_duplicates.csv"

Example = tuple[int, dict[str, Any]]  # its index in the shard, and its features


@dataclass(frozen=True)
class RecordShard:
    """The images of one shard of records; a call yields their examples. Beam sends it to workers.

    Attributes:
        tasks: their names.
        paths: str [n], as in the CSVs.
        labels: int32 [n, tasks].
        image_dir: the folder that the paths start at.
        shorter_px: upper bound of the shorter side.
        quality: JPEG quality, 1 to 100.
        convert_profiles: whether embedded color profiles are applied.
        done: called with the number of images that were processed since the last call.
    """

    tasks: tuple[str, ...]
    paths: Sequence[str]
    labels: np.ndarray
    image_dir: str
    shorter_px: int
    quality: int
    convert_profiles: bool
    done: Callable[[int], Any] | None = None

    def __call__(self) -> Iterator[Example]:
        """Yield (index, example) of the readable images, in order."""
        names = [os.path.join(self.image_dir, path) for path in self.paths]
        processed = 0
        images = map_files(
            names,
            _encoder(self.shorter_px, self.quality),
            target_px=self.shorter_px,
            convert_profiles=self.convert_profiles,
        )
        for index, image in images:
            labels = np.maximum(self.labels[index], MISSING)  # TFDS has no other negative label
            label = dict(zip(self.tasks, labels.tolist(), strict=True))
            yield index, {"image": image.numpy(), "path": self.paths[index], "label": label}
            if self.done:
                self.done(index + 1 - processed)
            processed = index + 1
        if self.done:
            self.done(len(self.paths) - processed)


@functools.cache
def _encoder(shorter_px: int, quality: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Make the function from an image file's bytes to the JPEG of its record."""

    def encode(data: tf.Tensor) -> tf.Tensor:
        image = decode_image(data, target_px=shorter_px)
        image = reduce_image(image, shorter_px=shorter_px)
        return tf.io.encode_jpeg(image, quality=quality)

    return bytes_function(encode)


def split_stream(
    examples: Iterator[Example], starts: Sequence[int]
) -> list[Callable[[], Iterator[Example]]]:
    """Divide a stream of examples into parts, which are to be read in order, each to its end.

    Args:
        examples: with increasing indices.
        starts: int [parts + 1], the index at which each part starts, and the end of the last.

    Returns:
        A function for each part, which returns its examples, with indices from 0 in the part.
    """
    ahead: list[Example] = []  # the first example of a later part

    def part(start: int, stop: int) -> Iterator[Example]:
        for index, example in itertools.chain(ahead[:], examples):
            ahead[:] = [(index, example)] if index >= stop else []
            if ahead:
                return
            yield index - start, example

    return [functools.partial(part, *bounds) for bounds in itertools.pairwise(starts)]


def decode_record(data: tf.Tensor) -> tf.Tensor:
    """Decode the image of a record: JPEG, string [] -> uint8 [height, width, 3].

    The pixels are those of `decode_image`. The image is known to be a JPEG, upright and of a
    bounded size: no header needs to be read, and the graph of a training starts sooner.
    """
    return tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE")


class _EncodedImage(tfds.features.Image):
    """An image that is already encoded as JPEG."""

    def encode_example(self, image: bytes) -> bytes:
        return image


class _Writer(tfds.core.writer.ExampleWriter):
    """Writes the same bytes for the same example; TFDS' map order differs between processes."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        return super().write(
            path,
            (
                (key, tf.train.Example.FromString(example).SerializeToString(deterministic=True))
                for key, example in examples
            ),
        )


class _RecordsInfo(tfds.core.DatasetInfo):
    """The description of records, which no cloud bucket holds."""

    def initialize_from_bucket(self) -> None:
        """Do nothing; TFDS would leave a temporary folder behind, and older versions would look."""


class RecordsBuilder(tfds.core.ShardBasedBuilder):
    """The TFDS builder of every spec; its configuration is a spec and a fingerprint."""

    name = "multitask"
    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self,
        spec: DataSpec,
        table: Table,
        *,
        image_dir: Path,
        fingerprint: str,
        records_dir: Path,
        near_duplicates: pd.DataFrame | None = None,
        progress: bool = True,
    ) -> None:
        """Create a builder for one spec and one state of the data.

        Args:
            spec: the options of the records are read from it.
            table: for writing, the sampled table without the missing images; for reading, only its
                classes matter.
            image_dir: the folder that the table's paths start at.
            fingerprint: hash of everything that determines the content of the records.
            records_dir: the folder of all records.
            near_duplicates: pairs to list in a CSV next to the records.
            progress: show a bar on a terminal.
        """
        self._spec, self.table, self.image_dir = spec, table, image_dir
        self._fingerprint, self._progress = fingerprint, progress
        self._near_duplicates = near_duplicates
        config = tfds.core.BuilderConfig(
            name=config_name(spec, fingerprint), description=spec.title
        )
        super().__init__(
            data_dir=str(records_dir.absolute()), config=config, file_format="array_record"
        )

    # === Methods that TFDS calls ===

    def _info(self) -> tfds.core.DatasetInfo:
        spec, labels = self._spec, {}
        for task, names in self.table.classes.items():
            labels[task] = tfds.features.ClassLabel(names=list(names))
        return _RecordsInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": _EncodedImage(shape=(None, None, 3), encoding_format="jpeg"),
                    "path": tfds.features.Text(),
                    "label": labels,  # -1: missing
                }
            ),
            description=spec.title or spec.name,
            homepage=spec.source,
            license=spec.licence,
            metadata=tfds.core.MetadataDict(
                spec=spec.name,
                fingerprint=self._fingerprint,
                shorter_side_px=spec.reduced_px,
                jpeg_quality=spec.records.quality,
            ),
        )

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        """Return the configuration unchanged; TFDS warns if the class does not list it."""
        return builder_config

    def _log_download_bytes(self) -> None:
        """Log nothing: there is no download, and the progress is logged elsewhere."""

    def _log_download_done(self) -> None:
        """Log nothing, for the same reason."""

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> dict[str, Sequence[Callable[[], Iterator[Example]]]]:
        del dl_manager  # nothing is downloaded
        # The smaller split comes first: with Beam, TFDS runs the shards of earlier splits again.
        return {
            split: self._shards(split)
            for split in (VALIDATION, TRAIN)
            if len(self.table.rows(split))
        }

    def _shards(self, split: str) -> Sequence[Callable[[], Iterator[Example]]]:
        rows = self.table.rows(split)
        parts = np.array_split(rows, math.ceil(len(rows) / SHARD_IMAGES))
        if self._with_beam:
            return [self._record_shard(part) for part in parts]
        # One stream for all shards: the cores go on decoding while a shard is written.
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        return split_stream(self._record_shard(rows)(), starts)

    def _record_shard(self, rows: np.ndarray) -> RecordShard:
        return RecordShard(
            self.table.tasks,
            self.table.paths[rows].tolist(),
            self.table.labels[rows],
            str(self.image_dir),
            self._spec.reduced_px,
            self._spec.records.quality,
            self._spec.convert_profiles,
            self._bar.update if self._bar is not None else None,
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """Write the records and the CSVs; TFDS renames the folder once it is complete."""
        total = int((self.table.splits != TEST).sum())
        # Beam's workers are other processes.
        self._with_beam = download_config is not None and download_config.beam_runner is not None
        hidden = self._with_beam or not self._progress
        with progress_bar("preparing records", total, hidden=hidden) as bar:
            self._bar = None if self._with_beam else bar
            super()._download_and_prepare(dl_manager, download_config)
        reasons = self._unreadable_images(total)
        table = drop_paths(self.table, pd.DataFrame(reasons.items(), columns=["path", "reason"]))
        table.excluded_frame().to_csv(self.data_path / EXCLUDED, index=False)
        if self._near_duplicates is not None:
            self._near_duplicates.to_csv(self.data_path / NEAR_DUPLICATES, index=False)

    def _unreadable_images(self, total: int) -> dict[str, str]:
        """Map path -> reason for images without a record and unusable images of the test set."""
        table = self.table
        names = [str(self.image_dir / path) for path in table.paths]
        reasons = {}
        if sum(split.num_examples for split in self.info.splits.values()) < total:
            written = {path for split in self.info.splits for path in self.paths(split)}
            for row in np.flatnonzero(table.splits != TEST):
                if table.paths[row] not in written:
                    reason = why_unreadable(names[row]) or "could not be read the first time"
                    reasons[table.paths[row]] = reason
        test_rows = table.rows(TEST)
        unusable = find_unusable([names[row] for row in test_rows], progress=self._progress)
        return reasons | {table.paths[test_rows[i]]: reason for i, reason in unusable.items()}

    def _example_writer(self) -> tfds.core.writer.ExampleWriter:
        return _Writer(file_format=self.info.file_format)

    # === Reading ===

    def read(self, split: str) -> Any:
        """Return the serialised examples of a split: a sequence of bytes.

        `__getitems__` reads the examples of several indices at once.
        """
        if not self.info.splits[split].num_examples:  # TFDS has no data source for an empty split
            return ()
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return self.as_data_source(split, deserialize_method=raw)

    def paths(self, split: str) -> list[str]:
        """The paths of a split's images, in the order of their records."""
        source, paths = self.read(split), []
        for start in range(0, len(source), SHARD_IMAGES):
            part = source.__getitems__(range(start, min(start + SHARD_IMAGES, len(source))))
            feature = {"path": tf.io.FixedLenFeature([], tf.string)}
            values = tf.io.parse_example(tf.constant(part), feature)["path"].numpy()
            paths += [value.decode() for value in values]
        return paths


def default_records_dir(data_dir: Path) -> Path:
    """Return the folder of the records unless the user names another one."""
    return data_dir / "records"


def config_name(spec: DataSpec, fingerprint: str) -> str:
    """The name of the folder of a spec's records."""
    return f"{spec.name}-{fingerprint[:12]}"
