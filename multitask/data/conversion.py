"""Make other formats and colors readable: every image becomes a JPEG, PNG or WebP in sRGB.

`decode` and `decode_arrays` read JPEG, PNG and WebP, and treat their values as sRGB. This module
converts all remaining images to PNG: other formats (TIFF, GIF, BMP, JPEG 2000, AVIF, HEIC, animated
WebP), and images with a color profile other than sRGB (Adobe RGB, Display P3, CMYK, …). Pillow
converts them in worker processes: a decoder that crashes, hangs or needs too much memory costs one
image, not the run.
"""

import atexit
import contextlib
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

import multitask
from multitask.data.conversion_worker import MAX_MEMORY_BYTES, PAGES, PROFILE
from multitask.data.image_kinds import CONVERTED, converted_kind, direct_kind
from multitask.data.image_limits import MAX_PIXELS
from multitask.errors import InputError, RunError

logger = logging.getLogger(__name__)
MAX_SECONDS = 60.0  # for one image; the largest image takes 10
_PROFILE_MARKS = {"JPEG": b"ICC_PROFILE\0", "PNG": b"iCCP", "WEBP": b"ICCP"}
_COMMAND = (sys.executable, "-P", "-m", "multitask.data.conversion_worker")


class _Worker:
    """One worker process; used by one thread at a time."""

    def __init__(self) -> None:
        self.has_answered = False
        root = str(Path(multitask.__file__).parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # On a machine with many cores, numpy's BLAS threads would reach the memory limit.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
        )

    def ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes] | None:
        """Return the answer of `conversion_worker.convert`; None if the process ended."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        timer = threading.Timer(MAX_SECONDS, self._process.kill)
        timer.start()
        try:
            requests.write(json.dumps(request | {"size": len(data)}).encode() + b"\n")
            requests.write(data)
            requests.flush()
            facts = json.loads(answers.readline())
            content = answers.read(facts["size"])
        except (OSError, ValueError):
            return None
        finally:
            timer.cancel()
        return (facts, content) if len(content) == facts["size"] else None

    def close(self) -> int:
        """End the process; return its exit status."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()
        return self._process.wait()


class _Pool:
    """Workers for reuse: as many as were ever needed at the same time."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes] | None:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker()
        answer = worker.ask(request, data)
        if answer is not None:
            worker.has_answered = True
            self._idle.append(worker)
            return answer
        if worker.close() == 1 and not worker.has_answered:  # Python could not start it
            raise RunError(f"`{' '.join(_COMMAND)}` cannot be started")
        return None

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _forget(self) -> None:
        self._idle = []  # these belong to the parent process


_POOL = _Pool()
_SRGB: dict[bytes, bool] = {}  # SHA-256 of a color profile -> whether it changes no color


def must_convert(data: bytes, *, convert_profiles: bool = True) -> str | None:
    """Pillow's name of an image's format if it must be converted, otherwise None."""
    kind = converted_kind(data)
    if kind is None and convert_profiles and _has_other_colors(data):
        kind = direct_kind(data)
    return kind


def as_readable(
    data: bytes,
    *,
    target_px: int = 1,
    convert_profiles: bool = True,
    max_pixels: int = MAX_PIXELS,
    name: str = "",
) -> bytes:
    """Convert an image to a PNG if `decode` would not read it, or read wrong colors.

    Args:
        data: content of any file.
        target_px: a large image is reduced to 1/2, 1/4 or 1/8 of its sides if the shorter one
            stays >= this.
        convert_profiles: whether to apply embedded color profiles.
        max_pixels: the limit for the original.
        name: the image's name, for `conversions_logged`; "": the image is not counted.

    Returns:
        The PNG of a converted image; otherwise the same data, whatever it is.

    Raises:
        InputError: a format that must be converted cannot be decoded, or it exceeds a limit.
    """
    kind = must_convert(data, convert_profiles=convert_profiles)
    if kind is None:
        return data
    request = {
        "kind": kind,
        "target_px": target_px,
        "max_pixels": max_pixels,
        "convert_profiles": convert_profiles,
    }
    answer = _POOL.ask(request, data)
    if answer is None:
        raise InputError(
            f"decoding this {CONVERTED.get(kind, kind)} was stopped: it crashed, or needed more "
            f"than {MAX_SECONDS:.0f} s or {MAX_MEMORY_BYTES // 2**30} GiB"
        )
    facts, content = answer
    if "error" in facts:
        raise InputError(facts["error"])
    if name:
        _count(name, kind if converted_kind(data) else None, facts["notes"])
    return content


def _has_other_colors(data: bytes) -> bool:
    """Whether an image that is decoded directly has a profile that is not sRGB."""
    kind = direct_kind(data)
    if kind is None or _PROFILE_MARKS[kind] not in data:
        return False
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            profile = image.info.get("icc_profile")
    except Exception:  # the decoder reports what is wrong with the image
        return False
    if not profile:
        return False
    digest = hashlib.sha256(profile).digest()
    if digest not in _SRGB:
        answer = _POOL.ask({"kind": None}, profile)
        _SRGB[digest] = answer is None or answer[0]["srgb"]
    return not _SRGB[digest]


# === Log ===

_NAMES: dict[str, set[str]] = {}  # a format, PAGES or PROFILE -> names of images
_LOCK = threading.Lock()


def _count(name: str, kind: str | None, notes: list[str]) -> None:
    with _LOCK:
        for key in [*filter(None, [kind]), *notes]:
            _NAMES.setdefault(key, set()).add(name)


@contextlib.contextmanager
def conversions_logged() -> Iterator[None]:
    """At the end of the `with` block, log which images were converted in it."""
    with _LOCK:
        _NAMES.clear()  # conversions before the block, such as those of an evaluation
    yield
    with _LOCK:
        names = {key: sorted(images) for key, images in _NAMES.items()}
        _NAMES.clear()
    kinds = [f"{len(names[kind]):,} {text}" for kind, text in CONVERTED.items() if kind in names]
    if kinds:
        logger.info(f"  read through Pillow: {', '.join(kinds)}")
    for key, text in (
        (PAGES, "with several pages or frames; the first one is used"),
        (PROFILE, "with a color profile, converted to sRGB"),
    ):
        if key in names:
            count, more = len(names[key]), ", …" * (len(names[key]) > 1)
            images = "image" if count == 1 else "images"
            logger.info(f"  {count:,} {images} {text} ({names[key][0]}{more})")
