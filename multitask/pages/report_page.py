"""The report of an evaluation: `results/report.html`, one page that needs no other file.

It shows the metrics in `metrics.json`, `predictions.csv` and `history.csv` and computes none. For
any data, the page has at most PAGE_BYTES. Content that does not fit is in those files and in
`classes_{task}.csv` and `confusion_{task}.csv`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2.utils import htmlsafe_json_dumps

from multitask.console import progress_bar
from multitask.pages.class_plots import f1_order
from multitask.pages.coverage_plots import coverage_panels
from multitask.pages.curves import calibration_panels, history_panels
from multitask.pages.distance_plots import distance_panels
from multitask.pages.image_sheets import data_uri
from multitask.pages.open_set_plots import open_set_panels
from multitask.pages.render import render
from multitask.pages.text import shorten
from multitask.spec import NO_TEST_SET, field_of

PAGE_BYTES = 10_000_000  # of the whole page; thumbnails fill the room that the text leaves
THUMBNAIL_PX, QUALITY = 150, 72
GALLERY = 24  # outliers per task and kind
NAMED, SHOWN_IMAGES = 12, 6  # images per cell of the confusion matrix: listed, and shown
FAR = "farthest from their class"
KINDS = ("misclassified", "low confidence", FAR)

# Limits of the text on a page. Each is for the whole page and is divided among the tasks. A
# character takes at most 5 bytes (an escaped quote), so that a name has at most 250 bytes and a
# path 750. In the worst case all text together is below 9.5 MB:
#                       bytes each            MB
#   matrices            17,000 cells of 80    1.4    (task_metrics.MATRIX_CELLS), and 0.5 of names
#   class rows          830                   2.5
#   pairs               750                   0.7
#   names behind cells  CELL_BYTES            0.8
#   cards               3,000                 1.1
#   attention           1,800                 0.2
#   similar images    48 of 3,000           0.2
#   contradictions      24 of 2,500           0.1
#   farthest images     24 of 1,000           0.0
#   pairs of tasks      500 a row             0.7
#   curves              60,000 a task         1.2
NAME, PATH = 50, 150  # columns
TASKS = 20  # further tasks are not shown
CLASS_ROWS = 3000
PAIRS = 900
CELL_BYTES = 800_000
CARDS = 360
LOOKS = 100
PAIR_ROWS = 200  # pairs of tasks in a table
PAIR_CLASSES, PAIR_LISTS = 1000, 30  # rows of all lists of classes; number of lists


class Album:
    """The images of a page, each stored once, as text.

    Args:
        load: path -> uint8 [height, width, 3], or None if it cannot be read.
    """

    def __init__(self, load: Callable[[str], np.ndarray | None]):
        self.load = load
        self.places: dict[str, int] = {}
        self._kept: list[str | np.ndarray] = []
        self.sources: list[str | None] = []

    def add(self, path: str) -> int:
        """Return the place of an image. Images are loaded in the order of these calls."""
        if path not in self.places:
            self.places[path] = self._keep(path)
        return self.places[path]

    def add_pixels(self, pixels: np.ndarray) -> int:
        """Return the place of an image, uint8 [height, width, 3]."""
        return self._keep(pixels)

    def _keep(self, image: str | np.ndarray) -> int:
        self._kept.append(image)
        self.sources.append(None)
        return len(self._kept) - 1

    def fill(self, room: int) -> None:
        """Load as many images as `room` bytes can hold; the others are only listed by name."""
        for place, image in enumerate(progress_bar("images", len(self._kept), iterable=self._kept)):
            pixels = self.load(image) if isinstance(image, str) else image
            if pixels is None:
                continue
            source = data_uri(pixels, side_px=THUMBNAIL_PX, quality=QUALITY)
            room -= len(source)
            if room < 0:
                break
            self.sources[place] = source


# === Contents ===


def labelled_in(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """The rows of `predictions.csv` with a label of a task.

    Returns:
        Columns path, true, predicted, confidence, and distance (NaN if unknown).
    """
    columns = ["path", *(field_of(task, f) for f in ("true", "predicted", "confidence"))]
    images = frame[frame[field_of(task, "true")] != ""]
    own = images[columns].set_axis(["path", "true", "predicted", "confidence"], axis=1)
    return own.assign(distance=images.get(field_of(task, "class_distance"), np.nan))


def galleries(labelled: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """The outliers of each task and kind: the first GALLERY, fewer if there are many tasks.

    The kinds are: misclassified images, whose labels are often wrong, with the highest confidence
    first; right predictions of low confidence, the lowest first; and the images farthest from
    their class, if distances are known.

    Args:
        labelled: task -> result of `labelled_in`.

    Returns:
        Dicts of task, kind, path, true, predicted, confidence and distance (None if unknown).
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
    """An equal part of a total: at least 1, at most `most`."""
    return max(1, min(most, total // max(1, len(parts))))


def mistakes(images: pd.DataFrame) -> pd.DataFrame:
    """The confused pairs of classes, the most frequent first.

    Returns:
        Columns true, predicted, count, and total (images of the class `true`).
    """
    counts = images.groupby(["true", "predicted"], sort=True).size().rename("count").reset_index()
    counts["total"] = counts.groupby("true")["count"].transform("sum")
    wrong = counts[counts["true"] != counts["predicted"]]
    return wrong.sort_values("count", ascending=False, kind="stable")


def cells(images: pd.DataFrame, shown: Iterable[tuple[str, str]]) -> dict[tuple[str, str], list]:
    """(true, predicted) -> path and confidence of up to NAMED images, highest confidence first.

    Args:
        images: rows of one task, as in `labelled_in`.
        shown: the listed cells.
    """
    keys = pd.MultiIndex.from_frame(images[["true", "predicted"]])
    images = images[keys.isin(list(shown))]
    images = images.sort_values("confidence", ascending=False, kind="stable")
    named = images[images.groupby(["true", "predicted"]).cumcount() < NAMED]
    of_cell: dict[tuple[str, str], list] = {}
    columns = (named[name] for name in ("true", "predicted", "path", "confidence"))
    for true, predicted, path, confidence in zip(*columns, strict=True):
        of_cell.setdefault((true, predicted), []).append((path, confidence))
    return of_cell


def in_turns(cells_of: Sequence[dict]) -> list[tuple[int, tuple[str, str], str, float]]:
    """The images of cells in turns: the first of every cell, then the second of every cell.

    Returns:
        Place of the dict, cell, path and confidence; mistakes before right predictions.
    """
    every = [(i, key, rows) for i, group in enumerate(cells_of) for key, rows in group.items()]
    every.sort(key=lambda cell: cell[1][0] == cell[1][1])
    return [
        (i, key, *rows[turn]) for turn in range(NAMED) for i, key, rows in every if turn < len(rows)
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
    """Write the page; `path` should be a temporary name that is renamed afterwards.

    Args:
        path: the file; the files that the page names are in the same folder.
        title: name of the run.
        spec: its settings, as in `config.json`.
        content: `metrics.json`.
        frame: `predictions.csv`, without missing values (an empty text is no label).
        history: `history.csv`; may be empty.
        load: path of a test or training image -> uint8 [height, width, 3], None if unreadable.
        attention: task, path, true, predicted, confidence, and overlay: uint8 [height, width, 3].
        similar: path of a query, labels (a text), and neighbours: path, distance, labels.
    """
    every = list(content["calibration"])  # the evaluated tasks
    tasks = every[:TASKS]
    labelled = {task: labelled_in(frame, task) for task in tasks}
    album = Album(load)
    values = {
        "title": title,
        "no_test_set": NO_TEST_SET,
        "spec": spec,
        "tasks": tasks,
        "more_tasks": len(every) - len(tasks),
        "content": content,
        **_images(album, galleries(labelled), attention, similar, tasks),
        **_distance(content.get("distance", {}), album),
        **_task_pairs(content["task_pairs"], tasks, album),
        "history": {task: history_panels(history, task=task) for task in tasks},
        "calibration": {task: calibration_panels(content["calibration"][task]) for task in tasks},
        "open_set": {
            task: open_set_panels(content.get("open_set", {}).get(task)) for task in tasks
        },
        "sets": {task: coverage_panels(content["conformal"]["tasks"][task]) for task in tasks},
        "by_task": {task: _classes_of(content, task, labelled[task], tasks) for task in tasks},
    }
    confused = _confused(values["by_task"], labelled, album)

    def page() -> str:
        return render(
            "report.html.j2", **values, data={"sources": album.sources, "confused": confused}
        )

    length = len(page().encode("utf-8", "backslashreplace"))
    album.fill(PAGE_BYTES - length)
    path.write_text(page(), encoding="utf-8", errors="backslashreplace")


def _images(
    album: Album,
    cards: Sequence[dict[str, Any]],
    attention: Sequence[dict[str, Any]],
    similar: Sequence[dict[str, Any]],
    tasks: Sequence[str],
) -> dict[str, Any]:
    """The outliers, attention maps and similar images, each with its place in the album."""
    shown = [{"place": album.add(card["path"])} | card for card in cards]
    maps = [
        {key: value for key, value in entry.items() if key != "overlay"}
        | {"place": album.add(entry["path"]), "overlay": album.add_pixels(entry["overlay"])}
        for entry in _some_of_each(attention, tasks)
    ]
    queries = [
        query
        | {
            "place": album.add(query["path"]),
            "neighbours": [{"place": album.add(n["path"])} | n for n in query["neighbours"]],
        }
        for query in similar
    ]
    kinds = [kind for kind in KINDS if any(card["kind"] == kind for card in cards)]
    return {"cards": shown, "kinds": kinds, "attention": maps, "similar": queries}


def _distance(values: Mapping[str, Any], album: Album) -> dict[str, Any]:
    """The plot of the distances, and the farthest test images with their places in the album."""
    return {
        "distance": distance_panels(values),
        "farthest": [{"place": album.add(row["path"])} | row for row in values.get("farthest", ())],
    }


def _some_of_each(looks: Sequence[dict[str, Any]], tasks: Sequence[str]) -> list[dict[str, Any]]:
    most = share(LOOKS, tasks, len(looks))
    return [look for task in tasks for look in [x for x in looks if x["task"] == task][:most]]


def _task_pairs(pairs: Mapping[str, Any], tasks: Sequence[str], album: Album) -> dict[str, Any]:
    """The metrics of task pairs that fit on the page."""
    dependence = [r for r in pairs["dependence"] if {r["given"], r["task"]} <= set(tasks)]
    agreement = [r for r in pairs["agreement"] if {r["first"], r["second"]} <= set(tasks)]
    dependence = dependence[:PAIR_ROWS]
    lists = dependence[:PAIR_LISTS]
    most = share(PAIR_CLASSES, lists, PAIR_CLASSES)
    return {
        "across": {
            "dependence": dependence,
            "lists": [
                row | {"classes": row["classes"][:most], "of": len(row["classes"])} for row in lists
            ],
            "agreement": agreement[:PAIR_ROWS],
        },
        "contradictions": [
            {"place": album.add(row["path"])} | row for row in pairs["contradictions"]
        ],
    }


def _classes_of(
    content: Mapping[str, Any], task: str, images: pd.DataFrame, tasks: Sequence[str]
) -> dict[str, Any]:
    """The metrics of a task's classes that fit on the page.

    Returns:
        matrix: the confusion matrix; pairs: the most frequent mistakes, dicts of true, predicted,
        count and total, empty if the matrix is complete; number: the number of confused pairs;
        rows: the classes, best F1 first, or if there are too many, those with the most mistakes;
        of: the number of classes; taken_for: class -> the class that is most often predicted
        instead, and how often.
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
    """The images of the cells and pairs of each task, within CELL_BYTES.

    Returns:
        task -> "2 5", the places of a true and a predicted class -> path, confidence and place in
        the album (None if the image is only listed) of some images, highest confidence first.
        Classes of the matrix have the places of its rows; each pair gets its places as `cell`.
    """
    names: dict[str, dict[str, int]] = {}
    groups = []
    for task, one in by_task.items():
        shown = one["matrix"]["names"]
        pairs = [(pair["true"], pair["predicted"]) for pair in one["pairs"]]
        names[task] = {n: i for i, n in enumerate(dict.fromkeys([*shown, *sum(pairs, ())]))}
        for pair, key in zip(one["pairs"], pairs, strict=True):
            pair["cell"] = " ".join(str(names[task][name]) for name in key)
        within = [(true, predicted) for true in shown for predicted in shown]
        groups.append(cells(labelled[task], dict.fromkeys(within + pairs)))
    tasks = list(by_task)
    kept: dict[str, dict[str, list[Any]]] = {task: {} for task in tasks}
    room = CELL_BYTES
    for i, key, path, confidence in in_turns(groups):
        cell = " ".join(str(names[tasks[i]][name]) for name in key)
        rows = kept[tasks[i]].setdefault(cell, [])
        row = [shorten(path, PATH, spaces=False), round(float(confidence), 3), None]
        room -= len(htmlsafe_json_dumps(row)) + 40  # with the key
        if room < 0:
            break
        if len(rows) < SHOWN_IMAGES:
            row[2] = album.add(path)
        rows.append(row)
    return kept


def _by_f1(classes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    order = f1_order(
        [np.nan if row["f1"] is None else row["f1"] for row in classes],
        [row["support"] for row in classes],
    )
    return [classes[index] for index in order]
