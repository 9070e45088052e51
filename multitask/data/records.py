"""Table + pictures -> sharded records of the training side, prepared once and read at random.

Every picture of the splits train and selection is decoded once, turned upright, reduced to a
bounded shorter side and stored as JPEG beside its path and labels, by one TFDS builder with a
configuration for each spec and fingerprint:

  RECORDS_DIR/multitask/{spec}-{fingerprint}/{version}/*.array_record
                                                       dataset_info.json, features.json
                                                       left_out.csv: every row that is not here

The exam is not in the records: `evaluate` reads it from the original files.

ArrayRecord can be read at any index, and the records of a split stand in the order of its rows. So
an epoch's order is a permutation of all of them, not of a buffer, and what is skipped is not read.
"""

import functools
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import json_format
from tensorflow_datasets.core.utils import gcs_utils
from tqdm import tqdm

from multitask.bootstrap import FEWEST_EXAMPLES
from multitask.data.decode import decode_image, reduce_image
from multitask.data.files import (
    count_reasons,
    find_unusable,
    map_files,
    picture_sizes,
    read_frame,
    refuse_missing,
    unusable,
    why_unreadable,
)
from multitask.data.near_duplicates import (
    CACHE_VERSION,
    MAX_DISTANCE,
    describe_pairs,
    find_pairs,
    scan_pictures,
    training_side,
)
from multitask.data.table import (
    MISSING_FILE,
    NEAR_DUPLICATE,
    SELECTION,
    TRAIN,
    VAL,
    Table,
    draw_table,
    draw_without,
    drop_paths,
    merge_tables,
)
from multitask.files import AGAIN, check_room, check_writable, locked, size_text, writing
from multitask.spec import NO_TEST_SET, DataSpec, InputError, install

VERSION = "1.0.0"  # of what a record holds and how it is made; another one makes new records
SHARD_PICTURES = 1024  # in memory while a shard is written; the least work of a Beam worker
CHUNK = 64  # records that one call reads
BYTES_A_PIXEL = 0.4  # of a painting as JPEG of quality 92, generously; for the space that is needed
LEFT_OUT, NEAR_DUPLICATES = "left_out.csv", "near_duplicates.csv"
REMEDY = "Put the images there"
ALLOW = "allow them to be missing with --max_missing={share}"
ANEW = "remove its folder, and the records are prepared anew"
# Older versions of TFDS ask a cloud bucket about every data set by default.
gcs_utils._is_gcs_disabled = True


# === Writing ===


def shorter_side_px(spec: DataSpec) -> int:
    return round(spec.image_size * spec.records.margin)


@dataclass(frozen=True)
class Shard:
    """The pictures of one shard; called, it yields their examples. Beam sends it to its workers.

    Attributes:
        tasks: their names.
        paths: str [n], as in the CSVs.
        labels: int32 [n, tasks].
        image_dir: the folder that the paths start at.
        shorter_px: bound of the shorter side.
        quality: of JPEG, 1 to 100.
        done: told how many pictures have been gone through since the last call.
    """

    tasks: tuple[str, ...]
    paths: Sequence[str]
    labels: np.ndarray
    image_dir: str
    shorter_px: int
    quality: int
    done: Callable[[int], None] | None = None

    def __call__(self) -> Iterator[tuple[int, dict]]:
        """Yields (index, example) of the pictures that can be read, in their order."""
        names = [os.path.join(self.image_dir, path) for path in self.paths]
        before = 0
        for index, image in map_files(names, self._encode).as_numpy_iterator():
            label = dict(zip(self.tasks, self.labels[index].tolist(), strict=True))
            yield int(index), {"image": image, "path": self.paths[index], "label": label}
            if self.done:
                self.done(int(index) + 1 - before)
            before = int(index) + 1
        if self.done:
            self.done(len(self.paths) - before)

    def _encode(self, data: tf.Tensor) -> tf.Tensor:
        image = decode_image(data, target_px=self.shorter_px)
        image = reduce_image(image, shorter_px=self.shorter_px)
        return tf.io.encode_jpeg(image, quality=self.quality)


class _EncodedImage(tfds.features.Image):
    """A picture that is JPEG already."""

    def encode_example(self, image: bytes) -> bytes:
        return image


