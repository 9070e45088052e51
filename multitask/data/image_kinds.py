"""Recognise image formats by content; without TensorFlow."""

import re

# Pillow's names of the formats that `decode` and `decode_arrays` read themselves.
DIRECT = ("JPEG", "PNG", "WEBP")
# Pillow's names of the formats that `conversion` converts first -> their names in messages.
CONVERTED = {
    "TIFF": "TIFF",
    "GIF": "GIF",
    "BMP": "BMP",
    "JPEG2000": "JPEG 2000",
    "AVIF": "AVIF",
    "HEIF": "HEIC",
    "WEBP": "animated WebP",
}
# Case is ignored. The JPEG suffixes are those that browsers, scanners and Windows use.
DIRECT_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".webp")
CONVERTED_SUFFIXES = (
    *(".tif", ".tiff", ".gif", ".bmp", ".dib"),
    *(".jp2", ".j2k", ".j2c", ".jpx", ".jpf", ".avif", ".heic", ".heif"),
)
SUFFIXES = DIRECT_SUFFIXES + CONVERTED_SUFFIXES

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of its second header
_JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")  # a file, and a bare codestream
_HEIC = re.compile(rb"hei[cxms]|hev[cxms]|mif1|msf1")


def direct_kind(data: bytes) -> str | None:
    """Return Pillow's name of a format that is decoded directly; None for any other content."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:16] == b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def converted_kind(data: bytes) -> str | None:
    """Return Pillow's name of a format that must be converted; None for any other content."""
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] in _TIFF:
        return "TIFF"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data.startswith(_JPEG_2000):
        return "JPEG2000"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "HEIF" if _HEIC.match(brands) else None
    animated = data[12:16] == b"VP8X" and len(data) > 20 and data[20] & 2
    return "WEBP" if animated and direct_kind(data) == "WEBP" else None
