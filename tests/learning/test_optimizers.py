"""The one optimizer: a rate for each part, decoupled weight decay, exact restoring."""

import keras
import numpy as np
import pytest

from multitask.learning.optimizers import NO_DECAY, build_optimizer, current_rates
from multitask.model.heads import build_head
from multitask.model.network import connect, parts
from multitask.model.trunks import freeze_trunk
from multitask.spec import SpecError, parse_spec

SIZE = 32
RATES = {"trunk": 1e-3, "colour": 1e-2, "shape": 1e-20}  # shape all but stands still
DECAYS = {"trunk": 0.5, "colour": 0.0, "shape": 0.1}


def make_spec(rates=RATES, decays=DECAYS, **changes):
    def part(name):
        return {
            "schedule": {"kind": "constant", "rate": rates[name]},
            "weight_decay": decays[name],
        }

    task = {
        "train": "t.csv",
        "val": "v.csv",
        "classes": "c.txt",
        "head": {"kind": "dense_stack", "units": [3], "dropout": [0]},
        "loss": {"kind": "focal"},
    }
    return parse_spec(
        {
            "name": "toy",
            "image_size": SIZE,
            "trunk": part("trunk"),
            "task": [task | {"name": name} | part(name) for name in ("colour", "shape")],
        }
        | changes,
        source="toy.toml",
    )


def make_network(spec, seed=0):
    """A stand-in for the trunk, 32 px to a map of 7 x 7, and the spec's heads."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 5, strides=4, name="block1a_conv")(inputs)
    x = keras.layers.BatchNormalization(name="block1a_bn")(x)
    x = keras.layers.Conv2D(4, 1, name="block2a_conv")(x)
    trunk = keras.Model(inputs, x, name="trunk")
    heads = {task: build_head(spec, task, (7, 7, 4), 3) for task in spec.task_names}
    return connect(trunk, heads)


def make_optimizer(spec, model, phase="heads", plateau=1.0, steps_per_epoch=10):
    variable = keras.Variable(plateau, trainable=False, dtype="float32")
    return build_optimizer(spec, model, phase, steps_per_epoch=steps_per_epoch, plateau=variable)


def drawn_gradients(model, step):
    rng = np.random.default_rng(step)
    return [rng.normal(size=v.shape).astype(np.float32) for v in model.trainable_variables]


def apply(optimizer, model, steps):
    for step in steps:
        gradients = [keras.ops.convert_to_tensor(g) for g in drawn_gradients(model, step)]
        optimizer.apply(gradients, model.trainable_variables)


def values(variables):
    return [v.numpy() for v in variables]


def owners(model):
    """id of a variable -> the part it belongs to."""
    trunk, heads = parts(model)
    networks = {"trunk": trunk} | heads
    return {id(v): name for name, part in networks.items() for v in part.trainable_variables}


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2, of one variable; Keras' epsilon."""

    def __init__(self, value, rate, decay):
        self.value, self.rate, self.decay = value.astype(np.float64), rate, decay
        self.m = self.v = 0.0
        self.t = 0

    def step(self, gradient):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient.astype(np.float64) ** 2
        rate = self.rate * np.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        self.value = self.value - self.rate * self.decay * self.value
        self.value = self.value - rate * self.m / (np.sqrt(self.v) + 1e-7)


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
    head = parts(model)[1]["colour"]
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
    assert current_rates(optimizer) == pytest.approx(RATES)


def test_rate_factor_of_the_phase_and_plateau():
    spec = make_spec(phases={"heads": {"epochs": 1}, "finetune": {"epochs": 1, "rate_factor": 0.1}})
    model = make_network(spec)
    heads = current_rates(make_optimizer(spec, model, "heads"))
    finetune = current_rates(make_optimizer(spec, model, "finetune", plateau=0.5))
    assert heads == pytest.approx(RATES)
    assert finetune == pytest.approx({name: 0.05 * rate for name, rate in RATES.items()})


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
        seen.append((rates["trunk"], rates["colour"]))
        apply(optimizer, model, [step])
    cosine = [(1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)] + [1]
    np.testing.assert_allclose(seen, list(zip(cosine, [1, 1, 0.5, 0.5, 0.25], strict=True)))
    anew = current_rates(make_optimizer(spec, model, "finetune"))
    assert anew["colour"] == pytest.approx(0.1)  # a phase begins at step 0


def test_a_frozen_trunk_has_no_optimizer():
    spec = make_spec()
    model = make_network(spec)
    trunk, heads = parts(model)
    freeze_trunk(trunk, len(trunk.layers), batchnorm_trains=True)
    model = connect(trunk, heads)
    optimizer = make_optimizer(spec, model)
    assert set(current_rates(optimizer)) == {"colour", "shape"}
    assert len(optimizer.optimizers) == 2
    before = values(trunk.variables)
    apply(optimizer, model, range(2))
    assert all(np.array_equal(a, b) for a, b in zip(before, trunk.variables, strict=True))


def test_a_trunk_of_which_a_part_is_frozen():
    spec = make_spec()
    model = make_network(spec)
    trunk, heads = parts(model)
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
