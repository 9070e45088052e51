"""The model that `fit` trains: the outputs of the network, and one loss for all tasks."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from multitask.backend import over_replicas, replicas
from multitask.learning.balancer import LossBalancer
from multitask.learning.extensions import ExtraLoss
from multitask.learning.losses import MaskedLoss, rejection_mean
from multitask.learning.metrics import build_metrics
from multitask.model.network import PROJECTED


def _unchanged(labels: Any, weights: Any) -> tuple[Any, Any]:
    return labels, weights


def _extra_means(extra_loss: ExtraLoss | None) -> dict[str, keras.metrics.Mean]:
    """Make the metrics of each task's extra loss."""
    if extra_loss is None:
        return {}
    return {
        task: keras.metrics.Mean(name=f"{extra_loss.name}_loss/{task}")
        for task in extra_loss.weights
    }


class MultitaskModel(keras.Model):
    """A functional model {task: logits} with a masked loss and metrics for each task.

    A batch has inputs, {task: label} and {task: weight}, as `data.pipeline` makes them. The losses
    of Keras' `compile` are not used: they do not know the number of labels.

    Args:
        inputs: inputs of the functional model.
        outputs: task -> logits; with an extra loss, PROJECTED -> its vectors.
        losses: task -> its loss.
        balancer: combines the task losses into one.
        classes: task -> number of classes.
        extra_loss: a further loss on the projected features; None: no such loss.
        metric_targets: maps a task's labels and weights to those of its metrics, each [batch].
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Mapping[str, Any],
        *,
        losses: Mapping[str, MaskedLoss],
        balancer: LossBalancer,
        classes: Mapping[str, int],
        extra_loss: ExtraLoss | None = None,
        metric_targets: Callable[[Any, Any], tuple[Any, Any]] = _unchanged,
    ):
        super().__init__(inputs, dict(outputs))
        self.task_losses = losses
        self.balancer = balancer
        self.extra_loss = extra_loss
        self.metric_targets = metric_targets
        self.means = {task: keras.metrics.Mean(name=f"loss/{task}") for task in losses}
        self.extra_means = _extra_means(extra_loss)
        self.task_metrics = build_metrics(classes)

    def task_means(
        self, y: Mapping[str, Any], y_pred: Mapping[str, Any], weights: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compute each task's mean loss over its labels in a batch, and its number of labels.

        If each replica has a part of the batch, both are still those of the whole batch.
        """
        means, counts = {}, {}
        for task, loss in self.task_losses.items():
            sums = loss.total(y[task], y_pred[task], weights[task])
            total, counts[task] = (over_replicas(value) for value in sums)
            means[task] = total / ops.maximum(counts[task], 1.0)
            if loss.rejection:
                kinds = loss.rejection_sums(y[task], y_pred[task])
                means[task] += loss.rejection * rejection_mean(tuple(map(over_replicas, kinds)))
        return means, counts

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Compute the one loss of all tasks."""
        means, counts = self.task_means(y, y_pred, sample_weight)
        for task, mean in self.means.items():
            mean.update_state(means[task], sample_weight=counts[task])
        loss = self.balancer.total(means, counts)
        if self.extra_loss is not None:
            for task, weight in self.extra_loss.weights.items():
                value = self.extra_loss(y[task], y_pred[PROJECTED])
                self.extra_means[task].update_state(value)
                loss += weight * value
        return loss / replicas()  # the gradients of the replicas are summed

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Update each task's metrics and return all results."""
        for task, metrics in self.task_metrics.items():
            labels, weights = self.metric_targets(y[task], sample_weight[task])
            for metric in metrics:
                metric.update_state(labels, y_pred[task], sample_weight=weights)
        return self.get_metrics_result()
