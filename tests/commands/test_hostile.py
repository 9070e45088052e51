"""Hostile surroundings: kills, full disks, odd files and closed pipes end in one clear line."""

import copy
import errno
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import types

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from multitask import __main__ as console
from multitask.__main__ import main
from multitask.annexes.serve.neighbours import load_attention
from multitask.calibration import Calibration
from multitask.feature_distance import DISTANCE, fit_distance
from multitask.files import write_json
from multitask.run import check_same_data, check_workdir, open_run, start_run, write_config
from multitask.serving import agreement
from multitask.serving.prediction_files import PredictionFile
from multitask.serving.predictor import FORMAT, read_export
from multitask.spec import InputError, load_spec
from multitask.trained import open_trained

pytestmark = pytest.mark.usefixtures("untimed")

HANG_S = 300  # a command that is still running then waits for ever


def stopped(capsys, *argv):
    """(status, the one line on stderr) of a command that fails."""
    with pytest.raises(SystemExit) as caught:
        main([str(one) for one in argv])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return caught.value.code, err.rstrip("\n")


def names_in(folder):
    """All files below a folder, but locks."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    )


# === Stopped at any moment ===


class Killed(BaseException):
    """What no command handles. Its temporary files are removed, which a SIGKILL would not do;
    tests/test_killed_at_renames.py has those."""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The flag of one folder of records: equal data sets, of several tests, are read once."""
    return f"--records_dir={tmp_path_factory.mktemp('records')}"


@pytest.fixture
def train(records, tiny_data, tiny_spec, tiny_trunk, renames, tmp_path, capsys):
    """A function: moment of tests/renames.py or None -> what a training printed until then."""
    tiny_data()
    spec = tiny_spec(tasks=("style",), phases={"heads": {"epochs": 1}, "finetune": {"epochs": 0}})
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    command = [
        *("train", f"--spec={tmp_path / 'spec.toml'}", f"--data_dir={tmp_path / 'data'}"),
        *(f"--workdir={tmp_path / 'run'}", "--trunk=tiny", "--nosimilar", records),
    ]

    def run(until=None):
        def at(moment):
            if renames.general(moment) == until:
                raise Killed

        with renames.watching(tmp_path, at):
            if until:
                with pytest.raises(Killed):
                    main(command)
            else:
                main(command)
        return capsys.readouterr().out

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def test_killed_before_its_settings_were_written_a_run_is_taken_up(train, tmp_path):
    train(until="before run/config.json")
    # As an older version left it, too.
    for name in ("models", "logs"):
        (tmp_path / "run" / name).mkdir(exist_ok=True)
    (tmp_path / "run" / ".tmp-999999999-config.json").write_text("half")
    train(until="after run/config.json")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["config.json", "logs", "models"]


@pytest.mark.usefixtures("undrawn")
def test_killed_before_its_last_file_an_evaluation_is_done_again(train, tmp_path):
    results, model = tmp_path / "run" / "results", tmp_path / "run" / "models" / "best_model.keras"
    train(until="after run/results/metrics.json")
    assert not (results / "report.html").exists()
    out = train()
    assert "Nothing is left to train" in out
    assert "Evaluating " in out
    assert (results / "report.html").exists()
    assert "Evaluating " not in train()
    # The model is another one, though no newer.
    with model.open("ab") as file:
        file.write(b"x")
    os.utime(model, (0, 0))
    # It begins, which is enough: to its end takes seconds.
    assert "Evaluating " in train(until="before run/results/calibration.json")


# === No room on the disk ===

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


# === Files that are not regular ===

COLOURS_SPEC = """
name = "colours"
images = "images"
image_size = 32
validation = 0.0
max_missing = 0.2
[trunk]
name = "efficientnetb0"
weights = "none"
schedule = { kind = "constant", rate = 1e-3 }
[[task]]
name = "shade"
train = "lists/shade_train.csv"
test = "lists/shade_val.csv"
classes = "lists/shade_class.txt"
head = { kind = "linear" }
loss = { kind = "focal", gamma = 1.0, alpha = 1.0 }
schedule = { kind = "constant", rate = 1e-3 }
"""


@pytest.fixture
def place(known, tmp_path):
    """A folder with data/, spec.toml that fits it, and run/, whose model's answers are known."""
    (tmp_path / "spec.toml").write_text(COLOURS_SPEC)
    known.make_run(tmp_path / "run", known.paint(tmp_path / "data"), tasks=("shade",))
    return tmp_path


@pytest.fixture
def no_hang():
    def fail(number, frame):
        raise TimeoutError("the command waits for ever")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HANG_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def shell(line, *argv):
    """A line for bash, in which "$@" is the command of argv."""
    command = [sys.executable, "-m", "multitask", *map(str, argv)]
    return subprocess.run(
        ["bash", "-c", line, "bash", *command], capture_output=True, text=True, timeout=HANG_S
    )


def paint(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (200, 30, 60)).save(file, "PNG")


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**36)


FIFO, DEVICE = "it is a named pipe (FIFO), not a regular file", "it is a device, not a regular file"
LARGE = "it is larger than the limit of 268,435,456 bytes"
TRAIN = ("--spec={}/spec.toml", "--data_dir={}/data")


