"""Small data sets whose features are cached, and the features that the trunk gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from multitask.data.order import SHUFFLED
from multitask.data.pipeline import evaluation_dataset, training_dataset
from multitask.data.table import TRAIN
from multitask.model.network import build_network, trunk_and_heads
from multitask.spec import override

STRONG = {"flip": True, "brightness": 0.3, "contrast": [0.5, 1.5], "crop": [0.5, 0.9]}
IMAGES, TRAINED, HELD = 25, 18, 7
GRU = {"kind": "gru", "units": 3}


def quiet(line):
    pass


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


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)
