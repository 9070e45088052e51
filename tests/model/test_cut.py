"""Trunks in two parts: the same function, cut where one map passes."""

import functools
import re

import keras
import numpy as np
import pytest
from tiny_trunk import two_blocks

from multitask.model.cut import cut_trunk
from multitask.model.trunks import build_trunk
from multitask.spec import Trunk

SIZE = 64


@functools.cache  # no test changes a trunk
def built(name):
    keras.utils.set_random_seed(0)
    settings = Trunk(name=name, weights="none", schedule={"kind": "constant", "rate": 1.0})
    return build_trunk(settings, SIZE)


def images(count=2, size=SIZE):
    values = np.random.default_rng(0).uniform(0, 255, (count, size, size, 3))
    return values.astype(np.float32)


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        # The last frozen layer -> the last layer below the cut.
        (
            "efficientnet_lite2",
            {"block5c_add": "block5c_add", "block5d_drop": "block5c_add",
             "block5d_add": "block5d_add", "block7a_project_bn": "block7a_project_bn",
             "top_activation": "block7a_project_bn"},
        ),
        # In B0, squeeze-and-excitation leaves and joins the way within a block.
        (
            "efficientnetb0",
            {"block2b_se_excite": "block2a_project_bn", "block2b_add": "block2b_add"},
        ),
        # In ConvNeXt, the addition that ends a block is no layer.
        (
            "convnexttiny",
            {"convnext_tiny_stage_2_block_3_gelu": "add",
             "convnext_tiny_downsampling_block_0": "convnext_tiny_downsampling_block_0"},
        ),
    ],
)  # fmt: skip
def test_the_cut_is_the_last_whole_block(name, cuts):
    trunk = built(name)
    names = [layer.name for layer in trunk.layers]
    batch = images()
    wanted = trunk(batch, training=False)
    for frozen, last in cuts.items():
        cut = cut_trunk(trunk, names.index(frozen) + 1)
        assert re.sub(r"^add_\d+$", "add", cut.name) == last
        assert cut.layers <= names.index(frozen) + 1
        result = cut.above(cut.below(batch, training=False), training=False)
        np.testing.assert_allclose(result, wanted, rtol=1e-6, atol=1e-6)
    assert cut_trunk(trunk, 0) is None


def test_the_parts_share_the_layers_and_hold_each_once():
    trunk = built("efficientnet_lite2")
    cut = cut_trunk(trunk, 141)
    below, above = ({id(w) for w in part.weights} for part in (cut.below, cut.above))
    assert not below & above
    assert below | above == {id(w) for w in trunk.weights}
    assert [id(layer) for layer in cut.below.layers] == [
        id(layer) for layer in trunk.layers[: cut.layers]
    ]
    # The trunk itself stays as it was.
    assert trunk.layers[-1].name == "top_activation"
    assert keras.Model.from_config(trunk.get_config()).count_params() == trunk.count_params()


def test_gradients_above_are_those_of_the_whole_trunk():
    import tensorflow as tf

    trunk = built("efficientnet_lite2")
    cut = cut_trunk(trunk, 141)
    batch = images()

    def gradients(function, argument):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(function(argument) ** 2)
        return tape.gradient(loss, cut.above.trainable_variables)

    wanted = gradients(lambda x: trunk(x, training=False), batch)
    result = gradients(lambda x: cut.above(x, training=False), cut.below(batch, training=False))
    assert len(wanted) > 10
    for one, other in zip(result, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_the_share_is_that_of_the_multiply_adds():
    """By hand, of two blocks at 32 px: 8·8 positions of 3·3·3·6, then 2·2 of 3·3·6·12."""
    trunk = two_blocks(None, (32, 32, 3))
    names = [layer.name for layer in trunk.layers]
    cut = cut_trunk(trunk, names.index("block1a_drop") + 1)
    assert cut.name == "block1a_drop"
    first, second = 8 * 8 * 3 * 3 * 3 * 6, 2 * 2 * 3 * 3 * 6 * 12
    assert cut.share == pytest.approx(first / (first + second))


def test_no_cut_passes_through_a_residual_block():
    """Two tensors pass within it; layers of no block may each be an end."""
    inputs = x = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="one")(x)
    y = keras.layers.Conv2D(4, 3, padding="same", name="two")(x)
    y = keras.layers.Activation("relu", name="three")(y)
    x = keras.layers.Add(name="four")([x, y])
    x = keras.layers.Conv2D(5, 3, padding="same", name="five")(x)
    network = keras.Model(inputs, x)
    names = [layer.name for layer in network.layers]
    ends = [cut_trunk(network, n) for n in range(len(names) + 1)]
    assert [cut and cut.name for cut in ends] == [
        None, None, "one", "one", "one", "four", "four"
    ]  # fmt: skip
