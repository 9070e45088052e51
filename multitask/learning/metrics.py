"""Metrics that `fit` computes for each task, as Keras metric objects."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from multitask.spec import is_labelled


class MacroF1(keras.metrics.Metric):
    """Macro-F1 over the classes that have a label (rule 11), from a running confusion matrix.

    Keras' F1Score takes one-hot labels and counts absent classes as 0.

    Args:
        classes: number of classes.
        name: name of the metric.
    """

    def __init__(self, classes: int, name: str = "macro_f1"):
        super().__init__(name=name)
        self.classes = classes
        self.matrix = self.add_variable((classes, classes), "zeros", name="matrix")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count a batch: labels and weights [batch], logits [batch, classes]."""
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        weight = ops.cast(is_labelled(labels), "float32")
        if sample_weight is not None:
            weight *= ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
        true = ops.one_hot(ops.maximum(labels, 0), self.classes) * weight[:, None]
        predicted = ops.one_hot(ops.argmax(y_pred, axis=-1), self.classes)
        self.matrix.assign_add(ops.matmul(ops.transpose(true), predicted))

    def result(self) -> Any:
        """Return macro-F1, float32 []."""
        hits = ops.diagonal(self.matrix)
        support = ops.sum(self.matrix, axis=1)
        f1 = 2 * hits / ops.maximum(support + ops.sum(self.matrix, axis=0), 1)
        present = ops.cast(support > 0, "float32")
        return ops.sum(f1 * present) / ops.maximum(ops.sum(present), 1)


class LabelCount(keras.metrics.Metric):
    """The number of labels."""

    def __init__(self, name: str = "labelled"):
        super().__init__(name=name)
        self.total = self.add_variable((), "zeros", name="total")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count the labels [batch] that are not missing."""
        labels = ops.cast(y_true, "int32")
        self.total.assign_add(ops.sum(ops.cast(is_labelled(labels), "float32")))

    def result(self) -> Any:
        """Return the number of labels, float32 []."""
        # A copy: `fit` reads its logs after the validation, which resets the variable.
        return self.total + 0


def build_metrics(classes: Mapping[str, int]) -> dict[str, list[keras.metrics.Metric]]:
    """Build every task's metrics, named `{metric}/{task}`.

    The task comes last because Keras puts `val_` before the whole name, and `val_artist/top1`
    could be a metric of a task called `val_artist`. `callbacks.rename_logs` turns the names into
    `artist/val_top1`. `labelled` is the number of labels: a task without any shows `n/a`, not 0.
    """
    return {
        task: [
            keras.metrics.SparseCategoricalAccuracy(name=f"top1/{task}"),
            MacroF1(count, name=f"macro_f1/{task}"),
            LabelCount(name=f"labelled/{task}"),
        ]
        for task, count in classes.items()
    }
