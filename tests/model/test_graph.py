"""Private attributes of Keras' graph; a failure here names what a new Keras changed."""

import keras

from multitask.model.graph import first_inputs, producer


def test_keras_history_leads_to_the_layer_of_an_output():
    inputs = keras.Input((2,))
    layer = keras.layers.Dense(3)
    output = layer(inputs)
    assert hasattr(output, "_keras_history"), "Keras: KerasTensor._keras_history is gone"
    assert producer(output) is layer


def test_inbound_nodes_hold_the_inputs_of_the_first_call():
    first, second = keras.Input((2,)), keras.Input((2,))
    layer = keras.layers.Dense(3)
    layer(first)
    layer(second)
    assert hasattr(layer, "_inbound_nodes"), "Keras: Layer._inbound_nodes is gone"
    (tensor,) = first_inputs(layer)
    assert tensor is first
