"""Samplers: the rows of an epoch are sampled with replacement, rare classes more often.

A new sampler is a function and a line in SAMPLERS. The function takes the labels and its options
(its keyword-only parameters), and returns each row's probability.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
import tensorflow as tf
from pydantic import Field

from multitask.data.order import SHUFFLED, RowOrder, epoch_key
from multitask.data.table import TRAIN, Table
from multitask.spec import DataSpec, check_kind, is_labelled

Power = Annotated[float, Field(ge=0, le=1)]


def sample_rows(probabilities: np.ndarray, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Sample as many rows as there are, with replacement: int32 [rows].

    Args:
        probabilities: float64 [rows], > 0, sum 1.
        seed: the seed of the spec.
        epoch: counted over both phases; the same epoch samples the same rows.
    """
    # In float64: float32 has too few steps in 0..1 for tens of thousands of rows. The last bound
    # is 1, which no sample reaches.
    bounds = np.cumsum(probabilities)
    samples = tf.random.stateless_uniform([len(bounds)], epoch_key(seed, epoch), dtype=tf.float64)
    return tf.searchsorted(tf.constant(bounds / bounds[-1]), samples, side="right")


def balanced(labels: np.ndarray, *, power: Power = 0.5) -> np.ndarray:
    """Sample rows of rare classes more often.

    The weight of a row is the mean over its tasks of (n_task / n_class)^power.

    Each task's factors are divided by their mean over its labels. Otherwise a task of many
    classes, whose factors are larger, would dominate the others.

    A row with a rare label in one task and a common label in another gets the mean of the two
    factors, so with several tasks none is balanced exactly; `class_shares` computes the result.
    (With a product, the weight of a row with two rare labels would have no bound; with a maximum, a
    row with one rare label would be sampled as often as a row with two.)

    Args:
        labels: int [rows, tasks]; MISSING where the task has no label.
        power: 0: every row equally often; 1, with one task: every class equally often.

    Returns:
        float64 [rows], > 0, sum 1. A row without any label gets the mean of the others, so that
        such rows are sampled as often as without a sampler.
    """
    factors = np.full(labels.shape, np.nan)
    for column, task_labels in enumerate(labels.T):
        known = is_labelled(task_labels)
        counts = np.bincount(task_labels[known], minlength=1)
        of_rows = (known.sum() / counts[task_labels[known]]) ** power
        factors[known, column] = of_rows / of_rows.mean() if len(of_rows) else of_rows
    labelled = ~np.isnan(factors).all(axis=1)
    weights = np.ones(len(labels))
    if labelled.any():
        weights[labelled] = np.nanmean(factors[labelled], axis=1)
        weights[~labelled] = weights[labelled].mean()
    return weights / weights.sum()


SAMPLERS = {"balanced": balanced}


class Sampler(RowOrder):
    """Rows sampled with replacement, by a function of SAMPLERS.

    Args:
        kind: the name of the function.
        options: its keyword arguments.
    """

    repeats = True

    def __init__(self, kind: str, options: dict):
        self.kind = kind
        self.options = options

    def probabilities(self, labels: np.ndarray) -> np.ndarray:
        """Return each row's probability, float64 [rows], for labels int [rows, tasks]."""
        return SAMPLERS[self.kind](labels, **self.options)

    def epoch_rows(self, labels: np.ndarray, seed: int) -> Callable[[tf.Tensor], tf.Tensor]:
        """Make a function from an epoch's number to its rows, int32 [rows]."""
        probabilities = self.probabilities(labels)
        return lambda epoch: sample_rows(probabilities, seed, epoch)

    def describe(self, table: Table) -> list[str]:
        """Describe the share of each task's rarest and majority class before and after sampling."""
        labels = table.labels[table.rows(TRAIN)]
        probabilities = self.probabilities(labels)
        lines = [f"Share of a task's labels as sampled ({self.kind})"]
        for column, (task, names) in enumerate(table.classes.items()):
            plain = class_shares(labels[:, column], len(names), np.ones(len(labels)))
            sampled = class_shares(labels[:, column], len(names), probabilities)
            present = np.flatnonzero(plain)
            if not len(present):
                continue
            ends = (
                ("rarest", present[plain[present].argmin()]),
                ("most frequent", plain.argmax()),
            )
            shares = [f"{end} {names[i]} {plain[i]:.2%} -> {sampled[i]:.2%}" for end, i in ends]
            lines.append(f"  {task}: {', '.join(shares)}")
        return lines


def build_order(spec: DataSpec) -> RowOrder:
    """Return the spec's sampler; the plain order where it has none.

    Raises:
        SpecError: unknown kind or option, with its place.
    """
    if spec.sampler is None:
        return SHUFFLED
    options = check_kind(spec.sampler, SAMPLERS, place=spec.place(None, "sampler"))
    return Sampler(spec.sampler.kind, options)


def class_shares(labels: np.ndarray, classes: int, probabilities: np.ndarray) -> np.ndarray:
    """Compute the share of each class among a task's labels, if rows are sampled.

    Args:
        labels: int [rows] of one task; MISSING where it has none.
        classes: number of classes.
        probabilities: float [rows].

    Returns:
        float64 [classes], sum 1; all 0 where no row has a label.
    """
    known = is_labelled(labels)
    shares = np.bincount(labels[known], probabilities[known], minlength=classes)
    return shares / max(shares.sum(), np.finfo(float).tiny)