@pytest.mark.parametrize(
    ("path", "make", "reason"),
    [
        ("spec.toml", pipe, FIFO),
        ("spec.toml", device, DEVICE),
        ("spec.toml", sparse, LARGE),
        ("data/lists/shade_train.csv", pipe, FIFO),
        ("data/lists/shade_train.csv", device, DEVICE),
        ("data/lists/shade_val.csv", sparse, LARGE),
        ("data/lists/shade_class.txt", pipe, FIFO),
        ("data/lists/shade_class.txt", device, DEVICE),
        ("run/models/best_model.keras", pipe, FIFO),
        ("run/models/best_model.keras", device, DEVICE),
    ],
)
def test_what_a_flag_or_a_spec_names_is_a_regular_file(place, capsys, no_hang, path, make, reason):
    make(place / path)
    argv = ["audit", *TRAIN, "--out={}/audit"]
    if path.startswith("run"):
        argv = ["predict", "--workdir={}/run", "{}/data/images"]
    with pytest.raises(SystemExit) as stopped:
        main([word.format(place) for word in argv])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err == f"{place / path}: cannot be read: {reason}\n"
    assert not (place / "audit").exists()


def test_an_export_is_of_regular_files(place, capsys, no_hang):
    from multitask.serving.export import export

    whole = export(open_run(place / "run"), formats=("keras",))
    (whole / "colours/1").mkdir(parents=True)
    text = (whole / "classes.json").read_text()
    more = '"artifacts": {\n  "onnx": "colours.onnx",\n  "savedmodel": "colours/1",'
    (whole / "classes.json").write_text(text.replace('"artifacts": {', more))
    for name in ("classes.json", "report.json", "colours.onnx", "colours/1/x.pb"):
        folder = place / f"export-{name.replace('/', '-')}"
        shutil.copytree(whole, folder)
        pipe(folder / name)
        code, err = stopped(capsys, "predict", f"--model={folder}", place / "data/images")
        assert code == 2
        assert err == f"--model: {folder}: not an export of multitask ({FIFO})"


def test_files_that_are_not_regular_are_listed_and_the_others_predicted(place, capsys, no_hang):
    paint(place / "good.png")
    pipe(place / "pipe.jpg")
    device(place / "zero.jpg")
    sparse(place / "sparse.jpg")
    names = [place / name for name in ("pipe.jpg", "zero.jpg", "good.png", "sparse.jpg")]
    main(["predict", f"--workdir={place}/run", *map(str, names)])
    out, err = capsys.readouterr()
    assert out.startswith(f"{place}/good.png\n")
    assert err.splitlines() == [
        f"{place}/pipe.jpg: cannot be read: {FIFO}",
        f"{place}/zero.jpg: cannot be read: {DEVICE}",
        f"{place}/sparse.jpg: cannot be read: it is larger than the limit of 536,870,912 bytes",
    ]


def test_a_data_set_with_images_that_are_not_regular_files(place, capsys, no_hang):
    """Prepared and audited: they count as unreadable, and nothing waits for them."""
    lists, images = place / "data/lists", place / "data/images"
    first, second = (lists / "shade_train.csv").read_text().splitlines()[:2]
    pipe(images / first.split(",")[0])
    device(images / second.split(",")[0])
    flags = [word.format(place) for word in TRAIN]
    main(["prepare", *flags])
    assert "3 missing, 2 unreadable" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["audit", *flags, f"--out={place}/audit"])
    assert caught.value.code == 3
    assert "3 missing files, 2 unreadable files" in capsys.readouterr().out


# === Closed pipes and skipped files ===

STATUS = '; echo "${PIPESTATUS[0]}"'


@pytest.mark.parametrize(
    ("line", "argv", "shown"),
    [
        ('"$@" | head -1', ["predict", "--workdir={}/run", "{}/many"], "{}/many/000.png\n"),
        pytest.param(
            '"$@" 2>&1 | head -1',
            ["predict", "--workdir={}/run", "{}/many"],
            "{}/many/000.png\n",
            marks=pytest.mark.slow,
        ),
        ('"$@" | false', ["predict", "--help"], ""),
        ('"$@" 2>&1 | false', ["predict", "{}/nowhere.png"], ""),
    ],
)
def test_a_reader_that_leaves_ends_the_command_without_a_word(place, line, argv, shown):
    paint(*(place / f"many/{i:03}.png" for i in range(300)))
    done = shell(line + STATUS, *(word.format(place) for word in argv))
    assert done.stderr == ""
    assert done.stdout == f"{shown}141\n".format(place)


def in_a_process(monkeypatch, *argv):
    done = shell('"$@" 2>&1 | false' + STATUS, *argv)
    assert (done.stdout, done.stderr) == ("0\n", "")


def in_this_process(monkeypatch, *argv):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        patch.setattr(sys, "stderr", pipe)
        main([str(word) for word in argv])


@pytest.mark.parametrize(
    "run",
    [pytest.param(in_a_process, marks=pytest.mark.slow), in_this_process],  # TensorFlow's import
)
def test_what_goes_into_a_file_is_finished_without_a_reader(place, monkeypatch, run):
    paint(*(place / f"many/{i:03}.png" for i in range(40)))
    (place / "many/broken.png").write_bytes(b"no image")
    flags = [f"--workdir={place}/run", f"--out={place}/answers.csv"]
    run(monkeypatch, "predict", *flags, place / "many")
    assert len((place / "answers.csv").read_text().splitlines()) == 42
    assert not (place / "answers.csv.partial").exists()


