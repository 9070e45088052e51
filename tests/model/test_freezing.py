"""Freeze depths, and freezing layer by layer."""

import keras
import numpy as np
import pytest
from trunk_weights import B0_LAYERS, SCHEDULE, SIZE, make_spec, settings

from multitask.model.trunks import (
    batchnorm_trains,
    build_trunk,
    freeze_trunk,
    frozen_count,
    group_of,
    merged_frozen_count,
)
from multitask.spec import SpecError, Trunk, load_spec

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
