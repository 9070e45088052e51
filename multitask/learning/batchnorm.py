"""BatchNorm in one operation, for training with TensorFlow on a CPU.

Keras computes the statistics and the normalization of BatchNorm in about ten operations, and their
gradients in twenty; they take half of a training step of EfficientNet. TensorFlow has one fused
operation for both directions. The values differ by rounding.
"""

import functools
from typing import Any

import keras
import tensorflow as tf

from multitask.backend import has_accelerator, has_strategy, on_tensorflow


def fuse_batchnorm(network: keras.Model) -> None:
    """Let the BatchNorm layers of a network train in one operation each, where they can.

    The layers' classes, weights and configurations, and so all files, stay those of Keras. Where
    replicas share the statistics, on accelerators and on other backends, nothing changes.
    """
    if not on_tensorflow() or has_accelerator() or has_strategy():
        return
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            fuse_batchnorm(layer)
        elif type(layer) is keras.layers.BatchNormalization and "call" not in vars(layer):
            layer.call = functools.partial(_call, layer)


def _call(
    layer: keras.layers.BatchNormalization,
    inputs: Any,
    training: bool | None = None,
    mask: Any = None,
) -> Any:
    """Replace `layer.call`."""
    trains = training is True and layer.trainable and mask is None
    if not (trains and _can_fuse(layer, inputs)):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma if layer.scale else tf.ones(inputs.shape[-1:]),
        offset=layer.beta if layer.center else tf.zeros(inputs.shape[-1:]),
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
        is_training=True,
    )
    # The operation returns the unbiased variance; Keras averages the biased one.
    count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
    variance *= tf.maximum(count - 1.0, 1.0) / count
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
    return outputs


def _can_fuse(layer: keras.layers.BatchNormalization, inputs: Any) -> bool:
    """Whether TensorFlow's operation computes what the layer does."""
    return (
        not (layer.renorm or layer.synchronized)
        and isinstance(inputs, tf.Tensor)
        and inputs.dtype == tf.float32
        and layer.compute_dtype == "float32"
        and len(inputs.shape) == 4
        and layer.axis in (-1, 3)
        and inputs.shape[-1] is not None
    )
