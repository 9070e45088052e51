"""Audit: count and list the contents of a data set and its problems.

A finding is a problem to correct, or to accept knowingly: it costs labels or images, or makes a
test set too easy. FINDINGS lists all kinds. These are not findings: sets of labels, imbalance, rare
classes, mojibake (a file with a garbled name is read like any other), and near-duplicates within
one split.
"""

import contextlib
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multitask import __version__
from multitask.data.conversion import conversions_logged
from multitask.data.folders import ImageSearch, identity
from multitask.data.image_files import read_reduced
from multitask.data.matching import repair_mojibake
from multitask.data.merging import merge_tables
from multitask.data.near_duplicates import (
    describe_pairs,
    find_pairs,
    hash_cache,
    leaking_images,
    scan_images,
)
from multitask.data.records_builder import default_records_dir
from multitask.data.table import MISSING_FILE, TEST, TRAIN, Table
from multitask.files import check_image_folder, replacing, write_json
from multitask.pages import audit_page
from multitask.spec import DataSpec, field_of, is_labelled

# With fewer training labels, the usual validation share of 5 % has no image of the class. A test
# set of about half the size of the training set has fewer than ten, so the class's F1 is chance.
RARE = 20

FINDINGS = {  # kind -> its name, singular and plural
    "missing": ("missing file", "missing files"),
    "unreadable": ("unreadable file", "unreadable files"),
    "unsafe": ("row with an unsafe path", "rows with an unsafe path"),
    "unknown": ("row with an unknown label", "rows with an unknown label"),
    "contradictory": ("image with contradictory labels", "images with contradictory labels"),
    "repeated": ("image listed repeatedly", "images listed repeatedly"),
    "leaks": (
        "image that is train for one task and test for another",
        "images that are train for one task and test for another",
    ),
    "near_duplicates": (
        "test image with a near-duplicate in train",
        "test images with a near-duplicate in train",
    ),
    "empty_classes": (
        "class without a training or a test label",
        "classes without a training or a test label",
    ),
}


