"""Files that others read: written whole or not at all, by one process at a time.

A file is written under a temporary name in its own folder and renamed into place.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from multitask.spec import InputError


class RunError(RuntimeError):
    """A run cannot go on, through no fault of its input. Exit status 1."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds.

    A file or a folder. What stood there before is untouched until then. The temporary name keeps
    the suffix, which Keras reads the format from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    for old in path.parent.glob(f".old-*-{path.name}"):  # killed between the two renames below
        shutil.rmtree(old) if path.exists() else os.replace(old, path)
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
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Within it, notes on the file descriptor of stderr, as libraries in C++ write them, are held
    back; where it fails they are shown."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(kept, notes.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


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


def write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def check_writable(folder: Path, *, flag: str) -> Path:
    """The nearest folder above (or the folder) that exists; InputError where none can be made."""
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK) or not _can_write(parent):
        raise InputError(f"{flag}: {folder}: {parent} cannot be written to")
    return parent


def _can_write(folder: Path) -> bool:
    """os.access says yes to root on a read-only file system; a file tells."""
    probe = folder / f".tmp-{os.getpid()}-probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
