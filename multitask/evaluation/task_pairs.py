"""Metrics of several tasks together: exact match, and how the predictions of two tasks depend.

They need only the predictions and the training labels; all results are JSON-ready.
"""

import itertools
from typing import Any

import numpy as np
from scipy.stats import binom

from multitask.bootstrap import FEWEST_EXAMPLES
from multitask.data.table import TRAIN, Table
from multitask.evaluation.predictions import Predictions
from multitask.spec import is_labelled

# A pair of classes without a common training image is reported if each has this many training
# images with labels of both tasks.
MIN_TRAINING_IMAGES = 20
MAX_CONTRADICTIONS = 24  # listed


def exact_match(predictions: Predictions) -> dict[str, Any] | None:
    """Measure how often the predictions of all tasks are right for the same image.

    Returns:
        tasks: those with labelled images; images: those with a label of each of these tasks;
        share: of these images, the share with no wrong prediction; interval: the 2.5 % and 97.5 %
        quantiles of the bootstrapped share, which is binomial, None for too few images. None if
        fewer than two tasks have labels, or no image has all labels.
    """
    tasks = [task for task in predictions.classes if predictions.labelled(task).any()]
    rows = np.all([predictions.labelled(task) for task in tasks], axis=0)
    if len(tasks) < 2 or not rows.any():
        return None
    right = np.all([predictions.correct(task)[rows] for task in tasks], axis=0)
    images, share = len(right), float(right.mean())
    ends = (binom.ppf([0.025, 0.975], images, share) / images).tolist()
    interval = ends if images >= FEWEST_EXAMPLES and ends[0] < ends[1] else None
    return {"tasks": tasks, "images": images, "share": share, "interval": interval}


def dependence(predictions: Predictions) -> list[dict[str, Any]]:
    """Compare a task's accuracy where another task is right and where it is wrong.

    Returns:
        For every ordered pair of tasks with common labelled images: given, task, and `given_right`
        and `given_wrong`: {"count", "accuracy"} of `task` there (None without an image); classes:
        the same for each class of `task` that has such an image, with its name, the greatest loss
        first.
    """
    pairs = []
    for given, task in itertools.permutations(predictions.classes, 2):
        rows = predictions.labelled(given) & predictions.labelled(task)
        if not rows.any():
            continue
        right = predictions.correct(given)[rows]
        correct, labels = predictions.correct(task)[rows], predictions.labels_of(task)[rows]
        classes = [
            {"name": name} | _conditional(right[labels == index], correct[labels == index])
            for index, name in enumerate(predictions.classes[task])
            if (labels == index).any()
        ]
        classes.sort(key=_lost_images, reverse=True)
        pairs.append(
            {"given": given, "task": task} | _conditional(right, correct) | {"classes": classes}
        )
    return pairs


def _conditional(right: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Count and accuracy where the other task is right and where it is wrong, bool [n] each."""
    return {
        name: {
            "count": int(rows.sum()),
            "accuracy": float(correct[rows].mean()) if rows.any() else None,
        }
        for name, rows in (("given_right", right), ("given_wrong", ~right))
    }


def _lost_images(row: dict[str, Any]) -> float:
    """The loss of right predictions where the other task is wrong, in images."""
    right, wrong = row["given_right"]["accuracy"], row["given_wrong"]["accuracy"]
    if right is None or wrong is None:
        return 0.0
    return (right - wrong) * row["given_wrong"]["count"]


def joint_counts(table: Table, first: str, second: str) -> np.ndarray:
    """Count the training images with each pair of labels, int [classes, classes]."""
    labels = table.labels[table.rows(TRAIN)]
    columns = [table.tasks.index(task) for task in (first, second)]
    pairs = labels[:, columns]
    pairs = pairs[is_labelled(pairs).all(axis=1)]
    counts = np.zeros([len(table.classes[task]) for task in (first, second)], np.int64)
    np.add.at(counts, tuple(pairs.T), 1)
    return counts


def agreement(predictions: Predictions, table: Table) -> list[dict[str, Any]]:
    """Measure how often the predictions of two heads are a pair that occurs in training.

    Only images with labels of both tasks count, as the rest may belong to no class of a task.

    Args:
        predictions: of the test set.
        table: the table that the run trained on.

    Returns:
        For each pair of tasks with such images in training and test set: first, second; images;
        seen: the share whose two predictions are the labels of some training image; by_chance: that
        share if the predictions of the two heads were independent; true: the same share for the
        true labels of the test set.
    """
    pairs = []
    for first, second in itertools.combinations(predictions.classes, 2):
        known = joint_counts(table, first, second) > 0
        both = predictions.labelled(first) & predictions.labelled(second)
        if not known.any() or not both.any():
            continue
        predicted = [predictions.predicted(task)[both] for task in (first, second)]
        labels = [predictions.labels_of(task)[both] for task in (first, second)]
        shares = [
            np.bincount(classes, minlength=size) / len(classes)
            for classes, size in zip(predicted, known.shape, strict=True)
        ]
        pairs.append(
            {
                "first": first,
                "second": second,
                "images": int(both.sum()),
                "seen": float(known[tuple(predicted)].mean()),
                "by_chance": float(shares[0] @ known @ shares[1]),
                "true": float(known[tuple(labels)].mean()),
            }
        )
    return pairs


def contradictions(
    predictions: Predictions, table: Table, confidences: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """List images whose two predictions never occur together in training, the most confident first.

    A pair of classes counts if training has MIN_TRAINING_IMAGES images of each class and none of
    both. An image counts if it has labels of both tasks.

    Args:
        predictions: of the test set.
        table: the table that the run trained on.
        confidences: task -> float [n], of the predictions.

    Returns:
        At most MAX_CONTRADICTIONS of path, first, second (tasks), first_predicted, second_predicted
        (class names) and confidence: the product of both confidences.
    """
    images = []
    for first, second in itertools.combinations(predictions.classes, 2):
        counts = joint_counts(table, first, second)
        never = (
            (counts == 0)
            & (counts.sum(axis=1) >= MIN_TRAINING_IMAGES)[:, None]
            & (counts.sum(axis=0) >= MIN_TRAINING_IMAGES)
        )
        predicted = [predictions.predicted(task) for task in (first, second)]
        both = predictions.labelled(first) & predictions.labelled(second)
        for row in np.flatnonzero(never[tuple(predicted)] & both):
            names = [
                predictions.classes[task][classes[row]]
                for task, classes in zip((first, second), predicted, strict=True)
            ]
            images.append(
                {
                    "path": str(predictions.paths[row]),
                    "first": first,
                    "second": second,
                    "first_predicted": names[0],
                    "second_predicted": names[1],
                    "confidence": float(confidences[first][row] * confidences[second][row]),
                }
            )
    images.sort(key=lambda image: (-image["confidence"], image["path"]))
    return images[:MAX_CONTRADICTIONS]
