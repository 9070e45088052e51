"""The one model: one trunk, a head a task; saving and reading it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from narrow_trunks import narrow_convnext
from scipy.special import softmax
from specs import spec_of

from multitask.model.heads import build_head
from multitask.model.network import (
    build_heads,
    build_network,
    computing_in,
    connect,
    connect_features,
    examined_heads,
    examined_model,
    load_network,
    parameter_table,
    trunk_and_heads,
)
from multitask.model.trunks import TRUNKS, freeze_trunk
from multitask.spec import SHARED, InputError, SpecError

SIZE = 32
CLASSES = {"colour": ("red", "green"), "shape": ("round", "square", "long")}


# Heads with few units, of each kind.
FEW_UNITS = {
    "dense_stack": {"units": [16, 8], "dropout": [0.3, 0.2]},
    "residual_se": {"units": 16, "residual_units": 8, "se_units": 4},
}


def make_spec(image_size=SIZE, tasks=tuple(CLASSES), head="linear", **trunk):
    return spec_of(
        *tasks,
        of_tasks={"head": {"kind": head, **FEW_UNITS.get(head, {})}},
        trunk={"name": "efficientnetb0"} | trunk,
        image_size=image_size,
    )


def small_network(spec, *, dropout=0.3):
    """A stand-in for the trunk, and the spec's heads."""
    inputs = keras.Input((spec.image_size, spec.image_size, 3))
    x = keras.layers.Conv2D(4, 5, strides=8, name="stem_conv")(inputs)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = keras.layers.Conv2D(6, 1, name="block1a_conv")(x)
    x = keras.layers.BatchNormalization(name="block1a_bn")(x)
    x = keras.layers.Dropout(dropout, name="block1a_drop")(x)
    trunk = keras.Model(inputs, x, name="trunk")
    heads = {
        task: build_head(spec, task, trunk.output_shape[1:], len(CLASSES[task]))
        for task in spec.task_names
    }
    return connect(trunk, heads)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def real():
    return build_network(make_spec(), CLASSES)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


# === The functional model ===


def test_from_an_image_to_the_logits_of_each_task(real, images):
    logits = real(images, training=False)
    assert {task: tuple(x.shape) for task, x in logits.items()} == {
        "colour": (4, 2),
        "shape": (4, 3),
    }
    assert [keras.backend.standardize_dtype(x.dtype) for x in logits.values()] == ["float32"] * 2
    assert real.input_shape == (None, SIZE, SIZE, 3)
    assert [x.name for x in real.inputs] == ["image"]


def test_one_trunk_is_shared(real):
    trunk, heads = trunk_and_heads(real)
    assert trunk.name == "trunk"
    assert list(heads) == list(CLASSES)
    # Keras' documentation: 4,049,571 parameters of B0 without its top, and 1280 features.
    assert trunk.count_params() == 4_049_571
    assert [head.count_params() for head in heads.values()] == [1281 * 2, 1281 * 3]
    assert real.count_params() == 4_049_571 + 1281 * 5


def test_the_answers_are_the_heads_on_the_trunks_features(images):
    model = small_network(make_spec(head="gru"))
    trunk, heads = trunk_and_heads(model)
    features = trunk(images, training=False)
    logits = model(images, training=False)
    for task, head in heads.items():
        np.testing.assert_allclose(logits[task], head(features, training=False), rtol=1e-5)
    assert not np.allclose(logits["colour"][0], logits["colour"][1])


def statistics(trunk):
    return [w.numpy() for w in trunk.non_trainable_weights if "moving" in w.name]


def test_a_trunk_that_infers_is_deterministic_and_keeps_its_statistics(images):
    trains = small_network(make_spec())
    trunk, heads = trunk_and_heads(trains)
    infers = connect(trunk, heads, infers=True)
    old = statistics(trunk)
    assert len(old) == 4

    first, second = infers(images, training=True), infers(images, training=True)
    assert same(first, second)
    assert same(first, infers(images, training=False))
    assert all(map(np.array_equal, old, statistics(trunk)))

    # Without it, dropout draws and the statistics move: what is tested above could fail.
    assert not same(trains(images, training=True), trains(images, training=True))
    assert not any(map(np.array_equal, old, statistics(trunk)))


