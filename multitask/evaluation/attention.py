"""Grad-CAM (Selvaraju et al. 2017): the parts of an image that support a class."""

from typing import Any

import keras
import matplotlib
import numpy as np
from keras import ops
from PIL import Image

from multitask.backend import gradient
from multitask.data.image_limits import RESIZE_KINDS
from multitask.spec import expected

Tensor = Any  # of the backend, or an array

COLOURS = "inferno"
OPACITY = 0.65  # of the colours at a map value of 1


def activation_maps(head: keras.Model, features: Tensor, classes: Tensor) -> Tensor:
    """Compute Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) of the trunk's feature map.

    A channel's weight is the gradient of the class's logit with respect to the channel, averaged
    over its positions; the map is the ReLU of the weighted sum of the channels.

    Args:
        head: the task's head, feature map -> logits.
        features: float [batch, height, width, channels], the trunk's output.
        classes: int [batch], the class to explain for each example.

    Returns:
        float32 [batch, height, width], in [0, 1]: each map is divided by its maximum; it is all
        zero if no position supports the class.

    Raises:
        ValueError: the trunk has no feature map.
    """
    if len(features.shape) != 4:
        raise ValueError(f"the trunk has no feature map: its output is {features.shape}")
    chosen = ops.one_hot(classes, head.output_shape[-1])
    # In inference an example's logits depend on no other example, so the gradient of the sum is
    # each example's own gradient.
    gradients = gradient(
        lambda x: ops.sum(head(x, training=False) * chosen), ops.convert_to_tensor(features)
    )
    weights = ops.mean(ops.cast(gradients, "float32"), axis=(1, 2))
    weighted = ops.cast(features, "float32") * weights[:, None, None, :]
    maps = ops.relu(ops.sum(weighted, axis=-1))
    highest = ops.max(maps, axis=(1, 2), keepdims=True, initial=0)
    return ops.divide_no_nan(maps, highest)


def overlay(image: np.ndarray, cam: np.ndarray, *, how: str = "squash") -> np.ndarray:
    """Colour an image by a map; pixels where the map is 0 stay as they are.

    Args:
        image: uint8 [height, width, 3], upright, of any size.
        cam: float [h, w] in [0, 1], of the resized image that the model received.
        how: the spec's `resize`. "squash": the map covers the image; "crop": its central square;
            "pad": the square around it.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: a wrong shape or type, or an unknown `how`.
    """
    image, cam = np.asarray(image), np.asarray(cam, np.float32)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: {image.dtype} {image.shape}, expected uint8 [h, w, 3]")
    if cam.ndim != 2:
        raise ValueError(f"cam: shape {cam.shape}, expected [h, w]")
    if how not in RESIZE_KINDS:
        raise ValueError(f"how: {how!r}. {expected(how, RESIZE_KINDS)}")
    height, width = image.shape[:2]
    side = max(height, width) if how == "pad" else min(height, width)
    sides = (height, width) if how == "squash" else (side, side)
    enlarged = Image.fromarray(cam).resize(sides[::-1], Image.Resampling.BILINEAR)
    top, left = (height - sides[0]) // 2, (width - sides[1]) // 2  # negative with padding
    visible = np.asarray(enlarged)[max(0, -top) :, max(0, -left) :][:height, :width]
    full = np.zeros((height, width), np.float32)
    top, left = max(0, top), max(0, left)
    full[top : top + visible.shape[0], left : left + visible.shape[1]] = visible
    colours = matplotlib.colormaps[COLOURS](full)[..., :3] * 255
    opacity = OPACITY * full[..., None]
    return np.rint(image * (1 - opacity) + colours * opacity).astype(np.uint8)
