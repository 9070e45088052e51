"""Named learning-rate schedules. A new kind is a function and a line in SCHEDULES; what it may
be told are its keyword-only parameters. Steps count from the start of a phase."""

from typing import Annotated

import keras
from keras import ops
from keras.optimizers import schedules
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from multitask.spec import Kind, check_kind


def constant(steps_per_epoch: int, *, rate: PositiveFloat):
    """The rate, always."""
    return schedules.PiecewiseConstantDecay([2**30], [rate, rate])


def cosine_restarts(steps_per_epoch: int, *, rate: PositiveFloat, period: PositiveInt):
    """Cosine annealing with warm restarts (Loshchilov & Hutter 2017, eq. 5).

    Args:
        rate: at the start of each period.
        period: T, in steps; the rate falls to 0 within it and starts anew.
    """
    return schedules.CosineDecayRestarts(rate, period, t_mul=1.0, m_mul=1.0, alpha=0.0)


def exponential(
    steps_per_epoch: int,
    *,
    rate: PositiveFloat,
    decay: Annotated[float, Field(gt=0, lt=1)],
):
    """Falls by a share at the end of each epoch.

    Args:
        rate: in the first epoch.
        decay: the share, e.g. 0.02 for -2 %.
    """
    return schedules.ExponentialDecay(rate, steps_per_epoch, 1 - decay, staircase=True)


def warmup_cosine(
    steps_per_epoch: int,
    *,
    rate: PositiveFloat,
    warmup: NonNegativeInt,
    steps: PositiveInt,
):
    """A linear rise, then half a cosine down to 0, where it stays.

    Args:
        rate: at the end of the rise.
        warmup: steps of the rise.
        steps: steps of the fall.
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
):
    """`warmup_cosine` in epochs: the same spec for few pictures and for many.

    Args:
        rate: at the end of the rise.
        epochs: at whose end the rate is 0.
        warmup: epochs of the rise, to the nearest step; the fall takes the others, or one step.
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
):
    """Constant, and lowered whenever the selection score has not become better for long.

    Args:
        rate: at first.
        factor: what lowers it.
        patience: epochs without a better score before each reduction.
        least: share of the rate that it never falls below.
    """
    return OnPlateau(rate, factor, patience, least)


class OnPlateau(schedules.LearningRateSchedule):
    """A rate times a factor of its own, a variable that the compiled step sees."""

    def __init__(self, rate: float, factor: float, patience: int, least: float):
        self.rate, self.factor, self.patience, self.least = rate, factor, patience, least
        self.lowered = keras.Variable(1.0, trainable=False, dtype="float32", name="lowered")

    def __call__(self, step):
        return self.rate * ops.convert_to_tensor(self.lowered)

    def after_epoch(self, waited: int) -> None:
        if waited and waited % self.patience == 0:
            self.lowered.assign(max(float(self.lowered) * self.factor, self.least))


SCHEDULES = {
    f.__name__: f for f in (constant, cosine, cosine_restarts, exponential, plateau, warmup_cosine)
}


class ScaledSchedule(schedules.LearningRateSchedule):
    """A schedule times one factor, which the schedules of a run share.

    The factor is a variable: plateau reduction lowers it between two epochs, and the compiled
    step sees it. A schedule of the kind `plateau` has a factor of its own instead.
    """

    def __init__(self, schedule, rate_factor: float, plateau: keras.Variable):
        self.schedule = schedule
        self.rate_factor = rate_factor
        self.own = schedule if isinstance(schedule, OnPlateau) else None
        self.plateau = plateau

    def __call__(self, step):
        rate = self.schedule(step) * self.rate_factor
        return rate if self.own else rate * ops.convert_to_tensor(self.plateau)

    def after_epoch(self, waited: int) -> None:
        """Lower the schedule's own factor where it is time; other kinds than `plateau` have none.

        Args:
            waited: epochs since the best selection score, this one included; 0 where it was the
                best. Not set back by a reduction, so that no other count is needed.
        """
        if self.own:
            self.own.after_epoch(waited)

    @property
    def variables(self) -> list[keras.Variable]:
        """What must be kept to go on; the epochs waited and the shared factor are the run's."""
        return [self.own.lowered] if self.own else []


def build_schedule(
    choice: Kind,
    *,
    place: str,
    steps_per_epoch: int,
    rate_factor: float = 1.0,
    plateau: keras.Variable | None = None,
) -> ScaledSchedule:
    """A named schedule of a spec.

    Args:
        choice: kind and options.
        place: where it stands, for messages.
        steps_per_epoch: of this run.
        rate_factor: of the phase; multiplies every rate.
        plateau: the factor that schedules share (but those of the kind `plateau`); None: 1.

    Raises:
        SpecError: unknown kind or option, with its place.
    """
    options = check_kind(choice, SCHEDULES, place=place)
    schedule = SCHEDULES[choice.kind](steps_per_epoch, **options)
    if plateau is None:
        plateau = keras.Variable(1.0, trainable=False)
    return ScaledSchedule(schedule, rate_factor, plateau)
