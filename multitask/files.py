"""Files that others read: written whole or not at all, by one process at a time.

A file is written under a temporary name in its own folder and renamed into place. A disk that is
full, or that can no longer be written to, is one kind of error, whichever library meets it.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from multitask.reading import Unreadable, read_text
from multitask.spec import InputError

MOST_NESTED = 50  # objects and lists of a JSON file; ours have less than 10
AGAIN = "then run the same command again"


class RunError(RuntimeError):
    """A run cannot go on, through no fault of its input. Exit status 1."""


# Lists of what is put into place now, of the `noting_files` that are open.
_noting: list[list[Path]] = []
LEFTOVER = re.compile(r"\.(?P<kind>tmp|old)-(?P<process>[0-9]+)-(?P<name>.+)", re.DOTALL)


class DiskError(RunError, OSError):
    """A disk is full, or can no longer be written to. Exit status 1.

    Attributes:
        errno: the system's.
        folder: on that disk; None where it is not known.
    """

    folder: Path | None = None


# === Whole or not at all ===


@contextlib.contextmanager
def replacing(path: Path, *, again: str = AGAIN) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds.

    A file or a folder. What stood there before is untouched until then. The temporary name keeps
    the suffix, which Keras reads the format from. What killed processes left of earlier writes of
    this path is cleared first.

    Args:
        path: of the file or folder.
        again: as of `writing`.

    Raises:
        DiskError: the disk cannot take it.
    """
    # Around the clean-up, so that the error states the room that is there after it.
    with writing(path.parent, again=again), _replacing(path) as temporary:
        yield temporary


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and path.is_dir():
        path = path.resolve()  # the link stays, the folder that it points to is replaced
    clear_leftovers(path.parent, name=path.name)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        yield temporary
        if path.is_dir():  # a folder cannot be renamed onto another
            old = path.with_name(f".old-{os.getpid()}-{path.name}")
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                os.replace(old, path)
                raise
            _remove(old)
        else:
            os.replace(temporary, path)
        for noted in _noting:
            noted.append(path)
    finally:
        with contextlib.suppress(OSError):  # such as that of a read-only file system
            _remove(temporary)


def clear_leftovers(folder: Path, *, name: str | None = None) -> None:
    """Remove what processes that were killed left behind while they replaced files in a folder.

    A folder that was moved aside, and whose successor did not come, is put back. What belongs to
    another process that is still running on this machine, or cannot be removed, is left alone.

    Args:
        folder: that is looked through, not what lies in its subfolders.
        name: of the one file or folder that was replaced; None: of any.
    """
    for path in sorted(folder.iterdir()):
        found = LEFTOVER.fullmatch(path.name)
        if not found or name not in (None, found["name"]) or _is_running(int(found["process"])):
            continue
        place = folder / found["name"]
        with contextlib.suppress(OSError):
            if found["kind"] == "old" and not place.exists():
                os.replace(path, place)
            else:
                _remove(path)


