"""Turn a column of a table into the classes and the labels of a task."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from multitask.data.cells import (
    MOST_NAMED,
    cell_values,
    clean_text,
    column_cells,
    distinct_cells,
    named_counts,
)
from multitask.errors import InputError, counted, expected, near, quoted
from multitask.spec import MISSING

# Values that mean "no label", compared case-insensitively.
MISSING_VALUES = ("", "unknown", "n/a", "na", "none", "-", "?", "null")
JOINED_CLASS = "other"  # the class that rare classes are joined as; not the answer `other`
MOST_CLASSES = 10_000  # a column with more values is an identifier
_MOST_COMPARED = 20_000  # values that a wrong key is compared with; more would take seconds


@dataclass(frozen=True)
class ColumnCounts:
    """Counts of what the rows of a column hold; each dict has its largest count first.

    Attributes:
        rows: the number of rows.
        values: value -> rows that have it as their only value.
        examples: value -> the training rows among them; all of them if the split is unknown.
        missing: value -> rows, for values that mean "no label"; "" is an empty cell.
        several: cell as text -> rows, for cells with several values.
        mapped: value -> rows in which `map` replaces it.
        rare: class -> examples, for classes with too few examples.
        unknown: value -> rows, for values that are not among the given classes.
    """

    rows: int
    values: dict[str, int]
    examples: dict[str, int]
    missing: dict[str, int]
    several: dict[str, int]
    mapped: dict[str, int]
    rare: dict[str, int]
    unknown: dict[str, int]


@dataclass(frozen=True)
class ColumnLabels:
    """The labels that a task takes from a column.

    Attributes:
        classes: the class names, sorted, or as given.
        labels: int32 [rows]; MISSING (-1) where a row has no label.
        notes: what was excluded or replaced, one line each.
        counts: what the column holds.
        ambiguous: bool [rows]: no label, because the cell holds several values.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    notes: tuple[str, ...]
    counts: ColumnCounts
    ambiguous: np.ndarray


def label_column(
    frame: pd.DataFrame,
    column: str,
    *,
    task: str | None = None,
    place: str | None = None,
    field: str = "column",
    min_examples: int = 1,
    rare: str = "exclude",
    missing: Sequence[str] = MISSING_VALUES,
    several: str = "exclude",
    separator: str | None = None,
    map: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    train: np.ndarray | None = None,
) -> ColumnLabels:
    """Make the classes and the labels of a task from a column of a table.

    A cell is a value, a list of values, or the text of a list. First `map` replaces values, then
    missing values are dropped; a cell with one value left has a label.

    Args:
        frame: one row per image.
        column: the column with the task's values.
        task: the task's name, with which the notes begin; None: the column's name.
        place: the task's place in the spec, with which errors begin.
        field: the field of the spec that the values come from, for errors.
        min_examples: classes with fewer examples are rare.
        rare: what rare classes become: "exclude", no label; "other", together the class `other`.
        missing: values that mean "no label", compared case-insensitively.
        several: what a cell with several values becomes: "exclude", no label; "first", its first.
        separator: the text between the values of a cell; None if cells are not split.
        map: value -> its replacement; a key may be a whole cell that holds several values.
        classes: the classes of the first training, in their order; None: choose them, sorted.
        train: bool [rows], the rows whose examples are counted; None counts all rows.

    Raises:
        InputError: there is no such column, an option is wrong, or fewer than 2 or more than
            10,000 classes are left. Given `classes` are not checked against the rows.
    """
    place = f"task {quoted(task or column)}" if place is None else place
    _check_options(place, min_examples, rare, several, separator)
    codes, cells = distinct_cells(column_cells(frame, column, place=f"{place}: {field}"))
    renamed = {clean_text(key): clean_text(value) for key, value in (map or {}).items()}
    no_label = frozenset(clean_text(value).casefold() for value in ["", *missing])
    read = [_read_cell(cell, no_label, several, separator, renamed) for cell in cells]
    counts = _count(read, codes, train, classes, min_examples)
    if classes is None:
        _check_values(counts, f"{place}: {field}: {quoted(column)}")
        classes = _choose_classes(counts, min_examples, rare, f"{place}: min_examples")
    join = rare == "other" and JOINED_CLASS in classes
    labels = _to_labels([cell.value for cell in read], classes, join=join)[codes]
    notes = _cell_notes(counts, several) + _map_notes(counts, renamed)
    notes += _class_notes(counts, classes, min_examples, join) + _spelling_notes(counts, classes)
    notes = [f"{task or column}: {note}" for note in notes]
    ambiguous = np.array([cell.value is None and bool(cell.several) for cell in read], bool)
    return ColumnLabels(tuple(classes), labels, tuple(notes), counts, ambiguous[codes])


