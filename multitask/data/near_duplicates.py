"""Near-duplicates: the same painting as two files (another scan, colour, crop, size, or mirrored).

The hash is imagehash's `phash` of 256 bits (signs of the 16 x 16 lowest frequencies). Two images
are near-duplicates if at most 66 bits differ, directly or with one of them mirrored. Measured on
12,500 real paintings by tools/measure_near_duplicates.py, with a visual check of every pair of up
to 76 bits:

- precision: up to 56 bits, 95 of 95 pairs are the same painting (one in doubt); from 58 to 66 bits,
  18 of 20 (the others are one composition painted twice); from 68 to 72 bits, 5 of 9; from 74 to 76
  bits, 2 of 14: ovals, arches and dark portraits begin to look alike. Mirrored, up to 66 bits: 7 of
  7.
- recall of changed copies: encoded again, half the size, grey, mirrored, +-10 % brightness or
  contrast, colour cast: 100 %; width and height cropped by 2 %: 100 %, by 3.5 %: 98 %, by 5 %:
  77 %, by 8 %: 16 %.
- missed: at least 14 pairs, mostly scans with wide margins. Cropping margins before the search
  would find them, at several times the cost.

At equal precision a `phash` of 144 bits finds 92 % of these pairs; one of 64 bits, or a `dhash` of
128 bits, less than half.

An image of flat areas (a colour field, stripes) is in no pair: its signs come from noise, or from a
layout that many images share. Without this rule, 267 of 300 synthetic smooth colour fields were in
a wrong pair; with it, none is. The rule excludes 3 of the real paintings.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import scipy.fft
import tensorflow as tf
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from multitask.console import progress_bar
from multitask.data.decode import decode_image, resize_image
from multitask.data.image_files import bytes_function, map_files, why_unreadable
from multitask.data.table import NEAR_DUPLICATE, TEST, Table
from multitask.files import replacing
from multitask.reading import open_regular
from multitask.spec import DataSpec

MAX_DISTANCE = 66  # bits
SIDE = 16  # frequencies each way
WORDS = SIDE * SIDE // 64
IMAGE_PX = 4 * SIDE  # the size that phash resizes to; an image of this size is not resized
FLAT = 0.05  # median over RMS of the frequencies; real paintings: 0.1 % under 0.07, median 0.32
CACHE_VERSION = f"phash {SIDE} of {IMAGE_PX} px, even columns first, flat {FLAT}: 1"
# For a cache that cannot be written: file -> its size in bytes and its hash, in this process.
_HASHED: dict[str, tuple[int, np.ndarray]] = {}
_LAST_PAIRS: dict[bytes, pd.DataFrame] = {}  # digest of the hashes -> their pairs
BLOCK = (32, 8192)  # images per comparison: enough to hide numpy's overhead, small in memory


# === Hashes ===


def hash_image(image: np.ndarray) -> np.ndarray:
    """Compute the hash of one image; 0 if the image is too flat to have one.

    Args:
        image: uint8 [IMAGE_PX, IMAGE_PX, 3].

    Returns:
        uint64 [WORDS]; the first half holds the even horizontal frequencies, the second the odd
        ones, which change sign when the image is mirrored.
    """
    grey = Image.fromarray(image).convert("L")
    sizes = np.abs(scipy.fft.dctn(np.asarray(grey, np.float32), norm="ortho")[:SIDE, :SIDE])
    sizes[0, 0] = 0  # the mean brightness
    if np.median(sizes) <= FLAT * np.sqrt(np.mean(sizes**2)):
        return np.zeros(WORDS, np.uint64)
    bits = imagehash.phash(grey, hash_size=SIDE).hash
    return np.packbits([bits[:, 0::2], bits[:, 1::2]]).view("<u8")


def scan_images(
    paths: Sequence[str] | np.ndarray,
    image_dir: Path,
    *,
    cache: Path | None,
    progress: bool = True,
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode and hash every image once.

    Args:
        paths: relative to the image folder.
        image_dir: the image folder.
        cache: a .npz file of the hashes of earlier calls, by path and file size: only files that
            are new or of another size are decoded. A cache that is broken, of another version, or
            not writable is ignored, and everything is decoded.
        progress: show a bar on a terminal.

    Returns:
        uint64 [images, WORDS], the hashes (0: too flat, missing or unreadable); and
        index -> reason, for the images that are missing or unreadable.
    """
    names = [str(image_dir / path) for path in paths]
    sizes = [os.path.getsize(name) if os.path.isfile(name) else -1 for name in names]
    hashes = np.zeros((len(names), WORDS), np.uint64)
    good = np.zeros(len(names), bool)
    known = _read_cache(cache) if cache else {}
    unwritten = False
    for i, path in enumerate(paths):
        for place, entry in (("file", known.get(path)), ("memory", _HASHED.get(names[i]))):
            if entry is not None and entry[0] == sizes[i] >= 0 and not good[i]:
                hashes[i], good[i] = entry[1], True
                unwritten |= place == "memory"
    new = np.flatnonzero((np.asarray(sizes, int) >= 0) & ~good)
    if len(new):
        _hash_files(names, new, hashes, good, progress=progress)
    if cache and (len(new) or unwritten):
        known |= {paths[i]: (sizes[i], hashes[i]) for i in np.flatnonzero(good).tolist()}
        _write_cache(cache, known)
    _HASHED.update({names[i]: (sizes[i], hashes[i]) for i in np.flatnonzero(good).tolist()})
    unusable = {
        int(i): why_unreadable(names[i]) or "could not be read the first time"
        for i in np.flatnonzero(~good)
    }
    return hashes, unusable


