"""Why a broken image cannot be read, and what helps."""

import struct

import numpy as np
import pytest
import tensorflow as tf
from decoded_images import SIZE_PX, refusal
from encoded_images import SAMPLES, encode, raw_png, source
from PIL import Image

from multitask.data import decode


def frame_of(data, marker, bits=8):
    """The JPEG with another frame header: a process that the decoder does not have."""
    data = bytearray(data)
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    return bytes(data)


JPEG, PNG, WEBP = (SAMPLES[name] for name in ("jpeg", "rgb png", "lossy webp"))
LARGE = encode(Image.effect_noise((200, 150), 90).convert("RGB"), "JPEG")
CUT_OFF = "the {} is cut off before its end; copy or download it again"
DAMAGED = "the {} is damaged; copy or download it again, or save it again in an image editor"
NOT_READ = ", which is not supported; save it as an ordinary (baseline or progressive, 8-bit) JPEG"
IDAT = PNG.index(b"IDAT")
BROKEN = {
    "half a jpeg": (LARGE[: len(LARGE) // 2], CUT_OFF.format("JPEG")),
    "a jpeg's header": (JPEG[:100], CUT_OFF.format("JPEG")),
    "three bytes of a jpeg": (JPEG[:3], CUT_OFF.format("JPEG")),
    "a jpeg without its last bytes": (LARGE[:-40], CUT_OFF.format("JPEG")),
    "half a cmyk jpeg": (SAMPLES["cmyk jpeg"][:-20], CUT_OFF.format("JPEG")),
    "half a progressive jpeg": (SAMPLES["progressive jpeg"][:-20], CUT_OFF.format("JPEG")),
    "zeros instead of a jpeg's end": (
        LARGE[: len(LARGE) // 2] + bytes(len(LARGE) // 2),
        CUT_OFF.format("JPEG"),
    ),
    "lossless jpeg": (frame_of(JPEG, 0xC3), "a lossless JPEG" + NOT_READ),
    "JPEG-LS": (frame_of(JPEG, 0xF7), "a lossless JPEG" + NOT_READ),
    "hierarchical jpeg": (frame_of(JPEG, 0xC5), "a hierarchical JPEG" + NOT_READ),
    "12-bit jpeg": (frame_of(JPEG, 0xC1, 12), "a JPEG of 12 bits per sample" + NOT_READ),
    "jpeg without width": (
        JPEG.replace(struct.pack(">H", source().width), b"\0\0", 1),
        DAMAGED.format("JPEG"),
    ),
    "half a png": (PNG[: len(PNG) // 2], CUT_OFF.format("PNG")),
    "a png's header": (PNG[:33], CUT_OFF.format("PNG")),
    "a changed byte in a png": (
        PNG[: IDAT + 9] + bytes([PNG[IDAT + 9] ^ 255]) + PNG[IDAT + 10 :],
        DAMAGED.format("PNG"),
    ),
    "png of no known depth": (
        raw_png(np.zeros((2, 2), ">u1"), 7, 2),
        DAMAGED.format("PNG"),
    ),
    "half a webp": (WEBP[: len(WEBP) // 2], CUT_OFF.format("WebP")),
    "a changed signature in a webp": (
        WEBP.replace(b"\x9d\x01\x2a", b"\0\0\0"),
        DAMAGED.format("WebP"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_cause_and_the_remedy_of_broken_data(name):
    data, reason = BROKEN[name]
    assert refusal(data) == reason


def decoded_in_graph(data):
    return decode.decode_image(data, target_px=SIZE_PX)


def test_without_the_bytes_the_format_is_named():
    """A failing graph is such a case: its error does not contain the data."""
    for kind, data in {"JPEG": LARGE, "PNG": PNG, "WebP": WEBP}.items():
        with pytest.raises(tf.errors.InvalidArgumentError) as raised:
            next(iter(tf.data.Dataset.from_tensors(data[: len(data) // 2]).map(decoded_in_graph)))
        assert decode.error_text(raised.value) == DAMAGED.format(kind)
