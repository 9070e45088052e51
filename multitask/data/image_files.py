"""Read the image files of a table, and explain why some are missing or unreadable."""

import collections
import errno
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from multitask.console import progress_bar
from multitask.data.conversion import as_readable
from multitask.data.decode import decode_image, error_text
from multitask.data.matching import why_missing
from multitask.data.table import (
    MISSING_FILE,
    NEAR_DUPLICATE,
    NO_LABEL,
    NOT_SAMPLED,
    UNKNOWN_LABEL,
)
from multitask.prefetch import parallel_map
from multitask.reading import MAX_IMAGE_BYTES, open_regular, read_regular
from multitask.spec import InputError

PREFETCH = 32  # images
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def read_image(path: str | bytes | Path, *, target_px: int, convert_profiles: bool = True) -> bytes:
    """Read an image file as a JPEG, PNG or WebP; the arguments are those of `as_readable`.

    Raises:
        OSError: as `read_regular`.
        InputError: as `as_readable`.
    """
    return as_readable(
        read_regular(path, MAX_IMAGE_BYTES),
        target_px=target_px,
        convert_profiles=convert_profiles,
        name=os.fsdecode(path),
    )


def why_unreadable(path: str | Path) -> str | None:
    """The reason why an image cannot be read, as a phrase; None if it can be read."""
    try:
        data = read_image(path, target_px=1, convert_profiles=False)
        decode_image(tf.constant(data), target_px=1)
    except InputError as error:
        return str(error)
    except OSError as error:
        return MISSING_FILE if error.errno in NO_FILE else f"cannot be read: {error.strerror}"
    except tf.errors.OpError as error:
        return error_text(error)
    return None


# === Reading many files ===


def read_encoded(name: tf.Tensor, *, target_px: int, convert_profiles: bool = True) -> tf.Tensor:
    """Read a file as `read_image` in a graph: name, string [] -> bytes, string [].

    The bytes are empty if it cannot be read; `why_unreadable` returns the reason. tf.io.read_file
    would wait for a named pipe forever and never finish reading a device.
    """

    def content(name: bytes | np.ndarray) -> bytes:  # an array in eager mode
        path = np.asarray(name, object).item()
        try:
            return read_image(path, target_px=target_px, convert_profiles=convert_profiles)
        except (OSError, InputError):
            return b""

    return tf.ensure_shape(tf.numpy_function(content, [name], tf.string), [])


def map_files(
    names: Sequence[str | bytes],
    transform: Callable[[tf.Tensor], tf.Tensor],
    *,
    target_px: int,
    convert_profiles: bool = True,
) -> Iterator[tuple[int, tf.Tensor]]:
    """Read and transform files, in order and on all cores.

    Threads call the transform eagerly. A tf.data pipeline would instantiate its graph for each
    call of `map_files`, which takes longer than reading a hundred small images.

    Args:
        names: file names.
        transform: bytes of a JPEG, PNG or WebP, string [] -> a tensor. `bytes_function` makes one
            that is traced once. PREFETCH of its tensors wait in memory.
        target_px: as for `as_readable`.
        convert_profiles: as for `as_readable`.

    Yields:
        Index and tensor. A file that cannot be read, or whose transform fails, is skipped with its
        index; `why_unreadable` returns the reason.
    """

    def load(name: str | bytes) -> tf.Tensor | None:
        try:
            data = read_image(name, target_px=target_px, convert_profiles=convert_profiles)
            with tf.device("CPU:0"):
                return transform(tf.constant(data))
        except (OSError, InputError, tf.errors.OpError):
            return None

    for index, value in enumerate(parallel_map(load, names, prefetch=PREFETCH)):
        if value is not None:
            yield index, value