OPENED_AFTER = """
import os, sys
from multitask.__main__ import main
try:
    main(["--version"])
except SystemExit as stopped:
    assert stopped.code == 0
for descriptor in range(3):
    os.fstat(descriptor)
    os.write(descriptor, b"of a library")
with open(sys.argv[1], "wb") as file:
    assert file.fileno() > 2
print("answered")
print("noted", file=sys.stderr)
"""


def test_a_file_does_not_become_the_console(tmp_path):
    """Where the output was closed before the start; of a command without TensorFlow."""
    line = '"$@" >&- 2>&- <&-; echo $?'
    command = [sys.executable, "-c", OPENED_AFTER, str(tmp_path / "file")]
    done = subprocess.run(["bash", "-c", line, "bash", *command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.slow  # TensorFlow is imported once more
def test_output_that_was_closed_before_the_start(place):
    """What is then opened first must not become the console of a library."""
    paint(place / "one.png")
    done = shell(
        '"$@" >&- 2>&- <&-; echo $?', "predict", f"--workdir={place}/run", place / "one.png"
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_other_files_of_a_folder_are_counted(place, capsys):
    paint(place / "top/own.jpg", place / "store/1.jpg", place / "store/2.JPE")
    paint(place / "top/saved.jfif", place / "top/._own.jpg")
    for name in ("a.psd", "b.txt", "c.txt"):
        (place / "top" / name).write_bytes(b"")
    (place / "top/roll").symlink_to("../store")
    (place / "top/again").symlink_to(".")
    pipe(place / "top/pipe.png")
    main(["predict", f"--workdir={place}/run", f"{place}/top"])
    message = capsys.readouterr()
    answered = [line for line in message.out.splitlines() if line.startswith("/")]
    names = ("own.jpg", "roll/1.jpg", "roll/2.JPE", "saved.jfif")
    assert answered == [f"{place}/top/{name}" for name in names]
    assert message.err == (
        "Skipped 5 files: 3 of another type (.txt, .psd), 1 not a regular file "
        f"({place}/top/pipe.png), 1 hidden (names that begin with a dot), 1 link to a folder that "
        "was already read\n"
    )
    shutil.rmtree(place / "store")
    for name in ("own.jpg", "saved.jfif"):
        (place / "top" / name).unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["predict", f"--workdir={place}/run", f"{place}/top"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{place}/top: no image in this folder (names ending in .jpg, ")
    assert f"1 link that leads nowhere ({place}/top/roll)" in err
    assert err.count("\n") == 1


# === Specs and lists ===

ODD_FILES = {
    "empty": b"",
    "half": b'{"spec": {',
    "no JSON": b"Traceback (most recent call last):",
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a list": b"[]",
    "null": b"null",
    "a number": b"1e999999",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"spec":' * 2000 + b"1" + b"}" * 2000,
    "deep but parsed": b'{"spec":' * 300 + b"1" + b"}" * 300,
    "many digits": b'{"spec": ' + b"9" * 5000 + b"}",
    "other keys": b'{"a": 1}',
}
ODD_VALUES = [None, True, -1, 0, 1e308, float("inf"), float("nan"), "", "a\0b", "x" * 3000, [], {}]
ODD_VALUES += [[[[]]], {"a": {"b": []}}, 10**400, "../..", "\ud800"]


@pytest.fixture(scope="module")
def read_back(tmp_path_factory):
    """What is read back: name -> its file, as it is written, and the function that reads it."""
    root = tmp_path_factory.mktemp("read_back")
    spec = load_spec("demo")
    run = start_run(root / "run", spec, root, fingerprint="0")
    run.best_model.write_bytes(b"")
    calibration = Calibration(1.5, 20, {"raw": ((0.5, 0.8, 0.9),), "calibrated": ()}).to_dict()
    write_json(
        run.results / "calibration.json",
        {
            "model": "models/best_model.keras",
            "tasks": dict.fromkeys(spec.task_names, calibration),
        },
    )
    distance = fit_distance(*(np.random.default_rng(s).random((40, 5)) for s in (0, 1))).to_dict()
    write_json(run.results / DISTANCE, {"model": "models/best_model.keras"} | distance)
    write_json(root / "export" / DISTANCE, distance)
    write_json(
        root / "export/classes.json",
        {
            "format": FORMAT,
            "spec": "demo",
            "image_size": 32,
            "resize": "squash",
            "reduced_px": 37,
            "classes": {"style": ["a", "b"]},
            "calibration": {"style": calibration},
            "model": "0" * 64,
            "artifacts": {"keras": "model.keras"},
            "distance": DISTANCE,
        },
    )
    (root / "export/report.json").write_text("{}")
    search, settings = root / "search/tune", {"metric": "macro_f1", "search": ["heads"]}
    write_config(search, spec, root, fingerprint="0", **settings)
    write_json(root / "answers.csv.partial", {"model": "m", "tta": None})
    # A file of ours is one line.
    (root / "answers.csv.partial").write_text('{"model": "m", "tta": null}\n{"path": "a.jpg"}\n')

    def resume():
        settings = {"model": "m", "tta": None}
        PredictionFile(root / "answers.csv", settings, {"style": ("a", "b")}, resume=True).close()

    def check_search():
        check_workdir(search, spec, kind="search", **settings)
        check_same_data(search, "0", kind="search")

    def open_and_check():
        check_workdir(run.workdir, spec)
        check_same_data(run.workdir, "0")
        open_run(run.workdir)

    return {
        "config": (run.workdir / "config.json", open_and_check),
        "calibration": (
            run.results / "calibration.json",
            lambda: open_trained(run).calibrations,
        ),
        "classes": (root / "export/classes.json", lambda: read_export(root / "export")),
        "distance": (run.results / DISTANCE, lambda: open_trained(run).distance),
        "exported": (root / "export" / DISTANCE, lambda: read_export(root / "export")),
        "search": (
            root / "search/tune/config.json",
            check_search,
        ),
        "answers": (root / "answers.csv.partial", resume),
    }


def places(content, place=()):
    """Every key and index of nested JSON, three of a list at most."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content[:3])
    for key, value in pairs:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places(value, (*place, key))


def changed(content, place, value):
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


READ_BACK = ["config", "calibration", "distance", "classes", "exported", "search", "answers"]


@pytest.mark.parametrize("content", ODD_FILES.values(), ids=ODD_FILES)
@pytest.mark.parametrize("name", READ_BACK)
def test_a_file_of_ours_that_is_something_else(read_back, name, content):
    file, read = read_back[name]
    read()
    before = file.read_bytes()
    file.write_bytes(content + b"\n" if name == "answers" else content)
    try:
        with pytest.raises(InputError) as caught:
            read()
    finally:
        file.write_bytes(before)
    assert str(file.parent) in str(caught.value) or str(file) in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", READ_BACK[:-1])
def test_a_file_of_ours_with_one_odd_value(read_back, name):
    """Whatever stands there, reading it works or is one InputError."""
    file, read = read_back[name]
    before = file.read_text(encoding="utf-8")
    content, refused = json.loads(before), 0
    rng = random.Random(0)
    every = list(itertools.product(places(content), ODD_VALUES))
    try:
        for place, value in rng.sample(every, min(400, len(every))):
            file.write_text(json.dumps(changed(content, place, value)), encoding="utf-8")
            try:
                read()
            except InputError:
                refused += 1
    finally:
        file.write_text(before, encoding="utf-8")
    assert refused > 50
    read()


def in_one_line(capsys, *argv, status=2):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert stopped.value.code == status
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert err.isprintable() or err[:-1].isprintable()
    assert len(err) < 2000
    return err, out


SPEC = """
name = "hostile"
images = "images"
image_size = 32
batch_size = 4
validation = 0.2
[trunk]
name = "tiny"
weights = "none"
schedule = { kind = "constant", rate = 1e-3 }
[phases.heads]
epochs = 1
[phases.finetune]
epochs = 0
[[task]]
name = "kind"
train = "train.csv"
classes = "classes.txt"
head = { kind = "linear" }
loss = { kind = "focal" }
schedule = { kind = "constant", rate = 1e-3 }
"""


@pytest.fixture
def collection(tmp_path, write_image):
    """A folder with spec.toml and data/: 12 training images of two classes, and no test set."""
    for i in range(12):
        write_image(tmp_path / f"data/images/p{i:02}.jpg", seed=i)
    rows = "".join(f"p{i:02}.jpg,{i % 2}\n" for i in range(12))
    (tmp_path / "data/train.csv").write_text(rows)
    (tmp_path / "data/classes.txt").write_text("0 a\n1 b\n")
    (tmp_path / "spec.toml").write_text(SPEC)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 2000 + "]" * 2000, "nested tables or lists"),
        ("x = " + "{a=" * 2000 + "1" + "}" * 2000, "nested tables or lists"),
        (".".join("a" * 2000) + " = 1", "nested tables or lists"),
        ("[" + ".".join("a" * 2000) + "]", "nested tables or lists"),
        ("[[" + ".".join("a" * 2000) + "]]", "nested tables or lists"),
        ("seed = " + "9" * 5000, "64 bits"),
        ("seed = 0x" + "f" * 5000, "64 bits"),
        ("image_size = 1" + "0" * 30, "64 bits"),
        ("licence = [" + "1, " * 3000 + "]", "valid string"),
        ("batch_size = 1e999999", "batch_size: inf: "),
        ("max_missing = nan", "max_missing: nan: "),
        (r'images = "pic\u0000tures"', r"images: 'pic\x00tures': control characters"),
        (r'title = "\u001b[2J"', r"title: '\x1b[2J': control characters"),
        (r'"a\u0000b" = 1', r'unknown field "a\x00b"'),
        (r'"a\u009bb" = 1', r'unknown field "a\x9bb"'),
        (f'"{"k" * 9000}" = 1', "unknown field"),
        ("# " + "x" * 20_000, "too large for a spec"),
        ("# x\n" * 300_000, "too large for a spec"),
        (f'licence = "{"x" * 9000}"\nname = 3', "name: 3: "),
    ],
    ids=itertools.count(),
)
def test_a_hostile_spec_is_one_line(collection, capsys, text, message):
    file = collection / "spec.toml"
    # A field stands once: that of the text.
    rest = [line for line in SPEC.split("\n") if f"{line.split(' = ')[0]} = " not in text]
    file.write_text("\n".join([text, *rest]), encoding="utf-8")
    err, _ = in_one_line(capsys, "prepare", f"--spec={file}", f"--data_dir={collection / 'data'}")
    assert err.startswith(f"{file}: ")
    assert message in err


def test_a_flag_moves_no_cursor(collection, capsys):
    err, _ = in_one_line(
        capsys, "prepare", f"--spec={collection}/\x1b[2J\x9b\u202e.toml", "--data_dir=x"
    )
    assert r"\x1b[2J\x9b\u202e.toml" in err


SECRET = "s3cret-token-of-somebody-else another-word"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('images = "images"', 'images = "{}"'),
        ('train = "train.csv"', 'train = "{}"'),
        ('train = "train.csv"', 'train = "train.csv"\ntest = "{}"'),
        ('classes = "classes.txt"', 'classes = "{}"'),
    ],
)
@pytest.mark.parametrize("kind", ["absolute", "dots", "backslashes", "drive"])
def test_a_spec_reads_nothing_outside_the_data(collection, capsys, old, new, kind):
    (collection / "secret").write_text(SECRET)
    path = {
        "absolute": collection / "secret",
        "dots": "x/../../secret",
        "backslashes": r"x\\..\\..\\secret",
        "drive": "C:secret",
    }[kind]
    file = collection / "spec.toml"
    file.write_text(SPEC.replace(old, new.format(path)))
    for command in ("audit", "prepare", "train", "tune"):
        err, out = in_one_line(
            capsys,
            command,
            f"--spec={file}",
            f"--data_dir={collection / 'data'}",
            *([f"--workdir={collection / 'run'}"] if command in ("train", "tune") else []),
            *([f"--out={collection / 'out'}"] if command == "audit" else []),
        )
        assert err.startswith(f"{file}: ")
        assert "--allow_outside" in err
        assert "s3cret" not in err + out
    assert not (collection / "run").exists()


def test_no_message_quotes_more_than_a_cell(collection, capsys):
    """Also where the flag allows what the file is not."""
    (collection / "secret").write_text(f"{SECRET}\n{SECRET}\n")
    for old in ('train = "train.csv"', 'classes = "classes.txt"'):
        field = old.split()[0]
        file = collection / "spec.toml"
        file.write_text(SPEC.replace(old, f'{field} = "../secret"'))
        argv = ("prepare", f"--spec={file}", f"--data_dir={collection / 'data'}")
        err, _ = in_one_line(capsys, *argv, "--allow_outside")
        assert f"{os.sep}secret: " in err
        assert "another-word" not in err


@pytest.mark.usefixtures("undrawn")
def test_what_was_allowed_once_is_evaluated_again(collection, records, capsys, tiny_trunk):
    """`--allow_outside` stays with the run; without it a run's paths are refused as a spec's."""
    data, run = collection / "data", collection / "run"
    (data / "train.csv").rename(collection / "list.csv")
    (data / "classes.txt").rename(collection / "names.txt")
    text = SPEC.replace("train.csv", "../list.csv").replace("classes.txt", "{}/names.txt")
    file = collection / "spec.toml"
    file.write_text(text.replace("{}", str(collection)))
    train = ["train", f"--spec={file}", f"--data_dir={data}", f"--workdir={run}", "--noevaluate"]
    train.append(records)
    main([*train, "--allow_outside"])
    config = json.loads((run / "config.json").read_text())
    assert config["allow_outside"] is True
    main(["evaluate", f"--workdir={run}", "--nosimilar"])
    assert "n/a (no test set)" in capsys.readouterr().out
    # A run of before the flag: refused, and allowed by the flag.
    del config["allow_outside"]
    write_json(run / "config.json", config)
    err, _ = in_one_line(capsys, "evaluate", f"--workdir={run}")
    assert "task[0] \"kind\": train: '../list.csv'" in err
    assert "--allow_outside" in err
    main(["evaluate", f"--workdir={run}", "--nosimilar", "--allow_outside"])


@pytest.mark.parametrize("test_list", [None, pytest.param("path,class\n", marks=pytest.mark.slow)])
def test_a_task_without_a_test_set_is_trained_and_says_so(
    collection, records, capsys, tiny_trunk, test_list
):
    data, run = collection / "data", collection / "run"
    file = collection / "spec.toml"
    if test_list is not None:
        (data / "test.csv").write_text(test_list)
        file.write_text(SPEC.replace("classes =", 'test = "test.csv"\nclasses ='))
    argv = [f"--spec={file}", f"--data_dir={data}"]
    main(["train", *argv, f"--workdir={run}", "--nosimilar", records])
    out = capsys.readouterr().out
    assert "  kind: no test set\n" in out
    assert re.search(r"heads 1/1 .* validation F1 [\d.]+ \*", out)  # chosen by it
    assert "\nkind  n/a (no test set)\n" in out
    results = json.loads((run / "results/metrics.json").read_text())
    assert results["without_test_set"] == ["kind"]
    assert results["metrics"]["kind/labelled"] == 0
    names = ("top1", "top5", "macro_f1", "weighted_f1", "balanced_accuracy", "ece", "outliers")
    assert {results["metrics"][f"kind/{name}"] for name in names} == {None}
    page = (run / "results/report.html").read_text(encoding="utf-8")
    assert page.count("n/a (no test set)") == 2
    report = (run / "results/classification_report_kind.txt").read_text()
    assert report == "n/a (no test set)\n"
    if test_list is not None:
        return
    main(["audit", *argv, f"--out={collection / 'audit'}"])
    out = capsys.readouterr().out
    assert "  kind: no test set\n" in out
    assert out.endswith("No findings.\n")
    shutil.copytree(run, collection / "other")
    err, _ = in_one_line(
        capsys, "compare", run, collection / "other", f"--out={collection / 'compared'}"
    )
    assert "kind: not compared, no test set" in err
    main(["export", f"--workdir={run}", "--format=keras"])
    out = capsys.readouterr().out
    assert out.startswith("Checked 10 training images (no test set) against best_model.keras")
    assert "n/a/n/a" in out
    card = (run / "export/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| kind | n/a (no test set) |" in card
    assert "10 training images (no test set)" in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "test", "classes"),
    [
        ("p00.jpg,0\n", None, "0 a\n1 b\n"),
        ("p00.jpg,0\n", "p01.jpg,1\n", "0 a\n1 b\n"),
        ("p00.jpg,0\np01.jpg,0\np02.jpg,0\n", "p03.jpg,0\n", "0 a\n"),
    ],
    ids=["one row", "a class without training", "one class"],
)
def test_the_smallest_collections_are_trained(collection, capsys, tiny_trunk, train, test, classes):
    data = collection / "data"
    (data / "train.csv").write_text(train)
    (data / "classes.txt").write_text(classes)
    if test:
        (data / "test.csv").write_text(test)
        spec = SPEC.replace("classes =", 'test = "test.csv"\nclasses =')
        (collection / "spec.toml").write_text(spec)
    argv = [f"--spec={collection / 'spec.toml'}", f"--data_dir={data}", "--nosimilar"]
    main(["train", *argv, f"--workdir={collection / 'run'}"])
    out = capsys.readouterr().out
    assert ("has a single class" in out) == (classes == "0 a\n")
    assert (collection / "run/results/report.html").is_file()


@pytest.mark.usefixtures("undrawn")
def test_every_command_reports_paths_in_another_spelling(collection, capsys, tiny_trunk):
    data, run = collection / "data", collection / "run"
    images = data / "images"
    (images / "p00.jpg").rename(images / "P00.JPG")
    (images / "p01.jpg").rename(images / "cafe\u0301.jpg")
    rows = (data / "train.csv").read_text()
    (data / "train.csv").write_text(rows.replace("p01.jpg", "images\\café.jpg"), "utf-8")
    (data / "test.csv").write_text("P00.jpg,0\n")
    spec = SPEC.replace("classes =", 'test = "test.csv"\nclasses =')
    (collection / "spec.toml").write_text(spec)
    argv = [f"--spec={collection / 'spec.toml'}", f"--data_dir={data}"]
    message = "  3 paths are spelled differently from their file, which is read nevertheless ("
    with pytest.raises(SystemExit) as stopped:  # the test row is a training row, too
        main(["audit", *argv, f"--out={collection / 'audit'}"])
    assert stopped.value.code == 3
    out = capsys.readouterr().out
    assert message in out
    assert "letter case 2" in out
    assert "Findings: 1 image listed repeatedly, 1 class without" in out
    main(["prepare", *argv])
    assert message in capsys.readouterr().out
    main(["train", *argv, f"--workdir={run}", "--nosimilar"])
    out = capsys.readouterr().out
    assert out.count(message) == 2  # of train, and of evaluate
    assert re.search(r"^train +\d+ +\d+$", out, re.M)
    table = pd.read_csv(run / "results/predictions.csv")
    assert table["path"].tolist() == ["P00.JPG"]
    assert "excluded images" not in out


# === Names that meet ours ===


def write_spec(folder, names):
    """`tiny_data`'s tasks under other names: the spec file."""
    text = (
        'name = "own"\nimages = "wikiart"\nimage_size = 32\nbatch_size = 5\nvalidation = 0.2\n'
        '[trunk]\nname = "tiny"\nweights = "none"\n'
        'schedule = { kind = "constant", rate = 1e-3 }\n'
        "[phases.heads]\nepochs = 2\n"
    )
    for file, name in zip(("artist", "genre", "style"), names, strict=True):
        text += (
            f'[[task]]\nname = "{name}"\ntrain = "wikiart_csv/{file}_train.csv"\n'
            f'test = "wikiart_csv/{file}_val.csv"\nclasses = "wikiart_csv/{file}_class.txt"\n'
            'head = { kind = "linear" }\nloss = { kind = "focal" }\n'
            'schedule = { kind = "constant", rate = 1e-3 }\n'
        )
    spec = folder / f"{'-'.join(names)}.toml"
    spec.write_text(text)
    return spec


@pytest.mark.parametrize(
    "names",
    [
        ("image", "macro_f1", "val_loss"),
        pytest.param(("test", "trunk", "x"), marks=pytest.mark.slow),
        pytest.param(("features", "loss", "shared"), marks=pytest.mark.slow),
    ],
)
def test_tasks_called_as_ours_are_trained_as_under_harmless_names(
    names, tiny_data, tiny_trunk, tmp_path, capsys
):
    """They crashed, or took each other's place in the logs."""
    data, rows = tiny_data(), []
    for kind in (names, ("a", "b", "c")):
        flags = [f"--spec={write_spec(tmp_path, kind)}", f"--data_dir={data}"]
        workdir = tmp_path / kind[0]
        main(["train", *flags, f"--workdir={workdir}", "--phase=heads", "--noevaluate"])
        rows.append(pd.read_csv(workdir / "logs" / "history.csv"))
        assert (workdir / "models" / f"best_model_{kind[0]}.keras").is_file()
    of = dict(zip(names, "abc", strict=True))

    def harmless(name):
        task, slash, field = name.partition("/")
        return f"{of[task]}/{field}" if slash else name

    pd.testing.assert_frame_equal(rows[0].rename(columns=harmless), rows[1], check_exact=True)
    assert len(set(rows[0])) == 6 + 3 * 10


def test_a_checkpoint_of_an_earlier_version_is_one_line(
    records, tiny_data, tiny_spec, tiny_trunk, tmp_path, capsys
):
    """Its best scores and history have names of their own."""
    data = tiny_data()
    command = [
        "train",
        f"--spec={spec_file(tiny_spec(tasks=('style',)), tmp_path)}",
        f"--data_dir={data}",
        f"--workdir={tmp_path / 'run'}",
        f"--trunk={tiny_trunk}",
        records,
        "--phase=heads",
        "--noevaluate",
    ]
    main(command)
    for folder in (tmp_path / "run" / "checkpoint").iterdir():
        text = (folder / "progress.json").read_text().replace('"format": 2, ', "")
        (folder / "progress.json").write_text(text)
        sums = json.loads((folder / "sha256.json").read_text())
        sums["progress.json"] = hashlib.sha256(text.encode()).hexdigest()
        (folder / "sha256.json").write_text(json.dumps(sums))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(command)
    (line,) = capsys.readouterr().err.splitlines()
    assert "a checkpoint in format 1, this version reads 2; resume with the version" in line


# === Answers that few examples cannot give ===


def spec_file(spec, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.toml").write_text(spec.to_toml(), encoding="utf-8")
    return folder / "spec.toml"


@pytest.mark.usefixtures("undrawn")
def test_a_temperature_of_few_images_is_1_and_everything_says_why(known, data, tmp_path, capsys):
    """The case: 3 images gave T = 0.05, which was used, and `auto` then advised what was done."""
    run = known.make_run(tmp_path / "run", data, tasks=("shade", "empty"), validation=0.15)
    main(["evaluate", f"--workdir={run.workdir}", "--nosimilar"])
    console = capsys.readouterr().out
    content = json.loads((run.results / "calibration.json").read_text())["tasks"]
    evaluated = json.loads((run.results / "metrics.json").read_text())["calibration"]
    page = (run.results / "report.html").read_text()
    for task in run.spec.task_names:
        count = content[task]["fitted_on"]
        assert 1 < count < 10
        reason = f"only {count} validation images have a label, at least 30 are needed"
        assert content[task]["temperature"] == evaluated[task]["temperature"] == 1
        assert content[task]["reason"] == evaluated[task]["reason"] == reason
        assert f"Not calibrated (T = 1): {task}: {reason}\n" in console
        assert task == "empty" or f"<p>Not calibrated (T = 1): {reason}." in page
    assert "Calibration error by temperature scaling" not in console
    image = next(iter((data.folder / "images").rglob("*.png")))
    with pytest.raises(SystemExit) as stopped:
        main(["predict", f"--workdir={run.workdir}", "--min_confidence=auto:0.9", str(image)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    for task in run.spec.task_names:
        assert f"{task}: only {content[task]['fitted_on']} validation images have a label" in line
    assert "multitask evaluate" not in line  # it was
    assert "Give a number, such as 0.6" in line
    main(["predict", f"--workdir={run.workdir}", "--min_confidence=0.6", str(image)])  # it helps


@pytest.mark.parametrize(("heads", "finetune"), [(1, 0), (0, 1)])
def test_a_phase_of_no_epochs_is_skipped(
    heads, finetune, records, tiny_data, tiny_spec, tiny_trunk, tmp_path, capsys
):
    spec = spec_file(tiny_spec(tasks=("style",), validation=0.25), tmp_path)
    command = [
        "train",
        f"--spec={spec}",
        f"--data_dir={tiny_data()}",
        f"--workdir={tmp_path / 'run'}",
        f"--trunk={tiny_trunk}",
        f"--epochs_heads={heads}",
        f"--epochs_finetune={finetune}",
        records,
        "--noevaluate",
    ]
    main(command)
    out = capsys.readouterr().out
    trained = "heads" if heads else "finetune"
    assert re.findall(r"^Phase (\w+):", out, re.MULTILINE) == [trained]
    assert list(pd.read_csv(tmp_path / "run" / "logs" / "history.csv")["phase"]) == [trained]
    newest = max((tmp_path / "run" / "checkpoint").iterdir())
    assert json.loads((newest / "progress.json").read_text())["finished"] == [trained]
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.keras")}
    main(command)
    out = capsys.readouterr().out
    assert "Nothing is left to train" in out
    assert "Phase" not in out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.keras")} == files


def test_advice_names_what_helps(tiny_data, tiny_spec, tiny_trunk, tmp_path, capsys):
    """`--phase=finetune` of a spec without the phase heads does not advise `--phase=heads`, which
    is refused; and the share of missing images that is advised is enough."""
    root = tiny_data()
    phases = {"heads": {"epochs": 0}, "finetune": {"epochs": 1}}
    spec = spec_file(tiny_spec(tasks=("style",), phases=phases), tmp_path)
    command = [
        "train",
        f"--spec={spec}",
        f"--data_dir={root}",
        f"--workdir={tmp_path / 'run'}",
        f"--trunk={tiny_trunk}",
        "--noevaluate",
    ]

    def refused(*flags):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *flags])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "; train with --phase=all, or name one with" in refused("--phase=finetune")
    for path in sorted((root / "wikiart").rglob("*.jpg"))[:5]:
        path.unlink()
    line = refused()
    share = re.search(r"allow them to be missing with (--max_missing=[0-9.]*[0-9])\.$", line)
    assert share, line
    main([*command, share[1]])
    assert (tmp_path / "run" / "models" / "best_model.keras").is_file()
    shutil.rmtree(root / "wikiart" / "Dots")
    shutil.rmtree(root / "wikiart" / "Lines")
    shutil.rmtree(root / "wikiart" / "Waves")
    command[3] = f"--workdir={tmp_path / 'other'}"
    assert "--max_missing" not in refused()  # no share allows that all are missing


# === Exports ===

NASTY = "d [2024] {a,b} * ? %20 #1 'x\" é $m$ \\d"


def test_an_export_below_a_folder_that_is_a_pattern(known, data, tmp_path, capsys):
    """TensorFlow reads a SavedModel's weights by pattern: `m [v1]` is `m v` and `m 1` to it."""
    run = known.make_run(tmp_path / NASTY / "run", data, tasks=("warmth",))
    main(["export", f"--workdir={run.workdir}", "--check_images=3"])
    # What the pattern matches is another model.
    other = known.make_run(tmp_path / "d 2 {a,b} * ? %20 #1 'x\" é $m$ d" / "run", data)
    assert other.best_model.is_file()
    image = next(path for path in data.painted if path not in data.missing)
    capsys.readouterr()
    main(
        [
            "predict",
            f"--model={run.workdir / 'export'}",
            "--runtime=tensorflow",
            str(data.folder / "images" / image),
        ]
    )
    out = capsys.readouterr().out
    message = known.answers(data.painted[image][None])["warmth"][0]
    assert f"warmth  {known.WARMTH[message.argmax()]} {message.max():.3f}" in out
    assert callable(load_attention(run.workdir / "export"))


@pytest.mark.slow
def test_every_command_in_a_folder_of_a_nasty_name(
    tiny_data, tiny_spec, tiny_trunk, tmp_path, monkeypatch, capsys
):
    """The name has what shells, globs, URLs, formats and formulas act on."""
    monkeypatch.setitem(agreement.BOUNDS, "int8", agreement.Bound(0.1, 0.0))  # hardly trained
    place = tmp_path / NASTY
    root = tiny_data(folder=f"{NASTY}/data")
    spec = spec_file(tiny_spec(validation=0.25, trunk={
        "name": tiny_trunk, "weights": "none", "schedule": {"kind": "constant", "rate": 1e-3}
    }), place)  # fmt: skip
    data = [f"--spec={spec}", f"--data_dir={root}"]
    image = str(next((root / "wikiart").rglob("*.jpg")))
    run = place / "run"
    main(["audit", *data, f"--out={place / 'audit'}"])
    main(["prepare", *data])
    for _ in range(2):
        main(["train", *data, f"--workdir={run}"])
    shutil.copytree(run, place / "other")
    for trials in (1, 2):
        main(["tune", *data, f"--workdir={place / 'tuned'}", f"--trials={trials}"])
    main(["evaluate", f"--workdir={run}"])
    main(["compare", str(run), str(place / "other"), f"--out={place / 'compared'}"])
    main(["export", f"--workdir={run}", "--format=savedmodel,onnx,litert,keras"])
    quantized = f"--out={place / 'small'}"
    main(["export", f"--workdir={run}", "--format=onnx,litert", "--quantize=int8", quantized])
    main(["similar", f"--workdir={run}", image])
    main(["predict", f"--workdir={run}", image])
    for runtime, out in (
        ("tensorflow", "a.csv"),
        ("onnxruntime", "b.jsonl"),
        ("openvino", "c.parquet"),
        ("litert", "d.csv"),
    ):
        model = [f"--model={run / 'export'}", f"--runtime={runtime}", f"--out={place / out}"]
        main(["predict", *model, str(root / "wikiart")])
        assert (place / out).stat().st_size
    assert callable(load_attention(run / "export"))
    for file in (
        "audit/audit.html",
        "run/results/report.html",
        "tuned/tune/study.db",
        "tuned/tune/best.toml",
        "compared/comparison.html",
        "run/export/classes.json",
        "small/classes.json",
    ):
        assert (place / file).stat().st_size, file
    # Nothing went elsewhere, to a place that the name means as a pattern or an address.
    assert [path.name for path in tmp_path.iterdir()] == [NASTY]
