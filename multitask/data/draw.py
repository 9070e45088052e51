"""Draw the test or the validation split of a table, stratified over all tasks at once.

This is iterative stratification (Sechidis et al. 2011, "On the stratification of multi-label data")
with three changes:

- It moves whole units (groups of images). scikit-learn does this for one task only.
- Units are ranked by a hash of the seed and their first reference, so the order of the rows does
  not matter.
- The next unit of a class to draw is the one that brings the counts of all classes closest to their
  share, by Pearson's chi-square distance. Combinations of labels count as classes too, as in
  second-order stratification (Szymański and Kajdanowicz 2017).
"""

import hashlib
import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from multitask.errors import InputError, counted, quoted
from multitask.spec import MISSING

_EXCHANGES = 20_000_000  # largest number of tried exchanges times entries of the pool
_FRESH_GAINS = 10_000_000  # draws times entries; above it, several draws use the same gains
_CANDIDATES = 10  # kinds to try before exchanging ends
_NEVER = np.iinfo(np.int64).min  # the gain of a unit that must not move
_SCALE = 2**16  # gains are added as whole numbers: the same sum in every order, on every machine


@dataclass(frozen=True)
class Drawn:
    """The rows that were drawn.

    Attributes:
        rows: bool [rows].
        notes: what the draw could not do, one line each.
    """

    rows: np.ndarray
    notes: tuple[str, ...]


def draw_rows(
    labels: np.ndarray,
    references: Sequence[str] | np.ndarray,
    share: float,
    *,
    seed: int,
    units: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    at_least: int = 1,
    purpose: str = "test",
    tasks: Sequence[str] = (),
    place: str = "table: test",
) -> Drawn:
    """Draw a share of the labelled images, about the same of every class of every task.

    Each class with at least 2 units is on both sides where possible; the last unit of a class is
    never drawn. The same seed draws the same images on every machine, in any order of the rows.

    Args:
        labels: int32 [rows, tasks]; MISSING where the task has no label.
        references: the image reference of each row, by which images are ranked.
        share: the share to draw, in [0, 1).
        seed: the same seed draws the same rows.
        units: int64 [rows], from `join_units`: rows to keep together; None moves single images.
        allowed: bool [rows], the rows to draw from; None allows all.
        at_least: the fewest images to draw of a class with at least 2 units, 0 or more.
        purpose: "test" or "validation": draws for different purposes are independent.
        tasks: the tasks' names, for messages.
        place: the field that sets the share, for messages.

    Raises:
        InputError: the share is out of range, or the groups leave too few images to draw.
    """
    if not 0 <= share < 1:
        raise InputError(f"{share:g}: must be at least 0 and below 1", field=place)
    if units is None:
        units = pd.factorize(np.asarray(references, object))[0]
    usable = (labels != MISSING).any(axis=1)
    usable = usable if allowed is None else usable & allowed
    rows = np.zeros(len(labels), bool)
    if share == 0 or not usable.any():
        return Drawn(rows, ())
    of_row = np.flatnonzero(usable)
    names = [str(references[row]) for row in of_row.tolist()]
    pool = _make_pool(labels[of_row], *_ranked(names, units[of_row], seed, purpose))
    notes = _check_pool(pool, share, names, tasks, place)
    draw = _Draw(pool, share)
    draw.run(at_least)
    rows[of_row] = draw.drawn_units[pool.unit_of_row]
    if not rows.any():
        raise InputError(
            f"{share:g}: no {purpose} image can be drawn, because each image or group is the only "
            "one of some class; raise min_examples, or group by another column",
            field=place,
        )
    return Drawn(rows, (*notes, *_share_notes(rows, of_row, share, purpose)))


