"""Which images have none of the classes of an open task (rule 12 of docs/data.md).

A task is open if its `unlabelled` is `other`. An image that no file of the task lists is then not
unlabelled: it is known to be none of the classes, and its label is OTHER_LABEL. An image whose
label was dropped (unknown, contradictory, or for training only) is not: it may have a class.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from multitask.spec import MISSING, OTHER_ANSWER, OTHER_LABEL, DataSpec, InputError, Task


def label_others(
    task: Task, labels: np.ndarray, paths: np.ndarray, listed: Iterable[str], *, place: str
) -> tuple[np.ndarray, list[str]]:
    """Give the images that have none of an open task's classes the label OTHER_LABEL.

    Args:
        task: the task.
        labels: int32 [rows] of the task; MISSING where an image has none.
        paths: str [rows].
        listed: paths that the task's files list, with whatever label.
        place: the place of `unlabelled`, for messages.

    Returns:
        int32 [rows], and the notes.

    Raises:
        InputError: there is no such image.
    """
    if not task.is_open:
        return labels, []
    others = ~pd.Index(paths).isin(list(listed))
    excluded = others & matching(task.other.exclude, paths)
    others &= ~excluded
    if not others.any():
        raise InputError(
            f'{place}: "other": every image has a label of this task, so that none can teach it '
            "what is other"
        )
    note = f"{task.name}: {int(others.sum()):,} images have none of its classes ({OTHER_ANSWER})"
    if excluded.any():
        note += f"; {int(excluded.sum()):,} more may have one (other.exclude)"
    return np.where(others, np.int32(OTHER_LABEL), labels), [note]


def check_classes(task: Task, classes: Sequence[str], *, place: str) -> None:
    """Raise InputError where a class of an open task has the name of its own answer."""
    if task.is_open and OTHER_ANSWER in classes:
        raise InputError(
            f'{place}: "other": the task has a class "{OTHER_ANSWER}"; rename the class'
        )


def matching(pattern: str | None, paths: np.ndarray) -> np.ndarray:
    """Whether a regular expression matches somewhere in each path, bool [rows]."""
    if pattern is None:
        return np.zeros(len(paths), bool)
    search = re.compile(pattern).search
    return np.array([search(path) is not None for path in paths], bool)


def held_out(task: Task, paths: np.ndarray, *, seed: int) -> np.ndarray:
    """Whether each path is of a group that is held out from rejection, bool [rows].

    The choice depends on the group's name and the seed alone: it is the same in every split and
    for every subset. Images without a group are not held out.
    """
    if not task.other.held_out or task.other.group is None:
        return np.zeros(len(paths), bool)
    search = re.compile(task.other.group).search
    matches = [search(path) for path in paths]
    groups = [match[1] if match else None for match in matches]
    chosen = {
        group: _share(f"{seed}/{task.name}/{group}") < task.other.held_out
        for group in set(groups) - {None}
    }
    return np.array([chosen.get(group, False) for group in groups], bool)


def without_held_out(spec: DataSpec, labels: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """Make the held-out groups unlabelled, so that they do not teach rejection.

    Args:
        spec: its open tasks.
        labels: int32 [rows, tasks] of training images.
        paths: str [rows].

    Returns:
        int32 [rows, tasks]; OTHER_LABEL is MISSING where the group of the path is held out.
    """
    labels = labels.copy()
    for column, task in enumerate(spec.tasks):
        out = held_out(task, paths, seed=spec.seed) & (labels[:, column] == OTHER_LABEL)
        labels[out, column] = MISSING
    return labels


def _share(text: str) -> float:
    """A number in [0, 1) from a text, uniformly distributed over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56
