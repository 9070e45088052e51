"""An evaluation as one page of HTML that needs nothing else: `results/report.html`.

Its figures are those of `metrics.json`, `predictions.csv` and `history.csv`: nothing is measured
here, only chosen, sorted and shown.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from multitask import figures
from multitask.evaluation.pages import render

MAX_BYTES = 11_000_000  # of pictures, as text; the rest of a page is below 3 MB
THUMBNAIL_PX, QUALITY = 150, 72
GALLERY = 24  # cards of a kind and task
NAMED, PICTURED = 12, 6  # of a cell of the confusion matrix: pictures by name, and to see
FAR = "farthest from their class"
KINDS = ("misclassified", "low confidence", FAR)


class Album:
    """The pictures of a page: each is held once, as text, and all of them within MAX_BYTES.

    Args:
        load: path -> uint8 [height, width, 3], or None where it cannot be read.
    """

    def __init__(self, load: Callable[[str], np.ndarray | None]):
        self.load = load
        self.places: dict[str, int] = {}
        self.sources: list[str | None] = []
        self.bytes = 0

    def __contains__(self, path: str) -> bool:
        return path in self.places

    @property
    def full(self) -> bool:
        return self.bytes >= MAX_BYTES

    def add(self, path: str) -> int:
        """The picture's place; it is only named there where it cannot be read or no room is."""
        if path not in self.places:
            pixels = None if self.full else self.load(path)
            self.places[path] = self._keep(pixels)
        return self.places[path]

    def add_pixels(self, pixels: np.ndarray) -> int:
        """uint8 [height, width, 3] -> its place."""
        return self._keep(None if self.full else pixels)

    def _keep(self, pixels: np.ndarray | None) -> int:
        source = None
        if pixels is not None:
            source = figures.data_uri(pixels, side_px=THUMBNAIL_PX, quality=QUALITY)
            self.bytes += len(source)
        self.sources.append(source)
        return len(self.sources) - 1


# === What is shown ===


def galleries(frame: pd.DataFrame, tasks: Iterable[str]) -> list[dict[str, Any]]:
    """The outliers: of each task and kind the first GALLERY.

    Misclassified: the surest first, whose labels are often wrong; low confidence: the least sure
    of the right ones; farthest from their class, where the distances are known.

    Args:
        frame: `predictions.csv`.
        tasks: of the spec.

    Returns:
        Dicts of task, kind, path, true, predicted, confidence and distance (None where unknown).
    """
    cards = []
    for task in tasks:
        columns = ["path", *(f"{task}_{name}" for name in ("true", "predicted", "confidence"))]
        exam = frame[frame[f"{task}_true"] != ""]
        distance = f"{task}_class_distance"
        own = exam[columns].set_axis(["path", "true", "predicted", "confidence"], axis=1)
        own = own.assign(distance=exam.get(distance, np.nan))
        wrong = own["true"] != own["predicted"]
        sorts = (
            own[wrong].sort_values("confidence", ascending=False, kind="stable"),
            own[~wrong & (own["confidence"] < 0.5)].sort_values("confidence", kind="stable"),
            own[own["distance"].notna()].sort_values("distance", ascending=False, kind="stable"),
        )
        for kind, chosen in zip(KINDS, sorts, strict=True):
            for row in chosen.head(GALLERY).to_dict("records"):
                far = None if np.isnan(row["distance"]) else row["distance"]
                cards.append({"task": task, "kind": kind} | row | {"distance": far})
    return cards


def cells(frame: pd.DataFrame, task: str) -> dict[tuple[str, str], list[tuple[str, float]]]:
    """(true, predicted) -> path and confidence of its first NAMED pictures, the surest first."""
    exam = frame[frame[f"{task}_true"] != ""]
    exam = exam.sort_values(f"{task}_confidence", ascending=False, kind="stable")
    columns = ["path", f"{task}_confidence"]
    return {
        key: list(rows[columns].head(NAMED).itertuples(index=False, name=None))
        for key, rows in exam.groupby([f"{task}_true", f"{task}_predicted"], sort=False)
    }


def in_turns(cells_of: Sequence[dict]) -> list[str]:
    """Paths of what cells hold: the first of every cell, mistakes before the rest, and so on."""
    every = [(key, rows) for found in cells_of for key, rows in found.items()]
    every.sort(key=lambda cell: cell[0][0] == cell[0][1])
    return [rows[turn][0] for turn in range(PICTURED) for _, rows in every if turn < len(rows)]


# === Charts ===


def chart(
    lines: Sequence[dict[str, Any]],
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    x_label: str,
    whole_x: bool = False,
) -> dict[str, Any]:
    """Lines in a box, for the template's macro.

    Args:
        lines: label, look (a CSS class) and points ((x, y), …); None is left out.
        x, y: the ranges.
        x_label: what stands below.
        whole_x: ticks at whole numbers alone.
    """
    width, height, left, below = 300, 190, 34, 30

    def at(px: float, py: float) -> tuple[float, float]:
        along = (px - x[0]) / ((x[1] - x[0]) or 1)
        up = (py - y[0]) / ((y[1] - y[0]) or 1)
        return left + along * (width - left - 8), (height - below) - up * (height - below - 8)

    def ticks(low: float, high: float, whole: bool = False) -> list[float]:
        values = MaxNLocator(4, steps=(1, 2, 2.5, 5, 10), integer=whole).tick_values(low, high)
        return [float(v) for v in values if low <= v <= high]

    drawn = []
    for line in lines:
        points = [at(*p) for p in line["points"] if None not in p and not np.isnan(p).any()]
        drawn.append(line | {"points": [(round(a, 1), round(b, 1)) for a, b in points]})
    return {
        "width": width,
        "height": height,
        "lines": drawn,
        "x_label": x_label,
        "x_ticks": [(round(at(v, y[0])[0], 1), f"{v:.3g}") for v in ticks(*x, whole_x)],
        "y_ticks": [(round(at(x[0], v)[1], 1), f"{v:.2g}") for v in ticks(*y)],
        "left": left,
        "bottom": height - below,
    }