def _hash(seed: int, purpose: str, reference: str) -> int:
    # macOS decomposes the accents of file names; the same image has the same rank everywhere.
    text = f"{seed}\0{purpose}\0{unicodedata.normalize('NFC', reference)}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _ranked(
    names: Sequence[str], units: np.ndarray, seed: int, purpose: str
) -> tuple[np.ndarray, list[str]]:
    """Renumber the units of the rows by rank; also return the first reference of each unit.

    A unit's rank is the hash of its first reference, not the lowest hash of all its references:
    the lowest of many hashes is low, and would have large groups drawn before small ones.
    """
    codes, _ = pd.factorize(units)
    first: dict[int, str] = {}
    for code, name in zip(codes.tolist(), names, strict=True):
        if code not in first or name < first[code]:
            first[code] = name
    order = sorted(first, key=lambda code: (_hash(seed, purpose, first[code]), first[code]))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[codes], [first[code] for code in order]


# === The pool ===


@dataclass(frozen=True)
class _Pool:
    """The units to draw from. Units with the same number of rows of each class are of one kind.

    Here, classes are the classes of all tasks, and then other sets of rows to stratify:
    combinations of labels, the labelled rows of each task, and all rows.

    Attributes:
        unit_of_row: int64 [rows]; units are numbered by rank.
        names: the first reference of each unit.
        kind_of_unit: int64 [units]; kinds are numbered by their first unit.
        starts, classes, counts: the rows of each class in a unit of each kind, as a sparse matrix:
            entries starts[k] to starts[k + 1] are those of kind k.
        is_class: bool [classes], whether it is a class of a task.
        task_of: int64 [classes], its task; -1 if it is no class of a task.
        rows_of, units_of: int64 [classes], the numbers of its rows, and of units with such a row.
    """

    unit_of_row: np.ndarray
    names: list[str]
    kind_of_unit: np.ndarray
    starts: np.ndarray
    classes: np.ndarray
    counts: np.ndarray
    is_class: np.ndarray
    task_of: np.ndarray
    rows_of: np.ndarray
    units_of: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """int64 [units]: the rows of each unit."""
        return np.bincount(self.unit_of_row, minlength=len(self.names))


