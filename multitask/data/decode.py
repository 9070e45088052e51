"""Encoded bytes to upright RGB pictures, in TensorFlow ops alone.

The one way in for training, evaluation, prediction and export: the same ops run eagerly, inside
`tf.data` and inside a SavedModel that knows nothing of this package. Formats, told by content and
never by file name:

- JPEG (ITU-T T.81): baseline and progressive; grey, YCbCr, CMYK, YCCK.
- PNG (W3C PNG, third edition): grey, RGB and palette, with or without alpha or tRNS. Of 16-bit
  samples the high byte is kept.
- WebP (RFC 9649): lossy, lossless, alpha. Animations are refused.

Transparency is laid on white. The Exif orientation (CIPA DC-008, tag 0x0112 of IFD0, a SHORT) is
honoured where each format keeps it: APP1 before a JPEG's frame header, eXIf before a PNG's first
IDAT, EXIF in a WebP. Malformed Exif means orientation 1, never an error.
"""

import functools
import re

import tensorflow as tf

MAX_PIXELS = 178_956_970  # Pillow's decompression-bomb limit; times 3 just within TF's 2**29 bytes
# What work and memory grow with besides the pixels. 65,535 is what a JPEG's header can hold, so no
# JPEG is refused for it. The most elongated works known as images are about 140 times as long as
# wide (the Bayeux Tapestry, 68 m x 0.5 m; hand scrolls reach 40).
MAX_SIDE, MAX_RATIO = 65_535, 200
OVER_LIMIT = "over the limit of"  # in the error for an image that exceeds a bound
RESIZE_KINDS = ("squash", "crop", "pad")
MAX_ROW_SHRINK = 4  # up to here the input as floats is small

JPEG_RATIOS = (8, 4, 2, 1)  # the DCT scalings of libjpeg that TensorFlow offers
WHITE = 255
EXIF = b"Exif\0\0"
ORIENTATION_TAG, SHORT = 0x0112, 3
EXIF_BYTES = 65_536  # of one Exif block; IFD0 stands at its start, thumbnails behind
JPEG_HEAD_BYTES = 65_536  # where a JPEG with Exif says so; the standard wants it first of all
MAX_HEADERS = 128  # segments or chunks looked at; real files have fewer than 40 before the pixels
OTHER_KINDS = {  # how they begin (RE2), to be named when they are refused
    "a GIF": "GIF8",
    "a BMP": "BM",
    "a TIFF": r"II\*\x00|MM\x00\*",
    "HTML": r"(?i)\s*<(!doctype html|html)",
    "SVG or other XML": r"(?i)\s*<(svg|\?xml)",
    "HEIC, AVIF or a video": r"\C{4}ftyp",
    "a PDF": "%PDF",
    "a JPEG 2000": r"\x00\x00\x00\x0cjP  ",
    "a JPEG XL": r"\x00\x00\x00\x0cJXL ",
    "a Photoshop file": "8BPS",
    "a ZIP archive": r"PK\x03\x04",
    "a pointer of Git LFS; fetch the file itself": "version https://git-lfs",
    "filled with zero bytes, as of an incomplete copy": r"\x00{16}",
}
# What TensorFlow says of broken data, by format: one text for very different causes.
DECODER_TEXTS = {
    "JPEG": r"Invalid JPEG data|Failed to decode JPEG",
    "PNG": r"Invalid PNG|Failed to decode PNG",
    "WebP": r"Failed to decode WebP|Invalid WebP",
}
CUT_OFF = "the {} is cut off before its end; copy or download it again"
DAMAGED = "the {} is damaged; copy or download it again, or save it anew in an image editor"
OTHER_JPEG = "{}, which is not read; save it as an ordinary (baseline or progressive, 8-bit) JPEG"
JPEG_PROCESSES = {  # by the frame header's marker, T.81 table B.1
    "a lossless JPEG": (0xC3, 0xC7, 0xCB, 0xCF, 0xF7),
    "a hierarchical JPEG": (0xC5, 0xC6, 0xCD, 0xCE),
}


