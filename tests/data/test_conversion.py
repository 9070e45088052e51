"""Other formats and color profiles, against their writers and against colorimetry in NumPy."""

import io
import re
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pillow_heif
import pytest
import tensorflow as tf
import tifffile
from color_profiles import ADOBE, D50, SRGB, gamma_tag, profile, rgb_profile, xyz_tag
from encoded_images import encode, exif, source
from logged import logged
from PIL import Image

from multitask.data import conversion, conversion_worker
from multitask.data.conversion import as_readable, conversions_logged, must_convert
from multitask.data.decode import decode_image
from multitask.data.decode_arrays import decode_array
from multitask.data.image_files import map_files, why_unreadable
from multitask.data.pillow_pixels import is_srgb
from multitask.errors import InputError

pillow_heif.register_heif_opener()

PIXELS = np.asarray(source())
SIDE_PX = min(PIXELS.shape[:2])


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def decoded(data, **options):
    """The pixels, after a check that both decoders agree."""
    pixels = decode_array(data, target_px=SIDE_PX, **options)
    readable = as_readable(data, target_px=SIDE_PX, **options)
    np.testing.assert_array_equal(decode_image(readable, target_px=SIDE_PX), pixels)
    return pixels


# === Formats ===

DEEP = np.random.default_rng(0).integers(0, 2**16, PIXELS.shape).astype(np.uint16)
HIGH = (DEEP >> 8).astype(np.uint8)
GREY = np.repeat(HIGH[..., :1], 3, axis=2)
OPAQUE = np.full(PIXELS.shape[:2], 2**16 - 1, np.uint16)
TIFFS = {
    "strips": (tiff(HIGH, photometric="rgb", rowsperstrip=7), HIGH),
    "tiles": (tiff(HIGH, photometric="rgb", tile=(16, 32)), HIGH),
    "planes": (tiff(np.moveaxis(HIGH, -1, 0), photometric="rgb", planarconfig="separate"), HIGH),
    "16 bits, compressed planes": (
        tiff(
            np.moveaxis(DEEP, -1, 0), photometric="rgb", planarconfig="separate", compression="zlib"
        ),
        HIGH,
    ),
    "big-endian": (tiff(HIGH, photometric="rgb", byteorder=">"), HIGH),
    "BigTIFF": (tiff(HIGH, photometric="rgb", bigtiff=True), HIGH),
    "deflate": (tiff(HIGH, photometric="rgb", compression="zlib", predictor=True), HIGH),
    "LZW": (encode(Image.fromarray(HIGH), "TIFF", compression="tiff_lzw"), HIGH),
    "16 bits": (tiff(DEEP, photometric="rgb"), HIGH),
    "16 bits, big-endian": (tiff(DEEP, photometric="rgb", byteorder=">"), HIGH),
    "16 bits, predictor": (tiff(DEEP, photometric="rgb", compression="zlib", predictor=True), HIGH),
    "16 bits, alpha": (
        tiff(np.dstack([DEEP, OPAQUE]), photometric="rgb", extrasamples=["unassalpha"]),
        HIGH,
    ),
    "grey of 16 bits": (tiff(DEEP[..., 0], photometric="minisblack"), GREY),
    "grey of 16 bits, big-endian": (
        tiff(DEEP[..., 0], photometric="minisblack", byteorder=">"),
        GREY,
    ),
    "white is 0": (tiff(255 - HIGH[..., 0], photometric="miniswhite"), GREY),
    "CMYK": (tiff(np.dstack([255 - HIGH, 0 * HIGH[..., 0]]), photometric="separated"), HIGH),
    "CMYK of 16 bits": (
        tiff(np.dstack([65535 - DEEP, 0 * DEEP[..., 0]]), photometric="separated"),
        HIGH,
    ),
    "pages": (tiff(np.stack([HIGH, 255 - HIGH]), photometric="rgb"), HIGH),
}


@pytest.mark.parametrize("name", TIFFS)
def test_tiff(name):
    data, expected = TIFFS[name]
    np.testing.assert_array_equal(decoded(data), expected)


