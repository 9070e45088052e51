"""The frozen trunk's features of each image: computed once, kept on disk, used in training.

  RECORDS_DIR/features/{trunk}-{fingerprint}/
      train.npy          [views · rows, …]: view after view, each in the order of the rows
      validation.npy      [rows, …]
      done.json          how many rows of each split exist, and the library that computes them; a
                         stopped computation resumes there
      features.json      trunk, image size, shape, counts and library; written last

The first view is the plain image; view v is augmented as the uncached training augments it in
epoch v - 1. If every head pools the feature map, only the pooled vector of each image is kept
(1 / 49 of the size of the map at 224 px), otherwise the map.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from multitask.console import progress_bar
from multitask.data.order import SHUFFLED, UNSHARDED, RowOrder, Shard, batch_places
from multitask.data.pipeline import (
    readable_images,
    sharded_labels,
    targets,
    view_dataset,
)
from multitask.data.records import PreparedData
from multitask.data.table import TRAIN, VALIDATION
from multitask.disk import RETRY_HINT, check_room, reserve, size_text, writing
from multitask.files import locked, read_json, write_json
from multitask.learning.extensions import NO_EXTENSIONS, Extensions
from multitask.learning.placement import ONE_DEVICE, Placement
from multitask.model.inference import TENSORFLOW, Inference, fast_inference, is_usable
from multitask.model.network import connect_features, trunk_and_heads
from multitask.runtimes.libraries import AUTO, RUNTIMES
from multitask.spec import MISSING, DataSpec, InputError

logger = logging.getLogger(__name__)

VERSION = 1  # of how features are computed and stored
PROGRESS_FILE, FACTS_FILE = "done.json", "features.json"
RUNTIME = "runtime"  # of both
BATCH = 32  # of the trunk; not the batch size of the spec, because rounding depends on it
SAVE_EVERY_S = 10.0
OR_ELSE = f"name another --records_dir or give --cache_features=off, {RETRY_HINT}"


@dataclass(frozen=True)
class Features:
    """Cached features, and the labels that go with them.

    Attributes:
        train: [views · rows, …].
        validation: [rows, …].
        views: the number of views of each row in `train`.
        labels: int32 [rows + extra, tasks]; MISSING (-1) where a task has none.
        validation_labels: int32 [rows, tasks].
        extra: float32 [extra, …]: rows that an extension added.
        tasks: names of the tasks.
    """

    train: np.ndarray
    validation: np.ndarray
    views: int
    labels: np.ndarray
    validation_labels: np.ndarray
    extra: np.ndarray
    tasks: tuple[str, ...]

    def training_dataset(
        self,
        spec: DataSpec,
        *,
        first_epoch: int = 0,
        first_step: int = 0,
        shard: Shard = UNSHARDED,
        order: RowOrder = SHUFFLED,
    ) -> tf.data.Dataset:
        """Make endless shuffled batches of features, {task: label}, {task: weight}.

        The rows have the order of `data.pipeline.training_dataset`. Each epoch uses another view
        of an image, until all views have been used.
        """
        rows = len(self.train) // self.views
        rows_of, count = order.epoch_rows(self.labels, spec.seed), len(self.labels)
        every_place = tf.constant(batch_places(count, spec.batch_size, shard))
        batch_size = spec.batch_size // shard.count
        first_view = np.random.default_rng(spec.seed).integers(self.views, size=rows)

        def take(epoch: np.ndarray, chosen: np.ndarray) -> np.ndarray:
            real = chosen < rows
            place = chosen[real]
            batch = np.empty((len(chosen), *self.train.shape[1:]), np.float32)
            view = (first_view[place] + epoch) % self.views
            batch[real] = self.train[view * rows + place]
            batch[~real] = self.extra[chosen[~real] - rows]
            return batch

        def load(epoch: tf.Tensor, places: tf.Tensor, chosen: tf.Tensor) -> tuple:
            # Not stateful, so that calls need not wait for each other.
            batch = tf.numpy_function(take, [epoch, chosen], tf.float32, stateful=False)
            labels = tf.where((places < count)[:, None], tf.gather(self.labels, chosen), MISSING)
            return tf.ensure_shape(batch, (None, *self.train.shape[1:])), labels

        def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            places = every_place[tf.where(epoch == first_epoch, first_step * batch_size, 0) :]
            chosen = tf.gather(rows_of(epoch), tf.minimum(places, count - 1))
            both = tf.data.Dataset.from_tensor_slices((places, chosen)).batch(batch_size)
            return both.map(lambda *both: load(epoch, *both), 2, deterministic=True)

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        batches = epochs.flat_map(one_epoch)
        return batches.map(lambda x, y: (x, *targets(y, self.tasks))).prefetch(4)

    def validation_dataset(self, spec: DataSpec, *, shard: Shard = UNSHARDED) -> tf.data.Dataset:
        """Make batches of the validation split, in the order of its rows."""
        rows, labels = sharded_labels(self.validation_labels, spec, shard)
        batches = tf.data.Dataset.from_tensor_slices((rows, labels))
        batches = batches.batch(spec.batch_size // shard.count)

        def take(chosen: np.ndarray) -> np.ndarray:
            return self.validation[chosen].astype(np.float32)

        def load(chosen: tf.Tensor, labels: tf.Tensor) -> tuple:
            batch = tf.numpy_function(take, [chosen], tf.float32, stateful=False)
            batch = tf.ensure_shape(batch, (None, *self.validation.shape[1:]))
            return batch, *targets(labels, self.tasks)

        return batches.map(load, 2, deterministic=True).prefetch(4)


# === Whether to cache ===


def wants_cache(spec: DataSpec, extensions: Extensions = NO_EXTENSIONS) -> bool:
    """Decide whether the phase `heads` trains on cached features.

    `auto` caches if the trunk then runs less often (once instead of once per epoch), and if no
    batch of images is transformed.

    Raises:
        InputError: the options contradict each other.
    """
    options, epochs = spec.features, spec.phases.heads.epochs
    needed = options.views > 0 or extensions.extra_rows.adds
    if options.cache == "off":
        if needed:
            name = "views" if options.views else extensions.extra_rows.field
            place = spec.place(None, f"features.{name}")
            raise InputError(f'{place}: needs cached features, and cache is "off"')
        return False
    if extensions.batch_transform is not None:
        return False
    return epochs > 0 and (options.cache == "on" or needed or epochs > 1)


def feature_shape(network: keras.Model) -> tuple[int, ...]:
    """Return the shape of one image's features: pooled if no head needs the map."""
    return connect_features(trunk_and_heads(network)[1]).input_shape[1:]