def _is_running(process: int) -> bool:
    """Whether another process has this number; in a container, the next one may get it again."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # or a number that no process can have
        return False
    except OSError:  # of another user
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def noting_files() -> Iterator[list[Path]]:
    """Within it, every path that `replacing` put into place is noted in the list."""
    noted: list[Path] = []
    _noting.append(noted)
    try:
        yield noted
    finally:
        _noting.pop()


def _temporary_name(name: str) -> str:
    return f".tmp-{os.getpid()}-{name}"


def write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


# === What is needed only meanwhile ===


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder among the system's temporary files; it is removed at the end.

    Raises:
        DiskError: the disk of the temporary files cannot take what the block writes.
        RunError: there is no folder for temporary files.
    """
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise RunError(f"{error.strerror}; name a folder with TMPDIR") from None
    with (
        writing(place, again=f"or name another folder with TMPDIR, {AGAIN}"),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        yield Path(folder)


PATTERN = frozenset("*?[]{}\\")  # what a library that takes a path for a pattern acts on


@contextlib.contextmanager
def plainly_named(path: Path) -> Iterator[Path]:
    """A path of the same file or folder that no library takes for a pattern; for use within.

    `path` itself where it has no such character; else a link to it. TensorFlow's checkpoints are
    read by pattern: `m [v1]/variables` would match `m v/variables` alone.

    Raises:
        InputError: the folder of temporary files has such a character, too.
    """
    if not PATTERN & set(os.path.abspath(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        if PATTERN & set(folder):
            raise InputError(
                f"{path}: TensorFlow takes such a path for a pattern, and that of the folder for "
                f"temporary files, {folder}, too; set TMPDIR to a folder without any of *?[]{{}}\\"
            )
        link = Path(folder) / "linked"
        link.symlink_to(path.absolute(), target_is_directory=path.is_dir())
        yield link


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Within it, notes on the file descriptor of stderr, as libraries in C++ write them, are held
    back; where it fails they are shown, unless it is the disk's fault."""
    sys.stderr.flush()
    kept = os.dup(2)
    with _open_notes() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if disk_error(error) is None:
                notes.seek(0)
                os.write(kept, notes.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _open_notes() -> BinaryIO:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # no room for them
        return open(os.devnull, "r+b")


# === One process at a time ===


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file; `waiting` is called where another process has it.

    The system releases it when its process ends, however that comes.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# === Room on the disk ===

# The errors of a disk: what is wrong, and what to do. EFBIG is the user's limit (`ulimit -f`) or
# the file system's.
_ERRORS = {
    errno.ENOSPC: ("no room on the disk", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EFBIG: ("a file of this size is not allowed", "raise the limit on a file's size"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.EIO: ("the disk reports an input/output error", "check the disk"),
}
# SQLite has words of its own for them; other libraries quote the system's.
_TEXTS = {os.strerror(number): number for number in _ERRORS} | {
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "disk I/O error": errno.EIO,
}
_BLOCK = 2**20


@contextlib.contextmanager
def writing(folder: Path, *, needed: int | None = None, again: str = AGAIN) -> Iterator[None]:
    """Within it, a disk that cannot take what is written is a DiskError that names the folder.

    Args:
        folder: where the block writes; it need not exist.
        needed: bytes in all, where that is known.
        again: what to do when there is room.
    """
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:  # each library raises kinds of its own
        found = disk_error(error, folder, needed=needed, again=again)
        if found is None:
            raise
        raise found from error


def disk_error(
    error: BaseException,
    folder: Path | None = None,
    *,
    needed: int | None = None,
    again: str = AGAIN,
) -> DiskError | None:
    """The DiskError that an error, or one that it was raised from, amounts to; None: not one.

    Args:
        error: of any kind.
        folder: where was written; None: where the file lies that the error names, if any.
        needed: as of `writing`.
        again: as of `writing`.
    """
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, DiskError):
            return one
        number = _disk_errno(one)
        if number is not None:
            return _disk_error(number, _place(one, folder), needed, again)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return None


def _disk_errno(error: BaseException) -> int | None:
    if isinstance(error, Unreadable):  # of a file that is read: the disk is well
        return None
    number = getattr(error, "errno", None)
    if number in _ERRORS:
        return number
    text = str(error)
    return next((number for words, number in _TEXTS.items() if words in text), None)


def _place(error: BaseException, folder: Path | None) -> Path | None:
    """The folder, unless the error names a file on another disk: then that file's."""
    name = getattr(error, "filename", None)
    if not isinstance(name, (str, bytes)):
        return folder
    here = _existing(Path(os.fsdecode(name)).absolute().parent)
    same_disk = folder is not None and here.stat().st_dev == _existing(folder).stat().st_dev
    return folder if same_disk else here


def _disk_error(
    number: int, folder: Path | None, needed: float | None, again: str, *, what: str = ""
) -> DiskError:
    wrong, remedy = _ERRORS[number]
    if folder is not None:
        parts = [part.startswith(_temporary_name("")) for part in folder.parts]
        if any(parts):  # it is gone when the message is read
            folder = Path(*folder.parts[: parts.index(True)])
    amounts = []
    if needed and number not in (errno.EROFS, errno.EIO):
        amounts.append(f"{size_text(needed)} needed{what}")
    if number == errno.ENOSPC and folder is not None:  # the room within a quota is not known
        amounts = [*(amounts or ["more needed"]), f"{_free_text(folder)} free"]
    place = f"{folder}: " if folder is not None else ""
    shown = f" ({', '.join(amounts)})" if amounts else ""
    error = DiskError(f"{place}{wrong}{shown}; {remedy}, {again}")
    error.errno, error.folder = number, folder
    return error


def _free_text(folder: Path) -> str:
    folder = _existing(folder)
    if hasattr(os, "statvfs"):
        found = os.statvfs(folder)
        if found.f_files and not found.f_favail:
            return "no inode"
    return size_text(shutil.disk_usage(folder).free)


def _existing(folder: Path) -> Path:
    """The nearest folder above (or the folder) that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def size_text(count: float) -> str:
    """Bytes for people: `0 bytes`, `3.4 MB`, `120 GB`."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = 0
    while count >= 999.5 and power + 1 < len(units):
        count /= 1000
        power += 1
    return f"{count:.{int(power > 0 and count < 9.95)}f} {units[power]}"


def check_room(folder: Path, needed: float, *, what: str, again: str = AGAIN) -> None:
    """Raise DiskError where less is free than a long computation will write.

    Args:
        folder: where it writes; it need not exist.
        needed: bytes.
        what: is written, e.g. `1,000 images`.
        again: as of `writing`.
    """
    if needed > shutil.disk_usage(_existing(folder)).free:
        raise _disk_error(errno.ENOSPC, folder, needed, again, what=f" for {what}")


def reserve(path: Path, size: int | None = None, *, again: str = AGAIN) -> None:
    """Give a file all its blocks on the disk; what it holds stays.

    A sparse file gets its blocks when they are written. Through a memory map that is no call that
    could fail: on a full disk the system ends the process (SIGBUS).

    Args:
        path: of a file that exists.
        size: bytes; a shorter file becomes so long; None: the size that it has.
        again: as of `writing`.

    Raises:
        DiskError: the disk has no room for them.
    """
    size = path.stat().st_size if size is None else size
    with writing(path.parent, needed=size, again=again), path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:
            if _disk_errno(error) is not None:
                raise
            # This system or file system has no such call: write the content once more.
            for start in range(0, size, _BLOCK):
                count = min(_BLOCK, size - start)
                file.seek(start)
                block = file.read(count).ljust(count, b"\0")
                file.seek(start)
                file.write(block)


# === Folders that can be written to ===


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or nothing that `write_json` writes: nested too deeply, or with
            a number of thousands of digits.
    """
    return parse_json(read_text(path))


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, which raises ValueError whatever is wrong with the text."""
    too_deep = f"more than {MOST_NESTED} objects or lists within each other"
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [content]
    for _ in range(MOST_NESTED + 1):  # level by level, so that what reads it may recurse
        containers = [value for value in level if isinstance(value, dict | list)]
        if not containers:
            return content
        level = [
            value
            for container in containers
            for value in (container.values() if isinstance(container, dict) else container)
        ]
    raise ValueError(too_deep)


def check_writable(folder: Path, *, flag: str) -> Path:
    """The nearest folder above (or the folder) that exists; InputError where none can be made."""
    parent = _existing(folder)
    if not parent.is_dir() or not _can_write(parent):
        raise InputError(f"{flag}: {folder}: {parent} cannot be written to")
    return parent


def _can_write(folder: Path) -> bool:
    """Whether a file can be made there, which tells more than the folder's rights.

    Raises:
        DiskError: it cannot, and the disk is the reason.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):  # without a name, where the system can
            return True
    except OSError as error:
        if found := disk_error(error, folder):
            raise found from error
        return False
