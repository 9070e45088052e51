"""Measure the search for near-duplicates on real images: pairs, recall of changed copies, speed.

    python tools/measure_near_duplicates.py --data_dir=data --sheet=/tmp/pairs.png

Prints the pairs by distance and split, the recall of each kind of change over 500 images, and the
seconds of scan and search. The sheet shows every pair side by side, to check precision visually.
On the 12,500 paintings named in multitask/data/near_duplicates.py: 122 pairs, in two minutes.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from multitask.data.merging import merge_tables
from multitask.data.near_duplicates import (
    describe_pairs,
    find_pairs,
    leaking_images,
    scan_images,
)
from multitask.data.table import TEST
from multitask.spec import load_spec

_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder that the paths of the spec start at")
_SPEC = flags.DEFINE_string("spec", "wikiart", "the data set")
_SHEET = flags.DEFINE_string("sheet", None, "a PNG of all pairs to write")
flags.mark_flag_as_required("data_dir")

COPIES = 500
CELL_PX = 150
RANDOM = np.random.default_rng(0)


def crop(image: Image.Image, share: float) -> Image.Image:
    """Cut that share of width and of height off, split between the sides by chance."""
    left, right, top, bottom = (RANDOM.dirichlet([1, 1], 2) * share).ravel()
    width, height = image.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return image.crop(tuple(round(side) for side in box))


def cast(image: Image.Image) -> Image.Image:
    tinted = np.asarray(image) * RANDOM.uniform(0.85, 1.15, 3)
    return Image.fromarray(tinted.clip(0, 255).astype(np.uint8))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 50": lambda image: image,
    "half the size": lambda image: image.reduce(2),
    "brightness -10 %": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "brightness +10 %": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "contrast -10 %": lambda image: ImageEnhance.Contrast(image).enhance(0.9),
    "contrast +10 %": lambda image: ImageEnhance.Contrast(image).enhance(1.1),
    "colour cast": cast,
    "grey": ImageOps.grayscale,
    "mirrored": ImageOps.mirror,
    "cropped by 2 %": lambda image: crop(image, 0.02),
    "cropped by 3.5 %": lambda image: crop(image, 0.035),
    "cropped by 5 %": lambda image: crop(image, 0.05),
    "cropped by 8 %": lambda image: crop(image, 0.08),
}


def recall(files: list[Path], hashes: np.ndarray, change: Callable) -> float:
    """The share of images that match their changed copy."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{i}.jpg" for i in range(len(files))]
        for name, file in zip(names, files, strict=True):
            with Image.open(file) as image:
                change(image.convert("RGB")).save(Path(folder, name), quality=50)
        changed, _ = scan_images(names, Path(folder), cache=None)
    pairs = find_pairs(np.concatenate([hashes, changed]), np.ones(2 * len(files), bool))
    return int((pairs["second"] - pairs["first"] == len(files)).sum()) / len(files)


def draw_sheet(described, image_dir: Path, columns: int = 5) -> Image.Image:
    rows = -(-len(described) // columns)
    sheet = Image.new("RGB", (columns * 2 * CELL_PX, rows * (CELL_PX + 14)), "white")
    text = ImageDraw.Draw(sheet)
    for k, row in enumerate(described.sort_values("distance").itertuples()):
        x, y = k % columns * 2 * CELL_PX, k // columns * (CELL_PX + 14)
        text.text((x, y), f"{row.distance} bits", "black")
        for side, path in enumerate((row.first, row.second)):
            with Image.open(image_dir / path) as image:
                small = ImageOps.contain(image.convert("RGB"), (CELL_PX - 4, CELL_PX - 4))
            sheet.paste(small, (x + side * CELL_PX, y + 14))
    return sheet


def main(_) -> None:
    spec, data_dir = load_spec(_SPEC.value), Path(_DATA_DIR.value)
    image_dir = data_dir / spec.images
    table = merge_tables(spec, data_dir)
    started = time.perf_counter()
    hashes, unusable = scan_images(table.paths, image_dir, cache=None)
    scanned = time.perf_counter()
    usable = ~np.isin(np.arange(len(table)), list(unusable))
    pairs = find_pairs(hashes, usable)
    print(f"{len(table)} images, {usable.sum()} of them here")
    print(f"scan {scanned - started:.1f} s, search {time.perf_counter() - scanned:.1f} s")
    print(f"too flat: {int((usable & ~hashes.any(axis=1)).sum())}")
    described = describe_pairs(table, pairs)
    in_test = (described[["first_split", "second_split"]] == TEST).sum(axis=1)
    print(f"{len(pairs)} pairs; both in train, across, both in test: ", end="")
    print([int((in_test == count).sum()) for count in range(3)])
    print(f"test images seen in training: {len(leaking_images(described, test=True))}")
    print("by distance:", pairs.groupby(pairs["distance"] // 8 * 8).size().to_dict())
    if _SHEET.value:
        draw_sheet(described, image_dir).save(_SHEET.value)
    rows = np.flatnonzero(usable)
    rows = RANDOM.choice(rows, min(COPIES, len(rows)), replace=False)
    files = [image_dir / table.paths[row] for row in rows]
    for name, change in CHANGES.items():
        print(f"{name:20} {recall(files, hashes[rows], change):.3f}", flush=True)


if __name__ == "__main__":
    app.run(main)
