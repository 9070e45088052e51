"""Images that cannot be used: each kind with its reason, and the share that stops a run."""

import os
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image

from multitask.data.decode import decode_image
from multitask.data.image_files import (
    PREFETCH,
    count_reasons,
    find_unusable,
    image_sizes,
    map_files,
    read_encoded,
    read_frame,
    read_reduced,
    refuse_missing,
    why_unreadable,
)
from multitask.data.image_files import unusable as unusable_of
from multitask.data.image_limits import SCAN
from multitask.data.table import MISSING_FILE, NEAR_DUPLICATE, NO_LABEL, NOT_SAMPLED
from multitask.spec import InputError

REMEDY = "Do this."


def png_of_size(width, height):
    """A PNG whose header states that size, without pixels."""

    def chunk(kind, payload):
        body = kind + payload
        return struct.pack(">I", len(payload)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def zoo(tmp_path, write_image):
    """One file of every kind: name -> path."""
    good = write_image(tmp_path / "good.jpg", width=200, height=150)
    data = good.read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("This is not an image.")
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><html>404</html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "huge.png").write_bytes(png_of_size(20_000, 20_000))
    (tmp_path / "broken.png").write_bytes(png_of_size(20, 20))
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    Image.new("L", (1, 1), 7).save(tmp_path / "one.jpg")
    image = Image.open(good)
    image.save(tmp_path / "scans.jpg", progressive=True)
    scans = (tmp_path / "scans.jpg").read_bytes()
    last = scans[scans.rindex(SCAN) : -2]
    (tmp_path / "scans.jpg").write_bytes(scans[:-2] + 100 * last + scans[-2:])
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "o'keeffe (ã\xad) #1 50%.jpg").write_bytes(data)
    return tmp_path


