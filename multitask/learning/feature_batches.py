"""Batches of cached features, as the input of training."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from multitask.data.order import SHUFFLED, UNSHARDED, RowOrder, Shard, batch_places
from multitask.data.pipeline import Transform, by_task, sharded_labels, targets, transformed
from multitask.spec import MISSING, DataSpec


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
        first_epoch: the epoch whose augmentation the first view has, the second view that of the
            next epoch, and so on; None: the first view is plain.
    """

    train: np.ndarray
    validation: np.ndarray
    views: int
    labels: np.ndarray
    validation_labels: np.ndarray
    extra: np.ndarray
    tasks: tuple[str, ...]
    first_epoch: int | None = None

    def training_dataset(
        self,
        spec: DataSpec,
        *,
        first_epoch: int = 0,
        first_step: int = 0,
        shard: Shard = UNSHARDED,
        order: RowOrder = SHUFFLED,
        transform: Transform | None = None,
    ) -> tf.data.Dataset:
        """Make endless shuffled batches of features, {task: label}, {task: weight}.

        The rows have the order of `data.pipeline.training_dataset`. Each epoch uses another view
        of an image, until all views have been used. Views of epochs are used in their epochs; a
        plain view would make an epoch's loss jump, so that each image has it in another epoch.
        `transform` changes each batch, as there.
        """
        rows = len(self.train) // self.views
        rows_of, count = order.epoch_rows(self.labels, spec.seed), len(self.labels)
        every_place = tf.constant(batch_places(count, spec.batch_size, shard))
        batch_size = spec.batch_size // shard.count
        if self.first_epoch is None:
            first_view = np.random.default_rng(spec.seed).integers(self.views, size=rows)
        else:
            first_view = np.full(rows, -self.first_epoch)

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
            step = tf.where(epoch == first_epoch, tf.constant(first_step, tf.int64), 0)
            places = every_place[step * batch_size :]
            chosen = tf.gather(rows_of(epoch), tf.minimum(places, count - 1))
            both = tf.data.Dataset.from_tensor_slices((places, chosen)).batch(batch_size)
            batches = both.map(lambda *both: load(epoch, *both), 2, deterministic=True)
            return transformed(batches, transform, spec, shard, epoch, step)

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        return by_task(epochs.flat_map(one_epoch), self.tasks).prefetch(4)

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
