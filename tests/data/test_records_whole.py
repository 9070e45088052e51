"""Records are written completely or not at all, once, and without a network."""

import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import tensorflow_datasets as tfds
from logged import logged
from prepared import content, quiet, read_by_tfds, tree

from multitask.data import records_builder
from multitask.data.table import TRAIN
from multitask.spec import InputError, load_spec


def test_an_interrupted_preparation_leaves_nothing_and_the_next_is_whole(there, monkeypatch):
    spec, data = there
    want = content(quiet(spec, data).folder)
    shutil.rmtree(data / "records")

    def interrupted(data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records_builder, "_encoder", lambda *settings: interrupted)
        with pytest.raises(KeyboardInterrupt):
            quiet(spec, data)
    assert not [name for name in tree(data / "records") if "array_record" in name]
    prepared = quiet(spec, data)
    assert prepared.fresh
    assert content(prepared.folder) == want


SLOWLY = """
import logging, sys, time
from pathlib import Path
from multitask.data import records, records_builder
from multitask.spec import load_spec
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("multitask").setLevel(logging.INFO)
encode, gate = records_builder.RecordShard.__call__, Path(sys.argv[3])
def slowly(self):
    for example in encode(self):
        print("one", flush=True)
        while not gate.exists():
            time.sleep(0.05)
        yield example
records_builder.RecordShard.__call__ = slowly
prepared = records.prepare(
    load_spec(sys.argv[1]), Path(sys.argv[2]), progress=False
)
print("fresh" if prepared.fresh else "there", prepared.folder, flush=True)
"""


@pytest.fixture
def spec_file(tmp_path, tiny_spec):
    """A spec of the one task style of `tiny_data`, as a file for another process."""
    file = tmp_path / "tiny.toml"
    file.write_text(tiny_spec(tasks=("style",)).to_toml())
    return file


OFFLINE = """
import sys
requests = []
sys.addaudithook(
    lambda event, args: requests.append((event, args))
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
    else None
)
from pathlib import Path
import tensorflow as tf
for name in ("exists", "isdir", "listdir", "glob", "stat", "copy", "makedirs", "GFile"):
    def watched(*args, _call=getattr(tf.io.gfile, name), **options):
        requests.extend(("gfile", a) for a in args if "://" in str(a))
        return _call(*args, **options)
    setattr(tf.io.gfile, name, watched)
from multitask.data.records import prepare
from multitask.spec import load_spec
spec, data = load_spec(sys.argv[1]), Path(sys.argv[4])
for fresh in (True, False):
    prepared = prepare(spec, data, progress=False)
    assert prepared.fresh is fresh
    positions = tf.data.Dataset.range(12)
    assert len(list(prepared.reader("train")(positions))) == 12
print("requests", requests, flush=True)
"""


def start_slowly(spec_file, data, gate, *, before="", arguments=()):
    """A process that prepares one image and continues when the file `gate` exists.

    Args:
        spec_file: what is prepared.
        data: the data folder.
        gate: the file.
        before: Python that runs first.
        arguments: further ones of that.
    """
    return subprocess.Popen(
        [
            *(sys.executable, "-c", before + SLOWLY),
            *map(str, (spec_file, data, gate, *arguments)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def until(process, start):
    """The first line of its output that starts so."""
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(process.stderr.read())


@pytest.fixture
def elsewhere(tiny_data, spec_file, shelf):
    """(the requests that a process printed, the folder of records during which it was killed)."""
    printed, data = shelf / "printed.txt", shelf / "killed"
    if not printed.is_file():
        whole = tiny_data(folder=shelf / "offline")
        never = tiny_data(folder=data) / "never"
        with start_slowly(spec_file, data, never, before=OFFLINE, arguments=[whole]) as process:
            requests = until(process, "requests")
            assert until(process, "one")
            process.send_signal(signal.SIGKILL)
        printed.write_text(requests)
    return printed.read_text(), data


def test_records_of_a_killed_process_are_not_used_and_the_next_starts_over(elsewhere, spec_file):
    _, data = elsewhere
    assert [name for name in tree(data / "records") if "incomplete" in name]
    prepared = quiet(load_spec(str(spec_file)), data)
    assert prepared.fresh
    assert len(read_by_tfds(prepared.folder, TRAIN)) == 12
    assert not [name for name in tree(data / "records") if "incomplete" in name]


@pytest.mark.slow
def test_of_two_processes_one_prepares_and_the_other_waits(tiny_data, spec_file):
    data = tiny_data()
    first = start_slowly(spec_file, data, data / "gate")
    assert until(first, "one")
    second = start_slowly(spec_file, data, data / "gate")
    assert until(second, "Another process is preparing these records")
    (data / "gate").touch()
    message = [process.communicate(timeout=120)[0].splitlines() for process in (first, second)]
    assert message[0][-1].startswith("fresh ")
    assert message[1] == [message[0][-1].replace("fresh ", "there ")]


@pytest.mark.parametrize("harm", ["remove", "shorten", "forget"])
def test_records_that_are_not_whole_are_made_again(there, harm):
    spec, data = there
    prepared = quiet(spec, data)
    want = content(prepared.folder)
    file = next(prepared.folder.glob("*.array_record*"))
    if harm == "remove":
        file.unlink()
    elif harm == "shorten":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        (prepared.folder / "excluded.csv").unlink()
    again = quiet(spec, data)
    assert again.fresh
    assert content(again.folder) == want


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "*.array_record*"])
def test_a_named_pipe_among_the_records_is_refused(there, name):
    """TFDS would wait for it without end, so the test runs in a thread that it can leave."""
    spec, data = there
    file = next(quiet(spec, data).folder.glob(name))
    file.unlink()
    os.mkfifo(file)
    errors = []

    def attempt():
        with pytest.raises(InputError) as caught:
            quiet(spec, data)
        errors.append(str(caught.value))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(60)
    reason = "it is a named pipe (FIFO), not a regular file"
    remedy = "remove its folder, and the records are prepared again"
    assert errors == [f"{file}: cannot be read: {reason}; {remedy}"]


def test_records_of_an_older_version_are_named(tiny_data, tiny_spec):
    spec, data = tiny_spec(), tiny_data()
    older = data / "records/multitask/tiny-0123456789ab"
    (older / "1.0.0").mkdir(parents=True)
    (data / "records/multitask/other-0123456789ab/1.0.0").mkdir(parents=True)
    with logged() as lines:
        assert quiet(spec, data).fresh
    (line,) = [line for line in lines if "older version" in line]
    assert line.startswith("Not used: 1 folder of records")
    assert str(older) in line


def test_tfds_has_the_private_methods_that_the_builder_overrides():
    """Another name in TFDS would silently write other records."""
    base = tfds.core.ShardBasedBuilder
    for name in (
        "_create_builder_config",
        "_download_and_prepare",
        "_example_writer",
        "_info",
        "_log_download_bytes",
        "_log_download_done",
        "_shard_iterators_per_split",
    ):
        assert callable(getattr(base, name)), name


# === No network ===


def test_nothing_uses_the_network(elsewhere):
    requests, _ = elsewhere
    assert requests.strip() == "requests []"
