"""Importing TensorFlow without its start-up messages, which no setting switches off."""

import contextlib
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator

from multitask.errors import InputError, expected, install
from multitask.files import scratch, silent

BACKENDS = ("tensorflow", "jax")
TEMPORARY_BYTES = 2**20


def import_tensorflow(backend: str = BACKENDS[0]) -> None:
    """Import TensorFlow, with Keras on a backend.

    Args:
        backend: Keras' backend. The input pipeline uses TensorFlow with every backend, and model
            files do not depend on it.

    Raises:
        InputError: unknown backend, or it is not installed.
        DiskError: there is no room for temporary files.
    """
    if backend not in BACKENDS:
        raise InputError(f'KERAS_BACKEND: "{backend}". {expected(backend, BACKENDS)}')
    if importlib.util.find_spec(backend) is None:
        raise InputError(f"{backend}: needs an extra: {install(backend)}", field="backend")
    os.environ["KERAS_BACKEND"] = backend
    # This hides messages of TensorFlow, and works only before its import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # AutoGraph writes converted functions there; without room it would not convert them.
    with scratch() as folder:
        (folder / "probe").write_bytes(bytes(TEMPORARY_BYTES))
    with silent(), without_collections():
        import tensorflow

        # Where CUDA is installed without a driver, the first look at the devices logs an error.
        tensorflow.config.list_physical_devices()
    if backend != "tensorflow":  # otherwise TensorFlow would reserve GPU memory without using it
        tensorflow.config.set_visible_devices([], "GPU")


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage: an import makes half a million objects and hardly any garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def import_tensorflow_once() -> None:
    """Import TensorFlow for a call from Python, where Keras may be imported already.

    Raises:
        As `import_tensorflow`; the backend is that of the environment variable KERAS_BACKEND.
    """
    if "tensorflow" not in sys.modules or "keras" not in sys.modules:
        import_tensorflow(os.environ.get("KERAS_BACKEND") or BACKENDS[0])
