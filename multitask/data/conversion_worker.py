"""The process that `conversion` sends images to: Pillow's decoders, apart from everything else.

A request is one line of JSON and the bytes of a file; the answer is one line of JSON and the bytes
of a PNG. The process ends when its input does.
"""

import contextlib
import io
import json
import sys
import warnings
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from multitask.data.image_kinds import CONVERTED, direct_kind
from multitask.data.image_limits import CUT_OFF, MAX_PIXELS, MAX_SCANS, OVER_LIMIT, SCAN
from multitask.data.pillow_pixels import (
    check_sides,
    draft,
    is_srgb,
    orientation_of,
    srgb_pixels,
    turn_upright,
)
from multitask.errors import InputError, install

# The largest image has 0.7 GB as CMYK; only one copy with 3 bytes per pixel exists at a time.
MAX_MEMORY_BYTES = 4 * 2**30
PAGES, PROFILE = "pages", "profile"
UNKNOWN = (
    "the {} is damaged, or of a kind that Pillow does not read; save it again in an image editor"
)
BITS, PLANES = 258, 284  # TIFF tags


def convert(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Answer a request.

    Args:
        request: `kind` (Pillow's name of the format; None: `data` is a color profile), `target_px`,
            `max_pixels` and `convert_profiles`.
        data: content of the image file.

    Returns:
        `error`, or `notes` (of PAGES, PROFILE) and an upright RGB PNG. For a color profile,
        `srgb`: whether it changes no color.
    """
    kind = request["kind"]
    if kind is None:
        try:
            return {"srgb": is_srgb(data)}, b""
        except Exception:  # of a malformed profile, which is then not applied
            return {"srgb": True}, b""
    try:
        return _convert_image(request, kind, data)
    except InputError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": f"needs more than {MAX_MEMORY_BYTES // 2**30} GiB of memory"}, b""
    except Image.DecompressionBombError:
        return {"error": f"image of over {MAX_PIXELS} pixels, {OVER_LIMIT} {MAX_PIXELS}"}, b""
    except UnidentifiedImageError:
        return {"error": UNKNOWN.format(CONVERTED.get(kind, kind))}, b""
    except Exception as error:  # a decoder raises whatever its library does
        reason = " ".join(str(error).split()) or type(error).__name__
        name = CONVERTED.get(kind, kind)
        if "truncated" in reason.lower():
            return {"error": CUT_OFF.format(name)}, b""
        return {"error": f"the {name} cannot be decoded: {reason[:200]}"}, b""


def _convert_image(request: dict[str, Any], kind: str, data: bytes) -> tuple[dict[str, Any], bytes]:
    if kind == "HEIF":
        _register_heif()
    elif kind == "AVIF" and kind not in Image.registered_extensions().values():
        raise InputError("this Pillow was built without AVIF; install a newer one")
    notes, target_px = [], request["target_px"]
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        check_sides(image.size, request["max_pixels"])
        if kind == "JPEG":
            if data.count(SCAN) > MAX_SCANS:
                raise InputError(f"JPEG of more than {MAX_SCANS} scans")
            draft(image, target_px)
        if kind == "TIFF":
            _refuse_planes(image)
        if getattr(image, "n_frames", 1) > 1 and kind != "PNG":
            notes.append(PAGES)
        image.load()
        orientation = 1
        upright = image
        if direct_kind(data):
            orientation = orientation_of(image.info.get("exif", b""))
        else:
            upright = ImageOps.exif_transpose(image)
        pixels, converted = srgb_pixels(
            upright,
            target_px=None if kind == "JPEG" else target_px,
            convert_profiles=request["convert_profiles"],
        )
    if converted:
        notes.append(PROFILE)
    answer = io.BytesIO()
    Image.fromarray(turn_upright(pixels, orientation)).save(answer, "PNG", compress_level=0)
    return {"notes": notes}, answer.getvalue()


def _refuse_planes(image: Any) -> None:
    """Refuse a TIFF that Pillow would decode to wrong pixels without an error."""
    tags = image.tag_v2
    deep = tags.get(PLANES) == 2 and max(tags.get(BITS, (8,))) > 8 and len(image.getbands()) > 1
    if deep and image.tile[0][0] == "raw":  # libtiff reads compressed ones correctly
        raise InputError(
            "an uncompressed TIFF of 16 bits with each channel stored separately; save it with the "
            "channels interleaved, with 8 bits, or compressed"
        )


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise InputError(f"HEIC needs pillow-heif: {install('formats')}") from None
    register_heif_opener()


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    _limit_memory()
    warnings.simplefilter("ignore")
    while line := requests.readline():
        request = json.loads(line)
        facts, content = convert(request, requests.read(request["size"]))
        answers.write(json.dumps(facts | {"size": len(content)}).encode() + b"\n" + content)
        answers.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
