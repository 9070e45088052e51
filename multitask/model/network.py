"""Connect a trunk and heads to one functional model: images in, {task: logits} out."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from multitask.model.co_occurrence import co_occurrence_of, heads_before
from multitask.model.graph import first_inputs, producer
from multitask.model.heads import build_head
from multitask.model.trunks import build_trunk, finalize_normalization, group_of
from multitask.reading import open_regular
from multitask.spec import SHARED, DataSpec, InputError

IMAGE = "image"
FEATURES = "features"
ANSWERS, VECTORS = "answers", "vectors"  # with FEATURES, the outputs of `examined_model`
PROJECTED = "projected-features"  # an output next to the tasks, whose names have no hyphen


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Build networks that compute in `float32`, or in `bfloat16` with float32 weights.

    Logits and losses are float32 in both. A saved model keeps its precision.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_network(spec: DataSpec, classes: Mapping[str, Sequence[str]]) -> keras.Model:
    """Build the model of a spec, untrained except for the trunk's weights.

    Args:
        spec: trunk, image size and the tasks' heads.
        classes: task -> class names.

    Returns:
        A model from `image` float32 [batch, size, size, 3] in 0..255 to {task: logits float32
        [batch, classes]}.

    Raises:
        SpecError, InputError: a part of the spec or the trunk's weights are wrong.
    """
    with computing_in(spec.precision):
        trunk = build_trunk(spec.trunk, spec.image_size)
        return connect(trunk, build_heads(spec, trunk.output_shape[1:], classes))


def build_heads(
    spec: DataSpec, feature_shape: tuple[int, ...], classes: Mapping[str, Sequence[str]]
) -> dict[str, keras.Model]:
    """Build each task's head, untrained, for a feature map [height, width, channels]."""
    return {
        task.name: build_head(spec, task.name, feature_shape, len(classes[task.name]))
        for task in spec.tasks
    }


class _Inferring(keras.Model):
    """A functional model that stays in inference mode when the model around it trains.

    `trunk(image, training=False)` is not enough: a functional model in training passes
    `training=True` to every layer, whatever the layer was called with.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Compute in inference mode."""
        return super().call(inputs, training=False, mask=mask)


def connect(
    trunk: keras.Model,
    heads: Mapping[str, keras.Model],
    *,
    infers: bool = False,
    projection: keras.Layer | None = None,
    messages: keras.Model | None = None,
    tasks: Sequence[str] | None = None,
) -> keras.Model:
    """Connect a trunk and heads to a functional model, which shares their layers.

    Args:
        trunk: image -> feature map.
        heads: task -> head, a model from feature map to logits.
        infers: call the trunk in inference mode even in training. A frozen trunk needs it:
            stochastic depth stays active under `trainable = False`. Such a model is for training
            and is not saved.
        projection: a layer on the pooled features, which adds the output PROJECTED.
        messages: from `build_co_occurrence`, for exactly these heads; None: no messages.
        tasks: the outputs; None: those of all heads.
    """
    image = keras.Input(trunk.input_shape[1:], name=IMAGE)
    if infers:
        trunk = _Inferring(trunk.inputs[0], trunk.outputs[0], name=trunk.name)
    features = trunk(image)
    if messages is None:
        return keras.Model(image, _outputs(features, heads, projection))
    answers = Parts(trunk, dict(heads), messages, tuple(tasks or heads)).answers(features)
    return keras.Model(image, answers)


def _outputs(
    features: Any, heads: Mapping[str, keras.Model], projection: keras.Layer | None
) -> dict[str, Any]:
    """Return the outputs of all heads, and of the projection if there is one."""
    outputs = {task: head(features) for task, head in heads.items()}
    if projection is not None:
        if len(features.shape) == 4:
            features = keras.layers.GlobalAveragePooling2D(name="projection_pool")(features)
        outputs[PROJECTED] = projection(features)
    return outputs


def from_pooled(head: keras.Model) -> keras.Model | None:
    """Return the part of a head after its pooling, with shared layers.

    None if the head does more with the feature map than pool it.
    """
    readers = [layer for layer in head.layers[1:] if layer.input is head.inputs[0]]
    if not all(isinstance(layer, keras.layers.GlobalAveragePooling2D) for layer in readers):
        return None
    return keras.Model(readers[0].output, head.outputs[0], name=head.name)


def connect_features(
    heads: Mapping[str, keras.Model], *, projection: keras.Layer | None = None
) -> keras.Model:
    """Connect heads to an input of features that the trunk has already computed.

    Its input is `features`: pooled, float32 [batch, channels], if no head needs the map.
    """
    # Read all inputs first: once called here, a layer has two inputs and no single `input`.
    pooled = {task: from_pooled(head) for task, head in heads.items()}
    used = {task: head for task, head in pooled.items() if head is not None}
    if len(used) < len(heads):
        used = dict(heads)
    shape = next(iter(used.values())).input_shape[1:]
    features = keras.Input(shape, name=FEATURES)
    return keras.Model(features, _outputs(features, used, projection))


