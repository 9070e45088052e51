"""The model that `fit` trains: the network's outputs, and how its tasks make one loss."""

from collections.abc import Mapping

import keras
from keras import ops

from multitask.learning.backend import over_replicas, replicas
from multitask.learning.balancing import Balancing
from multitask.learning.contrastive import supervised_contrastive_loss
from multitask.learning.losses import MaskedLoss, build_metrics
from multitask.model.network import EMBEDDING


class MultitaskModel(keras.Model):
    """A functional model {task: logits} with a masked loss and metrics for each task.

    Its batches are inputs, {task: label} and {task: weight}, as `data.pipeline` gives them.
    Keras' own losses of `compile` are not used: they know nothing of how many labels there were.

    Args:
        inputs: of the functional model.
        outputs: task -> logits; EMBEDDING -> what the contrastive loss is of, where there is one.
        losses: task -> its loss.
        balancing: makes one loss of all.
        classes: task -> number of classes.
        contrastive: task -> weight of its contrastive loss.
        temperature: of that.
    """

    def __init__(
        self,
        inputs,
        outputs: Mapping,
        *,
        losses: Mapping[str, MaskedLoss],
        balancing: Balancing,
        classes: Mapping[str, int],
        contrastive: Mapping[str, float] | None = None,
        temperature: float = 0.1,
    ):
        super().__init__(inputs, dict(outputs))
        self.task_losses = losses
        self.balancing = balancing
        self.contrastive = contrastive or {}
        self.temperature = temperature
        self.means = {task: keras.metrics.Mean(name=f"loss/{task}") for task in losses}
        self.contrastive_means = {
            task: keras.metrics.Mean(name=f"contrastive_loss/{task}") for task in self.contrastive
        }
        self.figures = build_metrics(classes)

    def task_means(self, y: Mapping, y_pred: Mapping, weights: Mapping) -> tuple[dict, dict]:
        """Each task's mean loss over its labels in a batch, and how many labels it has; of the
        whole batch, where replicas have parts of it."""
        means, counts = {}, {}
        for task, loss in self.task_losses.items():
            sums = loss.total(y[task], y_pred[task], weights[task])
            total, counts[task] = (over_replicas(value) for value in sums)
            means[task] = total / ops.maximum(counts[task], 1.0)
        return means, counts

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """One loss of all tasks'."""
        means, counts = self.task_means(y, y_pred, sample_weight)
        for task, mean in self.means.items():
            mean.update_state(means[task], sample_weight=counts[task])
        loss = self.balancing.total(means, counts)
        for task, weight in self.contrastive.items():
            value = supervised_contrastive_loss(
                y[task], y_pred[EMBEDDING], temperature=self.temperature
            )
            self.contrastive_means[task].update_state(value)
            loss += weight * value
        return loss / replicas()  # whose gradients are summed

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Of a mixed picture, the label that it has most of counts."""
        for task, metrics in self.figures.items():
            labels, weights = y[task], sample_weight[task]
            if len(labels.shape) == 2:
                most = ops.argmax(weights, axis=1)[:, None]
                labels = ops.take_along_axis(labels, most, axis=1)[:, 0]
                weights = ops.sum(weights, axis=1)
            for metric in metrics:
                metric.update_state(labels, y_pred[task], sample_weight=weights)
        return self.get_metrics_result()
