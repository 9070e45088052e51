"""Trunks of other families: their weights, options, blocks and freezing."""

import keras
import numpy as np
import pytest
from keras.src.applications import efficientnet
from trunk_weights import SIZE, features, randomised, settings, write_legacy

from multitask.model.trunks import (
    IMAGENET_MEAN,
    IMAGENET_STDDEV,
    TRUNKS,
    build_trunk,
    freeze_trunk,
    frozen_count,
    group_of,
)
from multitask.spec import SpecError


def test_every_name_is_the_network_of_that_name():
    theirs = {
        **{f"efficientnetb{i}": f"EfficientNetB{i}" for i in range(8)},
        "efficientnetv2b0": "EfficientNetV2B0",
        "efficientnetv2b1": "EfficientNetV2B1",
        "efficientnetv2b2": "EfficientNetV2B2",
        "efficientnetv2b3": "EfficientNetV2B3",
        "efficientnetv2s": "EfficientNetV2S",
        "efficientnetv2m": "EfficientNetV2M",
        "efficientnetv2l": "EfficientNetV2L",
        "convnexttiny": "ConvNeXtTiny",
        "convnextsmall": "ConvNeXtSmall",
        "convnextbase": "ConvNeXtBase",
        "convnextlarge": "ConvNeXtLarge",
        "convnextxlarge": "ConvNeXtXLarge",
    }
    assert set(TRUNKS) == {*theirs, "efficientnet_lite2"}
    for name, keras_name in theirs.items():
        assert TRUNKS[name].func is getattr(keras.applications, keras_name)
        assert TRUNKS[name].keywords == {"include_top": False}


# Name -> what keras.applications makes, and the layer whose output the first convolution takes.
OTHERS = {
    "efficientnetv2b0": (keras.applications.EfficientNetV2B0, "normalization"),
    "convnexttiny": (keras.applications.ConvNeXtTiny, "convnext_tiny_prestem_normalization"),
}


@pytest.fixture(scope="module")
def others(images, tmp_path_factory):
    """Name -> (a network of Keras', its weights as a file, the trunk of `imagenet`, the features
    that Keras' network gives)."""
    made = {}
    for name, (make, _) in OTHERS.items():
        network = randomised(make)
        path = write_legacy(tmp_path_factory.mktemp(name) / "notop.h5", network)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(efficientnet.file_utils, "get_file", lambda *_, p=path, **__: str(p))
            trunk = build_trunk(settings("imagenet", name), SIZE)
        made[name] = (network, path, trunk, features(network, images))
    return made


@pytest.fixture(scope="module")
def trunk_of(others):
    """Name -> trunk, of every family but the first."""
    lite = build_trunk(settings("none", "efficientnet_lite2"), SIZE)
    return {name: made[2] for name, made in others.items()} | {"efficientnet_lite2": lite}


def described(trunk):
    """Kind and name of every layer, but for numbers that Keras gives."""
    return [(type(x).__name__, x.name.rstrip("_0123456789")) for x in trunk.layers]


@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_the_other_families(name, others, images):
    """All three kinds give the network that Keras makes, which takes 0..255 by itself."""
    network, path, imagenet, wanted = others[name]
    assert len(wanted) == len(images)
    assert wanted.std() > 1e-3
    np.testing.assert_array_equal(features(imagenet, images), wanted)
    from_file = build_trunk(settings(path, name), SIZE)
    np.testing.assert_array_equal(features(from_file, images), wanted)
    untrained = build_trunk(settings("none", name), SIZE)
    for trunk in (imagenet, from_file, untrained):
        assert described(trunk) == described(network)
        assert trunk.name == "trunk"
    assert not np.allclose(features(untrained, images), wanted, rtol=0.1)


