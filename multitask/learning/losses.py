"""Masked losses, one a task. A new kind is a function and a line in LOSSES; what it may be told
are its keyword-only parameters (class weights come from the data, not from the spec)."""

from collections.abc import Mapping
from typing import Annotated

import keras
import numpy as np
from keras import ops
from pydantic import Field

from multitask.spec import MISSING, DataSpec, check_kind

Gamma = Annotated[float, Field(ge=0)]
Alpha = Annotated[float, Field(gt=0)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]


def focal_loss(
    labels,
    logits,
    class_weights,
    *,
    gamma: Gamma = 2.0,
    alpha: Alpha = 0.25,
    label_smoothing: Smoothing = 0.0,
):
    """Focal loss of each example (Lin et al. 2017, eq. 5, for many classes).

    Args:
        labels: int32 [batch]; MISSING (-1) where the task has no label.
        logits: float32 [batch, classes], unnormalised.
        class_weights: float32 [classes], mean 1 over the training labels.
        gamma: focusing power, >= 0; 0 is cross-entropy.
        alpha: plain scale of the loss, > 0; what balances classes is class_weights.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Returns:
        float32 [batch], nats; exactly 0 where the label is missing.
    """
    labels = ops.cast(labels, "int32")
    labelled = ops.cast(labels != MISSING, "float32")
    known = ops.maximum(labels, 0)  # -1 is no index; what it gives is multiplied by 0
    classes = ops.shape(logits)[-1]
    target = ops.one_hot(known, classes) * (1 - label_smoothing) + label_smoothing / classes
    log_p = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    # 1 - p, never quite 0: there a power below 1 has no slope, and the gradient would be NaN.
    doubt = ops.maximum(-ops.expm1(log_p), 1e-7)
    focus = ops.power(doubt, gamma) if gamma else 1.0
    weight = ops.take(ops.convert_to_tensor(class_weights, "float32"), known)
    return -alpha * weight * labelled * ops.sum(target * focus * log_p, axis=-1)


def cross_entropy(labels, logits, class_weights, *, label_smoothing: Smoothing = 0.0):
    """Cross-entropy of each example: the focal loss with gamma 0 and alpha 1."""
    return focal_loss(
        labels, logits, class_weights, gamma=0.0, alpha=1.0, label_smoothing=label_smoothing
    )


LOSSES = {"focal": focal_loss, "cross_entropy": cross_entropy}


class MaskedLoss:
    """A task's loss of a batch: the mean over its labelled examples, 0 where there is none.

    Keras' own default divides by the batch size, so that a half-labelled task would weigh half.
    The sample weight that comes with a label is 0 or 1 (rule 10), and their sum is the number of
    labels. A picture that was mixed of two has two labels, whose weights sum to 0 or 1.
    """

    def __init__(self, function, class_weights: np.ndarray, options: dict):
        self.function = function
        self.class_weights = class_weights
        self.options = options

    def total(self, labels, logits, weights):
        """The sum over the labelled examples, and how many they are.

        Args:
            labels: int32 [batch] or, of mixed pictures, [batch, 2]; MISSING (-1) where none.
            logits: float32 [batch, classes].
            weights: float32, of the labels' shape.
        """
        pairs = [(labels, weights)]
        if len(labels.shape) == 2:
            pairs = [(labels[:, i], weights[:, i]) for i in range(labels.shape[1])]
        losses = (
            ops.sum(self.function(y, logits, self.class_weights, **self.options) * w)
            for y, w in pairs
        )
        return sum(losses), ops.sum(ops.cast(weights, "float32"))

    def __call__(self, labels, logits, weights):
        """The mean, float32 []; arguments as of `total`."""
        total, count = self.total(labels, logits, weights)
        return total / ops.maximum(count, 1.0)


def build_losses(spec: DataSpec, class_weights: dict[str, np.ndarray]) -> dict[str, MaskedLoss]:
    """Every task's loss, as `compile` takes them.

    Raises:
        SpecError: unknown kind or option, with its place.
    """
    losses = {}
    for task in spec.tasks:
        options = check_kind(task.loss, LOSSES, place=spec.place(task.name, "loss"))
        function = LOSSES[task.loss.kind]
        losses[task.name] = MaskedLoss(function, class_weights[task.name], options)
    return losses


class MacroF1(keras.metrics.Metric):
    """Macro-F1 over the classes that have a label (rule 11), from a running confusion matrix.

    Keras' F1Score wants one-hot labels and counts absent classes as 0.
    """

    def __init__(self, classes: int, name: str = "macro_f1"):
        super().__init__(name=name)
        self.classes = classes
        self.matrix = self.add_variable((classes, classes), "zeros", name="matrix")

    def update_state(self, y_true, y_pred, sample_weight=None):
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        weight = ops.cast(labels != MISSING, "float32")
        if sample_weight is not None:
            weight *= ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
        true = ops.one_hot(ops.maximum(labels, 0), self.classes) * weight[:, None]
        predicted = ops.one_hot(ops.argmax(y_pred, axis=-1), self.classes)
        self.matrix.assign_add(ops.matmul(ops.transpose(true), predicted))

    def result(self):
        hits = ops.diagonal(self.matrix)
        support = ops.sum(self.matrix, axis=1)
        f1 = 2 * hits / ops.maximum(support + ops.sum(self.matrix, axis=0), 1)
        present = ops.cast(support > 0, "float32")
        return ops.sum(f1 * present) / ops.maximum(ops.sum(present), 1)


def build_metrics(classes: Mapping[str, int]) -> dict[str, list[keras.metrics.Metric]]:
    """Every task's metrics, with the task in their names.

    The task comes last: Keras puts `val_` before the whole name, and `val_artist/top1` could be
    that of a task called `val_artist`. `callbacks.rename_logs` makes `artist/val_top1` of it.
    `labelled` is how many labels there were: a task without any shows `n/a`, not 0.
    """
    return {
        task: [
            keras.metrics.SparseCategoricalAccuracy(name=f"top1/{task}"),
            MacroF1(count, name=f"macro_f1/{task}"),
            LabelCount(name=f"labelled/{task}"),
        ]
        for task, count in classes.items()
    }


class LabelCount(keras.metrics.Metric):
    """How many labels were seen."""

    def __init__(self, name: str = "labelled"):
        super().__init__(name=name)
        self.total = self.add_variable((), "zeros", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        labels = ops.cast(y_true, "int32")
        self.total.assign_add(ops.sum(ops.cast(labels != MISSING, "float32")))

    def result(self):
        # Not the variable: `fit` reads its logs after the test, which counts from 0 again.
        return self.total + 0
