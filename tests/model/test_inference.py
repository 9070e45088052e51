"""A network in other libraries: the values of Keras, in the order of the images."""

import dataclasses
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from logged import logged
from tiny_trunk import two_blocks

from multitask.data.pipeline import readable_images
from multitask.model import inference as module
from multitask.model.inference import CHUNK, CONVERTERS, FEW, Inference, fast_inference
from multitask.model.trunks import TRUNKS, build_trunk
from multitask.runtimes import choice
from multitask.runtimes.libraries import RUNTIMES
from multitask.spec import InputError, Trunk

SIZE = 32
OTHERS = tuple(CONVERTERS)
WIKIART = os.environ.get("WIKIART_DIR")


def noise(count, seed=0, size=SIZE):
    images = np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3))
    return images.astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def each_conversion_once(converted_once):
    with converted_once():
        yield


@pytest.fixture(scope="module")
def trunk():
    keras.utils.set_random_seed(3)
    network = two_blocks(None, (SIZE, SIZE, 3))
    # Not the identity, as a new BatchNorm is.
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            values = np.random.default_rng(4).uniform(0.5, 1.5, (4, *layer.gamma.shape))
            layer.set_weights(list(values))
    return network


@pytest.fixture(scope="module")
def wanted(trunk):
    """A function: images -> what Keras' `predict` gives."""
    return lambda images: trunk.predict(images, verbose=0)