@pytest.mark.parametrize("name", OTHERS)
def test_pixels_of_the_other_families(name, others, images):
    """Normalised by the ImageNet statistics, inside the network."""
    trunk = others[name][2]
    layer = next(x for x in trunk.layers if x.name.startswith(OTHERS[name][1]))
    want = (images.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STDDEV
    got = keras.Model(trunk.input, layer.output)(images)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def rates(trunk):
    return {x.name: x.rate for x in trunk.layers if isinstance(x, keras.layers.Dropout)}


def test_settings_of_efficientnetv2(others, images, made_once):
    """Rates rise linearly over the blocks; Keras' own go to .2 of a block after the last."""
    network, path, _, wanted = others["efficientnetv2b0"]
    chosen = settings(path, "efficientnetv2b0", batchnorm_momentum=0.8, stochastic_depth=0.5)
    with made_once("efficientnetv2b0", network):
        trunk = build_trunk(chosen, SIZE)
    assert trunk is not network
    np.testing.assert_array_equal(features(trunk, images), wanted)
    norms = [x for x in trunk.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {x.momentum for x in norms} == {0.8}
    repeats = [1, 2, 2, 3, 5, 8]  # of B0's six stages
    blocks = [f"block{i}{'abcdefgh'[j]}" for i, n in enumerate(repeats, 1) for j in range(n)]
    rising = {f"{x}_drop": 0.5 * i / 20 for i, x in enumerate(blocks) if x[-1] != "a"}
    assert rates(trunk) == pytest.approx(rising)


@pytest.fixture(scope="module")
def dropping(others, made_once):
    """ConvNeXt with stochastic depth, of the weights that Keras fetches; EfficientNetV2 above has
    them of a file."""
    with made_once("convnexttiny", others["convnexttiny"][0]):
        return build_trunk(settings("imagenet", "convnexttiny", stochastic_depth=0.5), SIZE)


def test_stochastic_depth_of_convnext(others, dropping, images):
    """The paper's rule: linear from 0 for the first block to the rate for the last of 18."""
    network, _, _, wanted = others["convnexttiny"]
    np.testing.assert_array_equal(features(dropping, images), wanted)
    names = [f"stage_{i}_block_{j}" for i, n in enumerate([3, 3, 9, 3]) for j in range(n)]
    rising = {
        f"convnext_tiny_{name}_stochastic_depth": rate
        for name, rate in zip(names, np.linspace(0, 0.5, 18), strict=True)
    }
    assert rates(dropping) == pytest.approx(rising)
    assert rates(network) == {}
    assert len(dropping.layers) == len(network.layers)


def test_convnext_drops_whole_paths_of_single_examples(dropping):
    """Of the last block at rate .5: an example keeps twice its branch, or nothing of it."""
    drop = dropping.get_layer("convnext_tiny_stage_3_block_2_stochastic_depth")
    branch = np.random.default_rng(0).normal(size=(64, 2, 2, 768)).astype(np.float32)
    dropped = np.asarray(drop(branch, training=True))
    kept = dropped.any(axis=(1, 2, 3))
    assert 16 < kept.sum() < 48
    np.testing.assert_allclose(dropped[kept], 2 * branch[kept], rtol=1e-6)
    assert not dropped[~kept].any()
    np.testing.assert_array_equal(drop(branch, training=False), branch)


PARTS = {
    "efficientnetv2b0": ["input", "stem", *[f"block{i}" for i in range(1, 7)], "top"],
    "convnexttiny": ["input", "stem", *[f"stage_{i}" for i in range(4)], "top"],
    "efficientnet_lite2": ["input", "stem", *[f"block{i}" for i in range(1, 8)], "top"],
}


@pytest.mark.parametrize("name", PARTS)
def test_every_layer_has_a_part(name, trunk_of):
    """A few parts, one after the other; before the stem, what normalises."""
    layers = trunk_of[name].layers
    groups = [group_of(layer.name) for layer in layers]
    assert list(dict.fromkeys(groups)) == PARTS[name]
    assert groups == sorted(groups, key=PARTS[name].index)
    inputs = {type(x).__name__ for x in layers if group_of(x.name) == "input"}
    assert inputs <= {"InputLayer", "Rescaling", "Normalization"}


@pytest.mark.parametrize(
    ("name", "depth", "last"),
    [
        ("efficientnetv2b0", "stem", "stem_activation"),
        ("efficientnetv2b0", "block2", "block2b_add"),
        ("efficientnetv2b0", "block6a", "block6a_project_bn"),
        ("efficientnetv2b0", "top", "top_activation"),
        ("convnexttiny", "stem", "convnext_tiny_stem"),
        ("convnexttiny", "stage_0", "convnext_tiny_stage_0_block_2_identity"),
        ("convnexttiny", "stage_2_block_0", "convnext_tiny_stage_2_block_0_identity"),
        ("convnexttiny", "downsampling_block_1", "convnext_tiny_downsampling_block_1"),
        ("convnexttiny", "stage_3", "convnext_tiny_stage_3_block_2_identity"),
        ("efficientnet_lite2", "block1", "block1a_project_bn"),
        ("efficientnet_lite2", "block6", "block6e_add"),
        ("efficientnet_lite2", "top", "top_activation"),
    ],
)
def test_blocks_of_the_other_families(name, depth, last, trunk_of):
    names = [layer.name for layer in trunk_of[name].layers]
    assert names[frozen_count(depth, names, place="x") - 1] == last


def test_unknown_blocks_of_convnext(others):
    names = [layer.name for layer in others["convnexttiny"][2].layers]
    assert frozen_count("top", names, place="x") == len(names)
    for unknown in ("stage", "stage_4", "stage_0_block", "block1", "convnext", "convnext_tiny"):
        with pytest.raises(SpecError, match="Expected N, -N, none, all, or one of: stage_0, sta"):
            frozen_count(unknown, names, place="x")


def leaves(layer):
    """A layer, or what a nested model holds."""
    inner = getattr(layer, "layers", None)
    return [leaf for x in inner for leaf in leaves(x)] if inner else [layer]


@pytest.mark.parametrize("bn_trains", [False, True])
@pytest.mark.parametrize("part", [2, 4, -1])
@pytest.mark.parametrize("name", PARTS)
def test_freezing_the_other_families(name, part, bn_trains, trunk_of):
    other = trunk_of[name]
    names = [layer.name for layer in other.layers]
    depth = PARTS[name][part]
    frozen = frozen_count(depth, names, place="x")
    freeze_trunk(other, len(names), batchnorm_trains=True)  # whatever was before
    assert other.trainable_variables == []
    freeze_trunk(other, frozen, batchnorm_trains=bn_trains)
    trained = set()
    for index, layer in enumerate(other.layers):
        for leaf in leaves(layer):
            is_batchnorm = isinstance(leaf, keras.layers.BatchNormalization)
            wanted = index >= frozen and (bn_trains or not is_batchnorm)
            assert leaf.trainable == wanted, leaf.name
            parameters = [w for w in leaf.weights if not w.name.startswith("moving_")]
            assert {id(w) for w in leaf.trainable_weights} == (
                {id(w) for w in parameters} if wanted else set()
            )
            trained |= {id(w) for w in leaf.trainable_weights}
    assert {id(w) for w in other.trainable_variables} == trained
    assert bool(trained) == (depth != "top")
