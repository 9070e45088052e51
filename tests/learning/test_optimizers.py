"""The one optimizer: a rate for each part, decoupled weight decay, exact restoring."""

import keras
import numpy as np
import pytest
from specs import spec_of

from multitask.learning.callbacks import Checkpointer, EpochRecorder
from multitask.learning.checkpoints import Progress, find_checkpoint, save_checkpoint
from multitask.learning.optimizers import (
    NO_DECAY,
    PRIVATE,
    PRIVATE_AVERAGES,
    ROUNDED_AWAY,
    ParameterGroup,
    build_optimizer,
    current_rates,
    layer_rate_factors,
    network_groups,
)
from multitask.learning.phases import prepare_phase
from multitask.model.heads import build_head
from multitask.model.network import connect, load_network, trunk_and_heads
from multitask.model.trunks import freeze_trunk
from multitask.run import Run
from multitask.spec import TRUNK, Kind, OptimizerOptions, SpecError, parse_spec

SIZE = 32
RATES = {"trunk": 1e-3, "colour": 1e-2, "shape": 1e-20}  # shape all but stands still
LOGGED = {"trunk": "trunk_rate", "colour": "colour/rate", "shape": "shape/rate"}
DECAYS = {"trunk": 0.5, "colour": 0.0, "shape": 0.1}


def logged(rates):
    return {LOGGED[name]: rate for name, rate in rates.items()}


