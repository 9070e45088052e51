"""Each task's augmentation policy, and the one policy an image gets.

An image has labels of several tasks, and each task knows what its labels survive. So an image
gets the mildest value of every operation over the policies of the tasks it is labelled for; an
operation that one of them does not have is not applied (rule 7 of the data).
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from multitask.data.decode import resize_crop
from multitask.spec import MISSING, Augmentation

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
    """One task's policy -> float32 [len(COLUMNS)], with every absent operation neutral."""
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
    merged = rows.min(axis=0)  # the smallest chance and amount
    for column in (COLUMNS.index(name) for name in COLUMNS if name.endswith(("_low", "_high"))):
        ends = rows[:, column]
        merged[column] = ends[np.abs(ends - 1).argmin()]  # and of a range the end nearest to 1
    return merged


def image_policies(
    labels: np.ndarray, augmentations: Sequence[Augmentation]
) -> tuple[np.ndarray, np.ndarray]:
    """The policy of every image.

    Args:
        labels: int [rows, tasks]; MISSING where the task has no label.
        augmentations: one a task.

    Returns:
        float32 [policies, columns], and int32 [rows] which of them an image has. An image
        without any label has the neutral policy.
    """
    of_tasks = np.stack([policy_row(augmentation) for augmentation in augmentations])
    sets, index = np.unique(labels != MISSING, axis=0, return_inverse=True)
    neutral = policy_row(Augmentation())
    policies = [merge_policies(of_tasks[tasks]) if tasks.any() else neutral for tasks in sets]
    return np.stack(policies), index.reshape(-1).astype(np.int32)


def augment_image(
    image: tf.Tensor, policy: tf.Tensor, seed: tf.Tensor, *, size_px: int, how: str
) -> tf.Tensor:
    """Crop, resize, flip, brightness, contrast, saturation, each drawn from a stateless seed.

    Args:
        image: uint8 [height, width, 3], upright.
        policy: float32 [len(COLUMNS)].
        seed: int32 [2]; the same seed draws the same picture.
        size_px: side of the result.
        how: one of decode.RESIZE_KINDS.

    Returns:
        float32 [size_px, size_px, 3] in 0..255.
    """
    value = dict(zip(COLUMNS, tf.unstack(policy, len(COLUMNS)), strict=True))
    draw = tf.unstack(tf.random.stateless_uniform([8], seed), 8)

    # One side's share for both keeps the aspect; (0, 0, 1, 1) is the whole picture.
    share = value["crop_low"] + draw[0] * (value["crop_high"] - value["crop_low"])
    share = tf.where(draw[1] < value["crop_probability"], share, 1.0)
    box = tf.stack([draw[2] * (1 - share), draw[3] * (1 - share), share, share])
    image = resize_crop(image, box=box, size_px=size_px, how=how) / 255.0

    flipped = (draw[4] < 0.5) & (value["flip"] > 0)
    image = tf.where(flipped, image[:, ::-1], image)
    image += (2 * draw[5] - 1) * value["brightness"]
    contrast = value["contrast_low"] + draw[6] * (value["contrast_high"] - value["contrast_low"])
    mean = tf.reduce_mean(image, axis=(0, 1), keepdims=True)
    image = tf.clip_by_value((image - mean) * contrast + mean, 0, 1)
    saturation = value["saturation_low"] + draw[7] * (
        value["saturation_high"] - value["saturation_low"]
    )
    image = tf.image.adjust_saturation(image, saturation)
    return tf.clip_by_value(image, 0, 1) * 255.0
