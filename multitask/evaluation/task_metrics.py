"""The metrics of `metrics.json` that are computed from predictions, without images."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from multitask import metrics
from multitask.calibration import (
    Calibration,
    calibrate,
    calibration_metrics,
    scale_probabilities,
)
from multitask.conformal import Conformal, without_images
from multitask.data.table import TEST, TRAIN, VALIDATION, Table
from multitask.evaluation.coverage import conformal_of
from multitask.evaluation.predictions import Predictions
from multitask.evaluation.task_pairs import agreement, contradictions, dependence, exact_match
from multitask.spec import DataSpec, InputError
from multitask.trained import uncalibrated

logger = logging.getLogger(__name__)

LOW_CONFIDENCE = 0.5
# A confusion matrix of up to this many classes is shown completely. WikiArt's largest task has 27
# classes. Up to this limit, names fit next to the matrix and numbers fit into its cells.
MATRIX_CLASSES = 40
MATRIX_CELLS = 17_000  # of all tasks' matrices: ten of 41 × 41


def evaluate_tasks(predictions: Predictions, training_table: Table) -> dict[str, dict[str, Any]]:
    """Compute every task's metrics and those of its majority class.

    Args:
        predictions: of the test set.
        training_table: the table that the run trained on.

    Returns:
        Task -> the metrics of `metrics.classification_metrics`, classes, ece and outliers (None
        without test labels), and baseline: the metrics of the majority class.
    """
    task_metrics = {}
    for task, names in predictions.classes.items():
        _, labels, probabilities = predictions.labelled_examples(task)
        values: dict[str, Any] = metrics.classification_metrics(
            labels, probabilities, classes=len(names)
        )
        values["classes"] = len(names)
        values["ece"] = (
            metrics.expected_calibration_error(labels, probabilities) if len(labels) else None
        )
        outliers = metrics.outliers(labels, probabilities, below=LOW_CONFIDENCE)
        values["outliers"] = len(outliers) if len(labels) else None
        values["baseline"] = metrics.majority_baseline(
            training_table.labels_of(task, TRAIN), labels, classes=len(names)
        )
        task_metrics[task] = values
    return task_metrics


def flat_metrics(task_metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The result of `evaluate_tasks` as `metrics` and `baseline`, with names like `genre/top1`."""
    return {
        "metrics": {
            f"{task}/{name}": value
            for task, values in task_metrics.items()
            for name, value in values.items()
            if name != "baseline"
        },
        "baseline": {
            f"{task}/{name}": value
            for task, values in task_metrics.items()
            for name, value in values["baseline"].items()
        },
    }


@dataclass(frozen=True)
class Fitted:
    """What is fitted on the validation split.

    Attributes:
        calibrations: task -> its calibration.
        conformal: the scores for sets of classes.
        validation: the predictions; or the reason why there are none.
    """

    calibrations: dict[str, Calibration]
    conformal: Conformal
    validation: Predictions | str

    def to_dict(self) -> dict[str, Any]:
        """The calibrations and the scores, as in calibration.json."""
        return {
            "tasks": {task: one.to_dict() for task, one in self.calibrations.items()},
            "conformal": self.conformal.to_dict(),
        }


def fit_calibrations(predict: Callable, training_table: Table, spec: DataSpec) -> Fitted:
    """Calibrate each task, and the sets of classes, on the validation split.

    Args:
        predict: `predict_split` of the model, with a table, `split` and `max_missing`.
        training_table: the table that the run trained on.
        spec: its tasks.
    """
    if not len(training_table.rows(VALIDATION)):
        return _unfitted(spec, "there is no validation split")
    try:
        predictions, _ = predict(training_table, split=VALIDATION, max_missing=1.0)
    except InputError as error:
        logger.info(f"Not calibrated: {error}")
        return _unfitted(spec, "no validation image can be read")
    calibrations = {
        task: calibrate(*predictions.examples(task)[1:]) for task in predictions.classes
    }
    return Fitted(calibrations, conformal_of(predictions, calibrations), predictions)


def _unfitted(spec: DataSpec, reason: str) -> Fitted:
    return Fitted(uncalibrated(spec, reason), without_images(spec.task_names), reason)


