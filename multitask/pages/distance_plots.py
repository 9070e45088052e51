"""The plot of the distances of validation and test images to the training images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from multitask.pages.canvas import BLUE, INK, ORANGE, AnyTarget, Svg, new_figure, write_title
from multitask.pages.curves import PANEL_IN, Panel

TITLE = "Distance to the training images"


def distance_plot(target: AnyTarget, values: Mapping[str, Any]) -> AnyTarget:
    """Plot the distributions of the distances, and the limit.

    Args:
        target: the PNG to write, or a `Drawing`.
        values: `distance` of `metrics.json`, of a fitted distance.
    """
    with new_figure(target, (7, 4)) as figure:
        axes = figure.add_subplot()
        _draw(axes, values)
        axes.legend(frameon=False)
        text = f"limit {values['limit']:.3f}"
        if values["share"] is not None:
            text += f", {values['share']:.1%} of the test images are farther"
        write_title(figure, "distance", text)
    return target


def distance_panels(values: Mapping[str, Any] | None) -> list[Panel]:
    """The plot for a page; none if no distance was fitted."""
    if not values or values["reason"]:
        return []
    svg = Svg()
    with new_figure(svg, PANEL_IN) as figure:
        axes = figure.add_subplot()
        _draw(axes, values)
        axes.legend(frameon=False, fontsize=7)
    return [Panel(TITLE, svg.text)]


def _draw(axes: Axes, values: Mapping[str, Any]) -> None:
    """The share of the images of both splits in each bin, and the limit as a line."""
    histogram = values["histogram"]
    for split, colour in (("validation", BLUE), ("test", ORANGE)):
        counts = np.asarray(histogram[split])
        if counts.any():
            shares = 100 * counts / counts.sum()
            axes.stairs(
                shares, histogram["edges"], fill=True, alpha=0.45, color=colour, label=split
            )
    axes.axvline(values["limit"], color=INK, linestyle="--", linewidth=1.2, label="limit")
    axes.set(xlabel="distance", ylabel="% of the images of the split")
