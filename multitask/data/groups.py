"""Groups of images that stay on one side of a split: one object's photographs, one artist's works.

A unit is a set of images that a split moves as a whole. It joins all images that share a group of
any kind: the same reference, the same value of a column, or near-duplicates.
"""

import re
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from multitask.data.cells import cell_values, column_cells, is_empty
from multitask.data.columns import MISSING_VALUES
from multitask.errors import InputError, quoted, shown


def read_groups(
    frame: pd.DataFrame,
    group: str,
    references: Sequence[str],
    *,
    missing: Sequence[str] = MISSING_VALUES,
    place: str = "table: group",
) -> tuple[np.ndarray, list[str]]:
    """Read the group of each row.

    Args:
        frame: one row per image.
        group: a column, or a regular expression over the references whose first group, `(…)`,
            names the group.
        references: the image reference of each row.
        missing: values that mean that a row is in no group.
        place: the field that names the group, for messages.

    Returns:
        object [rows]: the group's name, None for a row that is a group of its own; and notes.

    Raises:
        InputError: it is neither a column nor a pattern, or no row is in a group.
    """
    if group not in [str(name) for name in frame.columns] and "(" in group:
        names = _pattern_groups(group, references, place)
        kind = "do not match the pattern"
    else:
        no_group = {value.casefold() for value in ["", *missing]}
        values = (cell_values(cell) for cell in column_cells(frame, group, place=place))
        texts = (", ".join(cell) for cell in values)
        names = [None if text.casefold() in no_group else text for text in texts]
        kind = "have no group"
    alone = sum(name is None for name in names)
    if names and alone == len(names):
        raise InputError(f"{quoted(group)}: all {alone:,} rows {kind}", field=place)
    notes = []
    if alone:
        notes.append(
            f"group: {alone:,} of {len(names):,} rows {kind}; each of these images is a group of "
            "its own"
        )
    result = np.empty(len(names), object)
    result[:] = names
    return result, notes


def _pattern_groups(pattern: str, references: Sequence[str], place: str) -> list[str | None]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"{shown(pattern)}: not a regular expression: {error}", field=place
        ) from None
    if not compiled.groups:
        raise InputError(
            f"{shown(pattern)}: the pattern needs a group, (…), which names the images' group",
            field=place,
        )
    matches = (compiled.search(str(reference)) for reference in references)
    return [match[1] or None if match else None for match in matches]


def join_units(*groupings: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """Join the rows that share a group in any grouping: connected components.

    Args:
        groupings: each has one group per row; a row whose group is None is a group of its own.

    Returns:
        int64 [rows]: the unit of each row, numbered from 0 by first occurrence.
    """
    rows = len(groupings[0])
    sources, targets, nodes = [], [], rows
    for grouping in groupings:
        names = np.empty(rows, object)
        names[:] = [None if is_empty(name) else name for name in grouping]
        codes, distinct = pd.factorize(names)
        inside = np.flatnonzero(codes >= 0)
        sources.append(inside)
        targets.append(codes[inside] + nodes)
        nodes += len(distinct)
    edges = (np.concatenate(sources), np.concatenate(targets))
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(nodes, nodes))
    _, components = connected_components(graph, directed=False)
    units, _ = pd.factorize(components[:rows])
    return np.asarray(units, np.int64)


def leaking_rows(units: np.ndarray, splits: np.ndarray, *, inner: str, outer: str) -> np.ndarray:
    """Find the rows of one split whose unit is in another split too.

    Args:
        units: int64 [rows], from `join_units`.
        splits: object [rows].
        inner: the split of the rows, e.g. train.
        outer: the other split, e.g. test.

    Returns:
        bool [rows].
    """
    return (splits == inner) & np.isin(units, units[splits == outer])
