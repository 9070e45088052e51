"""What `decode` promises, against Pillow: pixels, orientation, bounds, refusals, and export."""

import io
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
import tensorflow as tf
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
from PIL import Image, ImageOps

from multitask.data import decode, image_limits

SIZE_PX = 32


def by_pillow(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def decoded(data, target_px=SIZE_PX):
    return decode.decode_image(data, target_px=target_px).numpy()


def refusal(data):
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        decoded(data)
    line = str(raised.value)
    assert "\n" not in line
    assert "{{" not in line
    assert "[" not in line
    return line


def by_tf_data(samples):
    """Images, and the lines of the errors where there is none."""
    dataset = tf.data.Dataset.from_tensor_slices(samples)
    dataset = dataset.map(lambda data: decode.decode_image(data, target_px=SIZE_PX))
    assert dataset.element_spec == tf.TensorSpec([None, None, 3], tf.uint8)
    iterator = iter(dataset)
    for data in samples:
        try:
            yield next(iterator).numpy()
        except tf.errors.InvalidArgumentError as error:
            yield decode.error_text(error, data)


# === Formats ===


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


# === Bounds and refusals ===


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


# === DCT scaling ===


@pytest.mark.parametrize(
    ("width", "height", "target_px", "expected"),
    [
        (320, 240, 241, (240, 320)),
        (320, 240, 240, (240, 320)),
        (320, 240, 121, (240, 320)),
        (320, 240, 120, (120, 160)),
        (320, 240, 60, (60, 80)),
        (320, 240, 31, (60, 80)),
        (320, 240, 30, (30, 40)),
        (320, 240, 1, (30, 40)),
        (241, 300, 31, (38, 31)),  # libjpeg rounds up: ceil(241 / 8) is 31
    ],
)
def test_jpeg_is_scaled_to_no_less_than_the_target(width, height, target_px, expected):
    data = encode(source(width, height), "JPEG")
    assert decoded(data, target_px).shape == (*expected, 3)


def test_scaled_jpeg_is_the_image_made_smaller():
    image = source(320, 240)
    smaller = np.asarray(image.resize((40, 30), Image.Resampling.BOX)).astype(int)
    assert np.abs(decoded(encode(image, "JPEG", quality=95), 30) - smaller).mean() < 2


def test_target_px_is_checked():
    with pytest.raises(ValueError, match="target_px"):
        decode.decode_image(SAMPLES["jpeg"], target_px=0)


# === Resizing ===


def resized(image, size_px, how):
    """The result, after a check that eager and tf.data agree."""
    image = np.asarray(image)
    eager = decode.resize_image(image, size_px=size_px, how=how)
    dataset = tf.data.Dataset.from_generator(
        lambda: [image], output_signature=tf.TensorSpec([None, None, 3], tf.uint8)
    ).map(lambda one: decode.resize_image(one, size_px=size_px, how=how))
    assert dataset.element_spec == tf.TensorSpec([size_px, size_px, 3], tf.float32)
    np.testing.assert_array_equal(eager.numpy(), next(iter(dataset)).numpy())
    return eager.numpy()


def bilinear(image, width, height):
    """Pillow's antialiased bilinear, which rounds once a direction."""
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(float)


@pytest.mark.parametrize(("width", "height"), [(200, 120), (75, 133), (20, 10), (32, 32)])
def test_squash_as_pillow(width, height):
    image = source(width, height)
    mine = resized(image, SIZE_PX, "squash")
    np.testing.assert_allclose(mine, bilinear(image, SIZE_PX, SIZE_PX), atol=1.5)


@pytest.mark.parametrize(("width", "height"), [(200, 120), (75, 133), (20, 10), (32, 32)])
def test_crop_as_pillow(width, height):
    image = source(width, height)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    mine = resized(image, SIZE_PX, "crop")
    np.testing.assert_allclose(mine, bilinear(square, SIZE_PX, SIZE_PX), atol=1.5)


@pytest.mark.parametrize(
    ("width", "height", "inner"),
    [(200, 120, (32, 19)), (75, 133, (18, 32)), (20, 10, (32, 16)), (500, 1, (32, 1))],
)
def test_pad_as_pillow(width, height, inner):
    image = source(width, height)
    left, top = (SIZE_PX - inner[0]) // 2, (SIZE_PX - inner[1]) // 2
    mine = resized(image, SIZE_PX, "pad")
    inside = (slice(top, top + inner[1]), slice(left, left + inner[0]))
    np.testing.assert_allclose(mine[inside], bilinear(image, *inner), atol=1.5)
    mine[inside] = 0
    assert not mine.any()


@pytest.mark.parametrize("how", image_limits.RESIZE_KINDS)
def test_resizing_keeps_the_range_and_does_not_round(how):
    noise = np.random.default_rng(0).integers(0, 2, (90, 90, 3)).astype("uint8") * 255
    mine = resized(noise, SIZE_PX, how)
    assert mine.min() >= 0
    assert mine.max() <= 255
    assert (mine != np.round(mine)).any()
    as_float = decode.resize_image(noise.astype("float32"), size_px=SIZE_PX, how=how)
    np.testing.assert_array_equal(mine, as_float)


@pytest.mark.parametrize("how", image_limits.RESIZE_KINDS)
def test_one_pixel_fills_the_square(how):
    pixel = np.array([[[1, 2, 3]]], "uint8")
    np.testing.assert_allclose(resized(pixel, 4, how), np.broadcast_to(pixel, [4, 4, 3]))


@pytest.mark.parametrize("how", image_limits.RESIZE_KINDS)
def test_presized_images_are_left_alone(how):
    image = np.asarray(source(SIZE_PX, SIZE_PX))
    np.testing.assert_array_equal(resized(image, SIZE_PX, how), image)


# Sides to resize to 32: enlarged, reduced by a factor of up to ten, and one pixel to either side of
# the sizes at which the kernel divides its work differently.
SIDES = [1, 2, 10, 31, 32, 33, 37, 43, 64, 65, 97, 128, 129, 160, 333]


@pytest.mark.parametrize("width", SIDES)
def test_squash_as_tensorflow(width):
    """On noise, which shows the smallest error of a filter."""
    for height in SIDES:
        noise = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype("uint8")
        expected = tf.image.resize(noise, [SIZE_PX, SIZE_PX], antialias=True)
        mine = decode.resize_image(noise, size_px=SIZE_PX, how="squash")
        np.testing.assert_allclose(mine, expected, atol=1e-3, err_msg=f"{width} x {height}")


@pytest.mark.parametrize(
    ("width", "height", "size_px"),
    [(300, 258, 224), (258, 300, 224), (224, 417, 224), (5, 1200, 3), (7, 9, 1)],
)
def test_squash_as_tensorflow_at_other_sizes(width, height, size_px):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype("uint8")
    expected = tf.image.resize(noise, [size_px, size_px], antialias=True)
    np.testing.assert_allclose(resized(noise, size_px, "squash"), expected, atol=1e-3)


@pytest.mark.parametrize("how", image_limits.RESIZE_KINDS)
@pytest.mark.parametrize(("width", "height"), [(75, 133), (20, 10), (200, 1), (32, 32)])
def test_planar_is_the_same_image(width, height, how):
    image = np.asarray(source(width, height))
    planar = decode.resize_image(image, size_px=SIZE_PX, how=how, planar=True)
    assert planar.shape == (SIZE_PX, 3, SIZE_PX)
    np.testing.assert_array_equal(np.transpose(planar, [2, 0, 1]), resized(image, SIZE_PX, how))


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"squash, crop, pad. Received 'stretch'"):
        decode.resize_image(np.zeros([2, 2, 3]), size_px=SIZE_PX, how="stretch")
    with pytest.raises(ValueError, match="size_px"):
        decode.resize_image(np.zeros([2, 2, 3]), size_px=0, how="squash")


