"""An evaluation as one page of HTML that needs nothing else: `results/report.html`.

Its figures are those of `metrics.json`, `predictions.csv` and `history.csv`: nothing is measured
here, only chosen, sorted and shown. The page is at most PAGE_BYTES long, whatever the data: what
it has no room for stands in those files, and in `classes_{task}.csv` and `confusion_{task}.csv`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2.utils import htmlsafe_json_dumps
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from multitask import figures
from multitask.evaluation.pages import render
from multitask.spec import NO_TEST_SET, field_of
from multitask.text import shorten

PAGE_BYTES = 10_000_000  # of the whole page; the thumbnails get what the text leaves
THUMBNAIL_PX, QUALITY = 150, 72
GALLERY = 24  # cards of a kind and task
NAMED, PICTURED = 12, 6  # of a cell of the confusion matrix: pictures by name, and to see
FAR = "farthest from their class"
KINDS = ("misclassified", "low confidence", FAR)

# How much text a page has at most. Each number is of the whole page and is divided among the tasks.
# A column of a name or path is at most 5 bytes (an escaped quote), so that a name is at most 250
# bytes and a path 750. All of it together, in the worst case, is below 9 MB:
#                       bytes of one          MB
#   matrices            17,000 cells of 80    1.4    (judging.MATRIX_CELLS), and 0.5 of names
#   class rows          830                   2.5
#   pairs               750                   0.7
#   names behind cells  CELL_BYTES            0.8
#   cards               3,000                 1.1
#   attention           1,800                 0.2
#   similar pictures    48 of 3,000           0.2
#   contradictions      24 of 2,500           0.1
#   across tasks        500 a row             0.7
#   charts              30,000 a task         0.6
NAME, PATH = 50, 150  # columns
TASKS = 20  # of more tasks the first are shown
CLASS_ROWS = 3000
PAIRS = 900
CELL_BYTES = 800_000
CARDS = 360
LOOKS = 100
ACROSS = 200  # pairs of tasks in a table
ACROSS_CLASSES, ACROSS_LISTS = 1000, 30  # rows of all lists of classes; how many lists
POINTS = 150  # of a line in a chart


class Album:
    """The pictures of a page: each is held once, as text.

    Args:
        load: path -> uint8 [height, width, 3], or None where it cannot be read.
    """

    def __init__(self, load: Callable[[str], np.ndarray | None]):
        self.load = load
        self.places: dict[str, int] = {}
        self._kept: list[str | np.ndarray] = []
        self.sources: list[str | None] = []

    def add(self, path: str) -> int:
        """The picture's place. Those that are added first are the first to find room."""
        if path not in self.places:
            self.places[path] = self._keep(path)
        return self.places[path]

    def add_pixels(self, pixels: np.ndarray) -> int:
        """uint8 [height, width, 3] -> its place."""
        return self._keep(pixels)

    def _keep(self, picture: str | np.ndarray) -> int:
        self._kept.append(picture)
        self.sources.append(None)
        return len(self._kept) - 1

    def fill(self, room: int) -> None:
        """Load the pictures, as many as `room` bytes hold; the rest is only named on the page."""
        for place, picture in enumerate(
            tqdm(self._kept, desc="pictures", unit=" pictures", leave=False, disable=None)
        ):
            pixels = self.load(picture) if isinstance(picture, str) else picture
            if pixels is None:
                continue
            source = figures.data_uri(pixels, side_px=THUMBNAIL_PX, quality=QUALITY)
            room -= len(source)
            if room < 0:
                break
            self.sources[place] = source


# === What is shown ===


