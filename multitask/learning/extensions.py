"""The interfaces through which extensions add to training; each default adds nothing.

The core calls these interfaces and knows no implementation. A spec's extensions are built by the
caller and passed to `training.train`; `check_extensions` refuses a spec whose options they do not
cover, so that no option is silently ignored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from multitask.data.order import SHUFFLED, RowOrder
from multitask.data.table import Table
from multitask.learning.balancer import LossBalancer
from multitask.learning.losses import MaskedLoss
from multitask.spec import DataSpec, SpecError

# The fields of a spec that only an extension implements.
FIELDS = (
    "mix",
    "phases.finetune.mix",
    "sampler",
    "balancing",
    "contrastive",
    "features.smote",
)


class BatchTransform(ABC):
    """Changes training batches in the input pipeline, and the loss and the metrics to match.

    It may return labels and weights in any shape that its loss and metric targets understand.
    Validation batches do not pass through it: their labels are [batch].

    Attributes:
        takes_maps: in a phase that can train on cached maps, it changes batches of these.
    """

    takes_maps: bool = False

    @abstractmethod
    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Transform a batch.

        Args:
            images: float32 [batch, size, size, channels].
            labels: int32 [batch, tasks]; MISSING or OTHER_LABEL where the task has no label.
            seed: int [2]; the same seed gives the same transformation.

        Returns:
            Images, labels [batch, tasks, …] and weights of the labels' shape.
        """

    @abstractmethod
    def wrap_loss(self, loss: MaskedLoss) -> MaskedLoss:
        """Return a task's loss, which accepts transformed and plain labels."""

    @abstractmethod
    def metric_targets(self, labels: Any, weights: Any) -> tuple[Any, Any]:
        """Return one label and one weight per image, each [batch], for the metrics."""


class ExtraRows:
    """Adds training rows to cached features; this default adds none.

    Attributes:
        adds: whether it may add rows; rows can only be added to cached features.
        field: its option in the spec's `features`, for messages.
    """

    adds = False
    field = ""

    def count(self, table: Table) -> int:
        """Return how many rows `make` adds to the table's training split."""
        return 0

    def make(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Make rows from the features and labels of the training split.

        Args:
            features: [rows or more, …]; the first rows are the plain view.
            labels: int32 [rows, tasks]; MISSING where a task has no label.

        Returns:
            float32 [extra, …] and int32 [extra, tasks].
        """
        return np.empty((0, *features.shape[1:]), np.float32), labels[:0]


NO_ROWS = ExtraRows()


class ExtraLoss(ABC):
    """A further loss of each task, on a projection of the pooled features.

    Attributes:
        name: name of the loss in the logs: `{name}_loss`, and `{name}_rate` for its learning rate.
        weights: task -> weight of its extra loss; tasks without an extra loss are absent.
    """

    name: str
    weights: dict[str, float]

    @abstractmethod
    def projection(self) -> keras.layers.Layer:
        """Make a new layer from pooled features [batch, channels] to the vectors of the loss.

        It is trained with the trunk's schedule and weight decay, and no model file contains it.
        """

    @abstractmethod
    def __call__(self, labels: Any, vectors: Any) -> Any:
        """Compute a task's loss.

        Args:
            labels: int32 [batch]; MISSING where the task has no label.
            vectors: float32 [batch, width], from the projection.

        Returns:
            float32 scalar; 0 for a batch without any label.
        """


def extension_options(spec: DataSpec) -> dict[str, Any]:
    """Return the values of a spec's fields that only an extension implements."""
    options = {}
    for name in FIELDS:
        value: Any = spec
        for step in name.split("."):
            value = getattr(value, step)
        options[name] = value
    return options


def _default_options() -> dict[str, Any]:
    options = {}
    for name in FIELDS:
        first, *rest = name.split(".")
        value = DataSpec.model_fields[first].get_default(call_default_factory=True)
        for step in rest:
            value = getattr(value, step)
        options[name] = value
    return options


@dataclass(frozen=True)
class Extensions:
    """The additions of one training to the core; by default none.

    Attributes:
        order: the rows of an epoch and their order.
        batch_transforms: phase -> what changes its training batches.
        extra_rows: adds rows to cached features.
        balancer: task weights -> a new balancer, which combines the task losses into one.
        extra_loss: a further loss on the pooled features.
        options: `extension_options` of the spec that these were built for.
    """

    order: RowOrder = SHUFFLED
    batch_transforms: Mapping[str, BatchTransform] = field(default_factory=dict)
    extra_rows: ExtraRows = NO_ROWS
    balancer: Callable[[Mapping[str, float]], LossBalancer] = LossBalancer
    extra_loss: ExtraLoss | None = None
    options: Mapping[str, Any] = field(default_factory=_default_options)


NO_EXTENSIONS = Extensions()


def check_extensions(spec: DataSpec, extensions: Extensions) -> None:
    """Raise SpecError where the extensions were not built for this spec."""
    for name, value in extension_options(spec).items():
        if value != extensions.options[name]:
            raise SpecError(
                f"{spec.place(None, name)}: needs an extension that was not given; pass the "
                "extensions of this spec to train(…, extensions=…)"
            )
