"""The CSVs of all tasks -> one Table, one row an image: leak-free splits, subset, class weights.

The rules that are named here are those of the data in the project's design:
1 one row an image, 2 no exam seen before, 3 no exam used for choosing, 4 contradictions lose
their label, 5 unknown labels are filtered, 9 subset, 10 weights.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pandas as pd
from sklearn.utils.class_weight import compute_class_weight

from multitask.spec import MISSING, DataSpec, InputError, Task, near

TRAIN, SELECTION, VAL = SPLITS = ("train", "selection", "val")
_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Table:
    """One row an image.

    Attributes:
        classes: task -> its class names, in the order of their index.
        paths: str [rows], relative to the picture folder, sorted.
        labels: int32 [rows, tasks]; MISSING (-1) where the task has no label.
        splits: str [rows], one of SPLITS.
        notes: what was dropped or repaired, and why, a line each.
    """

    classes: dict[str, tuple[str, ...]]
    paths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    notes: tuple[str, ...] = field(default=())

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.classes)

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, split: str) -> np.ndarray:
        """int64 [n]: the rows of one split."""
        return np.flatnonzero(self.splits == split)

    def labels_of(self, task: str, split: str) -> np.ndarray:
        """int32 [n]: the labels that a task has in a split, without the missing ones."""
        labels = self.labels[self.splits == split, self.tasks.index(task)]
        return labels[labels != MISSING]

    def keep(self, rows: np.ndarray, *notes: str) -> "Table":
        """The table with some rows only (a mask or indices)."""
        return replace(
            self,
            paths=self.paths[rows],
            labels=self.labels[rows],
            splits=self.splits[rows],
            notes=self.notes + notes,
        )

    def counts(self) -> pd.DataFrame:
        """Images, and labels of each task (columns), in each split (rows)."""
        return pd.DataFrame(
            {
                "images": [int((self.splits == split).sum()) for split in SPLITS],
                **{
                    task: [len(self.labels_of(task, split)) for split in SPLITS]
                    for task in self.tasks
                },
            },
            index=list(SPLITS),
        )


# === Reading the files ===


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        where = "" if path.parent.is_dir() else f" (there is no folder {path.parent})"
        raise InputError(f"{path}: no such file{where}.{near(path.name, siblings)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return text


def read_classes(path: Path) -> tuple[str, ...]:
    """A class file (`index name` a line) -> the names, by their index.

    Raises:
        InputError: no such file, a line of another form, an index that is missing or comes
            twice, a name that comes twice.
    """
    names: dict[int, str] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        index, _, name = line.strip().partition(" ")
        name = name.strip()
        if not index.isdecimal() or not name:
            raise InputError(f"{path}: line {number}: {line!r}: expected `index name`")
        if int(index) in names:
            raise InputError(f"{path}: line {number}: index {int(index)} stands twice")
        if name in names.values():
            raise InputError(f'{path}: line {number}: the name "{name}" stands twice')
        names[int(index)] = name
    gaps = sorted(set(range(len(names))) - names.keys())
    if gaps:
        raise InputError(
            f"{path}: index {gaps[0]} is missing; {len(names)} classes need 0 to {len(names) - 1}"
        )
    return tuple(names[index] for index in range(len(names)))


def _read_rows(path: Path) -> tuple[list[int], list[list[str]]]:
    """The lines that hold something: their numbers and their cells, stripped."""
    numbers, rows = [], []
    try:
        reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                numbers.append(reader.line_num)
                rows.append(cells)
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: not CSV: {error}") from None
    return numbers, rows


def _two_columns(path: Path, numbers: list[int], rows: list[list[str]]) -> list[list[str]]:
    """Drop columns that are empty all the way down; two must remain."""
    width = max(len(row) for row in rows)
    used = [c for c in range(width) if any(len(row) > c and row[c] for row in rows)]
    if len(used) != 2:
        found = f"{len(used)} column{'s' * (len(used) != 1)}"
        raise InputError(f"{path}: expected two columns, `path,class`; found {found}")
    pairs = [[row[c] if len(row) > c else "" for c in used] for row in rows]
    for number, (name, label) in zip(numbers, pairs, strict=True):
        if not name or not label:
            what = "path" if not name else "class"
            raise InputError(f"{path}: line {number}: the {what} is empty")
    return pairs


def _check_path(path: Path, number: int, name: str) -> None:
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.is_absolute() or windows.drive:
        raise InputError(f"{path}: line {number}: {name!r}: absolute paths are refused")
    if ".." in windows.parts:  # splits at both kinds of slash
        raise InputError(f"{path}: line {number}: {name!r}: paths with `..` are refused")
    if not name.isprintable() and any(ord(c) < 32 for c in name):
        raise InputError(f"{path}: line {number}: {name!r}: control characters are refused")


def read_labels(
    path: Path, classes: Sequence[str], *, max_unknown: float
) -> tuple[pd.DataFrame, list[str]]:
    """One task's CSV -> its rows.

    ArtGAN's files are headerless `path,index`. A header row, blank lines, empty columns, a byte
    order mark, CRLF and class names in the place of indices are read too, and said.

    Args:
        path: the CSV.
        classes: the names of the class file, by index.
        max_unknown: the share of rows whose label may be unknown (rule 5).

    Returns:
        A frame with `path` (str), `label` (int) and `line` (int), and the notes.

    Raises:
        InputError: unreadable, not two columns, an unsafe path, a label that is neither an index
            nor a name, or too many unknown ones.
    """
    numbers, rows = _read_rows(path)
    notes = []
    index_of = {name: index for index, name in enumerate(classes)}

    def is_label(text: str) -> bool:
        return bool(_INTEGER.fullmatch(text)) or text in index_of

    if (
        len(rows) > 1
        and not is_label(rows[0][-1])
        and "." not in rows[0][0]
        and is_label(rows[1][-1])
    ):
        header = ",".join(rows[0])
        notes.append(f"{path.name}: a header row ({header!r}) was found and skipped")
        if len(rows[0]) > 2:
            notes[-1] += "; columns without content too"
        numbers, rows = numbers[1:], rows[1:]
    pairs = _two_columns(path, numbers, rows)
    blank = numbers[-1] - len(rows) - (len(notes) > 0)
    if blank > 0:
        notes.append(f"{path.name}: {blank} blank lines were skipped")

    texts = [text for _, text in pairs]
    for number, (name, _) in zip(numbers, pairs, strict=True):
        _check_path(path, number, name)
    # `./a//b.jpg` is `a/b.jpg`: one picture, one row, in whichever split.
    names = [str(PurePosixPath(name)) for name, _ in pairs]
    if not any(_INTEGER.fullmatch(text) for text in texts) and any(t in index_of for t in texts):
        labels = [index_of.get(text, MISSING) for text in texts]  # a file of names
    else:
        for number, text in zip(numbers, texts, strict=True):
            if not _INTEGER.fullmatch(text):
                raise InputError(
                    f"{path}: line {number}: class {text!r}: expected an index, "
                    f"0 to {len(classes) - 1}.{near(text, classes)}"
                )
        labels = [int(text) for text in texts]
    frame = pd.DataFrame({"path": names, "label": labels, "line": numbers})
    unknown = (frame["label"] < 0) | (frame["label"] >= len(classes))
    if unknown.any():
        first = int(np.flatnonzero(unknown)[0])
        note = (
            f"{path.name}: {int(unknown.sum())} of {len(frame)} rows have an unknown class "
            f"(first: line {numbers[first]}: {texts[first]!r}; the class file has "
            f"0 to {len(classes) - 1})"
        )
        if unknown.mean() > max_unknown:
            raise InputError(
                f"{path.parent / note}; more than the allowed share "
                f"max_unknown = {max_unknown:g}: is this the right class file?"
            )
        notes.append(f"{note}; those labels are left out")
        frame = frame[~unknown]
    return frame.reset_index(drop=True), notes


# === Merging ===


def _labels_of_task(task: Task, data_dir: Path, classes: Sequence[str], max_unknown: float):
    """Both files of a task -> frame of path, label, val (one row a path), and notes."""
    parts, notes = [], []
    for split, name in ((False, task.train), (True, task.val)):
        frame, said = read_labels(data_dir / name, classes, max_unknown=max_unknown)
        parts.append(frame.assign(val=split))
        notes += said
    frame = pd.concat(parts, ignore_index=True)
    grouped = frame.groupby("path", sort=False)["label"].agg(["min", "max", "size"])
    contradictory = grouped.index[grouped["min"] != grouped["max"]]
    if len(contradictory):
        shown = ", ".join(sorted(contradictory)[:3])
        notes.append(
            f"{task.name}: {len(contradictory)} pictures are listed with two labels "
            f"and lose both ({shown})"
        )
    repeated = int((grouped["size"] > 1).sum()) - len(contradictory)
    if repeated:
        notes.append(f"{task.name}: {repeated} pictures are listed more than once, alike")
    # Val wins over train: sorting puts it last within a path.
    frame = frame.sort_values("val", kind="stable").drop_duplicates("path", keep="last")
    frame.loc[frame["path"].isin(contradictory), "label"] = MISSING
    return frame[["path", "label", "val"]], notes


def merge_tables(spec: DataSpec, data_dir: Path) -> Table:
    """All tasks' CSVs -> one Table with the splits train and val (rules 1, 2, 4 and 5).

    Raises:
        InputError: naming the file and the line.
    """
    if not data_dir.is_dir():
        raise InputError(f"--data_dir: {data_dir}: is no folder")
    classes = {task.name: read_classes(data_dir / task.classes) for task in spec.tasks}
    frames, notes = {}, []
    for task in spec.tasks:
        frames[task.name], said = _labels_of_task(
            task, data_dir, classes[task.name], spec.max_unknown
        )
        notes += said
    paths = np.unique(np.concatenate([f["path"].to_numpy(dtype=object) for f in frames.values()]))
    index = pd.Index(paths)
    labels = np.full((len(paths), len(frames)), MISSING, np.int32)
    val_of = np.zeros(labels.shape, bool)
    for column, frame in enumerate(frames.values()):
        rows = index.get_indexer(frame["path"])
        labels[rows, column] = frame["label"]
        val_of[rows, column] = frame["val"]
    is_val = val_of.any(axis=1)
    leaked = is_val[:, None] & ~val_of & (labels != MISSING)
    if leaked.any():
        cost = ", ".join(
            f"{task} {count}" for task, count in zip(classes, leaked.sum(axis=0), strict=True)
        )
        notes.append(
            f"{int(leaked.any(axis=1).sum())} pictures are val for one task and train for "
            f"another; none is trained on (labels lost in training: {cost})"
        )
    labels[leaked] = MISSING
    splits = np.where(is_val, VAL, TRAIN).astype(object)
    return Table(classes, paths, labels, splits, tuple(notes))


# === Drawing: subset and selection ===


def _quota(count: int, share: float, at_least: int) -> int:
    return min(count, max(at_least, round(share * count)))


def subset_table(table: Table, shares: dict[str, float], *, seed: int) -> Table:
    """Keep a share of each task's training labels, class by class (rule 9).

    One random rank an image serves all the tasks, so that their draws overlap and a share of
    the labels is about that share of the images. Every class keeps at least one example. An
    image that no task draws is dropped.
    """
    if all(share == 1 for share in shares.values()):
        return table
    rank = np.random.default_rng([seed, 1]).permutation(len(table))
    train = table.splits == TRAIN
    labels = table.labels.copy()
    for column, task in enumerate(table.tasks):
        for index in range(len(table.classes[task])):
            rows = np.flatnonzero(train & (table.labels[:, column] == index))
            rows = rows[np.argsort(rank[rows])]
            labels[rows[_quota(len(rows), shares[task], 1) :], column] = MISSING
    kept = ~train | (labels != MISSING).any(axis=1)
    said = ", ".join(f"{task} {share:g}" for task, share in shares.items())
    note = f"subset ({said}): {int((kept & train).sum())} of {int(train.sum())} training pictures"
    return replace(table, labels=labels).keep(kept, note)


def hold_out_selection(table: Table, share: float, *, seed: int) -> Table:
    """Move a share of the training images to the split `selection` (rule 3).

    Class by class over all the tasks, the rarest first, each filling up its quota with images
    of the lowest random rank, and never the last image of any class: iterative stratification
    (Sechidis et al. 2011) in its simplest form.
    """
    if share == 0:
        return table
    rank = np.random.default_rng([seed, 2]).permutation(len(table))
    train = table.splits == TRAIN
    sizes = [len(names) for names in table.classes.values()]
    # Each class of each task is a group; a row of the table is in one group a task at most.
    group_of = table.labels + np.cumsum([0, *sizes[:-1]])
    group_of[(table.labels == MISSING) | ~train[:, None]] = MISSING
    groups = [np.flatnonzero((group_of == group).any(axis=1)) for group in range(sum(sizes))]
    left = np.asarray([len(rows) for rows in groups])
    chosen = np.zeros(len(table), bool)
    for rows in sorted(groups, key=len):
        wanted = round(share * len(rows)) - int(chosen[rows].sum())
        for row in rows[np.argsort(rank[rows])]:
            if wanted <= 0:
                break
            its_groups = group_of[row][group_of[row] != MISSING]
            if not chosen[row] and (left[its_groups] > 1).all():
                chosen[row] = True
                left[its_groups] -= 1
                wanted -= 1
    splits = table.splits.copy()
    splits[chosen] = SELECTION
    return replace(table, splits=splits)


# === Weights ===


def class_weights(labels: np.ndarray, classes: int, *, exponent: float) -> np.ndarray:
    """Balanced class weights to a power, with mean 1 over the labels (rule 10).

    Args:
        labels: int [n], without missing ones.
        classes: how many there are.
        exponent: 1 = balanced (n / (classes · count)), 0.5 = its square root, 0 = none.

    Returns:
        float32 [classes]; 0 for a class without examples.
    """
    weights = np.zeros(classes, np.float64)
    present = np.unique(labels)
    if len(present):
        weights[present] = compute_class_weight("balanced", classes=present, y=labels) ** exponent
        weights /= weights[labels].mean()
    return weights.astype(np.float32)


def load_table(spec: DataSpec, data_dir: Path, *, unusable: Sequence[str] = ()) -> Table:
    """The table that a run trains on and is examined by: merged, less the unusable, drawn.

    Args:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        unusable: paths of pictures that are missing or unreadable.
    """
    table = merge_tables(spec, data_dir)
    if len(unusable):
        table = table.keep(~pd.Index(table.paths).isin(unusable))
    # A picture whose only label was contradictory or leaked has nothing to teach.
    useless = (table.splits == TRAIN) & (table.labels == MISSING).all(axis=1)
    table = table.keep(~useless)
    table = subset_table(table, {task.name: task.subset for task in spec.tasks}, seed=spec.seed)
    table = hold_out_selection(table, spec.selection, seed=spec.seed)
    if not len(table.rows(TRAIN)):
        raise InputError(f"{data_dir}: no picture is left to train on")
    return table
