"""Where in a picture the network looks for a class: Grad-CAM (Selvaraju et al. 2017)."""

import keras
import matplotlib
import numpy as np
from keras import ops
from PIL import Image

from multitask.data.decode import RESIZE_KINDS
from multitask.learning.backend import gradient
from multitask.spec import expected

COLOURS = "inferno"
OPACITY = 0.65  # of the colours where the map is 1


def activation_maps(head: keras.Model, features, classes):
    """Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) of the trunk's feature map.

    A channel's weight is the gradient of the class's logit with respect to the channel, averaged
    over its places; the map is the ReLU of the weighted sum of the channels.

    Args:
        head: of the task: feature map -> logits.
        features: float [batch, height, width, channels], the trunk's output.
        classes: int [batch], the class to explain of each example.

    Returns:
        A tensor, float32 [batch, height, width], in [0, 1]: each map is divided by its maximum,
        and is all zero where nothing speaks for the class.

    Raises:
        ValueError: a trunk without a map.
    """
    if len(features.shape) != 4:
        raise ValueError(f"the trunk has no feature map: its output is {features.shape}")
    chosen = ops.one_hot(classes, head.output_shape[-1])
    # In inference no example's logits depend on another's: the sum has each one's own gradient.
    slopes = gradient(
        lambda at: ops.sum(head(at, training=False) * chosen), ops.convert_to_tensor(features)
    )
    weights = ops.mean(ops.cast(slopes, "float32"), axis=(1, 2))
    weighted = ops.cast(features, "float32") * weights[:, None, None, :]
    found = ops.relu(ops.sum(weighted, axis=-1))
    highest = ops.max(found, axis=(1, 2), keepdims=True, initial=0)
    return ops.divide_no_nan(found, highest)


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
