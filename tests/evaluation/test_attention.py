"""Grad-CAM, against its equations in NumPy and finite differences; and its overlay."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest
import scipy.ndimage

from multitask.evaluation.attention import COLOURS, OPACITY, activation_maps, overlay
from multitask.model.network import build_network, load_network, trunk_and_heads

ROOT = Path(__file__).parents[2]
CLASSES = {
    "artist": ("a", "b"),
    "style": ("x", "y", "z"),
    "genre": ("u", "v"),
}


def shaken(model, seed=0):
    """Sample all weights, including BatchNorm's statistics, so that none is 0 or 1."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name == "moving_variance":
            weight.assign(rng.uniform(0.5, 2, weight.shape))
        elif weight.dtype == "float32" and weight.name not in ("mean", "variance"):
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


def class_activation_maps(model, batch, task, classes):
    trunk, heads = trunk_and_heads(model)
    features = trunk(batch, training=False)
    return keras.ops.convert_to_numpy(activation_maps(heads[task], features, classes))


@pytest.fixture
def network(tiny_spec, tiny_trunk):
    """A function: head -> (model, spec) with a feature map of 8 x 8 x 12 from 128 px."""

    def make(head, size=128):
        trunk = {"name": tiny_trunk, "weights": "none"}
        trunk["schedule"] = {"kind": "constant", "rate": 1e-3}
        spec = tiny_spec(of_tasks={"head": head}, image_size=size, trunk=trunk)
        return shaken(build_network(spec, CLASSES)), spec

    return make


def images(count, size=128, seed=1):
    return np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3)).astype(np.float32)


def normalised(maps):
    maps = np.maximum(maps, 0)
    highest = maps.max(axis=(1, 2), keepdims=True)
    return np.where(highest > 0, maps / np.where(highest > 0, highest, 1), 0)


def features_of(model, batch):
    return np.asarray(trunk_and_heads(model)[0](batch, training=False), np.float64)


def linear_maps(model, batch, task, classes):
    """ReLU of sum over channels of W[channel, class] A[place, channel], over its maximum."""
    kernel = np.asarray(
        trunk_and_heads(model)[1][task].get_layer(f"{task}_logits").kernel, np.float64
    )
    weights = kernel[:, classes].T
    return normalised((features_of(model, batch) * weights[:, None, None, :]).sum(axis=-1))


@pytest.mark.parametrize("task", ["style", "genre"])
def test_a_linear_head_gives_the_weighted_map(network, task):
    model, _ = network({"kind": "linear"})
    batch, classes = images(7), np.arange(7) % len(CLASSES[task])
    maps = class_activation_maps(model, batch, task, classes)
    assert (maps.dtype, maps.shape) == (np.float32, (7, 8, 8))
    expected = linear_maps(model, batch, task, classes)
    np.testing.assert_allclose(maps, expected, atol=1e-4)
    assert maps.max() == 1
    assert maps.min() == 0
    other = class_activation_maps(model, batch, task, (classes + 1) % len(CLASSES[task]))
    assert np.abs(other - maps).max() > 0.1


