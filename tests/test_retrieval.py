"""Retrieval metrics are compared with values by hand and by a loop."""

import numpy as np
import pytest

from multitask.retrieval import retrieval_metrics


def test_retrieval_metrics_by_hand():
    # Query 0: hits at 1 and 3 of 3 relevant; query 1: none of 5; query 2: one hit, at 2, of 20.
    neighbours = np.array(
        [[0, 1, 0, 1, 1, 1, 1, 1, 1, 1], [0] * 10, [0, 2, 0, 0, 0, 0, 0, 0, -1, -1]]
    )
    result = retrieval_metrics(np.array([0, 1, 2]), neighbours, np.array([3, 5, 20]))
    assert result == {
        "precision_at_10": pytest.approx((0.2 + 0 + 0.1) / 3),
        "map_at_10": pytest.approx(((1 + 2 / 3) / 3 + 0 + (1 / 2) / 10) / 3),
        "recall_at_1": pytest.approx(1 / 3),
        "recall_at_10": pytest.approx(2 / 3),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [3, 10, 14])
def test_retrieval_metrics_by_a_loop(seed, k):
    rng = np.random.default_rng(seed)
    labels, neighbours = rng.integers(0, 5, 30), rng.integers(-1, 5, (30, k))
    relevant = np.array([(row == y).sum() for row, y in zip(neighbours, labels, strict=True)])
    relevant += rng.integers(0, 9, 30)
    totals = np.zeros(4)
    for label, row, possible in zip(labels, neighbours, relevant, strict=True):
        hits = [place for place, other in enumerate(row[:10], start=1) if other == label]
        average = sum((n + 1) / place for n, place in enumerate(hits))
        totals += [
            len(hits) / 10,
            average / min(10, possible) if possible else 0,
            1 in hits,
            bool(hits),
        ]
    result = retrieval_metrics(labels, neighbours, relevant)
    assert list(result.values()) == pytest.approx(list(totals / 30))
    assert list(result) == ["precision_at_10", "map_at_10", "recall_at_1", "recall_at_10"]
    assert {type(value) for value in result.values()} == {float}


def test_retrieval_metrics_without_queries_or_gallery():
    none = np.zeros(0, int)
    assert set(retrieval_metrics(none, np.zeros((0, 10), int), none).values()) == {None}
    # Queries, but an empty gallery.
    result = retrieval_metrics(np.zeros(2, int), np.zeros((2, 0), int), np.zeros(2, int))
    assert set(result.values()) == {0.0}


def test_retrieval_metrics_errors():
    ones = np.ones(3, int)
    with pytest.raises(ValueError, match="do not match"):
        retrieval_metrics(ones, np.ones((2, 10), int), ones)
    with pytest.raises(ValueError, match="labelled"):
        retrieval_metrics(-ones, np.ones((3, 10), int), ones)
