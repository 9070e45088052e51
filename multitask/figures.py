"""Plots from arrays alone, each written as one PNG.

Every function draws on a figure of its own (pyplot's state is left alone), writes under a temporary
name in the folder of `path` and renames into place, so that a reader never meets half a picture.
Names and captions are shown as they are: `$` starts no formula, `_` becomes a space, and what is
too long loses its middle. Colours are told apart by colour-blind readers (Okabe and Ito 2008).
"""

import base64
import contextlib
import io
import itertools
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from matplotlib.path import Path as Polyline
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from PIL import Image, ImageOps

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, MUTED, PALE = "#222222", "#6B7280", "#E5E7EB"
DPI = 130

_STYLE = {
    **sns.axes_style("whitegrid"),
    "axes.edgecolor": "#9CA3AF",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": PALE,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5 & $10"
}


def confusion_matrix(path, matrix, names: Sequence[str], *, task: str) -> Path:
    """Which class was taken for which, coloured by the share of the true class.

    Args:
        path: the PNG to write.
        matrix: int [classes, classes], counts; rows are the true class.
        names: name of each class, by index.
        task: name of the task, for the title.

    Returns:
        `path`. A class without examples is a grey row.

    Raises:
        ValueError: a matrix that is not square, or of another size than `names`.
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    classes = len(names)
    if matrix.shape != (classes, classes) or not classes:
        raise ValueError(f"a matrix of shape {matrix.shape} does not match {classes} names.")
    support = matrix.sum(axis=1)
    total, absent = int(support.sum()), support == 0
    shares = matrix / np.maximum(support, 1)[:, None]
    cell_in = min(0.8, 12 / classes)
    side_in = max(3.2, cell_in * classes)
    # Percent need a third of an inch; counts too need room for two lines.
    annotations: Any = False
    if cell_in > 0.33:
        annotations = np.vectorize(_cell_text)(matrix, shares, cell_in > 0.6)
    with _figure(path, (side_in + 3, side_in + 2.2), layout="compressed") as figure:
        axes = figure.add_subplot()
        axes.set_facecolor(PALE)
        axes.grid(False)
        sns.heatmap(
            pd.DataFrame(shares),
            ax=axes,
            mask=np.repeat(absent[:, None], classes, axis=1),
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
        shown = [_shorten(name, 30) for name in names] if cell_in > 0.12 else []
        axes.set_yticks(np.arange(len(shown)) + 0.5)
        axes.set_yticklabels(
            [f"{name}  ({n:,})" for name, n in zip(shown, support, strict=False)], rotation=0
        )
        axes.set_xticks(np.arange(len(shown)) + 0.5)
        axes.set_xticklabels(shown, rotation=45, ha="right", rotation_mode="anchor")
        axes.set(xlabel="predicted", ylabel="true (examples)")
        right = (
            f"{np.trace(matrix) / total * 100:.1f} % of {total:,} right" if total else "no examples"
        )
        _title(figure, task, f"confusion matrix, {right}")
    return Path(path)


def f1_scores(path, f1, support, names: Sequence[str], *, task: str, macro_f1) -> Path:
    """F1 of each class, best first, with the number of examples beside it.

    Args:
        path: the PNG to write.
        f1: float [classes] in [0, 1]; not read where there is no support.
        support: int [classes], examples.
        names: name of each class, by index.
        task: name of the task, for the title.
        macro_f1: mean over the classes with support; None (or NaN) where there is none.

    Returns:
        `path`.

    Raises:
        ValueError: arrays of different lengths, or empty.
    """
    f1, support = np.asarray(f1, dtype=np.float64), np.asarray(support, dtype=np.int64)
    if not len(names) or f1.shape != (len(names),) or support.shape != f1.shape:
        raise ValueError(
            f"f1 {f1.shape}, support {support.shape} and {len(names)} names do not match."
        )
    order = f1_order(f1, support)
    present = support[order] > 0
    values = np.where(present, np.nan_to_num(f1[order]), 0.0)
    places = np.arange(len(order))
    with _figure(path, (8.5, 1.6 + 0.27 * len(order))) as figure:
        axes = figure.add_subplot()
        # By place and not by name: shortened names may be equal, and seaborn would merge them.
        sns.barplot(x=values, y=places, orient="h", color=BLUE, saturation=1, ax=axes, width=0.72)
        beside = axes.get_yaxis_transform()
        axes.text(1.0, -0.75, "examples", transform=beside, ha="right", size=8, color=MUTED)
        for place, value, n in zip(places, values, support[order], strict=True):
            # Inside the bar where it is long enough, so that the macro line crosses no figure.
            inside = value > 0.12
            axes.text(
                value - 0.01 if inside else value + 0.01, place, f"{value:.3f}" if n else "n/a",
                ha="right" if inside else "left", va="center", size=8,
                color="white" if inside else INK if n else MUTED,
            )  # fmt: skip
            axes.text(
                1.0, place, f"{n:,}", transform=beside, ha="right", va="center", size=8,
                color=INK if n else MUTED,
            )  # fmt: skip
        axes.set_yticks(places, [_shorten(names[index], 34) for index in order])
        axes.set(xlim=(0, 1.12), xlabel="F1", ylabel="")
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.spines["bottom"].set_bounds(0, 1)
        axes.grid(False, axis="y")
        main = "no examples"
        if macro_f1 is not None and math.isfinite(macro_f1):
            main = f"macro-F1 {macro_f1:.3f} over {present.sum()} of {len(names)} classes"
            axes.axvline(macro_f1, color=ORANGE, linewidth=1.5, zorder=0.9)
            axes.text(
                macro_f1, 1.0, " macro-F1 ", color=ORANGE, size=8, ha="center", va="bottom",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        _title(figure, task, f"F1 by class, {main}")
    return Path(path)


def f1_order(f1, support) -> np.ndarray:
    """The order of the bars, int [classes]: best F1 first, equal ones by index, no support last."""
    f1, absent = np.asarray(f1, dtype=np.float64), np.asarray(support) == 0
    return np.lexsort((np.where(absent, 0.0, -np.nan_to_num(f1)), absent))


def training_history(path, history: pd.DataFrame, *, task: str) -> Path:
    """Loss, top-1, macro-F1 (and the head's learning rate) over the epochs of all phases.

    Args:
        path: the PNG to write.
        history: one row an epoch; "epoch" counts from 1 through all phases, "phase" is a name.
            `{task}_loss` (or else "loss", of all tasks), `{task}_top1`, `{task}_macro_f1`, each
            also with "val_" before it, and `{task}_rate`. Any may be missing or NaN.
        task: name of the task, as in the columns.

    Returns:
        `path`. A quantity without a single number has no panel; the best epoch (highest macro-F1
        on the selection split) is starred.
    """
    loss = next((c for c in (f"{task}_loss", f"val_{task}_loss") if _has(history, c)), None)
    loss = (f"{task}_loss", "loss") if loss else ("loss", "loss, all tasks")
    panels = [
        (column, title)
        for column, title in (
            loss,
            (f"{task}_top1", "top-1"),
            (f"{task}_macro_f1", "macro-F1"),
            (f"{task}_rate", "learning rate"),
        )
        if _has(history, column) or _has(history, f"val_{column}")
    ]
    if not panels:
        return _message(path, task, "training history", "no epochs yet")
    epochs = (
        history["epoch"].to_numpy(dtype=np.int64)
        if "epoch" in history
        else np.arange(len(history)) + 1
    )
    best = best_epoch(history, task=task)
    with _figure(path, (1 + 4.1 * len(panels), 4)) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (column, title) in zip(grid, panels, strict=True):
            for name, label, look in (
                (column, "training", {"color": BLUE, "marker": "o", "linestyle": "--"}),
                (f"val_{column}", "selection", {"color": ORANGE, "marker": "s"}),
            ):
                if _has(history, name):
                    values = history[name].to_numpy(dtype=np.float64, na_value=np.nan)
                    label = None if column.endswith("_rate") else label
                    axes.plot(epochs, values, label=label, markersize=3.5, linewidth=1.6, **look)
            chosen = f"val_{column}"
            if best is not None and _has(history, chosen):
                axes.plot(
                    epochs[best], history[chosen].iloc[best], label=f"best epoch ({epochs[best]})",
                    color=GREEN, marker="*", markersize=14, markeredgecolor="white", linestyle="",
                )  # fmt: skip
            axes.set_title(title, loc="left", pad=18)
            axes.set(xlabel="epoch", xlim=(epochs.min() - 0.7, epochs.max() + 0.7))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.margins(y=0.12)
            if column.endswith("_rate"):
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            _mark_phases(axes, epochs, history)
        handles, labels = max(
            (axes.get_legend_handles_labels() for axes in figure.axes),
            key=lambda pair: len(pair[1]),
        )
        if labels:
            figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        main = f"{_count(len(history), 'epoch')}"
        if best is not None:
            score = history[f"val_{task}_macro_f1"].iloc[best]
            main += f", best selection macro-F1 {score:.3f} in epoch {epochs[best]}"
        _title(figure, task, f"training history, {main}")
    return Path(path)


def tuning_history(path, scores, stopped, *, title: str, metric: str) -> Path:
    """The score of each trial of a search, and the best so far.

    Args:
        path: the PNG to write.
        scores: float [trials], NaN where a trial has none; the first is the spec as it was.
        stopped: bool [trials], before its end; such a trial is no candidate for the best.
        title: what was searched.
        metric: name of the score.

    Returns:
        `path`.

    Raises:
        ValueError: another number of scores than of marks, or none.
    """
    scores, stopped = np.asarray(scores, np.float64), np.asarray(stopped, bool)
    if scores.shape != stopped.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(f"{scores.shape} scores do not match {stopped.shape} marks.")
    trials, missing = np.arange(len(scores)), np.isnan(scores)
    best = best_so_far(scores, stopped)
    text = _count(len(scores), "trial")
    if not np.isnan(best[-1]):
        winner = int(np.flatnonzero((scores == best[-1]) & ~stopped)[0])
        text += f", best {metric} {best[-1]:.3f} in trial {winner}"
    with _figure(path, (8.5, 4)) as figure:
        axes = figure.add_subplot()
        if not missing[0]:
            axes.axhline(
                scores[0], label=f"the spec as it was ({scores[0]:.3f})",
                color=MUTED, linestyle="--", linewidth=1,
            )  # fmt: skip
        axes.step(trials, best, where="post", label="best so far", color=ORANGE, linewidth=1.6)
        for where, label, look in (
            (~stopped & ~missing, "trial", {"color": BLUE, "markeredgecolor": "white"}),
            (stopped & ~missing, "stopped early", {"color": "white", "markeredgecolor": MUTED}),
        ):
            if where.any():
                axes.plot(
                    trials[where], scores[where], label=label,
                    marker="o", markersize=6, linestyle="", **look,
                )  # fmt: skip
        if missing.any():
            axes.plot(
                trials[missing], np.zeros(missing.sum()), label="without a score",
                marker="x", color=INK, linestyle="", clip_on=False,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        axes.set(xlabel="trial", ylabel=f"{metric} on the selection split")
        axes.set_xlim(-0.5, len(scores) - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(y=0.12)
        figure.legend(loc="outside lower center", ncols=5, frameon=False)
        _title(figure, title, f"search, {text}")
    return Path(path)


def best_so_far(scores, stopped) -> np.ndarray:
    """The highest score up to each trial of those not stopped; NaN before the first."""
    return np.fmax.accumulate(np.where(stopped, np.nan, np.asarray(scores, np.float64)))


def comparison(path, scores: pd.DataFrame, seconds: pd.DataFrame, *, title: str) -> Path:
    """What several models score, task by task, and how long each way of training takes.

    Args:
        path: the PNG to write.
        scores: columns task, metric, model (at most five) and value, a row a seed. A panel a
            metric; a bar is the mean, its line the standard deviation where there are several.
        seconds: a row a way, a column a part of its time; the index names the ways.
        title: what was compared.

    Returns:
        `path`.
    """
    metrics, models = scores["metric"].unique(), scores["model"].unique()
    looks = dict(zip(models, ("#B6BCC6", GREEN, BLUE, ORANGE, INK), strict=False))
    with _figure(path, (4.2 * len(metrics) + 4.6, 4)) as figure:
        *grid, last = figure.subplots(1, len(metrics) + 1)
        for axes, metric in zip(grid, metrics, strict=True):
            sns.barplot(
                scores[scores["metric"] == metric], x="task", y="value", hue="model",
                errorbar="sd", err_kws={"color": INK, "linewidth": 1}, palette=looks,
                saturation=1, legend=False, ax=axes,
            )  # fmt: skip
            for bar in itertools.chain.from_iterable(axes.containers):
                high = bar.get_height() > 0.15  # room at its foot, clear of the error's line
                axes.text(
                    bar.get_x() + bar.get_width() / 2,
                    0.01 if high else bar.get_height() + 0.02,
                    f"{bar.get_height():.3f}",
                    rotation=90, ha="center", va="bottom", size=7, color="white" if high else INK,
                )  # fmt: skip
            axes.set_title(metric, loc="left")
            axes.set(xlabel="", ylabel="", ylim=(0, 1))
        figure.legend(
            handles=[Patch(color=look, label=name) for name, look in looks.items()],
            loc="outside lower center", ncols=5, frameon=False,
        )  # fmt: skip
        done = np.zeros(len(seconds))
        colours = sns.color_palette("colorblind", len(seconds.columns))
        for colour, (part, values) in zip(colours, seconds.items(), strict=True):
            minutes = values.to_numpy(np.float64) / 60
            last.barh(seconds.index, minutes, left=done, label=part, color=colour, height=0.5)
            done = done + minutes
        for place, total in enumerate(done):
            last.text(total, place, f" {total:.1f}", va="center", size=8)
        last.invert_yaxis()
        last.grid(False, axis="y")
        last.margins(x=0.15)
        last.set(xlabel="minutes")
        last.set_title("time", loc="left")
        last.legend(loc="lower right", fontsize=7, bbox_to_anchor=(1, 1), ncols=3, frameon=False)
        _title(figure, title, "one model for all tasks against single-task runs")
    return Path(path)


def best_epoch(history: pd.DataFrame, *, task: str) -> int | None:
    """Position of the row with the highest selection macro-F1 (the first of equals), or None."""
    column = f"val_{task}_macro_f1"
    return int(np.nanargmax(history[column].astype(float))) if _has(history, column) else None


def outliers(
    path, pictures: Sequence, captions: Sequence[str], *, task: str, total=None, columns=6
) -> Path:
    """A grid of thumbnails with what was expected and what was answered.

    Args:
        path: the PNG to write; a row is about 3 inches high, so some dozens of pictures are enough.
        pictures: uint8 [height, width, 3] of any size each, or None for one that cannot be read.
        captions: two or three lines for each picture.
        task: name of the task, for the title.
        total: how many outliers there are; None: those that are shown.
        columns: pictures in a row.

    Returns:
        `path`.

    Raises:
        ValueError: another number of captions than of pictures.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures do not match {len(captions)} captions.")
    if not len(pictures):
        return _message(path, task, "outliers", "no outliers")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    lines = max(caption.count("\n") for caption in captions) + 1
    with _figure(path, (2.15 * columns + 0.2, (2.1 + 0.17 * lines) * rows + 0.6)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, picture, caption in zip(grid, pictures, captions, strict=False):
            _show(axes, picture, caption)
        shown = f"the {len(pictures)} worst" if (total or 0) > len(pictures) else "the worst first"
        _title(figure, task, f"{_count(total or len(pictures), 'outlier')}, {shown}")
    return Path(path)


def similar(
    path,
    query,
    pictures: Sequence,
    captions: Sequence[str],
    *,
    title: str,
    text: str,
    query_caption: str = "query",
    columns=5,
) -> Path:
    """A picture, large and framed, and beside it those that are nearest to it.

    Args:
        path: the PNG to write.
        query: uint8 [height, width, 3] of any size, or None where it cannot be read.
        pictures: as `query`, nearest first.
        captions: some lines for each picture.
        title: what was asked for.
        text: goes on behind it: in which sense the pictures are similar.
        query_caption: some lines.
        columns: pictures in a row.

    Returns:
        `path`.

    Raises:
        ValueError: another number of captions than of pictures.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures do not match {len(captions)} captions.")
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, math.ceil(len(pictures) / columns))
    lines = max(caption.count("\n") for caption in (query_caption, *captions)) + 1
    below_in = 0.17 * lines
    side_in = 2.05 if rows == 1 else 2.9
    size_in = (
        2.15 * columns + side_in + 0.5,
        max(side_in + below_in, (2.1 + below_in) * rows) + 0.6,
    )
    with _figure(path, size_in) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(side_in + 0.3, 2.15 * columns + 0.2))
        large = left.subplots()
        large.set_anchor("N")
        grid = right.subplots(rows, columns, squeeze=False).ravel()
        for axes in (large, *grid):
            axes.set_axis_off()
        _show(large, query, query_caption, frame=ORANGE)
        for axes, picture, caption in zip(grid, pictures, captions, strict=False):
            _show(axes, picture, caption)
            axes.set_anchor("N")
        _title(figure, title, text)
    return Path(path)


# === Data sets ===


def class_counts(path, counts, names: Sequence[str], *, task: str, rare: int = 0) -> Path:
    """Training labels of each class on a logarithmic axis, the largest class first.

    Args:
        path: the PNG to write.
        counts: int [classes], labels.
        names: name of each class, by index.
        task: name of the task, for the title.
        rare: classes of fewer labels are orange.

    Returns:
        `path`.

    Raises:
        ValueError: another number of counts than of names, or none.
    """
    counts = np.asarray(counts, dtype=np.int64)
    _check_counts(counts, names)
    order = np.argsort(-counts, kind="stable")
    present = counts[counts > 0]
    text = "no labels"
    if len(present):
        text = f"{counts.sum():,} training labels, "
        text += f"largest : smallest class {present.max() / present.min():,.1f} : 1"
        if len(present) < len(counts):
            text += f", {len(counts) - len(present)} without any"
    with _figure(path, (8.5, 1.5 + 0.24 * len(order))) as figure:
        axes = figure.add_subplot()
        colours = [ORANGE if counts[index] < rare else BLUE for index in order]
        _count_bars(axes, counts[order], [names[index] for index in order], colours)
        axes.set(xlabel="training labels (logarithmic)")
        _title(figure, task, text)
    return Path(path)


def label_coverage(path, counts, names: Sequence[str], *, title: str) -> Path:
    """How many pictures carry which set of labels, on a logarithmic axis.

    Args:
        path: the PNG to write.
        counts: int [sets], pictures.
        names: of the sets, from top to bottom.
        title: of the data set.

    Returns:
        `path`.

    Raises:
        ValueError: another number of counts than of names, or none.
    """
    counts = np.asarray(counts, dtype=np.int64)
    _check_counts(counts, names)
    with _figure(path, (8.5, 1.5 + 0.3 * len(counts))) as figure:
        axes = figure.add_subplot()
        _count_bars(axes, counts, names, [GREEN] * len(counts))
        axes.set(xlabel="pictures (logarithmic)")
        _title(figure, title, f"which labels {_count(int(counts.sum()), 'picture')} carry")
    return Path(path)


def _check_counts(counts: np.ndarray, names: Sequence[str]) -> None:
    if counts.shape != (len(names),) or not len(names):
        raise ValueError(f"counts {counts.shape} and {len(names)} names do not match.")


def _count_bars(axes: Axes, counts: np.ndarray, names: Sequence[str], colours: list[str]) -> None:
    """A bar a count, from half of one so that a single example has a bar too."""
    places = np.arange(len(counts))
    axes.barh(places, np.maximum(counts, 0.5) - 0.5, left=0.5, color=colours, height=0.72)
    for place, count in zip(places, counts, strict=True):
        axes.text(
            max(count, 0.5) * 1.06, place, f"{count:,}", va="center", size=8,
            color=INK if count else MUTED,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(0.5, max(10, counts.max() * 2.5))
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_yticks(places, [_shorten(name, 40) for name in names])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()
    axes.grid(False, axis="y")


# === Architecture ===

_BOX_IN = (5.6, 0.36)  # width and height of a box
_STEP_IN = 0.56  # from one box to the next


def architecture(path, nodes: Sequence[dict], *, task: str) -> Path:
    """The layers as boxes from top to bottom, each fed by the one above it.

    An input from any other box, such as the shortcut of a residual block, is an arc on the right.

    Args:
        path: the PNG to write.
        nodes: in topological order, each {"name": str, "kind": str, "shape": str, "parameters":
            int, "trainable": bool or None where there are no weights, "inputs": names of earlier
            nodes}.
        task: name of the task, for the title.

    Returns:
        `path`.

    Raises:
        ValueError: a name that occurs twice, or an input that is no earlier node.
    """
    if not nodes:
        return _message(path, task, "architecture", "no layers")
    arrows = connections(nodes)
    width, height = _BOX_IN
    bulges = [0.35 + 0.15 * min(target - source, 12) for source, target in arrows]
    right = width + max(
        (b for b, (s, t) in zip(bulges, arrows, strict=True) if t > s + 1), default=0
    )
    bottom = (len(nodes) - 1) * _STEP_IN + height
    with _figure(path, (right + 0.6, bottom + 1.1), layout=None) as figure:
        # One inch is one unit, so that boxes and letters keep their size in every diagram.
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-0.3, right + 0.3), ylim=(-bottom - 0.1, 1.0))
        axes.set_axis_off()
        for row, node in enumerate(nodes):
            _draw_box(axes, node, -row * _STEP_IN)
        for bulge, (source, target) in zip(bulges, arrows, strict=True):
            start, end = -source * _STEP_IN, -target * _STEP_IN
            if target == source + 1:
                line = Polyline([(width / 2, start - height), (width / 2, end)])
            else:  # a cubic curve reaches three quarters of the way to its control points
                out = width + bulge / 0.75
                points = [(width, start - height / 2), (out, start - height / 2)]
                points += [(out, end - height / 2), (width, end - height / 2)]
                line = Polyline(points, [Polyline.MOVETO, *3 * [Polyline.CURVE4]])
            look = {"arrowstyle": "-|>", "mutation_scale": 9, "color": MUTED, "linewidth": 1}
            axes.add_patch(FancyArrowPatch(path=line, **look))
        kinds = (("trainable", True), ("frozen", False), ("no weights", None))
        axes.legend(
            handles=[Patch(label=label, **_LOOKS[trainable]) for label, trainable in kinds],
            loc="lower left", bbox_to_anchor=(0, 0.15), bbox_transform=axes.transData,
            ncols=3, frameon=False, borderaxespad=0,
        )  # fmt: skip
        total = sum(node["parameters"] for node in nodes)
        trained = sum(node["parameters"] for node in nodes if node["trainable"])
        _title(figure, task, f"architecture, {total:,} parameters, {trained:,} trainable")
    return Path(path)


def connections(nodes: Sequence[dict]) -> list[tuple[int, int]]:
    """(row of the source, row of the target) of each input of `architecture`'s boxes.

    Raises:
        ValueError: a name that occurs twice, or an input that is no earlier node.
    """
    rows: dict[str, int] = {}
    for row, node in enumerate(nodes):
        unknown = [name for name in node["inputs"] if name not in rows]
        if unknown:
            raise ValueError(
                f'node "{node["name"]}" has the input "{unknown[0]}", no earlier node.'
            )
        if node["name"] in rows:
            raise ValueError(f'node "{node["name"]}" occurs twice.')
        rows[node["name"]] = row
    return [(rows[name], row) for row, node in enumerate(nodes) for name in node["inputs"]]


_LOOKS = {
    True: {"facecolor": "#FDE3C8", "edgecolor": ORANGE},
    False: {"facecolor": "#DCE5EE", "edgecolor": "#7C93AB"},
    None: {"facecolor": "white", "edgecolor": "#9CA3AF"},
}


def _draw_box(axes: Axes, node: dict, top: float) -> None:
    """One box: the name on the left; kind, output shape and parameters on the right."""
    width, height = _BOX_IN
    style = "round,pad=0,rounding_size=0.07"
    look = {"linewidth": 1.1} | _LOOKS[node["trainable"]]
    axes.add_patch(FancyBboxPatch((0, top - height), width, height, boxstyle=style, **look))
    middle = {"y": top - height / 2, "va": "center"}
    name = _shorten(node["name"], 30, spaces=False)
    axes.text(x=0.12, s=name, size=8.5, weight="bold", **middle)
    parts = [_shorten(node["kind"], 22), _shorten(node["shape"], 16)]
    if node["parameters"]:
        parts.append(_magnitude(node["parameters"]))
    if node["trainable"] is False:
        parts.append("frozen")
    axes.text(x=width - 0.12, s=" · ".join(parts), ha="right", size=7.5, color=INK, **middle)


def _magnitude(count: int) -> str:
    """1234567 -> "1.23 M"."""
    for limit, unit in ((1e6, " M"), (1e3, " k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return str(count)


# === What the plots share ===


@contextlib.contextmanager
def _figure(path, size_in: tuple[float, float], layout="constrained") -> Iterator[Figure]:
    """A figure in the house style, written to `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Dotted and marked with the process: never taken for a result, nor shared by two writers.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks is a box
        figure = Figure(figsize=size_in, dpi=DPI, layout=layout)
        if layout:
            figure.get_layout_engine().set(h_pad=0.08)
        yield figure
        try:
            figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.15)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _message(path, task: str, kind: str, text: str) -> Path:
    """A small figure that says that there is nothing to draw."""
    with _figure(path, (4.5, 1.6)) as figure:
        figure.text(0.01, 0.4, text, va="center", size=12, color=MUTED)
        _title(figure, task, kind)
    return Path(path)


def _title(figure: Figure, task: str, text: str) -> None:
    # A layout engine makes room for a title whose y is left to it. Without one, the title stands at
    # a fixed distance from the upper edge, however high the figure.
    y = None if figure.get_layout_engine() else 1 - 0.12 / figure.get_figheight()
    text = f"{_shorten(task, 30)}: {text}"
    figure.suptitle(text, x=0.01, y=y, ha="left", size=12, weight="bold")


def _shorten(text: str, limit: int, *, spaces: bool = True) -> str:
    """`text` on one line with `_` as spaces, its middle left out where it is over `limit`."""
    text = " ".join(str(text).replace("_", " " if spaces else "_").split())
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail].rstrip()}…{text[-tail:].lstrip()}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _cell_text(count: int, share: float, with_count: bool) -> str:
    """A cell of the confusion matrix: percent, and the count below it where there is room."""
    if not count:
        return ""
    percent = f"{share * 100:.0f}" if share >= 0.005 else "<1"
    return f"{percent} %\n({count:,})" if with_count else percent


def _has(history: pd.DataFrame, column: str) -> bool:
    return column in history and bool(history[column].notna().any())


def _mark_phases(axes: Axes, epochs: np.ndarray, history: pd.DataFrame) -> None:
    """A line where a phase begins, and the phase's name beside it."""
    if "phase" not in history:
        return
    phases = history["phase"].astype(str).to_numpy()
    starts = [0, *(np.flatnonzero(phases[1:] != phases[:-1]) + 1)]
    for start in starts:
        edge = epochs[start] - 0.5
        if start:
            axes.axvline(edge, color=MUTED, linewidth=1, linestyle=":")
        axes.text(  # upright: a phase of one epoch is narrower than its name
            edge, 0.98, _shorten(phases[start], 16), transform=axes.get_xaxis_transform(),
            size=8, color=MUTED, va="top", ha="left", rotation=90, zorder=0,
        )  # fmt: skip


def _show(axes: Axes, picture, caption: str, *, frame: str | None = None) -> None:
    """A picture in its square with some lines below it."""
    axes.imshow(_tile(picture))
    if picture is None:
        axes.text(
            0.5, 0.5, "unreadable", transform=axes.transAxes, ha="center", va="center", color=MUTED
        )
    if frame:
        square = {"transform": axes.transAxes, "clip_on": False, "fill": False}
        axes.add_patch(Rectangle((0, 0), 1, 1, edgecolor=frame, linewidth=3, **square))
    text = "\n".join(_shorten(line, 35) for line in caption.split("\n"))
    axes.text(0, -0.03, text, transform=axes.transAxes, va="top", size=7, linespacing=1.35)


def _tile(picture: np.ndarray | None, side_px: int = 240) -> np.ndarray:
    """The whole picture in a square, as uint8 [side_px, side_px, 3]."""
    if picture is None:
        return np.full((side_px, side_px, 3), 225, dtype=np.uint8)
    image = Image.fromarray(np.asarray(picture, dtype=np.uint8))
    scale = side_px / max(image.size)
    # At least one pixel: a picture can be a thousand times as wide as high.
    size = tuple(max(1, round(length * scale)) for length in image.size)
    return np.asarray(ImageOps.pad(image.resize(size), (side_px, side_px), color=(245, 245, 245)))


def data_uri(picture: np.ndarray, *, side_px: int, quality: int) -> str:
    """A picture as text that an HTML page can hold: a JPEG in base64.

    Args:
        picture: uint8 [height, width, 3]; reduced where a side is longer than `side_px`.
        side_px: of the longer side, at most.
        quality: of the JPEG, 1 to 95.
    """
    image = Image.fromarray(picture)
    image.thumbnail((side_px, side_px))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
