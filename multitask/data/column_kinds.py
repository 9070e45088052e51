"""Recognise what a column holds: classes, identifiers, dates, measures or free text."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from multitask.data.cells import cell_values, column_cells, distinct_cells, is_empty, named_counts
from multitask.data.columns import MISSING_VALUES
from multitask.data.split_column import EXCLUDED, split_of
from multitask.data.table import TRAIN
from multitask.errors import counted

FEWEST_CLASSES, MOST_CLASSES = 2, 1000  # values of a column that is guessed to be a task
FEW_EXAMPLES = 10  # classes with fewer are hard to learn and to judge
_MOST_SPLITS = 20  # values of a split column, including values that name no split
_MOST_OF_GROUP = 50  # mean number of images in a group
_NEARLY_ALL, _MOST = 0.95, 0.8  # shares of the rows that must have the same form
_LOOKED_AT = 5000  # values of a column to test; more would take seconds and change no guess
_WORDS = 4  # free text has at least this mean number of words, and fewer rows per value
SEPARATORS = ("|", ";", "\n", " / ", "/", ",")
# These also occur inside single values: nearly all their parts must be values of other cells.
_DOUBTFUL = ("/", ",")

_SUFFIX = re.compile(
    r"\.(jpe?g|png|webp|tiff?|bmp|gif|jp2|j2k|avif|heic|heif|jpe|jfif)$", re.IGNORECASE
)
_URL = re.compile(r"(https?|ftp|s3|gs)://|www\.", re.IGNORECASE)
_HASH = re.compile(r"[0-9a-f]{8,128}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_WHOLE = re.compile(r"-?\d{1,9}")
_WORD = re.compile(r"[^\W\d_]+")
_YEAR = re.compile(r"(?<!\d)(1\d{3}|20\d{2})(?!\d)|centur|\d{4}-\d\d-\d\d", re.IGNORECASE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DATE_WORDS = _words("""
    c ca circa about before after by or and to of the early mid late first second third fourth last
    half quarter century centuries decade s st nd rd th ad bc bce ce dated probably possibly z t
    january february march april may june july august september october november december
    jan feb mar apr jun jul aug sep sept oct nov dec spring summer autumn winter begun completed
""")
_MEASURE_WORDS = _words("""
    x by h w d l diam diameter height width depth length overall framed unframed frame sheet image
    plate mount support canvas panel cm mm m in inch inches ft feet px kg g lb lbs oz each with
    without and sight
""")
_MEASURES = _words("""
    count counts number num nr no width height depth size length weight year years date age price
    score rating latitude longitude lat lon x y px cm mm area duration page pages total sum rank
    position
""")
_NUMBER_WORDS = _words("number num nr no")
_CODE_WORDS = _words("inv obj cat acc")
_ERAS = _words("ca circa ad bc bce ce century")
_NOT_VISIBLE = _words("""
    credit creditline copyright rights license licence url uri link provenance location
""")
_OBJECTS = _words("""
    object objects artwork work painting item record inventory accession group sheet lot
    identifier id
    objekt objektnummer inventar inventarnummer inventarnr inventaire inventario inventaris
    inventarisnummer objet oggetto
""")
_YES_NO = {"true", "false", "yes", "no", "y", "n"}


@dataclass(frozen=True)
class ColumnFacts:
    """What a column holds.

    Attributes:
        name: the column's name.
        rows: the number of rows.
        values: value -> rows that have it as their only value, the largest first.
        missing: value -> rows, for values that mean "no label".
        several: the number of rows with several values.
        separator: the text between the values of a cell, None if there is none.
        binary: the number of rows that hold bytes or a record.
    """

    name: str
    rows: int
    values: dict[str, int]
    missing: dict[str, int]
    several: int
    separator: str | None
    binary: int

    @property
    def filled(self) -> int:
        """The number of rows with one value."""
        return sum(self.values.values())

    @property
    def mean_rows(self) -> float:
        """The mean number of rows of a value."""
        return self.filled / max(1, len(self.values))

    def share(self, looks: Callable[[str], object]) -> float:
        """The share of the rows whose value passes `looks`, among the most frequent values."""
        most = list(self.values.items())[:_LOOKED_AT]
        rows = sum(rows for value, rows in most if looks(value))
        return rows / max(1, sum(rows for _, rows in most))

    def words(self) -> set[str]:
        """The words of the column's name, in lower case."""
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.name)
        return {word.lower() for word in _WORD.findall(spaced)}


