"""Plots with one bar, row or cell per class: confusion matrix, F1 scores, label counts.

Each is written as one PNG. `_` in a name becomes a space, and long names are shortened. If a task
has many classes, a plot shows SHOWN of them and its title names the selection.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from multitask.errors import counted
from multitask.pages.canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PALE,
    AnyTarget,
    new_figure,
    write_title,
)
from multitask.pages.text import shorten
from multitask.spec import NO_TEST_SET

SHOWN = 40  # classes whose names fit into a plot


# === Confusion matrix ===


def confusion_matrix(
    target: AnyTarget,
    matrix: ArrayLike,
    names: Sequence[str],
    *,
    task: str,
    rest: int = 0,
    right: int | None = None,
) -> AnyTarget:
    """Plot a confusion matrix, coloured by the share of the true class.

    A class without examples is a grey row. The cell in which all remaining classes are predicted as
    remaining classes is grey, because it has right and wrong predictions.

    Args:
        target: the PNG to write, or a `Drawing`.
        matrix: int [classes, classes], counts; rows are the true class. With `rest`:
            [classes + 1, classes + 1], and the last row and column are the remaining classes.
        names: name of each class, by index, without the remaining ones.
        task: name of the task, for the title.
        rest: number of remaining classes, which share the last row and column.
        right: number of right predictions; None: the sum of the diagonal.

    Raises:
        ValueError: the matrix is not square, or does not match `names`.
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    classes = len(names) + bool(rest)
    if matrix.shape != (classes, classes) or not len(names):
        raise ValueError(f"a matrix of shape {matrix.shape} does not match {len(names)} names.")
    total = int(matrix.sum())
    cell_in, labels = min(0.8, 12 / classes), [shorten(name, 30) for name in names]
    if rest:
        cell_in = max(0.34, cell_in)
        labels.append(counted(rest, "more class", "more classes"))
    side_in = max(3.2, cell_in * classes)
    with new_figure(target, (side_in + 3, side_in + 2.2), layout="compressed") as figure:
        axes = figure.add_subplot()
        _draw_matrix(axes, matrix, cell_in, rest=bool(rest))
        _label_matrix(axes, labels if cell_in > 0.12 else [], matrix.sum(axis=1))
        right = int(np.trace(matrix)) if right is None else right
        every = "all " if rest else ""
        text = f"{right / total * 100:.1f} % of {every}{total:,} right" if total else NO_TEST_SET
        if rest:
            shown = f"{len(names)} of {len(names) + rest:,} classes"
            text = f"{shown}, those most often confused; {text}"
            axes.set_xlabel("predicted (grey corner: remaining classes, right and wrong)")
        write_title(figure, task, f"confusion matrix, {text}")
    return target


def _draw_matrix(axes: Axes, matrix: np.ndarray, cell_in: float, *, rest: bool) -> None:
    """Draw the cells, with percentages if a cell is large enough."""
    classes, support = len(matrix), matrix.sum(axis=1)
    absent = support == 0
    shares = matrix / np.maximum(support, 1)[:, None]
    mask = np.repeat(absent[:, None], classes, axis=1)
    if rest:
        mask[-1, -1] = True
    # A percentage needs a third of an inch; a count below it needs room for two lines.
    annotations: Any = False
    if cell_in > 0.33:
        annotations = np.vectorize(cell_text)(matrix, shares, cell_in > 0.6)
    axes.set_facecolor(PALE)
    axes.grid(False)
    sns.heatmap(
        pd.DataFrame(shares),
        ax=axes,
        mask=mask,
        annot=annotations,
        fmt="",
        annot_kws={"fontsize": 7.5 if cell_in < 0.6 else 9},
        cmap="Blues",
        vmin=0,
        vmax=1,
        square=True,
        linewidths=0.5,
        linecolor="white",
        cbar_kws={
            "shrink": 0.5,
            "aspect": 25,
            "pad": 0.02,
            "format": PercentFormatter(1, symbol=" %"),
            "label": "share of the true class",
        },
    )
    for row in np.flatnonzero(absent):
        text = "no examples"
        axes.text(classes / 2, row + 0.5, text, ha="center", va="center", color=MUTED, size=8)


