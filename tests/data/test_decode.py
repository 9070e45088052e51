"""What `decode` promises, against Pillow: pixels, orientation, bounds and refusals."""

import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from decoded_images import by_pillow, by_tf_data, decoded, refusal
from encoded_images import (
    EXIF_PLACES,
    MALFORMED,
    PNG_START,
    SAMPLES,
    chunk,
    encode,
    exif,
    jpeg_of_scans,
    jpeg_with,
    raw_png,
    segment,
    source,
)
from PIL import Image

from multitask.data import image_limits


@pytest.mark.parametrize("name", SAMPLES)
def test_same_pixels_as_pillow(name):
    mine, theirs = decoded(SAMPLES[name]), by_pillow(SAMPLES[name])
    assert mine.shape == theirs.shape
    # Only laying transparency on white may round otherwise.
    tolerance = 1 if "alpha" in name or "tRNS" in name else 0
    assert np.abs(mine.astype(int) - theirs).max() <= tolerance


def test_ycck_jpeg():
    # The same components, labelled as YCCK: byte 11 of the Adobe segment is the transform.
    data = bytearray(SAMPLES["cmyk jpeg"])
    data[data.index(b"Adobe") + 11] = 2
    np.testing.assert_array_equal(decoded(bytes(data)), by_pillow(bytes(data)))


def test_16_bit_grey_png_keeps_the_high_byte():
    # Pillow 13 clips these to white instead, so it is no reference here.
    values = np.random.default_rng(0).integers(0, 65536, (5, 7)).astype(">u2")
    expected = np.repeat((values >> 8).astype("uint8")[..., None], 3, axis=2)
    np.testing.assert_array_equal(decoded(raw_png(values, 16, 0)), expected)


def test_transparent_is_white():
    clear = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    assert (decoded(encode(clear, "PNG")) == 255).all()
    half = Image.new("RGBA", (3, 2), (0, 100, 255, 128))
    assert decoded(encode(half, "PNG"))[0, 0].tolist() == [127, 177, 255]


# === Orientation ===


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("place", EXIF_PLACES)
def test_orientation_as_pillow(place, order):
    for orientation in range(1, 9):
        data = EXIF_PLACES[place](exif(orientation, order))
        np.testing.assert_array_equal(
            decoded(data), by_pillow(data), err_msg=f"orientation {orientation}"
        )


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("place", ["jpeg, after JFIF", "png", "webp"])
def test_malformed_exif_is_orientation_1(place, name):
    upright = decoded(EXIF_PLACES[place](exif(1)))
    np.testing.assert_array_equal(decoded(EXIF_PLACES[place](MALFORMED[name])), upright)


def test_exif_in_pixels_or_comments_is_ignored():
    fake = segment(0xE1, b"Exif\0\0" + exif(6))
    expected = decoded(SAMPLES["jpeg"])
    np.testing.assert_array_equal(decoded(jpeg_with(segment(0xFE, fake))), expected)
    np.testing.assert_array_equal(decoded(SAMPLES["jpeg"] + fake), expected)


def test_garbage_headers_end():
    for garbage in (b"\xff" * 70_000, bytes(70_000), b"\xff\xe1\0\0" * 9_000, b"Exif\0\0" * 9_000):
        data = SAMPLES["jpeg"][:2] + garbage
        refusal(data)
        refusal(PNG_START + chunk(b"IHDR", bytes(13)) + garbage)
        refusal(b"RIFF\xff\xff\xff\xffWEBPVP8X" + garbage)