def make_spec(rates=RATES, decays=DECAYS, **changes):
    def part(name):
        return {
            "schedule": {"kind": "constant", "rate": rates[name]},
            "weight_decay": decays[name],
        }

    head = {"kind": "dense_stack", "units": [3], "dropout": [0]}
    return spec_of(
        *({"name": name} | part(name) for name in ("colour", "shape")),
        of_tasks={"head": head},
        **{"image_size": SIZE, "trunk": part("trunk")} | changes,
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
    return build_optimizer(
        network_groups(spec, *trunk_and_heads(model)),
        rate_factor=getattr(spec.phases, phase).rate_factor,
        steps_per_epoch=steps_per_epoch,
        plateau=keras.Variable(plateau, trainable=False, dtype="float32"),
        order=model.trainable_variables,
        options=spec.optimizer,
    )


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
    trunk, heads = trunk_and_heads(model)
    networks = {"trunk": trunk} | heads
    return {id(v): name for name, part in networks.items() for v in part.trainable_variables}


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2, of one variable; Keras' epsilon."""

    def __init__(self, value, rate, decay):
        self.value, self.rate, self.decay = value.astype(np.float64), rate, decay
        self.m = self.v = 0.0
        self.t = 0

    def step(self, gradient, rate=None):
        self.t += 1
        self.rate = self.rate if rate is None else rate
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


# === The fused kernel ===


BETAS_ROUNDED = 2e-5  # in double precision too, Keras takes powers of the betas in float32


def toy_part(variables, schedule=None, **changes):
    schedule = schedule or Kind(kind="constant", rate=0.1)
    return ParameterGroup(variables, schedule, "toy.toml: schedule", **changes)


def optimizer_of(groups, **options):
    return build_optimizer(
        groups,
        rate_factor=1.0,
        steps_per_epoch=2,
        plateau=keras.Variable(1.0, trainable=False),
        order=[variable for part in groups.values() for variable in part.variables],
        options=OptimizerOptions(**options),
    )


def toy_variables(dtype="float32", names=("kernel", "bias", "recurrent_kernel", "gamma")):
    rng = np.random.default_rng(7)
    return [
        keras.Variable(rng.normal(size=(5, 4 + i)), dtype=dtype, name=name)
        for i, name in enumerate(names)
    ]


def random_gradients(variables, step, scale=1.0):
    rng = np.random.default_rng([11, step])
    return [scale * rng.normal(size=v.shape) for v in variables]


def take_step(optimizer, variables, gradients):
    dtype = variables[0].dtype
    optimizer.apply([keras.ops.convert_to_tensor(g, dtype) for g in gradients], variables)


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


# === All of it, under a compiled `fit` ===


def phase_of_all(seed):
    spec = make_spec(
        {"trunk": 1e-2, "colour": 1e-2, "shape": 1e-2},
        optimizer={"clip_norm": 0.05, "ema": 0.5, "trunk_layer_decay": 0.5, "accumulate": 2},
        trunk={"weights": "none", "schedule": {"kind": "constant", "rate": 1e-2}},
    )
    weights = {task: np.ones(3, np.float32) for task in spec.task_names}
    prepared = prepare_phase(
        make_network(spec, seed), spec, "finetune", class_weights=weights, steps_per_epoch=4
    )
    return spec, prepared


def batches(first, count):
    import tensorflow as tf

    rng = np.random.default_rng(3)
    x = rng.normal(size=(8 * 8, SIZE, SIZE, 3)).astype(np.float32)
    y = {task: rng.integers(0, 3, len(x)).astype(np.int32) for task in ("colour", "shape")}
    w = {task: np.ones(len(x), np.float32) for task in y}
    return tf.data.Dataset.from_tensor_slices((x, y, w)).batch(8).skip(first).take(count)


def fit(prepared, first, count, **options):
    prepared.model.fit(batches(first, count), verbose=0, shuffle=False, **options)


def test_a_run_of_two_fits_goes_on_bit_identically(tmp_path):
    _, whole = phase_of_all(seed=0)
    paths = [v.path for v in whole.variables]
    trained = len(whole.model.trainable_variables)
    for slot in ("average", "gradient_accumulator", "momentum", "velocity"):
        assert sum(path.endswith(slot) for path in paths) == trained > 10
    fit(whole, 0, 3)  # in the middle of an accumulation
    save_checkpoint(tmp_path, whole.variables, Progress())
    fit(whole, 3, 3)
    _, again = phase_of_all(seed=99)
    again.restore(find_checkpoint(tmp_path).folder)
    fit(again, 3, 3)
    for mine, other in zip(again.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=mine.path)
    optimizer = whole.model.optimizer
    trunk = optimizer.group_optimizers[TRUNK]
    assert any(not np.array_equal(v, average) for v, average in trunk.averaged)


def test_the_averages_are_evaluated_and_saved_and_the_weights_trained(tmp_path):
    spec, prepared = phase_of_all(seed=0)
    progress = Progress(phase="finetune")
    run = Run(tmp_path, spec, tmp_path)
    kept = {}

    class Keep(keras.callbacks.Callback):
        """The weights as a test finds them; and as they were before."""

        def on_train_batch_end(self, batch, logs=None):
            kept["trained"] = values(self.model.trainable_variables)

        def on_test_batch_end(self, batch, logs=None):
            kept["tested"] = values(self.model.trainable_variables)

    received = []
    memory = EpochRecorder(run, progress, prepared, per_task=False)
    saver = Checkpointer(run, progress, prepared, minutes=60.0, received=received)
    validation = batches(6, 2)
    fit(prepared, 0, 5, validation_data=validation, callbacks=[memory, Keep(), saver])
    model = prepared.model
    for now, trained in zip(model.trainable_variables, kept["trained"], strict=True):
        np.testing.assert_array_equal(now, trained)
    assert not any(map(np.array_equal, kept["tested"], kept["trained"]))
    averages = {
        id(v): average.numpy()
        for o in model.optimizer.group_optimizers.values()
        for v, average in o.averaged
    }
    for variable, tested in zip(model.trainable_variables, kept["tested"], strict=True):
        np.testing.assert_array_equal(tested, averages[id(variable)])

    def assert_averages_are_saved():
        classes = dict.fromkeys(spec.task_names, ("a", "b", "c"))
        saved = load_network(run.best_model, spec, classes).trainable_variables
        for variable, mine in zip(saved, prepared.plain.trainable_variables, strict=True):
            np.testing.assert_array_equal(variable, averages[id(mine)])

    assert_averages_are_saved()
    # The metrics of the validation split are those of the saved model.
    scores = model.evaluate(validation, callbacks=[memory], return_dict=True, verbose=0)
    assert scores["loss"] == pytest.approx(progress.history[0]["val_loss"], rel=1e-6)
    assert model.evaluate(validation, verbose=0, return_dict=True)["loss"] == scores["loss"]
    run.best_model.unlink()
    memory.on_epoch_end(1, {"loss": 1.0})  # without a validation split
    assert_averages_are_saved()
    # Asked to stop in a test, it saves the weights.
    received.append(15)
    with pytest.raises(SystemExit):
        model.evaluate(validation, callbacks=[memory, saver], verbose=0)
    for now, trained in zip(model.trainable_variables, kept["trained"], strict=True):
        np.testing.assert_array_equal(now, trained)
    _, again = phase_of_all(seed=5)
    again.restore(find_checkpoint(run.checkpoint).folder)
    for mine, other in zip(again.variables, prepared.variables, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=mine.path)


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


# === Private attributes of Keras ===


@pytest.mark.parametrize("name", [*PRIVATE, PRIVATE_AVERAGES])
def test_keras_optimizers_have_the_private_attributes(name):
    """A failure names what a new Keras changed."""
    variable = keras.Variable([1.0])
    adam = keras.optimizers.Adam(use_ema=True)
    adam.build([variable])
    assert hasattr(adam, name), f"Keras: Adam.{name} is gone"
