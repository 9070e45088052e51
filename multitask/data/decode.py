"""Decode encoded bytes to upright RGB images, with TensorFlow ops only.

Training, evaluation, prediction and export all decode here: the same ops run eagerly, inside
`tf.data` and inside a SavedModel that does not need this package. The format is recognised by the
content, never by the file name:

- JPEG (ITU-T T.81): baseline and progressive; grey, YCbCr, CMYK, YCCK.
- PNG (W3C PNG, third edition): grey, RGB and palette, with or without alpha or tRNS. 16-bit
  samples keep their high byte.
- WebP (RFC 9649): lossy, lossless, alpha. Animations are refused.

Transparent images are composited on white. The Exif orientation (CIPA DC-008, tag 0x0112 of IFD0,
a SHORT) is read where each format keeps it: APP1 before a JPEG's frame header, eXIf before a PNG's
first IDAT, EXIF in a WebP. Malformed Exif means orientation 1, never an error.
"""

import functools
import re
from collections.abc import Callable

import tensorflow as tf

from multitask.data.headers import (
    EXIF,
    find_block,
    find_jpeg_exif,
    numbers,
    png_header,
    separate,
    upright,
    webp_header,
    word,
)
from multitask.data.image_limits import (
    DAMAGED,
    DECODER_TEXTS,
    JPEG_RATIOS,
    MAX_PIXELS,
    MAX_RATIO,
    MAX_SCANS,
    MAX_SIDE,
    OTHER_KINDS,
    OVER_LIMIT,
    RESIZE_KINDS,
    SCAN,
    WHITE,
    why_broken,
)

MAX_ROW_SHRINK = 4  # up to this reduction, the input as floats is small
JPEG_HEAD_BYTES = 65_536  # the part that is searched for Exif, which the standard puts first


# === Decoding ===


def decode_image(
    data: tf.Tensor | bytes, *, target_px: int, max_pixels: int = MAX_PIXELS
) -> tf.Tensor:
    """Decode an image to upright RGB of bounded size.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its shorter side stays >= target_px (scaled
    inverse DCT): this is faster, and closer to an area average than a full decode that is resized.

    Args:
        data: string [], the bytes of a JPEG, PNG or WebP file.
        target_px: int >= 1, the size in pixels that the caller will resize the image to.
        max_pixels: int in 1..MAX_PIXELS, the limit for the original.

    Returns:
        uint8 [height, width, 3], both sides >= 1 and unknown until run.

    Raises:
        ValueError: target_px < 1, or max_pixels outside its range.
        tf.errors.InvalidArgumentError: another format; an animation; more than max_pixels, a side
            over MAX_SIDE, one over MAX_RATIO times the other, or a JPEG of more than MAX_SCANS
            scans (all checked before any pixel is decoded); truncated or broken data. The text is
            one line when eager; a graph adds lines to it, which `error_text` removes.
    """
    if target_px < 1:
        raise ValueError(f"target_px: must be at least 1. Received {target_px}.")
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise ValueError(f"max_pixels: expected 1 to {MAX_PIXELS}. Received {max_pixels}.")
    decode, data = _decoder(int(target_px), int(max_pixels)), tf.convert_to_tensor(data, tf.string)
    try:
        return decode(data)
    except tf.errors.InvalidArgumentError as error:  # when eager; a graph fails when it is run
        text = error_text(error, data.numpy())
        raise tf.errors.InvalidArgumentError(None, None, text) from None


@functools.cache
def _decoder(target_px: int, max_pixels: int) -> Callable[[tf.Tensor], tf.Tensor]:
    # A tf.function makes eager calls 50 times faster; a graph that calls it inlines it.
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def decode(data: tf.Tensor) -> tf.Tensor:
        words = numbers(data, 0, 4, tf.int32)
        is_jpeg = words[0] // 2**8 % 2**24 == word(b"\xff\xd8\xff")
        is_png = tf.reduce_all(words == [word(b"\x89PNG"), word(b"\r\n\x1a\n"), 13, word(b"IHDR")])
        is_webp = (words[0] == word(b"RIFF")) & (words[2] == word(b"WEBP"))
        image, exif_at, size = tf.switch_case(
            tf.where(is_jpeg, 0, tf.where(is_png, 1, tf.where(is_webp, 2, 3))),
            [
                lambda: _decode_jpeg(data, target_px, max_pixels),
                lambda: _decode_png(data, max_pixels),
                lambda: _decode_webp(data, max_pixels),
                lambda: _decode_other(data),
            ],
        )
        # One branch for all formats: instantiating a graph takes longer than a small data set.
        image = tf.cond(exif_at >= 0, lambda: upright(image, data, exif_at, size), lambda: image)
        return tf.ensure_shape(image, [None, None, 3])

    return decode


