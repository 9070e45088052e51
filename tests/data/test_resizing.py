"""Scaled, resized, cropped and exported images, against Pillow and TensorFlow."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from decoded_images import SIZE_PX, decoded
from encoded_images import EXIF_PLACES, SAMPLES, encode, exif, jpeg_with, source
from PIL import Image

from multitask.data import decode, image_limits


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
