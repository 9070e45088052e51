"""The supervised contrastive loss against a double loop in NumPy, and where its answer is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from multitask.annexes.contrastive import Projection, supervised_contrastive_loss

RNG = np.random.default_rng(11)
EMBEDDINGS = RNG.normal(scale=3, size=(10, 4)).astype(np.float32)
LABELS = np.array([0, 1, 0, -1, 2, 1, 0, -1, 3, 1], np.int32)  # 2 and 3 stand alone


def by_hand(labels, embeddings, temperature):
    """Equation 2, one pair at a time, in float64; the mean over the anchors with a positive."""
    z = np.asarray(embeddings, np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    of_anchors = []
    for i, anchor in enumerate(labels):
        if anchor == -1:
            continue
        others = [a for a, label in enumerate(labels) if a != i and label != -1]
        positives = [p for p in others if labels[p] == anchor]
        if not positives:
            continue
        below = sum(np.exp(z[i] @ z[a] / temperature) for a in others)
        of_anchors.append(
            -sum(np.log(np.exp(z[i] @ z[p] / temperature) / below) for p in positives)
            / len(positives)
        )
    return np.mean(of_anchors) if of_anchors else 0.0


@tf.function(reduce_retracing=True)
def compiled(labels, embeddings, temperature):
    with tf.GradientTape() as tape:
        tape.watch(embeddings)
        loss = supervised_contrastive_loss(labels, embeddings, temperature=temperature)
    return loss, tape.gradient(loss, embeddings)


def value_and_gradient(labels, embeddings, temperature=0.5):
    loss, gradient = compiled(
        tf.constant(labels, tf.int32), tf.constant(embeddings, tf.float32), tf.constant(temperature)
    )
    assert loss.dtype == tf.float32
    assert loss.shape == ()
    return float(loss), gradient.numpy()


CASES = {
    "some missing, some alone": LABELS,
    "all labelled": np.array([0, 1, 0, 1, 2, 1, 0, 2, 0, 1]),
    "one class": np.zeros(10, np.int32),
    "one pair": np.array([-1, 4, -1, -1, -1, -1, 4, -1, -1, -1]),
    "one pair among others": np.array([0, 4, 1, 2, 3, 5, 4, 6, 7, 8]),
}


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
@pytest.mark.parametrize("labels", CASES.values(), ids=CASES)
def test_against_a_double_loop(labels, temperature):
    got, _ = value_and_gradient(labels, EMBEDDINGS, temperature)
    assert got == pytest.approx(by_hand(labels, EMBEDDINGS, temperature), rel=1e-5, abs=1e-6)


def test_four_images_by_hand():
    # Two classes, each in one point and at right angles: cosines 1 within, 0 between. Of the
    # three others one is a positive: -log(e² / (e² + 2)) at temperature 1/2.
    corners = [[3, 0], [1, 0], [0, 2], [0, 5]]
    got, _ = value_and_gradient([0, 0, 1, 1], corners, 0.5)
    assert got == pytest.approx(np.log(1 + 2 * np.exp(-2)), rel=1e-6)


@pytest.mark.parametrize(
    "labels",
    [np.arange(10), np.full(10, -1), np.array([5, *[-1] * 9])],
    ids=["all different", "none labelled", "one labelled"],
)
def test_without_a_positive_it_is_exactly_0(labels):
    loss, gradient = value_and_gradient(labels, EMBEDDINGS)
    assert loss == 0
    assert np.array_equal(gradient, np.zeros_like(EMBEDDINGS))


def test_a_batch_of_one():
    loss, gradient = value_and_gradient([2], EMBEDDINGS[:1])
    assert loss == 0
    assert not gradient.any()


def test_missing_labels_take_no_part():
    labelled = LABELS >= 0
    whole, gradient = value_and_gradient(LABELS, EMBEDDINGS)
    alone, want = value_and_gradient(LABELS[labelled], EMBEDDINGS[labelled])
    assert whole == pytest.approx(alone, rel=1e-6)
    np.testing.assert_allclose(gradient[labelled], want, atol=1e-6)
    assert not gradient[~labelled].any()
    # A class that stands alone is a negative of the others: it has a gradient.
    assert np.abs(gradient[LABELS == 3]).max() > 1e-4


def test_the_gradient_is_the_slope():
    _, gradient = value_and_gradient(LABELS, EMBEDDINGS)
    for place in np.ndindex(*EMBEDDINGS.shape):
        up, down = EMBEDDINGS.astype(np.float64), EMBEDDINGS.astype(np.float64)
        up[place] += 1e-5
        down[place] -= 1e-5
        slope = (by_hand(LABELS, up, 0.5) - by_hand(LABELS, down, 0.5)) / 2e-5
        assert gradient[place] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_only_directions_count():
    lengths = np.geomspace(1e-3, 1e3, 10)[:, None]
    got, _ = value_and_gradient(LABELS, EMBEDDINGS * lengths)
    assert got == pytest.approx(by_hand(LABELS, EMBEDDINGS, 0.5), rel=1e-5)


@pytest.mark.parametrize(
    "embeddings",
    [np.repeat(EMBEDDINGS[:1], 10, 0), np.zeros((10, 4)), np.tile(EMBEDDINGS[:5], (2, 1))],
    ids=["all the same", "all zero", "each twice"],
)
@pytest.mark.parametrize("temperature", [1e-3, 0.1])
def test_extremes_stay_finite(embeddings, temperature):
    loss, gradient = value_and_gradient(LABELS, embeddings, temperature)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    if len(np.unique(embeddings, axis=0)) == 1:  # no direction is better: one in 7 others
        assert loss == pytest.approx(np.log(7), rel=1e-4)


def test_images_shown_twice_against_the_double_loop():
    twice, labels = np.tile(EMBEDDINGS, (2, 1)), np.tile(LABELS, 2)
    got, _ = value_and_gradient(labels, twice, 0.1)
    assert got == pytest.approx(by_hand(labels, twice, 0.1), rel=1e-5)


def test_labels_as_a_column_and_half_precision():
    loss = supervised_contrastive_loss(
        LABELS[:, None], tf.constant(EMBEDDINGS, tf.float16), temperature=0.5
    )
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(by_hand(LABELS, EMBEDDINGS, 0.5), rel=1e-2)


def test_descent_ends_where_two_classes_are_opposite():
    """The least value for two classes of n, each in one point and opposite (Graf et al. 2021):
    log(n - 1 + n exp(-2 / temperature))."""
    labels = np.repeat([0, 1], 4)
    embeddings = RNG.normal(size=(8, 3)).astype(np.float32)
    for _ in range(300):
        loss, gradient = value_and_gradient(labels, embeddings, 0.5)
        embeddings -= 2.0 * gradient
    assert loss == pytest.approx(np.log(3 + 4 * np.exp(-4)), abs=1e-3)
    z = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    sign = np.where(labels == 0, 1, -1)
    np.testing.assert_allclose(z @ z.T, np.outer(sign, sign), atol=0.02)


def test_projection_is_dense_relu_dense():
    layer = Projection(3, "hue_projection")
    got = layer(EMBEDDINGS).numpy()
    assert layer.name == "hue_projection"
    assert [v.path for v in layer.trainable_variables] == [
        f"hue_projection/{name}/{kind}"
        for name in ("hidden", "projected")
        for kind in ("kernel", "bias")
    ]
    w1, b1, w2, b2 = (v.numpy() for v in layer.trainable_variables)
    assert w1.shape == (4, 4)
    np.testing.assert_allclose(got, np.maximum(EMBEDDINGS @ w1 + b1, 0) @ w2 + b2, atol=1e-5)


def test_projection_in_a_model_that_is_saved(tmp_path):
    def made():
        inputs = keras.Input((4,))
        return keras.Model(inputs, Projection(5, "hue_projection")(inputs))

    model, again = made(), made()
    assert model.output_shape == (None, 5)
    model.save_weights(tmp_path / "model.weights.h5")
    again.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(again(EMBEDDINGS), model(EMBEDDINGS))


def test_projection_keeps_float32_under_a_half_precision_policy():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = Projection(3, "hue_projection")
        assert layer(tf.constant(EMBEDDINGS, tf.float16)).dtype == tf.float32
        assert all(v.dtype == "float32" for v in layer.variables)
    finally:
        keras.config.set_dtype_policy(before)