def test_a_trunk_that_infers_leaves_its_heads_in_training(images):
    trunk, heads = trunk_and_heads(small_network(make_spec(head="dense_stack")))
    model = connect(trunk, heads, infers=True)
    assert not same(model(images, training=True), model(images, training=True))
    assert same(model(images, training=False), model(images, training=False))


def test_models_of_one_trunk_share_its_variables(images):
    model = small_network(make_spec())
    trunk, heads = trunk_and_heads(model)
    other = connect(trunk, heads, infers=True)
    assert [id(v) for v in other.variables] == [id(v) for v in model.variables]
    alone = connect(trunk, {"shape": heads["shape"]})
    assert list(alone(images)) == ["shape"]


# === Files ===


def test_a_saved_network_gives_the_same_answers(real, images, tmp_path):
    path = tmp_path / "model.keras"
    real.save(path)
    again = load_network(path, make_spec(), CLASSES)
    assert same(real(images, training=False), again(images, training=False))
    trunk, heads = trunk_and_heads(again)
    assert [x.name for x in trunk.layers] == [x.name for x in trunk_and_heads(real)[0].layers]
    assert set(heads) == set(CLASSES)
    assert parameter_table(again) == parameter_table(real)


OTHER_TRUNKS = {"efficientnetv2b0": 270, "convnexttiny": 133, "efficientnet_lite2": 201}


def build_drawn(spec):
    """Random weights: those of ConvNeXt's branches are nearly 0 at first."""
    model = build_network(spec, CLASSES)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(weight + rng.normal(0, 0.05, weight.shape))
    return model


@pytest.mark.parametrize(
    "name", ["narrow", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_TRUNKS)]
)
def test_networks_of_other_trunks_are_saved_and_read(name, images, tmp_path, monkeypatch):
    """In safe mode, layers of keras.applications' own among them, which ConvNeXt has."""
    if name == "narrow":
        monkeypatch.setitem(TRUNKS, "convnexttiny", narrow_convnext)
    spec = make_spec(name="convnexttiny" if name == "narrow" else name, stochastic_depth=0.3)
    model = build_drawn(spec)
    path = tmp_path / "model.keras"
    model.save(path)
    again = load_network(path, spec, CLASSES)
    answers = model(images, training=False)
    assert same(answers, again(images, training=False))
    assert all(np.std(logits) > 1e-3 for logits in answers.values())
    assert [x.name for x in trunk_and_heads(again)[0].layers] == [
        x.name for x in trunk_and_heads(model)[0].layers
    ]
    assert len(trunk_and_heads(again)[0].layers) == {"narrow": 4 * 7 + 7, **OTHER_TRUNKS}[name]
    assert parameter_table(again) == parameter_table(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_TRUNKS)
def test_networks_of_other_trunks_are_exported(name, images, tmp_path):
    """As `multitask export` does, from the .keras file, and as exactly: probabilities to 1e-5."""
    spec = make_spec(name=name)
    model = build_drawn(spec)
    model.save(tmp_path / "model.keras")
    again = load_network(tmp_path / "model.keras", spec, CLASSES)
    archive = keras.export.ExportArchive()
    archive.track(again)
    signature = [tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32)]
    archive.add_endpoint("serve", lambda x: again(x, training=False), signature)
    archive.write_out(str(tmp_path / "export"), verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "export"))
    answers = exported.serve(images)
    for task, logits in model(images, training=False).items():
        # Drawn weights may give logits so large that every probability would be 0 or 1.
        scale = max(1.0, float(np.std(logits)))
        result, wanted = (softmax(np.asarray(x) / scale, axis=1) for x in (answers[task], logits))
        assert np.std(wanted[:, 0]) > 1e-3
        np.testing.assert_allclose(result, wanted, atol=1e-5)


