"""What differs between Keras' backends; all else of `model/` and `learning/` knows none."""

from collections.abc import Callable

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


def has_strategy() -> bool:
    """Whether TensorFlow's replicas are to have parts of a batch."""
    if not on_tensorflow():
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def replicas() -> int:
    """How many run this very code side by side, each on a part of a batch. TensorFlow's alone:
    the arrays of a distributed JAX are whole batches to the code."""
    if not on_tensorflow():
        return 1
    import tensorflow as tf

    if tf.distribute.in_cross_replica_context():
        return 1
    return tf.distribute.get_strategy().num_replicas_in_sync


def synchronise_batchnorm(network: keras.Model, wanted: bool) -> None:
    """Let BatchNorm see the whole batch, where TensorFlow's replicas have parts of it; or not."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            synchronise_batchnorm(layer, wanted)
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = wanted


def over_replicas(value):
    """The sum of a tensor over the replicas; gradients go through it."""
    if replicas() == 1:
        return value
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def synchronise(model: keras.Model) -> None:
    """Let the variables hold what they are at; on the JAX backend `fit` keeps them elsewhere."""
    getattr(model, "jax_state_sync", lambda: None)()


def gradient(function: Callable, at):
    """Of a function of one tensor with a scalar value, there; it changes no variable."""
    if on_tensorflow():
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            value = function(at)
        return tape.gradient(value, at)
    import jax

    return jax.grad(function)(at)
