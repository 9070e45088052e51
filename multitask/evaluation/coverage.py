"""Conformal sets of classes: fitted on the validation split, measured on the test set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import betaincinv

from multitask.calibration import Calibration, scale_probabilities
from multitask.conformal import (
    HEADLINE,
    SHOWN_COVERAGES,
    Conformal,
    ScoreTable,
    coverage_interval,
    expected_interval,
    fit_conformal,
    prediction_sets,
    why_too_few,
)
from multitask.evaluation.predictions import Predictions
from multitask.spec import MISSING


def conformal_of(predictions: Predictions, calibrations: Mapping[str, Calibration]) -> Conformal:
    """Fit the sets of classes on the predictions for the validation split.

    Args:
        predictions: of the validation split.
        calibrations: task -> its calibration.
    """
    labels = {task: predictions.answer_labels(task) for task in predictions.classes}
    return fit_conformal(labels, _calibrated(predictions, calibrations))


def coverage_metrics(
    predictions: Predictions, calibrations: Mapping[str, Calibration], conformal: Conformal
) -> dict[str, Any]:
    """Measure the sets of classes on the test set, for `metrics.json`.

    Args:
        predictions: of the test set.
        calibrations: task -> its calibration.
        conformal: the scores of the validation split.

    Returns:
        tasks: task -> validation_images, test_images, levels and classes. There is one level for
        each of SHOWN_COVERAGES, see below. Each class has name, test_images, and coverage and
        mean_set_size with one value per level; None without test images or threshold.

        joint, if there are several tasks: validation_images and test_images (with labels of several
        tasks), levels, and images_with_all_labels (test_images, and coverage, one value per level).

        Each level has target_coverage and reason: why there are too few validation images, or None.
        If reason is None, it also has validation_interval: the 95 % range of the true coverage for
        this number of validation images. If there are test images as well, it also has:

        - coverage: the share of the test images whose set holds the right class;
        - interval: its 95 % interval over the choice of test images (Clopper and Pearson 1934);
        - expected_interval: the 95 % range of coverage for both numbers of images;
        - mean_set_size; in a joint level, task -> mean size;
        - set_sizes: the number of images with 1, 2, … classes; not in a joint level.

        The level of a task also has threshold.
    """
    probabilities = _calibrated(predictions, calibrations)
    content: dict[str, Any] = {
        "tasks": {
            task: _task_metrics(predictions, task, probabilities[task], conformal.tasks[task])
            for task in predictions.classes
        }
    }
    if len(predictions.classes) > 1:
        content["joint"] = _joint_metrics(predictions, probabilities, conformal)
    return content


def class_table(of_task: Mapping[str, Any]) -> pd.DataFrame:
    """Convert the classes of a task of `coverage_metrics` to a table.

    Returns:
        One row per class: label, class, examples, and two columns for each level, such as
        coverage_0.9 and set_size_0.9. They are empty without test images or threshold.
    """
    rows = of_task["classes"]
    table = pd.DataFrame(
        {
            "label": range(len(rows)),
            "class": [row["name"] for row in rows],
            "examples": [row["test_images"] for row in rows],
        }
    )
    for place, target in enumerate(SHOWN_COVERAGES):
        table[f"coverage_{target:g}"] = [row["coverage"][place] for row in rows]
        table[f"set_size_{target:g}"] = [row["mean_set_size"][place] for row in rows]
    return table


def _calibrated(
    predictions: Predictions, calibrations: Mapping[str, Calibration]
) -> dict[str, np.ndarray]:
    return {
        task: calibrations[task].answers(
            scale_probabilities(values, calibrations[task].temperature),
            predictions.scores.get(task),
        )
        for task, values in predictions.probabilities.items()
    }


def _task_metrics(
    predictions: Predictions, task: str, probabilities: np.ndarray, table: ScoreTable
) -> dict[str, Any]:
    labels, names = predictions.answer_labels(task), predictions.answer_names(task)
    rows = np.flatnonzero(labels != MISSING)
    labels = labels[rows]
    examples = np.bincount(labels, minlength=len(names))
    levels: list[dict[str, Any]] = []
    by_class: list[tuple[list[float | None], list[float | None]]] = []
    for target in SHOWN_COVERAGES:
        level = _promise(table, target)
        shares: list[float | None] = [None] * len(names)
        sizes_of = shares
        if level["reason"] is None:
            level["threshold"] = table.quantile(target)
            sets = prediction_sets(probabilities[rows], level["threshold"])
            covered, sizes = sets[np.arange(len(rows)), labels], sets.sum(axis=1)
            level |= _measured(table, target, covered)
            if len(rows):
                level["mean_set_size"] = float(sizes.mean())
                level["set_sizes"] = np.bincount(sizes, minlength=len(names) + 1)[1:].tolist()
            shares, sizes_of = (
                _class_means(labels, values, examples) for values in (covered, sizes)
            )
        levels.append(level)
        by_class.append((shares, sizes_of))
    return {
        "validation_images": table.images,
        "test_images": len(rows),
        "levels": levels,
        "classes": [
            {
                "name": name,
                "test_images": int(examples[label]),
                "coverage": [shares[label] for shares, _ in by_class],
                "mean_set_size": [sizes[label] for _, sizes in by_class],
            }
            for label, name in enumerate(names)
        ],
    }


def _joint_metrics(
    predictions: Predictions, probabilities: Mapping[str, np.ndarray], conformal: Conformal
) -> dict[str, Any]:
    tasks = tuple(predictions.classes)
    labels = np.stack([predictions.answer_labels(task) for task in tasks], axis=1)
    labelled = labels != MISSING
    several = labelled.sum(axis=1) > 1
    complete = labelled.all(axis=1)
    levels, of_complete = [], []
    for target in SHOWN_COVERAGES:
        level, share = _promise(conformal.joint, target, joint=True), None
        if level["reason"] is None:
            thresholds = conformal.thresholds(target, joint=True)
            sets = {task: prediction_sets(probabilities[task], thresholds[task]) for task in tasks}
            rows = np.arange(len(labels))
            covered = np.all(
                [
                    sets[task][rows, own] | (own == MISSING)
                    for task, own in zip(tasks, labels.T, strict=True)
                ],
                axis=0,
            )
            level |= _measured(conformal.joint, target, covered[several])
            if several.any():
                level["mean_set_size"] = {
                    task: float(of_task[several].sum(axis=1).mean())
                    for task, of_task in sets.items()
                }
            share = float(covered[complete].mean()) if complete.any() else None
        levels.append(level)
        of_complete.append(share)
    return {
        "validation_images": conformal.joint.images,
        "test_images": int(several.sum()),
        "levels": levels,
        "images_with_all_labels": {"test_images": int(complete.sum()), "coverage": of_complete},
    }


def _promise(table: ScoreTable, target: float, *, joint: bool = False) -> dict[str, Any]:
    reason = why_too_few(table, target, joint=joint)
    content: dict[str, Any] = {"target_coverage": target, "reason": reason}
    if reason is None:
        content["validation_interval"] = list(coverage_interval(table.images, target))
    return content


def _measured(table: ScoreTable, target: float, covered: np.ndarray) -> dict[str, Any]:
    """The coverage of the test images, bool [n], and its intervals; empty without images."""
    count, right = len(covered), int(covered.sum())
    if not count:
        return {}
    # Clopper and Pearson 1934: quantiles of the Beta distribution.
    low = betaincinv(right, count - right + 1, 0.025) if right else 0.0
    high = betaincinv(right + 1, count - right, 0.975) if right < count else 1.0
    return {
        "coverage": right / count,
        "interval": [float(low), float(high)],
        "expected_interval": list(expected_interval(table.images, target, count)),
    }


def _class_means(
    labels: np.ndarray, values: np.ndarray, examples: np.ndarray
) -> list[float | None]:
    """The mean of values [n] over the images of each class; None for a class without images."""
    sums = np.bincount(labels, weights=values, minlength=len(examples))
    return [float(s / n) if n else None for s, n in zip(sums, examples, strict=True)]


# === Console ===


def coverage_lines(content: Mapping[str, Any]) -> list[str]:
    """The lines of `evaluate` about the sets of coverage HEADLINE.

    Args:
        content: the result of `coverage_metrics`.
    """
    place = SHOWN_COVERAGES.index(HEADLINE)
    parts, missing = [], []
    for task, of_task in content["tasks"].items():
        level = of_task["levels"][place]
        if level["reason"]:
            missing.append(f"No sets of coverage {HEADLINE:g}: {task}: {level['reason']}")
        elif "coverage" in level:
            parts.append(f"{task} {_measured_text(level)}, {level['mean_set_size']:.1f} classes")
    lines = []
    if parts:
        lines.append(f"Sets of coverage {HEADLINE:g} hold the right class (expected range):")
        lines += [f"  {'; '.join(parts)}"]
    joint = content.get("joint")
    if joint:
        level = joint["levels"][place]
        if level["reason"]:
            missing.append(f"No joint sets of coverage {HEADLINE:g}: {level['reason']}")
        elif "coverage" in level:
            sizes = ", ".join(f"{t} {size:.1f}" for t, size in level["mean_set_size"].items())
            lines.append(f"  all tasks together {_measured_text(level)}, classes: {sizes}")
    return lines + missing


def _measured_text(level: Mapping[str, Any]) -> str:
    low, high = level["expected_interval"]
    return f"{level['coverage']:.3f} ({low:.3f} to {high:.3f})"
