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
# Why a picture is left out. The first comes of the merging, the next two are known before anything
# is drawn, the last two come of the drawing. Every other reason is that of a file which turned out
# to be unreadable.
UNKNOWN_LABEL = "its label is unknown"
MISSING_FILE, NEAR_DUPLICATE = "no such file", "near-duplicate of an exam's picture"
NO_LABEL, NOT_DRAWN = "no label is left", "not drawn for the subset"
_INTEGER = re.compile(r"[+-]?\d+")
# What may be unsafe, or spelt otherwise than pathlib spells it. Few paths are, and asking pathlib
# for every one of them takes longer than all the rest of the merging.
_UNUSUAL_PATH = re.compile(r"^[./\\]|[\x00-\x1f:\\]|/[./]|/$|\.\.")


def _no_rows(*columns: str):
    names = ["task", "split", "file", "line", "path", *columns]
    return field(default_factory=lambda: pd.DataFrame(columns=names))


@dataclass(frozen=True)
class Findings:
    """What was found in the CSVs: frames whose rows are rows of a CSV.

    Each has the columns task, split (train or val), file (as the spec names it), line and path.

    Attributes:
        files: a row a CSV instead: task, split, file, rows (how many).
        unsafe: `reason`; rows with a path that is refused (only where it is tolerated).
        unknown: `value`; rows with a label that no class has (rule 5).
        contradictory: `label`; all rows of the pictures that a task lists with two labels (rule 4).
        repeated: `label`; all rows of the pictures that a task lists more than once, alike.
        leaks: `label` (MISSING where it was contradictory); rows of the pictures that are val for
            one task and train for another (rule 2), one a task.
    """

    files: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["task", "split", "file", "rows"])
    )
    unsafe: pd.DataFrame = _no_rows("reason")
    unknown: pd.DataFrame = _no_rows("value")
    contradictory: pd.DataFrame = _no_rows("label")
    repeated: pd.DataFrame = _no_rows("label")
    leaks: pd.DataFrame = _no_rows("label")