def calibrated_confidences(
    predictions: Predictions, calibrations: dict[str, Calibration]
) -> dict[str, np.ndarray]:
    """Task -> calibrated confidence of each image, float32 [n]."""
    return {
        task: scale_probabilities(predictions.probabilities[task], calibration.temperature)
        .max(axis=1)
        .astype(np.float32)
        for task, calibration in calibrations.items()
    }


def detailed_metrics(
    predictions: Predictions, training_table: Table, calibrations: dict[str, Calibration]
) -> dict[str, Any]:
    """The further metrics: intervals, classes, confusion, calibration, tasks together, leaks.

    Args:
        predictions: of the test set.
        training_table: the table that the run trained on.
        calibrations: task -> its calibration.
    """
    intervals: dict[str, Any] = {}
    class_metrics, confusions = {}, {}
    for task, names in predictions.classes.items():
        _, labels, probabilities = predictions.labelled_examples(task)
        ends = metrics.bootstrap_intervals(labels, probabilities, classes=len(names))
        intervals |= {f"{task}/{name}": interval for name, interval in ends.items()}
        predicted = probabilities.argmax(axis=1)
        frame = metrics.per_class(labels, predicted, classes=len(names))
        class_metrics[task] = [
            {"name": name} | {k: v if np.isfinite(v) else None for k, v in row.items()}
            for name, row in zip(names, frame.to_dict("records"), strict=True)
        ]
        side = math.isqrt(MATRIX_CELLS // len(predictions.classes)) - 1
        confusions[task] = confusion_matrix(
            labels, predicted, names, limit=max(1, min(MATRIX_CLASSES, side))
        )
    confidences = calibrated_confidences(predictions, calibrations)
    return {
        "images": training_table.counts().to_dict("index"),
        "intervals": intervals,
        "classes": class_metrics,
        "confusion": confusions,
        "calibration": {
            task: calibration_metrics(calibration, *predictions.examples(task)[1:])
            for task, calibration in calibrations.items()
        },
        "exact_match": exact_match(predictions),
        "task_pairs": {
            "dependence": dependence(predictions),
            "agreement": agreement(predictions, training_table),
            "contradictions": contradictions(predictions, training_table, confidences),
        },
        "leaks": _leak_metrics(predictions, training_table),
    }


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, names: Sequence[str], *, limit: int
) -> dict[str, Any]:
    """Count true and predicted classes, with at most `limit` classes by name.

    With more classes, the matrix has those that are most often confused with each other, and one
    more row and column for all remaining classes together.

    Args:
        labels: int [n], true classes.
        predicted: int [n].
        names: of the classes, by index.
        limit: at least 1.

    Returns:
        names: of the shown classes, ordered so that confused classes are neighbours; counts: int
        [shown, shown], or [shown + 1, shown + 1] with the remaining classes last; others: their
        number, 0 if all are shown. The last cell holds both right and wrong predictions.
    """
    pairs = metrics.confusion_pairs(labels, predicted, classes=len(names))
    kept = metrics.most_confused(pairs, classes=len(names), limit=limit)
    rest = len(names) - len(kept)
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    counts = metrics.confusion(place[labels], place[predicted], classes=len(kept) + bool(rest))
    order = metrics.confusion_order(counts[: len(kept), : len(kept)])
    rows = np.append(order, [len(kept)] * bool(rest)).astype(int)
    return {
        "names": [names[i] for i in kept[order]],
        "counts": counts[np.ix_(rows, rows)].tolist(),
        "others": rest,
    }


def _leak_metrics(predictions: Predictions, training_table: Table) -> dict[str, dict[str, Any]]:
    """Each task's accuracy on the test images that another task lists for training.

    No task was trained on these images. If the accuracy on them is higher than on the rest,
    training on them is not the cause.
    """
    leaks = training_table.findings.leaks
    leak_metrics = {}
    for task in predictions.classes:
        paths = leaks["path"][(leaks["task"] == task) & (leaks["split"] == TEST)]
        labelled = predictions.labelled(task)
        leaked = pd.Index(predictions.paths).isin(paths) & labelled
        others = labelled & ~leaked
        correct = predictions.correct(task)
        leak_metrics[task] = {
            "images": int(leaked.sum()),
            "top1": float(correct[leaked].mean()) if leaked.any() else None,
            "others_top1": float(correct[others].mean()) if others.any() else None,
        }
    return leak_metrics
