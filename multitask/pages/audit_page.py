"""An audit as one self-contained page of HTML, without network access, scripts or other files.

The page shows the content of audit.json, which has the complete lists.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from multitask.errors import counted
from multitask.files import scratch
from multitask.pages import class_plots, image_sheets
from multitask.pages.render import render
from multitask.spec import DataSpec

MAX_ROWS = 40  # of a list
MAX_TASKS = 20  # whose classes are shown, about 100 kB per task
MAX_CLASSES = 100  # of a table of classes
MAX_PAIRS = 60  # shown as images, about 15 kB a pair
MAX_IMAGES = 20  # of the contradictory ones
THUMBNAIL_PX = 180
JPEG_QUALITY = 80


def name_tasks(tasks: Sequence[str]) -> str:
    """A set of tasks in words: `style only`, `artist, style and genre`."""
    if len(tasks) == 1:
        return f"{tasks[0]} only"
    return f"{', '.join(tasks[:-1])} and {tasks[-1]}"


def write_page(
    path: Path,
    *,
    audit: Mapping[str, Any],
    spec: DataSpec,
    image_dir: Path,
    listed: Iterable[str],
    verdict: str,
    load: Callable[[str], np.ndarray | None],
    labels_of: Callable[[str], Sequence[str]],
) -> None:
    """Write the page.

    Args:
        path: a temporary name, which the caller renames at the end.
        audit: the content of audit.json.
        spec: the data set and its tasks.
        image_dir: the image folder.
        listed: paths of all images in the CSVs.
        verdict: the findings in words; "" if there are none.
        load: path -> uint8 [height, width, 3], the image in about THUMBNAIL_PX, or None.
        labels_of: path -> the names of an image's classes.
    """

    def thumbnail(image: str) -> str | None:
        pixels = load(image)
        if pixels is None:
            return None
        return image_sheets.data_uri(pixels, side_px=THUMBNAIL_PX, quality=JPEG_QUALITY)

    unusable = {*audit["missing"], *(row["path"] for row in audit["unreadable"])}
    page = render(
        "audit.html.j2",
        audit=audit,
        spec=spec,
        image_dir=image_dir,
        verdict=verdict,
        limits={
            "rows": MAX_ROWS, "tasks": MAX_TASKS, "classes": MAX_CLASSES, "pairs": MAX_PAIRS,
        },
        sections=_sections(audit),
        passed=[text for kind, _, text in _FINDINGS if not audit["findings"][kind]],
        tables=_tables(audit, listed),
        repeated_in_both=sum(
            len({row["split"] for row in entry["rows"]}) > 1 for entry in audit["repeated"]
        ),
        sets_plot=_label_sets_plot(audit, spec.name),
        class_plots={
            task: _class_plot(task, classes, audit["rare_below"])
            for task, classes in list(audit["classes"].items())[:MAX_TASKS]
        },
        contradictions=_contradictions(audit["contradictory"], unusable),
        pairs=_pairs(audit["near_duplicates"]["pairs"]),
        thumbnail=thumbnail,
        labels_of=labels_of,
    )  # fmt: skip
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


# === Sections ===

_FINDINGS = (  # kind, title, and the text if there are none
    ("missing", "Missing files", "Every image of the lists has its file."),
    ("unreadable", "Unreadable files", "Every file that exists can be read."),
    ("unsafe", "Unsafe paths", "Every path stays within the image folder."),
    ("unknown", "Unknown labels", "Every label is one of the classes."),
    ("contradictory", "Contradictory labels", "No task lists an image with two labels."),
    ("repeated", "Repeated rows", "No task lists an image twice with one label."),
    ("leaks", "Leaks between tasks", "No image is train for one task and test for another."),
    (
        "near_duplicates",
        "Near-duplicates between train and test",
        "No readable test image looks like a training image.",
    ),
    ("empty_classes", "Empty classes", "Every class has a label in train and one in test."),
)
_Section = tuple[str, str, str, bool]


def _sections(audit: Mapping[str, Any]) -> list[_Section]:
    """Anchor, title, count and whether it is a finding, of the sections that the page shows."""
    counts = audit["findings"]
    sections: list[_Section] = [
        (kind, title, f"{counts[kind]:,}", True) for kind, title, _ in _FINDINGS if counts[kind]
    ]
    passed = sum(not counts[kind] for kind, *_ in _FINDINGS)
    if passed:
        sections.append(("clean", "Checked, no findings", str(passed), False))
    classes = sum(map(len, audit["classes"].values()))
    pairs, spelling = audit["near_duplicates"]["pairs"], audit["respelt"] + audit["ambiguous"]
    sections += [
        ("rows", "Rows and splits", counted(audit["images"], "image"), False),
        ("coverage", "Sets of labels", counted(len(audit["coverage"]), "set"), False),
        ("classes", "Classes and imbalance", counted(classes, "class", "classes"), False),
        ("similar", "Near-duplicates", counted(len(pairs), "pair"), False),
        ("mojibake", "Mojibake", counted(len(audit["mojibake"]), "path"), False),
    ]
    if spelling:
        sections.append(("spelling", "Spelling", counted(len(spelling), "row"), False))
    if audit["unnamed"] or audit["skipped"]:
        count = counted(len(audit["unnamed"]), "image")
        sections.append(("unnamed", "Files that are in no CSV", count, False))
    if audit["notes"]:
        sections.append(("notes", "Notes on the CSV files", str(len(audit["notes"])), False))
    return sections


# === Tables ===

# Key of audit.json -> the columns of its table: field of an entry -> heading, if it differs.
_COLUMNS: dict[str, dict[str, str]] = {
    "rows": {"task": "", "split": "", "file": "", "rows": ""},
    "unreadable": {"path": "", "reason": ""},
    "unsafe": {"file": "", "line": "", "path": "", "reason": ""},
    "unknown": {"file": "", "line": "", "value": "", "path": ""},
    "contradictory": {"task": "", "path": "", "file": "", "line": "", "label": "", "name": ""},
    "repeated": {"task": "", "path": "", "file": "", "line": "", "label": "", "name": ""},
    "mojibake": {"path": "", "repaired": "was", "file": ""},
    "respelt": {"file": "", "line": "", "path": "", "file_path": "is read", "kind": "difference"},
    "ambiguous": {"file": "", "line": "", "path": "", "candidates": "could be"},
}
_CLASS_COLUMNS = ("task", "label", "name", "listed", "train", "readable", "test")
_Table = tuple[Sequence[str], list[list[Any]]]


def _tables(audit: Mapping[str, Any], listed: Iterable[str]) -> dict[str, _Table]:
    """Key of audit.json -> the headings and rows of its table; `folders` and `classes/TASK` too."""
    tables: dict[str, _Table] = {}
    for key, columns in _COLUMNS.items():
        rows = audit[key]
        if key in ("contradictory", "repeated"):  # an entry per image, with its rows
            rows = [entry | row for entry in audit[key] for row in entry["rows"]]
        headings = [heading or field for field, heading in columns.items()]
        tables[key] = headings, [[row[field] for field in columns] for row in rows]
    for row in tables["unsafe"][1]:
        row[2] = repr(row[2])
    for key in ("contradictory", "repeated"):
        for row in tables[key][1]:
            row[4] = str(row[4])  # a label is a name, not a quantity
    for key in ("missing", "unnamed"):
        tables[key] = ["path"], [[path] for path in audit[key]]
    tables["folders"] = ["folder", "missing", "of"], _missing_by_folder(audit["missing"], listed)
    total = sum(entry["images"] for entry in audit["coverage"])
    tables["coverage"] = (
        ["labels", "images", "share"],
        [
            [name_tasks(entry["tasks"]), entry["images"], f"{entry['images'] / total:.1%}"]
            for entry in audit["coverage"]
        ],
    )
    tables["leaks"] = (
        ["path", "train for", "test for"],
        [
            [image["path"], ", ".join(image["train"]), ", ".join(image["test"])]
            for image in audit["leaks"]["images"]
        ],
    )
    for key in ("rare_classes", "empty_classes"):
        tables[key] = _class_table(audit[key])
    for task, classes in audit["classes"].items():
        tables[f"classes/{task}"] = _class_table(_by_size(classes), task)
    return tables


def _class_table(classes: Iterable[Mapping[str, Any]], task: str | None = None) -> _Table:
    rows = [{"task": task, **row} for row in classes]
    return _CLASS_COLUMNS, [[row[column] for column in _CLASS_COLUMNS] for row in rows]


def _missing_by_folder(missing: Iterable[str], listed: Iterable[str]) -> list[list[Any]]:
    """Folder, missing images, listed images; the folders with most missing images first."""
    counts, totals = (
        pd.Series([str(PurePosixPath(path).parent) for path in paths], dtype=object).value_counts()
        for paths in (missing, listed)
    )
    return [[folder, int(count), int(totals[folder])] for folder, count in counts.items()]


def _contradictions(entries: Sequence[Mapping[str, Any]], unusable: set[str]) -> dict[str, str]:
    """Path -> `task: name` of its contradictory labels, of the first images that can be shown."""
    labels: dict[str, list[str]] = {}
    for entry in entries:
        if entry["path"] not in unusable:
            names = [f"{entry['task']}: {row['name']}" for row in entry["rows"]]
            labels.setdefault(entry["path"], []).extend(names)
    shown = list(labels.items())[:MAX_IMAGES]
    return {path: ", ".join(dict.fromkeys(names)) for path, names in shown}


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The pairs by the splits of their images, the most similar first.

    Returns:
        `between` (train and test), `train` and `test` (both images in that split) -> pairs with
        `sides`: split and path of both images, the training image first.
    """
    groups: dict[str, list[dict[str, Any]]] = {"between": [], "train": [], "test": []}
    for pair in sorted(pairs, key=lambda pair: pair["distance"]):
        sides = [(pair[f"{side}_split"], pair[side]) for side in ("first", "second")]
        splits = {split for split, _ in sides}
        kind = "between" if len(splits) == 2 else splits.pop()
        sides.sort(key=lambda side: (side[0] == "test", side[1]))
        groups[kind].append({**pair, "sides": sides})
    return groups


def _by_size(classes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(classes, key=lambda row: -row["listed"])


# === Plots ===


def _png(draw: Callable[[Path], Any]) -> str:
    """The PNG file that a function draws, as a data URI."""
    with scratch() as folder:
        path = folder / "plot.png"
        draw(path)
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _label_sets_plot(audit: Mapping[str, Any], title: str) -> str | None:
    if not audit["coverage"]:
        return None
    counts = [row["images"] for row in audit["coverage"]]
    names = [name_tasks(row["tasks"]) for row in audit["coverage"]]
    return _png(lambda path: class_plots.label_sets(path, counts, names, title=title))


def _class_plot(task: str, classes: Sequence[Mapping[str, Any]], rare: int) -> str:
    rows = _by_size(classes)
    counts, names = [row["listed"] for row in rows], [row["name"] for row in rows]
    return _png(lambda path: class_plots.class_counts(path, counts, names, task=task, rare=rare))