def test_a_network_saved_frozen_can_be_trained_again(images, tmp_path):
    model = small_network(make_spec())
    trunk, _ = trunk_and_heads(model)
    freeze_trunk(trunk, len(trunk.layers), batchnorm_trains=False)
    path = tmp_path / "model.keras"
    model.save(path)
    again = load_network(path, make_spec(), CLASSES)
    trunk, heads = trunk_and_heads(again)
    freeze_trunk(trunk, 3, batchnorm_trains=True)
    trained = {x.name: len(x.trainable_weights) for x in trunk.layers if x.weights}
    trained.pop("block1a_drop", None)  # its seed is a weight to some versions of Keras
    assert trained == {"stem_conv": 0, "stem_bn": 0, "block1a_conv": 2, "block1a_bn": 2}
    assert all(len(head.trainable_weights) == 2 for head in heads.values())


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.keras"
    small_network(make_spec()).save(path)
    return path


def refusal(path, spec, classes):
    with pytest.raises(InputError) as error:
        load_network(path, spec, classes)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_a_file_that_fits_is_read(small_file):
    assert trunk_and_heads(load_network(small_file, make_spec(), CLASSES))[0].name == "trunk"


def test_no_file_is_refused(tmp_path):
    assert refusal(tmp_path / "none.keras", make_spec(), CLASSES) == "no such model file"
    folder = refusal(tmp_path, make_spec(), CLASSES)
    assert folder == "cannot be read: it is a folder, not a regular file"


@pytest.mark.parametrize("name", ["notes.txt", "model.keras", "model.h5"])
def test_a_text_file_is_refused(name, tmp_path):
    path = tmp_path / name
    path.write_text("not a model\n")
    assert refusal(path, make_spec(), CLASSES).startswith("not a model file of multitask (")


def test_a_cut_file_is_refused(small_file, tmp_path):
    path = tmp_path / "cut.keras"
    path.write_bytes(small_file.read_bytes()[:2000])
    assert refusal(path, make_spec(), CLASSES).startswith("not a model file of multitask (")


def test_another_keras_model_is_refused(tmp_path):
    inputs = keras.Input((SIZE, SIZE, 3))
    path = tmp_path / "other.keras"
    keras.Model(inputs, keras.layers.Flatten()(inputs)).save(path)
    assert refusal(path, make_spec(), CLASSES).startswith("not a model file of multitask (")


def test_other_tasks_classes_and_sizes_are_refused(small_file):
    text = refusal(small_file, make_spec(tasks=("colour",)), CLASSES)
    assert text == (
        "its tasks and class counts are {'colour': 2, 'shape': 3}, expected {'colour': 2}"
    )
    text = refusal(small_file, make_spec(), CLASSES | {"colour": ("r", "g", "b")})
    assert text.endswith("expected {'colour': 3, 'shape': 3}")
    text = refusal(small_file, make_spec(image_size=64), CLASSES)
    assert text == "made for 32 px, expected 64 px"


def test_a_wrong_head_is_named_with_its_place(tiny_trunk):
    with pytest.raises(SpecError, match=r'^toy.toml: task\[0\] "colour": head.kind: unknown kind'):
        build_network(make_spec(head="liner", name=tiny_trunk), CLASSES)


# === Parameters ===


@pytest.mark.parametrize("frozen", [0, 3, 6])
def test_parameter_table(frozen):
    model = small_network(make_spec())
    trunk, _ = trunk_and_heads(model)
    freeze_trunk(trunk, frozen, batchnorm_trains=True)
    # Convolution: kernel and bias; BatchNorm: gamma, beta, and two that are never trained.
    stem, block = 5 * 5 * 3 * 4 + 4, 4 * 6 + 6
    assert parameter_table(model) == [
        ("trunk/input", 1, 0, 0, 0),
        ("trunk/stem", 2, 2 * (frozen < 3), stem + 16, (stem + 8) * (frozen < 3)),
        ("trunk/block1", 3, 2 * (frozen < 6), block + 24, (block + 12) * (frozen < 6)),
        ("colour", 3, 1, 14, 14),
        ("shape", 3, 1, 21, 21),
    ]


