"""Supervised contrastive learning: pull images of one class together in the embedding."""

from typing import Any

import keras
from keras import layers, ops

from multitask.learning.extensions import ExtraLoss
from multitask.spec import DataSpec, SpecError, is_labelled

EXCLUDED = -1e9  # exp of it is 0, and unlike -inf it has a gradient


def supervised_contrastive_loss(labels: Any, embeddings: Any, *, temperature: float) -> Any:
    """Compute L_out of Khosla et al. 2020 (eq. 2), as a mean over the anchors.

    An anchor's positives are the other examples of its class in the batch, its negatives those of
    other classes (under data parallelism: of this replica's part of the batch). An example
    without a label is neither anchor nor positive nor negative.

    Args:
        labels: int32 [batch]; MISSING (-1) where the task has no label.
        embeddings: float32 [batch, width], of any norm; they are normalised here.
        temperature: tau, > 0; the cosines are divided by it.

    Returns:
        float32 scalar, nats: the mean over the anchors that have a positive; exactly 0, with a
        gradient of 0, if no anchor has one.
    """
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    embeddings = ops.cast(embeddings, "float32")
    squares = ops.sum(ops.square(embeddings), axis=-1, keepdims=True)
    # The bound is inside the root, because the slope of a root at 0 is infinite.
    embeddings = embeddings / ops.sqrt(ops.maximum(squares, 1e-12))
    similarities = ops.matmul(embeddings, ops.transpose(embeddings)) / temperature

    index = ops.arange(ops.shape(labels)[0])
    labelled = is_labelled(labels)
    others = labelled[None, :] & (index[:, None] != index[None, :])
    positives = ops.cast(others & (labels[:, None] == labels[None, :]), "float32")
    # For an anchor without others the sum is meaningless, but no positive then uses it.
    log_sums = ops.logsumexp(ops.where(others, similarities, EXCLUDED), axis=1, keepdims=True)
    counts = ops.sum(positives, axis=1)  # may be 0
    anchor_losses = ops.sum(positives * (log_sums - similarities), axis=1) / ops.maximum(counts, 1)
    anchors = ops.sum(ops.cast(counts > 0, "float32"))  # may be 0
    return ops.sum(anchor_losses) / ops.maximum(anchors, 1)


class Projection(layers.Layer):
    """The projection network of Khosla et al. 2020 (section 3.1): Dense, ReLU, Dense.

    It maps a pooled embedding [batch, channels] to float32 [batch, width]. Only the contrastive
    loss uses it, and no model file contains it. Its hidden layer is as wide as the embedding, as
    in the paper (2048 of a ResNet-50); the loss normalises its output.

    Args:
        width: width of the output; 128 in the paper.
        name: name of the layer.
    """

    def __init__(self, width: int, name: str):
        super().__init__(name=name, dtype="float32")
        self.width = width

    def build(self, input_shape: tuple) -> None:
        """Make both Dense layers."""
        self.hidden = layers.Dense(input_shape[-1], "relu", dtype="float32", name="hidden")
        self.projected = layers.Dense(self.width, dtype="float32", name="projected")
        self.hidden.build(input_shape)
        self.projected.build(input_shape)

    def call(self, embedding: Any) -> Any:
        """Project the embeddings."""
        return self.projected(self.hidden(embedding))


class Contrastive(ExtraLoss):
    """The supervised contrastive loss as an extra loss.

    Args:
        weights: task -> weight of its contrastive loss.
        temperature: temperature of the loss.
        width: width of the projection.
    """

    name = "contrastive"

    def __init__(self, weights: dict[str, float], *, temperature: float, width: int = 128):
        self.weights = weights
        self.temperature = temperature
        self.width = width

    def projection(self) -> keras.layers.Layer:
        """Make a new projection."""
        return Projection(self.width, self.name)

    def __call__(self, labels: Any, vectors: Any) -> Any:
        """Compute a task's loss; arguments as in ExtraLoss."""
        return supervised_contrastive_loss(labels, vectors, temperature=self.temperature)


def contrastive_weights(spec: DataSpec) -> dict[str, float]:
    """Return task -> weight of its contrastive loss, for the tasks that have one."""
    weights = {t.name: spec.contrastive.weight * t.contrastive_weight for t in spec.tasks}
    return {task: weight for task, weight in weights.items() if weight}


def build_contrastive(spec: DataSpec) -> Contrastive | None:
    """Return the spec's contrastive loss; None where no task has one.

    Raises:
        SpecError: the spec mixes images as well.
    """
    weights = contrastive_weights(spec)
    if not weights:
        return None
    if spec.mix is not None or spec.phases.finetune.mix is not None:
        raise SpecError(
            f"{spec.place(None, 'contrastive')}: mixed images have no single class; remove mix or "
            "contrastive"
        )
    options = spec.contrastive
    return Contrastive(weights, temperature=options.temperature, width=options.width)
