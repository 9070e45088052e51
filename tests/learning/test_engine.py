"""The engine against NumPy: masked means, one loss of all tasks, an extra loss, mixed images."""

import keras
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import tensorflow as tf

from multitask.annexes.balancing import build_balancer
from multitask.annexes.contrastive import Contrastive
from multitask.annexes.mixing import Mixing, mixup
from multitask.learning.engine import MultitaskModel
from multitask.learning.losses import MaskedLoss, cross_entropy, focal_loss
from multitask.model.network import PROJECTED
from multitask.spec import Kind

CLASSES = {"colour": 5, "shape": 3}
CLASS_WEIGHTS = {
    "colour": np.array([0.5, 2.0, 1.0, 0.0, 1.5], np.float32),
    "shape": np.array([0.5, 1, 1.5], np.float32),
}
WIDTH = 4  # of the inputs of a linear model
NO_WEIGHTS = {task: np.ones(count, np.float32) for task, count in CLASSES.items()}


def losses_of(classes, *, class_weights=NO_WEIGHTS, function=cross_entropy, **options):
    return {task: MaskedLoss(function, class_weights[task], options) for task in classes}


def balancer_of(kind, weights):
    choice = Kind(kind=kind) if kind else None
    return build_balancer(choice, place="toy.toml: balancing")(weights)


def for_pairs(losses):
    """The options of a model whose labels are those of mixed images."""
    mixing = Mixing(mixup)
    losses = {task: mixing.wrap_loss(loss) for task, loss in losses.items()}
    return {"losses": losses, "metric_targets": mixing.metric_targets}


def given_logits(classes, *, kind=None, weights=None, **options):
    """A model whose logits are its inputs; with an extra loss its vectors are one, too."""
    widths = {task: (count,) for task, count in classes.items()}
    if options.get("extra_loss"):
        widths[PROJECTED] = (WIDTH,)
    inputs = {name: keras.Input(shape, name=f"{name}_in") for name, shape in widths.items()}
    weights = weights or dict.fromkeys(classes, 1.0)
    model = MultitaskModel(
        inputs,
        {name: keras.layers.Identity(name=name)(tensor) for name, tensor in inputs.items()},
        balancer=balancer_of(kind, weights),
        classes=classes,
        **{"losses": losses_of(classes), **options},
    )
    model.compile("sgd", jit_compile=False)
    return model


def linear(*, kind=None, weights=None, rate=0.1, eager=False, **options):
    """logits = x W + b of each task, trained by plain gradient descent."""
    inputs = keras.Input((WIDTH,))
    model = MultitaskModel(
        inputs,
        {task: keras.layers.Dense(count, name=task)(inputs) for task, count in CLASSES.items()},
        balancer=balancer_of(kind, weights or dict.fromkeys(CLASSES, 1.0)),
        classes=CLASSES,
        **{"losses": losses_of(CLASSES), **options},
    )
    model.compile(keras.optimizers.SGD(rate), jit_compile=False, run_eagerly=eager)
    return model


def weights_of(labels):
    return {task: (y >= 0).astype(np.float32) for task, y in labels.items()}


def evaluated(model, inputs, labels, batch_size, weights=None):
    data = (inputs, labels, weights or weights_of(labels))
    data = tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
    return model.evaluate(data, return_dict=True, verbose=0)


def focal_by_hand(labels, logits, class_weights):
    """Of each example, with gamma 2 and alpha 1/4, in float64."""
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return -0.25 * class_weights[labels] * (1 - p) ** 2 * np.log(p)


def cross_entropy_by_hand(labels, logits):
    """The mean over the labelled, float64; 0 where there is none."""
    known = labels >= 0
    if not known.any():
        return 0.0
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    return -log_p[known, labels[known]].mean()


@pytest.fixture(scope="module")
def half_labelled():
    """24 examples of two tasks; half and a quarter of the labels are there."""
    rng = np.random.default_rng(3)
    logits = {t: rng.normal(scale=2, size=(24, n)).astype(np.float32) for t, n in CLASSES.items()}
    labels = {t: rng.integers(0, n, 24).astype(np.int32) for t, n in CLASSES.items()}
    labels["colour"][::2] = -1
    labels["shape"][np.arange(24) % 4 > 0] = -1
    return logits, labels


# === Means over the labelled ===