def test_the_parameter_table_sums_to_the_whole(real):
    trunk, _ = trunk_and_heads(real)
    freeze_trunk(trunk, 100, batchnorm_trains=False)
    rows = parameter_table(real)
    trainable = sum(int(np.prod(v.shape)) for v in real.trainable_variables)
    assert sum(row[3] for row in rows) == real.count_params()
    assert sum(row[4] for row in rows) == trainable
    assert 0 < trainable < real.count_params()
    blocks = [f"trunk/block{i}" for i in range(1, 8)]
    assert [row[0] for row in rows] == [
        "trunk/input",
        "trunk/stem",
        *blocks,
        "trunk/top",
        *CLASSES,
    ]
    assert sum(row[1] for row in rows) == len(trunk.layers) + 3 + 3


# === Precision ===


def test_bfloat16_computes_in_it_and_keeps_weights_and_logits_float32(images, tiny_trunk, tmp_path):
    spec = make_spec(name=tiny_trunk)
    spec = spec.model_copy(update={"precision": "bfloat16"})
    keras.utils.set_random_seed(0)
    network = build_network(spec, CLASSES)
    assert keras.config.dtype_policy().name == "float32"  # of this process, as before
    trunk, _heads = trunk_and_heads(network)
    assert trunk.get_layer("block2a_conv").compute_dtype == "bfloat16"
    assert {v.dtype for v in network.trainable_variables} == {"float32"}
    assert trunk(images).dtype == tf.bfloat16
    logits = network(images)
    assert {t.dtype for t in logits.values()} == {tf.float32}
    # The same weights in float32 give the same result, to the 8 bits of bfloat16.
    exact = build_network(make_spec(name=tiny_trunk), CLASSES)
    exact.set_weights(network.get_weights())
    for task, value in exact(images).items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(logits[task], value, atol=0.05 * scale)
        assert not np.array_equal(logits[task], value)
    network.save(tmp_path / "model.keras")
    again = load_network(tmp_path / "model.keras", spec, CLASSES)
    assert trunk_and_heads(again)[0].get_layer("block2a_conv").compute_dtype == "bfloat16"
    for task, value in again(images).items():
        np.testing.assert_array_equal(value, logits[task])


# === Heads on features ===


def test_heads_behind_their_pooling_are_the_same_heads(images):
    """On NumPy's mean over the map; the layers are shared, so the weights are one."""
    spec = make_spec(head="residual_se")
    network = small_network(spec)
    trunk, heads = trunk_and_heads(network)
    features = np.asarray(trunk(images))
    alone = connect_features(heads)
    assert alone.input_shape == (None, 6)
    for task, value in alone(features.mean(axis=(1, 2))).items():
        np.testing.assert_allclose(value, network(images)[task], atol=1e-5)
    ids = {id(v) for v in alone.variables}
    assert ids == {id(v) for head in heads.values() for v in head.variables}


def test_a_head_that_reads_the_map_keeps_it(images):
    spec = make_spec(head="gru")
    network = small_network(spec)
    trunk, heads = trunk_and_heads(network)
    alone = connect_features(heads)
    assert alone.input_shape == (None, 4, 4, 6)
    for task, value in alone(trunk(images)).items():
        np.testing.assert_allclose(value, network(images)[task], atol=1e-5)


def test_a_network_is_saved_as_before_when_its_heads_stood_alone(images, tmp_path):
    network = small_network(make_spec(head="dense_stack"))
    connect_features(trunk_and_heads(network)[1])
    network.save(tmp_path / "model.keras")
    again = load_network(tmp_path / "model.keras", make_spec(), CLASSES)
    for task, value in again(images).items():
        np.testing.assert_array_equal(value, network(images)[task])


# === Embeddings ===