# === Crops ===


@pytest.mark.parametrize("how", image_limits.RESIZE_KINDS)
def test_the_whole_box_changes_nothing(how):
    image = np.asarray(source(75, 133))
    box = tf.constant([0.0, 0.0, 1.0, 1.0])
    mine = decode.resize_crop(image, box=box, size_px=SIZE_PX, how=how)
    np.testing.assert_array_equal(mine, resized(image, SIZE_PX, how))


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ((0.25, 0.1, 0.5, 0.8), (slice(10, 30), slice(6, 54))),
        ((0.0, 0.5, 1.0, 0.5), (slice(0, 40), slice(30, 60))),
        ((0.99, 0.999, 0.0, 0.0), (slice(39, 40), slice(59, 60))),  # at least one pixel
        ((0.5, 0.5, 0.9, 0.9), (slice(20, 40), slice(30, 60))),  # kept inside
        ((-0.5, 1.5, 0.5, 0.5), (slice(0, 20), slice(59, 60))),
    ],
)
@pytest.mark.parametrize("how", image_limits.RESIZE_KINDS)
def test_a_box_is_cut_in_whole_pixels(box, pixels, how):
    image = np.asarray(source())
    expected = decode.resize_image(image[pixels], size_px=SIZE_PX, how=how).numpy()
    dataset = tf.data.Dataset.from_tensors((image, np.array(box, "float32")))
    dataset = dataset.map(
        lambda one, box: decode.resize_crop(one, box=box, size_px=SIZE_PX, how=how)
    )
    mine = decode.resize_crop(image, box=tf.constant(box), size_px=SIZE_PX, how=how)
    np.testing.assert_array_equal(mine, expected)
    np.testing.assert_array_equal(next(iter(dataset)), expected)


