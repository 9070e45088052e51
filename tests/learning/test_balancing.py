"""Balancing on toys whose answer is known, and FAMO against its algorithm in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from multitask.learning.balancing import BALANCERS, build_balancing
from multitask.learning.checkpoints import Progress, restore_variables, save_checkpoint
from multitask.spec import Kind, SpecError

TWO = {"hue": 1.0, "form": 1.0}
THREE = {"hue": 1.0, "form": 1.0, "size": 1.0}
ALL = dict.fromkeys(THREE, 5)


def built(kind, weights=TWO, **options):
    return build_balancing(Kind(kind=kind, **options), weights, place="toy.toml: balancing")


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
    """As if it were not there, and whatever its loss is said to be."""
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
def test_a_task_of_weight_0_is_left_out(kind):
    weights = {"hue": 1.0, "form": 0.0, "size": 1.0}
    some, two = built(kind, weights), built(kind, {"hue": 1.0, "size": 1.0})
    total, slopes, _ = total_and_slopes(some, [0.4, 7.0, 2.5])
    want, want_slopes, _ = total_and_slopes(two, [0.4, 2.5])
    assert total == want
    assert slopes == [want_slopes[0], 0, want_slopes[1]]
    assert some.weights_now() == two.weights_now() | {"form": 0}
    assert [v.shape for v in some.variables] == [v.shape for v in two.variables]


@pytest.mark.parametrize("kind", BALANCERS)
def test_one_task_alone(kind):
    total, slopes, _ = total_and_slopes(built(kind, {"hue": 1.0}), [0.7])
    assert total == pytest.approx(0.7)
    assert slopes == pytest.approx([1.0])


def test_none_is_the_fixed_weights_of_the_spec():
    balancing = build_balancing(None, {"hue": 0.3, "form": 2.0}, place="toy.toml: balancing")
    total, slopes, own = total_and_slopes(balancing, [0.5, 4.0])
    assert total == pytest.approx(0.3 * 0.5 + 2.0 * 4.0)
    assert slopes == pytest.approx([0.3, 2.0])
    assert own == []
    assert balancing.variables == []
    assert balancing.weights_now() == {"hue": 0.3, "form": 2.0}


class Model(keras.Model):
    """As an engine holds a balancing: an attribute of the model."""

    def __init__(self, kind):
        inputs = keras.Input((2,))
        trunk = keras.Model(inputs, keras.layers.Dense(1)(inputs), name="trunk")
        super().__init__(inputs, trunk(inputs))
        self.balancing = built(kind, THREE)


@pytest.mark.parametrize(
    ("kind", "names", "trainable"),
    [
        ("uncertainty", [f"{task}_log_variance" for task in THREE], 3),
        ("famo", ["logits", "mean", "square", "steps"], 0),
    ],
)
def test_its_variables_are_the_models_and_come_back(tmp_path, kind, names, trainable):
    def prepared():
        model = Model(kind)
        model.compile("sgd")
        model.optimizer.build(model.trainable_variables)
        return model

    model = prepared()
    balancing = model.balancing
    assert [v.name for v in balancing.variables] == names
    ids = {id(v) for v in model.variables}
    assert all(id(v) in ids for v in balancing.variables)
    assert len(model.trainable_variables) == 2 + trainable
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
    assert balancing.weights_now() == pytest.approx(
        {"hue": 0.5 * np.exp(-0.3), "form": np.exp(1.2)}
    )


@pytest.mark.parametrize("absent", [False, True], ids=["all labelled", "every second batch"])
def test_uncertainty_of_losses_that_stand_still(absent):
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
    assert list(balancing.weights_now().values()) == pytest.approx([10, 0.5, 1 / 6], rel=2e-3)
    # Ten steps by hand; those without labels are none.
    s = 0.0
    for _ in range(5 if absent else 10):
        s -= 0.5 * (0.5 - 3.0 * np.exp(-s))
    assert halfway == pytest.approx(s, rel=1e-5)


def test_uncertainty_finds_the_noise_of_each_task():
    """Labels that are wrong by a known share: no answer is better than their entropy H, and the
    learnt log-variance is log(2 H)."""
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
        assert balancing.weights_now()[task] == pytest.approx(1 / (2 * entropy), rel=0.01)


# === FAMO ===


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


class FamoByHand:
    """Liu et al. 2023, algorithm 1, with Adam for the logits' step; float64, task by task."""

    def __init__(self, tasks, rate, decay):
        self.xi = dict.fromkeys(tasks, 0.0)
        self.adam = dict.fromkeys(tasks, (0.0, 0.0, 0))
        self.rate, self.decay = rate, decay

    def loss_weights(self, losses):
        """c z / L of each task in the batch."""
        z = softmax(np.array([self.xi[task] for task in losses]))
        c = 1 / sum(z_i / loss for z_i, loss in zip(z, losses.values(), strict=True))
        return {t: c * z_i / loss for z_i, (t, loss) in zip(z, losses.items(), strict=True)}

    def update(self, before, after):
        z = softmax(np.array([self.xi[task] for task in before]))
        jacobian = np.array(
            [[z[i] * ((i == j) - z[j]) for j in range(len(z))] for i in range(len(z))]
        )
        fall = np.array([np.log(before[task]) - np.log(after[task]) for task in before])
        gradient = jacobian.T @ fall
        for task, slope in zip(before, gradient, strict=True):
            slope += self.decay * self.xi[task]
            m, v, t = self.adam[task]
            m, v, t = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2, t + 1
            self.adam[task] = m, v, t
            m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
            self.xi[task] -= self.rate * m_hat / (np.sqrt(v_hat) + 1e-8)


