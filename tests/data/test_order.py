"""The order of an epoch's rows, and the places that each process reads."""

import numpy as np
import pytest
import tensorflow as tf

from multitask.data.order import SHUFFLED, Shard, batch_places, epoch_order

# === Each row once ===


def test_the_order_of_an_epoch_is_random():
    """Batches of 32 from four blocks of rows (say, styles) are as mixed as those of NumPy."""

    def largest_share(order):
        blocks = np.asarray(order)[:768].reshape(-1, 32) // 200
        return np.mean([np.bincount(batch).max() / 32 for batch in blocks])

    orders = [epoch_order(800, 0, tf.constant(epoch)).numpy() for epoch in range(30)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(800))
    rng = np.random.default_rng(0)
    fair = np.mean([largest_share(rng.permutation(800)) for _ in range(30)])
    assert abs(np.mean([largest_share(order) for order in orders]) - fair) < 0.01


# === Shared by several processes ===


def test_places_by_hand():
    """Ten rows in batches of 4: two full ones, and two rows for two devices or for four."""
    of_two = [batch_places(10, 4, Shard(i, 2, 2)).tolist() for i in range(2)]
    assert of_two == [[0, 1, 4, 5, 8], [2, 3, 6, 7, 9]]
    of_four = [batch_places(10, 4, Shard(i, 2, 4)).tolist() for i in range(2)]
    assert of_four == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]  # 10 and 11 stand for no row
    assert batch_places(10, 4).tolist() == list(range(10))
    assert batch_places(0, 4, Shard(1, 2, 2)).tolist() == []


@pytest.mark.parametrize("rows", [1, 23, 24, 25, 48, 61])
@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (1, 4), (2, 2), (3, 12), (4, 4)])
def test_each_place_is_read_once_in_its_own_batch(rows, processes, devices):
    of_all = [batch_places(rows, 24, Shard(i, processes, devices)) for i in range(processes)]
    for first in range(0, rows, 24):
        share = slice(first // processes, (first + 24) // processes)
        batch = np.concatenate([places[share] for places in of_all])
        assert len({len(places[share]) for places in of_all}) == 1
        assert len(batch) % devices == 0
        known = batch[batch < rows]
        assert sorted(known) == list(range(first, min(first + 24, rows)))
        assert len(batch) - len(known) < devices


def test_the_plain_order_has_each_row_once_and_nothing_to_describe():
    order = SHUFFLED.epoch_rows(np.zeros((7, 2), np.int32), 3)(tf.constant(2)).numpy()
    np.testing.assert_array_equal(order, epoch_order(7, 3, tf.constant(2)))
    assert sorted(order) == list(range(7))
    assert SHUFFLED.describe(None) == []
    assert not SHUFFLED.repeats