@pytest.mark.parametrize("name", SAMPLES)
def test_random_damage_never_escapes(name):
    """A changed byte gives an image or the documented error, nothing else."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        data = bytearray(SAMPLES[name])
        data[rng.integers(min(len(data), 100))] = rng.integers(256)
        try:
            dimensions, text = decoded(bytes(data)).ndim, ""
        except tf.errors.InvalidArgumentError as error:
            dimensions, text = 3, str(error)
        assert dimensions == 3
        assert "\n" not in text


def header_of(kind, width, height):
    if kind == "png":
        fields = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return PNG_START + chunk(b"IHDR", fields) + chunk(b"IDAT", zlib.compress(bytes(99)))
    if kind == "jpeg":
        sides = struct.pack(">BHHB", 8, height, width, 3)
        frame = segment(0xC0, sides + b"\1\x11\0\2\x11\0\3\x11\0")
        return b"\xff\xd8" + frame + segment(0xDA, b"\3\1\0\2\0\3\0\0\x3f\0") + bytes(99)
    if kind == "webp VP8":
        chunks = b"VP8 " + bytes(7) + b"\x9d\x01\x2a" + struct.pack("<HH", width, height)
    elif kind == "webp VP8L":
        bits = (width - 1) | (height - 1) << 14
        chunks = b"VP8L" + bytes(4) + b"\x2f" + struct.pack("<I", bits)
    else:
        sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        chunks = b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides
    return b"RIFF" + struct.pack("<I", 200) + b"WEBP" + chunks + bytes(99)


@pytest.mark.parametrize(
    ("kind", "width", "height"),
    [
        ("png", 30_000, 30_001),
        ("png", 2**31 - 1, 2**31 - 1),
        ("jpeg", 30_000, 30_001),
        ("webp VP8", 16_000, 16_001),
        ("webp VP8L", 16_000, 16_001),
        ("webp VP8X", 30_000, 30_001),
        ("webp VP8X", 2**24, 2**24),
    ],
)
def test_too_many_pixels_are_refused_by_the_header(kind, width, height):
    line = refusal(header_of(kind, width, height))
    assert (
        line == f"image of {width} x {height} pixels, over the limit of {image_limits.MAX_PIXELS}"
    )


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp VP8", "webp VP8L", "webp VP8X"])
def test_sides_that_no_painting_has_are_refused_by_the_header(kind):
    for width, height in ((201, 1), (1, 201), (16_000, 79), (79, 16_000)):
        line = refusal(header_of(kind, width, height))
        expected = f"image of {width} x {height} pixels, over the limit of 200 : 1 for its sides"
        assert line == expected
    if kind in ("png", "webp VP8X"):
        for width, height in ((65_536, 1000), (1000, 65_536), (1_000_000, 1)):
            line = refusal(header_of(kind, width, height))
            expected = f"image of {width} x {height} pixels, over the limit of 65535 for a side"
            assert line == expected
    # These are let through to the decoder, which finds no pixels.
    for width, height in ((200, 1), (1, 200), (16_000, 80), (80, 16_000)):
        assert image_limits.OVER_LIMIT not in refusal(header_of(kind, width, height))


@pytest.mark.parametrize("size", [(65_535, 328), (328, 65_535), (50_000, 700)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_long_scroll_is_read(size, kind):
    """As long as a file may be: the Bayeux Tapestry is 137 : 1, hand scrolls are up to 40 : 1."""
    if kind == "JPEG":  # libjpeg's own limit
        size = tuple(min(side, 65_500) for side in size)
    data = encode(Image.new("RGB", size, (77, 77, 77)), kind)
    image = decoded(data, target_px=min(size))
    assert image.shape == (*size[::-1], 3)
    assert np.unique(image).tolist() == [77]


def test_sides_beyond_the_png_standard_are_refused():
    assert refusal(header_of("png", 2**32 - 1, 2**32 - 1))


def test_the_limit_is_pillows():
    assert image_limits.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "rgb png", "lossy webp"])
def test_truncated_images_are_refused(name):
    whole = SAMPLES[name]
    for size in (len(whole) // 2, int(len(whole) * 0.95), len(whole) - 2, len(whole) - 1):
        assert refusal(whole[:size])


def test_a_jpeg_of_more_than_100_scans_is_refused():
    """Each scan costs as much as the whole image, and 30 bytes are enough for one."""
    line = "JPEG of more than 100 scans"
    assert decoded(jpeg_of_scans(100), 64).shape == (64, 64, 3)
    assert refusal(jpeg_of_scans(101)) == line
    hidden = jpeg_of_scans(101).replace(
        image_limits.SCAN, segment(0xFE, b"\xff\xd9") + image_limits.SCAN
    )
    assert refusal(hidden) == line  # a comment between scans does not end the image


def test_bytes_like_a_scan_after_the_image_are_not_scans():
    """Such bytes are in the video that a phone appends to its JPEG."""
    data = encode(source(), "JPEG")
    np.testing.assert_array_equal(decoded(data + 500 * b"\xff\xda\x9c"), decoded(data))


def test_animated_webp_is_refused_by_name():
    frames = [source(seed=seed) for seed in range(3)]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    assert refusal(data) == "an animated WebP; only still images are read"


OTHER_CONTENT = [
    (b"", "it is empty"),
    (b"\xff", "unknown content"),
    (b"just some words", "unknown content"),
    (bytes(15), "unknown content"),
    (bytes(16), "it is filled with zero bytes, as after an incomplete copy"),
    (bytes(1000), "it is filled with zero bytes, as after an incomplete copy"),
    (b"RIFF\0\0\0\0WAVEfmt ", "unknown content"),
    (encode(source(), "GIF"), "it is a GIF"),
    (encode(source(), "BMP"), "it is a BMP"),
    (encode(source(), "TIFF"), "it is a TIFF"),
    (b"\n<svg xmlns='http://www.w3.org/2000/svg'/>", "it is SVG or other XML"),
    (b"<!DOCTYPE html><title>404</title>", "it is HTML"),
    (b"\0\0\0\x18ftypheic\0\0\0\0", "it is HEIC, AVIF or a video"),
    (encode(source(), "JPEG2000"), "it is a JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "it is a JPEG XL"),
    (b"8BPS\0\1" + bytes(40), "it is a Photoshop file"),
    (b"PK\3\4" + bytes(40), "it is a ZIP archive"),
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "it is a Git LFS pointer; fetch the file itself",
    ),
]


@pytest.mark.parametrize(("data", "kind_text"), OTHER_CONTENT)
def test_other_content_is_named(data, kind_text):
    assert refusal(data) == f"not a JPEG, PNG or WebP image: {kind_text}"


def test_jpeg_without_pixels_is_refused():
    assert refusal(b"\xff\xd8\xff")
    assert refusal(SAMPLES["jpeg"][:200])


def test_tf_data_gives_the_same_images_and_refusals():
    turned = [EXIF_PLACES["jpeg, after JFIF"](exif(orientation)) for orientation in range(1, 9)]
    bad = [data for data, _ in OTHER_CONTENT]
    bad += [header_of("png", 30_000, 30_001), header_of("jpeg", 30_000, 30_001)]
    bad += [data[:-2] for data in list(SAMPLES.values())[:-1]]
    good = [*SAMPLES.values(), *turned]
    results = list(by_tf_data(good + bad))
    for mine, data in zip(results, good, strict=False):
        np.testing.assert_array_equal(mine, decoded(data))
    for line, data in zip(results[len(good) :], bad, strict=True):
        assert line == refusal(data)
