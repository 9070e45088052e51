"""What predictions are worth: every figure of `metrics.json` that needs no picture."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from multitask import metrics
from multitask.data.table import SELECTION, TRAIN, VAL, Table
from multitask.evaluation.across import agreement, contradictions, dependence
from multitask.evaluation.calibration import Calibration, calibrate, judge_calibration, scaled
from multitask.evaluation.predictions import Predictions
from multitask.spec import InputError

LOW_CONFIDENCE = 0.5
# Of a confusion matrix that is kept whole. WikiArt's largest task has 27 classes, and a name and a
# number still fit beside and into each cell.
MATRIX_CLASSES = 40
MATRIX_CELLS = 17_000  # of all tasks' matrices: ten of 41 × 41


def judge(predictions: Predictions, trained_on: Table) -> dict[str, dict[str, Any]]:
    """Every task's figures and its majority baseline."""
    judged = {}
    for task, names in predictions.classes.items():
        _, labels, probabilities = predictions.exam(task)
        found = metrics.classification_metrics(labels, probabilities, classes=len(names))
        found["classes"] = len(names)
        found["ece"] = (
            metrics.expected_calibration_error(labels, probabilities) if len(labels) else None
        )
        outliers = metrics.outliers(labels, probabilities, below=LOW_CONFIDENCE)
        found["outliers"] = len(outliers) if len(labels) else None
        found["baseline"] = metrics.majority_baseline(
            trained_on.labels_of(task, TRAIN), labels, classes=len(names)
        )
        judged[task] = found
    return judged


def named(judged: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What `judge` gives, as `metrics` and `baseline` with names such as `genre/top1`."""
    return {
        "metrics": {
            f"{task}/{name}": value
            for task, found in judged.items()
            for name, value in found.items()
            if name != "baseline"
        },
        "baseline": {
            f"{task}/{name}": value
            for task, found in judged.items()
            for name, value in found["baseline"].items()
        },
    }


def calibrations_of(
    examine: Callable, trained_on: Table, tell: Callable[[str], None]
) -> dict[str, Calibration]:
    """Each task's calibration, from the pictures that training was not allowed to see."""
    if not len(trained_on.rows(SELECTION)):
        none = Calibration(reason="there is no validation split")
        return dict.fromkeys(trained_on.tasks, none)
    try:
        chosen_by, _ = examine(trained_on, split=SELECTION, max_missing=1.0)
    except InputError as error:
        tell(f"Not calibrated: {error}")
        none = Calibration(reason="no validation image can be read")
        return dict.fromkeys(trained_on.tasks, none)
    return {task: calibrate(*chosen_by.exam(task)[1:]) for task in chosen_by.classes}


def calibrated_confidences(
    predictions: Predictions, calibrations: dict[str, Calibration]
) -> dict[str, np.ndarray]:
    """Task -> float32 [n], calibrated."""
    return {
        task: scaled(predictions.probabilities[task], found.temperature)
        .max(axis=1)
        .astype(np.float32)
        for task, found in calibrations.items()
    }


def details_of(
    predictions: Predictions, trained_on: Table, calibrations: dict[str, Calibration]
) -> dict[str, Any]:
    """What `metrics.json` holds beside the headline figures."""
    intervals, by_class, confusions = {}, {}, {}
    for task, names in predictions.classes.items():
        _, labels, probabilities = predictions.exam(task)
        found = metrics.bootstrap_intervals(labels, probabilities, classes=len(names))
        intervals |= {f"{task}/{name}": interval for name, interval in found.items()}
        predicted = probabilities.argmax(axis=1)
        table = metrics.per_class(labels, predicted, classes=len(names))
        by_class[task] = [
            {"name": name} | {k: v if np.isfinite(v) else None for k, v in row.items()}
            for name, row in zip(names, table.to_dict("records"), strict=True)
        ]
        side = math.isqrt(MATRIX_CELLS // len(predictions.classes)) - 1
        confusions[task] = confusion_matrix(
            labels, predicted, names, limit=max(1, min(MATRIX_CLASSES, side))
        )
    confidences = calibrated_confidences(predictions, calibrations)
    return {
        "images": trained_on.counts().to_dict("index"),
        "intervals": intervals,
        "classes": by_class,
        "confusion": confusions,
        "calibration": {
            task: judge_calibration(found, *predictions.exam(task)[1:])
            for task, found in calibrations.items()
        },
        "across": {
            "dependence": dependence(predictions),
            "agreement": agreement(predictions, trained_on),
            "contradictions": contradictions(predictions, trained_on, confidences),
        },
        "leaks": _leaks(predictions, trained_on),
    }


def confusion_matrix(labels, predicted, names: Sequence[str], *, limit: int) -> dict[str, Any]:
    """The counts of true and predicted classes, of at most `limit` classes by name.

    Of more than `limit` classes it holds those that are most often confused with each other, and
    all others together in one more row and column.

    Args:
        labels: int [n], true classes.
        predicted: int [n].
        names: of the classes, by index.
        limit: at least 1.

    Returns:
        names: of the shown classes, those that are taken for each other together; counts: int
        [shown, shown], or [shown + 1, shown + 1] with the others last; others: how many classes
        these are, 0 where all are shown. The last cell has right and wrong predictions in it.
    """
    pairs = metrics.confusion_pairs(labels, predicted, classes=len(names))
    kept = metrics.most_confused(pairs, classes=len(names), limit=limit)
    others = len(names) - len(kept)
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    counts = metrics.confusion(place[labels], place[predicted], classes=len(kept) + bool(others))
    order = metrics.confusion_order(counts[: len(kept), : len(kept)])
    rows = np.append(order, [len(kept)] * bool(others)).astype(int)
    return {
        "names": [names[i] for i in kept[order]],
        "counts": counts[np.ix_(rows, rows)].tolist(),
        "others": others,
    }


def _leaks(predictions: Predictions, trained_on: Table) -> dict[str, dict[str, Any]]:
    """How each task fares on the exam pictures that another task lists for training.

    No task was trained on them (rule 2); where they came out better than the rest, it is not
    because they were seen.
    """
    listed = trained_on.findings.leaks
    found = {}
    for task in predictions.classes:
        leaked = listed["path"][(listed["task"] == task) & (listed["split"] == VAL)]
        rows = predictions.labelled(task)
        among = pd.Index(predictions.paths).isin(leaked) & rows
        right = predictions.right(task)
        found[task] = {
            "pictures": int(among.sum()),
            "top1": float(right[among].mean()) if among.any() else None,
            "others_top1": float(right[rows & ~among].mean()) if (rows & ~among).any() else None,
        }
    return found
