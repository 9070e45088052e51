"""Learning rates at given steps against tables made by hand."""

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
    """As in an optimizer, the step is an integer variable."""
    return float(schedule(tf.constant(step, tf.int32)))


Q = 0.14644661  # (1 - cos(pi / 4)) / 2: what three quarters of a period leave
END_OF_100 = 2.46719817e-4  # (1 + cos(99 pi / 100)) / 2: what the 99th of 100 steps leaves
# Step -> rate: the first steps, the middle and the last step of a period, the first of the next,
# and well after the end. By hand from the formulas.
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
            500: 5e-4 * (1 - Q),
            1000: 2.5e-4,
            1500: 5e-4 * Q,
            1980: 5e-4 * END_OF_100,
            1999: 3.0842513e-10,
            2000: 5e-4,
            2500: 5e-4 * (1 - Q),
            3000: 2.5e-4,
            3999: 3.0842513e-10,
            4000: 5e-4,
            5500: 5e-4 * Q,
            200_000: 5e-4,
            201_000: 2.5e-4,
        },
    ),
    # 10 epochs of 10 steps: rate t / 4 for .4 epochs, then half a cosine over the other 96 steps.
    "cosine": (
        {"rate": 1e-3, "epochs": 10, "warmup": 0.4},
        {0: 0, 1: 2.5e-4, 4: 1e-3, 28: 1e-3 * (1 - Q), 52: 5e-4, 76: 1e-3 * Q, 100: 0, 999: 0},
    ),
    # -2 % at the end of each epoch of 10 steps, and the same within one.
    "exponential": (
        {"rate": 5e-4, "decay": 0.02},
        {
            0: 5e-4,
            4: 5e-4,
            9: 5e-4,
            10: 4.9e-4,
            19: 4.9e-4,
            20: 4.802e-4,
            29: 4.802e-4,
            30: 4.70596e-4,
            100: 4.0853640e-4,
            1000: 6.6309779e-5,
        },
    ),
    "plateau": (
        {"rate": 2e-3, "factor": 0.5, "patience": 3, "least": 0.1},
        {0: 2e-3, 1: 2e-3, 10**6: 2e-3},  # by epochs, not by steps: see below
    ),
    # rate t / 4 for 4 steps, then half a cosine over 100.
    "warmup_cosine": (
        {"rate": 1e-3, "warmup": 4, "steps": 100},
        {
            0: 0,
            1: 2.5e-4,
            2: 5e-4,
            3: 7.5e-4,
            4: 1e-3,
            5: 1e-3 * (1 - END_OF_100),
            29: 1e-3 * (1 - Q),
            54: 5e-4,
            79: 1e-3 * Q,
            103: 1e-3 * END_OF_100,
            104: 0,
            105: 0,
            999: 0,
        },
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


def test_a_cosine_rises_for_half_an_epoch_and_its_fall_takes_a_step_at_least():
    schedule = built(kind="cosine", rate=1.0, epochs=2)  # 5 steps up, 15 down
    assert [rate_at(schedule, s) for s in (4, 5, 10, 20)] == pytest.approx([0.8, 1, 0.75, 0])
    schedule = built(kind="cosine", rate=1.0, epochs=1, warmup=3)
    assert [rate_at(schedule, s) for s in (29, 30, 31)] == pytest.approx([29 / 30, 1, 0])


def test_exponential_counts_the_epochs_of_this_run():
    schedule = built(kind="exponential", rate=1.0, decay=0.5, steps_per_epoch=3)
    assert [rate_at(schedule, s) for s in range(7)] == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("kind", TABLES)
def test_rate_factor_and_the_shared_factor_multiply_every_rate(kind):
    """But a plateau has a factor of its own, and the shared one leaves it alone."""
    options, table = TABLES[kind]
    shared = keras.Variable(0.25, trainable=False, dtype="float32")
    tenth = built(kind=kind, rate_factor=0.1, **options)
    both = built(kind=kind, rate_factor=0.1, plateau=shared, **options)
    for step, rate in table.items():
        assert rate_at(tenth, step) == pytest.approx(0.1 * rate, rel=2e-5, abs=2e-10)
        lowered = 0.1 if kind == "plateau" else 0.025
        assert rate_at(both, step) == pytest.approx(lowered * rate, rel=2e-5, abs=2e-10)


@pytest.mark.parametrize("period", [1, 3, 7, 1000])
def test_every_period_begins_at_the_rate(period):
    schedule = built(kind="cosine_restarts", rate=1.0, period=period)
    steps = period * np.arange(0, 100_000 // period, 1997 // period + 1)
    assert np.array_equal([rate_at(schedule, step) for step in steps], np.ones(len(steps)))


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


# === A plateau of one part's own ===

# Epochs since the best score, after each epoch, and the rate from then on. Patience 3.
WAITED = (0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 0)
RATES = (*[2.0] * 6, *[1.0] * 3, *[0.5] * 5, *[0.25] * 3, 0.2, 0.2)  # least 0.1


def own_plateau(**changes):
    return built(**{"kind": "plateau", "rate": 2.0, "patience": 3, "least": 0.1} | changes)


def test_a_plateau_of_its_own_epoch_by_epoch():
    schedule, rates = own_plateau(), []
    for waited in WAITED:
        schedule.after_epoch(waited)
        rates.append(rate_at(schedule, 5))
    assert rates == pytest.approx(RATES)
    tenth = own_plateau(rate_factor=0.1)
    tenth.after_epoch(3)
    assert rate_at(tenth, 5) == pytest.approx(0.1)


@pytest.mark.parametrize("stopped", range(len(WAITED)))
def test_a_plateau_goes_on_from_its_variables(stopped):
    """They are saved with all others; what was waited is known to the run."""
    first, rates = own_plateau(), []
    for waited in WAITED[:stopped]:
        first.after_epoch(waited)
    again = own_plateau()
    for variable, saved in zip(again.variables, first.variables, strict=True):
        variable.assign(keras.ops.convert_to_numpy(saved))
    for waited in WAITED[stopped:]:
        again.after_epoch(waited)
        rates.append(rate_at(again, 5))
    assert rates == pytest.approx(RATES[stopped:])


def test_a_plateau_lowers_one_part_alone():
    """Under one compiled step of two optimizers, as the trunk and a head have them."""
    shared = keras.Variable(1.0, trainable=False, dtype="float32")
    own = built(kind="plateau", rate=0.5, factor=0.1, patience=1, plateau=shared)
    other = built(kind="constant", rate=0.5, plateau=shared)
    variables = [keras.Variable(0.0), keras.Variable(0.0)]
    optimizers = [keras.optimizers.SGD(own), keras.optimizers.SGD(other)]
    for optimizer, variable in zip(optimizers, variables, strict=True):
        optimizer.build([variable])
    traces = []

    @tf.function
    def step():
        traces.append(1)
        for optimizer, variable in zip(optimizers, variables, strict=True):
            optimizer.apply([tf.constant(-1.0)], [variable])

    def values():
        return [float(v.value) for v in variables]

    step()
    assert values() == pytest.approx([0.5, 0.5])
    for schedule in (own, other):
        schedule.after_epoch(1)
    step()
    assert values() == pytest.approx([0.55, 1.0])
    shared.assign(0.5)  # what all others share
    step()
    assert values() == pytest.approx([0.6, 1.25])
    assert len(traces) == 1


@pytest.mark.parametrize("kind", sorted(set(TABLES) - {"plateau"}))
def test_other_kinds_have_nothing_of_their_own_to_lower(kind):
    options, _ = TABLES[kind]
    schedule = built(kind=kind, **options)
    before = rate_at(schedule, 7)
    schedule.after_epoch(4)
    assert schedule.variables == []
    assert rate_at(schedule, 7) == before


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"kind": "cosine_restart", "rate": 1e-3},
            '.kind: unknown kind "cosine_restart". Expected one of: constant, cosine, '
            'cosine_restarts, exponential, plateau, warmup_cosine. Did you mean "cosine_restarts"?',
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
        ({"kind": "plateau", "rate": 1, "factor": 1}, ".factor: 1: input should be less than 1"),
        (
            {"kind": "plateau", "rate": 1, "patience": 0},
            ".patience: 0: input should be greater than 0",
        ),
        ({"kind": "plateau", "rate": 1, "least": 0}, ".least: 0: input should be greater than 0"),
    ],
)
def test_wrong_schedules_name_their_place(choice, message):
    with pytest.raises(SpecError) as error:
        built(**choice)
    assert str(error.value).startswith("toy.toml: trunk.schedule" + message)
    assert "\n" not in str(error.value)
