"""A network as the blocks and layers that the architecture plot shows."""

from typing import Any

import keras
import numpy as np

from multitask.model.graph import first_inputs, producer
from multitask.model.network import trunk_and_heads
from multitask.model.trunks import group_of


def architecture_nodes(model: keras.Model, task: str) -> list[dict[str, Any]]:
    """The trunk block by block and one head layer by layer, for `diagram.architecture`."""
    trunk, heads = trunk_and_heads(model)
    groups: dict[str, list[keras.Layer]] = {}
    for layer in trunk.layers:
        groups.setdefault(group_of(layer.name), []).append(layer)
    nodes: list[dict[str, Any]] = []
    inputs: list[str] = []
    for name, layers in groups.items():
        kind = f"{len(layers)} layers" if len(layers) > 1 else type(layers[0]).__name__
        nodes.append(_node(f"trunk {name}", kind, layers, inputs))
        inputs = [nodes[-1]["name"]]
    shown_names = {}
    for layer in heads[task].layers:
        if isinstance(layer, keras.layers.InputLayer):
            shown_names[layer.name] = inputs[0]  # the head's input is the trunk's last block
            continue
        parents = [
            shown_names.get(producer(tensor).name, producer(tensor).name)
            for tensor in first_inputs(layer)
        ]
        nodes.append(_node(layer.name, _kind(layer), [layer], parents))
    return nodes


def _kind(layer: keras.Layer) -> str:
    """The layer's class, and the setting that distinguishes it from others of its class."""
    settings = {
        "Dropout": lambda: f" {layer.rate:g}",
        "Activation": lambda: f" {layer.activation.__name__}",
        "Dense": lambda: (
            "" if layer.activation.__name__ == "linear" else f" + {layer.activation.__name__}"
        ),
    }
    name = type(layer).__name__
    return name + (settings[name]() if name in settings else "")


def _node(name: str, kind: str, layers: list[keras.Layer], inputs: list[str]) -> dict[str, Any]:
    weights = [weight for layer in layers for weight in layer.weights]
    trainable = any(layer.trainable_weights for layer in layers)
    shape = layers[-1].output.shape[1:]
    return {
        "name": name,
        "kind": kind,
        "shape": "×".join(str(side) for side in shape),
        "parameters": sum(int(np.prod(weight.shape)) for weight in weights),
        "trainable": trainable if weights else None,
        "inputs": inputs,
    }
