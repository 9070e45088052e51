"""Console output: log lines and notes; closed pipes are handled as in other Unix tools."""

import contextlib
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells report a tool that the signal ended


def open_standard_streams() -> None:
    """Open the null device for standard streams that were closed before the start (`>&-`).

    Otherwise the next file to be opened would get such a descriptor, and a library would write its
    console output into that file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
            os.set_inheritable(descriptor, True)
            if getattr(sys, name) is None:
                mode = "r" if name == "stdin" else "w"
                setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def _without_reader(stream: TextIO) -> bool:
    """Return whether a stream is a closed pipe or socket; True if unknown."""
    if not hasattr(select, "poll"):  # Windows shows it only when something is written
        return True
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # errors are always reported
        return bool(poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no descriptor
        return True


def _mute(stream: TextIO) -> None:
    """Discard buffered and future output of a stream."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def note(text: str, stream: TextIO | None = None) -> None:
    """Print a line, by default to standard output; a closed pipe is not an error."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _mute(stream)


class ConsoleHandler(logging.Handler):
    """Shows log records as plain lines, in the right order with the progress bars on stderr.

    Attributes:
        stream: destination of the lines. None: standard output; if it is a closed pipe, the
            command ends. A command that prints its result to standard output logs to standard
            error instead; there, a closed pipe is not an error.
    """

    stream: TextIO | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; errors are raised to the caller."""
        text = self.format(record)
        if self.stream is not None:
            note(text, self.stream)
            return
        sys.stderr.flush()
        print(text, flush=True)


_handler = ConsoleHandler()


@contextlib.contextmanager
def logging_to_console() -> Iterator[None]:
    """Send the package's log to the console, and to no other handler, within the context."""
    package = logging.getLogger("multitask")
    before = package.level, package.propagate
    _handler.stream = None
    package.addHandler(_handler)
    package.setLevel(logging.INFO)
    package.propagate = False  # not to absl's handler
    try:
        yield
    finally:
        package.removeHandler(_handler)
        package.level, package.propagate = before


def log_to_stderr() -> None:
    """Send the log to standard error: for a command that prints its result."""
    _handler.stream = sys.stderr


def flush_output() -> None:
    """Flush standard output; a closed pipe is not an error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _mute(sys.stdout)


@contextlib.contextmanager
def quiet_pipes(end: Callable[[int], None] = sys.exit) -> Iterator[None]:
    """End the process silently if standard output or error is a closed pipe.

    Args:
        end: ends the process; called with BROKEN_PIPE.
    """
    try:
        try:
            yield
        finally:  # otherwise the interpreter shutdown would flush, fail and print a message
            sys.stdout.flush()
            sys.stderr.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _without_reader(stream)]
        if not closed:  # the error of another pipe
            raise
        for stream in closed:
            _mute(stream)
        end(BROKEN_PIPE)
