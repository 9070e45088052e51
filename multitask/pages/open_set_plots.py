"""Plots of an open task: how well it separates images of its classes from other images."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from multitask.pages.canvas import (
    BLUE,
    MUTED,
    ORANGE,
    AnyTarget,
    Svg,
    new_figure,
    write_message,
    write_title,
)
from multitask.pages.curves import PANEL_IN, Panel


def open_set(target: AnyTarget, values: Mapping[str, Any] | None, *, task: str) -> AnyTarget:
    """Plot both panels of `open_set_panels`.

    Args:
        target: the PNG to write, or a `Drawing`.
        values: the task's entry in `open_set` of `metrics.json`; None if the task is not open, or
            if no test image has none of its classes.
        task: name of the task.
    """
    if values is None:
        return write_message(target, task, "other images", "none in the test set")
    with new_figure(target, (9, 4)) as figure:
        for axes, (title, draw) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
            draw(axes, values)
            axes.set_title(title, loc="left")
        figure.axes[0].legend(frameon=False)
        others = values["others"]
        text = f"{others['images']:,} test images have none of its classes"
        if others["auroc"] is not None:
            text += f", AUROC {others['auroc']:.3f}"
        write_title(figure, task, text)
    return target


def open_set_panels(values: Mapping[str, Any] | None) -> list[Panel]:
    """The distribution of the probability of having a class, and the OSCR curve.

    Args:
        values: as for `open_set`.
    """
    if values is None:
        return []
    panels = []
    for title, draw in PANELS.items():
        svg = Svg()
        with new_figure(svg, PANEL_IN) as figure:
            axes = figure.add_subplot()
            draw(axes, values)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(frameon=False, fontsize=7)
        panels.append(Panel(title, svg.text))
    return panels


def _draw_histogram(axes: Axes, values: Mapping[str, Any]) -> None:
    """The share of the images of each kind in each bin of the probability."""
    kinds = (("known", "one of the classes", BLUE), ("others", "none of them", ORANGE))
    for kind, label, colour in kinds:
        counts = np.asarray(values["histogram"][kind])
        edges = np.linspace(0, 1, len(counts) + 1)
        shares = counts / max(counts.sum(), 1)
        axes.stairs(shares, edges, fill=True, alpha=0.45, color=colour, label=label)
    axes.set(xlim=(0, 1), xlabel="probability of having one of the classes", ylabel="share")


def _draw_oscr(axes: Axes, values: Mapping[str, Any]) -> None:
    """The share of correctly answered known images, against the share of accepted other images."""
    curve = values["oscr"]["curve"]
    axes.plot(
        [p["others"] for p in curve], [p["right"] for p in curve], color=ORANGE, linewidth=1.6
    )
    axes.axhline(curve[-1]["right"], color=MUTED, linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    axes.set(xlabel="share of other images that get a class", ylabel="share right, known images")


PANELS: dict[str, Callable[[Axes, Mapping[str, Any]], None]] = {
    "Known images and other images": _draw_histogram,
    "Open-set classification rate": _draw_oscr,
}
