"""Read records as tf.data of (image, {task: label}, {task: weight}), reproducible by the seed.

A training dataset repeats epochs without end. The order of the images, their augmentation and
the transform of a batch depend only on seed, epoch and row or step, so that a run can start at any
step of any epoch and get the batches of an uninterrupted run. Every other dataset reads each row
once, in order.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from multitask.data.augment import augment_image, image_policies
from multitask.data.decode import decode_image, resize_image
from multitask.data.image_files import bytes_function, map_files, read_encoded
from multitask.data.order import SHUFFLED, UNSHARDED, RowOrder, Shard, batch_places, epoch_key
from multitask.data.records import PreparedData
from multitask.data.records_builder import decode_record
from multitask.data.table import TRAIN, Table
from multitask.prefetch import prefetched
from multitask.spec import MISSING, DataSpec, is_labelled

# (images, labels [batch, tasks], seed) -> (images, labels [batch, tasks, …], weights)
Transform = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


def steps_per_epoch(table: Table, spec: DataSpec, split: str = TRAIN) -> int:
    """Return the number of batches of one pass over a split; the last may be smaller."""
    return -(-len(table.rows(split)) // spec.batch_size)


def file_names(table: Table, rows: np.ndarray, image_dir: Path) -> list[str]:
    """Return the paths of the rows' image files."""
    return [str(image_dir / path) for path in table.paths[rows]]


def load_image(
    file_name: tf.Tensor, *, size_px: int, how: str, reduced_px: int | None = None
) -> tf.Tensor:
    """Load an image file as float32 [size_px, size_px, 3] in 0..255, not augmented."""
    target_px = reduced_px or size_px
    image = decode_image(read_encoded(file_name, target_px=target_px), target_px=target_px)
    return resize_image(image, size_px=size_px, how=how, reduced_px=reduced_px)


