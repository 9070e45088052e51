"""Write the guesses about a table as the text of a spec, each with its reason in a comment."""

import json
import re
from collections.abc import Mapping, Sequence

from multitask.data.cells import named_counts
from multitask.data.column_kinds import FEW_EXAMPLES
from multitask.data.columns import MISSING_VALUES
from multitask.data.guesses import ColumnGuess, Guesses, TaskGuess
from multitask.errors import counted

_WIDTH = 100  # characters of a line of comment
_MOST_CLASSES = 8  # classes that a comment names
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def quote_toml(text: str) -> str:
    """A text as a basic string of TOML, on one line."""
    # JSON's escapes are valid in TOML, but JSON does not escape DEL and the C1 control characters.
    quoted = json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)


def _comment(text: str, indent: str = "") -> list[str]:
    """A text as lines of comment; a long one is broken at spaces."""
    lines, line = [], "#" + indent
    for word in _CONTROL.sub(" ", text).split():
        if len(line) + 1 + len(word) > _WIDTH and line != "#" + indent:
            lines.append(line)
            line = "#" + indent + " "
        line += f" {word}"
    return [*lines, line]


def _table_toml(values: Mapping[str, str]) -> str:
    pairs = ", ".join(f"{quote_toml(key)} = {quote_toml(value)}" for key, value in values.items())
    return f"{{ {pairs} }}"


def _list_toml(values: Sequence[str]) -> str:
    return f"[{', '.join(quote_toml(value) for value in values)}]"


def write_spec(
    guesses: Guesses,
    *,
    file: str,
    name: str = "collection",
    settings: str = "",
    task_settings: str = "",
    test: float = 0.2,
) -> str:
    """Write the spec of a table, with a comment for each guess.

    Args:
        guesses: the roles of the columns.
        file: the table's file, as the spec names it.
        name: the spec's name.
        settings: lines of TOML before the tables, for instance `images = "photos"`.
        task_settings: lines of TOML in each `[[task]]`, for instance its head.
        test: the share to draw as the test set if the table has no column of splits.

    Returns:
        The text of a TOML file.
    """
    lines = [
        *_comment(
            f"Guessed from {guesses.rows:,} rows. Each guess has its reason; correct what is wrong."
        ),
        *_comment("Lines after a # show other options."),
        "",
    ]
    if guesses.warnings:
        lines += ["# Warnings:"]
        for warning in guesses.warnings:
            lines += _comment(f"- {warning}")
        lines += [""]
    lines += [f"name = {quote_toml(name)}", *settings.splitlines(), ""]
    lines += [*_table_lines(guesses, file, test), ""]
    for task in guesses.tasks:
        lines += [*_task_lines(task, task_settings), ""]
    lines += _other_lines(guesses)
    return "\n".join(lines).rstrip("\n") + "\n"


def _reason_of(guesses: Guesses, column: str | None) -> str:
    """The reason for a column, as the beginning of a sentence."""
    reason = next((guess.reason for guess in guesses.columns if guess.name == column), "")
    return reason[:1].upper() + reason[1:]


def _table_lines(guesses: Guesses, file: str, test: float) -> list[str]:
    lines = ["[table]", f"file = {quote_toml(file)}"]
    lines += _comment(f"{_reason_of(guesses, guesses.image)}.")
    lines += [f"image = {quote_toml(guesses.image)}"]
    if guesses.split is None:
        lines += _comment("No column names the test images: this share is drawn as the test set.")
        lines += [f"test = {test:g}", '# split = "a column with train, validation and test"']
    else:
        lines += _comment(f"{_reason_of(guesses, guesses.split)}.")
        lines += [f"split = {quote_toml(guesses.split)}", f"# test = {test:g}"]
    if guesses.group is None:
        lines += _comment(
            "No column names groups of images. All images of a group are on one side of the split, "
            "such as the photographs of one object or the works of one artist."
        )
        lines += ['# group = "a column, or a pattern over the path with one group, (…)"']
    else:
        lines += _comment(
            f"{_reason_of(guesses, guesses.group)}. A group is on one side of the split."
        )
        lines += [f"group = {quote_toml(guesses.group)}"]
    return lines


def _task_lines(task: TaskGuess, settings: str) -> list[str]:
    lines = ["[[task]]", f"name = {quote_toml(task.name)}"]
    lines += _comment(
        f"{len(task.classes):,} classes in {sum(task.classes.values()):,} images: "
        f"{named_counts(task.classes, _MOST_CLASSES)}."
    )
    lines += [f"column = {quote_toml(task.column)}", *settings.splitlines()]
    lines += [*_rare_lines(task), *_missing_lines(task), *_several_lines(task)]
    first = next(iter(task.classes))
    lines += _comment("Other spellings of a class:")
    return [*lines, f"# map = {_table_toml({f'another {first}': first})}"]


def _rare_lines(task: TaskGuess) -> list[str]:
    few = task.fewer_than(FEW_EXAMPLES)
    lines = []
    if few:
        have = "class has" if len(few) == 1 else "classes have"
        lines = _comment(
            f"{len(few):,} {have} fewer than {FEW_EXAMPLES} images: {named_counts(few)}."
        )
    if task.min_examples > 1:
        lines += _comment("Most images have one of the remaining classes.")
        lines += [f"min_examples = {task.min_examples}"]
    else:
        lines += [f"# min_examples = {FEW_EXAMPLES}"]
    return [
        *lines,
        '# rare = "exclude"    # or "other": join the rare classes as the class "other"',
    ]


def _missing_lines(task: TaskGuess) -> list[str]:
    missing = f"{sum(task.missing.values()):,} of all images have no label"
    held = {name: count for name, count in task.missing.items() if name}
    lines = _comment(f"{missing} ({named_counts(held)})." if held else f"{missing}.")
    if not task.missing:
        lines = []
    values = list(MISSING_VALUES)
    if task.vague:
        lines += _comment(
            f'These values may mean "no label": {named_counts(task.vague, _MOST_CLASSES)}.'
        )
        values += list(task.vague)[:_MOST_CLASSES]
    return [*lines, f"# missing = {_list_toml(values)}"]


def _several_lines(task: TaskGuess) -> list[str]:
    lines = []
    if task.separator is not None:
        lines += _comment(f"Cells with {quote_toml(task.separator)} hold several values.")
        lines += [f"separator = {quote_toml(task.separator)}"]
    if not task.several:
        return ['# several = "exclude"    # or "first": no image has several values', *lines]
    lines += _comment(
        f"{counted(task.several, 'image has', 'images have')} several values: no label, or the "
        "first one."
    )
    if task.several_as == "first":
        return [*lines, 'several = "first"    # or "exclude"']
    return [*lines, '# several = "exclude"    # or "first"']


def _other_lines(guesses: Guesses) -> list[str]:
    """The columns that are not used, each with the reason."""
    other: list[ColumnGuess] = [guess for guess in guesses.columns if guess.role == "none"]
    if not other:
        return []
    lines = ["# Columns that are not used:"]
    for guess in other:
        lines += _comment(f"- {quote_toml(guess.name)}: {guess.reason}")
    return lines
