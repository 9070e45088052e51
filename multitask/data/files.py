"""The picture files of a table: which are missing or unreadable, and why."""

import collections
import errno
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from multitask.data.decode import decode_image, error_text
from multitask.data.matching import why_missing
from multitask.data.table import (
    MISSING_FILE,
    NEAR_DUPLICATE,
    NO_LABEL,
    NOT_DRAWN,
    UNKNOWN_LABEL,
)
from multitask.reading import MAX_IMAGE_BYTES, open_regular, read_regular
from multitask.spec import InputError

READ_TOGETHER = 32  # a call from TensorFlow into Python costs as much as reading a small file
SMALL_BYTES = 2**18  # a larger file is read alone, so that memory does not grow by the above
LARGER = b"larger"  # stands for such a file until then; it is no image
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def why_unreadable(path: str | Path) -> str | None:
    """The reason why a picture cannot be read, as a phrase; None where it can."""
    try:
        decode_image(tf.constant(read_regular(path, MAX_IMAGE_BYTES)), target_px=1)
    except OSError as error:
        return MISSING_FILE if error.errno in NO_FILE else f"cannot be read: {error.strerror}"
    except tf.errors.OpError as error:
        return error_text(error)
    return None


# === Reading in tf.data ===


def _content(name: bytes, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """Nothing where it cannot be read: that is no image either, and `why_unreadable` says why."""
    try:
        return read_regular(name, max_bytes)
    except OSError as error:
        return LARGER if error.errno == errno.EFBIG and max_bytes == SMALL_BYTES else b""


def _small_contents(names: np.ndarray) -> np.ndarray:
    """Of each; LARGER for a file that is to be read alone."""
    return np.asarray([_content(name, SMALL_BYTES) for name in names], object)


def read_encoded(name: tf.Tensor) -> tf.Tensor:
    """A file's name, string [] -> its bytes, string []; empty where it cannot be read.

    Instead of tf.io.read_file, which waits for a named pipe and reads a device without end.
    """

    def content(name: bytes | np.ndarray) -> bytes:  # an array where it is run eagerly
        return _content(np.asarray(name, object).item())

    return tf.ensure_shape(tf.numpy_function(content, [name], tf.string), [])


def map_files(
    names: Sequence[str | bytes], transform: Callable[[tf.Tensor], tf.Tensor]
) -> tf.data.Dataset:
    """What becomes of the files' content, in their order and on all cores.

    Args:
        names: of the files.
        transform: a file's bytes, string [] -> a tensor.

    Returns:
        (index int64 [], the tensor). A file that cannot be read, or whose transform fails, is left
        out, and so is its index; `why_unreadable` tells its reason.
    """

    def read_small(index: tf.Tensor, name: tf.Tensor):
        data = tf.numpy_function(_small_contents, [name], tf.string)
        return index, name, tf.ensure_shape(data, [None])

    def load(index: tf.Tensor, name: tf.Tensor, data: tf.Tensor):
        return index, transform(tf.cond(data == LARGER, lambda: read_encoded(name), lambda: data))

    files = tf.constant([os.fsencode(name) for name in names], tf.string)
    dataset = tf.data.Dataset.from_tensor_slices(files).enumerate().batch(READ_TOGETHER)
    # Not AUTOTUNE, which takes longer than a shard of records to use all cores.
    cores = os.cpu_count()
    dataset = dataset.map(read_small, cores, deterministic=True).unbatch()
    return dataset.map(load, cores, deterministic=True).ignore_errors()


def read_reduced(path: Path, *, target_px: int) -> np.ndarray | None:
    """A picture file, upright and reduced where its format can be, for people to look at.

    Args:
        path: of the file.
        target_px: its shorter side is at least that where the original's is.

    Returns:
        uint8 [height, width, 3]; None where it cannot be read.
    """
    try:
        return decode_image(read_regular(path, MAX_IMAGE_BYTES), target_px=target_px).numpy()
    except (OSError, tf.errors.OpError):
        return None


# === The files of a table ===


def find_unusable(names: Sequence[str], *, progress: bool = True) -> dict[int, str]:
    """Decode every picture once, as small as its format allows.

    Args:
        names: file names.
        progress: show a bar on a terminal.

    Returns:
        index -> reason, for the pictures that are missing or unreadable.
    """
    present = np.flatnonzero([os.path.isfile(name) for name in names])
    good = np.zeros(len(names), bool)
    dataset = map_files(
        [names[i] for i in present], lambda data: tf.shape(decode_image(data, target_px=1))[0]
    )
    with tqdm(
        total=len(present),
        desc="checking pictures",
        unit=" pictures",
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for places, _ in dataset.batch(64).as_numpy_iterator():
            good[present[places]] = True
            bar.update(len(places))
    return {
        int(i): why_unreadable(names[i]) or "could not be read the first time"
        for i in np.flatnonzero(~good)
    }


def picture_sizes(paths: Sequence[str], image_dir: Path) -> np.ndarray:
    """int64 [n]: the files' sizes in bytes; -1 where there is no file."""

    def size(path: str) -> int:
        try:
            return os.stat(os.path.join(image_dir, path)).st_size
        except OSError:
            return -1

    return np.asarray([size(path) for path in paths], np.int64)


def read_frame(path: Path, columns: Iterable[str], remedy: str, **options: Any) -> pd.DataFrame:
    """A CSV of this package, read back.

    Args:
        path: the file.
        columns: that it must have.
        remedy: what makes it anew, for the message.
        options: of `pandas.read_csv`.

    Raises:
        InputError: it is something else.
    """
    try:
        with open_regular(path) as file:
            frame = pd.read_csv(file, **options)
    except (OSError, ValueError) as error:  # the latter also of pandas' parser
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: cannot be read back ({reason}); {remedy}") from None
    missing = [name for name in columns if name not in frame]
    if missing:
        raise InputError(f"{path}: cannot be read back (no column {missing[0]}); {remedy}")
    return frame


OTHER_REASONS = {
    UNKNOWN_LABEL: "of an unknown class",
    NO_LABEL: "without a label",
    NOT_DRAWN: "not drawn for the subset",
    NEAR_DUPLICATE: "near-duplicates",
}


def unusable(left_out: pd.DataFrame) -> pd.DataFrame:
    """Of a table's pictures that are left out, those whose file is missing or unreadable."""
    return left_out[~left_out["reason"].isin(OTHER_REASONS)]


def refuse_missing(
    unusable: pd.DataFrame,
    total: int,
    image_dir: Path,
    *,
    max_missing: float,
    remedy: str,
    allow: str = "",
) -> None:
    """Raise InputError where more than a share of the pictures cannot be used.

    Args:
        unusable: their path and reason.
        total: of all pictures.
        image_dir: the folder that the paths start at.
        max_missing: the share.
        remedy: what to do.
        allow: how a larger share is allowed, with `{share}` for the least that is enough; left out
            of the message where all of them cannot be used.
    """
    # Divided: .29 * 100 is less than 29.
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
        f"{image_dir}: {len(unusable)} of {total} pictures ({share:.3%}) are missing or "
        f"unreadable, more than max_missing = {max_missing:g} allows; first: {first}. "
        f"{remedy.rstrip('.')}."
    )


def count_reasons(reasons: Iterable[str]) -> str:
    """`68,946 missing, 2 unreadable`, and of the other reasons those that there are."""
    counts = collections.Counter(reasons)
    missing = counts.pop(MISSING_FILE, 0)
    others = {text: counts.pop(reason, 0) for reason, text in OTHER_REASONS.items()}
    parts = [f"{missing:,} missing", f"{counts.total():,} unreadable"]
    return ", ".join(parts + [f"{count:,} {text}" for text, count in others.items() if count])
