"""One row per image: the labels of all tasks, and the samples of a table: its subset and splits.

The rule numbers are those of the rules in docs/data.md: 3 no model selection on the test set,
4 contradictory labels are dropped, 5 unknown labels are filtered, 9 subset.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from multitask.data.draw import draw_rows
from multitask.data.others import without_held_out
from multitask.data.splitting import SPLITS as SPLITS  # re-exported with the table
from multitask.data.splitting import TEST as TEST
from multitask.data.splitting import TRAIN as TRAIN
from multitask.data.splitting import VALIDATION as VALIDATION
from multitask.data.splitting import subset_labels, validation_rows
from multitask.spec import DataSpec, InputError, field_of, is_labelled

# Why an image is excluded. The first reason comes from merging, the next two are known before
# sampling, and the last two come from sampling. Any other reason is why a file is unreadable.
UNKNOWN_LABEL = "its label is unknown"
MISSING_FILE, NEAR_DUPLICATE = "no such file", "near-duplicate of a test image"
NO_LABEL, NOT_SAMPLED = "no label is left", "not sampled for the subset"


def _no_rows(*columns: str) -> Callable[[], pd.DataFrame]:
    names = ["task", "split", "file", "line", "path", *columns]
    return lambda: pd.DataFrame(columns=names)


@dataclass(frozen=True)
class Findings:
    """The irregularities in the CSVs: each row of a frame is a row of a CSV.

    Each frame has the columns task, split (train or test), file (as the spec names it), line and
    path, and the columns named below.

    Attributes:
        files: the exception, one row per CSV: task, split, file, rows (their number).
        unsafe: `reason`; rows with a refused path (only where unsafe paths are tolerated).
        unknown: `value`; rows whose label is not a class (rule 5).
        respelt: `file_path`, `kind`; rows whose path is spelled differently from the one file that
            it means. Here `path` is the path as written; all other frames have the file's path.
        ambiguous: `candidates`; rows without a file whose path is spelled like several files, or
            like a file that another path means too.
        contradictory: `label`; all rows of the images that a task lists with two labels (rule 4).
        repeated: `label`; all rows of the images that a task lists repeatedly with one label.
        leaks: `label` (MISSING where it was contradictory); rows of the images that are test for
            one task and train for another (rule 2), one per task.
    """

    files: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["task", "split", "file", "rows"])
    )
    unsafe: pd.DataFrame = field(default_factory=_no_rows("reason"))
    unknown: pd.DataFrame = field(default_factory=_no_rows("value"))
    respelt: pd.DataFrame = field(default_factory=_no_rows("file_path", "kind"))
    ambiguous: pd.DataFrame = field(default_factory=_no_rows("candidates"))
    contradictory: pd.DataFrame = field(default_factory=_no_rows("label"))
    repeated: pd.DataFrame = field(default_factory=_no_rows("label"))
    leaks: pd.DataFrame = field(default_factory=_no_rows("label"))


@dataclass(frozen=True)
class Table:
    """One row per image.

    Attributes:
        classes: task -> its class names, ordered by index.
        paths: str [rows], relative to the image folder, sorted.
        labels: int32 [rows, tasks]; MISSING (-1) where the task has no label, OTHER_LABEL (-2)
            where the image has none of the classes of an open task.
        splits: str [rows], each one of SPLITS.
        notes: exclusions and repairs with their reasons, one line each.
        excluded: path -> reason, of the images that are in the CSVs and not in the table.
        findings: the rows that the notes on the CSVs count.
        units: int64 [rows]: images with the same number, such as the photographs of one object,
            stay on one side of a split; None if each image is on its own.
    """

    classes: dict[str, tuple[str, ...]]
    paths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    notes: tuple[str, ...] = field(default=())
    excluded: dict[str, str] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    units: np.ndarray | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, ordered as the columns of `labels`."""
        return tuple(self.classes)

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, split: str) -> np.ndarray:
        """int64 [n]: the rows of one split."""
        return np.flatnonzero(self.splits == split)

    def find(self, paths: Sequence[str] | np.ndarray) -> np.ndarray:
        """int64 [n]: the row of each path; -1 where the table does not have it."""
        return pd.Index(self.paths).get_indexer(np.asarray(paths, object))

    def labels_of(self, task: str, split: str) -> np.ndarray:
        """int32 [n]: the labels of a task in a split, without negative ones."""
        labels = self.labels[self.splits == split, self.tasks.index(task)]
        return labels[is_labelled(labels)]

    def drop(self, rows: np.ndarray, reasons: str | Sequence[str], *notes: str) -> "Table":
        """Return the table without some rows, whose images become excluded images.

        Args:
            rows: int [n] or bool [rows].
            reasons: why the rows are excluded: one for all, or one each.
            notes: notes to add.
        """
        gone = np.arange(len(self))[rows]
        if isinstance(reasons, str):
            reasons = [reasons] * len(gone)
        kept = np.delete(np.arange(len(self)), gone)
        return replace(
            self,
            paths=self.paths[kept],
            labels=self.labels[kept],
            splits=self.splits[kept],
            units=None if self.units is None else self.units[kept],
            notes=self.notes + notes,
            excluded=self.excluded | dict(zip(self.paths[gone], reasons, strict=True)),
        )

    def of_tasks(self, tasks: Sequence[str]) -> "Table":
        """Return the table with the labels of some tasks, and with all rows."""
        if tuple(tasks) == self.tasks:
            return self
        columns = [self.tasks.index(task) for task in tasks]
        classes = {task: self.classes[task] for task in tasks}
        return replace(self, classes=classes, labels=self.labels[:, columns])

    def excluded_frame(self) -> pd.DataFrame:
        """`excluded` as columns path and reason, sorted by path."""
        rows = sorted(self.excluded.items())
        return pd.DataFrame(rows, columns=["path", "reason"], dtype=object)

    @property
    def without_test(self) -> tuple[str, ...]:
        """The tasks that have no label in the test set."""
        return tuple(task for task in self.tasks if not len(self.labels_of(task, TEST)))

    @property
    def class_counts(self) -> list[int]:
        """The number of classes of each task."""
        return [len(names) for names in self.classes.values()]

    def counts(self) -> pd.DataFrame:
        """`images`, and each task's `artist/labels` (columns), in each split (rows)."""
        return pd.DataFrame(
            {
                "images": [int((self.splits == split).sum()) for split in SPLITS],
                **{
                    field_of(task, "labels"): [len(self.labels_of(task, split)) for split in SPLITS]
                    for task in self.tasks
                },
            },
            index=list(SPLITS),
        )


