"""Cached features: those of the trunk for the same images, in the same order."""

import contextlib
import dataclasses
import functools
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from logged import logged

from multitask import disk as disk_module
from multitask.annexes.extensions import build_extensions
from multitask.data.order import SHUFFLED, Shard
from multitask.data.pipeline import (
    evaluation_dataset,
    file_names,
    load_image,
    training_dataset,
)
from multitask.data.records import prepare
from multitask.data.table import TRAIN, VALIDATION
from multitask.disk import DiskError
from multitask.files import locked
from multitask.learning import features
from multitask.learning.checkpoints import find_checkpoint
from multitask.learning.features import (
    cache_features,
    feature_shape,
    file_features,
    fingerprint,
    wants_cache,
)
from multitask.learning.optimizers import GroupAdamW
from multitask.learning.training import train
from multitask.model import inference
from multitask.model.network import build_network, load_network, trunk_and_heads
from multitask.runtimes import choice
from multitask.runtimes.libraries import RUNTIMES
from multitask.spec import InputError, Kind, override

STRONG = {"flip": True, "brightness": 0.3, "contrast": [0.5, 1.5], "crop": [0.5, 0.9]}
IMAGES, TRAINED, HELD = 25, 18, 7
GRU = {"kind": "gru", "units": 3}


def quiet(line):
    pass


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Records that a test has made, for the others."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture
def prepared_data(tiny_data, tiny_spec, tiny_trunk, half_labelled, shelf):
    """A function: fields of the spec -> (prepared records, spec, network)."""

    def make(*, augment=None, head=None, seed=0, folder="data", **fields):
        data = tiny_data(rows=half_labelled(IMAGES), folder=folder)
        of_tasks = {"augment": augment or {}, "head": head or {"kind": "linear"}}
        settings = {"validation": 0.25, "features": {"cache": "on", "dtype": "float32"}} | fields
        spec = tiny_spec(of_tasks=of_tasks, **settings)
        trunk = spec.trunk.model_copy(update={"name": tiny_trunk})
        spec = spec.model_copy(update={"trunk": trunk})
        shutil.copytree(shelf, data / "records" / "multitask")
        prepared = prepare(spec, data, progress=False)
        if prepared.fresh:
            shutil.copytree(prepared.folder.parents[1], shelf, dirs_exist_ok=True)
        return prepared, spec, new_network(spec, prepared, seed)

    return make


@pytest.fixture(scope="module")
def made():
    """What tests that only read it share: what it is -> itself."""
    return {}


@pytest.fixture
def shared(prepared_data, made, tmp_path_factory):
    """A function: fields of the spec -> (prepared records, spec, network), the same records for
    all tests, and the same network for all of a head."""

    def make(*, head=None, **fields):
        kind = "pooled" if head is None else "map"
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = prepared_data(augment=STRONG, head=head, folder=folder)
        prepared, spec, network = made[kind]
        return prepared, changed(spec, **fields), network

    return make


@pytest.fixture
def plain_images(shared, made):
    """A function: split -> the images of the shared records, as the trunk gets them."""

    def read(split):
        if split not in made:
            made[split] = images_of(*shared()[:2], split)
        return made[split]

    return read


def new_network(spec, prepared, seed=0):
    keras.utils.set_random_seed(seed)
    return build_network(spec, prepared.table.classes)


def changed(spec, **fields):
    """A spec with some of its fields replaced, e.g. features__views=2."""
    changes = {name.replace("__", "."): value for name, value in fields.items()}
    return override(spec, changes)


def by_trunk(network, images, *, pooled=True):
    """What the trunk gives, by Keras' `predict`; pooled by NumPy."""
    maps = trunk_and_heads(network)[0].predict(images, verbose=0)
    return maps.mean(axis=(1, 2)) if pooled else maps


def images_of(prepared, spec, split):
    batches = evaluation_dataset(prepared, spec, split=split).as_numpy_iterator()
    return np.concatenate([image for image, *_ in batches])


def augmented(prepared, spec, count):
    """Each row's image as the uncached training has it in its first epochs, in the order of the
    rows."""
    labels = prepared.table.labels[prepared.table.rows(TRAIN)]
    rows_of = SHUFFLED.epoch_rows(labels, spec.seed)
    for epoch, batches in enumerate(epochs(training_dataset(prepared, spec), count)):
        images = np.concatenate([image for image, *_ in batches])
        yield images[np.argsort(rows_of(tf.constant(epoch, tf.int64)).numpy())]


