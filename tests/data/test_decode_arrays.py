"""The decoder without TensorFlow gives the pixels of the one with it, for every kind of input."""

import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from encoded_images import (
    EXIF_PLACES,
    MALFORMED,
    SAMPLES,
    chunk,
    encode,
    exif,
    jpeg_of_scans,
    raw_png,
    source,
)
from PIL import Image

from multitask.data import decode, decode_arrays
from multitask.data.image_limits import RESIZE_KINDS
from multitask.errors import InputError

SIZE_PX = 32


def both(data, target_px=SIZE_PX):
    return (
        decode_arrays.decode_array(data, target_px=target_px),
        decode.decode_image(data, target_px=target_px).numpy(),
    )


def assert_same_pixels(data, target_px=SIZE_PX):
    mine, reference = both(data, target_px)
    assert mine.dtype == reference.dtype == np.uint8
    np.testing.assert_array_equal(mine, reference)


@pytest.mark.parametrize("name", SAMPLES)
def test_same_pixels_in_every_format(name):
    assert_same_pixels(SAMPLES[name])


@pytest.mark.parametrize("place", EXIF_PLACES)
@pytest.mark.parametrize("orientation", range(10))
def test_same_orientation(place, orientation):
    for order in "<>":
        for kind in (3, 4):  # a SHORT; a LONG is malformed
            assert_same_pixels(EXIF_PLACES[place](exif(orientation, order, kind)))


@pytest.mark.parametrize("place", EXIF_PLACES)
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_exif(place, name):
    assert_same_pixels(EXIF_PLACES[place](MALFORMED[name]))


@pytest.mark.parametrize("size", [(64, 64), (63, 200), (257, 256), (255, 400), (1000, 9)])
@pytest.mark.parametrize("target_px", [1, 8, 32, 33])
def test_same_reduction_of_large_jpegs(size, target_px):
    assert_same_pixels(encode(source(*size), "JPEG"), target_px)


def test_16_bit_grey_with_a_transparent_value():
    values = np.array([[0, 258, 513], [65_535, 258, 40_000]], ">u2")
    data = raw_png(values, 16, 0, chunk(b"tRNS", b"\x01\x02"))  # 258
    grey = np.array([[0, 255, 2], [255, 255, 156]], np.uint8)  # by hand: the high bytes
    np.testing.assert_array_equal(both(data)[0], np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("how", RESIZE_KINDS)
@pytest.mark.parametrize(
    "size", [(200, 120), (75, 133), (20, 10), (32, 32), (500, 3), (1, 1), (1000, 777), (31, 33)]
)
def test_same_resizing(how, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    mine = decode_arrays.resize_array(image, size_px=SIZE_PX, how=how)
    reference = decode.resize_image(image, size_px=SIZE_PX, how=how).numpy()
    assert mine.dtype == np.float32
    np.testing.assert_allclose(mine, reference, atol=decode_arrays.PIXEL_TOLERANCE)


def test_every_kind_of_input_gives_the_same(tmp_path):
    image = source(60, 40)
    path = tmp_path / "a.png"
    image.save(path)
    pixels = np.asarray(image)
    inputs = [path, str(path), path.read_bytes(), image, Image.open(path), pixels]
    for given in inputs:
        np.testing.assert_array_equal(decode_arrays.decode_array(given, target_px=1), pixels)
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(
        decode_arrays.decode_array(grey, target_px=1), np.stack([grey] * 3, axis=-1)
    )
    clear = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    assert (decode_arrays.decode_array(clear, target_px=1) == 255).all()


def test_an_upright_copy_of_a_photo_in_memory():
    data = EXIF_PLACES["jpeg, first"](exif(6))
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(
        decode_arrays.decode_array(opened, target_px=SIZE_PX), both(data)[1]
    )


BROKEN = {
    "empty": b"",
    "a PDF": b"%PDF-1.7",
    "HTML": b"<!doctype html><p>not found",
    "noise": bytes(range(256)),
    "a JPEG that is cut off": SAMPLES["jpeg"][:300],
    "a PNG that is cut off": SAMPLES["rgb png"][:90],
    "a WebP that is cut off": SAMPLES["lossy webp"][:60],
    "many scans": jpeg_of_scans(101),
    "narrow": encode(source(2, 402), "PNG"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_same_refusal(name):
    with pytest.raises(InputError) as mine:
        decode_arrays.decode_array(BROKEN[name], target_px=SIZE_PX)
    with pytest.raises(tf.errors.InvalidArgumentError) as reference:
        decode.decode_image(BROKEN[name], target_px=SIZE_PX)
    assert str(mine.value) == str(reference.value)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (np.zeros((2, 2, 3)), "array of float64 [2, 2, 3]: expected uint8 [height, width, 3]"),
        (np.zeros((2, 2, 5), np.uint8), "array of uint8 [2, 2, 5]"),
        (np.zeros((0, 2, 3), np.uint8), "it is empty"),
        (7, "int: expected a path, bytes, a PIL image or a uint8 array"),
        ("missing.png", "No such file or directory"),
    ],
)
def test_other_input_is_one_line(image, text):
    with pytest.raises(InputError) as raised:
        decode_arrays.decode_array(image, target_px=SIZE_PX)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_needs_no_tensorflow():
    code = "import sys, multitask.data.decode_arrays; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
