"""Records of the training images: prepared once per spec and state of the data, then reused."""

import functools
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import json_format

from multitask.bootstrap import FEWEST_EXAMPLES
from multitask.data.conversion import conversions_logged
from multitask.data.image_files import (
    count_reasons,
    image_sizes,
    read_frame,
    refuse_missing,
    unusable,
)
from multitask.data.merging import merge_tables
from multitask.data.near_duplicates import (
    CACHE_VERSION,
    MAX_DISTANCE,
    exclude_near_duplicates,
    hash_cache,
)
from multitask.data.records_builder import (
    EXCLUDED,
    NEAR_DUPLICATES,
    VERSION,
    RecordsBuilder,
    config_name,
    default_records_dir,
)
from multitask.data.split_column import class_counts, describe_class_counts
from multitask.data.table import (
    MISSING_FILE,
    TEST,
    TRAIN,
    VALIDATION,
    Table,
    sample_table,
    sample_without,
)
from multitask.disk import RETRY_HINT, check_room, size_text, writing
from multitask.errors import counted
from multitask.files import check_image_folder, check_writable, locked
from multitask.reading import check_regular
from multitask.spec import MISSING, NO_TEST_SET, DataSpec, InputError, install

logger = logging.getLogger(__name__)

CHUNK = 64  # records that one call reads
BYTES_PER_PIXEL = 0.4  # a generous bound for a painting as JPEG of quality 92
REMEDY = "Put the images there"
ALLOW = "allow them to be missing with `max_missing={share}`"
_OLDER_VERSION = re.compile(rf"(?!{re.escape(VERSION)})\d+\.\d+\.\d+")
ANEW = "remove its folder, and the records are prepared again"