class _Writer(tfds.core.writer.ExampleWriter):
    """Writes the same bytes for the same example; the order of a map is otherwise a process'."""

    def write(self, path, examples):
        return super().write(
            path,
            (
                (key, tf.train.Example.FromString(example).SerializeToString(deterministic=True))
                for key, example in examples
            ),
        )


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
    ):
        """
        Args:
            spec: for the options of the records.
            table: to be written: drawn, less the missing; to be read: its classes alone count.
            image_dir: the folder that the table's paths start at.
            fingerprint: of all that decides what the records hold.
            records_dir: where records of all kinds lie.
            near_duplicates: pairs to keep a list of.
            progress: show a bar on a terminal.
        """
        self._spec, self.table, self.image_dir = spec, table, image_dir
        self._fingerprint, self._progress = fingerprint, progress
        self.near_duplicates = near_duplicates
        config = tfds.core.BuilderConfig(
            name=f"{spec.name}-{fingerprint[:12]}", description=spec.title
        )
        super().__init__(
            data_dir=str(records_dir.absolute()), config=config, file_format="array_record"
        )

    def _info(self) -> tfds.core.DatasetInfo:
        spec, labels = self._spec, {}
        for task, names in self.table.classes.items():
            labels[task] = tfds.features.ClassLabel(names=list(names))
        return tfds.core.DatasetInfo(
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
                shorter_side_px=shorter_side_px(spec),
                jpeg_quality=spec.records.quality,
            ),
        )

    def _create_builder_config(self, builder_config, version) -> tfds.core.BuilderConfig:
        """As it is given; TFDS would warn of every one that the class does not list."""
        return builder_config

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded; what is done is told elsewhere."""

    def _log_download_done(self) -> None:
        """As above."""

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable]]:
        del dl_manager  # nothing is downloaded
        # The smaller split first: with Beam, TFDS runs an earlier split's shards again.
        return {
            split: self._shards(split)
            for split in (SELECTION, TRAIN)
            if len(self.table.rows(split))
        }

    def _shards(self, split: str) -> list[Shard]:
        rows = self.table.rows(split)
        return [
            Shard(
                self.table.tasks,
                self.table.paths[part].tolist(),
                self.table.labels[part],
                str(self.image_dir),
                shorter_side_px(self._spec),
                self._spec.records.quality,
                self._bar.update if self._bar is not None else None,
            )
            for part in np.array_split(rows, math.ceil(len(rows) / SHARD_PICTURES))
        ]

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        """In a folder that gets its name only when all of it is written."""
        table, total = self.table, int((self.table.splits != VAL).sum())
        with_beam = download_config is not None and download_config.beam_runner is not None
        hidden = None if self._progress and not with_beam else True
        with tqdm(
            total=total, desc="preparing records", unit=" pictures", disable=hidden, leave=False
        ) as bar:
            # A worker of Beam, elsewhere, has no bar.
            self._bar = None if with_beam else bar
            super()._download_and_prepare(dl_manager, download_config)
        names = [str(self.image_dir / path) for path in table.paths]
        reasons = {}
        if sum(split.num_examples for split in self.info.splits.values()) < total:
            written = {path for split in self.info.splits for path in self.paths(split)}
            for row in np.flatnonzero(table.splits != VAL):
                if table.paths[row] not in written:
                    reason = why_unreadable(names[row]) or "could not be read the first time"
                    reasons[table.paths[row]] = reason
        exam = table.rows(VAL)
        found = find_unusable([names[i] for i in exam], progress=self._progress)
        reasons |= {table.paths[exam[i]]: reason for i, reason in found.items()}
        table = drop_paths(table, pd.DataFrame(reasons.items(), columns=["path", "reason"]))
        table.left_out_frame().to_csv(self.data_path / LEFT_OUT, index=False)
        if self.near_duplicates is not None:
            self.near_duplicates.to_csv(self.data_path / NEAR_DUPLICATES, index=False)

    def _example_writer(self) -> tfds.core.writer.ExampleWriter:
        return _Writer(file_format=self.info.file_format)

    def read(self, split: str) -> Sequence[bytes]:
        """The serialised examples of a split, at any index."""
        if not self.info.splits[split].num_examples:  # of which TFDS has no source
            return ()
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return self.as_data_source(split, deserialize_method=raw)

    def paths(self, split: str) -> list[str]:
        """The pictures of a split, in the order of their records."""
        source, found = self.read(split), []
        for start in range(0, len(source), SHARD_PICTURES):
            part = source.__getitems__(range(start, min(start + SHARD_PICTURES, len(source))))
            feature = {"path": tf.io.FixedLenFeature([], tf.string)}
            values = tf.io.parse_example(tf.constant(part), feature)["path"].numpy()
            found += [value.decode() for value in values]
        return found


# === Preparing ===


@dataclass(frozen=True)
class Prepared:
    """Records that are whole, and the table of what they and the exam hold.

    Attributes:
        table: the records of a split are its rows, in their order.
        fingerprint: of all that decides what the records hold.
        builder: the TFDS builder that reads them.
        fresh: whether this call made them.
    """

    table: Table
    fingerprint: str
    builder: RecordsBuilder
    fresh: bool

    @property
    def near_duplicates(self) -> pd.DataFrame | None:
        """The pairs that `describe_pairs` gives; None where they were not asked for."""
        file = self.folder / NEAR_DUPLICATES
        return read_frame(file, ("first", "second"), ANEW) if file.is_file() else None

    @property
    def folder(self) -> Path:
        return Path(self.builder.data_dir)

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def reader(self, split: str) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
        """What reads encoded pictures by their place in a split.

        Args:
            split: train or selection.

        Returns:
            A function of a dataset of positions, int64 [], in any order; the n-th is the n-th of
            `table.rows(split)`. It gives (position int64 [], JPEG string []), in the order that
            was asked for, and reads no other records.
        """
        source = self.builder.read(split)

        def read(chunk: np.ndarray) -> np.ndarray:
            return np.asarray(source.__getitems__(chunk.tolist()), object)

        def load(chunk: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            examples = tf.ensure_shape(tf.numpy_function(read, [chunk], tf.string), [None])
            feature = {"image": tf.io.FixedLenFeature([], tf.string)}
            return chunk, tf.io.parse_example(examples, feature)["image"]

        return lambda positions: positions.batch(CHUNK).map(load, 2, deterministic=True).unbatch()


def default_records_dir(data_dir: Path) -> Path:
    return data_dir / "records"


def table_fingerprint(spec: DataSpec, merged: Table, drawn: Table, sizes: np.ndarray) -> str:
    """SHA-256 of all that decides what the records hold: CSVs, spec, options and picture files.

    Args:
        spec: for the options of the records.
        merged: of the CSVs.
        drawn: what is drawn of it, near-duplicates included.
        sizes: int64 [rows of merged], of the files in bytes; -1 where there is none.
    """
    found = hashlib.sha256()
    options = [VERSION, shorter_side_px(spec), spec.records.quality, list(merged.classes.items())]
    if spec.exclude_near_duplicates:
        options += [CACHE_VERSION, MAX_DISTANCE]
    found.update(json.dumps(options).encode())
    for table in (merged, drawn):
        found.update("\n".join(table.paths).encode() + "\n".join(table.splits).encode())
        found.update(table.labels.astype("<i4").tobytes())
    found.update(sizes.astype("<i8").tobytes())
    return found.hexdigest()


def prepare(
    spec: DataSpec,
    data_dir: Path,
    records_dir: Path | None = None,
    *,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
    check: Callable[[str], None] | None = None,
    remedy: str = REMEDY,
    allow: str = ALLOW,
    tell: Callable[[str], None] = print,
    progress: bool = True,
) -> Prepared:
    """The records of a data set: those that fit, or new ones.

    Args:
        spec: with the flags' overrides.
        data_dir: what the spec's paths start at.
        records_dir: where records lie; None: `records` in data_dir.
        beam_runner: name of a runner that makes them as a Beam pipeline; None: this process does.
        beam_options: Beam's own, `name=value` each.
        check: told the fingerprint before anything is made; may raise.
        remedy, allow: what the command's user can do where images are missing, as of
            `refuse_missing`.
        tell: shows a line.
        progress: show a bar on a terminal.

    Raises:
        InputError: what is wrong with the data or the folder; nothing half-written stays.
        DiskError: there is no room for them; nothing half-written stays.
    """
    records_dir = records_dir or default_records_dir(data_dir)
    merged, image_dir = merge_tables(spec, data_dir), data_dir / spec.images
    if not image_dir.is_dir():
        raise InputError(f"{image_dir}: there is no such folder of pictures")
    sizes = picture_sizes(merged.paths, image_dir)
    present = merged.drop(sizes < 0, MISSING_FILE)
    refuse = functools.partial(
        refuse_missing,
        total=len(merged),
        image_dir=image_dir,
        max_missing=spec.max_missing,
        remedy=remedy,
        allow=allow,
    )
    refuse(present.left_out_frame())
    fingerprint = table_fingerprint(spec, merged, draw_table(spec, present), sizes)
    if check:
        check(fingerprint)
    open_builder = functools.partial(
        _open_builder,
        spec,
        image_dir=image_dir,
        fingerprint=fingerprint,
        records_dir=records_dir,
        progress=progress,
    )
    fresh = False
    if not is_whole(open_builder(present)):
        options = _beam_options(beam_runner, beam_options)
        check_writable(records_dir, flag="--records_dir")
        fresh = _make(spec, open_builder, present, options, tell)
    builder = open_builder(present)
    left_out = read_frame(
        Path(builder.data_path) / LEFT_OUT,
        ("path", "reason"),
        ANEW,
        dtype=str,
        keep_default_na=False,
    )
    table = draw_without(spec, merged, left_out)
    refuse(unusable(table.left_out_frame()))
    if not len(table.rows(TRAIN)):
        raise InputError(f"{image_dir}: no picture of the training side can be read")
    return Prepared(table, fingerprint, builder, fresh)


def _open_builder(spec: DataSpec, table: Table, **options: Any) -> RecordsBuilder:
    """RecordsBuilder; InputError where what TFDS wrote of the records is broken."""
    try:
        return RecordsBuilder(spec, table, **options)
    except (json_format.ParseError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        folder = options["records_dir"] / RecordsBuilder.name
        name = f"{spec.name}-{options['fingerprint'][:12]}"
        raise InputError(f"{folder / name}: cannot be read back ({reason}); {ANEW}") from None


def describe_table(table: Table) -> list[str]:
    """What there is to train on and to be examined by, and what was left out; for a console."""
    lines = [f"  {note}" for note in table.notes]
    if table.left_out:
        lines.append(
            f"  pictures left out: {count_reasons(table.left_out.values())} (left_out.csv)"
        )
    lines += [f"  {task}: {NO_TEST_SET}" for task in table.without_test]
    for task in table.tasks:
        labels = table.labels_of(task, TRAIN)
        absent = len(table.classes[task]) - len(np.unique(labels))
        if len(table.classes[task]) == 1:
            lines.append(f"  {task}: has one class, so that there is nothing to tell apart")
        if absent:
            lines.append(f"  {task}: {absent} classes have no example in training")
    held_out = {task: len(table.labels_of(task, SELECTION)) for task in table.tasks}
    if few := [f"{task} {n}" for task, n in held_out.items() if 0 < n < FEWEST_EXAMPLES]:
        lines.append(
            f"  few validation images ({', '.join(few)}): which epoch is the best is partly chance"
        )
    return ["", "Images and labels", table.counts().to_string(), *lines]


def hash_cache(spec: DataSpec, records_dir: Path) -> Path:
    """Where the hashes of a data set's pictures are kept."""
    return records_dir / f"hashes_{spec.name}.npz"