# Each returns the image, where its Exif block starts (-1: it has none), and that block's size.
Decoded = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def _decode_jpeg(data: tf.Tensor, target_px: int, max_pixels: int) -> Decoded:
    # libjpeg itself reads the header, so that no file can evade the limit.
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(data))
    data = _bounded(data, height, width, max_pixels)
    scans = tf.size(tf.raw_ops.StringSplitV2(input=[data], sep=SCAN).values) - 1
    data = _checked(data, scans <= MAX_SCANS, f"JPEG of more than {MAX_SCANS} scans")
    # libjpeg rounds a scaled side up: ceil(shorter / ratio) >= target_px.
    shorter = tf.minimum(height, width)
    too_big = [shorter <= ratio * (target_px - 1) for ratio in JPEG_RATIOS[:-1]]
    decoders = [
        # The accurate inverse DCT has no measurable cost and gives exactly Pillow's pixels.
        functools.partial(tf.io.decode_jpeg, data, 3, ratio=ratio, dct_method="INTEGER_ACCURATE")
        for ratio in JPEG_RATIOS
    ]
    image = tf.switch_case(tf.reduce_sum(tf.cast(too_big, tf.int32)), decoders)
    # This search in C++ is five times as fast as walking the headers to the exact place.
    head = tf.strings.substr(data, 0, JPEG_HEAD_BYTES)
    parts = tf.raw_ops.StringSplitV2(input=[head], sep=EXIF)
    none = tf.constant(-1), tf.constant(0)
    exif = tf.cond(tf.size(parts.values) > 1, lambda: find_jpeg_exif(data), lambda: none)
    return image, *exif


@separate
def _decode_png(data: tf.Tensor, max_pixels: int) -> Decoded:
    width, height = tf.unstack(numbers(data, 16, 2, tf.int32))
    data = _bounded(data, height, width, max_pixels)
    color_type = numbers(data, 25, 1, tf.uint8)[0]
    trns_at, _ = find_block(data, 8, functools.partial(png_header, wanted=b"tRNS"))
    image = tf.cond(
        (trns_at >= 0) | (color_type >= 4),
        lambda: _on_white(tf.io.decode_png(data, channels=4)),
        # With four channels, the alpha of 1-, 2- and 4-bit images would be 1, 3 and 15.
        lambda: tf.io.decode_png(data, channels=3),
    )
    return image, *find_block(data, 8, png_header)


