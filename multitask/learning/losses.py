"""Masked losses, one per task.

A new kind is a function and a line in LOSSES; its options are its keyword-only parameters (class
weights come from the data, not from the spec).
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from keras import ops
from pydantic import Field

from multitask.spec import OTHER_LABEL, DataSpec, check_kind, is_labelled

Gamma = Annotated[float, Field(ge=0)]
Alpha = Annotated[float, Field(gt=0)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]


def focal_loss(
    labels: Any,
    logits: Any,
    class_weights: Any,
    *,
    gamma: Gamma = 2.0,
    alpha: Alpha = 0.25,
    label_smoothing: Smoothing = 0.0,
) -> Any:
    """Focal loss of each example (Lin et al. 2017, eq. 5, for many classes).

    Args:
        labels: int32 [batch]; MISSING (-1) where the task has no label.
        logits: float32 [batch, classes], unnormalised.
        class_weights: float32 [classes], mean 1 over the training labels.
        gamma: focusing power, >= 0; 0 is cross-entropy.
        alpha: scale of the loss, > 0; class balance comes from class_weights.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Returns:
        float32 [batch], nats; exactly 0 where the label is missing.
    """
    labels = ops.cast(labels, "int32")
    labelled = ops.cast(is_labelled(labels), "float32")
    known = ops.maximum(labels, 0)  # -1 is not an index; its loss is multiplied by 0
    classes = ops.shape(logits)[-1]
    target = ops.one_hot(known, classes) * (1 - label_smoothing) + label_smoothing / classes
    log_p = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    # 1 - p, bounded above 0: at 0 a power below 1 has no slope, and the gradient would be NaN.
    complement = ops.maximum(-ops.expm1(log_p), 1e-7)
    focus = ops.power(complement, gamma) if gamma else 1.0
    weight = ops.take(ops.convert_to_tensor(class_weights, "float32"), known)
    return -alpha * weight * labelled * ops.sum(target * focus * log_p, axis=-1)


def cross_entropy(
    labels: Any, logits: Any, class_weights: Any, *, label_smoothing: Smoothing = 0.0
) -> Any:
    """Cross-entropy of each example: the focal loss with gamma 0 and alpha 1."""
    return focal_loss(
        labels, logits, class_weights, gamma=0.0, alpha=1.0, label_smoothing=label_smoothing
    )


LOSSES = {"focal": focal_loss, "cross_entropy": cross_entropy}


class MaskedLoss:
    """A task's loss of a batch: the mean over its labelled examples, 0 if there are none.

    Keras' default divides by the batch size, so that a half-labelled task would count half. The
    sample weight of a label is 0 or 1 (rule 10), and the sum of the weights is the number of
    labels.

    Args:
        function: one of LOSSES.
        class_weights: float32 [classes].
        options: keyword arguments of the function.
        rejection: weight of the rejection loss of an open task; 0: no rejection loss.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        class_weights: np.ndarray,
        options: dict[str, Any],
        rejection: float = 0.0,
    ):
        self.function = function
        self.class_weights = class_weights
        self.options = options
        self.rejection = rejection

    def example_losses(self, labels: Any, logits: Any) -> Any:
        """Return each example's loss, float32 [batch]."""
        return self.function(labels, logits, self.class_weights, **self.options)

    def total(self, labels: Any, logits: Any, weights: Any) -> tuple[Any, Any]:
        """Sum the loss over the labelled examples, and count them.

        Args:
            labels: int32 [batch]; MISSING where the task has no label.
            logits: float32 [batch, classes].
            weights: float32 [batch].

        Returns:
            Two float32 scalars.
        """
        losses = self.example_losses(labels, logits)
        return ops.sum(losses * weights), ops.sum(ops.cast(weights, "float32"))

    def __call__(self, labels: Any, logits: Any, weights: Any) -> Any:
        """Return the mean over the labelled examples, float32 []; arguments as in `total`.

        The rejection loss is not part of it.
        """
        total, count = self.total(labels, logits, weights)
        return total / ops.maximum(count, 1.0)

    def rejection_sums(self, labels: Any, logits: Any) -> tuple[Any, Any, Any, Any]:
        """The function `rejection_sums`, for labels of the shape that `total` takes."""
        return rejection_sums(labels, logits)


def rejection_sums(labels: Any, logits: Any) -> tuple[Any, Any, Any, Any]:
    """Sum the rejection loss over the labelled examples and over those with OTHER_LABEL.

    The score of an example is its negative free energy, the logarithm of the sum of exp(logit) (Liu
    et al. 2020, eq. 4). The loss trains this score as the logit of "has one of the classes". The
    classes then compete with a further class whose logit is 0; the head gets no further weights.

    Args:
        labels: int32 [batch]; an example with MISSING does not count.
        logits: float32 [batch, classes].

    Returns:
        Four float32 scalars: sum of the loss (nats) and number of the labelled examples, then both
        for the examples with OTHER_LABEL.
    """
    labels = ops.cast(labels, "int32")
    score = ops.logsumexp(ops.cast(logits, "float32"), axis=-1)
    known = ops.cast(is_labelled(labels), "float32")
    other = ops.cast(labels == OTHER_LABEL, "float32")
    return (
        ops.sum(known * ops.softplus(-score)),
        ops.sum(known),
        ops.sum(other * ops.softplus(score)),
        ops.sum(other),
    )


def rejection_mean(sums: tuple[Any, Any, Any, Any]) -> Any:
    """Return the mean of the two kinds' mean losses, so that both kinds have the same weight."""
    known, known_count, other, other_count = sums
    known, other = known / ops.maximum(known_count, 1.0), other / ops.maximum(other_count, 1.0)
    return (known + other) / 2


def build_losses(spec: DataSpec, class_weights: dict[str, np.ndarray]) -> dict[str, MaskedLoss]:
    """Build every task's loss.

    Args:
        spec: the losses of its tasks are built.
        class_weights: task -> float32 [classes].

    Raises:
        SpecError: unknown kind or option, with its place.
    """
    losses = {}
    for task in spec.tasks:
        options = check_kind(task.loss, LOSSES, place=spec.place(task.name, "loss"))
        function = LOSSES[task.loss.kind]
        rejection = task.other.weight if task.is_open else 0.0
        losses[task.name] = MaskedLoss(function, class_weights[task.name], options, rejection)
    return losses
