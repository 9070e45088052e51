"""Labels that are parts of the paths, such as the painter's name, for a task with `label_from`.

The labels are read like a column: rare classes are excluded, missing values have no label.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from multitask.data.columns import MISSING_VALUES, ColumnLabels, label_column
from multitask.errors import counted
from multitask.spec import MISSING, DataSpec, Task, is_labelled


def add_path_labels(
    spec: DataSpec,
    classes: Mapping[str, tuple[str, ...]],
    paths: np.ndarray,
    labels: np.ndarray,
    is_test: np.ndarray,
    image_dir: Path,
) -> tuple[dict[str, tuple[str, ...]], np.ndarray, list[str]]:
    """Add the classes and the labels of the tasks with `label_from` to those of the other tasks.

    An image is test for such a task if it is test for another one (rule 2). Its examples are
    counted in the training images that are there.

    Args:
        spec: the data set and its tasks.
        classes: class names of the other tasks.
        paths: str [rows], relative to the image folder.
        labels: int32 [rows, other tasks].
        is_test: bool [rows].
        image_dir: the folder of the images.

    Returns:
        The classes of all tasks, the labels int32 [rows, tasks], and notes for the console; tasks
        in the order of the spec.

    Raises:
        InputError: fewer than 2 classes are left.
    """
    if len(spec.listing_tasks) == len(spec.tasks):
        return dict(classes), labels, []
    train = _present(paths, image_dir) & ~is_test
    column_of = {name: labels[:, column] for column, name in enumerate(classes)}
    all_classes: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for task in spec.tasks:
        if task.label_from is None:
            all_classes[task.name] = classes[task.name]
            continue
        read = _read_labels(task, paths, train, place=spec.place(task.name, "label_from"))
        all_classes[task.name], column_of[task.name] = read.classes, read.labels
        notes.append(
            f"{task.name}: {int(is_labelled(read.labels).sum()):,} of "
            f"{counted(len(paths), 'image')} have a label from their path, "
            f"{counted(len(read.classes), 'class', 'classes')}"
        )
    return all_classes, np.stack([column_of[name] for name in all_classes], axis=1), notes


def _read_labels(task: Task, paths: np.ndarray, train: np.ndarray, *, place: str) -> ColumnLabels:
    """Read a task's labels from the paths; class names of an earlier training are kept."""
    assert task.label_from is not None
    search = re.compile(task.label_from.path).search
    values = [match[1] or "" if (match := search(path)) else "" for path in paths]
    return label_column(
        pd.DataFrame({"path": values}, dtype=object),
        "path",
        task=task.name,
        place=place.removesuffix(": label_from"),
        field="label_from",
        min_examples=task.min_examples or 1,
        rare=task.rare or "exclude",
        missing=MISSING_VALUES if task.missing is None else task.missing,
        several=task.several or "exclude",
        separator=task.separator,
        map=task.map,
        classes=task.class_names,
        train=train,
    )


def _present(paths: np.ndarray, image_dir: Path) -> np.ndarray:
    """Whether each image is there, bool [rows]; all True where there is no folder of images."""
    if not image_dir.is_dir():
        return np.ones(len(paths), bool)
    return np.fromiter((os.path.isfile(image_dir / path) for path in paths), bool, len(paths))


def without_derived(spec: DataSpec, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Remove the labels that auxiliary tasks take from the paths of some rows.

    Args:
        spec: the tasks.
        labels: int32 [rows, tasks].
        rows: bool [rows], the images that lose these labels.

    Returns:
        int32 [rows, tasks].
    """
    derived = [task.auxiliary and task.label_from is not None for task in spec.tasks]
    return np.where(rows[:, None] & np.array(derived), np.int32(MISSING), labels)
