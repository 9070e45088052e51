"""Decode images without TensorFlow, to the pixels that `decode` gives.

`decode` is for pipelines and exports. This module is for predictions from Python, where the runtime
may be ONNX Runtime or LiteRT and TensorFlow would take seconds to import. Tests hold the two
together: the same bytes after decoding, and at most PIXEL_TOLERANCE after resizing.
"""

import io
import os
import re
import struct
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL
from PIL import Image

from multitask.data.conversion import as_readable
from multitask.data.image_kinds import direct_kind
from multitask.data.image_limits import (
    MAX_PIXELS,
    MAX_SCANS,
    OTHER_KINDS,
    OVER_LIMIT,
    SCAN,
    why_broken,
)
from multitask.data.pillow_pixels import (
    check_sides,
    draft,
    on_white,
    orientation_of,
    rgb_pixels,
    srgb_pixels,
    turn_upright,
)
from multitask.errors import InputError
from multitask.reading import MAX_IMAGE_BYTES, read_regular

PIXEL_TOLERANCE = 0.01  # of 255; TensorFlow computes the filter's weights in float32, Pillow in 64
ImageInput: TypeAlias = str | os.PathLike | bytes | np.ndarray | Image.Image


def name_of(image: ImageInput, place: int) -> str:
    """Return the path of an image; `images[3]` for one in memory, by its place."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"images[{place}]"


def model_input(
    image: ImageInput, *, size_px: int, how: str, reduced_px: int | None = None
) -> np.ndarray:
    """Make a model's input of an image.

    Args:
        image: a path; the bytes of an image file; a Pillow image; or uint8
            [height, width, 3] (RGB), [height, width, 4] (RGBA) or [height, width] (grey).
        size_px: side of the result.
        how: one of image_limits.RESIZE_KINDS.
        reduced_px: as in `resize_array`.

    Returns:
        float32 [size_px, size_px, 3], 0 to 255.

    Raises:
        InputError: it cannot be read; the text is the reason, without the image's name.
    """
    decoded = decode_array(image, target_px=reduced_px or size_px)
    return resize_array(decoded, size_px=size_px, how=how, reduced_px=reduced_px)


# === Decoding ===


def decode_array(image: ImageInput, *, target_px: int, convert_profiles: bool = True) -> np.ndarray:
    """Decode an image to upright RGB, as `decode.decode_image` does to what `as_readable` returns.

    Args:
        image: as in `model_input`.
        target_px: a large JPEG is decoded at a part of its size if its shorter side stays >= this.
        convert_profiles: whether to apply embedded color profiles.

    Returns:
        uint8 [height, width, 3].

    Raises:
        InputError: as in `model_input`.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        check_sides(image.size)
        orientation = orientation_of(image.info.get("exif", b""))
        pixels, _ = srgb_pixels(image, convert_profiles=convert_profiles)
        return turn_upright(pixels, orientation)
    name = ""
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        try:
            image = read_regular(Path(image), MAX_IMAGE_BYTES)
        except OSError as error:
            raise InputError(error.strerror or str(error)) from None
    if not isinstance(image, bytes):
        raise InputError(
            f"{type(image).__name__}: expected a path, bytes, a PIL image or a uint8 array"
        )
    data = as_readable(image, target_px=target_px, convert_profiles=convert_profiles, name=name)
    return _from_bytes(data, target_px)


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    ):
        raise InputError(
            f"array of {array.dtype} {list(array.shape)}: expected uint8 [height, width, 3], "
            "[height, width, 4] or [height, width]"
        )
    check_sides(array.shape[1::-1])
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    return array if array.shape[2] == 3 else on_white(array)


def _from_bytes(data: bytes, target_px: int) -> np.ndarray:
    kind = _kind(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which have a limit here
            image = Image.open(io.BytesIO(data), formats=(kind,))
        check_sides(image.size)
        if kind == "JPEG":
            if data.count(SCAN) > MAX_SCANS:
                raise InputError(f"JPEG of more than {MAX_SCANS} scans")
            draft(image, target_px)
        orientation = orientation_of(image.info.get("exif", b""))
        return turn_upright(rgb_pixels(image), orientation)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"image of over {MAX_PIXELS} pixels, {OVER_LIMIT} {MAX_PIXELS}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, PIL.UnidentifiedImageError):
        raise InputError(why_broken(kind.replace("WEBP", "WebP"), data)) from None


def _kind(data: bytes) -> str:
    """Pillow's name of the format, by the content."""
    if kind := direct_kind(data):
        return kind
    reason = "unknown content" if data else "it is empty"
    for name, start in OTHER_KINDS.items():
        if re.match(start.replace(r"\C", ".").encode(), data[:64], re.DOTALL):
            reason = f"it is {name}"
    raise InputError(f"not a JPEG, PNG or WebP image: {reason}")


# === Resizing ===


def resize_array(
    image: np.ndarray, *, size_px: int, how: str, reduced_px: int | None = None
) -> np.ndarray:
    """Resize an image as `decode.resize_image` does.

    Args:
        image: uint8 [height, width, 3].
        size_px: side of the result.
        how: "squash" ignores the aspect ratio; "crop" takes the central square; "pad" fits the
            longer side and centres the image on black.
        reduced_px: the shorter side that a larger image is first reduced to.

    Returns:
        float32 [size_px, size_px, 3], 0 to 255, not rounded.
    """
    height, width = image.shape[:2]
    if reduced_px is not None and min(height, width) > reduced_px:
        scaled = np.round(np.array([height, width]) * reduced_px / min(height, width))
        height, width = map(int, scaled)
        image = np.stack([_filtered(image[..., k], height, width) for k in range(3)], axis=-1)
    inner = size_px, size_px
    if how == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    elif how == "pad":
        # NumPy rounds half to even, as TensorFlow does.
        scaled = np.round(np.array([height, width]) * size_px / max(height, width))
        inner = max(int(scaled[0]), 1), max(int(scaled[1]), 1)
    resized = np.stack([_filtered(image[..., channel], *inner) for channel in range(3)], axis=-1)
    if how != "pad":
        return resized
    result = np.zeros((size_px, size_px, 3), np.float32)
    top, left = (size_px - inner[0]) // 2, (size_px - inner[1]) // 2
    result[top : top + inner[0], left : left + inner[1]] = resized
    return result


def _filtered(channel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 or float32 [h, w] to float32 [height, width]: bilinear and antialiased."""
    as_float = Image.fromarray(channel.astype(np.float32))
    return np.asarray(as_float.resize((width, height), Image.Resampling.BILINEAR))
