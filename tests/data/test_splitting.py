"""The subset, the validation split and class weights: shares, seeds and rare classes."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from table_checks import assert_disjoint_and_whole, by_path

from multitask.data.splitting import class_weights
from multitask.data.table import TEST, TRAIN, VALIDATION, Table, hold_out_validation, subset_table


def random_table(rows=2000, seed=0, test=200):
    """Three tasks: style on all, genre on most, artist on some; classes of very unlike size."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(8))
    labels = np.stack(
        [
            np.where(rng.random(rows) < 0.3, rng.integers(0, 5, rows), -1),
            rng.choice(8, rows, p=shares),
            np.where(rng.random(rows) < 0.8, rng.integers(0, 4, rows), -1),
        ],
        axis=1,
    ).astype(np.int32)
    splits = np.full(rows, TRAIN, dtype=object)
    test_set = rng.choice(rows, test, replace=False)
    splits[test_set] = TEST
    labels[test_set[0]] = -1  # as a contradiction leaves it
    classes = {
        task: tuple(f"{task}{i}" for i in range(n))
        for task, n in (("artist", 5), ("style", 8), ("genre", 4))
    }
    paths = np.asarray([f"{i:05}.jpg" for i in range(rows)], dtype=object)
    return Table(classes, paths, labels, splits)


# === Rule 9: subset ===


def test_a_subset_has_its_share_of_every_class():
    table = random_table()
    shares = {"artist": 0.2, "style": 0.3, "genre": 1.0}
    small = subset_table(table, shares, seed=3)
    for task, share in shares.items():
        before = np.bincount(table.labels_of(task, TRAIN), minlength=len(table.classes[task]))
        after = np.bincount(small.labels_of(task, TRAIN), minlength=len(before))
        assert (before > 0).all()
        np.testing.assert_array_equal(after, np.maximum(1, np.round(share * before)))
    assert all(labels.max() >= 0 for labels in small.labels[small.rows(TRAIN)])
    assert_disjoint_and_whole(small)


def test_a_subset_keeps_labels_as_they_were_and_the_test_whole():
    table = random_table()
    small = subset_table(table, {"artist": 0.1, "style": 0.1, "genre": 0.1}, seed=0)
    old, new = by_path(table), by_path(small)
    for path, (split, labels) in new.items():
        assert split == old[path][0]
        assert labels.items() <= old[path][1].items()
    test_set = {path: value for path, value in old.items() if value[0] == TEST}
    assert {path: value for path, value in new.items() if value[0] == TEST} == test_set
    # One rank for all tasks: a tenth of the labels is not three tenths of the images.
    assert len(small.rows(TRAIN)) < 0.25 * len(table.rows(TRAIN))
    assert str(len(small.rows(TRAIN))) in small.notes[-1]


def test_a_subset_keeps_one_example_of_a_rare_class():
    table = random_table(200, test=20)
    small = subset_table(table, {"artist": 0.001, "style": 0.001, "genre": 0.001}, seed=1)
    for task in table.tasks:
        labels = small.labels_of(task, TRAIN)
        assert len(labels) >= 4
        assert sorted(labels) == sorted(set(table.labels_of(task, TRAIN)))


def test_a_subset_is_a_function_of_the_seed():
    table, shares = random_table(), {"artist": 0.5, "style": 0.5, "genre": 0.5}
    first, again = (subset_table(table, shares, seed=7) for _ in range(2))
    other = subset_table(table, shares, seed=8)
    np.testing.assert_array_equal(first.paths, again.paths)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert set(first.paths) != set(other.paths)
    smaller = subset_table(table, {"artist": 0.2, "style": 0.2, "genre": 0.2}, seed=7)
    assert set(smaller.paths[smaller.rows(TRAIN)]) < set(first.paths[first.rows(TRAIN)])


def test_shares_of_1_keep_the_whole_table():
    table = random_table(50, test=5)
    assert subset_table(table, {"artist": 1.0, "style": 1.0, "genre": 1.0}, seed=0) is table


# === Rule 3: validation ===


