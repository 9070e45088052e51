"""Atomic writes, locks, JSON and temporary files.

A file is written under a temporary name in its own folder and then renamed, so that readers see
the old or the new content, never a part of it.
"""

import contextlib
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

from multitask.disk import RETRY_HINT, disk_error, nearest_existing, temporary_name, writing
from multitask.errors import InputError, RunError
from multitask.reading import read_text

MAX_JSON_DEPTH = 50  # nested objects and lists in a JSON file; the project writes fewer than 10
# Files and folders that killed processes leave: unfinished ones ("tmp") and replaced ones ("old").
LEFTOVER = re.compile(r"\.(?P<kind>tmp|old)-(?P<process>[0-9]+)-(?P<name>.+)", re.DOTALL)
PATTERN_CHARACTERS = frozenset("*?[]{}\\")  # special to a library that reads a path as a pattern

# The lists of all open `collect_written_files` blocks.
_collections: list[list[Path]] = []


# === Atomic writes ===


@contextlib.contextmanager
def replacing(path: Path, *, retry_hint: str = RETRY_HINT) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block succeeds.

    The block writes a file or a folder. The old content is untouched until the rename. The
    temporary name keeps the suffix, from which Keras reads the format. Leftovers of killed
    processes that were writing the same path are removed first.

    Args:
        path: the file or folder to replace or create.
        retry_hint: as in `disk.writing`.

    Raises:
        DiskError: the disk cannot take the content.
    """
    # `writing` is the outer block, so that its error reports the free room after the clean-up.
    with writing(path.parent, retry_hint=retry_hint), _replacing(path) as temporary:
        yield temporary


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and path.is_dir():
        path = path.resolve()  # keep the link and replace the folder that it points to
    clear_leftovers(path.parent, name=path.name)
    temporary = path.with_name(temporary_name(path.name))
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
        for collection in _collections:
            collection.append(path)
    finally:
        with contextlib.suppress(OSError):  # e.g. on a read-only file system
            _remove(temporary)


def clear_leftovers(folder: Path, *, name: str | None = None) -> None:
    """Remove the temporary files that killed processes left in a folder.

    A folder that was moved aside and not yet replaced is moved back. Leftovers of another process
    that is still running on this machine, and leftovers that cannot be removed, are kept.

    Args:
        folder: the folder to clear; its subfolders are not searched.
        name: the file or folder whose leftovers are removed; None: any.
    """
    for path in sorted(folder.iterdir()):
        match = LEFTOVER.fullmatch(path.name)
        if not match or name not in (None, match["name"]) or _is_running(int(match["process"])):
            continue
        target = folder / match["name"]
        with contextlib.suppress(OSError):
            if match["kind"] == "old" and not target.exists():
                os.replace(path, target)
            else:
                _remove(path)


def _is_running(process: int) -> bool:
    """Return whether another process has this number.

    This process may have the number of a killed one: containers reuse numbers.
    """
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: no process can have this number
        return False
    except OSError:  # the process of another user
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def collect_written_files() -> Iterator[list[Path]]:
    """Yield a list to which `replacing` appends each path that it writes within the block."""
    written: list[Path] = []
    _collections.append(written)
    try:
        yield written
    finally:
        _collections.pop()


# === JSON ===


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file by this content; errors as in `replacing`."""
    with replacing(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, it is nested too deeply, or a number has thousands of digits.
    """
    return parse_json(read_text(path))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON like `json.loads`, but raise ValueError for every kind of wrong text."""
    too_deep = f"more than {MAX_JSON_DEPTH} objects or lists within each other"
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [content]
    for _ in range(MAX_JSON_DEPTH + 1):  # level by level; later code may recurse without a check
        containers = [value for value in level if isinstance(value, dict | list)]
        if not containers:
            return content
        level = [
            value
            for container in containers
            for value in (container.values() if isinstance(container, dict) else container)
        ]
    raise ValueError(too_deep)


# === Temporary files ===


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder among the system's temporary files; remove it at the end.

    Raises:
        DiskError: the disk of the temporary files cannot take the output of the block.
        RunError: there is no folder for temporary files.
    """
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise RunError(f"{error.strerror}; name a folder with TMPDIR") from None
    with (
        writing(parent, retry_hint=f"or name another folder with TMPDIR, {RETRY_HINT}"),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        yield Path(folder)


@contextlib.contextmanager
def pattern_free_path(path: Path) -> Iterator[Path]:
    """Yield a path to the same file or folder that no library can read as a pattern.

    This is `path` itself if it has no special character; otherwise it is a temporary link.
    TensorFlow reads checkpoint paths as patterns: `m [v1]/variables` would match only
    `m v/variables`.

    Raises:
        InputError: the folder for temporary files has a special character in its path as well.
    """
    if not PATTERN_CHARACTERS & set(os.path.abspath(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        if PATTERN_CHARACTERS & set(folder):
            raise InputError(
                f"{path}: TensorFlow would read this path as a pattern, and also the folder for "
                f"temporary files, {folder}; set TMPDIR to a folder without any of *?[]{{}}\\"
            )
        link = Path(folder) / "linked"
        link.symlink_to(path.absolute(), target_is_directory=path.is_dir())
        yield link


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress the output of the block to the file descriptor of stderr, e.g. by C++ libraries.

    If the block fails, the output is shown, unless the disk is the cause.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with _open_capture() as capture:
        os.dup2(capture.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if disk_error(error) is None:
                capture.seek(0)
                os.write(stderr, capture.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


def _open_capture() -> BinaryIO:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # no room for the text
        return open(os.devnull, "r+b")


# === Locks and access ===


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file during the block.

    The system releases the lock when the process ends, even when it is killed.

    Args:
        path: the lock file.
        on_wait: called once before the wait if another process holds the lock.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_is_folder(folder: Path, *, field: str) -> None:
    """Raise InputError for what is not an existing folder.

    Args:
        folder: to read from.
        field: the argument that names the folder, without dashes.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder", field=field)


def check_image_folder(folder: Path, *, field: str) -> None:
    """Raise InputError if there is no such folder.

    Args:
        folder: of the images.
        field: the argument that names the folder, or the place of the field in the spec.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of images", field=field)


def check_writable(folder: Path, *, field: str) -> Path:
    """Check that a folder can be written to or created.

    Args:
        folder: it need not exist.
        field: the argument that names the folder, without dashes.

    Returns:
        The folder, or the nearest folder above it that exists.

    Raises:
        InputError: it can be neither written to nor created.
        DiskError: the disk is the reason.
    """
    parent = nearest_existing(folder)
    if not parent.is_dir() or not _can_write(parent):
        raise InputError(f"{folder}: {parent} cannot be written to", field=field)
    return parent


def _can_write(folder: Path) -> bool:
    """Return whether a file can be created in a folder; permissions alone do not show this.

    Raises:
        DiskError: it cannot, and the disk is the reason.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):  # without a name, if the system supports this
            return True
    except OSError as error:
        if converted := disk_error(error, folder):
            raise converted from error
        return False
