"""Cut a trunk at the end of a block: the part below, which may stay frozen, and the part above."""

import math
import re
from dataclasses import dataclass

import keras

from multitask.model.graph import first_inputs, first_outputs, producer

_BLOCK = re.compile(r"stem|top|block\d+[a-z]*|.*stage_\d+_block_\d+")


@dataclass(frozen=True)
class Cut:
    """A trunk in two parts, which share its layers.

    Attributes:
        below: image -> the map at the cut.
        above: that map -> the trunk's output.
        layers: number of the trunk's layers that are below.
        name: name of the last layer below.
        share: share of the trunk's multiply-adds that are below.
    """

    below: keras.Model
    above: keras.Model
    layers: int
    name: str
    share: float


def cut_trunk(trunk: keras.Model, frozen: int) -> Cut | None:
    """Cut a trunk at the last end of a block among its first `frozen` layers.

    Residual and squeeze-and-excitation branches stay whole: a cut is where exactly one tensor
    passes from the layers below to those above.

    Args:
        trunk: image -> feature map.
        frozen: number of first layers that must contain all that is below.

    Returns:
        None if no block ends there, or if nothing would be above.
    """
    operations = trunk.operations
    place = {id(operation): index for index, operation in enumerate(operations)}
    last_use = [0] * len(operations)
    for index, operation in enumerate(operations):
        for tensor in first_inputs(operation) if index else ():
            last_use[place[id(producer(tensor))]] = index
    best, layers = None, 0
    for index, operation in enumerate(operations[:-1]):
        layers += isinstance(operation, keras.Layer)
        if layers > frozen:
            break
        passing = [i for i in range(index + 1) if last_use[i] > index]
        if passing == [index] and _ends_block(operation.name, operations[index + 1].name):
            best = index, layers
    if best is None or not best[0]:
        return None
    index, layers = best
    (tensor,) = first_outputs(operations[index])
    below = keras.Model(trunk.inputs[0], tensor, name="below")
    above = keras.Model(tensor, trunk.outputs[0], name="above")
    counts = [_multiply_adds(layer) for layer in trunk.layers]
    share = sum(counts[:layers]) / max(sum(counts), 1)
    return Cut(below, above, layers, operations[index].name, share)


def _ends_block(name: str, following: str) -> bool:
    """Whether two successive operations belong to different blocks, or to none."""
    first, second = _BLOCK.match(name), _BLOCK.match(following)
    return first is None or second is None or first[0] != second[0]


def _multiply_adds(layer: keras.Layer) -> int:
    """Count the multiply-adds of a layer for one image; 0 unless it convolves or is dense."""
    kernel = getattr(layer, "kernel", None)
    if kernel is None:
        return 0
    (output,) = first_outputs(layer)
    positions = math.prod(output.shape[1:-1])
    return math.prod(kernel.shape) * positions