def test_validation_takes_about_its_share_of_every_class():
    table = random_table(4000)
    split_table = hold_out_validation(table, 0.1, seed=2)
    assert_disjoint_and_whole(split_table)
    np.testing.assert_array_equal(split_table.labels, table.labels)
    np.testing.assert_array_equal(split_table.rows(TEST), table.rows(TEST))
    for task in table.tasks:
        before = np.bincount(table.labels_of(task, TRAIN), minlength=len(table.classes[task]))
        held = np.bincount(split_table.labels_of(task, VALIDATION), minlength=len(before))
        left = np.bincount(split_table.labels_of(task, TRAIN), minlength=len(before))
        np.testing.assert_array_equal(held + left, before)
        large = before >= 50
        assert large.any()
        share = held[large] / before[large]
        assert share.min() > 0.09, task
        assert share.max() < 0.16, task
    assert 0.09 < len(split_table.rows(VALIDATION)) / len(table.rows(TRAIN)) < 0.13


@pytest.mark.parametrize("seed", range(20))
def test_validation_never_takes_the_last_image_of_a_class(seed):
    # Style 1 has one image, which artist 0, a large class, would draw half of the time.
    labels = np.asarray([[0, 0, -1]] * 9 + [[0, 1, -1]], np.int32)
    classes = {"artist": ("a",), "style": ("common", "rare"), "genre": ("none",)}
    paths = np.asarray([f"{i}.jpg" for i in range(10)], dtype=object)
    table = Table(classes, paths, labels, np.full(10, TRAIN, dtype=object))
    split_table = hold_out_validation(table, 0.5, seed=seed)
    assert set(split_table.labels_of("style", TRAIN)) == {0, 1}
    assert 4 <= len(split_table.rows(VALIDATION)) <= 5


def test_validation_of_a_small_random_table_leaves_every_class_in_training():
    for seed in range(10):
        table = random_table(60, seed=seed, test=10)
        split_table = hold_out_validation(table, 0.5, seed=seed)
        assert len(split_table.rows(VALIDATION)) > 10
        for task in table.tasks:
            present = set(table.labels_of(task, TRAIN))
            assert set(split_table.labels_of(task, TRAIN)) == present


def test_validation_is_a_function_of_the_seed_and_may_be_off():
    table = random_table()
    first, again = (hold_out_validation(table, 0.05, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.splits, again.splits)
    assert (first.splits != hold_out_validation(table, 0.05, seed=2).splits).any()
    assert len(hold_out_validation(table, 0.0, seed=1).rows(VALIDATION)) == 0


# === Rule 10: weights ===


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.25])
def test_class_weights_are_balanced_to_a_power_with_mean_one(exponent):
    labels = np.repeat([0, 1, 3], [70, 20, 10])
    weights = class_weights(labels, 5, exponent=exponent)
    assert weights.dtype == np.float32
    assert weights[[2, 4]].tolist() == [0, 0]
    by_sklearn = compute_class_weight("balanced", classes=np.asarray([0, 1, 3]), y=labels)
    expected = by_sklearn**exponent
    expected /= (70 * expected[0] + 20 * expected[1] + 10 * expected[2]) / 100
    np.testing.assert_allclose(weights[[0, 1, 3]], expected, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1, abs=1e-6)


def test_class_weights_by_hand():
    # Balanced: 4 / (2 * 3) and 4 / (2 * 1), of mean 1 already.
    labels = np.asarray([0, 0, 0, 1])
    assert class_weights(labels, 2, exponent=1) == pytest.approx([2 / 3, 2])
    np.testing.assert_allclose(
        class_weights(labels, 2, exponent=1)[labels],
        compute_sample_weight("balanced", labels),
        rtol=1e-6,
    )
    # Square roots are as 1 : sqrt(3); mean (3 + sqrt(3)) / 4.
    mean = (3 + 3**0.5) / 4
    assert class_weights(labels, 2, exponent=0.5) == pytest.approx([1 / mean, 3**0.5 / mean])


def test_exponent_zero_weighs_present_classes_alike():
    assert class_weights(np.asarray([0, 0, 2]), 4, exponent=0).tolist() == [1, 0, 1, 0]
    assert class_weights(np.asarray([], int), 3, exponent=1).tolist() == [0, 0, 0]