@dataclass(frozen=True)
class Table:
    """One row an image.

    Attributes:
        classes: task -> its class names, in the order of their index.
        paths: str [rows], relative to the picture folder, sorted.
        labels: int32 [rows, tasks]; MISSING (-1) where the task has no label.
        splits: str [rows], one of SPLITS.
        notes: what was dropped or repaired, and why, a line each.
        left_out: path -> reason, of the pictures that are in the CSVs and not in the table.
        findings: what the notes on the CSVs say, row by row.
    """

    classes: dict[str, tuple[str, ...]]
    paths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    notes: tuple[str, ...] = field(default=())
    left_out: dict[str, str] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.classes)

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, split: str) -> np.ndarray:
        """int64 [n]: the rows of one split."""
        return np.flatnonzero(self.splits == split)

    def find(self, paths: Sequence[str]) -> np.ndarray:
        """int64 [n]: the rows of some of its pictures; -1 where there is none."""
        return pd.Index(self.paths).get_indexer(np.asarray(paths, object))

    def labels_of(self, task: str, split: str) -> np.ndarray:
        """int32 [n]: the labels that a task has in a split, without the missing ones."""
        labels = self.labels[self.splits == split, self.tasks.index(task)]
        return labels[labels != MISSING]

    def drop(self, rows: np.ndarray, reasons: str | Sequence[str], *notes: str) -> "Table":
        """The table without some rows.

        Args:
            rows: int [n] or bool [rows].
            reasons: why they are left out; one for all, or one each.
            notes: to add.
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
            notes=self.notes + notes,
            left_out=self.left_out | dict(zip(self.paths[gone], reasons, strict=True)),
        )

    def left_out_frame(self) -> pd.DataFrame:
        """`left_out` as columns path and reason, sorted by path."""
        rows = sorted(self.left_out.items())
        return pd.DataFrame(rows, columns=["path", "reason"], dtype=object)

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


def _why_unsafe(name: str) -> str | None:
    """What a path must not have; None where it has nothing of it."""
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.is_absolute() or windows.drive:
        return "absolute paths are refused"
    if ".." in windows.parts:  # splits at both kinds of slash
        return "paths with `..` are refused"
    if any(ord(c) < 32 for c in name):
        return "control characters are refused"
    return None


def read_labels(
    path: Path, classes: Sequence[str], *, max_unknown: float, strict: bool = True
) -> tuple[pd.DataFrame, list[str]]:
    """One task's CSV -> its rows.

    ArtGAN's files are headerless `path,index`. A header row, blank lines, empty columns, a byte
    order mark, CRLF and class names in the place of indices are read too, and said.

    Args:
        path: the CSV.
        classes: the names of the class file, by index.
        max_unknown: the share of rows whose label may be unknown (rule 5).
        strict: refuse unsafe paths, labels that are neither an index nor a name, and more unknown
            ones than that; False keeps such rows, marked.

    Returns:
        A frame with `line` (int), `path` (str), `value` (str, the label as it stands there),
        `label` (int; MISSING where it is unknown) and `unsafe` (str; why the path is refused, ""
        where it is not), and the notes.

    Raises:
        InputError: unreadable, not two columns, or what `strict` refuses.
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

    # `./a//b.jpg` is `a/b.jpg`: one picture, one row, in whichever split.
    names, unsafe = [name for name, _ in pairs], [""] * len(pairs)
    for index, name in enumerate(names):
        if not _UNUSUAL_PATH.search(name):
            continue
        unsafe[index] = _why_unsafe(name) or ""
        if not unsafe[index]:
            names[index] = str(PurePosixPath(name))
        elif strict:
            raise InputError(f"{path}: line {numbers[index]}: {name!r}: {unsafe[index]}")
    texts = [text for _, text in pairs]
    if not any(_INTEGER.fullmatch(text) for text in texts) and any(t in index_of for t in texts):
        labels = [index_of.get(text, MISSING) for text in texts]  # a file of names
    else:
        for number, text in zip(numbers, texts, strict=True):
            if strict and not _INTEGER.fullmatch(text):
                raise InputError(
                    f"{path}: line {number}: class {text!r}: expected an index, "
                    f"0 to {len(classes) - 1}.{near(text, classes)}"
                )
        labels = [int(text) if _INTEGER.fullmatch(text) else MISSING for text in texts]
    labels = [label if 0 <= label < len(classes) else MISSING for label in labels]
    frame = pd.DataFrame(
        {"line": numbers, "path": names, "value": texts, "label": labels, "unsafe": unsafe}
    )
    unknown = frame["label"] == MISSING
    if unknown.any():
        first = frame[unknown].iloc[0]
        note = (
            f"{path.name}: {int(unknown.sum())} of {len(frame)} rows have an unknown class "
            f"(first: line {first['line']}: {first['value']!r}; the class file has "
            f"0 to {len(classes) - 1})"
        )
        if strict and unknown.mean() > max_unknown:
            raise InputError(
                f"{path.parent / note}; more than the allowed share "
                f"max_unknown = {max_unknown:g}: is this the right class file?"
            )
        notes.append(f"{note}; those labels are left out")
    refused = frame[frame["unsafe"] != ""]
    if len(refused):
        first = refused.iloc[0]
        notes.append(
            f"{path.name}: {len(refused)} of {len(frame)} rows have an unsafe path "
            f"(first: line {first['line']}: {first['path']!r}) and are left out"
        )
    return frame, notes


# === Merging ===


def _rows_of_task(
    task: Task, data_dir: Path, classes: Sequence[str], max_unknown: float, strict: bool
) -> tuple[pd.DataFrame, Findings, list[str]]:
    """Both files of a task -> its rows, one a path, what was found in them, and the notes."""
    parts, files, notes = [], [], []
    for split, name in ((TRAIN, task.train), (VAL, task.val)):
        part, said = read_labels(data_dir / name, classes, max_unknown=max_unknown, strict=strict)
        parts.append(part.assign(task=task.name, split=split, file=name))
        files.append((task.name, split, name, len(part)))
        notes += said
    frame = pd.concat(parts, ignore_index=True)
    safe, known = frame["unsafe"] == "", frame["label"] != MISSING
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
            f"{task.name}: {len(names)} pictures are listed with two labels "
            f"and lose both ({', '.join(names[:3])})"
        )
    if len(repeated):
        count = repeated["path"].nunique()
        notes.append(f"{task.name}: {count} pictures are listed more than once, alike")
    # Val wins over train: sorting puts it last within a path.
    frame = frame.sort_values("split", kind="stable").drop_duplicates("path", keep="last")
    frame.loc[frame["path"].isin(contradictory["path"]), "label"] = MISSING
    by_file = pd.DataFrame(files, columns=["task", "split", "file", "rows"])
    return frame, Findings(by_file, unsafe, unknown, contradictory, repeated), notes