@dataclass(frozen=True)
class PreparedData:
    """Complete records, and the table of the images in them and in the test set.

    Attributes:
        table: the records of a split are its rows, in the same order.
        fingerprint: hash of everything that determines the content of the records.
        builder: the TFDS builder that reads them.
        merged: the table before any image was excluded or sampled.
        fresh: whether this call made the records.
    """

    table: Table
    fingerprint: str
    builder: RecordsBuilder
    merged: Table
    fresh: bool

    @property
    def near_duplicates(self) -> pd.DataFrame | None:
        """The pairs of `describe_pairs`; None where the spec does not exclude near-duplicates."""
        file = self.folder / NEAR_DUPLICATES
        return read_frame(file, ("first", "second"), ANEW) if file.is_file() else None

    @property
    def folder(self) -> Path:
        """The folder of the records."""
        return Path(self.builder.data_dir)

    @property
    def size_bytes(self) -> int:
        """The size of all files in the folder."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def reader(self, split: str) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
        """Make a function that reads encoded images by their position in a split.

        Args:
            split: train or validation.

        Returns:
            A function from a dataset of positions, int64 [], in any order, to a dataset of
            (position int64 [], JPEG string []) in the same order. Position n is that of
            `table.rows(split)[n]`. No other records are read.
        """
        source = self.builder.read(split)

        def read(chunk: np.ndarray) -> np.ndarray:
            return np.asarray(source.__getitems__(chunk.tolist()), object)

        def load(chunk: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            examples = tf.ensure_shape(tf.numpy_function(read, [chunk], tf.string), [None])
            feature = {"image": tf.io.FixedLenFeature([], tf.string)}
            return chunk, tf.io.parse_example(examples, feature)["image"]

        return lambda positions: positions.batch(CHUNK).map(load, 2, deterministic=True).unbatch()


def table_fingerprint(spec: DataSpec, merged: Table, sampled: Table, sizes: np.ndarray) -> str:
    """Hash (SHA-256) everything that determines the records: CSVs, spec, options, image files.

    Args:
        spec: the options of the records are read from it.
        merged: the table of the CSVs.
        sampled: the sample of it, near-duplicates included.
        sizes: int64 [rows of merged], sizes of the files in bytes; -1 where there is no file.
    """
    # Labels from the paths follow from them.
    merged, sampled = (table.of_tasks(spec.listing_tasks) for table in (merged, sampled))
    digest = hashlib.sha256()
    options = [VERSION, spec.reduced_px, spec.records.quality, list(merged.classes.items())]
    if spec.exclude_near_duplicates:
        options += [CACHE_VERSION, MAX_DISTANCE]
    if spec.convert_profiles:
        options.append("color profiles")
    digest.update(json.dumps(options).encode())
    for table in (merged, sampled):
        digest.update("\n".join(table.paths).encode() + "\n".join(table.splits).encode())
        digest.update(np.maximum(table.labels, MISSING).astype("<i4").tobytes())
    digest.update(sizes.astype("<i8").tobytes())
    return digest.hexdigest()


# === Preparing ===


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
    progress: bool = True,
) -> PreparedData:
    """Return the records of a data set: existing ones if they match, otherwise new ones.

    Args:
        spec: the spec, with the overrides of the flags.
        data_dir: the folder that the spec's paths start at.
        records_dir: the folder of all records; None: `records` in data_dir.
        beam_runner: name of a Beam runner to prepare them with; None: this process does it.
        beam_options: options of Beam itself, each as `name=value`.
        check: called with the fingerprint before any record is made; may raise.
        remedy: what the user can do where images are missing, as for `refuse_missing`.
        allow: how the user can allow missing images, as for `refuse_missing`.
        progress: show a bar on a terminal.

    Raises:
        InputError: the data or the folder is wrong; no incomplete records remain.
        DiskError: the disk has no room for the records; no incomplete records remain.
    """
    records_dir = records_dir or default_records_dir(data_dir)
    merged, image_dir = merge_tables(spec, data_dir), data_dir / spec.images
    check_image_folder(image_dir, field=spec.place(None, "images"))
    sizes = image_sizes(merged.paths, image_dir)
    present = merged.drop(sizes < 0, MISSING_FILE)
    if spec.table is not None and remedy == REMEDY:
        remedy += ", or name their folder (images)"
    refuse = functools.partial(
        refuse_missing, total=len(merged), image_dir=image_dir, max_missing=spec.max_missing,
        remedy=remedy, allow=allow,
    )  # fmt: skip
    refuse(present.excluded_frame())
    fingerprint = table_fingerprint(spec, merged, sample_table(spec, present), sizes)
    if check:
        check(fingerprint)
    open_builder = functools.partial(
        _open_builder, spec, image_dir=image_dir, fingerprint=fingerprint,
        records_dir=records_dir, progress=progress,
    )  # fmt: skip
    fresh = False
    if not is_whole(open_builder(present)):
        options = _beam_options(beam_runner, beam_options)
        check_writable(records_dir, field="records_dir")
        fresh = _make(spec, open_builder, present, options)
    builder = open_builder(present)
    table = sample_without(spec, merged, _read_excluded(Path(builder.data_path)))
    refuse(unusable(table.excluded_frame()))
    if not len(table.rows(TRAIN)):
        raise InputError(f"{image_dir}: no training image can be read")
    return PreparedData(table, fingerprint, builder, merged, fresh)


def _read_excluded(folder: Path) -> pd.DataFrame:
    return read_frame(folder / EXCLUDED, ("path", "reason"), ANEW, dtype=str, keep_default_na=False)


def _open_builder(
    spec: DataSpec, table: Table, *, fingerprint: str, records_dir: Path, **options: Any
) -> RecordsBuilder:
    """Create a RecordsBuilder; InputError where TFDS cannot read the existing records."""
    folder = records_dir / RecordsBuilder.name / config_name(spec, fingerprint)
    try:
        if (folder / VERSION).is_dir():
            check_regular(folder / VERSION)  # TFDS would wait for a named pipe forever
    except FileNotFoundError:  # another process has removed or renamed a file
        pass
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}; {ANEW}") from None
    try:
        return RecordsBuilder(
            spec, table, fingerprint=fingerprint, records_dir=records_dir, **options
        )
    except (json_format.ParseError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{folder}: cannot be read back ({reason}); {ANEW}") from None


def is_whole(builder: RecordsBuilder) -> bool:
    """Whether the folder has every file of the records, each in full size."""
    folder, splits = Path(builder.data_dir), builder.info.splits.values()
    if not (folder / EXCLUDED).is_file() or not splits:
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
    open_builder: Callable[..., RecordsBuilder],
    present: Table,
    options: dict[str, Any],
) -> bool:
    """Make new records; False where another process made them in the meantime."""
    folder = Path(open_builder(present).data_dir)
    above = folder.parent.parent
    above.mkdir(parents=True, exist_ok=True)
    waiting = f"Another process is preparing these records ({folder.parent}); waiting for it …"
    with locked(above / f".{folder.parent.name}.lock", lambda: logger.info(waiting)):
        if is_whole(open_builder(present)):
            return False
        if folder.parent.exists():  # left by a process that was killed
            shutil.rmtree(folder.parent)
        _report_older_records(spec, above)
        builder = open_builder(sample_table(spec, present))
        count = int((builder.table.splits != TEST).sum())
        shorter_px = spec.reduced_px
        needed = count * shorter_px**2 * BYTES_PER_PIXEL
        again = f"or name another folder with `records_dir`, {RETRY_HINT}"
        images = counted(count, "image")
        check_room(above, needed, what=images, retry_hint=again)
        logger.info(
            f"Preparing {images} (shorter side at most {shorter_px} px, about "
            f"{size_text(needed)}) in {folder.parent} …"
        )
        if spec.exclude_near_duplicates:
            cache = hash_cache(spec, above.parent)
            kept, pairs = exclude_near_duplicates(present, builder.image_dir, cache)
            builder = open_builder(sample_table(spec, kept), near_duplicates=pairs)
        with writing(above, retry_hint=again), conversions_logged():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False, **options)
            )
    return True


def _report_older_records(spec: DataSpec, above: Path) -> None:
    """Log the folders of a spec's records that an older version of this program made."""
    older = sorted(
        str(folder)
        for folder in above.iterdir()
        if folder.name.startswith(f"{spec.name}-")
        and any(_OLDER_VERSION.fullmatch(path.name) for path in folder.glob("*"))
    )
    if older:
        logger.info(
            f"Not used: {counted(len(older), 'folder')} of records that an older version of this "
            f"program made (first: {older[0]}); remove them to free their space"
        )


