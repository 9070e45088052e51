"""Register a program's own heads, losses, trunks and schedules, which a spec can then name."""

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

from multitask.errors import InputError
from multitask.startup import import_tensorflow_once

F = TypeVar("F", bound=Callable[..., Any])
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_own: set[tuple[str, str]] = set()  # (kind of part, name)


def register_head(function: F, *, name: str | None = None) -> F:
    """Register a head: the trunk's feature map -> the tensor before the logits.

    Args:
        function: takes the feature map [batch, height, width, channels] and a prefix for its
            layers' names. Its keyword-only parameters are the options in a spec, checked by their
            annotations.
        name: what a spec calls it; None: the function's name.

    Returns:
        The function, so that this is also a decorator.

    Raises:
        InputError: a wrong name or signature, or the name of a part of this package.

    Example:
        >>> import multitask as mt
        >>> from keras import layers
        >>> @mt.register_head
        ... def small(features, name, *, units: int = 64):
        ...     x = layers.GlobalAveragePooling2D(name=f"{name}_pool")(features)
        ...     return layers.Dense(units, "relu", name=f"{name}_dense")(x)
        >>> spec = mt.load_spec("demo", {"task[style].head": {"kind": "small", "units": 32}})
        >>> spec.tasks[1].head.kind
        'small'
    """
    import_tensorflow_once()
    from multitask.model.heads import HEADS

    return _register("head", HEADS, function, name, ("features", "name"))


def register_loss(function: F, *, name: str | None = None) -> F:
    """Register a loss of each example.

    Args:
        function: takes labels int32 [batch] (-1: missing), logits float32 [batch, classes] and
            class weights float32 [classes]; returns float32 [batch], 0 where the label is missing.
            Options as in `register_head`.
        name: what a spec calls it; None: the function's name.

    Returns:
        The function.

    Raises:
        InputError: as in `register_head`.

    Example:
        >>> import multitask as mt
        >>> from keras import ops
        >>> @mt.register_loss
        ... def plain(labels, logits, class_weights):
        ...     log_p = ops.log_softmax(logits)
        ...     picked = ops.take_along_axis(log_p, ops.maximum(labels, 0)[:, None], axis=1)[:, 0]
        ...     return ops.where(labels < 0, 0.0, -picked)
    """
    import_tensorflow_once()
    from multitask.learning.losses import LOSSES

    return _register("loss", LOSSES, function, name, ("labels", "logits", "class_weights"))


def register_schedule(function: F, *, name: str | None = None) -> F:
    """Register a learning-rate schedule.

    Args:
        function: takes the number of steps per epoch; returns a Keras LearningRateSchedule. Options
            as in `register_head`.
        name: what a spec calls it; None: the function's name.

    Returns:
        The function.

    Raises:
        InputError: as in `register_head`.

    Example:
        >>> import multitask as mt
        >>> import keras
        >>> @mt.register_schedule
        ... def halving(steps_per_epoch, *, rate: float):
        ...     return keras.optimizers.schedules.ExponentialDecay(rate, steps_per_epoch, 0.5)
    """
    import_tensorflow_once()
    from multitask.learning.schedules import SCHEDULES

    return _register("schedule", SCHEDULES, function, name, ("steps_per_epoch",))


def register_trunk(function: F, *, name: str | None = None) -> F:
    """Register a trunk: pixels 0..255 -> feature map.

    Args:
        function: called with `input_shape=(size, size, 3)` and `weights=` (None, or "imagenet" if
            a spec asks for it); returns a Keras model from [batch, size, size, 3] in 0..255 to
            [batch, height, width, channels].
        name: what a spec calls it; None: the function's name.

    Returns:
        The function.

    Raises:
        InputError: as in `register_head`.

    Example:
        >>> import multitask as mt
        >>> import keras
        >>> @mt.register_trunk
        ... def stem(*, input_shape, weights=None):
        ...     image = keras.Input(input_shape)
        ...     x = keras.layers.Rescaling(1 / 255)(image)
        ...     return keras.Model(image, keras.layers.Conv2D(8, 3, strides=4)(x))
    """
    import_tensorflow_once()
    from multitask.model.trunks import TRUNKS

    return _register("trunk", TRUNKS, function, name, ())


def _register(
    part: str,
    registry: dict[str, Any],
    function: F,
    name: str | None,
    positional: tuple[str, ...],
) -> F:
    if not callable(function):
        raise InputError(f"{type(function).__name__}: expected a function", field="function")
    name = function.__name__ if name is None else name
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r}: expected lower-case letters, digits and underscores", field="name"
        )
    if name in registry and (part, name) not in _own:
        raise InputError(f"{name!r}: is a {part} of multitask; choose another name", field="name")
    parameters = inspect.signature(function).parameters.values()
    given = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(given) != len(positional):
        wanted = f"({', '.join((*positional, '*', '…'))})"
        raise InputError(f"{name}: a {part} is a function {wanted}", field="function")
    if part != "trunk":
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.annotation is parameter.empty:
                raise InputError(
                    f"{name}: the option {parameter.name!r} needs a type annotation, which checks "
                    "its values",
                    field="function",
                )
    registry[name] = function
    _own.add((part, name))
    return function