# === Computing ===


def fingerprint(network: keras.Model, prepared: PreparedData, spec: DataSpec) -> str:
    """Compute the SHA-256 of everything that determines the features."""
    options = spec.features
    facts: dict[str, Any] = {
        "version": VERSION,
        "trunk": spec.trunk.name,
        "shape": feature_shape(network),
        "image_size": spec.image_size,
        "resize": spec.resize,
        "records": str(prepared.folder.parent.name),
        "views": options.views,
        "dtype": options.dtype,
        "computed_in": [spec.precision, keras.backend.backend()],
    }
    if options.runtime != AUTO:
        facts["runtime"] = options.runtime
    if options.views:
        augment = [task.augment.model_dump(mode="json") for task in spec.tasks]
        facts |= {"seed": spec.seed, "augment": augment, "tasks": spec.task_names}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for weight in trunk_and_heads(network)[0].get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def cache_features(
    network: keras.Model,
    prepared: PreparedData,
    spec: DataSpec,
    *,
    extensions: Extensions = NO_EXTENSIONS,
    placement: Placement = ONE_DEVICE,
) -> Features:
    """Run the trunk over the training and validation images, unless the cache is complete.

    Args:
        network: its trunk is used, in inference mode.
        prepared: the records that are read.
        spec: its options of `features`, image size, seed and augmentation are used.
        extensions: may add rows.
        placement: where the training runs.

    Raises:
        InputError: a value does not fit float16.
        DiskError: the disk is full; computed rows are kept, and the next call resumes there.
    """
    table, options = prepared.table, spec.features
    above = prepared.folder.parents[2] / "features"
    folder = above / f"{spec.trunk.name}-{fingerprint(network, prepared, spec)[:12]}"
    shape, views = feature_shape(network), 1 + options.views
    counts = {
        TRAIN: views * len(table.rows(TRAIN)),
        VALIDATION: len(table.rows(VALIDATION)),
    }
    above.mkdir(parents=True, exist_ok=True)
    waiting = f"Another process is computing these features ({folder}); waiting for it …"
    with locked(above / f".{folder.name}.lock", lambda: logger.info(waiting)):
        if not (folder / FACTS_FILE).is_file():
            with writing(above):
                done = _reserve(folder, spec, shape, counts)
                trunk = placement.local_copy(trunk_and_heads(network)[0])
                features = _feature_network(trunk, shape)
                runtime = _begun_in(folder) or options.runtime
                images = sum(counts.values())
                infer = fast_inference(features, runtime=runtime, images=images)
                _compute(infer, prepared, spec, folder, counts, done)
                facts = {"trunk": spec.trunk.name, "image_size": spec.image_size, "shape": shape}
                write_json(folder / FACTS_FILE, facts | {RUNTIME: infer.runtime} | counts)
    arrays = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in counts}
    logger.info(f"Features of the frozen trunk: {folder}")
    labels = table.labels[table.rows(TRAIN)]
    extra, extra_labels = extensions.extra_rows.make(arrays[TRAIN], labels)
    return Features(
        arrays[TRAIN],
        arrays[VALIDATION],
        views,
        np.concatenate([labels, extra_labels]),
        table.labels[table.rows(VALIDATION)],
        extra,
        table.tasks,
    )


