"""A model -> one artifact a format. A new format is a function and a line in FORMATS."""

import importlib.util
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from multitask.evaluation.calibration import Calibration
from multitask.files import plainly_named, scratch
from multitask.model.network import connect, parts
from multitask.serving.runtimes import IMAGE
from multitask.serving.signatures import numbers, signatures
from multitask.spec import InputError, install

VERSION = "1"  # of the served model; TensorFlow Serving wants a number
OPSET = 18  # of ONNX; ONNX Runtime 1.15 and OpenVINO 2023.1 read it
FLOAT16_LEAST = 1024  # weights of a tensor that is stored in half precision
PRECISIONS = ("none", "float16", "int8")
FLOAT32 = "float32"


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        name: of the artifacts, the spec's.
        model: image -> {task: logits}.
        classes: task -> class names, of the model's tasks.
        how: pictures are made to fit.
        calibrations: task -> its temperature.
        description: for the artifact's metadata; JSON.
        representative: batches of one picture, float32 [1, size, size, 3], of training: where
            ranges of activations are measured.
    """

    name: str
    model: keras.Model
    classes: Mapping[str, Sequence[str]]
    how: str
    calibrations: Mapping[str, Calibration]
    description: Mapping[str, Any]
    representative: Sequence[np.ndarray]


def _savedmodel(source: Source, folder: Path, quantize: str) -> str:
    """`<name>/<version>/`, as TensorFlow Serving wants it."""
    name = f"{source.name}/{VERSION}"
    functions = signatures(
        source.model, source.classes, how=source.how, calibrations=source.calibrations
    )
    _write(functions, folder / name)
    return name


def _write(functions: Mapping[str, Callable], path: Path) -> None:
    # It tracks the variables that the functions use. With the model tracked too, Keras would write
    # each variable twice.
    archive = keras.export.ExportArchive()
    for name, function in functions.items():
        archive.add_endpoint(name, function)
    archive.write_out(str(path), verbose=False)


def _keras(source: Source, folder: Path, quantize: str) -> str:
    """image float32 [batch, size, size, 3] in 0..255 -> {task: logits}."""
    name = f"{source.name}.keras"
    source.model.save(folder / name)
    return name


def _onnx(source: Source, folder: Path, quantize: str) -> str:
    import onnx
    import tf2onnx

    name = f"{source.name}.onnx"
    # Variables and captured tensors become constants first. Keras' own export and tf2onnx's of a
    # function leave two of the trunk's normalisation as inputs that the caller would have to give.
    answer = numbers(_unrolled(source.model), source.calibrations).get_concrete_function()
    frozen = convert_variables_to_constants_v2(answer)
    told = zip(frozen.outputs, sorted(answer.structured_outputs), strict=True)
    names = {x.name: name for x, name in told}
    model, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(),
        input_names=[x.name for x in frozen.inputs],
        output_names=list(names),
        opset=OPSET,
    )
    names |= {x.name: IMAGE for x in frozen.inputs}
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for node in model.graph.node:
        for places in (node.input, node.output):
            places[:] = [names.get(place, place) for place in places]
    onnx.helper.set_model_props(
        model, {key: json.dumps(value) for key, value in source.description.items()}
    )
    model.producer_name = "multitask"
    if quantize == "float16":
        _halve_weights(model)
    onnx.save(model, folder / name)
    if quantize == "int8":
        _quantize(source, folder / name)
    onnx.checker.check_model(str(folder / name), full_check=True)
    return name


def _halve_weights(model) -> None:
    """Weights in half precision, and a Cast before they are used: arithmetic stays float32.

    Runtimes cast once, when they load: half the file at the speed of the whole.
    """
    import onnx

    casts = []
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < FLOAT16_LEAST:
            continue
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        name = f"{tensor.name}_float16"
        casts.append(
            onnx.helper.make_node("Cast", [name], [tensor.name], to=onnx.TensorProto.FLOAT)
        )
        model.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(half, name))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _quantize(source: Source, path: Path) -> None:
    """Weights and activations in 8 bits (QDQ), ranges from pictures of training."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.images = iter(source.representative)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {IMAGE: image}

    with scratch() as folder:
        prepared, quantized = folder / path.name, folder / f"int8_{path.name}"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            quantized,
            Reader(),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
        )
        content = quantized.read_bytes()
    path.write_bytes(content)