@separate
def _decode_webp(data: tf.Tensor, max_pixels: int) -> Decoded:
    kind = numbers(data, 12, 1, tf.int32)[0]
    vp8x, vp8l = kind == word(b"VP8X"), kind == word(b"VP8L")
    # VP8X: 24 bits each of width - 1 and height - 1; VP8L: 14 bits each; VP8: 14 of 16 bits each.
    little = functools.partial(numbers, data, little=True)
    canvas = tf.concat([little(24, 1, tf.int32), little(26, 1, tf.int32) // 2**8], 0) % 2**24 + 1
    lossless = little(21, 1, tf.int32) // [1, 2**14] % 2**14 + 1
    lossy = little(26, 2, tf.uint16) % 2**14
    width, height = tf.unstack(tf.where(vp8x, canvas, tf.where(vp8l, lossless, lossy)))
    data = _bounded(data, height, width, max_pixels)
    still = ~vp8x | (numbers(data, 20, 1, tf.uint8)[0] // 2 % 2 == 0)
    data = _checked(data, still, "an animated WebP; only still images are read")
    frame = tf.io.decode_webp(data)[0]
    image = tf.cond(tf.shape(frame)[2] == 4, lambda: _on_white(frame), lambda: frame)
    return image, *find_block(data, 12, webp_header)


@separate
def _decode_other(data: tf.Tensor) -> Decoded:
    head = tf.strings.substr(data, 0, 64)
    reason = tf.where(tf.strings.length(head) == 0, "it is empty", "unknown content")
    for name, start in OTHER_KINDS.items():
        is_kind = tf.strings.regex_full_match(head, rf"(?:{start})\C*")  # \C: any byte
        reason = tf.where(is_kind, f"it is {name}", reason)
    data = _checked(data, False, tf.strings.join(["not a JPEG, PNG or WebP image: ", reason]))
    # Never reached; it gives this branch the same type as the others.
    return tf.zeros([tf.strings.length(data), 1, 3], tf.uint8), tf.constant(-1), tf.constant(0)


def _on_white(image: tf.Tensor) -> tf.Tensor:
    """Composite uint8 [height, width, 4] on white: [height, width, 3], rounded to nearest."""
    # 255 * 255 + 127 just fits 16 bits: half the memory of int32.
    alpha = tf.cast(image[..., 3:], tf.uint16)
    mixed = tf.cast(image[..., :3], tf.uint16) * alpha + WHITE * (255 - alpha)
    return tf.cast((mixed + 127) // 255, tf.uint8)


# === Refusals ===


def error_text(error: tf.errors.OpError, data: bytes | None = None) -> str:
    """Extract the one line of an error that matters to users, without TensorFlow's additions.

    Args:
        error: raised by `decode_image`.
        data: the encoded image, which reveals the cause if TensorFlow's text does not.
    """
    text = re.sub(r"^Graph execution error:.*\n\n", "", error.message, flags=re.DOTALL)
    text = re.sub(r"Detected at node .*?<stack traces unavailable>", "", text, flags=re.DOTALL)
    text = re.sub(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:\S*\].*", "", text)
    text = re.sub(r"^\s*Error in user-defined function .*?iterator: \S*: ", "", text)
    text = re.sub(r".*assertion failed: \[(.*?)\].*", r"\1", text, flags=re.DOTALL)
    for kind, pattern in DECODER_TEXTS.items():
        if re.search(pattern, text):
            return why_broken(kind, data) if data else DAMAGED.format(kind)
    return " ".join(text.split())


def _bounded(data: tf.Tensor, height: tf.Tensor, width: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Return the data, after checking the sides of its image against the limits."""
    # Compare by division: the product could overflow. The decoder refuses a negative side.
    fits = height <= max_pixels // tf.maximum(width, 1)
    size = [tf.strings.as_string(width), " x ", tf.strings.as_string(height)]
    size = tf.strings.join(["image of ", *size, f" pixels, {OVER_LIMIT} "])
    data = _checked(data, fits, tf.strings.join([size, str(max_pixels)]))
    # One check covers both limits, because every image pays for it; by division, as above.
    longer, shorter = tf.maximum(height, width), tf.minimum(height, width)
    short = longer <= MAX_SIDE
    fits = short & ((longer - 1) // MAX_RATIO < tf.maximum(shorter, 1))
    limit = tf.where(short, f"{MAX_RATIO} : 1 for its sides", f"{MAX_SIDE} for a side")
    return _checked(data, fits, tf.strings.join([size, limit]))


def _checked(data: tf.Tensor, condition: tf.Tensor | bool, message: tf.Tensor | str) -> tf.Tensor:
    """Return the data for ops that may run only if the condition holds; otherwise raise."""
    with tf.control_dependencies([tf.raw_ops.Assert(condition=condition, data=[message])]):
        return tf.identity(data)


# === Resizing ===


def resize_image(
    image: tf.Tensor,
    *,
    size_px: int,
    how: str,
    reduced_px: int | None = None,
    planar: bool = False,
) -> tf.Tensor:
    """Resize an image to a model's square input: antialiased bilinear, not rounded.

    Args:
        image: uint8 or float [height, width, 3], 0 to 255.
        size_px: int >= 1, the side of the result in pixels.
        how: "squash" ignores the aspect ratio; "crop" takes the central square of the shorter
            side; "pad" fits the longer side and centres the image on black, as Keras'
            `pad_to_aspect_ratio` does.
        reduced_px: int >= 1, the shorter side that a larger image is first reduced to, as the
            records of the training images were; None: it is not.
        planar: return the pixels as [width, 3, height], to work on one channel at a time.

    Returns:
        float32 [size_px, size_px, 3], 0 to 255; if planar [size_px, 3, size_px].

    Raises:
        ValueError: unknown `how`, or size_px < 1.
    """
    if how not in RESIZE_KINDS:
        raise ValueError(f"how: expected one of: {', '.join(RESIZE_KINDS)}. Received {how!r}.")
    if size_px < 1:
        raise ValueError(f"size_px: must be at least 1. Received {size_px}.")
    if reduced_px is not None:
        image = _reduced(image, reduced_px)
    sides = tf.shape(image)[:2]
    inner = tf.constant([size_px, size_px])
    if how == "crop":
        # Crop before resizing: the result is the same to within a pixel, with less to filter.
        square = tf.fill([2], tf.reduce_min(sides))
        image, sides = _cut(image, (sides - square) // 2, square), square
    elif how == "pad":
        inner = tf.cast(tf.round(sides * size_px / tf.reduce_max(sides)), tf.int32)
        inner = tf.maximum(inner, 1)
    image = _filtered(image, sides, inner)
    if how == "pad":
        before = (size_px - inner) // 2
        rows, columns = tf.unstack(tf.stack([before, size_px - inner - before], axis=1))
        image = tf.pad(image, tf.stack([columns, [0, 0], rows]))
    image = tf.ensure_shape(image, [size_px, 3, size_px])
    return image if planar else tf.transpose(image, [2, 0, 1])


def resize_crop(
    image: tf.Tensor, *, box: tf.Tensor, size_px: int, how: str, planar: bool = False
) -> tf.Tensor:
    """Crop an image, then `resize_image` it; box (0, 0, 1, 1) gives the same bits as no crop.

    Args:
        image: uint8 or float [height, width, 3], 0 to 255.
        box: float32 [4], (top, left, height, width) as fractions of the upright image; rounded
            to whole pixels, at least one of them, and kept inside the image.
        size_px: as for `resize_image`.
        how: as for `resize_image`.
        planar: as for `resize_image`.

    Returns:
        As `resize_image`.

    Raises:
        ValueError: as `resize_image`.
    """
    sides = tf.shape(image)[:2]
    corner, extent = tf.split(tf.round(box * tf.cast(tf.tile(sides, [2]), tf.float32)), 2)
    corner = tf.clip_by_value(tf.cast(corner, tf.int32), 0, sides - 1)
    extent = tf.clip_by_value(tf.cast(extent, tf.int32), 1, sides - corner)
    part = _cut(image, corner, extent)
    return resize_image(part, size_px=size_px, how=how, planar=planar)


def reduce_image(image: tf.Tensor, *, shorter_px: int) -> tf.Tensor:
    """Reduce an image to a bounded size and keep its aspect ratio: antialiased bilinear.

    Args:
        image: uint8 [height, width, 3].
        shorter_px: int >= 1, the maximum of the shorter side.

    Returns:
        uint8 [height, width, 3]; the image itself where it is small enough.
    """
    return tf.cast(tf.round(_reduced(image, shorter_px)), tf.uint8)


def _reduced(image: tf.Tensor, shorter_px: int) -> tf.Tensor:
    """`reduce_image` of a uint8 or float image, as float32 and not rounded."""
    sides = tf.shape(image)[:2]
    shorter = tf.reduce_min(sides)

    def smaller() -> tf.Tensor:
        inner = tf.cast(tf.round(sides * shorter_px / shorter), tf.int32)
        return tf.transpose(_filtered(image, sides, inner), [2, 0, 1])

    return tf.cond(shorter > shorter_px, smaller, lambda: tf.cast(image, tf.float32))


def _cut(image: tf.Tensor, corner: tf.Tensor, extent: tf.Tensor) -> tf.Tensor:
    return tf.slice(image, [*tf.unstack(corner), 0], [*tf.unstack(extent), 3])


def _filtered(image: tf.Tensor, sides: tf.Tensor, inner: tf.Tensor) -> tf.Tensor:
    """Resize as tf.image.resize with antialias: [height, width, 3] -> [width, 3, height].

    Each axis in turn becomes the first axis of a matrix: the kernel then works on whole rows of
    numbers instead of three channels, which takes less than half the time.
    """
    rows = _filtered_rows(tf.reshape(image, [sides[0], -1]), inner[0])
    columns = tf.reshape(tf.transpose(rows), [sides[1], -1])
    return tf.reshape(_filtered_rows(columns, inner[1]), [inner[1], 3, inner[0]])


def _filtered_rows(rows: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """uint8 or float [rows, numbers] -> float32 [count, numbers]."""
    size = tf.shape(rows)[0]
    # As an image of one row this is faster. A large reduction needs an image of one column: the
    # kernel filters the height first, and with one row it would hold the whole input as floats.
    axes = tf.where(size > MAX_ROW_SHRINK * count, [0, 1], [1, 0])
    from_sides = tf.gather([size, 1], axes)
    to_sides = tf.gather([count, 1], axes)
    image = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(rows, tf.concat([[1], from_sides, [-1]], 0)),
        size=to_sides,
        scale=tf.cast(to_sides, tf.float32) / tf.cast(from_sides, tf.float32),
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )
    return tf.reshape(image, [count, -1])