@pytest.mark.parametrize("absent", [False, True], ids=["all labelled", "every second batch"])
def test_famo_against_the_algorithm_in_numpy(absent):
    rng = np.random.default_rng(5)
    famo = built("famo", THREE, rate=0.1, decay=0.01)
    by_hand = FamoByHand(THREE, 0.1, 0.01)
    update = tf.function(famo.update)
    for i in range(12):
        there = [task for task in THREE if not (absent and i % 2 and task == "form")]
        before, after = (dict(zip(THREE, rng.uniform(0.05, 4, 3), strict=True)) for _ in "ba")
        labelled = {task: int(task in there) for task in THREE}
        want = by_hand.loss_weights({task: before[task] for task in there})
        _, slopes, _ = total_and_slopes(famo, list(before.values()), labelled)
        assert slopes == pytest.approx([want.get(task, 0) for task in THREE], rel=1e-4)
        assert sum(slopes) == pytest.approx(1, rel=1e-5)
        logits = famo.logits.numpy()
        update(
            scalars(before.values(), THREE),
            scalars(after.values(), THREE),
            {task: tf.constant(n) for task, n in labelled.items()},
        )
        by_hand.update({t: before[t] for t in there}, {t: after[t] for t in there})
        np.testing.assert_allclose(
            famo.logits.numpy(), list(by_hand.xi.values()), rtol=1e-3, atol=1e-5
        )
        if len(there) == 2:
            assert famo.logits.numpy()[1] == logits[1]
    z = softmax(np.array(list(by_hand.xi.values())))
    assert list(famo.weights_now().values()) == pytest.approx(z, rel=1e-3)
    assert np.ptp(z) > 0.05
    assert list(famo.steps.numpy()) == [12, 6 if absent else 12, 12]


def test_famos_gradient_is_that_of_the_logarithms():
    """And its value is the harmonic mean, where the sum of logarithms is negative."""
    famo = built("famo")
    famo.logits.assign([0.4, -0.7])
    z = softmax(np.array([0.4, -0.7]))
    losses = [tf.constant(0.02), tf.constant(1.5)]
    c = 1 / (z[0] / 0.02 + z[1] / 1.5)
    with tf.GradientTape() as tape:
        tape.watch(losses)
        logarithms = c * (z[0] * tf.math.log(losses[0]) + z[1] * tf.math.log(losses[1]))
    want = tape.gradient(logarithms, losses)
    total, slopes, _ = total_and_slopes(famo, [0.02, 1.5])
    assert slopes == pytest.approx([float(w) for w in want], rel=1e-5)
    assert total == pytest.approx(c, rel=1e-5)


def test_famo_with_a_loss_of_0():
    famo = built("famo")
    total, slopes, _ = total_and_slopes(famo, [0.0, 2.0])
    assert np.isfinite([total, *slopes]).all()
    famo.update(scalars([0.5, 2.0]), scalars([0.0, 1.9]), ALL)
    assert np.isfinite(famo.logits.numpy()).all()