@pytest.mark.parametrize("batch_size", [24, 7, 1])
def test_evaluate_gives_the_mean_over_the_labelled(half_labelled, batch_size):
    """Whatever the batches: an epoch's mean is weighted by how many labels each of them has."""
    logits, labels = half_labelled
    losses = losses_of(
        CLASSES, class_weights=CLASS_WEIGHTS, function=focal_loss, gamma=2.0, alpha=0.25
    )
    result = evaluated(given_logits(CLASSES, losses=losses), logits, labels, batch_size)
    counts = {task: np.add.reduceat(y >= 0, range(0, 24, 7)) for task, y in labels.items()}
    assert all(len(set(count)) > 1 for count in counts.values())  # batches of 7 do differ
    for task in CLASSES:
        known = labels[task] >= 0
        each = focal_by_hand(labels[task][known], logits[task][known], CLASS_WEIGHTS[task])
        assert result[f"loss/{task}"] == pytest.approx(each.mean(), rel=1e-5)
        answers = logits[task].argmax(1)
        assert result[f"labelled/{task}"] == known.sum()
        assert result[f"top1/{task}"] == pytest.approx(
            sklearn.metrics.accuracy_score(labels[task][known], answers[known])
        )
        assert result[f"macro_f1/{task}"] == pytest.approx(
            sklearn.metrics.f1_score(
                labels[task][known],
                answers[known],
                labels=np.unique(labels[task][known]),
                average="macro",
                zero_division=0,
            )
        )
    if batch_size == 24:
        total = result["loss/colour"] + result["loss/shape"]
        assert result["loss"] == pytest.approx(total, rel=1e-5)


def test_fit_reports_the_means_of_evaluate(half_labelled):
    logits, labels = half_labelled
    model = given_logits(CLASSES)
    data = tf.data.Dataset.from_tensor_slices((logits, labels, weights_of(labels))).batch(7)
    history = model.fit(data, epochs=2, verbose=0).history
    assert sorted(history) == sorted(
        ["loss"] + [f"{n}/{t}" for t in CLASSES for n in ("loss", "top1", "macro_f1", "labelled")]
    )
    for task in CLASSES:
        want = cross_entropy_by_hand(labels[task], logits[task])
        # The second epoch starts anew.
        assert history[f"loss/{task}"] == pytest.approx([want] * 2, rel=1e-5)
        assert history[f"labelled/{task}"] == [(labels[task] >= 0).sum()] * 2


def test_training_metrics_do_not_include_the_validation(half_labelled):
    logits, labels = half_labelled
    data = tf.data.Dataset.from_tensor_slices((logits, labels, weights_of(labels))).batch(7)
    model = given_logits(CLASSES)
    history = model.fit(data, validation_data=data.take(1), verbose=0).history
    alone = given_logits(CLASSES).fit(data, verbose=0).history
    for name, value in alone.items():
        assert history[name] == value, name
    assert history["val_labelled/colour"] == [(labels["colour"][:7] >= 0).sum()]


def test_loss_weights_and_no_labels_at_all(half_labelled):
    logits, labels = half_labelled
    labels = labels | {"shape": np.full(24, -1, np.int32)}
    model = given_logits(CLASSES, weights={"colour": 0.3, "shape": 2.0})
    result = evaluated(model, logits, labels, 24)
    known = labels["colour"] >= 0
    p = scipy.special.softmax(logits["colour"].astype(np.float64), axis=1)
    mean = sklearn.metrics.log_loss(labels["colour"][known], p[known], labels=range(5))
    assert result["loss"] == pytest.approx(0.3 * mean, rel=1e-4)
    assert result["loss/shape"] == 0
    assert result["labelled/shape"] == 0
    assert result["macro_f1/shape"] == 0


def test_one_task_alone_keeps_its_name_in_the_logs():
    labels = np.array([0, -1, 2, 1], np.int32)
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 1]]
    result = evaluated(given_logits({"shape": 3}), {"shape": logits}, {"shape": labels}, 4)
    assert result["labelled/shape"] == 3
    assert result["top1/shape"] == pytest.approx(2 / 3)
    # Class 0 predicted; class 1 predicted, once falsely; class 2 never.
    assert result["macro_f1/shape"] == pytest.approx((1 + 2 / 3 + 0) / 3)


# === Mixed images ===


