"""Views of a batch, against slices and Pillow-free NumPy."""

import numpy as np
import tensorflow as tf

from multitask.evaluation.tta import CROP, TTA, crops, flip


def batch(size=16):
    return np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)


def test_flip_is_the_image_and_its_mirror_image():
    images = batch()
    views = flip(tf.constant(images))
    np.testing.assert_array_equal(views[0], images)
    np.testing.assert_array_equal(views[1], images[:, :, ::-1])


def test_crops_are_the_whole_the_corners_and_the_centre():
    images = batch()
    views = crops(tf.constant(images))
    assert len(views) == 12
    assert {view.shape for view in views} == {images.shape}
    np.testing.assert_array_equal(views[0], images)
    side = round(CROP * 16)
    corner = tf.image.resize(images[:, 2:, :side], (16, 16))  # bottom left
    np.testing.assert_allclose(views[6], corner, atol=1e-4)
    centre = tf.image.resize(images[:, 1 : side + 1, 1 : side + 1], (16, 16))
    np.testing.assert_allclose(views[10], centre, atol=1e-4)
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])


def test_all_views_of_a_plain_image_are_equal():
    images = tf.fill((1, 8, 8, 3), 7.0)
    for views in TTA.values():
        for view in views(images):
            np.testing.assert_allclose(view, images, rtol=1e-6)