REASONS = {
    "good.jpg": None,
    "one.png": None,
    "one.jpg": None,
    "o'keeffe (ã\xad) #1 50%.jpg": None,
    "absent.jpg": MISSING_FILE,
    "nowhere/absent.jpg": MISSING_FILE,
    "good.jpg/absent.jpg": MISSING_FILE,
    "link.jpg": MISSING_FILE,
    "x" * 300 + ".jpg": MISSING_FILE,
    "folder.jpg": "cannot be read: it is a folder, not a regular file",
    "empty.jpg": "not a JPEG, PNG or WebP image: it is empty",
    "text.jpg": "not a JPEG, PNG or WebP image: unknown content",
    "page.jpg": "not a JPEG, PNG or WebP image: it is HTML",
    "scans.jpg": "JPEG of more than 100 scans",
    "huge.png": "image of 20000 x 20000 pixels, over the limit of 178956970",
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_of_each_kind(zoo, name):
    assert why_unreadable(zoo / name) == REASONS[name]
    assert why_unreadable(str(zoo / name)) == REASONS[name]


@pytest.mark.parametrize("name", ["truncated.jpg", "broken.png"])
def test_broken_pixels_have_a_reason_in_one_plain_line(zoo, name):
    reason = why_unreadable(zoo / name)
    assert reason
    assert "\n" not in reason
    for noise in ("{{", "[[", "[Op:", "node", "Graph execution"):
        assert noise not in reason


def test_one_pass_gives_the_same_reasons_as_each_file_alone(zoo):
    names = [*REASONS, "truncated.jpg", "broken.png", "good.jpg"]
    result = find_unusable([str(zoo / name) for name in names], progress=False)
    alone = {i: why_unreadable(zoo / name) for i, name in enumerate(names)}
    assert result == {i: reason for i, reason in alone.items() if reason}
    assert len(result) == 13


def test_more_than_a_batch_of_images_keeps_its_indices(zoo):
    good, bad = str(zoo / "one.png"), str(zoo / "text.jpg")
    names = [bad if i % 50 == 3 else good for i in range(150)]
    assert sorted(find_unusable(names, progress=False)) == [3, 53, 103]
    assert find_unusable([], progress=False) == {}


# === Files that are not regular ===


def test_what_is_not_a_regular_file_has_its_reason(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(2**29 + 1)
    reasons = {
        "pipe.jpg": "cannot be read: it is a named pipe (FIFO), not a regular file",
        "zero.jpg": "cannot be read: it is a device, not a regular file",
        "loop.jpg": "cannot be read: Too many levels of symbolic links",
        "sparse.jpg": "cannot be read: it is larger than the limit of 536,870,912 bytes",
    }
    assert {name: why_unreadable(tmp_path / name) for name in reasons} == reasons
    result = find_unusable([str(tmp_path / name) for name in reasons], progress=False)
    assert list(result.values()) == list(reasons.values())
    assert read_reduced(tmp_path / "pipe.jpg", target_px=8) is None


def test_files_are_mapped_in_order_and_byte_for_byte(tmp_path):
    """Small and large, more than are prefetched, with some that cannot be read."""
    rng = np.random.default_rng(0)
    sizes = [0, 1, 2**18, 2**19, *rng.integers(1, 3000, 2 * PREFETCH).tolist()]
    written = {}
    for i in rng.permutation(len(sizes)):
        written[f"ü{i}.bin"] = rng.bytes(sizes[i])
    written["ends.bin"] = b"ends in zeros\0\0"
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.bin")
    names = list(written)
    names[7:7], names[40:40] = ["pipe.bin"], ["gone.bin"]
    files = [str(tmp_path / name) for name in names]
    read = {i: data.numpy() for i, data in map_files(files, tf.identity, target_px=1)}
    assert list(read) == [i for i, name in enumerate(names) if name in written]
    assert all(data == written[names[i]] for i, data in read.items())
    for name in ("ends.bin", names[0]):
        by_name = read_encoded(tf.constant(os.fsencode(tmp_path / name)), target_px=1)
        assert by_name.numpy() == written[name]


def test_a_transform_that_fails_leaves_its_file_out(zoo):
    names = ["good.jpg", "text.jpg", "absent.jpg", "one.png", "folder.jpg", "one.jpg"]
    files = [os.fsencode(zoo / name) for name in names]
    shapes = map_files(
        files, lambda data: tf.shape(decode_image(data, target_px=1000)), target_px=1000
    )
    result = {i: shape.numpy().tolist() for i, shape in shapes}
    assert result == {0: [150, 200, 3], 3: [1, 1, 3], 5: [1, 1, 3]}
    assert not list(map_files([], tf.identity, target_px=1))


# === The table's images ===


def test_sizes_are_those_of_the_files(tmp_path, write_image):
    for name, content in (("a.jpg", b"123"), ("b/c.jpg", b""), ("d.jpg", b"12345")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    paths = ["d.jpg", "none.jpg", "a.jpg", "b/c.jpg", "a.jpg/x.jpg", "n" * 5000]
    assert image_sizes(paths, tmp_path).tolist() == [5, -1, 3, 0, -1, -1]


def test_unusable_is_what_has_no_readable_file():
    reasons = [MISSING_FILE, NO_LABEL, "it is empty", NEAR_DUPLICATE, NOT_SAMPLED]
    frame = pd.DataFrame({"path": list("abcde"), "reason": reasons})
    assert unusable_of(frame)["path"].tolist() == ["a", "c"]


def unusable(count):
    return pd.DataFrame({"path": [f"{i}.jpg" for i in range(count)], "reason": MISSING_FILE})


@pytest.mark.parametrize(
    ("count", "total", "max_missing", "refused"),
    [
        (0, 100, 0.0, False),
        (1, 100, 0.0, True),
        (29, 100, 0.29, False),  # .29 * 100 is 28.999999999999996
        (30, 100, 0.29, True),
        (7, 100, 0.07, False),
        (57, 1000, 0.057, False),
        (58, 1000, 0.057, True),
        (0, 0, 0.0, False),
    ],
)
def test_the_limit_is_inclusive(tmp_path, count, total, max_missing, refused):
    def refuse():
        refuse_missing(unusable(count), total, tmp_path, max_missing=max_missing, remedy=REMEDY)

    if not refused:
        assert refuse() is None
        return
    with pytest.raises(InputError, match=f"{count} of {total} images"):
        refuse()


def test_the_message_shows_five_and_no_more(tmp_path):
    with pytest.raises(InputError) as caught:
        refuse_missing(unusable(8), 10, tmp_path, max_missing=0.1, remedy=REMEDY)
    message = str(caught.value)
    assert "8 of 10 images (80.000%)" in message
    assert "4.jpg (no such file). Do this." in message
    assert "5.jpg" not in message
    assert "\n" not in message


def test_reasons_are_counted():
    reasons = [MISSING_FILE] * 1200 + ["it is empty", "not a file"]
    assert count_reasons(iter(reasons)) == "1,200 missing, 2 unreadable"
    others = count_reasons([NO_LABEL, NOT_SAMPLED, NOT_SAMPLED, NEAR_DUPLICATE])
    assert others == (
        "0 missing, 0 unreadable, 1 without a label, 2 not sampled for the subset, "
        "1 near-duplicates"
    )
    assert count_reasons([]) == "0 missing, 0 unreadable"


# === Reading our own CSVs back ===


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "No columns to parse"),
        (b"\xff\xfe\x00", "utf-8"),
        (b'path,reason\n"a', "EOF inside string"),
        (b"a,b\n1,2\n", "no column path"),
        (b"path\na.jpg\n", "no column reason"),
    ],
)
def test_a_csv_that_this_package_did_not_write_is_one_line(tmp_path, content, message):
    file = tmp_path / "excluded.csv"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_frame(file, ("path", "reason"), "make it anew")
    assert str(caught.value).startswith(f"{file}: cannot be read back (")
    assert str(caught.value).endswith("); make it anew")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="No such file"):
        read_frame(tmp_path / "none.csv", (), "make it anew")
    file.write_text("path,reason,more\na.jpg,gone,1\n")
    assert read_frame(file, ("path",), "").to_dict("list") == {
        "path": ["a.jpg"],
        "reason": ["gone"],
        "more": [1],
    }