def read_facts(frame: pd.DataFrame, column: str) -> ColumnFacts:
    """Count the values of a column; find the separator of cells with several values."""
    codes, cells = distinct_cells(column_cells(frame, column))
    rows = np.bincount(codes, minlength=len(cells)).tolist()
    binary = sum(rows[i] for i, cell in enumerate(cells) if isinstance(cell, bytes | dict))
    texts = Counter({cell: rows[i] for i, cell in enumerate(cells) if isinstance(cell, str)})
    separator = find_separator(texts)
    values: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    several = 0
    for index, cell in enumerate(cells):
        if isinstance(cell, bytes | dict):
            continue
        parts = [] if is_empty(cell) else cell_values(cell, separator)
        kept = [part for part in dict.fromkeys(parts) if part.casefold() not in MISSING_VALUES]
        if not kept:
            missing["".join(parts[:1])] += rows[index]
        elif len(kept) > 1:
            several += rows[index]
        else:
            values[kept[0]] += rows[index]
    return ColumnFacts(
        column, len(codes), _ordered(values), _ordered(missing), several, separator, binary
    )


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def find_separator(texts: Mapping[str, int]) -> str | None:
    """Find the separator of cells with several values; None if there is none.

    A text is a separator if the parts between it are values of other cells: "Oil|Canvas" has the
    parts "Oil" and "Canvas". The comma in "Monet, Claude" is not one: no cell is "Monet" alone.

    Args:
        texts: cell -> rows.
    """
    plain = {text.strip() for text in texts}
    rows = sum(texts.values())
    for separator in SEPARATORS:
        split = {text: count for text, count in texts.items() if separator in text}
        if sum(split.values()) < max(2, 0.005 * rows):
            continue
        parts = [[part.strip() for part in text.split(separator)] for text in split]
        cells_of = Counter(part for cell in parts for part in set(cell))
        doubtful = separator in _DOUBTFUL
        # Perhaps every cell with a value has the separator: parts that recur are values too.
        known = sum(
            part in plain or (not doubtful and cells_of[part] > 1)
            for cell in parts
            for part in cell
        )
        if known >= (0.9 if doubtful else 0.6) * sum(len(cell) for cell in parts):
            return separator
    return None


# === Kinds ===


def is_image_column(facts: ColumnFacts) -> bool:
    """Whether the values are names of image files."""
    return facts.filled > 0 and facts.share(_SUFFIX.search) >= _NEARLY_ALL


def is_split_column(facts: ColumnFacts) -> bool:
    """Whether the values of at least half of the rows are splits: train, and another one."""
    splits = {split_of(value) for value in facts.values} - {EXCLUDED}
    return (
        len(facts.values) <= _MOST_SPLITS
        and TRAIN in splits
        and len(splits) > 1
        and facts.share(split_of) >= 0.5
    )


def _is_code(value: str) -> bool:
    """Whether a value is a catalogue number such as `SK-A-1234`, `1950.12.3` or `Inv. 12`."""
    words = (word for word in _WORD.findall(value) if word.lower() not in _CODE_WORDS)
    return any(c.isdigit() for c in value) and all(len(w) < 3 or w.isupper() for w in words)


def _is_date(value: str) -> bool:
    text = value.lower().replace(".", "")
    words = set(_WORD.findall(text))
    some = _YEAR.search(value) or (words & _ERAS and any(c.isdigit() for c in text))
    return bool(some) and words <= _DATE_WORDS


def _is_measure(value: str) -> bool:
    words = set(_WORD.findall(value.lower()))
    some = words or "×" in value or '"' in value
    return bool(some) and any(c.isdigit() for c in value) and words <= _MEASURE_WORDS


def _number_reason(facts: ColumnFacts) -> str | None:
    """Why a column of numbers is not a task; None if they look like class indices."""
    numbers = [int(value) for value in facts.values if _WHOLE.fullmatch(value)]
    hints = facts.words() & _MEASURES
    if hints:
        return f'numbers that measure or count ("{min(hints)}" in its name)'
    if len(numbers) < len(facts.values):
        return "numbers with decimals"
    low, high = min(numbers), max(numbers)
    # The indices of a second task may continue those of the first one without a gap.
    full, fewest = (_MOST, 2) if low in (0, 1) else (1, FEW_EXAMPLES)
    if len(numbers) < full * (high - low + 1) or facts.mean_rows < fewest:
        return f"numbers from {low:,} to {high:,}, not consecutive like class indices"
    return None


def no_task_reason(facts: ColumnFacts) -> str | None:
    """Why a column is not a task; None if it may be one."""
    return _form_reason(facts) or _value_reason(facts) or _count_reason(facts)


