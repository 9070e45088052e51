"""Named learning-rate schedules.

A new kind is a function and a line in SCHEDULES; its options are its keyword-only parameters.
Steps count from the start of a phase.
"""

from typing import Annotated, Any

import keras
from keras import ops
from keras.optimizers import schedules
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from multitask.spec import Kind, check_kind


def constant(steps_per_epoch: int, *, rate: PositiveFloat) -> schedules.LearningRateSchedule:
    """Keep the rate constant."""
    return schedules.PiecewiseConstantDecay([2**30], [rate, rate])


def cosine_restarts(
    steps_per_epoch: int, *, rate: PositiveFloat, period: PositiveInt
) -> schedules.LearningRateSchedule:
    """Cosine annealing with warm restarts (Loshchilov & Hutter 2017, eq. 5).

    Args:
        steps_per_epoch: not used.
        rate: rate at the start of each period.
        period: T, in steps; the rate falls to 0 within it and then restarts.
    """
    return schedules.CosineDecayRestarts(rate, period, t_mul=1.0, m_mul=1.0, alpha=0.0)


def exponential(
    steps_per_epoch: int,
    *,
    rate: PositiveFloat,
    decay: Annotated[float, Field(gt=0, lt=1)],
) -> schedules.LearningRateSchedule:
    """Decrease the rate by a share at the end of each epoch.

    Args:
        steps_per_epoch: number of steps per epoch of this run.
        rate: rate in the first epoch.
        decay: the share, e.g. 0.02 for -2 % per epoch.
    """
    return schedules.ExponentialDecay(rate, steps_per_epoch, 1 - decay, staircase=True)


def warmup_cosine(
    steps_per_epoch: int,
    *,
    rate: PositiveFloat,
    warmup: NonNegativeInt,
    steps: PositiveInt,
) -> schedules.LearningRateSchedule:
    """Rise linearly, then fall along half a cosine to 0, and stay there.

    Args:
        steps_per_epoch: not used.
        rate: rate at the end of the rise.
        warmup: number of steps of the rise.
        steps: number of steps of the fall.
    """
    if not warmup:
        return schedules.CosineDecay(rate, steps)
    return schedules.CosineDecay(0.0, steps, warmup_target=rate, warmup_steps=warmup)


def cosine(
    steps_per_epoch: int,
    *,
    rate: PositiveFloat,
    epochs: PositiveInt,
    warmup: NonNegativeFloat = 0.5,
) -> schedules.LearningRateSchedule:
    """Like `warmup_cosine`, but in epochs, so that a spec suits any number of images.

    Args:
        steps_per_epoch: number of steps per epoch of this run.
        rate: rate at the end of the rise.
        epochs: number of epochs until the rate is 0.
        warmup: epochs of the rise, rounded to steps; the fall takes the rest, at least one step.
    """
    rise = round(warmup * steps_per_epoch)
    fall = max(epochs * steps_per_epoch - rise, 1)
    return warmup_cosine(steps_per_epoch, rate=rate, warmup=rise, steps=fall)


def plateau(
    steps_per_epoch: int,
    *,
    rate: PositiveFloat,
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    patience: PositiveInt = 4,
    least: Annotated[float, Field(gt=0, le=1)] = 0.01,
) -> schedules.LearningRateSchedule:
    """Keep the rate constant, and lower it whenever the validation score stops improving.

    Args:
        steps_per_epoch: not used.
        rate: the initial rate.
        factor: factor of each reduction.
        patience: epochs without a better score before each reduction.
        least: lower bound, as a share of the initial rate.
    """
    return OnPlateau(rate, factor, patience, least)


class OnPlateau(schedules.LearningRateSchedule):
    """A rate times its own factor; the factor is a variable that the compiled step reads.

    Args:
        rate: the initial rate.
        factor: factor of each reduction.
        patience: epochs without a better score before each reduction.
        least: lower bound, as a share of the initial rate.
    """

    def __init__(self, rate: float, factor: float, patience: int, least: float):
        self.rate, self.factor, self.patience, self.least = rate, factor, patience, least
        self.lowered = keras.Variable(1.0, trainable=False, dtype="float32", name="lowered")

    def __call__(self, step: Any) -> Any:
        """Return the rate at a step."""
        return self.rate * ops.convert_to_tensor(self.lowered)

    def after_epoch(self, waited: int) -> None:
        """Lower the factor after every `patience` epochs without a better score."""
        if waited and waited % self.patience == 0:
            self.lowered.assign(max(float(self.lowered) * self.factor, self.least))


SCHEDULES = {
    f.__name__: f for f in (constant, cosine, cosine_restarts, exponential, plateau, warmup_cosine)
}


class ScaledSchedule(schedules.LearningRateSchedule):
    """A schedule times a factor that all schedules of a run share.

    The factor is a variable: plateau reduction lowers it between two epochs, and the compiled
    step reads it. A schedule of the kind `plateau` has its own factor instead.

    Args:
        schedule: one of SCHEDULES.
        rate_factor: factor of the phase.
        plateau: the shared factor.
    """

    def __init__(
        self,
        schedule: schedules.LearningRateSchedule,
        rate_factor: float,
        plateau: keras.Variable,
    ):
        self.schedule = schedule
        self.rate_factor = rate_factor
        self.own = schedule if isinstance(schedule, OnPlateau) else None
        self.plateau = plateau

    def __call__(self, step: Any) -> Any:
        """Return the rate at a step."""
        rate = self.schedule(step) * self.rate_factor
        return rate if self.own else rate * ops.convert_to_tensor(self.plateau)

    def after_epoch(self, waited: int) -> None:
        """Lower the schedule's own factor if due; only the kind `plateau` has one.

        Args:
            waited: epochs since the best validation score, including this one; 0 if this one was
                the best. A reduction does not reset it.
        """
        if self.own:
            self.own.after_epoch(waited)

    @property
    def variables(self) -> list[keras.Variable]:
        """The schedule's own state; the run keeps the waited epochs and the shared factor."""
        return [self.own.lowered] if self.own else []


def build_schedule(
    choice: Kind,
    *,
    place: str,
    steps_per_epoch: int,
    rate_factor: float = 1.0,
    plateau: keras.Variable | None = None,
) -> ScaledSchedule:
    """Build a named schedule of a spec.

    Args:
        choice: kind and options.
        place: place of the choice in the spec, for messages.
        steps_per_epoch: number of steps per epoch of this run.
        rate_factor: factor of the phase on every rate.
        plateau: the factor that all schedules share (except the kind `plateau`); None: 1.

    Raises:
        SpecError: unknown kind or option, with its place.
    """
    options = check_kind(choice, SCHEDULES, place=place)
    schedule = SCHEDULES[choice.kind](steps_per_epoch, **options)
    if plateau is None:
        plateau = keras.Variable(1.0, trainable=False)
    return ScaledSchedule(schedule, rate_factor, plateau)
