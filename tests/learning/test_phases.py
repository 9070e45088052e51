"""What a phase trains, variable by variable."""

import keras
import numpy as np
import pytest
from specs import spec_of

from multitask.learning.optimizers import current_rates
from multitask.learning.phases import prepare_phase
from multitask.model.heads import build_head
from multitask.model.network import connect, trunk_and_heads
from multitask.spec import SpecError

SIZE = 32
CLASSES = {"colour": 2, "shape": 3}
WEIGHTS = {task: np.ones(count, np.float32) for task, count in CLASSES.items()}


def make_spec(freeze_depth=3, **trunk):
    schedule = {"kind": "constant", "rate": 1e-2}
    head = {"kind": "dense_stack", "units": [4], "dropout": [0.2]}
    return spec_of(
        *CLASSES,
        of_tasks={"schedule": schedule, "head": head, "weight": 2.0},
        trunk={"name": "efficientnetb0", "schedule": schedule} | trunk,
        image_size=SIZE,
        freeze_depth=freeze_depth,
        phases={"heads": {"epochs": 1}, "finetune": {"epochs": 1, "rate_factor": 0.1}},
    )


def make_network(spec):
    """A stand-in for the trunk, two blocks of three layers, and the spec's heads."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((SIZE, SIZE, 3))
    for block in ("block1a", "block2a"):
        x = keras.layers.Conv2D(4, 3, strides=3, name=f"{block}_conv")(x)
        x = keras.layers.BatchNormalization(momentum=0.5, name=f"{block}_bn")(x)
        x = keras.layers.Dropout(0.3, name=f"{block}_drop")(x)
    trunk = keras.Model(inputs, x, name="trunk")
    heads = {t: build_head(spec, t, trunk.output_shape[1:], n) for t, n in CLASSES.items()}
    return connect(trunk, heads)


def prepared_phase(network, spec, phase, **options):
    return prepare_phase(network, spec, phase, class_weights=WEIGHTS, steps_per_epoch=2, **options)


def train_steps(model, steps=2, *, compiled=False):
    model.run_eagerly = not compiled  # to compile takes longer than the steps
    rng = np.random.default_rng(1)
    count = 8 * steps
    labels = {task: rng.integers(0, n, count).astype(np.int32) for task, n in CLASSES.items()}
    labels["shape"][::2] = -1
    weights = {task: (y >= 0).astype(np.float32) for task, y in labels.items()}
    images = rng.uniform(0, 255, (count, SIZE, SIZE, 3)).astype(np.float32)
    return model.fit(images, labels, sample_weight=weights, batch_size=8, verbose=0)


def state(network):
    """layer -> its weights, with statistics and without the seeds of dropout."""
    return {
        layer.name: {w.name: w.numpy() for w in layer.weights if "seed" not in w.path}
        for part in (trunk_and_heads(network)[0], *trunk_and_heads(network)[1].values())
        for layer in part.layers
    }


def moved(before, after):
    """The (layer, weight) that are not bit-identical."""
    return {
        (layer, name)
        for layer, weights in before.items()
        for name, value in weights.items()
        if not np.array_equal(value, after[layer][name])
    }


BATCHNORM = {"gamma", "beta", "moving_mean", "moving_variance"}


def all_of(*layers):
    return {
        (layer, name)
        for layer in layers
        for name in (BATCHNORM if layer.endswith("_bn") else {"kernel", "bias"})
    }


HEADS = all_of(*(f"{task}_{layer}" for task in CLASSES for layer in ("1_dense", "1_bn", "logits")))


@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
def test_heads_trains_the_heads_alone(batchnorm):
    spec = make_spec(batchnorm=batchnorm)
    network = make_network(spec)
    prepared = prepared_phase(network, spec, "heads")
    assert prepared.frozen == 7 == len(trunk_and_heads(network)[0].layers)
    before = state(network)
    train_steps(prepared.model)
    # Every weight of the heads, and none of the trunk's: its BatchNorm's statistics neither.
    assert moved(before, state(network)) == HEADS
    assert set(current_rates(prepared.model.optimizer)) == {f"{task}/rate" for task in CLASSES}


def test_the_frozen_infers_in_training():
    spec = make_spec()
    network = make_network(spec)
    prepared = prepared_phase(network, spec, "heads")
    x = np.random.default_rng(2).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)
    trunk, _heads = trunk_and_heads(prepared.model)
    features = [np.asarray(trunk(x, training=True)) for _ in range(2)]
    np.testing.assert_array_equal(*features)
    np.testing.assert_array_equal(
        features[0], np.asarray(trunk_and_heads(network)[0](x, training=False))
    )


@pytest.mark.parametrize(
    ("depth", "batchnorm", "trained"),
    [
        (0, "train", all_of("block1a_conv", "block1a_bn", "block2a_conv", "block2a_bn")),
        ("block1", "train", all_of("block2a_conv", "block2a_bn")),
        ("block1", "frozen", all_of("block2a_conv")),
        (-3, "auto", all_of("block2a_conv", "block2a_bn")),  # weights = none: it trains
        (5, "train", all_of("block2a_bn")),
        ("all", "train", set()),
    ],
)
def test_finetune_trains_what_is_above_the_freeze_depth(depth, batchnorm, trained):
    spec = make_spec(depth, batchnorm=batchnorm)
    network = make_network(spec)
    prepared = prepared_phase(network, spec, "finetune")
    before = state(network)
    train_steps(prepared.model)
    changed = moved(before, state(network))
    # A bias before a BatchNorm that trains has no gradient but for rounding.
    silent = {("block1a_conv", "bias"), ("block2a_conv", "bias")}
    assert changed - silent == (trained | HEADS) - silent
    assert changed <= trained | HEADS
    names_with_rates = {f"{task}/rate" for task in CLASSES} | ({"trunk_rate"} if trained else set())
    assert set(current_rates(prepared.model.optimizer)) == names_with_rates


def test_rates_and_plateau_of_a_phase():
    spec = make_spec()
    network = make_network(spec)
    heads = prepared_phase(network, spec, "heads")
    assert current_rates(heads.model.optimizer) == pytest.approx(
        {"colour/rate": 1e-2, "shape/rate": 1e-2}
    )
    finetune = prepared_phase(network, spec, "finetune", plateau=0.5)
    rates = {"trunk_rate": 5e-4, "colour/rate": 5e-4, "shape/rate": 5e-4}
    assert current_rates(finetune.model.optimizer) == pytest.approx(rates)
    finetune.plateau.assign(0.25)
    rates = {"trunk_rate": 2.5e-4, "colour/rate": 2.5e-4, "shape/rate": 2.5e-4}
    assert current_rates(finetune.model.optimizer) == pytest.approx(rates)


def test_from_one_phase_to_the_next():
    """After a whole phase `heads`, `finetune` trains what was frozen, and `plain` sees it."""
    spec = make_spec("block1")
    network = make_network(spec)
    heads = prepared_phase(network, spec, "heads")
    train_steps(heads.model)
    finetune = prepared_phase(heads.plain, spec, "finetune")
    assert finetune.frozen == 4
    before = state(network)
    train_steps(finetune.model, compiled=True)
    assert all_of("block2a_bn") <= moved(before, state(finetune.plain))
    x = np.zeros((1, SIZE, SIZE, 3), np.float32)
    trained, plain = finetune.model(x, training=False), finetune.plain(x, training=False)
    for task in CLASSES:
        np.testing.assert_array_equal(trained[task], plain[task])


def test_the_losses_are_weighed_and_masked():
    spec = make_spec()
    prepared = prepared_phase(make_network(spec), spec, "heads")
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 255, (8, SIZE, SIZE, 3)).astype(np.float32)
    labels = {"colour": np.array([0, 1] * 4, np.int32), "shape": np.full(8, -1, np.int32)}
    weights = {task: (y >= 0).astype(np.float32) for task, y in labels.items()}
    logs = prepared.model.evaluate(x, labels, sample_weight=weights, return_dict=True, verbose=0)
    logits = np.asarray(prepared.plain(x, training=False)["colour"], np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = p[np.arange(8), labels["colour"]]
    want = np.mean(-0.25 * (1 - p) ** 2 * np.log(p))
    assert logs["loss/colour"] == pytest.approx(want, rel=1e-4)
    assert logs["loss/shape"] == 0
    assert logs["loss"] == pytest.approx(2 * want, rel=1e-4)


def test_a_depth_beyond_the_trunk_is_refused():
    spec = make_spec(8)
    with pytest.raises(SpecError, match=r"^`freeze_depth`: 8: the trunk has 7 layers$"):
        prepared_phase(make_network(spec), spec, "finetune")


@pytest.mark.parametrize("phase", ["heads", "finetune"])
def test_the_optimizer_has_the_variables_in_the_models_order(phase):
    """JAX hands over values alone; and what is no variable of its own is a constant to it."""
    spec = make_spec()
    prepared = prepared_phase(make_network(spec), spec, phase)
    optimizer, trained = prepared.model.optimizer, prepared.model.trainable_variables
    assert [id(v) for v in optimizer._trainable_variables] == [id(v) for v in trained]
    assert sum(v is prepared.plateau for v in optimizer.variables) == 1
    own = {id(v) for part in optimizer.group_optimizers.values() for v in part._trainable_variables}
    assert own == {id(v) for v in trained}
