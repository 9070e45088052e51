"""Only regular files are opened, and no more than the limit is read."""

import contextlib
import hashlib
import os
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from multitask.reading import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    UnreadableFileError,
    check_regular,
    open_regular,
    read_regular,
    read_text,
    sha256,
)

READERS = {
    "read_regular": lambda path: read_regular(path, 100),
    "read_text": read_text,
    "open_regular": lambda path: open_regular(path).close(),
    "check_regular": lambda path: check_regular(Path(path)),
    "sha256": sha256,
}


@pytest.fixture(autouse=True)
def guard():
    """Fail a call that blocks, instead of waiting for ever."""

    def fail(number, frame):
        raise TimeoutError("blocked by a file without a writer")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("reader", READERS)
def test_a_named_pipe_is_refused_at_once(tmp_path, reader):
    os.mkfifo(tmp_path / "x.jpg")
    (tmp_path / "link.jpg").symlink_to("x.jpg")
    before = open_descriptors()
    for name in ("x.jpg", "link.jpg"):
        with pytest.raises(
            UnreadableFileError, match=r"^it is a named pipe \(FIFO\), not a regular file$"
        ):
            READERS[reader](tmp_path / name)
    assert open_descriptors() == before


@pytest.mark.parametrize("reader", READERS)
def test_a_device_is_refused(tmp_path, reader):
    (tmp_path / "x.jpg").symlink_to("/dev/zero")
    with pytest.raises(UnreadableFileError, match="it is a device, not a regular file"):
        READERS[reader](tmp_path / "x.jpg")


@pytest.mark.parametrize("reader", READERS)
def test_a_socket_is_refused(reader):
    # The paths of pytest's folders are too long for the name of a socket.
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(socket.socket(socket.AF_UNIX)) as listening,
    ):
        listening.bind(f"{folder}/s.jpg")
        with pytest.raises(UnreadableFileError, match="it is a socket, not a regular file"):
            READERS[reader](f"{folder}/s.jpg")


def test_missing_files_raise_the_errors_of_open(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "gone", 100)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        read_regular(tmp_path / "file/x", 100)
    with pytest.raises(UnreadableFileError, match="it is a folder"):
        read_regular(tmp_path, 100)
    with pytest.raises(UnreadableFileError, match="NUL"):
        read_regular("a\0b", 100)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000])
def test_the_limit_is_inclusive(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    if size <= 100:
        assert read_regular(tmp_path / "file", 100) == data
        return
    with pytest.raises(UnreadableFileError, match="it is larger than the limit of 100 bytes"):
        read_regular(tmp_path / "file", 100)


def test_a_large_file_is_read_by_any_type_of_path(tmp_path):
    data = os.urandom(3_000_001)
    path = tmp_path / "file"
    path.write_bytes(data)
    for name in (path, str(path), os.fsencode(path)):
        assert read_regular(name, MAX_IMAGE_BYTES) == data
    with open_regular(path) as file:
        assert file.read() == data


def test_a_file_with_a_wrong_size_is_limited():
    """Files of /proc are regular and have a size of 0 bytes."""
    path = Path("/proc/self/maps")
    if not path.exists():
        pytest.skip("no /proc here")
    assert len(read_regular(path, MAX_TEXT_BYTES)) > 1000
    with pytest.raises(UnreadableFileError, match="larger than the limit of 100 bytes"):
        read_regular(path, 100)


def test_a_sparse_file_over_the_limit_is_not_read(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**40)  # 1 TB, without any block on the disk
    with pytest.raises(UnreadableFileError, match="536,870,912 bytes"):
        read_regular(tmp_path / "file", MAX_IMAGE_BYTES)


def test_text_is_read_as_pathlib_does(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("\ufeffä\r\nb\rc\n".encode())
    for encoding in ("utf-8", "utf-8-sig"):
        assert read_text(path, encoding) == path.read_text(encoding=encoding)
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(path)


def test_sha256_is_that_of_the_concatenated_files(tmp_path):
    first, second = os.urandom(3_000_000), os.urandom(5)
    (tmp_path / "a").write_bytes(first)
    (tmp_path / "b").write_bytes(second)
    digest = sha256(tmp_path / "a", tmp_path / "b")
    assert digest == hashlib.sha256(first + second).hexdigest()


def test_every_file_of_a_folder_is_checked(tmp_path):
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"")
    check_regular(tmp_path)
    os.mkfifo(tmp_path / "variables/variables.index")
    with pytest.raises(UnreadableFileError, match="named pipe"):
        check_regular(tmp_path)
