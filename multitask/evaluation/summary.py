"""The lines that `evaluate` prints."""

from typing import Any

from multitask.data.image_files import count_reasons
from multitask.errors import counted
from multitask.evaluation.coverage import coverage_lines
from multitask.evaluation.distances import distance_lines
from multitask.evaluation.evaluation import Evaluation
from multitask.spec import NO_TEST_SET


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The console's table, with one line per task, and the other results of the evaluation."""
    lines = [
        *_table_lines(evaluation.metrics),
        *exact_match_lines(evaluation.details["exact_match"]),
    ]
    if evaluation.near_duplicates:
        count = len(evaluation.near_duplicates)
        lines += [
            "",
            f"Without the {count:,} test images that show the same painting as a training image:",
            *_table_lines(evaluation.metrics_without_near_duplicates or {})[1:],
        ]
    more = [
        *_calibration_lines(evaluation),
        *_open_set_lines(evaluation),
        *coverage_lines(evaluation.details["conformal"]),
        *distance_lines(evaluation.details["distance"]),
        *_tta_lines(evaluation),
    ]
    lines += [""] * bool(more) + more
    if len(evaluation.unreadable):
        lines.append(f"test images excluded: {count_reasons(evaluation.unreadable['reason'])}")
    return lines


def _table_lines(task_metrics: dict[str, dict[str, Any]]) -> list[str]:
    width = max(4, *(len(task) for task in task_metrics))
    lines = [
        "",
        f"{'task':<{width}}  labelled   top-1   top-5  macro-F1  weighted F1   "
        "majority class: top-1  macro-F1",
    ]
    for task, values in task_metrics.items():
        if not values["labelled"]:
            lines.append(f"{task:<{width}}  n/a ({NO_TEST_SET})")
            continue
        baseline = values["baseline"]
        lines.append(
            f"{task:<{width}}  {values['labelled']:>8,}   {values['top1']:.3f}   "
            f"{values['top5']:.3f}     {values['macro_f1']:.3f}        "
            f"{values['weighted_f1']:.3f}   {'':<16} {_three_decimals(baseline['top1'])}     "
            f"{_three_decimals(baseline['macro_f1'])}"
        )
        absent = values["classes"] - values["classes_present"]
        if absent:
            lines[-1] += (
                f"   (over {counted(values['classes_present'], 'class', 'classes')}; "
                f"{counted(absent, 'has', 'have')} no test image)"
            )
    return lines


def exact_match_lines(values: dict[str, Any] | None) -> list[str]:
    """The share of images with no wrong prediction, or nothing for a single task."""
    if values is None:
        return []
    interval = values["interval"]
    ends = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return [
        f"All right ({', '.join(values['tasks'])}): {values['share']:.3f}{ends} of the "
        f"{counted(values['images'], 'image')} with all of these labels"
    ]


def _three_decimals(value: float | None) -> str:
    return "  n/a" if value is None else f"{value:.3f}"


def _calibration_lines(evaluation: Evaluation) -> list[str]:
    calibration = evaluation.details["calibration"]
    changes = [
        "{} {raw:.3f} → {calibrated:.3f} (T {:.2f})".format(
            task, values["temperature"], **values["ece"]
        )
        for task, values in calibration.items()
        if "ece" in values and not values["reason"]
    ]
    lines = []
    if changes:
        lines.append("Calibration error by temperature scaling: " + ", ".join(changes))
    lines += [
        f"Not calibrated (T = 1): {task}: {values['reason']}"
        for task, values in calibration.items()
        if values["reason"]
    ]
    return lines


def _open_set_lines(evaluation: Evaluation) -> list[str]:
    """One line per open task: how well it rejects images that have none of its classes."""
    lines = []
    for task, values in evaluation.details.get("open_set", {}).items():
        others, new = values["others"], values["new"]
        lines.append(
            f"{task}: {others['images']:,} test images have none of its classes: "
            f"{_rejection_text(others)}"
        )
        if new and new["auroc"] is not None:
            lines[-1] += (
                f"; {new['images']:,} of them are of held-out groups: {_rejection_text(new)}"
            )
        rejection = evaluation.calibrations[task].rejection
        if rejection and rejection.reason:
            lines.append(f"The probability of `other` is not fitted: {task}: {rejection.reason}")
    return lines


def _rejection_text(values: dict[str, Any]) -> str:
    if values["auroc"] is None:
        return "no test image has a label to compare with"
    return f"AUROC {values['auroc']:.3f}, FPR at 95 % TPR {values['fpr95']:.3f}"


def _tta_lines(evaluation: Evaluation) -> list[str]:
    tta = evaluation.details.get("tta")
    if not tta:
        return []
    changes = []
    for task, values in evaluation.metrics.items():
        if values["labelled"]:
            top1, macro_f1 = (tta["metrics"][f"{task}/{name}"] for name in ("top1", "macro_f1"))
            changes.append(
                f"{task} top-1 {values['top1']:.3f} → {top1:.3f}, "
                f"macro-F1 {values['macro_f1']:.3f} → {macro_f1:.3f}"
            )
    return [f"Test-time augmentation ({tta['kind']}): " + "; ".join(changes)] if changes else []
