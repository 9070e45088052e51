"""Learning rates at given steps against tables made by hand."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from multitask.learning.schedules import SCHEDULES, build_schedule
from multitask.spec import Kind, SpecError


def built(rate_factor=1.0, plateau=None, steps_per_epoch=10, **choice):
    return build_schedule(
        Kind(**choice),
        place="toy.toml: trunk.schedule",
        steps_per_epoch=steps_per_epoch,
        rate_factor=rate_factor,
        plateau=plateau,
    )


def rate_at(schedule, step):
    """As an optimizer asks: the step is an integer variable."""
    return float(schedule(tf.constant(step, tf.int32)))


HALF = math.sqrt(0.5)
TABLES = {
    "constant": (
        {"rate": 3e-4},
        {0: 3e-4, 1: 3e-4, 10**6: 3e-4},
    ),
    # rate (1 + cos(pi t / T)) / 2, and from t = T anew.
    "cosine_restarts": (
        {"rate": 5e-4, "period": 2000},
        {
            0: 5e-4,
            500: 5e-4 * (1 + HALF) / 2,
            1000: 2.5e-4,
            1500: 5e-4 * (1 - HALF) / 2,
            1999: 5e-4 * (1 + math.cos(math.pi * 1999 / 2000)) / 2,
            2000: 5e-4,
            3000: 2.5e-4,
            4000: 5e-4,
            5500: 5e-4 * (1 - HALF) / 2,
        },
    ),
    # -2 % at the end of each epoch of 10 steps, and the same within one.
    "exponential": (
        {"rate": 5e-4, "decay": 0.02},
        {0: 5e-4, 9: 5e-4, 10: 4.9e-4, 19: 4.9e-4, 20: 4.802e-4, 100: 5e-4 * 0.98**10},
    ),
    "warmup_cosine": (
        {"rate": 1e-3, "warmup": 4, "steps": 100},
        {0: 0, 1: 2.5e-4, 2: 5e-4, 4: 1e-3, 54: 5e-4, 79: 1e-3 * (1 - HALF) / 2, 104: 0, 999: 0},
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_rates_at_given_steps(kind):
    options, table = TABLES[kind]
    schedule = built(kind=kind, **options)
    got = {step: rate_at(schedule, step) for step in table}
    # A cosine of float32 near its end is sure to 1e-9 only.
    assert got == {step: pytest.approx(rate, rel=2e-5, abs=2e-9) for step, rate in table.items()}


def test_every_schedule_has_a_table():
    assert set(TABLES) == set(SCHEDULES)


def test_warmup_of_0_begins_at_the_rate():
    schedule = built(kind="warmup_cosine", rate=1e-3, warmup=0, steps=100)
    assert [rate_at(schedule, step) for step in (0, 50, 100, 101)] == pytest.approx(
        [1e-3, 5e-4, 0, 0], abs=1e-9
    )


def test_exponential_counts_the_epochs_of_this_run():
    schedule = built(kind="exponential", rate=1.0, decay=0.5, steps_per_epoch=3)
    assert [rate_at(schedule, s) for s in range(7)] == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("kind", TABLES)
def test_rate_factor_multiplies_every_rate(kind):
    options, table = TABLES[kind]
    whole, tenth = built(kind=kind, **options), built(kind=kind, rate_factor=0.1, **options)
    for step in table:
        assert rate_at(tenth, step) == pytest.approx(0.1 * rate_at(whole, step), rel=1e-5)


def test_plateau_reaches_a_step_that_is_compiled():
    plateau = keras.Variable(1.0, trainable=False, dtype="float32")
    schedules = [
        built(kind="constant", rate=0.5, plateau=plateau),
        built(kind="exponential", rate=1.0, decay=0.5, rate_factor=0.1, plateau=plateau),
    ]
    traces = []

    @tf.function
    def rates(step):
        traces.append(1)
        return [schedule(step) for schedule in schedules]

    assert np.allclose(rates(tf.constant(0)), [0.5, 0.1])
    plateau.assign(0.25)
    assert np.allclose(rates(tf.constant(10)), [0.125, 0.0125])
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"kind": "cosine_restart", "rate": 1e-3},
            '.kind: unknown kind "cosine_restart". Expected one of: constant, cosine_restarts, '
            'exponential, warmup_cosine. Did you mean "cosine_restarts"?',
        ),
        ({"kind": "constant"}, ': "constant" needs the option "rate"'),
        ({"kind": "constant", "rate": 0}, ".rate: 0: input should be greater than 0"),
        ({"kind": "constant", "rate": 1, "perod": 5}, ': unknown option "perod" of "constant"'),
        (
            {"kind": "cosine_restarts", "rate": 1, "period": 0},
            ".period: 0: input should be greater than 0",
        ),
        (
            {"kind": "exponential", "rate": 1, "decay": 1.0},
            ".decay: 1.0: input should be less than 1",
        ),
        (
            {"kind": "warmup_cosine", "rate": 1, "warmup": -1, "steps": 5},
            ".warmup: -1: input should be greater than or equal to 0",
        ),
    ],
)
def test_wrong_schedules_name_their_place(choice, message):
    with pytest.raises(SpecError) as error:
        built(**choice)
    assert str(error.value).startswith("toy.toml: trunk.schedule" + message)
    assert "\n" not in str(error.value)
