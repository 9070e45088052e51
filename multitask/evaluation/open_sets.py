"""The evaluation of open tasks: how well they separate images of their classes from others."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from multitask.calibration import Calibration, scale_probabilities
from multitask.data.others import held_out
from multitask.evaluation.predictions import Predictions
from multitask.open_set import open_set_metrics, oscr_area, oscr_curve, thinned_curve
from multitask.spec import OTHER_LABEL, DataSpec, Task, is_labelled

ANSWERED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # confidences whose share of right answers is reported
BINS = 20


def evaluate_open_tasks(
    predictions: Predictions, calibrations: Mapping[str, Calibration], spec: DataSpec
) -> dict[str, dict[str, Any]]:
    """Measure how well each open task separates images of its classes from other images.

    Args:
        predictions: of the test set.
        calibrations: task -> its calibration.
        spec: the open tasks, and their groups.

    Returns:
        Open task -> a dict with these keys:

        - known: the number of test images with a label.
        - others: `open_set.open_set_metrics` on all images that have none of the classes.
        - new: the same on the held-out groups; None if no group was held out.
        - oscr: area and curve.
        - answers, for each confidence of ANSWERED: threshold; answered, the number of answers that
          name a class; right, the share of them that is right; other, the share of them that is
          given to other images. Both shares are None without answers.
        - histogram: known and others, the number of images in each of BINS equal bins of the
          probability of having one of the classes.
        - other: precision and recall of the answer `other`.
    """
    return {
        task.name: _evaluate(predictions, calibrations[task.name], task, spec.seed)
        for task in spec.tasks
        if task.is_open and (predictions.labels_of(task.name) == OTHER_LABEL).any()
    }


def _evaluate(
    predictions: Predictions, calibration: Calibration, task: Task, seed: int
) -> dict[str, Any]:
    rows, labels, probabilities, scores = predictions.examples(task.name)
    assert scores is not None
    known = is_labelled(labels)
    content: dict[str, Any] = {
        "known": int(known.sum()),
        "others": open_set_metrics(scores[known], scores[~known]),
        "new": None,
    }
    new = held_out(task, predictions.paths[rows], seed=seed) & ~known
    if task.other.held_out:
        content["new"] = open_set_metrics(scores[known], scores[new])
    scaled = scale_probabilities(probabilities, calibration.temperature)
    answers = calibration.answers(scaled, scores)
    classes = probabilities.shape[1]
    best, named = answers[:, :classes].max(axis=1), answers.argmax(axis=1) < classes
    correct = answers[:, :classes].argmax(axis=1) == labels
    false, right = oscr_curve(best[known], correct[known], best[~known])
    content["oscr"] = {"area": oscr_area(false, right), "curve": thinned_curve(false, right)}
    content["answers"] = []
    for threshold in ANSWERED:
        answered = named & (best >= threshold)
        count = int(answered.sum())
        content["answers"].append(
            {
                "threshold": threshold,
                "answered": count,
                "right": float(correct[answered].mean()) if count else None,
                "other": float((~known)[answered].mean()) if count else None,
            }
        )
    assert calibration.rejection is not None
    shares = calibration.rejection.known(scores)
    content["histogram"] = {
        kind: np.histogram(shares[chosen], BINS, (0, 1))[0].tolist()
        for kind, chosen in (("known", known), ("others", ~known))
    }
    content["other"] = {
        "precision": float((~known)[~named].mean()) if (~named).any() else None,
        "recall": float((~named)[~known].mean()),
    }
    return content
