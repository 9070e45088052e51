"""Disk errors are one kind of error for all libraries, and room is checked and reserved."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from multitask.disk import DiskError, check_room, disk_error, reserve, size_text, writing
from multitask.errors import InputError, RunError
from multitask.files import check_writable, replacing, write_json

PAGE = 4096  # bytes


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# === Disk errors ===


def write_text(path):
    path.write_text("x" * 100_000)


def write_buffered(path):
    with path.open("w") as file:  # the write fails when the file is closed, and a second time
        file.write("x" * 100_000)


def write_folder(path):
    path.mkdir()
    (path / "first").write_text("x" * 10_000)
    (path / "second").write_text("x" * 100_000)


def write_csv(path):
    pd.DataFrame({"a": np.arange(20_000)}).to_csv(path)


def write_parquet(path):
    with parquet.ParquetWriter(path, pa.schema([("a", pa.float64())])) as writer:
        writer.write_table(pa.table({"a": np.random.default_rng(0).random(20_000)}))


def write_arrays(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(20_000))


def write_image(path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path, "PNG")


WRITERS = (
    write_text,
    write_buffered,
    write_folder,
    write_csv,
    write_parquet,
    write_arrays,
    write_image,
)


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_raises_a_disk_error_in_every_writer(small_disk, write):
    disk = small_disk(64 * 1024)
    path = disk.files / "folder/file"
    write_json(path.with_suffix(".json"), "older")
    with pytest.raises(DiskError) as caught, replacing(path) as temporary:
        write(temporary)
    assert caught.value.errno == errno.ENOSPC
    free = shutil.disk_usage(disk.files).free
    assert free == 64 * 1024 - PAGE
    assert str(caught.value) == (
        f"{path.parent}: no room on the disk (more needed, 61 kB free); make room, then run the "
        "same command again"
    )
    assert names_in(path.parent) == ["file.json"]
    assert json.loads(path.with_suffix(".json").read_text()) == "older"
    disk.leave(10**6)
    with replacing(path) as temporary:
        write(temporary)
    assert names_in(path.parent) == ["file", "file.json"]


def test_the_old_file_is_kept_on_a_full_disk(small_disk):
    disk = small_disk(64 * 1024)
    path = disk.files / "a.json"
    write_json(path, "old")
    for free in (0, PAGE, 10 * PAGE):
        disk.leave(free)
        with pytest.raises(DiskError, match=rf"more needed, {size_text(free)} free"):
            write_json(path, "x" * 50_000)
        assert json.loads(path.read_text()) == "old"
        assert names_in(disk.files) == ["a.json"]


def test_a_disk_without_an_inode_is_full(small_disk):
    disk = small_disk(10**6)
    disk.remount("nr_inodes=2")
    write_json(disk.files / "a.json", 1)
    with pytest.raises(DiskError, match=r"no room on the disk .more needed, no inode free"):
        write_json(disk.files / "b.json", 2)
    with pytest.raises(DiskError, match="no inode free"):
        check_writable(disk.files / "run", field="workdir")
    assert names_in(disk.files) == ["a.json"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_became_read_only_raises_a_disk_error(small_disk, write):
    disk = small_disk(10**6)
    path = disk.files / "file"
    path.write_text("old")
    disk.remount("ro")
    with pytest.raises(DiskError) as caught, replacing(path) as temporary:
        write(temporary)
    assert str(caught.value) == (
        f"{path.parent}: the file system is read-only; make it writable, then run the same "
        "command again"
    )
    assert path.read_text() == "old"
    with pytest.raises(DiskError, match="the file system is read-only"):
        check_writable(disk.files / "new", field="out")
    disk.remount("rw")
    assert names_in(disk.files) == ["file"]


@pytest.fixture
def largest_file():
    """Return a function that limits the size of files of this process until the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_size_limit_raises_a_disk_error(tmp_path, largest_file):
    path = tmp_path / "a.json"
    write_json(path, "old")
    largest_file(10**7)
    with pytest.raises(DiskError, match="a file of this size is not allowed; raise the limit"):
        write_json(path, "x" * (10**7 + 1))
    with path.open("r+b") as file, pytest.raises(DiskError, match=r"allowed .20 MB needed.; raise"):
        file.truncate(20)
        reserve(path, 2 * 10**7)
    assert names_in(tmp_path) == ["a.json"]


def test_the_error_names_the_disk_of_the_failed_file(small_disk, tmp_path):
    """The block of one folder writes a file on another disk."""
    disk = small_disk(PAGE)
    other = disk.files / "scratch/file"
    with pytest.raises(DiskError) as caught, writing(tmp_path):
        other.parent.mkdir()
        raise OSError(errno.ENOSPC, "full", str(other))
    assert str(caught.value).startswith(f"{other.parent}: no room on the disk (more needed, 4.1 kB")
    with pytest.raises(DiskError) as caught, writing(tmp_path / "not/yet"):
        raise OSError(errno.ENOSPC, "full", str(tmp_path / "some/where"))
    assert str(caught.value).startswith(f"{tmp_path / 'not/yet'}: no room on the disk")


