"""Named heads: the trunk's output -> one task's logits.

A new kind is a function that is listed in HEADS. It returns the tensor before the logits, which
`build_head` adds. Its options are its keyword-only parameters.
"""

from typing import Annotated, Any

import keras
from keras import layers
from pydantic import Field, PositiveInt

from multitask.spec import DataSpec, SpecError, check_kind

Dropout = Annotated[float, Field(ge=0, lt=1)]
Units = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]

# A head is untrained at first. Its statistics must adapt within a few hundred steps; with Keras'
# momentum of .99 they do not.
BATCHNORM_MOMENTUM = 0.9


def _dense_block(x: Any, units: int, dropout: float, name: str) -> Any:
    """Dense, ReLU, BatchNorm, dropout."""
    x = layers.Dense(units, activation="relu", name=f"{name}_dense")(x)
    x = layers.BatchNormalization(momentum=BATCHNORM_MOMENTUM, name=f"{name}_bn")(x)
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


def dense_stack(
    features: Any,
    name: str,
    *,
    units: Units = (1024, 512, 256),
    dropout: tuple[Dropout, ...] = (0.3, 0.3, 0.2),
) -> Any:
    """Stack Dense layers of decreasing width, each with ReLU, BatchNorm and dropout.

    Args:
        features: the trunk's feature map [batch, height, width, channels].
        name: prefix of the layers' names.
        units: width of each layer.
        dropout: dropout rate after each layer.
    """
    if len(dropout) != len(units):
        raise ValueError(f"dropout: {len(dropout)} values for {len(units)} layers of units")
    x = _pooled(features, name)
    for index, (width, rate) in enumerate(zip(units, dropout, strict=True), start=1):
        x = _dense_block(x, width, rate, f"{name}_{index}")
    return x


def residual_se(
    features: Any,
    name: str,
    *,
    units: PositiveInt = 1536,
    residual_units: PositiveInt = 768,
    se_units: PositiveInt = 128,
    dropout: tuple[Dropout, Dropout] = (0.4, 0.3),
) -> Any:
    """A wide layer, then a residual block with squeeze-and-excitation.

    For a vector, squeeze-and-excitation (Hu et al. 2018) is a gate for each entry, computed from a
    bottleneck of all entries. The shortcut is a linear projection to the block's width.

    Args:
        features: the trunk's feature map [batch, height, width, channels].
        name: prefix of the layers' names.
        units: width of the first layer.
        residual_units: width of the block.
        se_units: width of the gates' bottleneck.
        dropout: dropout rates after the first layer and after the block.
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
    features: Any,
    name: str,
    *,
    units: PositiveInt = 256,
    bidirectional: bool = True,
    dropout: Dropout = 0.3,
) -> Any:
    """A GRU (Cho et al. 2014) over the feature map as a sequence, row by row.

    Args:
        features: the trunk's feature map [batch, height, width, channels].
        name: prefix of the layers' names.
        units: size of the GRU's state, for each direction.
        bidirectional: read the sequence from both ends.
        dropout: dropout rate after the GRU.
    """
    _, height, width, channels = features.shape
    x = layers.Reshape((height * width, channels), name=f"{name}_sequence")(features)
    reader = layers.GRU(units, name=f"{name}_gru")
    if bidirectional:
        reader = layers.Bidirectional(reader, name=f"{name}_bigru")
    return layers.Dropout(dropout, name=f"{name}_dropout")(reader(x))


def linear(features: Any, name: str, *, dropout: Dropout = 0.0) -> Any:
    """Pooled features without a hidden layer: the logits are linear in them."""
    x = _pooled(features, name)
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


HEADS = {f.__name__: f for f in (residual_se, dense_stack, gru, linear)}


def _pooled(features: Any, name: str) -> Any:
    """Pool a feature map."""
    return layers.GlobalAveragePooling2D(name=f"{name}_pool")(features)


def build_head(
    spec: DataSpec, task: str, feature_shape: tuple[int, ...], classes: int
) -> keras.Model:
    """Build one task's head as a separate model: feature map -> logits [batch, classes].

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
    # float32 for every policy: a softmax of half precision loses small probabilities.
    logits = layers.Dense(classes, dtype="float32", name=f"{task}_logits")(x)
    # No other layer name of this package, and none that Keras gives, has a hyphen.
    return keras.Model(features, logits, name=f"{task}-head")
