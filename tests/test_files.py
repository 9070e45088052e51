"""Files are written whole or not at all, by one process at a time."""

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
import tempfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from multitask.files import (
    MOST_NESTED,
    DiskError,
    RunError,
    check_room,
    check_writable,
    clear_leftovers,
    disk_error,
    locked,
    noting_files,
    read_json,
    replacing,
    reserve,
    scratch,
    silent,
    size_text,
    write_json,
    writing,
)
from multitask.spec import InputError

GONE = 999_999_999  # more than a process's number can be


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# === Whole or not at all ===


def test_a_file_is_replaced_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new/model.keras"
    for content in ("first", "second"):
        with replacing(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == ".keras"
            temporary.write_text(content)
            assert path.exists() == (content == "second")
        assert path.read_text() == content
        assert names_in(path.parent) == ["model.keras"]


def test_a_file_is_kept_when_the_block_fails(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["model.keras"]
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "new") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names_in(tmp_path) == ["model.keras"]


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "export"
    for content in ("first", "second"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
        assert names_in(path) == [content]
        assert names_in(tmp_path) == ["export"]


def test_a_folder_is_kept_when_the_block_fails(tmp_path):
    path = tmp_path / "export"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        raise RuntimeError
    assert names_in(path) == ["old"]
    assert names_in(tmp_path) == ["export"]


def test_a_folder_is_kept_when_the_block_wrote_nothing(tmp_path):
    path = tmp_path / "export"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert names_in(path) == ["old"]
    assert names_in(tmp_path) == ["export"]


def test_json_is_written_whole_and_as_it_is(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, None, "…"]})
    assert path.read_bytes().decode("utf-8") == '{\n "ä": [\n  1,\n  null,\n  "…"\n ]\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": [1, None, "…"]}
    assert names_in(tmp_path) == ["a.json"]


# === Left by processes that were killed ===


# The numbers of processes come again, in a container soon.
@pytest.mark.parametrize("process", [GONE, os.getpid()], ids=["gone", "own"])
def test_what_was_half_written_is_cleared_by_the_next_write(tmp_path, process):
    (tmp_path / f".tmp-{process}-export").mkdir()
    (tmp_path / f".tmp-{process}-export" / "half").touch()
    (tmp_path / f".tmp-{process}-a.json").write_text("half")
    write_json(tmp_path / "a.json", 1)
    assert names_in(tmp_path) == [f".tmp-{process}-export", "a.json"]
    with replacing(tmp_path / "export") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert names_in(tmp_path) == ["a.json", "export"]
    assert names_in(tmp_path / "export") == ["new"]


def test_a_folder_that_was_moved_aside_is_put_back(tmp_path):
    (tmp_path / f".old-{GONE}-export").mkdir()
    (tmp_path / f".old-{GONE}-export" / "old").touch()
    with pytest.raises(RuntimeError), replacing(tmp_path / "export"):
        raise RuntimeError
    assert names_in(tmp_path) == ["export"]
    assert names_in(tmp_path / "export") == ["old"]


