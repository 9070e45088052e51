"""Files are replaced atomically, by one process at a time."""

import errno
import json
import os
import subprocess
import sys
import tempfile

import pytest

from multitask.disk import DiskError
from multitask.errors import RunError
from multitask.files import (
    MAX_JSON_DEPTH,
    clear_leftovers,
    collect_written_files,
    locked,
    read_json,
    replacing,
    scratch,
    silent,
    write_json,
)

GONE = 999_999_999  # above the largest number of a process


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# === Atomic writes ===


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


def test_json_is_replaced_atomically_and_unescaped(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, None, "…"]})
    assert path.read_bytes().decode("utf-8") == '{\n "ä": [\n  1,\n  null,\n  "…"\n ]\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": [1, None, "…"]}
    assert names_in(tmp_path) == ["a.json"]


# === Leftovers of killed processes ===


# Containers reuse the numbers of processes soon.
@pytest.mark.parametrize("process", [GONE, os.getpid()], ids=["gone", "own"])
def test_the_next_write_clears_unfinished_files(tmp_path, process):
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


def test_a_folder_that_was_moved_aside_is_moved_back(tmp_path):
    (tmp_path / f".old-{GONE}-export").mkdir()
    (tmp_path / f".old-{GONE}-export" / "old").touch()
    with pytest.raises(RuntimeError), replacing(tmp_path / "export"):
        raise RuntimeError
    assert names_in(tmp_path) == ["export"]
    assert names_in(tmp_path / "export") == ["old"]


def test_a_folder_that_was_replaced_is_not_moved_back(tmp_path):
    for name, content in ((f".old-{GONE}-export", "old"), ("export", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).touch()
    clear_leftovers(tmp_path)
    assert names_in(tmp_path) == ["export"]
    assert names_in(tmp_path / "export") == ["new"]


def test_other_files_are_kept(tmp_path):
    """Those of a running process, of a file with the same ending, and with a similar name."""
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
def test_a_name_is_not_read_as_a_pattern(tmp_path, name):
    (tmp_path / f".tmp-{GONE}-{name}").write_text("half")
    (tmp_path / f".tmp-{GONE}-m v").write_text("of another")
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert names_in(tmp_path) == sorted([f".tmp-{GONE}-m v", name])


def test_a_link_to_a_folder_is_kept(tmp_path):
    real = tmp_path / "disk" / "export"
    real.mkdir(parents=True)
    (tmp_path / "export").symlink_to(real)
    with replacing(tmp_path / "export") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert (tmp_path / "export").is_symlink()
    assert names_in(real) == ["new"]
    assert names_in(tmp_path / "disk") == ["export"]


def test_written_files_are_collected_after_their_rename(tmp_path):
    write_json(tmp_path / "before.json", 0)
    with collect_written_files() as outer:
        write_json(tmp_path / "a.json", 0)
        with collect_written_files() as inner, pytest.raises(TypeError):
            write_json(tmp_path / "b.json", 0)
            write_json(tmp_path / "broken.json", object())
    assert inner == [tmp_path / "b.json"]
    assert outer == [tmp_path / "a.json", tmp_path / "b.json"]


# === Locks ===

HOLDER = """
import sys
from pathlib import Path
from multitask.files import locked
with locked(Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["done", "killed"])
def test_a_lock_is_acquired_when_the_other_process_ends(tmp_path, end):
    path, polls = tmp_path / ".lock", []
    argv = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"

        def on_wait():
            polls.append(other.poll())
            other.stdin.close() if end == "done" else other.kill()

        with locked(path, on_wait):
            other.wait(10)
            assert polls == [None]  # it was still running
    with locked(path, lambda: polls.append("again")):
        pass
    assert polls == [None]


def test_a_lock_is_released_where_the_block_fails(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / ".lock", lambda: None):
        raise RuntimeError
    with locked(tmp_path / ".lock", lambda: pytest.fail("it is still held")):
        pass


# === Temporary files ===


def test_a_full_disk_of_temporary_files_is_named(small_disk, tmp_path, monkeypatch):
    disk = small_disk(64 * 1024)
    monkeypatch.setattr(tempfile, "tempdir", str(disk.files))
    with scratch() as folder:
        assert folder.parent == disk.files
        (folder / "a").write_text("x")
    assert names_in(disk.files) == []
    with pytest.raises(DiskError) as caught, replacing(tmp_path / "model") as temporary:
        temporary.write_text("half")
        with scratch() as folder:
            (folder / "a").write_text("x" * 100_000)
    assert str(caught.value) == (
        f"{disk.files}: no room on the disk (more needed, 66 kB free); make room, or name another "
        "folder with TMPDIR, then run the same command again"
    )
    assert names_in(disk.files) == []
    assert not (tmp_path / "model").exists()


def test_a_missing_folder_of_temporary_files_is_a_run_error(monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/a']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    line = r"No usable temporary directory found in \['/a'\]; name a folder with TMPDIR"
    with pytest.raises(RunError, match=line), scratch():
        pass


SILENT = """
import errno, os, sys
from multitask.files import silent
try:
    with silent():
        os.write(2, b"a line of C++\\n")
        raise {error}
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("error", "text"),
    [("ValueError", "a line of C++\n"), ("OSError(errno.ENOSPC, 'full')", "")],
)
def test_silent_shows_the_text_of_errors_that_no_disk_caused(error, text):
    result = subprocess.run(
        [sys.executable, "-c", SILENT.format(error=error)], capture_output=True, text=True
    )
    assert (result.stdout.strip(), result.stderr) == (error.split("(")[0], text)


def test_silent_drops_the_text_where_it_cannot_be_stored(small_disk, monkeypatch, capfd):
    disk = small_disk(10**6)
    disk.remount("ro")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(disk.files))
        with silent():
            os.write(2, b"a line of C++\n")
    os.write(2, b"an error\n")
    assert capfd.readouterr().err == "an error\n"


# === Reading JSON ===


def nested(depth):
    return b"[" * depth + b"1" + b"]" * depth


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"a": ', "Expecting value"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"[" * 100_000, "within each other"),
        (nested(MAX_JSON_DEPTH + 1), "within each other"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "within each other"),
        (b"9" * 5000, "digits"),
    ],
)
def test_wrong_json_raises_a_value_error(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_json(tmp_path / "a.json")


def test_written_json_is_read_unchanged(tmp_path):
    content = {"a": [1, 2.5, None, "ü\u2028\x85", {"b": []}], "c": json.loads(nested(40))}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    (tmp_path / "b.json").write_bytes(nested(MAX_JSON_DEPTH))
    read_json(tmp_path / "b.json")
