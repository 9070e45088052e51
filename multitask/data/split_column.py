"""Read the split of each image from a column; count the classes of each split."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from multitask.data.cells import clean_text, column_cells, is_empty, named_counts
from multitask.data.groups import leaking_rows
from multitask.data.splitting import SPLITS, TEST, TRAIN, VALIDATION
from multitask.errors import InputError, counted, quoted
from multitask.spec import is_labelled

ALIASES = {
    TRAIN: ("train", "training", "learn"),
    VALIDATION: ("validation", "valid", "val", "dev", "development"),
    TEST: ("test", "testing", "eval", "evaluation", "holdout"),
}
EXCLUDED = ""  # the split of a row that is in none
_SPLIT_OF = {alias: split for split, aliases in ALIASES.items() for alias in aliases}


def split_of(value: object) -> str:
    """The split that a value means; EXCLUDED if it means none."""
    return _SPLIT_OF.get(re.sub(r"[\s_-]", "", clean_text(value)).casefold(), EXCLUDED)


def read_splits(
    frame: pd.DataFrame, column: str, *, place: str = "table: split"
) -> tuple[np.ndarray, list[str]]:
    """Read the split of each row from a column.

    Args:
        frame: one row per image.
        column: the column with the splits, in one of the spellings of ALIASES, in any case.
        place: the field that names the column, for messages.

    Returns:
        object [rows], each one of SPLITS, or EXCLUDED; and notes.

    Raises:
        InputError: there is no such column, or no row is a training row.
    """
    cells = column_cells(frame, column, place=place)
    texts = ["" if is_empty(cell) else clean_text(cell) for cell in cells]
    meaning = {text: split_of(text) for text in set(texts)}
    splits = np.empty(len(texts), object)
    splits[:] = [meaning[text] for text in texts]
    others = Counter(text for text in texts if meaning[text] == EXCLUDED)
    named = named_counts(dict(sorted(others.items(), key=lambda item: (-item[1], item[0]))))
    if not (splits == TRAIN).any():
        raise InputError(
            f"{quoted(column)}: no row is a training row ({', '.join(ALIASES[TRAIN])})"
            + (f"; its values: {named}" if others else ""),
            field=place,
        )
    notes = []
    if others:
        notes.append(
            f"{column}: {sum(others.values()):,} of {len(texts):,} rows are neither train, "
            f"validation nor test and are excluded ({named})"
        )
    if not (splits == TEST).any():
        notes.append(
            f"{column}: no row is a test row ({', '.join(ALIASES[TEST])}), so there is no test set"
        )
    return splits, notes


def describe_leaks(units: np.ndarray, splits: np.ndarray, references: Sequence[str]) -> list[str]:
    """One line for each pair of splits that share a unit, an image or a group.

    Args:
        units: int64 [rows], from `join_units`.
        splits: object [rows].
        references: the image reference of each row.
    """
    notes = []
    for inner, outer in ((TRAIN, TEST), (VALIDATION, TEST), (TRAIN, VALIDATION)):
        rows = np.flatnonzero(leaking_rows(units, splits, inner=inner, outer=outer))
        if len(rows):
            one, many = f"{inner} image belongs", f"{inner} images belong"
            first = min(str(references[row]) for row in rows.tolist())
            notes.append(
                f"leak: {counted(len(rows), one, many)} to the same image or group as a "
                f"{outer} image (first: {quoted(first)})"
            )
    return notes


def class_counts(
    classes: Mapping[str, Sequence[str]], labels: np.ndarray, splits: np.ndarray
) -> pd.DataFrame:
    """Count each task's classes in each split.

    Args:
        classes: task -> its class names, ordered by index.
        labels: int32 [rows, tasks]; MISSING where the task has no label.
        splits: object [rows], each one of SPLITS; other rows are not counted.

    Returns:
        One row per class: task, class, train, validation, test.
    """
    parts = []
    for column, (task, names) in enumerate(classes.items()):
        counts = {
            split: np.bincount(
                labels[(splits == split) & is_labelled(labels[:, column]), column],
                minlength=len(names),
            )
            for split in SPLITS
        }
        parts.append(pd.DataFrame({"task": task, "class": list(names), **counts}))
    return pd.concat(parts, ignore_index=True)


def describe_class_counts(counts: pd.DataFrame, most: int = 8) -> list[str]:
    """A line per task: the largest classes with their images in each split.

    Args:
        counts: of `class_counts`.
        most: the number of classes to name.
    """
    lines = []
    for task, of_task in counts.groupby("task", sort=False):
        order = of_task[list(SPLITS)].sum(axis=1).sort_values(ascending=False, kind="stable").index
        named = [
            f"{quoted(row['class'])} {'/'.join(str(row[split]) for split in SPLITS)}"
            for _, row in of_task.loc[order[:most]].iterrows()
        ]
        more = f" and {len(of_task) - most:,} more" if len(of_task) > most else ""
        lines.append(f"{task}, images in {'/'.join(SPLITS)}: {', '.join(named)}{more}")
    return lines