def _reserve(
    folder: Path, spec: DataSpec, shape: tuple[int, ...], counts: dict[str, int]
) -> dict[str, int]:
    """Reserve disk space for the arrays; return how many rows of each split already exist."""
    dtype = np.dtype(spec.features.dtype)
    needed = sum(counts.values()) * int(np.prod(shape)) * dtype.itemsize
    begun = (folder / PROGRESS_FILE).is_file()
    done = _done_rows(folder, counts) if begun else dict.fromkeys(counts, 0)
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
        check_room(folder.parent, needed, what="features", retry_hint=OR_ELSE)
        folder.mkdir()
    try:
        for split, count in counts.items():
            path = folder / f"{split}.npy"
            if not begun:
                np.lib.format.open_memmap(path, "w+", dtype, (count, *shape)).flush()
            reserve(path, retry_hint=OR_ELSE)
    except OSError:
        if not begun:  # the files are empty, but occupy disk space
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shape_text = "×".join(map(str, shape))
    logger.info(
        f"Computing the frozen trunk's features, {shape_text} {dtype.name} per image: "
        f"{sum(counts.values()):,} in all, {size_text(needed)} in {folder}"
    )
    return done


def _done_rows(folder: Path, counts: dict[str, int]) -> dict[str, int]:
    """Read how many rows of each split are computed; 0 for all if the file is unusable."""
    nothing = dict.fromkeys(counts, 0)
    try:
        content = read_json(folder / PROGRESS_FILE)
        done = {split: int(content[split]) for split in counts}
    except (ValueError, KeyError, TypeError, OverflowError):
        return nothing
    return done if min(done.values()) >= 0 and _begun_in(folder) else nothing


def _begun_in(folder: Path) -> str | None:
    """Return the library that computed the rows so far; None if it cannot continue."""
    try:
        name = read_json(folder / PROGRESS_FILE).get(RUNTIME, TENSORFLOW)
    except (OSError, ValueError, AttributeError):
        return None
    return name if name in RUNTIMES and is_usable(name) else None


def _compute(
    infer: Inference,
    prepared: PreparedData,
    spec: DataSpec,
    folder: Path,
    counts: dict[str, int],
    done: dict[str, int],
) -> None:
    """Compute the missing rows; keep `done` up to date, in memory and on disk."""
    progress = {RUNTIME: infer.runtime}
    logger.info(f"The trunk runs in {RUNTIMES[infer.runtime].described}")
    with progress_bar("features", sum(counts.values()), initial=sum(done.values())) as bar:
        for split, count in counts.items():
            target = np.lib.format.open_memmap(folder / f"{split}.npy", "r+")
            saved = time.monotonic()
            missing = _missing_images(prepared, spec, split, done[split], count)
            for features in infer.map(missing):
                batch = _stored(features, target.dtype)
                target[done[split] : done[split] + len(batch)] = batch
                done[split] += len(batch)
                bar.update(len(batch))
                if time.monotonic() - saved > SAVE_EVERY_S:
                    target.flush()
                    write_json(folder / PROGRESS_FILE, progress | done)
                    saved = time.monotonic()
            target.flush()
            write_json(folder / PROGRESS_FILE, progress | done)


def _missing_images(
    prepared: PreparedData, spec: DataSpec, split: str, done: int, count: int
) -> Iterator[tf.Tensor]:
    """Yield batches of images of a split from row `done` of `count` on, view after view."""
    rows = len(prepared.table.rows(split))
    while done < count:
        view, first = divmod(done, rows)
        yield from view_dataset(
            prepared,
            spec,
            split=split,
            batch_size=BATCH,
            view=view,
            rows=np.arange(first, rows),
            autotune=False,
        )
        done += rows - first


def _stored(batch: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert a batch to the type of the cache; InputError where a value does not fit."""
    stored = batch.astype(dtype)
    if not np.isfinite(stored).all():
        raise InputError(
            f"{dtype.name}: features of up to {np.abs(batch).max():.3g} do not "
            "fit; give --feature_dtype=float32",
            field="features.dtype",
        )
    return stored


def _feature_network(trunk: keras.Model, shape: tuple[int, ...]) -> keras.Model:
    """Return the network from images to features of the shape: pooled, or the trunk's output."""
    features = trunk.outputs[0]
    if len(shape) == 1 < len(features.shape) - 1:
        features = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(trunk.inputs[0], features)


def file_features(network: keras.Model, names: list[str], spec: DataSpec) -> np.ndarray:
    """Compute the trunk's features of image files, such as test images, which have no records.

    Args:
        network: its trunk is used, in inference mode.
        names: of the files, all of them readable.
        spec: image size, resizing and the type of the features.

    Returns:
        [n, …], in the form that the cache holds.
    """
    infer = fast_inference(
        _feature_network(trunk_and_heads(network)[0], feature_shape(network)),
        runtime=spec.features.runtime,
        images=len(names),
    )
    batches = readable_images(names, **spec.reading, batch_size=BATCH)
    features = list(infer.map(images for _, images in batches))
    return np.concatenate(features).astype(spec.features.dtype)