def _label_matrix(axes: Axes, names: Sequence[str], support: np.ndarray) -> None:
    axes.set_yticks(np.arange(len(names)) + 0.5)
    axes.set_yticklabels(
        [f"{name}  ({n:,})" for name, n in zip(names, support, strict=False)], rotation=0
    )
    axes.set_xticks(np.arange(len(names)) + 0.5)
    axes.set_xticklabels(names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set(xlabel="predicted", ylabel="true (examples)")


def cell_text(count: int, share: float, with_count: bool) -> str:
    """A cell of the matrix: the percentage, and the count below it if there is room."""
    if not count:
        return ""
    percent = f"{share * 100:.0f}" if share >= 0.005 else "<1"
    return f"{percent} %\n({count:,})" if with_count else percent


# === F1 scores ===


def f1_scores(
    target: AnyTarget,
    f1: ArrayLike,
    support: ArrayLike,
    names: Sequence[str],
    *,
    task: str,
    macro_f1: float | None,
) -> AnyTarget:
    """Plot the F1 score of each class, best first, with its number of examples.

    Of more than SHOWN classes with examples, the best and the worst are plotted, and the
    distribution of all.

    Args:
        target: the PNG to write, or a `Drawing`.
        f1: float [classes] in [0, 1]; ignored if there is no support.
        support: int [classes], examples.
        names: name of each class, by index.
        task: name of the task, for the title.
        macro_f1: mean over the classes with support; None (or NaN) if there is none.

    Raises:
        ValueError: arrays of different lengths, or empty.
    """
    f1, support = np.asarray(f1, dtype=np.float64), np.asarray(support, dtype=np.int64)
    if not len(names) or f1.shape != (len(names),) or support.shape != f1.shape:
        raise ValueError(
            f"f1 {f1.shape}, support {support.shape} and {len(names)} names do not match."
        )
    order, hidden = _f1_selection(f1, support)
    present = int((support > 0).sum())
    places = _bar_places(len(order), hidden)
    with new_figure(target, (8.5 + 4 * bool(hidden), 1.6 + 0.27 * (places[-1] + 1))) as figure:
        axes, distribution = _panels(figure, hidden, places)
        _draw_f1_bars(axes, places, f1[order], support[order])
        axes.set_yticks(places, [shorten(names[index], 34) for index in order])
        if distribution:
            distribution.hist(f1[support > 0], bins=np.linspace(0, 1, 21).tolist(), color=BLUE)
            distribution.set(xlabel="F1", title=f"all {present:,} classes with examples")
        text = NO_TEST_SET
        if macro_f1 is not None and math.isfinite(macro_f1):
            text = f"macro-F1 {macro_f1:.3f} over {present:,} of {len(names):,} classes"
            axes.axvline(macro_f1, color=ORANGE, linewidth=1.5, zorder=0.9)
            axes.text(
                macro_f1, 1.0, " macro-F1 ", color=ORANGE, size=8, ha="center", va="bottom",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        if hidden:
            text = f"the {SHOWN // 2} best and the {SHOWN // 2} worst, {text}"
        write_title(figure, task, f"F1 by class, {text}")
    return target


def f1_order(f1: ArrayLike, support: ArrayLike) -> np.ndarray:
    """Order of the bars, int [classes]: best F1 first, ties by index, no support last."""
    f1, absent = np.asarray(f1, dtype=np.float64), np.asarray(support) == 0
    return np.lexsort((np.where(absent, 0.0, -np.nan_to_num(f1)), absent))


def _f1_selection(f1: np.ndarray, support: np.ndarray) -> tuple[np.ndarray, int]:
    """The classes to plot, int [n], and how many are hidden between the best and the worst."""
    order, present = f1_order(f1, support), int((support > 0).sum())
    if present > SHOWN:
        # Among equal scores, classes with many examples are shown, as they are more certain.
        best = np.lexsort((-support, -np.nan_to_num(f1), support == 0))[:present]
        worst = np.lexsort((support, -np.nan_to_num(f1), support == 0))[:present]
        return _first_and_last(best, worst)
    return order[: max(1, present)] if len(order) > SHOWN else order, 0


def _draw_f1_bars(axes: Axes, places: np.ndarray, f1: np.ndarray, support: np.ndarray) -> None:
    values = np.where(support > 0, np.nan_to_num(f1), 0.0)
    axes.barh(places, values, color=BLUE, height=0.72)
    axes.set_ylim(places[-1] + 0.5, -0.5)
    margin = axes.get_yaxis_transform()
    axes.text(1.0, -0.75, "examples", transform=margin, ha="right", size=8, color=MUTED)
    for place, value, n in zip(places, values, support, strict=True):
        # Inside the bar if it is long enough, so that the macro line crosses no number.
        inside = value > 0.12
        axes.text(
            value - 0.01 if inside else value + 0.01, place, f"{value:.3f}" if n else "n/a",
            ha="right" if inside else "left", va="center", size=8,
            color="white" if inside else INK if n else MUTED,
        )  # fmt: skip
        axes.text(
            1.0, place, f"{n:,}", transform=margin, ha="right", va="center", size=8,
            color=INK if n else MUTED,
        )  # fmt: skip
    axes.set(xlim=(0, 1.12), xlabel="F1", ylabel="")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.spines["bottom"].set_bounds(0, 1)
    axes.grid(False, axis="y")


# === Label counts ===


def class_counts(
    target: AnyTarget, counts: ArrayLike, names: Sequence[str], *, task: str, rare: int = 0
) -> AnyTarget:
    """Plot the training labels of each class on a logarithmic axis, the largest class first.

    Of more than SHOWN classes with labels, the largest and the smallest are plotted, and the
    distribution of all.

    Args:
        target: the PNG to write, or a `Drawing`.
        counts: int [classes], labels.
        names: name of each class, by index.
        task: name of the task, for the title.
        rare: classes with fewer labels are orange.

    Raises:
        ValueError: counts and names do not match, or there are none.
    """
    counts = np.asarray(counts, dtype=np.int64)
    _check_counts(counts, names)
    order, hidden = np.argsort(-counts, kind="stable"), 0
    present = counts[counts > 0]
    text = "no labels"
    if len(present):
        text = f"{counts.sum():,} training labels, "
        text += f"largest : smallest class {present.max() / present.min():,.1f} : 1"
        if len(present) < len(counts):
            text += f", {len(counts) - len(present):,} without any"
    if len(counts) > SHOWN:
        order, hidden = _first_and_last(
            order[: max(1, len(present))], order[: max(1, len(present))]
        )
        text = f"the {SHOWN // 2} largest and the {SHOWN // 2} smallest classes, {text}"
    places = _bar_places(len(order), hidden)
    with new_figure(target, (8.5 + 4 * bool(hidden), 1.5 + 0.24 * (places[-1] + 1))) as figure:
        axes, distribution = _panels(figure, hidden, places)
        colours = [ORANGE if counts[index] < rare else BLUE for index in order]
        _draw_count_bars(axes, places, counts[order], [names[index] for index in order], colours)
        axes.set(xlabel="training labels (logarithmic)")
        if distribution:
            steps = np.unique(np.geomspace(1, present.max() + 1, 21).round()).tolist()
            distribution.hist(present, bins=steps, color=BLUE)
            distribution.set_xscale("log")
            distribution.minorticks_off()  # their labels would be formulas
            distribution.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            distribution.set(
                xlabel=axes.get_xlabel(), title=f"all {len(present):,} classes with labels"
            )
        write_title(figure, task, text)
    return target


def label_sets(
    target: AnyTarget, counts: ArrayLike, names: Sequence[str], *, title: str
) -> AnyTarget:
    """Plot the number of images with each set of labels, on a logarithmic axis.

    Args:
        target: the PNG to write, or a `Drawing`.
        counts: int [sets], images.
        names: names of the sets, from top to bottom; the first SHOWN are plotted.
        title: name of the data set.

    Raises:
        ValueError: counts and names do not match, or there are none.
    """
    counts = np.asarray(counts, dtype=np.int64)
    _check_counts(counts, names)
    text = f"labels of {counted(int(counts.sum()), 'image')}"
    if len(counts) > SHOWN:
        text += f", {SHOWN} of {len(counts):,} sets of labels"
    counts, names = counts[:SHOWN], names[:SHOWN]
    with new_figure(target, (8.5, 1.5 + 0.3 * len(counts))) as figure:
        axes = figure.add_subplot()
        _draw_count_bars(axes, np.arange(len(counts)), counts, names, [GREEN] * len(counts))
        axes.set(xlabel="images (logarithmic)")
        write_title(figure, title, text)
    return target


def _check_counts(counts: np.ndarray, names: Sequence[str]) -> None:
    if counts.shape != (len(names),) or not len(names):
        raise ValueError(f"counts {counts.shape} and {len(names)} names do not match.")


def _draw_count_bars(
    axes: Axes, places: np.ndarray, counts: np.ndarray, names: Sequence[str], colours: list[str]
) -> None:
    """One bar per count. Bars start at one half, so that a single example has a bar too."""
    axes.barh(places, np.maximum(counts, 0.5) - 0.5, left=0.5, color=colours, height=0.72)
    for place, count in zip(places, counts, strict=True):
        axes.text(
            max(count, 0.5) * 1.06, place, f"{count:,}", va="center", size=8,
            color=INK if count else MUTED,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(0.5, max(10, counts.max() * 2.5))
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_yticks(places, [shorten(name, 40) for name in names])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()
    axes.grid(False, axis="y")


# === Bars of some of many classes ===


def _first_and_last(ranked: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, int]:
    """Select the first and the last classes, SHOWN of them, and count those between.

    Args:
        ranked: int [classes], the order from which the first are taken.
        last: the same classes, in the order from which the last are taken.
    """
    if len(ranked) <= SHOWN:
        return ranked, 0
    first = ranked[: SHOWN // 2]
    rest = last[~np.isin(last, first)]
    return np.append(first, rest[-(SHOWN // 2) :]), len(ranked) - SHOWN


def _bar_places(count: int, hidden: int) -> np.ndarray:
    """Positions of the bars, with a gap in the middle if classes are hidden."""
    return np.arange(count) + (np.arange(count) >= count // 2) * bool(hidden)


def _panels(figure: Figure, hidden: int, places: np.ndarray) -> tuple[Axes, Axes | None]:
    """The axes of the bars and, if classes are hidden, of the distribution of all."""
    if not hidden:
        return figure.add_subplot(), None
    bars, distribution = figure.subplots(1, 2, width_ratios=(8.5, 4))
    distribution.set_ylabel("classes")
    distribution.set_box_aspect(0.75)
    distribution.set_anchor("N")
    distribution.yaxis.set_major_locator(MaxNLocator(integer=True))
    distribution.grid(False, axis="x")
    bars.text(
        0.0, places[len(places) // 2] - 1, f"  {counted(hidden, 'class', 'classes')} between",
        transform=bars.get_yaxis_transform(), va="center", size=8, color=MUTED,
    )  # fmt: skip
    return bars, distribution