def _hash_files(
    names: Sequence[str], new: np.ndarray, hashes: np.ndarray, good: np.ndarray, *, progress: bool
) -> None:
    """Fill in `hashes` and `good` at the indices `new`."""
    new_names = [names[i] for i in new]
    # The hash is of grey levels; a color profile changes too little to matter.
    images = map_files(new_names, _shrinker(), target_px=IMAGE_PX, convert_profiles=False)
    with progress_bar("hashing images", len(new), hidden=not progress) as bar:
        for place, image in images:
            hashes[new[place]] = hash_image(image.numpy())
            good[new[place]] = True
            bar.update(place + 1 - bar.n)


@functools.cache
def _shrinker() -> Callable[[tf.Tensor], tf.Tensor]:
    """Make the function from an image file's bytes to the image that is hashed."""

    def shrink(data: tf.Tensor) -> tf.Tensor:
        image = decode_image(data, target_px=IMAGE_PX)
        image = resize_image(image, size_px=IMAGE_PX, how="squash")
        return tf.cast(tf.round(image), tf.uint8)

    return bytes_function(shrink)


def _read_cache(file: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Path -> (file size in bytes, hash); empty where the file is not a valid cache."""
    try:
        with open_regular(file) as opened, np.load(opened, allow_pickle=False) as cache:
            if str(cache["version"]) != CACHE_VERSION:
                return {}
            paths, sizes, hashes = cache["paths"], cache["sizes"], cache["hashes"]
    except Exception:  # for a broken file, numpy and zipfile raise a dozen kinds of error
        return {}
    if sizes.shape != paths.shape or hashes.shape != (*paths.shape, WORDS):
        return {}
    if sizes.dtype != np.int64 or hashes.dtype != np.uint64:
        return {}
    return dict(zip(paths.tolist(), zip(sizes.tolist(), hashes, strict=True), strict=True))


def _write_cache(file: Path, known: dict[str, tuple[int, np.ndarray]]) -> None:
    sizes, hashes = zip(*known.values(), strict=True) if known else ((), ())
    try:
        # Pass an open file: numpy would append .npz to the temporary name.
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
    """Find all pairs of images that differ in at most MAX_DISTANCE bits, mirrored or not.

    The search is exact: every image is compared with every other; 81,446 images take a minute.

    Args:
        hashes: uint64 [images, words] as `hash_image` gives them, words even and at most 6.
        usable: bool [images]; the others, and those whose hash is 0, are in no pair.

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
            counts = [
                np.bitwise_count(word[top : top + height, None] ^ word[left : left + width])
                for word in words
            ]
            return functools.reduce(np.add, counts)  # uint8: half a hash has few enough bits

        # Mirroring flips every bit of the odd half.
        odd_bits = differing(odd)
        distance = differing(even) + np.minimum(odd_bits, half - odd_bits)
        i, j = np.nonzero(distance <= MAX_DISTANCE)
        close = np.stack([top + i, left + j, distance[i, j]], axis=1)
        return close[close[:, 0] < close[:, 1]]

    starts = [(i, j) for i in range(0, len(rows), height) for j in range(i, len(rows), width)]
    with ThreadPoolExecutor() as pool:  # numpy releases the GIL
        close = np.concatenate([np.zeros((0, 3), np.int64), *pool.map(compare, starts)])
    close = close[np.lexsort((close[:, 1], close[:, 0]))]
    return pd.DataFrame(
        {"first": rows[close[:, 0]], "second": rows[close[:, 1]], "distance": close[:, 2]}
    )


def describe_pairs(table: Table, pairs: pd.DataFrame) -> pd.DataFrame:
    """Add paths and splits to the pairs of `find_pairs`, whose indices are rows of the table.

    Returns:
        A frame of first, second (paths), first_split, second_split and distance (bits).
    """
    sides = {side: pairs[side].to_numpy() for side in ("first", "second")}
    return pd.DataFrame(
        {side: table.paths[rows] for side, rows in sides.items()}
        | {f"{side}_split": table.splits[rows] for side, rows in sides.items()}
        | {"distance": pairs["distance"].to_numpy()}
    )


def leaking_images(described: pd.DataFrame, *, test: bool) -> np.ndarray:
    """Find the images of pairs with one image in test and the other in train or validation.

    Args:
        described: from `describe_pairs`.
        test: whether to return the test images; otherwise the images of train and validation.

    Returns:
        str [n], sorted paths.
    """
    paths = described[["first", "second"]].to_numpy(object)
    is_test = described[["first_split", "second_split"]].to_numpy(object) == TEST
    leaks = is_test.any(axis=1) & ~is_test.all(axis=1)
    return np.unique(paths[leaks][is_test[leaks] == test])


# === The near-duplicates of a table ===


def hash_cache(spec: DataSpec, records_dir: Path) -> Path:
    """The file that keeps the hashes of a data set's images."""
    return records_dir / f"hashes_{spec.name}.npz"


def near_pairs(table: Table, image_dir: Path, cache: Path) -> pd.DataFrame:
    """Find the near-duplicate pairs of a table's images; hashes in the cache are reused."""
    return _pairs_of(table.paths, image_dir, cache)


def near_groups(
    paths: Sequence[str] | np.ndarray, image_dir: Path, cache: Path
) -> list[int | None]:
    """Group images that are near-duplicates, directly or through others.

    Args:
        paths: relative to the image folder.
        image_dir: the image folder.
        cache: as for `scan_images`; its folder is created.

    Returns:
        The number of each image's group; None for an image without near-duplicates.
    """
    with contextlib.suppress(OSError):  # without the folder, every call decodes
        cache.parent.mkdir(parents=True, exist_ok=True)
    pairs = _pairs_of(paths, image_dir, cache)
    edges = pairs["first"].to_numpy(), pairs["second"].to_numpy()
    graph = coo_array((np.ones(len(pairs), np.int8), edges), shape=(len(paths), len(paths)))
    _, groups = connected_components(graph, directed=False)
    paired = np.isin(np.arange(len(paths)), np.concatenate(edges))
    return [
        group if pair else None
        for group, pair in zip(groups.tolist(), paired.tolist(), strict=True)
    ]


def _pairs_of(paths: Sequence[str] | np.ndarray, image_dir: Path, cache: Path) -> pd.DataFrame:
    hashes, unusable = scan_images(paths, image_dir, cache=cache)
    usable = np.ones(len(paths), bool)
    usable[list(unusable)] = False
    key = hashlib.sha256(hashes.tobytes() + usable.tobytes()).digest()
    if key not in _LAST_PAIRS:  # a command reads its table twice, and the search takes a minute
        _LAST_PAIRS.clear()
        _LAST_PAIRS[key] = find_pairs(hashes, usable)
    return _LAST_PAIRS[key]


def exclude_near_duplicates(
    table: Table, image_dir: Path, cache: Path
) -> tuple[Table, pd.DataFrame]:
    """Exclude the training images that have a near-duplicate in the test set.

    Returns:
        The table without them, and all pairs, as `describe_pairs` returns them.
    """
    described = describe_pairs(table, near_pairs(table, image_dir, cache))
    rows = table.find(leaking_images(described, test=False))
    return table.drop(rows, NEAR_DUPLICATE), described
