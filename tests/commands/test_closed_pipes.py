"""Standard output that is closed, and files of a folder that are skipped."""

import os
import shutil
import subprocess
import sys

import pytest
from odd_files import paint, pipe, shell

from multitask.__main__ import main

STATUS = '; echo "${PIPESTATUS[0]}"'


@pytest.mark.parametrize(
    ("line", "argv", "shown"),
    [
        pytest.param(
            '"$@" | head -1',
            ["predict", "--workdir={}/run", "{}/many"],
            "{}/many/000.png\n",
            marks=pytest.mark.slow,
        ),
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
def test_a_reader_that_leaves_ends_the_command_without_a_word(colours, line, argv, shown):
    paint(*(colours / f"many/{i:03}.png" for i in range(300)))
    done = shell(line + STATUS, *(word.format(colours) for word in argv))
    assert done.stderr == ""
    assert done.stdout == f"{shown}141\n".format(colours)


def test_a_reader_that_leaves_ends_a_prediction(colours, monkeypatch):
    """As above, of a command with TensorFlow, whose import takes seconds in another process."""
    paint(*(colours / f"many/{i:03}.png" for i in range(300)))
    head = subprocess.Popen(["head", "-1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with open(head.stdin.fileno(), "w", closefd=False) as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as stopped:
            main(["predict", f"--workdir={colours}/run", f"{colours}/many"])
    shown, _ = head.communicate()
    assert (stopped.value.code, shown.decode()) == (141, f"{colours}/many/000.png\n")


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
def test_what_goes_into_a_file_is_finished_without_a_reader(colours, monkeypatch, run):
    paint(*(colours / f"many/{i:03}.png" for i in range(40)))
    (colours / "many/broken.png").write_bytes(b"no image")
    flags = [f"--workdir={colours}/run", f"--out={colours}/answers.csv"]
    run(monkeypatch, "predict", *flags, colours / "many")
    assert len((colours / "answers.csv").read_text().splitlines()) == 42
    assert not (colours / "answers.csv.partial").exists()


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
def test_output_that_was_closed_before_the_start(colours):
    """What is then opened first must not become the console of a library."""
    paint(colours / "one.png")
    done = shell(
        '"$@" >&- 2>&- <&-; echo $?', "predict", f"--workdir={colours}/run", colours / "one.png"
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_other_files_of_a_folder_are_counted(colours, capsys):
    paint(colours / "top/own.jpg", colours / "store/1.jpg", colours / "store/2.JPE")
    paint(colours / "top/saved.jfif", colours / "top/._own.jpg")
    for name in ("a.psd", "b.txt", "c.txt"):
        (colours / "top" / name).write_bytes(b"")
    (colours / "top/roll").symlink_to("../store")
    (colours / "top/again").symlink_to(".")
    pipe(colours / "top/pipe.png")
    main(["predict", f"--workdir={colours}/run", f"{colours}/top"])
    message = capsys.readouterr()
    answered = [line for line in message.out.splitlines() if line.startswith("/")]
    names = ("own.jpg", "roll/1.jpg", "roll/2.JPE", "saved.jfif")
    assert answered == [f"{colours}/top/{name}" for name in names]
    assert message.err == (
        "Skipped 5 files: 3 of another type (.txt, .psd), 1 not a regular file "
        f"({colours}/top/pipe.png), 1 hidden (names that begin with a dot), 1 link to a folder "
        "that was already read\n"
    )
    shutil.rmtree(colours / "store")
    for name in ("own.jpg", "saved.jfif"):
        (colours / "top" / name).unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["predict", f"--workdir={colours}/run", f"{colours}/top"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{colours}/top: no image in this folder (names ending in .jpg, ")
    assert f"1 link that leads nowhere ({colours}/top/roll)" in err
    assert err.count("\n") == 1
