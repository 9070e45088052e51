"""Convert a TensorFlow function into the files that other libraries run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from multitask.files import pattern_free_path, scratch
from multitask.runtimes.libraries import IMAGE

OPSET = 18  # of ONNX; ONNX Runtime 1.15 and OpenVINO 2023.1 read it


def write_savedmodel(functions: Mapping[str, Callable], path: Path) -> None:
    """Write functions as the signatures of a SavedModel.

    Args:
        functions: signature -> a tf.function with an input signature.
        path: the new folder.
    """
    # The archive tracks the variables of the functions. If it tracked the model as well, Keras
    # would write each variable twice.
    archive = keras.export.ExportArchive()
    for name, function in functions.items():
        archive.add_endpoint(name, function)
    # Without the gradients of custom functions, such as that of swish: they would take two fifths
    # of the time of writing, and prediction needs none. (The attention signature has its own.)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    archive.write_out(str(path), options=options, verbose=False)


def onnx_model(function: Any) -> Any:
    """Convert a tf.function to an ONNX model.

    Args:
        function: from `image` to a dict of outputs; has an input signature.

    Returns:
        An `onnx.ModelProto` with the input `image` and the dict's outputs, by their names.
    """
    import tf2onnx

    # Variables and captured tensors become constants first. Otherwise the exports of Keras and of
    # tf2onnx leave two tensors of the trunk's normalisation as inputs of the graph.
    concrete = function.get_concrete_function()
    frozen = convert_variables_to_constants_v2(concrete)
    outputs = zip(frozen.outputs, sorted(concrete.structured_outputs), strict=True)
    names = {x.name: name for x, name in outputs}
    model, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(),
        input_names=[x.name for x in frozen.inputs],
        output_names=list(names),
        opset=OPSET,
    )
    names |= {x.name: IMAGE for x in frozen.inputs}
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
    for node in model.graph.node:
        for places in (node.input, node.output):
            places[:] = [names.get(place, place) for place in places]
    model.producer_name = "multitask"
    return model


def litert_content(function: Any, prepare: Callable[[Any], None] = lambda converter: None) -> bytes:
    """Convert a tf.function to the content of a LiteRT file.

    Args:
        function: from `image` to a dict of outputs; has an input signature.
        prepare: sets options of the `tf.lite.TFLiteConverter`.
    """
    with scratch() as made, pattern_free_path(made) as saved:
        # The weights would be lost without an archive that tracks the variables.
        write_savedmodel({"serving_default": function}, saved)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
        prepare(converter)
        return converter.convert()