def test_a_mixed_image_counts_once_with_both_its_labels():
    """Four images: mixed; mixed within one class; not mixed; without a label."""
    labels = np.array([[0, 2], [1, 1], [2, -1], [-1, -1]], np.int32)
    weights = np.array([[0.3, 0.7], [0.6, 0.4], [1.0, 0.0], [0.0, 0.0]], np.float32)
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    logits[0] = [0, 1, 3]  # predicts 2, the label of the larger weight
    logits[1] = [0, 1, 0]  # predicts 1
    logits[2] = [5, 1, 0]  # predicts 0, and is 2
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    each = [0.3 * log_p[0, 0] + 0.7 * log_p[0, 2], log_p[1, 1], log_p[2, 2]]
    model = given_logits({"shape": 3}, **for_pairs(losses_of({"shape": 3})))
    result = evaluated(model, {"shape": logits}, {"shape": labels}, 4, {"shape": weights})
    assert result["loss/shape"] == pytest.approx(-sum(each) / 3, rel=1e-5)
    assert result["loss"] == pytest.approx(-sum(each) / 3, rel=1e-5)
    assert result["top1/shape"] == pytest.approx(2 / 3)
    # Class 0: absent, predicted once. Class 1: correct. Class 2: one of two correct.
    assert result["macro_f1/shape"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["labelled/shape"] == 3
    by_ones = evaluated(model, {"shape": logits}, {"shape": labels}, 1, {"shape": weights})
    assert by_ones["loss/shape"] == pytest.approx(-sum(each) / 3, rel=1e-5)


# === One loss of all tasks ===


def batch(seed=0, count=8):
    rng = np.random.default_rng(seed)
    labels = {task: rng.integers(-1, n, count).astype(np.int32) for task, n in CLASSES.items()}
    return rng.normal(size=(count, WIDTH)).astype(np.float32), labels


def means_by_hand(model, x, labels):
    """Each task's loss of a linear model, by NumPy from its weights."""
    kernels = {task: model.get_layer(task).get_weights() for task in CLASSES}
    return {
        task: cross_entropy_by_hand(labels[task], x @ kernel + bias)
        for task, (kernel, bias) in kernels.items()
    }


@pytest.mark.parametrize("kind", ["fixed", "uncertainty"])
def test_the_total_by_hand(kind):
    x, labels = batch()
    weights = {"colour": 0.3, "shape": 2.0}
    model = linear(kind=kind, weights=weights)
    mean = means_by_hand(model, x, labels)
    match kind:
        case "fixed":
            total = 0.3 * mean["colour"] + 2 * mean["shape"]
        case "uncertainty":
            for variable, value in zip(model.balancer.log_variances, (0.5, -1.0), strict=True):
                variable.assign(value)
            total = np.exp(-0.5) * 0.3 * mean["colour"] + 0.5 / 2
            total += np.exp(1.0) * 2 * mean["shape"] - 1.0 / 2
    result = evaluated(model, x, labels, len(x))
    assert result["loss"] == pytest.approx(total, rel=1e-5)
    for task in CLASSES:  # a task's reported loss is its plain mean
        assert result[f"loss/{task}"] == pytest.approx(mean[task], rel=1e-5)


def slope_by_hand(labels, logits):
    """Of the mean cross-entropy over the labelled, to the logits."""
    known = labels >= 0
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)
    p[known, labels[known]] -= 1
    return p * known[:, None] / known.sum()


