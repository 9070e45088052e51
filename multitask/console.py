"""Standard output and error as other Unix tools treat them: whoever reads them may leave."""

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells report a tool that the signal ended


def open_standard_streams() -> None:
    """Stand /dev/null in for those that were closed before the start (`>&-`).

    Otherwise the next file that is opened gets their descriptor, and what a library writes to the
    console ends in that file.
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
    """Whether it is a pipe or a socket of which the other end is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # errors are always reported
        return bool(poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no descriptor, or a system without poll
        return True


def _mute(stream: TextIO) -> None:
    """Let what is written to it from now on, and what waits to be, go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def note(text: str, stream: TextIO | None = None) -> None:
    """Print a line (to standard output) that the work does not depend on: it goes on unread."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _mute(stream)


def flush_output() -> None:
    """Write what is buffered of standard output, if anybody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _mute(sys.stdout)


@contextlib.contextmanager
def quiet_pipes(end: Callable[[int], None] = sys.exit) -> Iterator[None]:
    """Within it, a closed pipe of standard output or error ends the process without a word.

    Args:
        end: is given BROKEN_PIPE.
    """
    try:
        try:
            yield
        finally:  # what is buffered would fail in the interpreter's shutdown, with a message
            sys.stdout.flush()
            sys.stderr.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _without_reader(stream)]
        if not closed:  # another pipe's, which is an error as any
            raise
        for stream in closed:
            _mute(stream)
        end(BROKEN_PIPE)
