"""Inference of a network on many images, by the fastest installed library.

The trunk takes nearly all the time of a network. On a CPU, ONNX Runtime, OpenVINO and LiteRT run
it up to three times as fast as TensorFlow. Each core computes some images on its own, so that no
core waits for another one, or for the threads that decode images.
"""

import functools
import hashlib
import importlib.util
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from multitask.backend import has_accelerator, jit_compile, on_tensorflow
from multitask.files import scratch, silent
from multitask.runtimes.choice import fastest_runtime
from multitask.runtimes.converters import litert_content, onnx_model
from multitask.runtimes.libraries import AUTO, IMAGE, RUNTIMES, Infer, import_library
from multitask.spec import InputError, install

logger = logging.getLogger(__name__)

TENSORFLOW = "tensorflow"
OUTPUT = "output"
CHUNK = 4  # images that one core computes at a time; more do not fit its cache
FEW = 2000  # images; for fewer, converting a network takes longer than it saves
MOST_WORKERS = 16  # each needs memory for its own images
AHEAD = 2  # batches that are computed before the one that is waited for has been used
TOLERANCE = 1e-4  # norm of the difference to Keras, in norms of the output


class Inference:
    """A network with one input and one output, in inference mode, in Keras.

    Args:
        network: image float32 [batch, height, width, 3] -> an array float32 [batch, …].

    Attributes:
        runtime: name of the library that computes, one of RUNTIMES.
    """

    runtime = TENSORFLOW

    def __init__(self, network: keras.Model):
        # Its layers are shared; the network itself may be compiled for training.
        self._model = keras.Model(network.inputs[0], network.outputs[0])
        self._model.compile(jit_compile=jit_compile())

    def __call__(self, images: Any) -> np.ndarray:
        """Run the network on a batch of any size."""
        return self._model.predict_on_batch(np.asarray(images))

    def map(self, batches: Iterable[Any]) -> Iterator[np.ndarray]:
        """Run the network on batches; yields one array for each, in their order."""
        return map(self, batches)


class ConvertedInference(Inference):
    """The same in another library. Its cores compute chunks of CHUNK images in parallel.

    An image's result has the same bits whatever else its batch holds, on any number of cores.
    """

    def __init__(self, runtime: str, infer: Infer, workers: int):
        self.runtime = runtime
        self._infer = infer
        self._pool = ThreadPoolExecutor(workers)

    def __call__(self, images: Any) -> np.ndarray:
        """Run the network on a batch of any size."""
        return next(self.map([images]))

    def map(self, batches: Iterable[Any]) -> Iterator[np.ndarray]:
        """Run the network on batches; yields one array for each, in their order.

        The next batches are read and computed before an array is taken.
        """
        begun: deque[list[Future[np.ndarray]]] = deque()
        try:
            for images in batches:
                begun.append(self._begin(np.asarray(images)))
                if len(begun) > AHEAD:
                    yield _finish(begun.popleft())
            while begun:
                yield _finish(begun.popleft())
        finally:
            for future in (future for futures in begun for future in futures):
                future.cancel()

    def _begin(self, images: np.ndarray) -> list[Future[np.ndarray]]:
        starts = range(0, max(len(images), 1), CHUNK)
        return [self._pool.submit(self._chunk, images[start : start + CHUNK]) for start in starts]

    def _chunk(self, images: np.ndarray) -> np.ndarray:
        """Run at most CHUNK images; the libraries compile the network for exactly CHUNK."""
        full = np.zeros((CHUNK, *images.shape[1:]), np.float32)
        full[: len(images)] = images
        (output,) = self._infer(full).values()
        return output[: len(images)]


def _finish(futures: Sequence[Future[np.ndarray]]) -> np.ndarray:
    return np.concatenate([future.result() for future in futures])


def fast_inference(network: keras.Model, *, runtime: str = AUTO, images: int) -> Inference:
    """Convert a network to the fastest library.

    Args:
        network: image float32 [batch, size, size, 3] -> an array float32 [batch, …], such as a
            trunk; its weights are copied.
        runtime: one of RUNTIMES; AUTO: TensorFlow on an accelerator, for less than FEW images,
            and where a network cannot be converted; otherwise the fastest installed library on
            this machine, measured once for each architecture.
        images: the number of images to come.

    Raises:
        InputError: the named library is not installed or cannot run the network.
    """
    if runtime != AUTO:
        return _named(network, runtime)
    if images < FEW or has_accelerator() or not _convertible(network):
        return Inference(network)
    plain, converted = Inference(network), dict[str, Inference]()

    def load(name: str) -> Inference:
        converted[name] = _converted(network, name, like=plain)
        return converted[name]

    chosen = fastest_runtime(
        {
            name: functools.partial(load, name) if name in CONVERTERS else lambda: plain
            for name in RUNTIMES
            if is_usable(name)
        },
        size_px=network.input_shape[1],
        batch=2 * CHUNK * _workers(),
        identity=_architecture(network),
    )
    if chosen == TENSORFLOW:
        return plain
    try:
        return converted.get(chosen) or _converted(network, chosen)
    except Exception as error:  # each library raises other types
        logger.info(f"{RUNTIMES[chosen].title} cannot run the network: {_first_line(error)}")
        return plain


