"""What differs between Keras' backends; all else of `model/` and `learning/` knows none."""

import keras

TENSORFLOW = "tensorflow"


def on_tensorflow() -> bool:
    return keras.backend.backend() == TENSORFLOW


def has_accelerator() -> bool:
    """Whether Keras would compute on anything but the CPU."""
    return any(not name.lower().startswith("cpu") for name in keras.distribution.list_devices())


def jit_compile() -> str | bool:
    """For `compile`: TensorFlow's XLA makes a step on a CPU several times slower."""
    return False if on_tensorflow() and not has_accelerator() else "auto"


def be_deterministic(wanted: bool) -> None:
    """Let the backend compute the same bits each time; on its CPU JAX always does.

    TensorFlow cannot take that back within a process.
    """
    if wanted and on_tensorflow():
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def synchronise(model: keras.Model) -> None:
    """Let the variables hold what they are at; on the JAX backend `fit` keeps them elsewhere."""
    getattr(model, "jax_state_sync", lambda: None)()