def _check_options(
    place: str, min_examples: int, rare: str, several: str, separator: str | None
) -> None:
    for option, value, allowed in (
        ("rare", rare, ("exclude", "other")),
        ("several", several, ("exclude", "first")),
    ):
        if value not in allowed:
            raise InputError(
                f"unknown choice {quoted(value)}. {expected(value, allowed)}",
                field=f"{place}: {option}",
            )
    if min_examples < 1:
        raise InputError(f"{min_examples}: must be at least 1", field=f"{place}: min_examples")
    if separator == "":
        raise InputError('"": must not be empty', field=f"{place}: separator")


# === Cells ===


@dataclass(frozen=True)
class _Cell:
    """A distinct cell: its value, or why it has none, and the values that `map` replaced."""

    value: str | None
    missing: str | None
    several: str | None
    mapped: tuple[str, ...]


def _read_cell(
    cell: object,
    no_label: frozenset[str],
    several: str,
    separator: str | None,
    renamed: Mapping[str, str],
) -> _Cell:
    whole = clean_text(cell) if isinstance(cell, str) else ""
    # A whole cell may be mapped too: this is how a user decides what "A; B" is.
    raw = [whole] if whole in renamed else cell_values(cell, separator)
    values = [renamed.get(value, value) for value in raw]
    kept = list(dict.fromkeys(value for value in values if value.casefold() not in no_label))
    single = len(kept) == 1 or (len(kept) > 1 and several == "first")
    return _Cell(
        kept[0] if single else None,
        None if kept else "".join(values[:1]),
        (whole or ", ".join(raw)) if len(kept) > 1 else None,
        tuple(value for value in dict.fromkeys(raw) if value in renamed),
    )


def _ordered(texts: Iterable[tuple[str | None, int]]) -> dict[str, int]:
    """Text -> rows, the largest first; None is not counted."""
    counts: Counter[str] = Counter()
    for text, rows in texts:
        if text is not None:
            counts[text] += rows
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _count(
    read: Sequence[_Cell],
    codes: np.ndarray,
    train: np.ndarray | None,
    classes: Sequence[str] | None,
    min_examples: int,
) -> ColumnCounts:
    """Count what the rows hold; one of `rare` and `unknown` is always empty."""
    rows = np.bincount(codes, minlength=len(read)).tolist()
    seen = codes if train is None else codes[train]
    examples = _ordered(
        zip(
            [cell.value for cell in read],
            np.bincount(seen, minlength=len(read)).tolist(),
            strict=True,
        )
    )
    values = _ordered((cell.value, n) for cell, n in zip(read, rows, strict=True))
    known = values.keys() if classes is None else set(classes)
    fewest = min_examples if classes is None else 0
    return ColumnCounts(
        rows=len(codes),
        values=values,
        examples=examples,
        missing=_ordered((cell.missing, n) for cell, n in zip(read, rows, strict=True)),
        several=_ordered((cell.several, n) for cell, n in zip(read, rows, strict=True)),
        mapped=_ordered(
            (value, n) for cell, n in zip(read, rows, strict=True) for value in cell.mapped
        ),
        rare={name: count for name, count in examples.items() if count < fewest},
        unknown={value: count for value, count in values.items() if value not in known},
    )


# === Classes ===


def _check_values(counts: ColumnCounts, place: str) -> None:
    """Refuse a column without values, with one value, and with too many."""
    values, several = counts.values, counts.several
    if not values and several:
        raise InputError(
            "no row has a single value "
            f"({counted(sum(several.values()), 'row holds', 'rows hold')} several, first: "
            f'{named_counts(several, 1)}); set several = "first"',
            field=place,
        )
    if not values:
        held = f" ({named_counts(counts.missing)})" if counts.missing else ""
        raise InputError(
            f"none of {counts.rows:,} rows has a value{held}; choose another column", field=place
        )
    if len(values) == 1:
        raise InputError(
            f"only one value: {named_counts(values)}; a task needs at least 2", field=place
        )
    if len(values) > MOST_CLASSES:
        raise InputError(
            f"{len(values):,} different values, more than the allowed {MOST_CLASSES:,} classes: "
            "is it an identifier?",
            field=place,
        )


