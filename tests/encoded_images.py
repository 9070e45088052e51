"""Encoded images of every kind that is read, and of some that are refused."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from multitask.data import image_limits

ORIENTATION = 0x0112


def source(width=60, height=40, mode="RGB", seed=0):
    """A smooth image without symmetry, so that every turn of it differs."""
    seeds = np.random.default_rng(seed).integers(0, 256, (4, 6, 3)).astype("uint8")
    return Image.fromarray(seeds).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(width=60, height=40):
    image = source(width, height).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((width, height)))
    return image


def exif(orientation, order="<", kind=3):
    """A TIFF block with two entries, the second of them the orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *([orientation, 0][: 5 - kind]))
    entries = struct.pack(order + "HHIHH", 0x0100, 3, 1, 8, 0)
    entries += struct.pack(order + "HHI", ORIENTATION, kind, 1) + value
    ifd = struct.pack(order + "H", 2) + entries + bytes(4)
    return mark + struct.pack(order + "I", 8) + ifd


def segment(marker, payload):
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def chunk(kind, payload):
    return (
        struct.pack(">I", len(payload))
        + kind
        + payload
        + struct.pack(">I", zlib.crc32(kind + payload))
    )


PNG_START = b"\x89PNG\r\n\x1a\n"


def raw_png(rows, depth, color_type, *extra):
    """A PNG that Pillow does not write: rows is a big-endian array [height, width, ...]."""
    height, width = rows.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return PNG_START + b"".join(chunks)


SAMPLES = {
    "jpeg": encode(source(), "JPEG"),
    "progressive jpeg": encode(source(), "JPEG", progressive=True),
    "grey jpeg": encode(source(mode="L"), "JPEG"),
    "cmyk jpeg": encode(source(mode="CMYK"), "JPEG"),  # Pillow writes Adobe's inverted kind
    "rgb png": encode(source(), "PNG"),
    "grey png": encode(source(mode="L"), "PNG"),
    "black and white png": encode(source(mode="1"), "PNG"),
    "palette png": encode(source(mode="P"), "PNG"),
    "2-bit palette png": encode(source().quantize(4), "PNG", bits=2),
    "2-bit palette png with tRNS": encode(
        source().quantize(4), "PNG", bits=2, transparency=b"\0\x50\xff"
    ),
    "1-bit png with tRNS": encode(source(mode="1"), "PNG", transparency=0),
    "palette png with tRNS": encode(source(mode="P"), "PNG", transparency=bytes(range(0, 250, 5))),
    "grey alpha png": encode(with_alpha().convert("LA"), "PNG"),
    "alpha png": encode(with_alpha(), "PNG"),
    "16-bit rgb png": raw_png(
        np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2"), 16, 2
    ),
    "rgb png with tRNS": raw_png(
        np.arange(18, dtype="uint8").reshape(2, 3, 3),
        8,
        2,
        chunk(b"tRNS", struct.pack(">HHH", 3, 4, 5)),
    ),
    "lossy webp": encode(source(), "WEBP"),
    "lossless webp": encode(source(), "WEBP", lossless=True),
    "lossy alpha webp": encode(with_alpha(), "WEBP"),
    "lossless alpha webp": encode(with_alpha(), "WEBP", lossless=True),
    "1x1 jpeg": encode(source(1, 1), "JPEG"),
    "1x1 png": encode(source(1, 1), "PNG"),
    "1x1 webp": encode(source(1, 1), "WEBP"),
    "jpeg with bytes behind it": encode(source(), "JPEG") + bytes(100),
}


EXIF_PLACES = {
    "jpeg, first": lambda tiff: jpeg_with(segment(0xE1, b"Exif\0\0" + tiff), after_jfif=False),
    "jpeg, after JFIF": lambda tiff: jpeg_with(segment(0xE1, b"Exif\0\0" + tiff)),
    "jpeg, after XMP, comment and fill bytes": lambda tiff: jpeg_with(
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<Exif/>")
        + segment(0xFE, b"Exif is spoken of")
        + b"\xff\xff"
        + segment(0xE1, b"Exif\0\0" + tiff)
    ),
    "png": lambda tiff: encode(source(), "PNG", exif=tiff),
    "webp": lambda tiff: encode(source(), "WEBP", exif=tiff),
    "webp, with the prefix of a JPEG": lambda tiff: encode(
        source(), "WEBP", exif=b"Exif\0\0" + tiff
    ),
}


def jpeg_with(segments, after_jfif=True):
    data = SAMPLES["jpeg"]
    at = 20 if after_jfif else 2
    return data[:at] + segments + data[at:]


TIFF = exif(6)
MALFORMED = {
    "orientation 0": exif(0),
    "orientation 9": exif(9),
    "a LONG": exif(6, kind=4),
    "nothing": b"",
    "cut in the header": TIFF[:6],
    "cut in the entries": TIFF[:20],
    "other byte order mark": b"XX" + TIFF[2:],
    "IFD beyond the end": TIFF[:4] + b"\xff\xff\0\0" + TIFF[8:],
    "IFD at a negative place": TIFF[:4] + b"\xff\xff\xff\xff" + TIFF[8:],
    "more entries than bytes": TIFF[:8] + b"\xff\xff" + TIFF[10:22],
}


def jpeg_of_scans(count):
    """A progressive JPEG whose last scan is repeated."""
    data = encode(source(64, 64), "JPEG", progressive=True, quality=100)
    last = data[data.rindex(image_limits.SCAN) : -2]
    return data[:-2] + last * (count - data.count(image_limits.SCAN)) + data[-2:]
