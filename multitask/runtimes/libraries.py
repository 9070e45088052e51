"""The libraries that run artifacts, imported only when they are used.

Each loads an artifact as a function from images, float32 [batch, size, size, 3] in 0..255, to
{output: array}. The outputs of an export are `{task}_logits` float32 [batch, classes], and
`embedding` float32 [batch, width], the pooled features, if the artifact has it.
"""

import functools
import importlib
import importlib.util
import logging
import os
import queue
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multitask.console import errors_only
from multitask.files import pattern_free_path
from multitask.spec import InputError, expected, install
from multitask.startup import import_tensorflow_once

EMBEDDING = "embedding"
IMAGE = "image"
# The SavedModel's signatures of encoded and of decoded images.
SIGNATURE, PIXELS = "serving_default", "pixels"
# Kinds of a task's outputs.
KNOWN = "known"
KINDS = ("attention", "classes", EMBEDDING, KNOWN, "label", "logits", "probabilities")
Infer = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def output_of(task: str, kind: str) -> str:
    """Return the name of an artifact's output, such as `artist_logits`.

    Clients in other languages use these names, so they have no slash, unlike columns. Names of two
    tasks never collide, because no kind ends in `_` and another kind. They do not collide with
    `embedding` and `image` either, because these do not end in `_` and a kind.
    """
    return f"{task}_{kind}"