def test_other_errors_are_not_converted(tmp_path):
    other = (
        ValueError("it is not"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        InputError("No space left on device", field="out"),
        RunError("a run"),
        KeyboardInterrupt(),
    )
    for error in other:
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error


def test_the_cause_of_an_error_counts_unless_it_is_suppressed():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    first, second, third = ValueError(), ValueError(), ValueError()
    first.__context__ = full  # raised while `full` was handled
    second.__cause__ = full
    third.__context__, third.__cause__ = full, None  # as after `from None`
    assert disk_error(first).errno == errno.ENOSPC
    assert disk_error(second).errno == errno.ENOSPC
    assert third.__suppress_context__
    assert disk_error(third) is None


def test_errors_that_only_quote_the_system_are_recognized():
    """ArrayRecord raises a RuntimeError, and TensorFlow its own kinds of errors."""
    quota = RuntimeError("write() failed: Disk quota exceeded; writing a.array_record; at byte 0")
    assert disk_error(quota).errno == errno.EDQUOT
    assert disk_error(RuntimeError("write() failed: Permission denied; writing a")) is None


def test_errors_of_sqlite_are_recognized(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as base:
        base.execute("create table t (x)")
        base.execute("pragma max_page_count = 2")
        with pytest.raises(DiskError) as caught, writing(tmp_path):
            base.execute("insert into t values (?)", ("x" * 10**6,))
    assert caught.value.errno == errno.ENOSPC
    with (
        contextlib.closing(sqlite3.connect(f"file:{tmp_path}/a.db?mode=ro", uri=True)) as base,
        pytest.raises(DiskError) as caught,
        writing(tmp_path),
    ):
        base.execute("insert into t values (1)")
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9951, "10 kB"),
        (999_499, "999 kB"),
        (999_501, "1.0 MB"),
        (123.4e9, "123 GB"),
        (5e12, "5.0 TB"),
        (5e15, "5000 TB"),
    ],
)
def test_size_text(count, text):
    assert size_text(count) == text


def test_check_room_raises_where_too_little_is_free(small_disk):
    disk = small_disk(10 * PAGE)
    check_room(disk.files / "new/folder", 10 * PAGE, what="images")
    with pytest.raises(DiskError) as caught:
        check_room(disk.files / "new/folder", 10 * PAGE + 1, what="images", retry_hint="or stop")
    assert str(caught.value) == (
        f"{disk.files / 'new/folder'}: no room on the disk (41 kB needed for images, 41 kB "
        "free); make room, or stop"
    )
    assert names_in(disk.files) == []


# === Reserved files ===


@pytest.fixture(params=["posix_fallocate", "no such call", "not for this file system"])
def allocation(request, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if request.param == "no such call":
        monkeypatch.delattr(os, "posix_fallocate")
    elif request.param == "not for this file system":
        monkeypatch.setattr(os, "posix_fallocate", refuse)


@pytest.mark.usefixtures("allocation")
def test_a_reserved_file_has_all_blocks_and_its_content(small_disk):
    disk = small_disk(4 * 10**6)
    path, size = disk.files / "a.npy", 3 * 10**6 + 17
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(2**20 + 5)
        file.write(b"between")
        file.truncate(size)
    content = path.read_bytes()
    assert path.stat().st_blocks * 512 == 2 * PAGE
    reserve(path)
    assert path.stat().st_blocks * 512 >= size
    assert path.stat().st_size == size
    assert path.read_bytes() == content
    reserve(path, size + 100)
    assert path.read_bytes() == content + bytes(100)


@pytest.mark.usefixtures("allocation")
def test_reserve_raises_a_disk_error_where_no_room_is_left(small_disk):
    disk = small_disk(10**6)
    path = disk.files / "a.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (500, 1000)).flush()
    with pytest.raises(DiskError, match=r"no room on the disk \(2.0 MB needed, .* free\)"):
        reserve(path)
    array = np.load(path)
    assert (array.shape, array.any()) == ((500, 1000), False)


def test_a_memory_map_without_reserve_ends_the_process(small_disk):
    """The reason for `reserve`: there is no error to catch."""
    disk = small_disk(10**6)
    code = (
        "import numpy as np, sys; "
        "np.lib.format.open_memmap(sys.argv[1], 'w+', np.float32, (500, 1000))[:] = 1"
    )
    argv = [sys.executable, "-c", code, str(disk.files / "a.npy")]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGBUS
