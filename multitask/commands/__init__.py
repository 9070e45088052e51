"""The commands: flags, and one call into the rooms."""

import importlib.util
import os

from multitask.files import scratch, silent
from multitask.spec import InputError, expected, install

BACKENDS = ("tensorflow", "jax")
TEMPORARY_BYTES = 2**20
DISTRIBUTIONS = ("none", "mirrored", "multihost")


def import_tensorflow(backend: str = BACKENDS[0]) -> None:
    """Import TensorFlow without its start-up notes, which no setting of its own silences.

    Args:
        backend: what Keras is to compute with. The input is TensorFlow's with each, and a model
            file is the same for all.

    Raises:
        InputError: no such backend, or it is not installed.
        DiskError: temporary files have no room.
    """
    if backend not in BACKENDS:
        raise InputError(f'KERAS_BACKEND: "{backend}". {expected(backend, BACKENDS)}')
    if importlib.util.find_spec(backend) is None:
        raise InputError(f"--backend={backend}: needs an extra: {install(backend)}")
    os.environ["KERAS_BACKEND"] = backend
    # AutoGraph writes what it converts there; without room it leaves functions unconverted.
    with scratch() as folder:
        (folder / "probe").write_bytes(bytes(TEMPORARY_BYTES))
    with silent():
        import tensorflow
    if backend != "tensorflow":  # which would take the memory of the GPU that it has no use for
        tensorflow.config.set_visible_devices([], "GPU")
