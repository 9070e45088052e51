"""Near-duplicates: the same painting as two files (another scan, colour, crop, size, or mirrored).

The hash is imagehash's `phash` of 256 bits (signs of the 16 x 16 lowest frequencies); two pictures
are near-duplicates where at most 66 bits differ, as they are or with one of them mirrored. Measured
on 12,500 real paintings by tools/measure_near_duplicates.py, every pair to 76 bits looked at:

- precision: to 56 bits 95 of 95 pairs are the same painting (one in doubt), of 58 to 66 bits 18 of
  20 (the others are one composition painted twice), of 68 to 72 bits 5 of 9, of 74 to 76 bits 2 of
  14: ovals, arches and dark portraits begin to look alike. Mirrored, to 66 bits 7 of 7.
- recall of changed copies: encoded again, half the size, grey, mirrored, +-10 % brightness or
  contrast, colour cast 100 %; width and height cropped by 2 % 100 %, by 3.5 % 98 %, by 5 % 77 %, by
  8 % 16 %.
- not found: at least 14 pairs, mostly scans with wide margins; cutting margins off in the search
  would find them, at several times the cost.

At equal precision a `phash` of 144 bits finds 92 % of these pairs; one of 64 bits, or a `dhash` of
128 bits, less than half.

A picture of flat areas (a colour field, stripes) is in no pair: its signs are those of noise, or of
a layout that it shares with others. Of 300 smooth colour fields made for the purpose 267 were in a
wrong pair without that guard and none with it; it leaves out 3 of the real paintings.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import scipy.fft
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from multitask.data.decode import decode_image, resize_image
from multitask.data.files import map_files, why_unreadable
from multitask.data.table import VAL, Table
from multitask.files import replacing
from multitask.reading import open_regular

MAX_DISTANCE = 66  # bits
SIDE = 16  # frequencies each way
WORDS = SIDE * SIDE // 64
PICTURE_PX = 4 * SIDE  # what phash makes of a picture; given that, it need not resize
FLAT = 0.05  # median over RMS of the frequencies; real paintings: 0.1 % under 0.07, median 0.32
CACHE_VERSION = f"phash {SIDE} of {PICTURE_PX} px, even columns first, flat {FLAT}: 1"
BLOCK = (32, 8192)  # pictures compared at once: numpy's cost a call is small, and so is memory


# === Hashes ===


def hash_picture(picture: np.ndarray) -> np.ndarray:
    """The hash of one picture; 0 where it is too flat to have one.

    Args:
        picture: uint8 [PICTURE_PX, PICTURE_PX, 3].

    Returns:
        uint64 [WORDS]; the first half holds the even horizontal frequencies, the second the odd
        ones, which are those that change sign where the picture is mirrored.
    """
    grey = Image.fromarray(picture).convert("L")
    sizes = np.abs(scipy.fft.dctn(np.asarray(grey, np.float32), norm="ortho")[:SIDE, :SIDE])
    sizes[0, 0] = 0  # the mean brightness
    if np.median(sizes) <= FLAT * np.sqrt(np.mean(sizes**2)):
        return np.zeros(WORDS, np.uint64)
    bits = imagehash.phash(grey, hash_size=SIDE).hash
    return np.packbits([bits[:, 0::2], bits[:, 1::2]]).view("<u8")


def scan_pictures(
    paths: Sequence[str], image_dir: Path, *, cache: Path | None, progress: bool = True
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode and hash every picture once.

    Args:
        paths: relative to the picture folder.
        image_dir: the picture folder.
        cache: a .npz file of the hashes of earlier calls, by path and file size: only what is new
            or of another size is decoded. One that is broken, of another version, or cannot be
            written is passed over in silence, and everything is decoded.
        progress: show a bar on a terminal.

    Returns:
        uint64 [pictures, WORDS], the hashes (0: too flat, missing or unreadable); and
        index -> reason, for the pictures that are missing or unreadable.
    """
    names = [str(image_dir / path) for path in paths]
    sizes = [os.path.getsize(name) if os.path.isfile(name) else None for name in names]
    hashes = np.zeros((len(names), WORDS), np.uint64)
    good = np.zeros(len(names), bool)
    known = _read_cache(cache) if cache else {}
    for i, path in enumerate(paths):
        size, known_hash = known.get(path, (None, None))
        if size is not None and size == sizes[i]:
            hashes[i], good[i] = known_hash, True
    todo = np.flatnonzero(np.asarray([size is not None for size in sizes], bool) & ~good)
    if len(todo):
        _hash_files(names, todo, hashes, good, progress=progress)
        if cache:
            known |= {paths[i]: (sizes[i], hashes[i]) for i in np.flatnonzero(good)}
            _write_cache(cache, known)
    unusable = {
        int(i): why_unreadable(names[i]) or "could not be read the first time"
        for i in np.flatnonzero(~good)
    }
    return hashes, unusable


