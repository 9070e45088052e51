"""What runs an export's artifacts: the libraries of each format, loaded only when it is used.

Every one becomes a function from pictures, float32 [batch, size, size, 3] in 0..255, to
{output: array}: `{task}_logits` float32 [batch, classes], and `embedding` float32 [batch, width],
the pooled features, where the artifact has it.
"""

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multitask.files import plainly_named
from multitask.spec import InputError, expected, install

EMBEDDING = "embedding"
IMAGE = "image"
PIXELS = "pixels"  # the SavedModel's signature of decoded pictures
# Of a task's outputs.
KINDS = ("attention", "classes", EMBEDDING, "label", "logits", "probabilities")
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def output_of(task: str, kind: str) -> str:
    """An output of an artifact: `artist_logits`.

    Clients in other languages ask for these names, so they have no slash, unlike columns. No kind
    (of KINDS) ends in `_` and another one, so that two tasks' names always differ; none of ours
    (`embedding`, `image`) ends in `_` and a kind.
    """
    return f"{task}_{kind}"


@dataclass(frozen=True)
class Runtime:
    """A library that runs artifacts.

    Attributes:
        title: for people.
        module: to import.
        extra: of this package that installs it; "" where it always is.
        format: of the artifacts that it reads.
        load: an artifact -> a function.
    """

    title: str
    module: str
    extra: str
    format: str
    load: Callable[[Path], Run]

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    @property
    def described(self) -> str:
        """With its version, e.g. "ONNX Runtime 1.30"."""
        return f"{self.title} {importlib.import_module(self.module).__version__.split('-')[0]}"


def _onnxruntime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(
        path, options, providers=onnxruntime.get_available_providers()
    )
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {IMAGE: image}), strict=True))


def _openvino(path: Path) -> Run:
    import openvino

    # By itself OpenVINO computes in bfloat16 where the CPU can, some hundredths of a logit off.
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        found = compiled([image])
        return {name: np.array(found[name]) for name in names}  # its memory is used again

    return run


def _litert(path: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=os.cpu_count())
    interpreter.allocate_tensors()  # now, and not with a note on stderr when it is first asked
    signature = interpreter.get_signature_runner()
    # The signature alone does not keep the interpreter alive.
    return lambda image, kept=interpreter: signature(**{IMAGE: image})


def load_savedmodel(path: Path):
    """TensorFlow's own object of a SavedModel, whatever the folders above it are called."""
    import tensorflow as tf

    with plainly_named(path) as plain:
        return tf.saved_model.load(str(plain))


def _tensorflow(path: Path) -> Run:
    import tensorflow as tf

    loaded = load_savedmodel(path)
    signature = loaded.signatures[PIXELS]

    # The signature alone does not keep the variables alive.
    def run(image: np.ndarray, kept=loaded) -> dict[str, np.ndarray]:
        found = signature(tf.constant(image))
        return {name: x.numpy() for name, x in found.items() if x.dtype == tf.float32}

    return run


# The fastest to start first; which is the fastest to answer depends on the machine.
RUNTIMES = {
    "litert": Runtime("LiteRT", "ai_edge_litert", "litert", "litert", _litert),
    "onnxruntime": Runtime("ONNX Runtime", "onnxruntime", "onnx", "onnx", _onnxruntime),
    "openvino": Runtime("OpenVINO", "openvino", "openvino", "onnx", _openvino),
    "tensorflow": Runtime("TensorFlow", "tensorflow", "", "savedmodel", _tensorflow),
}
AUTO = "auto"


def able(name: str, artifacts: Mapping[str, str]) -> list[str]:
    """The runtimes that may be used, in the order of RUNTIMES; at least one.

    Args:
        name: of RUNTIMES, or AUTO: all that are installed and have an artifact.
        artifacts: format -> file, of an export.

    Raises:
        InputError: not installed, or there is no artifact for it.
    """
    if name == AUTO:
        found = [n for n, r in RUNTIMES.items() if r.format in artifacts and r.installed]
        if found:
            return found
        wanted = {r.format: r.extra for r in RUNTIMES.values() if r.format in artifacts}
        raise InputError(
            f"--runtime: nothing that is installed runs {', '.join(artifacts)}; "
            + (
                "; ".join(install(extra) for extra in wanted.values())
                or "`multitask export --format=savedmodel` makes what TensorFlow runs"
            )
        )
    if name not in RUNTIMES:
        raise InputError(f"--runtime: {name!r}. {expected(name, [AUTO, *RUNTIMES])}")
    runtime = RUNTIMES[name]
    if runtime.format not in artifacts:
        raise InputError(
            f"--runtime={name}: reads {runtime.format}, and the export has {', '.join(artifacts)}; "
            f"`multitask export --format={runtime.format}` makes it"
        )
    if not runtime.installed:
        raise InputError(f"--runtime={name}: needs an extra: {install(runtime.extra)}")
    return [name]


def speed(infer: Run, batch: np.ndarray, *, seconds: float) -> float:
    """Pictures a second, after one call to warm up: the best of the calls in that time."""
    infer(batch)
    began, best = time.perf_counter(), np.inf
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        infer(batch)
        best = min(best, time.perf_counter() - start)
    return len(batch) / best
