"""The command `serve`, in a process of its own."""

import contextlib
import re
import resource
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from served import ask, check, encoded, plain, refused, start

from multitask.__main__ import main

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow),
        (signal.SIGINT, 130, "stopped"),
    ],
)
def test_the_command_serves_without_writing_until_it_is_stopped(run, known, number, status, word):
    flags = ("--min_confidence=0.5", "--max_upload_mb=4")
    process, port = start(f"--model={run.workdir / 'export'}", *flags)
    try:
        # From here on, it cannot write a byte to any file; a pipe is none.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
        colour = known.colours(1, 25)[0]
        pixels = np.random.default_rng(0).integers(0, 256, (600, 1600, 3)).astype(np.uint8)
        noise = encoded(Image.fromarray(pixels), compress_level=0)
        assert 2e6 < len(noise) < 4e6  # servers keep the first megabyte in memory
        assert ask(port, noise, path="/predict?attention=1")[0] == 200
        assert refused(port, noise + b"\0" * 2_000_000)[0] == 413
        reply = ask(port, plain(colour))
        check(known, reply[2], colour)
        # What was asked before the signal is answered.
        with ThreadPoolExecutor(1) as people:
            last = people.submit(ask, port, noise)
            time.sleep(0.1)
            process.send_signal(number)
            assert last.result(30)[0] == 200
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (status, f"{word}\n")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_idle_connections_do_not_take_all_files(run, known):
    """The process may open 700 files; 500 clients connect and send nothing, or half a head."""
    process, port = start(
        f"--model={run.workdir / 'export'}",
        "--min_confidence=0.5",
        "--max_connections_per_address=1000",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 700)),
    )
    try:
        with contextlib.ExitStack() as idle:
            for number in range(500):
                client = idle.enter_context(socket.create_connection(("127.0.0.1", port), 30))
                client.sendall(b"GET / HT" if number % 2 else b"")
            colour = known.colours(1, 29)[0]
            status, _, message = ask(port, plain(colour))
            assert status == 200
            check(known, message, colour)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 143
        room = (
            "--max_connections=1000: 60 are used, as the system limits a process to 700 open files"
        )
        assert err.splitlines() == [f"{room} (ulimit -n)", "terminated"]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_memory_of_large_images_is_given_back(run):
    process, port = start(f"--model={run.workdir / 'export'}")

    def memory_mb(field):
        with open(f"/proc/{process.pid}/status") as lines:
            return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(field))

    try:
        data = plain((200, 30, 30), (10_000, 10_000))
        assert ask(port, plain((200, 30, 30), (4000, 4000)))[0] == 200
        before = memory_mb("VmRSS")
        with ThreadPoolExecutor(3) as people:
            replies = list(people.map(lambda _: ask(port, data), range(3)))
        assert {status for status, _, _ in replies} == {200}
        peak, after = memory_mb("VmHWM"), memory_mb("VmRSS")
        assert 250 < peak - before < 900  # 300 MB of pixels, of one at a time
        assert after - before < 100
    finally:
        process.kill()
        process.communicate()


def wrong(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        main(["serve", *map(str, argv)])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_a_wrong_start_is_one_line(capsys, folder, run, tmp_path, monkeypatch):
    model = f"--model={folder}"
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        line = wrong(capsys, model, f"--port={taken}")
        assert line == f"--port: 127.0.0.1:{taken}: address already in use"
    assert wrong(capsys, model, "--host=no such").startswith("--host: 'no such': ")
    assert "no such folder" in wrong(capsys, "--model=gone", "--port=0")
    limits = {"upload_mb": (0, "nan", "inf"), "megapixels": (0, 179)}
    for flag, value in ((flag, value) for flag, values in limits.items() for value in values):
        assert wrong(capsys, model, "--port=0", f"--max_{flag}={value}").startswith(
            f"--max_{flag}: {value}: "
        )
    bounds = {
        "upload_timeout_s": (0, "nan"),
        "min_upload_kb_s": (-1, "nan"),
        "header_timeout_s": (0, 3601),
        "keep_alive_timeout_s": ("nan", "inf"),
    }
    for flag, value in ((flag, value) for flag, values in bounds.items() for value in values):
        line = wrong(capsys, model, "--port=0", f"--{flag}={value}")
        assert re.fullmatch(rf"--{flag}: {value}: expected [\d.]+ to 3600", line)
    line = wrong(capsys, model, "--port=0", "--min_confidence=auto:0.9")
    assert "shade has no calibration, as this model was not evaluated; `multitask eval" in line
    assert "holds no run" in wrong(capsys, model, "--port=0", f"--workdir={tmp_path}")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    line = wrong(capsys, model)
    assert line == (
        "multitask serve: needs an extra: pip install '.[serve]' (in the folder of this project)"
    )
