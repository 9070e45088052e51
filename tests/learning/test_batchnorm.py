"""BatchNorm in one operation: the values, gradients and statistics of the definition."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from multitask.learning import batchnorm
from multitask.learning.batchnorm import fuse_batchnorm

SHAPE = (4, 5, 6, 8)


def network(shape=SHAPE[1:], **options):
    """A network of one BatchNorm layer within another network, as a trunk is."""
    inputs = keras.Input(shape)
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-2, **options)
    inner = keras.Model(inputs, layer(inputs))
    again = keras.Input(shape)
    return keras.Model(again, inner(again)), layer


def with_values(layer):
    """Give the weights of a layer other values than the initial ones."""
    rng = np.random.default_rng(7)
    layer.set_weights([rng.uniform(0.5, 2, w.shape).astype(np.float32) for w in layer.weights])


def operations(model, **options):
    """The types of operations in the graph of a network."""
    function = tf.function(lambda x: model(x, **options), autograph=False)
    graph = function.get_concrete_function(tf.TensorSpec([None, *model.input_shape[1:]])).graph
    return {operation.type for operation in graph.get_operations()}


def is_fused(model, training=True):
    return "FusedBatchNormV3" in operations(model, training=training)


def step(model, layer, images, upstream):
    """Outputs, the gradients of all, and the statistics after one call in training."""

    @tf.function(autograph=False)
    def run(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = model(images, training=True)
            loss = tf.reduce_sum(outputs * upstream)
        return outputs, tape.gradient(loss, [images, *layer.trainable_variables])

    outputs, gradients = run(tf.constant(images))
    statistics = [layer.moving_mean, layer.moving_variance]
    return [np.asarray(value) for value in (outputs, *gradients, *statistics)]


def by_definition(weights, images, upstream, *, epsilon=1e-2, momentum=0.9):
    """The same in NumPy and float64 (Ioffe & Szegedy 2015, algorithm 1 and its gradients)."""
    gamma, beta, moving_mean, moving_variance = (np.asarray(w, np.float64) for w in weights)
    images, upstream = images.astype(np.float64), upstream.astype(np.float64)
    axes = (0, 1, 2)
    mean, variance = images.mean(axes), images.var(axes)
    inverse = 1 / np.sqrt(variance + epsilon)
    normal = (images - mean) * inverse
    by_gamma, by_beta = (upstream * normal).sum(axes), upstream.sum(axes)
    count = images[..., 0].size
    by_image = gamma * inverse / count * (count * upstream - by_beta - normal * by_gamma)
    return [
        normal * gamma + beta,
        by_image,
        by_gamma,
        by_beta,
        moving_mean * momentum + mean * (1 - momentum),
        moving_variance * momentum + variance * (1 - momentum),
    ]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 2, 8), (32, 14, 14, 48)])
def test_values_are_those_of_the_definition(shape, fused):
    rng = np.random.default_rng(0)
    images = rng.normal(3, 2, shape).astype(np.float32)
    upstream = rng.normal(size=shape).astype(np.float32)
    model, layer = network(shape[1:])
    with_values(layer)
    expected = by_definition(layer.get_weights(), images, upstream)
    if fused:
        fuse_batchnorm(model)
    assert is_fused(model) == fused
    for value, exact in zip(step(model, layer, images, upstream), expected, strict=True):
        np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-4)


def test_a_single_number_per_channel():
    """The unbiased variance of one number does not exist; Keras' is 0."""
    results = []
    for fused in (True, False):
        model, layer = network((1, 1, 3))
        if fused:
            fuse_batchnorm(model)
        images = np.float32([[[[1, 2, 3]]]])
        results.append(step(model, layer, images, images))
    for fused, plain in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, atol=1e-6)


def test_without_scale_or_offset():
    rng = np.random.default_rng(1)
    images, upstream = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    for options in ({"scale": False}, {"center": False}, {"scale": False, "center": False}):
        plain, fused = (step(*made, images, upstream) for made in _pair(**options))
        for value, exact in zip(fused, plain, strict=True):
            np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-5)


def _pair(**options):
    plain, fused = network(**options), network(**options)
    fuse_batchnorm(fused[0])
    assert is_fused(fused[0])
    return plain, fused


def test_inference_and_frozen_layers_stay_those_of_keras():
    model, layer = network()
    fuse_batchnorm(model)
    assert not is_fused(model, training=False)
    layer.trainable = False
    assert not is_fused(model)
    before = layer.get_weights()
    model(np.ones(SHAPE, np.float32), training=True)
    np.testing.assert_array_equal(layer.get_weights(), before)


@pytest.mark.parametrize(
    "options", [{"renorm": True}, {"synchronized": True}, {"axis": 1}, {"dtype": "float64"}]
)
def test_what_the_operation_cannot_do_stays_that_of_keras(options):
    model, _ = network(**options)
    fuse_batchnorm(model)
    assert not is_fused(model)


def test_vectors_stay_those_of_keras():
    model, _ = network((8,))
    fuse_batchnorm(model)
    assert not is_fused(model)


@pytest.mark.parametrize("reason", ["has_accelerator", "has_strategy"])
def test_where_nothing_changes(monkeypatch, reason):
    monkeypatch.setattr(batchnorm, reason, lambda: True)
    model, layer = network()
    fuse_batchnorm(model)
    assert "call" not in vars(layer)


def test_files_are_those_of_keras(tmp_path):
    model, layer = network()
    with_values(layer)
    fuse_batchnorm(model)
    fuse_batchnorm(model)  # each phase does it
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    (read,) = loaded.layers[1].layers[1:]
    assert type(read) is keras.layers.BatchNormalization
    assert read.get_config() == layer.get_config()
    images = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    np.testing.assert_array_equal(loaded(images), model(images))


def test_the_same_bits_each_time():
    rng = np.random.default_rng(3)
    images, upstream = rng.normal(size=(2, 32, 14, 14, 48)).astype(np.float32)
    results = []
    for _ in range(3):
        model, layer = network((14, 14, 48))
        fuse_batchnorm(model)
        results.append(step(model, layer, images, upstream))
    for other in results[1:]:
        for value, first in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(value, first)
