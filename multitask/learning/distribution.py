"""One training over several devices or machines, by engines that there are.

mirrored    the accelerators of this machine: TensorFlow's MirroredStrategy or, on the JAX backend,
            keras.distribution.DataParallel
multihost   a process a machine, each with all its accelerators: jax.distributed, and DataParallel
            over all devices. TensorFlow's MultiWorkerMirroredStrategy does not work under the
            `fit` of Keras 3.

A batch is shared by all devices; what a step computes is what one device would, so the same run
may go on with another number of them. One process writes; the workdir is a folder that all see.
"""

import contextlib
import hashlib
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from multitask.data.sampling import UNSHARDED, Shard
from multitask.files import RunError, disk_error
from multitask.learning.backend import on_tensorflow
from multitask.learning.phases import contrastive_weights
from multitask.model.trunks import finalize_normalization
from multitask.spec import DataSpec, InputError, SpecError

# In what JAX says where another process does not answer.
LOST = ("Gloo", "NCCL", "coordination", "UNAVAILABLE", "DEADLINE_EXCEEDED")
FOUND_S = 300  # how long the processes wait for each other to start


@dataclass(frozen=True)
class Distribution:
    """Over what a training runs.

    Attributes:
        shard: what of each batch this process reads.
        scope: within it networks are built and trained.
        strategy: TensorFlow's, where it splits the batches.
    """

    shard: Shard = UNSHARDED
    scope: Callable[[], AbstractContextManager] = contextlib.nullcontext
    strategy: tf.distribute.Strategy | None = None

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.shard.index == 0

    def feed(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """The batches as `fit` takes them."""
        if self.strategy is None:
            return batches
        devices = self.shard.devices

        def split(*batch) -> tf.data.Dataset:
            parts = tf.nest.map_structure(
                lambda x: tf.reshape(x, [devices, -1, *x.shape[1:]]), batch
            )
            return tf.data.Dataset.from_tensor_slices(parts)

        # `fit` would let TensorFlow split a batch as it sees fit, into parts of unlike size.
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
                f"--distribute=multihost: the processes do not agree on {what}; give all of them "
                "the same flags, and folders with the same content"
            )

    @contextlib.contextmanager
    def noticing(self) -> Iterator[None]:
        """Within it the loss of another process is one clear line."""
        if self.shard.count == 1:
            yield
            return
        try:
            yield
        except (InputError, RunError):
            raise
        except Exception as error:  # JAX raises several kinds, ValueError among them
            if found := disk_error(error):
                raise found from error
            if not any(word in str(error) for word in LOST):
                # Its end as usual would wait for the others, which wait for its next step.
                traceback.print_exc()
                os._exit(1)
            reason = str(error).strip().split("\n")[0]
            raise RunError(
                f"another process of this run has ended, so process {self.shard.index} of "
                f"{self.shard.count} ends too; start all of them again with the same commands, "
                f"they go on from the last checkpoint ({reason})"
            ) from None


ALONE = Distribution()


def build_distribution(
    kind: str,
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Distribution:
    """What `--distribute` asks for.

    Args:
        kind: none, mirrored or multihost.
        coordinator: of multihost: `host:port` of process 0. None, as the others: JAX asks the
            cluster (Slurm, Open MPI, Kubernetes, TPU).
        processes: of multihost: how many there are.
        process: of multihost: which this is, from 0.

    Raises:
        InputError: it cannot be had; or the processes did not find each other.
    """
    if kind == "none":
        return ALONE
    if kind == "mirrored" and on_tensorflow():
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        # Such a dataset has no length; Keras would warn wherever the selection split ends.
        warnings.filterwarnings("ignore", "Your input ran out of data")
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
        return Distribution(Shard(devices=len(devices)), strategy.scope, strategy)
    import jax

    if kind == "multihost":
        try:
            jax.distributed.initialize(
                coordinator, processes, process, initialization_timeout=FOUND_S
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                "--distribute=multihost: the processes do not find each other "
                f"({' '.join(str(error).split())[:200]}); give --coordinator=HOST:PORT, "
                "--process_count and --process_index"
            ) from None
    devices = keras.distribution.list_devices()
    parallel = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    return Distribution(
        Shard(jax.process_index(), jax.process_count(), len(devices)), parallel.scope
    )


def check_distribution(spec: DataSpec, distribution: Distribution) -> None:
    """Raise InputError where the spec cannot be trained so."""
    devices = distribution.shard.devices
    if spec.batch_size % devices:
        raise InputError(
            f"--batch_size: {spec.batch_size}: is shared by {devices} devices; give a multiple of "
            f"{devices}"
        )
    if distribution.strategy is None:
        return
    options = spec.optimizer
    alone = {
        "optimizer.clip_norm": options.clip_norm > 0,
        "optimizer.ema": options.ema > 0,
        "optimizer.accumulate": options.accumulate > 1,
        "contrastive": bool(contrastive_weights(spec)),
    }
    for field, asked in alone.items():
        if asked:
            raise SpecError(
                f"{spec.place(None, field)}: --distribute=mirrored cannot do that with "
                "TensorFlow; leave it out, or train on one device or with --backend=jax"
            )


def joined() -> bool:
    """Whether this is one of several processes that wait for each other."""
    if on_tensorflow():
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def part() -> None:
    """Leave the other processes, when all have come to the end."""
    if joined():
        import jax

        jax.distributed.shutdown()


def local_copy(network: keras.Model) -> keras.Model:
    """The network on a device of this process alone, where it is distributed; else itself."""
    if not any(_is_distributed(variable) for variable in network.weights):
        return network
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    finalize_normalization(copy)
    return copy


def _is_distributed(variable: keras.Variable) -> bool:
    if on_tensorflow():
        return isinstance(variable.value, tf.distribute.DistributedValues)
    return len(variable.value.sharding.device_set) > 1