def bytes_function(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Trace a function of encoded bytes, string [], to one graph; keep it for all calls."""
    signature = [tf.TensorSpec([], tf.string)]
    return tf.function(function, signature, autograph=False).get_concrete_function()


def read_reduced(path: Path, *, target_px: int) -> np.ndarray | None:
    """Read an image file for display: upright, and reduced if its format allows.

    Args:
        path: the file.
        target_px: minimum of the shorter side, unless the original is smaller.

    Returns:
        uint8 [height, width, 3]; None if it cannot be read.
    """
    try:
        return decode_image(read_image(path, target_px=target_px), target_px=target_px).numpy()
    except (OSError, InputError, tf.errors.OpError):
        return None


# === The files of a table ===


def find_unusable(names: Sequence[str], *, progress: bool = True) -> dict[int, str]:
    """Decode every image once, at the smallest size that its format allows.

    Args:
        names: file names.
        progress: show a bar on a terminal.

    Returns:
        index -> reason, for the images that are missing or unreadable.
    """
    present = np.flatnonzero([os.path.isfile(name) for name in names])
    good = np.zeros(len(names), bool)
    images = map_files(
        [names[i] for i in present.tolist()],
        # Its images wait in memory, and some formats are decoded in full size.
        lambda data: tf.size(decode_image(data, target_px=1)),
        target_px=1,
        convert_profiles=False,
    )
    with progress_bar("checking images", len(present), hidden=not progress) as bar:
        for place, _ in images:
            good[present[place]] = True
            bar.update(place + 1 - bar.n)
    return {
        i: why_unreadable(names[i]) or "could not be read the first time"
        for i in np.flatnonzero(~good).tolist()
    }


def image_sizes(paths: Sequence[str] | np.ndarray, image_dir: Path) -> np.ndarray:
    """int64 [n]: the sizes of the files in bytes; -1 where there is no file."""

    def size(path: str) -> int:
        try:
            return os.stat(os.path.join(image_dir, path)).st_size
        except OSError:
            return -1

    return np.asarray([size(path) for path in paths], np.int64)


def read_frame(path: Path, columns: Iterable[str], remedy: str, **options: Any) -> pd.DataFrame:
    """Read a CSV that this package wrote.

    Args:
        path: the file.
        columns: the columns that it must have.
        remedy: how to make the file again, for the message.
        options: options of `pandas.read_csv`.

    Raises:
        InputError: the file is not such a CSV.
    """
    try:
        with open_regular(path) as file:
            frame = pd.read_csv(file, **options)
    except (OSError, ValueError) as error:  # pandas' parser raises ValueError too
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: cannot be read back ({reason}); {remedy}") from None
    missing = [name for name in columns if name not in frame]
    if missing:
        raise InputError(f"{path}: cannot be read back (no column {missing[0]}); {remedy}")
    return frame


OTHER_REASONS = {
    UNKNOWN_LABEL: "of an unknown class",
    NO_LABEL: "without a label",
    NOT_SAMPLED: "not sampled for the subset",
    NEAR_DUPLICATE: "near-duplicates",
}


def unusable(excluded: pd.DataFrame) -> pd.DataFrame:
    """The excluded images whose file is missing or unreadable."""
    return excluded[~excluded["reason"].isin(OTHER_REASONS)]


def refuse_missing(
    unusable: pd.DataFrame,
    total: int,
    image_dir: Path,
    *,
    max_missing: float,
    remedy: str,
    allow: str = "",
) -> None:
    """Raise InputError if more than the allowed share of the images cannot be used.

    Args:
        unusable: path and reason of these images.
        total: the number of all images.
        image_dir: the folder that the paths start at.
        max_missing: the allowed share.
        remedy: what the user can do.
        allow: how to allow a larger share, with `{share}` for the smallest sufficient one. The
            message omits it if no image can be used.
    """
    # Compare by division: in floats, .29 * 100 is less than 29.
    if not len(unusable) or len(unusable) / total <= max_missing:
        return
    first = ", ".join(
        f"{path} ({why_missing(path, image_dir, reason) if reason == MISSING_FILE else reason})"
        for path, reason in unusable.head(5).itertuples(index=False)
    )
    share = len(unusable) / total
    enough = math.ceil(round(1000 * share, 6)) / 1000
    if allow and enough < 1:
        remedy = f"{remedy}, or {allow.format(share=f'{enough:g}')}"
    raise InputError(
        f"{image_dir}: {len(unusable)} of {total} images ({share:.3%}) are missing or "
        f"unreadable, more than max_missing = {max_missing:g} allows; first: {first}. "
        f"{remedy.rstrip('.')}."
    )


def count_reasons(reasons: Iterable[str]) -> str:
    """`68,946 missing, 2 unreadable`, and the other reasons with a count above 0."""
    counts = collections.Counter(reasons)
    missing = counts.pop(MISSING_FILE, 0)
    others = {text: counts.pop(reason, 0) for reason, text in OTHER_REASONS.items()}
    parts = [f"{missing:,} missing", f"{counts.total():,} unreadable"]
    return ", ".join(parts + [f"{count:,} {text}" for text, count in others.items() if count])
