"""Each input is one connection, and boxes keep their size."""

import numpy as np
import pytest
from PIL import Image

from multitask.pages import canvas, diagram


def node(name, *inputs, kind="Dense", trainable=True):
    return {
        "name": name,
        "kind": kind,
        "shape": "7×7×1408",
        "parameters": 1234567,
        "trainable": trainable,
        "inputs": list(inputs),
    }


def chain(length, kind, first=None, prefix="n"):
    names = [f"{prefix}{k}" for k in range(length)]
    befores = [[first] if first else [], *([name] for name in names)]
    return [node(name, *before, kind=kind) for name, before in zip(names, befores, strict=False)]


RESIDUAL = [
    node("shortcut", "start"),
    node("main", "start"),
    node("relu", "main", trainable=None),
    node("squeeze", "relu"),
    node("excite", "squeeze"),
    node("scale", "relu", "excite", trainable=None),
    node("add", "shortcut", "scale", trainable=None),
    node("logits", "add"),
]


def test_every_input_is_one_connection():
    """A residual block with squeeze-and-excitation, by hand."""
    assert diagram.connections([node("start"), *RESIDUAL]) == [
        (0, 1), (0, 2), (2, 3), (3, 4), (4, 5), (3, 6), (5, 6), (1, 7), (6, 7), (7, 8),
    ]  # fmt: skip


def test_boxes_keep_their_size_and_the_arcs_their_room(tmp_path):
    """A chain grows by a step a box; an arc widens the figure, a chain does not."""
    sizes = {}
    for name, nodes in (
        ("two", chain(2, "Dense")),
        ("six", chain(6, "Dense")),
        ("arc", [*chain(5, "Dense"), node("n5", "n4", "n1")]),
    ):
        with Image.open(diagram.architecture(tmp_path / f"{name}.png", nodes, task="t")) as image:
            sizes[name] = np.array(image.size) / canvas.DPI
    assert sizes["six"] - sizes["two"] == pytest.approx([0, 4 * diagram._STEP_IN], abs=0.02)
    assert sizes["arc"] - sizes["six"] == pytest.approx([0.35 + 0.15 * 4, 0], abs=0.02)


@pytest.mark.parametrize(
    "nodes",
    [
        [],
        [node("a $x$ <b>", kind="K" * 90, trainable=None)],
        [*chain(12, "trunk block", None, "block"), node("start", "block11"), *RESIDUAL],
        [node("é" * 99, trainable=False), node("b", "é" * 99)],
    ],
)
def test_architecture(tmp_path, nodes):
    path = tmp_path / "architecture.png"
    assert diagram.architecture(path, nodes, task="t") == path
    assert list(tmp_path.iterdir()) == [path]
    with Image.open(path) as image:
        image.verify()
        assert image.format == "PNG"
        assert 100 < image.width < 3000
        assert 100 < image.height < 3000
