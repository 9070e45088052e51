"""The CSVs of all tasks -> one Table, one row an image: leak-free splits, subset, class weights.

The rules that are named here are those of the data in the project's design:
1 one row an image, 2 no exam seen before, 3 no exam used for choosing, 4 contradictions lose
their label, 5 unknown labels are filtered, 9 subset, 10 weights.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from sklearn.utils.class_weight import compute_class_weight

from multitask.data.lists import (
    CELL,
    Rows,
    are_names,
    as_index,
    is_integer,
    lines,
    read_labels_as,
    read_rows,
    refuse_no_index,
    without_marks,
)
from multitask.data.matching import Match, match_files
from multitask.reading import MAX_TEXT_BYTES, read_regular
from multitask.spec import (
    MISSING,
    DataSpec,
    InputError,
    Task,
    field_of,
    near,
    quoted,
    shown,
    why_unsafe,
)

TRAIN, SELECTION, VAL = SPLITS = ("train", "selection", "val")
# Why a picture is left out. The first comes of the merging, the next two are known before anything
# is drawn, the last two come of the drawing. Every other reason is that of a file which turned out
# to be unreadable.
UNKNOWN_LABEL = "its label is unknown"
MISSING_FILE, NEAR_DUPLICATE = "no such file", "near-duplicate of an exam's picture"
NO_LABEL, NOT_DRAWN = "no label is left", "not drawn for the subset"
MOST_CLASSES = 1_000_000
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
        respelt: `file_path`, `kind`; rows whose path (as it stands there) is spelt otherwise than
            the one file that it means; every other frame has the file's path for it.
        ambiguous: `candidates`; rows without a file, whose path is spelt like several files.
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
    respelt: pd.DataFrame = _no_rows("file_path", "kind")
    ambiguous: pd.DataFrame = _no_rows("candidates")
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

    @property
    def without_test(self) -> tuple[str, ...]:
        """The tasks of which no image of the test set has a label."""
        return tuple(task for task in self.tasks if not len(self.labels_of(task, VAL)))

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


# === Reading the files ===


def _read_text(path: Path, *, may_be_empty: bool = False) -> str:
    try:
        text = read_regular(path, MAX_TEXT_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        where = "" if path.parent.is_dir() else f" (there is no folder {path.parent})"
        raise InputError(f"{path}: no such file{where}.{near(path.name, siblings)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not text.strip() and not may_be_empty:
        raise InputError(f"{path}: the file is empty")
    return text


def read_classes(path: Path) -> tuple[str, ...]:
    """A class file (`index name` a line) -> the names, by their index.

    Raises:
        InputError: no such file, a line of another form, an index that is missing or comes
            twice, a name that comes twice.
    """
    names: dict[int, str] = {}
    seen: set[str] = set()
    text, _ = without_marks(_read_text(path))
    for number, line in enumerate(lines(text), start=1):
        if not line.strip():
            continue
        cell, _, name = line.strip().partition(" ")
        name, index = name.strip(), as_index(cell, MOST_CLASSES)
        if not cell.isdecimal() or not name:
            raise InputError(f"{path}: line {number}: {shown(cell, CELL)}: expected `index name`")
        if index == MISSING:
            raise InputError(
                f"{path}: line {number}: {shown(cell, CELL)}: an index is below {MOST_CLASSES:,}"
            )
        if index in names:
            raise InputError(f"{path}: line {number}: index {index} stands twice")
        if name in seen:
            raise InputError(f"{path}: line {number}: the name {quoted(name)} stands twice")
        names[index] = name
        seen.add(name)
    gaps = sorted(set(range(len(names))) - names.keys())
    if gaps:
        raise InputError(
            f"{path}: index {gaps[0]} is missing; {len(names)} classes need 0 to {len(names) - 1}"
        )
    return tuple(names[index] for index in range(len(names)))


def read_labels(
    path: Path, classes: Sequence[str], *, max_unknown: float, strict: bool = True
) -> tuple[pd.DataFrame, list[str]]:
    """One CSV -> its rows.

    ArtGAN's files are headerless `path,index`. A header row, blank lines, empty columns, byte
    order marks, CRLF, semicolons or tabs between the columns and class names in the place of
    indices are read too, and said.

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
        InputError: unreadable, empty, not two columns, or what `strict` refuses.
    """
    rows = _read_rows(path, classes, may_be_empty=False)
    named = bool(are_names([text for _, text in rows.pairs], classes))
    return _labelled(path, rows, classes, named=named, max_unknown=max_unknown, strict=strict)


def _read_rows(path: Path, classes: Sequence[str], *, may_be_empty: bool) -> Rows:
    names = set(classes)
    text = _read_text(path, may_be_empty=may_be_empty)
    return read_rows(text, str(path), lambda cell: is_integer(cell) or cell in names)


def _labelled(
    path: Path,
    rows: Rows,
    classes: Sequence[str],
    *,
    named: bool,
    max_unknown: float,
    strict: bool,
) -> tuple[pd.DataFrame, list[str]]:
    """What `read_labels` gives; `named`: the classes stand there by name."""
    numbers, notes = rows.numbers, [f"{path.name}: {note}" for note in rows.notes]
    # `./a//b.jpg` is `a/b.jpg`: one picture, one row, in whichever split.
    names, unsafe = [name for name, _ in rows.pairs], [""] * len(rows.pairs)
    for index, name in enumerate(names):
        if not _UNUSUAL_PATH.search(name):
            continue
        unsafe[index] = why_unsafe(name) or ""
        if not unsafe[index]:
            names[index] = str(PurePosixPath(name))
        elif strict:
            raise InputError(f"{path}: line {numbers[index]}: {shown(name)}: {unsafe[index]}")
    texts = [text for _, text in rows.pairs]
    if strict and not named:
        refuse_no_index(texts, numbers, classes, str(path))
    labels = read_labels_as(texts, classes, names=named)
    frame = pd.DataFrame(
        {"line": numbers, "path": names, "value": texts, "label": labels, "unsafe": unsafe}
    )
    unknown = frame["label"] == MISSING
    if unknown.any():
        first = frame[unknown].iloc[0]
        note = (
            f"{path.name}: {int(unknown.sum())} of {len(frame)} rows have an unknown class "
            f"(first: line {first['line']}: {shown(first['value'], CELL)}; the class file has "
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
            f"(first: line {first['line']}: {shown(first['path'])}) and are left out"
        )
    return frame, notes


# === Merging ===


def _read_task(
    task: Task, data_dir: Path, classes: Sequence[str], max_unknown: float, strict: bool
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Both files of a task -> their rows, how many each file has, and the notes."""
    parts, files, notes = [], [], []
    lists = [(TRAIN, task.train), *([] if task.val is None else [(VAL, task.val)])]
    rows = {split: _read_rows(data_dir / name, classes, may_be_empty=True) for split, name in lists}
    if not rows[TRAIN].pairs:
        text = f'no training rows, so that the task "{task.name}" has nothing to learn from'
        if strict:
            remedy = "add rows, or leave the task out with --tasks"
            raise InputError(f"{data_dir / task.train}: {text}; {remedy}")
        notes.append(f"{Path(task.train).name}: {text}")
    named = {
        split: are_names([text for _, text in found.pairs], classes)
        for split, found in rows.items()
    }
    clear = next((names for names in named.values() if names is not None), None)
    if clear is None and any(found.pairs for found in rows.values()):
        notes.append(
            f"{task.name}: every class in its lists can be read as an index and as a name; "
            "they are read as indices"
        )
    for split, name in lists:
        part, said = _labelled(
            data_dir / name,
            rows[split],
            classes,
            named=bool(clear if named[split] is None else named[split]),
            max_unknown=max_unknown,
            strict=strict,
        )
        parts.append(part.assign(task=task.name, split=split, file=name))
        files.append((task.name, split, name, len(part)))
        notes += said
    full = [part for part in parts if len(part)] or parts[:1]
    by_file = pd.DataFrame(files, columns=["task", "split", "file", "rows"])
    return pd.concat(full, ignore_index=True), by_file, notes


