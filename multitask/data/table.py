"""Merge the CSVs of all tasks into one Table, one row per image; sample its splits and subset.

The rule numbers are those of the rules in docs/data.md: 1 one row per image, 2 no
test image in training, 3 no model selection on the test set, 4 contradictory labels are dropped,
5 unknown labels are filtered, 9 subset, 10 weights.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from multitask.data.collection import read_collection
from multitask.data.draw import draw_rows
from multitask.data.label_files import LabelledRows, read_lists
from multitask.data.matching import Match, match_files
from multitask.data.others import label_others, without_held_out
from multitask.data.path_labels import add_path_labels
from multitask.data.splitting import SPLITS as SPLITS  # re-exported with the table
from multitask.data.splitting import TEST as TEST
from multitask.data.splitting import TRAIN as TRAIN
from multitask.data.splitting import VALIDATION as VALIDATION
from multitask.data.splitting import subset_labels, validation_rows
from multitask.errors import counted
from multitask.files import check_is_folder
from multitask.spec import MISSING, DataSpec, InputError, field_of, is_labelled, shown

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


# === Merging ===


def _match_paths(
    frame: pd.DataFrame, matches: Mapping[str, Match]
) -> tuple[pd.DataFrame, Findings]:
    """Replace paths by those of their files; also return the rows that are spelled differently."""
    unmatched = frame[frame["path"].isin(list(matches))]
    row_matches = [matches[path] for path in unmatched["path"]]
    unmatched = unmatched.assign(
        file_path=[match.file for match in row_matches],
        kind=[match.kind for match in row_matches],
        candidates=[", ".join(match.files) for match in row_matches],
    )
    one = unmatched["file_path"].notna()
    frame = frame.assign(path=[_file_path(path, matches) for path in frame["path"]])
    return frame, Findings(respelt=unmatched[one], ambiguous=unmatched[~one])


def _file_path(path: str, matches: Mapping[str, Match]) -> str:
    match = matches.get(path)
    return path if match is None or match.file is None else match.file


def describe_respelt(findings: Findings) -> list[str]:
    """Count the paths that are spelled differently from their file.

    Returns:
        A line on the paths whose file is read, and a line on those that match several files or
        another path's file; each only if there are any.
    """
    notes = []
    if len(findings.respelt):
        paths = findings.respelt.drop_duplicates("path")
        one = "path is spelled differently from its file"
        many = "paths are spelled differently from their file"
        kinds = ", ".join(
            f"{kind} {count:,}" for kind, count in paths["kind"].value_counts().items()
        )
        first = paths.iloc[0]
        notes.append(
            f"{counted(len(paths), one, many)}, which is read "
            f"nevertheless ({kinds}; first: {Path(first['file']).name}: line {first['line']}: "
            f"{shown(first['path'])} is {shown(first['file_path'])})"
        )
    if len(findings.ambiguous):
        paths = findings.ambiguous.drop_duplicates("path")
        first = paths.iloc[0]
        notes.append(
            f"{counted(len(paths), 'path has no file, but is', 'paths have no file, but are')} "
            "spelled like several files or like another path's file; none of these is read "
            f"(first: {Path(first['file']).name}: line {first['line']}: "
            f"{shown(first['path'])}: {first['candidates']})"
        )
    return notes


def _one_row_per_path(frame: pd.DataFrame) -> tuple[pd.DataFrame, Findings, list[str]]:
    """Reduce the rows of a task's files to one per path.

    Returns:
        The rows, the findings in them, and the notes.
    """
    notes, task = [], frame["task"].iloc[0] if len(frame) else ""
    safe, known = frame["unsafe"] == "", is_labelled(frame["label"])
    unsafe = frame[~safe].rename(columns={"unsafe": "reason"})
    unknown = frame[safe & ~known]
    frame = frame[safe & known]
    grouped = frame.groupby("path", sort=False)["label"].agg(["min", "max", "size"])
    alike = grouped["min"] == grouped["max"]
    contradictory = frame[frame["path"].isin(grouped.index[~alike])]
    repeated = frame[frame["path"].isin(grouped.index[alike & (grouped["size"] > 1)])]
    if len(contradictory):
        names = sorted(set(contradictory["path"]))
        notes.append(
            f"{task}: {counted(len(names), 'image is', 'images are')} listed with two labels "
            f"that contradict each other; neither is kept ({', '.join(names[:3])})"
        )
    if len(repeated):
        count = repeated["path"].nunique()
        notes.append(
            f"{task}: {counted(count, 'image is', 'images are')} listed more than once with the "
            "same label"
        )
    # A test row takes precedence over train rows: it is put last within its path.
    order = np.argsort(frame["split"] == TEST, kind="stable")
    frame = frame.iloc[order].drop_duplicates("path", keep="last")
    frame.loc[frame["path"].isin(contradictory["path"]), "label"] = MISSING
    findings = Findings(
        unsafe=unsafe, unknown=unknown, contradictory=contradictory, repeated=repeated
    )
    return frame, findings, notes


def merge_tables(spec: DataSpec, data_dir: Path, *, strict: bool = True) -> Table:
    """Merge the CSVs of all tasks into one Table with the splits train and test.

    Rules 1, 2, 4 and 5 of the data are applied.

    Args:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        strict: refuse unsafe paths and too many unknown labels; False excludes such rows and
            continues, so that all of them can be listed.

    Raises:
        InputError: the data is invalid; the message names the file and the line.
    """
    check_is_folder(data_dir, field="data_dir")
    read = read_lists if spec.table is None else read_collection
    rows = read(spec, data_dir, strict=strict)
    frames, findings, notes = dict(rows.frames), [Findings(rows.files)], list(rows.notes)
    image_dir = data_dir / spec.images
    listed = {}
    matches = _find_matches(frames.values(), image_dir, by_letters=spec.match == "letters")
    for task, unmatched in frames.items():
        frame, spelling = _match_paths(unmatched, matches)
        ambiguous = [_file_path(path, matches) for path in rows.ambiguous.get(task, ())]
        listed[task] = {*frame["path"], *ambiguous}
        frames[task], row_findings, row_notes = _one_row_per_path(frame)
        findings += [spelling, row_findings]
        notes += row_notes
    paths, labels, is_test, leaks, leak_notes = _merge_frames(frames)
    classes, labels, path_notes = add_path_labels(
        spec, rows.classes, paths, labels, is_test, image_dir
    )
    labels, other_notes = label_others(spec, classes, labels, paths, listed)
    merged = _join([*findings, Findings(leaks=leaks)])
    notes += [*path_notes, *other_notes, *leak_notes, *describe_respelt(merged)]
    nowhere = sorted(set(merged.unknown["path"]) - set(paths))
    splits = np.where(is_test, TEST, TRAIN).astype(object)
    table = Table(
        classes,
        paths,
        labels,
        splits,
        tuple(notes),
        dict.fromkeys(nowhere, UNKNOWN_LABEL),
        merged,
    )
    return _with_units(table, rows, matches)


def _with_units(table: Table, rows: LabelledRows, matches: Mapping[str, Match]) -> Table:
    """Add the validation images and the groups of a collection."""
    if not rows.units:
        return table
    units = {_file_path(path, matches): unit for path, unit in rows.units.items()}
    validation = [_file_path(path, matches) for path in rows.validation]
    splits = table.splits.copy()
    splits[np.isin(table.paths, validation) & (splits == TRAIN)] = VALIDATION
    return replace(table, splits=splits, units=np.array([units[path] for path in table.paths]))


def _merge_frames(
    frames: Mapping[str, pd.DataFrame],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame, list[str]]:
    """Merge the rows of the tasks by path (rule 1) and resolve the leaks (rule 2).

    Returns:
        Paths, str [rows]; labels, int32 [rows, tasks]; bool [rows], which are test; the rows that
        leak; and the notes.
    """
    paths = np.unique(np.concatenate([f["path"].to_numpy(dtype=object) for f in frames.values()]))
    index = pd.Index(paths)
    labels = np.full((len(paths), len(frames)), MISSING, np.int32)
    test_labels = np.zeros(labels.shape, bool)
    for column, frame in enumerate(frames.values()):
        rows = index.get_indexer(frame["path"])
        labels[rows, column] = frame["label"]
        test_labels[rows, column] = frame["split"] == TEST
    is_test = np.asarray(test_labels.any(axis=1))
    leaked = is_test[:, None] & ~test_labels & is_labelled(labels)
    notes = []
    if leaked.any():
        cost = ", ".join(
            f"{task} {count}" for task, count in zip(frames, leaked.sum(axis=0), strict=True)
        )
        images = counted(int(leaked.any(axis=1).sum()), "image is", "images are")
        notes.append(
            f"{images} test for one task and train for another; none is used for training "
            f"(labels lost in training: {cost})"
        )
    labels[leaked] = MISSING
    leaks = pd.concat(frames.values())
    leaks = leaks[leaks["path"].isin(paths[leaked.any(axis=1)])].sort_values("path", kind="stable")
    leaks = leaks[(leaks["split"] == TEST) | is_labelled(leaks["label"])]
    return paths, labels, is_test, leaks, notes


def _find_matches(
    frames: Iterable[pd.DataFrame], image_dir: Path, *, by_letters: bool
) -> dict[str, Match]:
    """Match the paths of all rows to files; {} if there is no image folder."""
    if not image_dir.is_dir():
        return {}
    paths = [frame.loc[frame["unsafe"] == "", "path"] for frame in frames]
    return match_files(pd.unique(pd.concat(paths)), image_dir, by_letters=by_letters)


def _join(findings: Sequence[Findings]) -> Findings:
    """Concatenate findings; each frame keeps only its own columns."""
    joined = {}
    for kind, empty in vars(Findings()).items():
        frames = [frame for part in findings if len(frame := getattr(part, kind))]
        if frames:
            joined[kind] = pd.concat(frames, ignore_index=True)[list(empty.columns)]
    return Findings(**joined)


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


def load_table(spec: DataSpec, data_dir: Path, *, excluded: pd.DataFrame | None = None) -> Table:
    """Load the table that a run is trained and evaluated on.

    Args:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        excluded: columns path and reason, as `Table.excluded_frame` gives them.
    """
    table = merge_tables(spec, data_dir)
    return sample_table(spec, table) if excluded is None else sample_without(spec, table, excluded)


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