@pytest.fixture(scope="module")
def loaded(trunk):
    """Library -> the trunk in it."""
    return {name: fast_inference(trunk, runtime=name, images=0) for name in RUNTIMES}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache folder, empty; runtimes are measured in no time."""
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.setattr(choice, "TURN_S", 0.0)
    return tmp_path / "cache"


def rate(monkeypatch, fastest):
    """Let one library be the fastest; returns the list of those that are measured."""
    measured = []

    def speed(infer, batch, *, seconds):
        measured.append(infer.runtime)
        return 100.0 if infer.runtime == fastest else 1.0

    monkeypatch.setattr(choice, "speed", speed)
    return measured


def keep_only(monkeypatch, name):
    """Let one library beside TensorFlow be installed: to convert for the others takes a second."""
    for other in set(OTHERS) - {name}:
        gone = dataclasses.replace(RUNTIMES[other], module="gone")
        monkeypatch.setitem(RUNTIMES, other, gone)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_values_are_those_of_keras(loaded, wanted, name):
    for count in (1, CHUNK, 2 * CHUNK + 3):
        images = noise(count)
        result, expected = loaded[name](images), wanted(images)
        assert result.dtype == np.float32
        rms = np.sqrt(np.mean(expected**2))
        np.testing.assert_allclose(result, expected, atol=1e-5 * rms, rtol=0)


def test_openvino_tells_nobody(loaded):
    """Its converter sends its maker how it is used, unless its telemetry is not installed."""
    loaded["openvino"](noise(1))
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


@pytest.mark.parametrize("name", RUNTIMES)
def test_many_batches_keep_their_order(loaded, wanted, name):
    batches = [noise(count, seed) for seed, count in enumerate((5, 32, 1, 8, 40, 7, 7, 7))]
    results = list(loaded[name].map(tf.constant(batch) for batch in batches))
    assert [len(result) for result in results] == [len(batch) for batch in batches]
    for result, batch in zip(results, batches, strict=True):
        np.testing.assert_allclose(result, wanted(batch), atol=1e-4)
    assert list(loaded[name].map([])) == []


@pytest.mark.parametrize("name", OTHERS)
def test_the_bits_of_an_image_do_not_depend_on_the_others(loaded, name):
    images = noise(3 * CHUNK + 1)
    together = loaded[name](images)
    np.testing.assert_array_equal(loaded[name](images[5:6])[0], together[5])
    np.testing.assert_array_equal(loaded[name](images[::-1]), together[::-1])
    np.testing.assert_array_equal(loaded[name](images), together)


@pytest.mark.parametrize("name", OTHERS)
def test_whoever_stops_early_leaves_nothing_running(loaded, wanted, name):
    """Neither a consumer that leaves nor a reader that fails blocks the next call."""
    results = loaded[name].map(noise(8, seed) for seed in range(100))
    next(results)
    results.close()

    def broken():
        yield noise(8)
        raise OSError("a damaged disk")

    with pytest.raises(OSError, match="a damaged disk"):
        list(loaded[name].map(broken()))
    images = noise(3, 77)
    np.testing.assert_allclose(loaded[name](images), wanted(images), atol=1e-4)


def test_weights_that_change_later_are_not_followed(trunk):
    copy = keras.models.clone_model(trunk)
    copy.set_weights(trunk.get_weights())
    converted = fast_inference(copy, runtime="onnxruntime", images=0)
    before = converted(noise(2))
    copy.set_weights([weight + 1 for weight in copy.get_weights()])
    np.testing.assert_array_equal(converted(noise(2)), before)


# === Which library ===


# Which of the other libraries it is makes no difference: each converts and is measured.
@pytest.mark.parametrize(
    ("fastest", "installed"),
    [
        ("tensorflow", {"tensorflow", "onnxruntime"}),
        ("onnxruntime", set(RUNTIMES)),
        *(
            pytest.param(name, set(RUNTIMES), marks=pytest.mark.slow)
            for name in RUNTIMES
            if name != "onnxruntime"
        ),
    ],
)
def test_many_images_take_the_fastest_which_is_remembered(
    cache, trunk, monkeypatch, fastest, installed
):
    if installed != set(RUNTIMES):
        keep_only(monkeypatch, "onnxruntime")
    measured = rate(monkeypatch, fastest)
    lines = []
    with logged(lines):
        assert fast_inference(trunk, images=FEW).runtime == fastest
    assert set(measured) == installed
    assert len(lines) == 1
    del measured[:]
    # Weights and names do not count, as they do not change the speed.
    again = two_blocks(None, (SIZE, SIZE, 3))
    assert fast_inference(again, images=FEW).runtime == fastest
    assert not measured


def test_another_size_is_measured_anew(cache, trunk, monkeypatch):
    keep_only(monkeypatch, "onnxruntime")
    measured = rate(monkeypatch, "onnxruntime")
    for network in (trunk, two_blocks(None, (48, 48, 3))):
        assert fast_inference(network, images=FEW).runtime == "onnxruntime"
        assert set(measured) == {"onnxruntime", "tensorflow"}
        del measured[:]


def test_few_images_are_not_worth_it(cache, trunk, monkeypatch):
    measured = rate(monkeypatch, "litert")
    assert type(fast_inference(trunk, images=FEW - 1)) is Inference
    assert not measured


def test_an_accelerator_keeps_the_network(cache, trunk, monkeypatch):
    monkeypatch.setattr(module, "has_accelerator", lambda: True)
    assert fast_inference(trunk, images=FEW).runtime == "tensorflow"


def test_bfloat16_stays_in_keras(cache, monkeypatch):
    measured = rate(monkeypatch, "litert")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = two_blocks(None, (SIZE, SIZE, 3))
    finally:
        keras.config.set_dtype_policy("float32")
    assert fast_inference(network, images=FEW).runtime == "tensorflow"
    assert not measured
    with pytest.raises(InputError) as caught:
        fast_inference(network, runtime="litert", images=FEW)
    assert str(caught.value) == ("features.runtime: litert: needs float32, and Keras on TensorFlow")


@pytest.mark.parametrize(
    ("name", "installed"),
    [
        ("litert", {"tensorflow", "onnxruntime"}),
        *(pytest.param(name, set(RUNTIMES) - {name}, marks=pytest.mark.slow) for name in OTHERS),
    ],
)
def test_a_library_that_is_not_installed(cache, trunk, monkeypatch, name, installed):
    if len(installed) < len(OTHERS):
        keep_only(monkeypatch, "onnxruntime")
    measured = rate(monkeypatch, name)
    gone = dataclasses.replace(RUNTIMES[name], module="gone")
    monkeypatch.setitem(RUNTIMES, name, gone)
    assert fast_inference(trunk, images=FEW).runtime != name
    assert set(measured) == installed
    with pytest.raises(InputError) as caught:
        fast_inference(trunk, runtime=name, images=FEW)
    text = str(caught.value)
    assert text.startswith(f"features.runtime: {name}: needs an extra: pip install '.[")


def test_onnx_runtime_without_its_converter_is_not_usable(cache, trunk, monkeypatch):
    without = dataclasses.replace(CONVERTERS["onnxruntime"], needs=("gone",))
    monkeypatch.setitem(CONVERTERS, "onnxruntime", without)
    with pytest.raises(InputError, match="onnxruntime: needs an extra"):
        fast_inference(trunk, runtime="onnxruntime", images=FEW)


def test_a_library_that_computes_something_else_is_not_used(cache, trunk, monkeypatch):
    """As if its conversion lost a part of the network."""
    keep_only(monkeypatch, "onnxruntime")
    wrong = two_blocks(None, (SIZE, SIZE, 3))
    write = CONVERTERS["onnxruntime"].write
    spoilt = dataclasses.replace(
        CONVERTERS["onnxruntime"],
        write=lambda function, folder: write(module._function(wrong), folder),
    )
    monkeypatch.setitem(CONVERTERS, "onnxruntime", spoilt)
    rate(monkeypatch, "onnxruntime")
    lines = []
    with logged(lines):
        assert fast_inference(trunk, images=FEW).runtime != "onnxruntime"
    assert lines[0].startswith("ONNX Runtime cannot run the model: it differs from Keras by ")
    with pytest.raises(
        InputError, match="onnxruntime: cannot run the trunk: it differs from Keras"
    ):
        fast_inference(trunk, runtime="onnxruntime", images=FEW)


def test_one_that_fails_after_it_was_chosen_leaves_keras(cache, trunk, monkeypatch):
    keep_only(monkeypatch, "onnxruntime")
    rate(monkeypatch, "onnxruntime")
    fast_inference(trunk, images=FEW)
    broken = dataclasses.replace(RUNTIMES["onnxruntime"], load=lambda *what: 1 / 0)
    monkeypatch.setitem(RUNTIMES, "onnxruntime", broken)
    lines = []
    with logged(lines):
        assert fast_inference(trunk, images=FEW).runtime == "tensorflow"
    assert lines == ["ONNX Runtime cannot run the network: division by zero"]


# === Real trunks ===

FAMILIES = ("efficientnetb0", "efficientnetb2", "efficientnetv2b0", "efficientnet_lite2",
            "convnexttiny")  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not WIKIART, reason="WIKIART_DIR names no data")
@pytest.mark.parametrize("name", FAMILIES)
def test_features_of_real_paintings_are_those_of_keras(name):
    """Of each family of trunks; where a library cannot run one, it says so and is not used."""
    assert name in TRUNKS
    keras.utils.set_random_seed(0)
    settings = Trunk(name=name, weights="none", schedule={"kind": "constant", "rate": 1.0})
    trunk = build_trunk(settings, 224)
    names = sorted(map(str, Path(WIKIART).glob("wikiart/*/*.jpg")))[:: 12_500 // 19][:19]
    (batch,) = readable_images(names, size_px=224, how="squash", batch_size=19)
    images = batch[1].numpy()
    wanted = trunk.predict(images, batch_size=19, verbose=0)
    rms, ran = np.sqrt(np.mean(wanted**2)), []
    for runtime in OTHERS:
        try:
            result = fast_inference(trunk, runtime=runtime, images=0)(images)
        except InputError:
            continue
        # A single value of a map may round a little more; what is pooled does not.
        assert np.sqrt(np.mean((result - wanted) ** 2)) <= 1e-4 * rms
        pooled, wanted_pooled = result.mean(axis=(1, 2)), wanted.mean(axis=(1, 2))
        pooled_rms = np.sqrt(np.mean(wanted_pooled**2))
        assert np.abs(pooled - wanted_pooled).max() <= 1e-4 * pooled_rms
        ran.append(runtime)
    assert len(ran) >= (1 if name == "convnexttiny" else 3)
