"""Read the files of one task: its class file and its CSVs of paths and labels."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd

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
from multitask.data.splitting import TEST, TRAIN
from multitask.reading import MAX_TEXT_BYTES, read_regular
from multitask.spec import MISSING, DataSpec, InputError, Task, near, quoted, shown, why_unsafe

MOST_CLASSES = 1_000_000
# Matches paths that may be unsafe, or that pathlib spells differently. They are rare, and calling
# pathlib for every path would take longer than the rest of the merging.
_UNUSUAL_PATH = re.compile(r"^[./\\]|[\x00-\x1f:\\]|/[./]|/$|\.\.")


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


@dataclass(frozen=True)
class LabelledRows:
    """The rows of all tasks, as their lists or a table's columns give them.

    Attributes:
        classes: task -> its class names, ordered by index; without the tasks with `label_from`.
        frames: task -> its rows, as `label_frame` gives them, with task, split (train or test)
            and file.
        files: columns task, split, file, rows (their number).
        notes: what was skipped, converted, excluded and drawn, one line each.
        validation: paths of the images that a table names as validation.
        units: path -> the number of its unit, which stays on one side of a split; {} for lists.
        ambiguous: task -> paths that are in no row of the task, but may still have a class.
    """

    classes: dict[str, tuple[str, ...]]
    frames: dict[str, pd.DataFrame]
    files: pd.DataFrame
    notes: list[str]
    validation: frozenset[str] = frozenset()
    units: dict[str, int] = field(default_factory=dict)
    ambiguous: dict[str, list[str]] = field(default_factory=dict)


def read_lists(spec: DataSpec, data_dir: Path, *, strict: bool) -> LabelledRows:
    """Read the class file and the CSVs of every task that has them."""
    tasks = [task for task in spec.tasks if task.label_from is None]
    classes = {task.name: read_classes(data_dir / task.classes) for task in tasks}
    frames, counts, notes = {}, [], []
    for task in tasks:
        frames[task.name], files, task_notes = _read_task(
            task, data_dir, classes[task.name], spec.max_unknown, strict
        )
        counts.append(files)
        notes += task_notes
    return LabelledRows(classes, frames, pd.concat(counts, ignore_index=True), notes)


def _read_task(
    task: Task, data_dir: Path, classes: Sequence[str], max_unknown: float, strict: bool
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Read both CSVs of a task: their rows, the number of rows of each file, and the notes."""
    parts, counts, notes = [], [], []
    lists = [(TRAIN, task.train), *([] if task.test is None else [(TEST, task.test)])]
    rows = {
        split: read_label_rows(data_dir / name, classes, may_be_empty=True) for split, name in lists
    }
    if not rows[TRAIN].pairs:
        text = f'no training rows, so that the task "{task.name}" has nothing to learn from'
        if strict:
            remedy = "add rows, or exclude the task with `tasks`"
            raise InputError(f"{data_dir / task.train}: {text}; {remedy}")
        notes.append(f"{Path(task.train).name}: {text}")
    named = {
        split: are_names([text for _, text in part.pairs], classes) for split, part in rows.items()
    }
    # A file whose labels can be read both ways is read like the task's other file.
    clear = next((names for names in named.values() if names is not None), None)
    if clear is None and any(part.pairs for part in rows.values()):
        notes.append(
            f"{task.name}: every class in its lists can be read as an index and as a name; "
            "they are read as indices"
        )
    for split, name in lists:
        frame, file_notes = label_frame(
            data_dir / name,
            rows[split],
            classes,
            named=bool(clear if named[split] is None else named[split]),
            max_unknown=max_unknown,
            strict=strict,
        )
        parts.append(frame.assign(task=task.name, split=split, file=name))
        counts.append((task.name, split, name, len(frame)))
        notes += file_notes
    full = [part for part in parts if len(part)] or parts[:1]
    files = pd.DataFrame(counts, columns=["task", "split", "file", "rows"])
    return pd.concat(full, ignore_index=True), files, notes


