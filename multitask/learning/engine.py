"""The model that `fit` trains: the network's outputs, and how its tasks make one loss."""

from collections.abc import Mapping

import keras
from keras import ops

from multitask.learning.losses import MaskedLoss, build_metrics


class MultitaskModel(keras.Model):
    """A functional model {task: logits} with a masked loss and metrics for each task.

    Its batches are inputs, {task: label} and {task: weight}, as `data.pipeline` gives them.
    Keras' own losses of `compile` are not used: they know nothing of how many labels there were.

    Args:
        inputs: of the functional model.
        outputs: task -> logits.
        losses: task -> its loss.
        loss_weights: task -> factor in the sum.
        classes: task -> number of classes.
    """

    def __init__(
        self,
        inputs,
        outputs: Mapping,
        *,
        losses: Mapping[str, MaskedLoss],
        loss_weights: Mapping[str, float],
        classes: Mapping[str, int],
    ):
        super().__init__(inputs, dict(outputs))
        self.tasks = tuple(losses)
        self.losses_of = losses
        self.loss_weights = loss_weights
        self.means = [keras.metrics.Mean(name=f"{task}_loss") for task in losses]
        self.figures = build_metrics(classes)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Each task's mean over its labels in the batch, and their weighted sum."""
        loss = 0.0
        for task, mean in zip(self.tasks, self.means, strict=True):
            total, count = self.losses_of[task].total(y[task], y_pred[task], sample_weight[task])
            value = total / ops.maximum(count, 1.0)
            mean.update_state(value, sample_weight=count)
            loss += self.loss_weights[task] * value
        return loss

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