def folders(prepared):
    above = prepared.folder.parents[2] / "features"
    return sorted(path for path in above.iterdir() if path.is_dir())


# === What is stored ===


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("head", [None, GRU], ids=["pooled", "map"])
def test_features_are_the_trunks_of_the_very_images(shared, plain_images, head, dtype):
    prepared, spec, network = shared(head=head, features__dtype=dtype)
    cached = cache_features(network, prepared, spec)
    for split, count, stored in (
        (TRAIN, TRAINED, cached.train),
        (VALIDATION, HELD, cached.validation),
    ):
        want = by_trunk(network, plain_images(split), pooled=head is None)
        assert stored.shape == want.shape == (count, *feature_shape(network))
        assert stored.shape[1:] == ((12,) if head is None else (2, 2, 12))
        assert stored.dtype == dtype
        exact = np.abs(want).max() * 1e-6
        # float16 keeps 11 bits: it is off by up to 2^-11 of a value.
        rounding = np.abs(want) * 2.0**-11 if dtype == "float16" else 0
        assert (np.abs(stored.astype(np.float64) - want) <= exact + rounding).all()
        assert want.std(axis=0).min() > 1e-3  # no two images are alike
    np.testing.assert_array_equal(cached.labels, prepared.table.labels[prepared.table.rows(TRAIN)])
    # The heads get the very values, in float32 however they are stored.
    batch = next(cached.training_dataset(spec).as_numpy_iterator())[0]
    assert batch.dtype == np.float32
    for row in batch:
        assert (row == cached.train).reshape(TRAINED, -1).all(axis=1).sum() == 1


@pytest.mark.parametrize("head", [None, GRU])
def test_features_of_files_are_the_trunks_of_the_originals(shared, head):
    prepared, spec, network = shared(head=head)
    rows = np.random.default_rng(0).permutation(len(prepared.table))[: features.BATCH + 3]
    names = file_names(prepared.table, rows, prepared.builder.image_dir)
    result = file_features(network, names, spec)
    images = [load_image(name, size_px=spec.image_size, how=spec.resize) for name in names]
    wanted = by_trunk(network, np.stack(images), pooled=head is None)
    np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5)
    half = changed(spec, features__dtype="float16")
    assert file_features(network, names[:3], half).dtype == np.float16


def test_view_0_is_plain_and_view_v_is_epoch_v_minus_1(shared, plain_images):
    prepared, spec, network = shared(features__views=2)
    cached = cache_features(network, prepared, spec)
    assert (cached.views, len(cached.train)) == (3, 3 * TRAINED)
    plain = by_trunk(network, plain_images(TRAIN))
    views = [plain, *(by_trunk(network, images) for images in augmented(prepared, spec, 2))]
    np.testing.assert_allclose(cached.train, np.concatenate(views), rtol=1e-5, atol=1e-6)
    assert all(np.abs(a - b).max() > 0.01 for a, b in itertools.combinations(views, 2))
    # What is chosen by is never augmented.
    want = by_trunk(network, plain_images(VALIDATION))
    np.testing.assert_allclose(cached.validation, want, rtol=1e-5, atol=1e-6)


# === Batches ===


def epochs(dataset, count, batch_size=5):
    """[epoch][step] -> (x, labels, weights)."""
    steps = -(-TRAINED // batch_size)
    batches = list(dataset.take(steps * count).as_numpy_iterator())
    return [batches[i * steps : (i + 1) * steps] for i in range(count)]


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for (x, labels, weights), (x2, labels2, weights2) in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, x2)
        assert list(labels) == list(labels2) == list(weights) == list(weights2)
        for task in labels:
            np.testing.assert_array_equal(labels[task], labels2[task])
            np.testing.assert_array_equal(weights[task], weights2[task])


@pytest.mark.parametrize("sampler", [None, {"kind": "balanced"}])
def test_rows_labels_and_weights_come_as_in_the_uncached_training(shared, sampler):
    prepared, spec, network = shared(sampler=sampler, seed=3, task__augment={})
    cached = cache_features(network, prepared, spec)
    mine = cached.training_dataset(spec).take(9).as_numpy_iterator()
    theirs = training_dataset(prepared, spec).take(9).as_numpy_iterator()
    for (x, labels, weights), (images, labels2, weights2) in zip(mine, theirs, strict=True):
        want = by_trunk(network, images)
        np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-6)
        assert x.dtype == np.float32
        for task in spec.task_names:
            np.testing.assert_array_equal(labels[task], labels2[task])
            np.testing.assert_array_equal(weights[task], weights2[task])
            assert (labels[task].dtype, weights[task].dtype) == (np.int32, np.float32)


