"""Safe reading of the user's files: regular files only, and at most a limit of bytes.

Opening a named pipe may block forever, and a device such as /dev/zero has no end. The kind of a
file is read from the open descriptor, because the name may refer to another file a moment later.
"""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# The uncompressed size of the largest image that is decoded (decode.MAX_PIXELS).
MAX_IMAGE_BYTES = 2**29
MAX_TEXT_BYTES = 2**28  # of a CSV, class file, spec or JSON file: three million rows

# Do not wait for a writer, and do not take over a terminal. A flag that the system lacks is 0.
_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)


class UnreadableFileError(OSError):
    """A file exists but must not be read.

    Args:
        reason: a phrase for messages; `str` of the error.
        path: of the file.
        number: the errno.
    """

    def __init__(self, reason: str, path: str | bytes | Path, number: int = errno.EINVAL):
        super().__init__(number, reason, os.fspath(path))
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def _refusal(mode: int, path: str | bytes | Path) -> UnreadableFileError:
    kind = next((name for matches, name in _KINDS if matches(mode)), "a special file")
    return UnreadableFileError(f"it is {kind}, not a regular file", path)


def _open(path: str | bytes | Path) -> tuple[int, int]:
    """Return the descriptor of a regular file and its size in bytes; errors as `open_regular`."""
    try:
        descriptor = os.open(path, _FLAGS)
    except ValueError:
        raise UnreadableFileError("its path holds a NUL character", path) from None
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):  # a socket or a device
            raise _refusal(os.stat(path).st_mode, path) from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _refusal(status.st_mode, path)
    return descriptor, status.st_size


def open_regular(path: str | bytes | Path) -> BinaryIO:
    """Open a regular file for reading, like `open(path, "rb")`.

    Raises:
        FileNotFoundError, PermissionError, …: as `open`.
        UnreadableFileError: it is a folder, a named pipe, a socket or a device.
    """
    return os.fdopen(_open(path)[0], "rb")


def read_regular(path: str | bytes | Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Args:
        path: of the file or of a link to it.
        max_bytes: MAX_IMAGE_BYTES or MAX_TEXT_BYTES.

    Raises:
        FileNotFoundError, PermissionError, …: as `open`.
        UnreadableFileError: it is not a regular file, or it is larger than the limit (errno EFBIG).
    """
    descriptor, size = _open(path)
    try:
        parts, remaining = [], max_bytes + 1 if size <= max_bytes else 0
        # Request one byte more than the size, so that one call reads most files.
        while remaining > 0 and (part := os.read(descriptor, min(remaining, max(size + 1, 2**16)))):
            parts.append(part)
            remaining, size = remaining - len(part), 0
        if remaining <= 0:
            reason = f"it is larger than the limit of {max_bytes:,} bytes"
            raise UnreadableFileError(reason, path, errno.EFBIG)
    finally:
        os.close(descriptor)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """Return the text of a file, like `Path.read_text`; errors as `read_regular`."""
    data = read_regular(path, MAX_TEXT_BYTES)
    return io.TextIOWrapper(io.BytesIO(data), encoding=encoding).read()


def sha256(*paths: Path) -> str:
    """Return the SHA-256 of the concatenated contents of the files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def check_regular(path: Path) -> None:
    """Check that all files are regular, so that a library can open them without blocking.

    Args:
        path: a file, or a folder whose files are all checked.

    Raises:
        As `open_regular`.
    """
    files = [path]
    if path.is_dir():
        files = [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
    for file in files:
        open_regular(file).close()