def targets(
    labels: tf.Tensor, tasks: tuple[str, ...]
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Split int32 [batch, tasks] into {task: label}, {task: weight}."""
    return _by_task(tasks, labels), _by_task(tasks, _weights(labels))


def _weights(labels: tf.Tensor) -> tf.Tensor:
    """Return the labels' weights: float32, 0 or 1 (rule 10)."""
    return tf.cast(is_labelled(labels), tf.float32)


def _by_task(tasks: tuple[str, ...], values: tf.Tensor) -> dict[str, tf.Tensor]:
    """Split [batch, tasks, …] into {task: [batch, …]}."""
    return dict(zip(tasks, tf.unstack(values, len(tasks), axis=1), strict=True))


def training_dataset(
    prepared: PreparedData,
    spec: DataSpec,
    *,
    first_epoch: int = 0,
    first_step: int = 0,
    shard: Shard = UNSHARDED,
    order: RowOrder = SHUFFLED,
    transform: Transform | None = None,
) -> tf.data.Dataset:
    """Make endless augmented, shuffled batches of the training split, from a given step on.

    Args:
        prepared: its records of the split `train` are used.
        spec: image size, batch size, seed and the tasks' augmentation.
        first_epoch: the epoch to start in, counted over both phases.
        first_step: the step of that epoch to start at; images of earlier steps are not read.
        shard: the part of each batch that is read here.
        order: the rows of an epoch and their order.
        transform: applied to each batch with a separate seed; None: batches are not changed.

    Returns:
        Batches of image float32 [batch, size, size, 3] in 0..255, {task: int32 [batch]} and
        {task: float32 [batch]}; a transform may change the shapes of labels and weights. The last
        batch of an epoch may be smaller.
    """
    table = prepared.table
    all_labels = table.labels[table.rows(TRAIN)]
    rows_of, count = order.epoch_rows(all_labels, spec.seed), len(all_labels)
    every_place = tf.constant(batch_places(count, spec.batch_size, shard))
    batch_size = _local(spec, shard)
    load, read = _augmenting(prepared, spec), prepared.reader(TRAIN)

    def load_place(epoch: tf.Tensor, place: tf.Tensor, row: tf.Tensor, encoded: tf.Tensor) -> tuple:
        # If rows repeat, each occurrence needs its own augmentation: the place is the key.
        image, labels = load(epoch, place if order.repeats else row, row, encoded)
        return image, tf.where(place < count, labels, MISSING)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        step = tf.where(epoch == first_epoch, tf.constant(first_step, tf.int64), 0)
        places = every_place[step * batch_size :]
        rows = tf.cast(tf.gather(rows_of(epoch), tf.minimum(places, count - 1)), tf.int64)
        examples = tf.data.Dataset.zip(
            tf.data.Dataset.from_tensor_slices(places),
            read(tf.data.Dataset.from_tensor_slices(rows)),
        )
        examples = examples.map(
            lambda place, example: load_place(epoch, place, example[0], example[1]),
            tf.data.AUTOTUNE,
            deterministic=True,
        )
        return transformed(examples.batch(batch_size), transform, spec, shard, epoch, step)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    batches = epochs.flat_map(one_epoch)
    return by_task(batches, table.tasks).prefetch(2)


def by_task(batches: tf.data.Dataset, tasks: tuple[str, ...]) -> tf.data.Dataset:
    """Split labels and weights, each [batch, tasks, …], into {task: [batch, …]}."""
    return batches.map(
        lambda images, labels, weights: (images, _by_task(tasks, labels), _by_task(tasks, weights))
    )


def transformed(
    batches: tf.data.Dataset,
    transform: Transform | None,
    spec: DataSpec,
    shard: Shard,
    epoch: tf.Tensor,
    first_step: tf.Tensor,
) -> tf.data.Dataset:
    """Transform an epoch's batches of (images, labels) to (images, labels, weights)."""
    if transform is None:
        return batches.map(lambda images, labels: (images, labels, _weights(labels)))

    def apply(step: tf.Tensor, batch: tuple) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # Augmentation keys are row numbers, never negative, so a negative key is distinct.
        seed = epoch_key(spec.seed, epoch)
        for number in (tf.constant(-1 - shard.index, tf.int64), step):
            seed = tf.random.experimental.stateless_fold_in(seed, number)
        images, labels = batch
        return transform(images, labels, seed)

    return batches.enumerate(first_step).map(apply, tf.data.AUTOTUNE, deterministic=True)


def _augmenting(prepared: PreparedData, spec: DataSpec) -> Callable:
    """Make a function: (epoch, number that keys the augmentation, row, JPEG) -> (image, labels)."""
    table = prepared.table
    all_labels = table.labels[table.rows(TRAIN)]
    main = spec.without_auxiliary().tasks
    of_main = table.of_tasks(spec.main_tasks).labels[table.rows(TRAIN)]
    policies, policy_of = image_policies(of_main, [task.augment for task in main])
    labels, policies, policy_of = map(tf.constant, (all_labels, policies, policy_of))

    def load(epoch: tf.Tensor, number: tf.Tensor, row: tf.Tensor, encoded: tf.Tensor) -> tuple:
        image = decode_record(encoded)
        seed = tf.random.experimental.stateless_fold_in(epoch_key(spec.seed, epoch), number)
        image = augment_image(
            image, policies[policy_of[row]], seed, size_px=spec.image_size, how=spec.resize
        )
        return image, labels[row]

    return load


def view_dataset(
    prepared: PreparedData,
    spec: DataSpec,
    *,
    split: str,
    batch_size: int,
    view: int = 0,
    rows: np.ndarray | None = None,
    autotune: bool = True,
) -> tf.data.Dataset:
    """Make batches of images without labels, in the order of a split's rows.

    Args:
        prepared: its records are read.
        spec: image size, seed and the tasks' augmentation.
        split: train or validation.
        batch_size: the last batch may be smaller.
        view: 0: plain; v > 0: augmented as in epoch v - 1 of `training_dataset` (train only).
        rows: int64 [n], rows of the split; None: all.
        autotune: let tf.data choose the parallelism; not next to a library that uses all cores.
    """
    if view:
        augmented, epoch = _augmenting(prepared, spec), tf.constant(view - 1, tf.int64)

        def load(row: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
            return augmented(epoch, row, row, encoded)[0]
    else:

        def load(row: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
            return resize_image(decode_record(encoded), size_px=spec.image_size, how=spec.resize)

    if rows is None:
        rows = np.arange(len(prepared.table.rows(split)))
    examples = prepared.reader(split)(tf.data.Dataset.from_tensor_slices(rows))
    # Without autotuning, AUTOTUNE would be a single thread.
    calls = tf.data.AUTOTUNE if autotune else os.cpu_count()
    examples = examples.map(load, calls, deterministic=True)
    batches = examples.batch(batch_size).prefetch(2)
    return batches if autotune else _without_autotuning(batches)


def evaluation_dataset(
    prepared: PreparedData, spec: DataSpec, *, split: str, shard: Shard = UNSHARDED
) -> tf.data.Dataset:
    """Make plain batches of the records of a split, in the order of its rows, each row once.

    The elements have the form of those of `training_dataset`.
    """
    table, batch_size = prepared.table, _local(spec, shard)
    rows, labels = sharded_labels(table.labels[table.rows(split)], spec, shard)
    images = view_dataset(prepared, spec, split=split, batch_size=batch_size, rows=rows)
    labels = tf.data.Dataset.from_tensor_slices(labels).batch(batch_size)
    batches = tf.data.Dataset.zip(images, labels)
    batches = batches.map(lambda image, label: (image, *targets(label, table.tasks)))
    # Reading loses the length; without a length Keras warns at the end of the dataset.
    return batches.apply(
        tf.data.experimental.assert_cardinality(steps_per_epoch(table, spec, split))
    )


def sharded_labels(
    labels: np.ndarray, spec: DataSpec, shard: Shard
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a split that one process reads, in order, and their labels.

    A row that only fills up the last batch has the label MISSING.
    """
    places = batch_places(len(labels), spec.batch_size, shard)
    rows = np.minimum(places, len(labels) - 1)
    return rows, np.where((places < len(labels))[:, None], labels[rows], MISSING)


def _local(spec: DataSpec, shard: Shard) -> int:
    """Return how many images of a batch one process reads."""
    return spec.batch_size // shard.count


def readable_images(
    names: Sequence[str | bytes],
    *,
    size_px: int,
    how: str,
    batch_size: int,
    reduced_px: int | None = None,
    convert_profiles: bool = True,
) -> Iterator[tuple[np.ndarray, tf.Tensor]]:
    """Make batches of (index int64 [batch], image float32 [batch, size, size, 3]), in order.

    The arguments are those of `resize_image` and `as_readable`, as `DataSpec.reading` has them. A
    missing or unreadable image is skipped together with its index; `why_unreadable` returns the
    reason. A batch is read and put together while the caller works on the one before it.
    """
    images = map_files(
        names,
        _image_loader(size_px, how, reduced_px),
        target_px=reduced_px or size_px,
        convert_profiles=convert_profiles,
    )

    def batches() -> Iterator[tuple[np.ndarray, tf.Tensor]]:
        while batch := tuple(itertools.islice(images, batch_size)):
            indices, tensors = zip(*batch, strict=True)
            with tf.device("CPU:0"):
                stacked = tf.stack(tensors)
            yield np.asarray(indices, np.int64), stacked

    return prefetched(batches())


@functools.cache
def _image_loader(
    size_px: int, how: str, reduced_px: int | None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Make the function from an image file's bytes to float32 [size_px, size_px, 3]."""

    def load(data: tf.Tensor) -> tf.Tensor:
        image = decode_image(data, target_px=reduced_px or size_px)
        return resize_image(image, size_px=size_px, how=how, reduced_px=reduced_px)

    return bytes_function(load)


def _without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Read with fixed parallelism.

    Next to a library that uses all cores, autotuning takes up to two fifths of the whole time, and
    gains nothing.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
