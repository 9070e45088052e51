"""Plots of the sets of classes of one task: their sizes, and their coverage by class."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from multitask.conformal import HEADLINE, SHOWN_COVERAGES
from multitask.errors import counted
from multitask.pages.canvas import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    AnyTarget,
    Svg,
    new_figure,
    write_message,
    write_title,
)
from multitask.pages.curves import PANEL_IN, Panel
from multitask.pages.text import shorten
from multitask.spec import NO_TEST_SET

SHOWN = 40  # most classes in the plot: those with the lowest coverage
ON_PAGE = 8  # most classes on the page
MOST_SIZES = 12  # most bars of the histogram; the last bar includes all larger sets


def coverage(target: AnyTarget, of_task: Mapping[str, Any], *, task: str) -> AnyTarget:
    """Plot the sizes of the sets of coverage HEADLINE, and their coverage by class.

    Args:
        target: the PNG to write, or a `Drawing`.
        of_task: the task's entry in `conformal` of `metrics.json`.
        task: name of the task, for the title.
    """
    level = _level(of_task)
    if "coverage" not in level:
        reason = level["reason"] or NO_TEST_SET
        return write_message(target, task, f"sets of coverage {HEADLINE:g}", shorten(reason, 80))
    classes = _least_covered(of_task)
    height = max(4.0, 1.5 + 0.24 * min(SHOWN, len(classes)))
    with new_figure(target, (12, height)) as figure:
        sizes, by_class = figure.subplots(1, 2, width_ratios=(4, 7))
        _draw_sizes(sizes, level["set_sizes"])
        sizes.set_box_aspect(0.75)
        sizes.set_anchor("N")
        _draw_classes(by_class, classes[:SHOWN])
        text = f"sets of coverage {HEADLINE:g}: {level['coverage']:.3f} on the test set, "
        text += f"{level['mean_set_size']:.1f} classes on average"
        if len(classes) > SHOWN:
            text += f"; {SHOWN} of {counted(len(classes), 'class', 'classes')}"
        write_title(figure, task, text)
    return target


def coverage_panels(of_task: Mapping[str, Any]) -> list[Panel]:
    """The panels of `coverage` for a page, with ON_PAGE classes; none without test images."""
    level = _level(of_task)
    if "coverage" not in level:
        return []
    sizes, by_class = Svg(), Svg()
    with new_figure(sizes, PANEL_IN) as figure:
        _draw_sizes(figure.add_subplot(), level["set_sizes"])
    classes = _least_covered(of_task)
    with new_figure(by_class, PANEL_IN) as figure:
        _draw_classes(figure.add_subplot(), classes[:ON_PAGE])
    title = "Coverage by class"
    if len(classes) > ON_PAGE:
        title = f"Coverage by class, the lowest {ON_PAGE}"
    return [Panel("Classes in a set", sizes.text), Panel(title, by_class.text)]


def _level(of_task: Mapping[str, Any]) -> Mapping[str, Any]:
    return of_task["levels"][SHOWN_COVERAGES.index(HEADLINE)]


def _least_covered(of_task: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    """Name, test images and coverage of each class with test images, lowest coverage first."""
    place = SHOWN_COVERAGES.index(HEADLINE)
    rows = [
        (row["name"], row["test_images"], row["coverage"][place])
        for row in of_task["classes"]
        if row["test_images"]
    ]
    # If coverages are equal, the class with more images comes first: its coverage is more certain.
    return sorted(rows, key=lambda row: (row[2], -row[1]))


def _draw_sizes(axes: Axes, counts: list[int]) -> None:
    last = max(size for size, count in enumerate(counts, start=1) if count)
    shown = np.asarray(counts[:last], np.int64)
    labels = [str(size) for size in range(1, last + 1)]
    if last > MOST_SIZES:
        shown = np.append(shown[: MOST_SIZES - 1], shown[MOST_SIZES - 1 :].sum())
        labels = [*labels[: MOST_SIZES - 1], f"{MOST_SIZES}+"]
    axes.bar(range(len(shown)), 100 * shown / shown.sum(), color=BLUE, width=0.72)
    axes.set_xticks(range(len(shown)), labels)
    axes.grid(False, axis="x")
    axes.set(xlabel="classes in the set", ylabel="% of the test images")


def _draw_classes(axes: Axes, classes: list[tuple[str, int, float]]) -> None:
    axes.barh(range(len(classes)), [share for *_, share in classes], color=BLUE, height=0.72)
    axes.axvline(HEADLINE, color=ORANGE, linewidth=1.6)
    margin = axes.get_yaxis_transform()
    for place, (_, images, share) in enumerate(classes):
        inside = share > 0.15  # the text is at the start of the bar, clear of the line
        axes.text(
            0.01 if inside else share + 0.01, place, f"{share:.3f}", va="center", size=7,
            color="white" if inside else INK,
        )  # fmt: skip
        axes.text(1.02, place, f"{images:,}", transform=margin, va="center", size=7, color=MUTED)
    axes.text(1.02, -0.85, "images", transform=margin, size=7, color=MUTED)
    axes.set_yticks(range(len(classes)), [shorten(name, 30) for name, *_ in classes], size=7)
    axes.set(xlim=(0, 1), ylim=(len(classes) - 0.4, -0.6), xlabel="coverage")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(False, axis="y")