FEW_COLORS = Image.fromarray(PIXELS).quantize(200)
OTHERS = {
    "BMP": (encode(source(), "BMP"), PIXELS, 0),
    "GIF": (encode(FEW_COLORS, "GIF"), np.asarray(FEW_COLORS.convert("RGB")), 0),
    "JPEG2000": (encode(source(), "JPEG2000"), PIXELS, 0),
    "AVIF": (encode(source(), "AVIF", quality=100, subsampling="4:4:4"), PIXELS, 6),
    "HEIF": (encode(source(), "HEIF", quality=100, chroma=444), PIXELS, 6),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats(name):
    data, expected, tolerance = OTHERS[name]
    assert must_convert(data) == name
    np.testing.assert_allclose(decoded(data).astype(int), expected, atol=tolerance)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    pixels = decode_array(data, target_px=9)
    np.testing.assert_array_equal(pixels, np.full((9, 9, 3), (255, 0, 0)))


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (8, 8), (200, 100, 0, 0))
    image.paste((200, 100, 0, 255), (0, 0, 4, 8))
    for kind in ("TIFF", "GIF", "AVIF"):
        pixels = decode_array(
            encode(image, kind, **{"quality": 100} if kind == "AVIF" else {}), target_px=8
        )
        np.testing.assert_allclose(pixels[:, 0].astype(int), np.full((8, 3), (200, 100, 0)), atol=3)
        assert (pixels[:, 7] == 255).all(), kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: np.rot90(PIXELS, 2).transpose(1, 0, 2),
        8: np.rot90(PIXELS),
    }[orientation]
    np.testing.assert_array_equal(
        decoded(encode(source(), "TIFF", tiffinfo={274: orientation})), turned
    )
    avif = encode(source(), "AVIF", quality=100, subsampling="4:4:4", exif=exif(orientation))
    np.testing.assert_allclose(decoded(avif).astype(int), turned, atol=6)
    # A profile does not change how the orientation is read.
    options = {"quality": 95, "exif": b"Exif\0\0" + exif(orientation)}
    jpeg = encode(source(), "JPEG", **options)
    profiled = encode(source(), "JPEG", icc_profile=rgb_profile(ADOBE, 1.0), **options)
    assert decoded(profiled).shape == decoded(jpeg).shape == turned.shape