@dataclass(frozen=True)
class Runtime:
    """A library that runs artifacts.

    Attributes:
        title: name for display.
        module: name of the module to import.
        extra: the extra of this package that installs it; "": always installed.
        format: format of the artifacts that it reads.
        load: (path, workers) -> function. With 0 workers, a call computes on all cores. With n
            workers, up to n threads call the function at a time, and a call computes on one core.
    """

    title: str
    module: str
    extra: str
    format: str
    load: Callable[..., Infer]

    @property
    def installed(self) -> bool:
        """Whether the library can be imported."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def described(self) -> str:
        """Title and version, e.g. "ONNX Runtime 1.30"."""
        return f"{self.title} {import_library(self.module).__version__.split('-')[0]}"


def _onnxruntime(path: Path, workers: int = 0) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    if workers:
        options.intra_op_num_threads = 1  # that of the caller; a session serves many
    session = onnxruntime.InferenceSession(
        path, options, providers=onnxruntime.get_available_providers()
    )
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {IMAGE: image}), strict=True))


def import_library(module: str) -> Any:
    """Import a library by the name of its module, OpenVINO without its telemetry.

    OpenVINO's converter sends its maker how it is used, and forks this process for each message.
    """
    if module == "openvino":
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module(module)


def _openvino(path: Path, workers: int = 0) -> Infer:
    openvino = import_library("openvino")
    # By default OpenVINO uses bfloat16 if the CPU can, which changes logits by some hundredths.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if workers:
        options |= {"NUM_STREAMS": workers, "INFERENCE_NUM_THREADS": workers}
    else:
        options["PERFORMANCE_HINT"] = "LATENCY"
    compiled = openvino.Core().compile_model(path, "CPU", options)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(request: Any, image: np.ndarray) -> dict[str, np.ndarray]:
        outputs = request.infer([image])
        return {name: np.array(outputs[name]) for name in names}  # its memory is reused

    return _one_caller_each(
        [functools.partial(run, compiled.create_infer_request()) for _ in range(workers or 1)]
    )


def _litert(path: Path, workers: int = 0) -> Infer:
    from ai_edge_litert.interpreter import Interpreter

    def load() -> Infer:
        interpreter = Interpreter(str(path), num_threads=1 if workers else os.cpu_count())
        interpreter.allocate_tensors()  # now; otherwise the first call would print to stderr
        signature = interpreter.get_signature_runner()

        # The signature alone does not keep the interpreter alive.
        def run(image: np.ndarray, kept: Any = interpreter) -> dict[str, np.ndarray]:
            return signature(**{IMAGE: image})

        return run

    return _one_caller_each([load() for _ in range(workers or 1)])


def _one_caller_each(functions: Sequence[Infer]) -> Infer:
    """Make one function of several equal ones, each of which serves one thread at a time."""
    idle: queue.SimpleQueue[Infer] = queue.SimpleQueue()
    for function in functions:
        idle.put(function)

    def run(image: np.ndarray) -> Mapping[str, np.ndarray]:
        function = idle.get()
        try:
            return function(image)
        finally:
            idle.put(function)

    return run


def load_savedmodel(path: Path) -> Any:
    """Load a SavedModel with TensorFlow, also from a path with special characters."""
    import_tensorflow_once()
    import tensorflow as tf

    # TensorFlow warns that the gradients are missing; an export has none.
    with pattern_free_path(path) as plain, errors_only(logging.getLogger("absl")):
        return tf.saved_model.load(str(plain))


class SavedModel:
    """A SavedModel as a function of decoded images, like those of the other libraries."""

    def __init__(self, path: Path, workers: int = 0):
        # The signatures alone do not keep the variables alive.
        self.loaded = load_savedmodel(path)

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Run it on images, float32 [batch, height, width, 3] in 0..255."""
        return self._run(PIXELS, image)

    def on_bytes(self, data: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Run it on encoded images."""
        return self._run(SIGNATURE, data)

    def _run(self, signature: str, values: Any) -> dict[str, np.ndarray]:
        import tensorflow as tf

        outputs = self.loaded.signatures[signature](tf.constant(values))
        return {name: x.numpy() for name, x in outputs.items() if x.dtype == tf.float32}


# In the order of their start-up time; which one runs fastest depends on the machine.
RUNTIMES = {
    "litert": Runtime("LiteRT", "ai_edge_litert", "litert", "litert", _litert),
    "onnxruntime": Runtime("ONNX Runtime", "onnxruntime", "onnx", "onnx", _onnxruntime),
    "openvino": Runtime("OpenVINO", "openvino", "openvino", "onnx", _openvino),
    "tensorflow": Runtime("TensorFlow", "tensorflow", "", "savedmodel", SavedModel),
}
AUTO = "auto"
FEWEST_MEASURED = 1000  # images; for fewer, measuring takes longer than it saves


def usable_runtimes(name: str, artifacts: Mapping[str, str]) -> list[str]:
    """Return the names of the usable runtimes, in the order of RUNTIMES; at least one.

    Args:
        name: of RUNTIMES, or AUTO: all that are installed and can read an artifact.
        artifacts: format -> file, of an export.

    Raises:
        InputError: not installed, or the export has no artifact for it.
    """
    if name == AUTO:
        names = [n for n, r in RUNTIMES.items() if r.format in artifacts and r.installed]
        if names:
            return names
        extras = {r.format: r.extra for r in RUNTIMES.values() if r.format in artifacts}
        raise InputError(
            f"no installed library runs {', '.join(artifacts)}; "
            + (
                "; ".join(install(extra) for extra in extras.values())
                or "`multitask export --format=savedmodel` makes an artifact for TensorFlow"
            ),
            field="runtime",
        )
    if name not in RUNTIMES:
        raise InputError(f"{name!r}. {expected(name, [AUTO, *RUNTIMES])}", field="runtime")
    runtime = RUNTIMES[name]
    if runtime.format not in artifacts:
        raise InputError(
            f"{name}: reads {runtime.format}, and the export has {', '.join(artifacts)}; "
            f"`multitask export --format={runtime.format}` makes it",
            field="runtime",
        )
    if not runtime.installed:
        raise InputError(f"{name}: needs an extra: {install(runtime.extra)}", field="runtime")
    return [name]


def speed(infer: Callable[[np.ndarray], Any], batch: np.ndarray, *, seconds: float) -> float:
    """Measure images per second in the fastest call within `seconds`, after a warm-up call."""
    infer(batch)
    began, best = time.perf_counter(), np.inf
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        infer(batch)
        best = min(best, time.perf_counter() - start)
    return len(batch) / best
