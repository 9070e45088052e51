"""Parts of a program's own: registered, trained with, exported, and reloaded without them."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import multitask as mt
from multitask.model.heads import HEADS

pytestmark = pytest.mark.usefixtures("untimed")


def two_layers(features, name, *, units: int = 8):
    x = layers.GlobalAveragePooling2D(name=f"{name}_pool")(features)
    return layers.Dense(units, "relu", name=f"{name}_first")(x)


def squared(labels, logits, class_weights, *, scale: float = 1.0):
    target = ops.one_hot(ops.maximum(labels, 0), logits.shape[-1])
    losses = scale * ops.sum(ops.square(target - ops.softmax(logits)), axis=-1)
    return ops.where(labels < 0, 0.0, losses)


def linear_decay(steps_per_epoch, *, rate: float, epochs: int = 2):
    return keras.optimizers.schedules.PolynomialDecay(rate, steps_per_epoch * epochs)


def grid(*, input_shape, weights=None):
    image = keras.Input(input_shape)
    x = layers.Rescaling(1 / 255, name="rescaling")(image)
    x = layers.Conv2D(5, 3, strides=4, name="block1a_conv")(x)
    return keras.Model(image, layers.ReLU(name="block1a_relu")(x))


@pytest.mark.slow
def test_a_run_of_own_parts(collection):
    mt.register_head(two_layers)
    mt.register_loss(squared)
    mt.register_schedule(linear_decay)
    mt.register_trunk(grid)
    spec = mt.load_spec(
        "museum.toml",
        {
            "trunk.name": "grid",
            "task.head": {"kind": "two_layers", "units": 6},
            "task.loss": {"kind": "squared", "scale": 2.0},
            "task[shade].schedule": {"kind": "linear_decay", "rate": 1e-2},
        },
    )
    run = mt.train(spec, "museum", "own")
    assert run.history["shade/rate"].iloc[0] < 1e-2
    network = keras.saving.load_model("own/models/best_model.keras")
    names = [layer.name for layer in network._flatten_layers()]
    assert {"shade_first", "warmth_first", "block1a_conv"} <= set(names)
    run.evaluate(similar=False)
    run.export(["savedmodel", "onnx"])
    expected = run.load_model().probabilities("a.png")["shade"]
    # Another process, without the parts: the run is opened, evaluated and exported, both used.
    code = (
        "import multitask as mt, numpy as np\n"
        "run = mt.open_run('own')\n"
        "run.evaluate(similar=False); run.export(['onnx'])\n"
        "for model in (run.load_model(), mt.load_model('own/export')):\n"
        "    print(*model.probabilities('a.png')['shade'][0])\n"
        "try:\n    mt.train(mt.load_spec('museum.toml', {'trunk.name': 'grid'}), 'museum', 'x')\n"
        "except mt.InputError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, of_run, of_export, error = done.stdout.splitlines()
    for line in (of_run, of_export):
        np.testing.assert_allclose(np.array(line.split(), float), expected[0], atol=1e-5)
    assert error.startswith('museum.toml: trunk.name: unknown trunk "grid". Expected one of:')


def test_the_loss_of_the_run_is_the_own_one(collection):
    """By NumPy, from the logits of the first step: a run with rate 0 keeps its first weights."""
    mt.register_loss(squared)
    spec = mt.load_spec(
        "museum.toml",
        {
            "task.loss": {"kind": "squared", "scale": 3.0},
            "task.schedule": {"kind": "constant", "rate": 1e-12},
            "trunk.schedule": {"kind": "constant", "rate": 1e-12},
            "features.cache": "off",
        },
    )
    run = mt.train(spec, "museum", "own", phase="heads")
    model = run.load_model()
    from multitask.data.table import VALIDATION
    from multitask.trained import open_trained

    table = open_trained(run._run).training_table
    rows = table.rows(VALIDATION)
    images = [collection / "museum/images" / path for path in table.paths[rows]]
    for task in ("shade", "warmth"):
        labels = table.labels_of(task, VALIDATION)
        known = labels >= 0
        targets = np.eye(len(model.classes[task]))[labels[known]]
        values = model.probabilities(images)[task][known]
        expected = 3 * ((targets - values) ** 2).sum(axis=1).mean()
        assert run.history[f"{task}/val_loss"].iloc[0] == pytest.approx(expected, rel=1e-3)


def test_registering_again_replaces(collection):
    first = mt.register_head(two_layers)
    assert first is two_layers  # it is also a decorator
    assert mt.register_head(lambda features, name: features, name="two_layers")
    assert HEADS["two_layers"] is not two_layers


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: mt.register_head(two_layers, name="linear"),
            "name: 'linear': is a head of multitask; choose another name",
        ),
        (
            lambda: mt.register_loss(squared, name="My loss"),
            "name: 'My loss': expected lower-case letters, digits and underscores",
        ),
        (
            lambda: mt.register_head(lambda x: x, name="one"),
            "function: one: a head is a function (features, name, *, …)",
        ),
        (
            lambda: mt.register_schedule(lambda steps, *, rate: rate, name="flat"),
            "function: flat: the option 'rate' needs a type annotation, which checks its values",
        ),
        (lambda: mt.register_trunk("grid"), "function: str: expected a function"),
    ],
)
def test_wrong_parts(call, line):
    with pytest.raises(mt.InputError) as raised:
        call()
    assert str(raised.value) == line


def test_a_wrong_option_of_an_own_part(collection):
    mt.register_head(two_layers)
    spec = mt.load_spec("museum.toml", {"task[shade].head": {"kind": "two_layers", "units": "x"}})
    with pytest.raises(mt.InputError, match=r'task\[0\] "shade": head.units: \'x\': input should'):
        mt.train(spec, "museum", "own")