# === Decoding ===


def decode_image(data, *, target_px, max_pixels=MAX_PIXELS):
    """An encoded picture as upright RGB of bounded size.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its shorter side stays >= target_px
    (scaled inverse DCT): faster, and closer to an area average than a full decode made smaller.

    Args:
        data: string [], the bytes of a JPEG, PNG or WebP file.
        target_px: int >= 1, the size in pixels that the caller will resize the picture to.
        max_pixels: int in 1..MAX_PIXELS, what the original may have.

    Returns:
        uint8 [height, width, 3], both sides >= 1 and unknown until run.

    Raises:
        ValueError: target_px < 1, or max_pixels that are none of those.
        tf.errors.InvalidArgumentError: another format, an animation, more than max_pixels, a side
            over MAX_SIDE, or one over MAX_RATIO times the other (told by the header, before any
            pixel is decoded), truncated or broken data. One line when eager; where a graph wraps
            it in more, `error_text` gives that line.
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
def _decoder(target_px, max_pixels):
    # A function of its own makes eager calls 50 times faster; a graph around it takes it in.
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def decode(data):
        words = _numbers(data, 0, 4, tf.int32)
        is_jpeg = words[0] // 2**8 % 2**24 == _word(b"\xff\xd8\xff")
        is_png = tf.reduce_all(
            words == [_word(b"\x89PNG"), _word(b"\r\n\x1a\n"), 13, _word(b"IHDR")]
        )
        is_webp = (words[0] == _word(b"RIFF")) & (words[2] == _word(b"WEBP"))
        image = tf.switch_case(
            tf.where(is_jpeg, 0, tf.where(is_png, 1, tf.where(is_webp, 2, 3))),
            [
                lambda: _decode_jpeg(data, target_px, max_pixels),
                lambda: _decode_png(data, max_pixels),
                lambda: _decode_webp(data, max_pixels),
                lambda: _decode_other(data),
            ],
        )
        return tf.ensure_shape(image, [None, None, 3])

    return decode


# TensorFlow visits every op of a branch not taken, at half a microsecond each. What an ordinary
# JPEG does not need is therefore a function of its own, which is one op and not its body.
_apart = functools.partial(
    tf.function, autograph=False, experimental_attributes={"_noinline": True}
)


def _decode_jpeg(data, target_px, max_pixels):
    # libjpeg's own reading of the header, so that nothing can hide from the bound.
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(data))
    data = _bounded(data, height, width, max_pixels)
    # libjpeg rounds a scaled side up: ceil(shorter / ratio) >= target_px.
    shorter = tf.minimum(height, width)
    too_big = [shorter <= ratio * (target_px - 1) for ratio in JPEG_RATIOS[:-1]]
    decoders = [
        # The accurate inverse DCT costs nothing measurable and gives Pillow's very pixels.
        functools.partial(tf.io.decode_jpeg, data, 3, ratio=ratio, dct_method="INTEGER_ACCURATE")
        for ratio in JPEG_RATIOS
    ]
    image = tf.switch_case(tf.reduce_sum(tf.cast(too_big, tf.int32)), decoders)
    # A search in C++, five times as fast as the walk that then tells where exactly it stands.
    head = tf.strings.substr(data, 0, JPEG_HEAD_BYTES)
    parts = tf.raw_ops.StringSplitV2(input=[head], sep=EXIF)
    return tf.cond(
        tf.size(parts.values) > 1, lambda: _upright(image, data, 2, _jpeg_header), lambda: image
    )


@_apart
def _decode_png(data, max_pixels):
    width, height = tf.unstack(_numbers(data, 16, 2, tf.int32))
    data = _bounded(data, height, width, max_pixels)
    color_type = _numbers(data, 25, 1, tf.uint8)[0]
    trns_at, _ = _find(data, 8, functools.partial(_png_header, wanted=b"tRNS"))
    image = tf.cond(
        (trns_at >= 0) | (color_type >= 4),
        lambda: _on_white(tf.io.decode_png(data, channels=4)),
        # Four channels here would make the alpha of 1-, 2- and 4-bit samples 1, 3 and 15.
        lambda: tf.io.decode_png(data, channels=3),
    )
    return _upright(image, data, 8, _png_header)


@_apart
def _decode_webp(data, max_pixels):
    kind = _numbers(data, 12, 1, tf.int32)[0]
    vp8x, vp8l = kind == _word(b"VP8X"), kind == _word(b"VP8L")
    # VP8X: 24 bits each of width - 1 and height - 1; VP8L: 14 bits each; VP8: 14 of 16 bits each.
    little = functools.partial(_numbers, data, little=True)
    canvas = tf.concat([little(24, 1, tf.int32), little(26, 1, tf.int32) // 2**8], 0) % 2**24 + 1
    lossless = little(21, 1, tf.int32) // [1, 2**14] % 2**14 + 1
    lossy = little(26, 2, tf.uint16) % 2**14
    width, height = tf.unstack(tf.where(vp8x, canvas, tf.where(vp8l, lossless, lossy)))
    data = _bounded(data, height, width, max_pixels)
    still = ~vp8x | (_numbers(data, 20, 1, tf.uint8)[0] // 2 % 2 == 0)
    data = _checked(data, still, "an animated WebP; only still pictures are read")
    frame = tf.io.decode_webp(data)[0]
    image = tf.cond(tf.shape(frame)[2] == 4, lambda: _on_white(frame), lambda: frame)
    return _upright(image, data, 12, _webp_header)


@_apart
def _decode_other(data):
    head = tf.strings.substr(data, 0, 64)
    found = tf.where(tf.strings.length(head) == 0, "it is empty", "unknown content")
    for name, start in OTHER_KINDS.items():
        is_it = tf.strings.regex_full_match(head, rf"(?:{start})\C*")  # \C: any byte, not any UTF-8
        found = tf.where(is_it, f"it is {name}", found)
    data = _checked(data, False, tf.strings.join(["not a JPEG, PNG or WebP picture: ", found]))
    # Never reached; gives this branch the type of the others.
    return tf.zeros([tf.strings.length(data), 1, 3], tf.uint8)


def _on_white(image):
    """uint8 [height, width, 4] -> [height, width, 3], rounded to nearest."""
    # 255 * 255 + 127 just fits 16 bits: half the memory of int32.
    alpha = tf.cast(image[..., 3:], tf.uint16)
    mixed = tf.cast(image[..., :3], tf.uint16) * alpha + WHITE * (255 - alpha)
    return tf.cast((mixed + 127) // 255, tf.uint8)


# === Refusals ===


def error_text(error, data=None):
    """The one line for people of a tf.errors.OpError, without what TensorFlow wraps around it.

    Args:
        error: of `decode_image`.
        data: the bytes that it was about, which tell what TensorFlow's words leave open.
    """
    text = re.sub(r"^Graph execution error:.*\n\n", "", error.message, flags=re.DOTALL)
    text = re.sub(r"Detected at node .*?<stack traces unavailable>", "", text, flags=re.DOTALL)
    text = re.sub(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:\S*\].*", "", text)
    text = re.sub(r"^\s*Error in user-defined function .*?iterator: \S*: ", "", text)
    text = re.sub(r".*assertion failed: \[(.*?)\].*", r"\1", text, flags=re.DOTALL)
    for kind, pattern in DECODER_TEXTS.items():
        if re.search(pattern, text):
            return _why_broken(kind, data) if data else DAMAGED.format(kind)
    return " ".join(text.split())


def _why_broken(kind, data):
    """Why data that begins as JPEG, PNG or WebP cannot be decoded, and what helps."""
    if kind == "JPEG":
        return _why_broken_jpeg(data)
    if kind == "PNG":
        whole = b"IEND" in data
    else:
        whole = len(data) >= 12 and int.from_bytes(data[4:8], "little") + 8 <= len(data)
    return (DAMAGED if whole else CUT_OFF).format(kind)


def _why_broken_jpeg(data):
    at, size = 2, len(data)
    while at + 4 <= size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:  # the pixels, in which FF D9 stands for the end alone
            whole = data.find(b"\xff\xd9", at) >= 0
            return (DAMAGED if whole else CUT_OFF).format("JPEG")
        for name, markers in JPEG_PROCESSES.items():
            if marker in markers:
                return OTHER_JPEG.format(name)
        is_frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame and at + 4 < size and data[at + 4] != 8:
            return OTHER_JPEG.format(f"a JPEG of {data[at + 4]} bits a sample")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return (CUT_OFF if at + 4 > size else DAMAGED).format("JPEG")


def _bounded(data, height, width, max_pixels):
    # Divided, as the product could overflow. A side read as negative is left to the decoder,
    # which refuses it.
    fits = height <= max_pixels // tf.maximum(width, 1)
    size = [tf.strings.as_string(width), " x ", tf.strings.as_string(height)]
    size = tf.strings.join(["picture of ", *size, f" pixels, {OVER_LIMIT} "])
    data = _checked(data, fits, tf.strings.join([size, str(max_pixels)]))
    # One check of both, as every image pays for it. Divided for the same reason.
    longer, shorter = tf.maximum(height, width), tf.minimum(height, width)
    short = longer <= MAX_SIDE
    fits = short & ((longer - 1) // MAX_RATIO < tf.maximum(shorter, 1))
    limit = tf.where(short, f"{MAX_RATIO} : 1 for its sides", f"{MAX_SIDE} for a side")
    return _checked(data, fits, tf.strings.join([size, limit]))


def _checked(data, condition, message):
    """data, for what may only run once the condition holds; else an error with that message."""
    with tf.control_dependencies([tf.raw_ops.Assert(condition=condition, data=[message])]):
        return tf.identity(data)


# === Orientation ===


@_apart
def _upright(image, data, start, read_header):
    """Undoes the camera's turn, uint8 [height, width, 3]; arguments as for `_find`."""
    exif_at, size = _find(data, start, read_header)
    exif = _cut_bytes(data, exif_at, tf.where(exif_at < 0, 0, tf.minimum(size, EXIF_BYTES)))
    orientation = _orientation(exif)

    def turn():
        # 5 to 8 are 1 to 4 of the transposed picture.
        turned = tf.transpose(image, tf.where(orientation > 4, [1, 0, 2], [0, 1, 2]))
        flips = [[False, False], [False, True], [True, True], [True, False]]
        flipped = tf.concat([tf.gather(flips, (orientation - 1) % 4), [False]], 0)
        return tf.raw_ops.Reverse(tensor=turned, dims=flipped)

    return tf.cond(orientation == 1, lambda: image, turn)