# === Export ===


class Pixels(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, batch):
        def one(data):
            image = decode.decode_image(data, target_px=SIZE_PX)
            return decode.resize_image(image, size_px=SIZE_PX, how="squash")

        return tf.map_fn(one, batch, fn_output_signature=tf.float32)


@pytest.mark.slow
def test_saved_model_gives_the_same_with_tensorflow_alone(tmp_path):
    samples = [*SAMPLES.values(), EXIF_PLACES["jpeg, first"](exif(6)), jpeg_with(b"")]
    module = Pixels()
    here = module(tf.constant(samples)).numpy()
    for mine, data in zip(here, samples, strict=True):
        image = decode.decode_image(data, target_px=SIZE_PX)
        alone = decode.resize_image(image, size_px=SIZE_PX, how="squash")
        np.testing.assert_allclose(mine, alone, atol=1e-3)
    tf.saved_model.save(module, str(tmp_path / "model"))
    np.save(tmp_path / "samples.npy", np.array([np.void(data) for data in samples], object))
    script = f"""
        import numpy as np, sys, tensorflow as tf
        samples = np.load("samples.npy", allow_pickle=True)
        model = tf.saved_model.load("model")
        np.save("there.npy", model(tf.constant([bytes(data) for data in samples])).numpy())
        try:
            model(tf.constant([b"GIF89a"]))
        except tf.errors.InvalidArgumentError as error:
            assert {"not a JPEG, PNG or WebP image: it is a GIF"!r} in str(error)
        else:
            raise AssertionError("the GIF was read")
        assert "multitask" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), here)


# === Reducing ===


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (400, 300, (258, 344)),
        (300, 411, (353, 258)),
        (258, 258, (258, 258)),
        (4000, 259, (258, 3985)),
    ],
)
def test_the_shorter_side_is_bounded_and_the_aspect_kept(width, height, expected):
    source = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    got = decode.reduce_image(tf.constant(source), shorter_px=258).numpy()
    assert got.dtype == np.uint8
    assert got.shape == (*expected, 3)
    want = tf.image.resize(source, expected, antialias=True).numpy()
    np.testing.assert_allclose(got, want, atol=0.501)  # rounded to whole levels


def test_a_small_image_is_not_reduced():
    source = np.random.default_rng(0).integers(0, 256, (257, 900, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decode.reduce_image(tf.constant(source), shorter_px=258), source)


# === Why broken data cannot be read ===


def frame_of(data, marker, bits=8):
    """The JPEG with another frame header: a process that the decoder does not have."""
    data = bytearray(data)
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    return bytes(data)


JPEG, PNG, WEBP = (SAMPLES[name] for name in ("jpeg", "rgb png", "lossy webp"))
LARGE = encode(Image.effect_noise((200, 150), 90).convert("RGB"), "JPEG")
CUT_OFF = "the {} is cut off before its end; copy or download it again"
DAMAGED = "the {} is damaged; copy or download it again, or save it again in an image editor"
NOT_READ = ", which is not supported; save it as an ordinary (baseline or progressive, 8-bit) JPEG"
IDAT = PNG.index(b"IDAT")
BROKEN = {
    "half a jpeg": (LARGE[: len(LARGE) // 2], CUT_OFF.format("JPEG")),
    "a jpeg's header": (JPEG[:100], CUT_OFF.format("JPEG")),
    "three bytes of a jpeg": (JPEG[:3], CUT_OFF.format("JPEG")),
    "a jpeg without its last bytes": (LARGE[:-40], CUT_OFF.format("JPEG")),
    "half a cmyk jpeg": (SAMPLES["cmyk jpeg"][:-20], CUT_OFF.format("JPEG")),
    "half a progressive jpeg": (SAMPLES["progressive jpeg"][:-20], CUT_OFF.format("JPEG")),
    "zeros instead of a jpeg's end": (
        LARGE[: len(LARGE) // 2] + bytes(len(LARGE) // 2),
        CUT_OFF.format("JPEG"),
    ),
    "lossless jpeg": (frame_of(JPEG, 0xC3), "a lossless JPEG" + NOT_READ),
    "JPEG-LS": (frame_of(JPEG, 0xF7), "a lossless JPEG" + NOT_READ),
    "hierarchical jpeg": (frame_of(JPEG, 0xC5), "a hierarchical JPEG" + NOT_READ),
    "12-bit jpeg": (frame_of(JPEG, 0xC1, 12), "a JPEG of 12 bits per sample" + NOT_READ),
    "jpeg without width": (
        JPEG.replace(struct.pack(">H", source().width), b"\0\0", 1),
        DAMAGED.format("JPEG"),
    ),
    "half a png": (PNG[: len(PNG) // 2], CUT_OFF.format("PNG")),
    "a png's header": (PNG[:33], CUT_OFF.format("PNG")),
    "a changed byte in a png": (
        PNG[: IDAT + 9] + bytes([PNG[IDAT + 9] ^ 255]) + PNG[IDAT + 10 :],
        DAMAGED.format("PNG"),
    ),
    "png of no known depth": (
        raw_png(np.zeros((2, 2), ">u1"), 7, 2),
        DAMAGED.format("PNG"),
    ),
    "half a webp": (WEBP[: len(WEBP) // 2], CUT_OFF.format("WebP")),
    "a changed signature in a webp": (
        WEBP.replace(b"\x9d\x01\x2a", b"\0\0\0"),
        DAMAGED.format("WebP"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_cause_and_the_remedy_of_broken_data(name):
    data, reason = BROKEN[name]
    assert refusal(data) == reason


def decoded_in_graph(data):
    return decode.decode_image(data, target_px=SIZE_PX)


def test_without_the_bytes_the_format_is_named():
    """A failing graph is such a case: its error does not contain the data."""
    for kind, data in {"JPEG": LARGE, "PNG": PNG, "WebP": WEBP}.items():
        with pytest.raises(tf.errors.InvalidArgumentError) as raised:
            next(iter(tf.data.Dataset.from_tensors(data[: len(data) // 2]).map(decoded_in_graph)))
        assert decode.error_text(raised.value) == DAMAGED.format(kind)
