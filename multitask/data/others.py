"""Which images have none of the classes of an open task (rule 12 of docs/data.md).

A task is open if its `unlabelled` is `other`. An image that is in none of the task's files is then
known to have none of the classes, and its label is OTHER_LABEL. An image whose label was dropped
(unknown, contradictory, or for training only) may have a class, so it stays unlabelled.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from multitask.data.path_labels import without_derived
from multitask.spec import MISSING, OTHER_ANSWER, OTHER_LABEL, DataSpec, InputError, Task


def label_others(
    spec: DataSpec,
    classes: Mapping[str, Sequence[str]],
    labels: np.ndarray,
    paths: np.ndarray,
    listed: Mapping[str, Iterable[str]],
) -> tuple[np.ndarray, list[str]]:
    """Give the images that have none of an open task's classes the label OTHER_LABEL.

    Args:
        spec: the tasks.
        classes: task -> its class names.
        labels: int32 [rows, tasks]; MISSING where an image has none.
        paths: str [rows].
        listed: task -> paths in its files, whatever their label.

    Returns:
        The labels, int32 [rows, tasks], and notes for the console.

    Raises:
        InputError: every image is in the task's files, or is excluded; or a class is named like
            the answer `other`.
    """
    labels, notes = labels.copy(), []
    for column, task in enumerate(spec.tasks):
        if not task.is_open:
            continue
        place = spec.place(task.name, "unlabelled")
        if OTHER_ANSWER in classes[task.name]:
            raise InputError(
                f'{place}: "other": the task has a class "{OTHER_ANSWER}"; rename the class, or '
                'exclude the rare classes if they are joined as it (rare = "exclude")'
            )
        others = ~pd.Index(paths).isin(list(listed[task.name]))
        excluded = others & matching(task.other.exclude, paths)
        others &= ~excluded
        if not others.any():
            raise InputError(
                f'{place}: "other": every image has a label of this task, so no image '
                "is an example of `other`"
            )
        note = f"{task.name}: {int(others.sum()):,} images have none of its classes"
        note += f" ({OTHER_ANSWER})"
        if excluded.any():
            note += f"; {int(excluded.sum()):,} more may have one (other.exclude)"
        labels[others, column] = OTHER_LABEL
        notes.append(note)
    return labels, notes


def matching(pattern: str | None, paths: np.ndarray) -> np.ndarray:
    """Whether each path contains a match of a regular expression, bool [rows]."""
    if pattern is None:
        return np.zeros(len(paths), bool)
    search = re.compile(pattern).search
    return np.array([search(path) is not None for path in paths], bool)


def held_out(task: Task, paths: np.ndarray, *, seed: int) -> np.ndarray:
    """Whether each path belongs to a group that is held out from rejection, bool [rows].

    The choice depends only on the seed, the task's name and the group's name. It is therefore the
    same in every split and for every subset. Images without a group are not held out.
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
    """Remove the label OTHER_LABEL from held-out groups, so that they do not train rejection.

    Args:
        spec: the spec, with its open tasks.
        labels: int32 [rows, tasks] of training images.
        paths: str [rows].

    Returns:
        int32 [rows, tasks]; MISSING in place of OTHER_LABEL where the path's group is held out.
        Such an image loses the labels of auxiliary tasks from its path, too: they might be the
        names of the groups, which would then not be new to the model.
    """
    labels = labels.copy()
    for column, task in enumerate(spec.tasks):
        out = held_out(task, paths, seed=spec.seed) & (labels[:, column] == OTHER_LABEL)
        labels[out, column] = MISSING
        labels = without_derived(spec, labels, out)
    return labels


def _share(text: str) -> float:
    """A hash of a text as a number, uniformly distributed in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56
