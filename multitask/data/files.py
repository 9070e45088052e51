"""The picture files of a table: which are missing or unreadable, and why."""

import collections
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from multitask.data.decode import decode_image, error_text
from multitask.data.table import (
    MISSING_FILE,
    NEAR_DUPLICATE,
    NO_LABEL,
    NOT_DRAWN,
    UNKNOWN_LABEL,
)
from multitask.spec import InputError


def why_unreadable(path: str | Path) -> str | None:
    """The reason why a picture cannot be read, as a phrase; None where it can."""
    # os.path: pathlib raises on a name that is too long to exist.
    if not os.path.exists(path):
        return MISSING_FILE
    if not os.path.isfile(path):
        return "not a file"
    try:
        decode_image(tf.constant(Path(path).read_bytes()), target_px=1)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except tf.errors.OpError as error:
        return error_text(error)
    return None


def find_unusable(names: Sequence[str], *, progress: bool = True) -> dict[int, str]:
    """Decode every picture once, as small as its format allows.

    Args:
        names: file names.
        progress: show a bar on a terminal.

    Returns:
        index -> reason, for the pictures that are missing or unreadable.
    """
    present = np.asarray([os.path.isfile(name) for name in names], bool)
    candidates = np.flatnonzero(present)
    good = np.zeros(len(names), bool)
    if len(candidates):

        def check(index: tf.Tensor, name: tf.Tensor):
            image = decode_image(tf.io.read_file(name), target_px=1)
            return index, tf.shape(image)[0]

        dataset = tf.data.Dataset.from_tensor_slices(
            (candidates, tf.constant([names[i] for i in candidates], tf.string))
        )
        dataset = dataset.map(check, tf.data.AUTOTUNE).ignore_errors().batch(64)
        with tqdm(
            total=len(candidates),
            desc="checking pictures",
            unit=" pictures",
            disable=None if progress else True,
            leave=False,
        ) as bar:
            for indices, _ in dataset.as_numpy_iterator():
                good[indices] = True
                bar.update(len(indices))
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
    unusable: pd.DataFrame, total: int, image_dir: Path, *, max_missing: float, remedy: str
) -> None:
    """Raise InputError where more than a share of the pictures cannot be used."""
    # Divided: .29 * 100 is less than 29.
    if not len(unusable) or len(unusable) / total <= max_missing:
        return
    first = ", ".join(
        f"{path} ({reason})" for path, reason in unusable.head(5).itertuples(index=False)
    )
    share = len(unusable) / total
    raise InputError(
        f"{image_dir}: {len(unusable)} of {total} pictures ({share:.3%}) are missing or "
        f"unreadable, more than max_missing = {max_missing:g} allows; first: {first}. {remedy}"
    )


def count_reasons(reasons: Iterable[str]) -> str:
    """`68,946 missing, 2 unreadable`, and of the other reasons those that there are."""
    counts = collections.Counter(reasons)
    missing = counts.pop(MISSING_FILE, 0)
    others = {text: counts.pop(reason, 0) for reason, text in OTHER_REASONS.items()}
    parts = [f"{missing:,} missing", f"{counts.total():,} unreadable"]
    return ", ".join(parts + [f"{count:,} {text}" for text, count in others.items() if count])
