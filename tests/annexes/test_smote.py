"""SMOTE by hand: how many rows, between which, and how they join the training batches."""

import itertools
import sys

import keras
import numpy as np
import pytest
from logged import logged

from multitask.annexes.extensions import build_extensions
from multitask.annexes.smote import Smote, build_smote, smote_counts
from multitask.data.records import prepare
from multitask.learning.features import cache_features
from multitask.model.network import build_network
from multitask.spec import MISSING, InputError

GRU = {"kind": "gru", "units": 3}


def oversample(x, labels, share=0.5, seed=0):
    return Smote(share, seed, ("artist", "style")).make(x, labels)


def toy_features(channels=4, seed=0):
    """Features of 40 rows, [rows + a view, channels], and labels of two tasks.

    First task: classes of 20, 6, 3 and 1 rows, and 10 without. Second: 9, 8, 2 of every other.
    """
    rng = np.random.default_rng(seed)
    labels = np.full((40, 2), MISSING, np.int32)
    labels[:30, 0] = np.repeat([0, 1, 2, 3], [20, 6, 3, 1])
    labels[1:39:2, 1] = np.repeat([0, 1, 2], [9, 8, 2])
    labels = labels[rng.permutation(40)]
    return rng.normal(size=(80, channels)).astype(np.float32), labels


@pytest.mark.parametrize(
    ("counts", "share", "made"),
    [
        ([20, 6, 3, 1], 0.5, {1: 4, 2: 7}),
        ([20, 6, 3, 1], 1.0, {1: 14, 2: 17}),
        ([20, 6, 3, 1], 0.3, {2: 3}),
        ([20, 6, 3, 1], 0.1, {}),
        ([7, 2], 0.5, {1: 1}),  # 3.5 is cut to 3
        ([5, 0, 4], 1.0, {2: 1}),  # a class without examples has nothing to be made of
        ([5], 1.0, {}),
        ([], 1.0, {}),
        ([1, 1], 1.0, {}),
    ],
)
def test_smote_counts_by_hand(counts, share, made):
    assert smote_counts(counts, share) == made


def off_segment(x, a, b):
    """How far x is from the segment between a and b."""
    along = b - a
    t = np.clip((x - a) @ along / (along @ along), 0, 1)
    return np.linalg.norm(x - (a + t * along))


def test_each_synthetic_vector_lies_between_two_near_ones_of_its_class():
    x, labels = toy_features()
    made, of = oversample(x.astype(np.float16), labels)
    stored = x.astype(np.float16).astype(np.float64)  # what it was made of
    assert (made.dtype, of.dtype) == (np.float32, np.int32)
    # Half of 20 is 10: 4 more of the 6 and 7 of the 3. Half of 9 is 4: 2 more of the 2.
    assert len(made) == len(of) == 4 + 7 + 2
    assert [tuple(row) for row in of] == [(1, MISSING)] * 4 + [(2, MISSING)] * 7 + [
        (MISSING, 2)
    ] * 2
    for vector, (first, second) in zip(made, of, strict=True):
        task, label = (0, first) if first != MISSING else (1, second)
        own = np.flatnonzero(labels[:, task] == label)  # of the plain view alone
        gaps = {}
        for i, j in itertools.permutations(own, 2):
            gaps[i, j] = off_segment(vector, stored[i], stored[j])
        (i, j) = min(gaps, key=gaps.get)
        assert gaps[i, j] < 1e-5
        ends = [np.linalg.norm(vector - stored[k]) for k in (i, j)]
        assert min(ends) > 0 or len(own) == 2
        # One end is among the 5 nearest of the other.
        near = sorted(own, key=lambda k: np.linalg.norm(stored[k] - stored[i]))[1:6]
        back = sorted(own, key=lambda k: np.linalg.norm(stored[k] - stored[j]))[1:6]
        assert j in near or i in back


def test_the_seed_determines_the_rows():
    x, labels = toy_features()
    first, again, other = (oversample(x, labels, seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_maps_are_interpolated_as_vectors():
    x, labels = toy_features(channels=12)
    flat, of = oversample(x, labels)
    maps, of_maps = oversample(x.reshape(80, 2, 2, 3), labels)
    np.testing.assert_array_equal(maps.reshape(flat.shape), flat)
    np.testing.assert_array_equal(of_maps, of)


def test_without_smote_nothing_is_made(tiny_spec):
    x, labels = toy_features()
    rows = build_smote(tiny_spec())
    assert not rows.adds
    assert rows.count(None) == 0
    made, of = rows.make(x, labels)
    assert (made.shape, of.shape) == ((0, 4), (0, 2))
    assert (made.dtype, of.dtype) == (np.float32, np.int32)


def test_a_task_without_any_label_gets_no_rows():
    x, labels = toy_features()
    labels[:, 1] = MISSING
    _, of = oversample(x, labels)
    assert len(of) == 4 + 7
    assert (of[:, 1] == MISSING).all()


@pytest.mark.parametrize("head", [None, GRU], ids=["pooled", "map"])
def test_synthetic_rows_join_the_training_batches(tiny_data, tiny_spec, tiny_trunk, head):
    """Classes of 12, 5 and 2 rows: half of 12 is 6."""
    counts = [12, 5, 2]
    rows = [(f"Dots/{i:02}.jpg", label) for i, label in enumerate(np.repeat([0, 1, 2], counts))]
    data = tiny_data(rows={"style_train": rows})
    options = {"smote": 0.5, "views": 1}
    of_tasks = {"head": head} if head else None
    spec = tiny_spec(tasks=("style",), features=options, of_tasks=of_tasks)
    spec = spec.model_copy(update={"trunk": spec.trunk.model_copy(update={"name": tiny_trunk})})
    prepared = prepare(spec, data, progress=False)
    extensions = build_extensions(spec)
    keras.utils.set_random_seed(0)
    network = build_network(spec, prepared.table.classes)
    lines = []
    with logged(lines):
        cached = cache_features(network, prepared, spec, extensions=extensions)
    assert extensions.extra_rows.count(prepared.table) == len(cached.extra) == 1 + 4
    assert "  style: SMOTE adds 5 examples to 2 rare classes" in lines
    steps = -(-24 // spec.batch_size)
    synthetic = {row.tobytes() for row in cached.extra}
    for epoch in range(2):
        dataset = cached.training_dataset(spec, first_epoch=epoch).take(steps)
        x, labels, weights = zip(*dataset.as_numpy_iterator(), strict=True)
        labels = np.concatenate([y["style"] for y in labels])
        assert np.bincount(labels).tolist() == [12, 6, 6]
        assert np.concatenate([w["style"] for w in weights]).tolist() == [1] * 24
        of_synthetic = [row.tobytes() in synthetic for batch in x for row in batch]
        assert np.bincount(labels[of_synthetic]).tolist() == [0, 1, 4]


def test_without_imbalanced_learn_is_one_line(tiny_spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "imblearn.over_sampling", None)
    x, labels = toy_features()
    with pytest.raises(InputError) as error:
        oversample(x, labels)
    assert str(error.value) == (
        "features.smote: needs imbalanced-learn: pip install '.[smote]' "
        "(in the folder of this project)"
    )
    assert len(build_smote(tiny_spec()).make(x, labels)[0]) == 0  # not needed without SMOTE