def merge_tables(spec: DataSpec, data_dir: Path, *, strict: bool = True) -> Table:
    """All tasks' CSVs -> one Table with the splits train and val (rules 1, 2, 4 and 5).

    Args:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        strict: refuse unsafe paths and too many unknown labels; False leaves such rows out and
            goes on, for whoever wants to see all of them.

    Raises:
        InputError: naming the file and the line.
    """
    if not data_dir.is_dir():
        raise InputError(f"--data_dir: {data_dir}: is no folder")
    classes = {task.name: read_classes(data_dir / task.classes) for task in spec.tasks}
    frames, found, notes = {}, [], []
    for task in spec.tasks:
        frames[task.name], in_files, said = _rows_of_task(
            task, data_dir, classes[task.name], spec.max_unknown, strict
        )
        found.append(in_files)
        notes += said
    paths = np.unique(np.concatenate([f["path"].to_numpy(dtype=object) for f in frames.values()]))
    index = pd.Index(paths)
    labels = np.full((len(paths), len(frames)), MISSING, np.int32)
    val_of = np.zeros(labels.shape, bool)
    for column, frame in enumerate(frames.values()):
        rows = index.get_indexer(frame["path"])
        labels[rows, column] = frame["label"]
        val_of[rows, column] = frame["split"] == VAL
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
    leaks = pd.concat(frames.values())
    leaks = leaks[leaks["path"].isin(paths[leaked.any(axis=1)])].sort_values("path", kind="stable")
    leaks = leaks[(leaks["split"] == VAL) | (leaks["label"] != MISSING)]
    findings = _join([*found, Findings(leaks=leaks)])
    nowhere = sorted(set(findings.unknown["path"]) - set(paths))
    left_out = dict.fromkeys(nowhere, UNKNOWN_LABEL)
    return Table(classes, paths, labels, splits, tuple(notes), left_out, findings)


def _join(found: Sequence[Findings]) -> Findings:
    """The findings of all, each frame with its own columns only."""
    joined = {}
    for kind, empty in vars(Findings()).items():
        frames = [frame for part in found if len(frame := getattr(part, kind))]
        if frames:
            joined[kind] = pd.concat(frames, ignore_index=True)[list(empty.columns)]
    return Findings(**joined)


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
    return replace(table, labels=labels).drop(~kept, NOT_DRAWN, note)


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


def draw_table(spec: DataSpec, table: Table) -> Table:
    """What is drawn of a merged table: the subset, and the selection split.

    Raises:
        InputError: no picture is left to train on.
    """
    # A picture whose only label was contradictory or leaked has nothing to teach.
    useless = (table.splits == TRAIN) & (table.labels == MISSING).all(axis=1)
    table = table.drop(useless, NO_LABEL)
    table = subset_table(table, {task.name: task.subset for task in spec.tasks}, seed=spec.seed)
    table = hold_out_selection(table, spec.selection, seed=spec.seed)
    if not len(table.rows(TRAIN)):
        raise InputError(f"{spec.source_file}: no picture is left to train on")
    return table


def load_table(spec: DataSpec, data_dir: Path, *, left_out: pd.DataFrame | None = None) -> Table:
    """The table that a run trains on and is examined by.

    Args:
        spec: the data set and its tasks.
        data_dir: the folder that the spec's paths start at.
        left_out: columns path and reason, as `Table.left_out_frame` gives them.
    """
    table = merge_tables(spec, data_dir)
    return draw_table(spec, table) if left_out is None else draw_without(spec, table, left_out)


def draw_without(spec: DataSpec, table: Table, left_out: pd.DataFrame) -> Table:
    """`draw_table` of a merged table, less what is left out of it.

    Missing pictures and near-duplicates are left out before anything is drawn; what turned out to
    be unreadable after it, as only the preparing of the drawn pictures tells.
    """
    at_once = left_out["reason"].isin([MISSING_FILE, NEAR_DUPLICATE])
    drawn = left_out["reason"].isin([NO_LABEL, NOT_DRAWN])
    table = draw_table(spec, drop_paths(table, left_out[at_once]))
    return drop_paths(table, left_out[~at_once & ~drawn])


def drop_paths(table: Table, left_out: pd.DataFrame) -> Table:
    """The table without the pictures that a frame of path and reason names."""
    rows = table.find(left_out["path"])
    there = rows >= 0
    return table.drop(rows[there], left_out["reason"].to_numpy(object)[there].tolist())