def test_frozen_layers_and_loading_change_nothing(network, tmp_path):
    model, spec = network({"kind": "linear"})
    batch, classes = images(3), np.array([2, 0, 1])
    expected = class_activation_maps(model, batch, "style", classes)
    model.save(tmp_path / "model.keras")
    read = load_network(tmp_path / "model.keras", spec, CLASSES)
    np.testing.assert_allclose(
        class_activation_maps(read, batch, "style", classes), expected, atol=1e-5
    )
    model.trainable = False
    before = [np.array(weight) for weight in model.weights]
    np.testing.assert_allclose(
        class_activation_maps(model, batch, "style", classes), expected, atol=1e-5
    )
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def dense_logits(head, task, features):
    """Pool, then (Dense, ReLU, BatchNorm in inference) twice, then Dense; in float64."""
    x = features.mean(axis=(1, 2))
    for block in (f"{task}_1", f"{task}_2"):
        kernel, bias = (np.asarray(w, np.float64) for w in head.get_layer(f"{block}_dense").weights)
        norm = head.get_layer(f"{block}_bn")
        gamma, beta, mean, variance = (np.asarray(w, np.float64) for w in norm.weights)
        x = np.maximum(x @ kernel + bias, 0)
        x = (x - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta
    kernel, bias = (np.asarray(w, np.float64) for w in head.get_layer(f"{task}_logits").weights)
    return x @ kernel + bias


def test_a_dense_stack_by_finite_differences(network):
    head = {"kind": "dense_stack", "units": [9, 7], "dropout": [0.5, 0.5]}
    model, _ = network(head)
    batch, classes = images(4), np.array([0, 1, 2, 1])
    features = features_of(model, batch)
    network_head = trunk_and_heads(model)[1]["style"]
    logits = dense_logits(network_head, "style", features)
    np.testing.assert_allclose(logits, network_head(features, training=False), atol=1e-3)
    weights, step = np.zeros(features.shape[::3]), 1e-6
    for channel in range(features.shape[-1]):
        # All positions at once: the mean of their gradients times their number.
        up, down = features.copy(), features.copy()
        up[..., channel] += step
        down[..., channel] -= step
        slope = dense_logits(network_head, "style", up) - dense_logits(network_head, "style", down)
        weights[:, channel] = slope[np.arange(4), classes] / (2 * step)
    expected = normalised((features * weights[:, None, None, :]).sum(axis=-1))
    maps = class_activation_maps(model, batch, "style", classes)
    np.testing.assert_allclose(maps, expected, atol=2e-4)
    assert expected.max() == 1


def test_a_gru_has_another_gradient_at_each_position(network):
    """By finite differences of the head itself, one position and channel at a time."""
    model, _ = network({"kind": "gru", "units": 4, "dropout": 0.5}, size=32)
    image = images(1, size=32)
    features = features_of(model, image)
    head = trunk_and_heads(model)[1]["genre"]
    places, step = np.array(list(np.ndindex(features.shape[1:]))), 1e-2
    many = np.repeat(features, 2 * len(places), axis=0)
    for sign, rows in ((step, slice(0, len(places))), (-step, slice(len(places), None))):
        many[rows][(np.arange(len(places)), *places.T)] += sign
    logits = np.asarray(head(many.astype(np.float32), training=False), np.float64)[:, 1]
    slopes = (logits[: len(places)] - logits[len(places) :]).reshape(features.shape) / (2 * step)
    expected = normalised((features * slopes.mean(axis=(1, 2), keepdims=True)).sum(axis=-1))
    maps = class_activation_maps(model, image, "genre", np.array([1]))
    np.testing.assert_allclose(maps, expected, atol=1e-2)


def test_the_map_is_zero_without_positive_evidence(known):
    model = known.colour_model(("warmth",))
    kernel, _bias = trunk_and_heads(model)[1]["warmth"].get_layer("warmth_logits").weights
    against = -np.abs(np.asarray(kernel))
    against[:, 1] *= -1
    kernel.assign(against)
    maps = class_activation_maps(model, images(2, size=32), "warmth", np.array([0, 1]))
    assert (maps[0] == 0).all()
    assert maps[1].max() == 1


def test_it_works_without_images(known):
    maps = class_activation_maps(
        known.colour_model(), np.zeros((0, 32, 32, 3)), "shade", np.zeros(0, int)
    )
    assert maps.shape == (0, 4, 4)


def test_a_trunk_without_a_map_is_refused():
    from multitask.model.network import connect

    image = keras.Input((8, 8, 3))
    trunk = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image), name="trunk")
    pooled = keras.Input((3,))
    head = keras.Model(pooled, keras.layers.Dense(2)(pooled), name="shade")
    model = connect(trunk, {"shade": head})
    with pytest.raises(ValueError, match="no feature map"):
        class_activation_maps(model, np.zeros((1, 8, 8, 3)), "shade", np.array([0]))


