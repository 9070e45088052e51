"""A faster gradient of depthwise convolutions with wide filters, for TensorFlow on a CPU.

oneDNN computes the gradient of a depthwise filter of more than three columns with its kernel for
grouped convolutions, which pads each group of one channel to sixteen. TensorFlow's own kernel needs
half that time, and TensorFlow uses it where the padding is explicit: oneDNN does not support
that. So the gradient here is the one of TensorFlow with `SAME` padding written as numbers. The
values differ by rounding.
"""

from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops as framework_ops

from multitask.backend import has_accelerator, on_tensorflow

OPERATION = "DepthwiseConv2dNative"
ONEDNN_COLUMNS = 3  # up to this width oneDNN has a kernel of its own, which is faster


def use_fast_depthwise_gradient() -> None:
    """Replace TensorFlow's gradient of depthwise convolutions in this process.

    Nothing changes on accelerators, on other backends, or if TensorFlow does not keep its gradients
    in the private attribute that this file expects.
    """
    if not on_tensorflow() or has_accelerator():
        return
    try:
        entry = framework_ops.gradient_registry._registry[OPERATION]
        entry["type"]
    except (AttributeError, KeyError):
        return
    entry["type"] = depthwise_gradient


def depthwise_gradient(operation: Any, gradient: tf.Tensor) -> list[tf.Tensor]:
    """The gradients of a depthwise convolution with respect to its input and its filter.

    Args:
        operation: the convolution, float [batch, height, width, channels] * [rows, columns,
            channels, multiplier].
        gradient: the gradient with respect to its output.
    """
    image, kernel = operation.inputs
    names = ("strides", "dilations", "padding", "explicit_paddings", "data_format")
    options = {name: operation.get_attr(name) for name in names}
    options = {k: v.decode() if isinstance(v, bytes) else v for k, v in options.items()}
    by_image = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
        input_sizes=tf.shape(image), filter=kernel, out_backprop=gradient, **options
    )
    sizes = [image.shape[1:3], kernel.shape[:2]]
    if (
        options["padding"] == "SAME"
        and options["data_format"] == "NHWC"
        and not any(None in size for size in sizes)
        and kernel.shape[1] > ONEDNN_COLUMNS
    ):
        pads = [
            same_padding(size, filter_size, stride, dilation)
            for size, filter_size, stride, dilation in zip(
                *sizes, options["strides"][1:3], options["dilations"][1:3], strict=True
            )
        ]
        options["padding"] = "EXPLICIT"
        options["explicit_paddings"] = [0, 0, *pads[0], *pads[1], 0, 0]
    by_kernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=image, filter_sizes=tf.shape(kernel), out_backprop=gradient, **options
    )
    return [by_image, by_kernel]


def same_padding(size: int, filter_size: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """The pixels that `SAME` padding adds before and after one side of an image.

    >>> same_padding(14, 5, 2)
    (1, 2)
    """
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + (filter_size - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2
