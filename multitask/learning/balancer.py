"""The loss balancer: combines the task losses into one. Fixed weights are the default."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from multitask.spec import Kind


class LossBalancer(keras.layers.Layer):
    """The sum of the task losses, each multiplied by its fixed weight.

    A subclass overrides `total` and `current_weights`. It is a layer so that the model tracks and
    saves its variables; it is never called.

    A task of weight 0 is not learnt and is excluded. A task without labels in a batch contributes
    nothing to that batch: not to the loss, not to a gradient, not to a normalisation.

    Args:
        weights: task -> its fixed weight, >= 0, in the spec's order.

    Attributes:
        tasks: the tasks that are learnt, in the spec's order.
        schedule: learning rate of the balancer's own variables; None: there are no such variables.
    """

    schedule: Kind | None = None

    def __init__(self, weights: Mapping[str, float]):
        super().__init__(name="balancing", dtype="float32")
        self.fixed = dict(weights)  # Keras reserves the name `weights`
        self.tasks = tuple(task for task, weight in weights.items() if weight > 0)
        self.built = True

    def total(self, losses: Mapping[str, Any], labelled: Mapping[str, Any]) -> Any:
        """Compute the one loss to differentiate.

        Args:
            losses: task -> float32 scalar, the mean loss over its labels in the batch.
            labelled: task -> scalar, the number of its labels in the batch.

        Returns:
            float32 scalar; 0 for a batch without any label.
        """
        return ops.sum(self._weighted(losses, self._present(labelled)))

    def current_weights(self) -> dict[str, float]:
        """Return each task's factor, for the logs; not for use in a compiled step."""
        return dict(self.fixed)

    def _present(self, labelled: Mapping[str, Any]) -> Any:
        """Return bool [tasks]: whether a task has a label in the batch."""
        return ops.stack([ops.cast(labelled[task], "float32") > 0 for task in self.tasks])

    def _weighted(self, losses: Mapping[str, Any], present: Any) -> Any:
        """Return float32 [tasks]: the weighted losses; 0 for a task without labels."""
        weights = ops.convert_to_tensor([self.fixed[task] for task in self.tasks], "float32")
        stacked = ops.stack([ops.cast(losses[task], "float32") for task in self.tasks])
        return weights * ops.where(present, stacked, 0.0)
