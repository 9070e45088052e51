"""Code that depends on the Keras backend; the rest of `model/` and `learning/` does not."""

from collections.abc import Callable
from typing import Any

import keras

TENSORFLOW = "tensorflow"


def on_tensorflow() -> bool:
    """Whether Keras computes with TensorFlow."""
    return keras.backend.backend() == TENSORFLOW


def has_accelerator() -> bool:
    """Whether Keras can compute on another device than the CPU."""
    return any(not name.lower().startswith("cpu") for name in keras.distribution.list_devices())


def jit_compile() -> str | bool:
    """The argument for `compile`; on a CPU, TensorFlow's XLA makes a step several times slower."""
    return False if on_tensorflow() and not has_accelerator() else "auto"


def be_deterministic(enabled: bool) -> None:
    """Make the backend compute the same bits each time; JAX always does so on a CPU.

    TensorFlow cannot switch this off again within a process.
    """
    if enabled and on_tensorflow():
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def has_strategy() -> bool:
    """Whether TensorFlow splits each batch over replicas."""
    if not on_tensorflow():
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def replicas() -> int:
    """Return how many replicas run this code in parallel, each on a part of a batch.

    It is more than 1 only with TensorFlow: in distributed JAX, each array is a whole batch.
    """
    if not on_tensorflow():
        return 1
    import tensorflow as tf

    if tf.distribute.in_cross_replica_context():
        return 1
    return tf.distribute.get_strategy().num_replicas_in_sync


def synchronise_batchnorm(network: keras.Model, enabled: bool) -> None:
    """Compute BatchNorm's statistics over all replicas of TensorFlow, or for each replica."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            synchronise_batchnorm(layer, enabled)
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = enabled


def over_replicas(value: Any) -> Any:
    """Sum a tensor over the replicas; gradients pass through."""
    if replicas() == 1:
        return value
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def synchronise(model: keras.Model) -> None:
    """Update the variables to their current values; on JAX, `fit` keeps the values elsewhere."""
    getattr(model, "jax_state_sync", lambda: None)()


def gradient(function: Callable[[Any], Any], at: Any) -> Any:
    """Compute the gradient of a scalar function of one tensor; variables do not change."""
    if on_tensorflow():
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            value = function(at)
        return tape.gradient(value, at)
    import jax

    return jax.grad(function)(at)