def two_quadratics(kind, *, rate, steps, absent=False, **options):
    """Losses 100 x² and 0.01 y², from x = 1 and y = 3, by plain gradient descent.

    Returns:
        float [steps, 2]: both losses before each step; x and y at the end; the balancing.
    """
    balancing = built(kind, **options)
    place = tf.Variable([1.0, 3.0])

    def losses():
        return {"hue": 100 * place[0] ** 2, "form": 0.01 * place[1] ** 2}

    @tf.function
    def step(labelled):
        with tf.GradientTape() as tape:
            before = losses()
            total = balancing.total(before, labelled)
        place.assign_sub(rate * tape.gradient(total, place))
        if balancing.needs_second_forward:
            balancing.update(before, losses(), labelled)
        return list(before.values())

    seen = []
    for i in range(steps):
        labelled = {"hue": tf.constant(2), "form": tf.constant(0 if absent and i % 2 else 2)}
        seen.append([float(loss) for loss in step(labelled)])
    return np.array(seen), place.numpy(), balancing


def test_famo_lets_two_losses_of_very_different_scale_fall_together():
    """-d log L is z times (2 / x)² for the one and (2 / y)² for the other: they fall at one rate
    where the weights z are as x² to y², here 1 to 9 at first and never 1 to 1."""
    plain, _, _ = two_quadratics("fixed", rate=0.0099, steps=400)  # 0.01 is no longer stable
    assert plain[-1, 0] < 1e-3 * plain[0, 0]
    assert plain[-1, 1] > 0.8 * plain[0, 1]

    seen, (x, y), famo = two_quadratics("famo", rate=0.02, steps=400, decay=0.0)
    falls = -np.diff(np.log(seen), axis=0)
    assert falls[0, 0] > 8 * falls[0, 1]  # equal weights
    assert falls[-50:, 0] == pytest.approx(falls[-50:, 1], rel=0.03)
    assert seen[-1, 1] < 0.8 * seen[0, 1]
    z = famo.weights_now()
    assert z["form"] / z["hue"] == pytest.approx((y / x) ** 2, rel=0.03)
    assert z["form"] + z["hue"] == pytest.approx(1)


def test_famo_with_a_task_that_is_absent_in_every_second_batch():
    """Alone in a batch, the other is trained as if it were the only one."""
    seen, _, _ = two_quadratics("famo", rate=0.002, steps=500, absent=True, decay=0.0)
    together, alone = seen[:-1:2], seen[1::2]
    # x -= rate * 200 x: the gradient of the one loss, whatever the weights.
    np.testing.assert_allclose(seen[2::2, 0], alone[:-1, 0] * (1 - 0.4) ** 2, rtol=1e-4)
    np.testing.assert_array_equal(seen[2::2, 1], alone[:-1, 1])
    assert together[-1, 1] < together[0, 1]


def test_famos_decay_pulls_the_weights_together():
    gaps = []
    for decay in (0.0, 0.001, 0.01):
        _, _, famo = two_quadratics("famo", rate=0.02, steps=200, decay=decay)
        gaps.append(famo.weights_now()["form"] - famo.weights_now()["hue"])
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_only_famo_looks_twice():
    assert [k for k in BALANCERS if built(k).needs_second_forward] == ["famo"]


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


# === What is refused ===


@pytest.mark.parametrize(
    ("choice", "weights", "message"),
    [
        (
            {"kind": "uncertainly"},
            TWO,
            '.kind: unknown kind "uncertainly". Expected one of: famo, fixed, uncertainty. '
            'Did you mean "uncertainty"?',
        ),
        (
            {"kind": "famo", "rates": 1},
            TWO,
            ': unknown option "rates" of "famo". Expected one of: decay, rate. '
            'Did you mean "rate"?',
        ),
        ({"kind": "famo", "rate": 0}, TWO, ".rate: 0: input should be greater than 0"),
        (
            {"kind": "famo", "decay": -1},
            TWO,
            ".decay: -1: input should be greater than or equal to 0",
        ),
        (
            {"kind": "famo"},
            {"hue": 1.0, "form": 0.5},
            ': "famo" finds the weights itself, whatever a loss is multiplied by: the weight of '
            'task "form" may be 1, or 0 (not learnt), not 0.5',
        ),
        (
            {"kind": "uncertainty"},
            {"hue": 0.0, "form": 0.0},
            ": every task has the weight 0: there is nothing to learn",
        ),
    ],
)
def test_wrong_balancing_names_its_place(choice, weights, message):
    with pytest.raises(SpecError) as error:
        built(**choice, weights=weights)
    assert str(error.value) == "toy.toml: balancing" + message