@dataclass(frozen=True)
class Audit:
    """The facts about a data set.

    Attributes:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        table: the merged CSVs with their findings, including the missing images.
        unusable: columns path and reason, of the files that are missing or unreadable.
        mojibake: columns path, repaired (the original name) and file: "there", "missing", or
            "there as repaired" if only the repaired name is on disk.
        pairs: near-duplicates among readable images: columns first, second (paths), first_split,
            second_split, distance (bits), labels_differ (the tasks that give the two different
            labels, joined by ", ").
        unnamed: paths of the image files in the folder that no CSV names.
        skipped: description of the other files in the folder; "" if there are none.
        seen: paths of the test images with a near-duplicate in train.
    """

    spec: DataSpec
    data_dir: Path
    table: Table
    unusable: pd.DataFrame
    mojibake: pd.DataFrame
    pairs: pd.DataFrame
    seen: Sequence[str]
    unnamed: Sequence[str] = ()
    skipped: str = ""

    @property
    def image_dir(self) -> Path:
        """The folder that the paths of the images start at."""
        return self.data_dir / self.spec.images

    @property
    def missing(self) -> list[str]:
        """The paths without a file."""
        return self.unusable["path"][self.unusable["reason"] == MISSING_FILE].tolist()

    @property
    def unreadable(self) -> pd.DataFrame:
        """Path and reason of the files that exist and cannot be read."""
        return self.unusable[self.unusable["reason"] != MISSING_FILE]

    @functools.cached_property
    def findings(self) -> dict[str, int]:
        """Kind -> count, of every kind in FINDINGS."""
        rows = self.table.findings
        return {
            "missing": len(self.missing),
            "unreadable": len(self.unreadable),
            "unsafe": len(rows.unsafe),
            "unknown": len(rows.unknown),
            "contradictory": len(_images(rows.contradictory)),
            "repeated": len(_images(rows.repeated)),
            "leaks": rows.leaks["path"].nunique(),
            "near_duplicates": len(self.seen),
            "empty_classes": len(empty_classes(self.classes)),
        }

    def counts(self, *, readable: bool = False) -> pd.DataFrame:
        """Images, and labels of each task (columns), in train and test (rows), leaks resolved.

        Training images without any label are not counted, as nothing is learnt from them.

        Args:
            readable: count only images that can be read.
        """
        table = self.table
        dropped = (table.splits == TRAIN) & ~is_labelled(table.labels).any(axis=1)
        if readable:
            dropped |= pd.Index(table.paths).isin(self.unusable["path"])
        return table.drop(dropped, "").counts().loc[[TRAIN, TEST]]

    def leak_cost(self) -> pd.DataFrame:
        """Training images and labels per task (columns), before and after dropping leaks (rows)."""
        leaks = self.table.findings.leaks
        after = self.counts().loc[TRAIN]
        lost = leaks["task"][leaks["split"] == TRAIN].value_counts()
        lost = lost.rename(lambda task: field_of(task, "labels"))
        lost["images"] = leaks["path"].nunique()
        return pd.DataFrame(
            {"before": after.add(lost, fill_value=0)[after.index].astype(int), "after": after}
        ).T

    def leaks_by_test_task(self) -> dict[str, int]:
        """Task -> number of leaking images that are test for it; some are so for several tasks."""
        leaks = self.table.findings.leaks
        counts = leaks["task"][leaks["split"] == TEST].value_counts()
        return {task: int(counts.get(task, 0)) for task in self.spec.listing_tasks}

    def label_sets(self) -> dict[tuple[str, ...], int]:
        """Set of tasks -> number of images that exactly these tasks list, largest first.

        Leaking and contradictory labels count too.
        """
        table = self.table
        listed = is_labelled(table.labels)
        index = pd.Index(table.paths)
        for frame in (table.findings.leaks, table.findings.contradictory):
            columns = [table.tasks.index(task) for task in frame["task"]]
            listed[index.get_indexer(frame["path"]), columns] = True
        sets = pd.DataFrame(listed).value_counts(sort=False)
        named = {
            tuple(task for task, has in zip(table.tasks, key, strict=True) if has): int(count)
            for key, count in sets.items()
        }
        return dict(sorted(named.items(), key=lambda item: (-item[1], item[0])))

    @functools.cached_property
    def classes(self) -> pd.DataFrame:
        """One row per class of each task.

        Returns:
            Columns task, label, name, and numbers of labels: listed (in the train file, without
            contradictory ones), train (those of them that training uses: without leaks), readable
            (those of them whose images can be read), test (in the test set).
        """
        table, leaks = self.table, self.table.findings.leaks
        lost = leaks[leaks["split"] == TRAIN]
        usable = table.drop(pd.Index(table.paths).isin(self.unusable["path"]), "")
        frames = []
        for task, names in table.classes.items():
            train, readable, test, leaked = (
                np.bincount(np.asarray(labels, int), minlength=len(names))
                for labels in (
                    table.labels_of(task, TRAIN),
                    usable.labels_of(task, TRAIN),
                    table.labels_of(task, TEST),
                    lost["label"][lost["task"] == task],
                )
            )
            frames.append(
                pd.DataFrame(
                    {
                        "task": task,
                        "label": range(len(names)),
                        "name": names,
                        "listed": train + leaked,
                        "train": train,
                        "readable": readable,
                        "test": test,
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def to_json(self) -> dict[str, Any]:
        """The audit with complete lists, ready for JSON."""
        rows, classes = self.table.findings, self.classes
        return {
            "multitask": __version__,
            "spec": {"name": self.spec.name, "title": self.spec.title},
            "findings": self.findings,
            "images": len(self.table),
            "rows": rows.files.to_dict("records"),
            "coverage": [
                {"tasks": list(tasks), "images": count}
                for tasks, count in self.label_sets().items()
            ],
            "splits": self.counts().to_dict("index"),
            "splits_readable": self.counts(readable=True).to_dict("index"),
            "classes": {
                task: classes[classes["task"] == task].drop(columns="task").to_dict("records")
                for task in self.table.tasks
            },
            "without_test_set": list(self.table.without_test),
            "imbalance": {task: imbalance(classes, task) for task in self.table.tasks},
            "rare_below": RARE,
            "rare_classes": rare_classes(classes).to_dict("records"),
            "empty_classes": empty_classes(classes).to_dict("records"),
            "missing": self.missing,
            "unreadable": self.unreadable.to_dict("records"),
            "unsafe": rows.unsafe.to_dict("records"),
            "unknown": rows.unknown.to_dict("records"),
            "respelt": rows.respelt.to_dict("records"),
            "ambiguous": rows.ambiguous.to_dict("records"),
            "contradictory": _images(self.named(rows.contradictory)),
            "repeated": _images(self.named(rows.repeated)),
            "mojibake": self.mojibake.to_dict("records"),
            "unnamed": list(self.unnamed),
            "skipped": self.skipped,
            "leaks": self._leaks_json(),
            "near_duplicates": {
                "compared": len(self.table) - len(self.unusable),
                "test_seen_in_training": list(self.seen),
                "pairs": self.pairs.to_dict("records"),
            },
            "notes": list(self.table.notes),
        }

    def _leaks_json(self) -> dict[str, Any]:
        cost = self.leak_cost()
        leaks = self.table.findings.leaks.groupby("path", sort=True)
        return {
            "by_test_task": self.leaks_by_test_task(),
            "training_before": cost.loc["before"].to_dict(),
            "training_after": cost.loc["after"].to_dict(),
            "images": [
                {
                    "path": path,
                    TRAIN: rows["task"][rows["split"] == TRAIN].tolist(),
                    TEST: rows["task"][rows["split"] == TEST].tolist(),
                }
                for path, rows in leaks
            ],
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `audit.html` and `audit.json`, and return their paths."""
        page, lists = folder / "audit.html", folder / "audit.json"
        write_json(lists, self.to_json())
        with replacing(page) as temporary:
            self.write_page(temporary)
        return page, lists

    def write_page(self, path: Path) -> None:
        """Write the audit as an HTML page; the caller renames the file when it is complete."""
        audit_page.write_page(
            path,
            audit=self.to_json(),
            spec=self.spec,
            image_dir=self.image_dir,
            listed=self.table.paths,
            verdict=name_findings(self.findings),
            load=lambda image: read_reduced(
                self.image_dir / image, target_px=audit_page.THUMBNAIL_PX
            ),
            labels_of=lambda image: list(self.labels_of(image).values()),
        )

    def labels_of(self, path: str) -> dict[str, str]:
        """Task -> class name, of the labels that an image has in the table."""
        labels = self.table.labels[np.searchsorted(self.table.paths, path)]
        return {
            task: names[label]
            for (task, names), label in zip(self.table.classes.items(), labels, strict=True)
            if is_labelled(label)
        }

    def named(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Add a column `name` to the rows of a finding: the class name of the label."""
        classes = self.table.classes
        return rows.assign(
            name=[
                classes[task][label]
                for task, label in zip(rows["task"], rows["label"], strict=True)
            ]
        )


def name_findings(findings: dict[str, int]) -> str:
    """`68,946 missing files, 1 image with contradictory labels`; "" if there are none."""
    return ", ".join(
        f"{count:,} {FINDINGS[kind][count != 1]}" for kind, count in findings.items() if count
    )


def _images(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a finding -> one entry per task and image, with its rows inside."""
    return [
        {
            "task": task,
            "path": path,
            "rows": lines.drop(columns=["task", "path"]).to_dict("records"),
        }
        for (task, path), lines in rows.groupby(["task", "path"], sort=False)
    ]


def rare_classes(classes: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Audit.classes` with some training labels, but fewer than RARE."""
    return classes[(classes["train"] > 0) & (classes["train"] < RARE)]


def empty_classes(classes: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Audit.classes` that cannot be learnt or cannot be evaluated.

    No class of a task without a test set can be evaluated; that is not a finding.
    """
    has_test = classes.groupby("task")["test"].transform("sum") > 0
    return classes[(classes["train"] == 0) | (has_test & (classes["test"] == 0))]


def imbalance(classes: pd.DataFrame, task: str) -> dict[str, Any]:
    """The largest and the smallest class of a task, among those that its train file lists.

    Returns:
        `{"ratio": 132.5, "largest": (name, labels), "smallest": (name, labels)}`, or {} if there
        are no training labels.
    """
    own = classes[(classes["task"] == task) & (classes["listed"] > 0)]
    if own.empty:
        return {}
    ends = (own.loc[own["listed"].idxmax()], own.loc[own["listed"].idxmin()])
    largest, smallest = ((row["name"], int(row["listed"])) for row in ends)
    return {"ratio": largest[1] / smallest[1], "largest": largest, "smallest": smallest}


def audit_data_set(
    spec: DataSpec, data_dir: Path, *, records_dir: Path | None = None, progress: bool = True
) -> Audit:
    """Check every row and every image of a data set.

    Args:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        records_dir: the folder that keeps the image hashes for the next audit; None: `records` in
            data_dir. If it is not writable, the hashes are not kept.
        progress: show a bar on a terminal.

    Raises:
        InputError: a file of the spec or the image folder does not exist, or a CSV is invalid.
    """
    table = merge_tables(spec, data_dir, strict=False)
    image_dir = data_dir / spec.images
    check_image_folder(image_dir, field=spec.place(None, "images"))
    cache = hash_cache(spec, records_dir or default_records_dir(data_dir))
    with conversions_logged():
        hashes, reasons = scan_images(table.paths, image_dir, cache=cache, progress=progress)
    usable = np.ones(len(table), bool)
    usable[list(reasons)] = False
    pairs = find_pairs(hashes, usable)
    unusable = pd.DataFrame(
        {"path": table.paths[list(reasons)], "reason": list(reasons.values())}, dtype=object
    )
    mojibake = _find_mojibake(table, image_dir, set(unusable["path"]))
    search = ImageSearch()
    described = describe_pairs(table, pairs).assign(labels_differ=_differing(table, pairs))
    return Audit(
        spec=spec,
        data_dir=data_dir,
        table=table,
        unusable=unusable,
        mojibake=mojibake,
        pairs=described,
        seen=leaking_images(described, test=True).tolist(),
        unnamed=_find_unnamed(
            search.find(str(image_dir)),
            [*table.paths, *table.findings.unknown["path"], *mojibake["repaired"]],
            image_dir,
        ),
        skipped=search.skipped.reasons(),
    )


def _differing(table: Table, pairs: pd.DataFrame) -> list[str]:
    first, second = (table.labels[pairs[side].to_numpy()] for side in ("first", "second"))
    differ = (first != second) & is_labelled(first) & is_labelled(second)
    tasks = np.asarray(table.tasks, object)
    return [", ".join(tasks[row]) for row in differ]


def _find_mojibake(table: Table, image_dir: Path, unusable: set[str]) -> pd.DataFrame:
    """The garbled paths of the CSVs, including those whose file has another name."""
    respelt = table.findings.respelt.drop_duplicates("path")
    file_of = dict(zip(respelt["path"], respelt["file_path"], strict=True))
    rows = []
    for path in sorted({*table.paths, *file_of}):
        if (repaired := repair_mojibake(path)) is None:
            continue
        where = "there"
        if path in file_of:
            garbled = repair_mojibake(file_of[path]) is not None
            where = "there" if garbled else "there as repaired"
        # os.path: pathlib raises on a name that cannot exist.
        elif path in unusable and not os.path.exists(image_dir / path):
            where = "missing"
        rows.append((path, repaired, where))
    return pd.DataFrame(rows, columns=["path", "repaired", "file"], dtype=object)


def _find_unnamed(files: Sequence[str], named: Sequence[str], image_dir: Path) -> list[str]:
    """The files that no CSV names, relative to the folder.

    A file also counts as named if a CSV names a link to it, or has another spelling that the disk
    accepts.
    """
    paths = [os.path.relpath(file, image_dir) for file in files]
    rest = set(paths).difference(named)
    known = set()
    for name in set(named).difference(paths) if rest else ():
        with contextlib.suppress(OSError, ValueError):
            known.add(identity(os.path.join(image_dir, name)))
    unnamed = []
    for path in sorted(rest):
        with contextlib.suppress(OSError):  # a broken link
            if identity(os.path.join(image_dir, path)) not in known:
                unnamed.append(path)
    return unnamed