def test_the_validation_split_comes_in_its_order(shared):
    prepared, spec, network = shared()
    cached = cache_features(network, prepared, spec)
    mine = list(cached.validation_dataset(spec).as_numpy_iterator())
    theirs = evaluation_dataset(prepared, spec, split=VALIDATION).as_numpy_iterator()
    images, labels, weights = zip(*theirs, strict=True)
    assert [len(x) for x, *_ in mine] == [5, 2]
    np.testing.assert_array_equal(np.concatenate([x for x, *_ in mine]), cached.validation)
    for step, (x, labels2, weights2) in enumerate(mine):
        want = by_trunk(network, images[step])
        np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-6)
        for task in spec.task_names:
            np.testing.assert_array_equal(labels[step][task], labels2[task])
            np.testing.assert_array_equal(weights[step][task], weights2[task])


def test_a_start_at_any_step_gives_what_an_unbroken_run_has_there(shared):
    prepared, spec, network = shared(features__views=2)
    cached = cache_features(network, prepared, spec)
    whole = list(cached.training_dataset(spec).take(12).as_numpy_iterator())
    assert [len(x) for x, *_ in whole] == [5, 5, 5, 3] * 3
    for epoch, step in itertools.product(range(2), range(4)):
        late = cached.training_dataset(spec, first_epoch=epoch, first_step=step)
        late = list(late.take(12 - 4 * epoch - step).as_numpy_iterator())
        assert_same(late, whole[4 * epoch + step :])


def test_processes_share_the_very_batches_of_one(shared):
    """Of 18 rows in batches of 4 the last has 2, which four devices fill up to 4; of 7 of the
    validation split it has 3."""
    prepared, spec, network = shared(batch_size=4)
    cached = cache_features(network, prepared, spec)

    def training(shard):
        return cached.training_dataset(spec, first_step=2, shard=shard).take(8)

    for make in (training, functools.partial(cached.validation_dataset, spec)):
        whole = list(make(shard=Shard()).as_numpy_iterator())
        of_all = [make(shard=Shard(i, 2, 4)).as_numpy_iterator() for i in range(2)]
        for (x, labels, weights), *batches in zip(whole, *of_all, strict=True):
            result, *both = tf.nest.map_structure(lambda *p: np.concatenate(p), *batches)
            assert len(result) == 4
            np.testing.assert_array_equal(result[: len(x)], x)
            for of_one, of_two, nothing in zip((labels, weights), both, (-1, 0), strict=True):
                for task in spec.task_names:
                    np.testing.assert_array_equal(of_two[task][: len(x)], of_one[task])
                    assert (of_two[task][len(x) :] == nothing).all()