JAX = """
import sys
import numpy as np
sys.path[:0] = sys.argv[1:3]
import keras
assert keras.backend.backend() == "jax"
from multitask.evaluation.attention import activation_maps
from multitask.model.network import trunk_and_heads
trunk, heads = trunk_and_heads(keras.saving.load_model(sys.argv[3]))
given = np.load(sys.argv[4])
maps = activation_maps(heads["style"], trunk(given["images"], training=False), given["classes"])
np.save(sys.argv[5], keras.ops.convert_to_numpy(maps))
"""


def test_on_jax_the_maps_are_those_of_tensorflow(network, tmp_path):
    pytest.importorskip("jax")
    model, _ = network({"kind": "dense_stack", "units": [9, 7], "dropout": [0.5, 0.5]})
    batch, classes = images(3), np.array([0, 1, 2])
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "given.npz", images=batch, classes=classes)
    files = [tmp_path / name for name in ("model.keras", "given.npz", "maps.npy")]
    subprocess.run(
        [sys.executable, "-c", JAX, str(ROOT), str(ROOT / "tests"), *map(str, files)],
        check=True,
        timeout=120,
        env=dict(os.environ, KERAS_BACKEND="jax", JAX_PLATFORMS="cpu"),
    )
    expected = class_activation_maps(model, batch, "style", classes)
    np.testing.assert_allclose(np.load(files[-1]), expected, atol=1e-4)


# === Overlay ===


def bilinear(cam, height, width):
    """Half-pixel centres, the border repeated."""
    rows = (np.arange(height) + 0.5) * cam.shape[0] / height - 0.5
    columns = (np.arange(width) + 0.5) * cam.shape[1] / width - 0.5
    at = np.meshgrid(rows, columns, indexing="ij")
    return scipy.ndimage.map_coordinates(cam.astype(float), at, order=1, mode="nearest")


def blended(image, opacity):
    colours = np.array(matplotlib.colormaps[COLOURS](opacity))[..., :3] * 255
    share = OPACITY * opacity[..., None]
    return image * (1 - share) + colours * share


def image_and_map(height, width):
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8), rng.random((5, 5), np.float32)


def test_a_squashed_image_is_covered_completely():
    image, cam = image_and_map(41, 67)
    before = image.copy()
    coloured = overlay(image, cam)
    assert (coloured.dtype, coloured.shape) == (np.uint8, image.shape)
    # A colour table has 256 entries: the next one is at most some steps of 255 away.
    assert np.abs(coloured - blended(image, bilinear(cam, 41, 67))).max() < 3
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (50, 50), (41, 60)])
def test_a_cropped_image_is_covered_in_its_central_square(height, width):
    image, cam = image_and_map(height, width)
    coloured = overlay(image, cam, how="crop")
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    opacity = np.zeros((height, width))
    opacity[top : top + side, left : left + side] = bilinear(cam, side, side)
    assert np.abs(coloured - blended(image, opacity)).max() < 3
    np.testing.assert_array_equal(coloured[opacity == 0], image[opacity == 0])


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (50, 50)])
def test_a_padded_image_has_its_part_of_the_square(height, width):
    image, cam = image_and_map(height, width)
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    opacity = bilinear(cam, side, side)[top : top + height, left : left + width]
    coloured = overlay(image, cam, how="pad")
    assert np.abs(coloured - blended(image, opacity)).max() < 3


def test_a_map_of_zeros_leaves_the_image():
    image, cam = image_and_map(20, 30)
    np.testing.assert_array_equal(overlay(image, cam * 0), image)


@pytest.mark.parametrize(
    ("image", "cam", "how", "message"),
    [
        (np.zeros((4, 4)), np.zeros((2, 2)), "squash", "image"),
        (np.zeros((4, 4, 3)), np.zeros((2, 2)), "squash", "uint8"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 2, 2)), "squash", "cam"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2)), "skwash", 'Did you mean "squash"'),
    ],
)
def test_overlay_refuses_wrong_arguments(image, cam, how, message):
    with pytest.raises(ValueError, match=message):
        overlay(image, cam, how=how)