def _find_files(frame: pd.DataFrame, matches: Mapping[str, Match]) -> tuple[pd.DataFrame, Findings]:
    """Rows with the paths of their files, and what was found of those that are spelt otherwise."""
    found = frame[frame["path"].isin(list(matches))]
    matched = [matches[path] for path in found["path"]]
    found = found.assign(
        file_path=[match.file for match in matched],
        kind=[match.kind for match in matched],
        candidates=[", ".join(match.files) for match in matched],
    )
    one = found["file_path"].notna()
    frame = frame.assign(path=[_file_of(path, matches) for path in frame["path"]])
    return frame, Findings(respelt=found[one], ambiguous=found[~one])


def _file_of(path: str, matches: Mapping[str, Match]) -> str:
    match = matches.get(path)
    return path if match is None or match.file is None else match.file


def describe_respelt(findings: Findings) -> list[str]:
    """The paths that are spelt otherwise than their file: those that are read, those that are not;
    a line each."""
    said = []
    if len(findings.respelt):
        paths = findings.respelt.drop_duplicates("path")
        kinds = ", ".join(
            f"{kind} {count:,}" for kind, count in paths["kind"].value_counts().items()
        )
        first = paths.iloc[0]
        said.append(
            f"{len(paths):,} paths are spelt otherwise than their file, which is read all the same "
            f"({kinds}; first: {Path(first['file']).name}: line {first['line']}: "
            f"{shown(first['path'])} is {shown(first['file_path'])})"
        )
    if len(findings.ambiguous):
        paths = findings.ambiguous.drop_duplicates("path")
        first = paths.iloc[0]
        said.append(
            f"{len(paths):,} paths have no file, and several files that are spelt alike, of which "
            f"none is taken (first: {Path(first['file']).name}: line {first['line']}: "
            f"{shown(first['path'])}: {first['candidates']})"
        )
    return said


