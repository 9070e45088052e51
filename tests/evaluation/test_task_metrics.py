"""The saved confusion matrix: complete, or of the most confused classes and all remaining ones."""

import json

import numpy as np
import pytest

from multitask import metrics
from multitask.evaluation.task_metrics import MATRIX_CELLS, confusion_matrix


def mixed_up(classes, count=5000, seed=0):
    """Labels and predictions; a third of the predictions is the next class."""
    rng = np.random.default_rng(seed)
    labels = rng.zipf(1.3, count) % classes
    return labels, np.where(rng.random(count) < 0.7, labels, (labels + 1) % classes)


@pytest.mark.parametrize("classes", [1, 2, 12, 40])
def test_a_matrix_of_few_classes_is_complete(classes):
    labels, predicted = mixed_up(classes)
    names = [f"c{i}" for i in range(classes)]
    matrix = confusion_matrix(labels, predicted, names, limit=40)
    counts = metrics.confusion(labels, predicted, classes=classes)
    order = metrics.confusion_order(counts)
    assert matrix == {
        "names": [names[i] for i in order],
        "counts": counts[np.ix_(order, order)].tolist(),
        "others": 0,
    }


@pytest.mark.parametrize(("classes", "limit"), [(41, 40), (1000, 40), (1000, 1), (3, 2)])
def test_a_matrix_of_many_classes_counts_every_image(classes, limit):
    labels, predicted = mixed_up(classes)
    names = [f"c{i}" for i in range(classes)]
    matrix = confusion_matrix(labels, predicted, names, limit=limit)
    counts, shown = np.array(matrix["counts"]), [int(name[1:]) for name in matrix["names"]]
    assert matrix["others"] == classes - limit == classes - len(set(shown))
    assert counts.shape == (limit + 1, limit + 1)
    every = metrics.confusion(labels, predicted, classes=classes)
    assert (counts[:-1, :-1] == every[np.ix_(shown, shown)]).all()
    assert (counts.sum(axis=1)[:-1] == every.sum(axis=1)[shown]).all()
    assert (counts.sum(axis=0)[:-1] == every.sum(axis=0)[shown]).all()
    assert counts.sum() == len(labels)


def test_the_size_does_not_grow_with_the_square_of_the_classes():
    sizes = []
    for classes in (100, 10_000):
        names = [f"c{i:05}" for i in range(classes)]
        matrix = confusion_matrix(*mixed_up(classes), names, limit=40)
        sizes.append(len(json.dumps(matrix)))
    assert max(sizes) < 1.2 * min(sizes)
    assert MATRIX_CELLS >= 3 * 41**2  # room for 40 classes of three tasks


def test_without_labels_the_matrix_is_zero():
    nothing = np.zeros(0, int)
    matrix = confusion_matrix(nothing, nothing, [f"c{i}" for i in range(50)], limit=40)
    assert np.array(matrix["counts"]).shape == (41, 41)
    assert not np.any(matrix["counts"])
