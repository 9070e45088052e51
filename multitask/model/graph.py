"""Private attributes of Keras' functional graph, used in this file only.

Keras has no public way to get the layer that computed an output, or the inputs of a layer in one
of several models that share it. `tests/model/test_graph.py` names the attribute that broke.
"""

from typing import Any

import keras


def producer(tensor: Any) -> keras.layers.Layer:
    """Return the layer that computes a symbolic tensor."""
    return tensor._keras_history.operation


def first_inputs(layer: keras.layers.Layer) -> tuple:
    """Return the symbolic inputs of a layer's first call, however many models share it."""
    return tuple(layer._inbound_nodes[0].input_tensors)


def first_outputs(layer: keras.layers.Layer) -> tuple:
    """Return the symbolic outputs of a layer's first call."""
    return tuple(layer._inbound_nodes[0].output_tensors)
