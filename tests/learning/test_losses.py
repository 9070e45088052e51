"""Losses against loops in NumPy and against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from keras import ops
from specs import spec_of

from multitask.learning.losses import (
    LOSSES,
    MaskedLoss,
    build_losses,
    cross_entropy,
    focal_loss,
    rejection_mean,
    rejection_sums,
)
from multitask.spec import OTHER_LABEL, SpecError

CLASSES = 5
RNG = np.random.default_rng(7)
LOGITS = RNG.normal(scale=2, size=(12, CLASSES)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 4, -1, 0, 0, -1, 3, 2, -1], np.int32)
CLASS_WEIGHTS = np.array([0.5, 2.0, 1.0, 0.0, 1.5], np.float32)
ONES = np.ones(CLASSES, np.float32)


def make_spec(**losses):
    """A spec of one task for each loss."""
    return spec_of(*({"name": name, "loss": loss} for name, loss in losses.items()))


def focal_by_hand(labels, logits, class_weights, *, gamma, alpha, label_smoothing):
    """Equation 5, one number at a time, in float64."""
    losses = []
    for label, row in zip(labels, np.asarray(logits, np.float64), strict=True):
        if label == -1:
            losses.append(0.0)
            continue
        shifted = row - row.max()
        p = np.exp(shifted) / np.exp(shifted).sum()
        total = 0.0
        for k, p_k in enumerate(p):
            target = label_smoothing / len(row) + (1 - label_smoothing) * (k == label)
            total += target * (1 - p_k) ** gamma * np.log(p_k)
        losses.append(-alpha * class_weights[label] * total)
    return np.array(losses)


def value_and_gradient(labels, logits, **options):
    """The loss of each example, and the gradient of their sum, by TensorFlow's tape."""
    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = focal_loss(labels, logits, np.ones(logits.shape[-1], np.float32), **options)
        total = tf.reduce_sum(losses)
    return losses.numpy(), tape.gradient(total, logits).numpy()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_focal_loss_is_equation_5(gamma, alpha, label_smoothing):
    options = {"gamma": gamma, "alpha": alpha, "label_smoothing": label_smoothing}
    got = ops.convert_to_numpy(focal_loss(LABELS, LOGITS, CLASS_WEIGHTS, **options))
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        got, focal_by_hand(LABELS, LOGITS, CLASS_WEIGHTS, **options), rtol=2e-5, atol=1e-7
    )


def test_focal_loss_of_one_example_by_hand():
    # p = (3/4, 1/4): -0.25 (1 - 3/4)^2 log(3/4), and -0.25 (1 - 1/4)^2 log(1/4).
    logits = np.log([[3.0, 1.0], [3.0, 1.0]])
    got = focal_loss(np.array([0, 1]), logits, np.ones(2), gamma=2.0, alpha=0.25)
    want = [0.25 * 0.0625 * np.log(4 / 3), 0.25 * 0.5625 * np.log(4)]
    np.testing.assert_allclose(ops.convert_to_numpy(got), want, rtol=1e-5)


