"""What predictions are worth: every figure of `metrics.json` that needs no picture."""

from collections.abc import Callable
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
        found["outliers"] = len(metrics.outliers(labels, probabilities, below=LOW_CONFIDENCE))
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
        return dict.fromkeys(trained_on.tasks, Calibration())
    try:
        chosen_by, _ = examine(trained_on, split=SELECTION, max_missing=1.0)
    except InputError as error:
        tell(f"Not calibrated: {error}")
        return dict.fromkeys(trained_on.tasks, Calibration())
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
        counts = metrics.confusion(labels, predicted, classes=len(names))
        order = metrics.confusion_order(counts)
        confusions[task] = {
            "names": [names[i] for i in order],
            "counts": counts[np.ix_(order, order)].tolist(),
        }
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