def _choose_classes(
    counts: ColumnCounts, min_examples: int, rare: str, place: str
) -> tuple[str, ...]:
    """Choose the classes, sorted: those that are not rare, and JOINED_CLASS."""
    names = set(counts.examples) - set(counts.rare)
    # The joined class needs enough examples, as every class does.
    joined = sum(counts.rare.values())
    if rare == "other" and joined and (JOINED_CLASS in names or joined >= min_examples):
        names.add(JOINED_CLASS)
    if len(names) < 2:
        raise InputError(
            f"{min_examples}: {counted(len(names), 'class has', 'classes have')} at least "
            f"{counted(min_examples, 'example')} ({named_counts(counts.examples)}); a "
            "task needs at least 2 classes",
            field=place,
        )
    return tuple(sorted(names))


def _to_labels(values: Sequence[str | None], classes: Sequence[str], *, join: bool) -> np.ndarray:
    """int32 [cells]: the label of each value; `join` makes the remaining ones JOINED_CLASS."""
    index_of = {name: index for index, name in enumerate(classes)}
    rest = index_of[JOINED_CLASS] if join else MISSING
    labels = [MISSING if value is None else index_of.get(value, rest) for value in values]
    return np.asarray(labels, np.int32)


# === Notes ===


def _cell_notes(counts: ColumnCounts, several: str) -> list[str]:
    notes = []
    if counts.missing:
        rows = sum(counts.missing.values())
        notes.append(
            f"{rows:,} of {counts.rows:,} rows have no label ({named_counts(counts.missing)})"
        )
    if counts.several:
        rows = sum(counts.several.values())
        effect = "the first is their label" if several == "first" else "they have no label"
        notes.append(
            f"{rows:,} of {counts.rows:,} rows hold several values; {effect} "
            f"({named_counts(counts.several)})"
        )
    return notes


def _map_notes(counts: ColumnCounts, renamed: Mapping[str, str]) -> list[str]:
    notes = []
    if counts.mapped:
        arrows = {f"{key} = {renamed[key]}": rows for key, rows in counts.mapped.items()}
        notes.append(
            f"map replaces values in {counted(sum(arrows.values()), 'row')} "
            f"({named_counts(arrows)})"
        )
    absent = [key for key in renamed if key not in counts.mapped]
    if absent:
        choices = [*counts.values, *counts.several, *counts.missing][:_MOST_COMPARED]
        first = " ".join(f"{quoted(key)}.{near(key, choices)}" for key in absent[:MOST_NAMED])
        notes.append(f"map: {len(absent):,} of {len(renamed):,} keys never occur: {first}")
    return notes


def _class_notes(
    counts: ColumnCounts, classes: Sequence[str], min_examples: int, join: bool
) -> list[str]:
    """Count the values without a class: rare ones, and ones that are not among the classes."""
    notes = []
    if counts.rare:
        rows = sum(counts.values[name] for name in counts.rare)
        be = "is" if len(counts.rare) == 1 else "are"
        effect = f"{be} joined as the class {quoted(JOINED_CLASS)}" if join else f"{be} excluded"
        notes.append(
            f"{counted(len(counts.rare), 'class', 'classes')} with fewer than {min_examples:,} "
            f"training examples {effect}, {counted(rows, 'label')} ({named_counts(counts.rare)})"
        )
    if counts.unknown:
        rows = sum(counts.unknown.values())
        effect = (
            f"their label is the class {quoted(JOINED_CLASS)}" if join else "they have no label"
        )
        first = " ".join(
            f"{quoted(value)}: {count:,}.{near(value, classes)}"
            for value, count in list(counts.unknown.items())[:MOST_NAMED]
        )
        notes.append(
            f"{counted(rows, 'row has', 'rows have')} one of "
            f"{counted(len(counts.unknown), 'unknown label')}, not among the {len(classes):,} "
            f"classes; {effect}: {first}"
        )
    return notes


def _spelling_notes(counts: ColumnCounts, classes: Sequence[str]) -> list[str]:
    """Name the classes that differ only in case, accents or punctuation."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        plain = unicodedata.normalize("NFKD", name.casefold())
        letters = "".join(character for character in plain if character.isalnum())
        # A name of punctuation alone is similar to no other.
        alike.setdefault(letters or name, []).append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    if not groups:
        return []
    first = {name: counts.values.get(name, 0) for name in groups[0]}
    return [
        f"{counted(len(groups), 'class has', 'classes have')} several spellings (first: "
        f"{named_counts(first)}); map can join them"
    ]