def test_a_large_image_is_reduced_by_averaging():
    large = np.kron(PIXELS, np.ones((9, 9, 1), np.uint8))[:320, :480]
    data = tiff(large, photometric="rgb")
    for target_px, ratio in ((321, 1), (161, 1), (160, 2), (40, 8), (1, 8)):
        pixels = decode_array(data, target_px=target_px)
        assert pixels.shape == (320 // ratio, 480 // ratio, 3), target_px
    means = large.reshape(40, 8, 60, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(decode_array(data, target_px=40), means, atol=0.51)


# === Color profiles ===


def to_srgb(xyz):
    """XYZ of D50 -> sRGB, 0 to 255."""
    linear = np.clip(xyz @ np.linalg.inv(np.array(SRGB)), 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * curved


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_adobe_rgb(kind):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    icc = rgb_profile(ADOBE, 563 / 256)
    data = encode(source(), kind, icc_profile=icc, **options)
    plain = decoded(data, convert_profiles=False)
    expected = to_srgb((plain / 255) ** (563 / 256) @ np.array(ADOBE))
    # LittleCMS computes 8-bit matrix profiles in fixed point.
    np.testing.assert_allclose(decoded(data), expected, atol=2)
    assert np.abs(decoded(data) - plain.astype(int)).max() > 20
    if kind != "JPEG":
        np.testing.assert_array_equal(plain, PIXELS)


def test_grey_with_a_gamma_and_with_alpha():
    icc = profile(b"GRAY", b"XYZ ", {b"kTRC": gamma_tag(1.75)})
    grey = source().convert("L")
    expected = to_srgb((np.asarray(grey)[..., None] / 255) ** 1.75 * D50)
    np.testing.assert_allclose(decoded(encode(grey, "PNG", icc_profile=icc)), expected, atol=2)
    with_alpha = grey.convert("LA")
    with_alpha.putalpha(Image.new("L", grey.size, 0))
    assert (decoded(encode(with_alpha, "PNG", icc_profile=icc)) == 255).all()


def test_cmyk_by_its_table():
    """Each corner of the CMYK cube has a color of its own in the profile's table."""
    rng = np.random.default_rng(0)
    lab = np.stack([rng.uniform(20, 80, 16), *rng.uniform(-25, 25, (2, 16))], axis=1)
    lab[0], lab[-1] = (100, 0, 0), (0, 0, 0)  # no ink is white, all of it black: nothing to scale
    coded = np.round(lab * (255 / 100, 1, 1) + (0, 128, 128)).astype(np.uint8)
    lab = (coded - np.array([0.0, 128, 128])) * (100 / 255, 1, 1)
    identity = bytes(range(256))
    table = struct.pack(">BBBB", 4, 3, 2, 0) + struct.pack(
        ">9i", *(65536 * np.eye(3, dtype=int)).ravel()
    )
    table = b"mft1\0\0\0\0" + table + 4 * identity + coded.tobytes() + 3 * identity
    icc = profile(b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table})
    inks = np.array(
        [
            [255 * (i >> 3 & 1), 255 * (i >> 2 & 1), 255 * (i >> 1 & 1), 255 * (i & 1)]
            for i in range(16)
        ],
        np.uint8,
    )
    image = Image.fromarray(np.kron(inks.reshape(4, 4, 4), np.ones((8, 8, 1), np.uint8)), "CMYK")
    lightness = (lab[:, 0] + 16) / 116
    f = np.stack([lightness + lab[:, 1] / 500, lightness, lightness - lab[:, 2] / 200], axis=1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * D50
    for kind in ("TIFF", "JPEG"):
        data = encode(image, kind, icc_profile=icc, **{"quality": 100} if kind == "JPEG" else {})
        pixels = decode_array(data, target_px=32)[4::8, 4::8].reshape(16, 3)
        np.testing.assert_allclose(pixels, to_srgb(xyz), atol=3 if kind == "TIFF" else 6)


def test_lab_tiff():
    lab = Image.new(
        "LAB", (8, 8), (136, 160, 90)
    )  # L* 53.3, a* 32, b* -38 + 256 as Pillow codes it
    data = encode(lab, "TIFF")
    assert must_convert(data) == "TIFF"
    assert decode_array(data, target_px=8).shape == (8, 8, 3)


def test_what_is_srgb_is_not_touched():
    """The same bytes object is returned, so training and prediction read the original file."""
    curve = np.arange(1024) / 1023
    linear = np.where(curve <= 0.04045, curve / 12.92, ((curve + 0.055) / 1.055) ** 2.4)
    tag = (
        b"curv\0\0\0\0" + struct.pack(">I", 1024) + np.round(65535 * linear).astype(">u2").tobytes()
    )
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    tags = dict(zip(names, map(xyz_tag, SRGB), strict=True))
    same = profile(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), tag))
    assert is_srgb(same)
    assert not is_srgb(rgb_profile(SRGB, 1.8))
    for kind in ("JPEG", "PNG", "WEBP"):
        for options in ({}, {"icc_profile": same}, {"icc_profile": b"not a profile"}):
            data = encode(source(), kind, **options)
            assert as_readable(data) is data
        data = encode(source(), kind, icc_profile=rgb_profile(ADOBE, 2.2))
        assert as_readable(data, convert_profiles=False) is data
        assert as_readable(data) is not data
    assert as_readable(b"") == b""
    assert as_readable(b"a text") == b"a text"


def test_a_profile_of_another_space_is_ignored():
    """Seen in scans: a grey profile in an RGB file."""
    grey = profile(b"GRAY", b"XYZ ", {b"kTRC": gamma_tag(1.0)})
    np.testing.assert_array_equal(decoded(encode(source(), "TIFF", icc_profile=grey)), PIXELS)


def test_an_image_in_memory_is_converted_by_its_profile():
    data = encode(source(), "PNG", icc_profile=rgb_profile(ADOBE, 2.2))
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decode_array(image, target_px=1), decoded(data))
    plain = decode_array(image, target_px=1, convert_profiles=False)
    np.testing.assert_array_equal(plain, PIXELS)


