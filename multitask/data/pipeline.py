"""Records -> tf.data of (image, {task: label}, {task: weight}); the same seed, the same batches.

Training goes through epochs without end; which picture comes when, how it is augmented, and what
it is mixed with, is a function of seed, epoch and row or step alone, so that a run can start at
any step of any epoch and see what an uninterrupted one saw. Everything else is read once, in the
order of its rows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from multitask.data.augment import augment_image, image_policies
from multitask.data.decode import decode_image, resize_image
from multitask.data.files import map_files, read_encoded
from multitask.data.mixing import build_mixing
from multitask.data.records import Prepared
from multitask.data.sampling import UNSHARDED, Shard, batch_places, epoch_key, epoch_rows
from multitask.data.table import TRAIN, Table
from multitask.spec import MISSING, DataSpec


def steps_per_epoch(table: Table, spec: DataSpec, split: str = TRAIN) -> int:
    """Batches that one pass over a split takes; the last may be smaller."""
    return -(-len(table.rows(split)) // spec.batch_size)


def file_names(table: Table, rows: np.ndarray, image_dir: Path) -> list[str]:
    return [str(image_dir / path) for path in table.paths[rows]]


def load_picture(file_name: tf.Tensor, *, size_px: int, how: str) -> tf.Tensor:
    """A file's name -> float32 [size_px, size_px, 3] in 0..255, not augmented."""
    image = decode_image(read_encoded(file_name), target_px=size_px)
    return resize_image(image, size_px=size_px, how=how)


def targets(labels: tf.Tensor, tasks: tuple[str, ...]) -> tuple[dict, dict]:
    """int32 [batch, tasks] -> {task: label}, {task: weight}."""
    return _by_task(tasks, labels, _weights(labels))


def _weights(labels: tf.Tensor) -> tf.Tensor:
    """float32, 0 or 1 (rule 10)."""
    return tf.cast(labels != MISSING, tf.float32)


def _by_task(tasks: tuple[str, ...], *values: tf.Tensor) -> tuple[dict[str, tf.Tensor], ...]:
    """Each [batch, tasks, …] -> {task: [batch, …]}."""
    return tuple(
        dict(zip(tasks, tf.unstack(value, len(tasks), axis=1), strict=True)) for value in values
    )


def training_dataset(
    prepared: Prepared,
    spec: DataSpec,
    *,
    first_epoch: int = 0,
    first_step: int = 0,
    shard: Shard = UNSHARDED,
) -> tf.data.Dataset:
    """Augmented, shuffled batches of the training split, from a step on, without end.

    Args:
        prepared: its records of the split `train` are used.
        spec: image size, batch size, seed and the tasks' augmentation.
        first_epoch: counted over both phases.
        first_step: of that epoch; the pictures of the steps before it are not read.
        shard: what of each batch is read here.

    Returns:
        Batches of image float32 [batch, size, size, 3] in 0..255, {task: int32 [batch]} and
        {task: float32 [batch]}. With `mix`, labels and weights are [batch, 2], as `mix_batch`
        says. An epoch is every row once, or with `sampler` as many draws; its last batch may be
        smaller.
    """
    table = prepared.table
    all_labels = table.labels[table.rows(TRAIN)]
    rows_of, count = epoch_rows(all_labels, spec), len(all_labels)
    every_place = tf.constant(batch_places(count, spec.batch_size, shard))
    batch_size = _local(spec, shard)
    mix = build_mixing(spec)
    load, read = _augmenting(prepared, spec), prepared.reader(TRAIN)

    def mixed(epoch: tf.Tensor, step: tf.Tensor, images: tf.Tensor, labels: tf.Tensor):
        # Below 0 is no row's number: what is drawn here is not what some augmentation drew.
        seed = epoch_key(spec.seed, epoch)
        for number in (tf.constant(-1 - shard.index, tf.int64), step):
            seed = tf.random.experimental.stateless_fold_in(seed, number)
        return mix(images, labels, seed)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        def load_place(place: tf.Tensor, found: tuple) -> tuple:
            # A row that is drawn twice is augmented twice, so by its place; otherwise by its row.
            image, labels = load(epoch, place if spec.sampler else found[0], *found)
            return image, tf.where(place < count, labels, MISSING)

        step = tf.where(epoch == first_epoch, tf.constant(first_step, tf.int64), 0)
        places = every_place[step * batch_size :]
        order = tf.cast(tf.gather(rows_of(epoch), tf.minimum(places, count - 1)), tf.int64)
        pictures = tf.data.Dataset.zip(
            tf.data.Dataset.from_tensor_slices(places),
            read(tf.data.Dataset.from_tensor_slices(order)),
        )
        pictures = pictures.map(load_place, tf.data.AUTOTUNE, deterministic=True)
        batches = pictures.batch(batch_size)
        if mix is None:
            return batches.map(lambda images, labels: (images, labels, _weights(labels)))
        batches = batches.enumerate(step).map(lambda step, batch: (epoch, step, *batch))
        return batches.map(mixed, tf.data.AUTOTUNE, deterministic=True)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    batches = epochs.flat_map(one_epoch)
    tasks = table.tasks
    return batches.map(lambda image, *both: (image, *_by_task(tasks, *both))).prefetch(2)