def test_a_folder_that_was_replaced_is_not_put_back(tmp_path):
    for name, content in ((f".old-{GONE}-export", "old"), ("export", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).touch()
    clear_leftovers(tmp_path)
    assert names_in(tmp_path) == ["export"]
    assert names_in(tmp_path / "export") == ["new"]


def test_what_is_of_others_is_left_alone(tmp_path):
    """Of a process that runs, of another file whose name ends alike, or only looks alike."""
    init = 1
    names = [
        f".tmp-{init}-export",
        f".tmp-{GONE}-my-export",
        f".old-{GONE}-my-export",
        f".tmp-{GONE}-",
        f"tmp-{GONE}-export",
        ".tmp-x-export",
    ]
    for name in names:
        (tmp_path / name).mkdir()
    with replacing(tmp_path / "export") as temporary:
        temporary.write_text("new")
    assert names_in(tmp_path) == sorted([*names, "export"])


@pytest.mark.parametrize("name", ["m [v1]", "*", "a\nb"])
def test_a_name_is_no_pattern(tmp_path, name):
    (tmp_path / f".tmp-{GONE}-{name}").write_text("half")
    (tmp_path / f".tmp-{GONE}-m v").write_text("of another")
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert names_in(tmp_path) == sorted([f".tmp-{GONE}-m v", name])


def test_a_link_to_a_folder_stays_one(tmp_path):
    real = tmp_path / "disk" / "export"
    real.mkdir(parents=True)
    (tmp_path / "export").symlink_to(real)
    with replacing(tmp_path / "export") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert (tmp_path / "export").is_symlink()
    assert names_in(real) == ["new"]
    assert names_in(tmp_path / "disk") == ["export"]


def test_files_are_noted_when_they_are_in_place(tmp_path):
    write_json(tmp_path / "before.json", 0)
    with noting_files() as all_of_them:
        write_json(tmp_path / "a.json", 0)
        with noting_files() as noted, pytest.raises(TypeError):
            write_json(tmp_path / "b.json", 0)
            write_json(tmp_path / "broken.json", object())
    assert noted == [tmp_path / "b.json"]
    assert all_of_them == [tmp_path / "a.json", tmp_path / "b.json"]


# === One at a time ===

HOLDER = """
import sys
from pathlib import Path
from multitask.files import locked
with locked(Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["done", "killed"])
def test_a_lock_is_waited_for_until_its_process_ends(tmp_path, end):
    path, told = tmp_path / ".lock", []
    argv = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"

        def waiting():
            told.append(other.poll())
            other.stdin.close() if end == "done" else other.kill()

        with locked(path, waiting):
            other.wait(10)
            assert told == [None]  # it was still running
    with locked(path, lambda: told.append("again")):
        pass
    assert told == [None]


def test_a_lock_is_released_where_the_block_fails(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / ".lock", lambda: None):
        raise RuntimeError
    with locked(tmp_path / ".lock", lambda: pytest.fail("it is still held")):
        pass


# === Room on the disk ===

PAGE = 4096


def write_text(path):
    path.write_text("x" * 100_000)


def write_buffered(path):
    with path.open("w") as file:  # it fails where the file is closed, and again there
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


def write_picture(path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path, "PNG")


WRITERS = (
    write_text,
    write_buffered,
    write_folder,
    write_csv,
    write_parquet,
    write_arrays,
    write_picture,
)


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_one_error_for_all_writers(small_disk, write):
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


def test_an_older_file_stands_on_a_full_disk(small_disk):
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
    with pytest.raises(DiskError, match="no room on the disk .more needed, no inode free"):
        write_json(disk.files / "b.json", 2)
    with pytest.raises(DiskError, match="no inode free"):
        check_writable(disk.files / "run", flag="--workdir")
    assert names_in(disk.files) == ["a.json"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_became_read_only_is_the_same_kind(small_disk, write):
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
        check_writable(disk.files / "new", flag="--out")
    disk.remount("rw")
    assert names_in(disk.files) == ["file"]


@pytest.fixture
def largest_file():
    """A function: the system refuses larger files of this process until the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_of_a_files_size_is_the_same_kind(tmp_path, largest_file):
    path = tmp_path / "a.json"
    write_json(path, "old")
    largest_file(10**7)
    with pytest.raises(DiskError, match="a file of this size is not allowed; raise the limit"):
        write_json(path, "x" * (10**7 + 1))
    with path.open("r+b") as file, pytest.raises(DiskError, match="allowed .20 MB needed.; raise"):
        file.truncate(20)
        reserve(path, 2 * 10**7)
    assert names_in(tmp_path) == ["a.json"]


def test_the_disk_of_the_file_that_failed_is_named(small_disk, tmp_path):
    """Where a file of another disk was written within the block."""
    disk = small_disk(PAGE)
    other = disk.files / "scratch/file"
    with pytest.raises(DiskError) as caught, writing(tmp_path):
        other.parent.mkdir()
        raise OSError(errno.ENOSPC, "full", str(other))
    assert str(caught.value).startswith(f"{other.parent}: no room on the disk (more needed, 4.1 kB")
    with pytest.raises(DiskError) as caught, writing(tmp_path / "not/yet"):
        raise OSError(errno.ENOSPC, "full", str(tmp_path / "some/where"))
    assert str(caught.value).startswith(f"{tmp_path / 'not/yet'}: no room on the disk")


def test_other_errors_stay_what_they_are(tmp_path):
    other = (
        ValueError("it is not"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        InputError("--out: No space left on device"),
        RunError("a run"),
        KeyboardInterrupt(),
    )
    for error in other:
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error


def test_what_it_was_raised_from_counts_and_what_was_dealt_with_does_not():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    first, second, third = ValueError(), ValueError(), ValueError()
    first.__context__ = full  # raised while that was handled
    second.__cause__ = full
    third.__context__, third.__cause__ = full, None  # `from None`, which says that it is over
    assert disk_error(first).errno == errno.ENOSPC
    assert disk_error(second).errno == errno.ENOSPC
    assert third.__suppress_context__
    assert disk_error(third) is None


def test_libraries_that_only_quote_the_system(tmp_path):
    """ArrayRecord raises a RuntimeError, TensorFlow errors of its own."""
    quota = RuntimeError("write() failed: Disk quota exceeded; writing a.array_record; at byte 0")
    assert disk_error(quota).errno == errno.EDQUOT
    assert disk_error(RuntimeError("write() failed: Permission denied; writing a")) is None


def test_sqlite_has_words_of_its_own(tmp_path):
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
def test_sizes_for_people(count, text):
    assert size_text(count) == text


def test_too_little_room_is_told_before_the_work(small_disk):
    disk = small_disk(10 * PAGE)
    check_room(disk.files / "new/folder", 10 * PAGE, what="pictures")
    with pytest.raises(DiskError) as caught:
        check_room(disk.files / "new/folder", 10 * PAGE + 1, what="pictures", again="or go away")
    assert str(caught.value) == (
        f"{disk.files / 'new/folder'}: no room on the disk (41 kB needed for pictures, 41 kB "
        "free); make room, or go away"
    )
    assert names_in(disk.files) == []


# === Files that are mapped ===


@pytest.fixture(params=["posix_fallocate", "no such call", "not for this file system"])
def allocation(request, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if request.param == "no such call":
        monkeypatch.delattr(os, "posix_fallocate")
    elif request.param == "not for this file system":
        monkeypatch.setattr(os, "posix_fallocate", refuse)


@pytest.mark.usefixtures("allocation")
def test_a_reserved_file_has_all_its_blocks_and_what_it_held(small_disk):
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
def test_a_file_that_cannot_be_reserved_is_one_error(small_disk):
    disk = small_disk(10**6)
    path = disk.files / "a.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (500, 1000)).flush()
    with pytest.raises(DiskError, match=r"no room on the disk \(2.0 MB needed, .* free\)"):
        reserve(path)
    array = np.load(path)
    assert (array.shape, array.any()) == ((500, 1000), False)


def test_a_file_that_is_not_reserved_ends_the_process(small_disk):
    """Why `reserve` is there: there is no error to catch."""
    disk = small_disk(10**6)
    code = (
        "import numpy as np, sys; "
        "np.lib.format.open_memmap(sys.argv[1], 'w+', np.float32, (500, 1000))[:] = 1"
    )
    argv = [sys.executable, "-c", code, str(disk.files / "a.npy")]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGBUS


# === What is needed only meanwhile ===


def test_scratch_names_the_folder_of_temporary_files(small_disk, tmp_path, monkeypatch):
    disk = small_disk(64 * 1024)
    monkeypatch.setattr(tempfile, "tempdir", str(disk.files))
    with scratch() as folder:
        assert folder.parent == disk.files
        (folder / "a").write_text("x")
    assert names_in(disk.files) == []
    with pytest.raises(DiskError) as caught, replacing(tmp_path / "model") as temporary:
        temporary.write_text("half")
        with scratch() as folder:
            write_text(folder / "a")
    assert str(caught.value) == (
        f"{disk.files}: no room on the disk (more needed, 66 kB free); make room, or name another "
        "folder with TMPDIR, then run the same command again"
    )
    assert names_in(disk.files) == []
    assert not (tmp_path / "model").exists()


def test_no_folder_of_temporary_files_is_one_line(monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/a']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    line = r"No usable temporary directory found in \['/a'\]; name a folder with TMPDIR"
    with pytest.raises(RunError, match=line), scratch():
        pass


NOTES = """
import errno, os, sys
from multitask.files import silent
try:
    with silent():
        os.write(2, b"a note of C++\\n")
        raise {error}
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("error", "notes"),
    [("ValueError", "a note of C++\n"), ("OSError(errno.ENOSPC, 'full')", "")],
)
def test_notes_are_shown_unless_it_is_the_disk(error, notes):
    found = subprocess.run(
        [sys.executable, "-c", NOTES.format(error=error)], capture_output=True, text=True
    )
    assert (found.stdout.strip(), found.stderr) == (error.split("(")[0], notes)


def test_notes_are_dropped_where_they_cannot_be_kept(small_disk, monkeypatch, capfd):
    disk = small_disk(10**6)
    disk.remount("ro")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(disk.files))
        with silent():
            os.write(2, b"a note of C++\n")
    os.write(2, b"an error\n")
    assert capfd.readouterr().err == "an error\n"


# === Reading JSON back ===


def nested(depth):
    return b"[" * depth + b"1" + b"]" * depth


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b'{"a": ', "Expecting value"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"[" * 100_000, "within each other"),
        (nested(MOST_NESTED + 1), "within each other"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "within each other"),
        (b"9" * 5000, "digits"),
    ],
)
def test_whatever_is_wrong_with_json_is_a_value_error(tmp_path, content, said):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_json(tmp_path / "a.json")


def test_what_was_written_is_read(tmp_path):
    content = {"a": [1, 2.5, None, "ü\u2028\x85", {"b": []}], "c": json.loads(nested(40))}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    (tmp_path / "b.json").write_bytes(nested(MOST_NESTED))
    read_json(tmp_path / "b.json")
