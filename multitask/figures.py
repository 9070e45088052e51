"""Plots from arrays alone, each written as one PNG.

Names and captions are shown as they are, but `_` becomes a space, and what is too long loses its
middle. Of many classes a plot shows SHOWN and says which.
"""

import base64
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from PIL import Image, ImageOps

from multitask.canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PALE,
    new_figure,
    write_message,
    write_title,
)
from multitask.spec import NO_TEST_SET, field_of
from multitask.text import shorten

SHOWN = 40  # classes whose names a plot has room for


def confusion_matrix(
    path, matrix, names: Sequence[str], *, task: str, others: int = 0, right: int | None = None
) -> Path:
    """Which class was taken for which, coloured by the share of the true class.

    Args:
        path: the PNG to write.
        matrix: int [classes, classes], counts; rows are the true class. Where there are others:
            [classes + 1, classes + 1], and they are the last row and column.
        names: name of each class, by index, without the others.
        task: name of the task, for the title.
        others: classes that share the last row and column.
        right: examples that are right; None: the sum of the diagonal.

    Returns:
        `path`. A class without examples is a grey row. So is the cell of others taken for others:
        it has right and wrong ones in it.

    Raises:
        ValueError: a matrix that is not square, or of another size than `names`.
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    classes = len(names) + bool(others)
    if matrix.shape != (classes, classes) or not len(names):
        raise ValueError(f"a matrix of shape {matrix.shape} does not match {len(names)} names.")
    support = matrix.sum(axis=1)
    total, absent = int(support.sum()), support == 0
    shares = matrix / np.maximum(support, 1)[:, None]
    mask = np.repeat(absent[:, None], classes, axis=1)
    cell_in, shown = min(0.8, 12 / classes), len(names)
    names = [shorten(name, 30) for name in names]
    if others:
        cell_in = max(0.34, cell_in)
        names.append(f"{others:,} other{'s' if others > 1 else ''}")
        mask[-1, -1] = True
    side_in = max(3.2, cell_in * classes)
    # Percent need a third of an inch; counts too need room for two lines.
    annotations: Any = False
    if cell_in > 0.33:
        annotations = np.vectorize(_cell_text)(matrix, shares, cell_in > 0.6)
    with new_figure(path, (side_in + 3, side_in + 2.2), layout="compressed") as figure:
        axes = figure.add_subplot()
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
        names = names if cell_in > 0.12 else []
        axes.set_yticks(np.arange(len(names)) + 0.5)
        axes.set_yticklabels(
            [f"{name}  ({n:,})" for name, n in zip(names, support, strict=False)], rotation=0
        )
        axes.set_xticks(np.arange(len(names)) + 0.5)
        axes.set_xticklabels(names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set(xlabel="predicted", ylabel="true (examples)")
        right = int(np.trace(matrix)) if right is None else right
        every = "all " if others else ""
        text = f"{right / total * 100:.1f} % of {every}{total:,} right" if total else NO_TEST_SET
        if others:
            text = f"{shown} of {shown + others:,} classes, those most often confused; {text}"
            axes.set_xlabel("predicted (grey corner: others taken for others, right and wrong)")
        write_title(figure, task, f"confusion matrix, {text}")
    return Path(path)


def f1_scores(path, f1, support, names: Sequence[str], *, task: str, macro_f1) -> Path:
    """F1 of each class, best first, with the number of examples beside it.

    Of more than SHOWN classes with examples, the best and the worst, and beside them how the F1 of
    all are distributed.

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
    order, hidden, present = f1_order(f1, support), 0, int((support > 0).sum())
    if present > SHOWN:
        # Of equal ones, those of many examples stand at the ends: they tell more.
        best = np.lexsort((-support, -np.nan_to_num(f1), support == 0))[:present]
        worst = np.lexsort((support, -np.nan_to_num(f1), support == 0))[:present]
        order, hidden = _ends(best, worst)
    elif len(order) > SHOWN:
        order = order[: max(1, present)]
    values = np.where(support[order] > 0, np.nan_to_num(f1[order]), 0.0)
    places = _places(len(order), hidden)
    with new_figure(path, (8.5 + 4 * bool(hidden), 1.6 + 0.27 * (places[-1] + 1))) as figure:
        axes, beside_it = _panels(figure, hidden, places)
        axes.barh(places, values, color=BLUE, height=0.72)
        axes.set_ylim(places[-1] + 0.5, -0.5)
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
        axes.set_yticks(places, [shorten(names[index], 34) for index in order])
        axes.set(xlim=(0, 1.12), xlabel="F1", ylabel="")
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.spines["bottom"].set_bounds(0, 1)
        axes.grid(False, axis="y")
        if beside_it:
            beside_it.hist(f1[support > 0], bins=np.linspace(0, 1, 21), color=BLUE)
            beside_it.set(xlabel="F1", title=f"all {present:,} classes with examples")
        main = NO_TEST_SET
        if macro_f1 is not None and math.isfinite(macro_f1):
            main = f"macro-F1 {macro_f1:.3f} over {present:,} of {len(names):,} classes"
            axes.axvline(macro_f1, color=ORANGE, linewidth=1.5, zorder=0.9)
            axes.text(
                macro_f1, 1.0, " macro-F1 ", color=ORANGE, size=8, ha="center", va="bottom",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        if hidden:
            main = f"the {SHOWN // 2} best and the {SHOWN // 2} worst, {main}"
        write_title(figure, task, f"F1 by class, {main}")
    return Path(path)


def f1_order(f1, support) -> np.ndarray:
    """The order of the bars, int [classes]: best F1 first, equal ones by index, no support last."""
    f1, absent = np.asarray(f1, dtype=np.float64), np.asarray(support) == 0
    return np.lexsort((np.where(absent, 0.0, -np.nan_to_num(f1)), absent))


def _ends(ranked: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, int]:
    """The first and the last of some classes, SHOWN of them, and how many are between.

    Args:
        ranked: int [classes], the order that the first are taken from.
        last: the same classes, in the order that the last are taken from.
    """
    if len(ranked) <= SHOWN:
        return ranked, 0
    first = ranked[: SHOWN // 2]
    rest = last[~np.isin(last, first)]
    return np.append(first, rest[-(SHOWN // 2) :]), len(ranked) - SHOWN


def _places(count: int, hidden: int) -> np.ndarray:
    """Where bars stand; with a gap in the middle where some are hidden."""
    return np.arange(count) + (np.arange(count) >= count // 2) * bool(hidden)


def _panels(figure: Figure, hidden: int, places: np.ndarray) -> tuple[Axes, Axes | None]:
    """The axes of the bars, and where some are hidden those of the distribution of all."""
    if not hidden:
        return figure.add_subplot(), None
    bars, distribution = figure.subplots(1, 2, width_ratios=(8.5, 4))
    distribution.set_ylabel("classes")
    distribution.set_box_aspect(0.75)
    distribution.set_anchor("N")
    distribution.yaxis.set_major_locator(MaxNLocator(integer=True))
    distribution.grid(False, axis="x")
    bars.text(
        0.0, places[len(places) // 2] - 1, f"  {_count(hidden, 'class', 'classes')} between",
        transform=bars.get_yaxis_transform(), va="center", size=8, color=MUTED,
    )  # fmt: skip
    return bars, distribution


def training_history(path, history: pd.DataFrame, *, task: str) -> Path:
    """Loss, top-1, macro-F1 (and the head's learning rate) over the epochs of all phases.

    Args:
        path: the PNG to write.
        history: one row an epoch; "epoch" counts from 1 through all phases, "phase" is a name.
            `{task}/loss` (or else "loss", of all tasks), `{task}/top1`, `{task}/macro_f1`, each
            also on the selection split, `{task}/val_top1`, and `{task}/rate`. Any may be missing or
            NaN.
        task: name of the task, as in the columns.

    Returns:
        `path`. A quantity without a single number has no panel; the best epoch (highest macro-F1
        on the selection split) is starred.
    """
    panels = [
        (field_of(task, field), field_of(task, f"val_{field}"), title)
        for field, title in (
            ("loss", "loss"),
            ("top1", "top-1"),
            ("macro_f1", "macro-F1"),
            ("rate", "learning rate"),
        )
    ]
    if not any(_has(history, name) for name in panels[0][:2]):
        panels[0] = ("loss", "val_loss", "loss, all tasks")
    panels = [p for p in panels if _has(history, p[0]) or _has(history, p[1])]
    if not panels:
        return write_message(path, task, "training history", "no epochs yet")
    epochs = (
        history["epoch"].to_numpy(dtype=np.int64)
        if "epoch" in history
        else np.arange(len(history)) + 1
    )
    best = best_epoch(history, task=task)
    with new_figure(path, (1 + 4.1 * len(panels), 4)) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (learnt, chosen, title) in zip(grid, panels, strict=True):
            is_rate = learnt == field_of(task, "rate")
            for name, label, look in (
                (learnt, "training", {"color": BLUE, "marker": "o", "linestyle": "--"}),
                (chosen, "selection", {"color": ORANGE, "marker": "s"}),
            ):
                if _has(history, name):
                    values = history[name].to_numpy(dtype=np.float64, na_value=np.nan)
                    label = None if is_rate else label
                    axes.plot(epochs, values, label=label, markersize=3.5, linewidth=1.6, **look)
            if best is not None and _has(history, chosen):
                axes.plot(
                    epochs[best], history[chosen].iloc[best], label=f"best epoch ({epochs[best]})",
                    color=GREEN, marker="*", markersize=14, markeredgecolor="white", linestyle="",
                )  # fmt: skip
            axes.set_title(title, loc="left", pad=18)
            axes.set(xlabel="epoch", xlim=(epochs.min() - 0.7, epochs.max() + 0.7))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.margins(y=0.12)
            if is_rate:
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
            score = history[field_of(task, "val_macro_f1")].iloc[best]
            main += f", best selection macro-F1 {score:.3f} in epoch {epochs[best]}"
        write_title(figure, task, f"training history, {main}")
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
    with new_figure(path, (8.5, 4)) as figure:
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
        write_title(figure, title, f"search, {text}")
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
    with new_figure(path, (4.2 * len(metrics) + 4.6, 4)) as figure:
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
        write_title(figure, title, "one model for all tasks against single-task runs")
    return Path(path)


def best_epoch(history: pd.DataFrame, *, task: str) -> int | None:
    """Position of the row with the highest selection macro-F1 (the first of equals), or None."""
    name = field_of(task, "val_macro_f1")
    return int(np.nanargmax(history[name].astype(float))) if _has(history, name) else None


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
        return write_message(path, task, "outliers", "no outliers")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    lines = max(caption.count("\n") for caption in captions) + 1
    with new_figure(path, (2.15 * columns + 0.2, (2.1 + 0.17 * lines) * rows + 0.6)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, picture, caption in zip(grid, pictures, captions, strict=False):
            _show(axes, picture, caption)
        shown = f"the {len(pictures)} worst" if (total or 0) > len(pictures) else "the worst first"
        write_title(figure, task, f"{_count(total or len(pictures), 'outlier')}, {shown}")
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
    with new_figure(path, size_in) as figure:
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
        write_title(figure, title, text)
    return Path(path)


# === Data sets ===


def class_counts(path, counts, names: Sequence[str], *, task: str, rare: int = 0) -> Path:
    """Training labels of each class on a logarithmic axis, the largest class first.

    Of more than SHOWN classes with labels, the largest and the smallest, and beside them how the
    numbers of all are distributed.

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
    order, hidden = np.argsort(-counts, kind="stable"), 0
    present = counts[counts > 0]
    text = "no labels"
    if len(present):
        text = f"{counts.sum():,} training labels, "
        text += f"largest : smallest class {present.max() / present.min():,.1f} : 1"
        if len(present) < len(counts):
            text += f", {len(counts) - len(present):,} without any"
    if len(counts) > SHOWN:
        order, hidden = _ends(order[: max(1, len(present))], order[: max(1, len(present))])
        text = f"the {SHOWN // 2} largest and the {SHOWN // 2} smallest classes, {text}"
    places = _places(len(order), hidden)
    with new_figure(path, (8.5 + 4 * bool(hidden), 1.5 + 0.24 * (places[-1] + 1))) as figure:
        axes, beside_it = _panels(figure, hidden, places)
        colours = [ORANGE if counts[index] < rare else BLUE for index in order]
        _count_bars(axes, places, counts[order], [names[index] for index in order], colours)
        axes.set(xlabel="training labels (logarithmic)")
        if beside_it:
            steps = np.unique(np.geomspace(1, present.max() + 1, 21).round())
            beside_it.hist(present, bins=steps, color=BLUE)
            beside_it.set_xscale("log")
            beside_it.minorticks_off()  # their labels would be formulas
            beside_it.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            beside_it.set(
                xlabel=axes.get_xlabel(), title=f"all {len(present):,} classes with labels"
            )
        write_title(figure, task, text)
    return Path(path)


def label_coverage(path, counts, names: Sequence[str], *, title: str) -> Path:
    """How many pictures carry which set of labels, on a logarithmic axis.

    Args:
        path: the PNG to write.
        counts: int [sets], pictures.
        names: of the sets, from top to bottom; the first SHOWN are drawn.
        title: of the data set.

    Returns:
        `path`.

    Raises:
        ValueError: another number of counts than of names, or none.
    """
    counts = np.asarray(counts, dtype=np.int64)
    _check_counts(counts, names)
    text = f"which labels {_count(int(counts.sum()), 'picture')} carry"
    if len(counts) > SHOWN:
        text += f", {SHOWN} of {len(counts):,} sets of labels"
    counts, names = counts[:SHOWN], names[:SHOWN]
    with new_figure(path, (8.5, 1.5 + 0.3 * len(counts))) as figure:
        axes = figure.add_subplot()
        _count_bars(axes, np.arange(len(counts)), counts, names, [GREEN] * len(counts))
        axes.set(xlabel="pictures (logarithmic)")
        write_title(figure, title, text)
    return Path(path)


def _check_counts(counts: np.ndarray, names: Sequence[str]) -> None:
    if counts.shape != (len(names),) or not len(names):
        raise ValueError(f"counts {counts.shape} and {len(names)} names do not match.")


def _count_bars(
    axes: Axes, places: np.ndarray, counts: np.ndarray, names: Sequence[str], colours: list[str]
) -> None:
    """A bar a count, from half of one so that a single example has a bar too."""
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


# === What the plots share ===


def _count(n: int, noun: str, several: str | None = None) -> str:
    return f"{n:,} {noun if n == 1 else several or noun + 's'}"


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
            edge, 0.98, shorten(phases[start], 16), transform=axes.get_xaxis_transform(),
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
    text = "\n".join(shorten(line, 35) for line in caption.split("\n"))
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
