"""Named ways to make one loss of all tasks'. A new kind is a function and a line in BALANCERS;
what it may be told are its keyword-only parameters.

None needs a backward pass a task. FAMO needs each task's loss again after the step, and so a
train step of its own, which is TensorFlow's alone.
"""

from collections.abc import Mapping

import keras
from keras import ops
from pydantic import PositiveFloat

from multitask.spec import Kind, NonNegative, SpecError, check_kind

EPSILON = 1e-8  # a loss may be 0
BETA_1, BETA_2 = 0.9, 0.999  # Adam's own


class Balancing(keras.layers.Layer):
    """The sum of the tasks' losses, each times its fixed weight of the spec.

    The other kinds replace `total` and `weights_now`. A layer, so that a model which holds it
    tracks and saves its variables; it is never called.

    A task of weight 0 is not learnt: it is left out, whatever the kind. A task without labels in
    a batch adds nothing there, neither to the loss nor to a gradient nor to a normalisation.

    Attributes:
        tasks: those that are learnt, in the spec's order.
        needs_second_forward: whether `update` must be called after each step.
    """

    needs_second_forward = False

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

    def _known(self, losses: Mapping, present, *, otherwise: float):
        """float32 [tasks]: the losses, and a constant for a task without labels."""
        stacked = ops.stack([ops.cast(losses[task], "float32") for task in self.tasks])
        return ops.where(present, stacked, otherwise)

    def _weighted(self, losses: Mapping, present):
        """float32 [tasks]: the losses times their fixed weights; 0 for a task without labels."""
        weights = ops.convert_to_tensor([self.fixed[task] for task in self.tasks], "float32")
        return weights * self._known(losses, present, otherwise=0.0)


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


class Famo(Balancing):
    """Weights under which every task's loss falls at the same rate: FAMO (Liu et al. 2023, alg. 1).

    The logits xi of the weights z = softmax(xi) follow the decrease of each task's log loss in
    the step that was just taken. Algorithm 1 writes that step as plain gradient descent; here it
    is Adam's, as in the authors' own code: a rate of 0.025 suits its steps of unit size, where
    log losses change by thousandths.

    A batch's tasks are those that have a label in it. z, c and Adam's moments are of these alone:
    the others' logits, moments and step counts stay as they are.
    """

    needs_second_forward = True

    def __init__(self, weights: Mapping[str, float], rate: float, decay: float):
        super().__init__(weights)
        self.rate, self.decay = rate, decay
        self.logits, self.mean, self.square, self.steps = (
            self.add_weight((len(self.tasks),), initializer="zeros", trainable=False, name=name)
            for name in ("logits", "mean", "square", "steps")
        )

    def total(self, losses: Mapping, labelled: Mapping):
        """One loss whose gradient is that of c * sum(z * log L), algorithm 1's step.

        z and c = 1 / sum(z / L) are constants, so that sum(c z / L * L) with constants c z / L
        has the same gradient. Its value is a mean of the losses (the harmonic, with weights z):
        never negative, which a sum of logarithms would be.
        """
        present = self._present(labelled)
        losses = self._known(losses, present, otherwise=1.0)
        weights = self._z(present) / (losses + EPSILON)
        norm = ops.sum(weights)  # 0 for a batch without labels
        weights = weights / ops.where(norm > 0, norm, 1.0)
        return ops.sum(ops.stop_gradient(weights) * losses)

    def update(self, before: Mapping, after: Mapping, labelled: Mapping) -> None:
        """Move the logits by one step, after one of the network's.

        Args:
            before: task -> float32 scalar, its loss on a batch before the network's step.
            after: the same on the same batch after it.
            labelled: task -> scalar, how many labels it has in the batch.
        """
        present = self._present(labelled)
        fall = ops.log(self._known(before, present, otherwise=1.0) + EPSILON) - ops.log(
            self._known(after, present, otherwise=1.0) + EPSILON
        )
        z = self._z(present)
        # The softmax' Jacobian, diag(z) - z z', times the fall; then the pull towards equality.
        gradient = z * (fall - ops.sum(z * fall)) + self.decay * self.logits

        def moved(variable, value):
            variable.assign(ops.where(present, value, variable.value))
            return variable.value

        steps = ops.maximum(moved(self.steps, self.steps + 1), 1)
        mean = moved(self.mean, BETA_1 * self.mean + (1 - BETA_1) * gradient)
        square = moved(self.square, BETA_2 * self.square + (1 - BETA_2) * ops.square(gradient))
        mean = mean / (1 - ops.power(BETA_1, steps))
        square = square / (1 - ops.power(BETA_2, steps))
        moved(self.logits, self.logits - self.rate * mean / (ops.sqrt(square) + EPSILON))

    def weights_now(self) -> dict[str, float]:
        """Task -> z, which sum to 1; the loss itself is multiplied by c z / L."""
        z = ops.convert_to_numpy(self._z(True))
        learnt = dict(zip(self.tasks, z.tolist(), strict=True))
        return {task: learnt.get(task, 0.0) for task in self.fixed}

    def _z(self, present):
        """float32 [tasks]: softmax over the tasks of a batch, 0 for the others."""
        logits = ops.where(present, self.logits.value, -1e9)
        # Not ops.softmax, which warns of a single task. A batch without labels, where all are
        # -1e9, has equal weights that the mask takes away.
        return ops.where(present, ops.exp(logits - ops.logsumexp(logits)), 0.0)


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


def famo(
    weights: Mapping[str, float],
    *,
    rate: PositiveFloat = 0.025,
    decay: NonNegative = 0.001,
) -> Famo:
    """Such that all tasks' losses fall at the same rate.

    Args:
        weights: task -> 1, or 0 to leave it out.
        rate: beta, of the logits' steps.
        decay: gamma, the pull of the logits towards equal weights.

    Raises:
        ValueError: a weight that would have no effect.
    """
    for task, weight in weights.items():
        if weight not in (0, 1):
            raise ValueError(
                f'"famo" finds the weights itself, whatever a loss is multiplied by: the weight '
                f'of task "{task}" may be 1, or 0 (not learnt), not {weight:g}'
            )
    return Famo(weights, rate, decay)


BALANCERS = {f.__name__: f for f in (fixed, uncertainty, famo)}


def build_balancing(choice: Kind | None, weights: Mapping[str, float], *, place: str) -> Balancing:
    """A spec's way to balance its tasks.

    Args:
        choice: kind and options; None: `fixed`.
        weights: task -> its fixed weight, >= 0, in the spec's order.
        place: where the choice stands, for messages.

    Raises:
        SpecError: unknown kind or option, with its place; weights that it cannot work with.
    """
    choice = choice or Kind(kind="fixed")
    options = check_kind(choice, BALANCERS, place=place)
    if not any(weights.values()):
        raise SpecError(f"{place}: every task has the weight 0: there is nothing to learn")
    try:
        return BALANCERS[choice.kind](weights, **options)
    except ValueError as error:
        raise SpecError(f"{place}: {error}") from None
