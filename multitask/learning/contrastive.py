"""Supervised contrastive learning: pictures of one class close together in the embedding."""

import keras
from keras import layers, ops

from multitask.spec import MISSING

NOT_AMONG = -1e9  # exp of it is 0, and unlike -inf it has a gradient


def supervised_contrastive_loss(labels, embeddings, *, temperature: float):
    """L_out of Khosla et al. 2020 (eq. 2), as a mean over the anchors.

    An anchor's positives are the other examples of its class, its negatives those of other
    classes; all are of this batch (under data parallelism: of this replica's share of it). An
    example without a label is neither anchor nor positive nor negative.

    Args:
        labels: int32 [batch]; MISSING (-1) where the task has no label.
        embeddings: float32 [batch, width], of any length: they are normalised here.
        temperature: tau, > 0; what the cosines are divided by.

    Returns:
        float32 scalar, nats: the mean over the anchors that have a positive; exactly 0, with a
        gradient of 0, where none has.
    """
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    embeddings = ops.cast(embeddings, "float32")
    squares = ops.sum(ops.square(embeddings), axis=-1, keepdims=True)
    # The bound stands below the root, whose slope at 0 is infinite.
    embeddings = embeddings / ops.sqrt(ops.maximum(squares, 1e-12))
    similarities = ops.matmul(embeddings, ops.transpose(embeddings)) / temperature

    index = ops.arange(ops.shape(labels)[0])
    labelled = labels != MISSING
    others = labelled[None, :] & (index[:, None] != index[None, :])
    positives = ops.cast(others & (labels[:, None] == labels[None, :]), "float32")
    # An anchor without others gets a sum of nothing here; it has no positives that could use it.
    log_sums = ops.logsumexp(ops.where(others, similarities, NOT_AMONG), axis=1, keepdims=True)
    counts = ops.sum(positives, axis=1)  # may be 0
    of_anchors = ops.sum(positives * (log_sums - similarities), axis=1) / ops.maximum(counts, 1)
    anchors = ops.sum(ops.cast(counts > 0, "float32"))  # may be 0
    return ops.sum(of_anchors) / ops.maximum(anchors, 1)


class _Projection(layers.Layer):
    def __init__(self, width: int, name: str):
        super().__init__(name=name, dtype="float32")
        self.width = width

    def build(self, input_shape):
        self.hidden = layers.Dense(input_shape[-1], "relu", dtype="float32", name="hidden")
        self.projected = layers.Dense(self.width, dtype="float32", name="projected")
        self.hidden.build(input_shape)
        self.projected.build(input_shape)

    def call(self, embedding):
        return self.projected(self.hidden(embedding))


def projection(width: int, name: str) -> keras.layers.Layer:
    """The projection network of Khosla et al. 2020 (section 3.1): Dense, ReLU, Dense.

    It is for the contrastive loss alone and is thrown away after training. Its hidden layer is
    as wide as the embedding, as in the paper (2048 of a ResNet-50); the loss normalises what
    comes out.

    Args:
        width: of the output; 128 in the paper.
        name: of the layer.

    Returns:
        A layer from a pooled embedding [batch, channels] to float32 [batch, width].
    """
    return _Projection(width, name)
