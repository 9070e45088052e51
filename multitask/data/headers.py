"""Read JPEG, PNG and WebP headers with TensorFlow ops: find blocks, apply the orientation."""

from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

EXIF = b"Exif\0\0"
ORIENTATION_TAG, SHORT = 0x0112, 3
EXIF_BYTES = 65_536  # read from an Exif block; IFD0 is at its start, thumbnails come later
MAX_HEADERS = 128  # segments or chunks to visit; real files have fewer than 40 before the pixels

F = TypeVar("F", bound=Callable[..., Any])
# (data string [], at int32 []) -> (the next header, or -1 after the last; the start of the block,
# or -1 if this header is not the wanted one; the size of the block), int32 [] each
ReadHeader = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


def separate(function: F) -> F:
    """Make a function a single op of the graph that calls it, instead of all the ops of its body.

    TensorFlow visits every op of a branch that is not taken, at half a microsecond each. Code that
    an ordinary JPEG does not need is therefore in such functions.
    """
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})


# === Bytes ===


def word(four_bytes: bytes) -> int:
    """Convert up to four bytes to the integer that `numbers` reads for them."""
    return int.from_bytes(four_bytes, "big", signed=len(four_bytes) == 4)


def numbers(
    data: tf.Tensor,
    at: int | tf.Tensor,
    count: int | tf.Tensor,
    dtype: tf.DType,
    *,
    little: bool = False,
) -> tf.Tensor:
    """Read numbers of a type from byte `at` on, as int32 [count]; zeros past the end."""
    size = count * dtype.size
    values = tf.io.decode_raw(_cut_bytes(data, at, size), dtype, little, fixed_length=size)
    return tf.cast(values, tf.int32)


def _cut_bytes(data: tf.Tensor, at: int | tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Cut the existing bytes of at .. at + count; `substr` alone fails past the end."""
    at = tf.clip_by_value(at, 0, tf.strings.length(data))
    return tf.strings.substr(data, at, tf.maximum(count, 0))


# === Headers ===


def find_block(data: tf.Tensor, start: int, read_header: ReadHeader) -> tuple[tf.Tensor, tf.Tensor]:
    """Walk the headers from byte `start` to the block that `read_header` searches for.

    Returns:
        int32 [], where the block starts (-1 where there is none); int32 [], its size.
    """
    _, block_at, size = tf.while_loop(
        lambda at, block_at, _: (at >= 0) & (at < tf.strings.length(data)) & (block_at < 0),
        lambda at, *_: read_header(data, at),
        (start, -1, 0),
        maximum_iterations=MAX_HEADERS,
    )
    return block_at, size


@separate
def find_jpeg_exif(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Walk a JPEG's headers to its Exif block, as `find_block` does."""
    return find_block(data, 2, _jpeg_header)


def _jpeg_header(data: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Search for Exif. T.81 annex B: FF, marker, two bytes of length that count themselves."""
    marker, size, *begin = tf.unstack(numbers(data, at, 5, tf.uint16))
    # Segments that may precede a frame header: tables (only the Huffman tables have a marker below
    # FF DA), application data, comments. FF FF is a fill byte.
    has_next = (marker > 0xFFDA) | (marker == 0xFFC4)
    following = tf.where(marker == 0xFFFF, at + 1, at + 2 + size)
    is_exif = (marker == 0xFFE1) & tf.reduce_all(tf.stack(begin) == [0x4578, 0x6966, 0])
    return tf.where(has_next, following, -1), tf.where(is_exif, at + 4, -1), size - 2


def png_header(
    data: tf.Tensor, at: tf.Tensor, wanted: bytes = b"eXIf"
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Search for a chunk before the pixels. PNG 5.3: length, type, data, CRC."""
    size, kind = tf.unstack(numbers(data, at, 2, tf.int32))
    following = tf.where(kind == word(b"IDAT"), -1, at + 12 + size)
    return following, tf.where(kind == word(wanted), at + 8, -1), size


def webp_header(data: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Search for Exif. RFC 9649 2.3: FourCC, little-endian size, payload padded to even length."""
    kind, size = tf.unstack(numbers(data, at, 2, tf.int32, little=True))
    return at + 8 + size + size % 2, tf.where(kind == word(b"EXIF"[::-1]), at + 8, -1), size


# === Orientation ===


@separate
def upright(image: tf.Tensor, data: tf.Tensor, exif_at: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Turn an image upright: undo the camera's rotation or mirroring that the Exif block states.

    Args:
        image: uint8 [height, width, 3].
        data: string [], the encoded image.
        exif_at: int32 [] >= 0, where the Exif block starts.
        size: int32 [], its size in bytes, as the header states it.

    Returns:
        uint8 [height, width, 3], or [width, height, 3] where the camera was turned by 90°.
    """
    exif = _cut_bytes(data, exif_at, tf.minimum(size, EXIF_BYTES))
    orientation = _orientation(exif)

    def turn() -> tf.Tensor:
        # Orientations 5 to 8 are 1 to 4 of the transposed image.
        turned = tf.transpose(image, tf.where(orientation > 4, [1, 0, 2], [0, 1, 2]))
        flips = [[False, False], [False, True], [True, True], [True, False]]
        flipped = tf.concat([tf.gather(flips, (orientation - 1) % 4), [False]], 0)
        return tf.raw_ops.Reverse(tensor=turned, dims=flipped)

    return tf.cond(orientation == 1, lambda: image, turn)


def _orientation(exif: tf.Tensor) -> tf.Tensor:
    """Read int32 [], 1 to 8, from a TIFF 6.0 header and IFD0; Exif 00 00 may precede them."""
    prefix = tf.where(tf.strings.substr(exif, 0, len(EXIF)) == EXIF, len(EXIF), 0)
    order = numbers(exif, prefix, 1, tf.int32)[0]
    little = order == word(b"II*\0")

    def values(at: tf.Tensor, count: int | tf.Tensor, kind: tf.DType) -> tf.Tensor:
        return tf.where(
            little,
            numbers(exif, at, count, kind, little=True),
            numbers(exif, at, count, kind),
        )

    ifd = prefix + values(prefix + 4, 1, tf.int32)[0]
    # An entry is tag, type, count, value: 2 + 2 + 4 + 4 bytes; read as six words.
    count = tf.clip_by_value(values(ifd, 1, tf.uint16)[0], 1, EXIF_BYTES // 12)
    entries = tf.reshape(values(ifd + 2, count * 6, tf.uint16), [-1, 6])
    wanted = (entries[:, 0] == ORIENTATION_TAG) & (entries[:, 1] == SHORT)
    value = tf.reduce_max(tf.where(wanted, entries[:, 4], 0))
    valid = (little | (order == word(b"MM\0*"))) & (value >= 1) & (value <= 8)
    return tf.where(valid, value, 1)