def test_every_view_of_an_image_comes_once_in_as_many_epochs(shared):
    prepared, spec, network = shared(features__views=2)
    cached = cache_features(network, prepared, spec)
    place_of = {row.tobytes(): place for place, row in enumerate(np.asarray(cached.train))}
    assert len(place_of) == 3 * TRAINED  # no two views are alike
    seen = []
    for epoch in epochs(cached.training_dataset(spec), 6):
        places = [place_of[row.tobytes()] for x, *_ in epoch for row in x]
        assert sorted(place % TRAINED for place in places) == list(range(TRAINED))
        seen.append({place % TRAINED: place // TRAINED for place in places})
    for row in range(TRAINED):
        views = [epoch[row] for epoch in seen]
        assert sorted(views[:3]) == [0, 1, 2]
        assert views[3:] == views[:3]
    # An epoch is no single view of all images, which would make its loss jump.
    assert all(len(set(epoch.values())) == 3 for epoch in seen)


# === Against the uncached phase ===

HEADS = {
    "pooled": {
        "artist": {"kind": "dense_stack", "units": [16, 8], "dropout": [0.3, 0.2]},
        "style": {"kind": "residual_se", "units": 16, "residual_units": 8, "se_units": 4},
        "genre": {"kind": "linear", "dropout": 0.2},
    },
    "map": {"artist": GRU, "style": {"kind": "linear"}, "genre": GRU},
}
BOUNDS = {"float32": 1e-4, "float16": 1e-2}


def final_heads(spec, prepared, data_dir, workdir):
    """The heads after the phase; without a validation split the last epoch is kept."""
    result = train(spec, data_dir, workdir, phase="heads")
    progress = find_checkpoint(result.run.checkpoint).progress
    assert (progress.epoch, progress.finished) == (2, ["heads"])
    keras.utils.set_random_seed(1)  # dropout's masks, the same for all that are compared
    return trunk_and_heads(load_network(result.run.best_model, spec, prepared.table.classes))[1]


def weights_of(heads):
    """What multiplies (kernels, gammas): all weights but those that are 0 at the start.

    A bias before a BatchNorm has at times no gradient but for rounding, which Adam scales up.
    Nothing else follows from it but the moving mean.
    """
    return {
        f"{task}/{index}/{w.name}": w.numpy()
        for task, head in heads.items()
        for index, w in enumerate(head.trainable_weights)
        if w.name not in ("bias", "beta")
    }


def off(result, want):
    """The difference's norm, of the norm."""
    return np.linalg.norm(np.asarray(result) - np.asarray(want)) / np.linalg.norm(want)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# That float16 holds what the trunk gives, and that it is trained on as float32, is above.
@pytest.mark.parametrize(
    ("kind", "dtypes"),
    [
        ("pooled", ["float32"]),
        slow("pooled", ["float16"]),
        slow("map", ["float32", "float16"]),
    ],
)
def test_the_cached_phase_learns_what_the_uncached_one_does(
    prepared_data, tmp_path, kind, dtypes, monkeypatch
):
    """One plain view: 1e-4 of each weight in float32, and a bound for float16."""
    # Adam's own 1e-7 makes whole steps of gradients that are rounding alone, which is another's on
    # each CPU: with it the same bound held on some. What differs goes by 1 / epsilon.
    init = functools.partialmethod(GroupAdamW.__init__, epsilon=1e-4)
    monkeypatch.setattr(GroupAdamW, "__init__", init)
    prepared, spec, _ = prepared_data(validation=0.0, batch_size=4)
    tasks = [t.model_copy(update={"head": Kind(**HEADS[kind][t.name])}) for t in spec.tasks]
    spec = changed(spec.model_copy(update={"tasks": tuple(tasks)}), phases__heads__epochs=2)
    trained = {}
    for cache, dtype in (("off", "float32"), *(("on", dtype) for dtype in dtypes)):
        settings = changed(spec, features__cache=cache, features__dtype=dtype)
        workdir = tmp_path / f"{cache}-{dtype}"
        trained[cache, dtype] = final_heads(settings, prepared, tmp_path / "data", workdir)
    uncached = trained.pop(("off", "float32"))
    want = weights_of(uncached)
    network = new_network(spec, prepared, spec.seed)
    begin = weights_of(trunk_and_heads(network)[1])
    moved = min(off(begin[name], want[name]) for name in want)
    maps = by_trunk(network, images_of(prepared, spec, TRAIN), pooled=False)
    # As in training, where BatchNorm takes the batch's own mean, not the moving one.
    answers = {task: head(maps, training=True) for task, head in uncached.items()}
    for (_, dtype), heads in trained.items():
        result = weights_of(heads)
        assert result.keys() == want.keys()
        worst = max(off(result[name], want[name]) for name in want)
        logits = max(off(heads[t](maps, training=True), answers[t]) for t in answers)
        print(f"{kind} {dtype}: weights {worst:.1e}, logits {logits:.1e}; moved {moved:.1e}")
        assert worst < BOUNDS[dtype]
        assert logits < 10 * BOUNDS[dtype]
    assert moved > 5 * BOUNDS["float32"]  # they have learnt: the bound means something


# === Which features are whose ===


def test_features_are_reused_only_for_equal_settings(prepared_data, tmp_path):
    prepared, spec, network = prepared_data(augment=STRONG)
    same = fingerprint(network, prepared, spec)
    assert fingerprint(network, prepared, spec) == same
    assert fingerprint(new_network(spec, prepared), prepared, spec) == same

    def of(network=network, **fields):
        return fingerprint(network, prepared, changed(spec, **fields))

    # What does not matter.
    for fields in (
        {"task__weight_decay": 0.1},
        {"phases__heads__epochs": 9},
        {"batch_size": 3},
        {"features__smote": 0.5},
        {"features__cache": "auto"},
        {"seed": 5},  # without views nothing is random
        {"task__augment": {}},
        {"task__schedule": {"kind": "constant", "rate": 0.5}},
        {"task__loss": {"kind": "cross_entropy"}},
    ):
        assert of(**fields) == same, fields
    stack = changed(spec, task__head={"kind": "dense_stack", "units": [4], "dropout": [0.1]})
    assert fingerprint(new_network(stack, prepared), prepared, stack) == same

    # What does.
    others = [
        of(features__dtype="float16"),
        of(image_size=48),
        of(resize="pad"),
        of(features__views=1),
        of(features__views=2),
        of(features__views=1, seed=5),
        of(features__runtime="tensorflow"),
        of(features__runtime="litert"),
        of(features__views=1, task__augment={}),
        of(features__views=1, task__augment={"flip": True}),
        fingerprint(new_network(changed(spec, task__head=GRU), prepared), prepared, spec),
        fingerprint(new_network(spec, prepared, 1), prepared, spec),
    ]
    for layer, index in (("block1a_conv", 0), ("block2a_bn", 3)):  # a kernel, a moving variance
        other = new_network(spec, prepared)
        weights = trunk_and_heads(other)[0].get_layer(layer).get_weights()
        weights[index].flat[0] += 1e-3
        trunk_and_heads(other)[0].get_layer(layer).set_weights(weights)
        others.append(fingerprint(other, prepared, spec))
    without = changed(spec, validation=0.0)
    others.append(
        fingerprint(network, prepare(without, tmp_path / "data", progress=False), without)
    )
    assert len({same, *others}) == 1 + len(others)


def test_the_same_features_are_not_computed_again(prepared_data):
    prepared, spec, network = prepared_data()
    lines = []
    with logged(lines):
        first = cache_features(network, prepared, spec)
    assert sum("Computing" in line for line in lines) == 1
    (folder,) = folders(prepared)
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(files) == {"train.npy", "validation.npy", "done.json", "features.json"}
    for settings in (spec, changed(spec, task__schedule={"kind": "constant", "rate": 0.5})):
        lines.clear()
        with logged(lines):
            again = cache_features(new_network(settings, prepared), prepared, settings)
        assert lines == [f"Features of the frozen trunk: {folder}"]
        np.testing.assert_array_equal(again.train, first.train)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == files
    cache_features(network, prepared, changed(spec, features__views=1))
    assert len(folders(prepared)) == 2


# === Stopped and resumed ===


class StoppedError(Exception):
    pass


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def begun(shared, made, monkeypatch):
    """Computing that stops after some batches; (prepared, spec, network, its folder's bytes)."""
    prepared, spec, network = shared(features__views=1, features__dtype="float16")
    monkeypatch.setattr(features, "BATCH", 5)  # of so few images, several
    if "whole" not in made:
        train = cache_features(network, prepared, spec).train
        folder = Path(train.filename).parent
        made["whole"] = folder, bytes_of(folder)
    folder, whole = made["whole"]
    original = features.view_dataset

    def stop_after(batches, *, saved):
        """Compute again and stop after some batches; `saved`: done.json was written by then."""
        shutil.rmtree(folder)
        left = iter(range(batches))

        def view_dataset(*args, **options):
            for images in original(*args, **options):
                if next(left, None) is None:
                    raise StoppedError
                yield images

        with monkeypatch.context() as patch:
            patch.setattr(features, "view_dataset", view_dataset)
            patch.setattr(features, "SAVE_EVERY_S", 0.0 if saved else 1e9)
            with pytest.raises(StoppedError):
                cache_features(network, prepared, spec)
        assert not (folder / "features.json").exists()

    return SimpleNamespace(
        prepared=prepared, spec=spec, network=network, folder=folder, whole=whole, stop=stop_after
    )


@pytest.mark.parametrize(
    ("batches", "saved", "read"),
    [
        # Of 4 batches of the plain view, 4 of the augmented one, 2 of the validation split.
        slow(0, True, [("train", 0, 0), ("train", 1, 0), ("validation", 0, 0)]),
        slow(2, True, [("train", 0, 10), ("train", 1, 0), ("validation", 0, 0)]),
        slow(4, True, [("train", 1, 0), ("validation", 0, 0)]),
        (7, True, [("train", 1, 15), ("validation", 0, 0)]),
        slow(9, True, [("validation", 0, 5)]),
        slow(6, False, [("train", 0, 0), ("train", 1, 0), ("validation", 0, 0)]),
        (9, False, [("validation", 0, 0)]),
    ],
)
def test_computing_goes_on_where_it_stopped(begun, monkeypatch, batches, saved, read):
    begun.stop(batches, saved=saved)
    calls, original = [], features.view_dataset

    def watched(*args, split, view, rows, **options):
        calls.append((split, view, rows[0]))
        return original(*args, split=split, view=view, rows=rows, **options)

    monkeypatch.setattr(features, "view_dataset", watched)
    cache_features(begun.network, begun.prepared, begun.spec)
    assert calls == read
    assert bytes_of(begun.folder) == begun.whole


@pytest.fixture
def fastest(tmp_path, monkeypatch):
    """A function: from now on, a library is measured as the fastest, even for few images."""
    monkeypatch.setattr(inference, "FEW", 0)
    monkeypatch.setattr(choice, "TURN_S", 0.0)

    def choose(name):
        folder = str(tmp_path / name)
        monkeypatch.setattr("platformdirs.user_cache_dir", lambda program: folder)
        monkeypatch.setattr(choice, "speed", lambda infer, *_, **__: 1 + (infer.runtime == name))

    return choose


def test_computing_goes_on_in_the_library_that_began(begun, fastest, monkeypatch):
    fastest("litert")
    shutil.rmtree(begun.folder)
    by_litert = cache_features(begun.network, begun.prepared, begun.spec)
    whole = bytes_of(begun.folder)
    begun.stop(7, saved=True)
    fastest("onnxruntime")  # such as on a busy machine
    cache_features(begun.network, begun.prepared, begun.spec)
    assert json.loads((begun.folder / "features.json").read_text())["runtime"] == "litert"
    assert bytes_of(begun.folder) == whole
    # The values are the trunk's, within the rounding of float16.
    images = images_of(begun.prepared, begun.spec, VALIDATION)
    wanted = by_trunk(begun.network, images)
    np.testing.assert_allclose(by_litert.validation, wanted, rtol=2e-3, atol=1e-4)
    # Without the library they are computed anew, in one that is there.
    begun.stop(7, saved=True)
    gone = dataclasses.replace(RUNTIMES["litert"], module="gone")
    monkeypatch.setitem(RUNTIMES, "litert", gone)
    lines = []
    with logged(lines):
        cache_features(begun.network, begun.prepared, begun.spec)
    assert json.loads((begun.folder / "features.json").read_text())["runtime"] == "onnxruntime"
    assert any(line.startswith("The trunk runs in ONNX Runtime 1.") for line in lines)


@pytest.mark.parametrize("head", [None, GRU])
@pytest.mark.parametrize("runtime", ["litert", "onnxruntime", "openvino"])
def test_features_by_a_named_library_are_the_trunks(shared, plain_images, head, runtime):
    prepared, spec, network = shared(head=head, features__runtime=runtime)
    cached = cache_features(network, prepared, spec)
    wanted = by_trunk(network, plain_images(TRAIN), pooled=head is None)
    rms = np.sqrt(np.mean(wanted**2))
    np.testing.assert_allclose(cached.train, wanted, rtol=0, atol=1e-4 * rms)


def test_what_was_written_and_not_noted_is_written_again(begun):
    """A machine that lost its power may hold anything behind what `done.json` counts."""
    begun.stop(6, saved=True)
    done = json.loads((begun.folder / "done.json").read_text())
    assert done == {"runtime": "tensorflow", "train": 28, "validation": 0}
    array = np.lib.format.open_memmap(begun.folder / "train.npy", "r+")
    array[28:] = 7
    array.flush()
    cache_features(begun.network, begun.prepared, begun.spec)
    assert bytes_of(begun.folder) == begun.whole


def test_both_files_stand_before_anything_is_counted(begun):
    """Else a process that is killed while it makes the second leaves one that cannot be read."""
    begun.stop(2, saved=True)
    for name in ("train", "validation"):
        array = np.load(begun.folder / f"{name}.npy", mmap_mode="r")
        assert array.shape == ({"train": 2 * TRAINED, "validation": HELD}[name], 12)


def test_a_second_process_waits_and_uses_what_the_first_made(prepared_data):
    prepared, spec, network = prepared_data()
    cache_features(network, prepared, spec)
    (folder,) = folders(prepared)
    kept = (folder / "features.json").read_bytes()
    (folder / "features.json").unlink()  # as if it were still computing

    class Lines(list):
        def append(self, line):
            super().append(line)
            if "waiting" in line:
                (folder / "features.json").write_bytes(kept)
                first.close()

    with contextlib.ExitStack() as first, logged(Lines()) as lines:
        first.enter_context(locked(folder.parent / f".{folder.name}.lock", lambda: None))
        cache_features(network, prepared, spec)
    assert lines == [
        f"Another process is computing these features ({folder}); waiting for it …",
        f"Features of the frozen trunk: {folder}",
    ]


# === What cannot be stored ===


def test_too_little_room_is_one_line_and_leaves_nothing(prepared_data, monkeypatch):
    prepared, spec, network = prepared_data()
    needed = (TRAINED + HELD) * 12 * 4
    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda path: free)
    with pytest.raises(DiskError) as error:
        cache_features(network, prepared, spec)
    assert str(error.value) == (
        f"{prepared.folder.parents[2] / 'features'}: no room on the disk "
        f"({disk_module.size_text(needed)} needed for features, "
        f"{disk_module.size_text(needed - 1)} free); "
        "make room, name another `records_dir` or set `features.cache=off`, then run the same "
        "command again"
    )
    assert folders(prepared) == []
    free.free = needed
    cache_features(network, prepared, spec)
    assert len(folders(prepared)) == 1


def test_room_that_is_not_there_is_no_end_of_the_process(prepared_data, small_disk, monkeypatch):
    """For example under a quota, which the disk's free room does not include."""
    disk = small_disk(10**6)
    views = {"cache": "on", "dtype": "float32", "views": 200}
    prepared, spec, network = prepared_data(features=views)
    (prepared.folder.parents[2] / "features").symlink_to(disk.files)
    monkeypatch.setattr(features, "check_room", lambda *_, **__: None)
    size = 128 + 201 * TRAINED * 12 * 4
    disk.leave(100_000)
    with pytest.raises(DiskError, match=f"{disk_module.size_text(size)} needed, .* free.*=off"):
        cache_features(network, prepared, spec)
    assert folders(prepared) == []
    assert [path for path in disk.files.rglob("*") if path.suffix == ".npy"] == []


def test_mapped_files_have_all_their_blocks_before_anything_is_computed(begun):
    begun.stop(2, saved=True)
    for name in ("train", "validation"):
        result = (begun.folder / f"{name}.npy").stat()
        assert result.st_blocks * 512 >= result.st_size


def test_a_value_beyond_float16_is_one_line(prepared_data):
    prepared, spec, network = prepared_data(features={"cache": "on", "dtype": "float16"})
    layer = trunk_and_heads(network)[0].get_layer("block2a_bn")
    gamma, *rest = layer.get_weights()
    layer.set_weights([gamma * 1e6, *rest])
    with pytest.raises(InputError, match=r"features\.dtype: float16: features of up to") as error:
        cache_features(network, prepared, spec)
    assert "`features.dtype=float32`" in str(error.value)
    assert "\n" not in str(error.value)
    stored = cache_features(network, prepared, changed(spec, features__dtype="float32"))
    assert 65504 < np.abs(stored.train).max() < np.inf


# === Whether ===


@pytest.mark.parametrize(
    ("cache", "views", "smote", "mix", "epochs"),
    itertools.product(("auto", "on", "off"), (0, 2), (0.0, 0.5), (False, True), (0, 1, 2)),
)
def test_when_features_are_cached(tiny_spec, cache, views, smote, mix, epochs):
    spec = tiny_spec(
        features={"cache": cache, "views": views, "smote": smote},
        mix={"kind": "mixup"} if mix else None,
        phases={"heads": {"epochs": epochs}},
    )
    needed = cache == "on" or views or smote
    if mix and needed:
        with pytest.raises(InputError, match=r"^tiny.toml: features: mix blends images"):
            build_extensions(spec)
        return
    extensions = build_extensions(spec)
    if cache == "off" and needed:
        field = "views" if views else "smote"
        with pytest.raises(InputError, match=f"^tiny.toml: features.{field}: needs cached"):
            wants_cache(spec, extensions)
    elif cache == "off" or mix or epochs == 0:
        assert wants_cache(spec, extensions) is False
    elif needed:
        assert wants_cache(spec, extensions) is True
    else:  # the trunk then runs once instead of twice
        assert wants_cache(spec, extensions) is (epochs == 2)
