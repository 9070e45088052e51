"""Errors with an exit status, and texts for messages: quoted values and suggestions."""

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST_WORD = 200  # characters of a word that are compared with other words


class InputError(ValueError):
    """The user's input is wrong. The text is one line for the user; the exit status is 2.

    Attributes:
        field: the wrong argument or field of the spec, with which the text begins; None if the
            text begins with a file.

    Example:
        >>> import multitask as mt
        >>> try:
        ...     mt.load_spec("demo", batch_size=0)
        ... except mt.InputError as error:
        ...     print(error.field)
        batch_size
    """

    def __init__(self, text: str, *, field: str | None = None):
        super().__init__(text if field is None else f"{field}: {text}")
        self.field = field

    def _render_traceback_(self) -> list[str]:
        """The error in a notebook: the line for the user instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class SpecError(InputError):
    """A field of a spec is wrong."""


class RunError(RuntimeError):
    """A run cannot continue, and its input is not the reason. Exit status 1.

    Example:
        >>> import multitask as mt
        >>> raise mt.RunError("step 12: the loss is not finite")
        Traceback (most recent call last):
            ...
        multitask.errors.RunError: step 12: the loss is not finite
    """


def shown(value: Any, most: int = 80) -> str:
    """A value as messages quote it: control characters escaped, at most `most` characters."""
    text = repr(value[:most] if isinstance(value, str) else value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def quoted(name: Any) -> str:
    """A name in double quotes, shortened and escaped like a value."""
    text = shown(str(name))
    return f'"{text[1:-1] if text[-1] == text[0] else text[1:]}"'


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, and its verb if both forms have one.

    >>> counted(1, "epoch"), counted(1200, "class is", "classes are")
    ('1 epoch', '1,200 classes are')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def near(word: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean "…"?`; an empty text if no choice is similar."""
    matches = difflib.get_close_matches(str(word)[:LONGEST_WORD], list(choices), n=1)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def expected(word: str, choices: Iterable[str]) -> str:
    """`Expected one of: … Did you mean "…"?`, the same in every message."""
    names = sorted(choices)
    return f"Expected one of: {', '.join(names)}.{near(word, names)}"


def install(extra: str) -> str:
    """The command that installs an extra. The package is not on PyPI."""
    return f"pip install '.[{extra}]' (in the folder of this project)"
