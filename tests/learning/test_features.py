"""Cached features: those of the trunk for the same images, in the same order."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from cached import (
    GRU,
    HELD,
    STRONG,
    TRAINED,
    assert_same,
    augmented,
    by_trunk,
    changed,
    epochs,
    folders,
    new_network,
)
from logged import logged

from multitask.annexes.extensions import build_extensions
from multitask.data.order import Shard
from multitask.data.pipeline import evaluation_dataset, file_names, load_image, training_dataset
from multitask.data.records import prepare
from multitask.data.table import TRAIN, VALIDATION
from multitask.learning import features
from multitask.learning.features import (
    cache_features,
    feature_shape,
    file_features,
    fingerprint,
    wants_cache,
)
from multitask.model.network import trunk_and_heads
from multitask.spec import InputError


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


@pytest.mark.parametrize(
    ("cache", "views", "smote", "mix", "epochs"),
    [*itertools.product(("auto", "on", "off"), (0, 2), (0.0, 0.5), (False, True), (0, 1, 2))],
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
