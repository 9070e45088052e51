"""A full disk: one line that says what to do, and no incomplete file."""

import errno
import os
import re
import subprocess
import sys
import tempfile
import types

import pytest
from refusals import names_in, stopped

from multitask import __main__ as console
from multitask.__main__ import main

pytestmark = pytest.mark.usefixtures("untimed")


PAGE = 4096


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, r"no room on the disk \(more needed, .* free\); make room"),
        (errno.EDQUOT, "the disk quota is used up; make room"),
        (errno.EROFS, "the file system is read-only; make it writable"),
        (errno.EFBIG, "a file of this size is not allowed; raise the limit on a file's size"),
        (errno.EIO, "the disk reports an input/output error; check the disk"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_line(tmp_path, monkeypatch, capsys, number, what):
    """Also where no writer of ours has named the folder."""

    def fail(values, left):
        raise OSError(number, "of the system", str(tmp_path / "new/a.json"))

    module = types.ModuleType("multitask.commands.failing", "Fails.")
    module.define_flags, module.main = lambda values: None, fail
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(console.COMMANDS, "failing", "fail")
    status, line = stopped(capsys, "failing")
    assert status == 1
    assert re.fullmatch(f"{tmp_path}: {what}, then run the same command again", line)


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["train", "--help"]])
def test_standard_output_on_a_full_disk_is_one_line(argv, buffered):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "multitask", *argv],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": buffered},
            check=False,
        )
    assert (result.returncode, result.stderr) == (
        1,
        "standard output: no room on the disk; make room, then run the same command again\n",
    )


@pytest.fixture
def full_run(small_disk, known, data):
    """(a disk, a run on it whose data lies elsewhere)."""
    disk = small_disk(2 * 10**6)
    return disk, known.make_run(disk.files / "run", data, tasks=("shade", "warmth"))


# The answers are kept as JSON Lines until they are complete: JSON Lines is CSV's case.
@pytest.mark.parametrize(
    "suffix", ["csv", pytest.param("jsonl", marks=pytest.mark.slow), "parquet"]
)
def test_predict_on_a_full_disk(full_run, data, tmp_path, capsys, suffix):
    disk, run = full_run
    out = disk.files / f"answers.{suffix}"
    command = ["predict", f"--workdir={run.workdir}", "--batch_size=5", data.folder / "images"]
    main([*map(str, command), f"--out={tmp_path / out.name}"])
    capsys.readouterr()
    whole = (tmp_path / out.name).read_bytes()
    out.write_text("older")
    message = []
    # Nothing begins; then the answers end in the middle; then the file that is made of them does.
    for free in (0, PAGE, 4 * PAGE):
        disk.leave(free)
        status, line = stopped(capsys, *command, f"--out={out}", "--resume")
        assert status == 1
        assert line.startswith(f"{out.parent}: no room on the disk (more needed, ")
        assert out.read_text() == "older"
        there = sorted(path.name for path in disk.files.glob("*.*"))
        message.append((line.endswith(" with --resume"), there))
    begun = [out.name, f"{out.name}.partial"]
    assert message == [(False, [out.name]), (True, begun), (True, begun)]
    disk.leave(10**6)
    main([*map(str, command), f"--out={out}", "--resume"])
    assert out.read_bytes() == whole
    assert [p.name for p in disk.files.glob("*.*")] == [out.name]


@pytest.mark.slow  # TensorFlow is imported once more
def test_predict_into_a_file_on_a_full_disk(full_run, data):
    """Of the shell: `predict … > answers.txt`."""
    disk, _run = full_run
    command = ["predict", f"--workdir={disk.folder}/run", str(data.folder / "images")]
    disk.leave(PAGE)
    result = disk.run(*command, stdout=disk.folder / "answers.txt")
    assert (result.status, result.err) == (
        1,
        "standard output: no room on the disk; make room, then run the same command again\n",
    )


def test_the_gallery_on_a_full_disk(full_run, data, capsys, tmp_path):
    disk, run = full_run
    query = next((data.folder / "images").rglob("*.png"))
    command = ["similar", "--quiet", f"--workdir={run.workdir}", f"--out={tmp_path}"]
    command.append(f"--query={query}")
    similar = run.workdir / "similar"
    disk.leave(0)
    status, line = stopped(capsys, *command)
    assert status == 1
    assert re.fullmatch(
        rf"{similar}: no room on the disk \(\d+ bytes needed for embeddings of 24 images, "
        r"0 bytes free\); make room, then run the same command again",
        line,
    )
    assert names_in(similar) == []
    # Each array takes a page, and so do the paths and labels beside them.
    for pages in (1, 2, 3):
        disk.leave(pages * PAGE)
        status, line = stopped(capsys, *command)
        assert (status, names_in(similar)) == (1, [])
        assert line.startswith(f"{similar}: no room on the disk (")
    disk.leave(10**6)
    main(command)
    assert "rank" in capsys.readouterr().out
    assert "best_model/gallery.json" in names_in(similar)


def test_an_export_on_a_full_disk(full_run, capsys):
    disk, run = full_run
    command = ["export", f"--workdir={run.workdir}", "--format=keras", "--check_images=3"]
    main(command)
    capsys.readouterr()
    folder = run.workdir / "export"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    size = sum(map(len, before.values()))
    for free in (0, size // 2, size):
        disk.leave(free)
        status, line = stopped(capsys, *command)
        assert status == 1
        assert line.startswith(f"{run.workdir}: no room on the disk (more needed, ")
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        assert [p.name for p in run.workdir.iterdir() if p.name.startswith(".")] == []
    disk.leave(10**6)
    main(command)
    assert names_in(folder) == sorted(str(path.relative_to(folder)) for path in before)


def test_temporary_files_without_room(full_run, capsys, monkeypatch):
    """TensorFlow would run functions as they are that AutoGraph cannot write there."""
    disk, run = full_run
    (disk.files / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(disk.files / "tmp"))
    disk.leave(10**6)
    status, line = stopped(capsys, "export", f"--workdir={run.workdir}", "--format=keras")
    assert status == 1
    assert line == (
        f"{disk.files / 'tmp'}: no room on the disk (more needed, 1.0 MB free); make room, or name "
        "another folder with TMPDIR, then run the same command again"
    )
    assert names_in(disk.files / "tmp") == []
    assert not (run.workdir / "export").exists()
