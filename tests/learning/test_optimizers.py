"""The one optimizer: a rate for each part, decoupled weight decay, exact restoring."""

import keras
import numpy as np
import pytest
from optimized import (
    DECAYS,
    RATES,
    AdamW,
    apply,
    drawn_gradients,
    logged,
    make_network,
    make_optimizer,
    make_spec,
    owners,
    values,
)

from multitask.learning.optimizers import NO_DECAY, PRIVATE, PRIVATE_AVERAGES, current_rates
from multitask.model.heads import build_head
from multitask.model.network import connect, trunk_and_heads
from multitask.model.trunks import freeze_trunk
from multitask.spec import SpecError, parse_spec


def test_three_steps_against_adamw_in_numpy():
    rates = {"trunk": 0.02, "colour": 0.05, "shape": 0.01}
    decays = {"trunk": 2.0, "colour": 5.0, "shape": 0.0}
    spec = make_spec(rates, decays)
    model = make_network(spec)
    for variable in model.trainable_variables:  # a bias of 0 would not show its decay
        variable.assign(variable + 0.5)
    optimizer = make_optimizer(spec, model)
    owner = owners(model)
    by_hand = []
    for variable in model.trainable_variables:
        part = owner[id(variable)]
        kernel = variable.name == "kernel"
        assert kernel or variable.name in NO_DECAY
        by_hand.append(AdamW(variable.numpy(), rates[part], decays[part] if kernel else 0.0))
    assert len({owner[id(v)] for v in model.trainable_variables}) == 3
    apply(optimizer, model, range(3))
    for step in range(3):
        for one, gradient in zip(by_hand, drawn_gradients(model, step), strict=True):
            one.step(gradient)
    for variable, one in zip(model.trainable_variables, by_hand, strict=True):
        np.testing.assert_allclose(variable, one.value, rtol=2e-4, atol=2e-5, err_msg=variable.path)


def test_decay_shrinks_kernels_alone():
    spec = make_spec(dict.fromkeys(RATES, 0.1), dict.fromkeys(DECAYS, 1.0))
    model = make_network(spec)
    for variable in model.trainable_variables:
        variable.assign(variable + 1.0)
    before = values(model.trainable_variables)
    optimizer = make_optimizer(spec, model)
    optimizer.apply(
        [keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables
    )
    names = set()
    for variable, old in zip(model.trainable_variables, before, strict=True):
        factor = 0.9 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable, factor * old, rtol=1e-6, err_msg=variable.path)
        names.add(variable.name)
    assert names == {"kernel", "bias", "gamma", "beta"}


class Scale(keras.layers.Layer):
    """As ConvNeXt's LayerScale in keras.applications: a vector that has no name of its own."""

    def build(self, shape):
        self.factors = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.factors


