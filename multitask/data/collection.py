"""Read the collection that a spec's [table] describes: one row per image, a column per task.

The result has the form of the lists that ArtGAN's layout gives each task, so that `merge_tables`
applies the same rules to both.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multitask.data.cells import is_empty
from multitask.data.columns import MISSING_VALUES, ColumnLabels, label_column
from multitask.data.draw import draw_rows
from multitask.data.extracted import extract_images
from multitask.data.groups import join_units, leaking_rows, read_groups
from multitask.data.label_files import LabelledRows, safe_paths
from multitask.data.matching import match_files
from multitask.data.sources import Source, open_source
from multitask.data.split_column import EXCLUDED, class_counts, read_splits
from multitask.data.splitting import TEST, TRAIN, VALIDATION
from multitask.errors import counted
from multitask.spec import MISSING, TFDS_PREFIX, DataSpec, InputError, Task, shown
from multitask.spec_fields import TableOptions

_NUMBER = re.compile(r"(?:line|row) (\d+)")  # the number of a row in its file
# Argument of `open_source` -> the field of the spec that sets it.
_FIELDS = {"image_column": "table.image", "levels": "table.levels", "images": "images"}


@dataclass
class _Rows:
    """The rows of a source that have an image, and the facts about each."""

    frame: pd.DataFrame
    paths: list[str]  # below the folder of the images
    unsafe: list[str]  # why a path is refused, "" for a safe one
    numbers: np.ndarray  # of the line or row in the file, for messages
    splits: np.ndarray
    units: np.ndarray  # of the same image, the same group, or near-duplicates
    named_units: np.ndarray  # of the same image or the same group
    near: str  # a note on the near-duplicates in the units, "" if there are none


def read_collection(spec: DataSpec, data_dir: Path, *, strict: bool = True) -> LabelledRows:
    """Read the table of a spec, the labels of its tasks and the splits.

    Images inside the table's files are written to the folder `images` of the spec, once.

    Args:
        spec: a spec with a [table].
        data_dir: the folder that the spec's paths start at.
        strict: refuse unsafe paths and too many values that are not among the given classes.

    Raises:
        InputError: the table, a column or the split is wrong; the message names the field.
        DiskError: the disk has no room for the images.
    """
    options = spec.table
    assert options is not None
    image_dir = data_dir / spec.images
    source = _open_source(spec, data_dir)
    notes = list(source.notes)
    if not source.embedded and not _is_same(source.images, image_dir):
        raise InputError(
            f"{spec.place(None, 'images')}: {shown(spec.images)}: the images of {source.place} are "
            f"in {source.images}"
        )
    rows, row_notes = _rows_of(spec, source, data_dir, strict)
    notes += row_notes
    columns = {
        task.name: _labels(spec, task, rows, strict)
        for task in spec.tasks
        if task.label_from is None
    }
    labels = np.stack([column.labels for column in columns.values()], axis=1)
    for column in columns.values():
        notes += column.notes
    classes = {task: column.classes for task, column in columns.items()}
    main = [task for task in columns if task in spec.main_tasks]
    notes += _split(spec, rows, labels[:, [task in main for task in columns]], main)
    notes += _keep_units_together(spec, rows)
    unlabelled = int((labels == MISSING).all(axis=1).sum())
    if unlabelled:
        notes.append(f"{unlabelled:,} of {len(labels):,} images have no label of any task")
    notes += _empty_class_notes(class_counts(classes, labels, rows.splits))
    frames = {
        task: _frame(task, options.file, rows, labels[:, index])
        for index, task in enumerate(classes)
    }
    validation = [
        p for p, split in zip(rows.paths, rows.splits, strict=True) if split == VALIDATION
    ]
    return LabelledRows(
        classes,
        frames,
        _count_files(frames, options.file),
        notes,
        frozenset(validation),
        dict(zip(rows.paths, rows.units.tolist(), strict=True)),
        {task: [*itertools.compress(rows.paths, c.ambiguous)] for task, c in columns.items()},
    )


def _open_source(spec: DataSpec, data_dir: Path) -> Source:
    """Open the table of a spec; an error about an argument names the field that sets it."""
    assert spec.table is not None
    try:
        return open_table(spec.table, data_dir, data_dir / spec.images)
    except InputError as error:
        if error.field not in _FIELDS:
            raise
        text = str(error).removeprefix(f"{error.field}: ")
        raise InputError(text, field=spec.place(None, _FIELDS[error.field])) from None


def _empty_class_notes(counts: pd.DataFrame) -> list[str]:
    """A note for each task with classes that have no training image, from `class_counts`."""
    notes = []
    for task, names in counts[counts[TRAIN] == 0].groupby("task", sort=False)["class"]:
        first = ", ".join(shown(name) for name in names[:3])
        noun = counted(len(names), "class has", "classes have")
        notes.append(f"{task}: {noun} no training image ({first})")
    return notes


def open_table(options: TableOptions, data_dir: Path, image_dir: Path | None) -> Source:
    """Open the source that a spec's [table] names.

    Args:
        options: the [table].
        data_dir: the folder that its path starts at.
        image_dir: the folder of the images; None: that of the table.

    Raises:
        InputError: it cannot be read.
    """
    named = options.file.startswith(TFDS_PREFIX)
    place = Path(options.file) if named else data_dir / options.file
    folder = image_dir if image_dir is not None and image_dir.is_dir() else None
    return open_source(
        place, images=folder, image_column=options.image, levels=options.levels, strict=False
    )


def _is_same(one: Path | None, other: Path) -> bool:
    return one is not None and one.is_dir() and other.is_dir() and one.samefile(other)


def _rows_of(
    spec: DataSpec, source: Source, data_dir: Path, strict: bool
) -> tuple[_Rows, list[str]]:
    """Choose the rows with an image and a split; extract images that are inside the source."""
    options, notes, image_dir = spec.table, [], data_dir / spec.images
    assert options is not None
    frame, references = source.frame, source.frame[source.image]
    numbers = _numbers(source)
    kept = np.array([not is_empty(reference) for reference in references], bool)
    if not kept.all():
        notes.append(f"{int((~kept).sum()):,} of {len(frame):,} rows name no image")
    column = options.split or source.split
    splits = np.full(len(frame), TRAIN, object)
    if column is not None and options.test is None:
        splits, split_notes = read_splits(frame, column, place=spec.place(None, "table.split"))
        notes += split_notes
        kept &= splits != EXCLUDED
    where = np.flatnonzero(kept)
    frame, splits = frame[kept].reset_index(drop=True), splits[kept]
    numbers, names = numbers[kept], [str(reference) for reference in references[kept]]
    if source.embedded:
        written = extract_images(source, names, image_dir)
        there = np.array([path is not None for path in written], bool)
        if not there.all():
            notes.append(f"{counted(int((~there).sum()), 'row has', 'rows have')} no image bytes")
        frame, splits = frame[there].reset_index(drop=True), splits[there]
        numbers, names = numbers[there], list(itertools.compress(names, there))
        paths, unsafe = [path for path in written if path is not None], [""] * len(names)
    else:
        paths, unsafe = safe_paths(names, lambda i: _row_place(source, where[i]), strict)
    if not paths:
        raise InputError(f"{source.place}: no row has an image")
    units: list[Sequence[Any]] = [paths]
    near = ""
    if options.group is not None:
        place = spec.place(None, "table.group")
        groups, group_notes = read_groups(frame, options.group, names, place=place)
        units.append(groups.tolist())
        notes += group_notes
    named_units = join_units(*units)
    drawn = options.test or (spec.validation and not (splits == VALIDATION).any())
    if drawn and spec.exclude_near_duplicates:
        groups_of_near, near = _near_duplicates(spec, data_dir, paths, unsafe)
        units.append(groups_of_near)
        notes += [near] * bool(near)
    return _Rows(
        frame, paths, unsafe, numbers, splits, join_units(*units), named_units, near
    ), notes


def _near_duplicates(
    spec: DataSpec, data_dir: Path, paths: Sequence[str], unsafe: Sequence[str]
) -> tuple[list[int | None], str]:
    """The near-duplicate group of each row, None for most; and a note, "" if there are none."""
    # These import TensorFlow, which is not needed if a column names the splits.
    from multitask.data.near_duplicates import hash_cache, near_groups
    from multitask.data.records_builder import default_records_dir

    image_dir = data_dir / spec.images
    safe = [path for path, reason in zip(paths, unsafe, strict=True) if not reason]
    distinct = list(dict.fromkeys(safe))
    matches = match_files(distinct, image_dir)
    files = [matches[path].file or path if path in matches else path for path in distinct]
    present = sum(os.path.isfile(image_dir / file) for file in files)
    if len(files) - present > spec.max_missing * len(files):
        return [None] * len(paths), ""  # too many are missing: training will not start
    cache = hash_cache(spec, default_records_dir(data_dir))
    groups = near_groups(files, image_dir, cache)
    group_of = dict(zip(distinct, groups, strict=True))
    sizes = Counter(group for group in groups if group is not None)
    if not sizes:
        return [None] * len(paths), ""
    note = (
        f"near-duplicates: {sum(sizes.values()):,} images in {counted(len(sizes), 'group')}, the "
        f"largest of {max(sizes.values()):,}; each group is kept on one side of the split"
    )
    return [group_of.get(path) for path in paths], note


def _row_place(source: Source, row: int) -> str:
    where = "" if source.rows is None else f": {source.rows.iloc[row]}"
    return f"{source.place}{where}"


def _numbers(source: Source) -> np.ndarray:
    """Int [rows]: the line or row of each row in its file."""
    if source.rows is None:
        return np.arange(1, len(source) + 1)
    return np.array(
        [int(match[1]) if (match := _NUMBER.search(text)) else 0 for text in source.rows]
    )


def _labels(spec: DataSpec, task: Task, rows: _Rows, strict: bool) -> ColumnLabels:
    """The labels of a task; refuse too many values that are not among the given classes."""
    drawn = spec.table is not None and spec.table.test is not None
    least = task.min_examples or 1
    column = label_column(
        rows.frame,
        str(task.column),
        task=task.name,
        place=spec.place(task.name, "column").removesuffix(": column"),
        min_examples=least,
        rare=task.rare or "exclude",
        missing=MISSING_VALUES if task.missing is None else task.missing,
        several=task.several or "exclude",
        separator=task.separator,
        map=task.map,
        classes=task.class_names,
        train=None if drawn else rows.splits == TRAIN,
    )
    # A value that was rare at the first training is not new.
    examples = column.counts.examples
    new = {v: n for v, n in column.counts.unknown.items() if examples.get(v, 0) >= least}
    if strict and sum(new.values()) > spec.max_unknown * column.counts.rows:
        first = max(new, key=lambda value: new[value])
        raise InputError(
            f"{spec.place(task.name, 'column')}: {sum(new.values()):,} of {column.counts.rows:,} "
            f"rows have a value that is none of the run's classes (first: {shown(first)}); more "
            f"than the allowed share max_unknown = {spec.max_unknown:g}"
        )
    return column


def _split(spec: DataSpec, rows: _Rows, labels: np.ndarray, tasks: Sequence[str]) -> list[str]:
    """Draw the test set, if the spec asks for it, by the labels of some tasks."""
    options = spec.table
    assert options is not None
    if not options.test:
        return []
    place = spec.place(None, "table.test")
    try:
        drawn = draw_rows(
            labels, rows.paths, options.test, seed=spec.seed, units=rows.units,
            tasks=tasks, place=place,
        )  # fmt: skip
    except InputError as error:
        if not rows.near:
            raise
        raise InputError(
            f"{error} ({rows.near}; exclude_near_duplicates = false ignores them)"
        ) from None
    rows.splits[drawn.rows] = TEST
    # An unlabelled image follows its group.
    of_test = np.unique(rows.units[drawn.rows])
    rows.splits[np.isin(rows.units, of_test)] = TEST
    return [*drawn.notes, f"test set: {int(drawn.rows.sum()):,} of {len(labels):,} images, drawn"]


def _keep_units_together(spec: DataSpec, rows: _Rows) -> list[str]:
    """Exclude images whose group is also in another split.

    A group with test images keeps only these; otherwise, one with validation images keeps these.

    Raises:
        InputError: no training image is left.
    """
    notes = []
    for inner, outer in ((TRAIN, TEST), (VALIDATION, TEST), (TRAIN, VALIDATION)):
        leaking = leaking_rows(rows.named_units, rows.splits, inner=inner, outer=outer)
        if leaking.any():
            one, many = f"image of {inner} belongs", f"images of {inner} belong"
            notes.append(
                f"{counted(int(leaking.sum()), one, many)} to the same image or group as "
                f"one of {outer}; not used"
            )
            rows.splits[leaking] = EXCLUDED
    if not (rows.splits == TRAIN).any():
        raise InputError(
            "no training image is left: every group has an image in another split",
            field=spec.place(None, "table.group" if spec.table and spec.table.group else "table"),
        )
    return notes


def _frame(task: str, file: str, rows: _Rows, labels: np.ndarray) -> pd.DataFrame:
    """The labelled rows of a task, in the form of `label_frame`."""
    kept = (labels != MISSING) & (rows.splits != EXCLUDED)
    column = rows.frame.index.to_numpy()[kept]
    return pd.DataFrame(
        {
            "line": rows.numbers[kept],
            "path": np.asarray(rows.paths, object)[kept],
            "value": [str(labels[row]) for row in column],
            "label": labels[kept],
            "unsafe": np.asarray(rows.unsafe, object)[kept],
            "task": task,
            "split": np.where(rows.splits[kept] == TEST, TEST, TRAIN).astype(object),
            "file": file,
        }
    )


def _count_files(frames: dict[str, pd.DataFrame], file: str) -> pd.DataFrame:
    counts = [
        (task, split, file, int((frame["split"] == split).sum()))
        for task, frame in frames.items()
        for split in (TRAIN, TEST)
    ]
    return pd.DataFrame(counts, columns=["task", "split", "file", "rows"])
