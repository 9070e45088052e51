"""Where training runs; the default is one device in one process."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import keras
import tensorflow as tf

from multitask.data.order import UNSHARDED, Shard
from multitask.spec import DataSpec


@dataclass(frozen=True)
class Placement:
    """One device in one process. A subclass may spread training over several.

    Attributes:
        shard: the part of each batch that this process reads.
        scope: makes the context in which networks are built and trained.
    """

    shard: Shard = UNSHARDED
    scope: Callable[[], AbstractContextManager] = contextlib.nullcontext

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files and the console."""
        return self.shard.index == 0

    def check(self, spec: DataSpec) -> None:
        """Raise InputError where the spec cannot be trained here."""

    def feed(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Return the batches in the form that `fit` needs here."""
        return batches

    def agree(self, what: str, value: str) -> None:
        """Wait for the other processes; raise InputError where one has another value."""

    def local_copy(self, network: keras.Model) -> keras.Model:
        """Return the network on a device of this process only; a copy if it is not there yet."""
        return network

    def reporting_lost_processes(self) -> AbstractContextManager:
        """Return a context that reports the loss of another process as one clear line."""
        return contextlib.nullcontext()


ONE_DEVICE = Placement()
