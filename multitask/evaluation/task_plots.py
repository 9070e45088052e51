"""The plots of one task's evaluation: each is drawn into a PNG file or a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multitask import metrics
from multitask.data.image_files import read_reduced
from multitask.evaluation.architecture import architecture_nodes
from multitask.evaluation.evaluation import Evaluation
from multitask.evaluation.predictions import Predictions
from multitask.evaluation.task_metrics import LOW_CONFIDENCE
from multitask.pages import (
    class_plots,
    coverage_plots,
    curves,
    diagram,
    image_sheets,
    open_set_plots,
)
from multitask.pages.canvas import Target
from multitask.trained import TrainedModel

SHOWN_OUTLIERS = 24  # images of the plot
THUMBNAIL_PX = 240


def thumbnail(image_dir: Path, path: str) -> np.ndarray | None:
    """Read an image for display; None where it cannot be read."""
    return read_reduced(image_dir / path, target_px=THUMBNAIL_PX)


@dataclass(frozen=True)
class PlotSource:
    """What the plots of a task are drawn from.

    Attributes:
        trained: the evaluated model.
        evaluation: its result.
        task: the task.
        history: one row per epoch.
    """

    trained: TrainedModel
    evaluation: Evaluation
    task: str
    history: pd.DataFrame

    @property
    def predictions(self) -> Predictions:
        """Of the test images."""
        return self.evaluation.predictions

    @property
    def names(self) -> Sequence[str]:
        """The names of the task's classes."""
        return self.predictions.classes[self.task]

    @cached_property
    def outliers(self) -> pd.DataFrame:
        """The test images with a wrong or unconfident prediction, worst first."""
        rows, labels, probabilities = self.predictions.labelled_examples(self.task)
        order = metrics.outliers(labels, probabilities, below=LOW_CONFIDENCE)
        predicted = probabilities.argmax(axis=1)
        wrong = predicted[order] != labels[order]
        return pd.DataFrame(
            {
                "path": self.predictions.paths[rows[order]],
                "true": [self.names[i] for i in labels[order]],
                "predicted": [self.names[i] for i in predicted[order]],
                "confidence": probabilities[order].max(axis=1),
                "probability_of_true": probabilities[order, labels[order]],
                "reason": np.where(wrong, "misclassified", "low confidence"),
            }
        )


def _confusion_matrix(target: Target, source: PlotSource) -> None:
    _, labels, probabilities = source.predictions.labelled_examples(source.task)
    predicted = probabilities.argmax(axis=1)
    matrix: Mapping[str, Any] = source.evaluation.details["confusion"][source.task]
    counts, names = matrix["counts"], matrix["names"]
    if not matrix["others"]:  # a complete matrix is plotted in the order of the class file
        names = source.names
        counts = metrics.confusion(labels, predicted, classes=len(names))
    class_plots.confusion_matrix(
        target,
        counts,
        names,
        task=source.task,
        rest=matrix["others"],
        right=int((predicted == labels).sum()),
    )


def _f1_scores(target: Target, source: PlotSource) -> None:
    _, labels, probabilities = source.predictions.labelled_examples(source.task)
    table = metrics.per_class(labels, probabilities.argmax(axis=1), classes=len(source.names))
    class_plots.f1_scores(
        target,
        table["f1"].to_numpy(),
        table["support"].to_numpy(),
        source.names,
        task=source.task,
        macro_f1=source.evaluation.metrics[source.task]["macro_f1"],
    )


def _training_history(target: Target, source: PlotSource) -> None:
    curves.training_history(target, source.history, task=source.task)


def _architecture(target: Target, source: PlotSource) -> None:
    nodes = architecture_nodes(source.trained.network, source.task)
    diagram.architecture(target, nodes, task=source.task)


def _outliers(target: Target, source: PlotSource) -> None:
    shown = source.outliers.head(SHOWN_OUTLIERS)
    image_sheets.outliers(
        target,
        [thumbnail(source.trained.image_dir, path) for path in shown["path"]],
        [
            f"true: {row.true}\npredicted: {row.predicted}\nconfidence {row.confidence:.2f}"
            for row in shown.itertuples()
        ],
        task=source.task,
        total=len(source.outliers),
    )


def _open_set(target: Target, source: PlotSource) -> None:
    values = source.evaluation.details.get("open_set", {}).get(source.task)
    open_set_plots.open_set(target, values, task=source.task)


def _coverage(target: Target, source: PlotSource) -> None:
    of_task = source.evaluation.details["conformal"]["tasks"][source.task]
    coverage_plots.coverage(target, of_task, task=source.task)


OPEN_SET = "open_set"  # the plot of open tasks alone
PLOTS: dict[str, Callable[[Target, PlotSource], None]] = {
    "confusion_matrix": _confusion_matrix,
    "f1_scores": _f1_scores,
    "coverage": _coverage,
    "training_history": _training_history,
    "model_architecture": _architecture,
    "outliers": _outliers,
    OPEN_SET: _open_set,
}