def test_a_nameless_vector_does_not_shrink():
    spec = make_spec(dict.fromkeys(RATES, 0.1), dict.fromkeys(DECAYS, 1.0))
    inputs = keras.Input((32, 32, 3))
    x = Scale(name="scale")(keras.layers.Conv2D(2, 3, strides=8, name="conv")(inputs))
    trunk = keras.Model(inputs, x, name="trunk")
    heads = {task: build_head(spec, task, (4, 4, 2), 3) for task in spec.task_names}
    model = connect(trunk, heads)
    optimizer = make_optimizer(spec, model)
    kernel, factors = trunk.get_layer("conv").kernel, trunk.get_layer("scale").factors
    assert not any(name in factors.name for name in NO_DECAY)
    before = kernel.numpy()
    optimizer.apply(
        [keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables
    )
    np.testing.assert_allclose(kernel, 0.9 * before, rtol=1e-6)
    np.testing.assert_array_equal(factors, np.ones(2))


def test_decay_of_a_gru():
    changes = {"kind": "gru", "units": 3}
    spec = make_spec(dict.fromkeys(RATES, 0.1), dict.fromkeys(DECAYS, 1.0))
    raw = spec.to_dict()
    raw["task"][0]["head"] = changes
    spec = parse_spec(raw, source="toy.toml")
    model = make_network(spec)
    optimizer = make_optimizer(spec, model)
    head = trunk_and_heads(model)[1]["colour"]
    before = {v.path: v.numpy() + 1 for v in head.trainable_variables}
    for variable in head.trainable_variables:
        variable.assign(variable + 1.0)
    optimizer.apply(
        [keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables
    )
    assert {v.name for v in head.trainable_variables} == {"kernel", "recurrent_kernel", "bias"}
    for variable in head.trainable_variables:
        factor = 1.0 if variable.name == "bias" else 0.9
        np.testing.assert_allclose(variable, factor * before[variable.path], rtol=1e-6)


def test_each_part_moves_at_its_own_rate():
    spec = make_spec()
    model = make_network(spec)
    optimizer = make_optimizer(spec, model)
    before = values(model.trainable_variables)
    apply(optimizer, model, [0])
    owner = owners(model)
    moved = dict.fromkeys(RATES, 0.0)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        part = owner[id(variable)]
        decay = DECAYS[part] * RATES[part] * old if variable.name == "kernel" else 0
        step = np.abs(variable.numpy() - (old - decay))
        moved[part] = max(moved[part], step.max())
    # Adam's first step is the rate, whatever the gradient.
    assert moved["trunk"] == pytest.approx(1e-3, rel=1e-3)
    assert moved["colour"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["shape"] == pytest.approx(1e-20, rel=1e-3)
    assert current_rates(optimizer) == pytest.approx(logged(RATES))


def test_rate_factor_of_the_phase_and_plateau():
    spec = make_spec(phases={"heads": {"epochs": 1}, "finetune": {"epochs": 1, "rate_factor": 0.1}})
    model = make_network(spec)
    heads = current_rates(make_optimizer(spec, model, "heads"))
    finetune = current_rates(make_optimizer(spec, model, "finetune", plateau=0.5))
    assert heads == pytest.approx(logged(RATES))
    assert finetune == pytest.approx({name: 0.05 * rate for name, rate in heads.items()})


def test_schedules_count_the_steps_of_this_optimizer():
    spec = make_spec()
    raw = spec.to_dict()
    raw["task"][0]["schedule"] = {"kind": "exponential", "rate": 1.0, "decay": 0.5}
    raw["trunk"]["schedule"] = {"kind": "cosine_restarts", "rate": 1.0, "period": 4}
    spec = parse_spec(raw, source="toy.toml")
    model = make_network(spec)
    optimizer = make_optimizer(spec, model, steps_per_epoch=2)
    seen = []
    for step in range(5):
        rates = current_rates(optimizer)
        seen.append((rates["trunk_rate"], rates["colour/rate"]))
        apply(optimizer, model, [step])
    cosine = [(1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)] + [1]
    np.testing.assert_allclose(seen, list(zip(cosine, [1, 1, 0.5, 0.5, 0.25], strict=True)))
    anew = current_rates(make_optimizer(spec, model, "finetune"))
    assert anew["colour/rate"] == pytest.approx(0.1)  # a phase begins at step 0


def test_a_frozen_trunk_has_no_optimizer():
    spec = make_spec()
    model = make_network(spec)
    trunk, heads = trunk_and_heads(model)
    freeze_trunk(trunk, len(trunk.layers), batchnorm_trains=True)
    model = connect(trunk, heads)
    optimizer = make_optimizer(spec, model)
    assert set(current_rates(optimizer)) == {"colour/rate", "shape/rate"}
    assert len(optimizer.optimizers) == 2
    before = values(trunk.variables)
    apply(optimizer, model, range(2))
    assert all(np.array_equal(a, b) for a, b in zip(before, trunk.variables, strict=True))


def test_a_trunk_of_which_a_part_is_frozen():
    spec = make_spec()
    model = make_network(spec)
    trunk, heads = trunk_and_heads(model)
    freeze_trunk(trunk, 3, batchnorm_trains=True)
    model = connect(trunk, heads)
    optimizer = make_optimizer(spec, model)
    before = {layer.name: values(layer.weights) for layer in trunk.layers}
    apply(optimizer, model, range(2))
    moved = {
        layer.name: not all(map(np.array_equal, before[layer.name], values(layer.weights)))
        for layer in trunk.layers
        if layer.weights
    }
    assert moved == {"block1a_conv": False, "block1a_bn": False, "block2a_conv": True}


def test_restored_after_a_rebuild_it_goes_on_identically():
    spec = make_spec()
    model = make_network(spec)
    optimizer = make_optimizer(spec, model)
    apply(optimizer, model, range(3))
    kept = values([*model.variables, *optimizer.variables])
    apply(optimizer, model, range(3, 6))
    uninterrupted = values([*model.variables, *optimizer.variables])

    again = make_network(spec, seed=99)
    rebuilt = make_optimizer(spec, again)
    variables = [*again.variables, *rebuilt.variables]
    assert [v.shape for v in kept] == [tuple(v.shape) for v in variables]
    for variable, value in zip(variables, kept, strict=True):
        variable.assign(value)
    apply(rebuilt, again, range(3, 6))
    for variable, want in zip([*again.variables, *rebuilt.variables], uninterrupted, strict=True):
        np.testing.assert_array_equal(variable, want, err_msg=variable.path)
    assert int(rebuilt.iterations) == 6


def test_a_wrong_schedule_names_its_place():
    spec = make_spec()
    raw = spec.to_dict()
    raw["task"][1]["schedule"] = {"kind": "constnt", "rate": 1}
    model = make_network(spec)
    with pytest.raises(SpecError, match=r'^toy.toml: task\[1\] "shape": schedule.kind: unknown'):
        make_optimizer(parse_spec(raw, source="toy.toml"), model)
    raw = spec.to_dict()
    raw["trunk"]["schedule"] = {"kind": "constant", "rte": 1}
    with pytest.raises(SpecError, match=r'^toy.toml: trunk.schedule: unknown option "rte"'):
        make_optimizer(parse_spec(raw, source="toy.toml"), model)


@pytest.mark.parametrize(
    ("option", "value"),
    [("clip_norm", -1), ("ema", 1.0), ("trunk_layer_decay", 0), ("accumulate", 0), ("ema", "on")],
)
def test_wrong_options_name_their_place(option, value):
    with pytest.raises(SpecError, match=rf"^toy.toml: optimizer.{option}: {value!r}: "):
        make_spec(optimizer={option: value})


def test_an_unknown_option_says_what_is_near():
    with pytest.raises(SpecError, match=r'optimizer: unknown field "acumulate".*"accumulate"'):
        make_spec(optimizer={"acumulate": 2})


@pytest.mark.parametrize("name", [*PRIVATE, PRIVATE_AVERAGES])
def test_keras_optimizers_have_the_private_attributes(name):
    """A failure names what a new Keras changed."""
    variable = keras.Variable([1.0])
    adam = keras.optimizers.Adam(use_ema=True)
    adam.build([variable])
    assert hasattr(adam, name), f"Keras: Adam.{name} is gone"
