"""The fused kernel, layer-wise decay, clipping, accumulation and moving averages."""

import keras
import numpy as np
import pytest
from optimized import (
    BETAS_ROUNDED,
    DECAYS,
    AdamW,
    apply,
    logged,
    make_network,
    make_optimizer,
    make_spec,
    optimizer_of,
    random_gradients,
    take_step,
    toy_part,
    toy_variables,
    values,
)

from multitask.learning.optimizers import ROUNDED_AWAY, current_rates, layer_rate_factors
from multitask.model.network import trunk_and_heads
from multitask.model.trunks import freeze_trunk
from multitask.spec import Kind


@pytest.mark.parametrize("decay", [0.3, 1e-5])  # what is rounded away, is in both
def test_twenty_steps_as_keras_adamw(decay):
    schedule = Kind(kind="cosine_restarts", rate=0.02, period=6)
    ours, theirs = toy_variables(), toy_variables()
    optimizer = optimizer_of({"toy": toy_part(ours, schedule, weight_decay=decay)})
    rates = keras.optimizers.schedules.CosineDecayRestarts(0.02, 6, t_mul=1.0)
    keras_adamw = keras.optimizers.AdamW(rates, weight_decay=decay, name="toy_adamw")
    keras_adamw.exclude_from_weight_decay(var_names=["bias", "gamma"])
    keras_adamw.build(theirs)
    for step in range(20):
        take_step(optimizer, ours, random_gradients(ours, step))
        take_step(keras_adamw, theirs, random_gradients(ours, step))
    # The kernel takes 1 - 0.999 in float32, 1.3e-5 off, of which the root is in each step:
    # 20 steps of at most 0.02 are 2.6e-6 off at most.
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=3e-6)
    for mine, other in zip(
        optimizer.group_optimizers["toy"].variables, keras_adamw.variables, strict=True
    ):
        assert (mine.name, mine.shape, mine.dtype) == (other.name, other.shape, other.dtype)
        np.testing.assert_allclose(mine, other, rtol=0, atol=3e-6)


def test_in_double_precision_as_in_numpy():
    """Which the fused kernel does not do here, but Keras' own steps, as on other backends."""
    variables = toy_variables("float64")
    part = toy_part(variables, weight_decay=0.5, rate_factors=[1.0, 0.5, 0.25, 2.0])
    optimizer = optimizer_of({"toy": part})
    decays = [0.5, 0, 0.5, 0]
    by_hand = [
        AdamW(v.numpy(), float(np.float32(0.1)) * factor, decay)
        for v, factor, decay in zip(variables, part.rate_factors, decays, strict=True)
    ]
    for step in range(5):
        gradients = random_gradients(variables, step)
        take_step(optimizer, variables, gradients)
        for one, gradient in zip(by_hand, gradients, strict=True):
            one.step(gradient)
    for variable, one in zip(variables, by_hand, strict=True):
        np.testing.assert_allclose(variable, one.value, rtol=0, atol=BETAS_ROUNDED)


def test_what_is_rounded_away():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=100_000) * 10.0 ** rng.integers(-20, 20, 100_000)).astype(np.float32)
    x = np.concatenate([x, 2.0 ** np.arange(-100, 100)]).astype(np.float32)
    np.testing.assert_array_equal(x - x * np.float32(ROUNDED_AWAY), x)
    assert np.any(x - x * np.float32(2 * ROUNDED_AWAY) != x)


# === Layer-wise decay of the trunk's rate ===


def test_layer_decay_by_hand():
    spec = make_spec(
        {"trunk": 0.1, "colour": 0.01, "shape": 0.01}, optimizer={"trunk_layer_decay": 0.5}
    )
    model = make_network(spec)
    trunk, _ = trunk_and_heads(model)
    names = ["block1a_conv", "block1a_bn", "block2a_conv"]
    assert layer_rate_factors(trunk, 0.5) == [0.5, 0.5, 0.5, 0.5, 1.0, 1.0]
    before = {name: values(trunk.get_layer(name).trainable_variables) for name in names}
    optimizer = make_optimizer(spec, model)
    assert current_rates(optimizer) == pytest.approx(
        logged({"trunk": 0.1, "colour": 0.01, "shape": 0.01}) | {"trunk_lowest_rate": 0.05}
    )
    apply(optimizer, model, [0])
    for name, rate in zip(names, [0.05, 0.05, 0.1], strict=True):
        for variable, old in zip(
            trunk.get_layer(name).trainable_variables, before[name], strict=True
        ):
            decay = rate * DECAYS["trunk"] * old if variable.name == "kernel" else 0.0
            # Adam's first step is the rate, whatever the gradient.
            moved = np.abs(variable.numpy() - (old - decay))
            np.testing.assert_allclose(moved, rate, rtol=1e-3)


def test_layer_decay_of_a_trunk_half_frozen():
    spec = make_spec(optimizer={"trunk_layer_decay": 0.8})
    model = make_network(spec)
    trunk, _ = trunk_and_heads(model)
    freeze_trunk(trunk, 2, batchnorm_trains=True)  # of block 1 the normalisation is left
    assert layer_rate_factors(trunk, 0.8) == pytest.approx([0.8, 0.8, 1.0, 1.0])
    freeze_trunk(trunk, 3, batchnorm_trains=True)
    assert layer_rate_factors(trunk, 0.8) == [1.0, 1.0]
    assert "trunk_lowest_rate" not in current_rates(make_optimizer(spec, model))