def connect_above(
    above: keras.Model,
    heads: Mapping[str, keras.Model],
    *,
    infers: bool = False,
    projection: keras.layers.Layer | None = None,
) -> keras.Model:
    """Connect the upper part of a trunk and heads to an input of maps of the lower part.

    Args:
        above: map -> the trunk's output, as in `Cut`.
        heads: task -> head.
        infers: call the upper part in inference mode even in training.
        projection: as in `connect`.
    """
    maps = keras.Input(above.input_shape[1:], name=FEATURES)
    if infers:
        above = _Inferring(above.inputs[0], above.outputs[0], name=above.name)
    return keras.Model(maps, _outputs(above(maps), heads, projection))


@dataclass(frozen=True)
class Parts:
    """The parts of a model from `connect` or `load_network`, which share its layers.

    Attributes:
        trunk: image -> feature map.
        heads: task -> head, a model from feature map to logits; of all tasks.
        messages: from the logits of all heads to the answers, see `co_occurrence`; or None.
        tasks: the tasks that the model answers.
    """

    trunk: keras.Model
    heads: dict[str, keras.Model]
    messages: keras.Model | None
    tasks: tuple[str, ...]

    def answers(self, features: Any) -> dict[str, Any]:
        """Return task -> logits, from the trunk's output."""
        logits = {task: head(features) for task, head in self.heads.items()}
        if self.messages is not None:
            logits = dict(zip(logits, self.messages(list(logits.values())), strict=True))
        return {task: logits[task] for task in self.tasks}

    def vectors(self, features: Any) -> dict[str, Any]:
        """Return the pooled features, and the input of each task's logits; all float32."""
        return _vectors(features, {task: self.heads[task] for task in self.tasks})


def network_parts(model: keras.Model) -> Parts:
    """Return the parts of a model from `connect` or `load_network`."""
    messages = co_occurrence_of(model)
    networks = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    # Identify heads by their outputs, not by name: a task may be called `trunk`.
    if messages is None:
        task_of = {producer(output): task for task, output in model.output.items()}
    else:
        names = [logits.name.removesuffix("-logits") for logits in messages.inputs]
        task_of = dict(zip(heads_before(messages), names, strict=True))
    (trunk,) = (n for n in networks if n not in task_of and n is not messages)
    ordered = task_of if messages is not None else networks  # in the order of the messages' inputs
    heads = {task_of[network]: network for network in ordered if network in task_of}
    return Parts(trunk, heads, messages, tuple(task for task in heads if task in model.output))


def trunk_and_heads(model: keras.Model) -> tuple[keras.Model, dict[str, keras.Model]]:
    """Return the trunk of a model, and the heads of the tasks that it answers."""
    parts = network_parts(model)
    return parts.trunk, {t: head for t, head in parts.heads.items() if t in parts.tasks}


def of_tasks(model: keras.Model, tasks: Sequence[str]) -> keras.Model:
    """Return the model that answers some tasks, with shared layers and the same answers.

    It keeps the other heads if the tasks' answers depend on them.
    """
    parts = network_parts(model)
    if set(parts.tasks) == set(tasks):
        return model
    if parts.messages is None:
        return connect(parts.trunk, {task: parts.heads[task] for task in tasks})
    return connect(parts.trunk, parts.heads, messages=parts.messages, tasks=tasks)


def examined_model(model: keras.Model, *, flips: bool = False) -> keras.Model:
    """Build a model of all outputs that an evaluation needs, with one pass of the trunk.

    Args:
        model: image -> {task: logits}, made of a trunk and heads.
        flips: average the logits of the image and of its mirror image.

    Returns:
        A model from `image` to {ANSWERS: {task: logits}, VECTORS: {SHARED: the pooled
        features float32 [batch, channels], task: the input of the head's logits float32 [batch,
        width], …}, FEATURES: the trunk's output}. The vectors and the features are those of the
        image alone.
    """
    parts = network_parts(model)
    image = keras.Input(parts.trunk.input_shape[1:], name=IMAGE)
    if not flips:
        features = parts.trunk(image)
        return keras.Model(image, {**_examined(features, parts), FEATURES: features})
    # The image and its mirror image are one batch, so that a converter writes the weights once.
    both = keras.ops.concatenate([image, keras.ops.flip(image, axis=2)], axis=0)
    views = parts.trunk(both)
    features = _views_of(views)[0]
    answers = {
        task: keras.ops.mean(_views_of(logits), axis=0)
        for task, logits in parts.answers(views).items()
    }
    outputs = {ANSWERS: answers, VECTORS: parts.vectors(features), FEATURES: features}
    return keras.Model(image, outputs)


