"""Loss balancers: combine the task losses into one. A new kind is a function and a line in
BALANCERS; its options are its keyword-only parameters.

No kind needs a backward pass per task.
"""

from collections.abc import Mapping

import keras
from keras import ops
from pydantic import PositiveFloat

from multitask.spec import Kind, SpecError, check_kind


class Balancing(keras.layers.Layer):
    """The sum of the tasks' losses, each times its fixed weight of the spec.

    The other kinds replace `total` and `weights_now`. A layer, so that a model which holds it
    tracks and saves its variables; it is never called.

    A task of weight 0 is not learnt: it is left out, whatever the kind. A task without labels in
    a batch adds nothing there, neither to the loss nor to a gradient nor to a normalisation.

    Attributes:
        tasks: those that are learnt, in the spec's order.
    """

    def __init__(self, weights: Mapping[str, float]):
        super().__init__(name="balancing", dtype="float32")
        self.fixed = dict(weights)  # Keras has `weights` for itself
        self.tasks = tuple(task for task, weight in weights.items() if weight > 0)
        self.built = True

    def total(self, losses: Mapping, labelled: Mapping):
        """The one loss to differentiate.

        Args:
            losses: task -> float32 scalar, the mean loss over its labels in the batch.
            labelled: task -> scalar, how many labels it has in the batch.

        Returns:
            float32 scalar; 0 for a batch without any label.
        """
        return ops.sum(self._weighted(losses, self._present(labelled)))

    def weights_now(self) -> dict[str, float]:
        """Task -> what its loss is multiplied by; for the logs, outside of a compiled step."""
        return dict(self.fixed)

    def _present(self, labelled: Mapping):
        """bool [tasks]: whether a task has a label in the batch."""
        return ops.stack([ops.cast(labelled[task], "float32") > 0 for task in self.tasks])

    def _weighted(self, losses: Mapping, present):
        """float32 [tasks]: the losses times their fixed weights; 0 for a task without labels."""
        weights = ops.convert_to_tensor([self.fixed[task] for task in self.tasks], "float32")
        stacked = ops.stack([ops.cast(losses[task], "float32") for task in self.tasks])
        return weights * ops.where(present, stacked, 0.0)


class Uncertainty(Balancing):
    """Weights that are learnt with the network: homoscedastic uncertainty (Kendall et al. 2018).

    The form of a classification in their eq. 10, with s = log sigma²: exp(-s) L + s / 2, where L
    is the task's loss times its fixed weight. (A regression's has L / 2.) At a loss that stands
    still, s is best at log(2 L): the weight is then 1 / (2 L).

    The log-variances s are trainable variables, `{task}_log_variance`, 0 at first. They must not
    decay.

    Attributes:
        rate: their learning rate.
    """

    def __init__(self, weights: Mapping[str, float], rate: float):
        super().__init__(weights)
        self.rate = rate
        self.log_variances = [
            self.add_weight((), initializer="zeros", name=f"{task}_log_variance")
            for task in self.tasks
        ]

    def total(self, losses: Mapping, labelled: Mapping):
        present = self._present(labelled)
        losses = self._weighted(losses, present)
        s = ops.stack([s.value for s in self.log_variances])
        return ops.sum(ops.where(present, ops.exp(-s) * losses + s / 2, 0.0))

    def weights_now(self) -> dict[str, float]:
        learnt = {
            task: self.fixed[task] * float(ops.exp(-s))
            for task, s in zip(self.tasks, self.log_variances, strict=True)
        }
        return {task: learnt.get(task, 0.0) for task in self.fixed}


def fixed(weights: Mapping[str, float]) -> Balancing:
    """Each task's `weight` of the spec, always."""
    return Balancing(weights)


def uncertainty(weights: Mapping[str, float], *, rate: PositiveFloat = 1e-3) -> Uncertainty:
    """Learnt with the network, from each task's uncertainty.

    Args:
        weights: task -> what its loss is multiplied by first.
        rate: learning rate of the log-variances, constant.
    """
    return Uncertainty(weights, rate)


BALANCERS = {f.__name__: f for f in (fixed, uncertainty)}


def build_balancing(choice: Kind | None, weights: Mapping[str, float], *, place: str) -> Balancing:
    """A spec's way to balance its tasks.

    Args:
        choice: kind and options; None: `fixed`.
        weights: task -> its fixed weight, >= 0, in the spec's order.
        place: where the choice stands, for messages.

    Raises:
        SpecError: unknown kind or option, or every weight is 0; the message names the place.
    """
    choice = choice or Kind(kind="fixed")
    options = check_kind(choice, BALANCERS, place=place)
    if not any(weights.values()):
        raise SpecError(f"{place}: every task has the weight 0: there is nothing to learn")
    return BALANCERS[choice.kind](weights, **options)
