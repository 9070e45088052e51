"""Uniform reports of disk errors, from any library, and checks of the free room on a disk."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from multitask.errors import InputError, RunError
from multitask.reading import UnreadableFileError

RETRY_HINT = "then run the same command again"
# Disk errors: the problem and the remedy of each. EFBIG is caused by a limit of the user
# (`ulimit -f`) or of the file system.
_ERRORS = {
    errno.ENOSPC: ("no room on the disk", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EFBIG: ("a file of this size is not allowed", "raise the limit on a file's size"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.EIO: ("the disk reports an input/output error", "check the disk"),
}
# SQLite has its own texts for these errors; other libraries quote the system's.
_TEXTS = {os.strerror(number): number for number in _ERRORS} | {
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "disk I/O error": errno.EIO,
}
_BLOCK_BYTES = 2**20


class DiskError(RunError, OSError):
    """A disk is full, or can no longer be written to. Exit status 1.

    Attributes:
        errno: the error number of the system.
        folder: a folder on that disk; None if unknown.
    """

    folder: Path | None = None


@contextlib.contextmanager
def writing(
    folder: Path, *, needed: int | None = None, retry_hint: str = RETRY_HINT
) -> Iterator[None]:
    """Turn disk errors of the block into a DiskError that names the folder.

    Args:
        folder: where the block writes; it need not exist.
        needed: total size in bytes, if known.
        retry_hint: the next step after the remedy; the end of the message.

    Raises:
        DiskError: the disk cannot take the output of the block.
    """
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:  # each library raises other types
        converted = disk_error(error, folder, needed=needed, retry_hint=retry_hint)
        if converted is None:
            raise
        raise converted from error


def disk_error(
    error: BaseException,
    folder: Path | None = None,
    *,
    needed: int | None = None,
    retry_hint: str = RETRY_HINT,
) -> DiskError | None:
    """Return the DiskError for an error that a disk caused, directly or in its chain of causes.

    Args:
        error: an error of any kind.
        folder: where the program was writing; None: the folder of the file that the error names,
            if it names one.
        needed: as in `writing`.
        retry_hint: as in `writing`.

    Returns:
        The error, which the caller raises; None if no disk caused it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DiskError):
            return cause
        number = _disk_errno(cause)
        if number is not None:
            return _new_disk_error(number, _error_folder(cause, folder), needed, retry_hint)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _disk_errno(error: BaseException) -> int | None:
    if isinstance(error, UnreadableFileError):  # the file was refused; the disk is fine
        return None
    number = getattr(error, "errno", None)
    if number in _ERRORS:
        return number
    message = str(error)
    return next((number for text, number in _TEXTS.items() if text in message), None)


def _error_folder(error: BaseException, folder: Path | None) -> Path | None:
    """Return `folder`, or that of the file that the error names if it is on another disk."""
    name = getattr(error, "filename", None)
    if not isinstance(name, (str, bytes)):
        return folder
    named = nearest_existing(Path(os.fsdecode(name)).absolute().parent)
    if folder is not None and named.stat().st_dev == nearest_existing(folder).stat().st_dev:
        return folder
    return named


def _new_disk_error(
    number: int, folder: Path | None, needed: float | None, retry_hint: str, *, purpose: str = ""
) -> DiskError:
    problem, remedy = _ERRORS[number]
    if folder is not None:
        are_temporary = [part.startswith(temporary_name("")) for part in folder.parts]
        if any(are_temporary):  # a temporary folder no longer exists when the message is read
            folder = Path(*folder.parts[: are_temporary.index(True)])
    amounts = []
    if needed and number not in (errno.EROFS, errno.EIO):
        amounts.append(f"{size_text(needed)} needed{purpose}")
    if number == errno.ENOSPC and folder is not None:  # the room within a quota is not known
        amounts = [*(amounts or ["more needed"]), f"{_free_text(folder)} free"]
    prefix = f"{folder}: " if folder is not None else ""
    details = f" ({', '.join(amounts)})" if amounts else ""
    error = DiskError(f"{prefix}{problem}{details}; {remedy}, {retry_hint}")
    error.errno, error.folder = number, folder
    return error


def _free_text(folder: Path) -> str:
    folder = nearest_existing(folder)
    if hasattr(os, "statvfs"):
        status = os.statvfs(folder)
        if status.f_files and not status.f_favail:
            return "no inode"
    return size_text(shutil.disk_usage(folder).free)


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or the nearest folder above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def temporary_name(name: str) -> str:
    """Return the name under which this process writes a file before it renames it to `name`."""
    return f".tmp-{os.getpid()}-{name}"


def size_text(count: float) -> str:
    """Return a number of bytes as text: `0 bytes`, `3.4 MB`, `120 GB`."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = 0
    while count >= 999.5 and power + 1 < len(units):
        count /= 1000
        power += 1
    return f"{count:.{int(power > 0 and count < 9.95)}f} {units[power]}"


def check_room(folder: Path, needed: float, *, what: str, retry_hint: str = RETRY_HINT) -> None:
    """Check, before a long computation, that the disk has room for its result.

    Args:
        folder: where the computation writes; it need not exist.
        needed: bytes.
        what: the content to write, e.g. `1,000 images`.
        retry_hint: as in `writing`.

    Raises:
        DiskError: less than `needed` is free.
    """
    if needed > shutil.disk_usage(nearest_existing(folder)).free:
        raise _new_disk_error(errno.ENOSPC, folder, needed, retry_hint, purpose=f" for {what}")


def reserve(path: Path, size: int | None = None, *, retry_hint: str = RETRY_HINT) -> None:
    """Allocate all blocks of a file on the disk; its content is kept.

    A sparse file gets its blocks when they are written. A write through a memory map cannot report
    an error: on a full disk, the system ends the process with SIGBUS.

    Args:
        path: a file that exists.
        size: bytes; a shorter file is extended to this size; None: the current size.
        retry_hint: as in `writing`.

    Raises:
        DiskError: the disk has no room for the blocks.
    """
    size = path.stat().st_size if size is None else size
    with writing(path.parent, needed=size, retry_hint=retry_hint), path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:
            if _disk_errno(error) is not None:
                raise
            # The system or file system does not support this call: rewrite the content.
            for start in range(0, size, _BLOCK_BYTES):
                count = min(_BLOCK_BYTES, size - start)
                file.seek(start)
                block = file.read(count).ljust(count, b"\0")
                file.seek(start)
                file.write(block)