@pytest.mark.parametrize("kind", ["residual_se", "dense_stack", "gru", "linear"])
@pytest.mark.parametrize("loaded", [False, True])
def test_embeddings_are_what_the_logits_are_made_of(kind, loaded, images, tmp_path):
    spec = make_spec(head=kind)
    model = small_network(spec)
    if loaded:
        model.save(tmp_path / "model.keras")
        model = load_network(tmp_path / "model.keras", spec, CLASSES)
    trunk, heads = trunk_and_heads(model)
    connect_features(heads)  # which gives layers a second place, and must not matter
    model(images, training=True)  # so that the statistics are not those of the start
    result = examined_model(model)(images, training=False)["vectors"]
    logits = model(images, training=False)
    assert list(result) == [SHARED, *CLASSES]
    features = trunk(images, training=False)
    expected = np.asarray(features).mean(axis=(1, 2))
    np.testing.assert_allclose(result[SHARED], expected, rtol=1e-5, atol=1e-6)
    for task, head in heads.items():
        layer = head.get_layer(f"{task}_logits")
        np.testing.assert_allclose(layer(result[task]), logits[task], rtol=1e-5, atol=1e-5)
        assert result[task].shape[1] == layer.kernel.shape[0]
    if kind == "linear":
        np.testing.assert_allclose(result["shape"], expected, rtol=1e-5, atol=1e-6)
    if kind == "gru":  # layer by layer
        _, sequence, reader, dropout, _ = heads["shape"].layers
        by_hand = dropout(reader(sequence(features), training=False), training=False)
        np.testing.assert_allclose(result["shape"], by_hand, rtol=1e-5, atol=1e-6)


def test_an_examined_model_gives_all_in_one_pass(images):
    model = small_network(make_spec())
    result = examined_model(model)(images, training=False)
    for task, logits in model(images, training=False).items():
        np.testing.assert_allclose(result["answers"][task], logits, rtol=1e-5, atol=1e-6)
    trunk = trunk_and_heads(model)[0]
    from_features = examined_heads(model)(trunk(images, training=False), training=False)
    for kind in ("answers", "vectors"):
        assert list(from_features[kind]) == list(result[kind])
        for name, values in from_features[kind].items():
            np.testing.assert_allclose(result[kind][name], values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        result["features"], trunk(images, training=False), rtol=1e-5, atol=1e-6
    )


def test_embeddings_share_the_weights_and_run_the_trunk_once(images):
    model = small_network(make_spec())
    embedding = examined_model(model)
    trunk, _heads = trunk_and_heads(model)
    assert [layer for layer in embedding.layers if layer is trunk] == [trunk]
    kept = {id(w) for w in model.weights}
    assert {id(w) for w in embedding.weights} <= kept
    assert embedding.input_shape == model.input_shape


def test_embeddings_of_bfloat16_are_float32(images):
    with computing_in("bfloat16"):
        model = small_network(make_spec(head="residual_se"))
    result = examined_model(model)(images, training=False)["vectors"]
    assert {keras.backend.standardize_dtype(x.dtype) for x in result.values()} == {"float32"}


def test_tasks_may_be_called_as_layers_and_outputs_of_ours(images, tmp_path):
    """Of ours, of Keras' own (a cast is called `cast_3`), and of what is made of other tasks."""
    names = (
        "cast",
        "features",
        "image",
        "shared",
        "shared_pool",
        "trunk",
        "trunk_logits",
        "vectors",
    )
    classes = dict.fromkeys(names, ("a", "b"))
    spec = make_spec(tasks=names)
    trunk = trunk_and_heads(small_network(make_spec()))[0]
    model = connect(trunk, build_heads(spec, trunk.output_shape[1:], classes))
    model.save(tmp_path / "model.keras")
    model = load_network(tmp_path / "model.keras", spec, classes)
    trunk, heads = trunk_and_heads(model)
    assert (trunk.name, set(heads)) == ("trunk", set(names))
    features = trunk(images, training=False)
    logits = connect_features(heads)(np.asarray(features).mean(axis=(1, 2)), training=False)
    result = examined_model(model)(images, training=False)
    assert list(result["vectors"]) == [SHARED, *sorted(names)]
    for task, head in heads.items():
        expected = head(features, training=False)
        np.testing.assert_allclose(result["answers"][task], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(logits[task], expected, rtol=1e-4, atol=1e-5)
        own = head.get_layer(f"{task}_logits")(result["vectors"][task])
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)
    assert len({name for name, *_ in parameter_table(model)}) == len(parameter_table(model))