def _find(data, start, read_header):
    """int32 (at, size) of the block that `read_header` looks for, at -1 where there is none.

    Walks the headers from byte `start`. `read_header(data, at)` gives the byte where the next
    header stands (-1 after the last), then the (at, size) of its own block if that is it.
    """
    _, found_at, size = tf.while_loop(
        lambda at, found_at, _: (at >= 0) & (at < tf.strings.length(data)) & (found_at < 0),
        lambda at, *_: read_header(data, at),
        (start, -1, 0),
        maximum_iterations=MAX_HEADERS,
    )
    return found_at, size


def _jpeg_header(data, at):
    """T.81 annex B: FF, marker, two bytes of length that count themselves."""
    marker, size, *begin = tf.unstack(_numbers(data, at, 5, tf.uint16))
    # Tables (the Huffman ones number low), application data, comments: what may stand before a
    # frame header. FF FF is a fill byte.
    goes_on = (marker > 0xFFDA) | (marker == 0xFFC4)
    following = tf.where(marker == 0xFFFF, at + 1, at + 2 + size)
    is_exif = (marker == 0xFFE1) & tf.reduce_all(tf.stack(begin) == [0x4578, 0x6966, 0])
    return tf.where(goes_on, following, -1), tf.where(is_exif, at + 4, -1), size - 2


