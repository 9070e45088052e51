"""Where in a picture the network looks for a class: Grad-CAM (Selvaraju et al. 2017)."""

import keras
import matplotlib
import numpy as np
from keras import ops
from PIL import Image

from multitask.data.decode import RESIZE_KINDS
from multitask.evaluation.predictions import compiled
from multitask.learning.backend import gradient
from multitask.model.network import parts
from multitask.spec import expected

COLOURS = "inferno"
OPACITY = 0.65  # of the colours where the map is 1


def class_activation_maps(
    model: keras.Model, images, task: str, classes, *, batch_size: int = 32
) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) of the trunk's feature map.

    A channel's weight is the gradient of the class's logit with respect to the channel, averaged
    over its places; the map is the ReLU of the weighted sum of the channels.

    Args:
        model: image -> {task: logits}, of a trunk and heads.
        images: float [n, size, size, 3], 0 to 255, resized as for the model.
        task: whose class.
        classes: int [n], the class to explain of each image.
        batch_size: images at a time, which bounds the memory.

    Returns:
        float32 [n, height, width], the size of the feature map, in [0, 1]: each map is divided by
        its maximum, and is all zero where nothing speaks for the class.

    Raises:
        ValueError: no such task or class, shapes that do not match, or a trunk without a map.
    """
    trunk, heads = parts(model)
    if task not in heads:
        raise ValueError(f"task: {task!r}. {expected(task, heads)}")
    head = heads[task]
    images, classes = np.asarray(images), np.asarray(classes)
    count, shape = head.output_shape[-1], tuple(trunk.input_shape[1:])
    if images.ndim != 4 or images.shape[1:] != shape:
        raise ValueError(f"images: shape {images.shape}, expected {('n', *shape)}")
    if classes.shape != images.shape[:1] or classes.dtype.kind not in "iu":
        raise ValueError(
            f"classes: shape {classes.shape} of {classes.dtype}, expected one whole number for "
            f"each of {len(images)} images"
        )
    wrong = classes[(classes < 0) | (classes >= count)]
    if len(wrong):
        raise ValueError(f"classes: {wrong[0]}, expected 0 to {count - 1} for {task}")
    if len(trunk.output_shape) != 4:
        raise ValueError(f"the trunk has no feature map: its output is {trunk.output_shape}")
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}, expected at least 1")

    infer = compiled(trunk)
    maps = np.zeros((len(images), *trunk.output_shape[1:3]), np.float32)
    for begin in range(0, len(images), batch_size):
        part = slice(begin, begin + batch_size)
        features = infer(ops.convert_to_tensor(images[part], "float32"))
        maps[part] = activation_maps(head, features, classes[part])
    return maps


def activation_maps(head: keras.Model, features, classes: np.ndarray) -> np.ndarray:
    """`class_activation_maps` of one batch.

    Args:
        head: of the task.
        features: float [batch, height, width, channels], the trunk's output.
        classes: int [batch].
    """
    chosen = ops.one_hot(classes, head.output_shape[-1])
    # In inference no example's logits depend on another's: the sum has each one's own gradient.
    slopes = gradient(
        lambda at: ops.sum(head(at, training=False) * chosen), ops.convert_to_tensor(features)
    )
    slopes = ops.convert_to_numpy(ops.cast(slopes, "float32"))
    features = ops.convert_to_numpy(ops.cast(features, "float32"))
    weights = slopes.mean(axis=(1, 2))
    found = np.maximum(np.einsum("nhwc,nc->nhw", features, weights), 0)
    highest = found.max(axis=(1, 2), keepdims=True)
    return np.divide(found, highest, out=np.zeros_like(found), where=highest > 0)


def overlay(picture: np.ndarray, cam: np.ndarray, *, how: str = "squash") -> np.ndarray:
    """A map in colours over its picture, which is untouched where the map is 0.

    Args:
        picture: uint8 [height, width, 3], upright, of any size.
        cam: float [h, w] in [0, 1], of the picture as the model had it.
        how: it was resized for the model, as the spec's `resize`. "squash": the map covers the
            picture; "crop": its central square; "pad": the square around it.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: shapes, or unknown `how`.
    """
    picture, cam = np.asarray(picture), np.asarray(cam, np.float32)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"picture: {picture.dtype} {picture.shape}, expected uint8 [h, w, 3]")
    if cam.ndim != 2:
        raise ValueError(f"cam: shape {cam.shape}, expected [h, w]")
    if how not in RESIZE_KINDS:
        raise ValueError(f"how: {how!r}. {expected(how, RESIZE_KINDS)}")
    height, width = picture.shape[:2]
    side = max(height, width) if how == "pad" else min(height, width)
    sides = (height, width) if how == "squash" else (side, side)
    grown = Image.fromarray(cam).resize(sides[::-1], Image.Resampling.BILINEAR)
    above, beside = (height - sides[0]) // 2, (width - sides[1]) // 2
    seen = np.asarray(grown)[max(0, -above) :, max(0, -beside) :][:height, :width]
    whole = np.zeros((height, width), np.float32)
    above, beside = max(0, above), max(0, beside)
    whole[above : above + seen.shape[0], beside : beside + seen.shape[1]] = seen
    colours = matplotlib.colormaps[COLOURS](whole)[..., :3] * 255
    opacity = OPACITY * whole[..., None]
    return np.rint(picture * (1 - opacity) + colours * opacity).astype(np.uint8)