def _beam_options(runner: str | None, options: Sequence[str]) -> dict[str, Any]:
    """Return the arguments for TFDS' DownloadConfig; none without a runner."""
    if runner is None:
        if options:
            raise InputError("needs `beam_runner`", field="beam_options")
        return {}
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners import create_runner
    except ImportError:
        raise InputError(f"needs Apache Beam: {install('beam')}", field="beam_runner") from None
    # Beam logs each error with its traceback before it raises it.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise InputError(f"{runner!r}: {error}", field="beam_runner") from None
    flags = [f"--{option.strip().lstrip('-')}" for option in options if option.strip()]
    return {"beam_runner": runner, "beam_options": PipelineOptions(flags)}


# === Description ===


def describe_table(table: Table) -> list[str]:
    """Describe the images and labels to train and evaluate on, and the excluded images."""
    lines = [f"  {note}" for note in table.notes]
    if table.excluded:
        lines.append(f"  excluded images: {count_reasons(table.excluded.values())} ({EXCLUDED})")
    if table.units is not None:  # a collection, whose splits may be drawn here
        counts = class_counts(table.classes, table.labels, table.splits)
        lines += [f"  {line}" for line in describe_class_counts(counts)]
    lines += [f"  {task}: {NO_TEST_SET}" for task in table.without_test]
    for task in table.tasks:
        labels = table.labels_of(task, TRAIN)
        absent = len(table.classes[task]) - len(np.unique(labels))
        if len(table.classes[task]) == 1:
            lines.append(f"  {task}: has a single class, so there is nothing to distinguish")
        if absent:
            lines.append(f"  {task}: {absent} classes have no example in training")
    validation = {task: len(table.labels_of(task, VALIDATION)) for task in table.tasks}
    if few := [f"{task} {n}" for task, n in validation.items() if 0 < n < FEWEST_EXAMPLES]:
        lines.append(
            f"  few validation images ({', '.join(few)}): the choice of the best epoch is partly "
            "chance"
        )
    return ["", "Images and labels", table.counts().to_string(), *lines]