def _hash_files(
    names: Sequence[str], todo: np.ndarray, hashes: np.ndarray, good: np.ndarray, *, progress: bool
) -> None:
    """Fill in `hashes` and `good` at the indices `todo`."""

    def shrink(data: tf.Tensor) -> tf.Tensor:
        image = decode_image(data, target_px=PICTURE_PX)
        image = resize_image(image, size_px=PICTURE_PX, how="squash")
        return tf.cast(tf.round(image), tf.uint8)

    dataset = map_files([names[i] for i in todo], shrink).batch(64).prefetch(1)
    with tqdm(
        total=len(todo),
        desc="hashing pictures",
        unit=" pictures",
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for places, pictures in dataset.as_numpy_iterator():
            indices = todo[places]
            hashes[indices] = [hash_picture(picture) for picture in pictures]
            good[indices] = True
            bar.update(len(indices))


def _read_cache(file: Path) -> dict[str, tuple[int, np.ndarray]]:
    """path -> (file size in bytes, hash); empty where the file is not one that we wrote."""
    try:
        with open_regular(file) as opened, np.load(opened, allow_pickle=False) as cache:
            if str(cache["version"]) != CACHE_VERSION:
                return {}
            paths, sizes, hashes = cache["paths"], cache["sizes"], cache["hashes"]
    except Exception:  # whatever lies there: numpy and zipfile raise a dozen kinds of error
        return {}
    if sizes.shape != paths.shape or hashes.shape != (*paths.shape, WORDS):
        return {}
    if sizes.dtype != np.int64 or hashes.dtype != np.uint64:
        return {}
    return dict(zip(paths.tolist(), zip(sizes.tolist(), hashes, strict=True), strict=True))


def _write_cache(file: Path, known: dict[str, tuple[int, np.ndarray]]) -> None:
    sizes, hashes = zip(*known.values(), strict=True) if known else ((), ())
    try:
        # An open file, as numpy gives a name without .npz another one.
        with replacing(file) as temporary, temporary.open("wb") as opened:
            np.savez_compressed(
                opened,
                version=CACHE_VERSION,
                paths=np.asarray(list(known), str),
                sizes=np.asarray(sizes, np.int64),
                hashes=np.asarray(hashes, np.uint64).reshape(-1, WORDS),
            )
    except OSError:
        pass  # the next scan decodes again


# === Pairs ===


def find_pairs(hashes: np.ndarray, usable: np.ndarray) -> pd.DataFrame:
    """All pairs of pictures that differ in at most MAX_DISTANCE bits, one of them mirrored or not.

    Exact: every picture is compared with every other, 81,446 of them within a minute.

    Args:
        hashes: uint64 [pictures, words] as `hash_picture` gives them, words even and at most 6.
        usable: bool [pictures]; the others, and those whose hash is 0, are in no pair.

    Returns:
        A frame of first and second (indices, first < second) and distance (bits, the smaller of
        the plain and the mirrored one), sorted by first and second.
    """
    rows = np.flatnonzero(usable & hashes.any(axis=1))
    even, odd = np.split(np.ascontiguousarray(hashes[rows].T), 2)
    half = 64 * len(odd)
    height, width = BLOCK

    def compare(start: tuple[int, int]) -> np.ndarray:
        top, left = start

        def differing(words: np.ndarray) -> np.ndarray:
            # uint8 throughout: half a hash has few enough bits.
            return sum(
                np.bitwise_count(word[top : top + height, None] ^ word[left : left + width])
                for word in words
            )

        # Mirroring flips every bit of the odd half.
        odd_bits = differing(odd)
        distance = differing(even) + np.minimum(odd_bits, half - odd_bits)
        i, j = np.nonzero(distance <= MAX_DISTANCE)
        found = np.stack([top + i, left + j, distance[i, j]], axis=1)
        return found[found[:, 0] < found[:, 1]]

    starts = [(i, j) for i in range(0, len(rows), height) for j in range(i, len(rows), width)]
    with ThreadPoolExecutor() as pool:  # numpy lets other threads run
        found = np.concatenate([np.zeros((0, 3), np.int64), *pool.map(compare, starts)])
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    return pd.DataFrame(
        {"first": rows[found[:, 0]], "second": rows[found[:, 1]], "distance": found[:, 2]}
    )


def describe_pairs(table: Table, pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs of `find_pairs` (of the table's rows) for people.

    Returns:
        A frame of first, second (paths), first_split, second_split and distance (bits).
    """
    sides = {side: pairs[side].to_numpy() for side in ("first", "second")}
    return pd.DataFrame(
        {side: table.paths[rows] for side, rows in sides.items()}
        | {f"{side}_split": table.splits[rows] for side, rows in sides.items()}
        | {"distance": pairs["distance"].to_numpy()}
    )


def training_side(table: Table, pairs: pd.DataFrame) -> np.ndarray:
    """str [n], sorted: paths of the train and selection pictures with a near-duplicate in val."""
    return across_splits(describe_pairs(table, pairs), val=False)


def seen_in_training(table: Table, pairs: pd.DataFrame) -> np.ndarray:
    """str [n], sorted: paths of the val pictures with a near-duplicate in train or selection."""
    return across_splits(describe_pairs(table, pairs), val=True)


def across_splits(described: pd.DataFrame, *, val: bool) -> np.ndarray:
    """str [n], sorted: of the pairs with one side in val, the pictures of that side or the other.

    Args:
        described: from `describe_pairs`.
        val: which side.
    """
    paths = described[["first", "second"]].to_numpy(object)
    is_val = described[["first_split", "second_split"]].to_numpy(object) == VAL
    across = is_val.any(axis=1) & ~is_val.all(axis=1)
    return np.unique(paths[across][is_val[across] == val])
