"""Pages of many random answers."""

import numpy as np
import pandas as pd

from multitask.calibration import Calibration
from multitask.data.table import TRAIN, Table
from multitask.evaluation.coverage import conformal_of, coverage_metrics
from multitask.evaluation.predictions import Predictions, read_predictions
from multitask.evaluation.task_metrics import detailed_metrics, evaluate_tasks, flat_metrics
from multitask.pages.report_page import write_page


def noise(path):
    return np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)


def write_big_page(folder, known, classes, count, paths=None, more=None):
    """The page of as many random answers; its size, and metrics.json."""
    rng = np.random.default_rng(0)
    paths = paths or [f"Some_Style/{'x' * 50}_{i:05}.jpg" for i in range(count)]
    paths = np.array(paths, object)
    labels = np.stack([rng.integers(-1, len(names), count) for names in classes.values()], 1)
    probabilities = {}
    for column, (task, names) in enumerate(classes.items()):
        drawn = rng.random((count, len(names))) ** 6
        right = rng.random(count) < 0.5
        drawn[right, labels[right, column]] += 1
        probabilities[task] = drawn / drawn.sum(axis=1, keepdims=True)
    predictions = Predictions(classes, paths, labels.astype(np.int32), probabilities)
    training_table = Table(classes, paths, predictions.labels, np.full(count, TRAIN, object))
    calibrations = {task: Calibration(1.5, 100, {"calibrated": (), "raw": ()}) for task in classes}
    content = {"test_images": count, "unusable_test_images": 0, "model": "m", "versions": {}}
    content |= flat_metrics(evaluate_tasks(predictions, training_table))
    content |= detailed_metrics(predictions, training_table, calibrations)
    conformal = conformal_of(predictions, calibrations)
    content["conformal"] = coverage_metrics(predictions, calibrations, conformal)
    predictions.save(folder)
    spec = known.colour_spec().to_dict()
    spec["task"] = [{"name": task} for task in classes]
    values = {
        "title": "whole",
        "spec": spec,
        "content": content,
        "frame": read_predictions(folder / "predictions.csv"),
        "history": pd.DataFrame(),
        "load": noise,
    }
    write_page(folder / "report.html", **values | (more or {}))
    return (folder / "report.html").stat().st_size, content