def labelled_in(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """The pictures of `predictions.csv` that have a label of a task.

    Returns:
        Columns path, true, predicted, confidence, and distance (NaN where it is not known).
    """
    columns = ["path", *(field_of(task, f) for f in ("true", "predicted", "confidence"))]
    images = frame[frame[field_of(task, "true")] != ""]
    own = images[columns].set_axis(["path", "true", "predicted", "confidence"], axis=1)
    return own.assign(distance=images.get(field_of(task, "class_distance"), np.nan))


def galleries(labelled: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """The outliers: of each task and kind the first GALLERY, of many tasks fewer.

    Misclassified: the surest first, whose labels are often wrong; low confidence: the least sure
    of the right ones; farthest from their class, where the distances are known.

    Args:
        labelled: task -> `labelled_in` it.

    Returns:
        Dicts of task, kind, path, true, predicted, confidence and distance (None where unknown).
    """
    cards, most = [], share(CARDS // len(KINDS), labelled, GALLERY)
    for task, own in labelled.items():
        wrong = own["true"] != own["predicted"]
        sorts = (
            own[wrong].sort_values("confidence", ascending=False, kind="stable"),
            own[~wrong & (own["confidence"] < 0.5)].sort_values("confidence", kind="stable"),
            own[own["distance"].notna()].sort_values("distance", ascending=False, kind="stable"),
        )
        for kind, chosen in zip(KINDS, sorts, strict=True):
            for row in chosen.head(most).to_dict("records"):
                far = None if np.isnan(row["distance"]) else row["distance"]
                cards.append({"task": task, "kind": kind} | row | {"distance": far})
    return cards


def share(total: int, parts: Sequence | Mapping, most: int) -> int:
    """What each of the parts has of a total: at least 1, and no more than `most`."""
    return max(1, min(most, total // max(1, len(parts))))


def mistakes(images: pd.DataFrame) -> pd.DataFrame:
    """Which class is taken for which: true, predicted, count, and total (pictures of `true`); the
    most frequent first."""
    counts = images.groupby(["true", "predicted"], sort=True).size().rename("count").reset_index()
    counts["total"] = counts.groupby("true")["count"].transform("sum")
    wrong = counts[counts["true"] != counts["predicted"]]
    return wrong.sort_values("count", ascending=False, kind="stable")


def cells(images: pd.DataFrame, shown: Iterable[tuple[str, str]]) -> dict[tuple[str, str], list]:
    """(true, predicted) -> path and confidence of its first NAMED pictures, the surest first.

    Args:
        images: of one task.
        shown: the cells that are wanted.
    """
    keys = pd.MultiIndex.from_frame(images[["true", "predicted"]])
    images = images[keys.isin(list(shown))]
    images = images.sort_values("confidence", ascending=False, kind="stable")
    return {
        key: list(rows[["path", "confidence"]].head(NAMED).itertuples(index=False, name=None))
        for key, rows in images.groupby(["true", "predicted"], sort=False)
    }


def in_turns(cells_of: Sequence[dict]) -> list[tuple[int, tuple[str, str], str, float]]:
    """What cells hold, as (place of the dict, cell, path, confidence): the first picture of every
    cell, mistakes before the rest, then the second of every cell, and so on."""
    every = [(i, key, rows) for i, found in enumerate(cells_of) for key, rows in found.items()]
    every.sort(key=lambda cell: cell[1][0] == cell[1][1])
    return [
        (i, key, *rows[turn]) for turn in range(NAMED) for i, key, rows in every if turn < len(rows)
    ]


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
        lines: label, look (a CSS class) and points ((x, y), …); None is left out. Of many points
            every second, third, … is drawn, and the last one.
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
        points = points[:: -(-len(points) // POINTS) or 1] + points[-1:] * (len(points) > POINTS)
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
        for of, label, look in (
            (field_of(task, name), "training", "first"),
            (field_of(task, f"val_{name}"), "selection", "second"),
        ):
            if of in history and history[of].notna().any():
                points = list(zip(history["epoch"], history[of].astype(float), strict=True))
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
    """The reliability diagram, and accuracy against coverage; nothing of no images."""
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
        path: where; the files that the page names lie beside it.
        title: of the run.
        spec: its settings, as `config.json` holds them.
        content: `metrics.json`.
        frame: `predictions.csv`, without missing values (an empty text is no label).
        history: `history.csv`; may be empty.
        load: path of an exam or training picture -> uint8 [height, width, 3], None if unreadable.
        attention: task, path, true, predicted, confidence, and overlay: uint8 [height, width, 3].
        similar: path of a query, labels (a text), and neighbours: path, distance, labels.
    """
    every = [task["name"] for task in spec["task"]]
    tasks = every[:TASKS]
    labelled = {task: labelled_in(frame, task) for task in tasks}
    album = Album(load)
    cards = galleries(labelled)
    shown = [{"place": album.add(card["path"])} | card for card in cards]
    looks = [
        {key: value for key, value in look.items() if key != "overlay"}
        | {"place": album.add(look["path"]), "overlay": album.add_pixels(look["overlay"])}
        for look in _some_of_each(attention, tasks)
    ]
    queries = [
        query
        | {
            "place": album.add(query["path"]),
            "neighbours": [{"place": album.add(n["path"])} | n for n in query["neighbours"]],
        }
        for query in similar
    ]
    across = _across(content["across"], tasks)
    odd = [{"place": album.add(row["path"])} | row for row in across["contradictions"]]
    by_task = {task: _classes_of(content, task, labelled[task], tasks) for task in tasks}
    values = {
        "title": title,
        "no_test_set": NO_TEST_SET,
        "spec": spec,
        "tasks": tasks,
        "more_tasks": len(every) - len(tasks),
        "content": content,
        "across": across,
        "cards": shown,
        "kinds": [kind for kind in KINDS if any(card["kind"] == kind for card in cards)],
        "attention": looks,
        "similar": queries,
        "contradictions": odd,
        "history": {task: history_charts(history, task) for task in tasks},
        "calibration": {task: calibration_charts(content["calibration"][task]) for task in tasks},
        "by_task": by_task,
    }
    confused = _confused(by_task, labelled, album)

    def page() -> str:
        return render(
            "report.html.j2", **values, data={"sources": album.sources, "confused": confused}
        )

    length = len(page().encode("utf-8", "backslashreplace"))
    album.fill(PAGE_BYTES - length)
    path.write_text(page(), encoding="utf-8", errors="backslashreplace")


def _some_of_each(looks: Sequence[dict[str, Any]], tasks: Sequence[str]) -> list[dict[str, Any]]:
    most = share(LOOKS, tasks, len(looks))
    return [look for task in tasks for look in [x for x in looks if x["task"] == task][:most]]


def _across(found: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """Of what `across.py` found what a page has room for."""
    dependence = [r for r in found["dependence"] if {r["given"], r["task"]} <= set(tasks)][:ACROSS]
    lists = dependence[:ACROSS_LISTS]
    most = share(ACROSS_CLASSES, lists, ACROSS_CLASSES)
    agreement = [r for r in found["agreement"] if {r["first"], r["second"]} <= set(tasks)][:ACROSS]
    return {
        "dependence": dependence,
        "lists": [row | {"classes": row["classes"][:most]} for row in lists],
        "agreement": agreement,
        "contradictions": found["contradictions"],
    }


def _classes_of(
    content: Mapping[str, Any], task: str, images: pd.DataFrame, tasks: Sequence[str]
) -> dict[str, Any]:
    """What a page shows of the classes of a task.

    Returns:
        matrix: as `judging.confusion_matrix` gives it; pairs: the most frequent mistakes, dicts of
        true, predicted, count and total, of a task whose matrix is not whole; number: of all such
        pairs; rows: classes, the best F1 first, or where there are too many, those of the most
        mistakes; of: how many there are; taken_for: class -> the class that it is most often
        taken for, and how often.
    """
    matrix, rows = content["confusion"][task], content["classes"][task]
    wrong = mistakes(images)
    taken_for = wrong.drop_duplicates("true").set_index("true")
    most = share(CLASS_ROWS, tasks, len(rows))
    chosen = _by_f1(rows)
    if most < len(rows):
        lost = wrong.groupby("true")["count"].sum()
        chosen.sort(key=lambda row: -lost.get(row["name"], 0))
    return {
        "matrix": matrix,
        "pairs": wrong.head(share(PAIRS, tasks, PAIRS)).to_dict("records")
        if matrix["others"]
        else [],
        "number": len(wrong),
        "rows": chosen[:most],
        "of": len(rows),
        "taken_for": {
            true: (row.predicted, row.count)
            for true, row in zip(taken_for.index, taken_for.itertuples(index=False), strict=True)
        },
    }


def _confused(
    by_task: Mapping[str, dict], labelled: Mapping[str, pd.DataFrame], album: Album
) -> dict[str, Any]:
    """The pictures behind the cells and pairs of each task, within CELL_BYTES.

    Returns:
        task -> "2 5", the places of a true and a predicted class -> path, confidence and place in
        the album (None where it is only named) of some pictures, the surest first. The places of
        the matrix' classes are those of its rows; each pair is given its own as `cell`.
    """
    names, found = {}, []
    for task, one in by_task.items():
        shown = one["matrix"]["names"]
        pairs = [(pair["true"], pair["predicted"]) for pair in one["pairs"]]
        names[task] = {n: i for i, n in enumerate(dict.fromkeys([*shown, *sum(pairs, ())]))}
        for pair, key in zip(one["pairs"], pairs, strict=True):
            pair["cell"] = " ".join(str(names[task][name]) for name in key)
        within = [(true, said) for true in shown for said in shown]
        found.append(cells(labelled[task], dict.fromkeys(within + pairs)))
    tasks = list(by_task)
    kept = {task: {} for task in tasks}
    room = CELL_BYTES
    for i, key, path, confidence in in_turns(found):
        cell = " ".join(str(names[tasks[i]][name]) for name in key)
        rows = kept[tasks[i]].setdefault(cell, [])
        row = [shorten(path, PATH, spaces=False), round(float(confidence), 3), None]
        room -= len(htmlsafe_json_dumps(row)) + 40  # with the key
        if room < 0:
            break
        if len(rows) < PICTURED:
            row[2] = album.add(path)
        rows.append(row)
    return kept


def _by_f1(classes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    order = figures.f1_order(
        [np.nan if row["f1"] is None else row["f1"] for row in classes],
        [row["support"] for row in classes],
    )
    return [classes[index] for index in order]
