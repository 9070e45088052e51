"""Curves: training history, calibration, a search's trials, models against each other.

Each panel is drawn by one function, both for the PNG files and for the SVG on a page.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from multitask.errors import counted
from multitask.pages.canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    AnyTarget,
    Svg,
    new_figure,
    write_message,
    write_title,
)
from multitask.pages.text import shorten
from multitask.spec import field_of

PANEL_IN = (3.4, 2.4)  # of a panel on a page
MOST_MARKERS = 60  # points of a line with markers; more markers would hide the line
MOST_POINTS = 150  # points of a line on a page


@dataclass(frozen=True)
class Panel:
    """One curve on a page.

    Attributes:
        title: title of the panel.
        svg: the SVG element.
    """

    title: str
    svg: str


# === Training history ===


@dataclass(frozen=True)
class _Quantity:
    """One quantity of the history: its title, and the columns of training and validation."""

    title: str
    training: str
    validation: str


def training_history(target: AnyTarget, history: pd.DataFrame, *, task: str) -> AnyTarget:
    """Plot loss, top-1, macro-F1 and learning rate over the epochs of both phases.

    A quantity without values has no panel. The best epoch (highest macro-F1 on the validation
    split) has a star.

    Args:
        target: the PNG to write, or a `Drawing`.
        history: one row per epoch; "epoch" counts from 1 over both phases, "phase" is a name.
            `{task}/loss` (or "loss", of all tasks), `{task}/top1` and `{task}/macro_f1`, each also
            on the validation split (`{task}/val_top1`), and `{task}/rate`. Each may be missing or
            NaN.
        task: name of the task, as in the columns.
    """
    quantities = _quantities(history, task)
    if not quantities:
        return write_message(target, task, "training history", "no epochs yet")
    with new_figure(target, (1 + 4.1 * len(quantities), 4)) as figure:
        grid = figure.subplots(1, len(quantities), squeeze=False)[0]
        for axes, quantity in zip(grid, quantities, strict=True):
            _draw_history(axes, history, quantity, task)
            axes.set_title(quantity.title, loc="left", pad=18)
        handles, labels = max(
            (axes.get_legend_handles_labels() for axes in figure.axes),
            key=lambda pair: len(pair[1]),
        )
        if labels:
            figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        text, best = counted(len(history), "epoch"), best_epoch(history, task=task)
        if best is not None:
            score = history[field_of(task, "val_macro_f1")].iloc[best]
            epoch = _epochs(history)[best]
            text += f", best validation macro-F1 {score:.3f} in epoch {epoch}"
        write_title(figure, task, f"training history, {text}")
    return target


def history_panels(history: pd.DataFrame, *, task: str) -> list[Panel]:
    """The panels of `training_history` for a page, without the learning rate."""
    panels = []
    for quantity in _quantities(_thinned(history), task):
        if quantity.training == field_of(task, "rate"):
            continue
        svg = Svg()
        with new_figure(svg, PANEL_IN) as figure:
            axes = figure.add_subplot()
            _draw_history(axes, _thinned(history), quantity, task)
            axes.legend(frameon=False, fontsize=7)
        panels.append(Panel(quantity.title, svg.text))
    return panels


def best_epoch(history: pd.DataFrame, *, task: str) -> int | None:
    """Row with the highest macro-F1 on the validation split (the first of equals), or None."""
    name = field_of(task, "val_macro_f1")
    return int(np.nanargmax(history[name].astype(float))) if _has(history, name) else None


def _quantities(history: pd.DataFrame, task: str) -> list[_Quantity]:
    """The quantities with values in the history."""
    quantities = [
        _Quantity(title, field_of(task, field), field_of(task, f"val_{field}"))
        for field, title in (
            ("loss", "loss"),
            ("top1", "top-1"),
            ("macro_f1", "macro-F1"),
            ("rate", "learning rate"),
        )
    ]
    if not (_has(history, quantities[0].training) or _has(history, quantities[0].validation)):
        quantities[0] = _Quantity("loss, all tasks", "loss", "val_loss")
    return [q for q in quantities if _has(history, q.training) or _has(history, q.validation)]


def _draw_history(axes: Axes, history: pd.DataFrame, quantity: _Quantity, task: str) -> None:
    """One quantity in training and on the validation split, its best epoch and the phases."""
    epochs, is_rate = _epochs(history), quantity.training == field_of(task, "rate")
    marked = len(epochs) <= MOST_MARKERS
    lines: list[tuple[str, str, dict[str, Any]]] = [
        (quantity.training, "training", {"color": BLUE, "marker": "o", "linestyle": "--"}),
        (quantity.validation, "validation", {"color": ORANGE, "marker": "s"}),
    ]
    for name, label, style in lines:
        if _has(history, name):
            values = history[name].to_numpy(dtype=np.float64, na_value=np.nan)
            axes.plot(
                epochs, values, label=None if is_rate else label, markersize=3.5, linewidth=1.6,
                **(style if marked else {**style, "marker": ""}),
            )  # fmt: skip
    best = best_epoch(history, task=task)
    if best is not None and _has(history, quantity.validation):
        axes.plot(
            epochs[best], history[quantity.validation].iloc[best],
            label=f"best epoch ({epochs[best]})", color=GREEN, marker="*", markersize=14,
            markeredgecolor="white", linestyle="",
        )  # fmt: skip
    axes.set(xlabel="epoch", xlim=(epochs.min() - 0.7, epochs.max() + 0.7))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    if is_rate:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _mark_phases(axes, epochs, history)


def _epochs(history: pd.DataFrame) -> np.ndarray:
    if "epoch" in history:
        return history["epoch"].to_numpy(dtype=np.int64)
    return np.arange(len(history)) + 1


def _thinned(history: pd.DataFrame) -> pd.DataFrame:
    """At most about MOST_POINTS rows: every second, third, … epoch, and the last one."""
    step = -(-len(history) // MOST_POINTS)
    if step <= 1:
        return history
    rows = np.unique(np.append(np.arange(0, len(history), step), len(history) - 1))
    return history.iloc[rows]


def _has(history: pd.DataFrame, column: str) -> bool:
    return column in history and bool(history[column].notna().any())


def _mark_phases(axes: Axes, epochs: np.ndarray, history: pd.DataFrame) -> None:
    """A line where a phase begins, with the name of the phase."""
    if "phase" not in history:
        return
    phases = history["phase"].astype(str).to_numpy()
    starts = [0, *(np.flatnonzero(phases[1:] != phases[:-1]) + 1)]
    for start in starts:
        edge = epochs[start] - 0.5
        if start:
            axes.axvline(edge, color=MUTED, linewidth=1, linestyle=":")
        axes.text(  # upright, because a phase of one epoch is narrower than its name
            edge, 0.98, shorten(phases[start], 16), transform=axes.get_xaxis_transform(),
            size=8, color=MUTED, va="top", ha="left", rotation=90, zorder=0,
        )  # fmt: skip


# === Calibration ===


def calibration_panels(calibration: Mapping[str, Any]) -> list[Panel]:
    """The reliability diagram, and accuracy by the share answered; none without test images.

    Args:
        calibration: of one task, as `metrics.json` has it: `reliability` ("raw" and "calibrated"
            -> rows with confidence and accuracy) and `coverage` (rows with accuracy, and the
            share answered as `coverage`).
    """
    if "reliability" not in calibration:
        return []
    svg = Svg()
    with new_figure(svg, PANEL_IN) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="ideal")
        for kind, colour in (("raw", BLUE), ("calibrated", ORANGE)):
            _draw_line(axes, calibration["reliability"][kind], "confidence", kind, colour)
        axes.legend(frameon=False, fontsize=7)
    panels = [Panel("Accuracy by confidence", svg.text)]
    svg = Svg()
    with new_figure(svg, PANEL_IN) as figure:
        axes = figure.add_subplot()
        _draw_line(axes, calibration["coverage"], "coverage", "accuracy", ORANGE)
        axes.set_xlabel("share answered")
    return [*panels, Panel("Accuracy by share answered", svg.text)]


def _draw_line(
    axes: Axes, rows: Sequence[Mapping[str, Any]], x: str, label: str, colour: str
) -> None:
    """Accuracy over a quantity between 0 and 1; rows without an accuracy are skipped."""
    points = [(row[x], row["accuracy"]) for row in rows if row["accuracy"] is not None]
    marker = "o" if len(points) < 40 else ""
    axes.plot(
        [a for a, _ in points], [b for _, b in points], label=label, color=colour,
        marker=marker, markersize=3.5, linewidth=1.6,
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel=x, ylabel="accuracy")


# === Searches and comparisons ===


def tuning_history(
    target: AnyTarget, scores: ArrayLike, stopped: ArrayLike, *, title: str, metric: str
) -> AnyTarget:
    """Plot the score of each trial of a search, and the best score so far.

    Args:
        target: the PNG to write, or a `Drawing`.
        scores: float [trials], NaN for a trial without a score; the first is the unchanged spec.
        stopped: bool [trials], stopped early; such a trial cannot be the best.
        title: name of the data set.
        metric: name of the score.

    Raises:
        ValueError: scores and marks do not match, or there are none.
    """
    scores, stopped = np.asarray(scores, np.float64), np.asarray(stopped, bool)
    if scores.shape != stopped.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(f"{scores.shape} scores do not match {stopped.shape} marks.")
    best = best_so_far(scores, stopped)
    text = counted(len(scores), "trial")
    if not np.isnan(best[-1]):
        winner = int(np.flatnonzero((scores == best[-1]) & ~stopped)[0])
        text += f", best {metric} {best[-1]:.3f} in trial {winner}"
    with new_figure(target, (8.5, 4)) as figure:
        axes = figure.add_subplot()
        _draw_trials(axes, scores, stopped, best)
        axes.set(xlabel="trial", ylabel=f"{metric} on the validation split")
        figure.legend(loc="outside lower center", ncols=5, frameon=False)
        write_title(figure, title, f"search, {text}")
    return target


def _draw_trials(axes: Axes, scores: np.ndarray, stopped: np.ndarray, best: np.ndarray) -> None:
    trials, missing = np.arange(len(scores)), np.isnan(scores)
    if not missing[0]:
        axes.axhline(
            scores[0], label=f"the unchanged spec ({scores[0]:.3f})",
            color=MUTED, linestyle="--", linewidth=1,
        )  # fmt: skip
    axes.step(trials, best, where="post", label="best so far", color=ORANGE, linewidth=1.6)
    groups: list[tuple[np.ndarray, str, dict[str, Any]]] = [
        (~stopped & ~missing, "trial", {"color": BLUE, "markeredgecolor": "white"}),
        (stopped & ~missing, "stopped early", {"color": "white", "markeredgecolor": MUTED}),
    ]
    for where, label, style in groups:
        if where.any():
            axes.plot(
                trials[where], scores[where], label=label,
                marker="o", markersize=6, linestyle="", **style,
            )  # fmt: skip
    if missing.any():
        axes.plot(
            trials[missing], np.zeros(missing.sum()), label="without a score",
            marker="x", color=INK, linestyle="", clip_on=False,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.set_xlim(-0.5, len(scores) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)


def best_so_far(scores: ArrayLike, stopped: ArrayLike) -> np.ndarray:
    """The highest score up to each trial, of those not stopped; NaN before the first."""
    return np.fmax.accumulate(np.where(stopped, np.nan, np.asarray(scores, np.float64)))


def comparison(
    target: AnyTarget, scores: pd.DataFrame, seconds: pd.DataFrame, *, title: str
) -> AnyTarget:
    """Plot the scores of several models, task by task, and the time of each way of training.

    Args:
        target: the PNG to write, or a `Drawing`.
        scores: columns task, metric, model (at most five) and value, one row per seed. One panel
            per metric; a bar is the mean, its line the standard deviation of several seeds.
        seconds: one row per way of training (the index), one column per part of its time.
        title: name of the data set.
    """
    metrics, models = scores["metric"].unique(), scores["model"].unique()
    colours = dict(zip(models, ("#B6BCC6", GREEN, BLUE, ORANGE, INK), strict=False))
    with new_figure(target, (4.2 * len(metrics) + 4.6, 4)) as figure:
        *grid, last = figure.subplots(1, len(metrics) + 1)
        for axes, metric in zip(grid, metrics, strict=True):
            _draw_scores(axes, scores[scores["metric"] == metric], colours)
            axes.set_title(metric, loc="left")
        figure.legend(
            handles=[Patch(color=colour, label=name) for name, colour in colours.items()],
            loc="outside lower center", ncols=5, frameon=False,
        )  # fmt: skip
        _draw_times(last, seconds)
        write_title(figure, title, "one model for all tasks against single-task runs")
    return target


def _draw_scores(axes: Axes, scores: pd.DataFrame, colours: Mapping[str, str]) -> None:
    sns.barplot(
        scores, x="task", y="value", hue="model", errorbar="sd",
        err_kws={"color": INK, "linewidth": 1}, palette=colours, saturation=1, legend=False,
        ax=axes,
    )  # fmt: skip
    for bar in itertools.chain.from_iterable(axes.containers):
        inside = bar.get_height() > 0.15  # room at its foot, clear of the error's line
        axes.text(
            bar.get_x() + bar.get_width() / 2,
            0.01 if inside else bar.get_height() + 0.02,
            f"{bar.get_height():.3f}",
            rotation=90, ha="center", va="bottom", size=7, color="white" if inside else INK,
        )  # fmt: skip
    axes.set(xlabel="", ylabel="", ylim=(0, 1))


def _draw_times(axes: Axes, seconds: pd.DataFrame) -> None:
    done = np.zeros(len(seconds))
    colours = sns.color_palette("colorblind", len(seconds.columns))
    for colour, (label, values) in zip(colours, seconds.items(), strict=True):
        minutes = values.to_numpy(np.float64) / 60
        axes.barh(seconds.index, minutes, left=done, label=label, color=colour, height=0.5)
        done = done + minutes
    for place, total in enumerate(done):
        axes.text(total, place, f" {total:.1f}", va="center", size=8)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.margins(x=0.15)
    axes.set(xlabel="minutes")
    axes.set_title("time", loc="left")
    axes.legend(loc="lower right", fontsize=7, bbox_to_anchor=(1, 1), ncols=3, frameon=False)
