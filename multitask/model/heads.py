"""Named heads: the trunk's output -> one task's logits. A new kind is a function and a line in
HEADS; what it may be told are its keyword-only parameters."""

from typing import Annotated

import keras
from keras import layers
from pydantic import Field, PositiveInt

from multitask.spec import DataSpec, SpecError, check_kind

Dropout = Annotated[float, Field(ge=0, lt=1)]
Units = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]

# A head starts from nothing. Its statistics must follow within some hundred steps, which
# Keras' momentum of .99 does not.
BATCHNORM_MOMENTUM = 0.9


def _dense_block(x, units: int, dropout: float, name: str):
    """Dense, ReLU, BatchNorm, dropout."""
    x = layers.Dense(units, activation="relu", name=f"{name}_dense")(x)
    x = layers.BatchNormalization(momentum=BATCHNORM_MOMENTUM, name=f"{name}_bn")(x)
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


def dense_stack(
    features,
    name: str,
    *,
    units: Units = (1024, 512, 256),
    dropout: tuple[Dropout, ...] = (0.3, 0.3, 0.2),
):
    """Dense layers of falling width, each with ReLU, BatchNorm and dropout.

    Args:
        features: the trunk's feature map [batch, height, width, channels].
        name: prefix of the layers' names.
        units: width of each layer.
        dropout: one each.
    """
    if len(dropout) != len(units):
        raise ValueError(f"dropout: {len(dropout)} values for {len(units)} layers of units")
    x = _pooled(features, name)
    for index, (width, rate) in enumerate(zip(units, dropout, strict=True), start=1):
        x = _dense_block(x, width, rate, f"{name}_{index}")
    return x


def residual_se(
    features,
    name: str,
    *,
    units: PositiveInt = 1536,
    residual_units: PositiveInt = 768,
    se_units: PositiveInt = 128,
    dropout: tuple[Dropout, Dropout] = (0.4, 0.3),
):
    """A wide layer, then a residual block with squeeze-and-excitation.

    The excitation (Hu et al. 2018) of a vector: a gate for each of its entries, from a
    bottleneck of them all. The shortcut is a linear projection to the block's width.

    Args:
        features: the trunk's feature map [batch, height, width, channels].
        name: prefix of the layers' names.
        units: width of the first layer.
        residual_units: width of the block.
        se_units: width of the gates' bottleneck.
        dropout: after the first layer and after the block.
    """
    wide = _dense_block(_pooled(features, name), units, dropout[0], f"{name}_wide")
    x = _dense_block(wide, residual_units, 0, f"{name}_residual")
    gate = layers.Dense(se_units, activation="relu", name=f"{name}_se_squeeze")(x)
    gate = layers.Dense(residual_units, activation="sigmoid", name=f"{name}_se_excite")(gate)
    x = layers.Multiply(name=f"{name}_se_scale")([x, gate])
    shortcut = layers.Dense(residual_units, name=f"{name}_shortcut")(wide)
    x = layers.Add(name=f"{name}_residual_add")([x, shortcut])
    x = layers.Activation("relu", name=f"{name}_residual_relu")(x)
    return layers.Dropout(dropout[1], name=f"{name}_residual_dropout")(x)


def gru(
    features,
    name: str,
    *,
    units: PositiveInt = 256,
    bidirectional: bool = True,
    dropout: Dropout = 0.3,
):
    """The feature map read as a sequence, row by row, by a GRU (Cho et al. 2014).

    Args:
        features: the trunk's feature map [batch, height, width, channels].
        name: prefix of the layers' names.
        units: the GRU's state, each way.
        bidirectional: read it from both ends.
        dropout: after the GRU.
    """
    _, height, width, channels = features.shape
    x = layers.Reshape((height * width, channels), name=f"{name}_sequence")(features)
    reader = layers.GRU(units, name=f"{name}_gru")
    if bidirectional:
        reader = layers.Bidirectional(reader, name=f"{name}_bigru")
    return layers.Dropout(dropout, name=f"{name}_dropout")(reader(x))


def linear(features, name: str, *, dropout: Dropout = 0.0):
    """Nothing but the logits' own layer, on the pooled features."""
    x = _pooled(features, name)
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


HEADS = {f.__name__: f for f in (residual_se, dense_stack, gru, linear)}


def _pooled(features, name: str):
    return layers.GlobalAveragePooling2D(name=f"{name}_pool")(features)


def build_head(spec: DataSpec, task: str, feature_shape: tuple, classes: int) -> keras.Model:
    """One task's head as a model of its own: feature map -> logits [batch, classes].

    Raises:
        SpecError: unknown kind or option, with its place.
    """
    head = spec.tasks[spec.task_names.index(task)].head
    place = spec.place(task, "head")
    options = check_kind(head, HEADS, place=place)
    features = keras.Input(feature_shape, name=f"{task}_features")
    try:
        x = HEADS[head.kind](features, task, **options)
    except ValueError as error:
        raise SpecError(f"{place}.{error}") from None
    # float32 whatever the policy: a softmax of half precision loses the small classes.
    logits = layers.Dense(classes, dtype="float32", name=f"{task}_logits")(x)
    # No layer of ours, and none that Keras names, has a hyphen.
    return keras.Model(features, logits, name=f"{task}-head")