# === Sampling: subset and validation split ===


def subset_table(table: Table, shares: Mapping[str, float], *, seed: int) -> Table:
    """Keep a share of each task's training labels, as `subset_labels` chooses them (rule 9).

    A training image that keeps no label is excluded.
    """
    if all(share == 1 for share in shares.values()):
        return table
    train = table.splits == TRAIN
    task_shares = [shares[task] for task in table.tasks]
    labels = subset_labels(table.labels, train, table.class_counts, task_shares, seed=seed)
    kept = ~train | is_labelled(labels).any(axis=1)
    text = ", ".join(f"{task} {share:g}" for task, share in shares.items())
    note = f"subset ({text}): {int((kept & train).sum())} of {int(train.sum())} training images"
    return replace(table, labels=labels).drop(~kept, NOT_SAMPLED, note)


def hold_out_validation(
    table: Table, share: float, *, seed: int, tasks: Sequence[str] | None = None
) -> Table:
    """Move a share of the training images to the validation split (rule 3).

    A collection that names its validation images keeps them, and its groups stay together.

    Args:
        table: a merged table.
        share: share of the training images, in [0, 1).
        seed: the same seed chooses the same images.
        tasks: the tasks by whose classes the images are chosen; None: all.
    """
    if share == 0 or (table.splits == VALIDATION).any():
        return table
    train, chooser = table.splits == TRAIN, table.of_tasks(tasks or table.tasks)
    if table.units is None:
        chosen = validation_rows(chooser.labels, train, chooser.class_counts, share, seed=seed)
    else:
        chosen = draw_rows(
            chooser.labels,
            table.paths,
            share,
            seed=seed,
            units=table.units,
            allowed=train,
            at_least=0,
            purpose=VALIDATION,
            tasks=chooser.tasks,
            place="validation",
        ).rows
    splits = table.splits.copy()
    splits[chosen] = VALIDATION
    return replace(table, splits=splits)


def sample_table(spec: DataSpec, table: Table) -> Table:
    """Sample the subset and the validation split of a merged table.

    Raises:
        InputError: no training image is left, or none for a task.
    """
    # An image whose only label was contradictory or leaked is useless for training.
    useless = (table.splits == TRAIN) & ~is_labelled(table.labels).any(axis=1)
    table = table.drop(useless, NO_LABEL)
    table = subset_table(table, {task.name: task.subset for task in spec.tasks}, seed=spec.seed)
    table = hold_out_validation(table, spec.validation, seed=spec.seed, tasks=spec.main_tasks)
    if not len(table.rows(TRAIN)):
        raise InputError(f"{spec.source_file}: no image is left to train on")
    for task in table.tasks:
        if not len(table.labels_of(task, TRAIN)):
            raise InputError(
                f"{spec.place(task, 'train')}: no training label of this task is left (test "
                "images, missing files and contradictions are excluded); add rows, or exclude the "
                "task with `tasks`"
            )
    train = table.rows(TRAIN)
    labels = table.labels.copy()
    labels[train] = without_held_out(spec, labels[train], table.paths[train])
    return replace(table, labels=labels)


def sample_without(spec: DataSpec, table: Table, excluded: pd.DataFrame) -> Table:
    """Sample a merged table as `sample_table` does, without the excluded images.

    Missing images and near-duplicates are excluded before sampling. Unreadable images are excluded
    after it, because they are only discovered when the sampled images are prepared.
    """
    before = excluded["reason"].isin([MISSING_FILE, NEAR_DUPLICATE])
    by_sampling = excluded["reason"].isin([NO_LABEL, NOT_SAMPLED])
    table = sample_table(spec, drop_paths(table, excluded[before]))
    return drop_paths(table, excluded[~before & ~by_sampling])


def drop_paths(table: Table, excluded: pd.DataFrame) -> Table:
    """Drop the images that a frame of paths and reasons lists."""
    rows = table.find(excluded["path"])
    present = rows >= 0
    return table.drop(rows[present], excluded["reason"].to_numpy(object)[present].tolist())