def _rows_of_task(frame: pd.DataFrame) -> tuple[pd.DataFrame, Findings, list[str]]:
    """The rows of a task's files -> one a path, what was found in them, and the notes."""
    notes, task = [], frame["task"].iloc[0] if len(frame) else ""
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
            f"{task}: {len(names)} pictures are listed with two labels "
            f"and lose both ({', '.join(names[:3])})"
        )
    if len(repeated):
        count = repeated["path"].nunique()
        notes.append(f"{task}: {count} pictures are listed more than once, alike")
    # Val wins over train: sorting puts it last within a path.
    frame = frame.sort_values("split", kind="stable").drop_duplicates("path", keep="last")
    frame.loc[frame["path"].isin(contradictory["path"]), "label"] = MISSING
    found = Findings(unsafe=unsafe, unknown=unknown, contradictory=contradictory, repeated=repeated)
    return frame, found, notes


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
    frames, found, notes, notes_of = {}, [], [], {}
    for task in spec.tasks:
        frames[task.name], by_file, notes_of[task.name] = _read_task(
            task, data_dir, classes[task.name], spec.max_unknown, strict
        )
        found.append(Findings(by_file))
    matches = _match(frames.values(), data_dir / spec.images)
    for task in spec.tasks:
        frame, spelling = _find_files(frames[task.name], matches)
        frames[task.name], in_files, said = _rows_of_task(frame)
        found += [spelling, in_files]
        notes += notes_of[task.name] + said
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
    notes += describe_respelt(findings)
    nowhere = sorted(set(findings.unknown["path"]) - set(paths))
    left_out = dict.fromkeys(nowhere, UNKNOWN_LABEL)
    return Table(classes, paths, labels, splits, tuple(notes), left_out, findings)


def _match(frames: Iterable[pd.DataFrame], image_dir: Path) -> dict[str, Match]:
    """`match_files` of all rows' paths; {} where there is no image folder."""
    if not image_dir.is_dir():
        return {}
    paths = [frame.loc[frame["unsafe"] == "", "path"] for frame in frames]
    return match_files(pd.unique(pd.concat(paths)), image_dir)


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
        InputError: no picture is left to train on, or none for a task.
    """
    # A picture whose only label was contradictory or leaked has nothing to teach.
    useless = (table.splits == TRAIN) & (table.labels == MISSING).all(axis=1)
    table = table.drop(useless, NO_LABEL)
    table = subset_table(table, {task.name: task.subset for task in spec.tasks}, seed=spec.seed)
    table = hold_out_selection(table, spec.selection, seed=spec.seed)
    if not len(table.rows(TRAIN)):
        raise InputError(f"{spec.source_file}: no picture is left to train on")
    for task in table.tasks:
        if not len(table.labels_of(task, TRAIN)):
            raise InputError(
                f"{spec.place(task, 'train')}: no training label of this task is left (without "
                "test images, missing files and contradictions); add rows, or leave the task out "
                "with --tasks"
            )
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
