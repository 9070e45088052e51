"""The comparison of distances: what is drawn, and the table, on embeddings made by chance."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FILE = Path(__file__).parents[2] / "tools" / "measure_distance.py"
SPEC = importlib.util.spec_from_file_location("measure_distance", FILE)
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)


def test_the_table_has_every_method_and_kind():
    rng = np.random.default_rng(0)
    arrays = {
        kind: rng.normal(2 * (kind != "blank"), 1, (count, 64)).astype(np.float32)
        for kind, count in (("train", 300), ("validation", 120), ("test", 200), ("blank", 30))
    }
    for kind, values in arrays.items():
        arrays[kind] = values / np.linalg.norm(values, axis=1, keepdims=True)
    table = tool.measure(arrays)
    assert set(table["training"]) == {200, 300}
    assert set(table["kind"]) == {"blank"}
    names = {"neighbour 1", "neighbour 10", "neighbour 50", "mahalanobis 16", "mahalanobis, shrunk"}
    assert set(table["method"]) == names
    assert table["auroc"].min() > 0.99
    assert table["refused_0.05"].min() > 0.9
    assert table["test_0.05"].max() < 0.15


@pytest.mark.parametrize("kind", tool.DRAWN)
def test_the_same_seed_draws_the_same_image(kind):
    first, again, other = (tool.DRAWN[kind](random.Random(seed)) for seed in (3, 3, 4))
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert not np.array_equal(np.asarray(first), np.asarray(other))


def test_every_kind_of_noise_is_drawn():
    shares = [len(np.unique(np.asarray(tool.noise(random.Random(s))))) for s in range(20)]
    assert min(shares) > 50


def test_a_damaged_file_is_an_image_or_nothing(tmp_path, write_image):
    write_image(tmp_path / "a.jpg", width=200, height=150)
    images = [tool.damaged(tmp_path / "a.jpg", random.Random(seed)) for seed in range(20)]
    assert any(isinstance(image, Image.Image) for image in images)
