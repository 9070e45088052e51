"""Test-time augmentation: the logits of several views of an image are averaged."""

import tensorflow as tf

CROP = 0.875  # side of a crop; Inception's central crop (Szegedy et al. 2015)


def flip(images: tf.Tensor) -> list[tf.Tensor]:
    """The images and their mirror images, float32 [batch, height, width, 3] each."""
    return [images, tf.image.flip_left_right(images)]


def crops(images: tf.Tensor) -> list[tf.Tensor]:
    """Twelve views: the images, their four corners and their centre, each also mirrored.

    A crop has CROP of each side and is resized to the original size (bilinear).
    """
    height, width = images.shape[1:3]
    crop_height, crop_width = round(CROP * height), round(CROP * width)
    bottom, right = height - crop_height, width - crop_width
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    cropped = [
        tf.image.resize(images[:, y : y + crop_height, x : x + crop_width], (height, width))
        for y, x in corners
    ]
    return [view for images_ in (images, *cropped) for view in flip(images_)]


TTA = {"flip": flip, "crops": crops}
