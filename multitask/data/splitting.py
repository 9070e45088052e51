"""Seeded random choices (the subset and the validation split), and class weights."""

from collections.abc import Sequence

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from multitask.spec import MISSING, is_labelled

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")


def _quota(count: int, share: float, at_least: int) -> int:
    return min(count, max(at_least, round(share * count)))


def subset_labels(
    labels: np.ndarray,
    train: np.ndarray,
    class_counts: Sequence[int],
    shares: Sequence[float],
    *,
    seed: int,
) -> np.ndarray:
    """Keep a share of each task's training labels, class by class (rule 9).

    One random rank per image serves all tasks, so that their samples overlap and a share of the
    labels is about that share of the images. Every class keeps at least one example.

    Args:
        labels: int32 [rows, tasks]; MISSING where the task has no label.
        train: bool [rows], the rows of the training split.
        class_counts: the number of classes of each task.
        shares: the share of each task's labels to keep, in (0, 1].
        seed: the same seed keeps the same labels.

    Returns:
        int32 [rows, tasks], with the other labels MISSING.
    """
    rank = np.random.default_rng([seed, 1]).permutation(len(labels))
    kept = labels.copy()
    for column, (count, share) in enumerate(zip(class_counts, shares, strict=True)):
        for index in range(count):
            rows = np.flatnonzero(train & (labels[:, column] == index))
            rows = rows[np.argsort(rank[rows])]
            kept[rows[_quota(len(rows), share, 1) :], column] = MISSING
    return kept


def validation_rows(
    labels: np.ndarray, train: np.ndarray, class_counts: Sequence[int], share: float, *, seed: int
) -> np.ndarray:
    """Choose a share of the training images for the validation split (rule 3).

    The classes of all tasks are visited from the rarest to the largest. Each fills its quota with
    the images of lowest random rank, and never takes the last image of any class: iterative
    stratification (Sechidis et al. 2011) in its simplest form.

    Args:
        labels: int32 [rows, tasks]; MISSING where the task has no label.
        train: bool [rows], the rows of the training split.
        class_counts: the number of classes of each task.
        share: share of each class to choose, in [0, 1).
        seed: the same seed chooses the same rows.

    Returns:
        bool [rows].
    """
    rank = np.random.default_rng([seed, 2]).permutation(len(labels))
    # Each class of each task is a group; a row of the table is in at most one group per task.
    groups_of_row = labels + np.cumsum([0, *class_counts[:-1]])
    groups_of_row[~is_labelled(labels) | ~train[:, None]] = MISSING
    groups = [
        np.flatnonzero((groups_of_row == group).any(axis=1)) for group in range(sum(class_counts))
    ]
    remaining = np.asarray([len(rows) for rows in groups])
    chosen = np.zeros(len(labels), bool)
    for rows in sorted(groups, key=len):
        wanted = round(share * len(rows)) - int(chosen[rows].sum())
        for row in rows[np.argsort(rank[rows])]:
            if wanted <= 0:
                break
            row_groups = groups_of_row[row][groups_of_row[row] != MISSING]
            if not chosen[row] and (remaining[row_groups] > 1).all():
                chosen[row] = True
                remaining[row_groups] -= 1
                wanted -= 1
    return chosen


def class_weights(labels: np.ndarray, classes: int, *, exponent: float) -> np.ndarray:
    """Compute balanced class weights to a power, with mean 1 over the labels (rule 10).

    Args:
        labels: int [n], without missing ones.
        classes: the number of classes.
        exponent: 1 = balanced (n / (classes · count)), 0.5 = its square root, 0 = none.

    Returns:
        float32 [classes]; 0 for a class without examples.
    """
    weights = np.zeros(classes, np.float64)
    present = np.unique(labels)
    if len(present):
        weights[present] = compute_class_weight("balanced", classes=present, y=labels) ** exponent
        weights /= weights[labels].mean()
    return weights.astype(np.float32)
