"""Console output: log lines, notes and progress bars; closed pipes as in other Unix tools."""

import contextlib
import functools
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a notebook without ipywidgets, where text bars work
    from tqdm.auto import tqdm as ProgressBar  # noqa: N812

BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells report a tool that the signal ended
LOGGER = logging.getLogger("multitask")


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
    package, before = LOGGER, (LOGGER.level, LOGGER.propagate)
    package.addHandler(_handler)
    package.setLevel(logging.INFO)
    package.propagate = False  # not to absl's handler
    try:
        yield
    finally:
        package.removeHandler(_handler)
        package.level, package.propagate = before
        _handler.stream = None  # a later call from Python logs to standard output


def log_to_stderr() -> None:
    """Send the log to standard error: for a command that prints its result."""
    _handler.stream = sys.stderr


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def progress_bar(
    description: str,
    total: int,
    *,
    unit: str = " images",
    initial: int = 0,
    iterable: Iterable | None = None,
    hidden: bool = False,
) -> Any:
    """Make a progress bar that disappears when it is closed.

    It is shown on a terminal and in a notebook, if the package's log shows INFO. In a notebook it
    is part of standard output, where the next line of the log replaces it.

    Args:
        description: text before the bar.
        total: number of units.
        unit: text after the rate.
        initial: number of units that are done already.
        iterable: source of the units; None: the caller updates the bar.
        hidden: show nothing.
    """
    # None: hidden unless stderr is a terminal, which a notebook's is not.
    notebook = in_notebook()
    unseen = False if notebook else None
    return ProgressBar(
        iterable,
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        leave=False,
        file=sys.stdout if notebook else None,
        disable=hidden or not LOGGER.isEnabledFor(logging.INFO) or unseen,
    )


@functools.cache  # libraries such as tf2onnx add a handler to the root later
def _has_handlers() -> bool:
    """Whether the program shows the package's log itself."""
    added = [*LOGGER.handlers, *logging.root.handlers]
    return any("absl" not in type(handler).__module__ for handler in added)


@contextlib.contextmanager
def log_shown() -> Iterator[None]:
    """Show the package's log within the context, for a call from Python without any set-up.

    Nothing changes if the program has handlers of its own, or has set the level of the log.
    TensorFlow's log shows its errors only. In a notebook it would show more than in a command.
    """
    ours = _has_handlers()
    before = LOGGER.level, LOGGER.propagate
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    if not ours:
        LOGGER.addHandler(_handler)
        LOGGER.propagate = False
    with errors_only(logging.getLogger("tensorflow")):
        try:
            yield
        finally:
            if not ours:
                LOGGER.removeHandler(_handler)
            LOGGER.level, LOGGER.propagate = before


@contextlib.contextmanager
def errors_only(logger: logging.Logger) -> Iterator[None]:
    """Filter a log; its level is not used, as the import of the library may set it."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)


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
