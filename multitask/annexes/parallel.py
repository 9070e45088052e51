"""The placement of one training on several devices or machines.

mirrored    the accelerators of this machine: TensorFlow's MirroredStrategy or, on the JAX backend,
            keras.distribution.DataParallel
multihost   one process per machine, each with all its accelerators: jax.distributed, and
            DataParallel over all devices. TensorFlow's MultiWorkerMirroredStrategy does not work
            with the `fit` of Keras 3.

All devices share a batch, and a step computes the same as on one device, so a run may be resumed
with another number of devices. One process writes; all processes must see the workdir.
"""

import contextlib
import hashlib
import os
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from multitask.annexes.contrastive import contrastive_weights
from multitask.backend import on_tensorflow
from multitask.data.order import Shard
from multitask.disk import disk_error
from multitask.errors import RunError
from multitask.learning.placement import ONE_DEVICE, Placement
from multitask.model.trunks import finalize_normalization
from multitask.spec import DataSpec, InputError, SpecError

# Words in JAX's error messages when another process does not answer.
LOST = ("Gloo", "NCCL", "coordination", "UNAVAILABLE", "DEADLINE_EXCEEDED")
START_TIMEOUT_S = 300  # how long the processes wait for each other to start


@dataclass(frozen=True)
class Parallel(Placement):
    """Several devices, in one process or several.

    Attributes:
        strategy: TensorFlow's strategy, which splits the batches; None on JAX.
    """

    strategy: tf.distribute.Strategy | None = None

    def check(self, spec: DataSpec) -> None:
        """Raise InputError where the spec cannot be trained on these devices."""
        devices = self.shard.devices
        if spec.batch_size % devices:
            raise InputError(
                f"{spec.batch_size}: is shared by {devices} devices; give a multiple of {devices}",
                field="batch_size",
            )
        if self.strategy is None:
            return
        options = spec.optimizer
        unsupported = {
            "optimizer.clip_norm": options.clip_norm > 0,
            "optimizer.ema": options.ema > 0,
            "optimizer.accumulate": options.accumulate > 1,
            "contrastive": bool(contrastive_weights(spec)),
        }
        for field, is_set in unsupported.items():
            if is_set:
                raise SpecError(
                    f"{spec.place(None, field)}: `distribute=mirrored` does not support it with "
                    "TensorFlow; remove it, or train on one device or with `backend=jax`"
                )

    def feed(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Return the batches in the form that `fit` needs here."""
        if self.strategy is None:
            return batches
        devices = self.shard.devices

        def split(*batch: tf.Tensor) -> tf.data.Dataset:
            pieces = tf.nest.map_structure(
                lambda x: tf.reshape(x, [devices, -1, *x.shape[1:]]), batch
            )
            return tf.data.Dataset.from_tensor_slices(pieces)

        # Without this, TensorFlow would split a batch into pieces of unequal size.
        return self.strategy.distribute_datasets_from_function(
            lambda context: batches.flat_map(split)
        )

    def agree(self, what: str, value: str) -> None:
        """Wait for the other processes, and raise InputError where one has another value."""
        if self.shard.count == 1:
            return
        from jax.experimental import multihost_utils

        digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
        if (multihost_utils.process_allgather(digest) != digest).any():
            raise InputError(
                f"multihost: the processes do not agree on {what}; give all of them "
                "the same flags, and folders with the same content",
                field="distribute",
            )

    def local_copy(self, network: keras.Model) -> keras.Model:
        """Return the network on a device of this process only; a copy if it is not there yet."""
        if not any(_is_distributed(variable) for variable in network.weights):
            return network
        copy = keras.models.clone_model(network)
        copy.set_weights(network.get_weights())
        finalize_normalization(copy)
        return copy

    @contextlib.contextmanager
    def reporting_lost_processes(self) -> Iterator[None]:
        """Report the loss of another process as one clear line."""
        if self.shard.count == 1:
            yield
            return
        try:
            yield
        except (InputError, RunError):
            raise
        except Exception as error:  # JAX raises several kinds, ValueError among them
            if full := disk_error(error):
                raise full from error
            if not any(word in str(error) for word in LOST):
                # A normal exit would wait for the others, which wait for this one's next step.
                traceback.print_exc()
                os._exit(1)
            reason = str(error).strip().split("\n")[0]
            raise RunError(
                f"another process of this run has ended, so process {self.shard.index} of "
                f"{self.shard.count} ends too; start all of them again with the same commands "
                f"to resume from the last checkpoint ({reason})"
            ) from None


def build_placement(
    kind: str,
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Placement:
    """Build the placement of a kind.

    Args:
        kind: none, mirrored or multihost.
        coordinator: with multihost: `host:port` of process 0. None, here and for the next two: JAX
            gets the value from the cluster (Slurm, Open MPI, Kubernetes, TPU).
        processes: with multihost: number of processes.
        process: with multihost: number of this process, from 0.

    Raises:
        InputError: the processes did not find each other.
    """
    if kind == "none":
        return ONE_DEVICE
    if kind == "mirrored" and on_tensorflow():
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        # Such a dataset has no length; Keras would warn at the end of each validation.
        warnings.filterwarnings("ignore", "Your input ran out of data")
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
        return Parallel(Shard(devices=len(devices)), strategy.scope, strategy)
    import jax

    if kind == "multihost":
        try:
            jax.distributed.initialize(
                coordinator, processes, process, initialization_timeout=START_TIMEOUT_S
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                "multihost: the processes do not find each other "
                f"({' '.join(str(error).split())[:200]}); give `coordinator=HOST:PORT`, "
                "`process_count` and `process_index`",
                field="distribute",
            ) from None
    devices = keras.distribution.list_devices()
    parallel = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    return Parallel(Shard(jax.process_index(), jax.process_count(), len(devices)), parallel.scope)


def is_joined() -> bool:
    """Whether this is one of several processes that wait for each other."""
    if on_tensorflow():
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def leave() -> None:
    """Disconnect from the other processes, once all of them have finished."""
    if is_joined():
        import jax

        jax.distributed.shutdown()


def _is_distributed(variable: keras.Variable) -> bool:
    if on_tensorflow():
        return isinstance(variable.value, tf.distribute.DistributedValues)
    return len(variable.value.sharding.device_set) > 1
