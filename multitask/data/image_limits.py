"""Limits for decoding an image, and the texts of its errors; without TensorFlow."""

MAX_PIXELS = 178_956_970  # Pillow's decompression-bomb limit; 3 bytes each just fit TF's 2**29
# Work and memory also grow with the sides and their ratio. 65,535 is the largest side that a JPEG
# header can hold, so this limit refuses no JPEG. The most elongated known works are about 140 times
# as long as wide (the Bayeux Tapestry, 68 m x 0.5 m; hand scrolls reach 40).
MAX_SIDE, MAX_RATIO = 65_535, 200
OVER_LIMIT = "over the limit of"  # in the error for an image that exceeds a bound
# Each scan of a JPEG costs as much as decoding the whole image, and a scan needs only 30 bytes: a
# file of 20 MB could take hours. Encoders write 6 to 20 scans.
MAX_SCANS = 100
SCAN = b"\xff\xda\0"  # the marker, and the high byte of its length, which is at most 14
JPEG_RATIOS = (8, 4, 2, 1)  # the DCT scalings that TensorFlow and Pillow both offer
WHITE = 255  # what transparent pixels become
RESIZE_KINDS = ("squash", "crop", "pad")
OTHER_KINDS = {  # RE2 patterns of how other kinds of files begin; the error names the kind
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
    "a Git LFS pointer; fetch the file itself": "version https://git-lfs",
    "filled with zero bytes, as after an incomplete copy": r"\x00{16}",
}
# TensorFlow's error texts for broken data, by format; each text has many different causes.
DECODER_TEXTS = {
    "JPEG": r"Invalid JPEG data|Failed to decode JPEG",
    "PNG": r"Invalid PNG|Failed to decode PNG",
    "WebP": r"Failed to decode WebP|Invalid WebP",
}
CUT_OFF = "the {} is cut off before its end; copy or download it again"
DAMAGED = "the {} is damaged; copy or download it again, or save it again in an image editor"
OTHER_JPEG = (
    "{}, which is not supported; save it as an ordinary (baseline or progressive, 8-bit) JPEG"
)
JPEG_PROCESSES = {  # by the frame header's marker, T.81 table B.1
    "a lossless JPEG": (0xC3, 0xC7, 0xCB, 0xCF, 0xF7),
    "a hierarchical JPEG": (0xC5, 0xC6, 0xCD, 0xCE),
}


def why_broken(kind: str, data: bytes) -> str:
    """Explain why data that begins like JPEG, PNG or WebP cannot be decoded, with the remedy."""
    if kind == "JPEG":
        return _why_broken_jpeg(data)
    if kind == "PNG":
        whole = b"IEND" in data
    else:
        whole = len(data) >= 12 and int.from_bytes(data[4:8], "little") + 8 <= len(data)
    return (DAMAGED if whole else CUT_OFF).format(kind)


def _why_broken_jpeg(data: bytes) -> str:
    at, size = 2, len(data)
    while at + 4 <= size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:  # the pixel data, in which FF D9 can only mark the end
            whole = data.find(b"\xff\xd9", at) >= 0
            return (DAMAGED if whole else CUT_OFF).format("JPEG")
        for name, markers in JPEG_PROCESSES.items():
            if marker in markers:
                return OTHER_JPEG.format(name)
        is_frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame and at + 4 < size and data[at + 4] != 8:
            return OTHER_JPEG.format(f"a JPEG of {data[at + 4]} bits per sample")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return (CUT_OFF if at + 4 > size else DAMAGED).format("JPEG")