# === Clipping ===


def clipped(gradients, norm):
    length = np.sqrt(sum((g**2).sum() for g in gradients))
    return [g * min(1, norm / length) for g in gradients]


def test_clipping_of_each_part_by_its_own_norm():
    a, b = toy_variables("float64"), toy_variables("float64")
    optimizer = optimizer_of({"a": toy_part(a), "b": toy_part(b)}, clip_norm=2.0)
    by_hand = [AdamW(v.numpy(), float(np.float32(0.1)), 0.0) for v in a + b]
    lengths = set()
    for step, scale in enumerate([1.0, 0.001, 30.0, 0.01]):  # beyond the norm, below, ...
        of_a, of_b = random_gradients(a, step, scale), random_gradients(b, step + 10, 0.01)
        take_step(optimizer, a + b, of_a + of_b)
        lengths |= {np.sqrt(sum((g**2).sum() for g in of_a)) > 2.0}
        for one, gradient in zip(by_hand, clipped(of_a, 2.0) + of_b, strict=True):
            one.step(gradient)
    assert lengths == {True, False}
    for variable, one in zip(a + b, by_hand, strict=True):
        np.testing.assert_allclose(variable, one.value, rtol=0, atol=BETAS_ROUNDED)


# === Accumulation ===


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_accumulation_is_a_step_with_the_mean_gradient(clip_norm):
    variables = toy_variables("float64")
    # The rate halves every two steps (0.5, 0.5, 0.25, 0.25, …): it counts steps, not updates.
    schedule = Kind(kind="exponential", rate=0.5, decay=0.5)
    part = toy_part(variables, schedule, weight_decay=0.3)
    optimizer = optimizer_of({"toy": part}, accumulate=3, clip_norm=clip_norm)
    by_hand = [AdamW(v.numpy(), 0, 0.3 * ("kernel" in v.name)) for v in variables]
    gathered = []
    for step in range(7):
        gathered.append(random_gradients(variables, step))
        take_step(optimizer, variables, gathered[-1])
        if step % 3 == 2:
            mean = [sum(of_one) / 3 for of_one in zip(*gathered[-3:], strict=True)]
            mean = clipped(mean, clip_norm) if clip_norm else mean
            for one, gradient in zip(by_hand, mean, strict=True):
                one.step(gradient, rate={2: 0.25, 5: 0.125}[step])
        for variable, one in zip(variables, by_hand, strict=True):
            np.testing.assert_allclose(variable, one.value, rtol=0, atol=BETAS_ROUNDED)


def test_accumulation_in_the_fused_kernel():
    ours, theirs = toy_variables(), toy_variables()
    of_ours = optimizer_of({"toy": toy_part(ours, weight_decay=0.3)}, accumulate=2)
    of_theirs = optimizer_of({"toy": toy_part(theirs, weight_decay=0.3)})
    for step in range(0, 8, 2):
        pair = [random_gradients(ours, step), random_gradients(ours, step + 1)]
        for gradients in pair:
            take_step(of_ours, ours, gradients)
        take_step(of_theirs, theirs, [(a + b) / 2 for a, b in zip(*pair, strict=True)])
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


# === Moving averages ===


@pytest.mark.parametrize("accumulate", [1, 2])
def test_averages_by_hand_over_five_steps(accumulate):
    variables, plain = toy_variables(), toy_variables()
    optimizer = optimizer_of({"toy": toy_part(variables)}, ema=0.75, accumulate=accumulate)
    without = optimizer_of({"toy": toy_part(plain)}, accumulate=accumulate)
    start = values(variables)
    optimizer.use_averages(True)  # before the first step
    for variable, value in zip(variables, start, strict=True):
        np.testing.assert_array_equal(variable, value)
    optimizer.use_averages(False)
    by_hand = None
    for step in range(5):
        take_step(optimizer, variables, random_gradients(variables, step))
        take_step(without, plain, random_gradients(variables, step))
        now = [v.numpy().astype(np.float64) for v in variables]
        # It begins with the weights after the first update, and counts steps.
        begun = step >= accumulate
        pairs = zip(by_hand or now, now, strict=True)
        by_hand = [0.75 * a + 0.25 * v if begun else v for a, v in pairs]
        kept = values(optimizer.variables)
        optimizer.finalize_variable_values(variables)  # as Keras' `fit` does at its end
        for variable, other in zip(variables, plain, strict=True):
            np.testing.assert_array_equal(variable, other)
        optimizer.use_averages(True)
        optimizer.use_averages(True)  # a second time does nothing
        for variable, average in zip(variables, by_hand, strict=True):
            np.testing.assert_allclose(variable, average, rtol=1e-5, atol=1e-6)
        optimizer.use_averages(False)
        for variable, other in zip(variables, plain, strict=True):
            np.testing.assert_array_equal(variable, other)
        for variable, value in zip(optimizer.variables, kept, strict=True):
            np.testing.assert_array_equal(variable, value)