def _named(network: keras.Model, runtime: str) -> Inference:
    """Return the network in the library that the user wants."""
    plain = Inference(network)
    if runtime == TENSORFLOW:
        return plain
    field = "features.runtime"
    if extra := _missing_extra(runtime):
        raise InputError(f"{runtime}: needs an extra: {install(extra)}", field=field)
    if not _convertible(network):
        raise InputError(f"{runtime}: needs float32, and Keras on TensorFlow", field=field)
    try:
        return _converted(network, runtime, like=plain)
    except Exception as error:  # each library raises other types
        reason = _first_line(error)
        raise InputError(f"{runtime}: cannot run the trunk: {reason}", field=field) from None


def _convertible(network: keras.Model) -> bool:
    return on_tensorflow() and network.outputs[0].dtype == "float32"


def is_usable(runtime: str) -> bool:
    """Whether a library, and what converts networks for it, is installed; AUTO always is."""
    return runtime == AUTO or _missing_extra(runtime) is None


def _missing_extra(runtime: str) -> str | None:
    """Return the extra that a library still needs; None if it can be used."""
    library, needs = RUNTIMES[runtime], CONVERTERS[runtime].needs if runtime in CONVERTERS else ()
    if library.installed and all(map(importlib.util.find_spec, needs)):
        return None
    return library.extra


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _converted(
    network: keras.Model, runtime: str, *, like: Inference | None = None
) -> ConvertedInference:
    """Convert a network and load it.

    Args:
        network: the network.
        runtime: one of CONVERTERS.
        like: the same network, whose output must agree on random images; None: not compared.
    """
    workers = _workers()
    with silent(), scratch() as folder:
        path = CONVERTERS[runtime].write(_function(network), folder)
        inference = ConvertedInference(runtime, RUNTIMES[runtime].load(path, workers), workers)
    if like is not None:
        images = np.random.default_rng(0).uniform(0, 255, (CHUNK, *network.input_shape[1:]))
        expected = like(images.astype(np.float32))
        difference = np.linalg.norm(inference(images) - expected) / np.linalg.norm(expected)
        if not difference <= TOLERANCE:
            raise ValueError(f"it differs from Keras by {difference:.1g} of the norm")
    return inference


def _workers() -> int:
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def _function(network: keras.Model) -> Any:
    @tf.function(
        input_signature=[tf.TensorSpec([CHUNK, *network.input_shape[1:]], tf.float32, name=IMAGE)]
    )
    def run(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {OUTPUT: network(image, training=False)}

    return run


def _architecture(network: keras.Model) -> str:
    """Identify what determines the speed of a network: its layers, not its weights or names."""
    facts = [
        [layer.__class__.__name__, [list(weight.shape) for weight in layer.weights]]
        for layer in network.layers
    ]
    shapes = [network.input_shape, network.output_shape]
    return hashlib.sha256(json.dumps([shapes, facts]).encode()).hexdigest()


def _to_onnx(function: Any, folder: Path) -> Path:
    path = folder / "network.onnx"
    path.write_bytes(onnx_model(function).SerializeToString())
    return path


def _to_openvino(function: Any, folder: Path) -> Path:
    openvino = import_library("openvino")
    path = folder / "network.xml"
    model = openvino.convert_model(function.get_concrete_function())
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def _to_litert(function: Any, folder: Path) -> Path:
    path = folder / "network.tflite"
    path.write_bytes(litert_content(function))
    return path


@dataclass(frozen=True)
class Converter:
    """Converts a network for a library.

    Attributes:
        write: (tf.function from `image` to {OUTPUT: array}, folder) -> the file that it wrote.
        needs: modules that it needs besides the library's own.
    """

    write: Callable[[Any, Path], Path]
    needs: tuple[str, ...] = ()


CONVERTERS = {
    "litert": Converter(_to_litert),
    "onnxruntime": Converter(_to_onnx, ("onnx", "tf2onnx")),
    "openvino": Converter(_to_openvino),
}