@pytest.mark.parametrize(
    "loss", [cross_entropy, lambda *args: focal_loss(*args, gamma=0.0, alpha=1.0)]
)
def test_gamma_0_alpha_1_is_cross_entropy(loss):
    labelled = LABELS >= 0
    got = ops.convert_to_numpy(loss(LABELS, LOGITS, ONES))
    p = np.exp(LOGITS.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    want = sklearn.metrics.log_loss(LABELS[labelled], p[labelled], labels=range(CLASSES))
    assert got[labelled].mean() == pytest.approx(want, rel=1e-5)
    weighted = ops.convert_to_numpy(loss(LABELS, LOGITS, CLASS_WEIGHTS))
    want = sklearn.metrics.log_loss(
        LABELS[labelled],
        p[labelled],
        sample_weight=CLASS_WEIGHTS[LABELS[labelled]],
        labels=range(CLASSES),
        normalize=False,
    )
    assert weighted.sum() == pytest.approx(want, rel=1e-5)


def test_missing_labels_give_exactly_nothing():
    losses, gradient = value_and_gradient(LABELS, LOGITS, gamma=2.0, alpha=0.25)
    missing = LABELS == -1
    assert (losses[missing] == 0).all()
    assert (gradient[missing] == 0).all()
    assert (losses[~missing] > 0).all()
    assert np.abs(gradient[~missing]).max(axis=1).min() > 0


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_extreme_logits_stay_finite(gamma, label_smoothing):
    # Sure and right, sure and wrong, sure without a label, undecided between two extremes.
    logits = np.array(
        [[1e4, -1e4, 0], [1e4, -1e4, 0], [1e4, -1e4, 0], [1e4, 1e4, -1e4], [200, 0, 0]]
    )
    labels = np.array([0, 1, -1, 0, 0])
    losses, gradient = value_and_gradient(
        labels, logits, gamma=gamma, alpha=1.0, label_smoothing=label_smoothing
    )
    assert np.isfinite(losses).all()
    assert np.isfinite(gradient).all()
    assert losses[2] == 0
    if not label_smoothing:
        assert losses[0] == 0
        assert losses[1] == pytest.approx(2e4)
        # A sure mistake still teaches: away from the answer, towards the label.
        np.testing.assert_allclose(gradient[1], [1, -1, 0], atol=1e-6)
        assert losses[3] == pytest.approx(0.5**gamma * np.log(2), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradient_is_the_slope(gamma):
    logits, labels = LOGITS[:3].astype(np.float64), LABELS[:3]
    options = {"gamma": gamma, "alpha": 0.25, "label_smoothing": 0.1}
    _, gradient = value_and_gradient(labels, logits, **options)
    for row, column in np.ndindex(*logits.shape):
        up, down = logits.copy(), logits.copy()
        up[row, column] += 1e-5
        down[row, column] -= 1e-5
        slope = (
            focal_by_hand(labels, up, ONES, **options).sum()
            - focal_by_hand(labels, down, ONES, **options).sum()
        ) / 2e-5
        assert gradient[row, column] == pytest.approx(slope, rel=1e-3, abs=1e-6)


# === Masked means ===


@pytest.mark.parametrize("count", [1, 12])
def test_masked_loss_of_a_batch_without_labels_is_0(count):
    loss = MaskedLoss(focal_loss, ONES, {"gamma": 2.0, "alpha": 0.25})
    logits = tf.constant(LOGITS[:count])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(np.full(count, -1), logits, np.zeros(count))
    assert float(value) == 0
    assert (tape.gradient(value, logits).numpy() == 0).all()


def test_one_rare_label_keeps_its_class_weight():
    # Were class weights sample weights, they would cancel out in a batch of one label.
    loss = MaskedLoss(cross_entropy, CLASS_WEIGHTS, {})
    labels, weight = np.array([-1, 1, -1]), np.array([0.0, 1, 0])
    plain = MaskedLoss(cross_entropy, ONES, {})
    got = float(loss(labels, LOGITS[:3], weight))
    assert got == pytest.approx(2 * float(plain(labels, LOGITS[:3], weight)))


# === Rejection ===


def rejection_by_hand(labels, logits):
    """The mean over the known of -log p(known), and over the others of -log(1 - p(known))."""
    logits = np.asarray(logits, np.float64)
    known = np.exp(logits).sum(axis=1) / (1 + np.exp(logits).sum(axis=1))
    losses = np.where(labels >= 0, -np.log(known), -np.log(1 - known))
    kinds = [losses[labels >= 0], losses[labels == OTHER_LABEL]]
    return sum(kind.mean() if len(kind) else 0.0 for kind in kinds) / 2


@pytest.mark.parametrize(
    "labels", [[0, -2, 1, -1, -2, -2], [1, 0, 2, -1, -1, 3], [-2] * 6, [-1] * 6]
)
def test_the_rejection_loss_by_hand(labels):
    labels = np.array(labels)
    logits = np.random.default_rng(0).normal(0, 2, (6, 4)).astype(np.float32)
    result = rejection_mean(rejection_sums(labels, logits))
    assert float(result) == pytest.approx(rejection_by_hand(labels, logits), rel=1e-5)


def test_large_logits_do_not_overflow():
    logits = np.array([[200.0, -200.0], [200.0, 0.0], [-200.0, -200.0]], np.float32)
    known, _, other, _ = rejection_sums(np.array([0, -2, -2]), logits)
    assert float(known) == pytest.approx(0, abs=1e-6)
    assert float(other) == pytest.approx(200)


def test_an_image_of_no_class_does_not_count_in_the_loss_of_the_classes():
    loss = MaskedLoss(cross_entropy, CLASS_WEIGHTS, {})
    labels = np.array([0, 1, -1])
    weight = np.array([1.0, 1, 0])
    others = np.array([0, 1, -2])
    assert float(loss(others, LOGITS[:3], weight)) == float(loss(labels, LOGITS[:3], weight))


# === From a spec ===


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"kind": "focla"},
            'loss.kind: unknown kind "focla". Expected one of: cross_entropy, focal. '
            'Did you mean "focal"?',
        ),
        ({"kind": "focal", "gama": 2}, 'loss: unknown option "gama" of "focal".'),
        ({"kind": "focal", "gamma": -1}, "loss.gamma: -1: input should be greater than or equal"),
        ({"kind": "focal", "alpha": 0}, "loss.alpha: 0: input should be greater than 0"),
        ({"kind": "focal", "label_smoothing": 1}, "loss.label_smoothing: 1: input should be less"),
        ({"kind": "cross_entropy", "gamma": 2}, 'unknown option "gamma" of "cross_entropy"'),
        ({"kind": "focal", "class_weights": [1]}, 'unknown option "class_weights"'),
    ],
)
def test_wrong_losses_name_their_place(choice, message):
    spec = make_spec(colour={"kind": "focal"}, shape=choice)
    with pytest.raises(SpecError) as error:
        build_losses(spec, {"colour": ONES, "shape": ONES})
    text = str(error.value)
    assert text.startswith('toy.toml: task[1] "shape": ')
    assert message in text
    assert "\n" not in text


def test_options_reach_the_loss():
    spec = make_spec(
        colour={"kind": "focal", "gamma": 1, "alpha": 2, "label_smoothing": 0.2},
        shape={"kind": "cross_entropy", "label_smoothing": 0.3},
    )
    losses = build_losses(spec, {"colour": CLASS_WEIGHTS, "shape": ONES})
    known = LABELS >= 0
    for task, weights, gamma, alpha, smoothing in [
        ("colour", CLASS_WEIGHTS, 1, 2, 0.2),
        ("shape", ONES, 0, 1, 0.3),
    ]:
        want = focal_by_hand(
            LABELS, LOGITS, weights, gamma=gamma, alpha=alpha, label_smoothing=smoothing
        )[known].mean()
        got = float(losses[task](LABELS, LOGITS, known.astype(np.float32)))
        assert got == pytest.approx(want, rel=1e-5)
    assert set(LOSSES) == {"focal", "cross_entropy"}
