"""Test-time augmentation: the same pictures seen in several ways, whose answers are averaged."""

import tensorflow as tf

CROP = 0.875  # side of a crop; Inception's central crop (Szegedy et al. 2015)


def flip(images: tf.Tensor) -> list[tf.Tensor]:
    """The pictures and their mirror images: float32 [batch, height, width, 3] each."""
    return [images, tf.image.flip_left_right(images)]


def crops(images: tf.Tensor) -> list[tf.Tensor]:
    """The pictures, their four corners and their centre, each also mirrored: twelve views.

    A corner is CROP of each side, resized to the whole (bilinear).
    """
    height, width = images.shape[1:3]
    tall, wide = round(CROP * height), round(CROP * width)
    down, right = height - tall, width - wide
    places = ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2))
    parts = [
        tf.image.resize(images[:, y : y + tall, x : x + wide], (height, width)) for y, x in places
    ]
    return [view for part in (images, *parts) for view in flip(part)]


TTA = {"flip": flip, "crops": crops}