def classes_of(task: Task, data_dir: Path) -> tuple[str, ...]:
    """The class names of a task, by index: those of its column or paths, or of its class file."""
    if task.class_names is not None:
        return task.class_names
    return read_classes(data_dir / task.classes)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read a class file (one `index name` per line): the names, ordered by index.

    Raises:
        InputError: the file does not exist, a line has another form, an index is missing or
            repeated, or a name is repeated.
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
                f"{path}: line {number}: {shown(cell, CELL)}: an index must be below "
                f"{MOST_CLASSES:,}"
            )
        if index in names:
            raise InputError(f"{path}: line {number}: index {index} is repeated")
        if name in seen:
            raise InputError(f"{path}: line {number}: the name {quoted(name)} is repeated")
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
    """Read one CSV of paths and labels.

    ArtGAN's files are headerless `path,index`. A header row, blank lines, empty columns, byte
    order marks, CRLF, semicolons or tabs as separators, and class names instead of indices are
    accepted too; the notes list everything that was skipped or converted.

    Args:
        path: the CSV.
        classes: the names of the class file, by index.
        max_unknown: the share of rows whose label may be unknown (rule 5).
        strict: refuse unsafe paths, labels that are neither an index nor a name, and more unknown
            labels than `max_unknown`; False keeps such rows, marked.

    Returns:
        A frame with `line` (int), `path` (str), `value` (str, the label as written), `label` (int;
        MISSING where it is unknown) and `unsafe` (str; why the path is refused, "" for a safe
        path), and the notes.

    Raises:
        InputError: the file is unreadable, is empty or lacks two columns, or `strict` refuses it.
    """
    rows = read_label_rows(path, classes, may_be_empty=False)
    named = bool(are_names([text for _, text in rows.pairs], classes))
    return label_frame(path, rows, classes, named=named, max_unknown=max_unknown, strict=strict)


def read_label_rows(path: Path, classes: Sequence[str], *, may_be_empty: bool) -> Rows:
    """Read the rows of one CSV as text; InputError as for `read_labels`."""
    names = set(classes)
    text = _read_text(path, may_be_empty=may_be_empty)
    return read_rows(text, str(path), lambda cell: is_integer(cell) or cell in names)


def label_frame(
    path: Path,
    rows: Rows,
    classes: Sequence[str],
    *,
    named: bool,
    max_unknown: float,
    strict: bool,
) -> tuple[pd.DataFrame, list[str]]:
    """Make the frame and the notes of `read_labels` from the rows of the file.

    Args:
        path: the CSV.
        rows: its rows.
        classes: the names of the class file, by index.
        named: whether the labels are class names, not indices.
        max_unknown: as for `read_labels`.
        strict: as for `read_labels`.
    """
    paths, unsafe = safe_paths(
        [name for name, _ in rows.pairs], lambda i: f"{path}: line {rows.numbers[i]}", strict
    )
    texts = [text for _, text in rows.pairs]
    if strict and not named:
        refuse_no_index(texts, rows.numbers, classes, str(path))
    frame = pd.DataFrame(
        {
            "line": rows.numbers,
            "path": paths,
            "value": texts,
            "label": read_labels_as(texts, classes, names=named),
            "unsafe": unsafe,
        }
    )
    notes = [f"{path.name}: {note}" for note in rows.notes]
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
        notes.append(f"{note}; those labels are ignored")
    refused = frame[frame["unsafe"] != ""]
    if len(refused):
        first = refused.iloc[0]
        notes.append(
            f"{path.name}: {len(refused)} of {len(frame)} rows have an unsafe path "
            f"(first: line {first['line']}: {shown(first['path'])}) and are excluded"
        )
    return frame, notes


def safe_paths(
    names: Sequence[str], place: Callable[[int], str], strict: bool
) -> tuple[list[str], list[str]]:
    """Check the paths of images as a list or table spells them.

    Args:
        names: the paths as written.
        place: index -> the place of the path, for messages.
        strict: refuse unsafe paths.

    Returns:
        The paths as pathlib spells them, and why each is unsafe ("" for a safe path).

    Raises:
        InputError: a path is unsafe, and `strict`.
    """
    # `./a//b.jpg` becomes `a/b.jpg`, so that one image has one row, whichever split it is in.
    paths, unsafe = list(names), [""] * len(names)
    for index, name in enumerate(names):
        if not _UNUSUAL_PATH.search(name):
            continue
        unsafe[index] = why_unsafe(name) or ""
        if not unsafe[index]:
            paths[index] = str(PurePosixPath(name))
        elif strict:
            raise InputError(f"{place(index)}: {shown(name)}: {unsafe[index]}")
    return paths, unsafe
