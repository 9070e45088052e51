"""Augmentation: the policies of the tasks, merged into one policy per image.

An image can have labels of several tasks, and each task's policy allows only changes that leave its
labels valid. An image therefore gets the mildest value of every operation over the policies of the
tasks that label it; an operation that is absent from one of them is not applied (rule 7 of the
data).
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from multitask.data.decode import resize_crop
from multitask.spec import Augmentation, is_labelled

# The columns of a policy row; a factor's range (1, 1) and a brightness of 0 change nothing.
COLUMNS = (
    "flip",
    "brightness",
    "contrast_low",
    "contrast_high",
    "saturation_low",
    "saturation_high",
    "crop_low",
    "crop_high",
    "crop_probability",
)


def policy_row(augmentation: Augmentation) -> np.ndarray:
    """One task's policy as float32 [len(COLUMNS)]; absent operations are neutral."""
    return np.asarray(
        [
            augmentation.flip,
            augmentation.brightness or 0,
            *(augmentation.contrast or (1, 1)),
            *(augmentation.saturation or (1, 1)),
            *(augmentation.crop or (1, 1)),
            augmentation.crop_probability if augmentation.crop else 0,
        ],
        np.float32,
    )


def merge_policies(rows: np.ndarray) -> np.ndarray:
    """The mildest value of every operation: float32 [policies, columns] -> [columns]."""
    merged = rows.min(axis=0)  # the smallest probability and amount
    for column in (COLUMNS.index(name) for name in COLUMNS if name.endswith(("_low", "_high"))):
        ends = rows[:, column]
        merged[column] = ends[np.abs(ends - 1).argmin()]  # the end of the range nearest to 1
    return merged


def image_policies(
    labels: np.ndarray, augmentations: Sequence[Augmentation]
) -> tuple[np.ndarray, np.ndarray]:
    """The policy of every image.

    Args:
        labels: int [rows, tasks]; MISSING where the task has no label.
        augmentations: one per task.

    Returns:
        float32 [policies, columns], and int32 [rows], the index of each image's policy. An image
        without any label has the neutral policy.
    """
    task_policies = np.stack([policy_row(augmentation) for augmentation in augmentations])
    sets, index = np.unique(is_labelled(labels), axis=0, return_inverse=True)
    neutral = policy_row(Augmentation())
    policies = [merge_policies(task_policies[tasks]) if tasks.any() else neutral for tasks in sets]
    return np.stack(policies), index.reshape(-1).astype(np.int32)


def augment_image(
    image: tf.Tensor, policy: tf.Tensor, seed: tf.Tensor, *, size_px: int, how: str
) -> tf.Tensor:
    """Crop, resize, flip, change brightness, contrast and saturation; all from a stateless seed.

    Args:
        image: uint8 [height, width, 3], upright.
        policy: float32 [len(COLUMNS)].
        seed: int32 [2]; the same seed gives the same image.
        size_px: side of the result.
        how: one of decode.RESIZE_KINDS.

    Returns:
        float32 [size_px, size_px, 3] in 0..255.
    """
    value = dict(zip(COLUMNS, tf.unstack(policy, len(COLUMNS)), strict=True))
    sample = tf.unstack(tf.random.stateless_uniform([8], seed), 8)

    # The same share of both sides keeps the aspect ratio; (0, 0, 1, 1) is the whole image.
    share = value["crop_low"] + sample[0] * (value["crop_high"] - value["crop_low"])
    share = tf.where(sample[1] < value["crop_probability"], share, 1.0)
    box = tf.stack([sample[2] * (1 - share), sample[3] * (1 - share), share, share])
    planar = resize_crop(image, box=box, size_px=size_px, how=how, planar=True)

    # Red, green and blue separately, float32 [width, height] each: whole rows of one channel make
    # the colour operations several times cheaper. The copy that separates them also flips.
    columns = tf.range(size_px)
    flipped = (sample[4] < 0.5) & (value["flip"] > 0)
    columns = 3 * tf.where(flipped, columns[::-1], columns)
    rows = tf.reshape(planar, [size_px * 3, size_px])
    channels = [tf.gather(rows, columns + channel) for channel in range(3)]

    # Contrast scales around the mean of the brightened image; both combine to a factor and offset.
    brightness = 255 * (2 * sample[5] - 1) * value["brightness"]
    contrast = value["contrast_low"] + sample[6] * (value["contrast_high"] - value["contrast_low"])
    offsets = [tf.reduce_mean(channel) * (1 - contrast) + brightness for channel in channels]
    channels = [
        tf.raw_ops.ClipByValue(
            t=channel * contrast + offset, clip_value_min=0.0, clip_value_max=255.0
        )
        for channel, offset in zip(channels, offsets, strict=True)
    ]

    # Saturation as in HSV: scale the distance to the brightest channel, until the darkest is 0.
    # The 1e-4 (of a level) prevents 0 / 0 for grey pixels and results that round below 0.
    saturation = value["saturation_low"] + sample[7] * (
        value["saturation_high"] - value["saturation_low"]
    )
    red, green, blue = channels
    brightest = tf.maximum(tf.maximum(red, green), blue)
    darkest = tf.minimum(tf.minimum(red, green), blue)
    factor = tf.minimum(saturation, brightest / (brightest - darkest + 1e-4))
    channels = [brightest - (brightest - channel) * factor for channel in channels]
    return tf.transpose(tf.stack(channels, axis=1), [2, 0, 1])
