"""Trunk + heads -> one functional model: pictures in, {task: logits} out."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from multitask.model.heads import build_head
from multitask.model.trunks import build_trunk, finalize_normalization, group_of
from multitask.reading import open_regular
from multitask.spec import SHARED, DataSpec, InputError

IMAGE = "image"
FEATURES = "features"
ANSWERS, VECTORS = "answers", "vectors"  # with FEATURES, what an examined model gives
EMBEDDING = "contrastive-embedding"  # beside the tasks, whose names have no hyphen


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Within it networks are built to compute in `float32`, or in `bfloat16` with float32 weights.

    Logits and losses are float32 in both. A saved model remembers what it computes in.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_network(spec: DataSpec, classes: Mapping[str, Sequence[str]]) -> keras.Model:
    """The one model of a spec, untrained but for the trunk's weights.

    Args:
        spec: trunk, image size and the tasks' heads.
        classes: task -> class names.

    Returns:
        A model from `image` float32 [batch, size, size, 3] in 0..255 to {task: logits float32
        [batch, classes]}.

    Raises:
        SpecError, InputError: a part of the spec, or the trunk's weights.
    """
    with computing_in(spec.precision):
        trunk = build_trunk(spec.trunk, spec.image_size)
        return connect(trunk, build_heads(spec, trunk.output_shape[1:], classes))


def build_heads(
    spec: DataSpec, feature_shape: tuple[int, ...], classes: Mapping[str, Sequence[str]]
) -> dict[str, keras.Model]:
    """Task -> its head, untrained, for a feature map [height, width, channels]."""
    return {
        task.name: build_head(spec, task.name, feature_shape, len(classes[task.name]))
        for task in spec.tasks
    }


class _Inferring(keras.Model):
    """A functional model that is in inference mode, whatever the mode of the model around it.

    `trunk(image, training=False)` is not enough: a functional model in training hands its own
    `training=True` to every layer, over what the layer was called with.
    """

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)


def connect(
    trunk: keras.Model,
    heads: Mapping[str, keras.Model],
    *,
    trunk_infers: bool = False,
    projection: keras.Layer | None = None,
) -> keras.Model:
    """The functional model over a trunk and heads, which it shares with any other made of them.

    Args:
        trunk: image -> feature map.
        heads: task -> feature map -> logits.
        trunk_infers: call the trunk in inference mode even in training. A frozen trunk needs it:
            stochastic depth stays active under `trainable = False`. Such a model is for training
            and is not saved.
        projection: of the pooled features, for a loss of its own: one more output, EMBEDDING.
    """
    # === Functional model ===
    image = keras.Input(trunk.input_shape[1:], name=IMAGE)
    if trunk_infers:
        trunk = _Inferring(trunk.inputs[0], trunk.outputs[0], name=trunk.name)
    features = trunk(image)
    return keras.Model(image, _outputs(features, heads, projection))


def _outputs(features, heads: Mapping[str, keras.Model], projection: keras.Layer | None) -> dict:
    outputs = {task: head(features) for task, head in heads.items()}
    if projection is not None:
        if len(features.shape) == 4:
            features = keras.layers.GlobalAveragePooling2D(name="projection_pool")(features)
        outputs[EMBEDDING] = projection(features)
    return outputs


def from_pooled(head: keras.Model) -> keras.Model | None:
    """The part of a head behind its pooling, with its layers shared; None where it has more to
    do with the feature map than to pool it."""
    readers = [layer for layer in head.layers[1:] if layer.input is head.inputs[0]]
    if not all(isinstance(layer, keras.layers.GlobalAveragePooling2D) for layer in readers):
        return None
    return keras.Model(readers[0].output, head.outputs[0], name=head.name)


def connect_features(
    heads: Mapping[str, keras.Model], *, projection: keras.Layer | None = None
) -> keras.Model:
    """The heads alone, which it shares, over features that the trunk gave before.

    Its input is `features`: pooled, float32 [batch, channels], where no head needs the map.
    """
    # From the first call on, a layer has two inputs and no one `input`; ask all before.
    behind = {task: from_pooled(head) for task, head in heads.items()}
    if None in behind.values():
        behind = heads
    shape = next(iter(behind.values())).input_shape[1:]
    features = keras.Input(shape, name=FEATURES)
    return keras.Model(features, _outputs(features, behind, projection))


def parts(model: keras.Model) -> tuple[keras.Model, dict[str, keras.Model]]:
    """The trunk and the heads of a model that `connect` made or `load_network` read."""
    # By what they are connected to: a layer's name says nothing, a task may be called `trunk`.
    task_of = {output._keras_history.operation: task for task, output in model.output.items()}
    networks = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    (trunk,) = (network for network in networks if network not in task_of)
    return trunk, {task_of[network]: network for network in networks if network in task_of}


def embedding_model(model: keras.Model, tasks: Sequence[str] | None = None) -> keras.Model:
    """What the tasks' answers are made of, in one pass of the trunk.

    Args:
        model: that `connect` made or `load_network` read; its layers are shared.
        tasks: which; None: all.

    Returns:
        A model from `image` to {SHARED: the pooled features float32 [batch, channels], task: the
        input of the head's logits float32 [batch, width], …}.
    """
    trunk, heads = parts(model)
    image = keras.Input(trunk.input_shape[1:], name=IMAGE)
    heads = {task: heads[task] for task in (heads if tasks is None else tasks)}
    return keras.Model(image, _vectors(trunk(image), heads))


def examined_model(model: keras.Model) -> keras.Model:
    """All that an evaluation wants of a picture, in one pass of the trunk.

    Returns:
        A model from `image` to {ANSWERS: {task: logits}, VECTORS: as `embedding_model` gives them,
        FEATURES: the trunk's output}.
    """
    trunk, heads = parts(model)
    image = keras.Input(trunk.input_shape[1:], name=IMAGE)
    features = trunk(image)
    found = {
        ANSWERS: {task: head(features) for task, head in heads.items()},
        VECTORS: _vectors(features, heads),
        FEATURES: features,
    }
    return keras.Model(image, found)


def _vectors(features, heads: Mapping[str, keras.Model]) -> dict:
    pooled = features
    if len(features.shape) == 4:
        pool = keras.layers.GlobalAveragePooling2D(dtype="float32", name="shared_pool")
        pooled = pool(features)
    found = {SHARED: pooled}
    for task, head in heads.items():
        # A layer's first node is the one that it has in the head.
        (behind,) = head.get_layer(f"{task}_logits")._inbound_nodes[0].input_tensors
        before = keras.Model(head.inputs[0], behind, name=f"{task}-vector")
        found[task] = before(features)
    return {name: keras.ops.cast(x, "float32") for name, x in found.items()}


def load_network(path: Path, spec: DataSpec, classes: Mapping[str, Sequence[str]]) -> keras.Model:
    """Read a `.keras` file of ours, in safe mode, and check that it fits.

    Raises:
        InputError: no model file, or one of other tasks, classes or image size.
    """
    try:
        open_regular(path).close()
    except FileNotFoundError:
        raise InputError(f"{path}: no such model file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        _, heads = parts(model)
        shapes = {task: heads[task].output_shape[-1] for task in sorted(heads)}
        size = model.input_shape[1]
    except Exception as error:  # zip, JSON, h5py and Keras each raise kinds of their own
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: not a model file of multitask ({reason})") from None
    wanted = {task: len(classes[task]) for task in sorted(spec.task_names)}
    if shapes != wanted:
        raise InputError(f"{path}: its tasks and class counts are {shapes}, asked are {wanted}")
    if size != spec.image_size:
        raise InputError(f"{path}: made for {size} px, asked are {spec.image_size} px")
    return model


def in_float32(model: keras.Model) -> keras.Model:
    """A network that computes in float32, with the same weights; itself where it does already.

    Mixed precision keeps its weights in float32, so nothing is lost.
    """
    config = keras.saving.serialize_keras_object(model)
    if not _set_policy(config):
        return model
    rebuilt = keras.saving.deserialize_keras_object(config, safe_mode=True)
    rebuilt.set_weights(model.get_weights())
    finalize_normalization(parts(rebuilt)[0])
    return rebuilt


def _set_policy(config) -> int:
    """Set every layer's policy in a configuration to float32; how many were another."""
    if not isinstance(config, dict | list | tuple):
        return 0
    changed = sum(map(_set_policy, config.values() if isinstance(config, dict) else config))
    if isinstance(config, dict) and config.get("class_name") == "DTypePolicy":
        changed += config["config"]["name"] != "float32"
        config["config"]["name"] = "float32"
    return changed


def parameter_table(model: keras.Model) -> list[tuple[str, int, int, int, int]]:
    """What is trainable: (part, layers, layers with trainable weights, parameters, trainable).

    The trunk block by block, then each head.
    """
    trunk, heads = parts(model)
    groups: dict[str, list[keras.Layer]] = {}
    for layer in trunk.layers:
        groups.setdefault(f"trunk/{group_of(layer.name)}", []).append(layer)
    groups |= {task: list(head.layers) for task, head in heads.items()}

    def size(variables) -> int:
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
