"""Files are written whole or not at all, by one process at a time."""

import json
import subprocess
import sys

import pytest

from multitask.files import locked, replacing, write_json


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
