"""The architecture of a network as an image: its layers as boxes from top to bottom."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path as Polyline

from multitask.pages.canvas import (
    INK,
    MUTED,
    ORANGE,
    AnyTarget,
    new_figure,
    write_message,
    write_title,
)
from multitask.pages.text import shorten

_BOX_IN = (6.2, 0.36)  # width and height of a box
_STEP_IN = 0.56  # from one box to the next


def architecture(target: AnyTarget, nodes: Sequence[dict], *, task: str) -> AnyTarget:
    """The layers as boxes from top to bottom, each fed by the one above it.

    An input from any other box, such as the shortcut of a residual block, is an arc on the right.

    Args:
        target: the PNG to write, or a `Drawing`.
        nodes: in topological order, each {"name": str, "kind": str, "shape": str, "parameters":
            int, "trainable": bool, or None without weights, "inputs": names of earlier
            nodes}.
        task: name of the task, for the title.

    Returns:
        `target`.
    """
    if not nodes:
        return write_message(target, task, "architecture", "no layers")
    arrows = connections(nodes)
    width, height = _BOX_IN
    bulges = [0.35 + 0.15 * min(target - source, 12) for source, target in arrows]
    right = width + max(
        (b for b, (s, t) in zip(bulges, arrows, strict=True) if t > s + 1), default=0
    )
    bottom = (len(nodes) - 1) * _STEP_IN + height
    with new_figure(target, (right + 0.6, bottom + 1.1), layout=None) as figure:
        # One inch is one unit, so that boxes and letters keep their size in every diagram.
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-0.3, right + 0.3), ylim=(-bottom - 0.1, 1.0))
        axes.set_axis_off()
        for row, node in enumerate(nodes):
            _draw_box(axes, node, -row * _STEP_IN)
        for bulge, (source, end_row) in zip(bulges, arrows, strict=True):
            start, end = -source * _STEP_IN, -end_row * _STEP_IN
            if end_row == source + 1:
                line = Polyline([(width / 2, start - height), (width / 2, end)])
            else:  # a cubic curve reaches three quarters of the way to its control points
                out = width + bulge / 0.75
                points = [(width, start - height / 2), (out, start - height / 2)]
                points += [(out, end - height / 2), (width, end - height / 2)]
                line = Polyline(points, [Polyline.MOVETO, *3 * [Polyline.CURVE4]])
            look: dict[str, Any] = {
                "arrowstyle": "-|>",
                "mutation_scale": 9,
                "color": MUTED,
                "linewidth": 1,
            }
            axes.add_patch(FancyArrowPatch(path=line, **look))
        kinds = (("trainable", True), ("frozen", False), ("no weights", None))
        axes.legend(
            handles=[Patch(label=label, **_LOOKS[trainable]) for label, trainable in kinds],
            loc="lower left", bbox_to_anchor=(0, 0.15), bbox_transform=axes.transData,
            ncols=3, frameon=False, borderaxespad=0,
        )  # fmt: skip
        total = sum(node["parameters"] for node in nodes)
        trained = sum(node["parameters"] for node in nodes if node["trainable"])
        write_title(figure, task, f"architecture, {total:,} parameters, {trained:,} trainable")
    return target


def connections(nodes: Sequence[dict]) -> list[tuple[int, int]]:
    """(row of the source, row of the target) of each input of `architecture`'s boxes."""
    rows = {node["name"]: row for row, node in enumerate(nodes)}
    return [(rows[name], row) for row, node in enumerate(nodes) for name in node["inputs"]]


_LOOKS: dict[bool | None, dict[str, Any]] = {
    True: {"facecolor": "#FDE3C8", "edgecolor": ORANGE},
    False: {"facecolor": "#DCE5EE", "edgecolor": "#7C93AB"},
    None: {"facecolor": "white", "edgecolor": "#9CA3AF"},
}


def _draw_box(axes: Axes, node: dict, top: float) -> None:
    """One box: the name on the left; kind, output shape and parameters on the right."""
    width, height = _BOX_IN
    style = "round,pad=0,rounding_size=0.07"
    look: dict[str, Any] = {"linewidth": 1.1} | _LOOKS[node["trainable"]]
    axes.add_patch(FancyBboxPatch((0, top - height), width, height, boxstyle=style, **look))
    middle: dict[str, Any] = {"y": top - height / 2, "va": "center"}
    name = shorten(node["name"], 30, spaces=False)
    axes.text(x=0.12, s=name, size=8.5, weight="bold", **middle)
    parts = [shorten(node["kind"], 22), shorten(node["shape"], 16)]
    if node["parameters"]:
        parts.append(f"{node['parameters']:,}")
    if node["trainable"] is False:
        parts.append("frozen")
    axes.text(x=width - 0.12, s=" · ".join(parts), ha="right", size=7.5, color=INK, **middle)
