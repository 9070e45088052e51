"""An image is the same to the model in training, evaluation and prediction."""

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from color_profiles import ADOBE, rgb_profile
from PIL import Image

from multitask.data.decode import decode_image, resize_image
from multitask.data.decode_arrays import model_input
from multitask.data.pipeline import readable_images, view_dataset
from multitask.data.records import prepare
from multitask.data.records_builder import decode_record
from multitask.data.table import TRAIN
from multitask.serving.signatures import _Resizer

SIZES = {"size_px": 32, "reduced_px": 37}


def texture(width, height, seed=0):
    """An image as sharp as possible, so that every filter has an effect."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def by_pillow(image, how="squash"):
    """Reduce, then resize: both steps by Pillow, one channel at a time."""

    def resized(channels, width, height):
        bilinear = Image.Resampling.BILINEAR
        return [np.asarray(Image.fromarray(c).resize((width, height), bilinear)) for c in channels]

    height, width = image.shape[:2]
    channels = [image[..., k].astype(np.float32) for k in range(3)]
    if (shorter := min(height, width)) > 37:
        channels = resized(channels, round(width * 37 / shorter), round(height * 37 / shorter))
    if how == "crop":
        height, width = channels[0].shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        channels = [c[top : top + side, left : left + side] for c in channels]
    return np.stack(resized(channels, 32, 32), axis=-1)


@pytest.mark.parametrize("how", ["squash", "crop"])
@pytest.mark.parametrize("size", [(96, 80), (40, 300), (37, 37), (50, 36), (20, 10)])
def test_both_decoders_reduce_first(size, how):
    image = texture(*size)
    expected = by_pillow(image, how)
    np.testing.assert_allclose(resize_image(image, how=how, **SIZES), expected, atol=0.02)
    np.testing.assert_allclose(model_input(image, how=how, **SIZES), expected, atol=0.02)


@pytest.mark.parametrize("size", [(37, 37), (37, 121), (38, 37), (300, 36), (1, 9)])
def test_a_record_is_decoded_to_the_pixels_of_every_other_jpeg(size):
    """No side of a record is so large that `decode_image` would decode it at a smaller scale."""
    record = tf.io.encode_jpeg(texture(*size), quality=92)
    with Image.open(io.BytesIO(record.numpy())) as image:
        pixels = np.asarray(image)
    np.testing.assert_array_equal(decode_record(record), pixels)
    np.testing.assert_array_equal(decode_record(record), decode_image(record, target_px=37))


def test_an_export_reduces_first():
    image = texture(96, 80)
    expected = by_pillow(image)
    resizer = _Resizer(32, "squash", 37)
    png = tf.io.encode_png(image)
    np.testing.assert_allclose(resizer.decode(png[None])[0], expected, atol=0.02)
    pixels = tf.constant(image[None], tf.float32)
    np.testing.assert_allclose(resizer.resize(pixels)[0], expected, atol=0.02)


@pytest.mark.parametrize("margin", [1.15, 2.0])  # of 2, a scaled decoding would be another filter
def test_an_image_is_the_same_in_training_and_prediction(tiny_data, tiny_spec, margin):
    """The images are grey, because the JPEGs of the records halve the resolution of colour."""
    spec = tiny_spec(tasks=("style",), records={"quality": 100, "margin": margin})
    data = tiny_data()
    paths = sorted((data / "wikiart").rglob("*train*.jpg"))
    for seed, path in enumerate(paths):
        smooth = Image.fromarray(texture(30, 24, seed)).convert("L").resize((120, 96))
        smooth.convert("RGB").save(path, quality=98)
    prepared = prepare(spec, data, None)
    rows = prepared.table.rows(TRAIN)
    batches = view_dataset(prepared, spec, split=TRAIN, batch_size=64)
    training_images = np.concatenate([batch.numpy() for batch in batches])
    names = [str(data / "wikiart" / path) for path in prepared.table.paths[rows]]
    ((_, predicted),) = readable_images(names, **spec.reading, batch_size=64)
    difference = np.abs(predicted.numpy() - training_images).mean()
    plain = [
        resize_image(decode_image(tf.io.read_file(name), target_px=32), size_px=32, how="squash")
        for name in names
    ]
    assert difference < 2.0
    if margin < 2:  # with more, reducing first changes less
        assert np.abs(np.stack(plain) - training_images).mean() > 3 * difference


def test_a_color_profile_is_applied_in_training_and_prediction_or_in_neither(tiny_data, tiny_spec):
    """Of TIFF and PNG, which are decoded in ways of their own."""
    spec = tiny_spec(tasks=("style",), records={"quality": 100})
    data = tiny_data()
    paths = sorted((data / "wikiart").rglob("*train*.jpg"))
    for seed, path in enumerate(paths):
        smooth = Image.fromarray(texture(4, 4, seed)).convert("L").resize((40, 40))
        kind = ("TIFF", "PNG")[seed % 2]
        smooth.convert("RGB").save(path, kind, icc_profile=rgb_profile(ADOBE, 1.0))
    images = {}
    for convert in (True, False):
        one = spec.model_copy(update={"convert_profiles": convert})
        prepared = prepare(one, data, None)
        rows = prepared.table.rows(TRAIN)
        batches = view_dataset(prepared, one, split=TRAIN, batch_size=64)
        training_images = np.concatenate([batch.numpy() for batch in batches])
        names = [str(data / "wikiart" / path) for path in prepared.table.paths[rows]]
        kinds = [[paths.index(Path(name)) % 2 == i for name in names] for i in range(2)]
        ((_, predicted),) = readable_images(names, **one.reading, batch_size=64)
        differences = np.abs(predicted.numpy() - training_images).mean(axis=(1, 2, 3))
        assert all(differences[of_kind].mean() < 2 for of_kind in kinds)
        images[convert] = training_images
    # A gamma of 1 is far from that of sRGB.
    converted = np.abs(images[True] - images[False]).mean(axis=(1, 2, 3))
    assert all(converted[of_kind].mean() > 20 for of_kind in kinds)