def near_pairs(table: Table, image_dir: Path, cache: Path) -> pd.DataFrame:
    """`find_pairs` of a table's pictures, hashed now or before."""
    hashes, unread = scan_pictures(table.paths, image_dir, cache=cache)
    usable = np.ones(len(table), bool)
    usable[list(unread)] = False
    return find_pairs(hashes, usable)


def is_whole(builder: RecordsBuilder) -> bool:
    """Whether the folder holds all that was written into it."""
    folder, splits = Path(builder.data_dir), builder.info.splits.values()
    if not (folder / LEFT_OUT).is_file() or not splits:
        return False
    try:
        return all(
            sum(Path(file).stat().st_size for file in split.filepaths) == split.num_bytes
            for split in splits
        )
    except OSError:
        return False


def _make(
    spec: DataSpec,
    open_builder: Callable[[Table], RecordsBuilder],
    present: Table,
    options: dict,
    tell: Callable[[str], None],
) -> bool:
    """New records; False where another process made them in the meantime."""
    folder = Path(open_builder(present).data_dir)
    above = folder.parent.parent
    above.mkdir(parents=True, exist_ok=True)
    waiting = f"Another process is preparing these records ({folder.parent}); waiting for it …"
    with locked(above / f".{folder.parent.name}.lock", lambda: tell(waiting)):
        if is_whole(open_builder(present)):
            return False
        if folder.parent.exists():  # left by a process that was killed
            shutil.rmtree(folder.parent)
        builder = open_builder(draw_table(spec, present))
        count = int((builder.table.splits != VAL).sum())
        shorter_px = shorter_side_px(spec)
        needed = count * shorter_px**2 * BYTES_A_PIXEL
        again = f"or name another folder with --records_dir, {AGAIN}"
        check_room(above, needed, what=f"{count:,} images", again=again)
        tell(
            f"Preparing {count:,} pictures (shorter side at most {shorter_px} px, about "
            f"{size_text(needed)}) in {folder.parent} …"
        )
        if spec.exclude_near_duplicates:
            pairs = near_pairs(present, builder.image_dir, hash_cache(spec, above.parent))
            gone = present.find(training_side(present, pairs))
            builder = open_builder(
                draw_table(spec, present.drop(gone, NEAR_DUPLICATE)),
                near_duplicates=describe_pairs(present, pairs),
            )
        with writing(above, again=again):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False, **options)
            )
    return True


def _beam_options(runner: str | None, options: Sequence[str]) -> dict:
    """What TFDS' DownloadConfig takes; nothing without a runner."""
    if runner is None:
        if options:
            raise InputError("--beam_options: is for --beam_runner alone")
        return {}
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners import create_runner
    except ImportError:
        raise InputError(f"--beam_runner: needs Apache Beam: {install('beam')}") from None
    # Beam logs each error with its traceback before it raises it.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise InputError(f"--beam_runner: {runner!r}: {error}") from None
    flags = [f"--{option.strip().lstrip('-')}" for option in options if option.strip()]
    return {"beam_runner": runner, "beam_options": PipelineOptions(flags)}
