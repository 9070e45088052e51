"""The export formats. A new format needs a function and an entry in FORMATS."""

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

from multitask.calibration import Calibration
from multitask.files import scratch
from multitask.model.network import with_flips
from multitask.runtimes.converters import litert_content, onnx_model, write_savedmodel
from multitask.runtimes.libraries import IMAGE
from multitask.serving.convertible import unrolled, why_no_onnx
from multitask.serving.signatures import numbers, signatures
from multitask.spec import InputError, install

VERSION = "1"  # of the served model; TensorFlow Serving needs a number
FLOAT16_MIN_WEIGHTS = 1024  # smaller tensors stay in float32
PRECISIONS = ("none", "float16", "int8")
FLOAT32 = "float32"


@dataclass(frozen=True)
class Source:
    """The content of an export.

    Attributes:
        name: name of the artifacts, which is the spec's name.
        model: image -> {task: logits}.
        classes: task -> class names, of the model's tasks.
        how: the kind of resizing.
        reduced_px: the shorter side that an image is reduced to before.
        calibrations: task -> its temperature.
        flips: whether logits are averaged over the image and its mirror image.
        description: metadata of the artifact; JSON.
        representative: training images, float32 [1, size, size, 3] each, for measuring the ranges
            of activations.
    """

    name: str
    model: keras.Model
    classes: Mapping[str, Sequence[str]]
    how: str
    reduced_px: int
    calibrations: Mapping[str, Calibration]
    flips: bool
    description: Mapping[str, Any]
    representative: Sequence[np.ndarray]

    @property
    def answering(self) -> keras.Model:
        """The model with the exported answers, image -> {task: logits}."""
        return with_flips(self.model) if self.flips else self.model


def _savedmodel(source: Source, folder: Path, quantize: str) -> str:
    """Write `<name>/<version>/`, the layout of TensorFlow Serving."""
    name = f"{source.name}/{VERSION}"
    functions = signatures(
        source.model,
        source.classes,
        how=source.how,
        reduced_px=source.reduced_px,
        calibrations=source.calibrations,
        flips=source.flips,
    )
    write_savedmodel(functions, folder / name)
    return name


def _keras(source: Source, folder: Path, quantize: str) -> str:
    """Write the Keras model: image float32 [batch, size, size, 3] in 0..255 -> {task: logits}."""
    name = f"{source.name}.keras"
    source.answering.save(folder / name)
    return name


def _onnx(source: Source, folder: Path, quantize: str) -> str:
    import onnx

    name = f"{source.name}.onnx"
    model = onnx_model(numbers(unrolled(source.model), source.calibrations, flips=source.flips))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(
        model, {key: json.dumps(value) for key, value in source.description.items()}
    )
    if quantize == "float16":
        halve_weights(model)
    onnx.save(model, folder / name)
    if quantize == "int8":
        _quantize(source, folder / name)
    onnx.checker.check_model(str(folder / name), full_check=True)
    return name


def halve_weights(model: Any) -> None:
    """Store weights in float16, with a Cast before their use: arithmetic stays float32.

    Runtimes cast once, when they load the file. It has half the size and the same speed.
    """
    import onnx

    casts = []
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < FLOAT16_MIN_WEIGHTS:
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
    """Quantize weights and activations to 8 bits (QDQ), with ranges from training images."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(source.representative)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {IMAGE: image}

    with scratch() as folder:
        prepared, quantized = folder / path.name, folder / f"int8_{path.name}"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            quantized,
            Reader(),
            op_types_to_quantize=_quantizable(prepared),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
        )
        content = quantized.read_bytes()
    path.write_bytes(content)


def _litert(source: Source, folder: Path, quantize: str) -> str:
    def prepare(converter: Any) -> None:
        if quantize != "none":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        elif quantize == "int8":
            converter.representative_dataset = lambda: ({IMAGE: i} for i in source.representative)

    name = f"{source.name}.tflite"
    content = litert_content(
        numbers(unrolled(source.model), source.calibrations, flips=source.flips), prepare
    )
    (folder / name).write_bytes(content)
    # LiteRT's convention for metadata files: a zip archive after the network. Readers ignore it.
    with zipfile.ZipFile(folder / name, "a") as archive:
        archive.writestr("description.json", json.dumps(source.description, ensure_ascii=False))
        for task, names in source.classes.items():
            archive.writestr(f"labels_{task}.txt", "\n".join(names) + "\n")
    return name


def _quantizable(path: Path) -> list[str] | None:
    """Return the kinds of nodes to quantize; None: all that ONNX Runtime can.

    An unrolled recurrent layer has thousands of elementwise nodes without weights. The time of
    quantizing grows with the square of their number, so that they stay in float32.
    """
    import onnx

    unrolled = any("_cell" in node.name for node in onnx.load(path).graph.node)
    return ["Conv", "Gemm", "MatMul"] if unrolled else None


@dataclass(frozen=True)
class Format:
    """A format of artifacts.

    Attributes:
        title: name for display.
        takes: description of its input for the model card; {size} is the image's side.
        write: writes a source into a folder at a precision, and returns the artifact's name.
        needs: modules that write and check it.
        extra: the extra of this package that installs them.
        quantizes: whether it supports lower precisions.
        why_not: returns the reason why a network cannot be converted; None if it can.
    """

    title: str
    takes: str
    write: Callable[[Source, Path, str], str]
    needs: tuple[str, ...] = ()
    extra: str = ""
    quantizes: bool = False
    why_not: Callable[[keras.Model], str | None] = lambda model: None


IMAGES = "`image` float32 [batch, {size}, {size}, 3] in 0..255, RGB"
FORMATS = {
    "savedmodel": Format(
        "SavedModel",
        "signatures `serving_default` (encoded JPEG, PNG or WebP, string [batch]), `pixels` "
        "(float32 [batch, height, width, 3] in 0..255), `pixels_uint8`, `embed` and `attention`",
        _savedmodel,
    ),
    "onnx": Format(
        "ONNX",
        f"{IMAGES}; class names in its metadata",
        _onnx,
        ("onnx", "tf2onnx", "onnxruntime"),
        "onnx",
        True,
        why_no_onnx,
    ),
    "litert": Format(
        "LiteRT",
        f"{IMAGES}; class names in a zip archive after the network",
        _litert,
        ("ai_edge_litert",),
        "litert",
        True,
    ),
    "keras": Format("Keras", f"{IMAGES}; returns logits by task", _keras),
}


def check_installed(name: str) -> None:
    """Raise InputError if a package that the format needs is not installed."""
    for module in FORMATS[name].needs:
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"{name}: needs an extra: {install(FORMATS[name].extra)}", field="format"
            )