def _augmenting(prepared: Prepared, spec: DataSpec) -> Callable:
    """(epoch, number that its augmentation is drawn by, row, JPEG) -> (image, labels) of train."""
    table = prepared.table
    all_labels = table.labels[table.rows(TRAIN)]
    policies, policy_of = image_policies(all_labels, [t.augment for t in spec.tasks])
    labels, policies, policy_of = map(tf.constant, (all_labels, policies, policy_of))

    def load(epoch: tf.Tensor, number: tf.Tensor, row: tf.Tensor, picture: tf.Tensor):
        image = decode_image(picture, target_px=spec.image_size)
        seed = tf.random.experimental.stateless_fold_in(epoch_key(spec.seed, epoch), number)
        image = augment_image(
            image, policies[policy_of[row]], seed, size_px=spec.image_size, how=spec.resize
        )
        return image, labels[row]

    return load


def view_dataset(
    prepared: Prepared,
    spec: DataSpec,
    *,
    split: str,
    batch_size: int,
    view: int = 0,
    rows: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Batches of images alone, in the order of a split's rows.

    Args:
        prepared: its records are read.
        spec: image size, seed and the tasks' augmentation.
        split: train or selection.
        batch_size: the last may be smaller.
        view: 0: plain; v: augmented as `training_dataset` does it in epoch v - 1 (train alone).
        rows: int64, which of the split; None: all.
    """
    if view:
        augmented, epoch = _augmenting(prepared, spec), tf.constant(view - 1, tf.int64)

        def load(row: tf.Tensor, picture: tf.Tensor) -> tf.Tensor:
            return augmented(epoch, row, row, picture)[0]
    else:

        def load(row: tf.Tensor, picture: tf.Tensor) -> tf.Tensor:
            image = decode_image(picture, target_px=spec.image_size)
            return resize_image(image, size_px=spec.image_size, how=spec.resize)

    if rows is None:
        rows = np.arange(len(prepared.table.rows(split)))
    pictures = prepared.reader(split)(tf.data.Dataset.from_tensor_slices(rows))
    pictures = pictures.map(load, tf.data.AUTOTUNE, deterministic=True)
    return pictures.batch(batch_size).prefetch(2)


def evaluation_dataset(
    prepared: Prepared, spec: DataSpec, *, split: str, shard: Shard = UNSHARDED
) -> tf.data.Dataset:
    """Plain batches of the records of a split, in the order of its rows, each row once.

    Elements as `training_dataset` gives them.
    """
    table, batch_size = prepared.table, _local(spec, shard)
    rows, labels = sharded_labels(table.labels[table.rows(split)], spec, shard)
    images = view_dataset(prepared, spec, split=split, batch_size=batch_size, rows=rows)
    labels = tf.data.Dataset.from_tensor_slices(labels).batch(batch_size)
    batches = tf.data.Dataset.zip(images, labels)
    batches = batches.map(lambda image, label: (image, *targets(label, table.tasks)))
    # What is unknown behind a read; without it Keras warns of a dataset that ends.
    return batches.apply(
        tf.data.experimental.assert_cardinality(steps_per_epoch(table, spec, split))
    )


def sharded_labels(
    labels: np.ndarray, spec: DataSpec, shard: Shard
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that a process reads of a split in order, and their labels: MISSING where a row
    stands only to fill up the last batch."""
    places = batch_places(len(labels), spec.batch_size, shard)
    rows = np.minimum(places, len(labels) - 1)
    return rows, np.where((places < len(labels))[:, None], labels[rows], MISSING)


def _local(spec: DataSpec, shard: Shard) -> int:
    """Pictures of a batch that one process reads."""
    return spec.batch_size // shard.count


def readable_pictures(
    names: Sequence[str | bytes], *, size_px: int, how: str, batch_size: int
) -> tf.data.Dataset:
    """Batches of (index int64 [batch], image float32 [batch, size, size, 3]), in order.

    A picture that is missing or unreadable is left out, and so is its index; `why_unreadable`
    tells its reason.
    """

    def load(data: tf.Tensor) -> tf.Tensor:
        image = decode_image(data, target_px=size_px)
        return resize_image(image, size_px=size_px, how=how)

    # Tuning gains nothing here, and beside a runtime that takes all cores it costs at times two
    # fifths of the whole, for as long as the dataset is read.
    options = tf.data.Options()
    options.autotune.enabled = False
    return map_files(names, load).batch(batch_size).prefetch(2).with_options(options)
