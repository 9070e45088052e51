"""What is in a data set and what is wrong with it: counted, and listed by name.

A finding is what somebody has to correct, or to accept knowingly, because it costs labels or
pictures or makes an exam easier than it is; FINDINGS has them all. Coverage, imbalance, rare
classes, mojibake (a file that lies under its garbled name is read all the same) and near-duplicates
within one split are information.
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
from multitask.data.folders import ImageSearch, identity
from multitask.data.matching import repair_mojibake
from multitask.data.near_duplicates import (
    describe_pairs,
    find_pairs,
    scan_pictures,
    seen_in_training,
)
from multitask.data.records import default_records_dir, hash_cache
from multitask.data.table import MISSING_FILE, TRAIN, VAL, Table, merge_tables
from multitask.spec import MISSING, NO_TEST_SET, DataSpec, InputError, field_of

# Below it, the usual selection share of 5 % holds not one picture of the class, and the exam, about
# half as large as the training side, has fewer than ten: its F1 is chance.
RARE = 20
RARE_LISTED = 20  # on the console

FINDINGS = {  # kind -> what one is called, and several
    "missing": ("missing file", "missing files"),
    "unreadable": ("unreadable file", "unreadable files"),
    "unsafe": ("row with an unsafe path", "rows with an unsafe path"),
    "unknown": ("row with an unknown label", "rows with an unknown label"),
    "contradictory": ("picture with contradictory labels", "pictures with contradictory labels"),
    "repeated": ("picture listed repeatedly", "pictures listed repeatedly"),
    "leaks": (
        "picture that is train for one task and val for another",
        "pictures that are train for one task and val for another",
    ),
    "near_duplicates": (
        "val picture with a near-duplicate in train",
        "val pictures with a near-duplicate in train",
    ),
    "empty_classes": (
        "class without a training or an exam label",
        "classes without a training or an exam label",
    ),
}


@dataclass(frozen=True)
class Audit:
    """All that is known of a data set.

    Attributes:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        table: merged from the CSVs, with its findings; missing pictures are in it.
        unusable: columns path and reason, of the files that are missing or unreadable.
        mojibake: columns path, repaired (what it was) and file: "there", "missing", or "there as
            repaired" where only that name is on disk.
        pairs: near-duplicates among the readable: columns first, second (paths), first_split,
            second_split, distance (bits), labels_differ (the tasks that give the two different
            labels, joined by ", ").
        unnamed: paths of the image files in the folder that no CSV names.
        skipped: what else is in the folder, for people; "" where nothing is.
        seen: paths of the val pictures with a near-duplicate in train.
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
        return self.data_dir / self.spec.images

    @property
    def missing(self) -> list[str]:
        """The paths without a file."""
        return self.unusable["path"][self.unusable["reason"] == MISSING_FILE].tolist()

    @property
    def unreadable(self) -> pd.DataFrame:
        """Path and reason of the files that are there and cannot be read."""
        return self.unusable[self.unusable["reason"] != MISSING_FILE]

    @functools.cached_property
    def findings(self) -> dict[str, int]:
        """Kind -> how many, of every kind in FINDINGS."""
        found = self.table.findings
        return {
            "missing": len(self.missing),
            "unreadable": len(self.unreadable),
            "unsafe": len(found.unsafe),
            "unknown": len(found.unknown),
            "contradictory": len(_pictures(found.contradictory)),
            "repeated": len(_pictures(found.repeated)),
            "leaks": found.leaks["path"].nunique(),
            "near_duplicates": len(self.seen),
            "empty_classes": len(empty_classes(self.classes)),
        }

    def counts(self, *, readable: bool = False) -> pd.DataFrame:
        """Images, and labels of each task (columns), in train and val (rows), leaks resolved.

        Training images that kept no label are not counted: nothing is learnt from them.
        """
        table = self.table
        out = (table.splits == TRAIN) & (table.labels == MISSING).all(axis=1)
        if readable:
            out |= pd.Index(table.paths).isin(self.unusable["path"])
        return table.drop(out, "").counts().loc[[TRAIN, VAL]]

    def leak_cost(self) -> pd.DataFrame:
        """Images and labels of each task (columns) in training, before and after (rows)."""
        leaks = self.table.findings.leaks
        after = self.counts().loc[TRAIN]
        lost = leaks["task"][leaks["split"] == TRAIN].value_counts()
        lost = lost.rename(lambda task: field_of(task, "labels"))
        lost["images"] = leaks["path"].nunique()
        return pd.DataFrame(
            {"before": after.add(lost, fill_value=0)[after.index].astype(int), "after": after}
        ).T

    def leaks_by_exam(self) -> dict[str, int]:
        """Task -> how many of the leaking pictures are val for it; some are val for several."""
        leaks = self.table.findings.leaks
        counts = leaks["task"][leaks["split"] == VAL].value_counts()
        return {task: int(counts.get(task, 0)) for task in self.table.tasks}

    def coverage(self) -> dict[tuple[str, ...], int]:
        """Set of tasks -> how many pictures stand in the lists of just these; the largest first.

        Before anything was taken out: a leaking or contradictory label counts.
        """
        table, found = self.table, self.table.findings
        listed = table.labels != MISSING
        index = pd.Index(table.paths)
        for frame in (found.leaks, found.contradictory):
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
        """A row a class of each task.

        Returns:
            Columns task, label, name, and numbers of labels: listed (in the train file, where not
            contradictory), train (left when leaks are resolved), readable (of these, with a file
            that can be read), val (the exam).
        """
        table, leaks = self.table, self.table.findings.leaks
        lost = leaks[leaks["split"] == TRAIN]
        usable = table.drop(pd.Index(table.paths).isin(self.unusable["path"]), "")
        frames = []
        for task, names in table.classes.items():
            train, readable, val, leaked = (
                np.bincount(np.asarray(labels, int), minlength=len(names))
                for labels in (
                    table.labels_of(task, TRAIN),
                    usable.labels_of(task, TRAIN),
                    table.labels_of(task, VAL),
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
                        "val": val,
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def to_json(self) -> dict[str, Any]:
        """All of it, whole lists, ready for JSON."""
        found, classes = self.table.findings, self.classes
        cost = self.leak_cost()
        leaks = found.leaks.groupby("path", sort=True)
        return {
            "multitask": __version__,
            "spec": {"name": self.spec.name, "title": self.spec.title},
            "findings": self.findings,
            "pictures": len(self.table),
            "rows": found.files.to_dict("records"),
            "coverage": [
                {"tasks": list(tasks), "pictures": count}
                for tasks, count in self.coverage().items()
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
            "unsafe": found.unsafe.to_dict("records"),
            "unknown": found.unknown.to_dict("records"),
            "respelt": found.respelt.to_dict("records"),
            "ambiguous": found.ambiguous.to_dict("records"),
            "contradictory": _pictures(self.named(found.contradictory)),
            "repeated": _pictures(self.named(found.repeated)),
            "mojibake": self.mojibake.to_dict("records"),
            "unnamed": list(self.unnamed),
            "skipped": self.skipped,
            "leaks": {
                "by_exam": self.leaks_by_exam(),
                "training_before": cost.loc["before"].to_dict(),
                "training_after": cost.loc["after"].to_dict(),
                "pictures": [
                    {
                        "path": path,
                        TRAIN: rows["task"][rows["split"] == TRAIN].tolist(),
                        VAL: rows["task"][rows["split"] == VAL].tolist(),
                    }
                    for path, rows in leaks
                ],
            },
            "near_duplicates": {
                "compared": len(self.table) - len(self.unusable),
                "val_seen_in_training": list(self.seen),
                "pairs": self.pairs.to_dict("records"),
            },
            "notes": list(self.table.notes),
        }

    def labels_of(self, path: str) -> dict[str, str]:
        """Task -> class name, of the labels that a picture keeps."""
        labels = self.table.labels[np.searchsorted(self.table.paths, path)]
        return {
            task: names[label]
            for (task, names), label in zip(self.table.classes.items(), labels, strict=True)
            if label != MISSING
        }

    def named(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of a finding with the column `name` of their label."""
        classes = self.table.classes
        return rows.assign(
            name=[
                classes[task][label]
                for task, label in zip(rows["task"], rows["label"], strict=True)
            ]
        )


def _pictures(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a finding -> one entry a task and picture, with its rows inside."""
    return [
        {
            "task": task,
            "path": path,
            "rows": lines.drop(columns=["task", "path"]).to_dict("records"),
        }
        for (task, path), lines in rows.groupby(["task", "path"], sort=False)
    ]


def pictures_in_both_files(rows: pd.DataFrame) -> int:
    """Of the pictures that one task lists repeatedly, those in its train and its val file."""
    return int((rows.groupby(["task", "path"])["split"].nunique() > 1).sum())


def rare_classes(classes: pd.DataFrame) -> pd.DataFrame:
    """Of `Audit.classes`, those with some training labels but fewer than RARE."""
    return classes[(classes["train"] > 0) & (classes["train"] < RARE)]


def empty_classes(classes: pd.DataFrame) -> pd.DataFrame:
    """Of `Audit.classes`, those that cannot be learnt, or cannot be examined by their task's test
    set; a task may do without one."""
    has_test = classes.groupby("task")["val"].transform("sum") > 0
    return classes[(classes["train"] == 0) | (has_test & (classes["val"] == 0))]


def imbalance(classes: pd.DataFrame, task: str) -> dict[str, Any]:
    """Largest to smallest class of a task, among those listed in its train file at all.

    Returns:
        `{"ratio": 132.5, "largest": (name, labels), "smallest": (name, labels)}`, or {} where there
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
    """Look at every row and every picture of a data set.

    Args:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        records_dir: where the pictures' hashes are kept for the next time; None: `records` in
            data_dir. Where it cannot be written, they are not kept.
        progress: show a bar on a terminal.

    Raises:
        InputError: a file of the spec or the picture folder is not there, or a CSV is none.
    """
    table = merge_tables(spec, data_dir, strict=False)
    image_dir = data_dir / spec.images
    if not image_dir.is_dir():
        raise InputError(f"{image_dir}: there is no such folder of pictures")
    cache = hash_cache(spec, records_dir or default_records_dir(data_dir))
    hashes, reasons = scan_pictures(table.paths, image_dir, cache=cache, progress=progress)
    usable = np.ones(len(table), bool)
    usable[list(reasons)] = False
    pairs = find_pairs(hashes, usable)
    unusable = pd.DataFrame(
        {"path": table.paths[list(reasons)], "reason": list(reasons.values())}, dtype=object
    )
    mojibake = _find_mojibake(table, image_dir, set(unusable["path"]))
    search = ImageSearch()
    return Audit(
        spec=spec,
        data_dir=data_dir,
        table=table,
        unusable=unusable,
        mojibake=mojibake,
        pairs=describe_pairs(table, pairs).assign(labels_differ=_differing(table, pairs)),
        seen=seen_in_training(table, pairs).tolist(),
        unnamed=_find_unnamed(
            search.find(str(image_dir)),
            [*table.paths, *table.findings.unknown["path"], *mojibake["repaired"]],
            image_dir,
        ),
        skipped=search.skipped.reasons(),
    )


def _differing(table: Table, pairs: pd.DataFrame) -> list[str]:
    first, second = (table.labels[pairs[side].to_numpy()] for side in ("first", "second"))
    differ = (first != second) & (first != MISSING) & (second != MISSING)
    tasks = np.asarray(table.tasks, object)
    return [", ".join(tasks[row]) for row in differ]


def _find_mojibake(table: Table, image_dir: Path, unusable: set[str]) -> pd.DataFrame:
    """The garbled paths of the lists, also those that are read under another name."""
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
    """Those of the files that no CSV names, not even through a link or in another spelling that
    the disk takes for the same; relative to the folder."""
    paths = [os.path.relpath(file, image_dir) for file in files]
    rest = set(paths).difference(named)
    known = set()
    for name in set(named).difference(paths) if rest else ():
        with contextlib.suppress(OSError, ValueError):
            known.add(identity(os.path.join(image_dir, name)))
    unnamed = []
    for path in sorted(rest):
        with contextlib.suppress(OSError):  # a link that leads nowhere
            if identity(os.path.join(image_dir, path)) not in known:
                unnamed.append(path)
    return unnamed


# === In words ===


def name_findings(findings: dict[str, int]) -> str:
    """`68,946 missing files, 1 picture with contradictory labels`; "" where there is none."""
    return ", ".join(
        f"{count:,} {FINDINGS[kind][count != 1]}" for kind, count in findings.items() if count
    )


def name_tasks(tasks: Sequence[str]) -> str:
    """A set of tasks as one reads it out."""
    if len(tasks) == 1:
        return f"{tasks[0]} only"
    return f"{', '.join(tasks[:-1])} and {tasks[-1]}"


def summary(audit: Audit) -> list[str]:
    """The audit for a console, without its lists; the findings are not in it."""
    table, classes, cost = audit.table, audit.classes, audit.leak_cost()
    files = table.findings.files
    by_split = files.pivot(index="task", columns="split", values="rows")
    by_split = by_split.reindex(list(table.tasks), columns=[TRAIN, VAL]).fillna(0).astype(int)
    sets = {name_tasks(tasks): count for tasks, count in audit.coverage().items()}
    width = max(map(len, sets), default=0)
    lines = [
        f"{audit.spec.title or audit.spec.name}: {len(table):,} pictures in the CSVs, "
        f"{len(table) - len(audit.unusable):,} readable in {audit.image_dir}",
        "",
        "Rows of the CSVs",
        _counts_text(by_split[[TRAIN, VAL]]),
        "",
        "Pictures by the labels they carry",
        *(f"  {name:<{width}}  {count:>9,}" for name, count in sets.items()),
        "",
        "Images and labels, one row a picture and no exam in training",
        _counts_text(audit.counts()),
        "",
        "Of these, readable",
        _counts_text(audit.counts(readable=True)),
        "",
        "Largest to smallest class in the train files",
    ]
    for task in table.tasks:
        ends = imbalance(classes, task)
        if not ends:
            lines.append(f"  {task}: no training labels")
            continue
        (large, most), (small, least) = ends["largest"], ends["smallest"]
        lines.append(f"  {task}: {ends['ratio']:.1f} : 1 ({large} {most:,}, {small} {least:,})")
    rare = rare_classes(classes)
    lines += [f"  {row.task}: {row.name} has {row.train} training labels, fewer than {RARE}"
              for row in rare.head(RARE_LISTED).itertuples()]  # fmt: skip
    if len(rare) > RARE_LISTED:
        lines.append(
            f"  and {len(rare) - RARE_LISTED:,} more classes with fewer than {RARE}: audit.json "
            "has all under rare_classes"
        )
    lines += [f"  {task}: {NO_TEST_SET}" for task in table.without_test]
    leaking = audit.findings["leaks"]
    if leaking:
        by_exam = ", ".join(f"{task} {count:,}" for task, count in audit.leaks_by_exam().items())
        lines += [
            "",
            f"Leaks: {leaking:,} pictures are val for one task (by whose val: {by_exam}) and train "
            "for another. Training without them:",
            _counts_text(cost),
        ]
    splits = audit.pairs[["first_split", "second_split"]]
    across = int((splits["first_split"] != splits["second_split"]).sum())
    within = splits["first_split"][splits["first_split"] == splits["second_split"]]
    lines += [
        "",
        f"Near-duplicates: {len(audit.pairs):,} pairs; {across:,} across train and val "
        f"({len(audit.seen):,} val pictures), {int((within == TRAIN).sum()):,} within train, "
        f"{int((within == VAL).sum()):,} within val; "
        f"{int((audit.pairs['labels_differ'] != '').sum()):,} pairs have different labels",
    ]
    if len(audit.mojibake):
        where = ", ".join(f"{n:,} {w}" for w, n in audit.mojibake["file"].value_counts().items())
        lines.append(f"Mojibake: {len(audit.mojibake):,} paths ({where})")
    if audit.unnamed:
        more = ", …" * (len(audit.unnamed) > 1)
        lines.append(f"Images that no CSV names: {len(audit.unnamed):,} ({audit.unnamed[0]}{more})")
    if audit.skipped:
        lines.append(f"Other files in {audit.image_dir}: {audit.skipped}")
    if table.notes:
        lines += ["", "Notes", *(f"  {note}" for note in table.notes)]
    return lines


def _counts_text(frame: pd.DataFrame) -> str:
    frame = frame.rename_axis(index=None, columns=None).map("{:,}".format)
    return "\n".join(f"  {line}" for line in frame.to_string().splitlines())
