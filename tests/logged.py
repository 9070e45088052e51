"""What the package logs, as a list of lines."""

import contextlib
import logging
from collections.abc import Iterator


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]):
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def logged(lines: list[str] | None = None) -> Iterator[list[str]]:
    """Within it, every line of the package's log is appended to the list."""
    lines = [] if lines is None else lines
    package = logging.getLogger("multitask")
    handler, level = _Lines(lines), package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