def _png_header(data, at, wanted=b"eXIf"):
    """PNG 5.3: length, type, data, CRC."""
    size, kind = tf.unstack(_numbers(data, at, 2, tf.int32))
    following = tf.where(kind == _word(b"IDAT"), -1, at + 12 + size)
    return following, tf.where(kind == _word(wanted), at + 8, -1), size


def _webp_header(data, at):
    """RFC 9649 2.3: FourCC, little-endian size, payload padded to even length."""
    kind, size = tf.unstack(_numbers(data, at, 2, tf.int32, little=True))
    return at + 8 + size + size % 2, tf.where(kind == _word(b"EXIF"[::-1]), at + 8, -1), size


def _orientation(exif):
    """int32 [], 1 to 8, of a TIFF 6.0 header and IFD0, with or without Exif 00 00 before them."""
    prefix = tf.where(tf.strings.substr(exif, 0, len(EXIF)) == EXIF, len(EXIF), 0)
    order = _numbers(exif, prefix, 1, tf.int32)[0]
    little = order == _word(b"II*\0")

    def number(at, count, kind):
        return tf.where(
            little,
            _numbers(exif, at, count, kind, little=True),
            _numbers(exif, at, count, kind),
        )

    ifd = prefix + number(prefix + 4, 1, tf.int32)[0]
    # An entry is tag, type, count, value: 2 + 2 + 4 + 4 bytes; read as six words.
    count = tf.clip_by_value(number(ifd, 1, tf.uint16)[0], 1, EXIF_BYTES // 12)
    entries = tf.reshape(number(ifd + 2, count * 6, tf.uint16), [-1, 6])
    wanted = (entries[:, 0] == ORIENTATION_TAG) & (entries[:, 1] == SHORT)
    value = tf.reduce_max(tf.where(wanted, entries[:, 4], 0))
    valid = (little | (order == _word(b"MM\0*"))) & (value >= 1) & (value <= 8)
    return tf.where(valid, value, 1)


# === Bytes ===


def _word(four_bytes):
    """Four bytes or fewer as the integer that `_numbers` reads for them."""
    return int.from_bytes(four_bytes, "big", signed=len(four_bytes) == 4)


def _cut_bytes(data, at, count):
    """string []: bytes at .. at + count, as far as there are any; substr fails past the end."""
    at = tf.clip_by_value(at, 0, tf.strings.length(data))
    return tf.strings.substr(data, at, tf.maximum(count, 0))


def _numbers(data, at, count, dtype, *, little=False):
    """int32 [count]: numbers of that type from byte `at` on, zeros past the end."""
    size = count * dtype.size
    numbers = tf.io.decode_raw(_cut_bytes(data, at, size), dtype, little, fixed_length=size)
    return tf.cast(numbers, tf.int32)


# === Resizing ===


def resize_image(image, *, size_px, how, planar=False):
    """A picture as the square that a model takes: antialiased bilinear, never rounded.

    Args:
        image: uint8 or float [height, width, 3], 0 to 255.
        size_px: int >= 1, the side of the result in pixels.
        how: "squash" gives up the aspect; "crop" takes the central square of the shorter side;
            "pad" fits the longer side and centres the picture on black, as Keras'
            `pad_to_aspect_ratio` does.
        planar: the same pixels as [width, 3, height], for work on one channel at a time.

    Returns:
        float32 [size_px, size_px, 3], 0 to 255; if planar [size_px, 3, size_px].

    Raises:
        ValueError: unknown `how`, or size_px < 1.
    """
    if how not in RESIZE_KINDS:
        raise ValueError(f"how: expected one of: {', '.join(RESIZE_KINDS)}. Received {how!r}.")
    if size_px < 1:
        raise ValueError(f"size_px: must be at least 1. Received {size_px}.")
    sides = tf.shape(image)[:2]
    inner = tf.constant([size_px, size_px])
    if how == "crop":
        # Before the resize: the same picture to within a pixel, and less of it to filter.
        square = tf.fill([2], tf.reduce_min(sides))
        image, sides = _cut(image, (sides - square) // 2, square), square
    elif how == "pad":
        inner = tf.cast(tf.round(sides * size_px / tf.reduce_max(sides)), tf.int32)
        inner = tf.maximum(inner, 1)
    image = _filtered(image, sides, inner)
    if how == "pad":
        before = (size_px - inner) // 2
        above, beside = tf.unstack(tf.stack([before, size_px - inner - before], axis=1))
        image = tf.pad(image, tf.stack([beside, [0, 0], above]))
    image = tf.ensure_shape(image, [size_px, 3, size_px])
    return image if planar else tf.transpose(image, [2, 0, 1])


def resize_crop(image, *, box, size_px, how, planar=False):
    """`resize_image` of one part of the picture; of all of it, bit for bit, for box (0, 0, 1, 1).

    Args:
        image: uint8 or float [height, width, 3], 0 to 255.
        box: float32 [4], (top, left, height, width) as fractions of the upright picture; rounded
            to whole pixels, at least one of them, and kept inside the picture.
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


def reduce_image(image, *, shorter_px):
    """A picture of bounded size, its aspect kept: antialiased bilinear.

    Args:
        image: uint8 [height, width, 3].
        shorter_px: int >= 1, what the shorter side may have at most.

    Returns:
        uint8 [height, width, 3]; the very picture where it is small enough.
    """
    sides = tf.shape(image)[:2]
    shorter = tf.reduce_min(sides)

    def smaller():
        inner = tf.cast(tf.round(sides * shorter_px / shorter), tf.int32)
        return tf.cast(tf.round(tf.transpose(_filtered(image, sides, inner), [2, 0, 1])), tf.uint8)

    return tf.cond(shorter > shorter_px, smaller, lambda: image)


def _cut(image, corner, extent):
    return tf.slice(image, [*tf.unstack(corner), 0], [*tf.unstack(extent), 3])


def _filtered(image, sides, inner):
    """What tf.image.resize gives with antialias: [height, width, 3] -> [width, 3, height].

    An axis at a time, as the first of a matrix: the kernel then works on whole rows of numbers
    and not on three channels, in less than half the time.
    """
    rows = _filtered_rows(tf.reshape(image, [sides[0], -1]), inner[0])
    columns = tf.reshape(tf.transpose(rows), [sides[1], -1])
    return tf.reshape(_filtered_rows(columns, inner[1]), [inner[1], 3, inner[0]])


def _filtered_rows(rows, count):
    """uint8 or float [rows, numbers] -> float32 [count, numbers]."""
    size = tf.shape(rows)[0]
    # As a picture of one row, which is faster, or of one column, which a large picture needs: the
    # kernel filters the height first, and as one row it would hold all of the input as floats.
    axes = tf.where(size > MAX_ROW_SHRINK * count, [0, 1], [1, 0])
    from_sides = tf.gather([size, 1], axes)
    to_sides = tf.gather([count, 1], axes)
    picture = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(rows, tf.concat([[1], from_sides, [-1]], 0)),
        size=to_sides,
        scale=tf.cast(to_sides, tf.float32) / tf.cast(from_sides, tf.float32),
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )
    return tf.reshape(picture, [count, -1])
