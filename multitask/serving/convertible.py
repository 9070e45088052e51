"""Limits of the converters to ONNX and LiteRT."""

from typing import Any

import keras

from multitask.model.network import connect, network_parts, trunk_and_heads


def unrolled(model: keras.Model) -> keras.Model:
    """Unroll recurrent layers: ONNX and LiteRT do not support Keras' loops over any batch size."""
    parts = network_parts(model)
    copies = {}
    for task, head in parts.heads.items():
        copies[task] = head
        if _recurrent(keras.saving.serialize_keras_object(head)):
            copies[task] = keras.models.clone_model(head, clone_function=_unroll)
            copies[task].set_weights(head.get_weights())
    return connect(parts.trunk, copies, messages=parts.messages, tasks=parts.tasks)


def _unroll(layer: keras.Layer) -> keras.Layer:
    config = keras.saving.serialize_keras_object(layer)
    for inner in _recurrent(config):
        inner["config"]["unroll"] = True
    return keras.saving.deserialize_keras_object(config, safe_mode=True)


def _recurrent(config: Any) -> list[dict[str, Any]]:
    """Find the configurations of layers with an `unroll` setting, at any depth."""
    inside = config.values() if isinstance(config, dict) else config
    if not isinstance(config, (dict, list)):
        return []
    inner_layers = [layer for inner in inside for layer in _recurrent(inner)]
    if isinstance(config, dict) and "unroll" in (config.get("config") or ()):
        return [*inner_layers, config]
    return inner_layers


def why_no_onnx(model: keras.Model) -> str | None:
    """The reason why tf2onnx cannot convert a network; None if it can.

    It does not support the grouped convolutions of ConvNeXt, nor its GELU (`erfc`).
    """
    trunk = trunk_and_heads(model)[0]
    for layer in trunk.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1:
            return (
                f"tf2onnx cannot convert the grouped convolutions of the trunk (layer {layer.name})"
            )
    return None
