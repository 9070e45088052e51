"""Heads layer by layer, and what they compute against NumPy."""

import itertools

import keras
import numpy as np
import pytest
from specs import spec_of

from multitask.model.heads import HEADS, build_head
from multitask.spec import SpecError, load_spec

MAP = (7, 7, 1408)  # of EfficientNetB2 at 224 px


def make_spec(**head):
    return spec_of("shape", {"name": "colour", "head": head})


def built(shape=(3, 2, 5), classes=4, **head):
    return build_head(make_spec(**head), "colour", shape, classes)


def shaken(model, seed=0):
    """The model with weights that are all different, its BatchNorm's statistics too."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        low = 0.5 if "variance" in weight.path else -1
        weight.assign(rng.uniform(low, 1.5, weight.shape))
    return model


def weights_of(model):
    """layer name -> {weight name: float64 array}."""
    return {
        layer.name: {w.name: np.asarray(w, np.float64) for w in layer.weights}
        for layer in model.layers
    }


def dense(x, w):
    return x @ w["kernel"] + w["bias"]


def batchnorm(x, w):
    scale = w["gamma"] / np.sqrt(w["moving_variance"] + 1e-3)
    return (x - w["moving_mean"]) * scale + w["beta"]


def relu(x):
    return np.maximum(x, 0)


def drawn_map(shape, seed=1):
    return np.random.default_rng(seed).normal(size=(6, *shape)).astype(np.float32)


def described(model):
    """One word a layer, in order."""
    words = []
    for layer in model.layers:
        match layer:
            case keras.layers.InputLayer():
                continue
            case keras.layers.Dense():
                words.append(f"dense {layer.units} {layer.activation.__name__}")
            case keras.layers.Dropout():
                words.append(f"dropout {layer.rate:g}")
            case keras.layers.Activation():
                words.append(layer.activation.__name__)
            case _:
                words.append(type(layer).__name__)
    return words


# === The shipped heads ===


@pytest.mark.parametrize("task", ["style", "genre"])
def test_dense_stack_of_the_shipped_spec(task):
    classes = {"style": 27, "genre": 10}[task]
    rates = {"style": (0.3, 0.3, 0.2), "genre": (0.3, 0.25, 0.2)}[task]
    head = build_head(load_spec("wikiart"), task, MAP, classes)
    want = ["GlobalAveragePooling2D"]
    for units, rate in zip((1024, 512, 256), rates, strict=True):
        want += [f"dense {units} relu", "BatchNormalization", f"dropout {rate:g}"]
    assert described(head) == [*want, f"dense {classes} linear"]
    widths = [1408, 1024, 512, 256]
    dense_sizes = [a * b + b for a, b in itertools.pairwise(widths)]
    assert head.count_params() == sum(dense_sizes) + 4 * sum(widths[1:]) + 256 * classes + classes


def test_residual_se_of_the_shipped_spec():
    head = build_head(load_spec("wikiart"), "artist", MAP, 23)
    layers = {layer.name: layer for layer in head.layers}
    assert sorted(described(head)) == sorted(
        [
            "GlobalAveragePooling2D",
            "dense 1536 relu",
            "BatchNormalization",
            "dropout 0.4",
            "dense 768 relu",
            "BatchNormalization",
            "dense 128 relu",
            "dense 768 sigmoid",
            "Multiply",
            "dense 768 linear",
            "Add",
            "relu",
            "dropout 0.3",
            "dense 23 linear",
        ]
    )
    assert layers["artist_wide_dropout"].rate == 0.4
    assert layers["artist_residual_dropout"].rate == 0.3
    sizes = [(1408, 1536), (1536, 768), (768, 128), (128, 768), (1536, 768), (768, 23)]
    assert head.count_params() == sum(a * b + b for a, b in sizes) + 4 * (1536 + 768)


@pytest.mark.parametrize(("task", "classes"), [("artist", 23), ("style", 27), ("genre", 10)])
def test_logits_of_the_shipped_heads(task, classes):
    head = build_head(load_spec("wikiart"), task, (2, 2, 8), classes)
    assert head.name == f"{task}-head"
    assert head.output_shape == (None, classes)
    assert head.layers[-1].name == f"{task}_logits"
    for layer in head.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert layer.momentum == 0.9


def test_logits_are_float32_under_half_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        head = built(kind="dense_stack", units=[3], dropout=[0.1])
    finally:
        keras.config.set_dtype_policy("float32")
    assert head.get_layer("colour_1_dense").compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(head(drawn_map((3, 2, 5))).dtype) == "float32"


# === What they compute ===


def test_dense_stack_in_numpy():
    head = shaken(built(kind="dense_stack", units=[6, 3], dropout=[0.5, 0.5]))
    x = drawn_map((3, 2, 5))
    w = weights_of(head)
    y = x.mean((1, 2), dtype=np.float64)
    for block in ("colour_1", "colour_2"):
        y = batchnorm(relu(dense(y, w[f"{block}_dense"])), w[f"{block}_bn"])
    want = dense(y, w["colour_logits"])
    np.testing.assert_allclose(head.predict(x, verbose=0), want, rtol=1e-4, atol=1e-4)


def test_residual_se_in_numpy():
    head = shaken(built(kind="residual_se", units=7, residual_units=4, se_units=2))
    x = drawn_map((3, 2, 5))
    w = weights_of(head)
    wide = relu(dense(x.mean((1, 2), dtype=np.float64), w["colour_wide_dense"]))
    wide = batchnorm(wide, w["colour_wide_bn"])
    y = batchnorm(relu(dense(wide, w["colour_residual_dense"])), w["colour_residual_bn"])
    gate = relu(dense(y, w["colour_se_squeeze"]))
    gate = 1 / (1 + np.exp(-dense(gate, w["colour_se_excite"])))
    assert gate.std() > 0.01  # a gate that does nothing would hide a mistake
    y = relu(y * gate + dense(wide, w["colour_shortcut"]))
    want = dense(y, w["colour_logits"])
    np.testing.assert_allclose(head(x, training=False), want, rtol=1e-4, atol=1e-3)


def test_linear_in_numpy():
    head = shaken(built(kind="linear"))
    x = drawn_map((3, 2, 5))
    want = dense(x.mean((1, 2)), weights_of(head)["colour_logits"])
    np.testing.assert_allclose(head(x), want, rtol=1e-4, atol=1e-4)
    assert described(head) == ["GlobalAveragePooling2D", "dense 4 linear"]
    assert described(built(kind="linear", dropout=0.2))[1] == "dropout 0.2"


def gru_by_hand(sequence, kernel, recurrent, bias):
    """Cho et al. 2014, with Keras' order of the gates (update, reset, new) and reset_after."""
    units = recurrent.shape[0]
    state = np.zeros((len(sequence), units))

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    for step in range(sequence.shape[1]):
        a = sequence[:, step] @ kernel + bias[0]
        b = state @ recurrent + bias[1]
        update = sigmoid(a[:, :units] + b[:, :units])
        reset = sigmoid(a[:, units : 2 * units] + b[:, units : 2 * units])
        new = np.tanh(a[:, 2 * units :] + reset * b[:, 2 * units :])
        state = update * state + (1 - update) * new
    return state


