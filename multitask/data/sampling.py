"""The rows of an epoch: each of them once, or drawn so that rare classes come more often.

A new sampler is a function and a line in SAMPLERS: the labels and its options (its keyword-only
parameters) -> each row's chance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tensorflow as tf
from pydantic import Field

from multitask.data.table import TRAIN, Table
from multitask.spec import MISSING, DataSpec, check_kind

Power = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Shard:
    """What one process reads of each batch, where several share it.

    Attributes:
        index: of the process.
        count: processes.
        devices: of all processes together; each gets an equal part of a batch.
    """

    index: int = 0
    count: int = 1
    devices: int = 1


UNSHARDED = Shard()


def batch_places(rows: int, batch_size: int, shard: Shard = UNSHARDED) -> np.ndarray:
    """int64: the places of an epoch that a process reads, `batch_size / shard.count` a batch.

    Over all processes each place below `rows` comes once, in the batch in which a single process
    would have it. Where the last batch is no multiple of the devices, places from `rows` on fill
    it up; they stand for no row, and what is read there must have no label.
    """
    rest = rows % batch_size
    filled = -(-rest // shard.devices) * shard.devices
    full, last = np.split(np.arange(rows - rest + filled), [rows - rest])
    full = full.reshape(-1, shard.count, batch_size // shard.count)[:, shard.index]
    return np.concatenate([full.ravel(), last.reshape(shard.count, -1)[shard.index]])


def epoch_key(seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """int32 [2]: what everything that is drawn in an epoch is drawn from."""
    return tf.stack([tf.constant(seed, tf.int32), tf.cast(epoch, tf.int32)])


def epoch_order(count: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """int32 [count]: the rows in the order of an epoch, each once.

    Not `index_shuffle`: with its four rounds, neighbours in the table (which are of one style)
    stay together, and batches are far from a random draw.
    """
    return tf.random.experimental.stateless_shuffle(tf.range(count), epoch_key(seed, epoch))


def epoch_draw(chances: np.ndarray, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """int32 [rows]: as many rows as there are, drawn with replacement.

    Args:
        chances: float64 [rows], each row's, > 0; their sum is 1.
        seed: the spec's.
        epoch: counted over both phases; the same epoch draws the same rows.
    """
    # In float64: float32 has too few steps in 0..1 for tens of thousands of rows. The last end is
    # 1, which no draw reaches.
    ends = np.cumsum(chances)
    drawn = tf.random.stateless_uniform([len(ends)], epoch_key(seed, epoch), dtype=tf.float64)
    return tf.searchsorted(tf.constant(ends / ends[-1]), drawn, side="right")


def balanced(labels: np.ndarray, *, power: Power = 0.5) -> np.ndarray:
    """Rows of rare classes more often: the mean over a row's tasks of (n_task / n_class)^power.

    Each task's factors are divided by their mean over its labels; otherwise a task of many
    classes, whose factors are larger, would draw its rows away from the others'.

    A row with a rare style and a common genre gets the mean of the two: drawn often for the one,
    though less so than with that label alone, as each draw brings the common genre too. So with
    several tasks none is balanced exactly; `class_shares` tells what comes of it. (The product
    would draw a row of two rare labels without measure; the largest would draw a row of one as
    often as a row of two.)

    Args:
        labels: int [rows, tasks]; MISSING where the task has no label.
        power: 0 = every row alike; 1 with one task = every class alike.

    Returns:
        float64 [rows], > 0, sum 1. A row without any label gets the mean of the others: what it
        is worth is not known, and with it as many are drawn as without a sampler.
    """
    found = np.full(labels.shape, np.nan)
    for column, of_task in enumerate(labels.T):
        known = of_task != MISSING
        counts = np.bincount(of_task[known], minlength=1)
        factors = (known.sum() / counts[of_task[known]]) ** power
        found[known, column] = factors / factors.mean() if len(factors) else factors
    labelled = ~np.isnan(found).all(axis=1)
    chances = np.ones(len(labels))
    if labelled.any():
        chances[labelled] = np.nanmean(found[labelled], axis=1)
        chances[~labelled] = chances[labelled].mean()
    return chances / chances.sum()


SAMPLERS = {"balanced": balanced}


def row_chances(labels: np.ndarray, spec: DataSpec) -> np.ndarray | None:
    """Each row's chance by the spec's sampler, float64 [rows]; None where it has none.

    Args:
        labels: int [rows, tasks] of the training split.
        spec: its field `sampler`.

    Raises:
        SpecError: unknown kind or option, with its place.
    """
    if spec.sampler is None:
        return None
    options = check_kind(spec.sampler, SAMPLERS, place=spec.place(None, "sampler"))
    return SAMPLERS[spec.sampler.kind](labels, **options)


def epoch_rows(labels: np.ndarray, spec: DataSpec) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function: an epoch's number -> its rows in their order, int32 [rows]."""
    chances = row_chances(labels, spec)
    if chances is None:
        return lambda epoch: epoch_order(len(labels), spec.seed, epoch)
    return lambda epoch: epoch_draw(chances, spec.seed, epoch)


def class_shares(labels: np.ndarray, classes: int, chances: np.ndarray) -> np.ndarray:
    """How often a task's labels are of each class, where rows are drawn by their chances.

    Args:
        labels: int [rows] of one task; MISSING where it has none.
        classes: how many there are.
        chances: float [rows].

    Returns:
        float64 [classes], sum 1; all 0 where no row has a label.
    """
    known = labels != MISSING
    shares = np.bincount(labels[known], chances[known], minlength=classes)
    return shares / max(shares.sum(), np.finfo(float).tiny)


def describe_sampler(table: Table, spec: DataSpec) -> list[str]:
    """What the sampler makes of each task's rarest and commonest class; nothing without one."""
    labels = table.labels[table.rows(TRAIN)]
    chances = row_chances(labels, spec)
    if chances is None:
        return []
    lines = [f"Share of a task's labels as the sampler ({spec.sampler.kind}) draws them"]
    for column, (task, names) in enumerate(table.classes.items()):
        plain = class_shares(labels[:, column], len(names), np.ones(len(labels)))
        drawn = class_shares(labels[:, column], len(names), chances)
        present = np.flatnonzero(plain)
        if not len(present):
            continue
        ends = ("rarest", present[plain[present].argmin()]), ("commonest", plain.argmax())
        said = [f"{end} {names[i]} {plain[i]:.2%} -> {drawn[i]:.2%}" for end, i in ends]
        lines.append(f"  {task}: {', '.join(said)}")
    return lines
