"""The gradient of depthwise filters: that of its definition, whatever the shape."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops as framework_ops

from multitask.learning import depthwise
from multitask.learning.depthwise import (
    OPERATION,
    depthwise_gradient,
    same_padding,
    use_fast_depthwise_gradient,
)

ENTRY = framework_ops.gradient_registry._registry[OPERATION]


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """Leave TensorFlow's gradient to the other tests as it is."""
    monkeypatch.setitem(ENTRY, "type", ENTRY["type"])


def by_definition(image, kernel, gradient, stride):
    """Gradients of input and filter with SAME padding, one output at a time: NumPy, float64."""
    (_, rows, columns, _), (height, width, _, _) = image.shape, kernel.shape
    below, right = (-(-side // stride) for side in (rows, columns))
    pad_rows = max((below - 1) * stride + height - rows, 0)
    pad_columns = max((right - 1) * stride + width - columns, 0)
    top, left = pad_rows // 2, pad_columns // 2
    by_image, by_kernel = np.zeros_like(image), np.zeros_like(kernel)
    for y in range(below):
        for x in range(right):
            for i in range(height):
                for j in range(width):
                    row, column = y * stride + i - top, x * stride + j - left
                    if not (0 <= row < rows and 0 <= column < columns):
                        continue
                    arrived = gradient[:, y, x]  # [batch, channels]
                    by_image[:, row, column] += arrived * kernel[i, j, :, 0]
                    by_kernel[i, j, :, 0] += (arrived * image[:, row, column]).sum(0)
    return by_image, by_kernel


def gradients(image, kernel, gradient, stride, padding="SAME"):
    """TensorFlow's, in a graph, where oneDNN replaces operations."""

    @tf.function(autograph=False)
    def run(image, kernel):
        with tf.GradientTape() as tape:
            tape.watch([image, kernel])
            out = tf.nn.depthwise_conv2d(image, kernel, [1, stride, stride, 1], padding)
            loss = tf.reduce_sum(out * gradient)
        return tape.gradient(loss, [image, kernel])

    return [value.numpy() for value in run(tf.constant(image), tf.constant(kernel))]


SHAPES = [  # rows, columns, filter, stride
    (7, 7, (5, 5), 1),
    (8, 8, (5, 5), 2),
    (9, 6, (5, 5), 2),
    (6, 5, (7, 7), 1),
    (3, 3, (5, 5), 1),  # a filter that is larger than the image
    (5, 8, (1, 5), 1),
    (5, 5, (4, 6), 3),
    (7, 7, (3, 3), 1),  # left to oneDNN
]


@pytest.mark.parametrize(("rows", "columns", "size", "stride"), SHAPES)
def test_gradients_are_those_of_the_definition(rows, columns, size, stride):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, rows, columns, 16)).astype(np.float32)
    kernel = rng.normal(size=(*size, 16, 1)).astype(np.float32)
    gradient = rng.normal(size=(4, -(-rows // stride), -(-columns // stride), 16))
    gradient = gradient.astype(np.float32)
    expected = by_definition(image.astype(np.float64), kernel.astype(np.float64), gradient, stride)
    before = gradients(image, kernel, gradient, stride)
    use_fast_depthwise_gradient()
    assert ENTRY["type"] is depthwise_gradient
    after = gradients(image, kernel, gradient, stride)
    for values in (before, after):
        for value, exact in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def operations(size, padding="SAME", rows=8):
    """The paddings of the gradients of filters in the graph of one convolution."""
    use_fast_depthwise_gradient()

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, rows, rows, 4])])
    def run(image):
        kernel = tf.ones([*size, 4, 1])
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = tf.reduce_sum(tf.nn.depthwise_conv2d(image, kernel, [1, 1, 1, 1], padding))
        return tape.gradient(loss, kernel)

    return [
        operation.get_attr("padding").decode()
        for operation in run.get_concrete_function().graph.get_operations()
        if operation.type == "DepthwiseConv2dNativeBackpropFilter"
    ]


def test_only_wide_filters_of_known_sizes_are_padded_explicitly():
    assert operations((5, 5)) == ["EXPLICIT"]
    assert operations((5, 3)) == ["SAME"]
    assert operations((5, 5), "VALID") == ["VALID"]
    assert operations((5, 5), rows=None) == ["SAME"]


def test_the_same_bits_each_time():
    rng = np.random.default_rng(1)
    image = rng.normal(size=(32, 14, 14, 48)).astype(np.float32)
    kernel = rng.normal(size=(5, 5, 48, 1)).astype(np.float32)
    use_fast_depthwise_gradient()
    first, *others = (gradients(image, kernel, image, 1)[1] for _ in range(4))
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 14, 15])
@pytest.mark.parametrize("filter_size", [1, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_is_tensorflows(size, filter_size, stride):
    before, after = same_padding(size, filter_size, stride)
    image = tf.random.stateless_uniform([1, size, size, 1], (0, 1))
    kernel = tf.random.stateless_uniform([filter_size, filter_size, 1, 1], (2, 3))
    padded = tf.pad(image, [[0, 0], [before, after], [before, after], [0, 0]])
    np.testing.assert_allclose(
        tf.nn.conv2d(padded, kernel, stride, "VALID"),
        tf.nn.conv2d(image, kernel, stride, "SAME"),
        rtol=1e-5,
        atol=1e-6,
    )


def test_where_it_is_not_replaced(monkeypatch):
    plain = ENTRY["type"]
    with monkeypatch.context() as patch:
        patch.setattr(depthwise, "has_accelerator", lambda: True)
        use_fast_depthwise_gradient()
        assert ENTRY["type"] is plain
    with monkeypatch.context() as patch:
        patch.setattr(depthwise, "on_tensorflow", lambda: False)
        use_fast_depthwise_gradient()
        assert ENTRY["type"] is plain
    with monkeypatch.context() as patch:  # a TensorFlow that keeps its gradients elsewhere
        patch.setattr(depthwise.framework_ops, "gradient_registry", object())
        use_fast_depthwise_gradient()
        assert ENTRY["type"] is plain
    use_fast_depthwise_gradient()
    assert ENTRY["type"] is depthwise_gradient