def _class_columns(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes that each row counts for: int64 [rows, columns], -1 for none.

    Returns:
        The columns, and the task of each class (-1 for the other sets).
    """
    columns, task_of, offset = [], [], 0

    def add(codes: np.ndarray, size: int, task: int) -> None:
        nonlocal offset
        columns.append(np.where(codes < 0, -1, codes + offset))
        task_of.append(np.full(size, task))
        offset += size

    for task in range(labels.shape[1]):
        add(labels[:, task].astype(np.int64), int(labels[:, task].max()) + 1, task)
    if labels.shape[1] > 1:
        for task in range(labels.shape[1]):
            add(np.where(labels[:, task] == MISSING, -1, 0), 1, -1)
        _, combined = np.unique(labels, axis=0, return_inverse=True)
        add(combined.reshape(-1), int(combined.max()) + 1, -1)
    add(np.zeros(len(labels), np.int64), 1, -1)  # all rows: the last class
    return np.stack(columns, axis=1), np.concatenate(task_of)


def _make_pool(labels: np.ndarray, unit_of_row: np.ndarray, names: list[str]) -> _Pool:
    columns, task_of = _class_columns(labels)
    size = len(task_of)
    keys = (unit_of_row[:, None] * size + columns)[columns >= 0]
    keys, counts = np.unique(keys, return_counts=True)
    unit, classes = keys // size, keys % size
    bounds = np.searchsorted(unit, np.arange(len(names) + 1))
    entries = np.ascontiguousarray(np.stack([classes, counts], axis=1))
    kinds: dict[bytes, int] = {}
    first_units: list[int] = []
    kind_of_unit = np.empty(len(names), np.int64)
    for index, (start, end) in enumerate(itertools.pairwise(bounds.tolist())):
        kind = kinds.setdefault(entries[start:end].tobytes(), len(first_units))
        if kind == len(first_units):
            first_units.append(index)
        kind_of_unit[index] = kind
    lengths = np.diff(bounds)[first_units]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    taken = np.concatenate([np.arange(bounds[u], bounds[u + 1]) for u in first_units])
    return _Pool(
        unit_of_row,
        names,
        kind_of_unit,
        starts,
        classes[taken],
        counts[taken],
        task_of >= 0,
        task_of,
        np.bincount(classes, weights=counts, minlength=size).astype(np.int64),
        np.bincount(classes, minlength=size),
    )


def _check_pool(
    pool: _Pool, share: float, names: Sequence[str], tasks: Sequence[str], place: str
) -> list[str]:
    """Refuse groups that leave nothing to draw; note classes that can only be on one side."""
    rows, sizes = len(pool.unit_of_row), pool.sizes
    if len(sizes) < 2:
        raise InputError(
            f"{share:g}: all {rows:,} labelled images are in one group, which cannot be on both "
            "sides; group by another column",
            field=place,
        )
    wanted = max(1, round(share * rows))
    too_large = sizes > wanted
    many = counted(int(too_large.sum()), "group has", "groups have")
    if rows - sizes[too_large].sum() < wanted / 2:
        largest = int(sizes.argmax())
        raise InputError(
            f"{share:g}: {many} more than the {counted(wanted, 'image')} to draw (the largest, "
            f"that of {quoted(pool.names[largest])}, has {sizes[largest]:,} of "
            f"{rows:,}), and the others have only {rows - int(sizes[too_large].sum()):,}; group by "
            "another column, or change the share",
            field=place,
        )
    notes = []
    if too_large.any():
        notes.append(
            f"{many} more than the {counted(wanted, 'image')} to draw: kept in training, "
            f"{counted(int(sizes[too_large].sum()), 'image')}"
        )
    for task in range(int(pool.task_of.max()) + 1):
        present = (pool.task_of == task) & (pool.rows_of > 0)
        one_sided = present & (pool.units_of == 1)
        name = quoted(tasks[task]) if len(tasks) else str(task)
        if present.any() and (one_sided == present).all():
            raise InputError(
                f"{share:g}: each class of the task {name} is in one image or group, so that no "
                "class could be on both sides; group by another column, or exclude the task",
                field=place,
            )
        if one_sided.any():
            notes.append(
                f"task {name}: {int(one_sided.sum()):,} of {int(present.sum()):,} classes have "
                "only one image or group, which stays in training"
            )
    return notes


def _share_notes(rows: np.ndarray, of_row: np.ndarray, share: float, purpose: str) -> list[str]:
    drawn, wanted = int(rows.sum()), round(share * len(of_row))
    if abs(drawn - wanted) <= max(1, 0.1 * wanted):
        return []
    return [
        f"{purpose}: {drawn:,} of {len(of_row):,} labelled images are drawn instead of {wanted:,} "
        f"(the share {share:g}), because of rare classes or large groups"
    ]


# === The draw ===


class _Draw:
    """The state of a draw: what is drawn, and how many of each class."""

    def __init__(self, pool: _Pool, share: float):
        self.pool = pool
        self.share = share
        self.expected = share * pool.rows_of
        self.wanted = max(1, round(share * len(pool.unit_of_row)))
        self.drawn = np.zeros(len(pool.rows_of), np.int64)  # rows of each class
        self.in_draw = np.zeros(len(pool.rows_of), np.int64)  # units of each class
        self.drawn_units = np.zeros(len(pool.names), bool)
        kinds = len(pool.starts) - 1
        units = np.argsort(pool.kind_of_unit, kind="stable")
        bounds = np.searchsorted(pool.kind_of_unit[units], np.arange(kinds + 1))
        # The units of each kind that can be drawn, the next one last.
        small = pool.sizes <= self.wanted
        self.waiting = [
            [u for u in units[a:b][::-1].tolist() if small[u]]
            for a, b in itertools.pairwise(bounds)
        ]
        self.left = np.asarray([len(units) for units in self.waiting])
        self.size = self.left.copy()
        self.chosen: list[list[int]] = [[] for _ in self.waiting]
        self.all_kinds = np.arange(kinds)
        self.all_entries = self._entries(self.all_kinds)
        self.rows_in = pool.counts[pool.starts[1:] - 1]  # the last class is that of all rows
        order = np.argsort(pool.classes, kind="stable")
        kind_of_entry = np.repeat(np.arange(kinds), np.diff(pool.starts))
        bounds = np.searchsorted(pool.classes[order], np.arange(len(pool.rows_of) + 1))
        self.kinds_of = [kind_of_entry[order[a:b]] for a, b in itertools.pairwise(bounds)]

    def _entries(self, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entries of some kinds, and where each kind's begin."""
        starts, lengths = self.pool.starts[kinds], np.diff(self.pool.starts)[kinds]
        begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return np.repeat(starts - begins, lengths) + np.arange(lengths.sum()), begins

    def _gains(
        self, entries: np.ndarray, begins: np.ndarray, direction: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """By how much moving a unit of each kind lowers chi-square, and whether it may move.

        A unit with c rows of a class whose distance to its expected count e is d changes d² / e to
        (d - c)² / e when it is drawn, to (d + c)² / e when it is returned. The last unit of a class
        on a side is locked.
        """
        classes, counts = self.pool.classes[entries], self.pool.counts[entries]
        expected, side = self.expected[classes], self.in_draw[classes]
        distance = expected - self.drawn[classes]
        gains = (2 * direction * distance * counts - counts * counts) / expected
        whole = np.rint(gains * _SCALE).astype(np.int64)
        rest = self.pool.units_of[classes] - side if direction > 0 else side
        locked = self.pool.is_class[classes] & (rest <= 1)
        return np.add.reduceat(whole, begins), ~np.logical_or.reduceat(locked, begins)

    def _take(self, kind: int) -> None:
        unit = self.waiting[kind].pop()
        self.chosen[kind].append(unit)
        self._move(unit, 1)

    def _return(self, kind: int) -> None:
        unit = self.chosen[kind].pop()
        self.waiting[kind].append(unit)
        self._move(unit, -1)

    def _move(self, unit: int, direction: int) -> None:
        kind = self.pool.kind_of_unit[unit]
        part = slice(self.pool.starts[kind], self.pool.starts[kind + 1])
        self.drawn[self.pool.classes[part]] += direction * self.pool.counts[part]
        self.in_draw[self.pool.classes[part]] += direction
        self.left[kind] -= direction
        self.drawn_units[unit] = direction > 0

    def _fill(self, index: int, kinds: np.ndarray, wanted: float) -> None:
        """Draw units of some kinds until a class has the wanted number of rows, or nearly."""
        entries, begins = self._entries(kinds)
        counts = self.pool.counts[entries[self.pool.classes[entries] == index]]
        while self.drawn[index] < wanted:
            gains, free = self._gains(entries, begins)
            free &= self.left[kinds] > 0
            # A group that overshoots by more rows than are missing is only drawn as the first one.
            near_enough = free & (counts < 2 * (wanted - self.drawn[index]))
            if self.drawn[index] == 0 and not near_enough.any():
                near_enough = free
            if not near_enough.any():
                return
            gains[~near_enough] = _NEVER
            self._take(int(kinds[gains.argmax()]))
            # With very many kinds, several units are drawn before gains are computed again.
            more = int(len(entries) * (wanted - self.drawn[index])) // _FRESH_GAINS
            if more > 0:
                gains[gains.argmax()] = _NEVER
                # ~x is -x - 1, which does not overflow.
                for best in np.argsort(~gains, kind="stable")[:more].tolist():
                    fits = counts[best] < 2 * (wanted - self.drawn[index])
                    if near_enough[best] and fits and not self._is_locked(int(kinds[best])):
                        self._take(int(kinds[best]))

    def _is_locked(self, kind: int) -> bool:
        classes = self._classes(kind)
        rest = self.pool.units_of[classes] - self.in_draw[classes]
        return self.left[kind] == 0 or bool((rest <= 1).any())

    def _classes(self, kind: int) -> np.ndarray:
        """The classes of the tasks that a unit of a kind has."""
        classes = self.pool.classes[self.pool.starts[kind] : self.pool.starts[kind + 1]]
        return classes[self.pool.is_class[classes]]

    def run(self, at_least: int) -> None:
        """Draw all units: first for the rarest classes, last until all rows have their share."""
        self._start()
        for index in np.lexsort((self.pool.rows_of, self.pool.units_of)).tolist():
            if self.pool.is_class[index]:
                self._fill_class(index, at_least)
        self._top_up()
        self._exchange_all()
        if at_least:
            for index in np.flatnonzero(self.pool.is_class & (self.pool.units_of > 1)).tolist():
                self._repair(index)

    def _start(self) -> None:
        """Draw the integer part of each kind's share, which needs no choice."""
        for kind in self.all_kinds.tolist():
            for _ in range(int(np.floor(self.share * len(self.waiting[kind]) + 1e-9))):
                self._take(kind)

    def _exchange_all(self) -> None:
        """Exchange single units for better ones, as long as chi-square falls."""
        tries = _EXCHANGES // len(self.pool.classes) + 1
        while tries > 0:
            lost, free = self._gains(*self.all_entries, direction=-1)
            lost[~free | (self.left == self.size)] = _NEVER
            best = np.argsort(~lost, kind="stable")[:_CANDIDATES]
            for kind in best[lost[best] > _NEVER].tolist():
                tries -= 1
                if self._exchange(kind, int(lost[kind])):
                    break
            else:
                return

    def _exchange(self, old: int, lost: int) -> bool:
        """Exchange a unit of a kind for the best other one, if chi-square falls."""
        total = len(self.drawn) - 1
        before = abs(self.wanted - self.drawn[total])
        self._return(old)
        gains, free = self._gains(*self.all_entries)
        free &= self.left > 0
        free &= abs(self.wanted - self.drawn[total] - self.rows_in) <= before
        gains[~free] = _NEVER
        new = int(gains.argmax())
        if not free.any() or lost + gains[new] <= 0:
            self._take(old)
            return False
        self._take(new)
        return True

    def _fill_class(self, index: int, at_least: int) -> None:
        """Draw units of a class until it has its share of rows, rounded down."""
        if self.pool.units_of[index] > 1:
            self._fill(
                index, self.kinds_of[index], max(at_least, np.floor(self.expected[index] + 1e-9))
            )

    def _top_up(self) -> None:
        """Draw more units, of whatever class, until all rows have their share."""
        last = len(self.pool.rows_of) - 1
        self._fill(last, self.kinds_of[last], self.wanted)

    def _repair(self, index: int) -> None:
        """Exchange units so that a class whose units are all locked gets into the draw."""
        if self.in_draw[index]:
            return
        units = sorted(unit for kind in self.kinds_of[index] for unit in self.waiting[kind])
        for unit in units:
            kind = int(self.pool.kind_of_unit[unit])
            self._move(unit, 1)
            if self._unlock(self._classes(kind).tolist()):
                self.waiting[kind].remove(unit)
                self.chosen[kind].append(unit)
                return
            self._move(unit, -1)

    def _unlock(self, own: list[int]) -> bool:
        """Return units until each of these classes has one outside; False if it fails."""
        returned: list[int] = []
        for index in own:
            if self.pool.units_of[index] > self.in_draw[index]:
                continue
            kinds = [kind for kind in self.kinds_of[index].tolist() if self._may_return(kind)]
            if not kinds:
                for kind in reversed(returned):
                    self._take(kind)
                return False
            self._return(kinds[0])
            returned.append(kinds[0])
        return True

    def _may_return(self, kind: int) -> bool:
        classes = self._classes(kind)
        return bool(self.chosen[kind]) and bool((self.in_draw[classes] > 1).all())
