"""Turn a Pillow image into RGB pixels: transparency, 16 bits, color profiles, orientation."""

import io
import struct

import numpy as np
from PIL import Image, ImageCms

from multitask.data.image_limits import (
    JPEG_RATIOS,
    MAX_PIXELS,
    MAX_RATIO,
    MAX_SIDE,
    OVER_LIMIT,
    WHITE,
)
from multitask.errors import InputError

ORIENTATION, SHORT = 0x0112, 3
TURNS = {  # Exif orientation -> the transpose that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}  # mode -> space of its profile
SAME = 2  # levels of 255: a profile that changes no color by more counts as sRGB
LEVELS = 9  # levels per channel of the colors to compare


def check_sides(sides: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Raise InputError for an image (width, height) that is empty or exceeds a limit."""
    width, height = sides
    size, longer, shorter = f"image of {width} x {height} pixels", *sorted((width, height))[::-1]
    if not shorter:
        raise InputError(f"{size}: it is empty")
    if width * height > max_pixels:
        raise InputError(f"{size}, {OVER_LIMIT} {max_pixels}")
    if longer > MAX_SIDE:
        raise InputError(f"{size}, {OVER_LIMIT} {MAX_SIDE} for a side")
    if longer > MAX_RATIO * shorter:
        raise InputError(f"{size}, {OVER_LIMIT} {MAX_RATIO} : 1 for its sides")


def reduction(sides: tuple[int, int], target_px: int) -> int:
    """Choose the divisor of an image's sides, 1, 2, 4 or 8, that keeps them >= target_px."""
    shorter = min(sides)
    return next(r for r in JPEG_RATIOS if r == 1 or shorter > r * (target_px - 1))


def draft(image: Image.Image, target_px: int) -> None:
    """Choose the scaled inverse DCT of a JPEG, in place."""
    ratio = reduction(image.size, target_px)
    if ratio > 1:
        image.draft(None, tuple(side // ratio for side in image.size))


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """Convert to RGB, uint8 [height, width, 3]; transparent pixels become white.

    Raises:
        InputError: its values exceed 16 bits.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        return _high_bytes(image)
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _high_bytes(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65_535):
        raise InputError("its values exceed 16 bits")
    grey = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    clear = image.info.get("transparency")
    if clear is not None:
        grey[values == clear] = WHITE
    return grey


def on_white(pixels: np.ndarray) -> np.ndarray:
    """Composite uint8 [height, width, 4] on white: [height, width, 3], rounded to nearest."""
    alpha = pixels[..., 3:].astype(np.uint16)
    mixed = pixels[..., :3] * alpha + WHITE * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


# === Orientation ===


def orientation_of(exif: bytes) -> int:
    """The orientation in a block of Exif; 1 if there is none or if it is malformed."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if tag == ORIENTATION:
                return value if kind == SHORT and value in TURNS else 1
    except struct.error:
        pass
    return 1


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an Exif orientation to uint8 [height, width, 3]."""
    if orientation == 1:
        return pixels
    return np.asarray(Image.fromarray(pixels).transpose(TURNS[orientation]))


# === Color profiles ===


def srgb_pixels(
    image: Image.Image, *, target_px: int | None = None, convert_profiles: bool = True
) -> tuple[np.ndarray, bool]:
    """Convert to sRGB by the embedded color profile; without a usable one, as `rgb_pixels` does.

    The rendering intent is relative colorimetric with black-point compensation, the default of
    image editors.

    Args:
        image: an image of any mode, opened or in memory.
        target_px: a large image is first averaged to 1/2, 1/4 or 1/8 of its sides if the shorter
            one stays >= this; None: it keeps its size.
        convert_profiles: whether to apply the profile.

    Returns:
        uint8 [height, width, 3], and whether a profile was applied.

    Raises:
        InputError: its values are floating-point numbers or exceed 16 bits.
    """
    if image.mode == "F":
        raise InputError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    profile = image.info.get("icc_profile") if convert_profiles else None
    if profile and is_srgb(profile):
        profile = None
    if image.mode.startswith("I"):
        image = Image.fromarray(_high_bytes(image)[..., 0])
    clear = image.has_transparency_data
    if image.mode in ("L", "LA"):
        image = image.convert("LA" if clear else "L")
    elif image.mode not in ("RGB", "CMYK", "LAB") or clear:
        image = image.convert("RGBA" if clear else "RGB")
    ratio = reduction(image.size, target_px) if target_px else 1
    if ratio > 1:
        image = Image.Image.reduce(image, ratio)  # a JPEG 2000 file has its own `reduce`
    colors = image.convert(image.mode.removesuffix("A")) if clear else image
    converted = _by_profile(colors, profile) if profile or image.mode == "LAB" else None
    if converted is None:
        return rgb_pixels(image), False
    pixels = np.asarray(converted)
    if clear:
        pixels = on_white(np.dstack([pixels, np.asarray(image.getchannel("A"))]))
    return pixels, True


def _by_profile(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """Convert RGB, L, CMYK or LAB to sRGB; None where the profile is broken or does not fit."""
    try:
        if profile is None:
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if SPACES.get(image.mode) != space:
            return None
        return ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def is_srgb(profile: bytes) -> bool:
    """Whether a profile changes no color by more than SAME levels; a broken one changes none."""
    steps = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
    colors = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3))
    for mode in ("RGB", "L"):
        given = colors.convert(mode)
        converted = _by_profile(given, profile)
        if converted is not None:
            before = np.asarray(given.convert("RGB"), np.int16)
            return int(np.abs(np.asarray(converted) - before).max()) <= SAME
    return _by_profile(Image.new("CMYK", (1, 1)), profile) is None