def _form_reason(facts: ColumnFacts) -> str | None:
    """Why a column cannot be a task, by how its cells are filled and by its name."""
    distinct = len(facts.values)
    if facts.binary > facts.rows / 2:
        return "binary data or records"
    if not distinct and not facts.several:
        return "no value"
    if distinct == 1 and not facts.several:
        return f"one value only: {named_counts(facts.values)}"
    if {value.casefold() for value in facts.values} <= _YES_NO and not facts.several:
        return "yes or no, usually about the record"
    hints = facts.words() & _NOT_VISIBLE
    if hints:
        return f'not visible in the image ("{min(hints)}" in its name)'
    return None


def _value_reason(facts: ColumnFacts) -> str | None:
    """Why a column cannot be a task, by what its values look like."""
    coded = facts.share(_is_code) >= _MOST and facts.mean_rows < 2 * FEW_EXAMPLES
    if coded and names_objects(facts):  # an object number such as 1950.12.3 is not a date
        return _identifier(facts, "codes")
    looks: Sequence[tuple[Callable[[str], object], float, str]] = (
        (_URL.match, _NEARLY_ALL, "URLs"),
        (_SUFFIX.search, _NEARLY_ALL, "names of image files"),
        (_is_date, _MOST, "dates"),
        (_is_measure, _MOST, "measures"),
    )
    for look, share, kind in looks:
        if facts.share(look) >= share:
            return kind
    if facts.share(_NUMBER.fullmatch) >= _NEARLY_ALL:
        hints = facts.words() & _MEASURES
        if facts.mean_rows < 1.1 and facts.share(_WHOLE.fullmatch) == 1 and not hints:
            return _identifier(facts, "numbers that hardly repeat")
        return _number_reason(facts)
    lengths = {len(value) for value in facts.values}
    if facts.share(_HASH.fullmatch) >= _NEARLY_ALL and len(lengths) == 1 and facts.mean_rows < 2:
        return "hashes"
    return _identifier(facts, "codes") if coded else None


def _identifier(facts: ColumnFacts, kind: str) -> str:
    return f"identifier: {len(facts.values):,} {kind} in {counted(facts.filled, 'row')}"


def _count_reason(facts: ColumnFacts) -> str | None:
    """Why a column cannot be a task, by how often its values repeat."""
    distinct = len(facts.values)
    repeated = sum(rows for rows in facts.values.values() if rows > 1)
    words = sum(len(value.split()) * rows for value, rows in facts.values.items())
    is_text = words >= _WORDS * facts.filled and facts.mean_rows < _WORDS
    if facts.filled and (is_text or repeated < facts.filled / 2):
        kind = "free text" if is_text else "names that hardly repeat"
        return f"{kind}: {counted(distinct, 'different value')} in {counted(facts.filled, 'row')}"
    if distinct > MOST_CLASSES and not has_long_tail(facts.values):
        return f"{distinct:,} different values, more than {MOST_CLASSES:,}"
    return None


def has_long_tail(values: Mapping[str, int]) -> bool:
    """Whether most values are rare or there are too many, but most rows have a frequent value.

    Args:
        values: value -> rows.
    """
    enough = [rows for rows in values.values() if rows >= FEW_EXAMPLES]
    many = len(values) > min(MOST_CLASSES, 2 * len(enough))
    allowed = FEWEST_CLASSES <= len(enough) <= MOST_CLASSES
    return many and allowed and 2 * sum(enough) >= sum(values.values())


def group_reason(facts: ColumnFacts) -> str | None:
    """Why the values of a column name groups of images; None if they do not.

    Such a column is an identifier that some rows share: one object with several photographs.
    """
    distinct = len(facts.values)
    largest = max(facts.values.values(), default=0)
    named = names_objects(facts)
    coded = facts.share(_is_code) >= _MOST
    shared = distinct < facts.filled and facts.mean_rows <= _MOST_OF_GROUP
    shared = shared and largest <= max(2, 0.2 * facts.rows)
    looks = (_is_date, _is_measure, _NUMBER.fullmatch)
    other = any(facts.share(look) >= _MOST for look in looks)
    hint = facts.words() & (_MEASURES | _NOT_VISIBLE)
    if not shared or distinct < 2 or not (named or (coded and not hint and not other)):
        return None
    return (
        f"{distinct:,} values in {facts.filled:,} rows, up to {largest:,} images each, such as the "
        "photographs of one object"
    )


def names_objects(facts: ColumnFacts) -> bool:
    """Whether a column's name says that it names objects: "object number", not "object date"."""
    words = facts.words()
    if not words & _OBJECTS or words & (_MEASURES - _NUMBER_WORDS):
        return False
    return facts.share(_is_measure) < _MOST and facts.share(_HASH.fullmatch) < _MOST