def test_a_step_by_hand():
    x, labels = batch()
    weights = {"colour": 0.3, "shape": 2.0}
    model = linear(weights=weights, rate=0.5)
    before = {task: model.get_layer(task).get_weights() for task in CLASSES}
    model.train_on_batch(x, labels, sample_weight=weights_of(labels))
    for task, (kernel, bias) in before.items():
        slope = weights[task] * slope_by_hand(labels[task], x @ kernel + bias)
        new_kernel, new_bias = model.get_layer(task).get_weights()
        np.testing.assert_allclose(new_kernel, kernel - 0.5 * x.T @ slope, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(new_bias, bias - 0.5 * slope.sum(0), rtol=1e-4, atol=1e-6)


def test_uncertainties_are_learnt_with_the_network():
    x, labels = batch()
    model = linear(kind="uncertainty", rate=0.1)
    mean = means_by_hand(model, x, labels)
    model.train_on_batch(x, labels, sample_weight=weights_of(labels))
    # The slope of exp(-s) L + s / 2 at s = 0 is 1 / 2 - L.
    for task, variable in zip(CLASSES, model.balancer.log_variances, strict=True):
        assert float(variable) == pytest.approx(-0.1 * (0.5 - mean[task]), rel=1e-4)


# === The contrastive loss ===


def contrastive_by_hand(labels, embeddings, temperature):
    """Equation 2 of Khosla et al. 2020, anchor by anchor; the mean over those with positives."""
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    losses = []
    for i in np.flatnonzero(labels >= 0):
        others = [a for a in np.flatnonzero(labels >= 0) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            below = sum(np.exp(unit[i] @ unit[a] / temperature) for a in others)
            logs = [np.log(np.exp(unit[i] @ unit[p] / temperature) / below) for p in positives]
            losses.append(-np.mean(logs))
    return np.mean(losses) if losses else 0.0


def test_the_contrastive_loss_is_added_with_its_weights(half_labelled):
    logits, labels = half_labelled
    embeddings = np.random.default_rng(8).normal(size=(24, WIDTH)).astype(np.float32)
    model = given_logits(
        CLASSES,
        weights={"colour": 0.3, "shape": 2.0},
        extra_loss=Contrastive({"colour": 0.5, "shape": 1.5}, temperature=0.2),
    )
    result = evaluated(model, logits | {PROJECTED: embeddings}, labels, 24)
    of_task = {t: contrastive_by_hand(labels[t], embeddings, 0.2) for t in CLASSES}
    mean = {t: cross_entropy_by_hand(labels[t], logits[t]) for t in CLASSES}
    for task in CLASSES:
        assert of_task[task] > 0.5
        assert result[f"contrastive_loss/{task}"] == pytest.approx(of_task[task], rel=1e-4)
        assert result[f"loss/{task}"] == pytest.approx(mean[task], rel=1e-4)
    total = 0.3 * mean["colour"] + 2 * mean["shape"]
    total += 0.5 * of_task["colour"] + 1.5 * of_task["shape"]
    assert result["loss"] == pytest.approx(total, rel=1e-4)


def test_a_task_without_a_contrastive_loss_has_none():
    model = given_logits(CLASSES, extra_loss=Contrastive({"shape": 1.0}, temperature=0.1))
    names = [metric.name for metric in model.metrics]
    assert "contrastive_loss/shape" in names
    assert "contrastive_loss/colour" not in names


# === Batches without labels ===


@pytest.mark.parametrize("kind", ["fixed", "uncertainty"])
@pytest.mark.parametrize("width", [1, 2])  # labels of plain and of mixed images
def test_a_batch_without_any_label_changes_nothing(kind, width):
    options = for_pairs(losses_of(CLASSES)) if width == 2 else {}
    model = linear(kind=kind, eager=True, **options)
    before = [v.numpy() for v in model.trainable_variables]
    x, _ = batch()
    shape = (8,) if width == 1 else (8, 2)
    labels = {task: np.full(shape, -1, np.int32) for task in CLASSES}
    logs = model.train_on_batch(x, labels, sample_weight=weights_of(labels), return_dict=True)
    assert logs["loss"] == 0
    assert all(np.isfinite(value) for value in logs.values())
    assert [logs[f"labelled/{task}"] for task in CLASSES] == [0, 0]
    for mine, theirs in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


def test_a_contrastive_loss_without_any_label_is_0():
    model = given_logits(CLASSES, extra_loss=Contrastive({"shape": 1.0}, temperature=0.1))
    inputs = {t: np.ones((3, n), np.float32) for t, n in CLASSES.items()}
    inputs[PROJECTED] = np.zeros((3, WIDTH), np.float32)  # of no direction
    result = evaluated(model, inputs, {t: np.full(3, -1, np.int32) for t in CLASSES}, 3)
    assert result["loss"] == result["contrastive_loss/shape"] == 0


def test_the_rejection_loss_is_added_with_its_weight():
    classes = {"colour": 5, "shape": 3}
    rng = np.random.default_rng(3)
    labels = {
        "colour": np.array([0, -2, 4, -1, -2, 2, -2]),
        "shape": np.array([0, 1, 2, 0, 1, -1, 1]),
    }
    inputs = {
        task: rng.normal(0, 2, (7, count)).astype(np.float32) for task, count in classes.items()
    }
    plain = losses_of(classes)
    opened = dict(plain)
    opened["colour"] = MaskedLoss(cross_entropy, NO_WEIGHTS["colour"], {}, rejection=0.5)
    closed_value = evaluated(given_logits(classes, losses=plain), inputs, labels, 7)
    open_value = evaluated(given_logits(classes, losses=opened), inputs, labels, 7)
    total = np.exp(inputs["colour"].astype(np.float64)).sum(axis=1)
    known, other = labels["colour"] >= 0, labels["colour"] == -2
    expected = (np.log1p(1 / total)[known].mean() + np.log1p(total)[other].mean()) / 2
    assert open_value["loss"] - closed_value["loss"] == pytest.approx(0.5 * expected, rel=1e-4)
    # Metrics are those of the labelled images.
    for name in ("top1/colour", "macro_f1/colour", "labelled/colour", "loss/shape"):
        assert open_value[name] == closed_value[name]