def _views_of(batch: Any) -> Any:
    """Separate the two halves of a batch: [2 n, …] -> [2, n, …]."""
    return keras.ops.reshape(batch, (2, -1, *batch.shape[1:]))


def with_flips(model: keras.Model) -> keras.Model:
    """Build a model from `image` to {task: logits}, averaged over the image and its mirror."""
    examined = examined_model(model, flips=True)
    return keras.Model(examined.input, examined.output[ANSWERS])


def examined_heads(model: keras.Model) -> keras.Model:
    """Build a model of the same outputs, without FEATURES, from the trunk's output."""
    parts = network_parts(model)
    features = keras.Input(parts.trunk.output_shape[1:], name=FEATURES)
    return keras.Model(features, _examined(features, parts))


def _examined(features: Any, parts: Parts) -> dict[str, dict[str, Any]]:
    return {ANSWERS: parts.answers(features), VECTORS: parts.vectors(features)}


def _vectors(features: Any, heads: Mapping[str, keras.Model]) -> dict[str, Any]:
    pooled = features
    if len(features.shape) == 4:
        pool = keras.layers.GlobalAveragePooling2D(dtype="float32", name="shared_pool")
        pooled = pool(features)
    vectors = {SHARED: pooled}
    for task, head in heads.items():
        (vector,) = first_inputs(head.get_layer(f"{task}_logits"))
        before = keras.Model(head.inputs[0], vector, name=f"{task}-vector")
        vectors[task] = before(features)
    return {name: keras.ops.cast(x, "float32") for name, x in vectors.items()}


def load_network(path: Path, spec: DataSpec, classes: Mapping[str, Sequence[str]]) -> keras.Model:
    """Read a `.keras` file of this program, in safe mode, and check it against the spec.

    Raises:
        InputError: not a model file, or one of other tasks, classes or image size.
    """
    try:
        open_regular(path).close()
    except FileNotFoundError:
        raise InputError(f"{path}: no such model file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        _, heads = trunk_and_heads(model)
        shapes = {task: heads[task].output_shape[-1] for task in sorted(heads)}
        size = model.input_shape[1]
    except Exception as error:  # zip, JSON, h5py and Keras each raise their own types
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: not a model file of multitask ({reason})") from None
    expected = {task: len(classes[task]) for task in sorted(spec.task_names)}
    if shapes != expected:
        raise InputError(f"{path}: its tasks and class counts are {shapes}, expected {expected}")
    if size != spec.image_size:
        raise InputError(f"{path}: made for {size} px, expected {spec.image_size} px")
    return model


def in_float32(model: keras.Model) -> keras.Model:
    """Return a float32 network with the same weights; the model itself if it is float32 already.

    Mixed precision keeps its weights in float32, so nothing is lost.
    """
    config = keras.saving.serialize_keras_object(model)
    if not _set_policy(config):
        return model
    rebuilt = keras.saving.deserialize_keras_object(config, safe_mode=True)
    rebuilt.set_weights(model.get_weights())
    finalize_normalization(trunk_and_heads(rebuilt)[0])
    return rebuilt


def _set_policy(config: Any) -> int:
    """Set every layer's policy in a configuration to float32; return how many were not."""
    if not isinstance(config, dict | list | tuple):
        return 0
    changed = sum(map(_set_policy, config.values() if isinstance(config, dict) else config))
    if isinstance(config, dict) and config.get("class_name") == "DTypePolicy":
        changed += config["config"]["name"] != "float32"
        config["config"]["name"] = "float32"
    if isinstance(config, dict) and config.get("dtype") == "bfloat16":
        # The input of a Sequential within the network, as in ConvNeXt's stem, has no policy.
        changed += 1
        config["dtype"] = "float32"
    return changed


def parameter_table(model: keras.Model) -> list[tuple[str, int, int, int, int]]:
    """Count parameters: the trunk block by block, then each head.

    Returns:
        Rows of (name, layers, layers with trainable weights, parameters, trainable parameters).
    """
    trunk, heads = trunk_and_heads(model)
    groups: dict[str, list[keras.Layer]] = {}
    for layer in trunk.layers:
        groups.setdefault(f"trunk/{group_of(layer.name)}", []).append(layer)
    groups |= {task: list(head.layers) for task, head in heads.items()}

    def size(variables: Sequence[keras.Variable]) -> int:
        return sum(int(np.prod(variable.shape)) for variable in variables)

    return [
        (
            name,
            len(layers),
            sum(bool(layer.trainable_weights) for layer in layers),
            sum(size(layer.weights) for layer in layers),
            sum(size(layer.trainable_weights) for layer in layers),
        )
        for name, layers in groups.items()
    ]
