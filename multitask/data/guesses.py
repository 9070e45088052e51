"""Guess the role of each column of a table: image, split, group, task, or none.

Each guess has a reason. Reasons and warnings are lines for the user, who decides.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import pandas as pd

from multitask.data.cells import clean_text, column_cells, is_empty, named_counts
from multitask.data.column_kinds import (
    FEW_EXAMPLES,
    ColumnFacts,
    group_reason,
    has_long_tail,
    is_image_column,
    is_split_column,
    names_objects,
    no_task_reason,
    read_facts,
)
from multitask.data.columns import ColumnLabels, label_column
from multitask.data.groups import join_units, read_groups
from multitask.data.split_column import describe_leaks, read_splits
from multitask.errors import InputError, counted, quoted
from multitask.spec import MISSING

Role = Literal["image", "split", "group", "task", "none"]
DETERMINED = 0.98  # one task determines another if it does so in at least this share of the rows
# Words in values that may mean "no label", although they are not among MISSING_VALUES.
_VAGUE = re.compile(
    r"\b(un(known|identified|determined)|not (known|applicable|specified)|tbd|various"
    r"|an[oó]n[iy]e?m\w*|unbekannt\w*|onbekend\w*|inconnu\w*|sconosciut\w|desconocid\w*"
    r"|desconhecid\w*)\b",
    re.IGNORECASE,
)
_LONGEST_NAME = 40  # characters of a task's name


@dataclass(frozen=True)
class ColumnGuess:
    """What a column is.

    Attributes:
        name: the column.
        role: image, split, group, task, or none.
        reason: why, in a few words.
    """

    name: str
    role: Role
    reason: str


@dataclass(frozen=True)
class TaskGuess:
    """A column that is a task, and the options of its labels.

    Attributes:
        name: the task's name, valid in a spec.
        column: the column.
        classes: class -> images, the largest first; includes those that min_examples excludes.
        labels: the number of images with a label.
        missing: value -> images, for values that mean "no label".
        vague: class -> images, for classes that may mean "no label".
        several: the number of images with several values.
        several_as: "exclude", or "first" if most images have several values.
        separator: the text between several values, None if there is none.
        min_examples: the fewest examples of a class; 10 if there is a long tail of rare classes.
    """

    name: str
    column: str
    classes: dict[str, int]
    labels: int
    missing: dict[str, int]
    vague: dict[str, int]
    several: int
    several_as: str
    separator: str | None
    min_examples: int

    def fewer_than(self, examples: int) -> dict[str, int]:
        """The classes with fewer examples."""
        return {name: count for name, count in self.classes.items() if count < examples}


@dataclass(frozen=True)
class Guesses:
    """What the columns of a table are.

    Attributes:
        rows: the number of rows.
        image: the column of the image references.
        split: the column of the splits, None if there is none.
        group: the column of the groups, None if there is none.
        columns: every column with its role, in the order of the table.
        tasks: the tasks.
        warnings: problems for the training or the evaluation, one line each.
    """

    rows: int
    image: str
    split: str | None
    group: str | None
    columns: tuple[ColumnGuess, ...]
    tasks: tuple[TaskGuess, ...]
    warnings: tuple[str, ...]


def guess_columns(
    frame: pd.DataFrame,
    *,
    image: str | None = None,
    split: str | None = None,
    group: str | None = None,
    tasks: Sequence[str] | None = None,
) -> Guesses:
    """Guess the role of each column of a table.

    Args:
        frame: one row per image.
        image: the column of the image references; guessed if None, as are the next three.
        split: the column of the splits.
        group: the column of the groups.
        tasks: the columns of the tasks.

    Raises:
        InputError: the table has no rows, no column of images or no task, or a named column does
            not exist or cannot have the role that it is named for.
    """
    if not len(frame):
        raise InputError("the table has no rows")
    for field, column in (
        ("image", image),
        ("split", split),
        ("group", group),
        *(("tasks", column) for column in tasks or ()),
    ):
        if column is not None:
            column_cells(frame, column, place=field)
    facts = {str(name): read_facts(frame, str(name)) for name in frame.columns}
    roles = _guess_roles(facts, image, split, group, tasks)
    columns = tuple(roles[name] for name in facts)
    image, split, group = (
        next((guess.name for guess in columns if guess.role == role), None)
        for role in ("image", "split", "group")
    )
    chosen = tasks or [guess.name for guess in columns if guess.role == "task"]
    labels, task_guesses, refused = _make_tasks(frame, chosen, facts, named=bool(tasks))
    columns = tuple(
        ColumnGuess(column.name, "none", refused[column.name]) if column.name in refused else column
        for column in columns
    )
    if not task_guesses:
        first = "; ".join(f"{quoted(c.name)}: {c.reason}" for c in columns if c.role == "none")
        raise InputError(f"no column looks like a task ({first}); name the tasks", field="tasks")
    warnings = [
        *_column_warnings(columns, task_guesses),
        *_determined_warnings(labels),
        *_split_warnings(frame, str(image), split, group),
    ]
    return Guesses(len(frame), str(image), split, group, columns, task_guesses, tuple(warnings))


# === Roles ===


def _guess_roles(
    facts: Mapping[str, ColumnFacts],
    image: str | None,
    split: str | None,
    group: str | None,
    tasks: Sequence[str] | None,
) -> dict[str, ColumnGuess]:
    """The role of each column; a column that the caller names has that role."""
    roles = {column: ColumnGuess(column, "task", "named as a task") for column in tasks or ()}

    def take(column: str | None, role: Role, reason: str) -> None:
        if column in roles:
            raise InputError(
                f"{quoted(column)} is named as {roles[column].role} and as {role}", field=role
            )
        if column is not None:
            roles[column] = ColumnGuess(column, role, reason)

    # Named columns come first, because they are not available for a guess.
    for role, column in (("image", image), ("split", split), ("group", group)):
        take(column, cast(Role, role), f"named as the {role}")
    if image is None:
        take(*_guess_image(facts, roles))
    if split is None:
        take(*_guess_split(facts, roles))
    if group is None:
        take(*_guess_group(facts, roles))
    for name, held in facts.items():
        if name in roles:
            continue
        why_not = no_task_reason(held)
        if why_not is None and tasks is not None:
            why_not = "not named as a task"
        if why_not is None:
            reason = f"{len(held.values):,} values that repeat in {held.filled:,} rows"
            take(name, "task", reason)
        else:
            take(name, "none", why_not)
    return roles


def _free(
    facts: Mapping[str, ColumnFacts],
    roles: Mapping[str, ColumnGuess],
    looks: Callable[[ColumnFacts], object],
) -> list[ColumnFacts]:
    return [f for name, f in facts.items() if name not in roles and looks(f)]


def _guess_image(
    facts: Mapping[str, ColumnFacts], roles: Mapping[str, ColumnGuess]
) -> tuple[str, Role, str]:
    columns = _free(facts, roles, is_image_column)
    if not columns:
        raise InputError(
            f"no column holds names of image files; name one. Expected one of: {', '.join(facts)}.",
            field="image",
        )
    # Columns of thumbnails or of main photographs repeat values or have gaps.
    best = max(columns, key=lambda column: len(column.values))
    return best.name, "image", "names of image files"


def _guess_split(
    facts: Mapping[str, ColumnFacts], roles: Mapping[str, ColumnGuess]
) -> tuple[str | None, Role, str]:
    columns = _free(facts, roles, is_split_column)
    if not columns:
        return None, "split", ""
    best = max(columns, key=lambda column: column.filled)
    return best.name, "split", f"splits: {named_counts(best.values, 5)}"


def _guess_group(
    facts: Mapping[str, ColumnFacts], roles: Mapping[str, ColumnGuess]
) -> tuple[str | None, Role, str]:
    # A column that may be a task is not a group: each of its classes would be in one split only.
    columns = _free(
        facts, roles, lambda column: group_reason(column) and no_task_reason(column) is not None
    )
    if not columns:
        return None, "group", ""
    best = max(columns, key=lambda held: (names_objects(held), held.filled, held.mean_rows))
    return best.name, "group", group_reason(best) or ""


# === Tasks ===


def task_name(column: str, taken: Sequence[str] = ()) -> str:
    """A valid name of a task: lower-case letters, digits and `_`, at most 40 characters.

    Args:
        column: the column's name.
        taken: names of other tasks.
    """
    plain = unicodedata.normalize("NFKD", column).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    name = (name if name[:1].isalpha() else f"task_{name}".strip("_"))[:_LONGEST_NAME].strip("_")
    number, base = 2, name
    while name in taken:
        suffix = f"_{number}"
        name, number = base[: _LONGEST_NAME - len(suffix)] + suffix, number + 1
    return name


def _make_tasks(
    frame: pd.DataFrame,
    columns: Sequence[str],
    facts: Mapping[str, ColumnFacts],
    *,
    named: bool,
) -> tuple[dict[str, ColumnLabels], tuple[TaskGuess, ...], dict[str, str]]:
    """Make the labels and the guess of each task.

    Returns:
        The labels; the guesses; and column -> reason, for columns that cannot be tasks after all.
        If the user named the column, its reason is raised instead.
    """
    labels: dict[str, ColumnLabels] = {}
    guesses, refused = [], {}
    for column in columns:
        name, held = task_name(column, list(labels)), facts[column]
        several_as = "first" if held.several > held.filled else "exclude"
        fewest = FEW_EXAMPLES if has_long_tail(held.values) else 1
        try:
            result = label_column(
                frame,
                column,
                place=quoted(column),
                several=several_as,
                separator=held.separator,
                min_examples=fewest,
            )
        except InputError as error:
            reason = str(error).removeprefix(f"{error.field}: ")
            if named:
                raise InputError(f"{quoted(column)}: {reason}", field="tasks") from None
            refused[column] = reason
            continue
        labels[name] = result
        values = result.counts.values
        guesses.append(
            TaskGuess(
                name,
                column,
                values,
                int((result.labels != MISSING).sum()),
                result.counts.missing,
                {value: count for value, count in values.items() if _VAGUE.search(value)},
                sum(result.counts.several.values()),
                several_as,
                held.separator,
                fewest,
            )
        )
    return labels, tuple(guesses), refused


# === Warnings ===


def _column_warnings(columns: Sequence[ColumnGuess], tasks: Sequence[TaskGuess]) -> list[str]:
    """Warn of columns with one value, classes with one example, and classes like "unknown"."""
    warnings = [
        f"column {quoted(column.name)}: {column.reason}"
        for column in columns
        if column.role == "none" and column.reason.startswith("one value only")
    ]
    for task in tasks:
        single = task.fewer_than(2)
        if single and task.min_examples < 2:
            warnings.append(
                f"task {quoted(task.name)}: {len(single):,} of {len(task.classes):,} classes have "
                f"one example ({named_counts(single)}), too few to train and to evaluate; raise "
                "min_examples"
            )
        if task.vague:
            warnings.append(
                f'task {quoted(task.name)}: classes that may mean "no label": '
                f"{named_counts(task.vague)}; if so, add them to missing"
            )
    return warnings


def determination(determining: np.ndarray, determined: np.ndarray) -> tuple[float, float, int]:
    """How far one task's labels determine another's.

    Only classes with at least two images count: a class with one image determines any label.

    Args:
        determining: int32 [rows], labels.
        determined: int32 [rows], labels.

    Returns:
        The share of the rows that have the majority label of their class, the share that has the
        majority label of all rows, and the number of rows.
    """
    both = (determining != MISSING) & (determined != MISSING)
    classes, labels = determining[both].astype(np.int64), determined[both].astype(np.int64)
    sizes = np.bincount(classes)
    kept = sizes[classes] > 1
    classes, labels = classes[kept], labels[kept]
    if not len(classes):
        return 0.0, 0.0, 0
    width = int(labels.max()) + 1
    pairs, counts = np.unique(classes * width + labels, return_counts=True)
    largest = np.zeros(int(classes.max()) + 1, np.int64)
    np.maximum.at(largest, pairs // width, counts)
    rows = len(classes)
    return float(largest.sum() / rows), float(np.bincount(labels).max() / rows), rows


def _determined_warnings(labels: Mapping[str, ColumnLabels]) -> list[str]:
    """One line for each task that another one determines."""
    warnings = []
    for one, determining in labels.items():
        for two, determined in labels.items():
            if one == two:
                continue
            share, majority, rows = determination(determining.labels, determined.labels)
            # If nearly all rows have one label, any task determines it.
            if share < DETERMINED or majority >= DETERMINED:
                continue
            kind = "a function of" if share == 1 else "nearly a function of"
            warnings.append(
                f"task {quoted(two)} is {kind} task {quoted(one)}: {_percent(share)} of {rows:,} "
                f"images have the most frequent {quoted(two)} of their {quoted(one)}; its accuracy "
                f"adds nothing to that of {quoted(one)}"
            )
    return warnings


def _percent(share: float) -> str:
    """A share in percent; a share below 1 is never rounded up to 100 %."""
    return "100 %" if share == 1 else f"{min(share * 100, 99.9):.1f} %"


def _split_warnings(
    frame: pd.DataFrame, image: str, split: str | None, group: str | None
) -> list[str]:
    """Warn of rows that the split column excludes, and of images or groups in two splits."""
    cells = column_cells(frame, image)
    references = [
        str(row) if is_empty(cell) else clean_text(cell) for row, cell in enumerate(cells)
    ]
    grouping: list[np.ndarray] = []
    warnings: list[str] = []
    if group is not None:
        groups, warnings = read_groups(frame, group, references, place="group")
        grouping.append(groups)
    repeated = len(references) - len(set(references))
    if repeated:
        warnings.append(
            f"{counted(repeated, 'row repeats', 'rows repeat')} the image of an earlier row"
        )
    if split is not None:
        splits, notes = read_splits(frame, split, place="split")
        units = join_units(references, *grouping)
        warnings += [*notes, *describe_leaks(units, splits, references)]
    return warnings
