"""The order of an epoch's rows, and the part of each batch that one process reads."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from multitask.data.table import Table


@dataclass(frozen=True)
class Shard:
    """The part of each batch that one process reads.

    Attributes:
        index: number of the process, from 0.
        count: number of processes.
        devices: number of devices of all processes; each gets an equal part of a batch.
    """

    index: int = 0
    count: int = 1
    devices: int = 1


UNSHARDED = Shard()


def batch_places(rows: int, batch_size: int, shard: Shard = UNSHARDED) -> np.ndarray:
    """Compute the places of an epoch that one process reads, `batch_size / shard.count` per batch.

    Over all processes, each place below `rows` occurs once, in the same batch as with a single
    process. If the size of the last batch is not a multiple of the devices, places from `rows` on
    fill it up. They stand for no row, and the caller must not give them a label.

    Returns:
        int64 [places].
    """
    rest = rows % batch_size
    filled = -(-rest // shard.devices) * shard.devices
    full, last = np.split(np.arange(rows - rest + filled), [rows - rest])
    full = full.reshape(-1, shard.count, batch_size // shard.count)[:, shard.index]
    return np.concatenate([full.ravel(), last.reshape(shard.count, -1)[shard.index]])


def epoch_key(seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Return the int32 [2] key of all random numbers of an epoch."""
    return tf.stack([tf.constant(seed, tf.int32), tf.cast(epoch, tf.int32)])


def epoch_order(count: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Shuffle the rows of an epoch: int32 [count], each row once.

    `index_shuffle` is no alternative: with its four rounds, neighbours in the table (which have
    the same class) stay together, and batches are far from a random sample.
    """
    return tf.random.experimental.stateless_shuffle(tf.range(count), epoch_key(seed, epoch))


class RowOrder:
    """The rows of an epoch and their order: each row once, in a new random order each epoch.

    A sampler is a subclass that overrides the methods.

    Attributes:
        repeats: whether an epoch may have a row more than once.
    """

    repeats = False

    def epoch_rows(self, labels: np.ndarray, seed: int) -> Callable[[tf.Tensor], tf.Tensor]:
        """Make a function from an epoch's number to its rows, int32 [rows].

        Args:
            labels: int [rows, tasks] of the training split; MISSING where a task has no label.
            seed: the seed of the spec.
        """
        return lambda epoch: epoch_order(len(labels), seed, epoch)

    def describe(self, table: Table) -> list[str]:
        """Return lines for the console; none for the plain order."""
        return []


SHUFFLED = RowOrder()