@pytest.mark.parametrize("bidirectional", [False, True])
def test_gru_reads_the_map_row_by_row(bidirectional):
    head = built(kind="gru", units=3, bidirectional=bidirectional)
    x = drawn_map((3, 2, 5)) * 0.5
    # Row by row: (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1).
    sequence = np.stack([x[:, row, column] for row in range(3) for column in range(2)], axis=1)
    read = keras.Model(head.input, head.get_layer("colour_sequence").output)
    np.testing.assert_array_equal(read(x), sequence)
    reader = head.get_layer("colour_bigru" if bidirectional else "colour_gru")
    arrays = [np.asarray(w, np.float64) for w in reader.weights]
    state = gru_by_hand(sequence, *arrays[:3])
    if bidirectional:
        backwards = gru_by_hand(sequence[:, ::-1], *arrays[3:])
        state = np.concatenate([state, backwards], axis=1)
    want = dense(state, weights_of(head)["colour_logits"])
    np.testing.assert_allclose(head(x, training=False), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_every_kind_builds_and_runs_with_its_defaults(kind):
    head = built(kind=kind)
    assert head.name == "colour-head"
    x = drawn_map((3, 2, 5))
    logits = head(x)
    assert logits.shape == (6, 4)
    assert np.isfinite(logits).all()
    assert len(head.trainable_weights) > 0
    drops = [layer for layer in head.layers if isinstance(layer, keras.layers.Dropout)]
    same = np.array_equal(head(x, training=True), head(x, training=True))
    assert same == (not drops)


# === What is refused ===


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            {"kind": "linaer"},
            'head.kind: unknown kind "linaer". Expected one of: dense_stack, gru, linear, '
            'residual_se. Did you mean "linear"?',
        ),
        (
            {"kind": "dense_stack", "units": [8, 4, 2], "dropout": [0.1, 0.2]},
            "head.dropout: 2 values for 3 layers of units",
        ),
        (
            {"kind": "dense_stack", "units": [8]},
            "head.dropout: 3 values for 1 layers of units",
        ),
        ({"kind": "dense_stack", "units": []}, "head.units: []: "),
        ({"kind": "dense_stack", "units": [8, 0], "dropout": [0, 0]}, "head.units.1: 0: "),
        ({"kind": "dense_stack", "dropout": [0.1, 0.1, 1.0]}, "head.dropout.2: 1.0: "),
        ({"kind": "dense_stack", "unit": [3]}, 'head: unknown option "unit" of "dense_stack".'),
        ({"kind": "residual_se", "dropout": [0.1]}, "head.dropout"),
        ({"kind": "residual_se", "dropout": [0.1, 0.2, 0.3]}, "head.dropout"),
        ({"kind": "residual_se", "se_units": -1}, "head.se_units: -1: "),
        ({"kind": "gru", "units": 1.5}, "head.units: 1.5: "),
        ({"kind": "linear", "dropout": "much"}, "head.dropout: 'much': "),
        ({"kind": "linear", "features": 3}, 'head: unknown option "features" of "linear".'),
    ],
)
def test_wrong_heads_name_their_place(head, message):
    with pytest.raises(SpecError) as error:
        built(**head)
    text = str(error.value)
    assert text.startswith(f'toy.toml: task[1] "colour": {message}')
    assert "\n" not in text


def test_dropout_of_0_leaves_no_layer():
    head = built(kind="dense_stack", units=[4, 3], dropout=[0, 0.2])
    assert [word for word in described(head) if word.startswith("dropout")] == ["dropout 0.2"]
