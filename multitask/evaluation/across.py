"""What only one model of all tasks can tell: how one task's answers go with another's.

All of it from the predictions and from the labels of training, as arrays; JSON-ready.
"""

import itertools
from typing import Any

import numpy as np

from multitask.data.table import TRAIN, Table
from multitask.evaluation.predictions import Predictions
from multitask.spec import MISSING

KNOWN_WELL = 20  # training pictures with both labels, from which on a pair never seen is news
CONTRADICTIONS = 24  # listed


def dependence(predictions: Predictions) -> list[dict[str, Any]]:
    """How a task fares where another is answered right, and where it is answered wrong.

    Returns:
        For every ordered pair of tasks with pictures examined in both: given, task, and
        `given_right` and `given_wrong`: {"count", "accuracy"} of `task` there (None of no
        picture); classes: the same for each class of `task` that has such a picture, with its
        name, the greatest loss first.
    """
    found = []
    for given, task in itertools.permutations(predictions.classes, 2):
        rows = predictions.labelled(given) & predictions.labelled(task)
        if not rows.any():
            continue
        right = predictions.right(given)[rows]
        own, labels = predictions.right(task)[rows], predictions.labels_of(task)[rows]
        classes = [
            {"name": name} | _given(right[labels == index], own[labels == index])
            for index, name in enumerate(predictions.classes[task])
            if (labels == index).any()
        ]
        classes.sort(key=_loss, reverse=True)
        found.append({"given": given, "task": task} | _given(right, own) | {"classes": classes})
    return found


def _given(right: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    return {
        name: {
            "count": int(chosen.sum()),
            "accuracy": float(own[chosen].mean()) if chosen.any() else None,
        }
        for name, chosen in (("given_right", right), ("given_wrong", ~right))
    }


def _loss(row: dict[str, Any]) -> float:
    """Right answers that are missing where the other task is wrong; in pictures."""
    here, there = row["given_right"]["accuracy"], row["given_wrong"]["accuracy"]
    if here is None or there is None:
        return 0.0
    return (here - there) * row["given_wrong"]["count"]


def joint_counts(table: Table, first: str, second: str) -> np.ndarray:
    """Training pictures with each pair of labels, int [classes, classes]."""
    rows = table.labels[table.rows(TRAIN)]
    places = [table.tasks.index(task) for task in (first, second)]
    pairs = rows[:, places]
    pairs = pairs[(pairs != MISSING).all(axis=1)]
    counts = np.zeros([len(table.classes[task]) for task in (first, second)], np.int64)
    np.add.at(counts, tuple(pairs.T), 1)
    return counts


def agreement(predictions: Predictions, table: Table) -> list[dict[str, Any]]:
    """Whether the answers of two heads go together, as labels do in training.

    Of pictures with labels of both tasks alone: of another one, no class of a task may be true.

    Returns:
        For each pair of tasks with such pictures in training and exam: first, second; pictures;
        seen: the share whose two answers occur as labels of one training picture; by_chance: what
        that share would be if the answers of the two heads were dealt out anew; true: what it is of
        the exam's own labels.
    """
    found = []
    for first, second in itertools.combinations(predictions.classes, 2):
        known = joint_counts(table, first, second) > 0
        both = predictions.labelled(first) & predictions.labelled(second)
        if not known.any() or not both.any():
            continue
        answers = [predictions.answers(task)[both] for task in (first, second)]
        labels = [predictions.labels_of(task)[both] for task in (first, second)]
        shares = [
            np.bincount(answer, minlength=size) / len(answer)
            for answer, size in zip(answers, known.shape, strict=True)
        ]
        found.append(
            {
                "first": first,
                "second": second,
                "pictures": int(both.sum()),
                "seen": float(known[tuple(answers)].mean()),
                "by_chance": float(shares[0] @ known @ shares[1]),
                "true": float(known[tuple(labels)].mean()),
            }
        )
    return found


def contradictions(
    predictions: Predictions, table: Table, confidences: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Pictures whose heads say what no training picture is, the surest first.

    A pair of answers counts where training knows each of the two well (KNOWN_WELL pictures with
    labels of both tasks) and never saw them together, and where the picture has labels of both
    tasks.

    Args:
        predictions: of the exam.
        table: of training.
        confidences: task -> float [n], of the answers.

    Returns:
        At most CONTRADICTIONS of path, first, second (tasks), first_answer, second_answer (names)
        and confidence: the product of the two heads'.
    """
    found = []
    for first, second in itertools.combinations(predictions.classes, 2):
        counts = joint_counts(table, first, second)
        odd = (
            (counts == 0)
            & (counts.sum(axis=1) >= KNOWN_WELL)[:, None]
            & (counts.sum(axis=0) >= KNOWN_WELL)
        )
        one, other = predictions.answers(first), predictions.answers(second)
        both = predictions.labelled(first) & predictions.labelled(second)
        for row in np.flatnonzero(odd[one, other] & both):
            found.append(
                {
                    "path": str(predictions.paths[row]),
                    "first": first,
                    "second": second,
                    "first_answer": predictions.classes[first][one[row]],
                    "second_answer": predictions.classes[second][other[row]],
                    "confidence": float(confidences[first][row] * confidences[second][row]),
                }
            )
    found.sort(key=lambda row: (-row["confidence"], row["path"]))
    return found[:CONTRADICTIONS]
