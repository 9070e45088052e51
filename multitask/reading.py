"""Files that others wrote: only regular ones are opened, and no more than a limit is read.

A named pipe would be waited for without end, and a device such as /dev/zero never ends. What a file
is, is asked of the open descriptor: the name may stand for another file a moment later.
"""

import errno
import hashlib
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

# The pixels of the largest image that is decoded (decode.MAX_PIXELS) take as much uncompressed.
MAX_IMAGE_BYTES = 2**29
MAX_TEXT_BYTES = 2**28  # of a CSV, class file, spec or JSON: three million rows

# Without waiting for a writer, without taking over a terminal; 0 where a system has no such flag.
_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)


class Unreadable(OSError):
    """A file that is there and is not to be read; `str` and `strerror` are a phrase for people."""

    def __init__(self, reason: str, path: str | bytes | Path, number: int = errno.EINVAL):
        super().__init__(number, reason, os.fspath(path))

    def __str__(self) -> str:
        return self.strerror


def _refusal(mode: int, path: str | bytes | Path) -> Unreadable:
    kind = next((name for is_it, name in _KINDS if is_it(mode)), "something else")
    return Unreadable(f"it is {kind}, not a regular file", path)


def _open(path: str | bytes | Path) -> tuple[int, int]:
    """The descriptor of a regular file, and its size in bytes; errors as `open_regular`."""
    try:
        descriptor = os.open(path, _FLAGS)
    except ValueError:
        raise Unreadable("its path holds a NUL character", path) from None
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):  # a socket, an odd device
            raise _refusal(os.stat(path).st_mode, path) from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _refusal(status.st_mode, path)
    return descriptor, status.st_size


def open_regular(path: str | bytes | Path) -> BinaryIO:
    """Open a file for reading, as `open(path, "rb")`, if it is a regular one.

    Raises:
        FileNotFoundError, PermissionError, …: as `open`.
        Unreadable: a folder, a named pipe, a socket, a device.
    """
    return os.fdopen(_open(path)[0], "rb")


def read_regular(path: str | bytes | Path, max_bytes: int) -> bytes:
    """All of a regular file.

    Args:
        path: of the file, or of a link to it.
        max_bytes: MAX_IMAGE_BYTES or MAX_TEXT_BYTES.

    Raises:
        FileNotFoundError, PermissionError, …: as `open`.
        Unreadable: not a regular file; or larger than the limit (errno EFBIG), of which no more
            is read.
    """
    descriptor, size = _open(path)
    try:
        parts, left = [], max_bytes + 1 if size <= max_bytes else 0
        # One byte more than the size: a full answer is then known to be the end of most files.
        while left > 0 and (part := os.read(descriptor, min(left, max(size + 1, 2**16)))):
            parts.append(part)
            left, size = left - len(part), 0
        if left <= 0:
            reason = f"it is larger than the limit of {max_bytes:,} bytes"
            raise Unreadable(reason, path, errno.EFBIG)
    finally:
        os.close(descriptor)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """As `Path.read_text`; errors as `read_regular`."""
    data = read_regular(path, MAX_TEXT_BYTES)
    return io.TextIOWrapper(io.BytesIO(data), encoding=encoding).read()


def sha256(*paths: Path) -> str:
    """Of the files' content, one behind the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def check_regular(path: Path) -> None:
    """Refuse what a library, which takes a name and no open file, might wait for without end.

    Args:
        path: a file, or a folder of which all files are looked at.

    Raises:
        As `open_regular`.
    """
    files = [path]
    if path.is_dir():
        files = [Path(above, name) for above, _, names in os.walk(path) for name in names]
    for file in files:
        open_regular(file).close()
