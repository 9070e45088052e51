"""Named learning-rate schedules. A new kind is a function and a line in SCHEDULES; what it may
be told are its keyword-only parameters. Steps count from the start of a phase."""

from typing import Annotated

import keras
from keras import ops
from keras.optimizers import schedules
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

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


SCHEDULES = {f.__name__: f for f in (constant, cosine_restarts, exponential, warmup_cosine)}


class ScaledSchedule(schedules.LearningRateSchedule):
    """A schedule times one factor, which every schedule of a run shares.

    The factor is a variable: plateau reduction lowers it between two epochs, and the compiled
    step sees it.
    """

    def __init__(self, schedule, rate_factor: float, plateau: keras.Variable):
        self.schedule = schedule
        self.rate_factor = rate_factor
        self.plateau = plateau

    def __call__(self, step):
        return self.schedule(step) * self.rate_factor * ops.convert_to_tensor(self.plateau)


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
        plateau: the factor that all schedules share; None: 1.

    Raises:
        SpecError: unknown kind or option, with its place.
    """
    options = check_kind(choice, SCHEDULES, place=place)
    schedule = SCHEDULES[choice.kind](steps_per_epoch, **options)
    if plateau is None:
        plateau = keras.Variable(1.0, trainable=False)
    return ScaledSchedule(schedule, rate_factor, plateau)
