"""Loss balancers on toys with known answers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from multitask.annexes.balancing import BALANCERS, build_balancer
from multitask.learning.checkpoints import Progress, restore_variables, save_checkpoint
from multitask.spec import Kind, SpecError

TWO = {"hue": 1.0, "form": 1.0}
THREE = {"hue": 1.0, "form": 1.0, "size": 1.0}
ALL = dict.fromkeys(THREE, 5)


def built(kind, weights=TWO, **options):
    return build_balancer(Kind(kind=kind, **options), place="toy.toml: balancing")(weights)


def scalars(values, tasks=TWO):
    """task -> float32 scalar, from numbers in the tasks' order."""
    return {task: tf.constant(float(v)) for task, v in zip(tasks, values, strict=True)}


def total_and_slopes(balancing, losses, labelled=ALL):
    """The total, and its gradient by each task's loss and by each trainable variable."""
    losses = scalars(losses, balancing.fixed)
    variables = [v.value for v in balancing.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(list(losses.values()))
        total = balancing.total(losses, labelled)
    slopes, own = tape.gradient(
        total, [list(losses.values()), variables], unconnected_gradients="zero"
    )
    return float(total), [float(s) for s in slopes], [float(s) for s in own]


# === Every kind ===


@pytest.mark.parametrize("kind", BALANCERS)
def test_a_task_without_labels_adds_nothing(kind):
    """The result is that without the task, whatever its loss."""
    labelled = {"hue": 3, "form": 0, "size": 1}
    two, three = built(kind, {"hue": 1.0, "size": 1.0}), built(kind, THREE)
    for loss in (0.0, 7.0):
        total, slopes, own = total_and_slopes(three, [0.4, loss, 2.5], labelled)
        want, want_slopes, want_own = total_and_slopes(two, [0.4, 2.5], labelled)
        assert total == pytest.approx(want)
        assert slopes == pytest.approx([want_slopes[0], 0, want_slopes[1]])
        assert slopes[1] == 0
        assert own == pytest.approx([want_own[0], 0, want_own[1]] if own else [])


@pytest.mark.parametrize("kind", BALANCERS)
def test_a_batch_without_labels_is_0(kind):
    total, slopes, own = total_and_slopes(built(kind), [0, 0], {"hue": 0, "form": 0})
    assert total == 0
    assert not np.any(slopes)
    assert not np.any(own)


@pytest.mark.parametrize("kind", BALANCERS)
def test_a_task_of_weight_0_is_excluded(kind):
    weights = {"hue": 1.0, "form": 0.0, "size": 1.0}
    some, two = built(kind, weights), built(kind, {"hue": 1.0, "size": 1.0})
    total, slopes, _ = total_and_slopes(some, [0.4, 7.0, 2.5])
    want, want_slopes, _ = total_and_slopes(two, [0.4, 2.5])
    assert total == want
    assert slopes == [want_slopes[0], 0, want_slopes[1]]
    assert some.current_weights() == two.current_weights() | {"form": 0}
    assert [v.shape for v in some.variables] == [v.shape for v in two.variables]


@pytest.mark.parametrize("kind", BALANCERS)
def test_one_task_alone(kind):
    total, slopes, _ = total_and_slopes(built(kind, {"hue": 1.0}), [0.7])
    assert total == pytest.approx(0.7)
    assert slopes == pytest.approx([1.0])


def test_the_default_is_fixed_weights():
    balancing = build_balancer(None, place="toy.toml: balancing")({"hue": 0.3, "form": 2.0})
    total, slopes, own = total_and_slopes(balancing, [0.5, 4.0])
    assert total == pytest.approx(0.3 * 0.5 + 2.0 * 4.0)
    assert slopes == pytest.approx([0.3, 2.0])
    assert own == []
    assert balancing.variables == []
    assert balancing.current_weights() == {"hue": 0.3, "form": 2.0}


class Model(keras.Model):
    """A model that holds a balancer as the engine does: as an attribute."""

    def __init__(self, kind):
        inputs = keras.Input((2,))
        trunk = keras.Model(inputs, keras.layers.Dense(1)(inputs), name="trunk")
        super().__init__(inputs, trunk(inputs))
        self.balancing = built(kind, THREE)


def test_the_variables_are_saved_with_the_model(tmp_path):
    def prepared():
        model = Model("uncertainty")
        model.compile("sgd")
        model.optimizer.build(model.trainable_variables)
        return model

    model = prepared()
    balancing = model.balancing
    assert [v.name for v in balancing.variables] == [f"{task}_log_variance" for task in THREE]
    ids = {id(v) for v in model.variables}
    assert all(id(v) in ids for v in balancing.variables)
    assert len(model.trainable_variables) == 2 + 3
    for index, variable in enumerate(balancing.variables):
        variable.assign(np.full(variable.shape, index + 0.5))
    save_checkpoint(tmp_path / "checkpoint", model.variables, Progress(epoch=1))
    model.save_weights(tmp_path / "model.weights.h5")
    for restore in (
        lambda new: restore_variables(tmp_path / "checkpoint" / "000001", new.variables),
        lambda new: new.load_weights(tmp_path / "model.weights.h5"),
    ):
        again = prepared()
        restore(again)
        for index, variable in enumerate(again.balancing.variables):
            assert np.all(variable.numpy() == index + 0.5)


# === Uncertainty weighting ===


def test_uncertainty_is_equation_10():
    balancing = built("uncertainty", {"hue": 0.5, "form": 1.0})
    for variable, s in zip(balancing.variables, (0.3, -1.2), strict=True):
        variable.assign(s)
    total, slopes, own = total_and_slopes(balancing, [2.0, 0.1])
    # Of L / sigma² + log sigma, with sigma² = exp(s).
    parts = [(0.5 * 2.0, np.exp(0.3)), (0.1, np.exp(-1.2))]
    assert total == pytest.approx(sum(loss / var + np.log(np.sqrt(var)) for loss, var in parts))
    assert slopes == pytest.approx([0.5 / np.exp(0.3), 1 / np.exp(-1.2)])
    assert own == pytest.approx([0.5 - loss / var for loss, var in parts])
    assert balancing.current_weights() == pytest.approx(
        {"hue": 0.5 * np.exp(-0.3), "form": np.exp(1.2)}
    )


@pytest.mark.parametrize("absent", [False, True], ids=["all labelled", "every second batch"])
def test_uncertainty_of_constant_losses(absent):
    """The optimum is s = log(2 w L), so that each weight is 1 / (2 L)."""
    weights, losses = {"hue": 1.0, "form": 0.5, "size": 1.0}, [0.05, 1.0, 3.0]
    balancing = built("uncertainty", weights)
    optimizer = keras.optimizers.SGD(0.5)
    variables = balancing.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step(labelled):
        with tf.GradientTape() as tape:
            total = balancing.total(scalars(losses, weights), labelled)
        optimizer.apply(tape.gradient(total, [v.value for v in variables]), variables)

    halfway = None
    for i in range(240):
        labels = 0 if absent and i % 2 else 4
        before = float(variables[2].value)
        step({"hue": tf.constant(4), "form": tf.constant(4), "size": tf.constant(labels)})
        if not labels:
            assert float(variables[2].value) == before
        if i == 9:
            halfway = float(variables[2].value)
    optimum = np.log([2 * 0.05, 2 * 0.5 * 1.0, 2 * 3.0])
    assert [float(v.value) for v in variables] == pytest.approx(optimum, abs=1e-3)
    assert list(balancing.current_weights().values()) == pytest.approx([10, 0.5, 1 / 6], rel=2e-3)
    # Ten steps by hand; steps without labels change nothing.
    s = 0.0
    for _ in range(5 if absent else 10):
        s -= 0.5 * (0.5 - 3.0 * np.exp(-s))
    assert halfway == pytest.approx(s, rel=1e-5)


def test_uncertainty_finds_the_noise_of_each_task():
    """Labels of which a known share is wrong: the lowest loss is their entropy H, and the learnt
    log-variance is log(2 H)."""
    noise = {"hue": 0.02, "form": 0.3}
    clean = np.repeat([0, 1], 100)
    labels = {}
    for task, share in noise.items():
        flipped = np.tile(np.arange(100) < 100 * share, 2)
        labels[task] = np.where(flipped, 1 - clean, clean)
    balancing = built("uncertainty")
    tables = {task: keras.Variable(np.zeros((2, 2))) for task in noise}  # clean class -> logits
    variables = [*tables.values(), *balancing.trainable_variables]
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            losses = {
                task: ops.mean(
                    ops.sparse_categorical_crossentropy(
                        labels[task], ops.take(table, clean, axis=0), from_logits=True
                    )
                )
                for task, table in tables.items()
            }
            total = balancing.total(losses, {"hue": 200, "form": 200})
        optimizer.apply(tape.gradient(total, [v.value for v in variables]), variables)

    for _ in range(400):
        step()
    for (task, share), s in zip(noise.items(), balancing.trainable_variables, strict=True):
        entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
        assert float(s.value) == pytest.approx(np.log(2 * entropy), abs=0.01)
        assert balancing.current_weights()[task] == pytest.approx(1 / (2 * entropy), rel=0.01)


@pytest.mark.parametrize("kind", BALANCERS)
def test_a_step_is_compiled_once(kind):
    balancing, traces = built(kind), []

    @tf.function
    def total(labelled):
        traces.append(1)
        return balancing.total(scalars([0.5, 2.0]), labelled)

    counts = [
        {"hue": tf.constant(hue), "form": tf.constant(form)} for hue, form in ((0, 2), (0, 0))
    ]
    assert [float(total(labelled)) for labelled in counts] == pytest.approx([2.0, 0.0])
    assert len(traces) == 1


# === Errors ===


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"kind": "uncertainly"},
            '.kind: unknown kind "uncertainly". Expected one of: fixed, uncertainty. '
            'Did you mean "uncertainty"?',
        ),
        (
            {"kind": "uncertainty", "rates": 1},
            ': unknown option "rates" of "uncertainty". Expected one of: rate. '
            'Did you mean "rate"?',
        ),
        ({"kind": "uncertainty", "rate": 0}, ".rate: 0: input should be greater than 0"),
    ],
)
def test_wrong_balancing_names_its_place(choice, message):
    with pytest.raises(SpecError) as error:
        built(**choice)
    assert str(error.value) == "toy.toml: balancing" + message
