"""Every way to reject images, on features in which the other images are easily told."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from specs import spec_of
from tiny_trunk import two_blocks

from multitask.model.trunks import TRUNKS
from multitask.spec import OTHER_LABEL

FILE = Path(__file__).parents[2] / "tools" / "compare_rejection.py"
SPEC = importlib.util.spec_from_file_location("compare_rejection", FILE)
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)

CLASSES = 3


@pytest.fixture(scope="module")
def data():
    """Each class has a channel of its own; other images have none of these."""
    rng = np.random.default_rng(17)
    y = rng.choice([0, 1, 2, OTHER_LABEL], 900, p=[0.2, 0.2, 0.2, 0.4])
    x = rng.normal(0, 0.4, (900, 12)).astype(np.float32)
    x[np.arange(900), np.where(y >= 0, y, 3 + rng.integers(0, 3, 900))] += 3
    groups = np.array([f"g{i % 10}" for i in range(900)], object)
    return SimpleNamespace(x=x, y=y, groups=groups)


@pytest.mark.parametrize(
    ("way", "weight", "least"),
    [
        ("none", 0.0, 0.0),
        ("free energy", 1.0, 0.97),
        ("extra class", 1.0, 0.97),
        ("exposure", 0.5, 0.97),
        ("one-vs-rest", 1.0, 0.97),
    ],
)
def test_a_way_that_is_taught_rejects(data, way, weight, least, monkeypatch):
    monkeypatch.setitem(TRUNKS, "tiny", two_blocks)
    spec = spec_of(
        {"name": "shape", "unlabelled": "other", "loss": {"kind": "cross_entropy"}},
        "style",
        trunk={"name": "tiny"},
        image_size=64,
        phases={"heads": {"epochs": 30}},
    )
    row = tool.measure(
        spec, spec.tasks[0], data, CLASSES, way=way, weight=weight, seed=0, rate=0.04
    )
    assert set(row) == set(tool.COLUMNS)
    assert row["top1"] > 0.97
    assert min(row["auroc"], row["auroc_new"]) > least
    if least:
        assert row["fpr95"] < 0.1