def history_charts(history: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    """Loss, top-1 and macro-F1 over the epochs, in training and on the selection split."""
    found = []
    for name, title in (("loss", "loss"), ("top1", "top-1"), ("macro_f1", "macro-F1")):
        lines = []
        for column, label, look in (
            (f"{task}_{name}", "training", "first"),
            (f"val_{task}_{name}", "selection", "second"),
        ):
            if column in history and history[column].notna().any():
                points = list(zip(history["epoch"], history[column].astype(float), strict=True))
                lines.append({"label": label, "look": look, "points": points})
        if lines:
            values = [v for line in lines for _, v in line["points"] if np.isfinite(v)]
            epochs = float(history["epoch"].min()), float(history["epoch"].max())
            low = min(0.0, *values) if name == "loss" else 0.0
            high = max(*values, 1e-9) if name == "loss" else 1.0
            box = chart(lines, x=epochs, y=(low, high), x_label="epoch", whole_x=True)
            found.append({"title": title, "chart": box})
    return found


def calibration_charts(judged: dict[str, Any]) -> list[dict[str, Any]]:
    """The reliability diagram, and accuracy against coverage; nothing of no exam."""
    if "reliability" not in judged:
        return []
    lines = [{"label": "as it should be", "look": "plain", "points": [(0, 0), (1, 1)]}]
    for kind, look in (("raw", "first"), ("calibrated", "second")):
        points = [(bin_["confidence"], bin_["accuracy"]) for bin_ in judged["reliability"][kind]]
        lines.append({"label": kind, "look": look, "points": points})
    unit = {"x": (0.0, 1.0), "y": (0.0, 1.0)}
    kept = [(row["coverage"], row["accuracy"]) for row in judged["coverage"]]
    coverage = [{"label": "accuracy of what is answered", "look": "second", "points": kept}]
    return [
        {"title": "Accuracy by confidence", "chart": chart(lines, **unit, x_label="confidence")},
        {
            "title": "Accuracy against coverage",
            "chart": chart(coverage, **unit, x_label="share of the pictures that is answered"),
        },
    ]


# === The page ===


def write_page(
    path: Path,
    *,
    title: str,
    spec: dict[str, Any],
    content: dict[str, Any],
    frame: pd.DataFrame,
    history: pd.DataFrame,
    load: Callable[[str], np.ndarray | None],
    attention: Sequence[dict[str, Any]] = (),
    similar: Sequence[dict[str, Any]] = (),
) -> None:
    """Write the page; `path` should be a temporary name that is renamed when all is written.

    Args:
        path: where.
        title: of the run.
        spec: its settings, as `config.json` holds them.
        content: `metrics.json`.
        frame: `predictions.csv`, without missing values (an empty text is no label).
        history: `history.csv`; may be empty.
        load: path of an exam or training picture -> uint8 [height, width, 3], None if unreadable.
        attention: task, path, true, predicted, confidence, and overlay: uint8 [height, width, 3].
        similar: path of a query, labels (a text), and neighbours: path, distance, labels.
    """
    album = Album(load)
    tasks = [task["name"] for task in spec["task"]]
    cards = galleries(frame, tasks)
    shown = [{"place": album.add(card["path"])} | card for card in cards]
    looks = [
        {key: value for key, value in look.items() if key != "overlay"}
        | {"place": album.add(look["path"]), "overlay": album.add_pixels(look["overlay"])}
        for look in attention
    ]
    queries = [
        query
        | {
            "place": album.add(query["path"]),
            "neighbours": [{"place": album.add(n["path"])} | n for n in query["neighbours"]],
        }
        for query in similar
    ]
    odd = [{"place": album.add(row["path"])} | row for row in content["across"]["contradictions"]]
    cells_of = {task: cells(frame, task) for task in tasks}
    for name in tqdm(
        in_turns(list(cells_of.values())),
        desc="pictures",
        unit=" pictures",
        leave=False,
        disable=None,
    ):
        if album.full:
            break
        album.add(name)
    confused = {
        task: {
            "names": content["confusion"][task]["names"],
            "cells": {
                f"{true}\n{said}": [
                    (name, round(float(sure), 3), album.places.get(name)) for name, sure in rows
                ]
                for (true, said), rows in found.items()
            },
        }
        for task, found in cells_of.items()
    }
    path.write_text(
        render(
            "report.html.j2",
            title=title,
            spec=spec,
            tasks=tasks,
            content=content,
            cards=shown,
            kinds=[kind for kind in KINDS if any(card["kind"] == kind for card in cards)],
            attention=looks,
            similar=queries,
            contradictions=odd,
            history={task: history_charts(history, task) for task in tasks},
            calibration={task: calibration_charts(content["calibration"][task]) for task in tasks},
            by_f1={task: _by_f1(content["classes"][task]) for task in tasks},
            data={"sources": album.sources, "confused": confused},
        ),
        encoding="utf-8",
        errors="backslashreplace",
    )


def _by_f1(classes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    order = figures.f1_order(
        [np.nan if row["f1"] is None else row["f1"] for row in classes],
        [row["support"] for row in classes],
    )
    return [classes[index] for index in order]