def _litert(source: Source, folder: Path, quantize: str) -> str:
    name = f"{source.name}.tflite"
    with scratch() as made, plainly_named(made) as saved:
        # From anything but an archive that tracks the variables, the weights would be lost.
        answer = numbers(_unrolled(source.model), source.calibrations)
        _write({"serving_default": answer}, saved)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
        if quantize != "none":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        elif quantize == "int8":
            converter.representative_dataset = lambda: ({IMAGE: i} for i in source.representative)
        content = converter.convert()
    (folder / name).write_bytes(content)
    # The format's way to carry files: a zip archive behind the network, which readers leave alone.
    with zipfile.ZipFile(folder / name, "a") as archive:
        archive.writestr("description.json", json.dumps(source.description, ensure_ascii=False))
        for task, names in source.classes.items():
            archive.writestr(f"labels_{task}.txt", "\n".join(names) + "\n")
    return name


def _unrolled(model: keras.Model) -> keras.Model:
    """The same without loops: ONNX and LiteRT know none of Keras' over a batch of any size."""

    def straight(layer: keras.Layer) -> keras.Layer:
        config = keras.saving.serialize_keras_object(layer)
        for inner in _recurrent(config):
            inner["config"]["unroll"] = True
        return keras.saving.deserialize_keras_object(config, safe_mode=True)

    trunk, heads = parts(model)
    found = {}
    for task, head in heads.items():
        found[task] = head
        if _recurrent(keras.saving.serialize_keras_object(head)):
            found[task] = keras.models.clone_model(head, clone_function=straight)
            found[task].set_weights(head.get_weights())
    return connect(trunk, found)


def _recurrent(config: Any) -> list[dict]:
    """The configurations of layers with an `unroll`, however deep."""
    inside = config.values() if isinstance(config, dict) else config
    if not isinstance(config, (dict, list)):
        return []
    found = [one for inner in inside for one in _recurrent(inner)]
    own = isinstance(config, dict) and "unroll" in (config.get("config") or ())
    return [*found, config] if own else found


@dataclass(frozen=True)
class Format:
    """One kind of artifact.

    Attributes:
        title: for people.
        takes: what it is given, for the model card; {size} is the picture's side.
        write: writes one of a source into a folder at a precision, and gives its name there.
        needs: modules that it is made and checked with.
        extra: of this package that installs them.
        quantizes: whether it can be of less precision.
    """

    title: str
    takes: str
    write: Callable[[Source, Path, str], str]
    needs: tuple[str, ...] = ()
    extra: str = ""
    quantizes: bool = False


PICTURES = "`image` float32 [batch, {size}, {size}, 3] in 0..255, RGB"
FORMATS = {
    "savedmodel": Format(
        "SavedModel",
        "signatures `serving_default` (encoded JPEG, PNG or WebP, string [batch]), `pixels` "
        "(float32 [batch, height, width, 3] in 0..255), `pixels_uint8`, `embed` and `attention`",
        _savedmodel,
    ),
    "onnx": Format(
        "ONNX",
        f"{PICTURES}; class names in its metadata",
        _onnx,
        ("onnx", "tf2onnx", "onnxruntime"),
        "onnx",
        True,
    ),
    "litert": Format(
        "LiteRT",
        f"{PICTURES}; class names in a zip archive behind the network",
        _litert,
        ("ai_edge_litert",),
        "litert",
        True,
    ),
    "keras": Format("Keras", f"{PICTURES}; gives logits by task", _keras),
}


def check_installed(name: str) -> None:
    """Refuse a format that cannot be made here."""
    for module in FORMATS[name].needs:
        if importlib.util.find_spec(module) is None:
            raise InputError(f"--format={name}: needs an extra: {install(FORMATS[name].extra)}")
