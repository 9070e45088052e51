"""Loss balancers by name.

A new kind is a function and a line in BALANCERS; its options are its keyword-only parameters.

No kind needs a backward pass per task.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from keras import ops
from pydantic import PositiveFloat

from multitask.learning.balancer import LossBalancer
from multitask.spec import Kind, check_kind


class Uncertainty(LossBalancer):
    """Weights that are learnt with the network: homoscedastic uncertainty (Kendall et al. 2018).

    Each task contributes the classification form of their eq. 10, with s = log sigma²:
    exp(-s) L + s / 2, where L is the task's loss times its fixed weight. (A regression has L / 2.)
    For a constant loss the best s is log(2 L), and the weight is then 1 / (2 L).

    The log-variances s are trainable variables, `{task}_log_variance`, initially 0. Weight decay
    must not apply to them.

    Args:
        weights: task -> its fixed weight.
        rate: learning rate of the log-variances, constant.
    """

    def __init__(self, weights: Mapping[str, float], rate: float):
        super().__init__(weights)
        self.schedule = Kind(kind="constant", rate=rate)
        self.log_variances = [
            self.add_weight((), initializer="zeros", name=f"{task}_log_variance")
            for task in self.tasks
        ]

    def total(self, losses: Mapping[str, Any], labelled: Mapping[str, Any]) -> Any:
        """Compute the one loss to differentiate; arguments as in LossBalancer."""
        present = self._present(labelled)
        losses = self._weighted(losses, present)
        s = ops.stack([s.value for s in self.log_variances])
        return ops.sum(ops.where(present, ops.exp(-s) * losses + s / 2, 0.0))

    def current_weights(self) -> dict[str, float]:
        """Return each task's factor as learnt so far."""
        learnt = {
            task: self.fixed[task] * float(ops.exp(-s))
            for task, s in zip(self.tasks, self.log_variances, strict=True)
        }
        return {task: learnt.get(task, 0.0) for task in self.fixed}


def fixed(weights: Mapping[str, float]) -> LossBalancer:
    """Keep each task's `weight` of the spec."""
    return LossBalancer(weights)


def uncertainty(weights: Mapping[str, float], *, rate: PositiveFloat = 1e-3) -> Uncertainty:
    """Learn the weights with the network, from each task's uncertainty.

    Args:
        weights: task -> its initial factor.
        rate: learning rate of the log-variances, constant.
    """
    return Uncertainty(weights, rate)


BALANCERS = {f.__name__: f for f in (fixed, uncertainty)}


def build_balancer(
    choice: Kind | None, *, place: str
) -> Callable[[Mapping[str, float]], LossBalancer]:
    """Return a function from task weights to a new balancer.

    Args:
        choice: kind and options; None: `fixed`.
        place: place of the choice in the spec, for messages.

    Raises:
        SpecError: unknown kind or option, with its place.
    """
    choice = choice or Kind(kind="fixed")
    options = check_kind(choice, BALANCERS, place=place)
    return functools.partial(BALANCERS[choice.kind], **options)