# === What cannot be read ===


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(DEEP[..., 0].astype(np.float32)), "its pixels are floating-point numbers"),
        (
            tiff(np.moveaxis(DEEP, -1, 0), photometric="rgb", planarconfig="separate"),
            "an uncompressed TIFF of 16 bits with each channel stored separately",
        ),
        (tiff(HIGH, photometric="rgb")[:3000], "the TIFF is cut off before its end"),
        (b"GIF89a", "the GIF is damaged"),
        (encode(source(), "JPEG2000")[:300], "the JPEG 2000 cannot be decoded: "),
        (encode(source(1, 201), "BMP"), "image of 1 x 201 pixels, over the limit of 200 : 1"),
    ],
    ids=range(6),
)
def test_why_it_cannot_be_read(data, reason, tmp_path):
    with pytest.raises(InputError, match=f"^{re.escape(reason)}") as raised:
        as_readable(data)
    assert "\n" not in str(raised.value)
    (tmp_path / "a.jpg").write_bytes(data)  # the content decides, not the name
    assert why_unreadable(tmp_path / "a.jpg") == str(raised.value)


def test_a_limit_of_pixels():
    data = encode(source(60, 40), "TIFF")
    assert as_readable(data, max_pixels=2400) != data
    with pytest.raises(InputError, match=r"^image of 60 x 40 pixels, over the limit of 2399$"):
        as_readable(data, max_pixels=2399)


@pytest.mark.parametrize(
    "program", ["import os; os.abort()", "import time; time.sleep(60)", "print('no answer')"]
)
def test_a_decoder_that_dies_or_hangs_costs_one_image(monkeypatch, program):
    pool = conversion._Pool()
    monkeypatch.setattr(conversion, "_POOL", pool)
    monkeypatch.setattr(conversion, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(conversion, "_COMMAND", (sys.executable, "-c", program))
    with pytest.raises(InputError, match=r"^decoding this TIFF was stopped: it crashed, or needed"):
        as_readable(tiff(HIGH, photometric="rgb"))
    monkeypatch.undo()
    np.testing.assert_array_equal(decoded(tiff(HIGH, photometric="rgb")), HIGH)


def test_a_limit_of_memory(monkeypatch):
    request = {"kind": "TIFF", "target_px": 1, "max_pixels": 10**9, "convert_profiles": True}

    def open_image(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(conversion_worker.Image, "open", open_image)
    facts, _ = conversion_worker.convert(request, tiff(HIGH))
    assert facts == {"error": "needs more than 4 GiB of memory"}


def test_heic_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    request = {"kind": "HEIF", "target_px": 1, "max_pixels": 10**9, "convert_profiles": True}
    facts, _ = conversion_worker.convert(request, OTHERS["HEIF"][0])
    assert facts["error"].startswith("HEIC needs pillow-heif: pip install '.[formats]'")


# === Many images ===


def test_many_threads_at_the_same_time():
    images = [np.full((8, 8, 3), number, np.uint8) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        results = list(
            pool.map(
                lambda image: decode_array(tiff(image, photometric="rgb"), target_px=8), images
            )
        )
    np.testing.assert_array_equal(results, images)


def test_files_in_order_and_what_is_logged(tmp_path):
    adobe = rgb_profile(ADOBE, 2.2)
    contents = {
        "0.tif": tiff(HIGH, photometric="rgb"),
        "1.jpg": encode(source(), "JPEG"),
        "2.png": encode(source(), "PNG", icc_profile=adobe),
        "3.tif": tiff(np.stack([HIGH, HIGH]), photometric="rgb"),
        "4.tif": b"II*\0",
        "5.bmp": encode(source(), "BMP"),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    names = [str(tmp_path / name) for name in contents]

    def decode(data):
        return decode_image(data, target_px=SIDE_PX)

    as_readable(contents["0.tif"], name="of an earlier evaluation")
    with logged() as lines, conversions_logged():
        result = dict(map_files(names, decode, target_px=SIDE_PX))
    assert list(result) == [0, 1, 2, 3, 5]
    for index in result:
        np.testing.assert_array_equal(result[index], decode_array(names[index], target_px=SIDE_PX))
    assert lines == [
        "  read through Pillow: 2 TIFF, 1 BMP",
        f"  1 image with several pages or frames; the first one is used ({names[3]})",
        f"  1 image with a color profile, converted to sRGB ({names[2]})",
    ]
    plain = dict(map_files(names, tf.identity, target_px=1, convert_profiles=False))
    assert plain[2] == contents["2.png"]
